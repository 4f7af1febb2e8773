"""Build a CLIP of open_clip from its recipe and weights, also with timm's vision transformers as its image tower.

The ViT of a SigLIP has no projection of single patches into the space of texts: texts are compared with the output of
its pooling head, which is attention by one learned query followed by an MLP (MAP head: arXiv 2303.15343, big_vision).
So the feature of a patch is the output of that head for this patch alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.nn import functional as F

from text2seg.clip.build import as_float32, check_fit, prefix_errors
from text2seg.clip.encoders import resize_positions
from text2seg.clip.model import CLIP_MEAN, CLIP_STD, Clip, ImageTower, plain_vit_tower, resnet_tower, vit_tower
from text2seg.clip.openclip import Recipe, import_open_clip, one_line
from text2seg.clip.text import TextCache, TextTower, encode_trimmed, trimmed
from text2seg.errors import CheckpointError
from text2seg.runtime import Precision
from text2seg.weights.architecture import check_patches, checked_config

TOKENIZER_ARGUMENTS = ("clean", "strip_sep_token", "language", "reduction_mask", "additional_special_tokens")
"""Arguments of a tokenizer that a configuration may set. Others could open files or run code of the folder."""

Tokenize = Callable[[list[str]], tuple[Tensor, int]]
"""See `TextTower.tokenize`."""


class TimmVit:
    """A tower of open_clip's `TimmModel` whose trunk is timm's plain `VisionTransformer`.

    Raises:
        CheckpointError: the trunk has parts that this class would leave out.
    """

    def __init__(self, tower: Any) -> None:
        check_trunk(tower.trunk)
        self._tower, self._trunk = tower, tower.trunk
        self.prefix = int(self._trunk.num_prefix_tokens)
        self.pools_cls = self._trunk.global_pool == "token"
        self.blocks: Sequence[Any] = [_with_openai_names(block) for block in self._trunk.blocks]

    @property
    def stride(self) -> int:
        return int(self._trunk.patch_embed.patch_size[0])

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        trunk = self._trunk
        x = trunk.patch_embed.proj(pixels.to(trunk.patch_embed.proj.weight.dtype))
        grid_hw = (x.shape[2], x.shape[3])
        x = trunk.patch_embed.norm(x.flatten(2).transpose(1, 2))
        placed = 0 if trunk.no_embed_class else self.prefix  # number of tokens before the patches with a position
        positions = resize_positions(trunk.pos_embed[0], grid_hw, prefix=placed).to(x.dtype)
        if self.prefix:
            cls = trunk.cls_token[0].to(x.dtype)
            cls = cls + positions[:placed] if placed else cls
            x = torch.cat([cls.expand(len(x), -1, -1), x + positions[placed:]], dim=1)
        else:
            x = x + positions
        return trunk.norm_pre(x), grid_hw

    def features(self, tokens: Tensor, patches: Tensor) -> Tensor:
        trunk = self._trunk
        pooled = self._tower.head(trunk.forward_head(trunk.norm(tokens)))
        alone = trunk.norm(patches)
        if trunk.attn_pool is not None:
            alone = trunk.attn_pool(alone.flatten(0, 1)[:, None]).unflatten(0, alone.shape[:2])
        alone = self._tower.head(trunk.head(trunk.fc_norm(alone)))
        return torch.cat([pooled[:, None], alone], dim=1)


def _with_openai_names(block: Any) -> SimpleNamespace:
    """Return the modules and parameters of a timm block by the names that they have in OpenAI's blocks."""
    attention = SimpleNamespace(
        in_proj_weight=block.attn.qkv.weight,
        in_proj_bias=block.attn.qkv.bias,
        num_heads=block.attn.num_heads,
        out_proj=block.attn.proj,
    )
    return SimpleNamespace(
        ln_1=block.norm1, attn=attention, ls_1=block.ls1, ln_2=block.norm2, mlp=block.mlp, ls_2=block.ls2
    )


