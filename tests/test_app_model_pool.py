"""Sessions shared by many visitors: nothing is computed twice, mixed up or kept beyond the limit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from app_builders import SCENE, CountingModels, plain

from text2seg.app.model_pool import MEGABYTE, ModelPool, digest
from text2seg.app.settings import AppSettings
from text2seg.config import Settings, TileSettings
from text2seg.errors import SettingsError, StoppedError
from text2seg.io.images import load_image
from text2seg.runtime import watched


def model_pool(models=None, **settings) -> ModelPool:
    return ModelPool(models or CountingModels(), AppSettings(**settings))


def presence(session, query="thing") -> float:
    return float(session.segment(query).maps.presence[0])


def test_the_same_image_is_encoded_once_under_any_name():
    models = CountingModels()
    shop = model_pool(models)
    for name in ("one.png", "another.png"):
        assert shop.session(plain(7, name=name)).segment("thing").image.file_name == name
    assert models.encoded == [7]


def test_concurrent_visitors_share_one_encoding():
    models = CountingModels(seconds=0.02)
    shop = model_pool(models, workers=4)
    start = threading.Barrier(8)

    def visit(number: int):
        session = shop.session(plain(9, name=f"{number}.png"))
        start.wait()
        return session.segment("thing").image.file_name

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(visit, range(8))) == [f"{number}.png" for number in range(8)]
    assert models.encoded == [9]


@pytest.mark.parametrize("busy", ["with all turns", "with the same image"])
def test_a_wait_for_the_models_can_be_stopped(busy):
    shop = model_pool(workers=1 if busy == "with all turns" else 2)
    session = shop.session(plain(7))
    is_busy, done = threading.Event(), threading.Event()

    def work():
        with shop.turn() if busy == "with all turns" else session._session():
            is_busy.set()
            done.wait()

    def stop(point_sets):
        raise StoppedError("stopped")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work)
        is_busy.wait()
        try:
            with watched(stop), pytest.raises(StoppedError):
                session.segment("thing")
        finally:
            done.set()
    assert presence(session) == 7  # the lock and the turn are free again


def test_many_visitors_with_many_images_get_their_own_answers():
    models = CountingModels(floats=50_000)
    shop = model_pool(models, workers=3, cache_mb=1)  # room for five of them, so they come and go all the time

    def visit(number: int) -> float:
        return presence(shop.session(plain(number % 20)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(visit, range(200))) == [number % 20 for number in range(200)]
    assert models.busiest <= 3
    assert shop.bytes_kept <= MEGABYTE


def test_the_hash_of_an_image_includes_its_shape():
    assert digest(np.zeros((4, 6, 3), np.uint8)) != digest(np.zeros((6, 4, 3), np.uint8))
    assert digest(plain(1).pixels) == digest(plain(1).pixels.copy(order="F"))


def test_the_least_recently_used_session_is_dropped_first():
    models = CountingModels(floats=100_000)  # 400,000 bytes each
    shop = model_pool(models, cache_mb=1)
    first, second, third = (shop.session(plain(value)) for value in (1, 2, 3))
    for session in (first, second, first, third):
        session.segment("thing")
    first.segment("thing")
    assert models.encoded == [1, 2, 3]
    assert presence(second) == 2
    assert models.encoded == [1, 2, 3, 2]


def test_an_image_larger_than_the_cache_is_served_but_not_kept():
    models = CountingModels(floats=1000)
    shop = model_pool(models, cache_mb=0)
    session = shop.session(plain(5))
    assert [presence(session), presence(session)] == [5, 5]
    assert models.encoded == [5, 5]
    assert shop.bytes_kept == 0


def test_an_error_blocks_nobody():
    shop = model_pool(workers=1)
    session = shop.session(plain(3))
    with pytest.raises(RuntimeError, match="broken"):
        session.segment("broken")
    assert presence(session) == 3


def test_models_that_cannot_segment_are_logged_at_start(demo, monkeypatch, caplog):
    def refuse(pixels, architecture):
        raise SettingsError("the graphs are for another size of input")

    monkeypatch.setattr(demo.clip, "image_network", refuse)
    model_pool(demo).warm_up()
    assert "these models cannot segment: the graphs are for another size of input" in caplog.text


def test_switched_models_serve_new_sessions_only():
    old, new = CountingModels(), CountingModels()
    shop = model_pool(old)
    before = shop.session(plain(4))
    before.segment("thing")
    shop.use(new)
    assert shop.models is new
    assert shop.bytes_kept == 0
    after = shop.session(plain(4))
    after.segment("thing")
    before.segment("thing")
    assert (old.encoded, new.encoded) == ([4, 4], [4])


@pytest.mark.parametrize("tile", [0, 200])
def test_the_bytes_of_a_real_session_are_all_counted(demo, tile):
    session = demo.open(load_image(SCENE))
    pixels = session.image.pixels.nbytes
    assert session.nbytes == pixels
    session.segment("sheep", Settings(tiles=TileSettings(tile=tile)))
    tiles = list(session._views.values())
    assert len(tiles) == (4 if tile else 0)
    held = [session, *tiles]
    tensors = [tokens.features for each in held for tokens in each.tokens.values()]
    tensors += [each.embedding.features for each in held if each.embedding is not None]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    images = sum(each.image.pixels.nbytes for each in held)
    assert session.nbytes == pytest.approx(sum(storages.values()) + images, rel=0.02)


def test_a_shared_session_equals_a_session(demo):
    image = load_image(SCENE)
    shared, own = model_pool(demo).session(image), demo.open(image)
    ours, theirs = shared.segment("sheep"), own.segment("sheep")
    assert [segment.box_xywh for segment in ours.segments] == [segment.box_xywh for segment in theirs.segments]
    segment = ours.segments[0]
    np.testing.assert_array_equal(shared.candidate_mask(segment, 0), own.candidate_mask(segment, 0))
    np.testing.assert_array_equal(
        shared.segment_points("sheep", segment.points).mask, own.segment_points("sheep", segment.points).mask
    )
