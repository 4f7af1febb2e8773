"""`text2seg export`: the networks for other runtimes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from text2seg.cli.tables import PlainConsole, plain_table
from text2seg.cli.terminal import log_to_terminal, say
from text2seg.errors import SettingsError
from text2seg.queries import names_in

if TYPE_CHECKING:
    from text2seg.export.check import Scene
    from text2seg.export.onnx import Step

FolderFlag = Annotated[Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]


@dataclass(frozen=True, slots=True)
class ExportOnnx:
    """Write the networks as ONNX graphs, check each against torch, and time both.

    Example: text2seg export onnx --model demo --output graphs --precision int8
    Then: text2seg segment photo.jpg --query dog --runtime onnx --graphs graphs
    """

    output: FolderFlag
    """Folder for the graphs; an older export there is replaced."""
    model: Literal["demo", "base", "large", "huge"] = "demo"
    """A pair of CLIP and SAM."""
    clip: str | None = None
    """CLIP by name or file, in place of the pair's."""
    sam: str | None = None
    """SAM by name or file, in place of the pair's."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp16: the CLIP towers and SAM's encoder in half precision; int8: the matrix products of CLIP's text tower and of
    SAM's encoder, quantised dynamically. All else stays in fp32."""
    input_size: int | tuple[int, int] | None = None
    """CLIP's input in pixels, one number or rows and columns; graphs are for this size only. Default: 512, demo 384."""
    architecture: Literal["surgery", "raw", "maskclip", "sclip", "clearclip", "naclip", "gem"] = "surgery"
    """How CLIP's patches attend; graphs are for this rule only."""
    scenes: int = 3
    """How many images to check with."""
    images: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder of images to check with, in place of the bundled scenes; needs --queries."""
    queries: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """What to look for in these images, with commas."""
    rounds: int = 5
    """Rounds of the benchmark, torch and graphs in turns; 0 leaves it out."""
    verbose: bool = False
    """Say what is done."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.scenes < 1 or self.rounds < 0:
            raise SettingsError("scenes must be 1 or more, rounds 0 or more")
        if bool(self.images) != bool(self.queries):
            raise SettingsError("--images and --queries belong together")
        from text2seg.export.onnx import Plan, export

        plan = Plan(
            self.output,
            self.model,
            self.clip,
            self.sam,
            self.precision,
            self.input_size,
            self.architecture,
            self.rounds,
        )
        for step in export(plan, self._scenes()):
            _show(step)
        say(f"graphs: {self.output}")
        return 0

    def _scenes(self) -> list[Scene]:
        from text2seg.export.check import Scene, bundled_scenes
        from text2seg.io.images import load_image

        if self.images is None:
            return bundled_scenes(self.scenes)
        from text2seg.io.scan import list_images

        scan = list_images(self.images, limit=self.scenes)
        queries = names_in(self.queries)
        return [Scene(load_image(scan.path(index)), queries) for index in range(len(scan))]


@dataclass(frozen=True, slots=True)
class ExportTriton:
    """Write exported graphs as a model repository for NVIDIA Triton Inference Server.

    Example: text2seg export triton --graphs graphs --output repository
    """

    graphs: FolderFlag
    """Folder that `text2seg export onnx` wrote."""
    output: FolderFlag
    """The model repository; models that are there already stay."""
    version: int = 1
    """Number of this version of the models."""
    max_batch: int = 8
    """The largest batch that the server may make of several requests; 128 texts at least."""
    verbose: bool = False
    """Say what is done."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        from text2seg.export.triton import write_repository

        for path in write_repository(self.graphs, self.output, version=self.version, max_batch=self.max_batch):
            say(path)
        return 0


def _show(step: Step) -> None:

    table = plain_table(
        f"{step.precision}, {step.scenes} scenes",
        *("graph", "precision", "MB", "error", "allowed", "torch ms", "onnx ms", "ratio"),
    )
    for each in step.graphs:
        ratio = "–"
        if each.onnx_seconds:
            ratio = f"{statistics.median(each.torch_seconds) / statistics.median(each.onnx_seconds):.2f}×"
        table.add_row(
            *(each.name, each.precision, f"{each.bytes / 1e6:.1f}", f"{each.error:.1e}", f"{each.tolerance:.0e}"),
            *(_milliseconds(each.torch_seconds, step.scenes), _milliseconds(each.onnx_seconds, step.scenes), ratio),
        )
    PlainConsole(width=120).print(table)
    masks = step.masks
    say(
        f"masks beside torch's: {len(masks.ious)} of scenes and queries, IoU mean "
        f"{statistics.mean(masks.ious):.4f}, lowest {min(masks.ious):.4f}; {masks.lost} not found any more, "
        f"{masks.added} found only now; segments {masks.segments[0]} and {masks.segments[1]}\n"
    )


def _milliseconds(seconds: list[float], scenes: int) -> str:
    """The median for one scene, and the lowest and the highest."""
    if not seconds:
        return "–"
    each = [1000 * value / scenes for value in seconds]
    return f"{statistics.median(each):.3g} ({min(each):.3g}–{max(each):.3g})"
