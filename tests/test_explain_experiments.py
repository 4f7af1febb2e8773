"""Experiments: changes of the image against plain formulas, reproducible results, an unchanged model."""

from __future__ import annotations

import copy
import threading

import builders
import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, assert_close
from saliency_builders import random_target, state
from test_attention import tiny_clip

from text2seg.clip.model import CLIP_STD, preprocess
from text2seg.errors import QueryError, SettingsError
from text2seg.explain import TOOLS, Progress, experiments, pixel_attack, run_tool
from text2seg.explain.activations import ActivationSettings, block_names, measure
from text2seg.explain.experiments import RepeatedSettings, Subject, TextSettings, squashed
from text2seg.explain.labelled import demo_splits
from text2seg.explain.pixel_attack import PixelSettings
from text2seg.explain.tool import mean_colour
from text2seg.io.images import load_image
from text2seg.pipeline import Text2Seg
from text2seg.records import Image

SCENE = next(demo_splits()).parent / "images" / "scene_0019.jpg"
EXPERIMENTS = {
    "experiment-grey": RepeatedSettings(text="dog", repeats=2, steps=3),
    "experiment-preprocessing": TextSettings(text="dog"),
    "experiment-activations": ActivationSettings(steps=2),
    "experiment-noise": RepeatedSettings(text="dog", repeats=2, steps=3),
}


@pytest.fixture(scope="module", params=["vit", "resnet"])
def models(request):
    return Text2Seg(tiny_clip(request.param), sam=None)


@pytest.fixture(scope="module")
def image():
    return builders.image((48, 72))


@pytest.fixture(scope="module")
def subject(models, image):
    return Subject(models.clip, squashed(models.clip, image), random_target(models.clip))


def attack_settings(models, image, **settings):
    """Attack the one of two texts that the tiny model ranks first."""
    first, second = "dog", "cat"
    subject = Subject.of(models, image, first)
    ranking = pixel_attack.Ranking(subject, (first, second), models.clip.encode_texts([first, second]))
    if ranking.margins([subject.pixels])[0][0] < 0:
        first, second = second, first
    return PixelSettings(text=first, label=(second,), **settings)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_same_seed_gives_same_result_and_model_is_unchanged(models, image, name):
    before = state(models.clip.model)
    one, other = (run_tool(TOOLS[name], models, [image], EXPERIMENTS[name]) for _ in range(2))
    assert one.tables == other.tables
    np.testing.assert_array_equal(one.image(), other.image())
    assert state(models.clip.model) == before


@pytest.mark.parametrize("name", ["experiment-grey", "experiment-noise"])
def test_another_seed_gives_other_numbers(models, image, name):
    tables = [
        run_tool(TOOLS[name], models, [image], RepeatedSettings(text="dog", repeats=1, steps=2, seed=seed)).tables
        for seed in (0, 1)
    ]
    assert tables[0] != tables[1]


@pytest.mark.parametrize("name", [*EXPERIMENTS, "experiment-pixels"])
@pytest.mark.parametrize("done", [None, 0])
def test_stopped_run_shows_partial_results(models, image, name, done):
    """Stop before the start or after the first step."""
    stop = threading.Event()
    if done is None:
        stop.set()
    progress = Progress(lambda at, total, note: stop.set() if at == done else None, stop)
    settings = EXPERIMENTS.get(name) or attack_settings(models, image, tries=2, pixels=2)
    result = run_tool(TOOLS[name], models, [image], settings, progress)
    assert result.panels or "Stopped" in result.notes[0]


@pytest.mark.parametrize("name", ["grey", "preprocessing", "noise", "pixels"])
def test_empty_text_raises(models, image, name):
    tool = TOOLS[f"experiment-{name}"]
    with pytest.raises(QueryError, match="--text"):
        run_tool(tool, models, [image], tool.settings(text=" "))


@pytest.mark.parametrize(
    ("kind", "given", "complaint"),
    [
        (RepeatedSettings, {"seed": -1}, "seed"),
        (RepeatedSettings, {"repeats": 0}, "repeats"),
        (RepeatedSettings, {"steps": 0}, "steps"),
        (ActivationSettings, {"size": -3}, "input size"),
        (ActivationSettings, {"steps": 0}, "steps"),
        (PixelSettings, {"pixels": 0}, "pixels"),
        (PixelSettings, {"tries": 0}, "tries"),
        (PixelSettings, {"seed": -1}, "seed"),
    ],
)
def test_bad_settings_raise(kind, given, complaint):
    with pytest.raises(SettingsError, match=complaint):
        kind(**given)


