"""Categories and ontologies as frozen records, made from files or queries, and the keys of a category in a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from text2seg.errors import OntologyError, QueryError
from text2seg.io.names import similar
from text2seg.queries import Query, Wordings, cleaned, names_in, parse_queries, parse_query

SUPERCATEGORY = "thing"


@dataclass(frozen=True, slots=True)
class Category:
    """One category to find.

    `queries` are its wordings (`a+b` is one wording of two parts), `negative_queries` what it is easily mistaken for.
    `threshold` and `presence` are None if the settings of the run decide. `min_area` is in pixels.
    """

    name: str
    id: int
    supercategory: str
    queries: tuple[str, ...]
    negative_queries: tuple[str, ...]
    threshold: float | None
    presence: float | None
    min_area: int
    colour: str | None


@dataclass(frozen=True, slots=True)
class Ontology:
    """All categories of a job, in the order of the file.

    Raises:
        OntologyError: there is no category, or two share a name (ignoring case) or an id.
    """

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        if not self.categories:
            raise OntologyError("an ontology needs at least one category")
        for what, values in (
            ("the name", [category.name.casefold() for category in self.categories]),
            ("the id", [category.id for category in self.categories]),
        ):
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                raise OntologyError(f"{count} categories share {what} {value!r}; give each its own")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    def coco_categories(self) -> list[dict[str, Any]]:
        """Return the `categories` of a COCO file. A colour becomes `color`, [red, green, blue], as in panoptic ones."""
        return [
            {"id": category.id, "name": category.name, "supercategory": category.supercategory}
            | ({"color": list(bytes.fromhex(category.colour[1:]))} if category.colour else {})
            for category in self.categories
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with defaults and without None. `read_ontology` can read them from a file."""
        return {
            "categories": [
                {
                    key: list(value) if isinstance(value, tuple) else value
                    for key in Category.__slots__
                    if (value := getattr(category, key)) is not None
                }
                for category in self.categories
            ]
        }


def ontology_of_queries(queries: str | Iterable[str | Query]) -> Ontology:
    """Make an ontology with a category for each query, with ids 1, 2, …

    Args:
        queries: queries as for `text2seg.queries.parse_queries`.

    Raises:
        QueryError: there is no query, or one is empty.
        OntologyError: two queries differ only in case.
    """
    return Ontology(
        tuple(
            Category(
                name=query.name,
                id=number,
                supercategory=SUPERCATEGORY,
                queries=query.parts[0] if len(query.parts) == 1 else ("+".join(map("|".join, query.parts)),),
                negative_queries=query.negatives,
                threshold=query.threshold,
                presence=query.presence,
                min_area=query.min_area,
                colour=None,
            )
            for number, query in enumerate(parse_queries(queries), start=1)
        )
    )


