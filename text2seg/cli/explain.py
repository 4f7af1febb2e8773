"""`text2seg explain`: a subcommand for each tool of `text2seg.explain`, its flags made from the tool's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from text2seg.cli.common import load_models
from text2seg.cli.tables import PlainConsole, plain_table
from text2seg.cli.terminal import INTERRUPTED, escaped, log_to_terminal, say
from text2seg.config import ModelSettings, Settings
from text2seg.explain import TOOLS, Progress, Result, Tool, run_tool, save_result
from text2seg.explain.tool import ImageFiles
from text2seg.explain.tools import check_images
from text2seg.io.files import fitting
from text2seg.io.outputs import OutputFolder
from text2seg.io.signals import stop_on_signals

OUTPUT = Path("outputs/explain")
MOST_ROWS = 30

OneImage = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE", help="An image.", help_behavior_hint="")]]
Images = tyro.conf.Positional[
    Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="FILE|FOLDER [...]", help="Images, and folders of images.", help_behavior_hint=""),
    ]
]


@dataclass(frozen=True, slots=True)
class ToolCommand:
    """One tool as a command."""

    tool: Tool

    @property
    def summary(self) -> str:
        return self.tool.summary

    def load(self) -> type:
        """A dataclass whose fields are the tool's flags, with a method `run`."""
        tool = self.tool
        flags = tyro.conf.UseAppendAction[Annotated[tool.settings, tyro.conf.arg(name="")]]  # type: ignore[name-defined]
        fields: list[Any] = [
            ("settings", flags, field(default_factory=tool.settings)),
            ("model", ModelSettings, field(default_factory=ModelSettings)),
            ("output", Annotated[Path, tyro.conf.arg(help="Folder for the image and the numbers.")], OUTPUT),
            ("verbose", Annotated[bool, tyro.conf.arg(help="Say what runs where, and why.")], False),
        ]
        if tool.images != "none":
            fields.insert(0, ("images", OneImage if tool.images == "one" else Images))
        made = make_dataclass("ToolFlags", fields, namespace={"run": lambda flags: _run(tool, flags)}, frozen=True)
        made.__doc__ = tool.summary
        return made


def commands() -> Mapping[str, ToolCommand]:
    """A command for each tool."""
    return {name: ToolCommand(tool) for name, tool in TOOLS.items()}


def _run(tool: Tool, flags: Any) -> int:
    log_to_terminal(verbose=flags.verbose)
    given = getattr(flags, "images", ())
    images = ImageFiles((given,) if isinstance(given, Path) else given)
    check_images(tool, len(images))
    stem = f"{tool.name}_{images.paths[0].stem}" if tool.images == "one" else tool.name
    results = OutputFolder(flags.output)
    for suffix in (".png", ".json"):
        results.check(fitting(stem, suffix))
    settings = flags.settings
    if getattr(settings, "folder", ...) is None:  # a tool that writes as it goes
        settings = replace(settings, folder=flags.output / tool.name)
    models = load_models(flags.model, Settings())
    with stop_on_signals() as stop, progress_bar(tool.name) as report:
        result = run_tool(tool, models, images, settings, Progress(report, stop))
    written = save_result(result, results, stem)  # first: whoever reads what is printed may stop reading
    _print(result)
    for path in written:
        say(f"{'image' if path.suffix == '.png' else 'numbers'}: {path}")
    return INTERRUPTED if stop.is_set() else 0


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on the terminal that shows from the first report on."""
    from tqdm import tqdm

    bar = tqdm(desc=name, unit="step", delay=1, disable=None, leave=False)

    def report(done: int, total: int, note: str) -> None:
        bar.total = total or None
        bar.set_postfix_str(escaped(note), refresh=False)
        bar.update(done - bar.n)

    with bar:
        yield report


def _print(result: Result) -> None:

    console = PlainConsole()
    for table in result.tables:
        shown = plain_table(table.title, *table.columns)
        for place, column in enumerate(shown.columns):
            if any(isinstance(row[place], str) for row in table.rows):
                column.justify, column.overflow = "left", "fold"
        for row in table.rows[:MOST_ROWS]:
            shown.add_row(*(_cell(value) for value in row))
        console.print(shown)
        if len(table.rows) > MOST_ROWS:
            console.print(f"{len(table.rows) - MOST_ROWS} more rows are in the file of numbers")
    for note in result.notes:
        console.print(note)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
