"""Parts of packages without the whole, and that the whole is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from text2seg.packages import opened

SCENE = "text2seg/demo/scenes/new-scenes/images/scene_0019.jpg"


def run(code: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_first_mask_imports_neither_torchvision_nor_torchs_compiler(request, tmp_path):
    code = """
import sys
from text2seg.cli import main
assert main(["segment", sys.argv[1], "--query", "sheep", "--device", "cpu", "--output", sys.argv[2]]) == 0
heavy = {"torchvision", "torch._dynamo", "torch._inductor", "sympy", "transformers", "timm"} & set(sys.modules)
assert not heavy, heavy
"""
    run(code, str(request.config.rootpath / SCENE), str(tmp_path))


@pytest.mark.parametrize("first", ["clip.model", "clip.simple_tokenizer"])
def test_the_rest_of_a_package_comes_when_it_is_asked_for(first):
    code = f"""
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
    run(code)


def test_from_a_package_that_is_opened_names_are_imported_as_ever():
    code = """
from text2seg.packages import opened
opened("segment_anything")
from segment_anything.modeling import Sam
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.predictor import Sam as same
assert Sam is same and SamPredictor and "vit_b" in sam_model_registry
"""
    run(code)


def test_what_a_package_does_not_have_is_an_error_as_ever():
    run(
        """
from text2seg.packages import opened
opened("clip")
import clip
try:
    clip.no_such_thing
except AttributeError as error:
    assert "no_such_thing" in str(error)
else:
    raise AssertionError
"""
    )


def test_a_package_that_is_not_there():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        opened("no_such_package")
