"""COCO val2017 from a server on this machine that plays COCO's."""

from __future__ import annotations

import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import builders
import pytest
from checkpoint_builders import Server, serving
from PIL import Image
from test_weights_download import closed_port

from text2seg.coco import download
from text2seg.coco.download import ARCHIVE, MEMBER, SERVER_VARIABLE, announcement, default_folder, fetch_val2017
from text2seg.errors import CheckpointError, DatasetError
from text2seg.weights import download as weights_download

PHOTOS = Path(__file__).parents[2] / "shared" / "photos"
HW = (20, 30)


def annotation(number: int, image: int, crowd: int = 0) -> dict:
    size = {"segmentation": [[1, 1, 9, 1, 9, 9]], "area": 32, "bbox": [1, 1, 8, 8]}
    return {"id": number, "image_id": image, "category_id": 1, "iscrowd": crowd, **size}


def coco(count: int = 6) -> tuple[dict, dict[str, bytes]]:
    """Annotations and images by path. The last image shows nothing, the one before only a crowd."""
    images, files = [], {}
    for number in range(1, count + 1):
        name = f"{number:012d}.jpg"
        url = f"http://images.cocodataset.org/val2017/{name}"
        images.append({"id": number, "file_name": name, "height": HW[0], "width": HW[1], "coco_url": url})
        buffer = io.BytesIO()
        Image.fromarray(builders.pixels(HW, seed=number)).save(buffer, "JPEG")
        files[f"/val2017/{name}"] = buffer.getvalue()
    annotations = [annotation(number, number) for number in range(1, count - 1)] + [annotation(count, count - 1, 1)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}, files


def archive(truth: dict, member: str = MEMBER) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("annotations/captions_val2017.json", "{}")
        file.writestr(member, json.dumps(truth))
    return buffer.getvalue()


def damaged(content: bytes) -> bytes:
    """Return an archive whose annotations have bytes that no deflate stream has."""
    start = content.index(MEMBER.encode()) + len(MEMBER)
    return content[:start] + b"\xff" * 20 + content[start + 20 :]


def changed(content: bytes, offset: int, value: int) -> bytes:
    """Return an archive with another value in both headers of the annotations, at an offset into the local one."""
    local, central = (
        found.start() - start for found, start in zip(re.finditer(MEMBER.encode(), content), (30, 46), strict=True)
    )
    changed = bytearray(content)
    changed[local + offset] = changed[central + offset + 2] = value
    return bytes(changed)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(weights_download, "BACKOFF_SECONDS", (0, 0, 0))
    monkeypatch.setattr(weights_download, "TIMEOUT_SECONDS", 2)
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(b"") as running:
        truth, files = coco()
        running.files = {f"/{ARCHIVE}": archive(truth), **files}
        monkeypatch.setenv(SERVER_VARIABLE, running.url.removesuffix("/weights.pt"))
        yield running


def images_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "val2017").glob("[!.]*"))


def test_only_the_needed_images_are_downloaded_and_only_once(server, tmp_path):
    truth, folder = fetch_val2017(3, tmp_path)
    names = sorted(entry["file_name"] for entry in truth["images"])
    assert images_in(tmp_path) == names
    assert len(names) == 3
    assert {each["image_id"] for each in truth["annotations"]} == {entry["id"] for entry in truth["images"]}
    assert folder == tmp_path / "val2017"
    assert not (tmp_path / Path(ARCHIVE).name).exists()
    before = len(server.paths)
    assert fetch_val2017(3, tmp_path) == (truth, folder)
    assert len(server.paths) == before == 4


def test_more_images_contain_those_of_fewer_and_images_without_a_thing_are_left_out(server, tmp_path, caplog):
    few, _ = fetch_val2017(2, tmp_path)
    more, _ = fetch_val2017(50, tmp_path)
    assert {each["id"] for each in few["images"]} < {each["id"] for each in more["images"]} == {1, 2, 3, 4}
    assert "only 4 images that show something" in caplog.text


