"""The table of commands. Only the one that runs is imported: a parser for all of them takes longer to build than a
short command to run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from text2seg._version import __version__


@dataclass(frozen=True, slots=True)
class Command:
    """What a command does in one line, and its dataclass with a method `run`, as "module:class" in `text2seg.cli`."""

    summary: str
    target: str

    def load(self) -> Any:
        module, name = self.target.split(":")
        return getattr(import_module(f"text2seg.cli.{module}"), name)


@dataclass(frozen=True, slots=True)
class Group:
    """Commands under one name; the table of them is made when it is asked for."""

    summary: str
    commands: Callable[[], Mapping[str, Any]]


def _explain_commands() -> Mapping[str, Any]:
    from text2seg.cli.explain import commands

    return commands()


EXPORTS: Mapping[str, Command] = {
    "onnx": Command("Write ONNX graphs, checked against torch, for --runtime onnx.", "export:ExportOnnx"),
    "triton": Command("Write exported graphs as a model repository for Triton.", "export:ExportTriton"),
}

COMMANDS: Mapping[str, Command | Group] = {
    "segment": Command("Find what the queries name in images and cut it out.", "segment:Segment"),
    "label": Command("Label all images of a folder and write one COCO file.", "label:Label"),
    "search": Command("Find the images of a folder that show something best.", "search:Search"),
    "tune": Command("Find a threshold for each category of an ontology.", "tune:Tune"),
    "evaluate": Command("Score predictions against a ground truth; say why things were missed.", "evaluate:Evaluate"),
    "benchmark": Command("Cut out what is in COCO images, told the names, and score it.", "benchmark:Benchmark"),
    "report": Command("Write a page that shows a COCO dataset, the most doubtful images first.", "report:Report"),
    "replay": Command("Make one mask of a dataset again and compare.", "replay:Replay"),
    "merge": Command("Put several COCO files with the same categories together.", "merge:Merge"),
    "convert": Command("Write a COCO file in the format of another tool.", "convert:Convert"),
    "explain": Group("Look into CLIP: saliency, words, experiments; one tool each.", _explain_commands),
    "bench": Command("Measure speed, with accuracy, side by side with the original flow.", "benchmark:Bench"),
    "export": Group("Write the networks for other runtimes: ONNX, Triton.", lambda: EXPORTS),
    "app": Command("Open the browser app.", "app:App"),
    "checkpoints": Command("List, show, download or verify model weights.", "checkpoints:CheckpointsCommand"),
}


def run_command(commands: Mapping[str, Any], arguments: Sequence[str], prog: str = "text2seg") -> int:
    """Run the command that the first argument names with the rest; gives its exit status."""
    name = _choice(commands, arguments[:1], prog)
    chosen, rest = commands[name], list(arguments[1:])
    if isinstance(chosen, Group):
        return run_command(chosen.commands(), rest, f"{prog} {name}")
    import tyro

    from text2seg.cli.common import PLACES

    with PLACES:
        command = tyro.cli(
            chosen.load(),
            prog=f"{prog} {name}",
            args=rest,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    status: int = command.run()
    return status


def _choice(commands: Mapping[str, Any], first: Sequence[str], prog: str) -> str:
    """The command's name, or the list of all of them and an exit."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Cut things out of images by their names." if prog == "text2seg" else None,
        epilog=f"{prog} COMMAND --help tells a command's flags.",
    )
    parser.add_argument("--version", action="version", version=f"text2seg {__version__}")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in commands.items():
        parsers.add_parser(name, help=command.summary.replace("%", "%%"), add_help=False)
    return str(parser.parse_args(list(first)).command)
