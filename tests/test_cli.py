"""The command line: exit status, standard output and error, one line for each error."""

from __future__ import annotations

import errno
import gc
import io
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import warnings
from configparser import ConfigParser
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from tqdm import tqdm

from text2seg import weights
from text2seg._version import __version__
from text2seg.cli import COMMANDS, Group, doctor, main
from text2seg.cli.common import MOST_ROWS
from text2seg.cli.flags import described
from text2seg.cli.terminal import log_python_warnings, log_to_terminal, waiting
from text2seg.coco import rle
from text2seg.coco.dataset import read_dataset
from text2seg.coco.provenance import provenance_of
from text2seg.errors import CheckpointError
from text2seg.io.output_folder import OutputFolder
from text2seg.model_card import card_of, place_of_card
from text2seg.pipeline import Text2Seg
from text2seg.settings_fields import cuda_is_impossible

GROUPS = [name for name, command in COMMANDS.items() if isinstance(command, Group)]
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


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", ["segment", "label", "search", "checkpoints show", "explain saliency", "app"])
def test_help_fills_its_lines(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "None" in line]
    assert max(map(len, lines)) <= columns
    assert not [line for line in lines if line.startswith("│") and not line.strip("│ ")]
    for line, following in itertools.pairwise(lines):
        words, more = line.strip("│ ").split(), following.strip("│ ").split()
        indent, goes_on = (len(each) - len(each.lstrip("│ ")) for each in (line, following))
        is_text = words and indent == goes_on > 2 and not line.strip("│ ").startswith(("-", "─"))
        if is_text and more and words[-1][-1] not in ".)":
            assert indent + len(" ".join([*words, more[0]])) > columns - 3, line


def test_optional_values_have_the_form_of_their_type():
    @dataclass
    class Flags:
        one: int | None = None
        """Docstring
        of two lines."""
        two: int | tuple[int, int] | None = None
        three: Literal["a", "b"] | None = None
        four: Path | None = None

    before = dict(Flags.__annotations__)
    with described(Flags):
        said = {name: hint.__metadata__[-1] for name, hint in Flags.__annotations__.items()}
    assert Flags.__annotations__ == before
    forms = {name: each.metavar for name, each in said.items()}
    assert forms == {"one": "INT", "two": "INT [INT]", "three": "{a,b}", "four": "PATH"}
    assert {each.help_behavior_hint for each in said.values()} == {""}
    assert said["one"].help == "Docstring of two lines."


def test_doctor_shows_versions_device_weights_and_missing_extras(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "missing_extras", lambda: ["ray", "search"])
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in (__version__, torch.__version__, "device", "precision", "GiB available", "clip demo", "sam demo"):
        assert part in text
    assert 'pip install "text2seg[ray,search]"' in text
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(
    ("versions", "extras"),
    [
        ({}, []),
        ({"s3fs": "missing"}, ["cloud"]),
        ({"onnxscript": "missing"}, ["onnx"]),
        ({"transformers": "4.57.1"}, ["sam2"]),
        ({"transformers": "4.40.0"}, ["openclip", "sam2"]),
        ({"open_clip_torch": "4.0.0", "faiss-cpu": "missing"}, ["openclip", "search"]),
    ],
)
def test_doctor_compares_each_package_of_an_extra_with_its_versions(versions, extras, monkeypatch):
    wanted = [Requirement(line) for line in metadata.requires("text2seg")]
    lowest = {each.name: next((s.version for s in each.specifier if s.operator == ">="), "1") for each in wanted}
    here = lowest | {"transformers": "5.0.0"} | versions
    monkeypatch.setattr(doctor, "_version", here.__getitem__)
    assert sorted(doctor.missing_extras()) == extras


def test_doctor_knows_a_package_that_is_missing():
    assert doctor._version("text2seg-without-a-release") == doctor.MISSING


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("text2seg 0.")


def test_auto_says_which_weights_are_used_and_what_to_download_for_photographs(tmp_path, capsys):
    command = ["segment", SCENE, "--query", "sheep", "--save", "none", "--output", str(tmp_path)]
    assert main(command) == 0
    automatic = capsys.readouterr().err
    assert "the models are CLIP demo with SAM demo" in automatic
    assert "knows drawn things only; " in automatic
    assert "For photographs, first run: text2seg checkpoints download base (693 MiB)" in automatic
    recorded = json.loads((tmp_path / "dataset.json").read_text())["info"]["provenance"]
    assert [recorded[kind]["name"] for kind in ("clip", "sam")] == ["demo", "demo"]
    assert main([*command, "--model", "demo", "--overwrite"]) == 0
    chosen = capsys.readouterr().err
    assert "the models are CLIP demo with SAM demo" in chosen
    assert "download" not in chosen


def test_help_imports_no_command(capsys):
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


