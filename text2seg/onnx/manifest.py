"""What a folder of exported graphs says of itself: which networks of which weights, in which precision, how true."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from text2seg.errors import CheckpointError
from text2seg.io.files import is_dir, is_file, read_file, write_atomically

FILE = "graphs.json"
FORMAT = 1  # counts up when graphs mean something else, so that old ones are refused

GraphName = Literal["clip_image", "clip_text", "sam_encoder", "sam_decoder", "sam_decoder_masked"]
GRAPHS: tuple[GraphName, ...] = get_args(GraphName)
_FILE = re.compile(r"\w[\w.-]*")
GraphPrecision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or an output of a graph: its dtype as numpy calls it, and its sides, a name where one is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph. `precision` is what its matrix products run in; `tolerance` is how far its outputs may be from those
    of torch in float32, `error` how far they were when it was exported: the largest difference by the largest value."""

    name: GraphName
    file: str
    precision: GraphPrecision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance: float
    error: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of `graphs.json`. `files` has the SHA-256 of every file of the graphs; `clip` and `sam` are the name and the
    SHA-256 of the checkpoints; `made_with` names the packages' versions."""

    clip: Mapping[str, str]
    sam: Mapping[str, str]
    precision: GraphPrecision
    architecture: str
    input_hw: tuple[int, int]
    opset: int
    graphs: tuple[GraphSpec, ...]
    files: Mapping[str, str]
    made_with: Mapping[str, str]
    format: int = FORMAT

    def graph(self, name: GraphName) -> GraphSpec:
        """The graph of this name; raises `KeyError` where there is none."""
        return {graph.name: graph for graph in self.graphs}[name]

    def write(self, folder: Path) -> Path:
        """Write it into the folder of its graphs."""
        return write_atomically(folder / FILE, [self.text()])

    def text(self) -> bytes:
        """As it stands in the file."""
        return json.dumps(dataclasses.asdict(self), indent=2).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """What a folder says of its graphs.

    Raises:
        CheckpointError: there is no such folder, it has no graphs, or they are of another version of text2seg.
    """
    path = folder / FILE
    if not is_file(path, CheckpointError):
        fault = f"has no {FILE}" if is_dir(folder, CheckpointError) else "is not a folder"
        raise CheckpointError(f"{folder} {fault}; make one with: text2seg export onnx --output {folder}")
    try:
        content = json.loads(read_file(path, CheckpointError))
        found = content["format"]
        if found != FORMAT:
            raise CheckpointError(f"{path} is of format {found}, this text2seg reads {FORMAT}; export the graphs again")
        manifest = _manifest(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); export the graphs again") from error
    unknown = [graph.name for graph in manifest.graphs if graph.name not in GRAPHS]
    if unknown:  # a name becomes a folder of a Triton repository
        raise CheckpointError(
            f"{path} has a graph {unknown[0]!r}, which this text2seg does not know; export them again"
        )
    missing = [name for name in GRAPHS if name not in {graph.name for graph in manifest.graphs}]
    if missing:
        raise CheckpointError(f"{path} knows no graph {', '.join(missing)}; export the graphs again")
    return manifest


def _manifest(content: dict[str, Any]) -> Manifest:
    graphs = tuple(
        GraphSpec(**{**each, "inputs": _tensors(each["inputs"]), "outputs": _tensors(each["outputs"])})
        for each in content["graphs"]
    )
    rows, columns = content["input_hw"]
    manifest = Manifest(**{**content, "graphs": graphs, "input_hw": (rows, columns)})
    precisions = get_args(get_type_hints(Manifest)["precision"])
    if manifest.precision not in precisions:
        raise ValueError(f"precision {manifest.precision!r} is none of {', '.join(precisions)}")
    for model in (manifest.clip, manifest.sam):
        str(model["name"]), str(model["sha256"])
    if not all(_FILE.fullmatch(file) for file in (*manifest.files, *(graph.file for graph in graphs))):
        raise ValueError("a file lies outside of the folder")
    return manifest


def _tensors(content: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(each["name"], each["dtype"], tuple(each["shape"])) for each in content)
