"""Checkpoints that text2seg knows by name, with their URLs and hashes, and the syntax of open_clip model names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from text2seg.errors import CheckpointError, SettingsError, UnknownNameError
from text2seg.io.files import exists, expand_path, is_dir, is_file
from text2seg.io.names import did_you_mean

PREFIX = "openclip:"
_PUBLISHED = re.compile(r"\w[\w.+-]*/\w[\w.+-]*")
CONFIG = "open_clip_config.json"
SYNTAX = (
    "write openclip:ARCHITECTURE/TAG (openclip:ViT-B-16/laion2b_s34b_b88k), openclip:ARCHITECTURE=FILE for your "
    f"own weights, or openclip:FOLDER for a folder with {CONFIG}, weights and, if the model needs one, a tokenizer"
)
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
)
"""Names of weight files in a folder of the Hugging Face hub, best first."""


@dataclass(frozen=True, slots=True)
class OpenClipName:
    """Parts of a name: an architecture with a tag of published weights or a file, or a folder with a file."""

    architecture: str | None
    tag: str | None = None
    folder: Path | None = None
    file: Path | None = None


def is_openclip(name: str) -> bool:
    return name.startswith(PREFIX)


def is_published(name: str) -> bool:
    """Return whether a name is an architecture with a tag and not a file or folder on this machine.

    >>> is_published("openclip:ViT-B-16/laion2b_s34b_b88k"), is_published("openclip:ViT-B-16=/tmp/weights.pt")
    (True, False)
    """
    rest = name.removeprefix(PREFIX)
    return (
        is_openclip(name)
        and _PUBLISHED.fullmatch(rest) is not None
        and not exists(expand_path(rest, CheckpointError), CheckpointError)
    )


def openclip_unavailable(name: str, wanted: str, architecture: str, why: object) -> CheckpointError:
    """Return the error for weights of open_clip that are neither on this machine nor can be downloaded.

    Args:
        wanted: the files, for a person who fetches them by hand.
    """
    return CheckpointError(
        f"cannot fetch the weights of {name} ({wanted}): {why}. Without a network, bring its whole folder and say "
        f"--clip openclip:FOLDER, or its weights and say --clip openclip:{architecture}=FILE. HF_HUB_OFFLINE=1 takes "
        "what the hub's cache has and does not try for more; HF_HOME says where the cache lies"
    )


def parse_openclip(name: str) -> OpenClipName:
    """Split a name into its parts. The file or folder must exist; the architecture and tag are not checked.

    >>> parse_openclip("openclip:ViT-B-16/laion2b_s34b_b88k").tag
    'laion2b_s34b_b88k'

    Raises:
        CheckpointError: the name has none of the three forms, or its file does not exist.
    """
    rest = name.removeprefix(PREFIX)
    architecture, equals, file = rest.partition("=")
    if equals:
        path = expand_path(file, CheckpointError)
        if not architecture or not file:
            raise CheckpointError(f"cannot read the name {name!r}: {SYNTAX}")
        if not is_file(path, CheckpointError):
            raise CheckpointError(f"there is no file {path}, which was given as the weights of {architecture}")
        return OpenClipName(architecture, file=path)
    folder = expand_path(rest, CheckpointError)
    if rest and is_dir(folder, CheckpointError):
        return OpenClipName(None, folder=folder, file=_weights_in(folder))
    architecture, slash, tag = rest.partition("/")
    if not (architecture and slash and tag) or "/" in tag:
        raise CheckpointError(f"cannot read the name {name!r}, and there is no such folder: {SYNTAX}")
    return OpenClipName(architecture, tag)


def _weights_in(folder: Path) -> Path:
    if not is_file(folder / CONFIG, CheckpointError):
        raise CheckpointError(f"{folder} is not a model folder of open_clip: it has no {CONFIG}")
    for name in WEIGHTS:
        if is_file(folder / name, CheckpointError):
            return folder / name
    raise CheckpointError(f"{folder} has none of {', '.join(WEIGHTS)}; give its weights one of these names")


Kind = Literal["clip", "sam"]

SUFFIXES = (".pt", ".pth", ".safetensors")
IN_FOLDER = "model.safetensors"
"""Weight file in a folder that `transformers` wrote."""

MIB = 1024 * 1024
SAM2_NAMES = "sam2"  # prefix of the published SAM 2 names


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file of weights. Without a URL, it is bundled with text2seg or is the user's own file."""

    name: str
    kind: Kind
    file_name: str
    """Name in the checkpoint folder or among the bundled files, or the absolute path of the user's file."""
    url: str | None = None
    sha256: str | None = None
    """All 64 hexadecimal digits, or only the first ones if no more are published."""
    size: int | None = None
    """Approximate size in bytes. A file of another size is damaged."""
    hub_name: str | None = None
    """Name of the same weights on the Hugging Face hub. Under either name they are downloaded from `url`."""


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
        "demo", "clip", "clip_demo.pt", sha256="cb5d1119719624556dd46aa0cfaec13e59ea5606c359b80dbe4086b8ec6e0154"
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
"""No hash is published for MobileSAM and SAM 2.1. Their downloads are only checked for the expected tensors."""

