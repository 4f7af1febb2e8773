"""`text2seg checkpoints`: list, download and verify weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from text2seg import weights
from text2seg.cli.terminal import FAILED, log_to_terminal, say
from text2seg.errors import CheckpointError
from text2seg.queries import Things
from text2seg.weights.registry import is_openclip


@dataclass(frozen=True, slots=True)
class ListCheckpoints:
    """List the weights that have a name, and which of them are on this machine."""

    def run(self) -> int:
        say(f"folder: {weights.folder()} (the environment variable TEXT2SEG_CHECKPOINTS changes it)")
        found = weights.statuses()
        width = max(len(status.name) for status in found)
        for status in found:
            say(f"{status.kind:4}  {status.name:{width}}  {status.status:8}  {status.detail}")
        return 0


@dataclass(frozen=True, slots=True)
class DownloadCheckpoints:
    """Download weights by name: ViT-B/16, vit_h, openclip:…, or a pair: base, large, huge."""

    names: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="")]
    ]
    """Names of checkpoints or of pairs."""

    def run(self) -> int:
        log_to_terminal()
        if not self.names:
            raise CheckpointError("nothing to download: name at least one checkpoint or pair")
        for name in self.names:
            _expand(name)  # a slip in the last name shows before the first download
        for name in self.names:
            for single, kind in _expand(name):
                say(_fetch(single, kind))
        return 0


@dataclass(frozen=True, slots=True)
class VerifyCheckpoints:
    """Hash the weights that are on this machine and compare with what was published."""

    def run(self) -> int:
        found = [status for status in weights.statuses(check=True) if status.status != "missing"]
        for status in found:
            say(f"{status.kind:4}  {status.name:14}  {status.status:8}  {status.path}  {status.detail}")
        return FAILED if any(status.status == "damaged" for status in found) else 0


@dataclass(frozen=True, slots=True)
class ShowCheckpoint:
    """Show what is known of a checkpoint: its file, hash and source, and of the demo model all that it can find."""

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]]
    """Name of a checkpoint or of a pair, such as demo or base."""

    def run(self) -> int:
        for name, kind in _expand(self.name):
            if is_openclip(name):
                raise CheckpointError(f"{name} is one of open_clip's, which knows what there is of it")
            checkpoint = weights.find(name, kind)
            status = weights.verify(checkpoint)
            say(f"{kind} {checkpoint.name}: {status.status}, {status.detail}")
            say(f"  file: {status.path}")
            say(f"  from: {checkpoint.url or 'bundled with text2seg'}")
        if self.name == "demo":
            things = Things.of_demo()
            say(f"It knows drawings of {len(things.names)} things: {', '.join(sorted(things.names))}")
        return 0


Checkpoints = (
    Annotated[ListCheckpoints, tyro.conf.subcommand("list")]
    | Annotated[ShowCheckpoint, tyro.conf.subcommand("show")]
    | Annotated[DownloadCheckpoints, tyro.conf.subcommand("download")]
    | Annotated[VerifyCheckpoints, tyro.conf.subcommand("verify")]
)


@dataclass(frozen=True, slots=True)
class CheckpointsCommand:
    """List, show, download or verify model weights."""

    what: Checkpoints

    def run(self) -> int:
        return self.what.run()


def _fetch(name: str, kind: Literal["clip", "sam"]) -> Path:
    if is_openclip(name):
        from text2seg.loading import fetch

        return fetch(name, kind)
    return weights.fetch(name, kind, check=True)


def _expand(name: str) -> tuple[tuple[str, Literal["clip", "sam"]], ...]:
    """A pair's name stands for its two checkpoints; any other for the checkpoint of that name."""
    if name in weights.PAIRS:
        clip, sam = weights.pair(name)
        return (clip, "clip"), (sam, "sam")
    if is_openclip(name):
        return ((name, "clip"),)
    kinds = {checkpoint.name: checkpoint.kind for checkpoint in weights.known()}
    if name not in kinds:
        names = ", ".join(dict.fromkeys([*weights.PAIRS, *kinds]))
        raise CheckpointError(f"there is no checkpoint {name!r} to download; choose from {names}")
    return ((name, kinds[name]),)
