"""`text2seg serve label-studio`: a machine learning backend for Label Studio over HTTP.

Routes: GET /health, POST /setup, POST /predict, and answers to Label Studio's other calls (/versions, /webhook, …).
"""

from __future__ import annotations

import base64
import hmac
import io
import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import parse_qs, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from text2seg.app.settings import is_loopback
from text2seg.errors import ImageError, SettingsError, Text2SegError
from text2seg.integrations.label_studio import Asked, Json, LabelConfig, model_version, predict
from text2seg.integrations.settings import KEY_VARIABLE, LabelStudioSettings
from text2seg.io.images import load_image, open_image
from text2seg.io.names import parts_of
from text2seg.pipeline import Text2Seg
from text2seg.session import Session

MOST_BYTES = 64 << 20
"""Limit of a request and of an image, bytes."""
KEPT_SESSIONS = 4
"""Number of images whose features are kept, so that clicks on one image are quick."""
SECONDS = 30
"""Time limit for an image from Label Studio."""

_log = logging.getLogger(__name__)


class Images:
    """Reads the images of tasks from the folder or from Label Studio, and from nowhere else."""

    def __init__(self, settings: LabelStudioSettings) -> None:
        self._base, self._folder = settings.label_studio.rstrip("/") + "/", settings.images
        self.key = ""
        """Key that Label Studio sent; used if the environment has none."""

    def open(self, models: Text2Seg, name: str) -> Session:
        """Open a session on the image that a task names.

        Raises:
            ImageError: it is not an image of Label Studio or of the folder, or it cannot be read.
        """
        if (path := self._local(name)) is not None:
            return models.open(load_image(path))
        with open_image(io.BytesIO(self._fetch(name)), name) as image:
            return models.open(load_image(image, file_name=name))

    def _local(self, name: str) -> Path | None:
        parts = urlsplit(name)
        if self._folder is None or parts.path != "/data/local-files/":
            return None
        inner = parts_of(parse_qs(parts.query).get("d", [""])[0])
        path = self._folder.joinpath(*inner).resolve()
        if not path.is_relative_to(self._folder.resolve()):
            raise ImageError(f"{name} is not in the folder {self._folder}")
        return path

    def _fetch(self, name: str) -> bytes:
        url = urljoin(self._base, name)
        if urlsplit(url)[:2] != urlsplit(self._base)[:2]:
            raise ImageError(
                f"{name} is not an image of {self._base}; import images into Label Studio, or use --images"
            )
        try:
            with _open(Request(url, headers=self._headers()), timeout=SECONDS) as answer:
                content: bytes = answer.read(MOST_BYTES + 1)
        except (URLError, OSError, ValueError, KeyError) as error:
            raise ImageError(f"{name} cannot be fetched from {self._base}: {error}; is {KEY_VARIABLE} set?") from error
        if len(content) > MOST_BYTES:
            raise ImageError(f"{name} is larger than {MOST_BYTES >> 20} MiB")
        return content

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(KEY_VARIABLE) or self.key
        if key.count(".") != 2:
            return {"Authorization": f"Token {key}"} if key else {}
        # A personal access token: it gives access tokens of a few minutes.
        request = Request(
            urljoin(self._base, "api/token/refresh/"),
            json.dumps({"refresh": key}).encode(),
            {"Content-Type": "application/json"},
        )
        with _open(request, timeout=SECONDS) as answer:
            return {"Authorization": f"Bearer {json.load(answer)['access']}"}


