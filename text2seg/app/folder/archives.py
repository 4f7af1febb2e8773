"""Safe unpacking of uploaded zip files.

Names are checked before anything is written, sizes while it is. A zip that leads out of its folder or fills the disk is
refused as a whole. Harmless entries that are not images (hidden files, other files, archives) are skipped with a note.
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
from text2seg.io.names import LONGEST_FILE_NAME, counted, file_name_size, folded, listed

ENTRIES = 20_000
"""Largest number of entries. Their list is read into memory first."""

RATIO = 200
"""Largest compression ratio of an entry above `SMALL` bytes. Drawings reach 50, zeros 1000."""

SMALL = 1 << 20
CHUNK = 1 << 16
LONGEST = 240  # characters of a name with its folders
DEEPEST = 16  # nested folders

_ENTRY = b"PK\x01\x02"  # signature of an entry in the central directory
_ARCHIVES = {".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".jar", ".cbz"}
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
_UTF8 = 0x800  # flag: the name is UTF-8
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
"""Code pages of names without a declared encoding, in the order of trial, and the script that all their letters must
have. cp437 is the default of the zip format."""

_LATIN_CAPITAL, _LATIN_SMALL = "À-ÖØ-Þ", "ß-öø-ÿ"
_ODD = {
    _LATIN: f"ƒ|[a-z{_LATIN_SMALL}][{_LATIN_CAPITAL}]|[{_LATIN_SMALL}][A-Z]|[{_LATIN_CAPITAL}]{{2}}[{_LATIN_SMALL}]",
    _CYRILLIC: "[а-яё][А-ЯЁ]|[A-Za-z][А-яЁё]|[А-яЁё][A-Za-z]",
    _HANGUL: r"[A-Za-z][^\x00-\x7f][A-Za-z]",
    _HAN: r"[A-Za-z][^\x00-\x7f][A-Za-z]",
    _JAPANESE: r"(?<![^\x00-\x7f])[^\x00-\x7f](?![^\x00-\x7f])",
}
"""By script, patterns that real names do not match: capitals within words, two scripts in one word, …"""

_SURE = {_CYRILLIC: "[А-яЁё]{2}", _JAPANESE: "[\u3041-\u30fa]", _HANGUL: ".{6}"}
"""By script, a pattern that the names together must match. A few Korean letters could also be Chinese."""

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
class UploadLimit:
    """Largest number of images, and their largest total size in bytes after unpacking."""

    images: int
    total: int


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Paths of the unpacked images, relative to the folder; `size` is their total in bytes; `skipped` has one note for
    each kind of skipped entry."""

    files: tuple[str, ...]
    size: int
    skipped: tuple[str, ...]


def unpack(archive: Path, into: Path, room: UploadLimit, *, suffixes: Collection[str]) -> Unpacked:
    """Unpack the images of a zip into an existing folder without files of the same names.

    Args:
        archive: the zip; messages use its file name.
        suffixes: suffixes of images, in lower case with their dot.

    Raises:
        Text2SegError: the zip is damaged or not a zip; a name is absolute, leads out, names a device or is not valid on
            every system; two names differ only in case; an entry is a link, a device, encrypted, or compressed by
            another method than deflate; or there are too many entries, images or bytes. The caller deletes files that
            were unpacked before the error.
    """
    name = archive.name
    _check_length(archive)
    with _told_of(name), zipfile.ZipFile(archive) as opened:
        chosen, skipped = _sorted_out(name, opened.infolist(), suffixes)
        if len(chosen) > room.images:
            raise Text2SegError(f"{name} has {len(chosen):,} images; at most {room.images:,} are allowed at once")
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
                            f"{name} unpacks to more than {room.total / 1e6:,.0f} MB; upload it in several parts"
                        )
                    if written > SMALL and written > RATIO * entry.compress_size:
                        raise Text2SegError(
                            f"{name}: {path} grows more than {RATIO} times when unpacked, "
                            "which images do not; the zip is refused"
                        )
                    file.write(chunk)
            size += written
        return Unpacked(tuple(chosen), size, tuple(skipped))


