"""One run of an explanation tool for a visitor: its images, its turn, its progress."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

from text2seg.app.checks import Uploads, check_effort, check_upload, read_image
from text2seg.app.fields import read_settings, settings_of, shown_settings
from text2seg.app.messages import photographs
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.session import EditSession
from text2seg.app.settings import MOST_IMAGES
from text2seg.demo import IMAGES
from text2seg.errors import ImageError
from text2seg.explain import Progress, Result, Tool, run_tool
from text2seg.explain.estimate import words_for
from text2seg.records import Image
from text2seg.render.saving import png

PATIENCE = 1.0
"""Seconds after which a run that has no turn yet says why."""
BUSY = "The models are busy with other visitors; this run is next."
QUEUED = "The models are busy with other visitors; runs before this one: "
MOST_GIVEN_UP = 10_000
"""Visitors of whom is known which waiting runs they have given up: far more than can wait."""

EXAMPLES = {
    "Sheep and a fire engine": IMAGES / "scene_0019.jpg",
    "Rocket and horse": IMAGES / "scene_0003.jpg",
    "Umbrellas and a clock": IMAGES / "scene_0022.jpg",
}
FIRST_EXAMPLE = next(iter(EXAMPLES.values()))
"""The image with which the tab opens."""


def images_of(tool: Tool, image: Any, files: Any, session: EditSession, folder: Path) -> list[Path]:
    """Return the chosen images as files among the uploads. An example and the image of the Segment tab are copied
    there."""
    if tool.images == "none":
        return []
    if tool.images == "many":
        return [found for each in files or () if (found := _chosen(each, folder))]
    if found := _chosen(image, folder):
        return [found]
    match image:
        case {"segment": True} if session.image_session:
            shared = session.image_session.image
            copied = folder / Path(shared.file_name or "image.png").name  # its content decides how it is read
            copied.write_bytes(png(shared.pixels))
            return [copied]
    raise ImageError("there is no image yet; drop one, paste one or choose an example")


def _chosen(value: Any, folder: Path) -> Path | None:
    """Return an upload, or an example as a copy in the folder with its title as the name; None for anything else."""
    match value:
        case {"path": str(path)}:
            return Path(path)
        case {"example": int(number)} if 0 <= number < len(EXAMPLES):
            title, scene = [*EXAMPLES.items()][number]
            return Path(shutil.copy(scene, folder / f"{title}{scene.suffix}"))
    return None


def explain(
    model_pool: ModelPool,
    tool: Tool,
    uploads: Sequence[Path],
    given: Mapping[str, Any],
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
    begin: Callable[[], object] = lambda: None,
) -> Result:
    """Read a visitor's settings and images, wait for a turn, and run the tool.

    Args:
        uploads: uploaded image files.
        given: values by the names of the tool's settings. An image is the path of an uploaded file.
        folder: where a tool that writes files while it runs puts them.
        begin: called when it is the visitor's turn.

    The first note of the result warns of photographs, if the models know drawings only.

    Raises:
        SettingsError, QueryError, ImageError: a value is not valid or exceeds a limit.
    """
    settings = read_settings(tool.settings, given)
    check_effort(settings)
    if len(uploads) > MOST_IMAGES:
        raise ImageError(f"{len(uploads)} images are too many; {MOST_IMAGES} is the most here")
    for each in shown_settings(tool.settings):
        if each.kind == "image" and (path := getattr(settings, each.name)) is not None:
            read_image(check_upload(path), model_pool.settings)  # the tool reads it again, without our limits
    if folder is not None and writes_files(tool):
        settings = replace(settings, folder=folder)
    models, unfamiliar = model_pool.models, set[str]()

    def look(image: Image) -> None:
        if models.is_unfamiliar(image):
            unfamiliar.add(image.file_name)

    images = Uploads(uploads, model_pool.settings, look)
    with model_pool.turn():
        begin()
        result = run_tool(tool, models, images, settings, progress)
    warning = photographs(len(unfamiliar), len(images))
    return replace(result, notes=(warning, *result.notes)) if warning else result


def writes_files(tool: Tool) -> bool:
    """Return whether a tool writes files while it runs, into its setting `folder`."""
    return any(each.name == "folder" for each in settings_of(tool.settings))


@dataclass(slots=True, eq=False)
class Run:
    """A run of a tool: how far it is, for the thread that runs it and the page that shows it."""

    tool: Tool
    stop: threading.Event = field(default_factory=threading.Event)
    made: float = field(default_factory=lambda: time.monotonic())
    began: float = 0.0
    """Time at which it was its turn; 0 while it waits."""
    done: int = 0
    total: int = 0
    text: str = ""
    first: tuple[float, int] = (0.0, 0)
    """Time and steps done at the first report."""
    is_left: bool = False
    """The visitor has chosen another tool, so nobody wants the result."""

    def begin(self) -> None:
        self.began = time.monotonic()

    def report(self, done: int, total: int, text: str) -> None:
        if not self.first[0]:
            self.first = time.monotonic(), done
        self.done, self.total, self.text = done, total, text

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the speed of this run, or None if it is not known yet."""
        since, before = self.first
        fresh = self.done - before
        return (time.monotonic() - since) / fresh * (self.total - self.done) if fresh > 0 and self.total else None

    def html(self) -> str:
        """Return the busy state for the page."""
        if self.stop.is_set():
            words = "Stopping …"
        elif not self.began and time.monotonic() - self.made > PATIENCE:
            words = BUSY
        elif not self.began or not self.total:
            words = "Starting …"
        else:
            left = self.seconds_left
            words = f"{self.done} of {self.total} steps" + (f", about {words_for(left)} left" if left else "")
        share = 100 * self.done / self.total if self.total else 0
        said = f'<p class="message">{escape(self.text)}</p>' if self.text else ""
        return (
            f'<section class="t2s-status running"><header><h3>{escape(self.tool.title)}</h3></header>'
            f'<div class="track" role="progressbar" aria-label="Steps done" aria-valuemin="0" '
            f'aria-valuemax="{self.total}" aria-valuenow="{self.done}">'
            f'<span class="fill" style="width:{share:.1f}%"></span></div>'
            f'<p class="numbers" role="status">{escape(words)}</p>{said}</section>'
        )


