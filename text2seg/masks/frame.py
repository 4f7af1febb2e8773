"""The square input frames of SAM and SAM 2: pictures, points and boxes brought into them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from text2seg.errors import ImageError
from text2seg.masks import decoder
from text2seg.records import Image, PointPrompts


class Frame:
    """A square of `side` pixels. A picture lies at its top left, its longest side as long as the frame's."""

    def __init__(self, side: int) -> None:
        self.side = side

    def pictures(
        self, images: Sequence[Image], device: torch.device, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """float32 [B, 3, side, side] on the device, less `mean`, by `std`, zeros beside the picture; and the rows and
        columns that each picture fills. They travel to the device as bytes.

        Raises:
            ImageError: a picture is so thin that nothing of it is left.
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
        """The picture in the size that `segment-anything` gives it, by the same Pillow."""
        rows, columns = self._fitted(image.hw)
        if not (rows and columns):
            raise ImageError(f"{image.file_name or 'image'} is too thin for SAM: {image.hw[1]}×{image.hw[0]} pixels")
        return np.array(PIL.Image.fromarray(image.pixels).resize((columns, rows), PIL.Image.Resampling.BILINEAR))

    def _fitted(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that a picture of this size fills."""
        scale = self.side / max(image_hw)
        return int(image_hw[0] * scale + 0.5), int(image_hw[1] * scale + 0.5)

    def place(self, xy: NDArray[np.float32], image_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Points float32 [N, 2] of a picture of this size, in pixels of the frame."""
        rows, columns = self._fitted(image_hw)
        return (xy.astype(np.float64) * (columns / image_hw[1], rows / image_hw[0])).astype(np.float32)

    def points(
        self, sets: Sequence[tuple[tuple[int, int], PointPrompts]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Points float32 [B, N, 2] in the frame and labels int64 [B, N], short sets filled up; of points on pictures of
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
    """A square of `side` pixels that a picture fills, whatever its shape, as SAM 2 has it."""

    def _resized(self, image: Image) -> NDArray[np.uint8]:
        from torchvision.transforms.v2.functional import resize

        pixels = torch.tensor(image.pixels, dtype=torch.uint8, device="cpu").permute(2, 0, 1)
        resized: Tensor = resize(pixels, [self.side, self.side], antialias=True)
        return resized.permute(1, 2, 0).numpy()

    def place(self, xy: NDArray[np.float32], image_hw: tuple[int, int]) -> NDArray[np.float32]:
        rows, columns = image_hw
        return xy * np.array([self.side / columns, self.side / rows], np.float32)
