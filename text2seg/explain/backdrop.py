"""What a map is laid over, what the image is called, and by which method it is made where nobody says."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg.clip.model import Clip
from text2seg.explain.saliency.methods import check_method
from text2seg.records import Image
from text2seg.render.sheet import LARGEST


def named(image: Image) -> str:
    """What titles call the image: its file's name, where it has one."""
    return image.file_name or "the image"


def ground(image: Image) -> NDArray[np.uint8]:
    """The image uint8[h, w, 3], no larger than a sheet shows it: many maps over a large photo would fill memory."""
    scale = LARGEST / max(image.hw)
    if scale >= 1:
        return image.pixels
    height, width = (max(1, round(side * scale)) for side in image.hw)
    return np.asarray(cv2.resize(image.pixels, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def method_or_usual(clip: Clip, name: str | None, layer: str | None = None) -> str:
    """The method of this name. Without a name: LeGrad, and Grad-CAM for ResNets, because both follow the score of the
    whole image and are faithful (docs/measurements/faithfulness.md).

    Raises:
        SettingsError: there is none of this name, this CLIP cannot do it, or not at that layer; names what it can.
    """
    return check_method(clip, name or ("legrad" if clip.is_vit else "gradcam"), layer).name
