"""What the page can ask for, checked word by word before anything is done: a request may say anything at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from text2seg.app.limits import read_picture
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.document import Document
from text2seg.app.segment.examples import examples
from text2seg.app.segment.export import File, Kind, exported
from text2seg.app.segment.pictures import encoded
from text2seg.app.segment.session import Visit, looked, opened, pointed
from text2seg.app.segment.view import why
from text2seg.app.uploads import check_upload
from text2seg.errors import Text2SegError

MOST_TEXTS, LONGEST_TEXT = 1000, 100_000  # of a request; what is too much of a query is said where queries are read


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an ask: the visit as it is now and, where it was asked for, why a segment is as it is with a
    PNG of that, or a file."""

    visit: Visit
    why: dict[str, Any] | None = None
    picture: bytes = b""
    file: File | None = None


class _Ask(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Example(_Ask):
    """Open a bundled picture and look for what there is in it."""

    do: Literal["example"]
    number: int = Field(ge=0)

    def answered(self, visit: Visit, model_pool: ModelPool) -> Answer:
        if self.number >= len(examples()):
            raise Text2SegError("there is no such example")
        example = examples()[self.number]
        visit = opened(model_pool, example.image)
        return Answer(looked(visit, model_pool, example.texts, threshold=None, presence=None))


class Open(_Ask):
    """Open an uploaded picture."""

    do: Literal["open"]
    path: Path

    def answered(self, visit: Visit, model_pool: ModelPool) -> Answer:
        return Answer(opened(model_pool, read_picture(check_upload(self.path), model_pool.settings)))


class Look(_Ask):
    """Look for these queries."""

    do: Literal["look"]
    texts: tuple[Annotated[str, Field(max_length=LONGEST_TEXT)], ...] = Field(max_length=MOST_TEXTS)
    threshold: float | None = Field(default=None, gt=0, le=1)
    presence: float | None = Field(default=None, ge=0, le=1)

    def answered(self, visit: Visit, model_pool: ModelPool) -> Answer:
        return Answer(looked(visit, model_pool, self.texts, threshold=self.threshold, presence=self.presence))


class Point(_Ask):
    """Add a point to a piece, or begin a new piece of a query with one."""

    do: Literal["point"]
    piece: int = 0
    query: str = ""
    x: float
    y: float
    positive: bool

    def answered(self, visit: Visit, model_pool: ModelPool) -> Answer:
        return Answer(pointed(visit, self.piece, self.query, (self.x, self.y), positive=self.positive))


class Edit(_Ask):
    """Do something to a piece."""

    do: Literal["delete", "split", "accept"]
    piece: int

    def answered(self, visit: Visit, model_pool: ModelPool) -> Answer:
        document = _EDITS[self.do](visit.document, self.piece)
        return Answer(replace(visit, history=visit.history.step(document)))


_EDITS: dict[str, Callable[[Document, int], Document]] = {
    "delete": Document.deleted,
    "split": Document.split,
    "accept": Document.accepted,
}


class Undo(_Ask):
    """Take a step back."""

    do: Literal["undo", "redo"]

    def answered(self, visit: Visit, model_pool: ModelPool) -> Answer:
        history = visit.history.undo() if self.do == "undo" else visit.history.redo()
        return Answer(replace(visit, history=history))


class Why(_Ask):
    """Say why a piece is as it is."""

    do: Literal["why"]
    piece: int

    def answered(self, visit: Visit, model_pool: ModelPool) -> Answer:
        told, picture = why(visit, self.piece)
        return Answer(visit, told, encoded(picture))


class Export(_Ask):
    """Make a file of these pieces."""

    do: Literal["export"]
    kind: Kind
    pieces: frozenset[int]

    def answered(self, visit: Visit, model_pool: ModelPool) -> Answer:
        return Answer(visit, file=exported(visit, self.kind, self.pieces))


Ask = Example | Open | Look | Point | Edit | Undo | Why | Export
_reader: TypeAdapter[Ask] = TypeAdapter(Annotated[Ask, Field(discriminator="do")])


def read_ask(data: object) -> Ask:
    """Raises `Text2SegError` where it is none."""
    try:
        return _reader.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Text2SegError(f"the page asked for something that cannot be done ({where}: {first['msg']})") from error
