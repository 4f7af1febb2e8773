"""Answers that published weights are known to give, and whether the weights on this machine give them.

The cases are in `known_answers.json`: an image, what is asked, and the published numbers. So a wrong reading of the
weights, or of the image, is seen in a minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image as PillowImage
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from text2seg import weights
from text2seg.clip.model import Clip
from text2seg.errors import CheckpointError
from text2seg.io.images import load_image
from text2seg.loading import load_clip_alone, open_sam
from text2seg.records import Image, PointPrompts
from text2seg.runtime import choose_device
from text2seg.sam.base import AnySam, SamEmbedding
from text2seg.weights.download import RemoteFile, download_files

Corner = tuple[float, float]


class Case(BaseModel):
    """One question with its published answer. Coordinates are x, y in pixels of the image.

    An `answer` may leave out numbers that are not published. SAM answers with its predicted IoU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    kind: Literal["clip", "sam"]
    measure: Literal["probabilities", "logits", "candidates", "candidates, the best first", "single mask"]
    image: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    url: str
    texts: tuple[str, ...] = ()
    points: tuple[Corner, ...] = ()
    box: tuple[float, float, float, float] | None = None
    answer: tuple[float | None, ...]
    tolerance: float
    source: str

    @property
    def asked(self) -> str:
        """The question in words."""
        if self.kind == "clip":
            return ", ".join(self.texts)
        parts = [f"point {x:g}, {y:g}" for x, y in self.points]
        return "; ".join(parts + ([f"box {', '.join(f'{side:g}' for side in self.box)}"] if self.box else []))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A case with the answer of the weights on this machine."""

    case: Case
    ours: tuple[float, ...]

    @property
    def agrees(self) -> bool:
        """Whether each published number is within the tolerance."""
        return len(self.ours) == len(self.case.answer) and all(
            published is None or abs(published - mine) <= self.case.tolerance
            for published, mine in zip(self.case.answer, self.ours, strict=True)
        )


def cases_of(name: str) -> tuple[Case, ...]:
    """Return the cases of a checkpoint.

    Raises:
        CheckpointError: none is known.
    """
    found = tuple(case for case in published() if case.weights == name)
    if not found:
        raise not_published(name)
    return found


def published() -> tuple[Case, ...]:
    """Return all cases."""
    text = resources.files("text2seg").joinpath("known_answers.json").read_bytes()
    return TypeAdapter(tuple[Case, ...]).validate_json(text)


def not_published(*names: str) -> CheckpointError:
    """Return the error for checkpoints without a case."""
    known = ", ".join(dict.fromkeys(case.weights for case in published()))
    return CheckpointError(
        f"no answers of {' or '.join(map(repr, names))} are published; there are those of {known}. Without --answers, "
        "verify compares hashes"
    )


def answers_folder() -> Path:
    """Return the folder of the images that were asked about."""
    return weights.folder() / "answers"


def verify_answers(cases: Sequence[Case], *, device: str = "auto", folder: Path | None = None) -> list[Verdict]:
    """Ask the weights on this machine, in float32. Missing weights and images are downloaded.

    Args:
        cases: cases of one checkpoint.
        folder: folder of the images. Default: `answers` in the folder of checkpoints.

    Raises:
        CheckpointError: weights or images cannot be downloaded or read.
        SettingsError: this machine lacks the device.
    """
    folder = folder or answers_folder()
    remote = {case.image: RemoteFile(case.image, case.url) for case in cases}
    download_files([*remote.values()], folder, what="images", check=_check_image)
    images = {name: load_image(folder / name) for name in remote}
    name, kind, where = cases[0].weights, cases[0].kind, choose_device(device)
    if kind == "clip":
        clip = load_clip_alone(name, device=where)
        return [Verdict(case, _ask_clip(clip, images[case.image], case)) for case in cases]
    sam = open_sam(weights.fetch(name, "sam"), device=where, precision="fp32")
    embeddings = {name: sam.embed([image])[0] for name, image in images.items()}
    return [Verdict(case, _ask_sam(sam, embeddings[case.image], case)) for case in cases]


def _check_image(path: Path, remote: RemoteFile) -> None:
    try:
        with PillowImage.open(path) as image:
            image.verify()
    except Exception as error:  # decoders raise anything
        raise CheckpointError(f"{remote.url} did not send an image: {error}") from error


def _ask_clip(clip: Clip, image: Image, case: Case) -> tuple[float, ...]:
    """Compare the image with the texts as the original does: resize its shorter side, then cut out its centre."""
    side = clip.trained_size
    pixels = PillowImage.fromarray(image.pixels)
    scale = side / min(pixels.size)
    pixels = pixels.resize((round(pixels.width * scale), round(pixels.height * scale)), PillowImage.Resampling.BICUBIC)
    left, top = round((pixels.width - side) / 2), round((pixels.height - side) / 2)
    square = Image(np.asarray(pixels.crop((left, top, left + side, top + side))))
    tokens = clip.encode_images([square], size=side, architecture="raw")[0]
    texts = clip.encode_texts(case.texts, ("{}",)).to(tokens.features.device)
    logits = texts @ tokens.features[0] * clip.logit_scale
    return _numbers(logits.softmax(0) if case.measure == "probabilities" else logits)


def _ask_sam(sam: AnySam, embedding: SamEmbedding, case: Case) -> tuple[float, ...]:
    count = len(case.points)
    prompts = PointPrompts(
        np.array(case.points, np.float32).reshape(count, 2),
        np.ones(count, np.int8),
        np.zeros(count, np.float32),
        np.array([case.box] if case.box else [], np.float32).reshape(-1, 4),
    )
    scores = sam.predicted_iou(embedding, prompts, single=case.measure == "single mask")
    return _numbers(sorted(scores, reverse=True) if "best first" in case.measure else scores)


def _numbers(values: torch.Tensor | Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
