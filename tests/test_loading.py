"""Models that cannot run with the settings are refused by name before a download."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from sam2_builders import random_weights, small_config

from text2seg import Text2Seg, demo, loading
from text2seg.cli import main
from text2seg.errors import SettingsError

SCENE = Path(demo.__file__).parent / "scenes" / "new-scenes" / "images" / "scene_0019.jpg"

FETCHED = "something was fetched"


@pytest.fixture
def no_weights(monkeypatch):
    def fetch(name, kind):
        raise AssertionError(FETCHED)

    monkeypatch.setattr(loading, "fetch", fetch)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("sam", ["sam2.1_hiera_tiny", "facebook/sam2.1-hiera-large"])
def test_sam_2_with_compile_or_graphs_is_refused_before_a_download(sam, tmp_path):
    with pytest.raises(SettingsError, match=r"sam2\.1_hiera_.* is a SAM 2.*leave --compile out or choose a SAM"):
        Text2Seg.load(sam=sam, device="cpu", compile=True)
    with pytest.raises(SettingsError, match=r"sam2\.1_hiera_.* is a SAM 2.*use --runtime torch"):
        Text2Seg.load(sam=sam, device="cpu", graphs=tmp_path)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("sam", ["mobile_sam", "vit_b"])
def test_sam_with_compile_is_downloaded(sam):
    with pytest.raises(AssertionError, match=FETCHED):
        Text2Seg.load(sam=sam, device="cpu", compile=True)


@pytest.mark.usefixtures("no_weights")
def test_the_command_refuses_sam_2_with_compile_in_one_line(capsys):
    assert main(["segment", str(SCENE), "--query", "dog", "--sam", "sam2.1_hiera_tiny", "--compile"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "leave --compile out" in line


def test_a_file_of_sam_2_with_compile_is_refused_when_loaded(tmp_path):
    weights = {name: tensor.clone() for name, tensor in random_weights(small_config()).items()}
    save_file(weights, tmp_path / "sam2.1_hiera_tiny.safetensors")
    with pytest.raises(SettingsError, match="SAM 2 runs uncompiled only"):
        Text2Seg.load(sam=str(tmp_path / "sam2.1_hiera_tiny.safetensors"), device="cpu", compile=True)
