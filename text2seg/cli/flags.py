"""Flags of commands, made from dataclasses: how their values are read, and how `--help` describes them."""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import MISSING, fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from text2seg.config import SaveKind, Settings, VideoSave
from text2seg.effects import without_effect
from text2seg.errors import SettingsError
from text2seg.io.files import is_file
from text2seg.io.names import did_you_mean, listed
from text2seg.io.storage import Place, Url, place_of
from text2seg.settings_fields import help_of

PipelineFlags = tyro.conf.UseAppendAction[Annotated[Settings, tyro.conf.arg(name="")]]
"""The settings of the pipeline as flags of a command."""

_NONE = type(None)
_ABOUT_ARGUMENT = type(tyro.conf.arg())
_EXAMPLES = {"query": '"red car"', "queries": '"dog, red car"', "text": '"a red car"', "output": "PATH"}
_METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
_RULES = ConstructorRegistry()
_COLOUR, _EMPTY_ROW = re.compile("\x1b\\[[0-9;]*m"), re.compile("│ +│")


def parse(command: type, arguments: Sequence[str], prog: str) -> Any:
    """Return the command with its flags. `--help` prints them and exits with 0; wrong flags exit with 2."""
    if "--" in arguments:  # what follows are names, also those that begin with a dash
        end = list(arguments).index("--")
        for each in arguments[end + 1 :]:
            if each.startswith("--") and not is_file(each, SettingsError):
                raise SettingsError(
                    f"{each} is taken for a file, because it stands after --; write all flags before it"
                )
        names = [f"./{each}" if each.startswith("-") else each for each in arguments[end + 1 :]]
        arguments = [*arguments[:end], *names]
    for each in arguments:
        if each.startswith("-") and not each.startswith("--") and is_file(each, SettingsError):
            raise SettingsError(
                f"{each} is taken for a flag, because it begins with a dash; write ./{each}, or all flags first, then "
                "-- and all files"
            )
    arguments = _numbers_last(arguments)
    check_values(command, arguments)
    with described(command), _RULES, _wrapped_help(arguments):
        parsed: Any = tyro.cli(
            command,
            prog=prog,
            args=list(arguments),
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    check_effects(parsed, arguments)
    return parsed


def _numbers_last(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the one or two numbers of --input-size at the end, where they cannot be taken together
    with files that follow them. Raises `SettingsError` if there is none."""
    if "--input-size" not in arguments:
        return [*arguments]
    start = [*arguments].index("--input-size")
    numbers = [*takewhile(str.isdecimal, arguments[start + 1 : start + 3])]
    if not numbers:
        got = arguments[start + 1] if start + 1 < len(arguments) else "nothing"
        raise SettingsError(f"--input-size takes one or two whole numbers, got {got}")
    return [*arguments[:start], *arguments[start + 1 + len(numbers) :], "--input-size", *numbers]


# ---- values that are missing or of another kind


def check_values(command: Any, arguments: Sequence[str]) -> None:
    """Raise `SettingsError` if the value of a flag is missing, no number or none of the choices. tyro's own messages
    are those of Python's functions."""
    if {"-h", "--help"} & set(arguments):
        return
    flags = dict(_typed_flags(command))
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        flag = flag.replace("_", "-")
        if flag not in flags:
            continue
        kind, example = flags[flag]
        if not equals:
            value = next(iter(arguments[place + 1 : place + 2]), "--")
            if value.startswith("--"):
                raise SettingsError(f"{flag} needs a value, such as {flag} {example}")
        _check_value(flag, kind, value, example)


def _check_value(flag: str, kind: Any, value: str, example: str) -> None:
    if value == "None":  # tyro knows whether the flag may be off
        return
    if get_origin(kind) is Literal:
        choices = [*map(str, get_args(kind))]
        if value not in choices:
            raise SettingsError(
                f"{flag} takes one of {', '.join(choices)}; got {value}.{did_you_mean([value], choices)}"
            )
    elif kind in (int, float):
        try:
            kind(value)
        except ValueError:
            words = "a whole number" if kind is int else "a number"
            raise SettingsError(f"{flag} takes {words}, such as {flag} {example}; got {value}") from None


def _typed_flags(command: Any) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Yield each flag of a dataclass, and of those in it, that takes one value, with the type and an example of it."""
    defaults = {each.name: each.default for each in fields(command)}
    for name, hint in get_type_hints(command, include_extras=True).items():
        union, given = _without_extras(hint)
        kinds = [_without_extras(each)[0] for each in get_args(union)] if _is_union(union) else [union]
        kinds = [each for each in kinds if each is not _NONE]
        groups = [each for each in kinds if is_dataclass(each) and each is not Url]
        for group in groups:
            yield from _typed_flags(group)
        if groups or bool in kinds:
            continue
        metavar = next((each.metavar for each in given if each.metavar), None)
        example = _EXAMPLES.get(name) or _example(defaults[name], kinds[0]) or metavar or "TEXT"
        yield f"--{name.replace('_', '-')}", (kinds[0] if len(kinds) == 1 else None, example)


def _example(default: Any, kind: Any) -> str | None:
    """Return the default of a flag, or else the first choice, or a value of the type."""
    if isinstance(default, tuple) and default:
        return ",".join(map(str, default))
    if isinstance(default, str | int | float | Path) and default != "":
        return str(default)
    if get_origin(kind) is Literal:
        return str(get_args(kind)[0])
    return {int: "5", float: "0.5"}.get(kind)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


# ---- flags without effect


def check_effects(command: Any, arguments: Sequence[str]) -> None:
    """Raise `SettingsError` if a flag was given that has no effect together with the other flags."""
    typed = [each.partition("=")[0][2:].replace("-", "_") for each in arguments if each.startswith("--")]
    values = dict(_values(command))
    given = {name if name in values else name.removeprefix("no_") for name in typed}
    for idle, says in without_effect(values):
        flags = [f"--{name.replace('_', '-')}" for name in values if name in given & idle]
        if flags:
            verb, them = ("has", "it") if len(flags) == 1 else ("have", "them")
            raise SettingsError(f"{listed(flags)} {verb} no effect {says}; leave {them} out")


def _values(settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each flag, also of the dataclasses in a dataclass."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _values(value)
        else:
            yield field.name, value


# ---- values


@_RULES.primitive_rule
def _place(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Place | None] | None:
    """Parse flags of the types `Path`, `Url | Path` and `Url | Path | None`."""
    types = set(get_args(kind.type)) or {kind.type}
    if types != {Path} and types - {_NONE} != {Path, Url}:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|URL" if Url in types else "PATH",
        instance_from_str=lambda given: _read(given[0], types),
        is_instance=lambda value: isinstance(value, tuple(types)),
        str_from_instance=lambda value: [str(value)],
    )


@_RULES.primitive_rule
def _save_kinds(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[str, ...]] | None:
    """Parse a flag of the type `tuple[SaveKind, ...]`, or of videos: one value with commas. The settings check it."""
    if get_args(kind.type) not in ((SaveKind, ...), (VideoSave, ...)):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=",".join(get_args(get_args(kind.type)[0])),
        instance_from_str=lambda given: tuple(given[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value) or "none"],
    )


def _read(given: str, types: set[type]) -> Place | None:
    """Read a path or URL. Raises `SettingsError`, because tyro would catch a `ValueError` and hide its message."""
    if given == "None" and _NONE in types:
        return None
    place = place_of(given)
    if type(place) is Url and Url not in types:
        raise SettingsError(f"{given} is a URL, but this must be a path; copy the file to this machine first")
    return place


# ---- help


@contextmanager
def described(command: Any) -> Iterator[None]:
    """Say in the annotations of a dataclass, and of those in it, how tyro describes their fields.

    The docstring of a field becomes one paragraph, because tyro keeps line breaks of the code. A field that may be None
    has the form of its other values, and a default is not printed if there is none or the docstring says what happens.
    """
    texts, before = help_of(command), dict(command.__annotations__)
    with ExitStack() as stack:
        for name, hint in get_type_hints(command, include_extras=True).items():
            kind, given = _without_extras(hint)
            for each in get_args(kind) if _is_union(kind) else [kind]:
                if is_dataclass(inner := _without_extras(each)[0]):
                    stack.enter_context(described(inner))
            default = next((each.default for each in fields(command) if each.name == name), MISSING)
            said: dict[str, Any] = {
                "help": texts.get(name) if not any(each.help for each in given) else None,
                "metavar": _metavar(kind) if not any(each.metavar for each in given) else None,
                "help_behavior_hint": _hint(default),
            }
            if any(value is not None for value in said.values()):
                command.__annotations__[name] = Annotated[hint, tyro.conf.arg(**said)]
        try:
            yield
        finally:
            command.__annotations__ = before


def _hint(default: Any) -> str | None:
    """Return what the help says of a default, or None if it says the right thing by itself."""
    if default is None or default == "":
        return ""
    is_long = isinstance(default, float) and len(repr(default)) > len("0.123456")
    return f"(default: {default:.4g})" if is_long else None


def _without_extras(hint: Any) -> tuple[Any, list[Any]]:
    """Return a type without its annotations, and those that are about an argument."""
    given: list[Any] = []
    while get_origin(hint) is Annotated:
        given += [each for each in hint.__metadata__ if isinstance(each, _ABOUT_ARGUMENT)]
        hint = hint.__origin__
    return hint, given


def _metavar(kind: Any) -> str | None:
    """Return the form of the values of a type that includes None, or None if tyro's is as good."""
    if not _is_union(kind) or _NONE not in get_args(kind):
        return None
    first, *more = [_form(each) for each in get_args(kind) if each is not _NONE]
    longer = [each.removeprefix(first) for each in more if each.startswith(f"{first} ")]
    return first + "".join(f" [{each.strip()}]" for each in longer) if len(longer) == len(more) else None


def _form(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple:
        return " ".join(map(_form, get_args(kind)))
    return _METAVARS.get(kind, "VALUE")


class _Buffer(io.StringIO):
    """Text that is printed later on a stream, and that has the encoding and the colours of this stream."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


@contextmanager
def _wrapped_help(arguments: Sequence[str]) -> Iterator[None]:
    """Break the lines of the description at the width of the terminal, which tyro does not do, and leave out the empty
    row that tyro prints below a help that fills its last row and has no default."""
    if not {"-h", "--help"} & set(arguments):
        yield
        return
    width, text = shutil.get_terminal_size().columns, _Buffer(sys.stdout)
    try:
        with redirect_stdout(text):
            yield
    finally:
        for line in text.getvalue().splitlines():
            if _EMPTY_ROW.fullmatch(_COLOUR.sub("", line)):
                continue
            if len(line) > width and line[0].isalpha():
                indent = " " * 7 if line.startswith("usage: ") else ""
                line = textwrap.fill(line, width, break_on_hyphens=False, subsequent_indent=indent)
            sys.stdout.write(f"{line}\n")
