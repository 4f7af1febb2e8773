"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from text2seg.errors import ImageError, OutputError, Text2SegError
from text2seg.io import files
from text2seg.io.names import fit_file_name
from text2seg.io.output_folder import RECORD, OutputFolder
from text2seg.io.writing import (
    check_writable,
    temporary_folder_for,
    write_atomically,
    write_together,
)


def test_chunks_are_written_to_one_file_in_a_new_folder(tmp_path):
    path = write_atomically(str(tmp_path / "new" / "file.bin"), (bytes([number]) for number in range(3)))
    assert path == tmp_path / "new" / "file.bin"
    assert path.read_bytes() == b"\0\1\2"
    assert write_atomically(path, []).read_bytes() == b""
    assert os.listdir(path.parent) == ["file.bin"]


def test_the_old_file_is_kept_until_the_new_one_is_complete(tmp_path):
    path = write_atomically(tmp_path / "file.bin", [b"old"])

    def chunks():
        yield b"n" * 100_000
        assert path.read_bytes() == b"old"
        yield b"ew"

    assert write_atomically(path, chunks()).read_bytes() == b"n" * 100_000 + b"ew"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "a fault of another file"), ValueError("bad")])
def test_an_error_of_the_chunks_is_raised_unchanged(tmp_path, error):
    path = write_atomically(tmp_path / "file.bin", [b"old"])

    def chunks():
        yield b"half"
        raise error

    with pytest.raises(type(error)) as raised:
        write_atomically(path, chunks())
    assert raised.value is error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "file.bin", [b"old"])

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=r"file\.bin cannot be written: No space left"):
        write_atomically(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_an_impossible_path_raises_output_error(tmp_path, monkeypatch):
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


def test_a_symbolic_link_is_kept_and_its_target_is_written(tmp_path):
    (tmp_path / "large" / "disk").mkdir(parents=True)
    (tmp_path / "large" / "disk" / "file.json").write_bytes(b"old")
    (tmp_path / "second").symlink_to("large/disk/file.json")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    write_atomically(tmp_path / "first", [b"new"])
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert os.listdir(tmp_path / "large" / "disk") == ["file.json"]
    assert (tmp_path / "large" / "disk" / "file.json").read_bytes() == b"new"


def test_writing_to_a_broken_link_creates_its_target(tmp_path):
    (tmp_path / "link").symlink_to("new/file.json")
    write_atomically(tmp_path / "link", [b"new"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new" / "file.json").read_bytes() == b"new"
    (tmp_path / "folder").symlink_to("elsewhere")
    write_atomically(tmp_path / "folder" / "a.json", [b"a"])
    assert (tmp_path / "elsewhere" / "a.json").read_bytes() == b"a"


def test_cyclic_links_and_links_to_a_folder_or_stream_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(".")
    for name, words in (("a", "links form a circle"), ("c", "is not a file but a folder")):
        with pytest.raises(OutputError, match=words):
            write_atomically(tmp_path / name, [b"new"])
        with pytest.raises(OutputError, match=words):
            check_writable(tmp_path / name, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no /proc here")
def test_standard_output_in_a_file_is_not_replaced(tmp_path):
    with (tmp_path / "printed.txt").open("w") as file:
        file.write("so far")
        with pytest.raises(OutputError, match="an open stream"):
            write_atomically(f"/dev/fd/{file.fileno()}", [b"new"])
    assert (tmp_path / "printed.txt").read_text() == "so far"


@pytest.mark.skipif(os.name != "posix", reason="no permissions here")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_new_file_has_the_permissions_of_the_old_one_from_the_first_byte(tmp_path, mode):
    path = write_atomically(tmp_path / "file.bin", [b"old"])
    path.chmod(mode)

    def chunks():
        (temporary,) = tmp_path.glob(".text2seg-*.tmp")
        assert stat.S_IMODE(temporary.stat().st_mode) == mode
        yield b"new"

    assert stat.S_IMODE(write_atomically(path, chunks()).stat().st_mode) == mode


def test_several_files_are_replaced_only_when_all_are_complete(tmp_path):
    one, other = write_atomically(tmp_path / "one", [b"1"]), tmp_path / "other"

    def chunks():
        yield b"half"
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        write_together([(one, [b"2"]), (other, chunks())])
    assert (one.read_bytes(), os.listdir(tmp_path)) == (b"1", ["one"])


def test_an_error_is_not_hidden_by_a_failed_close(tmp_path, monkeypatch):
    class Full:
        """A file on a full disk: writing only fills its buffer, and closing it fails."""

        name = "full"

        def write(self, _):
            return 1

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    def chunks():
        yield b"n"
        raise ValueError("the first error")

    monkeypatch.setattr(Path, "open", lambda *_: Full())
    with pytest.raises(ValueError, match="the first error"):
        write_atomically(tmp_path / "file.bin", chunks())


def test_file_checks_return_or_raise_a_named_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("n" * 300, "d/" * 3000, "file/under", "loop", "a\0b", "a\ud800b", "nothing"):
        assert not any(ask(tmp_path / name) for ask in (files.exists, files.is_file, files.is_dir))
    assert files.is_file(tmp_path / "file")
    assert files.is_dir(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(ImageError, match=r"file cannot be accessed: Permission denied"):
        files.is_file(tmp_path / "file", ImageError)


@pytest.mark.parametrize("letter", ["M", "é", "漢", "😀", "\udcff"])
def test_long_names_are_shortened_and_stay_different(tmp_path, letter):
    names = {fit_file_name(letter * 251 + end, "_overlay.png") for end in ("", letter, letter * 2)}
    assert len(names) == 3
    for name in names:
        (tmp_path / name).touch()
        assert name.endswith("_overlay.png")
    assert fit_file_name("scene", ".png") == "scene.png"


def test_an_output_folder_is_filled_when_all_files_are_complete(tmp_path):
    output = tmp_path / "out"

    def half():
        with temporary_folder_for(output) as work:
            (work / "a").touch()
            raise Text2SegError("bad")

    with pytest.raises(Text2SegError, match="bad"):
        half()
    assert os.listdir(tmp_path) == []
    output.mkdir()
    (output / "mine").touch()
    (output / "sub").mkdir()
    with temporary_folder_for(output) as work:
        (work / "sub").mkdir()
        (work / "sub" / "a").touch()
    assert sorted(str(each.relative_to(output)) for each in output.rglob("*")) == ["mine", "sub", "sub/a"]


def test_files_changed_by_hand_are_not_overwritten(tmp_path):
    folder = OutputFolder(tmp_path)
    folder.write([("a.json", [b"1"]), ("b\n.json", [b"1"])])
    folder.write([("a.json", [b"2"])])
    OutputFolder(tmp_path).write([("a.json", [b"3"]), ("b\n.json", [b"3"])])
    (tmp_path / "a.json").write_bytes(b"mended")
    (tmp_path / "mine.json").write_bytes(b"mine")
    for name, says in (("a.json", "was changed since text2seg"), ("mine.json", "was not written by text2seg")):
        with pytest.raises(OutputError, match=rf"{name} {says}.*move it away"):
            OutputFolder(tmp_path).write([("b\n.json", [b"4"]), (name, [b"4"])])
    with pytest.raises(OutputError, match="was not written by text2seg"):
        OutputFolder(tmp_path, overwrite=True).write([("mine.json", [b"4"])])
    assert (tmp_path / "a.json").read_bytes() == b"mended"
    assert (tmp_path / "b\n.json").read_bytes() == b"3"
    OutputFolder(tmp_path, overwrite=True).write([("a.json", [b"5"])])
    assert (tmp_path / "a.json").read_bytes() == b"5"


def test_earlier_files_of_the_same_command_are_discarded_unless_somebody_changed_them(tmp_path):
    OutputFolder(tmp_path, command="segment").write([(name, [b"1"]) for name in ("a", "masks/b\n", "masks/\\c", "d")])
    OutputFolder(tmp_path, command="search").write([("e", [b"1"])])
    (tmp_path / "a").write_bytes(b"mended")
    (tmp_path / "mine").write_bytes(b"1")
    (tmp_path / RECORD).open("ab").write(b"\n# text2seg segment\n" + sha256(b"1").hexdigest().encode() + b"  ../x\n")
    (tmp_path.parent / "x").write_bytes(b"1")
    folder = OutputFolder(tmp_path, command="segment")
    folder.write([("f", [b"2"])])
    OutputFolder(tmp_path, command="segment").write([("d", [b"3"])])  # another process
    folder.discard_earlier(keep={"f"})
    assert sorted(os.listdir(tmp_path)) == [RECORD, "a", "e", "f", "mine"]
    assert (tmp_path.parent / "x").exists()


def test_a_file_that_arrives_in_a_folder_while_it_is_discarded_is_kept(tmp_path, monkeypatch):
    folder = OutputFolder(tmp_path, command="segment")
    folder.write([("masks/a", [b"1"])])

    def remove(path):  # the file arrives after any look into the folder
        (path / "mine").write_bytes(b"mine")
        rmdir(path)

    rmdir = Path.rmdir
    monkeypatch.setattr(Path, "rmdir", remove)
    folder.discard_earlier()
    assert os.listdir(tmp_path / "masks") == ["mine"]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_the_record_is_read_by_sha256sum(tmp_path):
    OutputFolder(tmp_path, command="segment").write([("a", [b"1"]), ("masks/b", [b"1"])])
    done = subprocess.run(["sha256sum", "--check", RECORD], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["a: OK", "masks/b: OK"]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_sha256sum_finds_no_line_of_a_replaced_or_deleted_file(tmp_path):
    OutputFolder(tmp_path, command="segment").write([("a", [b"1"]), ("b", [b"1"]), ("c", [b"1"])])
    again = OutputFolder(tmp_path, command="segment")
    again.write([("a", [b"2"])])
    again.write([("a", [b"3"])])
    OutputFolder(tmp_path, command="segment").write([("a", [b"1"])])
    assert again.discard_earlier(keep={"a"}) == [tmp_path / "b", tmp_path / "c"]
    done = subprocess.run(["sha256sum", "--check", "--strict", RECORD], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["a: OK"])
    OutputFolder(tmp_path, command="segment").write([("a", [b"4"])])


def test_a_file_of_a_run_that_was_stopped_before_or_after_it_was_replaced_is_still_known(tmp_path):
    folder = OutputFolder(tmp_path)
    folder.write([("a", [b"1"])])
    folder._append_hash("a", sha256(b"2").hexdigest())  # stopped here, or after the file has its new bytes
    OutputFolder(tmp_path).check("a")
    (tmp_path / "a").write_bytes(b"2")
    OutputFolder(tmp_path).check("a")
    OutputFolder(tmp_path).write([("a", [b"3"])])
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(OutputError, match="was changed since"):
        OutputFolder(tmp_path).check("a")


def test_the_bytes_of_a_record_that_somebody_made_anew_are_kept(tmp_path):
    folder = OutputFolder(tmp_path)
    folder.write([("a", [b"1"])])
    (tmp_path / RECORD).write_text("z" * 200)
    folder.write([("a", [b"2"])])
    assert (tmp_path / RECORD).read_text().startswith("z" * 200)


def test_a_truncated_record_of_written_files_is_continued(tmp_path):
    OutputFolder(tmp_path).write([("a", [b"1"])])
    record = tmp_path / RECORD
    record.write_bytes(record.read_bytes() + b"0123456")
    OutputFolder(tmp_path).write([("a", [b"2"])])
    OutputFolder(tmp_path).write([("a", [b"3"])])
    record.write_bytes(record.read_bytes()[:-40])  # not known any more: refused, not guessed
    with pytest.raises(OutputError, match=r"was (changed since|not written)"):
        OutputFolder(tmp_path).write([("a", [b"4"])])
