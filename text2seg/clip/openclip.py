"""Which of open_clip's models there are, which of them fit, and where their weights and tokenizers come from."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL.Image import Resampling

from text2seg.errors import CheckpointError
from text2seg.io.files import entries, is_file, read_file
from text2seg.queries import CLIP_MEAN, CLIP_STD
from text2seg.weights import sha256_of
from text2seg.weights.registry import CONFIG, SYNTAX, WEIGHTS, parse_openclip

log = logging.getLogger(__name__)

FITS = (
    "open_clip's own vision transformers and ResNets (ViT-B-16, ViT-L-14, RN50, CLIPA, …), SigLIP and SigLIP 2, and "
    "what else has timm's plain vision transformer and a text tower of open_clip; docs/models.md has the list"
)
TIMM_REASONS = {
    "convnext": "its image tower is a ConvNeXt, which has no attention to change",
    "swin": "its image tower is a Swin transformer, whose tokens see their own window only",
    "fastvit": "its image tower is a FastViT, which is convolutions for the most part",
    "eva": "its image tower is an EVA, with rotary positions in its attention",
    "vit_pe_core": "its image tower is a Perception Encoder, with rotary positions in its attention",
    "vitamin": "its image tower, a ViTamin, begins with convolutions in place of patches",
    "vit_base_mci": "its image tower begins with convolutions in place of patches",
    "vit_relpos": "its image tower has relative positions in its attention",
}
"""By how the name of timm's model begins."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """All it takes to build one model, but for its weights."""

    name: str
    """As it was asked for."""
    architecture: str
    config: dict[str, Any]
    """The arguments of open_clip's modules."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resampling: Resampling
    file: Path | None
    """The weights, where they are a file of the user's."""
    published: Mapping[str, Any]
    """open_clip's entry for the weights, where they are not."""
    folder: Path | None
    """Where the tokenizer lies, if not on the Hugging Face hub."""

    @property
    def text(self) -> dict[str, Any]:
        config: dict[str, Any] = self.config["text_cfg"]
        return config

    def identity(self) -> tuple[str, ...]:
        """All that text features depend on beside the weights."""
        found = json.dumps([self.text, self.config.get("quick_gelu", False)], sort_keys=True)
        inside = entries(self.folder, CheckpointError) if self.folder else []
        hashes = [sha256_of(path) for path in inside if path.match("token*") and is_file(path, CheckpointError)]
        return ("open_clip", hashlib.sha256(found.encode()).hexdigest(), *hashes)


