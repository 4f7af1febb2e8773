"""CLIP's own words for an image, found by gradient ascent on text.

Early users of CLIP published the method as notebooks, under the name "CLIP gradient ascent". The search moves texts of
a few free tokens until CLIP finds them as close to the image as it can. The result is not a caption: it shows what CLIP
sees in the image, odd words included. A model with a small vocabulary, such as the bundled one, answers with the
words it knows and with tokens that it never saw, which mean nothing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from text2seg.clip.shape import ClipKind
from text2seg.errors import CheckpointError, QueryError, SettingsError
from text2seg.explain.estimate import Work
from text2seg.explain.tool import InputSettings, Panel, Progress, Result, Table, Tool, backdrop, image_name
from text2seg.records import Image
from text2seg.settings_fields import check_count, check_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from text2seg.clip.model import Clip
    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True)
class OpinionSettings(InputSettings):
    """Settings of the search for CLIP's own words."""

    prompt: str = ""
    """Beginning of the texts, for instance "a photo of a"; CLIP finds the words after it."""
    steps: int = 300
    """Steps of gradient ascent; 200 to 400 are usual."""
    candidates: int = 16
    """Number of texts searched in parallel."""
    tokens: int = 4
    """Number of tokens that CLIP fills in. A common word is one token, a rare word is several. They must fit into the
    77 tokens that CLIP reads, together with the prompt and two tokens for start and end."""
    words: int | None = None
    """Largest number of words that are shown, the most frequent first. Default: all."""
    min_count: int = 1
    """Leave out words that occur less often than this in the counted texts."""
    last_steps: int = 1
    """Words are counted in all texts of this number of last steps, one text for each candidate and step."""
    batch_size: int = 16
    """Number of texts, and of copies of the image, that CLIP encodes at once. Fewer need less memory. It changes the
    results by rounding only."""
    seed: int = 0
    """Random seed; the same seed gives the same words."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        for name in ("steps", "candidates", "tokens", "words", "min_count", "last_steps", "batch_size"):
            check_count(name, getattr(self, name))
        check_seed(self.seed)

    def check_clip(self, clip: ClipKind) -> None:
        InputSettings.check_clip(self, clip)
        check_tokens(clip, self.tokens)


USUAL = OpinionSettings()
KEPT = 5
"""Number of best texts that are kept."""
TEMPERATURE = 1000.0
"""Temperature of the Gumbel-softmax."""
RATE = 5.0
"""Learning rate of Adam."""
LOSS_SCALE = 100.0
"""Factor of the cosine in the loss."""
COPIES = 64
"""Number of augmented copies of the image."""
MOST_DRAWN = 60
"""Largest number of words in the panel; the table has all."""
MOST_TURN, MOST_SHIFT, CHANGED = 10.0, 0.1, 0.8
"""Largest turn in degrees, largest shift as a share of the sides, share of the copies that are changed."""

KeepGoing = Callable[[int, str], bool]
"""Takes the number of steps done and the best text so far; returns whether to go on."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """CLIP's own words for an image.

    Attributes:
        texts: the best texts and their mean cosines with the copies of the image, best first; empty if the search was
            stopped before its first step.
        words: the words that CLIP filled in and how often they occur, most frequent first; among equal counts, words of
            the text with the highest cosine first. The texts of all candidates in the last steps are counted, also if
            they are equal; a word that a text has twice counts twice. Words of the prompt and punctuation do not count.
            Words below the smallest count are left out.
        start: the best cosine among the random texts of the first step.
        steps: number of steps done.
        counted: number of texts in which words were counted.
    """

    texts: tuple[tuple[str, float], ...]
    words: tuple[tuple[str, int], ...]
    start: float
    steps: int
    counted: int = 0


def show_opinion(models: Text2Seg, images: Sequence[Image], settings: OpinionSettings, progress: Progress) -> Result:
    """Show the best texts and their words.

    Raises:
        QueryError: the prompt is too long.
        SettingsError: there are more free tokens than CLIP reads.
    """
    (image,) = images

    def keep_going(step: int, best: str) -> bool:
        progress.step(step, settings.steps, best)
        return not progress.stopped

    found = opine(models.clip, image, settings, keep_going, stopped=lambda: progress.stopped)
    if not found.texts:
        return Result("CLIP's own words", notes=("Stopped before the first step.",))
    return Result(
        f"{image_name(image)}: CLIP's own words",
        (Panel("the image", backdrop(image)), words_panel(found, settings.words)),
        (
            Table("Best texts", ("text", "cosine"), found.texts),
            Table(f"Words in {counted_texts(found, settings)}", ("word", "count"), found.words[: settings.words]),
        ),
        (
            f"Result after {found.steps} of {settings.steps} steps. At the start, the best of {settings.candidates} "
            f"random texts had a cosine of {found.start:.3f}.",
        ),
    )


def work_of_opinion(models: Text2Seg, images: int, settings: OpinionSettings) -> Work:
    """Return the work of `opine` for a number of images."""
    texts = settings.candidates * settings.tokens / (USUAL.candidates * USUAL.tokens)
    return Work(clip_images=images * COPIES, text_steps=images * settings.steps * texts)


OPINION = Tool(
    "opinion",
    "What CLIP would say",
    "CLIP's own words for an image, found by gradient ascent on text.",
    OpinionSettings,
    show_opinion,
    work=work_of_opinion,
)


def counted_texts(opinion: Opinion, settings: OpinionSettings) -> str:
    """Name the texts in which words were counted, such as "the 16 texts of the last step"."""
    steps = min(settings.last_steps, opinion.steps)
    texts = "text" if opinion.counted == 1 else f"{opinion.counted} texts"
    return f"the {texts} of the last {'step' if steps == 1 else f'{steps} steps'}"


def words_panel(opinion: Opinion, most: int | None = None) -> Panel:
    """Draw the `most` most frequent words (default: all), coloured by how often they occur."""
    from text2seg.explain.tokens import word_image

    drawn = opinion.words[:most][:MOST_DRAWN]
    counts = np.array([count for _, count in drawn], np.float32)
    words = [f"{word} " for word, _ in drawn]
    if not words:
        return Panel("no words to show", word_image([" "], np.zeros(1, np.float32), [""]))
    imaged = word_image(words, counts / counts.max(), [f"{int(count)} x" for count in counts])
    whole = len(drawn) == len(opinion.words)
    return Panel("CLIP's own words" if whole else f"the {len(drawn)} most frequent words", imaged)


def opine(
    clip: Clip,
    image: Image,
    settings: OpinionSettings,
    keep_going: KeepGoing,
    *,
    stopped: Callable[[], bool] = lambda: False,
    copied: int | None = None,
) -> Opinion:
    """Search for the texts that CLIP finds closest to an image.

    A text consists of the start token, the prompt, the free tokens and the end token. Each free token has one logit
    for every token of the vocabulary, initialised from N(0, 1). A step samples tokens by Gumbel-softmax (temperature
    1000, straight-through: argmax forward, softmax backward), computes the features of the texts, and updates the
    logits by Adam (rate 5). The loss is −100 · cosine with the copies of the image, summed over the texts, so a text
    does not depend on the number of other texts. The five best texts of all steps are kept.

    Args:
        keep_going: called before each step and after the last.
        stopped: called before the first step, while CLIP encodes the images: whether to stop.
        copied: number of augmented copies of the image. Default: that of `copies`.

    Raises:
        QueryError: the prompt is too long.
        SettingsError: there are more free tokens than CLIP reads.
    """
    import torch

    from text2seg.explain.tokens import decode

    # The caller may be in inference mode, which allows no gradients.
    with torch.inference_mode(False):
        generator = torch.Generator(clip.device).manual_seed(settings.seed)
        frame = frame_of(clip, settings.prompt, settings.tokens)
        vocabulary = clip.model.token_embedding.weight[: frame.start].float()
        many = {} if copied is None else {"count": copied}
        images = copies(image, clip.default_size, settings.seed, **many)
        image_features = mean_features(clip, images, settings.batch_size, stopped)
        if image_features is None:
            return Opinion((), (), 0.0, 0)
        shape = (settings.candidates, settings.tokens, len(vocabulary))
        logits = torch.randn(shape, generator=generator, dtype=torch.float32, device=clip.device)
        adam = torch.optim.Adam([logits], lr=RATE, fused=clip.device.type in ("cpu", "cuda"))
        logits.grad = torch.empty_like(logits)
        best: dict[tuple[int, ...], float] = {}
        last: deque[list[tuple[tuple[int, ...], float]]] = deque(maxlen=settings.last_steps)
        start, step = 0.0, 0
        while keep_going(step, _shown(settings.prompt, best)) and step < settings.steps:
            chosen, soft = gumbel_choice(logits, generator)
            found: list[float] = []
            for first in range(0, settings.candidates, settings.batch_size):
                texts = slice(first, first + settings.batch_size)
                free = vocabulary[chosen[texts]].requires_grad_()
                with torch.enable_grad():
                    cosines = frame.cosines(clip, free, image_features)
                    (slope,) = torch.autograd.grad(-LOSS_SCALE * cosines.sum(), free)
                logits.grad[texts] = straight_through(soft[texts], slope @ vocabulary.T)
                found += cosines.tolist()
            adam.step()
            last.append(list(zip(map(tuple, chosen.tolist()), found, strict=True)))
            best.update(last[-1])
            best = dict(sorted(best.items(), key=lambda pair: -pair[1])[:KEPT])
            start, step = start if step else max(best.values()), step + 1
        counted = [text for of_step in last for text in of_step]
        return Opinion(
            tuple((f"{settings.prompt} {decode(tokens)}".strip(), cosine) for tokens, cosine in best.items()),
            tuple(pair for pair in _counts(counted) if pair[1] >= settings.min_count),
            start,
            step,
            len(counted),
        )


def seconds_of_a_step(clip: Clip) -> float:
    """Measure a step of the search with the default settings, in seconds."""
    times: list[float] = []

    def keep_going(step: int, best: str) -> bool:
        times.append(time.perf_counter())
        return True

    side = clip.default_size
    grey = Image(np.full((side, side, 3), 127, np.uint8))
    opine(clip, grey, OpinionSettings(steps=4), keep_going, copied=1)
    return min(np.diff(times))


def _counts(texts: Iterable[tuple[tuple[int, ...], float]]) -> list[tuple[str, int]]:
    """Count the words of texts, given as tokens and cosine, in the order that `Opinion.words` has."""
    from text2seg.explain.tokens import decode, words_of

    by_cosine = sorted(texts, key=lambda text: -text[1])
    return Counter(word for tokens, _ in by_cosine for word in words_of(decode(tokens))).most_common()


def gumbel_choice(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample tokens int64 [...] by Gumbel-softmax from logits [..., V]; also return the soft choice [..., V], sum 1."""
    import torch

    noise = torch.rand(logits.shape, generator=generator, dtype=torch.float32, device=logits.device)
    tiny = torch.finfo(noise.dtype).tiny
    noisy = logits - noise.clamp_(min=tiny).log_().neg_().clamp_(min=tiny).log_()
    return noisy.argmax(-1), (noisy / TEMPERATURE).softmax(-1)


