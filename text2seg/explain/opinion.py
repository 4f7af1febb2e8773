"""CLIP's own words for an image: gradient ascent on text.

Known from the notebooks of its first users as "CLIP gradient ascent". Texts of four free tokens are
moved until CLIP finds them as close to the image as it can. What comes out is no caption but a look at what CLIP
sees in the image, odd words included. A model that learnt few words (the demo model) answers with those, and with
tokens that it never saw, which mean nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.model import Clip
from text2seg.clip.text import tokenize
from text2seg.errors import CheckpointError
from text2seg.explain.backdrop import ground, named
from text2seg.explain.catalogue.opinion import OpinionSettings
from text2seg.explain.saliency.trace import trace_text
from text2seg.explain.tokens import decode, too_long, words_of
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.explain.words import word_image
from text2seg.pipeline import Text2Seg
from text2seg.queries import CLIP_MEAN
from text2seg.records import Image
from text2seg.runtime import FULL, autocast

FREE = 4
"""Tokens that CLIP fills in."""
KEPT = 5
TEMPERATURE = 1000.0
RATE = 5.0
LOSS_SCALE = 100.0

COPIES, AT_ONCE = 64, 16
MOST_TURN, MOST_SHIFT, CHANGED = 10.0, 0.1, 0.8

Going = Callable[[int, str], bool]
"""Told of the steps done and the best text until then; whether to go on."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """The best `texts`, each with its mean cosine with the image's copies, the best first; their `words` with how
    often they occur in them, the most frequent first. `start` is the best cosine among the random texts of the first
    step; `steps` were done. A search that was stopped before its first step has no texts."""

    texts: tuple[tuple[str, float], ...]
    words: tuple[tuple[str, int], ...]
    start: float
    steps: int


def run(models: Text2Seg, images: Sequence[Image], settings: OpinionSettings, progress: Progress) -> Result:
    """The tool `opinion`. Raises `QueryError` where the prompt is too long."""
    (image,) = images

    def going(step: int, best: str) -> bool:
        progress.step(step, settings.steps, best)
        return not progress.stopped

    found = opine(models.clip, image, settings, going)
    if not found.texts:
        return Result("CLIP's own words", notes=("Stopped before the first step.",))
    return Result(
        f"{named(image)}: CLIP's own words",
        (Panel("the image", ground(image)), words_panel(found)),
        (
            Table("The best texts", ("text", "cosine"), found.texts),
            Table("Their words", ("word", "count"), found.words),
        ),
        (
            f"After {found.steps} of {settings.steps} steps; the best of {settings.candidates} random texts at the "
            f"start had a cosine of {found.start:.3f}.",
        ),
    )


def words_panel(opinion: Opinion) -> Panel:
    """The words, coloured by how often they occur."""
    counts = np.array([count for _, count in opinion.words], np.float32)
    words = [f"{word} " for word, _ in opinion.words]
    if not words:
        return Panel("no words, only signs", word_image([" "], np.zeros(1, np.float32), [""]))
    imaged = word_image(words, counts / counts.max(), [f"{int(count)} x" for count in counts])
    return Panel(f"words of the {len(opinion.texts)} best texts", imaged)


@torch.inference_mode(False)  # a caller may be in it, and in it no gradient can be taken
def opine(clip: Clip, image: Image, settings: OpinionSettings, going: Going) -> Opinion:
    """Search for the texts that CLIP finds closest to an image.

    Every text is start, prompt, four free tokens, end. For each free token there are as many logits as the vocabulary
    has tokens, from N(0, 1). A step draws hard by Gumbel-softmax (temperature 1000, straight-through: chosen as if by
    argmax, moved as if by softmax), reads the texts off at their end, and moves the logits by Adam (rate 5) against
    −100 · cosine with the image's copies, summed over the texts, so that none depends on how many others there are. The
    five best texts of all steps are kept.

    Args:
        going: called before each step and after the last.

    Raises:
        QueryError: as `framed`.
    """
    generator = torch.Generator(clip.device).manual_seed(settings.seed)
    frame = framed(clip, settings.prompt)
    vocabulary = clip.model.token_embedding.weight[: frame.start].float()
    sam_prompt = mean_features(clip, copies(image, clip.trained_size, settings.seed))
    shape = (settings.candidates, FREE, len(vocabulary))
    logits = torch.randn(shape, generator=generator, dtype=torch.float32, device=clip.device)
    adam = torch.optim.Adam([logits], lr=RATE, fused=clip.device.type in ("cpu", "cuda"))
    best: dict[tuple[int, ...], float] = {}
    start, step = 0.0, 0
    while going(step, _shown(settings.prompt, best)) and step < settings.steps:
        chosen, soft = gumbel_choice(logits, generator)
        free = vocabulary[chosen].requires_grad_()
        with torch.enable_grad():
            cosines = frame.cosines(clip, free, sam_prompt)
            (slope,) = torch.autograd.grad(-LOSS_SCALE * cosines.sum(), free)
        logits.grad = straight_through(soft, slope @ vocabulary.T)
        adam.step()
        best.update(zip(map(tuple, chosen.tolist()), cosines.tolist(), strict=True))
        best = dict(sorted(best.items(), key=lambda pair: -pair[1])[:KEPT])
        start, step = start if step else max(best.values()), step + 1
    texts = tuple((f"{settings.prompt} {decode(tokens)}".strip(), cosine) for tokens, cosine in best.items())
    counts = Counter(word for tokens in best for word in words_of(decode(tokens)))
    return Opinion(texts, tuple(counts.most_common()), start, step)


def gumbel_choice(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens drawn by Gumbel-softmax from logits [..., V]: int64 [...], and the soft choice [..., V], sum 1."""
    noise = torch.rand(logits.shape, generator=generator, dtype=torch.float32, device=logits.device)
    tiny = torch.finfo(noise.dtype).tiny
    noisy = logits - noise.clamp_(min=tiny).log_().neg_().clamp_(min=tiny).log_()
    return noisy.argmax(-1), (noisy / TEMPERATURE).softmax(-1)


