"""Interface shared by all SAM families: embed images, decode point prompts into candidate masks, upscale one mask.

Images are embedded in batches, and the point prompts of several images are decoded in one call. A model does not change
after it is built, so threads may share it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from text2seg.errors import CheckpointError, ImageError, SettingsError
from text2seg.grids import resize
from text2seg.records import Candidates, Image, PointPrompts
from text2seg.runtime import FULL, Precision, PrecisionName, autocast, before_call, choose_precision
from text2seg.sam import decoder
from text2seg.sam.upscaling import Upscaling

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""Mean of the RGB values, from 0 to 255, that SAM and SAM 2 subtract."""
PIXEL_STD = (58.395, 57.12, 57.375)
"""Standard deviation of the RGB values that SAM and SAM 2 divide by."""
SETS_PER_CALL = 32
"""Point sets that go through the decoder at once on a GPU, at least. One takes about 40 MB in a full-size SAM."""
SETS_PER_CALL_CPU = 8
"""Point sets that go through the decoder at once on a CPU. The activations of more do not fit into its caches: 32 take
1.5 times as long for each set."""
MOST_SETS_PER_CALL = 256
"""Point sets that go through the decoder at once, at most. A GPU is no faster with more."""
MASK_PROMPT_SCALE = 0.005
"""Factor on the scores of a rough mask that is given to SAM as its low-resolution mask, as in Trident (arXiv
2411.09219). The logits stay close to 0, so they are a hint that boxes and points overrule."""

Group = tuple[int, ...]
"""Key of the point sets that may share one call of the decoder."""


