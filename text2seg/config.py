"""Settings: one frozen dataclass for each stage and for labelling jobs. The command line's flags are made from these,
so a setting is described once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from text2seg.errors import SettingsError
from text2seg.io.storage import Url, place_of
from text2seg.queries import names_in

Prompt = Literal["points", "box", "box-mask"]

LARGEST_INPUT = 4096  # a slip of the keyboard beyond it would take all memory
SMALLEST_TILE, MOST_TILE_OVERLAP = 32, 0.75  # beyond them there would be tiles without end


@cache
def _choices_of(settings: type[Any]) -> dict[str, tuple[str, ...]]:
    """The choices of each field that has some; reading them off the class takes long, and settings are made often."""
    hints = get_type_hints(settings)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def check_choices(settings: object) -> None:
    """Literals bind type checkers only, and a misspelt choice must not quietly mean another."""
    kind: Any = type(settings)
    for name, choices in _choices_of(kind).items():
        value = getattr(settings, name)
        if value not in choices:
            raise SettingsError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def freeze_texts(settings: object, name: str) -> None:
    """Lists become tuples; one text is refused, because it would count as many of one letter each."""
    given = getattr(settings, name)
    if isinstance(given, str):
        raise SettingsError(f"{name} must be a sequence of texts, got the one text {given!r}")
    texts = tuple(given)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise SettingsError(f"{name} must be texts that are not empty, got {texts!r}")
    object.__setattr__(settings, name, texts)


def freeze_names(settings: object, name: str) -> None:
    """As `freeze_texts`, of names: a text may hold several, as people type them."""
    freeze_texts(settings, name)
    object.__setattr__(settings, name, names_in(getattr(settings, name)))


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which weights, on which device, in which precision."""

    model: Literal["demo", "base", "large", "huge"] = "demo"
    """A pair of CLIP and SAM: demo (bundled; knows drawn things only), or CLIP ViT-B/16 with SAM ViT-B, -L or -H."""
    clip: str | None = None
    """CLIP by name (`text2seg checkpoints list`) or file, in place of the pair's; openclip:… is one of open_clip."""
    sam: str | None = None
    """SAM by name (vit_b, mobile_sam, sam2.1_hiera_tiny, …: see `checkpoints list`) or file, in place of the pair's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, …"""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the networks; auto picks for the device and says why in the log."""
    compile: bool = False
    """Let torch compile SAM's encoder: a minute at the start, faster after that. Needs a C++ compiler."""
    runtime: Literal["torch", "onnx"] = "torch"
    """What runs the networks; onnx: ONNX Runtime, from `graphs`."""
    graphs: Path | None = None
    """With --runtime onnx: the folder that `text2seg export onnx` wrote for these models."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.runtime == "onnx" and self.graphs is None:
            raise SettingsError("--runtime onnx needs --graphs FOLDER, which `text2seg export onnx` writes")
        if self.runtime == "torch" and self.graphs is not None:
            raise SettingsError("--graphs is for --runtime onnx")

    def arguments(self) -> dict[str, Any]:
        """As `Text2Seg.load` takes them; there the graphs say which runtime."""
        named = asdict(self)
        del named["runtime"]
        return named


@dataclass(frozen=True, slots=True)
class MapSettings:
    """From words to similarity maps."""

    architecture: Literal["surgery", "raw", "maskclip", "sclip", "clearclip", "naclip", "gem"] = "surgery"
    """How CLIP's patches attend: surgery, raw (as CLIP does), or a rule published later (vision transformers only)."""
    redundancy: Literal["empty", "label-set", "none"] = "empty"
    """What is taken off the map: what the empty text lights up too, what all labels light up, or nothing."""
    labels: tuple[str, ...] = ()
    """Further labels for `label-set`; the queries themselves always belong to the set."""
    input_size: int | tuple[int, int] | None = None
    """CLIP's input in pixels, one number or rows and columns; the image is squashed to it. Default: 512, demo 384."""
    templates: tuple[str, ...] = ()
    """Sentences with a {} for the query. Default: CLIP Surgery's 85."""
    refine: Literal["none", "pamr"] = "none"
    """pamr: draw the maps to the image's edges (pixel-adaptive mask refinement)."""

    def __post_init__(self) -> None:
        check_choices(self)
        freeze_names(self, "labels")
        freeze_texts(self, "templates")
        if isinstance(self.input_size, list):
            object.__setattr__(self, "input_size", tuple(self.input_size))
        sides = self.input_size if isinstance(self.input_size, tuple) else (self.input_size or 1,) * 2
        if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
            raise SettingsError(f"input size must be one whole number or two, got {self.input_size!r}")
        if self.input_size == 0 or not all(1 <= side <= LARGEST_INPUT for side in sides):
            raise SettingsError(f"input size must be positive and at most {LARGEST_INPUT}, got {self.input_size}")
        for template in self.templates:
            if "{}" not in template:
                raise SettingsError(f"a template needs a {{}} for the query, got {template!r}")


