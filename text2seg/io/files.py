"""The file system, asked and written to in one place: no question ends in a traceback, and files are written whole or
not at all.

Whatever asks whether something is there, opens a file or makes a folder does so here, so that a name that is too long,
a closed folder, a file where a folder should be, a dangling link or a pipe means the same to every command.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
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

if TYPE_CHECKING:
    from filelock import FileLock

StrPath = str | os.PathLike[str]
Faults = (OSError, ValueError)  # ValueError: a NUL byte, or letters that no file name has

LONGEST_NAME = 255
"""Bytes of a file name that disks take."""

_NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ESTALE}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LINKS = 40  # that a path may lead through, as in Linux

_log = logging.getLogger(__name__)


# ---- asking


def status(path: StrPath, error: type[Text2SegError] = Text2SegError) -> os.stat_result | None:
    """What is at a path, links followed; None where nothing is or can be: no such folder, a file in place of a folder,
    a dangling link, a circle of links, a name that is too long or is none. Raises `error` where it cannot be known."""
    try:
        return os.stat(path)
    except ValueError:
        return None
    except OSError as fault:
        if fault.errno in _NOTHING:
            return None
        raise error(f"{path} cannot be looked at: {reason(fault)}; check the permissions of its folder") from fault


def exists(path: StrPath, error: type[Text2SegError] = Text2SegError) -> bool:
    """Whether there is anything. Raises as `status`."""
    return status(path, error) is not None


def is_file(path: StrPath, error: type[Text2SegError] = Text2SegError) -> bool:
    """Whether there is a regular file. Raises as `status`."""
    found = status(path, error)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_dir(path: StrPath, error: type[Text2SegError] = Text2SegError) -> bool:
    """Whether there is a folder. Raises as `status`."""
    found = status(path, error)
    return found is not None and stat.S_ISDIR(found.st_mode)


def check_is_dir(path: StrPath, error: type[Text2SegError], *, flag: str) -> None:
    """Raise `error` where what a person gave as a folder is none, or its entries may not be looked at."""
    if not is_dir(path, error):
        raise error(f"{_shown(path)}, given as {flag}, is not a folder that is there")
    if not _allows(Path(path), os.X_OK):
        raise error(f"{_shown(path)}, given as {flag}, may not be entered; check its permissions")


def resolved(path: StrPath) -> Path:
    """The path with its links followed as far as they lead; never raises."""
    try:
        return Path(os.path.realpath(path))
    except Faults:
        return Path(path)


def same_file(one: StrPath, other: StrPath) -> bool:
    """Whether two paths lead to one file, be it there already or not. Never raises."""
    try:
        return os.path.samefile(one, other)
    except Faults:
        return resolved(one) == resolved(other)


def expanded(text: str, error: type[Text2SegError]) -> Path:
    """The absolute path of what a person typed, `~` being the home folder. Raises `error` where there is no such home
    or the working folder is gone."""
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, OSError) as fault:
        raise error(f"cannot make a path of {text!r}: {fault}") from fault


def entries(folder: Path, error: type[Text2SegError]) -> list[Path]:
    """What is in a folder, by name. Raises `error` where it is none or may not be read."""
    try:
        return sorted(folder.iterdir())
    except Faults as fault:
        raise error(f"{folder} cannot be read: {reason(fault)}") from fault


def reason(fault: BaseException) -> str:
    """What the system says of a failure, without the path."""
    if isinstance(fault, OSError):
        return fault.strerror or str(fault) or type(fault).__name__
    return "its name has a NUL byte" if "null" in str(fault) else "its name has letters that no file name has"


def fitting(stem: str, suffix: str) -> str:
    """The two as a file name. Where disks would not take its length, the stem is cut and ends in a hash of the whole,
    so that two files stay two.

    >>> fitting("scene", "_overlay.png")
    'scene_overlay.png'
    """
    if size_of_name(stem + suffix) <= LONGEST_NAME:
        return stem + suffix
    mark = f"-{hashlib.sha256(stem.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    cut = stem[:LONGEST_NAME]
    while cut and size_of_name(cut + mark + suffix) > LONGEST_NAME:
        cut = cut[:-1]
    return cut + mark + suffix


def size_of_name(name: str) -> int:
    """In bytes, as `LONGEST_NAME`."""
    return len(name.encode("utf-8", "surrogatepass"))


# ---- reading


def open_file(path: StrPath, error: type[Text2SegError]) -> BinaryIO:
    """A regular file, open for reading. A pipe or a device is refused: reading one could wait for ever.

    Raises `error`, naming the path, where there is none or it may not be read.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise error(f"{path} cannot be read: it is a folder, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{path} cannot be read: it is a {kind_of(found)}, not a file; save what it gives in one first")
        return open(path, "rb")
    except FileNotFoundError:
        raise error(f"{path}: there is no such file") from None
    except OSError as fault:
        raise error(f"{_shown(path)} cannot be read: {reason(fault)}") from fault
    except ValueError as fault:
        raise error(f"{str(path)!r} cannot be read: {reason(fault)}") from fault


