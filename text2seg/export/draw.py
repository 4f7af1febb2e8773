"""Networks drawn as ONNX graphs, and the same graphs in fewer bits.

Source: the documentation of torch.onnx (the exporter on torch.export) and of ONNX Runtime (float16 and quantization).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from text2seg.errors import SettingsError
from text2seg.export.towers import Tower
from text2seg.graphs.manifest import GraphPrecision, TensorSpec

OPSET = 18
LARGEST_FILE = 1_500_000_000  # bytes of weights; beyond it they lie in a file beside the graph, as ONNX ends at 2 GB
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raise `SettingsError` where a package that export needs is not installed."""
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise SettingsError(f'export needs {", ".join(missing)}, which is not installed: pip install "text2seg[onnx]"')


def draw(tower: Tower, path: Path) -> None:
    """Write the network as a graph in float32, its free sides named."""
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
    if program is None:  # only the older exporter gives nothing
        raise SettingsError(f"this torch ({torch.__version__}) cannot export; install torch 2.6 or newer")
    model = program.model_proto
    _name_sides(model, tower)
    save(model, path)


def _name_sides(model: Any, tower: Tower) -> None:
    """The exporter calls free sides s0, s1, …; ours have names, and the fixed ones their numbers."""
    free_sides = [*(free for _, free in tower.inputs.values()), *tower.outputs.values()]
    for value, free in zip([*model.graph.input, *model.graph.output], free_sides, strict=True):
        for axis, side in enumerate(value.type.tensor_type.shape.dim):
            if axis in free:
                side.dim_param = free[axis]
    del model.graph.value_info[:]  # they speak of the old names, and nobody needs them


def save(model: Any, path: Path) -> None:
    """Write an ONNX model; large weights go into a file beside it."""
    import onnx

    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_FILE
    onnx.save_model(
        model, str(path), save_as_external_data=large, all_tensors_to_one_file=True, location=f"{path.name}.data"
    )


def convert(source: Path, target: Path, precision: GraphPrecision) -> None:
    """Write a float32 graph in another precision; its inputs and outputs stay float32.

    fp16: all weights and nearly all arithmetic. int8: weights of matrix products, a scale for each output channel;
    activations are quantised as they come (dynamically), with a scale for each tensor. The rest stays float32.
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
            quantize_dynamic(
                str(source),
                str(target),
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=large,
                extra_options={"MatMulConstBOnly": True},
            )
        else:
            raise ValueError(f"a graph is drawn in fp32, not converted to {precision}")


def describe(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and the outputs of a graph, as its file tells."""
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
    """The exporter and the quantiser tell their own makers' news, on the root logger too."""
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
