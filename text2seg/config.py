"""Settings: one frozen dataclass per stage, and those of jobs. Flags of the command line are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from text2seg.errors import SettingsError
from text2seg.io.storage import Url, place_of
from text2seg.settings_fields import (
    check_choices,
    check_device_name,
    freeze_choices,
    freeze_names,
    freeze_texts,
    of_type,
)

Architecture = Literal["surgery", "raw", "maskclip", "sclip", "clearclip", "naclip", "gem", "corrclip", "corrclip-sam"]
"""Names of the attention rules, `text2seg.clip.encoders.RULES`."""
Prompt = Literal["points", "box", "box-mask"]
RegionFeatures = Literal["patches", "values"]
"""Features of regions, `text2seg.clip.regions`."""

POINT_THRESHOLD = 0.8
"""Default of `--threshold`: cells of the min-max map at or above it become positive points."""

LARGEST_INPUT = 4096  # a slip of the keyboard beyond it would take all memory
SMALLEST_TILE, MOST_TILE_OVERLAP = 32, 0.75  # beyond them there would be tiles without end
MOST_POINTS_PER_SIDE, MOST_CROP_LAYERS = 256, 4  # beyond them an image would take hours

OnnxProvider = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt-fp16"]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which weights to use, on which device and in which precision."""

    model: Literal["auto", "demo", "light", "base", "large", "huge"] = "auto"
    """Pair of CLIP and SAM: demo (bundled; knows drawn things only), or CLIP ViT-B/16 with MobileSAM (light), SAM ViT-B
    (base), -L (large) or -H (huge). auto: the first of base, light, large and huge whose weights are on this machine,
    or else demo."""
    clip: str | None = None
    """Another CLIP, by name (see `text2seg checkpoints list`) or file; openclip:… is a model of open_clip."""
    sam: str | None = None
    """Another SAM, by name (vit_b, mobile_sam, sam2.1_hiera_tiny, …; see `text2seg checkpoints list`) or file."""
    card: Path | None = None
    """Model card (JSON) of these weights, which `text2seg calibrate` writes. Default: the one found by their hashes."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, …"""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of the networks. auto chooses for the device; --verbose says why."""
    compile: bool = False
    """Compile SAM's encoder with torch: slower to start (about a minute), then faster. Needs a C++ compiler."""
    runtime: Literal["torch", "onnx"] = "torch"
    """Library that runs the networks. onnx is ONNX Runtime and needs --graphs."""
    graphs: Path | None = None
    """Folder that `text2seg export onnx` wrote for these models. Only with --runtime onnx."""
    onnx_provider: OnnxProvider = "auto"
    """Execution provider of ONNX Runtime. auto: that of the device, cpu or cuda. tensorrt: NVIDIA TensorRT in the
    precision of the graphs; tensorrt-fp16: in half precision where it is faster. Both build engines at the first run,
    which takes minutes, and keep them beside the graphs."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_device_name(self.device)
        if self.runtime == "onnx" and self.graphs is None:
            raise SettingsError("--runtime onnx needs --graphs FOLDER, which `text2seg export onnx` writes")
        if self.runtime == "torch" and self.graphs is not None:
            raise SettingsError("--graphs is for --runtime onnx")
        if self.runtime == "torch" and self.onnx_provider != "auto":
            raise SettingsError("--onnx-provider is for --runtime onnx")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Text2Seg.load`, where `graphs` alone selects the runtime."""
        named = asdict(self)
        del named["runtime"]
        return named


