"""Presence that is not calibrated is marked wherever it is shown, and a job that decides by it says so."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from coco_builders import SCENES

from text2seg.cli import main
from text2seg.cli.terminal import SHOWN_FAILURES, say_failures
from text2seg.config import LabelSettings
from text2seg.explain import TOOLS
from text2seg.explain.keywords import KeywordsSettings
from text2seg.explain.recognition import RecognitionSettings
from text2seg.explain.tool import run_tool
from text2seg.io.images import load_image
from text2seg.labelling.job import label_folder
from text2seg.labelling.summary import columns
from text2seg.ontology import ontology_of_queries
from text2seg.records import Failure
from text2seg.review.contents import contents_of
from text2seg.review.page import write_review

SCENE = SCENES / "images" / "scene_0019.jpg"
MARK = "presence, not calibrated"


@pytest.fixture(params=[True, False])
def models(request, demo):
    """The demo model with its card and without its calibration, and the mark that its presence has."""
    return (demo, "presence") if request.param else (demo.with_card(demo.card.uncalibrated()), MARK)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(SCENE, tmp_path / "photos")
    return tmp_path / "photos"


def test_the_tools_mark_it(models):
    pair, mark = models
    found = run_tool(TOOLS["keywords"], pair, [load_image(SCENE)], KeywordsSettings("a sheep"))
    assert found.tables[0].columns[1] == mark
    assert all(panel.caption.endswith("not calibrated") == (mark == MARK) for panel in found.panels[1:])
    labels = RecognitionSettings(label=("sheep", "koala"))
    found = run_tool(TOOLS["multilabel"], pair, [load_image(SCENE)], labels)
    assert found.tables[0].columns[-1] == mark


def test_tools_mark_it_at_another_input_size(demo):
    found = run_tool(TOOLS["keywords"], demo, [load_image(SCENE)], KeywordsSettings("a sheep", size=256))
    assert found.tables[0].columns[1] == MARK


def test_a_search_marks_it_in_the_table_and_in_its_files(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    command = ["search", str(folder), "sheep", "--index", str(tmp_path / "index"), "--device", "cpu"]
    for size, marked in ((384, False), (256, True)):
        output = tmp_path / str(size)
        assert main([*command, "--input-size", str(size), "--output", str(output)]) == 0
        assert (MARK in capsys.readouterr().out) == marked
        assert json.loads((output / "search.json").read_text())["presence_calibrated"] != marked


def test_a_job_and_its_review_mark_it_and_skipping_by_it_is_said(models, folder, tmp_path, caplog):
    pair, mark = models
    output = tmp_path / "labels.json"
    settings = LabelSettings(output=output, only_if_present=True, index=tmp_path / "index")
    with caplog.at_level(logging.WARNING):
        report = label_folder(pair, folder, ontology_of_queries("sheep"), settings)
    said = "skips images by presence, which is not calibrated" in caplog.text
    assert said == (mark == MARK) == (not report.calibrated)
    assert columns(report.categories, calibrated=report.calibrated)["presence"].heading == f"mean {mark}"
    assert contents_of(json.loads(output.read_text())).calibrated == report.calibrated
    write_review(output, tmp_path / "page.html")
    assert (f"mean {MARK}" in (tmp_path / "page.html").read_text()) == (mark == MARK)


def test_all_commands_print_failures_by_one_rule(capsys):
    failures = [Failure(f"{number}.jpg", "read", f"{number}.jpg is damaged") for number in range(SHOWN_FAILURES + 2)]
    say_failures(failures[:SHOWN_FAILURES])
    assert capsys.readouterr().err.count("\n") == SHOWN_FAILURES
    say_failures(failures, all_in="page.html")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "failed: 0.jpg is damaged"
    assert lines[SHOWN_FAILURES:] == ["failed: 2 more; all are in page.html"]
    say_failures(failures)
    assert capsys.readouterr().err.splitlines()[-1] == "failed: 2 more; --verbose prints all"
    say_failures(failures, verbose=True)
    assert capsys.readouterr().err.splitlines() == [f"failed: {each.message}" for each in failures]
