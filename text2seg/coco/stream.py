"""COCO files written piece by piece, so that memory does not grow with the images and annotations in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from text2seg.errors import OutputError
from text2seg.files import write_atomically

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def write_stream(
    path: str | os.PathLike[str],
    *,
    info: Mapping[str, Any],
    categories: Iterable[Mapping[str, Any]],
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    licenses: Sequence[Mapping[str, Any]] = (),
    before: Callable[[Path], None] | None = None,
) -> Path:
    """`write_dataset` for what need not be held in memory: the same bytes as for the same dataset in one dict.

    Everything may come from generators. They are read in the order info, licenses, images, annotations, categories,
    each to its end before the next, so categories may be known only once all annotations are. Errors that a generator
    raises go on as they are, and the old file stays. `before` is as for `write_atomically`. Raises `OutputError` as
    `write_dataset` does.
    """
    return write_json(
        path,
        {
            "info": dict(info),
            "licenses": list(licenses),
            "images": iter(images),
            "annotations": iter(annotations),
            "categories": iter(categories),
        },
        before=before,
    )


def write_json(
    path: str | os.PathLike[str], content: Mapping[str, Any], *, before: Callable[[Path], None] | None = None
) -> Path:
    """Write an object as UTF-8 JSON in one line and return where; iterators among its values are written as lists, an
    item at a time. The same content gives the same bytes. Raises `OutputError` where it is no JSON or the file cannot
    be written. `before` as for `write_atomically`.
    """
    return write_atomically(path, json_chunks(Path(path), content), before=before)


def json_chunks(path: Path, content: Mapping[str, Any]) -> Iterator[bytes]:
    """The bytes of `write_json`, piece by piece."""
    yield b"{"
    for position, (key, value) in enumerate(content.items()):
        yield (b", " if position else b"") + _json(path, str(key)) + b": "
        if isinstance(value, (list, tuple, Iterator)):
            yield b"["
            for number, item in enumerate(value):
                yield (b", " if number else b"") + _json(path, item)
            yield b"]"
        else:
            yield _json(path, value)
    yield b"}\n"


def _json(path: Path, value: Any) -> bytes:
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"{path}: the dataset is not JSON: {error}") from error
    # File names that are no Unicode reach Python as lone surrogates; the escape of one is JSON and reads back the same.
    return text.encode("utf-8", "backslashreplace")
