"""Multi-label recognition: which of many labels an image shows, by CLIP's answer for the whole image.

Source: CLIP Surgery (arXiv 2304.05653): the cosines of CLS, which comes from the original path, with feature surgery
over the label set.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from text2seg.clip.maps import cosines, without_label_set
from text2seg.errors import QueryError
from text2seg.explain.backdrop import ground, named
from text2seg.explain.catalogue.recognition import RecognitionSettings
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.pipeline import Text2Seg
from text2seg.queries import DISTRACTORS
from text2seg.records import Image
from text2seg.render.bars import Bar, bars
from text2seg.render.colours import colour_of

SHOWN = 12


def run(models: Text2Seg, images: Sequence[Image], settings: RecognitionSettings, progress: Progress) -> Result:
    """The labels ranked, as bars and as a table, beside the plain cosines and text2seg's own presence.

    Raises:
        QueryError: there is but one label, or one is empty or unknown to the models.
    """
    (image,) = images
    labels = labels_of(models, settings.label)
    texts = models.clip.encode_texts(labels)
    (tokens,) = models.clip.encode_images([image], size=settings.size)
    plain = recognise(tokens.features[0], texts, surgery=False).tolist()
    scores = recognise(tokens.features[0], texts, surgery=True).tolist()
    presence = models.clip.patch_presence(tokens, labels).max((1, 2)).tolist()
    order = sorted(range(len(labels)), key=lambda at: -scores[at])
    longest = max(scores[order[0]], 1e-9)
    lines = [Bar(labels[at], scores[at] / longest, f"{scores[at]:.3f}", colour_of(labels[at])) for at in order[:SHOWN]]
    rows = tuple((labels[at], scores[at], plain[at], presence[at]) for at in order)
    return Result(
        f"{named(image)}: which of {len(labels)} labels it shows",
        (
            Panel("the image", ground(image)),
            Panel(
                "score of each label" if len(lines) == len(labels) else f"score of the first {len(lines)} labels",
                bars(lines),
            ),
        ),
        (Table("labels, the surest first", ("label", "score", "cosine", "presence"), rows),),
        (
            "score: the image's cosine with the label after feature surgery over all labels. In one image surgery "
            "keeps the order of the cosines; it takes off what all labels share, so that scores of different images "
            "can be compared. presence: text2seg's own measure, from the patches.",
        ),
    )


def recognise(features: Tensor, texts: Tensor, *, surgery: bool) -> Tensor:
    """The score of each label for a whole image, float32 [n].

    With surgery a score is f(c) less the mean of f over the labels, where f(c) = c·exp(2c) times a number that the
    image's labels share; f rises with the cosine c wherever c > −½, so an image's own order hardly ever changes.

    Args:
        features: CLS, unit length, [C].
        texts: unit features of the labels, [n, C]; with surgery two or more.
        surgery: take off what all labels light up.
    """
    cls = features[None]
    return (without_label_set(cls, texts) if surgery else cosines(cls, texts))[0]


def labels_of(models: Text2Seg, given: Sequence[str]) -> tuple[str, ...]:
    """The labels asked for, each once; by default all things that the models know, else what images often show.

    Raises:
        QueryError: there is but one, or one is empty or unknown to the models.
    """
    default = models.things.names if models.things else DISTRACTORS
    labels = tuple(dict.fromkeys(label.strip() for label in given or default))
    if len(labels) < 2:
        raise QueryError(f"{labels[0]!r} alone cannot be ranked: give two labels or more")
    check_labels(models, labels)
    return labels


def check_labels(models: Text2Seg, labels: Sequence[str]) -> None:
    """Raises `QueryError` where a label is empty or unknown to the models."""
    for label in labels:
        if not label:
            raise QueryError("a label must not be empty")
        if models.things:
            models.things.check(label)
