"""Targets of saliency maps: a text, another image, a stored vector, or a weighted set of words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.encoders import encode_resnet, encode_vit
from text2seg.clip.model import Clip
from text2seg.clip.text import tokenize
from text2seg.errors import QueryError
from text2seg.explain.saliency.methods import ScoreKind, check_weights
from text2seg.explain.tokens import too_long
from text2seg.io.arrays import read_arrays
from text2seg.records import Image
from text2seg.runtime import autocast
from text2seg.templates import TEMPLATES
from text2seg.vocabulary import ClosedVocabulary

SAME_DIRECTION = 1e-4
"""Unit features this close to a target have its direction, as have those within eight rounding steps of their dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A direction in CLIP's joint space: `features` float32 [C], unit length; the score of an image is its cosine."""

    name: str
    features: Tensor

    def score(self, features: Tensor) -> Tensor:
        """Return the score float32 [...] of unit features float32 [..., C]; higher fits better."""
        return features @ self.features

    def value(self, features: Tensor, kind: ScoreKind, scale: float) -> Tensor:
        """Return a score float32 [...] of features float [..., C], which need not be normalised.

        cosine: of the features and the target; logit: the cosine times CLIP's `scale`; dot: the features times the
        target, without normalisation.
        """
        values = features.float()
        if kind == "dot":
            return values @ self.features
        score = self.score(F.normalize(values, dim=-1))
        return score * scale if kind == "logit" else score

    def objective(self, features: Tensor, kind: ScoreKind, scale: float) -> Tensor:
        """Return the number that a saliency method differentiates, float32 [...]: `value`, and 0 at its maximum.

        If the features have the target's own direction, cosine and logit are at their maximum and have no gradient.
        Rounding would leave a gradient of noise, so it is set to 0.
        """
        value = self.value(features, kind, scale)
        if kind == "dot":
            return value
        with torch.no_grad():
            unit = F.normalize(features.float(), dim=-1)
            apart = (self.features - (unit @ self.features)[..., None] * unit).norm(dim=-1)
            limit = max(SAME_DIRECTION, 8 * torch.finfo(features.dtype).eps)
        return value * (apart > limit)

    def negated(self) -> Target:
        """Return the opposite target: its scores change sign, so its gradients are those of 1 − cosine."""
        return replace(self, name=f"against {self.name}", features=-self.features)


@dataclass(frozen=True, slots=True, eq=False)
class WordsTarget(Target):
    """A distribution over words, for instance over emotions.

    CLIP's probabilities of the words are softmax(scale · cosine). The score of an image is minus the Kullback-Leibler
    divergence, in nats, between `shares` float32 [K] and these probabilities: 0 if they are equal, otherwise negative.
    `texts` float32 [K, C] are the unit features of the words. `features` is their mean weighted by the shares; single
    patches are compared with it.
    """

    words: tuple[str, ...]
    texts: Tensor
    shares: Tensor
    scale: float
    sign: int = 1

    def probabilities(self, features: Tensor) -> Tensor:
        """Return CLIP's probabilities float32 [..., K] of the words for unit features float32 [..., C]."""
        return self._logits(features).softmax(-1)

    def objective(self, features: Tensor, kind: ScoreKind, scale: float) -> Tensor:
        """As for a `Target`, of the divergence, which is a function of the cosines. There is no dot product of it."""
        return self.value(features, kind, scale)

    def score(self, features: Tensor) -> Tensor:
        surprise = self.shares * self._logits(features).log_softmax(-1)
        return self.sign * (surprise - torch.xlogy(self.shares, self.shares)).sum(-1)

    def _logits(self, features: Tensor) -> Tensor:
        return self.scale * features @ self.texts.T

    def negated(self) -> Target:
        return replace(self, name=f"against {self.name}", features=-self.features, sign=-self.sign)


def text_target(
    clip: Clip, text: str, templates: tuple[str, ...] = (), *, closed_vocabulary: ClosedVocabulary | None = None
) -> Target:
    """Return a text as a target.

    Args:
        templates: sentences with a {} for the text; default: CLIP Surgery's 85. `("{}",)` leaves the text unchanged.
        closed_vocabulary: the only words the models know (`Text2Seg.closed_vocabulary`), or None for any word.

    Raises:
        QueryError: the text is empty, longer than CLIP reads, or unknown to the models.
    """
    return Target(text, _texts(clip, [text], templates, closed_vocabulary)[0])


def image_target(clip: Clip, image: Image, *, size: int | tuple[int, int] | None = None) -> Target:
    """Return an image of any size as a target: CLIP's features of the whole image. `size` is CLIP's input in pixels."""
    (tokens,) = clip.encode_images([image], size=size, architecture="raw")
    return Target(image.file_name or "the image", _usable(tokens.features[0]))


