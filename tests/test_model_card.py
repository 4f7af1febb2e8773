"""Model cards: schema, lookup by hash, errors, what the pipeline does with and without one, words that a vocabulary
lacks, and photographs for a model of drawings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import builders
import numpy as np
import pytest
from builders import HW

from text2seg import Text2Seg, weights
from text2seg.cli import main
from text2seg.cli.common import say_own_card
from text2seg.coco.provenance import models_in
from text2seg.config import ModelSettings
from text2seg.errors import CheckpointError, OutputError
from text2seg.io.images import load_image
from text2seg.labelling.journal import Journal
from text2seg.model_card import (
    BUNDLED_CARDS,
    NO_CARD,
    ModelCard,
    card_for,
    card_of,
    cards_in,
    find_card,
    is_photograph,
    read_card,
    user_cards,
)
from text2seg.records import Image

CLIP, SAM, OTHER = ("a" * 64, "b" * 64, "c" * 64)
PACKAGE = Path(weights.__file__).parents[1]
SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes"
PHOTOS = Path(__file__).parents[2] / "shared" / "photos" / "images"
SCENE = "text2seg/demo/scenes/new-scenes/images/scene_0001.jpg"
SCENE_FILE = str(Path(SCENE).absolute())
PRESENCE = {"distractors": ["sky"], "slope": 0.5, "offset": 1.0, "threshold": 0.4}
CHOICE = {"sam": 1.0, "separation": 0.5, "constant": -0.2, "quality": 0.3}


def made(**more) -> ModelCard:
    files = {"clip": {"name": "c", "sha256": CLIP}, "sam": {"name": "s", "sha256": SAM}}
    return ModelCard.model_validate({"name": "mine", **files, "presence": PRESENCE, "choice": CHOICE, **more})


def put(card: ModelCard, name: str = "mine.json") -> Path:
    path = user_cards() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(card.to_json())
    return path


def test_a_written_card_is_read_back_and_cannot_be_changed():
    card = made(vocabulary={"dog": ["dog", "hound"]}, things="animals")
    assert read_card(put(card)) == card
    assert read_card(put(card)).sha256 == card.sha256 != made().sha256
    with pytest.raises(ValueError, match="frozen"):
        card.input_size = 3


def test_a_card_of_the_first_format_is_read_and_has_no_region_classification(tmp_path):
    content = json.loads(made().to_json()) | {"format": "text2seg model card 1"}
    (tmp_path / "card.json").write_text(json.dumps(content))
    card = read_card(tmp_path / "card.json")
    assert card.region_classification is None
    assert card.default_presence("surgery", None, "regions") is None
    assert card.default_presence("surgery", None) == 0.4


def test_region_classification_holds_for_its_features_and_its_sam():
    regions = {"features": "values", "slope": 2, "offset": 1, "threshold": 0.5, "something": 0.3}
    regions["choice"] = {**CHOICE, "evidence": 0.1}
    card = made(region_classification=regions)
    put(card)
    assert find_card(CLIP, SAM).default_presence("surgery", None, "regions") == 0.5
    assert card.default_presence("surgery", None, "regions", "values") == 0.5
    assert card.default_presence("surgery", None, "regions", "patches") is None
    assert card.default_presence("raw", None, "regions") is None
    of_clip = find_card(CLIP, OTHER).region_classification
    assert of_clip.choice is None
    assert of_clip.threshold == 0.5


def test_cards_are_found_by_hash_those_of_the_user_first():
    put(made())
    assert find_card(CLIP, SAM).name == "mine"
    assert find_card(OTHER, SAM) == NO_CARD
    demo = card_of("demo", "demo")
    assert demo.name == "demo"
    put(demo.model_copy(update={"name": "again", "presence": made().presence}))
    assert card_of("demo", "demo").name == "again"


def test_with_another_sam_a_card_keeps_what_it_says_about_the_clip():
    put(made(input_size=100, vocabulary={"dog": ["dog"]}))
    card = find_card(CLIP, OTHER)
    assert (card.input_size, card.closed_vocabulary.names, card.choice) == (100, ("dog",), None)
    assert card.presence == made().presence


def test_with_another_sam_a_card_does_not_go_by_the_name_of_its_pair():
    put(made(name="ViT-B/16 with vit_b", clip={"name": "ViT-B/16", "sha256": CLIP}))
    card = find_card(CLIP, OTHER)
    assert (card.name, card.sam, card.provenance()["name"]) == ("ViT-B/16", None, "ViT-B/16")
    assert card.facts()["card"] == "ViT-B/16, only what holds for this CLIP with any SAM"
    assert find_card(CLIP, SAM).facts()["card"] == "ViT-B/16 with vit_b"


def test_a_file_that_is_no_card_is_named_and_the_others_are_used(caplog):
    put(made())
    (user_cards() / "broken.json").write_text("{")
    assert find_card(CLIP, SAM).name == "mine"
    find_card(CLIP, SAM)
    assert caplog.text.count("broken.json is not a model card: it ends too early, in line 1") == 1
    assert len([*cards_in(user_cards())]) == 1


def test_a_job_whose_weights_got_another_card_names_both_cards_and_the_way_back(tmp_path):
    journal, mine, other = tmp_path / "a.json.journal", made(), made(name="other")
    place = user_cards() / "mine.json"
    put(mine, "mine.json")
    for old, new, says in (
        (None, mine, rf"a job with no model card, but .* the model card mine \({place}\).* move {place} away"),
        (mine, None, rf"a job with the model card mine \({place}\), but .* have no model card.* add --card {place}"),
        (other, mine, r"the model card other \(its file is gone\), but.* choose another --output"),
    ):
        Journal.open(journal, {"card": old and old.provenance()}, restart=True).close()
        with pytest.raises(OutputError, match=says):
            Journal.open(journal, {"card": new and new.provenance()})


def test_a_run_on_a_card_of_the_user_names_it(capsys):
    put(made())
    say_own_card(made().sha256, ModelSettings())
    say_own_card(made(name="other").sha256, ModelSettings())
    say_own_card(made().sha256, ModelSettings(card=Path("given.json")))
    first, second = capsys.readouterr().err.splitlines()
    assert f"with your model card {next(iter(cards_in(user_cards())))[0]}" in first
    assert second == "text2seg: with the model card given.json"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda card: card["presence"].update(threshold=1.5), "its entry presence.threshold has the wrong value 1.5"),
        (lambda card: card["clip"].update(sha256="12"), "clip.sha256"),
        (lambda card: card["clip"].pop("sha256"), "it lacks the entry clip.sha256"),
        (lambda card: card.update(speed=1), "it has the unknown entry speed"),
        (lambda card: card.update(format="text2seg model card 9"), "its format is not 'text2seg model card 2'"),
        (lambda card: card["choice"].update(sam="NaN"), "choice.sam"),
        (lambda card: card.pop("sam"), "which CLIP and SAM"),
    ],
)
def test_a_malformed_card_is_an_error_that_names_file_and_field(tmp_path, change, says):
    content = json.loads(made().to_json())
    change(content)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=re.escape(f"{path} is not a model card: ") + f".*{re.escape(says)}"):
        read_card(path)


def test_a_given_card_must_be_for_the_loaded_weights(tmp_path, capsys):
    path = tmp_path / "card.json"
    path.write_bytes(made().to_json())
    assert card_for(CLIP, SAM, path) == made()
    with pytest.raises(CheckpointError, match=rf"the card of other weights: its SAM is s .*{SAM}.*{OTHER}"):
        card_for(CLIP, OTHER, path)
    command = ["segment", SCENE, "--query", "sheep", "--model", "demo", "--output", str(tmp_path / "out")]
    assert main([*command, "--card", str(path)]) == 1
    assert "the card of other weights: its CLIP is c" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_default_presence_holds_for_surgery_at_the_size_of_the_card():
    card = made(input_size=384)
    assert card.default_presence("surgery", None) == card.default_presence("surgery", 384) == 0.4
    assert card.default_presence("surgery", 512) is card.default_presence("raw", None) is None
    assert NO_CARD.default_presence("surgery", None) is None


def test_show_prints_the_card(capsys):
    assert main(["checkpoints", "show", "demo"]) == 0
    shown = capsys.readouterr().out
    assert "presence: calibrated, not found below 0.50" in shown
    assert "It knows 109 drawn things: airplane, " in shown
    on = read_card(BUNDLED_CARDS / "demo.json").calibrated_on
    assert f"calibrated on: {on.data}: {on.images} images, {on.date}, text2seg {on.version}" in shown
    assert main(["checkpoints", "show", "base"]) == 0
    shown = capsys.readouterr().out
    assert "presence: not calibrated" in shown
    assert "text2seg calibrate coco --model base" in shown


def test_only_the_registry_and_the_folder_of_the_demo_know_its_behaviour():
    """Numbers and words about the demo stand in its card; other files may name the registry entry or the scenes."""
    knows = re.compile(r"the demo (CLIP|SAM|model) |demo (world|scenes)\b(?! that)|things\.json", re.IGNORECASE)
    allowed = {"demo", "weights"}
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in allowed:
            for line in path.read_text(encoding="utf-8").splitlines():
                assert not knows.search(line), f"{path}: {line}"


def test_pages_and_numbers_name_the_weights_that_were_at_work(tmp_path, monkeypatch):
    folder = Path(SCENE).absolute().parents[1]
    monkeypatch.chdir(tmp_path)
    label = ["label", str(folder), "--query", "sheep", "--limit", "2", "--model", "demo", "--output", "labels.json"]
    assert main(label) == 0
    assert main(["report", "labels.json", "--output", "review.html"]) == 0
    scores = ["--match", "file-name", "--report", "scores.html", "--json", "scores.json"]
    assert main(["evaluate", str(folder / "dataset.json"), "labels.json", *scores]) == 0
    says = "CLIP demo with SAM demo; presence calibrated"
    assert f"Made by {says}." in Path("review.html").read_text()
    assert f"Predictions by {says}" in Path("scores.html").read_text()
    assert json.loads(Path("scores.json").read_text())["models"] == says
    assert main(["explain", "similarity-table", SCENE_FILE, "--text", "sheep", "--model", "demo"]) == 0
    found = Path("outputs/explain/similarity-table.json")
    assert json.loads(found.read_text())["models"] == "CLIP demo with SAM demo"


@pytest.mark.parametrize("odd", [None, 3, {"clip": 3}, {"clip": {"name": ["x"]}, "presence": {"calibrated": "yes"}}])
def test_odd_records_of_models_are_left_out(odd):
    assert models_in({"info": {"provenance": odd}}) == ""


@pytest.fixture(scope="module")
def bare(demo) -> Text2Seg:
    """The demo model without what was fitted to drawings."""
    return demo.with_card(demo.card.uncalibrated())


def test_without_calibration_nothing_is_not_found_and_the_result_says_so(bare, demo):
    known, unknown = demo.segment(SCENE, ["sheep", "koala"]), bare.segment(SCENE, ["sheep", "koala"])
    assert known.verdict("koala").startswith("not found (0.")
    assert unknown.of("koala")
    assert unknown.thresholds == (0.0, 0.0)
    assert known.maps.presence_of("sheep").count("not calibrated") == 0
    assert unknown.maps.presence_of("sheep").endswith(", not calibrated")
    recorded = bare.provenance()
    assert recorded["presence"]["calibrated"] is False
    assert "text2seg calibrate calibrates it" in recorded["presence"]["note"]
    assert demo.provenance()["presence"] == {"calibrated": True, "threshold": 0.5}
    assert demo.provenance()["card"] == {"name": "demo", "sha256": demo.card.sha256}


def test_each_thing_of_a_kind_is_its_own_segment_without_calibration_but_not_with_reference(bare):
    from text2seg import PointSettings, Settings

    image = builders.image((160, 320))
    pixels = np.full((160, 320, 3), 255, np.uint8)
    with_two = bare.open(SCENE).image.pixels
    assert image.hw == (160, 320)
    pixels = np.concatenate([with_two, with_two], axis=1)
    name = max(demo_names(bare, with_two), key=lambda pair: pair[1])[0]
    assert len(bare.segment(pixels, [name]).segments) >= 2
    assert len(bare.segment(pixels, [name], Settings(points=PointSettings(method="reference"))).segments) == 1


def demo_names(models, pixels):
    maps = models.segment(pixels, list(models.closed_vocabulary.names[:40])).maps
    return list(zip(maps.queries, maps.presence.tolist(), strict=True))


def test_a_job_does_not_resume_under_another_card(demo):
    from text2seg.labelling.engine import model_identity

    other = demo.with_card(demo.card.model_copy(update={"name": "other"}))
    assert model_identity(other) != model_identity(demo)


def natural(hw: tuple[int, int] = (240, 320), *, colourfulness: float = 0.0, seed: int = 0) -> Image:
    """Noise with the spectrum of photographs (amplitude 1 / frequency), grey or with a strong colour."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(hw[0])[:, None], np.fft.fftfreq(hw[1])[None])
    frequency[0, 0] = 1
    field = np.fft.ifft2(np.exp(2j * np.pi * rng.random(hw)) / frequency).real
    grey = (field - field.mean()) / field.std() * 40 + 128
    colours = np.stack([grey + colourfulness / 2, grey, grey - colourfulness / 2], -1)
    return Image(colours.clip(0, 255).astype(np.uint8))