def import_open_clip() -> ModuleType:
    """The package.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise CheckpointError(
            f'the CLIPs of open_clip need a package that is missing ({error}): pip install "text2seg[openclip]"'
        ) from error
    return open_clip


def recipe_of(name: str) -> Recipe:
    """Look a model up; nothing is downloaded or built.

    Args:
        name: as `weights.registry` says.

    Raises:
        CheckpointError: open_clip is missing, there is no such architecture, tag, file or folder, or the model is of a
            kind that gives no maps.
    """
    asked = parse_openclip(name)  # first: a slip in the name needs no package
    open_clip = import_open_clip()
    published: Mapping[str, Any] = {}
    if asked.folder:
        architecture, (config, preprocessing) = str(asked.folder), _read_config(asked.folder / CONFIG)
    else:
        architecture = _one_of(asked.architecture or "", open_clip.list_models(), f"{name}: open_clip has no model")
        config, preprocessing = open_clip.get_model_config(architecture), _usual_preprocessing(open_clip, architecture)
    if asked.tag:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if not tags:
            raise CheckpointError(f"{name}: no weights of {architecture} are published; give a file: {SYNTAX}")
        _one_of(asked.tag.lower().replace("-", "_"), tags, f"{name}: {architecture} has no weights with the tag")
        published = preprocessing = open_clip.get_pretrained_cfg(architecture, asked.tag)
        if published.get("quick_gelu") and not config.get("quick_gelu"):
            log.info("%s was trained with QuickGELU, so it runs with it", name)
            config["quick_gelu"] = True
    if why := why_not(config):
        raise CheckpointError(f"{name} does not fit: {why}. What fits: {FITS}")
    return Recipe(
        name,
        architecture,
        config,
        tuple(preprocessing.get("mean", CLIP_MEAN)),
        tuple(preprocessing.get("std", CLIP_STD)),
        Resampling.BILINEAR if preprocessing.get("interpolation") == "bilinear" else Resampling.BICUBIC,
        asked.file,
        published,
        asked.folder,
    )


def why_not(config: Mapping[str, Any]) -> str | None:
    """Why a model of this configuration gives no maps here; none where it does."""
    image, text = config["vision_cfg"], config["text_cfg"]
    if "multimodal_cfg" in config or image.get("attentional_pool") or text.get("embed_cls"):
        return "it is a CoCa, whose pooling by many queries and whose text tower with a class token are not read here"
    if text.get("hf_model_name"):
        return f"its text tower is a model of transformers ({text['hf_model_name']}), not one of open_clip"
    if timm_name := image.get("timm_model_name"):
        return _why_not_timm(timm_name)
    if image.get("pool_type", "tok") == "avg" and not image.get("final_ln_after_pool"):
        return "its image tower takes the mean of normalised patches"
    custom = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
    found = [name for name in custom if image.get(name) or text.get(name)]
    return f"its blocks have more than attention and an MLP ({', '.join(found)})" if found else None


def _why_not_timm(name: str) -> str | None:
    from timm.models import is_model_in_modules

    if is_model_in_modules(name, ["vision_transformer"]):
        return None
    for start, reason in TIMM_REASONS.items():
        if name.startswith(start):
            return reason
    return f"its image tower is timm's {name}, not a plain vision transformer"


def fetch_openclip(recipe: Recipe) -> Path:
    """The file of a model's weights, downloaded as open_clip does, from the Hugging Face hub for the most part, into
    the hub's cache.

    Raises:
        CheckpointError: it cannot be had; names it and the way out.
    """
    if found := cached_openclip(recipe):
        return found
    open_clip = import_open_clip()
    try:
        return Path(open_clip.download_pretrained(dict(recipe.published)))
    except Exception as error:  # of the hub, of the network, of the disk: there is no common type
        where = recipe.published.get("hf_hub") or recipe.published.get("url")
        raise CheckpointError(
            f"cannot fetch the weights of {recipe.name} (open_clip_model.safetensors or open_clip_pytorch_model.bin of "
            f"{where}): {one_line(error)}. Without a network, bring its whole folder and say --clip openclip:FOLDER, "
            f"or its weights and say --clip openclip:{recipe.architecture}=FILE. HF_HUB_OFFLINE=1 takes what the hub's "
            "cache has and does not try for more; HF_HOME says where the cache lies"
        ) from error


def cached_openclip(recipe: Recipe) -> Path | None:
    """The file of a model's weights where it is on this machine, in a file of its own or the hub's cache. The network
    is not asked."""
    if recipe.file:
        return recipe.file
    hub = str(recipe.published.get("hf_hub") or "").strip("/")
    if not hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    owner, _, rest = hub.partition("/")
    repository, _, own = rest.partition("/")
    for name in [own] if own else WEIGHTS:
        found = try_to_load_from_cache(f"{owner}/{repository}", name)
        if isinstance(found, str):
            return Path(found)
    return None


def one_line(error: Exception) -> str:
    """Its message, which may have been written for a terminal."""
    return " ".join(str(error).split()).rstrip(".")


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's configuration and how its images are made ready."""
    try:
        content = json.loads(read_file(path, CheckpointError))
        config = content.get("model_cfg", content)
        _ = config["embed_dim"], config["vision_cfg"].items(), config["text_cfg"].items()
        return config, dict(content.get("preprocess_cfg") or {})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"cannot read {path} as open_clip's configuration of a model ({type(error).__name__}: {error})"
        ) from error


def _usual_preprocessing(open_clip: ModuleType, architecture: str) -> dict[str, Any]:
    """What all published weights of an architecture want of images; nothing where they differ."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    found = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    shared = ("mean", "std", "interpolation")
    wanted = [{key: entry[key] for key in shared if key in entry} for entry in found]
    return deepcopy(wanted[0]) if wanted and all(each == wanted[0] for each in wanted) else {}


def _one_of(name: str, names: Iterable[str], message: str) -> str:
    """The name itself, if it is one of them."""
    known = {each.lower(): each for each in names}
    if name in known.values():
        return name
    close = difflib.get_close_matches(name.lower(), known, n=3)
    hint = (
        f"; did you mean {' or '.join(known[each] for each in close)}?" if close else f"; there are {', '.join(known)}"
    )
    raise CheckpointError(f"{message} {name!r}{hint}")
