"""The requests of the page and their answers. Each request is one class with one function, `answer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from text2seg.app.checks import check_upload, read_image
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.document import Document, History
from text2seg.app.segment.edits import (
    add_point,
    draw_box,
    find_everything,
    give_name,
    pick,
    seconds_for_everything,
    take_candidate,
)
from text2seg.app.segment.export import File, Kind, export_file
from text2seg.app.segment.session import EditSession, examples, find, open_image
from text2seg.app.segment.view import why, why_not
from text2seg.errors import Text2SegError
from text2seg.explain.estimate import SLOW
from text2seg.settings_fields import fault

MOST_TEXTS, LONGEST_TEXT, LONGEST_FILE_NAME = 1000, 100_000, 1000
"""Limits of a request, in texts and characters. The limit on queries is checked where queries are read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The session after a request, and what was asked for: an explanation with its similarity map, a file, all regions,
    or how many seconds these take."""

    session: EditSession
    why: dict[str, Any] | None = None
    map_jpeg: bytes = b""
    file: File | None = None
    has_regions: bool = False
    seconds: float = 0.0


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def check_not_editing(session: EditSession) -> None:
    """Raise `Text2SegError` if the image of a labelling job is edited, which another image would replace."""
    if session.editing:
        raise Text2SegError(
            f"you edit {session.editing.name} of a job; save it and go back, or go back without saving, then open "
            "another image"
        )


class Example(_Request):
    """Open a bundled image and run its queries."""

    do: Literal["example"]
    number: int = Field(ge=0)

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        check_not_editing(session)
        if self.number >= len(examples()):
            raise Text2SegError("there is no such example")
        example = examples()[self.number]
        session = find(open_image(model_pool, example.image), model_pool, example.texts, threshold=None, presence=None)
        return Answer(replace(session, history=History(session.document)))  # an example begins with its search


class Resume(_Request):
    """Open the session that this page had before it was reloaded. `build` answers it."""

    do: Literal["resume"]
    token: str = Field(max_length=100)

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        return Answer(session, has_regions=True)


class Open(_Request):
    """Open an uploaded image. `name` is the visitor's name of the file; that of the upload may lack letters of it."""

    do: Literal["open"]
    path: Path
    name: str = Field(default="", max_length=LONGEST_FILE_NAME)

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        check_not_editing(session)
        image = read_image(check_upload(self.path), model_pool.settings, name=self.name)
        return Answer(open_image(model_pool, image))


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


class Everything(_Request):
    """Find everything in the image without words. If that is slow, the answer first says how long it takes, and the
    page asks again when the visitor is `sure`."""

    do: Literal["everything"]
    sure: bool = False

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        if session.regions:
            return Answer(session, has_regions=True)
        if not self.sure and (seconds := seconds_for_everything(session)) >= SLOW:
            return Answer(session, seconds=seconds)
        return Answer(find_everything(session), has_regions=True)


class Pick(_Request):
    """Make a segment of one of the regions."""

    do: Literal["pick"]
    region: int

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        return Answer(pick(session, self.region))


class Box(_Request):
    """Make a segment of what is in a box, with a query or name, or without."""

    do: Literal["box"]
    query: str = ""
    box: tuple[float, float, float, float]

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        return Answer(draw_box(session, self.box, self.query))


class Name(_Request):
    """Give a segment another name."""

    do: Literal["name"]
    piece: int
    name: str = Field(max_length=LONGEST_TEXT)

    def answer(self, session: EditSession, model_pool: ModelPool) -> Answer:
        return Answer(give_name(session, self.piece, self.name))


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
        return Answer(session.at(session.history.undo() if self.do == "undo" else session.history.redo()))


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


Request = (
    Example | Resume | Open | Find | Everything | Pick | Box | Name | Point | Edit | Undo | Why | WhyNot | Take | Export
)
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
        raise Text2SegError(f"the page asked for something that cannot be done ({where}: {fault(first)})") from error
