"""Train the demo SAM from scratch on the demo world and write it in the official format.

The model is a small SAM of the official architecture. The random prompts are like those of text2seg: one point, several
positive and negative points on one drawing or on all drawings of a thing, boxes, and low-resolution masks. The loss is
focal + dice on the best of the three candidates and on the single-mask output, plus the squared error of the predicted
IoU. To resume a stopped run, run the same command again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from drawings import FURTHER_STYLES, HELD_OUT_VENDOR, TRAINING_VENDORS, load_sprites
from loop import Optimiser, Run, attention, training_parser, whitened_patches
from scenes import SceneSettings, SpriteBank, background_bank, render_scene
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from text2seg.sam.base import PIXEL_MEAN, PIXEL_STD
from text2seg.sam.decoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, POSITIVE, decode
from text2seg.sam.sam import SamShape, build_sam
from text2seg.weights.load import load_sam_weights

# ---- training data: scenes with point sets, boxes and coarse masks like those of text2seg

SIDE, TARGET = 512, 192  # side of the model's square input, and of the masks in the loss, in pixels
LARGEST_SCENE = 512  # longest side of a scene in pixels; scenes are resized to the model's input, like images
LOW_RESOLUTION = SIDE // 4  # side of mask prompts
PROMPTS = 3  # per scene
BACKGROUNDS = 300  # backgrounds in memory


class Prompts(IterableDataset):
    """Endless batches.

    A batch has pixels uint8 [B, SIDE, SIDE, 3]; points float32 [B·3, N, 2], xy in pixels of the input, and their
    labels int64 [B·3, N]; targets uint8 [B·3, TARGET, TARGET], the covered share of each pixel from 0 to 255; mask
    logits [B·3, 1, SIDE / 4, SIDE / 4] or None.
    """

    def __init__(self, bank: SpriteBank, batch: int, seed: int, settings: SceneSettings) -> None:
        self.bank, self.batch, self.seed, self.settings = bank, batch, seed, settings

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        backgrounds = background_bank(rng, BACKGROUNDS, LARGEST_SCENE)
        while True:
            yield self.make_batch(rng, backgrounds)
            backgrounds[rng.integers(BACKGROUNDS)] = background_bank(rng, 1, LARGEST_SCENE)[0]

    def make_batch(self, rng: np.random.Generator, backgrounds: list[np.ndarray]) -> tuple:
        kind = rng.choice(["point", "points", "box"], p=[0.4, 0.45, 0.15])
        positives, negatives = (1, 0) if kind == "point" else (int(rng.integers(1, 9)), int(rng.integers(0, 9)))
        with_mask = kind != "point" and rng.random() < 0.2
        pixels, points, labels, targets = [], [], [], []
        while len(pixels) < self.batch:
            canvas, owner, things = self.scene(rng, backgrounds)
            if not things:
                continue
            pixels.append(canvas)
            for _ in range(PROMPTS):
                if kind == "box":
                    xy, label, target = _box_prompt(rng, owner, len(things))
                else:
                    xy, label, target = _point_prompt(rng, owner, things, positives, negatives)
                points.append(xy)
                labels.append(label)
                targets.append(
                    cv2.resize(target.astype(np.uint8) * 255, (TARGET, TARGET), interpolation=cv2.INTER_AREA)
                )
        targets = torch.from_numpy(np.stack(targets))
        masks = _mask_prompts(rng, targets) if with_mask else None
        return (
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.stack(points)),
            torch.tensor(np.stack(labels)),
            targets,
            masks,
        )

    def scene(self, rng: np.random.Generator, backgrounds: list[np.ndarray]) -> tuple:
        """Render a scene on a square canvas uint8 [SIDE, SIDE, 3]. Also return the number of the drawing at each pixel,
        uint8 [SIDE, SIDE], and the things drawn, as in `Scene`."""
        long = int(rng.integers(288, LARGEST_SCENE + 1))
        short = round(long * rng.uniform(0.5, 1))
        hw = (short, long) if rng.random() < 0.6 else (long, short)
        scene = render_scene(rng, self.bank, hw, self.settings, backgrounds=backgrounds)
        height, width = (round(side * SIDE / long) for side in scene.owner.shape)
        canvas = np.full((SIDE, SIDE, 3), np.round(PIXEL_MEAN), np.uint8)
        canvas[:height, :width] = cv2.resize(
            scene.pixels, (width, height), interpolation=cv2.INTER_AREA if long > SIDE else cv2.INTER_LINEAR
        )
        owner = np.zeros((SIDE, SIDE), np.uint8)
        owner[:height, :width] = cv2.resize(scene.owner, (width, height), interpolation=cv2.INTER_NEAREST)
        return canvas, owner, scene.things


def _point_prompt(
    rng: np.random.Generator, owner: np.ndarray, things: tuple[int, ...], positives: int, negatives: int
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Return xy, labels and target of points on one drawing, or on all drawings of the same thing.

    The target covers all drawings that have a positive point.
    """
    first = int(rng.integers(len(things)))
    kind = [k + 1 for k, thing in enumerate(things) if thing == things[first]]
    group = kind if positives > 1 and rng.random() < 0.6 else [first + 1]
    area = np.isin(owner, group)
    inside = _pick(rng, area, positives, deep=True)
    target = np.isin(owner, np.unique(owner[inside[:, 1], inside[:, 0]]))
    outside = _pick(rng, ~np.isin(owner, kind), negatives, deep=False)
    xy = np.concatenate([inside, outside, np.zeros((1, 2))]).astype(np.float32)
    return xy, [POSITIVE] * positives + [NEGATIVE] * negatives + [NOT_A_POINT], target


