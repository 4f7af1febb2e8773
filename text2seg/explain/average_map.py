"""Saliency maps averaged over many images, in groups: mean, variance and entropy of each cell."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from text2seg.errors import CheckpointError, ImageError, OutputError, SettingsError
from text2seg.explain.estimate import GRADIENT, Work
from text2seg.explain.saliency.methods import Method, check_method
from text2seg.explain.saliency_maps import (
    SaliencySettings,
    description_of,
    map_of,
    overlay_map,
    targets_of,
    templates_note,
)
from text2seg.explain.tool import Cell, Panel, Progress, Result, Table, Tool, failure_note, unprocessed_note
from text2seg.io.arrays import read_arrays
from text2seg.io.files import exists, read_file
from text2seg.io.names import listed, pair_names, safe_file_name
from text2seg.io.output_folder import OutputFolder
from text2seg.io.scan import names_of
from text2seg.records import Image

if TYPE_CHECKING:
    from text2seg.explain.saliency.targets import Target
    from text2seg.pipeline import Text2Seg

log = logging.getLogger(__name__)

BINS = 16
"""Equal bins of [0, 1] for the entropy, so it is at most 4 bits."""
SIDE = 300
"""Side in pixels of the mean image that the maps are drawn on."""
MOST_SHOWN = 24
"""Largest number of rows of panels, one for each target and group."""
NO_SUBFOLDER = "no subfolder"
ALL = "all images"
NUMBERS_FILE, MAPS_FOLDER = "average-map.npz", "maps"

GroupBy = Literal["none", "subfolder", "csv"]
Map = NDArray[np.float32]
KINDS = ("mean", "variance", "entropy")


@dataclass(frozen=True, slots=True)
class AverageMapSettings(SaliencySettings):
    """The targets that the images are compared with, the method, and the groups of images."""

    group_by: GroupBy = "none"
    """Average within groups. subfolder: the first folder below the folder given; csv: a column of a
    CSV file, on the command line with --groups FILE.csv."""
    groups: Path | None = None
    """CSV file (UTF-8) with the group of each image: its column "file" names the image, relative to the folder."""
    column: str = "group"
    """Column of the CSV file with the group."""
    folder: Path | None = None
    """Folder for the map of each image and for the averages (average-map.npz). A later run with the same folder
    computes only what is missing. Default: on the command line a folder in the output folder; elsewhere nothing is
    kept."""

    def __post_init__(self) -> None:
        SaliencySettings.__post_init__(self)
        if self.group_by == "csv" and self.groups is None:
            raise SettingsError(
                "groups from a CSV file need the file: add --groups FILE.csv",
                on_page="groups from a CSV file are for the command line only; choose none",
                in_api="groups from a CSV file are for the command line only; leave out `group_by`",
            )
        if self.groups is not None and self.group_by != "csv":
            raise SettingsError(f"{self.groups} is not used: add --group-by csv, or leave out --groups")

    def check_given(self) -> None:
        SaliencySettings.check_given(self)
        if self.groups is not None:
            read_groups(self.groups, self.column)


@dataclass(slots=True)
class MapStatistics:
    """Mean, variance and entropy, cell by cell, of maps that come one after the other.

    Attributes:
        count: number of maps.
        mean: float64 [gh, gw], from 0 to 1.
        squares: sum of squared differences from the mean, float64 [gh, gw] (Welford, Technometrics 1962).
        histogram: number of maps in each bin, int32 [BINS, gh, gw].
        without_peak: number of maps that were flat.
    """

    count: int = 0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    histogram: NDArray[np.int32] = field(default_factory=lambda: np.zeros((), np.int32))
    without_peak: int = 0

    def add(self, found: Map) -> None:
        """Add a map float32 [gh, gw], stretched to [0, 1]: (m - min) / (max - min); a flat map counts as 0."""
        values = normalised(found)
        if not self.count:
            self.mean, self.squares = np.zeros(values.shape), np.zeros(values.shape)
            self.histogram = np.zeros((BINS, *values.shape), np.int32)
        self.count += 1
        self.without_peak += not values.any()
        change = values - self.mean
        self.mean += change / self.count
        self.squares += change * (values - self.mean)
        bins = np.minimum((values * BINS).astype(np.int32), BINS - 1)
        self.histogram += bins == np.arange(BINS)[:, None, None]

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance float64 [gh, gw], from 0 to 0.25: the mean of (value - mean)²."""
        return self.squares / self.count

    @property
    def entropy(self) -> NDArray[np.float64]:
        """Entropy in bits, float64 [gh, gw], of the values of a cell over the images: -Σ p log2 p over the bins.

        p is the share of images with a value in the bin. 0: the values of all images are in one bin; at most the log2
        of `BINS`, or of the number of images if there are fewer. It is the entropy of a stack of pixels of
        Learned-Miller (PAMI 2006, "Data driven image models through continuous joint alignment").
        """
        shares = self.histogram / self.count
        logs = np.log2(shares, out=np.zeros(shares.shape), where=shares > 0)
        return np.abs(-(shares * logs).sum(0))  # abs: no -0.0


