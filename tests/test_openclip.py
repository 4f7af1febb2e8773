"""CLIPs of open_clip: features and surgery, names and sources of weights, and the table of architectures."""

from __future__ import annotations

import copy
import json
import logging
import re
import runpy
import urllib.error
from pathlib import Path

import builders
import cv2
import numpy as np
import open_clip
import openclip_builders as models
import pytest
import torch
from closeness import DEMO_NETWORK, TINY_NETWORK, assert_close
from PIL.Image import Resampling
from safetensors.torch import save_file
from test_attention import OF_REGIONS, weights_for
from torch.nn import functional as F

from text2seg import Text2Seg, weights
from text2seg.cli import main
from text2seg.clip.build import ClipShape
from text2seg.clip.encoders import RULES, encode_vit
from text2seg.clip.model import Clip, preprocess
from text2seg.clip.openclip import fetch_openclip, recipe_of, why_not
from text2seg.clip.openclip_build import TimmVit, build_openclip, tokenizer_of
from text2seg.config import MapSettings
from text2seg.errors import CheckpointError, SettingsError
from text2seg.loading import fetch, find
from text2seg.records import Image
from text2seg.runtime import choose_precision
from text2seg.weights import path_of
from text2seg.weights.download import check_openclip
from text2seg.weights.load import load_clip_weights, load_tensors
from text2seg.weights.registry import parse_openclip

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
def test_the_image_feature_equals_that_of_open_clip_under_every_rule(kind, pair):
    theirs, clip = pair(kind)
    expected = F.normalize(theirs.encode_image(pixels(clip)), dim=-1)[0]
    rules = RULES if clip.is_vit else ("surgery", "raw")
    maps = {}
    for rule in rules:
        of_image = weights_for(rule, (models.SIZE // clip.stride,) * 2, count=1)
        (tokens,) = clip.encode_images([make_image()], size=models.SIZE, architecture=rule, weights=of_image)
        assert_close(tokens.features[0], expected, terms=TINY_NETWORK)
        maps[rule] = tokens.features[1:]
        assert tokens.grid_hw == (models.SIZE // clip.stride,) * 2
    assert all(not torch.allclose(maps["raw"], maps[rule], atol=1e-3) for rule in rules if rule != "raw")


@pytest.mark.parametrize("kind", models.CONFIGS)
def test_text_features_equal_those_of_open_clip(kind, pair):
    theirs, clip = pair(kind)
    tokens, over = clip.text._tower.tokenize(TEXTS)
    assert tokens.shape == (3, 20)
    assert over <= 0
    expected = F.normalize(theirs.encode_text(tokens), dim=-1)
    assert_close(clip.encode_texts(TEXTS, ("{}",)), expected, terms=TINY_NETWORK)
    assert clip.encode_texts(["", *TEXTS], SHORT).isfinite().all()


@pytest.mark.parametrize("kind", ["laion", "siglip"])
def test_a_text_that_is_too_long_is_truncated_and_logged(kind, pair, caplog):
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


@pytest.mark.parametrize("rule", OF_REGIONS)
@pytest.mark.parametrize("kind", models.VITS)
def test_attention_within_regions_equals_a_naive_loop(kind, rule, pair):
    theirs, clip = pair(kind)
    theirs = models.module(models.CONFIGS[kind]).double()
    of_image, size = weights_for(rule, (3, 4), count=1), (48, 64)
    (tokens,) = clip.encode_images([make_image()], size=size, architecture=rule, weights=of_image)
    patches = naive_within_regions(theirs.visual, pixels(clip, size).double(), of_image[0].double(), (3, 4))
    assert_close(tokens.features[1:], F.normalize(patches, dim=-1), terms=TINY_NETWORK)


def naive_within_regions(tower, inputs, weights, grid_hw):
    """Features of the patches [N, C] of a tower with three blocks: the second is the only middle one."""
    timm = hasattr(tower, "trunk")
    *blocks, last = tower.trunk.blocks if timm else tower.transformer.resblocks
    prefix = tower.trunk.num_prefix_tokens if timm else 1
    has_cls = tower.trunk.global_pool == "token" if timm else tower.pool_type == "tok"
    (x,) = naive_inputs(tower, inputs, grid_hw)
    for block in blocks:
        x = block(x[None])[0]  # the last of them is the middle
    attn = last.attn
    qkv = (attn.qkv.weight, attn.qkv.bias) if timm else (attn.in_proj_weight, attn.in_proj_bias)
    normed = (last.norm1 if timm else last.ln_1)(x)
    query, key, value = (normed @ qkv[0].T + qkv[1]).chunk(3, dim=-1)
    size = x.shape[1] // attn.num_heads
    mixed, of_cls = (torch.zeros(len(weights), x.shape[1], dtype=x.dtype) for _ in range(2))
    for row, of_row in enumerate(weights):
        inside = [number for number, weight in enumerate(of_row.tolist()) if weight > 0]
        mixed[row] = sum(of_row[number] * value[prefix + number] for number in inside)
        for start in range(0, x.shape[1] if has_cls else 0, size):
            part = slice(start, start + size)
            logits = [query[0, part] @ key[1 + number, part] / size**0.5 for number in inside]
            shares = torch.softmax(torch.stack(logits), 0)
            of_cls[row, part] = sum(w * value[1 + n, part] for w, n in zip(shares, inside, strict=True))
    project, scale = (attn.proj, last.ls1) if timm else (attn.out_proj, last.ls_1)
    path = 2 * scale(project(mixed))  # the input of the last block is the mean of the middle
    patches = F.normalize(features_alone(tower, path), dim=-1)
    if not has_cls:
        return patches
    cls = x[:1] + scale(project(of_cls))
    hidden = (last.norm2 if timm else last.ln_2)(cls)
    cls = cls + (last.ls2 if timm else last.ls_2)(last.mlp(hidden))
    return patches + 0.5 * F.normalize(features_alone(tower, cls), dim=-1)


def naive_inputs(tower, inputs, grid_hw):
    """The input of the first block [1, prefix + N, width], with the positions resized to the grid."""
    tower = copy.deepcopy(tower)
    side = models.SIZE // 16
    if hasattr(tower, "trunk"):
        trunk = tower.trunk
        placed = trunk.pos_embed.shape[1] - side**2
        trunk.pos_embed = torch.nn.Parameter(resized(trunk.pos_embed[0], placed, side, grid_hw)[None])
        trunk.patch_embed.strict_img_size = False
        return timm_inputs(trunk, inputs)
    tower.positional_embedding = torch.nn.Parameter(resized(tower.positional_embedding, 1, side, grid_hw))
    return tower._embeds(inputs)


def resized(positions, prefix, side, grid_hw):
    """Bilinear, one channel at a time, by OpenCV's rule for pixels' centres."""
    grid = positions[prefix:].detach().numpy().reshape(side, side, -1)
    channels = [cv2.resize(grid[..., n], grid_hw[::-1], interpolation=cv2.INTER_LINEAR) for n in range(grid.shape[2])]
    return torch.cat([positions[:prefix], torch.from_numpy(np.stack(channels, -1)).flatten(0, 1)])


def features_alone(tower, path):
    """Features [N, C] of tokens [N, width], each alone."""
    if not hasattr(tower, "trunk"):
        return tower.ln_post(path) @ tower.proj
    trunk = tower.trunk
    alone = [trunk.norm(path[None, [row]]) for row in range(len(path))]
    pooled = [trunk.attn_pool(each) if trunk.attn_pool is not None else each[:, 0] for each in alone]
    return torch.cat([tower.head(trunk.head(trunk.fc_norm(each))) for each in pooled])


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
    return features_alone(tower, path[tower.trunk.num_prefix_tokens if timm else 1 :])


def timm_inputs(trunk, inputs):
    return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(inputs))))


