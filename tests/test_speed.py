"""The measurement of speed: flows are comparable, counts are correct, and invalid measurements are errors."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import sam_builders as build
import torch
from closeness import assert_close
from segment_anything.modeling.image_encoder import Attention
from torch.utils.flop_counter import FlopCounterMode

from text2seg.cli.benchmark import BenchmarkSpeed
from text2seg.coco import rle
from text2seg.config import PointSettings
from text2seg.errors import SettingsError
from text2seg.io.images import load_image
from text2seg.prompts import text2points
from text2seg.runtime import FULL
from text2seg.sam.sam import SamShape, load_sam
from text2seg.speed import measure
from text2seg.speed.flows import SIZES_HW, Original, _fused_attention, _points, sam_shape, words, write_images
from text2seg.speed.measure import Measured, Plan
from text2seg.speed.meters import PeakMemory, Stopwatch, encoder_flops, peak_flops

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def case():
    plan = Plan(("demo",), ("small",), (2,), ("stock", "stock-fused", "ours"), 2, 1, 1, 5.0, "cpu")
    (measured,) = measure.run(plan)
    return measured


def test_all_flows_are_measured_in_turn_and_give_equal_results(case):
    stock, fused, ours = case
    assert [each.flow for each in case] == ["stock", "stock-fused", "ours"]
    assert all(len(each.seconds) == 2 and min(each.seconds) > 0 for each in case)
    for each in case:
        assert each.stages.keys() == set(measure.STAGES)
        assert all(min(seconds) > 0 for seconds in each.stages.values())
        assert sum(map(sum, each.stages.values())) < sum(each.seconds)
        assert each.peak_bytes > 10**7
    assert (stock.embedding_error, stock.mask_iou, stock.flipped) == (0, 1, 0)
    for other in (fused, ours):
        assert other.embedding_error < 0.05
        assert other.mask_iou > 0.9
        assert other.flipped < 0.02


def test_the_tables_have_every_measured_value(case, tmp_path):
    assert "| ours" in measure.markdown(case)
    for row in measure.rows(case):
        assert len(row) == len(measure.HEADINGS)
    written = json.loads(measure.write_json([case], tmp_path / "bench.json").read_text())
    assert [each["flow"] for each in written["results"]] == ["stock", "stock-fused", "ours"]
    assert written["machine"]["torch"] == torch.__version__
    assert measure.plot([case], tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_ratios_refer_to_the_first_flow_and_time_outside_stages_is_the_rest():
    slow, fast = (
        Measured("demo", "vga", 1, "ours", "fp32", [s, s, 9 * s], {stage: [s / 8] * 3 for stage in measure.STAGES})
        for s in (4.0, 1.0)
    )
    for each in (slow, fast):
        each.flops, each.peak_flops = {"encoder": 1.0, "decoder": 0.2}, 16.0
    row = dict(zip(measure.HEADINGS, measure.rows([slow, fast])[1], strict=True))
    assert (row["s/image"], row["spread"], row["ratio"], row["rest"]) == ("1", "1–9", "4.00×", "0.5")
    assert row["MFU, %"] == "– / – / 50 / 10"
    assert row["mask IoU"] == "–"


def test_a_compilation_after_warm_up_is_an_error(monkeypatch):
    graphs = iter(range(9))
    monkeypatch.setattr(measure, "_graphs", lambda: next(graphs))
    monkeypatch.setattr(measure, "_one_round", lambda *_: None)
    plan = Plan(("demo",), ("small",), (1,), (), 1, 1, 1, 1.0)
    result = Measured("demo", "small", 1, "ours", "fp32")
    with pytest.raises(SettingsError, match="compiled again after the warm-up"):
        measure._measure(plan, {}, {"ours": result}, CPU, 60, print)


def test_a_flow_that_cannot_run_is_left_out(monkeypatch, caplog):
    def refuse(*_, **__):
        raise SettingsError("no compiler here")

    monkeypatch.setattr(measure, "make_flow", refuse)
    plan = Plan(("demo",), ("small",), (1,), ("ours-compiled",), 1, 1, 1, 1.0)
    assert measure._flows(plan, "demo", {}, {}, CPU, SimpleNamespace()) == {}
    assert "ours-compiled is left out: no compiler here" in caplog.text


def test_points_of_the_original_equal_those_of_the_reference_method():
    scores = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    found = _points(torch.from_numpy(scores)[None, None], (480, 640))
    (wanted,) = text2points(scores[None], (480, 640), PointSettings(method="reference"))
    key = lambda points: sorted(zip(points.labels.tolist(), points.xy.astype(int).tolist(), strict=True))  # noqa: E731
    assert key(found) == key(wanted)


def test_fused_attention_of_the_baseline_equals_the_stock_one():
    torch.manual_seed(0)
    stock = Attention(24, 2, use_rel_pos=True, input_size=(5, 5))
    for table in (stock.rel_pos_h, stock.rel_pos_w):
        torch.nn.init.normal_(table)
    x = torch.randn(2, 5, 5, 24)
    assert_close(_fused_attention(stock, x), stock(x), terms=4 * 24)


def test_counted_operations_equal_those_of_torch_without_window_padding():
    shape = replace(build.TINY, image_size=96)  # windows divide this grid
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        build.sam_module(shape).image_encoder(torch.zeros(1, 3, 96, 96))
    assert encoder_flops(shape) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert encoder_flops(sam_shape("vit_h")) > 5 * encoder_flops(sam_shape("vit_b"))


def test_operations_are_counted_in_their_stage_and_only_while_something_counts():
    watch, square = Stopwatch(CPU), torch.ones(8, 8)

    def work():
        with watch.stage("outer"):
            square @ square
            with watch.stage("inner"):
                square @ square @ square
        square @ square

    one = 2 * 8**3
    assert watch.count(work) == {"outer": one, "inner": 2 * one}
    assert watch.read() == {}
    work()
    assert set(watch.read()) == {"outer", "inner"}


def test_the_operations_of_both_flows_are_measured(case):
    for each in case:
        assert set(each.flops) >= {"text", "maps", "encoder", "decoder"}
        assert all(value > 0 for value in each.flops.values())
    stock, fused, ours = case
    assert stock.flops == fused.flops
    assert stock.flops["encoder"] == ours.flops["encoder"]


def test_time_is_counted_in_the_inner_stage():
    watch = Stopwatch(CPU)
    with watch.stage("outer"):
        time.sleep(0.01)
        watch.timed("inner", time.sleep)(0.05)
    time.sleep(0.01)
    with watch.stage("outer"):
        pass
    seconds = watch.read()
    assert seconds.keys() == {"outer", "inner"}
    assert seconds["inner"] >= 0.05
    assert seconds["outer"] >= 0.01
    assert watch.read() == {}


def test_peak_memory_is_measured():
    memory = PeakMemory(CPU)
    before = memory.read()
    filled = np.ones(200_000_000, np.uint8)
    del filled
    assert memory.read() >= before
    assert memory.read() > 200_000_000
    assert peak_flops(CPU, torch.float32) > 1e8


def test_words_returns_the_requested_number_of_different_words():
    assert len(set(words(300))) == 300


def test_written_images_have_the_requested_size(tmp_path):
    write_images(tmp_path, SIZES_HW["small"], 3)
    assert [load_image(path).hw for path in sorted(tmp_path.iterdir())] == [(240, 320)] * 3


def test_the_command_refuses_zero_rounds():
    with pytest.raises(SettingsError, match="must be 1 or more"):
        BenchmarkSpeed(rounds=0).run()


def test_masks_of_the_original_are_written(tmp_path, demo):
    weights = demo.sam.module.state_dict()
    flow = Original(demo.clip.model, load_sam(SamShape.of(weights), weights), CPU, FULL, 384)
    write_images(tmp_path / "images", (60, 80), 1)
    flow.label(tmp_path / "images", ("sheep", "koala"), tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert [each["name"] for each in content["categories"]] == ["sheep", "koala"]
    assert [rle.area(each["segmentation"]) for each in content["annotations"]] == [
        each["area"] for each in content["annotations"]
    ]
