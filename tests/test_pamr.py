"""Pixel-adaptive mask refinement against naive loops over pixels and neighbours, and in the pipeline."""

from __future__ import annotations

import statistics
from types import SimpleNamespace

import builders
import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, assert_close
from test_attention import SHORT, tiny_clip

from text2seg.clip.maps import affinity, on_grid, pamr, refine_maps
from text2seg.clip.model import ImageTokens
from text2seg.config import MapSettings, PointSettings, Settings
from text2seg.pipeline import Text2Seg
from text2seg.records import Image


def around(image, row, column, dilation):
    """Values at the eight neighbours; beyond the border the edge goes on."""
    height, width = len(image), len(image[0])
    return [
        image[min(max(row + dilation * down, 0), height - 1)][min(max(column + dilation * right, 0), width - 1)]
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        if (down, right) != (0, 0)
    ]


def naive(guide, maps, iterations, dilations):
    _, height, width = guide.shape
    for _ in range(iterations):
        refined = np.zeros_like(maps)
        for row in range(height):
            for column in range(width):
                weights = naive_weights(guide, row, column, dilations)
                for one, out in zip(maps, refined, strict=True):
                    values = [value for d in dilations for value in around(one, row, column, d)]
                    out[row, column] = sum(w * v for w, v in zip(weights, values, strict=True))
        maps = refined
    return maps


def naive_weights(guide, row, column, dilations):
    nearness = 0.0
    for channel in guide:
        neighbours = [value for d in dilations for value in around(channel, row, column, d)]
        own = float(channel[row][column])
        sigma = statistics.stdev([*neighbours, *[own] * len(dilations)])
        nearness = nearness - np.abs(np.array(neighbours) - own) / (0.1 * sigma + 1e-8) / len(guide)
    weights = np.exp(nearness - nearness.max())
    return weights / weights.sum()


@pytest.mark.parametrize("dilations", [(1,), (1, 3), (8, 16)])
def test_pamr_equals_naive_loops(dilations):
    """The last dilations are larger than the image."""
    rng = np.random.default_rng(0)
    guide, maps = rng.random((3, 5, 7)), rng.random((2, 5, 7))
    found = pamr(torch.from_numpy(guide), torch.from_numpy(maps), iterations=3, dilations=dilations)
    assert_close(found, naive(guide, maps, 3, dilations), terms=3 * 8 * 8, dtype=torch.float64)


def test_the_defaults_are_the_published_values():
    rng = np.random.default_rng(1)
    guide, maps = torch.from_numpy(rng.random((3, 40, 36))), torch.from_numpy(rng.random((1, 40, 36)))
    assert torch.equal(pamr(guide, maps), pamr(guide, maps, iterations=10, dilations=(8, 16)))
    assert affinity(guide, (8, 16)).shape == (16, 40, 36)


def test_weights_sum_to_one_also_in_areas_of_one_colour():
    guide = torch.full((3, 6, 9), 0.3)
    guide[:, :, 7:] = 0.9
    weights = affinity(guide, (1, 2))
    assert_close(weights.sum(0), torch.ones(6, 9), terms=16)
    assert_close(weights[:, :, 0], torch.full((16, 6), 1 / 16), terms=16)
    constant = torch.full((1, 6, 9), 0.7)
    assert_close(pamr(guide, constant), constant, terms=10 * 16)


def test_a_blurred_map_is_refined_to_the_edge_of_an_object():
    pixels = np.full((90, 120, 3), (200, 60, 40), np.uint8)
    thing = builders.box_mask((90, 120), left=36, top=22, width=50, height=44)
    pixels[thing] = (30, 90, 220)
    coarse = torch.from_numpy(thing.reshape(6, 15, 8, 15).mean((1, 3)).astype(np.float32))[None]
    blurred = torch.nn.functional.interpolate(coarse[None], size=(90, 120), mode="bilinear")[0, 0].numpy()
    refined = refine_maps(coarse, Image(pixels))[0].numpy()

    def best_iou(found):
        masks = [found >= threshold for threshold in np.linspace(found.min(), found.max(), 50)]
        return max(np.count_nonzero(mask & thing) / np.count_nonzero(mask | thing) for mask in masks)

    assert refined.shape == (90, 120)
    assert best_iou(blurred) < 0.88
    assert best_iou(refined) > 0.98


def test_the_working_resolution_is_that_of_the_image_with_at_most_448_pixels():
    coarse = torch.rand(2, 4, 4)
    assert refine_maps(coarse, Image(builders.pixels((30, 50)))).shape == (2, 30, 50)
    assert refine_maps(coarse, Image(builders.pixels((900, 600)))).shape == (2, 448, 299)
    assert refine_maps(coarse, Image(builders.pixels((1, 2000)))).shape == (2, 1, 448)


def test_on_grid_averages_and_returns_maps_of_that_grid_unchanged():
    maps = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    np.testing.assert_allclose(on_grid(maps, (2, 3))[0, 0], [3.5, 5.5, 7.5])
    assert on_grid(maps, (4, 6)) is maps


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def test_refinement_changes_only_the_resolution_of_maps(clip):
    image = Image(builders.pixels((60, 100)))
    (tokens,) = clip.encode_images([image], size=(48, 64))
    plain = clip.similarity(tokens, ["dog", "cat"], MapSettings(templates=SHORT))
    refined = clip.similarity(tokens, ["dog", "cat"], MapSettings(templates=SHORT, refine="pamr"))
    assert plain.grid_hw == (3, 4)
    assert refined.grid_hw == (60, 100)
    np.testing.assert_array_equal(plain.presence, refined.presence)
    expected = refine_maps(torch.from_numpy(plain.scores.copy()), image)
    assert_close(refined.scores, expected, terms=TINY_NETWORK, scale=1)


def test_tokens_without_an_image_cannot_be_refined(clip):
    (tokens,) = clip.encode_images([builders.image()])
    alone = ImageTokens(tokens.features, tokens.grid_hw, tokens.image_hw)
    with pytest.raises(ValueError, match="these tokens have none"):
        clip.similarity(alone, ["dog"], MapSettings(templates=SHORT, refine="pamr"))


@pytest.mark.parametrize("query", ["dog", "dog+cat", "dog -cat"])
def test_points_are_chosen_on_the_grid_of_patches(clip, query):
    asked = []
    sam = SimpleNamespace(embed=lambda images: [object()] * len(images), decode=lambda jobs: asked.extend(jobs) or [])
    models = Text2Seg(clip, sam, input_size=64)
    settings = Settings(MapSettings(templates=SHORT, refine="pamr"), PointSettings(instances="union"))
    with pytest.raises(ValueError, match="shorter"):  # this SAM answers nothing
        models.segment(builders.pixels((60, 100)), [query], settings)
    ((_, points),) = asked
    assert 0 < len(points) <= 16
    centres = (np.mgrid[:4, :4].reshape(2, -1)[::-1].T + 0.5) * (25, 15)
    assert {tuple(xy) for xy in points.xy.tolist()} <= {tuple(xy) for xy in centres.tolist()}
