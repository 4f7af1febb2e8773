"""Explanation tools on the page: fields made from a dataclass, a run and its result; the app knows no tool by name."""

from __future__ import annotations

import ast
import csv
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import gradio as gr
import numpy as np
import pytest
from app_builders import SCENE, CountingModels
from PIL import Image as PillowImage

from text2seg import app
from text2seg.app.checks import visitors_folder
from text2seg.app.explain import explain, results
from text2seg.app.explain.run import Run, Visitors
from text2seg.app.explain.tab import ExplainTab
from text2seg.app.fields import read_settings, settings_of, shown_settings, widget
from text2seg.app.messages import note_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.desk import Desk
from text2seg.app.settings import AppSettings
from text2seg.errors import ImageError, SettingsError
from text2seg.explain import GROUPS, TOOLS, Panel, Progress, Result, Table, Tool
from text2seg.explain.estimate import Speed, Work, estimate
from text2seg.explain.tool import EMPTY

APP = Path(app.__file__).parent


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
            "target_image": "image",
            "output": "path",
            "images": "path",
            "datasets": "path",
        }

    def test_help_is_the_docstring_also_of_parent_classes(self):
        words = {each.name: each.help for each in settings_of(Everything)}
        assert words["text"] == "What to ask; has to be given."
        assert words["strength"] == "How much, over two lines."
        assert words["way"] == "Which way."

    def test_paths_on_this_machine_are_not_offered(self):
        for name, place in (("output", "/tmp"), ("images", "/tmp"), ("datasets", ["/etc/passwd"])):
            assert name not in {each.name for each in shown_settings(Everything)}
            with pytest.raises(SettingsError, match=f"no setting '{name}'"):
                read_settings(Everything, {"text": "a", name: place})

    def test_form_values_become_settings(self):
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

    def test_json_values_become_settings(self):
        settings = read_settings(Everything, {"text": "a", "words": ["b"], "point": [1, 2], "sides": [384, 640]})
        assert (settings.words, settings.point, settings.sides) == (("b",), (1, 2), (384, 640))
        assert read_settings(Everything, {"text": "a"}) == Everything("a")

    def test_an_empty_field_is_the_default(self):
        settings = read_settings(Everything, {"text": "a", "steps": None, "way": "", "point": ""})
        assert settings == Everything("a")

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({}, "text: must be given"),
            ({"text": ""}, "text: must be given"),
            ({"text": "a", "steps": "many"}, "steps: must be a whole number"),
            ({"text": "a", "steps": 1.5}, "steps: must be a whole number"),
            ({"text": "a", "steps": 0}, "steps must be 1 or more"),
            ({"text": "a", "way": "third"}, "way: must be 'first' or 'second', got 'third'"),
            ({"text": "a", "point": "3"}, "point: "),
            ({"text": "a", "point": "3, x"}, "point: "),
            ({"text": ["a"]}, "text: must be a text, got"),
            ({"text": "a", "__class__": "x"}, "no setting '__class__'"),
        ],
    )
    def test_wrong_values_have_error_messages(self, given, words):
        with pytest.raises(SettingsError, match=words):
            read_settings(Everything, given)

    @pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
    def test_every_tool_has_a_form(self, tool):
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
def fake():
    """A tool that answers with what it was given."""

    def run(models, images, settings, progress):
        notes = [f"{settings.text} {settings.steps}"]
        for step in progress.each(range(settings.steps), "counting"):
            notes.append(str(step))
        panels = tuple(Panel(image.file_name, image.pixels) for image in images)
        return Result("All of it", panels, (Table("numbers", ("a", "b"), (("x", None),)),), tuple(notes))

    return Tool("fake", "Fake", "answers with what it was given.", Everything, run)


@pytest.fixture
def image(tmp_path) -> Path:
    path = visitors_folder() / f"{tmp_path.name}.jpg"
    path.write_bytes(SCENE.read_bytes())
    yield path
    path.unlink()


@pytest.fixture
def model_pool() -> ModelPool:
    return ModelPool(CountingModels(), AppSettings())


