"""What all explanation tools share: the entry of a tool, its images, its progress, its result, and how it is run."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.shape import ClipKind, check_input_size
from text2seg.config import MapSettings
from text2seg.errors import DatasetError, ImageError, MissingTextError, SettingsError
from text2seg.io.files import open_file
from text2seg.io.images import PIXEL_LIMIT
from text2seg.io.names import fit_file_name
from text2seg.io.output_folder import OutputFolder
from text2seg.io.scan import names_of, paths_of
from text2seg.queries import names_in
from text2seg.records import Image
from text2seg.settings_fields import check_choices

if TYPE_CHECKING:
    from text2seg.explain.estimate import Work
    from text2seg.pipeline import Text2Seg

Pixels = NDArray[np.uint8]
Cell = str | int | float | None
EMPTY: Pixels = np.zeros((0, 0, 3), np.uint8)
TEXT_LISTS = ("text", "label", "background")
"""Settings that are lists of texts, one map or row each."""
COMMAND_LINE_ONLY = {"command_line_only": True}
"""Metadata of a field of settings that visitors of the app must not or need not set."""


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """An image uint8[h, w, 3] RGB with a caption. Panels of one result may differ in size.

    The place of an `EMPTY` image stays empty on a sheet.
    """

    caption: str
    pixels: Pixels = field(repr=False)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words and numbers; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {self.title!r} must have {len(self.columns)} cells, got {len(row)}")


def cell_text(value: Cell) -> str:
    """Return the text of a cell for people: fractions with three decimals, a dash for a missing value."""
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Result:
    """Result of one run of an explanation tool.

    `columns` is the number of panels side by side; 0 means automatic. `full_size` panels are not brought to one size on
    the sheet. The notes name what was left out, such as images that cannot be read; `left_out` counts it. `run_tool`
    fills in `unknown`, sentences on texts that were left out because the models do not know them, and `models`, the
    names of the models for people.
    """

    title: str
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    columns: int = 0
    full_size: bool = False
    left_out: int = 0
    unknown: tuple[str, ...] = ()
    models: str = ""

    def image(self) -> Pixels | None:
        """Return all panels on one sheet uint8[h, w, 3], or None if there is no panel."""
        from text2seg.render.panels import sheet

        cells = [(panel.caption, panel.pixels) for panel in self.panels]
        return sheet(cells, title=self.title, columns=self.columns, full_size=self.full_size) if cells else None


def save_result(result: Result, folder: Path | OutputFolder, stem: str) -> list[Path]:
    """Write the panels to `<stem>.png` and the tables and notes to `<stem>.json`, and return the files.

    A result without panels gets no PNG; one without tables and notes gets no JSON.

    Raises:
        OutputError: a file cannot be written, or an earlier run wrote it and somebody changed it since.
    """
    from text2seg.render.saving import png

    files: list[tuple[str, list[bytes]]] = []
    image = result.image()
    if image is not None:
        files.append((fit_file_name(stem, ".png"), [png(image)]))
    if result.tables or result.notes or result.unknown:
        files.append((fit_file_name(stem, ".json"), [result_json(result)]))
    return (folder if isinstance(folder, OutputFolder) else OutputFolder(folder)).write(files)


def result_json(result: Result, more: Mapping[str, Any] | None = None) -> bytes:
    """Return the title, tables and notes of a result as JSON, and the values `more` under their names."""
    values = {
        "title": result.title,
        "models": result.models,
        "tables": [asdict(table) for table in result.tables],
        "notes": [*result.unknown, *result.notes],
        **(more or {}),
    }
    return json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def image_name(image: Image) -> str:
    """Return the image's file name for use in a title, or "the image" if it has none."""
    return image.file_name or "the image"


def is_calibrated(models: Text2Seg) -> bool:
    """Return whether presence is calibrated at the input size at which tools encode images."""
    return models.card.default_presence(models.settings.maps.architecture, models.clip.default_size) is not None


def backdrop(image: Image) -> Pixels:
    """Return the image uint8[h, w, 3] that maps are drawn on, no larger than a sheet shows it.

    Many maps at the full size of a large photo would fill the memory.
    """
    from text2seg.render.panels import SHEET_LARGEST, shrunk

    return shrunk(image.pixels, SHEET_LARGEST)


Item = TypeVar("Item")
Report = Callable[[int, int, str], None]


def _silent(done: int, total: int, note: str) -> None:
    """Report nothing."""


class Progress:
    """Reports progress and lets the caller stop the work. A stopped tool returns what it has so far."""

    def __init__(self, report: Report = _silent, stop: threading.Event | None = None) -> None:
        """Create the progress of one run.

        Args:
            report: called with the steps done, the steps in total and a short note, from the thread of the tool.
            stop: set it to stop the tool.
        """
        self._report = report
        self._stop = stop or threading.Event()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def step(self, done: int, total: int, note: str = "") -> None:
        self._report(done, total, note)

    def each(self, items: Iterable[Item], note: str = "", total: int | None = None) -> Iterator[Item]:
        """Yield the items until stopped; report before each and after the last."""
        count = total if total is not None else len(items) if isinstance(items, Sized) else 0
        done, left = 0, iter(items)
        while not self.stopped:
            self.step(done, count, note)
            if self.stopped:  # while it was reported
                return
            try:
                item = next(left)
            except StopIteration:
                return
            if self.stopped:  # while the item was made
                return
            yield item
            done += 1


