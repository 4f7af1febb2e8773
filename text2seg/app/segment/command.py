"""The command line and the Python that do again what a visitor did in the browser."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from text2seg.app.segment.document import Piece
from text2seg.app.segment.visit import Visit
from text2seg.checkpoints import PAIRS
from text2seg.config import Settings

DEMO = ("demo", "demo")


def as_command(visit: Visit) -> str:
    """For a POSIX shell, with the flags that differ from what `text2seg segment` does anyway."""
    words = ["text2seg", "segment", _file(visit)]
    for text in visit.texts:
        words += [f"--query={text}"] if text.startswith("-") else ["--query", text]
    for name, value in _models(visit):
        words += [f"--{name}", value]
    for _, name, value in _changed(visit.settings):
        words += _flag(name, value)
    return _by_hand(visit) + " ".join(shlex.quote(word) for word in words)


def as_python(visit: Visit) -> str:
    """A few lines of Python that leave the same segments in `result`."""
    given = "".join(f", {name}={value!r}" for name, value in _models(visit) if name != "model")
    pair = dict(_models(visit)).get("model", "demo")
    stages: dict[str, list[str]] = {}
    for stage, name, value in _changed(visit.settings):
        stages.setdefault(stage, []).append(f"{name}={value!r}")
    types = {field.name: type(getattr(visit.settings, field.name)).__name__ for field in fields(Settings)}
    asked = ["from text2seg import Text2Seg", "", f'seg = Text2Seg.load("{pair}"{given})']
    call = f"seg.segment({_file(visit)!r}, {list(visit.texts)!r}"
    if stages:
        asked.insert(
            1, f"from text2seg.config import {', '.join(sorted({'Settings', *(types[stage] for stage in stages)}))}"
        )
        inner = ", ".join(f"{stage}={types[stage]}({', '.join(values)})" for stage, values in stages.items())
        asked.append(f"settings = Settings({inner})")
        call += ", settings"
    return _by_hand(visit) + "\n".join([*asked, f"result = {call})"])


def _file(visit: Visit) -> str:
    name = visit.session.image.file_name if visit.session else ""
    return f"./{name}" if name.startswith("-") else name or "picture.png"


def _models(visit: Visit) -> Iterator[tuple[str, str]]:
    """The flags that name the models, none for the demo models."""
    made = visit.models.provenance() if visit.models else {}
    names = tuple(str(part["name"]) if isinstance(part := made.get(kind), dict) else "demo" for kind in ("clip", "sam"))
    for model, pair in PAIRS.items():
        if pair == names and pair != DEMO:
            yield "model", model
    if names not in PAIRS.values():
        yield from zip(("clip", "sam"), names, strict=True)


def _changed(settings: Settings) -> Iterator[tuple[str, str, Any]]:
    """Stage, name and value of every setting that is not as by default."""
    default = Settings()
    for stage in fields(Settings):
        ours, theirs = getattr(settings, stage.name), getattr(default, stage.name)
        for field in fields(ours):
            value = getattr(ours, field.name)
            if value != getattr(theirs, field.name):
                yield stage.name, field.name, value


def _flag(name: str, value: Any) -> list[str]:
    """A setting as words of the command line."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, tuple) and all(isinstance(each, str) for each in value):
        return [word for each in value for word in (flag, each)]
    return [flag, *(str(each) for each in (value if isinstance(value, tuple) else [value]))]


def _by_hand(visit: Visit) -> str:
    """A line about what no command can do again; nothing where all was found by the models."""
    pieces, removed = visit.document.pieces, len(visit.document.removed)
    made = sum(piece.by_hand for piece in pieces)
    kept = sum(not _is_found(piece, visit) for piece in pieces if not piece.by_hand)
    counts = {
        "made or corrected by hand": made,
        "accepted before the settings changed": kept,
        "removed by hand": removed,
    }
    told = [f"{count} {what}" for what, count in counts.items() if count]
    return f"# Without what was done by hand: {', '.join(told)}.\n" if told else ""


def _is_found(piece: Piece, visit: Visit) -> bool:
    """Whether the models' last look gave this very mask, and not one before that a person accepted."""
    found = visit.found.of(piece.segment.query) if visit.found else ()
    return any(np.array_equal(segment.mask, piece.segment.mask) for segment in found)
