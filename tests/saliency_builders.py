"""Parts shared by the tests of saliency: targets, a plain float64 transformer, and the state of a model."""

from __future__ import annotations

import copy

import numpy as np
import torch
from test_attention import feed_forward, layer_norm
from torch import nn

from text2seg.clip.encoders import resize_positions
from text2seg.explain.saliency.targets import Target

STEP = 1e-5


def random_target(clip, seed=0):
    features = torch.randn(clip.model.text_projection.shape[1], generator=torch.Generator().manual_seed(seed))
    return Target("it", torch.nn.functional.normalize(features, dim=0))


def in_float64(visual):
    """Compute LayerNorm in float64; CLIP's own module uses float32."""
    tower = copy.deepcopy(visual).double()
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.__class__ = nn.LayerNorm
    return tower


class Naive:
    """Vision transformer in float64, computed head by head, with replaceable attention."""

    def __init__(self, visual, pixels, grid_hw):
        self.visual = in_float64(visual)
        patches = self.visual.conv1(pixels.double()[None]).flatten(2)[0].T
        positions = resize_positions(self.visual.positional_embedding, grid_hw)
        x = torch.cat([self.visual.class_embedding[None], patches]) + positions
        self.start = layer_norm(self.visual.ln_pre, x.numpy())
        self.blocks = list(self.visual.transformer.resblocks)

    def run(self, replaced=None):
        """Return attentions [heads, N, N] and tokens [N, width] of each block; `replaced` maps blocks to attentions."""
        x, attentions, tokens = self.start, [], []
        for index, block in enumerate(self.blocks):
            attention, value = self.attend(block.attn, layer_norm(block.ln_1, x))
            attention = (replaced or {}).get(index, attention)
            mixed = np.concatenate([one @ v for one, v in zip(attention, value, strict=True)], axis=1)
            x = x + mixed @ block.attn.out_proj.weight.numpy().T + block.attn.out_proj.bias.numpy()
            x = x + feed_forward(block, x)
            attentions.append(attention)
            tokens.append(x)
        return attentions, tokens

    @staticmethod
    def attend(attn, normed):
        q, k, v = np.split(normed @ attn.in_proj_weight.numpy().T + attn.in_proj_bias.numpy(), 3, axis=1)
        width = q.shape[1] // attn.num_heads
        attention, values = [], []
        for head in range(attn.num_heads):
            part = slice(head * width, (head + 1) * width)
            weights = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width))
            attention.append(weights / weights.sum(1, keepdims=True))
            values.append(v[:, part])
        return np.stack(attention), np.stack(values)

    def cosine(self, token, target):
        features = self.features(token)
        return float(features @ target.features.double().numpy() / np.sqrt(features @ features))

    def dot(self, token, target):
        return float(self.features(token) @ target.features.double().numpy())

    def features(self, token):
        """Features [C] of a token in CLIP's joint space, not normalised."""
        return (layer_norm(self.visual.ln_post, token[None]) @ self.visual.proj.numpy())[0]

    def gradient(self, index, score):
        """Return the gradient of `score(tokens of all blocks)` by the attention of a block, by central differences."""
        attention = self.run()[0][index]
        gradient = np.zeros_like(attention)
        for place in np.ndindex(attention.shape):
            values = []
            for step in (STEP, -STEP):
                moved = attention.copy()
                moved[place] += step
                values.append(score(self.run({index: moved})[1]))
            gradient[place] = (values[0] - values[1]) / (2 * STEP)
        return gradient


def state(model):
    """Return everything that using a model could change in it."""
    modules = list(model.modules())
    return (
        {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: None if p.grad is None else p.grad.numpy().tobytes() for name, p in model.named_parameters()},
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training) for m in modules],
    )