@dataclass(frozen=True, slots=True)
class MapSettings:
    """From words to similarity maps."""

    architecture: Architecture = "surgery"
    """How CLIP's patches attend: surgery (CLIP Surgery), raw (unchanged CLIP), or a later rule (vision transformers
    only)."""
    redundancy: Literal["empty", "label-set", "none"] = "empty"
    """What to subtract from a map: the map of the empty text, the mean map of all labels, or nothing."""
    labels: tuple[str, ...] = ()
    """More labels for --redundancy label-set. The queries are always part of the set."""
    input_size: int | tuple[int, int] | None = None
    """Size of CLIP's input in pixels: one number, or rows and columns. Images are resized to it. Default: that of the
    model card, or 512."""
    templates: tuple[str, ...] = ()
    """Sentences with {} in place of the query. Default: CLIP Surgery's 85 templates."""
    refine: Literal["none", "pamr"] = "none"
    """pamr: align the maps with edges in the image (pixel-adaptive mask refinement)."""
    region_features: Literal["auto", "patches", "values"] = "auto"
    """What tells which query a region shows: the mean of its patches, or TextRegion's values of the last block (vision
    transformers only). auto: as the model card says; without one, values, and patches for ResNets and ONNX."""

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

    method: Literal["auto", "reference", "regions"] = "auto"
    """auto: the points of CLIP Surgery with later improvements. reference: the method exactly as published, with one
    segment per query, the candidate that SAM scores highest, and no "not found". regions: region classification; SAM
    cuts out everything once, and CLIP says which query each region shows, so that more queries cost hardly more."""
    threshold: float = POINT_THRESHOLD
    """Cells of the map (0 to 1) at or above this value become positive points. With regions: this share of the peak of
    each region."""
    instances: Literal["auto", "regions", "union"] = "auto"
    """regions: one segment for each object. union: one segment for all objects of a query. auto: regions, and union
    with --method reference."""
    floor: float | None = None
    """Cells of the map (0 to 1) below this value belong to no region. Default: that of the model card, or 0.5."""
    prominence: float | None = None
    """How far the lower of two peaks must rise above the saddle between them to be a region of its own. Default: that
    of the model card, or 0.05."""
    downsample: int | None = None
    """Make the grid of the map this many times coarser first. Default: 2 if it is finer than 16 by 16, else 1."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.threshold <= 1:
            raise SettingsError(f"threshold must be in (0, 1], got {self.threshold}")
        for name, value in (("floor", self.floor), ("prominence", self.prominence)):
            if value is not None and not 0 <= value <= 1:
                raise SettingsError(f"{name} must be in [0, 1], got {value}")
        if self.downsample is not None and not (isinstance(self.downsample, int) and self.downsample >= 1):
            raise SettingsError(f"downsample must be a whole number of 1 or more, got {self.downsample}")


@dataclass(frozen=True, slots=True)
class MaskSettings:
    """From SAM's candidates to segments."""

    choice: Literal["map", "sam"] = "map"
    """How to choose among SAM's candidates: by the map and SAM's score together, or by SAM's score alone."""
    overlap: float = 0.6
    """IoU above which two segments of one query show the same object, so that only the better one is kept."""

    quality: float | None = None
    """Quality that a segment needs to be kept beside the best segment of its query. With a calibrated choice, this is
    the expected IoU. Default: that of the model card; without one, a share of the best segment's quality."""

    prompt: Prompt = "points"
    """What SAM gets for each region: points; its box and highest point (box), for which SAM returns one mask and no
    other candidates; or the map as a rough mask as well (box-mask; not for the demo SAM, and not measured with
    published ones)."""
    resolve_overlaps: bool = False
    """Give each pixel to one query only: the one with the higher map times presence. Segments that lose more than 85 %
    of their pixels are dropped."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.overlap <= 1:
            raise SettingsError(f"overlap must be in (0, 1], got {self.overlap}")


@dataclass(frozen=True, slots=True)
class PresenceSettings:
    """Whether a query is in the image at all."""

    presence: float | None = None
    """Presence (0 to 1) below which a query is "not found". Default: the threshold of the model card, with
    --architecture surgery at the card's input size; otherwise 0, which never says "not found"."""

    def __post_init__(self) -> None:
        if self.presence is not None and not 0 <= self.presence <= 1:
            raise SettingsError(f"presence must be in [0, 1], got {self.presence}")

    def threshold(self, of_query: float | None, of_model: float | None) -> float | None:
        """Return the threshold of the query if it has one, else this setting, else the default of the model
        (`ModelCard.default_presence`)."""
        if of_query is not None:
            return of_query
        return of_model if self.presence is None else self.presence