def normalised(found: Map) -> NDArray[np.float64]:
    """Stretch a map float32 [gh, gw] to [0, 1], float64. A map that is flat up to rounding is 0 everywhere."""
    from text2seg.render.drawing import is_flat

    if is_flat(found):
        return np.zeros(found.shape)
    values = found.astype(np.float64)
    return np.asarray((values - values.min()) / (values.max() - values.min()))


def average_map(models: Text2Seg, images: Sequence[Image], settings: AverageMapSettings, progress: Progress) -> Result:
    """Show the mean, the variance and the entropy of the maps of all images, for every target and group.

    The map of each image is stretched to [0, 1], so that every image has the same weight; a flat map counts as 0. Then
    each cell of the grid has one value for each image. mean: of these values; variance: their population variance;
    entropy: in bits, of their distribution over 16 equal bins (`MapStatistics`). The grid is that of CLIP's input, so
    with fit=squash images of all proportions share it. The maps are drawn over the mean of the group's images.

    An image that cannot be read, or has no group, becomes a line in the notes. A stop averages the images so far.

    Raises:
        QueryError: there is no target, or one cannot be used.
        SettingsError: this CLIP does not support the method or a setting of it, the groups cannot be read, or maps are
            to be kept and the hash of the weights is unknown.
        DatasetError: the CSV file names an image twice or ambiguously.
        OutputError: the folder is not writable, or somebody changed a file in it.
    """
    method = check_method(models.clip, settings.method, settings.layer)
    names = names_of(images)
    groups, notes, without_image = _groups_of(names, settings)
    targets = targets_of(models, settings)
    kept = _KeptMaps.of(models, method, settings, settings.folder) if settings.folder is not None else None
    grouped = [number for number, group in enumerate(groups) if group is not None]
    found = {
        group: _Group.empty(len(targets), is_shown=place < MOST_SHOWN)
        for place, group in enumerate(sorted({group for group in groups if group is not None}))
    }
    failures: list[str] = []
    for number in progress.each(grouped, method.name):
        try:
            image = images[number]
            maps = _maps(models, image, names[number], targets, settings, kept)
        except (ImageError, CheckpointError, MemoryError, RuntimeError) as error:  # RuntimeError: torch, out of memory
            log.info("%s", names[number], exc_info=error)
            failures.append(failure_note(images, number, error))
        else:
            found[groups[number] or ""].add(image, maps)
    found = {group: statistics for group, statistics in found.items() if statistics.count}
    count = sum(statistics.count for statistics in found.values())
    left = len(grouped) - count - len(failures)
    if kept and found:
        where = kept.write_averages(targets, found)
        notes = (*notes, f"The averages are in {where}, the maps of the images in {kept.folder}.")
    return Result(
        f"{count} image{'' if count == 1 else 's'}: mean saliency by {method.name}",
        _panels(targets, found, settings),
        (_table(targets, found),) if found else (),
        (
            *unprocessed_note(left, len(grouped)),
            *failures,
            *notes,
            *_hidden(targets, found),
            f"Each map is stretched to 0 to 1. Variance: of the population. Entropy: in bits, over {BINS} equal bins.",
            "Panels of one target and kind share their colours, from the lowest value in all groups to the highest.",
            description_of(method),
            templates_note(settings),
        ),
        columns=4,
        left_out=len(failures) + len(names) - len(grouped) + without_image,
    )


AVERAGE_MAP = Tool(
    "average-map",
    "Average maps",
    "Many images, also in groups: the mean, variance and entropy of their saliency maps.",
    AverageMapSettings,
    average_map,
    "many",
    lambda models, images, settings: Work(clip_images=images * max(len(settings.text), 1) * GRADIENT),
)


