"""The closed vocabulary of a model: the words that it knows, and what is said about the others."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from string import punctuation

from text2seg import weights
from text2seg.errors import QueryError
from text2seg.io.names import question, similar
from text2seg.queries import Query, shown

CLIP_MERGES = 48_895  # lines of the tokenizer's file that CLIP reads
COMMON = 10_000
"""Rank in that file below which a word counts as common."""
_WITHOUT_MEANING = frozenset(["a", "an", "the", "this", "my", "of", "photo", "picture", "image", "drawing"])
_PLURALS = (("", ""), ("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("mice", "mouse"))
"""Endings of words in the plural, and in the singular."""
WAY_OUT_ON_PAGE = "Open “Model” for the list of what it knows. Everything else needs another model"
WAY_OUT_IN_API = "GET /api/v1/health lists what it knows. Everything else needs another model"


class ClosedVocabulary:
    """The things that a model can recognise, each with its wordings.

    `model` and `things` are for messages: the name of the model, and what kind of things these are ("drawn things").
    """

    def __init__(self, wordings: Mapping[str, Sequence[str]], model: str = "", things: str = "things") -> None:
        self.names = tuple(wordings)
        self.wordings = {name: tuple(words) for name, words in wordings.items()}
        self.model, self.things = model, things
        self._words = {wording.lower() for words in wordings.values() for wording in words} | set(self.names)

    def knows(self, wording: str) -> bool:
        """Return whether a query may have this wording: it is known or contains a known one, or its plural ("a big red
        car", "two dogs")."""
        return any(form for _, form in self._read(wording))

    def as_known(self, wording: str) -> str:
        """Return a wording with known words in the singular if they are in the plural ("two dogs": "two dog"): the
        model learned the former only."""
        read = self._read(wording)
        has_plural = any(form and form != words for words, form in read)
        return " ".join(form or words for words, form in read) if has_plural else wording

    def _read(self, wording: str) -> list[tuple[str, str]]:
        """Split a wording into the longest known phrases and other words, without punctuation and in lower case. Each
        comes with the known wording that it is, or of which it is the plural; empty for other words."""
        words = [bare for word in wording.lower().split() if (bare := word.strip(punctuation))]
        found, place = list[tuple[str, str]](), 0
        while place < len(words):
            phrases = ((end, " ".join(words[place:end])) for end in range(len(words), place, -1))
            known = ((end, phrase, form) for end, phrase in phrases if (form := self._form(phrase)))
            place, phrase, form = next(known, (place + 1, words[place], ""))
            found.append((phrase, form))
        return found

    def _form(self, words: str) -> str:
        """Return the known wording that `words` are, or of which they are the plural; empty if there is none."""
        forms = (f"{words.removesuffix(end)}{one}" for end, one in _PLURALS if words.endswith(end))
        return next((form for form in forms if form in self._words), "")

    def close_to(self, wording: str) -> list[str]:
        """Return up to three known wordings that a person may have meant.

        They are spelled nearly like this one. For a common word, which is no slip of the keyboard, they are only its
        plural, and those that name a kind of it: "fire truck" for "truck", but not "bear" for "pear".
        """
        typed = wording.casefold()
        if forms := [form for words, form in self._read(wording) if form and form != words]:
            return forms
        if all(_is_common(word) for word in typed.split()):
            return sorted(known for known in self._words if known == f"{typed}s" or known.endswith(f" {typed}"))[:3]
        return similar(wording, self._words)

    def unknown(self, wordings: Iterable[str]) -> dict[str, str]:
        """Return for each unknown text a sentence that says so and suggests the closest known wordings.

        These are texts that CLIP reads as they are, so the plural of a known word is unknown here. A query has the
        singular in its place.
        """
        return {each: self._sentence([each]) for each in wordings if not self._knows_text(each)}

    def _knows_text(self, text: str) -> bool:
        return any(form == words for words, form in self._read(text))

    def known_part(self, wording: str) -> tuple[str, ...]:
        """Return the known wordings in a text that also has other words ("red car": "car").

        It is empty if the others are only articles and the like ("a photo of my car").
        """
        read = self._read(wording)
        has_others = any(not form and words not in _WITHOUT_MEANING for words, form in read)
        return tuple(dict.fromkeys(words for words, form in read if form)) if has_others else ()

    def half_known(self, query: Query) -> str:
        """Return a sentence that says which words of a query the model knows; empty if it knows all, or none."""
        if self._without_unknown(query) is None:
            return ""
        left_out = [each for each in _wordings(query) if not self.knows(each)]
        parts = {each: part for each in _wordings(query) if (part := self.known_part(each))}
        says = [f"knows only {' and '.join(map(shown, part))} of {shown(each)}" for each, part in parts.items()]
        hint = question(each for wording in left_out for each in self.close_to(wording))
        if left_out:
            words = " and ".join(map(shown, left_out))
            says.append(f"leaves {words} out of {shown(query.name)}, as it does not know it")
        return f"{self._who} {' and '.join(says)}.{hint}" if says else ""

    def check(self, wording: str) -> None:
        """Raise `QueryError` if a text is unknown, like `unknown`."""
        if not self._knows_text(wording):
            raise self.error([self._sentence([wording])])

    def split(self, queries: Iterable[Query]) -> tuple[tuple[Query, ...], dict[str, str]]:
        """Split queries into those that the model knows and those that it does not know.

        Returns:
            The known queries without the wordings and negatives that are unknown (see `half_known`) and with their
            plurals in the singular, and for the name of each other query a sentence that says which of its words are
            unknown. A query is unknown if all wordings of one of its parts are.
        """
        known, unknown = [], {}
        for query in queries:
            rest = self._without_unknown(query)
            if rest is None:
                unknown[query.name] = self._sentence([each for each in _wordings(query) if not self.knows(each)])
            else:
                known.append(rest)
        return tuple(known), unknown

    def _without_unknown(self, query: Query) -> Query | None:
        """Return a query with its known wordings only, or None if all wordings of a part are unknown."""
        parts = tuple(self._known(part) for part in query.parts)
        return replace(query, parts=parts, negatives=self._known(query.negatives)) if all(parts) else None

    def _known(self, wordings: Iterable[str]) -> tuple[str, ...]:
        """Return the known wordings, each once, as the model learned them."""
        return tuple(dict.fromkeys(self.as_known(each) for each in wordings if self.knows(each)))

    @property
    def way_out(self) -> str:
        """What a person does about words that the vocabulary lacks."""
        shows = f"text2seg checkpoints show {self.model} lists what it knows; " if self.model else ""
        pair = weights.PUBLISHED[0]
        return f"{shows}for everything else take real weights: {weights.download_hint()}, then --model {pair}"

    def error(self, sentences: Iterable[str]) -> QueryError:
        """Return the error for sentences of `split`, with the way out."""
        first, *others = sentences
        says = " ".join([first, *(each[:1].upper() + each[1:] for each in others)])
        return QueryError(
            f"{says} {self.way_out}.", on_page=f"{says} {WAY_OUT_ON_PAGE}.", in_api=f"{says} {WAY_OUT_IN_API}."
        )

    def _sentence(self, wordings: Sequence[str]) -> str:
        hint = question(each for wording in wordings for each in self.close_to(wording))
        return f"{self._who} does not know {' and '.join(map(shown, wordings))}.{hint}"

    @property
    def _who(self) -> str:
        return f"the {self.model} model" if self.model else "this model"


def _wordings(query: Query) -> tuple[str, ...]:
    """Return all wordings and negatives of a query, each once."""
    return tuple(dict.fromkeys([*(each for part in query.parts for each in part), *query.negatives]))


def _is_common(word: str) -> bool:
    """Return whether a word is common in the texts that CLIP learned from: one of the first words of its tokenizer, or
    any word of it whose plural is one too. Rare words of the tokenizer can be slips of the keyboard ("shep")."""
    ranks = _words_of_clip()
    return word in ranks and (ranks[word] < COMMON or f"{word}s" in ranks)


@cache
def _words_of_clip() -> dict[str, int]:
    """Return the words that are one token of CLIP's tokenizer, with their rank by frequency; empty if the package is
    not there."""
    package = find_spec("clip")
    if package is None or package.origin is None:
        return {}
    try:
        merges = gzip.decompress(Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes())
    except OSError:
        return {}
    tokens = ("".join(line.split()) for line in merges.decode().split("\n")[1:CLIP_MERGES])
    return {token.removesuffix("</w>"): rank for rank, token in enumerate(tokens) if token.endswith("</w>")}
