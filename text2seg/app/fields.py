"""Form fields for settings dataclasses: from a dataclass to fields, and from their values to a checked dataclass."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import gradio as gr
from pydantic import TypeAdapter, ValidationError

from text2seg.errors import SettingsError
from text2seg.explain.tool import InputSettings
from text2seg.queries import shown
from text2seg.settings_fields import fault, help_of

Kind = Literal["choice", "choices", "flag", "whole", "number", "text", "lines", "list", "image", "path"]
"""lines: texts, one per line; list: values separated by commas; image: an uploaded image file; path: any other path on
this machine, and whatever else visitors do not set (`tool.COMMAND_LINE_ONLY`)."""

NUMBERS = ("whole", "number", "list")
MOST_ERRORS = 3
IMAGE_SUFFIX = "image"
"""A path field with this ending is an uploaded image. Other path fields are places on this machine."""
REPEATED = "; repeat for more"
EXAMPLE_TEXTS = "a sheep\na fire engine\na bomb"
PLAIN: Mapping[Any, Kind] = {bool: "flag", int: "whole", float: "number", str: "text"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a settings dataclass. `default` is None for required fields."""

    name: str
    kind: Kind
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    is_optional: bool = False
    is_required: bool = False

    @property
    def label(self) -> str:
        return _label(self.name)

    @property
    def field_label(self) -> str:
        """Label of the form field, which says how to type several values."""
        return f"{self.label} (one per line)" if self.kind == "lines" else self.label


@cache
def settings_of(kind: type) -> tuple[Setting, ...]:
    """Return the fields of a settings dataclass in order, with their docstrings as help."""
    hints = get_type_hints(kind)
    texts = help_of(kind)
    return tuple(
        _setting(each, hints[each.name], texts.get(each.name, "").replace(REPEATED, "")) for each in fields(kind)
    )


def visitor_settings(kind: type) -> tuple[Setting, ...]:
    """Return the settings that visitors and the API may set, those of CLIP's input last.

    These are all but paths on this machine.
    """
    listed = (setting for setting in settings_of(kind) if setting.kind != "path")
    of_input = {each.name for each in fields(InputSettings)}
    return tuple(sorted(listed, key=lambda setting: setting.name in of_input))


def shown_settings(kind: type) -> tuple[Setting, ...]:
    """Return the settings that have a field in the form: those of `visitor_settings` without `texts`, which is another
    form of `text` in one line."""
    allowed = visitor_settings(kind)
    lines = {setting.name for setting in allowed if setting.kind == "lines"}
    return tuple(each for each in allowed if not (each.kind == "text" and each.name.removesuffix("s") in lines))


def example_of(setting: Setting) -> str:
    """Return an example for an empty text field: the one its help gives, or texts for the bundled image."""
    if setting.kind not in ("text", "lines") or setting.default or not setting.name.startswith("text"):
        return ""
    if given := re.search(r'(?:for instance|such as) (?:"([^"{}]+)"|(\w+))', setting.help):
        return given[1] or given[2]
    return EXAMPLE_TEXTS if setting.kind == "lines" else ""


def read_settings(kind: type, given: Mapping[str, Any]) -> Any:
    """Return a dataclass of this kind from form values. Missing values are defaults.

    Raises:
        SettingsError: a name is unknown or is a path on this machine, a value is not valid, or a required value is
            missing. Errors of the dataclass itself are not changed.
    """
    known = {setting.name: setting for setting in visitor_settings(kind)}
    for name in given:
        if name not in known:
            choices = ", ".join(known) or "none"
            raise SettingsError(f"there is no setting {shown(name)}; the settings are {choices}")
    values = {name: _value(known[name], value) for name, value in given.items()}
    if missing := [each for each in known.values() if each.is_required and values.get(each.name) is None]:
        names, labels = (", ".join(getattr(each, of) for each in missing) for of in ("name", "label"))
        raise SettingsError(f"{names}: must be given", on_page=f"{labels}: please fill in")
    values = {name: value for name, value in values.items() if value is not MISSING}
    try:
        settings: Any = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        found = [_words(each) for each in _first_of_each_field(error)[:MOST_ERRORS]]
        by_name, by_label = ("; ".join(each) for each in zip(*found, strict=True))
        raise SettingsError(by_name, on_page=by_label) from error
    for name in values:
        if isinstance(number := getattr(settings, name), float) and not isfinite(number):
            raise _no_number(known[name], str(number))
    return settings