def _pick(rng: np.random.Generator, area: np.ndarray, count: int, *, deep: bool) -> np.ndarray:
    """Return `count` random points xy in the area; `deep` prefers points far from its edge."""
    rows, columns = np.nonzero(area)
    draws = rng.integers(len(rows), size=(3 if deep else 1, count))
    if deep and count:
        depth = cv2.distanceTransform(area.astype(np.uint8), cv2.DIST_L2, 3)[rows, columns]
        draws = draws[: rng.integers(1, 4)]
        draws = np.take_along_axis(draws, depth[draws].argmax(0)[None], axis=0)
    return np.column_stack([columns[draws[0]], rows[draws[0]]])


def _box_prompt(rng: np.random.Generator, owner: np.ndarray, count: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    target = owner == 1 + rng.integers(count)
    left, top, width, height = cv2.boundingRect(target.astype(np.uint8))
    jitter = rng.normal(0, 0.07, 4) * [width, height, width, height]
    corners = np.array([left, top, left + width, top + height]) + jitter
    inside = _pick(rng, target, 1, deep=True)
    xy = np.concatenate([inside, np.clip(corners, 0, SIDE).reshape(2, 2)]).astype(np.float32)
    return xy, [POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], target


def _mask_prompts(rng: np.random.Generator, targets: Tensor) -> Tensor:
    """Return mask logits like those of a similarity map: the target on a coarse grid, with noise and blur."""
    coarse = F.adaptive_avg_pool2d(targets[:, None].float() / 255, 16)
    noise = torch.from_numpy(rng.normal(0, 0.2, coarse.shape).astype(np.float32))
    return F.interpolate((2 * (coarse + noise) - 1) * float(rng.uniform(1, 10)), size=LOW_RESOLUTION, mode="bilinear")


# ---- training

SHAPE = SamShape(
    width=192,
    depth=6,
    heads=3,
    window=8,
    global_blocks=(1, 3, 5),
    image_size=SIDE,
    patch=16,
    embedding=128,
    mask_in_channels=16,
    decoder_depth=2,
    decoder_mlp=512,
    candidates=3,
    iou_depth=3,
    iou_width=128,
)


def build_model() -> nn.Module:
    torch.manual_seed(0)
    sam = build_sam(SHAPE).train()
    encoder = sam.image_encoder
    with torch.no_grad():
        nn.init.normal_(encoder.pos_embed, std=0.02)
        for block in encoder.blocks:
            nn.init.normal_(block.attn.qkv.weight, std=SHAPE.width**-0.5)
            nn.init.normal_(block.attn.proj.weight, std=(2 * SHAPE.depth * SHAPE.width) ** -0.5)
            nn.init.normal_(block.mlp.lin1.weight, std=SHAPE.width**-0.5)
            nn.init.normal_(block.mlp.lin2.weight, std=(8 * SHAPE.depth * SHAPE.width) ** -0.5)
    return sam


def start_from(sam: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy the weights of a trained SAM of this or another size. Positions are resized; other weights of another shape
    are not copied. Return the names of the weights that were not copied."""
    not_copied = []
    for name, tensor in sam.state_dict().items():
        given = weights.get(name)
        if given is not None and given.ndim == tensor.ndim and given.shape != tensor.shape:
            if name.endswith("pos_embed") and given.shape[-1] == tensor.shape[-1]:
                grid = F.interpolate(given.movedim(-1, 1), tensor.shape[1:3], mode="bicubic")
                given = grid.movedim(1, -1)
            elif "rel_pos" in name and given.shape[-1] == tensor.shape[-1]:
                given = F.interpolate(given.T[None], len(tensor), mode="linear")[0].T
        if given is not None and given.shape == tensor.shape:
            tensor.copy_(given)
        else:
            not_copied.append(name)
    return not_copied


def normalise(pixels: Tensor, device: str) -> Tensor:
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    return (pixels.to(device).permute(0, 3, 1, 2).float() - mean) / std


def predict(sam: nn.Module, batch: tuple, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [P, 4, TARGET, TARGET], predicted IoU [P, 4] and targets float [P, TARGET, TARGET] in [0, 1]."""
    pixels, points, labels, targets, masks = batch
    index = torch.arange(len(pixels), device=device).repeat_interleave(len(points) // len(pixels))
    with torch.autocast(device, torch.bfloat16):
        embeddings = sam.image_encoder(normalise(pixels, device))
        masks = None if masks is None else masks.to(device)
        logits, scores = decode(
            sam, embeddings, index, points.to(device), labels.to(device), masks, attention=attention
        )
    logits = F.interpolate(logits.float(), size=TARGET, mode="bilinear", align_corners=False)
    return logits, scores.float(), targets.to(device).float() / 255


def loss_of(logits: Tensor, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Focal + dice per output; the best candidate and the single-mask output count; squared error of the IoU."""
    truth = target[:, None].expand_as(logits)
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    focal = (cross_entropy * (probability - truth).abs() ** 2).mean((2, 3))
    overlap = (probability * truth).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + truth.sum((2, 3)) + 1)
    each = 20 * focal + dice
    with torch.no_grad():
        iou = iou_of(logits, target)
    masks = each[:, 0] + each[:, 1:].amin(1) + 0.3 * each[:, 1:].mean(1)
    return masks.mean(), F.mse_loss(scores, iou)


def iou_of(logits: Tensor, target: Tensor) -> Tensor:
    guess, truth = logits > 0, target[:, None] > 0.5
    union = (guess | truth).sum((2, 3))
    return (guess & truth).sum((2, 3)) / union.clamp(min=1)


@torch.no_grad()
def one_point_iou(sam: nn.Module, prompts: Prompts, scenes: int, device: str) -> dict[str, float]:
    """Return the mean IoU with one point at the deepest place of each drawing: `chosen` for the candidate with SAM's
    highest score, `best` for the best of three."""
    sam.eval()
    rng = np.random.default_rng(54321)
    backgrounds = background_bank(rng, 40, LARGEST_SCENE)
    chosen, best = [], []
    for _ in range(scenes):
        canvas, owner, things = prompts.scene(rng, backgrounds)
        masks = [owner == k + 1 for k in range(len(things))]
        if not masks:
            continue
        depths = [cv2.distanceTransform(m.astype(np.uint8), cv2.DIST_L2, 3) for m in masks]
        points = [[divmod(int(d.argmax()), SIDE)[::-1], (0, 0)] for d in depths]
        targets = [cv2.resize(m.astype(np.uint8) * 255, (TARGET, TARGET), interpolation=cv2.INTER_AREA) for m in masks]
        labels = torch.tensor([[POSITIVE, NOT_A_POINT]] * len(masks))
        batch = (
            torch.from_numpy(canvas)[None],
            torch.tensor(points, dtype=torch.float32),
            labels,
            torch.from_numpy(np.stack(targets)),
            None,
        )
        logits, scores, target = predict(sam, batch, device)
        iou = iou_of(logits, target)[:, 1:]
        chosen += iou.gather(1, scores[:, 1:].argmax(1, keepdim=True))[:, 0].tolist()
        best += iou.amax(1).tolist()
    sam.train()
    return {"chosen": round(float(np.mean(chosen)), 4), "best": round(float(np.mean(best)), 4)}


def export(sam: nn.Module, path: Path) -> None:
    """Write a state dict with the official names in half precision, which any SAM builder can load."""
    torch.save({name: tensor.half().contiguous() for name, tensor in sam.state_dict().items()}, path)


def main() -> None:
    parser = training_parser(__doc__, Path("runs/demo_sam"))
    parser.add_argument("--batch", type=int, default=12, help=f"scenes per step, with {PROMPTS} prompts each")
    parser.add_argument("--iou-weight", type=float, default=5, help="weight of the predicted IoU's squared error")
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)

    sprites = load_sprites(args.drawings)
    bank = SpriteBank(sprites, (*TRAINING_VENDORS, *FURTHER_STYLES))
    sam = build_model().to(args.device)
    optimiser = Optimiser(sam, lr=args.lr, weight_decay=0.05)
    run = Run(args.output, args.minutes)
    resumed = run.resume(sam, optimiser)
    if args.start and not resumed:
        run.log(start=str(args.start), anew=len(start_from(sam, load_sam_weights(args.start))))
    elif not resumed:
        pixels = next(iter(Prompts(bank, 128, 0, SceneSettings())))[0]
        filters = whitened_patches(normalise(pixels, "cpu"), SHAPE.patch, SHAPE.width)
        sam.image_encoder.patch_embed.proj.weight.data.copy_(filters)
    run.log(weights=sum(p.numel() for p in sam.parameters()), drawings=len(sprites))

    plain = SceneSettings(colour=0.3)
    checks = {
        "new scenes": Prompts(bank, 1, 0, plain),
        "held-out vendor": Prompts(SpriteBank(sprites, [HELD_OUT_VENDOR]), 1, 0, plain),
    }
    data = DataLoader(
        Prompts(bank, args.batch, run.step + 1, SceneSettings(same_kind=0.3)),
        batch_size=None,
        num_workers=1,
        prefetch_factor=4,
    )
    for batch in data:
        logits, scores, target = predict(sam, batch, args.device)
        mask_loss, iou_loss = loss_of(logits, scores, target)
        (mask_loss + args.iou_weight * iou_loss).backward()
        norm = optimiser.step(run.factor)
        run.step += 1
        if run.step % 100 == 0:
            run.log(
                mask=round(float(mask_loss.detach()), 4), iou=round(float(iou_loss.detach()), 4), norm=round(norm, 3)
            )
        if run.step % 1000 == 0:
            run.log(**{name: one_point_iou(sam, prompts, 60, args.device) for name, prompts in checks.items()})
        run.save(sam, optimiser)
        if run.progress >= 1:
            break
    run.log(**{name: one_point_iou(sam, prompts, 200, args.device) for name, prompts in checks.items()})
    run.save(sam, optimiser, force=True)
    export(sam, args.output / "sam_demo.pth")


if __name__ == "__main__":
    main()
