"""The reader of weights files: equal to torch's on valid files, and safe on malicious ones."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import functools
import io
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from checkpoint_builders import archive_that_writes
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from text2seg.errors import CheckpointError
from text2seg.weights import load, pickles
from text2seg.weights.formats import open_weights
from text2seg.weights.load import load_tensors
from text2seg.weights.pickles import PickledObject
from text2seg.weights.stored_tensors import StoredTensor

PLAIN = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16), "n": torch.tensor(7)}


def saved(content, path: Path, **options) -> Path:
    torch.save(content, path, **options)
    return path


def read(path: Path):
    """Return the content of a file with all tensors read."""

    def whole(value):
        if isinstance(value, dict):
            return {key: whole(each) for key, each in value.items()}
        return value.read() if isinstance(value, StoredTensor) else value

    with open_weights(path) as content:
        return whole(content)


def same(one, other) -> bool:
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and torch.equal(one[n], other[n]) for n in one
    )


class TestValidFiles:
    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("in_zip", [True, False])
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_tensors_equal_those_of_torch(self, tmp_path, in_zip, protocol):
        shared = torch.arange(20.0)
        kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
        weights = {
            **{str(kind): torch.arange(4).to(kind) for kind in kinds},
            "scalar": torch.tensor(1.5),
            "nothing": torch.zeros(0, 3),
            "view": shared[3:11].view(2, 4).T,
            "all": shared,
            "parameter": nn.Parameter(torch.ones(2)),
        }
        options = {"_use_new_zipfile_serialization": in_zip, "pickle_protocol": protocol}
        path = saved(weights, tmp_path / "w.pt", **options)
        found, wanted = read(path), torch.load(path, weights_only=False)
        assert same(found, wanted)
        assert found["view"].stride() == (1, 4)
        assert found["view"].untyped_storage().data_ptr() == found["all"].untyped_storage().data_ptr()

    @pytest.mark.filterwarnings("ignore:`torch.jit")
    @pytest.mark.parametrize(
        "make", [torch.jit.script, functools.partial(torch.jit.trace, example_inputs=torch.ones(2))]
    )
    def test_tensors_equal_the_state_dict_of_torchscript(self, tmp_path, make):
        class Part(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight, self.no_part_of_it = nn.Parameter(torch.rand(3)), torch.rand(4)
                self.register_buffer("kept", torch.rand(2))
                self.register_buffer("left", torch.rand(2), persistent=False)
                self.number = 3

            def forward(self, x: torch.Tensor):
                return x * self.weight.sum() + self.kept.sum() + self.left.sum() + self.no_part_of_it.sum()

        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.parts, self.input_resolution = nn.ModuleList([Part(), nn.Linear(2, 2)]), 224
                self.again = self.parts[0]

            def forward(self, x: torch.Tensor):
                for part in self.parts:
                    x = part(x)
                return self.again(x)

        path = tmp_path / "w.pt"
        torch.jit.save(make(Whole()), str(path))
        assert same(read(path), torch.jit.load(str(path)).state_dict())

    def test_float8_tensors_are_read(self, tmp_path):
        weights = {str(kind): torch.ones(3).to(kind) for kind in (torch.float8_e4m3fn, torch.float8_e5m2)}
        found = load_tensors(saved(weights, tmp_path / "w.pt"))
        assert {name: tensor.float().tolist() for name, tensor in found.items()} == {
            name: [1, 1, 1] for name in weights
        }

    def test_the_other_byte_order_is_read(self, tmp_path):
        path = saved(PLAIN, tmp_path / "w.pt")
        other = {"little": b"big", "big": b"little"}[sys.byteorder]

        def swapped(name, content):
            if name.endswith("byteorder"):
                return other
            width = {"0": 4, "1": 2, "2": 8}.get(name.rpartition("/data/")[2])
            return np.frombuffer(content, f"u{width}").byteswap().tobytes() if width else content

        assert same(read(rewritten(path, swapped)), PLAIN)

    def test_objects_beside_the_weights_are_not_created(self, tmp_path):
        beside = {
            "args": argparse.Namespace(lr=0.1, path=Path("x")),
            "when": datetime.datetime(2024, 1, 2),
            "loss": np.float32(0.5),
            "scores": np.arange(3),
            "set": {1, 2},
            "make": functools.partial(dict, a=1),
            "function": torch.nn.functional.relu,
            "device": torch.device("cpu"),
            "shape": torch.Size([2, 3]),
            "generator": torch.get_rng_state(),
            "types": [int, str, range, type(None), ..., NotImplemented, collections.defaultdict(int)],
            "log": [0.5] * 1_000_000,
            "quantised": {"8 bits": quantised(torch.quint8), "4 bits": quantised(torch.quint4x2)},
            "deep": {"config": [Own(), (1, None, True, 2**70, "é", b"x")]},
        }
        for protocol in (2, 4, 5):
            path = saved({"model": PLAIN, **beside}, tmp_path / "w.pt", pickle_protocol=protocol)
            assert same(load_tensors(path), PLAIN)
            found = read(path)
            assert isinstance(found["args"], PickledObject)
            assert found["args"].attributes["lr"] == 0.1
            assert found["deep"]["config"][0].kind.name == "Own"
            assert found["deep"]["config"][1] == (1, None, True, 2**70, "é", b"x") or protocol == 2
        assert Own.made == 1, "an object was made while the file was read"


def quantised(dtype: torch.dtype) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_channel(torch.ones(4, 4), torch.ones(4), torch.zeros(4), 0, dtype)


class Own:
    """A class of someone's training code."""

    made = 0

    def __init__(self):
        Own.made += 1

    def __setstate__(self, state):
        raise AssertionError("ran")

    def __getstate__(self):
        return {"width": 3}


