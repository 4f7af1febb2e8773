"""How points become masks in other ways than by default: boxes, rough masks, the map's own region, competition, and the
peaks of negatives. With fakes, with random SAMs against the stock predictor, and with the demo model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
import sam_builders as build
import torch
from closeness import TINY_NETWORK, assert_close, assert_same_masks
from segment_anything import SamPredictor

from text2seg import MaskSettings, PointSettings, PresenceSettings, Settings
from text2seg.clip.model import query_maps
from text2seg.coco.dataset import build_dataset, read_dataset
from text2seg.coco.rle import decode
from text2seg.config import settings_from_dict
from text2seg.errors import SettingsError, Text2SegError
from text2seg.grids import resize
from text2seg.io.images import load_image
from text2seg.ontology import ontology_of_queries
from text2seg.prompts import sam_prompts
from text2seg.queries import parse_query
from text2seg.records import Candidates, PointPrompts, SamPrompt, Segment, SimilarityMaps
from text2seg.render import maps_with_points
from text2seg.review.replay import replay
from text2seg.sam import candidates as choices
from text2seg.sam.base import MASK_PROMPT_SCALE
from text2seg.sam.candidates import cut
from text2seg.sam.overlap import settle
from text2seg.sam.sam import Sam

CPU = torch.device("cpu")
SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes"
REGIONS = PointSettings(instances="regions", floor=0.4, prominence=0.2)
GRID, HW = (5, 9), (50, 90)  # cells of 10 pixels


def hills() -> np.ndarray:
    """A hill of 1.0 on the left with a slope of 0.75 and 0.5 at its right, one of 0.9 on the right."""
    scores = np.zeros(GRID, np.float32)
    scores[2, 2:5], scores[1, 6], scores[4, 0] = (1.0, 0.75, 0.5), 0.9, 0.1
    return scores


def aims_of(scores: np.ndarray, settings: PointSettings = REGIONS, **options):
    return sam_prompts(scores[None], np.ones(GRID, np.float32), HW, settings, least_presence=0.5, **options)


# The settings


def test_options_are_off_by_default_and_a_misspelt_one_is_refused():
    assert (MaskSettings().prompt, MaskSettings().fallback, MaskSettings().compete) == ("points", False, False)
    with pytest.raises(SettingsError, match="points, box, box-mask"):
        MaskSettings(prompt="mask")
    given = Settings(masks=MaskSettings(prompt="box", fallback=True, compete=True))
    assert settings_from_dict({"masks": {"prompt": "box", "fallback": True, "compete": True}}) == given


def test_the_reference_knows_none_of_them():
    asked = MaskSettings(prompt="box", fallback=True, compete=True)
    masks = Settings(points=PointSettings(method="reference"), masks=asked).masks
    assert (masks.prompt, masks.fallback, masks.compete, masks.choice) == ("points", False, False, "sam")


# Boxes and rough masks


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"boxes_xyxy": np.zeros((1, 3), np.float32)}, r"boxes_xyxy must be float32\[B, 4\]"),
        ({"boxes_xyxy": np.zeros((2, 4), np.float32)}, "boxes_xyxy must hold one at most, got 2"),
        ({"masks": np.zeros((2, 3, 4), np.float32)}, "masks must hold one at most, got 2"),
        ({"masks": np.zeros((3, 4), np.float32)}, r"masks must be float32\[M, gh, gw\]"),
    ],
)
def test_a_set_has_one_box_and_one_rough_mask_at_most(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(builders.points(), **wrong)


def test_of_a_region_the_box_is_tight_the_point_its_peak_and_the_mask_its_part_of_the_map():
    left, right = aims_of(hills(), prompt="box-mask")
    assert left.points.boxes_xyxy.tolist() == [[20, 20, 40, 30]]
    assert right.points.boxes_xyxy.tolist() == [[60, 10, 70, 20]]
    assert (left.points.xy.tolist(), left.points.labels.tolist()) == ([[25, 25]], [1])
    assert left.points.masks.sum() == pytest.approx(2.25)  # neither the other hill nor what is below the floor
    assert right.points.masks[0, 1, 6] == right.points.masks.sum() == np.float32(0.9)
    boxed = aims_of(hills(), prompt="box")
    assert [sam_prompt.points.boxes_xyxy.tolist() for sam_prompt in boxed] == [[[20, 20, 40, 30]], [[60, 10, 70, 20]]]
    assert all(len(sam_prompt.points.masks) == 0 for sam_prompt in boxed)


def test_by_default_there_is_neither_box_nor_mask_and_the_region_is_known():
    for sam_prompt in aims_of(hills()):
        assert (len(sam_prompt.points.boxes_xyxy), len(sam_prompt.points.masks)) == (0, 0)
        assert sam_prompt.region[sam_prompt.scores >= sam_prompt.scores[sam_prompt.region].max()].any()
    (whole,) = aims_of(hills(), replace(REGIONS, instances="union", downsample=1))
    np.testing.assert_array_equal(whole.region, hills() >= 0.4)


def test_all_of_a_kind_have_one_box_together_and_so_have_joined_queries():
    union = replace(REGIONS, instances="union", downsample=1)
    (whole,) = aims_of(hills(), union, prompt="box")
    assert whole.points.boxes_xyxy.tolist() == [[20, 10, 70, 30]]
    parts = np.zeros((3, *GRID), np.float32)
    parts[0, 0, 0], parts[1, 4, 8], parts[2, 2, 4] = 1, 1, 1  # their mean is nowhere above the floor
    (joined,) = sam_prompts(parts, np.ones(GRID, np.float32), HW, union, prompt="box", least_presence=0)
    assert joined.points.boxes_xyxy.tolist() == [[0, 0, 90, 50]]


def mixed_sets(images) -> list[tuple[int, PointPrompts]]:
    """Sets with and without box and rough mask, in no order, on images that are not square."""
    rng = np.random.default_rng(5)

    def box(place):
        rows, columns = images[place].hw
        return np.array([[0.1 * columns, 0.2 * rows, 0.7 * columns, 0.9 * rows]], np.float32)

    def rough():
        return rng.random((1, 6, 7), np.float32)

    def points(place, count):
        return build.points(images[place], count, seed=count)

    return [
        (0, replace(points(0, 3), boxes_xyxy=box(0))),
        (1, points(1, 5)),
        (1, replace(points(1, 1), boxes_xyxy=box(1), masks=rough())),
        (0, replace(points(0, 2), masks=rough())),
        (0, points(0, 1)),
        (1, replace(points(1, 4), boxes_xyxy=box(1), masks=rough())),
    ]


def assert_mixed_batch_is_as_one_by_one_and_as_stock(sam: Sam, images) -> None:
    sets = mixed_sets(images)
    embeddings = sam.embed(images)
    together = sam.decode([(embeddings[place], points) for place, points in sets])
    stock = SamPredictor(sam.module)
    for (place, points), many in zip(sets, together, strict=True):
        (alone,) = sam.decode([(embeddings[place], points)])
        boxed = len(points.boxes_xyxy) > 0
        assert len(many) == len(alone) == (1 if boxed else 3)
        assert_close(many.logits, alone.logits, terms=TINY_NETWORK)
        assert_close(many.scores, alone.scores, terms=TINY_NETWORK, scale=1)
        stock.set_image(images[place].pixels)
        *_, logits = stock.predict(
            points.xy.copy(),
            points.labels.copy(),
            box=points.boxes_xyxy.copy() if boxed else None,
            mask_input=stock_mask(sam, embeddings[place], points),
            multimask_output=not boxed,
        )
        assert_close(many.logits, logits, terms=TINY_NETWORK)


def stock_mask(sam, embedding, points):
    """The rough mask as the stock predictor wants it, made the long way."""
    if not len(points.masks):
        return None
    side = sam.module.prompt_encoder.mask_input_size[0]
    rows, columns = (round(length * side / sam.module.image_encoder.img_size) for length in embedding.input_hw)
    mask = np.zeros((1, side, side), np.float32)
    mask[0, :rows, :columns] = 0.005 * resize(points.masks, (rows, columns))[0]
    return mask


def test_a_batch_of_all_kinds_is_as_each_alone_and_as_the_stock_predictor():
    images = [build.make_image(24, 32, seed=1), build.make_image(97, 41, seed=2)]
    assert_mixed_batch_is_as_one_by_one_and_as_stock(Sam(build.sam_module(), CPU), images)
    assert_mixed_batch_is_as_one_by_one_and_as_stock(Sam(build.sam_module(), CPU, sets_per_call=2), images)


def test_the_same_on_the_demo_weights(demo):
    images = [build.make_image(120, 90, seed=1), build.make_image(61, 200)]
    assert_mixed_batch_is_as_one_by_one_and_as_stock(demo.sam, images)


def test_box_and_mask_change_what_the_demo_sam_answers(demo):
    image = build.make_image(120, 90, seed=1)
    (embedding,) = demo.sam.embed([image])
    plain = build.points(image, 2)
    boxed = replace(plain, boxes_xyxy=np.array([[5, 5, 60, 90]], np.float32))
    elsewhere = replace(plain, boxes_xyxy=np.array([[40, 60, 88, 118]], np.float32))
    masked = replace(boxed, masks=np.ones((1, 3, 4), np.float32))
    answers = demo.sam.decode([(embedding, points) for points in (boxed, elsewhere, masked)])
    for other in answers[1:]:
        assert np.abs(answers[0].logits - other.logits).max() > 0.1


# The map's own region


class PlainSam:
    """SAM's low resolution is 16 × 16 and the image fills the upper 12 rows of it; full size is twice that."""

    HW = (24, 32)

    def filled(self, embedding, side):
        return 12, 16

    def coarse_masks(self, embedding, candidates):
        return candidates.logits[:, :12] > 0

    def mask(self, embedding, candidates, index):
        return resize(candidates.logits[index : index + 1, :12], self.HW)[0] > 0


