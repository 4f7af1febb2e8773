"""CLIP's own words for images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from text2seg.explain.catalogue.checks import check_count, check_seed
from text2seg.explain.tool import Tool


@dataclass(frozen=True, slots=True)
class OpinionSettings:
    """How CLIP's own words are searched for."""

    prompt: str = ""
    """What the texts begin with, for instance "a photo of a"; CLIP finds the words after it."""
    steps: int = 300
    """Steps of gradient ascent; 200 to 400 are usual."""
    candidates: int = 16
    """Texts that are searched for side by side."""
    seed: int = 0
    """Same seed, same words."""

    def __post_init__(self) -> None:
        for name in ("steps", "candidates"):
            check_count(name, getattr(self, name))
        check_seed(self.seed)


@dataclass(frozen=True, slots=True)
class RunAllSettings(OpinionSettings):
    """CLIP's own words for each image, and how many of them are looked for."""

    words: int = 5
    """How many of the words of an image get their maps and segments, the most frequent first."""
    folder: Path | None = None
    """Folder that each image's mosaic is written to as soon as it is done, with a table of the words until then. It
    must be new, empty or of an earlier run. Default: on the command line one in the output folder; elsewhere nothing is
    written before the end."""

    def __post_init__(self) -> None:
        OpinionSettings.__post_init__(self)
        check_count("words", self.words)


TOOLS: tuple[Tool, ...] = (
    Tool("opinion", "CLIP's own words for an image, by gradient ascent on text.", OpinionSettings, "opinion:run"),
    Tool(
        "run-all",
        "For every image: CLIP's own words, what makes it say them, and segments of what they name.",
        RunAllSettings,
        "run_all:run",
        "many",
    ),
)
