"""Export of the networks as ONNX graphs, conversion of the graphs to fp16 and int8, and comparison with torch."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from text2seg.clip.model import Clip
from text2seg.errors import CheckpointError, SettingsError
from text2seg.grids import iou
from text2seg.onnx.networks import Graph, GraphName, GraphPrecision, TensorSpec
from text2seg.records import Segmentation
from text2seg.sam.base import AnySam
from text2seg.sam.decoder import FILLING, NOT_A_POINT, POSITIVE, decode
from text2seg.sam.sam import Sam

Free = dict[int, str]
"""Dynamic axes of a tensor, each with its name."""

BATCH: Free = {0: "batch"}


class Network(nn.Module):
    """Function of tensors as a module, with the parameters of another module."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor | tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.module, self._function = module, function

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self._function(*tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Tower:
    """One network to export: inputs with an example and dynamic axes each, and outputs with dynamic axes."""

    name: GraphName
    network: nn.Module
    inputs: dict[str, tuple[Tensor, Free]]
    outputs: dict[str, Free]


def towers(clip: Clip, sam: AnySam, input_hw: tuple[int, int], architecture: str) -> list[Tower]:
    """Return the networks of these models, in float32 on the CPU.

    Raises:
        SettingsError: SAM is a SAM 2, CLIP's modules differ from OpenAI's, or CLIP does not support the attention rule.
    """
    if not isinstance(sam, Sam):
        raise SettingsError("only SAM and MobileSAM can be exported, not SAM 2")
    clip.check(architecture)
    # Dynamic axes of the examples have sizes above 1 that differ, or the exporter would take them for constants.
    pixels = torch.zeros(2, 3, *input_hw, dtype=torch.float32, device="cpu")
    image = Tower(
        "clip_image",
        Network(clip.model.visual, lambda x: clip.image_network(x, architecture)),
        {"pixels": (pixels, BATCH)},
        {"features": BATCH},
    )
    tokens = torch.arange(15, device="cpu").reshape(3, 5)
    text = Tower(
        "clip_text",
        Network(clip.model, clip.text.network),
        {"tokens": (tokens, {0: "batch", 1: "length"})},
        {"features": BATCH},
    )
    return [image, text, _sam_encoder(sam), _sam_decoder(sam, masked=False), _sam_decoder(sam, masked=True)]


def _sam_encoder(sam: Sam) -> Tower:
    side = sam.module.image_encoder.img_size
    pixels = torch.zeros(2, 3, side, side, dtype=torch.float32, device="cpu")
    return Tower(
        "sam_encoder",
        Network(sam.module.image_encoder, sam.encoder_network),
        {"pixels": (pixels, BATCH)},
        {"features": BATCH},
    )


def _sam_decoder(sam: Sam, *, masked: bool) -> Tower:
    """Return the decoder, with any number of images, point sets and points per set; see `sam.decoder.decode`."""
    prompts = sam.module.prompt_encoder
    labels = torch.full((3, 5), POSITIVE, dtype=torch.int64, device="cpu")
    labels[:, 3], labels[:, 4] = NOT_A_POINT, FILLING
    sets: Free = {0: "sets"}
    inputs: dict[str, tuple[Tensor, Free]] = {
        "embeddings": (
            torch.zeros(2, prompts.embed_dim, *prompts.image_embedding_size, dtype=torch.float32, device="cpu"),
            {0: "images"},
        ),
        "image_index": (torch.tensor([0, 1, 1], dtype=torch.int64, device="cpu"), sets),
        "points_xy": (torch.zeros(3, 5, 2, dtype=torch.float32, device="cpu"), {0: "sets", 1: "points"}),
        "labels": (labels, {0: "sets", 1: "points"}),
    }
    if masked:
        inputs["masks"] = (torch.zeros(3, 1, *prompts.mask_input_size, dtype=torch.float32, device="cpu"), sets)
    name: GraphName = "sam_decoder_masked" if masked else "sam_decoder"
    network = Network(sam.module, partial(decode, sam.module, filled=True))
    return Tower(name, network, inputs, {"logits": sets, "scores": sets})


OPSET = 18
LARGEST_FILE = 1_500_000_000  # bytes; larger weights get a file of their own, because an ONNX file may not exceed 2 GB
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raise `SettingsError` if a package that the export needs is not installed."""
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise SettingsError(f'export needs {", ".join(missing)}, which is not installed: pip install "text2seg[onnx]"')


def draw(tower: Tower, path: Path) -> None:
    """Write the network as a graph in float32, with names for its dynamic axes."""
    examples = tuple(example for example, _ in tower.inputs.values())
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(free, dynamic) for _, free in tower.inputs.values())
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            tower.network.eval(),
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(tower.inputs),
            output_names=list(tower.outputs),
            dynamic_shapes=(shapes,),  # one entry for `*tensors`
            verbose=False,
        )
    if program is None:  # only the older exporter returns None
        raise SettingsError(f"this torch ({torch.__version__}) cannot export; install torch 2.6 or newer")
    model = program.model_proto
    _name_sides(model, tower)
    save(model, path)


def _name_sides(model: Any, tower: Tower) -> None:
    """Rename the dynamic axes, which the exporter calls s0, s1, …"""
    free_sides = [*(free for _, free in tower.inputs.values()), *tower.outputs.values()]
    for value, free in zip([*model.graph.input, *model.graph.output], free_sides, strict=True):
        for axis, side in enumerate(value.type.tensor_type.shape.dim):
            if axis in free:
                side.dim_param = free[axis]
    del model.graph.value_info[:]  # it has the old names, and nothing reads it


def save(model: Any, path: Path) -> None:
    """Write an ONNX model, with large weights in a separate file next to it."""
    import onnx

    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_FILE
    onnx.save_model(
        model, str(path), save_as_external_data=large, all_tensors_to_one_file=True, location=f"{path.name}.data"
    )


def convert(source: Path, target: Path, precision: GraphPrecision) -> None:
    """Write a float32 graph in another precision; its inputs and outputs stay float32.

    fp16: all weights and nearly all arithmetic. int8: weights of matrix products, with one scale per output channel;
    activations are quantised dynamically, with one scale per tensor. The rest stays float32.
    """
    with _quiet():
        if precision == "fp16":
            import onnx
            from onnxruntime.transformers.float16 import convert_float_to_float16

            model = onnx.load(str(source))
            save(convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True), target)
        elif precision == "int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            large = source.with_name(f"{source.name}.data").exists()
            # 7-bit weights: x86 processors without VNNI add two products in 16 bits, and 8-bit weights would overflow.
            quantize_dynamic(
                str(source),
                str(target),
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=large,
                extra_options={"MatMulConstBOnly": True},
            )
        else:
            raise ValueError(f"a graph cannot be converted to {precision}, only to fp16 or int8")


def describe(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Read the inputs and the outputs of a graph from its file."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return tuple(map(_spec, graph.input)), tuple(map(_spec, graph.output))


def _spec(value: Any) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    sides = tuple(side.dim_param or int(side.dim_value) for side in tensor.shape.dim)
    return TensorSpec(value.name, dtype, sides)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter and the quantiser, whose messages do not help users; some go to the root logger."""
    root = logging.getLogger()
    level = root.level
    noisy = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [logger.level for logger in noisy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)
            for logger, before in zip(noisy, levels, strict=True):
                logger.setLevel(before)


# ---- comparison of exported graphs with torch: error on the same inputs, time, and masks


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a network by the pipeline: the inputs, and the outputs of torch."""

    graph: GraphName
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    torch: Callable[[], Any]
    """Repeats the call."""


TOLERANCES: dict[GraphPrecision, float] = {"fp32": 1e-4, "fp16": 3e-2, "int8": 3e-1}
"""Largest difference that a graph may have from torch in float32, as a share of the largest value."""


@dataclass(slots=True)
class Compared:
    """One graph compared with torch's network. Seconds are for all calls of the scenes, one entry per round."""

    name: GraphName
    precision: GraphPrecision
    bytes: int
    error: float
    tolerance: float
    torch_seconds: list[float] = field(default_factory=list)
    onnx_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Masks of the pipeline with graphs compared with torch's. The mask of a scene and query is the union of segments.

    `ious` has one entry for every scene and query that either finds. `lost` counts the queries that only torch finds,
    `added` those that only the graphs find; their IoU is 0.
    """

    ious: tuple[float, ...]
    lost: int
    added: int
    segments: tuple[int, int]
    """Number of segments with torch, and with the graphs."""


def error_of(graph: Graph, calls: Sequence[Call]) -> float:
    """Return the largest difference from torch over all calls and outputs, as a share of the output's largest value.

    Raises `CheckpointError` if an output has another shape than torch's.
    """
    worst = 0.0
    for call in calls:
        for found, expected in zip(graph(*call.inputs), call.outputs, strict=True):
            if found.shape != expected.shape:
                raise CheckpointError(
                    f"{call.graph} returns the shape {tuple(found.shape)}, but torch returns {tuple(expected.shape)}"
                )
            scale = expected.double().abs().max().clamp(min=1e-12)
            error = float((found.double() - expected.double()).abs().max() / scale)
            worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


@torch.inference_mode()
def time_both(compared: Compared, graph: Graph, calls: Sequence[Call], rounds: int) -> None:
    """Time torch and the graph in turns, so that other load on the machine affects both. The first run of each is a
    warm-up and is not counted."""
    for number in range(rounds + 1):
        torch_seconds = _seconds(lambda call: call.torch(), calls)
        onnx_seconds = _seconds(lambda call: graph(*call.inputs), calls)
        if number:
            compared.torch_seconds.append(torch_seconds)
            compared.onnx_seconds.append(onnx_seconds)


def _seconds(run: Callable[[Call], Any], calls: Sequence[Call]) -> float:
    start = time.perf_counter()
    for call in calls:
        run(call)
    return time.perf_counter() - start


def agreement(torch_results: Sequence[Segmentation], onnx_results: Sequence[Segmentation]) -> Agreement:
    """Compare results of the same scenes and queries."""
    ious, lost, added = [], 0, 0
    for torch_result, onnx_result in zip(torch_results, onnx_results, strict=True):
        expected, found = _unions(torch_result), _unions(onnx_result)
        empty = np.zeros(torch_result.image.hw, bool)
        for query in expected.keys() | found.keys():
            ious.append(iou(expected.get(query, empty), found.get(query, empty)))
        lost += len(expected.keys() - found.keys())
        added += len(found.keys() - expected.keys())
    counts = sum(len(each.segments) for each in torch_results), sum(len(each.segments) for each in onnx_results)
    return Agreement(tuple(ious), lost, added, counts)


def _unions(result: Segmentation) -> dict[str, Any]:
    """Return the union of the masks of each query, bool [H, W]."""
    unions: dict[str, Any] = {}
    for segment in result.segments:
        unions[segment.query] = unions.get(segment.query, False) | segment.mask
    return unions
