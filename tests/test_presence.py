"""Presence against a plain loop over patches and distractors, and with the demo model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import DEMO_NETWORK, assert_close
from torch.nn import functional as F

from text2seg import PresenceSettings, Query, Settings
from text2seg.clip.maps import TOO_CLOSE, PresenceModel, patch_presence
from text2seg.errors import QueryError, SettingsError
from text2seg.queries import parse_query

SCENE = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "new-scenes" / "images" / "scene_0012.jpg"
MODEL = PresenceModel(("cat", "red car", "tree", "sky"), slope=0.7, offset=0.3)


def unit(*shape, seed):
    return F.normalize(torch.from_numpy(np.random.default_rng(seed).normal(size=shape)), dim=-1)


def naive_presence(patches, text, words, others, model, scale):
    mean = others[:-1].mean(0)
    best = 0.0
    for patch in patches:
        rest = 0.0
        for k, other in enumerate(others):
            if k < len(model.distractors):
                cosine = F.cosine_similarity(text - mean, other - mean, dim=0)
                if cosine > TOO_CLOSE or words & set(model.distractors[k].split()):
                    continue
            rest += float((scale * patch @ other).exp())
        best = max(best, float((scale * patch @ text).exp()) / rest)
    return 1 / (1 + np.exp(-(model.slope * np.log(best) + model.offset)))


def test_presence_equals_a_plain_loop():
    patches, texts, others = unit(12, 8, seed=1), unit(3, 8, seed=2), unit(5, 8, seed=3)
    texts[2] = F.normalize(others[3] + 0.05 * texts[2], dim=0)  # "heaven" says nearly what "sky" says
    names = (("dog",), ("car", "motor car"), ("heaven",))
    found = patch_presence(patches, texts, names, others, MODEL, scale=12.0).amax(0)
    for q, words in enumerate(({"dog"}, {"car", "motor"}, {"heaven"})):
        assert float(found[q]) == pytest.approx(naive_presence(patches, texts[q], words, others, MODEL, 12.0), abs=1e-9)


def test_high_scales_do_not_overflow():
    found = patch_presence(
        unit(12, 8, seed=1), unit(2, 8, seed=2), (("a",), ("b",)), unit(5, 8, seed=3), MODEL, scale=100.0
    )
    assert ((found >= 0) & (found <= 1)).all()


def test_present_objects_are_found_and_absent_ones_are_not(demo):
    result = demo.segment(SCENE, ["sheep", "frog", "bus", "pizza"])
    assert [segment.query for segment in result.segments] == ["sheep", "frog"]
    assert (result.maps.presence[:2] > 0.5).all()
    assert (result.maps.presence[2:] < 0.5).all()
    assert result.verdict("bus").startswith("not found (0.0")
    assert result.verdict("bus").endswith(" < 0.50)")
    without = replace(result, segments=())  # CLIP is sure that it is there, and every mask was dropped
    assert without.verdict("sheep") == f"not found (presence {result.maps.presence[0]:.2f}, no sure mask)"


def test_the_presence_threshold_can_be_set_for_all_queries_and_for_one(demo):
    session = demo.open(SCENE)
    everything = session.segment(["sheep", "bus"], Settings(presence=PresenceSettings(0)))
    assert {segment.query for segment in everything.segments} == {"sheep", "bus"}
    assert not session.segment(["sheep", "bus"], Settings(presence=PresenceSettings(1))).segments
    bus = Query("bus", (("bus",),), presence=0.0)
    assert {segment.query for segment in session.segment([bus]).segments} == {"bus"}
    with pytest.raises(SettingsError, match=r"\[0, 1\]"):
        PresenceSettings(1.5)


def test_segments_below_min_area_of_the_query_are_dropped(demo):
    session = demo.open(SCENE)
    area = session.segment("sheep").segments[0].area
    assert session.segment([Query("sheep", (("sheep",),), min_area=area)]).segments
    assert not session.segment([Query("sheep", (("sheep",),), min_area=area + 1)]).segments


def test_the_threshold_of_a_query_is_used_for_its_points(demo):
    session = demo.open(SCENE)
    few, many = (
        len(session.segment([Query("sheep", (("sheep",),), threshold=t)]).segments[0].points) for t in (0.99, 0.5)
    )
    assert few < many


def test_wordings_are_averaged_and_negatives_are_subtracted(demo):
    session = demo.open(SCENE)
    scores = {text: session.segment([text]).maps.scores[0] for text in ("sheep", "cow", "sheep|cow", "sheep -cow")}
    averaged = demo.clip.encode_texts([("sheep", "cow")])[0]
    each = demo.clip.encode_texts(["sheep", "cow"])
    assert_close(averaged, F.normalize(each.mean(0), dim=-1), terms=DEMO_NETWORK)
    assert not np.allclose(scores["sheep|cow"], scores["sheep"])
    assert_close(scores["sheep -cow"], scores["sheep"] - scores["cow"].clip(min=0), terms=DEMO_NETWORK, scale=1)


def test_different_queries_with_one_name_are_refused(demo):
    with pytest.raises(QueryError, match="called 'dog'"):
        demo.check(["dog", Query("dog", (("hound",),))])


def test_hyphens_inside_words_are_not_negatives():
    assert parse_query("four-leaf clover").parts == (("four-leaf clover",),)
    with pytest.raises(QueryError, match="part is empty"):
        parse_query("mouse -")
