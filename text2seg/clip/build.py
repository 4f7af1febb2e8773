"""Build a CLIP module whose architecture is read off the shapes of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from text2seg.errors import CheckpointError
from text2seg.packages import opened
from text2seg.runtime import Unfilled
from text2seg.weights.tensors import check_sizes, count_numbered

HEAD_WIDTH = 64  # no shape tells it; it is 64 in every published CLIP
RESNET_STRIDE = 32
VOCABULARY = 49_408  # of CLIP's tokenizer
SHORTEST_CONTEXT = 16  # tokens; a query in the longest template that is used without being asked for has 13
TOLD_BY = {
    "embedding": "text_projection",
    "image_size": "visual.positional_embedding",
    "patch": "visual.conv1.weight",
    "vision_width": "visual.conv1.weight",
    "context_length": "positional_embedding",
    "vocabulary": "token_embedding.weight",
    "text_width": "text_projection",
}
"""The tensor whose shape tells a size of a ViT; that of a ResNet's width and input are others."""


@dataclass(frozen=True, slots=True)
class ClipShape:
    """The architecture of a CLIP. Sizes in pixels are those of the square input it was trained on."""

    embedding: int
    image_size: int
    patch: int | None
    """Side of a patch; None for a ResNet."""
    vision_layers: int | tuple[int, ...]
    """Blocks of the transformer, or of each of a ResNet's four stages."""
    vision_width: int
    context_length: int
    vocabulary: int
    text_width: int
    text_layers: int

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> ClipShape:
        """Read the architecture off a state dict in OpenAI's format.

        Raises:
            CheckpointError: the tensors are not those of a CLIP; names the one that is missing or does not fit.
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
        """Raise where OpenAI's modules would divide by zero, trip an assert or never be done."""
        told_by = TOLD_BY if self.patch else {n: t for n, t in TOLD_BY.items() if not t.startswith("visual.")}
        check_sizes(self, "CLIP", told_by)
        widths = {"text": self.text_width, "image": self.vision_width * (1 if self.patch else 32)}
        for encoder, width in widths.items():
            if width < HEAD_WIDTH or width % HEAD_WIDTH:
                raise CheckpointError(f"not a CLIP checkpoint: the {encoder} encoder's width is {width}, not n·64")

    def check_texts(self) -> None:
        """Raise `CheckpointError` where CLIP's tokenizer has more words, or longer texts, than the text encoder."""
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
    """Cells along a side of the square grid whose cells, and a CLS, have these position embeddings."""
    cells = positions.shape[0] - 1
    side = round(max(cells, 0) ** 0.5)
    if side * side != cells:
        raise CheckpointError(f"not a CLIP checkpoint: its {cells} image positions do not make a square")
    return side


def build_clip(weights: Mapping[str, Tensor], *, source: str = "the checkpoint") -> nn.Module:
    """OpenAI's CLIP module with these weights: float32, on the CPU, in eval mode, its parameters without gradients.

    It is what `clip.model.build_model` makes, except that weights in float32 are not rounded to half precision on
    their way, and that no time goes into random weights that are then overwritten.

    Args:
        weights: tensors by OpenAI's names, of any float dtype. Those in float32 are shared with the module, not copied.
        source: what the error messages call them.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of the wrong shape; names it.
    """
    shape, model = named(source, _skeleton, weights)
    model.load_state_dict({name: single(tensor) for name, tensor in weights.items()}, assign=True)
    mask = torch.full((shape.context_length,) * 2, float("-inf"), dtype=torch.float32, device="cpu").triu(1)
    for block in model.transformer.resblocks:
        block.attn_mask = mask  # no buffer, so it has no weights to take its place
    return model.eval().requires_grad_(False)


def check_clip(weights: Mapping[str, Any]) -> None:
    """Hold the names, shapes and dtypes of tensors, whose numbers need not be there, against the CLIP that they tell.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of the wrong shape, or CLIP's tokenizer does not fit to it.
    """
    _skeleton(weights)[0].check_texts()


def _skeleton(weights: Mapping[str, Any]) -> tuple[ClipShape, Any]:
    """The architecture that the weights' shapes tell, and its module without numbers, once they fit together."""
    shape = ClipShape.of(weights)
    with Unfilled():
        model = import_clip().model.CLIP(
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


def import_clip() -> ModuleType:
    """The `clip` package; so far only its networks and its tokenizer are imported."""
    opened("clip")
    import clip
    import clip.model
    import clip.simple_tokenizer

    return clip


def named(source: str, function: Any, *args: Any) -> Any:
    """Call, and put the source before the message of a CheckpointError."""
    try:
        return function(*args)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the weights are those that are expected, by their names and shapes."""
    for name, tensor in expected.items():
        if name not in weights:
            if name.endswith("num_batches_tracked"):
                continue  # counts training steps; old checkpoints do not have it, and inference does not use it
            raise CheckpointError(f"not a CLIP checkpoint: it has no tensor {name!r:.80}")
        if weights[name].shape != tensor.shape:
            found, wanted = list(weights[name].shape), list(tensor.shape)
            raise CheckpointError(f"not a CLIP checkpoint: {name!r:.80} has shape {found}, expected {wanted}")
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


def single(tensor: Tensor) -> Tensor:
    """In float32, on the CPU; integers stay integers."""
    return tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
