"""The app on the network: refused requests, access to files, passwords, limits, and the headers of the page."""

from __future__ import annotations

import base64
import io
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from app_builders import SCENE, START_SECONDS, live_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image as PillowImage

from text2seg.app import open_pages, serve
from text2seg.app.checks import check_effort, check_request, read_image, read_pipeline_settings, visitors_folder
from text2seg.app.folder.visitors import VisitorJobs
from text2seg.app.settings import PASSWORD_VARIABLE, AppSettings
from text2seg.cli import main
from text2seg.config import Settings
from text2seg.errors import ImageError, QueryError, SettingsError
from text2seg.queries import parse_queries

FILE = {"_type": "gradio.FileData"}
BASE = "/gradio_api"


@pytest.fixture(scope="module")
def url(demo):
    with live_app(demo, upload_mb=1, folder_mb=2) as address:
        yield address


@pytest.fixture(scope="module")
def http(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def upload(http, content: bytes, name: str = "one.jpg") -> str:
    answer = http.post(f"{BASE}/upload", files={"files": (name, content)})
    answer.raise_for_status()
    return answer.json()[0]


def call_segment(http, **image) -> httpx.Response:
    """Post a call of the public function `segment` with these fields of the image."""
    return http.post(f"{BASE}/call/segment", json={"data": [image, "sheep", None, "rle"]})


def outcome(http, answer: httpx.Response) -> str:
    """Return the final event of a call from the queue."""
    answer.raise_for_status()
    return http.get(f"{BASE}/call/segment/{answer.json()['event_id']}").text


class TestFilesOfTheServer:
    @pytest.mark.parametrize("meta", [{"meta": FILE}, {}], ids=["file", "bare"])
    @pytest.mark.parametrize(
        "image",
        [
            {"path": "/etc/passwd"},
            {"path": "/etc/../etc/passwd"},
            {"path": "file:///etc/passwd"},
            {"path": "setup.cfg"},
            {"path": str(SCENE)},
            {"path": "http://127.0.0.1:9/one.png"},
            {"path": "https://example.org/one.png"},
            {"path": None, "url": "http://127.0.0.1:9/one.png"},
            {"path": None, "url": "//example.org/one.png"},
            {"path": None, "url": "http://[/one.png"},
        ],
        ids=str,
    )
    def test_a_request_with_a_path_or_url_is_refused(self, http, image, meta):
        answer = call_segment(http, **image, **meta)
        assert answer.status_code == 403
        assert "not uploaded here" in answer.json()["error"]

    def test_an_event_of_the_page_with_a_path_is_refused(self, http):
        """No event of the page opens a file."""
        for event in http.get("/config").json()["dependencies"]:
            data = [{"path": "/etc/passwd", "meta": FILE} for _ in event["inputs"]] or [{"path": "/etc/passwd"}]
            body = {"data": data, "fn_index": event["id"], "session_hash": "attacker"}
            assert http.post(f"{BASE}/queue/join", json=body).status_code == 403

    def test_a_path_nested_in_other_values_is_refused(self, http):
        hidden = {"a": [{"b": [[{"path": "/etc/passwd"}]]}]}
        answer = http.post(f"{BASE}/call/segment", json={"data": [hidden, "sheep", None, "rle"]})
        assert answer.status_code == 403

    @pytest.mark.parametrize("field", ["path", "url"])
    def test_a_body_with_a_repeated_key_is_refused(self, http, field):
        """If a key is repeated, one value could be checked and the other used."""
        mine = upload(http, SCENE.read_bytes())
        twice = f'{{"data": [{{"{field}": "/etc/passwd", "path": "{mine}"}}, "sheep", null, "rle"]}}'
        status = http.post(f"{BASE}/call/segment", content=twice, headers={"content-type": "application/json"})
        assert status.status_code in (200, 403)
        if status.status_code == 200:
            assert "passwd" not in outcome(http, status)

    @pytest.mark.parametrize("place", ["/etc/passwd", "setup.cfg", "http://127.0.0.1:9/", "file:///etc/passwd", "../x"])
    def test_files_of_the_server_cannot_be_fetched(self, http, place):
        for route in (f"{BASE}/file=", f"{BASE}/proxy=", f"{BASE}/file/", "/file="):
            assert http.get(route + place).status_code in (403, 404), route

    def test_a_path_out_of_the_folder_cannot_be_fetched(self, http):
        folder = visitors_folder()
        for place in (f"{folder}/../../etc/passwd", f"{folder}", f"{folder}/.", f"{folder}%00"):
            assert http.get(f"{BASE}/file={place}").status_code in (403, 404), place

    def test_a_path_in_settings_is_refused(self, http):
        given = {"settings": json.dumps({"target_image": "/etc/passwd"})}
        answer = http.post("/api/v1/explain/saliency", data=given, files={"image": SCENE.read_bytes()})
        assert answer.status_code == 400
        assert "not uploaded here" in answer.json()["error"]

    def test_a_url_from_a_gradio_client_is_refused(self, url):
        client = Client(url, verbose=False)
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            client.predict(image={"path": "http://127.0.0.1:9/one.png", "meta": FILE}, queries="a", api_name="/segment")
        with pytest.raises((AppError, httpx.HTTPError), match="not an image"):
            client.predict(image=handle_file("/etc/hostname"), queries="sheep", api_name="/segment")


class TestFilesOfVisitors:
    def test_uploads_have_unguessable_names(self, http):
        first, second = (upload(http, SCENE.read_bytes() + salt) for salt in (b"a", b"b"))
        for path in (first, second):
            assert path.startswith(f"{visitors_folder()}/")
            assert re.fullmatch(r"[0-9a-f]{64}", path.split("/")[-2])
            assert http.get(f"{BASE}/file={path}").status_code == 200
        assert first.split("/")[-2] != second.split("/")[-2]

    def test_the_upload_folder_is_private(self):
        assert visitors_folder().stat().st_mode & 0o077 == 0

    def test_the_upload_folder_cannot_be_listed(self, http):
        assert http.get(f"{BASE}/file={visitors_folder()}").status_code == 404

    def test_uploads_are_deleted_after_a_while_and_a_new_page_needs_none(self, demo, monkeypatch):
        assert serve.OFTEN_SECONDS <= serve.AGE_SECONDS <= 3600
        monkeypatch.setattr(serve, "OFTEN_SECONDS", 1)
        monkeypatch.setattr(serve, "AGE_SECONDS", 1)
        with live_app(demo) as url, httpx.Client(base_url=url, timeout=60) as http:
            mine = Path(upload(http, SCENE.read_bytes() + b"mine"))
            until = time.monotonic() + START_SECONDS
            while mine.exists() and time.monotonic() < until:
                time.sleep(0.5)
            assert not mine.exists()
            assert re.findall(rf"{visitors_folder()}/[^\"]+", http.get("/config").text) == []

    def test_html_uploads_are_served_as_downloads(self, http):
        path = upload(http, b"<script>alert(1)</script>", "page.html")
        answer = http.get(f"{BASE}/file={path}")
        assert answer.headers["content-type"].startswith("application/octet-stream")
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["x-content-type-options"] == "nosniff"


class TestOrigins:
    def test_requests_from_pages_of_other_sites_are_refused(self, http):
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://localhost:1"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        ):
            for route in ("/api/v1/segment", f"{BASE}/queue/join", f"{BASE}/upload"):
                assert http.post(route, headers=headers).status_code == 403, (headers, route)
            assert http.get("/api/v1/health", headers=headers).status_code == 403

    def test_a_link_from_another_site_opens_the_page(self, http):
        assert http.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200

    def test_unknown_host_names_are_refused(self, http):
        """A page of evil.example may let that name lead to this machine (DNS rebinding)."""
        headers = {"host": "evil.example", "origin": "http://evil.example"}
        assert http.get("/api/v1/health", headers=headers).status_code == 421
        for host in ("evil.example:7860", "127.0.0.1.evil.example", "", "[", "a:b:c"):
            assert http.get("/api/v1/health", headers={"host": host}).status_code in (400, 421), host
        for host in ("localhost:7860", "127.0.0.1", "[::1]:7860", "192.168.0.7:80"):
            assert http.get("/api/v1/health", headers={"host": host}).status_code == 200, host

    def test_requests_from_the_page_itself_are_accepted(self, url, http):
        assert http.get("/api/v1/health", headers={"origin": url, "sec-fetch-site": "same-origin"}).status_code == 200


@pytest.fixture(scope="module")
def guarded(demo):
    with live_app(demo, auth=("ann:se:cret", "bob:öffne")) as address:
        yield address


class TestPasswords:
    def test_every_route_needs_a_password(self, guarded):
        for method, route in (
            ("GET", "/"),
            ("GET", "/config"),
            ("GET", "/assets/index.js"),
            ("GET", f"{BASE}/heartbeat/abc"),
            ("GET", "/api/v1/health"),
            ("POST", f"{BASE}/upload"),
            ("POST", f"{BASE}/cancel"),
            ("POST", "/api/v1/segment"),
        ):
            answer = httpx.request(method, guarded + route)
            assert answer.status_code == 401, route
            assert answer.headers["www-authenticate"].startswith("Basic")

    @pytest.mark.parametrize("who", [("ann", "se:cret"), ("bob", "öffne")])
    def test_correct_passwords_are_accepted(self, guarded, who):
        token = base64.b64encode(":".join(who).encode()).decode()
        assert httpx.get(f"{guarded}/", headers={"authorization": f"Basic {token}"}).status_code == 200

    @pytest.mark.parametrize("who", [("ann", "secret"), ("ann", "öffne"), ("eve", ""), ("", "")])
    def test_wrong_passwords_are_refused(self, guarded, who):
        assert httpx.get(f"{guarded}/", auth=who).status_code == 401

    def test_a_gradio_client_can_use_a_password(self, guarded):
        client = Client(guarded, verbose=False, httpx_kwargs={"auth": ("ann", "se:cret")})
        assert any("/health" in str(name) for name in client.view_api(return_format="dict")["named_endpoints"])

    def test_passwords_come_from_the_environment(self, monkeypatch):
        monkeypatch.setenv(PASSWORD_VARIABLE, "geheim")
        assert AppSettings(auth=("ann", "bob:x")).users() == {"ann": "geheim", "bob": "x"}

    @pytest.mark.parametrize("auth", [("ann",), ("ann:",), (":x",), ("ann:x", "ann:y")])
    def test_invalid_users_or_passwords_are_refused(self, monkeypatch, auth):
        monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
        with pytest.raises(SettingsError, match="auth"):
            AppSettings(auth=auth)


class TestLimits:
    def test_a_large_upload_is_refused_with_a_message(self, http):
        for route, field, megabytes in ((f"{BASE}/upload", "files", 2), ("/api/v1/segment", "image", 1)):
            answer = http.post(route, files={field: b"x" * (megabytes * 1_000_000 + 200_000)})
            assert answer.status_code == 413
            assert f"{megabytes} MB at most" in answer.json()["error"]

    def test_a_large_upload_without_a_length_is_refused(self, http):
        def chunks():
            yield b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
            for _ in range(40):
                yield b"x" * 100_000

        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert http.post("/api/v1/segment", content=chunks(), headers=headers).status_code == 413

    def test_a_large_event_is_refused(self, http):
        body = json.dumps({"data": ["x" * 21_000_000]}).encode()
        assert http.post(f"{BASE}/queue/join", content=body).status_code == 413

    @pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff"])
    def test_invalid_json_is_refused(self, http, body):
        assert http.post(f"{BASE}/queue/join", content=body).status_code == 400

    def test_an_image_with_too_many_pixels_is_not_decoded(self, http):
        file = io.BytesIO()
        PillowImage.new("1", (10_000, 6_000)).save(file, "PNG")
        answer = http.post("/api/v1/segment", data={"queries": "sheep"}, files={"image": ("sky.png", file.getvalue())})
        assert answer.status_code == 400
        assert answer.json()["error"] == "sky.png is 10000 x 6000 pixels, over the limit of 50 million; make it smaller"

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"", "not an image"), (b"no image", "not an image"), (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image")],
    )
    def test_a_file_that_is_not_an_image_is_refused(self, content, words):
        with pytest.raises(ImageError, match=words):
            read_image(content, AppSettings(), name="../x/one.png")

    def test_a_truncated_image_is_refused_by_name(self):
        with pytest.raises(ImageError, match=r"one\.jpg cannot be decoded"):
            read_image(SCENE.read_bytes()[:2000], AppSettings(), name="/tmp/one.jpg")

    def test_a_deleted_file_has_an_error_message(self, tmp_path):
        with pytest.raises(ImageError, match=r"one\.png has been deleted"):
            read_image(tmp_path / "one.png", AppSettings())

    def test_an_image_is_upright_and_keeps_only_its_name(self):
        turned = PillowImage.fromarray(np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3))
        exif = turned.getexif()
        exif[0x0112] = 6
        file = io.BytesIO()
        turned.save(file, "PNG", exif=exif)
        image = read_image(file.getvalue(), AppSettings(), name="C:\\photos\\one.png", image_id=4)
        assert (image.hw, image.file_name, image.image_id) == ((32, 24), "one.png", 4)

    def test_the_work_of_one_request_is_limited(self):
        queries, hw = parse_queries("a, b"), (360, 270)
        check_request(queries, Settings(), hw)
        for given, error in (
            ({"tiles": {"tile": 32}}, "tiles"),
            ({"maps": {"input_size": 2048}}, "input size"),
            ({"maps": {"input_size": [64, 2048]}}, "input size"),
            ({"maps": {"templates": ["{}"] * 101}}, "templates"),
        ):
            with pytest.raises(SettingsError, match=error):
                check_request(queries, read_pipeline_settings(given), hw)
        with pytest.raises(QueryError, match="101 queries"):
            check_request(queries[:1] * 101, Settings(), hw)

    def test_whole_numbers_are_limited_by_their_default(self):
        from text2seg.explain.opinion import OpinionSettings

        check_effort(OpinionSettings(seed=2**60, steps=6000))
        with pytest.raises(SettingsError, match="candidates: must be at most 320 in the app, got 321"):
            check_effort(OpinionSettings(candidates=321))


