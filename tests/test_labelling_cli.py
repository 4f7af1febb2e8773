"""The command `text2seg label` with the demo model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from filelock import FileLock
from labelling_builders import FakeModels
from PIL import Image as PillowImage
from PIL import ImageFile

from text2seg.cli import main
from text2seg.coco.dataset import read_dataset
from text2seg.config import LabelSettings
from text2seg.io.output_folder import OutputFolder
from text2seg.labelling import dry_run
from text2seg.labelling.job import label_folder
from text2seg.labelling.watch import watch
from text2seg.ontology import ontology_of_queries

SCENES = Path("text2seg/demo/scenes/new-scenes")


def names(count=2):
    return [category["name"] for category in read_dataset(SCENES / "dataset.json")["categories"][:count]]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for scene in sorted((SCENES / "images").iterdir())[:3]:
        shutil.copy(scene, folder)
    return folder


def label(folder, output, *more):
    return main(["label", str(folder), "--output", str(output), "--device", "cpu", *map(str, more)])


def test_ontology_damaged_image_printed_table_and_a_run_with_nothing_to_do(folder, tmp_path, capsys):
    ontology = tmp_path / "things.yaml"
    ontology.write_text(f"categories:\n- name: wanted [x]\n  queries: [{names()[0]}]\n- name: {names()[1]}\n", "utf-8")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    output = tmp_path / "dataset.json"
    assert label(folder, output, "--ontology", ontology) == 3
    text, errors = capsys.readouterr()
    assert "wanted [x]" in text
    assert "mean score" in text
    assert "1 failed" in text
    assert errors.count("broken.jpg") == 1
    dataset = read_dataset(output)
    assert len(dataset["images"]) == 3
    assert [category["name"] for category in dataset["categories"]] == ["wanted [x]", names()[1]]
    assert len(dataset["info"]["provenance"]["clip"]["sha256"]) == 64
    assert set(dataset["images"][0]["attributes"]["presence"]) == {"wanted [x]", names()[1]}
    before = output.read_bytes()
    assert "nothing new to do" not in text
    assert label(folder, output, "--ontology", ontology) == 3
    text, errors = capsys.readouterr()
    assert "nothing new to do: earlier runs did all images; 1 of them failed, and --retry-failures tries again" in text
    assert errors.count("broken.jpg") == 1
    assert output.read_bytes() == before
    assert label(folder, output, "--ontology", ontology, "--threshold", "0.7") == 1
    assert "settings.points.threshold: 0.8 → 0.7" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_a_job_in_which_every_image_fails_exits_with_1_and_writes_no_dataset(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for number in range(12):
        (tmp_path / "photos" / f"{number:02}.jpg").write_text("no image", encoding="utf-8")
    assert label(tmp_path / "photos", tmp_path / "dataset.json", "--query", names()[0]) == 1
    errors = capsys.readouterr().err
    assert f"none of the 12 images could be labelled, so {tmp_path / 'dataset.json'} was not written" in errors
    assert "The first: 00.jpg" in errors
    assert not (tmp_path / "dataset.json").exists()
    assert (tmp_path / "dataset.json.journal").read_text(encoding="utf-8").count('"failure"') == 12


def test_one_unknown_category_does_not_block_the_others(folder, tmp_path, capsys):
    known, output = names()[0], tmp_path / "dataset.json"
    assert label(folder, output, "--query", f"{known}, unicycle", "--limit", "1") == 3
    errors = capsys.readouterr().err
    assert "left out: the demo model does not know 'unicycle'. Did you mean bicycle?" in errors
    assert "--model base" in errors
    assert [category["name"] for category in read_dataset(output)["categories"]] == [known]
    assert label(folder, output, "--query", known, "--limit", "1") == 0  # the same job


def test_a_dry_run_writes_nothing(folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"\x89PNG")
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / "out" / "dataset.json"
    assert label(folder, output, "--query", names()[0], "--dry-run") == 3
    text, errors = capsys.readouterr()
    assert "in 4 images" in text
    assert errors.count("broken.png") == 1
    assert sorted(tmp_path.rglob("*")) == before
    output.parent.mkdir()
    output.write_text("{}", encoding="utf-8")
    assert label(folder, output, "--query", names()[0], "--dry-run") == 1
    assert "--overwrite" in capsys.readouterr().err
    output.unlink()
    assert label(folder, output, "--query", names()[0]) == 3
    capsys.readouterr()
    assert label(folder, output, "--query", names()[0], "--dry-run") == 3
    assert "in 0 images" in (text := capsys.readouterr().out)
    assert "4 more are done already; 1 of them failed" in text
    assert "together 0.0 megapixels" in text


def test_a_dry_run_reads_only_the_headers_of_images_that_are_to_be_labelled(folder, tmp_path, capsys, monkeypatch):
    output, first = tmp_path / "dataset.json", sorted(folder.iterdir())[0]
    assert label(folder, output, "--query", names()[0], "--limit", "1") == 0
    capsys.readouterr()
    new = folder / "z.png"
    PillowImage.new("RGB", (2000, 1500)).save(new)
    new.write_bytes(new.read_bytes()[:64])  # the header is whole
    read, opened = [], dry_run.open_image
    monkeypatch.setattr(dry_run, "open_image", lambda path, name: read.append(path) or opened(path, name))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    assert label(folder, output, "--query", names()[0], "--dry-run") == 0
    assert new in read
    assert first not in read
    others = sum(np.prod(PillowImage.open(path).size) for path in read if path != new)
    assert f"together {(3e6 + others) / 1e6:,.1f} megapixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--query", "koala"], "ontology.categories"),
        (["--threshold", "0.7"], "settings.points.threshold"),
        (["--model", "base"], "clip.name: demo → ViT-B/16"),
        (["--batch", "2"], "batch"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(folder, tmp_path, capsys, arguments, changed):
    output, wanted = tmp_path / "dataset.json", ["--query", "sheep"]
    assert label(folder, output, *wanted, "--limit", "1") == 0
    capsys.readouterr()
    given = arguments if "--query" in arguments else [*wanted, *arguments]
    assert label(folder, output, *given, "--dry-run") == 1
    assert changed in capsys.readouterr().err
    assert label(folder, output, *given, "--dry-run", "--restart") == 0


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [
        ([], "nothing to look for: give --ontology", 2),
        (["--query", "zebra"], "zebra", 1),
        (["--query", "zebra", "--dry-run"], "zebra", 1),
        (["--query", "ball", "--ontology", "x.yaml"], "not both", 2),
        (["--ontology", "nowhere.yaml"], "nowhere.yaml", 1),
        (["--query", "ball", "--clip", "nothing", "--dry-run"], "nothing", 2),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(folder, tmp_path, capsys, arguments, says, status):
    output = tmp_path / "dataset.json"
    assert label(folder, output, *arguments) == status
    *before, error = capsys.readouterr().err.splitlines()
    assert says in error
    assert all(line.startswith(("text2seg: loading the models", "text2seg: the models are ")) for line in before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit):
        main(["label", "--help"])
    text = capsys.readouterr().out
    for flag in ("ontology", "output", "segmentation", "no-recursive", "glob", "limit", "shard", "batch", "workers"):
        assert f"--{flag}" in text
    for flag in ("categories-from", "keep-candidates", "restart", "resume", "retry-failures", "overwrite"):
        assert f"--{flag}" in text
    assert "--dry-run" in text


def test_an_output_locked_by_another_process_is_refused_before_models_are_loaded(folder, tmp_path, capsys):
    output = tmp_path / "dataset.json"
    with FileLock(f"{output}.journal.lock"):
        assert label(folder, output, "--query", "ball", "--clip", "nothing") == 1
    assert "another process is writing" in capsys.readouterr().err


def test_restart_deletes_the_image_files_of_the_earlier_result_and_no_others(folder, tmp_path, capsys):
    output, images = tmp_path / "dataset.json", tmp_path / "dataset_images"
    assert label(folder, output, "--query", names()[0], "--presence", "0", "--save", "overlay,masks") == 0
    assert list(images.glob("masks/*.png"))
    first = sorted(path.name for path in images.glob("*.png"))
    (images / "mine.png").write_bytes(b"mine")
    changed = images / first[0]
    changed.write_bytes(b"drawn on")
    (folder / first[1].removesuffix("_overlay.png")).unlink()
    assert label(folder, output, "--query", names()[1], "--presence", "1", "--save", "masks", "--restart") == 0
    assert sorted(path.name for path in images.rglob("*.png")) == sorted(["mine.png", changed.name])
    assert label(folder, output, "--query", names()[1], "--save", "overlay", "--restart") == 3
    errors = capsys.readouterr().err
    assert f"{changed.name} was changed since text2seg wrote it" in errors
    assert changed.read_bytes() == b"drawn on"
    assert (images / "mine.png").read_bytes() == b"mine"
    assert label(folder, output, "--query", names()[1], "--save", "overlay", "--restart", "--overwrite") == 0
    assert changed.read_bytes() != b"drawn on"


def test_a_stopped_job_draws_no_further_images(folder, tmp_path):
    """The first Ctrl-C comes while the first image is drawn; the other images of the batch wait to be drawn."""
    output, seen, stop = tmp_path / "dataset.json", [], threading.Event()

    class Slow(OutputFolder):
        def write(self, files):
            seen.append(files[0][0])
            stop.set()
            return super().write(files)

    with patch("text2seg.labelling.job.OutputFolder", Slow):
        settings = LabelSettings(output, save="overlay")
        report = label_folder(FakeModels(), folder, ontology_of_queries("ball"), settings, stop=stop)
    assert (report.interrupted, report.done, len(seen)) == (True, 1, 1)
    assert label_folder(FakeModels(), folder, ontology_of_queries("ball"), settings).done == 3
    assert len(list((tmp_path / "dataset_images").glob("*.png"))) == 3


def test_watch_labels_what_arrives_until_it_is_stopped(folder, tmp_path):
    """The first image, then a second one that sorts before it, then a broken one; each round does only what is new."""
    waiting = sorted(folder.iterdir())
    arriving = tmp_path / "arriving"
    arriving.mkdir()
    output, stop = tmp_path / "dataset.json", threading.Event()
    shutil.copy(waiting[1], arriving)
    rounds = watch(FakeModels(), arriving, ontology_of_queries(names()), LabelSettings(output), stop=stop, seconds=0.01)
    first = next(rounds)
    assert (first.images, first.earlier) == (1, 0)
    shutil.copy(waiting[0], arriving)
    (arriving / "notes.txt").write_text("no image")
    second = next(rounds)
    assert (second.images, second.earlier) == (2, 1)
    assert [image["file_name"] for image in read_dataset(output)["images"]] == [path.name for path in waiting[:2]]
    (arriving / "zz.jpg").write_bytes(b"\xff\xd8")
    third = next(rounds)
    assert (third.images, third.earlier, third.failed) == (3, 2, 1)
    stop.set()
    assert list(rounds) == []


def test_watch_waits_for_the_first_image_and_goes_on_after_a_round_without_a_result(folder, tmp_path, caplog):
    arriving, output, stop = tmp_path / "arriving", tmp_path / "dataset.json", threading.Event()
    arriving.mkdir()

    def arrive():
        (arriving / "a.jpg").write_bytes(b"\xff\xd8")
        while "could not be labelled" not in caplog.text:  # the round of the first image alone has ended
            stop.wait(0.01)
        shutil.copy(min(folder.iterdir()), arriving)

    thread = threading.Thread(target=arrive)
    rounds = watch(FakeModels(), arriving, ontology_of_queries(names()), LabelSettings(output), stop=stop, seconds=0.01)
    thread.start()
    report = next(rounds)
    thread.join()
    assert (report.images, report.failed) == (2, 1)
    assert "the image could not be labelled" in caplog.text


def test_the_command_watches_until_ctrl_c(folder, tmp_path):
    output = tmp_path / "dataset.json"
    command = [sys.executable, "-u", "-m", "text2seg", "label", folder, "--watch", "--output", output]
    command += ["--model", "demo", "--query", names()[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("COCO file: "):
                break
        assert len(read_dataset(output)["images"]) == 3
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    assert main(["label", str(folder), "--watch", "--dry-run", "--query", names()[0]]) == 2


def test_a_job_whose_reader_goes_away_is_finished(tmp_path):
    """As in `text2seg label … 2>&1 | head`: the bar, in whose lock an error would wait for ever, can write no more."""
    reader, writer = os.pipe()
    command = ["label", str(SCENES), "--query", "sheep", "--output", str(tmp_path / "d.json")]
    each_image = os.environ | {"TQDM_MININTERVAL": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "text2seg", *command], stdout=writer, stderr=writer, env=each_image
    )
    os.close(writer)
    said = b""
    while not re.search(rb"[1-9]/24 ", said):
        said += os.read(reader, 1 << 16) or pytest.fail(said.decode())
    os.close(reader)
    process.wait(timeout=300)
    assert len(json.loads((tmp_path / "d.json").read_text())["images"]) == 24
