"""The API of the app: the examples of docs/api.md run, results are correct, errors have messages."""

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
from app_builders import SCENE, SCENES, answer_before_the_body, live_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image as PillowImage

from text2seg.coco.rle import decode
from text2seg.config import PointSettings, Settings
from text2seg.errors import SettingsError
from text2seg.explain import TOOLS, Result

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
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


def segment(http, queries="sheep, fire engine", image=SCENE, **fields) -> httpx.Response:
    return http.post("/api/v1/segment", data={"queries": queries, **fields}, files={"image": image.open("rb")})


class TestTheDocumentation:
    def test_has_examples(self):
        assert (len(examples("bash")), len(examples("python"))) == (3, 2)

    @pytest.mark.parametrize("number", range(2))
    def test_python(self, number, url):
        code = examples("python")[number].replace(ADDRESS, url)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "'sheep': '2 found" in done.stdout

    def test_curl(self, url, tmp_path):
        for block in examples("bash"):
            lines = (
                block.replace(ADDRESS, url).replace("@text2seg", f"@{ROOT}/text2seg").replace("curl ", "curl -sS -f ")
            )
            done = subprocess.run(["bash", "-euc", lines], cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        dataset = json.loads((tmp_path / "dataset.json").read_text())
        assert dataset["info"]["verdicts"]["octopus"].startswith("not found")
        assert all(isinstance(each["segmentation"], list) for each in dataset["annotations"])
        assert PillowImage.open(tmp_path / "saliency.png").format == "PNG"
        labelled = json.loads((tmp_path / "labelled.json").read_text())
        assert [each["file_name"] for each in labelled["images"]] == ["scene_0003.jpg", "scene_0019.jpg"]
        assert labelled["annotations"]
        gone = httpx.get(f"{url}/api/v1/jobs/{json.loads((tmp_path / 'job.json').read_text())['id']}")
        assert gone.status_code == 404
        assert any("; " in line for line in lines.splitlines() if "--form-string" in line)  # -F would cut it there

    def test_flags_exist(self, capsys):
        from text2seg.cli import main

        with pytest.raises(SystemExit):
            main(["app", "--help"])
        shown = capsys.readouterr().out
        both = DOCS + (ROOT / "docs" / "app.md").read_text(encoding="utf-8")
        for flag in set(re.findall(r"(?<![\w-])--(?!users|minutes|user\b|form-string)[a-z][a-z-]+", both)):
            assert flag in shown, flag


class TestSegment:
    def test_equals_the_result_of_the_library(self, http, demo):
        settings = Settings(points=PointSettings(threshold=0.7))
        answer = segment(http, settings=json.dumps({"points": {"threshold": 0.7}})).json()
        own = demo.segment(SCENE, "sheep, fire engine", settings)
        assert len(answer["annotations"]) == len(own.segments)
        for annotation, expected in zip(answer["annotations"], own.segments, strict=True):
            np.testing.assert_array_equal(decode(annotation["segmentation"]), expected.mask)
        (image,) = answer["images"]
        presence = image.pop("attributes")["presence"]
        assert image == {"id": 1, "file_name": "scene_0019.jpg", "width": 270, "height": 360}
        np.testing.assert_array_equal(np.float32([*presence.values()]), own.maps.presence)
        assert answer["info"]["models"] == "CLIP demo with SAM demo"
        assert len(answer["info"]["provenance"]["clip"]["sha256"]) == 64
        assert [category["name"] for category in answer["categories"]] == ["sheep", "fire engine"]
        assert answer["info"]["verdicts"] == {name: own.verdict(name) for name in ("sheep", "fire engine")}

    def test_repeated_query_fields_are_separate_queries(self, http):
        answer = segment(http, queries=["sheep", "fire engine+sheep"]).json()
        assert [category["name"] for category in answer["categories"]] == ["sheep", "fire engine+sheep"]

    def test_a_truncated_query_is_reported_in_each_answer(self, http):
        long = f"sheep {'and a sheep ' * 40}".strip()
        for _ in range(2):
            told = segment(http, queries=f"{long}, dog").json()["info"]["verdicts"]
            assert told[long].endswith("too long, its end was not read")
            assert "too long" not in told["dog"]

    def test_a_photograph_gives_a_warning_where_the_model_knows_drawings_only(self, http):
        assert "warning" not in segment(http).json()["info"]
        noise = io.BytesIO()  # rough and grey, as photographs are
        pixels = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
        PillowImage.fromarray(pixels).save(noise, "PNG")
        files = {"image": ("noise.png", noise.getvalue())}
        answer = http.post("/api/v1/segment", data={"queries": "sheep"}, files=files).json()
        assert answer["info"]["warning"].startswith("This looks like a photograph")

    def test_a_path_in_a_file_name_is_removed(self, http):
        files = {"image": ("../../etc/holiday 1.jpg", SCENE.read_bytes())}
        answer = http.post("/api/v1/segment", data={"queries": "sheep"}, files=files).json()
        assert answer["images"][0]["file_name"] == "holiday 1.jpg"

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"queries": "unicorn"}, "does not know 'unicorn'"),
            ({"queries": ""}, "query"),
            ({"settings": "{"}, "Settings is not JSON"),
            ({"settings": "[]"}, "must be a JSON object"),
            ({"settings": '{"points": {"threshold": 2}}'}, "points: threshold must be in"),
            ({"settings": '{"points": {"thresh": 0.5}}'}, "points: there is no setting 'thresh'"),
            ({"settings": '{"dots": {}}'}, "Settings must be like"),
            ({"segmentation": "png"}, "png"),
            ({"segmentation": ["rle", "rle"]}, "Segmentation is given 2 times; send it once"),
            ({"settings": ["{}", "{}"]}, "Settings is given 2 times"),
            ({"settings": '{"points": {"threshold": true}}'}, "points: threshold: must be a number, got"),
            ({"settings": '{"maps": {"input_size": [true, true]}}'}, "maps: input_size: must be a number, got"),
            ({"settings": '{"maps": {"input_size": []}}'}, "maps: input_size: must be"),
            ({"picture": "x"}, "No field is called picture"),
        ],
    )
    def test_errors_have_messages(self, http, fields, words):
        data = {"queries": "sheep", **fields}
        answer = http.post("/api/v1/segment", data=data, files={"image": SCENE.open("rb")})
        assert answer.status_code == 400
        assert words in answer.json()["error"]

    def test_exactly_one_image_is_required(self, http):
        for files in ({}, [("image", b"a"), ("image", b"b")], {"image": ("", b"")}):
            answer = http.post("/api/v1/segment", data={"queries": "sheep"}, files=files or {"x": b"y"})
            assert answer.status_code == 400

    def test_concurrent_clients_get_their_own_answers(self, http, demo):
        """Eight callers, four images, one pair of queries each."""
        images = sorted(SCENES.glob("*.jpg"))[:4]
        things = [("sheep", "koala"), ("rocket", "bomb"), ("octopus", "bee"), ("clock", "car")]
        answers: dict[int, dict] = {}

        def call(number: int) -> None:
            queries = ",".join(things[number % 4])
            answers[number] = segment(http, queries=queries, image=images[number % 4]).json()

        callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        for number, answer in answers.items():
            own = demo.segment(images[number % 4], ",".join(things[number % 4]))
            assert answer["images"][0]["file_name"] == images[number % 4].name
            assert [each["bbox"] for each in answer["annotations"]] == [[*each.box_xywh] for each in own.segments]


