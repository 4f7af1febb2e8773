"""A folder of results, and the record of what text2seg wrote into it.

The record tells results of earlier runs from files of other people, so that `--overwrite` replaces and deletes only the
former.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from text2seg.errors import OutputError
from text2seg.io.files import StrPath, exists, read_file, resolve_path, sha256_of
from text2seg.io.writing import (
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
`sha256sum`; a line before it, which `sha256sum --check` ignores, names the command."""

_COMMAND = b"# text2seg "
"""Begins a line of the record that names the command of the lines below it; `sha256sum` ignores it."""


class _Written(NamedTuple):
    """What the record has of a file: its last two hashes, and the command that wrote it last."""

    hashes: tuple[str, ...]
    command: str


class OutputFolder:
    """A folder of results that later runs may replace, except for files that someone else changed or added.

    The file `RECORD` of the folder has the hash of each file that was written, and the command that wrote it. A file is
    replaced if its bytes are those that text2seg last wrote; with `overwrite` also if somebody changed it since. A file
    that is not in the record is never replaced. Lines are only appended, each before its file is replaced.
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

    def check(self, name: str) -> None:
        """Raise `OutputError` if a file of this name, a path in the folder, cannot be written or must not be
        replaced."""
        path = self.folder / name
        check_writable(path, overwrite=True, flag=self._flag)
        if self._inputs and resolve_path(path) in self._inputs:
            check_not_input(path, [path], flag=self._flag)
        if not exists(path, OutputError) or self._is_ours(name):
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
        return write_together(
            [(self.folder / name, chunks) for name, chunks in files],
            before_replacing=lambda temporary: self._append_hash(next(names), sha256_of(temporary, OutputError)),
        )

    def discard_earlier(self, keep: Container[str] = ()) -> None:
        """Delete what earlier runs of the same command wrote and nobody changed since, except for the names `keep`.

        Folders that get empty are deleted too.
        """
        self._known = None  # other processes may have written files meanwhile
        for key, written in self._written().items():
            name = _name_of_record(key)
            path = self.folder / name
            if written.command != self._command or name in keep or ".." in Path(name).parts or Path(name).is_absolute():
                continue
            if path.is_file() and not path.is_symlink() and self._is_ours(name):
                discard(path)
                for parent in path.parents:
                    if parent == self.folder or not discard_if_empty(parent):
                        break

    def _is_ours(self, name: str) -> bool:
        """Return whether a file has the bytes that text2seg last wrote, or was about to write when it was stopped."""
        digest = sha256_of(self.folder / name, OutputError)
        key = _record_name(name)
        if key in self._written() and digest in self._written()[key].hashes:
            return True
        self._known = None  # another process may have written it since the record was read
        return key in self._written() and digest in self._written()[key].hashes

    def _written(self) -> dict[bytes, _Written]:
        """Return the last two hashes of each file and the command that wrote it, by `_record_name`."""
        if self._known is None:
            self._known, command = {}, ""
            record = self.folder / RECORD
            content = read_file(record, OutputError) if exists(record, OutputError) else b""
            for line in content.split(b"\n"):
                digest, _, name = line.partition(b"  ")
                if line.startswith(_COMMAND):
                    command = line.removeprefix(_COMMAND).decode("ascii", "replace")
                elif name:
                    earlier = self._known[name].hashes[-1:] if name in self._known else ()
                    self._known[name] = _Written((*earlier, digest.decode("ascii", "replace")), command)
        return self._known

    def _append_hash(self, name: str, digest: str) -> None:
        key, known = _record_name(name), self._written()
        if key in known and known[key].hashes[-1] == digest and known[key].command == self._command:
            return
        # One write, which begins with a line break: an interrupted process may have left half a line.
        line = b"\n%s%s\n%s  %s\n" % (_COMMAND, self._command.encode("ascii"), digest.encode("ascii"), key)
        record = self.folder / RECORD
        with output_errors(record), record.open("ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        known[key] = _Written((*(known[key].hashes[-1:] if key in known else ()), digest), self._command)


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
