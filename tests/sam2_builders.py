"""Small SAM 2s with random weights, by the names of `transformers` and by those of Meta's files."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import Sam2Config, Sam2Model

SIDE = 128


def small_config() -> Sam2Config:
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
        "fpn_hidden_size": 32,
    }
    prompts = {"hidden_size": 32, "image_size": SIDE, "mask_input_channels": 8}
    decoder = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 24}
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


def random_weights(config: Sam2Config, *, seed: int = 0) -> dict[str, Tensor]:
    """A state dict in which no tensor is zero or one throughout, as those of a fresh model are."""
    with torch.device("meta"):
        wanted = Sam2Model(config).state_dict()
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


def stock_model(config: Sam2Config, weights: dict[str, Tensor]) -> Any:
    model = Sam2Model(config).eval()
    model.load_state_dict(weights)
    return model


def as_meta_wrote_it(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names of facebookresearch/sam2, with some that only its memory needs."""
    found = {"maskmem_tpos_enc": torch.ones(7, 1, 1, 64), "memory_encoder.out_proj.weight": torch.ones(64, 256, 1, 1)}
    found |= {"no_mem_pos_enc": torch.ones(1, 1, 256), "obj_ptr_proj.layers.0.weight": torch.ones(256, 256)}
    for name, tensor in weights.items():
        if name == "shared_image_embedding.positional_embedding":
            continue
        if name == "prompt_encoder.point_embed.weight":
            found |= {f"sam_prompt_encoder.point_embeddings.{n}.weight": row[None] for n, row in enumerate(tensor)}
            continue
        found[_by_meta(name)] = tensor
    return found


def _by_meta(name: str) -> str:
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
