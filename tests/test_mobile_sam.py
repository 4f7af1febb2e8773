"""MobileSAM: its encoder equals timm's TinyViT, the rest is SAM's; files with the published names load and run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, assert_close
from sam_builders import TINY, assert_equals_stock, make_image, points, random_weights
from timm.models.tiny_vit import TinyVit
from torch import nn

from text2seg import Text2Seg
from text2seg.errors import CheckpointError
from text2seg.loading import open_sam
from text2seg.sam.base import lower
from text2seg.sam.mobile_sam import MobileSam, MobileSamShape, TinyViT, TinyViTShape
from text2seg.sam.sam import build_sam, load_sam
from text2seg.weights import registry
from text2seg.weights.load import load_sam_weights

CPU = torch.device("cpu")
PUBLISHED_ENCODER = TinyViTShape(
    widths=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(4, 5, 10), windows=(7, 14, 7), expansion=4, embedding=256
)
PUBLISHED = MobileSamShape(
    image_size=1024,
    patch=16,
    embedding=256,
    mask_in_channels=16,
    decoder_depth=2,
    decoder_mlp=2048,
    candidates=3,
    iou_depth=3,
    iou_width=256,
    encoder=PUBLISHED_ENCODER,
)
SMALL_ENCODER = TinyViTShape(
    widths=(8, 16, 24, 32),
    depths=(1, 2, 2, 1),
    heads=(2, 3, 4),
    windows=(3, 4, 2),
    expansion=4,
    embedding=32,
    image_size=80,
)  # windows fit into none of the grids of 10, 5 and 5
SMALL = MobileSamShape(
    image_size=80,
    patch=16,
    embedding=TINY.embedding,
    mask_in_channels=TINY.mask_in_channels,
    decoder_depth=TINY.decoder_depth,
    decoder_mlp=TINY.decoder_mlp,
    candidates=3,
    iou_depth=3,
    iou_width=24,
    encoder=SMALL_ENCODER,
)


@pytest.fixture(scope="module")
def sam():
    return MobileSam(load_sam(SMALL, random_weights(SMALL)), CPU)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file like the published one, with random weights."""
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    torch.save(published_weights(), path)
    return path


def published_weights() -> dict[str, torch.Tensor]:
    """Random weights with the names and sizes of the published file, and those names that MobileSAM does not use."""
    weights = random_weights(PUBLISHED)
    weights |= {"image_encoder.norm_head.weight": torch.ones(320), "image_encoder.norm_head.bias": torch.ones(320)}
    weights |= {"image_encoder.head.weight": torch.ones(1000, 320), "image_encoder.head.bias": torch.ones(1000)}
    counts = [name for name in weights if name.endswith("bn.running_var")]
    return weights | {name.replace("running_var", "num_batches_tracked"): torch.tensor(7) for name in counts}


def names_of_timm(name: str) -> str:
    """timm keeps the step between two stages at the beginning of the second."""
    parts = name.replace(".c.", ".conv.").split(".")
    if parts[0] == "patch_embed":
        return ".".join(["patch_embed", {"0": "conv1", "2": "conv2"}[parts[2]], *parts[3:]])
    stage = int(parts[1]) + (parts[2] == "downsample")
    return ".".join(["stages", str(stage), *parts[2:]])


def test_the_encoder_equals_that_of_timm():
    torch.manual_seed(0)
    ours = TinyViT(SMALL_ENCODER).eval()
    prefix = "image_encoder."
    weights = {name.removeprefix(prefix): t for name, t in random_weights(SMALL).items() if name.startswith(prefix)}
    ours.load_state_dict(weights)
    ours.neck = nn.Sequential(*(nn.Identity() for _ in range(4)))
    theirs = TinyVit(
        num_classes=0,
        embed_dims=SMALL_ENCODER.widths,
        depths=SMALL_ENCODER.depths,
        num_heads=(1, *SMALL_ENCODER.heads),
        window_sizes=(7, *SMALL_ENCODER.windows),
    ).eval()
    theirs.stages[3].downsample.conv2.conv.stride = (1, 1)  # as MobileSAM has it
    same = {names_of_timm(name): tensor for name, tensor in weights.items() if not name.startswith("neck")}
    missing, unknown = theirs.load_state_dict(same, strict=False)
    assert not unknown
    assert all("num_batches" in name or "head" in name or "attention_bias_idxs" in name for name in missing)
    pixels = torch.randn(2, 3, 80, 80)
    with torch.no_grad():
        found, wanted = ours(pixels), theirs.forward_features(pixels)
    assert found.shape == (2, 32, 5, 5)
    assert wanted.std() > 0.05
    assert_close(found, wanted, terms=TINY_NETWORK)


