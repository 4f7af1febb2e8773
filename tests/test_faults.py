"""Faults of every path that a command takes give an error message, never a traceback or a hang."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from app_builders import SCENE
from PIL import Image

from text2seg.cli import main

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 270, "height": 360}],
    "categories": [{"id": 1, "name": "sheep"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[10, 10, 30, 10, 30, 30]], "iscrowd": 0}
    ],
}
FILE_OUTPUTS = {
    "evaluate --json": "evaluate {coco} {coco} --json {x}",
    "evaluate --report": "evaluate {coco} {coco} --report {x}",
    "report": "report {coco} --images {photos} --output {x}",
    "merge": "merge {coco} --output {x}",
    "label": "label {photos} --query sheep --output {x}",
    "tune": "tune {photos} --ontology {ontology} --plot {x}",
    "replay": "replay {coco} --annotation 1 --image {x}",
    "benchmark coco": "benchmark coco --images {photos} --annotations {coco} --predictions {x}",
    "benchmark speed": "benchmark speed --quick --output {x}",
}
FOLDER_OUTPUTS = {
    "convert": "convert {coco} --to yolo-seg --output {x}",
    "segment": "segment {photos}/a.jpg --query sheep --output {x}",
    "search": "search {photos} sheep --output {x}",
    "search --index": "search {photos} sheep --index {x}",
    "explain": "explain saliency {photos}/a.jpg --text sheep --output {x}",
    "export onnx": "export onnx --output {x}",
}
FILE_INPUTS = {
    "evaluate truth": "evaluate {x} {coco}",
    "evaluate predicted": "evaluate {coco} {x}",
    "report": "report {x} --output {new}.html",
    "merge": "merge {x} --output {new}.json",
    "convert": "convert {x} --to labelme --output {new}",
    "label --ontology": "label {photos} --ontology {x} --output {new}.json",
    "label --dry-run": "label {photos} --query sheep --categories-from {x} --dry-run --output {new}.json",
    "segment --clip": "segment {photos}/a.jpg --query sheep --clip {x} --output {new}",
    "segment --sam": "segment {photos}/a.jpg --query sheep --sam {x} --output {new}",
    "segment --clip openclip": "segment {photos}/a.jpg --query sheep --clip openclip:ViT-B-16={x} --output {new}",
    "tune --ontology": "tune {photos} --ontology {x}",
    "tune --truth": "tune {photos} --ontology {ontology} --truth {x}",
    "replay": "replay {x} --annotation 1",
    "benchmark coco": "benchmark coco --images {photos} --annotations {x}",
}
FOLDER_INPUTS = {
    "report --images": "report {coco} --images {x} --output {new}.html",
    "convert --images": "convert {coco} --to voc-png --images {x} --output {new}",
    "label": "label {x} --query sheep --dry-run --output {new}.json",
    "label --sam3": "label {photos} --query sheep --sam3 {x} --output {new}.json",
    "segment --graphs": "segment {photos}/a.jpg --query sheep --runtime onnx --graphs {x} --output {new}",
    "search": "search {x} sheep",
    "export triton": "export triton --graphs {x} --output {new}",
}
OF_ALL = ("long", "deep", "under a file", "closed", "circle", "device", "pipe")


def fault(kind: str, folder: Path, *, wants: str) -> Path:
    """Return a path with this fault; `wants` is what the command expects, a file or a folder."""
    path = folder / "x"
    match kind:
        case "long":
            return folder / ("N" * 300)
        case "deep":
            return folder.joinpath(*["d" * 200] * 30)
        case "under a file":
            path.touch()
            return path / "under"
        case "closed" | "read-only":
            path.mkdir()
            (path / "there").write_text("{}", encoding="utf-8")
            path.chmod(0 if kind == "closed" else 0o555)
            return path / "there" / "x" if wants == "folder" and kind == "closed" else path / "new"
        case "circle":
            path.symlink_to(folder / "y")
            (folder / "y").symlink_to(path)
        case "other kind" if wants == "file":
            path.mkdir()
        case "other kind":
            path.touch()
        case "device":
            return Path(os.devnull)
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to(folder / "nothing")
    return path


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Return valid paths for commands, by their names in the tables above."""
    monkeypatch.setenv("TEXT2SEG_TEXT_CACHE", "off")
    monkeypatch.setenv("TEXT2SEG_CHECKPOINTS", str(tmp_path / "weights"))
    photos, coco, ontology = tmp_path / "photos", tmp_path / "coco.json", tmp_path / "things.yaml"
    photos.mkdir()
    shutil.copy(SCENE, photos / "a.jpg")
    coco.write_text(json.dumps(COCO), encoding="utf-8")
    ontology.write_text("categories:\n- sheep\n", encoding="utf-8")
    (tmp_path / "faulty").mkdir()
    above = [folder for folder in tmp_path.parents if folder.name.startswith(("pytest-", "popen-"))]
    for each in (tmp_path, tmp_path / "faulty", *above):
        each.chmod(0o777)
    yield {"photos": photos, "coco": coco, "ontology": ontology, "new": tmp_path / "new"}
    for each in (tmp_path / "faulty").iterdir():
        if each.is_dir() and not each.is_symlink():
            each.chmod(0o777)


