"""Vectors of an image, and the index that stores them, with random vectors."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import builders
import numpy as np
import pytest
import torch
from closeness import about, assert_close
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from text2seg.errors import SettingsError
from text2seg.records import Failure
from text2seg.search.fill import index_key, index_path
from text2seg.search.index import VECTORS, Hit, VectorIndex, image_vectors, import_faiss, write_results

KEY = {"clip": "one"}


def unit(*shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def tokens(patches):
    features = torch.from_numpy(np.concatenate([np.zeros_like(patches[:1]), patches]))
    return SimpleNamespace(features=features)


def distances(a, b):
    return np.sqrt(np.clip(2 - 2 * a @ b.T, 0, None))


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 1000))
def test_image_vectors_cover_patches_within_twice_the_optimal_radius(count, kept, seed):
    patches = unit(count, 8, seed=seed)
    vectors = image_vectors(tokens(patches), kept)
    assert vectors.shape == (min(count, kept), 8)
    assert {row.tobytes() for row in vectors} <= {row.tobytes() for row in patches}
    radius = distances(patches, vectors).min(1).max()
    # With the patch that is left farthest these are one more than there are centres, so in any cover two of them share
    # one, and its radius is at least half of their distance.
    between = distances(vectors, vectors)[np.triu_indices(len(vectors), 1)]
    assert radius <= between.min(initial=2) + 1e-3


def test_a_small_object_on_a_plain_background_is_kept():
    background, small = unit(2, 32)
    patches = np.stack([background + 0.02 * noise for noise in unit(576, 32, seed=1)])
    patches[301] = small
    patches /= np.linalg.norm(patches, axis=1, keepdims=True)
    vectors = image_vectors(tokens(patches))
    assert (vectors @ small).max() == about(1, terms=32)
    assert len(vectors) == VECTORS


def filled(path, count=5):
    index = VectorIndex.open(path, KEY)
    for number in range(count):
        index.put(f"{number}.png", (number, 10 + number), (24, 32), unit(VECTORS, 8, seed=number))
    return index


def test_a_saved_index_is_read_back(tmp_path):
    index = filled(tmp_path / "one.index")
    index.put("2.png", (9, 9), (3, 4), unit(VECTORS, 8, seed=77))
    assert index.drop(["4.png", "unknown.png"]) == 1
    index.save()
    again = VectorIndex.open(tmp_path / "one.index", KEY)
    assert again.files() == ["0.png", "1.png", "3.png", "2.png"]
    assert again.entry("2.png").stamp == (9, 9)
    assert again.entry("2.png").hw == (3, 4)
    assert again.entry("4.png") is None
    found = again.vectors(["2.png", "0.png"])
    assert_close(found, [unit(VECTORS, 8, seed=77), unit(VECTORS, 8, seed=0)], terms=1, dtype=torch.float16)
    again.put("new.png", (1, 1), (1, 1), unit(VECTORS, 8, seed=5))
    np.testing.assert_array_equal(again.vectors(["0.png"]), found[1:])


def test_nearest_ranks_the_given_images_by_their_nearest_vector(tmp_path):
    index = filled(tmp_path / "one.index")
    wanted = unit(VECTORS, 8, seed=3)[7]
    every = [f"{number}.png" for number in range(5)]
    assert index.nearest(wanted, 1, every) == ["3.png"]
    assert set(index.nearest(wanted, 1000, every)) == set(every)
    exact = sorted(every, key=lambda file: -(index.vectors([file]) @ wanted).max())
    assert index.nearest(wanted, 1000, every) == exact
    assert index.nearest(wanted, 1000, every[:2]) == [file for file in exact if file in every[:2]]
    assert index.nearest(wanted, 3, []) == []


def test_an_empty_index_can_be_saved_and_queried(tmp_path):
    index = filled(tmp_path / "one.index", 1)
    index.drop(["0.png"])
    index.save()
    again = VectorIndex.open(tmp_path / "one.index", KEY)
    assert len(again) == 0
    assert again.vectors([]).size == 0
    assert again.nearest(unit(8), 3, ["0.png"]) == []


@pytest.mark.parametrize("harm", ["cut", "flip", "text", "key"])
def test_a_damaged_index_or_one_of_other_weights_is_rebuilt(tmp_path, harm, caplog):
    path = tmp_path / "one.index"
    filled(path).save()
    content = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(content[:-40])
    elif harm == "flip":
        content[-40] ^= 1
        path.write_bytes(content)
    elif harm == "text":
        path.write_text("[1, 2]\n", encoding="utf-8")
    assert len(VectorIndex.open(path, KEY if harm != "key" else {"clip": "other"})) == 0
    assert "begun anew" in caplog.text


def test_an_index_of_another_kind_is_not_read_by_faiss(tmp_path, monkeypatch, caplog):
    """Some kinds of FAISS indexes name a file, and FAISS opens that file when it reads the index."""
    faiss = import_faiss()
    index = VectorIndex(tmp_path / "x", {})
    index.put("a.png", (1, 2), (3, 4), np.ones((1, 8), np.float32))
    index._vectors = faiss.IndexIDMap2(faiss.IndexFlatIP(8))
    index.save()
    monkeypatch.setattr(faiss, "deserialize_index", lambda _: pytest.fail("it was read"))
    assert len(VectorIndex.open(tmp_path / "x", {})) == 0
    assert "holds another kind of index" in caplog.text


def test_without_faiss_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SettingsError, match=r'pip install "text2seg\[search\]"'):
        VectorIndex.open(tmp_path / "one.index", KEY)


def test_models_without_a_weights_hash_have_no_index(demo):
    assert len(index_key(demo)["clip"]) == 64
    unknown = SimpleNamespace(provenance=lambda: {}, clip=demo.clip, settings=demo.settings)
    with pytest.raises(SettingsError, match="hash of their weights"):
        index_key(unknown)


def test_index_files_differ_by_folder_and_key(tmp_path):
    paths = {index_path(tmp_path / a, {"clip": b}, tmp_path) for a in "ab" for b in "cd"}
    assert len(paths) == 4
    assert {path.parent for path in paths} == {tmp_path}


def test_results_are_written_as_json_and_contact_sheets(tmp_path):
    (tmp_path / "in").mkdir()
    PillowImage.fromarray(builders.pixels()).save(tmp_path / "in" / "ä.png")
    found = {
        "red car": [Hit("ä.png", 0.98765, 0.5), Hit("gone.png", 0.5, 0.25)],
        "../x": [Hit("gone.png", 0.1, 0.1)],
        "empty": [],
    }
    failures = [Failure("bad.png", "read", "bad.png: no image")]
    written = write_results(tmp_path / "out", tmp_path / "in", found, failures)
    assert [path.name for path in written] == ["search.json", "01-red-car.png"]
    content = json.loads(written[0].read_text(encoding="utf-8"))
    assert content["queries"]["red car"][0] == {"file": "ä.png", "presence": 0.9877, "cosine": 0.5}
    assert content["queries"]["empty"] == []
    assert content["failures"] == [{"file_name": "bad.png", "stage": "read", "message": "bad.png: no image"}]
    with PillowImage.open(written[1]) as sheet:
        assert sheet.width > 300
