"""Download published files. Interrupted downloads resume, and only complete files with the right hash appear."""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from filelock import FileLock
from tqdm import tqdm

from text2seg.errors import CheckpointError, OutputError
from text2seg.io import files, writing
from text2seg.weights.registry import Checkpoint, openclip_unavailable, parse_openclip

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30.0
ANSWER_SECONDS = 5.0
BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Waits after consecutive failures. After the last one the download fails. Any received byte resets the count."""

PASSING_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP errors that are retried."""


Report = Callable[[int, int | None], None]
"""Called with the number of bytes so far and the total, or None if the server does not say."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A published file that is not a checkpoint."""

    file_name: str
    url: str
    sha256: str | None = None


class _CutError(Exception):
    """The connection failed. Another try can continue from the received bytes."""


class _UnreachableError(_CutError):
    """There was no connection at all: no network, unknown host, or no server."""


def download(checkpoint: Checkpoint, folder: Path, *, replace: bool = False, report: Report | None = None) -> Path:
    """Download a checkpoint into a folder, which is made if it is missing.

    Bytes are written to `<file>.part`. An interrupted download leaves it, and the next one continues from it. It is
    renamed once its hash is right. If two processes want the same file, one waits for the other.

    Args:
        checkpoint: a checkpoint with a URL.
        folder: folder for the file `checkpoint.file_name`.
        replace: download and replace a file that exists.
        report: called with the progress instead of a progress bar on the terminal. If it raises, the download stops,
            and the next one continues.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: the server does not send the file, its hash is wrong, or the folder cannot be written to. The
            message says how to fetch the file by hand.
    """
    if checkpoint.url is None:
        raise CheckpointError(f"{checkpoint.kind.upper()} {checkpoint.name} is not published for download")
    target = folder / checkpoint.file_name
    try:
        writing.make_folder(folder, flag="TEXT2SEG_CHECKPOINTS")
        with locked(folder / f".{checkpoint.file_name}.lock"):
            if replace or not files.is_file(target, CheckpointError):
                _complete(target, checkpoint, report)
                logger.info("downloaded %s", target)
    except (OSError, OutputError) as error:
        raise CheckpointError(
            f"cannot write {target}: {error}. Make the folder writable or set TEXT2SEG_CHECKPOINTS to another one"
        ) from error
    return target


def download_files(
    remote: Sequence[RemoteFile], folder: Path, *, what: str, check: Callable[[Path, RemoteFile], None]
) -> int:
    """Download the files that are missing in a folder, one after the other, with one progress bar.

    The bar counts files, or the bytes of a single file. Each file is written as in `download`. Files that are there are
    not downloaded again.

    Args:
        what: the files in one word, for the progress bar.
        check: raises `CheckpointError` if a complete file is not what was wanted; it is then deleted.

    Returns:
        The number of downloaded files.

    Raises:
        CheckpointError: as `download`. Files that are complete stay.
    """
    try:
        writing.make_folder(folder, flag="folder")
        with locked(folder / ".lock"):
            missing = [each for each in remote if not files.is_file(folder / each.file_name, CheckpointError)]
            one, have = len(remote) == 1, len(remote) - len(missing)
            for each in tqdm(missing, desc=what, unit="file", initial=have, total=len(remote), disable=one):

                def check_this(part: Path, each: RemoteFile = each) -> None:
                    check(part, each)

                silent: Report | None = None if one else lambda have, total: None
                _complete(folder / each.file_name, each, silent, check_this)
            return len(missing)
    except (OSError, OutputError) as error:
        raise CheckpointError(f"cannot write to {folder}: {error}") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. Raises `CheckpointError` if it cannot be read."""
    return files.sha256_of(path, CheckpointError)


def locked(path: Path) -> AbstractContextManager[Any]:
    """Acquire a lock, and log it if another process holds it."""
    lock = FileLock(path)
    if not writing.acquire_lock(lock, 0):
        logger.info("waiting for another process that downloads the same file (%s)", path)
        writing.acquire_lock(lock, -1)
    stack = ExitStack()
    stack.callback(lock.release)
    return stack


def _complete(
    target: Path,
    remote: Checkpoint | RemoteFile,
    report: Report | None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Receive a file into its part, check it, and give it its name. What is not the wanted file is deleted."""
    part = target.with_name(f"{target.name}.part")
    _fill(part, remote, report)
    found = sha256_of(part)
    try:
        if remote.sha256 is not None and not found.startswith(remote.sha256):
            raise CheckpointError(
                f"the file from {remote.url} is not {remote.file_name}: its sha256 is {found}, "
                f"expected {remote.sha256}. It was deleted; try again, or over another network"
            )
        if check is not None:
            check(part)
    except CheckpointError:
        part.unlink()
        raise
    os.replace(part, target)


