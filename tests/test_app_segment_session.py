"""A session of the Segment tab without a browser: searches, clicks, exports, commands."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from copy import deepcopy
from dataclasses import replace
from functools import partial

import gradio as gr
import numpy as np
import pytest
import torch
from closeness import about
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

from text2seg.app.model_pool import ModelPool
from text2seg.app.segment import export
from text2seg.app.segment.desk import Desk, KeptSessions, bytes_of
from text2seg.app.segment.document import History, with_point
from text2seg.app.segment.edits import EVERYTHING, add_point, draw_box, find_everything, give_name, pick
from text2seg.app.segment.export import dataset_of, export_file
from text2seg.app.segment.requests import read_request
from text2seg.app.segment.session import EditSession, examples, find, open_image
from text2seg.app.segment.tab import build
from text2seg.app.segment.view import view_of, why
from text2seg.app.settings import AppSettings
from text2seg.cli import main
from text2seg.cli.segment import Segment as SegmentCommand
from text2seg.coco.provenance import points_of
from text2seg.config import (
    MapSettings,
    MaskSettings,
    ModelSettings,
    PointSettings,
    PresenceSettings,
    Settings,
    TileSettings,
)
from text2seg.demo import IMAGES
from text2seg.errors import QueryError, StoppedError, Text2SegError
from text2seg.io.images import load_image
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render import saving
from text2seg.runtime import FULL, Precision, watched


@pytest.fixture(scope="module")
def model_pool(demo):
    return ModelPool(demo, AppSettings())


@pytest.fixture(scope="module")
def session(model_pool):
    """A session with two sheep, a fire engine, and a koala that is not there."""
    return read_request({"do": "example", "number": 0}).answer(EditSession(), model_pool).session


def piece_of(session, number):
    """A segment as the page gets it."""
    return next(piece for piece in view_of(session)["pieces"] if piece["number"] == number)


def numbers(session, query=None):
    return [piece.number for piece in session.document.pieces if query in (None, piece.segment.query)]


class TestVisit:
    def test_an_example_is_opened_and_searched(self, session):
        view = view_of(session)
        verdicts = {query["name"]: query["verdict"] for query in view["queries"]}
        assert verdicts["sheep"].startswith("2 found, best 0.9")
        assert verdicts["koala"].startswith("not found (0.")
        assert [piece["query"] for piece in view["pieces"]] == ["sheep", "sheep", "fire engine"]
        assert len(json.dumps(view)) < 20_000

    def test_all_examples_know_their_words(self, demo):
        for example in examples():
            assert demo.check(list(example.texts))
            assert example.thumbnail.startswith("data:image/jpeg;base64,")

    def test_another_threshold_encodes_nothing(self, session, model_pool, monkeypatch):
        def forbidden(*args, **keywords):
            raise AssertionError("an image was encoded")

        monkeypatch.setattr(
            model_pool.models.clip, "encode_images", lambda images, **keywords: forbidden() if images else []
        )
        monkeypatch.setattr(model_pool.models.sam, "embed", lambda images: forbidden() if images else [])
        again = find(session, model_pool, session.texts, threshold=0.6, presence=0.0)
        counts = [len(piece.segment.points) for piece in again.document.pieces]
        assert counts != [len(piece.segment.points) for piece in session.document.pieces]
        assert "koala" in {piece.segment.query for piece in again.document.pieces}
        assert again.found.thresholds == (0, 0, 0)

    def test_a_click_adds_a_point(self, session, model_pool):
        number = numbers(session, "fire engine")[0]
        before = session.document.piece(number).segment
        after = add_point(session, number, "", (150.0, 20.0), positive=False)
        segment = after.document.piece(number).segment
        expected = session.image_session.segment_points(
            "fire engine",
            with_point(
                before.points, (150.0, 20.0), positive=False, scores=session.found.maps.scores[1], hw=(360, 270)
            ),
        )
        assert np.array_equal(segment.mask, expected.mask)
        assert segment.points.xy[-1].tolist() == [150.0, 20.0]
        assert after.history.undo().present is session.document

    def test_a_click_can_start_a_segment(self, session):
        after = add_point(session, 0, "koala", (90.0, 150.0), positive=True)  # on the bomb
        (new,) = (piece for piece in after.document.pieces if piece.segment.query == "koala")
        assert new.by_hand
        assert new.segment.mask[150, 90]
        assert "koala" in {query["name"] for query in view_of(after)["queries"] if query["found"]}

    def test_the_first_point_must_be_positive(self, session):
        with pytest.raises(Text2SegError, match="first point"):
            add_point(session, 0, "koala", (90.0, 150.0), positive=False)

    def test_a_text_that_is_not_known_or_not_readable_does_not_stop_the_others(self, session, model_pool):
        texts = ("sheep", "big unicycle", "rose / tulip", "fire engine, ghost+elf")
        after = find(session, model_pool, texts, threshold=None, presence=None)
        assert after.asked == ("sheep", "big unicycle", "rose / tulip", "fire engine", "ghost+elf")
        assert after.texts == after.found.maps.queries == ("sheep", "fire engine")
        unknown, ambiguous, part = after.refused
        assert unknown.reason == "“big unicycle” is not among the 109 drawn things that the demo model knows."
        assert (unknown.text, unknown.wording, "bicycle" in unknown.close) == ("big unicycle", "big unicycle", True)
        assert "can be read in two ways" in ambiguous.reason
        assert (ambiguous.text, ambiguous.wording, ambiguous.close) == ("rose / tulip", "", ())
        assert (part.text, part.wording) == ("ghost+elf", "elf")
        assert "unicycle" not in export.as_command(after)
        assert [query["name"] for query in view_of(after)["queries"]] == ["sheep", "fire engine"]

    def test_a_query_of_parts_does_not_stop_the_others_of_region_classification(self, demo, monkeypatch):
        monkeypatch.setattr(demo, "settings", Settings(points=PointSettings(method="regions")))
        session = read_request({"do": "example", "number": 2}).answer(EditSession(), ModelPool(demo, AppSettings()))
        (refused,) = session.session.refused
        assert (refused.text, refused.wording, refused.close) == ("mouse+alarm clock", "", ())
        assert refused.reason == "Region classification takes no 'mouse+alarm clock'; ask for its parts."
        assert session.session.found.maps.queries == ("umbrella",)

    def test_a_half_known_text_is_searched_and_said_to_be_one(self, session, model_pool):
        after = find(session, model_pool, ("red sheep", "fire engine"), threshold=None, presence=None)
        assert after.texts == ("red sheep", "fire engine")
        assert view_of(after)["halfKnown"] == {"red sheep": "The demo model knows only 'sheep' of 'red sheep'."}
        assert view_of(find(after, model_pool, ("sheep",), threshold=None, presence=None))["halfKnown"] == {}

    def test_only_unknown_words_leave_no_stale_result(self, session, model_pool):
        after = find(session, model_pool, ("unicycle",), threshold=None, presence=None)
        view = view_of(after)
        assert (view["texts"], view["queries"], view["pieces"], view["command"]) == (["unicycle"], [], [], "")
        assert [each["text"] for each in view["refused"]] == ["unicycle"]
        assert not find(after, model_pool, (), threshold=None, presence=None).refused
        twice = find(session, model_pool, ("Unicycle", "Sheep", "unicycle", "sheep"), threshold=None, presence=None)
        assert twice.asked == ("Unicycle", "Sheep")
        assert [each.text for each in twice.refused] == ["Unicycle"]

    def test_a_mask_that_does_not_look_like_its_word_alone_is_marked(self, model_pool):
        opened = open_image(model_pool, load_image(IMAGES / "scene_0012.jpg"))
        session = find(opened, model_pool, ("frog", "dog"), threshold=None, presence=None)
        pieces = {each["query"]: each for each in view_of(session)["pieces"]}
        assert {query: each["isUncertain"] for query, each in pieces.items()} == {"frog": False, "dog": True}
        explained = read_request({"do": "why", "piece": pieces["dog"]["number"]}).answer(session, model_pool).why
        assert "In this mask alone, the model hardly sees “dog”: presence 0.00." in explained["reason"]

    def test_a_query_with_an_exclusion_takes_the_place_of_the_plain_one(self, session, model_pool):
        texts = ("Sheep", "unicycle", "sheep -koala", "koala")
        after = find(session, model_pool, texts, threshold=None, presence=None)
        assert after.asked == ("unicycle", "sheep -koala", "koala")
        assert [each.text for each in after.refused] == ["unicycle"]
        assert [each["name"] for each in view_of(after)["queries"]] == ["sheep", "koala"]
        again = find(after, model_pool, (*after.asked, "sheep"), threshold=None, presence=None)
        assert again.asked == ("unicycle", "koala", "sheep")

    def test_a_new_word_changes_no_colour_of_another(self, session, model_pool):
        def colours(of):
            view = view_of(of)
            return {each["query"]: each["colour"] for each in view["pieces"]} | {
                each["name"]: each["colour"] for each in view["queries"]
            }

        engine = numbers(session, "fire engine")[0]
        named = [give_name(session, engine, f"lorry {number}") for number in range(5)]
        for before in named:
            after = find(before, model_pool, (*before.asked, "monkey", "trophy"), threshold=None, presence=None)
            assert colours(before).items() <= colours(after).items()

    def test_each_slider_is_a_step_of_its_own(self, session, model_pool):
        after, asked = session, session.asked
        for threshold, presence in [(0.7, None), (0.6, None), (0.6, 0.4), (0.6, 0.3), (0.5, 0.3)]:
            after = find(after, model_pool, asked, threshold=threshold, presence=presence)
        seen = []
        while after.history.past:
            after = after.at(after.history.undo())
            seen.append((after.threshold, after.presence))
        assert seen[:3] == [(0.6, 0.3), (0.6, None), (None, None)]

    def test_queries_that_contradict_each_other_are_an_error(self, session, model_pool, monkeypatch):
        def contradict(queries, settings=None):
            raise QueryError("these two contradict each other")

        monkeypatch.setattr(model_pool.models, "known_queries", contradict)
        with pytest.raises(QueryError, match="contradict"):
            find(session, model_pool, ("sheep", "koala"), threshold=None, presence=None)

    def test_too_many_queries_are_an_error(self, session, model_pool):
        with pytest.raises(QueryError, match="101 queries are too many"):
            find(session, model_pool, tuple(f"sheep {n}" for n in range(101)), threshold=None, presence=None)

    def test_a_photograph_is_unfamiliar_to_the_demo_model(self, session, model_pool, demo):
        rng = np.random.default_rng(0)
        noise = Image(np.repeat(rng.integers(0, 256, (60, 80, 1), np.uint8), 3, 2), "noise.png")
        assert not view_of(session)["isUnfamiliar"]
        opened = open_image(model_pool, noise)
        assert view_of(opened)["isUnfamiliar"]
        real = Text2Seg(demo.clip, demo.sam, settings=demo.settings, input_size=demo.input_size)
        after = find(opened, ModelPool(real, AppSettings()), ("sheep",), threshold=None, presence=None)
        assert not view_of(after)["isUnfamiliar"]

    def test_points_of_the_visitor_are_marked(self, session):
        number = numbers(session, "fire engine")[0]
        assert not any(point["own"] for point in piece_of(session, number)["points"])
        after = add_point(session, number, "", (150.1, 20.7), positive=False)
        after = add_point(after, number, "", (250.3, 200.9), positive=True)
        own = [point for point in piece_of(after, number)["points"] if point["own"]]
        assert [(point["x"], point["y"], point["positive"]) for point in own] == [
            (pytest.approx(150.1), pytest.approx(20.7), False),
            (pytest.approx(250.3), pytest.approx(200.9), True),
        ]
        new = add_point(session, 0, "koala", (90.0, 150.0), positive=True)
        assert [point["own"] for point in piece_of(new, numbers(new, "koala")[0])["points"]] == [True]

    def test_another_candidate_can_be_taken(self, session, model_pool):
        number = numbers(session, "fire engine")[0]
        before = session.document.piece(number).segment
        other = (before.chosen + 1) % 3
        answer = read_request({"do": "take", "piece": number, "candidate": other}).answer(session, model_pool)
        piece = answer.session.document.piece(number)
        assert np.array_equal(piece.segment.mask, session.image_session.candidate_mask(before, other))
        assert (piece.segment.chosen, piece.by_hand) == (other, True)
        assert piece.segment.sam_score == pytest.approx(before.candidates.scores[other])
        assert piece.segment.map_score == about(answer.why["candidates"][other]["map"], terms=before.mask.size)
        assert [each["chosen"] for each in answer.why["candidates"]].index(True) == other
        assert answer.session.history.undo().present is session.document
        with pytest.raises(Text2SegError, match="no such candidate"):
            read_request({"do": "take", "piece": number, "candidate": 3}).answer(session, model_pool)

    def test_why_not_returns_the_map_of_what_was_not_found(self, session, model_pool):
        answer = read_request({"do": "why-not", "query": "koala"}).answer(session, model_pool)
        assert answer.why["reason"].startswith("The model does not find it: presence 0.0")
        assert "below 0.50" in answer.why["reason"]
        assert answer.why["candidates"] == answer.why["points"] == []
        expected = PillowImage.open(io.BytesIO(answer.map_jpeg))
        assert expected.size == session.image_session.image.hw[::-1]
        with pytest.raises(Text2SegError, match="was not searched for"):
            read_request({"do": "why-not", "query": "bomb"}).answer(session, model_pool)

    def test_a_search_needs_an_image(self, model_pool):
        with pytest.raises(Text2SegError, match="no image"):
            find(EditSession(), model_pool, ("sheep",), threshold=None, presence=None)

    def test_switched_models_are_used_for_the_next_search(self, session, demo):
        other = ModelPool(demo, AppSettings())
        with pytest.raises(Text2SegError, match="no longer one of the queries"):
            add_point(open_image(other, examples()[0].image), 0, "sheep", (1, 1), positive=True)
        stale = replace(session, models=None)
        assert find(stale, other, ("sheep",), threshold=None, presence=None).models is demo

    def test_deleting_all_segments_of_a_query_changes_its_verdict(self, session, model_pool):
        for number in numbers(session, "sheep"):
            session = read_request({"do": "delete", "piece": number}).answer(session, model_pool).session
        assert view_of(session)["queries"][0]["verdict"] == "deleted"
        for texts, verdict in ((("koala", "sheep"), "deleted"), (("koala",), "not found"), (("sheep",), "2 found")):
            session = find(session, model_pool, texts, threshold=None, presence=None)
            assert view_of(session)["queries"][-1]["verdict"].startswith(verdict)  # forgotten with the query

    def test_why_returns_candidates_points_and_the_map(self, session, model_pool):
        number = numbers(session, "fire engine")[0]
        answer = read_request({"do": "why", "piece": number}).answer(session, model_pool)
        segment = session.document.piece(number).segment
        assert [each["sam"] for each in answer.why["candidates"]] == pytest.approx(segment.candidates.scores.tolist())
        assert [each["chosen"] for each in answer.why["candidates"]].index(True) == segment.chosen
        assert answer.why["candidates"][segment.chosen]["map"] == about(
            segment.map_score, terms=session.found.maps.scores[0].size
        )
        assert len(answer.why["points"]) == len(segment.points)
        assert PillowImage.open(io.BytesIO(answer.map_jpeg)).format == "JPEG"


class TestExport:
    def test_the_coco_file_has_masks_and_provenance(self, session):
        number = numbers(session, "sheep")[0]
        session = add_point(session, number, "", (5.0, 5.0), positive=False)
        name, content = export_file(session, "coco", frozenset(numbers(session)))
        dataset = json.loads(content)
        assert name == "scene_0019_dataset.json"
        assert [category["name"] for category in dataset["categories"]] == ["sheep", "fire engine", "koala"]
        for annotation, piece in zip(dataset["annotations"], session.document.pieces, strict=True):
            assert np.array_equal(coco_mask.decode(annotation["segmentation"]).astype(bool), piece.segment.mask)
            assert annotation["attributes"]["by_hand"] == (piece.number == number)
            assert annotation["attributes"]["provenance"]["clip"]["name"] == "demo"
            assert np.array_equal(points_of(annotation).xy, piece.segment.points.xy)
        assert dataset["images"][0]["file_name"] == "scene_0019.jpg"

    def test_only_the_chosen_segments_are_exported(self, session):
        chosen = frozenset(numbers(session, "fire engine"))
        assert [each["category_id"] for each in dataset_of(session, chosen)["annotations"]] == [2]
        assert dataset_of(session, frozenset())["annotations"] == []

    def test_everything_is_one_zip(self, session):
        name, content = export_file(session, "all", frozenset(numbers(session)))
        assert name == "scene_0019_text2seg.zip"
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = {entry.removeprefix("scene_0019_text2seg/") for entry in archive.namelist()}
            assert names == {"dataset.json", "scene_0019_overlay.png"} | {
                f"{folder}/scene_0019_{segment}.png"  # as `segment --save` names them
                for folder in ("masks", "cutouts")
                for segment in ("sheep_1", "sheep_2", "fire-engine_1")
            }
            mask = np.asarray(
                PillowImage.open(io.BytesIO(archive.read("scene_0019_text2seg/masks/scene_0019_fire-engine_1.png")))
            )
        (piece,) = (piece for piece in session.document.pieces if piece.segment.query == "fire engine")
        assert np.array_equal(mask, piece.segment.mask * 255)

    def test_one_cut_out_is_a_transparent_png(self, session):
        name, content = export_file(session, "cutouts", frozenset(numbers(session, "fire engine")))
        image = PillowImage.open(io.BytesIO(content))
        (piece,) = (piece for piece in session.document.pieces if piece.segment.query == "fire engine")
        assert name == "scene_0019_fire-engine_1_cutout.png"
        assert image.mode == "RGBA"
        assert image.size == piece.segment.box_xywh[2:]

    def test_the_legend_of_an_overlay_follows_the_edits(self, session, monkeypatch):
        drawn = []
        monkeypatch.setattr(saving, "overlay", lambda result: drawn.append(result) or result.image.pixels)

        def legend(session, hidden=0):
            export_file(session, "overlay", frozenset(numbers(session)) - {hidden})
            verdicts = {query: drawn[-1].verdict(query) for query in drawn[-1].maps.queries}
            return {
                query: "found" if "not found" not in verdict else "not found" for query, verdict in verdicts.items()
            }

        (engine,), sheep = numbers(session, "fire engine"), numbers(session, "sheep")
        without = {"sheep": "found", "koala": "not found"}
        assert legend(session) == {**without, "fire engine": "found"}
        assert legend(session, hidden=engine) == without
        assert legend(replace(session, history=session.history.step(session.document.deleted(engine)))) == without
        renamed = give_name(session, engine, "lorry")
        assert legend(renamed) == {**without, "lorry": "found"}
        assert legend(give_name(renamed, sheep[0], "fire engine")) == {
            **without,
            "lorry": "found",
            "fire engine": "found",
        }
        assert legend(give_name(session, engine, "koala")) == {"sheep": "found", "koala": "found"}

    @pytest.mark.parametrize("kind", ["coco", "masks", "cutouts", "overlay", "all"])
    def test_nothing_shown_means_no_file(self, session, kind):
        with pytest.raises(Text2SegError, match="show at least one"):
            export_file(session, kind, frozenset())


@pytest.fixture(scope="module")
def opened(model_pool):
    """A session with everything that is in its image, and no word."""
    return find_everything(open_image(model_pool, examples()[0].image))


class TestWithoutWords:
    """Masks that were found without words, and boxes, in the same document as those of words."""

    def test_a_picked_mask_gets_a_name_and_is_exported(self, opened):
        assert len(opened.regions) >= 4  # two sheep, a fire engine, a bomb
        picked = pick(opened, 2)
        (piece,) = picked.document.pieces
        region = opened.regions[1]
        assert (piece.segment.mask == region.in_image(opened.opened.image.hw)).all()
        assert piece.segment.sam_score == region.predicted_iou
        assert view_of(picked)["queries"][0]["name"] == "object"
        named = give_name(picked, piece.number, "  unicycle ")  # no word that the model knows
        dataset = dataset_of(named, frozenset([piece.number]))
        assert [each["name"] for each in dataset["categories"]] == ["unicycle"]
        (annotation,) = dataset["annotations"]
        assert annotation["attributes"]["by_hand"]
        assert (coco_mask.decode(annotation["segmentation"]) == piece.segment.mask).all()
        assert [each["name"] for each in dataset["info"]["ontology"]["categories"]] == ["unicycle"]
        back = replace(named, history=named.history.undo().undo())
        assert back.document.pieces == ()
        assert view_of(back)["queries"] == []

    def test_a_named_mask_outlasts_searches_and_can_be_corrected(self, opened, model_pool):
        session = give_name(pick(opened, 1), 1, "unicycle")
        session = find(session, model_pool, ("sheep",), threshold=None, presence=None)
        assert set(numbers(session, "unicycle")) == {1}
        assert len(numbers(session, "sheep")) == 2
        session = add_point(session, 1, "", (20.0, 20.0), positive=False)
        assert session.document.piece(1).segment.query == "unicycle"
        explained = read_request({"do": "why", "piece": 1}).answer(session, model_pool).why
        assert explained["reason"].startswith("You gave this mask its name")
        session = find(session, model_pool, (), threshold=None, presence=None)
        assert [piece.segment.query for piece in session.document.pieces] == ["unicycle"]

    def test_a_name_that_is_a_query_joins_it(self, opened, model_pool):
        session = find(pick(opened, 1), model_pool, ("sheep",), threshold=None, presence=None)
        session = give_name(session, 1, "Sheep")
        assert [query["name"] for query in view_of(session)["queries"]] == ["sheep"]
        assert len(numbers(session, "sheep")) == 3

    def test_a_word_whose_segments_were_renamed_was_found(self, session):
        (number,) = numbers(session, "fire engine")
        renamed = give_name(session, number, "truck")
        (query,) = (each for each in view_of(renamed)["queries"] if each["name"] == "fire engine")
        assert (query["verdict"], query["found"], query["isGone"]) == ("renamed", False, True)

    def test_a_renamed_segment_is_not_found_again_under_its_word(self, session, model_pool):
        first = numbers(session, "fire engine")[0]
        session = give_name(session, first, "lorry")
        session = find(session, model_pool, session.texts, threshold=None, presence=None)
        assert numbers(session, "fire engine") == []
        assert numbers(session, "lorry") == [first]

    def test_a_renamed_segment_says_which_word_led_to_it(self, session, model_pool):
        (number,) = numbers(session, "fire engine")
        before, map_before = why(session, number)
        session = give_name(give_name(session, number, "truck"), number, "lorry")
        explained, similarity_map = why(session, number)
        assert explained["reason"].startswith("You gave this mask its name; the word “fire engine” led to it.")
        assert similarity_map == map_before
        assert [each["map"] for each in explained["candidates"]] == [each["map"] for each in before["candidates"]]
        (annotation,) = dataset_of(session, frozenset([number]))["annotations"]
        assert annotation["attributes"]["found_as"] == "fire engine"
        parts = session.document.corrected(number, session.document.piece(number).segment)
        assert parts.piece(number).found_as == "fire engine"
        without = find(session, model_pool, ("sheep",), threshold=None, presence=None)
        assert why(without, number)[0]["isNamed"]  # its map is gone

    @pytest.mark.parametrize(("name", "wrong"), [(" ", "1 to 100 letters"), ("x" * 101, "1 to 100 letters")])
    def test_a_bad_name_is_refused(self, session, name, wrong):
        with pytest.raises(Text2SegError, match=wrong):
            give_name(session, numbers(session)[0], name)

    def test_a_box_gives_what_is_in_it(self, session):
        (engine,) = (piece.segment for piece in session.document.pieces if piece.segment.query == "fire engine")
        left, top, width, height = engine.box_xywh
        boxed = draw_box(session, (left, top, left + width, top + height), "")
        segment = boxed.document.pieces[-1].segment
        shared = np.logical_and(segment.mask, engine.mask).sum() / np.logical_or(segment.mask, engine.mask).sum()
        assert shared > 0.8
        assert (segment.query, len(segment.candidates)) == ("object", 1)
        (annotation,) = dataset_of(boxed, frozenset([boxed.document.last]))["annotations"]
        assert annotation["attributes"]["box_prompt"] == [left, top, left + width, top + height]
        assert len(points_of(annotation).boxes_xyxy) == 1

    def test_a_box_for_a_query_has_the_presence_of_the_query(self, session, model_pool):
        (engine,) = (piece.segment for piece in session.document.pieces if piece.segment.query == "fire engine")
        left, top, width, height = engine.box_xywh
        boxed = draw_box(session, (left, top, left + width, top + height), "koala")
        (number,) = numbers(boxed, "koala")
        segment = boxed.document.piece(number).segment
        presence = session.found.maps.presence[session.found.maps.queries.index("koala")]
        assert presence < 0.5
        assert segment.presence == pytest.approx(presence, abs=1e-4)  # alone, or in a batch with the other queries
        assert segment.map_score != 0
        explained = read_request({"do": "why", "piece": number}).answer(boxed, model_pool).why
        assert explained["reason"].startswith("The model does not find it (presence 0.0")
        assert "you added it" in explained["reason"]
        (annotation,) = dataset_of(boxed, frozenset([number]))["annotations"]
        assert annotation["score"] < 0.5
        score = f"Its score in a COCO file is {annotation['score']:.2f}: SAM {segment.sam_score:.2f}, times presence."
        assert score in explained["reason"]
        assert [each["cocoScore"] for each in view_of(boxed)["pieces"] if each["number"] == number] == [
            annotation["score"]
        ]

    def test_a_box_or_a_point_for_a_name_outlasts_searches_and_claims_nothing(self, opened, model_pool):
        session = give_name(pick(opened, 1), 1, "unicycle")
        x, y = session.document.piece(1).segment.points.xy[0].tolist()
        session = draw_box(session, (20, 20, 200, 200), "unicycle")
        session = add_point(session, 0, "unicycle", (x, y), positive=True)
        session = find(session, model_pool, ("sheep",), threshold=None, presence=None)
        assert numbers(session, "unicycle") == [1, 2, 3]
        for number in (2, 3):
            explained = read_request({"do": "why", "piece": number}).answer(session, model_pool).why
            assert explained["reason"].startswith("You gave this mask its name")

    @pytest.mark.parametrize("query", ["", "fire engine"])
    def test_a_box_is_corrected_by_a_negative_point(self, session, query):
        (engine,) = (piece.segment for piece in session.document.pieces if piece.segment.query == "fire engine")
        left, top, width, height = engine.box_xywh
        boxed = draw_box(session, (left, top, left + width, top + height), query)
        number = boxed.document.last
        before = boxed.document.piece(number).segment
        rows, columns = np.nonzero(before.mask)
        corner = float(columns[0]) + 0.5, float(rows[0]) + 0.5
        after = add_point(boxed, number, "", corner, positive=False).document.piece(number).segment
        assert after.points.labels.tolist() == [0]
        np.testing.assert_array_equal(after.points.boxes_xyxy, before.points.boxes_xyxy)
        assert after.query == before.query
        assert not np.array_equal(after.mask, before.mask)

    @pytest.mark.parametrize("box", [(5, 5, 5, 50), (-50, -50, -2, -2), (400, 10, 500, 60)])
    def test_an_empty_box_is_refused(self, session, box):
        with pytest.raises(Text2SegError, match="too small"):
            draw_box(session, box, "")

    def test_a_slow_search_first_says_how_long_it_takes(self, session, model_pool, monkeypatch):
        monkeypatch.setattr("text2seg.app.segment.requests.seconds_for_everything", lambda _: 40.0)
        asked = read_request({"do": "everything"}).answer(session, model_pool)
        assert (asked.seconds, asked.session.regions) == (40.0, ())
        assert read_request({"do": "everything", "sure": True}).answer(session, model_pool).session.regions

    def test_the_command_and_the_code_find_everything(self, opened, parsed):
        command, code = view_of(pick(opened, 1))["command"], view_of(pick(opened, 1))["python"]
        assert "--everything" in command
        assert parsed(command).automatic == EVERYTHING
        compile(code, "code", "exec")
        assert "seg.everything('scene_0019.jpg', AutomaticSettings(points_per_side=16" in code

    def test_the_command_that_finds_everything_leaves_out_what_only_words_use(
        self, opened, model_pool, demo, parsed, monkeypatch
    ):
        settings = Settings(
            maps=MapSettings(input_size=448),
            points=PointSettings(method="regions"),
            masks=MaskSettings(resolve_overlaps=True, prompt="box"),
            tiles=TileSettings(tile=256, tile_overlap=0.1),
        )
        monkeypatch.setattr(demo, "settings", settings)
        monkeypatch.setattr(demo, "_provenance", {"clip": {"name": "my clip.pt"}, "sam": {"name": "mobile_sam"}})
        session = find(pick(opened, 1), model_pool, ("gryphon",), threshold=0.5, presence=0.3)  # it is not known
        understood = parsed(export.as_command(session))
        assert (understood.everything, understood.automatic) == (True, EVERYTHING)
        assert (understood.model.clip, understood.model.sam) == (None, "mobile_sam")
        assert understood.settings == Settings()

    def test_the_command_that_finds_everything_names_no_graphs(self, opened, parsed, monkeypatch):
        running = {"device": "cpu", "graphs": "folder", "onnx_provider": "cpu"}
        monkeypatch.setattr(export, "_running", lambda models: running)
        by_words = parsed(export.as_command(replace(opened, texts=("sheep",)))).model
        assert (by_words.runtime, str(by_words.graphs), by_words.onnx_provider) == ("onnx", "folder", "cpu")
        everything = parsed(export.as_command(pick(opened, 1))).model
        assert (everything.runtime, everything.graphs, everything.device) == ("torch", None, "cpu")


class TestDesk:
    def test_a_late_answer_does_not_win(self):
        desk, kept = Desk(), []
        slow, _ = desk.begin()
        desk.put(EditSession(asked=("put",)))
        assert desk.finish(slow, lambda: kept.append("late")) is None
        assert (desk.session.asked, kept) == (("put",), [])
        first, _ = desk.begin()
        second, before = desk.begin()
        assert before.asked == ("put",)
        assert desk.finish(second, lambda: EditSession(asked=("second",))).asked == ("second",)
        assert desk.finish(first, EditSession) is None
        assert desk.session.asked == ("second",)

    def test_a_stopped_request_ends_at_the_next_call_of_a_network(self, session, model_pool):
        desk = Desk()
        turn, _ = desk.begin()
        desk.watch(turn, 5)
        assert desk.points == 5
        desk.stop()
        with pytest.raises(StoppedError), watched(partial(desk.watch, turn)):
            find_everything(session)
        turn, _ = desk.begin()
        desk.watch(turn, 0)  # only that one was stopped

    def test_a_request_is_stopped_while_it_waits_in_the_queue(self):
        desk = Desk()
        turn, _ = desk.begin(1)
        desk.stop(2)
        desk.watch(turn, 0)  # the page has not stopped this one
        turn, _ = desk.begin(2)
        with pytest.raises(StoppedError):
            desk.watch(turn, 0)
        desk.stop(1)  # late
        turn, _ = desk.begin(3)
        desk.watch(turn, 0)

    def test_the_page_stops_a_request_that_waits(self, model_pool):
        with gr.Blocks() as page:
            build(model_pool)
        reply, stop = (next(each.fn for each in page.fns.values() if each.name == name) for name in ("reply", "stop"))
        desk = Desk()
        stop(desk, gr.EventData(None, {"turn": 7}))
        ((_, answer, _),) = reply(desk, gr.EventData(None, {"do": "example", "number": 0, "turn": 7}))
        assert (answer["isStopped"], answer["turn"], answer["image"]) == (True, 7, None)
        ((_, answer, _),) = reply(desk, gr.EventData(None, {"do": "example", "number": 0, "turn": 8}))
        assert answer["image"]["name"] == "scene_0019.jpg"

    def test_each_page_gets_its_own(self):
        desk = Desk()
        assert deepcopy(desk) is not desk


class TestKeptSessions:
    def test_a_session_is_found_by_its_token(self, session):
        kept = KeptSessions()
        first = kept.keep(session)
        assert len(first.token) >= 32
        again = kept.keep(replace(first, texts=("sheep",)))
        assert again.token == first.token
        found = kept.find(first.token)
        assert (found.texts, found.token, found.document) == (("sheep",), "", session.document)
        assert kept.find("guess") is kept.find("") is None

    def test_two_pages_with_one_token_go_separate_ways(self, session):
        kept = KeptSessions()
        token = kept.keep(session).token
        one = kept.keep(replace(kept.find(token), texts=("one",)))
        assert one.token != token
        assert kept.find(token).texts == session.texts

    def test_a_session_without_an_image_is_not_kept(self):
        assert KeptSessions().keep(EditSession()).token == ""

    def test_old_sessions_are_dropped(self, session):
        kept = KeptSessions(most=2)
        tokens = [kept.keep(session).token for _ in range(3)]
        assert [kept.find(token) is None for token in tokens] == [True, False, False]
        few = KeptSessions(most_bytes=2 * bytes_of(session))
        tokens = [few.keep(session).token for _ in range(3)]
        assert [few.find(token) is None for token in tokens] == [True, False, False]
        tiny = KeptSessions(most_bytes=1)
        assert tiny.find(tiny.keep(session).token)  # the current one stays
        late = KeptSessions(seconds=-1)
        assert late.find(late.keep(session).token) is None

    def test_the_size_counts_each_mask_of_the_history_once(self, session):
        opened = bytes_of(replace(session, history=History()))
        assert opened == session.image_session.image.pixels.nbytes
        segments = session.document.segments()
        found = sum(each.mask.nbytes + each.candidates.logits.nbytes for each in segments)
        assert bytes_of(session) == opened + found
        number = session.document.pieces[0].number
        accepted = replace(session, history=session.history.step(session.document.accepted(number)))
        assert bytes_of(accepted) == bytes_of(session)
        x, y = segments[0].points.xy[0].tolist()
        corrected = add_point(session, number, "", (x + 1, y + 1), positive=True)
        (new,) = (piece.segment for piece in corrected.document.pieces if piece.by_hand)
        assert bytes_of(corrected) == bytes_of(session) + new.mask.nbytes + new.candidates.logits.nbytes
        deleted = replace(corrected, history=corrected.history.step(corrected.document.deleted(number)))
        assert bytes_of(deleted) == bytes_of(corrected)


@pytest.fixture
def parsed(monkeypatch):
    """What the command line of text2seg understands of a line, without doing it."""
    understood: list[SegmentCommand] = []
    monkeypatch.setattr(SegmentCommand, "run", lambda self: understood.append(self) or 0)

    def parse(line: str) -> SegmentCommand:
        *remarks, last = line.splitlines()
        assert all(remark.startswith("# ") for remark in remarks)
        program, *words = shlex.split(last)
        assert program == "text2seg"
        assert main(words) == 0
        return understood.pop()

    return parse


@pytest.fixture
def at_home(monkeypatch):
    """A machine on which `auto` means the CPU in fp32, as the demo model of the tests runs."""
    monkeypatch.setattr(export, "choose_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(export, "choose_precision", lambda device: FULL)


@pytest.mark.usefixtures("at_home")
class TestCommand:
    def test_the_command_has_no_default_flags(self, session):
        assert export.as_command(session) == (
            "text2seg segment scene_0019.jpg --query sheep --query 'fire engine' --query koala --model demo"
        )
        assert "Settings" not in export.as_python(session)

    @pytest.mark.parametrize("threshold", [None, 0.65])
    def test_the_command_line_understands_it(self, session, demo, threshold, parsed, monkeypatch):
        texts = ("person's +bench|'x", "--dog", "$(rm) -cat `a`", 'a "b"')
        settings = Settings(
            masks=MaskSettings(resolve_overlaps=True, prompt="box"), tiles=TileSettings(tile=256, tile_overlap=0.1)
        )
        monkeypatch.setattr(demo, "settings", settings)
        image = replace(session.image_session.image, file_name="-it's a photo.jpg")
        image_session = demo.open(image)
        session = replace(session, image_session=image_session, texts=texts, threshold=threshold, presence=0.25)
        understood = parsed(export.as_command(session))
        assert understood.query == texts
        assert understood.settings == session.settings
        assert understood.settings.presence == PresenceSettings(0.25)
        assert [path.name for path in understood.images] == ["-it's a photo.jpg"]

    @pytest.mark.parametrize("method", ["auto", "reference", "regions"])
    @pytest.mark.parametrize("tile", [0, 256])
    def test_the_command_has_only_flags_with_an_effect(self, session, demo, method, tile, parsed, monkeypatch):
        settings = Settings(
            maps=MapSettings(region_features="patches"),
            points=PointSettings(method=method, floor=0.1),
            masks=MaskSettings(choice="sam", overlap=0.6),
            tiles=TileSettings(tile=tile, tile_overlap=0.1),
        )
        monkeypatch.setattr(demo, "settings", settings)
        understood = parsed(export.as_command(replace(session, threshold=0.5, presence=0.3))).settings
        assert (understood.points.method, understood.tiles.tile) == (method, tile)
        assert understood.points.threshold == (PointSettings().threshold if method == "regions" else 0.5)
        assert understood.presence == PresenceSettings(0.3)

    def test_the_python_gives_the_same_masks(self, session, model_pool, tmp_path, monkeypatch):
        # Of things that are there: where a map is noise, the masks depend on the precision.
        session = find(session, model_pool, session.texts, threshold=0.7, presence=0.4)
        PillowImage.fromarray(session.image_session.image.pixels).save(tmp_path / "scene_0019.png")
        monkeypatch.chdir(tmp_path)
        image = load_image("scene_0019.png")
        names: dict = {}
        exec(export.as_python(replace(session, image_session=model_pool.session(image))), names)
        result = names["result"]
        assert len(result.segments) == len(session.document.pieces)
        for one, piece in zip(result.segments, session.document.pieces, strict=True):
            assert one.query == piece.segment.query
            assert np.mean(one.mask != piece.segment.mask) < 0.01  # precision may be another

    def test_manual_edits_are_mentioned(self, session):
        session = add_point(session, numbers(session)[0], "", (5.0, 5.0), positive=False)
        session = replace(session, history=session.history.step(session.document.deleted(numbers(session)[1])))
        first, last = export.as_command(session).splitlines()
        assert first == "# Without manual edits: 1 added or edited, 1 deleted."
        assert last.startswith("text2seg segment")
        compile(export.as_python(session), "copied", "exec")

    def test_segments_accepted_under_other_settings_are_mentioned(self, session, model_pool):
        number = numbers(session, "fire engine")[0]
        session = replace(session, history=session.history.step(session.document.accepted(number)))
        assert not export.as_command(
            find(session, model_pool, session.texts, threshold=None, presence=None)
        ).startswith("#")
        other = find(session, model_pool, session.texts, threshold=0.95, presence=None)
        assert "# Without manual edits: 1 accepted before the settings changed." in export.as_command(other)

    def test_models_other_than_the_demo_are_named(self, session, demo, monkeypatch):
        monkeypatch.setattr(demo, "_provenance", {"clip": {"name": "ViT-B/16"}, "sam": {"name": "vit_h"}})
        assert "--model huge" in export.as_command(session)
        assert 'Text2Seg.load("huge")' in export.as_python(session)
        monkeypatch.setattr(demo, "_provenance", {"clip": {"name": "my clip.pt"}, "sam": {"name": "demo"}})
        assert "--clip 'my clip.pt' --sam demo" in export.as_command(session)

    @pytest.mark.parametrize(
        ("clip", "sam"),
        [
            ("openclip:ViT-B-16/laion2b_s34b_b88k", "sam2.1_hiera_tiny"),
            ("openclip:my models/siglip", "mobile_sam"),
            ("demo", "facebook/sam2.1-hiera-small"),
        ],
    )
    def test_any_pair_of_names_is_parsed(self, session, demo, clip, sam, parsed, monkeypatch):
        monkeypatch.setattr(demo, "_provenance", {"clip": {"name": clip}, "sam": {"name": sam}})
        assert parsed(export.as_command(session)).model == ModelSettings(clip=clip, sam=sam)
        assert f"Text2Seg.load(clip={clip!r}, sam={sam!r})" in export.as_python(session)

    def test_what_auto_would_not_choose_is_named(self, session, demo, parsed, monkeypatch):
        monkeypatch.setattr(export, "choose_device", lambda: torch.device("cuda:0"))
        monkeypatch.setattr(export, "choose_precision", lambda device: Precision(torch.bfloat16, "fast"))
        monkeypatch.setattr(demo.sam, "compiled", True)
        wanted = ModelSettings(model="demo", device="cpu", precision="fp32", compile=True)
        assert parsed(export.as_command(session)).model == wanted
        assert "Text2Seg.load(\"demo\", device='cpu', precision='fp32', compile=True)" in export.as_python(session)


class TestUndoOfASearch:
    def test_the_first_search_in_an_image_is_not_undone(self, session, model_pool):
        opened = open_image(model_pool, session.opened.image)
        searched = find(opened, model_pool, ("sheep",), threshold=None, presence=None)
        assert not view_of(searched)["canUndo"]
        again = find(searched, model_pool, ("koala",), threshold=None, presence=None)
        back = read_request({"do": "undo"}).answer(again, model_pool).session
        assert back.document is searched.document

    def test_a_search_is_one_step_and_keeps_the_steps_before(self, session, model_pool):
        number = numbers(session, "fire engine")[0]
        accepted = replace(session, history=session.history.step(session.document.accepted(number)))
        searched = find(accepted, model_pool, ("sheep",), threshold=None, presence=None)
        assert numbers(searched, "fire engine") == []
        undo, redo = (read_request({"do": each}) for each in ("undo", "redo"))
        back = undo.answer(searched, model_pool).session
        assert back.document is accepted.document
        assert view_of(back)["texts"] == ["sheep", "fire engine", "koala"]
        assert back.found is accepted.found
        assert undo.answer(back, model_pool).session.document is session.document
        again = redo.answer(back, model_pool).session
        assert (again.document, again.texts) == (searched.document, ("sheep",))

    def test_a_hand_made_mask_comes_back_with_its_word(self, session, model_pool):
        by_hand = add_point(session, 0, "koala", (20.0, 20.0), positive=True)
        for texts in (("sheep",), ()):
            without = find(by_hand, model_pool, texts, threshold=None, presence=None)
            assert not any(piece.by_hand for piece in without.document.pieces)
            back = read_request({"do": "undo"}).answer(without, model_pool).session
            assert back.document is by_hand.document
            assert back.texts == session.texts

    def test_a_slider_that_moves_is_one_step_until_the_next_edit(self, session, model_pool):
        moved = session
        for threshold in (0.7, 0.6, 0.5):
            moved = find(moved, model_pool, session.texts, threshold=threshold, presence=None)
        assert len(moved.history.past) == len(session.history.past) + 1
        back = read_request({"do": "undo"}).answer(moved, model_pool).session
        assert back.document is session.document
        assert view_of(back)["given"] == {"threshold": None, "presence": None}
        edited = replace(moved, history=moved.history.step(moved.document.deleted(numbers(moved)[0])))
        again = find(edited, model_pool, session.texts, threshold=0.7, presence=None)
        assert again.history.undo().present is edited.document

    def test_an_example_begins_without_steps(self, session):
        assert not view_of(session)["canUndo"]
