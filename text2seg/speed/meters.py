"""Meters for seconds of each stage, peak memory, and floating-point operations."""

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
from torch.utils.flop_counter import FlopCounterMode

from text2seg.sam.sam import SamShape

_log = logging.getLogger(__name__)

_RESET_PEAK = "5"  # value for Linux's clear_refs that resets the peak of a process


@dataclass
class Stopwatch:
    """Measures the seconds of each stage. Time in a nested stage counts only for the inner stage. On a GPU the marks
    are CUDA events, which are read at the end."""

    device: torch.device
    _open: list[str] = field(default_factory=list)
    _marks: list[tuple[str | None, Any]] = field(default_factory=list)
    _counter: FlopCounterMode | None = None
    _counts: list[int] = field(default_factory=list)

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
        """Return the function with each call measured as this stage."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return run

    def _mark(self) -> None:
        """Record the time and the innermost open stage, which the time from now on belongs to."""
        mark: Any
        if self.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self._marks.append((self._open[-1] if self._open else None, mark))
        if self._counter is not None:
            self._counts.append(self._counter.get_total_flops())

    def count(self, run: Callable[[], object]) -> dict[str, float]:
        """Run something and return the floating-point operations of each stage. The seconds are dropped: counting is
        slow. Only what torch runs in this thread, and does not compile, is counted."""
        self.read()
        self._counts.clear()
        with FlopCounterMode(display=False) as self._counter:
            run()
        self._counter = None
        flops: dict[str, float] = {}
        for (name, _), before, after in zip(self._marks, self._counts, self._counts[1:], strict=False):
            if name is not None:
                flops[name] = flops.get(name, 0.0) + after - before
        self.read()
        return flops

    def read(self) -> dict[str, float]:
        """Return the seconds of each stage since the last call."""
        wait(self.device)
        seconds: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                took = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
                seconds[name] = seconds.get(name, 0.0) + took
        self._marks.clear()
        return seconds


def wait(device: torch.device) -> None:
    """Wait until the GPU has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Peak memory use since the meter was created, in bytes: torch's memory on a GPU, otherwise that of the process.

    If the system cannot reset the peak, it includes the time before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
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


MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


def encoder_flops(shape: SamShape) -> float:
    """Return the floating-point operations of SAM's image encoder for one image.

    >>> from text2seg.speed.flows import sam_shape
    >>> [round(encoder_flops(sam_shape(model)) / 1e9) for model in ("vit_b", "vit_l", "vit_h")]
    [938, 2837, 5642]
    """
    side = shape.image_size // shape.patch
    tokens, width = side * side, shape.width
    linear = 2 * tokens * 12 * width * width  # qkv, the projection out, two of the MLP
    total = 2.0 * tokens * 3 * shape.patch**2 * width
    for block in range(shape.depth):
        rows = side if block in shape.global_blocks or not shape.window else min(shape.window, side)
        pairs = tokens * rows * rows
        positions = 2 * tokens * 2 * rows * width
        total += linear + 2 * 2 * pairs * width + positions
    neck = 2 * tokens * (width * shape.embedding + 9 * shape.embedding**2)
    return total + neck


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of the fastest of five large matrix products, as a measured peak."""
    side = MATRIX_SIDE.get(device.type, 2048)
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        wait(device)
        start = time.perf_counter()
        one @ other
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
