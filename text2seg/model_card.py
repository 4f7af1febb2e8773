"""Model cards: what is known about a pair of weights besides the weights, as JSON files with a checked schema.

A card belongs to weights by their sha256. Cards of calibrated pairs come with text2seg (`text2seg/cards`); those of the
user are in the folder `cards` of the checkpoint folder, written by `text2seg calibrate`, or named by `--card`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from text2seg import weights
from text2seg.errors import CheckpointError
from text2seg.io.files import is_dir, json_fault, list_folder, read_file
from text2seg.queries import shown
from text2seg.records import Image
from text2seg.vocabulary import ClosedVocabulary
from text2seg.weights.registry import is_openclip

log = logging.getLogger(__name__)

BUNDLED_CARDS = Path(__file__).parent / "cards"
LARGEST_CARD = 10_000_000  # bytes
CALIBRATE = "text2seg calibrate"
"""The command that makes cards."""


# ---- the schema

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightsFile(_Record):
    """A file of weights: the name that the user gave, and its hash."""

    name: str
    sha256: Sha256


class PresenceCalibration(_Record):
    """How patch presence is calibrated: sigmoid(slope · logit + offset), against these distractors.

    `threshold` is the presence below which a query counts as absent. It holds for maps of CLIP Surgery at the input
    size of the card.
    """

    distractors: tuple[str, ...] = Field(min_length=1)
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    offset: Finite
    threshold: Annotated[float, Field(gt=0, le=1)]


class Choice(_Record):
    """How the IoU of a SAM candidate with the object is expected to be: sam · score + separation · separation +
    constant. Beside the best segment of its query, a segment is kept if it is expected to reach `quality`."""

    sam: Finite
    separation: Finite
    constant: Finite
    quality: Finite


class RegionChoice(Choice):
    """`Choice` for a region that competes for a query: `evidence` · the log-odds that it shows the query is added."""

    evidence: Finite


class RegionClassification(_Record):
    """How the feature of a region says which query it shows.

    `features` are the features that were calibrated. The presence of a region is sigmoid(slope · log-odds + offset);
    below `threshold` the region does not show the query. SAM gets no points where the probability that CLIP's patch
    shows something is below `something`. The defaults are not calibrated: they have no threshold and no choice.
    """

    features: Literal["patches", "values"] = "patches"
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    offset: Finite = 0.0
    threshold: Share = 0.0
    something: Share = 0.0
    choice: RegionChoice | None = None

    def presence_of(self, log_odds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return presence in [0, 1] from log-odds."""
        presence: NDArray[np.float32] = 1 / (1 + np.exp(-(np.float32(self.slope) * log_odds + np.float32(self.offset))))
        return presence


