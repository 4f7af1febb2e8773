"""Files of weights as they lie on disk: what `torch.save` writes (its zip archives and the form before them),
TorchScript archives and safetensors. Each file is parsed once, by the parsers here and in `weights.pickles`, and
nothing in it runs. All sizes are held against the file's own size before memory is taken.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from text2seg.errors import CheckpointError
from text2seg.weights.pickles import (
    MOST_HEADER_BYTES,
    CodeError,
    FaultError,
    Inert,
    Storage,
    StoredTensor,
    Unpickler,
    UnreadError,
    WeightsFile,
    are_sizes,
    product,
    tensor_of,
)

MOST_JSON_BYTES = 8 << 20
MOST_ENTRIES = 200_000  # of a zip, or modules of TorchScript
DEEPEST_MODULE = 64
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

COMPRESSED = "it is compressed, and torch compresses no tensors; unpack it and zip it with `zip -0`"
UNWANTED = "weights need none. Have its author save the state dict alone, best as safetensors"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The content of a file of weights: plain data with a `StoredTensor` for each tensor, which can be read meanwhile.

    Raises:
        CheckpointError: the file is missing, damaged or no checkpoint, or wants to run code.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would wait for a writer
            raise CheckpointError(f"cannot read {path}: it is not a file")
        handle = path.open("rb")
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    with handle:
        file = WeightsFile(path, handle, os.fstat(handle.fileno()).st_size)
        yield _content(file)


def _content(file: WeightsFile) -> Any:
    try:
        return _reader_of(file)(file)
    except CheckpointError:
        raise
    except CodeError as error:
        raise CheckpointError(f"{file.path} was refused: reading it could run code ({error}), and {UNWANTED}") from None
    except UnreadError as error:
        raise CheckpointError(f"{file.path} is not read: {error}") from None
    except FaultError as error:
        raise CheckpointError(f"{file.path} is damaged or cut short: {error}") from None
    except MemoryError:
        raise CheckpointError(f"{file.path} needs more memory than there is") from None
    except RecursionError:
        raise CheckpointError(f"{file.path} is damaged: its content is nested too deep") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error, zlib.error) as error:
        # pieces of a pickle, a header or a directory that do not fit together
        raise CheckpointError(
            f"{file.path} is damaged or cut short ({type(error).__name__}: {error!s:.100})"
        ) from error


def _reader_of(file: WeightsFile) -> Callable[[WeightsFile], Any]:
    """By the first bytes of the file; its name says nothing."""
    if not file.size:
        raise CheckpointError(f"{file.path} is empty")
    head = file.take(0, min(file.size, 9))
    if head.startswith(b"PK"):
        return _read_zip
    if head[4:] == b"\0\0\0\0{":  # before pickles, for its header may have a length that begins like one
        return _read_safetensors
    if head.startswith(b"\x80"):
        return _read_legacy
    raise CheckpointError(f"{file.path} is not a checkpoint: neither torch.save, TorchScript nor safetensors wrote it")


# Zip archives, of torch.save and of TorchScript


@dataclass(frozen=True, slots=True)
class _Entry:
    start: int
    size: int
    stored: int
    """Bytes in the file; as many as `size` unless they are compressed."""
    method: int
    crc: int

    def content(self, file: WeightsFile) -> bytes:
        """The content of a small entry that is not compressed."""
        if self.method or self.stored != self.size:
            raise UnreadError(COMPRESSED)
        content = file.take(self.start, self.size)
        if self.crc and zlib.crc32(content) != self.crc:
            raise FaultError("an entry does not have its checksum")
        return content

    def inflated(self, file: WeightsFile) -> bytes:
        """The content of one that may be compressed, never more than it says."""
        if not self.method:
            return self.content(file)
        if self.method != 8 or self.size > MOST_HEADER_BYTES:
            raise UnreadError("an entry of code is compressed in an unknown way or too large")
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.take(self.start, self.stored), self.size)


def _read_zip(file: WeightsFile) -> Any:
    entries = _entries(file)
    tops = {name.partition("/")[0] for name in entries}
    inside = {name.partition("/")[2]: entry for name, entry in entries.items()}
    if "data.pkl" not in inside:
        raise CheckpointError(f"{file.path} is a zip file, but not one of weights: it has no data.pkl")
    if len(tops) != 1:
        raise FaultError("its entries are not in one folder, as torch writes them")
    order = inside["byteorder"].content(file).decode() if "byteorder" in inside else "little"
    if order not in ("little", "big"):
        raise FaultError(f"an unknown byte order {order!r:.20}")

    storages: dict[tuple[str, torch.dtype], Storage] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> Storage:
        entry = inside[f"data/{key}"]
        if entry.method or entry.stored != entry.size:
            raise UnreadError(COMPRESSED)
        if entry.size != numel * dtype.itemsize:
            raise FaultError(f"a storage of {entry.size:,} bytes should have {numel * dtype.itemsize:,}")
        if (key, dtype) not in storages:
            swapped = order != sys.byteorder
            storages[key, dtype] = file.storage(dtype, numel, entry.start, crc=entry.crc, swapped=swapped)
        return storages[key, dtype]

    content = Unpickler(BytesIO(inside["data.pkl"].content(file)), inside["data.pkl"].size, storage).load()
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return _state_dict(content, _modules_in_code(inside, file))
    return content


def _entries(file: WeightsFile) -> dict[str, _Entry]:
    """The directory of a zip file that has nothing before, behind or between its entries that could be read as another
    directory: one end record as its last bytes, the directory right before it, entries that do not overlap, and local
    headers that say the same as the directory."""
    count, size, start = _end_of_zip(file)
    directory, place, entries = file.take(start, size), 0, dict[str, _Entry]()
    spans = []
    for _ in range(count):
        fields = struct.unpack_from("<4s6H3I5H2I", directory, place)
        signature, _, _, flags, method, _, _, crc, stored, full, name_length, extra_length, comment, disk, _, _, at = (
            fields
        )
        name = directory[place + 46 : place + 46 + name_length]
        extra = directory[place + 46 + name_length :][:extra_length]
        place += 46 + name_length + extra_length + comment
        if signature != b"PK\x01\x02" or place > size or flags & 0x2041 or disk:
            raise FaultError("its directory is broken or encrypted")
        full, stored, at = _wide(extra, full, stored, at)
        text = name.decode("utf-8", "surrogateescape")
        if text in entries:
            raise FaultError(f"it has two entries {text!r:.80}")
        data = _data_of_entry(file, at, name, (flags, method, crc, stored, full))
        entries[text] = _Entry(data, full, stored, method, crc)
        spans.append((at, data + stored))
    if place != size:
        raise FaultError("its directory is not as long as its end record says")
    last = 0
    for begin, end in sorted(spans):
        if begin < last or (not last and begin):
            raise FaultError("its entries overlap, or something is before the first")
        last = end
    if last > start:
        raise FaultError("an entry reaches into the directory")
    return entries


def _end_of_zip(file: WeightsFile) -> tuple[int, int, int]:
    """How many entries there are, and size and place of the directory."""
    if file.size < 22:
        raise FaultError("it has no end record")
    end = file.size - 22
    signature, disk, first, here, count, size, start, comment = struct.unpack("<4s4H2IH", file.take(end, 22))
    if signature != b"PK\x05\x06" or comment:
        raise FaultError("its last bytes are not the end record of a zip file")
    narrow = (disk, first, here, count, size, start)
    if end >= 76 and file.take(end - 20, 4) == b"PK\x06\x07":
        place = end - 76
        _, at_disk, at, disks = struct.unpack("<4sIQI", file.take(end - 20, 20))
        record = struct.unpack("<4sQ2H2I4Q", file.take(place, 56))
        if (at_disk, at, disks) != (0, place, 1) or record[:2] != (b"PK\x06\x06", 44):
            raise FaultError("its two end records do not fit together")
        wide = record[4:]
        full = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
        if any(n not in (w, most) for n, w, most in zip(narrow, wide, full, strict=True)):
            raise FaultError("its two end records do not say the same")
        (disk, first, here, count, size, start), end = wide, place
    if disk or first or here != count or start + size != end or not 0 < count <= MOST_ENTRIES:
        raise FaultError("its end record does not fit to its directory")
    return count, size, start


def _wide(extra: bytes, *narrow: int) -> list[int]:
    """Size, stored size and place of an entry, from the zip64 field where 32 bits cannot hold them."""
    place, values = 0, b""
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            values = extra[place + 4 : place + 4 + length]
        place += 4 + length
    found = []
    for number in narrow:
        if number == 0xFFFFFFFF:
            (number,), values = struct.unpack("<Q", values[:8]), values[8:]
        found.append(number)
    return found


def _data_of_entry(file: WeightsFile, at: int, name: bytes, told: tuple[int, int, int, int, int]) -> int:
    """Where an entry's data begins, once its local header says what the directory says of it."""
    header = struct.unpack("<4s5H3I2H", file.take(at, 30))
    signature, _, flags, method, _, _, crc, stored, full, name_length, extra_length = header
    same = (signature, flags, method) == (b"PK\x03\x04", *told[:2]) and file.take(at + 30, name_length) == name
    later = flags & 8  # sizes and checksum may come behind the data; here they are left open then
    for own, of_directory in zip((crc, stored, full), told[2:], strict=True):
        same = same and (own in (of_directory, 0xFFFFFFFF) or bool(later and not own))
    if not same:
        raise FaultError(f"the two headers of {name.decode('utf-8', 'replace')!r:.80} do not say the same")
    return at + 30 + name_length + extra_length