class TestSettings:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"port": 70_000},
            {"workers": 0},
            {"cache_mb": -1},
            {"public_url": "example.org"},
            {"public_url": "ftp://example.org"},
            {"public_url": "http://[x"},
            {"upload_mb": 0},
        ],
    )
    def test_invalid_app_settings_are_refused(self, wrong):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            AppSettings(**wrong)

    def test_root_must_be_a_folder(self, tmp_path):
        with pytest.raises(SettingsError, match="root"):
            AppSettings(root=tmp_path / "none")

    @pytest.mark.parametrize(
        ("settings", "may"),
        [
            ({}, True),
            ({"host": "0.0.0.0"}, False),
            ({"host": "::1"}, True),
            ({"public_url": "https://example.org"}, False),
            ({"host": "0.0.0.0", "manage_models": "always"}, True),
            ({"manage_models": "never"}, False),
        ],
    )
    def test_only_a_private_app_switches_models(self, settings, may):
        assert AppSettings(**settings).may_manage_models is may

    def test_the_app_listens_on_loopback_and_takes_the_next_free_port(self):
        with AppSettings().listening() as first, AppSettings().listening() as second:
            assert first.getsockname()[0] == second.getsockname()[0] == "127.0.0.1"
            assert first.getsockname()[1] < second.getsockname()[1]

    def test_a_port_in_use_is_a_one_line_error(self, capsys):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            assert main(["app", "--port", str(taken.getsockname()[1])]) == 2
        assert "choose another with --host or --port" in capsys.readouterr().err


