"""open_clip's models by name: what is there, what fits, where the weights come from, and a run from a file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import openclip_builders as models
import pytest
import torch
from safetensors.torch import save_file
from test_openclip import demo_config

from text2seg import Text2Seg, weights
from text2seg.cli import main
from text2seg.clip.openclip import recipe_of
from text2seg.clip.openclip_build import build_openclip, tokenizer_of
from text2seg.errors import CheckpointError
from text2seg.loading import fetch, find
from text2seg.weights.registry import parse_openclip
from text2seg.weights.tensors import load_clip_weights, load_tensors

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


def test_the_three_kinds_of_names(tmp_path):
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
def test_a_name_that_is_none_is_refused_with_the_way_out(name, message):
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
def test_what_does_not_fit_is_refused_before_a_download(name, why):
    with pytest.raises(CheckpointError, match=rf"does not fit: .*{why}.* What fits: .*ViT-B-16.*SigLIP"):
        find(f"openclip:{name}", "clip")


def test_a_folder_without_its_parts_is_named(tmp_path):
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
def test_a_folder_of_anyones_names_no_file_and_no_code_for_its_tokenizer(tmp_path, kind, arguments):
    config = models.CONFIGS[kind]
    config = {**config, "text_cfg": {**config["text_cfg"], "tokenizer_kwargs": arguments}}
    name = models.write_folder(tmp_path / "model", config, {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"its tokenizer_kwargs (ask for|should be an object)"):
        tokenizer_of(recipe_of(name))


def test_the_tag_says_which_gelu(caplog):
    caplog.set_level(logging.INFO, "text2seg")
    assert recipe_of("openclip:ViT-B-16/openai").config["quick_gelu"]
    assert "QuickGELU" in caplog.text
    assert not recipe_of("openclip:ViT-B-16/laion2b_s34b_b88k").config.get("quick_gelu")


def test_offline_the_error_names_file_and_way_out(offline):
    with pytest.raises(CheckpointError) as caught:
        fetch("openclip:ViT-B-16/laion2b_s34b_b88k", "clip")
    for words in ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "open_clip_model.safetensors", "HF_HUB_OFFLINE"):
        assert words in str(caught.value)
    assert "openclip:ViT-B-16=FILE" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"tokenizer of .*timm/ViT-B-16-SigLIP.* say --clip openclip:FOLDER"):
        tokenizer_of(recipe_of("openclip:ViT-B-16-SigLIP/webli"))


def test_what_the_hubs_cache_has_is_taken_from_there(offline, capsys):
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


def test_text_features_on_disk_tell_models_apart(tmp_path):
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


def test_a_run_from_a_file(demo_file, tmp_path):
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
def test_a_folder_that_wants_its_own_code_to_run_is_refused(tmp_path, asked):
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
def test_a_configuration_of_absurd_sizes_is_refused(tmp_path, part, key):
    configuration = json.loads(json.dumps(models.CONFIGS["laion"]))
    configuration[part][key] = 10**9
    name = models.write_folder(tmp_path / "model", configuration, {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match=f"'{key}' is 1000000000, more than"):
        models.opened(name)
