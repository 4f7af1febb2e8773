"""Progress of long work, and the wish to stop it, whatever front end it comes from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")
Report = Callable[[int, int, str], None]


def _silent(done: int, total: int, note: str) -> None:
    """Nobody watches."""


class Watch:
    """Told of progress; asked whether to go on. A stopped tool shows what it has until then."""

    def __init__(self, report: Report = _silent, stop: threading.Event | None = None) -> None:
        """`report` is called with how much is done, of how much, and a few words on it, from the thread that works."""
        self._report = report
        self._stop = stop or threading.Event()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def step(self, done: int, total: int, note: str = "") -> None:
        self._report(done, total, note)

    def each(self, items: Iterable[Item], note: str = "", total: int | None = None) -> Iterator[Item]:
        """The items, reporting before each and after the last, until stopped."""
        count = total if total is not None else len(items) if isinstance(items, Sized) else 0
        done = 0
        for item in items:
            if self.stopped:
                return
            self.step(done, count, note)
            yield item
            done += 1
        self.step(done, count, note)