class TestThePage:
    def test_the_page_has_a_content_security_policy(self, http):
        policy = http.get("/").headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert "*" not in policy

    def test_the_page_loads_fonts_styles_and_scripts_from_its_host_only(self, http):
        html = http.get("/").text
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)\"", html)
        assert loaded
        assert not [address for address in loaded if address.startswith(("http", "//"))]
        assert not re.findall(r"url\(.?(?:http|//)|@import", http.get("/theme.css").text)

    def test_history_and_analytics_of_gradio_are_off(self, http):
        config = http.get("/config").json()
        assert config["analytics_enabled"] is False
        assert not config.get("run_history")
        assert config.get("footer_links") == []
        for route in ("runs", "deep_link", "vibe-code", "openapi.json", "token", "custom_component/1/client/x/y"):
            assert http.get(f"{BASE}/{route}").status_code == 404
        for route in ("component_server", "process_recording", "vibe-edit", "stream/1", "run-history/connect"):
            assert http.post(f"{BASE}/{route}", json={}).status_code == 404

    def test_only_documented_functions_are_public(self, http):
        assert set(http.get(f"{BASE}/info").json()["named_endpoints"]) == {"/segment", "/explain", "/health"}

    def test_the_page_has_every_style_sheet_and_script_of_its_tabs(self):
        assert serve.style_sheets()[0].parent.name == "assets"
        assert serve.scripts().count("<script") == len([*serve.ROOM.rglob("*.js")])

    def test_behind_a_proxy_the_page_names_the_public_address(self, demo):
        public = "https://seg.example.org/tool"
        with live_app(demo, public_url=public) as url:
            headers = {"host": "seg.example.org", "origin": "https://seg.example.org"}
            config = httpx.get(f"{url}/config", headers=headers).json()
            assert config["root"] == public
            assert httpx.get(f"{url}/api/v1/health", headers={"host": "other.example.org"}).status_code == 421


