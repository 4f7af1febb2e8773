"""Texts to unit features: templates, tokens, CLIP's text tower, and caches over queries.

Source: CLIP (arXiv 2103.00020), section 3.1.4 for prompt ensembling over templates.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from text2seg.errors import QueryError
from text2seg.maps.build import import_clip
from text2seg.maps.text_cache import TextCache
from text2seg.maps.vit import scaled
from text2seg.runtime import Defaults

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
