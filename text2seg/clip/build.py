"""Build a CLIP module; its architecture is read from the shapes of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from text2seg.clip.shape import HEAD_WIDTH, ClipShape
from text2seg.errors import CheckpointError
from text2seg.runtime import Unfilled, import_part


def build_clip(weights: Mapping[str, Tensor], *, source: str = "the checkpoint") -> nn.Module:
    """Build OpenAI's CLIP module with these weights: float32, on the CPU, in eval mode, without gradients.

    Unlike `clip.model.build_model`, this does not round float32 weights to half precision, and does not initialise
    weights that are overwritten.

    Args:
        weights: tensors by OpenAI's names, of any float dtype. Float32 tensors are shared with the module, not copied.
        source: name of the weights in error messages.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of the wrong shape; names it.
    """
    shape, model = prefix_errors(source, _skeleton, weights)
    model.load_state_dict({name: as_float32(tensor) for name, tensor in weights.items()}, assign=True)
    mask = torch.full((shape.context_length,) * 2, float("-inf"), dtype=torch.float32, device="cpu").triu(1)
    for block in model.transformer.resblocks:
        block.attn_mask = mask  # not a buffer, so load_state_dict does not set it
    return model.eval().requires_grad_(False)


def check_clip(weights: Mapping[str, Any]) -> None:
    """Check names, shapes and dtypes of a checkpoint's tensors before their values are read.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of the wrong shape, or does not fit CLIP's tokenizer.
    """
    _skeleton(weights)[0].check_texts()


def _skeleton(weights: Mapping[str, Any]) -> tuple[ClipShape, Any]:
    """Return the architecture of the weights, and its module without memory for the weights; check that they fit."""
    shape = ClipShape.of(weights)
    with Unfilled():
        model = openai_networks().CLIP(
            shape.embedding,
            shape.image_size,
            shape.vision_layers,
            shape.vision_width,
            shape.patch,
            shape.context_length,
            shape.vocabulary,
            shape.text_width,
            shape.text_width // HEAD_WIDTH,
            shape.text_layers,
        )
    check_fit(model.state_dict(), weights)
    return shape, model


def openai_networks() -> ModuleType:
    """Import `clip.model`, OpenAI's networks, without the rest of the package (see `import_part`)."""
    return import_part("clip", "model")


def prefix_errors(source: str, function: Any, *args: Any) -> Any:
    """Call a function, and prefix the message of a `CheckpointError` with the source."""
    try:
        return function(*args)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the weights have the expected names, shapes and dtypes."""
    for name, tensor in expected.items():
        if name not in weights:
            if name.endswith("num_batches_tracked"):
                continue  # counts training steps; old checkpoints do not have it, and inference does not use it
            raise CheckpointError(f"not a CLIP checkpoint: it has no tensor {name!r:.80}")
        if weights[name].shape != tensor.shape:
            found, expected_shape = list(weights[name].shape), list(tensor.shape)
            raise CheckpointError(f"not a CLIP checkpoint: {name!r:.80} has shape {found}, expected {expected_shape}")
        if tensor.is_floating_point() and not weights[name].is_floating_point():
            raise CheckpointError(
                f"not a CLIP checkpoint: {name!r:.80} is {weights[name].dtype}, expected a float dtype"
            )
    extra = [name for name in weights if name not in expected]
    if extra:
        count = f"{len(extra)} tensors, such as" if extra[1:] else "a tensor"
        raise CheckpointError(
            f"not a CLIP alone: no CLIP of its shape has {count} {extra[0]!r:.80}; save only those of the CLIP"
        )


def as_float32(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, floats as float32, integers unchanged."""
    return tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