def vector_targets(clip: Clip, path: Path) -> tuple[Target, ...]:
    """Return the vectors of a file as targets, for instance stored features of texts or images, or differences of them.

    Args:
        path: a .npy file with an array of numbers [C] or [N, C], or a .npz file with several such arrays, where C is
            the number of CLIP's joint features. Vectors are brought to unit length. A target has the name of the file
            without its suffix, then the name of its array in a .npz file, and its row, from 0, in an array [N, C]:
            `moods[0]`, `moods:joy`, `moods:joy[0]`.

    Raises:
        QueryError: the file cannot be read or holds Python objects, or a vector has another number of features, is not
            finite or is 0. The message names the file.
    """
    targets: list[Target] = []
    width = clip.model.text_projection.shape[1]
    for key, array in read_arrays(path, QueryError).items():
        name = f"{path.stem}:{key}" if key else path.stem
        if array.ndim not in (1, 2) or array.shape[-1] != width or array.dtype.kind not in "iuf":
            raise QueryError(
                f"{path}: {name} must be numbers [{width}] or [N, {width}], as many features as this CLIP has, got "
                f"{array.dtype}{list(array.shape)}"
            )
        names = [name] if array.ndim == 1 else [f"{name}[{row}]" for row in range(len(array))]
        for each, vector in zip(names, np.atleast_2d(array), strict=True):
            targets.append(Target(each, _unit(vector, f"{path}: {each}").to(clip.device)))
    if not targets:
        raise QueryError(f"{path} has no vectors in it")
    return tuple(targets)


def _unit(vector: NDArray[Any], name: str) -> Tensor:
    """Return a vector [C] as unit features float32 [C] on the CPU that allow gradients."""
    values = vector.astype(np.float64)
    if not np.isfinite(values).all():
        raise QueryError(f"{name} has values that are not finite")
    highest = np.abs(values).max(initial=0)
    if highest == 0:
        raise QueryError(f"{name} has the length 0, so it has no direction")
    values = values / highest  # so that the squares neither overflow nor vanish
    with torch.inference_mode(False):
        return torch.tensor(values / np.linalg.norm(values), dtype=torch.float32, device="cpu")


def words_target(
    clip: Clip,
    weights: Mapping[str, float],
    templates: tuple[str, ...] = (),
    *,
    name: str = "",
    closed_vocabulary: ClosedVocabulary | None = None,
) -> WordsTarget:
    """Return weighted words as a target. Only the ratios of the weights count.

    Raises:
        QueryError: there are fewer than two words, a weight is negative, or all weights are 0; or as `text_target`.
    """
    check_weights(weights)
    texts = _texts(clip, list(weights), templates, closed_vocabulary)
    shares = torch.tensor(list(weights.values()), dtype=torch.float32, device=clip.device)
    shares = shares / shares.sum()
    name = name or ", ".join(f"{word} {float(share):.0%}" for word, share in zip(weights, shares, strict=True))
    return WordsTarget(name, F.normalize(shares @ texts, dim=0), tuple(weights), texts, shares, clip.logit_scale)


def score(clip: Clip, pixels: Tensor, target: Target) -> Tensor:
    """Return the target's scores float32 [B] of images, from CLIP's unchanged forward.

    Args:
        pixels: float [B, 3, H, W], normalised (`clip.model.preprocess`), sides multiples of a cell. Gradients flow to
            them.
    """
    encode = _cls_of_vit if clip.is_vit else _cls_of_resnet
    with autocast(clip.device, clip.precision):
        features = encode(clip, pixels.to(clip.device))
    return target.score(F.normalize(features.float(), dim=-1))


def _cls_of_vit(clip: Clip, pixels: Tensor) -> Tensor:
    return encode_vit(clip.model.visual, pixels, blocks=0)[:, 0]


def _cls_of_resnet(clip: Clip, pixels: Tensor) -> Tensor:
    return encode_resnet(clip.model.visual, pixels, surgery=False)[:, 0]


def _texts(
    clip: Clip, texts: list[str], templates: tuple[str, ...], closed_vocabulary: ClosedVocabulary | None
) -> Tensor:
    """Return unit features float32 [T, C] that allow gradients."""
    templates = templates or TEMPLATES
    for text in texts:
        _check(clip, text, templates, closed_vocabulary)
    return _usable(clip.encode_texts(texts, templates))


def _check(clip: Clip, text: str, templates: tuple[str, ...], closed_vocabulary: ClosedVocabulary | None) -> None:
    if not text.strip():
        raise QueryError(f"a text must not be empty, got {text!r}")
    context = clip.model.positional_embedding.shape[0]
    _, over = tokenize([template.replace("{}", text) for template in templates], context)
    if over > 0:
        raise too_long(text, over, context)
    if closed_vocabulary is not None:
        closed_vocabulary.check(text)


def _usable(features: Tensor) -> Tensor:
    """Copy features made in inference mode to a tensor that allows gradients."""
    with torch.inference_mode(False):
        return features.clone()
