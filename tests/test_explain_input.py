"""The size of CLIP's input and the ways to fit an image into it, which all explanation tools share."""

from __future__ import annotations

import json
from dataclasses import replace

import builders
import clip as openai_clip
import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from test_attention import tiny_clip

from text2seg.coco import rle
from text2seg.errors import ImageError, SettingsError
from text2seg.explain import TOOLS, run_tool
from text2seg.explain.experiments import TextSettings
from text2seg.explain.faithfulness import FaithfulnessSettings, _cases
from text2seg.explain.labelled import demo_splits, labelled_sets, mask_of
from text2seg.explain.recognition_scores import ScoresSettings
from text2seg.explain.saliency.targets import text_target
from text2seg.explain.saliency_maps import SaliencySettings
from text2seg.explain.tool import InputSettings, Result, Tool, fitted, fitted_pixels, mean_colour, unfitted_pixels
from text2seg.explain.words import TokenRelevanceSettings
from text2seg.pipeline import Text2Seg
from text2seg.records import Image

LABELS = ("dog", "cat", "red car")


@pytest.fixture(scope="module")
def models():
    return Text2Seg(tiny_clip("vit"), sam=None)


@pytest.fixture
def wide():
    return builders.image((48, 72))


def smooth(hw):
    """An image whose colours change slowly, so that the pixels beyond a crop hardly matter."""
    down, right = np.mgrid[: hw[0], : hw[1]] / max(hw)
    channels = (np.sin(4 * right), np.cos(5 * down), np.sin(3 * right + 4 * down))
    return Image(np.stack([127 + 120 * channel for channel in channels], axis=-1).astype(np.uint8))


class TestFit:
    @pytest.mark.parametrize("hw", [(300, 400), (400, 300), (225, 450)])
    def test_crop_gives_the_input_of_openais_preprocessing(self, hw):
        model = tiny_clip("vit")
        side, image = model.trained_size, smooth(hw)
        theirs = openai_clip.clip._transform(side)(PilImage.fromarray(image.pixels))
        ours = model.preprocess(fitted(image, "crop"))
        # Theirs resizes the whole image and then crops; ours crops first. Both round to whole pixels: a shift of up to
        # one pixel of the input.
        slope = max(float(theirs.diff(dim=axis).abs().max()) for axis in (1, 2))
        assert float((ours - theirs).abs().max()) <= 2 * slope
        assert float((model.preprocess(image) - theirs).abs().max()) > 4 * slope

    def test_pad_keeps_the_whole_image_between_margins_of_the_mean_colour(self, wide):
        padded = fitted(wide, "pad").pixels
        assert padded.shape == (72, 72, 3)
        assert (padded[12:60] == wide.pixels).all()
        assert (padded[:12] == mean_colour()).all()
        assert (padded[60:] == mean_colour()).all()

    @pytest.mark.parametrize("hw", [(5, 8), (8, 5), (7, 4), (6, 6)])
    def test_the_way_back_from_a_crop_and_a_pad(self, hw):
        values = np.arange(hw[0] * hw[1]).reshape(hw)
        padded = fitted_pixels(values, "pad", -1)
        assert padded.shape == (max(hw),) * 2
        assert (unfitted_pixels(padded, "pad", hw, -1) == values).all()
        cropped = fitted_pixels(values, "crop", -1)
        assert cropped.shape == (min(hw),) * 2
        back = unfitted_pixels(cropped, "crop", hw, -1)
        assert back.shape == hw
        assert (back[back >= 0] == values[back >= 0]).all()
        assert (back >= 0).sum() == min(hw) ** 2

    def test_squash_leaves_the_image_unchanged(self, wide):
        assert fitted(wide, "squash") is wide


