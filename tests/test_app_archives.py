"""Untrusted zip files: unpacked entries, skipped entries, refused archives, and their messages."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib

import pytest

from text2seg.app.folder import archives
from text2seg.app.folder.archives import UploadLimit, checked_path, unpack
from text2seg.errors import Text2SegError

ROOM = UploadLimit(images=10, total=10_000_000)
SUFFIXES = {".jpg", ".png"}


@pytest.fixture
def packed(tmp_path):
    """Makes a zip of names, or of entries, and their content."""

    def pack(*entries, compression=zipfile.ZIP_DEFLATED):
        path = tmp_path / "photos.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return path

    return pack


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "private" / "images"
    folder.mkdir(parents=True)
    return folder


def entry(name, *, mode=stat.S_IFREG | 0o644, system=3):
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = system, mode << 16
    return made


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refused(archive, into, room=ROOM):
    with pytest.raises(Text2SegError) as caught:
        unpack(archive, into, room, suffixes=SUFFIXES)
    assert "\n" not in str(caught.value)
    assert str(into) not in str(caught.value)
    return str(caught.value)


def test_images_keep_their_paths(packed, into):
    archive = packed(("b.jpg", b"one"), ("front/a.PNG", b"three"), ("./left/./c.jpg", b""))
    unpacked = unpack(archive, into, ROOM, suffixes=SUFFIXES)
    assert unpacked.files == ("b.jpg", "front/a.PNG", "left/c.jpg")
    assert unpacked.size == 8
    assert unpacked.skipped == ()
    assert written(into) == ["b.jpg", "front/a.PNG", "left/c.jpg"]
    assert (into / "front/a.PNG").read_bytes() == b"three"


def test_harmless_entries_are_skipped_with_notes(packed, into):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as nested:
        nested.writestr("b.jpg", b"")
    archive = packed(
        ("a.jpg", b"x"),
        ("__MACOSX/._a.jpg", b"x"),
        (".hidden/b.jpg", b"x"),
        (".DS_Store", b"x"),
        ("more.zip", inner.getvalue()),
        ("notes.txt", b"x"),
        ("Thumbs.db", b"x"),
    )
    unpacked = unpack(archive, into, ROOM, suffixes=SUFFIXES)
    assert written(into) == ["a.jpg"]
    assert unpacked.skipped == (
        "photos.zip: 3 hidden files",
        "photos.zip: archives within the archive: more.zip",
        "photos.zip: not images: notes.txt, Thumbs.db",
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil.jpg", "leads out of its folder"),
        ("a/../../evil.jpg", "leads out of its folder"),
        ("a/../b.jpg", "leads out of its folder"),
        ("..\\evil.jpg", "leads out of its folder"),
        ("/etc/evil.jpg", "absolute path"),
        ("\\\\host\\share\\evil.jpg", "absolute path"),
        ("C:/evil.jpg", "absolute path"),
        ("c:evil.jpg", "absolute path"),
        ("nul.jpg", "not valid on every system"),
        ("a/COM1", "not valid on every system"),
        ("lpt9 .tar.jpg", "not valid on every system"),
        ("a.jpg:stream.jpg", "not valid on every system"),
        ("a\x01.jpg", "not valid on every system"),
        ("front /a.jpg", "not valid on every system"),
        ("front./a.jpg", "not valid on every system"),
        (f"{'x' * 300}.jpg", "too long"),
        (f"{'x/' * 20}a.jpg", "too deep"),
        ("./", "empty"),
    ],
)
def test_an_unsafe_name_refuses_the_whole_archive(packed, into, name, words):
    assert words in refused(packed(("fine.jpg", b"x"), (name, b"x")), into)
    assert written(into.parent) == []


def test_unusual_but_safe_names_pass():
    assert checked_path("console.jpg") == "console.jpg"
    assert checked_path("front\\left\\..a.jpg") == "front/left/..a.jpg"
    assert checked_path("Zürich – 東京 (1).jpg") == "Zürich – 東京 (1).jpg"


@pytest.mark.parametrize(
    ("mode", "words"),
    [(stat.S_IFLNK | 0o777, "a link"), (stat.S_IFCHR | 0o666, "a device"), (stat.S_IFIFO | 0o666, "a device")],
)
def test_links_and_devices_are_refused(packed, into, mode, words):
    assert words in refused(packed((entry("a.jpg", mode=mode), b"/etc/passwd")), into)
    assert written(into) == []


@pytest.mark.parametrize(
    ("first", "second"), [("a.jpg", "A.JPG"), ("Ü.jpg", "u\u0308.jpg".upper()), ("b/a.jpg", "b\\a.jpg")]
)
def test_names_that_differ_only_in_case_are_refused(packed, into, first, second):
    assert "the same file on many systems" in refused(packed((first, b"1"), (second, b"2")), into)
    assert written(into) == []


def test_a_name_used_as_file_and_folder_is_refused(packed, into):
    assert "both a file and a folder" in refused(packed(("a.jpg", b"1"), ("A.jpg/b.jpg", b"2")), into)


# --- names that are no ASCII, by writers that do not say how they wrote them ------------------------------------------


def with_names(path, raws, extras=()):
    """A zip with these bytes as names and no flag that says what they are."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, raw in enumerate(raws):
            made = zipfile.ZipInfo(f"{number}".rjust(len(raw), "@"))
            made.extra = extras[number] if extras else b""
            archive.writestr(made, b"x")
    content = path.read_bytes()
    for number, raw in enumerate(raws):
        content = content.replace(f"{number}".rjust(len(raw), "@").encode(), raw)
    path.write_bytes(content)
    return path


