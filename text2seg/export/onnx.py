"""The order of an export: draw, check, then convert and check again, and only then put the folder in its place."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from text2seg import weights
from text2seg._version import __version__
from text2seg.config import MapSettings, Settings
from text2seg.errors import CheckpointError, OutputError, SettingsError
from text2seg.export.check import TOLERANCES, Agreement, Call, Compared, Scene, agreement, error_of, record, time_both
from text2seg.export.graphs import OPSET, check_packages, convert, describe, draw, towers
from text2seg.io.files import (
    check_folder,
    copy_file,
    discard,
    entries,
    exists,
    is_dir,
    is_file,
    is_left_over,
    make_folder,
    reason,
    resolved,
    sha256_of,
)
from text2seg.onnx.manifest import FILE, GRAPHS, GraphName, GraphPrecision, GraphSpec, Manifest, read_manifest
from text2seg.onnx.networks import Graph
from text2seg.pipeline import Text2Seg
from text2seg.sam.build import shape_of

CPU = torch.device("cpu")
CONVERTED: dict[GraphPrecision, tuple[GraphName, ...]] = {
    "fp16": ("clip_image", "clip_text", "sam_encoder"),
    "int8": ("clip_text", "sam_encoder"),
}
"""What runs in fewer bits. SAM's decoder takes little time and would blur where points are; so do int8 maps, by
measurement (docs/measurements/onnx.md)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to export: the models as for `Text2Seg.load`, and CLIP's input and attention rule, which graphs fix."""

    output: Path
    model: str = "demo"
    clip: str | None = None
    sam: str | None = None
    precision: GraphPrecision = "fp32"
    input_size: int | tuple[int, int] | None = None
    architecture: Any = "surgery"
    rounds: int = 5
    """Rounds of the benchmark; 0 leaves it out."""


@dataclass(frozen=True, slots=True)
class Step:
    """All graphs in one precision, measured, and where they lie until the next step is asked for."""

    precision: GraphPrecision
    folder: Path
    graphs: tuple[Compared, ...]
    masks: Agreement
    scenes: int


def export(plan: Plan, scenes: Sequence[Scene]) -> Iterator[Step]:
    """Write the folder; gives each precision as soon as it is measured, float32 first.

    Raises:
        SettingsError: a package is missing, or these models cannot be exported.
        CheckpointError: a graph is further from torch than its precision allows; nothing is written then.
        OutputError: the output is there and is no folder of graphs, or cannot be written.
    """
    check_packages()
    _check_output(plan.output)
    settings = Settings(maps=MapSettings(input_size=plan.input_size, architecture=plan.architecture))
    models = _load(plan, settings)
    models.clip.text.forget()
    input_hw = models.clip.input_hw(plan.input_size or models.input_size)
    networks = towers(models, input_hw, plan.architecture)
    calls, results = record(models, scenes)
    work = resolved(plan.output).with_name(f".text2seg-{secrets.token_hex(8)}.tmp")
    try:
        folder = work / "fp32"
        make_folder(folder)
        for tower in networks:
            _log.info("drawing %s", tower.name)
            draw(tower, folder / f"{tower.name}.onnx")
        precisions: dict[GraphName, GraphPrecision] = dict.fromkeys(GRAPHS, "fp32")
        yield _measure(plan, models, folder, precisions, input_hw, calls, results, scenes)
        if plan.precision != "fp32":
            precisions |= dict.fromkeys(_converted(plan, models), plan.precision)
            folder = _convert(folder, work / plan.precision, precisions)
            yield _measure(plan, models, folder, precisions, input_hw, calls, results, scenes)
        _check_output(plan.output)  # once more: somebody may have put something there meanwhile
        _put(folder, plan.output)
    except OSError as error:
        raise OutputError(f"{plan.output} cannot be written: {reason(error)}") from error
    finally:
        discard(work)


def _load(plan: Plan, settings: Settings, graphs: Path | None = None) -> Text2Seg:
    return Text2Seg.load(
        plan.model,
        clip=plan.clip,
        sam=plan.sam,
        device="cpu",
        precision="fp32" if graphs is None else "auto",
        graphs=graphs,
        settings=settings,
    )


def _converted(plan: Plan, models: Text2Seg) -> tuple[GraphName, ...]:
    sam: Any = models.sam
    if plan.precision == "fp16" and not shape_of(sam.module.state_dict()).fp16_safe:
        _log.warning("this SAM's encoder overflows in fp16; its graph stays in fp32")
        return tuple(name for name in CONVERTED[plan.precision] if name != "sam_encoder")
    return CONVERTED[plan.precision]


