"""CLIPs of open_clip: equal to open_clip where they must be, to naive loops elsewhere."""

from __future__ import annotations

import builders
import numpy as np
import openclip_builders as models
import pytest
import torch
from closeness import DEMO_NETWORK, TINY_NETWORK, assert_close
from PIL.Image import Resampling
from torch.nn import functional as F

from text2seg.clip.attention import RULES
from text2seg.clip.build import ClipShape
from text2seg.clip.model import Clip, preprocess
from text2seg.clip.openclip import recipe_of
from text2seg.clip.openclip_build import TimmVit, build_openclip
from text2seg.clip.vit import encode_vit
from text2seg.config import MapSettings
from text2seg.errors import CheckpointError, SettingsError
from text2seg.records import Image
from text2seg.runtime import choose_precision
from text2seg.weights import find, path_of
from text2seg.weights.tensors import load_tensors

SHORT = ("a photo of a {}.", "the {}.")
TEXTS = ["a photo of a dog", "the red car in the scene", "sheep"]


@pytest.fixture(scope="module")
def pair(request, tmp_path_factory):
    """A model as open_clip makes it, and the same one read from a folder by us."""
    kept = {}

    def get(kind):
        if kind not in kept:
            configuration = models.CONFIGS[kind]
            theirs = models.module(configuration)
            name = models.write_folder(tmp_path_factory.mktemp(kind), configuration, theirs.state_dict())
            kept[kind] = theirs, models.opened(name)
        return kept[kind]

    return get


def make_image(hw=(48, 72)):
    return Image(builders.pixels(hw))


def pixels(clip, hw=(models.SIZE, models.SIZE)):
    return preprocess(make_image(), hw, clip.images)[None]


@pytest.mark.parametrize("kind", models.CONFIGS)
def test_the_image_has_open_clips_own_feature_under_every_rule(kind, pair):
    theirs, clip = pair(kind)
    expected = F.normalize(theirs.encode_image(pixels(clip)), dim=-1)[0]
    rules = RULES if clip.is_vit else ("surgery", "raw")
    maps = {}
    for rule in rules:
        (tokens,) = clip.encode_images([make_image()], size=models.SIZE, architecture=rule)
        assert_close(tokens.features[0], expected, terms=TINY_NETWORK)
        maps[rule] = tokens.features[1:]
        assert tokens.grid_hw == (models.SIZE // clip.stride,) * 2
    assert all(not torch.allclose(maps["raw"], maps[rule], atol=1e-3) for rule in rules if rule != "raw")


@pytest.mark.parametrize("kind", models.CONFIGS)
def test_texts_have_open_clips_own_features(kind, pair):
    theirs, clip = pair(kind)
    tokens, over = clip.text._tower.tokenize(TEXTS)
    assert tokens.shape == (3, 20)
    assert over <= 0
    expected = F.normalize(theirs.encode_text(tokens), dim=-1)
    assert_close(clip.encode_texts(TEXTS, ("{}",)), expected, terms=TINY_NETWORK)
    assert clip.encode_texts(["", *TEXTS], SHORT).isfinite().all()


@pytest.mark.parametrize("kind", ["laion", "siglip"])
def test_a_text_that_is_too_long_is_cut_off_loudly(kind, pair, caplog):
    _, clip = pair(kind)
    clip.encode_texts(["dog " * 30], ("{}",))
    assert "CLIP reads 20 tokens and it has 1" in caplog.text


@pytest.mark.parametrize("kind", models.VITS)
def test_surgery_equals_a_naive_loop(kind, pair):
    theirs, clip = pair(kind)
    theirs = models.module(models.CONFIGS[kind]).double()
    (tokens,) = clip.encode_images([make_image()], size=models.SIZE, architecture="surgery")
    patches = naive_surgery(theirs.visual, pixels(clip).double())
    assert_close(tokens.features[1:], F.normalize(patches, dim=-1), terms=TINY_NETWORK)


def naive_surgery(tower, inputs):
    """Features of the patches [N, C]: the last block is changed, patch by patch and head by head."""
    timm = hasattr(tower, "trunk")
    blocks = tower.trunk.blocks if timm else tower.transformer.resblocks
    x = timm_inputs(tower.trunk, inputs) if timm else tower._embeds(inputs)
    for block in blocks[:-1]:
        x = block(x)
    block = blocks[-1]
    normed = (block.norm1 if timm else block.ln_1)(x)[0]
    weight, bias = (
        (block.attn.qkv.weight, block.attn.qkv.bias) if timm else (block.attn.in_proj_weight, block.attn.in_proj_bias)
    )
    values = (normed @ weight.T + bias)[:, -x.shape[2] :]
    mixed = torch.zeros_like(values)
    size = x.shape[2] // block.attn.num_heads
    for head in range(block.attn.num_heads):
        own = values[:, head * size : (head + 1) * size]
        for row in range(len(own)):
            weights = torch.softmax(torch.stack([own[row] @ other / size**0.5 for other in own]), 0)
            mixed[row, head * size : (head + 1) * size] = sum(w * v for w, v in zip(weights, own, strict=True))
    scale = block.ls1 if timm else block.ls_1
    path = x[0] + scale((block.attn.proj if timm else block.attn.out_proj)(mixed))
    if not timm:
        return tower.ln_post(path[1:]) @ tower.proj
    trunk = tower.trunk
    alone = [trunk.norm(path[None, [row]]) for row in range(trunk.num_prefix_tokens, len(path))]
    pooled = [trunk.attn_pool(each) if trunk.attn_pool is not None else each[:, 0] for each in alone]
    return torch.cat([tower.head(trunk.head(trunk.fc_norm(each))) for each in pooled])


def timm_inputs(trunk, inputs):
    return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(inputs))))


