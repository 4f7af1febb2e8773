"""Text features of queries: templates, tokens, the text tower, and a cache on disk.

A query is encoded in 85 templates, which takes minutes for a long ontology on a CPU. So the features are cached in one
SQLite file that processes share. A damaged file is deleted, because the features can be computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from text2seg.clip.encoders import scaled
from text2seg.errors import OutputError, QueryError
from text2seg.io.files import expand_path
from text2seg.io.writing import make_folder
from text2seg.runtime import Defaults, import_part

ENVIRONMENT_VARIABLE = "TEXT2SEG_TEXT_CACHE"
OFF = "off"
MOST_TEXTS = 20_000  # 40 MB if each has 512 features
CACHED_QUERIES = 4096  # in memory
WRITTEN_AT_ONCE = 128  # queries per write to disk; an interruption loses no more than these
WAIT_SECONDS = 2.0  # longest wait for another process that is writing
FORMAT = 2  # increased whenever texts are encoded in another way, so that older features are not used

_TABLE = "CREATE TABLE IF NOT EXISTS texts (number INTEGER PRIMARY KEY, key BLOB UNIQUE, features BLOB)"
_ALL_BUT_LATEST = "DELETE FROM texts WHERE number <= (SELECT max(number) FROM texts) - ?"

T = TypeVar("T")
TextNetwork = Callable[[Tensor], Tensor]
"""Function from tokens int64 [T, up to context] to unit features float32 [T, C]."""

_log = logging.getLogger(__name__)


class TextCache:
    """Text features of one encoder in a file, which other encoders may share.

    No method raises. If the file cannot be read or written, nothing is found or stored, which is logged.
    """

    def __init__(self, path: Path, encoder: Sequence[str], *, max_texts: int = MOST_TEXTS) -> None:
        """
        Args:
            path: the file; it and its folder are made if missing.
            encoder: everything except the text that features depend on: hash of the checkpoint, precision, type of
                device.
            max_texts: largest number of texts in the file; the oldest are deleted first.
        """
        self.path, self._encoder, self._max_texts = path, list(encoder), max_texts

    @classmethod
    def of_user(cls, encoder: Sequence[str]) -> TextCache | None:
        """Return the cache in the folder `TEXT2SEG_TEXT_CACHE`, by default the user's cache folder; None if the
        variable is "off"."""
        chosen = os.environ.get(ENVIRONMENT_VARIABLE)
        if chosen == OFF:
            return None
        try:
            folder = (
                expand_path(chosen, OutputError)
                if chosen
                else platformdirs.user_cache_path("text2seg", appauthor=False)
            )
        except OutputError as error:
            _log.info("text features are not kept: %s", error)
            return None
        return cls(folder / "texts.sqlite", encoder)

    def read(self, queries: Iterable[str], templates: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the features float32 [C] of those queries that are stored and undamaged."""
        if not os.path.exists(self.path):  # never raises
            return {}

        def select(file: sqlite3.Connection) -> dict[str, NDArray[np.float32]]:
            found = {}
            for query in queries:
                row = file.execute("SELECT features FROM texts WHERE key = ?", [self._key(query, templates)]).fetchone()
                features = None if row is None else _unpack(row[0])
                if features is not None:
                    found[query] = features
            return found

        return self._use(select) or {}

    def write(self, features: Mapping[str, NDArray[np.float32]], templates: Sequence[str]) -> None:
        """Store the features float32 [C] of queries. The oldest in the file are deleted if it is full."""
        rows = [(self._key(query, templates), _pack(of_query)) for query, of_query in features.items()]

        def insert(file: sqlite3.Connection) -> None:
            with file:  # one transaction
                file.executemany("INSERT OR REPLACE INTO texts (key, features) VALUES (?, ?)", rows)
                file.execute(_ALL_BUT_LATEST, [self._max_texts])

        self._use(insert)

    def _key(self, query: str, templates: Sequence[str]) -> bytes:
        return hashlib.sha256(json.dumps([FORMAT, self._encoder, list(templates), query]).encode()).digest()

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Return the result of `work` with the open file, or None if the file cannot be used."""
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


def _pack(features: NDArray[np.float32]) -> bytes:
    content = features.astype("<f4").tobytes()
    return zlib.crc32(content).to_bytes(4, "little") + content


def _unpack(stored: bytes) -> NDArray[np.float32] | None:
    """Return stored features, or None if they are damaged."""
    checksum, content = stored[:4], stored[4:]
    is_intact = len(content) % 4 == 0 and zlib.crc32(content).to_bytes(4, "little") == checksum
    return np.frombuffer(content, "<f4").astype(np.float32) if is_intact else None


@cache
def tokenizer() -> Any:
    """Return CLIP's tokenizer. Its vocabulary is read once."""
    return import_part("clip", "simple_tokenizer").SimpleTokenizer()


