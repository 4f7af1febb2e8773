"""The app for programs: the examples of docs/app.md run, answers are right, errors are words."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from app_builders import SCENE, SCENES, live_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image as PillowImage

from text2seg.coco.rle import decode
from text2seg.config import PointSettings, Settings
from text2seg.explain import TOOLS

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "app.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:7860"


def examples(language: str) -> list[str]:
    """Blocks of the documentation that talk to a running app."""
    return [block for block in re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL) if ADDRESS in block]


@pytest.fixture(scope="module")
def url(demo):
    with live_app(demo) as address:
        yield address


@pytest.fixture(scope="module")
def http(url):
    with httpx.Client(base_url=url, timeout=120) as client:
        yield client


def segment(http, queries="sheep, fire engine", picture=SCENE, **fields) -> httpx.Response:
    return http.post("/api/segment", data={"queries": queries, **fields}, files={"image": picture.open("rb")})


class TestTheDocumentation:
    def test_has_examples(self):
        assert (len(examples("bash")), len(examples("python"))) == (2, 2)

    @pytest.mark.parametrize("number", range(2))
    def test_python(self, number, url):
        code = examples("python")[number].replace(ADDRESS, url)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "'sheep': '2 x" in done.stdout

    def test_curl(self, url, tmp_path):
        for block in examples("bash"):
            lines = block.replace(ADDRESS, url).replace("@text2seg", f"@{ROOT}/text2seg").replace("curl", "curl -sS -f")
            done = subprocess.run(["bash", "-euc", lines], cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        dataset = json.loads((tmp_path / "dataset.json").read_text())
        assert dataset["info"]["verdicts"]["octopus"].startswith("not found")
        assert all(isinstance(each["segmentation"], list) for each in dataset["annotations"])
        assert PillowImage.open(tmp_path / "saliency.png").format == "PNG"

    def test_flags_exist(self, capsys):
        from text2seg.cli import main

        with pytest.raises(SystemExit):
            main(["app", "--help"])
        shown = capsys.readouterr().out
        for flag in set(re.findall(r"(?<![\w-])--(?!users|minutes|user\b)[a-z][a-z-]+", DOCS)):
            assert flag in shown, flag


class TestSegment:
    def test_gives_what_the_library_gives(self, http, demo):
        settings = Settings(points=PointSettings(threshold=0.7))
        answer = segment(http, settings=json.dumps({"points": {"threshold": 0.7}})).json()
        own = demo.segment(SCENE, "sheep, fire engine", settings)
        assert len(answer["annotations"]) == len(own.segments)
        for annotation, expected in zip(answer["annotations"], own.segments, strict=True):
            np.testing.assert_array_equal(decode(annotation["segmentation"]), expected.mask)
        assert answer["images"] == [{"id": 1, "file_name": "scene_0019.jpg", "width": 270, "height": 360}]
        assert [category["name"] for category in answer["categories"]] == ["sheep", "fire engine"]
        assert answer["info"]["verdicts"] == {name: own.verdict(name) for name in ("sheep", "fire engine")}

    def test_repeated_queries_are_queries_each(self, http):
        answer = segment(http, queries=["sheep", "fire engine+sheep"]).json()
        assert [category["name"] for category in answer["categories"]] == ["sheep", "fire engine+sheep"]

    def test_a_path_in_a_name_is_left_off(self, http):
        files = {"image": ("../../etc/holiday 1.jpg", SCENE.read_bytes())}
        answer = http.post("/api/segment", data={"queries": "sheep"}, files=files).json()
        assert answer["images"][0]["file_name"] == "holiday 1.jpg"

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"queries": "unicorn"}, "does not know 'unicorn'"),
            ({"queries": ""}, "query"),
            ({"settings": "{"}, "settings is not JSON"),
            ({"settings": "[]"}, "must be a JSON object"),
            ({"settings": '{"points": {"threshold": 2}}'}, "threshold must be in"),
            ({"settings": '{"points": {"thresh": 0.5}}'}, "no setting 'thresh'"),
            ({"settings": '{"dots": {}}'}, "settings are like"),
            ({"segmentation": "png"}, "png"),
            ({"picture": "x"}, "picture: not known here"),
        ],
    )
    def test_errors_are_words(self, http, fields, words):
        data = {"queries": "sheep", **fields}
        answer = http.post("/api/segment", data=data, files={"image": SCENE.open("rb")})
        assert answer.status_code == 400
        assert words in answer.json()["error"]

    def test_one_picture_is_needed(self, http):
        for files in ({}, [("image", b"a"), ("image", b"b")], {"image": ("", b"")}):
            answer = http.post("/api/segment", data={"queries": "sheep"}, files=files or {"x": b"y"})
            assert answer.status_code == 400

    def test_callers_at_once_get_their_own(self, http, demo):
        """Eight callers, four pictures, one pair of queries each."""
        pictures = sorted(SCENES.glob("*.jpg"))[:4]
        things = [("sheep", "koala"), ("rocket", "bomb"), ("octopus", "bee"), ("clock", "car")]
        answers: dict[int, dict] = {}

        def call(number: int) -> None:
            queries = ",".join(things[number % 4])
            answers[number] = segment(http, queries=queries, picture=pictures[number % 4]).json()

        callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        for number, answer in answers.items():
            own = demo.segment(pictures[number % 4], ",".join(things[number % 4]))
            assert answer["images"][0]["file_name"] == pictures[number % 4].name
            assert [each["bbox"] for each in answer["annotations"]] == [[*each.box_xywh] for each in own.segments]


class TestExplain:
    def test_tools_are_listed_with_their_settings(self, http):
        listed = http.get("/api/tools").json()
        assert [tool["name"] for tool in listed] == [*TOOLS]
        assert all(setting["help"] for tool in listed for setting in tool["settings"])

    def test_an_exhibit_comes_with_its_pictures(self, http):
        data = {"settings": json.dumps({"text": ["sheep"]})}
        answer = http.post("/api/explain/saliency", data=data, files={"image": SCENE.open("rb")}).json()
        assert answer["title"]
        panel = answer["panels"][0]
        assert PillowImage.open(io.BytesIO(base64.b64decode(panel["png"]))).format == "PNG"

    def test_a_picture_among_the_settings_is_a_part(self, http):
        files = {"image": SCENE.open("rb"), "target_image": (SCENES / "scene_0003.jpg").open("rb")}
        answer = http.post("/api/explain/saliency", files=files)
        assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize(
        ("tool", "data", "words"),
        [
            ("none", {}, "there is no tool 'none'"),
            ("saliency", {"settings": '{"method": "magic"}'}, "Method: input should be"),
            ("saliency", {"target_image": "/etc/passwd"}, "target_image is no file"),
        ],
    )
    def test_errors_are_words(self, http, tool, data, words):
        answer = http.post(f"/api/explain/{tool}", data=data, files={"image": SCENE.open("rb")})
        assert answer.status_code == 400
        assert words in answer.json()["error"]


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


class TestTheClient:
    def test_says_in_words_what_is_wrong(self, client):
        with pytest.raises(AppError, match="does not know 'unicorn'"):
            client.predict(image=handle_file(SCENE), queries="unicorn", api_name="/segment")

    def test_gives_settings_and_pictures_among_them(self, client):
        settings = {"target_image": handle_file(SCENES / "scene_0003.jpg")}
        exhibit = client.predict(tool="saliency", images=[handle_file(SCENE)], settings=settings, api_name="/explain")
        assert exhibit["panels"]

    def test_is_told_that_all_is_well(self, client, http):
        assert client.predict(api_name="/health") == http.get("/api/health").json()
        assert client.predict(api_name="/health")["status"] == "ok"


def test_more_than_may_wait_are_sent_away(demo):
    """One at work and one that waits; the third is told to come again."""
    with live_app(demo, workers=1, waiting=1) as url, httpx.Client(base_url=url, timeout=120) as http:
        released = threading.Event()
        original = demo.segment_sessions

        def slow(*arguments, **more):
            released.wait(60)
            return original(*arguments, **more)

        demo.segment_sessions = slow
        try:
            callers = [threading.Thread(target=segment, args=(http,)) for _ in range(2)]
            for caller in callers:
                caller.start()
                time.sleep(1)
            answer = segment(http)
        finally:
            del demo.segment_sessions
            released.set()
        for caller in callers:
            caller.join()
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
