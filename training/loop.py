"""Shared parts of the training scripts: flags, the optimiser, the schedule by time, resuming, the log."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

SAVE_EVERY_S = 180.0  # seconds between two saved states


def training_parser(description: str | None, output: Path) -> argparse.ArgumentParser:
    """Return a parser with the flags of all training scripts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=output, help="folder for state, log and checkpoint")
    parser.add_argument("--drawings", type=Path, default=Path("runs/drawings"), help="folder of the SVG packages")
    parser.add_argument("--start", type=Path, help="checkpoint to train further, instead of new weights")
    parser.add_argument("--minutes", type=float, default=120, help="total training time; interruptions do not count")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain attention. On a CPU it trains 1.8 times as fast as torch's fused kernel, whose backward pass is slow."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.ops.aten._softmax(scores, -1, False) @ value


def whitened_patches(pixels: Tensor, patch: int, width: int) -> Tensor:
    """Return initial filters [width, 3, patch, patch] for a patch embedding.

    They are the leading principal components of the patches of pixels float [B, 3, H, W], scaled to equal variance of
    their outputs. With random filters, the outputs are at first mostly mean colours, and training is much slower.
    """
    patches = nn.functional.unfold(pixels, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    leading = vectors[:, -width:] / (values[-width:] + 0.02 * values.mean()).sqrt()
    return 0.5 * leading.T.unflatten(1, (3, patch, patch))


class Optimiser:
    """Muon for the matrices in the blocks, and AdamW with half the learning rate for all other parameters."""

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float) -> None:
        matrices, others = [], []
        for name, parameter in model.named_parameters():
            inner = parameter.ndim == 2 and ("blocks" in name or ".layers." in name) and "rel_pos" not in name
            (matrices if inner else others).append(parameter)
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr / 2, weight_decay=weight_decay, betas=(0.9, 0.98)),
        ]
        self.lr = lr
        self.parameters = [*matrices, *others]

    def step(self, factor: float) -> float:
        """Take a step at `factor` times the learning rate; return the gradient's norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, lr in zip(self.parts, (self.lr, self.lr / 2), strict=True):
            for group in part.param_groups:
                group["lr"] = lr * factor
            part.step()
            part.zero_grad(set_to_none=True)
        return float(norm)


@dataclass
class Run:
    """A training run of `minutes` in total, which may be interrupted. `spent_s` is the time of earlier parts."""

    folder: Path
    minutes: float
    step: int = 0
    spent_s: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> float:
        return min((self.spent_s + time.monotonic() - self._since) / (60 * self.minutes), 1.0)

    @property
    def factor(self) -> float:
        """Share of the peak learning rate: warm-up over the first 2 %, then a cosine down to zero."""
        warmup = 0.02
        if self.progress < warmup:
            return max(self.progress / warmup, 0.01)
        return 0.5 * (1 + math.cos(math.pi * (self.progress - warmup) / (1 - warmup)))

    def log(self, **values: object) -> None:
        line = {"step": self.step, "minutes": round(self.progress * self.minutes, 2), **values}
        print(json.dumps(line), flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def resume(self, model: nn.Module, optimiser: Optimiser) -> bool:
        """Load the state of an earlier run. Return whether there is one."""
        path = self.folder / "state.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict(state["model"])
            for part, saved in zip(optimiser.parts, state["optimiser"], strict=True):
                part.load_state_dict(saved)
            self.step, self.spent_s = state["step"], state["spent_s"]
            self.log(resumed=True)
            return True
        return False

    def save(self, model: nn.Module, optimiser: Optimiser, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._saved < SAVE_EVERY_S:
            return
        self._saved = now
        state = {
            "model": model.state_dict(),
            "optimiser": [part.state_dict() for part in optimiser.parts],
            "step": self.step,
            "spent_s": self.progress * 60 * self.minutes,
        }
        partial = self.folder / "state.pt.part"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pt")
