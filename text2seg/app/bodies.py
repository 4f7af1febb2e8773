"""Bodies of requests: as small as they have to be, and naming no file but visitors' uploads."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope

from text2seg.app.uploads import is_upload

log = logging.getLogger(__name__)

JSON_BYTES = 20_000_000
"""Largest body that is not an upload: what a page sends with an event."""
FORM_BYTES = 100_000
"""What the parts of an upload may take beside the file."""
LET_PASS_BYTES = 2_000_000_000
"""So much of an upload that is too large is still received, to be able to say so."""


FORM_FAULTS = (ValueError, LookupError, TypeError, AttributeError)
"""What parsers of forms raise of bodies and headers that they did not expect, beside their own errors."""


class Refusal(Exception):
    """A request that goes no further, with the status and the words it is answered with."""

    def __init__(self, status: HTTPStatus, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


async def checked_json(scope: Scope, receive: Receive, is_ours: Callable[[str], bool]) -> tuple[Receive, Any]:
    """A JSON body that has been looked through, to be received again, and what is in it.

    Args:
        is_ours: whether a URL is one of this app or holds the picture itself.

    Raises:
        Refusal: it is too large, no JSON, or has a path or a URL in it that is none of an upload.
    """
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > JSON_BYTES:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an event may bring {JSON_BYTES // 1_000_000} MB at most"
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
    # Written anew, so that what comes after reads exactly what was read here.
    return _once(scope, json.dumps(content).encode(), receive), content


def why_no_json(error: Exception) -> str:
    """What is wrong with a text that should be JSON, for whoever wrote it."""
    if isinstance(error, json.JSONDecodeError):
        return str(error)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it is not UTF-8" if isinstance(error, UnicodeError) else "a number in it is too long"


def counted_form(scope: Scope, receive: Receive, megabytes: int, refused: list[Refusal]) -> Receive:
    """A form, received as it comes, until it is too much; then that is noted in `refused`, too, because whoever
    receives may make another error of it. Raises `Refusal` where its length is told and too much."""
    words = f"an upload may have {megabytes} MB at most; make the pictures smaller"
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
    """The answer to a form that its parser fails at: that is its sender's fault."""
    log.info("a form cannot be read", exc_info=error)
    words = "the form cannot be read; send it as multipart/form-data in UTF-8, as curl -F does"
    return Refusal(HTTPStatus.BAD_REQUEST, words)


async def let_pass(receive: Receive) -> None:
    """Read on without keeping it: most browsers look at an answer only once they have sent all."""
    left = LET_PASS_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return


def _files_in(content: Any) -> Iterator[tuple[str, str]]:
    """The path and the URL, either may be empty, of everything in a body that could be meant as a file."""
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
    """This body, and after it whatever else comes."""
    MutableHeaders(scope=scope)["content-length"] = str(len(body))
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def once() -> Message:
        return waiting.pop() if waiting else await receive()

    return once
