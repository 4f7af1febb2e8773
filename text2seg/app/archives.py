"""Zips from strangers: everything that an archive says of itself is checked, its names before anything is written, its
sizes while it is.

An archive that tries to reach out of its folder, or to fill the disk, is refused whole with one sentence. What is
harmless and no picture (hidden files, other files, archives within) is left out, and `skipped` says so.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from text2seg.errors import Text2SegError
from text2seg.io.files import LONGEST_NAME, size_of_name
from text2seg.io.names import folded, listed

ENTRIES = 20_000
"""Entries of any kind; the list of them is held in memory before the first is looked at."""

RATIO = 200
"""An entry must not grow more than so many times, once it is over `SMALL` bytes; drawings grow 50 times, zeros 1000."""

SMALL = 1 << 20
CHUNK = 1 << 16
LONGEST = 240  # letters of a name with its folders
DEEPEST = 16  # folders in one another

_ENTRY = b"PK\x01\x02"  # what each entry of a zip's list begins with
_ARCHIVES = {".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".jar", ".cbz"}
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
_UTF8 = 0x800  # the flag of an entry whose name is UTF-8
_LATIN, _CYRILLIC, _HANGUL = ("LATIN ",), ("CYRILLIC ",), ("HANGUL ",)
_HAN = ("CJK UNIFIED ", "FULLWIDTH ", "IDEOGRAPHIC ")
_JAPANESE = ("HIRAGANA ", "KATAKANA", "CJK UNIFIED ", "FULLWIDTH ", "IDEOGRAPHIC ")
_CODE_PAGES = {
    "cp866": _CYRILLIC,
    "cp932": _JAPANESE,
    "cp437": _LATIN,
    "euc_kr": _HANGUL,
    "gb2312": _HAN,
    "cp850": _LATIN,
    "cp1252": _LATIN,
}
"""Code pages that zips are written in without saying so, in the order in which they are tried, and the script that all
their letters must be of. cp437 is what the format itself says."""

_LATIN_CAPITAL, _LATIN_SMALL = "À-ÖØ-Þ", "ß-öø-ÿ"
_ODD = {
    _LATIN: f"ƒ|[a-z{_LATIN_SMALL}][{_LATIN_CAPITAL}]|[{_LATIN_SMALL}][A-Z]|[{_LATIN_CAPITAL}]{{2}}[{_LATIN_SMALL}]",
    _CYRILLIC: "[а-яё][А-ЯЁ]|[A-Za-z][А-яЁё]|[А-яЁё][A-Za-z]",
    _HANGUL: r"[A-Za-z][^\x00-\x7f][A-Za-z]",
    _HAN: r"[A-Za-z][^\x00-\x7f][A-Za-z]",
    _JAPANESE: r"(?<![^\x00-\x7f])[^\x00-\x7f](?![^\x00-\x7f])",
}
"""By script, what names in it do not look like: capitals within words, letters of two scripts in one word, …"""

_SURE = {_CYRILLIC: "[А-яЁё]{2}", _JAPANESE: "[\u3041-\u30fa]", _HANGUL: ".{6}"}
"""By script, what there must be in the names together; fewer Korean letters might as well be Chinese ones."""

_BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class Room:
    """What an archive may fill: so many pictures and, unpacked, so many bytes."""

    pictures: int
    total: int


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Paths of the pictures from the folder on, in the order of the archive; `size` in bytes; `skipped` says what was
    left out, a line for each kind."""

    files: tuple[str, ...]
    size: int
    skipped: tuple[str, ...]


def unpack(archive: Path, into: Path, room: Room, *, suffixes: Collection[str]) -> Unpacked:
    """Unpack the pictures of a zip into a folder that is there and holds nothing of the same names.

    Args:
        archive: the zip; messages call it by its file name.
        suffixes: of pictures, with their dot and in lower case.

    Raises:
        Text2SegError: it is damaged or no zip; a name in it is absolute, leads out, is a device's or cannot stand on
            every disk; two names differ in letter case alone; an entry is a link, a device or encrypted, or packed in
            another way than store and deflate; there are too many entries or pictures, or too many bytes come out.
            What was unpacked by then is left to the caller, who has the folder.
    """
    name = archive.name
    _check_length(archive)
    with _told_of(name), zipfile.ZipFile(archive) as opened:
        chosen, skipped = _sorted_out(name, opened.infolist(), suffixes)
        if len(chosen) > room.pictures:
            raise Text2SegError(
                f"{name} holds {len(chosen):,} pictures; at most {room.pictures:,} can be taken at once"
            )
        size = 0
        for path, entry in chosen.items():
            target = into / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(entry) as source, target.open("xb") as file:
                written = 0
                while chunk := source.read(CHUNK):
                    written += len(chunk)
                    if size + written > room.total:
                        raise Text2SegError(
                            f"{name} unpacks to more than {room.total / 1e6:,.0f} MB; send it in several parts"
                        )
                    if written > SMALL and written > RATIO * entry.compress_size:
                        raise Text2SegError(
                            f"{name}: {path} grows more than {RATIO} times as it is unpacked, "
                            "which pictures do not; it is refused"
                        )
                    file.write(chunk)
            size += written
        return Unpacked(tuple(chosen), size, tuple(skipped))


