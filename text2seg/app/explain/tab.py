"""Components of the Explain tab and their events. The list of tools and their forms are made from
`text2seg.explain.GROUPS`."""

from __future__ import annotations

import base64
import json
import logging
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from zlib import crc32

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from text2seg.app.checks import check_upload, read_image, visitors_folder
from text2seg.app.explain import form
from text2seg.app.explain.form import Estimates, Groups
from text2seg.app.explain.results import packed, panels_of, tables_of
from text2seg.app.explain.run import EXAMPLES, FIRST_EXAMPLE, Visitors, explain, images_of
from text2seg.app.explain.scripts import (
    AGREED,
    ASK,
    BEGIN,
    BEGIN_UNLESS_ASKED,
    CHOOSE,
    CLEAR,
    FOCUS_QUESTION,
    IS_OTHER,
    NUMBER,
    NUMBERED,
    OUTDATED,
    PRESS,
    READY,
    STOP,
)
from text2seg.app.fields import files_field, read_settings
from text2seg.app.messages import alert, is_of_photographs, message_of, note, warning
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.desk import Desk
from text2seg.app.segment.session import THUMBNAIL_SIDE, preview
from text2seg.app.settings import MOST_IMAGES
from text2seg.errors import OutputError, Text2SegError
from text2seg.explain import GROUPS, Progress, Result, Tool, run_tool, save_result
from text2seg.explain.estimate import SLOW, words_for
from text2seg.io.files import reason
from text2seg.io.images import load_image

log = logging.getLogger(__name__)

CONCURRENCY = "explain"
POLL = 0.25
"""Seconds between two updates of the page while a tool runs."""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
LONG = 120.0
"""Runs that take longer, in seconds, ask before they start."""
PANELS = 'element.querySelector("t2s-panels").connect({ props, watch })'
TABLES = 'element.querySelector("t2s-tables").connect({ props, watch })'
Updates = dict[Any, Any]


def build(model_pool: ModelPool, tab: gr.Tab, editor: gr.State | None = None, groups: Groups = GROUPS) -> None:
    """Build the content of a tab. Call it within that tab. `editor` is the `Desk` of the Segment tab, whose image is
    offered here."""
    ExplainTab(model_pool, groups, editor or gr.State(Desk())).wire_opening(tab)


