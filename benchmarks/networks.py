"""Time networks of the published sizes on the CPU, with random weights: nothing is downloaded.

    python benchmarks/networks.py clips     # CLIPs of open_clip: an image by surgery, a query in 85 templates
    python benchmarks/networks.py sams      # SAMs: an image, and eight sets of points
    python benchmarks/networks.py everything  # automatic masks beside segment-anything's generator

Times are CPU seconds of all threads together, the lowest of several rounds, to reduce the effect of other work on the
machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from page import ROOT, bundled, markdown, publish

from text2seg.runtime import PrecisionName

PAGE = "performance.md"
CLIPS = ("ViT-B-16/laion2b_s34b_b88k", "ViT-B-16-SigLIP/webli")
CLIP_SIDE = 512  # pixels
LONGEST_TEXT = 15  # tokens of the longest template with a short word in it


def cpu_seconds(work: Callable[[], Any], rounds: int) -> float:
    """Return the CPU seconds of the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@torch.inference_mode()
def measure_clips(rounds: int, *, write: bool) -> None:
    from text2seg.clip.openclip import import_open_clip, recipe_of
    from text2seg.clip.openclip_build import build_openclip

    import_open_clip()
    from open_clip.model import CLIP, CustomTextCLIP

    rows = []
    for name in CLIPS:
        recipe = recipe_of(f"openclip:{name}")
        arguments = {key: value for key, value in recipe.config.items() if key != "custom_text"}
        with torch.device("meta"):
            shapes = (CustomTextCLIP if recipe.config.get("custom_text") else CLIP)(**arguments).state_dict()
        weights = {key: torch.empty(tensor.shape).normal_(std=0.02) for key, tensor in shapes.items()}
        rows.append((f"`{name}`", *clip_seconds(build_openclip(recipe, weights), recipe.text, rounds)))
    table = markdown((f"CLIP at {CLIP_SIDE} px", "an image, surgery", "an image, raw", "a query, 85 texts"), rows)
    publish("clips", table, page=PAGE, how=how("clips"), write=write)


def clip_seconds(model: Any, text: dict[str, Any], rounds: int) -> list[str]:
    """Return the seconds of an image by surgery, of one by the raw rule and of the texts of a query, as cells."""
    from text2seg.clip.encoders import RULES, PlainVit, run_vit
    from text2seg.clip.openclip_build import TimmVit
    from text2seg.clip.text import encode_trimmed
    from text2seg.templates import TEMPLATES

    is_timm = hasattr(model.visual, "trunk")
    vit = TimmVit(model.visual) if is_timm else PlainVit(model.visual)
    pixels = torch.rand(1, 3, CLIP_SIDE, CLIP_SIDE)
    length = text["context_length"] if is_timm else LONGEST_TEXT
    tokens = torch.randint(1, text["vocab_size"], (len(TEMPLATES), length))
    works: tuple[Callable[[], Any], ...] = (
        lambda: run_vit(vit, pixels, rule=RULES["surgery"]),
        lambda: run_vit(vit, pixels, rule=RULES["raw"]),
        lambda: model.encode_text(tokens) if is_timm else encode_trimmed(model, tokens),
    )
    return [f"{cpu_seconds(work, rounds):.1f} s" for work in works]


def sams(precision: PrecisionName = "fp32") -> dict[str, Callable[[], Any]]:
    """Return functions that build the SAMs with random weights, by name."""
    sys.path.insert(0, str(ROOT / "tests"))
    import sam2_builders
    import sam_builders
    from test_mobile_sam import PUBLISHED as MOBILE_SAM
    from transformers import Sam2Config

    from text2seg.runtime import choose_precision
    from text2seg.sam.mobile_sam import MobileSam
    from text2seg.sam.sam import Sam, load_sam
    from text2seg.sam.sam2 import Sam2
    from text2seg.speed.flows import sam_shape

    cpu, vit_b = torch.device("cpu"), sam_shape("vit_b")
    chosen = choose_precision(cpu, precision)
    return {
        "mobile_sam": lambda: MobileSam(load_sam(MOBILE_SAM, sam_builders.random_weights(MOBILE_SAM)), cpu, chosen),
        "sam2.1_hiera_tiny": lambda: Sam2.from_weights(
            sam2_builders.random_weights(Sam2Config()), device=cpu, precision=precision
        ),
        "vit_b": lambda: Sam(load_sam(vit_b, sam_builders.random_weights(vit_b)), cpu, chosen),
    }


