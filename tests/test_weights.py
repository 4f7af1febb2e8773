"""Checkpoints: names, folder, status and hashes."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import platformdirs
import pytest

from text2seg import weights
from text2seg.config import ModelSettings
from text2seg.errors import CheckpointError
from text2seg.weights import Checkpoint, fetch, find, folder, known, pair, path_of, registry, statuses, store, verify

CONTENT = b"weights " * 100


@pytest.fixture(autouse=True)
def chosen_folder(tmp_path, monkeypatch):
    """Keep tests away from the user's own folders."""
    monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, str(tmp_path / "chosen"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "chosen"


@pytest.fixture
def published(chosen_folder, monkeypatch):
    """Register a checkpoint "vit_x" with the hash of CONTENT."""
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    checkpoint = Checkpoint(
        "vit_x", "sam", "sam_vit_x.pth", "http://127.0.0.1:9/sam_vit_x.pth", sha256[:6], len(CONTENT)
    )
    monkeypatch.setattr(registry, "CHECKPOINTS", (*registry.CHECKPOINTS, checkpoint))
    return checkpoint


def put(checkpoint: Checkpoint, content: bytes) -> Path:
    path = path_of(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class TestRegistry:
    def test_registry_has_every_clip_of_openai_with_url_and_hash(self):
        from clip.clip import _MODELS

        ours = {c.name: c for c in known("clip") if c.url}
        assert {name: c.url for name, c in ours.items()} == _MODELS
        assert all(c.url.split("/")[-2:] == [c.sha256, c.file_name] for c in ours.values())

    def test_registry_has_every_sam_of_the_segment_anything_package(self):
        from segment_anything import sam_model_registry

        ours = {c.name: c for c in known("sam") if c.url and c.name.startswith("vit_")}
        assert ours.keys() == sam_model_registry.keys() - {"default"}
        for name, checkpoint in ours.items():
            assert checkpoint.file_name == f"sam_{name}_{checkpoint.sha256}.pth"
            assert checkpoint.url == f"https://dl.fbaipublicfiles.com/segment_anything/{checkpoint.file_name}"

    def test_hashes_are_hexadecimal_and_names_and_files_differ(self):
        assert all(re.fullmatch("[0-9a-f]{64}|[0-9a-f]{6}", c.sha256) for c in known() if c.url and c.sha256)
        assert len({(c.kind, c.name) for c in known()}) == len({c.file_name for c in known()}) == len(known())

    def test_every_model_of_the_settings_is_a_pair_of_known_names(self):
        assert {"auto", *registry.PAIRS} == set(get_args(get_type_hints(ModelSettings)["model"]))
        for clip, sam in registry.PAIRS.values():
            assert find(clip, "clip").kind == "clip"
            assert find(sam, "sam").kind == "sam"

    def test_pair_gives_the_names_of_clip_and_sam(self):
        assert pair("demo") == ("demo", "demo")
        assert pair("large") == ("ViT-B/16", "vit_l")
        assert pair("large", clip="RN50") == ("RN50", "vit_l")
        assert pair("huge", clip=None, sam="mine.pth") == ("ViT-B/16", "mine.pth")
        with pytest.raises(
            CheckpointError, match=r"no model 'bse'.*auto, demo, base, light, large, huge.*Did you mean base\?"
        ):
            pair("bse")

    def test_auto_is_the_first_published_pair_on_this_machine_or_else_the_bundled_one(
        self, chosen_folder, monkeypatch, caplog
    ):
        chosen_folder.mkdir()
        monkeypatch.setattr(store, "SIZE_TOLERANCE", 1)

        def put(name, kind):
            (chosen_folder / find(name, kind).file_name).write_bytes(CONTENT)

        assert weights.choose_model("auto") == "demo"
        assert pair("auto", sam="mobile_sam") == ("demo", "mobile_sam")
        put("ViT-B/16", "clip")
        assert weights.choose_model("auto") == "demo"
        chosen = []
        for sam in ("vit_h", "vit_l", "mobile_sam", "vit_b"):
            put(sam, "sam")
            chosen.append(weights.choose_model("auto"))
        assert chosen == ["huge", "large", "light", "base"]
        assert pair("auto") == ("ViT-B/16", "vit_b")
        assert weights.choose_model("demo") == "demo"
        (chosen_folder / find("vit_b", "sam").file_name).write_bytes(b"")  # an empty file is no checkpoint
        assert not caplog.records
        assert weights.choose_model("auto") == "light"
        assert weights.choose_model("auto") == "light"
        assert caplog.text.count("base is not used, because") == 1
        assert "the file is empty; to replace it: text2seg checkpoints download vit_b" in caplog.text

    def test_checkpoints_are_frozen(self):
        with pytest.raises(AttributeError):
            find("vit_b", "sam").name = "other"


class TestFind:
    @pytest.mark.parametrize("name", ["vit-b/16", "ViT-B-16", "ViT-B16"])
    def test_unknown_name_suggests_the_closest_and_lists_all(self, name):
        with pytest.raises(CheckpointError, match=re.escape("Did you mean ViT-B/16?")) as error:
            find(name, "clip")
        assert all(c.name in str(error.value) for c in known("clip"))

    def test_no_suggestion_where_nothing_is_close(self):
        with pytest.raises(CheckpointError) as error:
            find("zzzzzz", "sam")
        assert "Did you mean" not in str(error.value)

    def test_name_of_the_other_kind_is_pointed_out(self):
        with pytest.raises(CheckpointError, match=r"no CLIP checkpoint 'vit_b' \(vit_b is a SAM\)"):
            find("vit_b", "clip")

    def test_demo_is_a_clip_and_a_sam(self):
        assert find("demo", "clip").file_name == "clip_demo.pt"
        assert find("demo", "sam").file_name == "sam_demo.pth"

    def test_an_existing_file_is_a_checkpoint(self, tmp_path, monkeypatch):
        (tmp_path / "no suffix").write_bytes(b"x")
        monkeypatch.chdir(tmp_path)
        checkpoint = find("no suffix", "clip")
        assert path_of(checkpoint) == tmp_path / "no suffix"
        assert fetch("no suffix", "clip") == tmp_path / "no suffix"
        assert (checkpoint.url, checkpoint.sha256) == (None, None)

    def test_home_folder_is_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        (tmp_path / "mine.pt").write_bytes(b"x")
        assert fetch("~/mine.pt", "clip") == tmp_path / "mine.pt"

    @pytest.mark.parametrize("name", ["gone.pt", "gone.pth", "sub/gone.safetensors", "gone.PT"])
    def test_a_missing_file_is_named_with_its_path(self, name):
        with pytest.raises(CheckpointError, match=re.escape(str(Path(name).absolute()))):
            find(name, "clip")

    def test_known_name_comes_before_a_file_of_that_name(self, tmp_path, monkeypatch):
        (tmp_path / "vit_b").write_bytes(b"x")
        monkeypatch.chdir(tmp_path)
        assert find("vit_b", "sam").url
        assert path_of(find("./vit_b", "sam")) == tmp_path / "vit_b"

    @pytest.mark.parametrize("name", ["", "~nobody-of-this-name/x", "a\0b"])
    def test_names_that_cannot_be_paths_are_refused(self, name):
        with pytest.raises(CheckpointError):
            find(name, "clip")


class TestFolder:
    def clone(self, tmp_path, monkeypatch, *files: str) -> Path:
        for name in files:
            (tmp_path / name).touch()
        monkeypatch.setattr(store, "PACKAGE", tmp_path / "text2seg")
        monkeypatch.delenv(store.ENVIRONMENT_VARIABLE)
        return tmp_path

    def test_environment_variable_comes_first(self, tmp_path, monkeypatch, chosen_folder):
        (tmp_path / "checkpoints").mkdir()
        self.clone(tmp_path, monkeypatch, "setup.cfg")
        monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, str(chosen_folder))
        assert folder() == chosen_folder

    def test_environment_variable_may_begin_with_the_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, "~/weights")
        assert folder() == tmp_path / "weights"

    @pytest.mark.parametrize("file", ["setup.cfg", "pyproject.toml"])
    def test_a_clone_has_its_own_checkpoints_folder(self, tmp_path, monkeypatch, file):
        (tmp_path / "checkpoints").mkdir()
        assert folder() != tmp_path / "checkpoints"
        self.clone(tmp_path, monkeypatch, file)
        assert folder() == tmp_path / "checkpoints"

    def test_an_empty_environment_variable_is_ignored(self, tmp_path, monkeypatch):
        (tmp_path / "checkpoints").mkdir()
        self.clone(tmp_path, monkeypatch, "setup.cfg")
        monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, "")
        assert folder() == tmp_path / "checkpoints"

    @pytest.mark.parametrize(("files", "folders"), [((), ("checkpoints",)), (("setup.cfg",), ())])
    def test_without_a_clone_the_cache_of_the_user_is_used(self, tmp_path, monkeypatch, files, folders):
        for name in folders:
            (tmp_path / name).mkdir()
        self.clone(tmp_path, monkeypatch, *files)
        assert folder() == platformdirs.user_cache_path("text2seg", appauthor=False) / "checkpoints"

    def test_demo_checkpoints_are_always_in_the_package(self):
        package = Path(weights.__file__).parent.parent
        assert path_of(find("demo", "clip")) == package / "demo" / "clip_demo.pt"
        assert path_of(find("demo", "sam")) == package / "demo" / "sam_demo.pth"


