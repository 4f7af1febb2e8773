"""The page of an evaluation and the command `text2seg evaluate`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import evaluation_builders as build
import pytest

from text2seg.cli import main
from text2seg.errors import OutputError
from text2seg.evaluation import evaluate
from text2seg.evaluation.evaluate import MOST_LABELS, render_page, write_page

SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "held-out" / "dataset.json"


class Page(HTMLParser):
    """Parser that checks that tags are closed in order, and keeps the texts of table cells."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def test_the_page_shows_all_scores_and_is_self_contained():
    result = evaluate(*build.random_pair(1))
    text = render_page(result, truth="truth.json", predicted="found.json")
    page = Page(text)
    dog = next(row for row in page.rows if row[0] == "dog" and len(row) == 9)
    given = result.category_given.by_category["dog"]
    assert dog[1] == f"{result.instances.by_category['dog']:.3f}"
    assert dog[4] == f"{given:.3f}"
    assert f"<dd>{result.semantic.miou:.3f}</dd>" in text
    assert not re.search(r"(src|href)=|https?://|url\(", text)
    assert len([row for row in page.rows if row and row[0] == result.misses.missed[0].file_name]) >= 1


def test_names_are_escaped():
    names = ("<b>dog</b>", "cat & 'co'", "red car")
    annotations = [build.annotation(names[0], build.LEFT)]
    truth, found = build.dataset(annotations, names=names), build.dataset([], names=names)
    text = render_page(evaluate(truth, found), predicted="<script>alert(1)</script>")
    assert "<b>dog" not in text
    assert "<script>alert" not in text
    assert "&lt;b&gt;dog&lt;/b&gt;" in text


@pytest.mark.parametrize("protocol", ["instances", "semantic", "category-given", "multilabel"])
def test_a_page_of_one_protocol_shows_only_that_protocol(protocol):
    text = render_page(evaluate(*build.random_pair(1), protocol=protocol))
    Page(text)
    assert f"· {protocol}<" in text
    assert ("Confusion" in text) == (protocol == "semantic")
    assert ("why the rest" in text) == (protocol == "category-given")


def test_the_confusion_table_of_many_labels_shows_the_confused_ones():
    names = tuple(f"label {number}" for number in range(40))
    annotations = [build.annotation(name, build.LEFT) for name in names]
    truth = build.dataset(*([each] for each in annotations), names=names)
    found = build.dataset(
        *([build.annotation(name, build.LEFT, score=0.5)] for name in (names[1], *names[1:])), names=names
    )
    page = Page(render_page(evaluate(truth, found, protocol="semantic")))
    heads = next(row for row in page.rows if row and row[0] == "true")
    assert len(heads) == MOST_LABELS + 2
    assert heads[1:4] == ["background", "label 0", "label 1"]
    assert heads[-1] == f"{41 - MOST_LABELS} others"
    row = next(row for row in page.rows if row and row[0] == "label 0" and len(row) == len(heads))
    assert row[3] == "100"


def test_an_existing_page_is_not_overwritten(tmp_path):
    result = evaluate(*build.random_pair(1))
    path = write_page(result, tmp_path / "page.html")
    first = path.read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        write_page(result, path)
    write_page(result, path, overwrite=True)
    assert path.read_bytes() == first


def files(tmp_path: Path, seed: int = 1) -> list[str]:
    paths = []
    for name, data in zip(("truth", "found"), build.random_pair(seed), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
        paths.append(str(tmp_path / f"{name}.json"))
    return paths


def test_the_command_prints_and_writes_the_numbers(tmp_path, capsys):
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    command = ["evaluate", *files(tmp_path), "--report", str(page), "--json", str(numbers)]
    assert main(command) == 0
    wanted = evaluate(*build.random_pair(1))
    out = capsys.readouterr().out
    assert f"{wanted.category_given.mean_iou:.3f}" in out
    assert "red car" in out
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert found["instances"]["ap"] == wanted.instances.ap
    assert found["category-given"]["mean_iou"] == wanted.category_given.mean_iou
    assert sum(cell[2] for cell in found["semantic"]["confusion"]) == wanted.semantic.confusion.sum()
    assert found["misses"]["counts"] == wanted.misses.counts
    assert page.read_text(encoding="utf-8") == render_page(wanted, truth="truth.json", predicted="found.json")
    assert main(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_an_input_is_never_overwritten(tmp_path, capsys):
    truth, found = files(tmp_path)
    before = Path(found).read_bytes()
    assert main(["evaluate", truth, found, "--json", found, "--overwrite"]) == 1
    assert "is an input" in capsys.readouterr().err
    assert Path(found).read_bytes() == before


@pytest.mark.parametrize("match", ["id", "file-name"])
def test_the_bundled_truth_scores_one_against_itself(tmp_path, capsys, match):
    numbers = tmp_path / "numbers.json"
    assert main(["evaluate", str(SCENES), str(SCENES), "--match", match, "--json", str(numbers)]) == 0
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert found["instances"]["ap"] == pytest.approx(1)
    assert found["semantic"]["miou"] == found["category-given"]["mean_iou"] == found["multilabel"]["mean_ap"] == 1


BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
DRIVER = """<script>
const table = document.querySelector("table.sortable"), buttons = table.tHead.querySelectorAll("button");
const column = place => [...table.tBodies[0].rows].map(row => row.cells[place].textContent);
const answers = {};
buttons[1].click(); answers.rising = column(1);
buttons[1].click(); answers.falling = column(1);
buttons[0].click(); answers.names = column(0);
answers.fits = document.documentElement.scrollWidth <= innerWidth;
document.body.innerHTML = '<pre id="answers">' + JSON.stringify(answers) + "</pre>";
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here; put one on PATH or name it in the variable CHROMIUM")
@pytest.mark.parametrize("width", [1400, 500])
def test_in_chromium_the_table_sorts_and_the_page_fits(tmp_path, width):
    truth, found = build.random_pair(1)
    truth["categories"].append({"id": 99, "name": "apple"})
    found["annotations"][0]["category_id"] = 99
    found["categories"] = truth["categories"]
    result = evaluate(truth, found)
    path = tmp_path / "driven.html"
    path.write_text(render_page(result).replace("</body>", DRIVER), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(BROWSER), *flags, f"--window-size={width},900", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answers = json.loads(re.search(r'<pre id="answers">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    wanted = sorted(f"{ap:.3f}" for ap in result.instances.by_category.values() if ap is not None)
    assert len(set(wanted)) == 3
    assert answers == {
        "rising": [*wanted, "–"],
        "falling": [*wanted[::-1], "–"],
        "names": ["apple", "cat", "dog", "red car"],
        "fits": True,
    }
