"""The Segment tab: the requests of its page and their answers.

The browser draws the page (the *.js files beside this one, one custom element each). It sends a request; the answer is
the whole state of the session, so that the browser never guesses what the server knows. A new button is one line in
toolbar.js and one request here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import gradio as gr
import numpy as np
from gradio import processing_utils
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from text2seg.app.checks import check_upload, read_image
from text2seg.app.messages import message_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.document import Document, Piece, outline_of
from text2seg.app.segment.export import File, Kind, as_command, as_python, export_file
from text2seg.app.segment.session import (
    KEPT_SECONDS,
    EditSession,
    KeptSessions,
    add_point,
    examples,
    find,
    open_image,
    preview,
    shrink,
    take_candidate,
)
from text2seg.coco.json_file import plain_number
from text2seg.errors import Text2SegError
from text2seg.grids import map_score
from text2seg.records import Image, calibration_note
from text2seg.render.drawing import colour_of, heat, is_flat

log = logging.getLogger(__name__)

MOST_TEXTS, LONGEST_TEXT = 1000, 100_000
"""Limits of a request, in texts and characters. The limit on queries is checked where queries are read."""

START = """
const failed = () => element.querySelector("t2s-segment").failed();
document.addEventListener("text2seg-failed", failed);
element.querySelector("t2s-segment").connect({
  send: (what) => trigger("ask", what), resumedEditing: () => trigger("editing", {}), props, watch, upload });
