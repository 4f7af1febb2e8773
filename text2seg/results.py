"""What a person does with a result in Python: show it in a notebook, plot it, save it, pass it to other packages.

The methods of `records.Segmentation` call these functions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from text2seg.coco.dataset import build_dataset, image_entry, read_dataset, segment_score
from text2seg.coco.json_file import Json, json_chunks
from text2seg.config import Encoding, SaveKind
from text2seg.errors import OutputError, SettingsError
from text2seg.io.files import exists, read_file
from text2seg.io.names import fit_file_name, shown
from text2seg.io.output_folder import OutputFolder
from text2seg.records import Segmentation
from text2seg.render.drawing import colours_of, printable
from text2seg.render.overlays import overlay
from text2seg.render.saving import WRITERS, image_files, jpeg_url

LONG_SIDE = 800
"""Limit of the longer side of the image that a notebook shows, pixels."""
COLUMNS = ("query", "SAM score", "presence", "area, pixels", "box x, y, width, height")


def html(segmentation: Segmentation) -> str:
    """Return the image with its masks, and a table of the segments and of the queries that were not found, as HTML."""
    import cv2  # imported here to keep the start-up fast

    pixels = overlay(segmentation, legend=False)
    height, width = pixels.shape[:2]
    scale = LONG_SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    rows = []
    for query, (red, green, blue) in colours_of(segmentation.maps.queries).items():
        name = f'<span style="color: rgb({red},{green},{blue})">&#9632;</span> {escape(query)}'
        rows += [
            (
                name,
                f"{found.sam_score:.2f}",
                f"{found.presence:.2f}",
                f"{found.area:,}",
                ", ".join(map(str, found.box_xywh)),
            )
            for found in segmentation.of(query)
        ] or [(escape(query), escape(segmentation.verdict(query)), "", "", "")]
    head = "".join(f"<th>{title}</th>" for title in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    image = f'<img src="{jpeg_url(pixels)}" alt="{escape(repr(segmentation))}">'
    return f"<div>{image}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def plot(segmentation: Segmentation, axes: Any = None) -> Any:
    """See `Segmentation.plot`."""
    from matplotlib.patches import Patch

    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(layout="constrained")  # with room for the legend
    axes.imshow(overlay(segmentation, legend=False))
    axes.set_axis_off()
    colours = colours_of(segmentation.maps.queries)
    patches = [Patch(color=f"#{bytes(colour).hex()}") for colour in colours.values()]
    legend = axes.legend(patches, ["-"] * len(colours), loc="upper center", bbox_to_anchor=(0.5, 0))
    for text, query in zip(legend.get_texts(), colours, strict=True):
        text.set_parse_math(False)  # a query may have a "$"
        text.set_text(printable(f"{query} {segmentation.verdict(query)}"))
    return axes


def save(
    segmentation: Segmentation,
    folder: str | os.PathLike[str],
    kinds: str | Iterable[SaveKind],
    *,
    provenance: Mapping[str, Any] | None,
    overwrite: bool,
) -> list[Path]:
    """See `Segmentation.save`."""
    given: list[str] = kinds.split(",") if isinstance(kinds, str) else [*kinds]
    chosen: list[SaveKind] = [kind for kind in WRITERS if kind in given]
    if unknown := [kind for kind in given if kind not in WRITERS]:
        raise SettingsError(f"kinds of image files are {', '.join(WRITERS)}; got {', '.join(map(str, unknown))}")
    stem = PurePath(image_entry(segmentation.image)["file_name"]).stem
    name = fit_file_name(stem, "_coco.json")
    dataset = to_coco(segmentation, provenance=provenance, encoding="rle")
    dataset["images"][0]["pixels_sha256"] = hashlib.sha256(segmentation.image.pixels.tobytes()).hexdigest()
    # The stem is a part of the command, so that the files of other images are not discarded.
    target = OutputFolder(folder, command=f"python {json.dumps(stem)}", flag="folder", overwrite=overwrite)
    target.check(name)
    if not overwrite:
        _check_same_result(target.folder / name, dataset)
    files: list[tuple[str, Iterable[bytes]]] = [(name, json_chunks(target.folder / name, dataset))]
    for part, file, content in image_files(segmentation, stem, chosen):
        files.append((f"{part}/{file}" if part else file, [content]))
    written = target.write(files)
    if overwrite:
        target.discard_earlier(keep={each for each, _ in files})
    return written


def _check_same_result(path: Path, dataset: Json) -> None:
    """Raise `OutputError` if a COCO file that `save` wrote has another result, or is of another image with the same
    stem."""
    if not exists(path, OutputError):
        return
    (image,) = dataset["images"]
    for earlier in read_dataset(path)["images"]:
        if any(earlier[key] != image[key] for key in ("file_name", "pixels_sha256") if key in earlier):
            raise OutputError(
                f"{path} is the result of another image with this name, {shown(earlier['file_name'])}; choose another "
                "folder, or replace that result with overwrite=True"
            )
    if read_file(path, OutputError) != b"".join(json_chunks(path, dataset)):
        raise OutputError(
            f"{path} has another result of this image, of other queries, settings or weights, or was saved with "
            "another provenance; choose another folder, or replace that result with overwrite=True"
        )


def to_coco(segmentation: Segmentation, *, provenance: Mapping[str, Any] | None, encoding: Encoding) -> Json:
    """See `Segmentation.to_coco`."""
    return build_dataset([segmentation], provenance=provenance, encoding=encoding)


def to_supervision(segmentation: Segmentation) -> Any:
    """See `Segmentation.to_supervision`."""
    try:
        import supervision
    except ImportError as error:
        raise SettingsError('to_supervision needs supervision: pip install "text2seg[supervision]"') from error
    segments = [segment for segment in segmentation.segments if segment.area]
    if not segments:
        return supervision.Detections.empty()
    boxes = np.array([segment.box_xywh for segment in segments], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    queries = segmentation.maps.queries
    return supervision.Detections(
        xyxy=boxes,
        mask=np.stack([segment.mask for segment in segments]),
        confidence=np.array([segment_score(segment, segmentation) for segment in segments], np.float32),
        class_id=np.array([queries.index(segment.query) for segment in segments], np.int64),
        data={"class_name": np.array([segment.query for segment in segments])},
    )
