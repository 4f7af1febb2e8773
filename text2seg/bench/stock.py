"""The original flow, to measure against: CLIP Surgery's demo for many queries (arXiv 2304.05653) with the stock
`SamPredictor`. One image at a time; every image has its texts encoded, 77 tokens for each of 85 templates; points
are taken from the maps one by one; every query is a call of its own to SAM's decoder.

Only the surgery itself is ours, because the original's cannot run on rectangles or twice in one process.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from torch import Tensor
from torch.nn import functional as F

from text2seg.bench.stopwatch import Stopwatch
from text2seg.clip.maps import without_empty_text
from text2seg.clip.model import preprocess
from text2seg.clip.text import tokenize
from text2seg.clip.vit import encode_vit
from text2seg.coco import rle
from text2seg.queries import TEMPLATES
from text2seg.records import Image, PointPrompts
from text2seg.runtime import Precision, autocast

THRESHOLD = 0.8


class Original:
    """CLIP and SAM modules with float32 weights, in that flow."""

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
        """
        Args:
            size: side of CLIP's square input.
            fused: let SAM's encoder use fused attention with the position bias as a mask.
            compiled: let torch compile SAM's encoder.
        """
        from segment_anything import SamPredictor

        self._clip, self._size = clip.to(device).eval(), size
        self._device, self._precision = device, precision
        self.watch = Stopwatch(device)
        sam = sam.to(device).eval()
        for block in sam.image_encoder.blocks if fused else ():
            block.attn.forward = MethodType(_fused_attention, block.attn)
        if compiled:
            sam.image_encoder.forward = torch.compile(sam.image_encoder.forward, dynamic=False)
        self._predictor = SamPredictor(sam)

    @torch.no_grad()
    def label(self, folder: Path, queries: tuple[str, ...], output: Path) -> None:
        """Every image of the folder into one COCO file."""
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
        """The points of each query."""
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
        """SAM's embedding of the last image, float32 [C, h, w]."""
        return self._predictor.features[0].float()

    @torch.no_grad()
    def mask(self, points: PointPrompts, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Of SAM's three masks for these points on the last image, the one that it scores highest."""
        at = self._predictor.transform.apply_coords(points.xy, image_hw)
        with autocast(self._device, self._precision):
            masks, scores, _ = self._predictor.predict_torch(
                torch.as_tensor(at, dtype=torch.float32, device=self._device)[None],
                torch.tensor(points.labels.astype(np.int64), dtype=torch.int64, device=self._device)[None],
            )
        best: NDArray[np.bool_] = masks[0, int(scores[0].argmax())].cpu().numpy()
        return best


def _points(scores: Tensor, image_hw: tuple[int, int]) -> PointPrompts:
    """text2points of one map [1, 1, n, n], a point at a time, each read from the device."""
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
    """The encoder's attention [B, h, w, C] with one bias for every two tokens, in memory as a whole."""
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
