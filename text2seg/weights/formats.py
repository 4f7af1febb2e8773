"""File formats of weights: zip archives of `torch.save`, its older format, TorchScript archives and safetensors.

Each file is parsed once, by the parsers here and in `weights.pickles`, and no code in it runs. All sizes are checked
against the size of the file before memory is allocated.
"""

from __future__ import annotations

import json
import math
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

from text2seg.errors import CheckpointError
from text2seg.weights.pickles import PickledObject, Unpickler
from text2seg.weights.stored_tensors import (
    DTYPES,
    MOST_HEADER_BYTES,
    DamagedError,
    Dtype,
    Storage,
    StoredTensor,
    UnsafeError,
    UnsupportedError,
    WeightsFile,
    are_sizes,
    tensor_of,
)

MOST_JSON_BYTES = 8 << 20  # header of safetensors
MOST_ENTRIES = 200_000  # entries of a zip file, or modules of TorchScript
DEEPEST_MODULE = 64
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle in a file of torch.save before 1.6

SAFETENSORS_DTYPES = {
    "F64": DTYPES["float64"],
    "F32": DTYPES["float32"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "F8_E4M3": DTYPES["float8_e4m3fn"],
    "F8_E5M2": DTYPES["float8_e5m2"],
    "I64": DTYPES["int64"],
    "I32": DTYPES["int32"],
    "I16": DTYPES["int16"],
    "I8": DTYPES["int8"],
    "U8": DTYPES["uint8"],
    "BOOL": DTYPES["bool"],
}

COMPRESSED = "it is compressed, which torch never does with tensors; unpack it and zip it again with `zip -0`"


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Yield the content of a file of weights: plain data with a `StoredTensor` for each tensor.

    The tensors can be read while the block runs.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or wants to run code.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # checked before opening: a pipe would wait for a writer
            raise CheckpointError(f"cannot read {path}: it is not a file")
        handle = path.open("rb")
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    with handle:
        file = WeightsFile(path, handle, os.fstat(handle.fileno()).st_size)
        yield _read(file)


def _read(file: WeightsFile) -> Any:
    try:
        return _choose_reader(file)(file)
    except CheckpointError:
        raise
    except UnsafeError as error:
        raise CheckpointError(
            f"{file.path} was refused: reading it could run code ({error}), and weights need none. "
            "Have its author save the state dict alone, best as safetensors"
        ) from None
    except UnsupportedError as error:
        raise CheckpointError(f"{file.path} cannot be read: {error}") from None
    except DamagedError as error:
        raise CheckpointError(f"{file.path} is damaged or cut short: {error}") from None
    except MemoryError:
        raise CheckpointError(f"{file.path} needs more memory than there is") from None
    except RecursionError:
        raise CheckpointError(f"{file.path} is damaged: its content is nested too deep") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error, zlib.error) as error:
        # parts of a pickle, a header or a directory do not fit together
        raise CheckpointError(
            f"{file.path} is damaged or cut short ({type(error).__name__}: {error!s:.100})"
        ) from error


def _choose_reader(file: WeightsFile) -> Callable[[WeightsFile], Any]:
    """Return the reader for a file by its first bytes. Its name is ignored."""
    if not file.size:
        raise CheckpointError(f"{file.path} is empty")
    head = file.take(0, min(file.size, 9))
    if head.startswith(b"PK"):
        return _read_zip
    if head[4:] == b"\0\0\0\0{":  # checked before pickles: the length of its header may begin like one
        return _read_safetensors
    if head.startswith(b"\x80"):
        return _read_legacy
    raise CheckpointError(f"{file.path} is not a checkpoint: neither torch.save, TorchScript nor safetensors wrote it")


# ---- zip archives of torch.save and TorchScript


@dataclass(frozen=True, slots=True)
class _ZipEntry:
    start: int
    size: int
    stored: int
    """Bytes in the file. Differs from `size` if the entry is compressed."""
    method: int
    crc: int

    def content(self, file: WeightsFile) -> bytes:
        """Return the content of a small entry that is not compressed."""
        if self.method or self.stored != self.size:
            raise UnsupportedError(COMPRESSED)
        content = file.take(self.start, self.size)
        if self.crc and zlib.crc32(content) != self.crc:
            raise DamagedError("the checksum of an entry does not match")
        return content

    def inflated(self, file: WeightsFile) -> bytes:
        """Return the content of an entry that may be compressed, never more bytes than it declares."""
        if not self.method:
            return self.content(file)
        if self.method != 8 or self.size > MOST_HEADER_BYTES:
            raise UnsupportedError("an entry of code is too large or compressed in an unknown way")
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.take(self.start, self.stored), self.size)


