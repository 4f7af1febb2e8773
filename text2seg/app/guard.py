"""The guard before every route. It checks the sender, the route, the size and the file paths of each request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from text2seg.app.checks import is_upload
from text2seg.app.messages import INTERNAL_ERROR, message_of
from text2seg.app.settings import AppSettings, is_known_host, local_names
from text2seg.settings_fields import fault

log = logging.getLogger(__name__)

JSON_BYTES = 20_000_000
"""Largest body of an event of the page, in bytes. Uploads have their own limit."""
FORM_BYTES = 100_000
"""Bytes of an upload allowed for the parts beside the file."""
LET_PASS_BYTES = 2_000_000_000
"""Bytes of a too large upload that are still received, so that the browser reads the error."""


FORM_ERRORS = (ValueError, LookupError, TypeError, AttributeError)
"""Errors that form parsers raise for unexpected bodies and headers."""


class Refusal(Exception):
    """A refused request: its HTTP status and the message for the client."""

    def __init__(self, status: HTTPStatus, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


async def checked_json(scope: Scope, receive: Receive, is_ours: Callable[[str], bool]) -> tuple[Receive, Any]:
    """Check a JSON body. Return a `Receive` that gives it again, and its content.

    Args:
        is_ours: whether a URL belongs to this app or holds the image itself.

    Raises:
        Refusal: the body is too large, is not JSON, or has a path or URL that is not an upload.
    """
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > JSON_BYTES:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an event may have {JSON_BYTES // 1_000_000} MB at most"
            )
        if not message.get("more_body"):
            break
    try:
        content = json.loads(body or b"null")
    except (ValueError, RecursionError) as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"The body is not JSON: {why_no_json(error)}") from error
    for path, url in _files_in(content):
        if not (is_upload(path) if path else is_ours(url)):
            words = f"{(path or url)[:200]!r} was not uploaded here; requests name no other files or URLs"
            raise Refusal(HTTPStatus.FORBIDDEN, words)
    # Serialized again, so that the app reads exactly what was checked.
    return _once(scope, json.dumps(content).encode(), receive), content


def why_no_json(error: Exception) -> str:
    """Return why a text is not valid JSON, for its sender."""
    if isinstance(error, json.JSONDecodeError):
        return str(error)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it is not UTF-8" if isinstance(error, UnicodeError) else "a number in it is too long"


def counted_form(scope: Scope, receive: Receive, megabytes: int, refused: list[Refusal]) -> Receive:
    """Return a `Receive` for a form that stops at the size limit.

    It appends the refusal to `refused` as well as raising it, because the receiver may replace the error.

    Raises:
        Refusal: the content-length header exceeds the limit.
    """
    words = f"an upload may have {megabytes} MB at most; make the images smaller"
    refusal = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, words)
    length = Headers(scope=scope).get("content-length", "0")
    left = megabytes * 1_000_000 + FORM_BYTES
    if not length.isdecimal() or int(length) > left:
        raise refusal

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            refused.append(refusal)
            raise refusal
        return message

    return counted


def unreadable_form(error: Exception) -> Refusal:
    """Return the refusal of a form that cannot be parsed."""
    log.info("a form cannot be read", exc_info=error)
    words = "the form cannot be read; send it as multipart/form-data in UTF-8, as curl -F does"
    return Refusal(HTTPStatus.BAD_REQUEST, words)


async def let_pass(receive: Receive) -> None:
    """Read and discard the rest of a body. Most browsers read the response only after they have sent everything."""
    left = LET_PASS_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return


def _files_in(content: Any) -> Iterator[tuple[str, str]]:
    """Yield (path, URL) of everything in a body that may name a file. One of the two is empty."""
    left = [content]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            path, url = (each[key] if isinstance(each.get(key), str) else "" for key in ("path", "url"))
            if path:
                yield path, ""
            if url:
                yield "", url
        if isinstance(each, (dict, list)):
            left += each.values() if isinstance(each, dict) else each


def _once(scope: Scope, body: bytes, receive: Receive) -> Receive:
    """Return a `Receive` that gives this body once, then the original messages."""
    MutableHeaders(scope=scope)["content-length"] = str(len(body))
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def once() -> Message:
        return waiting.pop() if waiting else await receive()

    return once


PUBLIC = ("segment", "explain", "health")
"""Names of the endpoints for `gradio_client`."""
UPLOAD = "/gradio_api/upload"
JOBS = "/api/v1/jobs"
USER = "text2seg.user"
"""Key of a request's scope: name of the user whose password it had; "" if the app has no passwords."""
MOST_ERRORS = 3
WRONG_PASSWORD_SECONDS = 1.0

