"""Tools on the page: fields from any dataclass, a run, its exhibit; the app knows no tool by name."""

from __future__ import annotations

import ast
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gradio as gr
import numpy as np
import pytest
from app_builders import SCENE, CountingModels

from text2seg.app import explain_tab
from text2seg.app.explain_tab import explain
from text2seg.app.fields import read_settings, settings_of, shown_settings, widget
from text2seg.app.model_pool import ModelPool
from text2seg.app.settings import AppSettings
from text2seg.app.uploads import visitors_folder
from text2seg.errors import ImageError, SettingsError
from text2seg.explain import TOOLS, Panel, Progress, Result, Table, Tool

APP = Path(explain_tab.__file__).parent


@dataclass(frozen=True, slots=True)
class Base:
    """What all have."""

    text: str
    """What to ask; has to be given."""
    strength: float = 0.5
    """How much,
    over two lines."""


@dataclass(frozen=True, slots=True)
class Everything(Base):
    """One of each kind."""

    way: Literal["first", "second"] = "second"
    """Which way."""
    ways: tuple[Literal["a", "b"], ...] = ("a",)
    maybe: Literal["x", "y"] | None = None
    steps: int = 3
    size: int | None = None
    layer: str | None = None
    is_loud: bool = False
    words: tuple[str, ...] = ("one",)
    point: tuple[int, int] | None = None
    sides: int | tuple[int, int] | None = None
    target_image: Path | None = None
    output: Path = Path("somewhere")
    images: Path | None = None
    datasets: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SettingsError("steps must be 1 or more")


class TestFields:
    def test_kinds_follow_from_the_types(self):
        assert {each.name: each.kind for each in settings_of(Everything)} == {
            "text": "text",
            "strength": "number",
            "way": "choice",
            "ways": "choices",
            "maybe": "choice",
            "steps": "whole",
            "size": "whole",
            "layer": "text",
            "is_loud": "flag",
            "words": "lines",
            "point": "list",
            "sides": "list",
            "target_image": "picture",
            "output": "path",
            "images": "path",
            "datasets": "path",
        }

    def test_help_is_what_stands_under_a_field_parents_too(self):
        words = {each.name: each.help for each in settings_of(Everything)}
        assert words["text"] == "What to ask; has to be given."
        assert words["strength"] == "How much, over two lines."
        assert words["way"] == "Which way."

    def test_places_on_this_machine_are_not_offered(self):
        for name, place in (("output", "/tmp"), ("images", "/tmp"), ("datasets", ["/etc/passwd"])):
            assert name not in {each.name for each in shown_settings(Everything)}
            with pytest.raises(SettingsError, match=f"no setting '{name}'"):
                read_settings(Everything, {"text": "a", name: place})

    def test_what_widgets_give_becomes_settings(self):
        """Texts for lists, empty texts for nothing, whole numbers that came as floats."""
        given = {
            "text": "a",
            "strength": 1,
            "way": "first",
            "ways": ["a", "b"],
            "maybe": "",
            "steps": 4.0,
            "size": None,
            "layer": "",
            "is_loud": True,
            "words": "one\n\n two, three ",
            "point": "3, 4",
            "sides": "384",
            "target_image": None,
        }
        expected = Everything(
            "a",
            1.0,
            "first",
            ("a", "b"),
            None,
            4,
            None,
            None,
            True,
            ("one", "two, three"),
            (3, 4),
            384,
        )
        assert read_settings(Everything, given) == expected

    def test_what_programs_give_does_too(self):
        settings = read_settings(Everything, {"text": "a", "words": ["b"], "point": [1, 2], "sides": [384, 640]})
        assert (settings.words, settings.point, settings.sides) == (("b",), (1, 2), (384, 640))
        assert read_settings(Everything, {"text": "a"}) == Everything("a")

    def test_an_empty_field_is_the_default(self):
        settings = read_settings(Everything, {"text": "a", "steps": None, "way": "", "point": ""})
        assert settings == Everything("a")

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({}, "Text: please fill in"),
            ({"text": ""}, "Text: please fill in"),
            ({"text": "a", "steps": "many"}, "Steps: input should be a valid integer"),
            ({"text": "a", "steps": 1.5}, "Steps: input should be a valid integer"),
            ({"text": "a", "steps": 0}, "steps must be 1 or more"),
            ({"text": "a", "way": "third"}, "Way: input should be 'first' or 'second'"),
            ({"text": "a", "point": "3"}, "Point"),
            ({"text": "a", "point": "3, x"}, "Point"),
            ({"text": ["a"]}, "Text: must be a text, got"),
            ({"text": "a", "__class__": "x"}, "no setting '__class__'"),
        ],
    )
    def test_wrong_ones_are_refused_in_words(self, given, words):
        with pytest.raises(SettingsError, match=words):
            read_settings(Everything, given)

    @pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
    def test_every_tool_can_be_filled_in(self, tool):
        """Each setting has help and a widget whose first value is the default."""
        with gr.Blocks(analytics_enabled=False):
            values = {each.name: widget(each).value for each in shown_settings(tool.settings)}
        for each in shown_settings(tool.settings):
            assert each.help, f"{tool.name}: {each.name} has no help"
        required = [each.name for each in shown_settings(tool.settings) if each.is_required]
        if not required:
            default = tool.settings()
            read = read_settings(tool.settings, values)
            for each in shown_settings(tool.settings):
                assert getattr(read, each.name) == getattr(default, each.name), each.name