def check_trunk(trunk: nn.Module) -> None:
    """Raise `CheckpointError` if a trunk has parts that `TimmVit` does not use."""
    from timm.layers import Attention, PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(trunk) is not VisionTransformer:
        raise CheckpointError(f"its image tower is timm's {type(trunk).__name__}, not its plain VisionTransformer")
    if type(trunk.patch_embed) is not PatchEmbed:
        raise CheckpointError(f"its image tower begins with a {type(trunk.patch_embed).__name__}, not with patches")
    if trunk.pos_embed is None or trunk.num_reg_tokens or trunk.pool_include_prefix:
        raise CheckpointError("its image tower has register tokens or no position embeddings")
    if trunk.global_pool not in ("map", "token", "avg") or getattr(trunk.attn_pool, "pos_embed", None) is not None:
        raise CheckpointError(f"its image tower pools by {trunk.global_pool!r}; map, token and avg fit")
    for block in trunk.blocks:
        attention = block.attn
        # older versions of timm have neither norm nor gate
        extras = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
        plain = type(block) is Block and type(attention) is Attention
        if not plain or not all(extra is None or isinstance(extra, nn.Identity) for extra in extras):
            raise CheckpointError("its image tower has blocks that do more than attention and an MLP")


@torch.inference_mode(False)
def load_openclip(
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    *,
    device: torch.device,
    precision: Precision,
    source: str = "the checkpoint",
    text_cache: TextCache | None = None,
) -> Clip:
    """Build a model of open_clip that computes maps as any other CLIP does.

    Args:
        recipe: the model to build.
        weights: its tensors by open_clip's or OpenAI's names.
        source: name of the weights in error messages.
        text_cache: cache of text features on disk; its encoder must contain `recipe.identity()`.

    Raises:
        CheckpointError: the weights are not those of the recipe, the model has parts that are not supported, or its
            tokenizer cannot be loaded.
    """
    tokenize = tokenizer_of(recipe)
    model = build_openclip(recipe, weights, source=source).to(device)
    images = _image_tower(recipe, model)
    return Clip(
        model,
        device=device,
        precision=precision,
        text_cache=text_cache,
        images=images,
        texts=_text_tower(model, tokenize),
        unlike_openai="" if _is_like_openai(recipe, model) else f"{recipe.name} is not built like OpenAI's CLIPs",
    )


def build_openclip(recipe: Recipe, weights: Mapping[str, Tensor], *, source: str = "the checkpoint") -> nn.Module:
    """Build open_clip's module with these weights: float32, on the CPU, in eval mode, parameters without gradients.

    Raises:
        CheckpointError: a tensor is missing, unknown or of the wrong shape; the message names it.
    """
    import_open_clip()
    from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict

    config = checked_config(recipe.config, recipe.name)
    arguments = {name: value for name, value in config.items() if name != "custom_text"}
    module_type = CustomTextCLIP if recipe.config.get("custom_text") else CLIP
    try:
        with torch.device("meta"):  # shapes only
            model = module_type(**arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"{recipe.name}: open_clip cannot build its configuration: {error}") from error
    tensors = dict(weights)
    if module_type is CustomTextCLIP:
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in ("logit_scale", "logit_bias"):  # files store them as scalars or as tensors with one number
        if name in tensors and tensors[name].numel() == 1 and getattr(model, name, None) is not None:
            tensors[name] = tensors[name].reshape(getattr(model, name).shape)
    prefix_errors(source, check_fit, model.state_dict(), tensors)
    model.load_state_dict({name: as_float32(tensor) for name, tensor in tensors.items()}, assign=True)
    for module in model.modules():
        mask = getattr(module, "attn_mask", None)
        if isinstance(mask, Tensor):  # causal masks are not among the weights
            module.attn_mask = torch.full(mask.shape, float("-inf"), dtype=torch.float32, device="cpu").triu(1)
    return model.eval().requires_grad_(False)