def rewritten(path: Path, change) -> Path:
    """Return the archive with some contents replaced, stored as torch stores them."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in entries:
            archive.writestr(zipfile.ZipInfo(info.filename), change(info.filename, content))
    return path


def refused(path: Path, match: str = r"w\.pt") -> str:
    with pytest.raises(CheckpointError, match=match) as error:
        load_tensors(path)
    assert len(str(error.value)) < 500 + len(str(path))
    return str(error.value)


@pytest.fixture
def harmful(tmp_path, monkeypatch):
    """Return a TorchScript archive that writes a file "ran" when torch reads it."""
    monkeypatch.chdir(tmp_path)

    yield archive_that_writes()
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit")
class TestAmbiguousArchives:
    """Archives that torch and Python's zipfile read differently are refused."""

    @pytest.fixture
    def harmless(self, tmp_path):
        return saved(PLAIN, tmp_path / "harmless.pt").read_bytes()

    def check(self, path, content):
        path.write_bytes(content)
        refused(path, r"w\.pt (is damaged|was refused)")

    def test_two_archives_in_sequence_are_refused(self, tmp_path, harmful, harmless):
        for content in (harmful + harmless, harmless + harmful):
            self.check(tmp_path / "w.pt", content)

    def test_an_archive_in_a_comment_is_refused(self, tmp_path, harmful, harmless):
        for inner, outer in ((harmful, harmless), (harmless, harmful)):
            small = inner[:60000]
            self.check(tmp_path / "w.pt", outer[:-2] + struct.pack("<H", len(small)) + small)
            self.check(tmp_path / "w.pt", outer[:-2] + struct.pack("<H", 22) + outer[-22:])

    @pytest.mark.parametrize("field", ["locator", "record", "start", "size", "count"])
    def test_wrong_zip64_records_are_refused(self, tmp_path, harmful, harmless, field):
        shift = len(harmful)
        place, form = {
            "locator": (-42 + 8, "<Q"),
            "record": (-98 + 48, "<Q"),
            "start": (-22 + 16, "<I"),
            "size": (-22 + 12, "<I"),
            "count": (-22 + 10, "<H"),
        }[field]
        for content in (harmless, harmful + harmless):
            for value in (0, 1, shift, len(content) - 98):
                changed = bytearray(content)
                if struct.unpack_from(form, changed, len(changed) + place)[0] != value % (1 << 16):
                    struct.pack_into(form, changed, len(changed) + place, value % (1 << (16 if form == "<H" else 32)))
                    self.check(tmp_path / "w.pt", bytes(changed))

    def test_bytes_before_the_first_entry_are_refused(self, tmp_path, harmless):
        self.check(tmp_path / "w.pt", b"PK\3\4" + harmless)
        # moved, with all places told anew, as zipfile allows it
        buffer = io.BytesIO(b"PK\3\4 is no entry")
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("w/data.pkl", b"\x80\x02}.")
        self.check(tmp_path / "w.pt", buffer.getvalue())

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_a_repeated_entry_name_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
            for content in (b"\x80\x02}.", b"\x80\x02}."):
                archive.writestr("w/data.pkl", content)
        refused(tmp_path / "w.pt", "two entries")

    def test_contradictory_entry_headers_are_refused(self, tmp_path, harmless):
        for place, value in ((4 + 4, 8), (2 + 4, 1), (30, ord("x"))):  # method, flags, name
            changed = bytearray(harmless)
            changed[place] = value
            self.check(tmp_path / "w.pt", bytes(changed))

    def test_overlapping_entries_are_refused(self, tmp_path):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("w/data.pkl", b"\x80\x02}.")
            archive.writestr("w/data/0", b"12345678")
        content = bytearray(buffer.getvalue())
        first = content.index(b"PK\1\2")
        struct.pack_into("<I", content, first + 20, 60)
        struct.pack_into("<I", content, first + 24, 60)
        struct.pack_into("<2I", content, 18, 60, 60)
        self.check(tmp_path / "w.pt", bytes(content))

    def test_the_harmful_archive_alone_is_refused_and_is_harmful(self, tmp_path, harmful):
        self.check(tmp_path / "w.pt", harmful)
        (tmp_path / "elsewhere").mkdir()
        torch.jit.load(str(tmp_path / "w.pt"))
        assert (tmp_path / "ran").exists(), "the file is harmless, so these tests have shown nothing"
        (tmp_path / "ran").unlink()