def test_images_to_score_are_never_those_to_calibrate_with(server, tmp_path, caplog):
    def drawn(count, **more):
        return {each["id"] for each in fetch_val2017(count, tmp_path, **more)[0]["images"]}

    fitted = [drawn(2, seed=seed) for seed in range(4)]
    scored = [drawn(2, seed=seed, to_score=True) for seed in range(4)]
    assert all(not one & other for one in fitted for other in scored)
    assert len({frozenset(drawn(1, seed=seed, to_score=True)) for seed in range(8)}) == 2
    assert "share some" not in caplog.text
    assert scored[0] < drawn(3, to_score=True)
    assert "with more than 2 images, calibration and benchmark share some" in caplog.text


def test_a_cut_connection_is_continued(server, tmp_path):
    size = len(server.files[f"/{ARCHIVE}"])
    server.cuts = [size // 3, size // 3, size, 100, 50]
    truth, _ = fetch_val2017(2, tmp_path)
    assert server.ranges[1] == f"bytes={size // 3}-"
    assert "bytes=100-" in server.ranges
    for entry in truth["images"]:
        got = (tmp_path / "val2017" / entry["file_name"]).read_bytes()
        assert got == server.files[f"/val2017/{entry['file_name']}"]


def test_a_download_that_stops_keeps_what_is_complete_and_goes_on_later(server, tmp_path):
    size = len(server.files[f"/{ARCHIVE}"])
    server.cuts = [size, 10**6, 100, *[0] * 10]
    with pytest.raises(CheckpointError, match=r"100 of .* bytes.*other means"):
        fetch_val2017(3, tmp_path)
    assert len([name for name in images_in(tmp_path) if not name.endswith(".part")]) == 1
    server.cuts = []
    truth, _ = fetch_val2017(3, tmp_path)
    assert len(images_in(tmp_path)) == len(truth["images"]) == 3
    assert "bytes=100-" in server.ranges


def test_no_network_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv(SERVER_VARIABLE, f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(CheckpointError, match=r"cannot reach the server.*annotations_trainval2017\.zip"):
        fetch_val2017(3, tmp_path)
    assert [path.name for path in tmp_path.glob("[!.]*")] == []


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        (f"/{ARCHIVE}", b"<html>moved</html>", "not a zip archive"),
        (f"/{ARCHIVE}", archive({}, "annotations/other.json"), "no readable annotations/instances_val2017.json"),
        (f"/{ARCHIVE}", damaged(archive(coco()[0])), "no readable annotations/instances_val2017.json: Error -3"),
        (
            f"/{ARCHIVE}",
            changed(archive(coco()[0]), 6, 1),
            "no readable annotations/instances_val2017.json: .*encrypted",
        ),
        (f"/{ARCHIVE}", changed(archive(coco()[0]), 8, 99), "no readable .*compression"),
        ("/val2017", b"<html>moved</html>", "is not an image"),
        ("/val2017", coco(1)[1]["/val2017/000000000001.jpg"][:200], "is not an image"),
    ],
)
def test_what_is_not_cocos_file_is_named_and_deleted(server, tmp_path, path, content, says):
    server.files |= {name: content for name in server.files if name.startswith(path)}
    with pytest.raises(CheckpointError, match=says):
        fetch_val2017(1, tmp_path)
    assert not list(tmp_path.rglob("*.zip*"))
    assert not list(tmp_path.rglob("*.jpg*"))


def test_an_image_of_another_size_is_refused(server, tmp_path):
    truth, files = coco()
    for entry in truth["images"]:
        entry["width"] += 1
    server.files = {f"/{ARCHIVE}": archive(truth), **files}
    with pytest.raises(CheckpointError, match="30 x 20 pixels instead of 31 x 20"):
        fetch_val2017(1, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"file_name": "../../escaped.jpg"},
        {"file_name": "a b.jpg"},
        {"file_name": 7},
        {"coco_url": None},
        {"coco_url": "http://images.cocodataset.org"},
        {"coco_url": "/val2017/1.jpg"},
    ],
)
def test_odd_names_in_the_annotations_are_not_used(server, tmp_path, change):
    truth, files = coco()
    truth["images"] = [entry | change for entry in truth["images"][:1]]
    truth["annotations"] = truth["annotations"][:1]
    server.files = {f"/{ARCHIVE}": archive(truth), **files}
    with pytest.raises(DatasetError, match=r"no usable name or coco_url|the file_name 7, which is not text"):
        fetch_val2017(1, tmp_path / "coco")
    assert not list(tmp_path.rglob("escaped*"))


