"""Small experiments on one image and a text, each a diagram and its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from text2seg.config import MapSettings, freeze_names
from text2seg.explain.catalogue.checks import check_count, check_seed
from text2seg.explain.tool import Tool


@dataclass(frozen=True, slots=True)
class InputSettings:
    """How the image reaches CLIP."""

    size: int | None = None
    """CLIP's input in pixels; the image is squashed to it. Default: what CLIP was trained on."""

    def __post_init__(self) -> None:
        MapSettings(input_size=self.size)  # raises where it is none


@dataclass(frozen=True, slots=True)
class TextSettings(InputSettings):
    """What the image is compared with."""

    text: str = ""
    """What the image is compared with, for instance sheep; put into CLIP Surgery's 85 templates."""


@dataclass(frozen=True, slots=True)
class RepeatedSettings(TextSettings):
    """A text, and how often chance is asked."""

    seed: int = 0
    """Same seed, same numbers."""
    repeats: int = 3
    """Runs, each with chance of its own; curves show their mean and range."""
    steps: int = 10
    """Points of a curve beside its start."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        check_seed(self.seed)
        for name in ("repeats", "steps"):
            check_count(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class ActivationSettings(InputSettings):
    """From noise to image."""

    seed: int = 0
    """Same seed, same noise."""
    steps: int = 4
    """Steps from noise to image."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        check_seed(self.seed)
        check_count("steps", self.steps)


@dataclass(frozen=True, slots=True)
class PixelSettings(TextSettings):
    """Which ranking is attacked, and how hard."""

    label: tuple[str, ...] = ()
    """What the text is ranked among; repeat for more. Default: all that the demo model knows, else common things."""
    pixels: int = 60
    """Most pixels that are changed."""
    tries: int = 16
    """Changes that are tried for each pixel, of which the best stays."""
    seed: int = 0
    """Same seed, same random search."""

    def __post_init__(self) -> None:
        MapSettings(input_size=self.size)
        freeze_names(self, "label")
        check_seed(self.seed)
        for name in ("pixels", "tries"):
            check_count(name, getattr(self, name))


TOOLS: tuple[Tool, ...] = (
    Tool(
        "experiment-grey",
        "How the cosine falls while more and more of the image is greyed out.",
        RepeatedSettings,
        "experiments.grey:run",
    ),
    Tool(
        "experiment-preprocessing",
        "What squashing, cropping or padding the image does to the cosine, and how it is resized.",
        TextSettings,
        "experiments.preprocessing:run",
    ),
    Tool(
        "experiment-activations",
        "How large and how sparse activations are, block by block, from noise to image.",
        ActivationSettings,
        "experiments.activations:run",
    ),
    Tool(
        "experiment-noise",
        "How much noise of which kind the cosine bears.",
        RepeatedSettings,
        "experiments.noise:run",
    ),
    Tool(
        "experiment-pixels",
        "How few changed pixels make CLIP rank something else first.",
        PixelSettings,
        "experiments.pixels:run",
    ),
)
