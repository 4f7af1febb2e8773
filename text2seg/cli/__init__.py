"""The command line: the table of commands, and `main`, which runs one.

Each command is one file with flags made from the settings dataclasses. Only the command that runs is imported, because
building the parsers of all is slow.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from text2seg._version import __version__
from text2seg.cli.terminal import (
    FAILED,
    INTERRUPTED,
    PARTLY,
    PIPE_CLOSED,
    TERMINATED,
    WRONG_FLAGS,
    Unread,
    bars_in_files,
    close_bars,
    interrupt,
    log_python_warnings,
    own_stderr,
    say_lines,
    was_terminated,
)
from text2seg.errors import PartialOutputError, SettingsError, Text2SegError
from text2seg.io.files import reason
from text2seg.io.names import did_you_mean


@dataclass(frozen=True, slots=True)
class Command:
    """A command: a summary in one line, and its dataclass with a method `run`, as "module:class" in `text2seg.cli`."""

    summary: str
    target: str

    def load(self) -> Any:
        module, name = self.target.split(":")
        return getattr(import_module(f"text2seg.cli.{module}"), name)


@dataclass(frozen=True, slots=True)
class Group:
    """Commands under one name; their table is made on demand."""

    summary: str
    commands: Callable[[], Mapping[str, Any]]


def _explain_commands() -> Mapping[str, Any]:
    from text2seg.cli.explain import commands

    return commands()


EXPORTS: Mapping[str, Command] = {
    "onnx": Command("Write ONNX graphs, checked against torch, for --runtime onnx.", "export:ExportOnnx"),
    "triton": Command("Write exported graphs as a model repository for Triton.", "export:ExportTriton"),
}

BENCHMARKS: Mapping[str, Command] = {
    "speed": Command("Compare speed and masks with the original flow.", "benchmark:BenchmarkSpeed"),
    "coco": Command("Segment COCO images, given the names of their objects, and score.", "benchmark:BenchmarkCoco"),
}

CHECKPOINTS: Mapping[str, Command] = {
    "list": Command("List published weights, and those on this machine.", "checkpoints:ListCheckpoints"),
    "show": Command("Show the file, hash, source and model card of a checkpoint.", "checkpoints:ShowCheckpoint"),
    "download": Command("Download and verify weights.", "checkpoints:DownloadCheckpoints"),
    "verify": Command("Compare hashes, or answers, with the published ones.", "checkpoints:VerifyCheckpoints"),
}

SERVERS: Mapping[str, Command] = {
    "label-studio": Command("Serve the models as a backend of Label Studio.", "serve:ServeLabelStudio"),
}

COMMANDS: Mapping[str, Command | Group] = {
    "segment": Command("Find what the queries name in images and cut it out.", "segment:Segment"),
    "label": Command("Label all images of a folder and write one COCO file.", "label:Label"),
    "track": Command("Follow what the queries name through a video.", "track:Track"),
    "refine": Command("Turn boxes and coarse masks of a COCO file into fine masks.", "refine:Refine"),
    "search": Command("Find the images in a folder that match a query best.", "search:Search"),
    "tune": Command("Find a threshold for each category of an ontology.", "tune:Tune"),
    "calibrate": Command("Calibrate weights on images with true masks: a model card.", "calibrate:Calibrate"),
    "evaluate": Command("Score predictions against ground truth; explain misses.", "evaluate:Evaluate"),
    "benchmark": Group("Compare speed with the original flow, or score on COCO.", lambda: BENCHMARKS),
    "report": Command("Write a page of a COCO dataset, the most uncertain images first.", "report:Report"),
    "replay": Command("Reproduce one mask of a dataset and compare.", "replay:Replay"),
    "merge": Command("Merge COCO files with the same categories.", "merge:Merge"),
    "convert": Command("Write a COCO file in the format of another tool.", "convert:Convert"),
    "explain": Group("Explain CLIP: saliency, words, experiments; one command per tool.", _explain_commands),
    "export": Group("Export the networks to other runtimes: ONNX, Triton.", lambda: EXPORTS),
    "app": Command("Open the browser app.", "app:App"),
    "serve": Group("Serve the models to another tool: Label Studio.", lambda: SERVERS),
    "doctor": Command("Show versions, device, memory, weights and missing extras.", "doctor:Doctor"),
    "checkpoints": Group("List, show, download or verify model weights.", lambda: CHECKPOINTS),
}


def run_command(commands: Mapping[str, Any], arguments: Sequence[str], prog: str = "text2seg") -> int:
    """Run the command named by the first argument, with the other arguments. Returns its exit status."""
    name = _choice(commands, arguments[:1], prog)
    chosen, rest = commands[name], list(arguments[1:])
    if isinstance(chosen, Group):
        return run_command(chosen.commands(), rest, f"{prog} {name}")
    from text2seg.cli.flags import parse

    status: int = parse(chosen.load(), rest, f"{prog} {name}").run()
    return status


def _choice(commands: Mapping[str, Any], first: Sequence[str], prog: str) -> str:
    """Return the name of the command, or print all commands and exit. Raises `SettingsError` if there is none with this
    name."""
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=partial(argparse.HelpFormatter, max_help_position=6 + max(map(len, commands))),
        description="Segment images by text: find what words name and cut it out." if prog == "text2seg" else None,
        epilog=f"{prog} COMMAND --help lists the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=f"text2seg {__version__}")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in commands.items():
        parsers.add_parser(name, help=command.summary.replace("%", "%%"), add_help=False)
    if not first:
        parser.print_help(sys.stderr)
        raise SystemExit(WRONG_FLAGS)
    if first[0] not in commands and not first[0].startswith("-"):
        raise SettingsError(
            f"there is no command “{prog} {first[0]}”.{did_you_mean(first, commands)} {prog} --help lists all"
        )
    return str(parser.parse_args(list(first)).command)


_log = logging.getLogger(__name__)


def _print_anything() -> None:
    """Make every text printable: characters that the terminal cannot show are escaped. Closed streams are replaced by
    `/dev/null`, because the next opened file would get their number."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict" and name != "stdin":
            stream.reconfigure(errors="backslashreplace")


