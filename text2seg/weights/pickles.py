"""Pickles of weights read as plain data. No class is imported and no function is called, whatever a pickle asks for.

The result consists of dicts, lists, tuples, numbers and strings, with a `StoredTensor` for each tensor and a
`PickledObject` for each object of another class.

Source: the opcodes as described in Python's `pickletools`, and `torch._utils` for what torch writes with them.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from typing import Any

from text2seg.weights.stored_tensors import (
    DTYPES,
    MOST_SIZE,
    SAVE_ALONE,
    DamagedError,
    Dtype,
    Storage,
    StoredTensor,
    UnsafeError,
    UnsupportedError,
    tensor_of,
)

MOST_STEPS = 10_000_000
"""Opcodes in a pickle. The largest SAM has 25,000, a training checkpoint of it with optimizer state 100,000, and a
training log one for each number."""
MOST_INTEGER_BYTES = 255
MOST_MARKS = 1000  # nested marks that are open at once

STORAGES = {
    "DoubleStorage": DTYPES["float64"],
    "FloatStorage": DTYPES["float32"],
    "HalfStorage": DTYPES["float16"],
    "BFloat16Storage": DTYPES["bfloat16"],
    "LongStorage": DTYPES["int64"],
    "IntStorage": DTYPES["int32"],
    "ShortStorage": DTYPES["int16"],
    "CharStorage": DTYPES["int8"],
    "ByteStorage": DTYPES["uint8"],
    "BoolStorage": DTYPES["bool"],
    "ComplexFloatStorage": DTYPES["complex64"],
    "ComplexDoubleStorage": DTYPES["complex128"],
    "UntypedStorage": DTYPES["uint8"],
    "QInt8Storage": DTYPES["int8"],
    "QUInt8Storage": DTYPES["uint8"],
    "QInt32Storage": DTYPES["int32"],
}

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
"""Names from Python's standard library that a pickle may mention. Any other name means that it wants to run code."""
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess"}
PYTHON_2_NAMES = {"long": "int", "unicode": "str", "xrange": "range"}
"""Names of Python 2, which pickles of protocol 2 still use."""
REBUILD = "torch._utils._rebuild_"
"""Start of the names of torch's functions that rebuild tensors."""


@dataclass(frozen=True, slots=True)
class Global:
    """Name of a class or function in a pickle. It is never imported."""

    module: str
    name: str

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class PickledObject:
    """Stand-in for an object of a class that is not known here. `attributes` is its state, if the state is a dict."""

    kind: Global
    attributes: dict[Any, Any] = field(default_factory=dict)


