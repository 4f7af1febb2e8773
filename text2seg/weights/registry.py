"""Checkpoints that text2seg knows by name, with address and hash, and how names of open_clip's models are read."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from text2seg.errors import CheckpointError
from text2seg.io.files import exists, expanded, is_dir, is_file

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


Kind = Literal["clip", "sam"]

SUFFIXES = (".pt", ".pth", ".safetensors")
IN_FOLDER = "model.safetensors"
"""The weights in a folder that `transformers` wrote."""

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file of weights. Without a URL it is bundled with text2seg, or it is a file of the user's."""

    name: str
    kind: Kind
    file_name: str
    """Its name in the folder of checkpoints or among the bundled ones; an absolute path for a file of the user's."""
    url: str | None = None
    sha256: str | None = None
    """In hexadecimal: all 64 digits, or as many of the first ones as are published."""
    size: int | None = None
    """About how many bytes; for people who wait, not for checks."""
    hub_name: str | None = None
    """What the same weights are called on the Hugging Face hub; they are fetched from `url` under either name."""


def _clip(name: str, file_name: str, sha256: str, size: int) -> Checkpoint:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file_name}"
    return Checkpoint(name, "clip", file_name, url, sha256, size)


def _sam(name: str, sha256: str, size: int) -> Checkpoint:
    file_name = f"sam_{name}_{sha256}.pth"
    return Checkpoint(
        name, "sam", file_name, f"https://dl.fbaipublicfiles.com/segment_anything/{file_name}", sha256, size
    )


def _sam2(size_name: str, size: int) -> Checkpoint:
    name = f"sam2.1_hiera_{size_name}"
    url = f"https://dl.fbaipublicfiles.com/segment_anything_2/092824/{name}.pt"
    return Checkpoint(name, "sam", f"{name}.pt", url, size=size, hub_name=f"facebook/{name.replace('_', '-')}")


CHECKPOINTS = (
    Checkpoint(
        "demo", "clip", "clip_demo.pt", sha256="b087d5d66d4ee6f787d9e0774defbad3e9c1ab46006408371d7ebe505f213e39"
    ),
    _clip("RN50", "RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", 244 * MIB),
    _clip("RN101", "RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", 278 * MIB),
    _clip("RN50x4", "RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", 402 * MIB),
    _clip("RN50x16", "RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", 630 * MIB),
    _clip("RN50x64", "RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", 1291 * MIB),
    _clip("ViT-B/32", "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 338 * MIB),
    _clip("ViT-B/16", "ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 335 * MIB),
    _clip("ViT-L/14", "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 890 * MIB),
    _clip(
        "ViT-L/14@336px",
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        891 * MIB,
    ),
    Checkpoint(
        "demo", "sam", "sam_demo.pth", sha256="dc56baa7ca08c3c37052de3a1ef6915537154fb6da99e19661fda4da8768a5eb"
    ),
    _sam("vit_b", "01ec64", 358 * MIB),
    _sam("vit_l", "0b3195", 1192 * MIB),
    _sam("vit_h", "4b8939", 2446 * MIB),
    Checkpoint(
        "mobile_sam",
        "sam",
        "mobile_sam.pt",
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        size=39 * MIB,
    ),
    _sam2("tiny", 149 * MIB),
    _sam2("small", 176 * MIB),
    _sam2("base_plus", 309 * MIB),
    _sam2("large", 856 * MIB),
)
"""Of MobileSAM and SAM 2.1 no hash is published: what is downloaded is checked only in that it holds their tensors."""

PAIRS = {
    "demo": ("demo", "demo"),
    "base": ("ViT-B/16", "vit_b"),
    "large": ("ViT-B/16", "vit_l"),
    "huge": ("ViT-B/16", "vit_h"),
}
"""The models of `ModelSettings.model`: names of a CLIP and of a SAM."""


def known(kind: Kind | None = None) -> tuple[Checkpoint, ...]:
    """All checkpoints that have a name, or those of one kind."""
    return tuple(c for c in CHECKPOINTS if kind is None or c.kind == kind)


def pair(model: str, *, clip: str | None = None, sam: str | None = None) -> tuple[str, str]:
    """The names of the CLIP and the SAM of a model; `clip` and `sam` stand in for the pair's where given.

    >>> pair("base", sam="vit_h")
    ('ViT-B/16', 'vit_h')

    Raises:
        CheckpointError: no such model.
    """
    if model not in PAIRS:
        raise CheckpointError(f"there is no model {model!r}; choose from {', '.join(PAIRS)}{_closest(model, [*PAIRS])}")
    clip_name, sam_name = PAIRS[model]
    return clip or clip_name, sam or sam_name


def find(name: str, kind: Kind) -> Checkpoint:
    """The checkpoint of this name, or a file of the user's: whatever is a file, or ends in .pt, .pth or .safetensors.

    A known name comes before a file of the same name; write `./demo` to mean the file. A CLIP of open_clip has a name
    as in `weights.registry`; of one that is published the file is not known here, see `loading.fetch`.

    Raises:
        CheckpointError: no such name, or no such file. The message names the known ones and the closest.
    """
    for checkpoint in known(kind):
        if name in (checkpoint.name, checkpoint.hub_name):
            return checkpoint
    if kind == "clip" and is_openclip(name):
        return Checkpoint(name, kind, str(parse_openclip(name).file or name))
    path = expanded(name, CheckpointError)
    if kind == "sam" and is_dir(path, CheckpointError) and is_file(path / IN_FOLDER, CheckpointError):
        path /= IN_FOLDER
    if is_file(path, CheckpointError):
        return Checkpoint(name, kind, str(path))
    if path.suffix.lower() in SUFFIXES:
        raise CheckpointError(f"there is no file {path}, which was given as the {kind.upper()} checkpoint")
    names = [c.name for c in known(kind)]
    others = [c.kind.upper() for c in known() if c.name == name]
    wrong_kind = f" ({name} is a {others[0]})" if others else ""
    raise CheckpointError(
        f"there is no {kind.upper()} checkpoint {name!r}{wrong_kind}; choose from {', '.join(names)}, "
        f"or give a file that ends in {', '.join(SUFFIXES)}{_closest(name, names)}"
    )


def _closest(name: str, names: list[str]) -> str:
    """A question to end the message with, or nothing where no name comes near."""
    by_lower = {n.lower(): n for n in names}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f". Did you mean {by_lower[matches[0]]}?" if matches else ""
