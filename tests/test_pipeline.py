"""The order of the stages, with fakes: a CLIP that lights up what is bright, a SAM that cuts out around its points.
The same with real models is in test_demo.py."""

from __future__ import annotations

from dataclasses import dataclass, field

import builders
import numpy as np
import pytest
from closeness import about
from PIL import Image as PilImage

from text2seg import weights
from text2seg.clip.maps import PresenceModel
from text2seg.clip.model import ImageTokens
from text2seg.coco.dataset import build_dataset
from text2seg.config import MapSettings, PointSettings, Settings
from text2seg.errors import ImageError, QueryError, Text2SegError
from text2seg.grids import map_score
from text2seg.pipeline import Text2Seg
from text2seg.queries import Things
from text2seg.records import Candidates, PointPrompts
from text2seg.runtime import FULL
from text2seg.sam.base import SamEmbedding

HW = (24, 32)


@dataclass
class FakeClip:
    """`left` lights up the left half of every image, `right` the right half, `nothing` nothing at all."""

    encoded: list[int] = field(default_factory=list)
    presence: PresenceModel = field(default_factory=lambda: PresenceModel(("thing",)))

    def input_hw(self, size):
        return (size, size) if isinstance(size, int) else size or (8, 8)

    def check(self, architecture):
        pass

    def encode_images(self, images, *, size=None, architecture="surgery"):
        if images:
            self.encoded.append(len(images))
        return [ImageTokens(None, (6, 8), image.hw) for image in images]

    def scores(self, tokens, queries, settings):
        maps = np.zeros((len(queries), 6, 8), np.float32)
        for scores, query in zip(maps, queries, strict=True):
            if "nothing" not in query:
                scores[1:5, (slice(0, 3) if "left" in query else slice(5, 8))] = 1
        return maps

    def cuts(self, queries, settings):
        return any("long" in wording for query in queries for wording in query)

    def patch_presence(self, tokens, queries):
        return np.full((len(queries), 6, 8), 0.3, np.float32)


@dataclass
class FakeSam:
    """Candidates: the box around the positive points, a smaller one, a larger one; the second scores best."""

    precision: object = FULL
    embedded: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)

    def embed(self, images):
        if images:
            self.embedded.append(len(images))
        return [SamEmbedding(None, image.hw, image.hw) for image in images]

    def decode(self, sets):
        self.decoded.append(len(sets))
        return [self._box(points) for _, points in sets]

    def _box(self, points):
        xy = points.xy[points.labels == 1]
        logits = np.full((3, 32, 32), -1, np.float32)
        left, top, right, bottom = *xy.min(0).astype(int), *xy.max(0).astype(int)
        for k, grow in enumerate((2, 3, 4)):
            logits[k, max(top - grow, 0) : bottom + grow, max(left - grow, 0) : right + grow] = 1
        return Candidates(logits, np.array([0.5, 0.9, 0.4], np.float32))

    def coarse_masks(self, embedding, candidates):
        return candidates.logits > 0

    def mask(self, embedding, candidates, index):
        return candidates.logits[index][: embedding.image_hw[0], : embedding.image_hw[1]] > 0


@pytest.fixture
def models():
    return Text2Seg(FakeClip(), FakeSam(), settings=Settings(points=PointSettings(downsample=1)))


def test_segments_come_in_the_order_asked_for_and_lie_where_the_map_is(models):
    result = models.segment(builders.pixels(HW), ["right", "left"])
    assert [segment.query for segment in result.segments] == ["right", "left"]
    right, left = result.segments
    assert right.mask[:, 16:].sum() == right.area > 0
    assert left.mask[:, :16].sum() == left.area > 0
    assert right.map_score > 0.5
    assert (right.chosen, right.sam_score) == (1, pytest.approx(0.9))


def test_what_has_no_map_is_not_found_and_needs_no_sam(models):
    result = models.segment(builders.pixels(HW), ["nothing"])
    assert result.segments == ()
    assert result.maps.queries == ("nothing",)
    assert models.sam.embedded == []


def test_combined_query_is_one_segment_with_the_points_of_both(models):
    (segment,) = models.segment(builders.pixels(HW), ["left + right"]).segments
    assert segment.query == "left+right"
    positive = segment.points.xy[segment.points.labels == 1]
    assert positive[:, 0].min() < 16 < positive[:, 0].max()
    assert segment.mask[12, 4]
    assert segment.mask[12, 28]


