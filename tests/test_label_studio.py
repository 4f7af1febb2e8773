"""The backend for Label Studio: brushes, labelling configurations, prompts, and its routes over HTTP."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

from text2seg.coco.polygon import decode as filled
from text2seg.errors import ImageError, SettingsError
from text2seg.integrations.label_studio import Asked, LabelConfig, brush_of, model_version
from text2seg.integrations.label_studio_server import Images, server
from text2seg.integrations.settings import LabelStudioSettings
from text2seg.io.images import load_image

SCENE = Path(__file__).parents[1] / "text2seg/demo/scenes/new-scenes/images/scene_0019.jpg"
BRUSHES = """<View>
  <Image name="image" value="$picture"/>
  <BrushLabels name="brush" toName="image">
    <Label value="sheep"/>
    <Label value="Engine" predicted_values="fire engine"/>
  </BrushLabels>
  <KeyPointLabels name="points" toName="image" smart="true"><Label value="sheep"/></KeyPointLabels>
  <TextArea name="words" toName="image" smart="true"/>
</View>"""
POLYGONS = BRUSHES.replace("BrushLabels", "PolygonLabels")


def mask_of(value: dict, hw: tuple[int, int]) -> np.ndarray:
    """The mask of a brush, as Label Studio's own converter reads it."""
    channels = decode_rle(value["rle"]).reshape(*hw, 4)
    assert (channels == channels[..., :1]).all()
    assert set(np.unique(channels)) <= {0, 255}
    return channels[..., 3] == 255


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_brush_is_read_by_label_studio_as_the_same_mask(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(mask_of({"rle": brush_of(mask)}, mask.shape), mask)


def test_a_brush_has_runs_longer_than_its_largest_field():
    mask = np.zeros((300, 400), np.bool_)
    mask[100:250] = True  # runs of 160,000, 240,000 and 80,000 values; the field has 16 bits
    assert np.array_equal(mask_of({"rle": brush_of(mask)}, mask.shape), mask)
    exact = np.zeros((2, 16384), np.bool_)
    exact[1] = True  # runs of exactly 65,536 values
    assert np.array_equal(mask_of({"rle": brush_of(exact)}, exact.shape), exact)


def test_the_configuration_gives_labels_with_their_wordings():
    config = LabelConfig.parse(BRUSHES)
    assert (config.image, config.key, config.kind, config.labels.name) == ("image", "picture", "brushlabels", "brush")
    assert [(query.name, query.parts) for query in config.labels.queries] == [
        ("sheep", (("sheep",),)),
        ("Engine", (("fire engine",),)),
    ]
    assert config.labels.of(" Fire Engine ") == config.labels.of("engine") == "Engine"
    assert config.labels.of("koala") is None
    assert LabelConfig.parse(POLYGONS).kind == "polygonlabels"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<View>", "is not XML"),
        ("<View><BrushLabels name='a' toName='b'><Label value='c'/></BrushLabels></View>", "has no <Image"),
        ("<View><Image name='image' value='$image'/></View>", "needs <BrushLabels"),
        (BRUSHES.replace("sheep", ""), "has no value"),
    ],
)
def test_bad_configurations_are_refused_with_the_reason(text, message):
    with pytest.raises(SettingsError, match=message):
        LabelConfig.parse(text)


def point(x: float, y: float, *, positive: bool = True) -> dict:
    value = {"x": x, "y": y, "width": 0.4, "keypointlabels": ["sheep"]}
    return {
        "type": "keypointlabels",
        "from_name": "points",
        "to_name": "image",
        "is_positive": positive,
        "value": value,
    }


def rectangle(x: float, y: float, width: float, height: float) -> dict:
    value = {"x": x, "y": y, "width": width, "height": height, "rectanglelabels": ["sheep"]}
    return {"type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}


def test_prompts_are_read_in_pixels():
    context = {"result": [point(50, 25), point(10, 20, positive=False), rectangle(10, 20, 30, 40)]}
    asked = Asked.parse(context, (200, 400))
    assert asked is not None
    assert asked.label == "sheep"
    assert asked.points.xy.tolist() == [[200, 50], [40, 40]]
    assert asked.points.labels.tolist() == [1, 0]
    assert asked.points.boxes_xyxy.tolist() == [[40, 40, 160, 120]]


def test_no_prompt_is_none():
    for context in (None, {}, {"result": []}, {"result": [point(1, 1, positive=False)]}):
        assert Asked.parse(context, (20, 40)) is None
    with pytest.raises(SettingsError, match="x of a region must be a number of percent, got 'left'"):
        Asked.parse({"result": [point("left", 1)]}, (20, 40))


# ---- over HTTP


class LabelStudio(BaseHTTPRequestHandler):
    """Gives the image to whoever has the key, as Label Studio does."""

    def do_GET(self):
        known = self.headers.get("Authorization") in ("Token key of setup", "Bearer for minutes")
        self.send_response(200 if known and self.path == "/data/upload/1/scene.jpg" else 401)
        self.end_headers()
        if known:
            self.wfile.write(SCENE.read_bytes())

    def do_POST(self):
        """Gives an access token for a personal access token, at the path with a slash at its end."""
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.path == "/api/token/refresh/" and given == {"refresh": "a.personal.token"}
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b'{"access": "for minutes"}' if known else b"{}")

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture(scope="module")
def running():
    started = []

    def run(listening: ThreadingHTTPServer) -> str:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        started.append((listening, thread))
        return f"http://127.0.0.1:{listening.server_address[1]}"

    yield run
    for listening, thread in started:
        listening.shutdown()
        thread.join()
        listening.server_close()