class TestDecompressionBombs:
    def test_compressed_tensors_are_refused(self, tmp_path):
        path = saved({"a": torch.zeros(2_000_000)}, tmp_path / "w.pt")
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        assert path.stat().st_size < 50_000
        refused(path, "cannot be read: it is compressed")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content, zipfile.ZIP_STORED if name.endswith(".pkl") else None)
        refused(path, "cannot be read: it is compressed")

    def test_code_longer_than_declared_is_refused(self, tmp_path):
        entries = {"w/data.pkl": b"\x80\x02}.", "w/constants.pkl": b"\x80\x02).", "w/code/a.py": b" " * 70_000_000}
        with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content, zipfile.ZIP_DEFLATED if name.endswith(".py") else None)
        refused(tmp_path / "w.pt", "code")

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"}" * 100 + b"." + b"N" * 10, id="items left over"),
            pytest.param(b")" + b"\x85" * 20_000 + b"N0.", id="deep tuple"),
            pytest.param(b"}" + b")" + b"\x85" * 20_000 + b"Ns.", id="deep tuple as a key"),
            pytest.param(b"]" * 20_000 + b"a" * 19_999 + b".", id="deep list"),
            pytest.param(b")" + b"q\0h\0\x86" * 20_000 + b".", id="tuples that double"),
            pytest.param(b"(" * 2000 + b".", id="many marks"),
            pytest.param(b"\x8b" + struct.pack("<i", 1_000_000) + b"\xff" * 1_000_000 + b".", id="long number"),
            pytest.param(b"\x8b\xff\xff\xff\xff.", id="negative length"),
            pytest.param(b"L" + b"9" * 1_000_000 + b"L\n.", id="digits"),
            pytest.param(b"X\xff\xff\xff\xff.", id="text beyond the end"),
            pytest.param(b"\x8e" + b"\xff" * 8 + b".", id="bytes beyond the end"),
            pytest.param(b"\x96" + b"\xff" * 7 + b"\x7f.", id="bytearray beyond the end"),
            pytest.param(b"Nr\xff\xff\xff\xff.", id="place in the memo"),
            pytest.param(b"\x95" + b"\xff" * 8 + b"N.", id="frame"),
            pytest.param(b"h\7.", id="nothing in the memo"),
            pytest.param(b"\x80\x09.", id="protocol"),
            pytest.param(b"c" + b"x" * 5000 + b"\n.", id="name without an end"),
            pytest.param(b"cos\nsystem\n(X\2\0\0\0lstR.", id="call"),
            pytest.param(b"(ios\nsystem\n.", id="INST"),
            pytest.param(b"(cx\ny\no.", id="OBJ"),
            pytest.param(b"\x82\1.", id="EXT1"),
            pytest.param(b"Px\n.", id="PERSID"),
            pytest.param(b"\x97\x98.", id="buffers"),
            pytest.param(b"cx\ny\n)R)R.", id="calling what was made"),
            pytest.param(b"cx\ny\n)\x81}b}.R", id="calling nothing"),
            pytest.param(b"ctorch._utils\n_rebuild_tensor_v2\n)R.", id="tensor of nothing"),
            pytest.param(b"NQ.", id="storage of nothing"),
            pytest.param(
                b"}" + b"".join(b"\x8a\x08" + struct.pack("<q", 1 << 62) + b"N" for _ in "x") + b"u.", id="items"
            ),
            pytest.param(b"", id="nothing"),
        ],
    )
    def test_pickles_that_expand_are_refused(self, tmp_path, content):
        for head in (b"", b"\x80\x02"):
            with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
                archive.writestr("w/data.pkl", head + content)
            refused(tmp_path / "w.pt", r"w\.pt (is damaged|was refused|holds)")
        (tmp_path / "w.pt").write_bytes(b"\x80\x02" + content)
        refused(tmp_path / "w.pt", r"w\.pt (is damaged|was refused|holds)")

    def test_pickles_with_too_many_steps_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
        with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
            archive.writestr("w/data.pkl", b"\x80\x02" + b"N" * 1001 + b".")
        refused(tmp_path / "w.pt", "more than 1,000 steps")

    def test_modules_nested_exponentially_are_refused(self, tmp_path):
        levels = b"}" + b"".join(b"q\0c__torch__\nM\n)\x81}X\1\0\0\0ah\0sX\1\0\0\0bh\0sb" for _ in range(60))
        with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
            archive.writestr("w/data.pkl", b"\x80\x02" + levels + b".")
            archive.writestr("w/constants.pkl", b"\x80\x02).")
            archive.writestr("w/code/__torch__.py", "class M(Module):\n  __parameters__ = []\n")
        refused(tmp_path / "w.pt", "too many")

    def test_tensors_beyond_their_storage_are_refused(self, tmp_path):
        for shape, stride, offset in (((7,), (1,), 0), ((2,), (1,), 5), ((2, 2), (5, 1), 0), ((1 << 50, 0), (1, 1), 0)):
            tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.dumps(
                (Pid(), offset, shape, stride, False, None), protocol=2
            ).removeprefix(b"\x80\x02").removesuffix(b".").replace(PID, STORAGE)
            with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
                archive.writestr("w/data.pkl", b"\x80\x02}X\1\0\0\0a" + tensor + b"Rs.")
                archive.writestr("w/data/0", bytes(24))
            refused(tmp_path / "w.pt", "storage|invalid")

    def test_tensors_larger_than_memory_are_refused(self, tmp_path, monkeypatch):
        one = torch.zeros(10_000_000)
        path = saved({str(n): one[n:] for n in range(2000)}, tmp_path / "w.pt")
        monkeypatch.setattr(load.os, "sysconf", lambda name: 100_000)  # 10 GB
        refused(path, r"needs .* GB")


