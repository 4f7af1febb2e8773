"""One visitor's work on one picture, as it is between two clicks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from text2seg.app.limits import check_request
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.document import NO_POINTS, Document, History, with_point
from text2seg.app.segment.pictures import preview
from text2seg.config import PresenceSettings, Settings
from text2seg.errors import Text2SegError
from text2seg.pipeline import Session, Text2Seg
from text2seg.queries import Query, names_in, parse_queries
from text2seg.records import Image, Segmentation


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """A picture, what was asked of it and what lies on the table. Nothing changes; acts give a new visit.

    `preview` is the picture as a JPEG for the browser, `models` are those that it is looked at with, `threshold` and
    `presence` stand in for their settings where given, and `found` is what they found last, before any correction.
    """

    session: Session | None = None
    preview: bytes = b""
    models: Text2Seg | None = None
    texts: tuple[str, ...] = ()
    threshold: float | None = None
    presence: float | None = None
    found: Segmentation | None = None
    history: History = field(default_factory=History)

    @property
    def document(self) -> Document:
        return self.history.present

    @property
    def settings(self) -> Settings:
        """Those of the models with the visitor's own in their place."""
        settings = self.models.settings if self.models else Settings()
        if self.threshold is not None:
            settings = replace(settings, points=replace(settings.points, threshold=self.threshold))
        if self.presence is not None:
            settings = replace(settings, presence=PresenceSettings(self.presence))
        return settings

    @property
    def queries(self) -> tuple[Query, ...]:
        return parse_queries(self.texts) if self.texts else ()

    def segmentation(self, numbers: frozenset[int] | None = None) -> Segmentation:
        """The pieces on the table, or those of these numbers, as the outcome of the models' last look.

        Raises:
            Text2SegError: nothing was looked for yet.
        """
        if self.found is None:
            raise Text2SegError("nothing was looked for yet; type what you want to see")
        return replace(self.found, segments=self.document.segments(numbers))


def opened(model_pool: ModelPool, image: Image) -> Visit:
    """A visit that begins with a picture."""
    return Visit(model_pool.session(image), preview(image.pixels), model_pool.models)


def looked(
    visit: Visit, model_pool: ModelPool, texts: tuple[str, ...], *, threshold: float | None, presence: float | None
) -> Visit:
    """After a look for these queries. What a person did to segments stays, the way back from it does not.

    Raises:
        Text2SegError: there is no image, or `QueryError`, a query cannot be read or the models do not know it.
    """
    if visit.session is None:
        raise Text2SegError("there is no image yet; drop one, paste one or take an example")
    session = visit.session
    if visit.models is not model_pool.models:  # they were changed, for all visitors
        session = model_pool.session(session.image)
        visit = replace(visit, session=session, models=model_pool.models)
    texts = names_in(texts)  # one each, as the page shows them from now on
    visit = replace(visit, texts=texts, threshold=threshold, presence=presence)
    check_request(visit.queries, visit.settings, session.image.hw)
    found = session.segment(list(texts), visit.settings)
    return replace(visit, found=found, history=History(visit.document.found(found.segments, found.maps.queries)))


def pointed(visit: Visit, number: int, query: str, xy: tuple[float, float], *, positive: bool) -> Visit:
    """After a click: a piece with one more point or, without a number, a new piece of the query with its first.

    Raises:
        Text2SegError: there is no such piece or query, or nothing to point at yet.
    """
    if visit.session is None or visit.found is None:
        raise Text2SegError("there is nothing to point at yet; type what you want to see")
    piece = visit.document.piece(number) if number else None
    name = piece.segment.query if piece else query
    maps = visit.found.maps
    if name not in maps.queries:
        raise Text2SegError(f"{name!r} is not among the queries any more")
    before = piece.segment.points if piece else NO_POINTS
    if not positive and not before.labels.any():
        raise Text2SegError("the first point has to be on the thing itself")
    scores = maps.scores[maps.queries.index(name)]
    points = with_point(before, xy, positive=positive, scores=scores, hw=visit.session.image.hw)
    asked = next(each for each in visit.queries if each.name == name)
    segment = visit.session.segment_points(asked, points, visit.settings)
    if not segment.area:
        raise Text2SegError("with this point nothing is left of the segment; try another place")
    document = visit.document.corrected(number, segment) if piece else visit.document.added(segment)
    return replace(visit, history=visit.history.step(document))