PAIRS = {
    "demo": ("demo", "demo"),
    "base": ("ViT-B/16", "vit_b"),
    "light": ("ViT-B/16", "mobile_sam"),
    "large": ("ViT-B/16", "vit_l"),
    "huge": ("ViT-B/16", "vit_h"),
}
"""Values of `ModelSettings.model` besides auto: the names of a CLIP and a SAM."""

AUTO = "auto"
BUNDLED, *PUBLISHED = PAIRS
"""The pair that comes with text2seg, and those that can be downloaded, in the order in which `auto` takes them."""


def known(kind: Kind | None = None) -> tuple[Checkpoint, ...]:
    """Return all named checkpoints, or those of one kind."""
    return tuple(c for c in CHECKPOINTS if kind is None or c.kind == kind)


def of_pair(model: str) -> tuple[Checkpoint, Checkpoint]:
    """Return the CLIP and the SAM of a pair.

    Raises:
        CheckpointError: there is no such pair.
    """
    if model not in PAIRS:
        names = [AUTO, *PAIRS]
        raise CheckpointError(
            f"there is no model {model!r}; choose from {', '.join(names)}.{did_you_mean([model], names, most=1)}"
        )
    clip, sam = PAIRS[model]
    return find(clip, "clip"), find(sam, "sam")


def download_size(model: str) -> int:
    """Return the approximate size in bytes of the files that a pair downloads; 0 if it is bundled.

    >>> download_size("base") // MIB
    693
    """
    return sum(checkpoint.size or 0 for checkpoint in of_pair(model))


def download_hint() -> str:
    """Return the command that downloads the first published pair, with its size.

    >>> download_hint()
    'text2seg checkpoints download base (693 MiB)'
    """
    return f"text2seg checkpoints download {PUBLISHED[0]} ({download_size(PUBLISHED[0]) // MIB:,} MiB)"


def find(name: str, kind: Kind) -> Checkpoint:
    """Return the checkpoint of a name or of the user's own file.

    A known name takes precedence over a file of the same name; write `./demo` for the file. For published weights of
    open_clip, the file is not known here: see `loading.fetch`.

    Raises:
        CheckpointError: the name is unknown or the file does not exist. The message lists known names and the closest.
    """
    for checkpoint in known(kind):
        if name in (checkpoint.name, checkpoint.hub_name):
            return checkpoint
    if kind == "clip" and is_openclip(name):
        return Checkpoint(name, kind, str(parse_openclip(name).file or name))
    path = expand_path(name, CheckpointError)
    if kind == "sam" and is_dir(path, CheckpointError) and is_file(path / IN_FOLDER, CheckpointError):
        path /= IN_FOLDER
    if is_file(path, CheckpointError):
        return Checkpoint(name, kind, str(path))
    if path.suffix.lower() in SUFFIXES:
        raise CheckpointError(f"there is no file {path}, which was given as the {kind.upper()} checkpoint")
    names = [c.name for c in known(kind)]
    others = [c.kind.upper() for c in known() if c.name == name]
    wrong_kind = f" ({name} is a {others[0]})" if others else ""
    raise UnknownNameError(
        f"there is no {kind.upper()} checkpoint {name!r}{wrong_kind}; choose from {', '.join(names)}, "
        f"or give a file that ends in {', '.join(SUFFIXES)}.{did_you_mean([name], names, most=1)}"
    )


def check_sam(sam: Checkpoint, *, compiled: bool, graphs: bool) -> None:
    """Raise `SettingsError` if a published SAM cannot be compiled or run from graphs. Files are checked on loading."""
    if not (sam.url and sam.name.startswith(SAM2_NAMES)):
        return
    if compiled:
        raise SettingsError(f"{sam.name} is a SAM 2, which runs uncompiled only; leave --compile out or choose a SAM")
    if graphs:
        raise SettingsError(f"{sam.name} is a SAM 2, and ONNX graphs run SAM and MobileSAM only; use --runtime torch")
