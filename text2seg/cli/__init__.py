"""The command line: one file a command, flags made from the settings dataclasses. What they do lives in the library."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress

from text2seg.cli.commands import COMMANDS, run_command
from text2seg.cli.terminal import FAILED, INTERRUPTED, say_lines
from text2seg.errors import Text2SegError
from text2seg.io.files import reason

_log = logging.getLogger(__name__)


def _print_anything() -> None:
    """What a terminal has no letters for, as in file names that are no Unicode, is printed as its escape. A stream that
    is closed swallows what is printed; its number must not go to the next file that is opened."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict" and name != "stdin":
            stream.reconfigure(errors="backslashreplace")


def _say(words: str) -> None:
    """An error on stderr, unless it is full as well."""
    with suppress(OSError):
        say_lines(f"text2seg: {words}", file=sys.stderr)


def _silence() -> None:
    """Nothing more goes to stdout, or Python complains once more at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: OSError) -> str:
    """Of an error that nobody foresaw: what it is about and what the system says."""
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    what = files or "a file, or what is printed,"
    return f"{what} cannot be read or written: {reason(error)}; mend that, and run the same command again"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives the exit status. Errors that a user can mend are one line on stderr."""
    _print_anything()
    try:
        status = run_command(COMMANDS, sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except Text2SegError as error:
        _say(str(error))
    except MemoryError as error:
        _say(f"there is not enough memory for this ({error or 'none is left'})")
    except KeyboardInterrupt:
        _say("stopped; what was done until then is kept")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output, as `head` does, has seen enough
        pass
    except OSError as error:
        _log.info("an error of the file system", exc_info=error)
        _say(_told(error))
    _silence()
    return FAILED