class TestExplain:
    def test_tools_are_listed_with_their_settings(self, http):
        listed = http.get("/api/v1/tools").json()
        assert [tool["name"] for tool in listed] == [*TOOLS]
        assert all(setting["help"] for tool in listed for setting in tool["settings"])

    def test_a_result_includes_its_images(self, http):
        data = {"settings": json.dumps({"text": ["sheep"]})}
        answer = http.post("/api/v1/explain/saliency", data=data, files={"image": SCENE.open("rb")}).json()
        assert answer["title"]
        panel = answer["panels"][0]
        assert PillowImage.open(io.BytesIO(base64.b64decode(panel["png"]))).format == "PNG"

    def test_an_image_setting_is_a_form_part(self, http):
        files = {"image": SCENE.open("rb"), "target_image": (SCENES / "scene_0003.jpg").open("rb")}
        answer = http.post("/api/v1/explain/saliency", files=files)
        assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize(
        ("tool", "data", "words"),
        [
            ("none", {}, "There is no tool 'none'"),
            ("saliency", {"settings": '{"method": "magic"}'}, "method: must be 'attention', 'rollout'"),
            ("saliency", {"target_image": "/etc/passwd"}, "target_image is not a file"),
        ],
    )
    def test_errors_have_messages(self, http, tool, data, words):
        answer = http.post(f"/api/v1/explain/{tool}", data=data, files={"image": SCENE.open("rb")})
        assert answer.status_code == 400
        assert words in answer.json()["error"]


