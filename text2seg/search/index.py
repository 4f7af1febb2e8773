"""Index of a folder's images, and its answers to queries.

The index is one file: vectors with a FAISS index, and a table from vectors to images.

A small object covers one or two of many hundred patches. It hardly changes the CLS token or the mean, and k-means
spends its clusters on the background. So an image is stored as patches, each the farthest from those chosen before.
Source: T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer Science 38
(1985), the greedy algorithm. Measurements: docs/measurements/accuracy.md#search."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from text2seg.clip.maps import PRESENCE_TEMPLATE, texts_of
from text2seg.clip.model import ImageTokens
from text2seg.errors import ImageError, OutputError, SettingsError
from text2seg.io.files import exists, open_file
from text2seg.io.images import load_image
from text2seg.io.names import fit_file_name, safe_file_name
from text2seg.io.storage import Place
from text2seg.io.writing import write_atomically
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query
from text2seg.records import Failure, calibration_note
from text2seg.render.panels import sheet
from text2seg.render.saving import png
from text2seg.runtime import FULL, autocast
from text2seg.search import SEARCH_FILE, results_folder

VECTORS = 16  # per image


@torch.inference_mode()
def image_vectors(tokens: ImageTokens, count: int = VECTORS) -> NDArray[np.float32]:
    """Return unit vectors float32 [min(count, patches), C]; the first is the patch least similar to the mean."""
    patches = tokens.features[1:]
    with autocast(patches.device, FULL):  # switches off the caller's autocast
        chosen = _farthest(patches, count)
    return np.ascontiguousarray(torch.cat(chosen).float().cpu().numpy())


def _farthest(patches: Tensor, count: int) -> list[Tensor]:
    """Return patches [1, C], each the least similar to those before it."""
    chosen = [_least(patches, patches @ patches.mean(0))]
    closest = patches @ chosen[0][0]  # cosine of each patch to the nearest chosen one
    while len(chosen) < min(count, len(patches)):
        chosen.append(_least(patches, closest))
        closest = torch.maximum(closest, patches @ chosen[-1][0])
    return chosen


def _least(patches: Tensor, values: Tensor) -> Tensor:
    """Return the patch [1, C] with the lowest value, without a copy to the CPU."""
    return patches.index_select(0, values.argmin()[None])


FORMAT = 1  # raise it when vectors are computed differently, so that old indexes are not used
_KEY = "text2seg_search"
_WITH_IDS, _FLAT, _HEADER = (
    b"IxM2",
    b"IxSQ",
    37,
)  # FAISS's marks of the two index types; offset of the inner index in bytes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """An image in the index: number, file size in bytes and modification time when encoded, rows and columns."""

    number: int
    stamp: tuple[int, int]
    hw: tuple[int, int]


class VectorIndex:
    """Vectors in memory as float16, read from and saved to a file. Not safe to share between threads."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        """Make an empty index; `VectorIndex.open` reads a file."""
        self.path, self._key = path, dict(key)
        self._faiss = import_faiss()
        self._vectors: Any = None  # made with the first image, when C is known
        self._entries: dict[str, Entry] = {}
        self._next = 0

    @classmethod
    def open(cls, path: Path, key: Mapping[str, Any]) -> VectorIndex:
        """Read the index at `path`; return an empty index if it is missing, damaged or has another key.

        Args:
            key: Everything that vectors depend on besides the image, as plain JSON.

        Raises:
            SettingsError: FAISS is not installed.
            OutputError: The path is not a file or cannot be read.
        """
        index = cls(path, key)
        try:
            if exists(path, OutputError):
                index._read()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            _log.warning("%s is begun anew: %s", path, error)
            index = cls(path, key)
        return index

    def __len__(self) -> int:
        return len(self._entries)

    def files(self) -> list[str]:
        return list(self._entries)

    def entry(self, file: str) -> Entry | None:
        return self._entries.get(file)

    def put(self, file: str, stamp: tuple[int, int], hw: tuple[int, int], vectors: NDArray[np.float32]) -> None:
        """Add or replace an image. `vectors` are unit vectors float32 [V, C], with the same V for every image."""
        self.drop([file])
        if self._vectors is None:
            half = self._faiss.ScalarQuantizer.QT_fp16
            flat = self._faiss.IndexScalarQuantizer(vectors.shape[1], half, self._faiss.METRIC_INNER_PRODUCT)
            self._vectors = self._faiss.IndexIDMap2(flat)
        self._vectors.add_with_ids(vectors, self._ids([self._next], len(vectors)))
        self._entries[file] = Entry(self._next, stamp, hw)
        self._next += 1

    def drop(self, files: Iterable[str]) -> int:
        """Remove images; return how many were in the index."""
        gone = [entry.number for file in files if (entry := self._entries.pop(file, None))]
        if gone:
            self._vectors.remove_ids(self._ids(gone, VECTORS))
        return len(gone)

    def vectors(self, files: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of images, float32 [N, V, C]. Raises `KeyError` if one is not in the index."""
        numbers = [self._entries[file].number for file in files]
        if not numbers:
            return np.zeros((0, 0, 0), np.float32)
        each = self._vectors.ntotal // len(self)
        found: NDArray[np.float32] = self._vectors.reconstruct_batch(self._ids(numbers, each))
        return found.reshape(len(numbers), each, -1)

    def nearest(self, feature: NDArray[np.float32], count: int, among: Collection[str]) -> list[str]:
        """Return the images of the `count` vectors with the highest inner product to a feature [C], best first."""
        numbers = {entry.number: file for file, entry in self._entries.items() if file in among}
        if not numbers:
            return []
        how = None
        if len(numbers) < len(self):
            how = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBatch(self._ids(list(numbers), VECTORS)))
        _, found = self._vectors.search(feature[None], min(count, self._vectors.ntotal), params=how)
        return list(dict.fromkeys(numbers[int(row) // VECTORS] for row in found[0] if row >= 0))

    def save(self) -> None:
        """Write the file atomically. Raises `OutputError` if it cannot be written."""
        table = [[file, entry.number, *entry.stamp, *entry.hw] for file, entry in self._entries.items()]
        content = self._faiss.serialize_index(self._vectors).tobytes() if self._entries else b""
        about = {_KEY: FORMAT, "key": self._key, "crc": zlib.crc32(content), "next": self._next, "images": table}
        write_atomically(self.path, [json.dumps(about).encode() + b"\n", content])

    def _read(self) -> None:
        with open_file(self.path, OutputError) as file:
            about, content = json.loads(file.readline()), file.read()
        if about[_KEY] != FORMAT or about["key"] != self._key:
            raise ValueError("it is of another version or checkpoint")
        if zlib.crc32(content) != about["crc"]:
            raise ValueError("it is damaged")
        for name, number, size, changed, height, width in about["images"]:
            self._entries[name] = Entry(number, (size, changed), (height, width))
        self._next = about["next"]
        if self._entries:
            if content[:4] != _WITH_IDS or content[_HEADER : _HEADER + 4] != _FLAT:
                raise ValueError("it holds another kind of index")  # some kinds name a file that FAISS would open
            self._vectors = self._faiss.deserialize_index(np.frombuffer(content, np.uint8))

    @staticmethod
    def _ids(numbers: Sequence[int], each: int) -> NDArray[np.int64]:
        """Return the ids of the first `each` vectors of images."""
        return (np.array(numbers, np.int64)[:, None] * VECTORS + np.arange(each)).ravel()


def import_faiss() -> Any:
    """Import FAISS. Raises `SettingsError` with the install command if it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise SettingsError('a vector index needs FAISS: pip install "text2seg[search]"') from error
    return faiss


# ---- answers: presence in each image and the best images, and the files of a search

AT_ONCE = 4096  # images unpacked in one step
SHORTLIST, DEEPER = 4096, 64  # vectors that FAISS returns: at least, and per requested image


@dataclass(frozen=True, slots=True)
class Hit:
    """An image found, with the `presence` of the query in [0, 1] and the highest `cosine` of its vectors to it."""

    file: str
    presence: float
    cosine: float


def presence_in(
    models: Text2Seg, index: VectorIndex, files: Sequence[str], queries: Sequence[Query]
) -> NDArray[np.float32]:
    """Return the presence of the queries in images, float32 [N, Q] in [0, 1].

    Computed like presence in `query_maps`, but from the indexed patches only, so it is never higher, up to rounding.
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
    """Return the `top` images from `among` with the highest presence of a query, sorted by presence, then by name.

    FAISS finds the vectors nearest to the text; their images are ranked by presence.
    """
    features = models.clip.encode_texts(query.parts, (PRESENCE_TEMPLATE,)).cpu().numpy()
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
    """Return vectors [N, V, C] as the patches of one image with N rows and a CLS token of zeros, which is not used."""
    count, each, width = vectors.shape
    patches = torch.from_numpy(vectors.reshape(count * each, width))
    features = torch.cat([torch.zeros(1, width, dtype=torch.float32, device="cpu"), patches]).to(models.clip.device)
    return ImageTokens(features, (count, each), (count, each))


MOST_SHOWN = 60  # images on a sheet; the JSON file has all
_DIGITS = 4


def write_results(
    output: Path,
    folder: Place,
    found: Mapping[str, Sequence[Hit]],
    failures: Sequence[Failure],
    models: str = "",
    *,
    calibrated: bool = True,
    overwrite: bool = False,
) -> list[Path]:
    """Write `search.json` and a sheet for each query with results; return the paths. Raises `OutputError`.

    `models` are the names of the models for people; `calibrated` says whether their presence is. With `overwrite`,
    sheets of an earlier search are deleted.
    """
    content = {
        "folder": str(folder),
        **({"models": models} if models else {}),
        "presence_calibrated": calibrated,
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
    results = results_folder(output, overwrite=overwrite)
    written = results.write([(SEARCH_FILE, [text.encode("ascii")])])
    for number, (query, hits) in enumerate(found.items(), start=1):
        name = safe_file_name(query)
        image = _sheet(folder, query, hits, calibrated=calibrated)
        if image is not None:
            written += results.write([(fit_file_name(f"{number:02}-{name}", ".png"), [image])])
    if overwrite:
        results.discard_earlier(keep={path.relative_to(output).as_posix() for path in written})
    return written


def _sheet(folder: Place, query: str, hits: Sequence[Hit], *, calibrated: bool) -> bytes | None:
    """Return a PNG of the images, the best first; None if no image can be read."""
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
    return png(sheet(cells, title=query if calibrated else f"{query}: presence{calibration_note(calibrated)}"))