def tokenize(texts: list[str], context: int) -> tuple[Tensor, int]:
    """Return CLIP's tokens, int64 [T, context], and by how many tokens the longest text exceeds the context.

    The end of a text that is too long is cut off; the caller warns about it.
    """
    coder = tokenizer()
    start, end = coder.encoder["<|startoftext|>"], coder.encoder["<|endoftext|>"]
    tokens = torch.zeros(len(texts), context, dtype=torch.int64, device="cpu")
    over = 0
    for row, text in zip(tokens, texts, strict=True):
        words = coder.encode(text)
        over = max(over, len(words) + 2 - context)
        ids = [start, *words[: context - 2], end]
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64, device="cpu")
    return tokens, over


def encode_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Encode tokens int64 [T, context] into unit text features float32 [T, C], by CLIP's text tower.

    Positions after the longest text are left out: because of the causal mask, they do not change the features.
    """
    return encode_trimmed(model, trimmed(tokens))


def trimmed(tokens: Tensor) -> Tensor:
    """Return tokens int64 [T, context] without the positions after the longest text, whose last token has the highest
    number."""
    return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


def encode_trimmed(model: Any, tokens: Tensor, ends: Tensor | None = None) -> Tensor:
    """Encode tokens as `encode_tokens` does, but at all given positions, [T, up to context].

    Args:
        model: a CLIP of OpenAI's package or of open_clip, or its text tower.
        tokens: int64 [T, up to context].
        ends: int64 [T], the position of each text's last token; default: that of its highest number, which is CLIP's
            end-of-text token.
    """
    ends, length = tokens.argmax(dim=1) if ends is None else ends, tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    blocks = model.transformer.resblocks
    batch_first = blocks[0].attn.batch_first  # true in open_clip, false in OpenAI's package
    x = x if batch_first else x.transpose(0, 1)
    mask = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
    for block in blocks:
        normed = block.ln_1(x)
        mixed = block.attn(normed, normed, normed, need_weights=False, attn_mask=mask.to(normed.dtype))[0]
        x = x + scaled(block, "ls_1", mixed)
        x = x + scaled(block, "ls_2", block.mlp(block.ln_2(x)))
    x = model.ln_final(x if batch_first else x.transpose(0, 1))
    x, projection = x[torch.arange(x.shape[0], device=x.device), ends], model.text_projection
    features = projection(x) if isinstance(projection, nn.Module) else x if projection is None else x @ projection
    return F.normalize(features.float(), dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class TextTower:
    """Tokenizer and text encoder of one CLIP."""

    tokenize: Callable[[list[str]], tuple[Tensor, int]]
    """Function from texts to tokens int64 [T, context], and by how many tokens the longest exceeds the context."""
    trim: Callable[[Tensor], Tensor]
    """Removes the positions that do not change the features."""
    encode: TextNetwork
    context: int
    device: torch.device


def openai_texts(model: Any) -> TextTower:
    """Return the text tower of a CLIP of OpenAI's package."""
    context, device = model.positional_embedding.shape[0], model.positional_embedding.device
    return TextTower(partial(tokenize, context=context), trimmed, partial(encode_trimmed, model), context, device)


