"""The models panel: real downloads from a server on this machine, and other models for everyone."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import gradio as gr
import pytest
from app_builders import CountingModels
from checkpoint_builders import serving

from text2seg.app.messages import alert
from text2seg.app.model_pool import ModelPool
from text2seg.app.models_panel import ModelsPanel, chip, is_here, models_now, name_of, weights_table
from text2seg.app.settings import AppSettings
from text2seg.errors import CheckpointError
from text2seg.model_card import NO_CARD
from text2seg.weights import folder, registry, store

CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def published(monkeypatch):
    """All weights are the same few bytes on a server of our own."""
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(CONTENT) as server:
        ours = tuple(
            replace(each, url=server.url, sha256=SHA256) if each.url else each for each in registry.CHECKPOINTS
        )
        monkeypatch.setattr(registry, "CHECKPOINTS", ours)
        monkeypatch.setattr(store, "SIZE_TOLERANCE", 1)
        yield server


class NamedModels(CountingModels):
    def __init__(self, clip: str, sam: str) -> None:
        super().__init__()
        self._origin = {"clip": {"name": clip}, "sam": {"name": sam}}
        self.card = NO_CARD
        self.names = f"CLIP {clip} with SAM {sam}"

    def provenance(self, settings=None):
        return self._origin


def panel(load=None) -> ModelsPanel:
    models = NamedModels("demo", "demo")
    model_pool = ModelPool(models, AppSettings(), load or (lambda name: NamedModels("ViT-B/16", f"of {name}")))
    with gr.Blocks(analytics_enabled=False):
        return ModelsPanel(model_pool)


class Steps:
    """In place of Gradio's progress bar; may do something at a step."""

    def __init__(self, then=lambda count: None) -> None:
        self.told: list[tuple] = []
        self.then = then

    def __call__(self, progress, desc="", unit="") -> None:
        self.told.append((desc, progress))
        self.then(len(self.told))


def test_both_weights_of_a_pair_are_downloaded_with_progress(published):
    steps = Steps()
    said, table = panel()._download("base", steps)
    assert "hashes are correct" in said
    assert ">yes</td>" in table
    assert {path.name for path in folder().glob("[!.]*")} == {"ViT-B-16.pt", "sam_vit_b_01ec64.pth"}
    for name in ("ViT-B/16", "vit_b"):
        parts = [told[1][0] for told in steps.told if told[0].startswith(f"{name}, in MiB")]
        assert parts == sorted(parts)
        assert parts[-1] == 2


def test_existing_weights_are_not_downloaded_again(published):
    panel()._download("base", Steps())
    before = len(published.ranges)
    panel()._download("base", Steps())
    assert len(published.ranges) == before


def test_a_stopped_download_resumes(published):
    ours = panel()

    def stop(count: int) -> None:
        if count == 3:
            ours._stop.set()

    begun, (said, _, stopped) = ours._downloading("base", Steps(stop))
    assert "Stopped" in said
    assert (begun[2].interactive, stopped.interactive) == (True, False)
    (part,) = folder().glob("*.part")
    had = part.stat().st_size
    assert 0 < had < len(CONTENT)
    _, (said, *_) = ours._downloading("base", Steps())
    assert "hashes are correct" in said
    assert published.ranges[1] == f"bytes={had}-"


def test_a_failed_download_shows_the_whole_message(published):
    published.shutdown()
    published.server_close()
    said, table = panel()._download("large", Steps())
    assert 'role="alert"' in said
    assert "cannot reach the server" in said
    assert "by other means and put it in" in said
    assert ">no</td>" in table


def test_switching_models_is_for_everyone(published):
    ours = panel()
    ours._download("base", Steps())
    said, panel_now, now, _ = ours._use("base", Steps())
    assert "Everyone" in said
    assert "CLIP ViT-B/16 with SAM of base" in now
    assert panel_now.label == "Model: ViT-B/16 + of base"
    assert name_of(ours._model_pool.models) == "CLIP ViT-B/16 with SAM of base"


