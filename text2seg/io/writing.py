"""Files and folders written whole or not at all.

A file is written under a temporary name in its own folder and then renamed, so that no reader ever sees half of it.
`check_writable` finds problems before any work is done.
"""

from __future__ import annotations

import codecs
import errno
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from text2seg.errors import OutputError, Text2SegError
from text2seg.io.files import (
    PathErrors,
    StrPath,
    exists,
    file_kind,
    has_access,
    is_dir,
    read_file,
    reason,
    resolve_path,
    same_file,
    shown_path,
    status,
)
from text2seg.io.names import LONGEST_FILE_NAME, file_name_size

if TYPE_CHECKING:
    from filelock import FileLock

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAKE_ROOM = "; make room and run the same command again"
_OF_THE_SYSTEM = (("/", "proc"), ("/", "sys"))  # folders that look writable
_LINKS = 40  # links followed in one path, as in Linux

_log = logging.getLogger(__name__)


# ---- checks before writing


def check_writable(
    path: StrPath,
    *,
    overwrite: bool = False,
    flag: str = "--output",
    inputs: Iterable[object] = (),
    text: bool = False,
) -> None:
    """Check that a file can be written, before any work is done.

    Args:
        path: the file to write.
        overwrite: allow replacing an existing file. Otherwise the message suggests --overwrite.
        flag: the option that gave the path, for messages.
        inputs: paths and URLs that the same command reads, see `check_not_input`.
        text: the output is text, so an existing file that is not text (an image, say) is never replaced.

    Raises:
        OutputError: the file exists already, is an input, is not a regular file or is write-protected, its name is too
            long, or its folder cannot be written to.
    """
    check_not_input(path, inputs, flag=flag)
    path = Path(path)
    advice = f"choose another {flag}"
    target = _link_target(path)
    found = status(target, OutputError)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise OutputError(f"cannot write {path}: it is not a file but a {file_kind(found)}; {advice}")
    if found is not None and not overwrite:
        raise OutputError(f"{path} already exists; {advice} or add --overwrite")
    if found is not None and not has_access(target, os.W_OK):
        raise OutputError(f"cannot write {path}: it is write-protected; {advice}")
    if found is not None and text and not _is_text(target):
        raise OutputError(f"{path} is not a text file (perhaps an image), so it is not overwritten; {advice}")
    check_folder(target.parent, flag=flag, path=path)
    _check_names(target, path, advice)


def check_not_input(path: object, inputs: Iterable[object], *, flag: str = "--output") -> None:
    """Raise `OutputError` if the file to write is also an input of the command. Not even --overwrite allows that.

    Args:
        path: path or URL of the output.
        inputs: paths and URLs; None is skipped.
        flag: the option that gave the path, for the message.
    """
    for each in inputs:
        if each is not None and (str(path) == str(each) or same_file(str(path), str(each))):
            raise OutputError(f"{path} is an input of this command, so it is not overwritten; choose another {flag}")


def check_folder(folder: StrPath, *, flag: str = "--output", path: StrPath | None = None) -> None:
    """Check that files can be written into a folder, which need not exist yet.

    Args:
        folder: the folder.
        flag: the option that gave it, for messages.
        path: the file that messages name instead of the folder.

    Raises:
        OutputError: it is not a folder, cannot be made, or cannot be written to.
    """
    folder = resolve_path(folder)
    named, advice = path or folder, f"choose another {flag}"
    _check_names(folder, named, advice)
    # lexists: a dangling link, or a circle of links, is in the way of a new folder
    nearest = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path(folder.anchor or "."))
    found = status(nearest, OutputError)
    if found is None or not stat.S_ISDIR(found.st_mode):
        raise OutputError(f"cannot write {named}: {nearest} is not a folder; {advice}")
    if nearest.parts[:2] in _OF_THE_SYSTEM:
        raise OutputError(f"cannot write {named}: {nearest} belongs to the system, and takes no files; {advice}")
    if not has_access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {named}: no permission to write in {nearest}; {advice}")


