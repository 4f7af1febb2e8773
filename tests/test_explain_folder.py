"""`average-map` and `similarity-table` over folders, and targets from stored vectors."""

from __future__ import annotations

import csv
import math
import shutil
import threading
import weakref
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import builders
import numpy as np
import pytest
import torch
from closeness import DEMO_NETWORK, TINY_NETWORK, about, assert_close
from test_attention import tiny_clip

from text2seg.app.fields import shown_settings
from text2seg.clip.model import Clip
from text2seg.errors import DatasetError, OutputError, QueryError, SettingsError
from text2seg.explain import TOOLS, Progress, run_tool
from text2seg.explain import average_map as module
from text2seg.explain.average_map import BINS, AverageMapSettings, MapStatistics, read_groups
from text2seg.explain.saliency.methods import saliency
from text2seg.explain.saliency.targets import image_target, text_target, vector_targets
from text2seg.explain.saliency_maps import SaliencySettings, map_of
from text2seg.explain.similarity_table import BATCH, CSV_FILE, SimilarityTableSettings
from text2seg.explain.tool import fitted
from text2seg.io.images import load_image
from text2seg.io.scan import ImageFiles, names_of
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.drawing import heat
from text2seg.runtime import FULL

SCENES = Path(str(resources.files("text2seg.demo") / "scenes" / "new-scenes" / "images"))
AVERAGE, TABLE = TOOLS["average-map"], TOOLS["similarity-table"]
SHORT = ("a {}.",)
SAM = SimpleNamespace(precision=FULL, compiled=False)
KINDS = ("mean", "variance", "entropy")


@pytest.fixture(scope="module")
def tiny():
    return Text2Seg(tiny_clip(), SAM, provenance={"clip": {"name": "tiny", "sha256": "0"}})


@pytest.fixture
def folder(tmp_path):
    """Three scenes in two subfolders, and a damaged file."""
    for name, number in (("b/one.jpg", 3), ("b/deep/two.jpg", 19), ("a/three.jpg", 22)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SCENES / f"scene_{number:04}.jpg", tmp_path / "in" / name)
    (tmp_path / "in" / "a" / "bad.jpg").write_bytes(b"not an image")
    return tmp_path / "in"


@pytest.fixture
def computed(monkeypatch):
    """The names of the targets whose maps were computed, one for each map."""
    names = []

    def counted(clip, image, target, settings):
        names.append(target.name)
        return map_of(clip, image, target, settings)

    monkeypatch.setattr(module, "map_of", counted)
    return names


def statistics_of(maps):
    """Return mean, variance and entropy of a list of maps by loops in float64."""
    shape = maps[0].shape
    found = {kind: np.zeros(shape) for kind in KINDS}
    for row in range(shape[0]):
        for column in range(shape[1]):
            values = []
            for each in maps:
                low, high = float(each.min()), float(each.max())
                values.append(0.0 if low == high else (float(each[row, column]) - low) / (high - low))
            mean = math.fsum(values) / len(values)
            counts = [0] * BINS
            for value in values:
                counts[min(int(value * BINS), BINS - 1)] += 1
            shares = [count / len(values) for count in counts if count]
            found["mean"][row, column] = mean
            found["variance"][row, column] = math.fsum((value - mean) ** 2 for value in values) / len(values)
            found["entropy"][row, column] = -math.fsum(share * math.log2(share) for share in shares)
    return found


class TestStatistics:
    def test_values_are_those_of_loops(self):
        maps = [*np.random.default_rng(3).normal(size=(9, 3, 5)).astype(np.float32), np.full((3, 5), 2, np.float32)]
        ours = MapStatistics()
        for each in maps:
            ours.add(each)
        for kind, values in statistics_of(maps).items():
            assert_close(getattr(ours, kind), values, terms=len(maps), scale=4, dtype=torch.float64)
        assert (ours.count, ours.without_peak) == (10, 1)

    def test_equal_maps_have_neither_variance_nor_entropy(self):
        ours = MapStatistics()
        for factor in (1, 5):  # the scale of a map does not count
            ours.add(factor * np.arange(6, dtype=np.float32).reshape(2, 3))
        assert_close(ours.variance, np.zeros((2, 3)), terms=2, scale=1, dtype=torch.float64)
        assert (ours.entropy == 0).all()

    def test_values_in_as_many_bins_as_images_have_the_highest_entropy(self):
        ours = MapStatistics()
        for middle in range(BINS):
            ours.add(np.array([[0, middle + 0.5, BINS]], np.float32))
        assert ours.entropy.tolist() == [[0, 4, 0]]


