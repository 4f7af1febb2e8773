"""Which settings have an effect together. The command line refuses flags without one, and the app writes none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, get_args, get_type_hints

from text2seg.config import AutomaticSettings, MapSettings, MaskSettings, PointSettings, PresenceSettings, RaySettings


@dataclass(frozen=True, slots=True)
class _Condition:
    """Settings, by the names of their fields, that have an effect only if `holds` for the values of all flags."""

    flags: frozenset[str]
    says: str
    holds: Callable[[Mapping[str, Any]], bool]


def _names(*settings: type[Any]) -> frozenset[str]:
    return frozenset(field.name for each in settings for field in fields(each))


_OF_CLIP = _names(MapSettings, PointSettings) | {"clip", "card", "choice", "prompt", "quality", "resolve_overlaps"}
_OF_CLIP |= {"tile", "tile_overlap"}
METHODS_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("method", "architecture", "redundancy", "labels", "input_size"), ("auto", "reference", "regions")),
    **dict.fromkeys(("templates", "refine", "overlap", "quality"), ("auto", "reference", "regions")),
    **dict.fromkeys(("threshold", "downsample"), ("auto", "reference")),
    **dict.fromkeys(("choice", "resolve_overlaps"), ("auto", "regions")),
    **dict.fromkeys(("instances", "floor", "prominence", "prompt"), ("auto",)),
    "region_features": ("regions",),
}
"""The methods that each setting of maps, points and masks has an effect with; a test knows all settings and methods."""


def _is_method(only: str, values: Mapping[str, Any]) -> bool:
    return bool(values.get("method", only) == only)


def _is_other_method(none: str, values: Mapping[str, Any]) -> bool:
    return bool(values.get("method") != none)


def _of_methods() -> Iterator[_Condition]:
    """Yield the conditions of `METHODS_OF`. Settings of one method that is not the default are refused without it,
    others with each method that they have no effect with."""
    methods = get_args(get_type_hints(PointSettings)["method"])
    for only in methods[1:]:
        flags = frozenset(name for name, its in METHODS_OF.items() if its == (only,))
        yield _Condition(flags, f"without --method {only}", partial(_is_method, only))
    for method in methods:
        flags = frozenset(
            name for name, its in METHODS_OF.items() if method not in its and (len(its) > 1 or its == methods[:1])
        )
        yield _Condition(flags, f"with --method {method}", partial(_is_other_method, method))


_CONDITIONS = (
    _Condition(
        _OF_CLIP | _names(PresenceSettings, MaskSettings),
        "with --everything",
        lambda all_: not all_.get("everything"),
    ),
    _Condition(_names(AutomaticSettings), "without --everything", lambda all_: bool(all_.get("everything", True))),
    _Condition(_OF_CLIP | {"model", "sam", "compile"}, "with --sam3", lambda all_: not all_.get("sam3")),
    _Condition(_names(RaySettings), "without --engine ray", lambda all_: all_.get("engine", "ray") == "ray"),
    *_of_methods(),
    _Condition(  # one segment for each query, unless tiles add others
        frozenset({"overlap", "quality"}),
        "with --method reference and without --tile",
        lambda all_: all_.get("method") != "reference" or bool(all_.get("tile")),
    ),
    _Condition(  # merging tiles compares segments by it
        frozenset({"choice"}),
        "with --method regions and without --tile",
        lambda all_: all_.get("method") != "regions" or bool(all_.get("tile")),
    ),
    _Condition(
        frozenset({"polygon_tolerance"}),
        "without --segmentation polygon",
        lambda all_: all_.get("segmentation", "polygon") == "polygon",
    ),
    _Condition(frozenset({"polygon_tolerance"}), "with --to voc-png", lambda all_: all_.get("to") != "voc-png"),
    _Condition(frozenset({"gap"}), "with --tracker memory", lambda all_: all_.get("tracker") != "memory"),
    _Condition(frozenset({"tile_overlap"}), "without --tile", lambda all_: bool(all_.get("tile", True))),
    _Condition(
        frozenset({"labels"}),
        "without --redundancy label-set",
        lambda all_: all_.get("redundancy", "label-set") == "label-set",
    ),
    _Condition(
        frozenset({"skip_below", "index"}),
        "without --only-if-present",
        lambda all_: bool(all_.get("only_if_present", True)),
    ),
    _Condition(
        frozenset({"crop_overlap", "crop_points_divisor"}),
        "without --crop-layers",
        lambda all_: bool(all_.get("crop_layers", True)),
    ),
)


def without_effect(values: Mapping[str, Any]) -> Iterator[tuple[frozenset[str], str]]:
    """Yield names of settings that have no effect together with these values of all settings, and the reason, such as
    "with --everything"."""
    for condition in _CONDITIONS:
        if not condition.holds(values):
            yield condition.flags, condition.says
