"""`text2seg search`: the images of a folder that show a thing best."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg.cli.common import load_models, queries_of
from text2seg.cli.tables import PlainConsole, plain_table
from text2seg.cli.terminal import FAILED, INTERRUPTED, log_to_terminal, say
from text2seg.config import MapSettings, ModelSettings, Settings
from text2seg.errors import SettingsError
from text2seg.io.storage import Url

if TYPE_CHECKING:
    from text2seg.records import Failure
    from text2seg.search.rank import Hit

SHOWN_FAILURES = 10


@dataclass(frozen=True, slots=True)
class Search:
    """Find the images of a folder that show something best.

    What CLIP sees in each image is kept in an index, so that a second search only encodes what is new or has changed.
    Stopped, by Ctrl-C or in any other way, what was encoded is kept.
    Example: text2seg search photos "red car" dog --top 20
    """

    folder: tyro.conf.Positional[Annotated[Url | Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]]
    """Folder of images, a path or a URL such as s3://bucket/photos."""
    query: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="QUERY …", help_behavior_hint="")]]
    """What to look for, one or more things; `a+b` is an image that shows both."""
    top: int = 20
    """How many images for each query."""
    output: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Write search.json and a sheet of the images for each query into this folder."""
    index: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """The folder that indexes are kept in. Default: one in your cache folder."""
    recursive: bool = True
    """Look through the folders in the folder as well."""
    glob: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only files of this pattern, such as "*.jpg" or "front/*"; repeat for more. Default: all that Pillow reads."""
    workers: int = 4
    """Threads that read and decode images."""
    input_size: int | None = None
    """CLIP's input in pixels. Default: 512, demo 384."""
    model: ModelSettings = field(default_factory=ModelSettings)
    verbose: bool = False
    """Say what runs where, and why."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.top < 1 or self.workers < 1:
            raise SettingsError("top and workers must be 1 or more")
        wanted = queries_of(self.query, "")
        from text2seg.io.files import check_folder
        from text2seg.io.outputs import OutputFolder
        from text2seg.io.scan import list_images
        from text2seg.io.signals import stop_on_signals
        from text2seg.search.fill import filled_index, indexed_images
        from text2seg.search.index import import_faiss
        from text2seg.search.rank import SEARCH_FILE, best_images, write_results

        import_faiss()
        if self.output is not None:
            OutputFolder(self.output).check(SEARCH_FILE)
        if self.index is not None:
            check_folder(self.index, flag="--index")
        scan = list_images(self.folder, recursive=self.recursive, globs=self.glob)
        models = load_models(self.model, Settings(maps=MapSettings(input_size=self.input_size)))
        queries = models.check(wanted)
        with (
            stop_on_signals() as stop,
            filled_index(
                models,
                self.folder,
                indexed_images(scan.files, scan.stamp),
                where=self.index,
                workers=self.workers,
                stopping=stop.is_set,
                progress=True,
            ) as (index, filled),
        ):
            if filled.stopped:
                say(f"text2seg: stopped with {len(index)} images in the index; they are kept", file=sys.stderr)
                return INTERRUPTED
            there = {file for file in scan.files if index.entry(file)}
            found = {query.name: best_images(models, index, query, self.top, there) for query in queries}
        for query, hits in found.items():
            _show(query, hits)
        _show_failures(filled.failures)
        say(f"{len(there)} images, {filled.encoded} of them encoded now: {index.path}")
        if self.output is not None:
            for path in write_results(self.output, self.folder, found, filled.failures):
                say(path)
        return 0 if there else FAILED


def _show(query: str, hits: Sequence[Hit]) -> None:

    table = plain_table(query, "image", "rank", "presence", "cosine")
    for rank, hit in enumerate(hits, start=1):
        table.add_row(hit.file, str(rank), f"{hit.presence:.2f}", f"{hit.cosine:.3f}")
    PlainConsole().print(table)


def _show_failures(failures: Sequence[Failure]) -> None:
    for failure in failures[:SHOWN_FAILURES]:
        say(f"failed: {failure.message}", file=sys.stderr)
    if len(failures) > SHOWN_FAILURES:
        say(f"failed: {len(failures) - SHOWN_FAILURES} more; search.json of --output has all", file=sys.stderr)