"""
FAILED = "() => { document.dispatchEvent(new Event('text2seg-failed')); }"


@dataclass(frozen=True, slots=True)
class Answer:
    """The session after a request, and an explanation with its similarity map, or a file, if requested."""

    session: EditSession
    why: dict[str, Any] | None = None
    map_jpeg: bytes = b""
    file: File | None = None


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Example(_Request):
    """Open a bundled image and run its queries."""

    do: Literal["example"]
    number: int = Field(ge=0)

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        if self.number >= len(examples()):
            raise Text2SegError("there is no such example")
        example = examples()[self.number]
        session = open_image(model_pool, example.image)
        return Answer(find(session, model_pool, example.texts, threshold=None, presence=None))


class Resume(_Request):
    """Open the session that this page had before it was reloaded. `build` answers it."""

    do: Literal["resume"]
    token: str = Field(max_length=100)

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        return Answer(session)


class Open(_Request):
    """Open an uploaded image."""

    do: Literal["open"]
    path: Path

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        return Answer(open_image(model_pool, read_image(check_upload(self.path), model_pool.settings)))


class Find(_Request):
    """Run queries on the image."""

    do: Literal["find"]
    texts: tuple[Annotated[str, Field(max_length=LONGEST_TEXT)], ...] = Field(max_length=MOST_TEXTS)
    threshold: float | None = Field(default=None, gt=0, le=1)
    presence: float | None = Field(default=None, ge=0, le=1)

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        return Answer(find(session, model_pool, self.texts, threshold=self.threshold, presence=self.presence))


class Point(_Request):
    """Add a point to a segment, or start a new segment of a query."""

    do: Literal["point"]
    piece: int = 0
    query: str = ""
    x: float
    y: float
    positive: bool

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        return Answer(add_point(session, self.piece, self.query, (self.x, self.y), positive=self.positive))


class Edit(_Request):
    """Delete, split or accept a segment."""

    do: Literal["delete", "split", "accept"]
    piece: int

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        document = _EDITS[self.do](session.document, self.piece)
        return Answer(replace(session, history=session.history.step(document)))


_EDITS: dict[str, Callable[[Document, int], Document]] = {
    "delete": Document.deleted,
    "split": Document.split,
    "accept": Document.accepted,
}


class Undo(_Request):
    """Undo or redo one edit."""

    do: Literal["undo", "redo"]

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        history = session.history.undo() if self.do == "undo" else session.history.redo()
        return Answer(replace(session, history=history))


class Why(_Request):
    """Explain why a segment has its mask."""

    do: Literal["why"]
    piece: int

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        explanation, similarity_map = why(session, self.piece)
        return Answer(session, explanation, similarity_map)


class WhyNot(_Request):
    """Explain why a query was not found."""

    do: Literal["why-not"]
    query: str

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        explanation, similarity_map = why_not(session, self.query)
        return Answer(session, explanation, similarity_map)


class Take(_Request):
    """Take another candidate as the mask of a segment, and explain the segment again."""

    do: Literal["take"]
    piece: int
    candidate: int = Field(ge=0)

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        session = take_candidate(session, self.piece, self.candidate)
        explanation, similarity_map = why(session, self.piece)
        return Answer(session, explanation, similarity_map)


class Export(_Request):
    """Make a file of these segments."""

    do: Literal["export"]
    kind: Kind
    pieces: frozenset[int]

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        return Answer(session, file=export_file(session, self.kind, self.pieces))


Request = Example | Resume | Open | Find | Point | Edit | Undo | Why | WhyNot | Take | Export
_reader: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="do")])


def read_request(data: object) -> Request:
    """Validate what a page sent.

    Raises:
        Text2SegError: it is not a valid request.
    """
    try:
        return _reader.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Text2SegError(f"the page asked for something that cannot be done ({where}: {first['msg']})") from error


@dataclass(frozen=True, slots=True)
class Editor:
    """The editor on the page, for other tabs: the state of a visitor's `EditSession`, and the component that shows it.

    `put` returns the updates of both for a session and the number of the selected segment, 0 for none. A reloaded page
    finds this session again; if it is one of a labelling job, the component then sends the event `editing`.
    """

    session: gr.State
    canvas: gr.HTML
    put: Callable[[EditSession, int], dict[Any, Any]]


def build(model_pool: ModelPool) -> Editor:
    """Build the tab. Call it within its `gr.Tab`."""
    session, kept = gr.State(EditSession(), time_to_live=int(KEPT_SECONDS)), KeptSessions()
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

    def reply(before: EditSession, event: gr.EventData) -> tuple[EditSession, Json]:
        """Answer one request. If it fails, the session is unchanged and the answer has an error message."""
        data = dict(event._data) if isinstance(event._data, dict) else {}
        turn = data.pop("turn", 0)
        try:
            request = read_request(data)
            if isinstance(request, Resume):
                before = kept.find(request.token) or before
            answer, error = request.answer(before, model_pool), ""
            after = replace(answer.session, token=before.token, editing=before.editing)
            answer = replace(answer, session=kept.keep(after))
        except Text2SegError as problem:
            answer, error = Answer(before), message_of(problem)
        except (MemoryError, RuntimeError) as problem:  # torch raises RuntimeError if memory runs out
            log.exception("a request failed")
            answer, error = Answer(before), f"Not enough memory, or an error in text2seg ({problem})."
        return answer.session, shown(answer) | {"turn": turn, "error": error}

    def shown(answer: Answer) -> Json:
        known = {"turn": 0, "error": "", "known": _known(model_pool)}
        return known | view_of(answer.session) | _files(answer, canvas.GRADIO_CACHE)

    options: Any = {"show_progress": "hidden", "api_visibility": "private"}  # the page shows progress itself
    options["trigger_mode"] = "multiple"  # the page itself waits for an answer before its next request
    canvas.ask(reply, [session], [session, canvas], **options).failure(None, js=FAILED, api_visibility="private")

    def put(given: EditSession, number: int) -> dict[Any, Any]:
        given = kept.keep(given)
        return {session: given, canvas: shown(Answer(given)) | {"opened": {"selected": number}}}

    return Editor(session, canvas, put)


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


# ---- the state of a session as plain JSON for the page, and the explanation of one mask

Json = dict[str, Any]

MAP_SIDE = 640
"""Longest side of the similarity map in the explanation, in pixels."""


def view_of(session: EditSession) -> Json:
    """Return everything the page needs, except the image itself."""
    return {
        "token": session.token,
        "texts": list(session.asked),
        "refused": [asdict(each) for each in session.refused],
        "isUnfamiliar": session.is_unfamiliar,
        "queries": _queries(session),
        "pieces": [_piece(piece) for piece in session.document.pieces],
        "canUndo": bool(session.history.past),
        "canRedo": bool(session.history.future),
        "threshold": session.settings.points.threshold,
        "presence": _presence_threshold(session),
        "given": {"threshold": session.threshold, "presence": session.presence},
        "isLabelled": session.editing is not None,
        "command": as_command(session) if session.found else "",
        "python": as_python(session) if session.found else "",
    }


NOT_RECORDED = "This mask is in the dataset, which does not record how it was chosen. The models did not find it again."


def why(session: EditSession, number: int) -> tuple[Json, bytes]:
    """Explain a segment: return its points, candidates and reasons, and its similarity map as a JPEG.

    Raises:
        Text2SegError: there is no such segment.
    """
    piece = session.document.piece(number)
    if session.image_session is None or session.found is None:
        raise Text2SegError("nothing has been searched for yet")
    segment, maps = piece.segment, session.found.maps
    index = maps.queries.index(segment.query)
    threshold = session.found.thresholds[index] if session.found.thresholds else 0.0
    candidates: list[Json] = []
    for place, score in enumerate(segment.candidates.scores if piece.is_explained else ()):
        mask = session.image_session.candidate_mask(segment, place)
        candidates.append(
            {
                "sam": plain_number(score),
                "map": plain_number(map_score(maps.scores[index], mask)),
                "chosen": place == segment.chosen,
                "path": outline_of(replace(segment, mask=mask)).path,
            }
        )
    explanation = {
        "number": number,
        "query": segment.query,
        "colour": _colour(segment.query),
        "points": _points(piece),
        "candidates": candidates,
        "isFlat": is_flat(maps.scores[index]),
        "reason": " ".join(
            [
                _presence(segment.presence, threshold, calibrated=maps.calibrated),
                _reason(session, piece, candidates),
            ]
        )
        if piece.is_explained
        else NOT_RECORDED,
    }
    return explanation, _map_jpeg(session.image_session.image, maps.scores[index])


def why_not(session: EditSession, query: str) -> tuple[Json, bytes]:
    """Explain why a query has no segment: return the reason, and its similarity map as a JPEG.

    Raises:
        Text2SegError: the query was not searched for.
    """
    if session.image_session is None or session.found is None or query not in session.found.maps.queries:
        raise Text2SegError(f"{query!r} was not searched for; add it to the words")
    found = session.found
    index = found.maps.queries.index(query)
    presence = float(found.maps.presence[index])
    threshold = found.thresholds[index] if found.thresholds else 0.0
    note = calibration_note(found.maps.calibrated)
    if session.document.of(query) or any(segment.query == query for segment in session.document.removed):
        reason = _presence(presence, threshold, calibrated=found.maps.calibrated)
    elif presence < threshold:
        reason = (
            f"The model does not find it: presence {presence:.2f}{note}, below {threshold:.2f}. The map shows where "
            "the image is most like this word, which proves nothing. A lower “Presence” gives a mask there."
        )
    else:
        reason = (
            f"{_presence(presence, threshold, calibrated=found.maps.calibrated)} But no mask is left: each was too "
            "small, or repeated another. Add one by hand with +."
        )
    explanation = {
        "number": 0,
        "query": query,
        "colour": _colour(query),
        "points": [],
        "candidates": [],
        "isFlat": is_flat(found.maps.scores[index]),
        "reason": reason,
    }
    return explanation, _map_jpeg(session.image_session.image, found.maps.scores[index])


def _map_jpeg(image: Image, scores: NDArray[np.float32]) -> bytes:
    """Return a similarity map float32[gh, gw] over the image, as a JPEG; a flat map gives the image alone."""
    small = shrink(image.pixels, MAP_SIDE)
    return preview(small if is_flat(scores) else heat(scores, small))


def _presence(presence: float, threshold: float, *, calibrated: bool) -> str:
    if not calibrated and threshold <= 0:
        return f"Presence ({presence:.2f}) is not calibrated for these weights, so nothing counts as absent."
    if threshold <= 0:
        return f"The presence score is {presence:.2f}; no minimum is set."
    note = calibration_note(calibrated)
    if presence >= threshold:
        return f"The model finds it in the image: presence {presence:.2f}{note}, at least {threshold:.2f}."
    return f"The model does not find it (presence {presence:.2f}{note}, below {threshold:.2f}); you added it."


def _reason(session: EditSession, piece: Piece, candidates: list[Json]) -> str:
    """Return one or two sentences: which candidate was chosen, by which rule."""
    chosen = piece.segment.chosen
    if len(candidates) == 1:
        return "SAM returned one mask only."
    best_of_sam = max(range(len(candidates)), key=lambda index: candidates[index]["sam"])
    name = f"Candidate {chosen + 1} was chosen"
    if piece.by_hand and chosen != best_of_sam:
        return f"You chose candidate {chosen + 1}; SAM prefers candidate {best_of_sam + 1}."
    if piece.by_hand or session.settings.masks.choice == "sam":
        return f"{name}: it has the highest SAM score{' for your points' if piece.placed else ''}."
    if chosen == best_of_sam:
        return f"{name}: it has the highest SAM score, and it fits the similarity map."
    return (
        f"{name}: SAM prefers candidate {best_of_sam + 1}, but candidate {chosen + 1} fits the similarity map better. "
        "The map is high inside it and low outside."
    )


def _points(piece: Piece) -> list[Json]:
    points = piece.segment.points
    return [
        {
            "x": plain_number(x),
            "y": plain_number(y),
            "positive": bool(label),
            "map": plain_number(similarity),
            "own": (x, y) in piece.placed,
        }
        for (x, y), label, similarity in zip(points.xy.tolist(), points.labels, points.similarity, strict=True)
    ]


def _queries(session: EditSession) -> list[Json]:
    """Return each query with its verdict after all edits."""
    if session.found is None:
        return []
    now = session.segmentation()
    removed = {segment.query for segment in session.document.removed}
    queries = []
    for name in now.maps.queries:
        found = bool(now.of(name))
        verdict = "deleted" if not found and name in removed else now.verdict(name)
        queries.append({"name": name, "colour": _colour(name), "verdict": verdict, "found": found})
    return queries


def _piece(piece: Piece) -> Json:
    return {
        "number": piece.number,
        "query": piece.segment.query,
        "colour": _colour(piece.segment.query),
        "path": piece.outline.path,
        "parts": piece.outline.parts,
        "area": piece.outline.area,
        "score": plain_number(piece.segment.sam_score),
        "points": _points(piece),
        "byHand": piece.by_hand,
        "accepted": piece.accepted,
    }


def _presence_threshold(session: EditSession) -> float:
    """Return the position of the presence slider: the visitor's value, or the threshold of the models."""
    if session.presence is not None:
        return session.presence
    return plain_number(max(session.found.thresholds, default=0.0)) if session.found else 0.0


def _colour(query: str) -> str:
    red, green, blue = colour_of(query)
    return f"#{red:02x}{green:02x}{blue:02x}"
