"""SAM ready for use: images in, embeddings kept on the device, sets of points in, for each of them a mask.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643). Equal to the stock `SamPredictor`, which takes
one image and one set at a time; here a batch of images is one pass of the encoder, and the sets of all images
are one pass of the decoder. Safe to use from several threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.records import Candidates, PointPrompts
from text2seg.runtime import FULL, Precision, PrecisionName, autocast, choose_precision
from text2seg.sam import decoder, mobile_sam
from text2seg.sam.base import AnySam, Frame, Group, SamEmbedding, lower, sets_that_fit
from text2seg.sam.build import load_sam, shape_of
from text2seg.sam.compiled import compiled
from text2seg.sam.encoder import encode

logger = logging.getLogger(__name__)

EncoderNetwork = Callable[[Tensor], Tensor]
"""From framed images [B, 3, side, side] to features [B, C, h, w]."""
DecoderNetwork = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""As `decoder.decode` of one module: embeddings, image index, points, labels and masks to logits and scores."""


class Sam(AnySam):
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
            module: a `segment_anything` Sam with float32 weights; its encoder may be MobileSAM's.
            sets_per_call: how many point sets go through the decoder at once; more need more memory. Default: as many
                as the device has memory for.
            compile_encoder: let `torch.compile` make the encoder, which takes up to minutes for each size of batch.

        Raises:
            SettingsError: the encoder is to be compiled, and there is no compiler here.
        """
        self.module = module.to(device).eval().requires_grad_(False)
        prompts, (rows, columns) = module.prompt_encoder, module.prompt_encoder.image_embedding_size
        super().__init__(
            device,
            precision,
            Frame(module.image_encoder.img_size),
            mean=module.pixel_mean,
            std=module.pixel_std,
            compiled=compile_encoder,
            sets_per_call=sets_that_fit(device, rows * columns, prompts.embed_dim)
            if sets_per_call is None
            else sets_per_call,
            mask_input_hw=prompts.mask_input_size,
        )
        self.mask_threshold = module.mask_threshold
        network = mobile_sam.encode if isinstance(module.image_encoder, mobile_sam.TinyViT) else encode
        # Another runtime may stand in for both before the first use.
        self.encoder_network: EncoderNetwork = partial(
            compiled(network, device) if compile_encoder else network, module.image_encoder
        )
        self.decoder_network: DecoderNetwork = partial(decoder.decode, module)
        if precision.dtype != torch.float32:
            lower(module.image_encoder, precision.dtype)

    @classmethod
    @torch.inference_mode(False)
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        *,
        device: torch.device,
        precision: PrecisionName = "auto",
        compile_encoder: bool = False,
    ) -> Sam:
        """Any SAM or MobileSAM in the official format, its architecture read off the weights; logs what runs where and
        why.

        Args:
            weights: the state dict, of any floating dtype. Float32 tensors are shared with the module, not copied.
            precision: as for `choose_precision`; fp16 gives way where this SAM overflows in it.
            compile_encoder: as for `Sam`.

        Raises:
            CheckpointError: the weights are not, or not exactly, those of a SAM.
            SettingsError: the device cannot run in that precision, or there is no compiler to compile with.
        """
        shape = shape_of(weights)
        chosen = choose_precision(device, precision, fp16_safe=shape.fp16_safe)
        sam = cls(load_sam(shape, weights), device, chosen, compile_encoder=compile_encoder)
        logger.info("%s on %s in %s: %s", shape.told, device, chosen.name, chosen.reason)
        return sam

    def _levels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return (self._encoded(pixels),)

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Compiled code is for one size of batch, so a batch is filled up to one of few sizes. A CPU is no faster with
        more than one image at a time."""
        if not self.compiled:
            return self.encoder_network(pixels)
        size = 1 if self.device.type == "cpu" else 1 << (len(pixels) - 1).bit_length()
        parts = []
        for part in pixels.split(size):
            filled = F.pad(part, (0, 0, 0, 0, 0, 0, 0, size - len(part)))
            parts.append(self.encoder_network(filled)[: len(part)])
        return torch.cat(parts)

    def _group(self, points: PointPrompts) -> Group:
        return (len(points.masks),)  # a set without a mask says so by an embedding of its own, not by an empty mask

    def _decode(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> list[Candidates]:
        features = {id(embedding): embedding.features for embedding, _ in sets}
        places = {key: place for place, key in enumerate(features)}
        points_xy, labels = self._frame.points([(embedding.image_hw, points) for embedding, points in sets])
        with autocast(self.device, FULL):
            logits, scores = self.decoder_network(
                torch.stack(list(features.values())),
                torch.tensor([places[id(embedding)] for embedding, _ in sets], dtype=torch.int64, device=self.device),
                torch.from_numpy(points_xy).to(self.device),
                torch.from_numpy(labels).to(self.device),
                self._mask_prompts(sets),
            )
        # The first output is SAM's single mask; the candidates are the others.
        outputs = [slice(0, 1) if len(points.boxes_xyxy) else slice(1, None) for _, points in sets]
        return [
            Candidates(of_set[which], predicted_iou[which])
            for of_set, predicted_iou, which in zip(logits.cpu().numpy(), scores.cpu().numpy(), outputs, strict=True)
        ]

    def _to_image(self, logits: Tensor, embedding: SamEmbedding) -> Tensor:
        full: Tensor = self.module.postprocess_masks(logits, embedding.input_hw, embedding.image_hw)
        return full
