"""A job that is killed at any moment and started again writes the same bytes as an uninterrupted job."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import labelling_builders as jobs
import pytest

from text2seg.coco.dataset import read_dataset
from text2seg.labelling.output import journal_path

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "text2seg" / "demo" / "scenes" / "new-scenes"
PATIENCE = 300


@pytest.mark.parametrize(("encoding", "seed"), [("rle", 1), ("polygon", 2)])
def test_a_job_killed_25_times_writes_the_same_bytes(tmp_path, encoding, seed):
    """Two hundred tiny images, fake models whose result depends on the whole batch, the real journal and writer."""
    folder, output, uninterrupted = tmp_path / "photos", tmp_path / "killed.json", tmp_path / "whole.json"
    (folder).mkdir()
    jobs.fill(folder, 200)
    command = [sys.executable, jobs.__file__, folder, output, encoding, "25", str(seed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert int(done.stdout) >= 15  # the others had ended just before
    report = jobs.run(folder, output, segmentation=encoding)
    assert report.done == 200
    jobs.run(folder, uninterrupted, segmentation=encoding)
    assert output.read_bytes() == uninterrupted.read_bytes()


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for scene in sorted((SCENES / "images").iterdir())[:count]:
        shutil.copy(scene, folder)
    return folder


def queries() -> str:
    return ",".join(category["name"] for category in read_dataset(SCENES / "dataset.json")["categories"][:3])


def start(folder: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the real command in a separate process; its messages go to a file beside the output."""
    command = [sys.executable, "-m", "text2seg", "label", str(folder), "--output", str(output), "--device", "cpu"]
    with output.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--queries", queries(), *more],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def wait_for_progress(process: subprocess.Popen[bytes], output: Path) -> None:
    """Wait until the models are loaded and the first batch has begun, or the process has ended."""
    end = time.monotonic() + PATIENCE
    while b"image/s" not in output.with_suffix(".log").read_bytes() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_for_records(process: subprocess.Popen[bytes], output: Path, enough: int) -> None:
    """Wait until the journal has `enough` images, or the process has ended."""
    end = time.monotonic() + PATIENCE
    while records(output) < enough and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def records(output: Path) -> int:
    return journal_path(output).read_bytes().count(b'{"file"')


def test_the_real_command_killed_three_times_writes_the_same_bytes(tmp_path):
    """Twelve of the bundled scenes, the demo model, SIGKILL at random moments."""
    folder, output, uninterrupted = photos(tmp_path / "photos", 12), tmp_path / "killed.json", tmp_path / "whole.json"
    dice, grown = random.Random(7), [0]
    for grow in (0, 2, 2):
        process = start(folder, output, "--batch", "2")
        wait_for_progress(process, output)
        wait_for_records(process, output, min(grown[-1] + grow, 11))
        time.sleep(dice.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was to die at work"
        grown.append(records(output))
    assert grown == sorted(grown)
    assert len(set(grown)) > 2
    assert start(folder, output, "--batch", "2").wait(PATIENCE) == 0
    assert start(folder, uninterrupted, "--batch", "2").wait(PATIENCE) == 0
    assert output.read_bytes() == uninterrupted.read_bytes()
    dataset = read_dataset(output)
    assert len(dataset["images"]) == 12
    assert dataset["annotations"]


def test_a_second_ctrl_c_stops_at_once_and_says_how_to_go_on(tmp_path):
    folder, output = photos(tmp_path / "photos", 40), tmp_path / "dataset.json"
    process = start(folder, output, "--batch", "20")
    wait_for_progress(process, output)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 128 + signal.SIGINT
    message = output.with_suffix(".log").read_text(encoding="utf-8")
    assert "run the same command again to go on" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_batch_and_the_message_says_how_to_resume(tmp_path, number):
    folder, output = photos(tmp_path / "photos", 8), tmp_path / "dataset.json"
    process = start(folder, output, "--batch", "1")
    wait_for_progress(process, output)
    wait_for_records(process, output, 1)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 128 + number
    message = output.with_suffix(".log").read_text(encoding="utf-8")
    done = records(output)
    assert 1 <= done < 8
    assert f"stopped with {done} of 8 images done" in message
    assert "run the same command again" in message
    assert "Traceback" not in message
    for line in journal_path(output).read_text(encoding="utf-8").splitlines():
        json.loads(line)
    assert not output.exists()
