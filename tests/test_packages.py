"""Networks of `clip` and `segment_anything` are imported without the rest of their packages, which stay untouched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from text2seg.runtime import import_part

ROOT = Path(__file__).parents[1]
SCENE = ROOT / "text2seg" / "demo" / "scenes" / "new-scenes" / "images" / "scene_0019.jpg"
PARTS = """
import sys
from text2seg.runtime import import_part
for package, part in (("clip", "model"), ("clip", "simple_tokenizer"), ("segment_anything", "modeling")):
    import_part(package, part)
"""
CODE = {
    "first_mask_imports_neither_torchvision_nor_the_compiler_nor_either_package": """
import sys
from text2seg.cli import main
assert main(["segment", sys.argv[1], "--query", "sheep", "--device", "cpu", "--output", sys.argv[2]]) == 0
heavy = {"torchvision", "torch._dynamo", "torch._inductor", "sympy", "transformers", "timm"}
heavy |= {"clip", "segment_anything"}
found = [name for name in sys.modules if name in heavy or name.startswith(("clip.", "segment_anything."))]
assert not found, found
""",
    "import_of_clip_afterwards_gives_the_whole_package": f"""{PARTS}
import clip
assert clip.tokenize("a dog").shape == (1, 77)
assert clip.load and clip.available_models() and clip.model.CLIP and clip.simple_tokenizer.SimpleTokenizer
assert clip.__spec__.name == "clip" and clip.model is sys.modules["clip.model"]
assert "torchvision" in sys.modules
""",
    "import_of_segment_anything_afterwards_gives_the_whole_package": f"""{PARTS}
from segment_anything.modeling import Sam
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.predictor import Sam as same
assert Sam is same and SamPredictor and "vit_b" in sam_model_registry
""",
    "packages_imported_before_stay_as_they_are": f"""
import clip, segment_anything, sys
before = {{name: id(module) for name, module in sys.modules.items() if name.startswith(("clip", "segment_anything"))}}
{PARTS}
after = {{name: id(module) for name, module in sys.modules.items() if name.startswith(("clip", "segment_anything"))}}
assert before == after
""",
    "attribute_that_clip_does_not_have_is_an_attribute_error": f"""{PARTS}
import clip
try:
    clip.no_such_attribute
except AttributeError as error:
    assert "no_such_attribute" in str(error)
else:
    raise AssertionError
""",
}
# A process that has imported only torch forks once for each piece of code, so that each starts without other imports.
FORKS = """
import json, os, sys, traceback
import torch
errors = {}
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
    errors[name] = os.read(reader, 4000).decode() or str(failed) if failed else ""
print("ERRORS", json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """Traceback of each piece of code, by its name; empty if it ran."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    command = [sys.executable, "-c", FORKS, str(SCENE), str(tmp_path_factory.mktemp("first"))]
    done = subprocess.run(command, input=json.dumps(CODE), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("ERRORS ")[-1])


@pytest.mark.parametrize("name", CODE)
def test_part_is_imported_in_a_fresh_process(errors, name):
    assert errors[name] == ""


def test_part_is_imported_once():
    assert import_part("clip", "model") is import_part("clip", "model")


@pytest.mark.parametrize(("package", "part"), [("no_such_package", "model"), ("clip", "no_such_part")])
def test_missing_package_or_part_is_a_module_not_found_error(package, part):
    with pytest.raises(ModuleNotFoundError, match=f"{package}.{part}"):
        import_part(package, part)


def test_the_package_lists_its_public_names():
    import text2seg

    assert dir(text2seg) == sorted(text2seg.__all__)