def test_cosines_equal_those_of_the_unchanged_forward(subject):
    images = [subject.pixels, subject.pixels[::-1].copy(), subject.pixels[:, ::-1].copy()]
    inputs = torch.stack([preprocess(Image(each), subject.hw) for each in images])
    features = torch.nn.functional.normalize(subject.clip.model.encode_image(inputs), dim=-1)
    expected = (features @ subject.target.features).detach().numpy()
    assert_close(subject.cosines(images)[0], expected, terms=TINY_NETWORK, scale=1)
    with_itself = (features @ features[0]).detach().numpy()
    assert_close(subject.cosines(images)[1], with_itself, terms=TINY_NETWORK, scale=1)


class TestGrey:
    @pytest.mark.parametrize("way", experiments.GREYINGS)
    def test_the_given_share_of_pixels_turns_grey(self, subject, way):
        places = experiments.grey_order(subject, way, np.random.default_rng(0))
        assert (places < 0.25).mean() == pytest.approx(0.25, abs=0.01)
        assert (places < 1).all()

    def test_all_pixels_of_a_cell_turn_grey_together(self, subject):
        side = subject.clip.stride
        places = experiments.grey_order(subject, experiments.GREY_CELLS, np.random.default_rng(0))
        assert (places[:side, :side] == places[0, 0]).all()
        assert len(np.unique(places)) == places.size // side**2

    def test_grey_is_the_mean_colour_and_removing_colour_keeps_brightness(self, image):
        everywhere = np.ones(image.hw, np.bool_)
        assert (experiments.greyed(image.pixels, everywhere, experiments.GREY_PIXELS) == mean_colour()).all()
        flat = experiments.greyed(image.pixels, everywhere, experiments.NO_COLOUR)
        assert (flat[..., 0] == flat[..., 2]).all()
        assert flat[3, 5, 0] == round(float(image.pixels[3, 5] @ [0.299, 0.587, 0.114]))
        assert (experiments.greyed(image.pixels, ~everywhere, experiments.NO_COLOUR) == image.pixels).all()


class TestNoise:
    @pytest.mark.parametrize("kind", experiments.KINDS)
    def test_noise_grows_with_strength_and_is_zero_at_zero(self, kind):
        flat = np.full((48, 72, 3), 120, np.uint8)
        changes = [
            experiments.rms_change(flat, experiments.noisy(flat, kind, strength, (0,))) for strength in (0, 0.2, 0.5, 1)
        ]
        assert changes[0] == 0
        assert changes == sorted(changes)
        assert changes[1] > 5

    @pytest.mark.parametrize("kind", ["gaussian", "uniform"])
    def test_strength_is_the_standard_deviation(self, kind):
        flat = np.full((200, 300, 3), 128, np.uint8)
        assert experiments.rms_change(flat, experiments.noisy(flat, kind, 0.1, (0,))) == pytest.approx(12.8, rel=0.02)


class TestPreprocessing:
    def test_bicubic_squash_equals_the_input_of_clip(self, models, image):
        hw = models.clip.input_hw(None)
        np.testing.assert_array_equal(experiments.squash(image.pixels, hw, "bicubic"), squashed(models.clip, image))

    def test_padding_keeps_the_aspect_ratio_and_cropping_keeps_the_middle(self):
        wide = np.zeros((20, 80, 3), np.uint8)
        wide[:, 40:] = 255
        padded = experiments.pad(wide, (64, 64), "nearest")
        assert (padded[:24] == mean_colour()).all()
        assert (padded[-24:] == mean_colour()).all()
        assert (padded[30, :30] == 0).all()
        assert (padded[30, 34:] == 255).all()
        cropped = experiments.crop(wide, (64, 64), "nearest")
        assert cropped.shape == (64, 64, 3)
        assert (cropped[:, :30] == 0).all()
        assert (cropped[:, 34:] == 255).all()

    def test_all_fits_agree_on_a_square_image(self):
        square = builders.pixels((40, 40))
        one, two, three = (fit(square, (64, 64), "bicubic") for fit in experiments.FITS.values())
        assert (one == two).all()
        assert (one == three).all()


class TestActivations:
    def test_measured_activations_equal_those_of_hooks(self, models, image):
        clip, seen = models.clip, []
        tower = copy.deepcopy(clip.model.visual)
        if clip.is_vit:
            modules = [block.mlp.gelu for block in tower.transformer.resblocks]
        else:
            modules = [block for number in range(1, 5) for block in getattr(tower, f"layer{number}")]
        for module in modules:
            module.register_forward_hook(lambda _module, _given, found: seen.append(found.detach().clone()))
        shown = squashed(clip, image)
        tower(preprocess(Image(shown), shown.shape[:2])[None])
        expected = [[float((each <= 0).double().mean()), float(each.double().abs().mean())] for each in seen]
        np.testing.assert_allclose(measure(clip, shown), expected, rtol=1e-3, atol=1e-4)
        assert len(block_names(clip)) == len(expected)


