"""SAM 2 and 2.1 on single pictures, through `transformers`: the interface of `AnySam` around its `Sam2Model`.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos" (arXiv 2408.00714). Its memory of earlier frames is
left out. Pictures are stretched to a square, and the decoder also reads features at two and at four times SAM's
resolution.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.errors import SettingsError
from text2seg.masks.any_sam import AnySam, Group, SamEmbedding, lower, sets_that_fit
from text2seg.masks.build import PIXEL_MEAN, PIXEL_STD
from text2seg.masks.frame import StretchedFrame
from text2seg.masks.sam2_build import config_of, load_sam2, to_transformers
from text2seg.records import Candidates, PointPrompts
from text2seg.runtime import FULL, Precision, PrecisionName, autocast, choose_precision

logger = logging.getLogger(__name__)

TIMES_SAMS_MEMORY = 2  # about 68 MB for each set on a CPU, for its copies of the finer features


class Sam2(AnySam):
    """A `Sam2Model`, made ready for use on one device. Precisions as for `Sam`."""

    def __init__(
        self, module: Any, device: torch.device, precision: Precision = FULL, *, sets_per_call: int | None = None
    ) -> None:
        """Take over the module: it is moved to the device and frozen, the encoder's matrices brought to the precision.

        Args:
            module: a `transformers` Sam2Model with float32 weights.
            sets_per_call: as for `Sam`; by default half as many.
        """
        self.module = module.to(device).eval().requires_grad_(False)
        prompts, (rows, columns) = module.prompt_encoder, module.prompt_encoder.image_embedding_size
        mean, std = (
            torch.tensor(colour, dtype=torch.float32, device=device).view(-1, 1, 1)
            for colour in (PIXEL_MEAN, PIXEL_STD)
        )
        fit = sets_that_fit(device, rows * columns, prompts.hidden_size) // TIMES_SAMS_MEMORY
        super().__init__(
            device,
            precision,
            StretchedFrame(prompts.input_image_size),
            mean=mean,
            std=std,
            compiled=False,
            sets_per_call=fit if sets_per_call is None else sets_per_call,
            mask_input_hw=prompts.mask_input_size,
        )
        if precision.dtype != torch.float32:
            lower(module.vision_encoder, precision.dtype)

    @classmethod
    @torch.inference_mode(False)
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        *,
        device: torch.device,
        precision: PrecisionName = "auto",
        compile_encoder: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> Sam2:
        """A SAM 2 of Meta's files or of `transformers`'.

        Args:
            weights: the state dict, by the names of either; of any floating dtype.
            precision: as for `choose_precision`.
            config: the content of the config.json beside the weights. Without it the architecture must be one of the
                published ones: heads and windows are in no tensor's shape.

        Raises:
            CheckpointError: the weights are not, or not exactly, those of a SAM 2.
            SettingsError: `transformers` is missing, the device cannot run in that precision, or it is to be compiled.
        """
        if compile_encoder:
            raise SettingsError("SAM 2 runs uncompiled only; leave --compile out or choose a SAM")
        weights = to_transformers(weights)
        chosen = choose_precision(device, precision)
        module = load_sam2(config_of(weights, config), weights)
        sam = cls(module, device, chosen)
        blocks = len(module.vision_encoder.backbone.blocks)
        logger.info("SAM 2 with %d blocks on %s in %s: %s", blocks, device, chosen.name, chosen.reason)
        return sam

    def _levels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        finest, finer, features = self.module.vision_encoder(pixels).fpn_hidden_states
        decoder = self.module.mask_decoder
        with autocast(self.device, FULL):
            # Without frames before it, a picture gets one embedding for "no memory" everywhere.
            features = features.float() + self.module.no_memory_embedding.view(1, -1, 1, 1)
            return features, decoder.conv_s0(finest.float()), decoder.conv_s1(finer.float())

    def _group(self, points: PointPrompts) -> Group:
        # transformers fills short sets up with tokens of zeros that the decoder then attends to, which changes the
        # answer; so sets are answered with others of their size.
        return (len(points.masks), len(points.boxes_xyxy), len(points))

    def _decode(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> list[Candidates]:
        """Each set is one of the batch, with a copy of its picture's features."""
        xy, labels, boxes = zip(*(self._prompts(embedding, points) for embedding, points in sets), strict=True)
        boxed = boxes[0] is not None
        levels = zip(*((*embedding.fine, embedding.features) for embedding, _ in sets), strict=True)
        with autocast(self.device, FULL):
            answer = self.module(
                image_embeddings=[torch.stack(level) for level in levels],
                input_points=torch.stack(xy)[:, None].to(self.device),
                input_labels=torch.stack(labels)[:, None].to(self.device),
                input_boxes=torch.stack(boxes)[:, None].to(self.device) if boxed else None,
                input_masks=self._mask_prompts(sets),
                multimask_output=not boxed,
            )
        logits, scores = answer.pred_masks[:, 0].float().cpu().numpy(), answer.iou_scores[:, 0].float().cpu().numpy()
        return [Candidates(*of_set) for of_set in zip(logits, scores, strict=True)]

    def _prompts(self, embedding: SamEmbedding, points: PointPrompts) -> tuple[Tensor, Tensor, Tensor | None]:
        """Points [N, 2], labels [N] and, where there is one, the box [4], in the frame."""
        xy = torch.from_numpy(self._frame.place(points.xy, embedding.image_hw))
        labels = torch.tensor(points.labels, dtype=torch.int64, device="cpu")
        if not len(points.boxes_xyxy):
            return xy, labels, None
        corners = self._frame.place(points.boxes_xyxy.reshape(2, 2), embedding.image_hw)
        return xy, labels, torch.from_numpy(corners).reshape(4)

    def _to_picture(self, logits: Tensor, embedding: SamEmbedding) -> Tensor:
        return F.interpolate(logits, embedding.image_hw, mode="bilinear", align_corners=False)
