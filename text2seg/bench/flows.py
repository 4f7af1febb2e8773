"""The ways through the stages that are set side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from text2seg.bench.stock import Original
from text2seg.bench.stopwatch import Stopwatch
from text2seg.clip.build import build_clip
from text2seg.clip.model import Clip
from text2seg.clip.text import TextEncoder
from text2seg.config import LabelSettings, PointSettings, Settings
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries
from text2seg.pipeline import Text2Seg
from text2seg.records import PointPrompts
from text2seg.runtime import FULL, Precision
from text2seg.sam.base import SamEmbedding
from text2seg.sam.build import SamShape, load_sam
from text2seg.sam.sam import Sam

FlowName = Literal["stock", "stock-half", "stock-fused", "stock-compiled", "ours", "ours-compiled"]
Weights = Mapping[str, Tensor]


class Flow(Protocol):
    """One way from a folder to a COCO file. `features` and `mask` are about the last image of the last folder."""

    watch: Stopwatch

    def label(self, folder: Path, queries: tuple[str, ...], output: Path) -> None: ...
    def features(self) -> Tensor: ...
    def mask(self, points: PointPrompts, image_hw: tuple[int, int]) -> NDArray[np.bool_]: ...


class Ours:
    """text2seg, with the reference method's points and choice, so that all flows are asked for the same."""

    def __init__(self, clip: Clip, sam: Sam, size: int, *, batch: int) -> None:
        settings = Settings(points=PointSettings(method="reference"))
        self._models = Text2Seg(clip, sam, settings=settings, input_size=size)
        self._batch = batch
        self._embedding: SamEmbedding | None = None
        self.watch = Stopwatch(sam.device)
        model: Any = self._models
        model._sam_prompts = self.watch.timed("maps", model._sam_prompts)
        for owner, stages in (
            (clip, {"encode_texts": "text", "encode_images": "maps"}),
            (sam, {"embed": "encoder", "decode": "decoder", "mask": "decoder"}),
        ):
            for name, stage in stages.items():
                setattr(owner, name, self.watch.timed(stage, getattr(owner, name)))
        keep: Any = sam
        keep.embed = self._remembering(keep.embed)

    def _remembering(self, embed: Callable[..., list[SamEmbedding]]) -> Callable[..., list[SamEmbedding]]:
        def run(images: Any) -> list[SamEmbedding]:
            embeddings = embed(images)
            self._embedding = embeddings[-1] if embeddings else self._embedding
            return embeddings

        return run

    def label(self, folder: Path, queries: tuple[str, ...], output: Path) -> None:
        """Every image of the folder into one COCO file; texts are encoded anew."""
        self._models.clip.text = TextEncoder(self._models.clip.model)
        job = LabelSettings(output=output, restart=True, overwrite=True, batch=self._batch)
        label_folder(self._models, folder, ontology_of_queries(queries), job)

    def features(self) -> Tensor:
        return self._last().features

    def mask(self, points: PointPrompts, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """As `Original.mask`."""
        (candidates,) = self._models.sam.decode([(self._last(), points)])
        return self._models.sam.mask(self._last(), candidates, int(candidates.scores.argmax()))

    def _last(self) -> SamEmbedding:
        if self._embedding is None:
            raise ValueError("no image was labelled, or nothing was looked for in it")
        return self._embedding


def make_flow(
    name: FlowName, clip: Weights, sam: Weights, device: torch.device, fast: Precision, size: int, *, batch: int
) -> Flow:
    """One flow on these weights, which flows in float32 on a CPU share.

    Args:
        fast: the precision of all flows but `stock`, which is in float32.
        size: side of CLIP's square input.
        batch: images that go through our models at once; the original takes one.
    """
    if name.startswith("ours"):
        module = load_sam(SamShape.of(sam), sam)
        made = Sam(module, device, fast, compile_encoder=name == "ours-compiled")
        return Ours(Clip(build_clip(clip), device=device, precision=fast), made, size, batch=batch)
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
