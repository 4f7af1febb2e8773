"""What the names in a state dict tell of the network they belong to."""

from __future__ import annotations

from collections.abc import Container


def count_numbered(names: Container[str], name: str) -> int:
    """How many numbered tensors there are under a name with a {} for the number: 0, 1, … without a gap.

    >>> count_numbered({"block.0.weight", "block.1.weight", "block.3.weight"}, "block.{}.weight")
    2

    Raises:
        KeyError: not even number 0 is there; its name is the argument.
    """
    count = 0
    while name.format(count) in names:
        count += 1
    if not count:
        raise KeyError(name.format(0))
    return count