def _check_names(path: Path, named: StrPath, advice: str) -> None:
    for part in path.parts:
        if file_name_size(part) > LONGEST_FILE_NAME:
            raise OutputError(f"cannot write {shown_path(named)}: the name {shown_path(part)} is too long; {advice}")
    try:
        os.lstat(path)
    except ValueError as fault:
        raise OutputError(f"cannot write {str(named)!r}: {reason(fault)}; {advice}") from fault
    except OSError as fault:
        if fault.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise OutputError(f"cannot write {shown_path(named)}: {reason(fault)}; {advice}") from fault


def _is_text(path: Path) -> bool:
    """Return whether a file starts like text: UTF-8 without control characters, or a UTF-16 or UTF-32 mark."""
    start = read_file(path, OutputError, limit=4096)
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return True
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]|\AP[1-6]\s", start):  # P1 to P6: netpbm images are partly text
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


# ---- files


def write_atomically(
    path: StrPath, chunks: Iterable[bytes], *, before_replacing: Callable[[Path], None] | None = None
) -> Path:
    """Write bytes to a file in one step and return its path.

    Readers see the old file or the new one, never a part, even after a power cut. Missing folders are made. If the path
    is a link, the file it points to is written. The new file gets the permissions of the old one and, if possible, its
    owner. Hard links of the old file keep the old content.

    Args:
        path: the file.
        chunks: its content. If a generator raises, the error is passed on and the old file is kept.
        before_replacing: called with the complete temporary file before it is renamed; its errors are passed on too.

    Raises:
        OutputError: the file cannot be written. The message names the path.
    """
    return write_together([(path, chunks)], before_replacing=before_replacing)[0]


def write_together(
    files: Iterable[tuple[StrPath, Iterable[bytes]]], *, before_replacing: Callable[[Path], None] | None = None
) -> list[Path]:
    """Write several files as `write_atomically` does. None is replaced before all of them are complete."""
    ready: list[tuple[Path, Path, Path]] = []
    try:
        for output, chunks in files:
            path = Path(output)
            target = _link_target(path)
            ready.append((path, target, _write_temporary(path, target, chunks)))
        for path, target, temporary in ready:
            if before_replacing is not None:
                before_replacing(temporary)
            with output_errors(path):
                temporary.replace(target)
    except BaseException:
        for _, _, temporary in ready:
            discard(temporary)
        raise
    return [path for path, _, _ in ready]


def _link_target(path: Path) -> Path:
    """Return the file that a path leads to. Links are followed even if their target does not exist yet."""
    target = path
    with output_errors(path):
        for _ in range(_LINKS):
            if not os.path.islink(target):
                break
            folder = os.path.realpath(target.parent)
            if folder.startswith("/proc/"):  # /dev/stdout and the like
                raise OutputError(f"cannot write {path}: it is not a file but an open stream; choose another path")
            target = Path(folder, os.readlink(target))
        else:
            raise OutputError(f"cannot write {path}: its links form a circle; choose another path")
    return target


def _write_temporary(path: Path, target: Path, chunks: Iterable[bytes]) -> Path:
    """Write a complete temporary file next to the target and return its path."""
    old = status(target, OutputError)
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise OutputError(f"{path} is not a file but a {file_kind(old)}, so it cannot be overwritten")
    temporary = target.with_name(_temporary_name())
    with output_errors(path):
        os.makedirs(os.path.realpath(target.parent), exist_ok=True)
        file = temporary.open("xb")
    try:
        with output_errors(path):
            _copy_permissions(file, old)
        for chunk in chunks:  # not within `output_errors`: an OSError of the generator is about another file
            with output_errors(path):
                file.write(chunk)
        with output_errors(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
    except BaseException:
        discard(temporary, file)
        raise
    return temporary


def _copy_permissions(file: BinaryIO, old: os.stat_result | None) -> None:
    """Give a new file the owner and permissions of the old one before it holds any content that others may not read."""
    if old is None or os.name != "posix":
        return
    new = os.fstat(file.fileno())
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
        except OSError as fault:  # only root may change the owner
            _log.debug("%s keeps its own owner: %s", file.name, fault)
    os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & 0o777)


def copy_file(source: Path, target: Path) -> None:
    """Copy a readable file into an existing folder. Raises `OutputError`."""
    with output_errors(target):
        shutil.copy2(source, target)


