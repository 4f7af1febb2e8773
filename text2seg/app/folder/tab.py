"""Events of the tab "Label a folder"."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.context import Context

from text2seg.app.checks import check_upload
from text2seg.app.folder import editing, layout
from text2seg.app.folder.inputs import WITH_LIMITS, as_yaml, known_things
from text2seg.app.folder.jobs import Job, Kept, VisitorJobs
from text2seg.app.folder.layout import FEW_THINGS, SERVER, UPLOAD, choices_of, lay_out
from text2seg.app.folder.review import ContactSheet, Shown, dataset_zip, failures_text, marks_file, review_page
from text2seg.app.messages import alert, message_of
from text2seg.app.segment import Editor
from text2seg.app.segment.desk import Desk
from text2seg.app.segment.session import EditSession
from text2seg.errors import OntologyError, Text2SegError

Updates = dict[Any, Any]

NEW = "New"
GONE = "Your last job is gone: it was deleted, or the app was started again, and keeps no jobs then."
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
FETCH = """(file) => {
  const link = "#folder-file a, a#folder-file, #folder-file";
  if (file) setTimeout(() => document.querySelector(link).click(), 100);
}"""
PRESS = "() => text2segPress('#folder-begin')"
READY = "() => ({__type__: 'update', interactive: true})"
WAIT = "() => Array(2).fill({__type__: 'update', interactive: false})"
STOPPING = """() => {
  const [badge] = document.querySelectorAll("#folder-status .badge");
  if (badge) badge.textContent = "stopping";
}"""
ASKED = """() => {
  text2segFocus('#%s');
  setTimeout(() => document.querySelector('#%s').scrollIntoView({ block: 'nearest' }), 100);
}"""
SHOW_SHEET = """() => {
  document.querySelector('#folder-sheet').scrollIntoView();
  text2segFocus('#folder-sheet .t2s-tile');
}"""


def build(jobs: VisitorJobs, tabs: gr.Tabs, editor: Editor, back: SimpleNamespace) -> None:
    """Build the tab. Call it within its `gr.Tab`.

    Args:
        jobs: the jobs of all visitors.
        tabs: the tabs of the page.
        editor: the editor of the Segment tab, for segments of a job.
        back: the bar that leads back from there, made by `lay_out_return`.
    """
    Tab(jobs)._wire_editor(tabs, editor, back)


class Tab:
    """Components of the tab and their events. All visitors share one instance."""

    def __init__(self, jobs: VisitorJobs) -> None:
        self._jobs, model_pool = jobs, jobs.model_pool
        self._decided: dict[str, int] = {}  # number of the last decision of each page, by its session
        self._answers = count()  # the page sees only values that differ from the one before
        self._root = model_pool.settings.root
        self._c = lay_out(model_pool.settings, knows_all=model_pool.models.closed_vocabulary is not None)
        self._wire_job()
        self._wire_form()
        self._wire_review()

    def _wire_job(self) -> None:
        c, jobs = self._c, self._jobs.jobs
        page = Context.root_block
        if page is None:
            raise RuntimeError("the tab must be built within a page")
        shown = [c.picker, c.form, c.work, c.review, c.cancel, c.resume, c.finish, c.delete]
        anew = [c.kept, *shown, c.status, c.sure, c.finish_sure, c.timer, c.phase, c.start, c.begin, c.problem]
        page.load(self._folders, outputs=[c.folder], **QUIET)
        page.unload(self._forget)
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
        begun.success(None, js="() => text2segFocus('#folder-status')")

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

    def _wire_review(self) -> None:
        c = self._c
        sheet = [
            c.sheet,
            c.tally,
            c.status,
            c.number,
            c.last,
            c.pages,
            c.place,
            c.back,
            c.next,
            c.get_failures,
            c.wrong,
        ]
        c.phase.change(self._page, [c.kept, c.shown], sheet, trigger_mode="multiple", **QUIET)
        c.shown.input(self._page, [c.kept, c.shown], sheet, trigger_mode="always_last", **QUIET)
        for button, step in ((c.back, -1), (c.next, 1)):
            button.click(None, outputs=[c.back, c.next], js=WAIT)
            turned = button.click(self._turning(step), [c.kept, c.shown, c.number, c.last], sheet, **QUIET)
            turned.then(None, js=SHOW_SHEET)
            turned.failure(None, outputs=[button], js=READY)
        # Decisions count, and are answered, in their order.
        one: dict[str, Any] = {**QUIET, "concurrency_limit": 1, "concurrency_id": "review"}
        c.sheet.select(self._decide, [c.kept], [c.tally, c.status, c.large], trigger_mode="multiple", **one)
        c.sheet.enlarge(self._enlarge, [c.kept], [c.large], trigger_mode="always_last", **QUIET)
        c.sheet.redraw(self._page, [c.kept, c.shown, c.number], sheet, **QUIET)
        self._sheet = sheet
        c.open_marks.upload(self._open_marks, [c.open_marks, c.kept, c.shown, c.number], sheet, **one)
        for button, make in (
            (c.get_all, lambda job, sheet: dataset_zip(job, sheet, images=True)),
            (c.get_dataset, lambda job, sheet: dataset_zip(job, sheet, images=False)),
            (c.get_page, review_page),
            (c.get_marks, marks_file),
            (c.get_failures, lambda job, _: failures_text(job)),
        ):
            written = button.click(self._making(make), [c.kept], [c.file, c.wrong], api_visibility="private")
            written.success(None, [c.file], js=FETCH, api_visibility="private")

    def _wire_editor(self, tabs: gr.Tabs, editor: Editor, back: SimpleNamespace) -> None:
        """Wire the way of a segment to the editor and back."""
        c = self._c
        place = [editor.desk, editor.canvas, tabs, back.bar, back.said, back.wrong]

        def bar(session: EditSession) -> Updates:
            """Return the updates of the bar, which is visible while an image of a job is edited."""
            opened = session.editing
            said = layout.return_html(opened.name, opened.job_name) if opened else ""
            return {back.bar: gr.Row(visible=opened is not None), back.said: said, back.wrong: ""}

        def edit(kept: Any, desk: Desk, event: gr.EventData) -> Updates:
            data = event._data if isinstance(event._data, dict) else {}
            at, annotation = int(data.get("place", -1)), int(data.get("segment", 0))
            try:
                job = self._done(kept)
                begun = editing.begin(self._jobs.model_pool, job, self._jobs.sheet(job), at, annotation, desk.session)
            except Text2SegError as error:
                return {c.wrong: alert(message_of(error))}
            session, number = begun
            if session.editing:  # a search may have ended meanwhile
                session = replace(session, editing=replace(session.editing, before=desk.session))
            return {**editor.put(desk, session, number), tabs: gr.Tabs(selected="segment"), c.wrong: "", **bar(session)}

        def leave(desk: Desk, opened: editing.Editing) -> Updates:
            """Return to the review, and give the editor what it held before."""
            return {**editor.put(desk, opened.before, 0), tabs: gr.Tabs(selected="folder"), **bar(opened.before)}

        def take(kept: Any, desk: Desk, shown: Shown, number: int, request: gr.Request) -> Updates:
            session, opened = desk.session, desk.session.editing
            if opened is None:
                return bar(session)
            job = self._jobs.jobs.find(opened.owner, opened.job)  # the browser may not have sent its token yet
            if job is None or job.state != "done":
                return {back.wrong: alert("This job was deleted. Go back without saving.")}
            try:
                editing.finish(opened, session, job, self._jobs.sheet(job))
            except Text2SegError as error:
                return {back.wrong: alert(message_of(error))}
            return leave(desk, opened) | self._page(kept, shown, request, number)

        def drop(desk: Desk) -> Updates:
            opened = desk.session.editing
            if opened is None:
                return bar(desk.session)
            is_gone = self._jobs.jobs.find(opened.owner, opened.job) is None  # deleted in another window
            return leave(desk, opened) | ({c.phase: ""} if is_gone else {})

        shown: dict[str, Any] = {**QUIET, "show_progress": "minimal"}
        c.sheet.edit(edit, [c.kept, editor.desk], [*place, c.wrong], **shown, show_progress_on=[c.tally])
        inputs = [c.kept, editor.desk, c.shown, c.number]
        for left in (
            back.take.click(take, inputs, [*place, *self._sheet], **QUIET),
            back.drop.click(drop, [editor.desk], [*place, c.phase], **QUIET),
        ):
            left.success(None, js="() => text2segGoOn()", api_visibility="private")
        editor.canvas.editing(lambda desk: bar(desk.session), [editor.desk], [back.bar, back.said, back.wrong], **QUIET)

    def _forget(self, request: gr.Request) -> None:
        self._jobs.forget(str(request.session_hash))
        self._decided.pop(str(request.session_hash), None)

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
        updates: Updates = {self._c.checked: layout.checked_html(self._jobs.check(text))}
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
        c = self._c
        try:
            if _is_new(queries, converted):
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
            # The files are sent back, because Gradio takes the settings from a field that has no answer.
            return {
                c.start: gr.Button(interactive=True),
                c.problem: alert(message_of(error)),
                c.files: files,
                c.text: text,
                c.converted: converted,
            }
        known = {**known, "job": job.id}
        return {**self._anew(known, request), c.kept: known, c.files: [], c.text: text, c.converted: converted}

    def _page(self, kept: Any, shown: Shown, request: gr.Request, number: int = 0) -> Updates:
        """Return the updates for a page of the contact sheet, if the job is done."""
        c, job = self._c, self._jobs.job(kept)
        decided = self._decided.get(str(request.session_hash), 0)
        if job is None or job.state != "done":
            return {c.sheet: "", c.tally: "", c.number: 0}
        sheet = self._jobs.sheet(job)
        page = sheet.page(job.marks, shown, number)
        return {
            c.sheet: layout.sheet_html(page, sheet.categories, job, decided),
            c.tally: layout.tally_html(job),
            c.status: layout.status_html(job, 0),
            c.number: page.number,
            c.last: page.last,
            c.wrong: "",
            c.pages: gr.Row(visible=page.pages > 1),
            c.place: layout.place_html(page),
            c.back: gr.Button(interactive=page.number > 0),
            c.next: gr.Button(interactive=page.number + 1 < page.pages),
            c.get_failures: gr.Button(visible=bool(job.failures)),
        }

    def _turning(self, step: int) -> Callable[..., Updates]:
        """Return the handler that shows the next page, or the one before."""

        def turned(kept: Any, shown: Shown, number: int, last: int, request: gr.Request) -> Updates:
            job = self._jobs.job(kept)
            if step > 0 and job is not None and job.state == "done":
                after = self._jobs.sheet(job).number_after(job.marks, shown, last)
                return self._page(kept, shown, request, after)
            return self._page(kept, shown, request, number + step)

        return turned

    def _done(self, kept: Any) -> Job:
        """Return the open job, which is done. Raises `Text2SegError` if it is not there any more."""
        job = self._jobs.job(kept)
        if job is None or job.state != "done":
            raise Text2SegError("this job was deleted; reload the page")
        return job

    def _enlarge(self, kept: Any, event: gr.EventData) -> Any:
        """Return a large image of the review for the page."""
        place = event._data.get("place") if isinstance(event._data, dict) else None
        return self._pictures(self._done(kept), place, is_large=True, is_small=False)

    def _pictures(self, job: Job, place: Any, *, is_large: bool, is_small: bool = True) -> Any:
        """Return an image of the review as the page draws it, and its large copy; None if it cannot be shown."""
        answer, sheet = next(self._answers), self._jobs.sheet(job)  # the page shows none that is older than another
        drawn: dict[str, Any] = {}
        for name, wished in (("small", is_small), ("large", is_large)):
            picture = sheet.picture(job.marks, place, is_large=name == "large") if wished and _is_int(place) else None
            drawn[name] = {"url": picture.url} if picture and picture.url else None
        return {"place": place, "answer": answer, **drawn} if any(drawn.values()) else None

    def _decide(self, kept: Any, event: gr.EventData, request: gr.Request) -> Updates:
        c = self._c
        try:
            job = self._done(kept)
        except Text2SegError as error:
            return {c.tally: alert(message_of(error))}
        change = dict(event._data) if isinstance(event._data, dict) else {}
        number, is_large = change.pop("number", 0), bool(change.pop("isLarge", False))
        self._jobs.sheet(job).decide(job.marks, change)
        self._decided[str(request.session_hash)] = number if _is_int(number) else 0
        updates: Updates = {c.tally: layout.tally_html(job), c.status: layout.status_html(job, 0)}
        if "segment" in change:  # a mask is drawn as what it is now
            updates[c.large] = self._pictures(job, change.get("place"), is_large=is_large)
        return updates

    def _open_marks(self, file: str, kept: Any, shown: Shown, number: int, request: gr.Request) -> Updates:
        """Take over the marks of an uploaded file."""
        try:
            job = self._done(kept)
            counts = self._jobs.sheet(job).open_marks(job.marks, check_upload(Path(file)))
        except Text2SegError as error:
            return {self._c.wrong: alert(message_of(error))}
        page = self._page(kept, shown, request, number)
        return {**page, self._c.wrong: layout.opened_html(Path(file).name, counts)}

    def _making(self, make: Callable[[Job, ContactSheet], Path]) -> Callable[[Any], Any]:
        def made(kept: Any) -> tuple[Any, str]:
            try:
                job = self._done(kept)
                return make(job, self._jobs.sheet(job)), ""
            except Text2SegError as error:
                return None, alert(message_of(error))

        return made


def _is_new(queries: str, converted: list[str]) -> bool:
    """Return whether there are things that the ontology was not made of."""
    return bool(queries.strip()) and queries != converted[0]


def _is_own(text: str | None, converted: list[str]) -> bool:
    """Return whether an ontology is the visitor's own, not one made of things."""
    return (text or "").strip() not in ("", converted[1].strip())


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _uploads(files: Any) -> list[Path]:
    """Return the paths of uploaded files, given as the value of a `files_field`. Raises `ImageError` if one is not an
    upload."""
    given = files if isinstance(files, list) else []
    return [check_upload(Path(str(file["path"]))) for file in given if isinstance(file, dict) and "path" in file]
