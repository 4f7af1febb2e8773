"""Texts to unit features: templates, tokens, CLIP's text tower, and caches over queries.

Source: CLIP (arXiv 2103.00020), section 3.1.4 for prompt ensembling over templates.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.errors import QueryError
from text2seg.maps.build import import_clip
from text2seg.maps.text_cache import TextCache

log = logging.getLogger(__name__)

CACHED_QUERIES = 4096
WRITTEN_AT_ONCE = 128  # queries; a stop loses no more than these
TEXTS_AT_ONCE = 128  # one query with all its templates, or a vocabulary with one


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
    tokens = torch.zeros(len(texts), context, dtype=torch.int64)
    over = 0
    for row, text in zip(tokens, texts, strict=True):
        words = coder.encode(text)
        over = max(over, len(words) + 2 - context)
        ids = [start, *words[: context - 2], end]
        row[: len(ids)] = torch.tensor(ids)
    return tokens, over


def encode_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Unit text features float32 [T, C] of tokens int64 [T, context], by CLIP's text tower.

    Positions past the longest text are left off: under the causal mask they change nothing.
    """
    ends = tokens.argmax(dim=1)
    length = int(ends.max()) + 1
    x = (model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]).transpose(0, 1)
    mask = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
    for block in model.transformer.resblocks:
        normed = block.ln_1(x)
        x = x + block.attn(normed, normed, normed, need_weights=False, attn_mask=mask.to(normed.dtype))[0]
        x = x + block.mlp(block.ln_2(x))
    x = model.ln_final(x).transpose(0, 1)
    features = x[torch.arange(len(x), device=x.device), ends] @ model.text_projection
    return F.normalize(features.float(), dim=-1)


class TextEncoder:
    """One CLIP's text features, each the normalised mean over the templates; kept for the latest queries, and on disk
    where there is a cache."""

    def __init__(self, model: Any, cache: TextCache | None = None) -> None:
        self._model, self._cache = model, cache
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], Tensor] = OrderedDict()

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
        device = self._model.positional_embedding.device
        found = {query: torch.from_numpy(features).to(device) for query, features in stored.items()}
        missing = [query for query in queries if query not in found]
        at_once = max(TEXTS_AT_ONCE // len(templates), 1)
        fresh = {}
        for start in range(0, len(missing), at_once):
            some = missing[start : start + at_once]
            for query, (features, whole) in zip(some, self._encode(some, templates), strict=True):
                found[query] = features
                if whole:  # one that was cut off should be warned about in the next process too
                    fresh[query] = features.cpu().numpy()
        if self._cache and fresh:
            self._cache.write(fresh, templates)
        for query, features in found.items():
            self._kept[query, templates] = features
        while len(self._kept) > CACHED_QUERIES:
            self._kept.popitem(last=False)
        return found

    def _encode(self, queries: Sequence[str], templates: tuple[str, ...]) -> list[tuple[Tensor, bool]]:
        """Features by the network in one batch, and whether CLIP could read all of each query."""
        context = self._model.positional_embedding.shape[0]
        # replace, not format: other braces in a template are letters like any other
        read = [tokenize([template.replace("{}", query) for template in templates], context) for query in queries]
        for query, (_, over) in zip(queries, read, strict=True):
            if over > 0:
                log.warning(
                    "query %.40r… is too long: CLIP reads %d tokens and it has %d more, which are cut off",
                    query,
                    context,
                    over,
                )
        tokens = torch.cat([tokens for tokens, _ in read]).to(self._model.positional_embedding.device)
        features = encode_tokens(self._model, tokens).unflatten(0, (len(queries), -1))
        means = F.normalize(features.mean(dim=1), dim=-1)
        for query, finite in zip(queries, means.isfinite().all(1).tolist(), strict=True):
            if not finite:
                raise QueryError(f"the text features of {query!r} are not finite; are the CLIP weights damaged?")
        return [(mean, over <= 0) for mean, (_, over) in zip(means, read, strict=True)]