class TestARun:
    def test_returns_the_result_of_the_tool(self, model_pool, fake, image):
        told = []
        progress = Progress(lambda *step: told.append(step))
        result = explain(model_pool, fake, [image], {"text": "a", "steps": 2}, progress)
        assert result.notes == ("a 2", "0", "1")
        assert result.panels[0].caption == image.name
        assert told == [(0, 2, "counting"), (1, 2, "counting"), (2, 2, "counting")]

    def test_opens_uploads_only(self, model_pool, fake, image):
        with pytest.raises(ImageError, match="not uploaded here"):
            explain(model_pool, fake, [SCENE], {"text": "a"})
        with pytest.raises(ImageError, match="not uploaded here"):
            explain(model_pool, fake, [image], {"text": "a", "target_image": str(SCENE)})
        assert explain(model_pool, fake, [image], {"text": "a", "target_image": str(image)}).notes

    def test_limits_the_number_of_images(self, model_pool, fake, image):
        many = Tool("many", "Many", "", Everything, fake.run, "many")
        assert len(explain(model_pool, many, [image] * 3, {"text": "a"}).panels) == 3
        with pytest.raises(ImageError, match="51 images are too many"):
            explain(model_pool, many, [image] * 51, {"text": "a"})

    def test_releases_its_turn_after_an_error(self, fake, image):
        model_pool = ModelPool(CountingModels(), AppSettings(workers=1))
        for _ in range(2):
            with pytest.raises(SettingsError, match="takes one image"):
                explain(model_pool, fake, [], {"text": "a"})
        assert explain(model_pool, fake, [image], {"text": "a"}).notes


def test_the_app_names_no_tool():
    """A new tool shows up on the page without a line here."""
    for path in APP.glob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not texts & (set(TOOLS) - {"saliency", "keywords"}), path


def test_every_tool_is_listed_once_under_a_group():
    listed = [tool.name for tools in GROUPS.values() for tool in tools]
    assert sorted(listed) == sorted(TOOLS)


def test_tables_are_texts_with_columns_of_numbers_and_a_csv(tmp_path):
    table = Table("Scores: a/b", ("text", "score", "rank"), (("a", 0.123456, 1), ('"b", c', None, 12)))
    shown = results.tables_of(Result("t", tables=(table,), notes=("A note.",)), str(tmp_path))
    (one,) = shown["tables"]
    assert one["rows"] == [["a", "0.123", "1"], ['"b", c', "–", "12"]]
    assert one["isNumber"] == [False, True, True]
    assert shown["notes"] == ["A note."]
    path = Path(one["file"]["path"])
    assert path.is_relative_to(tmp_path)
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["text", "score", "rank"], ["a", "0.123456", "1"], ['"b", c', "", "12"]]
    assert results.tables_of(Result("t"), str(tmp_path)) is None


def test_panels_become_files_in_columns(tmp_path):
    """The place of an empty panel stays free."""
    drawn = Panel("a", np.full((4, 6, 3), 7, np.uint8))
    one = results.panels_of(Result("t", (drawn,)), str(tmp_path))
    assert (one["columns"], [panel["caption"] for panel in one["panels"]]) == (1, ["a"])
    path = Path(one["panels"][0]["file"]["path"])
    assert path.is_relative_to(tmp_path)
    assert (np.asarray(PillowImage.open(path)) == 7).all()
    two = results.panels_of(Result("t", (drawn, Panel("", EMPTY)), columns=2), str(tmp_path))
    assert [bool(panel["file"]) for panel in two["panels"]] == [True, False]
    assert results.panels_of(Result("t"), str(tmp_path)) is None


def test_files_of_a_tool_are_packed_with_their_folder(tmp_path):
    folder = tmp_path / "run-all"
    (folder / "words").mkdir(parents=True)
    (folder / "run-all.html").write_text("page")
    (folder / "words" / "a.png").write_bytes(b"image")
    (folder / ".text2seg-written").write_text("{}")
    packed = results.packed(folder)
    with zipfile.ZipFile(packed) as archive:
        assert sorted(archive.namelist()) == ["run-all/run-all.html", "run-all/words/a.png"]
        assert archive.read("run-all/run-all.html") == b"page"
    assert not folder.exists()