def straight_through(soft: Tensor, slope: Tensor) -> Tensor:
    """Return the straight-through gradient by the logits [..., V].

    `soft` [..., V] is the soft choice and `slope` [..., V] the gradient by the choice. Autograd would need several
    times as much memory and time.
    """
    return soft * (slope - (soft * slope).sum(-1, keepdim=True)) / TEMPERATURE


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Embeddings float [1, n, width] around the free tokens of a text; `start` is the id of the start token."""

    before: Tensor
    after: Tensor
    start: int

    def cosines(self, clip: Clip, free: Tensor, image_features: Tensor) -> Tensor:
        """Return the cosines float32 [T] of the image and the texts with these free tokens float [T, n, width].

        Computed in float32, because gradients need the range and the text tower is fast.

        Raises:
            CheckpointError: a cosine is not finite, so the weights are damaged.
        """
        import torch
        from torch.nn import functional as F

        from text2seg.explain.saliency.trace import trace_text
        from text2seg.runtime import FULL, autocast

        count = len(free)
        texts = torch.cat([self.before.expand(count, -1, -1), free, self.after.expand(count, -1, -1)], dim=1)
        ends = torch.full((count,), texts.shape[1] - 1, dtype=torch.int64, device=texts.device)
        with autocast(clip.device, FULL):
            features = trace_text(clip.model, texts, ends).features
        cosines = F.normalize(features, dim=-1) @ image_features
        if not bool(cosines.isfinite().all()):
            raise CheckpointError("CLIP's text features are not finite; are its weights damaged?")
        return cosines


def check_tokens(clip: ClipKind, tokens: int) -> None:
    """Raise `SettingsError` if the free tokens alone are longer than CLIP reads."""
    context = clip.context_length
    if tokens > context - 2:
        raise SettingsError(
            f"tokens must be from 1 to {context - 2}, got {tokens}: CLIP reads {context} tokens with start and end"
        )


def frame_of(clip: Clip, prompt: str, tokens: int) -> Frame:
    """Return the frame around `tokens` free tokens of texts with this prompt.

    Raises:
        QueryError: the prompt and the free tokens are longer than CLIP reads.
        SettingsError: the free tokens alone are longer than CLIP reads.
    """
    from text2seg.clip.text import tokenize
    from text2seg.explain.tokens import shortened

    check_tokens(clip, tokens)
    context = clip.context_length
    ids, over = tokenize([prompt], context - tokens)
    if over > 0:
        raise QueryError(
            f"{shortened(prompt)!r} is too long: CLIP reads {context} tokens, and {tokens} of them are free; shorten "
            f"it by {over}, or search for fewer tokens"
        )
    ids = ids[:, : int(ids.argmax()) + 1].to(clip.device)
    embeddings = clip.model.token_embedding(ids).float()
    return Frame(embeddings[:, :-1], embeddings[:, -1:], int(ids[0, 0]))


def _shown(prompt: str, best: dict[tuple[int, ...], float]) -> str:
    from text2seg.explain.tokens import decode

    return f"{prompt} {decode(next(iter(best), ()))}".strip()


def mean_features(
    clip: Clip, images: Sequence[Image], batch_size: int, stopped: Callable[[], bool] = lambda: False
) -> Tensor | None:
    """Return the mean float32 [C] of the unit features of images. Its product with a text is the mean cosine.

    CLIP encodes `batch_size` images at once. `stopped` is called between them; if it is true, return None.
    """
    import torch

    features: list[Tensor] = []
    for first in range(0, len(images), batch_size):
        if first and stopped():
            return None
        group = images[first : first + batch_size]
        features += [tokens.features[0] for tokens in clip.encode_images(group, architecture="raw")]
    return torch.stack(features).mean(0).clone()  # clone: a tensor of inference mode allows no gradients


def copies(image: Image, side: int, seed: int, count: int = COPIES) -> list[Image]:
    """Return copies of an image, most of them turned by up to 10° and shifted by up to a tenth of the sides.

    The image is first reduced until its short side has `side` pixels, because CLIP sees no more. Areas from outside the
    image get CLIP's mean colour. The same seed gives the same copies.
    """
    import cv2

    from text2seg.clip.model import CLIP_MEAN

    rng = np.random.default_rng(seed)
    scale = min(side / min(image.hw), 1.0)
    width, height = (max(round(length * scale), 1) for length in image.hw[::-1])
    small = cv2.resize(np.ascontiguousarray(image.pixels), (width, height), interpolation=cv2.INTER_AREA)
    fill = [255 * channel for channel in CLIP_MEAN]
    changed = []
    for _ in range(count):
        turn, right, down = rng.uniform(-1, 1, 3) * (rng.random() < CHANGED)
        move = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), turn * MOST_TURN, 1), np.float64)
        move[:, 2] += right * MOST_SHIFT * width, down * MOST_SHIFT * height
        changed.append(Image(np.asarray(cv2.warpAffine(small, move, (width, height), borderValue=fill), np.uint8)))
    return changed
