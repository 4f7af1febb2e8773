"""The command line: one file a command, flags made from the settings dataclasses. What they do lives in the library."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import tyro

from text2seg._version import __version__
from text2seg.cli.benchmark import Benchmark
from text2seg.cli.checkpoints import CheckpointsCommand
from text2seg.cli.common import FAILED, INTERRUPTED
from text2seg.cli.convert import Convert
from text2seg.cli.evaluate import Evaluate
from text2seg.cli.label import Label
from text2seg.cli.merge import Merge
from text2seg.cli.replay import Replay
from text2seg.cli.report import Report
from text2seg.cli.segment import Segment
from text2seg.cli.tune import Tune
from text2seg.errors import Text2SegError

Command = (
    Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Label, tyro.conf.subcommand("label")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Benchmark, tyro.conf.subcommand("benchmark")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[CheckpointsCommand, tyro.conf.subcommand("checkpoints")]
)


def _print_anything() -> None:
    """What a terminal has no letters for, as in file names that are no Unicode, is printed as its escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives the exit status. Errors that a user can mend are one line on stderr."""
    _print_anything()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"text2seg {__version__}")
        return 0
    try:
        command = tyro.cli(
            Command,
            prog="text2seg",
            description="Cut things out of pictures by their names.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        status: int = command.run()
        sys.stdout.flush()
        return status
    except Text2SegError as error:
        print(f"text2seg: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("text2seg: stopped; what was done until then is kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output, as `head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its exit
        return FAILED