def with_ids_from(ontology: Ontology, categories: Sequence[Mapping[str, Any]]) -> Ontology:
    """Return the ontology with the ids and supercategories from the `categories` of a COCO file.

    Raises:
        OntologyError: the file lacks a category, has it twice, or has no integer id for it.
    """
    theirs: dict[str, Mapping[str, Any]] = {}
    wanted = set(ontology.names)
    for entry in categories:
        name, number = entry.get("name"), entry.get("id")
        if name not in wanted:
            continue
        if name in theirs:
            raise OntologyError(f"the COCO file has the category {name!r} twice; keep one of them")
        if not isinstance(number, int) or isinstance(number, bool):
            raise OntologyError(f"the COCO file's category {name!r} needs a whole number as its id, got {number!r}")
        theirs[name] = entry
    known = [str(entry["name"]) for entry in categories if "name" in entry]
    lacking = [f"{name!r}{did_you_mean(name, known)}" for name in ontology.names if name not in theirs]
    if lacking:
        raise OntologyError(f"the COCO file has no category {', '.join(lacking)}; names must match exactly")
    return Ontology(
        tuple(
            replace(
                category,
                id=theirs[category.name]["id"],
                supercategory=theirs[category.name].get("supercategory") or category.supercategory,
            )
            for category in ontology.categories
        )
    )


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return a hint in brackets with similar known names, ignoring case; empty if there are none."""
    close = similar(wrong, known)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def queries_of(ontology: Ontology) -> tuple[Query, ...]:
    """Return one query per category, with the name of the category.

    The wordings of a category become the wordings of one part; a combined wording (`a+b`) becomes one part each.

    Raises:
        OntologyError: a category mixes a combined wording with others.
    """
    return tuple(
        Query(
            category.name,
            _parts(category),
            category.negative_queries,
            category.threshold,
            category.presence,
            category.min_area,
        )
        for category in ontology.categories
    )


def _parts(category: Category) -> tuple[Wordings, ...]:
    combined = [text for text in category.queries if "+" in text]
    if not combined:
        return (category.queries,)
    if len(category.queries) > 1:
        raise OntologyError(
            f"{category.name}: {combined[0]!r}, whose parts give one segment together, cannot be combined with "
            "other wordings; give it a category of its own"
        )
    return parse_query(combined[0]).parts


# ---- keys of a category in an ontology file, checked by pydantic; the description of a key is part of its errors

_TEXT = "a text that is not empty (in quotes where YAML takes it for a number or true)"
_SHOWN = 40  # limit of characters of a wrong value in a message


def _one_line(text: str) -> str:
    """Return the text without invisible characters and outer space, with single spaces."""
    try:
        text = " ".join(cleaned(text).split())
    except QueryError as error:
        raise ValueError(f"cannot be used: {error}") from error
    if not text:
        raise ValueError
    return text


def _colour(text: str) -> str:
    """Return `#rgb` or `#rrggbb` as `#rrggbb` in lower case."""
    if not re.fullmatch(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})", text):
        raise ValueError
    digits = text[1:].lower()
    return "#" + (digits if len(digits) == 6 else "".join(digit * 2 for digit in digits))


def wording(text: str) -> str:
    """Return a wording with all parts trimmed. Raises `ValueError` if it has another meaning as a typed query."""
    text = _one_line(text)
    if re.search(r"\s-", text):
        raise ValueError("has ' -' in it, which sets off what is unwanted; move that to negative_queries")
    if "|" in text and "+" not in text:
        raise ValueError("has '|' in it, which stands between wordings; list them one by one")
    if len(text.split("+")) > 1 and not all(each.strip() for part in text.split("+") for each in part.split("|")):
        raise ValueError("has an empty part beside a + or |; name what belongs there")
    try:
        names = names_in(text)
        if len(names) == 1:
            text = parse_query(names[0]).name
    except QueryError as error:
        raise ValueError(f"cannot be used: {error}") from error
    if len(names) > 1:
        raise ValueError(f"reads as {len(names)} names ({'; '.join(names)[:_SHOWN]}); list them one by one")
    if not names:
        raise ValueError
    return "+".join("|".join(map(_one_line, part.split("|"))) for part in text.split("+"))


def _plain_wording(text: str) -> str:
    if "+" in (plain := wording(text)):
        raise ValueError("joins wordings with +; list them one by one")
    return plain


def _queries(texts: list[str]) -> list[str]:
    combined = next((text for text in texts if "+" in text), None)
    if combined and len(texts) > 1:
        raise ValueError(
            f"mixes {combined!r}, whose parts give one segment together, with other wordings; "
            "give it a category of its own"
        )
    return texts


class Entry(BaseModel):
    """One category as written in the file; None, no queries and no colour stand for the defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, AfterValidator(_one_line)] = Field(description=_TEXT)
    id: int | None = Field(None, ge=1, description="a whole number of 1 or more")
    supercategory: Annotated[str, AfterValidator(_one_line)] = Field(SUPERCATEGORY, description=_TEXT)
    queries: Annotated[list[Annotated[str, AfterValidator(wording)]], AfterValidator(_queries)] = Field(
        default_factory=list,
        min_length=1,
        description="a list of at least one wording, each a text, such as [dog, puppy]",
    )
    negative_queries: list[Annotated[str, AfterValidator(_plain_wording)]] = Field(
        default_factory=list, description="a list of texts without +, such as [hot dog]"
    )
    threshold: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="a number above 0, at most 1, such as 0.8"
    )
    presence: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="a number from 0 to 1, such as 0.3"
    )
    min_area: int = Field(0, ge=0, description="a whole number of pixels, 0 or more")
    colour: Annotated[str, AfterValidator(_colour)] = Field(
        "", description='#rrggbb or #rgb in quotes, such as "#ff8800"'
    )

    def category(self, number: int) -> Category:
        """Return the category with the id `number` and all defaults filled in."""
        return Category(
            name=self.name,
            id=number,
            supercategory=self.supercategory,
            queries=tuple(self.queries or [wording(self.name)]),
            negative_queries=tuple(self.negative_queries),
            threshold=self.threshold,
            presence=self.presence,
            min_area=self.min_area,
            colour=self.colour or None,
        )


Fault = tuple[tuple[str | int, ...], str]


def check_entry(values: dict[str, Any]) -> tuple[Entry | None, list[Fault]]:
    """Return the entry, or its errors: the path to each (key, place in a list) and a sentence."""
    try:
        return Entry.model_validate(values), []
    except ValidationError as error:
        found: dict[tuple[str | int, ...], str] = {}
        for each in error.errors(include_url=False, include_context=False):
            keys = each["loc"][:2]
            found.setdefault(keys, _sentence(str(keys[0]), each["type"], each["msg"], each["input"]))
        return None, list(found.items())


def _sentence(key: str, kind: str, message: str, value: object) -> str:
    if kind == "extra_forbidden":
        known = Entry.model_fields
        return f"is not a key of a category{did_you_mean(key, known)}; it knows {', '.join(known)}"
    right = Entry.model_fields[key].description
    if kind == "missing":
        return f"is missing; it must be {right}"
    if kind == "value_error" and (reason := message.removeprefix("Value error, ").strip()):
        return reason if isinstance(value, list) else f"{shown(value)} {reason}"
    return f"must be {right}, got {shown(value)}"


def shown(value: object) -> str:
    """Return a value for a message, as YAML writes it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
