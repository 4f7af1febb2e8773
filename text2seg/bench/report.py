"""What was measured, as tables, JSON and an image."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from text2seg._version import __version__
from text2seg.bench.run import STAGES, Measured
from text2seg.io.files import write_atomically

HEADINGS = (
    *("flow", "s/image", "spread", "ratio", *STAGES, "rest"),
    *("MFU", "peak GB", "embedding error", "mask IoU", "flipped"),
)
_COLOURS = ("#1f5fa8", "#7fb2e5", "#d95f02", "#b8b8b8")  # text, maps, encoder, decoder
_REST = "#e6e6e6"


def title(case: Sequence[Measured]) -> str:
    """What the rows of one case have in common."""
    first, rounds = case[0], len(case[0].seconds)
    return f"{first.model}, {first.queries} queries, {first.size}, {rounds} round{'s' * (rounds > 1)}"


def rows(case: Sequence[Measured]) -> list[list[str]]:
    """One row a flow, in the order of `HEADINGS`; the ratio is the first flow's time by this one's."""
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
        f"{each.mfu:.0%}",
        f"{each.peak_bytes / 1e9:.2f}",
        *(
            "–" if value is None else format(value, form)
            for value, form in ((each.embedding_error, ".1e"), (each.mask_iou, ".4f"), (each.flipped, ".3%"))
        ),
    ]


def machine() -> dict[str, object]:
    """What the numbers are of."""
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
    """The rows as a table for a document."""
    lines = [f"**{title(case)}**", "", "| " + " | ".join(HEADINGS) + " |", "|---|" + "--:|" * (len(HEADINGS) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows(case)), ""])


def write_json(cases: Sequence[Sequence[Measured]], path: Path) -> Path:
    """All numbers of all rounds. Raises `OutputError` where the file cannot be written."""
    content = {
        "machine": machine(),
        "results": [{**asdict(each), "mfu": each.mfu} for case in cases for each in case],
    }
    return write_atomically(path, [json.dumps(content, indent=1).encode()])


def plot(cases: Sequence[Sequence[Measured]], path: Path) -> Path:
    """Seconds for one image by stage, a bar for each flow, a panel for each case, as PNG. Raises `OutputError`."""
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
