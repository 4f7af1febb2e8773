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

from text2seg.errors import CheckpointError, ImageError
from text2seg.grids import resize
from text2seg.masks import decoder
from text2seg.masks.build import SamShape, load_sam
from text2seg.records import Candidates, Image, PointPrompts
from text2seg.runtime import FULL, Precision, PrecisionName, autocast, choose_precision

logger = logging.getLogger(__name__)

SETS_PER_CALL = 32  # about 40 MB of activations per set at SAM's full size
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
        sets_per_call: int = SETS_PER_CALL,
    ) -> None:
        """Take over the module: it is moved to the device, frozen, and its norms are kept in float32.

        Args:
            module: a `segment_anything` Sam with float32 weights.
            sets_per_call: how many point sets go through the decoder at once; more need more memory.
        """
        from segment_anything.utils.transforms import ResizeLongestSide

        if sets_per_call < 1:
            raise ValueError(f"sets_per_call must be 1 or more, got {sets_per_call}")
        self.module = module.to(device).eval().requires_grad_(False)
        self.device, self.precision = device, precision
        self._sets_per_call = sets_per_call
        self._frame = ResizeLongestSide(module.image_encoder.img_size)
        if precision.dtype != torch.float32:
            _keep_norms_exact(module.image_encoder)

    @classmethod
    def from_weights(
        cls, weights: Mapping[str, Tensor], *, device: torch.device, precision: PrecisionName = "auto"
    ) -> Sam:
        """Any SAM in the official format, its architecture read off the weights; logs what runs where and why.

        Args:
            weights: the state dict, of any floating dtype. Float32 tensors are shared with the module, not copied.
            precision: as for `choose_precision`; fp16 gives way where this SAM overflows in it.

        Raises:
            CheckpointError: the weights are not, or not exactly, those of a SAM.
            SettingsError: the device cannot run in that precision.
        """
        shape = SamShape.of(weights)
        chosen = choose_precision(device, precision, fp16_safe=shape.fp16_safe)
        sam = cls(load_sam(shape, weights), device, chosen)
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
        inputs = [self._resized(image) for image in images]
        with autocast(self.device, FULL):
            batch = torch.stack([self.module.preprocess(pixels) for pixels in inputs])
        with autocast(self.device, self.precision):
            features = self.module.image_encoder(batch).float()
        if not bool(features.isfinite().all()):
            raise CheckpointError(f"SAM's image features are not finite in {self.precision.name}; try precision fp32")
        return [
            SamEmbedding(each, image.hw, (pixels.shape[1], pixels.shape[2]))
            for each, image, pixels in zip(features, images, inputs, strict=True)
        ]

    def _resized(self, image: Image) -> Tensor:
        """uint8 [3, rows, columns], the longest side as long as the model's input frame."""
        if 0 in self._frame.get_preprocess_shape(*image.hw, self._frame.target_length):
            rows, columns = image.hw
            raise ImageError(f"{image.file_name or 'image'} is too thin for SAM: {columns}×{rows} pixels")
        pixels = torch.as_tensor(self._frame.apply_image(image.pixels), device=self.device)
        return pixels.permute(2, 0, 1).contiguous()

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
        points_xy, labels = self._ragged(sets)
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

    def _ragged(
        self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Points float32 [B, N, 2] in the model's input frame and labels int64 [B, N], short sets filled up. A box is
        two points more; a set without one gets a "not a point"."""
        longest = max(len(points) + 1 + len(points.boxes_xyxy) for _, points in sets)
        points_xy = np.zeros((len(sets), longest, 2), np.float32)
        labels = np.full((len(sets), longest), decoder.FILLING, np.int64)
        for row, (embedding, points) in enumerate(sets):
            count = len(points)
            points_xy[row, :count] = self._frame.apply_coords(points.xy, embedding.image_hw)
            labels[row, :count] = points.labels
            if len(points.boxes_xyxy):
                corners = self._frame.apply_boxes(points.boxes_xyxy, embedding.image_hw)
                points_xy[row, count : count + 2] = corners.reshape(2, 2)
                labels[row, count : count + 2] = decoder.BOX_TOP_LEFT, decoder.BOX_BOTTOM_RIGHT
            else:
                labels[row, count] = decoder.NOT_A_POINT
        return points_xy, labels

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
        rows, columns = (max(round(length * side / self._frame.target_length), 1) for length in embedding.input_hw)
        return rows, columns


def _keep_norms_exact(encoder: nn.Module) -> None:
    """Have every norm of the encoder compute in float32; autocast lets those behind a convolution take its dtype."""
    from segment_anything.modeling.common import LayerNorm2d

    for layer in encoder.modules():
        if isinstance(layer, nn.LayerNorm | LayerNorm2d):
            layer.register_forward_pre_hook(_to_float32)


def _to_float32(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.float() for tensor in inputs)
