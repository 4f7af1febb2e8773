"""The routes of the HTTP API, and the forms that they take. openapi.py describes them, and docs/api.md has examples."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from text2seg.app.api import health_json, object_of, result_json, run_tool, segment_json, tools_json
from text2seg.app.checks import visitors_folder
from text2seg.app.folder.archives import checked_path
from text2seg.app.folder.inputs import as_yaml
from text2seg.app.folder.jobs import Job, TooManyJobsError
from text2seg.app.folder.visitors import VisitorJobs
from text2seg.app.guard import FORM_ERRORS, JOBS, USER, Refusal, unreadable_form, why_no_json
from text2seg.app.messages import INTERNAL_ERROR, message_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.openapi import (
    ENCODINGS,
    FILE,
    FREE,
    TEXT,
    TEXTS,
    answers,
    describe,
    described,
    either,
    failures,
    form,
    ref,
)
from text2seg.app.settings import MOST_FILES, MOST_IMAGES, MOST_QUERIES, AppSettings
from text2seg.coco.json_file import Json
from text2seg.errors import ImageError, OutputError, SettingsError, Text2SegError
from text2seg.explain import Progress
from text2seg.io.files import read_file
from text2seg.io.names import counted
from text2seg.ontology.read import read_text
from text2seg.render.saving import png

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Seconds between two checks whether the client is still connected."""

LONGEST_NAME = 80
"""Longest name of a saved upload, in characters."""

Work = Callable[[threading.Event], Response]


def add_routes(app: FastAPI, model_pool: ModelPool, jobs: VisitorJobs) -> None:
    """Add `/api/openapi.json` and the routes that it describes. Errors are `{"error": message}`.

    The routes of 0.6 are also at their old paths, without `v1`.
    """
    queue = Queue(model_pool.settings)
    router = _routes(model_pool, queue)
    app.include_router(router, prefix="/api/v1")
    app.include_router(_job_routes(model_pool, jobs, queue), prefix="/api/v1")
    description = describe(app, model_pool.settings)
    app.include_router(router, prefix="/api", include_in_schema=False)

    @app.get("/api/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        return JSONResponse(description)


def _router() -> APIRouter:
    return APIRouter(default_response_class=JSONResponse, generate_unique_id_function=lambda route: route.name)


class Queue:
    """The turns of all requests that need the models or unpack uploads: `workers` at a time, and `waiting` more."""

    def __init__(self, settings: AppSettings) -> None:
        self._limiter, self._most = anyio.CapacityLimiter(settings.workers), settings.waiting

    def check(self) -> None:
        """Raise `Refusal` if the queue is full. Call it before a body is read, too."""
        if self._limiter.statistics().tasks_waiting >= self._most:
            words = "the queue is full; try again later"
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, words, **{"retry-after": "30"})

    async def run(self, request: Request, work: Work) -> Response:
        """Do the work in a thread when it is its turn. Stop it if the client disconnects."""
        self.check()
        stop = threading.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(_stop_when_gone, request, stop)
            response = await anyio.to_thread.run_sync(_answered, work, stop, limiter=self._limiter)
            group.cancel_scope.cancel()
        return response


def _routes(model_pool: ModelPool, queue: Queue) -> APIRouter:
    """Return the routes for one image, and those that list what there is."""
    router = _router()

    @router.get("/health", responses=answers(ref("Health")))
    def health() -> Response:
        """Return that the app works, its version, its weights, and the words that they know."""
        return JSONResponse(health_json(model_pool))

    @router.get("/tools", responses=answers(ref("Tools")))
    def tools() -> Response:
        """List the explanation tools and their settings."""
        return JSONResponse(tools_json())

    fields = {
        "image": described("One image: BMP, GIF, JPEG, PNG, TIFF or WebP.", FILE),
        "queries": described("What to find, with commas between them; may be repeated.", either(TEXT, TEXTS)),
        "settings": ref("Settings"),
        "segmentation": ENCODINGS,
    }

    @router.post(
        "/segment",
        responses=answers(ref("Dataset"), 400, 413, 415, 503),
        openapi_extra=form(fields, required=("image", "queries"), additionalProperties=False),
    )
    async def segment(request: Request) -> Response:
        """Segment one image. The answer is a COCO dataset."""
        queue.check()
        with tempfile.TemporaryDirectory(dir=visitors_folder(), ignore_cleanup_errors=True) as folder:
            form = await _form(request)
            return await queue.run(request, lambda _: _segment(model_pool, form, Path(folder)))

    images: Json = {
        "image": described("The images that the tool needs.", either(FILE, {"type": "array", "items": FILE})),
        "settings": described("Those that `tools` lists; a setting that is an image is a file of its own.", FREE),
    }

    @router.post(
        "/explain/{tool}",
        responses=answers(ref("Explanation"), 400, 413, 415, 503, image_png=FILE),
        openapi_extra=form(images, additionalProperties=FILE),
    )
    async def explain(request: Request, tool: str) -> Response:
        """Run an explanation tool. The answer is JSON, or one PNG if the request accepts `image/png`."""
        queue.check()
        wants_image = "image/png" in request.headers.get("accept", "")
        with tempfile.TemporaryDirectory(dir=visitors_folder(), ignore_cleanup_errors=True) as folder:
            form = await _form(request)

            def work(stop: threading.Event) -> Response:
                return _explain(model_pool, tool, form, Path(folder), stop, wants_image=wants_image)

            return await queue.run(request, work)

    return router


