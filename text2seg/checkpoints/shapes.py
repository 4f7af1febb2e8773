"""What the names and shapes in a state dict tell of the network they belong to, and what no network has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping
from typing import Any

from text2seg.errors import CheckpointError

MOST = 16_384
"""The largest width, and the largest of any size but these."""
MOST_OF = {
    **dict.fromkeys(("vision_layers", "text_layers", "depth", "depths", "decoder_depth", "iou_depth"), 256),
    **dict.fromkeys(("candidates", "window", "windows", "expansion"), 256),
    **dict.fromkeys(("image_size", "context_length"), 4096),
    "vocabulary": 1 << 21,
}
FETCHES = ("timm_model_pretrained", "hf_model_pretrained", "attn_implementation", "_attn_implementation", "auto_map")
"""Entries of a configuration that can make other packages fetch weights or code."""
MAY_BE_NONE = ("window", "global_blocks")


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


def check_sizes(shape: object, network: str, told_by: Mapping[str, str]) -> None:
    """Hold the sizes of an architecture, a dataclass of numbers, against what is ever built, before it is built.

    Args:
        network: what it should be.
        told_by: the tensor whose shape tells a size; it is named in the message.

    Raises:
        CheckpointError: a size is zero or absurdly large.
    """
    for field in dataclasses.fields(shape):  # type: ignore[arg-type]
        value, most = getattr(shape, field.name), MOST_OF.get(field.name, MOST)
        if dataclasses.is_dataclass(value):
            check_sizes(value, network, told_by)
            continue
        for size in value if isinstance(value, tuple) else (value,):
            least = 0 if field.name in MAY_BE_NONE else 1
            if size is not None and not least <= size <= most:
                tensor = f" (by {told_by[field.name]!r})" if field.name in told_by else ""
                name = field.name.replace("_", " ")
                told = f"its {name} is {size:,}{tensor}, not {least} to {most:,}"
                raise CheckpointError(f"not a {network} checkpoint: {told}")


def checked_config(config: Any, source: str) -> Any:
    """A copy of a configuration from a file, without what would fetch code or weights from elsewhere.

    Raises:
        CheckpointError: a number in it is absurdly large, so that a network of it would never be built.
    """
    if isinstance(config, Mapping):
        kept = {key: value for key, value in config.items() if key not in FETCHES}
        for key, value in kept.items():
            sizes = value if isinstance(value, list) else [value]
            most = MOST_OF["depth"] if re.search(r"layers|depth|blocks_per|stages", str(key)) else MOST_OF["vocabulary"]
            if any(isinstance(size, int) and abs(size) > most for size in sizes):
                raise CheckpointError(
                    f"{source}: {key!r:.40} is {value!s:.40}, more than the {most:,} that there may be"
                )
        return {key: checked_config(value, source) for key, value in kept.items()}
    return [checked_config(each, source) for each in config] if isinstance(config, list) else config
