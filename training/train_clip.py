"""Train the demo CLIP from scratch on the demo world and write it in OpenAI's format.

The model is a small ViT of OpenAI's architecture. The loss is the cross-entropy of the surgery path's patch features
with the texts of all things, with the empty text as background, plus a multi-label image–text term on CLS. To resume a
stopped run, run the same command again. On a GPU the script runs in minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import clip
import numpy as np
import torch
from clip.model import CLIP, convert_weights
from drawings import FURTHER_STYLES, HELD_OUT_VENDOR, TRAINING_VENDORS, load_sprites, load_things
from loop import Optimiser, Run, attention, training_parser, whitened_patches
from scenes import SceneSettings, SpriteBank, background_bank, render_scene
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from text2seg.clip.encoders import encode_vit, resize_positions
from text2seg.clip.model import CLIP_MEAN, CLIP_STD
from text2seg.clip.text import encode_tokens
from text2seg.templates import TEMPLATES
from text2seg.weights.load import load_clip_weights

PATCH, SIDE, WIDTH, LAYERS, EMBEDDING = 16, 384, 192, 6, 64
SMALL = 192  # side of most training scenes in pixels; the last ones have the full side
TEXT_WIDTH, TEXT_LAYERS, TEXT_LENGTH = 64, 2, 24
POSITIONS = "visual.positional_embedding"
MAX_OBJECTS = 6
VARIETY = {"colour": 1.5, "shear": 0.2, "stretch": 0.3, "style": 0.45}
"""More than in the splits, because the styles of other vendors differ."""


def build_model() -> CLIP:
    torch.manual_seed(0)
    model = CLIP(EMBEDDING, SIDE, LAYERS, WIDTH, PATCH, 77, 49408, TEXT_WIDTH, TEXT_WIDTH // 64, TEXT_LAYERS)
    visual = model.visual
    with torch.no_grad():
        visual.positional_embedding[1:] = 0.3 * _sin_cos(SIDE // PATCH, WIDTH)
        for block in visual.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=WIDTH**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * LAYERS * WIDTH) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=WIDTH**-0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(8 * LAYERS * WIDTH) ** -0.5)
    return model


def _sin_cos(side: int, width: int) -> Tensor:
    """Return two-dimensional sine-cosine position embeddings [side·side, width], similar for neighbours."""
    waves = 1 / (60 ** (torch.arange(width // 4) / (width // 4)))
    angles = torch.arange(side)[:, None] * waves
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line[:, None].expand(side, side, -1)
    columns = line[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def stretched(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights for another input size with their position embeddings resized to this one."""
    grid = SIDE // PATCH
    return weights | {POSITIONS: resize_positions(weights[POSITIONS], (grid, grid)).reshape(-1, WIDTH)}


class Scenes(IterableDataset):
    """Endless batches.

    A batch has pixels uint8 [B, s, s, 3]; the shares float16 [B, 7, g·g] of each patch that the background and each
    drawing cover; and their things int64 [B, 7], where the number of things (`count`) means background.
    """

    def __init__(
        self,
        bank: SpriteBank,
        count: int,
        side: int,
        batch: int,
        seed: int,
        *,
        frame: int | None = None,
        **settings: object,
    ) -> None:
        """Create the dataset. `frame` (default: `side`) is the side of the larger images that scenes are crops of."""
        self.bank, self.count, self.side, self.batch, self.seed = bank, count, side, batch, seed
        self.scales = 0.85 * side, 1.05 * max(frame or side, 1.3 * side)
        self.settings = SceneSettings(**settings)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        backgrounds = background_bank(rng, 600, self.side + 96)
        while True:
            yield self.make_batch(rng, backgrounds)
            if rng.random() < 0.2:
                backgrounds[rng.integers(600)] = background_bank(rng, 1, self.side + 96)[0]

    def make_batch(self, rng: np.random.Generator, backgrounds: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        grid = self.side // PATCH
        pixels = np.empty((self.batch, self.side, self.side, 3), np.uint8)
        shares = np.zeros((self.batch, 1 + MAX_OBJECTS, grid * grid), np.float16)
        things = np.full((self.batch, 1 + MAX_OBJECTS), self.count, np.int64)
        for i in range(self.batch):
            hw = (self.side, self.side)
            scale = rng.uniform(*self.scales)
            scene = render_scene(rng, self.bank, hw, self.settings, scale=scale, backgrounds=backgrounds)
            pixels[i] = scene.pixels
            things[i, 1 : 1 + len(scene.things)] = scene.things
            for k in range(1 + len(scene.things)):
                part = (scene.owner == k).reshape(grid, PATCH, grid, PATCH)
                shares[i, k] = part.mean((1, 3), dtype=np.float32).ravel()
        return torch.from_numpy(pixels), torch.from_numpy(shares), torch.from_numpy(things)


def normalise(pixels: Tensor, device: torch.device) -> Tensor:
    x = pixels.to(device).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(CLIP_MEAN, device=device)[:, None, None]) / torch.tensor(CLIP_STD, device=device)[
        :, None, None
    ]


