"""A file imports only from lower rooms, and the heavy libraries are imported only in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "text2seg"
LAYERS = {
    "foundations": (
        "_version errors demo grids records queries templates runtime io settings_fields config effects render ontology"
        " weights vocabulary model_card coco results"
    ),
    "models": "clip sam prompts onnx loading tiling regions",
    "pipeline": "session tracking pipeline sam3_pipeline everything refining __init__",
    "jobs": "known_answers search segmenting video evaluation calibration labelling review onnx_export explain speed",
    "front ends": "app integrations cli __main__",
}
"""The rooms of each layer in order: a room may import from those before it, in its own layer or in a lower one."""
LATER = {"records": {"config", "render", "results"}}
"""Later rooms that the methods of records import when a person calls them: `Segmentation.save` and others."""
LIBRARIES = {
    "pycocotools": {"coco", "evaluation"},
    "segment_anything": {"speed"},
    "clip": set(),
    "open_clip": {"clip"},
    "timm": {"clip"},
    "gradio": {"app"},
    "onnx": {"onnx"},
    "onnxruntime": {"onnx"},
    "ray": {"labelling"},
    "faiss": {"search"},
    "tyro": {"cli"},
    "fsspec": {"io"},
    "s3fs": set(),
    "gcsfs": set(),
    "pytorch_grad_cam": {"explain"},
    "transformers": {"sam"},
    "fiftyone": {"integrations"},
    "cvat_sdk": {"integrations"},
    "supervision": {"results"},
}
"""Which rooms may import a library; libraries that are not listed may be imported anywhere."""
PLACE_OF = {room: place for place, room in enumerate(" ".join(LAYERS.values()).split())}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_order_lists_every_room_and_only_rooms():
    assert set(map(room_of, FILES)) == set(PLACE_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_import_only_from_lower_rooms(path):
    room = room_of(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "text2seg":
            assert room in LIBRARIES.get(top, {room}), f"{path} may not import {top}"
        elif room not in ("__init__", "__main__"):
            other = rest[0] if rest and rest[0] in PLACE_OF else "__init__"
            allowed = other == room or PLACE_OF[other] < PLACE_OF[room] or other in LATER.get(room, ())
            assert allowed, f"{path} imports {name}, which is not before it"


def test_importing_text2seg_loads_no_heavy_library_and_changes_nothing():
    code = (
        "import sys, logging; import text2seg;"
        "heavy = {'torch', 'gradio', 'ray', 'pycocotools', 'cv2', 'clip'} & set(sys.modules);"
        "assert not heavy, heavy; assert not logging.getLogger().handlers"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
