"""Checks that the settings of several tools share."""

from __future__ import annotations

from typing import Any

from text2seg.errors import SettingsError
from text2seg.queries import names_in


def check_alpha(alpha: float) -> None:
    """Raises `SettingsError` where it is not from 0 to 1."""
    if not 0 <= alpha <= 1:
        raise SettingsError(f"alpha must be from 0 to 1, got {alpha}")


def check_seed(seed: int) -> None:
    """Raises `SettingsError` where it is none that torch takes."""
    if not 0 <= seed < 2**63:
        raise SettingsError(f"seed must be from 0 to 2^63 - 1, got {seed}")


def check_count(name: str, value: int | None) -> None:
    """Raises `SettingsError` where it is below 1; None stands for no limit."""
    if value is not None and value < 1:
        raise SettingsError(f"{name} must be 1 or more, got {value}")


def freeze_typed(settings: Any, name: str) -> None:
    """Texts as people type them, of which one may hold several names; the empty text, which some tools know, stays."""
    given = getattr(settings, name)
    if isinstance(given, str):
        raise SettingsError(f"{name} must be a sequence of texts, got the one text {given!r}")
    object.__setattr__(settings, name, tuple(each for text in given for each in names_in(text) or ("",)))
