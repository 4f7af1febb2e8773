"""The golden values (computed with the original CLIP Surgery code) and the tiny models that they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"clip_surgery_{name}.npz") as bank:
        return {key: bank[key] for key in bank.files}


def visual(name: str, golden: dict[str, np.ndarray]) -> torch.nn.Module:
    """CLIP's own vision tower with the golden weights."""
    from clip.model import ModifiedResNet, VisionTransformer

    if name == "vit":
        tower = VisionTransformer(input_resolution=64, patch_size=16, width=128, layers=8, heads=2, output_dim=32)
    else:
        tower = ModifiedResNet(layers=(1, 1, 1, 1), output_dim=32, heads=8, input_resolution=64, width=16)
    prefix = "weight/visual."
    weights = {k[len(prefix) :]: torch.from_numpy(v) for k, v in golden.items() if k.startswith(prefix)}
    tower.load_state_dict(weights)
    return tower.eval().requires_grad_(False)
