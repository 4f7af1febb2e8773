"""How a path or a URL is read off the command line: where a flag takes paths only, a URL is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from text2seg.errors import SettingsError
from text2seg.storage import Place, Url, place_of

PLACES = ConstructorRegistry()

_NONE = type(None)


@PLACES.primitive_rule
def _place(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Place | None] | None:
    """Flags of the types `Path`, `Url | Path` and `Url | Path | None`."""
    types = set(get_args(kind.type)) or {kind.type}
    if types != {Path} and types - {_NONE} != {Path, Url}:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|URL" if Url in types else "PATH",
        instance_from_str=lambda given: _read(given[0], types),
        is_instance=lambda value: isinstance(value, tuple(types)),
        str_from_instance=lambda value: [str(value)],
    )


def _read(given: str, types: set[type]) -> Place | None:
    """Raises `SettingsError`, which no parser catches: there the words would be lost in those about the flag."""
    if given == "None" and _NONE in types:
        return None
    place = place_of(given)
    if type(place) is Url and Url not in types:
        raise SettingsError(f"{given} is a URL, and here a path is wanted; copy it to this machine first")
    return place
