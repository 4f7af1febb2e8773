"""Load a pair of models by name, and a SAM of any family; missing weights are downloaded."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from text2seg import weights
from text2seg.clip.build import check_clip
from text2seg.clip.maps import PresenceModel
from text2seg.clip.model import Clip
from text2seg.clip.openclip import cached_openclip, fetch_openclip, recipe_of
from text2seg.clip.openclip_build import load_openclip
from text2seg.clip.text import TextCache
from text2seg.config import OnnxProvider
from text2seg.errors import CheckpointError, SettingsError
from text2seg.io.files import is_file, read_file
from text2seg.model_card import ModelCard, card_for
from text2seg.onnx.networks import Networks, choose_onnx_device
from text2seg.runtime import FULL, Precision, PrecisionName, choose_device, choose_precision
from text2seg.sam.base import AnySam
from text2seg.sam.mobile_sam import MobileSam
from text2seg.sam.sam import Sam
from text2seg.sam.sam2 import Sam2
from text2seg.templates import DISTRACTORS
from text2seg.weights.load import load_clip_weights, load_sam_weights, load_tensors
from text2seg.weights.registry import Checkpoint, Kind, check_sam, is_openclip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pair of models, the card of its CLIP, and the names and hashes of its checkpoints."""

    clip: Clip
    sam: AnySam
    card: ModelCard
    provenance: dict[str, object]


def load_pair(
    model: str,
    *,
    clip: str | None,
    sam: str | None,
    device: str,
    precision: PrecisionName,
    compile_sam: bool = False,
    graphs: str | os.PathLike[str] | None = None,
    onnx_provider: OnnxProvider = "auto",
    card: str | os.PathLike[str] | None = None,
) -> Loaded:
    """Load CLIP and SAM; arguments and errors as for `Text2Seg.load`."""
    clip_name, sam_name = weights.pair(model, clip=clip, sam=sam)
    # Report wrong names and missing devices before downloading gigabytes.
    find(clip_name, "clip")
    sam_checkpoint = find(sam_name, "sam")
    check_sam(sam_checkpoint, compiled=compile_sam, graphs=graphs is not None)
    if graphs is None and onnx_provider != "auto":
        raise SettingsError("an ONNX provider is for ONNX graphs; give their folder too")
    if compile_sam and graphs is not None:
        raise SettingsError("torch compiles nothing of ONNX graphs; leave --compile out")
    where = choose_device(device) if graphs is None else choose_onnx_device(device, onnx_provider)
    chosen = choose_precision(where, precision) if graphs is None else FULL
    with weights.naming_missing(sam_checkpoint):
        clip_file = fetch(clip_name, "clip")
    sam_file = fetch(sam_name, "sam")
    clip_hash, sam_hash = weights.sha256_of(clip_file), weights.sha256_of(sam_file)
    networks = None
    if graphs is None:
        log.info("CLIP on %s in %s: %s", where, chosen.name, chosen.reason)
    else:
        networks = Networks.open(
            Path(graphs), clip_sha256=clip_hash, sam_sha256=sam_hash, device=where, provider=onnx_provider
        )
        networks.check_precision(precision)
    found = card_for(clip_hash, sam_hash, None if card is None else Path(card))
    arithmetic = chosen.name if networks is None else networks.encoder_of_texts
    loaded = Loaded(
        _open_clip(clip_name, clip_file, where, chosen, found, [clip_hash, arithmetic, where.type]),
        open_sam(
            sam_file,
            device=where,
            precision=precision if networks is None else "fp32",
            compile_encoder=compile_sam,
        ),
        found,
        {
            "clip": {"name": clip_name, "sha256": clip_hash},
            "sam": {"name": sam_name, "sha256": sam_hash},
            **(networks.provenance if networks else {}),
        },
    )
    if networks:
        _stand_in(networks, loaded.clip, loaded.sam)
    return loaded


def load_sam(
    model: str, *, sam: str | None, device: str, precision: PrecisionName, compile_sam: bool = False
) -> tuple[AnySam, dict[str, object]]:
    """Load the SAM of a pair without its CLIP, with the name and hash of its checkpoint; arguments and errors as for
    `Text2Seg.load`."""
    _, name = weights.pair(model, clip=None, sam=sam)
    check_sam(find(name, "sam"), compiled=compile_sam, graphs=False)
    where = choose_device(device)
    choose_precision(where, precision)
    file = fetch(name, "sam")
    loaded = open_sam(file, device=where, precision=precision, compile_encoder=compile_sam)
    return loaded, {"sam": {"name": name, "sha256": weights.sha256_of(file)}}


