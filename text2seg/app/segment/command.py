"""The command line and the Python that do again what a visitor did in the browser."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from text2seg.app.segment.document import Piece
from text2seg.app.segment.session import Visit
from text2seg.config import Settings
from text2seg.loading import graphs_of
from text2seg.onnx.networks import choose_onnx_device
from text2seg.pipeline import Text2Seg
from text2seg.runtime import choose_device, choose_precision
from text2seg.weights import PAIRS

KINDS = ("clip", "sam")
DEMO = ("demo", "demo")


def as_command(visit: Visit) -> str:
    """For a POSIX shell, with the flags that differ from what `text2seg segment` does anyway."""
    words = ["text2seg", "segment", _file(visit)]
    for text in visit.texts:
        words += [f"--query={text}"] if text.startswith("-") else ["--query", text]
    for name, value in _models(visit).items():
        words += (["--runtime", "onnx"] if name == "graphs" else []) + _flag(name, value)
    for _, name, value in _changed(visit.settings):
        words += _flag(name, value)
    return _by_hand(visit) + " ".join(shlex.quote(word) for word in words)


def as_python(visit: Visit) -> str:
    """A few lines of Python that leave the same segments in `result`."""
    models = _models(visit)
    pair = models.pop("model", "demo")
    given = "".join(f", {name}={value!r}" for name, value in models.items())
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


def _models(visit: Visit) -> dict[str, Any]:
    """The arguments of `Text2Seg.load` that differ from its defaults; they are fields of `ModelSettings` too."""
    if visit.models is None:
        return {}
    origin = visit.models.provenance()
    names = tuple(str(part["name"]) if isinstance(part := origin.get(kind), dict) else "demo" for kind in KINDS)
    pairs: dict[Any, dict[str, str]] = {pair: {"model": model} for model, pair in PAIRS.items()}
    pairs[DEMO] = {}
    return pairs.get(names, dict(zip(KINDS, names, strict=True))) | _running(visit.models)


def _running(models: Text2Seg) -> dict[str, Any]:
    """What runs the networks, where and how, as far as `auto` on this machine would not choose the same."""
    found: dict[str, Any] = {}
    device, graphs = models.clip.device, graphs_of(models.clip)
    if device != (choose_device() if graphs is None else choose_onnx_device("auto")):
        found["device"] = str(device)
    if graphs is not None:
        return found | {"graphs": str(graphs)}  # which have their precision
    precision = models.clip.precision.name
    if precision != choose_precision(device).name:
        found["precision"] = precision
    return found | ({"compile": True} if models.sam.compiled else {})


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
