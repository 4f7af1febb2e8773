"""Read weights without trusting them: tensors come in, code stays out.

A checkpoint may be a pickle, and a pickle may run anything. So pickles are read by torch's weights-only reader; the
TorchScript archives that OpenAI publishes by torch's own reader for them, which runs no Python, and only after a look
at what they would run while being read; safetensors cannot hold code.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from text2seg.errors import CheckpointError

logger = logging.getLogger(__name__)

CLIP_TENSORS = {
    "visual.conv1.weight": 4,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "transformer.resblocks.0.attn.in_proj_weight": 2,
    "ln_final.weight": 1,
    "text_projection": 2,
    "logit_scale": 0,
}
"""Tensors that every CLIP in OpenAI's format has, with their number of axes."""

CLIP_VISUAL_TENSORS = {"visual.proj": 2, "visual.attnpool.positional_embedding": 2}
"""Of these it has one: the first if its image encoder is a transformer, the second if it is a ResNet."""

SAM_TENSORS = {
    "image_encoder.patch_embed.proj.weight": 4,
    "image_encoder.pos_embed": 4,
    "image_encoder.blocks.0.norm1.weight": 1,
    "image_encoder.blocks.0.attn.rel_pos_h": 2,
    "image_encoder.neck.0.weight": 4,
    "prompt_encoder.mask_downscaling.3.weight": 4,
    "mask_decoder.transformer.layers.0.norm1.weight": 1,
    "mask_decoder.transformer.layers.0.mlp.lin1.weight": 2,
    "mask_decoder.mask_tokens.weight": 2,
    "mask_decoder.iou_prediction_head.layers.0.weight": 2,
}
"""Tensors that every SAM in the official format has, with their number of axes."""

SAM_FAMILIES = {
    "image_encoder.patch_embed.seq.0.c.weight": "a MobileSAM in the official format",
    "image_encoder.trunk.patch_embed.proj.weight": "a SAM 2 in Meta's format",
    "vision_encoder.backbone.patch_embed.projection.weight": "a SAM 2 of transformers",
}
"""A tensor of four axes by which other SAMs are known, each with what it is; what else they need shows when they are
built."""

ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the tensors; the shapes say the same."""


def load_clip_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights of a CLIP in OpenAI's format.

    Args:
        path: a state dict written by `torch.save` (alone, or under "state_dict" or "model"; with or without a
            "module." before all names), an OpenAI TorchScript archive, or safetensors.

    Returns:
        Tensors by OpenAI's names, on the CPU, in the dtype they are stored in.

    Raises:
        CheckpointError: the file is missing, damaged, not a CLIP, holds numbers that are not finite, or wants to run
            code. The message names the file and the tensor at fault.
    """
    path = Path(path)
    weights = {name: tensor for name, tensor in _load(path).items() if name not in ARCHIVE_EXTRAS}
    if "image_encoder.patch_embed.proj.weight" in weights:
        raise CheckpointError(f"{path} is a SAM, but a CLIP is wanted")
    if not weights.keys() & CLIP_VISUAL_TENSORS:
        missing = next((name for name in CLIP_TENSORS if name not in weights), "visual.proj")
        raise CheckpointError(f"{path} is not a CLIP in OpenAI's format: it has no tensor {missing!r}")
    present = {name: axes for name, axes in CLIP_VISUAL_TENSORS.items() if name in weights}
    _check(weights, CLIP_TENSORS | present, path, "a CLIP in OpenAI's format")
    return weights