def test_masks_equal_those_of_the_stock_predictor(sam):
    images = [make_image(60, 100, seed=1), make_image(97, 41, seed=2)]
    assert_equals_stock(
        sam, images, [(n % 2, points(images[n % 2], count, seed=n)) for n, count in enumerate((1, 5, 2))]
    )


@pytest.mark.parametrize("shape", [SMALL, PUBLISHED])
def test_the_architecture_is_read_from_the_weights(shape):
    with torch.device("meta"):
        found = MobileSamShape.of(build_sam(shape).state_dict())
    assert found == replace(
        shape, image_size=1024, encoder=replace(shape.encoder, image_size=1024)
    )  # no tensor tells it


def test_tensors_have_the_published_names_and_sizes():
    with torch.device("meta"):
        weights = build_sam(PUBLISHED).state_dict()
    own = {name: list(tensor.shape) for name, tensor in weights.items() if name.startswith("image_encoder.")}
    some = {
        "patch_embed.seq.0.c.weight": [32, 3, 3, 3],
        "patch_embed.seq.2.bn.running_mean": [64],
        "layers.0.blocks.1.conv2.c.weight": [256, 1, 3, 3],
        "layers.0.downsample.conv1.c.weight": [128, 64, 1, 1],
        "layers.1.blocks.0.attn.attention_biases": [4, 49],
        "layers.2.blocks.5.attn.qkv.weight": [480, 160],
        "layers.2.blocks.5.attn.attention_biases": [5, 196],
        "layers.2.downsample.conv3.bn.weight": [320],
        "layers.3.blocks.1.local_conv.c.weight": [320, 1, 3, 3],
        "layers.3.blocks.1.mlp.fc2.bias": [320],
        "layers.3.blocks.1.attn.norm.weight": [320],
        "neck.2.weight": [256, 256, 3, 3],
        "neck.3.bias": [256],
    }
    assert some.items() <= {name.removeprefix("image_encoder."): size for name, size in own.items()}.items()
    learnt = sum(tensor.numel() for name, tensor in weights.items() if "running" not in name and "pe_layer" not in name)
    assert round(learnt / 1e6, 1) == 9.8  # 10.1 million with the classifier that is not used


def test_a_published_file_segments_an_image(published, caplog):
    with caplog.at_level(logging.INFO):
        models = Text2Seg.load("demo", sam=str(published), device="cpu", precision="fp32")
    assert "MobileSAM with stages of width 64, 128, 160, 320 on cpu in fp32" in caplog.text
    scenes = Path(registry.__file__).parents[1] / "demo" / "scenes"
    session = models.open(sorted(scenes.rglob("*.jpg"))[0])
    name = models.closed_vocabulary.names[0]
    session.segment([name])
    segment = session.segment_points(name, points(session.image, 2))
    assert session.embedding.features.shape == (256, 64, 64)
    assert segment.mask.shape == session.image.hw
    assert len(segment.candidates) == 3


def test_half_precision_keeps_norms_in_float32_and_is_close(sam):
    image = make_image(60, 100)
    half = MobileSam(load_sam(SMALL, random_weights(SMALL)), CPU, replace(sam.precision, dtype=torch.bfloat16))
    coarse, exact = half.embed([image])[0].features, sam.embed([image])[0].features
    assert 0 < (coarse - exact).abs().max() / exact.abs().max() < 0.1
    kept = {name: tensor.dtype for name, tensor in half.module.image_encoder.state_dict().items()}
    assert kept["layers.1.blocks.0.attn.qkv.weight"] == torch.bfloat16
    assert kept["layers.1.blocks.0.attn.norm.weight"] == kept["patch_embed.seq.0.bn.running_var"] == torch.float32
    lower(half.module.image_encoder, torch.float32)


def test_a_file_without_a_tensor_is_refused_and_the_tensor_named(published, tmp_path):
    weights = load_sam_weights(published, formats=MobileSam.formats)
    del weights["image_encoder.layers.3.blocks.1.local_conv.bn.running_mean"]
    torch.save(weights, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match=r"1 missing, as 'image_encoder\.layers\.3\.blocks\.1\.local_conv\.bn"):
        open_sam(tmp_path / "cut.pt", device=CPU)
    del weights["image_encoder.neck.0.weight"]
    torch.save(weights, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match=r"it has no tensor 'image_encoder\.neck\.0\.weight'"):
        open_sam(tmp_path / "cut.pt", device=CPU)


def test_mobile_sam_is_in_the_registry():
    known = registry.find("mobile_sam", "sam")
    assert known.url.endswith("ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt")
    assert known.sha256 is None
    assert np.isclose(known.size / 1e6, 40, atol=2)
