"""State of a labelling job: what was found in each image, and which images are done."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from text2seg.io.scan import Scan
from text2seg.labelling.journal import Journal
from text2seg.labelling.record import Task, stamp_in

_OPEN, _FOUND, _EMPTY, _FAILED, _SKIPPED = range(5)


class JobState:
    """The state of each file of a scan and where in the journal its record stands."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self._offsets = array("q", [-1]) * len(scan)
        self._states = bytearray(len(scan))

    def take_up(self, journal: Journal, *, retry_failures: bool = False) -> None:
        """Learn what earlier runs did. Records of files that are not listed, or have changed since, do not count."""
        numbers = {file: number for number, file in enumerate(self.scan.files)}
        for offset, record in journal.records():
            index = numbers.get(record.get("file", ""))
            if index is not None and stamp_in(record) == self.scan.stamp(index):
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
        elif record.get("skipped"):
            self._states[index] = _SKIPPED
        else:
            self._states[index] = _FOUND if record["annotations"] else _EMPTY

    def batches(self, size: int) -> Iterator[list[Task]]:
        """The files of each batch that something is missing of. Where a batch begins depends on the scan only,
        and on what is skipped."""
        looked_at = array("q", (index for index, state in enumerate(self._states) if state != _SKIPPED))
        for start in range(0, len(looked_at), size):
            members = looked_at[start : start + size]
            if any(self._states[index] == _OPEN for index in members):
                yield [self._task(index) for index in members]

    def _task(self, index: int) -> Task:
        wanted = self._states[index] == _OPEN
        return Task(index, self.scan.files[index], self.scan.stamp(index), wanted)

    @property
    def missing(self) -> int:
        return self._states.count(_OPEN)

    @property
    def done(self) -> int:
        return len(self.scan) - self.missing

    def counts(self) -> dict[str, int]:
        """Images in which something was found, nothing was found, and that failed; those skipped are among the empty,
        and counted if there are some."""
        found, empty, failed, skipped = (self._states.count(state) for state in (_FOUND, _EMPTY, _FAILED, _SKIPPED))
        return {"found": found, "empty": empty + skipped, "failed": failed} | ({"skipped": skipped} if skipped else {})

    def open(self) -> list[int]:
        """The files that nothing is known of yet."""
        return [index for index, state in enumerate(self._states) if state == _OPEN]

    def labelled(self) -> Iterator[tuple[int, int]]:
        """Index and offset of each file with a result, in the order of the scan."""
        return ((n, self._offsets[n]) for n, state in enumerate(self._states) if state in (_FOUND, _EMPTY, _SKIPPED))

    def failed(self) -> Iterator[int]:
        """The offset of each failure, in the order of the scan."""
        return (self._offsets[n] for n, state in enumerate(self._states) if state == _FAILED)