@pytest.mark.parametrize("kind", ["laion", "siglip", "mobile", "mean"])
def test_an_input_of_another_size_does_not_change_later_features(kind, pair):
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


def test_maps_of_open_clip_have_the_same_interface(pair):
    _, clip = pair("siglip")
    (tokens,) = clip.encode_images([make_image()], size=96)
    maps = clip.similarity(tokens, ["dog", "red car"], MapSettings(templates=SHORT))
    assert maps.scores.shape == (2, 6, 6)
    assert np.isfinite(maps.scores).all()
    assert ((maps.presence >= 0) & (maps.presence <= 1)).all()
    assert (clip.presence.slope, clip.presence.offset) == (1, 0)  # not calibrated


def test_only_models_built_like_those_of_openai_support_explanations(pair):
    assert pair("laion")[1].model.visual.conv1.kernel_size == (16, 16)
    for kind in ("siglip", "clipa", "layer_scale", "resnet", "worldwide"):
        with pytest.raises(SettingsError, match="not built like OpenAI's"):
            _ = pair(kind)[1].model


def test_the_demo_clip_gives_the_same_maps_through_open_clip(demo, tmp_path):
    weights = load_tensors(path_of(find("demo", "clip")))
    clip = models.opened(models.write_folder(tmp_path, demo_config(weights), weights))
    settings = MapSettings(templates=SHORT)
    for rule in RULES:
        of_image = weights_for(rule, (4, 4), count=1)
        (ours,) = clip.encode_images([make_image()], size=64, architecture=rule, weights=of_image)
        (official,) = demo.clip.encode_images([make_image()], size=64, architecture=rule, weights=of_image)
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


