"""The journal of a labelling job, and the state of the job read from it.

The journal has one line of JSON per image, synced to disk before the next batch starts. The first line holds the
fingerprint of the job, each further line the record of one image, and the last key of a line is a checksum. Lines are
only appended, so a killed process leaves at worst an incomplete last line.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from text2seg.errors import OutputError
from text2seg.io.files import exists, is_file, open_file, reason
from text2seg.io.names import fit_file_name
from text2seg.io.scan import Scan
from text2seg.io.writing import acquire_lock, make_folder, write_atomically
from text2seg.labelling.engine import Json, Task, stamp_of_record
from text2seg.model_card import file_of_card

WRITING, WRITTEN = "writing", "written"  # entries about the COCO file: its hash before and after it is put in place

FORMAT = 1
KEY = "text2seg_journal"
_CHECKSUM = b',"crc":"'
MOST_NAMED = 8  # changes that a message names
_LONGEST_VALUE = 90  # characters of a value in a message about a changed setting

_log = logging.getLogger(__name__)


class Journal:
    """An open journal, locked by this process. One thread may `append` while others read."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        """Use `Journal.open`."""
        self.path = path
        self._lock = lock
        self._file = path.open("r+b", buffering=0)  # unbuffered, so that closing it writes nothing

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any], *, restart: bool = False) -> Journal:
        """Open the journal at `path`, or create it.

        Args:
            fingerprint: everything that changes results, as plain JSON.
            restart: discard the records of an earlier journal.

        Raises:
            OutputError: another process has the journal open, the file is not a journal, its fingerprint differs (the
                message lists the differences), or it cannot be written.
        """
        lock = _lock_journal(path)
        journal = None
        try:
            if _starts_empty(path, restart=restart):
                _write_header(path, fingerprint)
            else:
                _check_header(path, fingerprint)
            journal = cls(path, lock)
            journal._cut_incomplete_line()
            return journal
        except BaseException as error:
            if journal is None:
                lock.release()
            else:
                journal.close()
            if isinstance(error, OSError):
                raise OutputError(f"{path} cannot be used: {reason(error)}; choose another --output") from error
            raise

    def _cut_incomplete_line(self) -> None:
        """Remove a last line that a killed process did not finish."""
        size = end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            _log.info("%s: %d bytes of an incomplete last line are cut off", self.path, size - end)
            self._file.truncate(end)

    def append(self, records: Iterable[Mapping[str, Any]]) -> list[int]:
        """Add records and sync them to disk. Returns the offset of each record, for `read_all`.

        Raises:
            OutputError: the disk is full or fails. Earlier records stay complete.
        """
        lines = [_line(record) for record in records]
        offsets = []
        start = None
        try:
            start = end = self._file.seek(0, os.SEEK_END)
            for line in lines:
                offsets.append(end)
                end += len(line)
            rest = memoryview(b"".join(lines))
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            if start is not None:
                self._truncate(start)
            raise OutputError(
                f"{self.path} cannot be written: {reason(error)}; fix that and run the same command again to go on"
            ) from error
        return offsets

    def _truncate(self, size: int) -> None:
        """Remove half-written lines. If that fails too, the next run cuts them off as an incomplete line."""
        try:
            self._file.truncate(size)
        except OSError as error:
            _log.info("%s: %s", self.path, error)

    def read_all(self, offsets: Iterable[int]) -> Iterator[Json]:
        """Yield the records at these offsets. Raises `OutputError` if one is damaged."""
        with open_file(self.path, OutputError) as file:
            for offset in offsets:
                try:
                    file.seek(offset)
                    record = _parse(file.readline())
                except OSError as error:
                    raise OutputError(f"{self.path} cannot be read: {reason(error)}") from error
                if record is None:
                    raise OutputError(
                        f"{self.path} is damaged at byte {offset}; run the same command again to label that image again"
                    )
                yield record

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release the lock. Never raises: everything appended is on disk already."""
        try:
            self._file.close()
        except OSError as error:
            _log.info("%s: %s", self.path, error)
        finally:
            self._lock.release()


# ---- opening


def lock_file(path: Path) -> Path:
    """Return the path of the lock file of a journal."""
    return path.with_name(fit_file_name(path.name, ".lock"))


def check_unlocked(path: Path) -> None:
    """Raise `OutputError` if another process writes this journal. Called before the models are loaded."""
    if exists(lock_file(path), OutputError):
        _lock_journal(path).release()


def _lock_journal(path: Path) -> FileLock:
    make_folder(path.parent)
    lock = FileLock(lock_file(path))
    if not acquire_lock(lock, 0, advice="; choose another --output"):
        raise OutputError(
            f"another process is writing {path}; wait for it, or choose another --output (to share a job between "
            "processes, give each a --shard and its own --output)"
        )
    return lock


