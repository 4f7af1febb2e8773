"""The table of saliency methods and the one way to call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from text2seg.errors import SettingsError
from text2seg.explain.saliency.targets import Target
from text2seg.maps.clip import Clip
from text2seg.records import Image

Kind = Literal["vit", "resnet"]


@dataclass(frozen=True, slots=True)
class Method:
    """A saliency method: its name, what it shows in a line, the paper, the kinds of CLIP that it can look into, and
    its function from a CLIP, normalised pixels float32 [1, 3, H, W] and a target to a map float32 [gh, gw]."""

    name: str
    summary: str
    source: str
    kinds: tuple[Kind, ...]
    compute: Callable[[Clip, Tensor, Target], Tensor]


METHODS: Mapping[str, Method] = {}


def methods_for(clip: Clip) -> tuple[str, ...]:
    """The names of the methods that this CLIP can do, in the table's order."""
    kind = "vit" if clip.is_vit else "resnet"
    return tuple(name for name, method in METHODS.items() if kind in method.kinds)


def check_method(clip: Clip, name: str) -> Method:
    """The method of this name.

    Raises:
        SettingsError: there is none, or this CLIP cannot do it; names those that it can.
    """
    if name not in methods_for(clip):
        raise SettingsError(f"{name} is no saliency method of this CLIP; it can do {', '.join(methods_for(clip))}")
    return METHODS[name]


def saliency(
    clip: Clip,
    image: Image,
    target: Target,
    method: str,
    *,
    size: int | tuple[int, int] | None = None,
    negative: bool = False,
) -> NDArray[np.float32]:
    """Where in the image the score of the target comes from.

    Args:
        size: CLIP's input; default: what it was trained on.
        negative: what speaks against the target instead.

    Returns:
        float32 [gh, gw] on the grid of the method, which covers the image; not normalised, the higher the more salient.

    Raises:
        SettingsError: the method is unknown, or nothing for this CLIP.
    """
    raise NotImplementedError
