"""Small random models of open_clip in folders as its own tools write them, and the modules to compare with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from text2seg.clip.model import Clip
from text2seg.clip.openclip import recipe_of
from text2seg.clip.openclip_build import load_openclip
from text2seg.runtime import FULL
from text2seg.weights.load import load_tensors
from text2seg.weights.registry import parse_openclip

CPU = torch.device("cpu")
SIZE = 64
VISION = {"image_size": SIZE, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
END = 49407  # the end of a text in CLIP's own vocabulary
SIGLIP_TEXT = {
    **TEXT,
    "vocab_size": 60,
    "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
WORDS = ["<pad>", "</s>", "<unk>", *["a", "photo", "of", "the", "dog", "red", "car", "sheep", "in", "scene"]]


def config(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    return {"embed_dim": 32, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {}), **others}


def timm_config(name: str, pool: str, proj: str | None, text: dict[str, Any], **others: Any) -> dict[str, Any]:
    vision = {"image_size": SIZE, "timm_model_name": name, "timm_model_pretrained": False}
    width = {"embed_dim": 64 if proj == "none" else 32}
    return {"vision_cfg": vision | {"timm_pool": pool, "timm_proj": proj}, "text_cfg": text, **width, **others}


CONFIGS = {
    "laion": config(),
    "quick_gelu": config(quick_gelu=True),
    "layer_scale": config({"ls_init_value": 0.5, "no_ln_pre": True}, {"ls_init_value": 0.5}),
    "clipa": config(
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"no_causal_mask": True, "pool_type": "last"},
    ),
    "worldwide": config({}, {"pool_type": "eos", "eos_id": END}),
    "custom_text": config({}, {"proj_bias": True}, custom_text=True),
    "siglip": timm_config("vit_tests_map", "map", "none", SIGLIP_TEXT, custom_text=True, init_logit_bias=-10),
    "mobile": timm_config("vit_tests_token", "token", None, TEXT, custom_text=True),
    "mean": timm_config("vit_tests_mean", "avg", "linear", TEXT),
    "resnet": config({"layers": [1, 1, 1, 1], "width": 16, "patch_size": None}),
}
VITS = tuple(name for name in CONFIGS if name != "resnet")


def _register(name: str, **own: Any) -> None:
    """Give timm a small plain transformer under this name."""

    def make(pretrained: bool = False, **arguments: Any) -> VisionTransformer:
        given = {key: arguments[key] for key in ("num_classes", "global_pool") if key in arguments}
        shape = {"img_size": SIZE, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 2}
        model = VisionTransformer(**{**shape, **own, **given})
        model.default_cfg = {}
        return model

    make.__name__, make.__module__ = name, VisionTransformer.__module__
    setattr(sys.modules[make.__module__], name, make)
    register_model(make)


for _name, _own in {
    "vit_tests_map": {"class_token": False, "global_pool": "map"},
    "vit_tests_token": {"pre_norm": True, "init_values": 0.5},
    "vit_tests_mean": {"class_token": False, "no_embed_class": True, "global_pool": "avg", "fc_norm": False},
}.items():
    if not timm.is_model(_name):
        _register(_name, **_own)


def module(configuration: dict[str, Any], *, seed: int = 0) -> nn.Module:
    """open_clip's own, every number of it random, so that nothing left out goes unnoticed."""
    arguments = {name: value for name, value in configuration.items() if name != "custom_text"}
    torch.manual_seed(seed)
    made = (CustomTextCLIP if configuration.get("custom_text") else CLIP)(**arguments)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.1 if parameter.ndim else 0.01))
        for name, buffer in made.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(1.5)
    return made.eval().requires_grad_(False)


def write_folder(folder: Path, configuration: dict[str, Any], weights: dict[str, Tensor], **preprocessing: Any) -> str:
    """A folder as on the Hugging Face hub; what to call it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": configuration, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "open_clip_model.safetensors")
    if "hf_tokenizer_name" in configuration["text_cfg"]:
        _write_tokenizer(folder)
    return f"openclip:{folder}"


def _write_tokenizer(folder: Path) -> None:
    """One of whole words, with an end token and padding as T5's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    made.save_pretrained(folder)


def opened(name: str) -> Clip:
    """The model of this name, which has a file, through the real way."""
    file = parse_openclip(name).file
    return load_openclip(recipe_of(name), load_tensors(str(file)), device=CPU, precision=FULL)
