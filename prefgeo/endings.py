"""How processes end: on SIGTERM in an orderly way, as on Ctrl-C, and workers with the process that started them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PAUSE = 0.5  # seconds between two looks at the parent


class Terminated(BaseException):
    """SIGTERM came. As little an ``Exception`` as KeyboardInterrupt is: what records failures does not catch it."""


@contextmanager
def orderly_on_sigterm() -> Iterator[None]:
    """SIGTERM raises ``Terminated`` inside, so that whatever was begun is put away. Only the main thread can do this;
    elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent(parent: int) -> None:
    """In a worker: end at once when the process ``parent`` is no more, even if it was killed. A file is whole or not
    there, so nothing is lost but the work under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends this one

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PAUSE)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
