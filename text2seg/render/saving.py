"""The image files that `--save` writes, the masks and cut-outs that the app exports, and HTML pages from templates.

A new kind of file needs a function here, an entry in `WRITERS` and a name in `config.SaveKind`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from text2seg.config import SaveKind
from text2seg.io.names import fit_file_name, safe_file_name
from text2seg.records import Image, Segment, Segmentation
from text2seg.render.overlays import cut_out, overlay
from text2seg.render.panels import maps_with_points

JPEG_QUALITY = 82

File = tuple[str, str, bytes]
"""A folder ("" or a single name), a file name in it, and the content."""


def image_files(segmentation: Segmentation, stem: str, kinds: Iterable[SaveKind]) -> Iterator[File]:
    """Yield the files of these kinds for one image; their names begin with `stem`."""
    for kind in kinds:
        yield from WRITERS[kind](segmentation, stem)


def _overlay(segmentation: Segmentation, stem: str) -> Iterator[File]:
    yield "", fit_file_name(stem, "_overlay.png"), png(overlay(segmentation))


def _why(segmentation: Segmentation, stem: str) -> Iterator[File]:
    yield "", fit_file_name(stem, "_why.png"), png(maps_with_points(segmentation))


def _masks(segmentation: Segmentation, stem: str) -> Iterator[File]:
    for name, number, segment in named_segments(segmentation.segments):
        yield "masks", fit_file_name(stem, f"_{name}_{number}.png"), mask_png(segment)


def _cutouts(segmentation: Segmentation, stem: str) -> Iterator[File]:
    for name, number, segment in named_segments(segmentation.segments):
        yield "cutouts", fit_file_name(stem, f"_{name}_{number}.png"), cutout_png(segment, segmentation.image)


WRITERS: Mapping[SaveKind, Callable[[Segmentation, str], Iterator[File]]] = {
    "overlay": _overlay,
    "why": _why,
    "masks": _masks,
    "cutouts": _cutouts,
}


def named_segments(segments: Iterable[Segment]) -> Iterator[tuple[str, int, Segment]]:
    """Yield each segment with its query as a part of a file name, and its number under that name, from 1."""
    counts: dict[str, int] = {}
    for segment in segments:
        name = safe_file_name(segment.query) or "segment"
        counts[name] = counts.get(name, 0) + 1
        yield name, counts[name], segment


def mask_png(segment: Segment) -> bytes:
    """Return the mask as a grey PNG of the image's size: 255 inside, 0 outside."""
    return png(segment.mask.view(np.uint8) * 255)


def cutout_png(segment: Segment, image: Image) -> bytes:
    """Return the segment as a transparent PNG, cropped to its box."""
    return png(cut_out(segment, image, crop=True))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG of pixels uint8[h, w], [h, w, 3] RGB or [h, w, 4] RGBA."""
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def jpeg_url(pixels: NDArray[np.uint8]) -> str:
    """Return a small JPEG of pixels uint8[h, w, 3] as a data URL for HTML pages."""
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


# ---- self-contained HTML pages from templates beside the code


def render_template(package: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """Render `page.html.j2` of a package. Values are escaped; a name without a value is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template("page.html.j2").render(**values)
