"""Options of mask prompts: boxes, rough masks, regions of the map, resolved overlaps, and the peaks of negatives.
Tested with fakes, with random SAMs against the stock predictor, and with the demo model."""

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
from text2seg.records import PointPrompts, Segment, SimilarityMaps
from text2seg.review.replay import replay
from text2seg.sam.base import MASK_PROMPT_SCALE
from text2seg.sam.candidates import resolve_overlaps
from text2seg.sam.sam import Sam

CPU = torch.device("cpu")
SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes"
REGIONS = PointSettings(instances="regions", floor=0.4, prominence=0.2)
GRID, HW = (5, 9), (50, 90)  # cells of 10 pixels


def two_peaks() -> np.ndarray:
    """Map with a peak of 1.0 on the left, that falls to 0.75 and 0.5, and a peak of 0.9 on the right."""
    scores = np.zeros(GRID, np.float32)
    scores[2, 2:5], scores[1, 6], scores[4, 0] = (1.0, 0.75, 0.5), 0.9, 0.1
    return scores


def prompts_of(scores: np.ndarray, settings: PointSettings = REGIONS, **options):
    return sam_prompts(scores[None], np.ones(GRID, np.float32), HW, settings, min_presence=0.5, **options)


# The settings


def test_mask_options_are_off_by_default_and_an_unknown_one_is_refused():
    assert (MaskSettings().prompt, MaskSettings().resolve_overlaps) == ("points", False)
    with pytest.raises(SettingsError, match="points, box, box-mask"):
        MaskSettings(prompt="mask")
    given = Settings(masks=MaskSettings(prompt="box", resolve_overlaps=True))
    assert settings_from_dict({"masks": {"prompt": "box", "resolve_overlaps": True}}) == given


def test_the_reference_method_ignores_mask_options():
    asked = MaskSettings(prompt="box", resolve_overlaps=True)
    masks = Settings(points=PointSettings(method="reference"), masks=asked).masks
    assert (masks.prompt, masks.resolve_overlaps, masks.choice) == ("points", False, "sam")


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
def test_a_point_set_has_at_most_one_box_and_one_rough_mask(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(builders.points(), **wrong)


def test_a_region_gives_a_tight_box_its_peak_and_its_part_of_the_map():
    left, right = prompts_of(two_peaks(), prompt="box-mask")
    assert left.points.boxes_xyxy.tolist() == [[20, 20, 40, 30]]
    assert right.points.boxes_xyxy.tolist() == [[60, 10, 70, 20]]
    assert (left.points.xy.tolist(), left.points.labels.tolist()) == ([[25, 25]], [1])
    assert left.points.masks.sum() == pytest.approx(2.25)  # neither the other hill nor what is below the floor
    assert right.points.masks[0, 1, 6] == right.points.masks.sum() == np.float32(0.9)
    boxed = prompts_of(two_peaks(), prompt="box")
    assert [sam_prompt.points.boxes_xyxy.tolist() for sam_prompt in boxed] == [[[20, 20, 40, 30]], [[60, 10, 70, 20]]]
    assert all(len(sam_prompt.points.masks) == 0 for sam_prompt in boxed)


def test_default_prompts_have_no_box_or_mask_but_a_region():
    for sam_prompt in prompts_of(two_peaks()):
        assert (len(sam_prompt.points.boxes_xyxy), len(sam_prompt.points.masks)) == (0, 0)
        assert sam_prompt.region[sam_prompt.scores >= sam_prompt.scores[sam_prompt.region].max()].any()
    (whole,) = prompts_of(two_peaks(), replace(REGIONS, instances="union", downsample=1))
    np.testing.assert_array_equal(whole.region, two_peaks() >= 0.4)


def test_union_and_combined_queries_have_one_common_box():
    union = replace(REGIONS, instances="union", downsample=1)
    (whole,) = prompts_of(two_peaks(), union, prompt="box")
    assert whole.points.boxes_xyxy.tolist() == [[20, 10, 70, 30]]
    parts = np.zeros((3, *GRID), np.float32)
    parts[0, 0, 0], parts[1, 4, 8], parts[2, 2, 4] = 1, 1, 1  # their mean is nowhere above the floor
    (joined,) = sam_prompts(parts, np.ones(GRID, np.float32), HW, union, prompt="box", min_presence=0)
    assert joined.points.boxes_xyxy.tolist() == [[0, 0, 90, 50]]


def mixed_sets(images) -> list[tuple[int, PointPrompts]]:
    """Point sets with and without box and rough mask, in mixed order, on images that are not square."""
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
        (0, replace(points(0, 0), boxes_xyxy=box(0))),
    ]