@dataclass(frozen=True, slots=True)
class PointSettings:
    """From a similarity map to point prompts."""

    method: Literal["auto", "reference"] = "auto"
    """auto: CLIP Surgery's points, its faults mended, and what was measured to be better than it; reference: the whole
    way as published, with one segment for each query, SAM's own choice of its candidates and nothing "not found"."""
    threshold: float = 0.8
    """Cells of the min-max map at or above this become positive points; with `regions`, this share of their peak."""
    instances: Literal["auto", "regions", "union"] = "auto"
    """regions: each thing of a kind is a segment of its own; union: all of a kind are one segment; auto: regions where
    presence is fitted to the model (demo), because it sorts out false regions, otherwise union."""
    floor: float = 0.5
    """Cells of the min-max map below this belong to no region."""
    prominence: float = 0.05
    """Two regions stay apart where the lower peak rises at least this far above the saddle between them."""
    downsample: int | None = None
    """The map's grid is made this many times coarser first. Default: 2 where it is finer than 16 by 16, else 1."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.threshold <= 1:
            raise SettingsError(f"threshold must be in (0, 1], got {self.threshold}")
        for name, value in (("floor", self.floor), ("prominence", self.prominence)):
            if not 0 <= value <= 1:
                raise SettingsError(f"{name} must be in [0, 1], got {value}")
        if self.downsample is not None and not (isinstance(self.downsample, int) and self.downsample >= 1):
            raise SettingsError(f"downsample must be a whole number of 1 or more, got {self.downsample}")


@dataclass(frozen=True, slots=True)
class MaskSettings:
    """From SAM's candidates to segments."""

    choice: Literal["map", "sam"] = "map"
    """Which candidate becomes the segment: by the map and SAM's score together, or by SAM's score alone."""
    overlap: float = 0.6
    """Of two segments of one query whose IoU is above this, or of which one lies in the other, the better one stays."""

    quality: float = 0.35
    """Of several segments of one query, the best stays, and the others where the IoU to be expected of them is at least
    this."""

    prompt: Prompt = "points"
    """What SAM is given of each region: many points; box: its tight box and its highest point, of which SAM makes one
    mask instead of candidates; box-mask: the map as a rough mask as well (Trident's way; not for the demo SAM)."""
    fallback: bool = False
    """Where SAM's best candidate is expected to be bad and has little to do with the region of the map, take that
    region itself, thresholded, as the segment."""
    compete: bool = False
    """Where segments of different queries overlap, give each pixel to the query whose map times presence is higher
    there; drop a segment that loses more than 85 % of its pixels so."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.overlap <= 1:
            raise SettingsError(f"overlap must be in (0, 1], got {self.overlap}")


@dataclass(frozen=True, slots=True)
class PresenceSettings:
    """Whether a thing is in the image at all."""

    presence: float | None = None
    """Things whose presence is below this, from 0 to 1, are "not found". Default: 0.5 for the demo model's usual maps
    (surgery, 384 pixels), which presence is fitted to; otherwise 0, which never says "not found"."""

    def __post_init__(self) -> None:
        if self.presence is not None and not 0 <= self.presence <= 1:
            raise SettingsError(f"presence must be in [0, 1], got {self.presence}")


@dataclass(frozen=True, slots=True)
class TileSettings:
    """Small things in large images."""

    tile: int = 0
    """Look at tiles of this many pixels a side too, beside the whole image, so that small things are found; takes
    longer by as much as there are tiles. 0: the whole image only."""
    tile_overlap: float = 0.2
    """How far each tile reaches into the next, at least, as a share of its side; what is smaller than that is whole in
    one of them."""

    def __post_init__(self) -> None:
        if not isinstance(self.tile, int) or (self.tile != 0 and self.tile < SMALLEST_TILE):
            raise SettingsError(f"tile must be 0 or a whole number of {SMALLEST_TILE} or more, got {self.tile!r}")
        if not 0 <= self.tile_overlap <= MOST_TILE_OVERLAP:
            raise SettingsError(f"tile overlap must be in [0, {MOST_TILE_OVERLAP}], got {self.tile_overlap}")


@dataclass(frozen=True, slots=True)
class Settings:
    """How an image and words become segments."""

    maps: MapSettings = field(default_factory=MapSettings)
    points: PointSettings = field(default_factory=PointSettings)
    presence: PresenceSettings = field(default_factory=PresenceSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    tiles: TileSettings = field(default_factory=TileSettings)

    def __post_init__(self) -> None:
        if self.points.method == "reference":
            object.__setattr__(self, "points", replace(self.points, instances="union"))
            published = replace(self.masks, choice="sam", prompt="points", fallback=False, compete=False)
            object.__setattr__(self, "masks", published)
            if self.presence.presence is None:
                object.__setattr__(self, "presence", PresenceSettings(0))


def settings_from_dict(values: Mapping[str, Any]) -> Settings:
    """Settings from what `dataclasses.asdict` and JSON made of them; what is not there is as by default.

    Raises `SettingsError` where a name is not known, as from a newer version, or a value is none that is allowed.
    """
    stages = get_type_hints(Settings)
    points = values.get("points")
    if isinstance(points, Mapping) and points.get("method") == "text2points":  # as it was called before 0.5
        values = {**values, "points": {**points, "method": "auto"}}
    try:
        return Settings(**{stage: stages[stage](**given) for stage, given in values.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"these settings are not of this version of text2seg: {error}") from error


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """Where results go and which of them."""

    output: Path = Path("outputs")
    """Folder for the images and the COCO file; made if missing."""
    overlay: bool = True
    """Write each image with its masks on it."""
    explain: bool = True
    """Write why each mask is as it is, in one image for each image: the map with its points, SAM's candidates and the
    one that was chosen."""
    segmentation: Literal["rle", "polygon"] = "rle"
    """How masks stand in the COCO file: rle is lossless, polygon is what labelling tools want."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """A labelling job: which files of the folder, where to, and how."""

    output: Url | Path = Path("dataset.json")
    """The COCO file, a path or a URL. A journal (.journal) beside it keeps what is done, so that a stopped job goes on;
    that of a URL lies in the user's state folder, or in TEXT2SEG_STATE."""
    segmentation: Literal["rle", "polygon"] = "rle"
    """How masks stand in the COCO file: rle is lossless, polygon is what labelling tools want."""
    recursive: bool = True
    """Look through the folders in the folder as well."""
    glob: tuple[str, ...] = ()
    """Only files of this pattern, such as "*.jpg" or "front/*"; repeat for more. Default: all that Pillow reads."""
    limit: int | None = None
    """Only the first so many files, in the order of their paths."""
    shard: str = ""
    """Only a part of the files: 2/5 is the second of five. Give each shard an output of its own."""
    batch: int = 4
    """Images that go through the models at once; more need more memory."""
    workers: int = 4
    """Threads that read and decode images."""
    categories_from: Url | Path | None = None
    """Take the ids of categories and images from this COCO file, for instance the ground truth to compare with; a path
    or a URL."""
    keep_candidates: bool = False
    """Write the masks that SAM offered and that were not chosen as well, into attributes.candidates."""
    restart: bool = False
    """Throw away what an earlier run of this job has done."""
    only_if_present: bool = False
    """Do not look for anything in images that, by a vector index of the folder, show none of the categories; they stand
    in the COCO file without annotations. The index is made first, or brought up to date (`text2seg search`)."""
    skip_below: float = 0.1
    """The presence, from 0 to 1, that every category must stay below in the index for an image to be left out so."""
    index: Path | None = None
    """The folder that indexes are kept in. Default: one in your cache folder."""
    retry_failures: bool = False
    """Try images again that failed in an earlier run."""
    overwrite: bool = False
    """Write over an output that this job did not make."""

    def __post_init__(self) -> None:
        check_choices(self)
        freeze_texts(self, "glob")
        object.__setattr__(self, "output", place_of(self.output))
        if self.categories_from is not None:
            object.__setattr__(self, "categories_from", place_of(self.categories_from))
        if not 0 <= self.skip_below <= 1:
            raise SettingsError(f"skip below must be in [0, 1], got {self.skip_below}")
        for name in ("limit", "batch", "workers"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1) and (name != "limit" or value is not None):
                raise SettingsError(f"{name} must be a whole number of 1 or more, got {value!r}")


