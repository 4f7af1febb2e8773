"""Every attention rule against naive float64 loops over heads and tokens, on a tiny random CLIP and a grid of 2 × 3."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import get_args, get_type_hints

import builders
import numpy as np
import pytest
import torch
from benchmark_scripts import import_benchmark
from closeness import TINY_NETWORK, about, assert_close
from torch import nn

from text2seg.clip.build import openai_networks
from text2seg.clip.encoders import PRIOR_SIGMA, RULES, encode_vit, neighbour_prior, resize_positions
from text2seg.clip.model import Clip
from text2seg.clip.regions import attention_weights, owners_of_patches
from text2seg.config import Architecture, MapSettings, PresenceSettings, Settings
from text2seg.errors import SettingsError
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.runtime import FULL, Precision, autocast

CPU = torch.device("cpu")
GRID = (2, 3)
SHORT = ("a {}.",)
OF_REGIONS = [name for name, rule in RULES.items() if rule.regions]
ALONE = [name for name in RULES if name not in OF_REGIONS]  # rules that need CLIP only
OWNERS = np.array([[[0, 0, 1], [-1, 0, -1]], [[2, -1, 2], [1, 1, 2]]], np.int32)  # two images; -1: outside all regions


def sam_features(count, *, seed=0):
    """Unit features of cells, as SAM gives them: close to each other, so that some patches outside are left out."""
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    return torch.nn.functional.normalize(x, dim=-1)


def weights_for(name, grid_hw=GRID, count=2):
    """The weights that a rule needs for `count` images with a grid of this size, float32 [count, P, P], or None."""
    if name in ALONE:
        return None
    owners = np.resize(OWNERS, (count, *grid_hw)).astype(np.int32)
    features = [sam_features(owners[0].size, seed=seed) for seed in range(count)]
    pairs = zip(owners, features, strict=True)
    return torch.stack([attention_weights(owner, each, RULES[name].sharpness) for owner, each in pairs]).float()


def tiny_clip(kind: str = "vit", *, layers: int = 4) -> Clip:
    torch.manual_seed(5)
    layers, width, patch = (layers, 128, 16) if kind == "vit" else ((1, 1, 1, 1), 16, None)
    model = openai_networks().CLIP(32, 64, layers, width, patch, 77, 49408, 64, 1, 2)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Clip(model.eval().requires_grad_(False), device=CPU, precision=FULL)


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def exact(clip):
    return in_float64(clip.model.visual)


def in_float64(visual):
    """The same tower in float64; CLIP's own LayerNorm would go through float32."""
    tower = copy.deepcopy(visual).double()
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.__class__ = nn.LayerNorm
    return tower


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, GRID[0] * 16, GRID[1] * 16, generator=torch.Generator().manual_seed(1))


# --- the rules once more, as slow and plain as can be -------------------------------------------------------------


def attend(query, key, value, *, scale, bias=None):
    out = np.zeros_like(value)
    for i in range(len(query)):
        scores = [scale * float(query[i] @ key[j]) + (bias[i][j] if bias else 0.0) for j in range(len(key))]
        weights = [math.exp(score) for score in scores]
        for j, weight in enumerate(weights):
            out[i] += weight / sum(weights) * value[j]
    return out


def unit(x):
    return np.stack([row / math.sqrt(float(row @ row)) for row in x])


def prior(grid_hw, sigma):
    """Token 0 is CLS; the others are cells, row by row."""
    count = 1 + grid_hw[0] * grid_hw[1]
    bias = [[0.0] * count for _ in range(count)]
    for i in range(1, count):
        for j in range(1, count):
            (row, column), (other_row, other_column) = divmod(i - 1, grid_hw[1]), divmod(j - 1, grid_hw[1])
            distance2 = (row - other_row) ** 2 + (column - other_column) ** 2
            bias[i][j] = math.exp(-distance2 / (2 * sigma**2))
    return bias