class Pid:
    def __reduce__(self):
        return (pickles.Global, ())


PID = pickle.dumps(Pid(), protocol=2).removeprefix(b"\x80\x02").removesuffix(b".")
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\6tQ"


class TestSafetensors:
    def write(self, path: Path, header, data: bytes = bytes(16)) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    def test_tensors_equal_those_of_safetensors(self, tmp_path):
        kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
        weights = {str(kind): torch.arange(6).to(kind).view(2, 3) for kind in kinds} | {"s": torch.tensor(1.0)}
        save_file(weights, tmp_path / "w.pt", metadata={"format": "pt"})
        found = read(tmp_path / "w.pt")
        assert same({n: found[n] for n in weights}, weights)

    @pytest.mark.parametrize(
        "header",
        [
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
            {n: {"dtype": "F32", "shape": [end], "data_offsets": [0, 4 * end]} for n, end in (("a", 4), ("b", 1))},
            {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]}},
            {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
            {"a": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}},
            {"a": {"dtype": "F32", "shape": [4] * 100, "data_offsets": [0, 16]}},
            {"a": {"dtype": "F32", "shape": [True, 4], "data_offsets": [0, 16]}},
            {"a": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}},
            {"a": {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]}},
            {"a": {"dtype": "F32", "shape": [4]}},
            {"a": 3},
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "b": 3},
            b'{"a":' + b"[" * 20_000,
            b'{"a":{"dtype":"F32","shape":[' + b"9" * 20_000 + b'],"data_offsets":[0,16]}}',
            b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
            b"{\xff}",
            b"{}",
        ],
    )  # fmt: skip
    def test_invalid_headers_are_refused(self, tmp_path, header):
        refused(self.write(tmp_path / "w.pt", header), r"w\.pt (is damaged|cannot be read)")

    def test_a_header_beyond_the_end_of_the_file_is_refused(self, tmp_path):
        (tmp_path / "w.pt").write_bytes(struct.pack("<Q", 1 << 31) + b"{}")
        refused(tmp_path / "w.pt", r"w\.pt is damaged")