class TestPresence:
    """Pages say that they are open, and need no stream for it."""

    @pytest.fixture
    def left(self, demo, monkeypatch):
        """Address of an app, and the pages that it has forgotten."""
        gone: queue.Queue[str] = queue.Queue()
        monkeypatch.setattr(VisitorJobs, "forget", lambda jobs, page: gone.put(page))
        with live_app(demo) as address:
            yield address, gone

    def test_a_page_that_leaves_is_forgotten(self, left):
        address, gone = left
        for page in ("one", "other"):
            assert httpx.post(f"{address}{BASE}/heartbeat/{page}").status_code == 204
        httpx.post(f"{address}{BASE}/heartbeat/one")  # again
        assert httpx.delete(f"{address}{BASE}/heartbeat/one").status_code == 204
        assert gone.get(timeout=10) == "one"
        assert gone.empty()

    def test_a_page_that_falls_silent_is_forgotten(self, left, monkeypatch):
        address, gone = left
        monkeypatch.setattr(open_pages, "GONE_SECONDS", 0.2)
        httpx.post(f"{address}{BASE}/heartbeat/one")
        assert gone.get(timeout=10) == "one"

    def test_an_app_that_ends_forgets_its_pages(self, demo, monkeypatch):
        gone: queue.Queue[str] = queue.Queue()
        monkeypatch.setattr(VisitorJobs, "forget", lambda jobs, page: gone.put(page))
        with live_app(demo) as address:
            httpx.post(f"{address}{BASE}/heartbeat/one")
        assert gone.get_nowait() == "one"

    def test_the_oldest_page_makes_room(self, left, monkeypatch):
        address, gone = left
        monkeypatch.setattr(open_pages, "MOST", 2)
        for page in ("one", "two", "one", "three"):
            httpx.post(f"{address}{BASE}/heartbeat/{page}")
        assert gone.get(timeout=10) == "two"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_app_without_an_error(number):
    command = [sys.executable, "-m", "text2seg", "app", "--model", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next(line.split()[2] for line in lines if "open http" in line)
        assert httpx.get(address).is_success
        process.send_signal(number)
        said = [line for line in lines if line.strip()]
        assert process.wait() == 0, said
    assert not said
