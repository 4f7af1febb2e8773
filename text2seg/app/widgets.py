"""Settings as widgets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from text2seg.app.fields import Setting


def widget(setting: Setting) -> Any:
    """What a visitor fills one setting in with; its value goes to `fields.read_settings`."""
    common: dict[str, Any] = {"label": setting.label, "elem_id": f"setting-{setting.name}", "interactive": True}
    if setting.kind not in ("picture", "path"):
        common["info"] = setting.help or None
    if setting.kind == "picture":
        return gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], height=200, **common)
    if setting.kind == "flag":
        return gr.Checkbox(bool(setting.default), **common)
    if setting.kind == "choices":
        return gr.Dropdown([*setting.choices], value=list(setting.default or ()), multiselect=True, **common)
    if setting.kind == "choice":
        choices = [("as by default", ""), *((each, each) for each in setting.choices)][not setting.is_optional :]
        return gr.Dropdown(choices, value="" if setting.default is None else setting.default, **common)
    if setting.kind in ("whole", "number") and not setting.is_optional:  # a Number cannot stay empty
        return gr.Number(setting.default, precision=0 if setting.kind == "whole" else None, **common)
    if setting.kind == "lines":
        return gr.Textbox("\n".join(setting.default or ()), lines=3, placeholder="one a line", **common)
    default = setting.default
    text = ", ".join(str(value) for value in default) if isinstance(default, tuple) else default
    return gr.Textbox("" if text is None else str(text), placeholder="empty", **common)
