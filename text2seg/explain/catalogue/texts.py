"""Tools on the text side: what in a sentence counts, and which of its words an image lights up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from text2seg.config import check_choices
from text2seg.explain.catalogue.checks import check_count
from text2seg.explain.tool import Tool

Redundancy = Literal["empty", "label-set", "none"]


@dataclass(frozen=True, slots=True)
class TokenRelevanceSettings:
    """Which tokens of a text make its score with the image."""

    text: str = ""
    """The text, for instance "a photo of a sheep"; it is taken as it is, without templates."""
    blocks: Literal["all", "last"] = "all"
    """Blocks of the text tower that relevance is followed through."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, slots=True)
class TextVisualisationSettings:
    """Which words of a text the image lights up, and where."""

    text: str = ""
    """The text, for instance "a sheep beside a fire engine"; it is taken as it is, without templates."""
    words: int = 4
    """How many of the best words are shown with their map."""
    point: tuple[int, int] | None = None
    """x and y of a pixel whose words are shown as well."""
    redundancy: Redundancy = "empty"
    """What is taken off the scores: what the empty text lights up too, what all tokens light up, or nothing."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_count("words", self.words)


@dataclass(frozen=True, slots=True)
class KeywordsSettings:
    """A sentence taken apart."""

    text: str = ""
    """The sentence, for instance "a sheep sleeps beside the red fire engine"."""


TOOLS: tuple[Tool, ...] = (
    Tool(
        "token-relevance",
        "Which tokens of a text make its score with an image.",
        TokenRelevanceSettings,
        "token_relevance:run",
    ),
    Tool(
        "text-visualisation",
        "Which words of a text an image lights up, and where.",
        TextVisualisationSettings,
        "text_visualisation:run",
    ),
    Tool(
        "keywords",
        "A sentence split into keywords, each with its map and score.",
        KeywordsSettings,
        "keywords:run",
    ),
)