class TestRunTool:
    def test_every_tool_has_the_settings_of_the_input(self):
        assert all(issubclass(tool.settings, InputSettings) for tool in TOOLS.values())

    @pytest.mark.parametrize("fit", ["crop", "pad"])
    def test_a_tool_sees_the_fitted_image(self, models, wide, fit):
        settings = SaliencySettings(text=("dog",), method="surgery", fit=fit)
        result = run_tool(TOOLS["saliency"], models, [wide], settings)
        alone = run_tool(TOOLS["saliency"], models, [fitted(wide, fit)], replace(settings, fit="squash"))
        assert result.panels[0].pixels.shape[0] == result.panels[0].pixels.shape[1]
        for panel, expected in zip(result.panels, alone.panels, strict=True):
            assert (panel.pixels == expected.pixels).all()
        assert result.tables == alone.tables
        squashed = run_tool(TOOLS["saliency"], models, [wide], replace(settings, fit="squash"))
        assert squashed.tables != result.tables

    def test_the_target_image_is_fitted_too(self, models, wide, tmp_path):
        file = tmp_path / "other.png"
        PilImage.fromarray(wide.pixels).save(file)
        result = run_tool(TOOLS["saliency"], models, [wide], SaliencySettings(target_image=file, fit="crop"))
        assert result.tables[0].rows[0][1] == pytest.approx(1, abs=1e-5)

    def test_a_size_is_the_default_size_of_the_clip_that_a_tool_gets(self, models, wide):
        seen = []

        def run(models, images, settings, progress):
            seen.append(
                (models.clip.default_size, models.clip.input_hw(None), models.settings.maps.input_size, images[0].hw)
            )
            return Result("done")

        tool = Tool("see", "See", "See.", InputSettings, run)
        stride = models.clip.stride
        run_tool(tool, models, [wide], InputSettings(size=3 * stride))
        run_tool(tool, models, [wide])
        trained = models.clip.trained_size
        assert seen == [
            (3 * stride, (3 * stride,) * 2, 3 * stride, (48, 72)),
            (trained, (trained,) * 2, None, (48, 72)),
        ]
        assert models.clip.default_size == trained  # the caller's models stay as they are

    def test_token_relevance_sees_the_image_at_the_trained_size_like_the_other_tools(self, wide):
        models = Text2Seg(tiny_clip("vit"), sam=None, input_size=2 * tiny_clip("vit").trained_size)
        relevance = run_tool(TOOLS["token-relevance"], models, [wide], TokenRelevanceSettings(text="a dog"))
        saliency = run_tool(TOOLS["saliency"], models, [wide], SaliencySettings(text=("a dog",), templates=("{}",)))
        cosine = float(relevance.panels[1].caption.rpartition("cosine ")[2].rstrip(")"))
        assert cosine == pytest.approx(saliency.tables[0].rows[0][1], abs=6e-4)  # printed with three decimals

    def test_the_size_reaches_experiments(self, models, wide):
        stride = models.clip.stride
        small, large = (
            run_tool(TOOLS["experiment-preprocessing"], models, [wide], TextSettings(text="dog", size=side * stride))
            for side in (2, 4)
        )
        assert small.tables != large.tables

    def test_a_size_that_is_too_large_is_an_error(self, models, wide):
        with pytest.raises(SettingsError, match="at most 4096"):
            run_tool(TOOLS["saliency"], models, [wide], SaliencySettings(text=("dog",), size=10**6))

    def test_a_long_image_is_not_padded_to_a_huge_square(self, models):
        ribbon = Image(np.zeros((2, 20_000, 3), np.uint8), "ribbon.png")
        with pytest.raises(ImageError, match=r"ribbon.png would be padded to 20000 x 20000"):
            run_tool(TOOLS["saliency"], models, [ribbon], SaliencySettings(text=("dog",), fit="pad"))

    def test_an_unknown_fit_is_an_error(self):
        with pytest.raises(SettingsError, match="squash"):
            InputSettings(fit="stretch")

    @pytest.mark.parametrize("tool", [tool for tool in TOOLS.values() if issubclass(tool.settings, InputSettings)])
    def test_all_tools_refuse_what_is_no_fit_or_size(self, tool):
        with pytest.raises(SettingsError, match="stretch"):
            tool.settings(fit="stretch")
        with pytest.raises(SettingsError, match="size"):
            tool.settings(size=0)


