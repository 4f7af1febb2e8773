"""The Python of README runs as it stands; the commands of README, CONTRIBUTING and the two tables that README points to
name flags and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from text2seg.cli import main
from text2seg.coco.dataset import read_dataset
from text2seg.explain import TOOLS
from text2seg.explain.saliency.methods import METHODS, methods_for

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
PAGES |= {
    f"docs/{name}.md": (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("explain", "options")
}
README = PAGES["README.md"]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = [line for line in LINES if line.startswith("text2seg segment text2seg/")]
EXPLAINED = [line for line in LINES if line.startswith("text2seg explain")]
EXPLANATIONS = re.findall(r"^\| `([a-z-]+)` \| .* \| `(.*)` \|$", PAGES["docs/explain.md"], re.MULTILINE)
LABELLING = [line for line in LINES if line.startswith("text2seg") and " outputs/" in line and "photo.jpg" not in line]


def test_python(monkeypatch, tmp_path, capsys):
    """The blocks, one after the other, as a reader types them."""
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for number, block in enumerate(PYTHON):
        code = block.replace('"outputs/', f'"{tmp_path.as_posix()}/')
        exec(compile(code, f"README.md, block {number}", "exec"), names)
        if number == 0:
            assert "sheep" in capsys.readouterr().out
    folder = tmp_path / "python"
    (image,) = read_dataset(folder / "scene_0019_coco.json")["images"]
    mask, overlay = (Image.open(folder / name) for name in ("masks/scene_0019_sheep_1.png", "scene_0019_overlay.png"))
    assert mask.size == (image["width"], image["height"])
    assert set(np.unique(np.asarray(mask.convert("L")))) == {0, 255}
    assert overlay.width >= image["width"]


def test_python_of_the_explain_page(monkeypatch, tmp_path, capsys):
    """The blocks, one after the other, as a reader types them."""
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGES["docs/explain.md"], re.DOTALL)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        code = block.replace('"outputs/', f'"{tmp_path.as_posix()}/')
        exec(compile(code, f"docs/explain.md, block {number}", "exec"), names)
    assert [path.suffix for path in names["files"]] == [".png", ".json"]
    assert all(path.is_relative_to(tmp_path) and path.is_file() for path in names["files"])
    assert set(names["maps"]) == set(methods_for(names["models"].clip))
    assert all(found.ndim == 2 and found.dtype == np.float32 for found in names["maps"].values())
    assert "legrad (" in capsys.readouterr().out


def test_a_folder_becomes_a_dataset(monkeypatch, tmp_path, capsys):
    """The commands of that section, one after the other, on three of the scenes."""
    monkeypatch.chdir(ROOT)
    for command in LABELLING:
        words = shlex.split(command.replace("outputs/", f"{tmp_path.as_posix()}/"))[1:]
        assert main([*words, "--limit", "3"] if words[0] == "label" else words) == 0, capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} >= {"labels.json", "review.html", "scores.html", "yolo"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main([*shlex.split(command)[1:], "--output", str(tmp_path)]) == 0


def test_every_explanation_tool_is_in_the_table_with_a_command_that_is_understood(monkeypatch, tmp_path, capsys):
    """Each command is read as typed; what the tools do then is tested with them."""
    asked = []
    monkeypatch.setattr("text2seg.cli.explain._run", lambda tool, flags: asked.append(tool.name) or 0)
    for name, command in EXPLANATIONS:
        assert main(["explain", *shlex.split(command)]) == 0, capsys.readouterr().err
        assert asked[-1] == name
    assert sorted(asked) == sorted(TOOLS)
    for command in EXPLAINED:
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert f"{len(TOOLS)} tools and {len(METHODS)} saliency methods" in README


def test_flags_exist(capsys):
    explain = [f"explain {name}" for name in TOOLS]
    for command in (
        "segment",
        "label",
        "report",
        "evaluate",
        "convert",
        "replay",
        "benchmark coco",
        "checkpoints verify",
        "calibrate",
        "app",
        "benchmark speed",
        *explain,
    ):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
    text = capsys.readouterr().out
    for page in ("README.md", "docs/explain.md", "docs/options.md"):
        for flag in set(re.findall(r"--[a-z][a-z-]+", PAGES[page])):
            assert flag in text, f"{page}: {flag}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_images_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}, target


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for name, page in PAGES.items():
        assert set(re.findall(r"`make ([a-z-]+)", page)) <= targets, name


def test_there_are_examples():
    assert len(PYTHON) == 2
    assert len(COMMANDS) == 1
    assert len(LABELLING) == 4
    assert len(EXPLAINED) == 3


def test_measured_numbers_are_those_of_the_page_of_accuracy():
    """README's table of the demo model has the numbers of the tables that `benchmarks/accuracy.py` wrote."""
    page = (ROOT / "docs" / "measurements" / "accuracy.md").read_text(encoding="utf-8")
    found = {}
    for name in ("rendered-known", "rendered-all"):
        lines = page.partition(f"<!-- table {name} -->\n")[2].partition("<!-- end -->")[0].splitlines()
        headings, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line)
        found |= {(row[0], heading): row[at] for row in rows for at, heading in enumerate(headings)}
    rows = {
        "mean IoU, asked for what is there": "IoU",
        "things found with an IoU of 0.5": "found",
        "AP, asked for all 109 things": "AP",
        "absent things reported as found": "absent, found",
        "present things not found": "present, lost",
    }
    columns = [
        f"{split}, {way}" for split in ("new-scenes", "held-out") for way in ("reference", "uncalibrated", "calibrated")
    ]
    for says, heading in rows.items():
        (line,) = (line for line in README.splitlines() if line.startswith(f"| {says} |"))
        for column, cell in zip(columns, line.strip("|").split("|")[1:], strict=True):
            number = cell.strip().strip("*")
            if number != "–":
                share = float(number.removesuffix(" %")) / (100 if number.endswith("%") else 1)
                assert share == pytest.approx(float(found[column, heading]), abs=0.0011), (says, column)


def test_the_sentence_about_speed_has_the_numbers_of_the_measurements():
    page = (ROOT / "docs" / "measurements" / "performance.md").read_text(encoding="utf-8")
    tables = dict(re.findall(r"<!-- table (\w+) -->\n(.*?)<!-- end -->", page, re.DOTALL))

    def row(table, *starts):
        """The numbers of the one row whose first cells begin with these words."""
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[table].splitlines()]
        (found,) = (cells for cells in rows if all(map(str.startswith, cells, starts)) and len(cells) > len(starts))
        return [round(float(cell)) for cell in found[len(starts) :] if re.fullmatch(r"[\d.]+", cell)]

    case = "vit_b, 20 queries, vga"
    stock, ours = (row("speed", case, flow)[0] for flow in ("stock (fp32)", "ours"))
    names = ("light", "SAM 2.1 tiny", "Grounding DINO tiny, SAM 2.1 tiny", "SAM 3")
    light, tiny, dino, sam3 = (row("peers", name)[1] for name in names)
    text = " ".join(README.split())
    assert f"20 queries, texts included, take {ours} s where the original code takes {stock}" in text
    assert f"costs {light} CPU seconds with MobileSAM and {tiny} with SAM 2.1 tiny" in text
    assert f"Grounding DINO tiny and the same SAM 2.1 cost {dino}, SAM 3 {sam3} " in text
    assert f"need about {row('latency', 'vit_b', 'first answer, 1 known words')[0]} seconds for one query" in text
    assert ours * 5 < stock
    assert max(light, tiny) * 2 < min(dino, sam3)