def test_a_vit_b_16_of_full_size():
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


def test_equal_patches_have_the_feature_of_the_image(pair):
    tower = pair("siglip")[0].visual
    equal = torch.rand(2, 1, 64).expand(2, 5, 64)
    pooled, *alone = TimmVit(tower).features(equal, equal).unbind(1)
    for each in alone:
        assert_close(each, pooled, terms=TINY_NETWORK)


def test_a_trunk_with_unsupported_parts_is_refused():
    from timm.models.vision_transformer import VisionTransformer

    trunk = VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=1, qk_norm=True)
    with pytest.raises(CheckpointError, match="more than attention and an MLP"):
        TimmVit(type("Tower", (), {"trunk": trunk}))


SCENE = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "new-scenes" / "images" / "scene_0019.jpg"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The Hugging Face hub's cache in a folder of the test's, and no tries for more."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def demo_weights():
    return load_clip_weights(weights.path_of(weights.find("demo", "clip")))


@pytest.fixture
def demo_file(demo_weights, tmp_path):
    """The demo CLIP's weights in a file, and its architecture known to open_clip as `tests-demo`."""
    import open_clip

    architecture = tmp_path / "tests-demo.json"
    architecture.write_text(json.dumps(demo_config(demo_weights)), encoding="utf-8")
    open_clip.add_model_config(architecture)
    save_file({name: tensor.contiguous() for name, tensor in demo_weights.items()}, tmp_path / "demo.safetensors")
    yield tmp_path / "demo.safetensors"
    open_clip.factory._MODEL_CONFIG_PATHS.remove(architecture)
    del open_clip.factory._MODEL_CONFIGS["tests-demo"]


def test_an_unreachable_hub_fails_at_once_and_names_the_way_out(monkeypatch):
    def unreachable(*_, timeout, **__):
        assert timeout <= 5
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("text2seg.clip.openclip.cached_openclip", lambda recipe: None)
    monkeypatch.setattr("text2seg.weights.download._opener.open", unreachable)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_: pytest.fail("the hub's client tries for a minute"))
    for name in ("openclip:ViT-B-16/laion2b_s34b_b88k", "openclip:RN50/yfcc15m"):
        with pytest.raises(CheckpointError, match=r"cannot reach .*Name or service not known.*--clip openclip:FOLDER"):
            fetch_openclip(recipe_of(name))


def test_a_published_model_without_network_and_cache_fails_before_slow_imports(monkeypatch, tmp_path):
    name = "openclip:ViT-B-16/laion2b_s34b_b88k"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set.*--clip openclip:ViT-B-16=FILE"):
        check_openclip(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"cannot reach 127\.0\.0\.1:9.*--clip openclip:FOLDER"):
        check_openclip(name)
    snapshot = tmp_path / "models--someone--something" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    check_openclip(name)  # perhaps it is this model's


def test_the_three_forms_of_names_are_parsed(tmp_path):
    tagged = parse_openclip("openclip:ViT-B-16/laion2b_s34b_b88k")
    assert (tagged.architecture, tagged.tag, tagged.file) == ("ViT-B-16", "laion2b_s34b_b88k", None)
    (tmp_path / "a=b.pt").write_bytes(b"x")
    assert parse_openclip(f"openclip:ViT-B-16={tmp_path}/a=b.pt").file == tmp_path / "a=b.pt"
    name = models.write_folder(tmp_path / "model", models.CONFIGS["laion"], {"x": torch.zeros(1)})
    assert parse_openclip(name).file == tmp_path / "model" / "open_clip_model.safetensors"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openclip:", "cannot read the name"),
        ("openclip:ViT-B-16", "openclip:ARCHITECTURE/TAG"),
        ("openclip:ViT-B-16=", "cannot read the name"),
        ("openclip:ViT-B-16/a/b", "no such folder"),
        ("openclip:ViT-B-16=missing.pt", "there is no file .*missing.pt"),
        ("openclip:VIT-B16/openai", "no model 'VIT-B16'; did you mean .*ViT-B-16"),
        ("openclip:ViT-B-16/laion", "no weights with the tag 'laion'; .*laion2b_s34b_b88k"),
        ("openclip:ViT-B-16-plus/any", "no weights of ViT-B-16-plus are published"),
    ],
)
def test_an_unknown_name_is_refused_with_a_remedy(name, message):
    with pytest.raises(CheckpointError, match=message):
        find(name, "clip")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("coca_ViT-B-32/laion2b_s13b_b90k", "CoCa"),
        ("convnext_base/laion400m_s13b_b51k", "ConvNeXt"),
        ("EVA02-B-16/merged2b_s8b_b131k", "rotary positions"),
        ("PE-Core-B-16/meta", "Perception Encoder"),
        ("MobileCLIP-B/datacompdr", "begins with convolutions"),
        ("MobileCLIP2-S0/dfndr2b", "FastViT"),
        ("ViTamin-S/datacomp1b", "ViTamin"),
        ("xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", "xlm-roberta-base"),
        ("nllb-clip-base-siglip/v1", "nllb-200"),
    ],
)
def test_an_unsupported_architecture_is_refused_before_a_download(name, why):
    with pytest.raises(CheckpointError, match=rf"does not fit: .*{why}.* What fits: .*ViT-B-16.*SigLIP"):
        find(f"openclip:{name}", "clip")


