"""Pickles of weights as plain data: dicts, lists, tuples, numbers and texts, with a `StoredTensor` for each tensor and
an `Inert` for an object of any other class. No class is imported and no function called, whatever a pickle asks for.

Source: the opcodes as Python's `pickletools` describes them, and `torch._utils` for what torch writes with them.
"""

from __future__ import annotations

import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from text2seg.errors import CheckpointError

MOST_STEPS = 10_000_000
"""Opcodes of a pickle. The largest SAM has 25,000, a training checkpoint of it with the optimiser's state 100,000; a
log of the training has one for each number."""
MOST_HEADER_BYTES = 128 << 20
"""Of a pickle, of a zip's directory, and of all code whose class headers are read."""
ALONE = "save the state dict alone"
LONGEST_NUMBER = 255  # bytes of an integer in a pickle
MOST_MARKS = 1000  # open at once
MOST_AXES = 32

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
DTYPES = {str(dtype): dtype for dtype in (*STORAGES.values(), torch.float8_e4m3fn, torch.float8_e5m2)}

DICTS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
HARMLESS = {
    "builtins": "set frozenset list dict tuple int float bool str bytes bytearray complex object slice range "
    "type Ellipsis NotImplemented",
    "collections": "OrderedDict defaultdict Counter deque",
    "datetime": "datetime date time timedelta timezone",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "_codecs": "encode",
    "argparse": "Namespace",
    "copyreg": "_reconstructor",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "functools": "partial",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
"""What a pickle may ask for of Python's modules. A file that asks for anything else there wants to run something."""
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess"}
PYTHON_2_NAMES = {"long": "int", "unicode": "str", "xrange": "range"}
"""What builtins were called in Python 2, as pickles of protocol 2 still do."""
REBUILD = "torch._utils._rebuild_"


class FaultError(Exception):
    """The file is not what it should be; the message says why, the path is put before it."""


class UnreadError(Exception):
    """The file may be whole, but is larger than, or has something in it beyond, what is read here; the message says
    what."""


class CodeError(Exception):
    """Reading the file any other way could run code; the message says what it asks for."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function in a pickle. It is never looked up."""

    module: str
    name: str

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Inert:
    """An object of a class that is not known here; `attributes` is what it would be filled with, if that is a dict."""

    kind: Global
    attributes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """An open file; nothing beyond its end is asked for."""

    path: Path
    handle: BufferedReader
    size: int

    def take(self, start: int, length: int) -> bytes:
        """Some bytes of a header."""
        if length > MOST_HEADER_BYTES:
            raise UnreadError(f"its header or pickle has {length:,} bytes, more than weights need; {ALONE}")
        self._check(start, length)
        self.handle.seek(start)
        found = self.handle.read(length)
        if len(found) < length:
            raise FaultError("the file became shorter while it was read")
        return found

    def fill(self, start: int, content: np.ndarray) -> None:
        """Read as many bytes as the array uint8 [N] has. Raises `CheckpointError` where they cannot be read."""
        try:
            self.handle.seek(start)
            count = self.handle.readinto(content.data) if content.size else 0
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error}") from error
        if count < content.size:
            raise CheckpointError(f"{self.path} is damaged or cut short: it became shorter while it was read")

    def storage(self, dtype: torch.dtype, numel: int, start: int, *, crc: int = 0, swapped: bool = False) -> Storage:
        self._check(start, numel * dtype.itemsize)
        return Storage(self, dtype, numel, start, crc, swapped)

    def _check(self, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > self.size:
            raise FaultError(f"it has {self.size:,} bytes, and its content should end at {start + length:,}")


@dataclass(slots=True, eq=False)
class Storage:
    """Bytes of a file that tensors are views of, read at most once."""

    file: WeightsFile
    dtype: torch.dtype
    numel: int
    start: int | None = None
    """Where they begin in the file; in the form before zip archives it is known after the pickle."""
    crc: int = 0
    """CRC-32 of the bytes; 0 where the writer left it out, as torch can be told to."""
    swapped: bool = False
    """Whether the bytes of a number come in the order that this machine does not use."""
    content: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def read(self) -> Tensor:
        """All of them, as a flat tensor uint8."""
        if self.content is None:
            try:
                content = np.empty(self.nbytes, np.uint8)
            except MemoryError:
                raise CheckpointError(f"{self.file.path} needs more memory than there is") from None
            self.file.fill(self.start or 0, content)
            if self.crc and zlib.crc32(content.data) != self.crc:
                raise CheckpointError(f"{self.file.path} is damaged: a tensor's bytes do not have their checksum")
            if self.swapped and self.dtype.itemsize > 1:
                content.view(f"u{self.dtype.itemsize}").byteswap(inplace=True)
            self.content = content
        return torch.from_numpy(self.content)


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor that still lies in its file: its shape and dtype are known, its numbers are not read."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    is_plain: bool
    """Dense real numbers, each with its own place in memory: a stride of zero could claim more than fits anywhere."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return product(self.shape) * self.dtype.itemsize

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def read(self) -> Tensor:
        """The tensor, on the CPU. Tensors that share memory in the file share it here too.

        Raises:
            CheckpointError: the file cannot be read, or its bytes do not have their checksum.
        """
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype, device="cpu")
        return self.storage.read().view(self.dtype).as_strided(self.shape, self.stride, self.offset)


def product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def are_sizes(*numbers: Any) -> bool:
    return len(numbers) <= MOST_AXES and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)


def tensor_of(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """A view of a storage, once it is known to lie within it."""
    if len(shape) != len(stride) or not are_sizes(offset, *shape) or not are_sizes(*stride):
        raise FaultError("a tensor's shape, strides or offset make no sense")
    numel = product(shape)
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True)) if numel else 0
    if storage.nbytes % dtype.itemsize or last >= max(storage.nbytes // dtype.itemsize, 1):
        raise FaultError("a tensor reaches beyond its storage")
    is_plain = not dtype.is_complex and numel * dtype.itemsize <= storage.nbytes
    return StoredTensor(storage, dtype, offset, tuple(shape), tuple(stride), is_plain)


class Unpickler:
    """The opcodes that `torch.save` and TorchScript write, on plain data. No class is imported, no function called."""

    def __init__(
        self, source: BufferedReader | BytesIO, size: int, storage: Callable[[torch.dtype, str, int], Storage]
    ) -> None:
        """Read from a file of `size` bytes; `storage` finds one by dtype, key and number of elements."""
        self._source, self._size, self._storage = source, size, storage
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        for _ in range(MOST_STEPS):
            code = self.take(1)
            if code == pickle.STOP:
                return self._stack.pop()
            step = _OPCODES.get(code)
            if step is None:
                raise CodeError(f"its pickle has the opcode {code!r}, which no state dict needs")
            step(self)
        raise UnreadError(f"its pickle has more than {MOST_STEPS:,} steps, more than weights need; {ALONE}")

    def take(self, length: int) -> bytes:
        if length < 0 or length > self._size:
            raise FaultError("its pickle ends too early")
        self._size -= length
        return self._source.read(length)

    def number(self, form: str) -> Any:
        value: Any = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def protocol(self) -> None:
        if self.number("B") > pickle.HIGHEST_PROTOCOL:
            raise FaultError("its pickle is of a protocol that is not known")

    def line(self) -> str:
        found = self._source.readline(1000)
        self._size -= len(found)
        if not found.endswith(b"\n"):
            raise FaultError("a name in its pickle has no end")
        return found[:-1].decode()

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self) -> None:
        if len(self._marked) >= MOST_MARKS:
            raise FaultError("its pickle is nested too deep")
        self._marked.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        found, self._stack = self._stack, self._marked.pop()
        return found

    def discard(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.pop_mark()

    def tuple_of(self, length: int) -> None:
        found = tuple(self._stack[-length:])
        if len(found) < length:
            raise FaultError("its pickle takes more than it has put down")
        self._stack[-length:] = [found]

    def put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def get(self, place: int) -> None:
        self.push(self._memo[place])

    def integer(self, length: int) -> None:
        if length > LONGEST_NUMBER:
            raise FaultError(f"a number of {length:,} bytes in its pickle")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def text(self, form: str) -> None:
        self.push(self.take(self.number(form)).decode("utf-8", "surrogatepass"))

    def old_text(self, form: str) -> None:
        """A str of Python 2."""
        self.push(self.take(self.number(form)).decode("latin-1"))

    def data(self, form: str) -> None:
        self.push(self.take(self.number(form)))

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise FaultError("its pickle appends to what is no list")

    def update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, Inert):
            raise FaultError("its pickle puts items into what is no dict")

    def new_dict(self, values: list[Any]) -> None:
        self.push({})
        self.update(values)

    def skip(self, value: Any) -> None:
        """Nothing is done with it."""

    def set_of(self, values: list[Any]) -> None:
        """Its values are left out: they would have to be hashed, and no state dict has a set."""
        self.push(Inert(Global("builtins", "set")))

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise FaultError("a name in its pickle is no text")
        module = PYTHON_2.get(module, module)
        found = Global(module, PYTHON_2_NAMES.get(name, name) if module == "builtins" else name)
        root = found.module.partition(".")[0]
        if root in sys.stdlib_module_names and found.name not in HARMLESS.get(found.module, "").split():
            raise CodeError(f"it asks for {found.full[:80]}")
        self.push(found)

    def named(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def make(self, arguments: Any) -> None:
        """What calling the class or function on the stack would make, for those few that are known here."""
        maker = self.pop()
        if not isinstance(maker, Global):
            raise CodeError("its pickle calls an object that it made itself")
        if not isinstance(arguments, tuple):
            raise FaultError("its pickle calls without arguments")
        self.push(_made(maker, arguments))

    def make_with_names(self) -> None:
        self.pop()
        self.make(self.pop())

    def build(self) -> None:
        state, target = self.pop(), self._stack[-1]
        if not isinstance(target, Inert):
            if isinstance(target, dict | StoredTensor):
                return  # attributes such as a state dict's versions
            raise FaultError("its pickle fills what cannot be filled")
        if isinstance(state, dict):
            target.attributes.update(state)
        elif target.kind.module.partition(".")[0] == "__torch__":
            raise CodeError(f"a __setstate__ in its TorchScript would have to make {target.kind.full[:80]}")

    def persistent(self) -> None:
        kind, storage_type, key, _, numel, *view = self.pop()
        known = isinstance(storage_type, Global) and storage_type.module in ("torch", "torch.storage", "torch.cuda")
        if kind == "storage" and known and storage_type.name not in STORAGES:
            return self.push(Inert(storage_type))  # quantised to 4 bits, or newer than this reader
        if kind != "storage" or not known or any(view):
            raise FaultError("it holds a storage of a kind that weights do not have")
        if not isinstance(key, str) or type(numel) is not int or not 0 <= numel < 1 << 48:
            raise FaultError("a storage whose name or size makes no sense")
        self.push(self._storage(STORAGES[storage_type.name], key, numel))


def _key(key: Any) -> Any:
    """A key of a dict. Deep tuples are refused: their hash is computed by recursion in C, and again at each use."""
    parts = key if isinstance(key, tuple) else (key,)
    plain = str, bytes, float, Inert, Global, type(None)
    if not all(isinstance(part, plain) or (isinstance(part, int) and abs(part) < 1 << 64) for part in parts):
        raise FaultError("a dict in it has a key that is neither text nor number")
    return key


def _made(maker: Global, arguments: tuple[Any, ...]) -> Any:
    if maker.full in DICTS:
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []  # as Python 2 wrote it
        return {_key(key): value for key, value in pairs}
    if maker.full in (f"{REBUILD}tensor", f"{REBUILD}tensor_v2", f"{REBUILD}tensor_v3"):
        storage, offset, shape, stride = arguments[:4]
        if isinstance(storage, Inert):
            return Inert(maker)
        if not isinstance(storage, Storage):
            raise FaultError("a tensor without a storage")
        is_newest = maker.name.endswith("v3")
        dtype = DTYPES.get(arguments[6].full) if is_newest else storage.dtype
        is_conjugate_or_so = any(arguments[7 if is_newest else 6 :])
        return Inert(maker) if dtype is None or is_conjugate_or_so else tensor_of(storage, dtype, offset, shape, stride)
    if maker.full in (f"{REBUILD}parameter", f"{REBUILD}parameter_with_state"):
        return arguments[0]
    if maker.full == "torch._tensor._rebuild_from_type_v2" and isinstance(arguments[0], Global):
        return _made(arguments[0], arguments[2])
    if maker.full == "torch.jit._pickle.restore_type_tag":
        return arguments[0]
    if maker.full == "copyreg._reconstructor" and arguments and isinstance(arguments[0], Global):
        return Inert(arguments[0])
    return Inert(maker)


_OPCODES: dict[bytes, Callable[[Unpickler], None]] = {
    pickle.PROTO: Unpickler.protocol,
    pickle.FRAME: lambda m: m.skip(m.take(8)),
    pickle.MARK: Unpickler.mark,
    pickle.POP: Unpickler.discard,
    pickle.POP_MARK: lambda m: m.skip(m.pop_mark()),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.integer(m.number("B")),
    pickle.LONG4: lambda m: m.integer(m.number("<i")),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.BINUNICODE: lambda m: m.text("<I"),
    pickle.SHORT_BINUNICODE: lambda m: m.text("B"),
    pickle.BINUNICODE8: lambda m: m.text("<Q"),
    pickle.BINSTRING: lambda m: m.old_text("<i"),
    pickle.SHORT_BINSTRING: lambda m: m.old_text("B"),
    pickle.BINBYTES: lambda m: m.data("<I"),
    pickle.SHORT_BINBYTES: lambda m: m.data("B"),
    pickle.BINBYTES8: lambda m: m.data("<Q"),
    pickle.BYTEARRAY8: lambda m: m.data("<Q"),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.LIST: lambda m: m.push(m.pop_mark()),
    pickle.APPEND: lambda m: m.extend([m.pop()]),
    pickle.APPENDS: lambda m: m.extend(m.pop_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.DICT: lambda m: m.new_dict(m.pop_mark()),
    pickle.SETITEM: lambda m: m.update([m.pop(), m.pop()][::-1]),
    pickle.SETITEMS: lambda m: m.update(m.pop_mark()),
    pickle.EMPTY_SET: lambda m: m.set_of([]),
    pickle.ADDITEMS: lambda m: m.extend(m.pop_mark()),
    pickle.FROZENSET: lambda m: m.set_of(m.pop_mark()),
    pickle.GLOBAL: lambda m: m.name(m.line(), m.line()),
    pickle.STACK_GLOBAL: Unpickler.named,
    pickle.REDUCE: lambda m: m.make(m.pop()),
    pickle.NEWOBJ: lambda m: m.make(m.pop()),
    pickle.NEWOBJ_EX: Unpickler.make_with_names,
    pickle.BUILD: Unpickler.build,
    pickle.BINPERSID: Unpickler.persistent,
    pickle.BINPUT: lambda m: m.put(m.number("B")),
    pickle.LONG_BINPUT: lambda m: m.put(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.put(len(m._memo)),
    pickle.BINGET: lambda m: m.get(m.number("B")),
    pickle.LONG_BINGET: lambda m: m.get(m.number("<I")),
}
"""Those that are missing are of the protocols 0 and 1, or only call something: INST, OBJ, EXT1 and the like."""