class TextEncoder:
    """Text features of one CLIP, each the normalised mean over the templates. Those of the latest queries are kept in
    memory, and all of them on disk if there is a cache."""

    def __init__(self, model: Any, cache: TextCache | None = None, *, tower: TextTower | None = None) -> None:
        """`tower` is the text tower of the model; default: as OpenAI's models."""
        self._tower, self._cache = tower or openai_texts(model), cache
        self.network: TextNetwork = self._tower.encode
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], Tensor] = OrderedDict()
        self._cut: OrderedDict[tuple[str, tuple[str, ...]], None] = OrderedDict()

    def is_cut(self, query: str, templates: tuple[str, ...]) -> bool:
        """Return whether a query that was encoded is, in these templates, longer than CLIP's context."""
        return (query, templates) in self._cut

    def forget(self) -> None:
        """Drop all features in memory and stop using the disk, so that the network encodes every text again."""
        self._kept.clear()
        self._cache = None

    def __call__(self, queries: Sequence[str], templates: tuple[str, ...]) -> Tensor:
        """Return unit features float32 [Q, C]. A query may be the empty string.

        Raises:
            QueryError: the features are not finite, so the weights are damaged.
        """
        found = {query: kept for query in queries if (kept := self._kept.get((query, templates))) is not None}
        missing = [query for query in dict.fromkeys(queries) if query not in found]
        for start in range(0, len(missing), WRITTEN_AT_ONCE):
            found |= self._fetch(missing[start : start + WRITTEN_AT_ONCE], templates)
        return torch.stack([found[query] for query in queries])

    def _fetch(self, queries: Sequence[str], templates: tuple[str, ...]) -> dict[str, Tensor]:
        """Return features from the disk, or else from the network, and keep them in memory and on disk."""
        stored = self._cache.read(queries, templates) if self._cache else {}
        found = {query: torch.from_numpy(features).to(self._tower.device) for query, features in stored.items()}
        missing = [query for query in queries if query not in found]
        fresh = {}
        for query, (features, is_whole) in self._encode(missing, templates).items() if missing else ():
            found[query] = features
            if is_whole:  # a query that was cut off is not stored, so that the next process warns about it too
                fresh[query] = features.cpu().numpy()
        if self._cache and fresh:
            self._cache.write(fresh, templates)
        for query, features in found.items():
            self._kept[query, templates] = features
        while len(self._kept) > CACHED_QUERIES:
            self._kept.popitem(last=False)
        while len(self._cut) > CACHED_QUERIES:
            self._cut.popitem(last=False)
        return found

    def _encode(self, queries: Sequence[str], templates: tuple[str, ...]) -> dict[str, tuple[Tensor, bool]]:
        """Return features by the network, and whether each query fits into CLIP's context.

        Features are kept, so those of a query must not depend on the other queries of the same call. The shape of a
        batch and, on some processors, the place in it change the last digits. So the network encodes one query at a
        time, with all its templates.
        """
        tower = self._tower
        is_whole: dict[str, bool] = {}
        found: dict[str, Tensor] = {}
        for query in queries:
            # replace, not format: a template may contain other braces
            with Defaults():  # tokenizers of other packages use torch's default device, which the program may change
                tokens, over = tower.tokenize([template.replace("{}", query) for template in templates])
            if over > 0:
                _log.warning(
                    "query %.40r… is too long: CLIP reads %d tokens and it has %d more, which are cut off",
                    query,
                    tower.context,
                    over,
                )
            is_whole[query] = over <= 0
            if over > 0:
                self._cut[query, templates] = None
            features = self.network(tower.trim(tokens).to(tower.device))
            found[query] = F.normalize(features.mean(dim=0), dim=-1)
        for query in queries:
            if not found[query].isfinite().all():
                raise QueryError(f"the text features of {query!r} are not finite; are the CLIP weights damaged?")
        return {query: (found[query], is_whole[query]) for query in queries}
