"""Load the weights of CLIPs and SAMs from files.

Checkpoints are often pickles, and a pickle can run any code. Files are therefore read by `weights.formats`, which knows
the few types that a state dict needs and runs nothing. The shapes are checked before any number is read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from text2seg.errors import CheckpointError
from text2seg.weights.formats import open_weights
from text2seg.weights.state_dict import (
    CLIP_TENSORS,
    CLIP_VISUAL_TENSORS,
    find_state_dict,
    first_names,
    foreign_format,
)
from text2seg.weights.stored_tensors import StoredTensor

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
"""Tensors that every SAM in the official format has, and their number of axes."""

OPENCLIP_TENSORS = (
    "visual.conv1.weight",
    "visual.class_embedding",
    "visual.proj",
    "visual.trunk.patch_embed.proj.weight",
    "visual.trunk.pos_embed",
    "visual.attnpool.positional_embedding",
)
"""Every CLIP of open_clip has some of these tensors."""

CheckShapes = Callable[[Mapping[str, StoredTensor]], object]
"""Raises `CheckpointError` if the names, shapes and dtypes of tensors do not make a network."""
StoredWeights = Mapping[str, StoredTensor]

logger = logging.getLogger(__name__)


def load_clip_weights(path: str | Path, check: CheckShapes | None = None) -> dict[str, Tensor]:
    """Load the weights of a CLIP in OpenAI's format.

    Args:
        path: a state dict or module written by `torch.save`, an OpenAI TorchScript archive, or safetensors. The state
            dict may be nested in other dicts, and its names may share a prefix. Anything else in the file is ignored,
            which is logged.
        check: compares the shapes with the architecture before any number is read.

    Returns:
        Tensors by OpenAI's names, on the CPU, in the dtype of the file.

    Raises:
        CheckpointError: the file is missing, damaged, not a CLIP, contains NaN or infinity, or wants to run code. The
            message names the file and the tensor.
    """
    return _load(Path(path), _check_clip, (*CLIP_TENSORS, *CLIP_VISUAL_TENSORS), check)


def load_sam_weights(
    path: str | Path, check: CheckShapes | None = None, *, formats: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Tensor]:
    """Load the weights of a SAM in the official format, or of another family of SAMs.

    Args:
        path, check: as for `load_clip_weights`.
        formats: formats of other families, with their article, by the name of a tensor with four axes that identifies
            each. Other tensors of such a checkpoint are checked by `check` or when the network is built.

    Returns:
        Tensors by the official names, on the CPU, in the dtype of the file.

    Raises:
        CheckpointError: the file is missing, damaged, not a SAM, contains NaN or infinity, or wants to run code. The
            message names the file and the tensor.
    """
    return _load(Path(path), partial(_check_sam, formats=formats), (*SAM_TENSORS, *formats), check)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Load the tensors of any network. Files and errors are as for `load_clip_weights`.

    In a file with a CLIP of open_clip, only the tensors of that CLIP are loaded.
    """
    return _load(Path(path), lambda weights, path: None, OPENCLIP_TENSORS, None)


@torch.inference_mode(False)  # tensors made in inference mode cannot be used outside of it
def _load(
    path: Path,
    check_kind: Callable[[StoredWeights, Path], None],
    known: tuple[str, ...],
    check_shapes: CheckShapes | None,
) -> dict[str, Tensor]:
    logger.info("loading %s", path)
    with open_weights(path) as content:
        stored = find_state_dict(content, path, known, (*known, *CLIP_TENSORS, *SAM_TENSORS))
        check_kind(stored, path)
        if check_kind is _check_clip:
            _warn_about_openclip(content, path)
        if check_shapes:
            try:
                check_shapes(stored)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
        _check_memory(stored, path)
        weights = {name: _read_finite(name, tensor, path) for name, tensor in stored.items()}
    logger.info("loaded %d tensors from %s", len(weights), path)
    return weights