class _NoRedirects(HTTPRedirectHandler):
    """Refuses redirects, which could lead to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_open = build_opener(_NoRedirects).open


class Backend:
    """What the routes do. Safe to share between threads."""

    def __init__(self, models: Text2Seg, settings: LabelStudioSettings) -> None:
        self._models, self._images = models, Images(settings)
        self.version = model_version(models)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def health(self, _: Json) -> Json:
        return {"status": "UP", "model_class": "text2seg"}

    def setup(self, request: Json) -> Json:
        """Check the labelling configuration, and keep the key of Label Studio."""
        LabelConfig.parse(_text(request, "schema"))
        self._images.key = str(request.get("access_token") or "")
        return {"model_version": self.version}

    def versions(self, _: Json) -> Json:
        return {"versions": [self.version]}

    def nothing(self, _: Json) -> Json:
        """Answer calls about training and webhooks: the models do not learn from annotations."""
        return {"status": "ok"}

    def predict(self, request: Json) -> Json:
        """Return a prediction for each task.

        Raises:
            Text2SegError: the only task fails. One of several tasks that fails gets no prediction.
        """
        config = LabelConfig.parse(_text(request, "label_config"))
        tasks, context = request.get("tasks"), (request.get("params") or {}).get("context")
        if not isinstance(tasks, list):
            raise SettingsError("the request has no list of tasks")
        results: list[Any] = []
        for task in tasks:
            try:
                session = self._session(_text(task.get("data") or {}, config.key))
                asked = Asked.parse(context, session.image.hw)
                results.append(predict(session, config, version=self.version, asked=asked))
            except Text2SegError as error:
                if len(tasks) == 1:
                    raise
                _log.warning("task %s: %s", task.get("id"), error)
                results.append([])
        return {"results": results, "model_version": self.version}

    def _session(self, name: str) -> Session:
        with self._lock:
            session = self._sessions.get(name) or self._images.open(self._models, name)
            self._sessions[name] = session
            self._sessions.move_to_end(name)
            while len(self._sessions) > KEPT_SESSIONS:
                self._sessions.popitem(last=False)
            return session


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise SettingsError(f"the request has no text {key!r}")
    return value


def server(models: Text2Seg, settings: LabelStudioSettings) -> ThreadingHTTPServer:
    """Return a listening server; `serve_forever` runs it.

    Raises:
        SettingsError: the address cannot be used, or it is open to other machines without --auth.
    """
    if not settings.auth and not is_loopback(settings.host):
        raise SettingsError(f"{settings.host} can be reached from other machines; give --auth NAME:PASSWORD")
    backend = Backend(models, settings)
    expected = f"Basic {base64.b64encode(settings.auth.encode()).decode()}" if settings.auth else ""
    routes = {
        ("GET", "/"): backend.health,
        ("GET", "/health"): backend.health,
        ("GET", "/versions"): backend.versions,
        ("POST", "/setup"): backend.setup,
        ("POST", "/predict"): backend.predict,
        ("POST", "/webhook"): backend.nothing,
        ("POST", "/train"): backend.nothing,
        ("POST", "/delete"): backend.nothing,
        ("POST", "/duplicate_model"): backend.nothing,
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(*self._answered("GET"))

        def do_POST(self) -> None:
            self._answer(*self._answered("POST"))

        def _answered(self, method: str) -> tuple[int, Json]:
            """Return the status and the answer to a request."""
            content = self._content()
            given = self.headers.get("Authorization", "")
            if expected and not hmac.compare_digest(given.encode(), expected.encode()):
                return 401, {"error": "name or password is wrong"}
            route = routes.get((method, urlsplit(self.path).path))
            if route is None:
                return 404, {"error": f"there is no {method} {self.path}"}
            if content is None:
                return 413, {"error": f"a request may have {MOST_BYTES >> 20} MiB"}
            # A page in a browser cannot send this type to another site without being asked for permission.
            if method == "POST" and self.headers.get_content_type() != "application/json":
                return 415, {"error": "a request must be JSON"}
            try:
                request = json.loads(content or b"{}")
                if not isinstance(request, dict):
                    raise ValueError("it is not an object")
            except ValueError as error:
                return 400, {"error": f"the request is not JSON: {error}"}
            try:
                return 200, route(request)
            except Text2SegError as error:
                _log.warning("%s: %s", self.path, error)
                return 400, {"error": str(error)}

        def _content(self) -> bytes | None:
            """Return the body; None if it is too large, and then the connection ends."""
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or int(length) > MOST_BYTES:
                self.close_connection = True
                return None
            return self.rfile.read(int(length))

        def _answer(self, status: int, answer: Json) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: Any) -> None:
            _log.info(format, *values)

    try:
        return ThreadingHTTPServer((settings.host, settings.port), Handler)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}, port {settings.port}: {error}; choose another with --host or --port"
        ) from error
