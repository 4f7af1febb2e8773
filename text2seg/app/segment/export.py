"""Downloads of a session, and the command line and Python code that reproduce it."""

from __future__ import annotations

import io
import shlex
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from text2seg.app.segment.document import Piece
from text2seg.app.segment.edits import EVERYTHING
from text2seg.app.segment.session import EditSession
from text2seg.coco.dataset import build_dataset
from text2seg.coco.json_file import json_chunks
from text2seg.config import SaveKind, Settings
from text2seg.effects import without_effect
from text2seg.errors import Text2SegError
from text2seg.io.names import safe_file_name
from text2seg.loading import graphs_of
from text2seg.onnx.networks import choose_onnx_device
from text2seg.ontology import ontology_of_queries
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query
from text2seg.records import Segmentation
from text2seg.render.saving import image_files
from text2seg.runtime import choose_device, choose_precision
from text2seg.weights import PAIRS

Kind = Literal["coco", "masks", "cutouts", "overlay", "all"]
Numbers = frozenset[int]
File = tuple[str, bytes]
"""Name and content. In a zip file, the name includes folders."""


def export_file(session: EditSession, kind: Kind, numbers: Numbers) -> File:
    """Return a JSON file, a PNG file, or a zip of several files.

    Args:
        numbers: the segments to export, at least one.

    Raises:
        Text2SegError: there is nothing to export.
    """
    if not session.document.segments(numbers):
        raise Text2SegError("no segment is shown; show at least one to download it")
    files = list(_MAKERS[kind](session, numbers))
    if len(files) == 1:
        (path, content), stem = files[0], _stem(session)
        folder, _, name = path.rpartition("/")
        base, dot, suffix = name.rpartition(".")
        name = f"{base}{_ALONE.get(folder, '')}{dot}{suffix}"
        return name if name.startswith(f"{stem}_") else f"{stem}_{name}", content
    folder, packed = f"{_stem(session)}_{kind if kind != 'all' else 'text2seg'}", io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            how = (
                zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
            )  # PNG files are compressed already
            archive.writestr(f"{folder}/{name}", content, how)
    return f"{folder}.zip", packed.getvalue()


def dataset_of(session: EditSession, numbers: Numbers) -> dict[str, Any]:
    """Return a COCO dataset of these segments. The attributes `by_hand` and `accepted` of an annotation say whether the
    visitor made or edited it, and whether the visitor accepted it; `found_as` is the query that led to a segment that
    was renamed."""
    segmentation = session.segmentation(numbers)
    names = [Query(name, ((name,),)) for name in session.names]
    dataset = build_dataset(
        [segmentation],
        queries=list(segmentation.maps.queries),
        provenance=session.models.provenance(session.settings) if session.models else None,
        info={"ontology": ontology_of_queries([*session.queries, *names]).to_dict()},
    )
    pieces = [piece for piece in session.document.pieces if piece.number in numbers and piece.segment.area]
    for annotation, piece in zip(dataset["annotations"], pieces, strict=True):
        annotation["attributes"] |= {"by_hand": piece.by_hand, "accepted": piece.accepted}
        if piece.found_as:
            annotation["attributes"]["found_as"] = piece.found_as
    return dataset


def _coco(session: EditSession, numbers: Numbers) -> Iterator[File]:
    yield "dataset.json", b"".join(json_chunks(Path("dataset.json"), dataset_of(session, numbers)))


def _images(*kinds: SaveKind) -> Callable[[EditSession, Numbers], Iterator[File]]:
    """Return a maker of the image files that `segment --save` would write."""

    def make(session: EditSession, numbers: Numbers) -> Iterator[File]:
        for folder, name, content in image_files(_to_draw(session, numbers), _stem(session), kinds):
            yield f"{folder}/{name}".lstrip("/"), content

    return make


def _to_draw(session: EditSession, numbers: Numbers) -> Segmentation:
    """Return these segments, and the queries that a legend names: theirs, and those that were not found. A query whose
    segments were deleted, renamed or hidden was found."""
    result = session.segmentation(numbers)
    maps, named = result.maps, {segment.query for segment in result.segments}
    kept = [at for at, name in enumerate(maps.queries) if name in named or not session.document.had(name)]
    queries = tuple(maps.queries[at] for at in kept)
    return replace(
        result,
        maps=replace(maps, queries=queries, scores=maps.scores[kept], presence=maps.presence[kept]),
        thresholds=tuple(result.thresholds[at] for at in kept) if result.thresholds else (),
    )


def _all(session: EditSession, numbers: Numbers) -> Iterator[File]:
    yield from _coco(session, numbers)
    yield from _images("overlay", "masks", "cutouts")(session, numbers)


_MAKERS: dict[Kind, Callable[[EditSession, Numbers], Iterator[File]]] = {
    "coco": _coco,
    "masks": _images("masks"),
    "cutouts": _images("cutouts"),
    "overlay": _images("overlay"),
    "all": _all,
}
_ALONE = {"masks": "_mask", "cutouts": "_cutout"}
"""Ending of the name of a single file, by the folder that it has in a zip file."""


def _stem(session: EditSession) -> str:
    return safe_file_name(Path(session.segmentation().image.file_name).stem) or "image"


KINDS = ("clip", "sam")
ONLY_ONNX = {"runtime", "graphs", "onnx_provider"}
"""Arguments that `--everything` refuses, because it runs with torch only."""


