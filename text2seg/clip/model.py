"""CLIP: encode images into tokens and queries into features, and compute one similarity map per query.

The only state is a cache of text features, so threads may share a model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from PIL import Image as PilImage
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.build import build_clip, prefix_errors
from text2seg.clip.encoders import RULES, PlainVit, Vit, encode_resnet, run_vit
from text2seg.clip.maps import (
    PRESENCE_TEMPLATE,
    PresenceModel,
    QueryMap,
    combine_maps,
    cosines,
    label_set,
    like_nothing,
    log_odds,
    patch_presence,
    refine_maps,
    shows_something,
    texts_of,
    without_empty_text,
    without_label_set,
)
from text2seg.clip.shape import RESNET_STRIDE, ClipShape, check_architecture, check_input_size
from text2seg.clip.text import TextCache, TextEncoder, TextTower
from text2seg.config import MapSettings
from text2seg.errors import CheckpointError, QueryError, SettingsError
from text2seg.queries import Query, Wordings
from text2seg.records import Image, SimilarityMaps
from text2seg.runtime import FULL, Precision, autocast, before_call
from text2seg.templates import DISTRACTORS, TEMPLATES

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of each RGB channel, in [0, 1], by which OpenAI's CLIPs normalise their input."""
MOST_EVIDENCE = 6.0
"""Log-odds beyond which a region shows a query, or does not, for sure."""