def _job_routes(model_pool: ModelPool, jobs: VisitorJobs, queue: Queue) -> APIRouter:
    """Return the routes for folder jobs: those of the tab "Label a folder", with the same limits."""
    router = _router()
    base = f"{model_pool.settings.public_url.rstrip('/')}{JOBS}"
    fields = {
        "images": described(
            f"Images and zip files of images; at most {MOST_FILES} files.", {"type": "array", "items": FILE}
        ),
        "queries": described("What to find, with commas between them; may be repeated.", either(TEXT, TEXTS)),
        "ontology": described("Instead of queries: categories and their wordings, as YAML or JSON.", TEXT),
    }

    @router.post(
        "/jobs",
        status_code=202,
        responses=answers(ref("Job"), 400, 413, 415, 429, 503, status=202),
        openapi_extra=form(fields, required=("images",), additionalProperties=False),
    )
    async def start_job(request: Request) -> Response:
        """Start to label uploaded images. `Location` and the `id` in the answer lead to the job."""
        queue.check()
        who = request.scope.get(USER) or (request.client.host if request.client else "")
        try:
            jobs.check_room(who)
        except TooManyJobsError as error:
            raise _too_many(error) from error
        with tempfile.TemporaryDirectory(dir=visitors_folder(), ignore_cleanup_errors=True) as folder:
            form = await _form(request, MOST_FILES)
            started: list[Job] = []

            def work(_: threading.Event) -> Response:
                job = _start(jobs, who, form, Path(folder))
                started.append(job)
                return JSONResponse(job_json(jobs, job), 202, {"location": f"{base}/{job.id}"})

            response = await queue.run(request, work)
            if started and await request.is_disconnected():  # nobody would learn its id
                await anyio.to_thread.run_sync(jobs.jobs.remove, started[0])
            return response

    def found(request: Request, number: str) -> Job:
        job = jobs.find(request.scope.get(USER, ""), number)
        if job is None:
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is no job {number[:LONGEST_NAME]!r}; it may have been deleted")
        return job

    @router.get("/jobs", responses=answers(ref("Jobs")))
    def list_jobs(request: Request) -> Response:
        """List the jobs of the user whose password the request has, oldest first."""
        if not (user := request.scope.get(USER, "")):  # an address may belong to several people
            words = "jobs are listed only in an app with passwords, to their users; keep the id of each job"
            raise Refusal(HTTPStatus.FORBIDDEN, words)
        return JSONResponse([job_json(jobs, job) for job in jobs.of_user(user)])

    @router.get("/jobs/{id}", responses=answers(ref("Job"), 404))
    def job(request: Request, id: str) -> Response:
        """Return the progress of a job."""
        return _answered(lambda _: JSONResponse(job_json(jobs, found(request, id))))

    @router.get("/jobs/{id}/dataset", responses=answers(ref("Dataset"), 404, 409))
    def job_dataset(request: Request, id: str) -> Response:
        """Return the COCO dataset of a job that is done."""
        return _answered(lambda _: _dataset(found(request, id)))

    @router.delete("/jobs/{id}", status_code=204, responses=failures(404))
    def delete_job(request: Request, id: str) -> Response:
        """Stop a job and delete its images and its result."""

        def work(_: object) -> Response:
            jobs.jobs.remove(found(request, id))
            return Response(status_code=204)

        return _answered(work)

    return router


def job_json(jobs: VisitorJobs, job: Job) -> Json:
    """Return the progress of a job."""
    seen = replace(job)  # it changes meanwhile
    return {
        "id": seen.id,
        "name": seen.name,
        "state": seen.state,
        "total": seen.total,
        "done": seen.done,
        "seconds_left": seen.seconds_left,
        "ahead": jobs.jobs.ahead(seen.id),
        "failures": list(seen.failures),
        "notes": list(seen.notes),
        "unknown": list(seen.unknown),
        "message": seen.message,
    }