def drawing(hw: tuple[int, int] = (240, 320)) -> Image:
    """A grey disc and black lines on white paper: pale as a photograph, but smooth."""
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    pixels = np.full((*hw, 3), 255, np.uint8)
    pixels[np.hypot(rows - 120, columns - 150) < 70] = 140
    pixels[::40] = 0
    return Image(pixels)


class TestPhotographs:
    def test_no_bundled_scene_is_taken_for_a_photograph(self):
        paths = sorted(SCENES.glob("*/images/*.jpg"))
        assert len(paths) == 48
        assert [path.name for path in paths if is_photograph(load_image(path))] == []

    def test_most_photographs_are_recognised(self):
        paths = sorted(PHOTOS.glob("*.jpg"))
        if not paths:
            pytest.skip("there are no photographs here")
        assert np.mean([is_photograph(load_image(path)) for path in paths]) >= 0.9

    @pytest.mark.parametrize("hw", [(240, 320), (1500, 900), (150, 97)])
    @pytest.mark.parametrize("seed", range(3))
    def test_natural_noise_counts_as_a_photograph(self, hw, seed):
        assert is_photograph(natural(hw, seed=seed))

    def test_strong_colours_and_smooth_areas_do_not(self):
        assert not is_photograph(natural(colourfulness=120))
        assert not is_photograph(drawing())
        assert not is_photograph(Image(np.zeros((*HW, 3), np.uint8)))
        assert not is_photograph(Image(np.zeros((1, 1, 3), np.uint8)))

    def test_the_demo_model_warns_once_and_names_the_image(self, demo, caplog):
        photographs = [Image(natural(seed=seed).pixels, f"{seed}.jpg", seed + 1) for seed in range(2)]
        models = Text2Seg(demo.clip, demo.sam, input_size=64, card=demo.card)
        models.segment(drawing(), ["sheep"])
        assert not caplog.messages
        models.segment_many(photographs, ["sheep"])
        (message,) = caplog.messages
        assert message.startswith("0.jpg looks like a photograph; further ones are not named. The demo model knows")
        assert "text2seg checkpoints download base" in message

    def test_models_of_any_words_do_not_warn(self, demo, caplog):
        Text2Seg(demo.clip, demo.sam, input_size=64).segment(natural(), ["sheep"])
        assert not caplog.messages


class TestWords:
    @pytest.mark.parametrize("wording", ["sheep", "Two sheep!", "a big FIRE ENGINE", "bananas"])
    def test_known_wordings(self, wording):
        assert card_of("demo").closed_vocabulary.knows(wording)

    @pytest.mark.parametrize("wording", ["unicycle", "engine", "sheepdog", ""])
    def test_unknown_wordings(self, wording):
        assert not card_of("demo").closed_vocabulary.knows(wording)

    def test_words_of_a_similar_spelling_are_suggested(self):
        close_to = card_of("demo").closed_vocabulary.close_to
        for typed in ("unicycle", "bycicle", "Bicyle"):
            assert close_to(typed) == ["bicycle"]
        assert [close_to(typed)[0] for typed in ("dgo", "shep", "koalla")] == ["dog", "sheep", "koala"]
        assert [close_to(typed) for typed in ("truck", "grape")] == [["fire truck"], ["grapes"]]
        for other in ("lion", "unicorn", "bat", "goat", "pear", "person", "potato", "giraffe", "grey wolf", "zzzzzz"):
            assert close_to(other) == []
