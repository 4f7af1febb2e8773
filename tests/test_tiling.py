"""Tiles: their positions, the merge of their segments, and the small objects that they find."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from tests import builders
from tests.test_pipeline import FakeClip, FakeSam
from text2seg import Settings, Text2Seg
from text2seg.cli import main
from text2seg.clip.maps import PresenceModel
from text2seg.clip.model import ImageTokens
from text2seg.coco import rle
from text2seg.coco.dataset import build_dataset, read_dataset
from text2seg.config import MaskSettings, PointSettings, TileSettings
from text2seg.errors import SettingsError, Text2SegError
from text2seg.grids import place
from text2seg.io.images import load_image
from text2seg.model_card import ModelCard, PresenceCalibration
from text2seg.records import Candidates, Image
from text2seg.render import panels
from text2seg.review.replay import replay
from text2seg.tiling import KEPT_VIEWS, VIEWS_PER_CALL, ViewSegment, crop, is_cut, merge, shift, tiles_of

SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "new-scenes"

# Where tiles lie


@given(
    hw=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    tile=st.integers(32, 400),
    overlap=st.floats(0, 0.75),
)
def test_tiles_cover_every_pixel_and_overlap_as_set(hw, tile, overlap):
    tiles = tiles_of(hw, TileSettings(tile, overlap))
    if max(hw) <= tile:
        assert tiles == []
        return
    assert len(set(tiles)) == len(tiles) >= 2
    sides = {(width, height) for _, _, width, height in tiles}
    assert sides == {(min(tile, hw[1]), min(tile, hw[0]))}
    for axis in (0, 1):
        starts, side, length = sorted({box[axis] for box in tiles}), tiles[0][2 + axis], hw[1 - axis]
        assert (starts[0], starts[-1] + side) == (0, length)
        assert all(b - a <= max(side * (1 - overlap), 1) for a, b in pairwise(starts))
    assert len(tiles) == len({box[0] for box in tiles}) * len({box[1] for box in tiles})


def test_tiles_of_known_image_sizes():
    assert tiles_of((100, 250), TileSettings(100, 0.2)) == [(0, 0, 100, 100), (75, 0, 100, 100), (150, 0, 100, 100)]
    assert tiles_of((60, 150), TileSettings(100, 0.5)) == [(0, 0, 100, 60), (50, 0, 100, 60)]
    assert tiles_of((100, 100), TileSettings(100)) == []
    assert tiles_of((100, 250), TileSettings()) == []


@pytest.mark.parametrize("wrong", [{"tile": 31}, {"tile": -1}, {"tile": 64.0}, {"tile_overlap": 0.8}])
def test_invalid_tile_settings_are_refused(wrong):
    with pytest.raises(SettingsError, match="tile"):
        TileSettings(**wrong)


def test_crop_and_place_are_inverse():
    image, box = builders.image((24, 32), file_name="a.png", image_id=7), (10, 4, 12, 6)
    part = crop(image, box)
    assert (part.hw, part.file_name, part.image_id) == ((6, 12), "a.png", 7)
    assert (part.pixels == image.pixels[4:10, 10:22]).all()
    assert (place(np.ones((6, 12), bool), box, (24, 32)) == builders.box_mask()).all()
    points = replace(builders.points((1.5, 2.5, 1, 0.9)), boxes_xyxy=np.array([[0, 1, 3, 4]], np.float32))
    moved = shift(points, box)
    assert moved.xy.tolist() == [[11.5, 6.5]]
    assert moved.boxes_xyxy.tolist() == [[10, 5, 13, 8]]
    assert shift(moved, box, back=True).xy.tolist() == points.xy.tolist()


# What stays of what the views show


def test_is_cut_finds_masks_at_borders_inside_the_image():
    hw, view = (100, 200), (50, 0, 100, 100)  # its left and right borders lie inside the image
    whole = builders.box_mask((100, 100), left=30, top=0, width=40, height=100)
    left = builders.box_mask((100, 100), left=0, top=40, width=30, height=20)
    right = builders.box_mask((100, 100), left=80, top=40, width=20, height=20)
    assert [is_cut(mask, view, hw) for mask in (whole, left, right)] == [False, True, True]
    assert not is_cut(left, (0, 0, 100, 100), hw)
    top = builders.box_mask((80, 100), left=30, top=0, width=20, height=30)
    assert is_cut(top, (0, 10, 100, 80), (90, 100))
    assert not is_cut(top[::-1], (0, 10, 100, 80), (90, 100))
    speck = builders.box_mask((100, 100), left=40, top=40)
    speck[40:43, 0:3] = True
    assert not is_cut(speck, view, hw)


def segment_in(mask, quality, view=None):
    """Segment of the image in the form that `merge` takes."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y, width, height = columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1
    small = mask[y : y + height, x : x + width]
    return ViewSegment(builders.segment(mask=small), view, small, (int(x), int(y), int(width), int(height)), quality)