# TorchScript


def _modules_in_code(inside: Mapping[str, _Entry], file: WeightsFile) -> dict[str, list[str]]:
    """Names of the parameters and buffers of each module class. The code is searched for its class headers only."""
    found: dict[str, list[str]] = {}
    room = MOST_HEADER_BYTES
    for name, entry in inside.items():
        if not (name.startswith("code/") and name.endswith(".py")):
            continue
        room -= entry.size
        if room < 0:
            raise FaultError("its code is longer than that of any network")
        package = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
        for part in re.split(r"^class ", entry.inflated(file).decode(), flags=re.MULTILINE)[1:]:
            header, _, body = part.partition("\n")
            if header.endswith("(Module):"):
                lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", body, re.MULTILINE)
                found[f"{package}.{header.removesuffix('(Module):')}"] = re.findall(r'"([^"]*)"', " ".join(lists))
    return found


def _state_dict(content: Any, modules: Mapping[str, list[str]]) -> dict[str, Any]:
    """The tensors of a TorchScript module by the names of its state dict."""
    found: dict[str, Any] = {}
    visits = iter(range(MOST_ENTRIES))

    def walk(module: Any, prefix: str, depth: int) -> None:
        if not isinstance(module, Inert) or module.kind.full not in modules:
            return
        if depth > DEEPEST_MODULE or next(visits, None) is None:
            raise FaultError("its modules are nested too deep, or too many")
        for name in modules[module.kind.full]:
            if (tensor := module.attributes.get(name)) is not None:
                found[prefix + name] = tensor
        for name, part in module.attributes.items():
            walk(part, f"{prefix}{name}.", depth + 1)

    walk(content, "", 0)
    return found


