"""What the names and shapes in a state dict tell of the network they belong to, and what no network has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping
from typing import Any

from text2seg.errors import CheckpointError, Text2SegError

MOST = 16_384
"""The largest width, and the largest of any size but these."""
MOST_OF = {
    **dict.fromkeys(("vision_layers", "text_layers", "depth", "depths", "decoder_depth", "iou_depth"), 256),
    **dict.fromkeys(("candidates", "expansion", "patch"), 256),
    **dict.fromkeys(("window", "windows"), 64),
    **dict.fromkeys(("image_size", "context_length"), 4096),
    "vocabulary": 1 << 21,
}
LEAST_OF = {"window": 0, "global_blocks": 0, "patch": 4}
"""The smallest of those sizes that need not be 1. A patch is 14 to 32 pixels wide in every published CLIP and SAM."""
MOST_CELLS = 16_384
"""Patches of an input, each of which attends to all others: 128 by 128. Published SAMs have 64 by 64, and time and
memory grow with the square of it."""
PATCH_KEYS = re.compile(r"patch_(size|stride)")
SIZE_KEYS = re.compile(r"(image|img)_size")
FETCHES = ("timm_model_pretrained", "hf_model_pretrained", "attn_implementation", "_attn_implementation", "auto_map")
"""Entries of a configuration that can make other packages fetch weights or code."""


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
        CheckpointError: a size is too small or absurdly large, or the input has too many patches.
    """
    for field in dataclasses.fields(shape):  # type: ignore[arg-type]
        value, most = getattr(shape, field.name), MOST_OF.get(field.name, MOST)
        if dataclasses.is_dataclass(value):
            check_sizes(value, network, told_by)
            continue
        for size in value if isinstance(value, tuple) else (value,):
            least = LEAST_OF.get(field.name, 1)
            if size is not None and not least <= size <= most:
                tensor = f" (by {told_by[field.name]!r})" if field.name in told_by else ""
                name = field.name.replace("_", " ")
                told = f"its {name} is {size:,}{tensor}, not {least} to {most:,}"
                raise CheckpointError(f"not a {network} checkpoint: {told}")
    if patch := getattr(shape, "patch", None):
        check_cells((getattr(shape, "image_size") // patch,) * 2, f"not a {network} checkpoint: its input")  # noqa: B009


def check_cells(grid_hw: tuple[int, int], what: str, error: type[Text2SegError] = CheckpointError) -> None:
    """Raise `error` where an input, called `what`, has more patches than can attend to each other in bounded time."""
    rows, columns = grid_hw
    if rows * columns > MOST_CELLS:
        raise error(f"{what} has {rows:,} x {columns:,} patches, more than the {MOST_CELLS:,} that there may be")


def checked_config(config: Any, source: str) -> Any:
    """A copy of a configuration from a file, without what would fetch code or weights from elsewhere.

    Raises:
        CheckpointError: a number in it is absurdly large, or a patch too small, so that a network of it would never be
            built or never be done.
    """
    if isinstance(config, Mapping):
        kept = {key: value for key, value in config.items() if key not in FETCHES}
        for key, value in kept.items():
            sizes = value if isinstance(value, list) else [value]
            most = _most(str(key))
            least = LEAST_OF["patch"] if PATCH_KEYS.fullmatch(str(key)) else -most
            if any(isinstance(size, int) and abs(size) > most for size in sizes):
                raise CheckpointError(
                    f"{source}: {key!r:.40} is {value!s:.40}, more than the {most:,} that there may be"
                )
            if any(isinstance(size, int) and size < least for size in sizes):
                raise CheckpointError(f"{source}: {key!r:.40} is {value!s:.40}, less than the {least} that are needed")
        return {key: checked_config(value, source) for key, value in kept.items()}
    return [checked_config(each, source) for each in config] if isinstance(config, list) else config


def _most(key: str) -> int:
    """The largest number that an entry of a configuration may have."""
    if re.search(r"layers|depth|blocks_per|stages", key):
        return MOST_OF["depth"]
    if SIZE_KEYS.fullmatch(key):
        return MOST_OF["image_size"]
    return MOST_OF["window"] if key.startswith("window_size") else MOST_OF["vocabulary"]
