"""The app as a server: the page, the HTTP API, and the guard before both."""

from __future__ import annotations

import logging
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse

from text2seg.app import api, explain, folder, models_panel, segment
from text2seg.app.checks import visitors_folder
from text2seg.app.folder.visitors import VisitorJobs
from text2seg.app.guard import PUBLIC, Guard
from text2seg.app.http_api import add_routes
from text2seg.app.messages import INTERNAL_ERROR, message_of
from text2seg.app.model_pool import ModelPool
from text2seg.app.open_pages import OpenPages
from text2seg.app.settings import is_loopback
from text2seg.errors import SettingsError, Text2SegError

log = logging.getLogger(__name__)

# ---- the page: its header, its tabs, and its look

OFTEN_SECONDS, AGE_SECONDS = 600, 3600
"""Files of visitors are checked this often, and deleted at this age."""

HEADER = """
<header class="t2s-header">
  <h1>text2seg</h1>
  <p>Type words, get masks.</p>
</header>
"""


def build_page(model_pool: ModelPool, jobs: VisitorJobs) -> gr.Blocks:
    """Build the whole page. Each tab has a module with a `build` function. All style sheets and scripts in this folder
    are part of the page."""
    page: Any = Page(title="text2seg", analytics_enabled=False, delete_cache=(OFTEN_SECONDS, AGE_SECONDS))
    with page:
        with gr.Column(elem_id="head"):
            gr.HTML(HEADER, padding=False)
            models_panel.build(model_pool)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Segment", id="segment"):
                back = folder.lay_out_return()
                editor = segment.build(model_pool)
            with gr.Tab("Label a folder", id="folder"):
                folder.build(jobs, tabs, editor, back)
            with gr.Tab("Explain", id="explain") as tab:
                explain.build(model_pool, tab, editor.desk)
        api.add_endpoints(model_pool)
    page.queue(
        default_concurrency_limit=model_pool.settings.workers, max_size=model_pool.settings.waiting, api_open=False
    )
    return page


ROOM = Path(__file__).parent
FAVICON = ROOM / "assets" / "favicon.svg"


def theme() -> gr.themes.Base:
    """Return the theme: grey with one accent colour, in the fonts of the visitor's machine."""
    letters = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
    return gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=letters,
        font_mono=("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace"),
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        color_accent="*primary_700",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
        checkbox_background_color_selected="*primary_700",
        checkbox_border_color_selected="*primary_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_border_width="1px",
        button_border_width_dark="1px",
        button_large_radius="*radius_lg",
        button_medium_radius="*radius_lg",
        button_small_radius="*radius_lg",
        button_large_text_weight="600",
        button_medium_text_weight="500",
        button_large_padding="0.5rem 1.2rem",
        button_medium_padding="0.35rem 0.9rem",
        button_large_text_size="*text_md",
        button_secondary_background_fill="*background_fill_primary",
        button_secondary_background_fill_dark="*background_fill_primary",
        button_secondary_background_fill_hover="*background_fill_primary",
        button_secondary_background_fill_hover_dark="*background_fill_primary",
        button_secondary_border_color="*border_color_primary",
        button_secondary_border_color_dark="*border_color_primary",
        button_secondary_border_color_hover="*color_accent",
        button_secondary_border_color_hover_dark="*color_accent",
        button_cancel_background_fill="*background_fill_primary",
        button_cancel_background_fill_dark="*background_fill_primary",
        button_cancel_background_fill_hover="*background_fill_primary",
        button_cancel_background_fill_hover_dark="*background_fill_primary",
        button_cancel_text_color="#b91c1c",
        button_cancel_text_color_dark="#f87171",
        button_cancel_border_color="#b91c1c",
        button_cancel_border_color_dark="#f87171",
        block_radius="*radius_lg",
        input_radius="*radius_lg",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


def style_sheets() -> list[Path]:
    """Return all style sheets of the app, those in assets/ first."""
    return sorted(ROOM.rglob("*.css"), key=lambda path: (path.parent.name != "assets", path))


def scripts() -> str:
    """Return all scripts of the app as HTML for the head of the page, those in assets/ first.

    They are not of type "module", so that they run before the page is built.
    """
    paths = sorted(ROOM.rglob("*.js"), key=lambda path: (path.parent.name != "assets", path))
    texts = (path.read_text(encoding="utf-8") for path in paths)
    return "\n".join(f'<script>(() => {{\n"use strict";\n{text}\n}})();</script>' for text in texts)