def _check_clip(weights: StoredWeights, path: Path) -> None:
    if "image_encoder.patch_embed.proj.weight" in weights:
        raise CheckpointError(f"{path} is a SAM, not a CLIP")
    what = "a CLIP in OpenAI's format"
    if not weights.keys() & CLIP_VISUAL_TENSORS:
        missing = next((name for name in CLIP_TENSORS if name not in weights), "visual.proj")
        raise _wrong_network(path, what, missing, weights)
    visual = {name: axes for name, axes in CLIP_VISUAL_TENSORS.items() if name in weights}
    _check_axes(weights, CLIP_TENSORS | visual, path, what)


def _check_sam(weights: StoredWeights, path: Path, *, formats: Mapping[str, str]) -> None:
    if "visual.conv1.weight" in weights:
        raise CheckpointError(f"{path} is a CLIP, not a SAM")
    for name, what in formats.items():
        if name in weights:
            return _check_axes(weights, {name: 4}, path, what)
    return _check_axes(weights, SAM_TENSORS, path, "a SAM in the official format")


def _check_axes(weights: StoredWeights, axes_of: Mapping[str, int], path: Path, what: str) -> None:
    for name, axes in axes_of.items():
        if name not in weights:
            raise _wrong_network(path, what, name, weights)
        if weights[name].ndim != axes:
            shape = list(weights[name].shape)
            raise CheckpointError(f"{path} is not {what}: {name!r} has shape {shape}, expected {axes} axes")


def _wrong_network(path: Path, what: str, missing: str, weights: StoredWeights) -> CheckpointError:
    foreign = foreign_format(weights)
    found = f"it looks like {foreign}" if foreign else f"its {len(weights)} tensors are {first_names(weights)}"
    return CheckpointError(f"{path} is not {what}: it has no tensor {missing!r}; {found}")


def _warn_about_openclip(content: Any, path: Path) -> None:
    """Warn if open_clip's training wrote a CLIP that is read in OpenAI's format.

    OpenAI's models use QuickGELU and most of open_clip's use GELU, but no tensor tells which.
    """
    if not (isinstance(content, Mapping) and {"epoch", "name", "state_dict"} <= content.keys()):
        return
    run = content["name"]
    if not isinstance(run, str):
        return
    match = re.search(r"model_([\w-]+?)-lr_", run[:300])  # the default name of a training run
    architecture = match[1] if match else "ARCH"
    if "quickgelu" not in architecture:
        logger.warning(
            "%s was written by open_clip's training and is read as one of OpenAI's CLIPs, which use QuickGELU. If it "
            "was trained with GELU, its maps are wrong; use openclip:%s=%s instead",
            path,
            architecture,
            path,
        )


def _check_memory(weights: StoredWeights, path: Path) -> None:
    """Raise if the tensors need more memory than this machine has. Many tensors may be views of the same bytes."""
    needed = sum(max(tensor.nbytes, 4 * tensor.nbytes // tensor.dtype.itemsize) for tensor in weights.values())
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return
    if needed > available:
        raise CheckpointError(
            f"{path} needs {needed / 1e9:.1f} GB for its weights, but this machine has {available / 1e9:.1f} GB"
        )


def _read_finite(name: str, stored: StoredTensor, path: Path) -> Tensor:
    """Read a tensor. Raises `CheckpointError` if a number is NaN, infinite or too large for float32."""
    tensor = stored.read()
    if _is_finite(tensor):
        return tensor
    if tensor.isfinite().all():
        raise CheckpointError(f"{path}: {name!r:.80} contains numbers that are too large for float32")
    raise CheckpointError(f"{path} is damaged: {name!r:.80} contains numbers that are not finite (NaN or infinity)")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite in float32, the dtype in which networks are built."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize < 2:  # torch has no minimum of float8
        tensor = tensor.to(torch.float32)
    # One pass without a copy; NaN is both minimum and maximum.
    return all(abs(float(end)) <= torch.finfo(torch.float32).max for end in tensor.aminmax())
