"""Words on the page. What visitors or files bring into them is escaped."""

from __future__ import annotations

import re
from functools import cache
from html import escape

from text2seg.app.settings import AppSettings
from text2seg.app.uploads import visitors_folder
from text2seg.config import LabelSettings, ModelSettings

FAULT = "This failed, by a fault of text2seg or of this machine; its log has more."
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
"""First words of ours that a verb or a colon may stand behind; other words there are names of files."""
_FLAG = re.compile(r"--(?:no-)?([a-z][a-z0-9-]*)")


def words_of(error: Exception) -> str:
    """What a visitor is told of an error, on the page and in answers to programs: a sentence that begins with a capital
    letter and names fields as the page calls them. Ways out that only the command line has are left off."""
    text = getattr(error, "on_page", "") or str(error) or FAULT
    clauses = re.split(r"(?<=[;.]) ", text)
    if rest := [each for each in clauses if not _names_a_flag_of_the_command_line(each)]:
        text = " ".join(rest).rstrip(";")
    text = _of_uploads().sub("", text)
    text = _FLAG.sub(lambda flag: f"“{flag[1].replace('-', ' ').capitalize()}”", text)
    # A first word that is a file's name stays as it is.
    first = re.match(r"([a-z]+)( (?:is|has|was|lies|cannot)\b|[ ,:;])", text)
    ours = first and (first[2] in (" ", ",", ";") or first[1] in _OURS)
    return text[:1].upper() + text[1:] if ours else text


@cache
def _of_uploads() -> re.Pattern[str]:
    """The folders in which the server keeps an upload, which are nobody's business."""
    return re.compile(re.escape(str(visitors_folder())) + r"[\\/](?:[^\\/\s'\"]+[\\/])*")


def _names_a_flag_of_the_command_line(clause: str) -> bool:
    return any(flag.replace("-", "_") in _OF_THE_COMMAND_LINE for flag in _FLAG.findall(clause))


def note(text: str) -> str:
    """A quiet line."""
    return f'<p class="t2s-note">{escape(text)}</p>'


def alert(text: str) -> str:
    """Something that went wrong, which screen readers say at once."""
    return f'<p class="t2s-alert" role="alert">{escape(text)}</p>'
