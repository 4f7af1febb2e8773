"""SAM 2 through the interface of SAM equals the model and processor of transformers for single images and sets."""

from __future__ import annotations

import builtins
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, assert_close
from safetensors.torch import save_file
from sam2_builders import as_meta_wrote_it, random_weights, small_config, stock_model
from sam_builders import make_image, points
from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

from text2seg.errors import CheckpointError, SettingsError
from text2seg.loading import open_sam
from text2seg.sam.base import MASK_PROMPT_SCALE
from text2seg.sam.sam2 import PUBLISHED, Sam2, config_of, to_transformers
from text2seg.weights import registry

CPU = torch.device("cpu")
SIDE = 128


@pytest.fixture(scope="module")
def weights():
    return random_weights(small_config())


@pytest.fixture(scope="module")
def sam(weights):
    config = json.loads(small_config().to_json_string())
    return Sam2.from_weights(weights, device=CPU, precision="fp32", config=config)


@pytest.fixture(scope="module")
def stock(weights):
    size = {"height": SIDE, "width": SIDE}
    return stock_model(small_config(), weights), Sam2Processor(Sam2ImageProcessor(size=size), target_size=SIDE)


@torch.no_grad()
def answer_of_stock(stock, image, prompts):
    """Logits, scores and full-size masks of transformers for one set on one image."""
    model, processor = stock
    boxed = len(prompts.boxes_xyxy) > 0
    inputs = processor(
        images=image.pixels.copy(),
        input_points=[[prompts.xy.tolist()]] if len(prompts) else None,
        input_labels=[[prompts.labels.tolist()]] if len(prompts) else None,
        input_boxes=[prompts.boxes_xyxy.tolist()] if boxed else None,
        return_tensors="pt",
    )
    sizes = inputs.pop("original_sizes")
    if len(prompts.masks):
        low = torch.from_numpy(prompts.masks.copy())[None]
        inputs["input_masks"] = MASK_PROMPT_SCALE * torch.nn.functional.interpolate(low, (32, 32), mode="bilinear")
    found = model(**inputs, multimask_output=not boxed)
    full = processor.post_process_masks(found.pred_masks, sizes)[0][0]
    return found.pred_masks[0, 0].numpy(), found.iou_scores[0, 0].numpy(), full.numpy()


def assert_equals_stock(sam, stock, images, sets):
    embeddings = sam.embed(images)
    found = sam.decode([(embeddings[place], prompts) for place, prompts in sets])
    for (place, prompts), candidates in zip(sets, found, strict=True):
        logits, scores, full = answer_of_stock(stock, images[place], prompts)
        assert logits.std() > 0.05, "the weights say nothing, so agreement would say nothing either"
        assert_close(candidates.logits, logits, terms=TINY_NETWORK)
        assert_close(candidates.scores, scores, terms=TINY_NETWORK, scale=1)
        for index, wanted in enumerate(full):
            assert np.mean(sam.mask(embeddings[place], candidates, index) != wanted) < 0.01


def test_sets_of_different_sizes_in_one_call_equal_single_sets(sam, stock):
    images = [make_image(60, 100, seed=1), make_image(141, 77, seed=2)]
    sets = [(n % 2, points(images[n % 2], count, seed=n)) for n, count in enumerate((1, 4, 2, 1, 7, 4))]
    assert_equals_stock(sam, stock, images, sets)


def test_predicted_iou_is_that_of_stock_for_points_and_boxes_with_and_without_candidates(sam, stock):
    image = make_image(60, 100, seed=1)
    (embedding,) = sam.embed([image])
    plain = points(image, 3)
    boxed = replace(plain, boxes_xyxy=np.array([[10, 5, 70, 50]], np.float32))
    assert_close(
        np.array(sam.predicted_iou(embedding, plain, single=False)),
        answer_of_stock(stock, image, plain)[1],
        terms=TINY_NETWORK,
        scale=1,
    )
    assert_close(
        np.array(sam.predicted_iou(embedding, boxed, single=True)),
        answer_of_stock(stock, image, boxed)[1],
        terms=TINY_NETWORK,
        scale=1,
    )
    alone = replace(boxed, xy=boxed.xy[:0], labels=boxed.labels[:0], similarity=boxed.similarity[:0])
    assert len(sam.predicted_iou(embedding, alone, single=False)) == 3


