"""SAM's prompt encoder and mask decoder over many point sets at once, as a pure function of the stock modules.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643), appendix A. The stock predictor takes one
image and point sets of one size. Here every set may have its own image and its own number of points: short
sets are filled up, and the filling is masked wherever it could be attended to, so that each set is answered
as if it had come alone. (Filling up with label -1 instead, as is common, changes the answer.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Attention = Callable[..., Tensor]

NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 0, 1, 2, 3
NOT_A_POINT, FILLING = -1, -2


def decode(
    sam: Any,
    embeddings: Tensor,
    image_index: Tensor,
    points_xy: Tensor,
    labels: Tensor,
    mask_inputs: Tensor | None = None,
    *,
    filled: bool | None = None,
    attention: Attention = F.scaled_dot_product_attention,
) -> tuple[Tensor, Tensor]:
    """Candidates for B point sets on I embedded images.

    Args:
        sam: a `segment_anything` Sam module.
        embeddings: float [I, C, h, w], from the image encoder.
        image_index: int64 [B], the image of each set.
        points_xy: float [B, N, 2], in pixels of the model's input frame.
        labels: int [B, N]: 1 positive, 0 negative, 2 and 3 the corners of a box, -1 "not a point", -2 filling.
            A set without a box needs exactly one "not a point", as the stock code adds it.
        mask_inputs: float [B, 1, 4h, 4w], low-resolution mask logits to start from.
        filled: whether sets may have been filled up, where labels should not be asked, as when a graph is drawn.
        attention: softmax(query keyᵀ / √d) value, given a mask too where sets were filled up; another implementation
            where that one is slow.

    Returns:
        Mask logits float [B, 4, 4h, 4w] and predicted IoU float [B, 4]; the first of the four is SAM's
        single-mask output, the other three its candidates.
    """
    decoder = sam.mask_decoder
    prompts = _embed_points(sam.prompt_encoder, points_xy, labels)
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([outputs.expand(prompts.shape[0], -1, -1), prompts.to(outputs.dtype)], dim=1)

    if mask_inputs is None:
        image, owner = embeddings + sam.prompt_encoder.no_mask_embed.weight[..., None, None], image_index
    else:
        image, owner = embeddings[image_index] + sam.prompt_encoder.mask_downscaling(mask_inputs), None
    positions = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2).to(image.dtype)

    mask = None
    if filled is None:
        filled = bool((labels == FILLING).any())
    if filled:
        real = F.pad(labels != FILLING, (outputs.shape[0], 0), value=True)
        mask = real[:, None, None, :]
    attend, flat = partial(_attend, attention), image.flatten(2).transpose(1, 2)
    tokens, flat = _two_way(attend, decoder.transformer, tokens, flat, owner, positions, mask)

    upscaled = decoder.output_upscaling(flat.transpose(1, 2).unflatten(2, image.shape[-2:]))
    hyper = torch.stack(
        [mlp(tokens[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)],
        dim=1,
    )
    logits = (hyper @ upscaled.flatten(2)).unflatten(-1, upscaled.shape[-2:])
    return logits, decoder.iou_prediction_head(tokens[:, 0])


def _embed_points(encoder: Any, points_xy: Tensor, labels: Tensor) -> Tensor:
    """One token [B, N, C] per point: where it is, plus what kind it is."""
    tokens = encoder.pe_layer.forward_with_coords(points_xy + 0.5, encoder.input_image_size)
    tokens = torch.where((labels < 0)[..., None], torch.zeros_like(tokens), tokens)
    kinds = torch.cat([encoder.not_a_point_embed.weight, *(kind.weight for kind in encoder.point_embeddings)])
    kind = kinds[(labels + 1).clamp(min=0)]
    return tokens + torch.where((labels == FILLING)[..., None], torch.zeros_like(kind), kind)


def _two_way(
    attend: Callable[..., Tensor],
    transformer: Any,
    tokens: Tensor,
    image: Tensor,
    owner: Tensor | None,
    positions: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """SAM's two-way transformer over `tokens` [B, N, C] and their images, [B, h·w, C] afterwards.

    With `owner` int64 [B], the image of each set, `image` is [I, h·w, C]: until the first layer has changed it, it is
    the same for all sets of an image and projected once, a fifth of the decoder's work. `mask` bool [B, 1, 1, N] is
    false where no query may look at a token.
    """
    token_positions = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = layer.norm1(attend(layer.self_attn, tokens, tokens, tokens, mask))
        else:
            query = tokens + token_positions
            tokens = layer.norm1(tokens + attend(layer.self_attn, query, query, tokens, mask))
        query, key = tokens + token_positions, image + positions
        looked = attend(layer.cross_attn_token_to_image, query, key, image, None, keys_of=owner)
        tokens = layer.norm2(tokens + looked)
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        query = tokens + token_positions
        told = attend(layer.cross_attn_image_to_token, key, query, tokens, mask, queries_of=owner)
        image, owner = layer.norm4(_for_sets(image, owner) + told), None
    query, key = tokens + token_positions, image + positions
    tokens = tokens + attend(transformer.final_attn_token_to_image, query, key, image, None)
    return transformer.norm_final_attn(tokens), image


def _attend(
    attention: Attention,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    queries_of: Tensor | None = None,
    keys_of: Tensor | None = None,
) -> Tensor:
    """One of the decoder's attentions. Queries, or keys and values, that many sets share are given once, with the place
    of each set's: they are projected before they are copied."""
    query, key, value = (
        _for_sets(projection(x), owner).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for projection, x, owner in (
            (module.q_proj, query, queries_of),
            (module.k_proj, key, keys_of),
            (module.v_proj, value, keys_of),
        )
    )
    mixed = attention(query, key, value) if mask is None else attention(query, key, value, attn_mask=mask)
    attended: Tensor = module.out_proj(mixed.transpose(1, 2).flatten(2))
    return attended


def _for_sets(of_images: Tensor, owner: Tensor | None) -> Tensor:
    return of_images if owner is None else of_images[owner]
