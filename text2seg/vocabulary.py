"""Queries, prompt templates and the wordings that the models know."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from string import punctuation

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


# Things that pictures often show: what a query has to beat before it counts as present.
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

Wordings = tuple[str, ...]


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


def parse_query(text: str) -> Query:
    """Read one query: `+` joins parts, `|` parts' wordings, ` -` sets negatives off.

    >>> parse_query(" red car +bench ")  # doctest: +ELLIPSIS
    Query(name='red car+bench', parts=(('red car',), ('bench',)), negatives=(), ...)
    >>> query = parse_query("mouse|rodent -computer mouse")
    >>> query.name, query.parts, query.negatives
    ('mouse|rodent', (('mouse', 'rodent'),), ('computer mouse',))

    Raises:
        QueryError: the query, or a part, wording or negative of it, is empty.
    """
    wanted, *unwanted = re.split(r"\s-", text)
    parts = tuple(tuple(" ".join(wording.split()) for wording in part.split("|")) for part in wanted.split("+"))
    negatives = tuple(" ".join(negative.split()) for negative in unwanted)
    if not all(wording for part in parts for wording in part) or not all(negatives):
        raise QueryError(f"a part is empty in {text!r}" if text.strip() else f"a query must not be empty, got {text!r}")
    return Query("+".join("|".join(part) for part in parts), parts, negatives)


def parse_queries(texts: str | Iterable[str | Query]) -> tuple[Query, ...]:
    """Read queries: one string with commas between them, or one each. The same query twice is one.

    >>> [query.name for query in parse_queries("dog, red car, dog")]
    ['dog', 'red car']

    Raises:
        QueryError: there is none, one is empty, or two that differ have one name.
    """
    each = texts.split(",") if isinstance(texts, str) else list(texts)
    queries = tuple(dict.fromkeys(text if isinstance(text, Query) else parse_query(text) for text in each))
    if not queries:
        raise QueryError("nothing to look for: give at least one query")
    names = [query.name for query in queries]
    for name in names:
        if names.count(name) > 1:
            raise QueryError(f"two different queries are called {name!r}; put what they say into one")
    return queries


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
            QueryError: names everything that is known, the closest first.
        """
        words = f" {' '.join(word.strip(punctuation) for word in wording.lower().split())} "
        if any(f" {known} " in words or f" {known}s " in words for known in self._words):
            return
        close = difflib.get_close_matches(wording.lower(), sorted(self._words), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        shown = wording if len(wording) <= 60 else f"{wording[:59]}…"
        raise QueryError(
            f"the demo model does not know {shown!r}.{hint} It knows drawings of: {', '.join(self.names)}. "
            f"For everything else choose a real model, e.g. --model base."
        )
