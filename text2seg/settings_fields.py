"""Fields of settings: checks of choices, texts, names and devices, and the docstrings that become help."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from text2seg.errors import SettingsError
from text2seg.io.names import did_you_mean, shown
from text2seg.queries import names_in

T = TypeVar("T")


def of_type(value: object, kind: type[T], what: str) -> T:
    """Return the value. Raises `SettingsError` if it has another type."""
    if not isinstance(value, kind):
        raise SettingsError(f"{what} must be of type {kind.__name__}, got {shown(repr(value))}")
    return value


@cache
def _choices_of(settings: type[Any]) -> dict[str, tuple[str, ...]]:
    """Return the choices of each field that is a Literal. Cached, because reading type hints is slow."""
    hints = get_type_hints(settings)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


_parsing = threading.Lock()
"""Python's own parser of code raises SystemError at times if two threads use it at once."""


def help_of(settings: type[Any]) -> dict[str, str]:
    """Return the docstring of each field of a dataclass, also of its parent classes, on one line."""
    import docstring_parser

    found: dict[str, str] = {}
    for each in reversed(settings.__mro__[:-1]):
        with _parsing:
            documented = docstring_parser.parse_from_object(each)
        for parameter in documented.params:
            found[parameter.arg_name] = " ".join((parameter.description or "").split())
    return found


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "model": "an object",
}


def fault(error: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, in our words, from an entry of pydantic's `ValidationError.errors()`: "must be
    a whole number", "is missing", or the sentence of our own check."""
    kind, context = error["type"], error.get("ctx") or {}
    right = next((words for name, words in _KINDS.items() if kind == name or kind.startswith(f"{name}_")), "")
    sentences = {
        "missing": "is missing",
        "extra_forbidden": "is not known here",
        "value_error": str(context.get("error", "")),
        "literal_error": f"must be {context.get('expected')}",
        "string_too_short": "must not be empty",
        "string_pattern_mismatch": f"must match {context.get('pattern')}",
        "greater_than": f"must be greater than {context.get('gt')}",
        "greater_than_equal": f"must be {context.get('ge')} or more",
        "less_than": f"must be less than {context.get('lt')}",
        "less_than_equal": f"must be at most {context.get('le')}",
    }
    return sentences.get(kind) or (f"must be {right}" if right else "has the wrong value")


def check_choices(settings: object) -> None:
    """Check that every Literal field has one of its choices. Raises `SettingsError`."""
    kind: Any = type(settings)
    for name, choices in _choices_of(kind).items():
        value = getattr(settings, name)
        if value not in choices:
            hint = did_you_mean([str(value)], choices)
            raise SettingsError(f"{name} must be one of {', '.join(choices)}, got {value!r}.{hint}")


def freeze_texts(settings: object, name: str) -> None:
    """Turn a list of texts into a tuple. A single text is refused, because it would count as a list of letters."""
    given = getattr(settings, name)
    if isinstance(given, str):
        raise SettingsError(f"{name} must be a sequence of texts, got the one text {given!r}")
    texts = tuple(given)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise SettingsError(f"{name} must be texts that are not empty, got {texts!r}")
    object.__setattr__(settings, name, texts)


def freeze_choices(settings: object, name: str, choices: tuple[str, ...]) -> None:
    """Turn a sequence of choices, or a text with commas between them, into a tuple. `none` stands for no choice.

    Raises:
        SettingsError: A choice is unknown.
    """
    given = getattr(settings, name)
    words = [word.strip() for word in (given.split(",") if isinstance(given, str) else given)]
    if words == ["none"]:
        words = []
    for word in words:
        if word == "none":
            raise SettingsError(f"{name} none stands alone; got {', '.join(words)}")
        if word not in choices:
            hint = did_you_mean([word], [*choices, "none"])
            raise SettingsError(f"{name} must be none, or a list of {', '.join(choices)}; got {word!r}.{hint}")
    object.__setattr__(settings, name, tuple(dict.fromkeys(words)))


def freeze_names(settings: object, name: str) -> None:
    """Like `freeze_texts`, for names; each text may hold several, as people type them."""
    freeze_texts(settings, name)
    object.__setattr__(settings, name, names_in(getattr(settings, name)))


def check_device_name(name: str) -> None:
    """Raise `SettingsError` unless a name has the form of a device. Only torch knows whether this machine has it."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise SettingsError(f"there is no device {name!r}; choose auto, cpu, cuda, cuda with a number (cuda:1) or mps")


def cuda_is_impossible() -> bool:
    """Return whether this is a Linux machine without the library of NVIDIA's driver, which torch opens for CUDA, and
    without AMD's driver, which torch calls CUDA too. Quick, unlike importing torch."""
    if sys.platform != "linux" or os.path.exists("/dev/kfd"):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


def check_alpha(alpha: float) -> None:
    """Raise `SettingsError` if the opacity is not from 0 to 1."""
    if not 0 <= alpha <= 1:
        raise SettingsError(f"alpha must be from 0 to 1, got {alpha}")


def check_seed(seed: int) -> None:
    """Raise `SettingsError` if torch does not take this seed."""
    if not 0 <= seed < 2**63:
        raise SettingsError(f"seed must be from 0 to 2^63 - 1, got {seed}")


def check_count(name: str, value: int | None) -> None:
    """Raise `SettingsError` if the value of the setting `name` is below 1. None means no limit."""
    if value is not None and value < 1:
        raise SettingsError(f"{name} must be 1 or more, got {value}")
