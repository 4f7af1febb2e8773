"""Weights in all supported formats, and files that are damaged, malicious or of another kind."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from checkpoint_builders import (
    TINY_RESNET,
    TINY_VIT,
    VIT_B_16,
    archive_that_writes,
    clip_module,
    sam_weights,
    write_official_archive,
)
from safetensors.torch import save_file
from sam_builders import sam_module
from torch import nn

from text2seg import Text2Seg
from text2seg.clip.build import ClipShape, build_clip, check_clip
from text2seg.errors import CheckpointError, SettingsError
from text2seg.sam.sam import Sam, SamShape
from text2seg.weights import fetch, load
from text2seg.weights.architecture import checked_config
from text2seg.weights.load import load_clip_weights, load_sam_weights


@pytest.fixture(scope="module")
def clip_weights():
    return clip_module(TINY_VIT).state_dict()


@pytest.fixture(scope="module")
def small_sam():
    """Return the tensors of a SAM that the loader checks."""
    return {name: torch.ones([2] * axes) for name, axes in load.SAM_TENSORS.items()}


def saved(weights, path: Path, **options) -> Path:
    torch.save(weights, path, **options)
    return path


def same(loaded, weights) -> bool:
    return loaded.keys() == weights.keys() and all(
        tensor.dtype == weights[name].dtype and torch.equal(tensor, weights[name]) for name, tensor in loaded.items()
    )


class TestFormats:
    @pytest.mark.parametrize("wrap", ["state_dict", "model", None])
    @pytest.mark.parametrize("prefix", ["module.", ""])
    @pytest.mark.parametrize("in_zip", [True, False])
    def test_a_state_dict_is_read(self, clip_weights, tmp_path, wrap, prefix, in_zip):
        named = OrderedDict((prefix + name, tensor) for name, tensor in clip_weights.items())
        content = {wrap: named, "epoch": 3, "optimizer": {"step": torch.ones(1)}} if wrap else named
        path = saved(content, tmp_path / "clip.pt", _use_new_zipfile_serialization=in_zip)
        assert same(load_clip_weights(path), clip_weights)

    def test_safetensors_are_read(self, clip_weights, tmp_path):
        save_file(dict(clip_weights), tmp_path / "clip.safetensors")
        assert same(load_clip_weights(tmp_path / "clip.safetensors"), clip_weights)

    def test_format_is_detected_from_the_content_not_the_name(self, clip_weights, small_sam, tmp_path):
        save_file(dict(clip_weights), tmp_path / "clip.pt")
        assert same(load_clip_weights(str(tmp_path / "clip.pt")), clip_weights)
        assert same(load_sam_weights(saved(small_sam, tmp_path / "sam.safetensors")), small_sam)

    @pytest.mark.parametrize("arguments", [TINY_VIT, TINY_RESNET])
    def test_an_official_archive_is_read(self, arguments, tmp_path, recwarn):
        model = clip_module(arguments)
        weights = dict(model.state_dict())
        write_official_archive(model, tmp_path / "clip.pt", image_size=arguments[1], context=7, vocabulary=50)
        loaded = load_clip_weights(tmp_path / "clip.pt")
        assert same(loaded, weights)
        assert not any(tensor.requires_grad for tensor in loaded.values())
        assert not [w for w in recwarn if "torch.jit" in str(w.message)]

    def test_parameters_come_without_gradients(self, clip_weights, tmp_path):
        weights = {name: nn.Parameter(t, requires_grad=t.is_floating_point()) for name, t in clip_weights.items()}
        loaded = load_clip_weights(saved(weights, tmp_path / "clip.pt"))
        assert not any(tensor.requires_grad for tensor in loaded.values())


def before(prefix: str, weights) -> dict:
    return {prefix + name: tensor for name, tensor in weights.items()}


class Config:
    """A class of someone's training code."""


