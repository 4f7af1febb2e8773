"""The app as others meet it on the network: what it refuses, what it never opens, and what it says about itself."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from app_builders import SCENE, START_SECONDS, live_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image as PillowImage

from text2seg.app import page, theme
from text2seg.app.limits import check_effort, check_request, read_picture, read_pipeline_settings
from text2seg.app.serve import listening
from text2seg.app.settings import PASSWORD_VARIABLE, AppSettings
from text2seg.app.uploads import visitors_folder
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


def ask(http, **image) -> httpx.Response:
    """Call the public function that takes a picture, by hand."""
    return http.post(f"{BASE}/call/segment", json={"data": [image, "sheep", None, "rle"]})


def outcome(http, answer: httpx.Response) -> str:
    """What the queue says of a call in the end."""
    answer.raise_for_status()
    return http.get(f"{BASE}/call/segment/{answer.json()['event_id']}").text


class TestFilesOfThisMachine:
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
    def test_are_not_opened_for_a_request_and_neither_are_urls(self, http, image, meta):
        answer = ask(http, **image, **meta)
        assert answer.status_code == 403
        assert "not uploaded here" in answer.json()["error"]

    def test_nor_by_way_of_the_page_s_own_events(self, http):
        """Every event that takes something: none gets as far as a file."""
        for event in http.get("/config").json()["dependencies"]:
            data = [{"path": "/etc/passwd", "meta": FILE} for _ in event["inputs"]] or [{"path": "/etc/passwd"}]
            body = {"data": data, "fn_index": event["id"], "session_hash": "attacker"}
            assert http.post(f"{BASE}/queue/join", json=body).status_code == 403

    def test_nor_deep_inside_other_values(self, http):
        hidden = {"a": [{"b": [[{"path": "/etc/passwd"}]]}]}
        answer = http.post(f"{BASE}/call/segment", json={"data": [hidden, "sheep", None, "rle"]})
        assert answer.status_code == 403

    @pytest.mark.parametrize("field", ["path", "url"])
    def test_a_body_is_read_the_same_way_by_everyone(self, http, field):
        """Of two values under one name one could be checked and the other used."""
        mine = upload(http, SCENE.read_bytes())
        twice = f'{{"data": [{{"{field}": "/etc/passwd", "path": "{mine}"}}, "sheep", null, "rle"]}}'
        status = http.post(f"{BASE}/call/segment", content=twice, headers={"content-type": "application/json"})
        assert status.status_code in (200, 403)
        if status.status_code == 200:
            assert "passwd" not in outcome(http, status)

    @pytest.mark.parametrize("place", ["/etc/passwd", "setup.cfg", "http://127.0.0.1:9/", "file:///etc/passwd", "../x"])
    def test_cannot_be_fetched(self, http, place):
        for route in (f"{BASE}/file=", f"{BASE}/proxy=", f"{BASE}/file/", "/file="):
            assert http.get(route + place).status_code in (403, 404), route

    def test_not_even_by_a_way_round_the_folder(self, http):
        folder = visitors_folder()
        for place in (f"{folder}/../../etc/passwd", f"{folder}", f"{folder}/.", f"{folder}%00"):
            assert http.get(f"{BASE}/file={place}").status_code in (403, 404), place

    def test_in_settings_are_refused_too(self, http):
        given = {"settings": json.dumps({"target_image": "/etc/passwd"})}
        answer = http.post("/api/explain/saliency", data=given, files={"image": SCENE.read_bytes()})
        assert answer.status_code == 400
        assert "not uploaded here" in answer.json()["error"]

    def test_nor_do_clients_get_round_it(self, url):
        client = Client(url, verbose=False)
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            client.predict(image={"path": "http://127.0.0.1:9/one.png", "meta": FILE}, queries="a", api_name="/segment")
        with pytest.raises((AppError, httpx.HTTPError), match="no image"):
            client.predict(image=handle_file("/etc/hostname"), queries="sheep", api_name="/segment")


class TestFilesOfVisitors:
    def test_have_names_that_nobody_guesses(self, http):
        first, second = (upload(http, SCENE.read_bytes() + salt) for salt in (b"a", b"b"))
        for path in (first, second):
            assert path.startswith(f"{visitors_folder()}/")
            assert re.fullmatch(r"[0-9a-f]{64}", path.split("/")[-2])
            assert http.get(f"{BASE}/file={path}").status_code == 200
        assert first.split("/")[-2] != second.split("/")[-2]

    def test_lie_where_only_this_user_looks(self):
        assert visitors_folder().stat().st_mode & 0o077 == 0

    def test_cannot_be_listed(self, http):
        assert http.get(f"{BASE}/file={visitors_folder()}").status_code == 404

    def test_are_deleted_after_a_while_and_examples_are_not(self, demo, monkeypatch):
        assert page.OFTEN_SECONDS <= page.AGE_SECONDS <= 3600
        monkeypatch.setattr(page, "OFTEN_SECONDS", 1)
        monkeypatch.setattr(page, "AGE_SECONDS", 1)
        with live_app(demo) as url, httpx.Client(base_url=url, timeout=60) as http:
            mine = Path(upload(http, SCENE.read_bytes() + b"mine"))
            until = time.monotonic() + START_SECONDS
            while mine.exists() and time.monotonic() < until:
                time.sleep(0.5)
            assert not mine.exists()
            examples = set(re.findall(rf"{visitors_folder()}/[^\"]+", http.get("/config").text))
            assert len(examples) >= 3
            for path in examples:
                assert http.get(f"{BASE}/file={path}").status_code == 200

    def test_are_downloads_where_a_browser_would_run_them(self, http):
        path = upload(http, b"<script>alert(1)</script>", "page.html")
        answer = http.get(f"{BASE}/file={path}")
        assert answer.headers["content-type"].startswith("application/octet-stream")
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["x-content-type-options"] == "nosniff"


class TestWhoMayAsk:
    def test_pages_of_other_sites_may_not(self, http):
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://localhost:1"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        ):
            for route in ("/api/segment", f"{BASE}/queue/join", f"{BASE}/upload"):
                assert http.post(route, headers=headers).status_code == 403, (headers, route)
            assert http.get("/api/health", headers=headers).status_code == 403

    def test_a_link_from_another_site_may(self, http):
        assert http.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200

    def test_names_that_are_not_ours_are_refused(self, http):
        """A page of evil.example may let that name lead to this machine (DNS rebinding)."""
        headers = {"host": "evil.example", "origin": "http://evil.example"}
        assert http.get("/api/health", headers=headers).status_code == 421
        for host in ("evil.example:7860", "127.0.0.1.evil.example", "", "[", "a:b:c"):
            assert http.get("/api/health", headers={"host": host}).status_code in (400, 421), host
        for host in ("localhost:7860", "127.0.0.1", "[::1]:7860", "192.168.0.7:80"):
            assert http.get("/api/health", headers={"host": host}).status_code == 200, host

    def test_its_own_page_may(self, url, http):
        assert http.get("/api/health", headers={"origin": url, "sec-fetch-site": "same-origin"}).status_code == 200


@pytest.fixture(scope="module")
def guarded(demo):
    with live_app(demo, auth=("ann:se:cret", "bob:öffne")) as address:
        yield address


class TestPasswords:
    def test_guard_every_route(self, guarded):
        for method, route in (
            ("GET", "/"),
            ("GET", "/config"),
            ("GET", "/assets/index.js"),
            ("GET", f"{BASE}/heartbeat/abc"),
            ("GET", "/api/health"),
            ("POST", f"{BASE}/upload"),
            ("POST", f"{BASE}/cancel"),
            ("POST", "/api/segment"),
        ):
            answer = httpx.request(method, guarded + route)
            assert answer.status_code == 401, route
            assert answer.headers["www-authenticate"].startswith("Basic")

    @pytest.mark.parametrize("who", [("ann", "se:cret"), ("bob", "öffne")])
    def test_let_the_right_ones_in(self, guarded, who):
        token = base64.b64encode(":".join(who).encode()).decode()
        assert httpx.get(f"{guarded}/", headers={"authorization": f"Basic {token}"}).status_code == 200

    @pytest.mark.parametrize("who", [("ann", "secret"), ("ann", "öffne"), ("eve", ""), ("", "")])
    def test_and_no_others(self, guarded, who):
        assert httpx.get(f"{guarded}/", auth=who).status_code == 401

    def test_are_told_to_clients(self, guarded):
        client = Client(guarded, verbose=False, httpx_kwargs={"auth": ("ann", "se:cret")})
        assert any("/health" in str(name) for name in client.view_api(return_format="dict")["named_endpoints"])

    def test_come_from_the_environment_too(self, monkeypatch):
        monkeypatch.setenv(PASSWORD_VARIABLE, "geheim")
        assert AppSettings(auth=("ann", "bob:x")).users() == {"ann": "geheim", "bob": "x"}

    @pytest.mark.parametrize("auth", [("ann",), ("ann:",), (":x",), ("ann:x", "ann:y")])
    def test_that_are_none_are_refused(self, monkeypatch, auth):
        monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
        with pytest.raises(SettingsError, match="auth"):
            AppSettings(auth=auth)


class TestLimits:
    def test_a_large_upload_is_refused_in_words(self, http):
        for route, field, megabytes in ((f"{BASE}/upload", "files", 2), ("/api/segment", "image", 1)):
            answer = http.post(route, files={field: b"x" * (megabytes * 1_000_000 + 200_000)})
            assert answer.status_code == 413
            assert f"{megabytes} MB at most" in answer.json()["error"]

    def test_also_where_its_length_is_not_told(self, http):
        def chunks():
            yield b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
            for _ in range(40):
                yield b"x" * 100_000

        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert http.post("/api/segment", content=chunks(), headers=headers).status_code == 413

    def test_a_large_event_is_refused(self, http):
        body = json.dumps({"data": ["x" * 21_000_000]}).encode()
        assert http.post(f"{BASE}/queue/join", content=body).status_code == 413

    @pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff"])
    def test_what_is_no_json_is_refused(self, http, body):
        assert http.post(f"{BASE}/queue/join", content=body).status_code == 400

    def test_a_picture_of_too_many_pixels_is_not_decoded(self, http):
        file = io.BytesIO()
        PillowImage.new("1", (10_000, 6_000)).save(file, "PNG")
        answer = http.post("/api/segment", data={"queries": "sheep"}, files={"image": ("sky.png", file.getvalue())})
        assert answer.status_code == 400
        assert answer.json()["error"] == "sky.png is 10000 x 6000 pixels, over the limit of 50 million"

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"", "no image"), (b"no image", "no image"), (b"%!PS-Adobe-3.0 EPSF-3.0", "no image")],
    )
    def test_what_is_no_picture_is_refused(self, content, words):
        with pytest.raises(ImageError, match=words):
            read_picture(content, AppSettings(), name="../x/one.png")

    def test_a_picture_that_is_cut_short_is_refused_by_its_name(self):
        with pytest.raises(ImageError, match=r"one\.jpg cannot be decoded"):
            read_picture(SCENE.read_bytes()[:2000], AppSettings(), name="/tmp/one.jpg")

    def test_a_file_that_is_gone_is_missed_in_words(self, tmp_path):
        with pytest.raises(ImageError, match=r"one\.png is not here any more"):
            read_picture(tmp_path / "one.png", AppSettings())

    def test_a_picture_is_upright_and_keeps_its_name_only(self):
        turned = PillowImage.fromarray(np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3))
        exif = turned.getexif()
        exif[0x0112] = 6
        file = io.BytesIO()
        turned.save(file, "PNG", exif=exif)
        image = read_picture(file.getvalue(), AppSettings(), name="C:\\photos\\one.png", image_id=4)
        assert (image.hw, image.file_name, image.image_id) == ((32, 24), "one.png", 4)

    def test_one_request_asks_for_so_much_work(self):
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

    def test_whole_numbers_are_bounded_by_what_is_usual(self):
        from text2seg.explain.catalogue.opinion import OpinionSettings

        check_effort(OpinionSettings(seed=2**60, steps=6000))
        with pytest.raises(SettingsError, match="Candidates: 320 is the most here, got 321"):
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
            {"upload_mb": 0},
        ],
    )
    def test_that_make_no_sense_are_refused(self, wrong):
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
    def test_only_who_is_alone_changes_the_models(self, settings, may):
        assert AppSettings(**settings).may_manage_models is may

    def test_it_listens_on_loopback_and_takes_the_next_free_port(self):
        with listening(AppSettings()) as first, listening(AppSettings()) as second:
            assert first.getsockname()[0] == second.getsockname()[0] == "127.0.0.1"
            assert first.getsockname()[1] < second.getsockname()[1]

    def test_a_port_that_is_taken_is_one_line(self, capsys):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            assert main(["app", "--port", str(taken.getsockname()[1])]) == 1
        assert "choose others with --host and --port" in capsys.readouterr().err


class TestThePage:
    def test_tells_browsers_what_it_may_do(self, http):
        policy = http.get("/").headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert "*" not in policy

    def test_names_no_other_host_for_fonts_styles_or_scripts(self, http):
        html = http.get("/").text
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)\"", html)
        assert loaded
        assert not [address for address in loaded if address.startswith(("http", "//"))]
        assert not re.findall(r"url\(.?(?:http|//)|@import", http.get("/theme.css").text)

    def test_has_neither_gradio_s_history_nor_its_analytics(self, http):
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

    def test_has_every_style_sheet_and_script_of_its_tabs(self):
        assert theme.style_sheets()[0].parent.name == "assets"
        assert theme.scripts().count("<script") == len([*theme.ROOM.rglob("*.js")])

    def test_behind_a_proxy_it_names_the_public_address(self, demo):
        public = "https://seg.example.org/tool"
        with live_app(demo, public_url=public) as url:
            headers = {"host": "seg.example.org", "origin": "https://seg.example.org"}
            config = httpx.get(f"{url}/config", headers=headers).json()
            assert config["root"] == public
            assert httpx.get(f"{url}/api/health", headers={"host": "other.example.org"}).status_code == 421