def discard(path: Path, file: BinaryIO | None = None) -> None:
    """Close and delete a file or folder. Never raises, so that it cannot hide an earlier error."""
    try:
        if file is not None:
            file.close()
    except OSError as fault:  # on a full disk even closing fails
        _log.debug("%s: %s", path, fault)
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except PathErrors as fault:
        _log.info("%s could not be deleted: %s", path, fault)


def discard_if_empty(folder: Path) -> bool:
    """Delete a folder unless it has files, and return whether it was deleted. Never raises."""
    try:
        folder.rmdir()
    except PathErrors as fault:
        _log.debug("%s is kept: %s", folder, fault)
        return False
    return True


def is_leftover(path: Path) -> bool:
    """Return whether a path is a temporary file or folder of a process that was killed."""
    return path.name.startswith(".text2seg-") and path.name.endswith(".tmp")


def _temporary_name() -> str:
    return f".text2seg-{secrets.token_hex(8)}.tmp"


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into an `OutputError` that names the path."""
    try:
        yield
    except PermissionError as fault:
        raise OutputError(f"{path}: no permission to write in {path.parent}") from fault
    except (FileExistsError, NotADirectoryError) as fault:
        raise OutputError(f"{path} cannot be written: {path.parent} is not a folder") from fault
    except OSError as fault:
        advice = _MAKE_ROOM if fault.errno in _DISK_FULL else ""
        raise OutputError(f"{shown_path(path)} cannot be written: {reason(fault)}{advice}") from fault
    except ValueError as fault:
        raise OutputError(f"{str(path)!r} cannot be written: {reason(fault)}") from fault


def is_disk_error(error: BaseException) -> bool:
    """Return whether an `OutputError` is about the whole disk, so that writing the next file would fail too."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _DISK_FULL | {errno.EROFS, errno.EIO, errno.ENODEV}


def fault_of(error: OutputError) -> str:
    """Return what an error of the disk says, without the advice to run the same command again."""
    return str(error).removesuffix(_MAKE_ROOM)


# ---- folders and locks


def make_folder(folder: StrPath, *, flag: str = "--output") -> None:
    """Make a folder and its parents if they are missing. Links are followed. Raises `OutputError`."""
    try:
        os.makedirs(os.path.realpath(folder), exist_ok=True)
    except (FileExistsError, NotADirectoryError) as fault:
        raise OutputError(f"cannot make the folder {folder}: a file is in its place; choose another {flag}") from fault
    except PathErrors as fault:
        raise OutputError(f"cannot make the folder {folder!s}: {reason(fault)}; choose another {flag}") from fault


@contextmanager
def temporary_folder_for(output: Path, *, flag: str = "--output") -> Iterator[Path]:
    """Yield a new folder whose files are moved into `output` when the block succeeds, and deleted when it fails.

    Existing files in `output` with other names are kept. Raises `OutputError` if a folder or file cannot be written.
    """
    target = resolve_path(output)
    is_new = not exists(target, OutputError)
    # Inside an existing output: it may be on another disk than its parent, or the parent may be read-only.
    work = (target.parent if is_new else target) / _temporary_name()
    make_folder(work, flag=flag)
    try:
        yield work
        with output_errors(output):
            if is_new:
                work.rename(target)
            else:
                _move_files(work, target)
    except Text2SegError as error:  # name the final path, not the temporary one
        error.args = (str(error).replace(str(work), str(output)),)
        raise
    finally:
        discard(work)


def _move_files(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for each in sorted(source.iterdir()):
        place = target / each.name
        if each.is_dir():
            _move_files(each, resolve_path(place))
        else:
            end = _link_target(place)
            if is_dir(end, OutputError):
                raise OutputError(f"{place} is a folder, so no file can be written there")
            shutil.move(each, end) if end != place else each.replace(place)


def acquire_lock(lock: FileLock, seconds: float, error: type[Text2SegError] = OutputError, advice: str = "") -> bool:
    """Acquire a file lock. Return False if another process holds it for `seconds`; a negative number waits forever.

    Raises:
        error: the lock file cannot be made or its disk does not support locks; `advice` ends the message.
    """
    from filelock import Timeout

    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    except (*PathErrors, NotImplementedError) as fault:
        why = "its disk does not support locks" if isinstance(fault, NotImplementedError) else reason(fault)
        raise error(f"cannot write in {Path(lock.lock_file).parent}: {why}{advice}") from fault
    return True
