"""The CLIP module that `build_clip` makes equals the one that OpenAI's package builds from the same weights."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from checkpoint_builders import TINY_RESNET, TINY_VIT, clip_module

from text2seg.clip.build import ClipShape, build_clip, openai_networks
from text2seg.errors import CheckpointError

ARGUMENTS = {"vit": TINY_VIT, "resnet": TINY_RESNET}
# Twice as long, these belong to a CLIP for longer texts, with more words, or for images of 3×3 cells, not 2×2.
RESIZABLE = ("positional_embedding", "token_embedding.weight", "visual.attnpool.positional_embedding")


@pytest.fixture(scope="module", params=ARGUMENTS)
def kind(request):
    return request.param


@pytest.fixture
def weights(kind):
    return dict(clip_module(ARGUMENTS[kind]).state_dict())


def inputs(kind):
    side = ARGUMENTS[kind][1]
    text = torch.tensor([[48, 3, 4, 49, 0, 0, 0], [48, 49, 0, 0, 0, 0, 0]])
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)), text


def test_build_clip_equals_the_build_of_openai(kind, weights):
    ours = build_clip(weights)
    theirs = openai_networks().build_model(dict(weights)).float()
    assert type(ours) is type(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in ours.state_dict().items())
    image, text = inputs(kind)
    with torch.no_grad():
        assert torch.equal(ours(image, text)[0], theirs(image, text)[0])
    assert (ours.context_length, ours.vocab_size) == (theirs.context_length, theirs.vocab_size)
    assert ours.visual.input_resolution == theirs.visual.input_resolution == ARGUMENTS[kind][1]


def test_a_built_clip_is_float32_in_eval_mode_without_gradients(kind, weights):
    model = build_clip(weights)
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
    assert {t.device.type for t in tensors} == {"cpu"}
    assert not any(t.requires_grad for t in tensors)
    assert not any(module.training for module in model.modules())


def test_float32_weights_are_not_rounded(weights):
    weights = {n: t.double().mul(1.0001).float() if t.is_floating_point() else t for n, t in weights.items()}
    built = build_clip(weights).state_dict()
    assert all(torch.equal(built[name], tensor) for name, tensor in weights.items())


def test_weights_and_random_state_are_unchanged(weights):
    before = {name: (tensor, tensor.clone()) for name, tensor in weights.items()}
    state = torch.get_rng_state()
    build_clip(weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights.keys() == before.keys()
    assert all(weights[n] is tensor and torch.equal(tensor, copy) for n, (tensor, copy) in before.items())


def test_shape_is_read_from_the_weights(kind, weights):
    shape = ClipShape.of(weights)
    found = (shape.embedding, shape.image_size, shape.vision_layers, shape.vision_width, shape.patch)
    assert found == ARGUMENTS[kind][:5]
    assert (shape.context_length, shape.vocabulary, shape.text_width, shape.text_layers) == (7, 50, 64, 2)


def test_counters_of_batch_norms_may_be_missing():
    weights = clip_module(TINY_RESNET).state_dict()
    without = {n: t for n, t in weights.items() if not n.endswith("num_batches_tracked")}
    assert len(without) < len(weights)
    image, text = inputs("resnet")
    with torch.no_grad():
        assert torch.equal(build_clip(without)(image, text)[0], build_clip(dict(weights))(image, text)[0])


def test_any_missing_tensor_is_named(weights):
    for name in weights:
        if name.endswith("num_batches_tracked"):
            continue
        with pytest.raises(CheckpointError, match="not a CLIP"):
            build_clip({n: t for n, t in weights.items() if n != name})
    for name in ("text_projection", "ln_final.bias", "logit_scale", "visual.conv1.weight"):
        with pytest.raises(CheckpointError, match=rf"mine\.pt: not a CLIP checkpoint: it has no tensor '{name}'"):
            build_clip({n: t for n, t in weights.items() if n != name}, source="mine.pt")


def test_any_wrong_shape_is_refused(weights):
    for name, tensor in weights.items():
        twice = torch.cat([torch.atleast_1d(tensor)] * 2)
        for wrong in (tensor[None], twice, torch.zeros(0)):
            if wrong is twice and name in RESIZABLE:
                continue
            with pytest.raises(CheckpointError, match="not a CLIP"):
                build_clip({**weights, name: wrong})
    wrong = {**weights, "ln_final.bias": torch.zeros(63)}
    with pytest.raises(CheckpointError, match=re.escape("'ln_final.bias' has shape [63], expected [64]")):
        build_clip(wrong)


def test_an_unexpected_tensor_is_refused(weights):
    with pytest.raises(CheckpointError, match=r"'transformer\.resblocks\.7\.ln_1\.weight'"):
        build_clip({**weights, "transformer.resblocks.7.ln_1.weight": torch.zeros(64)})


def test_integer_weights_are_refused(weights):
    with pytest.raises(CheckpointError, match=r"'ln_final\.weight' is torch\.int64, expected a float dtype"):
        build_clip({**weights, "ln_final.weight": torch.ones(64, dtype=torch.int64)})


def test_image_positions_that_are_not_square_are_refused():
    weights = dict(clip_module(TINY_VIT).state_dict())
    with pytest.raises(CheckpointError, match="8 image positions do not make a square"):
        build_clip({**weights, "visual.positional_embedding": torch.zeros(9, 64)})


def test_a_width_not_divisible_into_heads_is_refused():
    weights = dict(clip_module(TINY_VIT).state_dict())
    with pytest.raises(CheckpointError, match="text encoder's width is 65"):
        build_clip({**weights, "text_projection": torch.zeros(65, 24)})


def test_importing_clip_does_not_warn():
    code = (
        "import warnings; warnings.simplefilter('error', UserWarning); "
        "from text2seg.clip.build import openai_networks; openai_networks()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
