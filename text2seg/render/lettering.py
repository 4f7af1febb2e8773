"""Text in images, in any script: each letter comes from the first font that has it, of a font that the user names,
Pillow's own, DejaVu Sans (which matplotlib brings) and those of the machine. What no font has is spelled out."""

from __future__ import annotations

import functools
import logging
import os
import re
import unicodedata
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

from text2seg.render.colours import Colour

FONT_VARIABLE = "TEXT2SEG_FONT"
MOST_LETTERS = 2000  # so many are wider than any image that is drawn here
PILLOWS_OWN = ""  # stands for the font that Pillow brings, which is no file

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Runs = tuple[tuple[str, str], ...]  # pieces of a text, each with the file of its font

_LEFTWARDS = re.compile(r"[{0}](?:[{0}\s]*[{0}])?".format("\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff"))  # Hebrew, Arabic

_said: list[str] = []  # the letter that the warning was about; it comes once

_log = logging.getLogger(__name__)


def draw_text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *, size: int, colour: Colour, width: float
) -> float:
    """One line of text with its left end and its middle at `xy`, cut off with … beyond `width`; returns where it
    ends."""
    # The middle of an x stays put whatever letters there are, unlike the middle of the ink.
    top, bottom = _font(PILLOWS_OWN, size).getbbox("X", anchor="ls")[1], 0
    x, baseline = xy[0], xy[1] - (top + bottom) / 2
    for piece, file in _runs(fitted(text, size, width)):
        font = _font(file, size)
        draw.text((x, baseline), piece, font=font, fill=colour, anchor="ls")
        x += float(font.getlength(piece))
    return x


def text_width(text: str, size: int) -> float:
    """How many pixels a line of text is wide; of a very long one, its beginning."""
    return sum(float(_font(file, size).getlength(piece)) for piece, file in _runs(printable(text[:MOST_LETTERS])))


def fitted(text: str, size: int, width: float) -> str:
    """The text, or as much of its beginning as fits with an … at its end."""
    if len(text) <= MOST_LETTERS and text_width(text, size) <= width:
        return printable(text)
    text = printable(text[:MOST_LETTERS])
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def printable(text: str) -> str:
    """The text in one line: line breaks, control characters and halves of characters become blanks; marks that have no
    shape of their own, such as joiners and the direction of writing, are left out."""
    kept = (letter for letter in unicodedata.normalize("NFC", text) if not _is_shapeless(letter))
    return "".join(letter if letter.isprintable() else " " for letter in kept)


def readable(text: str) -> tuple[str, tuple[str, ...]]:
    """The text, line by line, with what no font has spelled out, and the files of the fonts that have the rest."""
    lines = [_runs(printable(line)) for line in text.split("\n")]
    files = dict.fromkeys(file for runs in lines for _, file in runs if file)
    return "\n".join("".join(piece for piece, _ in runs) for runs in lines), tuple(files)


# --- which font has what ----------------------------------------------------------------------------------------------


def _is_shapeless(letter: str) -> bool:
    return unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


@functools.lru_cache(maxsize=4096)
def _runs(text: str) -> Runs:
    """Pieces of the text, each in one font and ready to be drawn: all of it in one font if one of the usual ones has it
    all, else word by word, else letter by letter. Blanks and signs stay in the font in front of them, so that scripts
    whose letters join and turn are laid out in one piece."""
    runs: list[list[str]] = []
    for word in re.findall(r"\s+|\S+", text) if _common(text) is None else [text]:
        common = _common(word)
        for letter in [word] if common is not None and not word.isspace() else word:
            piece, file = letter, common
            if runs and _stays(letter) and _has(runs[-1][1], letter):
                file = runs[-1][1]
            if file is None:
                file = _font_with(letter)
            if file is None:
                piece, file = _spelled(letter)
            if runs and runs[-1][1] == file:
                runs[-1][0] += piece
            else:
                runs.append([piece, file])
    return tuple((_in_order(piece), file) for piece, file in runs)


def _common(text: str) -> str | None:
    """The first of the usual fonts that has all letters of a text."""
    return next((file for file in _usual_fonts() if all(_has(file, letter) for letter in set(text))), None)


def _stays(letter: str) -> bool:
    """Whether it goes with what stands in front of it: one blank, sign, number or mark."""
    return len(letter) == 1 and unicodedata.category(letter)[0] in "ZPNSM"


@functools.lru_cache(maxsize=4096)
def _font_with(letter: str) -> str | None:
    for file in _usual_fonts():
        if _has(file, letter):
            return file
    return next((file for file in _system_fonts() if _has(file, letter)), None)


def _spelled(letter: str) -> tuple[str, str]:
    """A letter that no font has, without its accents where that helps, else by its name or its number, as JSON has
    it; and the font for that."""
    plain = unicodedata.normalize("NFKD", letter)[0]
    if plain != letter and (file := _font_with(plain)) is not None:
        return plain, file
    if unicodedata.category(letter) == "So" and (name := unicodedata.name(letter, "")):
        spelled = f"[{name.lower()}]"
    else:
        spelled = letter.encode("ascii", "backslashreplace").decode("ascii")
    if not _said:
        _said.append(letter)
        _log.warning(
            "no font here has %s, so images show %s in its place, and other letters that are lacking alike; install a "
            "font that has them, such as Noto Sans CJK, or name a font file with %s",
            letter,
            spelled,
            FONT_VARIABLE,
        )
    return spelled, PILLOWS_OWN


@functools.cache
def _usual_fonts() -> tuple[str, ...]:
    """The user's own font, Pillow's and matplotlib's."""
    import matplotlib

    files = [PILLOWS_OWN, str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")]
    own = os.environ.get(FONT_VARIABLE, "")
    if own:
        if _letters(own):
            files.insert(0, own)
        else:
            _log.warning("%s=%s is no font file that can be used; it is passed over", FONT_VARIABLE, own)
    return tuple(files)


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """The machine's fonts, plain ones first."""
    from matplotlib.font_manager import findSystemFonts

    odd = re.compile("bold|italic|oblique|black|light|thin|medium|mono|serif|condensed|heavy", re.IGNORECASE)
    return tuple(sorted(findSystemFonts(), key=lambda file: (len(odd.findall(Path(file).stem)), file)))


@functools.cache
def _letters(file: str) -> frozenset[int]:
    """The code points of a font's letters; none where Pillow cannot draw them at any size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        if not font.scalable:  # bitmaps of one size, as some fonts of coloured emoji are
            return frozenset()
        ImageFont.truetype(file, 16)
        return frozenset(font.get_charmap())
    except (OSError, RuntimeError, ValueError):  # damaged, or of a kind that one of the two cannot read
        return frozenset()


@functools.lru_cache(maxsize=4096)
def _has(file: str, letter: str) -> bool:
    if file != PILLOWS_OWN:
        return ord(letter) in _letters(file)
    font = _font(PILLOWS_OWN, 16)  # it draws all that it lacks like U+FFFF, which no font has
    return letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


@functools.lru_cache(maxsize=256)
def _font(file: str, size: int) -> Font:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size=size)


def _in_order(text: str) -> str:
    """The text as it is to be drawn from left to right: Pillow turns scripts that run the other way around itself,
    where it has the library for that."""
    return text if features.check("raqm") else _LEFTWARDS.sub(lambda match: match[0][::-1], text)