ALLOWED = {
    method: re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    for method, patterns in {
        "GET": (
            r"/",
            r"/config/?",
            r"/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?",
            r"/(assets|static)/[^\0]+",
            r"/gradio_api/(info/?|theme\.css|startup-events|user/?|app_id/?|login_check/?)",
            r"/gradio_api/(queue/data|queue/status|upload_progress)",
            r"/gradio_api/heartbeat/\w+",
            r"/gradio_api/call/\w+/\w+",
            r"/gradio_api/file=.+",
            r"/api/openapi\.json|/api/(v1/)?(health|tools)",
            r"/api/v1/jobs(/[\w-]+(/dataset)?)?",
        ),
        "POST": (
            r"/gradio_api/(upload|queue/join|cancel|reset/?)",
            r"/gradio_api/call/\w+|/gradio_api/run/predict|/gradio_api/heartbeat/\w+",
            r"/api/(v1/)?(segment|explain/[\w-]+)|/api/v1/jobs",
        ),
        "DELETE": (r"/api/v1/jobs/[\w-]+|/gradio_api/heartbeat/\w+",),
    }.items()
}
ALLOWED["HEAD"] = ALLOWED["GET"]

HEADERS = {
    # Gradio needs both "unsafe" words: it puts scripts into the page and evaluates strings. The policy still blocks
    # loading from and sending to other hosts, and framing by other pages.
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "geolocation=(), microphone=(), usb=(), payment=()",
}