def test_an_image_without_a_size_is_named(server, tmp_path):
    truth, files = coco()
    truth["images"][0].pop("width")
    server.files = {f"/{ARCHIVE}": archive(truth), **files}
    with pytest.raises(DatasetError, match="image 1 needs a height and a width"):
        fetch_val2017(9, tmp_path)


@pytest.mark.parametrize("odd", ["mirror.local/coco", "ftp://mirror.local", "http://", "http://[::1", "http://a b"])
def test_a_server_that_is_no_url_is_named(odd, tmp_path, monkeypatch):
    monkeypatch.setenv(SERVER_VARIABLE, odd)
    with pytest.raises(CheckpointError, match=f"^{SERVER_VARIABLE} must be a URL such as http://.*{re.escape(odd)}"):
        fetch_val2017(1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_server_may_have_a_port_and_a_folder(monkeypatch):
    for server in ("http://mirror.local:8080/coco/", "https://[::1]:80", "https://10.0.0.1"):
        monkeypatch.setenv(SERVER_VARIABLE, server)
        assert download._server() == server.rstrip("/")
    monkeypatch.setenv(SERVER_VARIABLE, "")
    assert download._server() == download.SERVER


def test_one_of_two_that_want_the_annotations_waits_for_the_other(server, tmp_path, monkeypatch):
    keep, found = download.write_atomically, []
    other = threading.Thread(target=lambda: found.append(fetch_val2017(1, tmp_path)))

    def slowly(path, chunks):
        if not other.ident:
            other.start()
            other.join(0.5)  # it goes on only after this one has finished
        keep(path, chunks)

    monkeypatch.setattr(download, "write_atomically", slowly)
    mine = fetch_val2017(1, tmp_path)
    other.join()
    assert found == [mine]
    assert server.paths.count(f"/{ARCHIVE}") == 1


def test_the_progress_of_the_archive_is_shown_in_bytes(server, tmp_path, capsys):
    fetch_val2017(2, tmp_path)
    text = capsys.readouterr().err
    size = len(server.files[f"/{ARCHIVE}"])
    assert "annotations_trainval2017.zip: 100%" in text
    assert f"{size}/{size}" in text or f"{size / 1024:.2f}k/{size / 1024:.2f}k" in text
    assert "images: 100%" in text
    assert "2/2" in text


def test_size_place_and_licence_are_said_before(tmp_path):
    said = announcement(500, tmp_path)
    for words in ("253 MB", "500 images (about 82 MB)", str(tmp_path), "CC BY 4.0", "cocodataset.org/#termsofuse"):
        assert words in said
    (tmp_path / Path(MEMBER).name).write_text("{}")
    assert "253 MB" not in announcement(500, tmp_path)
    assert default_folder().name == "coco"
    assert download.SERVER == "http://images.cocodataset.org"


@pytest.mark.skipif(not PHOTOS.exists(), reason="there are no photographs here")
def test_photographs_of_coco_arrive_as_they_are(server, tmp_path):
    truth = json.loads((PHOTOS / "instances.json").read_text())
    files = {f"/train2017/{path.name}": path.read_bytes() for path in (PHOTOS / "images").glob("*.jpg")}
    server.files = {f"/{ARCHIVE}": archive(truth), **files}
    server.cuts = [len(server.files[f"/{ARCHIVE}"]), 30_000, 20_000]
    got, folder = fetch_val2017(5, tmp_path)
    assert len(got["images"]) == 5
    for entry in got["images"]:
        assert (folder / entry["file_name"]).read_bytes() == files[f"/train2017/{entry['file_name']}"]
