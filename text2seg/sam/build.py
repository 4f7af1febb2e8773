"""Build a SAM module whose architecture is read off the shapes of a checkpoint's tensors.

`segment_anything` knows three architectures by name. The shapes tell all of it for these and for any other
SAM in the official format, the demo one included, so there is no table of names here. The same holds for MobileSAM,
which is SAM's prompt encoder and decoder behind another image encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from text2seg.errors import CheckpointError
from text2seg.packages import opened
from text2seg.runtime import Unfilled
from text2seg.sam.mobile_sam import CLASSIFIER, PATCH, TinyViT, TinyViTShape
from text2seg.weights.tensors import check_sizes, count_numbered

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
DECODER_HEADS = 8  # the one number that no shape tells; it is 8 in every published SAM


@dataclass(frozen=True, slots=True)
class SamShape:
    """The architecture of a SAM. Sizes in pixels are those of the model's square input frame."""

    width: int
    depth: int
    heads: int
    window: int
    global_blocks: tuple[int, ...]
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
    def fp16_safe(self) -> bool:
        """Whether the encoder can run in fp16. ViT-H's gives garbage in it (segment-anything issue #540)."""
        return self.width < 1280

    @property
    def told(self) -> str:
        """The architecture, for people."""
        return f"SAM with {self.depth} blocks of width {self.width}"

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> SamShape:
        """Read the architecture off a state dict.

        Raises:
            CheckpointError: the tensors are not those of a SAM; names the first one that is missing.
        """
        return _read(_read_shape, weights)


@dataclass(frozen=True, slots=True)
class MobileSamShape:
    """The architecture of a MobileSAM: TinyViT, and the rest as in `SamShape`."""

    encoder: TinyViTShape
    embedding: int
    mask_in_channels: int
    decoder_depth: int
    decoder_mlp: int
    candidates: int
    iou_depth: int
    iou_width: int

    @property
    def fp16_safe(self) -> bool:
        """Nothing is known against it."""
        return True

    @property
    def patch(self) -> int:
        """Pixels of the input frame to a cell of the features."""
        return PATCH

    @property
    def image_size(self) -> int:
        return self.encoder.image_size

    @property
    def told(self) -> str:
        """The architecture, for people."""
        return f"MobileSAM with stages of width {', '.join(map(str, self.encoder.widths))}"

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> MobileSamShape:
        """As for `SamShape`."""
        return _read(lambda w: cls(TinyViTShape.of(w, "image_encoder."), **_read_decoder(w)), weights)


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
"""The tensor whose shape tells a size of a SAM."""

AnyShape = SamShape | MobileSamShape
Shape = TypeVar("Shape", SamShape, MobileSamShape)


def shape_of(weights: Mapping[str, Tensor]) -> AnyShape:
    """The architecture of a SAM or a MobileSAM. Raises `CheckpointError` as `SamShape.of` does."""
    mobile = "image_encoder.patch_embed.seq.0.c.weight" in weights
    return MobileSamShape.of(weights) if mobile else SamShape.of(weights)


def _read(reader: Callable[[Mapping[str, Tensor]], Shape], weights: Mapping[str, Tensor]) -> Shape:
    try:
        shape = reader(weights)
    except KeyError as missing:
        raise CheckpointError(f"not a SAM checkpoint: it has no tensor {missing.args[0]!r:.80}") from None
    except (AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError):
        raise CheckpointError("not a SAM checkpoint: its tensors have other shapes than a SAM's") from None
    check_sizes(shape, "SAM", TOLD_BY)
    return shape


