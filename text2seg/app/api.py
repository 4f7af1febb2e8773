"""What the API of the app answers, by HTTP (http_api.py) and by `gradio_client`, and the endpoints of the latter.
docs/api.md has examples."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from text2seg._version import __version__
from text2seg.app.checks import check_request, check_upload, read_image, read_pipeline_settings
from text2seg.app.explain import explain
from text2seg.app.fields import visitor_settings
from text2seg.app.messages import PHOTOGRAPH, note_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.models_panel import name_of
from text2seg.coco.dataset import build_dataset
from text2seg.coco.json_file import Json, plain_number
from text2seg.config import Encoding
from text2seg.errors import ImageError, SettingsError
from text2seg.explain import TOOLS, Progress, Result
from text2seg.io.names import similar
from text2seg.ontology import ontology_of_queries
from text2seg.queries import shown
from text2seg.render.saving import png


def health_json(model_pool: ModelPool) -> Json:
    """Return that the app works, its version and its models."""
    closed_vocabulary = model_pool.models.closed_vocabulary
    known = sorted(closed_vocabulary.names) if closed_vocabulary else None
    return {"status": "ok", "text2seg": __version__, "models": name_of(model_pool.models), "knows_only": known}


def segment_json(
    model_pool: ModelPool,
    upload: Path,
    queries: str | Sequence[str],
    given: Mapping[str, Any],
    *,
    name: str = "",
    encoding: Encoding = "rle",
) -> Json:
    """Segment an uploaded image. Return a COCO dataset; `info.verdicts` has the verdict on each query.

    Raises:
        ImageError, QueryError, SettingsError: an input is not valid or exceeds a limit.
    """
    settings = read_pipeline_settings(given)
    models = model_pool.models
    parsed = models.check(queries, settings)
    image = read_image(check_upload(upload), model_pool.settings, name=name)
    check_request(parsed, settings, image.hw)
    result = model_pool.session(image).segment(parsed, settings)
    names = [query.name for query in parsed]
    origin = models.provenance(settings)
    info: Json = {
        "models": name_of(models),
        "provenance": origin,
        "verdicts": {each: result.verdict(each) for each in names},
        "ontology": ontology_of_queries(parsed).to_dict(),
    }
    if models.is_unfamiliar(image):
        info["warning"] = PHOTOGRAPH
    dataset = build_dataset([result], queries=names, encoding=encoding, provenance=origin, info=info)
    presence = zip(names, map(plain_number, result.maps.presence), strict=True)
    dataset["images"][0]["attributes"] = {"presence": dict(presence)}
    return dataset


def run_tool(
    model_pool: ModelPool,
    tool: str,
    images: Sequence[Path],
    given: Mapping[str, Any],
    progress: Progress | None = None,
) -> Result:
    """Run a tool by its name. Raises `SettingsError` if there is no such tool, and the errors of `explain`."""
    if not isinstance(tool, str) or tool not in TOOLS:
        close = similar(str(tool), TOOLS)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise SettingsError(f"there is no tool {shown(tool)}; {hint}/api/v1/tools lists all {len(TOOLS)}")
    return explain(model_pool, TOOLS[tool], images, given, progress)


def tools_json() -> list[Json]:
    """Return all tools with their settings."""
    return [
        {
            "name": tool.name,
            "summary": tool.summary,
            "images": tool.images,
            "settings": [asdict(setting) for setting in visitor_settings(tool.settings)],
        }
        for tool in TOOLS.values()
    ]


def result_json(result: Result) -> Json:
    """Return a result as JSON, with its panels as PNG in base64."""
    return {
        "title": result.title,
        "panels": [
            {"caption": each.caption, "png": base64.b64encode(png(each.pixels)).decode()} for each in result.panels
        ],
        "tables": [asdict(table) for table in result.tables],
        "notes": [note_of(text) for text in (*result.unknown, *result.notes)],
    }


def object_of(value: Any, field: str) -> Mapping[str, Any]:
    """Return a value that must be a JSON object. Raises `SettingsError` if it is not one."""
    if not isinstance(value, dict):
        raise SettingsError(
            f'{field} must be a JSON object, such as {{"points": {{"threshold": 0.7}}}}, got {shown(value)}'
        )
    return value


# ---- endpoints for gradio_client


def add_endpoints(model_pool: ModelPool) -> None:
    """Add the endpoints in `PUBLIC`. Call it within the page."""

    def segment(
        image: dict[str, Any], queries: str, settings: dict[str, Any] | None = None, segmentation: Encoding = "rle"
    ) -> dict[str, Any]:
        """Segment an image. Return a COCO dataset. Separate queries by commas."""
        name, path = _uploaded(image, "image")
        given = object_of({} if settings is None else settings, "settings")
        if queries is None:
            raise SettingsError("queries are missing; send what to find, separated by commas")
        encoding: Encoding = "rle" if segmentation is None else segmentation
        return segment_json(model_pool, path, queries, given, name=name, encoding=encoding)

    def explain(tool: str, images: list[dict[str, Any]], settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run an explanation tool. The panels of its result are PNG in base64."""
        if not isinstance(images, list | None):
            raise ImageError(f"images must be a list of uploaded images, got {shown(images)}")
        paths = [_uploaded(image, "each of images")[1] for image in images or []]
        given = {
            key: Path(value["path"]) if _is_file(value) else value
            for key, value in object_of({} if settings is None else settings, "settings").items()
        }
        return result_json(run_tool(model_pool, tool, paths, given))

    def health() -> dict[str, Any]:
        """Return that the app works, its version and its models."""
        return health_json(model_pool)

    for function in (segment, explain, health):
        gr.api(function, api_name=function.__name__)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("path"), str)


def _uploaded(value: Any, what: str) -> tuple[str, Path]:
    """Return the original name and the path of an uploaded file. Raises `ImageError` if it is not one."""
    if not _is_file(value):
        raise ImageError(f"{what} must be an uploaded image, made by gradio_client's handle_file, got {shown(value)}")
    return str(value.get("orig_name") or ""), Path(value["path"])