def test_a_batch_is_one_pass_of_each_model_and_gives_what_single_images_give(models):
    images = [builders.pixels(HW, seed=seed) for seed in range(3)]
    together = models.segment_many(images, "left, nothing, right")
    assert (models.clip.encoded, models.sam.embedded, models.sam.decoded) == ([3], [3], [6])
    for pixels, many in zip(images, together, strict=True):
        single = models.segment(pixels, "left, nothing, right")
        assert [s.query for s in single.segments] == [s.query for s in many.segments] == ["left", "right"]
        assert all((a.mask == b.mask).all() for a, b in zip(single.segments, many.segments, strict=True))


def test_a_session_computes_only_what_it_must(models):
    session = models.open(builders.pixels(HW))
    session.segment(["left"])
    session.segment(["right"])
    session.segment(["right"], Settings(points=PointSettings(threshold=0.5, downsample=1)))
    assert (models.clip.encoded, models.sam.embedded) == ([1], [1])
    session.segment(["right"], Settings(maps=MapSettings(input_size=16), points=PointSettings(downsample=1)))
    assert (models.clip.encoded, models.sam.embedded) == ([1, 1], [1])


def test_a_batch_can_be_written_as_it_is(models, tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        PilImage.fromarray(builders.pixels(HW)).save(path)
    results = models.segment_many([*paths, builders.image(HW, file_name="own.png", image_id=9)], "left")
    entries = build_dataset(results)["images"]
    assert [(entry["id"], entry["file_name"]) for entry in entries] == [(1, "a.png"), (2, "b.png"), (9, "own.png")]


def test_a_label_set_of_one_is_refused_before_any_image_is_encoded(models):
    label_set = Settings(MapSettings(redundancy="label-set"))
    with pytest.raises(QueryError, match="two labels"):
        models.segment(builders.pixels(HW), ["left"], label_set)
    assert models.clip.encoded == []
    assert models.check("left+right", label_set)
    assert models.check("left", Settings(MapSettings(redundancy="label-set", labels=("right",))))


@pytest.mark.parametrize("wrong", [{"sam": "vit_x"}, {"sam": "nowhere.pth"}, {"device": "cuda:99"}])
def test_what_is_wrong_shows_before_anything_is_downloaded(wrong, monkeypatch):
    monkeypatch.setattr(weights, "fetch", lambda *_, **__: pytest.fail("downloads"))
    with pytest.raises(Text2SegError):
        Text2Seg.load("huge", **wrong)


def test_ones_own_points(models):
    points = PointPrompts(np.array([[8, 8], [12, 14]], np.float32), np.ones(2, np.int8), np.ones(2, np.float32))
    segment = models.open(builders.pixels(HW)).segment_points("left", points)
    assert segment.points is points
    assert segment.mask[10, 10]


def test_the_query_of_ones_own_points_is_checked_before_the_image_is_encoded(models):
    points = PointPrompts(np.array([[8, 8]], np.float32), np.ones(1, np.int8), np.ones(1, np.float32))
    with pytest.raises(QueryError):
        models.open(builders.pixels(HW)).segment_points(" ", points)
    assert models.clip.encoded == []


def test_of_what_clip_could_not_read_to_the_end_it_is_told(models):
    result = models.segment(builders.pixels(HW), ["left", "right|a long story"])
    assert result.cut == ("right|a long story",)
    assert result.verdict("right|a long story").endswith("; too long, its end was not read")
    assert "too long" not in result.verdict("left")


def test_queries_are_checked_before_any_image_is_encoded(models):
    with pytest.raises(QueryError):
        models.segment(builders.pixels(HW), ["left", " "])
    models.things = Things({"left": ["left"]})
    with pytest.raises(QueryError, match="does not know 'right'"):
        models.segment(builders.pixels(HW), ["left+right"])
    assert models.clip.encoded == []


def test_an_image_that_is_none(models, tmp_path):
    with pytest.raises(ImageError, match="nowhere"):
        models.segment(tmp_path / "nowhere.png", ["left"])


def test_map_score_is_inside_less_outside():
    scores = np.array([[1.0, 0.0]], np.float32)
    mask = np.zeros((10, 20), bool)
    mask[:, :5] = True
    # Bilinear resizing draws a line from 1 to 0 between the centres of the two cells, at columns 5 and 15.
    outside = [1 - min(max((column + 0.5 - 5) / 10, 0), 1) for column in range(5, 20)]
    assert map_score(scores, mask) == about(1 - np.mean(outside), terms=scores.size)
    assert map_score(scores, ~mask) == about(-map_score(scores, mask), terms=scores.size)
    assert map_score(scores, np.zeros((10, 20), bool)) == map_score(scores, np.ones((10, 20), bool)) == 0