def find(name: str, kind: Kind) -> Checkpoint:
    """Find a checkpoint like `weights.find`; for open_clip's models, also check that the model exists and fits."""
    if kind == "clip" and is_openclip(name):
        recipe_of(name)
    return weights.find(name, kind)


def graphs_of(clip: Clip) -> Networks | None:
    """Return the ONNX graphs that run a CLIP's networks, or None if torch runs them."""
    networks = getattr(clip.image_network, "__self__", None)
    return networks if isinstance(networks, Networks) else None


def fetch(name: str, kind: Kind) -> Path:
    """Return the file of a checkpoint, downloading it if needed; open_clip's models are downloaded by open_clip."""
    if kind == "clip" and is_openclip(name):
        return fetch_openclip(recipe_of(name))
    return weights.fetch(name, kind)


def is_here(name: str, kind: Kind) -> bool:
    """Return whether `fetch` would find the file on this machine, without a download."""
    if kind == "clip" and is_openclip(name):
        return cached_openclip(recipe_of(name)) is not None
    return weights.is_here(weights.find(name, kind))


def _open_clip(
    name: str,
    file: Path,
    device: torch.device,
    precision: Precision,
    card: ModelCard,
    encoder: list[str],
) -> Clip:
    """Load a CLIP from its file; `encoder` is everything that its text features depend on besides the name."""
    if is_openclip(name):
        recipe = recipe_of(name)
        cache = TextCache.of_user([*encoder, *recipe.identity()])
        weights = load_tensors(file)
        clip = load_openclip(recipe, weights, device=device, precision=precision, source=str(file), text_cache=cache)
        clip.presence = presence_model(card)
        return clip
    return Clip.from_weights(
        load_clip_weights(file, check_clip),
        device=device,
        precision=precision,
        source=str(file),
        presence=presence_model(card),
        text_cache=TextCache.of_user(encoder),
    )


def load_clip_alone(name: str, *, device: torch.device) -> Clip:
    """Load a CLIP by name or file in float32, without a card and without the cache of text features.

    Raises:
        CheckpointError: it is unknown, missing, damaged or not a CLIP.
    """
    file = fetch(name, "clip")
    return Clip.from_weights(load_clip_weights(file, check_clip), device=device, precision=FULL, source=str(file))


def presence_model(card: ModelCard) -> PresenceModel:
    """Return the parameters of presence: those of the card, or no calibration against general distractors."""
    if card.presence:
        return PresenceModel(card.presence.distractors, card.presence.slope, card.presence.offset)
    return PresenceModel(card.closed_vocabulary.names if card.closed_vocabulary else DISTRACTORS)


def _stand_in(networks: Networks, clip: Clip, sam: AnySam) -> None:
    """Let ONNX graphs replace torch's networks, and free SAM's encoder, the largest of them."""
    if not isinstance(sam, Sam):
        raise SettingsError("ONNX graphs run SAM and MobileSAM, not SAM 2; use --runtime torch")
    clip.image_network, clip.text.network = networks.clip_image, networks.clip_text
    sam.encoder_network, sam.decoder_network = networks.sam_encoder, networks.sam_decoder
    sam.module.image_encoder.to("meta")


# ---- SAM families

FAMILIES: tuple[type[AnySam], ...] = (Sam, MobileSam, Sam2)
"""All SAM families. To add one, write a subclass of `AnySam` in a file of its own in `sam/` and add it here."""


def open_sam(
    path: Path, *, device: torch.device, precision: PrecisionName = "auto", compile_encoder: bool = False
) -> AnySam:
    """Load a SAM of any family from a checkpoint file; its tensor names tell the family.

    Raises:
        CheckpointError: the file is missing, damaged, or not a SAM of a known family.
        SettingsError: the device cannot run in that precision, the encoder cannot be compiled, or a package is missing.
    """
    formats = {tensor: name for family in FAMILIES for tensor, name in family.formats.items()}
    weights = load_sam_weights(path, lambda stored: family_of(stored).check(stored), formats=formats)
    family = family_of(weights)
    config = _read_config(path.with_name("config.json")) if family.reads_config(weights) else None
    return family.from_weights(
        weights, device=device, precision=precision, compile_encoder=compile_encoder, config=config
    )


def family_of(names: Iterable[str]) -> type[AnySam]:
    """Return the family of a checkpoint with these tensor names. `Sam` if none fits: its check says what is missing."""
    names = set(names)
    return next((family for family in FAMILIES if not names.isdisjoint(family.formats)), Sam)


def _read_config(path: Path) -> Mapping[str, Any] | None:
    """Read a config.json; None if there is none."""
    if not is_file(path, CheckpointError):
        return None
    try:
        content = json.loads(read_file(path, CheckpointError))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not the config.json of a model")
    return content
