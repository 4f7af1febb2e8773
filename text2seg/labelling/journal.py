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

from filelock import FileLock, Timeout

from text2seg.errors import OutputError

Json = dict[str, Any]

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
        self._file = path.open("r+b")

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
        try:
            if _begins_anew(path, restart=restart):
                _write_header(path, fingerprint)
            else:
                _check_header(path, fingerprint)
            journal = cls(path, lock)
        except OSError as error:
            lock.release()
            raise OutputError(f"{path} cannot be used: {error.strerror}; choose another --output") from error
        except BaseException:
            lock.release()
            raise
        journal._cut_torn_line()
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._lock.release()

    def append(self, records: Iterable[Mapping[str, Any]]) -> list[int]:
        """Add records and see them onto the disk; gives the offset of each for `read_all`.

        Raises:
            OutputError: the disk is full or fails. What was there before is still whole.
        """
        offsets, lines = [], []
        try:
            end = self._file.seek(0, os.SEEK_END)
            for record in records:
                lines.append(_line(record))
                offsets.append(end)
                end += len(lines[-1])
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror}; mend that, and the same command goes on"
            ) from error
        return offsets

    def read_all(self, offsets: Iterable[int]) -> Iterator[Json]:
        """The records at these offsets, one at a time. Raises `OutputError` where one is damaged."""
        with self.path.open("rb", buffering=1 << 16) as file:
            for offset in offsets:
                file.seek(offset)
                record = _parse(file.readline())
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


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _locked(path: Path) -> FileLock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_file(path))
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"another process is writing {path}; wait for it, or choose another --output (a job is shared between "
            "processes with --shard and an output for each)"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write in {path.parent}: {error.strerror}; choose another --output") from error
    return lock


def check_unlocked(path: Path) -> None:
    """Raise `OutputError` where another process writes this journal, before models are loaded in vain."""
    if _lock_file(path).exists():
        _locked(path).release()


def _begins_anew(path: Path, *, restart: bool) -> bool:
    """Whether there is nothing worth keeping at `path`. Never true of a file that is not ours."""
    if not path.exists():
        return True
    if not path.is_file():
        raise OutputError(f"{path} is not a file; choose another --output")
    with path.open("rb") as file:
        first = file.readline()
    begin = b'{"%s":' % KEY.encode()
    if not first.startswith(begin[: len(first)]):
        raise OutputError(f"{path} is there already and is no journal of text2seg; choose another --output")
    return restart or not first.endswith(b"\n")  # killed before the first line was whole


def _write_header(path: Path, fingerprint: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        file.write(_line({KEY: FORMAT, "fingerprint": fingerprint}))
        file.flush()
        os.fsync(file.fileno())
    if os.name == "posix":  # the name of a new file is on disk only once its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _check_header(path: Path, fingerprint: Mapping[str, Any]) -> None:
    with path.open("rb") as file:
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
    """Every record with its offset, in the order of writing; damaged lines are reported and passed over."""
    with path.open("rb") as file:
        offset = len(file.readline())
        for number, line in enumerate(file, start=2):
            record = _parse(line)
            if record is not None:
                yield offset, record
            elif line.endswith(b"\n"):  # the torn end of a killed process is no damage
                _log.warning("%s: line %d is damaged; what it held is done again", path, number)
            offset += len(line)


def last_record(path: Path) -> Json | None:
    """The last line of a journal, if it is short and whole; None where the process that wrote it was cut short."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 12)))
        return _parse(file.read().rstrip(b"\n").rpartition(b"\n")[2] + b"\n")
