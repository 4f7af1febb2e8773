"""Tools that name what an image shows, and every pixel of it, and score how well that goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from text2seg.config import MapSettings, freeze_names
from text2seg.explain.catalogue.checks import freeze_typed
from text2seg.explain.tool import Tool

Architecture = Literal["surgery", "raw", "maskclip", "sclip", "clearclip", "naclip", "gem"]


@dataclass(frozen=True, slots=True)
class RecognitionSettings:
    """What the image may show."""

    label: tuple[str, ...] = ()
    """What the image may show; repeat for more. Default: all that the demo model knows, else some common things."""
    size: int | None = None
    """CLIP's input in pixels; images are squashed to it. Default: what CLIP was trained on."""

    def __post_init__(self) -> None:
        MapSettings(input_size=self.size)  # raises where it is none
        freeze_names(self, "label")


@dataclass(frozen=True, slots=True)
class SemanticSettings(RecognitionSettings):
    """What the image may show, and what counts as nothing of it."""

    background: tuple[str, ...] = ()
    """A label that counts as background, as sky or wall; "" is the empty text; repeat for more. Default: the empty text
    for the demo model, which was trained so, else none: every pixel gets a label."""
    architecture: Architecture = "surgery"
    """How CLIP's patches attend."""

    def __post_init__(self) -> None:
        MapSettings(self.architecture, input_size=self.size)
        freeze_names(self, "label")
        freeze_typed(self, "background")


@dataclass(frozen=True, slots=True)
class ScoresSettings:
    """What is scored, and how."""

    dataset: tuple[Path, ...] = ()
    """A COCO ground truth with masks; repeat for more. Default: the demo scenes that come with text2seg."""
    images: Path | None = None
    """Folder of the images. Default: as the dataset names them, from its own folder."""
    background: tuple[str, ...] = ()
    """A label that counts as background; as for `semantic`."""
    size: int | None = None
    """CLIP's input in pixels; images are squashed to it. Default: what CLIP was trained on."""
    predictions: Path | None = None
    """Folder to write the predictions to, as COCO files for `text2seg evaluate`."""

    def __post_init__(self) -> None:
        MapSettings(input_size=self.size)
        freeze_typed(self, "background")


TOOLS: tuple[Tool, ...] = (
    Tool(
        "multilabel",
        "What an image shows, ranked: CLIP's answer for the whole image, with feature surgery.",
        RecognitionSettings,
        "multilabel:run",
    ),
    Tool(
        "semantic",
        "One label for every pixel, without any training: the label whose map is highest there.",
        SemanticSettings,
        "semantic:run",
    ),
    Tool(
        "recognition-scores",
        "Multi-label recognition and semantic segmentation over a COCO dataset, raw CLIP against surgery.",
        ScoresSettings,
        "recognition_scores:run",
        "none",
    ),
)
