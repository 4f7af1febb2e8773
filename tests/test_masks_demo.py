"""The bundled demo SAM: its weights load, and our masks equal the stock predictor's on them."""

from __future__ import annotations

from pathlib import Path

import sam_builders as build
import torch

import text2seg
from text2seg.sam.sam import Sam

WEIGHTS = Path(text2seg.__file__).parent / "demo" / "sam_demo.pth"


def test_the_demo_sam_equals_the_stock_predictor():
    weights = torch.load(WEIGHTS, weights_only=True, map_location="cpu")
    sam = Sam.from_weights(weights, device=torch.device("cpu"), precision="fp32")
    images = [build.make_image(120, 90, seed=1), build.make_image(61, 200, seed=2)]
    sizes = [(1, 1), (0, 5), (1, 8), (0, 2)]
    sets = [(place, build.points(images[place], count, seed=seed)) for seed, (place, count) in enumerate(sizes)]
    build.assert_equals_stock(sam, images, sets)
