"""What a saliency map is asked about: a text, another image, a weighted set of words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.model import Clip
from text2seg.clip.resnet import encode_resnet
from text2seg.clip.text import tokenize
from text2seg.clip.vit import encode_vit
from text2seg.errors import QueryError
from text2seg.explain.tokens import too_long
from text2seg.queries import TEMPLATES, Things
from text2seg.records import Image
from text2seg.runtime import autocast


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A direction in CLIP's joint space: `features` float32 [C], unit length; the score of an image is its cosine."""

    name: str
    features: Tensor

    def score(self, features: Tensor) -> Tensor:
        """Of unit features float32 [..., C], float32 [...]; the higher the better they fit."""
        return features @ self.features

    def negated(self) -> Target:
        """What speaks against this one: scores change sign, so their gradients are those of 1 − cosine."""
        return replace(self, name=f"against {self.name}", features=-self.features)


@dataclass(frozen=True, slots=True, eq=False)
class WordsTarget(Target):
    """A weighted set of words, as a distribution of emotions.

    CLIP says the words of an image with the probabilities softmax(scale · cosine). The image's score is minus the
    divergence (Kullback-Leibler, in nats) of these from `shares` float32 [K]: 0 where they are the same, else below.
    `texts` float32 [K, C] are the words' unit features, `features` their mean weighted by the shares: what single
    patches are compared with.
    """

    words: tuple[str, ...]
    texts: Tensor
    shares: Tensor
    scale: float
    sign: int = 1

    def said(self, features: Tensor) -> Tensor:
        """The probability of each word for unit features float32 [..., C]: float32 [..., K]."""
        return self._logits(features).softmax(-1)

    def score(self, features: Tensor) -> Tensor:
        surprise = self.shares * self._logits(features).log_softmax(-1)
        return self.sign * (surprise - torch.xlogy(self.shares, self.shares)).sum(-1)

    def _logits(self, features: Tensor) -> Tensor:
        return self.scale * features @ self.texts.T

    def negated(self) -> Target:
        return replace(self, name=f"against {self.name}", features=-self.features, sign=-self.sign)


def text_target(clip: Clip, text: str, templates: tuple[str, ...] = (), *, things: Things | None = None) -> Target:
    """The target that a text is.

    Args:
        templates: sentences with a {} for the text; default: CLIP Surgery's 85. `("{}",)` takes the text as it is.
        things: all that the models know, where that is little (`Text2Seg.things`).

    Raises:
        QueryError: the text is empty, longer than CLIP reads, or about nothing that the models know.
    """
    return Target(text, _texts(clip, [text], templates, things)[0])


def image_target(clip: Clip, image: Image, *, size: int | tuple[int, int] | None = None) -> Target:
    """The target that an image is, of whatever size: what CLIP says of all of it. `size` is CLIP's input."""
    (tokens,) = clip.encode_images([image], size=size, architecture="raw")
    return Target(image.file_name or "the image", _usable(tokens.features[0]))


def words_target(
    clip: Clip,
    weights: Mapping[str, float],
    templates: tuple[str, ...] = (),
    *,
    name: str = "",
    things: Things | None = None,
) -> WordsTarget:
    """The target that weighted words are; only the weights' ratios count.

    Raises:
        QueryError: there are fewer than two words, a weight is below 0, or all are 0; or as `text_target`.
    """
    if len(weights) < 2:
        raise QueryError(f"a set of words needs two or more, got {list(weights)}; for one word ask for a text")
    if not all(isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise QueryError(f"weights of words must be numbers from 0 up, got {dict(weights)}")
    if not any(weights.values()):
        raise QueryError(f"one of the words {', '.join(weights)} must weigh more than 0")
    texts = _texts(clip, list(weights), templates, things)
    shares = torch.tensor(list(weights.values()), dtype=torch.float32, device=clip.device)
    shares = shares / shares.sum()
    name = name or ", ".join(f"{word} {float(share):.0%}" for word, share in zip(weights, shares, strict=True))
    scale = float(clip.model.logit_scale.exp())
    return WordsTarget(name, F.normalize(shares @ texts, dim=0), tuple(weights), texts, shares, scale)


def score(clip: Clip, pixels: Tensor, target: Target) -> Tensor:
    """What CLIP's forward, unchanged, gives images for the target: float32 [B].

    Args:
        pixels: float [B, 3, H, W], normalised (`clip.model.preprocess`), sides whole cells. Gradients flow to them.
    """
    encode = _cls_of_vit if clip.is_vit else _cls_of_resnet
    with autocast(clip.device, clip.precision):
        features = encode(clip, pixels.to(clip.device))
    return target.score(F.normalize(features.float(), dim=-1))


def _cls_of_vit(clip: Clip, pixels: Tensor) -> Tensor:
    return encode_vit(clip.model.visual, pixels, blocks=0)[:, 0]


def _cls_of_resnet(clip: Clip, pixels: Tensor) -> Tensor:
    return encode_resnet(clip.model.visual, pixels, surgery=False)[:, 0]


def _texts(clip: Clip, texts: list[str], templates: tuple[str, ...], things: Things | None) -> Tensor:
    """Unit features float32 [T, C] that gradients can be taken with."""
    templates = templates or TEMPLATES
    for text in texts:
        _check(clip, text, templates, things)
    return _usable(clip.encode_texts(texts, templates))


def _check(clip: Clip, text: str, templates: tuple[str, ...], things: Things | None) -> None:
    if not text.strip():
        raise QueryError(f"a text must not be empty, got {text!r}")
    context = clip.model.positional_embedding.shape[0]
    _, over = tokenize([template.replace("{}", text) for template in templates], context)
    if over > 0:
        raise too_long(text, over, context)
    if things is not None:
        things.check(text)


def _usable(features: Tensor) -> Tensor:
    """Features from inference mode as a tensor that gradients can be taken with."""
    with torch.inference_mode(False):
        return features.clone()
