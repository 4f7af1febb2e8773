"""Models of open_clip by name: which exist, which are supported, and where their weights and tokenizers are."""

from __future__ import annotations

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

from text2seg.clip.model import CLIP_MEAN, CLIP_STD
from text2seg.errors import CheckpointError, SettingsError
from text2seg.io.files import is_file, list_folder, read_file
from text2seg.io.names import similar
from text2seg.weights import sha256_of
from text2seg.weights.download import check_reachable
from text2seg.weights.registry import CONFIG, SYNTAX, WEIGHTS, openclip_unavailable, parse_openclip

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
"""Reasons why models of timm do not fit, by the start of their name."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """Everything needed to build one model, except its weights."""

    name: str
    """Name that the user gave."""
    architecture: str
    config: dict[str, Any]
    """Arguments of open_clip's modules."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resampling: Resampling
    file: Path | None
    """The user's own file of weights, if there is one."""
    published: Mapping[str, Any]
    """open_clip's entry for published weights; empty for a file of the user's."""
    folder: Path | None
    """Folder of the tokenizer, if it is not on the Hugging Face hub."""

    @property
    def text(self) -> dict[str, Any]:
        """Configuration of the text tower."""
        config: dict[str, Any] = self.config["text_cfg"]
        return config

    def identity(self) -> tuple[str, ...]:
        """Return everything except the weights that text features depend on."""
        settings = json.dumps([self.text, self.config.get("quick_gelu", False)], sort_keys=True)
        files = list_folder(self.folder, CheckpointError) if self.folder else []
        hashes = [sha256_of(path) for path in files if path.match("token*") and is_file(path, CheckpointError)]
        return ("open_clip", hashlib.sha256(settings.encode()).hexdigest(), *hashes)


def import_open_clip() -> ModuleType:
    """Import and return the package `open_clip`.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise SettingsError(
            f'the CLIPs of open_clip need a package that is missing ({error}): pip install "text2seg[openclip]"'
        ) from error
    return open_clip


def recipe_of(name: str) -> Recipe:
    """Look up a model. Nothing is downloaded or built.

    Args:
        name: one of the forms in `weights.registry.SYNTAX`.

    Raises:
        CheckpointError: open_clip is missing, there is no such architecture, tag, file or folder, or maps of this kind
            of model are not supported.
    """
    asked = parse_openclip(name)  # first, because a wrong name is found without the package
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
    """Return why maps of a model with this configuration are not supported, or None if they are."""
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
    """Return the file of a model's weights. open_clip downloads it if it is missing, usually from the Hugging Face hub
    into the hub's cache.

    Raises:
        CheckpointError: it cannot be downloaded; the message names the file and another way to get it.
    """
    if found := cached_openclip(recipe):
        return found
    open_clip = import_open_clip()
    where = recipe.published.get("hf_hub") or recipe.published.get("url")
    try:
        _check_server(recipe)
        return Path(open_clip.download_pretrained(dict(recipe.published)))
    except Exception as error:  # errors of the hub, the network and the disk have no common type
        wanted = f"open_clip_model.safetensors or open_clip_pytorch_model.bin of {where}"
        raise openclip_unavailable(recipe.name, wanted, recipe.architecture, one_line(error)) from error


def _check_server(recipe: Recipe) -> None:
    """Raise `CheckpointError` if the server of the weights does not answer. The hub's client alone would try again for
    a minute."""
    from huggingface_hub import constants

    if not recipe.published.get("hf_hub"):
        check_reachable(str(recipe.published["url"]))
    elif not constants.HF_HUB_OFFLINE:  # then the client says so itself, at once
        check_reachable(constants.ENDPOINT)


def cached_openclip(recipe: Recipe) -> Path | None:
    """Return the file of a model's weights if it is on this machine, as the user's file or in the hub's cache, else
    None. The network is not used."""
    if recipe.file:
        return recipe.file
    hub = str(recipe.published.get("hf_hub") or "").strip("/")
    if not hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    owner, _, rest = hub.partition("/")
    repository, _, file_name = rest.partition("/")
    for name in [file_name] if file_name else WEIGHTS:
        found = try_to_load_from_cache(f"{owner}/{repository}", name)
        if isinstance(found, str):
            return Path(found)
    return None


def one_line(error: Exception) -> str:
    """Return the message of an error on one line, without its last full stop."""
    return " ".join(str(error).split()).rstrip(".")


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration of a model, and that of its preprocessing."""
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
    """Return the preprocessing that all published weights of an architecture share; empty if it differs."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    entries = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    keys = ("mean", "std", "interpolation")
    found = [{key: entry[key] for key in keys if key in entry} for entry in entries]
    return deepcopy(found[0]) if found and all(preprocessing == found[0] for preprocessing in found) else {}


def _one_of(name: str, names: Iterable[str], message: str) -> str:
    """Return the name if it is one of `names`. Raises `CheckpointError` with similar names if it is not."""
    known = tuple(names)
    if name in known:
        return name
    close = similar(name, known)
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(known)}"
    raise CheckpointError(f"{message} {name!r}{hint}")
