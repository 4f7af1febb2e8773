"""Flags without a value, that contradict each other or have no effect; how long a stop takes, and what it says."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from tqdm import tqdm

from text2seg.cli import main
from text2seg.cli.terminal import LinesBesideBars
from text2seg.coco.dataset import read_dataset
from text2seg.config import MapSettings, MaskSettings, PointSettings
from text2seg.effects import METHODS_OF
from text2seg.io.images import load_image

SCENES = Path("text2seg/demo/scenes/new-scenes")
SCENE = SCENES / "images" / "scene_0019.jpg"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("segment x.jpg --query", '--query needs a value, such as --query "red car"'),
        ("segment x.jpg --query --model demo", '--query needs a value, such as --query "red car"'),
        ("segment x.jpg --query a --threshold", "--threshold needs a value, such as --threshold 0.8"),
        ("segment x.jpg --query a --threshold high", "--threshold takes a number, such as --threshold 0.8; got high"),
        ("segment x.jpg --query a --tile=2.5", "--tile takes a whole number, such as --tile 0; got 2.5"),
        ("segment x.jpg --query a --save", "--save needs a value, such as --save overlay,why"),
        ("label x --query a --limit two", "--limit takes a whole number, such as --limit 5; got two"),
        ("label x --query a --output", "--output needs a value, such as --output PATH"),
        ("label x --query a --model lage", "--model takes one of auto, demo, light, base, large, huge; got lage."),
        ("convert x --to", "--to needs a value, such as --to yolo-seg"),
        ("explain saliency x.jpg --text", '--text needs a value, such as --text "a red car"'),
    ],
)
def test_a_missing_or_wrong_value_is_named_with_an_example(line, says, capsys):
    assert main(shlex.split(line)) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert says in error


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("segment x.jpg --everything --threshold 0.5", "--threshold has no effect with --everything"),
        ("segment x.jpg --everything --clip a --tile=64", "--clip, --tile have no effect with --everything"),
        ("segment x.jpg --query a --stability 0.9", "--stability has no effect without --everything"),
        ("segment x.jpg --everything --crop-overlap 0.1", "--crop-overlap has no effect without --crop-layers"),
        ("segment x.jpg --query a --polygon-tolerance 2", "no effect without --segmentation polygon"),
        ("segment x.jpg --query a --tile-overlap 0.3", "no effect without --tile"),
        ("segment x.jpg --query a --labels b", "no effect without --redundancy label-set"),
        ("segment x.jpg --query a --method reference --choice map", "--choice has no effect with --method reference"),
        (
            "segment x.jpg --query a --method regions --instances union --floor .9 --prominence .9 --prompt box"
            " --threshold .2 --downsample 2",
            "--threshold, --instances, --floor and 3 more have no effect with --method regions",
        ),
        ("segment x.jpg --query a --method regions --choice sam", "--choice has no effect with --method regions and"),
        ("segment x.jpg --query a --region-features values", "no effect without --method regions"),
        ("label x --query a --method reference --region-features values", "no effect without --method regions"),
        (
            "segment x.jpg --query a --method reference --overlap .1 --quality 5",
            "--overlap, --quality have no effect with --method reference and without --tile",
        ),
        ("label x --query a --skip-below 0.3", "no effect without --only-if-present"),
        ("label x --query a --max-workers 2", "no effect without --engine ray"),
        ("label x --query a --sam3 y --clip b", "--clip has no effect with --sam3"),
        ("convert x --to voc-png --output y --polygon-tolerance 2", "no effect with --to voc-png"),
    ],
)
def test_a_flag_without_effect_is_refused(line, says, capsys):
    assert main(shlex.split(line)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "segment {0} --everything --points-per-side 4 --crop-layers 1 --crop-overlap 0.1 --output {1}",
        "segment {0} --query sheep --segmentation polygon --polygon-tolerance 2 --no-resolve-overlaps --output {1}",
        "segment {0} --query sheep --redundancy label-set --labels ball --output {1}",
        "segment {0} --query sheep --method regions --region-features values --quality 0 --output {1}",
        "segment {0} --query sheep --method reference --tile 128 --overlap 0.5 --save none --output {1}",
    ],
)
def test_a_flag_with_effect_is_accepted(line, tmp_path):
    assert main(shlex.split(line.format(SCENE, tmp_path))) == 0


def test_the_effect_of_each_setting_with_each_method_is_known():
    settings = [field.name for stage in (MapSettings, PointSettings, MaskSettings) for field in fields(stage)]
    assert sorted(METHODS_OF) == sorted(settings)
    methods = get_args(get_type_hints(PointSettings)["method"])
    assert METHODS_OF["method"] == methods
    assert {method for each in METHODS_OF.values() for method in each} == set(methods)


def test_an_input_smaller_than_one_patch_is_refused(tmp_path, capsys):
    assert main(["segment", str(SCENE), "--query", "sheep", "--input-size", "7", "--output", str(tmp_path / "x")]) == 2
    assert "input size must be at least 16, one patch of this CLIP, got 7" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "line",
    [
        ["--input-size", "96", str(SCENE), "--query", "sheep"],
        ["--query", "sheep", "--input-size", "96", "128", str(SCENE)],
        [str(SCENE), "--query", "sheep", "--input-size", "96"],
    ],
)
def test_the_input_size_may_stand_before_the_files(line, tmp_path):
    assert main(["segment", *line, "--save", "none", "--output", str(tmp_path)]) == 0
    size = 96 if "128" not in line else [96, 128]
    assert read_dataset(tmp_path / "dataset.json")["info"]["provenance"]["settings"]["maps"]["input_size"] == size


@pytest.mark.parametrize(
    "line", [["--input-size", "big", str(SCENE)], [str(SCENE), "--query", "sheep", "--input-size"]]
)
def test_an_input_size_that_is_no_number_is_named(line, capsys):
    assert main(["segment", *line]) == 2
    assert "--input-size takes one or two whole numbers, got " in capsys.readouterr().err


def test_an_own_presence_threshold_of_uncalibrated_settings_is_named(tmp_path, capsys):
    line = ["segment", str(SCENE), "--query", "sheep", "--architecture", "naclip", "--save", "none"]
    assert main([*line, "--output", str(tmp_path / "one")]) == 0
    assert "so nothing counts as absent" in capsys.readouterr().err
    assert main([*line, "--presence", "0.7", "--output", str(tmp_path / "two")]) == 0
    errors = capsys.readouterr().err
    assert "--presence 0.7 says what is not found" in errors
    assert "nothing counts as absent" not in errors


def test_segment_says_in_which_image_something_was_found(tmp_path, capsys):
    other = SCENES / "images" / "scene_0001.jpg"
    assert (
        main(["segment", str(SCENE), str(other), "--query", "sheep", "--save", "none", "--output", str(tmp_path)]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{SCENE}: sheep: 2 found")
    assert lines[1].startswith(f"{other}: sheep: not found")
    assert lines[2] == "sheep: found in 1 of 2"


def test_a_stopped_segment_says_what_is_done_and_how_to_go_on(tmp_path, capsys, monkeypatch):
    class Stopped:
        def __init__(self, models):
            self._models, self._calls = models, 0

        def __getattr__(self, name):
            return getattr(self._models, name)

        def segment_sessions(self, *given):
            self._calls += 1
            if self._calls == 2:
                raise KeyboardInterrupt
            return self._models.segment_sessions(*given)

    from text2seg.cli import segment

    load = segment.load_models
    monkeypatch.setattr(segment, "load_models", lambda *given: Stopped(load(*given)))
    files = sorted(map(str, (SCENES / "images").iterdir()))[:3]
    assert main(["segment", *files, "--query", "sheep", "--output", str(tmp_path)]) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped with 1 of 3 images done, which are in {tmp_path / 'dataset.json'}" in error
    assert "The same command again does the others" in error
    assert len(read_dataset(tmp_path / "dataset.json")["images"]) == 1
    assert main(["segment", *files, "--query", "sheep,bomb", "--output", str(tmp_path)]) == 1
    assert "of a stopped run with other images, queries, settings or weights" in capsys.readouterr().err
    monkeypatch.setattr(segment, "load_models", load)
    assert main(["segment", *files, "--query", "sheep", "--output", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "going on with a stopped run, which did 1 of 3 images" in captured.err
    assert "of 3" in captured.out
    assert main(["segment", *files, "--query", "sheep", "--output", str(tmp_path / "whole")]) == 0
    ours, theirs = (read_dataset(tmp_path / name) for name in ("dataset.json", "whole/dataset.json"))
    assert all(ours[key] == theirs[key] for key in ("images", "annotations", "categories"))


def test_a_stopped_segment_that_overwrites_says_that_the_earlier_dataset_is_kept(tmp_path, capsys, monkeypatch):
    files = sorted(map(str, (SCENES / "images").iterdir()))[:2]
    command = ["segment", *files, "--query", "sheep", "--save", "none", "--output", str(tmp_path)]
    assert main(command) == 0
    dataset = (tmp_path / "dataset.json").read_bytes()
    seen = []

    def stop_at_second(*given, **named):
        seen.append(given)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return load_image(*given, **named)

    monkeypatch.setattr("text2seg.segmenting.load_image", stop_at_second)
    assert main([*command, "--overwrite"]) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped with 1 of 2 images done; {tmp_path / 'dataset.json'} is still that of the earlier run" in error
    assert "The same command again begins again" in error
    assert (tmp_path / "dataset.json").read_bytes() == dataset


def test_a_message_has_a_line_of_its_own_above_a_progress_bar():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    handler = LinesBesideBars(terminal)
    with tqdm(total=2, file=terminal) as bar:
        bar.update()
        bar.refresh()
        handler.emit(logging.makeLogRecord({"msg": "stopping after the current work"}))
    said, after = terminal.getvalue().split("\n")[:2]
    *_, cleared, message = said.split("\r")
    assert (cleared.strip(), message) == ("", "stopping after the current work")
    assert "1/2" in after  # the bar is drawn again
    file = io.StringIO()
    with tqdm(total=2, file=file):
        LinesBesideBars(file).emit(logging.makeLogRecord({"msg": "stopping"}))
    assert "\nstopping\n" in file.getvalue()


@pytest.mark.parametrize("command", ["segment", "search"])
def test_a_result_of_somebody_else_is_refused_before_any_work_even_with_overwrite(
    command, tmp_path, capsys, monkeypatch
):
    def load(*given):
        raise AssertionError("models are loaded")

    monkeypatch.setattr(f"text2seg.cli.{command}.load_models", load)
    name = {"segment": "dataset.json", "search": "search.json"}[command]
    given = {"segment": [str(SCENE), "--query", "sheep"], "search": [str(SCENES), "sheep", "--index", str(tmp_path)]}
    (tmp_path / name).write_text("{}")
    assert main([command, *given[command], "--model", "demo", "--output", str(tmp_path), "--overwrite"]) == 1
    assert f"{name} was not written by text2seg" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="sees in /proc when torch is imported")
def test_two_interrupts_while_models_load_end_with_a_message(tmp_path):
    command = [sys.executable, "-m", "text2seg", "label", str(SCENES), "--query", "sheep", "--output"]
    process = subprocess.Popen([*command, str(tmp_path / "d.json")], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = next((line for line in process.stderr if "stopped" in line), "")
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    assert said
    assert process.wait() == 130


FILES = [str(path) for path in sorted((SCENES / "images").iterdir())]
TRUTH = str(SCENES / "dataset.json")
BENCHMARK = ["benchmark", "coco", "--images", str(SCENES), "--annotations", TRUTH, "--model", "demo"]


@pytest.mark.parametrize(
    ("command", "number", "said"),
    [
        (["segment", *FILES, "--query", "sheep"], signal.SIGTERM, "The same command again does the others"),
        (BENCHMARK, signal.SIGINT, "about the images so far"),
        ([*BENCHMARK, "--compare"], signal.SIGTERM, "stopped after 1 of 3 methods"),
        (["tune", str(SCENES), "--truth", TRUTH, "--write"], signal.SIGTERM, "nothing was written"),
        (["tune", str(SCENES), "--write"], signal.SIGINT, "nothing was written"),
    ],
)
def test_a_stopped_command_shows_or_keeps_what_is_done(command, number, said, tmp_path):
    if command[0] == "tune":
        (tmp_path / "things.yaml").write_text("categories:\n  - name: sheep\n  - name: apple\n")
        command = [*command, "--ontology", str(tmp_path / "things.yaml")]
    elif command[0] == "segment":
        command = [*command, "--output", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "text2seg", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TQDM_MININTERVAL": "0"},
    )
    shown = ""
    while not re.search(r"\b[1-9]\d*/\d+ ", shown):  # the progress bar, after the first image
        shown += process.stderr.read(1) or pytest.fail(f"no image was done: {shown}")
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, shown + errors
    assert said in errors
    if command[0] == "segment":
        assert 1 <= len(json.loads((tmp_path / "dataset.json").read_text())["images"]) < 24
    else:
        assert "sheep" in output if command[0] == "tune" else "mean IoU" in output
    if command[0] == "tune":
        assert "threshold" not in (tmp_path / "things.yaml").read_text()