def assert_mixed_batch_equals_single_sets_and_stock(sam: Sam, images) -> None:
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
            points.xy.copy() if len(points) else None,
            points.labels.copy() if len(points) else None,
            box=points.boxes_xyxy.copy() if boxed else None,
            mask_input=stock_mask(sam, embeddings[place], points),
            multimask_output=not boxed,
        )
        assert_close(many.logits, logits, terms=TINY_NETWORK)


def stock_mask(sam, embedding, points):
    """The rough mask in the form that the stock predictor takes, computed step by step."""
    if not len(points.masks):
        return None
    side = sam.module.prompt_encoder.mask_input_size[0]
    rows, columns = (round(length * side / sam.module.image_encoder.img_size) for length in embedding.input_hw)
    mask = np.zeros((1, side, side), np.float32)
    mask[0, :rows, :columns] = 0.005 * resize(points.masks, (rows, columns))[0]
    return mask


def test_a_mixed_batch_equals_single_sets_and_the_stock_predictor():
    images = [build.make_image(24, 32, seed=1), build.make_image(97, 41, seed=2)]
    assert_mixed_batch_equals_single_sets_and_stock(Sam(build.sam_module(), CPU), images)
    assert_mixed_batch_equals_single_sets_and_stock(Sam(build.sam_module(), CPU, sets_per_call=2), images)


def test_a_mixed_batch_equals_the_stock_predictor_on_the_demo_weights(demo):
    images = [build.make_image(120, 90, seed=1), build.make_image(61, 200)]
    assert_mixed_batch_equals_single_sets_and_stock(demo.sam, images)


def test_box_and_mask_change_the_result_of_the_demo_sam(demo):
    image = build.make_image(120, 90, seed=1)
    (embedding,) = demo.sam.embed([image])
    plain = build.points(image, 2)
    boxed = replace(plain, boxes_xyxy=np.array([[5, 5, 60, 90]], np.float32))
    elsewhere = replace(plain, boxes_xyxy=np.array([[40, 60, 88, 118]], np.float32))
    masked = replace(boxed, masks=np.ones((1, 3, 4), np.float32))
    answers = demo.sam.decode([(embedding, points) for points in (boxed, elsewhere, masked)])
    for other in answers[1:]:
        assert np.abs(answers[0].logits - other.logits).max() > 0.1


# Negatives


def negative_at(*cells: tuple[int, int]) -> np.ndarray:
    maps = np.zeros((1, *GRID), np.float32)
    for height, cell in zip((1.0, 0.9, 0.8), cells, strict=False):
        maps[0][cell] = height
    return maps


def test_the_peak_of_a_negative_replaces_the_lowest_cell_of_the_map():
    left, right = prompts_of(two_peaks(), negatives=negative_at((3, 8)))
    for sam_prompt in (left, right):
        assert sam_prompt.points.labels.tolist() == [1, 0]
        assert sam_prompt.points.xy[1].tolist() == [85, 35]
        assert sam_prompt.points.similarity[1] == 0


