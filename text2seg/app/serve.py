"""The app on a port: the page, the plain HTTP routes beside it, and the guard before both."""

from __future__ import annotations

import logging
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from text2seg.app import theme
from text2seg.app.api import add_routes
from text2seg.app.guard import Guard
from text2seg.app.model_pool import ModelPool
from text2seg.app.page import build_page
from text2seg.app.settings import AppSettings, is_loopback
from text2seg.app.uploads import visitors_folder
from text2seg.errors import SettingsError

log = logging.getLogger(__name__)

FIRST_PORT, PORTS = 7860, 100
GOODBYE_SECONDS = 3


def build_app(model_pool: ModelPool) -> Guard:
    """The whole app as an ASGI application."""
    settings = model_pool.settings
    for parser in ("multipart", "python_multipart"):  # what is wrong with a form its sender is told
        logging.getLogger(parser).setLevel(logging.ERROR)
    visitors_folder()  # before Gradio asks where its files go
    app = FastAPI(title="text2seg", openapi_url=None)
    add_routes(app, model_pool)
    page = build_page(model_pool)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        root_path=settings.public_url or None,
        footer_links=[],
        run_history=False,
        favicon_path=str(theme.FAVICON),
        max_file_size=settings.folder_mb * 1_000_000,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        pwa=False,
        theme=theme.theme(),
        css_paths=theme.style_sheets(),
        head=theme.scripts(),
    )
    page.has_launched = True  # Gradio looks where files lie only if it believes to have started the server itself
    return Guard(app, settings, partial(_has_event, page))


def _has_event(page: gr.Blocks, content: Any) -> bool:
    """Whether the body of an event names a function of the page, or one that was made for this visitor's page. What is
    not of the right kind Gradio refuses by itself."""
    number = content.get("fn_index") if isinstance(content, dict) else 0
    if number is not None and not isinstance(number, int):
        return True
    visitor = content.get("session_hash") if isinstance(content, dict) else None
    is_known = isinstance(visitor, str) and visitor in page.state_holder
    own = page.state_holder[str(visitor)].blocks_config.fns if is_known else page.fns
    return number in own


def serve(model_pool: ModelPool, opened: Callable[[str], object]) -> None:
    """Serve until Ctrl-C; `opened` is told the address once there is an answer.

    Raises:
        SettingsError: the address or the port cannot be listened on.
    """
    settings = model_pool.settings
    if not is_loopback(settings.host) and not settings.auth:
        log.warning("everyone who reaches %s may use this app; --auth NAME:PASSWORD asks for a password", settings.host)
    with running(model_pool) as (url, thread):
        opened(settings.public_url or url)
        if settings.open_browser:
            webbrowser.open(url)
        try:
            while thread.is_alive():
                thread.join(1)
        except KeyboardInterrupt:
            log.info("the app ends")


@contextmanager
def running(model_pool: ModelPool) -> Iterator[tuple[str, threading.Thread]]:
    """The app in a thread of its own: its address, and the thread. Ends when the context does."""
    with listening(model_pool.settings) as listener:
        host, port = listener.getsockname()[:2]
        config = uvicorn.Config(
            build_app(model_pool),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(model_pool.settings.public_url),
            timeout_graceful_shutdown=GOODBYE_SECONDS,
            ws="none",
        )
        threading.Thread(target=model_pool.warm_up, name="text2seg-warm-up").start()
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="text2seg-app")
        thread.start()
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}", thread
        finally:
            server.should_exit = True
            thread.join()


def listening(settings: AppSettings) -> socket.socket:
    """A socket on the address, at the port that was asked for or the first that is free."""
    ports = [settings.port] if settings.port is not None else range(FIRST_PORT, FIRST_PORT + PORTS)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    reason: OSError | None = None
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, port))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = error
    tried = f"port {ports[0]}" if len(ports) == 1 else f"ports {ports[0]} to {ports[-1]}"
    raise SettingsError(f"cannot listen on {settings.host}, {tried}: {reason}; choose others with --host and --port")