def _read_zip(file: WeightsFile) -> Any:
    entries = _zip_entries(file)
    tops = {name.partition("/")[0] for name in entries}
    inside = {name.partition("/")[2]: entry for name, entry in entries.items()}
    if "data.pkl" not in inside:
        raise CheckpointError(f"{file.path} is a zip file without weights: it has no data.pkl")
    if len(tops) != 1:
        raise DamagedError("its entries are not in one folder")
    order = inside["byteorder"].content(file).decode() if "byteorder" in inside else "little"
    if order not in ("little", "big"):
        raise DamagedError(f"an unknown byte order {order!r:.20}")

    storages: dict[tuple[str, Dtype], Storage] = {}

    def storage(dtype: Dtype, key: str, numel: int) -> Storage:
        entry = inside[f"data/{key}"]
        if entry.method or entry.stored != entry.size:
            raise UnsupportedError(COMPRESSED)
        if entry.size != numel * dtype.itemsize:
            raise DamagedError(f"a storage has {entry.size:,} bytes instead of {numel * dtype.itemsize:,}")
        if (key, dtype) not in storages:
            swapped = order != sys.byteorder
            storages[key, dtype] = file.storage(dtype, numel, entry.start, crc=entry.crc, swapped=swapped)
        return storages[key, dtype]

    content = Unpickler(BytesIO(inside["data.pkl"].content(file)), inside["data.pkl"].size, storage).load()
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return _state_dict(content, _tensor_names_in_code(inside, file))
    return content


def _zip_entries(file: WeightsFile) -> dict[str, _ZipEntry]:
    """Return the entries of a zip file by name. Files that two zip readers could read differently are refused.

    The end record must be the last bytes, with the directory right before it. Entries must not overlap, and their local
    headers must agree with the directory.

    Source: the sections 4.3 and 4.4 of PKWARE's APPNOTE.TXT.
    """
    count, size, start = _zip_directory(file)
    directory, place, entries = file.take(start, size), 0, dict[str, _ZipEntry]()
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
            raise DamagedError("its directory is invalid or encrypted")
        full, stored, at = _zip64_sizes(extra, full, stored, at)
        text = name.decode("utf-8", "surrogateescape")
        if text in entries:
            raise DamagedError(f"it has two entries {text!r:.80}")
        data = _data_start(file, at, name, (flags, method, crc, stored, full))
        entries[text] = _ZipEntry(data, full, stored, method, crc)
        spans.append((at, data + stored))
    if place != size:
        raise DamagedError("its directory is longer or shorter than its end record says")
    last = 0
    for begin, end in sorted(spans):
        if begin < last or (not last and begin):
            raise DamagedError("its entries overlap, or there are bytes before the first one")
        last = end
    if last > start:
        raise DamagedError("an entry reaches into the directory")
    return entries


def _zip_directory(file: WeightsFile) -> tuple[int, int, int]:
    """Return the number of entries, and the size and first byte of the directory."""
    if file.size < 22:
        raise DamagedError("it has no end record")
    end = file.size - 22
    signature, disk, first, here, count, size, start, comment = struct.unpack("<4s4H2IH", file.take(end, 22))
    if signature != b"PK\x05\x06" or comment:
        raise DamagedError("its last bytes are not the end record of a zip file")
    narrow = (disk, first, here, count, size, start)
    if end >= 76 and file.take(end - 20, 4) == b"PK\x06\x07":
        place = end - 76
        _, at_disk, at, disks = struct.unpack("<4sIQI", file.take(end - 20, 20))
        record = struct.unpack("<4sQ2H2I4Q", file.take(place, 56))
        if (at_disk, at, disks) != (0, place, 1) or record[:2] != (b"PK\x06\x06", 44):
            raise DamagedError("its two end records do not match")
        wide = record[4:]
        full = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
        if any(n not in (w, most) for n, w, most in zip(narrow, wide, full, strict=True)):
            raise DamagedError("its two end records differ")
        (disk, first, here, count, size, start), end = wide, place
    if disk or first or here != count or start + size != end or not 0 < count <= MOST_ENTRIES:
        raise DamagedError("its end record does not match its directory")
    return count, size, start


def _zip64_sizes(extra: bytes, *narrow: int) -> list[int]:
    """Return the size, stored size and offset of an entry, taken from its zip64 field if 32 bits are too few."""
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


def _data_start(file: WeightsFile, at: int, name: bytes, directory: tuple[int, int, int, int, int]) -> int:
    """Return the first byte of an entry's data. Raises `DamagedError` unless its local header equals the directory."""
    header = struct.unpack("<4s5H3I2H", file.take(at, 30))
    signature, _, flags, method, _, _, crc, stored, full, name_length, extra_length = header
    same = (signature, flags, method) == (b"PK\x03\x04", *directory[:2]) and file.take(at + 30, name_length) == name
    follow = flags & 8  # size and checksum follow the data, and the local header has zeros
    for local, listed in zip((crc, stored, full), directory[2:], strict=True):
        same = same and (local in (listed, 0xFFFFFFFF) or bool(follow and not local))
    if not same:
        raise DamagedError(f"the two headers of {name.decode('utf-8', 'replace')!r:.80} differ")
    return at + 30 + name_length + extra_length


# ---- TorchScript