def test_the_first_mask_needs_none_of_the_packages_that_load_slowly(tmp_path):
    code = (
        "import sys; from text2seg.cli import main; assert main(sys.argv[1:]) == 0;"
        "slow = {'torchvision', 'ray', 'gradio', 'matplotlib', 'transformers', 'scipy', 'open_clip'};"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    command = ["segment", SCENE, "--query", "sheep", "--output", str(tmp_path)]
    subprocess.run([sys.executable, "-c", code, *command], check=True)
    assert (tmp_path / f"{Path(SCENE).stem}_overlay.png").exists()


TRUTH = "text2seg/demo/scenes/new-scenes/dataset.json"
ONE_BOX = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 512, "height": 288}],
    "categories": [{"id": 1, "name": "sheep"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 100, 100], "iscrowd": 0}],
}
WITHOUT_SLOW_IMPORTS = """
import sys
from text2seg.cli import main
for line in sys.stdin.read().splitlines():
    try:
        status = main(line.split())
    except SystemExit as stop:
        status = stop.code
    slow = {"torch", "cv2", "gradio", "matplotlib", "scipy", "open_clip", "onnxruntime", "faiss"} & set(sys.modules)
    assert not slow, (line, slow)
    assert status == int(sys.argv[1]), (line, status)
"""


def run_without_slow_imports(lines, status, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SLOW_IMPORTS, str(status)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env={**os.environ, "TEXT2SEG_CHECKPOINTS": str(tmp_path / "checkpoints")},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_help_of_every_command_is_printed_without_slow_imports(tmp_path):
    groups = [f"{group} {name}" for group in GROUPS for name in COMMANDS[group].commands()]
    single = [name for name in COMMANDS if name not in GROUPS]
    run_without_slow_imports([f"{name} --help" for name in [*single, *groups]], 0, tmp_path)


def test_wrong_words_files_and_names_are_found_without_slow_imports(tmp_path):
    folder, out = "text2seg/demo/scenes/new-scenes", tmp_path / "out"
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps(ONE_BOX | {"categories": [{"id": 1, "name": "unicycle"}]}), encoding="utf-8")
    errors = run_without_slow_imports(
        [
            f"segment nowhere.png --query sheep --output {out}",
            f"segment {SCENE} --query unicycle --output {out}",
            f"segment {SCENE} --query sheep --clip nowhere.pt --output {out}",
            f"segment {SCENE} --query sheep --sam nowhere.pth --output {out}",
            "search nowhere sheep",
            f"search {folder} unicycle",
            "tune nowhere --ontology text2seg/demo/scenes/things.yaml",
            f"tune {folder} --ontology nowhere.yaml",
            f"tune {folder} --ontology text2seg/demo/scenes/things.yaml --truth nowhere.json",
            "replay nowhere.json --annotation 1",
            f"merge nowhere.json --output {out}.json",
            f"convert nowhere.json --to yolo-seg --output {out}",
            f"explain saliency nowhere.png --text sheep --output {out}",
            f"explain saliency {SCENE} --text unicycle --output {out}",
            f"explain words {SCENE} --text unicycle --output {out}",
            f"explain saliency {SCENE} --text sheep --clip nowhere.pt --output {out}",
            f"benchmark coco --images {folder} --annotations nowhere.json",
            f"benchmark coco --images nowhere --annotations {folder}/dataset.json",
            f"export onnx --output {out} --clip nowhere.pt",
            f"export onnx --output {out} --images nowhere --queries sheep",
            "app --clip nowhere.pt",
            f"explain saliency {SCENE} --target-image nowhere.png --output {out}",
            f"explain saliency {SCENE} --vector nowhere.npy --output {out}",
            f"explain saliency {SCENE} --word unicycle=1 --word xylophone=1 --output {out}",
            f"explain saliency {SCENE} --word sheep=1 --output {out}",
            f"explain saliency {SCENE} --word sheep=-1 --word koala=1 --output {out}",
            f"explain saliency {SCENE} --word sheep --output {out}",
            f"explain compare {SCENE} --text sheep --text koala --output {out}",
            f"explain board {SCENE} --texts unicycle --output {out}",
            f"explain semantic {SCENE} --label xylophone --label unicycle --output {out}",
            f"explain faithfulness --dataset nowhere.json --output {out}",
            f"explain recognition-scores --dataset {TRUTH} --dataset nowhere.json --output {out}",
            f"tune {folder} --ontology text2seg/demo/scenes/things.yaml --truth {SCENE}",
            f"replay {TRUTH} --annotation 99999",
            f"benchmark coco --images {folder} --annotations {unknown}",
            f"replay {TRUTH} --annotation 1 --image x.gif",
            f"export onnx --output {out} --images {folder} --queries unicycle",
            f"export onnx --output {SCENE}",
            f"export triton --graphs nowhere --output {out}",
            f"calibrate {TRUTH} --images nowhere --report {out}.html",
        ],
        1,
        tmp_path,
    )
    assert len(errors.splitlines()) == 40  # each is one line
    assert len(run_without_slow_imports(["checkpoints show nowhere"], 2, tmp_path).splitlines()) == 1
    errors = run_without_slow_imports(
        [
            f"segment {SCENE} --query sheep --device gpu --output {out}",
            *([f"segment {SCENE} --query sheep --device cuda --output {out}"] * cuda_is_impossible()),
            f"segment {SCENE} --query sheep --runtime onnx --graphs nowhere --output {out}",
            "benchmark speed --device gpu",
            "benchmark speed --output numbers.png",
            f"tune {folder} --ontology text2seg/demo/scenes/things.yaml --plot curves.svg",
            "serve label-studio --host 0.0.0.0",
        ],
        2,
        tmp_path,
    )
    assert len(errors.splitlines()) == 6 + cuda_is_impossible()
    assert not out.exists()


