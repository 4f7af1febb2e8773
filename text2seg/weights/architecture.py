"""Sizes of a network, checked before it is built, so that no checkpoint makes it use unbounded memory or time."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping
from typing import Any

from text2seg.errors import CheckpointError, Text2SegError

LARGEST = 16_384
"""Largest value of sizes that are not in `LARGEST_OF`, such as widths."""
LARGEST_OF = {
    **dict.fromkeys(("vision_layers", "text_layers", "depth", "depths", "decoder_depth", "iou_depth"), 256),
    **dict.fromkeys(("candidates", "expansion", "patch"), 256),
    **dict.fromkeys(("window", "windows"), 64),
    **dict.fromkeys(("image_size", "context_length"), 4096),
    "vocabulary": 1 << 21,
}
SMALLEST_OF = {"window": 0, "global_blocks": 0, "patch": 4}
"""Smallest value of sizes for which it is not 1. Patches are 14 to 32 pixels wide in all published CLIPs and SAMs."""
MOST_PATCHES = 16_384
"""Patches of an input, 128 x 128. Published SAMs have 64 x 64, and attention grows with the square of the number."""
PATCH_KEYS = re.compile(r"patch_(size|stride)")
IMAGE_SIZE_KEYS = re.compile(r"(image|img)_size")
FETCHING_KEYS = (
    "timm_model_pretrained",
    "hf_model_pretrained",
    "attn_implementation",
    "_attn_implementation",
    "auto_map",
)
"""Entries of a configuration that can make other packages download weights or code."""


def count_numbered(names: Container[str], name: str) -> int:
    """Return how many tensors have the name with `{}` replaced by 0, 1, … without a gap.

    >>> count_numbered({"block.0.weight", "block.1.weight", "block.3.weight"}, "block.{}.weight")
    2

    Raises:
        KeyError: number 0 is missing. The argument is its name.
    """
    count = 0
    while name.format(count) in names:
        count += 1
    if not count:
        raise KeyError(name.format(0))
    return count


def check_sizes(shape: object, network: str, tensor_of: Mapping[str, str]) -> None:
    """Check the sizes of an architecture before it is built.

    Args:
        shape: a dataclass of numbers, tuples of numbers and other such dataclasses.
        network: what the network should be, for messages.
        tensor_of: for some sizes, the name of the tensor that determines it, for messages.

    Raises:
        CheckpointError: a size is too small or too large, or the input has too many patches.
    """
    for field in dataclasses.fields(shape):  # type: ignore[arg-type]
        value, largest = getattr(shape, field.name), LARGEST_OF.get(field.name, LARGEST)
        if dataclasses.is_dataclass(value):
            check_sizes(value, network, tensor_of)
            continue
        for size in value if isinstance(value, tuple) else (value,):
            smallest = SMALLEST_OF.get(field.name, 1)
            if size is not None and not smallest <= size <= largest:
                tensor = f" (by {tensor_of[field.name]!r})" if field.name in tensor_of else ""
                fault = f"its {field.name.replace('_', ' ')} is {size:,}{tensor}, not {smallest} to {largest:,}"
                raise CheckpointError(f"not a {network} checkpoint: {fault}")
    if patch := getattr(shape, "patch", None):
        check_patches((getattr(shape, "image_size") // patch,) * 2, f"not a {network} checkpoint: its input")  # noqa: B009


def check_patches(grid_hw: tuple[int, int], what: str, error: type[Text2SegError] = CheckpointError) -> None:
    """Raise `error` if an input has too many patches for attention between all of them.

    Args:
        grid_hw: rows and columns of patches.
        what: the input, as the start of the message.
        error: the class to raise.
    """
    rows, columns = grid_hw
    if rows * columns > MOST_PATCHES:
        raise error(f"{what} has {rows:,} x {columns:,} patches, more than the limit of {MOST_PATCHES:,}")


def checked_config(config: Any, source: str) -> Any:
    """Return a copy of a JSON configuration without the entries that would download code or weights.

    Args:
        config: content of the file: dicts, lists and plain values.
        source: the file, for messages.

    Raises:
        CheckpointError: a size is so large, or a patch so small, that the network could not be built or run.
    """
    if isinstance(config, Mapping):
        kept = {key: value for key, value in config.items() if key not in FETCHING_KEYS}
        for key, value in kept.items():
            sizes = value if isinstance(value, list) else [value]
            largest = _largest_of_key(str(key))
            smallest = SMALLEST_OF["patch"] if PATCH_KEYS.fullmatch(str(key)) else -largest
            if any(isinstance(size, int) and abs(size) > largest for size in sizes):
                raise CheckpointError(f"{source}: {key!r:.40} is {value!s:.40}, more than the limit of {largest:,}")
            if any(isinstance(size, int) and size < smallest for size in sizes):
                raise CheckpointError(f"{source}: {key!r:.40} is {value!s:.40}, less than the {smallest} required")
        return {key: checked_config(value, source) for key, value in kept.items()}
    return [checked_config(each, source) for each in config] if isinstance(config, list) else config


def _largest_of_key(key: str) -> int:
    """Return the largest number that an entry of a configuration may have."""
    if re.search(r"layers|depth|blocks_per|stages", key):
        return LARGEST_OF["depth"]
    if IMAGE_SIZE_KEYS.fullmatch(key):
        return LARGEST_OF["image_size"]
    return LARGEST_OF["window"] if key.startswith("window_size") else LARGEST_OF["vocabulary"]