def gem(q, k, v, normed, scale):
    temperature = sum(math.sqrt(float(token @ token)) for token in normed) / len(normed) * scale
    total = np.zeros_like(v)
    for x in (q, k, v):
        x = unit(x)
        x = unit(attend(x, x, x, scale=temperature))
        total += attend(x, x, v, scale=temperature)
    return total / 3


NAIVE = {  # of one head: q, k, v [N, d], LN1's output [N, width], 1/√d
    "surgery": lambda q, k, v, normed, s: attend(v, v, v, scale=s),
    "raw": None,
    "maskclip": lambda q, k, v, normed, s: v,
    "sclip": lambda q, k, v, normed, s: attend(q, q, v, scale=s) + attend(k, k, v, scale=s),
    "clearclip": lambda q, k, v, normed, s: attend(q, q, v, scale=s),
    "naclip": lambda q, k, v, normed, s: attend(k, k, v, scale=s, bias=prior(GRID, 5)),
    "gem": gem,
}
SHAPES = {  # of four blocks: the first changed one, residual, FFN
    "surgery": (2, True, False),
    "raw": (4, True, True),
    "maskclip": (3, True, True),
    "sclip": (3, True, True),
    "clearclip": (3, False, False),
    "naclip": (3, False, False),
    "gem": (2, True, False),
}


def layer_norm(layer, x):
    x = x - x.mean(1, keepdims=True)
    return x / np.sqrt((x**2).mean(1, keepdims=True) + layer.eps) * layer.weight.numpy() + layer.bias.numpy()


def feed_forward(block, x):
    hidden = layer_norm(block.ln_2, x) @ block.mlp.c_fc.weight.numpy().T + block.mlp.c_fc.bias.numpy()
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    return hidden @ block.mlp.c_proj.weight.numpy().T + block.mlp.c_proj.bias.numpy()


def per_head(attn, normed, function):
    q, k, v = np.split(normed @ attn.in_proj_weight.numpy().T + attn.in_proj_bias.numpy(), 3, axis=1)
    width = q.shape[1] // attn.num_heads
    parts = []
    for head in range(attn.num_heads):
        part = slice(head * width, (head + 1) * width)
        parts.append(function(q[:, part], k[:, part], v[:, part], normed, width**-0.5))
    return np.concatenate(parts, axis=1) @ attn.out_proj.weight.numpy().T + attn.out_proj.bias.numpy()


def naive(visual, pixels, name):
    first, residual, ffn = SHAPES[name]
    patches = visual.conv1(pixels[None]).flatten(2)[0].T
    x = torch.cat([visual.class_embedding[None], patches]) + resize_positions(visual.positional_embedding, GRID)
    x, new = layer_norm(visual.ln_pre, x.numpy()), None
    for index, block in enumerate(visual.transformer.resblocks):
        normed = layer_norm(block.ln_1, x)
        if index >= first:
            if index == first:
                new = x if residual else np.zeros_like(x)
            new = new + per_head(block.attn, normed, NAIVE[name])
            if ffn:
                new = new + feed_forward(block, new)
        x = x + per_head(block.attn, normed, lambda q, k, v, normed, s: attend(q, k, v, scale=s))
        x = x + feed_forward(block, x)
    joined = x if new is None else np.concatenate([x[:1], new[1:]])
    return layer_norm(visual.ln_post, joined) @ visual.proj.numpy()


def naive_weights(owner, features, sharpness):
    """Weights [P, P] of one image: of the patch's region, or of what is as similar as the mean."""
    owner, count = owner.ravel().tolist(), owner.size
    found = np.zeros((count, count))
    for i in range(count):
        alike = [float(sum(a * b for a, b in zip(features[i], features[j], strict=True))) for j in range(count)]
        mean = sum(alike) / count
        inside = [j for j in range(count) if (owner[j] == owner[i] if owner[i] >= 0 else alike[j] >= mean)]
        strengths = {j: math.exp(sharpness * alike[j]) for j in inside}
        for j in inside:
            found[i, j] = strengths[j] / sum(strengths.values())
    return found