FILE = {"meta": {"_type": "gradio.FileData"}}
WRONG_CALLS = [
    ("segment", [], "Image must be an uploaded image"),
    ("segment", [None, "sheep", None, "rle"], "Image must be an uploaded image"),
    ("segment", ["scene.jpg", "sheep"], "got 'scene.jpg'"),
    ("segment", [[], "sheep"], "got []"),
    ("segment", [{}, "sheep"], "Image must be an uploaded image"),
    ("segment", [{"path": 5}, "sheep"], "Image must be an uploaded image"),
    ("segment", ["IMAGE"], "Queries are missing"),
    ("segment", ["IMAGE", 5], "Queries are one text or a list of texts, got 5"),
    ("segment", ["IMAGE", ["sheep", 3]], "A query is a text, got 3"),
    ("segment", ["IMAGE", ""], "Nothing to look for"),
    ("segment", ["IMAGE", "x" * 10_000], "10,000 letters"),
    ("segment", ["IMAGE", "\x1b[31msheep"], "control characters"),
    ("segment", ["IMAGE", ", ".join(f"sheep {number}" for number in range(200))], "200 queries are too many"),
    ("segment", ["IMAGE", "unicorn"], "does not know 'unicorn'. GET /api/v1/health lists"),
    ("segment", ["IMAGE", "sheep", "threshold"], "Settings must be a JSON object"),
    ("segment", ["IMAGE", "sheep", [1]], "Settings must be a JSON object"),
    ("segment", ["IMAGE", "sheep", {"points": 3}], "Settings must be like"),
    ("segment", ["IMAGE", "sheep", {"dots": {}}], "Settings must be like"),
    ("segment", ["IMAGE", "sheep", {"points": {"dots": 3}}], "points: there is no setting 'dots'"),
    ("segment", ["IMAGE", "sheep", {"points": {"threshold": -1}}], "points: threshold must be in"),
    ("segment", ["IMAGE", "sheep", {"points": {"threshold": "NaN"}}], "points: threshold must be in"),
    (
        "segment",
        ["IMAGE", "sheep", {"points": {"threshold": "high"}}],
        "points: threshold: must be a number, got 'high'",
    ),
    ("segment", ["IMAGE", "sheep", {"points": {"downsample": -(10**30)}}], "points: downsample must be"),
    ("segment", ["IMAGE", "sheep", {"maps": {"input_size": 10**30}}], "maps: input size must be"),
    ("segment", ["IMAGE", "sheep", {"maps": {"input_size": [1]}}], "maps: input_size: must be"),
    ("segment", ["IMAGE", "sheep", {"maps": {"labels": 5}}], "maps: labels: must be a list, got 5"),
    ("segment", ["IMAGE", "sheep", {"masks": {"quality": "Infinity"}}], "masks: quality: must be a number"),
    ("segment", ["IMAGE", "sheep", None, "png"], "rle or polygon"),
    ("segment", ["IMAGE", "sheep", None, {"a": 1}], "rle or polygon"),
    ("segment", ["IMAGE", "sheep", None, "rle", 5], "takes 4 values, got 5"),
    ("explain", [], "There is no tool None"),
    ("explain", ["salient", ["IMAGE"]], "There is no tool 'salient'"),
    ("explain", [["saliency"], ["IMAGE"]], "There is no tool"),
    ("explain", ["saliency"], "Saliency takes one image, got 0"),
    ("explain", ["saliency", "IMAGE"], "Images must be a list"),
    ("explain", ["saliency", ["scene.jpg"]], "must be an uploaded image"),
    ("explain", ["saliency", ["IMAGE"], "sheep"], "Settings must be a JSON object"),
    ("explain", ["saliency", ["IMAGE"], {}], "No target"),
    ("explain", ["saliency", ["IMAGE"], {"text": 5}], "text: must be a list, got 5"),
    ("explain", ["saliency", ["IMAGE"], {"text": ["sheep"], "size": -1}], "Input size"),
    ("explain", ["saliency", ["IMAGE"], {"text": ["sheep"], "alpha": "x"}], "alpha: must be a number, got 'x'"),
    ("explain", ["saliency", ["IMAGE"], {"target_image": 5}], "target_image: must be an uploaded image"),
    ("explain", ["saliency", ["IMAGE"], {"target_image": "/etc/passwd"}], "not uploaded here"),
    ("explain", ["board", ["IMAGE"], {}], "give `text` at least once"),
    ("health", [1], "takes 0 values, got 1"),
]


