"""The tab's components and where they stand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from text2seg.app.folder.sources import folders_in
from text2seg.app.folder.visit import NOBODY
from text2seg.app.settings import AppSettings

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
