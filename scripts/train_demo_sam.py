"""Train the demo SAM from scratch on the demo world and write it in the official format.

A SAM of the official architecture, small. Prompts are drawn as text2seg makes them: one point, several
positive and negative points on one drawing or on all of a kind, boxes, low-resolution masks. The loss is
focal + dice on the best of the three candidates and on the single-mask output, plus the predicted IoU.
Resumable: run the same command again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from demo_world.backgrounds import background_bank
from demo_world.prompts import LARGEST_SCENE, PROMPTS, SIDE, TARGET, Prompts
from demo_world.scenes import SceneSettings, SpriteBank
from demo_world.sprites import FURTHER_STYLES, HELD_OUT_VENDOR, TRAINING_VENDORS, load_sprites
from demo_world.training import Optimiser, Run, attention, training_parser, whitened_patches
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from text2seg.sam.build import PIXEL_MEAN, PIXEL_STD, SamShape, build_sam
from text2seg.sam.decoder import NOT_A_POINT, POSITIVE, decode
from text2seg.weights.tensors import load_sam_weights

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
    """Take over a finished SAM of this or another size: positions are stretched, what else has another shape begins
    anew. Gives the names of what does."""
    anew = []
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
            anew.append(name)
    return anew


def normalise(pixels: Tensor, device: str) -> Tensor:
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    return (pixels.to(device).permute(0, 3, 1, 2).float() - mean) / std


def predict(sam: nn.Module, batch: tuple, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [P, 4, TARGET, TARGET], predicted IoU [P, 4], targets float [P, TARGET, TARGET] in [0, 1]."""
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
    """IoU from the deepest point of each drawing: of the candidate SAM scores best, and of the best of three."""
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
    """A state dict with the official names; half precision, which loads into any SAM builder as it is."""
    torch.save({name: tensor.half().contiguous() for name, tensor in sam.state_dict().items()}, path)


def main() -> None:
    parser = training_parser(__doc__, Path("runs/demo_sam"))
    parser.add_argument("--batch", type=int, default=12, help=f"scenes a step, {PROMPTS} prompts each")
    parser.add_argument("--iou-weight", type=float, default=5, help="of the predicted IoU's squared error in the loss")
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
