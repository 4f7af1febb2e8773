"""URLs of storage: parsing, the scan of a URL, and jobs between local folders and the memory store of fsspec."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import fsspec
import httpx
import labelling_builders as jobs
import numpy as np
import pytest
from app_builders import SCENE, live_app

from text2seg.app.folder.archives import UploadLimit
from text2seg.app.folder.inputs import Upload, copy_uploads, link_folder
from text2seg.cli import main
from text2seg.coco.dataset import read_dataset
from text2seg.coco.lookup import ImageFinder, relative_folder
from text2seg.config import LabelSettings
from text2seg.errors import DatasetError, ImageError, OntologyError, OutputError, SettingsError, Text2SegError
from text2seg.io import storage
from text2seg.io.images import load_image
from text2seg.io.scan import list_images
from text2seg.io.storage import Url, place_of
from text2seg.labelling.engine import LocalEngine, Work
from text2seg.labelling.output import journal_path, local_file
from text2seg.ontology import read_ontology

PACKAGE = Path(storage.__file__).parent
TREE = ("b.jpg", "B.PNG", "a/z.webp", "a/b/y.tiff", "ä.jpeg", "notes.txt", ".hidden.png", ".git/x.png")


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Yield the empty store in memory; journals are written to the test's own folder."""
    monkeypatch.setenv("TEXT2SEG_STATE", str(tmp_path / "state"))
    store = fsspec.filesystem("memory")
    store.rm("/", recursive=True)
    yield store
    store.rm("/", recursive=True)


