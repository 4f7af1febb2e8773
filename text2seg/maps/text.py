"""Texts to unit features: templates, tokens, CLIP's text tower, and a cache over queries.

Source: CLIP (arXiv 2103.00020), section 3.1.4 for prompt ensembling over templates.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.errors import QueryError
from text2seg.maps.build import import_clip

log = logging.getLogger(__name__)

CACHED_QUERIES = 4096


@cache
def _tokenizer() -> Any:
    return import_clip().simple_tokenizer.SimpleTokenizer()


def tokenize(texts: list[str], context: int) -> tuple[Tensor, int]:
    """CLIP's tokens, int64 [T, context], and how many tokens the longest text was over.

    Text past the context is cut off; the caller says so.
    """
    tokenizer = _tokenizer()
    start, end = tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]
    tokens = torch.zeros(len(texts), context, dtype=torch.int64)
    over = 0
    for row, text in zip(tokens, texts, strict=True):
        words = tokenizer.encode(text)
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
    """One CLIP's text features, each the normalised mean over the templates; kept for the latest queries."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], Tensor] = OrderedDict()

    def __call__(self, queries: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
        """Unit features float32 [Q, C]. The empty string is a query like any other.

        Raises:
            QueryError: the features are not finite, so the weights are damaged.
        """
        return torch.stack([self._encode(query, templates) for query in queries])

    def _encode(self, query: str, templates: tuple[str, ...]) -> Tensor:
        key = (query, templates)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._encode_fresh(query, templates)
            self._kept[key] = kept
            while len(self._kept) > CACHED_QUERIES:
                self._kept.popitem(last=False)
        return kept

    def _encode_fresh(self, query: str, templates: tuple[str, ...]) -> Tensor:
        context = self._model.positional_embedding.shape[0]
        # replace, not format: other braces in a template are letters like any other
        tokens, over = tokenize([template.replace("{}", query) for template in templates], context)
        if over > 0:
            log.warning(
                "query %.40r… is too long: CLIP reads %d tokens and it has %d more, which are cut off",
                query,
                context,
                over,
            )
        features = encode_tokens(self._model, tokens.to(self._model.positional_embedding.device))
        mean = F.normalize(features.mean(dim=0), dim=-1)
        if not bool(mean.isfinite().all()):
            raise QueryError(f"the text features of {query!r} are not finite; are the CLIP weights damaged?")
        return mean