NEED_TEXT = (
    *("board", "typographic-attack", "similarity-table", "saliency", "compare", "signed", "layers", "average-map"),
    *("words", "token-relevance", "text-visualisation", "keywords", "experiment-grey", "experiment-preprocessing"),
    *("experiment-noise", "experiment-pixels"),
)


def test_explain_without_a_text_is_wrong_use_and_found_without_slow_imports(tmp_path):
    lines = [f"explain {tool} {SCENE} --output {tmp_path / 'out'}" for tool in NEED_TEXT]
    lines.append(f"explain semantic {SCENE} --label sheep --output {tmp_path / 'out'}")
    errors = run_without_slow_imports(lines, 2, tmp_path).splitlines()
    assert len(errors) == len(lines)
    for error in errors:
        assert re.search("nothing to compare|no target|one label cannot be ranked", error)


WRONG_FOR_THE_CLIP = {
    "saliency {} --text sheep --method relevance --start-block 99": "start_block must be from -6 to 5",
    "saliency {} --text sheep --score dot": "surgery takes no gradient of a score",
    "saliency {} --word sheep=1 --word koala=1 --method gradcam --score dot": "weighted words have no dot product",
    "saliency {} --text sheep --layer layer4.2.relu3": "surgery has no layer 'layer4.2.relu3'; its layers: none with",
    "saliency {} --text sheep --method layercam": "layercam is for other kinds of CLIP; this ViT supports attention",
    "saliency {} --text sheep --method rollout --negative": "rollout ignores the target",
    "signed {} --text sheep --method attention": "attention ignores the target",
    "compare {} --text sheep --method fullgrad": "fullgrad is for other kinds of CLIP",
    "board {} --text sheep --layer nowhere": "legrad has no layer 'nowhere'",
    "words {} --text sheep --method gradcam++": "gradcam++ is for other kinds of CLIP",
    "token-relevance {} --text sheep --start-block 50": "start_block must be from -2 to 1",
    "average-map {} --text sheep --start-block -50 --method relevance": "start_block must be from",
    "faithfulness --method scorecam": "scorecam is for other kinds of CLIP",
    "opinion {} --tokens 99": "tokens must be from 1 to 75",
    "run-all {} --method eigencam": "eigencam is for other kinds of CLIP",
    "board {} --text sheep --size 3": "input size must be at least",
}


def test_what_the_clip_does_not_support_is_found_without_slow_imports(tmp_path):
    lines = [f"explain {line.format(SCENE)} --output {tmp_path / 'out'}" for line in WRONG_FOR_THE_CLIP]
    lines.append(f"segment {SCENE} --query sheep --input-size 4 --output {tmp_path / 'out'}")
    errors = run_without_slow_imports(lines, 2, tmp_path).splitlines()
    for error, says in zip(errors, [*WRONG_FOR_THE_CLIP.values(), "input size must be at least"], strict=True):
        assert says in error


