"""How far long work is: whoever wants to show it listens, and nothing has to be passed through what lies between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

Advance = Callable[[int], object]
"""Is told how many more are done."""
Begin = Callable[[str, int], AbstractContextManager[Advance]]
"""(what is done, how many there are) -> the context of the work, which is told of each part."""
_LISTENER: ContextVar[Begin | None] = ContextVar("who shows progress", default=None)


@contextmanager
def shown_by(listener: Begin) -> Iterator[None]:
    """Whatever long work begins inside is told to the listener."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def long_work(what: str, total: int) -> Iterator[Advance]:
    """Work on ``total`` items; call what this gives with the number of items that are done since the last call.

    Work inside such work is not shown by itself, as it is a part of what is.
    """
    listener = _LISTENER.get()
    if listener is None:
        yield _nobody
        return
    token = _LISTENER.set(None)
    try:
        with listener(what, total) as advance:
            yield advance
    finally:
        _LISTENER.reset(token)


def _nobody(done: int) -> None:
    """Nobody listens."""
