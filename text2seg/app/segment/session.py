"""One visitor's work on one image, and the bundled examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from text2seg.app.checks import check_request
from text2seg.app.messages import message_of
from text2seg.app.model_pool import ModelPool, SharedSession
from text2seg.app.segment.document import Document, History
from text2seg.app.settings import MOST_QUERIES
from text2seg.clip.maps import texts_of
from text2seg.config import PresenceSettings, Settings
from text2seg.demo import IMAGES
from text2seg.errors import QueryError, Text2SegError
from text2seg.io.images import load_image
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query, names_in, parse_queries, parse_query
from text2seg.records import Image, Segmentation, SimilarityMaps
from text2seg.render.panels import shrunk
from text2seg.sam.automatic import Region
from text2seg.vocabulary import ClosedVocabulary

if TYPE_CHECKING:
    from text2seg.app.folder.editing import Editing

SCENES = {
    "scene_0019.jpg": ("sheep", "fire engine", "koala"),
    "scene_0012.jpg": ("shirt", "frog", "horse"),
    "scene_0022.jpg": ("umbrella", "mouse+alarm clock"),
    "scene_0004.jpg": ("dog", "guitar", "elephant"),
    "scene_0009.jpg": ("helicopter", "sun", "penguin"),
    "scene_0015.jpg": ("rose", "pineapple"),
}
"""File names of the examples, with their queries. Some query things that are absent, or two things together."""
THUMBNAIL_SIDE = 200
"""Longest side of a thumbnail, in pixels."""
PREVIEW_SIDE = 2048
"""Longest side of the image in the browser, in pixels. Masks still have the full size."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A text that was not searched for, why, and the wording at fault with known ones of a similar spelling."""

    text: str
    reason: str
    wording: str = ""
    close: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """The last search. `asked` are all its texts, `texts` those that were searched for, and `refused` the others;
    `half_known` has a sentence for each text of which the models know only some words. `threshold` and
    `presence` override the settings of the models if given; `moved` is the one that changed last. `found` is the result
    of the models, before any edit. `given` are queries that texts cannot express, such as the categories of an
    ontology."""

    asked: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    half_known: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    presence: float | None = None
    moved: str = ""
    found: Segmentation | None = None
    given: tuple[Query, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class EditSession(Search):
    """An image, the last search and the edited segments. Immutable: each edit returns a new session.

    `preview` is the image as a JPEG for the browser; `regions` is everything that was found without words.
    `is_unfamiliar`: the image is a photograph, and the models know drawings only. `token` names the session in the
    visitor's browser.
    """

    image_session: SharedSession | None = None
    preview: bytes = b""
    models: Text2Seg | None = None
    regions: tuple[Region, ...] = ()
    history: History = field(default_factory=History)
    is_unfamiliar: bool = False
    token: str = ""
    shown: tuple[str, ...] = ()
    """Names in the order in which they were first shown, so that a new one changes no colour of another."""
    editing: Editing | None = None
    """What is edited, if the segments are annotations of a labelling job."""

    @property
    def opened(self) -> SharedSession:
        """The session of the models on the image. Raises `Text2SegError` if there is no image."""
        if self.image_session is None:
            raise Text2SegError("there is no image yet; drop one, paste one or choose an example")
        return self.image_session

    @property
    def document(self) -> Document:
        return self.history.present

    @property
    def settings(self) -> Settings:
        """Settings of the models, with the visitor's threshold and presence."""
        settings = self.models.settings if self.models else Settings()
        if self.threshold is not None:
            settings = replace(settings, points=replace(settings.points, threshold=self.threshold))
        if self.presence is not None:
            settings = replace(settings, presence=PresenceSettings(self.presence))
        return settings

    @property
    def queries(self) -> tuple[Query, ...]:
        return self.given or (parse_queries(self.texts) if self.texts else ())

    @property
    def is_answered(self) -> bool:
        """Whether there is a result or a segment."""
        return self.found is not None or bool(self.document.pieces)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of segments that are no queries."""
        queries = self.found.maps.queries if self.found else ()
        names = dict.fromkeys(piece.segment.query for piece in self.document.pieces)
        return tuple(name for name in names if name not in queries)

    def searched(self, document: Document, *, is_again: bool) -> EditSession:
        """Return the session with the document after a search; see `History.search`."""
        search = Search(**{each.name: getattr(self, each.name) for each in fields(Search)})
        names = [piece.segment.query for piece in self.document.pieces]
        shown = tuple(dict.fromkeys([*self.shown, *names, *(self.found.maps.queries if self.found else ())]))
        history = self.history.search(replace(document, search=search), is_again=is_again)
        return replace(self, shown=shown, history=history)

    def at(self, history: History) -> EditSession:
        """Return the session at another place of its history, with the search of that time."""
        search = history.present.search or Search()
        return replace(self, history=history, **{each.name: getattr(search, each.name) for each in fields(Search)})

    def segmentation(self, numbers: frozenset[int] | None = None) -> Segmentation:
        """Return the last result with the edited segments, or only those with these numbers. Names that were not
        searched for have flat maps and a presence of 1.

        Raises:
            Text2SegError: there is no image.
        """
        image, names = self.opened.image, self.names
        found = self.found or Segmentation(image, (), SimilarityMaps.flat((), image.hw))
        maps, flat = found.maps, SimilarityMaps.flat(names, image.hw, found.maps.grid_hw)
        return replace(
            found,
            segments=self.document.segments(numbers),
            maps=replace(
                maps,
                queries=(*maps.queries, *names),
                scores=np.concatenate([maps.scores, flat.scores]),
                presence=np.concatenate([maps.presence, flat.presence]),
            ),
            thresholds=(*found.thresholds, *(0.0 for _ in names)) if found.thresholds else (),
        )


def open_image(model_pool: ModelPool, image: Image) -> EditSession:
    """Return a new session on an image."""
    image_session = model_pool.session(image)
    models = image_session.models
    return EditSession(
        image_session=image_session,
        preview=preview(image.pixels),
        models=models,
        is_unfamiliar=models.is_unfamiliar(image),
    )


def find(
    session: EditSession,
    model_pool: ModelPool,
    texts: tuple[str, ...],
    *,
    threshold: float | None,
    presence: float | None,
) -> EditSession:
    """Search for queries. Edited segments are kept while their query is there. The search can be undone.

    In an image of a labelling job, the words are categories of the job. A text that cannot be read, or that the models
    do not know, is in `refused` and does not stop the others.

    Raises:
        Text2SegError: there is no image.
        QueryError: there are too many queries, or two that contradict each other.
    """
    image_session = session.opened
    if session.models is not model_pool.models:  # somebody switched the models, which all visitors share
        image_session = model_pool.session(image_session.image)
        models = image_session.models
        unfamiliar = models.is_unfamiliar(image_session.image)
        session = replace(session, image_session=image_session, models=models, is_unfamiliar=unfamiliar, regions=())
    before, given = session.asked, tuple[Query, ...]()
    moved = "threshold" if threshold != session.threshold else "presence" if presence != session.presence else ""
    is_same_slider = moved in ("", session.moved)
    session = replace(session, threshold=threshold, presence=presence, moved=moved)
    if session.editing:
        asked, refused, given = session.editing.categories_of(texts)
    else:
        asked, refused = _read(image_session.models, texts, session.settings)
    faulty = {each.text for each in refused}
    texts = tuple(text for text in asked if text not in faulty)
    half_known = {} if session.editing else _half_known(image_session.models.closed_vocabulary, texts)
    session = replace(session, asked=asked, texts=texts, refused=refused, half_known=half_known, given=given)
    is_again = asked == before and is_same_slider
    if not texts:
        session = replace(session, found=None)
        return session.searched(session.document.found((), ()), is_again=is_again)
    check_request(session.queries, session.settings, image_session.image.hw)
    found = image_session.segment(session.given or list(texts), session.settings)
    document = session.document.found(found.segments, found.maps.queries)
    return replace(session, found=found).searched(document, is_again=is_again)


def _read(models: Text2Seg, texts: Sequence[str], settings: Settings) -> tuple[tuple[str, ...], tuple[Refused, ...]]:
    """Return the names in the texts, one each, and those that cannot be searched for; a text that cannot be read counts
    as one name."""
    names: dict[str, Query] = {}
    refused: dict[str, Refused] = {}
    asked: list[str] = []
    for text in texts:
        try:
            found = names_in([text])
        except QueryError as error:
            found = (text,)
            refused[text] = _unread(text, error)
        asked += found
        for name in found:
            try:
                if name not in refused:
                    names[name] = parse_query(name)
            except QueryError as error:
                refused[name] = _unread(name, error)
    asked = _without_repeats(asked, names)
    names = {name: names[name] for name in asked if name in names}
    if len(names) > MOST_QUERIES:
        raise QueryError(f"{len(names)} queries are too many; the limit is {MOST_QUERIES}")
    if names:
        _, unknown = models.known_queries(names.values(), settings)
        without_case = {name.casefold(): sentence for name, sentence in unknown.items()}
        refused |= {
            name: _unknown(name, query, without_case[query.name.casefold()], models.closed_vocabulary)
            for name, query in names.items()
            if query.name.casefold() in without_case
        }
    return tuple(asked), tuple(refused[name] for name in asked if name in refused)


def _without_repeats(asked: Sequence[str], queries: Mapping[str, Query]) -> list[str]:
    """Return the texts without those that another one takes the place of: of several spellings the first counts, and of
    several queries with one name, such as `mouse` and `mouse -computer mouse`, the last."""
    spellings: dict[str, str] = {}
    for text in asked:
        spellings.setdefault(text.casefold(), text)
    last = {queries[text].name.casefold(): text for text in spellings.values() if text in queries}
    return [text for text in spellings.values() if text not in queries or last[queries[text].name.casefold()] == text]


def _half_known(vocabulary: ClosedVocabulary | None, texts: Sequence[str]) -> dict[str, str]:
    """Return for each text of which the models know only some words a sentence that says which."""
    if vocabulary is None:
        return {}
    says = {text: vocabulary.half_known(parse_query(text)) for text in texts}
    return {text: f"{sentence[:1].upper()}{sentence[1:]}" for text, sentence in says.items() if sentence}


def _unread(text: str, error: QueryError) -> Refused:
    return Refused(text, f"{message_of(error).rstrip('.')}.")


def _unknown(name: str, query: Query, sentence: str, vocabulary: ClosedVocabulary | None) -> Refused:
    """Return a refused name: with its first unknown wording, or with the sentence of the models if all are known."""
    wordings = (wording for wordings in texts_of([query]) for wording in wordings)
    wording = next((each for each in wordings if vocabulary and not vocabulary.knows(each)), "")
    if vocabulary is None or not wording:
        return _unread(name, QueryError(sentence))
    known = f"the {len(vocabulary.names)} {vocabulary.things} that the {vocabulary.model} model knows"
    reason = f"“{wording}” is not among {known}."
    return Refused(name, reason, wording, tuple(vocabulary.close_to(wording)))


@dataclass(frozen=True, slots=True, eq=False)
class ExampleImage:
    """A bundled image, its queries, and its thumbnail as a data URL."""

    image: Image
    texts: tuple[str, ...]
    thumbnail: str


@cache
def examples() -> tuple[ExampleImage, ...]:
    """Return all examples. They are read once."""
    return tuple(_example(name, texts) for name, texts in SCENES.items())


def _example(name: str, texts: tuple[str, ...]) -> ExampleImage:
    image = load_image(IMAGES / name)
    thumbnail = base64.b64encode(preview(image.pixels, longest=THUMBNAIL_SIDE)).decode()
    return ExampleImage(image, texts, f"data:image/jpeg;base64,{thumbnail}")


def preview(pixels: NDArray[np.uint8], *, longest: int = PREVIEW_SIDE) -> bytes:
    """Return RGB pixels uint8[h, w, 3] as a JPEG, shrunk if the longest side exceeds `longest` pixels."""
    file = io.BytesIO()
    PillowImage.fromarray(shrunk(pixels, longest)).save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()
