"""Build a CLIP module; its architecture is read from the shapes of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from text2seg.errors import CheckpointError
from text2seg.runtime import Unfilled, import_part
from text2seg.weights.architecture import check_sizes, count_numbered

HEAD_WIDTH = 64  # channels; no tensor shape contains it, and it is 64 in every published CLIP
RESNET_STRIDE = 32  # pixels of the input per cell of the grid
VOCABULARY = 49_408  # tokens of CLIP's tokenizer
SHORTEST_CONTEXT = 16  # tokens; a one-word query in the longest default template has 13
TOLD_BY = {
    "embedding": "text_projection",
    "image_size": "visual.positional_embedding",
    "patch": "visual.conv1.weight",
    "vision_width": "visual.conv1.weight",
    "context_length": "positional_embedding",
    "vocabulary": "token_embedding.weight",
    "text_width": "text_projection",
}
"""Tensor whose shape contains each size of a ViT, for error messages. The width and input of a ResNet are elsewhere."""


@dataclass(frozen=True, slots=True)
class ClipShape:
    """Architecture of a CLIP. Sizes in pixels refer to the square input in training."""

    embedding: int
    image_size: int
    patch: int | None
    """Side of a patch; None for a ResNet."""
    vision_layers: int | tuple[int, ...]
    """Number of transformer blocks, or of blocks in each of a ResNet's four stages."""
    vision_width: int
    context_length: int
    vocabulary: int
    text_width: int
    text_layers: int

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> ClipShape:
        """Read the architecture off a state dict in OpenAI's format.

        Raises:
            CheckpointError: the tensors are not those of a CLIP; names the first that is missing or does not fit.
        """
        try:
            shape = _read_shape(weights)
        except KeyError as missing:
            raise CheckpointError(f"not a CLIP checkpoint: it has no tensor {missing.args[0]!r:.80}") from None
        except (ValueError, IndexError) as error:
            raise CheckpointError(f"not a CLIP checkpoint: a tensor has too few or too many axes ({error})") from error
        shape._check()
        return shape

    def _check(self) -> None:
        """Check sizes with which OpenAI's modules would divide by zero, fail an assert, or take too long to build."""
        told_by = TOLD_BY if self.patch else {n: t for n, t in TOLD_BY.items() if not t.startswith("visual.")}
        check_sizes(self, "CLIP", told_by)
        widths = {"text": self.text_width, "image": self.vision_width * (1 if self.patch else 32)}
        for encoder, width in widths.items():
            if width < HEAD_WIDTH or width % HEAD_WIDTH:
                raise CheckpointError(f"not a CLIP checkpoint: the {encoder} encoder's width is {width}, not n·64")

    def check_texts(self) -> None:
        """Raise `CheckpointError` if the text encoder is too small for CLIP's tokenizer or for usual queries."""
        if self.vocabulary < VOCABULARY:
            raise CheckpointError(
                f"'token_embedding.weight' has {self.vocabulary:,} words, and CLIP's tokenizer has {VOCABULARY:,}; "
                "a CLIP with a tokenizer of its own is not read"
            )
        if self.context_length < SHORTEST_CONTEXT:
            raise CheckpointError(
                f"'positional_embedding' has {self.context_length} places for tokens, and texts need "
                f"{SHORTEST_CONTEXT} or more; OpenAI's CLIPs have 77"
            )


def _read_shape(weights: Mapping[str, Tensor]) -> ClipShape:
    text_width, embedding = weights["text_projection"].shape
    context_length, _ = weights["positional_embedding"].shape
    vocabulary, _ = weights["token_embedding.weight"].shape
    patch: int | None = None
    vision_layers: int | tuple[int, ...]
    if "visual.proj" in weights:
        vision_width, _, patch, _ = weights["visual.conv1.weight"].shape
        vision_layers = count_numbered(weights, "visual.transformer.resblocks.{}.attn.in_proj_weight")
        image_size = patch * _grid(weights["visual.positional_embedding"])
    else:
        vision_width = weights["visual.layer1.0.conv1.weight"].shape[0]
        vision_layers = tuple(
            count_numbered(weights, f"visual.layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3, 4)
        )
        image_size = RESNET_STRIDE * _grid(weights["visual.attnpool.positional_embedding"])
    return ClipShape(
        embedding=embedding,
        image_size=image_size,
        patch=patch,
        vision_layers=vision_layers,
        vision_width=vision_width,
        context_length=context_length,
        vocabulary=vocabulary,
        text_width=text_width,
        text_layers=count_numbered(weights, "transformer.resblocks.{}.attn.in_proj_weight"),
    )


def _grid(positions: Tensor) -> int:
    """Return the side, in cells, of the square grid that has these position embeddings (after one for CLS)."""
    cells = positions.shape[0] - 1
    side = round(max(cells, 0) ** 0.5)
    if side * side != cells:
        raise CheckpointError(f"not a CLIP checkpoint: its {cells} image positions do not make a square")
    return side


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
