"""Layout of the tab "Label a folder": its components, and the HTML of its changing parts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from text2seg.app.fields import files_field
from text2seg.app.folder.inputs import Checked, folders_in, suffixes
from text2seg.app.folder.jobs import Job, State
from text2seg.app.folder.review import SheetPage, Shown
from text2seg.app.folder.visitors import NOBODY
from text2seg.app.messages import photographs, warning
from text2seg.app.segment.session import examples
from text2seg.app.settings import AppSettings
from text2seg.io.names import counted
from text2seg.render.saving import render_template

Updates = dict[Any, Any]
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
READY = "() => ({__type__: 'update', interactive: true})"
TICK = 1.0  # seconds between two updates of a job's status


UPLOAD, SERVER = "Upload", "A folder on the server"


SHOWN = [("All", "all"), ("Undecided", "undecided"), ("Accepted", "accepted"), ("Rejected", "rejected")]


FEW_THINGS = "sheep, koala, fire engine"


HELP = (
    "The most uncertain images come first. Click one to see it large, to correct or edit its segments.",
    "Rejected images and segments leave the dataset; undecided ones stay.",
)
MARKS = "Marks are what you accept, reject and correct. A review page opens and makes them too."
BEGIN = "Type things and convert them to an ontology, start from an example, or paste your own."
NOTHING_YET = f'<p class="t2s-hint">{BEGIN}</p>'
KEYS = (
    "Keys: <kbd>j</kbd>&nbsp;next, <kbd>k</kbd>&nbsp;previous, <kbd>a</kbd>&nbsp;accept and next, "
    "<kbd>r</kbd>&nbsp;reject and next, <kbd>u</kbd>&nbsp;undecided again, <kbd>Enter</kbd>&nbsp;large, "
    "<kbd>Esc</kbd>&nbsp;back."
)


def lay_out(settings: AppSettings, *, knows_all: bool) -> SimpleNamespace:
    """Build the components of the tab. `knows_all`: the models have a closed vocabulary."""
    c = SimpleNamespace()
    # The encryption key is in the page. The token itself cannot be guessed.
    # Not a State: its value must be of the same answer as that of the ontology.
    c.converted = gr.JSON(["", ""], visible=False)
    c.kept = gr.BrowserState(NOBODY, storage_key="text2seg-folder", secret="text2seg")
    c.begin_at = gr.State(0)  # place of the first image on the page of the review
    c.end_at = gr.State(0)  # place after the last one
    c.phase = gr.Textbox(visible="hidden")  # not a State: events outside the queue do not report its changes
    c.timer = gr.Timer(TICK, active=False)
    c.picker = gr.Radio([], label="Jobs", visible=False, elem_id="folder-jobs")
    with gr.Column(elem_id="folder-form") as c.form:
        with gr.Row():
            with gr.Column(min_width=320):
                _lay_out_images(c, settings)
            with gr.Column(min_width=320):
                _lay_out_ontology(c, knows_all=knows_all)
        c.problem = _html("folder-problem")
        c.start = gr.Button("Label images", variant="primary", elem_id="folder-start")
        # page.js presses this one. It exists once the visitor has a token.
        c.begin = gr.Button("Label images", visible=False, elem_id="folder-begin")
    with gr.Column(visible=False, elem_id="folder-job") as c.work:
        _lay_out_job(c)
    with gr.Column(visible=False, elem_id="folder-review") as c.review:
        _lay_out_review(c)
    _lay_out_deletion(c)
    return c


def lay_out_return() -> SimpleNamespace:
    """Build the bar above the editor of the Segment tab that leads back to the review."""
    c = SimpleNamespace()
    with gr.Row(visible=False, elem_id="folder-return", elem_classes="t2s-folder-actions") as c.bar:
        c.said = _html("folder-return-said")
        c.take = gr.Button("Save and go back", size="md", variant="primary", elem_id="folder-take")
        c.drop = gr.Button("Go back without saving", size="md", elem_id="folder-drop")
    c.wrong = _html("folder-return-problem")
    return c


def choices_of(root: Path | None) -> list[tuple[str, str]]:
    """Return the folders below the root as labels and values."""
    return [("the whole folder" if name == "." else name, name) for name in (folders_in(root) if root else [])]


def _lay_out_images(c: SimpleNamespace, settings: AppSettings) -> None:
    gr.Markdown("### Images")
    c.source = gr.Radio([UPLOAD, SERVER], value=UPLOAD, label="Source", visible=settings.root is not None)
    c.files = files_field(
        [],
        elem_id="folder-files",
        label="A folder, images, or a zip file of images",
        several=True,
        accept="image/*,.zip",
        invitation="Drop images, a folder or a zip file here, or choose files",
        kinds="JPEG, PNG, WebP, TIFF …, ZIP",
        uploadMb=settings.folder_mb,
        suffixes=sorted(suffixes()),
        examples=[{"title": each.image.file_name, "thumbnail": each.thumbnail} for each in examples()],
    )
    folders = choices_of(settings.root)
    first = folders[0][1] if folders else None
    c.folder = gr.Dropdown(folders, value=first, label="Folder", visible=False, elem_id="folder-folder")
    limits = f"At most {settings.folder_images:,} images and {settings.folder_mb:,} MB. Only you can see them."
    kept = "They are deleted with the job, 12 hours after you last opened it, or when the app ends."
    c.room = _html("folder-limits", _hint(limits) + _hint(kept))


def _lay_out_ontology(c: SimpleNamespace, *, knows_all: bool) -> None:
    gr.Markdown("### Categories")
    with gr.Row(equal_height=False, elem_classes="t2s-folder-list"):
        c.queries = gr.Textbox(
            label="Things to find, separated by commas",
            placeholder=FEW_THINGS,
            scale=5,
            min_width=160,
            elem_id="folder-queries",
        )
        c.write = gr.Button("Convert to ontology", scale=0, min_width=200, size="md", elem_id="folder-write")
    c.text = gr.Code(label="Ontology (YAML)", language="yaml", lines=8, max_lines=16, elem_id="folder-ontology")
    c.checked = _html("folder-checked", NOTHING_YET)
    with gr.Row(elem_classes="t2s-folder-examples"):
        c.few = gr.Button("Example: a few things", size="md", min_width=120)
        c.limits = gr.Button("Example: all options", size="md", min_width=120)
        c.all = gr.Button("All the model knows", size="md", min_width=120, visible=knows_all)


def _html(name: str, value: str = "", **options: Any) -> gr.HTML:
    """Return an HTML component without the margins of Gradio."""
    return gr.HTML(value, elem_id=name, elem_classes="t2s-folder-html", apply_default_css=False, **options)


def _hint(html: str) -> str:
    return f'<p class="t2s-hint">{html}</p>'


def _lay_out_job(c: SimpleNamespace) -> None:
    c.status = _html("folder-status")
    with gr.Row(elem_classes="t2s-folder-actions"):
        c.cancel = gr.Button("Stop", size="md", variant="stop", elem_id="folder-cancel")
        c.resume = gr.Button("Resume", size="md", variant="primary", elem_id="folder-resume")
        c.finish = gr.Button("Finish with what is done", size="md", visible=False, elem_id="folder-finish")
    with gr.Row(visible=False, elem_classes="t2s-folder-actions", elem_id="folder-finish-sure") as c.finish_sure:
        gr.Markdown("The images that are not done leave the job for good.")
        c.finish_yes = gr.Button("Finish", size="md", variant="stop", elem_id="folder-finish-yes")
        c.finish_no = gr.Button("Not now", size="md", elem_id="folder-finish-no")


def _lay_out_deletion(c: SimpleNamespace) -> None:
    """Build the end of the tab, away from the downloads."""
    with gr.Row(elem_classes="t2s-folder-actions t2s-folder-end"):
        c.delete = gr.Button("Delete job", size="md", visible=False, elem_id="folder-delete")
    # It takes the place of the button, so that it is visible where the button was.
    with gr.Row(visible=False, elem_id="folder-sure", elem_classes="t2s-folder-actions t2s-folder-end") as c.sure:
        c.delete_what = _html("folder-delete-what", delete_html(""))
        c.yes = gr.Button("Yes, delete", size="md", variant="stop", elem_id="folder-yes")
        c.no = gr.Button("Keep", size="md", elem_id="folder-no")


def _lay_out_review(c: SimpleNamespace) -> None:
    gr.Markdown("### Download")
    c.unsaved = [_lay_out_unsaved("folder-unsaved-download")]
    with gr.Row(elem_classes="t2s-folder-actions"):
        c.get_all = gr.Button("COCO dataset with images", size="md", variant="primary", elem_id="folder-get-all")
        c.get_dataset = gr.Button("COCO dataset", size="md", elem_id="folder-get-dataset")
        c.get_page = gr.Button("Review page", size="md", elem_id="folder-get-page")
        c.get_marks = gr.Button("Download marks", size="md", elem_id="folder-get-marks")
        c.open_marks = gr.UploadButton("Open marks", size="md", file_types=[".json"], elem_id="folder-open-marks")
        c.get_failures = gr.Button("Failures", size="md", elem_id="folder-get-failures")
    c.file = gr.DownloadButton("Download", visible="hidden", elem_id="folder-file")
    _html("folder-marks", _hint(MARKS))
    gr.Markdown("### Review")
    _html("folder-help", "".join(map(_hint, HELP)) + f'<p class="t2s-hint t2s-keys">{KEYS}</p>')
    with gr.Row(elem_classes="t2s-folder-bar"):
        c.shown = gr.Radio(SHOWN, value="all", label="Show", elem_id="folder-shown", container=False)
        c.tally = _html("folder-tally")
        _html("folder-end", '<p class="t2s-hint" role="status"></p>')  # sheet.js writes there
        with gr.Row(elem_classes="t2s-pager") as c.pages:
            c.back = gr.Button("‹ Previous", size="md", min_width=0, scale=0, elem_id="folder-back")
            c.place = _html("folder-place")
            c.next = gr.Button("Next ›", size="md", min_width=0, scale=0, elem_id="folder-next")
    c.wrong = _html("folder-review-problem")
    c.unsaved.append(_lay_out_unsaved("folder-unsaved"))
    c.sheet = _html("folder-sheet", js_on_load=SHEET)
    # An image of the review, {place, small, large, answer}: for the large view, or drawn anew after a decision.
    c.large = gr.HTML(
        None, html_template="", js_on_load="window.text2segPictures(props, watch)", visible="hidden", padding=False
    )


def _lay_out_unsaved(name: str) -> tuple[gr.Row, gr.HTML, gr.Button]:
    """Build a line on changes in the editor that are not saved, with a button that leads there."""
    with gr.Row(visible=False, elem_id=name, elem_classes="t2s-folder-actions t2s-folder-unsaved") as row:
        said = _html(f"{name}-said")
        return row, said, gr.Button("Go to the editor", size="md")


SHEET = """
const send = { select: (what) => trigger("select", what), enlarge: (what) => trigger("enlarge", what),
  edit: (what) => trigger("edit", what), redraw: () => trigger("redraw", {}) };
