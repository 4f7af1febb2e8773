"""A SAM of any family from its file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from text2seg.errors import CheckpointError
from text2seg.io.files import is_file, read_file
from text2seg.runtime import PrecisionName
from text2seg.sam.base import AnySam
from text2seg.sam.build import check_sam
from text2seg.sam.sam import Sam
from text2seg.weights.tensors import load_sam_weights

SAM2_PREFIXES = ("image_encoder.trunk.", "vision_encoder.backbone.")


def open_sam(
    path: Path, *, device: torch.device, precision: PrecisionName = "auto", compile_encoder: bool = False
) -> AnySam:
    """SAM, MobileSAM or SAM 2, whichever the tensors of the file are. A config.json beside a SAM 2 says what the shapes
    of its tensors do not.

    Raises:
        CheckpointError: the file is missing, damaged or none of these.
        SettingsError: the device cannot run in that precision, there is no compiler, or a package is missing.
    """
    weights = load_sam_weights(path, lambda stored: None if _is_sam2(stored) else check_sam(stored))
    if not _is_sam2(weights):
        return Sam.from_weights(weights, device=device, precision=precision, compile_encoder=compile_encoder)
    from text2seg.sam.sam2 import Sam2

    config = _config_beside(path) if any(name.startswith("vision_encoder.") for name in weights) else None
    return Sam2.from_weights(
        weights, device=device, precision=precision, compile_encoder=compile_encoder, config=config
    )


def _is_sam2(names: Iterable[str]) -> bool:
    return any(name.startswith(SAM2_PREFIXES) for name in names)


def _config_beside(path: Path) -> Mapping[str, Any] | None:
    config = path.with_name("config.json")
    if not is_file(config, CheckpointError):
        return None
    try:
        content = json.loads(read_file(config, CheckpointError))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {config}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{config} is not the config.json of a model")
    return content
