"""The cache of text features on disk: keys, damage, concurrent writers, and its effect on results."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading

import numpy as np
import pytest
import torch
from closeness import DEMO_NETWORK, assert_close

from text2seg import Text2Seg
from text2seg.clip.text import TextCache, TextEncoder

TEMPLATES = ("a photo of a {}.", "the {}.")
ENCODER = ("hash", "fp32", "cpu")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "texts.sqlite"


@pytest.fixture
def counted(demo, monkeypatch):
    """The demo's text tower, and the queries that it was asked to encode."""
    asked: list[str] = []
    encode = TextEncoder._encode

    def note(self, queries, templates):
        asked.extend(queries)
        return encode(self, queries, templates)

    monkeypatch.setattr(TextEncoder, "_encode", note)
    return demo.clip.model, asked


def features(value: float) -> np.ndarray:
    return np.full(8, value, np.float32) / 3


def test_written_features_are_read_bit_by_bit(path):
    TextCache(path, ENCODER).write({"dog": features(1), "": features(2)}, TEMPLATES)
    found = TextCache(path, ENCODER).read(["dog", "cat", ""], TEMPLATES)
    assert found.keys() == {"dog", ""}
    np.testing.assert_array_equal(found["dog"], features(1))
    np.testing.assert_array_equal(found[""], features(2))


@pytest.mark.parametrize("encoder", [("other", "fp32", "cpu"), ("hash", "bf16", "cpu"), ("hash", "fp32", "cuda")])
def test_features_of_another_encoder_are_not_read(path, encoder):
    TextCache(path, ENCODER).write({"dog": features(1)}, TEMPLATES)
    assert TextCache(path, encoder).read(["dog"], TEMPLATES) == {}


def test_features_with_other_templates_are_not_read(path):
    cache = TextCache(path, ENCODER)
    cache.write({"dog": features(1)}, TEMPLATES)
    assert cache.read(["dog"], TEMPLATES[::-1]) == {}
    assert cache.read(["dog"], TEMPLATES[:1]) == {}


def test_the_oldest_features_are_removed_first(path):
    cache = TextCache(path, ENCODER, max_texts=3)
    for number in range(5):
        cache.write({str(number): features(number)}, TEMPLATES)
    cache.write({"3": features(9)}, TEMPLATES)
    assert cache.read(map(str, range(5)), TEMPLATES).keys() == {"3", "4"}


@pytest.mark.parametrize("content", [b"", b"no database at all " * 100])
def test_a_damaged_file_is_replaced(path, content, caplog):
    path.parent.mkdir()
    path.write_bytes(content)
    cache = TextCache(path, ENCODER)
    with caplog.at_level(logging.INFO):
        assert cache.read(["dog"], TEMPLATES) == {}
    assert ("damaged and begun anew" in caplog.text) == bool(content)
    cache.write({"dog": features(1)}, TEMPLATES)
    assert cache.read(["dog"], TEMPLATES).keys() == {"dog"}


def test_features_with_a_flipped_bit_are_not_read(path):
    cache = TextCache(path, ENCODER)
    cache.write({"dog": features(1)}, TEMPLATES)
    with sqlite3.connect(path) as file:
        (stored,) = file.execute("SELECT features FROM texts").fetchone()
        file.execute("UPDATE texts SET features = ?", [stored[:-1] + bytes([stored[-1] ^ 1])])
    file.close()
    assert cache.read(["dog"], TEMPLATES) == {}
    cache.write({"dog": features(2)}, TEMPLATES)
    np.testing.assert_array_equal(cache.read(["dog"], TEMPLATES)["dog"], features(2))


