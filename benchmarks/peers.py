"""Compare the speed of text2seg with what people would use in its place, on the CPU, with random weights.

    python benchmarks/peers.py --words 1 20 80
    python benchmarks/peers.py --flows "light" "Grounding DINO tiny, SAM 2.1 tiny" --words 20

Every network has its published size. Nothing is downloaded, so the table says nothing about quality. Flows:

- *light*, *base*, *SAM 2.1 tiny*: text2seg with CLIP ViT-B/16 at 512 pixels and MobileSAM, SAM ViT-B or SAM 2.1 tiny,
  by the reference method, which makes one mask of each word, as many as the peers make here. (`auto` makes one of each
  region, and the maps of random weights have many.) The features of the words are cached, as in every job.
- *Grounding DINO tiny or base, SAM …*: the flow of LangSAM and Grounded-SAM. Grounding DINO finds boxes for all words
  in one text of at most 256 tokens, then SAM (ViT-H or 2.1 tiny) turns boxes into masks. Random weights give no useful
  boxes, so as many of its boxes as there are words are used.
- *SAM 3*: the image encoded once, then each word asked.

The networks of the peers are those of `transformers`. All flows end with masks of the image's size. Seconds are CPU
seconds of all threads together for one image, the lower of the rounds, after one image that is not counted; the flows
take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from networks import sams
from page import markdown, publish
from torch.nn import functional as F

from text2seg.clip.build import build_clip
from text2seg.clip.model import Clip
from text2seg.config import PointSettings, Settings
from text2seg.model_card import NO_CARD
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.runtime import PrecisionName, autocast, choose_precision
from text2seg.sam.sam3 import Sam3
from text2seg.speed.flows import weights_of, words

PAGE = "performance.md"
CPU = torch.device("cpu")
HW = (480, 640)
SHORTER, LONGER = 800, 1333  # sides of Grounding DINO's input in pixels
START, END, SEPARATOR, FIRST_WORD = 101, 102, 1012, 2000  # tokens of BERT: [CLS], [SEP], the full stop, a word
SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
Flow = Callable[[Image, int], Sequence[Any]]
"""Returns the masks bool [H, W] of an image for the first words, this many."""


def ours(name: str, precision: PrecisionName, most: int) -> Flow:
    """Return text2seg with a SAM; the features of this many words are cached."""
    clip = Clip(build_clip(weights_of("vit_b")[0]), device=CPU, precision=choose_precision(CPU, precision))
    clip.encode_texts(words(most))
    settings = Settings(points=PointSettings(method="reference"))
    models = Text2Seg(clip, sams(precision)[name](), settings=settings, input_size=NO_CARD.input_size)

    def run(image: Image, count: int) -> list[Any]:
        return [segment.mask for segment in models.segment(image, words(count)).segments]

    return run


def grounded(dino: str, sam: str, precision: PrecisionName, _: int) -> Flow:
    """Return the flow of Grounding DINO and a SAM that is given boxes."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    config = GroundingDinoConfig()
    if dino == "base":
        outputs = {"out_features": config.backbone_config.out_features}
        config = GroundingDinoConfig(backbone_config=SwinConfig(**SWIN_BASE, **outputs))
    detector = GroundingDinoForObjectDetection(config).eval()
    masks_of = boxes_to_masks(sam)
    chosen = choose_precision(CPU, precision)

    def run(image: Image, count: int) -> list[Any]:
        rows, columns = image.hw
        zoom = min(SHORTER / min(image.hw), LONGER / max(image.hw))
        pixels = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1)[None].float() / 255 - 0.5
        size = (round(rows * zoom), round(columns * zoom))
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        tokens = torch.tensor([[START, *(t for w in range(count) for t in (FIRST_WORD + w, SEPARATOR)), END]])
        with autocast(CPU, chosen):
            found = detector(pixel_values=pixels, input_ids=tokens)
            best = found.logits[0].float().amax(-1).topk(count).indices
            middle, side = found.pred_boxes[0, best].float().split(2, dim=-1)
            return masks_of(pixels, torch.cat([middle - side / 2, middle + side / 2], dim=-1).clamp(0, 1), image.hw)

    return run


