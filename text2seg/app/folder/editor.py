"""The ontology that a visitor writes: checked while it is typed, begun from a list of queries or from an example."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from text2seg.errors import OntologyError, QueryError
from text2seg.ontology import Category, Ontology, ontology_of_queries, queries_of
from text2seg.ontology.read import Item, parse

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg

LETTERS = 50_000
"""Longer texts are refused: they are read anew with every letter that is typed."""
CATEGORIES = 500

_PLACE = re.compile(r"ontology(?::(?P<line>\d+))?: (?P<words>.*)", re.DOTALL)

WITH_LIMITS = """\
# Every key that a category knows. Only its name is needed.
categories:
  - name: dog
    queries: [dog, hound]         # wordings of the same thing
    negative_queries: [sheep]     # what it is easily taken for
    threshold: 0.8                # how much of the map counts, 0 to 1
    presence: 0.5                 # how sure to be that it is there, 0 to 1
    min_area: 50                  # smallest segment, in pixels
    supercategory: animal
    colour: "#ff8800"
  - name: vehicle
    queries: [fire engine, tractor]
  - cat                           # the short form
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, in words that name the key, and in which line of the text, counted from 1; 0: nowhere special."""

    line: int
    words: str


@dataclass(frozen=True, slots=True)
class Checked:
    """An ontology or, where there is none, why. Where the models do not know what is asked for, `known` is all that
    they do."""

    ontology: Ontology | None
    faults: tuple[Fault, ...]
    known: tuple[str, ...] = ()


def check(text: str, models: Text2Seg) -> Checked:
    """Read an ontology as the command line would, and ask the models whether they know what is in it."""
    if len(text) > LETTERS:
        return Checked(None, (Fault(0, f"the ontology has {len(text):,} letters; at most {LETTERS:,} are read"),))
    try:
        ontology, items = parse(text, "ontology")
    except OntologyError as error:
        matches = [match for line in str(error).splitlines() if (match := _PLACE.fullmatch(line))]
        return Checked(None, tuple(Fault(int(match["line"] or 0), match["words"]) for match in matches))
    if len(items) > CATEGORIES:
        return Checked(None, (Fault(0, f"{len(items):,} categories; at most {CATEGORIES:,} can be looked for"),))
    faults = tuple(_unknown(ontology, items, models))
    if faults:
        return Checked(None, faults, models.things.names if models.things else ())
    return Checked(ontology, ())


def as_yaml(queries: str) -> str:
    """An ontology file of queries as people type them, with commas between.

    >>> print(as_yaml("dog|puppy, red car"), end="")
    categories:
      dog|puppy: [dog, puppy]
      red car: [red car]

    Raises:
        QueryError, OntologyError: as `ontology_of_queries`.
    """
    yaml = YAML()
    yaml.default_flow_style = None  # lists of words in one line
    yaml.width = 100
    content = {"categories": {each.name: _entry(each) for each in ontology_of_queries(queries).categories}}
    file = io.StringIO()
    yaml.dump(content, file)
    return file.getvalue()


def demo_things() -> str:
    """The ontology of all that the demo model knows."""
    return resources.files("text2seg.demo").joinpath("scenes/things.yaml").read_text(encoding="utf-8")


def _entry(category: Category) -> list[str] | dict[str, list[str]]:
    queries = list(category.queries)
    if not category.negative_queries:
        return queries
    return {"queries": queries, "negative_queries": list(category.negative_queries)}


def _unknown(ontology: Ontology, items: list[Item], models: Text2Seg) -> list[Fault]:
    faults = []
    for query, item in zip(queries_of(ontology), items, strict=True):
        try:
            models.check([query])
        except QueryError as error:
            reason = str(error).partition(" It knows ")[0]  # the list of what it does know is `Checked.known`
            faults.append(Fault(item.line(()), f"{query.name}: {reason}"))
    return faults