def unicode_path(raw, name, *, crc=None):
    content = struct.pack("<BL", 1, zlib.crc32(raw) if crc is None else crc) + name
    return struct.pack("<HH", 0x7075, len(content)) + content


@pytest.mark.parametrize(
    ("code_page", "names"),
    [
        ("utf-8", ["néw scène.jpg", "東京/写真.jpg", "e\u0301.jpg", "🙂.jpg", "фото.jpg"]),
        ("cp437", ["école/été.jpg", "château.jpg", "Über Öl.jpg", "âge.jpg", "ÉCOLE.jpg", "GROSSE ÜBUNG.jpg"]),
        ("cp850", ["São Paulo.jpg", "Ålesund/øl.jpg"]),
        ("cp866", ["Фото.jpg", "ФОТО 2.jpg", "папка/моё.jpg", "Я и море.jpg"]),
        ("cp932", ["テスト.jpg", "写真の日.jpg", "フォルダ/ソース表示.jpg"]),
        ("gb2312", ["风景.jpg", "照片.jpg", "图1.jpg"]),  # the last is UTF-8 by accident
        ("euc_kr", ["사진/가족여행.jpg"]),
        ("cp1252", ["été.jpg", "Müller.jpg"]),
    ],
)
def test_names_of_common_zip_tools_are_decoded(tmp_path, into, code_page, names):
    archive = with_names(tmp_path / "photos.zip", [name.encode(code_page) for name in names])
    unpacked = unpack(archive, into, ROOM, suffixes=SUFFIXES)
    assert list(unpacked.files) == names
    assert written(into) == sorted(names)
    said = f"photos.zip: its names are not Unicode; they were read as {code_page}"
    assert unpacked.skipped == (() if code_page == "utf-8" else (said,))


def test_names_of_two_tools_in_one_archive_are_decoded(tmp_path, into):
    archive = with_names(tmp_path / "photos.zip", ["né.jpg".encode(), "Zürich.jpg".encode("cp437"), b"plain.jpg"])
    assert unpack(archive, into, ROOM, suffixes=SUFFIXES).files == ("né.jpg", "Zürich.jpg", "plain.jpg")


def test_unknown_bytes_are_read_as_cp437(tmp_path, into):
    archive = with_names(tmp_path / "photos.zip", [b"a\xb0\xff.jpg"])
    assert unpack(archive, into, ROOM, suffixes=SUFFIXES).files == (b"a\xb0\xff.jpg".decode("cp437"),)


