"""Downloads from a faulty server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_builders import serving

from text2seg.errors import CheckpointError
from text2seg.weights import Checkpoint, fetch, registry, store
from text2seg.weights import download as download_module
from text2seg.weights.download import download

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download_module, "BACKOFF_SECONDS", (0, 0, 0))
    monkeypatch.setattr(download_module, "TIMEOUT_SECONDS", 2)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server():
    with serving(CONTENT) as running:
        yield running


@pytest.fixture
def checkpoint(server):
    return Checkpoint("weights", "clip", "weights.pt", server.url, SHA256, len(CONTENT))


def part(folder: Path, content: bytes) -> Path:
    path = folder / "weights.pt.part"
    path.write_bytes(content)
    return path


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def test_a_file_is_downloaded_into_a_new_folder(checkpoint, server, tmp_path):
    path = download(checkpoint, tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert visible(path.parent) == ["weights.pt"]
    assert server.ranges == [None]


def test_a_hash_of_six_digits_is_checked(checkpoint, tmp_path):
    assert download(replace(checkpoint, sha256=SHA256[:6]), tmp_path).read_bytes() == CONTENT


def test_progress_on_stderr_only(checkpoint, tmp_path, capsys):
    download(checkpoint, tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "weights.pt" in printed.err
    assert "100%" in printed.err


def test_a_response_without_a_length_is_downloaded(checkpoint, server, tmp_path):
    server.tells_length = False
    assert download(checkpoint, tmp_path).read_bytes() == CONTENT


def test_a_present_file_is_kept_unless_replace_is_set(checkpoint, server, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"here")
    assert download(checkpoint, tmp_path).read_bytes() == b"here"
    assert server.ranges == []
    assert download(checkpoint, tmp_path, replace=True).read_bytes() == CONTENT


def test_fetch_downloads_into_the_checkpoints_folder(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, str(tmp_path / "store"))
    monkeypatch.setattr(registry, "CHECKPOINTS", (checkpoint,))
    path = fetch("weights", "clip")
    assert path == tmp_path / "store" / "weights.pt"
    path.write_bytes(CONTENT[::-1])
    assert fetch("weights", "clip", check=True).read_bytes() == CONTENT


class TestResume:
    def test_a_dropped_connection_is_resumed(self, checkpoint, server, tmp_path):
        server.cuts = [100_000, 50_000]
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]

    def test_any_number_of_drops_is_resumed_while_bytes_arrive(self, checkpoint, server, tmp_path):
        server.cuts = [20_000] * 10
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert len(server.ranges) == 11

    def test_a_connection_without_progress_is_given_up(self, checkpoint, server, tmp_path):
        server.cuts = [1000] + [0] * 10
        with pytest.raises(CheckpointError, match="1,000 of 300,000") as error:
            download(checkpoint, tmp_path)
        for word in ("weights.pt", checkpoint.url, str(tmp_path)):
            assert word in str(error.value)
        assert visible(tmp_path) == ["weights.pt.part"]
        server.cuts = []
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert server.ranges[-1] == "bytes=1000-"

    def test_a_partial_file_of_an_earlier_run_is_resumed(self, checkpoint, server, tmp_path):
        part(tmp_path, CONTENT[:123_456])
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert server.ranges == ["bytes=123456-"]

    def test_a_complete_partial_file_is_used(self, checkpoint, server, tmp_path):
        part(tmp_path, CONTENT)
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert server.ranges == ["bytes=300000-"]

    def test_a_partial_file_that_is_too_long_is_discarded(self, checkpoint, server, tmp_path):
        part(tmp_path, CONTENT + b"more")
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert server.ranges == ["bytes=300004-", None]

    def test_server_without_ranges_starts_again(self, checkpoint, server, tmp_path):
        server.knows_ranges = False
        server.cuts = [100_000]
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert server.ranges == [None, "bytes=100000-"]

    def test_server_without_ranges_that_always_drops_is_given_up(self, checkpoint, server, tmp_path):
        server.knows_ranges = False
        server.cuts = [100_000] * 20
        with pytest.raises(CheckpointError, match="100,000 of 300,000"):
            download(checkpoint, tmp_path)

    def test_a_wrong_range_from_the_server_restarts_the_download(self, checkpoint, server, tmp_path):
        server.shift = 5
        part(tmp_path, CONTENT[:1000])
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert server.ranges == ["bytes=1000-", None]

    def test_ctrl_c_keeps_the_partial_file(self, checkpoint, server, tmp_path, monkeypatch):
        read = download_module._read
        chunks = []

        def interrupted(response):
            if sum(map(len, chunks)) >= 100_000:
                raise KeyboardInterrupt
            chunks.append(read(response))
            return chunks[-1]

        with monkeypatch.context() as patch:
            patch.setattr(download_module, "_read", interrupted)
            patch.setattr(download_module, "CHUNK", 50_000)
            with pytest.raises(KeyboardInterrupt):
                download(checkpoint, tmp_path)
        kept = (tmp_path / "weights.pt.part").read_bytes()
        assert kept == b"".join(chunks) == CONTENT[: len(kept)]
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert server.ranges == [None, f"bytes={len(kept)}-"]


class TestFailures:
    def test_a_wrong_hash_deletes_the_partial_file_and_names_both_hashes(self, checkpoint, tmp_path):
        with pytest.raises(CheckpointError, match=f"{SHA256}.*expected {'0' * 64}"):
            download(replace(checkpoint, sha256="0" * 64), tmp_path)
        assert visible(tmp_path) == []

    def test_a_wrong_partial_file_of_an_earlier_run_fails_the_hash(self, checkpoint, server, tmp_path):
        part(tmp_path, b"?" * 1000)
        with pytest.raises(CheckpointError, match="sha256"):
            download(checkpoint, tmp_path)
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert server.ranges == ["bytes=1000-", None]

    @pytest.mark.parametrize("code", [403, 404, 410])
    def test_a_missing_file_on_the_server_raises(self, checkpoint, server, tmp_path, code):
        server.statuses = [code]
        with pytest.raises(CheckpointError, match=str(code)) as error:
            download(checkpoint, tmp_path)
        for word in ("weights.pt", checkpoint.url, str(tmp_path)):
            assert word in str(error.value)
        assert len(server.ranges) == 1

    def test_a_busy_server_is_retried(self, checkpoint, server, tmp_path):
        server.statuses = [503, 429, 500]
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT

    def test_a_server_that_stays_busy_is_given_up(self, checkpoint, server, tmp_path):
        server.statuses = [503] * 10
        with pytest.raises(CheckpointError, match="503"):
            download(checkpoint, tmp_path)

    def test_offline_fails_at_once_with_a_remedy(self, checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(download_module, "BACKOFF_SECONDS", (60,))
        offline = replace(checkpoint, url=f"http://127.0.0.1:{closed_port()}/weights.pt")
        with pytest.raises(CheckpointError, match="cannot reach the server") as error:
            download(offline, tmp_path)
        for word in ("weights.pt", offline.url, str(tmp_path)):
            assert word in str(error.value)

    def test_an_unknown_host_raises(self, checkpoint, tmp_path):
        with pytest.raises(CheckpointError, match="cannot reach the server"):
            download(replace(checkpoint, url="http://weights.invalid/weights.pt"), tmp_path)

    def test_a_network_that_fails_and_returns_is_resumed(self, checkpoint, server, tmp_path, monkeypatch):
        server.cuts = [100_000]
        request, asked = download_module._request, []

        def flaky(url, start):
            asked.append(start)
            if len(asked) in (2, 3):
                raise download_module._UnreachableError("no network")
            return request(url, start)

        monkeypatch.setattr(download_module, "_request", flaky)
        assert download(checkpoint, tmp_path).read_bytes() == CONTENT
        assert asked == [0, 100_000, 100_000, 100_000]

    def test_a_silent_server_times_out(self, checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(download_module, "TIMEOUT_SECONDS", 0.05)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(8)
            mute = replace(checkpoint, url=f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pt")
            with pytest.raises(CheckpointError, match=r"timed out|Timeout"):
                download(mute, tmp_path)

    def test_file_in_place_of_the_folder(self, checkpoint, tmp_path):
        (tmp_path / "store").touch()
        with pytest.raises(CheckpointError, match=r"cannot write.*store.*TEXT2SEG_CHECKPOINTS"):
            download(checkpoint, tmp_path / "store")

    @pytest.mark.parametrize("function", ["mkdir", "open"])
    def test_no_write_permission(self, checkpoint, tmp_path, monkeypatch, function):
        def refuse(self, *args, **kwargs):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, function, refuse)
        with pytest.raises(CheckpointError, match=r"Permission denied.*TEXT2SEG_CHECKPOINTS"):
            download(checkpoint, tmp_path / "store")

    def test_full_disk_is_not_reported_as_a_network_failure(self, checkpoint, server, tmp_path, monkeypatch):
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(download_module, "_append", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            download(checkpoint, tmp_path)
        assert len(server.ranges) == 1

    def test_an_unpublished_checkpoint_is_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match="not published"):
            download(Checkpoint("demo", "sam", "sam_demo.pth"), tmp_path)


def test_concurrent_downloads_share_one_request(checkpoint, server, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(download(checkpoint, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in results] == [True] * 4
    assert server.ranges == [None]
    assert visible(tmp_path) == ["weights.pt"]


@pytest.mark.parametrize(
    ("asked", "told", "follows"), [("https", "http", False), ("https", "https", True), ("http", "http", True)]
)
def test_a_redirect_does_not_leave_https(asked, told, follows):
    request = urllib.request.Request(f"{asked}://example.org/weights.pt")
    arguments = (request, io.BytesIO(), 302, "Found", {}, f"{told}://example.org/other.pt")
    if follows:
        assert download_module._SafeRedirects().redirect_request(*arguments).full_url == arguments[-1]
    else:
        with pytest.raises(urllib.error.HTTPError, match="from https to http"):
            download_module._SafeRedirects().redirect_request(*arguments)
