"""Global settings of the host program do not change results, and text2seg does not change them."""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import random
import warnings
from importlib import resources
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

import text2seg
from text2seg import Text2Seg
from text2seg.config import MapSettings
from text2seg.io.images import load_image
from text2seg.runtime import Defaults, Unfilled

IMAGE = resources.files("text2seg.demo") / "scenes" / "new-scenes" / "images" / "scene_0019.jpg"
MAKERS = {
    f"torch.{name}"
    for name in ("empty", "zeros", "ones", "rand", "randn", "full", "tensor", "as_tensor", "arange", "linspace", "eye")
}


def calls(path: Path):
    """Return the calls of torch functions that make tensors."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in MAKERS:
            yield node


def test_every_tensor_is_made_with_a_dtype_on_a_device():
    """`torch.set_default_dtype` and `torch.set_default_device` of the host program must have no effect. Tensors made
    under `Unfilled`, which sets both, are skipped."""
    package = Path(text2seg.__file__).parent
    found = 0
    for path in package.rglob("*.py"):
        for call in calls(path) if path.name != "mobile_sam.py" else ():
            given = {keyword.arg for keyword in call.keywords}
            wanted = {"device"} if ast.unparse(call.func) == "torch.arange" else {"device", "dtype"}
            assert wanted <= given, f"{path}:{call.lineno} leaves {wanted - given} to the program around"
            found += 1
    assert found > 30


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


HOSTS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "device meta": lambda: default_device("meta"),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": deterministic,
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings are errors": warnings_are_errors,
}


def answer(models):
    found = models.segment(str(IMAGE), "sheep, dog")
    return [(segment.query, segment.mask.tobytes()) for segment in found.segments], found.maps.scores.tobytes()


@pytest.fixture(scope="module")
def usual():
    return answer(Text2Seg.load("demo", device="cpu", precision="fp32"))


@pytest.mark.parametrize("host", HOSTS)
def test_results_do_not_depend_on_settings_of_the_host(host, usual):
    with HOSTS[host]():
        models = Text2Seg.load("demo", device="cpu", precision="fp32")
        assert answer(models) == usual
    assert answer(models) == usual, "the models were loaded in a way that does not last"


@pytest.mark.parametrize("host", ["float64", "device meta", "autocast"])
def test_results_of_open_clip_models_with_their_own_tokenizer_do_not_depend_on_the_host(host, tmp_path):
    pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    from openclip_builders import CONFIGS, module, opened, write_folder

    name = write_folder(tmp_path / "model", CONFIGS["siglip"], dict(module(CONFIGS["siglip"]).state_dict()))

    def scores():
        clip = opened(name)
        tokens = clip.encode_images([load_image(Path(str(IMAGE)))])[0]
        return clip.similarity(tokens, ["a dog", "cat"], MapSettings()).scores

    wanted = scores()
    with HOSTS[host]():
        found = scores()
    # where a default device is set, torch takes another way through attention, equal to rounding in float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_models_loaded_in_inference_mode_can_be_explained():
    with torch.inference_mode():
        models = Text2Seg.load("demo", device="cpu", precision="fp32")
    for module in (models.clip.model, models.sam.module):
        assert not any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers()))


def test_global_settings_of_the_host_are_unchanged(demo):
    def state():
        return (
            torch.get_default_dtype(),
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
            np.random.get_state()[1].tolist(),
            np.geterr(),
            random.getstate(),
            os.getcwd(),
            dict(os.environ),
            logging.getLogger().handlers[:],
            logging.getLogger().level,
            warnings.filters[:],
            {
                name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"
            },  # it is chosen when it is asked for
        )

    answer(demo)
    before = state()
    answer(Text2Seg.load("demo", device="cpu", precision="fp32"))
    assert state() == before


def test_defaults_override_settings_of_the_host_in_this_thread():
    with default_dtype(torch.float64), default_device("meta"), Defaults():
        made = [torch.zeros(2), torch.tensor([0.5]), torch.full((1,), 0.5), torch.linspace(0, 1, 2), torch.randn(1)]
        assert {(each.dtype, each.device.type) for each in made} == {(torch.float32, "cpu")}
        assert torch.tensor([1]).dtype == torch.arange(2).dtype == torch.int64
        assert torch.zeros(1, dtype=torch.float64).dtype == torch.float64


def test_unfilled_modules_have_their_shapes_and_need_no_memory():
    with default_dtype(torch.float64), Unfilled():
        vast = torch.nn.Linear(1 << 20, 1 << 20)
        attention = torch.nn.MultiheadAttention(1 << 16, 8)
        norm = torch.nn.BatchNorm2d(1 << 20)
    assert vast.weight.shape == (1 << 20, 1 << 20)
    assert attention.in_proj_weight.shape == (3 << 16, 1 << 16)
    assert vast.weight.dtype == norm.running_var.dtype == torch.float32
    assert vast.weight.untyped_storage().nbytes() == 4