class TestAverageMap:
    @pytest.mark.parametrize("fit", ["squash", "crop"])
    def test_averages_are_those_of_loops_over_the_maps(self, tiny, fit, tmp_path):
        images = [builders.image(hw) for hw in ((40, 56), (64, 64), (70, 30))]
        settings = AverageMapSettings(("dog", "cat"), templates=SHORT, method="legrad", fit=fit, folder=tmp_path)
        result = run_tool(AVERAGE, tiny, images, settings)
        found = np.load(tmp_path / "average-map.npz")
        assert found["targets"].tolist() == ["dog", "cat"]
        for place, text in enumerate(settings.text):
            target = text_target(tiny.clip, text, SHORT)
            maps = [saliency(tiny.clip, fitted(image, fit), target, "legrad") for image in images]
            for kind, values in statistics_of(maps).items():
                assert_close(found[kind][place, 0], values, terms=3, scale=4, dtype=torch.float64)
        assert [panel.caption for panel in result.panels[:4]] == [
            "all images: mean of 3 images",
            "dog: mean",
            "dog: variance",
            "dog: entropy",
        ]
        assert len(result.panels) == 8
        assert [row[:4] for row in result.tables[0].rows] == [("dog", "all images", 3, 0), ("cat", "all images", 3, 0)]

    def test_subfolders_are_groups_and_a_bad_image_is_a_note(self, demo, folder, tmp_path, computed):
        settings = AverageMapSettings(("sheep",), templates=SHORT, group_by="subfolder", folder=tmp_path / "out")
        result = run_tool(AVERAGE, demo, ImageFiles([folder]), settings)
        assert [row[:3] for row in result.tables[0].rows] == [("sheep", "a", 1), ("sheep", "b", 2)]
        assert sum("bad.jpg" in note for note in result.notes) == 1
        with np.load(tmp_path / "out" / "average-map.npz") as found:
            assert found["groups"].tolist() == ["a", "b"]
            assert found["images"].tolist() == [1, 2]
            target = text_target(demo.clip, "sheep", SHORT)
            maps = [
                saliency(demo.clip, load_image(folder / name), target, "surgery")
                for name in ("b/deep/two.jpg", "b/one.jpg")
            ]
            for kind, values in statistics_of(maps).items():
                assert found[kind].shape == (1, 2, *maps[0].shape)
                if kind != "entropy":  # rounding may move a value to the next bin
                    assert_close(found[kind][0, 1], values, terms=DEMO_NETWORK, scale=1)

    def test_a_later_run_computes_only_what_is_missing(self, demo, folder, tmp_path, computed):
        images, stop = ImageFiles([folder]), threading.Event()
        kept = tmp_path / "out"
        settings = AverageMapSettings(("sheep",), templates=SHORT, folder=kept)

        def report(done, total, note):
            if done == 2:  # the damaged image and one more are done
                stop.set()

        part = run_tool(AVERAGE, demo, images, settings, Progress(report, stop))
        assert part.tables[0].rows[0][2] == 1
        assert part.notes[0] == "2 of 4 images were not processed."
        whole = run_tool(AVERAGE, demo, images, settings)
        assert len(computed) == 3
        numbers = (kept / "average-map.npz").read_bytes()
        again = run_tool(AVERAGE, demo, images, settings)
        assert len(computed) == 3
        assert again.tables == whole.tables
        assert (kept / "average-map.npz").read_bytes() == numbers
        afresh = run_tool(AVERAGE, demo, images, AverageMapSettings(("sheep",), templates=SHORT))
        assert afresh.tables[0].rows[0][4:] == about(whole.tables[0].rows[0][4:], terms=DEMO_NETWORK)
        del computed[:]
        run_tool(AVERAGE, demo, images, AverageMapSettings(("sheep", "bomb"), templates=SHORT, folder=kept))
        assert computed == ["bomb"] * 3
        run_tool(AVERAGE, demo, images, AverageMapSettings(("sheep",), templates=SHORT, folder=kept, method="raw"))
        run_tool(AVERAGE, demo, images, AverageMapSettings(("sheep",), templates=SHORT, folder=kept, fit="crop"))
        assert len(computed) == 9

    def test_groups_share_their_colours(self):
        paper, cells = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4), np.float32)
        cells[:, 2:] = 1
        shared = heat(cells, paper, (0, 2))
        assert (shared[:, 0] == heat(cells, paper)[:, 0]).all()
        assert (shared[:, -1] != heat(cells, paper)[:, -1]).any()
        assert (shared == heat(2 * cells, paper, (0, 4))).all()

    def test_a_damaged_map_raises(self, demo, folder, tmp_path):
        images = ImageFiles([folder / "b" / "one.jpg"])
        settings = AverageMapSettings(("sheep",), templates=SHORT, folder=tmp_path / "out")
        run_tool(AVERAGE, demo, images, settings)
        (path,) = (tmp_path / "out" / "maps").glob("*.npz")
        path.write_bytes(path.read_bytes()[:90])
        with pytest.raises(OutputError, match=r"one_.*damaged.*delete it"):
            run_tool(AVERAGE, demo, images, settings)
        path.unlink()
        assert run_tool(AVERAGE, demo, images, settings).tables[0].rows[0][2] == 1

    def test_models_without_a_hash_keep_nothing(self, tiny, tmp_path):
        settings = AverageMapSettings(("dog",), folder=tmp_path / "out")
        with pytest.raises(SettingsError, match="hash"):
            run_tool(AVERAGE, Text2Seg(tiny.clip, SAM), [builders.image()], settings)


