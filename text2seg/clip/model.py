"""CLIP as text2seg uses it: images to tokens, queries to features, and both to one similarity map for each query.
Stateless but for a cache of text features, so threads may share a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.attention import RULES, check_resnet
from text2seg.clip.build import RESNET_STRIDE, ClipShape, build_clip, named
from text2seg.clip.maps import (
    TEMPLATE,
    PresenceModel,
    cosines,
    on_grid,
    patch_presence,
    refine_maps,
    without_empty_text,
    without_label_set,
)
from text2seg.clip.resnet import encode_resnet
from text2seg.clip.text import TextCache, TextEncoder, TextTower
from text2seg.clip.vit import encode_vit
from text2seg.config import MapSettings
from text2seg.errors import CheckpointError, QueryError, SettingsError
from text2seg.grids import minmax
from text2seg.queries import CLIP_MEAN, CLIP_STD, DISTRACTORS, TEMPLATES, Query, Wordings
from text2seg.records import Image, SimilarityMaps
from text2seg.runtime import FULL, Precision, autocast
from text2seg.weights.tensors import check_cells


@dataclass(frozen=True, slots=True, eq=False)
class ImageTower:
    """The image encoder of a CLIP, and how images are made ready for it."""

    encode: Callable[[Tensor, str], Tensor]
    """From pixels float32 [B, 3, H, W] and the name of an attention rule to features [B, 1 + gh·gw, C], not
    normalised; the first is the image's own."""
    is_vit: bool
    stride: int
    """Pixels of the input per cell of the grid."""
    trained_size: int
    """The side in pixels of the square input that the model was trained on."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resampling: Resampling = Resampling.BICUBIC


def openai_images(visual: Any) -> ImageTower:
    """That of a CLIP of OpenAI's package."""
    size = int(visual.input_resolution)
    return vit_tower(visual, size) if hasattr(visual, "transformer") else resnet_tower(visual, size)


def vit_tower(visual: Any, size: int) -> ImageTower:
    """That of a module with the names of OpenAI's `VisionTransformer`, trained on this size."""

    def encode(pixels: Tensor, architecture: str) -> Tensor:
        return encode_vit(visual, pixels, rule=RULES[architecture])

    return ImageTower(encode, is_vit=True, stride=int(visual.conv1.kernel_size[0]), trained_size=size)


def resnet_tower(visual: Any, size: int) -> ImageTower:
    """That of a module with the names of OpenAI's `ModifiedResNet`, trained on this size."""

    def encode(pixels: Tensor, architecture: str) -> Tensor:
        return encode_resnet(visual, pixels, surgery=architecture == "surgery")

    return ImageTower(encode, is_vit=False, stride=RESNET_STRIDE, trained_size=size)


ImageNetwork = Callable[[Tensor, str], Tensor]
"""From pixels float32 [B, 3, H, W] and the name of an attention rule to features [B, 1 + gh·gw, C], CLS first."""


Method = TypeVar("Method", bound=Callable[..., Any])


def _in_float32(method: Method) -> Method:
    """A method of a `Clip` that an autocast of the caller's does not reach."""

    @wraps(method)
    def call(self: Clip, *args: Any, **named: Any) -> Any:
        with autocast(self.device, FULL):
            return method(self, *args, **named)

    return cast(Method, call)


@dataclass(frozen=True, slots=True, eq=False)
class ImageTokens:
    """One image as CLIP sees it: unit `features` float32 [1 + gh·gw, C], CLS first, on the model's device."""

    features: Tensor
    grid_hw: tuple[int, int]
    image_hw: tuple[int, int]
    image: Image | None = None
    """What maps are refined by; not copied."""


