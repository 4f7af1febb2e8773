"""Picture files as a sequence that reads each one when it is looked at, so that a folder need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from text2seg.errors import ImageError
from text2seg.files import exists, is_dir
from text2seg.images import load_image
from text2seg.labelling.listing import list_images
from text2seg.records import Image


class PictureFiles(Sequence[Image]):
    """Files, and all pictures in folders and the folders in them, in the order of their paths.

    Taking one out reads it and raises `ImageError` where that fails.
    """

    def __init__(self, places: Iterable[Path]) -> None:
        """Raises `ImageError` where there is nothing of a name, or no picture in a folder."""
        self.paths = tuple(path for place in places for path in _files(place))

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> PictureFiles: ...
    def __getitem__(self, index: int | slice) -> Image | PictureFiles:
        if isinstance(index, slice):
            return PictureFiles(self.paths[index])
        path = self.paths[index]
        return load_image(path, image_id=range(len(self))[index] + 1, file_name=path.name)


def _files(place: Path) -> list[Path]:
    if not is_dir(place, ImageError):
        if not exists(place, ImageError):
            raise ImageError(f"there is no file or folder {place}")
        return [place]
    return [place / file for file in list_images(place).files]
