"""The app for programs, by plain HTTP and by `gradio_client`. Both give the same plain JSON values; docs/app.md has
examples."""

from __future__ import annotations

import base64
import difflib
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
import cv2
import gradio as gr
import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from starlette.datastructures import FormData, UploadFile

from text2seg._version import __version__
from text2seg.app.explain_tab import explain
from text2seg.app.fields import shown_settings
from text2seg.app.guard import FORM_FAULTS, PUBLIC, unreadable_form, why_no_json
from text2seg.app.limits import MOST_PICTURES, MOST_QUERIES, check_request, read_picture, read_pipeline_settings
from text2seg.app.messages import FAULT, words_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.models_panel import name_of
from text2seg.app.uploads import check_upload, visitors_folder
from text2seg.coco.dataset import Encoding, Json, build_dataset
from text2seg.errors import ImageError, SettingsError, Text2SegError
from text2seg.explain import TOOLS, Progress, Result
from text2seg.ontology import ontology_of_queries
from text2seg.queries import shown


def health_json(model_pool: ModelPool) -> Json:
    """That the app works, and with what."""
    things = model_pool.models.things
    known = sorted(things.names) if things else None
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
    """What the queries name in an uploaded picture, as a COCO dataset; `info.verdicts` says what became of each query.

    Raises `ImageError`, `QueryError` or `SettingsError` where these cannot be used or ask for too much.
    """
    settings = read_pipeline_settings(given)
    models = model_pool.models
    parsed = models.check(queries, settings)
    image = read_picture(check_upload(upload), model_pool.settings, name=name)
    check_request(parsed, settings, image.hw)
    result = model_pool.session(image).segment(parsed, settings)
    names = [query.name for query in parsed]
    info = {
        "verdicts": {each: result.verdict(each) for each in names},
        "ontology": ontology_of_queries(parsed).to_dict(),
    }
    origin = models.provenance(settings)
    return build_dataset([result], queries=names, encoding=encoding, provenance=origin, info=info)


def run_tool(
    model_pool: ModelPool,
    tool: str,
    pictures: Sequence[Path],
    given: Mapping[str, Any],
    progress: Progress | None = None,
) -> Result:
    """The result of a tool by its name; raises `SettingsError` where there is none, and as `explain` does."""
    if not isinstance(tool, str) or tool not in TOOLS:
        close = difflib.get_close_matches(str(tool), TOOLS, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise SettingsError(f"there is no tool {shown(tool)}; {hint}/api/tools lists all {len(TOOLS)}")
    return explain(model_pool, TOOLS[tool], pictures, given, progress)


def tools_json() -> list[Json]:
    """Every tool with its settings."""
    return [
        {
            "name": tool.name,
            "summary": tool.summary,
            "pictures": tool.images,
            "settings": [asdict(setting) for setting in shown_settings(tool.settings)],
        }
        for tool in TOOLS.values()
    ]


def result_json(result: Result) -> Json:
    """A result with its panels as PNG in base64."""
    return {
        "title": result.title,
        "panels": [
            {"caption": each.caption, "png": base64.b64encode(png(each.pixels)).decode()} for each in result.panels
        ],
        "tables": [asdict(table) for table in result.tables],
        "notes": list(result.notes),
    }


def png(pixels: NDArray[np.uint8]) -> bytes:
    """RGB uint8[h, w, 3] as the bytes of a PNG file."""
    return cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))[1].tobytes()


log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often it is looked whether a caller is still there."""

LONGEST_NAME = 80

Work = Callable[[threading.Event], Response]


def add_routes(app: FastAPI, model_pool: ModelPool) -> None:
    """`/api/health`, `/api/tools`, `/api/segment` and `/api/explain/TOOL`. Errors are `{"error": words}`."""
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
        wants_picture = "image/png" in request.headers.get("accept", "")
        with tempfile.TemporaryDirectory(dir=visitors_folder(), ignore_cleanup_errors=True) as folder:
            form = await _form(request)

            def work(stop: threading.Event) -> Response:
                return _explain(model_pool, tool, form, Path(folder), stop, wants_picture=wants_picture)

            return await _in_turn(request, limiter, model_pool, work)


def _segment(model_pool: ModelPool, form: FormData, folder: Path) -> Response:
    _refuse_unknown(form, {"image", "queries", "settings", "segmentation"})
    (name, path), *more = _saved(form, "image", folder) or [("", Path())]
    if more or not name:
        raise ImageError("send one picture file as `image`")
    queries = _texts(form, "queries")
    encoding: Any = _text(form, "segmentation") or "rle"
    given = _json_of(form, "settings")
    wanted = queries[0] if len(queries) == 1 else queries
    return JSONResponse(segment_json(model_pool, path, wanted, given, name=name, encoding=encoding))


def _explain(
    model_pool: ModelPool, tool: str, form: FormData, folder: Path, stop: threading.Event, *, wants_picture: bool
) -> Response:
    pictures = [path for _, path in _saved(form, "image", folder)]
    given = dict(_json_of(form, "settings"))
    for name in set(form) - {"image", "settings"}:  # pictures among the settings
        if files := _saved(form, name, folder):
            given[name] = files[0][1]
        else:
            raise SettingsError(f"{name} is no file: settings other than pictures belong into `settings`, as JSON")
    result = run_tool(model_pool, tool, pictures, given, Progress(stop=stop))
    if not wants_picture:
        return JSONResponse(result_json(result))
    sheet = result.image()
    if sheet is None:
        raise SettingsError(f"{tool} shows no picture here; ask for JSON")
    return Response(png(sheet), media_type="image/png")


async def _in_turn(request: Request, limiter: anyio.CapacityLimiter, model_pool: ModelPool, work: Work) -> Response:
    """Do the work in a thread when it is its turn; a caller who has gone stops it."""
    if limiter.statistics().tasks_waiting >= model_pool.settings.waiting:
        return _error(503, "Too many are waiting; try again later.", **{"retry-after": "30"})
    stop = threading.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_stop_when_gone, request, stop)
        response = await anyio.to_thread.run_sync(_answered, work, stop, limiter=limiter)
        group.cancel_scope.cancel()
    return response


def _answered(work: Work, stop: threading.Event) -> Response:
    """The answer, be it an error."""
    try:
        return work(stop)
    except Text2SegError as error:
        return _error(400, words_of(error))
    except Exception:  # whatever it is, the caller gets words and the log the rest
        log.exception("a request failed")
        return _error(500, FAULT)


async def _stop_when_gone(request: Request, stop: threading.Event) -> None:
    while not await request.is_disconnected():
        await anyio.sleep(LOOK_SECONDS)
    stop.set()


def _error(status: int, words: str, **headers: str) -> Response:
    return JSONResponse({"error": words}, status, headers)


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=MOST_PICTURES + 1, max_fields=MOST_QUERIES + 10)
    except FORM_FAULTS as error:
        raise unreadable_form(error) from error


def _refuse_unknown(form: FormData, known: set[str]) -> None:
    if unknown := set(form) - known:
        raise SettingsError(f"no field is called {', '.join(sorted(unknown))}; send {', '.join(sorted(known))}")


def _saved(form: FormData, field: str, folder: Path) -> list[tuple[str, Path]]:
    """The files of a field, each in a folder of its own, and what they were called."""
    files = []
    for number, upload in enumerate(form.getlist(field)):
        if not isinstance(upload, UploadFile):
            continue
        name = Path((upload.filename or "").replace("\\", "/")).name or "picture"
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
    """The text of a field that may be given once, empty where it is not."""
    texts = _texts(form, field)
    if len(texts) > 1:
        raise SettingsError(f"{field} is given {len(texts)} times; send it once")
    return "".join(texts)


def _json_of(form: FormData, field: str) -> Mapping[str, Any]:
    """A field's JSON object, empty where there is none."""
    text = _text(form, field) or "{}"
    try:
        return _object(json.loads(text), field)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{field} is not JSON: {why_no_json(error)}") from error


