"""The list of tools, the form of each with the values typed into it, and how long a run with these takes."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from text2seg.app.fields import example_of, read_settings, settings_of, shown_settings, widget
from text2seg.app.messages import note
from text2seg.app.model_pool import ModelPool
from text2seg.errors import Text2SegError
from text2seg.explain import Tool
from text2seg.explain.estimate import Speed, Work, estimate

FIRST_FIELDS = 3
"""Number of fields shown above "More settings"."""
NOTED = "(typed, value) => text2segNoted(typed, {tool}, {field}, value, {usual})"  # runs in the browser

TOOL_LIST = 'element.querySelector("t2s-tool-list").connect({ props, trigger, watch })'
Groups = Mapping[str, Sequence[Tool]]


def tool_list(groups: Groups, first: Tool) -> Any:
    """Return a select field with all tools by group (see explain.js). Its value is the name of a tool."""
    listed = [
        {
            "group": group,
            "tools": [{"name": tool.name, "title": tool.title, "summary": tool.summary} for tool in tools],
        }
        for group, tools in groups.items()
    ]
    return gr.HTML(
        first.name,
        html_template="<t2s-tool-list></t2s-tool-list>",
        js_on_load=TOOL_LIST,
        apply_default_css=False,
        padding=False,
        elem_id="explain-tool",
        groups=listed,
    )


def render(tool: Tool, typed: Any, keeper: Any) -> None:
    """Render the fields of a tool, with the values typed before.

    Args:
        typed: values of all forms, by tool and field.
        keeper: the component that keeps them.
    """
    listed = shown_settings(tool.settings)
    values = given(tool, typed)
    with gr.Column(elem_id=f"fields-of-{tool.name}"):
        fields = [widget(setting) for setting in listed[:FIRST_FIELDS]]
        if len(listed) > FIRST_FIELDS:
            with gr.Accordion("More settings", open=False):
                fields += [widget(setting) for setting in listed[FIRST_FIELDS:]]
        settings = (each for each in settings_of(tool.settings) if each.kind == "path")
        elsewhere = [each.label for each in settings if each.name != "folder"]  # its files can be downloaded
        if elsewhere:
            gr.HTML(note(f"Only on the command line: {', '.join(elsewhere)}."), padding=False)
    kept, usual = _typed(tool, typed), given(tool, {})
    for setting, shown in zip(listed, fields, strict=True):
        untouched = json.dumps(usual.get(setting.name, shown.value))
        if setting.kind == "image":
            shown.value = kept.get(setting.name)
        elif setting.name in values:
            shown.value = values[setting.name]
        noted = NOTED.format(tool=json.dumps(tool.name), field=json.dumps(setting.name), usual=untouched)
        changed = shown.input if setting.kind == "image" else shown.change
        changed(None, [keeper, shown], [keeper], js=noted)


def given(tool: Tool, typed: Any) -> dict[str, Any]:
    """Return the values for a run: those typed, and the examples of empty text fields. Files are paths."""
    fields = _typed(tool, typed).items()
    values = {name: value.get("path") if isinstance(value, dict) else value for name, value in fields}
    examples = {each.name: example_of(each) for each in shown_settings(tool.settings)}
    return {name: value for name, value in examples.items() if value} | values


def _typed(tool: Tool, typed: Any) -> dict[str, Any]:
    fields = typed.get(tool.name) if isinstance(typed, dict) else None
    return fields if isinstance(fields, dict) else {}


class Estimates:
    """How long runs take. `lock` is held by whatever the speed must not be measured beside."""

    def __init__(self, model_pool: ModelPool) -> None:
        self.lock = threading.Lock()
        self._model_pool = model_pool
        self._speed: Speed | None = None

    def seconds(self, tool: Tool, files: Any, typed: Any) -> float:
        """Return the estimated time of a run in seconds; 0 for a tool that is always quick."""
        if tool.work is None:
            return 0.0
        try:
            settings = read_settings(tool.settings, given(tool, typed))
            images = max(len(files or ()), 1) if tool.images == "many" else 1
            return estimate(tool, self.speed(), images, settings) or 0.0
        except Text2SegError:  # the run says what is wrong
            return 0.0

    def speed(self) -> Speed:
        """Return the speed of the models. It is measured alone, because what runs beside it makes it too low."""
        with self.lock:
            models = self._model_pool.models
            if self._speed is None or self._speed.models is not models:
                speed = Speed(models)
                with self._model_pool.turn():
                    speed.seconds(Work(clip_images=1, sam_images=1, text_steps=1))
                self._speed = speed
            return self._speed