def upload(store, folder: Path, to: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    jobs.fill(tmp_path / "photos", 10)
    return tmp_path / "photos"


class TestUrls:
    def test_place_of_tells_paths_from_urls(self):
        assert place_of("s3://bucket/photos/") == Url("s3://bucket/photos")
        assert place_of("S3://Bucket/Photos") == Url("s3://Bucket/Photos")
        for path in ("photos", "/a/photos", r"C:\photos", "C://photos", "a:b"):
            assert place_of(path) == Path(path)
        assert place_of("file:///a/photos/") == Path("/a/photos")
        assert place_of(Path("s3://bucket")) == Path("s3:/bucket")  # a path is never made a URL
        assert place_of(Url("s3://b")) == Url("s3://b")

    @pytest.mark.parametrize("text", ["s3://", "gs:///", "sftp://me:secret@host/photos"])
    def test_unusable_urls_are_refused_without_showing_secrets(self, text):
        with pytest.raises(SettingsError) as caught:
            place_of(text)
        assert "secret" not in str(caught.value)

    def test_join_name_and_scheme_of_a_url(self):
        url = place_of("gs://bucket/a") / "b/c d.jpg"
        assert (str(url), url.name, url.scheme) == ("gs://bucket/a/b/c d.jpg", "c d.jpg", "gs")
        with pytest.raises(TypeError):
            open(url)  # type: ignore[call-overload]  # noqa: SIM115

    def test_settings_accept_paths_and_urls(self):
        assert LabelSettings(output="s3://b/x.json").output == Url("s3://b/x.json")
        assert LabelSettings(output=Path("x.json"), categories_from="truth.json").categories_from == Path("truth.json")

    def test_work_with_a_url_can_be_pickled(self):
        work = Work(place_of("s3://bucket/photos"), (), {"ball": 1})
        assert pickle.loads(pickle.dumps(work)) == work

    def test_fsspec_is_imported_only_when_needed(self):
        code = "import sys, text2seg.io.scan; assert not {'fsspec', 's3fs'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_share_one_store(memory):
    """Otherwise each of a cluster's many short-lived threads would open a new connection."""
    with ThreadPoolExecutor(4) as pool:
        stores = [future.result()[0] for future in [pool.submit(storage._opened, Url("http://h/x")) for _ in range(8)]]
    assert len({id(store) for store in stores}) == 1


class TestScan:
    @pytest.fixture
    def both(self, memory, tmp_path):
        for name in TREE:
            path = tmp_path / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        upload(memory, tmp_path / "tree", "/tree")
        memory.pipe_file("/tree2/other.jpg", b"x")  # begins with the same letters
        return tmp_path / "tree", place_of("memory://tree")

    @pytest.mark.parametrize(
        "how",
        [
            {},
            {"recursive": False},
            {"globs": ["*.jpg", "*.png"]},
            {"globs": ["a/*"]},
            {"globs": ["*.txt"]},
            {"limit": 2},
            {"shard": "2/2"},
            {"limit": 3, "shard": "1/2"},
        ],
        ids=str,
    )
    def test_scan_of_a_url_equals_scan_of_a_local_folder(self, both, how):
        here, there = (list_images(folder, **how) for folder in both)
        assert there.files == here.files
        assert [there.place(n) for n in range(len(there))] == [here.place(n) for n in range(len(here))]
        assert len(there.stamps) == 2 * len(there)
        assert there.stamp(0)[0] == 1

    def test_skipped_files_are_left_out(self, both):
        _, there = both
        assert "notes.txt" not in list_images(there, globs=["*"], skip=[there / "notes.txt"]).files

    def test_a_url_that_is_no_folder_raises(self, both):
        _, there = both
        for place, words in [
            (there / "b.jpg", "is not a folder"),
            (there / "nowhere", "no such folder"),
            (place_of("nostore://bucket"), "unknown storage nostore://"),
        ]:
            with pytest.raises(Text2SegError, match=words):
                list_images(place)
        with pytest.raises(ImageError, match=r"no file in it matches \*\.tga"):
            list_images(there, globs=["*.tga"])

    @pytest.mark.parametrize(
        ("info", "stamp"),
        [
            ({"size": 3, "LastModified": datetime(2024, 1, 2, tzinfo=timezone.utc)}, (3, 1704153600 * 10**9)),
            ({"size": 3, "updated": "2024-01-02T00:00:00Z"}, (3, 1704153600 * 10**9)),
            ({"size": 3, "mtime": 1704153600.5}, (3, 1704153600_500000000)),
            ({"size": None}, (-1, 0)),
        ],
    )
    def test_stamps_of_several_stores(self, info, stamp):
        assert storage._stamp(info) == stamp


class TestJobs:
    @pytest.mark.parametrize("encoding", ["rle", "polygon"])
    def test_datasets_of_url_and_local_folder_differ_only_in_the_folder(self, memory, photos, tmp_path, encoding):
        (photos / "a" / "broken.jpg").write_bytes((SCENE.read_bytes())[:5000])
        (photos / "a" / "empty.jpg").write_bytes(b"")
        (photos / "text.png").write_bytes(b"no image")
        upload(memory, photos, "/photos")
        here = tmp_path / "here.json"
        expected = jobs.run(photos, here, segmentation=encoding)
        report = jobs.run("memory://photos", "memory://out/labels.json", segmentation=encoding)
        assert report.failed == expected.failed == 3
        assert report.failures == expected.failures
        assert report.categories == expected.categories
        wanted = here.read_bytes()
        assert wanted.count(b'"folder": "photos"') == 1
        wanted = wanted.replace(b'"folder": "photos"', b'"folder": "memory://photos"')
        assert memory.cat_file("/out/labels.json") == wanted
        assert memory.find("/out") == ["/out/labels.json"]
        jobs.run("memory://photos", tmp_path / "there.json", segmentation=encoding)
        assert (tmp_path / "there.json").read_bytes() == wanted

    def test_a_dataset_at_a_url_records_the_absolute_local_folder(self, memory, photos):
        jobs.run(photos, "memory://out/labels.json")
        assert json.loads(memory.cat_file("/out/labels.json"))["info"]["folder"] == photos.as_posix()

    def test_a_file_url_is_a_local_path(self, photos, tmp_path):
        jobs.run(photos, tmp_path / "a.json")
        jobs.run(f"file://{photos}", f"file://{tmp_path}/b.json")
        assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
        assert (tmp_path / "b.json.journal").read_bytes() == (tmp_path / "a.json.journal").read_bytes()

    def test_the_journal_is_in_the_state_folder_and_a_stopped_job_resumes(self, memory, photos, tmp_path):
        upload(memory, photos, "/photos")
        output = place_of("memory://out/labels.json")
        journal = journal_path(output)
        assert journal.parent == tmp_path / "state" / "jobs"
        assert journal != journal_path(place_of("memory://elsewhere/labels.json"))

        class Halved:
            def run(self, work, batches, deliver, stopping):
                LocalEngine(jobs.FakeModels()).run(work, list(batches)[:1], deliver, stopping)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            jobs.run("memory://photos", output, engine=Halved())
        assert not memory.exists("/out/labels.json")
        models = jobs.FakeModels()
        assert jobs.run("memory://photos", output, models=models).done == 10
        assert sum(map(len, models.batches)) == 6
        jobs.run(photos, tmp_path / "here.json")
        here = (tmp_path / "here.json").read_bytes()
        assert memory.cat_file("/out/labels.json") == here.replace(b'"photos"', b'"memory://photos"', 1)
        assert journal.is_file()
        assert not local_file(output).exists()
        again = jobs.FakeModels()
        jobs.run("memory://photos", output, models=again)
        assert again.batches == []

    def test_changed_and_new_objects_are_labelled(self, memory, photos):
        upload(memory, photos, "/photos")
        jobs.run("memory://photos", "memory://out.json", batch=1)
        memory.pipe_file("/photos/a/0000.png", SCENE.read_bytes())
        memory.pipe_file("/photos/zzz.png", SCENE.read_bytes())
        models = jobs.FakeModels()
        jobs.run("memory://photos", "memory://out.json", batch=1, models=models)
        assert models.batches == [["a/0000.png"], ["zzz.png"]]

    def test_a_vanished_object_is_one_failure(self, memory, photos):
        upload(memory, photos, "/photos")

        class Late:
            def run(self, work, batches, deliver, stopping):
                memory.rm("/photos/a/0003.png")
                LocalEngine(jobs.FakeModels()).run(work, batches, deliver, stopping)

        report = jobs.run("memory://photos", "memory://out.json", engine=Late())
        assert [(each.file_name, each.stage) for each in report.failures] == [("a/0003.png", "read")]
        assert "no such object" in report.failures[0].message

    def test_a_foreign_output_is_not_overwritten(self, memory, photos):
        memory.pipe_file("/out.json", b"{}")
        with pytest.raises(OutputError, match=r"memory://out.json exists.*--overwrite"):
            jobs.run(photos, "memory://out.json")
        assert memory.cat_file("/out.json") == b"{}"
        jobs.run(photos, "memory://out.json", overwrite=True)
        memory.pipe_file("/out.json", b"{}")
        with pytest.raises(OutputError, match="was changed since"):
            jobs.run(photos, "memory://out.json")
        memory.rm("/out.json")
        memory.pipe_file("/out.json/x", b"")
        with pytest.raises(OutputError, match="it is a folder"):
            jobs.run(photos, "memory://out.json")

    def test_a_failed_upload_loses_nothing(self, memory, photos, monkeypatch):
        def refuse(self, *_, **__):
            raise OSError(28, "the store is full")

        with monkeypatch.context() as broken:
            broken.setattr(type(memory), "put_file", refuse)
            with pytest.raises(OutputError, match=r"the store is full.*run the same command again") as caught:
                jobs.run(photos, "memory://out.json")
        assert str(local_file(place_of("memory://out.json"))) in str(caught.value)
        models = jobs.FakeModels()
        jobs.run(photos, "memory://out.json", models=models)
        assert models.batches == []
        assert len(json.loads(memory.cat_file("/out.json"))["images"]) == 10

    def test_a_read_only_store_is_reported_before_the_first_image(self, memory, photos):
        class ReadOnly(type(memory)):
            protocol = "read-only"

            def pipe_file(self, *_, **__):
                raise NotImplementedError

        fsspec.register_implementation("read-only", ReadOnly, clobber=True)
        models = jobs.FakeModels()
        with pytest.raises(OutputError, match="read-only:// does not support this: write it"):
            jobs.run(photos, "read-only://out.json", models=models)
        assert models.batches == []


class TestCommands:
    def test_label_reads_ontology_and_ids_from_urls_and_makes_a_dry_run(self, memory, tmp_path, capsys):
        scenes = SCENE.parent
        memory.pipe_file("/photos/scene.jpg", SCENE.read_bytes())
        memory.pipe_file("/photos/cut.jpg", SCENE.read_bytes()[:100])
        memory.pipe_file("/things.yaml", b"categories: [sheep, {name: fire, queries: [fire engine], id: 9}]")
        truth = {"images": [{"id": 70, "file_name": "scene.jpg"}, {"id": 71, "file_name": "cut.jpg"}]}
        truth |= {"annotations": [], "categories": [{"id": 4, "name": "sheep"}, {"id": 9, "name": "fire"}]}
        memory.pipe_file("/truth.json", json.dumps(truth).encode())
        command = ["label", "memory://photos", "--output", "memory://labels.json", "--device", "cpu"]
        command += ["--ontology", "memory://things.yaml", "--categories-from", "memory://truth.json"]
        before = memory.find("/")
        assert main([*command, "--dry-run"]) == 3
        text, errors = capsys.readouterr()
        assert "in 2 images of memory://photos" in text
        assert "would write memory://labels.json" in text
        assert errors.count("cut.jpg") == 1
        assert memory.find("/") == before
        assert main(command) == 3
        assert f"journal of this job is {tmp_path / 'state'}" in capsys.readouterr().err
        dataset = json.loads(memory.cat_file("/labels.json"))
        assert [image["id"] for image in dataset["images"]] == [70]
        assert [category["id"] for category in dataset["categories"]] == [4, 9]
        np.testing.assert_array_equal(
            load_image(place_of("memory://photos/scene.jpg")).pixels, load_image(scenes / SCENE.name).pixels
        )

    def test_a_missing_object_is_one_line(self, memory):
        for read, error in [(read_ontology, OntologyError), (read_dataset, DatasetError), (load_image, ImageError)]:
            with pytest.raises(error, match="memory://gone: there is no such object"):
                read(place_of("memory://gone"))

    @pytest.mark.parametrize(
        "command",
        [
            ["segment", "s3://b/x.jpg", "--query", "sheep"],
            ["report", "s3://b/labels.json"],
            ["report", "labels.json", "--images", "s3://b/photos"],
            ["evaluate", "truth.json", "s3://b/labels.json"],
            ["replay", "s3://b/labels.json", "--annotation", "1"],
            ["tune", "s3://b/photos", "--ontology", "x.yaml"],
        ],
        ids=" ".join,
    )
    def test_commands_without_support_for_urls_refuse_them(self, command, capsys):
        assert main(command) == 2
        assert "is a URL, but this must be a path" in capsys.readouterr().err

    @pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
    def test_a_missing_package_is_named(self, scheme, package):
        code = (
            f"import sys; sys.modules[{package!r}] = None;"
            f"from text2seg.io.storage import place_of, read_bytes; read_bytes(place_of('{scheme}://bucket/photo.jpg'))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1
        assert f'{scheme}:// needs {package}; install it with pip install "text2seg[cloud]"' in done.stderr


class TestImagesOfADataset:
    def test_a_url_in_a_dataset_is_not_opened(self, memory, photos, tmp_path, monkeypatch):
        """A COCO file is not trusted, so its images are only searched on this machine."""
        upload(memory, photos, "/photos")
        jobs.run("memory://photos", tmp_path / "labels.json")
        monkeypatch.setattr(storage, "_opened", lambda url: pytest.fail(f"{url} was opened"))
        info = read_dataset(tmp_path / "labels.json")["info"]
        with pytest.raises(ImageError, match=r"is in memory://photos; copy that folder here .*--images"):
            ImageFinder(tmp_path / "labels.json", info=info).find("a/0000.png")
        assert ImageFinder(tmp_path / "labels.json", photos, info).find("a/0000.png") == photos / "a" / "0000.png"
        with pytest.raises(ImageError, match="is a URL"):
            load_image("memory://photos/a/0000.png")

    @pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "{outside}/secret.png"])
    def test_a_file_name_outside_the_image_folder_is_refused(self, photos, tmp_path, name):
        (tmp_path / "secret.png").write_bytes((photos / "a" / "0000.png").read_bytes())
        name = name.format(outside=tmp_path.as_posix())
        for images in (None, photos):
            with pytest.raises(ImageError, match=r"is not in .*--images"):
                ImageFinder(photos / "labels.json", images).find(name)
        assert ImageFinder(None, photos).find("/theirs/a/0000.png") == photos / "a" / "0000.png"
        assert ImageFinder(None, photos).find("../theirs/a/0000.png") == photos / "a" / "0000.png"

    def test_an_absolute_folder_in_a_dataset_is_named_and_not_opened(self, photos, tmp_path):
        info = {"folder": photos.as_posix()}
        with pytest.raises(
            ImageError, match=f"according to the dataset, a/0000.png is in {photos.as_posix()}; .* --images {photos}"
        ):
            ImageFinder(tmp_path / "labels.json", info=info).find("a/0000.png")
        assert ImageFinder(photos.parent / "labels.json", info={"folder": photos.name}).find("a/0000.png").is_file()

    def test_relative_folder_keeps_urls_and_shortens_paths(self):
        assert relative_folder(place_of("s3://b/photos"), Path("x.json")) == "s3://b/photos"
        assert relative_folder(Path("/a/photos"), Path("/a/x.json")) == "photos"