@pytest.fixture(scope="module")
def backend(demo, running):
    images = running(ThreadingHTTPServer(("127.0.0.1", 0), LabelStudio))
    settings = LabelStudioSettings(port=0, label_studio=images, images=SCENE.parent)
    return running(server(demo, settings))


def call(url: str, request: object = None, **headers: str) -> tuple[int, dict]:
    data = None if request is None else json.dumps(request).encode()
    headers = {"Content-Type": "application/json", **headers}
    try:
        with urlopen(Request(url, data, headers)) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def ask(backend: str, *context: dict, config: str = BRUSHES, image: str = f"/data/local-files/?d={SCENE.name}"):
    request = {
        "tasks": [{"id": 7, "project": 1, "data": {"picture": image}}],
        "label_config": config,
        "params": {"context": {"result": list(context)} if context else None},
    }
    return call(f"{backend}/predict", request)


def regions(backend: str, *context: dict, config: str = BRUSHES) -> list[dict]:
    status, answer = ask(backend, *context, config=config)
    assert status == 200, answer
    (prediction,) = answer["results"]
    assert not LabelInterface(config).validate_prediction(prediction, return_errors=True)
    return prediction["result"]


def test_health_and_setup_answer_with_the_model_version(backend, demo):
    assert call(f"{backend}/health") == (200, {"status": "UP", "model_class": "text2seg"})
    status, answer = call(f"{backend}/setup", {"schema": BRUSHES, "access_token": "x"})
    assert (status, answer) == (200, {"model_version": model_version(demo)})
    assert f"card {demo.card.name} {demo.card.sha256[:8]}" in answer["model_version"]
    assert call(f"{backend}/versions") == (200, {"versions": [model_version(demo)]})
    assert call(f"{backend}/webhook", {"action": "ANNOTATION_CREATED"})[0] == 200


def test_a_task_gets_a_brush_for_each_segment(backend, demo):
    expected = demo.segment(SCENE, ["sheep", "fire engine"])
    found = regions(backend)
    assert [region["value"]["brushlabels"] for region in found] == [["sheep"]] * 2 + [["Engine"]]
    for region, segment in zip(found, expected.segments, strict=True):
        hw = region["original_height"], region["original_width"]
        assert np.array_equal(mask_of(region["value"], hw), segment.mask)
        assert 0 < region["score"] <= segment.sam_score


def test_a_task_gets_polygons_where_the_project_has_them(backend, demo):
    (engine,) = demo.segment(SCENE, ["fire engine"]).segments
    (region,) = (
        region for region in regions(backend, config=POLYGONS) if region["value"]["polygonlabels"] == ["Engine"]
    )
    height, width = engine.mask.shape
    corners = [side for x, y in region["value"]["points"] for side in (x / 100 * width, y / 100 * height)]
    drawn = filled([corners], engine.mask.shape)
    assert (drawn & engine.mask).sum() / (drawn | engine.mask).sum() >= 0.98


def test_a_click_a_box_and_words_are_prompts(backend, demo):
    session = demo.open(SCENE)
    first, second = session.segment("sheep").segments
    height, width = first.mask.shape
    x, y, w, h = first.box_xywh
    box = rectangle(100 * x / width, 100 * y / height, 100 * w / width, 100 * h / height)
    (boxed,) = regions(backend, box)
    boxed_mask = mask_of(boxed["value"], first.mask.shape)
    assert (boxed_mask & first.mask).sum() / (boxed_mask | first.mask).sum() > 0.8
    x, y = second.points.xy[0]
    (clicked,) = regions(backend, point(100 * float(x) / width, 100 * float(y) / height))
    assert clicked["value"]["brushlabels"] == ["sheep"]
    assert mask_of(clicked["value"], first.mask.shape)[int(y), int(x)]
    words = {"type": "textarea", "from_name": "words", "to_name": "image", "value": {"text": ["fire engine"]}}
    (named,) = regions(backend, words)
    assert named["value"]["brushlabels"] == ["Engine"]


