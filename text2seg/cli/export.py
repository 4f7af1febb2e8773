"""`text2seg export`: export the networks for other runtimes."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from text2seg.cli.common import PlainConsole, check_models, check_words, plain_table
from text2seg.cli.terminal import log_to_terminal, say
from text2seg.config import Architecture, ModelSettings
from text2seg.errors import SettingsError
from text2seg.io.names import counted
from text2seg.queries import names_in

if TYPE_CHECKING:
    from text2seg.onnx_export import Scene, Step

FolderFlag = Annotated[Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]


@dataclass(frozen=True, slots=True)
class ExportOnnx:
    """Write the networks as ONNX graphs, check each against torch, and time both.

    Example: text2seg export onnx --model demo --output graphs --precision int8

    Then: text2seg segment photo.jpg --query dog --runtime onnx --graphs graphs
    """

    output: FolderFlag
    """Folder for the graphs."""
    model: Literal["auto", "demo", "light", "base", "large", "huge"] = "auto"
    """Pair of CLIP and SAM; auto as in `text2seg segment --help`."""
    clip: str | None = None
    """Another CLIP, by name or file."""
    sam: str | None = None
    """Another SAM, by name or file."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp16: CLIP and SAM's encoder in half precision. int8: the matrix products of CLIP's text encoder and SAM's
    encoder, quantised dynamically. Everything else is in fp32."""
    input_size: int | tuple[int, int] | None = None
    """CLIP's input in pixels: one number, or rows and columns. The graphs work for this size only. Default: that
    of the model card, or 512."""
    architecture: Architecture = "surgery"
    """How CLIP's patches attend. The graphs work for this rule only."""
    scenes: int = 3
    """Number of images to check with."""
    images: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder of images to check with, instead of the bundled scenes; needs --queries."""
    queries: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """Queries for these images, separated by commas."""
    rounds: int = 5
    """Number of timings of torch and of the graphs, in turns; 0 for none."""
    overwrite: bool = False
    """Replace an earlier export."""
    verbose: bool = False
    """Print each step."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.scenes < 1 or self.rounds < 0:
            raise SettingsError("scenes must be 1 or more, and rounds 0 or more")
        if bool(self.images) != bool(self.queries):
            raise SettingsError("--images and --queries need each other: give both or neither")
        from text2seg.io.writing import check_folder

        check_models(ModelSettings(self.model, self.clip, self.sam))
        if self.images is not None:
            from text2seg.io.scan import check_image_folder

            check_image_folder(self.images)
            check_words(ModelSettings(self.model, self.clip, self.sam), names_in(self.queries))
        check_folder(self.output)
        _say_stage("preparing")
        from text2seg.onnx_export import Plan, export

        plan = Plan(
            self.output,
            self.overwrite,
            self.model,
            self.clip,
            self.sam,
            self.precision,
            self.input_size,
            self.architecture,
            self.rounds,
            _say_stage,
        )
        for step in export(plan, self._scenes()):
            _show(step)
        say(f"graphs: {self.output}")
        return 0

    def _scenes(self) -> list[Scene]:
        from text2seg.io.images import load_image
        from text2seg.onnx_export import Scene, bundled_scenes

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
    """Folder of the model repository. Other models in it are kept."""
    version: int = 1
    """Version number of the models."""
    max_batch: int = 8
    """Largest batch that the server may form from several requests. For texts it is at least 128."""
    tensorrt: Literal["none", "fp32", "fp16"] = "none"
    """Let the server run the graphs with NVIDIA TensorRT, in this precision. Needs a GPU."""
    verbose: bool = False
    """Log more."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        from text2seg.onnx.triton import write_repository

        folders = write_repository(
            self.graphs, self.output, version=self.version, max_batch=self.max_batch, tensorrt=self.tensorrt
        )
        for path in folders:
            say(path)
        return 0


def _say_stage(stage: str) -> None:
    """Print what is done next."""
    say(f"text2seg: {stage} …", file=sys.stderr, flush=True)


def _show(step: Step) -> None:
    """Print the measurements of one precision."""
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
        f"masks compared with torch: {counted(len(masks.ious), 'pair')} of scene and query, mean IoU "
        f"{statistics.mean(masks.ious):.4f}, lowest {min(masks.ious):.4f}; {masks.lost} found by torch only, "
        f"{masks.added} by the graphs only; {masks.segments[0]} segments by torch, {masks.segments[1]} by the graphs"
    )


def _milliseconds(seconds: list[float], scenes: int) -> str:
    """Format the median, lowest and highest time of one scene."""
    if not seconds:
        return "–"
    each = [1000 * value / scenes for value in seconds]
    return f"{statistics.median(each):.3g} ({min(each):.3g}–{max(each):.3g})"
