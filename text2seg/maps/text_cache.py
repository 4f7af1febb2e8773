"""Text features on disk, so that a query is encoded once on a machine and not once in each process.

A query is 85 texts to encode, and a long ontology takes minutes on a CPU. One SQLite file holds the features: written
whole or not at all, shared by processes, and thrown away where it is damaged, for all of it can be computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import platformdirs
from numpy.typing import NDArray

from text2seg.errors import OutputError
from text2seg.files import expanded, make_folder

ENVIRONMENT_VARIABLE = "TEXT2SEG_TEXT_CACHE"
OFF = "off"
MOST_TEXTS = 20_000  # 40 MB of 512 numbers each
WAIT_SECONDS = 2.0  # for another process that is writing
FORMAT = 2  # counts up when texts are encoded in another way, so that old features are not found any more

_TABLE = "CREATE TABLE IF NOT EXISTS texts (number INTEGER PRIMARY KEY, key BLOB UNIQUE, features BLOB)"
_ALL_BUT_LATEST = "DELETE FROM texts WHERE number <= (SELECT max(number) FROM texts) - ?"

T = TypeVar("T")

_log = logging.getLogger(__name__)


class TextCache:
    """The features of one encoder's texts in a file that other encoders may share.

    Nothing here fails: where the file cannot be read or written, texts are not found and not kept, and the log says so.
    """

    def __init__(self, path: Path, encoder: Sequence[str], *, most: int = MOST_TEXTS) -> None:
        """
        Args:
            path: of the file; it and its folder are made if missing.
            encoder: all that features depend on beside their text: the checkpoint's hash, precision, kind of device.
            most: texts that the file may hold; the oldest go first.
        """
        self.path, self._encoder, self._most = path, list(encoder), most

    @classmethod
    def of_user(cls, encoder: Sequence[str]) -> TextCache | None:
        """The one in the folder that `TEXT2SEG_TEXT_CACHE` names, else in the user's cache folder; none where it is
        "off"."""
        chosen = os.environ.get(ENVIRONMENT_VARIABLE)
        if chosen == OFF:
            return None
        try:
            folder = (
                expanded(chosen, OutputError) if chosen else platformdirs.user_cache_path("text2seg", appauthor=False)
            )
        except OutputError as error:
            _log.info("text features are not kept: %s", error)
            return None
        return cls(folder / "texts.sqlite", encoder)

    def read(self, queries: Iterable[str], templates: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The features float32 [C] of those queries that are there and whole."""
        if not os.path.exists(self.path):  # never raises
            return {}

        def look(file: sqlite3.Connection) -> dict[str, NDArray[np.float32]]:
            found = {}
            for query in queries:
                row = file.execute("SELECT features FROM texts WHERE key = ?", [self._key(query, templates)]).fetchone()
                features = None if row is None else _unpacked(row[0])
                if features is not None:
                    found[query] = features
            return found

        return self._use(look) or {}

    def write(self, features: Mapping[str, NDArray[np.float32]], templates: Sequence[str]) -> None:
        """Keep the features float32 [C] of queries; the oldest make room."""
        rows = [(self._key(query, templates), _packed(each)) for query, each in features.items()]

        def keep(file: sqlite3.Connection) -> None:
            with file:  # one transaction
                file.executemany("INSERT OR REPLACE INTO texts (key, features) VALUES (?, ?)", rows)
                file.execute(_ALL_BUT_LATEST, [self._most])

        self._use(keep)

    def _key(self, query: str, templates: Sequence[str]) -> bytes:
        return hashlib.sha256(json.dumps([FORMAT, self._encoder, list(templates), query]).encode()).digest()

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What the work with the open file gives, nothing where something is wrong with the file."""
        try:
            make_folder(self.path.parent)
            with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS)) as file:
                file.execute(_TABLE)
                return work(file)
        except sqlite3.OperationalError as error:  # locked, read-only, on a full disk
            _log.info("text features are not kept in %s: %s", self.path, error)
        except sqlite3.DatabaseError as error:
            _log.info("%s is damaged and begun anew: %s", self.path, error)
            self._remove()
        except (OSError, ValueError, OutputError) as error:
            _log.info("text features are not kept: %s", error)
        return None

    def _remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            _log.info("%s cannot be removed: %s", self.path, error)


def _packed(features: NDArray[np.float32]) -> bytes:
    content = features.astype("<f4").tobytes()
    return zlib.crc32(content).to_bytes(4, "little") + content


def _unpacked(stored: bytes) -> NDArray[np.float32] | None:
    """Nothing where a bit has flipped."""
    checksum, content = stored[:4], stored[4:]
    whole = len(content) % 4 == 0 and zlib.crc32(content).to_bytes(4, "little") == checksum
    return np.frombuffer(content, "<f4").astype(np.float32) if whole else None
