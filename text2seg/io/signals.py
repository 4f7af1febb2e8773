"""Ctrl-C and SIGTERM as a request: the first asks to stop, the second stops."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_log = logging.getLogger(__name__)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second raises `KeyboardInterrupt`. Main thread only."""
    stop = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    def tell() -> None:  # not from the handler, which may have cut into a message half written
        stop.wait()
        _log.warning("stopping after what is under way; once more stops at once")

    threading.Thread(target=tell, name="text2seg-stop", daemon=True).start()
    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
