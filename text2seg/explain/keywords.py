"""A sentence split into keywords, each with its map and score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from text2seg.errors import QueryError
from text2seg.explain.tool import (
    InputSettings,
    Panel,
    Progress,
    Result,
    Table,
    Tool,
    backdrop,
    check_text,
    image_name,
    is_calibrated,
)
from text2seg.records import Image, calibration_note
from text2seg.templates import TEMPLATES

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True)
class KeywordsSettings(InputSettings):
    """A sentence to split into keywords."""

    text: str = ""
    """The sentence, for instance "a sheep sleeps beside the red fire engine"."""

    def check_given(self) -> None:
        check_text(self.text)


MOST_WORDS = 4
"""Largest number of words of a keyword."""

# Words that separate the objects of a sentence and name neither an object nor a property.
_SEPARATORS = """
    a an the this that these those some any each every all both either neither no another other others such same
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs who whom whose
    which what where when why how there here
    about above across after against along alongside amid among around as at away back before behind below beneath
    beside besides between beyond by down during for forward from in inside into near next of off on onto opposite out
    outside over past per since through throughout to together toward towards under underneath until up upon via with
    within without
    and but or nor so yet if then than because while although though whether
    am is are was were be been being do does did done doing have has had having can could will would shall should may
    might must let not very too also just only quite rather really still almost again once ever never always
    appear appears close full front left right middle top bottom side sides edge corner background foreground
    picture pictures photo photos photograph image images drawing view shot scene lot lots couple few many more most
    much several one two three four five six seven eight nine ten
    sit sits sat sitting stand stands stood standing lie lies lay lying lean leans leaning hang hangs hung hanging
    hold holds held holding carry carries carried carrying wear wears wore wearing walk walks walked walking run runs
    ran ride rides rode riding play plays played playing look looks looked looking watch watches watched watching go
    goes went going come comes came coming get gets got getting take takes took taken taking make makes made making
    eat eats ate eating drink drinks drank sleep sleeps slept sleeping jump jumps jumped jumping fly flies flew
    show shows showed shown showing see sees saw seen seeing put puts putting use uses used using park parks parked
"""
STOP_WORDS = frozenset(_SEPARATORS.split())


def keywords(sentence: str) -> tuple[str, ...]:
    """Return the keywords of an English sentence in lower case, in order, without duplicates.

    The sentence is split at punctuation and at stop words: articles, pronouns, prepositions, conjunctions, auxiliaries,
    small numbers, words about the image itself, and verbs common in captions. Each remaining piece is a keyword. A
    piece of more than four words keeps its last four, because English puts the noun last. Nouns keep their adjectives,
    "fire engine" stays whole, and a verb that is not in the list stays with its noun.

    >>> keywords("A photo of the big red fire engine, and two dogs sleeping beside a woolly sheep.")
    ('big red fire engine', 'dogs', 'woolly sheep')
    """
    chunks: list[list[str]] = [[]]
    for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]", sentence.lower()):
        if word in STOP_WORDS or not word[0].isalnum():
            chunks.append([])
        else:
            chunks[-1].append(word.removesuffix("'s").removesuffix("’s"))
    return tuple(dict.fromkeys(" ".join(chunk[-MOST_WORDS:]) for chunk in chunks if chunk))


def show_keywords(models: Text2Seg, images: Sequence[Image], settings: KeywordsSettings, progress: Progress) -> Result:
    """Show the similarity map of the sentence and of each keyword, by the models' own map settings.

    The table has the presence, the cosine with the whole image (CLIP's unchanged features, templates averaged), and the
    highest score of the map. Keywords that the models do not know are left out.

    Raises:
        QueryError: the sentence is empty, too long or unknown to the models, or has no keyword that they know.
    """
    from text2seg.explain.saliency.targets import text_target
    from text2seg.render.drawing import heat

    (image,) = images
    clip, maps, pixels = models.clip, models.settings.maps, backdrop(image)
    text_target(clip, settings.text, maps.templates, closed_vocabulary=models.closed_vocabulary)  # for its checks
    found = keywords(settings.text)
    if not found:
        raise QueryError(f"there is no keyword in {settings.text!r}: name an object")
    vocabulary = models.closed_vocabulary
    if vocabulary:
        found = tuple(dict.fromkeys(map(vocabulary.as_known, found)))
    unknown = vocabulary.unknown(found) if vocabulary else {}
    if vocabulary and len(unknown) == len(found):
        raise vocabulary.error(unknown.values())
    found = tuple(each for each in found if each not in unknown)
    texts = tuple(dict.fromkeys((settings.text, *found)))
    names = [text if text in found else "the whole sentence" for text in texts]
    (tokens,) = clip.encode_images([image], architecture=maps.architecture)
    similarity = clip.similarity(tokens, texts, maps)
    cosines = (tokens.features[0] @ clip.encode_texts(texts, maps.templates or TEMPLATES).T).tolist()
    rows = tuple(
        (text, presence, cosine, float(scores.max()))
        for text, presence, cosine, scores in zip(
            texts, similarity.presence.tolist(), cosines, similarity.scores, strict=True
        )
    )
    note = calibration_note(is_calibrated(models))
    panels = [
        Panel(f"{name}: presence {presence:.2f}{note}", heat(scores, pixels))
        for name, presence, scores in zip(names, similarity.presence, similarity.scores, strict=True)
    ]
    return Result(
        f"{image_name(image)}: keywords of “{settings.text}”",
        (Panel("the image", pixels), *panels),
        (Table("Sentence and keywords", ("text", f"presence{note}", "cosine", "peak of the map"), rows),),
        unknown=tuple(unknown.values()),
    )


KEYWORDS = Tool(
    "keywords",
    "Keyword maps",
    "A sentence split into keywords, each with its map and score.",
    KeywordsSettings,
    show_keywords,
)