def test_merge_keeps_the_best_segment_of_overlapping_views():
    hw = (60, 90)
    one, better = builders.box_mask(hw, left=20, top=10), builders.box_mask(hw, left=21, top=10)
    part = builders.box_mask(hw, left=22, top=11, width=4, height=3)
    other = builders.box_mask(hw, left=33, top=10)
    views = [
        segment_in(one, 0.6),
        segment_in(better, 0.8, (20, 0, 50, 50)),
        segment_in(part, 0.7, (0, 0, 50, 50)),
        segment_in(other, 0.5),
    ]
    assert merge(views, 0.6) == [views[1], views[3]]
    assert merge([], 0.6) == []


# The whole way, with fakes


class Bright(FakeClip):
    """CLIP whose queries are colours: present where the image has the colour, except in images larger than a tile.
    A cell has 4 × 4 pixels."""

    def encode_images(self, images, *, size=None, architecture="surgery"):
        if images:
            self.encoded.append(len(images))
        return [ImageTokens(None, (image.hw[0] // 4, image.hw[1] // 4), image.hw, image) for image in images]

    def _maps(self, tokens, queries):
        pixels = tokens.image.pixels.astype(np.float32) / 255
        rows, columns = tokens.grid_hw
        grid = pixels[: rows * 4, : columns * 4].reshape(rows, 4, columns, 4, 3).mean((1, 3))
        return np.stack([grid[..., ("red", "green").index(query[0])] for query in queries])

    def scores(self, tokens, queries, settings):
        return self._maps(tokens, queries)

    def patch_presence(self, tokens, queries):
        small = max(tokens.image_hw) > 64
        return self._maps(tokens, queries) * np.float32(0.3 if small else 0.9)


class Bounded(FakeSam):
    """SAM whose masks are the bright boxes under the positive points; candidates have the size of the image."""

    def embed(self, images):
        return [replace(one, features=image) for one, image in zip(super().embed(images), images, strict=True)]

    def decode(self, sets):
        self.decoded.append(len(sets))
        found = []
        for embedding, points in sets:
            x, y = points.xy[points.labels == 1][0].astype(int)
            pixels = embedding.features.pixels
            same = (pixels == pixels[y, x]).all(2)
            found.append(Candidates(np.where(same, 1, -1)[None].astype(np.float32), np.array([0.9], np.float32)))
        return found


def make_image(*boxes, hw=(60, 150)):
    """Black image with boxes of one colour each: (channel, left, top, width, height)."""
    pixels = np.zeros((*hw, 3), np.uint8)
    for channel, left, top, width, height in boxes:
        pixels[top : top + height, left : left + width, channel] = 255
    return Image(pixels, "dots.png")


@pytest.fixture
def models():
    settings = Settings(
        points=PointSettings(downsample=1, instances="regions"), tiles=TileSettings(64, 0.25), masks=MaskSettings()
    )
    card = ModelCard(presence=PresenceCalibration(distractors=("thing",), slope=1, offset=0, threshold=0.5))
    return Text2Seg(Bright(presence=PresenceModel(("thing",))), Bounded(), settings=settings, card=card)


def boxes_of(result):
    return sorted((segment.query, segment.box_xywh) for segment in result.segments)


def test_masks_of_two_tiles_are_in_pixels_of_the_image(models):
    image = make_image((0, 8, 8, 12, 12), (1, 120, 40, 12, 12))
    assert tiles_of(image.hw, models.settings.tiles) == [(0, 0, 64, 60), (43, 0, 64, 60), (86, 0, 64, 60)]
    assert models.segment(image, "red, green", replace(models.settings, tiles=TileSettings())).segments == ()
    result = models.segment(image, "red, green")
    red, green = result.segments
    assert (red.query, red.box_xywh, red.view_xywh) == ("red", (8, 8, 12, 12), (0, 0, 64, 60))
    assert (green.query, green.box_xywh, green.view_xywh) == ("green", (120, 40, 12, 12), (86, 0, 64, 60))
    assert green.mask.shape == image.hw
    x, y = green.points.xy[green.points.labels == 1].T
    assert ((x >= 120) & (x < 132) & (y >= 40) & (y < 52)).all()
    assert green.candidates.logits.shape == (1, 60, 64)
    assert result.maps.scores.shape == (2, 15, 37)
    assert result.maps.presence == pytest.approx([0.9, 0.9])


def test_an_object_across_a_border_is_found_once_and_whole(models):
    across = make_image((0, 56, 20, 12, 12))  # the first tile ends at 64, the second shows all of it
    assert boxes_of(models.segment(across, "red")) == [("red", (56, 20, 12, 12))]
    twice = make_image((0, 48, 20, 12, 12))  # in both tiles
    assert boxes_of(models.segment(twice, "red")) == [("red", (48, 20, 12, 12))]
    apart = make_image((0, 20, 20, 12, 12), (0, 90, 20, 12, 12))
    assert len(models.segment(apart, "red").segments) == 2


def test_an_object_larger_than_the_overlap_is_not_found_in_parts(models):
    assert models.segment(make_image((0, 30, 20, 90, 12)), "red").segments == ()


def test_an_image_no_larger_than_a_tile_has_the_result_without_tiles(models):
    image = make_image((0, 8, 8, 12, 12), hw=(48, 60))
    tiled = models.segment(image, "red")
    plain = models.segment(image, "red", replace(models.settings, tiles=TileSettings()))
    assert boxes_of(tiled) == boxes_of(plain) == [("red", (8, 8, 12, 12))]
    assert tiled.segments[0].view_xywh is None
    assert models.clip.encoded == [1, 1]


def test_views_are_encoded_in_bounded_batches_and_once_for_all_queries(models):
    image = make_image((0, 8, 8, 12, 12), (1, 120, 300, 12, 12), hw=(350, 200))
    count = len(tiles_of(image.hw, models.settings.tiles))
    assert VIEWS_PER_CALL < count <= KEPT_VIEWS
    session = models.open(image)
    session.segment("red")
    assert max(models.clip.encoded) <= VIEWS_PER_CALL
    assert sum(models.clip.encoded) == count + 1
    encoded, embedded = list(models.clip.encoded), sum(models.sam.embedded)
    assert boxes_of(session.segment("red")) == [("red", (8, 8, 12, 12))]
    assert models.clip.encoded == encoded
    assert sum(models.sam.embedded) == embedded
    assert boxes_of(session.segment("green")) == [("green", (120, 300, 12, 12))]
    assert models.clip.encoded == encoded


def test_a_session_keeps_a_bounded_number_of_tiles(models):
    image = make_image((0, 8, 8, 12, 12), hw=(350, 400))
    count = len(tiles_of(image.hw, models.settings.tiles))
    assert count > KEPT_VIEWS
    session = models.open(image)
    session.segment("red")
    models.clip.encoded.clear()
    session.segment("red")
    assert sum(models.clip.encoded) == count - KEPT_VIEWS


def test_a_candidate_mask_is_placed_in_its_tile(models):
    session = models.open(make_image((1, 120, 40, 12, 12)))
    (green,) = session.segment("green").segments
    assert (session.candidate_mask(green, 0) == green.mask).all()


# With the real demo model


@pytest.fixture(scope="module")
def mosaic():
    """Image of 1600 × 800 pixels with eight bundled scenes on grey, and the names and masks of their objects."""
    truth = read_dataset(SCENES / "dataset.json")
    names = {category["id"]: category["name"] for category in truth["categories"]}
    scenes = [entry for entry in truth["images"] if max(entry["width"], entry["height"]) <= 400][:8]
    pixels, objects = np.full((800, 1600, 3), 128, np.uint8), []
    for number, entry in enumerate(scenes):
        box = (400 * (number % 4), 400 * (number // 4), entry["width"], entry["height"])
        pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = load_image(SCENES / entry["file_name"]).pixels
        for annotation in truth["annotations"]:
            if annotation["image_id"] == entry["id"]:
                mask = place(rle.decode(annotation["segmentation"]), box, (800, 1600))
                objects.append((names[annotation["category_id"]], mask))
    return Image(pixels, "mosaic.png"), objects


def share_found(result, objects):
    found = 0
    for name, mask in objects:
        ious = [(s.mask & mask).sum() / (s.mask | mask).sum() for s in result.of(name)]
        found += max(ious, default=0) >= 0.5
    return found / len(objects)


@pytest.fixture(scope="module")
def tiled(demo, mosaic):
    image, objects = mosaic
    return demo.segment(image, sorted({name for name, _ in objects}), Settings(tiles=TileSettings(400)))


def test_tiles_find_small_objects(demo, mosaic, tiled):
    image, objects = mosaic
    plain = demo.segment(image, tiled.maps.queries)
    assert len(objects) >= 20
    assert share_found(tiled, objects) >= share_found(plain, objects) + 0.35
    assert sum(segment.view_xywh is not None for segment in tiled.segments) >= 10
    assert (tiled.maps.scores == plain.maps.scores).all()
    assert (tiled.maps.presence >= plain.maps.presence).all()


def test_the_dataset_records_the_tile_and_replay_gives_the_same_masks(demo, mosaic, tiled, tmp_path):
    image, _ = mosaic
    PilImage.fromarray(image.pixels).save(tmp_path / "mosaic.png")
    origin = demo.provenance(Settings(tiles=TileSettings(400)))
    content = json.loads(json.dumps(build_dataset([tiled], provenance=origin)))
    of_tiles = [a for a in content["annotations"] if "view_xywh" in a["attributes"]]
    of_whole = [a for a in content["annotations"] if "view_xywh" not in a["attributes"]]
    assert len(of_tiles) == sum(segment.view_xywh is not None for segment in tiled.segments)
    for annotation in [*of_tiles[:3], *of_whole[:1]]:
        again = replay(content, annotation["id"], images=tmp_path, models=demo)
        assert (again.points_identical, again.rebuilt_chosen) == (True, again.recorded_chosen)
        assert again.iou >= 0.99  # the tile was encoded in a batch with others, whose rounding may differ
    of_tiles[0]["attributes"]["view_xywh"] = [1500, 0, 400, 400]
    with pytest.raises(Text2SegError, match="not in the image"):
        replay(content, of_tiles[0]["id"], images=tmp_path, models=demo)


def test_panels_of_a_segment_show_its_tile(mosaic, tiled):
    """The chosen candidate, drawn on the tile, covers the same pixels as the mask in the image."""
    one = next(segment for segment in tiled.segments if segment.view_xywh is not None)
    panel = np.zeros((300, 400, 3), np.uint8)
    (where,), candidates, (final,) = panels._stages(one, (0, 200, 0), panel, panel, mosaic[0].pixels)
    assert where.pixels.shape == (300, 400, 3)
    assert {each.pixels.shape for each in [*candidates, final]} == {(300, 300, 3)}
    x, y, width, height = one.view_xywh
    mask = panels._resized(one.mask[y : y + height, x : x + width], (300, 300))
    drawn = panels._candidate(one.candidates.logits[one.chosen], (300, 300))
    assert (mask & drawn).sum() > 0.8 * (mask | drawn).sum()


def test_the_command_segments_with_tiles(mosaic, tmp_path, capsys):
    image, objects = mosaic
    names = [name for name, mask in objects if mask[:640, :840].sum() > 400][:3]
    PilImage.fromarray(image.pixels[:640, :840]).save(tmp_path / "large.png")
    query = ["--queries", ",".join(names), "--output", str(tmp_path / "out")]
    assert main(["segment", str(tmp_path / "large.png"), *query, "--tile", "400", "--tile-overlap", "0.3"]) == 0
    written = read_dataset(tmp_path / "out" / "dataset.json")
    assert any("view_xywh" in annotation["attributes"] for annotation in written["annotations"])
    assert main(["segment", str(tmp_path / "large.png"), *query, "--tile", "5"]) == 2
    assert "tile must be 0 or a whole number" in capsys.readouterr().err