def test_a_used_port_is_found_without_slow_imports(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        lines = [f"app --port {port}", f"serve label-studio --port {port}"]
        assert run_without_slow_imports(lines, 2, tmp_path).count("cannot listen on 127.0.0.1") == 2


def test_results_of_another_run_are_found_without_torch(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    shutil.copy(SCENE, photos / "1.jpg")
    assert main(["track", str(photos), "--query", "sheep", "--output", str(out / "track")]) == 0
    assert main(["label", str(photos), "--query", "sheep", "--output", str(out / "label.json")]) == 0
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(ONE_BOX), encoding="utf-8")
    refine = ["refine", str(boxes), "--images", str(photos), "--output", str(out / "refine.json")]
    assert main(refine) == 0
    boxes.write_text(json.dumps(ONE_BOX | {"info": {"changed": True}}), encoding="utf-8")
    assert main(["segment", SCENE, "--query", "sheep", "--output", str(out / "segment")]) == 0
    dataset = json.loads((out / "segment/dataset.json").read_text(encoding="utf-8"))
    dataset["info"]["stopped"] = {"images": ["scene_0001.jpg"], "save": ["overlay", "why"], "done": {}}
    OutputFolder(out / "segment", command="segment", overwrite=True).write(
        [("dataset.json", [json.dumps(dataset).encode()])]
    )
    lines = [
        f"track {photos} --query sheep --output {out}/track",
        f"label {photos} --query koala --output {out}/label.json",
        f"label {photos} --query sheep --threshold 0.5 --output {out}/label.json",
        f"label {photos} --query sheep --keep-candidates --output {out}/label.json",
        " ".join(refine),
        f"segment {SCENE} --query koala --output {out}/segment",
        f"segment {SCENE} --query sheep --threshold 0.5 --output {out}/segment",
    ]
    code = WITHOUT_SLOW_IMPORTS.replace(' "cv2",', "")
    done = subprocess.run([sys.executable, "-c", code, "1"], input="\n".join(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = ("already exists", *["belongs to a job with other settings"] * 4, *["is of a stopped run with other"] * 2)
    for part, error in zip(said, done.stderr.splitlines(), strict=True):
        assert part in error


def test_a_card_that_exists_is_found_before_the_models_are_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("text2seg.cli.calibrate.load_models", lambda *_, **__: pytest.fail("the models are loaded"))
    demo = [weights.sha256_of(weights.path_of(weights.find("demo", kind))) for kind in ("clip", "sam")]
    card = place_of_card(*demo)
    card.parent.mkdir(parents=True)
    card.write_text("{}", encoding="utf-8")
    command = ["calibrate", TRUTH, "--images", "text2seg/demo/scenes/new-scenes", "--model", "demo"]
    assert main([*command, "--report", str(tmp_path / "page.html")]) == 1
    assert f"{card} already exists" in capsys.readouterr().err


def test_a_label_job_is_checked_without_torch(tmp_path):
    folder, out = "text2seg/demo/scenes/new-scenes", tmp_path / "x.json"
    lines = [
        f"label nowhere --query sheep --output {out}",
        f"label {folder} --query unicycle --output {out}",
        f"label {folder} --ontology nowhere.yaml --output {out}",
        f"label {folder} --query sheep --categories-from nowhere.json --output {out}",
        f"label {folder} --query sheep --sam3 nowhere --output {out}",
        f"label {folder} --query sheep --sam nowhere.pth --output {out}",
        f"label {folder} --query sheep --glob *.tif --output {out}",
        f"label {folder} --query sheep --shard 30/30 --output {out}",
        f"label {tmp_path} --query sheep --output {out}",
        f"label {folder} --query sheep --output /proc/x/y.json",
    ]
    code = WITHOUT_SLOW_IMPORTS.replace(' "cv2",', "")
    done = subprocess.run([sys.executable, "-c", code, "1"], input="\n".join(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_missing_weights_are_all_named_if_there_is_no_network(tmp_path, monkeypatch, capsys):
    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TEXT2SEG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr("text2seg.weights.download._opener.open", unreachable)
    assert main(["segment", SCENE, "--query", "sheep", "--model", "base", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    for part in ("ViT-B-16.pt", "sam_vit_b_01ec64.pth from https://dl.fbaipublicfiles.com", str(tmp_path)):
        assert part in error
    assert main(["checkpoints", "download", "base", "vit_l"]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for part in (
        "ViT-B-16.pt",
        "sam_vit_b_01ec64.pth from https://dl.fbaipublicfiles.com",
        "sam_vit_l_0b3195.pth from",
    ):
        assert part in error
    with pytest.raises(CheckpointError, match="Missing too: sam_vit_b"):
        Text2Seg.load("base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["segmnt", "a.jpg"], "there is no command “text2seg segmnt”. Did you mean segment?"),
        (["explain", "faithfullness"], "“text2seg explain faithfullness”. Did you mean faithfulness?"),
        (["9"], "there is no command “text2seg 9”. text2seg --help lists all"),
    ],
)
def test_an_unknown_command_is_named_with_the_one_that_was_meant(capsys, arguments, says):
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("group", [None, *GROUPS])
def test_without_a_command_all_are_listed(capsys, group):
    with pytest.raises(SystemExit) as stop:
        main([group] if group else [])
    assert stop.value.code == 2
    listed = COMMANDS[group].commands() if group else COMMANDS
    assert set(listed) <= set(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in GROUPS])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"text2seg {name}" in capsys.readouterr().out


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
    assert status == 3  # one file failed, and nothing else was lost by it
    assert errors.count("broken.jpg") == 1
    assert str(out / "dataset.json") in text
    assert (out / "größe ☂_overlay.png").exists()
    assert (out / "größe ☂_why.png").exists()
    dataset = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert len(dataset["images"]) == 1
    assert dataset["annotations"]
    for annotation in dataset["annotations"]:
        assert rle.decode(annotation["segmentation"]).sum() == annotation["area"]
        assert len(provenance_of(annotation, dataset)["clip"]["sha256"]) == 64


def test_two_images_with_one_file_name_do_not_overwrite_each_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = [scene(tmp_path / folder, "same.png") for folder in "ab"]
    out = tmp_path / "out"
    assert main(["segment", *map(str, files), "--query", wanted(), "--output", str(out)]) == 0
    assert len(list(out.glob("*_overlay.png"))) == 2
    assert len(json.loads((out / "dataset.json").read_text(encoding="utf-8"))["images"]) == 2


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [
        ([SCENE], "nothing to look for", 2),
        (["--query", "dog"], "no image", 2),
        ([SCENE, "--query", ""], "must not be empty", 2),
        ([SCENE, "--query", "zebra crossing"], "does not know", 1),
        ([SCENE, "--query", "dog", "--threshold", "2"], "threshold must be in", 2),
        ([SCENE, "--query", "dog", "--save", "mask"], "Did you mean masks?", 2),
        ([SCENE, "--query", "dog", "--clip", "ViT-B/17"], "ViT-B/16", 2),
        ([SCENE, "--query", "dog", "--clip", "text2seg/demo/sam_demo.pth"], "sam_demo.pth", 1),
        ([SCENE, "--query", "dog", "--sam", "nowhere.pth"], "nowhere.pth", 1),
        ([SCENE, "--query", "dog", "--device", "cuda:99"], "cuda:99", 2),
        ([SCENE, "--query", "dog", "--save", "overlay,none"], "save none stands alone; got overlay, none", 2),
        ([SCENE, "--query", "dog", "--output", "README.md/x"], "--output", 1),
        ([SCENE, "--query", "dog", "--redundancy", "label-set"], "text2seg: a label set needs two labels", 1),
    ],
)
def test_invalid_arguments_are_a_one_line_error(arguments, says, status, capsys):
    assert main(["segment", *arguments]) == status
    *before, error = capsys.readouterr().err.splitlines()
    assert says in error
    assert all(line.startswith(("text2seg: loading the models", "text2seg: the models are ")) for line in before)


def test_missing_images_are_reported_by_name_and_leave_nothing_behind(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["segment", "nowhere.png", "gone.png", "--query", "dog", "--output", str(out)]) == 1
    text, errors = capsys.readouterr()
    assert "nowhere.png" in errors
    assert "gone.png" in errors
    assert text == ""
    assert not out.exists()


def test_segment_answers_known_words_and_names_unknown_ones(tmp_path, capsys):
    out = tmp_path / "out"
    queries = ["--query", f"{wanted()}, unicycle", "--query", "zebra crossing"]
    assert main(["segment", SCENE, *queries, "--save", "none", "--output", str(out)]) == 3
    text, errors = capsys.readouterr()
    assert errors.splitlines()[:3] == [
        "left out: the demo model does not know 'unicycle'. Did you mean bicycle?",
        "left out: the demo model does not know 'zebra crossing'.",
        "text2seg checkpoints show demo lists what it knows; for everything else take real weights: text2seg "
        "checkpoints download base (693 MiB), then --model base",
    ]
    assert f"{wanted()}: " in text
    dataset = read_dataset(out / "dataset.json")
    assert [category["name"] for category in dataset["categories"]] == [wanted()]


def test_segment_names_the_words_of_a_query_that_mean_nothing_to_the_models(tmp_path, capsys):
    query = f"unicorn near a {wanted()}"
    assert main(["segment", SCENE, "--query", query, "--save", "none", "--output", str(tmp_path / "out")]) == 0
    assert f"note: the demo model knows only '{wanted()}' of '{query}'." in capsys.readouterr().err.splitlines()


def test_segment_does_not_replace_an_earlier_dataset_without_overwrite(tmp_path, capsys):
    command = ["segment", SCENE, "--query", wanted(), "--save", "none", "--output", str(tmp_path)]
    assert main(command) == 0
    before = (tmp_path / "dataset.json").read_bytes()
    assert main(command) == 1
    assert "dataset.json already exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "dataset.json").read_bytes() == before
    assert main([*command, "--overwrite"]) == 0


def test_a_query_with_a_comma_is_two_queries_on_the_command_line_and_in_python(tmp_path, demo):
    assert main(["segment", SCENE, "--query", "sheep, bomb", "--save", "none", "--output", str(tmp_path)]) == 0
    names = [category["name"] for category in read_dataset(tmp_path / "dataset.json")["categories"]]
    assert names == ["sheep", "bomb"]
    assert list(demo.segment(SCENE, "sheep, bomb").maps.queries) == names
    assert list(demo.segment(SCENE, ["sheep, bomb"]).maps.queries) == names


def test_checkpoints_list_and_verify(capsys):
    assert main(["checkpoints", "list"]) == 0
    text = capsys.readouterr().out
    for name in ("demo", "ViT-B/16", "RN50x64", "ViT-L/14@336px", "vit_b", "vit_l", "vit_h"):
        assert name in text
    assert main(["checkpoints", "verify"]) == 0
    assert capsys.readouterr().out.count(" ok ") == 2  # the demo pair


@pytest.mark.parametrize(("names", "says"), [([], "nothing to download"), (["demo", "vit_x"], "vit_b, vit_l, vit_h")])
def test_an_unavailable_download_is_a_one_line_error(names, says, capsys):
    assert main(["checkpoints", "download", *names]) == 2
    text, error = capsys.readouterr()
    assert says in error
    assert text == ""  # known before the first download


@pytest.mark.skipif(sys.platform == "win32" or sys.platform == "darwin", reason="file names are Unicode there")
def test_file_names_that_are_not_unicode_are_accepted(tmp_path):
    path = scene(tmp_path, "ungl\udcfcck.png")
    done = subprocess.run(
        [sys.executable, "-m", "text2seg", "segment", path, "--query", wanted(), "--output", tmp_path / "out"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"ungl\udcfcck_overlay.png" in done.stdout


def test_large_images_cause_no_warnings(tmp_path, capsys, monkeypatch):
    path = scene(tmp_path)
    monkeypatch.setattr("text2seg.segmenting.SLOW", 60)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow's own limit; it warns above and refuses at twice
    gc.collect()  # what other tests left unclosed warns here and not below
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert main(["segment", str(path), "--query", wanted(), "--output", str(tmp_path / "out")]) == 0
    assert [str(warning.message) for warning in caught] == []
    assert [line[:20] for line in capsys.readouterr().err.splitlines()] == [
        "text2seg: loading th",
        "text2seg: the models",
    ]


@pytest.mark.parametrize("line", ["--help", "explain board --help", "checkpoints list", f"evaluate {TRUTH} {TRUTH}"])
def test_a_closed_output_pipe_ends_the_command_quietly(line):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "text2seg", *line.split()]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writing)
    assert done.returncode == 141  # as a program that SIGPIPE ends
    assert [each for each in done.stderr.splitlines() if "without a score count as sure" not in each] == []


def test_python_m_text2seg_runs_the_command_line():
    done = subprocess.run([sys.executable, "-m", "text2seg", "segment"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "nothing to look for" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["text2seg.config", "text2seg.cli.terminal", "tyro", "torch", "text2seg.clip.model"])
def test_a_signal_during_an_import_ends_the_command_with_one_line(module, number, tmp_path):
    code = f"""
import os, runpy, sys
class Sends:
    def find_spec(self, name, *_):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Sends())
runpy.run_module("text2seg", run_name="__main__", alter_sys=True)
"""
    command = [sys.executable, "-c", code, "segment", SCENE, "--query", "sheep", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr.splitlines()[-1] == "text2seg: stopped"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_installed_command_is_the_module_that_handles_signals_first():
    setup = ConfigParser()
    setup.read("setup.cfg", encoding="utf-8")
    assert setup["options.entry_points"]["console_scripts"].strip() == "text2seg = text2seg.__main__:main"


HOSTILE = "a\x1b]0;owned\x07\x1b[2J\0\u202egpj.exe\x9b\r\nb"
STEERING = ("\x1b", "\x07", "\0", "\u202e", "\x9b", "\r")


def test_printed_text_contains_no_terminal_control_codes(capsys, monkeypatch):
    """Lines, errors, log messages and tables can all contain untrusted names."""
    from text2seg.cli import terminal
    from text2seg.cli.common import PlainConsole, plain_table
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


def test_messages_escape_the_folder_from_a_dataset(tmp_path):
    from text2seg.coco.lookup import ImageFinder
    from text2seg.errors import ImageError

    for folder in (f"/srv/{HOSTILE}", HOSTILE, f"https://host/{HOSTILE}"):
        with pytest.raises(ImageError, match=r"\\x1b\]0;owned") as error:
            ImageFinder(tmp_path / "dataset.json", None, {"folder": folder}).find("a.jpg")
        assert str(error.value).isprintable()


def test_segment_of_a_folder_names_the_whole_label_command(tmp_path, capsys):
    (tmp_path / "my photos").mkdir()
    command = [
        "segment",
        str(tmp_path / "my photos"),
        "--query",
        "sheep",
        "--queries",
        "fire engine",
        "--output",
        "out",
    ]
    assert main(command) == 1
    expected = (
        f"text2seg label '{tmp_path}/my photos' --query sheep --queries 'fire engine' --output 'out/my photos.json'"
    )
    assert expected in capsys.readouterr().err


def test_a_file_whose_name_begins_with_a_dash_is_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("-x.jpg").write_bytes(b"")
    assert main(["segment", "-x.jpg", "--query", "sheep"]) == 2
    says = "-x.jpg is taken for a flag, because it begins with a dash; write ./-x.jpg, or all flags first"
    assert says in capsys.readouterr().err
    assert main(["segment", "--", "-x.jpg", "--query", "sheep"]) == 2
    says = "--query is taken for a file, because it stands after --; write all flags before it"
    assert says in capsys.readouterr().err


def test_images_with_odd_names_are_segmented(tmp_path, monkeypatch, capsys):
    names = ("-dash.jpg", "--everything.jpg", "two words.jpg", "a \"b\" 'c'.jpg", "ü ☂.jpg", "line\nbreak.jpg")
    for name in names:
        shutil.copy(SCENE, tmp_path / name)
    word = wanted()
    monkeypatch.chdir(tmp_path)
    assert main(["segment", "--query", word, "--save", "masks", "--output", "out", "--", *names]) == 0
    dataset = json.loads(Path("out/dataset.json").read_text(encoding="utf-8"))
    assert {image["file_name"] for image in dataset["images"]} == set(names)
    said = capsys.readouterr().out
    assert "line\\nbreak.jpg: " in said
    written = [each.name for each in Path("out/masks").iterdir()]
    assert all(any(each.startswith(f"{Path(name).stem}_") for each in written) for name in names)
    assert main(["explain", "saliency", "--text", word, "--output", "explained", "--", "-dash.jpg"]) == 0
    assert Path("explained/saliency_-dash.png").exists()


def test_report_checks_its_input_first_and_writes_beside_other_outputs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    Path("outputs/report.html").write_text("mine")
    assert main(["report", "nosuch.json"]) == 1
    assert "nosuch.json" in capsys.readouterr().err
    Path("empty.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert main(["report", "empty.json"]) == 1
    assert "report.html already exists" in capsys.readouterr().err


def test_what_is_waited_for_is_a_passing_line_on_a_terminal_and_a_whole_one_in_a_file(monkeypatch, capsys):
    with waiting("loading"):
        assert capsys.readouterr().err == "text2seg: loading …\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with waiting("loading"):
        assert capsys.readouterr().err == "text2seg: loading …\r"
    assert capsys.readouterr().err.strip() == ""


SLOW_START = {
    "segment": "segment {scene} --query sheep --output {out}",
    "label": "label {folder} --query sheep --limit 1 --output {out}.json",
    "track": "track {frames} --query sheep --output {out}",
    "search": "search {frames} sheep",
    "explain": "explain saliency {scene} --text sheep --output {out}",
    "replay": "replay {truth} --annotation 1",
    "tune": "tune {frames} --ontology text2seg/demo/scenes/things.yaml",
}


@pytest.mark.parametrize("command", SLOW_START)
def test_a_slow_start_says_at_once_what_is_loaded(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "frames").mkdir()
    shutil.copy(SCENE, tmp_path / "frames/1.jpg")
    said = []

    def slow(*_, **__):
        said.append(capsys.readouterr().err)
        raise CheckpointError("stop here")

    monkeypatch.setattr(Text2Seg, "load", slow)
    monkeypatch.setattr("text2seg.review.replay.replay", slow)
    places = {"scene": SCENE, "folder": Path(SCENE).parent, "truth": TRUTH, "frames": tmp_path / "frames"}
    assert main(SLOW_START[command].format(**places, out=tmp_path / "out").split()) == 1
    assert said[0].splitlines()[-1].startswith("text2seg: loading the models")


@pytest.mark.parametrize("slow", [0, 60])
@pytest.mark.parametrize("command", ["segment {0}/1.jpg --save none --output {0}/out", "label {0} --output {0}/l.json"])
def test_an_image_that_takes_long_shows_its_stages(command, slow, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    monkeypatch.setattr("text2seg.segmenting.SLOW", slow)
    monkeypatch.setattr("text2seg.segmenting.DRAWN_EVERY", (0.01, 0.01))
    shutil.copy(SCENE, tmp_path / "1.jpg")
    segment_batch, said = Text2Seg._segment_batch, []

    def seen(models, sessions, queries, settings):
        """Segment; of tiles, wait until the progress bar names the first."""
        deadline = time.monotonic() + 20
        while not slow and sessions[0].image.hw[1] < 300 and "1.jpg: tile 1 of 6" not in "".join(said):
            assert time.monotonic() < deadline, said
            said.append(capsys.readouterr().err)
        return segment_batch(models, sessions, queries, settings)

    monkeypatch.setattr(Text2Seg, "_segment_batch", seen)
    assert main([*command.format(tmp_path).split(), "--query", "sheep", "--tile", "250"]) == 0
    said.append(capsys.readouterr().err)
    assert ("tile 1 of" in "".join(said)) == (not slow)
    assert "tile" not in "".join(said).splitlines()[-1]


def test_a_stop_message_is_not_on_the_line_of_a_progress_bar(monkeypatch, capsys):
    bars = []

    def stopped(*_):
        bars.append(tqdm(total=3))
        raise KeyboardInterrupt

    monkeypatch.setattr("text2seg.cli.run_command", stopped)
    assert main([]) == 130
    assert capsys.readouterr().err.endswith("\ntext2seg: stopped\n")


def test_a_connection_that_breaks_inside_a_command_is_not_silent(monkeypatch, capsys):
    def broken(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("text2seg.cli.run_command", broken)
    assert main([]) == 1
    assert "connection to another process was lost: Broken pipe" in capsys.readouterr().err


def test_tables_of_many_rows_are_short_and_say_where_the_others_are(tmp_path, capsys):
    names = sorted(card_of("demo").vocabulary)
    queries = ["--queries", ",".join(names), "--output"]
    assert main(["segment", SCENE, *queries, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    found = [line for line in said if "best" in line or ": 0." in line]
    assert f"not found: {len(names) - len(found)} queries; --verbose names all" in said
    assert len(said) == len(found) + 4  # and two images and the COCO file
    (tmp_path / "photos").mkdir()
    shutil.copy(SCENE, tmp_path / "photos")
    assert main(["label", str(tmp_path / "photos"), *queries, str(tmp_path / "label.json")]) == 0
    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if line.startswith("│")]) == MOST_ROWS
    assert f"{len(names) - MOST_ROWS} more categories, none of them with segments; --verbose, or text2seg " in said
    assert f"report {tmp_path}/label.json, shows all" in said
    assert all(line.partition(":")[0] in said for line in found)
    assert main(["evaluate", TRUTH, TRUTH, "--json", str(tmp_path / "scores.json")]) == 0
    assert f"more categories are in {tmp_path / 'scores.json'}" in capsys.readouterr().out
    assert main(["explain", "multilabel", SCENE, "--output", str(tmp_path)]) == 0
    where = f"{len(names) - MOST_ROWS} more rows are in {tmp_path}/multilabel_scene_0001.json"
    assert where in capsys.readouterr().out


def test_a_broken_video_has_our_message_alone_and_is_named_before_torch_is_loaded(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0 ftypisom" + bytes(500))
    program = "import sys; from text2seg.cli import main; sys.exit(main() + 10 * ('torch' in sys.modules))"
    command = [sys.executable, "-c", program, "track", "clip.mp4", "--query", "sheep"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stderr == ("text2seg: clip.mp4 cannot be read as a video; give a video file or a folder of frames\n")
    assert done.returncode == 1


def test_what_the_c_code_of_a_library_prints_about_a_tiff_is_dropped_and_our_messages_are_not(tmp_path):
    content = io.BytesIO()
    Image.open(SCENE).save(content, "TIFF", compression="tiff_adobe_deflate")
    damaged = bytearray(content.getvalue())
    damaged[20:400:7] = b"\x5a" * len(range(20, 400, 7))
    (tmp_path / "damaged.tif").write_bytes(damaged)
    program = """
import os, sys, threading
from pathlib import Path
from text2seg.cli.terminal import own_stderr, say
from text2seg.errors import ImageError
from text2seg.io.images import load_image
own_stderr()
def read():
    for _ in range(20):
        try:
            load_image(Path("damaged.tif"))
        except ImageError:
            say("ours", file=sys.stderr)
threads = [threading.Thread(target=read) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
os.write(2, b"put back\\n")
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True
    )
    assert done.stderr.replace("\n", "") == "ours" * 80 + "put back"


@pytest.mark.parametrize(
    ("logger", "level", "shown"),
    [
        ("text2seg.io.images", logging.WARNING, True),
        ("PIL.TiffImagePlugin", logging.ERROR, False),
        ("transformers", logging.WARNING, False),
        ("asyncio", logging.ERROR, True),
    ],
)
def test_warnings_of_other_libraries_are_for_verbose(logger, level, shown, monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    record = logging.LogRecord(logger, level, "", 0, "they say so", (), None)
    log_to_terminal()
    for handler in logging.root.handlers:
        handler.handle(record)
    assert capsys.readouterr().err == "they say so\n" * shown
    logging.root.handlers.clear()
    log_to_terminal(verbose=True)
    for handler in logging.root.handlers:
        handler.handle(record)
    assert capsys.readouterr().err == "they say so\n"


def test_a_progress_bar_in_a_file_is_a_line_every_ten_seconds():
    code = """if True:
        import time
        from text2seg.cli.terminal import bars_in_files
        bars_in_files()
        from tqdm import tqdm
        begin = time.monotonic()
        for _ in tqdm(range(80)):
            time.sleep(0.01)
        print(time.monotonic() - begin)
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    lines = done.stderr.splitlines()
    assert all("/80 [" in line for line in lines)
    assert 1 < len(lines) <= 4 + float(done.stdout) / 10


def test_warnings_of_python_code_are_details(monkeypatch, caplog, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(sys, "warnoptions", [])
        log_python_warnings()
        with caplog.at_level(logging.INFO):
            warnings.warn("Corrupt EXIF data", stacklevel=1)
    assert [(each.levelno, each.message) for each in caplog.records] == [
        (logging.INFO, "UserWarning: Corrupt EXIF data")
    ]
    assert capsys.readouterr().err == ""
