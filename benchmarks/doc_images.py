"""Make the images of README and docs with the demo model: python benchmarks/doc_images.py

docs/flow.png shows the steps from maps to masks in one scene, docs/compare.png all saliency methods for "sheep".
benchmarks/scaling.py writes docs/scaling.png with its numbers.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from page import ROOT, SCENES
from PIL import Image

SCENE = SCENES / "new-scenes" / "images" / "scene_0019.jpg"
FLOW_QUERIES = ("sheep", "fire engine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the images (default: docs)")
    output = parser.parse_args().output
    draw_flow(output / "flow.png")
    draw_comparison(output / "compare.png")


def draw_flow(path: Path) -> None:
    """Write the image that `text2seg segment --save why` makes."""
    from text2seg import Text2Seg
    from text2seg.render import maps_with_points

    found = Text2Seg.load("demo").segment(SCENE, list(FLOW_QUERIES))
    Image.fromarray(maps_with_points(found)).save(path, optimize=True)
    print(path)


def draw_comparison(path: Path) -> None:
    """Write the image of `text2seg explain compare`."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["compare", str(SCENE), "--text", "sheep", "--output", folder]
        subprocess.run([sys.executable, "-m", "text2seg", "explain", *flags], check=True)
        (image,) = Path(folder).glob("*.png")
        shutil.copy(image, path)
    print(path)


if __name__ == "__main__":
    main()