class Visitors:
    """What the visitors of the page run, by their session, and the last result of each tool. `agreed` are those who
    have agreed to a long run that has not begun yet."""

    def __init__(self) -> None:
        self.agreed: set[str] = set()
        self._results: dict[str, dict[str, tuple[Any, dict[Any, Any]]]] = {}
        self._runs: dict[str, set[Run]] = {}
        self._chose: set[str] = set()
        self._given_up: OrderedDict[str, int] = OrderedDict()

    def has_chosen(self, visitor: str) -> bool:
        """Return whether a visitor has chosen or run a tool, so that no example takes its place."""
        return visitor in self._chose

    def choose(self, visitor: str, name: str, number: int) -> None:
        """Stop the runs of other tools than the chosen one, and give up those that wait for their turn, up to this
        number. Nobody wants their results.

        Events may arrive in another order than they were sent, so a run of the chosen tool is not touched.
        """
        self._chose.add(visitor)
        self._give_up(visitor, number)
        for run in tuple(self._runs.get(visitor, ())):
            if run.tool.name != name:
                run.is_left = True
                run.stop.set()

    def begin(self, visitor: str, tool: Tool, number: int) -> Run | None:
        """Begin the run with this number of a visitor; None if it was given up while it waited for its turn."""
        self.agreed.discard(visitor)
        if number <= self._given_up.get(visitor, 0):
            return None
        run = Run(tool)
        self._chose.add(visitor)
        self._runs.setdefault(visitor, set()).add(run)
        return run

    def end(self, visitor: str, run: Run) -> None:
        run.stop.set()
        self._runs[visitor].discard(run)
        if not self._runs[visitor]:
            del self._runs[visitor]

    def keep(self, visitor: str, name: str, images: Any, updates: dict[Any, Any]) -> None:
        """Keep the updates of the page that show the result of a tool for these images."""
        self._results.setdefault(visitor, {})[name] = images, updates

    def result(self, visitor: str, name: str, images: Any) -> dict[Any, Any]:
        """Return the updates that show the last result of a tool; none if it is of other images, or while something
        runs, whose result will be the last one."""
        seen, updates = self._results.get(visitor, {}).get(name, (None, {}))
        return {} if visitor in self._runs or seen != images else updates

    def stop(self, visitor: str, number: int) -> None:
        """Stop all runs of a visitor, and give up those that wait for their turn, up to this number."""
        self._give_up(visitor, number)
        for run in tuple(self._runs.get(visitor, ())):
            run.stop.set()

    def forget(self, visitor: str) -> None:
        """Stop all runs of a visitor who leaves the page."""
        self.stop(visitor, sys.maxsize)
        self._chose.discard(visitor)
        self.agreed.discard(visitor)
        self._results.pop(visitor, None)

    def _give_up(self, visitor: str, number: int) -> None:
        self._given_up[visitor] = max(number, self._given_up.get(visitor, 0))
        self._given_up.move_to_end(visitor)
        while len(self._given_up) > MOST_GIVEN_UP:
            self._given_up.popitem(last=False)
