"""Who may reach which labelling jobs: visitors of the page and users of the HTTP API."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from text2seg.app.checks import read_image
from text2seg.app.folder.archives import UploadLimit
from text2seg.app.folder.inputs import Checked, Upload, check, common_folder, copy_uploads, link_folder
from text2seg.app.folder.jobs import Fill, Job, Jobs
from text2seg.app.folder.review import ContactSheet
from text2seg.app.model_pool import ModelPool
from text2seg.app.settings import MEGA
from text2seg.errors import OntologyError, Text2SegError
from text2seg.io.files import resolve_path
from text2seg.io.names import counted
from text2seg.records import Image

Kept = dict[str, str]
"""Data kept by a browser: the visitor's token, and the open job or "" for a new one."""

NOBODY: Kept = {"visitor": "", "job": ""}
TOKEN_BYTES = 24
_TOKEN = re.compile(r"[\w-]{32}", re.ASCII)
API = "api "
"""Start of the owner of a job of the HTTP API: no token has a space, so no page reaches such a job."""
AGAIN = 10.0
"""Seconds in which the same request counts as the same press of the button."""


class VisitorJobs:
    """Access to jobs by the visitor's token. Visitors reach only their own jobs.

    A token is made here, cannot be guessed, and is kept in the visitor's browser.
    """

    def __init__(self, model_pool: ModelPool) -> None:
        self.model_pool = model_pool
        self._tokens: dict[str, str] = {}  # of new visitors, by their page
        self._starts: dict[str, tuple[Any, str, float]] = {}  # what each visitor asked for last, its job, and when
        self._starting: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()  # while a request holds one
        self._lock = threading.Lock()
        self._room = UploadLimit(model_pool.settings.folder_images, model_pool.settings.folder_mb * MEGA)
        self.jobs = Jobs(most=model_pool.settings.folder_jobs, load=self._load)

    def known(self, kept: Any, page: str = "") -> Kept:
        """Return the data kept by a browser, or a new token if it is missing or not valid.

        Several requests of one page, by its session, get the same new token: each could start a job before the browser
        knows its token.
        """
        fresh = secrets.token_urlsafe(TOKEN_BYTES)
        match kept:
            case {"visitor": str(visitor), "job": str(job)} if _TOKEN.fullmatch(visitor):
                return {"visitor": visitor, "job": job}
        with self._lock:
            return {"visitor": self._tokens.setdefault(page, fresh) if page else fresh, "job": ""}

    def forget(self, page: str) -> None:
        """Forget the new token of a page that was left."""
        with self._lock:
            self._tokens.pop(page, None)

    def job(self, kept: Any) -> Job | None:
        """Return the open job of a visitor, or None if it is new, deleted or not theirs."""
        known = self.known(kept)
        return self.jobs.find(known["visitor"], known["job"]) if known["job"] else None

    def jobs_of(self, kept: Any) -> list[Job]:
        """Return all jobs of a visitor."""
        return self.jobs.of(self.known(kept)["visitor"])

    def start(self, who: str, paths: Sequence[Path], text: str) -> Job:
        """Start a job of the HTTP API on uploaded files. `who` is the user, or the address of the client. Raises
        `Text2SegError`."""
        return self.upload({"visitor": f"{API}{who}", "job": ""}, [Upload(path, path.name) for path in paths], text)

    def check_room(self, who: str) -> None:
        """Raise `TooManyJobsError` if `who` cannot start another job of the HTTP API now."""
        self.jobs.check_room(f"{API}{who}")

    def of_user(self, user: str) -> list[Job]:
        """Return the jobs of the HTTP API of a user with a password, oldest first."""
        return self.jobs.of(f"{API}{user}")

    def find(self, user: str, number: str) -> Job | None:
        """Return a job of the HTTP API by its id, or None if there is none. It belongs to its user, or to everyone who
        knows its id if the app has no passwords (`user` is "")."""
        owner = self.jobs.owner_of(number)
        mine = owner == f"{API}{user}" if user else owner.startswith(API)
        return self.jobs.find(owner, number) if mine else None

    def check(self, text: str) -> Checked:
        """Check an ontology while it is typed."""
        return check(text, self.model_pool.models)

    def upload(self, kept: Kept, uploads: Sequence[Upload], text: str) -> Job:
        """Start a job on uploaded files. Raises `Text2SegError`."""
        if not uploads:
            raise Text2SegError("choose images or a zip file first")
        name = uploads[0].name if len(uploads) == 1 else common_folder(uploads) or f"{len(uploads)} files"
        return self._add(kept, name, text, tuple(uploads), lambda into: copy_uploads(uploads, into, self._room))

    def choose(self, kept: Kept, folder: str, text: str) -> Job:
        """Start a job on a folder below the root. Raises `Text2SegError`."""
        root = self.model_pool.settings.root
        if root is None:
            raise Text2SegError("this app offers no folder on the server; upload the images")
        name = resolve_path(root).name if folder == "." else folder
        return self._add(kept, name, text, folder, lambda into: link_folder(root, folder, into, self._room))

    def sheet(self, job: Job) -> ContactSheet:
        """Return the contact sheet of a finished job."""
        if job.sheet is None:
            job.sheet = ContactSheet(job.dataset, job.images)
        return job.sheet

    def _add(self, kept: Kept, name: str, text: str, source: Any, fill: Fill) -> Job:
        """Start a job, or return the one that the same request has just started. `source` says what images it has."""
        if not text.strip():
            raise Text2SegError("nothing to find yet; type things separated by commas, or write an ontology")
        checked = self.check(text)
        if checked.ontology is None:
            first, *others = checked.errors or checked.unknown
            line = f", line {first.line}" if first.line else ""
            more = f" ({counted(len(others), 'more error')})" if others else ""
            raise OntologyError(f"ontology{line}: {first.message}{more}")
        unknown = tuple(each.message for each in checked.unknown)
        with self._lock:
            starting = self._starting.setdefault(kept["visitor"], threading.Lock())
        with starting:  # a second press of the button comes before the first one has its answer
            asked = (source, text)
            with self._lock:
                oldest = time.monotonic() - AGAIN
                self._starts = {visitor: start for visitor, start in self._starts.items() if start[2] > oldest}
                before, number, _ = self._starts.get(kept["visitor"], (None, "", 0.0))
            if before == asked and (job := self.jobs.find(kept["visitor"], number)):
                return job
            models = self.model_pool.models
            taken = {job.name for job in self.jobs.of(kept["visitor"])}
            same = (f"{name} ({number})" for number in count(2))
            name = next(each for each in chain([name], same) if each not in taken)
            said: dict[str, Any] = {"unknown": unknown, "notes": checked.half_known}
            job = self.jobs.add(kept["visitor"], name, models, checked.ontology, fill, **said)
            with self._lock:
                self._starts[kept["visitor"]] = (asked, job.id, time.monotonic())
            return job

    def _load(self, path: Path, name: str) -> Image:
        return replace(read_image(path, self.model_pool.settings, name=name), file_name=name)
