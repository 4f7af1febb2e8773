"""What several commands share: paths and URLs from the command line, models, queries, logging. Heavy imports wait until
a command runs, so that `--help` is quick."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from text2seg.config import ModelSettings, Settings
from text2seg.errors import QueryError, SettingsError
from text2seg.io.storage import Place, Url, place_of

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg


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


PipelineFlags = tyro.conf.UseAppendAction[Annotated[Settings, tyro.conf.arg(name="")]]
"""How an image and words become segments, as flags of a command."""


def queries_of(query: Sequence[str], queries: str) -> list[str]:
    """What `--query` (repeated) and `--queries` ask for, as typed: `queries.parse_queries` reads either alike.

    Raises:
        QueryError: neither was given.
    """
    wanted = [*query, *([queries] if queries else [])]
    if not wanted:
        raise QueryError("nothing to look for: give --query at least once")
    return wanted


def load_models(model: ModelSettings, settings: Settings) -> Text2Seg:
    """The models that the flags ask for."""
    # Pillow warns from half of our own limit on; that such an image is large is no news to its owner.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit of")
    from text2seg.pipeline import Text2Seg

    return Text2Seg.load(**model.arguments(), settings=settings)
