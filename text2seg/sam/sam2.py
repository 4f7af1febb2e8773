"""SAM 2 and 2.1 on single images, through `transformers`: built from tensors, with the interface of `sam.base`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.errors import CheckpointError, SettingsError
from text2seg.records import Candidates, PointPrompts
from text2seg.runtime import FULL, Precision, PrecisionName, autocast, choose_precision
from text2seg.sam.base import AnySam, Group, SamEmbedding, StretchedFrame, lower, sets_that_fit
from text2seg.sam.build import PIXEL_MEAN, PIXEL_STD, fill
from text2seg.weights.tensors import check_cells, checked_config, count_numbered

BLOCK = "vision_encoder.backbone.blocks.{}."
POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
IMAGE_POSITIONS = "shared_image_embedding.positional_embedding"

PUBLISHED: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    (96, (1, 2, 7, 2)): (1, (8, 4, 14, 7), (5, 7, 9)),
    (96, (1, 2, 11, 2)): (1, (8, 4, 14, 7), (7, 10, 13)),
    (112, (2, 3, 16, 3)): (2, (8, 4, 14, 7), (12, 16, 20)),
    (144, (2, 6, 36, 4)): (2, (8, 4, 16, 8), (23, 33, 43)),
}
"""What no shape tells of the tiny, small, base-plus and large Hiera, by width and blocks of each stage: heads of the
first stage, windows of each, and the blocks that attend to everything."""

VIDEO_ONLY = re.compile(
    r"memory_|mask_downsample|object_pointer_proj|temporal_positional_encoding|no_memory_positional_encoding"
    r"|no_object_pointer|occlusion_spatial_embedding|maskmem_|obj_ptr|no_mem_pos_enc|no_obj_"
)
"""Beginnings of tensors' names, in both formats, that only SAM 2's memory of earlier frames needs."""

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
    (r"(_head|_mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"(_head|_mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
    (r"(_head|_mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
)
"""Patterns in the names of Meta's files, and what stands there in those of `transformers`."""


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names of `transformers`, whichever of the two formats they come in; those of SAM 2's memory
    left out."""
    own = any(name.startswith("image_encoder.trunk.") for name in weights)
    needed = {name: tensor for name, tensor in weights.items() if not VIDEO_ONLY.match(name)}
    renamed = {_renamed(name) if own else name: tensor for name, tensor in needed.items()}
    kinds = [name for name in renamed if re.fullmatch(r"prompt_encoder\.point_embeddings\.\d\.weight", name)]
    if kinds:
        renamed["prompt_encoder.point_embed.weight"] = torch.cat([renamed.pop(name) for name in sorted(kinds)])
    for name, twin in ((POSITIONS, IMAGE_POSITIONS), (IMAGE_POSITIONS, POSITIONS)):
        if name in renamed:
            renamed.setdefault(twin, renamed[name])  # one tensor that some files hold twice
    return renamed


def _renamed(name: str) -> str:
    for pattern, instead in RENAMED:
        name = re.sub(pattern, instead, name)
    return name


def config_of(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Any:
    """The `Sam2Config` of a config.json, which may be that of the video model; else read off the tensors' shapes.

    Raises:
        CheckpointError: the shapes are none of the published ones, or the config is none of a SAM 2.
        SettingsError: `transformers` is missing.
    """
    kind = _transformers().Sam2Config
    if config is None:
        return kind(vision_config=_vision_config(weights))
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    try:
        safe = checked_config(config, "the config.json beside the weights")
        return kind(**{part: dict(safe[part]) for part in parts if part in safe})
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the config.json beside the weights is not that of a SAM 2: {error}") from error


def _vision_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        after = [
            weights[BLOCK.format(block) + "attn.proj.weight"].shape[0]
            for block in range(count_numbered(weights, BLOCK + "attn.proj.weight"))
        ]
        background = list(weights["vision_encoder.backbone.pos_embed"].shape[-2:])
    except KeyError as missing:
        raise CheckpointError(f"not a SAM 2 checkpoint: it has no tensor {missing.args[0]!r}") from None
    widths = sorted(set(after))
    depths = tuple(after.count(width) for width in widths)
    if (widths[0], depths) not in PUBLISHED:
        told = f"width {widths[0]}, blocks {', '.join(map(str, depths))}"
        raise CheckpointError(f"no published SAM 2 has this shape ({told}); put its config.json beside the weights")
    heads, windows, everywhere = PUBLISHED[widths[0], depths]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "num_attention_heads": heads,
        "blocks_per_stage": list(depths),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": list(accumulate([heads, 2, 2, 2], lambda a, b: a * b)),
        "window_size_per_stage": list(windows),
        "window_positional_embedding_background_size": background,
        "global_attention_blocks": list(everywhere),
    }
    return {"model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": widths[::-1]}


def load_sam2(config: Any, weights: Mapping[str, Tensor]) -> Any:
    """A `Sam2Model` of this architecture with these weights, as float32 on the CPU. Float32 tensors are not copied.

    Raises:
        CheckpointError: tensors are missing, superfluous, of another size or no floating-point numbers.
    """
    try:
        _check_attention(config.vision_config.backbone_config)
        with torch.device("meta"):
            module = _transformers().Sam2Model(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"not a SAM 2 checkpoint: no model has the architecture in config.json ({error})"
        ) from error
    fill(module, weights, "a SAM 2")
    return module.eval()


def _check_attention(backbone: Any) -> None:
    """Raise `CheckpointError` where a block attends to more of an image at once than can be computed."""
    sides = backbone.image_size if isinstance(backbone.image_size, (list, tuple)) else (backbone.image_size,) * 2
    grid = [side // step for side, step in zip(sides, backbone.patch_stride, strict=True)]
    first = 0
    for stage, blocks in enumerate(backbone.blocks_per_stage):
        if 0 < stage <= backbone.num_query_pool_stages:
            grid = [side // step for side, step in zip(grid, backbone.query_stride, strict=True)]
        if any(first <= block < first + blocks for block in backbone.global_attention_blocks):
            check_cells((grid[0], grid[1]), f"not a SAM 2 checkpoint: stage {stage + 1} of its architecture")
        first += blocks


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SettingsError('SAM 2 needs transformers: pip install "text2seg[sam2]"') from error
    return transformers


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
            # Without frames before it, an image gets one embedding for "no memory" everywhere.
            features = features.float() + self.module.no_memory_embedding.view(1, -1, 1, 1)
            return features, decoder.conv_s0(finest.float()), decoder.conv_s1(finer.float())

    def _group(self, points: PointPrompts) -> Group:
        # transformers fills short sets up with tokens of zeros that the decoder then attends to, which changes the
        # answer; so sets are answered with others of their size.
        return (len(points.masks), len(points.boxes_xyxy), len(points))

    def _decode(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> list[Candidates]:
        """Each set is one of the batch, with a copy of its image's features."""
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

    def _to_image(self, logits: Tensor, embedding: SamEmbedding) -> Tensor:
        return F.interpolate(logits, embedding.image_hw, mode="bilinear", align_corners=False)
