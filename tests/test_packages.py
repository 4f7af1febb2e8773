"""Parts of packages without the whole, and that the whole is there when it is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from text2seg.packages import opened

ROOT = Path(__file__).parents[1]
SCENE = ROOT / "text2seg" / "demo" / "scenes" / "new-scenes" / "images" / "scene_0019.jpg"
COMES_WHEN_ASKED_FOR = """
import sys, warnings
warnings.simplefilter("error", UserWarning)
from text2seg.packages import opened
opened("clip")
import {first}
assert "torchvision" not in sys.modules
import clip
part = clip.model.CLIP if "{first}" == "clip.model" else None
assert clip.tokenize("a dog").shape == (1, 77)
assert "torchvision" in sys.modules and clip.load and clip.available_models()
assert part in (None, clip.model.CLIP), "the part is not imported again"
"""
CODE = {
    "a first mask imports neither torchvision nor torch's compiler": """
import sys
from text2seg.cli import main
assert main(["segment", sys.argv[1], "--query", "sheep", "--device", "cpu", "--output", sys.argv[2]]) == 0
heavy = {"torchvision", "torch._dynamo", "torch._inductor", "sympy", "transformers", "timm"} & set(sys.modules)
assert not heavy, heavy
""",
    "the rest of clip comes after clip.model": COMES_WHEN_ASKED_FOR.format(first="clip.model"),
    "the rest of clip comes after clip.simple_tokenizer": COMES_WHEN_ASKED_FOR.format(first="clip.simple_tokenizer"),
    "from a package that is opened names are imported as ever": """
from text2seg.packages import opened
opened("segment_anything")
from segment_anything.modeling import Sam
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.predictor import Sam as same
assert Sam is same and SamPredictor and "vit_b" in sam_model_registry
""",
    "what a package does not have is an error as ever": """
from text2seg.packages import opened
opened("clip")
import clip
try:
    clip.no_such_thing
except AttributeError as error:
    assert "no_such_thing" in str(error)
else:
    raise AssertionError
""",
}
# A process that has imported torch and nothing else is copied for each code: what the code imports is its own.
COPIES = """
import json, os, sys, traceback
import torch
told = {}
for name, code in json.loads(sys.stdin.read()).items():
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            exec(code, {})
            os._exit(0)
        except BaseException:
            os.write(writer, traceback.format_exc()[-4000:].encode())
            os._exit(1)
    os.close(writer)
    failed = os.waitpid(child, 0)[1]
    told[name] = os.read(reader, 4000).decode() or str(failed) if failed else ""
print("TOLD", json.dumps(told))
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What went wrong with each code, by name; the empty string where nothing did."""
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be copied here")
    command = [sys.executable, "-c", COPIES, str(SCENE), str(tmp_path_factory.mktemp("first"))]
    done = subprocess.run(command, input=json.dumps(CODE), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("TOLD ")[-1])


@pytest.mark.parametrize("name", CODE)
def test_in_a_process_of_its_own(faults, name):
    assert faults[name] == ""


def test_a_package_that_is_not_there():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        opened("no_such_package")
