"""What in an image speaks for a target, and what against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from text2seg.explain.backdrop import ground, method_or_usual, named
from text2seg.explain.catalogue.inside import SignedSettings
from text2seg.explain.saliency.methods import saliency
from text2seg.explain.show_saliency import image_score, targets_of
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.signed import signed_heat

COLUMNS = 4


def signed(models: Text2Seg, images: Sequence[Image], settings: SignedSettings, progress: Progress) -> Result:
    """For each target the image, what speaks for it, what against it, and both. They share one scale, so that little
    that speaks against it also looks like little.

    Raises:
        QueryError: no target, or one that is empty, too long or unknown to the models.
        SettingsError: the method or the layer is nothing for this CLIP, or the method does not look at the target.
    """
    (image,) = images
    method = method_or_usual(models.clip, settings.method, settings.layer)
    pixels, panels, rows = ground(image), [], []
    nothing: NDArray[np.float32] = np.zeros((1, 1), np.float32)
    for target in progress.each(targets_of(models, settings), method):
        both = [
            saliency(
                models.clip, image, target, method, size=settings.size, negative=negative, layer=settings.layer
            ).clip(min=0)  # every method's maps have a 0 that says nothing either way
            for negative in (False, True)
        ]
        highest = max(float(each.max()) for each in both) or 1.0
        pro, contra = (np.asarray(each / highest, np.float32) for each in both)
        panels += [
            Panel("the image", pixels),
            Panel(f"for {target.name}", signed_heat(pro, nothing, pixels)),
            Panel(f"against {target.name}", signed_heat(nothing, contra, pixels)),
            Panel(f"for {target.name} (orange) and against it (blue)", signed_heat(pro, contra, pixels)),
        ]
        total = float(pro.sum() + contra.sum())
        share = float(contra.sum()) / total if total else None
        rows.append((target.name, image_score(models, image, target, settings.size), share))
    table = Table("for and against", ("target", "score", "share of all saliency that is against"), tuple(rows))
    return Result(f"{named(image)}: for and against, {method}", tuple(panels), (table,), columns=COLUMNS)
