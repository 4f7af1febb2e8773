"""What a tool is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pictures = Literal["one", "many", "none"]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its name on the command line and in the app, what it shows in one line, a frozen dataclass of settings
    (whose fields become flags and widgets, their docstrings the help), the function that runs it, as
    "module:function" within `text2seg.explain`, and whether it looks at one picture, at many or at none that is given
    (it has a dataset of its own).

    The function takes the models (`Text2Seg`), a sequence of `Image`, the settings and a `Watch`, and gives an
    `Exhibit`. It is imported when it runs, so that `--help` stays quick.
    """

    name: str
    summary: str
    settings: type
    function: str
    pictures: Pictures = "one"
