"""The journal of a labelling job: one line of JSON for each image, on disk before the next is begun.

The first line says what the job is (its fingerprint), each further one holds what came of one image, with a checksum
as its last key. Lines are only ever added, so a process that is killed leaves at worst a torn last line.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from text2seg.errors import OutputError
from text2seg.io.files import exists, fitting, is_file, make_folder, open_file, reason, take_lock, write_atomically

Json = dict[str, Any]

WRITING, WRITTEN = "writing", "written"  # of the output: these bytes are about to take its place, or have taken it

FORMAT = 1
KEY = "text2seg_journal"
_MARK = b',"crc":"'
_SHOWN = 90  # letters of a value in the message about a difference

_log = logging.getLogger(__name__)


class Journal:
    """An open journal, held by this process alone. `append` may be called from one thread while others `read`."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        """Use `Journal.open`."""
        self.path = path
        self._lock = lock
        self._file = path.open("r+b", buffering=0)  # so that nothing is left to be written when it is closed

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, Any], *, restart: bool = False) -> Journal:
        """Take up the journal at `path`, or begin one where there is none.

        Args:
            fingerprint: all that changes results, plain JSON.
            restart: throw an earlier journal away.

        Raises:
            OutputError: another process has it open, it is none of ours, it is of a job with another fingerprint (the
                message says what differs), or it cannot be written.
        """
        lock = _locked(path)
        journal = None
        try:
            if _begins_anew(path, restart=restart):
                _write_header(path, fingerprint)
            else:
                _check_header(path, fingerprint)
            journal = cls(path, lock)
            journal._cut_torn_line()
            return journal
        except BaseException as error:
            if journal is None:
                lock.release()
            else:
                journal.close()
            if isinstance(error, OSError):
                raise OutputError(f"{path} cannot be used: {reason(error)}; choose another --output") from error
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file and its lock back. Never raises: all that was appended is on disk by then."""
        try:
            self._file.close()
        except OSError as error:
            _log.info("%s: %s", self.path, error)
        finally:
            self._lock.release()

    def append(self, records: Iterable[Mapping[str, Any]]) -> list[int]:
        """Add records and see them onto the disk; gives the offset of each for `read_all`.

        Raises:
            OutputError: the disk is full or fails. What was there before is still whole.
        """
        lines = [_line(record) for record in records]
        offsets = []
        before = None
        try:
            before = end = self._file.seek(0, os.SEEK_END)
            for line in lines:
                offsets.append(end)
                end += len(line)
            rest = memoryview(b"".join(lines))
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            if before is not None:
                self._cut(before)
            raise OutputError(
                f"{self.path} cannot be written: {reason(error)}; mend that, and the same command goes on"
            ) from error
        return offsets

    def _cut(self, size: int) -> None:
        """Take back half a line. Where even that fails, the next run takes it for the torn line that it is."""
        try:
            self._file.truncate(size)
        except OSError as error:
            _log.info("%s: %s", self.path, error)

    def read_all(self, offsets: Iterable[int]) -> Iterator[Json]:
        """The records at these offsets, one at a time. Raises `OutputError` where one is damaged."""
        with open_file(self.path, OutputError) as file:
            for offset in offsets:
                try:
                    file.seek(offset)
                    record = _parse(file.readline())
                except OSError as error:
                    raise OutputError(f"{self.path} cannot be read: {reason(error)}") from error
                if record is None:
                    raise OutputError(
                        f"{self.path} is damaged at byte {offset}; the same command once more does that image again"
                    )
                yield record

    def records(self) -> Iterator[tuple[int, Json]]:
        """As `read_records`."""
        return read_records(self.path)

    def _cut_torn_line(self) -> None:
        """A last line without its end was being written when the process died."""
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
            _log.info("%s: %d bytes of a line that was never finished are cut off", self.path, size - end)
            self._file.truncate(end)


def lock_file(path: Path) -> Path:
    """Of the journal at `path`."""
    return path.with_name(fitting(path.name, ".lock"))


def _locked(path: Path) -> FileLock:
    make_folder(path.parent)
    lock = FileLock(lock_file(path))
    if not take_lock(lock, 0, way_out="; choose another --output"):
        raise OutputError(
            f"another process is writing {path}; wait for it, or choose another --output (a job is shared between "
            "processes with --shard and an output for each)"
        )
    return lock