class TestPixels:
    @pytest.fixture
    def ranking(self, models, subject):
        texts = torch.stack([subject.target.features, *(random_target(models.clip, n).features for n in (1, 2))])
        return pixel_attack.Ranking(subject, ("a", "b", "c"), texts)

    def test_gradient_equals_finite_differences_of_the_margin(self, ranking):
        shown = ranking.subject.pixels
        gradient = ranking.gradient(shown, 1)
        inputs = preprocess(Image(shown), ranking.subject.hw)
        row, column, channel, step = 17, 40, 1, 1e-2

        def margin(by):
            moved = inputs.double().clone()
            moved[channel, row, column] += by
            tower = copy.deepcopy(ranking.subject.clip.model.visual).double()
            for module in tower.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.__class__ = torch.nn.LayerNorm  # CLIP's own goes through float32
            features = torch.nn.functional.normalize(tower(moved[None])[0], dim=0)
            return float(features @ (ranking._texts[0] - ranking._texts[1]).double())

        expected = (margin(step) - margin(-step)) / (2 * step) / (255 * CLIP_STD[channel])
        assert gradient[row, column, channel] == pytest.approx(expected, rel=0.02, abs=1e-9)

    def test_each_pixel_changes_at_most_once_and_others_stay_unchanged(self, models, ranking):
        shown = ranking.subject.pixels
        (start,), _ = ranking.margins([shown])
        for propose in (
            lambda search: pixel_attack.propose_by_gradient(ranking, search, 3),
            lambda search: pixel_attack.propose_at_random(search, 3, np.random.default_rng(len(search.changed))),
        ):
            search = pixel_attack.Search(shown, "a", [float(start)])
            for _ in range(4):
                pixel_attack.advance(ranking, search, propose(search))
            assert len(set(search.changed)) == 4
            differing = {(int(row), int(column)) for row, column in np.argwhere((search.pixels != shown).any(-1))}
            assert differing <= set(search.changed)
            assert set(np.unique(search.pixels[tuple(np.array(search.changed).T)])) <= {0, 255}

    def test_result_is_reproducible_and_model_is_unchanged(self, models, image):
        before = state(models.clip.model)
        settings = attack_settings(models, image, pixels=3, tries=3)
        one, other = (run_tool(TOOLS["experiment-pixels"], models, [image], settings) for _ in range(2))
        assert one.tables == other.tables
        assert state(models.clip.model) == before

    def test_text_that_is_not_ranked_first_raises_and_names_the_first(self, demo):
        settings = PixelSettings(text="koala", label=("sheep", "bomb"))
        with pytest.raises(QueryError, match="'sheep' before 'koala'"):
            run_tool(TOOLS["experiment-pixels"], demo, [load_image(SCENE)], settings)


class TestDemo:
    def test_few_guided_pixels_change_the_first_label(self, demo):
        monkey = load_image(SCENE.with_name("scene_0011.jpg"))
        result = run_tool(TOOLS["experiment-pixels"], demo, [monkey], PixelSettings(text="monkey", pixels=16, tries=6))
        ((guided, by_chance),) = (table.rows for table in result.tables)
        assert guided[1] < 16
        assert guided[2] < 0
        assert guided[3] != "monkey"
        assert by_chance[2] > guided[2]

    def test_greying_out_lowers_the_cosine_with_sheep(self, demo):
        settings = RepeatedSettings(text="sheep", repeats=1, steps=1)
        mean = run_tool(TOOLS["experiment-grey"], demo, [load_image(SCENE)], settings).tables[0]
        before, after = mean.rows
        assert before[1] == before[2] == before[3] > 0.2
        assert after[1] == after[2] < 0.05
        assert after[2] < after[3] < before[3]

    def test_the_cosine_with_the_untouched_image_begins_at_one_and_falls(self, demo):
        settings = RepeatedSettings(text="sheep", repeats=1, steps=1)
        for name in ("experiment-grey", "experiment-noise"):
            tables = run_tool(TOOLS[name], demo, [load_image(SCENE)], settings).tables
            (table,) = (each for each in tables if each.title == "cosine with the untouched image, mean of the runs")
            before, after = table.rows
            assert before[1:] == pytest.approx([1.0] * (len(before) - 1), abs=1e-5)
            assert max(after[1:]) < 0.98

    def test_squash_bicubic_is_the_untouched_image_of_the_preprocessing(self, demo):
        settings = TextSettings(text="sheep")
        table = run_tool(TOOLS["experiment-preprocessing"], demo, [load_image(SCENE)], settings).tables[1]
        cosines = {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
        assert cosines["squash"]["bicubic"] == pytest.approx(1, abs=1e-5)
        assert cosines["crop"]["bicubic"] < 0.999

    def test_the_preprocessing_experiment_refuses_a_fit(self, demo):
        with pytest.raises(SettingsError, match="leave out fit"):
            run_tool(
                TOOLS["experiment-preprocessing"], demo, [load_image(SCENE)], TextSettings(text="sheep", fit="pad")
            )
