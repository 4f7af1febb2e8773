"""How networks run: their device, their precision, and who watches their calls.

Nothing here changes global state: device and precision are values, autocast is entered for each call, and a watch
belongs to one thread.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
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
    """Dtype of matrix products (bfloat16, float16 or float32), and the reason for it."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """bf16, fp16 or fp32."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)


FULL = Precision(torch.float32, "exact")
UNTOLD_MEMORY = 4 << 30
"""Free memory in bytes that is assumed where the system does not tell."""


_watch: ContextVar[Callable[[int], None] | None] = ContextVar("watch", default=None)


@contextmanager
def watched(watch: Callable[[int], None]) -> Iterator[None]:
    """Call `watch` before each call of a network in this thread, with the number of point sets that SAM's decoder will
    answer; 0 for other networks. It is also called while this thread waits for its turn with models that many share. It
    may raise `StoppedError`, which ends the work."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def before_call(point_sets: int = 0) -> None:
    """Tell the watch of this thread, if there is one, that a network is called now, or that it still waits for one; see
    `watched`."""
    if watch := _watch.get():
        watch(point_sets)


def choose_device(name: str = "auto") -> torch.device:
    """Return a device by name.

    Args:
        name: cpu, mps, cuda, cuda with a number (cuda:1), or auto for the first CUDA device, else MPS, else the CPU.

    Raises:
        SettingsError: this machine has no such device. The message lists the devices.
    """
    here = _devices()
    if name == "auto":
        return torch.device(here[0])
    if name in here or (name == "cuda" and "cuda:0" in here):
        return torch.device(name)
    raise SettingsError(f"no device {name!r} here; choose auto, {' or '.join(here)}")


def _devices() -> list[str]:
    """Return the devices of this machine, best first."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def choose_precision(device: torch.device, wanted: PrecisionName = "auto", *, fp16_safe: bool = True) -> Precision:
    """Return the precision for a network on a device.

    `auto` is the fastest precision with hardware support: bf16 on CUDA with capability 8 or higher, fp16 on capability
    7, bf16 on x86 CPUs with bf16 instructions, else fp32. (Without such instructions, bf16 is emulated and slower than
    fp32.)

    Args:
        device: where the network runs.
        wanted: bf16, fp16, fp32 or auto.
        fp16_safe: False for a network whose activations exceed the range of fp16. It runs in bf16 if the device
            supports that, else in fp32. If fp16 was requested, a warning is logged.

    Raises:
        SettingsError: there is no such precision, or the device does not support it.
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
    return Precision(dtype, "requested" if dtype in (native, torch.float32) else f"requested, although {why}")


def _native(device: torch.device) -> tuple[torch.dtype, str]:
    """Return the fastest dtype with hardware support, and the reason."""
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
    return torch.float32, f"lower precision than fp32 has not been tested on {device.type}"


def _cpu_has_bf16() -> bool:
    """Return whether an x86 CPU has bf16 instructions. False if torch cannot tell. (ARM has not been measured.)"""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    older = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(older and older())


def _runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the layers that we use run on a device in a dtype, by running small ones."""
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
    """Return a context in which networks with float32 weights run in this precision, in this thread only.

    fp32 disables an autocast of the caller, so a precision means the same everywhere.
    """
    if precision.dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    # No cache of cast weights: threads would share it, and each call uses each weight only once.
    return torch.autocast(device.type, dtype=precision.dtype, cache_enabled=False)


_FILLED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)
_TAKEN = (torch.tensor, torch.as_tensor, torch.full, torch.arange, torch.linspace, torch.eye)


class Defaults(TorchFunctionMode):
    """Context with fixed defaults for new tensors, in this thread only.

    Tensors without an explicit dtype or device are float32 (or integers) on one device, whatever the program has set
    with `torch.set_default_dtype` and `torch.set_default_device`.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """
        Args:
            device: the default device; None is the CPU.
        """
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
    """Context in which new modules have the right shapes but need no memory and no random numbers for their weights.

    Each weight is one number expanded to its shape. So the shapes of a checkpoint can be compared with an architecture
    of any size before its weights are loaded. The device "meta" would do the same, but it imports torch's compiler,
    which adds seconds to every start.
    """

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


_IMPORT_LOCK = threading.Lock()


def import_part(package: str, part: str) -> ModuleType:
    """Import one module or subpackage of an installed package without running the package's own `__init__`.

    `clip` and `segment_anything` import torchvision in their `__init__`, and with it torch's compiler, which triples
    the start-up time; their networks need neither. The part is loaded from its file under a module name of ours, so
    `import clip` elsewhere in the program is not affected.

    Raises:
        ModuleNotFoundError: the package is not installed, or has no such part.
    """
    name = f"_text2seg_{package}_{part}"
    with _IMPORT_LOCK:
        if name in sys.modules:
            return sys.modules[name]
        found = find_spec(package)  # finds a top-level package without importing it
        folder = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
        files = [folder / f"{part}.py", folder / part / "__init__.py"] if folder else []
        file = next((file for file in files if file.is_file()), None)
        spec = spec_from_file_location(name, file) if file else None
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named '{package}.{part}'", name=package)
        module = sys.modules[name] = module_from_spec(spec)  # the part's relative imports look it up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def host_memory() -> tuple[int, int] | None:
    """Return the available and the whole memory of this machine, or of the container or job that this process runs in,
    in bytes; None where the system does not tell."""
    try:
        lines = (_PROC / "meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    sizes = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    bounds = [(sizes["MemAvailable"], sizes["MemTotal"]), *_cgroup_memory()]
    return max(min(free for free, _ in bounds), 0), min(whole for _, whole in bounds)


_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def _cgroup_memory() -> Iterator[tuple[int, int]]:
    """Yield the free memory and the limit of each control group of this process that has a limit, in bytes.

    Groups are nested, and the limit of each counts. Cached files that were not used lately do not count as used,
    because they make room; a group of version 1 names only its own. In a container the mounted folder is the group
    itself, also if the path of the process says otherwise.

    Source: the kernel's documentation, admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory.
    """
    try:
        lines = (_PROC / "self" / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names = _CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount, names = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = mount / path.lstrip("/")
        for group in [each for each in (folder, *folder.parents) if each.is_relative_to(mount)]:
            try:
                limit, used, stat = ((group / name).read_text("ascii").strip() for name in (*names, "memory.stat"))
            except OSError:  # the root has no limit, and a container does not see the groups around it
                continue
            if limit != "max":
                cached = next((line for line in stat.splitlines() if line.startswith("inactive_file ")), "0")
                yield int(limit) - int(used) + int(cached.split()[-1]), int(limit)


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes; `UNTOLD_MEMORY` where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    memory = host_memory()
    return memory[0] if memory else UNTOLD_MEMORY
