"""Places that are not on this machine: `s3://`, `gs://` and whatever else fsspec opens.

A URL is a type of its own. No function makes one of a text but `place_of`, which is for what a person typed or wrote
into a program; text out of a request or out of a file is never opened as a URL.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from text2seg.errors import ImageError, OutputError, SettingsError, Text2SegError
from text2seg.io.files import Faults

Stamp = tuple[int, int]  # bytes, and the time of the last change in nanoseconds
MISSING = (-1, -1)  # the stamp of a file that is not there

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+)://(.*)", re.DOTALL)  # C:// is a drive
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}  # those of the extra [cloud]
_TIMES = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")  # as stores call it

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Url:
    """A folder or an object in a store, with no slash at its end; the same on every machine. Made by `place_of`."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text}/{name}")

    @property
    def scheme(self) -> str:
        """s3, gs, …"""
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        """What comes after the last slash."""
        return self.text.rpartition("/")[2]


Place = Path | Url


def is_url(text: str) -> bool:
    """Whether a text would be more than the path of a file here."""
    match = _URL.fullmatch(text)
    return match is not None and match[1].lower() != "file"


def place_of(given: str | os.PathLike[str] | Url) -> Place:
    """A path or a URL, from what a person typed. `file://` is a path like any other.

    >>> str(place_of("s3://bucket/photos/")), place_of("file:///photos").name
    ('s3://bucket/photos', 'photos')

    Raises:
        SettingsError: a URL names nothing, or has a password in it.
    """
    if isinstance(given, Url):
        return given
    match = _URL.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        return Path(cast(str, given))
    scheme, place = match[1].lower(), match[2]
    if scheme == "file":
        return Path(place)
    if not place.strip("/"):
        raise SettingsError(f"{given} names no bucket or folder, such as {scheme}://bucket/photos")
    if ":" in place.partition("/")[0].rpartition("@")[0]:  # it would stand in the journal and in the COCO file
        raise SettingsError(f"the {scheme}:// URL has a password in it; leave it out and set it up for fsspec instead")
    return Url(f"{scheme}://{place.rstrip('/')}")


def stamp_of(path: Path) -> Stamp:
    """Bytes and nanoseconds of the last change, by which a changed file is known; `MISSING` where there is no file."""
    try:
        status = os.stat(path)
    except Faults:
        return MISSING
    return status.st_size, status.st_mtime_ns


def list_files(folder: Url, *, recursive: bool = True) -> Iterator[tuple[str, Stamp]]:
    """Name from the folder on, and stamp, of every object below it that is not hidden, in no order.

    Raises:
        ImageError: there is nothing below the folder, or the store cannot be asked.
    """
    with _told_of(folder, ImageError, "list it"):
        store, root = _opened(folder)
        store.invalidate_cache()  # what is there now, also in a process that has listed it before
        found = store.find(root, maxdepth=None if recursive else 1, detail=True)
        store.invalidate_cache()  # a listing of millions is not kept for nothing
    begin = f"{root.rstrip('/')}/"
    if root in found:
        raise ImageError(f"{folder} is not a folder; to look at single images use text2seg segment")
    if not any(path.startswith(begin) for path in found):
        raise ImageError(f"{folder}: there is no such folder, or nothing in it")
    for path, info in found.items():
        name = path.removeprefix(begin)
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        is_folder = not name or name.endswith("/") or info.get("type") == "directory"  # some tools put an object there
        if path.startswith(begin) and not is_folder and not is_hidden:
            yield name, _stamp(info)


def read_bytes(url: Url, error: type[Text2SegError] = ImageError) -> bytes:
    """A whole object. Raises `error`, naming the URL, where it cannot be read."""
    with _told_of(url, error, "read it"):
        store, path = _opened(url)
        return cast(bytes, store.cat_file(path))


@contextmanager
def opened(url: Url, error: type[Text2SegError] = ImageError) -> Iterator[BinaryIO]:
    """An object as a file, of which no more is fetched than is read. Raises `error` where it cannot be opened, not for
    what goes wrong while it is open."""
    with _told_of(url, error, "read it"):
        store, path = _opened(url)
        file = store.open(path, "rb", block_size=1 << 18)
    with file:
        yield file