def check_unlocked(path: Path) -> None:
    """Raise `OutputError` where another process writes this journal, before models are loaded in vain."""
    if exists(lock_file(path), OutputError):
        _locked(path).release()


def _begins_anew(path: Path, *, restart: bool) -> bool:
    """Whether there is nothing worth keeping at `path`. Never true of a file that is not ours."""
    if not exists(path, OutputError):
        return True
    if not is_file(path, OutputError):
        raise OutputError(f"{path} is not a file; choose another --output")
    with open_file(path, OutputError) as file:
        first = file.readline()
    begin = b'{"%s":' % KEY.encode()
    if not first.startswith(begin[: len(first)]):
        raise OutputError(f"{path} is there already and is no journal of text2seg; choose another --output")
    return restart or not first.endswith(b"\n")  # killed before the first line was whole


def _write_header(path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Begin a journal. What an earlier one says of the output is kept: it is still ours to write over."""
    lines = [_line({KEY: FORMAT, "fingerprint": fingerprint})]
    for number, digest in enumerate(output_hashes(path)):
        lines.append(_line({"output": WRITING if number else WRITTEN, "sha256": digest}))
    write_atomically(path, lines)
    if os.name == "posix":  # the name of a new file is on disk only once its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _check_header(path: Path, fingerprint: Mapping[str, Any]) -> None:
    with open_file(path, OutputError) as file:
        header = _parse(file.readline())
    if header is None or header.get(KEY) != FORMAT:
        raise OutputError(
            f"{path}: its first line is damaged or of another version of text2seg; --restart throws the journal away"
        )
    changes = differences(header["fingerprint"], _as_read(fingerprint))
    if changes:
        raise OutputError(
            f"{path} belongs to a job with other settings, and results of both would be mixed. What differs: "
            f"{'; '.join(changes)}. Use the old settings to go on, another --output, or --restart, which throws away "
            "what was done"
        )


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What changed between two fingerprints, a line each: `settings.points.threshold: 0.8 → 0.7`."""
    if old == new:
        return []
    before, after = _by_name(old), _by_name(new)
    if before is None or after is None:
        return [f"{name}: {_shown(old)} → {_shown(new)}"]
    keys = dict.fromkeys([*before, *after])
    found = [
        line for key in keys for line in differences(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    ]
    return found or [f"{name}: the order"]


def _by_name(value: Any) -> Json | None:
    """A mapping, or a list of mappings by the name in each; None for anything else."""
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        return {str(each["name"]): each for each in value}
    return value if isinstance(value, dict) else None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _as_read(value: Mapping[str, Any]) -> Json:
    return cast(Json, json.loads(json.dumps(value)))


def _line(record: Mapping[str, Any]) -> bytes:
    body = json.dumps(record, allow_nan=False, separators=(",", ":")).encode("ascii")[:-1]
    return b'%s%s%08x"}\n' % (body, _MARK, zlib.crc32(body))


def _parse(line: bytes) -> Json | None:
    """The record of a line, or None where the line is damaged."""
    body, mark, rest = line.rpartition(_MARK)
    if not mark or rest != b'%08x"}\n' % zlib.crc32(body):
        return None
    return cast(Json, json.loads(body + b"}"))


def read_records(path: Path) -> Iterator[tuple[int, Json]]:
    """Every record with its offset, in the order of writing; damaged lines are reported and passed over. Raises
    `OutputError` where the file cannot be read."""
    with open_file(path, OutputError) as file:
        try:
            offset = len(file.readline())
            for number, line in enumerate(file, start=2):
                record = _parse(line)
                if record is not None:
                    yield offset, record
                elif line.endswith(b"\n"):  # the torn end of a killed process is no damage
                    _log.warning("%s: line %d is damaged; what it held is done again", path, number)
                offset += len(line)
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {reason(error)}") from error


def output_hashes(path: Path) -> list[str]:
    """The sha256 that the output may have if nobody but this job wrote it: of what was written last and, where a run
    was cut short after that, of what was about to be. Empty where there is no journal."""
    found: list[str] = []
    if not is_file(path, OutputError):
        return found
    with open_file(path, OutputError) as file:
        for line in file:
            record = _parse(line) if line.startswith(b'{"output":') else None
            digest = record.get("sha256") if record else None
            if record and isinstance(digest, str):
                found = [digest] if record["output"] == WRITTEN else [*found, digest]
    return found