def _object(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f'{field} must be a JSON object, as {{"points": {{"threshold": 0.7}}}}, got {shown(value)}')
    return value


class Page(gr.Blocks):
    """Gradio's blocks, which answer every request that goes wrong with a sentence.

    Gradio itself shows no error but its own, and some come before a function is called: values that are too many or too
    few, or that a component cannot read.
    """

    async def process_api(self, block_fn: Any, inputs: Any, *arguments: Any, **more: Any) -> dict[str, Any]:
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        if function.api_name in PUBLIC and isinstance(inputs, list):
            if len(inputs) > len(function.inputs):
                raise _for_gradio(
                    SettingsError(f"/{function.api_name} takes {len(function.inputs)} values, got {len(inputs)}")
                )
            inputs = [*inputs, *[None] * (len(function.inputs) - len(inputs))]
        try:
            return await super().process_api(block_fn, inputs, *arguments, **more)
        except (Text2SegError, gr.Error) as error:
            raise _for_gradio(error) from error
        except Exception as error:
            log.exception("a request failed")
            raise _for_gradio(SettingsError(FAULT)) from error

    async def preprocess_data(self, block_fn: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
        try:
            return await super().preprocess_data(block_fn, inputs, *arguments, **more)
        except (Text2SegError, gr.Error):
            raise
        except Exception as error:  # components raise whatever comes of values that they did not expect
            log.info("a request does not fit", exc_info=error)
            raise SettingsError("what was sent does not fit what this page asks for; load the page again") from error


def _for_gradio(error: Exception) -> gr.Error:
    """Errors in the words that Gradio shows to people."""
    told = error.message if isinstance(error, gr.Error) else words_of(error)
    return gr.Error(str(told), print_exception=False)


def add_endpoints(model_pool: ModelPool) -> None:
    """Those of `PUBLIC`; called within the page."""

    def segment(
        image: dict[str, Any], queries: str, settings: dict[str, Any] | None = None, segmentation: Encoding = "rle"
    ) -> dict[str, Any]:
        """What the queries name in a picture, as a COCO dataset. Queries have commas between them."""
        name, path = _uploaded(image, "image")
        given = _object({} if settings is None else settings, "settings")
        if queries is None:
            raise SettingsError("queries are missing; say what to look for, with commas between")
        encoding: Encoding = "rle" if segmentation is None else segmentation
        return segment_json(model_pool, path, queries, given, name=name, encoding=encoding)

    def explain(tool: str, images: list[dict[str, Any]], settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """What an explanation tool shows of pictures; panels are PNG in base64."""
        if not isinstance(images, list | None):
            raise ImageError(f"images must be a list of uploaded pictures, got {shown(images)}")
        paths = [_uploaded(image, "each of images")[1] for image in images or []]
        given = {
            key: Path(value["path"]) if _is_file(value) else value
            for key, value in _object({} if settings is None else settings, "settings").items()
        }
        return result_json(run_tool(model_pool, tool, paths, given))

    def health() -> dict[str, Any]:
        """That the app works, and with which models."""
        return health_json(model_pool)

    for function in (segment, explain, health):
        gr.api(function, api_name=function.__name__)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("path"), str)


def _uploaded(value: Any, what: str) -> tuple[str, Path]:
    """What an uploaded file is called, and where it lies. Raises `ImageError` where it is none."""
    if not _is_file(value):
        raise ImageError(
            f"{what} must be an uploaded picture, as gradio_client's handle_file makes it, got {shown(value)}"
        )
    return str(value.get("orig_name") or ""), Path(value["path"])
