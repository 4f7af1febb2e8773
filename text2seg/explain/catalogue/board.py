"""Tools that lay one image beside many descriptions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from text2seg.config import check_choices
from text2seg.errors import QueryError, SettingsError
from text2seg.explain.catalogue.checks import check_alpha
from text2seg.explain.catalogue.saliency import MethodName
from text2seg.explain.tool import Tool

Score = Literal["cosine", "logit", "softmax"]


@dataclass(frozen=True, slots=True)
class DescriptionSettings:
    """What one image is compared with, and how that is shown."""

    text: tuple[str, ...] = ()
    """A description, taken as it is, without templates; repeat for more."""
    texts: str = ""
    """Several descriptions with ; between them, as "a sheep; a koala"."""
    prefix: str = "an image of"
    """Words that are put before each description; may be empty."""
    score: Score = "cosine"
    """Which score is shown with the maps. logit: cosine times CLIP's scale; softmax: of the logits, over all
    descriptions."""
    method: MethodName | None = None
    """Saliency method. Default: legrad, for ResNets gradcam."""
    layer: str | None = None
    """Layer of a ResNet that class activation maps look at, as layer4.2.relu3. Default: the last ReLU."""
    alpha: float = 0.85
    """How much of a map covers the image, from 0 to 1."""

    def __post_init__(self) -> None:
        check_choices(self)
        if isinstance(self.text, str):
            raise SettingsError(f"text must be a sequence of texts, got the one text {self.text!r}")
        check_alpha(self.alpha)

    def descriptions(self) -> tuple[str, ...]:
        """All descriptions, each once.

        Raises:
            QueryError: there is none.
        """
        listed = (text.strip() for text in re.split(r"[;；؛\n]", self.texts))
        together = tuple(dict.fromkeys((*self.text, *(text for text in listed if text))))
        if not together:
            raise QueryError('nothing to compare: give --text at least once, or --texts "a sheep; a koala"')
        return together


@dataclass(frozen=True, slots=True)
class BoardSettings(DescriptionSettings):
    """One image and many descriptions: scores, and where each comes from."""

    prefix_comparison: bool = False
    """Show every description without and with the prefix, and how the scores shift."""

    def __post_init__(self) -> None:
        DescriptionSettings.__post_init__(self)  # super() does not work in classes with slots before Python 3.14
        if self.prefix_comparison and not self.prefix.strip():
            raise SettingsError('a prefix is compared with none: give one, as --prefix "an image of"')


@dataclass(frozen=True, slots=True)
class AttackSettings(DescriptionSettings):
    """A word is written onto the image: does CLIP believe it?"""

    word: str = ""
    """What is written. Default: the description that fits the image least."""


TOOLS: tuple[Tool, ...] = (
    Tool(
        "board",
        "Many descriptions of one image: their scores, and where in the image each score comes from.",
        BoardSettings,
        "board:board",
    ),
    Tool(
        "typographic-attack",
        "A word is written onto the image: how scores and maps move, and what of it the letters do.",
        AttackSettings,
        "attack:typographic_attack",
    ),
)
