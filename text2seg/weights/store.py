"""Checkpoints on this machine: their folder, which of them are there, and whether they are intact."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import platformdirs

from text2seg.errors import CheckpointError
from text2seg.io.files import expand_path, is_dir, is_file, list_folder, status
from text2seg.weights.download import Report, download, sha256_of
from text2seg.weights.registry import AUTO, BUNDLED, MIB, PUBLISHED, SUFFIXES, Checkpoint, Kind, find, known, of_pair

_log = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "TEXT2SEG_CHECKPOINTS"
SIZE_TOLERANCE = 0.01  # the sizes in the registry are rounded to MiB, as published
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Status:
    """State of one checkpoint on this machine."""

    name: str
    kind: Kind
    path: Path
    status: Literal["ok", "missing", "damaged"]
    detail: str


def folder() -> Path:
    """Return the folder of downloaded checkpoints, which may not exist yet.

    It is the value of `TEXT2SEG_CHECKPOINTS`, or `checkpoints/` of the repository that text2seg is imported from, or a
    folder in the user's cache.
    """
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return expand_path(chosen, CheckpointError)
    clone = PACKAGE.parent
    is_clone = any(is_file(clone / name, CheckpointError) for name in ("setup.cfg", "pyproject.toml"))
    if is_clone and is_dir(clone / "checkpoints", CheckpointError):
        return clone / "checkpoints"
    return platformdirs.user_cache_path("text2seg", appauthor=False) / "checkpoints"


def path_of(checkpoint: Checkpoint) -> Path:
    """Return the path of a checkpoint, whether or not it is there."""
    # The file name of the user's own file is an absolute path, which joining leaves unchanged.
    return (folder() if checkpoint.url else PACKAGE / "demo") / checkpoint.file_name


def fetch(name: str, kind: Kind, *, check: bool = False, report: Report | None = None) -> Path:
    """Return the file of a checkpoint. Published checkpoints that are missing are downloaded.

    Args:
        name: a known name, or a path.
        kind: the kind of network.
        check: check the hash of an existing file, and download it again if it is damaged. Downloads are always checked.
            Otherwise only the size of a file is checked, and a damaged one is an error.
        report: called with the progress of a download, see `download`.

    Raises:
        CheckpointError: the name is unknown, the file does not exist or is damaged, or the download failed; see
            `download`.
    """
    checkpoint = find(name, kind)
    path = path_of(checkpoint)
    found = verify(checkpoint) if check else _quick_status(checkpoint)
    if found.status == "ok":
        return path
    if checkpoint.url and (check or found.status == "missing"):
        return download(checkpoint, path.parent, replace=found.status == "damaged", report=report)
    raise CheckpointError(f"{path}: {found.detail}")


def check_intact(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` if the file is there but damaged, as far as its size tells."""
    if (found := _quick_status(checkpoint)).status == "damaged":
        raise CheckpointError(f"{found.path}: {found.detail}")


@contextmanager
def naming_missing(*others: Checkpoint) -> Iterator[None]:
    """Fetch weights in this context: an error also names the other files that are needed and missing."""
    try:
        yield
    except CheckpointError as error:
        missing = [f"{each.file_name} from {each.url}" for each in others if each.url and not is_here(each)]
        raise CheckpointError(f"{error}. Missing too: {', '.join(missing)}" if missing else str(error)) from error


def recorded(name: str, kind: Kind, sha256: str) -> str | None:
    """Return the name or path for `fetch` of a checkpoint that a dataset records, or None if it is not known here.

    Datasets are not trusted, so `name` is compared with known names and never opened as a path. Otherwise the hash is
    searched for, first among published and bundled checkpoints and then among the files in the checkpoint folder. The
    caller must compare the hash of the file that it loads.

    Args:
        name: recorded name.
        kind: the kind of network.
        sha256: recorded hash of the file.
    """
    for checkpoint in known(kind):
        if name in (checkpoint.name, checkpoint.hub_name):
            return checkpoint.name
    for checkpoint in known(kind):
        if checkpoint.sha256 and sha256.startswith(checkpoint.sha256):
            # The demo model was recorded under another name. Given as a path, it is treated like any other model.
            return checkpoint.name if checkpoint.url else str(path_of(checkpoint))
    return next((str(path) for path in _weights_in(folder()) if _is_of_hash(path, sha256)), None)


def _weights_in(place: Path) -> list[Path]:
    """Return the files in a folder that have a suffix of weights, or none if the folder cannot be read."""
    try:
        return [
            path
            for path in list_folder(place, CheckpointError)
            if path.suffix.lower() in SUFFIXES and is_file(path, CheckpointError)
        ]
    except CheckpointError:
        return []


