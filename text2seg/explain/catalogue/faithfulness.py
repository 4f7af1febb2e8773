"""Which saliency method can be trusted, measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from text2seg.config import MapSettings, check_choices
from text2seg.errors import SettingsError
from text2seg.explain.catalogue.checks import check_count
from text2seg.explain.catalogue.saliency import MethodName
from text2seg.explain.tool import Tool

Fill = Literal["blur", "mean"]
MOST_STEPS = 100


@dataclass(frozen=True, slots=True)
class FaithfulnessSettings:
    """What the methods are measured on, and how."""

    dataset: tuple[Path, ...] = ()
    """A COCO dataset with masks; repeat for more. Default: both splits of the demo scenes that come with text2seg."""
    images: Path | None = None
    """Folder of the images. Default: as the dataset names them, from its own folder."""
    limit: int | None = None
    """Only the first so many images of each dataset."""
    method: tuple[MethodName, ...] = ()
    """A saliency method to measure; repeat for more. Default: all that this CLIP can do."""
    steps: int = 8
    """In how many equal steps the cells of an image are taken away and put back. More take longer."""
    fill: Fill = "blur"
    """What stands where cells are gone. blur: the image blurred beyond recognition; mean: CLIP's mean colour."""
    size: int | None = None
    """CLIP's input in pixels; the images are squashed to it. Default: what CLIP was trained on."""

    def __post_init__(self) -> None:
        check_choices(self)
        MapSettings(input_size=self.size)  # raises where it is none
        if not 2 <= self.steps <= MOST_STEPS:
            raise SettingsError(f"steps must be from 2 to {MOST_STEPS}, got {self.steps}")
        check_count("limit", self.limit)


TOOLS: tuple[Tool, ...] = (
    Tool(
        "faithfulness",
        "Deletion and insertion curves and the pointing game for all saliency methods: which of them to trust.",
        FaithfulnessSettings,
        "faithfulness:faithfulness",
        images="none",
    ),
)
