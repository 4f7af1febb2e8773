"""What the tab does for a visitor: the jobs it holds, and what a page asks for by the token that it keeps.

A token is made here, cannot be guessed and stays in the visitor's browser. Everything else that a page sends is looked
up among the jobs of that token.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from text2seg.app.archives import Room
from text2seg.app.folder.editor import Checked, check
from text2seg.app.folder.jobs import Job, Jobs
from text2seg.app.folder.sheet import ContactSheet
from text2seg.app.folder.sources import take_folder, take_uploads
from text2seg.app.limits import MEGA, read_picture
from text2seg.app.model_pool import ModelPool
from text2seg.errors import Text2SegError
from text2seg.io.files import resolved
from text2seg.records import Image

Kept = dict[str, str]
"""What a browser keeps: the visitor's token and the job that is looked at, empty for a new one."""

NOBODY: Kept = {"visitor": "", "job": ""}
TOKEN_BYTES = 24


class Visits:
    """The jobs of all visitors, each reached by its visitor only."""

    def __init__(self, model_pool: ModelPool) -> None:
        self._model_pool = model_pool
        self._room = Room(model_pool.settings.folder_images, model_pool.settings.folder_mb * MEGA)
        self.jobs = Jobs(load=self._load)

    def known(self, kept: Any) -> Kept:
        """What a browser kept, or a new token for a browser that kept none of ours."""
        fresh = secrets.token_urlsafe(TOKEN_BYTES)
        match kept:
            case {"visitor": str(visitor), "job": str(job)} if len(visitor) == len(fresh):
                return {"visitor": visitor, "job": job}
        return {"visitor": fresh, "job": ""}

    def job(self, kept: Any) -> Job | None:
        """The job that a visitor looks at; `None` for a new one, and for one that is gone or somebody else's."""
        known = self.known(kept)
        return self.jobs.find(known["visitor"], known["job"]) if known["job"] else None

    def jobs_of(self, kept: Any) -> list[Job]:
        """All jobs of a visitor."""
        return self.jobs.of(self.known(kept)["visitor"])

    def check(self, text: str) -> Checked:
        """An ontology as it is typed."""
        return check(text, self._model_pool.models)

    def upload(self, kept: Kept, paths: Sequence[Path], text: str) -> Job:
        """A new job on what was uploaded. Raises `Text2SegError`."""
        if not paths:
            raise Text2SegError("choose pictures first, or a zip of them")
        name = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
        return self._add(kept, name, text, lambda into: take_uploads(paths, into, self._room))

    def choose(self, kept: Kept, folder: str, text: str) -> Job:
        """A new job on a folder below the root. Raises `Text2SegError`."""
        root = self._model_pool.settings.root
        if root is None:
            raise Text2SegError("this app has no folder to choose from; upload the pictures")
        name = resolved(root).name if folder == "." else folder
        return self._add(kept, name, text, lambda into: take_folder(root, folder, into, self._room))

    def sheet(self, job: Job) -> ContactSheet:
        """The contact sheet of a job that is done."""
        if job.sheet is None:
            job.sheet = ContactSheet(job.dataset, job.pictures)
        return job.sheet

    def _add(self, kept: Kept, name: str, text: str, fill: Callable[[Path], tuple[str, ...]]) -> Job:
        if not text.strip():
            raise Text2SegError("say what to look for: type things, with commas between them, or write an ontology")
        checked = self.check(text)
        if checked.ontology is None:
            count = len(checked.faults)
            raise Text2SegError(f"the ontology has {count} fault{'s' * (count != 1)} to mend first")
        return self.jobs.add(kept["visitor"], name, self._model_pool.models, checked.ontology, fill)

    def _load(self, path: Path, name: str) -> Image:
        return replace(read_picture(path, self._model_pool.settings, name=name), file_name=name)