class Page(gr.Blocks):
    """Gradio blocks whose page holds no connection, and that answer every failed request with one sentence.

    Gradio shows only its own errors. Some come before a function is called, for instance if there are too many or too
    few values, or if a component cannot read its value.
    """

    def get_config_file(self) -> Any:
        """Return the description of the page, which says that the page opens no stream; see `presence`."""
        return {**super().get_config_file(), "connect_heartbeat": False}

    async def process_api(self, block_fn: Any, inputs: Any, *arguments: Any, **more: Any) -> dict[str, Any]:
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        if function.api_name in PUBLIC and isinstance(inputs, list):
            if len(inputs) > len(function.inputs):
                wrong = SettingsError(f"/{function.api_name} takes {len(function.inputs)} values, got {len(inputs)}")
                raise _for_gradio(wrong, in_api=True)
            inputs = [*inputs, *[None] * (len(function.inputs) - len(inputs))]
        try:
            return await super().process_api(block_fn, inputs, *arguments, **more)
        except (Text2SegError, gr.Error) as error:
            raise _for_gradio(error, in_api=function.api_name in PUBLIC) from error
        except Exception as error:
            log.exception("a request failed")
            raise _for_gradio(SettingsError(INTERNAL_ERROR)) from error

    async def preprocess_data(self, block_fn: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
        try:
            return await super().preprocess_data(block_fn, inputs, *arguments, **more)
        except (Text2SegError, gr.Error):
            raise
        except Exception as error:  # components raise various errors for unexpected values
            log.info("a request does not fit", exc_info=error)
            raise SettingsError(
                "the request does not fit; /gradio_api/info describes the endpoints",
                on_page="the request does not fit this page; reload the page",
            ) from error


def _for_gradio(error: Exception, *, in_api: bool = False) -> gr.Error:
    """Return an error that Gradio shows to the visitor, or gives to `gradio_client`."""
    text = error.message if isinstance(error, gr.Error) else message_of(error, in_api=in_api)
    return gr.Error(str(text), print_exception=False)


# ---- the server

SPOKEN = {"common.upload": "Upload", "common.complete": "Complete", "common.progress": "Progress"}
"""Words for screen readers that Gradio's English lacks, so that they would hear these keys."""
GOODBYE_SECONDS = 3


def build_app(model_pool: ModelPool) -> Guard:
    """Return the whole app as an ASGI application."""
    settings = model_pool.settings
    for parser in ("multipart", "python_multipart"):  # the sender gets the error, not the log
        logging.getLogger(parser).setLevel(logging.ERROR)
    visitors_folder()  # must run before Gradio chooses a folder for its files
    app = FastAPI(title="text2seg", openapi_url=None)
    jobs = VisitorJobs(model_pool)
    add_routes(app, model_pool, jobs)
    app.get("/pwa_icon")(lambda: FileResponse(FAVICON))  # Gradio's own needs an image that it can scale
    app.get("/pwa_icon/{size}")(lambda size: FileResponse(FAVICON))
    page = build_page(model_pool, jobs)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        root_path=settings.public_url or None,
        footer_links=[],
        run_history=False,
        favicon_path=str(FAVICON),
        max_file_size=settings.folder_mb * 1_000_000,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        pwa=False,
        i18n=gr.I18n(en=SPOKEN),
        theme=theme(),
        css_paths=style_sheets(),
        head=scripts(),
    )
    page.has_launched = True  # Gradio serves files only if it believes that it started the server
    return Guard(OpenPages(app), settings, partial(_has_event, page))


def _has_event(page: gr.Blocks, content: Any) -> bool:
    """Return whether an event names a function of the page, or one rendered for this visitor. Gradio itself refuses
    values of the wrong type."""
    number = content.get("fn_index") if isinstance(content, dict) else 0
    if number is not None and not isinstance(number, int):
        return True
    visitor = content.get("session_hash") if isinstance(content, dict) else None
    is_known = isinstance(visitor, str) and visitor in page.state_holder
    functions = page.state_holder[str(visitor)].blocks_config.fns if is_known else page.fns
    return number in functions


def serve(model_pool: ModelPool, opened: Callable[[str], object]) -> None:
    """Serve until Ctrl-C. Call `opened` with the address when the app is ready.

    Raises:
        SettingsError: the address or port is not available.
    """
    settings = model_pool.settings
    if not is_loopback(settings.host) and not settings.auth:
        log.warning("everyone who can reach %s may use this app; --auth NAME:PASSWORD sets a password", settings.host)
    with running(model_pool) as (url, has_ended):
        opened(settings.public_url or url)
        if settings.open_browser:
            webbrowser.open(url)
        try:
            has_ended.wait()
        except KeyboardInterrupt:
            log.info("the app stops")


@contextmanager
def running(model_pool: ModelPool) -> Iterator[tuple[str, threading.Event]]:
    """Run the app in a thread. Yield its address and the event of its end; stop it when the context ends.

    The event is waited for, not the thread: Python counts a thread as ended if Ctrl-C interrupts its `join`, and the
    socket would be closed while the server still uses it.
    """
    with model_pool.settings.listening() as listener:
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
        has_ended = threading.Event()

        def run() -> None:
            try:
                server.run([listener])
            finally:
                has_ended.set()

        thread = threading.Thread(target=run, name="text2seg-app")
        thread.start()
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}", has_ended
        finally:
            server.should_exit = True
            with suppress(KeyboardInterrupt):  # Ctrl-C once more
                has_ended.wait()
            server.force_exit = True
            thread.join()