def _setting(each: Field[Any], hint: Any, text: str) -> Setting:
    inner, is_optional = _without_none(hint)
    default = each.default if each.default is not MISSING else None
    if each.default_factory is not MISSING:
        default = each.default_factory()
    required = each.default is MISSING and each.default_factory is MISSING
    kind, choices = _kind(each.name, inner)
    if each.metadata.get("command_line_only"):
        kind = "path"
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
        return ("image" if hint is Path and name.endswith(IMAGE_SUFFIX) else "path"), ()
    return PLAIN.get(hint, "list"), ()


def _names_a_path(hint: Any) -> bool:
    return hint is Path or any(_names_a_path(argument) for argument in get_args(hint))


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Return `X` of `X | None`, and whether None was allowed."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    rest = tuple(each for each in get_args(hint) if each is not type(None))
    return (rest[0] if len(rest) == 1 else Union[rest]), len(rest) < len(get_args(hint))  # noqa: UP007


def _value(setting: Setting, value: Any) -> Any:
    """Return a form value as the dataclass takes it, or `MISSING` for the default."""
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
        raise _no_number(setting, shown(value))
    if setting.kind == "whole" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _first_of_each_field(error: ValidationError) -> list[Mapping[str, Any]]:
    """Return one error for each field. A field with several types has one error for each of them."""
    first: dict[Any, Mapping[str, Any]] = {}
    for each in error.errors(include_url=False):
        first.setdefault(each["loc"][:1], each)
    return list(first.values())


def _words(error: Mapping[str, Any]) -> tuple[str, str]:
    """Return what is wrong with a value, by the name of the setting and by its label."""
    name = str(error["loc"][0]) if error["loc"] else "settings"
    says = "must be an uploaded image" if error["type"] == "path_type" else fault(error)
    got = f", got {shown(error['input'])}" if says.startswith("must") else ""
    return f"{name}: {says}{got}", f"{_label(name)}: {says}{got}"


def _no_number(setting: Setting, value: str) -> SettingsError:
    words = f": must be a number, got {value}"
    return SettingsError(f"{setting.name}{words}", on_page=f"{setting.label}{words}")


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize()


def files_field(value: Any, *, elem_id: str, **props: Any) -> Any:
    """Return a place to drop images (see files.js). Its value is None or {"path", "name"}, with `several=True` a list
    of these. A reload of the page keeps it under the name `keeps`, if there is one."""
    return gr.HTML(
        value,
        html_template="<t2s-files></t2s-files>",
        js_on_load='element.querySelector("t2s-files").connect({ props, trigger, watch, upload })',
        apply_default_css=False,
        padding=False,
        elem_id=elem_id,
        elem_classes="t2s",
        **props,
    )


def widget(setting: Setting) -> Any:
    """Return the form field for a setting. Its value goes to `read_settings`."""
    common: dict[str, Any] = {"label": setting.field_label, "elem_id": f"setting-{setting.name}", "interactive": True}
    if setting.kind not in ("image", "path"):
        common["info"] = setting.help or None
    if setting.kind == "image":
        return files_field(None, elem_id=common["elem_id"], label=setting.label, hint=setting.help)
    if setting.kind == "flag":
        return gr.Checkbox(bool(setting.default), **common)
    if setting.kind == "choices":
        return gr.Dropdown([*setting.choices], value=list(setting.default or ()), multiselect=True, **common)
    if setting.kind == "choice":
        choices = [("default", ""), *((each, each) for each in setting.choices)][not setting.is_optional :]
        return gr.Dropdown(
            choices, multiselect=False, value="" if setting.default is None else setting.default, **common
        )
    if setting.kind in ("whole", "number") and not setting.is_optional:  # a Number field cannot be empty
        return gr.Number(setting.default, precision=0 if setting.kind == "whole" else None, **common)
    if setting.kind == "lines":
        return gr.Textbox("\n".join(setting.default or ()), lines=3, placeholder="One per line", **common)
    default = setting.default
    text = ", ".join(str(value) for value in default) if isinstance(default, tuple) else default
    return gr.Textbox("" if text is None else str(text), placeholder="empty", **common)
