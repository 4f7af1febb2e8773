"""What several commands share. Heavy imports wait until a command runs, so that `--help` is quick."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg.config import ModelSettings, Settings
from text2seg.errors import QueryError

if TYPE_CHECKING:
    from rich.table import Table

    from text2seg.pipeline import Text2Seg

PipelineFlags = tyro.conf.UseAppendAction[Annotated[Settings, tyro.conf.arg(name="")]]
"""How an image and words become segments, as flags of a command."""


def log_to_terminal(*, verbose: bool = False) -> None:
    """Warnings go to stderr, with `verbose` also what runs where and why."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


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


def plain_table(title: str, *headings: str) -> Table:
    """A table for the terminal: the first column and one called "number" hold words, the others values."""
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        is_text = place == 0 or heading == "number"
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold" if is_text else "ellipsis")
    return table