FORMS = {
    "model_state_dict": lambda d: {"epoch": 3, "model_state_dict": d, "optimizer_state_dict": {}, "loss": 0.1},
    "net": lambda d: {"net": d},
    "two wrappers": lambda d: {"model": {"state_dict": d}},
    "a wrapper of any name": lambda d: {"run 7": {3: d}},
    "model.": lambda d: {"state_dict": before("model.", d)},
    "any prefix": lambda d: before("clip_or_sam.inner.", d),
    "compiled": lambda d: before("_orig_mod.", d),
    "compiled in DDP": lambda d: before("module._orig_mod.", d),
    "FSDP": lambda d: before("_fsdp_wrapped_module.model.", d),
    "a compiled part": lambda d: {
        n.replace("visual.", "visual._orig_mod.").replace("image_encoder.", "image_encoder.module."): t
        for n, t in d.items()
    },
    "a larger network": lambda d: before("backbone.", d) | {"head.weight": torch.ones(2)},
    "an average of weights": lambda d: before("module.", d) | {"n_averaged": torch.tensor(7)},
    "with a moving average": lambda d: {"ema": {n: t + 1 for n, t in d.items()}, "model": d},
    "moving average alone": lambda d: {"ema_state": {"shadow": d, "decay": 0.9}},
    "with an optimiser": lambda d: {
        "state_dict": before("model.", d),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}}],
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}, 1: {"exp_avg": torch.ones(3)}}},
        "global_step": torch.tensor(9),
        "hyper_parameters": {"config": Config(), "path": Path("x"), "args": argparse.Namespace(lr=1)},
    },
}


def quantised(dtype: torch.dtype) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_channel(torch.ones(4, 4), torch.ones(4), torch.zeros(4), 0, dtype)


class TestTrainingCheckpoints:
    """Weights in the dicts and with the prefixes that training code adds."""

    @pytest.mark.parametrize("form", FORMS)
    def test_wrapped_and_prefixed_weights_are_read(self, clip_weights, small_sam, tmp_path, form, caplog):
        caplog.set_level("INFO")
        for weights, reader in ((clip_weights, load_clip_weights), (small_sam, load_sam_weights)):
            assert same(reader(saved(FORMS[form](weights), tmp_path / "mine.pt")), weights)
        save_file({n: t.clone() for n, t in before("model.", clip_weights).items()}, tmp_path / "mine.safetensors")
        assert same(load_clip_weights(tmp_path / "mine.safetensors"), clip_weights)

    def test_ignored_tensors_are_logged(self, clip_weights, tmp_path, caplog):
        caplog.set_level("INFO")
        content = {"state_dict": before("clip_model.", clip_weights) | {"head.weight": torch.ones(2)}}
        load_clip_weights(saved(content, tmp_path / "mine.pt"))
        (said,) = [record.getMessage() for record in caplog.records if "taken from" in record.getMessage()]
        for part in ("mine.pt", "['state_dict']", "'clip_model.'", "1 other tensors, such as 'head.weight'"):
            assert part in said

    @pytest.mark.parametrize(
        ("run", "told"),
        [("mine", "openclip:ARCH="), ("-model_ViT-B-16-lr_1", "openclip:ViT-B-16="), ("model_RN50-quickgelu-lr_1", "")],
    )
    def test_training_runs_of_open_clip_cause_a_warning(self, clip_weights, tmp_path, caplog, run, told):
        content = {"epoch": 3, "name": run, "state_dict": before("module.", clip_weights), "optimizer": {}}
        path = saved(content, tmp_path / "mine.pt")
        assert same(load_clip_weights(path), clip_weights)
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [f"{told}{path}" in each for each in said] == ([True] if told else [])

    @pytest.mark.parametrize(
        ("form", "message"),
        [
            (lambda d: {"student": d, "teacher": dict(d)}, r"more than once, under \['student'\] and \['teacher'\]"),
            (
                lambda d: before("student.", d) | before("teacher.", d),
                r"more than once, under 'student\.' and 'teacher\.",
            ),
            (
                lambda d: d | before("module.", d),
                r"more than once, under '' and 'module\.'",
            ),
            (
                lambda d: d | {n.replace("visual.", "visual.module."): t for n, t in d.items()},
                r"twice, as 'visual\.class_embedding' and 'visual\.module\.class_embedding'",
            ),
            (lambda d: {"model": nn.Linear(2, 2)}, r"is not a CLIP in OpenAI's format: .*'weight', 'bias'"),
            (lambda d: nn.ReLU(), "holds no tensors by name"),
            (lambda d: {n: t.numpy() for n, t in d.items()}, "numpy arrays are not read"),
            (lambda d: {"state_dict": "w.pt", "epoch": 3}, "no tensors by name, only 'state_dict', 'epoch'"),
            (lambda d: {"text_model.x": torch.ones(1)}, "looks like a CLIP of transformers"),
            (
                lambda d: dict.fromkeys(
                    (
                        "vision_model.embeddings.class_embedding",
                        "text_model.embeddings.token_embedding.weight",
                        "logit_scale",
                        "text_model.embeddings.position_embedding.weight",
                    ),
                    torch.ones(1),
                ),
                "looks like a CLIP of transformers",
            ),
            (lambda d: d | {3: torch.ones(1)}, "a tensor has the name 3, which is not a string"),
            (lambda d: d | {"ln_final.bias": torch.ones(1).expand(64)}, r"'ln_final\.bias' .*\.contiguous"),
            (lambda d: d | {"s": torch.eye(3).to_sparse()}, "'s' is not a plain tensor but a sparse one"),
            (lambda d: d | {"q": quantised(torch.qint8)}, r"'q' is not a plain tensor but a quantized.*dequantize"),
            (lambda d: {"a.weight": torch.ones(1), "b": torch.ones(1)}, "its 2 tensors are 'a.weight', 'b'"),
        ],
    )
    def test_the_error_names_the_content_of_the_file(self, clip_weights, tmp_path, form, message):
        with pytest.raises(CheckpointError, match=rf"mine\.pt .*{message}"):
            load_clip_weights(saved(form(clip_weights), tmp_path / "mine.pt"))

    def test_wrapped_weights_of_the_other_kind_are_refused(self, clip_weights, tmp_path):
        with pytest.raises(CheckpointError, match="is a CLIP, not a SAM"):
            load_sam_weights(saved({"model": before("clip.", clip_weights)}, tmp_path / "mine.pt"))

    def test_an_unexpected_tensor_is_refused(self, tmp_path):
        for kind, one in (
            ("clip", "no CLIP of its shape has a tensor 'extra.weight'"),
            ("sam", "1 unknown, as 'extra.weight'"),
        ):
            reader = {"clip": load_clip_weights, "sam": load_sam_weights}[kind]
            path = saved(reader(fetch("demo", kind)) | {"extra.weight": torch.ones(2)}, tmp_path / "mine.pt")
            with pytest.raises(CheckpointError, match=rf"mine\.pt: .*{one}"):
                Text2Seg.load("demo", device="cpu", **{kind: str(path)})


