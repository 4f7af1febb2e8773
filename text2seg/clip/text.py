"""Text features of queries: templates, tokens, the text tower, and a cache on disk.

One query is 85 texts to encode, which takes minutes for a long ontology on a CPU. So one SQLite file holds the
features. Processes share it; a damaged file is thrown away, because everything in it can be computed again."""

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

from text2seg.clip.build import import_clip
from text2seg.clip.vit import scaled
from text2seg.errors import OutputError, QueryError
from text2seg.io.files import expanded, make_folder
from text2seg.runtime import Defaults

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


log = logging.getLogger(__name__)

CACHED_QUERIES = 4096
WRITTEN_AT_ONCE = 128  # queries; a stop loses no more than these

TextNetwork = Callable[[Tensor], Tensor]
"""From tokens int64 [T, up to context] to unit features float32 [T, C]."""


@cache
def tokenizer() -> Any:
    """CLIP's own, read once."""
    return import_clip().simple_tokenizer.SimpleTokenizer()


def tokenize(texts: list[str], context: int) -> tuple[Tensor, int]:
    """CLIP's tokens, int64 [T, context], and how many tokens the longest text was over.

    Text past the context is cut off; the caller says so.
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
    """Unit text features float32 [T, C] of tokens int64 [T, context], by CLIP's text tower.

    Positions past the longest text are left off: under the causal mask they change nothing.
    """
    return encode_trimmed(model, trimmed(tokens))


def trimmed(tokens: Tensor) -> Tensor:
    """Tokens int64 [T, context] without the positions past the longest text; the last token has the highest number."""
    return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


def encode_trimmed(model: Any, tokens: Tensor, ends: Tensor | None = None) -> Tensor:
    """As `encode_tokens`, of all positions that are given, [T, up to context].

    The model is a CLIP, of OpenAI's package or of open_clip, or the text tower of one. `ends` int64 [T] is where each
    text ends; by default at its highest token, which CLIP's end of text is.
    """
    ends, length = tokens.argmax(dim=1) if ends is None else ends, tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    blocks = model.transformer.resblocks
    batch_first = blocks[0].attn.batch_first  # open_clip's are, OpenAI's not
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
    """How one CLIP reads."""

    tokenize: Callable[[list[str]], tuple[Tensor, int]]
    """Tokens int64 [T, context] of texts, and how many tokens the longest is over."""
    trim: Callable[[Tensor], Tensor]
    """Leaves off positions that change nothing."""
    encode: TextNetwork
    context: int
    device: torch.device


def openai_texts(model: Any) -> TextTower:
    """That of a CLIP of OpenAI's package."""
    context, device = model.positional_embedding.shape[0], model.positional_embedding.device
    return TextTower(partial(tokenize, context=context), trimmed, partial(encode_trimmed, model), context, device)


class TextEncoder:
    """One CLIP's text features, each the normalised mean over the templates; kept for the latest queries, and on disk
    where there is a cache."""

    def __init__(self, model: Any, cache: TextCache | None = None, *, tower: TextTower | None = None) -> None:
        """`tower` is how the model reads where that is not as OpenAI's do."""
        self._tower, self._cache = tower or openai_texts(model), cache
        self.network: TextNetwork = self._tower.encode
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], Tensor] = OrderedDict()
        self._cut: OrderedDict[tuple[str, tuple[str, ...]], None] = OrderedDict()

    def is_cut(self, query: str, templates: tuple[str, ...]) -> bool:
        """Whether a query whose features were asked for is longer, in its templates, than CLIP reads."""
        return (query, templates) in self._cut

    def forget(self) -> None:
        """Forget all that is kept, and use no disk any more: every text goes through the network again."""
        self._kept.clear()
        self._cache = None

    def __call__(self, queries: Sequence[str], templates: tuple[str, ...]) -> Tensor:
        """Unit features float32 [Q, C]. The empty string is a query like any other.

        Raises:
            QueryError: the features are not finite, so the weights are damaged.
        """
        found = {query: kept for query in queries if (kept := self._kept.get((query, templates))) is not None}
        missing = [query for query in dict.fromkeys(queries) if query not in found]
        for start in range(0, len(missing), WRITTEN_AT_ONCE):
            some = missing[start : start + WRITTEN_AT_ONCE]
            found |= self._fetch(some, templates)
        return torch.stack([found[query] for query in queries])

    def _fetch(self, queries: Sequence[str], templates: tuple[str, ...]) -> dict[str, Tensor]:
        """Features from the disk, the rest from the network; remembered in both places."""
        stored = self._cache.read(queries, templates) if self._cache else {}
        found = {query: torch.from_numpy(features).to(self._tower.device) for query, features in stored.items()}
        missing = [query for query in queries if query not in found]
        fresh = {}
        for query, (features, whole) in self._encode(missing, templates).items() if missing else ():
            found[query] = features
            if whole:  # one that was cut off should be warned about in the next process too
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
        """Features by the network, and whether CLIP could read all of each query.

        Features are kept, so those of a query must not hang on what it was first asked together with. But the shape
        of a batch, and on some processors the place in it, change the last digits; so each query, with all its
        templates, goes through the network alone.
        """
        tower = self._tower
        whole: dict[str, bool] = {}
        found: dict[str, Tensor] = {}
        for query in queries:
            # replace, not format: other braces in a template are letters like any other
            with Defaults():  # other packages' tokenizers leave the device to the program around
                tokens, over = tower.tokenize([template.replace("{}", query) for template in templates])
            if over > 0:
                log.warning(
                    "query %.40r… is too long: CLIP reads %d tokens and it has %d more, which are cut off",
                    query,
                    tower.context,
                    over,
                )
            whole[query] = over <= 0
            if over > 0:
                self._cut[query, templates] = None
            features = self.network(tower.trim(tokens).to(tower.device))
            found[query] = F.normalize(features.mean(dim=0), dim=-1)
        for query in queries:
            if not found[query].isfinite().all():
                raise QueryError(f"the text features of {query!r} are not finite; are the CLIP weights damaged?")
        return {query: (found[query], whole[query]) for query in queries}
