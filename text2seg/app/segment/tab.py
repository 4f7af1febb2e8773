"""The tab's wiring: one component that shows everything, and one event that asks for everything.

The page is drawn by the browser (`*.js` beside this file, one custom element each). It asks, the answer is the whole
view of the visit, so that the browser never has to guess what the server knows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import resources
from typing import Any

import gradio as gr
from gradio import processing_utils

from text2seg.app.messages import words_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.examples import examples
from text2seg.app.segment.requests import Answer, read_ask
from text2seg.app.segment.session import Visit
from text2seg.app.segment.view import Json, view_of
from text2seg.errors import Text2SegError

log = logging.getLogger(__name__)

KEPT_SECONDS = 3600
"""After so long without a click a visit is forgotten."""

START = """
const failed = () => element.querySelector("t2s-segment").failed();
document.addEventListener("text2seg-failed", failed);
element.querySelector("t2s-segment").connect({ ask: (what) => trigger("ask", what), props, watch, upload });
"""
FAILED = "() => { document.dispatchEvent(new Event('text2seg-failed')); }"


def build(model_pool: ModelPool) -> None:
    """The contents of the tab; to be called within a `gr.Tab`."""
    visit = gr.State(Visit(), time_to_live=KEPT_SECONDS)
    status = gr.HTML("", elem_id="segment-status", padding=False)
    canvas = gr.HTML(
        {},
        html_template=resources.files(__package__).joinpath("segment.html").read_text(encoding="utf-8"),
        js_on_load=START,
        apply_default_css=False,
        padding=False,
        elem_id="segment-canvas",
        examples=[{"thumbnail": each.thumbnail, "texts": list(each.texts)} for each in examples()],
        known=_known(model_pool),
        uploadMb=model_pool.settings.upload_mb,
    )

    def reply(before: Visit, turn: int, work: Callable[[], Answer]) -> tuple[Visit, Json]:
        """What work leads to, or where it fails the visit as it was and what is wrong."""
        try:
            answer, error = work(), ""
        except Text2SegError as problem:
            answer, error = Answer(before), words_of(problem)
        except (MemoryError, RuntimeError) as problem:  # torch is out of memory with a RuntimeError
            log.exception("a request failed")
            answer, error = Answer(before), f"not enough memory, or a fault of text2seg ({problem})"
        shown = {"turn": turn, "error": error, "known": _known(model_pool)} | view_of(answer.visit)
        return answer.visit, shown | _files(answer, canvas.GRADIO_CACHE)

    def ask(before: Visit, event: gr.EventData) -> tuple[Visit, Json]:
        what = dict(event._data) if isinstance(event._data, dict) else {}
        turn = what.pop("turn", 0)
        return reply(before, turn, lambda: read_ask(what).answered(before, model_pool))

    how: Any = {"show_progress": "minimal", "show_progress_on": status, "api_visibility": "private"}
    how["trigger_mode"] = "multiple"  # the page sees to it that it waits for an answer before it asks again
    canvas.ask(ask, [visit], [visit, canvas], **how).failure(None, js=FAILED, api_visibility="private")


def _known(model_pool: ModelPool) -> list[str]:
    """What to suggest: all that the models at work know, nothing where they know more than can be listed."""
    things = model_pool.models.things
    return list(things.names) if things else []


def _files(answer: Answer, folder: str) -> Json:
    """What the browser fetches on its own: the picture, and a picture or a file that was asked for."""
    files: Json = {"picture": None, "why": None, "file": None}
    if answer.visit.session:
        image = answer.visit.session.image
        rows, columns = image.hw
        kept = _kept("picture.jpg", answer.visit.preview, folder)
        files["picture"] = {"width": columns, "height": rows, "name": image.file_name, "file": kept}
    if answer.why and answer.picture:
        files["why"] = answer.why | {"file": _kept("why.png", answer.picture, folder)}
    if answer.file:
        name, content = answer.file
        files["file"] = {"name": name, "file": _kept(name, content, folder)}
    return files


def _kept(name: str, content: bytes, folder: str) -> Json:
    """A file of this visitor's, at an address that nobody can guess who does not have the file."""
    return gr.FileData(path=processing_utils.save_bytes_to_cache(content, name, folder)).model_dump()
