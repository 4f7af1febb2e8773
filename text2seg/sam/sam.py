"""SAM: its architecture read from a checkpoint, its module, and a stateless batched predictor.

`segment_anything` builds three architectures by name. The shapes of the tensors describe these and every other SAM in
the official format, so there is no table of names here. Candidates equal those of the stock `SamPredictor`, which takes
one image and one point set at a time.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from text2seg.errors import CheckpointError
from text2seg.records import Candidates, PointPrompts
from text2seg.runtime import FULL, Precision, Unfilled, autocast, import_part
from text2seg.sam import decoder
from text2seg.sam.base import (
    PIXEL_MEAN,
    PIXEL_STD,
    AnySam,
    Frame,
    Group,
    LoadedModule,
    SamEmbedding,
    no_candidates,
)
from text2seg.sam.encoder import compiled, encode
from text2seg.sam.upscaling import stretched
from text2seg.weights.architecture import check_sizes, count_numbered

if TYPE_CHECKING:
    from typing_extensions import Self

DECODER_HEADS = 8
"""Attention heads of the decoder. No tensor's shape contains the number; it is 8 in every published SAM."""
TOLD_BY = {
    "width": "image_encoder.patch_embed.proj.weight",
    "patch": "image_encoder.patch_embed.proj.weight",
    "image_size": "image_encoder.pos_embed",
    "heads": "image_encoder.blocks.0.attn.rel_pos_h",
    "embedding": "image_encoder.neck.0.weight",
    "mask_in_channels": "prompt_encoder.mask_downscaling.3.weight",
    "decoder_mlp": "mask_decoder.transformer.layers.0.mlp.lin1.weight",
    "candidates": "mask_decoder.mask_tokens.weight",
    "iou_width": "mask_decoder.iou_prediction_head.layers.0.weight",
}
"""Tensor whose shape determines each size, for error messages."""

EncoderNetwork = Callable[[Tensor], Tensor]
"""Function from frames [B, 3, side, side] to features [B, C, h, w]."""
DecoderNetwork = Callable[..., tuple[Tensor, Tensor]]
"""`decoder.decode` of one module: embeddings, image index, points, labels and masks to logits and scores. A network may
ignore `above` and return the logits of all sets."""


def modeling() -> ModuleType:
    """Import the networks of `segment_anything`, without the rest of the package (see `import_part`)."""
    return import_part("segment_anything", "modeling")


@dataclass(frozen=True, slots=True)
class Architecture(ABC):
    """Architecture of a SAM: an image encoder, and SAM's prompt encoder and mask decoder. Subclasses add the sizes of
    the encoder. `image_size` is the side of the input frame in pixels, `patch` the pixels of the frame per cell of the
    embedding along a side."""

    image_size: int
    patch: int
    embedding: int
    mask_in_channels: int
    decoder_depth: int
    decoder_mlp: int
    candidates: int
    iou_depth: int
    iou_width: int

    @property
    @abstractmethod
    def description(self) -> str:
        """One line about the architecture, for the log."""

    @property
    def fp16_safe(self) -> bool:
        """Whether the encoder can run in fp16."""
        return True

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Self:
        """Read the architecture off the shapes of a state dict.

        Raises:
            CheckpointError: the tensors are not those of a SAM; names the first one that is missing.
        """
        try:
            shape = cls._read(weights)
        except KeyError as missing:
            raise CheckpointError(f"not a SAM checkpoint: it has no tensor {missing.args[0]!r:.80}") from None
        except (AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError):
            raise CheckpointError("not a SAM checkpoint: its tensors have other shapes than a SAM's") from None
        check_sizes(shape, "SAM", TOLD_BY)
        return shape

    @classmethod
    @abstractmethod
    def _read(cls, weights: Mapping[str, Tensor]) -> Self:
        """Read the architecture; errors on unfit tensors are those of dict and shape access."""

    @abstractmethod
    def build_encoder(self) -> nn.Module:
        """Build the image encoder with fresh weights."""

    def uses(self, name: str) -> bool:
        """Return whether the module needs a tensor of the published file."""
        return True


