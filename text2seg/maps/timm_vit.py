"""timm's vision transformers, which are the image towers of SigLIP and of some other models of open_clip, as a `Vit`.

They have no common space that a patch could be projected into: what a SigLIP compares with texts is the answer of its
pooling head, an attention by one learned query with an MLP after it (the MAP head: arXiv 2303.15343, big_vision). So a
patch's feature is that head's answer to this patch alone, as if the picture had no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from text2seg.errors import CheckpointError
from text2seg.maps.vit import resize_positions


class TimmVit:
    """A tower of open_clip's `TimmModel` whose trunk is timm's plain `VisionTransformer`.

    Raises:
        CheckpointError: the trunk has parts that this reading of it would leave out.
    """

    def __init__(self, tower: Any) -> None:
        check_trunk(tower.trunk)
        self._tower, self._trunk = tower, tower.trunk
        self.prefix = int(self._trunk.num_prefix_tokens)
        self.blocks: Sequence[Any] = [_with_openai_names(block) for block in self._trunk.blocks]

    @property
    def stride(self) -> int:
        return int(self._trunk.patch_embed.patch_size[0])

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        trunk = self._trunk
        x = trunk.patch_embed.proj(pixels.to(trunk.patch_embed.proj.weight.dtype))
        grid_hw = (x.shape[2], x.shape[3])
        x = trunk.patch_embed.norm(x.flatten(2).transpose(1, 2))
        placed = 0 if trunk.no_embed_class else self.prefix  # of the tokens before the patches, those with a position
        positions = resize_positions(trunk.pos_embed[0], grid_hw, prefix=placed).to(x.dtype)
        if self.prefix:
            cls = trunk.cls_token[0].to(x.dtype)
            cls = cls + positions[:placed] if placed else cls
            x = torch.cat([cls.expand(len(x), -1, -1), x + positions[placed:]], dim=1)
        else:
            x = x + positions
        return trunk.norm_pre(x), grid_hw

    def features(self, tokens: Tensor, patches: Tensor) -> Tensor:
        trunk = self._trunk
        pooled = self._tower.head(trunk.forward_head(trunk.norm(tokens)))
        alone = trunk.norm(patches)
        if trunk.attn_pool is not None:
            alone = trunk.attn_pool(alone.flatten(0, 1)[:, None]).unflatten(0, alone.shape[:2])
        alone = self._tower.head(trunk.head(trunk.fc_norm(alone)))
        return torch.cat([pooled[:, None], alone], dim=1)


def _with_openai_names(block: Any) -> SimpleNamespace:
    """A timm block's own modules and parameters under the names that OpenAI's blocks have."""
    attention = SimpleNamespace(
        in_proj_weight=block.attn.qkv.weight,
        in_proj_bias=block.attn.qkv.bias,
        num_heads=block.attn.num_heads,
        out_proj=block.attn.proj,
    )
    return SimpleNamespace(
        ln_1=block.norm1, attn=attention, ls_1=block.ls1, ln_2=block.norm2, mlp=block.mlp, ls_2=block.ls2
    )


def check_trunk(trunk: nn.Module) -> None:
    """Raise `CheckpointError` where a trunk has more in it than `TimmVit` reads."""
    from timm.layers import Attention, PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(trunk) is not VisionTransformer:
        raise CheckpointError(f"its image tower is timm's {type(trunk).__name__}, not its plain VisionTransformer")
    if type(trunk.patch_embed) is not PatchEmbed:
        raise CheckpointError(f"its image tower begins with a {type(trunk.patch_embed).__name__}, not with patches")
    if trunk.pos_embed is None or trunk.num_reg_tokens or trunk.pool_include_prefix:
        raise CheckpointError("its image tower has register tokens or no position embeddings")
    if trunk.global_pool not in ("map", "token", "avg") or getattr(trunk.attn_pool, "pos_embed", None) is not None:
        raise CheckpointError(f"its image tower pools by {trunk.global_pool!r}; map, token and avg fit")
    for block in trunk.blocks:
        attention = block.attn
        # older versions of timm have neither norm nor gate
        extras = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
        plain = type(block) is Block and type(attention) is Attention
        if not plain or not all(extra is None or isinstance(extra, nn.Identity) for extra in extras):
            raise CheckpointError("its image tower has blocks that do more than attention and an MLP")
