"""Vectors of a folder's images in one file: a FAISS index, and a table of which image each vector is of.

A small object is one or two patches of many hundred. It hardly moves the CLS token or the mean, and k-means gives its
clusters to the background. So an image is kept as the patches that lie farthest from those chosen before.
Source: T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer Science 38
(1985), the greedy algorithm. Measurements: docs/measurements/search.md."""

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
from torch import Tensor

from text2seg.clip.model import ImageTokens
from text2seg.errors import OutputError, SettingsError
from text2seg.io.files import exists, open_file, write_atomically
from text2seg.runtime import FULL, autocast

VECTORS = 16


@torch.inference_mode()
def image_vectors(tokens: ImageTokens, count: int = VECTORS) -> NDArray[np.float32]:
    """Unit vectors float32 [min(count, patches), C]; the first is the patch that is least like the image's mean."""
    patches = tokens.features[1:]
    with autocast(patches.device, FULL):  # no autocast of the caller's
        chosen = _farthest(patches, count)
    return np.ascontiguousarray(torch.cat(chosen).float().cpu().numpy())


def _farthest(patches: Tensor, count: int) -> list[Tensor]:
    """Patches [1, C], each the one that is least like those before it."""
    chosen = [_least(patches, patches @ patches.mean(0))]
    closest = patches @ chosen[0][0]  # of each patch, the cosine to the nearest one chosen
    while len(chosen) < min(count, len(patches)):
        chosen.append(_least(patches, closest))
        closest = torch.maximum(closest, patches @ chosen[-1][0])
    return chosen


def _least(patches: Tensor, values: Tensor) -> Tensor:
    """The patch [1, C] of the lowest value; its number stays on the device."""
    return patches.index_select(0, values.argmin()[None])


FORMAT = 1  # counts up when vectors are made in another way, so that old ones are not found any more
_KEY = "text2seg_search"
_WITH_IDS, _FLAT, _HEADER = b"IxM2", b"IxSQ", 37  # how FAISS marks the two kinds, and where the inner one begins

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """An image in the index: its number there, the file's bytes and time of change when it was encoded, its size."""

    number: int
    stamp: tuple[int, int]
    hw: tuple[int, int]


class VectorIndex:
    """Vectors in memory, as float16, from a file and back into it. For one thread at a time."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        """An empty one; `VectorIndex.open` reads what is there."""
        self.path, self._key = path, dict(key)
        self._faiss = import_faiss()
        self._vectors: Any = None  # made with the first image, which says how long vectors are
        self._entries: dict[str, Entry] = {}
        self._next = 0

    @classmethod
    def open(cls, path: Path, key: Mapping[str, Any]) -> VectorIndex:
        """What the file at `path` holds, or an empty index where it is missing, damaged or of another key.

        Args:
            key: all that vectors depend on beside the image, plain JSON.

        Raises:
            SettingsError: FAISS is not installed.
            OutputError: it is no file, or may not be read.
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
        """Add an image, in place of what there was of that file; `vectors` are unit float32 [V, C], as many for
        every image."""
        self.drop([file])
        if self._vectors is None:
            half = self._faiss.ScalarQuantizer.QT_fp16
            flat = self._faiss.IndexScalarQuantizer(vectors.shape[1], half, self._faiss.METRIC_INNER_PRODUCT)
            self._vectors = self._faiss.IndexIDMap2(flat)
        self._vectors.add_with_ids(vectors, self._ids([self._next], len(vectors)))
        self._entries[file] = Entry(self._next, stamp, hw)
        self._next += 1

    def drop(self, files: Iterable[str]) -> int:
        """Forget these images; gives how many there were."""
        gone = [entry.number for file in files if (entry := self._entries.pop(file, None))]
        if gone:
            self._vectors.remove_ids(self._ids(gone, VECTORS))
        return len(gone)

    def vectors(self, files: Sequence[str]) -> NDArray[np.float32]:
        """Those of these images, float32 [N, V, C]; raises `KeyError` where one is not in the index."""
        numbers = [self._entries[file].number for file in files]
        if not numbers:
            return np.zeros((0, 0, 0), np.float32)
        each = self._vectors.ntotal // len(self)
        found: NDArray[np.float32] = self._vectors.reconstruct_batch(self._ids(numbers, each))
        return found.reshape(len(numbers), each, -1)

    def nearest(self, feature: NDArray[np.float32], count: int, among: Collection[str]) -> list[str]:
        """The images of the `count` vectors most like a unit feature float32 [C], by inner product, best first."""
        numbers = {entry.number: file for file, entry in self._entries.items() if file in among}
        if not numbers:
            return []
        how = None
        if len(numbers) < len(self):
            how = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBatch(self._ids(list(numbers), VECTORS)))
        _, found = self._vectors.search(feature[None], min(count, self._vectors.ntotal), params=how)
        return list(dict.fromkeys(numbers[int(row) // VECTORS] for row in found[0] if row >= 0))

    def save(self) -> None:
        """Write the file, whole or not at all. Raises `OutputError` where that cannot be done."""
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
                raise ValueError("it holds another kind of index")  # FAISS has some that name a file to be opened
            self._vectors = self._faiss.deserialize_index(np.frombuffer(content, np.uint8))

    @staticmethod
    def _ids(numbers: Sequence[int], each: int) -> NDArray[np.int64]:
        """The ids of the first `each` vectors of these images."""
        return (np.array(numbers, np.int64)[:, None] * VECTORS + np.arange(each)).ravel()


def import_faiss() -> Any:
    """FAISS, or a `SettingsError` that says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise SettingsError('a vector index needs FAISS: pip install "text2seg[search]"') from error
    return faiss
