"""File names: which spellings mean the same file, which names are unique, and how messages show them.

Tools write the name of one file in many ways: `images\\a.jpg`, `./a.jpg`, `/data/images/a.jpg`, `https://host/a.jpg`,
with composed or decomposed accents, in other letter case, with more or fewer folders. `NameIndex` holds the one rule
that all commands use to match such names to files or to the images of another dataset.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import unquote

from text2seg.errors import DatasetError

LONGEST_FILE_NAME = 255
"""Bytes of the longest file name that disks accept."""
MOST_PARTS = 64
"""Names with more folders than this are only compared as a whole."""
MOST_LISTED = 3  # names in a message
LEAST_SIMILAR = 0.72  # of two words that are spelled nearly alike: "lion" and "stallion" have 0.67
LONGEST_SHOWN = 120  # characters of a name in a message

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+([^?#]*)(.*)", re.DOTALL)  # two letters at least: C:/ is a drive
_DRIVE = re.compile(r"/*[A-Za-z]:/")
_ENCODED = ("http", "https", "file")  # schemes whose paths are percent-encoded and may end in a query (?size=9)

Parts = tuple[str, ...]


# ---- matching


def parts_of(name: str) -> Parts:
    """Return the folders and the file of a name in one spelling.

    Slashes and backslashes both separate, Unicode is composed (NFC), and `.`, drive letters and leading slashes are
    dropped. `..` removes the folder before it. The host of a URL counts as a folder.

    >>> parts_of(".\\\\images\\\\a.jpg"), parts_of("https://host/b/a%20b.jpg?size=9")
    (('images', 'a.jpg'), ('host', 'b', 'a b.jpg'))
    """
    text = name.replace("\\", "/")
    if match := _URL.fullmatch(text):
        scheme, place, rest = match.groups()
        text = unquote(place) if scheme.lower() in _ENCODED else place + rest
    if drive := _DRIVE.match(text):
        text = text[drive.end() :]
    parts: list[str] = []
    for part in unicodedata.normalize("NFC", text).split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def canonical_name(name: str) -> str:
    """Return one spelling for all spellings of a relative name. Letter case counts."""
    return "/".join(parts_of(name))


def folded(text: str) -> str:
    """Return equal texts for names that are one file on disks that ignore letter case or the form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