def answered(quality: float, *, apart: bool) -> tuple[SimilarityMaps, SamPrompt, Candidates]:
    """A map whose region is on the left, and a candidate of SAM's there or on the right, of that predicted IoU."""
    scores = np.zeros((6, 8), np.float32)
    scores[1:4, 1:4] = 1.0
    logits = np.full((3, 16, 16), -1.0, np.float32)
    logits[:, 2:8, (slice(10, 15) if apart else slice(2, 8))] = 1
    maps = SimilarityMaps(("ball",), scores[None], np.ones(1, np.float32), PlainSam.HW)
    sam_prompt = SamPrompt(builders.points((10, 10, 1, 1.0)), scores, scores > 0.5)
    return maps, sam_prompt, Candidates(logits, np.full(3, quality, np.float32))


def cut_once(quality: float, *, apart: bool, **settings) -> tuple[Segment, Candidates]:
    maps, sam_prompt, candidates = answered(quality, apart=apart)
    (segment,) = cut(PlainSam(), None, maps, 0, [(sam_prompt, candidates)], MaskSettings(**settings))
    return segment, candidates


@pytest.mark.parametrize("choice", ["map", "sam"])
def test_sam_gives_way_to_the_region_where_it_is_elsewhere_and_bad(choice):
    segment, candidates = cut_once(0.6, apart=True, fallback=True, choice=choice)
    assert (segment.chosen, segment.sam_score, len(segment.candidates)) == (3, 0, 4)
    np.testing.assert_array_equal(segment.candidates.logits[:3], candidates.logits)
    inside = np.zeros(PlainSam.HW, bool)
    inside[4:16, 4:16] = True  # rows and columns 1 to 3 of cells of 4 pixels
    assert not (segment.mask & ~inside).any()  # from 1 to 0 the map falls below 0.7 before the cell ends
    assert segment.mask.sum() / inside.sum() > 0.6


