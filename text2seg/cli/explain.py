"""`text2seg explain`: a subcommand for each tool of `text2seg.explain`, with flags made from the tool's settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from text2seg.cli.common import MOST_ROWS, PlainConsole, check_clip, check_words, load_models, plain_table
from text2seg.cli.terminal import INTERRUPTED, escaped, exit_status, log_to_terminal, say, stop_on_signals
from text2seg.config import ModelSettings, Settings
from text2seg.errors import OutputError
from text2seg.explain import TOOLS, ImageFiles, Progress, Result, Tool, run_tool, save_result
from text2seg.explain.estimate import SLOW, Speed, estimate, words_for
from text2seg.explain.tool import InputSettings, cell_text, check_images
from text2seg.io.files import exists
from text2seg.io.names import fit_file_name
from text2seg.io.output_folder import OutputFolder
from text2seg.io.writing import check_writable

OUTPUT = Path("outputs/explain")

OneImage = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE", help="An image.", help_behavior_hint="")]]
Images = tyro.conf.Positional[
    Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="FILE|FOLDER [...]", help="Images, and folders of images.", help_behavior_hint=""),
    ]
]


@dataclass(frozen=True, slots=True)
class ToolCommand:
    """Command for one tool."""

    tool: Tool

    @property
    def summary(self) -> str:
        return f"{self.tool.title}. {self.tool.summary}"

    def load(self) -> type:
        """Make a dataclass with the tool's flags as fields and a method `run`."""
        tool = self.tool
        flags = tyro.conf.UseAppendAction[Annotated[tool.settings, tyro.conf.arg(name="")]]  # type: ignore[name-defined]
        fields: list[Any] = [
            ("settings", flags, field(default_factory=tool.settings)),
            ("model", ModelSettings, field(default_factory=ModelSettings)),
            (
                "output",
                Annotated[Path, tyro.conf.arg(help="Folder for the result: an image (PNG) and its numbers (JSON).")],
                OUTPUT,
            ),
            (
                "overwrite",
                Annotated[bool, tyro.conf.arg(help="Replace the result of an earlier run.")],
                False,
            ),
            (
                "verbose",
                Annotated[bool, tyro.conf.arg(help="Print which models run on which device, and other details.")],
                False,
            ),
        ]
        if tool.images != "none":
            fields.insert(0, ("images", OneImage if tool.images == "one" else Images))
        command = make_dataclass("ToolFlags", fields, namespace={"run": lambda flags: _run(tool, flags)}, frozen=True)
        command.__doc__ = self.summary
        return command


def commands() -> Mapping[str, ToolCommand]:
    """Return a command for each tool."""
    return {name: ToolCommand(tool) for name, tool in TOOLS.items()}


def _run(tool: Tool, flags: Any) -> int:
    log_to_terminal(verbose=flags.verbose)
    given = getattr(flags, "images", ())
    places = (given,) if isinstance(given, Path) else given
    images = ImageFiles(places)
    check_images(tool, len(images))
    if isinstance(flags.settings, InputSettings):
        flags.settings.check_given()
    stem = f"{tool.name}_{images.paths[0].stem}" if tool.images == "one" else tool.name
    results = OutputFolder(flags.output, command="explain", overwrite=flags.overwrite)
    settings = flags.settings
    run = _ContinuedRun.of(tool, flags, places) if hasattr(settings, "folder") else None
    for suffix in (".png", ".json"):
        name = fit_file_name(stem, suffix)
        check_writable(flags.output / name, overwrite=flags.overwrite or bool(run and run.is_known()))
        results.check(name)
    if isinstance(settings, InputSettings):
        check_words(flags.model, settings.all_texts())
        check_clip(flags.model, settings.check_clip)
    if run is not None:
        run.check(overwrite=flags.overwrite)
        if settings.folder is None:
            settings = replace(settings, folder=flags.output / tool.name)
    models = load_models(flags.model, Settings())
    goes_on = run is not None and run.is_known()  # then nobody knows yet how much is left to do
    seconds = None if goes_on else estimate(tool, Speed(models), len(images), settings)
    if seconds is not None and seconds >= SLOW:
        say(f"This takes about {words_for(seconds)}. Ctrl-C stops it and keeps what is done.", file=sys.stderr)
    with stop_on_signals() as stop, progress_bar(tool.name) as report:
        if run is not None:
            run.write(results)
        result = run_tool(tool, models, images, settings, Progress(report, stop))
    done = len(result.panels) + len(result.tables)
    if not done and stop.is_set():
        if run is not None and not goes_on:
            results.delete(run.file.name)
        say("text2seg: stopped before anything was done; nothing was written", file=sys.stderr)
        return INTERRUPTED
    written = save_result(result, results, stem)  # before printing, which fails if the reader of a pipe is gone
    _print(result, written[-1])
    for path in written:
        say(f"{'image' if path.suffix == '.png' else 'numbers'}: {path}")
    if stop.is_set():
        go_on = "the same command goes on" if run is not None else "to start anew, add --overwrite"
        say(f"text2seg: stopped; the result shows what was done until then; {go_on}", file=sys.stderr)
        return INTERRUPTED
    if result.left_out:
        say(f"text2seg: {result.left_out} left out; the notes above say which", file=sys.stderr)
    return exit_status(done, result.left_out + len(result.unknown))


