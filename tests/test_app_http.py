"""Folder jobs by HTTP, and the OpenAPI document: what it describes is what the app answers."""

from __future__ import annotations

import io
import json
import time
import zipfile

import httpx
import jsonschema
import pytest
from app_builders import SCENE, SCENES, answer_before_the_body, live_app
from openapi_spec_validator import validate

from text2seg.app.folder.jobs import PER_VISITOR
from text2seg.app.guard import ALLOWED
from text2seg.app.settings import MOST_FILES
from text2seg.config import LabelSettings
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries

HANGS = 120  # seconds after which a test has hung; no test waits that long
JOBS = "/api/v1/jobs"


@pytest.fixture(scope="module")
def http(demo):
    with (
        live_app(demo, upload_mb=1, folder_mb=2, folder_images=4) as url,
        httpx.Client(base_url=url, timeout=HANGS) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def document(http):
    return http.get("/api/openapi.json").json()


@pytest.fixture(autouse=True)
def no_traceback(caplog):
    """No mistake of a client leaves a traceback in the log."""
    yield
    assert not [record for record in caplog.records if record.exc_info]


@pytest.fixture
def started(http):
    """Start a job with these files and fields; all are deleted at the end."""
    ids = []

    def start(*files, **data):
        answer = http.post(JOBS, files=[("images", each) for each in files], data=data)
        if answer.status_code == 202:
            ids.append(answer.json()["id"])
        return answer

    yield start
    for number in ids:
        http.delete(f"{JOBS}/{number}")


def zipped(**contents: bytes) -> tuple[str, bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name.replace("__", "/") + ".jpg", content)
    return "scenes.zip", file.getvalue()


def finished(http, answer):
    """The job of an answer once it rests."""
    deadline = time.monotonic() + HANGS
    while True:
        job = http.get(f"{JOBS}/{answer.json()['id']}").json()
        if job["state"] not in ("filling", "waiting", "running"):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.02)


def first_image(name: str = "one.jpg") -> tuple[str, bytes]:
    return name, SCENE.read_bytes()


