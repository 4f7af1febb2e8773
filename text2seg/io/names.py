"""File names: which spellings mean one file, and names that no other file has.

Tools write the name of one file in many ways: `images\\a.jpg`, `./a.jpg`, `/data/images/a.jpg`, `https://host/a.jpg`,
with composed or decomposed accents, with other letter case, with more or fewer folders in front. `Names` holds the one
rule by which all commands tell which file, or which image of another dataset, a name means.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from text2seg.errors import DatasetError

DEEPEST = 64
"""Parts that a name may have for its folders to be left out; longer ones are compared as a whole."""

SHOWN = 3  # names in a message
LONGEST_SHOWN = 120  # letters of a name in a message

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+([^?#]*)(.*)", re.DOTALL)  # two letters at least: C:/ is a drive
_DRIVE = re.compile(r"/*[A-Za-z]:/")
_ENCODED = ("http", "https", "file")  # URLs in which %20 is a space and ? begins no name; a store's are names as such

Parts = tuple[str, ...]


def parts_of(name: str) -> Parts:
    """The folders and the file of a name, in one spelling: slashes or backslashes between them, composed Unicode (NFC),
    without `.`, a drive's letter or what makes it absolute; `a/../` is nothing, and so is `..` in front. Of a URL the
    host counts as a folder.

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


def identity(name: str) -> str:
    """The same text for all spellings of one name from one folder on. Letter case counts."""
    return "/".join(parts_of(name))


def folded(text: str) -> str:
    """The same for texts that are one file name on disks that ignore letter case or the form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


class Names:
    """Names of files, among which one is looked up by whatever spelling of it.

    In this order: the same text; the same parts (`parts_of`); the same but for letter case; the same last parts, where
    one of both names has more folders in front, the longest such name first and letter case ignored only where no name
    has it. What comes first wins; where several names come first alike, which is meant cannot be known.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._exact: defaultdict[str, list[int]] = defaultdict(list)
        self._whole: defaultdict[Parts, list[int]] = defaultdict(list)
        self._tails: dict[int, defaultdict[Parts, list[int]]] = {}
        for place, name in enumerate(names):
            self._exact[name].append(place)
            self._whole[_folded(parts_of(name))].append(place)

    def find(self, name: str) -> list[int]:
        """Places in `names` of what a name means: none, one, or several between which it does not tell."""
        if name in self._exact:
            return self._exact[name]
        own = parts_of(name)
        if not own:
            return []
        key = _folded(own)
        if found := self._whole.get(key):
            return self._with_case(found, own)
        if len(key) > DEEPEST:
            return []
        if found := self._ending(len(key)).get(key):
            return self._with_case(found, own)
        for start in range(1, len(key)):
            if found := self._whole.get(key[start:]):
                return self._with_case(found, own[start:])
        return []

    def _with_case(self, places: list[int], tail: Parts) -> list[int]:
        """Those whose letter case is the same as well, if there are any."""
        alike = [place for place in places if parts_of(self.names[place])[-len(tail) :] == tail]
        return alike or places

    def _ending(self, length: int) -> defaultdict[Parts, list[int]]:
        """Places of names with more parts than this, by their last so many. Made for lengths that are asked for."""
        if length not in self._tails:
            found = self._tails[length] = defaultdict(list)
            for key, places in self._whole.items():
                if length < len(key) <= DEEPEST:
                    found[key[-length:]] += places
        return self._tails[length]


def pair_names(names: Sequence[str], others: Sequence[str], *, ours: str, theirs: str) -> dict[int, int]:
    """For the place of each name the place among the others of the one that means the same file; a name without such
    a one is left out.

    Args:
        names: those to be found.
        others: those to find them among.
        ours: whose images the names are, for messages.
        theirs: whose the others are.

    Raises:
        DatasetError: a name could mean several of the others, or two names mean the same one.
    """
    known = Names(others)
    pairs: dict[int, int] = {}
    taken: dict[int, int] = {}
    for place, name in enumerate(names):
        found = known.find(name)
        if len(found) > 1:
            raise DatasetError(
                f"{shown(name)} of {ours} could be any of {theirs}: {listed([others[each] for each in found])}; "
                "write more of its folders"
            )
        for other in found:
            if other in taken:
                raise DatasetError(
                    f"two images of {ours}, {shown(names[taken[other]])} and {shown(name)}, would be one of {theirs}, "
                    f"{shown(others[other])}; write more of their folders"
                )
            pairs[place], taken[other] = other, place
    return pairs


def unique_names() -> Callable[[str, str], str]:
    """A function that gives each name back or, where an earlier one would be the same file on some disk, the name with
    a number before its suffix: `name(stem, suffix)`.

    >>> name = unique_names()
    >>> name("a", ".jpg"), name("A", ".jpg"), name("a", ".png")
    ('a.jpg', 'A_2.jpg', 'a.png')
    """
    last: dict[str, int] = {}

    def name(stem: str, suffix: str) -> str:
        wanted, free = folded(stem + suffix), stem + suffix
        while folded(free) in last:
            last[wanted] += 1
            free = f"{stem}_{last[wanted]}{suffix}"
        last[folded(free)] = 1
        return free

    return name


def shown(name: str) -> str:
    """A name as messages have it: on one line, and not at any length."""
    short = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"
    return escaped(short)


def escaped(text: str) -> str:
    """A text with escapes for what is not printed as a sign: control characters, line breaks, NUL, bidirectional signs,
    surrogates.

    >>> escaped("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(shown, names[:SHOWN])) + rest


def _folded(parts: Parts) -> Parts:
    return tuple(map(folded, parts))