@contextmanager
def plain_user() -> Iterator[None]:
    """Run as nobody, because root may enter every folder."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def error_of(capsys, command: str, places, path: Path, kind: str = "", *, named: str = "") -> str:
    """Run a command that must fail and return its one-line message."""
    before = all_files(places)
    arguments = [part.format(**places, x=path) for part in command.split()]
    if kind in ("closed", "read-only"):
        under_a_file = places["coco"] / "under" / path.name
        main([part.format(**places, x=under_a_file) for part in command.split()])  # nobody may not import either
        capsys.readouterr()
        with plain_user():
            assert main(arguments) != 0
    else:
        assert main(arguments) != 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("text2seg: ")]
    assert len(said) == 1
    assert (named or str(path)[:40]) in said[0]
    assert "Traceback" not in said[0]
    assert all_files(places) == before  # nothing half written
    return said[0]


def all_files(places) -> list[str]:
    """Return all files except locks, which are kept for other processes."""
    root = places["new"].parent
    return sorted(str(Path(where) / name) for where, _, names in os.walk(root) for name in names if name[-4:] != "lock")


@pytest.mark.parametrize("command", FILE_OUTPUTS)
@pytest.mark.parametrize("kind", [*OF_ALL, "read-only", "other kind"])
def test_an_unwritable_file_is_reported_before_any_work(command, kind, places, tmp_path, capsys):
    path = fault(kind, tmp_path / "faulty", wants="file")
    if command in ("tune", "replay") and kind != "device":  # their names say the format
        if kind in ("circle", "other kind", "pipe"):
            path.rename(path := path.with_suffix(".png"))
            if kind == "circle":
                path.unlink()
                path.symlink_to(path)
        else:
            path = Path(f"{path}.png")
    if command in ("tune", "replay") and kind == "device":
        pytest.skip("a device has no suffix")
    said = error_of(capsys, FILE_OUTPUTS[command], places, path, kind)
    assert "choose another" in said or "permission" in said


@pytest.mark.parametrize("command", FOLDER_OUTPUTS)
@pytest.mark.parametrize("kind", [*OF_ALL, "read-only", "other kind"])
def test_an_unwritable_folder_is_reported_before_any_work(command, kind, places, tmp_path, capsys):
    path = fault(kind, tmp_path / "faulty", wants="folder")
    assert (
        "choose another" in (said := error_of(capsys, FOLDER_OUTPUTS[command], places, path, kind))
        or "permission" in said
    )


@pytest.mark.parametrize("command", FILE_INPUTS)
@pytest.mark.parametrize("kind", [*OF_ALL, "dangling", "other kind"])
def test_an_unreadable_file_is_named(command, kind, places, tmp_path, capsys):
    path = fault(kind, tmp_path / "faulty", wants="file")
    error_of(capsys, FILE_INPUTS[command], places, path, kind)


@pytest.mark.parametrize("command", FOLDER_INPUTS)
@pytest.mark.parametrize("kind", [*OF_ALL, "dangling", "other kind"])
def test_an_unreadable_folder_is_named(command, kind, places, tmp_path, capsys):
    path = fault(kind, tmp_path / "faulty", wants="folder")
    error_of(capsys, FOLDER_INPUTS[command], places, path, kind)


@pytest.mark.parametrize("command", [*FILE_OUTPUTS, *FOLDER_OUTPUTS])
@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_refused(command, name, places, tmp_path, capsys):
    suffix = ".png" if command in ("tune", "replay") else ".json"
    path = tmp_path / "faulty" / f"{name}{suffix}"
    error_of(capsys, (FILE_OUTPUTS | FOLDER_OUTPUTS)[command], places, path, named="its name contains")


QUICK = {
    "evaluate": "evaluate {coco} {coco} --json {x} --report {x}.html",
    "report": "report {coco} --images {photos} --output {x}",
    "merge": "merge {coco} --output {x}",
    "yolo": "convert {coco} --to yolo-seg --images {photos} --output {x}",
    "voc": "convert {coco} --to voc-png --images {photos} --output {x}",
    "labelme": "convert {coco} --to labelme --images {photos} --output {x}",
}


@pytest.mark.parametrize("command", QUICK)
def test_a_full_disk_leaves_no_files_and_the_same_command_succeeds_with_room(command, places, tmp_path, capsys):
    path, before = tmp_path / "faulty" / "x", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        said = error_of(capsys, QUICK[command], places, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "make room and run the same command again" in said
    assert not path.exists()
    arguments = [part.format(**places, x=path) for part in QUICK[command].split()]
    assert main(arguments) == 0
    whole = contents(tmp_path / "faulty")
    shutil.rmtree(tmp_path / "faulty")
    assert main(arguments) == 0
    assert contents(tmp_path / "faulty") == whole


def contents(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse files of more bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_segment_on_a_full_disk_keeps_the_images_that_are_done_and_goes_on(places, tmp_path, capsys):
    small, large = places["photos"] / "a.jpg", places["photos"] / "b.png"
    Image.open(SCENE).resize((64, 36)).save(small)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)).save(large)
    command = ["segment", str(small), str(large), "--query", "sheep", "--output", str(tmp_path / "out")]
    with largest_file(400_000):
        assert main(command) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "b_overlay.png cannot be written: File too large. 1 of 2 images are done and in " in said
    assert "Make room and run the same command again: it does the others" in said
    out = contents(tmp_path / "out")
    assert {"a_overlay.png", "a_why.png", "dataset.json", ".text2seg-written"} == set(out)
    assert json.loads(out["dataset.json"])["images"][0]["file_name"] == "a.jpg"
    assert main(command) == 0
    assert "going on with a stopped run, which did 1 of 2 images" in capsys.readouterr().err
    assert contents(tmp_path / "out").items() >= {(name, out[name]) for name in ("a_overlay.png", "a_why.png")}


@pytest.mark.parametrize(
    ("save", "said"),
    [
        ("frames", "v_000001.png cannot be written: File too large"),
        ("overlay", "overlay.mp4 cannot be written: No space left on device"),  # OpenCV does not say why
    ],
)
def test_track_on_a_full_disk_writes_what_there_is_room_for(save, said, places, tmp_path, capsys):
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (3, 192, 256, 3), np.uint8)  # is hard to compress
    noise[0] = 0
    video = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (256, 192))
    for frame in noise:
        video.write(frame)
    video.release()
    out = tmp_path / "out"
    command = ["track", str(tmp_path / "v.mp4"), "--query", "sheep", "--save", save, "--output", str(out)]
    with largest_file(20_000):
        status = main(command)
    last = capsys.readouterr().err.splitlines()[-1]
    assert said in last
    assert status == 3
    if save == "overlay":
        assert f"{out / 'dataset.json'} has the masks of the 3 frames" in last
    else:
        assert "or set the environment variable TMPDIR" in last
        assert f"The first 1 frames are in {out / 'dataset.json'}" in last
    images = json.loads((out / "dataset.json").read_text(encoding="utf-8"))["images"]
    assert len(images) == (3 if save == "overlay" else 1)
    assert main([*command, "--overwrite"]) == 0
    assert (out / ("overlay.mp4" if save == "overlay" else "frames")).exists()
