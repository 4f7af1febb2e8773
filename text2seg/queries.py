"""Queries, prompt templates and the wordings that the models know."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice
from string import punctuation
from typing import TypeVar

from text2seg.errors import QueryError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# The 80 ImageNet templates of OpenAI's CLIP and the five "in the scene" ones of CLIP Surgery.
TEMPLATES: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)


# Things that images often show: what a query has to beat before it counts as present.
DISTRACTORS: tuple[str, ...] = tuple(
    (
        "person, man, woman, child, face, hand, dog, cat, horse, cow, sheep, bird, fish, bear, elephant, "
        "zebra, giraffe, insect, car, bus, truck, train, bicycle, motorcycle, boat, airplane, traffic light, "
        "sign, bench, chair, table, sofa, bed, lamp, door, window, curtain, carpet, mirror, clock, vase, "
        "book, bottle, cup, glass, plate, bowl, knife, fork, spoon, bread, cake, pizza, sandwich, fruit, "
        "apple, banana, orange, vegetable, carrot, meat, phone, computer, keyboard, screen, television, "
        "camera, bag, umbrella, hat, shoe, shirt, dress, ball, toy, guitar, sink, toilet, refrigerator, oven, "
        "tree, flower, grass, leaf, plant, rock, sand, mountain, hill, field, forest, river, lake, sea, "
        "beach, snow, sky, cloud, sun, road, pavement, bridge, building, house, wall, roof, fence, floor, "
        "ceiling, stairs, water, fire, smoke, text, painting, paper, box, tool, wheel, shadow, light, "
    )
    .strip(", ")
    .split(", ")
)

LONGEST = 1000
"""Letters of one query; CLIP reads the first 350 or so."""
MOST = 10_000
"""Names in one text."""
DEEPEST = 10
"""How often a list may stand in quotes or brackets of a list."""
SHOWN = 60
"""So much of a wrong value stands in a message."""

_OPERATORS = str.maketrans("＋｜", "+|")
_JOINERS, _FILLERS = "\u200c\u200d", "\u115f\u1160\u2800\u3164\uffa0"
_TAGS = {chr(code) for code in range(0xE0020, 0xE0080)}  # they spell the flags of England, Scotland and Wales
_QUOTES = tuple(zip('"`“”„„«»‹「『《＂[(［（', '"`””“”»«›」』》＂])］）', strict=True))
_SINGLE = tuple(zip("'‘’", "'’’", strict=True))  # also apostrophes, so they count in pairs only
_SIGNS = ";；؛،、､，﹐﹔。｡\\n"  # between names, wherever they stand
_BETWEEN = re.compile(rf"[,{_SIGNS}]|\s[•·‣▪●◦]\s")
_BETWEEN_WORDS = re.compile(rf"(?<!\d),|,(?!\d)|[{_SIGNS}]|\s[•·‣▪●◦]\s")  # 1,000 and 3,5 are numbers
_DOT_ALONE = re.compile(r"(?<!\S)\.(?!\S)|\s\.(?!\S)")
_DOT_BEHIND = re.compile(r"(?<!\S)(\S+)\.\s+(?=\S)")
_NUMBERED = re.compile(r"\(?1[.)]\s.*\s\(?2[.)]\s", re.DOTALL)
_NUMBER = re.compile(r"(?:^|\s)\(?\d{1,3}[.)]\s")
_COUNTED = re.compile(r"\(?(\d{1,3})[.)]\s+")
_OPERATOR = re.compile(r"(\s*[|+]\s*|\s-(?!\s))")
_BULLET = re.compile(r"^(?:[-*–—]\s+|[•·‣▪●◦]\s*)")
_SHORTENED = set(
    re.findall(
        r"\w+",
        "approx ave blvd capt cf co col dept dr etc ex fig ft gen hon inc jr lt ltd max min mr mrs ms mt no ph prof rd "
        "rev sgt sr st ste vol vs",
    )
)
"""Words that a dot belongs to."""

Wordings = tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Query:
    """What a person looks for, and what they want of it.

    `parts` are joined by `+`: their maps are averaged and they give one segment together; a plain query has one.
    Each part has one or more wordings of the same thing (`|`), whose text features are averaged. What the `negatives`
    light up is taken off the map. `threshold` (of the map, for points), `presence` and `min_area` in pixels bind this
    query in place of the settings.
    """

    name: str
    parts: tuple[Wordings, ...]
    negatives: tuple[str, ...] = ()
    threshold: float | None = None
    presence: float | None = None
    min_area: int = 0

    def __post_init__(self) -> None:
        texts = (self.name, *self.negatives, *(wording for part in self.parts for wording in part))
        if not self.parts or not all(self.parts) or not all(text.strip() for text in texts):
            raise QueryError(f"a query must not be empty, nor a part, wording or negative of it: {self.name!r}")


def cleaned(text: str) -> str:
    """A text as it was meant: signs that nobody sees left out, every gap one blank, every line end a `\\n`, composed
    letters, and the full-width forms of `+` and `|` as those.

    Raises:
        QueryError: it is no text, or has control characters or halves of characters in it.
    """
    if not isinstance(text, str):
        raise QueryError(f"a query is a text, got {shown(text)}")
    text = unicodedata.normalize("NFC", text).translate(_OPERATORS)
    lines = [" ".join(_visible(line).split()) for line in text.splitlines()]
    for letter in "".join(lines):
        if unicodedata.category(letter) in ("Cc", "Cs"):
            raise QueryError(f"a query must not have control characters, got {shown(text)}")
    return "\n".join(lines)


def _visible(line: str) -> str:
    """Without signs of no width, but for joiners within emoji and scripts that need them; fillers become blanks."""
    line = "".join(
        " " if letter in _FILLERS else letter
        for letter in line
        if letter in _JOINERS or letter in _TAGS or unicodedata.category(letter) != "Cf"
    )
    kept = []
    for place, letter in enumerate(line):
        around = line[max(place - 1, 0) : place] + line[place + 1 : place + 2]
        joins = len(around) == 2 and not around.isascii() and not any(map(_parts, around))
        if letter not in _JOINERS or joins:
            kept.append(letter)
    return "".join(kept)


def _parts(letter: str) -> bool:
    return letter.isspace() or letter in _JOINERS


def names_in(texts: str | Iterable[str]) -> tuple[str, ...]:
    """The names in what a person typed. The one rule for every place where several may stand in one line.

    Between names stand commas, semicolons, line ends or tabs, also the full-width, ideographic and Arabic ones, or dots
    (`a . b .`, `a. b.`); a list may have brackets around it and quotes around its names, numbers or bullets before
    them. A dot, comma or slash within a name stays (`U.S. flag`, `St. Bernard`, `3.5 inch`, `1,000 dollar bill`).
    What stands between two commas is no name and is passed over.

    >>> names_in("sheep . fire engine ."), names_in('["sheep", "fire engine"]'), names_in("St. Bernard")
    (('sheep', 'fire engine'), ('sheep', 'fire engine'), ('St. Bernard',))

    Raises:
        QueryError: it is no text or list of texts, a name is longer than `LONGEST` letters, or it can be read in two
            ways (`a / b`, `a - b`).
    """
    names = tuple(islice((name for text in _listed(texts) for name in _names_in(text)), MOST + 1))
    if len(names) > MOST:
        raise QueryError(f"there are more than {MOST:,} names; ask for fewer at once")
    return names


def _listed(texts: str | Iterable[T]) -> Iterable[str | T]:
    if not isinstance(texts, str) and (isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable)):
        raise QueryError(f"queries are one text or a list of texts, got {shown(texts)}")
    return [texts] if isinstance(texts, str) else texts


def _names_in(text: str, depth: int = 0) -> Iterator[str]:
    if depth > DEEPEST:
        raise QueryError(f"this is no list of names: {shown(text)}; write names with commas between them")
    text = cleaned(text.replace("\t", "\n") if isinstance(text, str) else text).strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError):
            listed = None  # as YAML and Python write lists, or a name in brackets
        if isinstance(listed, list):
            for each in listed:
                yield from _names_in(each, depth + 1)
            return
    if text.startswith("{") and text.endswith("}"):
        raise QueryError(f"this is no list of names: {shown(text)}; write names with commas between them")
    items = _without_bullets([item for item in _split(_unquoted(text)) if item])
    for place, item in enumerate(items):
        name = _name(item, is_last=0 < place == len(items) - 1)
        if name == text:
            yield name
        elif name:  # what was around it may have kept something apart
            yield from _names_in(name, depth + 1)


def _split(text: str) -> list[str]:
    """Pieces of a text, by all that stands between names."""
    has_letters = any(map(str.isalpha, text))
    if _NUMBERED.match(text):
        text = _NUMBER.sub("\n", text)
    text = _DOT_ALONE.sub("\n", text)
    pieces = []
    for piece in _BETWEEN_WORDS.split(text) if has_letters else _BETWEEN.split(text):
        start = 0
        for dot in _DOT_BEHIND.finditer(piece):
            if not _is_short(dot[1]):
                pieces.append(piece[start : dot.end(1)])
                start = dot.end()
        pieces.append(piece[start:])
    return [piece.strip() for piece in pieces]


def _is_short(word: str) -> bool:
    """Whether the dot behind a word belongs to it: `St.`, `U.S.`, `J.`, `1.`"""
    return len(word) < 2 or "." in word or not word[-1].isalpha() or word.lower() in _SHORTENED


def _without_bullets(items: list[str]) -> list[str]:
    """List items without what stands before each: a bullet, a number that counts them, or, of several, a dash."""
    numbers = [_COUNTED.match(item) for item in items]
    counted = [int(found[1]) for found in numbers if found]
    first = counted[0] if len(items) > 1 and counted else 1
    if counted and counted == list(range(first, first + len(items))):
        items = [item[found.end() :] for item, found in zip(items, numbers, strict=True) if found]
    if len(items) > 1 and all(item.startswith("-") for item in items):
        items = [item[1:] for item in items]
    return [_BULLET.sub("", item).strip() for item in items]


def _name(item: str, *, is_last: bool) -> str:
    """One name without quotes and the dot behind it, the last of several without `and`."""
    if is_last:
        item = re.sub(r"^(and|or|&)\s+", "", item)
    item = "".join(each if place % 2 else _unquoted(each) for place, each in enumerate(_OPERATOR.split(item)))
    if item.endswith(".") and not _is_short(item.rstrip(".").rpartition(" ")[2]):
        item = item.rstrip(".").strip()
    if len(item) > LONGEST:
        raise QueryError(f"a query has {len(item):,} letters, at most {LONGEST:,} are read: {shown(item)}")
    if found := re.search(r"\s[/\\–—-]\s", f"{item} "):
        other = "-word, without a blank, for what is not wanted" if "-" in found[0] else "| between words for one thing"
        raise QueryError(f"{shown(item)} can be read in two ways: write a comma between two things, or {other}")
    return item


def _unquoted(text: str) -> str:
    """Without quotes or brackets around it, or the one that is left where a list was cut between two."""
    before = None
    while text != before:
        before = text
        text = _without_pair(text.strip())
    return text


def _without_pair(text: str) -> str:
    for opening, closing in (*_QUOTES, *_SINGLE):
        around = len(text) > 1 and text[0] == opening and text[-1] == closing
        if around and not {opening, closing} & set(text[1:-1]):
            return text[1:-1]
    for opening, closing in _QUOTES:
        alone = text.count(opening) % 2 if opening == closing else (opening in text) != (closing in text)
        if alone and text.startswith(opening):
            return text[1:]
        if alone and text.endswith(closing) and not text[-2:-1].isdigit():  # 24" are inches
            return text[:-1]
    return text


def parse_query(text: str) -> Query:
    """Read one query: `+` joins parts, `|` parts' wordings, ` -` sets negatives off. It is one whatever else is in it.

    >>> parse_query(" red car +bench ")  # doctest: +ELLIPSIS
    Query(name='red car+bench', parts=(('red car',), ('bench',)), negatives=(), ...)
    >>> query = parse_query("mouse|rodent -computer mouse")
    >>> query.name, query.parts, query.negatives
    ('mouse|rodent', (('mouse', 'rodent'),), ('computer mouse',))

    Raises:
        QueryError: the query, or a part, wording or negative of it, is empty or has neither letter nor digit.
    """
    wanted, *unwanted = re.split(r"\s-", cleaned(text))
    parts = tuple(tuple(" ".join(wording.split()) for wording in part.split("|")) for part in wanted.split("+"))
    negatives = tuple(" ".join(negative.split()) for negative in unwanted)
    wordings = [*(wording for part in parts for wording in part), *negatives]
    if not all(wordings):
        raise QueryError(f"a part is empty in {shown(text)}" if text.strip() else "a query must not be empty")
    for wording in wordings:
        if not any(
            unicodedata.category(letter)[0] in "LN" or unicodedata.category(letter) == "So" for letter in wording
        ):
            raise QueryError(f"{shown(wording)} names nothing: a query needs a letter or a digit")
    if wanted.startswith("-"):
        raise QueryError(f"{shown(text)} begins with what is not wanted: name before it what is")
    return Query("+".join("|".join(part) for part in parts), parts, negatives)


def parse_queries(texts: str | Iterable[str | Query]) -> tuple[Query, ...]:
    """Read queries from what a person typed, as `names_in` reads it; a `Query` is taken as it is. The same query twice,
    letter case aside, is one.

    >>> [query.name for query in parse_queries("dog, red car, Dog")]
    ['dog', 'red car']

    Raises:
        QueryError: there is none, one cannot be read, or two that differ have one name.
    """
    queries: dict[str, Query] = {}
    for each in _listed(texts):
        found = [each] if isinstance(each, Query) else [parse_query(name) for name in names_in([each])]
        if not found and not isinstance(texts, str):
            raise QueryError(f"a query must not be empty, got {shown(each)}")
        for query in found:
            other = queries.setdefault(query.name.casefold(), query)
            if _folded(other) != _folded(query):
                raise QueryError(f"two different queries are called {shown(query.name)}; put what they say into one")
    if not queries:
        raise QueryError("nothing to look for: give at least one query")
    return tuple(queries.values())


def _folded(query: Query) -> Query:
    """The same for queries that ask for the same thing."""
    parts = tuple(tuple(wording.casefold() for wording in part) for part in query.parts)
    return replace(query, name="x", parts=parts, negatives=tuple(each.casefold() for each in query.negatives))


def shown(value: object) -> str:
    """A value as messages repeat it: not too much of it, and nothing that a terminal would obey."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 2]}…{text[0] if isinstance(value, str) else ''}"


class Things:
    """The things that a model knows, each with its wordings; the demo model knows no others."""

    def __init__(self, wordings: Mapping[str, Sequence[str]]) -> None:
        self.names = tuple(wordings)
        self._words = {wording.lower() for words in wordings.values() for wording in words} | set(self.names)

    @classmethod
    def of_demo(cls) -> Things:
        text = resources.files("text2seg.demo").joinpath("things.json").read_text(encoding="utf-8")
        return cls(json.loads(text))

    def check(self, wording: str) -> None:
        """Let a wording pass that is known, or has a known one in it ("a big red car").

        Raises:
            QueryError: names the closest that are known, and where all of them are listed.
        """
        words = f" {' '.join(word.strip(punctuation) for word in wording.lower().split())} "
        if any(f" {known} " in words or f" {known}s " in words for known in self._words):
            return
        close = difflib.get_close_matches(wording.lower()[:SHOWN], sorted(self._words), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        says = f"the demo model does not know {shown(wording)}.{hint} It knows {len(self.names)} drawn things"
        raise QueryError(
            f"{says} (text2seg checkpoints show demo); for everything else choose a real model, e.g. --model base.",
            on_page=f"{says}; open “At work” for the list. For everything else this app needs other models.",
        )
