"""Which tokens of a text make its score with an image: relevance carried through the text tower.

Source: "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers"
(arXiv 2103.15679), as its authors use it for CLIP's text side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.model import Clip
from text2seg.explain.backdrop import ground, named
from text2seg.explain.catalogue.texts import TokenRelevanceSettings
from text2seg.explain.saliency.targets import image_target, text_target
from text2seg.explain.saliency.trace import gradients
from text2seg.explain.saliency.vit import propagate
from text2seg.explain.tokens import Tokens, tokens_of
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.explain.words import word_image
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.runtime import FULL, autocast


def run(models: Text2Seg, images: Sequence[Image], settings: TokenRelevanceSettings, progress: Progress) -> Result:
    """The tool `token-relevance`. Raises `QueryError` on a text that is empty, too long or unknown to the models."""
    (image,) = images
    text_target(models.clip, settings.text, ("{}",), things=models.things)  # for its checks
    tokens = tokens_of(models.clip, settings.text)
    of_image = image_target(models.clip, image, size=models.input_size)
    cosine, shares = token_relevance(models.clip, tokens, of_image.features, last_only=settings.blocks == "last")
    values = [f"{share:.0%}" for share in shares]
    imaged = word_image(tokens.spelled, shares / max(float(shares.max()), 1e-9), values)
    rows = tuple(
        (number, piece.strip(), float(share))
        for number, (piece, share) in enumerate(zip(tokens.spelled, shares, strict=True), start=1)
    )
    notes = () if shares.any() else ("No token raises the score: relevance is 0 everywhere.",)
    return Result(
        f"{named(image)}: what counts in “{settings.text}”",
        (
            Panel("the image", ground(image)),
            Panel(f"relevance of each token for the cosine {cosine:.3f}", imaged),
        ),
        (Table("Relevance of each token", ("place", "token", "share"), rows),),
        notes,
    )


@torch.inference_mode(False)  # a caller may be in it, and in it no gradient can be taken
def token_relevance(
    clip: Clip, tokens: Tokens, image: Tensor, *, last_only: bool = False
) -> tuple[float, NDArray[np.float32]]:
    """The cosine of a text and an image, and how much each token between start and end makes of it.

    The score s is the cosine. R = I; for each block Ā = mean over heads of ReLU(∂s/∂A ⊙ A), R ← R + ĀR. The relevances
    are the end token's row of R without start and end, divided by their sum. In float32, as gradients need the range.

    Args:
        image: unit features float32 [C] of the whole image.
        last_only: the last block alone, instead of all.

    Returns:
        The cosine and float32 [n] from 0 to 1 that sum to 1, or all 0 where no token raises the score.
    """
    first = len(clip.model.transformer.resblocks) - 1 if last_only else 0
    with torch.enable_grad(), autocast(clip.device, FULL):
        trace = tokens.trace(clip.model, first=first)
        cosine = F.normalize(trace.features, dim=-1) @ image
        followed = trace.attentions[first:]
        slopes = gradients(cosine, followed)
    row = propagate(followed, slopes)[0, tokens.end, 1:-1]
    shares = row / row.sum().clamp(min=torch.finfo(row.dtype).tiny)
    return float(cosine.detach()), shares.cpu().numpy()