def straight_through(soft: Tensor, slope: Tensor) -> Tensor:
    """The gradient by the logits of a hard choice that is moved as if it were the `soft` one [..., V]; `slope` [..., V]
    is the gradient by the choice. Written out, because autograd would keep and multiply several times as much."""
    return soft * (slope - (soft * slope).sum(-1, keepdim=True)) / TEMPERATURE


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What stands around the free tokens, as embeddings float [1, n, width]; `start` is the start token."""

    before: Tensor
    after: Tensor
    start: int

    def cosines(self, clip: Clip, free: Tensor, sam_prompt: Tensor) -> Tensor:
        """Of the texts with these free tokens float [T, 4, width], read off at their end. In float32: the text tower
        is quick, and gradients need the range.

        Raises:
            CheckpointError: they are not finite, so the weights are damaged.
        """
        count = len(free)
        texts = torch.cat([self.before.expand(count, -1, -1), free, self.after.expand(count, -1, -1)], dim=1)
        ends = torch.full((count,), texts.shape[1] - 1, dtype=torch.int64, device=texts.device)
        with autocast(clip.device, FULL):
            features = trace_text(clip.model, texts, ends).features
        cosines = F.normalize(features, dim=-1) @ sam_prompt
        if not bool(cosines.isfinite().all()):
            raise CheckpointError("CLIP's text features are not finite; are its weights damaged?")
        return cosines


def framed(clip: Clip, prompt: str) -> Frame:
    """What stands around the free tokens of texts with this prompt.

    Raises:
        QueryError: the prompt is longer than CLIP reads with what comes after it.
    """
    context = clip.model.positional_embedding.shape[0]
    ids, over = tokenize([prompt], context - FREE)
    if over > 0:
        raise too_long(prompt, over, context)
    ids = ids[:, : int(ids.argmax()) + 1].to(clip.device)
    embeddings = clip.model.token_embedding(ids).float()
    return Frame(embeddings[:, :-1], embeddings[:, -1:], int(ids[0, 0]))


def _shown(prompt: str, best: dict[tuple[int, ...], float]) -> str:
    return f"{prompt} {decode(next(iter(best), ()))}".strip()


def mean_features(clip: Clip, images: Sequence[Image]) -> Tensor:
    """The mean of unit image features float32 [C]: the cosine of a text with it is the mean of its cosines."""
    groups = (images[first : first + AT_ONCE] for first in range(0, len(images), AT_ONCE))
    features = [tokens.features[0] for group in groups for tokens in clip.encode_images(group, architecture="raw")]
    return torch.stack(features).mean(0).clone()  # no longer a tensor of inference mode


def copies(image: Image, side: int, seed: int, count: int = COPIES) -> list[Image]:
    """Copies of an image, most of them turned by up to 10° and shifted by up to a tenth, the same for the same seed.
    They are made after the image is reduced so that its short side has `side` pixels; CLIP sees no more. What comes in
    from outside has CLIP's mean colour."""
    rng = np.random.default_rng(seed)
    scale = min(side / min(image.hw), 1.0)
    width, height = (max(round(length * scale), 1) for length in image.hw[::-1])
    small = cv2.resize(np.ascontiguousarray(image.pixels), (width, height), interpolation=cv2.INTER_AREA)
    ground = [255 * channel for channel in CLIP_MEAN]
    made = []
    for _ in range(count):
        turn, right, down = rng.uniform(-1, 1, 3) * (rng.random() < CHANGED)
        move = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), turn * MOST_TURN, 1), np.float64)
        move[:, 2] += right * MOST_SHIFT * width, down * MOST_SHIFT * height
        made.append(Image(np.asarray(cv2.warpAffine(small, move, (width, height), borderValue=ground), np.uint8)))
    return made
