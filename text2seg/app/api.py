"""The API of the app, by HTTP and by `gradio_client`. Both return the same JSON; docs/app.md has examples."""

from __future__ import annotations

import base64
import json
import logging
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import FormData, UploadFile

from text2seg._version import __version__
from text2seg.app.checks import check_request, check_upload, read_image, read_pipeline_settings, visitors_folder
from text2seg.app.explain import explain
from text2seg.app.fields import visitor_settings
from text2seg.app.guard import FORM_ERRORS, unreadable_form, why_no_json
from text2seg.app.messages import INTERNAL_ERROR, PHOTOGRAPH, message_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.models_panel import name_of
from text2seg.app.settings import MOST_IMAGES, MOST_QUERIES
from text2seg.coco.dataset import build_dataset
from text2seg.coco.json_file import Json
from text2seg.config import Encoding
from text2seg.errors import ImageError, SettingsError, Text2SegError
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
    info: Json = {
        "verdicts": {each: result.verdict(each) for each in names},
        "ontology": ontology_of_queries(parsed).to_dict(),
    }
    if models.is_unfamiliar(image):
        info["warning"] = PHOTOGRAPH
    origin = models.provenance(settings)
    return build_dataset([result], queries=names, encoding=encoding, provenance=origin, info=info)


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
        raise SettingsError(f"there is no tool {shown(tool)}; {hint}/api/tools lists all {len(TOOLS)}")
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
        "notes": list(result.notes),
    }