def test_a_box_gives_one_candidate_and_a_rough_mask_changes_the_result(sam, stock):
    image = make_image(60, 100, seed=1)
    plain = points(image, 3)
    boxed = replace(plain, boxes_xyxy=np.array([[10, 5, 70, 50]], np.float32))
    rough = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    masked = replace(plain, masks=rough)
    alone = replace(boxed, xy=boxed.xy[:0], labels=boxed.labels[:0], similarity=boxed.similarity[:0])
    assert_equals_stock(sam, stock, [image], [(0, boxed), (0, plain), (0, alone)])
    embedding = sam.embed([image])[0]
    one, three, other = sam.decode([(embedding, prompts) for prompts in (boxed, plain, masked)])
    assert (len(one), len(three), len(other)) == (1, 3, 3)
    assert np.abs(three.logits - other.logits).max() > 1e-3
    full = replace(plain, masks=np.ones((1, 32, 32), np.float32))  # of the prompt's own size: no resizing to differ in
    assert_equals_stock(sam, stock, [image], [(0, full)])


def test_the_padding_of_transformers_would_change_masks(stock):
    """This is the reason why only sets of equal size share a call."""
    model, _ = stock
    pixels = torch.rand(1, 3, SIDE, SIDE)
    xy, labels = torch.tensor([[[[30.0, 40.0], [0, 0]]]]), torch.tensor([[[1, -10]]])
    with torch.no_grad():
        alone = model(pixels, input_points=xy[:, :, :1], input_labels=labels[:, :, :1])
        filled = model(pixels, input_points=xy, input_labels=labels)
    assert (alone.pred_masks - filled.pred_masks).abs().max() > 1e-3


def test_results_are_in_the_order_of_the_sets_for_every_call_size(sam):
    image = make_image(60, 100)
    (embedding,) = sam.embed([image])
    sets = [(embedding, points(image, count, seed=count)) for count in (3, 1, 2, 1, 3)]
    few = Sam2(sam.module, CPU, sets_per_call=1)
    for one, other in zip(sam.decode(sets), few.decode(sets), strict=True):
        assert_close(one.logits, other.logits, terms=TINY_NETWORK)
    with pytest.raises(ValueError, match="set 0 has no points and no box"):
        sam.decode([(embedding, points(image, 0))])


def test_the_image_is_stretched_over_the_whole_input(sam):
    embedding = sam.embed([make_image(30, 100)])[0]
    assert embedding.input_hw == (SIDE, SIDE)
    assert sam.filled(embedding, 32) == (32, 32)
    assert [tuple(tensor.shape) for tensor in embedding.tensors] == [(32, 8, 8), (4, 32, 32), (8, 16, 16)]


def test_bf16_affects_only_the_encoder(weights, sam):
    config = json.loads(small_config().to_json_string())
    half = Sam2.from_weights(weights, device=CPU, precision="bf16", config=config)
    image = make_image(60, 100)
    coarse, exact = half.embed([image])[0], sam.embed([image])[0]
    assert all(tensor.dtype == torch.float32 for tensor in coarse.tensors)
    difference = (coarse.features - exact.features).abs().max() / exact.features.abs().max()
    assert 0 < difference < 0.1
    assert all(p.dtype == torch.float32 for p in half.module.mask_decoder.parameters())


def test_tensors_with_the_names_of_meta_are_read(tmp_path, weights, sam):
    found = to_transformers(as_meta_wrote_it(weights))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    torch.save({"model": as_meta_wrote_it(weights)}, tmp_path / "sam2.pt")
    with pytest.raises(CheckpointError, match=r"no published SAM 2 has this shape \(width 8, blocks 1, 2, 2, 1\)"):
        open_sam(tmp_path / "sam2.pt", device=CPU)


def test_a_folder_of_transformers_is_opened_by_its_config(tmp_path, weights, sam, caplog):
    config = json.loads(small_config().to_json_string()) | {"model_type": "sam2_video"}  # as the published ones have it
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(
        {n: t.clone() for n, t in weights.items()} | {"memory_encoder.x": torch.ones(1)}, tmp_path / "model.safetensors"
    )
    checkpoint = registry.find(str(tmp_path), "sam")
    with caplog.at_level(logging.INFO):
        opened = open_sam(Path(checkpoint.file_name), device=CPU, precision="fp32")
    assert "SAM 2 with 6 blocks on cpu in fp32" in caplog.text
    image = make_image(50, 70)
    assert torch.equal(opened.embed([image])[0].features, sam.embed([image])[0].features)