class TestGroups:
    def test_csv_groups_match_relative_names(self, tiny, folder, tmp_path):
        table = tmp_path / "who.csv"
        rows = ["file;mood", "b/deep/two.jpg;glad", "a/three.jpg;sad", "gone.jpg;sad", "b/one.jpg;"]
        table.write_text("\r\n".join(rows), encoding="utf-8-sig")
        settings = AverageMapSettings(("dog",), templates=SHORT, group_by="csv", groups=table, column="mood")
        result = run_tool(AVERAGE, tiny, ImageFiles([folder]), settings)
        assert [row[:3] for row in result.tables[0].rows] == [("dog", "glad", 1), ("dog", "sad", 1)]
        assert result.notes[0] == "1 of the images that who.csv names were not given: gone.jpg."
        assert result.notes[1].startswith("2 images have no group in who.csv and were left out: a/bad.jpg, b/one.jpg")
        assert result.left_out == 3

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("file,mood\nä.jpg,glad\n".encode("latin-1"), "not encoded as UTF-8"),
            (b"name,mood\na.jpg,glad\n", "no column 'file'; its columns are name, mood"),
            (b"file,group\na.jpg,glad\n", "no column 'mood'"),
            (b"file,mood\na.jpg,glad\na.jpg,sad\n", "line 3: the image 'a.jpg' is listed twice"),
            (b'file,mood\n"a.jpg,glad\n', "not valid CSV"),
            (b"", "its columns are none"),
        ],
    )
    def test_files_that_cannot_be_used_raise(self, tmp_path, content, says):
        path = tmp_path / "groups.csv"
        path.write_bytes(content)
        with pytest.raises(SettingsError, match=says) as error:
            read_groups(path, "mood")
        assert str(path) in str(error.value)

    def test_settings_that_do_not_fit_raise(self, tiny, folder, tmp_path):
        with pytest.raises(SettingsError, match="--groups FILE"):
            AverageMapSettings(("dog",), group_by="csv")
        with pytest.raises(SettingsError, match="--group-by csv"):
            AverageMapSettings(("dog",), groups=tmp_path)
        settings = AverageMapSettings(("dog",), group_by="subfolder")
        with pytest.raises(SettingsError, match="no image is in a subfolder"):
            run_tool(AVERAGE, tiny, ImageFiles([folder / "b" / "one.jpg"]), settings)
        table = tmp_path / "groups.csv"
        table.write_text("file,group\none.jpg,x\nb/one.jpg,y\n")
        with pytest.raises(DatasetError, match="both match"):
            run_tool(AVERAGE, tiny, ImageFiles([folder]), AverageMapSettings(("dog",), group_by="csv", groups=table))

    def test_names_are_relative_to_the_folder_given(self, folder):
        images = ImageFiles([folder, folder / "b", folder / "a" / "three.jpg"])
        assert names_of(images)[:2] == ("a/bad.jpg", "a/three.jpg")
        assert names_of(images)[4:] == ("deep/two.jpg", "one.jpg", "three.jpg")
        assert names_of(images[5:]) == ("one.jpg", "three.jpg")
        assert images[5:].paths == images.paths[5:]