def boxes_to_masks(sam: str) -> Callable[[torch.Tensor, torch.Tensor, tuple[int, int]], list[Any]]:
    """Return a function from pixels [1, 3, h, w], boxes [N, 4] as shares of the image and its size to masks."""
    from transformers import Sam2Config, Sam2Model, SamConfig, SamModel, SamVisionConfig

    if sam == "2.1 tiny":
        model: Any = Sam2Model(Sam2Config()).eval()
    else:
        huge = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120}
        vision = SamVisionConfig(**huge, global_attn_indexes=[7, 15, 23, 31])
        model = SamModel(SamConfig(vision_config=vision)).eval()
    side = 1024

    def run(pixels: torch.Tensor, boxes: torch.Tensor, hw: tuple[int, int]) -> list[Any]:
        framed = F.interpolate(pixels, (side, side), mode="bilinear")
        answer = model(pixel_values=framed, input_boxes=(boxes * side)[None], multimask_output=False)
        low = answer.pred_masks.float().flatten(0, 2)[:, None]
        full = F.interpolate(F.interpolate(low, (side, side), mode="bilinear"), hw, mode="bilinear")
        return list((full[:, 0] > 0).numpy())

    return run


class NoTokenizer:
    """Tokens of random words: SAM 3's tokenizer is not at hand, and its time does not count."""

    def __call__(self, text: str, *, max_length: int = 3, **_: object) -> dict[str, torch.Tensor]:
        ids = torch.randint(1, 40_000, (1, max_length), generator=torch.Generator().manual_seed(len(text)))
        return {"input_ids": ids, "attention_mask": (torch.arange(max_length) < 3).long()[None]}


def sam3(precision: PrecisionName, _: int) -> Flow:
    from transformers import Sam3Config, Sam3Model

    model = Sam3(Sam3Model(Sam3Config()), NoTokenizer(), CPU, choose_precision(CPU, precision))

    def run(image: Image, count: int) -> list[Any]:
        found = model.find(image, words(count))
        return [model.mask(each.logits[int(each.scores.argmax())], image.hw) for each in found]

    return run


FLOWS: Mapping[str, Callable[[PrecisionName, int], Flow]] = {
    "light": partial(ours, "mobile_sam"),
    "base": partial(ours, "vit_b"),
    "SAM 2.1 tiny": partial(ours, "sam2.1_hiera_tiny"),
    "Grounding DINO tiny, SAM 2.1 tiny": partial(grounded, "tiny", "2.1 tiny"),
    "Grounding DINO base, SAM 2.1 tiny": partial(grounded, "base", "2.1 tiny"),
    "Grounding DINO tiny, SAM ViT-H": partial(grounded, "tiny", "ViT-H"),
    "SAM 3": sam3,
}


@torch.inference_mode()
def cpu_seconds(flow: Flow, image: Image, count: int) -> tuple[float, int]:
    """Return the CPU seconds of an image and the number of masks."""
    start = time.process_time()
    masks = flow(image, count)
    seconds = time.process_time() - start
    if not masks or any(np.shape(mask) != image.hw for mask in masks):
        raise SystemExit("a flow gave no masks, or masks of another size")
    return seconds, len(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS), metavar="FLOW")
    parser.add_argument("--words", nargs="+", type=int, default=[1, 20, 80])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sam3-words", type=int, default=20, help="ask SAM 3 for no more words than this: it is slow")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/measurements/{PAGE}")
    args = parser.parse_args()
    image = Image(np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8), "noise", 1)
    counts = {name: [n for n in args.words if name != "SAM 3" or n <= args.sam3_words] for name in args.flows}
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for name in args.flows:
            flow = FLOWS[name](args.precision, max(args.words))  # one at a time, because together they need 15 GB
            cpu_seconds(flow, image, min(args.words))  # the warm-up
            for count in counts[name]:
                seconds, masks = cpu_seconds(flow, image, count)
                taken.setdefault((name, count), []).append(seconds)
                print(f"{name}, {count} words: {seconds:.1f} CPU s, {masks} masks", flush=True)
    rows = [
        (name, *("–" if (name, n) not in taken else f"{min(taken[name, n]):.1f}" for n in args.words))
        for name in args.flows
    ]
    how = f"benchmarks/peers.py --precision {args.precision}, an image of 480 × 640, {torch.get_num_threads()} threads"
    headings = ("CPU s for an image", *(f"{count} words" if count > 1 else "1 word" for count in args.words))
    publish("peers", markdown(headings, rows), page=PAGE, how=how, write=args.write)


if __name__ == "__main__":
    main()
