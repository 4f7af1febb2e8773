"""Words on the page. What visitors or files bring into them is escaped."""

from __future__ import annotations

from html import escape


def note(text: str) -> str:
    """A quiet line."""
    return f'<p class="t2s-note">{escape(text)}</p>'


def alert(text: str) -> str:
    """Something that went wrong, which screen readers say at once."""
    return f'<p class="t2s-alert" role="alert">{escape(text)}</p>'
