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
import re
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from text2seg.app.settings import is_known_host, local_names
from text2seg.errors import ImageError, SettingsError, Text2SegError
from text2seg.integrations.label_studio import Asked, Json, LabelConfig, model_version, object_of, predict
from text2seg.integrations.settings import KEY_VARIABLE, LabelStudioSettings
from text2seg.io.images import load_image, open_image
from text2seg.io.names import escaped, shown
from text2seg.pipeline import Text2Seg
from text2seg.session import Session

MOST_BYTES = 64 << 20
"""Limit of a request and of an image, bytes."""
KEPT_SESSIONS = 4
"""Number of images whose features are kept, so that clicks on one image are quick."""
SECONDS = 30.0
"""Time limit for each step of a connection: its next bytes, the body of a request, an image from Label Studio."""
MOST_REQUESTS = 32
"""Number of requests that are answered at the same time; others wait."""
CHUNK_BYTES = 1 << 16
LOCAL_FILES = "/data/local-files/"
"""Path of the URLs that Label Studio gives to files of a folder."""

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
        try:
            place, url = urlsplit(name), urlsplit(urljoin(self._base, name))
        except ValueError as error:
            raise ImageError(f"{shown(name)} is not the address of an image: {error}") from error
        if self._folder is not None and place.path == LOCAL_FILES:
            return models.open(load_image(_inside(self._folder, parse_qs(place.query).get("d", [""])[0])))
        with open_image(io.BytesIO(self._fetch(name, url)), name) as image:
            return models.open(load_image(image, file_name=name))

    def _fetch(self, name: str, url: SplitResult) -> bytes:
        if url[:2] != urlsplit(self._base)[:2]:
            raise ImageError(
                f"{shown(name)} is not an image of {self._base}; import images into Label Studio, or use --images"
            )
        try:
            request = Request(_encoded(url), headers=self._headers())
            with _open(request, timeout=SECONDS) as answer:
                content: bytes = answer.read(MOST_BYTES + 1)
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            raise ImageError(
                f"{shown(name)} cannot be fetched from {self._base}: {error}; is {KEY_VARIABLE} set?"
            ) from error
        if len(content) > MOST_BYTES:
            raise ImageError(f"{shown(name)} is larger than {MOST_BYTES >> 20} MiB")
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


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder. Raises `ImageError` if it is outside; links count as what they lead to."""
    try:
        path = folder.joinpath(name.lstrip("/")).resolve()
        is_inside = path.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, lone surrogates, a loop of links
        raise ImageError(f"{shown(name)} is not the name of a file: {error}") from error
    if not is_inside:
        raise ImageError(f"{shown(name)} is not in the folder {folder}")
    return path


def _encoded(url: SplitResult) -> str:
    """Return a URL with its path and query percent-encoded. What is encoded already stays."""
    path, query = (
        quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", part), safe="%/?:@!$&'()*+,;=") for part in (url.path, url.query)
    )
    return urlunsplit((url.scheme, url.netloc, path, query, ""))


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
        self._opening: dict[str, Future[Session]] = {}
        self._lock = threading.Lock()  # of the two above
        self._turn = threading.Lock()  # of the models, which have memory for one image at a time

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
        tasks, params = request.get("tasks"), object_of(request.get("params"), "params")
        context = object_of(params.get("context"), "the context of a request")
        if not isinstance(tasks, list):
            raise SettingsError("the request has no list of tasks")
        for sentence in self._models.known_queries(config.labels.queries)[1].values():
            _log.warning("a label is left out: %s", sentence)
        results: list[Any] = []
        for number, task in enumerate(tasks, start=1):
            try:
                data = object_of(object_of(task, "a task").get("data"), "the data of a task")
                session = self._session(_text(data, config.key))
                asked = Asked.parse(context, session.image.hw)
                with self._turn:
                    results.append(predict(session, config, version=self.version, asked=asked))
            except Exception as error:
                if len(tasks) == 1:
                    raise
                is_known = isinstance(error, Text2SegError)
                _log.warning("task %d of %d: %s", number, len(tasks), error, exc_info=None if is_known else error)
                results.append([])
        return {"results": results, "model_version": self.version}

    def _session(self, name: str) -> Session:
        """Return the session on an image. It is opened once; only requests for the same image wait for it."""
        with self._lock:
            if (session := self._sessions.get(name)) is not None:
                self._sessions.move_to_end(name)
                return session
            opening = self._opening.get(name)
            ours = self._opening.setdefault(name, Future())
        if opening is not None:
            return opening.result()
        try:
            session = self._images.open(self._models, name)
        except BaseException as error:
            with self._lock:
                del self._opening[name]
            ours.set_exception(error)
            raise
        with self._lock:
            del self._opening[name]
            self._sessions[name] = session
            while len(self._sessions) > KEPT_SESSIONS:
                self._sessions.popitem(last=False)
        ours.set_result(session)
        return session


def _text(values: Json, key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise SettingsError(f"the request has no text {key!r}")
    return value


class _Refusal(Exception):
    """A request that is refused: the status, and the reason for its sender."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Server(ThreadingHTTPServer):
    """A thread for each request, `MOST_REQUESTS` at most. `server_close` waits for them: Python aborts a process that
    ends while a thread uses torch."""

    daemon_threads = False

    def __init__(self, settings: LabelStudioSettings, backend: Backend) -> None:
        self._open: set[socket.socket] = set()
        """Connections of the requests that are read or answered."""
        super().__init__((settings.host, settings.port), _Handler)  # which closes it if it cannot listen
        self.expected = f"Basic {base64.b64encode(settings.auth.encode()).decode()}" if settings.auth else ""
        """The header Authorization that requests need; empty if they need none."""
        self.routes = {
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
        self._free = threading.Semaphore(MOST_REQUESTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread was started; after Ctrl-C there may be one, which releases it
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._free.release()

    def server_close(self) -> None:
        for connection in tuple(self._open):
            with suppress(OSError):  # it was closed meanwhile
                connection.shutdown(socket.SHUT_RD)  # nobody waits for the rest of a request
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.info("a connection to %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers the one request of a connection. It reads the body only if nothing else is wrong."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(SECONDS)
        self._unread = 0
        """Bytes of the body that are still to come."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        status, answer = self._answered(method)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        deque(self._chunks(), maxlen=0)  # most senders read the answer only after they have sent everything

    def _answered(self, method: str) -> tuple[HTTPStatus, Json]:
        """Return the status and the answer to a request."""
        try:
            self._unread = self._length()
            route = self._checked_route(method)
            return HTTPStatus.OK, route(self._request())
        except _Refusal as refusal:
            return refusal.status, {"error": str(refusal)}
        except Text2SegError as error:
            _log.warning("%s: %s", shown(self.path), error)
            return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except Exception:
            _log.exception("%s failed", shown(self.path))
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "an error in text2seg or on its machine; see its log"}

    def _checked_route(self, method: str) -> Callable[[Json], Json]:
        """Return what answers a request, by its headers. Raises `_Refusal`."""
        host, expected = self.headers.get("Host", ""), self.server.expected
        if not expected and not is_known_host(host, local_names()):
            words = f"unknown host {shown(host)}; call the backend localhost, or start it with --auth NAME:PASSWORD"
            raise _Refusal(HTTPStatus.MISDIRECTED_REQUEST, words)
        given = self.headers.get("Authorization", "")
        if expected and not hmac.compare_digest(given.encode(), expected.encode()):
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "name or password is wrong")
        route = self.server.routes.get((method, self.path.partition("?")[0]))
        if route is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, f"there is no {method} {shown(self.path)}")
        # A page in a browser cannot send this type to another site without being asked for permission.
        if method == "POST" and self.headers.get_content_type() != "application/json":
            raise _Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a request must be JSON")
        if self._unread > MOST_BYTES:
            raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request may have {MOST_BYTES >> 20} MiB")
        return route

    def _length(self) -> int:
        """Return the length of the body."""
        given = self.headers.get("Content-Length", "0")
        return int(given) if re.fullmatch("[0-9]{1,15}", given) else MOST_BYTES + 1

    def _request(self) -> Json:
        """Return the body. Raises `_Refusal`."""
        content = b"".join(self._chunks())
        if self._unread:
            raise _Refusal(HTTPStatus.REQUEST_TIMEOUT, f"the request did not arrive within {SECONDS:g} s")
        try:
            request = json.loads(content or b"{}")
            if not isinstance(request, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            raise _Refusal(HTTPStatus.BAD_REQUEST, f"the request is not JSON: {error}") from error
        return request

    def _chunks(self) -> Iterator[bytes]:
        """Yield what still comes of the body, at most for `SECONDS`."""
        deadline = time.monotonic() + SECONDS
        while self._unread and time.monotonic() < deadline:
            try:
                chunk = self.rfile.read1(min(self._unread, CHUNK_BYTES))
            except OSError:  # too slow, or gone
                return
            if not chunk:
                return
            self._unread -= len(chunk)
            yield chunk

    def log_message(self, format: str, *values: Any) -> None:
        _log.info("%s", escaped(format % values))


def server(models: Text2Seg, settings: LabelStudioSettings) -> ThreadingHTTPServer:
    """Return a listening server; `serve_forever` runs it.

    Raises:
        SettingsError: the address cannot be used.
    """
    try:
        return _Server(settings, Backend(models, settings))
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}, port {settings.port}: {error}; choose another with --host or --port"
        ) from error