def test_sam_stays_where_it_agrees_or_is_good_or_nobody_asked():
    assert cut_once(0.6, apart=False, fallback=True)[0].chosen < 3
    assert cut_once(0.6, apart=True)[0].chosen < 3
    _, sam_prompt, candidates = answered(1.0, apart=True)
    assert choices.or_region(PlainSam(), None, sam_prompt, candidates, 1, 0.9) == (candidates, 1)


def test_of_two_regions_each_keeps_to_its_own_and_an_aim_without_one_has_no_fallback():
    _, sam_prompt, candidates = answered(0.6, apart=True)
    both = sam_prompt.scores.copy()
    both[4, 6:8] = 0.9
    other = np.zeros(both.shape, bool)
    other[4, 6:8] = True
    of_other = choices.with_region(PlainSam(), None, SamPrompt(sam_prompt.points, both, other), candidates)
    mask = PlainSam().mask(None, of_other, 3)
    assert mask[18, 28]
    assert not mask[:12, :16].any()
    unknown = SamPrompt(sam_prompt.points, both)
    assert choices.or_region(PlainSam(), None, unknown, candidates, 0, 0.1) == (candidates, 0)


def test_the_demo_model_falls_back_to_a_mask_that_fits_the_thing_and_shows_it(demo, monkeypatch):
    monkeypatch.setattr(choices, "WORST_QUALITY", np.inf)
    monkeypatch.setattr(choices, "LEAST_SHARED", np.inf)  # every segment is the map's
    session = demo.open(SCENES / "held-out" / "images" / "scene_0006.jpg")
    found = session.segment("sunflower", Settings(masks=MaskSettings(fallback=True)))
    (segment,) = found.segments
    assert (segment.chosen, segment.sam_score) == (len(segment.candidates) - 1, 0)
    true = true_mask(6, "sunflower")
    assert (segment.mask & true).sum() / (segment.mask | true).sum() > 0.5
    (usual,) = session.segment("sunflower").segments
    assert maps_with_points(found).shape[1] > maps_with_points(session.segment("sunflower")).shape[1]
    assert (segment.mask != usual.mask).any()
    np.testing.assert_array_equal(session.candidate_mask(segment, segment.chosen), segment.mask)