class TestJobs:
    def test_a_dataset_equals_that_of_the_command_line(self, http, started, demo, tmp_path):
        """One zip with a folder, and one image with a space in its name."""
        other = (SCENES / "scene_0003.jpg").read_bytes()
        answer = started(zipped(a__two=other), first_image("holiday 1.jpg"), queries="sheep, fire engine")
        assert answer.status_code == 202
        assert answer.headers["location"] == f"{JOBS}/{answer.json()['id']}"
        job = finished(http, answer)
        assert (job["state"], job["total"], job["done"], job["failures"]) == ("done", 2, 2, [])
        found = http.get(f"{JOBS}/{job['id']}/dataset").json()

        (tmp_path / "images" / "scenes" / "a").mkdir(parents=True)
        (tmp_path / "images" / "scenes" / "a" / "two.jpg").write_bytes(other)
        (tmp_path / "images" / "holiday 1.jpg").write_bytes(SCENE.read_bytes())
        output = tmp_path / "dataset.json"
        label_folder(
            demo,
            tmp_path / "images",
            ontology_of_queries("sheep, fire engine"),
            LabelSettings(output=output, batch=2, workers=2),
        )
        own = json.loads(output.read_text())
        assert (found["images"], found["annotations"]) == (own["images"], own["annotations"])
        assert [each["file_name"] for each in found["images"]] == ["holiday 1.jpg", "scenes/a/two.jpg"]

    @pytest.mark.parametrize("as_file", [False, True])
    def test_an_ontology_names_the_categories(self, http, started, as_file):
        text = "categories:\n  animal: [sheep, koala]\n"
        if as_file:
            files = [("images", first_image()), ("ontology", ("things.yaml", text))]
            answer = http.post(JOBS, files=files)
        else:
            answer = started(first_image(), ontology=text)
        job = finished(http, answer)
        found = http.get(f"{JOBS}/{job['id']}/dataset").json()
        assert [each["name"] for each in found["categories"]] == ["animal"]
        assert http.delete(f"{JOBS}/{job['id']}").status_code == 204

    def test_an_image_that_fails_is_listed_and_the_others_are_labelled(self, http, started):
        job = finished(http, started(first_image(), ("bad.png", b"no image"), queries="sheep"))
        assert (job["state"], job["total"], job["done"]) == ("done", 2, 2)
        (failure,) = job["failures"]
        assert failure.startswith("bad.png is not an image")
        job = finished(http, started(("bad.png", b"no image"), queries="sheep"))
        assert job["state"] == "failed"
        assert "bad.png is not an image" in job["message"]
        answer = http.get(f"{JOBS}/{job['id']}/dataset")
        assert (answer.status_code, "failed" in answer.json()["error"]) == (409, True)

    def test_a_deleted_job_stops_and_its_files_go(self, http, demo, started, monkeypatch):
        import threading

        arrived, gate = threading.Event(), threading.Event()
        original = demo.segment_sessions

        def held(*arguments, **more):
            arrived.set()
            assert gate.wait(HANGS)
            return original(*arguments, **more)

        monkeypatch.setattr(demo, "segment_sessions", held)
        first = started(first_image(), queries="sheep").json()
        second = started(first_image(), queries="sheep").json()
        assert arrived.wait(HANGS)
        try:
            running = http.get(f"{JOBS}/{first['id']}").json()
            assert (running["state"], running["seconds_left"]) == ("running", None)
            assert http.get(f"{JOBS}/{second['id']}").json()["ahead"] == 1
            early = http.get(f"{JOBS}/{first['id']}/dataset")
            assert (early.status_code, early.json()["error"]) == (
                409,
                "The job is not done yet; 0 of 1 image finished",
            )
            for each in (first, second):
                answer = http.delete(f"{JOBS}/{each['id']}")
                assert (answer.status_code, answer.content) == (204, b"")
                for method, path in (("GET", ""), ("GET", "/dataset"), ("DELETE", "")):
                    assert http.request(method, f"{JOBS}/{each['id']}{path}").status_code == 404
        finally:
            gate.set()

    def test_a_user_may_have_few_jobs(self, started):
        for _ in range(PER_VISITOR):
            assert started(first_image(), queries="sheep").status_code == 202
        answer = started(first_image(), queries="sheep")
        assert (answer.status_code, answer.json()["error"]) == (429, "You have 3 jobs already; delete one first")

    def test_all_users_share_the_limit_of_jobs(self, demo):
        with live_app(demo, folder_jobs=1) as url:
            files, data = {"images": first_image()}, {"queries": "sheep"}
            assert httpx.post(f"{url}{JOBS}", files=files, data=data, timeout=HANGS).status_code == 202
            answer = httpx.post(f"{url}{JOBS}", files=files, data=data, timeout=HANGS)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")

    def test_jobs_are_their_users_own(self, demo):
        ann, bob = ("ann", "a"), ("bob", "b")
        with live_app(demo, auth=("ann:a", "bob:b"), public_url="https://example.org/text2seg") as url:

            def ask(method, path, **more):
                return httpx.request(method, url + path, timeout=HANGS, **more)

            files, data = {"images": first_image()}, {"queries": "sheep"}
            assert ask("POST", JOBS, files=files, data=data).status_code == 401
            answer = ask("POST", JOBS, files=files, data=data, auth=ann)
            path = f"{JOBS}/{answer.json()['id']}"
            assert answer.headers["location"] == f"https://example.org/text2seg{path}"
            assert [ask("GET", path, auth=who).status_code for who in (ann, bob)] == [200, 404]
            listed = {who[0]: ask("GET", JOBS, auth=who).json() for who in (ann, bob)}
            assert ([each["id"] for each in listed["ann"]], listed["bob"]) == ([answer.json()["id"]], [])
            assert [ask("DELETE", path, auth=who).status_code for who in (bob, ann)] == [404, 204]
            document = ask("GET", "/api/openapi.json", auth=ann).json()
            validate(document)
            assert document["servers"] == [{"url": "https://example.org/text2seg"}]
            assert document["security"] == [{"password": []}]
            assert "401" in document["paths"][JOBS]["post"]["responses"]
            assert ask("GET", "/api/openapi.json").status_code == 401


class TestRefusalsBeforeTheBody:
    def test_of_a_form_that_is_too_large(self, http):
        for path in (JOBS, "/api/v1/segment"):
            answer = answer_before_the_body(str(http.base_url), path, 3_000_000)
            assert answer.startswith(b"HTTP/1.1 413 "), answer

    def test_a_client_that_sends_it_all_the_same_reads_the_answer(self, http):
        answer = http.post(JOBS, files={"images": ("a.zip", bytes(40_000_000))}, data={"queries": "sheep"})
        assert (answer.status_code, "2 MB at most" in answer.json()["error"]) == (413, True)

    def test_of_a_job_too_many(self, http, started):
        for _ in range(PER_VISITOR):
            started(first_image(), queries="sheep")
        answer = answer_before_the_body(str(http.base_url), JOBS, 1_000_000)
        assert answer.startswith(b"HTTP/1.1 429 "), answer
        assert b"retry-after: 30" in answer


