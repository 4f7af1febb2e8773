"""Events of the review of a finished job: its pages, marks and downloads, and the way of a segment to the editor and
back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from text2seg.app.checks import check_upload
from text2seg.app.folder import editing, layout
from text2seg.app.folder.jobs import Job
from text2seg.app.folder.layout import QUIET, Updates
from text2seg.app.folder.review import (
    ContactSheet,
    SheetPage,
    Shown,
    dataset_zip,
    failures_text,
    marks_file,
    review_page,
)
from text2seg.app.folder.visitors import VisitorJobs
from text2seg.app.messages import alert, message_of
from text2seg.app.segment import Editor
from text2seg.app.segment.desk import Desk
from text2seg.app.segment.session import EditSession
from text2seg.errors import Text2SegError

FETCH = """(file) => {
  const link = "#folder-file a, a#folder-file, #folder-file";
  if (file) setTimeout(() => document.querySelector(link).click(), 100);
}"""
WAIT = "() => Array(2).fill({__type__: 'update', interactive: false})"
TURNED = "() => text2segTurned()"
NOT_TURNED = "() => { text2segNotTurned(); return {__type__: 'update', interactive: true}; }"


class Review:
    """Events of the review. All visitors share one instance."""

    def __init__(self, jobs: VisitorJobs, components: SimpleNamespace) -> None:
        self._jobs, self._c = jobs, components
        self._decided: dict[str, int] = {}  # number of the last decision of each page, by its session
        self._answers = count()  # the page sees only values that differ from the one before
        self._wire_review()

    def forget(self, request: gr.Request) -> None:
        """Forget a page that was left."""
        self._decided.pop(str(request.session_hash), None)

    def _wire_review(self) -> None:
        c = self._c
        sheet = [
            c.sheet,
            c.begin_at,
            c.end_at,
            c.pages,
            c.place,
            c.back,
            c.next,
            c.get_failures,
            c.wrong,
        ]
        pages = [
            c.phase.change(self._page, [c.kept, c.shown], sheet, trigger_mode="multiple", **QUIET),
            c.shown.input(self._page, [c.kept, c.shown], sheet, trigger_mode="always_last", **QUIET),
            c.sheet.redraw(self._page, [c.kept, c.shown, c.begin_at], sheet, **QUIET),
        ]
        for button, turn, place in ((c.back, self._page_before, c.begin_at), (c.next, self._page, c.end_at)):
            button.click(None, outputs=[c.back, c.next], js=WAIT)
            turned = button.click(turn, [c.kept, c.shown, place], sheet, **QUIET)
            turned.success(None, js=TURNED, api_visibility="private")
            turned.failure(None, outputs=[button], js=NOT_TURNED, api_visibility="private")
            pages.append(turned)
        # Decisions count, and are answered, in their order. Only events of this queue write the counts, because a page
        # that was made before a decision may arrive after its answer.
        one: dict[str, Any] = {**QUIET, "concurrency_limit": 1, "concurrency_id": "review", "trigger_mode": "multiple"}
        c.sheet.select(self._decide, [c.kept], [c.tally, c.status, c.large], **one)
        c.sheet.enlarge(self._enlarge, [c.kept], [c.large], trigger_mode="always_last", **QUIET)
        pages.append(c.open_marks.upload(self._open_marks, [c.open_marks, c.kept, c.shown, c.begin_at], sheet, **one))
        self._count = {"fn": self._counts, "inputs": [c.kept], "outputs": [c.tally, c.status], **one}
        for page in pages:
            page.success(**self._count)
        self._sheet = sheet
        for button, make in (
            (c.get_all, lambda job, sheet: dataset_zip(job, sheet, images=True)),
            (c.get_dataset, lambda job, sheet: dataset_zip(job, sheet, images=False)),
            (c.get_page, review_page),
            (c.get_marks, marks_file),
            (c.get_failures, lambda job, _: failures_text(job)),
        ):
            written = button.click(self._making(make), [c.kept], [c.file, c.wrong], api_visibility="private")
            written.success(None, [c.file], js=FETCH, api_visibility="private")

    def wire_editor(self, tabs: gr.Tabs, editor: Editor, back: SimpleNamespace) -> None:
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

        def take(kept: Any, desk: Desk, shown: Shown, begin: int, request: gr.Request) -> Updates:
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
            return leave(desk, opened) | self._page(kept, shown, request, begin)

        def drop(kept: Any, desk: Desk, shown: Shown, begin: int, request: gr.Request) -> Updates:
            opened = desk.session.editing
            if opened is None:
                return bar(desk.session)
            if self._jobs.jobs.find(opened.owner, opened.job) is None:  # deleted in another window
                return leave(desk, opened) | {c.phase: ""}
            return leave(desk, opened) | self._page(kept, shown, request, begin)  # another window may have changed it

        shown: dict[str, Any] = {**QUIET, "show_progress": "minimal"}
        c.sheet.edit(edit, [c.kept, editor.desk], [*place, c.wrong], **shown, show_progress_on=[c.tally])
        inputs = [c.kept, editor.desk, c.shown, c.begin_at]
        for left in (
            back.take.click(take, inputs, [*place, *self._sheet], **QUIET),
            back.drop.click(drop, inputs, [*place, *self._sheet, c.phase], **QUIET),
        ):
            left.success(None, js="() => text2segGoOn()", api_visibility="private")
            left.success(**self._count)
        editor.canvas.editing(lambda desk: bar(desk.session), [editor.desk], [back.bar, back.said, back.wrong], **QUIET)

    def _page(self, kept: Any, shown: Shown, request: gr.Request, begin: int = 0) -> Updates:
        """Return the updates for a page of the contact sheet, if the job is done."""
        return self._shown(kept, shown, request, lambda job, sheet: sheet.page(job.marks, shown, begin))

    def _page_before(self, kept: Any, shown: Shown, begin: int, request: gr.Request) -> Updates:
        """Return the updates for the page before a place."""
        return self._shown(kept, shown, request, lambda job, sheet: sheet.page_before(job.marks, shown, begin))

    def _shown(
        self, kept: Any, shown: Shown, request: gr.Request, find: Callable[[Job, ContactSheet], SheetPage]
    ) -> Updates:
        c, job = self._c, self._jobs.job(kept)
        decided = self._decided.get(str(request.session_hash), 0)
        if job is None or job.state != "done":
            return {c.sheet: "", c.begin_at: 0, c.end_at: 0}
        sheet = self._jobs.sheet(job)
        page = find(job, sheet)
        return {
            c.sheet: layout.sheet_html(page, sheet.colours, job, shown, decided),
            c.begin_at: page.begin,
            c.end_at: page.end,
            c.wrong: "",
            c.pages: gr.Row(visible=page.pages > 1),
            c.place: layout.place_html(page),
            c.back: gr.Button(interactive=page.number > 0),
            c.next: gr.Button(interactive=page.number + 1 < page.pages),
            c.get_failures: gr.Button(visible=bool(job.failures)),
        }

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

    def _counts(self, kept: Any) -> Updates:
        """Return the updates for what is counted in the open job."""
        c, job = self._c, self._jobs.job(kept)
        if job is None or job.state != "done":
            return {c.tally: ""}
        return {c.tally: layout.tally_html(job), c.status: layout.status_html(job, 0)}

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
        updates = self._counts(kept)
        if "segment" in change:  # a mask is drawn as what it is now
            updates[c.large] = self._pictures(job, change.get("place"), is_large=is_large)
        return updates

    def _open_marks(self, file: str, kept: Any, shown: Shown, begin: int, request: gr.Request) -> Updates:
        """Take over the marks of an uploaded file."""
        try:
            job = self._done(kept)
            counts = self._jobs.sheet(job).open_marks(job.marks, check_upload(Path(file)))
        except Text2SegError as error:
            return {self._c.wrong: alert(message_of(error))}
        page = self._page(kept, shown, request, begin)
        return {**page, self._c.wrong: layout.opened_html(Path(file).name, counts)}

    def _making(self, make: Callable[[Job, ContactSheet], Path]) -> Callable[[Any], Any]:
        def made(kept: Any) -> tuple[Any, str]:
            try:
                job = self._done(kept)
                return make(job, self._jobs.sheet(job)), ""
            except Text2SegError as error:
                return None, alert(message_of(error))

        return made


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