def test_a_folder_without_config_or_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no open_clip_config"):
        parse_openclip(f"openclip:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"none of open_clip_model\.safetensors"):
        parse_openclip(f"openclip:{tmp_path}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"cannot read .*open_clip_config"):
        recipe_of(f"openclip:{tmp_path}")


@pytest.mark.parametrize("arguments", [{"trust_remote_code": True}, {"bpe_path": "/etc/passwd"}, ["x"]])
@pytest.mark.parametrize("kind", ["laion", "siglip"])
def test_a_folder_may_not_name_files_or_code_for_its_tokenizer(tmp_path, kind, arguments):
    config = models.CONFIGS[kind]
    config = {**config, "text_cfg": {**config["text_cfg"], "tokenizer_kwargs": arguments}}
    name = models.write_folder(tmp_path / "model", config, {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"its tokenizer_kwargs (ask for|should be an object)"):
        tokenizer_of(recipe_of(name))


def test_the_tag_decides_between_gelu_and_quickgelu(caplog):
    caplog.set_level(logging.INFO, "text2seg")
    assert recipe_of("openclip:ViT-B-16/openai").config["quick_gelu"]
    assert "QuickGELU" in caplog.text
    assert not recipe_of("openclip:ViT-B-16/laion2b_s34b_b88k").config.get("quick_gelu")


def test_offline_the_error_names_the_file_and_a_remedy(offline):
    with pytest.raises(CheckpointError) as caught:
        fetch("openclip:ViT-B-16/laion2b_s34b_b88k", "clip")
    for words in ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "open_clip_model.safetensors", "HF_HUB_OFFLINE"):
        assert words in str(caught.value)
    assert "openclip:ViT-B-16=FILE" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"tokenizer of .*timm/ViT-B-16-SigLIP.* say --clip openclip:FOLDER"):
        tokenizer_of(recipe_of("openclip:ViT-B-16-SigLIP/webli"))


def test_weights_in_the_cache_of_the_hub_are_used(offline, capsys):
    repository = offline / "models--laion--CLIP-ViT-B-16-laion2B-s34B-b88K"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    (snapshot / "open_clip_model.safetensors").write_bytes(b"x")
    assert fetch("openclip:ViT-B-16/laion2b_s34b_b88k", "clip") == snapshot / "open_clip_model.safetensors"
    assert main(["checkpoints", "download", "openclip:ViT-B-16/laion2b_s34b_b88k"]) == 0
    assert str(snapshot) in capsys.readouterr().out


def test_weights_that_do_not_fit_are_named(tmp_path):
    configuration = models.CONFIGS["laion"]
    weights = dict(models.module(configuration).state_dict())
    recipe = recipe_of(models.write_folder(tmp_path, configuration, weights))
    short = {name: tensor for name, tensor in weights.items() if name != "ln_final.bias"}
    with pytest.raises(CheckpointError, match=r"mine: .*no tensor 'ln_final\.bias'"):
        build_openclip(recipe, short, source="mine")
    with pytest.raises(CheckpointError, match=r"'visual\.proj' has shape"):
        build_openclip(recipe, weights | {"visual.proj": torch.zeros(64, 8)})


def test_cached_text_features_differ_by_model(tmp_path):
    weights = models.module(models.CONFIGS["laion"]).state_dict()
    plain = recipe_of(models.write_folder(tmp_path / "a", models.CONFIGS["laion"], weights))
    quick = recipe_of(models.write_folder(tmp_path / "b", models.CONFIGS["quick_gelu"], weights))
    siglip = recipe_of(models.write_folder(tmp_path / "c", models.CONFIGS["siglip"], weights))
    before = siglip.identity()
    (tmp_path / "c" / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert len({plain.identity(), quick.identity(), before, siglip.identity()}) == 4


def test_a_header_that_begins_like_a_pickle_is_read_as_safetensors(tmp_path):
    for length in range(400):
        save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"filling": "-" * length})
        if (tmp_path / "x.safetensors").read_bytes()[0] == 0x80:
            break
    assert (tmp_path / "x.safetensors").read_bytes()[0] == 0x80
    assert load_tensors(tmp_path / "x.safetensors")["x"].tolist() == [1, 1]


