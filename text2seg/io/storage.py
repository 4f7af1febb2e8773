"""Files in object stores: `s3://`, `gs://` and everything else that fsspec opens.

A URL has its own type. Only `place_of` makes one from text, and it is meant for text that the user typed or wrote into
a program. Text from a request or a file is never opened as a URL.
"""

from __future__ import annotations

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
from text2seg.io.files import PathErrors, sha256_of_stream

Stamp = tuple[int, int]  # size in bytes, and modification time in nanoseconds
MISSING = (-1, -1)  # stamp of a file that does not exist

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+)://(.*)", re.DOTALL)  # C:// is a drive
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}  # in the extra [cloud]
_TIMES = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")  # names that stores use

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Url:
    """A folder or an object in a store, without a slash at the end. Made by `place_of`."""

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
        """Text after the last slash."""
        return self.text.rpartition("/")[2]


Place = Path | Url


def is_url(text: str) -> bool:
    """Return whether text is a URL other than `file://`."""
    match = _URL.fullmatch(text)
    return match is not None and match[1].lower() != "file"


def place_of(given: str | os.PathLike[str] | Url) -> Place:
    """Return a path or URL for text that the user typed. `file://` gives a path.

    >>> str(place_of("s3://bucket/photos/")), place_of("file:///photos").name
    ('s3://bucket/photos', 'photos')

    Raises:
        SettingsError: a URL names no bucket or folder, or contains a password.
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
    if ":" in place.partition("/")[0].rpartition("@")[0]:  # it would be written to the journal and the COCO file
        raise SettingsError(f"the {scheme}:// URL has a password in it; leave it out and set it up for fsspec instead")
    return Url(f"{scheme}://{place.rstrip('/')}")


def stamp_of(path: Path) -> Stamp:
    """Return the size and modification time of a file, which show changes; `MISSING` if there is none."""
    try:
        status = os.stat(path)
    except PathErrors:
        return MISSING
    return status.st_size, status.st_mtime_ns


def list_files(folder: Url, *, recursive: bool = True) -> Iterator[tuple[str, Stamp]]:
    """Yield the name (relative to the folder) and stamp of every object in it that is not hidden, in any order.

    Raises:
        ImageError: the folder is empty, or the store cannot be reached.
    """
    with _store_errors(folder, ImageError, "list it"):
        store, root = _opened(folder)
        store.invalidate_cache()  # list again, even if this process has listed the folder before
        found = store.find(root, maxdepth=None if recursive else 1, detail=True)
        store.invalidate_cache()  # do not keep a list of millions of objects
    begin = f"{root.rstrip('/')}/"
    if root in found:
        raise ImageError(f"{folder} is not a folder; for single images use text2seg segment")
    if not any(path.startswith(begin) for path in found):
        raise ImageError(f"{folder}: there is no such folder, or nothing in it")
    for path, info in found.items():
        name = path.removeprefix(begin)
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        is_folder = not name or name.endswith("/") or info.get("type") == "directory"  # some tools put an object there
        if path.startswith(begin) and not is_folder and not is_hidden:
            yield name, _stamp(info)


def read_bytes(url: Url, error: type[Text2SegError] = ImageError) -> bytes:
    """Return the content of an object. Raises `error`, which names the URL, if it cannot be read."""
    with _store_errors(url, error, "read it"):
        store, path = _opened(url)
        return cast(bytes, store.cat_file(path))


@contextmanager
def opened(url: Url, error: type[Text2SegError] = ImageError) -> Iterator[BinaryIO]:
    """Yield an object as a file. Only the parts that are read are downloaded.

    Raises:
        error: it cannot be opened. Errors while reading are passed on unchanged.
    """
    with _store_errors(url, error, "read it"):
        store, path = _opened(url)
        file = store.open(path, "rb", block_size=1 << 18)
    with file:
        yield file


def exists(url: Url) -> bool:
    """Return whether an object exists. Raises `OutputError` if the store cannot be reached or it is a folder."""
    with _store_errors(url, OutputError, "check whether it exists (--overwrite skips this check)"):
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
    """Return the SHA-256 of an object as 64 hexadecimal digits. Raises `OutputError` if it cannot be read."""
    with opened(url, OutputError) as file, _store_errors(url, OutputError, "read it"):
        return sha256_of_stream(file)


def put(file: Path, url: Url) -> None:
    """Upload a file in one step. Raises `OutputError`; the previous object is then unchanged."""
    with _store_errors(url, OutputError, "write it"):
        store, path = _opened(url)
        store.put_file(str(file), path)


def check_writable(url: Url) -> None:
    """Check that an object can be written, by writing and deleting an empty hidden object next to it.

    Raises:
        OutputError: it cannot be written, or there is no such bucket.
    """
    trial = Url(f"{url.text.removesuffix(url.name)}.text2seg-{secrets.token_hex(8)}.tmp")
    with _store_errors(url, OutputError, "write it"):
        store, path = _opened(trial)
        store.pipe_file(path, b"")
    try:
        store.rm_file(path)
    except Exception as error:  # permission to write without permission to delete is enough
        _log.warning("%s, an empty test object, could not be deleted (%s); delete it by hand", trial, _words(error))


def _opened(url: Url) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it."""
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(url.scheme)
    except ValueError as error:
        raise SettingsError(f"{url}: unknown storage {url.scheme}://; use s3:// or gs://") from error
    # fsspec's url_to_fs is not used, because it reads :: in an object's name as a chain of file systems.
    options, path = kind._get_kwargs_from_urls(str(url)), cast(str, kind._strip_protocol(str(url)))
    if kind.async_impl and not options:
        return _shared(kind, os.getpid()), path
    return kind(**options), path


@lru_cache(maxsize=16)
def _shared(kind: Any, _process: int) -> Any:
    """Return one file system for all threads. Only asynchronous ones, which run in fsspec's event loop, are shared."""
    return kind()


@contextmanager
def _store_errors(url: Url, kind: type[Text2SegError], doing: str) -> Iterator[None]:
    """Turn any error of a store into ours. Each store has its own library with its own errors."""
    try:
        yield
    except Text2SegError:
        raise
    except ImportError as error:
        package = _PACKAGES.get(url.scheme)
        words = (
            f'{package}; install it with pip install "text2seg[cloud]"' if package else f"a package: {_words(error)}"
        )
        raise kind(f"{url.scheme}:// needs {words}") from error
    except FileNotFoundError as error:
        raise kind(f"{url}: there is no such object or bucket") from error
    except PermissionError as error:
        raise kind(f"{url}: no permission to {doing}; check the credentials ({_words(error)})") from error
    except NotImplementedError as error:
        raise kind(f"{url}: {url.scheme}:// does not support this: {doing}") from error
    except Exception as error:
        if type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError"):
            raise kind(f"{url}: there are no credentials to {doing} ({_words(error)})") from error
        _log.info("%s", url, exc_info=True)
        raise kind(f"{url}: could not {doing} ({type(error).__name__}: {_words(error)})") from error


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _stamp(info: Mapping[str, Any]) -> Stamp:
    """Return the size and modification time of an object. The time is 0 if the store does not report it."""
    size = info.get("size")
    changed = next((value for key in _TIMES if (value := info.get(key))), 0)
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed.replace("Z", "+00:00"))
    seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
    return -1 if size is None else int(size), int(seconds * 1e6) * 1000