class Regions(_Record):
    """Bounds of the regions of a map; see `PointSettings`. `far_below` is the ratio of odds of presence by which a
    region may be below the best one of its query."""

    floor: Share
    prominence: Share
    far_below: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class CalibratedOn(_Record):
    """The images that a card was calibrated on; `sha256` is that of the ground truth."""

    data: str
    sha256: Sha256
    images: Annotated[int, Field(ge=1)]
    pairs: Annotated[int, Field(ge=1)]
    """Number of pairs of an image and a category that it shows."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    version: str
    """Of text2seg."""


class Score(_Record):
    """One measured number with its 95 % interval over images. `method` says which calibration was at work."""

    method: Literal["reference", "uncalibrated", "calibrated", "regions"]
    measure: str
    value: Finite
    low: Finite
    high: Finite


class ModelCard(_Record):
    """What is known about a pair of weights.

    `input_size` is the default side of CLIP's input in pixels. Any words may be used if there is no `vocabulary`.
    `things` says what kind of things the vocabulary names. With `drawings_only`, a photograph is unlike what the model
    was trained on, and a run says so. `background` are texts that stand for "nothing of these". Without `presence`,
    nothing counts as absent; without `choice` and `regions`, rules that were fitted to no images are used. `notes` are
    by topic; the explanation tools show those on their topics.
    """

    format: Literal["text2seg model card 1", "text2seg model card 2"] = "text2seg model card 2"  # 2 adds regions
    name: str = ""
    clip: WeightsFile | None = None
    sam: WeightsFile | None = None
    input_size: Annotated[int, Field(ge=1)] = 512  # CLIP Surgery uses this size before SAM, whatever the training size
    vocabulary: dict[str, tuple[str, ...]] | None = None
    things: str = "things"
    drawings_only: bool = False
    background: tuple[str, ...] = ()
    presence: PresenceCalibration | None = None
    choice: Choice | None = None
    regions: Regions | None = None
    region_classification: RegionClassification | None = None
    calibrated_on: CalibratedOn | None = None
    scores: tuple[Score, ...] = ()
    licence: str = ""
    notes: dict[str, str] = {}

    @cached_property
    def closed_vocabulary(self) -> ClosedVocabulary | None:
        """The only words that the models know, or None if any words may be used."""
        return ClosedVocabulary(self.vocabulary, self.name, self.things) if self.vocabulary else None

    def uncalibrated(self) -> ModelCard:
        """Return the card without what was fitted to images."""
        fitted = {
            "presence": None,
            "choice": None,
            "regions": None,
            "region_classification": None,
            "calibrated_on": None,
            "scores": (),
        }
        return self.model_copy(update=fitted)

    def default_presence(
        self, architecture: object, input_size: object, method: object = "auto", region_features: object = "auto"
    ) -> float | None:
        """Return the presence below which a query counts as absent if neither the query nor the settings say; None if
        presence is not calibrated for these settings. The values may be recorded ones that are not checked."""
        if method == "regions":
            fitted = self.regions_for(architecture, input_size, region_features)
            return fitted.threshold if fitted else None
        return self.presence.threshold if self.presence and self._fits(architecture, input_size) else None

    def regions_for(
        self, architecture: object, input_size: object, features: object = "auto"
    ) -> RegionClassification | None:
        """Return how regions are calibrated, if that holds for these settings."""
        fitted = self.region_classification
        wanted = fitted and features in ("auto", fitted.features)
        return fitted if wanted and self._fits(architecture, input_size) else None

    def _fits(self, architecture: object, input_size: object) -> bool:
        return architecture == "surgery" and (input_size is None or input_size == self.input_size)

    def notes_on(self, topic: str) -> tuple[str, ...]:
        """Return the note on a topic, if there is one."""
        return (self.notes[topic],) if topic in self.notes else ()

    def to_json(self) -> bytes:
        return (self.model_dump_json(indent=1, exclude_none=True, exclude_defaults=False) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Hash of everything in the card."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def provenance(self) -> dict[str, str] | None:
        """Return what a COCO file records of the card; None for weights without one."""
        return {"name": self.name, "sha256": self.sha256} if self.clip else None

    def facts(self) -> dict[str, str]:
        """Return the card in words for people, as one short text for each heading."""
        vocabulary = f"{len(self.vocabulary)} {self.things}" if self.vocabulary else "any words"
        presence = f"calibrated, not found below {self.presence.threshold:.2f}" if self.presence else "not calibrated"
        on, regions = self.calibrated_on, self.region_classification
        alone = ", only what holds for this CLIP with any SAM" if self.clip and not self.sam else ""
        facts = {
            "card": f"{self.name}{alone}" or "none for these weights",
            "input": f"{self.input_size} pixels",
            "knows": vocabulary,
            "presence": presence,
            "choice of masks": "calibrated" if self.choice else "not calibrated",
            "region classification": f"calibrated, {regions.features}" if regions else "not calibrated",
            "calibrated on": f"{on.data}: {on.images} images, {on.date}, text2seg {on.version}" if on else "nothing",
        }
        facts |= {
            f"{score.measure}, {score.method}": f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
            for score in self.scores
        }
        return facts | ({"licence": self.licence} if self.licence else {})


NO_CARD = ModelCard()


# ---- files


def read_card(path: Path) -> ModelCard:
    """Read a card.

    Raises:
        CheckpointError: the file cannot be read or is not a card.
    """
    content = read_file(path, CheckpointError, limit=LARGEST_CARD + 1)
    if len(content) > LARGEST_CARD:
        raise CheckpointError(f"{path} is too large for a model card ({LARGEST_CARD:,} bytes at most)")
    try:
        card = ModelCard.model_validate_json(content)
    except ValidationError as error:
        raise CheckpointError(
            f"{path} is not a model card: {_fault(content, error)}; `{CALIBRATE}` makes one"
        ) from error
    if card.clip is None or card.sam is None:
        raise CheckpointError(f"{path} is not a model card: it does not say for which CLIP and SAM it is")
    return card


def _fault(content: bytes, error: ValidationError) -> str:
    """Return what is wrong with the content of a card, in plain words."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        try:
            json.loads(content)
        except json.JSONDecodeError as fault:
            return json_fault(fault)
        except ValueError:
            return "it is not UTF-8 text"
    if not where:
        return "it is not an object with the entries of a card"
    if where == "format":
        return f"its format is not {ModelCard().format!r}"
    return {"extra_forbidden": f"it has the unknown entry {where}", "missing": f"it lacks the entry {where}"}.get(
        first["type"], f"its entry {where} has the wrong value {shown(first['input'])}"
    )


def user_cards() -> Path:
    """Return the folder of the user's cards, which may not exist yet."""
    return weights.folder() / "cards"


def cards_in(folder: Path) -> Iterator[tuple[Path, ModelCard]]:
    """Yield the cards in a folder, which need not exist, with their files. A file that is not a card is logged, once,
    and left out."""
    for path in list_folder(folder, CheckpointError) if is_dir(folder, CheckpointError) else ():
        if path.suffix == ".json":
            try:
                yield path, read_card(path)
            except CheckpointError as error:
                log.log(logging.DEBUG if str(error) in _reported else logging.WARNING, "%s; it is not used", error)
                _reported.add(str(error))


_reported: set[str] = set()
"""Messages about files that are not cards that this process has logged."""


