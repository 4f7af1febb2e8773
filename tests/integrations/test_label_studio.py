"""The real Label Studio on this machine, with SQLite: it connects to our backend, asks for predictions, and exports."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import threading
import time
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle

from text2seg.integrations.label_studio import brush_of, model_version
from text2seg.integrations.label_studio_server import Images, server
from text2seg.integrations.settings import LabelStudioSettings
from text2seg.io.images import load_image

SCENES = Path(__file__).parents[2] / "text2seg/demo/scenes/new-scenes/images"
NAMES = ("scene_0019.jpg", "scene_0001.jpg")
KEY = "0123456789abcdef0123456789abcdef01234567"
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="sheep"/><Label value="fire engine"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="sheep"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="sheep"/></RectangleLabels>
  <TextArea name="words" toName="image" smart="true"/>
</View>"""


@pytest.fixture(autouse=True)
def no_key_of_the_environment(monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def label_studio(tool, tmp_path_factory):
    program, folder, port = tool("label-studio", "label-studio"), tmp_path_factory.mktemp("data"), free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        program,
        "start",
        "--no-browser",
        "--internal-host",
        "127.0.0.1",
        "--port",
        str(port),
        "--data-dir",
        folder,
    ]
    command += ["--username", "ann@example.org", "--password", "secret-word", "--user-token", KEY]
    command += ["--enable-legacy-api-token"]
    settings = {"ML_BLOCK_LOCAL_IP": "false", "COLLECT_ANALYTICS": "false", "SSRF_PROTECTION_ENABLED": "false"}
    settings |= {"LABEL_STUDIO_HOST": address}
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **settings}, cwd=folder)
    try:
        with httpx.Client(base_url=address, headers={"Authorization": f"Token {KEY}"}, timeout=120) as client:
            while True:
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
                assert process.poll() is None, log.read_text(errors="replace")[-5000:]
            yield client
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def backend(demo, label_studio):
    settings = LabelStudioSettings(port=0, label_studio=str(label_studio.base_url))
    with server(demo, settings) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


def checked(answer: httpx.Response):
    assert answer.is_success, f"{answer.request.url}: {answer.status_code} {answer.text[:2000]}"
    return answer.json()


@pytest.fixture(scope="module")
def project(label_studio, backend):
    """A project with two uploaded images and our backend, and the ids of tasks by file name."""
    number = checked(label_studio.post("/api/projects", json={"title": "scenes", "label_config": CONFIG}))["id"]
    for name in NAMES:
        files = {"file": (name, (SCENES / name).read_bytes(), "image/jpeg")}
        checked(label_studio.post(f"/api/projects/{number}/import", files=files))
    connected = {"project": number, "url": backend, "title": "text2seg", "is_interactive": True}
    model = checked(label_studio.post("/api/ml", json=connected))
    tasks = checked(label_studio.get("/api/tasks", params={"project": number}))["tasks"]
    found = {name: task["id"] for name in NAMES for task in tasks if task["data"]["image"].endswith(name)}
    assert set(found) == set(NAMES)
    return number, model["id"], found


def test_a_personal_access_token_opens_images(label_studio, project, demo, monkeypatch):
    _, _, tasks = project
    token = checked(label_studio.post("/api/token/"))["token"]
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    for name, number in tasks.items():
        image = checked(label_studio.get(f"/api/tasks/{number}"))["data"]["image"]
        images = Images(LabelStudioSettings(label_studio=str(label_studio.base_url)))
        assert np.array_equal(images.open(demo, image).image.pixels, load_image(SCENES / name).pixels)


