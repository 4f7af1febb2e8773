"""What is done and what is not: a few bytes for each image, however much was found in it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from text2seg.labelling.journal import Journal
from text2seg.labelling.listing import Listing
from text2seg.labelling.record import Task, stamp_in, stamp_of

_OPEN, _FOUND, _EMPTY, _FAILED = range(4)


class Ledger:
    """The state of each file of a listing and where in the journal its record stands."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self._offsets = array("q", [-1]) * len(listing)
        self._states = bytearray(len(listing))

    def take_up(self, journal: Journal, *, retry_failures: bool = False) -> None:
        """Learn what earlier runs did. Records of files that are not listed, or have changed since, do not count."""
        numbers = {file: number for number, file in enumerate(self.listing.files)}
        for offset, record in journal.records():
            index = numbers.get(record.get("file", ""))
            if index is not None and stamp_in(record) == stamp_of(self.listing.path(index)):
                self.note(index, offset, record)
        if retry_failures:
            for index, state in enumerate(self._states):
                if state == _FAILED:
                    self._states[index] = _OPEN

    def note(self, index: int, offset: int, record: Mapping[str, Any]) -> None:
        """The record of a file stands at this offset."""
        self._offsets[index] = offset
        if "failure" in record:
            self._states[index] = _FAILED
        else:
            self._states[index] = _FOUND if record["annotations"] else _EMPTY

    def batches(self, size: int) -> Iterator[list[Task]]:
        """The files of each batch that something is missing of. Where a batch begins depends on the listing only."""
        for start in range(0, len(self.listing), size):
            members = range(start, min(start + size, len(self.listing)))
            if any(self._states[index] == _OPEN for index in members):
                yield [self._task(index) for index in members]

    def _task(self, index: int) -> Task:
        wanted = self._states[index] == _OPEN
        return Task(index, self.listing.files[index], stamp_of(self.listing.path(index)), wanted)

    @property
    def missing(self) -> int:
        return self._states.count(_OPEN)

    @property
    def done(self) -> int:
        return len(self.listing) - self.missing

    def counts(self) -> dict[str, int]:
        """Images in which something was found, nothing was found, and that failed."""
        states = {"found": _FOUND, "empty": _EMPTY, "failed": _FAILED}
        return {name: self._states.count(state) for name, state in states.items()}

    def labelled(self) -> Iterator[tuple[int, int]]:
        """Index and offset of each file with a result, in the order of the listing."""
        return ((n, self._offsets[n]) for n, state in enumerate(self._states) if state in (_FOUND, _EMPTY))

    def failed(self) -> Iterator[int]:
        """The offset of each failure, in the order of the listing."""
        return (self._offsets[n] for n, state in enumerate(self._states) if state == _FAILED)
