"""All that a command prints goes through here, so that no file name, dataset or message of another package can steer
the terminal: control characters, NUL and bidirectional signs are printed as their escapes. Also exit statuses."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from text2seg.io.names import escaped

FAILED, INTERRUPTED = 1, 130
"""How a command ends; 0 is well."""


def say(line: object, *, file: TextIO | None = None, flush: bool = False) -> None:
    """One line on stdout, or on another stream."""
    print(escaped(str(line)), file=file, flush=flush)


def say_lines(text: str, *, file: TextIO | None = None) -> None:
    """A text of our own whose line breaks are meant, as a list of faults."""
    for line in text.split("\n"):
        say(line, file=file, flush=file is None)


class EscapingFormatter(logging.Formatter):
    """Log messages, and tracebacks behind them, with escapes for what could steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(escaped, super().format(record).split("\n")))


def log_to_terminal(*, verbose: bool = False) -> None:
    """Warnings go to stderr, with `verbose` also what runs where and why."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EscapingFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