log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Seconds between two checks whether the client is still connected."""

LONGEST_NAME = 80
"""Longest name of a saved upload, in characters."""

Work = Callable[[threading.Event], Response]


def add_routes(app: FastAPI, model_pool: ModelPool) -> None:
    """Add `/api/health`, `/api/tools`, `/api/segment` and `/api/explain/TOOL`. Errors are `{"error": message}`."""
    limiter = anyio.CapacityLimiter(model_pool.settings.workers)

    @app.get("/api/health")
    def health() -> Response:
        return JSONResponse(health_json(model_pool))

    @app.get("/api/tools")
    def tools() -> Response:
        return JSONResponse(tools_json())

    @app.post("/api/segment")
    async def segment(request: Request) -> Response:
        with tempfile.TemporaryDirectory(dir=visitors_folder(), ignore_cleanup_errors=True) as folder:
            form = await _form(request)
            return await _in_turn(request, limiter, model_pool, lambda _: _segment(model_pool, form, Path(folder)))

    @app.post("/api/explain/{tool}")
    async def explain(request: Request, tool: str) -> Response:
        wants_image = "image/png" in request.headers.get("accept", "")
        with tempfile.TemporaryDirectory(dir=visitors_folder(), ignore_cleanup_errors=True) as folder:
            form = await _form(request)

            def work(stop: threading.Event) -> Response:
                return _explain(model_pool, tool, form, Path(folder), stop, wants_image=wants_image)

            return await _in_turn(request, limiter, model_pool, work)


def _segment(model_pool: ModelPool, form: FormData, folder: Path) -> Response:
    _refuse_unknown(form, {"image", "queries", "settings", "segmentation"})
    (name, path), *more = _saved(form, "image", folder) or [("", Path())]
    if more or not name:
        raise ImageError("send one image file as `image`")
    queries = _texts(form, "queries")
    encoding: Any = _text(form, "segmentation") or "rle"
    given = _json_of(form, "settings")
    typed = queries[0] if len(queries) == 1 else queries  # a single field may hold several queries
    return JSONResponse(segment_json(model_pool, path, typed, given, name=name, encoding=encoding))


def _explain(
    model_pool: ModelPool, tool: str, form: FormData, folder: Path, stop: threading.Event, *, wants_image: bool
) -> Response:
    images = [path for _, path in _saved(form, "image", folder)]
    given = dict(_json_of(form, "settings"))
    for name in set(form) - {"image", "settings"}:  # images in the settings
        if files := _saved(form, name, folder):
            given[name] = files[0][1]
        else:
            raise SettingsError(f"{name} is not a file; settings that are not images belong in `settings`, as JSON")
    result = run_tool(model_pool, tool, images, given, Progress(stop=stop))
    if not wants_image:
        return JSONResponse(result_json(result))
    sheet = result.image()
    if sheet is None:
        raise SettingsError("this result has no image; ask for JSON")
    return Response(png(sheet), media_type="image/png")


async def _in_turn(request: Request, limiter: anyio.CapacityLimiter, model_pool: ModelPool, work: Work) -> Response:
    """Do the work in a thread when it is its turn. Stop it if the client disconnects."""
    if limiter.statistics().tasks_waiting >= model_pool.settings.waiting:
        return _error(503, "The queue is full; try again later.", **{"retry-after": "30"})
    stop = threading.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_stop_when_gone, request, stop)
        response = await anyio.to_thread.run_sync(_answered, work, stop, limiter=limiter)
        group.cancel_scope.cancel()
    return response


def _answered(work: Work, stop: threading.Event) -> Response:
    """Return the response of the work, or its error."""
    try:
        return work(stop)
    except Text2SegError as error:
        return _error(400, message_of(error))
    except Exception:  # the client gets a message, the log gets the traceback
        log.exception("a request failed")
        return _error(500, INTERNAL_ERROR)


async def _stop_when_gone(request: Request, stop: threading.Event) -> None:
    while not await request.is_disconnected():
        await anyio.sleep(POLL_SECONDS)
    stop.set()


def _error(status: int, words: str, **headers: str) -> Response:
    return JSONResponse({"error": words}, status, headers)


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=MOST_IMAGES + 1, max_fields=MOST_QUERIES + 10)
    except FORM_ERRORS as error:
        raise unreadable_form(error) from error


def _refuse_unknown(form: FormData, known: set[str]) -> None:
    if unknown := set(form) - known:
        raise SettingsError(
            f"no field is called {', '.join(sorted(unknown))}; the fields are {', '.join(sorted(known))}"
        )


def _saved(form: FormData, field: str, folder: Path) -> list[tuple[str, Path]]:
    """Save the files of a field, each in its own folder. Return their original names and their paths."""
    files = []
    for number, upload in enumerate(form.getlist(field)):
        if not isinstance(upload, UploadFile):
            continue
        name = Path((upload.filename or "").replace("\\", "/")).name or "image"
        path = folder / f"{field}-{number}" / re.sub(r"[^\w.-]", "_", name)[-LONGEST_NAME:]
        path.parent.mkdir()
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file)
        files.append((name, path))
    return files


def _texts(form: FormData, field: str) -> list[str]:
    values = form.getlist(field)
    if not all(isinstance(value, str) for value in values):
        raise SettingsError(f"{field} must be text, got a file")
    return [str(value) for value in values]


def _text(form: FormData, field: str) -> str:
    """Return the text of a field that may be given once, or an empty string."""
    texts = _texts(form, field)
    if len(texts) > 1:
        raise SettingsError(f"{field} is given {len(texts)} times; send it once")
    return "".join(texts)


def _json_of(form: FormData, field: str) -> Mapping[str, Any]:
    """Return the JSON object in a field, or an empty one."""
    text = _text(form, field) or "{}"
    try:
        return _object(json.loads(text), field)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{field} is not JSON: {why_no_json(error)}") from error


def _object(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(
            f'{field} must be a JSON object, such as {{"points": {{"threshold": 0.7}}}}, got {shown(value)}'
        )
    return value


def add_endpoints(model_pool: ModelPool) -> None:
    """Add the endpoints in `PUBLIC`. Call it within the page."""

    def segment(
        image: dict[str, Any], queries: str, settings: dict[str, Any] | None = None, segmentation: Encoding = "rle"
    ) -> dict[str, Any]:
        """Segment an image. Return a COCO dataset. Separate queries by commas."""
        name, path = _uploaded(image, "image")
        given = _object({} if settings is None else settings, "settings")
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
            for key, value in _object({} if settings is None else settings, "settings").items()
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
