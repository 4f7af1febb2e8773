"""What experiments look at: a picture at CLIP's input size, and a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from text2seg.errors import QueryError
from text2seg.explain.saliency.targets import Target, text_target
from text2seg.maps.clip import Clip
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.vocabulary import CLIP_MEAN

Pixels = NDArray[np.uint8]

BATCH = 16
GREY = np.rint(np.array(CLIP_MEAN) * 255).astype(np.uint8)
"""The mean colour of what CLIP was trained on: 0 in its normalised pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A CLIP, a picture uint8 [h, w, 3] squashed to its input, and the target that a text is."""

    clip: Clip
    pixels: Pixels
    target: Target

    @classmethod
    def of(cls, models: Text2Seg, image: Image, text: str, size: int | None) -> Subject:
        """Raises `QueryError` where the text is empty, too long or unknown to the models."""
        if not text.strip():
            raise QueryError("nothing to compare the picture with: give a text, as --text sheep")
        target = text_target(models.clip, text.strip(), things=models.things)
        return cls(models.clip, squashed(models.clip, image, size), target)

    @property
    def hw(self) -> tuple[int, int]:
        """CLIP's input: rows and columns."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def cosines(self, pictures: Sequence[Pixels]) -> NDArray[np.float32]:
        """Of pictures uint8 [h, w, 3] of CLIP's input size with the text, float32 [N]."""
        return (features(self.clip, pictures) @ self.target.features).cpu().numpy()


def squashed(clip: Clip, image: Image, size: int | None) -> Pixels:
    """The picture as CLIP sees it, uint8 [h, w, 3]."""
    resized = PillowImage.fromarray(image.pixels).resize(clip.input_hw(size)[::-1], PillowImage.Resampling.BICUBIC)
    return np.asarray(resized)


@torch.inference_mode()
def features(clip: Clip, pictures: Sequence[Pixels]) -> Tensor:
    """CLIP's answer for each whole picture uint8 [h, w, 3], all of one size and already as CLIP should see them: unit
    features float32 [N, C]."""
    found = []
    for start in range(0, len(pictures), BATCH):
        images = [Image(pixels) for pixels in pictures[start : start + BATCH]]
        found += clip.encode_images(images, size=images[0].hw, architecture="raw")
    return torch.stack([tokens.features[0] for tokens in found])
