"""Words and tokens of a text: what each word adds to the score, and the relevance of each token.

Source of token relevance: "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers" (arXiv 2103.15679), as its authors use it for CLIP's text tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.shape import ClipKind
from text2seg.explain.saliency.attention import propagate
from text2seg.explain.saliency.methods import MethodName, ScoreKind, check_block, method_or_default, saliency
from text2seg.explain.saliency_maps import image_score, overlay_map
from text2seg.explain.tool import InputSettings, Panel, Progress, Result, Table, Tool, backdrop, check_text, image_name
from text2seg.records import Image
from text2seg.settings_fields import check_alpha

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.clip.model import Clip
    from text2seg.explain.saliency.targets import Target
    from text2seg.explain.tokens import Tokens
    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True)
class WordsSettings(InputSettings):
    """A text whose words are left out one by one."""

    text: str = ""
    """The text, for instance "a sheep beside a fire engine"; used unchanged, without templates."""
    method: MethodName | None = None
    """Saliency method. Default: legrad, for ResNets gradcam."""
    layer: str | None = None
    """Layer of a ResNet for class activation maps, such as layer4.2.relu3. Default: the last ReLU."""
    alpha: float = 0.85
    """Opacity of the maps over the image, from 0 to 1."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        check_alpha(self.alpha)

    def check_given(self) -> None:
        check_text(self.text)

    def check_clip(self, clip: ClipKind) -> None:
        InputSettings.check_clip(self, clip)
        method_or_default(clip, self.method, self.layer)


FAINT_WORDS = (
    "Each map is scaled from its lowest to its highest value, so a word that hardly changes the text still has bright "
    "colours."
)


def words(models: Text2Seg, images: Sequence[Image], settings: WordsSettings, progress: Progress) -> Result:
    """Show the map of the whole text and the map of each word's share.

    The share of a word is the direction from the features of the text without the word to those of the text with it.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
        SettingsError: this CLIP does not support the method or the layer.
    """
    from text2seg.explain.saliency.targets import text_target

    (image,) = images
    clip, pixels = models.clip, backdrop(image)
    method = method_or_default(clip, settings.method, settings.layer)
    full = text_target(clip, settings.text, ("{}",), closed_vocabulary=models.closed_vocabulary)
    whole = image_score(models, image, full)

    def panel(caption: str, target: Target) -> Panel:
        found = saliency(clip, image, target, method, layer=settings.layer)
        return Panel(caption, overlay_map(found, pixels, settings.alpha))

    panels = [panel(f"the whole text · {whole:.3f}", full)]
    rows = []
    for left_out in progress.each(leave_out(clip, settings.text), method):
        without = _target(clip, left_out)
        rest = image_score(models, image, without)
        turned = 1 - float(full.features @ without.features)
        rows.append((left_out.word, rest, whole - rest, turned))
        panels.append(panel(f"{left_out.word} · {whole - rest:+.3f}", share_of(left_out.word, full, without)))
    columns = ("word", "score without it", "score it adds", "change of the text (1 − cosine)")
    first = (Panel("the image", pixels), *_line(rows))
    return Result(
        f"{image_name(image)}: “{settings.text}” word by word, {method}",
        (*first, *panels),
        (Table(f"score of the whole text: {whole:.3f}", columns, tuple(rows)),),
        (FAINT_WORDS, *models.card.notes_on("first word")),
    )


WORDS = Tool(
    "words",
    "Word by word",
    "What each word adds to a text's score, and where in the image that comes from.",
    WordsSettings,
    words,
)


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """A word of a text, and the tokens `rest` int64 [1, 2 + n] of the text without it."""

    word: str
    rest: Tensor


def leave_out(clip: Clip, text: str) -> tuple[LeftOut, ...]:
    """Return each word of a text, in order, with the tokens of the text without it. Punctuation is not a word.

    Raises:
        QueryError: the text has no token, or is longer than CLIP reads.
    """
    import torch

    from text2seg.explain.tokens import tokens_of, words_of

    tokens = tokens_of(clip, text)
    found, first = [], 0
    for last, spelled in enumerate(tokens.spelled):
        if spelled.endswith(" "):
            word = "".join(tokens.spelled[first : last + 1]).strip()
            if words_of(word):
                # + 1: the start token comes first
                found.append(LeftOut(word, torch.cat([tokens.ids[:, : first + 1], tokens.ids[:, last + 2 :]], dim=1)))
            first = last + 1
    return tuple(found)


def share_of(word: str, full: Target, without: Target) -> Target:
    """Return the direction from the features of the text without a word to those of the full text."""
    from torch.nn import functional as F

    from text2seg.explain.saliency.targets import Target

    return Target(word, F.normalize(full.features - without.features, dim=0))


def _target(clip: Clip, left_out: LeftOut) -> Target:
    import torch

    from text2seg.clip.text import encode_tokens
    from text2seg.explain.saliency.targets import Target
    from text2seg.runtime import autocast

    with torch.inference_mode(False), torch.no_grad(), autocast(clip.device, clip.precision):
        return Target(f"without {left_out.word}", encode_tokens(clip.model, left_out.rest)[0])


