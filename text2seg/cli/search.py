"""`text2seg search`: find the images in a folder that match a query best."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg.cli.common import PlainConsole, check_models, known_queries, load_models, plain_table, queries_of
from text2seg.cli.terminal import INTERRUPTED, exit_status, log_to_terminal, say, say_failures, stop_on_signals
from text2seg.config import MapSettings, ModelSettings, Settings
from text2seg.errors import ImageError, SettingsError
from text2seg.io.names import counted, listed
from text2seg.io.storage import Url
from text2seg.search import SEARCH_FILE, results_folder

if TYPE_CHECKING:
    from text2seg.records import Image
    from text2seg.search.index import Hit


@dataclass(frozen=True, slots=True)
class Search:
    """Find the images in a folder that match a query best.

    CLIP's features of each image are kept in an index, so that a second search encodes only new and changed images. If
    the search is stopped, by Ctrl-C or in any other way, the images encoded so far are kept.

    Example: text2seg search photos "red car" dog --top 20
    """

    folder: tyro.conf.Positional[Annotated[Url | Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]]
    """Folder of images: a path, or a URL such as s3://bucket/photos."""
    text: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="QUERY …", help_behavior_hint="")]] = ()
    """One or more queries. "a+b" finds images that show both."""
    query: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another way to give a query, as in the other commands; repeat for more."""
    top: int = 20
    """Number of images for each query."""
    output: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Write search.json and, for each query, a sheet of its images into this folder."""
    overwrite: bool = False
    """Replace the results of an earlier search in that folder. Files that text2seg did not write are kept."""
    index: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder that contains the indexes. Default: a folder in your cache folder."""
    recursive: bool = True
    """Also read the subfolders."""
    glob: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only files that match this pattern, such as "*.jpg" or "front/*"; repeat for more. Default: all files that Pillow
    reads."""
    workers: int = 4
    """Number of threads that read and decode images."""
    input_size: int | None = None
    """CLIP's input in pixels. Default: that of the model card, or 512."""
    model: ModelSettings = field(default_factory=ModelSettings)
    verbose: bool = False
    """Print which models run on which device, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.top < 1 or self.workers < 1:
            raise SettingsError("top and workers must be 1 or more")
        queries, unknown = known_queries(
            self.model, queries_of((*self.text, *self.query), "", way="name at least one query")
        )
        if excluding := [query.name for query in queries if query.negatives]:
            names = listed(excluding)
            say(f"note: images are ranked by what is wanted; what {names} excludes does not count", file=sys.stderr)
        from text2seg.io.scan import list_images
        from text2seg.io.writing import check_folder

        if self.index is not None:
            check_folder(self.index, flag="--index")
        if self.output is not None:
            check_folder(self.output)
            results_folder(self.output, overwrite=self.overwrite).check_result(SEARCH_FILE)
        scan = list_images(self.folder, recursive=self.recursive, globs=self.glob)
        check_models(self.model)
        from text2seg.search.fill import filled_index, indexed_images
        from text2seg.search.index import best_images, import_faiss, write_results

        import_faiss()
        models = load_models(self.model, Settings(maps=MapSettings(input_size=self.input_size)))
        queries = models.check(queries)
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
                say(f"text2seg: stopped; the {len(index)} images in the index are kept", file=sys.stderr)
                return INTERRUPTED
            indexed = {file for file in scan.files if index.entry(file)}
            found = {query.name: best_images(models, index, query, self.top, indexed) for query in queries}
        calibrated = models.default_presence(models.settings) is not None
        models.warn_of_photographs(_best(self.folder, found))
        for query, hits in found.items():
            _show(query, hits, calibrated=calibrated)
        say_failures(
            filled.failures, all_in=str(self.output / SEARCH_FILE) if self.output else "", verbose=self.verbose
        )
        say(f"{counted(len(indexed), 'image')}, {filled.encoded} of them encoded now; index: {index.path}")
        if self.output is not None:
            for path in write_results(
                self.output,
                self.folder,
                found,
                filled.failures,
                models.names,
                calibrated=calibrated,
                overwrite=self.overwrite,
            ):
                say(path)
        return exit_status(len(indexed), len(filled.failures) + unknown)


def _best(folder: Path | Url, found: Mapping[str, Sequence[Hit]]) -> Iterator[Image]:
    """Yield the best image of each query that can be read."""
    from text2seg.io.images import load_image

    for file in dict.fromkeys(hit.file for hits in found.values() for hit in hits[:1]):
        with suppress(ImageError):
            yield load_image(folder / file, file_name=file)


def _show(query: str, hits: Sequence[Hit], *, calibrated: bool) -> None:
    """Print the images found for one query."""
    from text2seg.records import calibration_note

    table = plain_table(query, "image", "rank", f"presence{calibration_note(calibrated)}", "cosine")
    for rank, hit in enumerate(hits, start=1):
        table.add_row(hit.file, str(rank), f"{hit.presence:.2f}", f"{hit.cosine:.3f}")
    PlainConsole().print(table)
