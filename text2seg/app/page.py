"""The page: a header, the models, and one tab for each job."""

from __future__ import annotations

from typing import Any

import gradio as gr

from text2seg.app import api, explain_tab, folder, models_panel, segment
from text2seg.app.model_pool import ModelPool

OFTEN_SECONDS, AGE_SECONDS = 600, 3600
"""How often files of visitors are looked through, and how old they get."""

HEADER = """
<header class="t2s-header">
  <h1>text2seg</h1>
  <p>Cuts things out of pictures by their names.</p>
</header>
"""


def build_page(model_pool: ModelPool) -> gr.Blocks:
    """The whole app. Each tab is built by the `build(model_pool)` of its own module, called within its `gr.Tab`; style
    sheets and scripts that lie beside that module are part of the page (see `theme`)."""
    page: Any = api.Page(title="text2seg", analytics_enabled=False, delete_cache=(OFTEN_SECONDS, AGE_SECONDS))
    with page:
        gr.HTML(HEADER, padding=False)
        models_panel.build(model_pool)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Segment", id="segment"):
                segment.build(model_pool)
            with gr.Tab("Label a folder", id="folder"):
                folder.build(model_pool)
            with gr.Tab("Explain", id="explain"):
                explain_tab.build(model_pool)
        api.add_endpoints(model_pool)
    page.queue(
        default_concurrency_limit=model_pool.settings.workers, max_size=model_pool.settings.waiting, api_open=False
    )
    return page