class Texts:
    """Tokens of all wordings of all things in all templates; the empty text comes last."""

    def __init__(self, things: dict[str, list[str]]) -> None:
        wordings = [*things.values(), [""]]
        self._tokens = [
            clip.tokenize([t.format(w) for w in words for t in TEMPLATES], context_length=TEXT_LENGTH)
            for words in wordings
        ]

    def sample(self, rng: torch.Generator) -> Tensor:
        """Return a random wording in a random template for each thing and for the empty text: int [things + 1,
        length]."""
        return torch.stack([t[torch.randint(len(t), (1,), generator=rng)[0]] for t in self._tokens])

    def features(self, model: CLIP) -> Tensor:
        """Return the unit features of each thing's first wording, mean over the templates, as in the pipeline."""
        with torch.no_grad():
            means = [
                encode_tokens(model, t[: len(TEMPLATES)].to(model.logit_scale.device)).mean(0) for t in self._tokens
            ]
        return F.normalize(torch.stack(means), dim=-1)


def separate_texts(model: CLIP, texts: Texts, draw: torch.Generator, device: str, steps: int) -> float:
    """Train only the text tower, so that wordings of one thing are similar and those of different things are not.

    A new text tower gives nearly the same features for all texts, and the image tower learns almost nothing until that
    changes. This step takes seconds. Return the mean cosine between different things after it.
    """
    optimiser = torch.optim.AdamW([p for n, p in model.named_parameters() if "visual" not in n], lr=2e-3)
    same = torch.arange(len(texts.sample(draw)), device=device)
    for _ in range(steps):
        one, other = (encode_tokens(model, texts.sample(draw).to(device)) for _ in range(2))
        loss = F.cross_entropy(15 * one @ other.T, same)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    features = texts.features(model)
    return float((features @ features.T).fill_diagonal_(0).sum() / (len(same) * (len(same) - 1)))


def loss_of(model: CLIP, tokens: Tensor, text: Tensor, shares: Tensor, things: Tensor) -> tuple[Tensor, Tensor]:
    """Return the patch cross-entropy, in which background patches have half weight, and the multi-label image term."""
    tokens = F.normalize(tokens.float(), dim=-1)
    logits = model.logit_scale.exp().clamp(max=100) * tokens @ text.T
    target = torch.zeros_like(logits[:, 1:])
    index = things[:, None].expand(-1, target.shape[1], -1)
    target.scatter_add_(2, index, shares.float().transpose(1, 2))
    per_patch = -(target * logits[:, 1:].log_softmax(-1)).sum(-1)
    weight = 1 - 0.5 * target[..., -1]
    present = target.amax(1)[:, :-1] > 0.5
    labels = torch.cat([present, ~present.any(1, keepdim=True)], dim=1).float()
    image = -(labels / labels.sum(1, keepdim=True) * logits[:, 0].log_softmax(-1)).sum(-1).mean()
    return (per_patch * weight).sum() / weight.sum(), image


@torch.no_grad()
def patch_argmax_iou(model: CLIP, texts: Texts, scenes: Scenes, batches: int) -> float:
    """Return the mean IoU of the patches whose best text is a thing, over all pairs of an image and a thing in it."""
    model.eval()
    text = texts.features(model)
    rng = np.random.default_rng(12345)
    backgrounds = background_bank(rng, 60, scenes.side + 96)
    ious = []
    for _ in range(batches):
        pixels, shares, things = scenes.make_batch(rng, backgrounds)
        with torch.autocast(text.device.type, torch.bfloat16):
            tokens = encode_vit(model.visual, normalise(pixels, text.device), attention=attention)[:, 1:]
        guess = (F.normalize(tokens.float(), dim=-1) @ text.T).argmax(-1).cpu()
        owner = things.gather(1, shares.float().argmax(1))
        for row, truth in zip(guess, owner, strict=True):
            for thing in truth.unique():
                if thing != scenes.count:
                    hit, real = row == thing, truth == thing
                    ious.append(float((hit & real).sum() / (hit | real).sum()))
    model.train()
    return sum(ious) / len(ious)