def exists(url: Url) -> bool:
    """Whether there is an object of this name. Raises `OutputError` where the store cannot be asked, or it is a
    folder."""
    with _told_of(url, OutputError, "look whether it is there (--overwrite does not look)"):
        store, path = _opened(url)
        store.invalidate_cache()
        try:
            info = store.info(path)
        except FileNotFoundError:
            return False
    if info.get("type") == "directory":
        raise OutputError(f"cannot write {url}: it is a folder; choose another --output")
    return True


def sha256(url: Url) -> str:
    """Of an object's bytes. Raises `OutputError` where it cannot be read."""
    digest = hashlib.sha256()
    with opened(url, OutputError) as file, _told_of(url, OutputError, "read it"):
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def put(file: Path, url: Url) -> None:
    """Upload a file in one piece. Raises `OutputError`; then what was there before is still there."""
    with _told_of(url, OutputError, "write it"):
        store, path = _opened(url)
        store.put_file(str(file), path)


def check_writable(url: Url) -> None:
    """Find out whether an object may be put there, by putting an empty hidden one beside it and deleting that again.

    Raises:
        OutputError: it may not, or there is no such bucket.
    """
    trial = Url(f"{url.text.removesuffix(url.name)}.text2seg-{secrets.token_hex(8)}.tmp")
    with _told_of(url, OutputError, "write it"):
        store, path = _opened(trial)
        store.pipe_file(path, b"")
    try:
        store.rm_file(path)
    except Exception as error:  # whoever may add but not delete can label all the same
        _log.warning("%s is empty and may be deleted; here it could not be (%s)", trial, _words(error))


def _opened(url: Url) -> tuple[Any, str]:
    """The file system of a URL, and its own name of the place."""
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(url.scheme)
    except ValueError as error:
        raise SettingsError(f"{url}: no storage is called {url.scheme}://; s3:// and gs:// are") from error
    # Not fsspec's url_to_fs: it takes :: in an object's name for a chain of file systems.
    options, path = kind._get_kwargs_from_urls(str(url)), cast(str, kind._strip_protocol(str(url)))
    if kind.async_impl and not options:
        return _shared(kind, os.getpid()), path
    return kind(**options), path


@lru_cache(maxsize=16)
def _shared(kind: Any, _process: int) -> Any:
    """One for all threads, with its connections. Stores that work in an event loop of fsspec's own may be shared; of
    the others fsspec keeps one for each thread."""
    return kind()


@contextmanager
def _told_of(url: Url, kind: type[Text2SegError], doing: str) -> Iterator[None]:
    """Whatever a store raises as an error of ours. Each comes with a library of its own and with that one's errors."""
    try:
        yield
    except Text2SegError:
        raise
    except ImportError as error:
        package = _PACKAGES.get(url.scheme)
        words = f'{package}; pip install "text2seg[cloud]" brings it' if package else f"a package: {_words(error)}"
        raise kind(f"{url.scheme}:// needs {words}") from error
    except FileNotFoundError as error:
        raise kind(f"{url}: there is no such object, or no such bucket") from error
    except PermissionError as error:
        raise kind(f"{url}: no permission to {doing}; check the credentials ({_words(error)})") from error
    except NotImplementedError as error:
        raise kind(f"{url}: {url.scheme}:// cannot do that: {doing}") from error
    except Exception as error:
        if type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError"):
            raise kind(f"{url}: there are no credentials to {doing} ({_words(error)})") from error
        _log.info("%s", url, exc_info=True)
        raise kind(f"{url}: could not {doing} ({type(error).__name__}: {_words(error)})") from error


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _stamp(info: Mapping[str, Any]) -> Stamp:
    """Size and time of change; the time is 0 where the store does not tell it."""
    size = info.get("size")
    changed = next((value for key in _TIMES if (value := info.get(key))), 0)
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed.replace("Z", "+00:00"))
    seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
    return -1 if size is None else int(size), int(seconds * 1e6) * 1000
