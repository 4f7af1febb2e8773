"""Time by stage and memory at its highest, without making a GPU wait."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch

_log = logging.getLogger(__name__)

_FORGET_PEAK = "5"  # what Linux wants to be told in clear_refs to begin a new peak


@dataclass
class Stopwatch:
    """Seconds of each stage. A stage within a stage counts for the inner one only. On a GPU the marks are events in its
    queue, read at the end."""

    device: torch.device
    _open: list[str] = field(default_factory=list)
    _marks: list[tuple[str | None, Any]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._open.append(name)
        self._mark()
        try:
            yield
        finally:
            self._open.pop()
            self._mark()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call of which is that stage."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return run

    def _mark(self) -> None:
        """From now on time belongs to the innermost stage that is open."""
        mark: Any
        if self.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self._marks.append((self._open[-1] if self._open else None, mark))

    def read(self) -> dict[str, float]:
        """Seconds by stage since it was read last."""
        wait(self.device)
        seconds: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                took = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
                seconds[name] = seconds.get(name, 0.0) + took
        self._marks.clear()
        return seconds


def wait(device: torch.device) -> None:
    """Until the GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The highest use of memory since it was made, in bytes: what torch holds of a GPU's, else what the process holds
    of the machine's. Where the system cannot forget an earlier peak, that one counts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)
            except OSError as error:  # not Linux, or not allowed
                _log.info("memory is counted from the start of the process: %s", error)

    def read(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            unit = 1 if sys.platform == "darwin" else 1024
            return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
