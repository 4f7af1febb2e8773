"""The output of a labelling job: may the COCO file be written, and how it is written from the journal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from text2seg.coco.dataset import dataset_info, write_stream
from text2seg.coco.reader import Dataset, attributes_of
from text2seg.config import LabelSettings
from text2seg.errors import OutputError, SettingsError
from text2seg.io import storage
from text2seg.io.files import expand_path, is_dir, is_file, list_folder, resolve_path, sha256_of
from text2seg.io.names import fit_file_name
from text2seg.io.output_folder import RECORD
from text2seg.io.storage import Place, Url
from text2seg.io.writing import check_folder, check_writable, discard
from text2seg.labelling.engine import SAVED, Json
from text2seg.labelling.journal import WRITING, WRITTEN, JobState, Journal, output_hashes
from text2seg.labelling.reviewed import Review
from text2seg.labelling.summary import SegmentValues, SummaryTally
from text2seg.ontology import Ontology
from text2seg.records import Failure

STATE_VARIABLE = "TEXT2SEG_STATE"
"""Environment variable: folder of the journals of jobs whose output is a URL."""


# ---- before the first image


def local_file(output: Place) -> Path:
    """Return the output itself or, for a URL, the file on this machine that is uploaded at the end.

    Object stores replace an object as a whole. Nothing can be appended to it, so a journal needs a local folder.
    """
    if isinstance(output, Path):
        return output
    chosen = os.environ.get(STATE_VARIABLE)
    state = expand_path(chosen, OutputError) if chosen else platformdirs.user_state_path("text2seg", appauthor=False)
    key = hashlib.sha256(str(output).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return state / "jobs" / fit_file_name(f"{key}-{output.name[-80:]}", "")


def journal_path(output: Place) -> Path:
    """Return the path of the journal: beside the output or, for a URL, beside its `local_file`."""
    file = local_file(output)
    return file.with_name(fit_file_name(file.name, ".journal"))


def check_output(output: Place, *, overwrite: bool = False, inputs: Iterable[object] = ()) -> None:
    """Check that the COCO file may be written, before the first image instead of after the last.

    A file that exists is replaced only if this job wrote it and nobody changed it since: the journal has its hash. An
    input of the job, or a file that is not text, is never replaced.

    Raises:
        OutputError: another program wrote the file, somebody changed it, it is not a file, or its folder is not
            writable.
    """
    file, journal = local_file(output), journal_path(output)
    at_url = isinstance(output, Url)
    for path in (file, journal):
        flag = f"folder with {STATE_VARIABLE}" if at_url else "--output"
        check_writable(path, overwrite=True, flag=flag, inputs=inputs, text=path == file)
    if overwrite:
        return
    is_on_disk = is_file(file, OutputError)
    places: list[Place] = [file] * is_on_disk
    if isinstance(output, Url) and storage.exists(output):
        places.append(output)
    if not places:
        return
    advice = "replace it with --overwrite, or choose another --output"
    if not is_file(journal, OutputError):
        raise OutputError(f"{places[-1]} exists, and no journal says that this job wrote it; {advice}")
    written = output_hashes(journal)
    for place in places:
        if not written:
            raise OutputError(f"{place} exists, and the journal does not say that this job wrote it; {advice}")
        if _sha256(place) not in written:
            raise OutputError(f"{place} was changed since this job wrote it; {advice}")


def image_folder(folder: Place, settings: LabelSettings) -> Path | None:
    """Return the folder that `--save` writes image files to, `<output>_images`, or None if the output is a URL. With
    `--save`, it is checked.

    Raises:
        SettingsError: the output is a URL, or the folder is inside the folder of images and would be labelled too.
        OutputError: the folder has files that are not from this job, or cannot be written to.
    """
    output = settings.output
    if isinstance(output, Url):
        if not settings.save:
            return None
        raise SettingsError("--save writes to a folder on this machine, so --output must be a path, not a URL")
    path = output.with_name(fit_file_name(output.stem, "_images"))
    if not settings.save:
        return path
    if isinstance(folder, Path) and resolve_path(path).is_relative_to(resolve_path(folder)):
        raise SettingsError(
            f"--save would write to {path}, inside the folder of images, and its files would be labelled as well; "
            "choose an --output in another folder"
        )
    check_folder(path)
    is_new_job = not is_file(journal_path(output), OutputError)
    has_files = is_dir(path, OutputError) and any(each.name != RECORD for each in list_folder(path, OutputError))
    if is_new_job and not settings.overwrite and has_files:
        raise OutputError(
            f"{path} has files, and no journal says that this job wrote them; replace them with --overwrite, or choose "
            "another --output"
        )
    return path


def _sha256(path: Place) -> str:
    return storage.sha256(path) if isinstance(path, Url) else sha256_of(path, OutputError)


# ---- after the last image


def write_output(
    output: Place,
    journal: Journal,
    state: JobState,
    ontology: Ontology,
    *,
    image_id: Callable[[int], int],
    info: Mapping[str, Any],
    overwrite: bool = False,
    source: Dataset | None = None,
    review: Review | None = None,
) -> tuple[tuple[Failure, ...], SummaryTally]:
    """Write the COCO file from the journal, in the order of the scan. Returns the failures, and what was counted in the
    images of the file.

    The file is streamed: only failures are held in memory. For a URL, it is written here and then uploaded.

    Args:
        image_id: returns the id of an image from its index in the scan.
        info: the `info` of the dataset, without the failures.
        overwrite: replace a file that this job did not write.
        source: the dataset that was refined; its categories, licences and entries of images are kept.
        review: what a person decided on an earlier output.

    Raises:
        OutputError: the file cannot be written, somebody changed it while the job ran, or the journal is damaged. The
            records stay in the journal.
    """
    failures = tuple(_failures(journal, state))
    entries = [{"file_name": each.file_name, "stage": each.stage, "message": each.message} for each in failures]
    tally = SummaryTally(ontology.names)
    file = local_file(output)
    digest = ""
    reviewed = {"reviewed": True} if review else {}

    def announce(temporary: Path) -> None:
        """Note the hash of the finished file in the journal before the file is put in place."""
        nonlocal digest
        check_output(output, overwrite=overwrite)  # again, because somebody may have edited it while the job ran
        digest = _sha256(temporary)
        journal.append([{"output": WRITING, "sha256": digest, **reviewed}])

    full_info = dataset_info({**info, **({"review": review.info()} if review else {}), "failures": entries})
    write_stream(
        file,
        info=full_info,
        categories=ontology.coco_categories() if source is None else source["categories"],
        images=_images(
            _kept(journal, state, review),
            image_id,
            {} if source is None else {each["id"]: each for each in source["images"]},
        ),
        licenses=[] if source is None else source.get("licenses") or [],
        annotations=_annotations(
            _kept(journal, state, review), image_id, ontology, tally, review, full_info.get("provenance")
        ),
        before_replacing=announce,
    )
    if isinstance(output, Url):
        _upload(file, output)
    journal.append([{"output": WRITTEN, "sha256": digest, **reviewed}])
    return failures, tally


def saved_images(journal: Journal, state: JobState) -> set[str]:
    """Return the names of all image files that belong to the result."""
    return {name for _, record in _labelled(journal, state) for name in record.get(SAVED, ())}


def _failures(journal: Journal, state: JobState) -> Iterator[Failure]:
    for record in journal.read_all(state.failed()):
        yield Failure(record["file"], record["failure"]["stage"], record["failure"]["message"])


def _labelled(journal: Journal, state: JobState) -> Iterator[tuple[int, Json]]:
    """Yield the index and record of each labelled image, in the order of the scan."""
    indices = (index for index, _ in state.labelled())
    return zip(indices, journal.read_all(offset for _, offset in state.labelled()), strict=True)


def _kept(journal: Journal, state: JobState, review: Review | None) -> Iterator[tuple[int, Json]]:
    """Yield index and record of each labelled image that no person has rejected, in the order of the scan."""
    for index, record in _labelled(journal, state):
        if review is None or not review.has_rejected(record["file"]):
            yield index, record


def _images(
    records: Iterable[tuple[int, Json]], image_id: Callable[[int], int], source: Mapping[int, Json]
) -> Iterator[Json]:
    for index, record in records:
        if source:
            yield source[image_id(index)]
            continue
        yield {
            "id": image_id(index),
            "file_name": record["file"],
            "width": record["width"],
            "height": record["height"],
            "attributes": {"presence": record["presence"]} | ({"skipped": True} if record.get("skipped") else {}),
        }


def _annotations(
    records: Iterable[tuple[int, Json]],
    image_id: Callable[[int], int],
    ontology: Ontology,
    tally: SummaryTally,
    review: Review | None,
    provenance: Any,
) -> Iterator[Json]:
    names = {category.id: category.name for category in ontology.categories}
    number = 0
    for index, record in records:
        annotations = review.annotations(record, provenance) if review else record["annotations"]
        pixels = record["width"] * record["height"]
        tally.add_image(
            SegmentValues(
                category=names[annotation["category_id"]],
                area_share=annotation.get("area", 0) / pixels,
                score=annotation.get("score"),
                presence=attributes_of(annotation).get("presence"),
            )
            for annotation in annotations
        )
        for annotation in annotations:
            number += 1
            yield {"id": number, "image_id": image_id(index), **annotation}


def _upload(file: Path, output: Url) -> None:
    try:
        storage.put(file, output)
    except OutputError as error:
        raise OutputError(f"{error}. The finished file is {file}; run the same command again to upload it") from error
    discard(file)
