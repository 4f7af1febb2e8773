"""Where checkpoints lie on this machine, which are there and whether they are whole."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from text2seg.errors import CheckpointError
from text2seg.io.files import expanded, is_dir, is_file, status
from text2seg.weights.download import Report, download, sha256_of
from text2seg.weights.registry import MIB, SUFFIXES, Checkpoint, Kind, find, known

ENVIRONMENT_VARIABLE = "TEXT2SEG_CHECKPOINTS"
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of one checkpoint on this machine."""

    name: str
    kind: Kind
    path: Path
    status: Literal["ok", "missing", "damaged"]
    detail: str


def folder() -> Path:
    """The folder of downloaded checkpoints; it need not exist yet.

    `TEXT2SEG_CHECKPOINTS` above all, else `checkpoints/` of the clone that text2seg is imported from, else the
    user's cache folder.
    """
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return expanded(chosen, CheckpointError)
    clone = PACKAGE.parent
    is_clone = any(is_file(clone / name, CheckpointError) for name in ("setup.cfg", "pyproject.toml"))
    if is_clone and is_dir(clone / "checkpoints", CheckpointError):
        return clone / "checkpoints"
    return platformdirs.user_cache_path("text2seg", appauthor=False) / "checkpoints"


def path_of(checkpoint: Checkpoint) -> Path:
    """Where this checkpoint lies, or would lie once it is there."""
    # The file name of a file of the user's is an absolute path, and joining one to a folder gives the path itself.
    return (folder() if checkpoint.url else PACKAGE / "demo") / checkpoint.file_name


def fetch(name: str, kind: Kind, *, check: bool = False, report: Report | None = None) -> Path:
    """The file of a checkpoint, by name or path; a published one that is not here yet is downloaded.

    Args:
        name: a known name, or a path.
        kind: which kind of network it is.
        check: hash the file that is here already, and download it again if it is damaged. What is downloaded is
            always hashed.
        report: told of a download's progress, see `download`.

    Raises:
        CheckpointError: no such name or file, or the download failed; see `download`.
    """
    checkpoint = find(name, kind)
    path = path_of(checkpoint)
    found = verify(checkpoint) if check else _glance(checkpoint)
    if found.status == "ok":
        return path
    if checkpoint.url:
        return download(checkpoint, path.parent, replace=found.status == "damaged", report=report)
    raise CheckpointError(f"{path}: {found.detail}")


def recorded(name: str, kind: Kind, sha256: str) -> str | None:
    """What to load, as `fetch` takes it, for a checkpoint that a dataset records; none where it is not known here.

    A dataset may be anyone's, so its `name` is only compared with known names and never opened as a path. What is not
    known by name is looked for by its hash, among the published and bundled checkpoints and then among the files in
    the folder of checkpoints. Whoever loads it compares the hash.

    Args:
        name: as recorded.
        kind: which kind of network it is.
        sha256: of its file, as recorded.
    """
    for checkpoint in known(kind):
        if name in (checkpoint.name, checkpoint.hub_name):
            return checkpoint.name
    for checkpoint in known(kind):
        if checkpoint.sha256 and sha256.startswith(checkpoint.sha256):
            # By its path the demo model is a CLIP like any other, as it was when it was recorded under another name.
            return checkpoint.name if checkpoint.url else str(path_of(checkpoint))
    return next((str(path) for path in _weights_in(folder()) if _is_of_hash(path, sha256)), None)


def _weights_in(place: Path) -> list[Path]:
    """The files in a folder that end as weights do."""
    try:
        return sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError:  # it is not there, or may not be entered
        return []


def _is_of_hash(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False


def verify(checkpoint: Checkpoint) -> Status:
    """Look whether a checkpoint is here and whole; reads the whole file if its hash is known. Never raises."""
    glance = _glance(checkpoint)
    if glance.status != "ok" or checkpoint.sha256 is None:
        return glance
    try:
        found, size = sha256_of(glance.path), glance.path.stat().st_size
    except (OSError, CheckpointError) as error:
        return _status(checkpoint, "damaged", f"cannot be read: {error}")
    if found.startswith(checkpoint.sha256):
        return _status(checkpoint, "ok", f"{size:,} bytes; sha256 {found}")
    about = f" of about {checkpoint.size:,}" if checkpoint.size else ""
    return _status(
        checkpoint, "damaged", f"sha256 is {found}, expected {checkpoint.sha256}; the file has {size:,} bytes{about}"
    )


def is_here(checkpoint: Checkpoint) -> bool:
    """Whether its file is here, so that `fetch` downloads nothing."""
    return _glance(checkpoint).status == "ok"


def statuses(*, check: bool = False) -> tuple[Status, ...]:
    """One status for each known checkpoint, in the order of the registry.

    Args:
        check: hash the files that are here, which takes seconds each; otherwise look only whether they are here.
    """
    return tuple(verify(c) if check else _glance(c) for c in known())


def _glance(checkpoint: Checkpoint) -> Status:
    """Whether the file is here and not empty, without reading it."""
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
        return _status(checkpoint, "damaged", "the file is empty")
    hashed = "not checked" if checkpoint.sha256 else "not known"
    return _status(checkpoint, "ok", f"{info.st_size:,} bytes; hash {hashed}")


def _why_missing(checkpoint: Checkpoint) -> str:
    if checkpoint.url:
        return f"not downloaded; about {checkpoint.size // MIB:,} MiB" if checkpoint.size else "not downloaded"
    if path_of(checkpoint).parent == PACKAGE / "demo":
        return "bundled with text2seg but not in this installation; install text2seg again"
    return "there is no such file"


def _status(checkpoint: Checkpoint, status: Literal["ok", "missing", "damaged"], detail: str) -> Status:
    return Status(checkpoint.name, checkpoint.kind, path_of(checkpoint), status, detail)
