from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests import builders
from text2seg.cli import main
from text2seg.coco.dataset import build_dataset, write_dataset
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.rle import encode
from text2seg.errors import OutputError, Text2SegError
from text2seg.review import uncertainty_of, write_review
from text2seg.review.contents import contents_of
from text2seg.review.thumbnail import thumbnail

BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def annotation(**attributes):
    return {"segmentation": encode(builders.box_mask()), "score": 1.0, "attributes": attributes}


def test_parts_of_the_uncertainty():
    wide, apart = encode(builders.box_mask()), encode(builders.box_mask(left=16))  # half of it, so an IoU of 1/3
    doubt = uncertainty_of(
        {
            **annotation(
                presence=0.75,
                map_score=0.45,
                candidate_scores=[0.8, 0.7, 0.1],
                chosen_candidate=0,
                candidates=[apart, wide],
            ),
            "score": 0.8,
        },
        hw=builders.HW,
        threshold=0.5,
    )
    assert doubt.parts == pytest.approx({"presence": 0.5, "candidates": 0.5 * 2 / 3, "map": 0.25, "score": 0.2})
    assert doubt.value == pytest.approx(1 - 0.5 * (2 / 3) * 0.75 * 0.8)
    assert doubt.reason == "presence"


@pytest.mark.parametrize(("presence", "part"), [(0.0, 0), (0.2, 0.5), (0.4, 1), (0.7, 0.5), (1.0, 0)])
def test_presence_part_is_highest_at_the_threshold(presence, part):
    assert uncertainty_of(annotation(presence=presence), threshold=0.4).parts["presence"] == pytest.approx(part)


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_presence_part_needs_a_threshold(threshold):
    assert "presence" not in uncertainty_of(annotation(presence=0.01), threshold=threshold).parts


def test_similar_candidates_do_not_raise_the_uncertainty():
    same = encode(builders.box_mask())
    known = annotation(candidate_scores=[0.8, 0.8], chosen_candidate=1, candidates=[same])
    assert uncertainty_of(known, hw=builders.HW).parts["candidates"] == 0
    del known["attributes"]["candidates"]
    assert "candidates" not in uncertainty_of(known, hw=builders.HW).parts


def test_a_mask_made_by_hand_is_certain():
    doubt = uncertainty_of(annotation(by_hand=True, presence=0.5, map_score=0.0), threshold=0.5)
    assert (doubt.value, doubt.reason) == (0, "hand")
    assert uncertainty_of(annotation(by_hand=False, presence=0.5), threshold=0.5).value == 1


def test_uncertainty_without_attributes_or_score():
    assert uncertainty_of({"score": 0.7}).value == pytest.approx(0.3)
    assert uncertainty_of({"bbox": [1, 2, 3, 4]}).value is None
    assert uncertainty_of({"score": "high", "attributes": ["occluded"]}).value is None


@pytest.fixture
def folder(tmp_path):
    """Four images: certain, uncertain, empty with a nearly found category, and missing."""
    segments = {
        "sure.png": builders.segment("ball", sam_score=0.95),
        "doubtful.png": builders.segment("box & <cup>", builders.ring_mask(), sam_score=0.3),
    }
    results = []
    for number, name in enumerate(["sure.png", "doubtful.png", "empty.png", "gone.png"], start=1):
        found = [segments[name]] if name in segments else []
        results.append(builders.segmentation(*found, queries=["ball", "box & <cup>"], file_name=name, image_id=number))
        if name != "gone.png":
            Image.fromarray(builders.pixels()).save(tmp_path / name)
    settings = {"presence": {"presence": 0.5}}
    failure = {"file_name": "<b>broken.png", "stage": "read", "message": "cut short"}
    dataset = build_dataset(results, provenance={"settings": settings}, info={"failures": [failure]})
    dataset["info"]["provenance"] = {"settings": settings}
    dataset["images"][2]["attributes"] = {"presence": {"ball": 0.1, "box & <cup>": 0.48}}
    write_dataset(dataset, tmp_path / "dataset.json")
    return tmp_path