class TestVerify:
    def test_a_missing_checkpoint_has_status_missing(self, published):
        status = verify(published)
        assert (status.name, status.kind, status.status) == ("vit_x", "sam", "missing")
        assert status.path == path_of(published)

    @pytest.mark.parametrize("digits", [6, 64])
    def test_a_file_is_verified_by_a_full_or_shortened_hash(self, published, digits):
        full = hashlib.sha256(CONTENT).hexdigest()
        put(published, CONTENT)
        status = verify(replace(published, sha256=full[:digits]))
        assert status.status == "ok"
        assert full in status.detail

    @pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"?", b""])
    def test_a_damaged_checkpoint_has_status_damaged(self, published, content):
        put(published, content)
        assert verify(published).status == "damaged"

    def test_detail_of_a_wrong_hash_has_both_hashes_and_sizes(self, published):
        put(published, CONTENT[:-1])
        detail = verify(published).detail
        for part in (published.sha256, hashlib.sha256(CONTENT[:-1]).hexdigest(), "799 bytes of about 800"):
            assert part in detail

    def test_folder_in_place_of_the_file(self, published):
        path_of(published).mkdir(parents=True)
        assert verify(published).status == "damaged"

    def test_file_in_place_of_the_folder(self, published, chosen_folder):
        chosen_folder.touch()
        assert verify(published).status == "missing"

    def test_an_unreadable_checkpoint_has_status_damaged(self, published, monkeypatch):
        put(published, CONTENT)

        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(store, "sha256_of", refuse)
        status = verify(published)
        assert status.status == "damaged"
        assert "Permission denied" in status.detail

    def test_a_file_of_the_user_has_no_hash_to_check(self, tmp_path):
        (tmp_path / "mine.pt").write_bytes(CONTENT)
        status = verify(find(str(tmp_path / "mine.pt"), "clip"))
        assert status.status == "ok"
        assert "not known" in status.detail


