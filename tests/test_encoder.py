"""The image encoder with fused attention equals the stock one, for all windows and both ways to add positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sam_builders as build
import torch
from closeness import TINY_NETWORK, assert_close, rounding

import text2seg
from text2seg.errors import SettingsError
from text2seg.runtime import FULL, autocast, choose_precision
from text2seg.sam import encoder as ours
from text2seg.sam.sam import Sam, SamShape, load_sam

CPU = torch.device("cpu")
DEMO = Path(text2seg.__file__).parent / "demo" / "sam_demo.pth"
SHAPES = {
    "windows that do not divide the grid": build.TINY,
    "windows that divide the grid": replace(build.TINY, image_size=96),
    "one window wider than half the grid": replace(build.TINY, window=4),
    "all blocks global": replace(build.TINY, window=0, global_blocks=(0, 1, 2)),
    "heads of 80 as in ViT-H, more rows than a mask is made for at once": replace(
        build.TINY, width=160, heads=2, image_size=16 * (ours.ROWS_PER_MASK + 3)
    ),
}
# Width, heads, windows and grid of SAM ViT-B, and two of its twelve blocks, one of each kind.
VIT_B = replace(build.FULL_SIZE_DECODER, width=768, depth=2, heads=12, window=14, global_blocks=(1,), image_size=1024)


def pixels(count: int, side: int) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.double().norm())


@torch.no_grad()
def assert_equals_stock(encoder, count: int, *, terms: int = TINY_NETWORK, **options) -> None:
    images = pixels(count, encoder.img_size)
    wanted = encoder(images)
    assert wanted.std() > 0.1, "the weights say nothing, so agreement would say nothing either"
    assert relative_error(ours.encode(encoder, images, **options), wanted) < rounding(terms)


@pytest.mark.parametrize("fusion", ["fold", "mask", None])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_the_stock_encoder(shape, fusion):
    assert_equals_stock(build.sam_module(shape).image_encoder, 2, fusion=fusion)


@pytest.mark.parametrize("fusion", ["fold", "mask"])
def test_equals_the_stock_encoder_on_the_demo_weights(fusion):
    weights = torch.load(DEMO, weights_only=True, map_location="cpu")
    assert_equals_stock(load_sam(SamShape.of(weights), weights).image_encoder, 1, fusion=fusion)


def test_equals_the_stock_encoder_at_the_size_of_sam_vit_b():
    assert_equals_stock(build.sam_module(VIT_B).image_encoder, 1)


def test_positions_matter_to_these_tests():
    weights = build.random_weights()
    without = {name: tensor * ("rel_pos" not in name) for name, tensor in weights.items()}
    images = pixels(1, build.TINY.image_size)
    with torch.no_grad():
        with_positions, plain = (
            ours.encode(load_sam(build.TINY, each).image_encoder, images) for each in (weights, without)
        )
    assert relative_error(plain, with_positions) > 1e-2


@pytest.mark.parametrize("fusion", ["fold", "mask"])
@torch.no_grad()
def test_bf16_error_is_at_most_that_of_the_stock_encoder(fusion):
    encoder, images = build.sam_module().image_encoder, pixels(2, build.TINY.image_size)
    exact = encoder(images)
    with autocast(CPU, choose_precision(CPU, "bf16")):
        stock, found = encoder(images), ours.encode(encoder, images, fusion=fusion)
    assert found.dtype == torch.float32
    assert 0 < relative_error(found, exact) < 1.2 * relative_error(stock, exact)


def test_window_padding_equals_the_projected_zeros_of_the_stock_encoder():
    packed, bias = torch.randn(2, 5, 5, 6), torch.randn(6)
    windows = ours._to_windows(packed, 3, bias)
    assert windows.shape == (8, 3, 3, 6)
    assert torch.equal(windows[0], packed[0, :3, :3])
    assert torch.equal(windows[3, :2, :2], packed[0, 3:, 3:])
    assert torch.equal(windows[3, 2], bias.expand(3, 6))
    assert torch.equal(windows[3, :, 2], bias.expand(3, 6))
    assert torch.equal(ours._from_windows(windows, 3, (5, 5)), packed)


def test_on_a_cpu_windows_use_fold_and_the_whole_grid_uses_mask():
    assert ours.fastest(CPU, 14) == "fold"
    assert ours.fastest(CPU, 64) == "mask"
    assert ours.fastest(torch.device("cuda"), 64) == "fold"


def test_half_precision_converts_matrices_and_keeps_the_given_weights():
    weights = build.random_weights()
    sam = Sam(load_sam(build.TINY, weights), CPU, choose_precision(CPU, "bf16"))
    kept = {name: tensor.dtype for name, tensor in sam.module.image_encoder.state_dict().items()}
    assert kept["blocks.0.attn.qkv.weight"] == kept["neck.2.weight"] == torch.bfloat16
    assert {kept[name] for name in ("pos_embed", "blocks.0.norm1.weight", "neck.1.weight")} == {torch.float32}
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_images_are_padded_as_by_the_stock_predictor():
    sam = Sam(build.sam_module(), CPU)
    images = [build.make_image(24, 32, seed=1), build.make_image(97, 41, seed=2)]
    found, sizes = sam._frame.framed(images, sam.module.pixel_mean, sam.module.pixel_std)
    assert sizes == [(60, 80), (80, 34)]
    for image, framed in zip(images, found, strict=True):
        resized = torch.from_numpy(sam._frame._resized(image)).permute(2, 0, 1)
        assert torch.equal(framed, sam.module.preprocess(resized))


@pytest.fixture
def eager(monkeypatch):
    """`torch.compile` that only remembers the shapes it would compile for."""
    shapes: list[tuple[int, ...]] = []

    def compile_nothing(network, **_):
        def remember(*inputs):
            shapes.append(tuple(inputs[-1].shape))
            return network(*inputs)

        return remember

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return shapes


def test_compiled_encoder_gets_few_batch_sizes_and_gives_equal_results(eager, monkeypatch):
    images = [build.make_image(24, 32, seed=seed) for seed in range(3)]
    plain = Sam(build.sam_module(), CPU).embed(images)
    sam = Sam(build.sam_module(), CPU, compile_encoder=True)
    eager.clear()
    alone = sam.embed(images)
    assert eager == [(1, 3, 80, 80)] * 3
    monkeypatch.setattr(sam, "device", torch.device("cuda"))  # only asked for its kind in what follows
    eager.clear()
    with torch.no_grad():
        filled = sam._encoded(sam._frame.framed(images, sam.module.pixel_mean, sam.module.pixel_std)[0])
    assert eager == [(4, 3, 80, 80)]
    for one, other, third in zip(plain, alone, filled, strict=True):
        assert_close(other.features, one.features, terms=TINY_NETWORK)
        assert_close(third, one.features, terms=TINY_NETWORK)


def test_a_missing_compiler_is_reported_when_models_are_loaded(monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("no g++ was found\nand a long trace")

    monkeypatch.setattr(ours, "_compile", no_compiler)
    with pytest.raises(SettingsError, match=r"cannot compile for cpu here.*no g\+\+ was found; leave --compile out"):
        Sam(build.sam_module(), CPU, compile_encoder=True)


@torch.no_grad()
def test_the_compiled_encoder_equals_the_uncompiled_one():
    shape = replace(build.TINY, depth=2)  # one block with windows, one without: compiling takes long
    encoder, images = build.sam_module(shape).image_encoder, pixels(1, shape.image_size)
    try:
        made = ours.compiled(ours.encode, CPU)
    except SettingsError as error:
        pytest.skip(str(error))
    with autocast(CPU, FULL):
        assert relative_error(made(encoder, images), encoder(images)) < rounding(TINY_NETWORK)
