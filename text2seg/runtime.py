"""Where the networks run and in which arithmetic, with the reason in words.

Nothing here changes global state: a device and a precision are values, and autocast is entered per call.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from text2seg.errors import SettingsError

logger = logging.getLogger(__name__)

PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtype that matrix products run in (bfloat16, float16 or float32), and why this one."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """bf16, fp16 or fp32."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)


FULL = Precision(torch.float32, "exact")


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` takes the first CUDA device, else MPS, else the CPU.

    Args:
        name: auto, cpu, mps, cuda, or cuda with a number, as in cuda:1.

    Raises:
        SettingsError: there is no such device here; says what there is.
    """
    here = _devices()
    if name == "auto":
        return torch.device(here[0])
    if name in here or (name == "cuda" and "cuda:0" in here):
        return torch.device(name)
    raise SettingsError(f"no device {name!r} here; choose auto, {' or '.join(here)}")


def _devices() -> list[str]:
    """The devices of this machine, best first."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def choose_precision(device: torch.device, wanted: PrecisionName = "auto", *, fp16_safe: bool = True) -> Precision:
    """The arithmetic for the networks on that device.

    `auto` is the fastest that the device has circuits for: bf16 on CUDA from capability 8 on, fp16 on CUDA 7, bf16
    on an x86 CPU with bf16 instructions, else fp32. (bf16 without such instructions is emulated and slower than fp32.)

    Args:
        fp16_safe: false for a network whose activations leave the range of fp16. fp16 then gives way to bf16
            where the device has it, else to fp32; if it was asked for, a warning says so.

    Raises:
        SettingsError: no such precision, or the device cannot run it.
    """
    if wanted not in get_args(PrecisionName):
        raise SettingsError(f"precision must be one of {', '.join(get_args(PrecisionName))}, got {wanted!r}")
    native, why = _native(device)
    if not fp16_safe and (wanted == "fp16" or (wanted == "auto" and native == torch.float16)):
        dtype = torch.bfloat16 if native == torch.bfloat16 else torch.float32
        precision = Precision(dtype, "this network overflows in fp16")
        if wanted == "fp16":
            logger.warning("%s; running it in %s instead", precision.reason, precision.name)
        return precision
    if wanted == "auto":
        return Precision(native, why)
    dtype = _DTYPES[wanted]
    if dtype != torch.float32 and not _runs(device, dtype):
        raise SettingsError(f"{device} cannot run in {wanted}; use fp32 or auto")
    return Precision(dtype, "asked for" if dtype in (native, torch.float32) else f"asked for, though {why}")


def _native(device: torch.device) -> tuple[torch.dtype, str]:
    """The fastest arithmetic that the device has circuits for, and how we know."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        chip = f"a GPU of CUDA capability {major}.{minor}"
        if major >= 8:
            return torch.bfloat16, f"{chip} has fast bf16"
        if major >= 7:
            return torch.float16, f"{chip} has fast fp16 and no bf16"
        return torch.float32, f"{chip} has neither fast bf16 nor fast fp16"
    if device.type == "cpu":
        if _cpu_has_bf16():
            return torch.bfloat16, "this CPU has bf16 instructions"
        return torch.float32, "this CPU has no bf16 instructions that are known to be fast"
    return torch.float32, f"less than fp32 has not been checked on {device.type}"


def _cpu_has_bf16() -> bool:
    """Whether an x86 CPU multiplies bf16 natively; false where torch cannot tell. (ARM's has not been measured.)"""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    older = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(older and older())


def _runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kinds of layers we use run on the device in that dtype, found by running small ones."""
    try:
        with torch.no_grad(), autocast(device, Precision(dtype, "trial")):
            image = torch.ones(1, 8, 4, 4, dtype=torch.float32, device=device)
            weight = torch.ones(8, 8, 2, 2, dtype=torch.float32, device=device)
            image = F.conv_transpose2d(F.conv2d(image, weight), weight)
            tokens = F.linear(image.flatten(2).transpose(1, 2), weight[..., 0, 0])
            return F.scaled_dot_product_attention(tokens, tokens, tokens).dtype == dtype
    except RuntimeError:
        return False


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """A context in which networks with float32 weights run in this precision, in this thread only.

    fp32 switches off an autocast that the caller may be in, so a precision means the same everywhere.
    """
    if precision.dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    # No cache of cast weights: threads share it, and one call uses each weight once.
    return torch.autocast(device.type, dtype=precision.dtype, cache_enabled=False)


_FILLED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)
_TAKEN = (torch.tensor, torch.as_tensor, torch.full, torch.arange, torch.linspace, torch.eye)


class Defaults(TorchFunctionMode):
    """In this thread, tensors that are made without a dtype or a device are float32 (or integers) on one device,
    whatever `torch.set_default_dtype` and `torch.set_default_device` have set for the program around."""

    def __init__(self, device: torch.device | None = None) -> None:
        """`device` is the CPU by default."""
        super().__init__()
        self.device = device or torch.device("cpu")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in _FILLED or func in _TAKEN:
            named = {**named, "device": named.get("device") or self.device}
            if named.get("dtype") is None and func in _FILLED:
                named["dtype"] = torch.float32
            elif named.get("dtype") is None:
                made = func(*args, **named)
                return made.float() if made.dtype == torch.float64 == torch.get_default_dtype() else made
        return func(*args, **named)


class Unfilled(Defaults):
    """Modules that are made under it have the right shapes, but take no memory for their weights and no random numbers,
    because others take their place: each tensor is one number that is seen everywhere. So the shapes of a checkpoint
    can be held against an architecture of any size. The device "meta" would do the same, but it imports torch's
    compiler: seconds of every start."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else named["tensor"]
        if func in _FILLED:
            sides = args[0] if args and not isinstance(args[0], int) else args or named["size"]
            dtype = named.get("dtype") or torch.float32
            return torch.zeros((), dtype=dtype, device=self.device).expand(tuple(sides))
        seen = next((each for each in args if isinstance(each, Tensor) and 0 in each.stride()), None)
        if seen is not None and (name in _SCALES or (name.endswith("_") and not name.endswith("__"))):
            return seen
        return super().__torch_function__(func, types, args, named)


_SCALES = ("mul", "__mul__", "__rmul__", "div", "__truediv__")
