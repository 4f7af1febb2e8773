"""How the app looks: colours, letters, and the style sheets and scripts that lie beside the code of each tab.

Everything is served by the app itself; nothing is fetched from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

ROOM = Path(__file__).parent
FAVICON = ROOM / "assets" / "favicon.svg"


def theme() -> gr.themes.Base:
    """Calm greys with one strong colour, in the letters of the visitor's own machine."""
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
    """Every .css in this room, the app's own first."""
    return sorted(ROOM.rglob("*.css"), key=lambda path: (path.parent.name != "assets", path))


def scripts() -> str:
    """Every .js in this room, the app's own first, for the head of the page. They run before anything is built, which
    scripts of the type "module" need not."""
    paths = sorted(ROOM.rglob("*.js"), key=lambda path: (path.parent.name != "assets", path))
    texts = (path.read_text(encoding="utf-8") for path in paths)
    return "\n".join(f'<script>(() => {{\n"use strict";\n{text}\n}})();</script>' for text in texts)