def measure_sams(rounds: int, *, write: bool) -> None:
    """Time an image of 480 × 640 and eight sets of three points."""
    rows = []
    for name, make in sams().items():
        import sam_builders  # sams() has added the folder of tests to the path

        image = sam_builders.make_image(480, 640)
        sets = [sam_builders.points(image, 3, seed=seed) for seed in range(8)]
        sam = make()
        (embedding,) = sam.embed([image])
        encoding = cpu_seconds(partial(sam.embed, [image]), rounds)
        decoding = cpu_seconds(partial(sam.decode, [(embedding, each) for each in sets]), rounds)
        kept = sum(tensor.numel() for tensor in embedding.tensors) * 4 / 2**20
        rows.append((f"`{name}`", f"{encoding:.1f} s", f"{decoding:.1f} s", f"{kept:.0f} MiB"))
    table = markdown(("SAM", "an image", "8 sets of points", "kept of an image"), rows)
    publish("sams", table, page=PAGE, how=how("sams"), write=write)


def measure_everything(rounds: int, *, write: bool) -> None:
    """Time automatic masks beside those of `SamAutomaticMaskGenerator`, on the demo SAM and on a random ViT-B."""
    from text2seg.config import AutomaticSettings
    from text2seg.io.images import load_image
    from text2seg.loading import load_sam

    demo, _ = load_sam("demo", sam=None, device="cpu", precision="fp32")
    scene = load_image(bundled()[0] / "images" / "scene_0019.jpg")
    # Random weights give noise: small logits, and predicted IoUs around 0.
    noise = AutomaticSettings(
        points_per_side=16, predicted_iou=1e-6, stability=0.5, stability_offset=1e-3, box_overlap=1
    )
    rows = [
        ("demo, a bundled scene, 1,024 points", *everything_row(demo, scene, AutomaticSettings(), rounds)),
    ]
    vit_b = sams()["vit_b"]()
    import sam_builders  # sams() has added the folder of tests to the path

    image = sam_builders.make_image(480, 640)
    rows.append(("ViT-B, random weights, 480 × 640, 256 points", *everything_row(vit_b, image, noise, rounds)))
    headings = ("SAM", "segment-anything", "text2seg", "times as fast", "masks", "lowest IoU")
    publish("everything", markdown(headings, rows), page=PAGE, how=how("everything"), write=write)


def everything_row(sam: Any, image: Any, settings: Any, rounds: int) -> list[str]:
    """Return the CPU seconds of both, their ratio, the number of masks, and the lowest IoU of two masks in turn."""
    from segment_anything import SamAutomaticMaskGenerator

    from text2seg.grids import iou
    from text2seg.sam.automatic import automatic_masks

    stock = SamAutomaticMaskGenerator(
        sam.module,
        points_per_side=settings.points_per_side,
        pred_iou_thresh=settings.predicted_iou,
        stability_score_thresh=settings.stability,
        stability_score_offset=settings.stability_offset,
        box_nms_thresh=settings.box_overlap,
    )
    pixels, results = image.pixels.copy(), {}

    def theirs() -> None:
        results["theirs"] = [each["segmentation"] for each in stock.generate(pixels)]

    def ours() -> None:
        (embedding,) = sam.embed([image])
        found = automatic_masks(sam, lambda _: embedding, image, settings)
        results["ours"] = [segment.mask for segment in found.segments]

    slow, fast = cpu_seconds(theirs, rounds), cpu_seconds(ours, rounds)
    if len(results["ours"]) != len(results["theirs"]):
        raise SystemExit(f"{len(results['ours'])} masks instead of {len(results['theirs'])}")
    worst = min(iou(one, other) for one, other in zip(results["ours"], results["theirs"], strict=True))
    return [f"{slow:.1f} s", f"{fast:.1f} s", f"{slow / fast:.1f}", str(len(results["ours"])), f"{worst:.4f}"]


def how(what: str) -> str:
    """Return the command for the line below the table."""
    return f"benchmarks/networks.py {what}, fp32, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("clips", "sams", "everything"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/measurements/{PAGE}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    measures = {"clips": measure_clips, "sams": measure_sams, "everything": measure_everything}
    measures[args.what](args.rounds, write=args.write)


if __name__ == "__main__":
    main()
