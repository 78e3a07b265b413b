"""Progress: a bar on a terminal, lines elsewhere, and who is shown when several parts are at work."""

from __future__ import annotations

import sys

import pytest

from prefgeo import progress
from prefgeo.progress import ProgressBar, part_of_sweep, shown


class Clock:
    """A clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_log_file_gets_a_line_every_half_minute_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ProgressBar("preference training")
    for step in range(1, 801):
        clock.now += 0.125
        bar.note = f"loss {0.7 - step / 10_000:.4f}"
        bar.show(step, 800)
    bar.stop()
    assert capsys.readouterr().err.splitlines() == [
        "preference training: 240 of 800, loss 0.6760, 0:00:30 elapsed, about 0:01:10 left",
        "preference training: 480 of 800, loss 0.6520, 0:01:00 elapsed, about 0:00:40 left",
        "preference training: 720 of 800, loss 0.6280, 0:01:30 elapsed, about 0:00:10 left",
        "preference training: 800 of 800, loss 0.6200, 0:01:40 elapsed",
    ]


def test_short_work_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with shown("scoring", 10) as advance:
        for _ in range(10):
            clock.now += 2.9
            advance(1)
    assert capsys.readouterr().err == ""


def test_long_work_prints_about_a_hundred_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with shown("training", 36_000) as advance:
        for _ in range(36_000):
            clock.now += 1.0
            advance(1)
    assert 95 <= len(capsys.readouterr().err.splitlines()) <= 105


def test_what_was_done_before_a_resume_does_not_count_for_the_rest(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ProgressBar("training")
    bar.show(900, 1000)
    clock.now = 40.0
    bar.show(950, 1000)
    assert capsys.readouterr().err == "training: 950 of 1,000, 0:00:40 elapsed, about 0:00:40 left\n"


def test_parts_of_a_sweep_are_named_in_lines_and_have_no_bars(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with part_of_sweep("abc-0"), shown("training", 2) as advance:
        clock.now = 31.0
        advance(1)
    assert capsys.readouterr().err.startswith("abc-0: training: 1 of 2, ")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    monkeypatch.setenv("TERM", "xterm")
    with part_of_sweep("abc-0"):
        assert not ProgressBar("training").enabled
    assert ProgressBar("training").draws


def test_the_bar_waits_a_second_and_gives_way_to_the_next(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    bar, other = ProgressBar("run"), ProgressBar("evaluation")
    bar.show(1, 10)
    assert bar.progress is None
    clock.now = 1.1
    bar.show(2, 10)
    assert bar.progress is not None and bar.progress.tasks[0].completed == 2
    other.show(1, 5)
    assert other.progress is not None and other.progress.live.is_started and not bar.progress.live.is_started
    bar.show(3, 10)
    assert bar.progress.live.is_started and not other.progress.live.is_started
    bar.stop(), other.stop()
    assert not bar.progress.live.is_started and not other.progress.live.is_started


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert not ProgressBar("run").draws
