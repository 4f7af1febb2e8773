"""Networks written as ONNX graphs, and the same graphs in fewer bits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from text2seg.errors import SettingsError
from text2seg.onnx.manifest import GraphName, GraphPrecision, TensorSpec
from text2seg.pipeline import Text2Seg
from text2seg.sam.decoder import FILLING, NOT_A_POINT, POSITIVE, decode
from text2seg.sam.sam import Sam

Free = dict[int, str]
"""The sides of an input that may differ from call to call, by axis, with a name."""

BATCH: Free = {0: "batch"}


class Network(nn.Module):
    """A function of tensors that uses the parameters of a module."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor | tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.module, self._function = module, function

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self._function(*tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Tower:
    """One network: its inputs with an example each and the sides that are free, and its outputs."""

    name: GraphName
    network: nn.Module
    inputs: dict[str, tuple[Tensor, Free]]
    outputs: dict[str, Free]


def towers(models: Text2Seg, input_hw: tuple[int, int], architecture: str) -> list[Tower]:
    """The networks of these models, in float32 on the CPU.

    Raises:
        SettingsError: this is no SAM of the first kind, CLIP's modules are not as OpenAI's, or cannot follow the rule.
    """
    clip, sam = models.clip, models.sam
    if not isinstance(sam, Sam):
        raise SettingsError("only SAM and MobileSAM can be exported, not SAM 2")
    clip.check(architecture)
    # Examples have two of everything that is free, and unlike numbers of it, or they would be taken for constants.
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
    """For any number of images, of sets on them, and of points in the longest set; see `sam.decoder.decode`."""
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
