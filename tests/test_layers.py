"""A file imports only from lower layers, and the heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "text2seg"
LAYERS = [
    {"_version", "errors", "packages", "demo"},
    {"files"},
    {"storage", "names", "outputs", "vocabulary"},
    {"records", "config", "deep_images"},
    {"label_config", "pages", "images", "grids", "runtime", "checkpoints"},
    {"ontology"},
    {"regions"},
    {"maps", "points", "masks", "graphs"},
    {"tiling", "loading"},
    {"pipeline", "coco", "render"},
    {"search", "concepts"},
    {"segmenting", "labelling", "evaluation", "tuning", "review", "replay"},
    {"benchmarking", "bench", "explain", "engines", "export"},
    {"app"},
    {"cli", "__init__"},
    {"__main__"},
]
ROOMS = {
    "pycocotools": {"coco", "evaluation"},
    "segment_anything": {"masks", "bench"},
    "clip": {"maps"},
    "open_clip": {"maps"},
    "timm": {"maps"},
    "gradio": {"app"},
    "onnx": {"export"},
    "onnxruntime": {"graphs", "export"},
    "ray": {"engines"},
    "faiss": {"search"},
    "tyro": {"cli"},
    "fsspec": {"storage", "names", "outputs"},
    "s3fs": set(),
    "gcsfs": set(),
    "pytorch_grad_cam": {"explain"},
    "transformers": {"masks"},
}
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    assert room in LAYER_OF, f"{room} has no layer yet: give it one here and in docs/design.md"
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "text2seg":
            assert room in ROOMS.get(top, {room}), f"{path} may not import {top}"
        elif room != "__init__":
            other = rest[0] if rest and rest[0] in LAYER_OF else "__init__"
            assert other == room or LAYER_OF[other] < LAYER_OF[room], f"{path} imports {name}, which is not below it"


def test_importing_text2seg_loads_no_heavy_library_and_changes_nothing():
    code = (
        "import sys, logging; import text2seg;"
        "heavy = {'torch', 'gradio', 'ray', 'pycocotools', 'cv2', 'clip'} & set(sys.modules);"
        "assert not heavy, heavy; assert not logging.getLogger().handlers"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
