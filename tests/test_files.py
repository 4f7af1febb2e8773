"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from text2seg.errors import OutputError
from text2seg.files import write_atomically


def test_chunks_become_one_file_in_a_new_folder(tmp_path):
    path = write_atomically(str(tmp_path / "new" / "file.bin"), (bytes([number]) for number in range(3)))
    assert path == tmp_path / "new" / "file.bin"
    assert path.read_bytes() == b"\0\1\2"
    assert write_atomically(path, []).read_bytes() == b""
    assert os.listdir(path.parent) == ["file.bin"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = write_atomically(tmp_path / "file.bin", [b"old"])

    def chunks():
        yield b"n" * 100_000
        assert path.read_bytes() == b"old"
        yield b"ew"

    assert write_atomically(path, chunks()).read_bytes() == b"n" * 100_000 + b"ew"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "a fault of another file"), ValueError("bad")])
def test_what_the_chunks_raise_goes_on_as_it_is(tmp_path, error):
    path = write_atomically(tmp_path / "file.bin", [b"old"])

    def chunks():
        yield b"half"
        raise error

    with pytest.raises(type(error)) as raised:
        write_atomically(path, chunks())
    assert raised.value is error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "file.bin", [b"old"])

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=r"file\.bin cannot be written: No space left"):
        write_atomically(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_where_no_file_can_be(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is not a folder"):
        write_atomically(tmp_path / "file" / "more", [])
    with pytest.raises(OutputError, match="is not a file"):
        write_atomically(tmp_path, [])

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match="no permission to write"):
        write_atomically(tmp_path / "found.json", [])
