"""The backend for Label Studio over HTTP: its routes, where its images come from, and which requests it refuses."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import pytest
from label_studio_builders import BRUSHES, POLYGONS, SCENE, mask_of, point, rectangle
from label_studio_sdk.label_interface import LabelInterface

from text2seg.coco.polygon import decode as filled
from text2seg.errors import ImageError, SettingsError
from text2seg.integrations import label_studio_server as module
from text2seg.integrations.label_studio import model_version
from text2seg.integrations.label_studio_server import Images, server
from text2seg.integrations.settings import LabelStudioSettings
from text2seg.io.images import load_image

PATHS = [
    "/data/upload/1/scene.jpg",
    "/data/upload/1/my%20photo.jpg",
    "/data/upload/1/Stra%C3%9Fe.jpg",
    "/data/upload/1/100%25.jpg",
    "/data/local-files/?d=a%20b.jpg",
    "/data/upload/1/slow.jpg",
]
"""What `LabelStudio` has: an image each time."""


class LabelStudio(BaseHTTPRequestHandler):
    """Gives the image to whoever has the key, as Label Studio does."""

    asked, may_answer = threading.Semaphore(0), threading.Semaphore(0)
    """Slow images: released when one is asked for; acquired before it is answered."""

    def do_GET(self):
        if self.path.endswith("slow.jpg"):
            self.asked.release()
            self.may_answer.acquire(timeout=60)
        known = self.headers.get("Authorization") in ("Token key of setup", "Bearer for minutes")
        self.send_response(200 if known and self.path in PATHS else 401)
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


@pytest.fixture(autouse=True)
def no_key_of_the_environment(monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)


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
    data = request if request is None or isinstance(request, bytes) else json.dumps(request).encode()
    headers = {"Content-Type": "application/json", **headers}
    try:
        with urlopen(Request(url, data, headers), timeout=60) as answer:
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
    assert regions(backend, point(50, 50, positive=False)) == []
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


@pytest.mark.parametrize(
    "name",
    [
        "/data/upload/1/my photo.jpg",
        "/data/upload/1/my%20photo.jpg",
        "/data/upload/1/Straße.jpg",
        "/data/upload/1/100%.jpg",
        "/data/local-files/?d=a b.jpg",
    ],
)
def test_names_with_spaces_and_accents_are_encoded_once(demo, running, name):
    images = Images(LabelStudioSettings(label_studio=running(ThreadingHTTPServer(("127.0.0.1", 0), LabelStudio))))
    images.key = "key of setup"
    assert np.array_equal(images.open(demo, name).image.pixels, load_image(SCENE).pixels)


def test_an_answer_that_is_not_http_fails_with_the_reason(demo):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"220 this is mail\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        images = Images(LabelStudioSettings(label_studio=f"http://127.0.0.1:{listening.getsockname()[1]}"))
        with pytest.raises(ImageError, match=r"a\.jpg cannot be fetched"):
            images.open(demo, "/data/upload/1/a.jpg")
        thread.join()


def test_while_an_image_is_fetched_others_are_answered_and_it_is_fetched_once(backend):
    image = "/data/upload/1/slow.jpg"
    call(f"{backend}/setup", {"schema": BRUSHES, "access_token": "key of setup"})
    with ThreadPoolExecutor() as pool:
        try:
            waiting = [pool.submit(ask, backend, image=image) for _ in range(2)]
            assert LabelStudio.asked.acquire(timeout=60)
            assert len(regions(backend)) == 3  # would wait for the other image, and fail after 60 seconds
        finally:
            LabelStudio.may_answer.release(2)
        assert [status for status, _ in (each.result() for each in waiting)] == [200, 200]
    assert not LabelStudio.asked.acquire(blocking=False)


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
        ("http://[x/a.jpg", "is not the address of an image"),
        ("/data/local-files/?d=a%00b.jpg", r"a\x00b.jpg is not the name of a file"),
        ("/data/upload/1/\ud800.jpg", "cannot be fetched"),
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
    (tmp_path / "outside.jpg").write_bytes(SCENE.read_bytes())
    for way in ("../outside.jpg", "inner/../../outside.jpg"):
        with pytest.raises(ImageError, match="is not in the folder"):
            images.open(demo, f"/data/local-files/?d={way}")
    with pytest.raises(ImageError, match=re.escape(str(tmp_path / "images" / "etc"))):  # Label Studio drops the slash
        images.open(demo, "/data/local-files/?d=/etc/passwd")


@pytest.mark.parametrize("name", [unicodedata.normalize("NFD", "über.jpg"), "a\\b.jpg", "a b+c.jpg", "C:/d.jpg"])
def test_local_files_have_the_names_that_the_disk_has(tmp_path, demo, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(SCENE.read_bytes())
    images = Images(LabelStudioSettings(images=tmp_path))
    assert images.open(demo, f"/data/local-files/?d={quote(name)}").image.hw == load_image(SCENE).hw


def test_of_several_tasks_one_that_fails_gets_no_prediction(backend):
    names = [f"/data/local-files/?d={SCENE.name}", "/data/local-files/?d=no.jpg", "http://[x/a.jpg", 7]
    tasks = [{"id": number, "data": {"picture": name}} for number, name in enumerate(names)]
    tasks += ["one", {"data": "two"}, {"data": None}]
    status, answer = call(f"{backend}/predict", {"tasks": tasks, "label_config": BRUSHES})
    assert status == 200
    assert len(answer["results"][0]["result"]) == 3
    assert answer["results"][1:] == [[]] * 6


def test_a_label_with_a_word_that_the_model_does_not_know_is_left_out(backend, caplog):
    unknown = BRUSHES.replace("<Label ", '<Label value="unicorn"/><Label ', 1)
    assert [each["value"] for each in regions(backend, config=unknown)] == [each["value"] for each in regions(backend)]
    assert "a label is left out: the demo model does not know 'unicorn'" in caplog.text
    only = '<View><Image name="image" value="$picture"/><BrushLabels name="b" toName="image"><Label value="unicorn"/>'
    status, answer = ask(backend, config=f"{only}</BrushLabels></View>")
    assert (status, "does not know 'unicorn'" in answer["error"]) == (400, True)


def test_wrong_requests_are_answered_with_the_reason(backend):
    assert call(f"{backend}/nowhere")[0] == 404
    assert call(f"{backend}/predict", {"tasks": []}) == (400, {"error": "the request has no text 'label_config'"})
    assert call(f"{backend}/predict", [1])[0] == 400
    for body in (b"[" * 100_000, b"\xff", b'{"tasks": ' + b"9" * 5000 + b"}"):
        status, answer = call(f"{backend}/predict", body)
        assert status == 400
        assert "the request is not JSON" in answer["error"]
    for wrong, message in (
        ({"tasks": "all"}, "the request has no list of tasks"),
        ({"tasks": ["one"]}, "a task must be an object, got a text"),
        ({"tasks": [{"data": [1]}]}, "the data of a task must be an object, got a list"),
        ({"tasks": [], "params": [1]}, "params must be an object, got a list"),
        ({"tasks": [], "params": {"context": "x"}}, "the context of a request must be an object, got a text"),
    ):
        assert call(f"{backend}/predict", {"label_config": BRUSHES, **wrong}) == (400, {"error": message})
    assert call(f"{backend}/predict", {}, **{"Content-Type": "text/plain"})[0] == 415


def test_an_unexpected_error_is_answered_and_logged(demo, running, monkeypatch, caplog):
    def fail(*_, **__):
        raise ZeroDivisionError("of the test")

    address = running(server(demo, LabelStudioSettings(port=0, images=SCENE.parent)))
    monkeypatch.setattr(module, "predict", fail)
    status, answer = ask(address)
    assert (status, "see its log" in answer["error"]) == (500, True)
    assert "ZeroDivisionError: of the test" in caplog.text


def test_with_a_password_others_are_refused(demo, running):
    address = running(server(demo, LabelStudioSettings(port=0, auth="ann:secret")))
    assert call(f"{address}/health")[0] == 401
    assert call(f"{address}/predict", b" " * (8 << 20))[0] == 401  # read after it is answered, and dropped
    known = base64.b64encode(b"ann:secret").decode()
    assert call(f"{address}/health", Authorization=f"Basic {known}")[0] == 200
    assert call(f"{address}/health", Authorization=f"Basic {known}", Host="backend.example")[0] == 200


def test_without_a_password_other_names_of_this_machine_are_refused(backend):
    for name in ("evil.example:9090", "localhost.evil.example", ""):
        status, answer = call(f"{backend}/setup", {"schema": BRUSHES, "access_token": "theirs"}, Host=name)
        assert status == 421
        assert "--auth NAME:PASSWORD" in answer["error"]
    for name in ("localhost:9090", "LOCALHOST", "[::1]:9090", "192.168.1.7"):
        assert call(f"{backend}/health", Host=name)[0] == 200


def sent(address: str, text: str) -> socket.socket:
    """A connection to the backend, after a text was sent."""
    connection = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=60)
    connection.sendall(text.replace("\n", "\r\n").encode())
    return connection


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("POST /predict", "Content-Type: application/json", 401),
        ("POST /nowhere", "Authorization: Basic YTpi", 404),
        ("POST /predict", "Authorization: Basic YTpi", 415),
        ("POST /predict", "Authorization: Basic YTpi\nContent-Type: application/json\nContent-Length: 9999999999", 413),
    ],
)
def test_the_body_of_a_refused_request_is_not_waited_for(demo, running, request_line, headers, status):
    address = running(server(demo, LabelStudioSettings(port=0, auth="a:b")))
    length = "" if "Length" in headers else "\nContent-Length: 60000000"
    with sent(address, f"{request_line} HTTP/1.1\n{headers}{length}\n\n") as connection:
        assert connection.recv(12) == f"HTTP/1.1 {status}".encode()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("GET /hea", b""),
        (
            "POST /setup HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 9\n\n{",
            b"HTTP/1.1 408",
        ),
    ],
)
def test_a_connection_that_says_nothing_more_is_ended(demo, running, monkeypatch, text, answer):
    monkeypatch.setattr(module, "SECONDS", 0.1)
    listening = server(demo, LabelStudioSettings(port=0))
    with sent(f"http://127.0.0.1:{listening.server_address[1]}", text) as connection:
        running(listening)
        assert connection.recv(12) == answer


def test_only_so_many_requests_are_answered_at_once(demo, running, monkeypatch):
    monkeypatch.setattr(module, "MOST_REQUESTS", 1)
    address = running(server(demo, LabelStudioSettings(port=0)))
    with sent(address, "GET /hea") as first, sent(address, "GET /health HTTP/1.1\nHost: localhost\n\n") as second:
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.recv(12)
        first.close()
        second.settimeout(60)
        assert second.recv(12) == b"HTTP/1.1 200"


def test_bad_settings_are_refused(demo):
    with pytest.raises(SettingsError, match="give --auth"):
        server(demo, LabelStudioSettings(host="0.0.0.0", port=0))
    for bad in ({"auth": "ann"}, {"port": 70000}, {"label_studio": "localhost:8080"}, {"label_studio": "http://[x"}):
        with pytest.raises(SettingsError):
            LabelStudioSettings(**bad)
    with server(demo, LabelStudioSettings(port=0)) as first, pytest.raises(SettingsError, match="choose another"):
        server(demo, LabelStudioSettings(port=first.server_address[1]))


def test_the_end_waits_for_answers_and_not_for_silent_senders(demo, monkeypatch):
    """Python aborts a process that ends while a thread uses torch."""
    monkeypatch.setattr(module, "SECONDS", 3600.0)  # a silent sender is hardly ever given up
    answering, may_answer = threading.Event(), threading.Event()

    def health(*_):
        answering.set()
        may_answer.wait()
        return {}

    before = set(threading.enumerate())
    with server(demo, LabelStudioSettings(port=0)) as listening:
        listening.routes["GET", "/health"] = health
        with ThreadPoolExecutor(2) as threads, socket.create_connection(listening.server_address[:2]) as silent:
            loop = threads.submit(listening.serve_forever)
            silent.sendall(b"POST /predict HTTP/1.1\r\n")
            answer = threads.submit(call, f"http://127.0.0.1:{listening.server_address[1]}/health")
            answering.wait()
            listening.shutdown()
            loop.result()
            threading.Timer(0.2, may_answer.set).start()
            listening.server_close()
            assert may_answer.is_set()
            assert answer.result() == (200, {})
    assert not [each for each in set(threading.enumerate()) - before if "process_request_thread" in each.name]


def test_the_command_serves_until_it_is_stopped(tmp_path):
    command = [sys.executable, "-u", "-m", "text2seg", "serve", "label-studio", "--model", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        address = next(re.findall(r"http://\S+", line)[0] for line in process.stdout if "backend" in line)
        assert call(f"{address}/health")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
