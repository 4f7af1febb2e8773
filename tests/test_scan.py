"""The scan of a folder: which files are labelled, and in which order."""

from __future__ import annotations

import os

import pytest

from text2seg.errors import ImageError, SettingsError
from text2seg.io.scan import list_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "B.PNG", "a/z.webp", "a/b/y.tiff", "ä.jpeg", "notes.txt", ".hidden.png", ".git/x.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "photos"


def files(folder, **how):
    return list(list_images(folder, **how).files)


def test_images_are_listed_in_byte_order(folder):
    assert files(folder) == ["B.PNG", "a/b/y.tiff", "a/z.webp", "b.jpg", "ä.jpeg"]
    assert files(folder, recursive=False) == ["B.PNG", "b.jpg", "ä.jpeg"]


def test_glob_patterns_select_files(folder):
    assert files(folder, globs=["*.jpg", "*.png"]) == ["B.PNG", "b.jpg"]
    assert files(folder, globs=["a/*"]) == ["a/b/y.tiff", "a/z.webp"]
    assert files(folder, globs=["*.txt"]) == ["notes.txt"]
    with pytest.raises(ImageError, match=r"no file in it matches \*\.tga"):
        files(folder, globs=["*.tga"])


def test_limit_and_shards_select_files(folder):
    assert files(folder, limit=2) == ["B.PNG", "a/b/y.tiff"]
    parts = [list_images(folder, shard=f"{n}/2") for n in (1, 2)]
    assert [part.files for part in parts] == [("B.PNG", "a/z.webp", "ä.jpeg"), ("a/b/y.tiff", "b.jpg")]
    assert [parts[1].place(index) for index in (0, 1)] == [1, 3]
    with pytest.raises(ImageError, match="shard 4/9"):
        files(folder, limit=3, shard="4/9")
    for wrong in ("0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(SettingsError, match="1/4 to 4/4"):
            files(folder, shard=wrong)


def test_skipped_files_are_left_out(folder):
    assert "notes.txt" not in files(folder, globs=["*"], skip=[folder / "notes.txt"])


def test_cyclic_links_are_followed_once(folder):
    (folder / "a" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "a" / "same.jpg").symlink_to(folder / "b.jpg")
    assert files(folder) == ["B.PNG", "a/b/y.tiff", "a/same.jpg", "a/z.webp", "b.jpg", "ä.jpeg"]


def test_a_missing_or_empty_folder_raises(folder):
    with pytest.raises(ImageError, match="there is no such folder"):
        files(folder / "nowhere")
    with pytest.raises(ImageError, match="is not a folder"):
        files(folder / "b.jpg")
    (folder / "empty").mkdir()
    with pytest.raises(ImageError, match="has the suffix of an image"):
        files(folder / "empty")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_read_permission_raises(folder):
    (folder / "a").chmod(0)
    try:
        with pytest.raises(ImageError, match="cannot be read"):
            files(folder)
    finally:
        (folder / "a").chmod(0o700)


def test_a_folder_that_scandir_cannot_read_raises(folder, monkeypatch):
    """The same when the tests run as root."""
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match="a cannot be read: Permission denied"):
        files(folder)