class Clip:
    """A CLIP with architecture surgery or another attention rule: OpenAI's ViTs and ResNets, whatever their size, and
    whatever else can be described by an `ImageTower` and a `TextTower`."""

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
            model: the module; it is moved to the device.
            images: how it sees, where that is not as OpenAI's do; of the module on the device.
            texts: how it reads, the same.
            unlike_openai: what sets its modules apart from OpenAI's, so that they must not be read as such.
        """
        self._model, self._unlike_openai = model.to(device), unlike_openai
        self.device, self.precision = device, precision
        self.presence = presence or PresenceModel(DISTRACTORS)
        self.images = images or openai_images(self._model.visual)
        self.text = TextEncoder(self._model, text_cache, tower=texts)
        self.image_network: ImageNetwork = self.images.encode  # another runtime may stand in, as for `text.network`

    @classmethod
    @torch.inference_mode(False)  # no gradient could be taken through tensors that are made in it
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
        """Build the architecture that the weights' shapes tell, and load them; `source` names them in errors,
        `presence` is what was fitted to them, `text_cache` keeps text features on disk.

        Raises:
            CheckpointError: these are not the weights of a CLIP.
        """
        named(source, ClipShape.of(weights).check_texts)
        model = build_clip(weights, source=source)
        return cls(model, device=device, precision=precision, presence=presence, text_cache=text_cache)

    @property
    def model(self) -> Any:
        """The module, for those who look inside: its parts are named and run as those of OpenAI's package.

        Raises:
            SettingsError: they are not.
        """
        if self._unlike_openai:
            raise SettingsError(
                f"this needs to look inside the CLIP, and {self._unlike_openai}; it gives maps and segments only. "
                "Use one of OpenAI's, or a ViT of open_clip that is built like them, such as ViT-B-16"
            )
        return self._model

    @property
    def is_vit(self) -> bool:
        return self.images.is_vit

    @property
    def stride(self) -> int:
        """Pixels of the input per cell of the grid."""
        return self.images.stride

    @property
    def trained_size(self) -> int:
        """The side in pixels of the square input that the model was trained on."""
        return self.images.trained_size

    def input_hw(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """The input that is really used: each side rounded to whole cells, so that the grid covers the image.

        Raises:
            SettingsError: it has more cells than can be computed.
        """
        rows, columns = size if isinstance(size, tuple) else (size or self.trained_size,) * 2
        input_hw = self._whole(rows), self._whole(columns)
        grid_hw = (input_hw[0] // self.stride, input_hw[1] // self.stride)
        what = f"an input of {input_hw[0]} x {input_hw[1]} pixels"
        check_cells(grid_hw, f"choose a smaller input size: with this CLIP {what}", SettingsError)
        return input_hw

    def _whole(self, side: int) -> int:
        return max(round(side / self.stride), 1) * self.stride

    def check(self, architecture: str) -> None:
        """Raise `SettingsError` where this CLIP cannot follow the attention rule."""
        if not self.is_vit:
            check_resnet(architecture)

    @torch.inference_mode()
    def encode_images(
        self,
        images: Sequence[Image],
        *,
        size: int | tuple[int, int] | None = None,
        architecture: str = "surgery",
    ) -> list[ImageTokens]:
        """Tokens of a batch of images, each squashed to the input size; `architecture` is one of `attention.RULES`.

        Raises:
            CheckpointError: the features are not finite, so weights or precision are unfit.
            SettingsError: this CLIP is a ResNet and cannot follow the rule.
        """
        self.check(architecture)
        if not images:
            return []
        input_hw = self.input_hw(size)
        pixels = torch.stack([preprocess(image, input_hw, self.images) for image in images]).to(self.device)
        with autocast(self.device, self.precision):
            features = self.image_network(pixels, architecture)
        features = F.normalize(features.float(), dim=-1)
        if not bool(features.isfinite().all()):
            raise CheckpointError(f"CLIP's image features are not finite in {self.precision.name}; try precision fp32")
        grid_hw = (input_hw[0] // self.stride, input_hw[1] // self.stride)
        return [ImageTokens(tokens, grid_hw, image.hw, image) for tokens, image in zip(features, images, strict=True)]

    @torch.inference_mode()
    def encode_texts(self, queries: Sequence[str | Wordings], templates: tuple[str, ...] = TEMPLATES) -> Tensor:
        """Unit text features float32 [Q, C]; fresh ones are computed, others come from the cache. Several wordings
        of one query are averaged."""
        each = [_wordings(query) for query in queries]
        with autocast(self.device, self.precision):
            features = self.text([wording for wordings in each for wording in wordings], templates)
        means = [of_query.mean(0) for of_query in features.split([len(wordings) for wordings in each])]
        return F.normalize(torch.stack(means), dim=-1)

    @torch.inference_mode()
    def similarity(
        self, tokens: ImageTokens, queries: Sequence[str | Wordings], settings: MapSettings
    ) -> SimilarityMaps:
        """One map per query, in the order asked for, with presence; as for `scores`."""
        names = tuple("|".join(_wordings(query)) for query in queries)
        scores = self.scores(tokens, queries, settings)
        return SimilarityMaps(names, scores, self.patch_presence(tokens, queries).max((1, 2)), tokens.image_hw)

    def cuts(self, queries: Sequence[str | Wordings], settings: MapSettings) -> bool:
        """Whether one of these queries, whose maps were asked for, is longer than CLIP reads, so that its end was not
        read."""
        templates = settings.templates or TEMPLATES
        return any(self.text.is_cut(wording, templates) for query in queries for wording in _wordings(query))

    @torch.inference_mode()
    @_in_float32
    def scores(self, tokens: ImageTokens, queries: Sequence[str | Wordings], settings: MapSettings) -> np.ndarray:
        """The similarity per patch alone, float32 [Q, gh, gw]; a query is a text or several wordings of it. Refined
        maps are finer than the tokens' grid.

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
        """Presence patch by patch, float32 [Q, gh, gw] in [0, 1]; see `clip.maps`."""
        each = [_wordings(query) for query in queries]
        others = self.encode_texts((*self.presence.distractors, ""), (TEMPLATE,))
        texts = self.encode_texts(each, (TEMPLATE,))
        scale = float(self._model.logit_scale.exp())
        patches = patch_presence(tokens.features[1:], texts, each, others, self.presence, scale=scale)
        return _to_numpy(patches.T.unflatten(-1, tokens.grid_hw))