class TestDatasets:
    @pytest.fixture
    def dataset(self, tmp_path):
        truth = json.loads(next(demo_splits()).read_text())
        entry = truth["images"][0]
        height, width = entry["height"] // 2, entry["width"]
        pixels = np.asarray(PilImage.open(next(demo_splits()).parent / entry["file_name"]))[:height]
        PilImage.fromarray(pixels).save(tmp_path / "half.png")
        names = [{"id": number, "name": name} for number, name in enumerate(LABELS, start=1)]
        box = [[10.0, 20.0, width - 10.0, 20.0, width - 10.0, height - 8.0, 10.0, height - 8.0]]
        annotations = [
            {"id": number, "image_id": 1, "category_id": number, "segmentation": box, "iscrowd": 0, "area": 1.0}
            | {"bbox": [10.0, 20.0, width - 20.0, height - 28.0]}
            for number in (1, 2, 3)
        ]
        file = tmp_path / "dataset.json"
        image = {"id": 1, "file_name": "half.png", "height": height, "width": width}
        file.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": names}))
        return file

    @pytest.mark.parametrize("fit", ["crop", "pad"])
    def test_masks_are_fitted_as_their_images(self, models, dataset, fit):
        (labelled,) = labelled_sets((dataset,))
        targets = {name: text_target(models.clip, name) for name in LABELS}
        settings = FaithfulnessSettings(dataset=(dataset,), fit=fit)
        cases = list(_cases(labelled, models.clip, targets, settings, []))
        assert len(cases) == 3
        for pair, case in zip(labelled.pairs, cases, strict=True):
            assert case.mask.shape == case.image.hw
            assert (case.mask == fitted_pixels(mask_of(pair), fit, False)).all()

    def test_an_object_outside_the_crop_is_no_case(self, models, dataset):
        truth = json.loads(dataset.read_text())
        image = truth["images"][0]
        assert image["width"] >= 2 * image["height"]
        left = [0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0]
        truth["annotations"][0] |= {"segmentation": [left], "bbox": [0, 0, 9, 9]}
        dataset.write_text(json.dumps(truth))
        (labelled,) = labelled_sets((dataset,))
        targets = {name: text_target(models.clip, name) for name in LABELS}
        failures = []
        settings = FaithfulnessSettings(dataset=(dataset,), fit="crop")
        assert len(list(_cases(labelled, models.clip, targets, settings, failures))) == 2
        assert failures == ["half.png: dog is outside the crop"]

    @pytest.mark.parametrize("fit", ["crop", "pad"])
    def test_predictions_are_in_the_frame_of_the_image(self, models, dataset, fit, tmp_path):
        run_tool(
            TOOLS["recognition-scores"],
            models,
            [],
            ScoresSettings(dataset=(dataset,), fit=fit, predictions=tmp_path / "out"),
        )
        entry = json.loads(dataset.read_text())["images"][0]
        hw = (entry["height"], entry["width"])
        found = json.loads(next((tmp_path / "out").glob("*_surgery.json")).read_text())
        masks = [rle.decode(each["segmentation"]) for each in found["annotations"]]
        assert all(mask.shape == hw for mask in masks)
        covered = np.any(masks, axis=0)
        inside = unfitted_pixels(np.ones((min(hw) if fit == "crop" else max(hw),) * 2, bool), fit, hw, False)
        assert (covered <= inside).all()


def test_the_input_is_normalised_by_the_model_s_own_mean():
    model = tiny_clip("vit")
    model.images = replace(model.images, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    grey = Image(np.full((40, 60, 3), 255, np.uint8))
    assert torch.equal(model.preprocess(grey), torch.ones(3, *model.input_hw(None)))
