"""The table of the tools of origin: every result of text2seg agrees with the plain float64 formula of its tool."""

from __future__ import annotations

import pytest
from benchmark_scripts import import_benchmark
from closeness import DEMO_NETWORK, rounding

origins = import_benchmark("origins")
IMAGE = origins.SCENES / "new-scenes" / "images" / "scene_0003.jpg"


@pytest.fixture(scope="module")
def rows():
    return origins.measured(IMAGE)


def test_every_result_agrees_with_its_formula(rows):
    bound = rounding(DEMO_NETWORK)
    wrong = {row[1]: row[3] for row in rows if not row[3] <= bound}  # a difference that is not a number is wrong too
    assert not wrong


def test_all_five_tools_are_in_the_table(rows):
    assert {row[0] for row in rows} == {
        origins.SURGERY,
        origins.MINICLIP,
        origins.CHEFER,
        origins.LAST_GRAD,
        origins.EXPERIMENTS,
    }