class TestTheAppOpensNoUrls:
    def test_no_module_of_the_app_imports_urls(self):
        """`Url` and `place_of` are the only ways, and texts become URLs in three places that the app does not reach
        with a text: the command line, `label_folder` and `LabelSettings`, to which it gives paths of its own."""
        for path in (PACKAGE / "app").rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
            modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not names & {"Url", "place_of", "storage"}, path
            assert "text2seg.io.storage" not in modules, path

    @pytest.fixture
    def opened(self, memory, monkeypatch):
        """Yield the list of opened URLs. One of them exists, so opening it would give an image."""
        memory.pipe_file("/photos/one.jpg", SCENE.read_bytes())
        urls = []
        real = storage._opened
        monkeypatch.setattr(storage, "_opened", lambda url: urls.append(url) or real(url))
        assert load_image(place_of("memory://photos/one.jpg")).hw
        assert urls.pop()
        return urls

    def test_a_request_with_a_url_is_refused(self, opened, demo):
        url = "memory://photos/one.jpg"
        with live_app(demo) as address, httpx.Client(base_url=address, timeout=60) as http:
            for image in ({"path": url}, {"path": None, "url": url}, {"path": url, "url": url}):
                answer = http.post("/gradio_api/call/segment", json={"data": [image, "sheep", None, "rle"]})
                assert answer.status_code == 403
            given = {"settings": json.dumps({"target_image": url})}
            answer = http.post("/api/v1/explain/saliency", data=given, files={"image": SCENE.read_bytes()})
            assert answer.status_code == 400
            answer = http.post("/api/v1/segment", data={"queries": "sheep", "image": url})
            assert answer.status_code == 415
            named = {"image": (url, SCENE.read_bytes())}
            answer = http.post("/api/v1/segment", data={"queries": "sheep"}, files=named)
            assert answer.json()["images"][0]["file_name"] == "one.jpg"
            assert answer.json()["images"][0]["height"] == load_image(SCENE).hw[0]
            for route in ("/gradio_api/file=", "/gradio_api/proxy="):
                assert http.get(route + url).status_code in (403, 404)
        assert opened == []

    def test_a_job_with_a_url_as_folder_or_upload_is_refused(self, opened, tmp_path):
        (tmp_path / "root").mkdir()
        (tmp_path / "into").mkdir()
        with pytest.raises(Text2SegError, match="there is no folder"):
            link_folder(tmp_path / "root", "memory://photos", tmp_path / "into", UploadLimit(9, 10**6))
        with pytest.raises((Text2SegError, OSError)):
            copy_uploads([Upload(Path("memory://photos/one.jpg"), "one.jpg")], tmp_path / "into", UploadLimit(9, 10**6))
        assert list((tmp_path / "into").iterdir()) == []
        assert opened == []
