"""Read what a person types: one or several queries, with their parts, wordings and negatives."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from text2seg.errors import QueryError

LONGEST = 1000
"""Largest number of letters in one query; CLIP reads about the first 350."""
MOST = 10_000
"""Largest number of names in one text."""
DEEPEST = 10
"""Largest nesting depth of quotes or brackets."""
SHOWN = 60
"""Largest number of letters of a wrong value in a message."""

_OPERATORS = str.maketrans("＋｜", "+|")
_JOINERS, _FILLERS = "\u200c\u200d", "\u115f\u1160\u2800\u3164\uffa0"
_TAGS = {chr(code) for code in range(0xE0020, 0xE0080)}  # tag characters in the flags of England, Scotland and Wales
_QUOTES = tuple(zip('"`“”„„«»‹「『《＂[(［（', '"`””“”»«›」』》＂])］）', strict=True))
_SINGLE = tuple(zip("'‘’", "'’’", strict=True))  # also apostrophes, so only pairs count as quotes
_SIGNS = ";；؛،、､，﹐﹔。｡\\n"  # always separate names
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
"""Abbreviations that end with a dot."""

Wordings = tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Query:
    """One thing to look for.

    `parts` (joined by `+`) are segmented together: their maps are averaged. Each part has one or more wordings of the
    same thing (separated by `|`), whose text features are averaged. `negatives` are subtracted from the map.
    `threshold`, `presence` and `min_area` (pixels) replace the settings for this query.
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
    """Normalise a text: remove invisible characters, collapse spaces, use `\\n` for line ends, compose letters (NFC),
    and replace full-width `+` and `|`.

    Raises:
        QueryError: It is not a text, or it has control characters or lone surrogates.
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
    """Remove characters of no width, except joiners inside emoji and scripts that need them; fillers become spaces."""
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
    """Return the names in what a person typed. Every place where people type several names uses this function.

    Names are separated by commas, semicolons, line ends or tabs (also full-width, ideographic and Arabic ones), or by
    dots (`a . b .`, `a. b.`). A list may be in brackets; names may have quotes around them, and numbers or bullets
    before them. Dots, commas and slashes inside a name are kept (`U.S. flag`, `St. Bernard`, `3.5 inch`, `1,000 dollar
    bill`). Empty names are skipped.

    >>> names_in("sheep . fire engine ."), names_in('["sheep", "fire engine"]'), names_in("St. Bernard")
    (('sheep', 'fire engine'), ('sheep', 'fire engine'), ('St. Bernard',))

    Raises:
        QueryError: It is not a text or a list of texts, a name is longer than `LONGEST` letters, or it is ambiguous
            (`a / b`, `a - b`).
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
            listed = None  # a list in YAML or Python syntax, or a name in brackets
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
        elif name:  # removed quotes or bullets may have hidden a separator
            yield from _names_in(name, depth + 1)


def _split(text: str) -> list[str]:
    """Split a text at everything that separates names."""
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
    """Return whether the dot after a word belongs to the word: `St.`, `U.S.`, `J.`, `1.`"""
    return len(word) < 2 or "." in word or not word[-1].isalpha() or word.lower() in _SHORTENED


def _without_bullets(items: list[str]) -> list[str]:
    """Remove bullets, consecutive numbers and (in front of every item) dashes from list items."""
    numbers = [_COUNTED.match(item) for item in items]
    counted = [int(found[1]) for found in numbers if found]
    first = counted[0] if len(items) > 1 and counted else 1
    if counted and counted == list(range(first, first + len(items))):
        items = [item[found.end() :] for item, found in zip(items, numbers, strict=True) if found]
    if len(items) > 1 and all(item.startswith("-") for item in items):
        items = [item[1:] for item in items]
    return [_BULLET.sub("", item).strip() for item in items]


def _name(item: str, *, is_last: bool) -> str:
    """Return one name without quotes and final dot; the last of several also without `and`."""
    if is_last:
        item = re.sub(r"^(and|or|&)\s+", "", item)
    item = "".join(each if place % 2 else _bare(each) for place, each in enumerate(_OPERATOR.split(item)))
    if len(item) > LONGEST:
        raise QueryError(f"a query has {len(item):,} letters, at most {LONGEST:,} are read: {shown(item)}")
    if found := re.search(r"\s[/\\–—-]\s", f"{item} "):
        other = "-word, without a blank, for what is not wanted" if "-" in found[0] else "| between words for one thing"
        raise QueryError(f"{shown(item)} can be read in two ways: write a comma between two things, or {other}")
    return item