def test_without_a_writable_folder_features_are_not_cached(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = TextCache(tmp_path / "file" / "texts.sqlite", ENCODER)
    with caplog.at_level(logging.INFO):
        cache.write({"dog": features(1)}, TEMPLATES)
    assert "text features are not kept" in caplog.text
    assert cache.read(["dog"], TEMPLATES) == {}


def test_with_a_locked_file_features_are_not_cached(path, monkeypatch, caplog):
    monkeypatch.setattr("text2seg.clip.text.WAIT_SECONDS", 0.01)
    cache = TextCache(path, ENCODER)
    cache.write({"dog": features(1)}, TEMPLATES)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    with caplog.at_level(logging.INFO):
        cache.write({"cat": features(1)}, TEMPLATES)
        assert cache.read(["dog"], TEMPLATES) == {}
    other.close()
    assert "locked" in caplog.text
    assert cache.read(["dog", "cat"], TEMPLATES).keys() == {"dog"}


def test_several_threads_write_at_once(path):
    caches = [TextCache(path, ENCODER) for _ in range(4)]

    def work(cache, first):
        for number in range(first, first + 5):
            cache.write({str(number): features(number)}, TEMPLATES)

    threads = [threading.Thread(target=work, args=(cache, 5 * n)) for n, cache in enumerate(caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = caches[0].read(map(str, range(20)), TEMPLATES)
    assert len(found) == 20
    np.testing.assert_array_equal(found["7"], features(7))


def test_each_query_is_encoded_once_for_all_encoders(counted, path):
    model, asked = counted
    with torch.inference_mode():
        first = TextEncoder(model, TextCache(path, ENCODER))(("sheep", "koala", "sheep"), TEMPLATES)
        assert asked == ["sheep", "koala"]
        again = TextEncoder(model, TextCache(path, ENCODER))
        assert torch.equal(again(("koala", "sheep"), TEMPLATES), first[[1, 0]])
        assert asked == ["sheep", "koala"]
        again(("bomb", "koala"), TEMPLATES)
    assert asked == ["sheep", "koala", "bomb"]


@pytest.mark.parametrize("count", [1, 3])
def test_features_do_not_depend_on_the_other_queries_of_a_batch(demo, count):
    """With one template many queries share a batch, and the longest one determines its length."""
    queries, templates = ("sheep", "a fire engine beside a very long wall", ""), TEMPLATES[:1] * count
    with torch.inference_mode():
        together = TextEncoder(demo.clip.model)(queries, templates)
        alone = [TextEncoder(demo.clip.model)((query,), templates)[0] for query in queries]
    assert_close(torch.stack(alone), together, terms=DEMO_NETWORK)


def test_a_truncated_query_is_logged_also_when_cached(counted, path, caplog):
    model, _ = counted
    for _ in range(2):
        with torch.inference_mode():
            TextEncoder(model, TextCache(path, ENCODER))(("sheep " * 100,), TEMPLATES)
    assert sum("too long" in message for message in caplog.messages) == 2


def test_the_environment_sets_the_folder_or_turns_the_cache_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXT2SEG_TEXT_CACHE", "off")
    assert TextCache.of_user(ENCODER) is None
    monkeypatch.setenv("TEXT2SEG_TEXT_CACHE", str(tmp_path))
    cache = TextCache.of_user(ENCODER)
    assert cache is not None
    assert cache.path == tmp_path / "texts.sqlite"


def test_loading_a_pair_uses_the_cache_and_gives_the_same_features(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXT2SEG_TEXT_CACHE", os.fspath(tmp_path))
    fresh = Text2Seg.load("demo", device="cpu", precision="fp32").clip.encode_texts(["sheep"])
    assert (tmp_path / "texts.sqlite").is_file()
    monkeypatch.setattr(TextEncoder, "_encode", lambda *_: pytest.fail("encoded again"))
    kept = Text2Seg.load("demo", device="cpu", precision="fp32").clip.encode_texts(["sheep"])
    assert torch.equal(kept, fresh)


@pytest.mark.parametrize("templates", [("a photo of a {}.",), ("{}", "a {} in an image.", "two {}s.")])
def test_features_are_bitwise_equal_in_every_combination_of_queries(demo, templates):
    """Otherwise features cached by one job would change the bytes that another job writes."""
    names = list(demo.closed_vocabulary.names)[:40]
    together = TextEncoder(demo.clip.model)(names, templates)
    for some in ([3], [7, 3, 21], list(range(39, 0, -2))):
        alone = TextEncoder(demo.clip.model)([names[n] for n in some], templates)
        assert torch.equal(alone, together[some])
