"""The command line as a user sees it: exit status, what stands where, one line for each thing that went wrong."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import warnings

import pytest
from PIL import Image

from text2seg.cli import main
from text2seg.cli.commands import COMMANDS
from text2seg.coco import rle
from text2seg.coco.dataset import read_dataset

SCENE = "text2seg/demo/scenes/new-scenes/images/scene_0001.jpg"


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["segment", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--query", "--model", "--clip", "--sam", "--device", "--precision", "--input-size", "--output"):
        assert flag in text
    for flag in ("--threshold", "--redundancy", "--labels", "--templates", "--segmentation", "--architecture"):
        assert flag in text


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("text2seg 0.")


def test_help_is_quick_because_it_imports_no_command(capsys):
    code = (
        "import sys; from text2seg.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'tyro', 'rich', 'cv2', 'gradio'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, command in COMMANDS.items():
        assert name in done.stdout
        assert command.summary[:30] in done.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "explain"])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"text2seg {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["segmnt"], ["explain", "salience"]])
def test_an_unknown_command_is_told_the_known_ones(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def scene(tmp_path, name="scene one.png"):
    path = tmp_path / name
    Image.open(SCENE).save(path)
    return path


def wanted():
    truth = read_dataset("text2seg/demo/scenes/new-scenes/dataset.json")
    names = {category["id"]: category["name"] for category in truth["categories"]}
    return names[next(a["category_id"] for a in truth["annotations"] if a["image_id"] == 1)]


def test_segment_writes_images_and_coco_and_reports_bad_files(tmp_path, capsys):
    good, bad = scene(tmp_path, "größe ☂.png"), tmp_path / "broken.jpg"
    bad.write_bytes(b"\xff\xd8\xff")
    out = tmp_path / "out"
    status = main(["segment", str(good), str(bad), "--query", wanted(), "--device", "cpu", "--output", str(out)])
    text, errors = capsys.readouterr()
    assert status == 1  # one file failed, and nothing else was lost by it
    assert errors.count("broken.jpg") == 1
    assert str(out / "dataset.json") in text
    assert (out / "größe ☂_overlay.png").exists()
    assert (out / "größe ☂_maps.png").exists()
    dataset = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert len(dataset["images"]) == 1
    assert dataset["annotations"]
    for annotation in dataset["annotations"]:
        assert rle.decode(annotation["segmentation"]).sum() == annotation["area"]
        assert len(annotation["attributes"]["provenance"]["clip"]["sha256"]) == 64


def test_two_files_of_one_name_do_not_overwrite_each_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = [scene(tmp_path / folder, "same.png") for folder in "ab"]
    out = tmp_path / "out"
    assert main(["segment", *map(str, files), "--query", wanted(), "--output", str(out)]) == 0
    assert len(list(out.glob("*_overlay.png"))) == 2
    assert len(json.loads((out / "dataset.json").read_text(encoding="utf-8"))["images"]) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([SCENE], "nothing to look for"),
        (["--query", "dog"], "no image"),
        ([SCENE, "--query", ""], "must not be empty"),
        ([SCENE, "--query", "zebra crossing"], "does not know"),
        ([SCENE, "--query", "dog", "--threshold", "2"], "threshold must be in"),
        ([SCENE, "--query", "dog", "--clip", "ViT-B/17"], "ViT-B/16"),
        ([SCENE, "--query", "dog", "--clip", "text2seg/demo/sam_demo.pth"], "sam_demo.pth"),
        ([SCENE, "--query", "dog", "--sam", "nowhere.pth"], "nowhere.pth"),
        ([SCENE, "--query", "dog", "--device", "cuda:99"], "cuda:99"),
        ([SCENE, "--query", "dog", "--output", "README.md/x"], "--output"),
        ([SCENE, "--query", "dog", "--redundancy", "label-set"], "text2seg: a label set needs two labels"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(arguments, says, capsys):
    assert main(["segment", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1


def test_missing_image_is_reported_by_name(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["segment", "nowhere.png", "--query", "dog", "--output", str(out)]) == 1
    assert "nowhere.png" in capsys.readouterr().err


def test_checkpoints_list_and_verify(capsys):
    assert main(["checkpoints", "list"]) == 0
    text = capsys.readouterr().out
    for name in ("demo", "ViT-B/16", "RN50x64", "ViT-L/14@336px", "vit_b", "vit_l", "vit_h"):
        assert name in text
    assert main(["checkpoints", "verify"]) == 0
    assert capsys.readouterr().out.count(" ok ") == 2  # the demo pair


@pytest.mark.parametrize(("names", "says"), [([], "nothing to download"), (["demo", "vit_x"], "vit_b, vit_l, vit_h")])
def test_what_cannot_be_downloaded(names, says, capsys):
    assert main(["checkpoints", "download", *names]) == 1
    text, error = capsys.readouterr()
    assert says in error
    assert text == ""  # known before the first download


@pytest.mark.skipif(sys.platform == "win32" or sys.platform == "darwin", reason="file names are Unicode there")
def test_file_names_that_are_no_unicode(tmp_path):
    path = scene(tmp_path, "ungl\udcfcck.png")
    done = subprocess.run(
        [sys.executable, "-m", "text2seg", "segment", path, "--query", wanted(), "--output", tmp_path / "out"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"ungl\udcfcck_overlay.png" in done.stdout


def test_large_images_bring_no_warnings(tmp_path, capsys, monkeypatch):
    path = scene(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow's own limit; it warns above and refuses at twice
    gc.collect()  # what other tests left unclosed warns here and not below
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert main(["segment", str(path), "--query", wanted(), "--output", str(tmp_path / "out")]) == 0
    assert [str(warning.message) for warning in caught] == []
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_seen_enough():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "text2seg", "checkpoints", "list"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_as_a_program():
    done = subprocess.run([sys.executable, "-m", "text2seg", "segment"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "nothing to look for" in done.stderr


HOSTILE = "a\x1b]0;owned\x07\x1b[2J\0\u202egpj.exe\x9b\r\nb"
STEERING = ("\x1b", "\x07", "\0", "\u202e", "\x9b", "\r")


def test_nothing_that_is_printed_steers_the_terminal(capsys, monkeypatch):
    """Lines, errors, log messages and tables; names of others come into all of them."""
    from text2seg.cli import terminal
    from text2seg.cli.tables import PlainConsole, plain_table
    from text2seg.errors import DatasetError

    def run_command(*arguments):
        terminal.say(HOSTILE)
        table = plain_table(HOSTILE, HOSTILE)
        table.add_row(HOSTILE)
        PlainConsole(width=200).print(table)
        record = logging.LogRecord("x", logging.WARNING, "", 0, "%s is odd", (HOSTILE,), None)
        terminal.say_lines(terminal.EscapingFormatter("%(message)s").format(record))
        raise DatasetError(HOSTILE)

    monkeypatch.setattr("text2seg.cli.run_command", run_command)
    assert main([]) == 1
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not [sign for sign in STEERING if sign in text]
        assert "\\x1b]0;owned\\x07" in text
    assert "\\u202egpj.exe" in out


def test_the_folder_that_a_dataset_names_stands_in_messages_with_escapes(tmp_path):
    from text2seg.coco.lookup import ImageFinder
    from text2seg.errors import ImageError

    for folder in (f"/srv/{HOSTILE}", HOSTILE, f"https://host/{HOSTILE}"):
        with pytest.raises(ImageError, match=r"\\x1b\]0;owned") as error:
            ImageFinder(tmp_path / "dataset.json", None, {"folder": folder}).find("a.jpg")
        assert str(error.value).isprintable()