def _start(jobs: VisitorJobs, who: str, form: FormData, folder: Path) -> Job:
    _refuse_unknown(form, {"images", "queries", "ontology"})
    queries = [text for text in _texts(form, "queries") if text.strip()]
    files = _saved(form, "ontology", folder)
    text = read_text(files[0][1]) if files else _text(form, "ontology")
    if bool(queries) == bool(text.strip()) or len(files) > 1:
        raise SettingsError("send `queries` or one `ontology`: what to find")
    if queries:
        typed = queries[0] if len(queries) == 1 else queries  # a single field may hold several queries
        if not jobs.model_pool.models.known_queries(typed)[0]:
            jobs.model_pool.models.check(typed)
        text = as_yaml(typed)
    images = [path for _, path in _saved(form, "images", folder, keep_names=True)]
    if not images:
        raise ImageError("send image files or zip files as `images`")
    return jobs.start(who, images, text)


def _dataset(job: Job) -> Response:
    """Return the dataset of a job. Raises `Refusal` if it has none."""
    seen = replace(job)
    if seen.state == "failed":
        raise Refusal(HTTPStatus.CONFLICT, f"the job failed: {seen.message}")
    if seen.state != "done":
        done = f"{seen.done} of {counted(seen.total, 'image')} finished"
        raise Refusal(HTTPStatus.CONFLICT, f"the job is not done yet; {done}")
    return Response(read_file(seen.dataset, OutputError), media_type="application/json")


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


def _answered(work: Work, stop: threading.Event | None = None) -> Response:
    """Return the response of the work, or its error."""
    try:
        return work(stop or threading.Event())
    except TooManyJobsError as error:
        return _refused(_too_many(error))
    except Refusal as refusal:
        return _refused(refusal)
    except Text2SegError as error:
        return _error(400, message_of(error, in_api=True))
    except Exception:  # the client gets a message, the log gets the traceback
        log.exception("a request failed")
        return _error(500, INTERNAL_ERROR)


async def _stop_when_gone(request: Request, stop: threading.Event) -> None:
    while not await request.is_disconnected():
        await anyio.sleep(POLL_SECONDS)
    stop.set()


def _refused(refusal: Refusal) -> Response:
    return JSONResponse({"error": message_of(refusal, in_api=True)}, refusal.status, refusal.headers)


def _error(status: int, words: str) -> Response:
    return JSONResponse({"error": words}, status)


def _too_many(error: TooManyJobsError) -> Refusal:
    status = HTTPStatus.TOO_MANY_REQUESTS if error.is_of_owner else HTTPStatus.SERVICE_UNAVAILABLE
    return Refusal(status, message_of(error, in_api=True), **{"retry-after": "30"})


async def _form(request: Request, files: int = MOST_IMAGES) -> FormData:
    """Return a form with at most this many files besides one for a setting. Raises `Refusal`."""
    try:
        return await request.form(max_files=files + 1, max_fields=MOST_QUERIES + 10)
    except HTTPException as error:
        if str(error.detail).startswith("Too many files"):
            words = f"a request may have {files} files at most; a zip may hold more images"
            raise Refusal(HTTPStatus.BAD_REQUEST, words) from error
        raise
    except FORM_ERRORS as error:
        raise unreadable_form(error) from error


def _refuse_unknown(form: FormData, known: set[str]) -> None:
    if unknown := set(form) - known:
        raise SettingsError(
            f"no field is called {', '.join(sorted(unknown))}; the fields are {', '.join(sorted(known))}"
        )


def _saved(form: FormData, field: str, folder: Path, *, keep_names: bool = False) -> list[tuple[str, Path]]:
    """Save the files of a field, each in a new folder. Return their original names and their paths, which end in these
    names or in safe ones. Raises `Text2SegError` if a name that is to be kept is not valid on every system."""
    files = []
    for upload in form.getlist(field):
        if not isinstance(upload, UploadFile):
            continue
        name = Path((upload.filename or "").replace("\\", "/")).name or "image"
        safe = checked_path(name) if keep_names else re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-LONGEST_NAME:].lstrip(".")
        path = Path(tempfile.mkdtemp(dir=folder)) / (safe or "image")  # names of fields are the client's too
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
        return object_of(json.loads(text), field)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{field} is not JSON: {why_no_json(error)}") from error
