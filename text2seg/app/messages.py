"""Messages for visitors, as HTML and as text."""

from __future__ import annotations

import re
from functools import cache
from html import escape

from text2seg.app.checks import visitors_folder
from text2seg.app.settings import AppSettings
from text2seg.config import LabelSettings, ModelSettings

_OF_DRAWINGS = "this model knows drawings only: masks and scores mean nothing"
PHOTOGRAPH = f"This looks like a photograph, and {_OF_DRAWINGS} here."
INTERNAL_ERROR = "This failed because of an error in text2seg or on the server. See its log."
_OF_THE_COMMAND_LINE = {*ModelSettings.__slots__, *LabelSettings.__slots__} | {
    *AppSettings.__slots__,
    "images",
    "shard",
}
_OURS = frozenset(
    [
        "a",
        "an",
        "app",
        "each",
        "everything",
        "image",
        "images",
        "it",
        "name",
        "one",
        "queries",
        "query",
        "segmentation",
        "settings",
    ]
) | {
    *("something", "that", "the", "there", "this", "tool", "what", "which", "nothing", "none"),
}
"""First words of our messages that a verb or a colon may follow. Any other first word is the name of a file."""
_ADDRESS = re.compile(r"(https?://[^\s<>\"]*[\w/])")
_FLAG = re.compile(r"--(?:no-)?([a-z][a-z0-9-]*)")


def message_of(error: Exception, *, in_api: bool = False) -> str:
    """Return the message of an error for the page or for the API.

    It starts with a capital letter and names a field by its label, in the API by its name. Advice that needs the
    command line is removed.
    """
    text = getattr(error, "in_api" if in_api else "on_page", "") or str(error) or INTERNAL_ERROR
    clauses = re.split(r"(?<=[;.]) ", text)
    if rest := [each for each in clauses if not _names_a_flag_of_the_command_line(each)]:
        text = " ".join(rest).rstrip(";")
    text = _of_uploads().sub("", text)
    text = _FLAG.sub(lambda flag: _field(flag[1], in_api=in_api), text)
    # Do not capitalize the name of a file.
    first = re.match(r"([a-z]+)( (?:is|has|was|lies|cannot)\b|[ ,:;])", text)
    ours = first and (first[2] in (" ", ",", ";") or first[1] in _OURS)
    return text[:1].upper() + text[1:] if ours else text


def note_of(text: str) -> str:
    """Return a note of a result for the page and the API: without folders of the server, and without advice that needs
    the command line."""
    text = _of_uploads().sub("", text)
    return " ".join(each for each in re.split(r"(?<=\.) ", text) if "same command" not in each)


@cache
def _of_uploads() -> re.Pattern[str]:
    """Return a pattern for the folders of uploads, which messages must not show."""
    return re.compile(re.escape(str(visitors_folder())) + r"[\\/](?:[^\\/\s'\"]+[\\/])*")


def _field(flag: str, *, in_api: bool) -> str:
    """Return the field that a flag sets: its label on the page, its name in the API."""
    return f"`{flag.replace('-', '_')}`" if in_api else f"“{flag.replace('-', ' ').capitalize()}”"


def _names_a_flag_of_the_command_line(clause: str) -> bool:
    return any(flag.replace("-", "_") in _OF_THE_COMMAND_LINE for flag in _FLAG.findall(clause))


def photographs(count: int, total: int) -> str:
    """Return the warning about images that look like photographs, to models that know drawings only; "" if there is no
    such image."""
    if total == 1 or not count:
        return PHOTOGRAPH if count else ""
    look = "looks like a photograph" if count == 1 else "look like photographs"
    return f"{count} of {total} images {look}, and {_OF_DRAWINGS} there."


def is_of_photographs(text: str) -> bool:
    """Return whether a note is the warning of `photographs`."""
    return _OF_DRAWINGS in text


def warning(text: str) -> str:
    """Return a warning about the models as HTML, with the way to others (see page.js); "" for no text."""
    if not text:
        return ""
    button = '<button type="button" data-do="models">Use real weights</button>'
    return f'<div class="t2s"><p class="t2s-alert t2s-warning" role="status">{escape(text)} {button}</p></div>'


def note(text: str) -> str:
    """Return a note as HTML."""
    return f'<p class="t2s-note">{escape(text)}</p>'


def alert(text: str) -> str:
    """Return an error as HTML that screen readers announce. Web addresses in it are links."""
    parts = [escape(each) for each in _ADDRESS.split(text)]
    parts[1::2] = [f'<a href="{each}" target="_blank" rel="noopener">{each}</a>' for each in parts[1::2]]
    return f'<p class="t2s-alert" role="alert">{"".join(parts)}</p>'
