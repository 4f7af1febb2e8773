"""A folder of results that are written again by the next run, and what of it is ours to write over."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from text2seg.errors import OutputError
from text2seg.io.files import (
    StrPath,
    check_writable,
    exists,
    make_folder,
    read_file,
    sha256_of,
    told_of,
    write_together,
)

RECORD = ".text2seg-written"
"""In a folder of results: sha256 and name of each file as it was written, a line each, as `sha256sum` has them."""


class OutputFolder:
    """A folder of results whose files may be written again, as long as they are, byte for byte, what was last written.

    One that a person changed or put there is not replaced. The hashes are in the file `RECORD` of the folder; lines
    are only added, each before the file that it is of takes its place.
    """

    def __init__(self, folder: StrPath, *, flag: str = "--output") -> None:
        """Does not touch the disk yet."""
        self.folder, self._flag = Path(folder), flag
        self._hashes: dict[bytes, list[str]] | None = None

    def check(self, name: str) -> None:
        """Raises `OutputError` where a file of this name could not be written, or is not ours to write over."""
        path = self.folder / name
        check_writable(path, overwrite=True, flag=self._flag)
        if not exists(path, OutputError):
            return
        ours = self._known().get(_on_one_line(name), [])[-2:]  # the last, or the one before if a run was cut short
        if sha256_of(path, OutputError) not in ours:
            raise OutputError(
                f"{path} was changed since text2seg wrote it, or text2seg did not make it; move it away, or choose "
                f"another {self._flag}"
            )

    def write(self, files: Sequence[tuple[str, Iterable[bytes]]]) -> list[Path]:
        """Write files by name, together; gives their paths. Raises as `check`, and where they cannot be written."""
        for name, _ in files:
            self.check(name)
        make_folder(self.folder, flag=self._flag)
        names = iter([name for name, _ in files])
        return write_together(
            [(self.folder / name, chunks) for name, chunks in files],
            before=lambda temporary: self._note(next(names), sha256_of(temporary, OutputError)),
        )

    def _known(self) -> dict[bytes, list[str]]:
        if self._hashes is None:
            self._hashes = {}
            record = self.folder / RECORD
            content = read_file(record, OutputError) if exists(record, OutputError) else b""
            for line in content.split(b"\n"):
                digest, _, name = line.partition(b"  ")
                self._hashes.setdefault(name, []).append(digest.decode("ascii", "replace"))
        return self._hashes

    def _note(self, name: str, digest: str) -> None:
        known = self._known().setdefault(_on_one_line(name), [])
        if known[-1:] == [digest]:
            return
        # The line end comes first as well: a process that was cut short may have left half a line.
        line = b"\n%s  %s\n" % (digest.encode("ascii"), _on_one_line(name))
        record = self.folder / RECORD
        with told_of(record), record.open("ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        known.append(digest)


def _on_one_line(name: str) -> bytes:
    return name.replace("\\", "\\\\").replace("\n", "\\n").encode("utf-8", "surrogatepass")