def masks_of(regions: list[dict], hw: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    assert all((each["original_height"], each["original_width"]) == hw for each in regions)
    return [
        (each["value"]["brushlabels"][0], decode_rle(each["value"]["rle"]).reshape(*hw, 4)[..., 3] > 0)
        for each in regions
    ]


def test_label_studio_connects(label_studio, project, demo):
    _, model, _ = project
    connected = checked(label_studio.get(f"/api/ml/{model}"))
    assert connected["readable_state"] == "Connected"
    assert connected["model_version"] == model_version(demo)


def test_predictions_and_exported_annotations_have_our_masks_to_the_pixel(label_studio, project, demo):
    number, _, tasks = project
    every = {"selectedItems": {"all": True, "excluded": []}}
    label_studio.post("/api/dm/actions", params={"id": "retrieve_tasks_predictions", "project": number}, json=every)
    expected = {}
    for name, task in tasks.items():
        found = demo.segment(SCENES / name, ["sheep", "fire engine"])
        expected[task] = [(segment.query, segment.mask) for segment in found.segments]
        (prediction,) = checked(label_studio.get("/api/predictions", params={"task": task}))
        assert prediction["model_version"] == model_version(demo)
        masks = masks_of(prediction["result"], found.image.hw)
        assert [label for label, _ in masks] == [label for label, _ in expected[task]]
        assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(masks, expected[task], strict=True))
        if masks:
            assert prediction["score"] > 0
            body = {"result": prediction["result"]}
            checked(label_studio.post(f"/api/tasks/{task}/annotations", json=body))
    exported = label_studio.get(f"/api/projects/{number}/export", params={"exportType": "BRUSH_TO_NUMPY"})
    assert exported.is_success
    arrays: dict[tuple[int, str], list[np.ndarray]] = {}
    with zipfile.ZipFile(io.BytesIO(exported.content)) as archive:
        for file in sorted(archive.namelist()):
            task, label = re.match(r"task-(\d+)-annotation-\d+-by-.*-brush-(.*)-\d+\.npy", file).groups()
            arrays.setdefault((int(task), label), []).append(np.load(io.BytesIO(archive.read(file))) > 0)
    assert sum(map(len, arrays.values())) == sum(map(len, expected.values())) > 0
    for task, found in expected.items():
        for label in {label for label, _ in found}:
            ours = [mask for name, mask in found if name == label]
            assert all(np.array_equal(*pair) for pair in zip(arrays[task, label], ours, strict=True))


def test_smart_tools_ask_for_clicks_boxes_and_words(label_studio, project, demo):
    _, model, tasks = project
    sheep = demo.segment(SCENES / NAMES[0], "sheep").segments[0]
    height, width = sheep.mask.shape

    def ask(kind: str, name: str, value: dict) -> list[dict]:
        region = {"type": kind, "from_name": name, "to_name": "image", "id": "one", "value": value, "is_positive": True}
        region |= {"original_width": width, "original_height": height, "image_rotation": 0}
        body = {"task": tasks[NAMES[0]], "context": {"result": [region]}}
        answer = checked(label_studio.post(f"/api/ml/{model}/interactive-annotating", json=body))
        assert not answer.get("errors"), answer
        return answer["data"]["result"]

    x, y = (float(side) for side in sheep.points.xy[0])
    (clicked,) = ask(
        "keypointlabels", "point", {"x": 100 * x / width, "y": 100 * y / height, "keypointlabels": ["sheep"]}
    )
    ((_, mask),) = masks_of([clicked], sheep.mask.shape)
    assert mask[int(y), int(x)]
    left, top, columns, rows = sheep.box_xywh
    box = {
        "x": 100 * left / width,
        "y": 100 * top / height,
        "width": 100 * columns / width,
        "height": 100 * rows / height,
    }
    (boxed,) = ask("rectanglelabels", "box", {**box, "rectanglelabels": ["sheep"]})
    ((_, mask),) = masks_of([boxed], sheep.mask.shape)
    assert (mask & sheep.mask).sum() / (mask | sheep.mask).sum() > 0.8
    words = ask("textarea", "words", {"text": ["sheep"]})
    assert np.array_equal(masks_of(words, sheep.mask.shape)[0][1], sheep.mask)
    assert words[0]["value"]["rle"] == brush_of(sheep.mask)
