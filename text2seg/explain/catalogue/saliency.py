"""Tools that show where in an image CLIP's score for a target comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from text2seg.config import MapSettings
from text2seg.explain.catalogue.checks import check_alpha, freeze_typed
from text2seg.explain.tool import Tool

MethodName = Literal[
    "attention",
    "rollout",
    "gradcam",
    "relevance-last",
    "relevance",
    "relevance-last-grad",
    "legrad",
    "raw",
    "maskclip",
    "surgery",
    "sclip",
    "clearclip",
    "naclip",
    "gem",
    "gradcam++",
    "xgradcam",
    "hirescam",
    "gradcam-elementwise",
    "layercam",
    "eigencam",
    "eigengradcam",
]


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """What the image is asked about, and how the answer is drawn."""

    text: tuple[str, ...] = ()
    """What to ask about; repeat for more."""
    target_image: Path | None = None
    """Another image to ask about, of any size: what of it is here?"""
    word: tuple[str, ...] = ()
    """A word and its weight, as "joy=0.7"; repeat for more. Together they are one target, a distribution of words that
    CLIP's own is compared with."""
    templates: tuple[str, ...] = ()
    """Sentences with a {} for texts and words; "{}" takes them as they are. Default: CLIP Surgery's 85."""
    size: int | None = None
    """CLIP's input in pixels; the images are squashed to it. Default: what CLIP was trained on."""
    alpha: float = 0.85
    """How much of a map covers the image, from 0 to 1."""

    def __post_init__(self) -> None:
        MapSettings(input_size=self.size, templates=self.templates)  # raises where these are none
        check_alpha(self.alpha)
        freeze_typed(self, "text")
        freeze_typed(self, "word")


@dataclass(frozen=True, slots=True)
class SaliencySettings(TargetSettings):
    """What the image is asked about, by which method, and how the answer is drawn."""

    method: MethodName = "surgery"
    """How the map is made; `text2seg explain compare` shows them all. CLIP's ResNets can do gradcam, raw, surgery and
    those from gradcam++ on, its vision transformers the others and these three."""
    layer: str | None = None
    """Layer of a ResNet that class activation maps look at, as layer4.2.relu3. Default: the last ReLU."""
    negative: bool = False
    """Show what speaks against the target."""


TOOLS: tuple[Tool, ...] = (
    Tool(
        "saliency",
        "Where in an image CLIP's score for texts, another image or weighted words comes from.",
        SaliencySettings,
        "show_saliency:run",
    ),
    Tool("compare", "All saliency methods side by side for one target.", TargetSettings, "show_saliency:compare"),
)
