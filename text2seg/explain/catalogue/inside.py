"""Tools that take a score apart: by CLIP's blocks, by what speaks for and against it, by the words of the text."""

from __future__ import annotations

from dataclasses import dataclass

from text2seg.config import MapSettings
from text2seg.explain.catalogue.checks import check_alpha
from text2seg.explain.catalogue.saliency import MethodName, TargetSettings
from text2seg.explain.tool import Tool


@dataclass(frozen=True, slots=True)
class SignedSettings(TargetSettings):
    """What the image is asked about, and by which method for and against are told apart."""

    method: MethodName | None = None
    """Saliency method. Default: legrad, for ResNets gradcam."""
    layer: str | None = None
    """Layer of a ResNet that class activation maps look at, as layer4.2.relu3. Default: the last ReLU."""


@dataclass(frozen=True, slots=True)
class WordsSettings:
    """A text whose words are left out one after the other."""

    text: str = ""
    """The text, for instance "a sheep beside a fire engine"; it is taken as it is, without templates."""
    method: MethodName | None = None
    """Saliency method. Default: legrad, for ResNets gradcam."""
    layer: str | None = None
    """Layer of a ResNet that class activation maps look at, as layer4.2.relu3. Default: the last ReLU."""
    size: int | None = None
    """CLIP's input in pixels; the image is squashed to it. Default: what CLIP was trained on."""
    alpha: float = 0.85
    """How much of a map covers the image, from 0 to 1."""

    def __post_init__(self) -> None:
        MapSettings(input_size=self.size)  # raises where it is none
        check_alpha(self.alpha)


TOOLS: tuple[Tool, ...] = (
    Tool(
        "layers",
        "Block by block: what CLS attends to and what its gradient says, and the score of the image masked by each.",
        TargetSettings,
        "layers:layers",
    ),
    Tool(
        "signed",
        "What in the image speaks for a target and what against it, in two colours.",
        SignedSettings,
        "signed:signed",
    ),
    Tool(
        "words",
        "Word by word: what each word adds to a text's score, and where in the image that comes from.",
        WordsSettings,
        "words:words",
    ),
)