class NameIndex:
    """File names that can be looked up by any spelling.

    The first rule that matches decides:

    1. the same text;
    2. the same parts (`parts_of`), with or without the same letter case;
    3. the same last parts, when one of the two names has more folders in front. The longest match is tried first.

    Within a rule, matches with the same letter case win. If several remain, the name is ambiguous.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._by_text: defaultdict[str, list[int]] = defaultdict(list)
        self._by_parts: defaultdict[Parts, list[int]] = defaultdict(list)
        self._by_last_parts: dict[int, defaultdict[Parts, list[int]]] = {}
        for place, name in enumerate(names):
            self._by_text[name].append(place)
            self._by_parts[_folded_parts(parts_of(name))].append(place)

    def find(self, name: str) -> list[int]:
        """Return the positions in `names` that a name may mean: none, one, or several if it is ambiguous."""
        if name in self._by_text:
            return self._by_text[name]
        parts = parts_of(name)
        if not parts:
            return []
        key = _folded_parts(parts)
        if found := self._by_parts.get(key):
            return self._prefer_same_case(found, parts)
        if len(key) > MOST_PARTS:
            return []
        if found := self._ending_with(len(key)).get(key):
            return self._prefer_same_case(found, parts)
        for start in range(1, len(key)):
            if found := self._by_parts.get(key[start:]):
                return self._prefer_same_case(found, parts[start:])
        return []

    def _prefer_same_case(self, places: list[int], tail: Parts) -> list[int]:
        """Return the positions whose letter case is the same too, or all of them if there are none."""
        same = [place for place in places if parts_of(self.names[place])[-len(tail) :] == tail]
        return same or places

    def _ending_with(self, length: int) -> defaultdict[Parts, list[int]]:
        """Return the positions of names with more than `length` parts, by their last `length` parts."""
        if length not in self._by_last_parts:
            found = self._by_last_parts[length] = defaultdict(list)
            for key, places in self._by_parts.items():
                if length < len(key) <= MOST_PARTS:
                    found[key[-length:]] += places
        return self._by_last_parts[length]


def pair_names(names: Sequence[str], others: Sequence[str], *, ours: str, theirs: str) -> dict[int, int]:
    """Match each name to the other name that means the same file.

    Args:
        names: the names to match.
        others: the names they are matched to.
        ours: what `names` belong to, for messages.
        theirs: what `others` belong to, for messages.

    Returns:
        Positions in `names` mapped to positions in `others`. Names without a match are left out.

    Raises:
        DatasetError: a name is ambiguous, or two names match the same other name.
    """
    index = NameIndex(others)
    pairs: dict[int, int] = {}
    taken: dict[int, int] = {}
    for place, name in enumerate(names):
        found = index.find(name)
        if len(found) > 1:
            raise DatasetError(
                f"{shown(name)} of {ours} could be any of {theirs}: {listed([others[each] for each in found])}; "
                "write more of its folders"
            )
        for other in found:
            if other in taken:
                raise DatasetError(
                    f"two images of {ours}, {shown(names[taken[other]])} and {shown(name)}, both match {theirs}, "
                    f"{shown(others[other])}; write more of their folders"
                )
            pairs[place], taken[other] = other, place
    return pairs


def _folded_parts(parts: Parts) -> Parts:
    return tuple(map(folded, parts))


# ---- new names


def unique_names() -> Callable[[str, str], str]:
    """Return a function `name(stem, suffix)` that numbers file names that were given before.

    Names that are one file on some disk (see `folded`) count as the same.

    >>> name = unique_names()
    >>> name("a", ".jpg"), name("A", ".jpg"), name("a", ".png")
    ('a.jpg', 'A_2.jpg', 'a.png')
    """
    last: dict[str, int] = {}

    def name(stem: str, suffix: str) -> str:
        first, free = folded(stem + suffix), stem + suffix
        while folded(free) in last:
            last[first] += 1
            free = f"{stem}_{last[first]}{suffix}"
        last[folded(free)] = 1
        return free

    return name


def fit_file_name(stem: str, suffix: str) -> str:
    """Return `stem + suffix`. If disks would refuse its length, cut the stem and end it in a hash of the whole stem.

    >>> fit_file_name("scene", "_overlay.png")
    'scene_overlay.png'
    """
    if file_name_size(stem + suffix) <= LONGEST_FILE_NAME:
        return stem + suffix
    mark = f"-{hashlib.sha256(stem.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    cut = stem[:LONGEST_FILE_NAME]
    while cut and file_name_size(cut + mark + suffix) > LONGEST_FILE_NAME:
        cut = cut[:-1]
    return cut + mark + suffix


def safe_file_name(text: str) -> str:
    """Return a text as a part of a file name that every disk takes: letters, digits, `_`, `.` and `-`, at most 60.

    >>> safe_file_name("red car/blue car?")
    'red-car-blue-car'
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:60]


def file_name_size(name: str) -> int:
    """Return the size of a file name in bytes, see `LONGEST_FILE_NAME`."""
    return len(name.encode("utf-8", "surrogatepass"))


# ---- names in messages


def shown(name: str, longest: int = LONGEST_SHOWN) -> str:
    """Return a name as messages show it: on one line and cut to `longest` characters."""
    return escaped(name if len(name) <= longest else f"{name[:longest]}…")


def escaped(text: str) -> str:
    """Escape characters that are not printable: control characters, line breaks, bidirectional marks, surrogates.

    >>> escaped("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def similar(word: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Return known words that are spelled nearly like this one, the most similar first, whatever their case."""
    spelled: dict[str, str] = {}
    for each in sorted(known):
        spelled.setdefault(each.casefold(), each)
    typed = word[:LONGEST_SHOWN].casefold()
    swapped = [each for each in spelled if sorted(each) == sorted(typed)]  # "dgo" for "dog"
    close = difflib.get_close_matches(typed, spelled, n=most, cutoff=LEAST_SIMILAR)
    return [spelled[each] for each in dict.fromkeys([*swapped, *close])][:most]


def did_you_mean(words: Iterable[str], known: Iterable[str], *, most: int = 3) -> str:
    """Return a question that names known words spelled like these, with a space before it; empty if there is none.

    >>> did_you_mean(["mask"], ["overlay", "masks"])
    ' Did you mean masks?'
    """
    choices = sorted(known)
    return question([each for word in words for each in similar(word, choices, most=most)])


def question(close: Iterable[str]) -> str:
    """Return the question whether one of these words was meant, with a space before it; empty if there is none."""
    meant = " or ".join(dict.fromkeys(close))
    return f" Did you mean {meant}?" if meant else ""


def counted(number: int, noun: str) -> str:
    """Return a number and a noun, with an s if it is not one.

    >>> counted(1, "image"), counted(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listed(names: Sequence[str]) -> str:
    """Return the first few names and the number of the others."""
    rest = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(map(shown, names[:MOST_LISTED])) + rest