def as_command(session: EditSession) -> str:
    """Return a command for a POSIX shell, with all flags that differ from their defaults."""
    words = ["text2seg", "segment", _file(session)]
    settings = _models(session)
    if "graphs" in settings:
        settings = {"runtime": "onnx"} | settings
    settings |= {name: value for _, name, value in _changed(session.settings)}
    is_everything = not session.texts
    if is_everything:
        words.append("--everything")
        settings = dict(_differing(EVERYTHING)) | {name: settings[name] for name in settings if name not in ONLY_ONNX}
    values = {name: value for stage in asdict(session.settings).values() for name, value in stage.items()}
    idle = {name for names, _ in without_effect(values | {"everything": is_everything}) for name in names}
    for text in session.texts:
        words += [f"--query={text}"] if text.startswith("-") else ["--query", text]
    for name, value in settings.items():
        words += _flag(name, value) if name not in idle else []
    return _by_hand(session) + " ".join(shlex.quote(word) for word in words)


def as_python(session: EditSession) -> str:
    """Return Python code that makes the same segments, in `result`."""
    models = _models(session)
    pair = [f'"{models.pop("model")}"'] if "model" in models else []
    given = ", ".join([*pair, *(f"{name}={value!r}" for name, value in models.items())])
    stages: dict[str, list[str]] = {}
    for stage, name, value in _changed(session.settings):
        stages.setdefault(stage, []).append(f"{name}={value!r}")
    types = {field.name: type(getattr(session.settings, field.name)).__name__ for field in fields(Settings)}
    asked = ["from text2seg import Text2Seg", "", f"seg = Text2Seg.load({given})"]
    if not session.texts:
        asked.insert(1, "from text2seg.config import AutomaticSettings")
        settings = ", ".join(f"{name}={value!r}" for name, value in _differing(EVERYTHING))
        call = f"seg.everything({_file(session)!r}, AutomaticSettings({settings}))"
        return _by_hand(session) + "\n".join([*asked, f"result = {call}"])
    call = f"seg.segment({_file(session)!r}, {list(session.texts)!r}"
    if stages:
        asked.insert(
            1, f"from text2seg.config import {', '.join(sorted({'Settings', *(types[stage] for stage in stages)}))}"
        )
        inner = ", ".join(f"{stage}={types[stage]}({', '.join(values)})" for stage, values in stages.items())
        asked.append(f"settings = Settings({inner})")
        call += ", settings"
    return _by_hand(session) + "\n".join([*asked, f"result = {call})"])


def _file(session: EditSession) -> str:
    name = session.image_session.image.file_name if session.image_session else ""
    return f"./{name}" if name.startswith("-") else name or "image.png"


def _models(session: EditSession) -> dict[str, Any]:
    """Return the pair or both names, and the other arguments of `Text2Seg.load` that differ from their defaults.
    `ModelSettings` has the same names."""
    if session.models is None:
        return {}
    origin = session.models.provenance()
    names = {kind: str(part["name"]) for kind in KINDS if isinstance(part := origin.get(kind), dict)}
    pair = next((model for model, pair in PAIRS.items() if pair == tuple(names.values())), None)
    return ({"model": pair} if pair else names) | _running(session.models)


def _running(models: Text2Seg) -> dict[str, Any]:
    """Return device, precision, graphs and compilation, where `auto` would choose another value on this machine."""
    found: dict[str, Any] = {}
    device, graphs = models.clip.device, graphs_of(models.clip)
    if device != (choose_device() if graphs is None else choose_onnx_device("auto", graphs.provider)):
        found["device"] = str(device)
    if graphs is not None:
        found |= {"graphs": str(graphs.folder)}  # graphs have a fixed precision
        return found if graphs.provider == "auto" else found | {"onnx_provider": graphs.provider}
    precision = models.clip.precision.name
    if precision != choose_precision(device).name:
        found["precision"] = precision
    return found | ({"compile": True} if models.sam.compiled else {})


def _changed(settings: Settings) -> Iterator[tuple[str, str, Any]]:
    """Yield stage, name and value of every setting that differs from its default."""
    for stage in fields(Settings):
        for name, value in _differing(getattr(settings, stage.name)):
            yield stage.name, name, value


def _differing(settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of every setting of one stage that differs from its default."""
    default = type(settings)()
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != getattr(default, field.name):
            yield field.name, value


def _flag(name: str, value: Any) -> list[str]:
    """Return a setting as arguments of the command line."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, tuple) and all(isinstance(each, str) for each in value):
        return [word for each in value for word in (flag, each)]
    return [flag, *(str(each) for each in (value if isinstance(value, tuple) else [value]))]


def _by_hand(session: EditSession) -> str:
    """Return a comment on edits that no command can repeat, or an empty string if there are none."""
    pieces, removed = session.document.pieces, len(session.document.removed)
    edited = sum(piece.by_hand for piece in pieces)
    kept = sum(not _is_found(piece, session) for piece in pieces if not piece.by_hand)
    counts = {
        "added or edited": edited,
        "accepted before the settings changed": kept,
        "deleted": removed,
    }
    edits = [f"{count} {what}" for what, count in counts.items() if count]
    return f"# Without manual edits: {', '.join(edits)}.\n" if edits else ""


def _is_found(piece: Piece, session: EditSession) -> bool:
    """Return whether the last search found this mask. An earlier one may have found it."""
    found = session.found.of(piece.segment.query) if session.found else ()
    return any(np.array_equal(segment.mask, piece.segment.mask) for segment in found)