Fit = Literal["squash", "crop", "pad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSettings:
    """How an image becomes CLIP's input, which is square. All tools have these settings, and `run_tool` applies them.

    A subclass with a `__post_init__` of its own calls this one by name; super() does not work in classes with slots
    before Python 3.14.
    """

    size: int | None = None
    """Side of CLIP's input in pixels. Default: the size that CLIP was trained on."""
    fit: Fit = "squash"
    """What happens to an image that is not square. squash: its sides become equal; crop: only the square at its centre
    is seen, as in CLIP's own preprocessing; pad: it gets grey margins."""

    def __post_init__(self) -> None:
        check_choices(self)
        MapSettings(input_size=self.size)  # for its checks

    def all_texts(self) -> tuple[str, ...]:
        """Return the texts that the models must know."""
        given: str | tuple[str, ...] = getattr(self, "text", ())
        return (given,) if isinstance(given, str) else given

    def check_clip(self, clip: ClipKind) -> None:
        """Raise `SettingsError` if a CLIP of this architecture does not support a setting. The command line calls it
        before it loads the models, if their files tell the architecture."""
        if self.size is not None:
            check_input_size(clip, self.size)

    def check_given(self) -> None:
        """Raise `MissingTextError` if a text is needed and not given, or an error that names a file that cannot be
        opened. `run_tool` calls it, and the command line before it loads the models."""


def fitted(image: Image, fit: Fit) -> Image:
    """Return the square image that CLIP is to see, at the resolution of the image; for "squash", the image itself.

    Margins have the mean colour of the training images of OpenAI's CLIPs.

    Raises:
        ImageError: the square would have more pixels than any image may have.
    """
    if fit == "squash" or image.hw[0] == image.hw[1]:
        return image
    side = max(image.hw)
    if fit == "pad" and side**2 > PIXEL_LIMIT:
        raise ImageError(
            f"{image_name(image)} would be padded to {side} x {side}, over the limit of {PIXEL_LIMIT:,} pixels; "
            "make it smaller, or fit it by crop or squash"
        )
    return Image(fitted_pixels(image.pixels, fit, mean_colour()), image.file_name, image.image_id)


def fitted_pixels(pixels: NDArray[Any], fit: Fit, margin: Any) -> NDArray[Any]:
    """Crop an array [H, W, …] to the square at its centre, or pad it to a square with the value `margin`."""
    height, width = pixels.shape[:2]
    if fit == "squash" or height == width:
        return pixels
    side = min(height, width) if fit == "crop" else max(height, width)
    top, left = abs(height - side) // 2, abs(width - side) // 2
    if fit == "crop":
        return np.ascontiguousarray(pixels[top : top + side, left : left + side])
    square = np.empty((side, side, *pixels.shape[2:]), pixels.dtype)
    square[:] = margin
    square[top : top + height, left : left + width] = pixels
    return square


def unfitted_pixels(pixels: NDArray[Any], fit: Fit, image_hw: tuple[int, int], outside: Any) -> NDArray[Any]:
    """Return an array of a fitted image in the frame of the image, [H, W, …]. What was cropped away is `outside`."""
    height, width = image_hw
    if fit == "squash" or height == width:
        return pixels
    side = len(pixels)
    top, left = abs(height - side) // 2, abs(width - side) // 2
    if fit == "pad":
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])
    whole = np.full((height, width, *pixels.shape[2:]), outside, pixels.dtype)
    whole[top : top + side, left : left + side] = pixels
    return whole


