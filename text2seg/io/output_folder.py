"""A folder of results, and the record of what text2seg wrote into it.

The record tells results of earlier runs from files of other people, so that `--overwrite` replaces and deletes only the
former.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from text2seg.errors import OutputError
from text2seg.io.files import StrPath, exists, read_file, resolve_path, sha256_of
from text2seg.io.writing import (
    acquire_lock,
    check_not_input,
    check_writable,
    discard,
    discard_if_empty,
    make_folder,
    output_errors,
    write_together,
)

RECORD = ".text2seg-written"
"""File in a folder of results. Each line holds the SHA-256 and the name of a file that was written, like the output of
`sha256sum`; a line before it, which `sha256sum --check` ignores, names the command. A line becomes a comment, too, when
its file is replaced or deleted."""

LOCK = ".text2seg-lock"
"""File in a folder of results while a process works on them."""

_COMMAND = b"# text2seg "
"""Begins a line of the record that names the command of the lines below it; `sha256sum` ignores it."""


_REPLACED = b"#"
"""Written over the first character of a line whose file has other bytes by now, or is gone."""


class _Written(NamedTuple):
    """What the record has of a file: its hashes, each with the place of its line, and the command that wrote it last.

    There is more than one hash only if a process was stopped while it replaced the file.
    """

    hashes: tuple[tuple[str, int], ...]
    command: str


class OutputFolder:
    """A folder of results that later runs may replace, except for files that someone else changed or added.

    The file `RECORD` of the folder has the hash of each file that was written, and the command that wrote it. A file is
    replaced if its bytes are those that text2seg last wrote; with `overwrite` also if somebody changed it since. A file
    that is not in the record is never replaced. A line is appended before its file is replaced; afterwards earlier
    lines of the file become comments.
    """

    def __init__(
        self,
        folder: StrPath,
        *,
        command: str = "",
        flag: str = "--output",
        overwrite: bool = False,
        inputs: Iterable[StrPath] = (),
    ) -> None:
        """Does not touch the disk yet.

        Args:
            folder: the folder.
            command: the command that writes; `discard_earlier` deletes only files of the same command.
            flag: the option that gave the folder, for messages.
            overwrite: also replace files that text2seg wrote and somebody changed.
            inputs: files that the command reads. They are never replaced.
        """
        self.folder, self._command, self._flag, self._overwrite = Path(folder), command, flag, overwrite
        self._inputs = frozenset(map(resolve_path, inputs))
        self._known: dict[bytes, _Written] | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out that would write the same results meanwhile.

        Raises:
            OutputError: another process writes into the folder, or the folder cannot be written.
        """
        from filelock import FileLock  # here, because most commands need no lock

        make_folder(self.folder, flag=self._flag)
        lock = FileLock(self.folder / LOCK)
        if not acquire_lock(lock, 0, advice=f"; choose another {self._flag}"):
            raise OutputError(
                f"another process is writing into {self.folder}; wait for it, or choose another {self._flag}"
            )
        try:
            yield
        finally:
            discard(self.folder / LOCK)
            lock.release()
            discard_if_empty(self.folder)

    def check(self, name: str) -> None:
        """Raise `OutputError` if a file of this name, a path in the folder, cannot be written or must not be
        replaced."""
        path = self.folder / name
        check_writable(path, overwrite=True, flag=self._flag)
        if self._inputs and resolve_path(path) in self._inputs:
            check_not_input(path, [path], flag=self._flag)
        if not exists(path, OutputError) or self.is_ours(name):
            return
        advice = f"move it away, or choose another {self._flag}"
        if _record_name(name) not in self._written():
            raise OutputError(f"{path} was not written by text2seg, so it is not replaced; {advice}")
        if not self._overwrite:
            raise OutputError(f"{path} was changed since text2seg wrote it; {advice}")

    def check_result(self, name: str, *, text: bool = False) -> None:
        """Raise `OutputError` if a file of this name is there and `overwrite` is not set, or as `check` does. For the
        main file of a result, before any work is done; `text` as for `check_writable`."""
        path = self.folder / name
        check_writable(path, overwrite=self._overwrite, flag=self._flag, inputs=self._inputs, text=text)
        self.check(name)

    def write(self, files: Sequence[tuple[str, Iterable[bytes]]]) -> list[Path]:
        """Write files together, given as (name, content), and return their paths. Raises as `check`."""
        for name, _ in files:
            self.check(name)
        make_folder(self.folder, flag=self._flag)
        for name, _ in files:
            make_folder((self.folder / name).parent, flag=self._flag)
        names = iter([name for name, _ in files])
        paths = write_together(
            [(self.folder / name, chunks) for name, chunks in files],
            before_replacing=lambda temporary: self._append_hash(next(names), sha256_of(temporary, OutputError)),
        )
        for name, _ in files:
            self._forget_replaced(name)
        return paths

    def discard_earlier(self, keep: Container[str] = ()) -> list[Path]:
        """Delete what earlier runs of the same command wrote and nobody changed since, except for the names `keep`.

        Folders that get empty are deleted too. Returns the deleted files.
        """
        deleted = []
        self._known = None  # other processes may have written files meanwhile
        for key, written in [*self._written().items()]:
            name = _name_of_record(key)
            path = self.folder / name
            if written.command != self._command or name in keep or ".." in Path(name).parts or Path(name).is_absolute():
                continue
            if path.is_file() and not path.is_symlink() and self.is_ours(name):
                discard(path)
                deleted.append(path)
                self._forget_replaced(name, keep_last=False)
                for parent in path.parents:
                    if parent == self.folder or not discard_if_empty(parent):
                        break
        return deleted

    def delete(self, name: str) -> None:
        """Delete a file that was written, its line in the record, and what gets empty by that."""
        discard(self.folder / name)
        self._forget_replaced(name, keep_last=False)
        if not self._written():
            discard(self.folder / RECORD)
            discard_if_empty(self.folder)

    def is_ours(self, name: str) -> bool:
        """Return whether a file has the bytes that text2seg last wrote, or was about to write when it was stopped."""
        digest = sha256_of(self.folder / name, OutputError)
        key = _record_name(name)
        if self._has(key, digest):
            return True
        self._known = None  # another process may have written it since the record was read
        return self._has(key, digest)

    def _has(self, key: bytes, digest: str) -> bool:
        """Return whether the record has this hash of a file."""
        return key in self._written() and any(known == digest for known, _ in self._written()[key].hashes)

    def _written(self) -> dict[bytes, _Written]:
        """Return the hashes of each file and the command that wrote it, by `_record_name`."""
        if self._known is None:
            self._known, command = {}, ""
            record = self.folder / RECORD
            content = read_file(record, OutputError) if exists(record, OutputError) else b""
            place = 0
            for line in content.split(b"\n"):
                digest, _, name = line.partition(b"  ")
                if line.startswith(_COMMAND):
                    command = line.removeprefix(_COMMAND).decode("ascii", "replace")
                elif name and not line.startswith(_REPLACED):
                    earlier = self._known[name].hashes if name in self._known else ()
                    self._known[name] = _Written((*earlier, (digest.decode("ascii", "replace"), place)), command)
                place += len(line) + 1
        return self._known

    def _append_hash(self, name: str, digest: str) -> None:
        key, known = _record_name(name), self._written()
        if key in known and known[key].hashes[-1][0] == digest and known[key].command == self._command:
            return
        # One write, which begins with a line break: an interrupted process may have left half a line.
        head = b"\n%s%s\n" % (_COMMAND, self._command.encode("ascii"))
        line = b"%s%s  %s\n" % (head, digest.encode("ascii"), key)
        record = self.folder / RECORD
        with output_errors(record), record.open("ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            place = file.tell() - len(line) + len(head)
        known[key] = _Written((*(known[key].hashes if key in known else ()), (digest, place)), self._command)

    def _forget_replaced(self, name: str, *, keep_last: bool = True) -> None:
        """Turn the lines of a file into comments, except for the last one, which has its present hash."""
        key, known = _record_name(name), self._written()
        if key not in known:
            return
        *earlier, last = known[key].hashes
        stale = earlier if keep_last else [*earlier, last]
        record = self.folder / RECORD
        if stale:
            with output_errors(record), record.open("r+b", buffering=0) as file:
                for digest, place in stale:
                    file.seek(place)
                    if file.read(len(digest)) == digest.encode():  # nobody wrote another record
                        file.seek(place)
                        file.write(_REPLACED)
        if keep_last:
            known[key] = known[key]._replace(hashes=(last,))
        else:
            del known[key]


def _record_name(name: str) -> bytes:
    """Return a file name on one line, with escaped line breaks."""
    return name.replace("\\", "\\\\").replace("\n", "\\n").encode("utf-8", "surrogatepass")


def _name_of_record(name: bytes) -> str:
    """Return the file name that `_record_name` was given, or an empty one if the line is damaged."""
    try:
        text = name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # half a line of an interrupted process
        return ""
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], text)