class Watched(Sequence):
    """Images made on demand; counts how many are in memory at the same time."""

    def __init__(self, count):
        self.count, self.alive, self.most, self.lock = count, 0, 0, threading.RLock()

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter([Image(np.zeros((1, 1, 3), np.uint8), f"{number}.png") for number in range(self.count)])

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 56, 3), np.uint8)
        image = Image(pixels, f"{index}.png")
        with self.lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(image.pixels, self._gone)
        return image

    def _gone(self):
        with self.lock:
            self.alive -= 1


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


class TestSimilarityTable:
    def test_values_are_those_of_a_plain_formula(self, tiny):
        images = [builders.image((40, 56)), builders.image((64, 48))]
        settings = SimilarityTableSettings(("dog", "red car"), word=("cat=1", "dog=3"), templates=SHORT)
        (table,) = run_tool(TABLE, tiny, images, settings).tables
        assert table.columns == (
            "file",
            "dog cosine",
            "dog logit",
            "red car cosine",
            "red car logit",
            "cat 25%, dog 75% score",
        )
        scale = tiny.clip.logit_scale
        texts = [text_target(tiny.clip, text, SHORT).features.double().numpy() for text in ("dog", "red car", "cat")]
        for row, image in zip(table.rows, images, strict=True):
            features = image_target(tiny.clip, image).features.double().numpy()
            dog, car, cat = (float(features @ text) for text in texts)
            total = math.exp(scale * dog) + math.exp(scale * cat)
            shares = {"cat": math.exp(scale * cat) / total, "dog": math.exp(scale * dog) / total}
            loss = 0.25 * math.log(0.25 / shares["cat"]) + 0.75 * math.log(0.75 / shares["dog"])
            expected = [dog, scale * dog, car, scale * car, -loss]
            assert list(row[1:]) == about(expected, terms=TINY_NETWORK, scale=scale)

    def test_the_csv_file_has_a_row_for_each_readable_image(self, demo, folder, tmp_path):
        odd = 'b/say "x, y".jpg'
        shutil.move(folder / "b" / "one.jpg", folder / odd)
        settings = SimilarityTableSettings(("sheep", "rocket"), templates=SHORT, folder=tmp_path / "out")
        result = run_tool(TABLE, demo, ImageFiles([folder]), settings)
        header, *rows = rows_of(tmp_path / "out" / CSV_FILE)
        assert header == ["file", "sheep cosine", "sheep logit", "rocket cosine", "rocket logit"]
        assert [row[0] for row in rows] == ["a/three.jpg", "b/deep/two.jpg", odd]
        for row, cells in zip(rows, result.tables[0].rows, strict=True):
            assert [np.float32(each) for each in row[1:]] == [np.float32(each) for each in cells[1:]]
        assert "bad.jpg" in result.notes[0]
        rocket = {row[0]: float(row[3]) for row in rows}
        assert max(rocket, key=rocket.get) == odd  # the scene with a rocket
        features = image_target(demo.clip, load_image(folder / odd)).features
        cosine = float(features.double() @ text_target(demo.clip, "rocket", SHORT).features.double())
        assert rocket[odd] == about(cosine, terms=DEMO_NETWORK)
        assert run_tool(TABLE, demo, ImageFiles([folder]), settings).tables == result.tables  # overwrites its own file
        (tmp_path / "out" / CSV_FILE).write_text("mine")
        with pytest.raises(OutputError, match="changed"):
            run_tool(TABLE, demo, ImageFiles([folder]), settings)

    def test_few_images_are_in_memory_and_a_stop_keeps_the_rows_so_far(self, tiny, tmp_path):
        images, stop = Watched(7 * BATCH), threading.Event()

        def report(done, total, note):
            if done >= 5 * BATCH:
                stop.set()

        settings = SimilarityTableSettings(("dog",), templates=SHORT, folder=tmp_path)
        result = run_tool(TABLE, tiny, images, settings, Progress(report, stop))
        assert images.most <= 3 * BATCH
        assert len(result.tables[0].rows) == len(rows_of(tmp_path / CSV_FILE)) - 1 == 5 * BATCH
        assert result.notes[0] == f"{2 * BATCH} of {7 * BATCH} images were not processed."