def _is_of_hash(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except CheckpointError:
        return False


def verify(checkpoint: Checkpoint) -> Status:
    """Return whether a checkpoint is there and intact. Hashes the file if its hash is known. Never raises."""
    quick = _quick_status(checkpoint)
    if quick.status != "ok" or checkpoint.sha256 is None:
        return quick
    try:
        found, size = sha256_of(quick.path), quick.path.stat().st_size
    except (OSError, CheckpointError) as error:
        return _status(checkpoint, "damaged", f"cannot be read: {error}")
    if found.startswith(checkpoint.sha256):
        return _status(checkpoint, "ok", f"{size:,} bytes; sha256 {found}")
    about = f" of about {checkpoint.size:,}" if checkpoint.size else ""
    return _status(
        checkpoint, "damaged", f"sha256 is {found}, expected {checkpoint.sha256}; the file has {size:,} bytes{about}"
    )


def is_here(checkpoint: Checkpoint) -> bool:
    """Return whether the file is there, so that `fetch` downloads nothing."""
    return _quick_status(checkpoint).status == "ok"


def choose_model(model: str) -> str:
    """Return the pair that a model means: for auto, the first published pair whose weights are on this machine, or else
    the bundled one. Damaged weights are passed over, which is logged.

    Raises:
        CheckpointError: there is no such model.
    """
    if model != AUTO:
        of_pair(model)
        return model
    for pair in PUBLISHED:
        found = [_quick_status(each) for each in of_pair(pair)]
        if all(each.status == "ok" for each in found):
            return pair
        if all(each.status != "missing" for each in found):
            damaged = next(each for each in found if each.status == "damaged")
            _warn_once(f"{pair} is not used, because {damaged.path} is damaged: {damaged.detail}")
    return BUNDLED


@cache
def _warn_once(sentence: str) -> None:
    _log.warning("%s", sentence)


def pair(model: str, *, clip: str | None = None, sam: str | None = None) -> tuple[str, str]:
    """Return the names of the CLIP and the SAM of a model. `clip` and `sam` replace those of the pair.

    >>> pair("base", sam="vit_h")
    ('ViT-B/16', 'vit_h')

    Raises:
        CheckpointError: there is no such model.
    """
    of_model = of_pair(choose_model(model))
    return clip or of_model[0].name, sam or of_model[1].name


def statuses(*, check: bool = False) -> tuple[Status, ...]:
    """Return the status of each known checkpoint, in the order of the registry.

    Args:
        check: also check hashes, which takes seconds for each file.
    """
    return tuple(verify(c) if check else _quick_status(c) for c in known())


def _quick_status(checkpoint: Checkpoint) -> Status:
    """Return whether the file is there and of about its size, without reading it."""
    path = path_of(checkpoint)
    try:
        info = status(path, CheckpointError)
    except CheckpointError as error:
        return _status(checkpoint, "damaged", f"cannot be read: {error}")
    if info is None:
        return _status(checkpoint, "missing", _why_missing(checkpoint))
    if not stat.S_ISREG(info.st_mode):
        return _status(checkpoint, "damaged", "not a file")
    if not info.st_size:
        return _damaged(checkpoint, "the file is empty")
    if checkpoint.size and abs(info.st_size - checkpoint.size) > max(SIZE_TOLERANCE * checkpoint.size, MIB):
        return _damaged(checkpoint, f"{info.st_size:,} bytes of about {checkpoint.size:,}")
    hashed = "not checked" if checkpoint.sha256 else "not known"
    return _status(checkpoint, "ok", f"{info.st_size:,} bytes; hash {hashed}")


def _damaged(checkpoint: Checkpoint, why: str) -> Status:
    way_out = f"; to replace it: text2seg checkpoints download {checkpoint.name}" if checkpoint.url else ""
    return _status(checkpoint, "damaged", f"{why}{way_out}")


def _why_missing(checkpoint: Checkpoint) -> str:
    if checkpoint.url:
        return f"not downloaded; about {checkpoint.size // MIB:,} MiB" if checkpoint.size else "not downloaded"
    if path_of(checkpoint).parent == PACKAGE / "demo":
        return "bundled with text2seg but not in this installation; install text2seg again"
    return "there is no such file"


def _status(checkpoint: Checkpoint, status: Literal["ok", "missing", "damaged"], detail: str) -> Status:
    return Status(checkpoint.name, checkpoint.kind, path_of(checkpoint), status, detail)
