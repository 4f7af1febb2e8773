"""The command line: one file a command, flags made from the settings dataclasses. What they do lives in the library."""

from __future__ import annotations

import io
import os
import sys

from text2seg.cli.commands import COMMANDS, run_command
from text2seg.cli.status import FAILED, INTERRUPTED
from text2seg.errors import Text2SegError


def _print_anything() -> None:
    """What a terminal has no letters for, as in file names that are no Unicode, is printed as its escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives the exit status. Errors that a user can mend are one line on stderr."""
    _print_anything()
    try:
        status = run_command(COMMANDS, sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except Text2SegError as error:
        print(f"text2seg: {error}", file=sys.stderr)
        return FAILED
    except MemoryError as error:
        print(f"text2seg: there is not enough memory for this ({error or 'none is left'})", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("text2seg: stopped; what was done until then is kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output, as `head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its exit
        return FAILED
