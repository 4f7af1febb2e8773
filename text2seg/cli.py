"""The command line. Flags are made from the settings dataclasses; what they do lives in the library."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from text2seg import checkpoints
from text2seg._version import __version__
from text2seg.config import MapSettings, ModelSettings, OutputSettings, PointSettings, Settings
from text2seg.errors import CheckpointError, ImageError, QueryError, Text2SegError

FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True, slots=True)
class Segment:
    """Find what the queries name in pictures and cut it out.

    Writes for each picture an overlay and its maps with their points, and one COCO dataset file for all.
    Example: text2seg segment photo.jpg --query dog --query "red car"
    """

    images: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="")]
    ]
    """Picture files."""
    query: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to look for; repeat for more. "person+bench" gives one segment for both together."""
    queries: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """More queries in one string, with commas between them."""
    model: ModelSettings = field(default_factory=ModelSettings)
    maps: tyro.conf.UseAppendAction[MapSettings] = field(default_factory=MapSettings)
    points: PointSettings = field(default_factory=PointSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    verbose: bool = False
    """Say what runs where, and why."""

    def run(self) -> int:
        _log(self.verbose)
        wanted = [*self.query, *(self.queries.split(",") if self.queries else ())]
        if not wanted:
            raise QueryError("nothing to look for: give --query at least once")
        if not self.images:
            raise ImageError("no picture to look at: name at least one file")
        # Pillow warns from half of our own limit on; that such a picture is large is no news to its owner.
        warnings.filterwarnings("ignore", message="Image size .* exceeds limit of")
        from text2seg.pipeline import Text2Seg
        from text2seg.segmenting import segment_files

        models = Text2Seg.load(
            self.model.model,
            clip=self.model.clip,
            sam=self.model.sam,
            device=self.model.device,
            precision=self.model.precision,
            settings=Settings(self.maps, self.points),
        )
        report = segment_files(models, self.images, wanted, self.output, progress=len(self.images) > 1)
        for failure in report.failures:
            print(f"failed: {failure.message}", file=sys.stderr)
        for name, count in report.found.items():
            print(f"{name}: found in {count} of {report.images} image{'s' * (report.images != 1)}")
        for picture in report.pictures:
            print(f"picture: {picture}")
        print(f"COCO file: {report.dataset}")
        return FAILED if report.failures else 0


@dataclass(frozen=True, slots=True)
class ListCheckpoints:
    """List the weights that have a name, and which of them are on this machine."""

    def run(self) -> int:
        print(f"folder: {checkpoints.folder()} (the environment variable TEXT2SEG_CHECKPOINTS changes it)")
        for status in checkpoints.statuses():
            print(f"{status.kind:4}  {status.name:14}  {status.status:8}  {status.detail}")
        return 0


@dataclass(frozen=True, slots=True)
class DownloadCheckpoints:
    """Download weights by name: ViT-B/16, vit_h, …, or a pair: base, large, huge."""

    names: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="")]
    ]
    """Names of checkpoints or of pairs."""

    def run(self) -> int:
        _log(False)
        if not self.names:
            raise CheckpointError("nothing to download: name at least one checkpoint or pair")
        for name in self.names:
            _expand(name)  # a slip in the last name shows before the first download
        for name in self.names:
            for single, kind in _expand(name):
                print(checkpoints.fetch(single, kind, check=True))
        return 0


@dataclass(frozen=True, slots=True)
class VerifyCheckpoints:
    """Hash the weights that are on this machine and compare with what was published."""

    def run(self) -> int:
        found = [status for status in checkpoints.statuses(check=True) if status.status != "missing"]
        for status in found:
            print(f"{status.kind:4}  {status.name:14}  {status.status:8}  {status.path}  {status.detail}")
        return FAILED if any(status.status == "damaged" for status in found) else 0


Checkpoints = (
    Annotated[ListCheckpoints, tyro.conf.subcommand("list")]
    | Annotated[DownloadCheckpoints, tyro.conf.subcommand("download")]
    | Annotated[VerifyCheckpoints, tyro.conf.subcommand("verify")]
)


@dataclass(frozen=True, slots=True)
class CheckpointsCommand:
    """List, download or verify model weights."""

    what: Checkpoints

    def run(self) -> int:
        return self.what.run()


Command = (
    Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[CheckpointsCommand, tyro.conf.subcommand("checkpoints")]
)


def _expand(name: str) -> tuple[tuple[str, Literal["clip", "sam"]], ...]:
    """A pair's name stands for its two checkpoints; any other for the checkpoint of that name."""
    if name in checkpoints.PAIRS:
        clip, sam = checkpoints.pair(name)
        return (clip, "clip"), (sam, "sam")
    kinds = {checkpoint.name: checkpoint.kind for checkpoint in checkpoints.known()}
    if name not in kinds:
        names = ", ".join(dict.fromkeys([*checkpoints.PAIRS, *kinds]))
        raise CheckpointError(f"there is no checkpoint {name!r} to download; choose from {names}")
    return ((name, kinds[name]),)


def _log(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


def _print_anything() -> None:
    """What a terminal has no letters for, as in file names that are no Unicode, is printed as its escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives the exit status. Errors that a user can mend are one line on stderr."""
    _print_anything()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"text2seg {__version__}")
        return 0
    try:
        command = tyro.cli(
            Command,
            prog="text2seg",
            description="Cut things out of pictures by their names.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        status: int = command.run()
        sys.stdout.flush()
        return status
    except Text2SegError as error:
        print(f"text2seg: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("text2seg: stopped; what was done until then is kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output, as `head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its exit
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