IMAGE = ("images", first_image())
WORDS = {"queries": "sheep"}
LIMITS = [("images", (f"{number}.jpg", b"x")) for number in range(MOST_FILES + 3)]


class TestMistakes:
    @pytest.mark.parametrize(
        ("files", "data", "status", "words"),
        [
            ([IMAGE], {"queries": "unicorn"}, 400, "The demo model does not know 'unicorn'. "),
            ([IMAGE], {}, 400, "Send `queries` or one `ontology`"),
            ([IMAGE], {**WORDS, "ontology": "a: [sheep]"}, 400, "Send `queries` or one `ontology`"),
            ([IMAGE], {"ontology": "categories: ["}, 400, "Ontology, line 1: "),
            ([IMAGE], {"ontology": "categories: [unicorn, wizzard]"}, 400, "(1 more error)"),
            ([IMAGE, ("ontology", ("a.yaml", b"\xff\xfe\xff"))], {}, 400, "a.yaml"),
            ([IMAGE], {**WORDS, "threshold": "1"}, 400, "No field is called threshold"),
            ([("picture", first_image())], WORDS, 400, "No field is called picture"),
            ([("images", (None, "one.jpg"))], WORDS, 400, "Send image files or zip files as `images`"),
            ([("images", ("con.jpg", b"x"))], WORDS, 400, "not valid on every system"),
            ([("images", ("one.txt", b"x"))], WORDS, 400, "There is no image in your upload"),
            ([("images", zipped(**{"..__one": b"x"}))], WORDS, 400, "leads out of its folder"),
            ([("images", ("a.zip", b"no zip"))], WORDS, 400, "a.zip is damaged or not a zip"),
            ([("images", zipped(**dict.fromkeys("abcde", b"x")))], WORDS, 400, "at most 4 are allowed at once"),
            ([IMAGE] * 5, WORDS, 400, "At most 4 images and 2 MB"),
            (LIMITS, WORDS, 400, f"may have {MOST_FILES} files at most"),
            ([("images", ("one.jpg", bytes(2_200_000)))], WORDS, 413, "2 MB at most"),
        ],
    )
    def test_of_a_new_job_are_told_in_a_sentence(self, http, started, files, data, status, words):
        answer = http.post(JOBS, files=files, data=data)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]
        assert "/tmp" not in answer.text

    @pytest.mark.parametrize("field", ["/{victim}/x", "../{victim}/x", "f" * 300, "a\0b"])
    def test_the_name_of_a_field_leads_nowhere(self, http, tmp_path, field):
        """Files are saved below a folder of the server's own choice, whatever the client calls its fields."""
        field = field.format(victim=str(tmp_path).strip("/"))
        files = [("image", ("a.jpg", SCENE.read_bytes())), (field, ("evil.txt", b"EVIL"))]
        answer = http.post("/api/v1/explain/saliency", files=files)
        assert answer.status_code == 400
        assert "error" in answer.json()
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["..", "\U00020000" * 80 + ".png", "/etc/passwd", ".", "n" * 1000])
    def test_the_name_of_a_file_does_not_matter_for_one_image(self, http, name):
        answer = http.post("/api/v1/segment", files={"image": (name, SCENE.read_bytes())}, data={"queries": "sheep"})
        assert answer.status_code == 200, answer.text

    def test_a_zip_that_unpacks_to_too_much_is_refused(self, http):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("one.jpg", bytes(3_000_000))
        answer = http.post(JOBS, files={"images": ("a.zip", file.getvalue())}, data=WORDS)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("a.zip")

    @pytest.mark.parametrize(
        ("method", "path", "more", "status"),
        [
            ("GET", f"{JOBS}/nope", {}, 404),
            ("GET", f"{JOBS}/nope/dataset", {}, 404),
            ("DELETE", f"{JOBS}/nope", {}, 404),
            ("GET", f"{JOBS}/no.pe", {}, 404),
            ("GET", JOBS, {}, 403),
            ("DELETE", JOBS, {}, 405),
            ("PUT", f"{JOBS}/nope", {}, 405),
            ("DELETE", f"{JOBS}/nope/dataset", {}, 405),
            ("DELETE", "/api/v1/health", {}, 405),
            ("POST", JOBS, {}, 415),
            ("POST", JOBS, {"json": WORDS}, 415),
            ("POST", JOBS, {"data": WORDS}, 415),
            ("POST", JOBS, {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
            ("POST", "/api/v1/segment", {"files": {"image": ("a.jpg", bytes(1_200_000))}}, 413),
            ("POST", "/api/v1/segment", {"files": {"image": ("a.jpg", b"x")}, "data": WORDS}, 400),
            ("POST", "/api/v1/segment", {"files": {"image": first_image()}, "data": {"queries": "unicorn"}}, 400),
            ("GET", f"{JOBS}/nope", {"headers": {"host": "other.example"}}, 421),
            ("DELETE", f"{JOBS}/nope", {"headers": {"origin": "https://other.example"}}, 403),
        ],
    )
    def test_have_a_status_and_fit_the_schema(self, http, document, method, path, more, status):
        answer = http.request(method, path, **more)
        assert answer.status_code == status, answer.text
        jsonschema.validate(answer.json(), {"$ref": "#/components/schemas/Error", **document})

    def test_a_page_reaches_no_job_of_the_api(self, http, started):
        """A browser may send any token, but the owner of a job of the API is none."""
        from types import SimpleNamespace

        from text2seg.app.folder.visitors import VisitorJobs
        from text2seg.app.settings import AppSettings

        jobs = VisitorJobs(SimpleNamespace(settings=AppSettings()))
        owner = "api 2001:db8:1234:5678:9abc:0001"
        assert len(owner) == 32
        assert jobs.known({"visitor": owner, "job": ""})["visitor"] != owner


class TestDocument:
    def test_is_valid(self, document):
        validate(document)

    def test_describes_all_routes_that_the_guard_allows(self, document):
        for path, operations in document["paths"].items():
            for method in operations:
                assert ALLOWED[method.upper()].fullmatch(path.replace("{tool}", "saliency").replace("{id}", "abc"))
        names = [each["operationId"] for operations in document["paths"].values() for each in operations.values()]
        assert sorted(names) == sorted(
            ["health", "tools", "segment", "explain", "start_job", "list_jobs", "job", "job_dataset", "delete_job"]
        )

    def test_answers_fit_their_schemas(self, http, started, document):
        def check(answer, path, method="get"):
            described = document["paths"][path][method]["responses"][str(answer.status_code)]
            schema = described["content"]["application/json"]["schema"]
            jsonschema.validate(answer.json(), {**schema, "components": document["components"]})

        check(http.get("/api/v1/health"), "/api/v1/health")
        check(http.get("/api/v1/tools"), "/api/v1/tools")
        for encoding in ("rle", "polygon"):
            data = {"queries": "sheep", "segmentation": encoding}
            answer = http.post("/api/v1/segment", data=data, files={"image": first_image()})
            assert answer.json()["annotations"]
            check(answer, "/api/v1/segment", "post")
        data = {"settings": json.dumps({"text": ["sheep"]})}
        answer = http.post("/api/v1/explain/saliency", data=data, files={"image": first_image()})
        check(answer, "/api/v1/explain/{tool}", "post")
        answer = started(first_image(), queries="sheep")
        check(answer, JOBS, "post")
        job = finished(http, answer)
        check(http.get(f"{JOBS}/{job['id']}"), f"{JOBS}/{{id}}")
        check(http.get(f"{JOBS}/{job['id']}/dataset"), f"{JOBS}/{{id}}/dataset")

    @pytest.mark.parametrize(
        ("settings", "is_valid"),
        [
            ({"points": {"threshold": 0.7}, "maps": {"input_size": [224, 336], "templates": ["a {}"]}}, True),
            ({"points": {"threshold": "high"}}, False),
            ({"dots": {}}, False),
            ({"maps": {"architecture": "magic"}}, False),
        ],
    )
    def test_settings_are_valid_where_the_app_takes_them(self, http, document, settings, is_valid):
        schema = {"$ref": "#/components/schemas/Settings", **document}
        assert jsonschema.Draft202012Validator(schema).is_valid(settings) == is_valid
        data = {"queries": "sheep", "settings": json.dumps(settings)}
        answer = http.post("/api/v1/segment", data=data, files={"image": first_image()})
        assert answer.status_code == (200 if is_valid else 400), answer.text

    def test_old_paths_answer_the_same(self, http):
        assert http.get("/api/health").json() == http.get("/api/v1/health").json()