@pytest.fixture(scope="module")
def uploaded(http):
    (path,) = http.post("/gradio_api/upload", files={"files": SCENE.open("rb")}).json()
    return {"path": path, **FILE}


def filled(value, uploaded):
    """The value with every "IMAGE" in it as an uploaded one."""
    if isinstance(value, list):
        return [filled(each, uploaded) for each in value]
    return uploaded if value == "IMAGE" else value


def is_a_sentence(words) -> bool:
    """Short, with a capital letter where it begins with a word, and speaking of no command line."""
    return (
        isinstance(words, str)
        and 10 < len(words) < 300
        and not re.match(r"[a-z]+ ", words)
        and not re.search(r"\s--[a-z]|Traceback|verbose error", words)
    )


class TestBadRequests:
    @pytest.mark.parametrize(("name", "data", "words"), WRONG_CALLS)
    def test_gradio_client_errors_have_a_message(self, http, uploaded, name, data, words, caplog):
        event = http.post(f"/gradio_api/call/{name}", json={"data": filled(data, uploaded)}).json()["event_id"]
        event, answer = http.get(f"/gradio_api/call/{name}/{event}").text.split("\n")[:2]
        assert event == "event: error"
        told = json.loads(answer.removeprefix("data: "))["error"]
        assert words in told
        assert is_a_sentence(told.replace("passwd ", "A file ", 1) if told.startswith("passwd ") else told)
        assert not [record for record in caplog.records if record.exc_info]

    @pytest.mark.parametrize(
        ("method", "path", "more", "status"),
        [
            ("POST", "/gradio_api/call/nope", {"json": {"data": []}}, 404),
            ("POST", "/gradio_api/run/nope", {"json": {"data": []}}, 404),
            ("POST", "/gradio_api/run/predict", {"json": {"data": []}}, 404),
            ("POST", "/gradio_api/run/predict", {"json": {"data": [], "fn_index": 9999}}, 404),
            ("POST", "/gradio_api/queue/join", {"json": {"data": [], "fn_index": 9999, "session_hash": "x"}}, 404),
            ("POST", "/gradio_api/queue/join", {"json": {"data": [], "fn_index": -1, "session_hash": 5}}, 404),
            ("POST", "/gradio_api/queue/join", {"json": {"data": [], "fn_index": "x", "session_hash": "x"}}, 422),
            ("POST", "/gradio_api/queue/join", {"json": {"data": [], "fn_index": 0}}, 400),
            ("POST", "/gradio_api/queue/join", {"json": [1]}, 422),
            ("POST", "/gradio_api/call/segment", {"content": b""}, 422),
            ("POST", "/gradio_api/call/segment", {"content": b"{"}, 400),
            ("POST", "/gradio_api/call/segment", {"content": b"\xff\xfe"}, 400),
            ("POST", "/gradio_api/call/segment", {"content": b"[" * 100_000}, 400),
            ("POST", "/gradio_api/call/segment", {"content": b'{"data": [1%s]}' % (b"0" * 5000)}, 400),
            ("POST", "/gradio_api/call/segment", {"json": {"data": 5}}, 422),
            ("POST", "/gradio_api/call/segment", {"json": {"data": [{"path": "/etc/passwd"}, "a"]}}, 403),
            ("POST", "/gradio_api/call/segment", {"json": {"data": [{"url": "file:///etc/passwd"}, "a"]}}, 403),
            ("POST", "/gradio_api/cancel", {"json": {}}, 422),
            ("GET", "/gradio_api/call/segment", {}, 405),
            ("GET", "/gradio_api/queue/data", {}, 422),
            ("GET", "/api/v1/segment", {}, 405),
            ("PUT", "/api/v1/segment", {}, 405),
            ("DELETE", "/api/v1/tools", {}, 405),
            ("POST", "/api/v1/health", {}, 405),
            ("POST", "/api/v1/nope", {}, 404),
            ("GET", "/nope", {}, 404),
            ("POST", "/api/v1/segment", {}, 415),
            ("POST", "/api/v1/segment", {"json": {"queries": "sheep"}}, 415),
            ("POST", "/api/v1/segment", {"data": {"queries": "sheep"}}, 415),
            ("POST", "/api/v1/segment", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
            ("POST", "/api/v1/segment", {"files": {"queries": b"sheep", "image": b"x"}}, 400),
            ("POST", "/api/v1/segment", {"data": {"image": "/etc/passwd"}, "files": {"queries": (None, "sheep")}}, 400),
            ("POST", "/api/v1/segment", {"data": {"queries": ["a"] * 200}, "files": {"image": b"x"}}, 400),
            ("POST", "/api/v1/segment", {"data": {"settings": "1" * 5000}, "files": {"image": b"x"}}, 400),
            ("POST", "/api/v1/explain/saliency", {}, 415),
            ("POST", "/gradio_api/upload", {}, 415),
        ],
    )
    def test_http_errors_have_a_message_and_a_status(self, http, method, path, more, status, caplog):
        answer = http.request(method, path, **more)
        assert answer.status_code == status, answer.text
        assert is_a_sentence(answer.json()["error"]), answer.text
        assert not [record for record in caplog.records if record.exc_info]

    def test_an_internal_error_is_reported_as_one(self, http, uploaded, monkeypatch, caplog):
        monkeypatch.setattr("text2seg.app.api.health_json", lambda _: 1 / 0)
        event = http.post("/gradio_api/call/health", json={"data": []}).json()["event_id"]
        assert "because of an error in text2seg" in http.get(f"/gradio_api/call/health/{event}").text
        assert [record for record in caplog.records if record.exc_info], "the log has more"


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


class TestTheClient:
    def test_reports_what_is_wrong(self, client):
        with pytest.raises(AppError, match="does not know 'unicorn'"):
            client.predict(image=handle_file(SCENE), queries="unicorn", api_name="/segment")

    @pytest.mark.parametrize("image", [None, str(SCENE), 5, {"image": 1}])
    def test_reports_a_missing_image(self, client, image):
        with pytest.raises(AppError, match="Image must be an uploaded image, made by gradio_client's handle_file"):
            client.predict(image=image, queries="sheep", api_name="/segment")

    def test_reports_settings_that_are_text(self, client):
        with pytest.raises(AppError, match="Settings must be a JSON object"):
            client.predict(image=handle_file(SCENE), queries="sheep", settings="threshold=1", api_name="/segment")

    def test_passes_settings_with_images(self, client):
        settings = {"target_image": handle_file(SCENES / "scene_0003.jpg")}
        result = client.predict(tool="saliency", images=[handle_file(SCENE)], settings=settings, api_name="/explain")
        assert result["panels"]

    def test_health_answers(self, client, http):
        assert client.predict(api_name="/health") == http.get("/api/v1/health").json()
        assert client.predict(api_name="/health")["status"] == "ok"


def test_a_full_queue_refuses_requests(demo):
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
            early = answer_before_the_body(url, "/api/v1/segment", 1_000_000)
            early_job = answer_before_the_body(url, "/api/v1/jobs", 1_000_000)
        finally:
            del demo.segment_sessions
            released.set()
        for caller in callers:
            caller.join()
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert early.startswith(b"HTTP/1.1 503 "), early
        assert early_job.startswith(b"HTTP/1.1 503 "), early_job


def test_settings_sent_as_a_file_are_refused(http):
    files = {"image": SCENE.open("rb"), "settings": ("settings.json", b"{}")}
    answer = http.post("/api/v1/segment", data={"queries": "sheep"}, files=files)
    assert answer.json()["error"] == "Settings must be text, got a file"


def test_messages_hide_folders_of_the_server():
    from text2seg.app.checks import visitors_folder
    from text2seg.app.messages import message_of

    def told(text):
        return message_of(Exception(text))

    assert told("passwd is no image") == "passwd is no image"
    assert told("settings is not JSON") == "Settings is not JSON"
    assert told("there is no tool 'x'") == "There is no tool 'x'"
    assert told(f"{visitors_folder()}/3f/image-0/passwd is empty") == "passwd is empty"
    wrong = SettingsError("give --target-text; or start the app with --device cpu", on_page="fill in --target-text")
    assert (message_of(wrong), message_of(wrong, in_api=True)) == ("Fill in “Target text”", "Give `target_text`")
    assert "ublic" not in told("this app is not called 'x'; start it with --public-url if a proxy stands before it")


def test_notes_of_the_api_hide_folders_of_the_server_and_advice_for_the_command_line():
    from text2seg.app.api import result_json
    from text2seg.app.checks import visitors_folder

    note = f"{visitors_folder()}/3f/image-0/a.jpg is empty. Run the same command again for the other images."
    assert result_json(Result("t", notes=(note,)))["notes"] == ["a.jpg is empty."]


class TestForms:
    """What the parser of forms fails at is its sender's fault, and told in a sentence."""

    @pytest.mark.parametrize("place", ["/api/v1/segment", "/api/v1/explain/saliency", "/gradio_api/upload"])
    @pytest.mark.parametrize(
        ("parameters", "name"), [("; charset=punycode", "a.jpg"), ("; charset=undefined", "a.jpg"), ("", "a\0.jpg")]
    )
    def test_unreadable_forms_are_refused(self, http, caplog, place, parameters, name):
        body = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\nabc\r\n--x--\r\n'
        ).encode()
        answer = http.post(
            place, content=body, headers={"content-type": f"multipart/form-data; boundary=x{parameters}"}
        )
        assert answer.status_code in ((400,) if parameters else (200, 400)), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]
        assert "a request failed" not in caplog.text


class TestGuard:
    @staticmethod
    def answers(app, path="/api/v1/health"):
        """What the guard sends of an ASGI app."""
        import anyio

        from text2seg.app.guard import Guard
        from text2seg.app.settings import AppSettings

        sent = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"127.0.0.1")]}
        anyio.run(Guard(app, AppSettings()), scope, receive, send)
        return sent

    @pytest.mark.parametrize("more", [False, True])
    def test_guard_closes_a_response_once(self, more):
        """Also where the app fails after the end, as in a task behind the answer."""

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": more})
            raise RuntimeError("broken")

        start, *bodies = self.answers(app)
        assert start["status"] == 200
        assert [bool(each.get("more_body")) for each in bodies] == [True, False][not more :]

    def test_error_responses_have_one_message(self):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"Internal Server Error"})
            raise RuntimeError("broken")

        start, body = self.answers(app)
        assert start["status"] == 500
        assert "because of an error in text2seg" in json.loads(body["body"])["error"]
