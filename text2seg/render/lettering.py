"""Text in pictures, in any script for which the machine has letters."""

from __future__ import annotations

import functools
import unicodedata

from PIL import ImageDraw, ImageFont

from text2seg.render.colours import Colour

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow brings an ASCII font. For other letters, the fonts that Linux, macOS and Windows come with.
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "arial.ttf",
    "msyh.ttc",
    "seguisym.ttf",
)


def draw_text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *, size: int, colour: Colour, width: float
) -> float:
    """One line of text with its left end and its middle at `xy`, cut off with … beyond `width`; returns where it
    ends."""
    readable, font = _lettered(fitted(text, size, width), size)
    # The middle of an x stays put whatever letters there are, unlike the middle of the ink.
    top, bottom = font.getbbox("X", anchor="ls")[1], 0
    draw.text((xy[0], xy[1] - (top + bottom) / 2), readable, font=font, fill=colour, anchor="ls")
    return xy[0] + float(font.getlength(readable))


def text_width(text: str, size: int) -> float:
    """How many pixels a line of text is wide."""
    readable, font = _lettered(printable(text), size)
    return float(font.getlength(readable))


def fitted(text: str, size: int, width: float) -> str:
    """The text, or as much of its beginning as fits with an … at its end."""
    text = printable(text)
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def printable(text: str) -> str:
    """The text in one line: line breaks, control characters and halves of characters become blanks."""
    return "".join(letter if letter.isprintable() else " " for letter in unicodedata.normalize("NFC", text))


@functools.lru_cache(maxsize=1024)
def _lettered(text: str, size: int) -> tuple[str, Font]:
    """The text and the first font that has all its letters, else the text without accents in the font that comes
    closest."""
    fonts = _fonts(size)
    missing = []
    for font in fonts:
        missing.append(sum(not _has(font, letter) for letter in set(text)))
        if not missing[-1]:
            return text, font
    best = fonts[missing.index(min(missing))]
    plain = "".join(letter if _has(best, letter) else unicodedata.normalize("NFKD", letter)[0] for letter in text)
    return plain, best


@functools.lru_cache(maxsize=32)
def _fonts(size: int) -> tuple[Font, ...]:
    fonts: list[Font] = [ImageFont.load_default(size=size)]
    for name in SYSTEM_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:  # not on this machine
            continue
    return tuple(fonts)


def _has(font: Font, letter: str) -> bool:
    """Whether the font can draw a letter: it draws all that it lacks like U+FFFF, which no font has."""
    if letter == " ":
        return True
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))
