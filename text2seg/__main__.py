"""The command `text2seg`, and `python -m text2seg`: they import the command line and run it.

A signal that arrives while Python still imports modules ends the process at once. An exception would go through the
half-imported modules and be printed as a traceback.
"""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line and return its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    from text2seg.cli import main as run

    return run()


def _stop(number: int, _: FrameType | None) -> None:
    """Say that the command was stopped, as it does later, and exit with the same status."""
    os.write(2, b"text2seg: stopped\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