def test_segment_runs_with_weights_from_a_file(demo_file, tmp_path):
    name, output = f"openclip:tests-demo={demo_file}", tmp_path / "out"
    command = ["segment", str(SCENE), "--query", "sheep", "--clip", name, "--input-size", "384", "--device", "cpu"]
    assert main([*command, "--output", str(output)]) == 0
    dataset = json.loads((output / "dataset.json").read_text(encoding="utf-8"))
    assert dataset["annotations"]
    assert name in json.dumps(dataset)
    explained = ["explain", "saliency", str(SCENE), "--text", "sheep", "--method", "legrad", "--clip", name]
    assert main([*explained, "--output", str(tmp_path / "why")]) == 0


def test_a_dry_run_and_loading_agree(demo_file):
    name = f"openclip:tests-demo={demo_file}"
    assert find(name, "clip").file_name == str(demo_file)
    loaded = Text2Seg.load("demo", clip=name, device="cpu", precision="fp32")
    assert loaded.provenance()["clip"] == {"name": name, "sha256": weights.sha256_of(demo_file)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "asked", [{"trust_remote_code": True}, {"bpe_path": "/etc/hostname"}, {"cache_dir": "elsewhere"}]
)
def test_a_folder_with_its_own_code_is_refused(tmp_path, asked):
    configuration = json.loads(json.dumps(models.CONFIGS["siglip"]))
    weights = dict(models.module(models.CONFIGS["siglip"]).state_dict())
    configuration["text_cfg"]["tokenizer_kwargs"] = asked
    name = models.write_folder(tmp_path / "model", configuration, weights)
    (tmp_path / "model" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T: pass\n")
    of_code = {"auto_map": {"AutoTokenizer": [None, "own.T"], "AutoConfig": "own.T"}, "tokenizer_class": "T"}
    for file in ("tokenizer_config.json", "config.json"):
        (tmp_path / "model" / file).write_text(json.dumps(of_code))
    with pytest.raises(CheckpointError, match=f"tokenizer_kwargs ask for '{next(iter(asked))}'"):
        models.opened(name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("part", "key"), [("vision_cfg", "layers"), ("text_cfg", "width")])
def test_a_configuration_with_excessive_sizes_is_refused(tmp_path, part, key):
    configuration = json.loads(json.dumps(models.CONFIGS["laion"]))
    configuration[part][key] = 10**9
    name = models.write_folder(tmp_path / "model", configuration, {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match=f"'{key}' is 1000000000, more than"):
        models.opened(name)


ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("## SAM")[0].splitlines()
    if line.startswith("| `") and "--clip" not in line
]
FITS = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 6}
REFUSED = {name: row[1] for row in ROWS if len(row) == 2 for name in re.findall(r"`([^`]+)`", row[0])}
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "table_of_openclip.py"))


def test_every_architecture_is_either_supported_or_refused():
    assert not FITS.keys() & REFUSED.keys()
    named = {name for name in open_clip.list_models() if not name.endswith("-quickgelu")}
    assert named <= FITS.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", open_clip.list_models())
def test_the_code_agrees_with_the_table(name):
    config = open_clip.get_model_config(name)
    why = why_not(config)
    if name in REFUSED:
        assert why is not None
        assert re.sub(r" \(.*?\)", "", why) == REFUSED[name]
        return
    assert why is None
    family, shape, _, tags, licence = FITS[name.removesuffix("-quickgelu")]
    assert family == SCRIPT["family_of"](name)
    assert shape == SCRIPT["shape_of"](config)
    assert licence in {*SCRIPT["LICENCES"].values(), "by tag", "—"}
    if not name.endswith("-quickgelu"):
        assert tags == str(len(open_clip.list_pretrained_tags_by_model(name)) or "none")


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-16-SigLIP2-256", "ViT-L-14-CLIPA", "RN50", "MobileCLIP2-L-14"])
def test_listed_sizes_equal_parameter_counts(name):
    millions = SCRIPT["parameters_of"](open_clip.get_model_config(name)) / 1e6
    assert FITS[name][2] == f"{millions:.0f} M"
