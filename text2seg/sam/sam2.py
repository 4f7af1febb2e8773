"""SAM 2 and SAM 2.1 for single images: networks of `transformers`, built from a state dict.

`memory.py` adds what SAM 2 remembers of the earlier frames of a video.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from text2seg.errors import CheckpointError, SettingsError
from text2seg.records import Candidates, Image, PointPrompts
from text2seg.runtime import FULL, autocast
from text2seg.sam.base import (
    AnySam,
    Frame,
    Group,
    LoadedModule,
    SamEmbedding,
    StretchedFrame,
    no_candidates,
)
from text2seg.sam.sam import fill
from text2seg.sam.upscaling import stretched
from text2seg.weights.architecture import check_patches, checked_config, count_numbered

BLOCK = "vision_encoder.backbone.blocks.{}."
POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
IMAGE_POSITIONS = "shared_image_embedding.positional_embedding"

PUBLISHED: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    (96, (1, 2, 7, 2)): (1, (8, 4, 14, 7), (5, 7, 9)),
    (96, (1, 2, 11, 2)): (1, (8, 4, 14, 7), (7, 10, 13)),
    (112, (2, 3, 16, 3)): (2, (8, 4, 14, 7), (12, 16, 20)),
    (144, (2, 6, 36, 4)): (2, (8, 4, 16, 8), (23, 33, 43)),
}
"""Published Hieras (tiny, small, base-plus, large). The key is the width of the first stage and the number of blocks of
each stage. The value is what no tensor's shape contains: heads of the first stage, window of each stage, and blocks
with global attention."""

VIDEO_ONLY = re.compile(
    r"memory_|mask_downsample|object_pointer_proj|temporal_positional_encoding|no_memory_positional_encoding"
    r"|no_object_pointer|occlusion_spatial_embedding|maskmem_|obj_ptr|no_mem_pos_enc|no_obj_"
)
"""Starts of the names, in both formats, of tensors that are only needed for SAM 2's memory of earlier frames."""