@dataclass(frozen=True, slots=True)
class _ContinuedRun:
    """A run of a tool that writes files while it runs, and that a later run continues.

    `file` has what decides the results of the run, so that a run with anything else does not replace them.
    """

    file: Path
    made_from: Mapping[str, Any]

    @classmethod
    def of(cls, tool: Tool, flags: Any, places: Sequence[Path]) -> _ContinuedRun:
        from text2seg import weights

        settings = {name: value for name, value in asdict(flags.settings).items() if name != "folder"}
        clip, sam = weights.pair(flags.model.model, clip=flags.model.clip, sam=flags.model.sam)
        made_from = {
            "images": sorted({str(place.absolute()) for place in places}),
            **settings,
            "clip": clip,
            "sam": sam,
            "card": flags.model.card,
        }
        # as it is read from the file
        return cls(flags.output / f"{tool.name}_settings.json", json.loads(json.dumps(made_from, default=str)))

    def is_known(self) -> bool:
        """Return whether an earlier run noted what it was made from."""
        return exists(self.file, OutputError)

    def check(self, *, overwrite: bool) -> None:
        """Raise `OutputError` if an earlier run was made from anything else. It may have had fewer images."""
        if overwrite or not self.is_known():
            return
        from text2seg.coco.json_file import read_json
        from text2seg.labelling.journal import differences

        earlier = read_json(self.file)
        if isinstance(earlier, dict) and set(earlier.get("images", ())) <= set(self.made_from["images"]):
            earlier = {**earlier, "images": self.made_from["images"]}
        if changes := differences(earlier, self.made_from):
            raise OutputError(
                f"{self.file.parent} has the results of a run with other settings ({'; '.join(changes)}); choose "
                "another --output, or add --overwrite to replace them"
            )

    def write(self, results: OutputFolder) -> None:
        """Note what this run is made from."""
        results.write([(self.file.name, [json.dumps(self.made_from, indent=1).encode()])])


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar on stderr; yield the function that updates it."""
    from tqdm import tqdm

    bar = tqdm(desc=name, unit="step", delay=1, leave=not sys.stderr.isatty())

    def report(done: int, total: int, note: str) -> None:
        bar.total = total or None
        bar.set_postfix_str(escaped(note), refresh=False)
        bar.update(done - bar.n)

    with bar:
        yield report


def _print(result: Result, numbers: Path) -> None:
    """Print the first rows of the tables, and the notes; the file `numbers` has all rows."""
    console = PlainConsole()
    for table in result.tables:
        shown = plain_table(table.title, *table.columns)
        for place, column in enumerate(shown.columns):
            if any(isinstance(row[place], str) for row in table.rows):
                column.justify, column.overflow = "left", "fold"
        for row in table.rows[:MOST_ROWS]:
            shown.add_row(*map(cell_text, row))
        console.print(shown)
        if len(table.rows) > MOST_ROWS:
            say(f"{len(table.rows) - MOST_ROWS} more rows are in {numbers}")
    for note in result.notes:
        console.print(note)
    for sentence in result.unknown:
        say(f"left out: {sentence}", file=sys.stderr)
