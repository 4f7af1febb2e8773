"""The four networks as modules with a plain `forward`, and what they are drawn with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from text2seg.errors import SettingsError
from text2seg.graphs.manifest import GraphName
from text2seg.masks.decoder import FILLING, NOT_A_POINT, POSITIVE, decode
from text2seg.masks.sam import Sam
from text2seg.pipeline import Text2Seg

Free = dict[int, str]
"""The sides of an input that may differ from call to call, by axis, with a name."""

BATCH: Free = {0: "batch"}


class Network(nn.Module):
    """A function of tensors that uses the parameters of a module."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor | tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.module, self._function = module, function

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self._function(*tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Tower:
    """One network: its inputs with an example each and the sides that are free, and its outputs."""

    name: GraphName
    network: nn.Module
    inputs: dict[str, tuple[Tensor, Free]]
    outputs: dict[str, Free]


def towers(models: Text2Seg, input_hw: tuple[int, int], architecture: str) -> list[Tower]:
    """The networks of these models, in float32 on the CPU.

    Raises:
        SettingsError: this is no SAM of the first kind, CLIP's modules are not as OpenAI's, or cannot follow the rule.
    """
    clip, sam = models.clip, models.sam
    if not isinstance(sam, Sam):
        raise SettingsError("only SAM and MobileSAM can be exported, not SAM 2")
    clip.check(architecture)
    # Examples have two of everything that is free, and unlike numbers of it, or they would be taken for constants.
    pixels = torch.zeros(2, 3, *input_hw, dtype=torch.float32, device="cpu")
    image = Tower(
        "clip_image",
        Network(clip.model.visual, lambda x: clip.image_network(x, architecture)),
        {"pixels": (pixels, BATCH)},
        {"features": BATCH},
    )
    tokens = torch.arange(15, device="cpu").reshape(3, 5)
    text = Tower(
        "clip_text",
        Network(clip.model, clip.text.network),
        {"tokens": (tokens, {0: "batch", 1: "length"})},
        {"features": BATCH},
    )
    return [image, text, _sam_encoder(sam), _sam_decoder(sam, masked=False), _sam_decoder(sam, masked=True)]


def _sam_encoder(sam: Sam) -> Tower:
    side = sam.module.image_encoder.img_size
    pixels = torch.zeros(2, 3, side, side, dtype=torch.float32, device="cpu")
    return Tower(
        "sam_encoder",
        Network(sam.module.image_encoder, sam.encoder_network),
        {"pixels": (pixels, BATCH)},
        {"features": BATCH},
    )


def _sam_decoder(sam: Sam, *, masked: bool) -> Tower:
    """For any number of images, of sets on them, and of points in the longest set; see `masks.decoder.decode`."""
    prompts = sam.module.prompt_encoder
    labels = torch.full((3, 5), POSITIVE, dtype=torch.int64, device="cpu")
    labels[:, 3], labels[:, 4] = NOT_A_POINT, FILLING
    sets: Free = {0: "sets"}
    inputs: dict[str, tuple[Tensor, Free]] = {
        "embeddings": (
            torch.zeros(2, prompts.embed_dim, *prompts.image_embedding_size, dtype=torch.float32, device="cpu"),
            {0: "images"},
        ),
        "image_index": (torch.tensor([0, 1, 1], dtype=torch.int64, device="cpu"), sets),
        "points_xy": (torch.zeros(3, 5, 2, dtype=torch.float32, device="cpu"), {0: "sets", 1: "points"}),
        "labels": (labels, {0: "sets", 1: "points"}),
    }
    if masked:
        inputs["masks"] = (torch.zeros(3, 1, *prompts.mask_input_size, dtype=torch.float32, device="cpu"), sets)
    name: GraphName = "sam_decoder_masked" if masked else "sam_decoder"
    network = Network(sam.module, partial(decode, sam.module, filled=True))
    return Tower(name, network, inputs, {"logits": sets, "scores": sets})