def naive_within_regions(visual, pixels, weights, *, middle):
    """Features of the patches [P, C]: `middle` are the numbers of the blocks whose mean output is a second branch."""
    patches = visual.conv1(pixels[None]).flatten(2)[0].T
    x = torch.cat([visual.class_embedding[None], patches]) + resize_positions(visual.positional_embedding, GRID)
    x, outputs = layer_norm(visual.ln_pre, x.numpy()), []
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = x + per_head(block.attn, layer_norm(block.ln_1, x), lambda q, k, v, n, s: attend(q, k, v, scale=s))
        x = x + feed_forward(block, x)
        outputs.append(x)

    def mixed(q, k, v, normed, scale):
        return np.stack([sum(w * value for w, value in zip(row, v[1:], strict=True)) for row in weights])

    def cls_of_regions(q, k, v, normed, scale):
        inside = [np.flatnonzero(row) + 1 for row in weights]
        return np.concatenate([one_query(q[0], k[some], v[some], scale) for some in inside])

    path = per_head(last.attn, layer_norm(last.ln_1, x), mixed)
    mean = sum(outputs[number] for number in middle) / len(middle)
    path = path + per_head(last.attn, layer_norm(last.ln_1, mean), mixed)
    cls = x[:1] + per_head(last.attn, layer_norm(last.ln_1, x), cls_of_regions)
    cls = cls + feed_forward(last, cls)
    of_patches, of_regions = (unit(layer_norm(visual.ln_post, each) @ visual.proj.numpy()) for each in (path, cls))
    return of_patches + 0.5 * of_regions


def one_query(query, keys, values, scale):
    """One query's answer [1, d]."""
    weights = [math.exp(scale * float(query @ key)) for key in keys]
    return np.stack([sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)])


# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_REGIONS)
@pytest.mark.parametrize(("layers", "middle"), [(4, [2]), (6, [3, 4])])
def test_attention_within_regions_against_naive_loops(pixels, name, layers, middle):
    tower = in_float64(tiny_clip(layers=layers).model.visual)
    features = [sam_features(6, seed=seed) for seed in range(2)]
    sharpness = {"corrclip": 0, "corrclip-sam": 4}[name]
    expected = [naive_weights(owner, each.tolist(), sharpness) for owner, each in zip(OWNERS, features, strict=True)]
    weights = [attention_weights(owner, each, sharpness) for owner, each in zip(OWNERS, features, strict=True)]
    assert_close(torch.stack(weights), np.stack(expected), terms=20, dtype=torch.float64)
    found = encode_vit(tower, pixels.double(), rule=RULES[name], weights=torch.stack(weights))
    raw = encode_vit(tower, pixels.double(), rule=RULES["raw"])
    assert_close(found[:, 0], raw[:, 0], terms=TINY_NETWORK, dtype=torch.float64)
    for each, image, of_image in zip(found, pixels.double(), expected, strict=True):
        naive_features = naive_within_regions(tower, image, of_image, middle=middle)
        assert_close(each[1:], naive_features, terms=TINY_NETWORK, dtype=torch.float64)


def test_patches_of_one_region_are_equal_with_equal_weights_and_others_are_not(clip, pixels):
    found = encode_vit(clip.model.visual, pixels, rule=RULES["corrclip"], weights=weights_for("corrclip"))[0, 1:]
    assert_close(found[[1, 4]], found[[0, 0]], terms=TINY_NETWORK)
    assert float((found[0] - found[2]).abs().max()) > 1e-2


