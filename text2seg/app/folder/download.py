"""What a visitor takes home from a job: the dataset without what was rejected, the review page, the failures."""

from __future__ import annotations

import secrets
import zipfile
from pathlib import Path
from typing import Any

from text2seg.app.folder.jobs import Job
from text2seg.app.folder.sheet import ContactSheet
from text2seg.coco.dataset import write_dataset
from text2seg.errors import OutputError
from text2seg.io.files import discard, make_folder, reason, write_atomically
from text2seg.review import write_review

README = """\
dataset.json  a COCO dataset, found by text2seg; info.review says what was accepted and rejected by hand
pictures/     the pictures, under the names that the dataset gives them (only where they were asked for)
failures.txt  pictures that could not be done, one a line, with the reason
"""


def dataset_zip(job: Job, sheet: ContactSheet, *, pictures: bool) -> Path:
    """A zip of the dataset and the failures, with or without the pictures that it is about.

    Raises:
        OutputError: it cannot be written.
    """
    dataset = _reviewed(job, sheet)
    target = _downloads(job) / f"{_stem(job)}{'-with-pictures' if pictures else ''}.zip"
    part = target.with_name(f"{secrets.token_hex(8)}.part")  # two may be made at once
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(write_dataset(dataset, _downloads(job) / "dataset.json"), "dataset.json")
            archive.writestr("README.txt", README)
            if job.failures:
                archive.writestr("failures.txt", _failures(job))
            for name in [image["file_name"] for image in dataset["images"]] if pictures else ():
                archive.write(job.pictures / name, f"pictures/{name}", zipfile.ZIP_STORED)  # packed already
        part.replace(target)
    except OSError as error:
        raise OutputError(f"the zip cannot be written: {reason(error)}; please try again later") from error
    finally:
        discard(part)
    return target


def review_page(job: Job, sheet: ContactSheet) -> Path:
    """The page of `text2seg report`, for what was not rejected. Raises `OutputError` where it cannot be written."""
    dataset = write_dataset(_reviewed(job, sheet), _downloads(job) / f"{_stem(job)}.json")
    target = _downloads(job) / f"{_stem(job)}-review.html"
    return write_review(dataset, target, images=job.pictures, overwrite=True).path


def failures_text(job: Job) -> Path:
    """A line for each picture that failed. Raises `OutputError` where it cannot be written."""
    return write_atomically(_downloads(job) / f"{_stem(job)}-failures.txt", [_failures(job)])


def _reviewed(job: Job, sheet: ContactSheet) -> dict[str, Any]:
    return job.decisions.apply(sheet.content)


def _failures(job: Job) -> bytes:
    return "".join(f"{line}\n" for line in job.failures).encode("utf-8", "backslashreplace")


def _downloads(job: Job) -> Path:
    folder = job.folder / "downloads"
    make_folder(folder)
    return folder


def _stem(job: Job) -> str:
    """The job's name as a file is called: letters, digits, - and _."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in Path(job.name).stem)
    return kept.strip("-")[:60] or "dataset"
