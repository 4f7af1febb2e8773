"""Random CLIPs and SAMs in all checkpoint formats, and a server that simulates faults."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import clip
import torch
from torch import Tensor, nn

# embedding, image size, layers, width and patch of the image encoder, context, vocabulary, text width, heads, layers
TINY_VIT = (24, 48, 2, 64, 16, 7, 50, 64, 1, 2)
TINY_RESNET = (24, 64, (1, 2, 1, 1), 4, None, 7, 50, 64, 1, 2)
VIT_B_16 = (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)


def clip_module(arguments: tuple[Any, ...], *, seed: int = 0) -> nn.Module:
    """Return a CLIP as OpenAI's package makes it: linear and convolution weights in float16, norms in float32."""
    with torch.device("meta"):
        model = clip.model.CLIP(*arguments)
        clip.model.convert_weights(model)
    generator = torch.Generator().manual_seed(seed)
    model.load_state_dict({n: _random(n, t, generator) for n, t in model.state_dict().items()}, assign=True)
    for block in model.transformer.resblocks:
        block.attn_mask = model.build_attention_mask()
    return model.eval()


def with_smooth_maps(model: nn.Module) -> nn.Module:
    """Give a ViT smooth position embeddings, so that its maps have few regions, as those of trained weights do."""
    embedding = model.visual.positional_embedding.data
    side = round((len(embedding) - 1) ** 0.5)
    along = torch.linspace(0, 1, side)
    waves = [
        torch.cos(k * torch.pi * along)[:, None] * torch.cos(m * torch.pi * along) for k, m in ((0, 1), (1, 0), (1, 1))
    ]
    directions = torch.randn(len(waves), embedding.shape[1], generator=torch.Generator().manual_seed(1))
    embedding[1:] = torch.einsum("nyx,nc->yxc", torch.stack(waves), directions).reshape(side * side, -1)
    return model


def sam_weights(name: str = "vit_b", *, device: str = "meta") -> dict[str, Tensor]:
    """Return tensors with the names and shapes of a published SAM; their values are zero, or absent on meta."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        shapes = sam_model_registry[name]().state_dict()
    return {name: torch.zeros(t.shape, dtype=t.dtype, device=device) for name, t in shapes.items()}


def _random(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    values = torch.rand(like.shape, generator=generator).sub_(0.5).mul_(0.1)
    return (values.abs_().add_(0.5) if name.endswith("running_var") else values).to(like.dtype)


def archive_that_writes() -> bytes:
    """Return a TorchScript archive that writes a file "ran" into the working folder when torch reads it."""

    class Sets(nn.Module):
        @torch.jit.export
        def __getstate__(self):
            return True

        @torch.jit.export
        def __setstate__(self, state: bool):
            torch.save(torch.ones(1), "ran")
            self.training = state

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Sets()), buffer)
    return buffer.getvalue()


def write_official_archive(model: nn.Module, path: Path, *, image_size: int, context: int, vocabulary: int) -> None:
    """Write a TorchScript archive like OpenAI's: traced, in float16, with three numbers among the tensors."""
    extras = {"input_resolution": image_size, "context_length": context, "vocab_size": vocabulary}
    for name, value in extras.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    image, text = torch.zeros(1, 3, image_size, image_size), torch.arange(context)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, (image, text), check_trace=False), str(path))


class Server(ThreadingHTTPServer):
    """Serves `content` at every path, or else the `files` by their paths. `ranges` has the requested range of each
    request, `paths` its path."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.files: dict[str, bytes] = {}
        self.paths: list[str] = []
        self.ranges: list[str | None] = []
        self.statuses: list[int] = []
        """Error codes of the next requests; later requests succeed."""
        self.cuts: list[int] = []
        """Number of body bytes after which each of the next responses is cut."""
        self.knows_ranges = True
        self.tells_length = True
        self.shift = 0
        """Offset in bytes of the sent parts from the requested ones."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pt"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        server.paths.append(self.path)
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        if server.files and self.path not in server.files:
            return self.send_error(404)
        content = server.files.get(self.path, server.content)
        start = int(asked.removeprefix("bytes=").rstrip("-")) + server.shift if asked and server.knows_ranges else 0
        total = len(content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if server.tells_length:
            self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = start + server.cuts.pop(0) if server.cuts else total
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