@dataclass(frozen=True, slots=True)
class TileSettings:
    """Small things in large images."""

    tile: int = 0
    """Also search tiles of this many pixels a side, to find small things. Each tile takes about as long as an image. 0:
    the whole image only."""
    tile_overlap: float = 0.2
    """Lowest overlap of neighbouring tiles, as a share of their side. Things smaller than the overlap are whole in one
    tile."""

    def __post_init__(self) -> None:
        if not isinstance(self.tile, int) or (self.tile != 0 and self.tile < SMALLEST_TILE):
            raise SettingsError(f"tile must be 0 or a whole number of {SMALLEST_TILE} or more, got {self.tile!r}")
        if not 0 <= self.tile_overlap <= MOST_TILE_OVERLAP:
            raise SettingsError(f"tile overlap must be in [0, {MOST_TILE_OVERLAP}], got {self.tile_overlap}")


@dataclass(frozen=True, slots=True)
class AutomaticSettings:
    """Everything in an image, without words: a grid of points, each answered by SAM's candidates, which are filtered
    and stripped of repeats. The defaults are those of `segment_anything.SamAutomaticMaskGenerator`.

    Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643), appendix B.
    """

    points_per_side: int = 32
    """Points along each side of the image; SAM answers every one. Half as many take a quarter of the time."""
    points_per_call: int = 64
    """Points that are answered before their candidates are filtered. Fewer need less memory."""
    predicted_iou: float = 0.88
    """Keep candidates with a predicted IoU above this (0 to 1); 0 keeps all."""
    stability: float = 0.95
    """Keep candidates with at least this stability (0 to 1): the IoU of the masks at a higher and a lower threshold."""
    stability_offset: float = 1.0
    """How far the two thresholds of the stability are from the threshold of the mask, in logits."""
    suppression: Literal["boxes", "masks", "parts"] = "boxes"
    """Which candidates repeat a better one. boxes: those whose boxes overlap more than --box-overlap. masks: also those
    whose masks do. parts: also those that lie inside the mask of a better one, or hold it."""
    box_overlap: float = 0.7
    """IoU above which two candidates are the same thing."""
    crop_layers: int = 0
    """Also search crops of the image, to find small things: 1 adds 4 crops, 2 adds 16 more. Each takes about as long as
    the image."""
    crop_overlap: float = 512 / 1500
    """Overlap of neighbouring crops, as a share of the shorter side of the image; halved with each layer."""
    crop_points_divisor: int = 1
    """Divide the points per side by this in each layer of crops."""
    min_region: int = 0
    """Fill holes and remove islands of fewer pixels than this."""

    def __post_init__(self) -> None:
        check_choices(self)
        least = {
            "points_per_side": 1,
            "points_per_call": 1,
            "crop_layers": 0,
            "crop_points_divisor": 1,
            "min_region": 0,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise SettingsError(
                    f"{name.replace('_', ' ')} must be a whole number of {smallest} or more, got {value!r}"
                )
        for name, most in (("points_per_side", MOST_POINTS_PER_SIDE), ("crop_layers", MOST_CROP_LAYERS)):
            if getattr(self, name) > most:
                raise SettingsError(f"{name.replace('_', ' ')} must be at most {most}, got {getattr(self, name)}")
        for name in ("predicted_iou", "stability", "box_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name.replace('_', ' ')} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.crop_overlap < 1:
            raise SettingsError(f"crop overlap must be in [0, 1), got {self.crop_overlap}")
        if not 0 <= self.stability_offset < float("inf"):
            raise SettingsError(f"stability offset must be 0 or more, got {self.stability_offset}")


@dataclass(frozen=True, slots=True)
class RefineSettings:
    """How boxes and masks that exist already become finer masks."""

    keep_below: float = 0.8
    """Keep an old mask as it is if SAM's predicted IoU (0 to 1) of the new one is below this. Boxes always get one."""
    amplitude: float = 30.0
    """How strongly the old mask guides SAM, in logits."""

    def __post_init__(self) -> None:
        if not 0 <= self.keep_below <= 1:
            raise SettingsError(f"keep below must be in [0, 1], got {self.keep_below}")
        if not 0 < self.amplitude < float("inf"):
            raise SettingsError(f"amplitude must be more than 0, got {self.amplitude}")


@dataclass(frozen=True, slots=True)
class Settings:
    """How an image and words become segments; one field per stage, in the order of the pipeline."""

    maps: MapSettings = field(default_factory=MapSettings)
    points: PointSettings = field(default_factory=PointSettings)
    presence: PresenceSettings = field(default_factory=PresenceSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    tiles: TileSettings = field(default_factory=TileSettings)

    def __post_init__(self) -> None:
        for stage in fields(self):
            of_type(getattr(self, stage.name), stage.default_factory, stage.name)  # type: ignore[arg-type]
        if self.points.method == "reference":
            object.__setattr__(self, "points", replace(self.points, instances="union"))
            published = replace(self.masks, choice="sam", prompt="points", resolve_overlaps=False)
            object.__setattr__(self, "masks", published)
            if self.presence.presence is None:
                object.__setattr__(self, "presence", PresenceSettings(0))


def settings_from_dict(values: Mapping[str, Any]) -> Settings:
    """Read settings from JSON that `dataclasses.asdict` gave; missing values get their defaults.

    Raises `SettingsError` for unknown names, such as those of a newer version, and for values that are not allowed.
    """
    stages = get_type_hints(Settings)
    points = values.get("points")
    if isinstance(points, Mapping) and points.get("method") == "text2points":  # as it was called before 0.5
        values = {**values, "points": {**points, "method": "auto"}}
    try:
        return Settings(**{stage: stages[stage](**given) for stage, given in values.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"these settings are not of this version of text2seg: {error}") from error


SaveKind = Literal["overlay", "why", "masks", "cutouts"]
"""Kinds of image files that `--save` writes; `render.saving` makes them."""

TrackerName = Literal["auto", "memory", "matching"]
VideoSave = Literal["overlay", "frames"]
"""Kinds of files that `track --save` writes."""

Encoding = Literal["rle", "polygon"]
"""How masks are written in COCO files. `text2seg.coco.dataset.ENCODERS` has the function for each."""

POLYGON_TOLERANCE = 1.0
"""Default of `--polygon-tolerance`, in pixels."""
LARGEST_TOLERANCE = 100.0


def check_tolerance(tolerance: object) -> None:
    """Raise `SettingsError` unless a tolerance of polygons is a number of pixels from 0 to `LARGEST_TOLERANCE`."""
    if not isinstance(tolerance, int | float) or not 0 <= tolerance <= LARGEST_TOLERANCE:
        raise SettingsError(f"polygon tolerance must be from 0 to {LARGEST_TOLERANCE:g} pixels, got {tolerance!r}")


@dataclass(frozen=True, slots=True)
class _FolderSettings:
    """Output folder, and how masks are written in its COCO file."""

    output: Path = Path("outputs")
    """Folder for the COCO file, dataset.json, and the files of --save; it is made if it is missing."""
    overwrite: bool = False
    """Replace the results of an earlier run. Without this flag, a folder that has a dataset.json is refused."""
    segmentation: Encoding = "rle"
    """How masks are written in the COCO file: rle is lossless, polygon suits labelling tools."""
    polygon_tolerance: float = POLYGON_TOLERANCE
    """With polygons: how far, in pixels, a polygon may be off the edge of its mask, so that it has few corners. 0 is
    exact. The IoU with the mask is at least 0.98."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_tolerance(self.polygon_tolerance)

    @property
    def dataset(self) -> Path:
        """The COCO file."""
        return self.output / "dataset.json"


@dataclass(frozen=True, slots=True)
class OutputSettings(_FolderSettings):
    """Output folder and the kinds of files to write."""

    save: tuple[SaveKind, ...] = ("overlay", "why")
    """Image files to write, with commas between them: overlay (masks on the image), why (map with points, SAM's
    candidates and the chosen one), masks (a PNG per segment), cutouts (a transparent PNG per segment); or none."""

    def __post_init__(self) -> None:
        _FolderSettings.__post_init__(self)
        freeze_choices(self, "save", get_args(SaveKind))


@dataclass(frozen=True, slots=True)
class TrackSettings(_FolderSettings):
    """A video: how things are followed through its frames, and the files to write."""

    every: int = 1
    """Read only the first of this many frames; 5 is every fifth frame."""
    tracker: TrackerName = "auto"
    """memory: find each query once and follow it by SAM 2's memory. matching: find it in every frame and match the
    segments with those before. auto: memory with a SAM 2, matching with another SAM."""
    gap: int = 5
    """With matching: a thing that is not found in more frames than this gets a new track when it comes back."""
    save: tuple[VideoSave, ...] = ()
    """Files to write, with commas between them: overlay (a video with masks and numbers, overlay.mp4), frames (the
    frames of a video file as PNG, which other tools need beside the COCO file); or none."""

    def __post_init__(self) -> None:
        _FolderSettings.__post_init__(self)
        freeze_choices(self, "save", get_args(VideoSave))
        for name, least in (("every", 1), ("gap", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SettingsError(f"{name} must be a whole number of {least} or more, got {value!r}")


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """A labelling job: its files, its output, and how it runs."""

    output: Url | Path = Path("dataset.json")
    """COCO file, a path or a URL. A journal (.journal) beside it keeps finished images, so that a stopped job can
    continue. The journal of a URL is kept in the user's state folder or in TEXT2SEG_STATE."""
    segmentation: Encoding = "rle"
    """How masks are written in the COCO file: rle is lossless, polygon suits labelling tools."""
    polygon_tolerance: float = POLYGON_TOLERANCE
    """With polygons: how far, in pixels, a polygon may be off the edge of its mask, so that it has few corners. 0 is
    exact. The IoU with the mask is at least 0.98."""
    recursive: bool = True
    """Also read the subfolders."""
    glob: tuple[str, ...] = ()
    """Only files that match this pattern, such as "*.jpg" or "front/*"; repeat for more. Default: all files that Pillow
    reads."""
    limit: int | None = None
    """Only this many files, in the order of their paths."""
    shard: str = ""
    """Only one part of the files: 2/5 is the second of five. Give each part its own output."""
    batch: int = 4
    """Number of images that the models process together; more need more memory."""
    workers: int = 4
    """Number of threads that read and decode images."""
    categories_from: Url | Path | None = None
    """COCO file (path or URL) to take category and image ids from, for example the ground truth to compare with."""
    keep_candidates: bool = False
    """Also write SAM's other candidates of each segment, to attributes.candidates."""
    save: tuple[SaveKind, ...] = ()
    """Files to write for each image into the folder <output>_images, with commas between them: overlay, why, masks,
    cutouts (see `segment --save`); or none."""
    marks: Path | None = None
    """Marks that a person downloaded from the page of text2seg report on the output: rejected annotations are left out,
    accepted and corrected ones are kept, also with --restart."""
    restart: bool = False
    """Discard the results of earlier runs of this job."""
    only_if_present: bool = False
    """Skip images that show none of the categories according to a vector index of the folder, which is built or updated
    first (see `text2seg search`). Skipped images are in the COCO file without annotations."""
    skip_below: float = 0.1
    """With --only-if-present: skip an image if the presence (0 to 1) of every category is below this."""
    index: Path | None = None
    """Folder that keeps the indexes. Default: one in your cache folder."""
    retry_failures: bool = False
    """Try images again that failed in an earlier run."""
    overwrite: bool = False
    """Overwrite an output that this job did not write."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_tolerance(self.polygon_tolerance)
        freeze_texts(self, "glob")
        freeze_choices(self, "save", get_args(SaveKind))
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
    """Workers of `--engine ray`: processes of a Ray cluster, each with its own copy of the models."""

    address: str | None = None
    """Ray cluster to join: host:port of its head, or auto for the cluster of this machine. Default: start Ray on this
    machine and stop it with the job."""
    min_workers: int = 1
    """Lowest number of workers."""
    max_workers: int = 1
    """Highest number of workers. Ray adds and removes workers between the two limits, depending on work and room."""
    cpus_per_worker: int = 1
    """CPUs reserved for each worker; also its number of torch threads."""
    gpus_per_worker: float = 0.0
    """GPUs reserved for each worker. With 0.5 two workers share one GPU, so that one reads images while the other
    computes. --device selects the device of a worker."""

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