def _read_shape(weights: Mapping[str, Tensor]) -> SamShape:
    width, _, patch, _ = weights["image_encoder.patch_embed.proj.weight"].shape
    grid = weights["image_encoder.pos_embed"].shape[1]
    depth = count_numbered(weights, "image_encoder.blocks.{}.norm1.weight")
    spans = [(weights[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape[0] + 1) // 2 for i in range(depth)]
    head_width = weights["image_encoder.blocks.0.attn.rel_pos_h"].shape[1]
    windows = {span for span in spans if span != grid}
    return SamShape(
        width=width,
        depth=depth,
        heads=width // head_width,
        window=windows.pop() if windows else 0,
        global_blocks=tuple(i for i, span in enumerate(spans) if span == grid),
        image_size=grid * patch,
        patch=patch,
        **_read_decoder(weights),
    )


def _read_decoder(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What is the same in SAM and MobileSAM."""
    return {
        "embedding": weights["image_encoder.neck.0.weight"].shape[0],
        "mask_in_channels": weights["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        "decoder_depth": count_numbered(weights, "mask_decoder.transformer.layers.{}.norm1.weight"),
        "decoder_mlp": weights["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        "candidates": weights["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        "iou_depth": count_numbered(weights, "mask_decoder.iou_prediction_head.layers.{}.weight"),
        "iou_width": weights["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    }


def build_sam(shape: AnyShape) -> Any:
    """A `segment_anything` Sam module of this architecture, with fresh weights, in eval mode."""
    opened("segment_anything")
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = shape.image_size // shape.patch
    prompts = PromptEncoder(
        embed_dim=shape.embedding,
        image_embedding_size=(grid, grid),
        input_image_size=(shape.image_size, shape.image_size),
        mask_in_chans=shape.mask_in_channels,
    )
    decoder = MaskDecoder(
        num_multimask_outputs=shape.candidates,
        transformer=TwoWayTransformer(
            depth=shape.decoder_depth,
            embedding_dim=shape.embedding,
            mlp_dim=shape.decoder_mlp,
            num_heads=DECODER_HEADS,
        ),
        transformer_dim=shape.embedding,
        iou_head_depth=shape.iou_depth,
        iou_head_hidden_dim=shape.iou_width,
    )
    encoder = TinyViT(shape.encoder) if isinstance(shape, MobileSamShape) else _vit(shape)
    return Sam(encoder, prompts, decoder, list(PIXEL_MEAN), list(PIXEL_STD)).eval()


def _vit(shape: SamShape) -> Any:
    opened("segment_anything")
    from segment_anything.modeling import ImageEncoderViT

    return ImageEncoderViT(
        depth=shape.depth,
        embed_dim=shape.width,
        img_size=shape.image_size,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=shape.heads,
        patch_size=shape.patch,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=shape.global_blocks,
        window_size=shape.window,
        out_chans=shape.embedding,
    )


def load_sam(shape: AnyShape, weights: Mapping[str, Tensor]) -> Any:
    """The module of this architecture with these weights, as float32 on the CPU. Float32 tensors are not copied.

    Raises:
        CheckpointError: tensors are missing, superfluous, of another size or no floating-point numbers.
    """
    module, weights = _skeleton(shape, weights)
    fill(module, weights, "a SAM")
    module.pixel_mean, module.pixel_std = (
        torch.tensor(colour, dtype=torch.float32, device="cpu").view(-1, 1, 1) for colour in (PIXEL_MEAN, PIXEL_STD)
    )
    return module


def check_sam(weights: Mapping[str, Any]) -> None:
    """Hold the names, shapes and dtypes of tensors, whose numbers need not be there, against the SAM or MobileSAM that
    they tell. Raises `CheckpointError` as `load_sam` does."""
    module, needed = _skeleton(shape_of(weights), weights)
    _check_fit(module.state_dict(), needed, "a SAM")


def _skeleton(shape: AnyShape, weights: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The module without numbers, and those of the weights that it needs."""
    try:
        with Unfilled():
            module = build_sam(shape)
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError):
        raise CheckpointError(f"not a SAM checkpoint: no SAM has the architecture {shape}") from None
    if isinstance(shape, MobileSamShape):
        weights = {name: tensor for name, tensor in weights.items() if not _is_unused(name)}
    return module, weights


def fill(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Put weights in the place of a module's own, as float32 on the CPU; `what` it is, for the message.

    Raises:
        CheckpointError: tensors are missing, superfluous, of another size or no floating-point numbers.
    """
    wanted = module.state_dict()
    _check_fit(wanted, weights, what)
    module.load_state_dict({name: weights[name].to("cpu", torch.float32) for name in wanted}, assign=True)


def _check_fit(wanted: Mapping[str, Tensor], weights: Mapping[str, Any], what: str) -> None:
    faults = {
        "missing": [name for name in wanted if name not in weights],
        "unknown": [name for name in weights if name not in wanted],
        "unfit": [name for name in wanted if name in weights and not _fits(weights[name], wanted[name])],
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {fault}, as {names[0]!r:.80}" for fault, names in faults.items() if names)
        for name in faults["unfit"][:1]:
            found, expected = list(weights[name].shape), list(wanted[name].shape)
            told += f", which has shape {found}, expected {expected}" if found != expected else " of integers"
        hint = f"; save those of {what} alone" if faults["unknown"] and not faults["missing"] else ""
        raise CheckpointError(f"not the tensors of {what}: {told}{hint}")


def _is_unused(name: str) -> bool:
    """Whether a tensor of the published MobileSAM says nothing about images."""
    classifies = tuple(f"image_encoder.{part}" for part in CLASSIFIER)
    return name.startswith(classifies) or name.endswith((".num_batches_tracked", ".attention_bias_idxs"))


def _fits(tensor: Any, wanted: Tensor) -> bool:
    return tensor.shape == wanted.shape and tensor.is_floating_point()