# Negatives


def negative_at(*cells: tuple[int, int]) -> np.ndarray:
    maps = np.zeros((1, *GRID), np.float32)
    for height, cell in zip((1.0, 0.9, 0.8), cells, strict=False):
        maps[0][cell] = height
    return maps


def test_a_negatives_peak_takes_the_place_of_the_maps_lowest_cell():
    left, right = aims_of(hills(), negatives=negative_at((3, 8)))
    for sam_prompt in (left, right):
        assert sam_prompt.points.labels.tolist() == [1, 0]
        assert sam_prompt.points.xy[1].tolist() == [85, 35]
        assert sam_prompt.points.similarity[1] == 0


def test_as_many_lowest_cells_stay_as_are_missing_to_one_for_each_positive():
    scores = hills()
    scores[2, 3] = 0.95
    left, _ = aims_of(scores, negatives=negative_at((3, 8)))
    before, _ = aims_of(scores)
    assert left.points.labels.tolist() == before.points.labels.tolist() == [1, 1, 0, 0]
    assert left.points.xy[2].tolist() == [85, 35]
    np.testing.assert_array_equal(left.points.xy[3], before.points.xy[2])


def test_a_peak_in_the_region_is_none_and_the_other_aims_have_it():
    left, right = aims_of(hills(), negatives=negative_at((2, 3)))
    plain_left, _ = aims_of(hills())
    np.testing.assert_array_equal(left.points.xy, plain_left.points.xy)
    assert right.points.xy[1].tolist() == [35, 25]


def test_peaks_of_all_negatives_count_and_empty_ones_do_not():
    negatives = np.concatenate([negative_at((0, 8), (4, 8)), negative_at((0, 0)), np.zeros((1, *GRID), np.float32)])
    left, _ = aims_of(hills(), replace(REGIONS, floor=0.2), negatives=negatives)
    assert {(85.0, 5.0), (85.0, 45.0), (5.0, 5.0)} == set(map(tuple, left.points.xy[left.points.labels == 0].tolist()))
    nothing = [aims_of(hills(), replace(REGIONS, floor=0), negatives=each) for each in (negatives[2:], negatives[:0])]
    np.testing.assert_array_equal(nothing[0][0].points.xy, nothing[1][0].points.xy)


def test_with_a_box_a_negatives_peak_is_the_only_negative_point_and_the_reference_has_none():
    left, _ = aims_of(hills(), prompt="box", negatives=negative_at((3, 8)))
    assert (left.points.labels.tolist(), len(left.points.boxes_xyxy)) == ([1, 0], 1)
    reference = PointSettings(method="reference", downsample=1, instances="union")
    with_it, without = (aims_of(hills(), reference, negatives=each) for each in (negative_at((3, 8)), negative_at()))
    np.testing.assert_array_equal(with_it[0].points.xy, without[0].points.xy)


def true_mask(image_id: int, name: str) -> np.ndarray:
    truth = read_dataset(SCENES / "held-out" / "dataset.json")
    number = next(category["id"] for category in truth["categories"] if category["name"] == name)
    masks = [
        decode(each["segmentation"])
        for each in truth["annotations"]
        if (each["image_id"], each["category_id"]) == (image_id, number)
    ]
    return np.any(masks, axis=0)


