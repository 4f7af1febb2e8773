"""The Segment tab: its page, and how it gets answers.

The browser draws the page (the *.js files beside this one, one custom element each). It sends a request (requests.py);
the answer is the whole state of the session (view.py), so that the browser never guesses what the server knows. A new
button is one line in toolbar.js and one request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from typing import Any

import gradio as gr
from gradio import processing_utils

from text2seg.app.messages import PHOTOGRAPH, message_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.desk import KEPT_SECONDS, Desk, KeptSessions
from text2seg.app.segment.edits import EVERYTHING
from text2seg.app.segment.requests import Answer, Everything, Request, Resume, read_request
from text2seg.app.segment.session import EditSession, examples
from text2seg.app.segment.view import Json, regions_of, view_of
from text2seg.errors import StoppedError, Text2SegError
from text2seg.runtime import watched

log = logging.getLogger(__name__)

POLL = 0.25
"""Seconds between two reports of progress."""
NOTHING = ("", "")
START = """
const failed = () => element.querySelector("t2s-segment").failed();
document.addEventListener("text2seg-failed", failed);
element.querySelector("t2s-segment").connect({ send: (what) => trigger("ask", what),
  stop: (turn) => trigger("stop", { turn }), resumedEditing: () => trigger("editing", {}), props, watch, upload });
"""
FAILED = "() => { document.dispatchEvent(new Event('text2seg-failed')); }"


@dataclass(frozen=True, slots=True)
class Editor:
    """The editor on the page, for other tabs: the state of a visitor's `Desk`, and the component that shows it.

    `put` puts a session on a desk, and returns the updates for it and the number of the selected segment, 0 for none. A
    reloaded page finds this session again; if it is one of a labelling job, the component then sends the event
    `editing`. `unsaved` are the ids of the job and the name of the image while there are changes that are not saved in
    the job, else two empty texts.
    """

    desk: gr.State
    canvas: gr.HTML
    unsaved: gr.State
    put: Callable[[Desk, EditSession, int], dict[Any, Any]]


def build(model_pool: ModelPool) -> Editor:
    """Build the tab. Call it within its `gr.Tab`."""
    desk_state, kept = gr.State(Desk(), time_to_live=int(KEPT_SECONDS)), KeptSessions()
    unsaved = gr.State(NOTHING)
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
        unfamiliar=PHOTOGRAPH,
    )

    def answered(request: Request, before: EditSession, watch: Callable[[int], None]) -> tuple[Answer, Json]:
        """Return the answer to one request. If it fails, the session is unchanged and there is an error message."""
        try:
            with watched(watch):
                watch(0)  # it may have been stopped while it waited
                answer = request.answer(before, model_pool)
            return replace(answer, session=replace(answer.session, token=before.token, editing=before.editing)), {}
        except StoppedError:
            return Answer(before), {"isStopped": True}
        except Text2SegError as problem:
            return Answer(before), {"error": message_of(problem)}
        except (MemoryError, RuntimeError) as problem:  # torch raises RuntimeError if memory runs out
            log.exception("a request failed")
            return Answer(before), {"error": f"Not enough memory, or an error in text2seg ({problem})."}

    def reply(desk: Desk, event: gr.EventData) -> Iterator[tuple[Desk, Any, Any]]:
        """Answer one request, and report the progress of a slow one until then."""
        data = _sent(event)
        page_turn = data.pop("turn", 0)
        turn, before = desk.begin(page_turn)
        try:
            request = read_request(data)
        except Text2SegError as problem:
            yield desk, shown(Answer(before)) | {"turn": page_turn, "error": message_of(problem)}, gr.skip()
            return
        if isinstance(request, Resume):
            before = kept.find(request.token) or before
        work = partial(answered, request, before, partial(desk.watch, turn))
        if isinstance(request, Everything):
            with ThreadPoolExecutor(1, thread_name_prefix="text2seg-everything") as thread:
                going = thread.submit(work)
                yield from ((desk, {"turn": page_turn, "progress": done}, gr.skip()) for done in _progress(going, desk))
                answer, more = going.result()
        else:
            answer, more = work()
        session = desk.finish(turn, partial(kept.keep, answer.session))
        if session:
            yield desk, shown(replace(answer, session=session)) | {"turn": page_turn} | more, _unsaved(session)
        else:  # the page has sent another request, or shows another image
            yield desk, gr.skip(), gr.skip()

    def stop(desk: Desk, event: gr.EventData) -> None:
        desk.stop(_sent(event).get("turn", 0))

    def shown(answer: Answer) -> Json:
        editing = answer.session.editing
        names = [*editing.queries] if editing else _known(model_pool)
        known = {"turn": 0, "error": "", "known": names, "seconds": answer.seconds}
        regions = regions_of(answer.session) if answer.has_regions else None
        return known | view_of(answer.session) | {"regions": regions} | _files(answer, canvas.GRADIO_CACHE)

    options: Any = {"show_progress": "hidden", "api_visibility": "private"}  # the page shows progress itself
    asked: Any = {**options, "trigger_mode": "multiple"}  # the page itself waits for an answer before its next request
    answers = canvas.ask(reply, [desk_state], [desk_state, canvas, unsaved], **asked)
    answers.failure(None, js=FAILED, api_visibility="private")
    canvas.stop(stop, [desk_state], queue=False, **options)

    def put(desk: Desk, given: EditSession, number: int) -> dict[Any, Any]:
        given = kept.keep(given)
        desk.put(given)
        drawn = shown(Answer(given, has_regions=True)) | {"opened": {"selected": number}}
        return {desk_state: desk, canvas: drawn, unsaved: _unsaved(given)}

    return Editor(desk_state, canvas, unsaved, put)


def _unsaved(session: EditSession) -> tuple[str, str]:
    opened = session.editing
    return (opened.job, opened.name) if opened and opened.is_unsaved(session) else NOTHING


def _sent(event: gr.EventData) -> Json:
    """Return what the page sent with an event."""
    return dict(event._data) if isinstance(event._data, dict) else {}


def _progress(work: Future[Any], desk: Desk) -> Iterator[float]:
    """Yield the share of the points that SAM has answered, until the work is done."""
    while not wait([work], POLL).done:
        yield min(1.0, desk.points / EVERYTHING.points_per_side**2)


def _known(model_pool: ModelPool) -> list[str]:
    """Return names to suggest: the closed vocabulary of the models, or nothing if they have none."""
    closed_vocabulary = model_pool.models.closed_vocabulary
    return list(closed_vocabulary.names) if closed_vocabulary else []


def _files(answer: Answer, folder: str) -> Json:
    """Return what the browser fetches separately: the image, an explanation, or an exported file."""
    files: Json = {"image": None, "why": None, "file": None}
    if answer.session.image_session:
        image = answer.session.image_session.image
        rows, columns = image.hw
        kept = _kept("image.jpg", answer.session.preview, folder)
        files["image"] = {"width": columns, "height": rows, "name": image.file_name, "file": kept}
    if answer.why and answer.map_jpeg:
        files["why"] = answer.why | {"file": _kept("map.jpg", answer.map_jpeg, folder)}
    if answer.file:
        name, content = answer.file
        files["file"] = {"name": name, "file": _kept(name, content, folder)}
    return files


def _kept(name: str, content: bytes, folder: str) -> Json:
    """Save a file for the browser. Its address contains a hash of its content, so that nobody else can guess it."""
    return gr.FileData(path=processing_utils.save_bytes_to_cache(content, name, folder)).model_dump()