def read_file(path: StrPath, error: type[Text2SegError], *, most: int = -1) -> bytes:
    """What is in a file, or its first bytes, as many as `most`. Raises as `open_file`."""
    with open_file(path, error) as file:
        try:
            return file.read(most)
        except OSError as fault:
            raise error(f"{path} cannot be read: {reason(fault)}") from fault


def sha256_of(path: StrPath, error: type[Text2SegError]) -> str:
    """The sha256 of a file, 64 hexadecimal digits. Raises as `open_file`."""
    digest = hashlib.sha256()
    with open_file(path, error) as file:
        try:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        except OSError as fault:
            raise error(f"{path} cannot be read: {reason(fault)}") from fault
    return digest.hexdigest()


def kind_of(found: os.stat_result) -> str:
    """Folder, pipe, device or socket, in a word."""
    kinds = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(found.st_mode), "device")


# ---- writing


def check_writable(
    path: StrPath,
    *,
    overwrite: bool = False,
    flag: str = "--output",
    inputs: Iterable[object] = (),
    text: bool = False,
) -> None:
    """Find out before any work whether a file can be written at its end.

    Args:
        overwrite: a file that is there may be replaced; without it the message offers --overwrite.
        flag: what the path was given by, for the message.
        inputs: paths of what the command reads, as for `check_not_input`.
        text: what is written is text, so a file of anything else, an image for one, is not replaced even so.

    Raises:
        OutputError: it is there already, is an input, no file or write-protected, its name is too long, or its folder
            cannot be written to.
    """
    check_not_input(path, inputs, flag=flag)
    path = Path(path)
    way_out = f"choose another {flag}"
    target = _target(path)
    found = status(target, OutputError)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise OutputError(f"cannot write {path}: it is not a file but a {kind_of(found)}; {way_out}")
    if found is not None and not overwrite:
        raise OutputError(f"{path} is there already; {way_out}, or say --overwrite")
    if found is not None and not _allows(target, os.W_OK):
        raise OutputError(f"cannot write {path}: it is write-protected; {way_out}")
    if found is not None and text and not _is_text(target):
        raise OutputError(f"{path} holds no text, an image perhaps, so it is not written over; {way_out}")
    check_folder(target.parent, flag=flag, path=path)
    _check_names(target, path, way_out)


def check_not_input(path: object, inputs: Iterable[object], *, flag: str = "--output") -> None:
    """Raise `OutputError` where a file to write is one that the same command reads; not even --overwrite allows that.
    Paths and URLs; an input that is None is none."""
    for each in inputs:
        if each is not None and (str(path) == str(each) or same_file(str(path), str(each))):
            raise OutputError(f"{path} is an input of this command, so it is not written over; choose another {flag}")