def test_models_that_cannot_be_loaded_change_nothing(published):
    def load(name):
        raise CheckpointError("these are <no> weights")

    ours = panel(load)
    ours._download("base", Steps())
    said, panel_now, now, _ = ours._use("base", Steps())
    assert "These are &lt;no&gt; weights" in said
    assert "demo" in now
    assert panel_now.label == "Model: demo"
    assert name_of(ours._model_pool.models) == "CLIP demo with SAM demo"


def test_models_in_use_stay_as_they_are(published):
    ours = panel()
    models, since = ours._model_pool.models, ours._model_pool.since
    said, *_ = ours._use("demo", Steps())
    assert "demo is in use already." in said
    assert (ours._model_pool.models, ours._model_pool.since) == (models, since)


def test_missing_weights_are_not_used(published):
    said, *_ = panel()._use("huge", Steps())
    assert "ViT-B/16 and vit_h of huge: not on this machine yet" in said


def test_the_table_says_which_weights_are_missing(published):
    panel()._download("base", Steps())
    (folder() / "sam_vit_b_01ec64.pth").unlink()
    assert ">SAM vit_b (358 MiB) is missing; press “Download”</td>" in weights_table()
    assert ">SAM vit_l (1,192 MiB) is missing; press “Download”</td>" in weights_table()


def test_weights_of_a_wrong_size_are_damaged(published, monkeypatch):
    panel()._download("base", Steps())
    assert is_here("base")
    monkeypatch.setattr(store, "SIZE_TOLERANCE", 0.01)
    assert not is_here("base")
    lacking = "CLIP ViT-B/16 (335 MiB) is damaged, SAM vit_b (358 MiB) is damaged; press “Download”"
    assert f">{lacking}</td>" in weights_table()
    said, *_ = panel()._use("base", Steps())
    assert "ViT-B/16 and vit_b of base: not on this machine yet, or damaged" in said


def test_the_panel_says_since_when_the_models_are_in_use(published):
    ours = panel()
    before = ours._model_pool.since
    assert f"in use since {before:%d %B, %H:%M}" in ours._now()[1]
    ours._download("base", Steps())
    ours._use("base", Steps())
    assert ours._model_pool.since > before


def test_the_panel_says_what_the_models_know(demo):
    assert "109 drawn things and nothing else" in models_now(demo)
    assert "fire engine" in models_now(demo)
    assert "Presence is calibrated: below 0.50 a thing counts as not found." in models_now(demo)
    other = models_now(NamedModels("ViT-B/16", "vit_b"))
    assert "anything in words" in other
    assert "Presence is not calibrated." in other


@pytest.mark.parametrize(
    ("clip", "sam", "label"),
    [("demo", "demo", "demo"), ("ViT-B/16", "vit_b", "base"), ("ViT-B/16", "my.pt", "ViT-B/16 + my.pt")],
)
def test_the_chip_names_the_pair_or_both_models(clip, sam, label):
    assert chip(NamedModels(clip, sam)) == f"Model: {label}"


def test_the_table_marks_what_is_in_use():
    table = weights_table(NamedModels("ViT-B/16", "mobile_sam"))
    assert ">light, in use</td>" in table
    assert table.count("in use") == 1
    assert ">bundled</td>" in table
    assert "in use" not in weights_table(NamedModels("my.pt", "mobile_sam"))


def test_a_web_address_in_an_error_is_a_link():
    said = alert("Cannot reach https://example.org/a.pt?b=1&c=2. <b>Copy</b> it.")
    assert '<a href="https://example.org/a.pt?b=1&amp;c=2" target="_blank" rel="noopener">' in said
    assert "</a>. &lt;b&gt;" in said


def test_the_table_has_every_published_pair():
    for words in ("base", "light", "large", "huge", "2,446 MiB", "MIT (OpenAI), Apache 2.0 (Meta)", "(MobileSAM)"):
        assert words in weights_table()
