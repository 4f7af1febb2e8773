"""The Segment tab without a browser: documents, outlines, allowed requests."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from app_builders import CountingModels
from builders import HW, box_mask, points, ring_mask, segment

from text2seg.app.checks import visitors_folder
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.document import MOST_STEPS, Document, History, outline_of, parts_of, with_point
from text2seg.app.segment.requests import Point, read_request
from text2seg.app.segment.session import EditSession
from text2seg.app.settings import AppSettings
from text2seg.errors import ImageError, Text2SegError

LEFT, RIGHT = box_mask(left=2, width=8), box_mask(left=20, width=8)


def document(*segments):
    return Document().found(segments or (segment(mask=LEFT), segment(mask=RIGHT)), ["ball", "bat"])


class TestDocument:
    def test_pieces_are_numbered_in_the_order_of_the_queries(self):
        pieces = document(segment("bat"), segment("ball")).pieces
        assert [(piece.number, piece.segment.query) for piece in pieces] == [(2, "ball"), (1, "bat")]

    def test_a_new_search_replaces_untouched_segments(self):
        again = document().found([segment(mask=box_mask(left=12, width=8))], ["ball"])
        assert [piece.number for piece in again.pieces] == [3]
        assert again.last == 3

    def test_a_segment_that_is_found_again_has_its_number(self):
        """So that an edit which was asked for during the search still finds it."""
        longer = box_mask(left=20, width=9)
        again = document().found([segment(mask=longer), segment(mask=LEFT), segment("bat", mask=LEFT)], ["ball", "bat"])
        assert [(piece.number, piece.segment.box_xywh[0]) for piece in again.pieces] == [(2, 20), (1, 2), (3, 2)]
        assert again.piece(2).segment.area == longer.sum()
        assert again.last == 3

    def test_a_found_segment_beside_one_made_by_hand_stays_in_a_new_search(self):
        part = box_mask(left=2, width=6)
        drawn = document(segment(mask=LEFT)).added(segment(mask=part))
        again = drawn.found([segment(mask=box_mask(left=2, width=9))], ["ball"])
        assert [(piece.number, piece.by_hand) for piece in again.pieces] == [(1, False), (2, True)]
        drawn_first = Document().added(segment(mask=part))
        assert [piece.number for piece in drawn_first.found([segment(mask=LEFT)], ["ball"]).pieces] == [1]

    def test_two_segments_that_show_the_same_as_one_before_get_two_numbers(self):
        both = [segment(mask=LEFT), segment(mask=box_mask(left=3, width=8))]
        assert [piece.number for piece in document(segment(mask=LEFT)).found(both, ["ball"]).pieces] == [1, 2]

    def test_a_new_search_keeps_accepted_segments_without_duplicates(self):
        accepted = document().accepted(1)
        again = accepted.found([segment(mask=LEFT), segment(mask=RIGHT)], ["ball"])
        assert [(piece.number, piece.accepted) for piece in again.pieces] == [(1, True), (2, False)]

    def test_a_new_search_changes_no_order_beside_accepted_segments(self):
        again = document().accepted(2).found([segment(mask=LEFT), segment(mask=RIGHT)], ["ball"])
        assert [(piece.number, piece.accepted) for piece in again.pieces] == [(1, False), (2, True)]

    def test_a_new_search_does_not_restore_deleted_segments(self):
        again = document().deleted(2).found([segment(mask=LEFT), segment(mask=RIGHT)], ["ball"])
        assert [piece.segment.box_xywh[0] for piece in again.pieces] == [2]

    def test_a_new_search_does_not_restore_what_a_changed_segment_was(self):
        """Also if the mask has become another one, or was split into two halves."""
        moved = document().corrected(1, segment(mask=box_mask(left=20, width=10)))
        assert [piece.number for piece in moved.found([segment(mask=LEFT)], ["ball"]).pieces] == [1]
        both = segment(mask=LEFT | box_mask(left=20, width=10))
        halves = Document().found([both], ["ball"]).split(1)
        assert [piece.number for piece in halves.found([both], ["ball"]).pieces] == [1, 2]

    def test_edited_segments_are_removed_with_their_query(self):
        assert document().accepted(1).found([], ["bat"]).pieces == ()

    def test_an_edit_keeps_number_and_place_but_not_acceptance(self):
        corrected = document().accepted(1).corrected(1, segment(mask=RIGHT))
        assert [piece.number for piece in corrected.pieces] == [1, 2]
        assert corrected.piece(1).by_hand
        assert not corrected.piece(1).accepted

    def test_accepting_twice_undoes_it(self):
        assert not document().accepted(1).accepted(1).piece(1).accepted

    def test_splitting_gives_one_segment_for_each_part(self):
        both = segment(mask=LEFT | box_mask(left=20, width=10), sam_score=0.7)
        both = replace(both, points=points((4.5, 5.5, 1, 0.9), (1.0, 20.0, 0, 0.1)))
        split = document(both).split(1)
        assert [piece.number for piece in split.pieces] == [1, 2]
        assert [piece.segment.box_xywh[0] for piece in split.pieces] == [20, 2]
        for piece in split.pieces:
            own = piece.segment
            on = own.points.xy[own.points.labels == 1].astype(int)
            assert len(on)
            assert own.mask[on[:, 1], on[:, 0]].all()
            assert (own.points.labels == 0).sum() == 1

    def test_a_segment_with_one_part_cannot_be_split(self):
        with pytest.raises(Text2SegError, match="one part"):
            document().split(1)

    def test_a_deleted_segment_gives_an_error(self):
        with pytest.raises(Text2SegError, match="no longer exists"):
            document().deleted(1).accepted(1)


class TestHistory:
    def test_undo_and_redo(self):
        first = History(document())
        second = first.step(first.present.deleted(1))
        assert second.undo().present is first.present
        assert second.undo().redo().present is second.present
        assert not second.undo().past

    def test_a_new_edit_clears_redo(self):
        start = History(document())
        other = start.step(start.present.deleted(1)).undo().step(start.present.deleted(2))
        assert other.redo() is other

    def test_undo_and_redo_stop_at_the_ends(self):
        history = History(document())
        assert history.undo() is history
        assert history.redo() is history

    def test_history_has_a_limit(self):
        history = History(document())
        for _ in range(MOST_STEPS + 5):
            history = history.step(history.present.accepted(1))
        assert len(history.past) == MOST_STEPS


def drawn(path: str, hw: tuple[int, int]) -> np.ndarray:
    """What an SVG path covers by the even-odd rule."""
    loops = [
        np.rint(np.array([pair.split() for pair in loop.split("L")], float) * 16 - 8).astype(np.int32)
        for loop in path.replace("Z", "").split("M")[1:]
    ]
    mask = np.zeros(hw, np.uint8)
    cv2.fillPoly(mask, loops, 1, shift=4)
    return mask.astype(bool)


class TestOutline:
    @pytest.mark.parametrize("scale", [1, 12, 90])
    def test_outline_covers_the_mask_without_holes(self, scale):
        mask = ring_mask().repeat(scale, 0).repeat(scale, 1)
        outline = outline_of(mask)
        inside = cv2.erode(mask.view(np.uint8), np.ones((5, 5))) > 0
        outside = cv2.dilate(mask.view(np.uint8), np.ones((5, 5))) == 0
        shown = drawn(outline.path, mask.shape)
        assert shown[inside].all()
        assert not shown[outside].any()
        assert outline.area == np.count_nonzero(mask)
        assert len(outline.path) < 3000

    def test_specks_are_not_parts(self):
        mask = np.zeros((100, 120), bool)
        mask[10:50, 10:60] = mask[60:90, 70:110] = mask[1, 1] = True
        parts = parts_of(mask)
        assert len(parts) == 2
        assert np.array_equal(parts[0] | parts[1], mask)
        assert outline_of(mask).parts == 2

    def test_an_empty_mask_has_no_parts(self):
        assert parts_of(np.zeros(HW, bool)) == []
        assert outline_of(np.zeros(HW, bool)).path == ""


class TestPoints:
    def test_a_point_gets_the_similarity_of_its_cell(self):
        scores = np.array([[0, 1, 2, 3], [4, 5, 6, 8]], np.float32)
        more = with_point(points(), (31.9, 0.2), positive=False, scores=scores, hw=HW)
        assert more.labels.tolist() == [1, 0, 0]
        assert more.xy[-1].tolist() == pytest.approx([31.9, 0.2])
        assert more.similarity[-1] == pytest.approx(3 / 8)

    @pytest.mark.parametrize("xy", [(-1, 3), (3, 25), (33, 3)])
    def test_a_point_must_be_inside_the_image(self, xy):
        with pytest.raises(Text2SegError, match="outside"):
            with_point(points(), xy, positive=True, scores=np.zeros((2, 2), np.float32), hw=HW)


class TestAsks:
    def test_a_valid_request_is_read(self):
        ask = read_request({"do": "point", "piece": 3, "x": 1, "y": 2.5, "positive": False})
        assert ask == Point(do="point", piece=3, x=1, y=2.5, positive=False)

    @pytest.mark.parametrize(
        "data",
        [
            None,
            [],
            "look",
            {"do": "format"},
            {"do": "find"},
            {"do": "find", "texts": ["x" * 200_000]},
            {"do": "find", "texts": ["dog"] * 2000},
            {"do": "find", "texts": ["dog"], "threshold": 0},
            {"do": "find", "texts": ["dog"], "presence": "sure"},
            {"do": "point", "piece": 1, "x": float("nan"), "y": 1, "positive": True},
            {"do": "open", "path": 7},
            {"do": "undo", "path": "/etc/passwd"},
            {"do": "export", "kind": "../all", "pieces": []},
            {"do": "example", "number": -1},
        ],
    )
    def test_invalid_requests_are_refused(self, data):
        with pytest.raises(Text2SegError, match="cannot be done"):
            read_request(data)

    @pytest.mark.parametrize(
        "path",
        ["/etc/passwd", "one.jpg", "/tmp/../etc/passwd", "a\0b", pytest.param(str(visitors_folder()), id="the folder")],
    )
    def test_no_file_but_an_upload_is_opened(self, path):
        with pytest.raises(ImageError, match="was not uploaded here"):
            read_request({"do": "open", "path": path}).answer(EditSession(), ModelPool(CountingModels(), AppSettings()))
