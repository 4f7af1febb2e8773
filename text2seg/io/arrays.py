"""Arrays in NumPy's own files (.npy, .npz), read without running anything that a file says."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.errors import Text2SegError
from text2seg.io.files import read_file

_NPY, _NPZ = b"\x93NUMPY", b"PK"
_DAMAGED = (ValueError, EOFError, OSError, KeyError, SyntaxError, zipfile.BadZipFile, zlib.error, MemoryError)
_UNSUPPORTED = (NotImplementedError, RuntimeError)  # of zipfile: an unknown compression, a password


def read_arrays(path: Path, error: type[Text2SegError]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a .npz file by their names, or the one array of a .npy file under the name "".

    Python objects are refused: numpy reads them with pickle, which can run any code.

    Raises:
        error: the file is missing, is of another kind, is damaged or holds Python objects. The message names it.
    """
    content = read_file(path, error)
    if not content.startswith((_NPY, _NPZ)):
        raise error(f"{path} is not an array file of NumPy; write it with numpy.save or numpy.savez")
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (*_DAMAGED, *_UNSUPPORTED) as fault:
        if "allow_pickle" in str(fault):
            raise error(
                f"{path} holds Python objects, which could run code, so they are not read; save numbers"
            ) from fault
        raise error(f"{path} cannot be read as arrays of NumPy; it is damaged ({fault})") from fault
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a zip file with anything in it
            raise error(f"{path}: {name} in it is not an array; write the file with numpy.savez")
    return arrays