def _is_text(path: Path) -> bool:
    """Whether the beginning of a file is UTF-8 without control characters, or it is UTF-16 or UTF-32 by its mark."""
    start = read_file(path, OutputError, most=4096)
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return True
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]|\AP[1-6]\s", start):  # the last: images written as numbers
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def check_folder(folder: StrPath, *, flag: str = "--output", path: StrPath | None = None) -> None:
    """Find out whether files can be written into a folder, which need not be there yet.

    Raises:
        OutputError: it is no folder, cannot be made, or may not be written to; the message is about `path` if given.
    """
    folder = resolved(folder)
    wanted, way_out = path or folder, f"choose another {flag}"
    _check_names(folder, wanted, way_out)
    # lexists: a link that leads nowhere or in a circle is in the way of a folder
    there = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path(folder.anchor or "."))
    found = status(there, OutputError)
    if found is None or not stat.S_ISDIR(found.st_mode):
        raise OutputError(f"cannot write {wanted}: {there} is not a folder; {way_out}")
    if not _allows(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {wanted}: no permission to write in {there}; {way_out}")


def _allows(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _check_names(path: Path, given: StrPath, way_out: str) -> None:
    for part in path.parts:
        if size_of_name(part) > LONGEST_NAME:
            raise OutputError(f"cannot write {_shown(given)}: the name {_shown(part)} is too long; {way_out}")
    try:
        os.lstat(path)
    except ValueError as fault:
        raise OutputError(f"cannot write {str(given)!r}: {reason(fault)}; {way_out}") from fault
    except OSError as fault:
        if fault.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise OutputError(f"cannot write {_shown(given)}: {reason(fault)}; {way_out}") from fault


def _shown(name: StrPath) -> str:
    text = str(name)
    return text if len(text) <= 200 else f"{text[:150]}…"


def take_lock(lock: FileLock, seconds: float, error: type[Text2SegError] = OutputError, way_out: str = "") -> bool:
    """Hold a lock; false where another process has it for that long (below 0: wait for ever). Raises `error` where the
    file of the lock cannot be made or its disk has no locks."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    except (*Faults, NotImplementedError) as fault:
        said = "its disk has no locks" if isinstance(fault, NotImplementedError) else reason(fault)
        raise error(f"cannot write in {Path(lock.lock_file).parent}: {said}{way_out}") from fault
    return True


def copy_file(source: Path, target: Path) -> None:
    """Copy a file that is ours to read into a folder that is there. Raises `OutputError`."""
    with told_of(target):
        shutil.copy2(source, target)


def make_folder(folder: StrPath, *, flag: str = "--output") -> None:
    """Make a folder with those above it, if missing; of a link the folder at its end. Raises `OutputError`."""
    try:
        os.makedirs(os.path.realpath(folder), exist_ok=True)
    except (FileExistsError, NotADirectoryError) as fault:
        raise OutputError(f"{folder} is not a folder and cannot be made one; choose another {flag}") from fault
    except Faults as fault:
        raise OutputError(f"cannot make the folder {folder!s}: {reason(fault)}; choose another {flag}") from fault


def write_atomically(path: StrPath, chunks: Iterable[bytes], *, before: Callable[[Path], None] | None = None) -> Path:
    """Write the chunks, one after the other, as one file and return where.

    Whoever reads the file meanwhile sees the old one or the new one, never half of it; so does whoever looks after a
    power cut. The folder is made if missing. A link stays: the file at its end is written, and is made if missing. The
    new file has the old one's permissions and, where that is allowed, its owner; a second name of the old file (a hard
    link) keeps the old bytes. Chunks may come from a generator; where that raises, its error goes on and the old file
    stays.

    Args:
        before: called with the whole new file just before it takes its place; an error of it goes on, too.

    Raises:
        OutputError: it cannot be written; names the path.
    """
    return write_together([(path, chunks)], before=before)[0]


def write_together(
    files: Iterable[tuple[StrPath, Iterable[bytes]]], *, before: Callable[[Path], None] | None = None
) -> list[Path]:
    """As `write_atomically` for files that belong together: none takes its place before all are whole."""
    ready: list[tuple[Path, Path, Path]] = []
    try:
        for given, chunks in files:
            path = Path(given)
            target = _target(path)
            ready.append((path, target, _written_aside(path, target, chunks)))
        for path, target, temporary in ready:
            if before is not None:
                before(temporary)
            with told_of(path):
                temporary.replace(target)
    except BaseException:
        for _, _, temporary in ready:
            discard(temporary)
        raise
    return [path for path, _, _ in ready]


def _target(path: Path) -> Path:
    """The file that a path leads to: links are followed, also to where nothing is yet."""
    target = path
    with told_of(path):
        for _ in range(_LINKS):
            if not os.path.islink(target):
                break
            folder = os.path.realpath(target.parent)
            if folder.startswith("/proc/"):  # /dev/stdout and its kin
                raise OutputError(f"cannot write {path}: it is not a file but an open stream; choose another path")
            target = Path(folder, os.readlink(target))
        else:
            raise OutputError(f"cannot write {path}: its links lead round in a circle; choose another path")
    return target


def _written_aside(path: Path, target: Path, chunks: Iterable[bytes]) -> Path:
    """A whole new file beside the target, so that moving it there is one step."""
    old = status(target, OutputError)
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise OutputError(f"{path} is not a file but a {kind_of(old)}, so it cannot be written over")
    temporary = target.with_name(f".text2seg-{secrets.token_hex(8)}.tmp")
    with told_of(path):
        os.makedirs(os.path.realpath(target.parent), exist_ok=True)
        file = temporary.open("xb")
    try:
        with told_of(path):
            _take_after(file, old)
        for chunk in chunks:  # outside of `told_of`: an OSError of the generator is not one of this file
            with told_of(path):
                file.write(chunk)
        with told_of(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
    except BaseException:
        discard(temporary, file)
        raise
    return temporary


def _take_after(file: BinaryIO, old: os.stat_result | None) -> None:
    """Owner and permissions of the file that is replaced, before the new one holds what others may not read."""
    if old is None or os.name != "posix":
        return
    new = os.fstat(file.fileno())
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
        except OSError as fault:  # only root may give files away
            _log.debug("%s keeps its own owner: %s", file.name, fault)
    os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & 0o777)


def discard(path: Path, file: BinaryIO | None = None) -> None:
    """Close and delete a file or a folder that is not wanted any more. Never raises: an error that is on its way is
    the one to be told, and on a full disk even closing a file fails."""
    try:
        if file is not None:
            file.close()
    except OSError as fault:
        _log.debug("%s: %s", path, fault)
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except Faults as fault:
        _log.info("%s is left behind: %s", path, fault)


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Errors of the file system as `OutputError`s that name the path."""
    try:
        yield
    except PermissionError as fault:
        raise OutputError(f"{path}: no permission to write in {path.parent}") from fault
    except (FileExistsError, NotADirectoryError) as fault:
        raise OutputError(f"{path} cannot be written: {path.parent} is not a folder") from fault
    except OSError as fault:
        hint = "; make room and run the same command again" if fault.errno in _FULL else ""
        raise OutputError(f"{_shown(path)} cannot be written: {reason(fault)}{hint}") from fault
    except ValueError as fault:
        raise OutputError(f"{str(path)!r} cannot be written: {reason(fault)}") from fault


def is_of_disk(error: BaseException) -> bool:
    """Whether an `OutputError` is of the disk, so that the next file would fail as well, and not of one file."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _FULL | {errno.EROFS, errno.EIO, errno.ENODEV}


@contextmanager
def folder_aside(output: Path, *, flag: str = "--output") -> Iterator[Path]:
    """A new folder whose files go into `output` once the block has ended well; else nothing is left of it.

    Files that are there already and have other names stay. Raises `OutputError` where that cannot be done.
    """
    target = resolved(output)
    is_new = not exists(target, OutputError)
    # Within a folder that is there: it may be a disk of its own, and the folder above it closed.
    work = (target.parent if is_new else target) / f".text2seg-{secrets.token_hex(8)}.tmp"
    make_folder(work, flag=flag)
    try:
        yield work
        with told_of(output):
            if is_new:
                work.rename(target)
            else:
                _move_into(work, target)
    except Text2SegError as error:  # the place where the file was to be in the end, not the one it is made in
        error.args = (str(error).replace(str(work), str(output)),)
        raise
    finally:
        discard(work)


def is_left_over(path: Path) -> bool:
    """Whether this is what a process that was killed left of its writing."""
    return path.name.startswith(".text2seg-") and path.name.endswith(".tmp")


def _move_into(work: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for each in sorted(work.iterdir()):
        place = target / each.name
        if each.is_dir():
            _move_into(each, resolved(place))
        else:
            end = _target(place)
            if os.path.isdir(end):
                raise OutputError(f"{place} is a folder, so no file can be written there")
            shutil.move(each, end) if end != place else each.replace(place)