@dataclass(frozen=True, slots=True)
class RaySettings:
    """The workers of `--engine ray`: processes of a Ray cluster that each hold the models."""

    address: str | None = None
    """A Ray cluster that is there: host:port of its head, or auto for the one that this machine belongs to. Default: a
    Ray of its own on this machine, which ends with the job."""
    min_workers: int = 1
    """Workers that are kept all the time."""
    max_workers: int = 1
    """Workers at most: between the two, Ray adds and removes some as there is work and room."""
    cpus_per_worker: int = 1
    """CPUs that are set aside for each worker; torch computes with as many threads."""
    gpus_per_worker: float = 0.0
    """GPUs that are set aside for each worker; with 0.5 two share one, and one can read images while the other
    computes. The worker's device is --device as on one machine."""

    def __post_init__(self) -> None:
        for name in ("min_workers", "max_workers", "cpus_per_worker"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise SettingsError(f"{name.replace('_', ' ')} must be a whole number of 1 or more, got {value!r}")
        if self.max_workers < self.min_workers:
            raise SettingsError(f"max workers ({self.max_workers}) must not be below min workers ({self.min_workers})")
        share = self.gpus_per_worker
        if not 0 <= share < float("inf") or (share > 1 and share != int(share)):
            raise SettingsError(f"gpus per worker must be a part of one GPU or a whole number of them, got {share}")
