"""Colours, heat maps, outlines and text, drawn into images.

Text works in any script. Each letter is drawn in the first font that has it: the font that the user names, Pillow's
own, DejaVu Sans (part of matplotlib), or a font of the machine. Letters that no font has are spelled out.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont, features

Colour = tuple[int, int, int]
Place = tuple[float, float, float]
"""A colour in OKLAB: lightness, a, b."""

INK: Colour = (33, 37, 41)
FAINT: Colour = (134, 142, 150)
PAPER: Colour = (255, 255, 255)
FRAME: Colour = (222, 226, 230)
POSITIVE: Colour = (34, 197, 94)
NEGATIVE: Colour = (239, 68, 68)

GOLDEN_RATIO = 0.6180339887498949
LIGHTNESS = (0.64, 0.72, 0.80)
CHROMA = 0.17
NEAR = 0.14
"""Two colours that are nearer to each other in OKLCH can be mistaken for each other in one picture."""

# Colour-blind people can tell these two apart, unlike red and green.
SUPPORT: Colour = (255, 140, 0)
OPPOSITION: Colour = (20, 110, 255)
HIGHEST_OPACITY = 0.9
"""Opacity of the highest values."""

FONT_VARIABLE = "TEXT2SEG_FONT"
MOST_LETTERS = 2000  # limit of letters of a line; more are wider than any image drawn here
PILLOWS_OWN = ""  # stands for Pillow's own font, which is not a file

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Runs = tuple[tuple[str, str], ...]  # pieces of a text, each with the file of its font

_LEFTWARDS = re.compile(r"[{0}](?:[{0}\s]*[{0}])?".format("\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff"))  # Hebrew, Arabic

_said: list[str] = []  # the letter of the warning, which is logged once

_log = logging.getLogger(__name__)


# --- colours ---


def colour_of(query: str) -> Colour:
    """Return the RGB colour of a query, three numbers from 0 to 255. It depends on the text only.

    Hue and lightness come from a hash of the text, in a colour space (OKLCH) where equal steps look equal, so that all
    colours are equally visible on a photo. See `colours_of` for several queries.
    """
    return _from_oklab(*_place_of(query))


def colour_of_number(number: int) -> Colour:
    """Return the RGB colour of a numbered segment. The hues of consecutive numbers are far apart."""
    return _from_oklab(*_place_of_number(number))


def colours_of(queries: Iterable[str], given: Mapping[str, Colour] = MappingProxyType({})) -> dict[str, Colour]:
    """Return the RGB colours of queries that are shown together, in their order: those of `given`, and for the others
    colours that can be told apart from them and from each other.

    A query has its own colour (`colour_of`), unless this is near to the colour of one before it: then it gets that of
    `colour_of_number(0)` to `(99)` which is farthest from all before it.
    """
    others = np.array([_place_of_number(number) for number in range(100)])
    distances = np.full(len(others), np.inf)  # of each from the nearest colour that is taken
    taken: list[Place] = []
    colours = dict(given)
    queries = dict.fromkeys(queries)
    for query in (*given, *(each for each in queries if each not in given)):
        place = _to_oklab(given[query]) if query in given else _place_of(query)
        if query not in given and any(math.dist(place, other) < NEAR for other in taken):
            lightness, a, b = others[distances.argmax()].tolist()
            place = lightness, a, b
        distances = np.minimum(distances, np.linalg.norm(others - place, axis=1))
        taken.append(place)
        colours.setdefault(query, _from_oklab(*place))
    return {query: colours[query] for query in queries}


def _place_of(query: str) -> Place:
    digest = hashlib.blake2s(query.encode("utf-8", "surrogatepass")).digest()
    return _spread(int.from_bytes(digest[:4], "big"), digest[4])


def _place_of_number(number: int) -> Place:
    return _spread(number, number)


def _spread(hue: int, lightness: int) -> Place:
    """Return the place of a colour of the family in OKLAB; consecutive numbers give hues that are spread evenly over
    the circle."""
    angle = 2 * np.pi * (hue * GOLDEN_RATIO % 1)
    return LIGHTNESS[lightness % len(LIGHTNESS)], CHROMA * np.cos(angle), CHROMA * np.sin(angle)


# Source: B. Ottosson, "A perceptual color space for image processing" (2020).
_TO_CONE = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def _to_oklab(colour: Colour) -> Place:
    encoded = np.array(colour) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lightness, a, b = np.linalg.solve(_TO_CONE, np.cbrt(np.linalg.solve(_TO_RGB, linear))).tolist()
    return lightness, a, b


def _from_oklab(lightness: float, a: float, b: float) -> Colour:
    linear = np.clip(_TO_RGB @ (_TO_CONE @ np.array([lightness, a, b])) ** 3, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(channel) for channel in np.rint(encoded * 255))
    return red, green, blue


def is_flat(scores: NDArray[np.float32]) -> bool:
    """Return whether a map float32 [h, w] has no peak: its range is within eight rounding steps of its largest value,
    or a value is not finite.

    >>> is_flat(np.full((2, 2), 0.3, np.float32)), is_flat(np.array([[0.1, 0.2]], np.float32))
    (True, False)
    """
    low, high = float(scores.min()), float(scores.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        return True
    return high - low <= 8 * float(np.finfo(np.float32).eps) * max(abs(low), abs(high))


def heat(
    scores: NDArray[np.float32], image: NDArray[np.uint8], limits: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Draw a map float32[gh, gw] over an image uint8[h, w, 3]; higher values are more opaque.

    The map is scaled to its range or, so that several maps share a scale, to `limits` (lowest, highest). If that range
    is flat or not finite, the result is a pale image that says that the map has no peak.
    """
    low, high = limits or (float(scores.min()), float(scores.max()))
    if is_flat(np.array([[low, high]], np.float32)):
        return _nothing_to_show(image)
    grid = ((scores - low) / (high - low)).clip(0, 1)
    height, width = image.shape[:2]
    level = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colours = cv2.applyColorMap(np.rint(level * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.float32)
    alpha = 0.35 + 0.45 * level[:, :, None]
    blended: NDArray[np.uint8] = np.rint(grey * (1 - alpha) + colours * alpha).astype(np.uint8)
    return blended


NOTHING = "nothing to show"


def _nothing_to_show(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image uint8[h, w, 3] in pale grey, with words that say that its map has no peak."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.float32)
    pale = np.rint(np.broadcast_to((255 + grey) / 2, image.shape)).astype(np.uint8)
    height, width = image.shape[:2]
    canvas = PillowImage.fromarray(pale)
    size = max(min(height // 6, width // 10), 8)
    left = max((width - text_width(NOTHING, size)) / 2, 0)
    draw_text(ImageDraw.Draw(canvas), (left, height / 2), NOTHING, size=size, colour=INK, width=width - left)
    return np.asarray(canvas)


def signed_heat(
    speaks_for: NDArray[np.float32], speaks_against: NDArray[np.float32], image: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Draw two maps float32[gh, gw] with values in [0, 1] over an image uint8[h, w, 3] in grey: orange where the first
    is high, blue where the second is, a mixture where both are, grey where both are 0."""
    height, width = image.shape[:2]
    warm, cool = (
        cv2.resize(each.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)[:, :, None]
        for each in (speaks_for, speaks_against)
    )
    share = warm / np.maximum(warm + cool, 1e-6)
    colour = share * np.array(SUPPORT, np.float32) + (1 - share) * np.array(OPPOSITION, np.float32)
    alpha = HIGHEST_OPACITY * np.maximum(warm, cool) ** 0.8  # makes weak values visible
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.float32)
    blended: NDArray[np.uint8] = np.rint(grey * (1 - alpha) + colour * alpha).astype(np.uint8)
    return blended


def blend(image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour, opacity: float) -> NDArray[np.uint8]:
    """Return a copy of an image uint8[h, w, 3] with a colour blended over the mask bool[h, w]."""
    painted = image.copy()
    for channel, shade in enumerate(colour):  # a table, because a float copy of a large photo takes a gigabyte
        table = np.rint(np.arange(256) * (1 - opacity) + shade * opacity).astype(np.uint8)
        plane = painted[:, :, channel]
        plane[mask] = table[plane[mask]]
    return painted


def outline(image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour, width: int) -> None:
    """Draw the edge of a mask into an image, in `colour` with a white rim that is visible on any backdrop."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, PAPER, width + 2 * max(1, width // 3), cv2.LINE_AA)
    cv2.drawContours(image, contours, -1, colour, width, cv2.LINE_AA)


# --- text ---


def draw_text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *, size: int, colour: Colour, width: float
) -> float:
    """Draw one line of text with its left end and its middle at `xy`, cut off with … beyond `width`. Returns the x of
    its end."""
    # Centre on the height of an X, because the height of the ink depends on the letters.
    top, bottom = _font(PILLOWS_OWN, size).getbbox("X", anchor="ls")[1], 0
    x, baseline = xy[0], xy[1] - (top + bottom) / 2
    for piece, file in _runs(fitted(text, size, width)):
        font = _font(file, size)
        draw.text((x, baseline), piece, font=font, fill=colour, anchor="ls")
        x += float(font.getlength(piece))
    return x


def text_width(text: str, size: int) -> float:
    """Return the width of a line of text in pixels, of its first `MOST_LETTERS` letters."""
    return sum(float(_font(file, size).getlength(piece)) for piece, file in _runs(printable(text[:MOST_LETTERS])))


def fitted(text: str, size: int, width: float) -> str:
    """Return the text, or as much of its beginning as fits into `width` with an … at the end."""
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
    """Return the text in one line: line breaks, control characters and lone surrogates become blanks; invisible marks,
    such as joiners and writing directions, are left out."""
    kept = (letter for letter in unicodedata.normalize("NFC", text) if not _is_shapeless(letter))
    return "".join(letter if letter.isprintable() else " " for letter in kept)


def readable(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the text, in the same lines, with missing letters spelled out, and the font files of the others."""
    lines = [_runs(printable(line)) for line in text.split("\n")]
    files = dict.fromkeys(file for runs in lines for _, file in runs if file)
    return "\n".join("".join(piece for piece, _ in runs) for runs in lines), tuple(files)


# --- fonts by letter ----------------------------------------------------------------------------------------------


def _is_shapeless(letter: str) -> bool:
    return unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


@functools.lru_cache(maxsize=4096)
def _runs(text: str) -> Runs:
    """Split a text into pieces of one font each, ready to draw. One of the usual fonts draws the whole text if it can,
    else whole words, else single letters. Blanks and signs keep the font before them, so that scripts with joined or
    right-to-left letters are laid out in one piece."""
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
    """Return the first of the usual fonts that has all letters of a text, or None."""
    return next((file for file in _usual_fonts() if all(_has(file, letter) for letter in set(text))), None)


def _stays(letter: str) -> bool:
    """Return whether the letter keeps the font before it: a blank, sign, number or mark."""
    return len(letter) == 1 and unicodedata.category(letter)[0] in "ZPNSM"


@functools.lru_cache(maxsize=4096)
def _font_with(letter: str) -> str | None:
    for file in _usual_fonts():
        if _has(file, letter):
            return file
    return next((file for file in _system_fonts() if _has(file, letter)), None)


def _spelled(letter: str) -> tuple[str, str]:
    """Return a substitute for a letter that no font has, and its font: the letter without accents if a font has that,
    else its name or its escape."""
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
            "no font here has %s, so images show %s instead, and other missing letters likewise; install a font that "
            "has them, such as Noto Sans CJK, or name a font file with %s",
            letter,
            spelled,
            FONT_VARIABLE,
        )
    return spelled, PILLOWS_OWN


def _usual_fonts() -> Iterator[str]:
    """Yield the user's font, Pillow's and matplotlib's."""
    if font := _users_font():
        yield font
    yield PILLOWS_OWN
    yield _matplotlibs_font()


@functools.cache
def _users_font() -> str | None:
    font = os.environ.get(FONT_VARIABLE, "")
    if font and not _letters(font):
        _log.warning("%s=%s is not a usable font file and is ignored", FONT_VARIABLE, font)
        return None
    return font or None


@functools.cache
def _matplotlibs_font() -> str:
    import matplotlib  # only for letters that Pillow's font does not have, because this takes a quarter of a second

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """Return the fonts of the machine, plain ones first."""
    from matplotlib.font_manager import findSystemFonts

    odd = re.compile("bold|italic|oblique|black|light|thin|medium|mono|serif|condensed|heavy", re.IGNORECASE)
    return tuple(sorted(findSystemFonts(), key=lambda file: (len(odd.findall(Path(file).stem)), file)))


@functools.cache
def _letters(file: str) -> frozenset[int]:
    """Return the code points that a font has; empty if Pillow cannot draw it at any size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        if not font.scalable:  # bitmaps of one size, such as some coloured emoji
            return frozenset()
        ImageFont.truetype(file, 16)
        return frozenset(font.get_charmap())
    except (OSError, RuntimeError, ValueError):  # damaged, or unknown to one of the two libraries
        return frozenset()


@functools.lru_cache(maxsize=4096)
def _has(file: str, letter: str) -> bool:
    if file != PILLOWS_OWN:
        return ord(letter) in _letters(file)
    font = _font(PILLOWS_OWN, 16)  # it draws missing letters like U+FFFF, which no font has
    return letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


@functools.lru_cache(maxsize=256)
def _font(file: str, size: int) -> Font:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size=size)


def _in_order(text: str) -> str:
    """Return the text in drawing order, from left to right. With raqm, Pillow reorders right-to-left scripts."""
    return text if features.check("raqm") else _LEFTWARDS.sub(lambda match: match[0][::-1], text)
