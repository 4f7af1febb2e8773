"""Exit statuses and safe output of commands: control characters, NUL and bidirectional marks are escaped, so that no
file name, dataset or message of another package can control the terminal."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from text2seg.io.names import escaped

if TYPE_CHECKING:
    from text2seg.records import Failure

FAILED, WRONG_FLAGS, PARTLY, INTERRUPTED, PIPE_CLOSED, TERMINATED = 1, 2, 3, 130, 141, 143
"""Exit statuses. 0 is success. FAILED: nothing was done. WRONG_FLAGS: a flag does not exist, or its value is wrong or
contradicts another flag. PARTLY: results are written, but stderr names images that failed or words that the models do
not know. INTERRUPTED: stopped; `main` makes TERMINATED of it if the signal was SIGTERM. PIPE_CLOSED: the reader of the
output, such as `head`, has ended; SIGPIPE ends other programs with it."""

GO_ON = "run the same command again to go on"

SHOWN_FAILURES = 10
"""Largest number of failures that are printed without `--verbose`."""

_log = logging.getLogger(__name__)


def exit_status(done: int, left_out: int) -> int:
    """Return the exit status of a command that did some of its work and left out the rest."""
    if not left_out:
        return 0
    return PARTLY if done else FAILED


def say(line: object, *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line on stdout or another stream; a line break in it is escaped, too."""
    print(escaped(str(line)), file=file, flush=flush)


def say_failures(failures: Sequence[Failure], *, all_in: str = "", verbose: bool = False) -> None:
    """Print a line on stderr for each of the first failures, then where the others are; with `verbose`, for all.

    Args:
        all_in: The file that has all of them, or the flag that writes it.
    """
    shown = failures if verbose else failures[:SHOWN_FAILURES]
    for failure in shown:
        say(f"failed: {failure.message}", file=sys.stderr)
    if len(failures) > len(shown):
        where = f"all are in {all_in}" if all_in else "--verbose prints all"
        say(f"failed: {len(failures) - len(shown)} more; {where}", file=sys.stderr)


def say_lines(text: str, *, file: TextIO | None = None) -> None:
    """Print a text of several lines, such as a list of errors."""
    for line in text.split("\n"):
        say(line, file=file, flush=file is None)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show what the command does meanwhile: on a terminal on a line that the next output overwrites, elsewhere on a
    line of its own."""
    if not sys.stderr.isatty():
        say(f"text2seg: {text} …", file=sys.stderr, flush=True)
        yield
        return
    line = f"text2seg: {text} …"
    print(line, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(" " * len(line), end="\r", file=sys.stderr, flush=True)


class Unread:
    """A text stream whose reader may go away: then what is written is lost, and nobody is told.

    For stderr: nobody is left who could read of the error, and a progress bar that cannot write keeps its lock.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(BrokenPipeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            self._stream.flush()


class BarsAsLines:
    """A text stream to a file, in which each state of a progress bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._is_after_bar = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        shown = text.replace("\x1b[A", "")  # to the line above
        is_bar = shown.startswith("\r")
        if is_bar:
            shown = f"{shown.strip()}\n" if shown.strip() else ""
        elif self._is_after_bar and not shown.strip("\n"):
            shown = ""
        self._is_after_bar = is_bar or (self._is_after_bar and not shown)
        self._stream.write(shown)
        return len(text)


def bars_in_files() -> None:
    """If stderr is a file or a pipe, show progress bars there as a line every ten seconds. To be called before tqdm is
    imported."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")
        lines: Any = BarsAsLines(sys.stderr)
        sys.stderr = lines


def close_bars() -> None:
    """End the progress bars that an error or a stop left on the terminal, so that a message gets a line of its own."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            with suppress(OSError):  # of a closed terminal
                bar.close()


class EscapingFormatter(logging.Formatter):
    """Formats log messages and tracebacks, with escapes for characters that control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(escaped, super().format(record).split("\n")))


class LinesBesideBars(logging.StreamHandler[TextIO]):
    """Writes each message on a line of its own, above the progress bars on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" not in sys.modules:  # no bar was made, and an import takes time
            super().emit(record)
            return
        from tqdm import tqdm

        if not self.stream.isatty():  # in a file, bars cannot be wiped away
            self.stream.write("\n" * bool(getattr(tqdm, "_instances", ())))
            super().emit(record)
            return
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


QUIET = {
    "OPENCV_FFMPEG_LOGLEVEL": "-8",  # nothing
    "OPENCV_LOG_LEVEL": "SILENT",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment in which other libraries print no lines of their own. Our messages say what is wrong with a file."""


def log_to_terminal(*, verbose: bool = False) -> None:
    """Log warnings of text2seg to stderr; with `verbose`, also details such as which models run on which device, and
    what other libraries say."""
    handler = LinesBesideBars(sys.stderr)
    if not verbose:
        handler.addFilter(_is_for_people)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    handler.setFormatter(EscapingFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


def _is_for_people(record: logging.LogRecord) -> bool:
    """Return whether a message is ours, or an error of a library besides Pillow, whose errors ours repeat."""
    library = record.name.partition(".")[0]
    return library == "text2seg" or (record.levelno >= logging.ERROR and library != "PIL")


def log_python_warnings() -> None:
    """Log warnings of Python code, such as Pillow's about a damaged EXIF block, so that only `--verbose` shows them."""

    def log(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        logging.getLogger("py.warnings").info("%s: %s", category.__name__, message)

    if not sys.warnoptions:
        warnings.showwarning = log


def own_stderr() -> None:
    """Let Python write to a file descriptor of its own, a copy of that of stderr. So `io.images` can silence the C code
    of Pillow, which writes to the original one, without the loss of a message."""
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr.fileno() == 2:
        stream = sys.stderr
        sys.stderr = io.TextIOWrapper(
            os.fdopen(os.dup(2), "wb", 0),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=True,
        )


_stopped_by: list[int] = []
"""Signals that this process got so far."""


def was_terminated() -> bool:
    """Return whether the first signal that stopped the command was SIGTERM."""
    return _stopped_by[:1] == [signal.SIGTERM]


def interrupt(number: int, _: FrameType | None) -> None:
    """Handle a signal: note its number and raise `KeyboardInterrupt`."""
    _stopped_by.append(number)
    raise KeyboardInterrupt


@contextmanager
def stop_on_signals(then: str = "") -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets. The second one raises `KeyboardInterrupt`, with what the
    user can do then. Main thread only."""
    stop = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        _stopped_by.append(number)
        if stop.is_set():
            raise KeyboardInterrupt(f"stopped at once; {then}" if then else "")
        stop.set()

    def announce() -> None:  # not in the handler, which may interrupt another log message
        stop.wait()
        _log.warning("stopping after the current work; press Ctrl-C again to stop at once")

    threading.Thread(target=announce, name="text2seg-stop", daemon=True).start()
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
