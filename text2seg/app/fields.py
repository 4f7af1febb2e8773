"""Settings dataclasses as fields that a person fills in: kinds, help and choices out, a checked dataclass back in.

Nothing here knows which tools there are."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import gradio as gr
from pydantic import TypeAdapter, ValidationError

from text2seg.errors import SettingsError
from text2seg.queries import shown

Kind = Literal["choice", "choices", "flag", "whole", "number", "text", "lines", "list", "picture", "path"]
"""lines: texts, one a line; list: values with commas between them; picture: a picture file, which a visitor uploads;
path: any other place on this machine, which visitors have no business with."""

NUMBERS = ("whole", "number", "list")
MOST_FAULTS = 3
RIGHT = {
    "tuple_type": "a list",
    "path_type": "an uploaded picture",
    "string_type": "a text",
    "int_type": "a whole number",
}
"""What is right in place of what pydantic calls wrong so."""

PICTURES = ("image", "picture")
"""A path with a name that ends so is one picture; every other path is a place."""
REPEATED = "; repeat for more"
PLAIN: Mapping[Any, Kind] = {bool: "flag", int: "whole", float: "number", str: "text"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a settings dataclass. `default` is none where it has to be given or is none."""

    name: str
    kind: Kind
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    is_optional: bool = False
    is_required: bool = False

    @property
    def label(self) -> str:
        return self.name.replace("_", " ").capitalize()


@cache
def settings_of(kind: type) -> tuple[Setting, ...]:
    """The fields of a settings dataclass, in their order, with the docstrings under them as help."""
    hints = get_type_hints(kind)
    return tuple(_setting(each, hints[each.name], _help(kind).get(each.name, "")) for each in fields(kind))


def shown_settings(kind: type) -> tuple[Setting, ...]:
    """The fields that visitors may fill in."""
    return tuple(setting for setting in settings_of(kind) if setting.kind != "path")


def read_settings(kind: type, given: Mapping[str, Any]) -> Any:
    """A dataclass of this kind from what was filled in; what is not given is as by default.

    Raises:
        SettingsError: a name is not known or is a place on this machine, a value is none that fits, or one that has to
            be given is missing. Errors of the dataclass itself go on as they are.
    """
    known = {setting.name: setting for setting in shown_settings(kind)}
    for name in given:
        if name not in known:
            choices = ", ".join(known) or "none at all"
            raise SettingsError(f"there is no setting {shown(name)} here; choose from {choices}")
    values = {name: _value(known[name], value) for name, value in given.items()}
    missing = [setting.label for setting in known.values() if setting.is_required and values.get(setting.name) is None]
    if missing:
        raise SettingsError(f"{', '.join(missing)}: please fill in")
    values = {name: value for name, value in values.items() if value is not MISSING}
    try:
        settings: Any = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise SettingsError("; ".join(_words(each) for each in _first_of_each_field(error)[:MOST_FAULTS])) from error
    for name in values:
        if isinstance(number := getattr(settings, name), float) and not isfinite(number):
            raise SettingsError(f"{known[name].label}: must be a number, got {number}")
    return settings


def _setting(each: Field[Any], hint: Any, text: str) -> Setting:
    inner, is_optional = _without_none(hint)
    default = each.default if each.default is not MISSING else None
    if each.default_factory is not MISSING:
        default = each.default_factory()
    required = each.default is MISSING and each.default_factory is MISSING
    kind, choices = _kind(each.name, inner)
    return Setting(each.name, kind, text, default, choices, is_optional, required)


def _kind(name: str, hint: Any) -> tuple[Kind, tuple[str, ...]]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "choice", tuple(str(value) for value in arguments)
    if origin is tuple and get_origin(arguments[0]) is Literal:
        return "choices", tuple(str(value) for value in get_args(arguments[0]))
    if hint == tuple[str, ...]:
        return "lines", ()
    if _names_a_path(hint):
        return ("picture" if hint is Path and name.endswith(PICTURES) else "path"), ()
    return PLAIN.get(hint, "list"), ()


def _names_a_path(hint: Any) -> bool:
    return hint is Path or any(_names_a_path(argument) for argument in get_args(hint))


def _without_none(hint: Any) -> tuple[Any, bool]:
    """`X` of `X | None`, and whether None was there."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    rest = tuple(each for each in get_args(hint) if each is not type(None))
    return (rest[0] if len(rest) == 1 else Union[rest]), len(rest) < len(get_args(hint))  # noqa: UP007


def _value(setting: Setting, value: Any) -> Any:
    """What was filled in, as the dataclass takes it; `MISSING` leaves the default."""
    if setting.kind == "lines" and isinstance(value, str):
        return tuple(line.strip() for line in value.splitlines() if line.strip())
    if setting.kind == "list" and isinstance(value, str) and "," in value:
        return tuple(part.strip() for part in value.split(","))
    if value is None or (value == "" and setting.kind != "text"):
        return None if setting.is_optional or setting.is_required else MISSING
    if value == "" and (setting.is_optional or setting.is_required):
        return None
    if setting.kind in NUMBERS and any(
        isinstance(each, bool) for each in (value if isinstance(value, list) else [value])
    ):
        raise SettingsError(f"{setting.label}: must be a number, got {shown(value)}")
    if setting.kind == "whole" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _first_of_each_field(error: ValidationError) -> list[Mapping[str, Any]]:
    """Of a field that may be of several types only what the first of them says."""
    first: dict[Any, Mapping[str, Any]] = {}
    for each in error.errors(include_url=False):
        first.setdefault(each["loc"][:1], each)
    return list(first.values())


def _words(error: Mapping[str, Any]) -> str:
    place = str(error["loc"][0]).replace("_", " ").capitalize() if error["loc"] else "settings"
    if right := RIGHT.get(error["type"]):
        return f"{place}: must be {right}, got {shown(error['input'])}"
    return f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _help(kind: type) -> dict[str, str]:
    """What stands under each field, those of parent classes too, without what only the command line needs."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        for parameter in docstring_parser.parse_from_object(each).params:
            found[parameter.arg_name] = " ".join((parameter.description or "").split()).replace(REPEATED, "")
    return found


def widget(setting: Setting) -> Any:
    """What a visitor fills one setting in with; its value goes to `fields.read_settings`."""
    common: dict[str, Any] = {"label": setting.label, "elem_id": f"setting-{setting.name}", "interactive": True}
    if setting.kind not in ("picture", "path"):
        common["info"] = setting.help or None
    if setting.kind == "picture":
        return gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], height=200, **common)
    if setting.kind == "flag":
        return gr.Checkbox(bool(setting.default), **common)
    if setting.kind == "choices":
        return gr.Dropdown([*setting.choices], value=list(setting.default or ()), multiselect=True, **common)
    if setting.kind == "choice":
        choices = [("as by default", ""), *((each, each) for each in setting.choices)][not setting.is_optional :]
        return gr.Dropdown(choices, value="" if setting.default is None else setting.default, **common)
    if setting.kind in ("whole", "number") and not setting.is_optional:  # a Number cannot stay empty
        return gr.Number(setting.default, precision=0 if setting.kind == "whole" else None, **common)
    if setting.kind == "lines":
        return gr.Textbox("\n".join(setting.default or ()), lines=3, placeholder="one a line", **common)
    default = setting.default
    text = ", ".join(str(value) for value in default) if isinstance(default, tuple) else default
    return gr.Textbox("" if text is None else str(text), placeholder="empty", **common)