@pytest.mark.parametrize(("wanted", "unwanted"), [("sunflower", "sun"), ("sun", "sunflower")])
def test_the_demo_model_points_at_what_is_not_wanted(demo, wanted, unwanted):
    session = demo.open(SCENES / "held-out" / "images" / "scene_0006.jpg")
    other = true_mask(6, unwanted)
    for query, expected in ((wanted, False), (f"{wanted} -{unwanted}", True)):
        for segment in session.segment([parse_query(query)]).segments:
            columns, rows = segment.points.xy[segment.points.labels == 0].astype(int).T
            assert other[rows, columns].any() == expected
            assert not segment.mask[other].any()


def test_where_the_query_itself_scores_higher_a_negative_has_no_peak(demo):
    session = demo.open(SCENES / "held-out" / "images" / "scene_0006.jpg")
    session.segment("sunflower")
    (tokens,) = session.tokens.values()
    queries = [parse_query("sunflower -sun"), parse_query("sunflower")]
    _, (made, plain) = query_maps(demo.clip, tokens, queries, Settings().maps)
    assert made.negatives.shape == (1, *tokens.grid_hw)
    assert len(plain.negatives) == 0
    raw = demo.clip.similarity(tokens, ["sunflower", "sun"], Settings().maps).scores
    assert not made.negatives[0][raw[0] >= raw[1]].any()
    assert made.negatives.max() == 1


# Competition


def competing(strength: dict[str, float], **masks: np.ndarray) -> tuple[list[Segment], SimilarityMaps]:
    """Segments of these queries; the map of each is its mask's, so high; all maps have a 0 and a 1."""
    hw = (24, 32)
    scores = np.zeros((len(strength), *hw), np.float32)
    scores[:, 0, 0] = 1
    segments = []
    for row, (query, high) in enumerate(strength.items()):
        scores[row][masks[query]] = high
        segments.append(builders.segment(query, masks[query]))
    return segments, SimilarityMaps(tuple(strength), scores, np.ones(len(strength), np.float32), hw)


LEFT, RIGHT = builders.box_mask(left=4, width=12), builders.box_mask(left=10, width=12)
MOST = builders.box_mask(left=4, width=11)


def test_a_contested_pixel_goes_to_the_query_whose_map_is_higher():
    segments, maps = competing({"ball": 0.6, "dog": 0.9}, ball=LEFT, dog=RIGHT)
    ball, dog = settle(segments, maps)
    np.testing.assert_array_equal(dog.mask, RIGHT)
    np.testing.assert_array_equal(ball.mask, LEFT & ~RIGHT)
    assert dog is segments[1]
    assert ball.map_score != segments[0].map_score
    np.testing.assert_array_equal(segments[0].mask, LEFT)  # what was given stays as it was


def test_presence_counts_and_of_equals_the_first_asked_for_wins():
    segments, maps = competing({"ball": 0.6, "dog": 0.9}, ball=LEFT, dog=RIGHT)
    ball, dog = settle(segments, replace(maps, presence=np.array([0.9, 0.5], np.float32)))
    np.testing.assert_array_equal(ball.mask, LEFT)
    np.testing.assert_array_equal(dog.mask, RIGHT & ~LEFT)
    segments, maps = competing({"ball": 0.7, "dog": 0.7}, ball=LEFT, dog=RIGHT)
    np.testing.assert_array_equal(settle(segments, maps)[0].mask, LEFT)


def test_one_that_loses_more_than_85_percent_is_dropped_and_what_it_held_goes_back():
    segments, maps = competing({"ball": 0.6, "dog": 0.9}, ball=MOST, dog=LEFT)
    assert [each.query for each in settle(segments, maps)] == ["dog"]
    # cat keeps one column of twelve, which is all that it takes from pig; without cat, pig has it again
    cat, pig = LEFT, builders.box_mask(left=15, width=5)
    segments, maps = competing({"dog": 0.9, "cat": 0.6, "pig": 0.3}, dog=MOST, cat=cat, pig=pig)
    settled = {each.query: each.mask for each in settle(segments, maps)}
    assert list(settled) == ["dog", "pig"]
    np.testing.assert_array_equal(settled["pig"], pig)