def seeds() -> dict[str, bytes]:
    def written(write) -> bytes:
        buffer = io.BytesIO()
        write(buffer)
        return buffer.getvalue()

    content = {"model": PLAIN, "args": argparse.Namespace(lr=1)}
    return {
        "zip": written(lambda b: torch.save(content, b)),
        "legacy": written(lambda b: torch.save(content, b, _use_new_zipfile_serialization=False)),
        "protocol 4": written(lambda b: torch.save(PLAIN, b, pickle_protocol=4)),
        "safetensors": save(PLAIN),
    }


@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4", "safetensors"])
def test_random_damage_is_harmless_or_a_clear_error(form, tmp_path_factory):
    content, path = seeds()[form], tmp_path_factory.mktemp("fuzz") / "w.pt"
    places = st.integers(0, len(content) - 1) | st.integers(0, min(len(content) - 1, 600))
    pieces = st.sampled_from([b"\xff" * 4, b"\0\0\0\x80", b"}", b"R", b"b", b"u", b"\x81", b"\x85", b"("])
    pieces |= st.binary(min_size=0, max_size=4)

    @hypothesis.settings(max_examples=80, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(st.lists(st.tuples(places, pieces, st.integers(0, 4)), min_size=1, max_size=4))
    def check(changes):
        changed = content
        for place, piece, dropped in changes:
            changed = changed[:place] + piece + changed[place + dropped :]
        path.write_bytes(without_checksums(changed))
        with contextlib.suppress(CheckpointError):
            load_tensors(path)

    check()


PK_CENTRAL = b"PK\1\2"


def without_checksums(content: bytes) -> bytes:
    """Return a zip file without checksums, so that changed content is still read."""
    parts = content.split(PK_CENTRAL)
    return PK_CENTRAL.join([parts[0], *(part[:12] + bytes(4) + part[16:] for part in parts[1:])])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "not a file")


def test_damage_inside_a_tensor_is_refused(tmp_path):
    path = saved(PLAIN, tmp_path / "w.pt")
    content = path.read_bytes()
    path.write_bytes(content.replace(PLAIN["a"].numpy().tobytes(), bytes(24)))
    refused(path, "checksum")


def test_an_archive_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(PLAIN, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(load_tensors(path), PLAIN)
