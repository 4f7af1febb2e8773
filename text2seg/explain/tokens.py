"""A text as CLIP's tokens, and tokens as text again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text2seg.clip.model import Clip
from text2seg.clip.text import tokenize, tokenizer
from text2seg.errors import QueryError
from text2seg.explain.saliency.trace import TextTrace, trace_text


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One text: `ids` int64 [1, 2 + n], start and end included, and how its n tokens are `spelled`; a token that ends
    a word ends with a blank."""

    ids: Tensor
    spelled: tuple[str, ...]

    @property
    def end(self) -> int:
        """The place of the end token, where CLIP reads off what the text means."""
        return self.ids.shape[1] - 1

    def trace(self, model: Any, *, first: int = 0) -> TextTrace:
        """The text tower's run over them; `first` as for `trace_text`."""
        return trace_text(
            model,
            model.token_embedding(self.ids),
            torch.tensor([self.end], dtype=torch.int64, device=self.ids.device),
            first=first,
        )


def tokens_of(clip: Clip, text: str) -> Tokens:
    """The tokens of a text, as it is.

    Raises:
        QueryError: there is no token in it, or it is longer than CLIP reads.
    """
    context = clip.model.positional_embedding.shape[0]
    ids, over = tokenize([text], context)
    if over > 0:
        raise too_long(text, over, context)
    ids = ids[:, : int(ids.argmax()) + 1]
    if ids.shape[1] == 2:
        raise QueryError(f"a text must not be empty, and CLIP reads nothing in {text!r}")
    return Tokens(ids.to(clip.device), tuple(decode([token]) for token in ids[0, 1:-1].tolist()))


def decode(tokens: Iterable[int]) -> str:
    """The text that tokens spell, a blank after each word; letters that are cut in two by tokens become �.

    >>> decode([320, 9629])
    'a sheep '
    """
    text: str = tokenizer().decode(list(tokens))
    return text


def words_of(text: str) -> list[str]:
    """The words of a text that tokens spell, without punctuation and broken letters.

    >>> words_of("fire-engine !! sheep� ) ")
    ['fire-engine', 'sheep']
    """
    stripped = (word.strip("�.,;:!?\"'`()[]{}<>|") for word in text.split())
    return [word for word in stripped if any(letter.isalnum() for letter in word)]


def too_long(text: str, over: int, context: int) -> QueryError:
    """The error that a text is `over` tokens longer than the `context` that CLIP reads."""
    return QueryError(f"{shortened(text)!r} is too long: CLIP reads {context} tokens; shorten it by {over}")


def shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def joined(spelled: Sequence[str], number: int) -> str:
    """The whole word that a token is part of.

    >>> joined(("a ", "xylo", "phone "), 1)
    'xylophone'
    """
    first = number
    while first and not spelled[first - 1].endswith(" "):
        first -= 1
    last = number
    while last + 1 < len(spelled) and not spelled[last].endswith(" "):
        last += 1
    return "".join(spelled[first : last + 1]).strip()
