"""A visit to the Segment tab without a browser: looking, clicking, exports, commands."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from closeness import about
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

from text2seg.app.model_pool import ModelPool
from text2seg.app.segment import command
from text2seg.app.segment.document import with_point
from text2seg.app.segment.examples import examples
from text2seg.app.segment.export import dataset_of, exported
from text2seg.app.segment.requests import read_ask
from text2seg.app.segment.session import Visit, looked, opened, pointed
from text2seg.app.segment.view import view_of
from text2seg.app.settings import AppSettings
from text2seg.cli import main
from text2seg.cli.segment import Segment as SegmentCommand
from text2seg.config import MaskSettings, ModelSettings, PresenceSettings, Settings, TileSettings
from text2seg.errors import QueryError, Text2SegError
from text2seg.io.images import load_image
from text2seg.review.provenance import points_of
from text2seg.runtime import FULL, Precision


@pytest.fixture(scope="module")
def model_pool(demo):
    return ModelPool(demo, AppSettings())


@pytest.fixture(scope="module")
def visit(model_pool):
    """A visit with two sheep, a fire engine, and a koala that is not there."""
    return read_ask({"do": "example", "number": 0}).answered(Visit(), model_pool).visit


def numbers(visit, query=None):
    return [piece.number for piece in visit.document.pieces if query in (None, piece.segment.query)]


class TestVisit:
    def test_an_example_is_opened_and_looked_at(self, visit):
        view = view_of(visit)
        verdicts = {query["name"]: query["verdict"] for query in view["queries"]}
        assert verdicts["sheep"].startswith("2 x, best 0.9")
        assert verdicts["koala"].startswith("not found (0.")
        assert [piece["query"] for piece in view["pieces"]] == ["sheep", "sheep", "fire engine"]
        assert len(json.dumps(view)) < 20_000

    def test_all_examples_know_their_words(self, demo):
        for example in examples():
            assert demo.check(list(example.texts))
            assert example.thumbnail.startswith("data:image/jpeg;base64,")

    def test_another_threshold_encodes_nothing(self, visit, model_pool, monkeypatch):
        def forbidden(*args, **keywords):
            raise AssertionError("an image was encoded")

        monkeypatch.setattr(
            model_pool.models.clip, "encode_images", lambda images, **keywords: forbidden() if images else []
        )
        monkeypatch.setattr(model_pool.models.sam, "embed", lambda images: forbidden() if images else [])
        again = looked(visit, model_pool, visit.texts, threshold=0.6, presence=0.0)
        counts = [len(piece.segment.points) for piece in again.document.pieces]
        assert counts != [len(piece.segment.points) for piece in visit.document.pieces]
        assert "koala" in {piece.segment.query for piece in again.document.pieces}
        assert again.found.thresholds == (0, 0, 0)

    def test_a_click_is_answered_with_the_points_and_the_new_one(self, visit, model_pool):
        number = numbers(visit, "fire engine")[0]
        before = visit.document.piece(number).segment
        after = pointed(visit, number, "", (150.0, 20.0), positive=False)
        segment = after.document.piece(number).segment
        expected = visit.session.segment_points(
            "fire engine",
            with_point(before.points, (150.0, 20.0), positive=False, scores=visit.found.maps.scores[1], hw=(360, 270)),
        )
        assert np.array_equal(segment.mask, expected.mask)
        assert segment.points.xy[-1].tolist() == [150.0, 20.0]
        assert after.history.undo().present is visit.document

    def test_a_click_can_begin_a_segment(self, visit):
        after = pointed(visit, 0, "koala", (90.0, 150.0), positive=True)  # on the bomb
        (new,) = (piece for piece in after.document.pieces if piece.segment.query == "koala")
        assert new.by_hand
        assert new.segment.mask[150, 90]
        assert "koala" in {query["name"] for query in view_of(after)["queries"] if query["found"]}

    def test_it_cannot_begin_with_what_does_not_belong_to_it(self, visit):
        with pytest.raises(Text2SegError, match="first point"):
            pointed(visit, 0, "koala", (90.0, 150.0), positive=False)

    def test_an_unknown_word_is_named_with_those_that_are_close(self, visit, model_pool):
        with pytest.raises(QueryError, match=r"'unicycle'\. Did you mean bicycle\? It knows 109") as error:
            looked(visit, model_pool, ("sheep", "unicycle"), threshold=None, presence=None)
        assert len(str(error.value)) < 250
        assert "--model" in str(error.value)
        assert "--model" not in error.value.on_page
        assert "“At work”" in error.value.on_page

    def test_without_a_picture_there_is_nothing_to_look_at(self, model_pool):
        with pytest.raises(Text2SegError, match="no image"):
            looked(Visit(), model_pool, ("sheep",), threshold=None, presence=None)

    def test_changed_models_are_used_for_the_next_look(self, visit, demo):
        other = ModelPool(demo, AppSettings())
        with pytest.raises(Text2SegError, match="nothing to point at"):
            pointed(opened(other, examples()[0].image), 0, "sheep", (1, 1), positive=True)
        stale = replace(visit, models=None)
        assert looked(stale, other, ("sheep",), threshold=None, presence=None).models is demo

    def test_deleting_all_of_a_kind_is_told_as_such(self, visit, model_pool):
        for number in numbers(visit, "sheep"):
            visit = read_ask({"do": "delete", "piece": number}).answered(visit, model_pool).visit
        assert view_of(visit)["queries"][0]["verdict"] == "removed by hand"
        for texts, verdict in ((("koala", "sheep"), "removed by hand"), (("koala",), "not found"), (("sheep",), "2 x")):
            visit = looked(visit, model_pool, texts, threshold=None, presence=None)
            assert view_of(visit)["queries"][-1]["verdict"].startswith(verdict)  # forgotten with the query

    def test_why_gives_the_numbers_and_a_picture(self, visit, model_pool):
        number = numbers(visit, "fire engine")[0]
        answer = read_ask({"do": "why", "piece": number}).answered(visit, model_pool)
        segment = visit.document.piece(number).segment
        assert [each["sam"] for each in answer.why["candidates"]] == pytest.approx(segment.candidates.scores.tolist())
        assert [each["won"] for each in answer.why["candidates"]].index(True) == segment.chosen
        assert answer.why["candidates"][segment.chosen]["map"] == about(
            segment.map_score, terms=visit.found.maps.scores[0].size
        )
        assert len(answer.why["points"]) == len(segment.points)
        assert PillowImage.open(io.BytesIO(answer.picture)).format == "PNG"


class TestExport:
    def test_the_coco_file_holds_the_masks_and_how_they_came_about(self, visit):
        number = numbers(visit, "sheep")[0]
        visit = pointed(visit, number, "", (5.0, 5.0), positive=False)
        name, content = exported(visit, "coco", frozenset(numbers(visit)))
        dataset = json.loads(content)
        assert name == "scene_0019_dataset.json"
        assert [category["name"] for category in dataset["categories"]] == ["sheep", "fire engine", "koala"]
        for annotation, piece in zip(dataset["annotations"], visit.document.pieces, strict=True):
            assert np.array_equal(coco_mask.decode(annotation["segmentation"]).astype(bool), piece.segment.mask)
            assert annotation["attributes"]["by_hand"] == (piece.number == number)
            assert annotation["attributes"]["provenance"]["clip"]["name"] == "demo"
            assert np.array_equal(points_of(annotation).xy, piece.segment.points.xy)
        assert dataset["images"][0]["file_name"] == "scene_0019.jpg"

    def test_only_what_was_asked_for_is_in_it(self, visit):
        chosen = frozenset(numbers(visit, "fire engine"))
        assert [each["category_id"] for each in dataset_of(visit, chosen)["annotations"]] == [2]
        assert dataset_of(visit, frozenset())["annotations"] == []

    def test_everything_is_one_zip(self, visit):
        name, content = exported(visit, "all", frozenset(numbers(visit)))
        assert name == "scene_0019_text2seg.zip"
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = {entry.removeprefix("scene_0019_text2seg/") for entry in archive.namelist()}
            kinds = {"sheep-1", "sheep-2", "fire-engine-1"}
            assert names == {"dataset.json", "overlay.png"} | {
                f"{folder}s/{kind}_{folder}.png" for folder in ("mask", "cutout") for kind in kinds
            }
            mask = np.asarray(
                PillowImage.open(io.BytesIO(archive.read("scene_0019_text2seg/masks/fire-engine-1_mask.png")))
            )
        (piece,) = (piece for piece in visit.document.pieces if piece.segment.query == "fire engine")
        assert np.array_equal(mask, piece.segment.mask * 255)

    def test_one_cut_out_is_a_png_with_a_transparent_ground(self, visit):
        name, content = exported(visit, "cutouts", frozenset(numbers(visit, "fire engine")))
        picture = PillowImage.open(io.BytesIO(content))
        (piece,) = (piece for piece in visit.document.pieces if piece.segment.query == "fire engine")
        assert name == "scene_0019_fire-engine-1_cutout.png"
        assert picture.mode == "RGBA"
        assert picture.size == piece.segment.box_xywh[2:]

    def test_nothing_shown_means_no_masks(self, visit):
        with pytest.raises(Text2SegError, match="show at least one"):
            exported(visit, "masks", frozenset())


@pytest.fixture
def parsed(monkeypatch):
    """What the command line of text2seg understands of a line, without doing it."""
    understood: list[SegmentCommand] = []
    monkeypatch.setattr(SegmentCommand, "run", lambda self: understood.append(self) or 0)

    def parse(line: str) -> SegmentCommand:
        *remarks, last = line.splitlines()
        assert all(remark.startswith("# ") for remark in remarks)
        program, *words = shlex.split(last)
        assert program == "text2seg"
        assert main(words) == 0
        return understood.pop()

    return parse


@pytest.fixture
def at_home(monkeypatch):
    """A machine on which `auto` means the CPU in fp32, as the demo model of the tests runs."""
    monkeypatch.setattr(command, "choose_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(command, "choose_precision", lambda device: FULL)


@pytest.mark.usefixtures("at_home")
class TestCommand:
    def test_it_says_nothing_that_goes_without_saying(self, visit):
        assert command.as_command(visit) == (
            "text2seg segment scene_0019.jpg --query sheep --query 'fire engine' --query koala"
        )
        assert "Settings" not in command.as_python(visit)

    @pytest.mark.parametrize("threshold", [None, 0.65])
    def test_the_command_line_understands_it(self, visit, demo, threshold, parsed, monkeypatch):
        texts = ("person's +bench|'x", "--dog", "$(rm) -cat `a`", 'a "b"')
        settings = Settings(
            masks=MaskSettings(fallback=True, prompt="box"), tiles=TileSettings(tile=256, tile_overlap=0.1)
        )
        monkeypatch.setattr(demo, "settings", settings)
        image = replace(visit.session.image, file_name="-it's a photo.jpg")
        session = demo.open(image)
        visit = replace(visit, session=session, texts=texts, threshold=threshold, presence=0.25)
        understood = parsed(command.as_command(visit))
        assert understood.query == texts
        assert understood.settings == visit.settings
        assert understood.settings.presence == PresenceSettings(0.25)
        assert [path.name for path in understood.images] == ["-it's a photo.jpg"]

    def test_the_python_gives_the_same_masks(self, visit, model_pool, tmp_path, monkeypatch):
        visit = looked(visit, model_pool, visit.texts, threshold=0.7, presence=0.0)
        PillowImage.fromarray(visit.session.image.pixels).save(tmp_path / "scene_0019.png")
        monkeypatch.chdir(tmp_path)
        image = load_image("scene_0019.png")
        names: dict = {}
        exec(command.as_python(replace(visit, session=model_pool.session(image))), names)
        result = names["result"]
        assert len(result.segments) == len(visit.document.pieces)
        for one, piece in zip(result.segments, visit.document.pieces, strict=True):
            assert one.query == piece.segment.query
            assert np.mean(one.mask != piece.segment.mask) < 0.01  # precision may be another

    def test_what_was_done_by_hand_is_told(self, visit):
        visit = pointed(visit, numbers(visit)[0], "", (5.0, 5.0), positive=False)
        visit = replace(visit, history=visit.history.step(visit.document.deleted(numbers(visit)[1])))
        first, last = command.as_command(visit).splitlines()
        assert first == "# Without what was done by hand: 1 made or corrected by hand, 1 removed by hand."
        assert last.startswith("text2seg segment")
        compile(command.as_python(visit), "copied", "exec")

    def test_what_was_accepted_under_other_settings_is_told(self, visit, model_pool):
        number = numbers(visit, "fire engine")[0]
        visit = replace(visit, history=visit.history.step(visit.document.accepted(number)))
        assert not command.as_command(looked(visit, model_pool, visit.texts, threshold=None, presence=None)).startswith(
            "#"
        )
        other = looked(visit, model_pool, visit.texts, threshold=0.95, presence=None)
        assert "# Without what was done by hand: 1 accepted before the settings changed." in command.as_command(other)

    def test_models_are_named_where_they_are_not_the_demo(self, visit, demo, monkeypatch):
        monkeypatch.setattr(demo, "_provenance", {"clip": {"name": "ViT-B/16"}, "sam": {"name": "vit_h"}})
        assert "--model huge" in command.as_command(visit)
        assert 'Text2Seg.load("huge")' in command.as_python(visit)
        monkeypatch.setattr(demo, "_provenance", {"clip": {"name": "my clip.pt"}, "sam": {"name": "demo"}})
        assert "--clip 'my clip.pt' --sam demo" in command.as_command(visit)

    @pytest.mark.parametrize(
        ("clip", "sam"),
        [
            ("openclip:ViT-B-16/laion2b_s34b_b88k", "sam2.1_hiera_tiny"),
            ("openclip:my models/siglip", "mobile_sam"),
            ("demo", "facebook/sam2.1-hiera-small"),
        ],
    )
    def test_any_pair_of_names_is_understood(self, visit, demo, clip, sam, parsed, monkeypatch):
        monkeypatch.setattr(demo, "_provenance", {"clip": {"name": clip}, "sam": {"name": sam}})
        assert parsed(command.as_command(visit)).model == ModelSettings(clip=clip, sam=sam)
        assert f'Text2Seg.load("demo", clip={clip!r}, sam={sam!r})' in command.as_python(visit)

    def test_what_auto_would_not_choose_is_named(self, visit, demo, parsed, monkeypatch):
        monkeypatch.setattr(command, "choose_device", lambda: torch.device("cuda:0"))
        monkeypatch.setattr(command, "choose_precision", lambda device: Precision(torch.bfloat16, "fast"))
        monkeypatch.setattr(demo.sam, "compiled", True)
        wanted = ModelSettings(device="cpu", precision="fp32", compile=True)
        assert parsed(command.as_command(visit)).model == wanted
        assert "Text2Seg.load(\"demo\", device='cpu', precision='fp32', compile=True)" in command.as_python(visit)