class Frame:
    """Square input frame of SAM, `side` pixels wide. Images are scaled to fit and placed at the top left."""

    def __init__(self, side: int) -> None:
        self.side = side

    def framed(self, images: Sequence[Image], mean: Tensor, std: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return normalised frames float32 [B, 3, side, side] on the device of `mean`, zero outside the image, and the
        rows and columns that each image fills.

        Raises:
            ImageError: an image is so thin that no row or column of it is left.
        """
        device = mean.device
        resized = [self._resized(image) for image in images]
        pixels = torch.zeros(
            len(images), self.side, self.side, 3, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda"
        )
        for place, rows in zip(pixels, resized, strict=True):
            place[: rows.shape[0], : rows.shape[1]] = torch.from_numpy(rows)
        # The pixels travel to the device as bytes.
        framed = (pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() - mean) / std
        sizes = [(rows.shape[0], rows.shape[1]) for rows in resized]
        for place, (height, width) in zip(framed, sizes, strict=True):
            place[:, height:] = 0
            place[:, :, width:] = 0
        return framed, sizes

    def _resized(self, image: Image) -> NDArray[np.uint8]:
        """Resize an image as `segment-anything` does, with Pillow."""
        rows, columns = self._fitted(image.hw)
        if not (rows and columns):
            raise ImageError(f"{image.file_name or 'image'} is too thin for SAM: {image.hw[1]}×{image.hw[0]} pixels")
        return np.array(PIL.Image.fromarray(image.pixels).resize((columns, rows), PIL.Image.Resampling.BILINEAR))

    def _fitted(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of the frame that an image of this size fills."""
        scale = self.side / max(image_hw)
        return int(image_hw[0] * scale + 0.5), int(image_hw[1] * scale + 0.5)

    def place(self, xy: NDArray[np.float32], image_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Convert points float32 [N, 2] from pixels of the image to pixels of the frame."""
        rows, columns = self._fitted(image_hw)
        return (xy.astype(np.float64) * (columns / image_hw[1], rows / image_hw[0])).astype(np.float32)

    def points(
        self, sets: Sequence[tuple[tuple[int, int], PointPrompts]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Pack point sets into arrays for the decoder.

        Args:
            sets: the size of the image and the prompts in its pixels, for each of B sets.

        Returns:
            Points float32 [B, N, 2] in the frame and labels int64 [B, N]. Short sets are padded with `FILLING`. A box
            takes two points; a set without a box gets one `NOT_A_POINT`.
        """
        longest = max(len(points) + 1 + len(points.boxes_xyxy) for _, points in sets)
        points_xy = np.zeros((len(sets), longest, 2), np.float32)
        labels = np.full((len(sets), longest), decoder.FILLING, np.int64)
        for row, (image_hw, points) in enumerate(sets):
            count = len(points)
            points_xy[row, :count] = self.place(points.xy, image_hw)
            labels[row, :count] = points.labels
            if len(points.boxes_xyxy):
                points_xy[row, count : count + 2] = self.place(points.boxes_xyxy.reshape(2, 2), image_hw)
                labels[row, count : count + 2] = decoder.BOX_TOP_LEFT, decoder.BOX_BOTTOM_RIGHT
            else:
                labels[row, count] = decoder.NOT_A_POINT
        return points_xy, labels


class StretchedFrame(Frame):
    """Square input frame of SAM 2 and SAM 3. Images are stretched to fill it, whatever their aspect ratio."""

    def _resized(self, image: Image) -> NDArray[np.uint8]:
        from torchvision.transforms.v2.functional import resize

        pixels = torch.tensor(image.pixels, dtype=torch.uint8, device="cpu").permute(2, 0, 1)
        resized: Tensor = resize(pixels, [self.side, self.side], antialias=True)
        return resized.permute(1, 2, 0).numpy()

    def place(self, xy: NDArray[np.float32], image_hw: tuple[int, int]) -> NDArray[np.float32]:
        rows, columns = image_hw
        return xy * np.array([self.side / columns, self.side / rows], np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class SamEmbedding:
    """Image embedding: `features` float32 [C, h, w] on the model's device. SAM 2 adds `fine`, features at higher
    resolutions, the finest first.

    `image_hw` is the size of the image, `input_hw` the size of the part of the input frame that it fills, from the top
    left corner.
    """

    features: Tensor
    image_hw: tuple[int, int]
    input_hw: tuple[int, int]
    fine: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the embedding."""
        return (self.features, *self.fine)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModule:
    """Module with the weights of a checkpoint in float32 on the CPU. `description` names its architecture in the log;
    `fp16_safe` is false if its activations leave the range of fp16."""

    module: Any
    description: str
    fp16_safe: bool = True


class AnySam(ABC):
    """Promptable segmentation model on one device. A subclass is one family; `loading.FAMILIES` lists them.

    The encoder takes nearly all the time and runs in `precision`, its norms in float32. The decoder always runs in
    float32: a lower precision would blur where the points are and round SAM's scores to ties.
    """

    family: ClassVar[str]
    """Name of the family in messages."""
    formats: ClassVar[Mapping[str, str]] = {}
    """Formats of this family's checkpoints, with their article, by the name of a tensor with four axes that identifies
    each. Empty for SAM: a checkpoint that has no tensor of another family is taken for a SAM."""
    can_compile: ClassVar[bool] = True
    """Whether `torch.compile` can compile the encoder."""
    memory_per_set: ClassVar[int] = 1
    """Decoder memory for one point set, as a multiple of SAM's."""
    mask_threshold = 0.0

    def __init__(
        self,
        module: Any,
        device: torch.device,
        precision: Precision = FULL,
        *,
        sets_per_call: int | None = None,
        compile_encoder: bool = False,
    ) -> None:
        """Move the module to the device, freeze it, and convert the encoder's matrices to the precision.

        Args:
            module: network of this family with float32 weights.
            precision: precision of the encoder.
            sets_per_call: number of point sets that go through the decoder at once; more need more memory. Default: as
                many as the device has memory for.
            compile_encoder: compile the encoder with `torch.compile`, which takes up to minutes per batch size.

        Raises:
            SettingsError: the encoder cannot be compiled here, or never in this family.
        """
        self._check_compile(compile_encoder)
        self.module = module.to(device).eval().requires_grad_(False)
        self.device, self.precision, self.compiled = device, precision, compile_encoder
        self._mean, self._std = (
            torch.tensor(colour, dtype=torch.float32, device=device).view(-1, 1, 1)
            for colour in (PIXEL_MEAN, PIXEL_STD)
        )
        prompts, (rows, columns) = module.prompt_encoder, module.prompt_encoder.image_embedding_size
        self._frame = self._input_frame()
        self._mask_input_hw: tuple[int, int] = prompts.mask_input_size
        self._last_upscaling: tuple[tuple[tuple[int, int], tuple[int, int]], Upscaling] | None = None
        if sets_per_call is None:
            fit = sets_that_fit(device, rows * columns, prompts.no_mask_embed.weight.shape[1])
            sets_per_call = fit // self.memory_per_set
        if sets_per_call < 1:
            raise ValueError(f"sets_per_call must be 1 or more, got {sets_per_call}")
        self._sets_per_call = sets_per_call
        if precision.dtype != torch.float32:
            lower(self._encoder(), precision.dtype)

    @classmethod
    def _check_compile(cls, compile_encoder: bool) -> None:
        if compile_encoder and not cls.can_compile:
            raise SettingsError(f"{cls.family} runs uncompiled only; leave --compile out or choose a SAM")

    @classmethod
    @torch.inference_mode(False)
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        *,
        device: torch.device,
        precision: PrecisionName = "auto",
        compile_encoder: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> Self:
        """Build a model of this family from a state dict, and log the device and precision it runs in.

        Args:
            weights: tensors by the names of the official format, of any floating dtype. Float32 tensors are shared with
                the module, not copied.
            precision: as for `choose_precision`; fp16 is not used if this network overflows in it.
            compile_encoder: as for the constructor.
            config: content of the config.json beside the weights, for families that read one (`reads_config`).

        Raises:
            CheckpointError: the weights are not, or not exactly, those of this family.
            SettingsError: the device cannot run in that precision, the encoder cannot be compiled, or a package is
                missing.
        """
        cls._check_compile(compile_encoder)
        loaded = cls._load(weights, config)
        chosen = choose_precision(device, precision, fp16_safe=loaded.fp16_safe)
        sam = cls(loaded.module, device, chosen, compile_encoder=compile_encoder)
        sam._keep(weights, config)
        logger.info("%s on %s in %s: %s", loaded.description, device, chosen.name, chosen.reason)
        return sam

    def _keep(self, weights: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> None:
        """Keep what the module leaves out of a checkpoint, if anything of it is needed later."""
        return

    @classmethod
    def reads_config(cls, names: Iterable[str]) -> bool:
        """Return whether a config.json beside a checkpoint with these tensors describes its architecture."""
        return False

    @classmethod
    def check(cls, weights: Mapping[str, Any]) -> None:
        """Check names, shapes and dtypes of a checkpoint's tensors before their values are read.

        Raises:
            CheckpointError: they do not make a network of this family.
        """
        return

    @classmethod
    @abstractmethod
    def _load(cls, weights: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> LoadedModule:
        """Build the module and load the weights."""

    @abstractmethod
    def _encoder(self) -> nn.Module:
        """Return the image encoder of the module."""

    @abstractmethod
    def _input_frame(self) -> Frame:
        """Return the input frame of the encoder."""

    @abstractmethod
    def _levels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode frames [B, 3, side, side] into features [B, C, h, w], then finer features, the finest first."""

    @abstractmethod
    def _group(self, points: PointPrompts) -> Group:
        """Return the group of a point set. Sets of one group share a call of the decoder; groups are decoded in
        ascending order."""

    @abstractmethod
    def _decode(
        self, sets: Sequence[tuple[SamEmbedding, PointPrompts]], above: float | None = None
    ) -> list[Candidates]:
        """Decode point sets of one group in one pass; see `decode`."""

    @abstractmethod
    def predicted_iou(self, embedding: SamEmbedding, points: PointPrompts, *, single: bool) -> tuple[float, ...]:
        """Return the IoU that SAM predicts for a prompt, which may be a box alone: of its single mask, or of each
        candidate. `decode` asks for candidates, and for the single mask if there is a box."""

    @abstractmethod
    def _axis(self, cells: Tensor, filled: int, length: int) -> Tensor:
        """Upscale one axis of low-resolution logits: [length, C] from [n, C].

        Args:
            filled: pixels of the frame that the image fills along this axis.
            length: pixels of the image along this axis.
        """

    @torch.no_grad()
    def embed(self, images: Sequence[Image]) -> list[SamEmbedding]:
        """Embed images in one batch.

        Raises:
            ImageError: an image is so thin that no row or column of it is left in the input frame.
            CheckpointError: the features are not finite: damaged weights, or an unfit precision.
        """
        if not images:
            return []
        before_call()
        pixels, sizes = self._frame.framed(images, self._mean, self._std)
        with autocast(self.device, self.precision):
            features, *fine = (level.float() for level in self._levels(pixels))
        if not all(bool(level.isfinite().all()) for level in (features, *fine)):
            raise CheckpointError(f"SAM's image features are not finite in {self.precision.name}; try precision fp32")
        return [
            SamEmbedding(features[place], image.hw, input_hw, tuple(level[place] for level in fine))
            for place, (image, input_hw) in enumerate(zip(images, sizes, strict=True))
        ]

    @torch.no_grad()
    def decode(
        self, sets: Sequence[tuple[SamEmbedding, PointPrompts]], *, above: float | None = None
    ) -> list[Candidates]:
        """Decode point sets into candidate masks.

        Sets may differ in image and in number of points, and may have a box, also alone, or a rough mask. A set with a
        box gives one candidate, because it is not ambiguous; other sets give three.

        Args:
            above: sets without a candidate whose predicted IoU is above this give no candidates. That saves the time
                for their masks. Default: all sets give candidates.

        Raises:
            ValueError: a set has neither points nor a box.
        """
        groups: dict[Group, list[int]] = {}
        for place, (_, points) in enumerate(sets):
            if not len(points) and not len(points.boxes_xyxy):
                raise ValueError(f"set {place} has no points and no box")
            groups.setdefault(self._group(points), []).append(place)
        found: dict[int, Candidates] = {}
        for _, places in sorted(groups.items()):
            places.sort(key=lambda place: len(sets[place][1]))  # sets of one call are padded to the longest
            for start in range(0, len(places), self._sets_per_call):
                part = places[start : start + self._sets_per_call]
                before_call(len(part))
                found |= zip(part, self._decode([sets[place] for place in part], above), strict=True)
        return [found[place] for place in range(len(sets))]

    def _mask_prompts(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> Tensor | None:
        """Return the rough masks as low-resolution logits float32 [B, 1, h, w] of the frame; None if there are none."""
        if not len(sets[0][1].masks):
            return None
        prompts = np.zeros((len(sets), 1, *self._mask_input_hw), np.float32)
        for row, (embedding, points) in enumerate(sets):
            rows, columns = self.mask_prompt_hw(embedding)
            prompts[row, :, :rows, :columns] = MASK_PROMPT_SCALE * resize(points.masks, (rows, columns))
        return torch.from_numpy(prompts).to(self.device)

    def mask_prompt_hw(self, embedding: SamEmbedding) -> tuple[int, int]:
        """Return the rows and columns to which a rough mask of the image is resized for SAM."""
        return self.filled(embedding, self._mask_input_hw[0])

    @torch.no_grad()
    def mask(self, embedding: SamEmbedding, candidates: Candidates, index: int) -> NDArray[np.bool_]:
        """Return one candidate as a mask bool [H, W] of the image. Only this candidate is upscaled.

        Raises:
            ValueError: there is no such candidate.
        """
        if not 0 <= index < len(candidates):
            raise ValueError(f"index must be one of {len(candidates)} candidates, got {index}")
        return self.upscaling(embedding).in_image(candidates.logits[index])

    def upscaling(self, embedding: SamEmbedding) -> Upscaling:
        """Return the upscaling of logits to the size of the image. That of the last size is kept."""
        sizes, last = (embedding.input_hw, embedding.image_hw), self._last_upscaling
        if last is None or last[0] != sizes:
            cells = torch.eye(self._mask_input_hw[0], dtype=torch.float32, device="cpu")
            rows, columns = (self._axis(cells, filled, length) for filled, length in zip(*sizes, strict=True))
            last = sizes, Upscaling(rows.numpy(), columns.numpy(), threshold=self.mask_threshold)
            self._last_upscaling = last
        return last[1]

    def coarse_masks(self, embedding: SamEmbedding, candidates: Candidates) -> NDArray[np.bool_]:
        """Return the candidates as masks bool [K, h, w] at SAM's low resolution, cropped to the image."""
        rows, columns = self.filled(embedding, candidates.logits.shape[-1])
        masks: NDArray[np.bool_] = candidates.logits[:, :rows, :columns] > self.mask_threshold
        return masks

    def grid_features(self, embedding: SamEmbedding, grid_hw: tuple[int, int]) -> Tensor:
        """Return the embedding on a grid [h, w] that covers the image, resized bilinearly: unit float32 [h·w, C]."""
        rows, columns = self.filled(embedding, embedding.features.shape[-1])
        of_image = embedding.features[None, :, :rows, :columns]
        resized = functional.interpolate(of_image, grid_hw, mode="bilinear", align_corners=False)[0]
        return functional.normalize(resized.flatten(1).T, dim=-1)

    def filled(self, embedding: SamEmbedding, side: int) -> tuple[int, int]:
        """Return the rows and columns that the image fills of a frame `side` cells wide."""
        rows, columns = (max(round(length * side / self._frame.side), 1) for length in embedding.input_hw)
        return rows, columns


def no_candidates(logits: NDArray[np.float32]) -> Candidates:
    """Return the empty candidates of a set. `logits` [..., h, w] are those of others."""
    return Candidates(np.zeros((0, *logits.shape[-2:]), np.float32), np.zeros(0, np.float32))


def lower(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of linear and convolution layers to a dtype, which halves the memory and saves a cast at each
    call. Norms, position embeddings and the residual path stay float32."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(dtype)


def sets_that_fit(device: torch.device, cells: int, width: int) -> int:
    """Return how many point sets a decoder may process at once: on a GPU as many as fit into a tenth of its memory, and
    at least `SETS_PER_CALL`; `SETS_PER_CALL_CPU` on a CPU.

    The number depends on the total memory, not on the free memory: it affects rounding, and a repeated job should give
    the same bytes.

    Args:
        cells: cells of the image embedding.
        width: channels of the image embedding.
    """
    if device.type == "cpu":
        return SETS_PER_CALL_CPU
    if device.type != "cuda":
        return SETS_PER_CALL
    fit = torch.cuda.get_device_properties(device).total_memory // 10 // (40 * cells * width)
    return min(max(fit, SETS_PER_CALL), MOST_SETS_PER_CALL)
