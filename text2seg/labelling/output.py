"""The COCO file of a job: whether it may be written, and how it comes out of the journal."""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import platformdirs

from text2seg.coco.dataset import dataset_info, write_stream
from text2seg.errors import OutputError
from text2seg.io import storage
from text2seg.io.files import check_writable, discard, expanded, fitting, is_file, sha256_of
from text2seg.io.storage import Place, Url
from text2seg.labelling.journal import WRITING, WRITTEN, Journal, output_hashes
from text2seg.labelling.record import Json
from text2seg.labelling.state import JobState
from text2seg.ontology import Ontology
from text2seg.records import Failure

STATE_VARIABLE = "TEXT2SEG_STATE"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CategorySummary:
    """How often a category was found. `area_share` is the median part of the image that a segment covers, in [0, 1],
    `score` the mean of the segments' scores; both are None where there is no segment."""

    name: str
    images: int
    segments: int
    area_share: float | None
    score: float | None


def local_file(output: Place) -> Path:
    """The output itself or, where it is at a URL, the file on this machine that it is made in before it is put there.

    Stores replace an object as a whole, so nothing can be added to one, and a journal cannot lie there.
    """
    if isinstance(output, Path):
        return output
    chosen = os.environ.get(STATE_VARIABLE)
    state = expanded(chosen, OutputError) if chosen else platformdirs.user_state_path("text2seg", appauthor=False)
    key = hashlib.sha256(str(output).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return state / "jobs" / fitting(f"{key}-{output.name[-80:]}", "")


def journal_path(output: Place) -> Path:
    """Beside the output or, where it is at a URL, beside its `local_file`."""
    file = local_file(output)
    return file.with_name(fitting(file.name, ".journal"))


def check_output(output: Place, *, overwrite: bool = False, inputs: Iterable[object] = ()) -> None:
    """Find out now, not after the last image, whether the output may be written.

    A file that is there may be replaced only where it is, byte for byte, what this job wrote: the journal has its hash,
    however the last run ended. One of the `inputs` of the job, or a file that is no text, is never replaced.

    Raises:
        OutputError: it is there and this job did not write it, or somebody changed it since; it is no file, or its
            folder cannot be written to.
    """
    file, journal = local_file(output), journal_path(output)
    at_url = isinstance(output, Url)
    for path in (file, journal):
        flag = f"folder with {STATE_VARIABLE}" if at_url else "--output"
        check_writable(path, overwrite=True, flag=flag, inputs=inputs, text=path == file)
    if overwrite:
        return
    here = is_file(file, OutputError)
    places: list[Place] = [file] * here
    if isinstance(output, Url) and storage.exists(output):
        places.append(output)
    if not places:
        return
    ways_out = "--overwrite writes over it, or choose another --output"
    if not is_file(journal, OutputError):
        raise OutputError(f"{places[-1]} is there already, and no journal says that this job made it; {ways_out}")
    written = output_hashes(journal)
    for place in places:
        if not written:
            raise OutputError(
                f"{place} is there already, and the journal does not say that this job made it; {ways_out}"
            )
        if _sha256(place) not in written:
            raise OutputError(f"{place} was changed since this job wrote it; {ways_out}")


def write_output(
    output: Place,
    journal: Journal,
    state: JobState,
    ontology: Ontology,
    *,
    image_id: Callable[[int], int],
    info: Mapping[str, Any],
    overwrite: bool = False,
) -> tuple[tuple[Failure, ...], tuple[CategorySummary, ...]]:
    """Stream the COCO file out of the journal, in the order of the scan; only failures are held in memory. One at a
    URL is made here and put there in one piece.

    Args:
        image_id: from a file's place in the scan to its id.
        info: what the file's own info says beside its failures.
        overwrite: replace a file that this job did not write.

    Raises:
        OutputError: it cannot be written, somebody changed it while the job ran, or the journal is damaged. All that
            was done is in the journal.
    """
    failures = tuple(_failures(journal, state))
    entries = [{"file_name": each.file_name, "stage": each.stage, "message": each.message} for each in failures]
    tally = _Tally(ontology)
    file = local_file(output)
    digest = ""

    def announce(temporary: Path) -> None:
        nonlocal digest
        check_output(output, overwrite=overwrite)  # once more: a person may have worked on it while the job ran
        digest = _sha256(temporary)
        journal.append([{"output": WRITING, "sha256": digest}])

    write_stream(
        file,
        info=dataset_info({**info, "failures": entries}),
        categories=ontology.coco_categories(),
        images=_images(journal, state, image_id),
        annotations=_annotations(journal, state, image_id, tally),
        before=announce,
    )
    if isinstance(output, Url):
        _put(file, output)
    journal.append([{"output": WRITTEN, "sha256": digest}])
    return failures, tally.summaries()


def _put(file: Path, output: Url) -> None:
    try:
        storage.put(file, output)
    except OutputError as error:
        raise OutputError(
            f"{error}. The finished file is {file}; the same command tries again to put it there"
        ) from error
    discard(file)


def _failures(journal: Journal, state: JobState) -> Iterator[Failure]:
    for record in journal.read_all(state.failed()):
        yield Failure(record["file"], record["failure"]["stage"], record["failure"]["message"])


def _labelled(journal: Journal, state: JobState) -> Iterator[tuple[int, Json]]:
    places = (index for index, _ in state.labelled())
    return zip(places, journal.read_all(offset for _, offset in state.labelled()), strict=True)


def _images(journal: Journal, state: JobState, image_id: Callable[[int], int]) -> Iterator[Json]:
    for index, record in _labelled(journal, state):
        yield {
            "id": image_id(index),
            "file_name": record["file"],
            "width": record["width"],
            "height": record["height"],
            "attributes": {"presence": record["presence"]} | ({"skipped": True} if record.get("skipped") else {}),
        }


def _annotations(journal: Journal, state: JobState, image_id: Callable[[int], int], tally: _Tally) -> Iterator[Json]:
    number = 0
    for index, record in _labelled(journal, state):
        tally.add(record)
        for annotation in record["annotations"]:
            number += 1
            yield {"id": number, "image_id": image_id(index), **annotation}


class _Tally:
    """Counts by category, with eight bytes for each segment."""

    def __init__(self, ontology: Ontology) -> None:
        self._names = {category.id: category.name for category in ontology.categories}
        self._images = dict.fromkeys(self._names, 0)
        self._shares = {number: array("f") for number in self._names}
        self._scores = {number: array("f") for number in self._names}

    def add(self, record: Mapping[str, Any]) -> None:
        for number in {annotation["category_id"] for annotation in record["annotations"]}:
            self._images[number] += 1
        for annotation in record["annotations"]:
            number = annotation["category_id"]
            self._shares[number].append(annotation["area"] / (record["width"] * record["height"]))
            self._scores[number].append(annotation["score"])

    def summaries(self) -> tuple[CategorySummary, ...]:
        return tuple(
            CategorySummary(
                name,
                self._images[number],
                len(self._scores[number]),
                median(self._shares[number]) if self._shares[number] else None,
                fmean(self._scores[number]) if self._scores[number] else None,
            )
            for number, name in self._names.items()
        )


def _sha256(path: Place) -> str:
    if isinstance(path, Url):
        return storage.sha256(path)
    return sha256_of(path, OutputError)
