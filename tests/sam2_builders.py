"""Small SAM 2s with random weights, by the names of `transformers` and by those of Meta's files."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

SIDE = 128


def small_config(hidden: int = 32) -> Sam2Config:
    """Windows that do not divide their grid, more than one block in a stage, one that attends to everything."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 6, 3],
        "global_attention_blocks": [4],
        "image_size": [SIDE, SIDE],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": hidden,
    }
    prompts = {"hidden_size": hidden, "image_size": SIDE, "mask_input_channels": 8}
    decoder = {"hidden_size": hidden, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 24}
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


def small_video_config() -> Sam2VideoConfig:
    """The same network with a memory. Its object pointers are split in two: the channels of a memory are always 64."""
    image = small_config(hidden=128)
    return Sam2VideoConfig(
        vision_config=image.vision_config.to_dict(),
        prompt_encoder_config=image.prompt_encoder_config.to_dict(),
        mask_decoder_config=image.mask_decoder_config.to_dict(),
        image_size=SIDE,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=48,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=128,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=64,
    )


def random_weights(config: Sam2Config | Sam2VideoConfig, *, seed: int = 0) -> dict[str, Tensor]:
    """A state dict in which no tensor is zero or one throughout, as those of a fresh model are."""
    with torch.device("meta"):
        wanted = (Sam2VideoModel if isinstance(config, Sam2VideoConfig) else Sam2Model)(config).state_dict()
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _random(name, tensor.shape, generator) for name, tensor in wanted.items()}
    positions = "shared_image_embedding.positional_embedding"
    weights[positions] = weights["prompt_encoder.shared_embedding.positional_embedding"]
    return weights


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise  # the scale of a norm
    if "embed" in name or "token" in name:
        return 0.5 * noise
    return noise * shape[1:].numel() ** -0.5


def stock_model(config: Sam2Config | Sam2VideoConfig, weights: dict[str, Tensor]) -> Any:
    model = (Sam2VideoModel if isinstance(config, Sam2VideoConfig) else Sam2Model)(config).eval()
    model.load_state_dict(weights)
    return model


def as_meta_wrote_it(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names of facebookresearch/sam2, with some that only its memory needs."""
    found = {}
    if "no_object_pointer" not in weights:
        found = {"maskmem_tpos_enc": torch.ones(7, 1, 1, 64), "obj_ptr_proj.layers.0.weight": torch.ones(256, 256)}
        found |= {"no_mem_pos_enc": torch.ones(1, 1, 256), "memory_encoder.out_proj.weight": torch.ones(64, 256, 1, 1)}
    for name, tensor in weights.items():
        if name == "shared_image_embedding.positional_embedding":
            continue
        if name == "prompt_encoder.point_embed.weight":
            found |= {f"sam_prompt_encoder.point_embeddings.{n}.weight": row[None] for n, row in enumerate(tensor)}
            continue
        found[_by_meta(name)] = tensor
    return found


MEMORY_BY_META = {
    "memory_temporal_positional_encoding": "maskmem_tpos_enc",
    "no_memory_positional_encoding": "no_mem_pos_enc",
    "no_object_pointer": "no_obj_ptr",
    "occlusion_spatial_embedding_parameter": "no_obj_embed_spatial",
    "temporal_positional_encoding_projection_layer.": "obj_ptr_tpos_proj.",
    "object_pointer_proj.": "obj_ptr_proj.",
    "memory_encoder.feature_projection.": "memory_encoder.pix_feat_proj.",
    "memory_encoder.projection.": "memory_encoder.out_proj.",
    "mask_downsampler.final_conv.": "mask_downsampler.encoder.12.",
    "memory_fuser.": "fuser.",
    ".scale": ".gamma",
    ".depthwise_conv.": ".dwconv.",
    ".pointwise_conv": ".pwconv",
}
"""Parts of the names of the memory's tensors in transformers, and in facebookresearch/sam2."""


def _by_meta(name: str) -> str:
    if not name.startswith(("memory_attention.", "vision_encoder.", "prompt_encoder.", "mask_decoder.")):
        for ours, theirs in MEMORY_BY_META.items():
            name = name.replace(ours, theirs)
        for layer in range(4):
            place = f"mask_downsampler.layers.{layer}."
            name = name.replace(f"{place}conv.", f"mask_downsampler.encoder.{3 * layer}.")
            name = name.replace(f"{place}layer_norm.", f"mask_downsampler.encoder.{3 * layer + 1}.")
        if name.startswith("obj_ptr_proj."):
            name = name.replace(".layers.0.", ".layers.1.")
    name = name.replace("vision_encoder.backbone.", "image_encoder.trunk.").replace("no_memory_emb", "no_mem_emb")
    name = re.sub(r"^no_mem_embedding$", "no_mem_embed", name)
    name = re.sub(r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv.", name)
    name = re.sub(r"^(prompt_encoder|mask_decoder)\.", r"sam_\1.", name)
    name = name.replace("patch_embed.projection", "patch_embed.proj").replace("o_proj", "out_proj")
    name = name.replace("shared_embedding.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix")
    for ours, place in {"conv1": 0, "layer_norm1": 1, "conv2": 3, "layer_norm2": 4, "conv3": 6}.items():
        name = name.replace(f"mask_embed.{ours}", f"mask_downscaling.{place}")
    for ours, place in {"upscale_conv1": 0, "upscale_layer_norm": 1, "upscale_conv2": 3}.items():
        name = name.replace(ours, f"output_upscaling.{place}")
    name = name.replace("layer_norm", "norm")
    last = 1 if ".mlp." in name else 2
    if last == 2 and ("_head." in name or "_mlps." in name):
        name = re.sub(r"(_head|_mlps\.\d)\.layers\.0\.", r"\1.layers.1.", name)
    return name.replace(".proj_in.", ".layers.0.").replace(".proj_out.", f".layers.{last}.")
