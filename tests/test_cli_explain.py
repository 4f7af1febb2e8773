"""The command `text2seg explain`. The results of the tools are tested in test_explain_*.py."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from text2seg.cli import main, run_command
from text2seg.cli.explain import ToolCommand
from text2seg.errors import ImageError, SettingsError
from text2seg.explain import TOOLS, Panel, Progress, Result, Table, Tool, run_tool, save_result
from text2seg.io.scan import ImageFiles

SCENE = "text2seg/demo/scenes/new-scenes/images/scene_0019.jpg"


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_has_a_summary_and_help(name, capsys):
    assert re.fullmatch(r"[A-Z].+\.", TOOLS[name].summary)
    with pytest.raises(SystemExit) as stop:
        main(["explain", name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"text2seg explain {name}" in text
    assert "--model" in text
    assert ("FILE" in text) == (TOOLS[name].images != "none")


def test_docs_list_every_tool_with_its_title():
    page = Path("docs/explain.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \|", page, re.MULTILINE)
    assert listed == [(tool.name, tool.title) for tool in TOOLS.values()]


def test_an_earlier_result_is_replaced_only_with_overwrite_and_a_photograph_is_noticed(tmp_path, capsys, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)  # rough and grey, as photographs are
    Image.fromarray(noise).save(tmp_path / "noise.png")
    command = ["explain", "saliency", str(tmp_path / "noise.png"), "--text", "sheep", "--output", str(tmp_path / "out")]
    result = tmp_path / "out" / "saliency_noise.json"
    assert main(command) == 0
    assert caplog.text.count("noise.png looks like a photograph") == 1
    before = result.read_bytes()
    assert main([*command, "--method", "legrad"]) == 1
    assert "saliency_noise.png already exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert result.read_bytes() == before
    assert main([*command, "--method", "legrad", "--overwrite"]) == 0
    assert result.read_bytes() != before


@pytest.mark.parametrize("name", ["similarity-table", "average-map"])
def test_a_tool_that_goes_on_does_not_replace_results_of_other_settings(name, tmp_path, capsys):
    out, scenes = tmp_path / "out", [SCENE, SCENE.replace("0019", "0003")]
    command, more = (["explain", name, *scenes[:count], "--output", str(out)] for count in (1, 2))
    assert main([*command, "--text", "sheep"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main([*command, "--text", "bomb"]) == 1
    error = capsys.readouterr().err
    assert "has the results of a run with other settings (text: sheep → bomb)" in error
    assert "--overwrite" in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main([*command, "--text", "sheep"]) == 0
    assert main([*more, "--text", "sheep"]) == 0  # the images before, and more
    assert main([*command, "--text", "sheep"]) == 1
    assert "images: " in capsys.readouterr().err
    assert main([*command, "--text", "bomb", "--overwrite"]) == 0
    table = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["tables"][0]
    assert "bomb" in str(table) and "sheep" not in str(table)  # noqa: PT018


def test_a_tool_that_is_stopped_before_it_has_done_anything_writes_nothing(tmp_path, capsys, monkeypatch):
    @contextmanager
    def stopped():
        stop = threading.Event()
        stop.set()
        yield stop

    monkeypatch.setattr("text2seg.cli.explain.stop_on_signals", stopped)
    for name in ("run-all", "similarity-table", "average-map"):
        out = tmp_path / name
        assert main(["explain", name, SCENE, *(["--text", "sheep"] * (name != "run-all")), "--output", str(out)]) == 130
        assert "nothing was written" in capsys.readouterr().err
        assert not out.exists()


def test_tool_writes_an_image_and_numbers(tmp_path, capsys):
    assert main(["explain", "saliency", SCENE, "--text", "sheep", "--output", str(tmp_path)]) == 0
    image = tmp_path / "saliency_scene_0019.png"
    assert str(image) in capsys.readouterr().out
    assert min(Image.open(image).size) > 200
    numbers = json.loads((tmp_path / "saliency_scene_0019.json").read_text(encoding="utf-8"))
    assert numbers["tables"]


@pytest.mark.parametrize(
    "texts",
    [
        ["saliency", SCENE, "--text", "sheep", "--text", "aardvark"],
        ["board", SCENE, "--texts", "sheep; aardvark"],
        ["multilabel", SCENE, "--label", "sheep", "--label", "aardvark", "--label", "koala"],
    ],
)
def test_a_text_that_the_model_does_not_know_stops_no_other(texts, tmp_path, capsys):
    assert main(["explain", *texts, "--output", str(tmp_path)]) == 3
    assert "left out: the demo model does not know 'aardvark'." in capsys.readouterr().err
    numbers = json.loads((tmp_path / f"{texts[0]}_scene_0019.json").read_text(encoding="utf-8"))
    assert "aardvark" not in json.dumps(numbers["tables"])
    assert "sheep" in json.dumps(numbers["tables"])
    assert "does not know 'aardvark'" in numbers["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [
        (["saliency", "nowhere.png", "--text", "sheep"], "nowhere.png", 1),
        (["saliency", SCENE, "--text", ""], "empty", 2),
        (["saliency", SCENE, "--text", "aardvark"], "does not know", 1),
        (["saliency", SCENE, "--text", "sheep", "--method", "layercam"], "surgery", 2),
        (["run-all", "training/logs"], "training/logs", 1),
        (["saliency", "text2seg/demo/scenes/new-scenes", "--text", "sheep"], "one image", 2),
    ],
)
def test_error_is_one_clear_line(arguments, says, status, tmp_path, capsys):
    assert main(["explain", *arguments, "--output", str(tmp_path)]) == status
    *before, error = capsys.readouterr().err.splitlines()
    assert says in error
    assert all(line.startswith(("text2seg: loading the models", "text2seg: the models are")) for line in before)


@dataclass(frozen=True, slots=True)
class _Settings:
    times: int = 3
    """How often."""


def _show(models, images, settings, progress):
    for _ in progress.each(range(settings.times), "counting"):
        pass
    return Result("A title", tables=(Table("Numbers", ("name", "value"), (("[red]", 0.5), ("none", None))),))


@pytest.fixture
def tool():
    return Tool("counted", "Counted", "Counts.", _Settings, _show, "none")


def test_table_is_printed_literally(tool, tmp_path, capsys):
    command = {"counted": ToolCommand(tool)}
    assert run_command(command, ["counted", "--times", "2", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "[red]" in text  # no markup
    assert "0.500" in text
    assert "–" in text
    assert (tmp_path / "counted.json").exists()


def test_tool_reports_progress_and_can_be_stopped(tool, demo):
    told = []
    run_tool(tool, demo, (), _Settings(2), Progress(lambda *what: told.append(what)))
    assert told == [(0, 2, "counting"), (1, 2, "counting"), (2, 2, "counting")]


def test_a_stop_yields_no_further_item():
    """Not when the report sets it, while the caller works, or while the next item is made."""
    stop = threading.Event()
    assert list(Progress(lambda *what: stop.set(), stop).each([1, 2, 3])) == []
    stop = threading.Event()
    made, taken = [], []

    def items(stop_at):
        for item in range(3):
            made.append(item)
            if item == stop_at:
                stop.set()
            yield item

    for item in Progress(stop=stop).each(items(None)):
        taken.append(item)
        stop.set()
    assert (made, taken) == ([0], [0])
    stop = threading.Event()
    assert list(Progress(stop=stop).each(items(1))) == [0]


@pytest.mark.parametrize(("images", "count", "says"), [("one", 2, "one image"), ("many", 0, "at least one")])
def test_wrong_number_of_images_raises(tool, demo, images, count, says):
    wanting = Tool("counted", "Counted", "Counts.", _Settings, tool.run, images)
    with pytest.raises(SettingsError, match=says):
        run_tool(wanting, demo, [object()] * count)


def test_images_of_a_folder_are_read_one_by_one(tmp_path):
    for name, width in (("b.png", 5), ("a.jpg", 4)):
        Image.new("RGB", (width, 3)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    images = ImageFiles([tmp_path])
    assert [path.name for path in images.paths] == ["a.jpg", "b.png", "c.png"]
    assert [(image.image_id, image.hw) for image in (images[0], images[1])] == [(1, (3, 4)), (2, (3, 5))]
    with pytest.raises(ImageError, match=r"c\.png"):
        images[2]
    assert len(images[1:]) == 2
    with pytest.raises(ImageError, match="nowhere"):
        ImageFiles([tmp_path / "nowhere"])


def test_result_without_panels_writes_no_image(tmp_path):
    panel = Panel("first", np.zeros((4, 6, 3), np.uint8))
    assert save_result(Result("Empty"), tmp_path, "empty") == []
    (image,) = save_result(Result("One", (panel,)), tmp_path / "deeper", "größe")
    assert image.name == "größe.png"
    assert Result("None").image() is None
    with pytest.raises(ValueError, match="2 cells"):
        Table("Numbers", ("a", "b"), ((1,),))
