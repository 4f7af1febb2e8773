"""Events of the tab "Label a folder"."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.context import Context

from text2seg.app.checks import check_upload
from text2seg.app.folder import layout
from text2seg.app.folder.inputs import EXAMPLES, WITH_LIMITS, Upload, as_yaml, known_things
from text2seg.app.folder.jobs import Job
from text2seg.app.folder.layout import FEW_THINGS, QUIET, READY, SERVER, UPLOAD, Updates, choices_of, lay_out
from text2seg.app.folder.reviewing import Review
from text2seg.app.folder.visitors import Kept, VisitorJobs
from text2seg.app.messages import alert, message_of
from text2seg.app.segment import Editor
from text2seg.errors import OntologyError, Text2SegError

NEW = "New"
GONE = "Your last job is gone: it was deleted, or the app was started again, and keeps no jobs then."
PRESS = "() => text2segPress('#folder-begin')"
STOPPING = """() => {
  const [badge] = document.querySelectorAll("#folder-status .badge");
  if (badge) badge.textContent = "stopping";
}"""
ASKED = """() => {
  text2segFocus('#%s');
  setTimeout(() => document.querySelector('#%s').scrollIntoView({ block: 'nearest' }), 100);
}"""


# What is typed and chosen for a new job, across a reload of the page.
KEEP = "(...draft) => { text2segKeep('text2seg-draft', draft); }"
RESTORE = """(...now) => {
  const draft = text2segKept("text2seg-draft");
  const [queries, text, converted, files] = now;
  return draft && !queries && !text && !files?.length ? draft : [queries, text ?? "", converted, files];
}"""


def build(jobs: VisitorJobs, tabs: gr.Tabs, editor: Editor, back: SimpleNamespace) -> None:
    """Build the tab. Call it within its `gr.Tab`.

    Args:
        jobs: the jobs of all visitors.
        tabs: the tabs of the page.
        editor: the editor of the Segment tab, for segments of a job.
        back: the bar that leads back from there, made by `lay_out_return`.
    """
    settings, is_closed = jobs.model_pool.settings, jobs.model_pool.models.closed_vocabulary is not None
    components = lay_out(settings, knows_all=is_closed)
    tab, review = Tab(jobs, components), Review(jobs, components)
    review.wire_editor(tabs, editor, back)
    tab.page.unload(review.forget)


class Tab:
    """Events of the form of a new job, and of the open job. All visitors share one instance."""

    def __init__(self, jobs: VisitorJobs, components: SimpleNamespace) -> None:
        self._jobs, self._c = jobs, components
        self._root = jobs.model_pool.settings.root
        page = Context.root_block
        if page is None:
            raise RuntimeError("the tab must be built within a page")
        self.page: Any = page
        self._wire_job()
        self._wire_form()

    def _wire_job(self) -> None:
        c, jobs = self._c, self._jobs.jobs
        shown = [c.picker, c.form, c.work, c.review, c.cancel, c.resume, c.finish, c.delete]
        anew = [c.kept, *shown, c.status, c.sure, c.finish_sure, c.timer, c.phase, c.start, c.begin, c.problem]
        self.page.load(self._folders, outputs=[c.folder], **QUIET)
        self.page.unload(self._forget)
        # This also fires when the tab is first opened, because the page reads the browser's data then.
        c.kept.change(self._anew, [c.kept], anew, **QUIET)
        c.picker.input(self._select, [c.kept, c.picker], [c.kept], trigger_mode="always_last", **QUIET)
        c.timer.tick(self._tick, [c.kept], [c.status, c.timer, c.phase], queue=False, **QUIET)
        # "multiple": two handlers of one change with Gradio's "always_last" ask again and again until the next change.
        c.phase.change(self._parts, [c.kept], shown, trigger_mode="multiple", **QUIET)
        c.cancel.click(None, js=STOPPING, api_visibility="private")
        c.cancel.click(self._acting(jobs.cancel), [c.kept], anew, **QUIET)
        c.resume.click(self._acting(jobs.resume), [c.kept], anew, **QUIET)
        c.finish_yes.click(self._acting(jobs.finish), [c.kept], anew, **QUIET)
        removed = c.yes.click(self._remove, [c.kept], anew, **QUIET)
        removed.success(None, js="() => text2segFocus('#folder-jobs input, #folder-files .t2s-drop')")
        for row, ask, leave in ((c.sure, c.delete, c.no), (c.finish_sure, c.finish, c.finish_no)):
            for button, asks in ((ask, True), (leave, False)):
                shown_now = partial(lambda asks: (gr.Row(visible=asks), gr.Button(visible=not asks)), asks)
                asked = button.click(shown_now, outputs=[row, ask], **QUIET)
                js = ASKED % (leave.elem_id, row.elem_id) if asks else f"() => text2segFocus('#{ask.elem_id}')"
                asked.success(None, js=js)
        c.start.click(None, outputs=[c.start], js=PRESS)
        begun = c.begin.click(
            self._start,
            [c.kept, c.source, c.files, c.folder, c.queries, c.text, c.converted],
            [*anew, c.files, c.text, c.converted],
            show_progress="minimal",
            show_progress_on=[c.problem],
            api_visibility="private",
        )
        begun.failure(None, outputs=[c.start], js=READY)
        begun.success(None, js="() => text2segFocus('#folder-start, #folder-status')")
        draft, private = [c.queries, c.text, c.converted, c.files], {"api_visibility": "private"}
        self.page.load(None, draft, draft, js=RESTORE, **private)
        gr.on([c.queries.change, c.text.change, c.files.input], None, draft, js=KEEP, **private)
        begun.success(None, draft, js=KEEP, **private)

    def _wire_form(self) -> None:
        c = self._c
        last: dict[str, Any] = {"trigger_mode": "always_last", **QUIET}  # only the last of several presses counts
        c.source.input(self._switch, [c.source], [c.files, c.room, c.folder], **last)
        changes = [c.files.input, c.source.input, c.folder.input, c.queries.change]
        gr.on(changes, None, outputs=[c.problem], js="() => ''", api_visibility="private")  # it may be mended
        written = [c.text, c.problem, c.converted]
        gr.on([c.write.click, c.queries.submit], self._write, [c.queries], written, **last)
        c.queries.blur(self._follow, [c.queries, c.text, c.converted], [c.text, c.converted], **last)
        c.few.click(lambda: as_yaml(FEW_THINGS), outputs=[c.text], **QUIET)
        c.limits.click(lambda: WITH_LIMITS, outputs=[c.text], **QUIET)
        c.all.click(self._all_things, outputs=[c.text, c.problem], **QUIET)
        c.text.change(self._check, [c.text, c.converted], [c.checked, c.problem], **QUIET)

    def _forget(self, request: gr.Request) -> None:
        self._jobs.forget(str(request.session_hash))

    def _folders(self) -> Any:
        """Update the list of folders. Keep the choice, which the visitor may make before this answer."""
        return gr.Dropdown(choices=choices_of(self._root))

    def _switch(self, source: str) -> Updates:
        c, uploads = self._c, source == UPLOAD
        return {
            c.files: gr.File(visible=uploads),
            c.room: gr.HTML(visible=uploads),
            c.folder: gr.Dropdown(visible=not uploads),
        }

    def _select(self, kept: Any, number: str, request: gr.Request) -> Kept:
        return {**self._jobs.known(kept, str(request.session_hash)), "job": "" if number == NEW else number}

    def _parts(self, kept: Any) -> Updates:
        """Return the updates of the parts that are visible in the state of the open job."""
        c, job = self._c, self._seen(kept)
        choices = [(f"{each.name} · {layout.BADGES[each.state]}", each.id) for each in self._jobs.jobs_of(kept)]
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
            c.finish: gr.Button(visible=bool(job and state in ("stopped", "failed") and job.done > len(job.failures))),
            c.delete: gr.Button(visible=state in ("stopped", "failed", "done")),
        }

    def _anew(self, kept: Any, request: gr.Request) -> Updates:
        """Return all updates after another job was opened. This also closes an open question.

        Updates of the same job keep a question open, because one may come just after the visitor was asked. A new
        browser gets a token before it can start a job, so that it always finds its jobs again.
        """
        c, known = self._c, self._jobs.known(kept, str(request.session_hash))
        updates = {
            **self._parts(known),
            **self._progress(self._seen(known)),
            c.sure: gr.Row(visible=False),
            c.finish_sure: gr.Row(visible=False),
            c.start: gr.Button(interactive=True),
            c.problem: alert(GONE) if known["job"] and self._seen(known) is None else "",
        }
        return {**updates, c.begin: gr.Button(visible="hidden")} if known == kept else {**updates, c.kept: known}

    def _tick(self, kept: Any) -> Updates:
        """Update the progress. The page calls this every second while a job is active."""
        return self._progress(self._seen(kept))

    def _progress(self, job: Job | None) -> Updates:
        c = self._c
        if job is None:
            return {c.status: "", c.timer: gr.Timer(active=False), c.phase: ""}
        return {
            c.status: layout.status_html(job, self._jobs.jobs.ahead(job.id)),
            c.timer: gr.Timer(active=job.state in ("filling", "waiting", "running")),
            c.phase: f"{job.id} {job.state}",
        }

    def _seen(self, kept: Any) -> Job | None:
        """Return a copy of the job, because it changes while the page is built."""
        job = self._jobs.job(kept)
        return replace(job) if job else None

    def _remove(self, kept: Any, request: gr.Request) -> Updates:
        """Delete the open job, and open the form of a new one."""
        if job := self._jobs.job(kept):
            self._jobs.jobs.remove(job)
        known: Kept = {**self._jobs.known(kept, str(request.session_hash)), "job": ""}
        return self._anew(known, request) | {self._c.kept: known}

    def _acting(self, act: Callable[[Job], None]) -> Callable[[Any, gr.Request], Updates]:
        def acted(kept: Any, request: gr.Request) -> Updates:
            if job := self._jobs.job(kept):
                act(job)
            return self._anew(kept, request)

        return acted

    def _converted(self, queries: str) -> Updates:
        """Return the updates for an ontology made of things that were typed. Raises `Text2SegError`."""
        made = as_yaml(queries)
        return {self._c.text: made, self._c.converted: [queries, made]}

    def _write(self, queries: str) -> Updates:
        try:
            return {**self._converted(queries), self._c.problem: ""}
        except Text2SegError as error:
            return {self._c.problem: alert(message_of(error))}

    def _follow(self, queries: str, text: str | None, converted: list[str]) -> Updates:
        """Convert things that were typed, unless the ontology is the visitor's own. A mistake in them is told later,
        when the visitor converts them or starts."""
        if _is_new(queries, converted) and not _is_own(text, converted):
            with suppress(Text2SegError):
                return self._converted(queries)
        return {self._c.text: gr.skip()}

    def _all_things(self) -> Updates:
        vocabulary = self._jobs.model_pool.models.closed_vocabulary
        if vocabulary is None:  # somebody switched the models, which all visitors share
            return {self._c.problem: alert("The models of this app know any words now; type the things to find.")}
        return {self._c.text: known_things(vocabulary), self._c.problem: ""}

    def _check(self, text: str, converted: list[str]) -> Updates:
        """Check an ontology. One that a person typed may mend the problem; one just made of the things does not."""
        checked = layout.checked_html(self._jobs.check(text)) if text.strip() else layout.NOTHING_YET
        updates: Updates = {self._c.checked: checked}
        return updates if text.strip() == converted[1].strip() else {**updates, self._c.problem: ""}

    def _start(
        self,
        kept: Any,
        source: str,
        files: Any,
        folder: str | None,
        queries: str,
        text: str,
        converted: list[str],
        request: gr.Request,
    ) -> Updates:
        """Start a job. If the ontology is empty, or was made of things that have changed since, make it of the things
        that are typed now. `converted` are things and the ontology made of them."""
        known: Kept = self._jobs.known(kept, str(request.session_hash))
        c, typed = self._c, text
        try:
            if _is_new(queries, converted) or (queries.strip() and not text.strip()):
                if _is_own(text, converted):
                    raise OntologyError(
                        "the ontology does not come from the things above it; press “Convert to ontology” to use these "
                        "things, or empty their field to use the ontology"
                    )
                converted = self._converted(queries)[c.converted]
                text = converted[1]
            if source == SERVER:
                job = self._jobs.choose(known, folder or "", text)
            else:
                job = self._jobs.upload(known, _uploads(files), text)
        except Text2SegError as error:
            # The files are sent back, because Gradio takes the settings from a field that has no answer. A text that
            # the visitor typed is not: its field would leave out a line end, and that change clears the message.
            return {
                c.start: gr.Button(interactive=True),
                c.problem: alert(message_of(error)),
                c.files: files,
                c.text: gr.skip() if text == typed else text,
                c.converted: converted,
            }
        known = {**known, "job": job.id}
        return {**self._anew(known, request), c.kept: known, c.files: [], c.text: text, c.converted: converted}


def _is_new(queries: str, converted: list[str]) -> bool:
    """Return whether there are things that the ontology was not made of."""
    return bool(queries.strip()) and queries != converted[0]


def _is_own(text: str | None, converted: list[str]) -> bool:
    """Return whether an ontology is the visitor's own, not one made of things."""
    return (text or "").strip() not in ("", converted[1].strip())


def _uploads(files: Any) -> list[Upload]:
    """Return uploaded files and examples, given as the value of a `files_field`. Raises `ImageError` if a file is not
    an upload."""
    found = []
    for file in files if isinstance(files, list) else ():
        match file:
            case {"path": str(path)}:
                upload = check_upload(Path(path))
                found.append(Upload(upload, str(file.get("name") or upload.name)))
            case {"example": int(number)} if 0 <= number < len(EXAMPLES):
                found.append(Upload(EXAMPLES[number], EXAMPLES[number].name))
    return found
