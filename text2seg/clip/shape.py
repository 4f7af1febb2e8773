"""The architecture of a CLIP, read from the shapes of its tensors, also before torch is imported."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from text2seg import weights as stored_weights
from text2seg.errors import CheckpointError, SettingsError
from text2seg.weights.architecture import check_patches, check_sizes, count_numbered
from text2seg.weights.formats import open_weights
from text2seg.weights.registry import is_openclip
from text2seg.weights.state_dict import CLIP_TENSORS, CLIP_VISUAL_TENSORS, find_state_dict

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


log = logging.getLogger(__name__)


class Shaped(Protocol):
    """A tensor, or one in a file that was not read yet."""

    @property
    def shape(self) -> Any: ...


class ClipKind(Protocol):
    """What decides which methods and settings a CLIP supports; a loaded `Clip` and a `ClipShape` have it."""

    @property
    def is_vit(self) -> bool: ...
    @property
    def stride(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def text_blocks(self) -> int: ...
    @property
    def context_length(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ClipShape:
    """ClipKind of a CLIP. Sizes in pixels refer to the square input in training."""

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

    @property
    def is_vit(self) -> bool:
        return self.patch is not None

    @property
    def stride(self) -> int:
        """Pixels of the input per cell of the grid, along a side."""
        return self.patch or RESNET_STRIDE

    @property
    def blocks(self) -> int:
        """Number of blocks of a vision transformer; 0 for a ResNet."""
        return self.vision_layers if isinstance(self.vision_layers, int) else 0

    @property
    def text_blocks(self) -> int:
        return self.text_layers

    @property
    def relus(self) -> tuple[str, ...]:
        """Names of the layers of a ResNet for class activation maps, the ReLUs of its blocks in order; none for a
        ViT."""
        stages = () if isinstance(self.vision_layers, int) else enumerate(self.vision_layers, start=1)
        blocks = [f"layer{stage}.{block}" for stage, count in stages for block in range(count)]
        return tuple(f"{block}.relu{relu}" for block in blocks for relu in (1, 2, 3))

    @classmethod
    def of(cls, weights: Mapping[str, Shaped]) -> ClipShape:
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


def _read_shape(weights: Mapping[str, Shaped]) -> ClipShape:
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


def _grid(positions: Shaped) -> int:
    """Return the side, in cells, of the square grid that has these position embeddings (after one for CLS)."""
    cells = positions.shape[0] - 1
    side = round(max(cells, 0) ** 0.5)
    if side * side != cells:
        raise CheckpointError(f"not a CLIP checkpoint: its {cells} image positions do not make a square")
    return side


def shape_of(name: str) -> ClipShape | None:
    """Return the architecture of a CLIP by its name, without torch; None if loading has to tell it: its file is not on
    this machine, or it is not in OpenAI's format."""
    try:
        if is_openclip(name) or not stored_weights.is_here(checkpoint := stored_weights.find(name, "clip")):
            return None
        path = stored_weights.path_of(checkpoint)
        known = (*CLIP_TENSORS, *CLIP_VISUAL_TENSORS)
        with open_weights(path) as content:
            return ClipShape.of(find_state_dict(content, path, known, known))
    except CheckpointError as error:
        log.info("the architecture is not known before loading: %s", error)
        return None


def check_input_size(clip: ClipKind, size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the input size (rows, columns) in whole cells, from its side or rows and columns.

    Raises:
        SettingsError: a side is smaller than a cell, or the grid has too many cells.
    """
    rows, columns = size if isinstance(size, tuple) else (size, size)
    if (least := min(rows, columns)) < clip.stride:
        raise SettingsError(f"input size must be at least {clip.stride}, one patch of this CLIP, got {least}")
    grid_hw = max(round(rows / clip.stride), 1), max(round(columns / clip.stride), 1)
    input_hw = grid_hw[0] * clip.stride, grid_hw[1] * clip.stride
    what = f"an input of {input_hw[0]} x {input_hw[1]} pixels"
    check_patches(grid_hw, f"choose a smaller input size: with this CLIP {what}", SettingsError)
    return input_hw


RESNET_RULES = ("surgery", "raw")
"""Attention rules of ResNets, whose only attention is the pool after the last stage."""


def check_architecture(clip: ClipKind, rule: str) -> None:
    """Raise `SettingsError` if the attention rule is for vision transformers only, and this CLIP is none."""
    if not clip.is_vit and rule not in RESNET_RULES:
        names = " or ".join(RESNET_RULES)
        raise SettingsError(
            f"architecture {rule} is for CLIP's vision transformers, and this CLIP is a ResNet: "
            f"use {names}, or a ViT such as ViT-B/16"
        )