def _bare(word: str) -> str:
    """Return a word without quotes and final dot."""
    word = _unquoted(word)
    if word.endswith(".") and not _is_short(word.rstrip(".").rpartition(" ")[2]):
        word = word.rstrip(".").strip()
    return word


def _unquoted(text: str) -> str:
    """Remove quotes or brackets around a text, also a single one that is left where a list was split."""
    previous = None
    while text != previous:
        previous = text
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
    """Parse one query: `+` joins parts, `|` joins wordings, ` -` starts a negative.

    >>> parse_query(" red car +bench ")  # doctest: +ELLIPSIS
    Query(name='red car+bench', parts=(('red car',), ('bench',)), negatives=(), ...)
    >>> query = parse_query("mouse|rodent -computer mouse")
    >>> query.name, query.parts, query.negatives
    ('mouse|rodent', (('mouse', 'rodent'),), ('computer mouse',))

    Raises:
        QueryError: The query, or a part, wording or negative of it, is empty or has no letter or digit, or the query
            excludes what it looks for.
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
    wanted_words = {wording.casefold() for part in parts for wording in part}
    if own := [negative for negative in negatives if negative.casefold() in wanted_words]:
        raise QueryError(f"{shown(text)} excludes {shown(own[0])}, which it looks for; leave one of them out")
    return Query("+".join("|".join(part) for part in parts), parts, negatives)


def parse_queries(texts: str | Iterable[str | Query]) -> tuple[Query, ...]:
    """Parse what a person typed into queries; see `names_in`. Equal queries (ignoring case) are returned once.

    >>> [query.name for query in parse_queries("dog, red car, Dog")]
    ['dog', 'red car']

    Args:
        texts: One text, or several texts and `Query` objects.

    Raises:
        QueryError: There is no query, one cannot be parsed, or two different queries have the same name.
    """
    queries: dict[str, Query] = {}
    for each in _listed(texts):
        found = [each] if isinstance(each, Query) else [parse_query(name) for name in names_in([each])]
        if not found and not isinstance(texts, str):
            raise QueryError(f"a query must not be empty, got {shown(each)}")
        for query in found:
            other = queries.setdefault(query.name.casefold(), query)
            if _folded(other) != _folded(query):
                raise QueryError(
                    f"two different queries are called {shown(query.name)}; leave one out, or make one of both"
                )
    if not queries:
        raise QueryError("nothing to look for: give at least one query")
    return tuple(queries.values())


def split_unions(queries: Iterable[Query]) -> tuple[tuple[Query, ...], dict[str, str]]:
    """Split queries into those of one part and those of several, which region classification cannot answer: a region
    has one query, and is no union of regions.

    Returns:
        The queries of one part, and for the name of each other query a sentence that says why it is not taken.
    """
    queries = tuple(queries)
    unions = {
        query.name: f"region classification takes no {shown(query.name)}; ask for its parts."
        for query in queries
        if len(query.parts) > 1
    }
    return tuple(query for query in queries if query.name not in unions), unions


def unions_error(sentences: Iterable[str]) -> QueryError:
    """Return the error for sentences of `split_unions`, with the way out."""
    says = " ".join(sentences)
    in_api = f'{says} The settings {{"points": {{"method": "auto"}}}} take such queries.'
    return QueryError(f"{says} --method auto takes such queries.", on_page=says, in_api=in_api)


def _folded(query: Query) -> Query:
    """Return a form that is equal for queries that look for the same thing."""
    parts = tuple(tuple(wording.casefold() for wording in part) for part in query.parts)
    return replace(query, name="x", parts=parts, negatives=tuple(each.casefold() for each in query.negatives))


def shown(value: object) -> str:
    """Return a value as messages quote it: shortened, and without control characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 2]}…{text[0] if isinstance(value, str) else ''}"