def test_one_that_gets_smaller_than_its_query_allows_is_dropped():
    segments, maps = competing({"ball": 0.6, "dog": 0.9}, ball=LEFT, dog=RIGHT)
    left = np.count_nonzero(LEFT & ~RIGHT)
    assert len(settle(segments, maps, (left, 0))) == 2
    assert [each.query for each in settle(segments, maps, (left + 1, 0))] == ["dog"]


def test_segments_of_one_query_may_overlap_and_what_is_alone_stays_as_it_is():
    segments, maps = competing({"ball": 0.6}, ball=LEFT)
    both = [*segments, builders.segment("ball", RIGHT)]
    assert settle(both, maps) == both
    assert settle([], maps) == []


def test_with_the_demo_model_no_pixel_is_two_things(demo):
    session = demo.open(SCENES / "held-out" / "images" / "scene_0006.jpg")
    queries = ["sun", "sunflower", "turtle", "whale"]
    everything = Settings(presence=PresenceSettings(0))
    plain = session.segment(queries, everything).segments
    apart = session.segment(queries, replace(everything, masks=MaskSettings(compete=True))).segments

    def shared(segments):
        queries_at = np.zeros(session.image.hw, int)
        for query in queries:
            own = [each.mask for each in segments if each.query == query]
            queries_at += np.any(own, axis=0) if own else 0
        return int((queries_at > 1).sum())

    assert shared(plain) > 0
    assert shared(apart) == 0
    assert all(each.mask.dtype == np.bool_ and each.mask.shape == session.image.hw for each in apart)


# What is recorded of it


def written(demo, settings: Settings, queries=("koala", "alarm clock -sun")) -> dict:
    name = "images/scene_0008.jpg"
    result = demo.segment(
        load_image(SCENES / "held-out" / name, file_name=name), [parse_query(query) for query in queries], settings
    )
    dataset = build_dataset([result], info={"provenance": demo.provenance(settings)})
    dataset["info"]["ontology"] = ontology_of_queries(list(queries)).to_dict()
    return json.loads(json.dumps(dataset))


@pytest.mark.parametrize(
    "masks",
    [
        MaskSettings(prompt="box"),
        MaskSettings(prompt="box-mask"),
        MaskSettings(fallback=True),
        MaskSettings(compete=True),
        MaskSettings(prompt="box-mask", fallback=True, compete=True),
    ],
    ids=["box", "box-mask", "fallback", "compete", "all"],
)
def test_every_way_can_be_replayed(demo, masks, monkeypatch):
    if masks.fallback:
        monkeypatch.setattr(choices, "WORST_QUALITY", np.inf)
        monkeypatch.setattr(choices, "LEAST_SHARED", np.inf)
    content = written(demo, Settings(masks=masks))
    assert len(content["annotations"]) >= 2
    for annotation in content["annotations"]:
        known = annotation["attributes"]
        assert ("box_prompt" in known) == (masks.prompt != "points")
        again = replay(content, annotation["id"], images=SCENES / "held-out", models=demo)
        assert again.points_identical
        assert again.rebuilt_chosen == again.recorded_chosen
        assert_same_masks(again.rebuilt, again.recorded)
        assert again.recorded_points.boxes_xyxy.shape == (int("box_prompt" in known), 4)


def test_a_tampered_box_is_told_with_its_distance(demo):
    content = written(demo, Settings(masks=MaskSettings(prompt="box")))
    content["annotations"][0]["attributes"]["box_prompt"][0] += 3
    again = replay(content, 1, images=SCENES / "held-out", models=demo)
    assert not again.points_identical
    assert again.points_distance == pytest.approx(3)


def test_what_cannot_be_replayed_says_why(demo):
    content = written(demo, Settings(masks=MaskSettings(fallback=True)))
    known = content["annotations"][0]["attributes"]
    known["chosen_candidate"] = 3
    with pytest.raises(Text2SegError, match="region of the map itself, which is not recorded"):
        replay(content, 1, images=SCENES / "held-out", models=demo)
    known["chosen_candidate"] = 4
    with pytest.raises(Text2SegError, match="candidate 4, SAM has 3 only"):
        replay(content, 1, images=SCENES / "held-out", models=demo)


def test_the_scale_of_the_rough_mask_is_the_published_one():
    assert MASK_PROMPT_SCALE == 0.005
