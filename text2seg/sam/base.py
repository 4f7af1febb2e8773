"""Interface of all SAMs: images and prompts to candidates and masks, and the square input frames of SAM and SAM 2."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from text2seg.errors import CheckpointError, ImageError
from text2seg.grids import resize
from text2seg.records import Candidates, Image, PointPrompts
from text2seg.runtime import FULL, Precision, autocast
from text2seg.sam import decoder


class Frame:
    """A square of `side` pixels. An image lies at its top left, its longest side as long as the frame's."""

    def __init__(self, side: int) -> None:
        self.side = side

    def framed(
        self, images: Sequence[Image], device: torch.device, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """float32 [B, 3, side, side] on the device, less `mean`, by `std`, zeros beside the image; and the rows and
        columns that each image fills. They travel to the device as bytes.

        Raises:
            ImageError: an image is so thin that nothing of it is left.
        """
        resized = [self._resized(image) for image in images]
        pixels = torch.zeros(
            len(images), self.side, self.side, 3, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda"
        )
        for place, rows in zip(pixels, resized, strict=True):
            place[: rows.shape[0], : rows.shape[1]] = torch.from_numpy(rows)
        framed = (pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() - mean) / std
        sizes = [(rows.shape[0], rows.shape[1]) for rows in resized]
        for place, (height, width) in zip(framed, sizes, strict=True):
            place[:, height:] = 0
            place[:, :, width:] = 0
        return framed, sizes

    def _resized(self, image: Image) -> NDArray[np.uint8]:
        """The image in the size that `segment-anything` gives it, by the same Pillow."""
        rows, columns = self._fitted(image.hw)
        if not (rows and columns):
            raise ImageError(f"{image.file_name or 'image'} is too thin for SAM: {image.hw[1]}×{image.hw[0]} pixels")
        return np.array(PIL.Image.fromarray(image.pixels).resize((columns, rows), PIL.Image.Resampling.BILINEAR))

    def _fitted(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that an image of this size fills."""
        scale = self.side / max(image_hw)
        return int(image_hw[0] * scale + 0.5), int(image_hw[1] * scale + 0.5)

    def place(self, xy: NDArray[np.float32], image_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Points float32 [N, 2] of an image of this size, in pixels of the frame."""
        rows, columns = self._fitted(image_hw)
        return (xy.astype(np.float64) * (columns / image_hw[1], rows / image_hw[0])).astype(np.float32)

    def points(
        self, sets: Sequence[tuple[tuple[int, int], PointPrompts]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Points float32 [B, N, 2] in the frame and labels int64 [B, N], short sets filled up; of points on images of
        these sizes. A box is two points more; a set without one gets a "not a point"."""
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
    """A square of `side` pixels that an image fills, whatever its shape, as SAM 2 has it."""

    def _resized(self, image: Image) -> NDArray[np.uint8]:
        from torchvision.transforms.v2.functional import resize

        pixels = torch.tensor(image.pixels, dtype=torch.uint8, device="cpu").permute(2, 0, 1)
        resized: Tensor = resize(pixels, [self.side, self.side], antialias=True)
        return resized.permute(1, 2, 0).numpy()

    def place(self, xy: NDArray[np.float32], image_hw: tuple[int, int]) -> NDArray[np.float32]:
        rows, columns = image_hw
        return xy * np.array([self.side / columns, self.side / rows], np.float32)


SETS_PER_CALL = 32  # at least; about 40 MB of activations per set at SAM's full size
MOST_SETS_PER_CALL = 256  # beyond it a GPU is no faster
MASK_PROMPT_SCALE = 0.005
"""What the likelihoods of a rough mask are multiplied by before SAM takes them for its own low-resolution mask, as in
Trident (arXiv 2411.09219): hardly above "unsure", a hint that box and point overrule."""

Group = tuple[int, ...]
"""What sets must have in common to be answered in one call of the decoder."""


@dataclass(frozen=True, slots=True, eq=False)
class SamEmbedding:
    """What SAM knows of one image: `features` float32[C, h, w] on the model's device, and of some models also `fine`,
    features at higher resolution, the finest first.

    `image_hw` is the image's size, `input_hw` the part of the model's square input frame that it fills, from the
    top left corner.
    """

    features: Tensor
    image_hw: tuple[int, int]
    input_hw: tuple[int, int]
    fine: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is kept of the image."""
        return (self.features, *self.fine)


class AnySam(ABC):
    """A promptable segmenter, ready for use on one device. Nothing in it changes after that; threads may share it."""

    mask_threshold = 0.0

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        frame: Frame,
        *,
        mean: Tensor,
        std: Tensor,
        compiled: bool,
        sets_per_call: int,
        mask_input_hw: tuple[int, int],
    ) -> None:
        """
        Args:
            precision: what the encoder runs in; the decoder always runs in float32.
            frame: where images and points go.
            mean, std: of the colours, [3, 1, 1], for pixels from 0 to 255.
            compiled: whether the encoder is compiled.
            sets_per_call: how many point sets go through the decoder at once; more need more memory.
            mask_input_hw: the size of the decoder's mask prompts.
        """
        if sets_per_call < 1:
            raise ValueError(f"sets_per_call must be 1 or more, got {sets_per_call}")
        self.device, self.precision, self.compiled = device, precision, compiled
        self._frame, self._mean, self._std = frame, mean, std
        self._sets_per_call, self._mask_input_hw = sets_per_call, mask_input_hw

    @abstractmethod
    def _levels(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The encoder's features [B, C, h, w] of framed images [B, 3, side, side], then finer ones, finest first."""

    @abstractmethod
    def _group(self, points: PointPrompts) -> Group:
        """Sets of one group share a call of the decoder; groups are answered in ascending order."""

    @abstractmethod
    def _decode(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> list[Candidates]:
        """One pass of the decoder, over sets of one group."""

    @abstractmethod
    def _to_image(self, logits: Tensor, embedding: SamEmbedding) -> Tensor:
        """Low-resolution logits [1, 1, h, w] of the frame, at the size of the image, [1, 1, H, W]."""

    @torch.no_grad()
    def embed(self, images: Sequence[Image]) -> list[SamEmbedding]:
        """The embedding of each image, in one batch.

        Raises:
            ImageError: an image is so thin that nothing of it is left in the model's input frame.
            CheckpointError: the features are not finite, so weights or precision are unfit.
        """
        if not images:
            return []
        pixels, sizes = self._frame.framed(images, self.device, self._mean, self._std)
        with autocast(self.device, self.precision):
            features, *fine = (level.float() for level in self._levels(pixels))
        if not all(bool(level.isfinite().all()) for level in (features, *fine)):
            raise CheckpointError(f"SAM's image features are not finite in {self.precision.name}; try precision fp32")
        return [
            SamEmbedding(features[place], image.hw, input_hw, tuple(level[place] for level in fine))
            for place, (image, input_hw) in enumerate(zip(images, sizes, strict=True))
        ]

    @torch.no_grad()
    def decode(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> list[Candidates]:
        """SAM's candidates for each set of points on its image; sets may differ in size and in image, and have a
        box or a rough mask or not. With a box it is one candidate: what SAM answers when it is told well enough.

        Raises:
            ValueError: a set has no points.
        """
        groups: dict[Group, list[int]] = {}
        for place, (_, points) in enumerate(sets):
            if not len(points):
                raise ValueError(f"set {place} has no points")
            groups.setdefault(self._group(points), []).append(place)
        found: dict[int, Candidates] = {}
        for _, places in sorted(groups.items()):
            for start in range(0, len(places), self._sets_per_call):
                part = places[start : start + self._sets_per_call]
                found |= zip(part, self._decode([sets[place] for place in part]), strict=True)
        return [found[place] for place in range(len(sets))]

    def _mask_prompts(self, sets: Sequence[tuple[SamEmbedding, PointPrompts]]) -> Tensor | None:
        """Rough masks as SAM's low-resolution logits, float32 [B, 1, h, w], in the frame; none where none has one."""
        if not len(sets[0][1].masks):
            return None
        prompts = np.zeros((len(sets), 1, *self._mask_input_hw), np.float32)
        for row, (embedding, points) in enumerate(sets):
            rows, columns = self.filled(embedding, self._mask_input_hw[0])
            prompts[row, :, :rows, :columns] = MASK_PROMPT_SCALE * resize(points.masks, (rows, columns))
        return torch.from_numpy(prompts).to(self.device)

    @torch.no_grad()
    def mask(self, embedding: SamEmbedding, candidates: Candidates, index: int) -> NDArray[np.bool_]:
        """One candidate as a mask bool[H, W] of the image; only this one is brought to full size.

        Raises:
            ValueError: there is no such candidate.
        """
        if not 0 <= index < len(candidates):
            raise ValueError(f"index must be one of {len(candidates)} candidates, got {index}")
        logits = torch.tensor(candidates.logits[index], dtype=torch.float32, device=self.device)[None, None]
        with autocast(self.device, FULL):
            logits = self._to_image(logits, embedding)
        mask: NDArray[np.bool_] = (logits[0, 0] > self.mask_threshold).cpu().numpy()
        return mask

    def coarse_masks(self, embedding: SamEmbedding, candidates: Candidates) -> NDArray[np.bool_]:
        """The candidates as masks bool[K, h, w] at SAM's low resolution, only the part that the image fills."""
        rows, columns = self.filled(embedding, candidates.logits.shape[-1])
        masks: NDArray[np.bool_] = candidates.logits[:, :rows, :columns] > self.mask_threshold
        return masks

    def filled(self, embedding: SamEmbedding, side: int) -> tuple[int, int]:
        """Rows and columns that the image fills of SAM's square frame, were it of this side."""
        rows, columns = (max(round(length * side / self._frame.side), 1) for length in embedding.input_hw)
        return rows, columns


def lower(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Bring the weights of matrix products to the dtype that they are used in: half the memory, and no casting at each
    call. Norms, positions and the path between the blocks stay float32."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(dtype)


def sets_that_fit(device: torch.device, cells: int, width: int) -> int:
    """How many sets of points a decoder with a grid of so many cells, of this width, may hold at once: a tenth of a
    GPU's memory, never fewer than on a CPU.

    Of all its memory, not of what is free: rounding depends on it, and the same job should give the same bytes.
    """
    if device.type != "cuda":
        return SETS_PER_CALL
    fit = torch.cuda.get_device_properties(device).total_memory // 10 // (40 * cells * width)
    return min(max(fit, SETS_PER_CALL), MOST_SETS_PER_CALL)
