"""Choice of device and precision, and the scope of a precision."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from text2seg import runtime
from text2seg.errors import SettingsError
from text2seg.runtime import FULL, Precision, autocast, choose_device, choose_precision

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")
MPS = torch.device("mps")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def machine(monkeypatch):
    """Simulate a machine: number and capability of GPUs, a CPU with or without bf16, with or without MPS."""

    def pretend(*, gpus=0, capability=(8, 0), bf16=False, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(runtime, "_cpu_has_bf16", lambda: bf16)

    return pretend


def test_auto_takes_the_best_device(machine):
    machine()
    assert choose_device("auto") == CPU
    machine(mps=True)
    assert choose_device() == MPS
    machine(gpus=2, mps=True)
    assert choose_device() == CUDA


def test_a_device_is_chosen_by_name(machine):
    machine(gpus=2)
    assert choose_device("cpu") == CPU
    assert choose_device("cuda").type == "cuda"
    assert choose_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "gpu", "", "cpu:1", "cuda:x"])
def test_a_missing_device_is_refused(machine, name):
    machine()
    with pytest.raises(SettingsError, match=f"no device '{name}' here; choose auto, cpu"):
        choose_device(name)


def test_the_error_lists_the_available_devices(machine):
    machine(gpus=2)
    with pytest.raises(SettingsError, match="choose auto, cuda:0 or cuda:1 or cpu"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("device", "here", "dtype", "reason"),
    [
        (CUDA, {"capability": (9, 0)}, BF16, "capability 9.0 has fast bf16"),
        (CUDA, {"capability": (8, 0)}, BF16, "capability 8.0 has fast bf16"),
        (CUDA, {"capability": (7, 5)}, FP16, "capability 7.5 has fast fp16 and no bf16"),
        (CUDA, {"capability": (6, 1)}, FP32, "neither"),
        (CPU, {"bf16": True}, BF16, "this CPU has bf16 instructions"),
        (CPU, {"bf16": False}, FP32, "no bf16 instructions"),
        (MPS, {}, FP32, "not been tested on mps"),
    ],
)
def test_auto_takes_a_precision_that_the_device_supports(machine, device, here, dtype, reason):
    machine(**here)
    precision = choose_precision(device, "auto")
    assert precision.dtype == dtype
    assert reason in precision.reason


def test_the_requested_precision_is_used_and_warns_if_slow(machine):
    machine(bf16=False)
    assert choose_precision(CPU, "fp32") == Precision(FP32, "requested")
    emulated = choose_precision(CPU, "bf16")
    assert emulated.dtype == BF16
    assert emulated.reason.startswith("requested, although this CPU has no bf16")
    machine(bf16=True)
    assert choose_precision(CPU, "bf16") == Precision(BF16, "requested")


def test_an_unsupported_precision_is_refused(machine, monkeypatch):
    machine()
    with pytest.raises(SettingsError, match="precision must be one of auto, bf16, fp16, fp32, got 'tf32'"):
        choose_precision(CPU, "tf32")
    monkeypatch.setattr(runtime, "autocast", lambda *_: torch.autocast("cpu", enabled=False))
    with pytest.raises(SettingsError, match="cpu cannot run in fp16"):
        choose_precision(CPU, "fp16")


def test_a_layer_without_half_precision_is_refused(machine, monkeypatch):
    def missing(*_):
        raise RuntimeError("not implemented for 'Half'")

    machine()
    monkeypatch.setattr(runtime.F, "conv2d", missing)
    with pytest.raises(SettingsError, match="cpu cannot run in fp16"):
        choose_precision(CPU, "fp16")


@pytest.mark.parametrize(
    ("device", "here", "dtype"),
    [
        (CUDA, {"capability": (9, 0)}, BF16),
        (CUDA, {"capability": (7, 0)}, FP32),
        (CPU, {"bf16": True}, BF16),
        (CPU, {"bf16": False}, FP32),
    ],
)
def test_fp16_is_replaced_where_it_overflows(machine, caplog, device, here, dtype):
    machine(**here)
    precision = choose_precision(device, "fp16", fp16_safe=False)
    assert (precision.dtype, precision.reason) == (dtype, "this network overflows in fp16")
    assert caplog.messages == [f"this network overflows in fp16; running it in {precision.name} instead"]
    caplog.clear()
    assert choose_precision(device, "auto", fp16_safe=False).dtype == dtype
    assert not caplog.messages


@pytest.mark.parametrize(
    ("capabilities", "known"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False), ({"bf16": True}, False)],
)
def test_bf16_of_the_cpu_is_read_from_its_capabilities(monkeypatch, capabilities, known):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert runtime._cpu_has_bf16() == known


def test_bf16_of_the_cpu_is_detected_with_older_torch(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert runtime._cpu_has_bf16()
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not runtime._cpu_has_bf16()


def linear_dtype():
    return nn.functional.linear(torch.ones(2, 4), torch.ones(3, 4)).dtype


@pytest.mark.parametrize(("name", "dtype"), [("bf16", BF16), ("fp16", FP16), ("fp32", FP32)])
def test_precision_holds_inside_its_context_only(name, dtype):
    precision = choose_precision(CPU, name)
    assert precision.name == name
    with autocast(CPU, precision):
        assert linear_dtype() == dtype
    assert linear_dtype() == FP32
    assert not torch.is_autocast_enabled("cpu")


def test_precision_holds_in_its_thread_only():
    seen = []
    with autocast(CPU, Precision(BF16, "test")):
        thread = threading.Thread(target=lambda: seen.append(linear_dtype()))
        thread.start()
        thread.join()
    assert seen == [FP32]


def test_full_precision_ignores_an_autocast_of_the_caller():
    with torch.autocast("cpu", BF16):
        with autocast(CPU, FULL):
            assert linear_dtype() == FP32
        assert linear_dtype() == BF16


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, (6 << 30, 8 << 30)),
        ("0::/\n", {"memory.max": "max", "memory.current": "7"}, (6 << 30, 8 << 30)),
        ("0::/\n", {"memory.max": f"{2 << 30}", "memory.current": f"{1 << 29}"}, (3 << 29, 2 << 30)),
        (
            "0::/\n",
            {"memory.max": f"{2 << 30}", "memory.current": f"{1 << 30}"}
            | {"memory.stat": f"anon 9\ninactive_file {1 << 29}\n"},
            (3 << 29, 2 << 30),
        ),
        ("0::/\n", {"memory.max": f"{2 << 30}", "memory.current": f"{3 << 30}"}, (0, 2 << 30)),
        (
            "0::/jobs/one\n",
            {"jobs/one/memory.max": "max", "jobs/one/memory.current": "9"}
            | {"jobs/memory.max": f"{5 << 30}", "jobs/memory.current": f"{1 << 30}"},
            (4 << 30, 5 << 30),
        ),
        (
            "3:cpu,cpuacct:/a\n2:memory:/docker/a:b\n",
            {"memory/memory.stat": "cache 9\nrss 9\n"}
            | {"memory/memory.limit_in_bytes": f"{1 << 30}\n", "memory/memory.usage_in_bytes": f"{1 << 20}\n"},
            ((1 << 30) - (1 << 20), 1 << 30),
        ),
    ],
    ids=[
        "no groups",
        "no limit",
        "a limit",
        "a limit and cached files",
        "more used than allowed",
        "a job in a job",
        "version 1",
    ],
)
def test_free_memory_is_that_of_the_container_or_job(cgroup, files, expected, tmp_path, monkeypatch):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {8 << 20} kB\nMemAvailable: {6 << 20} kB\n")
    if cgroup:
        (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
    folders = {str(Path(name).parent) for name in files}
    for name, content in ({f"{folder}/memory.stat": "anon 9\n" for folder in folders} | files).items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    monkeypatch.setattr(runtime, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(runtime, "_CGROUPS", tmp_path / "groups")
    assert runtime.host_memory() == expected
    assert runtime.free_memory(CPU) == expected[0]
