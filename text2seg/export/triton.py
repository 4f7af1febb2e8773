"""Exported graphs as a model repository for NVIDIA Triton Inference Server, with its ONNX Runtime backend.

Source: the server's documentation of model repositories and of model configuration (`ModelConfig` in
model_config.proto). Written after it; the repository has not been served by a Triton here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from text2seg.errors import CheckpointError, OutputError, SettingsError
from text2seg.io.files import (
    check_folder,
    copy_file,
    entries,
    exists,
    folder_aside,
    make_folder,
    read_file,
    write_atomically,
)
from text2seg.onnx.manifest import GraphSpec, Manifest, TensorSpec, read_manifest

CONFIG, MODEL = "config.pbtxt", "model.onnx"
QUEUE_MICROSECONDS = 2000  # that a request waits for others to share a batch with
TEXTS_AT_ONCE = 128  # at least what one query is, with its templates (85 as published)

_DTYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}


def write_repository(graphs: Path, output: Path, *, version: int = 1, max_batch: int = 8) -> list[Path]:
    """Write a folder for each graph, with its configuration and the graph as this version; gives those folders.

    Args:
        graphs: what `text2seg export onnx` wrote.
        output: the repository; other models in it, and other versions of these, stay as they are.
        version: the number of the new version.
        max_batch: the largest batch that the server may put together; of texts at least what one query may take.

    Raises:
        CheckpointError: there are no graphs in the folder.
        SettingsError: version or batch are less than 1.
        OutputError: this version is there already, an earlier one has another configuration, or nothing can be written.
    """
    if version < 1 or max_batch < 1:
        raise SettingsError("version and max batch must be 1 or more")
    manifest = read_manifest(graphs)
    configs = {graph.name: config_of(graph, manifest, max_batch) for graph in manifest.graphs}
    for name, config in configs.items():
        _check(output / name, config, version)
    check_folder(output)
    with folder_aside(output) as work:
        for graph in manifest.graphs:
            folder = work / graph.name / str(version)
            make_folder(folder)
            for file in entries(graphs, CheckpointError):
                if file.name.startswith(graph.file):  # large weights lie beside the graph, which names their file
                    copy_file(file, folder / (MODEL if file.name == graph.file else file.name))
            write_atomically(work / graph.name / CONFIG, [configs[graph.name].encode()])
    return [output / name for name in configs]


def _check(folder: Path, config: str, version: int) -> None:
    if exists(folder / str(version), OutputError):
        raise OutputError(f"{folder} has a version {version} already; say --version {version + 1}, or another --output")
    earlier = folder / CONFIG
    if exists(earlier, OutputError) and read_file(earlier, OutputError) != config.encode():
        raise OutputError(
            f"{earlier} is of a model with other inputs, precision or weights, which versions of one model share; "
            "choose another --output"
        )


def config_of(graph: GraphSpec, manifest: Manifest, max_batch: int) -> str:
    """The `config.pbtxt` of a graph.

    Where every tensor has "batch" as its first side, the server makes batches of requests, and the side is left out, as
    it wants it. SAM's decoder has images, sets and points instead: a request is a batch of its own.
    """
    batched = all(tensor.shape[0] == "batch" for tensor in (*graph.inputs, *graph.outputs))
    # One query alone is a text for each template.
    largest = max(max_batch, TEXTS_AT_ONCE) if graph.name == "clip_text" else max_batch
    parts = [
        f"name: {_quoted(graph.name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {largest if batched else 0}",
        *_tensors("input", graph.inputs, batched),
        *_tensors("output", graph.outputs, batched),
        "version_policy { latest { num_versions: 1 } }",
    ]
    if batched:
        parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    model = manifest.clip if graph.name.startswith("clip") else manifest.sam
    told = {"precision": graph.precision, "checkpoint": model["name"], "checkpoint_sha256": model["sha256"]}
    if graph.name == "clip_image":
        told["architecture"] = manifest.architecture
    for key, value in told.items():
        parts.append(f'parameters {{ key: "text2seg_{key}" value {{ string_value: {_quoted(value)} }} }}')
    return "\n".join(parts) + "\n"


def _tensors(kind: str, tensors: Sequence[TensorSpec], batched: bool) -> list[str]:
    """One entry a tensor; -1 is a side that may differ from request to request."""
    entries = []
    for tensor in tensors:
        sides = ", ".join(str(side if isinstance(side, int) else -1) for side in tensor.shape[batched:])
        name, dtype = _quoted(tensor.name), _DTYPES[tensor.dtype]
        entries.append(f"{kind} {{ name: {name} data_type: {dtype} dims: [ {sides} ] }}")
    return entries


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