def test_lowest_cells_fill_up_to_one_negative_for_each_positive():
    scores = two_peaks()
    scores[2, 3] = 0.95
    left, _ = prompts_of(scores, negatives=negative_at((3, 8)))
    before, _ = prompts_of(scores)
    assert left.points.labels.tolist() == before.points.labels.tolist() == [1, 1, 0, 0]
    assert left.points.xy[2].tolist() == [85, 35]
    np.testing.assert_array_equal(left.points.xy[3], before.points.xy[2])


def test_a_negative_peak_inside_a_region_is_left_out_for_that_region_only():
    left, right = prompts_of(two_peaks(), negatives=negative_at((2, 3)))
    plain_left, _ = prompts_of(two_peaks())
    np.testing.assert_array_equal(left.points.xy, plain_left.points.xy)
    assert right.points.xy[1].tolist() == [35, 25]


def test_peaks_of_all_negatives_count_except_empty_maps():
    negatives = np.concatenate([negative_at((0, 8), (4, 8)), negative_at((0, 0)), np.zeros((1, *GRID), np.float32)])
    left, _ = prompts_of(two_peaks(), replace(REGIONS, floor=0.2), negatives=negatives)
    assert {(85.0, 5.0), (85.0, 45.0), (5.0, 5.0)} == set(map(tuple, left.points.xy[left.points.labels == 0].tolist()))
    nothing = [
        prompts_of(two_peaks(), replace(REGIONS, floor=0), negatives=each) for each in (negatives[2:], negatives[:0])
    ]
    np.testing.assert_array_equal(nothing[0][0].points.xy, nothing[1][0].points.xy)


def test_with_a_box_the_only_negative_point_is_the_peak_and_the_reference_has_none():
    left, _ = prompts_of(two_peaks(), prompt="box", negatives=negative_at((3, 8)))
    assert (left.points.labels.tolist(), len(left.points.boxes_xyxy)) == ([1, 0], 1)
    reference = PointSettings(method="reference", downsample=1, instances="union")
    with_it, without = (
        prompts_of(two_peaks(), reference, negatives=each) for each in (negative_at((3, 8)), negative_at())
    )
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
def test_the_demo_model_puts_a_negative_point_on_the_negative_object(demo, wanted, unwanted):
    session = demo.open(SCENES / "held-out" / "images" / "scene_0006.jpg")
    other = true_mask(6, unwanted)
    for query, expected in ((wanted, False), (f"{wanted} -{unwanted}", True)):
        for segment in session.segment([parse_query(query)]).segments:
            columns, rows = segment.points.xy[segment.points.labels == 0].astype(int).T
            assert other[rows, columns].any() == expected
            assert not segment.mask[other].any()


def test_a_negative_has_no_peak_where_the_query_scores_higher(demo):
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


def overlapping(strength: dict[str, float], **masks: np.ndarray) -> tuple[list[Segment], SimilarityMaps]:
    """Segments of these queries, and maps that have the value `strength` on their masks; each map contains 0 and 1."""
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


def test_a_shared_pixel_goes_to_the_query_with_the_higher_map():
    segments, maps = overlapping({"ball": 0.6, "dog": 0.9}, ball=LEFT, dog=RIGHT)
    ball, dog = resolve_overlaps(segments, maps)
    np.testing.assert_array_equal(dog.mask, RIGHT)
    np.testing.assert_array_equal(ball.mask, LEFT & ~RIGHT)
    assert dog is segments[1]
    assert ball.map_score != segments[0].map_score
    np.testing.assert_array_equal(segments[0].mask, LEFT)  # what was given stays as it was


def test_presence_weights_the_map_and_ties_go_to_the_first_query():
    segments, maps = overlapping({"ball": 0.6, "dog": 0.9}, ball=LEFT, dog=RIGHT)
    ball, dog = resolve_overlaps(segments, replace(maps, presence=np.array([0.9, 0.5], np.float32)))
    np.testing.assert_array_equal(ball.mask, LEFT)
    np.testing.assert_array_equal(dog.mask, RIGHT & ~LEFT)
    segments, maps = overlapping({"ball": 0.7, "dog": 0.7}, ball=LEFT, dog=RIGHT)
    np.testing.assert_array_equal(resolve_overlaps(segments, maps)[0].mask, LEFT)


