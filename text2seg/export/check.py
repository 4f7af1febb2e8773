"""Graphs against torch: how far apart what they make of the same inputs is, how long both take, and whether the masks
at the end are the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from text2seg.errors import CheckpointError
from text2seg.export.scenes import Call
from text2seg.graphs.manifest import GraphName, GraphPrecision
from text2seg.graphs.networks import Graph
from text2seg.grids import iou
from text2seg.records import Segmentation

TOLERANCES: dict[GraphPrecision, float] = {"fp32": 1e-4, "fp16": 3e-2, "int8": 3e-1}
"""The largest difference from torch in float32 that a graph may have, by the largest value."""


@dataclass(slots=True)
class Compared:
    """One graph beside torch's network. Seconds for all calls that the scenes make of it, an entry each round."""

    name: GraphName
    precision: GraphPrecision
    bytes: int
    error: float
    tolerance: float
    torch_seconds: list[float] = field(default_factory=list)
    onnx_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The masks of the whole pipeline beside torch's, of each scene and query the union of its segments.

    `ious` has one entry for every scene and query that either finds. `lost` and `added` are queries that only torch
    finds, only the graphs find; their IoU is 0.
    """

    ious: tuple[float, ...]
    lost: int
    added: int
    segments: tuple[int, int]
    """How many, of torch and of the graphs."""


def error_of(graph: Graph, calls: Sequence[Call]) -> float:
    """The largest difference from torch over all calls and outputs, by the largest value of that output."""
    worst = 0.0
    for call in calls:
        for found, wanted in zip(graph(*call.inputs), call.outputs, strict=True):
            if found.shape != wanted.shape:
                raise CheckpointError(
                    f"{call.graph} gives {tuple(found.shape)} where torch gives {tuple(wanted.shape)}"
                )
            apart = float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1e-12))
            worst = max(worst, apart if np.isfinite(apart) else np.inf)
    return worst


@torch.inference_mode()
def time_both(compared: Compared, graph: Graph, calls: Sequence[Call], rounds: int) -> None:
    """Run torch and the graph in turns, so that what else the machine does meets both; a first run of each is not
    counted."""
    for done in range(rounds + 1):
        theirs = _seconds(lambda call: call.torch(), calls)
        ours = _seconds(lambda call: graph(*call.inputs), calls)
        if done:
            compared.torch_seconds.append(theirs)
            compared.onnx_seconds.append(ours)


def _seconds(run: Callable[[Call], Any], calls: Sequence[Call]) -> float:
    began = time.perf_counter()
    for call in calls:
        run(call)
    return time.perf_counter() - began


def agreement(torch_results: Sequence[Segmentation], onnx_results: Sequence[Segmentation]) -> Agreement:
    """Compare results of the same scenes and queries."""
    ious, lost, added = [], 0, 0
    for theirs, ours in zip(torch_results, onnx_results, strict=True):
        wanted, found = _unions(theirs), _unions(ours)
        nothing = np.zeros(theirs.image.hw, bool)
        for query in wanted.keys() | found.keys():
            ious.append(iou(wanted.get(query, nothing), found.get(query, nothing)))
        lost += len(wanted.keys() - found.keys())
        added += len(found.keys() - wanted.keys())
    counts = sum(len(each.segments) for each in torch_results), sum(len(each.segments) for each in onnx_results)
    return Agreement(tuple(ious), lost, added, counts)


def _unions(result: Segmentation) -> dict[str, Any]:
    unions: dict[str, Any] = {}
    for segment in result.segments:
        unions[segment.query] = unions.get(segment.query, False) | segment.mask
    return unions