def _wordings(query: str | Wordings) -> Wordings:
    return (query,) if isinstance(query, str) else query


def label_set(queries: Sequence[Wordings], labels: Sequence[str]) -> tuple[Wordings, ...]:
    """The queries and the further labels, each once, in this order.

    Raises:
        QueryError: these are fewer than two, of which nothing could be taken off.
    """
    together = tuple(dict.fromkeys((*queries, *((label,) for label in labels))))
    if len(together) < 2:
        raise QueryError("a label set needs two labels or more: add labels, or use the redundancy `empty`")
    return together


def preprocess(image: Image, input_hw: tuple[int, int], tower: ImageTower | None = None) -> Tensor:
    """float32 [3, H, W]: squashed and normalised as the tower wants it, by default bicubic and as OpenAI's do."""
    resampling = tower.resampling if tower else PilImage.Resampling.BICUBIC
    mean, std = (tower.mean, tower.std) if tower else (CLIP_MEAN, CLIP_STD)
    resized = PilImage.fromarray(image.pixels).resize(input_hw[::-1], resampling)
    pixels = (np.asarray(resized, np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.float().cpu().numpy())


def texts_of(queries: Iterable[Query]) -> list[Wordings]:
    """All that needs a map of its own, once each: the parts with their wordings, and the negatives."""
    queries = list(queries)
    parts = [part for query in queries for part in query.parts]
    negatives = [(negative,) for query in queries for negative in query.negatives]
    return list(dict.fromkeys([*parts, *negatives]))


@dataclass(frozen=True, slots=True, eq=False)
class QueryMap:
    """What a query's map was made of: `parts` float32 [parts, gh, gw], and the `evidence` float32 [gh, gw] of where
    it is, presence patch by patch, on the tokens' grid. `negatives` float32 [negatives, gh, gw] are the min-max maps of
    what is not wanted, 0 where the query itself scores higher."""

    parts: NDArray[np.float32]
    patch_presence: NDArray[np.float32]
    negatives: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1, 1), np.float32))


def query_maps(
    clip: Clip, tokens: ImageTokens, queries: Sequence[Query], settings: MapSettings
) -> tuple[SimilarityMaps, list[QueryMap]]:
    """One map per query, and what each was made of, brought to the tokens' grid.

    What a negative scores above 0 is taken off each part. Parts that are joined are averaged after min-max, as the
    original's `person+bench`; the presence of all together is that of the one least sure.

    Raises:
        QueryError: as `Clip.scores`.
    """
    texts = texts_of(queries)
    of_texts = clip.scores(tokens, texts, settings)
    row_of = {wordings: row for row, wordings in enumerate(texts)}
    patch_presence = clip.patch_presence(tokens, texts)
    scores, presence, made = [], [], []
    for query in queries:
        rows = [row_of[part] for part in query.parts]
        own = wanted = of_texts[rows]
        if query.negatives:
            unwanted = of_texts[[row_of[(negative,)] for negative in query.negatives]]
            own = wanted - unwanted.max(0).clip(min=0)
        scores.append(own[0] if len(own) == 1 else minmax(own).mean(0))
        presence.append(patch_presence[rows].max((1, 2)).min())
        where = np.minimum(patch_presence[rows].max(0), presence[-1])
        made.append(QueryMap(on_grid(own, tokens.grid_hw), where))
        if query.negatives:
            wanted, unwanted = on_grid(wanted, tokens.grid_hw), on_grid(unwanted, tokens.grid_hw)
            more_like_it = unwanted > wanted.max(0)
            made[-1] = replace(made[-1], negatives=np.where(more_like_it, minmax(unwanted), np.float32(0)))
    names = tuple(query.name for query in queries)
    return SimilarityMaps(names, np.stack(scores), np.array(presence, np.float32), tokens.image_hw), made