def test_a_segment_that_loses_more_than_85_percent_is_dropped_and_its_pixels_go_back():
    segments, maps = overlapping({"ball": 0.6, "dog": 0.9}, ball=MOST, dog=LEFT)
    assert [each.query for each in resolve_overlaps(segments, maps)] == ["dog"]
    # cat keeps one column of twelve, which is all that it takes from pig; without cat, pig has it again
    cat, pig = LEFT, builders.box_mask(left=15, width=5)
    segments, maps = overlapping({"dog": 0.9, "cat": 0.6, "pig": 0.3}, dog=MOST, cat=cat, pig=pig)
    resolved = {each.query: each.mask for each in resolve_overlaps(segments, maps)}
    assert list(resolved) == ["dog", "pig"]
    np.testing.assert_array_equal(resolved["pig"], pig)


def test_a_segment_that_becomes_smaller_than_min_area_is_dropped():
    segments, maps = overlapping({"ball": 0.6, "dog": 0.9}, ball=LEFT, dog=RIGHT)
    left = np.count_nonzero(LEFT & ~RIGHT)
    assert len(resolve_overlaps(segments, maps, (left, 0))) == 2
    assert [each.query for each in resolve_overlaps(segments, maps, (left + 1, 0))] == ["dog"]


def test_segments_of_one_query_may_overlap_and_segments_without_overlap_are_unchanged():
    segments, maps = overlapping({"ball": 0.6}, ball=LEFT)
    both = [*segments, builders.segment("ball", RIGHT)]
    assert resolve_overlaps(both, maps) == both
    assert resolve_overlaps([], maps) == []


def test_segments_of_the_demo_model_do_not_overlap(demo):
    session = demo.open(SCENES / "held-out" / "images" / "scene_0006.jpg")
    queries = ["sun", "sunflower", "turtle", "whale"]
    everything = Settings(presence=PresenceSettings(0))
    plain = session.segment(queries, everything).segments
    apart = session.segment(queries, replace(everything, masks=MaskSettings(resolve_overlaps=True))).segments

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
        MaskSettings(resolve_overlaps=True),
        MaskSettings(prompt="box-mask", resolve_overlaps=True),
    ],
    ids=["box", "box-mask", "resolve_overlaps", "both"],
)
def test_every_mask_option_can_be_replayed(demo, masks):
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


def test_a_changed_box_is_reported_with_its_distance(demo):
    content = written(demo, Settings(masks=MaskSettings(prompt="box")))
    content["annotations"][0]["attributes"]["box_prompt"][0] += 3
    again = replay(content, 1, images=SCENES / "held-out", models=demo)
    assert not again.points_identical
    assert again.points_distance == pytest.approx(3)


@pytest.mark.parametrize(
    ("masks", "chosen", "message"),
    [
        (MaskSettings(), 3, "candidate 3, SAM has 3 only"),
        (MaskSettings(), 4, "candidate 4, SAM has 3 only"),
        (
            MaskSettings(resolve_overlaps=True),
            None,
            "its overlaps with other queries were resolved, which is not recorded",
        ),
    ],
)
def test_the_reason_is_given_when_replay_is_impossible(demo, masks, chosen, message):
    content = written(demo, Settings(masks=masks))
    known = content["annotations"][0]["attributes"]
    known["chosen_candidate"] = (known["chosen_candidate"] + 1) % 3 if chosen is None else chosen
    with pytest.raises(Text2SegError, match=message):
        replay(content, 1, images=SCENES / "held-out", models=demo)


def test_the_scale_of_the_rough_mask_equals_the_published_one():
    assert MASK_PROMPT_SCALE == 0.005