def test_a_patch_belongs_to_the_region_with_most_of_its_pixels():
    owner = np.full((5, 9), -1, np.int32)  # cells of 2.5 × 3 pixels
    owner[:3, :5] = 7
    owner[1:, 4:8] = 2
    expected = np.empty(GRID, np.int32)
    for row, column in np.ndindex(*GRID):
        top, left = 5 * row // 2, 3 * column
        cell = owner[top : -(-5 * (row + 1) // 2), left : left + 3].ravel().tolist()
        expected[row, column] = max(sorted(set(cell)), key=cell.count)
    np.testing.assert_array_equal(owners_of_patches(owner, GRID), expected)
    assert set(expected.ravel().tolist()) == {-1, 2, 7}


def test_weights_are_missing():
    with pytest.raises(ValueError, match="their weights are missing"):
        encode_vit(tiny_clip().model.visual, torch.zeros(1, 3, 32, 48), rule=RULES["corrclip"])


@pytest.mark.parametrize("name", ALONE)
def test_rule_against_naive_loops(exact, pixels, name):
    found = encode_vit(exact, pixels.double(), rule=RULES[name])
    for each, one in zip(found, pixels.double(), strict=True):
        assert_close(each, naive(exact, one, name), terms=TINY_NETWORK, dtype=torch.float64)


@pytest.mark.parametrize("name", RULES)
def test_float32_and_bf16_are_close_to_float64(clip, exact, pixels, name):
    weights = weights_for(name)
    expected = encode_vit(exact, pixels.double(), rule=RULES[name], weights=weights)
    single = encode_vit(clip.model.visual, pixels, rule=RULES[name], weights=weights)
    assert_close(single, expected, terms=TINY_NETWORK)
    with autocast(CPU, Precision(torch.bfloat16, "test")):
        half = encode_vit(clip.model.visual, pixels, rule=RULES[name], weights=weights)
    assert float(torch.cosine_similarity(half.double(), expected, dim=-1).min()) > 0.995


def test_rules_differ_in_the_patches_and_agree_on_cls(clip, pixels):
    visual = clip.model.visual
    tokens = {name: encode_vit(visual, pixels, rule=rule, weights=weights_for(name)) for name, rule in RULES.items()}
    for name, one in tokens.items():
        assert_close(one[:, 0], tokens["raw"][:, 0], terms=TINY_NETWORK)
        for other_name, other in tokens.items():
            assert (name == other_name) == bool((one[:, 1:] - other[:, 1:]).abs().max() < 1e-2)


def test_settings_name_every_rule_and_surgery_is_the_default():
    assert set(get_args(get_type_hints(MapSettings)["architecture"])) == set(RULES) == {*NAIVE, *OF_REGIONS}
    assert MapSettings().architecture == "surgery"


@pytest.mark.parametrize("depth", [1, 2, 11, 12, 24])
def test_number_of_changed_blocks_follows_the_depth(depth):
    changed = {name: rule.changed(depth) for name, rule in RULES.items()}
    several = 6 if depth >= 12 else max(depth // 2, 1)
    last = dict.fromkeys(["maskclip", "sclip", "clearclip", "naclip", "corrclip", "corrclip-sam"], 1)
    assert changed == {"raw": 0, "surgery": several, "gem": several, **last}


def test_neighbour_prior_on_a_rectangular_grid():
    assert PRIOR_SIGMA == 5
    found = neighbour_prior((3, 4), 1.5)
    assert_close(found, prior((3, 4), 1.5), terms=4)
    assert found[0].abs().max() == found[:, 0].abs().max() == 0


@pytest.mark.parametrize("name", RULES)
def test_gradients_flow_to_pixels_and_weights(clip, pixels, name):
    visual = copy.deepcopy(clip.model.visual).requires_grad_(True)
    given = pixels.clone().requires_grad_(True)
    features = encode_vit(visual, given, rule=RULES[name], weights=weights_for(name))
    (features[:, 1:, 0] + features[:, 1:, 1].square()).sum().backward()
    for gradient in (given.grad, visual.transformer.resblocks[-1].attn.in_proj_weight.grad, visual.conv1.weight.grad):
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("name", RULES)
def test_batches_threads_and_other_sizes_do_not_change_features(clip, name):
    images = [Image(builders.pixels((40, 60), seed=seed)) for seed in range(4)]
    weights = weights_for(name, count=4)
    each_of = [None] * 4 if weights is None else list(weights[:, None])

    def one(number):
        of_image = each_of[number]
        return clip.encode_images([images[number]], size=(32, 48), architecture=name, weights=of_image)[0]

    alone = [one(number).features for number in range(4)]
    clip.encode_images(images, size=(64, 48), architecture=name, weights=weights_for(name, (4, 3), count=4))
    together = clip.encode_images(images, size=(32, 48), architecture=name, weights=weights)
    for single, many in zip(alone, together, strict=True):
        assert many.grid_hw == (2, 3)
        assert_close(single, many.features, terms=TINY_NETWORK)
    with ThreadPoolExecutor(4) as pool:
        threads = pool.map(one, range(4))
        assert all(torch.equal(a, b.features) for a, b in zip(alone, threads, strict=True))


@pytest.mark.parametrize("name", sorted(set(RULES) - {"surgery", "raw"}))
def test_resnets_refuse_transformer_rules_before_an_image_is_read(name):
    models = Text2Seg(tiny_clip("resnet"), sam=None)
    for attempt in (
        lambda: models.check(["dog"], Settings(MapSettings(architecture=name))),
        lambda: models.clip.encode_images([builders.image()], architecture=name),
    ):
        with pytest.raises(SettingsError, match=f"architecture {name} is for .* ResNet: use surgery or raw"):
            attempt()
    models.check(["dog"], Settings(MapSettings(architecture="raw")))


@pytest.fixture(scope="module")
def script():
    """benchmarks/attention.py."""
    return import_benchmark("attention")


def test_the_comparison_script_scores_maps_like_naive_ranking(script):
    rng = np.random.default_rng(0)
    mask = builders.box_mask((8, 12), left=3, top=2, width=5, height=3)
    scores = rng.integers(0, 11, (8, 12)).astype(np.float32) + 3 * mask  # whole numbers, so with ties
    precision, ious = script.score_map(scores, mask)
    expected, recall = 0.0, 0.0
    for value in sorted(set(scores.ravel().tolist()), reverse=True):
        chosen = scores >= value
        hits = np.count_nonzero(chosen & mask)
        expected += (hits / mask.sum() - recall) * hits / chosen.sum()
        recall = hits / mask.sum()
    assert precision == about(expected, terms=scores.size, dtype=torch.float64)
    stretched = (scores - scores.min()) / np.ptp(scores)
    for level in (0, 333, 505, 901):
        chosen = stretched >= level / 1000
        assert ious[level] == about((chosen & mask).sum() / (chosen | mask).sum(), terms=1, dtype=torch.float64)


def test_thresholds_of_a_fold_come_from_the_other_folds(script):
    ious = np.zeros((3, 1001))
    ious[0, 100], ious[0, 700] = 0.9, 0.4  # part 0 is best at 0.1, part 1 at 0.7
    ious[1:, 700], ious[1:, 100] = 0.8, 0.2
    mean, thresholds = script.choose_thresholds(ious, np.array([0, 1, 1]))
    assert thresholds == (0.7, 0.1)
    assert mean == about((0.4 + 0.2 + 0.2) / 3, terms=3, dtype=torch.float64)


def test_a_session_keeps_tokens_of_each_rule(clip):
    no_sam = SimpleNamespace(embed=lambda images: [], decode=lambda jobs: [])
    session = Text2Seg(clip, no_sam).open(builders.pixels((40, 60)))
    absent = PresenceSettings(1.0)
    maps = {
        name: session.segment(["dog"], Settings(MapSettings(name, templates=SHORT), presence=absent)).maps.scores
        for name in ("surgery", "naclip", "raw", "surgery")
    }
    assert len(session.tokens) == 3
    assert not np.allclose(maps["surgery"], maps["naclip"])
    assert not np.allclose(maps["raw"], maps["naclip"])


def test_settings_list_every_attention_rule():
    assert set(get_args(Architecture)) == set(RULES)
