"""Answers of an index to queries: the presence in each image, the best images, and both as files."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from text2seg.clip.maps import TEMPLATE
from text2seg.clip.model import ImageTokens, texts_of
from text2seg.errors import ImageError
from text2seg.io.files import fitting
from text2seg.io.images import load_image
from text2seg.io.outputs import OutputFolder
from text2seg.io.storage import Place
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query
from text2seg.records import Failure
from text2seg.render.sheet import sheet
from text2seg.search.index import VectorIndex

AT_ONCE = 4096  # images whose vectors are unpacked together
SHORTLIST, DEEPER = 4096, 64  # vectors that FAISS finds: at least so many, and so many for each image asked for


@dataclass(frozen=True, slots=True)
class Hit:
    """An image found: its `presence` of the query from 0 to 1, and the `cosine` of its vector nearest to the words."""

    file: str
    presence: float
    cosine: float


def presence_in(
    models: Text2Seg, index: VectorIndex, files: Sequence[str], queries: Sequence[Query]
) -> NDArray[np.float32]:
    """How sure the vectors of these images are of the queries, float32 [N, Q] in [0, 1].

    As presence in `query_maps`, but with the patches that the index keeps only: up to rounding it is never higher.
    """
    texts = texts_of(queries)
    row_of = {wordings: row for row, wordings in enumerate(texts)}
    found = np.zeros((len(files), len(queries)), np.float32)
    for start in range(0, len(files), AT_ONCE):
        tokens = _as_tokens(models, index.vectors(files[start : start + AT_ONCE]))
        highest = models.clip.patch_presence(tokens, texts).max(2)
        for number, query in enumerate(queries):
            rows = [row_of[part] for part in query.parts]
            found[start : start + AT_ONCE, number] = highest[rows].min(0)
    return found


def best_images(
    models: Text2Seg, index: VectorIndex, query: Query, top: int, among: Collection[str]
) -> tuple[Hit, ...]:
    """The `top` images that show a query best, of those in `among`; the surest first, then by name.

    FAISS finds the vectors nearest to the words; of the images that they are of, presence decides.
    """
    features = models.clip.encode_texts(query.parts, (TEMPLATE,)).cpu().numpy()
    count = max(SHORTLIST, DEEPER * top)
    near = [index.nearest(feature, count, among) for feature in features]
    files = sorted({file for each in near for file in each})
    presence = presence_in(models, index, files, [query])[:, 0]
    order = np.lexsort((np.arange(len(files)), -presence))[:top]
    cosines = np.einsum("nvc,qc->nqv", index.vectors([files[n] for n in order]), features) if files else np.zeros(0)
    return tuple(
        Hit(files[n], float(presence[n]), float(own.max(1).min())) for n, own in zip(order, cosines, strict=True)
    )


def _as_tokens(models: Text2Seg, vectors: NDArray[np.float32]) -> ImageTokens:
    """Vectors [N, V, C] as the patches of one image of N rows; what stands for CLS is never looked at."""
    count, each, width = vectors.shape
    patches = torch.from_numpy(vectors.reshape(count * each, width))
    features = torch.cat([torch.zeros(1, width, dtype=torch.float32, device="cpu"), patches]).to(models.clip.device)
    return ImageTokens(features, (count, each), (count, each))


MOST_SHOWN = 60  # images on a sheet; the JSON has all
SEARCH_FILE = "search.json"
_DIGITS = 4

_log = logging.getLogger(__name__)


def write_results(
    output: Path, folder: Place, found: Mapping[str, Sequence[Hit]], failures: Sequence[Failure]
) -> list[Path]:
    """`search.json` and a sheet for each query that found something; gives what was written. Raises `OutputError`."""
    content = {
        "folder": str(folder),
        "queries": {
            query: [
                {"file": hit.file, "presence": round(hit.presence, _DIGITS), "cosine": round(hit.cosine, _DIGITS)}
                for hit in hits
            ]
            for query, hits in found.items()
        },
        "failures": [{"file_name": each.file_name, "stage": each.stage, "message": each.message} for each in failures],
    }
    text = json.dumps(content, indent=1) + "\n"
    results = OutputFolder(output)
    written = results.write([(SEARCH_FILE, [text.encode("ascii")])])
    for number, (query, hits) in enumerate(found.items(), start=1):
        name = re.sub(r"[^\w]+", "-", query).strip("-")[:60]
        image = _sheet(folder, query, hits)
        if image is not None:
            written += results.write([(fitting(f"{number:02}-{name}", ".png"), [image])])
    return written


def _sheet(folder: Place, query: str, hits: Sequence[Hit]) -> bytes | None:
    """A PNG of the images, the best first; none where none can be read any more."""
    cells = []
    for rank, hit in enumerate(hits[:MOST_SHOWN], start=1):
        try:
            pixels = load_image(folder / hit.file).pixels
        except ImageError as error:
            _log.warning("%s", error)
            continue
        image = PillowImage.fromarray(pixels)
        image.thumbnail((300, 300))
        cells.append((f"{rank}. {hit.presence:.2f} {hit.file}", np.asarray(image)))
    if not cells:
        return None
    buffer = io.BytesIO()
    PillowImage.fromarray(sheet(cells, title=query)).save(buffer, "PNG")
    return buffer.getvalue()
