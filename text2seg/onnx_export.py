"""Export of the models to ONNX: write the graphs, check them, convert and check again, then put the folder in place."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from text2seg import weights
from text2seg._version import __version__
from text2seg.config import MapSettings, Settings
from text2seg.errors import CheckpointError, OutputError, SettingsError
from text2seg.io.files import exists, is_dir, is_file, list_folder, reason, resolve_path, sha256_of
from text2seg.io.images import load_image
from text2seg.io.writing import check_folder, copy_file, discard, is_leftover, make_folder
from text2seg.onnx.graphs import (
    OPSET,
    TOLERANCES,
    Agreement,
    Call,
    Compared,
    agreement,
    check_packages,
    convert,
    describe,
    draw,
    error_of,
    time_both,
    towers,
)
from text2seg.onnx.networks import FILE, GRAPHS, Graph, GraphName, GraphPrecision, GraphSpec, Manifest, read_manifest
from text2seg.pipeline import Text2Seg
from text2seg.records import Image, Segmentation

SCENES = Path(weights.__file__).parents[1] / "demo" / "scenes" / "new-scenes"
MOST_WORDS = 4  # queries of one scene

CPU = torch.device("cpu")
CONVERTED: dict[GraphPrecision, tuple[GraphName, ...]] = {
    "fp16": ("clip_image", "clip_text", "sam_encoder"),
    "int8": ("clip_text", "sam_encoder"),
}
"""Graphs that are converted to each precision. SAM's decoder stays in fp32: it takes little time and would lose the
exact positions of points. CLIP's image encoder is not converted to int8, which would blur its maps
(docs/measurements/experiments.md#onnx)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scene:
    """An image with the queries to segment in it."""

    image: Image
    queries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Models to export, named as for `Text2Seg.load`, with the input size and attention rule that their graphs fix."""

    output: Path
    overwrite: bool = False
    """Replace an earlier export."""
    model: str = "auto"
    clip: str | None = None
    sam: str | None = None
    precision: GraphPrecision = "fp32"
    input_size: int | tuple[int, int] | None = None
    architecture: Any = "surgery"
    rounds: int = 5
    """Rounds of timing; 0 for none."""
    say_stage: Callable[[str], None] = _log.info
    """Called with what is done next, which can take minutes."""


@dataclass(frozen=True, slots=True)
class Step:
    """All graphs in one precision, with their measurements. `folder` exists until the next step."""

    precision: GraphPrecision
    folder: Path
    graphs: tuple[Compared, ...]
    masks: Agreement
    scenes: int


def export(plan: Plan, scenes: Sequence[Scene]) -> Iterator[Step]:
    """Write the folder of graphs; yield each precision once it is measured, float32 first.

    Raises:
        SettingsError: a package is missing, or these models cannot be exported.
        CheckpointError: a graph differs from torch by more than its precision allows; nothing is written then.
        OutputError: the output exists and is not a folder of graphs to overwrite, or it cannot be written.
    """
    check_packages()
    _check_output(plan)
    settings = Settings(maps=MapSettings(input_size=plan.input_size, architecture=plan.architecture))
    plan.say_stage("loading the models")
    models = _load(plan, settings)
    models.clip.text.forget()
    input_hw = models.clip.input_hw(plan.input_size or models.input_size)
    networks = towers(models.clip, models.sam, input_hw, plan.architecture)
    plan.say_stage("segmenting with torch, to compare with")
    calls, results = record(models, scenes)
    work = resolve_path(plan.output).with_name(f".text2seg-{secrets.token_hex(8)}.tmp")
    try:
        folder = work / "fp32"
        make_folder(folder)
        for tower in networks:
            plan.say_stage(f"exporting {tower.name}")
            draw(tower, folder / f"{tower.name}.onnx")
        precisions: dict[GraphName, GraphPrecision] = dict.fromkeys(GRAPHS, "fp32")
        yield _measure(plan, models, folder, precisions, input_hw, calls, results, scenes)
        if plan.precision != "fp32":
            precisions |= dict.fromkeys(_converted(plan, models), plan.precision)
            folder = _convert(plan, folder, work / plan.precision, precisions)
            yield _measure(plan, models, folder, precisions, input_hw, calls, results, scenes)
        _check_output(plan)  # again, because somebody may have written to the folder meanwhile
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
    if plan.precision == "fp16" and not sam.architecture.of(sam.module.state_dict()).fp16_safe:
        _log.warning("this SAM's encoder overflows in fp16; its graph stays in fp32")
        return tuple(name for name in CONVERTED[plan.precision] if name != "sam_encoder")
    return CONVERTED[plan.precision]


def _convert(plan: Plan, source: Path, target: Path, precisions: dict[GraphName, GraphPrecision]) -> Path:
    make_folder(target)
    for name, precision in precisions.items():
        if precision == "fp32":
            for file in source.glob(f"{name}.onnx*"):
                copy_file(file, target / file.name)
        else:
            plan.say_stage(f"converting {name} to {precision}")
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
    """Compare every graph with torch, write the manifest, and run the pipeline from the folder."""
    compared = []
    for name in GRAPHS:
        plan.say_stage(f"comparing {name} in {precisions[name]} with torch")
        graph, graph_calls = Graph(folder / f"{name}.onnx", CPU), [call for call in calls if call.graph == name]
        if not graph_calls:
            raise SettingsError(
                f"{name} could not be checked because nothing was found in the images; give other images or queries"
            )
        size = sum(file.stat().st_size for file in folder.glob(f"{name}.onnx*"))
        found = Compared(name, precisions[name], size, error_of(graph, graph_calls), TOLERANCES[precisions[name]])
        if not found.error <= found.tolerance:
            raise CheckpointError(
                f"{name} in {found.precision} differs from torch by {found.error:.2g}, more than the allowed "
                f"{found.tolerance:g}; nothing was written. Try another precision"
            )
        time_both(found, graph, graph_calls, plan.rounds)
        compared.append(found)
    _manifest(models, folder, compared, plan, input_hw).write(folder)
    plan.say_stage("segmenting with the graphs")
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


def _check_output(plan: Plan) -> None:
    """Raise `OutputError` unless the output is new, empty, or, to overwrite, an export with no file changed or added
    since."""
    output = plan.output
    check_folder(output)
    if not is_dir(output, OutputError):
        return
    inside = [each for each in list_folder(output, OutputError) if not is_leftover(each)]
    if not inside:
        return
    if not is_file(output / FILE, OutputError):
        raise OutputError(f"{output} exists already and is not a folder of graphs; choose another name")
    hashes: dict[str, str] = {}
    with suppress(CheckpointError):  # an older version, or damaged: no file of the folder is known then
        manifest = read_manifest(output)
        hashes = {FILE: hashlib.sha256(manifest.text()).hexdigest(), **manifest.files}
    others = [
        each.name for each in inside if not is_file(each) or sha256_of(each, OutputError) != hashes.get(each.name)
    ]
    if others:
        raise OutputError(
            f"{output} contains files that text2seg did not write or that were changed since: {', '.join(others[:3])}; "
            "move the folder away, or choose another name"
        )
    if not plan.overwrite:
        raise OutputError(f"{output} already has an export; choose another --output, or add --overwrite to replace it")


def _put(folder: Path, output: Path) -> None:
    """Move the finished folder into place; delete an older export only after that."""
    target = resolve_path(output)
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


def bundled_scenes(count: int) -> list[Scene]:
    """Return the first bundled scenes, each with the names of objects in it as queries.

    Raises:
        SettingsError: this installation has no bundled scenes.
    """
    path = SCENES / "dataset.json"
    if not is_file(path, SettingsError):
        raise SettingsError("the bundled scenes are not installed; give your own with --images FOLDER and --queries")
    dataset = json.loads(path.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    scenes = []
    for entry in dataset["images"][:count]:
        objects = [names[each["category_id"]] for each in dataset["annotations"] if each["image_id"] == entry["id"]]
        image = load_image(SCENES / entry["file_name"])
        scenes.append(Scene(image, tuple(dict.fromkeys(objects))[:MOST_WORDS]))
    return scenes


def record(models: Text2Seg, scenes: Sequence[Scene]) -> tuple[list[Call], list[Segmentation]]:
    """Segment the scenes; return the pipeline's calls of its networks, and its results.

    The first scene is also segmented with rough masks as prompts, for the calls of the decoder with masks.
    """
    calls: list[Call] = []
    with _recording(models, calls):
        results = [models.segment(scene.image, scene.queries) for scene in scenes]
        count = len(calls)
        masks = replace(models.settings.masks, prompt="box-mask")
        masked: Settings = replace(models.settings, masks=masks)
        models.segment(scenes[0].image, scenes[0].queries, masked)
    return calls[:count] + [call for call in calls[count:] if call.graph == "sam_decoder_masked"], results


@contextmanager
def _recording(models: Text2Seg, calls: list[Call]) -> Iterator[None]:
    """Append every call of the models' networks to `calls`."""
    clip, sam = models.clip, models.sam
    places: list[tuple[Any, str, GraphName]] = [
        (clip, "image_network", "clip_image"),
        (clip.text, "network", "clip_text"),
        (sam, "encoder_network", "sam_encoder"),
        (sam, "decoder_network", "sam_decoder"),
    ]
    functions = [getattr(owner, attribute) for owner, attribute, _ in places]
    for (owner, attribute, name), function in zip(places, functions, strict=True):
        setattr(owner, attribute, _recorded(name, function, calls))
    try:
        yield
    finally:
        for (owner, attribute, _), function in zip(places, functions, strict=True):
            setattr(owner, attribute, function)


def _recorded(name: GraphName, function: Callable[..., Any], calls: list[Call]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        result = function(*args)
        inputs = tuple(each.clone() for each in args if isinstance(each, torch.Tensor))
        outputs = result if isinstance(result, tuple) else (result,)
        graph: GraphName = "sam_decoder_masked" if name == "sam_decoder" and len(inputs) > 4 else name
        calls.append(Call(graph, inputs, tuple(each.clone() for each in outputs), lambda: function(*args)))
        return result

    return call