def mean_colour() -> Pixels:
    """Return the mean colour of CLIP's training images, uint8 [3]: 0 in its normalised pixels."""
    from text2seg.clip.model import CLIP_MEAN

    return np.rint(np.array(CLIP_MEAN) * 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _FittedImages(Sequence[Image]):
    """Images of a sequence, each fitted when it is read; `look` is called with it before."""

    images: Sequence[Image]
    fit: Fit
    look: Callable[[Image], None]

    @property
    def names(self) -> tuple[str, ...]:
        """See `names_of`."""
        return names_of(self.images)

    @property
    def paths(self) -> tuple[Path | None, ...]:
        """See `paths_of`."""
        return paths_of(self.images)

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> _FittedImages: ...
    def __getitem__(self, index: int | slice) -> Image | _FittedImages:
        if isinstance(index, slice):
            return _FittedImages(self.images[index], self.fit, self.look)
        self.look(image := self.images[index])
        return fitted(image, self.fit)


Images = Literal["one", "many", "none"]


@dataclass(frozen=True, slots=True)
class Tool:
    """Entry of one tool in the table `text2seg.explain.GROUPS`.

    Attributes:
        name: name on the command line and in the API.
        title: name for people, two to four words.
        summary: what the tool shows, in one sentence.
        settings: a frozen dataclass; its fields become flags and widgets, their docstrings the help.
        run: the function of the tool. It takes the models, the images, the settings and the progress.
        images: the number of images it takes; "none" for tools that read a dataset.
        work: the work of a run, from the models, the number of images and the settings; None for tools that are quick.

    The file of a tool is imported for every `--help`. It imports torch, cv2 and the like inside its functions.
    """

    name: str
    title: str
    summary: str
    settings: type
    run: Callable[[Text2Seg, Sequence[Image], Any, Progress], Result]
    images: Images = "one"
    work: Callable[[Text2Seg, int, Any], Work] | None = None


def check_images(tool: Tool, count: int) -> None:
    """Raise `SettingsError` if the tool does not take this number of images."""
    if tool.images == "one" and count != 1:
        raise SettingsError(f"{tool.name} takes one image, got {count}", on_page=f"“{tool.title}” takes one image.")
    if tool.images == "none" and count:
        raise SettingsError(f"{tool.name} reads a dataset and takes no images, got {count}")
    if tool.images == "many" and not count:
        on_page = f"“{tool.title}” needs at least one image: drop some, or take the examples."
        raise SettingsError(f"{tool.name} takes images: give at least one", on_page=on_page)


def run_tool(
    tool: Tool, models: Text2Seg, images: Sequence[Image], settings: Any = None, progress: Progress | None = None
) -> Result:
    """Run a tool on images. `settings` is an instance of `tool.settings`; None means the defaults.

    `InputSettings` are applied here: the tool gets fitted images, and a CLIP whose default input has the chosen size.
    Of several texts, those that the models do not know are left out; see `Result.unknown`.

    Raises:
        SettingsError: the tool does not take this number of images, or a setting does not fit the models.
        QueryError: a text is empty, or all texts are unknown to the models.
    """
    from text2seg.runtime import FULL, autocast

    check_images(tool, len(images))
    settings, unknown = _known_texts(models, settings or tool.settings())
    if isinstance(settings, InputSettings):
        settings.check_given()
        look = models.warn_of_photographs
        images = _FittedImages(images, settings.fit, lambda image: look([image]))
        if settings.size is not None:
            models = copy.copy(models)
            models.clip = models.clip.with_input_size(settings.size)
            # As with `segment --input-size`, fitted presence holds only at the size that it was fitted to.
            maps = replace(models.settings.maps, input_size=settings.size)
            models.settings = replace(models.settings, maps=maps)
    with autocast(models.clip.device, FULL):  # autocast of the caller must not change what tools compute themselves
        result = tool.run(models, images, settings, progress or Progress())
    return replace(result, models=models.names, unknown=(*unknown, *result.unknown))


def _known_texts(models: Text2Seg, settings: Any) -> tuple[Any, tuple[str, ...]]:
    """Leave out of each list of texts those that the models do not know, unless none is left. Return also why."""
    says: list[str] = []
    vocabulary = models.closed_vocabulary
    for name in TEXT_LISTS:
        given: Any = getattr(settings, name, None)
        others: dict[str, str] = {}
        if name == "text" and getattr(settings, "texts", None):
            given, others = settings.descriptions(), {"texts": ""}
        if isinstance(given, str) or not given:
            continue
        unknown = vocabulary.unknown(text for text in given if text.strip()) if vocabulary else {}
        known = tuple(text for text in given if text not in unknown)
        if len(known) > (name == "label"):  # one label cannot be ranked
            settings = replace(settings, **{name: known}, **others)
            says += unknown.values()
    return settings, tuple(says)


def unprocessed_note(left: int, total: int) -> tuple[str, ...]:
    """Return the note on the images that a stopped run has left; nothing if it has left none."""
    return (f"{left} of {total} images were not processed.",) if left else ()


def failure_note(images: Sequence[Image], number: int, error: Exception) -> str:
    """Return the note on image `number` that failed. It names the image once, as `names_of` does, not by its whole
    path."""
    name, path = names_of(images)[number], paths_of(images)[number]
    text = str(error) or "not enough memory"
    if path is not None:
        text = text.replace(str(path), name)
    return text if name in text else f"{name}: {text}"


def check_text(text: str) -> None:
    """Raise `MissingTextError` if the text that an image is compared with is empty."""
    if not text.strip():
        raise MissingTextError(
            "nothing to compare the image with: give a text, such as --text sheep",
            on_page="nothing to compare the image with; fill in “Text”",
            in_api="nothing to compare the image with; give a `text`",
        )


def check_sets(files: Sequence[Path], images: Path | None = None) -> None:
    """Raise `DatasetError` if a dataset cannot be opened, or `images` is given without a dataset."""
    if images is not None and not files:
        raise DatasetError(f"the folder {images} needs a dataset: give --dataset as well")
    for file in files:
        open_file(file, DatasetError).close()


def freeze_typed(settings: Any, name: str) -> None:
    """Split texts that hold several names into a tuple of names. Unlike `freeze_names`, keep an empty text."""
    given = getattr(settings, name)
    if isinstance(given, str):
        raise SettingsError(f"{name} must be a sequence of texts, got the one text {given!r}")
    object.__setattr__(settings, name, tuple(each for text in given for each in names_in(text) or ("",)))
