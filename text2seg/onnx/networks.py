"""Folder of exported ONNX graphs: its manifest `graphs.json`, and the networks run by ONNX Runtime instead of torch."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from text2seg.config import OnnxProvider
from text2seg.errors import CheckpointError, SettingsError
from text2seg.io.files import is_dir, is_file, read_file
from text2seg.io.writing import write_atomically
from text2seg.weights import sha256_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

FILE = "graphs.json"
FORMAT = 1  # increased when the meaning of graphs changes, so that old ones are refused

GraphName = Literal["clip_image", "clip_text", "sam_encoder", "sam_decoder", "sam_decoder_masked"]
GRAPHS: tuple[GraphName, ...] = get_args(GraphName)
_FILE = re.compile(r"\w[\w.-]*")
GraphPrecision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Input or output of a graph: name, numpy dtype, and shape, with a name for each dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph. `precision` is that of its matrix products. `tolerance` is the allowed difference of its outputs from
    torch in float32 and `error` the difference measured at export, both as a share of the output's largest value."""

    name: GraphName
    file: str
    precision: GraphPrecision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance: float
    error: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """Content of `graphs.json`. `files` has the SHA-256 of every file of the graphs, `clip` and `sam` the name and
    SHA-256 of the checkpoints, and `made_with` the versions of the packages."""

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
        """Return the graph of this name. Raises `KeyError` if there is none."""
        return {graph.name: graph for graph in self.graphs}[name]

    def write(self, folder: Path) -> Path:
        """Write the manifest into the folder of its graphs; return the path."""
        return write_atomically(folder / FILE, [self.text()])

    def text(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of graphs.

    Raises:
        CheckpointError: the folder is missing, has no graphs, or its graphs are from another version of text2seg.
    """
    path = folder / FILE
    if not is_file(path, CheckpointError):
        fault = f"has no {FILE}" if is_dir(folder, CheckpointError) else "is not a folder"
        raise CheckpointError(f"{folder} {fault}; make one with: text2seg export onnx --output {folder}")
    try:
        content = json.loads(read_file(path, CheckpointError))
        found = content["format"]
        if found != FORMAT:
            raise CheckpointError(
                f"{path} has format {found}, but this text2seg reads format {FORMAT}; export the graphs again"
            )
        manifest = _manifest(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); export the graphs again") from error
    unknown = [graph.name for graph in manifest.graphs if graph.name not in GRAPHS]
    if unknown:  # the name becomes that of a folder in a Triton repository
        raise CheckpointError(
            f"{path} has a graph {unknown[0]!r}, which this text2seg does not know; export the graphs again"
        )
    missing = [name for name in GRAPHS if name not in {graph.name for graph in manifest.graphs}]
    if missing:
        raise CheckpointError(f"{path} lacks the graphs {', '.join(missing)}; export the graphs again")
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
        raise ValueError(f"precision must be one of {', '.join(precisions)}, got {manifest.precision!r}")
    for model in (manifest.clip, manifest.sam):
        str(model["name"]), str(model["sha256"])
    if not all(_FILE.fullmatch(file) for file in (*manifest.files, *(graph.file for graph in graphs))):
        raise ValueError("a file is outside the folder")
    return manifest


def _tensors(content: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(each["name"], each["dtype"], tuple(each["shape"])) for each in content)


def onnxruntime() -> Any:
    """Import ONNX Runtime. Raises `SettingsError` if it is not installed."""
    try:
        import onnxruntime as package
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise SettingsError(
            'the runtime onnx needs onnxruntime, which is not installed: pip install "text2seg[onnx]"'
        ) from error
    return package


class Graph:
    """An opened ONNX file. Threads may share it."""

    def __init__(
        self, path: Path, device: torch.device, provider: OnnxProvider = "auto", engines: Path | None = None
    ) -> None:
        """Open the file.

        Args:
            engines: folder for the engines of TensorRT; the engines of other weights must not be in it.

        Raises:
            CheckpointError: ONNX Runtime cannot read the file.
            SettingsError: ONNX Runtime cannot use the provider.
        """
        package = onnxruntime()
        providers = _providers(device, provider, engines)
        options = package.SessionOptions()
        import torch  # here, so that `read_manifest` needs none

        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only: its warnings about missed optimisations do not help users
        try:
            self._session = package.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's classes of errors have no base class of their own
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path} cannot be run: {cause}; export the graphs again") from error
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        if provider != "auto" and wanted not in self._session.get_providers():
            # ONNX Runtime goes on without a provider whose libraries it cannot load
            raise SettingsError(
                f"ONNX Runtime has {wanted}, but cannot start it; check that its libraries are installed "
                f"({INSTALL[provider]}), or leave --onnx-provider out"
            )
        self.inputs: list[Any] = self._session.get_inputs()
        self.outputs: list[Any] = self._session.get_outputs()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return the outputs for inputs in the graph's order, on the device of the first input."""
        feed = {spec.name: tensor.detach().cpu().numpy() for spec, tensor in zip(self.inputs, inputs, strict=True)}
        import torch

        return [torch.from_numpy(output).to(inputs[0].device) for output in self._session.run(None, feed)]


class Networks:
    """Graphs of a folder, with one method for each network that they replace."""

    def __init__(
        self, manifest: Manifest, graphs: Mapping[GraphName, Graph], folder: Path, provider: OnnxProvider = "auto"
    ) -> None:
        self.manifest, self.folder, self.provider = manifest, folder, provider
        self._graphs = graphs

    @classmethod
    def open(
        cls, folder: Path, *, clip_sha256: str, sam_sha256: str, device: torch.device, provider: OnnxProvider = "auto"
    ) -> Networks:
        """Open the graphs, after checking that they are intact and belong to these checkpoints.

        Raises:
            CheckpointError: the folder has no graphs, or they are damaged, of other weights or of another version.
            SettingsError: ONNX Runtime is missing, or cannot use the device or the provider.
        """
        _providers(device, provider)
        manifest = read_manifest(folder)
        for kind, exported, here in (("CLIP", manifest.clip, clip_sha256), ("SAM", manifest.sam, sam_sha256)):
            if exported["sha256"] != here:
                raise CheckpointError(
                    f"the graphs in {folder} are of the {kind} {exported['name']!r} with sha256 {exported['sha256']}, "
                    f"but the chosen {kind} has sha256 {here}; choose the same model, or export this one"
                )
        for file, sha256 in manifest.files.items():
            path = folder / file
            if not is_file(path, CheckpointError):
                raise CheckpointError(f"{path} is missing; export the graphs again")
            if sha256_of(path) != sha256:
                raise CheckpointError(f"{path} is not the file that was exported; export the graphs again")
        graphs = {}
        for name in GRAPHS:
            file = manifest.graph(name).file
            graphs[name] = Graph(folder / file, device, provider, engines_of(folder, manifest.files[file], provider))
        where = device if provider == "auto" else provider
        log.info("ONNX Runtime runs the graphs in %s on %s in %s", folder, where, manifest.precision)
        return cls(manifest, graphs, folder, provider)

    @property
    def provenance(self) -> dict[str, object]:
        """Runtime, precision, version and hashes, and the provider if it was chosen, to be stored with results."""
        chosen = {} if self.provider == "auto" else {"onnx_provider": self.provider}
        return {
            **chosen,
            "runtime": "onnx",
            "precision": self.manifest.precision,
            "onnxruntime": str(onnxruntime().__version__),
            "graphs": dict(self.manifest.files),
        }

    @property
    def encoder_of_texts(self) -> str:
        """Identity of the text graph and its provider, which text features in a cache depend on besides the
        checkpoint."""
        chosen = "" if self.provider == "auto" else f" {self.provider}"
        return f"onnx {self.manifest.files[self.manifest.graph('clip_text').file]}{chosen}"

    def check_precision(self, precision: str) -> None:
        """Raise `SettingsError` if the graphs have another precision; `auto` allows any."""
        if precision not in ("auto", self.manifest.precision):
            raise SettingsError(
                f"the graphs in {self.folder} are in {self.manifest.precision}, not {precision}; leave --precision "
                f"out, or export with --precision {precision}"
            )

    def clip_image(self, pixels: Tensor, architecture: str) -> Tensor:
        """Return CLIP's image features; see `clip.model.ImageNetwork`.

        Raises:
            SettingsError: the graph is for another input size or another attention rule.
        """
        expected, found = self.manifest.input_hw, (pixels.shape[2], pixels.shape[3])
        if found != expected:
            rows, columns = found
            raise SettingsError(
                f"the graphs in {self.folder} are for CLIP inputs of {_size(expected)} pixels, not {_size(found)}: "
                f"use --input-size {expected[0]} {expected[1]}, or export with --input-size {rows} {columns}"
            )
        if architecture != self.manifest.architecture:
            raise SettingsError(
                f"the graphs in {self.folder} are for --architecture {self.manifest.architecture}, not {architecture}; "
                f"export with --architecture {architecture}, or leave --runtime out"
            )
        return self._graphs["clip_image"](pixels)[0]

    def clip_text(self, tokens: Tensor) -> Tensor:
        """Return CLIP's text features; see `clip.text.TextNetwork`."""
        return self._graphs["clip_text"](tokens)[0]

    def sam_encoder(self, pixels: Tensor) -> Tensor:
        """Return SAM's image features; see `sam.sam.EncoderNetwork`."""
        return self._graphs["sam_encoder"](pixels)[0]

    def sam_decoder(
        self,
        embeddings: Tensor,
        image_index: Tensor,
        points_xy: Tensor,
        labels: Tensor,
        masks: Tensor | None = None,
        *,
        above: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the logits and scores of SAM's candidates; see `sam.decoder.decode`. The graph makes all masks,
        whatever `above` is."""
        inputs = (embeddings, image_index, points_xy, labels)
        if masks is None:
            logits, scores = self._graphs["sam_decoder"](*inputs)
        else:
            logits, scores = self._graphs["sam_decoder_masked"](*inputs, masks)
        return logits, scores


def choose_onnx_device(name: str, provider: OnnxProvider = "auto") -> torch.device:
    """Choose a device like `choose_device`, but with `auto` only one that ONNX Runtime can use too.

    A chosen provider has a device of its own, so torch, which computes the rest, may have any.
    """
    import torch

    from text2seg.runtime import choose_device

    device = choose_device(name)
    return torch.device("cpu") if name == provider == "auto" and not _has(device.type) else device


PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-fp16": "TensorrtExecutionProvider",
}
INSTALL = {
    "cpu": "pip install onnxruntime",
    "cuda": "pip uninstall onnxruntime; pip install onnxruntime-gpu",
    "tensorrt": "pip uninstall onnxruntime; pip install onnxruntime-gpu tensorrt",
    "tensorrt-fp16": "pip uninstall onnxruntime; pip install onnxruntime-gpu tensorrt",
}


def engines_of(folder: Path, sha256: str, provider: OnnxProvider) -> Path | None:
    """Return the folder for TensorRT's engines of a graph, or None for other providers.

    The folder is beside that of the graphs, which holds exported files only. Its name has the hash of the graph and the
    precision, because ONNX Runtime would use the engine of another one.
    """
    if not provider.startswith("tensorrt"):
        return None
    place = folder.resolve()
    return place.with_name(f"{place.name}-tensorrt") / f"{sha256[:16]}{provider.removeprefix('tensorrt')}"


def _providers(device: torch.device, provider: OnnxProvider = "auto", engines: Path | None = None) -> list[Any]:
    """Return the providers of a session with their options, the first choice first.

    Raises:
        SettingsError: the installed ONNX Runtime lacks the provider.
    """
    kind = device.type if provider == "auto" else provider
    if not _has(kind):
        if provider == "auto":
            raise SettingsError(
                f"the installed ONNX Runtime cannot use {device}; install onnxruntime-gpu instead of onnxruntime, "
                "or use --device cpu"
            )
        raise SettingsError(
            f"--onnx-provider {provider}: the installed ONNX Runtime has no {PROVIDERS[provider]}; install it "
            f"({INSTALL[provider]}), or leave --onnx-provider out"
        )
    if kind == "cpu":
        return [PROVIDERS["cpu"]]
    chosen: dict[str, Any] = {"device_id": device.index or 0}
    providers: list[Any] = [(PROVIDERS["cuda"], chosen)] if _has("cuda") else []
    if kind != "cuda":
        options = {**chosen, "trt_fp16_enable": kind == "tensorrt-fp16"}
        if engines is not None:
            options |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(engines)}
        providers.insert(0, (PROVIDERS[kind], options))
    return [*providers, PROVIDERS["cpu"]]


def _has(kind: str) -> bool:
    """Return whether the installed ONNX Runtime has the provider of this name; False for devices without one."""
    return PROVIDERS.get(kind) in onnxruntime().get_available_providers()


def _size(hw: tuple[int, int]) -> str:
    return f"{hw[0]}×{hw[1]}"