def _starts_empty(path: Path, *, restart: bool) -> bool:
    """Return whether to write a new journal. Raises `OutputError` if another kind of file is at `path`."""
    if not exists(path, OutputError):
        return True
    if not is_file(path, OutputError):
        raise OutputError(f"{path} is not a file; choose another --output")
    with open_file(path, OutputError) as file:
        first = file.readline()
    begin = b'{"%s":' % KEY.encode()
    if not first.startswith(begin[: len(first)]):
        raise OutputError(f"{path} exists and is not a journal of text2seg; choose another --output")
    return restart or not first.endswith(b"\n")  # killed while the first line was written


def _write_header(path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Create a journal. The output hashes of an earlier one are kept: the job may still replace that output."""
    lines = [_line({KEY: FORMAT, "fingerprint": fingerprint})]
    for number, record in enumerate(_output_records(path)):
        lines.append(_line({**record, "output": WRITING if number else WRITTEN}))
    write_atomically(path, lines)
    if os.name == "posix":  # the name of a new file is on disk only after its folder is synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_known(path: Path, known: Mapping[str, Any]) -> None:
    """Raise `OutputError` if the journal at `path` belongs to another job, as far as the entries `known` of the
    fingerprint tell. Called before the models are loaded."""
    if _starts_empty(path, restart=False):
        return
    old, new = _fingerprint_in(path), json.loads(json.dumps(known))
    _refuse_changes(path, _limited(old, new), new)


def _limited(old: Any, known: Any) -> Any:
    """Return the part of an old fingerprint of which the present one is known."""
    if not isinstance(old, dict) or not isinstance(known, dict):
        return old
    return {key: _limited(old[key], known[key]) for key in known if key in old}


def _check_header(path: Path, fingerprint: Mapping[str, Any]) -> None:
    old, new = _fingerprint_in(path), json.loads(json.dumps(fingerprint))
    if (old.get("card") or {}).get("sha256") != (new.get("card") or {}).get("sha256"):
        raise OutputError(_other_card(path, old.get("card"), new.get("card")))
    _refuse_changes(path, old, new)


def _fingerprint_in(path: Path) -> Json:
    """Return the fingerprint that a journal begins with."""
    with open_file(path, OutputError) as file:
        header = _parse(file.readline())
    if header is None or header.get(KEY) != FORMAT:
        raise OutputError(
            f"{path}: the first line is damaged or from another version of text2seg; --restart discards the journal"
        )
    fingerprint: Json = header["fingerprint"]
    return fingerprint


def _refuse_changes(path: Path, old: Json, new: Json) -> None:
    changes = differences(old, new)
    if changes:
        more = f"; and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
        raise OutputError(
            f"{path} belongs to a job with other settings, and results of both would be mixed. Changed: "
            f"{'; '.join(changes[:MOST_NAMED])}{more}. Use the old settings to go on, choose another --output, or "
            "discard the finished work with --restart"
        )


def _other_card(path: Path, old: Json | None, new: Json | None) -> str:
    """Return the message for a job whose weights have another model card by now, with the way back."""

    def named(card: Json | None) -> str:
        if card is None:
            return "no model card"
        file = file_of_card(str(card.get("sha256")))
        return f"the model card {card.get('name')} ({file or 'its file is gone'})"

    changed = new if old is None else old
    file = file_of_card(str(changed["sha256"])) if changed else None
    back = ""
    if file is not None:
        back = f"To go on, move {file} away; or" if old is None else f"To go on, add --card {file}; or"
    return (
        f"{path} belongs to a job with {named(old)}, but now these weights have {named(new)}, and results of both "
        f"would be mixed. {back or 'You can'} choose another --output to label with the present card, or discard the "
        "finished work with --restart"
    )


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return what changed between two fingerprints, for example `settings.points.threshold: 0.8 → 0.7`."""
    if old == new:
        return []
    old_entries, new_entries = _as_mapping(old), _as_mapping(new)
    if old_entries is None or new_entries is None:
        return [f"{name}: {_told(old)} → {_told(new)}"]
    keys = dict.fromkeys([*old_entries, *new_entries])
    found = [
        line
        for key in keys
        for line in differences(old_entries.get(key), new_entries.get(key), f"{name}.{key}" if name else key)
    ]
    return found or [f"{name}: the order"]


def _as_mapping(value: Any) -> Json | None:
    """Return a mapping, or a list of mappings keyed by their names. None for anything else."""
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        return {str(each["name"]): each for each in value}
    return value if isinstance(value, dict) else None


def _told(value: Any) -> str:
    """Return a value in words. A long one is cut."""
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, dict):
        entries = {key: each for key, each in value.items() if key != "name" and each not in (None, "", [], {})}
        text = ", ".join(f"{key} {_told(each)}" for key, each in entries.items())
    else:
        text = ", ".join(map(_told, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


# ---- lines


def _line(record: Mapping[str, Any]) -> bytes:
    body = json.dumps(record, allow_nan=False, separators=(",", ":")).encode("ascii")[:-1]
    return b'%s%s%08x"}\n' % (body, _CHECKSUM, zlib.crc32(body))


def _parse(line: bytes) -> Json | None:
    """Return the record of a line, or None if the line is damaged."""
    body, mark, rest = line.rpartition(_CHECKSUM)
    if not mark or rest != b'%08x"}\n' % zlib.crc32(body):
        return None
    return cast(Json, json.loads(body + b"}"))


def read_records(path: Path) -> Iterator[tuple[int, Json]]:
    """Yield each record with its offset, in the order of writing. Damaged lines are skipped with a warning.

    Raises:
        OutputError: the file cannot be read.
    """
    with open_file(path, OutputError) as file:
        try:
            offset = len(file.readline())
            for number, line in enumerate(file, start=2):
                record = _parse(line)
                if record is not None:
                    yield offset, record
                elif line.endswith(b"\n"):  # an incomplete last line is no damage
                    _log.warning("%s: line %d is damaged; its image is labelled again", path, number)
                offset += len(line)
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {reason(error)}") from error


def output_hashes(path: Path) -> list[str]:
    """Return the sha256 hashes that the COCO file may have if only this job wrote it.

    These are the hash of the last file written and, if a run was interrupted later, of the file that was about to
    replace it. Empty if there is no journal.
    """
    return [each["sha256"] for each in _output_records(path)]


def is_reviewed(path: Path) -> bool:
    """Return whether the COCO file that this job wrote last has the marks of a review."""
    return any(each.get("reviewed") for each in _output_records(path))


def _output_records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if not is_file(path, OutputError):
        return found
    with open_file(path, OutputError) as file:
        for line in file:
            record = _parse(line) if line.startswith(b'{"output":') else None
            if record and isinstance(record.get("sha256"), str):
                found = [record] if record["output"] == WRITTEN else [*found, record]
    return found


# ---- the state of a job

_OPEN, _FOUND, _EMPTY, _FAILED, _SKIPPED = range(5)


class JobState:
    """The state of each file of a scan, and the offset of its record in the journal."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self._offsets = array("q", [-1]) * len(scan)
        self._states = bytearray(len(scan))

    def resume(self, journal: Path, *, retry_failures: bool = False) -> None:
        """Read the records of earlier runs from a journal. Those of files that are not listed or have changed are
        ignored."""
        numbers = {file: number for number, file in enumerate(self.scan.files)}
        for offset, record in read_records(journal):
            index = numbers.get(record.get("file", ""))
            if index is not None and stamp_of_record(record) == self.scan.stamp(index):
                self.add(index, offset, record)
        if retry_failures:
            for index, state in enumerate(self._states):
                if state == _FAILED:
                    self._states[index] = _OPEN

    def add(self, index: int, offset: int, record: Mapping[str, Any]) -> None:
        """Note the record of a file and its offset in the journal."""
        self._offsets[index] = offset
        if "failure" in record:
            self._states[index] = _FAILED
        elif record.get("skipped"):
            self._states[index] = _SKIPPED
        else:
            self._states[index] = _FOUND if record["annotations"] else _EMPTY

    def open(self) -> list[int]:
        """Return the indices of files without a record."""
        return [index for index, state in enumerate(self._states) if state == _OPEN]

    def batches(self, size: int) -> Iterator[list[Task]]:
        """Yield the batches with at least one file without a record.

        The borders of batches depend only on the scan and on which files are skipped.
        """
        members = array("q", (index for index, state in enumerate(self._states) if state != _SKIPPED))
        for start in range(0, len(members), size):
            batch = members[start : start + size]
            if any(self._states[index] == _OPEN for index in batch):
                yield [self._task(index) for index in batch]

    def _task(self, index: int) -> Task:
        return Task(index, self.scan.files[index], self.scan.stamp(index), needs_record=self._states[index] == _OPEN)

    @property
    def missing(self) -> int:
        """Number of files without a record."""
        return self._states.count(_OPEN)

    @property
    def done(self) -> int:
        """Number of files with a record."""
        return len(self.scan) - self.missing

    def counts(self) -> dict[str, int]:
        """Return the number of images `found` (with segments), `empty` (without) and `failed`.

        Skipped images count as empty. If there are any, `skipped` is their number.
        """
        found, empty, failed, skipped = (self._states.count(state) for state in (_FOUND, _EMPTY, _FAILED, _SKIPPED))
        return {"found": found, "empty": empty + skipped, "failed": failed} | ({"skipped": skipped} if skipped else {})

    def labelled(self) -> Iterator[tuple[int, int]]:
        """Yield index and offset of each file with a result, in the order of the scan."""
        return ((n, self._offsets[n]) for n, state in enumerate(self._states) if state in (_FOUND, _EMPTY, _SKIPPED))

    def failed(self) -> Iterator[int]:
        """Yield the offset of each failure, in the order of the scan."""
        return (self._offsets[n] for n, state in enumerate(self._states) if state == _FAILED)
