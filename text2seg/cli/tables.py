"""Tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from text2seg.cli.terminal import escaped


class PlainConsole(Console):
    """A console that prints strings as they are: no markup, no emoji codes, and escapes for what could steer the
    terminal. Line breaks stay."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, width=width)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(escaped, text.split("\n"))), **options)


def plain_table(title: str, *headings: str) -> Table:
    """A table for the terminal: the first column and one called "number" hold words, the others values."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        is_text = place == 0 or heading == "number"
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold" if is_text else "ellipsis")
    return table
