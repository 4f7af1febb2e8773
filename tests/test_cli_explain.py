"""`text2seg explain` as a user sees it; what the tools show is tested with them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from text2seg.cli import main
from text2seg.cli.commands import run_command
from text2seg.cli.explain import ToolCommand
from text2seg.errors import ImageError, SettingsError
from text2seg.explain import TOOLS, Panel, Progress, Result, Table, Tool, run_tool, save_result
from text2seg.explain.tool import ImageFiles

SCENE = "text2seg/demo/scenes/new-scenes/images/scene_0019.jpg"


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_has_help_and_says_what_it_shows(name, capsys):
    assert re.fullmatch(r"[A-Z].+\.", TOOLS[name].summary)
    with pytest.raises(SystemExit) as stop:
        main(["explain", name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"text2seg explain {name}" in text
    assert "--model" in text
    assert ("FILE" in text) == (TOOLS[name].images != "none")


def test_a_tool_writes_its_image_and_numbers(tmp_path, capsys):
    assert main(["explain", "saliency", SCENE, "--text", "sheep", "--output", str(tmp_path)]) == 0
    image = tmp_path / "saliency_scene_0019.png"
    assert str(image) in capsys.readouterr().out
    assert min(Image.open(image).size) > 200
    numbers = json.loads((tmp_path / "saliency_scene_0019.json").read_text(encoding="utf-8"))
    assert numbers["tables"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["saliency", "nowhere.png", "--text", "sheep"], "nowhere.png"),
        (["saliency", SCENE, "--text", ""], "empty"),
        (["saliency", SCENE, "--text", "aardvark"], "does not know"),
        (["saliency", SCENE, "--text", "sheep", "--method", "layercam"], "surgery"),
        (["run-all", "docs/training"], "docs/training"),
        (["saliency", "text2seg/demo/scenes/new-scenes", "--text", "sheep"], "one image"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(arguments, says, tmp_path, capsys):
    assert main(["explain", *arguments, "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1


@dataclass(frozen=True, slots=True)
class _Settings:
    times: int = 3
    """How often."""


def _show(models, images, settings, progress):
    for _ in progress.each(range(settings.times), "counting"):
        pass
    return Result("A title", tables=(Table("Numbers", ("name", "value"), (("[red]", 0.5), ("none", None))),))


@pytest.fixture
def tool(monkeypatch):
    import text2seg.explain.tool as module

    monkeypatch.setattr(module, "show_test", _show, raising=False)
    return Tool("counted", "Counts.", _Settings, "tool:show_test", "none")


def test_a_table_is_printed_as_it_is(tool, tmp_path, capsys):
    command = {"counted": ToolCommand(tool)}
    assert run_command(command, ["counted", "--times", "2", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "[red]" in text  # no markup
    assert "0.500" in text
    assert "–" in text
    assert (tmp_path / "counted.json").exists()


def test_a_tool_is_watched_and_stopped(tool, demo):
    told = []
    run_tool(tool, demo, (), _Settings(2), Progress(lambda *what: told.append(what)))
    assert told == [(0, 2, "counting"), (1, 2, "counting"), (2, 2, "counting")]
    progress = Progress(lambda *what: progress._stop.set())
    assert list(progress.each([1, 2, 3])) == [1]


@pytest.mark.parametrize(("images", "count", "says"), [("one", 2, "one image"), ("many", 0, "at least one")])
def test_the_number_of_images_is_checked(tool, demo, images, count, says):
    wanting = Tool("counted", "Counts.", _Settings, tool.function, images)
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


def test_an_result_without_images_writes_none(tmp_path):
    panel = Panel("first", np.zeros((4, 6, 3), np.uint8))
    assert save_result(Result("Empty"), tmp_path, "empty") == []
    (image,) = save_result(Result("One", (panel,)), tmp_path / "deeper", "größe")
    assert image.name == "größe.png"
    assert Result("None").image() is None
    with pytest.raises(ValueError, match="2 cells"):
        Table("Numbers", ("a", "b"), ((1,),))