def _print_error(message: str) -> None:
    """Print an error on stderr; a full disk is ignored."""
    close_bars()
    with suppress(OSError):
        say_lines(f"text2seg: {message}", file=sys.stderr)


def _discard_unwritten_output() -> None:
    """Flush stdout, or redirect it to `/dev/null` if that fails, because Python would report another error at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_read() -> bool:
    """Return whether the reader of stdout, if it is a pipe, is still there; false where the system does not tell."""
    if not hasattr(select, "poll"):
        return False
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return not any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # not a real file, as in tests
        return True


def _message_of(error: OSError) -> str:
    """Return the message of an unexpected file system error: the files and the system's reason."""
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    what = files or "a file, or the output,"
    return f"{what} cannot be read or written: {reason(error)}; fix that and run the same command again"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status. Errors that a user can fix are one line on stderr.

    SIGTERM, which service managers and batch systems send, stops a command as Ctrl-C does.
    """
    _print_anything()
    if arguments is not None:
        return _run(arguments)
    own_stderr()
    bars_in_files()
    log_python_warnings()
    sys.stderr = Unread(sys.stderr)
    status = _run(sys.argv[1:], signals=(signal.SIGINT, signal.SIGTERM))
    return TERMINATED if status == INTERRUPTED and was_terminated() else status


def _run(arguments: Sequence[str], *, signals: Sequence[int] = ()) -> int:
    """Run one command, and print an error. `signals` stop it, and are ignored afterwards: they would kill Python while
    it ends, with another exit status."""
    try:
        for number in signals:
            signal.signal(number, interrupt)
        try:
            status = run_command(COMMANDS, arguments)
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # Python would report an error when it ends
        return status
    except SettingsError as error:
        _print_error(str(error))
        return WRONG_FLAGS
    except PartialOutputError as error:
        _print_error(str(error))
        return PARTLY
    except Text2SegError as error:
        _print_error(str(error))
    except MemoryError as error:
        _print_error(f"not enough memory ({error or 'none is left'})")
    except KeyboardInterrupt as stop:
        _ignore(signals)
        _print_error(str(stop) or "stopped")
        return INTERRUPTED
    except BrokenPipeError as error:
        if not _is_read():
            _discard_unwritten_output()
            return PIPE_CLOSED
        _print_error(f"the connection to another process was lost: {reason(error)}; run the same command again")
    except OSError as error:
        _log.info("file system error", exc_info=error)
        _print_error(_message_of(error))
    finally:
        _ignore(signals)
    _discard_unwritten_output()
    return FAILED


def _ignore(signals: Sequence[int]) -> None:
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