def test_images_of_label_studio_need_its_key(backend):
    image = "/data/upload/1/scene.jpg"
    call(f"{backend}/setup", {"schema": BRUSHES, "access_token": "wrong"})
    status, answer = ask(backend, image=image)
    assert status == 400
    assert "LABEL_STUDIO_API_KEY" in answer["error"]
    call(f"{backend}/setup", {"schema": BRUSHES, "access_token": "key of setup"})
    status, answer = ask(backend, image=image)
    assert status == 200
    assert len(answer["results"][0]["result"]) == 3


def test_a_personal_access_token_is_exchanged_first(demo, running, monkeypatch):
    address = running(ThreadingHTTPServer(("127.0.0.1", 0), LabelStudio))
    images = Images(LabelStudioSettings(label_studio=address))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.personal.token")
    assert np.array_equal(images.open(demo, "/data/upload/1/scene.jpg").image.pixels, load_image(SCENE).pixels)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "another.personal.token")
    with pytest.raises(ImageError, match="is LABEL_STUDIO_API_KEY set"):
        images.open(demo, "/data/upload/1/scene.jpg")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("http://169.254.169.254/latest", "is not an image of http://127.0.0.1"),
        ("file:///etc/passwd", "is not an image of"),
        ("//elsewhere.example/a.jpg", "is not an image of"),
        ("/data/local-files/?d=missing.jpg", "missing.jpg"),
    ],
)
def test_images_of_other_places_are_refused(backend, image, message):
    status, answer = ask(backend, image=image)
    assert status == 400
    assert message in answer["error"]


def test_no_path_and_no_link_leads_out_of_the_folder_of_images(tmp_path, demo):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link.jpg").symlink_to(SCENE)
    images = Images(LabelStudioSettings(images=tmp_path / "images"))
    with pytest.raises(ImageError, match="is not in the folder"):
        images.open(demo, "/data/local-files/?d=link.jpg")
    with pytest.raises(ImageError, match=r"images/scene_0019\.jpg"):  # ".." is dropped, and there is no such file
        images.open(demo, f"/data/local-files/?d=../../{SCENE.name}")


def test_of_several_tasks_one_that_fails_gets_no_prediction(backend):
    tasks = [
        {"id": n, "data": {"picture": f"/data/local-files/?d={name}"}} for n, name in enumerate([SCENE.name, "no.jpg"])
    ]
    status, answer = call(f"{backend}/predict", {"tasks": tasks, "label_config": BRUSHES})
    assert status == 200
    assert len(answer["results"][0]["result"]) == 3
    assert answer["results"][1] == []


def test_wrong_requests_are_answered_with_the_reason(backend):
    assert call(f"{backend}/nowhere")[0] == 404
    assert call(f"{backend}/predict", {"tasks": []}) == (400, {"error": "the request has no text 'label_config'"})
    assert call(f"{backend}/predict", [1])[0] == 400
    assert call(f"{backend}/predict", {}, **{"Content-Type": "text/plain"})[0] == 415
    status, answer = ask(backend, config=BRUSHES.replace("sheep", "gryphon"))
    assert status == 400
    assert "gryphon" in answer["error"]


def test_with_a_password_others_are_refused(demo, running):
    address = running(server(demo, LabelStudioSettings(port=0, auth="ann:secret")))
    assert call(f"{address}/health")[0] == 401
    known = base64.b64encode(b"ann:secret").decode()
    assert call(f"{address}/health", Authorization=f"Basic {known}")[0] == 200


def test_bad_settings_are_refused(demo):
    with pytest.raises(SettingsError, match="give --auth"):
        server(demo, LabelStudioSettings(host="0.0.0.0", port=0))
    for bad in ({"auth": "ann"}, {"port": 70000}, {"label_studio": "localhost:8080"}):
        with pytest.raises(SettingsError):
            LabelStudioSettings(**bad)
    with server(demo, LabelStudioSettings(port=0)) as first, pytest.raises(SettingsError, match="choose another"):
        server(demo, LabelStudioSettings(port=first.server_address[1]))


def test_the_command_serves_until_it_is_stopped(tmp_path):
    command = [sys.executable, "-u", "-m", "text2seg", "serve", "label-studio", "--model", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        address = next(re.findall(r"http://\S+", line)[0] for line in process.stdout if "backend" in line)
        assert call(f"{address}/health")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
