"""Categories as frozen records: what a file says with its defaults filled in, or what a few queries stand for."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from text2seg.errors import OntologyError
from text2seg.queries import Query, Wordings, parse_queries, parse_query

SUPERCATEGORY = "thing"


@dataclass(frozen=True, slots=True)
class Category:
    """One thing to look for: `queries` are its wordings (`a+b` is one wording that joins two), `negative_queries` what
    it is easily taken for. `None` leaves a limit to the settings of the run."""

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
    """All categories of a job, in the order of the file. Raises `OntologyError` where there is none, or where two
    share a name (letter case aside) or an id."""

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
        """The `categories` of a COCO file. A colour becomes `color`, [red, green, blue], as panoptic ones have."""
        return [
            {"id": category.id, "name": category.name, "supercategory": category.supercategory}
            | ({"color": list(bytes.fromhex(category.colour[1:]))} if category.colour else {})
            for category in self.categories
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values with defaults spelled out and what is open (`None`) left out; as a file it reads back."""
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
    """Each query as a category of its own, ids 1, 2, …, as `text2seg.queries.parse_queries` reads them.

    Raises:
        QueryError: there is none, or one is empty.
        OntologyError: two differ in nothing but letter case.
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
    """The same ontology with the ids and supercategories that the `categories` of a COCO file give to its names.

    Raises `OntologyError` where the file lacks a category, has one twice, or has one without a whole number as id.
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
        raise OntologyError(f"the COCO file has no category {', '.join(lacking)}; names must be the same to the letter")
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
    """A hint in brackets that names what is close, letter case aside; empty where nothing is."""
    spelled: dict[str, str] = {}
    for each in known:
        spelled.setdefault(each.casefold(), each)
    close = difflib.get_close_matches(wrong.casefold(), spelled, n=3)
    return f" (did you mean {' or '.join(repr(spelled[each]) for each in close)}?)" if close else ""


def queries_of(ontology: Ontology) -> tuple[Query, ...]:
    """What to ask the models for: one query per category, called as the category is.

    The wordings of a category become the wordings of one part; a single combined one (`a+b`) gives a part each.

    Raises `OntologyError` where a category made by hand mixes a combined wording with others.
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
            f"{category.name}: {combined[0]!r}, whose parts give one segment together, cannot stand beside other "
            "wordings; give it a category of its own"
        )
    return parse_query(combined[0]).parts