class Unpickler:
    """Stack machine for the opcodes that `torch.save` and TorchScript write. It makes plain data only."""

    def __init__(
        self, source: BufferedReader | BytesIO, size: int, storage: Callable[[Dtype, str, int], Storage]
    ) -> None:
        """
        Args:
            source: the file, at the start of the pickle.
            size: bytes that the pickle may have at most.
            storage: returns the storage for a dtype, key and number of elements.
        """
        self._source, self._size, self._storage = source, size, storage
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return the content of the pickle.

        Raises:
            UnsafeError: it uses an opcode or a name that could run code.
            DamagedError, UnsupportedError: it is invalid or too long.
        """
        for _ in range(MOST_STEPS):
            code = self.take(1)
            if code == pickle.STOP:
                return self._stack.pop()
            step = _OPCODES.get(code)
            if step is None:
                raise UnsafeError(f"its pickle has the opcode {code!r}, which no state dict needs")
            step(self)
        raise UnsupportedError(f"its pickle has more than {MOST_STEPS:,} steps, more than weights need; {SAVE_ALONE}")

    def take(self, length: int) -> bytes:
        if length < 0 or length > self._size:
            raise DamagedError("its pickle ends too early")
        self._size -= length
        return self._source.read(length)

    def number(self, form: str) -> Any:
        value: Any = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def protocol(self) -> None:
        if self.number("B") > pickle.HIGHEST_PROTOCOL:
            raise DamagedError("its pickle has an unknown protocol")

    def line(self) -> str:
        found = self._source.readline(1000)
        self._size -= len(found)
        if not found.endswith(b"\n"):
            raise DamagedError("a name in its pickle has no end")
        return found[:-1].decode()

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self) -> None:
        if len(self._marked) >= MOST_MARKS:
            raise DamagedError("its pickle is nested too deep")
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
            raise DamagedError("its pickle takes more from the stack than it has put there")
        self._stack[-length:] = [found]

    def put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def get(self, place: int) -> None:
        self.push(self._memo[place])

    def integer(self, length: int) -> None:
        if length > MOST_INTEGER_BYTES:
            raise DamagedError(f"its pickle has a number of {length:,} bytes")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def text(self, form: str) -> None:
        self.push(self.take(self.number(form)).decode("utf-8", "surrogatepass"))

    def old_text(self, form: str) -> None:
        """Push a str of Python 2."""
        self.push(self.take(self.number(form)).decode("latin-1"))

    def data(self, form: str) -> None:
        self.push(self.take(self.number(form)))

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, PickledObject):
            raise DamagedError("its pickle appends to something that is not a list")
        elif target.kind == SET:
            target.attributes.update(_set_of(values).attributes)

    def update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, PickledObject):
            raise DamagedError("its pickle sets items of something that is not a dict")

    def new_dict(self, values: list[Any]) -> None:
        self.push({})
        self.update(values)

    def skip(self, value: Any) -> None:
        """Ignore a value."""

    def set_of(self, values: list[Any]) -> None:
        self.push(_set_of(values))

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("a name in its pickle is not a string")
        module = PYTHON_2.get(module, module)
        found = Global(module, PYTHON_2_NAMES.get(name, name) if module == "builtins" else name)
        root = found.module.partition(".")[0]
        if root in sys.stdlib_module_names and found.name not in HARMLESS.get(found.module, "").split():
            raise UnsafeError(f"it wants {found.full[:80]}")
        self.push(found)

    def named(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def make(self, arguments: Any) -> None:
        """Push the result of calling the class or function on the stack, if it is one of the few known here."""
        maker = self.pop()
        if not isinstance(maker, Global):
            raise UnsafeError("its pickle calls an object that it made")
        if not isinstance(arguments, tuple):
            raise DamagedError("its pickle calls something without arguments")
        self.push(_result_of(maker, arguments))

    def make_with_names(self) -> None:
        self.pop()
        self.make(self.pop())

    def build(self) -> None:
        state, target = self.pop(), self._stack[-1]
        if not isinstance(target, PickledObject):
            if isinstance(target, dict | StoredTensor):
                return  # attributes, such as the versions of a state dict
            raise DamagedError("its pickle sets the state of something that has none")
        if isinstance(state, dict):
            target.attributes.update(state)
        elif target.kind.module.partition(".")[0] == "__torch__":
            raise UnsafeError(f"its TorchScript would call the __setstate__ of {target.kind.full[:80]}")

    def persistent(self) -> None:
        identity = self.pop()
        if identity[0] == "module":  # a class with its source code, in the format before zip archives
            return self.push(identity[1])  # the class without its source
        kind, storage_type, key, _, numel, *view = identity
        known = isinstance(storage_type, Global) and storage_type.module in ("torch", "torch.storage", "torch.cuda")
        if kind == "storage" and known and storage_type.name not in STORAGES:
            return self.push(PickledObject(storage_type))  # 4-bit quantized, or newer than this reader
        if kind != "storage" or not known or any(view):
            raise DamagedError("it has a kind of storage that weights do not have")
        if not isinstance(key, str) or type(numel) is not int or not 0 <= numel < MOST_SIZE:
            raise DamagedError("the name or size of a storage is invalid")
        self.push(self._storage(STORAGES[storage_type.name], key, numel))


def _key(key: Any) -> Any:
    """Return a dict key if it is simple. Nested tuples are refused, because C computes their hash recursively."""
    parts = key if isinstance(key, tuple) else (key,)
    plain = str, bytes, float, PickledObject, Global, type(None)
    if not all(isinstance(part, plain) or (isinstance(part, int) and abs(part) < 1 << 64) for part in parts):
        raise DamagedError("a dict in it has a key that is neither a string nor a number")
    return key


SET = Global("builtins", "set")


def _set_of(values: Any) -> PickledObject:
    """Return a stand-in for a set. Only its strings are kept, as attributes, because other values need to be hashed."""
    return PickledObject(SET, {value: None for value in values if isinstance(value, str)})


def _result_of(maker: Global, arguments: tuple[Any, ...]) -> Any:
    if maker.full in DICTS:
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []  # form of Python 2
        return {_key(key): value for key, value in pairs}
    if maker == SET:
        return _set_of(arguments[0] if arguments else ())
    if maker.full in (f"{REBUILD}tensor", f"{REBUILD}tensor_v2", f"{REBUILD}tensor_v3"):
        storage, offset, shape, stride = arguments[:4]
        if isinstance(storage, PickledObject):
            return PickledObject(maker)
        if not isinstance(storage, Storage):
            raise DamagedError("a tensor has no storage")
        is_newest = maker.name.endswith("v3")
        dtype = DTYPES.get(arguments[6].full.removeprefix("torch.")) if is_newest else storage.dtype
        is_special = any(arguments[7 if is_newest else 6 :])  # conjugated or negated lazily
        return PickledObject(maker) if dtype is None or is_special else tensor_of(storage, dtype, offset, shape, stride)
    if maker.full in (f"{REBUILD}parameter", f"{REBUILD}parameter_with_state"):
        return arguments[0]
    if maker.full == "torch._tensor._rebuild_from_type_v2" and isinstance(arguments[0], Global):
        return _result_of(arguments[0], arguments[2])
    if maker.full == "torch.jit._pickle.restore_type_tag":
        return arguments[0]
    if maker.full == "copyreg._reconstructor" and arguments and isinstance(arguments[0], Global):
        return PickledObject(arguments[0])
    return PickledObject(maker)


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
"""Opcodes of protocols 0 and 1, and those that only call something (INST, OBJ, EXT1, …), are missing on purpose."""
