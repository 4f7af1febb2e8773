"""How long SAMs of the published shapes take on this machine's CPU, with random weights: an image, and eight sets.

python scripts/time_sams.py --threads 2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Sam2Config

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import sam2_builders
import sam_builders
from test_mobile_sam import PUBLISHED as MOBILE

from text2seg.sam.build import SamShape, load_sam
from text2seg.sam.sam import Sam
from text2seg.sam.sam2 import Sam2

CPU = torch.device("cpu")
VIT_B = SamShape(768, 12, 12, 14, (2, 5, 8, 11), 1024, 16, 256, 16, 2, 2048, 3, 3, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    image = sam_builders.image(480, 640)
    sets = [sam_builders.points(image, 3, seed=seed) for seed in range(8)]
    print("model               tensors    image (wall, CPU)    8 sets (wall, CPU)    features")
    for name, make in MODELS.items():
        sam = make()
        size = sum(tensor.numel() for tensor in sam.module.state_dict().values()) / 1e6
        encoding, (embedding,) = best(partial(sam.embed, [image]), args.repeats)
        decoding, _ = best(partial(sam.decode, [(embedding, each) for each in sets]), args.repeats)
        kept = sum(tensor.numel() for tensor in embedding.tensors) * 4 / 2**20
        print(f"{name:18} {size:6.1f} M    {encoding}    {decoding}    {kept:5.1f} MiB", flush=True)


def best(run: Callable[[], Any], repeats: int) -> tuple[str, Any]:
    """The least wall and CPU seconds of some runs, for people, and what the last one gave."""
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        found = run()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = np.min(times, axis=0)
    return f"{wall:7.2f} s {cpu:7.2f} s", found


MODELS: dict[str, Callable[[], Any]] = {
    "mobile_sam": lambda: Sam(load_sam(MOBILE, sam_builders.random_weights(MOBILE)), CPU),
    "sam2.1_hiera_tiny": lambda: Sam2.from_weights(
        sam2_builders.random_weights(Sam2Config()), device=CPU, precision="fp32"
    ),
    "vit_b": lambda: Sam(load_sam(VIT_B, sam_builders.random_weights(VIT_B)), CPU),
}

if __name__ == "__main__":
    main()
