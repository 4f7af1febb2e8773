"""A pair of models by name, downloaded where missing, ready to run."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from text2seg import weights
from text2seg.clip.build import check_clip
from text2seg.clip.maps import PresenceModel
from text2seg.clip.model import Clip
from text2seg.clip.openclip import cached_openclip, fetch_openclip, recipe_of
from text2seg.clip.openclip_build import load_openclip
from text2seg.clip.text import TextCache
from text2seg.errors import SettingsError
from text2seg.onnx.networks import Networks, choose_onnx_device
from text2seg.queries import Things
from text2seg.runtime import FULL, Precision, PrecisionName, choose_device, choose_precision
from text2seg.sam.base import AnySam
from text2seg.sam.families import open_sam
from text2seg.sam.sam import Sam
from text2seg.weights.registry import Checkpoint, Kind, is_openclip
from text2seg.weights.tensors import load_clip_weights, load_tensors

log = logging.getLogger(__name__)

PUBLISHED_INPUT_SIZE = 512  # what the original feeds CLIP before SAM, whatever the model was trained on
SAM2_NAMES = "sam2"  # how the published names of its family begin
DEMO_INPUT_SIZE = 384  # what it was trained for


@dataclass(frozen=True, slots=True)
class Loaded:
    """The models, CLIP's input size where the settings leave it open, all that they know where that is little, and
    the checkpoints' names and hashes."""

    clip: Clip
    sam: AnySam
    size: int
    things: Things | None
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
) -> Loaded:
    """Arguments and errors as for `Text2Seg.load`."""
    clip_name, sam_name = weights.pair(model, clip=clip, sam=sam)
    # What is wrong with the names or the machine shows before gigabytes are downloaded.
    find(clip_name, "clip")
    _check_family(find(sam_name, "sam"), compile_sam=compile_sam, graphs=graphs is not None)
    if compile_sam and graphs is not None:
        raise SettingsError("torch compiles nothing of ONNX graphs; leave --compile out")
    where = choose_device(device) if graphs is None else choose_onnx_device(device)
    chosen = choose_precision(where, precision) if graphs is None else FULL
    clip_file, sam_file = fetch(clip_name, "clip"), fetch(sam_name, "sam")
    clip_hash, sam_hash = weights.sha256_of(clip_file), weights.sha256_of(sam_file)
    networks = None
    if graphs is None:
        log.info("CLIP on %s in %s: %s", where, chosen.name, chosen.reason)
    else:
        networks = Networks.open(Path(graphs), clip_sha256=clip_hash, sam_sha256=sam_hash, device=where)
        networks.check_precision(precision)
    things = Things.of_demo() if clip_name == "demo" else None
    arithmetic = chosen.name if networks is None else networks.encoder_of_texts
    loaded = Loaded(
        _open_clip(clip_name, clip_file, where, chosen, things, [clip_hash, arithmetic, where.type]),
        open_sam(
            sam_file,
            device=where,
            precision=precision if networks is None else "fp32",
            compile_encoder=compile_sam,
        ),
        DEMO_INPUT_SIZE if things else PUBLISHED_INPUT_SIZE,
        things,
        {
            "clip": {"name": clip_name, "sha256": clip_hash},
            "sam": {"name": sam_name, "sha256": sam_hash},
            **(networks.provenance if networks else {}),
        },
    )
    if networks:
        _stand_in(networks, loaded.clip, loaded.sam)
    return loaded


def find(name: str, kind: Kind) -> Checkpoint:
    """As `weights.find`; whether open_clip has a model of the name, and whether it fits, shows too."""
    if kind == "clip" and is_openclip(name):
        recipe_of(name)
    return weights.find(name, kind)


def graphs_of(clip: Clip) -> Path | None:
    """The folder of the ONNX graphs that answer in place of a CLIP's networks; none where torch runs them."""
    networks = getattr(clip.image_network, "__self__", None)
    return networks.folder if isinstance(networks, Networks) else None


def fetch(name: str, kind: Kind) -> Path:
    """The file of a checkpoint: as `weights.fetch`, and of a CLIP of open_clip as that package does."""
    if kind == "clip" and is_openclip(name):
        return fetch_openclip(recipe_of(name))
    return weights.fetch(name, kind)


def is_here(name: str, kind: Kind) -> bool:
    """Whether `fetch` would take a file of this machine, without a download."""
    if kind == "clip" and is_openclip(name):
        return cached_openclip(recipe_of(name)) is not None
    return weights.is_here(weights.find(name, kind))


def _check_family(sam: Checkpoint, *, compile_sam: bool, graphs: bool) -> None:
    """Raise `SettingsError` where a published SAM is of a family that cannot run so; of a file it shows on loading."""
    if not (sam.url and sam.name.startswith(SAM2_NAMES)):
        return
    if compile_sam:
        raise SettingsError(f"{sam.name} is a SAM 2, which runs uncompiled only; leave --compile out or choose a SAM")
    if graphs:
        raise SettingsError(f"{sam.name} is a SAM 2, and ONNX graphs run SAM and MobileSAM only; use --runtime torch")


def _open_clip(
    name: str, file: Path, device: torch.device, precision: Precision, things: Things | None, encoder: list[str]
) -> Clip:
    """The CLIP of this name from its file; `encoder` is all that its text features depend on beside the name."""
    if is_openclip(name):
        recipe = recipe_of(name)
        cache = TextCache.of_user([*encoder, *recipe.identity()])
        weights = load_tensors(file)
        return load_openclip(recipe, weights, device=device, precision=precision, source=str(file), text_cache=cache)
    return Clip.from_weights(
        load_clip_weights(file, check_clip),
        device=device,
        precision=precision,
        source=str(file),
        presence=PresenceModel.of_demo(things.names) if things else None,
        text_cache=TextCache.of_user(encoder),
    )


def _stand_in(networks: Networks, clip: Clip, sam: AnySam) -> None:
    """Let the graphs answer in place of torch's networks, of which SAM's encoder, the largest, is let go."""
    if not isinstance(sam, Sam):
        raise SettingsError("ONNX graphs run SAM and MobileSAM, not SAM 2; use --runtime torch")
    clip.image_network, clip.text.network = networks.clip_image, networks.clip_text
    sam.encoder_network, sam.decoder_network = networks.sam_encoder, networks.sam_decoder
    sam.module.image_encoder.to("meta")