class Wrapper(nn.Module):
    """A network of someone's training code that contains a CLIP."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(2, 2)


class TestWholeModules:
    """Modules written by `torch.save(model)`: tensors are read and no class is imported."""

    @pytest.mark.parametrize("in_zip", [True, False])
    @pytest.mark.parametrize("arguments", [TINY_VIT, TINY_RESNET])
    def test_clip_loads(self, tmp_path, arguments, in_zip, caplog):
        model = clip_module(arguments)
        with warnings.catch_warnings(action="ignore"):  # torch warns that it cannot find the source of a class
            path = saved(model, tmp_path / "mine.pt", _use_new_zipfile_serialization=in_zip)
        assert same(load_clip_weights(path), model.state_dict())
        assert not [record for record in caplog.records if record.levelname == "WARNING"]

    def test_sam_loads(self, tmp_path):
        model = sam_module()
        path = saved(model, tmp_path / "mine.pth")
        assert same(load_sam_weights(path), model.state_dict())

    @pytest.mark.parametrize("form", [Wrapper, lambda m: {"epoch": 3, "model": m}, lambda m: {"net": {"ema": m}}])
    def test_wrapped_module_loads(self, tmp_path, form):
        model = clip_module(TINY_VIT)
        path = saved(form(model), tmp_path / "mine.pt")
        assert same(load_clip_weights(path), model.state_dict())

    def test_unknown_class_is_logged(self, tmp_path, caplog):
        path = saved(Wrapper(clip_module(TINY_VIT)), tmp_path / "mine.pt")
        load_clip_weights(path)
        assert any("mine.pt" in record.getMessage() and "Wrapper" in record.getMessage() for record in caplog.records)

    def test_buffers_outside_of_the_state_dict_are_left_out(self, tmp_path):
        model = clip_module(TINY_VIT)
        model.register_buffer("attn_mask", torch.ones(3, 3), persistent=False)
        assert same(load_clip_weights(saved(model, tmp_path / "mine.pt")), model.state_dict())

    def test_module_that_calls_a_function_is_refused(self, tmp_path):
        module = Wrapper(clip_module(TINY_VIT))
        module.trap = Trap()
        with pytest.raises(CheckpointError, match="was refused: reading it could run code"):
            load_clip_weights(saved(module, tmp_path / "mine.pt"))

    def test_a_module_that_contains_itself_is_refused(self, tmp_path):
        module = nn.Module()
        module._modules["again"] = module
        with pytest.raises(CheckpointError, match="nested too deep"):
            load_clip_weights(saved(module, tmp_path / "mine.pt"))


class Trap:
    def __reduce__(self):
        return os.system, ("true",)


class TestWrongShapes:
    """Wrong shapes are reported before a network is built or numbers are read."""

    @pytest.mark.parametrize(
        ("kind", "name", "shape", "message"),
        [
            ("clip", "token_embedding.weight", (1000, 64), r"'token_embedding\.weight' has 1,000 words.*49,408"),
            ("clip", "positional_embedding", (2, 64), "'positional_embedding' has 2 places for tokens"),
            ("clip", "positional_embedding", (0, 64), "context length is 0"),
            ("clip", "positional_embedding", (60_000, 64), "context length is 60,000"),
            (
                "clip",
                "visual.conv1.weight",
                (2_000_000, 3, 4, 4),
                r"vision width is 2,000,000 .by 'visual\.conv1\.weight'",
            ),
            ("clip", "visual.conv1.weight", (192, 3, 0, 0), "image size is 0"),
            ("clip", "visual.conv1.weight", (192, 1, 16, 16), r"\[192, 1, 16, 16\], expected \[192, 3, 16, 16\]"),
            ("clip", "visual.positional_embedding", (3000**2 + 1, 1), "image size is 48,000"),
            ("clip", "visual.conv1.weight", (192, 3, 1, 1), r"patch is 1 .by 'visual\.conv1\.weight'., not 4 to 256"),
            ("clip", "visual.positional_embedding", (200**2 + 1, 1), "its input has 200 x 200 patches"),
            ("sam", "image_encoder.patch_embed.proj.weight", (192, 3, 1, 1), "patch is 1"),
            ("sam", "image_encoder.pos_embed", (1, 200, 1, 8), "its input has 200 x 200 patches"),
            ("sam", "image_encoder.blocks.0.attn.rel_pos_h", (399, 64), "window is 200"),
            ("clip", "text_projection", (640_000, 2), "text width is 640,000"),
            ("sam", "image_encoder.patch_embed.proj.weight", (2_000_000, 3, 4, 4), "width is 2,000,000"),
            ("sam", "image_encoder.pos_embed", (1, 4000, 1, 8), "image size is 64,000"),
            ("sam", "mask_decoder.mask_tokens.weight", (1_000_000, 4), "candidates is 999,999"),
            ("sam", "mask_decoder.transformer.layers.0.mlp.lin1.weight", (9_000_000, 1), "decoder mlp is 9,000,000"),
            ("sam", "image_encoder.neck.0.weight", (9_000_000, 1, 1, 1), "embedding is 9,000,000"),
            ("sam", "image_encoder.blocks.0.attn.rel_pos_h", (5, 1), r"has shape \[5, 1\], expected \[15, 1\]"),
        ],
    )
    def test_a_wrong_shape_is_named(self, tmp_path, monkeypatch, kind, name, shape, message):
        reader = {"clip": load_clip_weights, "sam": load_sam_weights}[kind]
        path = saved(reader(fetch("demo", kind)) | {name: torch.zeros(shape)}, tmp_path / "mine.pt")
        monkeypatch.setattr("text2seg.weights.stored_tensors.StoredTensor.read", None)
        check = {"clip": check_clip, "sam": Sam.check}[kind]
        with pytest.raises(CheckpointError, match=rf"mine\.pt: .*{message}"):
            reader(path, check)

    def test_too_many_layers_are_refused(self, tmp_path):
        one = torch.ones(1, 1)
        names = {f"visual.transformer.resblocks.{n}.attn.in_proj_weight": one for n in range(300)}
        path = saved(load_clip_weights(fetch("demo", "clip")) | names, tmp_path / "mine.pt")
        with pytest.raises(CheckpointError, match="vision layers is 300"):
            load_clip_weights(path, check_clip)

    def test_inputs_and_configurations_with_too_many_patches_are_refused(self):
        clip = Text2Seg.load("demo", device="cpu").clip
        assert clip.input_hw(2048) == (2048, 2048)
        with pytest.raises(SettingsError, match=r"smaller input size: .* 4096 x 4096 pixels has 256 x 256 patches"):
            clip.input_hw(4096)
        for config in ({"vision_cfg": {"patch_size": 1}}, {"backbone_config": {"patch_stride": [4, 1]}}):
            with pytest.raises(CheckpointError, match="less than the 4"):
                checked_config(config, "c")
        for config in ({"image_size": [1024, 9000]}, {"img_size": 9000}, {"window_size_per_stage": [8, 900]}):
            with pytest.raises(CheckpointError, match="more than the"):
                checked_config(config, "c")

    def test_long_tensor_names_are_shortened_in_messages(self, tmp_path):
        for kind, reader, check in (("clip", load_clip_weights, check_clip), ("sam", load_sam_weights, Sam.check)):
            path = saved(reader(fetch("demo", kind)) | {"x" * 10_000: torch.ones(2)}, tmp_path / "mine.pt")
            with pytest.raises(CheckpointError, match="xxxx") as error:
                reader(path, check)
            assert len(str(error.value)) < 400 + len(str(path))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
    def test_other_dtypes_become_float32(self, tmp_path, dtype):
        weights = load_clip_weights(fetch("demo", "clip"))
        path = saved({name: tensor.to(dtype) for name, tensor in weights.items()}, tmp_path / "mine.pt")
        built = build_clip(load_clip_weights(path, check_clip)).state_dict()
        assert all(torch.equal(built[name], tensor.to(dtype).float()) for name, tensor in weights.items())

    def test_numbers_too_large_for_float32_are_refused(self, clip_weights, tmp_path):
        weights = clip_weights | {"ln_final.bias": torch.full((64,), 1e300, dtype=torch.float64)}
        with pytest.raises(CheckpointError, match=r"'ln_final\.bias' contains numbers that are too large for float32"):
            load_clip_weights(saved(weights, tmp_path / "mine.pt"))


class TestRealSizes:
    def test_an_official_archive_of_vit_b_16_is_read(self, tmp_path):
        model = clip_module(VIT_B_16)
        weights = dict(model.state_dict())
        path = tmp_path / "ViT-B-16.pt"
        write_official_archive(model, path, image_size=224, context=77, vocabulary=49408)
        assert path.stat().st_size > 300_000_000
        loaded = load_clip_weights(path)
        assert same(loaded, weights)
        assert loaded["visual.conv1.weight"].dtype == torch.float16
        path.unlink()

    def test_weights_of_vit_b_are_read(self, tmp_path):
        weights = sam_weights("vit_b", device="cpu")
        path = saved(weights, tmp_path / "sam_vit_b.pth")
        assert path.stat().st_size > 370_000_000
        loaded = load_sam_weights(path)
        assert {n: (t.shape, t.dtype) for n, t in loaded.items()} == {n: (t.shape, t.dtype) for n, t in weights.items()}
        path.unlink()

    @pytest.mark.parametrize(
        ("name", "width", "depth", "blocks"),
        [
            ("vit_b", 768, 12, (2, 5, 8, 11)),
            ("vit_l", 1024, 24, (5, 11, 17, 23)),
            ("vit_h", 1280, 32, (7, 15, 23, 31)),
        ],
    )
    def test_every_published_sam_has_the_tensors_that_the_loader_needs(self, name, width, depth, blocks):
        weights = sam_weights(name)
        assert all(weights[tensor].ndim == axes for tensor, axes in load.SAM_TENSORS.items())
        shape = SamShape.of(weights)
        assert (shape.width, shape.depth, shape.global_blocks, shape.image_size) == (width, depth, blocks, 1024)


class TestDemo:
    def test_the_bundled_pair_is_read(self):
        assert ClipShape.of(load_clip_weights(fetch("demo", "clip"))).patch
        assert SamShape.of(load_sam_weights(fetch("demo", "sam"))).candidates == 3


class Evil:
    """Makes a folder when a reader that runs code unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestCodeInFiles:
    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("protocol", [2, 4])
    @pytest.mark.parametrize("reader", [load_clip_weights, load_sam_weights])
    def test_a_bare_pickle_with_code_is_refused(self, tmp_path, monkeypatch, reader, protocol):
        path = tmp_path / "clip.pt"
        path.write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=protocol))
        self.check_refused(path, monkeypatch, reader)

    @pytest.mark.parametrize("in_zip", [True, False])
    @pytest.mark.parametrize("wrap", [True, False])
    def test_code_among_weights_is_refused(self, clip_weights, tmp_path, monkeypatch, wrap, in_zip):
        content = {**clip_weights, "extra": Evil(tmp_path / "ran")}
        content = {"state_dict": content} if wrap else content
        path = saved(content, tmp_path / "clip.pt", _use_new_zipfile_serialization=in_zip)
        self.check_refused(path, monkeypatch, load_clip_weights)
        torch.load(path, weights_only=False)
        assert (tmp_path / "ran").exists(), "the file is harmless, so this test has shown nothing"

    def test_a_text_pickle_with_code_is_refused(self, tmp_path, monkeypatch):
        path = tmp_path / "clip.pt"
        path.write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=0))
        monkeypatch.setattr(torch, "load", None)
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            load_clip_weights(path)
        assert not (tmp_path / "ran").exists()

    def test_the_error_names_the_function_and_does_not_advise_to_run_it(self, tmp_path):
        path = saved({"x": Evil(tmp_path / "ran")}, tmp_path / "clip.pt")
        with pytest.raises(CheckpointError, match=r"clip\.pt was refused.*\.mkdir") as error:
            load_clip_weights(path)
        assert "weights_only" not in str(error.value)

    @pytest.mark.filterwarnings("ignore:`torch.jit")
    def test_an_archive_with_a_script_that_runs_on_load_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        path = tmp_path / "clip.pt"
        path.write_bytes(archive_that_writes())
        with pytest.raises(CheckpointError, match=r"refused.*__setstate__"):
            load_clip_weights(path)
        assert not (tmp_path / "ran").exists()
        torch.jit.load(str(path))
        assert (tmp_path / "ran").exists(), "the file is harmless, so this test has shown nothing"

    def check_refused(self, path, monkeypatch, reader):
        with monkeypatch.context() as patch:
            patch.setattr(torch.jit, "load", None)
            with pytest.raises(CheckpointError, match="refused: reading it could run code"):
                reader(path)
        assert not (path.parent / "ran").exists()


