"""Configurations for Triton, read by the server's own schema and held against their graphs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx

DTYPES = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.INT64: "TYPE_INT64"}


def parse(path: Path):
    """The configuration by the schema that the server's own client has; its package wants a network library too."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None, "tritonclient belongs to the extra dev"
    file = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())


def check_against_graph(folder: Path) -> None:
    """Names, dtypes and sides of the configuration are those of the graph of every version."""
    config = parse(folder / "config.pbtxt")
    assert (config.name, config.backend) == (folder.name, "onnxruntime")
    types = config.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
    for file in folder.glob("*/model.onnx"):
        graph = onnx.load(str(file)).graph
        for told, real in ((config.input, graph.input), (config.output, graph.output)):
            assert [each.name for each in told] == [each.name for each in real]
            for one, other in zip(told, real, strict=True):
                tensor = other.type.tensor_type
                assert types.values_by_number[one.data_type].name == DTYPES[tensor.elem_type]
                sides = [side.dim_value or -1 for side in tensor.shape.dim]
                if config.max_batch_size:
                    assert sides.pop(0) == -1
                assert list(one.dims) == sides