class Guard:
    """ASGI middleware that checks every request and turns every error into JSON."""

    def __init__(
        self, app: ASGIApp, settings: AppSettings, knows_event: Callable[[Any], bool] = lambda content: True
    ) -> None:
        """`knows_event` returns whether an event with this body exists on the page."""
        self.app, self._knows_event = app, knows_event
        self._users = settings.users()
        self._settings = settings
        public = urlsplit(settings.public_url)
        self._names = local_names() | {(public.hostname or "localhost").lower()}
        self._public = public.netloc.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the app has no web sockets
        started = ended = False
        refused: list[Refusal] = []
        failure: list[Message] = []  # an error response, held until the app has finished

        async def with_headers(message: Message) -> None:
            nonlocal started, ended
            if refused and not started:
                return  # the app's response to a body that was cut off
            if message["type"] == "http.response.start":
                if message["status"] >= HTTPStatus.BAD_REQUEST and not started and not failure:
                    failure.append(message)
                    return
                started = True
                MutableHeaders(scope=message).update(HEADERS)
            elif failure and not started:
                failure.append(message)
                return
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self._check(scope)
            checked = await self._checked_body(scope, receive, refused) if scope["method"] == "POST" else receive
            await self.app(scope, checked, with_headers)
        except Refusal as refusal:
            refused.append(refusal)
        except Exception as error:
            is_answered = isinstance(error.__cause__, HTTPException)
            if is_answered:
                log.debug("%s: %s", scope["path"], error.__cause__)  # Gradio has answered the client
            elif scope["path"] == UPLOAD and isinstance(error, FORM_ERRORS):
                refused.append(unreadable_form(error))
            else:
                log.exception("a request failed")
            if started and not ended:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif not refused and not (is_answered and failure):
                refused.append(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR))
        if failure and not refused and not started:
            await in_words(failure, scope["path"])(scope, receive, with_headers)
        elif refused and not started:
            first = refused[0]
            refused.clear()
            if first.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and not scope["path"].startswith("/api/"):
                await let_pass(receive)  # the sender is a browser
            failure[:] = [{}]  # so that `with_headers` sends this response
            answer = JSONResponse({"error": message_of(first)}, first.status, first.headers)
            await answer(scope, receive, with_headers)

    async def _check(self, scope: Scope) -> None:
        """Check everything but the body. Raises `Refusal`."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not is_known_host(host, self._names):
            words = f"unknown host {host!r}; behind a proxy, start the app with --public-url"
            raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, words)
        origin = headers.get("origin")
        if origin is not None and not self._is_own(_netloc(origin), host):
            raise Refusal(HTTPStatus.FORBIDDEN, f"requests from pages of {origin} are refused")
        if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site") and scope["path"] != "/":
            raise Refusal(HTTPStatus.FORBIDDEN, "requests from pages of other sites are refused")
        scope[USER] = await self._check_password(headers)
        allowed = ALLOWED.get(scope["method"])
        if allowed is None or not allowed.fullmatch(scope["path"]):
            others = [method for method in ("GET", "POST", "DELETE") if ALLOWED[method].fullmatch(scope["path"])]
            if others:
                words = f"{scope['path']} needs {' or '.join(others)}, not {scope['method']}"
                raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, words, allow=", ".join(others))
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is no {scope['method']} {scope['path'][:200]} here")
        name = scope["path"].partition("/gradio_api/call/")[2].partition("/")[0]
        if name and name not in PUBLIC:
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is no endpoint {name!r}; there are {', '.join(PUBLIC)}")
        place = scope["path"].partition("/gradio_api/file=")[2]
        if place and not is_upload(place):
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such file")

    def _is_own(self, netloc: str, host: str) -> bool:
        return bool(netloc) and netloc.lower() in (host.lower(), self._public)

    async def _check_password(self, headers: Headers) -> str:
        """Return the name of the user; "" if the app has no passwords. Raises `Refusal`."""
        user = self._user_of(headers.get("authorization", ""))
        if self._users and not user:
            if "authorization" in headers:
                await asyncio.sleep(WRONG_PASSWORD_SECONDS)  # slows down guessing
            raise Refusal(
                HTTPStatus.UNAUTHORIZED, "name and password required", **{"www-authenticate": 'Basic realm="text2seg"'}
            )
        return user

    def _user_of(self, authorization: str) -> str:
        """Return the user with this name and password, or "" if there is none."""
        scheme, _, encoded = authorization.partition(" ")
        try:
            name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return ""
        expected = self._users.get(name, "")
        right = hmac.compare_digest(password.encode(), expected.encode())
        return name if scheme.lower() == "basic" and right and expected else ""

    async def _checked_body(self, scope: Scope, receive: Receive, refused: list[Refusal]) -> Receive:
        headers = Headers(scope=scope)
        is_upload_of_page = scope["path"] == UPLOAD
        is_form = headers.get("content-type", "").startswith("multipart/form-data")
        if is_form and (is_upload_of_page or scope["path"].startswith("/api/")):
            of_folder = is_upload_of_page or scope["path"] == JOBS
            megabytes = self._settings.folder_mb if of_folder else self._settings.upload_mb
            return counted_form(scope, receive, megabytes, refused)
        if is_upload_of_page or scope["path"].startswith("/api/"):
            got = headers.get("content-type") or "nothing"
            words = f"send a form (multipart/form-data) with the image file, as curl -F does; got {got[:100]}"
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, words)
        host = headers.get("host", "")
        checked, content = await checked_json(scope, receive, lambda url: self._is_ours(url, host))
        if scope["path"] in ("/gradio_api/queue/join", "/gradio_api/run/predict") and not self._knows_event(content):
            raise Refusal(HTTPStatus.NOT_FOUND, "this page is outdated; reload it")
        return checked

    def _is_ours(self, url: str, host: str) -> bool:
        """Return whether a URL is a data URL or an upload of this app. Gradio opens only data URLs."""
        if url.startswith("data:"):
            return True
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        if parts.netloc:
            return parts.scheme in ("http", "https") and self._is_own(parts.netloc, host)
        return not parts.scheme


def in_words(answer: list[Message], path: str) -> JSONResponse:
    """Return an error response as `{"error": message}`. `detail` has the same message for Gradio's own clients."""
    status = int(answer[0]["status"])
    try:
        content = json.loads(b"".join(message.get("body", b"") for message in answer[1:]))
    except ValueError:
        content = None
    content = content if isinstance(content, dict) else {}
    detail = content.get("error") or content.get("detail")
    if isinstance(detail, list):  # errors of pydantic
        errors = [each for each in detail[:MOST_ERRORS] if isinstance(each, dict) and "type" in each]
        detail = "; ".join(f"{'.'.join(map(str, each.get('loc', [])))} {fault(each)}" for each in errors)
    if not isinstance(detail, str) or not detail:
        detail = INTERNAL_ERROR if status >= HTTPStatus.INTERNAL_SERVER_ERROR else f"{path} answered {status}"
    elif status == HTTPStatus.INTERNAL_SERVER_ERROR and detail != INTERNAL_ERROR and path.startswith("/gradio_api/"):
        status = int(HTTPStatus.BAD_REQUEST)  # Gradio's status for errors that a function of the page raises
    words = message_of(Exception(detail))
    kept = {name.decode(): value.decode() for name, value in answer[0]["headers"] if name in (b"retry-after", b"allow")}
    return JSONResponse({"error": words, "detail": words}, status, kept)


def _netloc(url: str) -> str:
    """Return host and port of a URL, or "?" if it is not valid."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return "?"
