"""SAM's prompt encoder and mask decoder over many point sets at once, as a pure function of the stock modules.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643), appendix A. The stock predictor takes one image and
point sets of one size. Here every set may have its own image and number of points. Short sets are padded, and the
padding is masked in every attention, so each set gives the same result as alone. (Padding with label -1 instead, as is
common, changes the result.)

A set of few points has about 7 tokens, and the image 4,096 cells. So the projections of the image are multiplied into
the tokens first: (token W) (cell W')ᵀ = (token W W'ᵀ) cellᵀ. With 8 heads that is 2.3 times less arithmetic for a cross
attention. It is more from `MANY` tokens on, and then the attention is computed as it is written. The cells stay in rows
of channels, and the upscaling is two products, so no large tensor is transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 0, 1, 2, 3
NOT_A_POINT, FILLING = -1, -2
MANY = 17
"""Number of tokens from which the projection of 4,096 cells to 128 channels takes less arithmetic than its product with
the tokens of 8 heads."""


def decode(
    sam: Any,
    embeddings: Tensor,
    image_index: Tensor,
    points_xy: Tensor,
    labels: Tensor,
    mask_inputs: Tensor | None = None,
    *,
    filled: bool | None = None,
    above: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode B point sets on I embedded images into candidate masks.

    Args:
        sam: a `segment_anything` Sam module.
        embeddings: float [I, C, h, w], from the image encoder.
        image_index: int64 [B], index of the image of each set.
        points_xy: float [B, N, 2], in pixels of the model's input frame.
        labels: int [B, N]: 1 positive, 0 negative, 2 and 3 the corners of a box, -1 "not a point", -2 padding.
            A set without a box needs exactly one "not a point", as the stock code adds it.
        mask_inputs: float [B, 1, 4h, 4w], low-resolution mask logits to start from.
        filled: whether sets may be padded, for tracing a graph. Default: read from the labels.
        above: make masks only for sets with a candidate whose predicted IoU is above this.

    Returns:
        Mask logits float [B, 4, 4h, 4w] and predicted IoU float [B, 4]; the first of the four is SAM's
        single-mask output, the other three its candidates. With `above`, the logits are those of fewer sets.
    """
    decoder, is_traced = sam.mask_decoder, filled is not None
    prompts = _embed_points(sam.prompt_encoder, points_xy, labels)
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([outputs.expand(prompts.shape[0], -1, -1), prompts.to(outputs.dtype)], dim=1)

    owner: Tensor | None = image_index
    if mask_inputs is None:
        image = embeddings + sam.prompt_encoder.no_mask_embed.weight[..., None, None]
    else:
        image, owner = embeddings[image_index] + sam.prompt_encoder.mask_downscaling(mask_inputs), None
    rows, columns = image.shape[-2:]
    image = image.flatten(2).transpose(1, 2).contiguous()
    positions = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2).to(image.dtype)

    mask = None
    if filled is None:
        filled = bool((labels == FILLING).any())
    if filled:
        real = F.pad(labels != FILLING, (outputs.shape[0], 0), value=True)
        mask = real[:, None, None, :]
    copies = _Copies(owner, len(tokens), one_image=not is_traced and len(image) == 1)
    folded = is_traced or tokens.shape[1] < MANY
    tokens, image = _two_way(decoder.transformer, tokens, image, copies, positions, mask, folded=folded)

    scores = decoder.iou_prediction_head(tokens[:, 0])
    if above is not None:
        good = (scores[:, 1:] > above).any(1)
        tokens, image = tokens[good], image[good]
    hyper = torch.stack([mlp(tokens[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    if is_traced or image.device.type != "cpu" or len(image) < 2:
        return _masks(decoder.output_upscaling, hyper, image, rows, columns), scores
    # The upscaled cells of one set fit into the caches of a CPU; those of several do not.
    sets = zip(hyper.split(1), image.split(1), strict=True)
    return torch.cat([_masks(decoder.output_upscaling, *each, rows, columns) for each in sets]), scores


class _Copies:
    """Copies what was computed once for each image to the point sets. `owner` int64 [B] is the image of each set; None
    if there is one row for each set already. A single image is not copied, only repeated as a view."""

    def __init__(self, owner: Tensor | None, sets: int, *, one_image: bool) -> None:
        self._owner, self._sets, self._one_image = owner, sets, one_image

    def __call__(self, of_images: Tensor) -> Tensor:
        if self._owner is None:
            return of_images
        if self._one_image:
            return of_images.expand(self._sets, *of_images.shape[1:])
        return of_images[self._owner]


def _embed_points(encoder: Any, points_xy: Tensor, labels: Tensor) -> Tensor:
    """Return one token [B, N, C] per point: its position encoding plus the embedding of its label."""
    tokens = encoder.pe_layer.forward_with_coords(points_xy + 0.5, encoder.input_image_size)
    tokens = torch.where((labels < 0)[..., None], torch.zeros_like(tokens), tokens)
    embeddings = torch.cat([encoder.not_a_point_embed.weight, *(each.weight for each in encoder.point_embeddings)])
    of_label = embeddings[(labels + 1).clamp(min=0)]
    return tokens + torch.where((labels == FILLING)[..., None], torch.zeros_like(of_label), of_label)


def _two_way(
    transformer: Any,
    tokens: Tensor,
    image: Tensor,
    copies: _Copies,
    positions: Tensor,
    mask: Tensor | None,
    *,
    folded: bool,
) -> tuple[Tensor, Tensor]:
    """Run SAM's two-way transformer. Return tokens [B, N, C] and image features [B, h·w, C].

    Before the first layer changes it, the image is the same for all sets of it, so it is projected once. `mask` bool
    [B, 1, 1, N] is false at padded tokens. With `folded`, the projections of the image are multiplied into the tokens.
    """
    read = _read if folded else _attend
    token_positions = tokens
    for number, layer in enumerate(transformer.layers):
        if layer.skip_first_layer_pe:
            tokens = layer.norm1(_attend(layer.self_attn, tokens, tokens, tokens, mask))
        else:
            query = tokens + token_positions
            tokens = layer.norm1(tokens + _attend(layer.self_attn, query, query, tokens, mask))
        query, key = tokens + token_positions, image + positions
        reading, writing = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        if number == 0:
            keys = copies(_heads(reading.k_proj(key), reading))
            values = copies(_heads(reading.v_proj(image), reading))
            tokens = layer.norm2(tokens + _attention(reading, _heads(reading.q_proj(query), reading), keys, values))
        else:
            tokens = layer.norm2(tokens + read(reading, query, key, image))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        query = tokens + token_positions
        if number == 0:
            asked = copies(_heads(writing.q_proj(key), writing))
            image = copies(image)
            if folded:
                image = layer.norm4(_write(writing, image, query, tokens, mask, asked=asked))
            else:
                written = (_heads(writing.k_proj(query), writing), _heads(writing.v_proj(tokens), writing))
                image = layer.norm4(image + _attention(writing, asked, *written, mask))
        elif folded:
            image = layer.norm4(_write(writing, image, query, tokens, mask, asking=key))
        else:
            image = layer.norm4(image + _attend(writing, key, query, tokens, mask))
    query, key = tokens + token_positions, image + positions
    tokens = tokens + read(transformer.final_attn_token_to_image, query, key, image)
    return transformer.norm_final_attn(tokens), image


def _heads(x: Tensor, module: Any) -> Tensor:
    """Split the channels of [B, N, C] into heads, [B, heads, N, C / heads]."""
    return x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run one attention layer of the decoder as it is."""
    return _attention(
        module,
        _heads(module.q_proj(query), module),
        _heads(module.k_proj(key), module),
        _heads(module.v_proj(value), module),
        mask,
    )


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend in heads [B, heads, N, d], and project the result to [B, N, C]."""
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    attended: Tensor = module.out_proj(mixed.transpose(1, 2).flatten(2))
    return attended


def _read(module: Any, query: Tensor, key: Tensor, image: Tensor) -> Tensor:
    """Run a cross attention from tokens [B, N, C] to cells [B, h·w, C]; the result is [B, N, C].

    Keys and values are not projected: queries are multiplied by the keys' weights, and the mixed cells by the values'.
    The bias of the keys adds the same to all scores of a token, so softmax removes it.
    """
    asked = _heads(module.q_proj(query), module)
    width = asked.shape[-1]
    of_keys, of_values = (each.weight.unflatten(0, (-1, width)) for each in (module.k_proj, module.v_proj))
    folded = (asked * width**-0.5) @ of_keys
    weights = (folded.flatten(1, 2) @ key.transpose(1, 2)).softmax(-1)
    cells = (weights @ image).unflatten(1, (module.num_heads, -1))
    mixed = cells @ of_values.transpose(1, 2) + module.v_proj.bias.view(-1, 1, width)
    read: Tensor = module.out_proj(mixed.transpose(1, 2).flatten(2))
    return read


def _write(
    module: Any,
    image: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    asking: Tensor | None = None,
    asked: Tensor | None = None,
) -> Tensor:
    """Run a cross attention from cells to tokens, and return the cells [B, h·w, C] with its result added.

    Args:
        image: the cells [B, h·w, C].
        asking: the cells with their positions, whose projection is multiplied into the tokens.
        asked: instead, the projected cells [B, heads, h·w, d].
    """
    keys = _heads(module.k_proj(key), module)
    width = keys.shape[-1]
    keys = keys * width**-0.5
    if asked is not None:
        scores = keys @ asked.transpose(-2, -1)
    else:
        assert asking is not None
        of_queries, bias = module.q_proj.weight.unflatten(0, (-1, width)), module.q_proj.bias.view(-1, 1, width)
        folded, constant = (keys @ of_queries).flatten(1, 2), (keys * bias).sum(-1).flatten(1)
        scores = torch.baddbmm(constant[..., None], folded, asking.transpose(1, 2)).unflatten(1, (module.num_heads, -1))
    if mask is not None:
        scores = scores.masked_fill(~mask.transpose(-2, -1), float("-inf"))
    weights = scores.softmax(2).flatten(1, 2)
    # The weights of a head add up to 1, so each head adds its share of the bias.
    bias = module.out_proj.bias / module.num_heads
    values = _heads(module.v_proj(value), module) @ module.out_proj.weight.T.unflatten(0, (-1, width)) + bias
    return torch.baddbmm(image, weights.transpose(1, 2), values.flatten(1, 2))


def _masks(upscaling: Any, hyper: Tensor, image: Tensor, rows: int, columns: int) -> Tensor:
    """Upscale cells [B, h·w, C] four times and multiply them by `hyper` [B, K, C / 8]. Return logits [B, K, 4h, 4w].

    A transposed convolution of kernel 2 and stride 2 is a product that makes 2 × 2 cells of each cell.
    """
    first, norm, activation, second, last_activation = upscaling
    cells = activation(F.layer_norm(_quadrupled(first, image), norm.weight.shape, norm.weight, norm.bias, norm.eps))
    cells = last_activation(_quadrupled(second, cells)).flatten(1, -2)
    logits = hyper @ cells.transpose(1, 2)
    # From [row, column, row in 2, column in 2, row in 2, column in 2] to rows and columns.
    blocks = logits.unflatten(-1, (rows, columns, 2, 2, 2, 2))
    return blocks.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5).flatten(2, 4)


def _quadrupled(convolution: Any, cells: Tensor) -> Tensor:
    """Apply a transposed convolution of kernel and stride 2 to cells [..., C]. Return [..., 4, C'], row by row."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(cells, weight, convolution.bias.repeat(4)).unflatten(-1, (4, -1))