class TestVectors:
    @pytest.fixture
    def clip(self, tiny) -> Clip:
        return tiny.clip

    def test_names_and_values(self, clip, tmp_path):
        values = np.random.default_rng(1).normal(size=(3, 32))
        np.save(tmp_path / "one.npy", values[0])
        np.save(tmp_path / "rows.npy", values[:2].astype(np.float16))
        np.savez(tmp_path / "many.npz", joy=values[2], fear=values[:1])
        found = [
            target for name in ("one.npy", "rows.npy", "many.npz") for target in vector_targets(clip, tmp_path / name)
        ]
        assert [each.name for each in found] == ["one", "rows[0]", "rows[1]", "many:joy", "many:fear[0]"]
        half = values[:2].astype(np.float16).astype(float)
        for target, vector in zip(found, [values[0], *half, values[2], values[0]], strict=True):
            assert_close(target.features, vector / math.sqrt(math.fsum(vector**2)), terms=32)

    def test_huge_and_tiny_vectors_have_a_direction(self, clip, tmp_path):
        for factor in (1e300, 1e-300):
            np.save(tmp_path / "v.npy", np.full(32, factor))
            (target,) = vector_targets(clip, tmp_path / "v.npy")
            assert_close(target.features, np.full(32, 32**-0.5), terms=32)

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            (np.ones(31), r"numbers \[32\] or \[N, 32\].*float64\[31\]"),
            (np.ones((2, 2, 32)), "numbers"),
            (np.array(["a"] * 32), "numbers"),
            (np.full(32, np.nan), "not finite"),
            (np.stack([np.ones(32), np.zeros(32)]), r"v\[1\] has the length 0"),
            (np.array([{}] * 32), "Python objects"),
            (np.ones((0, 32)), "no vectors"),
        ],
    )
    def test_values_that_cannot_be_used_raise(self, clip, tmp_path, values, says):
        path = tmp_path / "v.npy"
        np.save(path, values, allow_pickle=True)
        with pytest.raises(QueryError, match=says) as error:
            vector_targets(clip, path)
        assert str(path) in str(error.value)
        np.savez(tmp_path / "v.npz", v=values)
        with pytest.raises(QueryError, match=says.replace(r"v\[", r"v:v\[")):
            vector_targets(clip, tmp_path / "v.npz")

    @pytest.mark.parametrize(
        ("content", "says"),
        [(b"", "not an array file"), (b"\x80\x04K\x01.", "not an array file"), (b"\x93NUMPY\x01\x00", "damaged")],
    )
    def test_files_of_other_kinds_raise(self, clip, tmp_path, content, says):
        path = tmp_path / "v.npy"
        path.write_bytes(content)
        with pytest.raises(QueryError, match=says):
            vector_targets(clip, path)
        with pytest.raises(QueryError, match="no such file"):
            vector_targets(clip, tmp_path / "none.npy")

    def test_the_stored_vector_of_a_text_gives_the_map_and_score_of_the_text(self, demo, tmp_path):
        text = text_target(demo.clip, "sheep", SHORT)
        np.save(tmp_path / "stored.npy", 7 * text.features.numpy())
        image = load_image(SCENES / "scene_0019.jpg")
        settings = SaliencySettings(("sheep",), templates=SHORT, vector=(tmp_path / "stored.npy",))
        result = run_tool(TOOLS["saliency"], demo, [image], settings)
        (of_text, of_vector) = result.tables[0].rows
        assert of_vector == ("stored", about(of_text[1], terms=DEMO_NETWORK))
        (stored,) = vector_targets(demo.clip, tmp_path / "stored.npy")
        maps = [saliency(demo.clip, image, target, "legrad") for target in (text, stored)]
        assert_close(maps[1], maps[0], terms=DEMO_NETWORK)

    def test_one_path_in_place_of_a_sequence_raises(self):
        with pytest.raises(SettingsError, match="sequence of paths"):
            SaliencySettings(("a",), vector=Path("v.npy"))


@pytest.mark.parametrize("tool", [AVERAGE, TABLE])
def test_visitors_of_the_app_set_no_paths(tool):
    assert {"vector", "folder", "groups"}.isdisjoint(setting.name for setting in shown_settings(tool.settings))