class TestStatuses:
    def test_statuses_has_one_entry_for_each_known_checkpoint(self, published):
        found = statuses()
        assert [(s.name, s.kind) for s in found] == [(c.name, c.kind) for c in known()]
        assert {s.status for s in found if find(s.name, s.kind).url} == {"missing"}

    def test_statuses_name_the_size_of_a_download(self):
        (huge,) = (s for s in statuses() if s.name == "vit_h")
        assert huge.detail == "not downloaded; about 2,446 MiB"

    def test_statuses_check_hashes_only_on_request(self, published):
        put(published, CONTENT[::-1])
        assert statuses()[-1].status == "ok"
        assert "not checked" in statuses()[-1].detail
        assert statuses(check=True)[-1].status == "damaged"


class TestFetch:
    def test_a_present_file_is_not_downloaded(self, published):
        path = put(published, CONTENT)
        assert fetch("vit_x", "sam") == fetch("vit_x", "sam", check=True) == path

    @pytest.mark.parametrize("content", [b"", b"a page of HTML"])
    def test_a_damaged_file_is_refused_with_the_way_out(self, published, monkeypatch, content):
        monkeypatch.setattr(store, "MIB", 100)
        path = put(published, content)
        with pytest.raises(CheckpointError, match="to replace it: text2seg checkpoints download vit_x"):
            fetch("vit_x", "sam")
        assert path.read_bytes() == content
        assert statuses()[-1].status == "damaged"
        with pytest.raises(CheckpointError, match=r"sam_vit_x\.pth: "):
            store.check_intact(published)

    @pytest.mark.parametrize("content", [CONTENT[:-1], b""])
    def test_damaged_file_is_replaced(self, published, monkeypatch, content):
        path = put(published, content)
        asked = []

        def download(checkpoint, folder, *, replace, report):
            asked.append((checkpoint, folder, replace))
            return folder / checkpoint.file_name

        monkeypatch.setattr(store, "download", download)
        assert fetch("vit_x", "sam", check=True) == path
        assert asked == [(published, path.parent, True)]

    def test_demo_weights_missing_from_the_installation_raise(self, tmp_path, monkeypatch):
        monkeypatch.setattr(store, "PACKAGE", tmp_path)
        with pytest.raises(CheckpointError, match=r"clip_demo\.pt.*install text2seg again"):
            fetch("demo", "clip")

    def test_an_empty_file_of_the_user_is_refused(self, tmp_path):
        (tmp_path / "mine.pt").touch()
        with pytest.raises(CheckpointError, match=r"mine\.pt.*empty"):
            fetch(str(tmp_path / "mine.pt"), "clip")


def test_listing_checkpoints_does_not_import_torch():
    code = "import sys, text2seg.weights as c; c.statuses(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