def _line(rows: Sequence[tuple[str, float, float, float]]) -> tuple[Panel, ...]:
    """Draw the text; the stronger the colour of a word, the more it adds to the score, or takes from it."""
    if not rows:
        return ()
    from text2seg.explain.tokens import word_image
    from text2seg.render.drawing import OPPOSITION, SUPPORT

    added = np.array([row[2] for row in rows], np.float32)
    colours = [SUPPORT if each >= 0 else OPPOSITION for each in added]
    sizes = np.abs(added)
    values = [f"{each:+.3f}" for each in added]
    weights = (sizes / max(float(sizes.max()), 1e-6)).astype(np.float32)
    pixels = word_image([f"{row[0]} " for row in rows], weights, values, colours)
    return (Panel("score a word adds (orange) or takes (blue)", pixels),)


@dataclass(frozen=True, slots=True)
class TokenRelevanceSettings(InputSettings):
    """A text whose tokens are weighted by their relevance."""

    text: str = ""
    """The text, for instance "a photo of a sheep"; used unchanged, without templates."""
    score: ScoreKind = "logit"
    """Score that is differentiated: cosine, logit (cosine times CLIP's scale) or dot (text features without
    normalisation)."""
    start_block: int = 0
    """First block of the text tower that relevance is propagated through, from 0; -1 is the last block."""

    def check_given(self) -> None:
        check_text(self.text)

    def check_clip(self, clip: ClipKind) -> None:
        InputSettings.check_clip(self, clip)
        check_block(clip.text_blocks, self.start_block)


def show_token_relevance(
    models: Text2Seg, images: Sequence[Image], settings: TokenRelevanceSettings, progress: Progress
) -> Result:
    """Show the relevance of each token for the cosine of text and image.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
    """
    from text2seg.explain.saliency.targets import image_target, text_target
    from text2seg.explain.tokens import tokens_of, word_image

    (image,) = images
    text_target(models.clip, settings.text, ("{}",), closed_vocabulary=models.closed_vocabulary)  # for its checks
    tokens = tokens_of(models.clip, settings.text)
    of_image = image_target(models.clip, image)
    cosine, shares = token_relevance(
        models.clip, tokens, of_image.features, score=settings.score, start_block=settings.start_block
    )
    values = [f"{share:.0%}" for share in shares]
    imaged = word_image(tokens.spelled, shares / max(float(shares.max()), 1e-9), values)
    rows = tuple(
        (number, piece.strip(), float(share))
        for number, (piece, share) in enumerate(zip(tokens.spelled, shares, strict=True), start=1)
    )
    notes = () if shares.any() else ("No token raises the score, so all relevances are 0.",)
    return Result(
        f"{image_name(image)}: token relevance in “{settings.text}”",
        (
            Panel("the image", backdrop(image)),
            Panel(f"relevance of each token to the {settings.score} (cosine {cosine:.3f})", imaged),
        ),
        (Table("Relevance of each token", ("position", "token", "share"), rows),),
        notes,
    )


TOKEN_RELEVANCE = Tool(
    "token-relevance",
    "Token relevance",
    "Which tokens of a text contribute to its score with the image.",
    TokenRelevanceSettings,
    show_token_relevance,
)


def token_relevance(
    clip: Clip, tokens: Tokens, image: Tensor, *, score: ScoreKind = "logit", start_block: int = 0
) -> tuple[float, NDArray[np.float32]]:
    """Return the cosine of a text and an image, and the relevance of each token between start and end.

    R = I; for each block from `start_block` on Ā = mean over heads of ReLU(∂s/∂A ⊙ A), R ← R + ĀR, where s is the
    score. The relevances are the row of the end token in R without start and end, divided by their sum. Gradients need
    the range of float32.

    Args:
        image: unit features float32 [C] of the whole image.
        start_block: first block, from 0; negative numbers count from the end.

    Returns:
        The cosine, and float32 [n] from 0 to 1 with sum 1, or all 0 if no token raises the score.

    Raises:
        SettingsError: the text tower has no such block.
    """
    import torch
    from torch.nn import functional as F

    from text2seg.explain.saliency.targets import Target
    from text2seg.explain.saliency.trace import gradients
    from text2seg.runtime import FULL, autocast

    check_block(clip.text_blocks, start_block)
    # The caller may be in inference mode, which allows no gradients.
    with torch.inference_mode(False), torch.enable_grad(), autocast(clip.device, FULL):
        trace = tokens.trace(clip.model, first=start_block)
        cosine = F.normalize(trace.features, dim=-1) @ image
        followed = trace.attentions[start_block:]
        value = Target("the image", image).objective(trace.features, score, clip.logit_scale)
        slopes = gradients(value, followed)
    row = propagate(followed, slopes)[0, tokens.end, 1:-1]
    shares = row / row.sum().clamp(min=torch.finfo(row.dtype).tiny)
    return float(cosine.detach()), shares.cpu().numpy()
