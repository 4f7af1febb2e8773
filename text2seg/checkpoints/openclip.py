"""Names of open_clip's models, as `--clip` takes them. Which there are, only open_clip knows: see `maps.openclip`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from text2seg.errors import CheckpointError
from text2seg.files import exists, expanded, is_dir, is_file

PREFIX = "openclip:"
_PUBLISHED = re.compile(r"\w[\w.+-]*/\w[\w.+-]*")
CONFIG = "open_clip_config.json"
SYNTAX = (
    "write openclip:ARCHITECTURE/TAG (openclip:ViT-B-16/laion2b_s34b_b88k), openclip:ARCHITECTURE=FILE for weights of "
    f"your own, or openclip:FOLDER for a folder with {CONFIG}, weights and, where the model needs one, a tokenizer"
)
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
)
"""Names that weights have in a folder of the Hugging Face hub, the best first."""


@dataclass(frozen=True, slots=True)
class OpenClipName:
    """A name taken apart: an architecture with the tag of published weights or with a file, or a folder with a file."""

    architecture: str | None
    tag: str | None = None
    folder: Path | None = None
    file: Path | None = None


def is_openclip(name: str) -> bool:
    return name.startswith(PREFIX)


def is_published(name: str) -> bool:
    """Whether a name is an architecture with a tag, and leads to no file or folder of this machine.

    >>> is_published("openclip:ViT-B-16/laion2b_s34b_b88k"), is_published("openclip:ViT-B-16=/tmp/weights.pt")
    (True, False)
    """
    rest = name.removeprefix(PREFIX)
    return (
        is_openclip(name)
        and _PUBLISHED.fullmatch(rest) is not None
        and not exists(expanded(rest, CheckpointError), CheckpointError)
    )


def parse_openclip(name: str) -> OpenClipName:
    """Take a name apart; looks for its file or folder, but not whether there is such an architecture or tag.

    >>> parse_openclip("openclip:ViT-B-16/laion2b_s34b_b88k").tag
    'laion2b_s34b_b88k'

    Raises:
        CheckpointError: it is none of the three kinds, or its file is not there.
    """
    rest = name.removeprefix(PREFIX)
    architecture, equals, given = rest.partition("=")
    if equals:
        path = expanded(given, CheckpointError)
        if not architecture or not given:
            raise CheckpointError(f"cannot read the name {name!r}: {SYNTAX}")
        if not is_file(path, CheckpointError):
            raise CheckpointError(f"there is no file {path}, which was given as the weights of {architecture}")
        return OpenClipName(architecture, file=path)
    folder = expanded(rest, CheckpointError)
    if rest and is_dir(folder, CheckpointError):
        return OpenClipName(None, folder=folder, file=_weights_in(folder))
    architecture, slash, tag = rest.partition("/")
    if not (architecture and slash and tag) or "/" in tag:
        raise CheckpointError(f"cannot read the name {name!r}, and there is no such folder: {SYNTAX}")
    return OpenClipName(architecture, tag)


def _weights_in(folder: Path) -> Path:
    if not is_file(folder / CONFIG, CheckpointError):
        raise CheckpointError(f"{folder} is no model of open_clip: it has no {CONFIG}")
    for name in WEIGHTS:
        if is_file(folder / name, CheckpointError):
            return folder / name
    raise CheckpointError(f"{folder} has none of {', '.join(WEIGHTS)}; give its weights one of these names")
