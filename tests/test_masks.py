"""Masks of SAM equal those of the stock predictor, for any number of images and point sets at once."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import sam_builders as build
import torch
from closeness import DEMO_NETWORK, TINY_NETWORK, assert_close
from segment_anything import SamPredictor, sam_model_registry
from torch import nn

import text2seg
from text2seg.errors import CheckpointError, ImageError, SettingsError
from text2seg.runtime import FULL, choose_precision
from text2seg.sam.decoder import MANY
from text2seg.sam.sam import Sam, SamShape, build_sam, load_sam

CPU = torch.device("cpu")
IMAGES = [build.make_image(24, 32, seed=1), build.make_image(97, 41, seed=2), build.make_image(60, 80, seed=3)]
# (image, number of points): out of order, several sets on one image, some of one size
SETS = [(2, 1), (0, 7), (1, 3), (0, 1), (2, 4), (2, 3)]


@pytest.fixture(scope="module")
def sam():
    return Sam(build.sam_module(), CPU)


def prompts_of(sets=SETS):
    return [build.points(IMAGES[place], count, seed=seed) for seed, (place, count) in enumerate(sets)]


def all_candidates(sam):
    embeddings = sam.embed(IMAGES)
    pairs = [(embeddings[place], points) for (place, _), points in zip(SETS, prompts_of(), strict=True)]
    return pairs, sam.decode(pairs)


@pytest.mark.parametrize("sets", [SETS, [(2, 40), (0, 2), (1, MANY)]], ids=["few points", "many points"])
def test_equals_the_stock_predictor_one_image_and_one_set_at_a_time(sam, sets):
    build.assert_equals_stock(sam, IMAGES, list(zip([place for place, _ in sets], prompts_of(sets), strict=True)))


def test_embeddings_and_candidates_have_the_documented_shapes(sam):
    pairs, found = all_candidates(sam)
    for (embedding, _), candidates in zip(pairs, found, strict=True):
        assert embedding.features.shape == (build.TINY.embedding, 5, 5)
        assert embedding.features.dtype == torch.float32
        assert candidates.logits.shape == (3, 20, 20)
        assert candidates.scores.shape == (3,)
    embedding = pairs[2][0]
    assert (embedding.image_hw, embedding.input_hw) == ((97, 41), (80, 34))
    mask = sam.mask(embedding, found[2], 1)
    assert (mask.shape, mask.dtype) == ((97, 41), np.bool_)


def test_results_do_not_depend_on_the_order_and_number_of_sets(sam):
    pairs, found = all_candidates(sam)
    backwards = sam.decode(pairs[::-1])[::-1]
    alone = [sam.decode([pair])[0] for pair in pairs]
    for one, other, third in zip(found, backwards, alone, strict=True):
        assert_close(other.logits, one.logits, terms=TINY_NETWORK)
        assert_close(third.logits, one.logits, terms=TINY_NETWORK)


def test_sets_in_another_order_than_images_with_and_without_rough_masks(sam):
    """Sets share computations by their image, not by their position in the batch."""
    embeddings = sam.embed(IMAGES)
    order = [2, 0, 1]
    plain = [build.points(IMAGES[place], 3, seed=place) for place in order]
    rough = np.random.default_rng(0).random((1, 6, 8)).astype(np.float32)
    for prompts in (plain, [replace(points, masks=rough) for points in plain]):
        pairs = [(embeddings[place], points) for place, points in zip(order, prompts, strict=True)]
        for pair, together in zip(pairs, sam.decode(pairs), strict=True):
            assert_close(sam.decode([pair])[0].logits, together.logits, terms=TINY_NETWORK)
    build.assert_equals_stock(sam, IMAGES, list(zip(order, plain, strict=True)))


def test_many_sets_are_decoded_in_parts(sam):
    pairs, found = all_candidates(sam)
    in_parts = Sam(build.sam_module(), CPU, sets_per_call=4).decode(pairs)
    for one, other in zip(found, in_parts, strict=True):
        assert_close(other.logits, one.logits, terms=TINY_NETWORK)
    with pytest.raises(ValueError, match="sets_per_call must be 1 or more"):
        Sam(build.sam_module(), CPU, sets_per_call=0)


def test_padding_with_label_minus_one_would_change_masks_and_is_not_used(sam):
    image, short = IMAGES[0], build.points(IMAGES[0], 2)
    stock = SamPredictor(sam.module)
    stock.set_image(image.pixels)
    points, labels = short.xy.copy(), short.labels.copy()
    *_, alone = stock.predict(points, labels)
    *_, padded = stock.predict(np.pad(points, ((0, 3), (0, 0))), np.pad(labels, (0, 3), constant_values=-1))
    assert np.abs(padded - alone).max() > 1e-2
    (embedding,) = sam.embed([image])
    ours, _ = sam.decode([(embedding, short), (embedding, build.points(image, 5))])
    assert_close(ours.logits, alone, terms=TINY_NETWORK)


def test_a_decoder_of_official_size_equals_the_stock_predictor():
    sam = Sam(build.sam_module(build.FULL_SIZE_DECODER), CPU)
    image = build.make_image(30, 44)
    build.assert_equals_stock(
        sam, [image], [(0, build.points(image, 5)), (0, build.points(image, 2))], terms=DEMO_NETWORK
    )


def test_empty_input_gives_empty_output(sam):
    assert sam.embed([]) == []
    assert sam.decode([]) == []


def test_bad_input_is_named(sam):
    embeddings = sam.embed(IMAGES[:1])
    with pytest.raises(ValueError, match="set 1 has no points and no box"):
        sam.decode([(embeddings[0], build.points(IMAGES[0], count)) for count in (1, 0)])
    (candidates,) = sam.decode([(embeddings[0], build.points(IMAGES[0], 1))])
    for index in (-1, 3):
        with pytest.raises(ValueError, match="one of 3 candidates"):
            sam.mask(embeddings[0], candidates, index)
    with pytest.raises(ImageError, match=r"0\.png is too thin for SAM: 900×1 pixels"):
        sam.embed([build.make_image(1, 900)])


def test_features_that_are_not_finite_raise():
    weights = build.random_weights()
    weights["image_encoder.neck.0.weight"][0] = torch.nan
    with pytest.raises(CheckpointError, match="not finite in fp32"):
        Sam.from_weights(weights, device=CPU, precision="fp32").embed(IMAGES[:1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_do_not_change_masks(precision):
    sam = Sam(build.sam_module(), CPU, choose_precision(CPU, precision))
    points = prompts_of([(place, 3) for place in range(3)])

    def work(place):
        (embedding,) = sam.embed([IMAGES[place]])
        (candidates,) = sam.decode([(embedding, points[place])])
        return candidates.logits, sam.mask(embedding, candidates, 0)

    alone = [work(place) for place in range(3)]
    jobs = [0, 1, 2] * 8
    with ThreadPoolExecutor(2) as pool:
        for place, (logits, mask) in zip(jobs, pool.map(work, jobs), strict=True):
            np.testing.assert_allclose(logits, alone[place][0], atol=1e-6)
            np.testing.assert_array_equal(mask, alone[place][1])


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_is_close_and_gives_the_same_dtypes(sam, name):
    half = Sam(build.sam_module(), CPU, choose_precision(CPU, name))
    pairs, exact = all_candidates(sam)
    half_pairs, near = all_candidates(half)
    for (embedding, _), (half_embedding, _), one, other in zip(pairs, half_pairs, exact, near, strict=True):
        assert half_embedding.features.dtype == torch.float32
        assert not torch.equal(half_embedding.features, embedding.features)
        np.testing.assert_allclose(other.scores, one.scores, atol=0.02)
        assert np.abs(other.logits - one.logits).mean() < 0.02 * one.logits.std()
        for index in range(3):
            mask, half_mask = sam.mask(embedding, one, index), half.mask(half_embedding, other, index)
            assert (mask & half_mask).sum() > 0.95 * (mask | half_mask).sum()


def test_norms_compute_in_float32_in_every_precision():
    sam = Sam(build.sam_module(), CPU, choose_precision(CPU, "bf16"))
    norms, products = {}, {}
    for name, layer in sam.module.named_modules():
        if "LayerNorm" in type(layer).__name__:
            layer.register_forward_hook(lambda _, taken, given, name=name: norms.update({name: taken[0].dtype}))
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(lambda _, taken, given, name=name: products.update({name: given.dtype}))
    all_candidates(sam)
    assert set(norms.values()) == {torch.float32}
    assert {"image_encoder.neck.1", "image_encoder.neck.3", "mask_decoder.transformer.norm_final_attn"} < norms.keys()
    encoder = {dtype for name, dtype in products.items() if name.startswith("image_encoder")}
    decoder = {dtype for name, dtype in products.items() if name.startswith("mask_decoder")}
    assert (encoder, decoder) == ({torch.bfloat16}, {torch.float32})


def test_an_autocast_of_the_caller_changes_nothing(sam):
    _, found = all_candidates(sam)
    with torch.autocast("cpu", torch.bfloat16):
        _, inside = all_candidates(sam)
    for one, other in zip(found, inside, strict=True):
        np.testing.assert_array_equal(other.logits, one.logits)


def test_from_weights_reads_half_precision_and_logs_device_and_precision(caplog):
    weights = build.random_weights()
    halved = {name: tensor.half() for name, tensor in weights.items()}
    with caplog.at_level(logging.INFO):
        sam = Sam.from_weights(halved, device=CPU, precision="fp32")
    assert "SAM with 3 blocks of width 48 on cpu in fp32: requested" in caplog.messages
    for name, tensor in sam.module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, halved[name].float())
    assert sam.precision.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in sam.module.parameters())
    assert not sam.module.training


def test_from_weights_does_not_change_the_random_state():
    before = torch.get_rng_state()
    Sam.from_weights(build.random_weights(), device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"visual.conv1.weight": torch.zeros(8, 3, 16, 16)}, "no tensor 'image_encoder.patch_embed.proj.weight'"),
        ({"model": {"image_encoder": None}}, "not a SAM checkpoint"),
        ({"image_encoder.patch_embed.proj.weight": torch.zeros(3)}, "other shapes than a SAM's"),
    ],
)
def test_weights_of_another_kind_are_refused(fault, message):
    with pytest.raises(CheckpointError, match=message):
        Sam.from_weights(fault, device=CPU)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mask_decoder.iou_token.weight", None, "1 missing, as 'mask_decoder.iou_token.weight'"),
        ("mask_decoder.hq.weight", torch.zeros(1), "1 unknown, as 'mask_decoder.hq.weight'"),
        ("prompt_encoder.no_mask_embed.weight", torch.zeros(1, 7), "1 unfit, as 'prompt_encoder.no_mask_embed"),
        ("image_encoder.neck.1.bias", torch.zeros(32, dtype=torch.int8), "1 unfit, as 'image_encoder.neck.1.bias'"),
        ("image_encoder.blocks.0.attn.rel_pos_h", torch.zeros(5, 7), "no SAM has the architecture|unfit"),
    ],
)
def test_weights_with_one_wrong_tensor_are_refused(name, tensor, message):
    weights = build.random_weights()
    weights.pop(name, None)
    if tensor is not None:
        weights[name] = tensor
    with pytest.raises(CheckpointError, match=message):
        Sam.from_weights(weights, device=CPU)


OFFICIAL = {
    "vit_b": {"width": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "vit_l": {"width": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23)},
    "vit_h": {"width": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)},
}
ALL_OFFICIAL = {
    "window": 14,
    "image_size": 1024,
    "patch": 16,
    "embedding": 256,
    "mask_in_channels": 16,
    "decoder_depth": 2,
    "decoder_mlp": 2048,
    "candidates": 3,
    "iou_depth": 3,
    "iou_width": 256,
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_architecture_is_read_from_its_weights(name):
    with torch.device("meta"):
        weights = sam_model_registry[name]().state_dict()
        shape = SamShape.of(weights)
        assert asdict(shape) == OFFICIAL[name] | ALL_OFFICIAL
        build_sam(shape).load_state_dict(weights, strict=True, assign=True)
    assert shape.fp16_safe == (name != "vit_h")


def test_fp16_is_replaced_for_the_largest_encoder(monkeypatch, caplog):
    monkeypatch.setattr(SamShape, "fp16_safe", False)
    sam = Sam.from_weights(build.random_weights(), device=CPU, precision="fp16")
    assert sam.precision.name in ("bf16", "fp32")
    assert "overflows in fp16" in caplog.text


def test_an_unknown_precision_is_refused():
    with pytest.raises(SettingsError, match="precision must be one of"):
        Sam.from_weights(build.random_weights(), device=CPU, precision="int8")


def test_load_sam_shares_float32_tensors_and_does_not_change_them():
    weights = build.random_weights()
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    sam = Sam(load_sam(SamShape.of(weights), weights), CPU, FULL)
    all_candidates(sam)
    assert all(torch.equal(weights[name], copy) for name, copy in copies.items())


WEIGHTS = Path(text2seg.__file__).parent / "demo" / "sam_demo.pth"


def test_the_demo_sam_equals_the_stock_predictor():
    weights = torch.load(WEIGHTS, weights_only=True, map_location="cpu")
    sam = Sam.from_weights(weights, device=torch.device("cpu"), precision="fp32")
    images = [build.make_image(120, 90, seed=1), build.make_image(61, 200, seed=2)]
    sizes = [(1, 1), (0, 5), (1, 8), (0, 2)]
    sets = [(place, build.points(images[place], count, seed=seed)) for seed, (place, count) in enumerate(sizes)]
    build.assert_equals_stock(sam, images, sets)
