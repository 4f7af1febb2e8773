"""Flows side by side: the same weights, images and words, one after the other in every round, so that what else the
machine does meets all of them."""

from __future__ import annotations

import gc
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from text2seg.bench.flops import encoder_flops, peak_flops
from text2seg.bench.flows import Flow, FlowName, make_flow
from text2seg.bench.material import SIZES_HW, Model, Size, weights_of, words, write_images
from text2seg.bench.stock import Original
from text2seg.bench.stopwatch import PeakMemory, wait
from text2seg.errors import SettingsError
from text2seg.grids import iou
from text2seg.io.images import load_image
from text2seg.runtime import FULL, Precision, choose_device, choose_precision
from text2seg.sam.build import SamShape

STAGES = ("text", "maps", "encoder", "decoder")
CLIP_SIZE = {"demo": 384}
PUBLISHED_CLIP_SIZE = 512
COMPARED = 8  # masks of each flow that are compared with float32's

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. Rounds stop when `minutes` are over, but each case has one."""

    models: tuple[Model, ...]
    sizes: tuple[Size, ...]
    queries: tuple[int, ...]
    flows: tuple[FlowName, ...]
    rounds: int
    images: int
    batch: int
    minutes: float
    device: str = "auto"


@dataclass(slots=True)
class Measured:
    """One flow in one case. Times in seconds for one image, a list entry each round; `stages` likewise by stage.

    `peak_bytes` is the highest use of memory in any round. `embedding_error` is relative to float32 stock;
    `mask_iou` and `flipped`, the share of pixels, are means over masks from the same points as float32 stock's.
    """

    model: Model
    size: Size
    queries: int
    flow: FlowName
    precision: str
    seconds: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int = 0
    warm_up_seconds: float = 0.0
    encoder_flops: float = 0.0
    peak_flops: float = 0.0
    embedding_error: float | None = None
    mask_iou: float | None = None
    flipped: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def mfu(self) -> float:
        """The share of the machine's peak that the encoder's useful operations come to."""
        return self.encoder_flops / statistics.median(self.stages["encoder"]) / self.peak_flops


def run(plan: Plan) -> Iterator[list[Measured]]:
    """The flows of one case after the other, as soon as it is done.

    Raises:
        SettingsError: the device is not there, or something was compiled again after the warm-up.
    """
    device = choose_device(plan.device)
    fast = choose_precision(device)
    peaks = {each.dtype: peak_flops(device, each.dtype) for each in (FULL, fast)}
    cases = [(model, size, queries) for model in plan.models for size in plan.sizes for queries in plan.queries]
    for model in plan.models:
        clip, sam = weights_of(model)
        flows = _flows(plan, model, clip, sam, device, fast)
        for size, queries in [(size, queries) for each, size, queries in cases if each == model]:
            results = {name: Measured(model, size, queries, name, _precision(name, fast).name) for name in flows}
            for result in results.values():
                result.encoder_flops = encoder_flops(SamShape.of(sam))
                result.peak_flops = peaks[_precision(result.flow, fast).dtype]
            _measure(plan, flows, results, device, 60 * plan.minutes / len(cases))
            yield list(results.values())
        del flows
        gc.collect()
        torch.compiler.reset()


def _precision(name: FlowName, fast: Precision) -> Precision:
    return FULL if name == "stock" else fast


def _flows(
    plan: Plan,
    model: Model,
    clip: Mapping[str, torch.Tensor],
    sam: Mapping[str, torch.Tensor],
    device: torch.device,
    fast: Precision,
) -> dict[FlowName, Flow]:
    """The flows that can run here; what cannot is left out and said."""
    flows: dict[FlowName, Flow] = {}
    for name in plan.flows:
        try:
            size = CLIP_SIZE.get(model, PUBLISHED_CLIP_SIZE)
            flow = make_flow(name, clip, sam, device, fast, size, batch=plan.batch)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                write_images(Path(folder) / "images", SIZES_HW["small"], plan.batch)
                began = time.perf_counter()
                flow.label(Path(folder) / "images", words(1), Path(folder) / "dataset.json")
                wait(device)
            flow.watch.read()
            _log.info("%s, %s: warmed up in %.1f s", model, name, time.perf_counter() - began)
            flows[name] = flow
        except (SettingsError, torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            _log.warning("%s is left out: %s", name, str(error).strip().splitlines()[0])
    return flows


def _measure(
    plan: Plan, flows: Mapping[FlowName, Flow], results: Mapping[FlowName, Measured], device: torch.device, most: float
) -> None:
    """Rounds over all flows, then how true they are."""
    case = next(iter(results.values()))
    hw, queries = SIZES_HW[case.size], words(case.queries)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = Path(made) / "images"
        write_images(folder, hw, plan.images)
        began, graphs = time.perf_counter(), _graphs()
        for done in range(plan.rounds):
            if done and (time.perf_counter() - began) * (done + 1) / done > most:
                break
            for name, flow in flows.items():
                _one_round(flow, results[name], folder, queries, plan.images, device)
        if _graphs() != graphs:
            raise SettingsError("something was compiled again after the warm-up, so its times would mean nothing")
        _compare(flows, results, sorted(folder.iterdir())[-1], queries)


def _one_round(
    flow: Flow, result: Measured, folder: Path, queries: tuple[str, ...], images: int, device: torch.device
) -> None:
    gc.collect()
    memory = PeakMemory(device)
    began = time.perf_counter()
    flow.label(folder, queries, folder.parent / "dataset.json")
    wait(device)
    result.seconds.append((time.perf_counter() - began) / images)
    result.peak_bytes = max(result.peak_bytes, memory.read())
    stages = flow.watch.read()
    for stage in STAGES:
        result.stages.setdefault(stage, []).append(stages.get(stage, 0.0) / images)


def _compare(
    flows: Mapping[FlowName, Flow], results: Mapping[FlowName, Measured], path: Path, queries: Sequence[str]
) -> None:
    """Embeddings and masks of the last image with those of float32 stock, from that one's points."""
    exact = flows.get("stock")
    if not isinstance(exact, Original):
        return
    image = load_image(path)
    points = exact.points(image, tuple(queries[:COMPARED]))
    exact.watch.read()
    wanted, features = [exact.mask(each, image.hw) for each in points], exact.features()
    for name, flow in flows.items():
        masks = [flow.mask(each, image.hw) for each in points]
        flow.watch.read()
        pairs = list(zip(masks, wanted, strict=True))
        results[name].embedding_error = float((flow.features() - features).norm() / features.norm())
        results[name].mask_iou = float(np.mean([iou(mask, other) for mask, other in pairs]))
        results[name].flipped = float(np.mean([(mask != other).mean() for mask, other in pairs]))


def _graphs() -> int:
    """How many graphs torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