def test_a_tool_that_writes_files_gets_a_folder(model_pool, image, tmp_path):
    @dataclass(frozen=True, slots=True)
    class Writing:
        """Where it writes."""

        folder: Path | None = None
        """The folder."""

    def run(models, images, settings, progress):
        return Result("t", notes=(f"All is in {settings.folder}/page.html. Run the same command again.",))

    tool = Tool("writing", "Writing", "", Writing, run)
    with pytest.raises(SettingsError, match="no setting 'folder'"):
        explain(model_pool, tool, [image], {"folder": "/tmp"})
    (said,) = explain(model_pool, tool, [image], {}, folder=visitors_folder() / "x" / "writing").notes
    assert note_of(said) == "All is in page.html."


class TestRun:
    """The busy state of a run."""

    def test_says_what_it_waits_for_and_the_time_left(self, fake, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        run = Run(fake)
        assert "Starting" in run.html()
        now[0] = 102.0
        assert "busy with other visitors" in run.html()
        run.begin()
        assert "Starting" in run.html()
        run.report(0, 10, "counting")
        now[0] = 106.0
        run.report(2, 10, "<b>")
        assert run.seconds_left == 16
        assert "2 of 10 steps, about 15 s left" in run.html()
        assert "&lt;b&gt;" in run.html()
        run.stop.set()
        assert "Stopping" in run.html()


def test_an_estimate_is_the_work_times_the_speed(monkeypatch):
    speed = Speed(CountingModels())
    for name, seconds in (("_clip_image", 0.1), ("_sam_image", 1.0), ("_text_step", 0.05)):
        monkeypatch.setattr(Speed, name, lambda self, seconds=seconds: seconds)
    assert speed.seconds(Work(clip_images=30, sam_images=2, text_steps=100)) == pytest.approx(10.0)
    opinion = TOOLS["opinion"]
    assert estimate(opinion, speed, 1, opinion.settings(steps=200)) == pytest.approx(64 * 0.1 + 200 * 0.05)
    twice = opinion.settings(steps=200, candidates=32)
    assert estimate(opinion, speed, 1, twice) == pytest.approx(64 * 0.1 + 400 * 0.05)
    run_all = TOOLS["run-all"]
    one, three = (estimate(run_all, speed, count, run_all.settings()) for count in (1, 3))
    assert three == pytest.approx(3 * one)
    assert estimate(TOOLS["board"], speed, 1, TOOLS["board"].settings()) is None


@pytest.mark.parametrize(("panels", "says"), [(0, "Nothing was finished yet"), (1, "the result so far")])
def test_a_stopped_run_says_whether_anything_was_done(model_pool, panels, says):
    @dataclass(frozen=True, slots=True)
    class Nothing:
        """No settings."""

    def run(models, images, settings, progress):
        tab._visitors.stop("ann", 1)
        return Result("Everything", panels * (Panel("a", np.zeros((4, 6, 3), np.uint8)),))

    tool = Tool("slow", "Slow", "", Nothing, run)
    with gr.Blocks():
        tab = ExplainTab(model_pool, {"Tools": [tool]}, gr.State(Desk()))
    *_, last = tab._run("slow", {"example": 0}, [], {}, Desk(), 1, SimpleNamespace(session_hash="ann"))
    assert says in last[tab.status]
    assert ("Everything" in last[tab.status]) is bool(panels)


def test_a_run_that_was_given_up_while_it_waited_does_not_begin():
    visitors, tool = Visitors(), TOOLS["board"]
    running = visitors.begin("ann", tool, 1)
    visitors.stop("ann", 2)
    assert running.stop.is_set()
    assert visitors.begin("ann", tool, 2) is None
    assert visitors.begin("bob", tool, 2) is not None
    assert visitors.begin("ann", tool, 3) is not None
    visitors.choose("ann", "saliency", 4)
    assert visitors.begin("ann", tool, 4) is None
