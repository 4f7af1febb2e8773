"""Download a published checkpoint: resumes, shows its progress, checks the hash, and appears whole or not at all."""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from filelock import FileLock
from tqdm import tqdm

from text2seg.errors import CheckpointError, OutputError
from text2seg.io import files
from text2seg.weights.registry import Checkpoint

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30.0
BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Waits after failures in a row; when they are used up, the download has failed. A byte received starts them anew."""

PASSING_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP errors that are worth another try."""


Report = Callable[[int, int | None], None]
"""Told how many bytes there are, and of how many where the server says so."""


class _CutError(Exception):
    """The connection failed; another try may go on from what has been received."""


class _UnreachableError(_CutError):
    """There was no connection to begin with: no network, no such host, nobody listening."""


def download(checkpoint: Checkpoint, folder: Path, *, replace: bool = False, report: Report | None = None) -> Path:
    """Download a checkpoint into a folder, which is made if missing.

    The bytes are collected in `<file>.part`, which an interrupted download leaves for the next one to go on with; the
    file takes its own name when its hash is right. Of two processes that want the same file, one waits for the other.

    Args:
        checkpoint: one with a URL.
        folder: where the file goes, under `checkpoint.file_name`.
        replace: download even if the file is there, and put the new one in its place.
        report: called as bytes come, in place of a bar on the terminal; an error that it raises stops the download,
            and the next one goes on from there.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: the server does not give the file, the hash is wrong, or the folder cannot be written to. The
            message names what to do by hand.
    """
    if checkpoint.url is None:
        raise CheckpointError(f"{checkpoint.kind.upper()} {checkpoint.name} is not published for download")
    target = folder / checkpoint.file_name
    part = folder / f"{checkpoint.file_name}.part"
    try:
        files.make_folder(folder, flag="TEXT2SEG_CHECKPOINTS")
        with _lock(folder / f".{checkpoint.file_name}.lock"):
            if replace or not files.is_file(target, CheckpointError):
                _fill(part, checkpoint, report)
                _check_hash(part, checkpoint)
                os.replace(part, target)
                logger.info("downloaded %s", target)
    except (OSError, OutputError) as error:
        raise CheckpointError(
            f"cannot write {target}: {error}. Make the folder writable or set TEXT2SEG_CHECKPOINTS to another one"
        ) from error
    return target


def sha256_of(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits. Raises `CheckpointError` where it cannot be read."""
    return files.sha256_of(path, CheckpointError)


def _lock(path: Path) -> AbstractContextManager[Any]:
    """Hold the lock; say so if another process has it and this one has to wait."""
    lock = FileLock(path)
    if not files.take_lock(lock, 0):
        logger.info("waiting for another process that downloads the same file (%s)", path)
        files.take_lock(lock, -1)
    stack = ExitStack()
    stack.callback(lock.release)
    return stack


def _fill(part: Path, checkpoint: Checkpoint, report: Report | None) -> None:
    """Receive until the part holds the whole file, over as many connections as it takes."""
    failures, was_reached = 0, False
    while True:
        before = _size(part)
        try:
            _receive(part, checkpoint, report)
            return
        except _CutError as cut:
            was_reached = was_reached or not isinstance(cut, _UnreachableError)
            failures = 1 if _size(part) > before else failures + 1
            if failures > len(BACKOFF_SECONDS) or not was_reached:
                raise CheckpointError(f"cannot download: {cut}. {_by_hand(part, checkpoint)}") from cut
            wait = BACKOFF_SECONDS[failures - 1]
            logger.warning("%s: %s; trying again in %g s", checkpoint.file_name, cut, wait)
            time.sleep(wait)


def _receive(part: Path, checkpoint: Checkpoint, report: Report | None) -> None:
    """Add to the part what one connection brings.

    Raises:
        _CutError: it does not bring all.
        CheckpointError: the server does not have the file.
    """
    have = _size(part)
    try:
        response = _request(str(checkpoint.url), have)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                if _numbers(error, r"\*/(\d+)") == (have,):
                    return  # the last try received everything and was stopped before it could say so
                part.unlink()
                raise _CutError(f"the server has no byte {have:,} of it") from error
            if error.code in PASSING_CODES:
                raise _CutError(f"the server answers {error.code} {error.reason}") from error
            message = f"cannot download: the server answers {error.code} {error.reason}"
            raise CheckpointError(f"{message}. {_by_hand(part, checkpoint)}") from error
    with response:
        start = 0
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            if _numbers(response, r"(\d+)-\d+/") != (have,):
                part.unlink()
                raise _CutError("the server sends another part than was asked for")
            start = have
        _append(response, part, start, report)


def _append(response: http.client.HTTPResponse, part: Path, start: int, report: Report | None) -> None:
    """Write the body at the end of the part, or from its beginning if the server did not skip what was there."""
    total = None if response.length is None else start + response.length
    silent = report is not None
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024, desc=part.stem, disable=silent)
    with bar, part.open("ab" if start else "wb") as file:
        while chunk := _read(response):
            file.write(chunk)
            bar.update(len(chunk))
            if report is not None:
                report(file.tell(), total)
    if total is not None and _size(part) < total:
        raise _CutError(f"the connection ended after {_size(part):,} of {total:,} bytes")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where the connection is as safe as it was: of some files no hash is published."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https://"):
            raise urllib.error.HTTPError(newurl, code, "a redirect that leaves https", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = urllib.request.build_opener(_SafeRedirects)


def _request(url: str, start: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "text2seg"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        request = urllib.request.Request(url, headers=headers)
        return cast(http.client.HTTPResponse, _opener.open(request, timeout=TIMEOUT_SECONDS))
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise _UnreachableError(f"cannot reach the server: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(f"the connection broke: {error!r}") from error


def _read(response: http.client.HTTPResponse) -> bytes:
    """What has come so far. Reading is kept apart from writing, whose OSErrors no other try mends."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(f"the connection broke: {error!r}") from error


def _numbers(answer: Any, pattern: str) -> tuple[int, ...]:
    """The numbers that the pattern picks out of the Content-Range header; none if it does not fit."""
    match = re.match(rf"bytes {pattern}", answer.headers.get("Content-Range", ""))
    return tuple(int(group) for group in match.groups()) if match else ()


def _check_hash(part: Path, checkpoint: Checkpoint) -> None:
    """Raise, and delete the part, unless its hash is the published one."""
    found = sha256_of(part)
    if checkpoint.sha256 is not None and not found.startswith(checkpoint.sha256):
        part.unlink()
        raise CheckpointError(
            f"what {checkpoint.url} sent is not {checkpoint.file_name}: its sha256 is {found}, "
            f"expected {checkpoint.sha256}. It was deleted; try again, or over another network"
        )


def _size(path: Path) -> int:
    found = files.status(path, CheckpointError)
    return 0 if found is None else found.st_size


def _by_hand(part: Path, checkpoint: Checkpoint) -> str:
    return f"Fetch {checkpoint.file_name} from {checkpoint.url} by other means and put it in {part.parent}"