window.text2segContactSheet(element, send, watch);
"""
FAILURES, NAMES, SEGMENTS, COUNTS = 20, 12, 5, 24  # most that are shown

BADGES: dict[State, str] = {
    "filling": "reading",
    "waiting": "waiting",
    "running": "running",
    "stopped": "stopped",
    "done": "done",
    "failed": "failed",
}


def checked_html(checked: Checked) -> str:
    """Return the errors of an ontology, or its categories with those that are left out."""
    names = checked.ontology.names if checked.ontology else ()
    return _render("checked", checked=checked, faults=checked.errors or checked.unknown, names=names, shown=NAMES)


def status_html(job: Job, ahead: int) -> str:
    """Return the status of a job. `ahead` is the number of jobs before it in the queue."""
    counts: Mapping[str, int] = {each.name: each.segments for each in job.report.categories} if job.report else {}
    if job.sheet:  # the visitor reviews it
        counts = job.sheet.counts(job.marks)
    status = _render(
        "status",
        job=job,
        words={"badge": "stopping" if _is_stopping(job) else BADGES[job.state], "detail": _detail(job, ahead)},
        found=sorted(((name, count) for name, count in counts.items() if count), key=lambda each: -each[1]),
        failures=tuple(job.failures),
        shown=FAILURES,
        named=COUNTS,
    )
    return status + warning(photographs(len(job.unfamiliar), job.total))


def sheet_html(page: SheetPage, colours: Mapping[str, str], job: Job, shown: Shown = "all", decided: int = 0) -> str:
    """Return a page of the review of a job: its images, segments and buttons.

    Args:
        colours: those of the categories.
        shown: which images the visitor asked for.
        decided: the number of the last decision of this browser page that it shows (see sheet.js).
    """
    return _render("sheet", page=page, few=SEGMENTS, colours=colours, job=job, shown=shown, decided=decided)


def place_html(page: SheetPage) -> str:
    """Return the page number and the number of pages."""
    return _hint(f"{page.number + 1} of {page.pages}")


def return_html(name: str, job: str) -> str:
    """Return what the bar above the editor says."""
    return f'<p role="status">You edit <b>{escape(name)}</b> of the job <b>{escape(job)}</b>.</p>'


def unsaved_html(name: str) -> str:
    """Return that an image has changes in the editor that are not saved."""
    words = "is open in the editor with unsaved changes. The review and the downloads do not have them yet."
    return f'<p role="status"><b>{escape(name)}</b> {words}</p>' if name else ""


def delete_html(name: str) -> str:
    """Return the question before a job is deleted. `name`: an image with changes in the editor that are not saved."""
    if name:
        return f"<p>Delete this job with its uploads, marks and the unsaved changes of <b>{escape(name)}</b>?</p>"
    return "<p>Delete this job with its uploads and marks?</p>"


def tally_html(job: Job) -> str:
    """Return how many images and segments were accepted and rejected."""
    accepted, rejected = (len(job.marks.images_with(verdict)) for verdict in ("accepted", "rejected"))
    labelled = job.report.found + job.report.empty if job.report else 0
    segments = len(job.marks.rejected)
    by_hand = job.sheet.edited | job.sheet.added if job.sheet else set()
    corrected = len(by_hand.union(job.marks.categories))
    more = f"<b>{corrected}</b> corrected · " if corrected else ""
    return (
        f'<p class="t2s-tally" role="status"><b>{accepted}</b> accepted · <b>{rejected}</b> rejected · '
        f"<b>{segments}</b> segment{'s' * (segments != 1)} rejected · {more}"
        f"<b>{labelled - accepted - rejected}</b> undecided</p>"
    )


def opened_html(name: str, counts: str) -> str:
    """Return what a file of marks decided."""
    return f'<p role="status">Marks of {escape(name)} taken over: {escape(counts)}.</p>'


def _detail(job: Job, ahead: int) -> str:
    if job.state == "waiting":
        return f"{counted(ahead, 'job')} before this one" if ahead else "next in the queue"
    if job.state == "running" and not _is_stopping(job):
        return _left(job.seconds_left)
    if job.report and job.state == "done":
        labelled = job.report.found + job.report.empty
        found = job.sheet.found(job.marks) if job.sheet else job.report.found  # the visitor may have removed some
        rejected = len(job.marks.images_with("rejected"))
        out = f", {rejected} rejected" if rejected else ""
        return f"{found} with segments, {labelled - found - rejected} without{out}, {job.report.failed} failed"
    is_begun = job.done > len(job.failures)
    return {
        "stopped": "finished images are kept: resume, or finish with them" if is_begun else "no image is done yet",
        "running": "finishing the current images",
    }.get(job.state, "")


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "estimating the time left"
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 90 else f"about {seconds / 3600:.1f} h left"


def _is_stopping(job: Job) -> bool:
    return job.state == "running" and job.stop.is_set()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _render(part: str, **values: Any) -> str:
    return render_template("text2seg.app.folder", {"number": _number}, part=part, **values)
