"""Similarity maps of tiny random CLIPs equal CLIP, naive loops and values of the original code."""

from __future__ import annotations

import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import builders
import golden
import numpy as np
import pytest
import torch
from clip import tokenize as openai_tokenize
from closeness import TINY_NETWORK, assert_close
from torch.nn import functional as F

from text2seg.clip.build import openai_networks
from text2seg.clip.encoders import RULES, encode_resnet, encode_vit
from text2seg.clip.maps import cosines, without_empty_text, without_label_set
from text2seg.clip.model import Clip, preprocess
from text2seg.clip.text import encode_tokens, tokenize
from text2seg.config import MapSettings, PointSettings
from text2seg.errors import CheckpointError, QueryError, SettingsError
from text2seg.grids import depth_of, highest, minmax, resize
from text2seg.prompts import text2points
from text2seg.runtime import FULL

CPU = torch.device("cpu")
SHORT = ("a {}.", "the {}.")


def tiny(kind: str) -> Clip:
    torch.manual_seed(3)
    vision = (4, 128, 16) if kind == "vit" else ((1, 1, 1, 1), 16, None)
    layers, width, patch = vision
    model = openai_networks().CLIP(32, 64, layers, width, patch, 77, 49408, 64, 1, 2)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return Clip(model.eval().requires_grad_(False), device=CPU, precision=FULL)