def checked_path(name: str) -> str:
    """Check an untrusted relative path. Return it with forward slashes and without `.` parts.

    Raises:
        Text2SegError: the path is absolute, leads up, is too long or too deep, or has a part that is not a valid file
            name on every system (device names, drive letters, forbidden characters).
    """
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    shown = repr(name if len(name) <= LONGEST else f"{name[:60]}…")
    if text.startswith("/") or re.match(r"[a-zA-Z]:", text):
        raise Text2SegError(f"the name {shown} is an absolute path")
    if ".." in parts:
        raise Text2SegError(f"the name {shown} leads out of its folder")
    if not parts or len(text) > LONGEST or max(map(file_name_size, parts)) > LONGEST_FILE_NAME or len(parts) > DEEPEST:
        raise Text2SegError(f"the name {shown} is empty, too long or too deep")
    for part in parts:
        is_device = _DEVICE.fullmatch(part.partition(".")[0].strip())
        if is_device or _FORBIDDEN.search(part) or part != part.strip(" ").rstrip("."):
            raise Text2SegError(f"the name {shown} is not valid on every system; rename the file")
    return "/".join(parts)


def _sorted_out(
    archive: str, entries: list[zipfile.ZipInfo], suffixes: Collection[str]
) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
    """Return the images by their checked path, and one note for each kind of skipped entry."""
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
            raise Text2SegError(f"{path} and {other} are the same file on many systems; rename one of them")
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
    skipped = [f"{archive}: its names are not Unicode; they were read as {code_page}"] * bool(code_page)
    skipped += [f"{archive}: {counted(hidden, 'hidden file')}"] * bool(hidden)
    if nested:
        skipped.append(f"{archive}: archives within the archive: {listed(nested)}")
    if others:
        skipped.append(f"{archive}: not images: {listed(others)}")
    return chosen, skipped


def _names(entries: Sequence[zipfile.ZipInfo]) -> tuple[list[str], str]:
    """Return the name of each entry, and the code page of names that are not Unicode, or "" if there are none.

    In this order: UTF-8 if the entry declares it; the Unicode name that Info-ZIP adds; UTF-8 if the bytes are valid;
    the code page that fits all remaining names.
    """
    names: list[str] = []
    unsaid: dict[int, bytes] = {}
    unknown: dict[int, bytes] = {}
    for place, entry in enumerate(entries):
        name = entry.orig_filename
        if not entry.flag_bits & _UTF8:
            raw = name.encode("cp437")  # undo the decoding of `zipfile`
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
    if _fits(code_page, unsaid.values()):  # short names may be valid UTF-8 by accident
        unknown = unsaid
    for place, raw in unknown.items():
        names[place] = raw.decode(code_page)
    return names, code_page


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the Unicode name in the extra field 0x7075, if it belongs to this name."""
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
    """Return whether names look right in a code page: all characters beyond ASCII are letters of its script, in places
    usual for words. A wrong code page gives box drawings, rare characters or capitals within words."""
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
        raise Text2SegError(f"{path} is compressed by an unsupported method; make an ordinary zip")


def _check_length(archive: Path) -> None:
    """Count the entries before `zipfile` makes an object for each. A small file can list a million."""
    count, tail = 0, b""
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK):
            count += (tail + chunk).count(_ENTRY)
            tail = chunk[1 - len(_ENTRY) :]
    if count > ENTRIES:
        raise Text2SegError(f"{archive.name} lists more than {ENTRIES:,} files; upload it in several parts")


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Turn errors into one message that names the archive."""
    try:
        yield
    except Text2SegError as error:
        text = str(error)
        raise Text2SegError(text if text.startswith(name) else f"{name}: {text}") from error
    except _BROKEN as error:
        raise Text2SegError(f"{name} is damaged or not a zip; make it again ({error})") from error
