"""Recognition and segmentation against plain formulas on tiny models, and their results on the demo scenes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from closeness import about, assert_close
from saliency_builders import state
from test_attention import tiny_clip

from text2seg.clip.model import ImageTokens
from text2seg.errors import DatasetError, OutputError, QueryError, SettingsError
from text2seg.evaluation import evaluate_files
from text2seg.explain import TOOLS, Progress, run_tool
from text2seg.explain.estimate import Speed, estimate
from text2seg.explain.labelled import demo_splits
from text2seg.explain.recognition import (
    RecognitionSettings,
    SemanticSettings,
    corrected,
    label_map,
    label_texts,
    painted,
    recognise,
)
from text2seg.explain.recognition_scores import ScoresSettings
from text2seg.grids import resize
from text2seg.io.images import load_image
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.charts import Bar, bars

LABELS = ("dog", "cat", "red car")
SCENE = next(demo_splits()).parent / "images" / "scene_0019.jpg"


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module", params=["vit", "resnet"])
def models(request):
    return Text2Seg(tiny_clip(request.param), sam=None)


@pytest.fixture
def image():
    return builders.image((48, 72))


class TestRecognise:
    def test_feature_surgery_of_cls_follows_the_paper(self):
        cls, texts = unit(8), unit(5, 8, seed=1)
        cosines = (texts @ cls).double().numpy()
        weights = np.exp(2 * cosines) / np.exp(2 * cosines).sum()
        weighted = weights / weights.mean() * cosines
        expected = weighted - weighted.mean()
        assert_close(recognise(cls, texts, surgery=True), expected, terms=8 * 5, scale=1)

    def test_without_surgery_the_score_is_the_cosine(self):
        cls, texts = unit(8), unit(5, 8, seed=1)
        assert_close(recognise(cls, texts, surgery=False), texts @ cls, terms=8, scale=1)

    def test_surgery_keeps_the_order_within_an_image_and_scores_sum_to_zero(self):
        cls, texts = unit(64), unit(30, 64, seed=2)
        plain, scores = (recognise(cls, texts, surgery=surgery) for surgery in (False, True))
        assert plain.min() > -0.5
        assert plain.argsort().tolist() == scores.argsort().tolist()
        assert float(scores.sum()) == about(0, terms=8 * 5)


class TestLabelMap:
    def test_label_map_is_the_argmax_of_resized_maps(self):
        grid, hw, texts = (3, 4), (24, 32), unit(40, 8, seed=1)
        tokens = ImageTokens(unit(1 + 12, 8), grid, hw)
        maps = resize((tokens.features[1:] @ texts.T).T.reshape(40, *grid).numpy(), hw)
        np.testing.assert_array_equal(label_map(tokens, texts, 40), maps.argmax(0))

    def test_all_background_labels_get_one_index(self):
        texts = unit(40, 8, seed=1)
        tokens = ImageTokens(unit(1 + 12, 8), (3, 4), (24, 32))
        np.testing.assert_array_equal(label_map(tokens, texts, 30), label_map(tokens, texts, 40).clip(max=30))

    def test_label_correction_gives_a_region_its_most_frequent_label(self):
        rng = np.random.default_rng(3)
        labels, owner = rng.integers(0, 5, (24, 32)), np.full((24, 32), -1, np.int32)
        owner[2:9, 3:11], owner[9:20, 4:30], owner[20:, :2] = 0, 3, 1  # region 2 has no pixel of its own
        expected = labels.copy()
        for number in (0, 1, 3):
            counts = [0] * 5
            for row, column in np.argwhere(owner == number).tolist():
                counts[labels[row, column]] += 1
            for row, column in np.argwhere(owner == number).tolist():
                expected[row, column] = counts.index(max(counts))
        np.testing.assert_array_equal(corrected(labels, owner, 4), expected)
        assert (expected != labels).any()
        np.testing.assert_array_equal(corrected(labels, np.full((24, 32), -1, np.int32), 4), labels)

    def test_background_stays_unpainted(self, image):
        labels = np.full(image.hw, 2, np.int64)
        labels[:20, :30] = 0
        shown = painted(image, labels, ("dog", "cat", "background"), {"dog": (200, 0, 0)})
        assert (shown[30:, 40:] == image.pixels[30:, 40:]).all()
        assert (shown[:10, :20] != image.pixels[:10, :20]).any()


class TestTools:
    @pytest.mark.parametrize("name", ["multilabel", "semantic"])
    def test_result_is_reproducible_and_model_is_unchanged(self, models, image, name):
        before = state(models.clip.model)
        tool = TOOLS[name]
        one, other = (run_tool(tool, models, [image], tool.settings(label=LABELS)) for _ in range(2))
        assert one.tables == other.tables
        assert state(models.clip.model) == before

    def test_multilabel_ranks_all_labels_by_score(self, models, image):
        (table,) = run_tool(TOOLS["multilabel"], models, [image], RecognitionSettings(label=LABELS)).tables
        scores = [row[1] for row in table.rows]
        assert {row[0] for row in table.rows} == set(LABELS)
        assert scores == sorted(scores, reverse=True)

    def test_semantic_shares_count_all_pixels(self, models, image):
        settings = SemanticSettings(label=LABELS, background=("sky", ""))
        (table,) = run_tool(TOOLS["semantic"], models, [image], settings).tables
        assert sum(row[1] for row in table.rows) == pytest.approx(1)
        assert sum(row[2] for row in table.rows) == 48 * 72
        assert {row[0] for row in table.rows} <= {*LABELS, "background"}

    @pytest.mark.parametrize("name", ["multilabel", "semantic"])
    @pytest.mark.parametrize("labels", [("dog",), ("dog", "dog ")])
    def test_single_label_raises(self, models, image, name, labels):
        with pytest.raises(QueryError, match="give two or more"):
            run_tool(TOOLS[name], models, [image], TOOLS[name].settings(label=labels))

    def test_bad_settings_raise(self, models, image):
        with pytest.raises(SettingsError, match="label must be"):
            RecognitionSettings(label=("dog", " "))
        with pytest.raises(SettingsError, match="input size"):
            RecognitionSettings(size=0)
        with pytest.raises(SettingsError, match="one text"):
            SemanticSettings(background="sky")
        with pytest.raises(SettingsError, match="both a label and background"):
            run_tool(TOOLS["semantic"], models, [image], SemanticSettings(label=LABELS, background=("dog",)))

    def test_resnet_lists_the_attention_rules_it_supports(self, image):
        models = Text2Seg(tiny_clip("resnet"), sam=None)
        with pytest.raises(SettingsError, match="surgery or raw"):
            run_tool(TOOLS["semantic"], models, [image], SemanticSettings(label=LABELS, architecture="gem"))


class TestRegions:
    def test_semantic_by_region_labels_whole_regions(self, demo):
        image, settings = load_image(SCENE), SemanticSettings(label=("sheep", "fire engine"), by_region=True)
        result = run_tool(TOOLS["semantic"], demo, [image], settings)
        assert result.panels[0].caption == "every label in its colour, by region"
        texts = label_texts(demo, settings.label, ())
        (tokens,) = demo.clip.encode_images([image])
        expected = corrected(label_map(tokens, texts, 2), demo.owners(demo.open(image)), 2)
        pixels = {row[0]: row[2] for row in result.tables[0].rows}
        names = (*settings.label, "background")
        counts = np.bincount(expected.ravel(), minlength=3).tolist()
        assert [pixels.get(name, 0) for name in names] == counts
        (plain,) = run_tool(TOOLS["semantic"], demo, [image], SemanticSettings(label=settings.label)).tables
        assert plain.rows != result.tables[0].rows

    def test_semantic_takes_attention_within_regions(self, demo):
        settings = SemanticSettings(label=("sheep", "fire engine"), architecture="corrclip", fit="crop", size=192)
        (table,) = run_tool(TOOLS["semantic"], demo, [load_image(SCENE)], settings).tables
        assert sum(row[1] for row in table.rows) == pytest.approx(1)

    def test_regions_are_part_of_the_estimated_time(self, demo):
        tool, speed = TOOLS["semantic"], Speed(demo)
        assert estimate(tool, speed, 1, SemanticSettings()) == 0
        assert estimate(tool, speed, 1, SemanticSettings(by_region=True)) > 0

    @pytest.mark.parametrize("settings", [{"by_region": True}, {"architecture": "corrclip"}])
    def test_without_a_sam_the_error_says_so(self, image, settings):
        models, chosen = Text2Seg(tiny_clip(), sam=None), SemanticSettings(label=LABELS, **settings)
        assert estimate(TOOLS["semantic"], Speed(models), 1, chosen) == 0
        with pytest.raises(SettingsError, match="SAM"):
            run_tool(TOOLS["semantic"], models, [image], chosen)


class TestBars:
    def test_length_of_bars_follows_their_shares(self):
        red, blue = (200, 0, 0), (0, 0, 200)
        drawn = bars([Bar("one", 1.0, "1.0", red), Bar("half", 0.5, "0.5", blue), Bar("none", -3.0, "", red)])
        long, short = ((drawn == colour).all(-1).sum(1).max() for colour in (red, blue))
        assert long == pytest.approx(2 * short, abs=4)


class TestScores:
    @pytest.fixture
    def dataset(self, tmp_path):
        """Write two images of noise, each with a box of one category; the ids are not 1..N."""
        from PIL import Image as PillowImage

        from text2seg.coco import rle

        names = {11: "dog", 4: "cat", 30: "red car"}
        images, annotations = [], []
        for number, category in ((7, 11), (3, 30)):
            PillowImage.fromarray(builders.pixels((48, 72), seed=number)).save(tmp_path / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 72})
            mask = builders.box_mask((48, 72), width=30, height=20)
            annotations.append(
                {"id": number, "image_id": number, "category_id": category, "segmentation": rle.encode(mask)}
            )
        categories = [{"id": number, "name": name} for number, name in names.items()]
        path = tmp_path / "truth.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return path

    def test_text2seg_evaluate_gives_the_same_numbers(self, models, dataset, tmp_path):
        settings = ScoresSettings(dataset=(dataset,), predictions=tmp_path / "said")
        (table,) = run_tool(TOOLS["recognition-scores"], models, [], settings).tables
        name = dataset.parent.name
        for rule, mean_ap, miou, _, accuracy in table.rows:
            score = evaluate_files(dataset, tmp_path / "said" / f"{name}_{rule}.json")
            assert score.multilabel.mean_ap == mean_ap
            if rule != "presence":
                assert (score.semantic.miou, score.semantic.pixel_accuracy) == (miou, accuracy)
        assert [row[0] for row in table.rows] == ["raw", "surgery", "presence"]

    def test_existing_predictions_are_not_overwritten(self, models, dataset, tmp_path):
        settings = ScoresSettings(dataset=(dataset,), predictions=tmp_path / "said")
        run_tool(TOOLS["recognition-scores"], models, [], settings)
        with pytest.raises(OutputError, match="already"):
            run_tool(TOOLS["recognition-scores"], models, [], settings)

    def test_stopped_run_scores_the_images_done(self, models, dataset):
        stop = threading.Event()
        progress = Progress(lambda done, total, note: stop.set() if done == 1 else None, stop)
        result = run_tool(TOOLS["recognition-scores"], models, [], ScoresSettings(dataset=(dataset,)), progress)
        assert "1 image," in result.tables[0].title
        assert "stopped after 1 of 2" in result.notes[-1]

    def test_missing_dataset_raises_with_its_name(self, models, tmp_path):
        with pytest.raises(DatasetError, match=r"nowhere\.json"):
            run_tool(TOOLS["recognition-scores"], models, [], ScoresSettings(dataset=(tmp_path / "nowhere.json",)))


class TestDemo:
    def test_recognition_ranks_the_objects_of_the_scene_first(self, demo):
        (table,) = run_tool(TOOLS["multilabel"], demo, [load_image(SCENE)]).tables
        assert len(table.rows) == 109
        assert {"sheep", "bomb", "fire engine"} == {row[0] for row in table.rows[:3]}

    def test_segmentation_finds_the_objects_of_the_scene(self, demo):
        result = run_tool(TOOLS["semantic"], demo, [load_image(SCENE)])
        names = [row[0] for row in result.tables[0].rows]
        assert names[0] == "background"
        assert {"sheep", "bomb", "fire engine"} <= set(names)
        assert result.image() is not None

    def test_unknown_label_raises(self, demo):
        for name, settings in (
            ("multilabel", RecognitionSettings(label=("dog", "gizmo"))),
            ("semantic", SemanticSettings(label=("dog", "cat"), background=("gizmo",))),
        ):
            with pytest.raises(QueryError, match="gizmo"):
                run_tool(TOOLS[name], demo, [load_image(SCENE)], settings)

    def test_surgery_segments_better_than_raw_clip(self, demo, tmp_path):
        (path, _) = demo_splits()
        truth = json.loads(Path(path).read_text())
        truth["images"] = truth["images"][:6]
        kept = {entry["id"] for entry in truth["images"]}
        truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] in kept]
        (tmp_path / "few.json").write_text(json.dumps(truth))
        settings = ScoresSettings(dataset=(tmp_path / "few.json",), images=Path(path).parent)
        (table,) = run_tool(TOOLS["recognition-scores"], demo, [], settings).tables
        rows = {row[0]: row for row in table.rows}
        assert rows["surgery"][2] > rows["raw"][2] + 0.1
        assert rows["surgery"][1] > 0.5


def test_image_without_a_name_works(models):
    image = Image(builders.pixels((48, 72)))
    assert run_tool(TOOLS["multilabel"], models, [image], RecognitionSettings(label=LABELS)).tables
