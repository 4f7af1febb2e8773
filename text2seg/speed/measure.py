"""Measure flows side by side and report the numbers as tables, JSON and a plot.

The flows take turns in every round, so that other work on the machine affects all of them.
"""

from __future__ import annotations

import gc
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from text2seg._version import __version__
from text2seg.errors import SettingsError
from text2seg.grids import iou
from text2seg.io.images import load_image
from text2seg.io.names import counted
from text2seg.io.writing import write_atomically
from text2seg.runtime import FULL, Precision, choose_device, choose_precision
from text2seg.sam.sam import SamShape
from text2seg.speed.flows import (
    SIZES_HW,
    Flow,
    FlowName,
    Model,
    Original,
    Size,
    clip_size,
    make_flow,
    weights_of,
    words,
    write_images,
)
from text2seg.speed.meters import PeakMemory, encoder_flops, peak_flops, wait

STAGES = ("text", "maps", "encoder", "decoder")
COMPARED = 8  # number of queries whose masks are compared with those of float32 stock

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. No round starts after `minutes`, except the first of each case."""

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
    """Measurements of one flow in one case.

    `seconds` are for one image, with an entry for each round; `stages` has the same for each stage. `peak_bytes` is the
    highest memory use of all rounds. `flops` are the operations of each stage for one image, for the encoder those that
    it needs. `embedding_error` is relative to float32 stock. `mask_iou` and `flipped`, the share of differing pixels,
    compare masks with those of float32 stock from the same points; means over all masks.
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
    flops: dict[str, float] = field(default_factory=dict)
    peak_flops: float = 0.0
    embedding_error: float | None = None
    mask_iou: float | None = None
    flipped: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def mfu(self) -> dict[str, float]:
        """Model FLOPs utilisation: operations per second of each stage that computes, as a share of the machine's
        peak."""
        seconds = {stage: statistics.median(values) for stage, values in self.stages.items()}
        return {
            stage: flops / seconds[stage] / self.peak_flops for stage, flops in self.flops.items() if seconds[stage]
        }


def run(plan: Plan, report: Callable[[str], object] = lambda text: None) -> Iterator[list[Measured]]:
    """Measure all cases; yield the measurements of all flows as soon as a case is done.

    Args:
        report: called with what is measured next, for each flow of each round.

    Raises:
        SettingsError: the device is not available, or something was compiled again after the warm-up.
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
                result.peak_flops = peaks[_precision(result.flow, fast).dtype]
            _measure(plan, flows, results, device, 60 * plan.minutes / len(cases), report)
            for result in results.values():
                result.flops["encoder"] = encoder_flops(SamShape.of(sam))
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
    """Make and warm up the flows. Flows that cannot run on this machine are left out with a warning."""
    flows: dict[FlowName, Flow] = {}
    for name in plan.flows:
        try:
            size = clip_size(model)
            flow = make_flow(name, clip, sam, device, fast, size, batch=plan.batch)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                write_images(Path(folder) / "images", SIZES_HW["small"], plan.batch)
                start = time.perf_counter()
                flow.label(Path(folder) / "images", words(1), Path(folder) / "dataset.json")
                wait(device)
            flow.watch.read()
            _log.info("%s, %s: warmed up in %.1f s", model, name, time.perf_counter() - start)
            flows[name] = flow
        except (SettingsError, torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            _log.warning("%s is left out: %s", name, str(error).strip().splitlines()[0])
    return flows


def _measure(
    plan: Plan,
    flows: Mapping[FlowName, Flow],
    results: Mapping[FlowName, Measured],
    device: torch.device,
    max_seconds: float,
    report: Callable[[str], object],
) -> None:
    """Measure one case: rounds over all flows, then their accuracy. No round starts if it would end after
    `max_seconds`, except the first."""
    case = next(iter(results.values()))
    hw, queries = SIZES_HW[case.size], words(case.queries)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "images"
        write_images(folder, hw, plan.images)
        start, graphs = time.perf_counter(), _graphs()
        for done in range(plan.rounds):
            if done and (time.perf_counter() - start) * (done + 1) / done > max_seconds:
                break
            for name, flow in flows.items():
                report(f"{case.model}, {case.size}, {counted(case.queries, 'word')}: {name}")
                _one_round(flow, results[name], folder, queries, plan.images, device)
        if _graphs() != graphs:
            raise SettingsError("something was compiled again after the warm-up, so the times are not valid")
        _compare(flows, results, sorted(folder.iterdir())[-1], queries)
        _count(flows, results, folder, queries, plan.images)


def _one_round(
    flow: Flow, result: Measured, folder: Path, queries: tuple[str, ...], images: int, device: torch.device
) -> None:
    gc.collect()
    memory = PeakMemory(device)
    start = time.perf_counter()
    flow.label(folder, queries, folder.parent / "dataset.json")
    wait(device)
    result.seconds.append((time.perf_counter() - start) / images)
    result.peak_bytes = max(result.peak_bytes, memory.read())
    stages = flow.watch.read()
    for stage in STAGES:
        result.stages.setdefault(stage, []).append(stages.get(stage, 0.0) / images)


def _count(
    flows: Mapping[FlowName, Flow],
    results: Mapping[FlowName, Measured],
    folder: Path,
    queries: tuple[str, ...],
    images: int,
) -> None:
    """Count the operations of each stage, once for the original flow and once for text2seg: compiled flows, which
    cannot be counted, do the same."""
    counted: dict[bool, dict[str, float]] = {}
    for name, flow in flows.items():
        ours = name.startswith("ours")
        if ours not in counted and not name.endswith("compiled"):
            found = flow.watch.count(partial(flow.label, folder, queries, folder.parent / "dataset.json"))
            counted[ours] = {stage: flops / images for stage, flops in found.items()}
    for name, result in results.items():
        result.flops = dict(counted.get(name.startswith("ours"), {}))


def _compare(
    flows: Mapping[FlowName, Flow], results: Mapping[FlowName, Measured], path: Path, queries: Sequence[str]
) -> None:
    """Compare embeddings and masks of the last image with those of float32 stock. All masks are from stock's points."""
    exact = flows.get("stock")
    if not isinstance(exact, Original):
        return
    image = load_image(path)
    points = exact.points(image, tuple(queries[:COMPARED]))
    exact.watch.read()
    exact_masks, features = [exact.mask(each, image.hw) for each in points], exact.features()
    for name, flow in flows.items():
        masks = [flow.mask(each, image.hw) for each in points]
        flow.watch.read()
        pairs = list(zip(masks, exact_masks, strict=True))
        results[name].embedding_error = float((flow.features() - features).norm() / features.norm())
        results[name].mask_iou = float(np.mean([iou(mask, other) for mask, other in pairs]))
        results[name].flipped = float(np.mean([(mask != other).mean() for mask, other in pairs]))