@pytest.fixture(scope="module", params=["vit", "resnet"])
def clip(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def vit():
    return tiny("vit")


def image(seed: int = 0, hw: tuple[int, int] = (48, 72)):
    from text2seg.records import Image

    return Image(builders.pixels(hw, seed=seed))


def test_cls_feature_equals_that_of_clip_with_and_without_surgery(clip):
    pixels = preprocess(image(), (64, 64))[None]
    expected = F.normalize(clip.model.encode_image(pixels), dim=-1)
    for architecture in ("surgery", "raw"):
        (tokens,) = clip.encode_images([image()], architecture=architecture)
        assert_close(tokens.features[:1], expected, terms=TINY_NETWORK)


def test_text_features_equal_those_of_clip():
    clip = tiny("vit")
    tokens, over = tokenize(["a dog.", "a photo of a very long red fire engine."], 77)
    assert over <= 0
    assert torch.equal(tokens, openai_tokenize(["a dog.", "a photo of a very long red fire engine."]).long())
    expected = F.normalize(clip.model.encode_text(tokens), dim=-1)
    assert_close(encode_tokens(clip.model, tokens), expected, terms=TINY_NETWORK)


def test_query_features_are_the_normalised_mean_over_templates(vit):
    features = [encode_tokens(vit.model, tokenize([t.format("dog")], 77)[0])[0] for t in SHORT]
    expected = F.normalize(torch.stack(features).mean(0), dim=-1)
    assert_close(vit.encode_texts(["dog"], SHORT)[0], expected, terms=TINY_NETWORK)


def test_braces_in_queries_and_templates_are_literal(vit):
    odd = vit.encode_texts(["{x} {0}"], ("a {} {y} {0} {",))
    expected = encode_tokens(vit.model, tokenize(["a {x} {0} {y} {0} {"], 77)[0])
    assert_close(odd, expected, terms=TINY_NETWORK)


def test_surgery_against_naive_float64_loops(vit):
    """One patch of the new path, head by head and key by key."""
    visual = vit.model.visual
    pixels = preprocess(image(), (64, 64))[None]
    found = encode_vit(visual, pixels)[0]
    expected = naive_surgery(copy.deepcopy(visual).double(), pixels.double())
    assert_close(found[1:], expected[1:], terms=TINY_NETWORK)


def naive_surgery(visual, pixels):
    patches = visual.conv1(pixels).flatten(2)[0].T
    x = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
    norm = lambda layer, v: F.layer_norm(v, v.shape[-1:], layer.weight, layer.bias, layer.eps)  # noqa: E731
    x, new = norm(visual.ln_pre, x), None
    blocks = visual.transformer.resblocks
    for number, block in enumerate(blocks):
        width, heads = x.shape[1], block.attn.num_heads
        q, k, v = (norm(block.ln_1, x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(width, dim=1)
        if number >= len(blocks) // 2:
            new = (x if new is None else new) + naive_attention(block.attn, v, v, v, heads)
        x = x + naive_attention(block.attn, q, k, v, heads)
        hidden = block.mlp.c_fc(norm(block.ln_2, x))
        x = x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
    return norm(visual.ln_post, new) @ visual.proj


def naive_attention(attn, q, k, v, heads):
    d = q.shape[1] // heads
    rows = []
    for i in range(len(q)):
        row = []
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            scores = torch.stack([(q[i, part] * k[j, part]).sum() / d**0.5 for j in range(len(k))])
            weights = scores.exp() / scores.exp().sum()
            row.append(sum(weights[j] * v[j, part] for j in range(len(v))))
        rows.append(torch.cat(row))
    return torch.stack(rows) @ attn.out_proj.weight.T + attn.out_proj.bias


def test_feature_surgery_equals_the_large_tensor_of_the_original():
    generator = torch.Generator().manual_seed(0)
    tokens = F.normalize(torch.randn(2, 7, 16, generator=generator, dtype=torch.float64), dim=-1)
    texts = F.normalize(torch.randn(5, 16, generator=generator, dtype=torch.float64), dim=-1)
    for image_tokens in tokens:
        weights = (2 * image_tokens[:1] @ texts.T).softmax(-1)
        weights = weights / weights.mean(-1, keepdim=True)
        products = image_tokens[:, None] * texts[None] * weights.reshape(1, -1, 1)
        expected = (products - products.mean(1, keepdim=True)).sum(-1)
        assert_close(without_label_set(image_tokens, texts), expected, terms=16 * 5, scale=1, dtype=torch.float64)
    assert_close(
        without_empty_text(tokens, texts, texts[0]),
        tokens @ texts.T - (tokens @ texts[0])[..., None],
        terms=16,
        scale=1,
        dtype=torch.float64,
    )


def test_a_label_set_of_one_is_refused(vit):
    with pytest.raises(ValueError, match="two labels"):
        without_label_set(torch.ones(3, 4), torch.ones(1, 4))
    (tokens,) = vit.encode_images([image()])
    with pytest.raises(QueryError, match="two labels"):
        vit.similarity(tokens, ["dog"], MapSettings(redundancy="label-set", templates=SHORT))


def test_label_set_maps_of_chosen_targets_equal_those_of_the_full_set(vit):
    (tokens,) = vit.encode_images([image()])
    labels = ["dog", "cat", "bus"]
    full = vit.similarity(tokens, labels, MapSettings(redundancy="label-set", templates=SHORT))
    some = vit.similarity(tokens, ["bus"], MapSettings(redundancy="label-set", labels=("dog", "cat"), templates=SHORT))
    assert_close(some.scores[0], full.scores[2], terms=TINY_NETWORK, scale=1)


@pytest.mark.parametrize("redundancy", ["empty", "label-set", "none"])
def test_a_batch_equals_single_images(clip, redundancy):
    """The original applies the label-set weights of one image to the other."""
    images = [image(1), image(2, (50, 40))]
    settings = MapSettings(redundancy=redundancy, templates=SHORT)
    together = [clip.similarity(tokens, ["dog", "cat"], settings) for tokens in clip.encode_images(images)]
    for one, maps in zip(images, together, strict=True):
        (tokens,) = clip.encode_images([one])
        assert_close(clip.similarity(tokens, ["dog", "cat"], settings).scores, maps.scores, terms=TINY_NETWORK, scale=1)


def test_features_are_unit_vectors(clip):
    (tokens,) = clip.encode_images([image()])
    assert_close(tokens.features.norm(dim=-1), torch.ones(len(tokens.features)), terms=32)


def test_another_input_size_does_not_change_the_model(clip):
    """The original overwrites its position embeddings, so that the sizes 224, 512, 224 end with another result."""
    before = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    (first,) = clip.encode_images([image()], size=64)
    clip.encode_images([image()], size=(96, 160))
    (again,) = clip.encode_images([image()], size=64)
    assert torch.equal(first.features, again.features)
    after = clip.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rectangular_inputs_have_rectangular_grids(clip):
    (tokens,) = clip.encode_images([image()], size=(64, 128))
    rows, columns = 64 // clip.stride, 128 // clip.stride
    assert tokens.grid_hw == (rows, columns)
    maps = clip.similarity(tokens, ["dog"], MapSettings(templates=SHORT))
    assert maps.scores.shape == (1, rows, columns)
    assert maps.image_hw == (48, 72)


def test_the_grid_always_covers_the_image():
    """The original drops the last 8 of 512 px with patches of 14 and stretches the map over them."""
    model = openai_networks().CLIP(32, 70, 2, 64, 14, 77, 100, 64, 1, 1).eval()
    clip = Clip(model, device=CPU, precision=FULL)
    assert clip.input_hw(512) == (518, 518)
    assert clip.input_hw(None) == (70, 70)
    assert clip.input_hw((15, 30)) == (14, 28)
    with pytest.raises(SettingsError, match="at least 14, one patch of this CLIP, got 1"):
        clip.input_hw((1, 30))


def test_threads_do_not_change_features(clip):
    images = [image(seed) for seed in range(8)]
    alone = [clip.encode_images([each])[0].features for each in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: clip.encode_images([each], size=64)[0].features, images))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_query_that_is_too_long_is_truncated_and_logged(vit, caplog):
    with caplog.at_level(logging.WARNING):
        features = vit.encode_texts(["dog " * 1250], SHORT)
    assert "cut off" in caplog.text
    assert bool(features.isfinite().all())


@pytest.mark.parametrize("queries", [[], [" "], ["dog", ""]])
def test_missing_and_empty_queries_are_refused(vit, queries):
    (tokens,) = vit.encode_images([image()])
    with pytest.raises(QueryError):
        vit.similarity(tokens, queries, MapSettings(templates=SHORT))


def test_the_number_of_surgery_blocks_equals_the_published_one():
    assert [RULES["surgery"].changed(depth) for depth in (2, 6, 12, 24)] == [1, 3, 6, 6]


@pytest.mark.parametrize("wrong", [{"input_size": 0}, {"input_size": (64, -1)}, {"templates": ("no place",)}])
def test_invalid_map_settings_are_refused(wrong):
    with pytest.raises(SettingsError):
        MapSettings(**wrong)


def test_weights_that_are_not_finite_are_refused():
    clip = tiny("vit")
    clip.model.visual.proj.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        clip.encode_images([image()])


ENCODERS = {"vit": partial(encode_vit, blocks=6), "rn": encode_resnet}


@pytest.fixture(scope="module", params=["vit", "rn"])
def model(request):
    values = golden.load(request.param)
    return request.param, values, golden.visual(request.param, values)


@pytest.fixture(scope="module", params=[64, 128])
def tokens(request, model):
    name, values, visual = model
    features = ENCODERS[name](visual, torch.from_numpy(values[f"{request.param}/pixels"]))
    return request.param, F.normalize(features, dim=-1)


def first(name: str) -> int:
    """The ResNet's golden CLS is not CLIP's, so there only the patches count."""
    return 0 if name == "vit" else 1


def test_features_and_cosines(model, tokens):
    name, values, _ = model
    size, features = tokens
    text = torch.from_numpy(values["text"])
    assert_close(features[:, first(name) :], values[f"{size}/features"][:, first(name) :], terms=TINY_NETWORK, scale=1)
    assert_close(
        cosines(features, text)[:, first(name) :], values[f"{size}/raw"][:, first(name) :], terms=TINY_NETWORK, scale=1
    )


def test_single_query_similarity(model, tokens):
    name, values, _ = model
    size, features = tokens
    text, empty = (torch.from_numpy(values[key]) for key in ("text", "empty_text"))
    ours = without_empty_text(features, text, empty[0])
    assert_close(
        ours[:, first(name) :], values[f"{size}/similarity_single"][:, first(name) :], terms=TINY_NETWORK, scale=1
    )


def test_label_set_similarity_maps_and_points(model, tokens):
    name, values, _ = model
    size, features = tokens
    text = torch.from_numpy(values["text"])
    if name == "rn":  # its weights come from CLS, so the original's CLS is put in to compare what follows
        features = torch.cat([torch.from_numpy(values[f"{size}/features"][:, :1]), features[:, 1:]], dim=1)
    similarity = without_label_set(features, text)
    assert_close(similarity, values[f"{size}/similarity_label_set"], terms=TINY_NETWORK, scale=1)

    side = round((similarity.shape[1] - 1) ** 0.5)
    scores = similarity[:, 1:].transpose(1, 2).unflatten(-1, (side, side)).contiguous().numpy()
    for image in range(2):
        maps = resize(minmax(scores[image]), (60, 90))
        spread = float(np.ptp(scores[image], axis=(1, 2)).min())  # to which each map is stretched
        assert_close(maps.transpose(1, 2, 0), values[f"{size}/map_60x90"][image], terms=TINY_NETWORK, scale=1 / spread)
    settings = PointSettings(method="reference", downsample=2 if size == 128 else 1)
    for query, prompts in enumerate(text2points(scores[0], (60, 90), settings)):
        np.testing.assert_array_equal(prompts.xy, values[f"{size}/points_{query}"])
        np.testing.assert_array_equal(prompts.labels, values[f"{size}/point_labels_{query}"])


def test_the_deepest_pixel_of_a_mask_counts_the_edge_of_the_image_as_outside():
    mask = np.zeros((9, 13), bool)
    mask[0:5, 8:13] = True  # it touches two edges
    depth = depth_of(mask)
    assert depth.shape == mask.shape
    assert highest(depth) == (10, 2)
    assert depth[2, 10] == pytest.approx(3)
    assert depth[0, 10] == depth[2, 12] == pytest.approx(1)
    assert not depth[~mask].any()