@pytest.mark.parametrize("content", ["{", "[]", '{"vision_config": 3}'])
def test_an_invalid_config_is_refused(tmp_path, weights, content):
    (tmp_path / "config.json").write_text(content)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_sam(tmp_path / "model.safetensors", device=CPU)


def test_tensors_that_do_not_fit_are_named(weights):
    config = json.loads(small_config().to_json_string())
    short = {name: tensor for name, tensor in weights.items() if not name.startswith("mask_decoder.conv_s0")}
    with pytest.raises(CheckpointError, match=r"not the tensors of a SAM 2: 2 missing, as 'mask_decoder\.conv_s0"):
        Sam2.from_weights(short, device=CPU, config=config)
    with pytest.raises(SettingsError, match="uncompiled only"):
        Sam2.from_weights(weights, device=CPU, config=config, compile_encoder=True)


def test_a_config_with_too_many_patches_in_global_attention_is_refused(weights):
    backbone = small_config().to_dict()["vision_config"]["backbone_config"] | {"image_size": [1024, 1024]}
    config = {"vision_config": {"backbone_config": backbone | {"global_attention_blocks": [0]}}}
    with pytest.raises(CheckpointError, match="stage 1 of its architecture has 256 x 256 patches"):
        Sam2.from_weights(weights, device=CPU, config=config)


@pytest.mark.parametrize(("width", "depths"), PUBLISHED)
def test_published_shapes_are_known_without_a_config(width, depths):
    heads, windows, everywhere = PUBLISHED[width, depths]
    widths = [width * 2**stage for stage in range(4)]
    background = [14, 14] if width == 112 else [7, 7]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": width,
        "num_attention_heads": heads,
        "blocks_per_stage": list(depths),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
        "window_size_per_stage": list(windows),
        "window_positional_embedding_background_size": background,
        "global_attention_blocks": list(everywhere),
    }
    vision = {"model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": widths[::-1]}
    wanted = Sam2Config(vision_config=vision)
    with torch.device("meta"):
        tensors = Sam2Model(wanted).state_dict()
    assert config_of(tensors).to_dict() == wanted.to_dict()


def test_hiera_tiny_in_full_size():
    sam = Sam2.from_weights(random_weights(Sam2Config()), device=CPU, precision="fp32")
    image = make_image(60, 100)
    (embedding,) = sam.embed([image])
    assert [tuple(t.shape) for t in embedding.tensors] == [(256, 64, 64), (32, 256, 256), (64, 128, 128)]
    (candidates,) = sam.decode([(embedding, points(image, 2))])
    assert candidates.logits.shape == (3, 256, 256)
    assert sam.mask(embedding, candidates, 0).shape == (60, 100)


def test_without_transformers_the_error_says_what_to_install(weights, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r'pip install "text2seg\[sam2\]"'):
        Sam2.from_weights(weights, device=CPU)


def test_names_of_the_hub_refer_to_the_same_files():
    known = registry.find("sam2.1_hiera_base_plus", "sam")
    assert registry.find("facebook/sam2.1-hiera-base-plus", "sam") == known
    assert known.url.endswith("/092824/sam2.1_hiera_base_plus.pt")
    with pytest.raises(CheckpointError, match=r"no SAM checkpoint 'facebook/sam2.1-hiera-huge'"):
        registry.find("facebook/sam2.1-hiera-huge", "sam")


def test_the_pipeline_segments_with_sam_2(tmp_path, weights):
    from text2seg import Text2Seg
    from text2seg.demo import __file__ as demo

    (tmp_path / "config.json").write_text(small_config().to_json_string())
    save_file({name: tensor.clone() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    models = Text2Seg.load("demo", sam=str(tmp_path), device="cpu", precision="fp32")
    scene = sorted((Path(demo).parent / "scenes").rglob("*.jpg"))[0]
    name = models.closed_vocabulary.names[0]
    session = models.open(scene)
    session.segment([name])
    segment = session.segment_points(name, points(session.image, 3))
    assert segment.mask.shape == session.image.hw
    assert models.provenance()["sam"]["name"] == str(tmp_path)
    np.testing.assert_array_equal(session.candidate_mask(segment, segment.chosen), segment.mask)
