"""Exported graphs in place of torch's networks: the same tensors in and out, run by ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from text2seg.errors import CheckpointError, SettingsError
from text2seg.io.files import is_file
from text2seg.onnx.manifest import GRAPHS, GraphName, Manifest, read_manifest
from text2seg.runtime import choose_device
from text2seg.weights import sha256_of

log = logging.getLogger(__name__)


def onnxruntime() -> Any:
    """The package; raises `SettingsError` where it is not installed."""
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
    """One ONNX file, opened. Threads may share it."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Raises `CheckpointError` where ONNX Runtime cannot read the file."""
        package = onnxruntime()
        options = package.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # what it cannot do better is no news to users
        try:
            self._session = package.InferenceSession(str(path), options, providers=_providers(device))
        except Exception as error:  # its own classes of errors are made at run time and share no base
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path} cannot be run: {told}; export the graphs again") from error
        self.inputs: list[Any] = self._session.get_inputs()
        self.outputs: list[Any] = self._session.get_outputs()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs, for the inputs in the graph's order; on the first one's device."""
        given = {spec.name: tensor.detach().cpu().numpy() for spec, tensor in zip(self.inputs, inputs, strict=True)}
        return [torch.from_numpy(output).to(inputs[0].device) for output in self._session.run(None, given)]


class Networks:
    """The graphs of a folder, as the functions that they stand in for."""

    def __init__(self, manifest: Manifest, graphs: Mapping[GraphName, Graph], folder: Path) -> None:
        self.manifest, self.folder = manifest, folder
        self._graphs = graphs

    @classmethod
    def open(cls, folder: Path, *, clip_sha256: str, sam_sha256: str, device: torch.device) -> Networks:
        """The graphs, once they are whole and of these checkpoints.

        Raises:
            CheckpointError: the folder has no graphs, or they are damaged, or of other weights or another version.
            SettingsError: ONNX Runtime is missing, or cannot use the device.
        """
        _providers(device)
        manifest = read_manifest(folder)
        for kind, exported, here in (("CLIP", manifest.clip, clip_sha256), ("SAM", manifest.sam, sam_sha256)):
            if exported["sha256"] != here:
                raise CheckpointError(
                    f"the graphs in {folder} are of the {kind} {exported['name']!r} with sha256 {exported['sha256']}, "
                    f"and the one asked for has {here}; choose the same model, or export this one"
                )
        for file, wanted in manifest.files.items():
            path = folder / file
            if not is_file(path, CheckpointError):
                raise CheckpointError(f"{path} is missing; export the graphs again")
            if sha256_of(path) != wanted:
                raise CheckpointError(f"{path} is not the file that was exported; export the graphs again")
        graphs = {name: Graph(folder / manifest.graph(name).file, device) for name in GRAPHS}
        log.info("networks from %s on %s in %s by ONNX Runtime", folder, device, manifest.precision)
        return cls(manifest, graphs, folder)

    @property
    def provenance(self) -> dict[str, object]:
        """What belongs beside results."""
        return {
            "runtime": "onnx",
            "precision": self.manifest.precision,
            "onnxruntime": str(onnxruntime().__version__),
            "graphs": dict(self.manifest.files),
        }

    @property
    def encoder_of_texts(self) -> str:
        """What text features depend on beside the checkpoint, for their cache."""
        return f"onnx {self.manifest.files[self.manifest.graph('clip_text').file]}"

    def check_precision(self, wanted: str) -> None:
        """Raise `SettingsError` where the graphs are of another precision; `auto` is any."""
        if wanted not in ("auto", self.manifest.precision):
            raise SettingsError(
                f"the graphs in {self.folder} are in {self.manifest.precision}, not {wanted}; leave --precision out, "
                f"or export with --precision {wanted}"
            )

    def clip_image(self, pixels: Tensor, architecture: str) -> Tensor:
        """CLIP's image features; see `clip.model.ImageNetwork`.

        Raises:
            SettingsError: the graph is for another size of input or another attention rule.
        """
        wanted, found = self.manifest.input_hw, (pixels.shape[2], pixels.shape[3])
        if found != wanted:
            rows, columns = found
            raise SettingsError(
                f"the graphs in {self.folder} are for CLIP inputs of {_size(wanted)} pixels, not {_size(found)}: "
                f"say --input-size {wanted[0]} {wanted[1]}, or export with --input-size {rows} {columns}"
            )
        if architecture != self.manifest.architecture:
            raise SettingsError(
                f"the graphs in {self.folder} are for --architecture {self.manifest.architecture}, not {architecture}; "
                "export that one, or leave --runtime out"
            )
        return self._graphs["clip_image"](pixels)[0]

    def clip_text(self, tokens: Tensor) -> Tensor:
        """CLIP's text features; see `clip.text.TextNetwork`."""
        return self._graphs["clip_text"](tokens)[0]

    def sam_encoder(self, pixels: Tensor) -> Tensor:
        """SAM's image features; see `sam.sam.EncoderNetwork`."""
        return self._graphs["sam_encoder"](pixels)[0]

    def sam_decoder(
        self, embeddings: Tensor, image_index: Tensor, points_xy: Tensor, labels: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """SAM's candidates; see `sam.decoder.decode`."""
        given = (embeddings, image_index, points_xy, labels)
        if masks is None:
            logits, scores = self._graphs["sam_decoder"](*given)
        else:
            logits, scores = self._graphs["sam_decoder_masked"](*given, masks)
        return logits, scores


def choose_onnx_device(name: str) -> torch.device:
    """As `choose_device`; `auto` takes a device only where ONNX Runtime can use it too."""
    device = choose_device(name)
    return torch.device("cpu") if name == "auto" and _provider(device) is None else device


def _providers(device: torch.device) -> list[Any]:
    chosen = _provider(device)
    if chosen is None:
        raise SettingsError(
            f"ONNX Runtime here cannot use {device}; install onnxruntime-gpu in place of onnxruntime, "
            "or use --device cpu"
        )
    if device.type == "cpu":
        return [chosen]
    return [(chosen, {"device_id": device.index or 0}), "CPUExecutionProvider"]


def _provider(device: torch.device) -> str | None:
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type)
    return wanted if wanted in onnxruntime().get_available_providers() else None


def _size(hw: tuple[int, int]) -> str:
    return f"{hw[0]}×{hw[1]}"