def find_card(clip_sha256: str, sam_sha256: str | None = None) -> ModelCard:
    """Return the card of weights by their hashes, or `NO_CARD`.

    If there is only a card of the same CLIP with another SAM, what it says about the CLIP is kept: input size,
    vocabulary, presence and regions. It then has the name of the CLIP, and no SAM.
    """
    cards = [card for folder in (user_cards(), BUNDLED_CARDS) for _, card in cards_in(folder)]
    of_clip = [card for card in cards if card.clip and card.clip.sha256 == clip_sha256]
    for card in of_clip:
        if card.sam and card.sam.sha256 == sam_sha256:
            return card
    if not of_clip or of_clip[0].clip is None:
        return NO_CARD
    of_pair: dict[str, object] = {"name": of_clip[0].clip.name, "sam": None, "choice": None, "scores": ()}
    if regions := of_clip[0].region_classification:
        of_pair["region_classification"] = regions.model_copy(update={"choice": None})
    return of_clip[0].model_copy(update=of_pair)


def file_of_card(sha256: str) -> Path | None:
    """Return the file of the card with a hash, of the user or bundled; None if there is none any more."""
    files = (pair for folder in (user_cards(), BUNDLED_CARDS) for pair in cards_in(folder))
    return next((path for path, card in files if card.sha256 == sha256), None)


def card_for(clip_sha256: str, sam_sha256: str, given: Path | None) -> ModelCard:
    """Return the given card after checking that it is for these weights, or else the one found by hash.

    Raises:
        CheckpointError: the file is not a card, or it is for other weights.
    """
    if given is None:
        return find_card(clip_sha256, sam_sha256)
    card = read_card(given)
    for kind, of_card, here in (("CLIP", card.clip, clip_sha256), ("SAM", card.sam, sam_sha256)):
        if of_card and of_card.sha256 != here:
            raise CheckpointError(
                f"{given} is the card of other weights: its {kind} is {of_card.name} with the sha256 {of_card.sha256}, "
                f"but that of the loaded one is {here}. Leave --card out, or calibrate these weights: {CALIBRATE}"
            )
    return card


def card_of(clip: str, sam: str | None = None, *, given: Path | None = None) -> ModelCard:
    """Return the card of weights by their names, before they are loaded, or the `given` file. It is found if their
    hashes are published, or the files are on this machine; `NO_CARD` also for a name that loading will refuse.

    Raises:
        CheckpointError: the given file is not a card.
    """
    if given is not None:
        return read_card(given)
    of_clip, of_sam = hashes_of(clip, sam)
    return find_card(of_clip, of_sam) if of_clip else NO_CARD


def hashes_of(clip: str, sam: str | None = None) -> tuple[str | None, str | None]:
    """Return the hashes of weights by their names, before they are loaded; None for one that is neither published nor
    on this machine, and for a name that loading will refuse."""
    try:
        if is_openclip(clip):
            return None, None
        return _hash_of(weights.find(clip, "clip")), _hash_of(weights.find(sam, "sam")) if sam else None
    except CheckpointError as error:
        log.info("no card: %s", error)
        return None, None


def place_of_card(clip_sha256: str, sam_sha256: str) -> Path:
    """Return the file where the user's card of these weights belongs."""
    return user_cards() / f"{clip_sha256[:16]}-{sam_sha256[:16]}-card.json"


def _hash_of(checkpoint: weights.Checkpoint) -> str | None:
    """Return the whole hash of a file of weights; None if it is neither published nor on this machine."""
    if checkpoint.sha256 and len(checkpoint.sha256) == 64:
        return checkpoint.sha256
    return weights.sha256_of(weights.path_of(checkpoint)) if weights.is_here(checkpoint) else None


# ---- photographs, told from drawings

MEASURED_SIDE = 192
"""Longest side on which photographs are told from drawings, in pixels. Averaging to it removes noise of the camera."""
ROUGHNESS, COLOURFULNESS = 4.0, 75.0
"""A photograph is rougher than the first and less colourful than the second, both in grey levels. Of the 48 bundled
scenes none is taken for a photograph, of 26 photographs of COCO 24 are."""


def is_photograph(image: Image) -> bool:
    """Return whether an image looks like a photograph, not like a drawing, by its colours alone.

    Photographs are rough nearly everywhere and mostly pale; drawings have smooth areas, strong colours or a plain
    ground. Blurred photographs in strong colours are missed.
    """
    longest = max(image.hw)
    rows, columns = (max(3, round(side * MEASURED_SIDE / longest)) for side in image.hw)
    small = PilImage.fromarray(image.pixels).resize((columns, rows), PilImage.Resampling.BOX)
    colours = np.asarray(small, np.float32)
    grey = colours.mean(2)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    roughness = np.quantile(np.abs(4 * grey[1:-1, 1:-1] - around), 0.6)
    colourfulness = (colours.max(2) - colours.min(2)).mean()
    return bool(roughness > ROUGHNESS and colourfulness < COLOURFULNESS)