class Encode(Protocol):
    """Function from pixels float32 [B, 3, H, W] and the name of an attention rule to features [B, 1 + gh·gw, C], not
    normalised; the first is the feature of the whole image. Rules that attend within regions need the weights of
    `encoders.Heads`."""

    def __call__(self, pixels: Tensor, architecture: str, weights: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class ImageTower:
    """Image encoder of a CLIP and its preprocessing."""

    encode: Encode
    is_vit: bool
    stride: int
    """Pixels of the input per cell of the grid, along a side."""
    trained_size: int
    """Side in pixels of the square input in training."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resampling: Resampling = Resampling.BICUBIC
    vit: Vit | None = None
    """The vision transformer that `encode` runs; None for ResNets."""


def openai_images(visual: Any) -> ImageTower:
    """Return the image tower of a CLIP of OpenAI's package."""
    size = int(visual.input_resolution)
    return plain_vit_tower(visual, size) if hasattr(visual, "transformer") else resnet_tower(visual, size)


def plain_vit_tower(visual: Any, size: int) -> ImageTower:
    """Return the tower of a module with the names of OpenAI's `VisionTransformer`, trained on this size."""
    return vit_tower(PlainVit(visual), int(visual.conv1.kernel_size[0]), size)


def vit_tower(vit: Vit, stride: int, size: int) -> ImageTower:
    """Return the tower of a vision transformer, with the side of its patches and of its input in training."""

    def encode(pixels: Tensor, architecture: str, weights: Tensor | None = None) -> Tensor:
        return run_vit(vit, pixels, rule=RULES[architecture], weights=weights)

    return ImageTower(encode, is_vit=True, stride=stride, trained_size=size, vit=vit)


def resnet_tower(visual: Any, size: int) -> ImageTower:
    """Return the tower of a module with the names of OpenAI's `ModifiedResNet`, trained on this size."""

    def encode(pixels: Tensor, architecture: str, weights: Tensor | None = None) -> Tensor:
        return encode_resnet(visual, pixels, surgery=architecture == "surgery")

    return ImageTower(encode, is_vit=False, stride=RESNET_STRIDE, trained_size=size)


ImageNetwork = Callable[[Tensor, str], Tensor]
"""Function from pixels float32 [B, 3, H, W] and the name of an attention rule to features [B, 1 + gh·gw, C]."""


Method = TypeVar("Method", bound=Callable[..., Any])


def _in_float32(method: Method) -> Method:
    """Decorate a method of `Clip` so that it runs in float32 even under an autocast of the caller."""

    @wraps(method)
    def call(self: Clip, *args: Any, **named: Any) -> Any:
        with autocast(self.device, FULL):
            return method(self, *args, **named)

    return cast(Method, call)


@dataclass(frozen=True, slots=True, eq=False)
class ImageTokens:
    """Tokens of one image: unit `features` float32 [1 + gh·gw, C], CLS first, on the model's device."""

    features: Tensor
    grid_hw: tuple[int, int]
    image_hw: tuple[int, int]
    image: Image | None = None
    """The image, needed to refine maps; not copied."""


class Clip:
    """CLIP with architecture surgery or another attention rule: OpenAI's ViTs and ResNets of any size, and other models
    that an `ImageTower` and a `TextTower` describe."""

    def __init__(
        self,
        model: Any,
        *,
        device: torch.device,
        precision: Precision,
        presence: PresenceModel | None = None,
        text_cache: TextCache | None = None,
        images: ImageTower | None = None,
        texts: TextTower | None = None,
        unlike_openai: str = "",
    ) -> None:
        """
        Args:
            model: the module. It is moved to the device.
            images: image tower of the module on the device; default: as OpenAI's models.
            texts: text tower, likewise.
            unlike_openai: how the modules differ from OpenAI's, if they do; `model` then raises an error.
        """
        self._model, self._unlike_openai = model.to(device), unlike_openai
        self.device, self.precision = device, precision
        self.presence = presence or PresenceModel(DISTRACTORS)
        self.images = images or openai_images(self._model.visual)
        self.default_size = self.images.trained_size
        self.text = TextEncoder(self._model, text_cache, tower=texts)
        self.image_network: ImageNetwork = self.images.encode  # ONNX Runtime may replace it (text2seg.loading)

    @classmethod
    @torch.inference_mode(False)  # tensors made in inference mode have no gradients
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        *,
        device: torch.device,
        precision: Precision,
        source: str = "the checkpoint",
        presence: PresenceModel | None = None,
        text_cache: TextCache | None = None,
    ) -> Clip:
        """Build the architecture that the shapes of the weights describe, and load them.

        Args:
            source: name of the weights in error messages.
            presence: parameters of patch presence that were fitted to these weights.
            text_cache: cache of text features on disk.

        Raises:
            CheckpointError: the weights are not those of a CLIP.
        """
        prefix_errors(source, ClipShape.of(weights).check_texts)
        model = build_clip(weights, source=source)
        return cls(model, device=device, precision=precision, presence=presence, text_cache=text_cache)

    @property
    def model(self) -> Any:
        """The module, with the parts and names of OpenAI's package.

        Raises:
            SettingsError: the module is built in another way.
        """
        if self._unlike_openai:
            raise SettingsError(
                f"this needs to look inside the CLIP, and {self._unlike_openai}; it gives maps and segments only. "
                "Use one of OpenAI's, or a ViT of open_clip that is built like them, such as ViT-B-16"
            )
        return self._model

    @property
    def logit_scale(self) -> float:
        """Factor between the cosine of an image and a text and CLIP's logit."""
        return float(self._model.logit_scale.detach().exp())

    @property
    def is_vit(self) -> bool:
        return self.images.is_vit

    @property
    def stride(self) -> int:
        """Pixels of the input per cell of the grid, along a side."""
        return self.images.stride

    @property
    def blocks(self) -> int:
        """Number of blocks of the vision transformer; 0 for a ResNet."""
        return 0 if not self.is_vit else len(self.model.visual.transformer.resblocks)

    @property
    def text_blocks(self) -> int:
        """Number of blocks of the text tower."""
        return len(self.model.transformer.resblocks)

    @property
    def context_length(self) -> int:
        """Number of tokens that the text tower reads, start and end included."""
        return len(self.model.positional_embedding)

    @property
    def trained_size(self) -> int:
        """Side in pixels of the square input in training."""
        return self.images.trained_size

    def input_hw(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """Return the input size (rows, columns): each side is rounded to whole cells, so that the grid covers the
        image.

        Raises:
            SettingsError: a side is smaller than a cell, or the grid has too many cells.
        """
        return check_input_size(self, size or self.default_size)

    def with_input_size(self, size: int) -> Clip:
        """Return this CLIP, its weights shared, with another default size of the input.

        Raises:
            SettingsError: the grid has too many cells.
        """
        self.input_hw(size)
        resized = copy.copy(self)
        resized.default_size = size
        return resized

    def preprocess(self, image: Image, size: int | tuple[int, int] | None = None) -> Tensor:
        """Resize an image to the input without keeping its aspect ratio, and normalise it: float32 [3, H, W] on the
        CPU. `size` is the input's side, or rows and columns, in pixels; default: `default_size`."""
        return preprocess(image, self.input_hw(size), self.images)

    def check(self, architecture: str, *, regions: bool = False) -> None:
        """Raise `SettingsError` if this CLIP cannot follow the attention rule. `regions` says whether the caller has
        the regions of the image for rules that attend within them."""
        check_architecture(self, architecture)
        if not RULES[architecture].regions:
            return
        if self.image_network != self.images.encode:
            raise SettingsError(
                f"architecture {architecture} runs with torch only; leave --runtime out or choose another rule"
            )
        if not regions:
            others = ", ".join(name for name, rule in RULES.items() if not rule.regions)
            raise SettingsError(
                f"architecture {architecture} attends within regions that SAM cuts out, and here CLIP works alone: "
                f"choose another rule ({others})"
            )

    @torch.inference_mode()
    def encode_images(
        self,
        images: Sequence[Image],
        *,
        size: int | tuple[int, int] | None = None,
        architecture: str = "surgery",
        weights: Sequence[Tensor] | None = None,
    ) -> list[ImageTokens]:
        """Encode a batch of images, each resized to the input size without keeping its aspect ratio.

        Args:
            size: side, or rows and columns, of the input in pixels; default: `default_size`.
            architecture: attention rule, one of `encoders.RULES`.
            weights: for a rule that attends within regions: those of each image, float [gh·gw, gh·gw]; see
                `regions.attention_weights`.

        Raises:
            CheckpointError: the features are not finite: damaged weights, or an unfit precision.
            SettingsError: this CLIP cannot follow the rule, or not without weights.
        """
        self.check(architecture, regions=weights is not None)
        if not images:
            return []
        before_call()
        input_hw = self.input_hw(size)
        pixels = torch.stack([preprocess(image, input_hw, self.images) for image in images]).to(self.device)
        with autocast(self.device, self.precision):
            if weights is None:
                features = self.image_network(pixels, architecture)
            else:
                features = self.images.encode(pixels, architecture, torch.stack(list(weights)).to(self.device))
        features = F.normalize(features.float(), dim=-1)
        if not bool(features.isfinite().all()):
            raise CheckpointError(f"CLIP's image features are not finite in {self.precision.name}; try precision fp32")
        grid_hw = (input_hw[0] // self.stride, input_hw[1] // self.stride)
        return [ImageTokens(tokens, grid_hw, image.hw, image) for tokens, image in zip(features, images, strict=True)]

    @torch.inference_mode()
    def encode_texts(self, queries: Sequence[str | Wordings], templates: tuple[str, ...] = TEMPLATES) -> Tensor:
        """Return unit text features float32 [Q, C], computed or from the cache. The wordings of a query are
        averaged."""
        each = [_wordings(query) for query in queries]
        with autocast(self.device, self.precision):
            features = self.text([wording for wordings in each for wording in wordings], templates)
        means = [of_query.mean(0) for of_query in features.split([len(wordings) for wordings in each])]
        return F.normalize(torch.stack(means), dim=-1)

    @torch.inference_mode()
    def similarity(
        self, tokens: ImageTokens, queries: Sequence[str | Wordings], settings: MapSettings
    ) -> SimilarityMaps:
        """Return one map per query, in the given order, with presence; errors as for `scores`."""
        names = tuple("|".join(_wordings(query)) for query in queries)
        scores = self.scores(tokens, queries, settings)
        return SimilarityMaps(names, scores, self.patch_presence(tokens, queries).max((1, 2)), tokens.image_hw)

    def cuts(self, queries: Sequence[str | Wordings], settings: MapSettings) -> bool:
        """Return whether the end of one of these queries was cut off, because it is longer than CLIP's context. Call it
        after the maps were computed."""
        templates = settings.templates or TEMPLATES
        return any(self.text.is_cut(wording, templates) for query in queries for wording in _wordings(query))

    @torch.inference_mode()
    @_in_float32
    def scores(self, tokens: ImageTokens, queries: Sequence[str | Wordings], settings: MapSettings) -> np.ndarray:
        """Return the similarity per patch, float32 [Q, gh, gw]; a query is a text or several wordings. Refined maps
        have a finer grid than the tokens.

        Raises:
            QueryError: no queries, an empty one, or a label set of fewer than two.
        """
        each = [_wordings(query) for query in queries]
        if not each:
            raise QueryError("nothing to look for: give at least one query")
        if not all(wording.strip() for wordings in each for wording in (wordings or ("",))):
            raise QueryError("a query must not be empty")
        templates = settings.templates or TEMPLATES
        texts = self.encode_texts(each, templates)
        if settings.redundancy == "empty":
            empty = self.encode_texts(("",), templates)[0]
            scores = without_empty_text(tokens.features, texts, empty)
        elif settings.redundancy == "label-set":
            labels = label_set(each, settings.labels)
            of_set = without_label_set(tokens.features, self.encode_texts(labels, templates))
            scores = of_set[:, [labels.index(query) for query in each]]
        else:
            scores = cosines(tokens.features, texts)
        grid = scores[1:].T.unflatten(-1, tokens.grid_hw)
        if settings.refine == "pamr":
            if tokens.image is None:
                raise ValueError("maps are refined by their image, and these tokens have none")
            grid = refine_maps(grid, tokens.image)
        return _to_numpy(grid)

    @torch.inference_mode()
    @_in_float32
    def patch_presence(self, tokens: ImageTokens, queries: Sequence[str | Wordings]) -> np.ndarray:
        """Return the presence of each query in each patch, float32 [Q, gh, gw] in [0, 1]; see
        `clip.maps.patch_presence`."""
        each = [_wordings(query) for query in queries]
        texts = self.encode_texts(each, (PRESENCE_TEMPLATE,))
        patches = patch_presence(
            tokens.features[1:], texts, each, self._others(), self.presence, scale=self.logit_scale
        )
        return _to_numpy(patches.T.unflatten(-1, tokens.grid_hw))

    def _others(self) -> Tensor:
        """Return the features [D + 1, C] of the distractors, then of the empty text."""
        return self.encode_texts((*self.presence.distractors, ""), (PRESENCE_TEMPLATE,))

    @torch.inference_mode()
    @_in_float32
    def evidence(self, features: Tensor, queries: Sequence[Query]) -> np.ndarray:
        """Return the log-odds that each region shows each query and not a distractor or nothing, float32 [R, Q], at
        most `MOST_EVIDENCE` both ways.

        Of several parts the highest counts. A region that is closer to a negative shows the negative. No region shows a
        query that means the same as the empty text.

        Args:
            features: unit features [R, C] of regions.
        """
        names = texts_of(queries)
        texts, others = self.encode_texts(names, (PRESENCE_TEMPLATE,)), self._others()
        odds = log_odds(features, texts, names, others, self.presence, scale=self.logit_scale)
        odds[:, like_nothing(texts, others)] = -MOST_EVIDENCE
        row_of = {wordings: row for row, wordings in enumerate(names)}
        columns = []
        for query in queries:
            best = odds[:, [row_of[part] for part in query.parts]].amax(1)
            if query.negatives:
                negative = odds[:, [row_of[(text,)] for text in query.negatives]].amax(1)
                best = torch.where(negative > best, torch.full_like(best, -MOST_EVIDENCE), best)
            columns.append(best)
        return _to_numpy(torch.stack(columns, dim=1).clamp(-MOST_EVIDENCE, MOST_EVIDENCE))

    @torch.inference_mode()
    @_in_float32
    def something(self, tokens: ImageTokens) -> np.ndarray:
        """Return the probability that each patch shows one of the distractors and not nothing, float32 [gh, gw]."""
        shown = shows_something(tokens.features[1:], self._others(), scale=self.logit_scale)
        return _to_numpy(shown.unflatten(0, tokens.grid_hw))


def _wordings(query: str | Wordings) -> Wordings:
    return (query,) if isinstance(query, str) else query


def preprocess(image: Image, input_hw: tuple[int, int], tower: ImageTower | None = None) -> Tensor:
    """Resize and normalise an image for a tower, float32 [3, H, W]; default: bicubic, with OpenAI's mean and std."""
    resampling = tower.resampling if tower else PilImage.Resampling.BICUBIC
    mean, std = (tower.mean, tower.std) if tower else (CLIP_MEAN, CLIP_STD)
    resized = PilImage.fromarray(image.pixels).resize(input_hw[::-1], resampling)
    pixels = (np.asarray(resized, np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.float().cpu().numpy())


def query_maps(
    clip: Clip, tokens: ImageTokens, queries: Sequence[Query], settings: MapSettings
) -> tuple[SimilarityMaps, list[QueryMap]]:
    """Return one map per query (see `combine_maps`), and the components of each.

    Raises:
        QueryError: as `Clip.scores`.
    """
    texts = texts_of(queries)
    scores, patch_presence = clip.scores(tokens, texts, settings), clip.patch_presence(tokens, texts)
    row_of = {wordings: row for row, wordings in enumerate(texts)}
    maps, presence, components = zip(
        *(combine_maps(query, row_of, scores, patch_presence) for query in queries), strict=True
    )
    names = tuple(query.name for query in queries)
    return SimilarityMaps(names, np.stack(maps), np.array(presence, np.float32), tokens.image_hw), list(components)
