"""Tensors in a file of weights: their shapes and dtypes are known before any of their numbers is read, without torch.

Sizes and offsets come from the file and are not trusted. They are checked against the size of the file before memory
is allocated.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from text2seg.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_HEADER_BYTES = 128 << 20
"""Largest pickle, zip directory, or total of code that is searched for class headers."""
MOST_AXES = 32
MOST_SIZE = 1 << 48  # of one axis, stride or offset
SAVE_ALONE = "save the state dict alone"


class DamagedError(Exception):
    """The file is damaged or inconsistent. The message says why; the path is added later."""


class UnsupportedError(Exception):
    """The file may be valid, but is too large or contains something that is not read here. The message says what."""


class UnsafeError(Exception):
    """Another reader could run code that is in the file. The message says which."""


@dataclass(frozen=True, slots=True)
class Dtype:
    """One of torch's dtypes, by its name there."""

    name: str
    itemsize: int

    @property
    def is_complex(self) -> bool:
        return self.name.startswith("complex")

    @property
    def is_floating_point(self) -> bool:
        return "float" in self.name

    @property
    def of_torch(self) -> torch.dtype:
        import torch

        found: torch.dtype = getattr(torch, self.name)
        return found

    def __str__(self) -> str:
        return f"torch.{self.name}"


DTYPES = {
    name: Dtype(name, size)
    for size, names in {
        1: "bool uint8 int8 float8_e4m3fn float8_e5m2",
        2: "int16 float16 bfloat16",
        4: "int32 float32",
        8: "int64 float64 complex64",
        16: "complex128",
    }.items()
    for name in names.split()
}
"""Dtypes that weights may have, by name."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """An open file of weights. Reading beyond its end is refused."""

    path: Path
    handle: BufferedReader
    size: int

    def take(self, start: int, length: int) -> bytes:
        """Return `length` bytes of a header, from byte `start` on."""
        if length > MOST_HEADER_BYTES:
            raise UnsupportedError(f"its header or pickle has {length:,} bytes, more than weights need; {SAVE_ALONE}")
        self._check_inside(start, length)
        self.handle.seek(start)
        found = self.handle.read(length)
        if len(found) < length:
            raise DamagedError("the file became shorter while it was read")
        return found

    def fill(self, start: int, content: np.ndarray) -> None:
        """Fill an array uint8[N] with N bytes from byte `start` on. Raises `CheckpointError` if they cannot be read."""
        try:
            self.handle.seek(start)
            count = self.handle.readinto(content.data) if content.size else 0
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error}") from error
        if count < content.size:
            raise CheckpointError(f"{self.path} is damaged or cut short: it became shorter while it was read")

    def storage(self, dtype: Dtype, numel: int, start: int, *, crc: int = 0, swapped: bool = False) -> Storage:
        """Return the storage at byte `start` once it is known to end inside the file."""
        self._check_inside(start, numel * dtype.itemsize)
        return Storage(self, dtype, numel, start, crc, swapped)

    def _check_inside(self, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > self.size:
            raise DamagedError(f"it has {self.size:,} bytes, but its content would end at {start + length:,}")


@dataclass(slots=True, eq=False)
class Storage:
    """Bytes of a file that one or more tensors are views of. They are read once, when first needed."""

    file: WeightsFile
    dtype: Dtype
    numel: int
    start: int | None = None
    """First byte in the file. In the format before zip archives it is known only after the pickle."""
    crc: int = 0
    """CRC-32 of the bytes; 0 if the writer left it out, which torch can be told to do."""
    swapped: bool = False
    """True if the byte order differs from this machine's."""
    content: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def read(self) -> Tensor:
        """Return all bytes as a flat uint8 tensor."""
        import torch

        if self.content is None:
            try:
                content = np.empty(self.nbytes, np.uint8)
            except MemoryError:
                raise CheckpointError(f"{self.file.path} needs more memory than there is") from None
            self.file.fill(self.start or 0, content)
            if self.crc and zlib.crc32(content.data) != self.crc:
                raise CheckpointError(f"{self.file.path} is damaged: the checksum of a tensor does not match")
            if self.swapped and self.dtype.itemsize > 1:
                content.view(f"u{self.dtype.itemsize}").byteswap(inplace=True)
            self.content = content
        return torch.from_numpy(self.content)


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor in a file: shape and dtype are known, the numbers are not read yet."""

    storage: Storage
    dtype: Dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    is_plain: bool
    """True for a dense tensor of real numbers. An expanded tensor (stride 0) could claim more memory than exists."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def read(self) -> Tensor:
        """Return the tensor, on the CPU. Tensors that share memory in the file share it here too.

        Raises:
            CheckpointError: the file cannot be read, or a checksum does not match.
        """
        import torch

        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype.of_torch, device="cpu")
        return self.storage.read().view(self.dtype.of_torch).as_strided(self.shape, self.stride, self.offset)


def are_sizes(*numbers: Any) -> bool:
    """Return whether all values are integers that can be sizes, strides or offsets of a tensor."""
    return len(numbers) <= MOST_AXES and all(type(n) is int and 0 <= n < MOST_SIZE for n in numbers)


def tensor_of(storage: Storage, dtype: Dtype, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """Return a view of a storage. Raises `DamagedError` if it would reach beyond the storage."""
    if len(shape) != len(stride) or not are_sizes(offset, *shape) or not are_sizes(*stride):
        raise DamagedError("the shape, strides or offset of a tensor are invalid")
    numel = math.prod(shape)
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True)) if numel else 0
    if storage.nbytes % dtype.itemsize or last >= max(storage.nbytes // dtype.itemsize, 1):
        raise DamagedError("a tensor reaches beyond its storage")
    is_plain = not dtype.is_complex and numel * dtype.itemsize <= storage.nbytes
    return StoredTensor(storage, dtype, offset, tuple(shape), tuple(stride), is_plain)
