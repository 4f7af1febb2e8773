"""Layout and events of the tab "Label a folder"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.context import Context

from text2seg.app.folder import download, views
from text2seg.app.folder.editor import WITH_LIMITS, as_yaml, demo_things
from text2seg.app.folder.jobs import Job
from text2seg.app.folder.session import NOBODY, Kept, Visits
from text2seg.app.folder.sheet import ContactSheet, Shown
from text2seg.app.folder.sources import folders_in
from text2seg.app.messages import alert, words_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.settings import AppSettings
from text2seg.app.uploads import check_upload
from text2seg.errors import Text2SegError

TICK = 1.0  # seconds between two looks at a job
UPLOAD, SERVER = "Upload", "A folder of this server"
SHOWN = [("All", "all"), ("Not decided", "undecided"), ("Accepted", "accepted"), ("Rejected", "rejected")]
FEW_THINGS = "sheep, koala, fire engine"
HELP = (
    "The most doubtful pictures come first. What you reject leaves the dataset: a picture with all that is in it, a "
    "segment (its box unticked) alone. What you leave undecided stays."
)
BEGIN = (
    "Type things and write them as an ontology, begin with an example, or paste your own. It is checked as you type."
)
KEYS = "Keys: <kbd>j</kbd> next, <kbd>k</kbd> previous, <kbd>a</kbd> accept, <kbd>r</kbd> reject."


def lay_out(settings: AppSettings, *, knows_all: bool) -> SimpleNamespace:
    """Make the components within the tab. `knows_all`: there is a list of all that the models know."""
    c = SimpleNamespace()
    # Whatever the page is encrypted with stands in the page; what counts is that the token cannot be guessed.
    c.kept = gr.BrowserState(NOBODY, storage_key="text2seg-folder", secret="text2seg")
    c.number = gr.State(0)
    c.phase = gr.Textbox(visible="hidden")  # no State: of that, events beside the queue report no change
    c.timer = gr.Timer(TICK, active=False)
    c.picker = gr.Radio([], label="Your jobs", visible=False, elem_id="folder-jobs")
    with gr.Column(elem_id="folder-form") as c.form:
        with gr.Row():
            with gr.Column(min_width=320):
                _lay_out_pictures(c, settings)
            with gr.Column(min_width=320):
                _lay_out_ontology(c, knows_all=knows_all)
        c.problem = _html("folder-problem")
        c.start = gr.Button("Label the pictures", variant="primary", elem_id="folder-start")
        # What does the work, for the page to press (see page.js); there once it is known whose job it will be.
        c.begin = gr.Button("Label the pictures", visible=False, elem_id="folder-begin")
    with gr.Column(visible=False, elem_id="folder-job") as c.work:
        _lay_out_job(c)
    with gr.Column(visible=False, elem_id="folder-review") as c.review:
        _lay_out_review(c)
    return c


def choices_of(root: Path | None) -> list[tuple[str, str]]:
    """The folders below the root, each with what it is called on the page."""
    return [("the whole folder" if name == "." else name, name) for name in (folders_in(root) if root else [])]


def _lay_out_pictures(c: SimpleNamespace, settings: AppSettings) -> None:
    gr.Markdown("### Pictures")
    c.source = gr.Radio([UPLOAD, SERVER], value=UPLOAD, label="Where they are", visible=settings.root is not None)
    c.files = gr.File(label="Pictures, or a zip of them", file_count="multiple", height=240, elem_id="folder-files")
    folders = choices_of(settings.root)
    first = folders[0][1] if folders else None
    c.folder = gr.Dropdown(folders, value=first, label="Folder", visible=False, elem_id="folder-folder")
    limits = (
        f"At most {settings.folder_images:,} pictures and {settings.folder_mb:,} MB at once. Nobody else sees them; "
        "they are deleted with the job, at the latest half a day after you last looked at it."
    )
    c.room = _html("folder-limits", _hint(limits))


def _lay_out_ontology(c: SimpleNamespace, *, knows_all: bool) -> None:
    gr.Markdown("### What to look for")
    with gr.Row(equal_height=False, elem_classes="t2s-folder-list"):
        c.queries = gr.Textbox(
            label="Things, with commas between them",
            placeholder=FEW_THINGS,
            scale=5,
            min_width=160,
            elem_id="folder-queries",
        )
        c.write = gr.Button("Write the ontology", scale=0, min_width=200, size="md", elem_id="folder-write")
    c.text = gr.Code(label="Ontology (YAML)", language="yaml", lines=8, max_lines=16, elem_id="folder-ontology")
    c.checked = _html("folder-checked", _hint(BEGIN))
    with gr.Row(elem_classes="t2s-folder-examples"):
        c.few = gr.Button("Example: a few things", size="sm", min_width=120)
        c.limits = gr.Button("Example: wordings and limits", size="sm", min_width=120)
        c.all = gr.Button("All the demo model knows", size="sm", min_width=120, visible=knows_all)


def _html(name: str, value: str = "", **options: Any) -> gr.HTML:
    """HTML of ours, without the margins that Gradio gives to texts."""
    return gr.HTML(value, elem_id=name, elem_classes="t2s-folder-html", apply_default_css=False, **options)


def _hint(html: str) -> str:
    return f'<p class="t2s-hint">{html}</p>'


def _lay_out_job(c: SimpleNamespace) -> None:
    c.status = _html("folder-status")
    with gr.Row(elem_classes="t2s-folder-actions"):
        c.cancel = gr.Button("Cancel", size="md", variant="stop", elem_id="folder-cancel")
        c.resume = gr.Button("Go on", size="md", variant="primary", elem_id="folder-resume")
        c.delete = gr.Button("Delete job", size="md", elem_id="folder-delete")
    with gr.Row(visible=False, elem_classes="t2s-folder-actions") as c.sure:
        gr.Markdown("Delete this job, what was uploaded for it and what you decided?")
        c.yes = gr.Button("Yes, delete", size="md", variant="stop", elem_id="folder-yes")
        c.no = gr.Button("Keep it", size="md", elem_id="folder-no")


def _lay_out_review(c: SimpleNamespace) -> None:
    gr.Markdown("### Take home")
    with gr.Row(elem_classes="t2s-folder-actions"):
        c.get_all = gr.Button("COCO dataset with pictures", size="md", variant="primary", elem_id="folder-get-all")
        c.get_dataset = gr.Button("COCO dataset", size="md", elem_id="folder-get-dataset")
        c.get_page = gr.Button("Review page", size="md", elem_id="folder-get-page")
        c.get_failures = gr.Button("Failures", size="md", elem_id="folder-get-failures")
    c.file = gr.DownloadButton("Download", visible="hidden", elem_id="folder-file")
    gr.Markdown("### Review")
    _html("folder-help", _hint(f'{HELP} <span class="t2s-keys">{KEYS}</span>'))
    with gr.Row(elem_classes="t2s-folder-bar"):
        c.shown = gr.Radio(SHOWN, value="all", label="Show", elem_id="folder-shown", scale=3)
        c.tally = _html("folder-tally")
    c.sheet = _html("folder-sheet", js_on_load="window.text2segContactSheet(element, trigger, watch)")
    with gr.Row(elem_classes="t2s-folder-actions") as c.pages:
        c.back = gr.Button("Previous page", size="sm", elem_id="folder-back")
        c.place = _html("folder-place")
        c.next = gr.Button("Next page", size="sm", elem_id="folder-next")


Updates = dict[Any, Any]

NEW = "New"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
FETCH = "() => setTimeout(() => document.querySelector('#folder-file a, a#folder-file, #folder-file').click(), 100)"
PRESS = "() => text2segPress('#folder-begin')"
READY = "() => ({__type__: 'update', interactive: true})"
WAIT = "() => Array(2).fill({__type__: 'update', interactive: false})"
SHOW_SHEET = "() => document.querySelector('#folder-sheet').scrollIntoView()"


def build(model_pool: ModelPool) -> None:
    """Build the tab; called within its `gr.Tab`."""
    Tab(model_pool)


class Tab:
    """The components of one page, wired up. Its methods are called by events of any visitor's page."""

    def __init__(self, model_pool: ModelPool) -> None:
        self._visits = Visits(model_pool)
        self._root = model_pool.settings.root
        self._c = lay_out(model_pool.settings, knows_all=model_pool.models.things is not None)
        self._wire_job()
        self._wire_form()
        self._wire_review()

    def _wire_job(self) -> None:
        c, jobs = self._c, self._visits.jobs
        page = Context.root_block
        if page is None:
            raise RuntimeError("the tab is built within a page")
        screen = [c.picker, c.form, c.work, c.review, c.status, c.cancel, c.resume, c.delete, c.sure, c.timer, c.phase]
        anew = [c.kept, *screen, c.start, c.begin]
        page.load(self._folders, outputs=[c.folder], **QUIET)
        # Also when the tab is first opened: only then does the page look up what the browser kept.
        c.kept.change(self._anew, [c.kept], anew, **QUIET)
        c.picker.input(self._look_at, [c.kept, c.picker], [c.kept], trigger_mode="always_last", **QUIET)
        c.timer.tick(self._tick, [c.kept], [c.status, c.timer, c.phase], queue=False, **QUIET)
        c.phase.change(self._screen, [c.kept], screen, **QUIET)
        c.cancel.click(self._acting(jobs.cancel), [c.kept], anew, **QUIET)
        c.resume.click(self._acting(jobs.resume), [c.kept], anew, **QUIET)
        c.yes.click(self._acting(jobs.remove), [c.kept], anew, **QUIET)
        c.delete.click(lambda: gr.Row(visible=True), outputs=[c.sure], **QUIET)
        c.no.click(lambda: gr.Row(visible=False), outputs=[c.sure], **QUIET)
        c.start.click(None, outputs=[c.start], js=PRESS)
        begun = c.begin.click(
            self._start,
            [c.kept, c.source, c.files, c.folder, c.queries, c.text],
            [*anew, c.problem, c.files, c.text],
            show_progress="minimal",
            show_progress_on=[c.problem],
            api_visibility="private",
        )
        begun.failure(None, outputs=[c.start], js=READY)

    def _wire_form(self) -> None:
        c = self._c
        last: dict[str, Any] = {"trigger_mode": "always_last", **QUIET}  # of several presses in a row the last counts
        c.source.input(self._switch, [c.source], [c.files, c.room, c.folder], **last)
        gr.on([c.write.click, c.queries.submit], self._write, [c.queries], [c.text, c.problem], **last)
        c.few.click(lambda: as_yaml(FEW_THINGS), outputs=[c.text], **QUIET)
        c.limits.click(lambda: WITH_LIMITS, outputs=[c.text], **QUIET)
        c.all.click(demo_things, outputs=[c.text], **QUIET)
        c.text.change(self._check, [c.text], [c.checked, c.problem], **QUIET)

    def _wire_review(self) -> None:
        c = self._c
        sheet = [c.sheet, c.tally, c.number, c.pages, c.place, c.back, c.next, c.get_failures]
        shown = [c.phase.change, c.shown.input]
        gr.on(shown, self._page, [c.kept, c.shown], sheet, trigger_mode="always_last", **QUIET)
        for button, step in ((c.back, -1), (c.next, 1)):
            button.click(None, outputs=[c.back, c.next], js=WAIT)
            turned = button.click(partial(self._turn, step), [c.kept, c.shown, c.number], sheet, **QUIET)
            turned.then(None, js=SHOW_SHEET)
            turned.failure(None, outputs=[button], js=READY)
        c.sheet.select(self._decide, [c.kept], [c.tally], trigger_mode="multiple", **QUIET)
        for button, make in (
            (c.get_all, lambda job, sheet: download.dataset_zip(job, sheet, pictures=True)),
            (c.get_dataset, lambda job, sheet: download.dataset_zip(job, sheet, pictures=False)),
            (c.get_page, download.review_page),
            (c.get_failures, lambda job, _: download.failures_text(job)),
        ):
            made = button.click(self._making(make), [c.kept], [c.file], api_visibility="private")
            made.success(None, js=FETCH)

    def _folders(self) -> Any:
        """The folders there are now; which one is chosen stays, for it may be chosen before this answer comes."""
        return gr.Dropdown(choices=choices_of(self._root))

    def _switch(self, source: str) -> Updates:
        c, uploads = self._c, source == UPLOAD
        return {
            c.files: gr.File(visible=uploads),
            c.room: gr.HTML(visible=uploads),
            c.folder: gr.Dropdown(visible=not uploads),
        }

    def _look_at(self, kept: Any, number: str) -> Kept:
        return {**self._visits.known(kept), "job": "" if number == NEW else number}

    def _screen(self, kept: Any) -> Updates:
        """All that follows from which job is looked at and how far it is."""
        c, job = self._c, self._seen(kept)
        choices = [(f"{each.name} · {views.BADGES[each.state]}", each.id) for each in self._visits.jobs_of(kept)]
        state = job.state if job else None
        return {
            c.picker: gr.Radio(
                choices=[*choices, ("New job", NEW)], value=job.id if job else NEW, visible=bool(choices)
            ),
            c.form: gr.Column(visible=job is None),
            c.work: gr.Column(visible=job is not None),
            c.review: gr.Column(visible=state == "done"),
            c.cancel: gr.Button(visible=state in ("waiting", "running")),
            c.resume: gr.Button(visible=state in ("stopped", "failed")),
            c.delete: gr.Button(visible=state in ("stopped", "failed", "done")),
            **self._progress(job),
        }

    def _anew(self, kept: Any) -> Updates:
        """The screen for a job that was not looked at, or was other, until now: nothing is half asked any more.

        News of the same job keep a question open, because they may come in the instant after it was asked. A browser
        that kept nothing of ours gets a token first and can label only then, so that every job is found again."""
        c, known = self._c, self._visits.known(kept)
        updates = {**self._screen(known), c.sure: gr.Row(visible=False), c.start: gr.Button(interactive=True)}
        return {**updates, c.begin: gr.Button(visible="hidden")} if known == kept else {**updates, c.kept: known}

    def _tick(self, kept: Any) -> Updates:
        """How far the job is, asked for every second while it is on its way."""
        return self._progress(self._seen(kept))

    def _progress(self, job: Job | None) -> Updates:
        c = self._c
        if job is None:
            return {c.status: "", c.timer: gr.Timer(active=False), c.phase: ""}
        return {
            c.status: views.status_html(job, self._visits.jobs.ahead(job.id)),
            c.timer: gr.Timer(active=job.state in ("filling", "waiting", "running")),
            c.phase: f"{job.id} {job.state}",
        }

    def _seen(self, kept: Any) -> Job | None:
        """The job as it is now, for it goes on while the page is made."""
        job = self._visits.job(kept)
        return replace(job) if job else None

    def _acting(self, act: Callable[[Job], None]) -> Callable[[Any], Updates]:
        def acted(kept: Any) -> Updates:
            if job := self._visits.job(kept):
                act(job)
            return self._anew(kept)

        return acted

    def _write(self, queries: str) -> Updates:
        try:
            return {self._c.text: as_yaml(queries), self._c.problem: ""}
        except Text2SegError as error:
            return {self._c.problem: alert(words_of(error))}

    def _check(self, text: str) -> Updates:
        html = views.checked_html(self._visits.check(text))
        return {self._c.checked: html, self._c.problem: ""}

    def _start(
        self, kept: Any, source: str, files: list[str] | None, folder: str | None, queries: str, text: str
    ) -> Updates:
        """A new job; things that were typed and not written as an ontology yet are written first."""
        known: Kept = self._visits.known(kept)
        c = self._c
        try:
            if queries.strip() and not text.strip():
                text = as_yaml(queries)
            if source == SERVER:
                job = self._visits.choose(known, folder or "", text)
            else:
                job = self._visits.upload(known, [check_upload(Path(file)) for file in files or []], text)
        except Text2SegError as error:
            return {c.start: gr.Button(interactive=True), c.problem: alert(words_of(error))}
        known = {**known, "job": job.id}
        return {**self._anew(known), c.kept: known, c.problem: "", c.files: None, c.text: text}

    def _page(self, kept: Any, shown: Shown, number: int = 0) -> Updates:
        """A page of the contact sheet, where the job has one."""
        c, job = self._c, self._visits.job(kept)
        if job is None or job.state != "done":
            return {c.sheet: "", c.tally: "", c.number: 0}
        page = self._visits.sheet(job).page(job.decisions, shown, number)
        return {
            c.sheet: views.sheet_html(page),
            c.tally: views.tally_html(job),
            c.number: page.number,
            c.pages: gr.Row(visible=page.pages > 1),
            c.place: views.place_html(page),
            c.back: gr.Button(interactive=page.number > 0),
            c.next: gr.Button(interactive=page.number + 1 < page.pages),
            c.get_failures: gr.Button(visible=bool(job.failures)),
        }

    def _turn(self, step: int, kept: Any, shown: Shown, number: int) -> Updates:
        return self._page(kept, shown, number + step)

    def _decide(self, kept: Any, event: gr.EventData) -> str:
        job = self._visits.job(kept)
        if job is None or job.state != "done":
            raise gr.Error("This job is gone; load the page again.", print_exception=False)
        self._visits.sheet(job).decide(job.decisions, event._data)
        return views.tally_html(job)

    def _making(self, make: Callable[[Job, ContactSheet], Path]) -> Callable[[Any], Any]:
        def made(kept: Any) -> Any:
            job = self._visits.job(kept)
            if job is None or job.state != "done":
                raise gr.Error("This job is gone; load the page again.", print_exception=False)
            try:
                return make(job, self._visits.sheet(job))
            except Text2SegError as error:
                raise gr.Error(words_of(error), print_exception=False) from error

        return made