@pytest.fixture
def fake(monkeypatch):
    """A tool that answers with what it was given."""

    def run(models, images, settings, progress):
        notes = [f"{settings.text} {settings.steps}"]
        for step in progress.each(range(settings.steps), "counting"):
            notes.append(str(step))
        panels = tuple(Panel(image.file_name, image.pixels) for image in images)
        return Result("All of it", panels, (Table("numbers", ("a", "b"), (("x", None),)),), tuple(notes))

    module = types.ModuleType("text2seg.explain.fake_tool")
    module.run = run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Tool("fake", "answers with what it was given.", Everything, "fake_tool:run")


@pytest.fixture
def picture(tmp_path) -> Path:
    path = visitors_folder() / f"{tmp_path.name}.jpg"
    path.write_bytes(SCENE.read_bytes())
    yield path
    path.unlink()


@pytest.fixture
def model_pool() -> ModelPool:
    return ModelPool(CountingModels(), AppSettings())


class TestARun:
    def test_shows_what_the_tool_shows(self, model_pool, fake, picture):
        told = []
        progress = Progress(lambda *step: told.append(step))
        result = explain(model_pool, fake, [picture], {"text": "a", "steps": 2}, progress)
        assert result.notes == ("a 2", "0", "1")
        assert result.panels[0].caption == picture.name
        assert told == [(0, 2, "counting"), (1, 2, "counting"), (2, 2, "counting")]

    def test_looks_at_uploads_only(self, model_pool, fake, picture):
        with pytest.raises(ImageError, match="not uploaded here"):
            explain(model_pool, fake, [SCENE], {"text": "a"})
        with pytest.raises(ImageError, match="not uploaded here"):
            explain(model_pool, fake, [picture], {"text": "a", "target_image": str(SCENE)})
        assert explain(model_pool, fake, [picture], {"text": "a", "target_image": str(picture)}).notes

    def test_takes_many_pictures_but_not_any_number(self, model_pool, fake, picture):
        many = Tool("many", "", Everything, fake.function, "many")
        assert len(explain(model_pool, many, [picture] * 3, {"text": "a"}).panels) == 3
        with pytest.raises(ImageError, match="51 pictures are too many"):
            explain(model_pool, many, [picture] * 51, {"text": "a"})

    def test_leaves_its_turn_to_others_after_an_error(self, fake, picture):
        model_pool = ModelPool(CountingModels(), AppSettings(workers=1))
        for _ in range(2):
            with pytest.raises(SettingsError, match="looks at one image"):
                explain(model_pool, fake, [], {"text": "a"})
        assert explain(model_pool, fake, [picture], {"text": "a"}).notes


def test_the_app_names_no_tool():
    """A new tool shows up on the page without a line here."""
    for path in APP.glob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not texts & (set(TOOLS) - {"saliency", "keywords"}), path


def test_every_tool_is_listed_once_under_a_group():
    listed = [tool.name for tools in explain_tab.groups_of_tools().values() for tool in tools]
    assert sorted(listed) == sorted(TOOLS)


def test_cells_are_short_and_nothing_is_a_dash():
    assert [explain_tab._cell(value) for value in (None, 0.123456, "a", 3)] == ["–", 0.1235, "a", 3]


def test_pictures_and_numbers_can_be_taken_home(fake):
    result = Result("t", (Panel("a", np.zeros((4, 6, 3), np.uint8)),), (), ("note",))
    assert explain_tab._gallery(result).columns == 1