def test_contents_are_sorted_by_uncertainty_with_category_counts(folder):
    contents = contents_of(json.loads((folder / "dataset.json").read_text(encoding="utf-8")))
    assert [image.file_name for image in contents.images] == ["empty.png", "doubtful.png", "sure.png", "gone.png"]
    assert contents.images[0].uncertainty == pytest.approx(0.96)
    ball, box = contents.categories
    assert (ball.values["images"], ball.segments, ball.values["area_share"]) == (1, 1, 72 / (24 * 32))
    assert (box.values["score"], box.values["presence"]) == (pytest.approx(0.3), 0.25)
    assert len(contents.failures) == 1


def test_page_is_self_contained_and_escapes_names(folder):
    review = write_review(folder / "dataset.json", folder / "page.html")
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert (review.shown, review.left_out, review.unseen) == (4, 0, 1)
    assert page.count("data:image/jpeg;base64,") == 3
    assert not re.search(r"https?://|<link|src=\"(?!data:)", page)
    assert "<cup>" not in page
    assert "&lt;cup&gt;" in page
    assert "&lt;b&gt;broken.png" in page
    assert "gone.png is not in" in page
    assert page.count("<img") == page.count('alt="') == 3


def test_images_have_the_chosen_size(folder):
    write_review(folder / "dataset.json", folder / "page.html", image_side=64)
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert page.count('width="64" height="48"') == 3
    for side in (15, 4097):
        with pytest.raises(Text2SegError, match="from 16 to 4096"):
            write_review(folder / "dataset.json", folder / "other.html", image_side=side)
    assert not (folder / "other.html").exists()


def test_page_is_deterministic(folder):
    for name in ("one.html", "two.html"):
        write_review(folder / "dataset.json", folder / name)
    assert (folder / "one.html").read_bytes() == (folder / "two.html").read_bytes()


def test_limit_leaves_out_the_least_uncertain_images(folder):
    review = write_review(folder / "dataset.json", folder / "page.html", limit=2)
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert (review.shown, review.left_out) == (2, 2)
    assert re.findall(r'data-name="(\S+)"', page) == ["empty.png", "doubtful.png"]
    assert "2 less uncertain images not on this page" in page


def test_existing_files_are_not_overwritten(folder):
    page = folder / "page.html"
    page.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="--overwrite"):
        write_review(folder / "dataset.json", page)
    assert page.read_text(encoding="utf-8") == "mine"
    write_review(folder / "dataset.json", page, overwrite=True)
    with pytest.raises(OutputError, match="an input"):
        write_review(folder / "dataset.json", folder / "dataset.json", overwrite=True)
    with pytest.raises(Text2SegError, match="1 or more"):
        write_review(folder / "dataset.json", folder / "other.html", limit=0)


def test_wrong_image_size_and_damaged_mask_are_reported(folder):
    dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    dataset["annotations"][1]["segmentation"] = {"size": [5, 5], "counts": "?"}
    write_dataset(dataset, folder / "dataset.json")
    Image.fromarray(builders.pixels((32, 24))).save(folder / "sure.png")
    assert write_review(folder / "dataset.json", folder / "page.html").unseen == 2
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "not the image that was labelled" in page
    assert "masks that cannot be read: box &amp; &lt;cup&gt;" in page


def test_foreign_dataset_with_only_boxes_is_shown(tmp_path):
    Image.fromarray(builders.pixels()).save(tmp_path / "a.png")
    dataset = {
        "images": [{"id": "x", "file_name": "a.png"}],
        "annotations": [
            {"image_id": "x", "category_id": 3, "bbox": [2, 3, 20.4, 11]},
            {"image_id": "y", "category_id": 3, "bbox": [2, 3, 20.4, 11]},
        ],
        "categories": [{"id": 3, "name": "dog", "color": [1, 2, 3]}],
    }
    write_dataset(dataset, tmp_path / "d.json")
    review = write_review(tmp_path / "d.json", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert review.unseen == 0
    assert "#010203" in page
    assert "1 annotation of no image" in page
    assert ">unknown<" in page


@pytest.mark.parametrize("is_rejected", [False, True])
def test_thumbnail_colours_segments_by_category_unless_they_are_rejected(folder, is_rejected):
    contents = contents_of(json.loads((folder / "dataset.json").read_text(encoding="utf-8")))
    sure = next(image for image in contents.images if image.file_name == "sure.png")
    rejected = [each.annotation["id"] for each in sure.items] if is_rejected else []
    finder = ImageFinder(folder / "dataset.json")
    small = thumbnail(sure, {"ball": (255, 0, 0)}, finder=finder, rejected=rejected)
    assert (small.width, small.height, small.note) == (360, 270, "")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(small.url.partition(",")[2]))), dtype=int)
    redness = shown[:, :, 0] - shown[:, :, 1:].mean(2)
    inside = np.kron(builders.box_mask(), np.ones((11, 11), bool))  # 24 x 32 at 11.25, near enough for the middle
    inside = np.pad(inside, ((0, 6), (0, 8)))
    assert (redness[inside].mean() > 80) is not is_rejected
    assert redness[~inside].mean() < 30


