"""What several commands share. Heavy imports wait until a command runs, so that `--help` is quick."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg.config import ModelSettings, Settings
from text2seg.errors import QueryError

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg

PipelineFlags = tyro.conf.UseAppendAction[Annotated[Settings, tyro.conf.arg(name="")]]
"""How an image and words become segments, as flags of a command."""


def queries_of(query: Sequence[str], queries: str) -> list[str]:
    """What `--query` (repeated) and `--queries` ask for, as typed: `vocabulary.parse_queries` reads either alike.

    Raises:
        QueryError: neither was given.
    """
    wanted = [*query, *([queries] if queries else [])]
    if not wanted:
        raise QueryError("nothing to look for: give --query at least once")
    return wanted


def load_models(model: ModelSettings, settings: Settings) -> Text2Seg:
    """The models that the flags ask for."""
    # Pillow warns from half of our own limit on; that such a picture is large is no news to its owner.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit of")
    from text2seg.pipeline import Text2Seg

    return Text2Seg.load(**model.arguments(), settings=settings)
