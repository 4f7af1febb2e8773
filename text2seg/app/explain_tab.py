"""The Explain tab, made from the table of tools alone, and one run of a tool for a visitor."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from text2seg.app.fields import read_settings, settings_of, shown_settings, widget
from text2seg.app.limits import MOST_PICTURES, check_effort, read_picture
from text2seg.app.messages import alert, note, words_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.uploads import Uploads, check_upload, visitors_folder
from text2seg.errors import ImageError, OutputError, Text2SegError
from text2seg.explain import Progress, Result, Tool, run_tool, save_result
from text2seg.explain.tools import GROUPS
from text2seg.io.files import reason


def explain(
    model_pool: ModelPool,
    tool: Tool,
    uploads: Sequence[Path],
    given: Mapping[str, Any],
    progress: Progress | None = None,
) -> Result:
    """Read a visitor's settings and pictures, wait for a turn, and run the tool.

    Args:
        uploads: uploaded files.
        given: what was filled in, by the names of the tool's settings; pictures among them are uploaded files too.

    Raises `SettingsError`, `QueryError` or `ImageError` where these are not as the tool or the limits want them.
    """
    settings = read_settings(tool.settings, given)
    check_effort(settings)
    if len(uploads) > MOST_PICTURES:
        raise ImageError(f"{len(uploads)} pictures are too many; {MOST_PICTURES} is the most here")
    for each in shown_settings(tool.settings):
        if each.kind == "picture" and (place := getattr(settings, each.name)) is not None:
            read_picture(
                check_upload(place), model_pool.settings
            )  # the tool reads it again, by itself and without our limits
    images = Uploads(uploads, model_pool.settings)
    with model_pool.turn():
        return run_tool(tool, model_pool.models, images, settings, progress)


log = logging.getLogger(__name__)

CONCURRENCY = "explain"
FIRST_FIELDS = 3
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
PRESS = "() => text2segPress('#explain-begin')"
NOTED = "(typed, value) => ({{ ...typed, {tool}: {{ ...typed[{tool}], {field}: value }} }})"  # in the browser alone
READY = "() => ({__type__: 'update', interactive: true})"
SCENES = Path(__file__).parents[1] / "demo" / "scenes" / "new-scenes" / "images"
EXAMPLES = {
    "Sheep and a fire engine": "scene_0019.jpg",
    "Rocket and horse": "scene_0003.jpg",
    "Umbrellas and a clock": "scene_0022.jpg",
}

Updates = dict[Any, Any]
Groups = Mapping[str, Sequence[Tool]]


def groups_of_tools() -> Groups:
    """The tools by group, each under the name of the module that lists it."""
    listed = {group.__name__.rpartition(".")[2].capitalize(): group.TOOLS for group in GROUPS}
    return {name: tools for name, tools in listed.items() if tools}


def build(model_pool: ModelPool, groups: Groups | None = None) -> None:
    """Build the tab; called within its `gr.Tab`. `groups` are the tools, by default all."""
    ExplainTab(model_pool, groups or groups_of_tools())


class ExplainTab:
    """The components of the tab and what their events do; nothing of a visitor is kept here but the wish to stop."""

    def __init__(self, model_pool: ModelPool, groups: Groups) -> None:
        self._model_pool, self._groups = model_pool, groups
        self._tools = {tool.name: tool for tools in groups.values() for tool in tools}
        self._stops: dict[str, set[threading.Event]] = {}
        first = next(iter(groups))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                self.group = gr.Radio([*groups], value=first, label="What to look into", elem_id="explain-group")
                self.tool = gr.Radio(
                    _choices(groups[first]), value=groups[first][0].name, label="Tool", elem_id="explain-tool"
                )
                self._pictures()
                # What was filled in, by tool and field, so that a run needs no field: the server makes them, and they
                # may still be on their way.
                self.typed = gr.JSON({}, visible=False)
                triggers = [self.tool.change, _page().load]
                gr.render(inputs=[self.tool, self.typed], triggers=triggers)(self._form)
            with gr.Column(scale=3, min_width=320, elem_classes="t2s-beside"):
                self._results()
        self.group.input(self._choose, [self.group], [self.tool], trigger_mode="always_last", **QUIET)
        self._wire_run()
        self.tool.change(self._fit, [self.tool], [self.one, self.many], **QUIET)
        _page().unload(self._leave)

    def _pictures(self) -> None:
        tool = next(iter(self._tools.values()))
        with gr.Column(visible=tool.images == "one") as self.one:
            self.picture = gr.Image(
                type="filepath",
                label="Picture",
                image_mode=None,
                interactive=True,
                sources=["upload", "clipboard"],
                height=260,
                elem_id="explain-picture",
            )
            gr.Examples(
                [[str(SCENES / name)] for name in EXAMPLES.values()],
                inputs=[self.picture],
                example_labels=[*EXAMPLES],
                label="Or one of these",
                api_visibility="private",
                elem_id="explain-examples",
            )
        with gr.Column(visible=tool.images == "many") as self.many:
            self.files = gr.File(
                label="Pictures",
                file_count="multiple",
                file_types=["image"],
                interactive=True,
                height=200,
                elem_id="explain-files",
            )

    def _results(self) -> None:
        with gr.Row():
            self.start = gr.Button("Run", variant="primary", elem_id="explain-run", scale=3)
            self.begin = gr.Button(
                "Run", visible="hidden", elem_id="explain-begin"
            )  # for the page to press, see page.js
            self.stop = gr.Button("Stop", interactive=False, elem_id="explain-stop", scale=1, min_width=90)
        self.stop.click(self._leave, queue=False, **QUIET)
        self.status = gr.HTML(
            note("Choose a tool and a picture, then run it."), padding=False, elem_id="explain-status"
        )
        self.gallery = gr.Gallery(
            label="What it shows",
            show_label=False,
            visible=False,
            interactive=False,
            object_fit="contain",
            height="auto",
            columns=2,
            elem_id="explain-panels",
        )
        with gr.Row(visible=False) as self.downloads:
            self.sheet = gr.DownloadButton("Download the sheet (PNG)", size="sm", elem_id="explain-sheet")
            self.numbers = gr.DownloadButton("Download the numbers (JSON)", size="sm", elem_id="explain-numbers")
        self.result = gr.State(None, time_to_live=3600)
        gr.render(inputs=[self.result], triggers=[self.result.change])(self._tables)

    def _form(self, name: str, typed: Any) -> None:
        """The fields of a tool, with what was typed into them before."""
        tool = self._tools[name]
        listed = shown_settings(tool.settings)
        before = typed.get(name, {}) if isinstance(typed, dict) else {}
        with gr.Column(elem_id=f"fields-of-{name}"):
            fields = [widget(setting) for setting in listed[:FIRST_FIELDS]]
            if len(listed) > FIRST_FIELDS:
                with gr.Accordion("More settings", open=False):
                    fields += [widget(setting) for setting in listed[FIRST_FIELDS:]]
            elsewhere = [
                f"--{each.name.replace('_', '-')}" for each in settings_of(tool.settings) if each.kind == "path"
            ]
            if elsewhere:
                gr.HTML(note(f"On the command line there is also {', '.join(elsewhere)}."), padding=False)
        for setting, field in zip(listed, fields, strict=True):
            if setting.name in before and setting.kind != "picture":
                field.value = before[setting.name]
            noted = NOTED.format(tool=json.dumps(name), field=json.dumps(setting.name))
            field.change(None, [self.typed, field], [self.typed], js=noted)

    def _wire_run(self) -> None:
        self.start.click(None, outputs=[self.start], js=PRESS)
        shown_then = [self.status, self.stop, self.gallery, self.downloads, self.sheet, self.numbers, self.result]
        ran = self.begin.click(
            self._run,
            [self.tool, self.picture, self.files, self.typed],
            [self.start, *shown_then],
            api_visibility="private",
            show_progress="full",
            show_progress_on=[self.status],
            concurrency_id=CONCURRENCY,
            concurrency_limit=max(self._model_pool.settings.workers - 1, 1),
        )
        ran.failure(None, outputs=[self.start], js=READY)

    def _run(
        self,
        name: str,
        picture: str | None,
        files: list[str] | None,
        typed: Any,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Updates]:
        """Run a tool; what the page shows meanwhile and then."""
        tool = self._tools[name]
        given = _given(typed, name)
        pictures = {"one": [picture] if picture else [], "many": files or [], "none": []}[tool.images]
        visitor, stop = str(request.session_hash), threading.Event()
        self._stops.setdefault(visitor, set()).add(stop)
        reports = Progress(lambda done, total, words: progress((done, total or None), desc=words or name), stop)
        hidden = {part: part.__class__(visible=False) for part in (self.gallery, self.downloads)}
        shown_then: Updates = {}
        try:
            yield {self.stop: gr.Button(interactive=True), self.status: "", self.result: None, **hidden}
            progress(0, desc="Waiting for a turn")
            result = explain(self._model_pool, tool, [Path(path) for path in pictures], given, reports)
            shown_then = self._shown(tool, result, stop)
        except Text2SegError as error:
            shown_then = {self.status: alert(words_of(error))}
        except Exception as error:  # whatever it is, the visitor may run something again
            log.exception("a tool failed")
            shown_then = {self.status: alert(f"Not enough memory, or a fault of text2seg ({error}).")}
        finally:
            self._stops[visitor].discard(stop)
            if not self._stops[visitor]:
                del self._stops[visitor]
        yield shown_then | {self.start: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}

    def _shown(self, tool: Tool, result: Result, stop: threading.Event) -> Updates:
        said = note("Stopped; this is what there was until then.") if stop.is_set() else ""
        files = {path.suffix: str(path) for path in save_result(result, _folder(), tool.name)}
        return {
            self.status: f'<h3 class="t2s-title">{escape(result.title)}</h3>{said}',
            self.gallery: _gallery(result),
            self.downloads: gr.Row(visible=True),
            self.sheet: gr.DownloadButton(value=files.get(".png"), visible=".png" in files),
            self.numbers: gr.DownloadButton(value=files.get(".json"), visible=".json" in files),
            self.result: result,
        }

    def _leave(self, request: gr.Request) -> None:
        """Stop what this visitor runs."""
        for stop in tuple(self._stops.get(str(request.session_hash), ())):
            stop.set()

    def _tables(self, result: Result | None) -> None:
        for table in result.tables if result else ():
            gr.Dataframe(
                value=[[_cell(value) for value in row] for row in table.rows],
                headers=[*table.columns],
                label=table.title,
                interactive=False,
                wrap=True,
                max_height=420,
            )
        for text in result.notes if result else ():
            gr.HTML(note(text), padding=False)

    def _choose(self, group: str) -> gr.Radio:
        return gr.Radio(_choices(self._groups[group]), value=self._groups[group][0].name)

    def _fit(self, name: str) -> tuple[gr.Column, gr.Column]:
        wants = self._tools[name].images
        return gr.Column(visible=wants == "one"), gr.Column(visible=wants == "many")


def _given(typed: Any, tool: str) -> dict[str, Any]:
    """What was filled in for a tool; an uploaded file as its path."""
    fields = typed.get(tool) if isinstance(typed, dict) else None
    given = fields if isinstance(fields, dict) else {}
    return {name: value.get("path") if isinstance(value, dict) else value for name, value in given.items()}


def _page() -> Any:
    """The page that is being built."""
    page = gr.context.Context.root_block
    if page is None:
        raise RuntimeError("the tab is built within a page")
    return page


def _choices(tools: Sequence[Tool]) -> list[tuple[str, str]]:
    return [(f"{tool.name}: {tool.summary.rstrip('.')}", tool.name) for tool in tools]


def _gallery(result: Result) -> gr.Gallery:
    panels = [(panel.pixels, panel.caption) for panel in result.panels]
    return gr.Gallery(panels, columns=min(result.columns or 3, len(panels) or 1, 4), visible=bool(panels))


def _cell(value: str | float | None) -> str | float:
    return "–" if value is None else round(value, 4) if isinstance(value, float) else value


def _folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(dir=visitors_folder()))
    except OSError as error:
        raise OutputError(f"the files cannot be kept here: {reason(error)}; please try again later") from error
