"""How far long work is, on stderr: a bar on a terminal, and elsewhere, as in a log file, a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PATIENCE = 1.0  # seconds without a bar
PERIOD = 30.0  # seconds between two lines, at least
LINES = 100  # of one piece of work, about, however long it takes
_WITHIN: ContextVar[str | None] = ContextVar("a part of a larger work", default=None)


@contextmanager
def part_of_sweep(name: str) -> Iterator[None]:
    """Inside there are no bars, as there is one of the sweep; lines begin with the name of the part."""
    token = _WITHIN.set(name)
    try:
        yield
    finally:
        _WITHIN.reset(token)


class ProgressBar:
    """A bar where stderr is a terminal, for what takes longer than a second; elsewhere a line every 30 s or so, and one
    at the end if there were any. At most one bar is seen at a time, the one that moved last. ``note`` is added."""

    _seen: ClassVar[ProgressBar | None] = None

    def __init__(self, what: str, patience: float = PATIENCE) -> None:
        within = _WITHIN.get()
        self.what = what if within is None else f"{within}: {what}"
        self.patience, self.begun, self.note = patience, time.monotonic(), ""
        self.progress: Progress | None = None
        console = Console(stderr=True)
        self.draws = console.is_terminal and not console.is_dumb_terminal
        self.enabled = within is None or not self.draws
        self._first: tuple[float, int] | None = None
        self._last_line, self._lines, self._at = self.begun, 0, (0, 0)

    def show(self, done: int, total: int) -> None:
        """So many of so many are done."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        self._at = (done, total)
        if not self.enabled:
            return
        if not self.draws:
            if now - self._last_line >= self._period(now, done, total):
                self._print(now)
        elif now - self.begun >= self.patience:
            self._draw(done, total)

    def stop(self) -> None:
        """Take the bar away; say how long it took, where lines were printed."""
        if self.progress is not None:
            self.progress.stop()
        if ProgressBar._seen is self:
            ProgressBar._seen = None
        if self._lines and self._at[0] >= self._at[1]:
            self._print(time.monotonic())
            self._lines = 0

    # -- a bar --------------------------------------------------------------------------------------------------------

    def _draw(self, done: int, total: int) -> None:
        if ProgressBar._seen is not self and ProgressBar._seen is not None and ProgressBar._seen.progress is not None:
            ProgressBar._seen.progress.stop()
        ProgressBar._seen = self
        if self.progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self.progress = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self.progress.add_task(self.what, total=total, note="")
        self.progress.start()
        self.progress.update(self.progress.task_ids[0], completed=done, total=total, note=self.note)

    # -- lines --------------------------------------------------------------------------------------------------------

    def _period(self, now: float, done: int, total: int) -> float:
        left = self._left(now, done, total)
        return PERIOD if left is None else max(PERIOD, (now - self.begun + left) / LINES)

    def _left(self, now: float, done: int, total: int) -> float | None:
        """Seconds, if the rest goes as fast as what was seen."""
        begun, before = self._first or (now, done)
        return None if done <= before else (now - begun) * (total - done) / (done - before)

    def _print(self, now: float) -> None:
        done, total = self._at
        parts = [f"{done:,} of {total:,}", self.note, f"{_clock(now - self.begun)} elapsed"]
        left = self._left(now, done, total)
        if done < total and left is not None:
            parts.append(f"about {_clock(left)} left")
        print(f"{self.what}: {', '.join(part for part in parts if part)}", file=sys.stderr, flush=True)
        self._last_line, self._lines = now, self._lines + 1


@contextmanager
def shown(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Work whose parts are counted up by what this gives, shown by a bar or by lines."""
    bar, done = ProgressBar(what), 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        bar.show(done, total)

    try:
        bar.show(0, total)
        yield advance
    finally:
        bar.stop()


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(59.6), _clock(3723)
    ('0:01:00', '1:02:03')
    """
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
