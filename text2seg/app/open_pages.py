"""Which pages are open. Each page says so from time to time, so that it needs no stream."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GONE_SECONDS = 150.0
"""A page that says nothing for so long has gone. Browsers run the timers of a hidden page once a minute."""
MOST = 10_000
"""Pages that are known at the same time."""
_HEARTBEAT = re.compile(r"/gradio_api/heartbeat/(\w+)")

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Page:
    said: asyncio.Event = field(default_factory=asyncio.Event)
    has_left: bool = False
    task: asyncio.Task[None] | None = None

    async def gone(self) -> Message:
        """Wait until the page has gone, as `Receive` tells it."""
        while not self.has_left:
            try:
                await asyncio.wait_for(self.said.wait(), GONE_SECONDS)
            except asyncio.TimeoutError:
                break
            self.said.clear()
        return {"type": "http.disconnect"}

    def leave(self) -> None:
        self.has_left = True
        self.said.set()


class OpenPages:
    """ASGI middleware that holds Gradio's stream of each open page, in place of the browser.

    A browser has six connections to a host for all its windows, and Gradio's page holds one as long as it is open: six
    windows leave none for requests. So a page says that it is open (POST) or that it leaves (DELETE), and the stream,
    whose end tells Gradio that the page has gone, stays within this process. Other clients have the stream (GET).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._pages: dict[str, _Page] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _HEARTBEAT.fullmatch(scope.get("path", ""))
        if scope["type"] == "lifespan":
            await self._app(scope, self._closing(receive), send)
        elif found is None or scope["method"] not in ("POST", "DELETE"):
            await self._app(scope, receive, send)
        else:
            if scope["method"] == "POST":
                self._is_here(found[1], scope)
            elif found[1] in self._pages:
                self._pages[found[1]].leave()
            await Response(status_code=204)(scope, receive, send)

    def _is_here(self, session: str, scope: Scope) -> None:
        page = self._pages.pop(session, None)
        if page is None or page.has_left:
            page = _Page()
            page.task = asyncio.create_task(self._hold(session, page, scope))
        self._pages[session] = page  # the last one that spoke is the last one here
        page.said.set()
        if len(self._pages) > MOST:
            next(iter(self._pages.values())).leave()

    async def _hold(self, session: str, page: _Page, scope: Scope) -> None:
        async def discard(message: Message) -> None: ...

        # With this version of the specification `gone` ends the stream.
        stream = {**scope, "method": "GET", "asgi": {"version": "3.0", "spec_version": "2.3"}}
        try:
            await self._app(stream, page.gone, discard)
        except Exception:
            log.exception("a page was not forgotten")
        finally:
            if self._pages.get(session) is page:
                del self._pages[session]

    def _closing(self, receive: Receive) -> Receive:
        """Return a `Receive` that lets all pages leave before the app shuts down."""

        async def closing() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                pages = [*self._pages.values()]
                for page in pages:
                    page.leave()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.gather(*(page.task for page in pages if page.task)), 3.0)
            return message

        return closing
