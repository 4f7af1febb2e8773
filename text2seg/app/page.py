"""The page: a header and one tab for each job."""

from __future__ import annotations

from typing import Any

import gradio as gr

from text2seg.app.workshop import Workshop


def build_page(workshop: Workshop) -> gr.Blocks:
    """The whole app. Each tab is built by the `build(workshop)` of its own module, called within its `gr.Tab`."""
    page: Any = gr.Blocks(title="text2seg", analytics_enabled=False)
    with page:
        gr.Markdown("# text2seg")
    return page