def _fill(part: Path, checkpoint: Checkpoint | RemoteFile, report: Report | None) -> None:
    """Receive the whole file into the part, over as many connections as needed."""
    failures, was_reached = 0, False
    while True:
        size_before = _size(part)
        try:
            _receive(part, checkpoint, report)
            return
        except _CutError as cut:
            was_reached = was_reached or not isinstance(cut, _UnreachableError)
            failures = 1 if _size(part) > size_before else failures + 1
            if failures > len(BACKOFF_SECONDS) or not was_reached:
                raise CheckpointError(f"cannot download: {cut}. {_by_hand(part, checkpoint)}") from cut
            wait = BACKOFF_SECONDS[failures - 1]
            logger.warning("%s: %s; trying again in %g s", checkpoint.file_name, cut, wait)
            time.sleep(wait)


def _receive(part: Path, checkpoint: Checkpoint | RemoteFile, report: Report | None) -> None:
    """Append the bytes of one connection to the part.

    Raises:
        _CutError: the file is not complete yet.
        CheckpointError: the server does not have the file.
    """
    have = _size(part)
    try:
        response = _request(str(checkpoint.url), have)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                if _numbers(error, r"\*/(\d+)") == (have,):
                    return  # the last try received everything, but was interrupted before it finished
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
                raise _CutError("the server sent a different part of the file than requested")
            start = have
        _append(response, part, start, report)


def _append(response: http.client.HTTPResponse, part: Path, start: int, report: Report | None) -> None:
    """Append the body to the part, or overwrite the part if the server sent the file from its start."""
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
    """Refuses redirects from https to http, because some files have no published hash."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https://"):
            raise urllib.error.HTTPError(newurl, code, "a redirect from https to http", headers, fp)
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
        raise _UnreachableError(f"cannot reach the server: {_said(error.reason)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(f"the connection broke: {error!r}") from error


def check_reachable(url: str) -> None:
    """Raise `CheckpointError` if the server of a URL does not answer within `ANSWER_SECONDS`, whatever it answers."""
    request = urllib.request.Request(url, headers={"User-Agent": "text2seg"}, method="HEAD")
    try:
        _opener.open(request, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(f"cannot reach {request.host}: {_said(getattr(error, 'reason', error))}") from error


def check_openclip(name: str) -> None:
    """Raise `CheckpointError` if published weights of open_clip can be neither on this machine nor downloaded.

    Imports nothing slow, so it does not know which files a model needs: with any file in the hub's cache, it passes.
    """
    from huggingface_hub import constants

    if any(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/*")):
        return
    try:
        if constants.HF_HUB_OFFLINE:
            raise CheckpointError(f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} has no weights")
        check_reachable(constants.ENDPOINT)
    except CheckpointError as error:
        architecture = str(parse_openclip(name).architecture)
        raise openclip_unavailable(name, "a file of the Hugging Face hub", architecture, error) from error


def _said(why: object) -> str:
    """Return why a server cannot be reached, without the number of an error of the operating system."""
    return files.reason(why) if isinstance(why, OSError) else str(why)


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return received bytes. Kept apart from writing, because retrying does not help if a write fails."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(f"the connection broke: {error!r}") from error


def _numbers(answer: Any, pattern: str) -> tuple[int, ...]:
    """Return the numbers that the pattern finds in the Content-Range header; empty if it does not match."""
    match = re.match(rf"bytes {pattern}", answer.headers.get("Content-Range", ""))
    return tuple(int(group) for group in match.groups()) if match else ()


def _size(path: Path) -> int:
    found = files.status(path, CheckpointError)
    return 0 if found is None else found.st_size


def _by_hand(part: Path, checkpoint: Checkpoint | RemoteFile) -> str:
    return f"Fetch {checkpoint.file_name} from {checkpoint.url} by other means and put it in {part.parent}"
