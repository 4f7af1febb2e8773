"""docs/models.md says of every architecture of open_clip what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import open_clip
import pytest

from text2seg.clip.openclip import why_not

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("## SAM")[0].splitlines()
    if line.startswith("| `") and "--clip" not in line
]
FITS = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 6}
REFUSED = {name: row[1] for row in ROWS if len(row) == 2 for name in re.findall(r"`([^`]+)`", row[0])}
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "table_of_openclip.py"))


def test_every_architecture_stands_in_one_place():
    assert not FITS.keys() & REFUSED.keys()
    named = {name for name in open_clip.list_models() if not name.endswith("-quickgelu")}
    assert named <= FITS.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", open_clip.list_models())
def test_the_code_says_the_same(name):
    config = open_clip.get_model_config(name)
    why = why_not(config)
    if name in REFUSED:
        assert why is not None
        assert re.sub(r" \(.*?\)", "", why) == REFUSED[name]
        return
    assert why is None
    family, shape, _, tags, licence = FITS[name.removesuffix("-quickgelu")]
    assert family == SCRIPT["family_of"](name)
    assert shape == SCRIPT["shape_of"](config)
    assert licence in {*SCRIPT["LICENCES"].values(), "by tag", "—"}
    if not name.endswith("-quickgelu"):
        assert tags == str(len(open_clip.list_pretrained_tags_by_model(name)) or "none")


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-16-SigLIP2-256", "ViT-L-14-CLIPA", "RN50", "MobileCLIP2-L-14"])
def test_sizes(name):
    millions = SCRIPT["parameters_of"](open_clip.get_model_config(name)) / 1e6
    assert FITS[name][2] == f"{millions:.0f} M"
