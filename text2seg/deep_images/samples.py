"""An image as its file holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

WAY_OUT = "save it as grey or RGB PNG or TIFF of 8 or 16 bits"

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """An image as its file holds it: `colour` [H, W, C] of any integer or float type, C 1 for grey, 3 for RGB, 4 for
    CMYK; `alpha` [H, W] or none.

    `black` and `white` are the values that the file declares, none where it declares none; pixels of `no_data` are no
    part of the image. `min_is_white`: low values are bright. `premultiplied`: the colour is multiplied by alpha
    already. `note` is what else is to be said of how the file was read.
    """

    colour: Array
    alpha: Array | None = None
    black: float | None = None
    white: float | None = None
    no_data: float | None = None
    min_is_white: bool = False
    premultiplied: bool = False
    note: str = ""


def by_pillow(picture: PillowImage.Image) -> Samples:
    return Samples(np.asarray(picture)[:, :, None])


def content_of(picture: PillowImage.Image, most: int = -1) -> bytes | None:
    """The bytes of an opened file, or so many at its start; none where Pillow has read and closed it."""
    file = getattr(picture, "fp", None)
    if file is None or getattr(file, "closed", False) or picture.format is None:
        return None
    place = file.tell()
    file.seek(0)
    content = bytes(file.read(most))
    file.seek(place)
    return content


def from_space(mode: str, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB of another of Pillow's colour spaces, [H, W, C] each."""
    height, width = values.shape[:2]
    return np.asarray(PillowImage.frombytes(mode, (width, height), values.tobytes()).convert("RGB"))


def most_of(dtype: np.dtype[Any]) -> float:
    """The largest number that a type of integers holds."""
    return float(np.iinfo(dtype).max)