def _convert(source: Path, target: Path, precisions: dict[GraphName, GraphPrecision]) -> Path:
    make_folder(target)
    for name, precision in precisions.items():
        if precision == "fp32":
            for file in source.glob(f"{name}.onnx*"):
                copy_file(file, target / file.name)
        else:
            _log.info("converting %s to %s", name, precision)
            convert(source / f"{name}.onnx", target / f"{name}.onnx", precision)
    return target


def _measure(
    plan: Plan,
    models: Text2Seg,
    folder: Path,
    precisions: dict[GraphName, GraphPrecision],
    input_hw: tuple[int, int],
    calls: Sequence[Call],
    results: Sequence[Any],
    scenes: Sequence[Scene],
) -> Step:
    """Every graph against torch, then the manifest, then the pipeline that runs from the folder."""
    compared = []
    for name in GRAPHS:
        graph, own = Graph(folder / f"{name}.onnx", CPU), [call for call in calls if call.graph == name]
        if not own:
            raise SettingsError(f"nothing was found in the images, so {name} could not be checked; give others")
        size = sum(file.stat().st_size for file in folder.glob(f"{name}.onnx*"))
        found = Compared(name, precisions[name], size, error_of(graph, own), TOLERANCES[precisions[name]])
        if not found.error <= found.tolerance:
            raise CheckpointError(
                f"{name} in {found.precision} is {found.error:.2g} from torch, more than {found.tolerance:g}; "
                "nothing was written. Try another precision"
            )
        time_both(found, graph, own, plan.rounds)
        compared.append(found)
    _manifest(models, folder, compared, plan, input_hw).write(folder)
    onnx = _load(plan, models.settings, folder)
    masks = agreement(results, [onnx.segment(scene.image, scene.queries) for scene in scenes])
    precision = plan.precision if any(each.precision != "fp32" for each in compared) else "fp32"
    return Step(precision, folder, tuple(compared), masks, len(scenes))


def _manifest(
    models: Text2Seg, folder: Path, compared: Sequence[Compared], plan: Plan, input_hw: tuple[int, int]
) -> Manifest:
    origin: Any = models.provenance()
    graphs = tuple(
        GraphSpec(
            each.name,
            f"{each.name}.onnx",
            each.precision,
            *describe(folder / f"{each.name}.onnx"),
            tolerance=each.tolerance,
            error=each.error,
        )
        for each in compared
    )
    return Manifest(
        clip=origin["clip"],
        sam=origin["sam"],
        precision=next((each.precision for each in compared if each.precision != "fp32"), "fp32"),
        architecture=plan.architecture,
        input_hw=input_hw,
        opset=OPSET,
        graphs=graphs,
        files={file.name: weights.sha256_of(file) for file in sorted(folder.glob("*.onnx*"))},
        made_with={"text2seg": __version__, **{name: version(name) for name in ("torch", "onnx", "onnxruntime")}},
    )


def _check_output(output: Path) -> None:
    """An older export may go, as long as nothing in its folder was changed or added; all else stays."""
    check_folder(output)
    if not is_dir(output, OutputError):
        return
    inside = [each for each in entries(output, OutputError) if not is_left_over(each)]
    if not inside:
        return
    if not is_file(output / FILE, OutputError):
        raise OutputError(f"{output} is there already and is no folder of graphs; choose another name")
    ours: dict[str, str] = {}
    with suppress(CheckpointError):  # of an older version, or damaged: then nothing in the folder is known
        manifest = read_manifest(output)
        ours = {FILE: hashlib.sha256(manifest.text()).hexdigest(), **manifest.files}
    others = [each.name for each in inside if not is_file(each) or sha256_of(each, OutputError) != ours.get(each.name)]
    if others:
        raise OutputError(
            f"{output} holds {', '.join(others[:3])}, which text2seg did not write or somebody changed since; move the "
            "folder away, or choose another name"
        )


def _put(folder: Path, output: Path) -> None:
    """Move the finished folder to its place; an older export goes only once the new one is there."""
    target = resolved(output)
    old = target.with_name(f"{folder.parent.name}.old")
    had = exists(target, OutputError)
    if had:
        target.rename(old)
    try:
        folder.rename(target)
    except BaseException:
        if had:
            old.rename(target)
        raise
    if had:
        discard(old)
