"""The two flows to compare: the original flow and text2seg.

The original flow is CLIP Surgery's demo for many queries (arXiv 2304.05653) with the stock `SamPredictor`. It processes
one image at a time, encodes the texts again for every image (85 templates of 77 tokens), reads points from the maps one
by one, and calls the decoder once per query. Only the surgery is text2seg's, because the original surgery cannot run on
rectangles or twice in one process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MethodType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from torch import Tensor
from torch.nn import functional as F

from text2seg import weights
from text2seg.clip.build import build_clip, openai_networks
from text2seg.clip.encoders import encode_vit
from text2seg.clip.maps import without_empty_text
from text2seg.clip.model import Clip, preprocess
from text2seg.clip.text import TextEncoder, tokenize
from text2seg.coco import rle
from text2seg.config import LabelSettings, PointSettings, Settings
from text2seg.labelling.job import label_folder
from text2seg.model_card import NO_CARD, card_of
from text2seg.ontology import ontology_of_queries
from text2seg.pipeline import Text2Seg
from text2seg.records import Image, PointPrompts
from text2seg.runtime import FULL, Precision, autocast
from text2seg.sam.base import SamEmbedding
from text2seg.sam.sam import Sam, SamShape, build_sam, load_sam
from text2seg.speed.meters import Stopwatch
from text2seg.templates import TEMPLATES
from text2seg.weights import BUNDLED
from text2seg.weights.load import load_clip_weights, load_sam_weights

THRESHOLD = 0.8
"""Cells of a map at or above this value become positive points."""


class Original:
    """The original flow, with CLIP and SAM modules in float32."""

    def __init__(
        self,
        clip: Any,
        sam: Any,
        device: torch.device,
        precision: Precision,
        size: int,
        *,
        fused: bool = False,
        compiled: bool = False,
    ) -> None:
        """Prepare the modules.

        Args:
            size: side of CLIP's square input in pixels.
            fused: use fused attention in SAM's encoder, with the position bias as a mask.
            compiled: compile SAM's encoder with torch.
        """
        from segment_anything import SamPredictor

        self._clip, self._size = clip.to(device).eval().requires_grad_(False), size
        self._device, self._precision = device, precision
        self.watch = Stopwatch(device)
        sam = sam.to(device).eval().requires_grad_(False)
        for block in sam.image_encoder.blocks if fused else ():
            block.attn.forward = MethodType(_fused_attention, block.attn)
        if compiled:
            sam.image_encoder.forward = torch.compile(sam.image_encoder.forward, dynamic=False)
        self._predictor = SamPredictor(sam)

    @torch.no_grad()
    def label(self, folder: Path, queries: tuple[str, ...], output: Path) -> None:
        """Label all images of the folder and write one COCO file."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, path in enumerate(sorted(folder.iterdir()), start=1):
            with PilImage.open(path) as opened:
                image = Image(np.asarray(opened.convert("RGB")), path.name, number)
            images.append({"id": number, "file_name": path.name, "width": image.hw[1], "height": image.hw[0]})
            with autocast(self._device, self._precision):
                masks = self._segment(image, queries)
            for category, mask in enumerate(masks, start=1):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "segmentation": rle.encode(mask),
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": number, "name": name} for number, name in enumerate(queries, start=1)]
        output.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))

    def _segment(self, image: Image, queries: tuple[str, ...]) -> list[NDArray[np.bool_]]:
        points = self.points(image, queries)
        with self.watch.stage("encoder"):
            self._predictor.set_image(image.pixels)
        with self.watch.stage("decoder"):
            return [self.mask(each, image.hw) for each in points]

    def points(self, image: Image, queries: tuple[str, ...]) -> list[PointPrompts]:
        """Return the point prompts of each query."""
        with self.watch.stage("text"):
            *texts, empty = [self._text(query) for query in (*queries, "")]
        with self.watch.stage("maps"):
            pixels = preprocess(image, (self._size, self._size))[None].to(self._device)
            tokens = F.normalize(encode_vit(self._clip.visual, pixels)[0].float(), dim=-1)
            scores = without_empty_text(tokens, torch.stack(texts).float(), empty.float())[1:]
            side = round(len(scores) ** 0.5)
            return [_points(each.reshape(1, 1, side, side), image.hw) for each in scores.T]

    def _text(self, query: str) -> Tensor:
        tokens, _ = tokenize([template.replace("{}", query) for template in TEMPLATES], 77)
        features = F.normalize(self._clip.encode_text(tokens.to(self._device)).float(), dim=-1)
        return F.normalize(features.mean(0), dim=-1)

    def features(self) -> Tensor:
        """Return SAM's embedding of the last image, float32 [C, h, w]."""
        return self._predictor.features[0].float()

    @torch.no_grad()
    def mask(self, points: PointPrompts, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask bool [H, W] that SAM scores highest of its three for these points on the last image."""
        at = self._predictor.transform.apply_coords(points.xy, image_hw)
        with autocast(self._device, self._precision):
            masks, scores, _ = self._predictor.predict_torch(
                torch.as_tensor(at, dtype=torch.float32, device=self._device)[None],
                torch.tensor(points.labels.astype(np.int64), dtype=torch.int64, device=self._device)[None],
            )
        best: NDArray[np.bool_] = masks[0, int(scores[0].argmax())].cpu().numpy()
        return best


def _points(scores: Tensor, image_hw: tuple[int, int]) -> PointPrompts:
    """Return the points of one map [1, 1, n, n] like the original `text2points`, which reads them one by one."""
    scores = F.interpolate(scores, scale_factor=0.5, mode="bilinear")[0, 0] if scores.shape[-1] > 16 else scores[0, 0]
    rows, columns = scores.shape
    flat = (scores - scores.min()) / (scores.max() - scores.min())
    flat = flat.flatten()
    order = flat.argsort(descending=True)
    count = min(int((flat >= THRESHOLD).sum()), flat.numel() // 2)
    height, width = image_hw
    found: list[tuple[float, float, int, float]] = []
    for label, cells in ((1, order[:count]), (0, order[-count:])):
        for cell in cells:
            x = min(int((int(cell) % columns + 0.5) * width / columns), width - 1)
            y = min(int((int(cell) // columns + 0.5) * height / rows), height - 1)
            found.append((x, y, label, float(flat[cell])))
    table = np.array(found, np.float32)
    return PointPrompts(table[:, :2].copy(), table[:, 2].astype(np.int8), table[:, 3].copy())


def _fused_attention(module: Any, x: Tensor) -> Tensor:
    """Compute the encoder's attention [B, h, w, C] with one bias for every pair of tokens, all in memory at once."""
    batch, rows, columns, _ = x.shape
    qkv = module.qkv(x).reshape(batch, rows * columns, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind()
    grid = query.unflatten(2, (rows, columns))
    steps = [torch.arange(side, device=x.device) for side in (rows, columns)]
    down, across = (
        table[step[:, None] - step[None] + len(step) - 1].to(query.dtype)
        for table, step in zip((module.rel_pos_h, module.rel_pos_w), steps, strict=True)
    )
    to_rows = torch.einsum("bnhwc,hkc->bnhwk", grid, down)
    to_columns = torch.einsum("bnhwc,wkc->bnhwk", grid, across)
    bias = (to_rows[..., :, None] + to_columns[..., None, :]).flatten(2, 3).flatten(3)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    projected: Tensor = module.proj(mixed.transpose(1, 2).reshape(batch, rows, columns, -1))
    return projected


FlowName = Literal["stock", "stock-half", "stock-fused", "stock-compiled", "ours", "ours-compiled"]
Weights = Mapping[str, Tensor]


class Flow(Protocol):
    """A flow from a folder to a COCO file. `features` and `mask` are for the last image of the last folder."""

    watch: Stopwatch

    def label(self, folder: Path, queries: tuple[str, ...], output: Path) -> None: ...
    def features(self) -> Tensor: ...
    def mask(self, points: PointPrompts, image_hw: tuple[int, int]) -> NDArray[np.bool_]: ...


class Ours:
    """The flow of text2seg, with the points and the choice of the reference method, so that all flows do the same."""

    def __init__(self, clip: Clip, sam: Sam, size: int, *, batch: int) -> None:
        settings = Settings(points=PointSettings(method="reference"))
        self._models = Text2Seg(clip, sam, settings=settings, input_size=size)
        self._batch = batch
        self._embedding: SamEmbedding | None = None
        self.watch = Stopwatch(sam.device)
        model: Any = self._models
        model._prompts = self.watch.timed("maps", model._prompts)
        for owner, stages in (
            (clip, {"encode_texts": "text", "encode_images": "maps"}),
            (sam, {"embed": "encoder", "decode": "decoder", "mask": "decoder"}),
        ):
            for name, stage in stages.items():
                setattr(owner, name, self.watch.timed(stage, getattr(owner, name)))
        patched: Any = sam
        patched.embed = self._remembering(patched.embed)

    def _remembering(self, embed: Callable[..., list[SamEmbedding]]) -> Callable[..., list[SamEmbedding]]:
        """Wrap `embed` so that the last embedding is kept."""

        def run(images: Any) -> list[SamEmbedding]:
            embeddings = embed(images)
            self._embedding = embeddings[-1] if embeddings else self._embedding
            return embeddings

        return run

    def label(self, folder: Path, queries: tuple[str, ...], output: Path) -> None:
        """Label all images of the folder and write one COCO file. Texts are encoded again for each folder."""
        self._models.clip.text = TextEncoder(self._models.clip.model)
        job = LabelSettings(output=output, restart=True, overwrite=True, batch=self._batch)
        label_folder(self._models, folder, ontology_of_queries(queries), job)

    def features(self) -> Tensor:
        return self._last().features

    def mask(self, points: PointPrompts, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask as `Original.mask` does."""
        (candidates,) = self._models.sam.decode([(self._last(), points)])
        return self._models.sam.mask(self._last(), candidates, int(candidates.scores.argmax()))

    def _last(self) -> SamEmbedding:
        if self._embedding is None:
            raise ValueError("no image was labelled, or it had no queries")
        return self._embedding


def make_flow(
    name: FlowName, clip: Weights, sam: Weights, device: torch.device, fast: Precision, size: int, *, batch: int
) -> Flow:
    """Make a flow with these weights. Flows in float32 on a CPU share the memory of the weights.

    Args:
        fast: precision of all flows except `stock`, which is in float32.
        size: side of CLIP's square input in pixels.
        batch: number of images that text2seg processes together; the original flow processes one at a time.
    """
    if name.startswith("ours"):
        module = load_sam(SamShape.of(sam), sam)
        ours = Sam(module, device, fast, compile_encoder=name == "ours-compiled")
        return Ours(Clip(build_clip(clip), device=device, precision=fast), ours, size, batch=batch)
    precision = FULL if name == "stock" else fast
    return Original(
        build_clip(clip),
        load_sam(SamShape.of(sam), sam),
        device,
        precision,
        size,
        fused=name in ("stock-fused", "stock-compiled"),
        compiled=name == "stock-compiled",
    )


# ---- inputs of the measurements: weights and images of real size, and queries

Model = Literal["demo", "vit_b", "vit_l", "vit_h"]
Size = Literal["small", "vga", "1080p", "12mp"]

SIZES_HW: Mapping[Size, tuple[int, int]] = {
    "small": (240, 320),
    "vga": (480, 640),
    "1080p": (1080, 1920),
    "12mp": (3000, 4000),
}
_ENCODERS = {  # width, depth, heads, global blocks
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}
CLIP_B16 = (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)  # arguments of CLIP ViT-B/16
_LEARNT = ("pos_embed", "positional", "point_embed", "not_a_point", "no_mask", "iou_token", "mask_tokens", "class_emb")


def sam_shape(model: Model) -> SamShape:
    """Return the architecture of a published SAM. Raises `KeyError` for the demo SAM; use `SamShape.of` its weights."""
    width, depth, heads, global_blocks = _ENCODERS[model]
    return SamShape(
        width=width,
        depth=depth,
        heads=heads,
        window=14,
        global_blocks=global_blocks,
        image_size=1024,
        patch=16,
        embedding=256,
        mask_in_channels=16,
        decoder_depth=2,
        decoder_mlp=2048,
        candidates=3,
        iou_depth=3,
        iou_width=256,
    )


def weights_of(model: Model) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Return the weights of CLIP and of SAM.

    For the demo these are the bundled weights. Otherwise they are random weights for CLIP ViT-B/16 and the SAM, which
    take as long to run as the published weights and need no download.
    """
    if model == "demo":
        return (
            load_clip_weights(weights.fetch("demo", "clip")),
            load_sam_weights(weights.fetch("demo", "sam")),
        )
    with torch.device("meta"):
        sam = build_sam(sam_shape(model)).state_dict()
        clip = openai_networks().CLIP(*CLIP_B16).state_dict()
    return _random(clip), _random(sam)


def _random(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return random weights of these shapes, with which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    return {name: _drawn(name, tensor.shape, generator) for name, tensor in shapes.items()}


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    if not shape:
        return torch.tensor(np.log(100.0), dtype=torch.float32, device="cpu")  # CLIP's logit scale
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise  # the scale of a norm
    if any(part in name for part in _LEARNT):
        return noise
    return noise * shape[1:].numel() ** -0.5


def clip_size(model: str) -> int:
    """Return the side of CLIP's input in pixels: that of the bundled model's card, or that of weights without one."""
    return (card_of(BUNDLED) if model == BUNDLED else NO_CARD).input_size


def words(count: int) -> tuple[str, ...]:
    """Return `count` queries that the bundled model knows. If it knows fewer, numbers are added to the names."""
    vocabulary = card_of(BUNDLED).closed_vocabulary
    names = vocabulary.names if vocabulary else ()
    return tuple(names[n % len(names)] + (f" {n // len(names)}" if n >= len(names) else "") for n in range(count))


def write_images(folder: Path, hw: tuple[int, int], count: int) -> None:
    """Write `count` JPEG files of a size: bundled scenes, stretched, or smooth waves if no scenes are installed."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = sorted((Path(weights.__file__).parents[1] / "demo" / "scenes" / "new-scenes" / "images").glob("*.jpg"))
    for number in range(count):
        if scenes:
            with PilImage.open(scenes[number % len(scenes)]) as scene:
                image = scene.convert("RGB").resize(hw[::-1], PilImage.Resampling.BICUBIC)
        else:
            image = PilImage.fromarray(_waves(hw, seed=number))
        image.save(folder / f"{number:05}.jpg", quality=90)


def _waves(hw: tuple[int, int], *, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: hw[0], : hw[1]].astype(np.float32) / max(hw)
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-30, 30, (3, 3)).astype(np.float32)]
    pixels: NDArray[np.uint8] = np.stack([127 + 120 * wave for wave in waves], axis=-1).astype(np.uint8)
    return pixels