RENAMED = (
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^(memory_attention)\.norm\.", r"\1.layer_norm."),
    (r"^memory_encoder\.o_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"(_fuser\.layers\.\d+)\.gamma$", r"\1.scale"),
    (r"(_fuser\.layers\.\d+)\.dwconv\.", r"\1.depthwise_conv."),
    (r"(_fuser\.layers\.\d+)\.norm\.", r"\1.layer_norm."),
    (r"(_fuser\.layers\.\d+)\.pwconv(\d)\.", r"\1.pointwise_conv\2."),
    (r"(_head|_mlps\.\d+|_pointer_proj)\.layers\.0\.", r"\1.proj_in."),
    (r"(_head|_mlps\.\d+|_pointer_proj)\.layers\.2\.", r"\1.proj_out."),
    (r"(_head|_mlps\.\d+|_pointer_proj)\.layers\.1\.", r"\1.layers.0."),
)
"""Patterns in the tensor names of Meta's files, and their replacements in the names of `transformers`."""


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of either format by the names of `transformers`, without those of SAM 2's memory."""
    is_of_meta = _is_of_meta(weights)
    needed = {name: tensor for name, tensor in weights.items() if not VIDEO_ONLY.match(name)}
    renamed = {_renamed(name) if is_of_meta else name: tensor for name, tensor in needed.items()}
    embeddings = [name for name in renamed if re.fullmatch(r"prompt_encoder\.point_embeddings\.\d\.weight", name)]
    if embeddings:
        renamed["prompt_encoder.point_embed.weight"] = torch.cat([renamed.pop(name) for name in sorted(embeddings)])
    for name, twin in ((POSITIONS, IMAGE_POSITIONS), (IMAGE_POSITIONS, POSITIONS)):
        if name in renamed:
            renamed.setdefault(twin, renamed[name])  # the same tensor; some files contain it under one name only
    return renamed


def _is_of_meta(weights: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("image_encoder.trunk.") for name in weights)


def memory_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of SAM 2's memory, which `to_transformers` leaves out, by the names of `transformers`; none if
    the checkpoint is one for single images."""
    only = {name: tensor for name, tensor in weights.items() if VIDEO_ONLY.match(name)}
    return {_renamed(name): tensor for name, tensor in only.items()} if _is_of_meta(weights) else only


def _renamed(name: str) -> str:
    if match := re.fullmatch(r"(memory_encoder\.mask_downsampler\.)encoder\.(\d+)\.(weight|bias)", name):
        # A convolution, its norm and an activation without tensors take turns in Meta's list.
        place, part = divmod(int(match[2]), 3)
        layer = "final_conv" if int(match[2]) == 12 else f"layers.{place}.{'layer_norm' if part else 'conv'}"
        return f"{match[1]}{layer}.{match[3]}"
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def config_of(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Any:
    """Return the `Sam2Config` of a checkpoint.

    Args:
        weights: tensors by the names of `transformers`. Without a config.json, their shapes determine the architecture.
        config: content of the config.json, which may be that of the video model.

    Raises:
        CheckpointError: no published SAM 2 has these shapes, or the config.json is not that of a SAM 2.
        SettingsError: `transformers` is missing.
    """
    config_class = import_transformers().Sam2Config
    if config is None:
        return config_class(vision_config=_vision_config(weights))
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    try:
        safe = checked_config(config, "the config.json beside the weights")
        return config_class(**{part: dict(safe[part]) for part in parts if part in safe})
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the config.json beside the weights is not that of a SAM 2: {error}") from error


def _vision_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        width_of_block = [
            weights[BLOCK.format(block) + "attn.proj.weight"].shape[0]
            for block in range(count_numbered(weights, BLOCK + "attn.proj.weight"))
        ]
        background = list(weights["vision_encoder.backbone.pos_embed"].shape[-2:])
    except KeyError as missing:
        raise CheckpointError(f"not a SAM 2 checkpoint: it has no tensor {missing.args[0]!r}") from None
    widths = sorted(set(width_of_block))
    depths = tuple(width_of_block.count(width) for width in widths)
    if (widths[0], depths) not in PUBLISHED:
        shape = f"width {widths[0]}, blocks {', '.join(map(str, depths))}"
        raise CheckpointError(f"no published SAM 2 has this shape ({shape}); put its config.json beside the weights")
    heads, windows, global_blocks = PUBLISHED[widths[0], depths]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "num_attention_heads": heads,
        "blocks_per_stage": list(depths),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": list(accumulate([heads, 2, 2, 2], lambda a, b: a * b)),
        "window_size_per_stage": list(windows),
        "window_positional_embedding_background_size": background,
        "global_attention_blocks": list(global_blocks),
    }
    return {"model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": widths[::-1]}


def load_sam2(config: Any, weights: Mapping[str, Tensor]) -> Any:
    """Build a `Sam2Model` and load the weights, in float32 on the CPU. Float32 tensors are not copied.

    Raises:
        CheckpointError: tensors are missing, unknown, of another shape, or not floating-point.
    """
    try:
        _check_attention(config.vision_config.backbone_config)
        with torch.device("meta"):
            module = import_transformers().Sam2Model(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"not a SAM 2 checkpoint: no model has the architecture in config.json ({error})"
        ) from error
    fill(module, weights, "a SAM 2")
    return module.eval()


def _check_attention(backbone: Any) -> None:
    """Raise `CheckpointError` if a block with global attention has too many patches."""
    sides = backbone.image_size if isinstance(backbone.image_size, (list, tuple)) else (backbone.image_size,) * 2
    grid = [side // step for side, step in zip(sides, backbone.patch_stride, strict=True)]
    first = 0
    for stage, blocks in enumerate(backbone.blocks_per_stage):
        if 0 < stage <= backbone.num_query_pool_stages:
            grid = [side // step for side, step in zip(grid, backbone.query_stride, strict=True)]
        if any(first <= block < first + blocks for block in backbone.global_attention_blocks):
            check_patches((grid[0], grid[1]), f"not a SAM 2 checkpoint: stage {stage + 1} of its architecture")
        first += blocks


def import_transformers() -> Any:
    """Return the package `transformers`. Raises `SettingsError` if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise SettingsError('SAM 2 needs transformers: pip install "text2seg[sam2]"') from error
    return transformers


class Sam2(AnySam):
    """SAM 2 or SAM 2.1 on one device, for single images. The module is a `transformers` Sam2Model.

    Checkpoints are files of Meta or of `transformers`. Without a config.json the architecture must be a published one,
    because no tensor's shape contains heads and windows.
    """

    family = "SAM 2"
    formats: ClassVar = {
        "image_encoder.trunk.patch_embed.proj.weight": "a SAM 2 in Meta's format",
        "vision_encoder.backbone.patch_embed.projection.weight": "a SAM 2 of transformers",
    }
    can_compile = False
    memory_per_set = 2  # about 80 MB per set on a CPU, because finer features are copied
    memory_weights: Mapping[str, Tensor] = MappingProxyType({})
    """Tensors of the memory of earlier frames, on the CPU; about 30 MB."""
    config: Mapping[str, Any] | None = None
    """Content of the config.json beside the weights."""
    video_module: Any = None
    """The network with its memory, once `memory.VideoMemory` has built it."""

    def _keep(self, weights: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> None:
        self.memory_weights, self.config = memory_of(weights), config

    def framed(self, images: Sequence[Image]) -> Tensor:
        """Return images as the encoder takes them, float32 [B, 3, side, side] on the device."""
        return self._frame.framed(images, self._mean, self._std)[0]

    @classmethod
    def reads_config(cls, names: Iterable[str]) -> bool:
        return any(name.startswith("vision_encoder.") for name in names)

    @classmethod
    def _load(cls, weights: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> LoadedModule:
        weights = to_transformers(weights)
        module = load_sam2(config_of(weights, config), weights)
        return LoadedModule(module, f"SAM 2 with {len(module.vision_encoder.backbone.blocks)} blocks")

    def _encoder(self) -> nn.Module:
        encoder: nn.Module = self.module.vision_encoder
        return encoder

    def _input_frame(self) -> Frame:
        return StretchedFrame(self.module.prompt_encoder.input_image_size)

    def _levels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        finest, finer, features = self.module.vision_encoder(pixels).fpn_hidden_states
        decoder = self.module.mask_decoder
        with autocast(self.device, FULL):
            # An image without earlier frames gets the embedding for "no memory" in all cells.
            features = features.float() + self.module.no_memory_embedding.view(1, -1, 1, 1)
            return features, decoder.conv_s0(finest.float()), decoder.conv_s1(finer.float())

    def _group(self, points: PointPrompts) -> Group:
        # transformers pads shorter sets with zeros that the decoder attends to, which changes the masks. So only sets
        # of the same size are decoded together.
        return (len(points.masks), len(points.boxes_xyxy), len(points))

    def _decode(
        self, sets: Sequence[tuple[SamEmbedding, PointPrompts]], above: float | None = None
    ) -> list[Candidates]:
        """Decode sets as one batch. Each has its own copy of the features of its image."""
        xy, labels, boxes = zip(*(self._prompts(embedding, points) for embedding, points in sets), strict=True)
        boxed, pointed = boxes[0] is not None, len(sets[0][1]) > 0
        levels = zip(*((*embedding.fine, embedding.features) for embedding, _ in sets), strict=True)
        with autocast(self.device, FULL):
            outputs = self.module(
                image_embeddings=[torch.stack(level) for level in levels],
                input_points=torch.stack(xy)[:, None].to(self.device) if pointed else None,
                input_labels=torch.stack(labels)[:, None].to(self.device) if pointed else None,
                input_boxes=torch.stack(boxes)[:, None].to(self.device) if boxed else None,
                input_masks=self._mask_prompts(sets),
                multimask_output=not boxed,
            )
        logits, scores = outputs.pred_masks[:, 0].float().cpu().numpy(), outputs.iou_scores[:, 0].float().cpu().numpy()
        return [
            Candidates(of_set, iou) if above is None or (iou > above).any() else no_candidates(logits)
            for of_set, iou in zip(logits, scores, strict=True)
        ]

    @torch.no_grad()
    def predicted_iou(self, embedding: SamEmbedding, points: PointPrompts, *, single: bool) -> tuple[float, ...]:
        xy, labels, box = self._prompts(embedding, points)
        with autocast(self.device, FULL):
            outputs = self.module(
                image_embeddings=[level[None] for level in (*embedding.fine, embedding.features)],
                input_points=xy[None, None].to(self.device) if len(points) else None,
                input_labels=labels[None, None].to(self.device) if len(points) else None,
                input_boxes=None if box is None else box[None, None].to(self.device),
                multimask_output=not single,
            )
        return tuple(outputs.iou_scores[0, 0].float().tolist())

    def _prompts(self, embedding: SamEmbedding, points: PointPrompts) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return points [N, 2] and labels [N], and the box [4] or None, in pixels of the frame."""
        xy = torch.from_numpy(self._frame.place(points.xy, embedding.image_hw))
        labels = torch.tensor(points.labels, dtype=torch.int64, device="cpu")
        if not len(points.boxes_xyxy):
            return xy, labels, None
        corners = self._frame.place(points.boxes_xyxy.reshape(2, 2), embedding.image_hw)
        return xy, labels, torch.from_numpy(corners).reshape(4)

    def _axis(self, cells: Tensor, filled: int, length: int) -> Tensor:
        return stretched(cells, length)