def load_sam_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights of a SAM or MobileSAM in the official format, or of a SAM 2 in Meta's or that of `transformers`.

    Args:
        path: a state dict written by `torch.save` (alone, or under "state_dict" or "model"; with or without a
            "module." before all names), or safetensors.

    Returns:
        Tensors by the official names, on the CPU, in the dtype they are stored in.

    Raises:
        CheckpointError: the file is missing, damaged, not a SAM, holds numbers that are not finite, or wants to run
            code. The message names the file and the tensor at fault.
    """
    path = Path(path)
    weights = _load(path)
    if "visual.conv1.weight" in weights:
        raise CheckpointError(f"{path} is a CLIP, but a SAM is wanted")
    for name, what in SAM_FAMILIES.items():
        if name in weights:
            _check(weights, {name: 4}, path, what)
            return weights
    _check(weights, SAM_TENSORS, path, "a SAM in the official format")
    return weights


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file, whatever network they belong to; files and errors as for `load_clip_weights`."""
    weights = {name: tensor for name, tensor in _load(Path(path)).items() if name not in ARCHIVE_EXTRAS}
    _check(weights, {}, Path(path), "a network")
    return weights


def _check(weights: Mapping[str, Tensor], needed: Mapping[str, int], path: Path, what: str) -> None:
    for name, axes in needed.items():
        if name not in weights:
            raise CheckpointError(f"{path} is not {what}: it has no tensor {name!r}")
        if weights[name].ndim != axes:
            shape = list(weights[name].shape)
            raise CheckpointError(f"{path} is not {what}: {name!r} has shape {shape}, expected {axes} axes")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} is damaged: {name!r} holds numbers that are not finite (NaN or infinity)")


def _load(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, whatever its format."""
    form = _format_of(path)
    readers = {"torchscript": _read_torchscript, "pickle": _read_pickle, "safetensors": _read_safetensors}
    logger.info("loading %s (%s)", path, form)
    try:
        content = readers[form](path)
    except CheckpointError:
        raise
    except Exception as error:  # what the readers raise on damaged bytes has no common type
        raise CheckpointError(f"{path} is damaged or cut short ({type(error).__name__}: {error})") from error
    weights = _tensors_of(content, path)
    logger.info("loaded %d tensors from %s", len(weights), path)
    return weights


def _format_of(path: Path) -> Literal["torchscript", "pickle", "safetensors"]:
    """Which reader may touch the file, by its first bytes and, in a zip, by the names in it. Reads nothing else."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head.startswith(b"PK"):
        names = _names_in_zip(path)
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return "torchscript"
        if "data.pkl" in names:
            return "pickle"
        raise CheckpointError(f"{path} is a zip file, but not one of weights: it has no data.pkl")
    if head[4:] == b"\0\0\0\0{":  # first, for its header may have a length that begins like a pickle
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pickle"
    raise CheckpointError(f"{path} is not a checkpoint: neither torch.save, TorchScript nor safetensors wrote it")


def _names_in_zip(path: Path) -> set[str]:
    """Names within the folder that torch puts around everything in its archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from error


def _read_torchscript(path: Path) -> Any:
    """The tensors of an archive's modules.

    Its code is compiled but not called, with one exception: a module's `__setstate__` is called to read it. It could
    do no more than torch's operators can, but they can write files. OpenAI's archives have none.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.lower().endswith(".py") and b"__setstate__" in archive.read(entry):
                raise _wants_code(path, "it has a __setstate__ in its TorchScript")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=FutureWarning)
        return torch.jit.load(str(path), map_location="cpu").state_dict()


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # given the path, newer torch would go by the name, not by the content
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        logger.debug("torch on %s: %s", path, error)
        asked = re.search(r"GLOBAL (\S+)", str(error))
        # torch's own message advises to switch the safe reader off, so it is not passed on
        raise _wants_code(path, f"it asks for {asked[1]}" if asked else "it is not a plain pickle of tensors") from None


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path, device="cpu")


def _wants_code(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} was refused: reading it could run code ({reason}), and weights need none. "
        "Have its author save the state dict alone, best as safetensors"
    )


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a reader found: unwrapped, without "module.", tensors only."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    tensors = {name: tensor.detach() for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CheckpointError(f"{path} is not a checkpoint of weights: {name!r} is not a plain tensor")
    prefix = "module."
    if all(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Dense real numbers, each with its own place in memory: a stride of zero could claim more than fits anywhere."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