@dataclass(frozen=True, slots=True)
class SamShape(Architecture):
    """Architecture of a SAM with a plain ViT encoder."""

    width: int
    depth: int
    heads: int
    window: int
    global_blocks: tuple[int, ...]

    @property
    def fp16_safe(self) -> bool:
        """Whether the encoder can run in fp16. ViT-H overflows in it (segment-anything issue #540)."""
        return self.width < 1280

    @property
    def description(self) -> str:
        return f"SAM with {self.depth} blocks of width {self.width}"

    @classmethod
    def _read(cls, weights: Mapping[str, Tensor]) -> SamShape:
        width, _, patch, _ = weights["image_encoder.patch_embed.proj.weight"].shape
        grid = weights["image_encoder.pos_embed"].shape[1]
        depth = count_numbered(weights, "image_encoder.blocks.{}.norm1.weight")
        spans = [(weights[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape[0] + 1) // 2 for i in range(depth)]
        head_width = weights["image_encoder.blocks.0.attn.rel_pos_h"].shape[1]
        windows = {span for span in spans if span != grid}
        return cls(
            width=width,
            depth=depth,
            heads=width // head_width,
            window=windows.pop() if windows else 0,
            global_blocks=tuple(i for i, span in enumerate(spans) if span == grid),
            image_size=grid * patch,
            patch=patch,
            **read_decoder(weights),
        )

    def build_encoder(self) -> nn.Module:
        encoder: nn.Module = modeling().ImageEncoderViT(
            depth=self.depth,
            embed_dim=self.width,
            img_size=self.image_size,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=self.heads,
            patch_size=self.patch,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=self.global_blocks,
            window_size=self.window,
            out_chans=self.embedding,
        )
        return encoder


def read_decoder(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Read the sizes of the neck, the prompt encoder and the mask decoder, by the field names of `Architecture`."""
    return {
        "embedding": weights["image_encoder.neck.0.weight"].shape[0],
        "mask_in_channels": weights["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        "decoder_depth": count_numbered(weights, "mask_decoder.transformer.layers.{}.norm1.weight"),
        "decoder_mlp": weights["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        "candidates": weights["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        "iou_depth": count_numbered(weights, "mask_decoder.iou_prediction_head.layers.{}.weight"),
        "iou_width": weights["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    }


def build_sam(shape: Architecture) -> Any:
    """Build a `segment_anything` Sam module of this architecture, with fresh weights, in eval mode."""
    networks = modeling()
    grid = shape.image_size // shape.patch
    prompts = networks.PromptEncoder(
        embed_dim=shape.embedding,
        image_embedding_size=(grid, grid),
        input_image_size=(shape.image_size, shape.image_size),
        mask_in_chans=shape.mask_in_channels,
    )
    mask_decoder = networks.MaskDecoder(
        num_multimask_outputs=shape.candidates,
        transformer=networks.TwoWayTransformer(
            depth=shape.decoder_depth,
            embedding_dim=shape.embedding,
            mlp_dim=shape.decoder_mlp,
            num_heads=DECODER_HEADS,
        ),
        transformer_dim=shape.embedding,
        iou_head_depth=shape.iou_depth,
        iou_head_hidden_dim=shape.iou_width,
    )
    return networks.Sam(shape.build_encoder(), prompts, mask_decoder, list(PIXEL_MEAN), list(PIXEL_STD)).eval()


def load_sam(shape: Architecture, weights: Mapping[str, Tensor]) -> Any:
    """Build the module and load the weights, in float32 on the CPU. Float32 tensors are not copied.

    Raises:
        CheckpointError: tensors are missing, unknown, of another shape, or not floating-point.
    """
    module, weights = _skeleton(shape, weights)
    fill(module, weights, "a SAM")
    module.pixel_mean, module.pixel_std = (
        torch.tensor(colour, dtype=torch.float32, device="cpu").view(-1, 1, 1) for colour in (PIXEL_MEAN, PIXEL_STD)
    )
    return module


def _skeleton(shape: Architecture, weights: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Build the module without memory for its weights, and return it with the tensors that it needs."""
    try:
        with Unfilled():
            module = build_sam(shape)
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError):
        raise CheckpointError(f"not a SAM checkpoint: no SAM has the architecture {shape}") from None
    return module, {name: tensor for name, tensor in weights.items() if shape.uses(name)}


def fill(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Replace a module's parameters and buffers by the weights, in float32 on the CPU.

    Args:
        what: the kind of model, with its article, for the error message.

    Raises:
        CheckpointError: tensors are missing, unknown, of another shape, or not floating-point.
    """
    expected = module.state_dict()
    check_fit(expected, weights, what)
    module.load_state_dict({name: weights[name].to("cpu", torch.float32) for name in expected}, assign=True)


def check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Any], what: str) -> None:
    """Raise `CheckpointError` unless the tensors have the names and shapes of a state dict; arguments as for `fill`."""
    faults = {
        "missing": [name for name in expected if name not in weights],
        "unknown": [name for name in weights if name not in expected],
        "unfit": [name for name in expected if name in weights and not _fits(weights[name], expected[name])],
    }
    if any(faults.values()):
        found = "; ".join(f"{len(names)} {fault}, as {names[0]!r:.80}" for fault, names in faults.items() if names)
        for name in faults["unfit"][:1]:
            shape, right = list(weights[name].shape), list(expected[name].shape)
            found += f", which has shape {shape}, expected {right}" if shape != right else " of integers"
        hint = f"; save those of {what} alone" if faults["unknown"] and not faults["missing"] else ""
        raise CheckpointError(f"not the tensors of {what}: {found}{hint}")


def _fits(tensor: Any, expected: Tensor) -> bool:
    return tensor.shape == expected.shape and tensor.is_floating_point()


class Sam(AnySam):
    """SAM on one device. The module is a `segment_anything` Sam."""

    family = "SAM"
    architecture: ClassVar[type[Architecture]] = SamShape

    def __init__(
        self,
        module: Any,
        device: torch.device,
        precision: Precision = FULL,
        *,
        sets_per_call: int | None = None,
        compile_encoder: bool = False,
    ) -> None:
        super().__init__(module, device, precision, sets_per_call=sets_per_call, compile_encoder=compile_encoder)
        self.mask_threshold = module.mask_threshold
        # ONNX Runtime may replace both networks before their first use (text2seg.loading).
        network = self._encoder_function()
        self.encoder_network: EncoderNetwork = partial(
            compiled(network, device) if compile_encoder else network, module.image_encoder
        )
        self.decoder_network: DecoderNetwork = partial(decoder.decode, module)

    @classmethod
    def check(cls, weights: Mapping[str, Any]) -> None:
        module, needed = _skeleton(cls.architecture.of(weights), weights)
        check_fit(module.state_dict(), needed, "a SAM")

    @classmethod
    def _load(cls, weights: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> LoadedModule:
        shape = cls.architecture.of(weights)
        return LoadedModule(load_sam(shape, weights), shape.description, shape.fp16_safe)

    @classmethod
    def _encoder_function(cls) -> Callable[..., Tensor]:
        """Return the function from the image encoder and frames [B, 3, side, side] to features [B, C, h, w]."""
        return encode

    def _encoder(self) -> nn.Module:
        encoder: nn.Module = self.module.image_encoder
        return encoder

    def _input_frame(self) -> Frame:
        return Frame(self.module.image_encoder.img_size)

    def _levels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return (self._encoded(pixels),)

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Encode frames. Compiled code is for one batch size, so batches are padded to one of a few sizes. A CPU is no
        faster with more than one image at a time."""
        if not self.compiled:
            return self.encoder_network(pixels)
        size = 1 if self.device.type == "cpu" else 1 << (len(pixels) - 1).bit_length()
        parts = []
        for part in pixels.split(size):
            padded = F.pad(part, (0, 0, 0, 0, 0, 0, 0, size - len(part)))
            parts.append(self.encoder_network(padded)[: len(part)])
        return torch.cat(parts)

    def _group(self, points: PointPrompts) -> Group:
        return (len(points.masks),)  # SAM encodes "no mask" by an embedding of its own, not by an empty mask

    def _decode(
        self, sets: Sequence[tuple[SamEmbedding, PointPrompts]], above: float | None = None
    ) -> list[Candidates]:
        features = {id(embedding): embedding.features for embedding, _ in sets}
        places = {key: place for place, key in enumerate(features)}
        points_xy, labels = self._frame.points([(embedding.image_hw, points) for embedding, points in sets])
        # The first output is SAM's single mask; the candidates are the others.
        outputs = [slice(0, 1) if len(points.boxes_xyxy) else slice(1, None) for _, points in sets]
        with autocast(self.device, FULL):
            logits, scores = self.decoder_network(
                torch.stack(list(features.values())),
                torch.tensor([places[id(embedding)] for embedding, _ in sets], dtype=torch.int64, device=self.device),
                torch.from_numpy(points_xy).to(self.device),
                torch.from_numpy(labels).to(self.device),
                self._mask_prompts(sets),
                **({} if above is None or any(len(points.boxes_xyxy) for _, points in sets) else {"above": above}),
            )
        of_sets, predicted_iou = logits.cpu().numpy(), scores.cpu().numpy()
        good = [
            above is None or bool((iou[which] > above).any()) for iou, which in zip(predicted_iou, outputs, strict=True)
        ]
        rows = np.arange(len(sets)) if len(of_sets) == len(sets) else np.cumsum(good) - 1
        return [
            Candidates(of_sets[row][which], iou[which]) if is_good else no_candidates(of_sets)
            for row, which, iou, is_good in zip(rows, outputs, predicted_iou, good, strict=True)
        ]

    @torch.no_grad()
    def predicted_iou(self, embedding: SamEmbedding, points: PointPrompts, *, single: bool) -> tuple[float, ...]:
        points_xy, labels = self._frame.points([(embedding.image_hw, points)])
        with autocast(self.device, FULL):
            _, scores = self.decoder_network(
                embedding.features[None],
                torch.zeros(1, dtype=torch.int64, device=self.device),
                torch.from_numpy(points_xy).to(self.device),
                torch.from_numpy(labels).to(self.device),
                None,
            )
        return tuple(scores[0, slice(0, 1) if single else slice(1, None)].tolist())

    def _axis(self, cells: Tensor, filled: int, length: int) -> Tensor:
        return stretched(stretched(cells, self._frame.side)[:filled], length)
