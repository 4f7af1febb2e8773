"""A pair of models by name, downloaded where missing, ready to run."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from text2seg import checkpoints
from text2seg.checkpoints.load import load_clip_weights, load_sam_weights
from text2seg.maps.clip import Clip
from text2seg.maps.presence import PresenceModel
from text2seg.maps.text_cache import TextCache
from text2seg.masks.sam import Sam
from text2seg.runtime import PrecisionName, choose_device, choose_precision
from text2seg.vocabulary import Things

log = logging.getLogger(__name__)

PUBLISHED_INPUT_SIZE = 512  # what the original feeds CLIP before SAM, whatever the model was trained on
DEMO_INPUT_SIZE = 384  # small things, and those side by side, show better than at the 256 it was trained on


@dataclass(frozen=True, slots=True)
class Loaded:
    """The models, CLIP's input size where the settings leave it open, all that they know where that is little, and
    the checkpoints' names and hashes."""

    clip: Clip
    sam: Sam
    size: int
    things: Things | None
    provenance: dict[str, object]


def load_pair(
    model: str, *, clip: str | None, sam: str | None, device: str, precision: PrecisionName, compile_sam: bool = False
) -> Loaded:
    """Arguments and errors as for `Text2Seg.load`."""
    clip_name, sam_name = checkpoints.pair(model, clip=clip, sam=sam)
    # What is wrong with the names or the machine shows before gigabytes are downloaded.
    checkpoints.find(clip_name, "clip")
    checkpoints.find(sam_name, "sam")
    where = choose_device(device)
    chosen = choose_precision(where, precision)
    clip_file, sam_file = checkpoints.fetch(clip_name, "clip"), checkpoints.fetch(sam_name, "sam")
    log.info("CLIP on %s in %s: %s", where, chosen.name, chosen.reason)
    clip_hash, sam_hash = checkpoints.sha256_of(clip_file), checkpoints.sha256_of(sam_file)
    things = Things.of_demo() if clip_name == "demo" else None
    return Loaded(
        Clip.from_weights(
            load_clip_weights(clip_file),
            device=where,
            precision=chosen,
            source=str(clip_file),
            presence=PresenceModel.of_demo(things.names) if things else None,
            text_cache=TextCache.of_user([clip_hash, chosen.name, where.type]),
        ),
        Sam.from_weights(load_sam_weights(sam_file), device=where, precision=precision, compile_encoder=compile_sam),
        DEMO_INPUT_SIZE if things else PUBLISHED_INPUT_SIZE,
        things,
        {
            "clip": {"name": clip_name, "sha256": clip_hash},
            "sam": {"name": sam_name, "sha256": sam_hash},
        },
    )