def test_the_unicode_extra_field_is_used_if_its_checksum_fits(tmp_path, into):
    raw = b"_____.jpg"
    extras = [
        unicode_path(b"1____.jpg", "写真.jpg".encode()),
        unicode_path(raw, b"other.jpg", crc=5),
        unicode_path(b"3____.jpg", b"\xff\xff"),
    ]
    archive = with_names(tmp_path / "photos.zip", [b"1____.jpg", raw, b"3____.jpg"], extras)
    assert unpack(archive, into, ROOM, suffixes=SUFFIXES).files == ("写真.jpg", "_____.jpg", "3____.jpg")


def test_a_unicode_name_is_checked_like_any_other(tmp_path, into):
    archive = with_names(tmp_path / "photos.zip", [b"a.jpg"], [unicode_path(b"a.jpg", b"../evil.jpg")])
    assert "leads out of its folder" in refused(archive, into)


def test_an_encrypted_entry_is_refused(packed, into):
    archive = packed(("a.jpg", b"secret"))
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    archive.write_bytes(content)
    assert "encrypted" in refused(archive, into)


def test_unusual_compression_is_refused(packed, into):
    assert "ordinary zip" in refused(packed(("a.jpg", b"x" * 99), compression=zipfile.ZIP_LZMA), into)


def test_a_zip_bomb_is_refused_while_unpacking(packed, into):
    assert "grows more than 200 times" in refused(packed(("a.png", bytes(9_000_000))), into)
    assert sum(path.stat().st_size for path in into.rglob("*")) < 2_000_000


def test_unpacked_bytes_are_counted_over_all_entries(packed, into):
    noise = bytes(range(256)) * 4000
    archive = packed(*((f"{n}.png", noise) for n in range(3)), compression=zipfile.ZIP_STORED)
    assert "more than 2 MB" in refused(archive, into, UploadLimit(images=10, total=2_000_000))
    assert sum(path.stat().st_size for path in into.rglob("*")) <= 2_000_000


def test_a_wrong_size_in_the_header_is_ignored(packed, into):
    archive = packed(("a.png", bytes(5_000_000)))
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.index(signature) + offset
        content[start : start + 4] = struct.pack("<I", 10)
    archive.write_bytes(content)
    assert "damaged" in refused(archive, into)
    assert sum(path.stat().st_size for path in into.rglob("*")) <= 10


def test_too_many_images_are_refused_before_any_is_written(packed, into):
    archive = packed(*((f"{n}.jpg", b"x") for n in range(11)))
    assert "has 11 images; at most 10" in refused(archive, into)
    assert written(into) == []


def test_entries_are_counted_before_the_list_is_read(packed, into, monkeypatch):
    monkeypatch.setattr(archives, "ENTRIES", 50)
    monkeypatch.setattr(archives, "CHUNK", 7)  # so that signatures lie across the pieces that are read
    archive = packed(*((f"{n}.txt", b"") for n in range(51)))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "lists more than 50 files" in refused(archive, into)


def test_the_largest_allowed_number_of_entries_passes(packed, into, monkeypatch):
    monkeypatch.setattr(archives, "ENTRIES", 51)
    archive = packed(("a.jpg", b""), *((f"{n}.txt", b"") for n in range(50)))
    assert unpack(archive, into, ROOM, suffixes=SUFFIXES).files == ("a.jpg",)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(10), b"PK\x03\x04" * 9])
def test_a_file_that_is_not_a_zip_is_refused(tmp_path, into, content):
    (tmp_path / "photos.zip").write_bytes(content)
    assert refused(tmp_path / "photos.zip", into).startswith("photos.zip is damaged or not a zip")


def test_a_damaged_entry_is_reported(packed, into):
    archive = packed(("a.jpg", bytes(range(256)) * 9), compression=zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    content[200] ^= 0xFF
    archive.write_bytes(content)
    assert "damaged" in refused(archive, into)


def test_a_truncated_archive_is_reported(packed, into):
    archive = packed(("a.jpg", bytes(range(256)) * 9))
    archive.write_bytes(archive.read_bytes()[:-30])
    assert "damaged" in refused(archive, into)
