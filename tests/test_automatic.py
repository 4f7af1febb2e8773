"""Automatic masks: those of segment-anything's generator, for every SAM, and by the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sam_builders as build
import torch
from closeness import DEMO_NETWORK, TINY_NETWORK, about, assert_close, assert_same_masks
from PIL import Image as PillowImage
from sam2_builders import random_weights, small_config
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import remove_small_regions
from torch.nn import functional as F

from text2seg import Text2Seg, demo
from text2seg.cli import main
from text2seg.config import AutomaticSettings
from text2seg.errors import SettingsError
from text2seg.everything import Everything
from text2seg.io.images import load_image
from text2seg.loading import open_sam
from text2seg.records import UNNAMED, PointPrompts
from text2seg.render import overlay
from text2seg.sam.automatic import (
    Region,
    _without_repeats,
    _without_small,
    automatic_masks,
    automatic_regions,
    crops_of,
    grid,
)
from text2seg.sam.sam import Sam
from text2seg.sam.sam2 import Sam2
from text2seg.tiling import crop

CPU = torch.device("cpu")
DEMO_SAM = Path(demo.__file__).parent / "sam_demo.pth"
SCENE = Path(demo.__file__).parent / "scenes" / "new-scenes" / "images" / "scene_0019.jpg"
STOCK_NAMES = {
    "points_per_side": "points_per_side",
    "predicted_iou": "pred_iou_thresh",
    "stability": "stability_score_thresh",
    "stability_offset": "stability_score_offset",
    "box_overlap": "box_nms_thresh",
    "crop_layers": "crop_n_layers",
    "crop_overlap": "crop_overlap_ratio",
    "crop_points_divisor": "crop_n_points_downscale_factor",
    "min_region": "min_mask_region_area",
}
SMALL = AutomaticSettings(points_per_side=8)


def regions_of(sam, image, settings):
    return automatic_regions(
        sam, lambda box: sam.embed([image if box is None else crop(image, box)])[0], image.hw, settings
    )


def assert_equals_stock(sam, image, settings, *, terms):
    names = {theirs: getattr(settings, ours) for ours, theirs in STOCK_NAMES.items()}
    stock = SamAutomaticMaskGenerator(sam.module, **names, crop_nms_thresh=settings.box_overlap)
    theirs, ours = stock.generate(image.pixels.copy()), regions_of(sam, image, settings)
    assert len(ours) == len(theirs) > 0
    for region, record in zip(ours, theirs, strict=True):
        assert_same_masks(region.in_image(image.hw), record["segmentation"])
        assert region.predicted_iou == about(record["predicted_iou"], terms=terms)
        # A pixel more or less, where its logit is at the threshold.
        assert region.stability == pytest.approx(record["stability_score"], abs=4 / record["area"])
        np.testing.assert_allclose(region.point.xy[0], record["point_coords"][0], rtol=1e-6)
        x, y, width, height = record["crop_box"]
        assert (region.view_xywh or (0, 0, image.hw[1], image.hw[0])) == (x, y, width, height)


@pytest.fixture(scope="module")
def demo_sam():
    return open_sam(DEMO_SAM, device=CPU, precision="fp32")


@pytest.fixture(scope="module")
def scene():
    return load_image(SCENE)


@pytest.fixture(scope="module")
def tiny():
    return Sam(build.sam_module(), CPU)


class TestEqualToTheStockGenerator:
    @pytest.mark.parametrize(
        "settings",
        [
            SMALL,
            AutomaticSettings(points_per_side=7, predicted_iou=0.6, stability=0.8, box_overlap=0.5),
            AutomaticSettings(points_per_side=6, predicted_iou=0.6, stability=0.8, crop_layers=1, min_region=60),
            AutomaticSettings(
                points_per_side=6,
                predicted_iou=0.5,
                stability=0.7,
                crop_layers=2,
                crop_points_divisor=2,
                crop_overlap=0.2,
            ),
        ],
        ids=["defaults", "lower bounds", "crops and small regions", "two layers of crops"],
    )
    def test_on_the_demo_weights(self, demo_sam, scene, settings):
        assert_equals_stock(demo_sam, scene, settings, terms=DEMO_NETWORK)

    def test_with_a_decoder_of_official_size(self):
        sam = Sam(build.sam_module(build.FULL_SIZE_DECODER), CPU)
        settings = AutomaticSettings(
            points_per_side=2, predicted_iou=0, stability=0.5, stability_offset=0.001, box_overlap=0.99
        )
        assert_equals_stock(sam, build.make_image(60, 88), settings, terms=DEMO_NETWORK)

    @pytest.mark.parametrize("holes", [True, False])
    def test_small_holes_and_islands(self, holes):
        mask = np.random.default_rng(0).random((40, 56)) > 0.45
        for min_area in (2, 5, 20, 5000):
            theirs, _ = remove_small_regions(mask, min_area, "holes" if holes else "islands")
            np.testing.assert_array_equal(_without_small(mask, min_area, holes=holes), theirs)


def whole_image(sam, logits, embedding):
    """The logits of the whole image as segment-anything or transformers upscale them, float32 [H, W]."""
    if isinstance(sam, Sam):
        return sam.module.postprocess_masks(logits[None, None], embedding.input_hw, embedding.image_hw)[0, 0]
    return F.interpolate(logits[None, None], embedding.image_hw, mode="bilinear", align_corners=False)[0, 0]


class TestUpscaling:
    @pytest.fixture(params=["sam", "sam2"])
    def sam(self, request, tiny):
        if request.param == "sam":
            return tiny
        config = json.loads(small_config().to_json_string())
        return Sam2.from_weights(random_weights(small_config()), device=CPU, precision="fp32", config=config)

    @pytest.mark.parametrize("hw", [(45, 61), (200, 30), (7, 9), (701, 930)])  # the last one has several tiles
    @pytest.mark.parametrize("above", [0.0, 1.2, -9.0])
    def test_masks_equal_those_of_the_whole_image(self, sam, hw, above):
        (embedding,) = sam.embed([build.make_image(*hw)])
        side = sam._mask_input_hw[0]
        coarse = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        logits = F.interpolate(coarse, (side, side), mode="bicubic")[0, 0] - above
        whole = whole_image(sam, logits, embedding).numpy()
        mask = sam.upscaling(embedding).in_image(logits.numpy())
        np.testing.assert_array_equal(mask, whole > 0)
        found = sam.upscaling(embedding).mask(logits.numpy(), 0.3)
        if not mask.any():
            assert found is None
            return
        x, y, width, height = found.xywh
        np.testing.assert_array_equal(mask[y : y + height, x : x + width], found.mask)
        assert found.stability == np.count_nonzero(whole > 0.3) / np.count_nonzero(whole > -0.3)

    def test_another_size_gets_another_upscaling(self, tiny):
        for hw in ((45, 61), (61, 45), (45, 61)):
            (embedding,) = tiny.embed([build.make_image(*hw)])
            assert tiny.upscaling(embedding).in_image(np.ones((20, 20), np.float32)).shape == hw


class TestParts:
    def test_points_are_the_centres_of_cells(self):
        np.testing.assert_allclose(grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])

    def test_crops_cover_the_image(self):
        crops = crops_of((90, 130), AutomaticSettings(crop_layers=2))
        assert [layer for _, layer in crops] == [0] + [1] * 4 + [2] * 16
        for layer in (1, 2):
            covered = np.zeros((90, 130), bool)
            for (x, y, width, height), _ in (each for each in crops if each[1] == layer):
                assert width > 0
                assert height > 0
                covered[y : y + height, x : x + width] = True
            assert covered.all()

    def test_fewer_points_per_call_give_the_same_regions(self, demo_sam, scene):
        one, other = (regions_of(demo_sam, scene, replace(SMALL, points_per_call=count)) for count in (64, 5))
        assert [region.xywh for region in one] == [region.xywh for region in other]


def square(x, y, width, height, score):
    """A region that is a rectangle."""
    point = PointPrompts(np.zeros((1, 2), np.float32), np.ones(1, np.int8), np.ones(1, np.float32))
    return Region(np.ones((height, width), bool), (x, y, width, height), point, 0, score, 1.0)


class TestSuppression:
    def test_masks_drops_repeats_and_parts_also_what_lies_inside(self):
        whole, repeat, part, other = (
            square(10, 10, 40, 60, 0.9),
            square(11, 10, 40, 60, 0.8),
            square(12, 20, 8, 10, 0.95),
            square(60, 10, 20, 20, 0.7),
        )
        regions = [part, whole, repeat, other]
        kept = {
            kind: _without_repeats(regions, (80, 100), AutomaticSettings(suppression=kind))
            for kind in ("masks", "parts")
        }
        assert kept["masks"] == [part, whole, other]
        assert kept["parts"] == [part, other]  # the better one stays, whether it is the part or the whole
        assert _without_repeats([], (80, 100), AutomaticSettings(suppression="parts")) == []

    def test_small_things_in_a_large_image_stay(self):
        small, large = square(1009, 1009, 10, 10, 0.9), square(2000, 1500, 800, 900, 0.8)
        for kind in ("masks", "parts"):
            assert _without_repeats([small, large], (3000, 4000), AutomaticSettings(suppression=kind)) == [small, large]
        inside = square(2100, 1600, 10, 10, 0.7)
        assert inside not in _without_repeats([large, inside], (3000, 4000), AutomaticSettings(suppression="parts"))


class TestDecoder:
    def test_sets_below_the_bound_give_no_candidates_and_the_others_the_same(self, tiny):
        image = build.make_image(45, 61)
        (embedding,) = tiny.embed([image])
        sets = [(embedding, build.points(image, 1, seed=seed)) for seed in range(9)]
        all_of_them = tiny.decode(sets)
        best = [candidates.scores.max() for candidates in all_of_them]
        bound = float(np.median(best))
        for candidates, every, score in zip(tiny.decode(sets, above=bound), all_of_them, best, strict=True):
            assert len(candidates) == (3 if score > bound else 0)
            if len(candidates):
                assert_close(candidates.logits, every.logits, terms=TINY_NETWORK)
        assert not any(map(len, tiny.decode(sets, above=9.0)))


class TestPipeline:
    def test_candidates_are_those_of_the_point_and_hold_no_other_memory(self, demo_sam, scene):
        settings = replace(SMALL, predicted_iou=0.5, stability=0.7, crop_layers=1)
        models = Everything(demo_sam, automatic=settings)
        session = models.open(scene)
        (result,) = models.segment_sessions([session], UNNAMED)
        embedded = []

        def embed(box):
            embedded.append(box)
            return models._embed(session, box)

        again = automatic_masks(demo_sam, embed, scene, settings)
        assert len(again.segments) == len(result.segments)
        crops = [crop for crop, _ in crops_of(scene.hw, settings)]
        assert len(embedded) <= 2 * len(crops)  # to search it, and for the candidates of what was found in it
        assert any(segment.view_xywh for segment in result.segments)
        for segment in result.segments:
            mask = models.candidate_mask(session, segment, segment.chosen)
            assert_same_masks(mask, segment.mask)
            assert segment.candidates.scores[segment.chosen] == about(segment.sam_score, terms=DEMO_NETWORK)
            logits = segment.candidates.logits
            assert (logits if logits.base is None else logits.base).nbytes == logits.nbytes

    def test_everything_in_an_image(self, scene):
        result = Text2Seg.load("demo").everything(scene, SMALL)
        assert {segment.query for segment in result.segments} == {UNNAMED}
        scores = [segment.sam_score for segment in result.segments]
        assert scores == sorted(scores, reverse=True)
        assert min(scores) > SMALL.predicted_iou

    def test_an_image_without_anything_gives_no_segments(self):
        plain = build.make_image(48, 64)
        nothing = AutomaticSettings(points_per_side=2, predicted_iou=1)
        assert Text2Seg.load("demo").everything(plain, nothing).segments == ()

    def test_overlays_show_each_segment_in_its_own_colour(self, scene):
        result = Text2Seg.load("demo").everything(scene, replace(SMALL, suppression="parts"))
        first, second = result.segments[:2]
        alone = [
            overlay(replace(result, segments=(first, second)), legend=False)[s.mask & ~o.mask]
            for s, o in ((first, second), (second, first))
        ]
        plain = [scene.pixels[s.mask & ~o.mask] for s, o in ((first, second), (second, first))]
        tints = [np.median(drawn.astype(int) * 2 - image, axis=0) for drawn, image in zip(alone, plain, strict=True)]
        assert np.abs(tints[0] - tints[1]).max() > 20

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"points_per_side": 0}, "points per side must be a whole number of 1 or more, got 0"),
            ({"points_per_side": 1000}, "points per side must be at most 256"),
            ({"crop_layers": 9}, "crop layers must be at most 4"),
            ({"predicted_iou": 1.5}, r"predicted iou must be in \[0, 1\]"),
            ({"crop_overlap": 1.0}, "crop overlap"),
            ({"suppression": "all"}, "suppression"),
        ],
    )
    def test_bad_settings_are_refused(self, setting, message):
        with pytest.raises(SettingsError, match=message):
            AutomaticSettings(**setting)


class TestCommands:
    FEW = ("--points-per-side", "6")

    def test_segment_writes_overlay_masks_and_dataset(self, tmp_path, capsys):
        save = ("--save", "overlay,why,masks")
        assert main(["segment", str(SCENE), "--everything", *self.FEW, *save, "--output", str(tmp_path)]) == 0
        dataset = json.loads((tmp_path / "dataset.json").read_text())
        assert [category["name"] for category in dataset["categories"]] == [UNNAMED]
        count = len(dataset["annotations"])
        assert count > 0
        assert f"{UNNAMED}: " in capsys.readouterr().out
        assert len(list((tmp_path / "masks").glob("*.png"))) == count
        assert (tmp_path / "scene_0019_overlay.png").exists()
        assert not (tmp_path / "scene_0019_why.png").exists()
        provenance = json.dumps(dataset)
        assert '"points_per_side": 6' in provenance

    def test_the_weights_are_named_and_there_is_no_why_image(self, tmp_path, capsys):
        flags = ["--everything", *self.FEW, "--save", "why", "--output"]
        assert main(["segment", str(SCENE), *flags, str(tmp_path / "one")]) == 0
        said = capsys.readouterr().err
        assert "the model is SAM demo, bundled with text2seg, which knows drawn things only" in said
        assert "there is no why image" in said
        assert main(["replay", str(tmp_path / "one" / "dataset.json"), "--annotation", "1"]) == 1
        assert "made by --everything, without CLIP; only masks of queries can be replayed" in capsys.readouterr().err

    def test_an_image_without_masks_names_the_flags_that_keep_more(self, tmp_path, capsys):
        flags = ["--everything", "--points-per-side", "2", "--predicted-iou", "1", "--output", str(tmp_path)]
        assert main(["segment", str(SCENE), *flags]) == 0
        assert f"{UNNAMED}: no mask; --predicted-iou and --stability" in capsys.readouterr().out

    def test_label_writes_the_masks_of_segment(self, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        PillowImage.open(SCENE).save(folder / "one.png")
        main(["segment", str(folder / "one.png"), "--everything", *self.FEW, "--output", str(tmp_path / "out")])
        assert main(["label", str(folder), "--everything", *self.FEW, "--output", str(tmp_path / "all.json")]) == 0
        by_segment = json.loads((tmp_path / "out" / "dataset.json").read_text())["annotations"]
        by_label = json.loads((tmp_path / "all.json").read_text())["annotations"]
        assert [each["segmentation"] for each in by_label] == [each["segmentation"] for each in by_segment]

    def test_sam3_is_not_blamed_for_words(self, tmp_path, capsys):
        command = ["label", str(SCENE.parent), "--everything", "--sam3", str(tmp_path)]
        assert main([*command, "--output", str(tmp_path / "labels.json")]) == 2
        assert "--everything uses SAM without words and --sam3 needs words" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--everything", "--query", "sheep"], "--everything needs no words"),
            (["--query", "sheep", "--stability", "0.5"], "no effect without --everything"),
            (["--everything", "--tile", "64"], "--tile has no effect with --everything"),
        ],
    )
    def test_flags_that_do_not_go_together(self, tmp_path, capsys, flags, message):
        assert main(["segment", str(SCENE), *flags, "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
