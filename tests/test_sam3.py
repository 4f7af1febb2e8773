"""SAM 3 in place of the pipeline: masks equal those of transformers, and the COCO file can be evaluated."""

from __future__ import annotations

import json
import logging
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import DEMO_NETWORK, TINY_NETWORK, about, assert_close
from sam_builders import make_image
from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model

from text2seg import demo
from text2seg.cli import main
from text2seg.cli.label import Label
from text2seg.config import PresenceSettings, Settings, TileSettings
from text2seg.errors import CheckpointError, SettingsError
from text2seg.evaluation.evaluate import as_json, evaluate_files
from text2seg.sam.sam3 import Sam3
from text2seg.sam3_pipeline import Sam3Pipeline

SCENES = Path(demo.__file__).parent / "scenes" / "new-scenes" / "images"
CPU = torch.device("cpu")
SIDE = 112
ANYTHING = Settings(presence=PresenceSettings(0.05))


def small_config() -> Sam3Config:
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = {
        **small,
        "model_type": "sam3_vit_model",
        "num_hidden_layers": 2,
        "image_size": SIDE,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": 56,
    }
    text = {**small, "model_type": "clip_text_model", "vocab_size": 300, "projection_dim": 16, "num_hidden_layers": 1}
    return Sam3Config(
        vision_config={
            "model_type": "sam3_vision_model",
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "backbone_config": backbone,
        },
        text_config={**text, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 1, "num_queries": 5},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as transformers writes it, with random weights that say something."""
    path = tmp_path_factory.mktemp("sam3")
    torch.manual_seed(0)
    model = Sam3Model(small_config())
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(path)
    letters = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sam3(folder):
    return Sam3.open(folder, device=CPU, precision="fp32")


def test_masks_for_a_query_equal_those_of_transformers(folder, sam3):
    image, text = make_image(60, 100, seed=1), "red car"
    model, tokenizer = Sam3Model.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    processor = Sam3ImageProcessor(size={"height": SIDE, "width": SIDE})
    inputs = processor(images=image.pixels.copy(), return_tensors="pt")
    tokens = tokenizer(text, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        wanted = model(
            pixel_values=inputs["pixel_values"],
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        )
    other, found = sam3.find(image, ["dog", text])
    assert wanted.pred_masks.std() > 0.01
    assert_close(found.logits, wanted.pred_masks[0], terms=DEMO_NETWORK)
    assert_close(found.everywhere, wanted.semantic_seg[0, 0], terms=DEMO_NETWORK)
    assert np.abs(other.logits - found.logits).max() > 1e-4, "words make no difference"
    (instances,) = processor.post_process_instance_segmentation(wanted, threshold=0.0, target_sizes=[(60, 100)])
    assert_close(found.scores, instances["scores"], terms=DEMO_NETWORK, scale=1)
    for logits, mask in zip(found.logits, instances["masks"].numpy(), strict=True):
        assert np.mean(sam3.mask(logits, (60, 100)) != mask) < 0.01


def test_segments_have_a_sufficient_score_and_no_duplicates(sam3):
    image = make_image(60, 100, seed=1)
    models = Sam3Pipeline(sam3, settings=ANYTHING)
    result = models.open(image)
    (found,) = sam3.find(image, ["car"])
    segmentation = models.segment_sessions([result], "car, dog")[0]
    assert segmentation.maps.queries == ("car", "dog")
    assert segmentation.maps.presence[0] == about(found.presence, terms=TINY_NETWORK)
    own = segmentation.of("car")
    assert own
    assert len(own) <= (found.scores >= 0.05).sum()
    best = own[0]
    assert best.sam_score == max(s.sam_score for s in own)
    assert best.mask.shape == (60, 100)
    assert not len(best.points)
    assert not models.segment(image, "car", Settings(presence=PresenceSettings(1.0))).segments


def test_a_folder_is_labelled_and_evaluated(folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(SCENES.glob("*.jpg"))[:2]:
        shutil.copy(path, images)
    output = tmp_path / "sam3.json"
    command = ["label", str(images), "--queries", "bell, horse", "--sam3", str(folder), "--output", str(output)]
    assert main([*command, "--device", "cpu", "--presence", "0.05"]) == 0
    content = json.loads(output.read_text())
    assert len(content["images"]) == 2
    assert content["annotations"]
    assert "sam3" in json.dumps(content["info"])
    other = tmp_path / "pipeline.json"
    assert main(["label", str(images), "--queries", "bell, horse", "--output", str(other), "--device", "cpu"]) == 0
    content = json.loads((SCENES.parent / "dataset.json").read_text())
    content["images"] = [{**each, "file_name": Path(each["file_name"]).name} for each in content["images"][:2]]
    kept = {each["id"] for each in content["images"]}
    wanted = {each["id"] for each in content["categories"] if each["name"] in ("bell", "horse")}
    content["annotations"] = [
        each for each in content["annotations"] if each["image_id"] in kept and each["category_id"] in wanted
    ]
    content["categories"] = [each for each in content["categories"] if each["id"] in wanted]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    ours, theirs = (
        as_json(evaluate_files(tmp_path / "truth.json", path, match="file-name")) for path in (other, output)
    )
    assert ours["instances"]["ap"] > 0.3 > theirs["instances"]["ap"], "weights at random know no bells"
    with pytest.raises(SettingsError, match="cannot be combined with"):
        Label(images, queries="car", sam3=folder, dry_run=True).run()


def test_a_folder_without_a_sam_3_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json.*facebook/sam3"):
        Sam3.open(tmp_path, device=CPU)
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="does not hold a SAM 3"):
        Sam3.open(tmp_path / "damaged", device=CPU)


def test_code_in_the_folder_is_not_run(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "evil")
    ran = tmp_path / "ran"
    (tmp_path / "evil" / "tokens.py").write_text(f"open({str(ran)!r}, 'w')\nclass Tokens: ...\n")
    about = tmp_path / "evil" / "tokenizer_config.json"
    changed = {"auto_map": {"AutoTokenizer": ["tokens.Tokens", None]}, "tokenizer_class": "Tokens"}
    about.write_text(json.dumps(json.loads(about.read_text()) | changed))
    try:
        Sam3.open(tmp_path / "evil", device=CPU)
    except CheckpointError as error:
        assert "does not hold a SAM 3" in str(error)  # noqa: PT017
    assert not ran.exists()


def test_weights_without_a_tensor_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "mask_decoder" in name)]
    save_file(weights, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing_keys, as .*mask_decoder"):
        Sam3.open(tmp_path / "cut", device=CPU)


def test_long_queries_are_truncated_with_a_warning_and_tiles_are_refused(sam3, caplog):
    with caplog.at_level(logging.WARNING):
        sam3.find(make_image(60, 100), ["a very long description"])
    assert "the end of this query is cut off: a very long description" in caplog.text
    with pytest.raises(SettingsError, match="whole images"):
        Sam3Pipeline(sam3, settings=Settings(tiles=TileSettings(tile=512))).check("car")
