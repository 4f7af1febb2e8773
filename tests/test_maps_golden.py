"""Our maps and points against values computed with the original CLIP Surgery code."""

from __future__ import annotations

from functools import partial

import golden
import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, assert_close
from torch.nn import functional as F

from text2seg.clip.maps import cosines, without_empty_text, without_label_set
from text2seg.clip.resnet import encode_resnet
from text2seg.clip.vit import encode_vit
from text2seg.config import PointSettings
from text2seg.grids import minmax, resize
from text2seg.prompts import text2points

ENCODERS = {"vit": partial(encode_vit, blocks=6), "rn": encode_resnet}


@pytest.fixture(scope="module", params=["vit", "rn"])
def model(request):
    values = golden.load(request.param)
    return request.param, values, golden.visual(request.param, values)


@pytest.fixture(scope="module", params=[64, 128])
def tokens(request, model):
    name, values, visual = model
    features = ENCODERS[name](visual, torch.from_numpy(values[f"{request.param}/pixels"]))
    return request.param, F.normalize(features, dim=-1)


def first(name: str) -> int:
    """The ResNet's golden CLS is not CLIP's, so there only the patches count."""
    return 0 if name == "vit" else 1


def test_features_and_cosines(model, tokens):
    name, values, _ = model
    size, features = tokens
    text = torch.from_numpy(values["text"])
    assert_close(features[:, first(name) :], values[f"{size}/features"][:, first(name) :], terms=TINY_NETWORK, scale=1)
    assert_close(
        cosines(features, text)[:, first(name) :], values[f"{size}/raw"][:, first(name) :], terms=TINY_NETWORK, scale=1
    )


def test_single_query_similarity(model, tokens):
    name, values, _ = model
    size, features = tokens
    text, empty = (torch.from_numpy(values[key]) for key in ("text", "empty_text"))
    ours = without_empty_text(features, text, empty[0])
    assert_close(
        ours[:, first(name) :], values[f"{size}/similarity_single"][:, first(name) :], terms=TINY_NETWORK, scale=1
    )


def test_label_set_similarity_maps_and_points(model, tokens):
    name, values, _ = model
    size, features = tokens
    text = torch.from_numpy(values["text"])
    if name == "rn":  # its weights come from CLS, so the original's CLS is put in to compare what follows
        features = torch.cat([torch.from_numpy(values[f"{size}/features"][:, :1]), features[:, 1:]], dim=1)
    similarity = without_label_set(features, text)
    assert_close(similarity, values[f"{size}/similarity_label_set"], terms=TINY_NETWORK, scale=1)

    side = round((similarity.shape[1] - 1) ** 0.5)
    scores = similarity[:, 1:].transpose(1, 2).unflatten(-1, (side, side)).contiguous().numpy()
    for image in range(2):
        maps = resize(minmax(scores[image]), (60, 90))
        spread = float(np.ptp(scores[image], axis=(1, 2)).min())  # to which each map is stretched
        assert_close(maps.transpose(1, 2, 0), values[f"{size}/map_60x90"][image], terms=TINY_NETWORK, scale=1 / spread)
    settings = PointSettings(method="reference", downsample=2 if size == 128 else 1)
    for query, prompts in enumerate(text2points(scores[0], (60, 90), settings)):
        np.testing.assert_array_equal(prompts.xy, values[f"{size}/points_{query}"])
        np.testing.assert_array_equal(prompts.labels, values[f"{size}/point_labels_{query}"])
