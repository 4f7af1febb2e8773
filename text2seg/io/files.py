"""Paths, files and folders on this machine: checked and read with clear errors.

All code that checks whether a path exists or that opens a file does so here. A name that is too long, a folder without
permissions, a file in place of a folder, a dangling link or a pipe then has the same effect in every command.
Files are written by `text2seg.io.writing`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from text2seg.errors import Text2SegError
from text2seg.io.names import shown

StrPath = str | os.PathLike[str]
PathErrors = (OSError, ValueError)
"""What `os` raises for a path. ValueError: the path contains a NUL byte or characters that cannot be encoded."""

LONGEST_PATH_SHOWN = 200  # characters of a path in a message

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ESTALE}


def status(path: StrPath, error: type[Text2SegError] = Text2SegError) -> os.stat_result | None:
    """Return the `os.stat` result of a path, or None if nothing exists there. Links are followed.

    Paths that cannot exist also give None: names that are too long, circles of links, files used as folders.

    Raises:
        error: the path cannot be accessed, for example because a folder may not be entered.
    """
    try:
        return os.stat(path)
    except ValueError:
        return None
    except OSError as fault:
        if fault.errno in _NOT_THERE:
            return None
        raise error(f"{path} cannot be accessed: {reason(fault)}; check the permissions of its folder") from fault


def exists(path: StrPath, error: type[Text2SegError] = Text2SegError) -> bool:
    """Return whether a path exists. Raises as `status`."""
    return status(path, error) is not None


def is_file(path: StrPath, error: type[Text2SegError] = Text2SegError) -> bool:
    """Return whether a path is a regular file. Raises as `status`."""
    found = status(path, error)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_dir(path: StrPath, error: type[Text2SegError] = Text2SegError) -> bool:
    """Return whether a path is a folder. Raises as `status`."""
    found = status(path, error)
    return found is not None and stat.S_ISDIR(found.st_mode)


def json_fault(error: json.JSONDecodeError) -> str:
    """Return where a text stops being JSON, for people who do not know JSON."""
    if not error.doc.strip():
        return "it is empty"
    if not error.doc[error.pos :].strip():
        return f"it ends too early, in line {error.lineno}"
    return f"the first error is in line {error.lineno}, column {error.colno}"


def check_is_dir(path: StrPath, error: type[Text2SegError], *, flag: str) -> None:
    """Raise `error` unless the path that the user gave as `flag` is a folder that can be entered."""
    if not is_dir(path, error):
        raise error(f"{shown_path(path)}, given as {flag}, is not an existing folder")
    if not has_access(path, os.X_OK):
        raise error(f"{shown_path(path)}, given as {flag}, cannot be entered; check its permissions")


def has_access(path: StrPath, mode: int) -> bool:
    """Return whether this process may read, write or enter a path (`os.R_OK`, `os.W_OK`, `os.X_OK`)."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def resolve_path(path: StrPath) -> Path:
    """Return the absolute path with all links followed. Never raises."""
    try:
        return Path(os.path.realpath(path))
    except PathErrors:
        return Path(path)


def same_file(first: StrPath, second: StrPath) -> bool:
    """Return whether two paths lead to the same file, which need not exist yet. Never raises."""
    try:
        return os.path.samefile(first, second)
    except PathErrors:
        return resolve_path(first) == resolve_path(second)


def expand_path(text: str, error: type[Text2SegError]) -> Path:
    """Return the absolute path for text that the user typed; `~` is the home folder.

    Raises:
        error: the home folder is unknown or the working folder was deleted.
    """
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, OSError) as fault:
        raise error(f"cannot expand the path {text!r}: {fault}") from fault


def list_folder(folder: Path, error: type[Text2SegError]) -> list[Path]:
    """Return the files and folders in a folder, sorted. Raises `error` if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except PathErrors as fault:
        raise error(f"{folder} cannot be read: {reason(fault)}") from fault


def open_file(path: StrPath, error: type[Text2SegError]) -> BinaryIO:
    """Open a regular file for reading. Pipes and devices are refused, because reading them may block forever.

    Raises:
        error: the file does not exist or cannot be read. The message names the path.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise error(f"{path} cannot be read: it is a folder, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise error(
                f"{path} cannot be read: it is a {file_kind(found)}, not a file; save its content to a file first"
            )
        return open(path, "rb")
    except FileNotFoundError:
        raise error(f"{path}: there is no such file") from None
    except OSError as fault:
        raise error(f"{shown_path(path)} cannot be read: {reason(fault)}") from fault
    except ValueError as fault:
        raise error(f"{str(path)!r} cannot be read: {reason(fault)}") from fault


def read_file(path: StrPath, error: type[Text2SegError], *, limit: int = -1) -> bytes:
    """Return the content of a file, or its first `limit` bytes. Raises as `open_file`."""
    with open_file(path, error) as file:
        try:
            return file.read(limit)
        except OSError as fault:
            raise error(f"{path} cannot be read: {reason(fault)}") from fault


def sha256_of(path: StrPath, error: type[Text2SegError]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. Raises as `open_file`."""
    with open_file(path, error) as file:
        try:
            return sha256_of_stream(file)
        except OSError as fault:
            raise error(f"{path} cannot be read: {reason(fault)}") from fault


def sha256_of_stream(file: BinaryIO) -> str:
    """Return the SHA-256 of the rest of an open file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def file_kind(found: os.stat_result) -> str:
    """Return what a path is: folder, file, pipe, socket or device."""
    kinds = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(found.st_mode), "device")


def reason(fault: BaseException) -> str:
    """Return the operating system's description of an error, without the path."""
    if isinstance(fault, OSError):
        return fault.strerror or str(fault) or type(fault).__name__
    return (
        "its name contains a NUL byte" if "null" in str(fault) else "its name contains characters that cannot be used"
    )


def shown_path(path: StrPath) -> str:
    """Return a path as messages show it: on one line and not too long."""
    return shown(str(path), LONGEST_PATH_SHOWN)