@pytest.mark.parametrize("kind", ["laion", "siglip", "mobile", "mean"])
def test_an_input_of_another_size_leaves_the_next_one_alone(kind, pair):
    _, clip = pair(kind)
    before = clip.encode_images([make_image()], size=models.SIZE)[0].features
    (wide,) = clip.encode_images([make_image()], size=(48, 96))
    assert (wide.grid_hw, len(wide.features)) == ((3, 6), 19)
    assert_close(clip.encode_images([make_image()])[0].features, before, terms=TINY_NETWORK)


@pytest.mark.parametrize("kind", ["laion", "clipa", "worldwide", "siglip", "resnet"])
def test_half_precision_is_close(kind, pair):
    theirs, exact = pair(kind)
    close = Clip(
        theirs,
        device=models.CPU,
        precision=choose_precision(models.CPU, "bf16"),
        images=exact.images,
        texts=exact.text._tower,
    )
    ours, expected = (clip.encode_images([make_image()], size=models.SIZE)[0].features for clip in (close, exact))
    assert F.cosine_similarity(ours, expected).min() > 0.99
    assert F.cosine_similarity(close.encode_texts(TEXTS), exact.encode_texts(TEXTS)).min() > 0.99


def test_one_maps_interface(pair):
    _, clip = pair("siglip")
    (tokens,) = clip.encode_images([make_image()], size=96)
    maps = clip.similarity(tokens, ["dog", "red car"], MapSettings(templates=SHORT))
    assert maps.scores.shape == (2, 6, 6)
    assert np.isfinite(maps.scores).all()
    assert ((maps.presence >= 0) & (maps.presence <= 1)).all()
    assert clip.presence.threshold == 0  # not fitted, so nothing is called absent


def test_those_built_like_openais_can_be_looked_into_others_not(pair):
    assert pair("laion")[1].model.visual.conv1.kernel_size == (16, 16)
    for kind in ("siglip", "clipa", "layer_scale", "resnet", "worldwide"):
        with pytest.raises(SettingsError, match="not built like OpenAI's"):
            _ = pair(kind)[1].model


def test_the_demo_clip_gives_the_same_maps_either_way(demo, tmp_path):
    weights = load_tensors(path_of(find("demo", "clip")))
    clip = models.opened(models.write_folder(tmp_path, demo_config(weights), weights))
    settings = MapSettings(templates=SHORT)
    for rule in RULES:
        (ours,) = clip.encode_images([make_image()], size=64, architecture=rule)
        (official,) = demo.clip.encode_images([make_image()], size=64, architecture=rule)
        assert_close(ours.features, official.features, terms=DEMO_NETWORK)
    scores = clip.scores(ours, ["sheep", "fire engine"], settings)
    assert_close(scores, demo.clip.scores(official, ["sheep", "fire engine"], settings), terms=DEMO_NETWORK, scale=1)


def demo_config(weights):
    """open_clip's configuration of a CLIP in OpenAI's format."""
    shape = ClipShape.of(weights)
    return {
        "embed_dim": shape.embedding,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": shape.image_size,
            "layers": shape.vision_layers,
            "width": shape.vision_width,
            "patch_size": shape.patch,
        },
        "text_cfg": {
            "context_length": shape.context_length,
            "vocab_size": shape.vocabulary,
            "width": shape.text_width,
            "heads": shape.text_width // 64,
            "layers": shape.text_layers,
        },
    }


def test_a_vit_b_16_of_real_size():
    recipe = recipe_of("openclip:ViT-B-16/laion2b_s34b_b88k")
    from open_clip.model import CLIP

    with torch.device("meta"):
        shapes = CLIP(**recipe.config).state_dict()
    model = build_openclip(recipe, {name: torch.empty(t.shape).normal_(std=0.02) for name, t in shapes.items()})
    assert sum(parameter.numel() for parameter in model.parameters()) == 149_620_737
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    with torch.inference_mode():
        assert encode_vit(model.visual, torch.rand(1, 3, 224, 224)).shape == (1, 197, 512)


def test_preprocessing_follows_the_model(tmp_path):
    siglip = recipe_of("openclip:ViT-B-16-SigLIP2-256/webli")
    assert (siglip.mean, siglip.std, siglip.resampling) == ((0.5,) * 3, (0.5,) * 3, Resampling.BICUBIC)
    configuration = models.CONFIGS["laion"]
    weights = models.module(configuration).state_dict()
    own = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "bilinear"}
    clip = models.opened(models.write_folder(tmp_path, configuration, weights, **own))
    expected = np.asarray(make_image().pixels, np.float32) / 255 - np.array([0.1, 0.2, 0.3], np.float32)
    assert_close(preprocess(make_image(), (48, 72), clip.images).permute(1, 2, 0), expected, terms=3)
    assert clip.images.resampling is Resampling.BILINEAR


def test_where_all_patches_are_equal_each_has_the_images_feature(pair):
    tower = pair("siglip")[0].visual
    equal = torch.rand(2, 1, 64).expand(2, 5, 64)
    pooled, *alone = TimmVit(tower).features(equal, equal).unbind(1)
    for each in alone:
        assert_close(each, pooled, terms=TINY_NETWORK)


def test_what_a_trunk_has_beyond_the_plain_is_refused():
    from timm.models.vision_transformer import VisionTransformer

    trunk = VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=1, qk_norm=True)
    with pytest.raises(CheckpointError, match="more than attention and an MLP"):
        TimmVit(type("Tower", (), {"trunk": trunk}))
