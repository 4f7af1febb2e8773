"""Files written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from text2seg.errors import OutputError


def write_atomically(path: str | os.PathLike[str], chunks: Iterable[bytes]) -> Path:
    """Write the chunks, one after the other, as one file and return where.

    Whoever reads the file meanwhile sees the old one or the new one, never half of it; so does whoever looks after a
    power cut. The folder is made if missing. Chunks may come from a generator; where that raises, its error goes on
    and the old file stays. Raises `OutputError`, naming the path, where the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a file, so it cannot be written over")
    temporary = path.with_name(f".text2seg-{secrets.token_hex(8)}.tmp")  # same folder, so that the move is atomic
    with _told_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("xb")
    try:
        try:
            for chunk in chunks:  # outside of `_told_of`: an OSError of the generator is not one of this file
                with _told_of(path):
                    file.write(chunk)
            with _told_of(path):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with _told_of(path):
                file.close()
        with _told_of(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Errors of the file system as `OutputError`s that name the path."""
    try:
        yield
    except PermissionError as error:
        raise OutputError(f"{path}: no permission to write in {path.parent}") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(f"{path} cannot be written: {path.parent} is not a folder") from error
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def refuse_existing(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raises `OutputError` where the file is there, unless it may be written over."""
    if not overwrite and Path(path).exists():
        raise OutputError(f"{path} is there already; choose another name or say --overwrite")