def test_report_command_prints_what_it_wrote(folder, capsys):
    output = folder / "out" / "page.html"
    arguments = ["report", str(folder / "dataset.json"), "--images", str(folder), "--output", str(output)]
    assert main([*arguments, "--limit", "3"]) == 0
    printed = capsys.readouterr().out
    assert "3 images on the page, 1 less uncertain left out" in printed
    assert output.is_file()
    assert main(arguments) == 1
    (folder / "sure.png").write_bytes(b"cut")
    capsys.readouterr()
    assert main([*arguments, "--overwrite"]) == 3
    assert f"have no picture: not in {folder}, or damaged; --verbose names them" in capsys.readouterr().err


DRIVER = """
<pre id="answers"></pre><script>
const names = () => [...document.querySelectorAll(".card:not([hidden])")].map((card) => card.dataset.name);
const set = (id, value) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event("input"));
};
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const current = () => document.querySelector(".card.current")?.dataset.name ?? null;
const answers = { start: names() };
set("order", "name"); answers.byName = names(); answers.address = location.hash;
set("order", "least"); answers.fewest = names(); set("order", "most");
set("uncertainty", "0.7"); answers.least = names(); set("uncertainty", "0");
set("category", "ball"); answers.ball = names(); set("category", "box & <cup>"); answers.box = names();
set("category", ""); set("reason", "nearly found"); answers.nearly = names(); set("reason", "");
set("name", "SURE"); answers.name = names(); answers.count = document.getElementById("count").textContent;
set("name", "nowhere"); answers.nothing = !document.getElementById("nothing").hidden;
document.getElementById("reset").click(); answers.reset = names();
press("j"); answers.first = current(); press("j"); answers.second = current(); press("k"); answers.back = current();
const large = document.getElementById("large");
document.querySelector(".card[data-name='sure.png'] .open").click();
answers.large = [large.open, document.getElementById("large-name").textContent, large.querySelector("img").alt];
large.querySelector("[data-do=in]").click(); answers.zoom = document.getElementById("zoom").textContent;
large.querySelector("[data-do=close]").click(); answers.closed = !large.open;
answers.wide = document.documentElement.scrollWidth <= window.innerWidth;
document.getElementById("answers").textContent = JSON.stringify(answers);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here; put one on PATH or name it in the variable CHROMIUM")
@pytest.mark.parametrize("width", [1400, 500])
def test_in_chromium_filters_order_and_keys_work(folder, width):
    write_review(folder / "dataset.json", folder / "page.html")
    page = (folder / "page.html").read_text(encoding="utf-8").replace("</body>", f"{DRIVER}</body>")
    (folder / "driven.html").write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [BROWSER, *flags, f"--window-size={width},900", "--dump-dom", (folder / "driven.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answers = json.loads(re.search(r'<pre id="answers">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    everything = ["empty.png", "doubtful.png", "sure.png", "gone.png"]
    assert answers == {
        "start": everything,
        "byName": sorted(everything),
        "address": "#order=name",
        "fewest": ["gone.png", "sure.png", "doubtful.png", "empty.png"],
        "least": ["empty.png", "doubtful.png"],
        "ball": ["sure.png"],
        "box": ["empty.png", "doubtful.png"],
        "nearly": ["empty.png"],
        "name": ["sure.png"],
        "count": "1 of 4 images",
        "nothing": True,
        "reset": everything,
        "first": "empty.png",
        "second": "doubtful.png",
        "back": "empty.png",
        "large": [True, "sure.png", "sure.png with ball marked"],
        "zoom": "150 %",
        "closed": True,
        "wide": True,
    }