def export(model: CLIP, path: Path) -> None:
    """Write a TorchScript archive like OpenAI's, for `clip.load(path)`: half precision, the same names, and the three
    extra numbers."""
    model = model.cpu().eval().requires_grad_(False)
    convert_weights(model)  # leaves the norms in float32
    model.token_embedding.half()
    for name, value in (("input_resolution", SIDE), ("context_length", 77), ("vocab_size", 49408)):
        model.__dict__.pop(name, None)  # some are plain attributes, which would hide the buffer
        model.register_buffer(name, torch.tensor(value))
    example = (torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float16), torch.zeros(1, 77, dtype=torch.int64))
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(path))


def main() -> None:
    parser = training_parser(__doc__, Path("runs/demo_clip"))
    parser.add_argument("--batch", type=int, default=64, help=f"scenes of {SMALL} px per step; fewer of the large ones")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument(
        "--full-size-from", type=float, default=0.75, help="share of the time after which scenes are large"
    )
    parser.add_argument("--text-steps", type=int, default=400, help="first steps, which train only the text tower")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)

    things, sprites = load_things(), load_sprites(args.drawings)
    bank = SpriteBank(sprites, (*TRAINING_VENDORS, *FURTHER_STYLES))
    texts, model = Texts(things), build_model().to(args.device)
    optimiser = Optimiser(model, lr=args.lr, weight_decay=0.05)
    run = Run(args.output, args.minutes)
    resumed = run.resume(model, optimiser)
    if args.start and not resumed:
        model.load_state_dict(stretched(load_clip_weights(args.start)))
    elif not resumed:
        pixels, _, _ = next(iter(Scenes(bank, len(things), SMALL, 256, 0)))
        model.visual.conv1.weight.data.copy_(whitened_patches(normalise(pixels, "cpu"), PATCH, WIDTH))
        draw = torch.Generator().manual_seed(0)
        run.log(cosine_between_things=round(separate_texts(model, texts, draw, args.device, args.text_steps), 3))
    run.log(weights=sum(p.numel() for p in model.parameters()), things=len(things), drawings=len(sprites))

    checks = {
        "new scenes": Scenes(bank, len(things), SIDE, 20, 0, colour=0.3),
        "held-out vendor": Scenes(SpriteBank(sprites, [HELD_OUT_VENDOR]), len(things), SIDE, 20, 0, colour=0.3),
        "held-out vendor, other styles": Scenes(
            SpriteBank(sprites, [HELD_OUT_VENDOR]), len(things), SIDE, 20, 0, colour=0.3, style=1.0
        ),
    }
    draw = torch.Generator().manual_seed(run.step)
    while run.progress < 1:
        small = run.progress < args.full_size_from
        side = SMALL if small else SIDE
        batch = max(args.batch * SMALL**2 // side**2, 1)  # the same number of patches per step
        # Crowded scenes first, in which most patches show a thing.
        crowd = (3 if small else 1, MAX_OBJECTS)
        scenes = Scenes(bank, len(things), side, batch, run.step + 1, frame=SIDE, objects=crowd, **VARIETY)
        for pixels, shares, owners in DataLoader(scenes, batch_size=None, num_workers=1, prefetch_factor=4):
            with torch.autocast(args.device, torch.bfloat16):
                text = encode_tokens(model, texts.sample(draw).to(args.device))
                images = normalise(pixels, args.device)
                tokens = encode_vit(model.visual, images, attention=attention)
            patch, image = loss_of(model, tokens, text, shares.to(args.device), owners.to(args.device))
            (patch + 0.1 * image).backward()
            norm = optimiser.step(run.factor)
            run.step += 1
            if run.step % 50 == 0:
                run.log(patch=round(float(patch), 4), image=round(float(image), 4), norm=round(norm, 3), side=side)
            if run.step % 500 == 0:
                run.log(**{name: round(patch_argmax_iou(model, texts, s, 5), 4) for name, s in checks.items()})
            run.save(model, optimiser)
            if run.progress >= 1 or small != (run.progress < args.full_size_from):
                break
    run.log(**{name: round(patch_argmax_iou(model, texts, s, 25), 4) for name, s in checks.items()})
    run.save(model, optimiser, force=True)
    export(model, args.output / "clip_demo.pt")


if __name__ == "__main__":
    main()