class TestWrongFiles:
    @pytest.mark.parametrize("reader", [load_clip_weights, load_sam_weights])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"These are not weights.\n" * 100, "not a checkpoint"),
            (b"<!DOCTYPE html>", "not a checkpoint"),
            (b"\x80\x02" + b"\xff" * 50, "refused|damaged"),
            (b"PK\x03\x04" + b"\0" * 50, "damaged or cut short"),
            (b"\x10\0\0\0\0\0\0\0{broken", "damaged or cut short"),
        ],
    )
    def test_arbitrary_bytes_are_refused(self, tmp_path, reader, content, message):
        (tmp_path / "weights.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"weights\.pt.*({message})"):
            reader(tmp_path / "weights.pt")

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    @pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "torchscript"])
    def test_truncated_files_are_refused(self, clip_weights, tmp_path, form, share):
        path = tmp_path / "clip.pt"
        if form == "safetensors":
            save_file(dict(clip_weights), path)
        elif form == "torchscript":
            write_official_archive(clip_module(TINY_VIT), path, image_size=48, context=7, vocabulary=50)
        else:
            saved(dict(clip_weights), path, _use_new_zipfile_serialization=form == "zip")
        os.truncate(path, int(path.stat().st_size * share))
        with pytest.raises(CheckpointError, match=r"clip\.pt.*(cut short|refused)"):
            load_clip_weights(path)

    def test_another_zip_file_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
            archive.writestr("readme/hello.txt", "hello")
        with pytest.raises(CheckpointError, match=r"clip\.pt is a zip file.*data\.pkl"):
            load_clip_weights(tmp_path / "clip.pt")

    def test_a_zip_file_with_the_names_of_a_weights_archive_is_refused(self, tmp_path):
        for names in [("a/data.pkl",), ("a/constants.pkl", "a/code/x.py", "a/data.pkl")]:
            with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
                for name in names:
                    archive.writestr(name, "hello")
            with pytest.raises(CheckpointError, match=r"clip\.pt"):
                load_clip_weights(tmp_path / "clip.pt")

    def test_a_missing_file_and_a_folder_are_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match="there is no file"):
            load_clip_weights(tmp_path / "gone.pt")
        with pytest.raises(CheckpointError, match="cannot read"):
            load_sam_weights(tmp_path)

    @pytest.mark.filterwarnings("ignore:Validating sparse")
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (torch.ones(3), "holds a Tensor"),
            ([torch.ones(3)], "holds a list"),
            ({}, "no tensors"),
            ({"epoch": 3}, "no tensors"),
            ({"state_dict": {}}, "no tensors"),
            ({7: torch.ones(1)}, "a tensor has the name 7"),
            ({"a": torch.eye(3).to_sparse()}, "'a' is not a plain tensor"),
            ({"a": torch.ones(3, dtype=torch.complex64)}, "'a' is not a plain tensor"),
            ({"a": torch.ones(3, device="meta")}, "'a' is not a plain tensor"),
        ],
    )
    def test_pickles_of_other_objects_are_refused(self, tmp_path, content, message):
        with pytest.raises(CheckpointError, match=rf"weights\.pt.*{message}"):
            load_sam_weights(saved(content, tmp_path / "weights.pt"))

    def test_a_tensor_larger_than_its_storage_is_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match="'a' is not a plain tensor"):
            load_clip_weights(saved({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "weights.pt"))


class TestWrongTensors:
    def test_a_sam_as_clip_and_a_clip_as_sam_are_refused(self, clip_weights, small_sam, tmp_path):
        sam, clip = saved(small_sam, tmp_path / "sam.pth"), saved(clip_weights, tmp_path / "clip.pt")
        with pytest.raises(CheckpointError, match=r"sam\.pth is a SAM, not a CLIP"):
            load_clip_weights(sam)
        with pytest.raises(CheckpointError, match=r"clip\.pt is a CLIP, not a SAM"):
            load_sam_weights(clip)

    def test_another_network_is_refused(self, tmp_path):
        path = saved(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(CheckpointError, match=r"not a CLIP.*'visual\.conv1\.weight'"):
            load_clip_weights(path)
        with pytest.raises(CheckpointError, match=r"not a SAM.*'image_encoder\.patch_embed\.proj\.weight'"):
            load_sam_weights(path)

    @pytest.mark.parametrize("name", [*load.CLIP_TENSORS, "visual.proj"])
    def test_a_clip_without_a_tensor_is_refused(self, clip_weights, tmp_path, name):
        weights = {n: t for n, t in clip_weights.items() if n != name}
        with pytest.raises(CheckpointError, match=rf"clip\.pt is not a CLIP.*{name}"):
            load_clip_weights(saved(weights, tmp_path / "clip.pt"))

    @pytest.mark.parametrize("name", load.SAM_TENSORS)
    def test_a_sam_without_a_tensor_is_refused(self, small_sam, tmp_path, name):
        weights = {n: t for n, t in small_sam.items() if n != name}
        with pytest.raises(CheckpointError, match=rf"sam\.pth is not a SAM.*{name}"):
            load_sam_weights(saved(weights, tmp_path / "sam.pth"))

    def test_a_wrong_number_of_axes_is_refused(self, clip_weights, small_sam, tmp_path):
        clip = saved({**clip_weights, "text_projection": torch.ones(5)}, tmp_path / "clip.pt")
        with pytest.raises(CheckpointError, match=r"'text_projection' has shape \[5\], expected 2 axes"):
            load_clip_weights(clip)
        sam = saved({**small_sam, "image_encoder.pos_embed": torch.ones(4, 4)}, tmp_path / "sam.pth")
        with pytest.raises(CheckpointError, match=r"'image_encoder\.pos_embed' has shape \[4, 4\], expected 4 axes"):
            load_sam_weights(sam)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_the_first_tensor_that_is_not_finite_is_named(self, clip_weights, tmp_path, value, dtype):
        weights = {name: tensor.to(dtype, copy=True) for name, tensor in clip_weights.items()}
        for name in ("visual.ln_post.bias", "ln_final.weight"):
            weights[name][3] = value
        first = next(name for name in weights if name in ("visual.ln_post.bias", "ln_final.weight"))
        with pytest.raises(CheckpointError, match=rf"clip\.pt is damaged: '{first}'.*not finite"):
            load_clip_weights(saved(weights, tmp_path / "clip.pt"))
