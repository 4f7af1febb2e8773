"""Time CLIPs of open_clip in their real sizes with random weights: one image by surgery, one query in 85 templates.

    python scripts/time_openclip.py --threads 2

Nothing is downloaded: tokens are made up, in the number that a query takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from text2seg.clip.attention import RULES
from text2seg.clip.openclip import import_open_clip, recipe_of
from text2seg.clip.openclip_build import TimmVit, build_openclip
from text2seg.clip.text import encode_trimmed
from text2seg.clip.vit import PlainVit, run_vit
from text2seg.queries import TEMPLATES

MODELS = ("ViT-B-16/laion2b_s34b_b88k", "ViT-B-16-SigLIP/webli")
LONGEST = 15  # tokens of the longest of the templates with a short word in it


def seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """CPU seconds of all threads together, the least of some rounds: other work on the machine counts for less."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    import_open_clip()
    from open_clip.model import CLIP, CustomTextCLIP

    print("| model | an image, surgery | raw | a query, 85 texts |\n|---|---|---|---|")
    for name in MODELS:
        recipe = recipe_of(f"openclip:{name}")
        arguments = {key: value for key, value in recipe.config.items() if key != "custom_text"}
        with torch.device("meta"):
            shapes = (CustomTextCLIP if recipe.config.get("custom_text") else CLIP)(**arguments).state_dict()
        weights = {key: torch.empty(tensor.shape).normal_(std=0.02) for key, tensor in shapes.items()}
        print(
            f"| `{name}` | {' | '.join(times(build_openclip(recipe, weights), recipe.text, flags.size))} |", flush=True
        )


def times(model: Any, text: dict[str, Any], size: int) -> list[str]:
    is_timm = hasattr(model.visual, "trunk")
    vit = TimmVit(model.visual) if is_timm else PlainVit(model.visual)
    pixels = torch.rand(1, 3, size, size)
    tokens = torch.randint(1, text["vocab_size"], (len(TEMPLATES), text["context_length"] if is_timm else LONGEST))
    taken = (
        seconds(lambda: run_vit(vit, pixels, rule=RULES["surgery"])),
        seconds(lambda: run_vit(vit, pixels, rule=RULES["raw"])),
        seconds(lambda: model.encode_text(tokens) if is_timm else encode_trimmed(model, tokens)),
    )
    return [f"{each:.1f} s" for each in taken]


if __name__ == "__main__":
    main()