def _graphs() -> int:
    """Return the number of graphs that torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


HEADINGS = (
    *("flow", "s/image", "spread", "ratio", *STAGES, "rest"),
    *("MFU, %", "peak GB", "embedding error", "mask IoU", "flipped"),
)
_COLOURS = ("#1f5fa8", "#7fb2e5", "#d95f02", "#b8b8b8")  # text, maps, encoder, decoder
_REST = "#e6e6e6"


def title(case: Sequence[Measured]) -> str:
    """Return the title of a case: model, number of queries, image size and rounds."""
    first, rounds = case[0], len(case[0].seconds)
    return f"{first.model}, {first.queries} queries, {first.size}, {counted(rounds, 'round')}"


def rows(case: Sequence[Measured]) -> list[list[str]]:
    """Return one row per flow, in the order of `HEADINGS`. The ratio is the first flow's time divided by this one's."""
    return [_row(each, case[0]) for each in case]


def _row(each: Measured, first: Measured) -> list[str]:
    stages = [statistics.median(each.stages[stage]) for stage in STAGES]
    rest = max(each.median - sum(stages), 0.0)
    return [
        f"{each.flow} ({each.precision})",
        f"{each.median:.3g}",
        f"{min(each.seconds):.3g}–{max(each.seconds):.3g}",
        f"{first.median / each.median:.2f}×",
        *(f"{seconds:.3g}" for seconds in (*stages, rest)),
        " / ".join(f"{100 * each.mfu[stage]:.0f}" if stage in each.mfu else "–" for stage in STAGES),
        f"{each.peak_bytes / 1e9:.2f}",
        *(
            "–" if value is None else format(value, form)
            for value, form in ((each.embedding_error, ".1e"), (each.mask_iou, ".4f"), (each.flipped, ".3%"))
        ),
    ]


def machine() -> dict[str, object]:
    """Return the versions and the hardware, to be stored with the numbers."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "text2seg": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def markdown(case: Sequence[Measured]) -> str:
    """Return a case as a Markdown table with its title."""
    lines = [f"**{title(case)}**", "", "| " + " | ".join(HEADINGS) + " |", "|---|" + "--:|" * (len(HEADINGS) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows(case)), ""])


def write_json(cases: Sequence[Sequence[Measured]], path: Path) -> Path:
    """Write all numbers of all rounds. Raises `OutputError` if the file cannot be written."""
    content = {
        "machine": machine(),
        "results": [{**asdict(each), "mfu": each.mfu} for case in cases for each in case],
    }
    return write_atomically(path, [json.dumps(content, indent=1).encode()])


def plot(cases: Sequence[Sequence[Measured]], path: Path) -> Path:
    """Draw the seconds for one image by stage, with a panel per case and a bar per flow, and write a PNG.

    Raises `OutputError` if the file cannot be written.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.9 + sum(0.62 + 0.34 * len(case) for case in cases)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=[len(case) + 1 for case in cases])
    for panel, case in zip(panels.flat, cases, strict=True):
        names = [f"{each.flow} ({each.precision})" for each in case]
        left = [0.0] * len(case)
        for stage, colour in zip((*STAGES, "rest"), (*_COLOURS, _REST), strict=True):
            widths = [_width(each, stage) for each in case]
            panel.barh(names, widths, left=left, color=colour, label=stage, height=0.7)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, (each, end) in enumerate(zip(case, left, strict=True)):
            panel.text(end, place, f"  {end:.3g} s, {case[0].median / each.median:.1f}×", va="center", fontsize=8)
        panel.invert_yaxis()
        panel.margins(x=0.16)
        panel.set_title(title(case), fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels.flat[-1].set_xlabel("seconds for one image, from the file to the COCO file", fontsize=8)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper right", ncols=5, fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return write_atomically(path, [image.getvalue()])


def _width(each: Measured, stage: str) -> float:
    if stage == "rest":
        return max(each.median - sum(statistics.median(each.stages[other]) for other in STAGES), 0.0)
    return statistics.median(each.stages[stage])