def _read_legacy(file: WeightsFile) -> Any:
    """What torch.save wrote before 1.6: a number, a version, the machine, the content, the keys of its storages, and
    then for each of them its length and its bytes, the lowest byte of a number first."""
    storages: dict[str, Storage] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> Storage:
        found = storages.setdefault(key, Storage(file, dtype, numel, swapped=sys.byteorder != "little"))
        if (found.dtype, found.numel) != (dtype, numel):
            raise FaultError("a storage has two types")
        return found

    def nothing(*_: Any) -> Storage:
        raise FaultError("a tensor at a place where torch.save puts none")

    def load(finder: Callable[[torch.dtype, str, int], Storage] = nothing) -> Any:
        left = min(file.size - file.handle.tell(), MOST_HEADER_BYTES)
        return Unpickler(file.handle, left, finder).load()

    file.handle.seek(0)
    if load() != LEGACY_MAGIC or load() != 1001:
        raise FaultError("it is a pickle, but torch.save did not write it; save the state dict with torch.save")
    load()
    content, keys = load(storage), load()
    if set(keys) > storages.keys():
        raise UnreadError("it holds tensors of a kind that is not known here; save the weights alone")
    if sorted(keys) != sorted(storages):
        raise FaultError("its storages are not those that its tensors want")
    place = file.handle.tell()
    for key in keys:
        (numel,) = struct.unpack("<q", file.take(place, 8))
        if numel != storages[key].numel:
            raise FaultError("a storage has another length than its tensors want")
        storages[key].start = file.storage(storages[key].dtype, numel, place + 8).start
        place += 8 + storages[key].nbytes
    return content


# safetensors


def _read_safetensors(file: WeightsFile) -> dict[str, StoredTensor]:
    """Source: the format's description in the README of huggingface/safetensors: the header's length, the header in
    JSON, and the tensors, which fill the rest without gaps."""
    (length,) = struct.unpack("<Q", file.take(0, 8))
    if length > MOST_JSON_BYTES:
        raise FaultError(f"a header of {length:,} bytes, more than weights need")
    header = json.loads(file.take(8, length), object_pairs_hook=_once)
    header.pop("__metadata__", None)
    found, start, end = {}, 8 + length, 0
    for name, entry in sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        dtype, shape, (begin, stop) = SAFETENSORS_DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if dtype is None:
            raise UnreadError(f"{name!r:.80} has the dtype {entry['dtype']!r:.20}; save it as float32")
        if not are_sizes(begin, stop, *shape):
            raise FaultError(f"{name!r:.80} has a shape or place that makes no sense")
        numel = product(tuple(shape))
        if begin != end or stop - begin != numel * dtype.itemsize:
            raise FaultError(f"{name!r:.80} overlaps another tensor, or has not the bytes that its shape needs")
        strides = [product(tuple(shape[axis + 1 :])) for axis in range(len(shape))]
        storage = file.storage(dtype, numel, start + begin, swapped=sys.byteorder != "little")
        found[name], end = tensor_of(storage, dtype, 0, shape, strides), stop
    if start + end != file.size:
        raise FaultError(f"its tensors should end at byte {start + end:,}, and it has {file.size:,}")
    return {name: found[name] for name in header}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise FaultError("its header names something twice")
    return found