@dataclass(slots=True)
class _Group:
    """The statistics of a group for each target, and the sum of its images float64 [SIDE, SIDE, 3] if it is shown."""

    maps: Sequence[MapStatistics]
    pixels: NDArray[np.float64] | None

    @classmethod
    def empty(cls, targets: int, *, is_shown: bool) -> _Group:
        return cls([MapStatistics() for _ in range(targets)], np.zeros((SIDE, SIDE, 3)) if is_shown else None)

    def add(self, image: Image, maps: Sequence[Map]) -> None:
        import cv2

        for statistics, found in zip(self.maps, maps, strict=True):
            statistics.add(found)
        if self.pixels is not None:
            self.pixels += np.asarray(cv2.resize(image.pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float64)

    @property
    def count(self) -> int:
        return self.maps[0].count


def _maps(
    models: Text2Seg,
    image: Image,
    name: str,
    targets: Sequence[Target],
    settings: AverageMapSettings,
    kept: _KeptMaps | None,
) -> list[Map]:
    """Return the map of each target. Those that are kept are read, the others are computed and kept."""
    known = kept.read(image, name) if kept else {}
    keys = [_key_of(target) for target in targets]
    missing = {key: target for key, target in zip(keys, targets, strict=True) if key not in known}
    for key, target in missing.items():
        known[key] = map_of(models.clip, image, target, settings)
    if kept and missing:
        kept.write(image, name, known)
    return [known[key] for key in keys]


# ---- what is shown


def _panels(targets: Sequence[Target], found: Mapping[str, _Group], settings: AverageMapSettings) -> tuple[Panel, ...]:
    """Return four panels for each target and group: the mean image, and over it the mean, the variance, the entropy."""
    panels = []
    for place, group in _shown(targets, found):
        sums = found[group].pixels
        if sums is None:
            continue
        target, pixels = targets[place], np.rint(sums / found[group].count).astype(np.uint8)
        shown = target.negated().name if settings.negative else target.name
        panels.append(Panel(f"{group}: {_images(found[group].count)}", pixels))
        what = shown if group == ALL else f"{shown}, {group}"
        for kind in KINDS:
            values: list[Map] = [getattr(each.maps[place], kind).astype(np.float32) for each in found.values()]
            limits = float(min(each.min() for each in values)), float(max(each.max() for each in values))
            own = getattr(found[group].maps[place], kind).astype(np.float32)
            panels.append(Panel(f"{what}: {kind}", overlay_map(own, pixels, settings.alpha, limits)))
    return tuple(panels)


def _shown(targets: Sequence[Target], found: Mapping[str, _Group]) -> list[tuple[int, str]]:
    """Return the targets, by their place, and groups that have panels."""
    return [(place, group) for place in range(len(targets)) for group in found][:MOST_SHOWN]


def _hidden(targets: Sequence[Target], found: Mapping[str, _Group]) -> tuple[str, ...]:
    rows = len(targets) * len(found)
    text = f"Only {MOST_SHOWN} of {rows} targets and groups have panels; the table has all."
    return (text,) if rows > MOST_SHOWN else ()


def _table(targets: Sequence[Target], found: Mapping[str, _Group]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for place, target in enumerate(targets):
        for group, statistics in found.items():
            maps = statistics.maps[place]
            averages = [float(getattr(maps, kind).mean()) for kind in KINDS]
            rows.append((target.name, group, maps.count, maps.without_peak, *averages))
    columns = ("target", "group", "images", "flat maps", "mean", "variance", "entropy in bits")
    return Table("Averages over all cells", columns, tuple(rows))


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"mean of {count} images"


# ---- groups


def _groups_of(names: Sequence[str], settings: AverageMapSettings) -> tuple[list[str | None], tuple[str, ...], int]:
    """Return the group of each image, or None if it has none, notes on images and rows that are left out, and the
    number of these rows."""
    if settings.group_by == "none":
        return [ALL] * len(names), (), 0
    if settings.group_by == "subfolder":
        groups: list[str | None] = [name.split("/", 1)[0] if "/" in name else NO_SUBFOLDER for name in names]
        if set(groups) == {NO_SUBFOLDER}:
            raise SettingsError(
                "no image is in a subfolder of the folder given; give the folder that has a subfolder for each group",
                on_page="uploaded images have no subfolders; choose none",
                in_api="uploaded images have no subfolders; leave out `group_by`",
            )
        return groups, (), 0
    path = settings.groups
    if path is None:
        raise SettingsError("groups from a CSV file need the file: add --groups FILE.csv")
    rows = read_groups(path, settings.column)
    files = list(rows)
    pairs = pair_names(files, names, ours=path.name, theirs="the images")
    groups = [None] * len(names)
    for row, place in pairs.items():
        groups[place] = rows[files[row]] or None
    if not any(groups):
        raise SettingsError(f"{path} gives no image a group; its column file names images relative to the folder")
    absent = [file for row, file in enumerate(files) if row not in pairs]
    without = [name for name, group in zip(names, groups, strict=True) if group is None]
    notes = []
    if absent:
        notes.append(f"{len(absent)} of the images that {path.name} names were not given: {listed(absent)}.")
    if without:
        notes.append(f"{len(without)} images have no group in {path.name} and were left out: {listed(without)}.")
    return groups, tuple(notes), len(absent)


def read_groups(path: Path, column: str) -> dict[str, str]:
    """Return the values of a column of a CSV file by the values of its column `file`.

    Commas, semicolons and tabs all separate columns. An empty value stays empty.

    Raises:
        SettingsError: the file is missing, is no UTF-8, is no valid CSV, lacks a column or names a file twice.
    """
    try:
        text = read_file(path, SettingsError).decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise SettingsError(f"{path} is not encoded as UTF-8 (byte {fault.start}); save it as “CSV UTF-8”") from fault
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    groups: dict[str, str] = {}
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns = [*(reader.fieldnames or ())]
        for wanted in ("file", column):
            if wanted not in columns:
                raise SettingsError(f"{path} has no column {wanted!r}; its columns are {', '.join(columns) or 'none'}")
        for row in reader:
            file = (row["file"] or "").strip()
            if file in groups:
                raise SettingsError(f"{path}, line {reader.line_num}: the image {file!r} is listed twice")
            if file:
                groups[file] = (row[column] or "").strip()
    except csv.Error as fault:
        raise SettingsError(f"{path}, line {reader.line_num}: this is not valid CSV ({fault})") from fault
    return groups


# ---- maps that are kept


@dataclass(frozen=True, slots=True)
class _KeptMaps:
    """The maps of each image in a file of its own, so that a later run computes only what is missing.

    The name of a file has the hash of the image's pixels and of everything besides the target that a map depends on.
    In the file, the maps have the hash of their target as name.
    """

    folder: Path
    fingerprint: str
    _averages: OutputFolder
    _maps: OutputFolder

    @classmethod
    def of(cls, models: Text2Seg, method: Method, settings: AverageMapSettings, parent: Path) -> _KeptMaps:
        made_by = models.provenance()
        clip = made_by.get("clip")
        if not isinstance(clip, dict) or "sha256" not in clip:
            raise SettingsError(
                "maps are kept only of models that know the hash of their weights, as those of Text2Seg.load do; leave "
                "out the folder"
            )
        values = {
            "text2seg": made_by["text2seg"],
            "clip": clip["sha256"],
            "precision": models.clip.precision.name,
            "device": models.clip.device.type,
            "input_hw": models.clip.input_hw(None),
            "method": method.name,
            **{name: getattr(settings, name) for name in ("layer", "score", "start_block", "negative")},
        }
        averages, folder = OutputFolder(parent, flag="--folder"), parent / MAPS_FOLDER
        averages.check(NUMBERS_FILE)
        return cls(folder, json.dumps(values, sort_keys=True), averages, OutputFolder(folder, flag="--folder"))

    def read(self, image: Image, name: str) -> dict[str, Map]:
        """Return the maps of an image that an earlier run kept, by the hash of their target."""
        path = self.folder / self._file(image, name)
        if not exists(path, OutputError):
            return {}
        try:
            arrays = read_arrays(path, OutputError)
        except OutputError as error:
            raise OutputError(f"{error}; delete it, then its map is computed again") from error
        return {key: found for key, found in arrays.items() if found.dtype == np.float32 and found.ndim == 2}

    def write(self, image: Image, name: str, maps: Mapping[str, Map]) -> None:
        content = _npz({"fingerprint": np.array(self.fingerprint), **maps})
        self._maps.write([(self._file(image, name), [content])])

    def write_averages(self, targets: Sequence[Target], found: Mapping[str, _Group]) -> Path:
        """Write the averages float64 [targets, groups, gh, gw], the names, and the number of images of each group."""
        averages = {
            kind: np.array(
                [[getattr(each.maps[place], kind) for each in found.values()] for place in range(len(targets))]
            )
            for kind in KINDS
        }
        labels = {"targets": np.array([target.name for target in targets]), "groups": np.array(list(found))}
        counts = {"images": np.array([each.count for each in found.values()])}
        (path,) = self._averages.write([(NUMBERS_FILE, [_npz({**labels, **counts, **averages})])])
        return path

    def _file(self, image: Image, name: str) -> str:
        digest = hashlib.sha256(f"{self.fingerprint} {image.pixels.shape}".encode())
        digest.update(np.ascontiguousarray(image.pixels).data)
        return f"{safe_file_name(Path(name).stem)}_{digest.hexdigest()[:32]}.npz"


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(file, **named)
    return file.getvalue()


def _key_of(target: Target) -> str:
    """Return the hash of everything in a target that a map depends on."""
    from text2seg.explain.saliency.targets import WordsTarget

    tensors = [target.features, *((target.texts, target.shares) if isinstance(target, WordsTarget) else ())]
    digest = hashlib.sha256(type(target).__name__.encode())
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
