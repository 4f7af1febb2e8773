"""The stages of the pipeline with a fake CLIP and a fake SAM. Tests with real models are in test_demo.py."""

from __future__ import annotations

from dataclasses import dataclass, field

import builders
import numpy as np
import pytest
from closeness import about
from PIL import Image as PilImage
from test_attention import tiny_clip

from text2seg import weights
from text2seg.clip.maps import PresenceModel
from text2seg.clip.model import ImageTokens
from text2seg.coco.dataset import build_dataset
from text2seg.config import MapSettings, PointSettings, Settings
from text2seg.errors import ImageError, QueryError, SettingsError, Text2SegError
from text2seg.grids import map_score, minmax, resize
from text2seg.model_card import ModelCard
from text2seg.pipeline import Text2Seg
from text2seg.records import Candidates, PointPrompts
from text2seg.runtime import FULL
from text2seg.sam.base import SamEmbedding

HW = (24, 32)


@dataclass
class FakeClip:
    """CLIP whose map of `left` is high in the left half of every image, that of `right` in the right half, and that of
    `nothing` nowhere."""

    encoded: list[int] = field(default_factory=list)
    presence: PresenceModel = field(default_factory=lambda: PresenceModel(("thing",)))

    def input_hw(self, size):
        return (size, size) if isinstance(size, int) else size or (8, 8)

    def check(self, architecture, *, regions=False):
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
    """SAM whose candidates are the box around the positive points, a smaller one and a larger one. The second has the
    highest score."""

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


def test_segments_are_in_the_order_of_the_queries_and_on_their_maps(models):
    result = models.segment(builders.pixels(HW), ["right", "left"])
    assert [segment.query for segment in result.segments] == ["right", "left"]
    right, left = result.segments
    assert right.mask[:, 16:].sum() == right.area > 0
    assert left.mask[:, :16].sum() == left.area > 0
    assert right.map_score > 0.5
    assert (right.chosen, right.sam_score) == (1, pytest.approx(0.9))


def test_a_query_with_a_flat_map_is_not_found_and_needs_no_sam(models):
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


def test_a_batch_is_one_pass_of_each_model_and_equals_single_images(models):
    images = [builders.pixels(HW, seed=seed) for seed in range(3)]
    together = models.segment_many(images, "left, nothing, right")
    assert (models.clip.encoded, models.sam.embedded, models.sam.decoded) == ([3], [3], [6])
    for pixels, many in zip(images, together, strict=True):
        single = models.segment(pixels, "left, nothing, right")
        assert [s.query for s in single.segments] == [s.query for s in many.segments] == ["left", "right"]
        assert all((a.mask == b.mask).all() for a, b in zip(single.segments, many.segments, strict=True))


def test_a_session_encodes_an_image_once_for_each_input_size(models):
    session = models.open(builders.pixels(HW))
    session.segment(["left"])
    session.segment(["right"])
    session.segment(["right"], Settings(points=PointSettings(threshold=0.5, downsample=1)))
    assert (models.clip.encoded, models.sam.embedded) == ([1], [1])
    session.segment(["right"], Settings(maps=MapSettings(input_size=16), points=PointSettings(downsample=1)))
    assert (models.clip.encoded, models.sam.embedded) == ([1, 1], [1])


def test_the_results_of_a_batch_can_be_written_as_coco(models, tmp_path):
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
def test_invalid_arguments_are_refused_before_a_download(wrong, monkeypatch):
    monkeypatch.setattr(weights, "fetch", lambda *_, **__: pytest.fail("downloads"))
    with pytest.raises(Text2SegError):
        Text2Seg.load("huge", **wrong)


def test_segment_points_uses_the_given_points(models):
    points = PointPrompts(np.array([[8, 8], [12, 14]], np.float32), np.ones(2, np.int8), np.ones(2, np.float32))
    segment = models.open(builders.pixels(HW)).segment_points("left", points)
    assert segment.points is points
    assert segment.mask[10, 10]


