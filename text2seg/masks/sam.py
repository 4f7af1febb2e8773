"""SAM without a state: pictures become embeddings, point sets on embeddings become candidates, one of them a mask.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643). Equal to the stock `SamPredictor`, which takes
one picture and one set at a time; here a batch of pictures is one pass of the encoder, and the sets of all pictures
are one pass of the decoder. Safe to use from several threads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from text2seg.errors import CheckpointError
from text2seg.grids import resize
from text2seg.masks import decoder
from text2seg.masks.build import SamShape, load_sam
from text2seg.masks.compiled import compiled
from text2seg.masks.encoder import encode
from text2seg.masks.frame import Frame
from text2seg.records import Candidates, Image, PointPrompts
from text2seg.runtime import FULL, Precision, PrecisionName, autocast, choose_precision

logger = logging.getLogger(__name__)

SETS_PER_CALL = 32  # at least; about 40 MB of activations per set at SAM's full size
MOST_SETS_PER_CALL = 256  # beyond it a GPU is no faster
MASK_PROMPT_SCALE = 0.005
"""What the likelihoods of a rough mask are multiplied by before SAM takes them for its own low-resolution mask, as in
Trident (arXiv 2411.09219): hardly above "unsure", a hint that box and point overrule."""


@dataclass(frozen=True, slots=True, eq=False)
class SamEmbedding:
    """What SAM knows of one picture: `features` float32[C, h, w] on the model's device.

    `image_hw` is the picture's size, `input_hw` the part of the model's square input frame that it fills, from the
    top left corner.
    """

    features: Tensor
    image_hw: tuple[int, int]
    input_hw: tuple[int, int]


class Sam:
    """A `segment_anything` Sam module, made ready for use on one device. Nothing in it changes after that.

    The encoder, which takes nearly all the time, runs in `precision`, its layer norms in float32. The decoder
    always runs in float32: a lower precision would blur where the points are and round SAM's scores to ties.
    """

    def __init__(
        self,
        module: Any,
        device: torch.device,
        precision: Precision = FULL,
        *,
        sets_per_call: int | None = None,
        compile_encoder: bool = False,
    ) -> None:
        """Take over the module: it is moved to the device and frozen, the encoder's matrices brought to the precision.

        Args:
            module: a `segment_anything` Sam with float32 weights.
            sets_per_call: how many point sets go through the decoder at once; more need more memory. Default: as many
                as the device has memory for.
            compile_encoder: let `torch.compile` make the encoder, which takes up to minutes for each size of batch.

        Raises:
            SettingsError: the encoder is to be compiled, and there is no compiler here.
        """
        if sets_per_call is not None and sets_per_call < 1:
            raise ValueError(f"sets_per_call must be 1 or more, got {sets_per_call}")
        self.module = module.to(device).eval().requires_grad_(False)
        self.device, self.precision, self.compiled = device, precision, compile_encoder
        self._encode = compiled(encode, device) if compile_encoder else encode
        self._sets_per_call = sets_per_call or _sets_that_fit(module, device)
        self._frame = Frame(module.image_encoder.img_size)
        if precision.dtype != torch.float32:
            _lower(module.image_encoder, precision.dtype)

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        *,
        device: torch.device,
        precision: PrecisionName = "auto",
        compile_encoder: bool = False,
    ) -> Sam:
        """Any SAM in the official format, its architecture read off the weights; logs what runs where and why.

        Args:
            weights: the state dict, of any floating dtype. Float32 tensors are shared with the module, not copied.
            precision: as for `choose_precision`; fp16 gives way where this SAM overflows in it.
            compile_encoder: as for `Sam`.

        Raises:
            CheckpointError: the weights are not, or not exactly, those of a SAM.
            SettingsError: the device cannot run in that precision, or there is no compiler to compile with.
        """
        shape = SamShape.of(weights)
        chosen = choose_precision(device, precision, fp16_safe=shape.fp16_safe)
        sam = cls(load_sam(shape, weights), device, chosen, compile_encoder=compile_encoder)
        logger.info(
            "SAM with %d blocks of width %d on %s in %s: %s",
            shape.depth,
            shape.width,
            device,
            chosen.name,
            chosen.reason,
        )
        return sam

    @torch.no_grad()
    def embed(self, images: Sequence[Image]) -> list[SamEmbedding]:
        """The embedding of each picture, in one batch.

        Raises:
            ImageError: a picture is so thin that nothing of it is left in the model's input frame.
            CheckpointError: the features are not finite, so weights or precision are unfit.
        """
        if not images:
            return []
        pixels, sizes = self._frame.pictures(images, self.device, self.module.pixel_mean, self.module.pixel_std)
        with autocast(self.device, self.precision):
            features = self._encoded(pixels).float()
        if not bool(features.isfinite().all()):
            raise CheckpointError(f"SAM's image features are not finite in {self.precision.name}; try precision fp32")
        return [
            SamEmbedding(each, image.hw, input_hw)
            for each, image, input_hw in zip(features, images, sizes, strict=True)
        ]

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Compiled code is for one size of batch, so a batch is filled up to one of few sizes. A CPU is no faster with
        more than one picture at a time."""
        if not self.compiled:
            return self._encode(self.module.image_encoder, pixels)
        size = 1 if self.device.type == "cpu" else 1 << (len(pixels) - 1).bit_length()
        parts = []
        for part in pixels.split(size):
            filled = F.pad(part, (0, 0, 0, 0, 0, 0, 0, size - len(part)))
            parts.append(self._encode(self.module.image_encoder, filled)[: len(part)])
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> list[Candidates]:
        """SAM's candidates for each set of points on its picture; sets may differ in size and in picture, and have a
        box or a rough mask or not. With a box it is one candidate: what SAM answers when it is told well enough.

        Raises:
            ValueError: a set has no points.
        """
        for place, (_, points) in enumerate(sets):
            if not len(points):
                raise ValueError(f"set {place} has no points")
        found: dict[int, Candidates] = {}
        for masked in (False, True):  # a set without a mask says so by an embedding of its own, not by an empty mask
            places = [place for place, (_, points) in enumerate(sets) if bool(len(points.masks)) == masked]
            for start in range(0, len(places), self._sets_per_call):
                part = places[start : start + self._sets_per_call]
                found |= zip(part, self._decode([sets[place] for place in part]), strict=True)
        return [found[place] for place in range(len(sets))]

    def _decode(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> list[Candidates]:
        """One pass of the decoder, over sets that all have a mask or all have none."""
        features = {id(embedding): embedding.features for embedding, _ in sets}
        places = {key: place for place, key in enumerate(features)}
        points_xy, labels = self._frame.points([(embedding.image_hw, points) for embedding, points in sets])
        with autocast(self.device, FULL):
            logits, scores = decoder.decode(
                self.module,
                torch.stack(list(features.values())),
                torch.tensor([places[id(embedding)] for embedding, _ in sets], device=self.device),
                torch.from_numpy(points_xy).to(self.device),
                torch.from_numpy(labels).to(self.device),
                self._mask_prompts(sets) if len(sets[0][1].masks) else None,
            )
        # The first output is SAM's single mask; the candidates are the others.
        outputs = [slice(0, 1) if len(points.boxes_xyxy) else slice(1, None) for _, points in sets]
        return [
            Candidates(of_set[which], predicted_iou[which])
            for of_set, predicted_iou, which in zip(logits.cpu().numpy(), scores.cpu().numpy(), outputs, strict=True)
        ]

    def _mask_prompts(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> Tensor:
        """Rough masks as SAM's low-resolution logits, float32 [B, 1, 4h, 4w]: square, the picture at the top left."""
        height, width = self.module.prompt_encoder.mask_input_size
        prompts = np.zeros((len(sets), 1, height, width), np.float32)
        for row, (embedding, points) in enumerate(sets):
            rows, columns = self.filled(embedding, height)
            prompts[row, :, :rows, :columns] = MASK_PROMPT_SCALE * resize(points.masks, (rows, columns))
        return torch.from_numpy(prompts).to(self.device)

    @torch.no_grad()
    def mask(self, embedding: SamEmbedding, candidates: Candidates, index: int) -> NDArray[np.bool_]:
        """One candidate as a mask bool[H, W] of the picture; only this one is brought to full size.

        Raises:
            ValueError: there is no such candidate.
        """
        if not 0 <= index < len(candidates):
            raise ValueError(f"index must be one of {len(candidates)} candidates, got {index}")
        logits = torch.tensor(candidates.logits[index], device=self.device)[None, None]
        with autocast(self.device, FULL):
            logits = self.module.postprocess_masks(logits, embedding.input_hw, embedding.image_hw)
        mask: NDArray[np.bool_] = (logits[0, 0] > self.module.mask_threshold).cpu().numpy()
        return mask

    def coarse_masks(self, embedding: SamEmbedding, candidates: Candidates) -> NDArray[np.bool_]:
        """The candidates as masks bool[K, h, w] at SAM's low resolution, only the part that the picture fills."""
        rows, columns = self.filled(embedding, candidates.logits.shape[-1])
        masks: NDArray[np.bool_] = candidates.logits[:, :rows, :columns] > self.module.mask_threshold
        return masks

    def filled(self, embedding: SamEmbedding, side: int) -> tuple[int, int]:
        """Rows and columns that the picture fills of SAM's square frame, were it of this side."""
        rows, columns = (max(round(length * side / self._frame.side), 1) for length in embedding.input_hw)
        return rows, columns


def _lower(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Bring the weights of matrix products to the dtype that they are used in: half the memory, and no casting at each
    call. Norms, positions and the path between the blocks stay float32."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(dtype)


def _sets_that_fit(module: Any, device: torch.device) -> int:
    """How many sets of points the decoder may hold at once: a tenth of a GPU's memory, never fewer than on a CPU.

    Of all its memory, not of what is free: rounding depends on it, and the same job should give the same bytes.
    """
    if device.type != "cuda":
        return SETS_PER_CALL
    rows, columns = module.prompt_encoder.image_embedding_size
    bytes_per_set = 40 * rows * columns * module.prompt_encoder.embed_dim
    fit = torch.cuda.get_device_properties(device).total_memory // 10 // bytes_per_set
    return min(max(fit, SETS_PER_CALL), MOST_SETS_PER_CALL)
