"""`text2seg doctor`: what this machine has, in one screen."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from text2seg._version import __version__
from text2seg.cli.common import PlainConsole, plain_table
from text2seg.cli.terminal import say
from text2seg.io.names import counted

PACKAGES = ("torchvision", "numpy", "pillow", "opencv-python-headless", "segment-anything", "openai-clip")
MISSING = "missing"
OF_DEVELOPERS = ("dev", "demo-world")
"""Extras that only changing text2seg needs."""


@dataclass(frozen=True, slots=True)
class Doctor:
    """Show versions, device, precision, memory, weights, model cards and missing extras, for a report of a problem."""

    def run(self) -> int:
        say(
            "text2seg: looking at torch, the device, the weights and the packages; this takes some seconds",
            file=sys.stderr,
        )
        table = plain_table("", "what", "here")
        table.columns[1].justify, table.columns[1].overflow = "left", "fold"
        for what, here in facts():
            table.add_row(what, here)
        PlainConsole().print(table)
        return 0


def facts() -> Iterator[tuple[str, str]]:
    """Yield what a report of a problem needs, each with its heading."""
    import torch

    from text2seg import weights
    from text2seg.model_card import card_of, cards_in, user_cards
    from text2seg.runtime import choose_device, choose_precision

    yield "text2seg", f"{__version__} in {Path(__file__).parents[1]}"
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    packages = {"torch": torch.__version__} | {name: _version(name) for name in PACKAGES}  # torch's names its CUDA
    yield "packages", ", ".join(f"{name} {version}" for name, version in packages.items())
    device = choose_device()
    precision = choose_precision(device)
    yield "device", f"{device}; {_device_name(device.type)}"
    yield "precision", f"{precision.name}: {precision.reason}"
    yield "memory", _memory()
    yield "processors", f"{os.cpu_count()}"
    yield "checkpoints in", str(weights.folder())
    here = [status for status in weights.statuses() if status.status != "missing"]
    for status in here:
        yield f"{status.kind} {status.name}", f"{status.status}, {status.detail}"
    yield "--model auto", f"{weights.choose_model('auto')}: {card_of(*weights.pair('auto')).name or 'no model card'}"
    yield "your model cards", f"{len([*cards_in(user_cards())])} in {user_cards()}"
    try:
        missing = ",".join(missing_extras())
    except metadata.PackageNotFoundError:
        yield "missing extras", "not known, because text2seg runs without being installed"
    else:
        yield "missing extras", f'pip install "text2seg[{missing}]"' if missing else "none"


def missing_extras() -> list[str]:
    """Return the extras of text2seg of which a package is missing or has a version that does not fit."""
    requirements = [Requirement(line) for line in metadata.requires("text2seg") or ()]
    lacking = [each.marker for each in requirements if not _is_met(each)]
    extras = metadata.metadata("text2seg").get_all("Provides-Extra") or []
    return [
        extra
        for extra in extras
        if extra not in OF_DEVELOPERS and any(marker and marker.evaluate({"extra": extra}) for marker in lacking)
    ]


def _is_met(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version != MISSING and requirement.specifier.contains(version, prereleases=True)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING


def _device_name(kind: str) -> str:
    import torch

    if kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return f"{platform.processor() or platform.machine()}, {counted(torch.get_num_threads(), 'thread')} of torch"


def _memory() -> str:
    """Return free and whole memory of this machine, where the system tells them."""
    from text2seg.runtime import host_memory

    memory = host_memory()
    return (
        "{:.1f} of {:.1f} GiB available".format(*(size / 2**30 for size in memory))
        if memory
        else "not told by this system"
    )