@pytest.mark.parametrize(
    ("points", "box", "says"),
    [
        ([(8, 8), (30, 3)], None, r"the point 30, 3 is outside the image, which is 28 x 20 pixels"),
        ([(float("nan"), 3)], None, "the point nan, 3 is outside the image"),
        ([], (2, 3, 29, 9), r"the box 2, 3, 29, 9 \(left, top, right, bottom\) is outside the image, which is 28 x 20"),
        ([], (9, 3, 2, 9), "the box .* is empty"),
        ([], None, "there are no points and no box"),
    ],
)
def test_points_and_boxes_must_be_in_the_image(models, points, box, says):
    xy = np.array(points, np.float32).reshape(-1, 2)
    ones = np.ones(len(xy), np.int8)
    boxes = np.array([box] if box else [], np.float32).reshape(-1, 4)
    prompts = PointPrompts(xy, ones, ones.astype(np.float32), boxes)
    session = models.open(np.zeros((20, 28, 3), np.uint8))
    with pytest.raises(SettingsError, match=says):
        session.segment_points("left", prompts)
    with pytest.raises(SettingsError, match=says):
        models.segment_prompt(session, prompts)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda models, image: models.segment(5, "dog"), "an image is a path"),
        (lambda models, image: models.segment(image, 5), "queries are one text or a list of texts, got 5"),
        (lambda models, image: models.segment(image, "left", {"threshold": 1}), "settings must be of type Settings"),
        (lambda models, image: models.check("left", 5), "settings must be of type Settings, got 5"),
        (lambda models, image: models.provenance(5), "settings must be of type Settings, got 5"),
        (lambda models, image: models.everything(image, 5), "settings must be of type AutomaticSettings, got 5"),
        (lambda models, image: models.segment_many(5, "left"), "images are a list"),
        (lambda models, image: models.segment_many("a.jpg", "left"), "images are a list"),
        (lambda models, image: models.segment_many(image, "left"), "images are a list"),
        (lambda models, image: models.track(5, "left"), "images are a list"),
        (lambda models, image: models.open(image).segment_points("left", [(1, 2)]), "points must be of type PointPro"),
        (lambda models, image: Text2Seg.load(5), "model must be of type str, got 5"),
        (lambda models, image: Text2Seg.load("demo", clip=5), "clip must be a name or a file, got 5"),
        (lambda models, image: Text2Seg.load("demo", settings=5), "settings must be of type Settings, got 5"),
        (lambda models, image: Settings(maps=5), "maps must be of type MapSettings, got 5"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(models, call, says):
    with pytest.raises(Text2SegError, match=says):
        call(models, np.zeros((20, 28, 3), np.uint8))


def test_segment_points_checks_the_query_before_the_image_is_encoded(models):
    points = PointPrompts(np.array([[8, 8]], np.float32), np.ones(1, np.int8), np.ones(1, np.float32))
    with pytest.raises(QueryError):
        models.open(builders.pixels(HW)).segment_points(" ", points)
    assert models.clip.encoded == []


def test_a_truncated_query_is_reported_in_the_verdict(models):
    result = models.segment(builders.pixels(HW), ["left", "right|a long story"])
    assert result.cut == ("right|a long story",)
    assert result.verdict("right|a long story").endswith("; too long, its end was not read")
    assert "too long" not in result.verdict("left")


def test_queries_are_checked_before_any_image_is_encoded(models):
    with pytest.raises(QueryError):
        models.segment(builders.pixels(HW), ["left", " "])
    models.card = ModelCard(vocabulary={"left": ("left",)})
    with pytest.raises(QueryError, match="does not know 'right'"):
        models.segment(builders.pixels(HW), ["left+right"])
    assert models.clip.encoded == []


def test_models_sessions_and_explanations_without_a_sam_describe_themselves(models):
    assert repr(models.open(builders.pixels(HW))) == f"Session(Image('', {HW[1]} x {HW[0]} pixels), 0.0 MB)"
    alone = Text2Seg(tiny_clip("vit"), sam=None)
    assert alone.describe_models()["precision"] == "fp32"
    assert alone.describe_models()["compiled"] is False
    assert repr(alone) == "Text2Seg(CLIP custom with SAM custom, cpu)"


def test_known_queries_splits_off_those_with_unknown_words(models):
    known, unknown = models.known_queries(["left", "right"])
    assert [query.name for query in known] == ["left", "right"]
    assert unknown == {}
    models.card = ModelCard(vocabulary={"left": ("left",)})
    known, unknown = models.known_queries(["left", "right"])
    assert [query.name for query in known] == ["left"]
    assert unknown == {"right": "this model does not know 'right'."}


def test_a_missing_image_raises(models, tmp_path):
    with pytest.raises(ImageError, match="nowhere"):
        models.segment(tmp_path / "nowhere.png", ["left"])


def test_map_score_is_the_mean_inside_minus_the_mean_outside():
    scores = np.array([[1.0, 0.0]], np.float32)
    mask = np.zeros((10, 20), bool)
    mask[:, :5] = True
    # Bilinear resizing draws a line from 1 to 0 between the centres of the two cells, at columns 5 and 15.
    outside = [1 - min(max((column + 0.5 - 5) / 10, 0), 1) for column in range(5, 20)]
    assert map_score(scores, mask) == about(1 - np.mean(outside), terms=scores.size)
    assert map_score(scores, ~mask) == about(-map_score(scores, mask), terms=scores.size)
    assert map_score(scores, np.zeros((10, 20), bool)) == map_score(scores, np.ones((10, 20), bool)) == 0


@pytest.mark.parametrize("grid", [(3, 5), (1, 1), (40, 2), (24, 24)])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_map_score_equals_that_of_the_resized_map(grid, share):
    random = np.random.default_rng(0)
    scores, mask = random.normal(size=grid).astype(np.float32), np.zeros((37, 53), bool)
    mask[5:30, 8:50] = random.random((25, 42)) < share
    for each in (mask, ~mask):
        whole = resize(minmax(scores)[None], each.shape)[0].astype(np.float64)
        wanted = whole[each].mean() - whole[~each].mean()
        assert map_score(scores, each) == about(wanted, terms=each.size)