def checked_path(name: str) -> str:
    """A path from a stranger, to be used below a folder of ours: with slashes, without `.` parts.

    Raises:
        Text2SegError: it is absolute or leads up, is too long or too deep, or has a part that is no file name on every
            system (a device's name, a drive's letter, a sign that file names cannot have).
    """
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    shown = repr(name if len(name) <= LONGEST else f"{name[:60]}…")
    if text.startswith("/") or re.match(r"[a-zA-Z]:", text):
        raise Text2SegError(f"the name {shown} is an absolute path")
    if ".." in parts:
        raise Text2SegError(f"the name {shown} leads out of its folder")
    if not parts or len(text) > LONGEST or max(map(size_of_name, parts)) > LONGEST_NAME or len(parts) > DEEPEST:
        raise Text2SegError(f"the name {shown} is empty, too long or too deep")
    for part in parts:
        is_device = _DEVICE.fullmatch(part.partition(".")[0].strip())
        if is_device or _FORBIDDEN.search(part) or part != part.strip(" ").rstrip("."):
            raise Text2SegError(f"the name {shown} cannot stand on every disk; rename it")
    return "/".join(parts)


def _sorted_out(
    archive: str, entries: list[zipfile.ZipInfo], suffixes: Collection[str]
) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
    """Pictures by their checked path, and a line for each kind of entry that is left out."""
    chosen: dict[str, zipfile.ZipInfo] = {}
    seen: dict[str, str] = {}
    hidden, nested, others = 0, [], []
    names, code_page = _names(entries)
    for entry, name in zip(entries, names, strict=True):
        path = checked_path(name)
        _check_kind(path, entry)
        if name.endswith("/"):
            continue
        if (other := seen.setdefault(folded(path), path)) is not path:
            raise Text2SegError(f"{path} and {other} would be one file on many disks; rename one of them")
        suffix = PurePosixPath(path).suffix.lower()
        if any(part.startswith((".", "__MACOSX")) for part in path.split("/")):
            hidden += 1
        elif suffix in _ARCHIVES:
            nested.append(path)
        elif suffix not in suffixes:
            others.append(path)
        else:
            chosen[path] = entry
    for path in chosen:
        for parent in PurePosixPath(path).parents:
            if folded(str(parent)) in seen:
                raise Text2SegError(f"{parent} is both a file and a folder; rename one of them")
    skipped = [f"{archive}: names in it are no Unicode; they were read as {code_page}"] * bool(code_page)
    skipped += [f"{archive}: left out {hidden} hidden file{'s' * (hidden > 1)}"] * bool(hidden)
    if nested:
        skipped.append(f"{archive}: archives within archives are not opened: {listed(nested)}")
    if others:
        skipped.append(f"{archive}: left out what is no image: {listed(others)}")
    return chosen, skipped


def _names(entries: Sequence[zipfile.ZipInfo]) -> tuple[list[str], str]:
    """The name of each entry, and the code page that those were read in which are no Unicode, if there are any.

    UTF-8 where the entry says so; else the Unicode name that Info-ZIP puts beside the other one; else UTF-8 where the
    bytes are that; else what the bytes look like, for all such entries together.
    """
    names: list[str] = []
    unsaid: dict[int, bytes] = {}
    unknown: dict[int, bytes] = {}
    for place, entry in enumerate(entries):
        name = entry.orig_filename
        if not entry.flag_bits & _UTF8:
            raw = name.encode("cp437")  # as `zipfile` has decoded it
            given = _unicode_path(entry.extra, raw)
            if given is None and not raw.isascii():
                unsaid[place] = raw
            try:
                name = raw.decode("utf-8") if given is None else given
            except UnicodeDecodeError:
                unknown[place] = raw
        names.append(name)
    if not unknown:
        return names, ""
    code_page = next((page for page in _CODE_PAGES if _fits(page, unknown.values())), "cp437")
    if _fits(code_page, unsaid.values()):  # a few short names are UTF-8 by accident
        unknown = unsaid
    for place, raw in unknown.items():
        names[place] = raw.decode(code_page)
    return names, code_page


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name in the extra field 0x7075, if there is one and it is about this name."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 0x7075 and content[:5] == struct.pack("<BL", 1, zlib.crc32(raw)):
            try:
                return content[5:].decode("utf-8")
            except UnicodeDecodeError:
                return None
    return None


def _fits(code_page: str, names: Iterable[bytes]) -> bool:
    """Whether names look like names in a code page: all that is not ASCII are letters of its script, and stand as they
    would in words. Other code pages give drawings of boxes, rare characters or capitals within words."""
    script = _CODE_PAGES[code_page]
    every = ""
    for raw in names:
        try:
            name = unicodedata.normalize("NFC", raw.decode(code_page))
        except UnicodeDecodeError:
            return False
        letters = "".join(each for each in name if each > "\x7f")
        if re.search(_ODD[script], name) or not all(unicodedata.name(each, "").startswith(script) for each in letters):
            return False
        every += letters
    return re.search(_SURE.get(script, ""), every) is not None


def _check_kind(path: str, entry: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "a device or pipe"
        raise Text2SegError(f"{path} is {what}, not a file; pack the file itself")
    if entry.flag_bits & 1:
        raise Text2SegError(f"{path} is encrypted; pack it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Text2SegError(f"{path} is packed in a way that is not read here; pack it as an ordinary zip")


def _check_length(archive: Path) -> None:
    """Count entries before `zipfile` makes an object of each: a small file can list a million."""
    count, tail = 0, b""
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK):
            count += (tail + chunk).count(_ENTRY)
            tail = chunk[1 - len(_ENTRY) :]
    if count > ENTRIES:
        raise Text2SegError(f"{archive.name} lists more than {ENTRIES:,} files; send it in several parts")


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """What is wrong with an archive, as one sentence that names it."""
    try:
        yield
    except Text2SegError as error:
        text = str(error)
        raise Text2SegError(text if text.startswith(name) else f"{name}: {text}") from error
    except _BROKEN as error:
        raise Text2SegError(f"{name} is damaged or no zip; pack it again ({error})") from error