def _image_tower(recipe: Recipe, model: Any) -> ImageTower:
    import_open_clip()
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    visual = model.visual
    sides = {visual.image_size} if isinstance(visual.image_size, int) else set(visual.image_size)
    if len(sides) != 1:
        raise CheckpointError(f"{recipe.name}: it was trained on images of {visual.image_size}, which is no square")
    size = sides.pop()
    if type(visual) is TimmModel:
        vit = prefix_errors(recipe.name, TimmVit, visual)
        tower = vit_tower(vit, vit.stride, size)
    elif type(visual) is VisionTransformer:
        if any(type(block) is not ResidualAttentionBlock for block in visual.transformer.resblocks):
            raise CheckpointError(f"{recipe.name}: its blocks have more than attention and an MLP")
        tower = plain_vit_tower(visual, size)
    elif type(visual) is ModifiedResNet:
        tower = resnet_tower(visual, size)
    else:
        raise CheckpointError(f"{recipe.name}: its image tower is a {type(visual).__name__}, which is not read here")
    check_patches((size // tower.stride,) * 2, f"{recipe.name}: its input")
    return replace(tower, mean=recipe.mean, std=recipe.std, resampling=recipe.resampling)


def tokenizer_of(recipe: Recipe) -> Tokenize:
    """Return the tokenizer of a model; see `TextTower.tokenize`.

    Raises:
        CheckpointError: it is a tokenizer of the Hugging Face hub, and neither the hub nor its cache has it.
    """
    import_open_clip()
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    config = recipe.text
    context, arguments = config.get("context_length", 77), _tokenizer_arguments(recipe)
    if not config.get("hf_tokenizer_name"):
        simple = SimpleTokenizer(context_length=context, clean=arguments.get("clean", "lower"))
        return lambda texts: (simple(texts), max(len(simple.encode(text)) for text in texts) + 2 - context)
    where = str(recipe.folder or config["hf_tokenizer_name"])
    try:
        tokenizer = HFTokenizer(
            where, context, tokenizer_mode=config.get("tokenizer_mode"), trust_remote_code=False, **arguments
        )
    except Exception as error:  # errors of the hub, the network and transformers have no common type
        raise CheckpointError(
            f"cannot load the tokenizer of {recipe.name}, {where}: {one_line(error)}. Without a network, put the files "
            f"of {config['hf_tokenizer_name']} into one folder with the weights and say --clip openclip:FOLDER"
        ) from error

    lock = threading.Lock()  # calls change how a tokenizer pads and truncates, which threads share

    def tokenize(texts: list[str]) -> tuple[Tensor, int]:
        with lock:
            uncut = tokenizer.tokenizer([tokenizer.clean_fn(text) for text in texts], truncation=False).input_ids
            return tokenizer(texts), max(map(len, uncut)) - context

    return tokenize


def _tokenizer_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of the tokenizer in the configuration. A configuration is not trusted, so only the names in
    `TOKENIZER_ARGUMENTS` are allowed.

    Raises:
        CheckpointError: it contains another name.
    """
    arguments = recipe.text.get("tokenizer_kwargs") or {}
    if not isinstance(arguments, Mapping):
        raise CheckpointError(f"{recipe.name}: its tokenizer_kwargs should be an object, got {arguments!r:.40}")
    if unknown := [name for name in arguments if name not in TOKENIZER_ARGUMENTS]:
        raise CheckpointError(f"{recipe.name}: its tokenizer_kwargs ask for {unknown[0]!r:.40}, which is not passed on")
    return dict(arguments)


def _text_tower(model: Any, tokenize: Tokenize) -> TextTower:
    text = getattr(model, "text", model)  # a CLIP is its own text tower
    pool = getattr(model, "text_pool_type", None) or text.pool_type
    device, context = model.logit_scale.device, int(text.context_length)
    if text.attn_mask is not None and pool == "argmax":
        return TextTower(tokenize, trimmed, partial(encode_trimmed, text), context, device)
    if text.attn_mask is not None and pool == "eos":
        end = int(model.text_eos_id if text is model else text.eos_id)

        def encode(tokens: Tensor) -> Tensor:
            return encode_trimmed(text, tokens, _ends(tokens, end))

        return TextTower(
            tokenize, lambda tokens: tokens[:, : int(_ends(tokens, end).max()) + 1], encode, context, device
        )

    def encode_whole(tokens: Tensor) -> Tensor:
        return F.normalize(model.encode_text(tokens).float(), dim=-1)

    return TextTower(tokenize, lambda tokens: tokens, encode_whole, context, device)


def _ends(tokens: Tensor, end: int) -> Tensor:
    """Return the position of the first end token of each text, int64 [T]."""
    return (tokens == end).int().argmax(dim=1)


def _is_like_openai(recipe: Recipe, model: Any) -> bool:
    """Return whether modules, preprocessing and tokens of a model are as in OpenAI's CLIPs."""
    import_open_clip()
    from open_clip.model import CLIP
    from open_clip.transformer import VisionTransformer

    if type(model) is not CLIP or type(model.visual) is not VisionTransformer:
        return False
    towers = (model.visual.transformer, model.transformer)
    scales = [scale for tower in towers for block in tower.resblocks for scale in (block.ls_1, block.ls_2)]
    plain = model.visual.pool_type == "tok" and all(isinstance(scale, nn.Identity) for scale in scales)
    has_openai_text = (
        model.text_pool_type == "argmax" and model.attn_mask is not None and "hf_tokenizer_name" not in recipe.text
    )
    has_openai_images = (recipe.mean, recipe.std, recipe.resampling) == (CLIP_MEAN, CLIP_STD, Resampling.BICUBIC)
    return plain and has_openai_text and has_openai_images and isinstance(model.text_projection, nn.Parameter)
