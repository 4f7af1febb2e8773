"""The command `text2seg label --engine ray`: flags, Ctrl-C, and an address without a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from test_labelling_kill import PATIENCE, ROOT, photos, queries, records

from text2seg.cli import main
from text2seg.cli.terminal import FAILED, INTERRUPTED, WRONG_FLAGS

pytestmark = [pytest.mark.skipif(os.name != "posix", reason="signals"), pytest.mark.usefixtures("alone_with_ray")]


def command(folder, output, *more):
    asked = ["label", str(folder), "--queries", queries(), "--output", str(output), "--device", "cpu", "--batch", "1"]
    return [*asked, *more]


def started(folder, output, log):
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "text2seg", *command(folder, output, "--engine", "ray")],
            stdout=file,
            stderr=file,
            cwd=ROOT,
            start_new_session=True,
        )


def wait_for_a_record(process, journal, output):
    """Wait until an image is done; return the exit status of a process that ends before."""
    end = time.monotonic() + PATIENCE
    while not (journal.exists() and records(output)) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    return process.poll()


def test_ctrl_c_keeps_finished_images_and_the_local_engine_resumes(tmp_path):
    """SIGINT goes to the whole process group, as a terminal sends it, and thus also to Ray's processes."""
    pytest.importorskip("ray", reason="the extra ray")
    folder, output, whole = photos(tmp_path / "photos", 8), tmp_path / "dataset.json", tmp_path / "whole.json"
    log, journal = output.with_suffix(".log"), output.with_name(output.name + ".journal")
    process = started(folder, output, log)
    while wait_for_a_record(process, journal, output) == FAILED and "did not start within" in log.read_text():
        process = started(folder, output, log)  # as the message says: Ray has 30 seconds to start, load or not
    assert process.poll() is None, log.read_text(encoding="utf-8")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == INTERRUPTED, log.read_text(encoding="utf-8")
    message, done = output.with_suffix(".log").read_text(encoding="utf-8"), records(output)
    assert 1 <= done < 8
    assert f"stopped with {done} of 8 images done" in message
    assert "Traceback" not in message
    assert "Connecting" not in message, "Ray was begun again while it ended"
    assert not output.exists()
    assert main(command(folder, output)) == 0
    assert main(command(folder, whole)) == 0
    assert output.read_bytes() == whole.read_bytes()


def test_an_address_without_a_cluster_fails_quickly_with_one_line(tmp_path, capsys):
    pytest.importorskip("ray", reason="the extra ray")
    folder, output = photos(tmp_path / "photos", 1), tmp_path / "dataset.json"
    began = time.monotonic()
    assert main(command(folder, output, "--engine", "ray", "--address", "127.0.0.1:9")) == FAILED
    assert time.monotonic() - began < 60  # almost all of it for importing Ray on a busy machine
    said = capsys.readouterr().err
    assert "no Ray cluster answers at 127.0.0.1:9" in said
    assert "ray start --head" in said
    assert not output.exists()


def test_ray_flags_without_the_ray_engine_are_refused(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 1)
    assert main(command(folder, tmp_path / "dataset.json", "--max-workers", "4")) == WRONG_FLAGS
    assert "--engine ray" in capsys.readouterr().err