def _tensor_names_in_code(inside: Mapping[str, _ZipEntry], file: WeightsFile) -> dict[str, list[str]]:
    """Return the names of the parameters and buffers of each module class. Only class headers are searched for."""
    found: dict[str, list[str]] = {}
    room = MOST_HEADER_BYTES
    for name, entry in inside.items():
        if not (name.startswith("code/") and name.endswith(".py")):
            continue
        room -= entry.size
        if room < 0:
            raise UnsupportedError("its code is longer than that of any network")
        package = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
        for part in re.split(r"^class ", entry.inflated(file).decode(), flags=re.MULTILINE)[1:]:
            header, _, body = part.partition("\n")
            if header.endswith("(Module):"):
                lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", body, re.MULTILINE)
                found[f"{package}.{header.removesuffix('(Module):')}"] = re.findall(r'"([^"]*)"', " ".join(lists))
    return found


def _state_dict(content: Any, modules: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the tensors of a TorchScript module by the names of its state dict."""
    found: dict[str, Any] = {}
    visits = iter(range(MOST_ENTRIES))

    def walk(module: Any, prefix: str, depth: int) -> None:
        if not isinstance(module, PickledObject) or module.kind.full not in modules:
            return
        if depth > DEEPEST_MODULE or next(visits, None) is None:
            raise DamagedError("its modules are too many or nested too deep")
        for name in modules[module.kind.full]:
            if (tensor := module.attributes.get(name)) is not None:
                found[prefix + name] = tensor
        for name, part in module.attributes.items():
            walk(part, f"{prefix}{name}.", depth + 1)

    walk(content, "", 0)
    return found


# ---- older format of torch.save


def _read_legacy(file: WeightsFile) -> Any:
    """Read what torch.save wrote before version 1.6.

    The file holds five pickles (a magic number, a version, facts about the machine, the content and the keys of its
    storages) and then the length and the little-endian bytes of each storage.
    """
    storages: dict[str, Storage] = {}

    def storage(dtype: Dtype, key: str, numel: int) -> Storage:
        found = storages.setdefault(key, Storage(file, dtype, numel, swapped=sys.byteorder != "little"))
        if (found.dtype, found.numel) != (dtype, numel):
            raise DamagedError("a storage has two dtypes")
        return found

    def no_storage(*_: Any) -> Storage:
        raise DamagedError("it has a tensor in a place where torch.save writes none")

    def load(finder: Callable[[Dtype, str, int], Storage] = no_storage) -> Any:
        left = min(file.size - file.handle.tell(), MOST_HEADER_BYTES)
        return Unpickler(file.handle, left, finder).load()

    file.handle.seek(0)
    if load() != LEGACY_MAGIC or load() != 1001:
        raise DamagedError("it is a pickle, but torch.save did not write it; save the state dict with torch.save")
    load()
    content, keys = load(storage), load()
    if set(keys) > storages.keys():
        raise UnsupportedError("it holds tensors of an unknown kind; save the weights alone")
    if sorted(keys) != sorted(storages):
        raise DamagedError("its storages do not match its tensors")
    place = file.handle.tell()
    for key in keys:
        (numel,) = struct.unpack("<q", file.take(place, 8))
        if numel != storages[key].numel:
            raise DamagedError("the length of a storage does not match its tensors")
        storages[key].start = file.storage(storages[key].dtype, numel, place + 8).start
        place += 8 + storages[key].nbytes
    return content


# ---- safetensors


def _read_safetensors(file: WeightsFile) -> dict[str, StoredTensor]:
    """Read a safetensors file: the length of the header, a JSON header, and the tensors without gaps.

    Source: the description of the format in the README of huggingface/safetensors.
    """
    (length,) = struct.unpack("<Q", file.take(0, 8))
    if length > MOST_JSON_BYTES:
        raise DamagedError(f"its header has {length:,} bytes, more than weights need")
    header = json.loads(file.take(8, length), object_pairs_hook=_unique_keys)
    header.pop("__metadata__", None)
    found, start, end = {}, 8 + length, 0
    for name, entry in sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        dtype, shape, (begin, stop) = SAFETENSORS_DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if dtype is None:
            raise UnsupportedError(f"{name!r:.80} has the dtype {entry['dtype']!r:.20}; save it as float32")
        if not are_sizes(begin, stop, *shape):
            raise DamagedError(f"the shape or offsets of {name!r:.80} are invalid")
        numel = math.prod(tuple(shape))
        if begin != end or stop - begin != numel * dtype.itemsize:
            raise DamagedError(f"{name!r:.80} overlaps another tensor, or its bytes do not match its shape")
        strides = [math.prod(tuple(shape[axis + 1 :])) for axis in range(len(shape))]
        storage = file.storage(dtype, numel, start + begin, swapped=sys.byteorder != "little")
        found[name], end = tensor_of(storage, dtype, 0, shape, strides), stop
    if start + end != file.size:
        raise DamagedError(f"its tensors end at byte {start + end:,}, but it has {file.size:,}")
    return {name: found[name] for name in header}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DamagedError("its header contains a name twice")
    return found
