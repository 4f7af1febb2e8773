"""Networks made into machine code by `torch.compile`, where there is a compiler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from text2seg.errors import SettingsError

Network = Callable[..., Tensor]


def compiled(network: Network, device: torch.device) -> Network:
    """The function, compiled at its first call for each shape of its inputs.

    A small one is compiled at once, so that a missing compiler shows before a night's run and not in it.

    Raises:
        SettingsError: nothing can be compiled for this device here; says what was missing.
    """
    try:
        _compile(_trial)(torch.ones(8, dtype=torch.float32, device=device))
    except Exception as error:  # torch lets anything out here: its own errors, the compiler's, RuntimeError, OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(
            f"cannot compile for {device} here, a C++ compiler such as g++ is needed (and Triton on a GPU): {reason}; "
            "leave --compile out"
        ) from error
    return _compile(network)


def _compile(network: Network) -> Network:
    # Dynamic shapes would save the filling up of batches, and are slower, or fail, in attention with positions.
    made: Network = torch.compile(network, dynamic=False, fullgraph=True)
    return made


def _trial(numbers: Tensor) -> Tensor:
    return numbers.sin() + numbers.cos()
