"""The app with a CLIP of open_clip and a SAM 2: it runs and names the models."""

from __future__ import annotations

import shlex

import gradio as gr
import httpx
import pytest
from app_builders import SCENE, live_app
from openclip_builders import CONFIGS, module, write_folder
from safetensors.torch import save_file
from sam2_builders import random_weights, small_config

from text2seg import Text2Seg
from text2seg.app.model_pool import ModelPool
from text2seg.app.models_panel import ModelsPanel, models_now, name_of
from text2seg.app.segment.export import as_command
from text2seg.app.segment.session import find, open_image
from text2seg.app.settings import AppSettings
from text2seg.config import MapSettings, Settings
from text2seg.io.images import load_image


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    """A folder as `transformers` writes it."""
    folder = tmp_path_factory.mktemp("sam 2")
    (folder / "config.json").write_text(small_config().to_json_string())
    weights = {name: tensor.clone() for name, tensor in random_weights(small_config()).items()}
    save_file(weights, folder / "model.safetensors")
    return str(folder)


@pytest.fixture(scope="module", params=["laion", "siglip"])
def models(request, sam2, tmp_path_factory):
    """Both small and random."""
    made = module(CONFIGS[request.param])
    clip = write_folder(tmp_path_factory.mktemp(request.param), CONFIGS[request.param], made.state_dict())
    settings = Settings(maps=MapSettings(input_size=64))
    return Text2Seg.load(clip=clip, sam=sam2, device="cpu", precision="fp32", settings=settings)


def names(models):
    return tuple(models.provenance()[kind]["name"] for kind in ("clip", "sam"))


def test_a_running_app_answers_and_names_both(models):
    clip, sam = names(models)
    with live_app(models) as url, httpx.Client(base_url=url, timeout=60) as browser:
        assert browser.get("/").status_code == 200
        shown = {part["props"].get("elem_id"): part["props"] for part in browser.get("/config").json()["components"]}
        assert f"CLIP {clip} with SAM {sam}, in use since" in shown["models-now"]["value"]
        assert "Search for anything in words. Presence is not calibrated." in shown["models-now"]["value"]
        assert shown["models"]["label"] == f"Model: {clip} + {sam}"
        assert browser.get("/api/v1/health").json()["models"] == f"CLIP {clip} with SAM {sam}"
        answer = browser.post(
            "/api/v1/segment", files={"image": SCENE.read_bytes()}, data={"queries": "sheep", "settings": "{}"}
        )
        assert answer.status_code == 200, answer.text
        annotations = answer.json()["annotations"]
        assert {each["attributes"]["provenance"]["clip"]["name"] for each in annotations} == {clip}


def test_the_copied_command_names_both(models):
    model_pool = ModelPool(models, AppSettings())
    session = find(open_image(model_pool, load_image(SCENE)), model_pool, ("sheep",), threshold=None, presence=None)
    words = shlex.split(as_command(session))
    clip, sam = names(models)
    assert words[words.index("--clip") + 1] == clip
    assert words[words.index("--sam") + 1] == sam


def test_a_demo_clip_with_another_sam_is_not_called_the_demo_model(sam2):
    models = Text2Seg.load("demo", sam=sam2, device="cpu", precision="fp32")
    line = models_now(models)
    assert f"CLIP demo with SAM {sam2}. It knows 109 drawn things" in line
    assert "the demo model" not in line


def test_graphs_are_named_and_cannot_be_switched(demo, monkeypatch):
    monkeypatch.setattr(demo, "_provenance", demo._provenance | {"runtime": "onnx", "precision": "int8"})
    assert name_of(demo) == "CLIP demo with SAM demo in ONNX Runtime (int8)"
    assert f"{name_of(demo)}. It knows 109 drawn things" in models_now(demo)
    with gr.Blocks(analytics_enabled=False) as page:
        ModelsPanel(ModelPool(demo, AppSettings()))
    shown = {part.elem_id for part in page.blocks.values()}
    assert "models-table" in shown
    assert "models-use" not in shown
    assert any("without --runtime onnx" in str(getattr(part, "value", "")) for part in page.blocks.values())