class ExplainTab:
    """Components of the tab and their events."""

    def __init__(self, model_pool: ModelPool, groups: Groups, editor: gr.State) -> None:
        self._model_pool = model_pool
        self._tools = {tool.name: tool for tools in groups.values() for tool in tools}
        self._first = next(iter(self._tools.values()))
        self._editor = editor
        self._visitors = Visitors()
        self._example: tuple[Any, Updates] | None = None
        self._estimates = Estimates(model_pool)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                self.tool = form.tool_list(groups, self._first)
                self._images()
                # Values of all forms, by tool and field. A run needs no field, because the server renders the fields
                # and they may not be there yet.
                self.typed = gr.JSON({}, visible=False)
                # Whose form is shown. It changes once, also if the tool is chosen while the page loads.
                self.form = gr.Textbox("", visible=False)
                gr.render(inputs=[self.form, self.typed], triggers=[self.form.change])(self._render_form)
            with gr.Column(scale=3, min_width=320, elem_id="explain-result", elem_classes="t2s-beside"):
                self._results()
        self._wire_run()
        self._wire_form()
        _page().unload(self._forget)

    def wire_opening(self, tab: gr.Tab) -> None:
        """When a visitor opens this tab, offer the image of the Segment tab, and show the result of the first tool on
        the first example."""
        gr.on([tab.select, self.offer.click], self._offer, [self._editor], [self.image], queue=False, **QUIET)
        tab.select(self._estimate, self._asked, [self.estimate], queue=False, **QUIET)
        outputs = [self.status, self.panels, self.downloads, self.sheet, self.numbers, self.folder, self.tables]
        # The example has a queue of its own, so that it takes no place among the runs.
        opened = tab.select(
            self._open, [self.is_other], outputs, js=IS_OTHER, concurrency_id="explain-example", **QUIET
        )
        self._check_values(opened)

    def _images(self) -> None:
        tool, limit = self._first, self._model_pool.settings.upload_mb
        examples = [
            {"title": title, "thumbnail": _thumbnail(load_image(path).pixels)} for title, path in EXAMPLES.items()
        ]
        with gr.Column(visible=tool.images == "one") as self.one:
            # An update replaces all of these in a field that is hidden, so each one names them all.
            self._image_props: dict[str, Any] = {
                "label": "Image",
                "uploadMb": limit,
                "examples": examples,
                "keeps": "explain-image",
            }
            self.image = files_field({"example": 0}, elem_id="explain-image", offer=None, **self._image_props)
        self.offer = gr.Button("Offer", visible="hidden", elem_id="explain-offer")  # pressed by explain.js
        with gr.Column(visible=tool.images == "many") as self.many:
            self.files = files_field(
                [{"example": number, "name": title} for number, title in enumerate(EXAMPLES)],
                elem_id="explain-files",
                examples=examples,
                label="Images",
                uploadMb=limit,
                several=True,
                keeps="explain-files",
                invitation="Drop images here, or choose files",
                kinds=f"At most {MOST_IMAGES}",
            )

    def _results(self) -> None:
        with gr.Row(elem_classes="t2s-run"):
            self.start = gr.Button("Run", variant="primary", elem_id="explain-run", scale=3)
            self.begin = gr.Button("Run", visible="hidden", elem_id="explain-begin")  # pressed by page.js
            self.stop = gr.Button("Stop", interactive=False, elem_id="explain-stop", scale=1, min_width=90)
        self.estimate = gr.HTML("", padding=False, elem_id="explain-estimate")
        self.question = gr.HTML("", padding=False, elem_id="explain-question")
        self.problem = gr.HTML("", padding=False, elem_id="explain-problem")
        self.status = gr.HTML(note(BEGIN), padding=False, elem_id="explain-status")
        self.panels = gr.HTML(
            None,
            html_template="<t2s-panels hidden></t2s-panels>",
            js_on_load=PANELS,
            apply_default_css=False,
            padding=False,
            elem_id="explain-panels",
            elem_classes="t2s",
        )
        with gr.Row(visible=False, elem_classes="t2s-actions") as self.downloads:
            self.sheet = gr.DownloadButton("Images (PNG)", size="md", elem_id="explain-sheet")
            self.numbers = gr.DownloadButton("Numbers (JSON)", size="md", elem_id="explain-numbers")
            self.folder = gr.DownloadButton("All files (ZIP)", size="md", elem_id="explain-folder", visible=False)
        self.tables = gr.HTML(
            None,
            html_template="<t2s-tables hidden></t2s-tables>",
            js_on_load=TABLES,
            apply_default_css=False,
            padding=False,
            elem_id="explain-tables",
            elem_classes="t2s",
        )
        self._asked = [self.tool, self.files, self.typed]
        self.agreed, self.asks, self.is_other = (gr.Checkbox(False, visible=False) for _ in range(3))
        self.number = gr.Number(0, visible=False)  # of the run, so that one that waits for its turn can be given up
        self._shown_parts = [self.question, self.problem, self.status, self.panels, self.downloads, self.tables]

    def _render_form(self, name: str, typed: Any) -> None:
        form.render(self._tools[name], typed, self.typed)

    def _wire_form(self) -> None:
        """Clear what is no longer true when the tool, the images or a value change."""
        last: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **QUIET}
        choose = CHOOSE % json.dumps({tool.name: tool.images for tool in self._tools.values()})
        shown = [self.typed, self.form, self.one, self.many, *self._shown_parts, self.start, self.stop]
        # The values before the form, which is rendered with them as soon as it changes.
        before = "(tool, typed) => [text2segTyped(typed), text2segTool(tool)]"
        _page().load(None, [self.tool, self.typed], [self.typed, self.form], js=before, api_visibility="private")
        self.tool.input(None, [self.tool, self.typed], shown, js=choose, api_visibility="private")
        chosen = self.tool.input(
            self._choose,
            [self.tool, self.image, self.files, self.typed, self._editor, self.number],
            [self.estimate, *self._shown_parts, self.sheet, self.numbers, self.folder],
            js=NUMBERED,
            **last,
        )
        self._check_values(chosen)
        images = [self.image.input, self.files.input]
        gr.on(images, None, outputs=self._shown_parts, js=CLEAR, api_visibility="private")
        self.image.input(self._check_image, [self.image], [self.problem], **last)
        self.typed.change(None, [self.typed], [self.problem], js=OUTDATED, api_visibility="private")
        changes = [self.files.input, self.typed.change, _page().load]
        gr.on(changes, self._estimate, self._asked, [self.estimate], **last)

    def _wire_run(self) -> None:
        buttons = [self.start, self.stop]
        waiting = [*buttons, self.status, self.problem, self.question]
        pressed = self.start.click(None, [self.typed, self.status], waiting, js=PRESS)
        asked = pressed.then(self._ask, [*self._asked, self.agreed], [self.asks], js=AGREED, queue=False, **QUIET)
        asked.failure(None, outputs=buttons, js=READY)
        answer = [self.question, self.status, *buttons]
        answered = asked.success(None, [self.asks], answer, js=BEGIN_UNLESS_ASKED, api_visibility="private")
        answered.then(None, js=FOCUS_QUESTION, api_visibility="private")
        shown_then = [*self._shown_parts, self.estimate, self.stop, self.sheet, self.numbers, self.folder]
        ran = self.begin.click(
            self._run,
            [self.tool, self.image, self.files, self.typed, self._editor, self.number],
            [self.start, *shown_then],
            js=NUMBERED,
            trigger_mode="multiple",  # one that was given up may still wait for its turn
            concurrency_id=CONCURRENCY,
            concurrency_limit=max(self._model_pool.settings.workers - 1, 1),
            **QUIET,
        )
        ran.then(None, js="() => text2segRan()", api_visibility="private")
        ran.failure(None, outputs=buttons, js=READY)
        self._check_values(ran)
        # The first one, because Gradio answers one after the other.
        stopped = self.stop.click(None, outputs=[self.stop, self.start, self.status], js=STOP, api_visibility="private")
        self.stop.click(self._leave, [self.number], js=NUMBER, queue=False, **QUIET)
        self._check_values(stopped)
        self.start.click(None, js="() => text2segFocus('#explain-status')", api_visibility="private")

    def _check_values(self, shown: Any) -> None:
        """Say of a result that was shown whether it is of the values that are typed now."""
        shown.success(None, [self.typed, self.problem], [self.problem], js=OUTDATED, api_visibility="private")

    def _cleared(self) -> Updates:
        """Return the updates of a tab without a result."""
        return {
            self.question: "",
            self.problem: "",
            self.status: note(BEGIN),
            self.panels: None,
            self.downloads: gr.Row(visible=False),
            self.tables: None,
        }

    def _choose(
        self, name: str, image: Any, files: Any, typed: Any, editor: Desk, number: float, request: gr.Request
    ) -> Updates:
        """Stop what the tool before still runs: what it would show has no place at the chosen one. Show the last result
        of the chosen tool again, if it is of these images, and how long a run takes."""
        visitor, tool = str(request.session_hash), self._tools[name]
        self._visitors.choose(visitor, name, int(number))
        estimate = self._estimate(name, files, typed)
        return {self.estimate: estimate, **self._visitors.result(visitor, name, _seen(tool, image, files, editor))}

    def _check_image(self, image: Any) -> Any:
        """Say of an upload at once that it cannot be read."""
        match image:
            case {"path": str(path)}:
                try:
                    read_image(check_upload(Path(path)), self._model_pool.settings)
                except Text2SegError as error:
                    return alert(message_of(error))
        return gr.skip()

    def _offer(self, editor: Desk) -> Any:
        """Offer the image that is open in the Segment tab."""
        session = editor.session.image_session
        if session is None:
            return gr.HTML(offer=None, **self._image_props)
        name = session.image.file_name or "the image"
        offer = {"name": name, "thumbnail": _thumbnail(session.image.pixels)}
        return gr.HTML(offer=offer, **self._image_props)

    def _estimate(self, name: str, files: Any, typed: Any) -> str:
        """Say before a slow run how long it takes."""
        seconds = self._estimates.seconds(self._tools[name], files, typed)
        if seconds < SLOW:
            return ""
        one = " an image" if self._tools[name].images == "many" and not files else ""
        return (
            f'<p class="t2s-hint" role="status">Takes about {words_for(seconds)}{one} on this computer. '
            "Stop keeps what is finished by then.</p>"
        )

    def _ask(self, name: str, files: Any, typed: Any, agreed: bool, request: gr.Request) -> bool:
        """Return whether to ask before a run, which is long and not agreed to. Not in the queue, so that nobody waits
        to be asked."""
        if agreed:
            self._visitors.agreed.add(str(request.session_hash))
        return not agreed and self._estimates.seconds(self._tools[name], files, typed) > LONG

    def _run(
        self, name: str, image: Any, files: Any, typed: Any, editor: Desk, number: float, request: gr.Request
    ) -> Iterator[Updates]:
        """Run a tool: yield the updates of the page while it runs, and then its result."""
        tool, visitor = self._tools[name], str(request.session_hash)
        has_agreed = visitor in self._visitors.agreed
        ready = {self.start: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}
        if not has_agreed and self._estimates.seconds(tool, files, typed) > LONG:  # the page has begun too early
            yield {self.question: ASK, self.status: "", **ready}
            return
        run, updates = self._visitors.begin(visitor, tool, int(number)), Updates()
        if run is None:
            yield {self.status: gr.skip()}
            return
        with ThreadPoolExecutor(1, thread_name_prefix="text2seg-explain") as thread:
            try:
                yield {self.stop: gr.Button(interactive=True), **self._cleared(), self.status: run.html()}
                folder = _folder()
                paths = images_of(run.tool, image, files, editor.session, folder)
                given = form.given(tool, typed)
                progress = Progress(run.report, run.stop)
                work = thread.submit(
                    explain, self._model_pool, run.tool, paths, given, progress, folder=folder / name, begin=run.begin
                )
                while not work.done():
                    shown = run.html()
                    if not run.is_left:
                        yield {self.status: shown}
                    threading.Event().wait(POLL)
                result, text = work.result(), "Stopped. This is the result so far." if run.stop.is_set() else ""
                if run.stop.is_set() and not result.panels and not result.tables:
                    updates = {self.status: note("Stopped. Nothing was finished yet that could be shown.")}
                else:
                    updates = self._shown(run.tool, result, text, folder / name)
                    self._visitors.keep(visitor, name, _seen(tool, image, files, editor), updates)
            except Text2SegError as error:
                updates = {self.problem: alert(message_of(error)), self.status: ""}
            except Exception as error:  # the visitor must be able to run something again
                log.exception("a tool failed")
                updates = {
                    self.problem: alert(f"Not enough memory, or an error in text2seg ({error})."),
                    self.status: "",
                }
            finally:
                self._visitors.end(visitor, run)
        yield (self._cleared() if run.is_left else updates) | ready | {self.estimate: ""}

    def _open(self, is_other: bool, request: gr.Request) -> Updates:
        """Show the example, unless the visitor has run a tool or chosen another image. It is computed once for each
        pair of models."""
        visitor = str(request.session_hash)
        if is_other or self._visitors.has_chosen(visitor):
            return {self.status: gr.skip()}
        models = self._model_pool.models
        with self._estimates.lock:
            if self._example is None or self._example[0] is not models:
                self._example = (models, self._example_updates())
            example = self._example[1]
        # Before it is needed. Not a daemon: a process that ends while one runs torch is aborted.
        threading.Thread(target=self._estimates.speed, name="text2seg-speed").start()
        self._visitors.keep(visitor, self._first.name, {"example": 0}, example)
        has_chosen = self._visitors.has_chosen(visitor)  # a run may have begun meanwhile
        return {self.status: gr.skip()} if has_chosen else example

    def _example_updates(self) -> Updates:
        tool = self._first
        try:
            settings = read_settings(tool.settings, form.given(tool, {}))
            with self._model_pool.turn():
                image = replace(load_image(FIRST_EXAMPLE), file_name=next(iter(EXAMPLES)))
                result = run_tool(tool, self._model_pool.models, [image], settings)
        except Text2SegError as error:  # these models cannot run it: the visitor sees the empty tab
            log.info("the example cannot be explained: %s", error)
            return {self.status: gr.skip()}
        return self._shown(tool, result, f"An example: {tool.title}. Choose a tool and an image, then press Run.")

    def _shown(self, tool: Tool, result: Result, text: str, folder: Path | None = None) -> Updates:
        """Return the updates that show a result, with a note below its title.

        Args:
            folder: where the tool has put files of its own.
        """
        says = [
            *(each for each in result.notes if is_of_photographs(each)),
            *(f"Left out: {each}" for each in result.unknown),
        ]
        warned = "".join(map(warning, says))
        files = {path.suffix: str(path) for path in save_result(result, _folder(), tool.name)}
        archive = packed(folder) if folder is not None and folder.is_dir() else None
        return {
            self.status: f'<h3 class="t2s-title">{escape(result.title)}</h3>{note(text) if text else ""}{warned}',
            self.panels: panels_of(result, self.panels.GRADIO_CACHE),
            self.downloads: gr.Row(visible=True),
            self.sheet: gr.DownloadButton(value=files.get(".png"), visible=".png" in files),
            self.numbers: gr.DownloadButton(value=files.get(".json"), visible=".json" in files),
            self.folder: gr.DownloadButton(value=archive, visible=archive is not None),
            self.tables: tables_of(result, self.tables.GRADIO_CACHE),
        }

    def _leave(self, number: float, request: gr.Request) -> None:
        """Stop what this visitor runs, up to the run with this number."""
        self._visitors.stop(str(request.session_hash), int(number))

    def _forget(self, request: gr.Request) -> None:
        """Stop what a visitor who leaves the page runs."""
        self._visitors.forget(str(request.session_hash))


def _seen(tool: Tool, image: Any, files: Any, editor: Desk) -> Any:
    """Return a value that is equal for equal choices of images."""
    match tool.images, image:
        case "none", _:
            return None
        case "many", _:
            return files
        case _, {"segment": True} if editor.session.image_session:
            return crc32(editor.session.image_session.image.pixels.tobytes())
    return image


def _page() -> Any:
    """Return the page that is being built."""
    page = gr.context.Context.root_block
    if page is None:
        raise RuntimeError("the tab must be built within a page")
    return page


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Return a small JPEG of an image uint8[h, w, 3] as a data URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(preview(pixels, longest=THUMBNAIL_SIDE)).decode()}"


def _folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(dir=visitors_folder()))
    except OSError as error:
        raise OutputError(f"the files cannot be kept here: {reason(error)}; please try again later") from error
