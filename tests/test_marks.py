"""Marks of a review: their file, `merge --marks` and `label --marks`."""

from __future__ import annotations

import json
import threading
from copy import deepcopy

import builders
import labelling_builders
import numpy as np
import pytest
from labelling_builders import FakeModels, fill, run

from text2seg.cli import main
from text2seg.coco.dataset import read_dataset, write_dataset
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.marks import Mark, Marks, identity, read_marks, write_marks
from text2seg.coco.rle import encode, mask_of
from text2seg.errors import DatasetError, ImageError
from text2seg.ontology import ontology_of_queries
from text2seg.records import Segmentation, SimilarityMaps
from text2seg.review import write_review
from text2seg.review.contents import contents_of
from text2seg.review.thumbnail import thumbnail


@pytest.fixture
def job(tmp_path):
    """A folder of eight images, its labelled dataset, and that dataset as read."""
    fill(tmp_path / "images", 8)
    output = tmp_path / "dataset.json"
    run(tmp_path / "images", output)
    return tmp_path / "images", output, read_dataset(output)


def name_of(dataset, annotation):
    return next(each["file_name"] for each in dataset["images"] if each["id"] == annotation["image_id"])


def category_of(dataset, annotation):
    return next(each["name"] for each in dataset["categories"] if each["id"] == annotation["category_id"])


def mark(dataset, place, verdict, category=None):
    annotation = dataset["annotations"][place]
    return Mark(image=name_of(dataset, annotation), annotation=annotation["id"], verdict=verdict, category=category)


def other_category(dataset, place):
    return next(
        each["name"] for each in dataset["categories"] if each["id"] != dataset["annotations"][place]["category_id"]
    )


def three(dataset):
    """Marks that accept the first annotation, reject the second, and correct the category of the third."""
    return [
        mark(dataset, 0, "accepted"),
        mark(dataset, 1, "rejected"),
        mark(dataset, 2, "accepted", other_category(dataset, 2)),
    ]


def saved(path, dataset, marks):
    return write_marks(path, "dataset.json", identity(dataset), marks)


def masks(dataset):
    """Image, category and pixels of each annotation."""
    return {
        (name_of(dataset, each), category_of(dataset, each), mask_of(each, builders.HW).tobytes())
        for each in dataset["annotations"]
    }


def key(dataset, place):
    annotation = dataset["annotations"][place]
    return name_of(dataset, annotation), category_of(dataset, annotation), mask_of(annotation, builders.HW).tobytes()


GOOD = {"text2seg_marks": 1, "dataset": {"name": "a", "sha256": "0" * 64}, "marks": []}
ONE = {"image": "a.png", "annotation": 1, "verdict": "accepted"}


class TestFile:
    def test_marks_survive_writing_and_reading(self, job, tmp_path):
        dataset = job[2]
        marks = [*three(dataset), Mark(image=dataset["images"][0]["file_name"], verdict="rejected")]
        path = saved(tmp_path / "marks.json", dataset, marks)
        file = read_marks(path)
        assert (file.marks, file.dataset.sha256) == (marks, identity(dataset))
        found = file.marks_of(dataset, "marks.json")
        ids = [each["id"] for each in dataset["annotations"][:3]]
        assert found.annotations == dict(zip(ids, ("accepted", "rejected", "accepted"), strict=True))
        assert found.categories == {ids[2]: other_category(dataset, 2)}
        assert found.count() == "1 accepted, 1 corrected, 1 rejected; of whole images 1"

    def test_the_hash_depends_on_what_is_marked_only(self, job):
        dataset = job[2]
        before = identity(dataset)
        changed = deepcopy(dict(dataset))
        changed["info"] = {}
        changed["annotations"].reverse()
        for each in changed["annotations"]:
            each["attributes"] = {}
        assert identity(changed) == before
        for entry, field, value in (
            ("images", "file_name", "x.png"),
            ("categories", "name", "x"),
            ("annotations", "category_id", 9),
            ("annotations", "segmentation", encode(builders.box_mask(left=2))),
        ):
            other = deepcopy(dict(dataset))
            other[entry][0][field] = value
            assert identity(other) != before, field

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("{", "is not a JSON file"),
            ("", "is not a JSON file: it is empty"),
            ("[]", "is not a file of marks: it must be an object"),
            ('{"images": [], "annotations": [], "categories": []}', "is not a file of marks: dataset is missing"),
            ({**GOOD, "text2seg_marks": 2}, "text2seg_marks must be 1, got 2"),
            ({**GOOD, "dataset": {"name": "a", "sha256": "abc"}}, "dataset sha256 must match"),
            ({**GOOD, "more": 1}, "more is not known here"),
            ({**GOOD, "marks": {}}, "marks must be a list, got {}"),
            (
                {**GOOD, "marks": [ONE, {**ONE, "verdict": "maybe"}]},
                "marks no. 2 verdict must be 'accepted' or 'rejected', got 'maybe'",
            ),
            ({**GOOD, "marks": [{**ONE, "annotation": "1"}]}, "annotation must be a whole number"),
            (
                {**GOOD, "marks": [{**ONE, "verdict": "rejected", "category": "dog"}]},
                "marks no. 1: only an accepted annotation",
            ),
            (
                {**GOOD, "marks": [{"image": "a", "verdict": "accepted", "category": "dog"}]},
                "marks no. 1: only an accepted annotation",
            ),
            ({**GOOD, "marks": [{"annotation": 1, "verdict": "accepted"}]}, "marks no. 1 image is missing"),
        ],
    )
    def test_other_files_are_refused(self, job, tmp_path, capsys, content, words):
        _, output, _ = job
        path = tmp_path / "marks.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(DatasetError, match=r"marks\.json") as told:
            read_marks(path)
        assert words in str(told.value)
        self.refused(output, path, tmp_path, capsys, words)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"image": "nowhere.png"}, "has no image 'nowhere.png'"),
            ({"annotation": 99}, "has no annotation 99 of"),
            ({"category": "unicorn"}, "has no category 'unicorn'"),
            ({"category": "bal"}, "Did you mean"),
        ],
    )
    def test_marks_of_what_the_dataset_lacks_are_refused(self, job, tmp_path, capsys, change, words):
        _, output, dataset = job
        path = saved(tmp_path / "marks.json", dataset, [mark(dataset, 0, "accepted").model_copy(update=change)])
        self.refused(output, path, tmp_path, capsys, words)

    def test_an_annotation_of_another_image_is_refused(self, job, tmp_path, capsys):
        _, output, dataset = job
        first = dataset["annotations"][0]
        other = next(each["file_name"] for each in dataset["images"] if each["id"] != first["image_id"])
        path = saved(
            tmp_path / "marks.json", dataset, [mark(dataset, 0, "rejected").model_copy(update={"image": other})]
        )
        self.refused(output, path, tmp_path, capsys, f"has no annotation {first['id']} of {other!r}")

    def test_marks_of_another_dataset_are_refused(self, job, tmp_path, capsys):
        _, output, dataset = job
        path = write_marks(tmp_path / "marks.json", "earlier.json", "0" * 64, [mark(dataset, 0, "accepted")])
        self.refused(
            output, path, tmp_path, capsys, "has marks of another dataset, earlier.json with the hash 000000000000…"
        )

    @staticmethod
    def refused(output, marks, tmp_path, capsys, words):
        """Neither merge nor label writes anything."""
        images, before = tmp_path / "images", output.read_bytes()
        journal = output.with_name("dataset.json.journal").read_bytes()
        merged = tmp_path / "merged.json"
        capsys.readouterr()
        assert main(["merge", str(output), "--marks", str(marks), "--output", str(merged)]) == 1
        assert words in " ".join(capsys.readouterr().err.split())
        assert not merged.exists()
        with pytest.raises(DatasetError):
            run(images, output, marks=marks)
        assert (output.read_bytes(), output.with_name("dataset.json.journal").read_bytes()) == (before, journal)


class TestMerge:
    def test_applies_the_marks(self, job, tmp_path, capsys):
        _, output, dataset = job
        path = saved(tmp_path / "marks.json", dataset, three(dataset))
        merged = tmp_path / "merged.json"
        assert main(["merge", str(output), "--marks", str(path), "--output", str(merged)]) == 0
        assert "1 accepted, 1 corrected, 1 rejected" in capsys.readouterr().out
        found = read_dataset(merged)
        name, old, pixels = key(dataset, 2)
        expected = masks(dataset) - {key(dataset, 1), (name, old, pixels)} | {
            (name, other_category(dataset, 2), pixels)
        }
        assert masks(found) == expected
        review = [each["attributes"].get("review") for each in found["annotations"]]
        assert sorted(filter(None, review)) == ["accepted", "corrected"]
        (corrected,) = [each for each in found["annotations"] if each["attributes"].get("review") == "corrected"]
        assert corrected["attributes"]["category_before"] == old
        assert [each["id"] for each in found["annotations"]] == [*range(1, len(expected) + 1)]

    def test_each_shard_has_its_own_marks(self, tmp_path):
        fill(tmp_path / "images", 8)
        paths, marks = [], []
        for number in (1, 2):
            paths.append(tmp_path / f"{number}.json")
            run(tmp_path / "images", paths[-1], shard=f"{number}/2")
            dataset = read_dataset(paths[-1])
            marks.append(saved(tmp_path / f"marks{number}.json", dataset, [mark(dataset, 0, "rejected")]))
        merged = tmp_path / "merged.json"
        flags = [each for path in reversed(marks) for each in ("--marks", str(path))]
        assert main(["merge", *map(str, paths), *flags, "--output", str(merged)]) == 0
        parts = [read_dataset(path) for path in paths]
        expected = set.union(*(masks(each) - {key(each, 0)} for each in parts))
        assert masks(read_dataset(merged)) == expected

    def test_later_marks_of_one_dataset_count_more(self, job, tmp_path):
        _, output, dataset = job
        first = saved(tmp_path / "1.json", dataset, three(dataset))
        second = saved(tmp_path / "2.json", dataset, [mark(dataset, 1, "accepted"), mark(dataset, 2, "rejected")])
        flags = ["--marks", str(first), "--marks", str(second)]
        assert main(["merge", str(output), *flags, "--output", str(tmp_path / "merged.json")]) == 0
        assert masks(read_dataset(tmp_path / "merged.json")) == masks(dataset) - {key(dataset, 2)}

    def test_a_rejected_image_leaves(self, job, tmp_path):
        _, output, dataset = job
        name = name_of(dataset, dataset["annotations"][0])
        path = saved(tmp_path / "marks.json", dataset, [Mark(image=name, verdict="rejected")])
        assert main(["merge", str(output), "--marks", str(path), "--output", str(tmp_path / "merged.json")]) == 0
        found = read_dataset(tmp_path / "merged.json")
        assert len(found["images"]) == len(dataset["images"]) - 1
        assert masks(found) == {each for each in masks(dataset) if each[0] != name}
        assert found["info"]["review"] == {"accepted": [], "rejected": [name]}

    def test_marks_are_never_the_output(self, job, tmp_path, capsys):
        _, output, dataset = job
        path = saved(tmp_path / "marks.json", dataset, three(dataset))
        before = path.read_bytes()
        command = ["merge", str(output), "--marks", str(path), "--output", str(path), "--overwrite"]
        assert main(command) == 1
        assert path.read_bytes() == before


class Shifted(FakeModels):
    """Other models: their masks lie elsewhere, in part over those of `FakeModels`."""

    def _segmentation(self, image, queries, score):
        hw = image.hw
        wide = builders.box_mask(hw)
        moved = [np.roll(wide, 1, axis=1), np.roll(builders.ring_mask(hw), 9, axis=0)]
        found = [builders.segment(q.name, m, sam_score=0.5) for q, m in zip(queries, moved, strict=False)]
        scores = np.zeros((len(queries), 3, 4), np.float32)
        presence = np.full(len(queries), 0.5, np.float32)
        maps = SimilarityMaps(tuple(query.name for query in queries), scores, presence, hw)
        return Segmentation(image, tuple(found), maps)


class TestLabel:
    def test_a_finished_job_takes_the_marks_over(self, job, tmp_path):
        """And the same command again writes the same bytes."""
        images, output, dataset = job
        path = saved(tmp_path / "marks.json", dataset, three(dataset))
        models = FakeModels()
        run(images, output, marks=path, models=models)
        assert not models.batches
        found = read_dataset(output)
        name, old, pixels = key(dataset, 2)
        expected = masks(dataset) - {key(dataset, 1), (name, old, pixels)} | {
            (name, other_category(dataset, 2), pixels)
        }
        assert masks(found) == expected
        assert found["info"]["review"]["dataset"] == identity(dataset)
        (rejected,) = found["info"]["review"]["rejected_masks"]
        assert (rejected["file_name"], rejected["category"]) == key(dataset, 1)[:2]
        assert not any("provenance" in each["attributes"] for each in found["annotations"])
        before = output.read_bytes()
        report = run(images, output, marks=path)
        assert output.read_bytes() == before
        assert sum(each.segments for each in report.categories) == len(expected)

    def test_a_run_without_marks_keeps_the_review(self, job, tmp_path):
        images, output, dataset = job
        unmarked = output.read_bytes()
        run(images, output, marks=saved(tmp_path / "marks.json", dataset, three(dataset)))
        reviewed = output.read_bytes()
        run(images, output)
        assert output.read_bytes() == reviewed
        run(images, output, restart=True)
        assert masks(read_dataset(output)) == masks(json.loads(reviewed))
        run(images, output, overwrite=True)
        assert output.read_bytes() == unmarked

    def test_a_new_labelling_keeps_what_was_decided(self, job, tmp_path):
        """Accepted and corrected masks stay with their provenance, nothing like a rejected one comes back, and all else
        is new."""
        images, output, dataset = job
        path = saved(tmp_path / "marks.json", dataset, three(dataset))
        run(images, output, marks=path, models=Shifted(settings="other"), restart=True)
        found = read_dataset(output)
        alone = tmp_path / "alone.json"
        run(images, alone, models=Shifted(settings="other"))
        name, old, pixels = key(dataset, 2)
        kept = {key(dataset, 0), (name, other_category(dataset, 2), pixels)}
        assert kept <= masks(found)
        new = masks(found) - kept
        assert new < masks(read_dataset(alone))
        decided = [(key(dataset, 0), {key(dataset, 0)[1]}), (key(dataset, 1), {key(dataset, 1)[1]})]
        decided.append(((name, old, pixels), {old, other_category(dataset, 2)}))
        for each in masks(read_dataset(alone)):
            mine = np.frombuffer(each[2], bool)
            is_decided = any(
                each[0] == image
                and each[1] in categories
                and (mine & np.frombuffer(theirs, bool)).sum() >= 0.5 * (mine | np.frombuffer(theirs, bool)).sum()
                for (image, _, theirs), categories in decided
            )
            assert (each in new) != is_decided
        assert len(new) < len(masks(read_dataset(alone)))
        for each in found["annotations"]:
            is_kept = "review" in each["attributes"]
            assert ("provenance" in each["attributes"]) == is_kept
            if is_kept:
                assert each["attributes"]["provenance"] == dataset["info"]["provenance"]

    def test_a_stopped_labelling_goes_on_with_the_marks(self, job, tmp_path):
        images, output, dataset = job
        path = saved(tmp_path / "marks.json", dataset, three(dataset))
        stop = threading.Event()

        class Stopping(Shifted):
            def segment_sessions(self, sessions, queries):
                stop.set()
                return super().segment_sessions(sessions, queries)

        before = output.read_bytes()
        report = run(images, output, marks=path, models=Stopping(settings="other"), restart=True, stop=stop)
        assert report.interrupted
        assert output.read_bytes() == before
        run(images, output, marks=path, models=Shifted(settings="other"))
        whole = tmp_path / "whole" / "dataset.json"
        whole.parent.mkdir()
        write_dataset(dataset, whole)
        run(images, whole, marks=path, models=Shifted(settings="other"), overwrite=True)
        assert read_dataset(output)["annotations"] == read_dataset(whole)["annotations"]

    def test_a_second_review_adds_to_the_first(self, job, tmp_path):
        images, output, dataset = job
        run(images, output, marks=saved(tmp_path / "1.json", dataset, three(dataset)))
        once = read_dataset(output)
        place = next(n for n, each in enumerate(once["annotations"]) if "review" not in each["attributes"])
        second = saved(tmp_path / "2.json", once, [mark(once, place, "rejected")])
        run(images, output, marks=second)
        twice = read_dataset(output)
        assert masks(twice) == masks(once) - {key(once, place)}
        assert len(twice["info"]["review"]["rejected_masks"]) == 2
        assert sum("review" in each["attributes"] for each in twice["annotations"]) == 2

    def test_other_marks_of_the_old_dataset_are_refused(self, job, tmp_path):
        images, output, dataset = job
        run(images, output, marks=saved(tmp_path / "1.json", dataset, three(dataset)))
        before = output.read_bytes()
        late = saved(tmp_path / "2.json", dataset, [mark(dataset, 3, "rejected")])
        with pytest.raises(DatasetError, match=r"as it was before other marks were applied.*mark a new page"):
            run(images, output, marks=late)
        assert output.read_bytes() == before

    def test_more_marks_of_the_same_page_count_after_the_first_were_taken_back(self, job, tmp_path):
        images, output, dataset = job
        first = three(dataset)
        run(images, output, marks=saved(tmp_path / "1.json", dataset, first))
        both = saved(tmp_path / "2.json", dataset, [*first, mark(dataset, 3, "rejected")])
        with pytest.raises(DatasetError, match="without --marks and with --overwrite, which takes them back"):
            run(images, output, marks=both)
        run(images, output, overwrite=True)
        run(images, output, marks=both)
        assert masks(dataset) - masks(read_dataset(output)) >= {key(dataset, 3)}

    def test_a_rejected_image_leaves_and_stays_away(self, job, tmp_path):
        images, output, dataset = job
        name = name_of(dataset, dataset["annotations"][0])
        path = saved(tmp_path / "marks.json", dataset, [Mark(image=name, verdict="rejected")])
        for _ in range(2):
            report = run(images, output, marks=path)
            found = read_dataset(output)
            assert (report.rejected, report.done) == (1, report.images)
            assert report.found == len({each["image_id"] for each in found["annotations"]})
            assert name not in {each["file_name"] for each in found["images"]}
            assert masks(found) == {each for each in masks(dataset) if each[0] != name}

    def test_an_accepted_image_keeps_all_its_annotations(self, job, tmp_path):
        images, output, dataset = job
        name = name_of(dataset, dataset["annotations"][0])
        path = saved(tmp_path / "marks.json", dataset, [Mark(image=name, verdict="accepted")])
        run(images, output, marks=path, models=Shifted(settings="other"), restart=True)
        of_image = {each for each in masks(dataset) if each[0] == name}
        assert of_image <= masks(read_dataset(output))

    def test_a_category_that_is_needed_must_stay(self, job, tmp_path):
        images, output, dataset = job
        path = saved(tmp_path / "marks.json", dataset, three(dataset))
        with pytest.raises(DatasetError, match="was accepted, but the ontology has no category"):
            run(images, output, marks=path, ontology=ontology_of_queries("dog"), restart=True)
        assert read_dataset(output) == dataset

    def test_an_image_that_is_needed_must_stay(self, job, tmp_path):
        images, output, dataset = job
        path = saved(tmp_path / "marks.json", dataset, three(dataset))
        (images / name_of(dataset, dataset["annotations"][0])).unlink()
        with pytest.raises(ImageError, match="are kept, but the job has no such images"):
            run(images, output, marks=path)

    def test_there_must_be_an_output(self, job, tmp_path):
        images, _, dataset = job
        path = saved(tmp_path / "marks.json", dataset, three(dataset))
        with pytest.raises(DatasetError, match=r"there is no .*new\.json that these marks could belong to"):
            run(images, tmp_path / "new.json", marks=path)

    def test_the_command_says_what_was_decided(self, tmp_path, capsys, demo):
        scenes = labelling_builders.Path(__file__).parents[1] / "text2seg/demo/scenes/new-scenes/images"
        output = tmp_path / "dataset.json"
        command = ["label", str(scenes), "--glob", "scene_0019.jpg", "--queries", "sheep, fire engine"]
        command += ["--output", str(output), "--model", "demo"]
        assert main(command) == 0
        dataset = read_dataset(output)
        path = saved(tmp_path / "marks.json", dataset, three(dataset))
        capsys.readouterr()
        assert main([*command, "--marks", str(path)]) == 0
        said = capsys.readouterr().out
        assert "marks: 1 accepted, 1 corrected, 1 rejected" in said
        assert "1 image: 1 with segments, 0 without, 0 failed" in said
        assert len(read_dataset(output)["annotations"]) == len(dataset["annotations"]) - 1


def test_a_page_that_begins_with_marks_draws_rejected_segments_as_such(job, tmp_path):
    images, output, dataset = job
    rejected = next(each for each in dataset["annotations"])
    marks = [Mark(image=name_of(dataset, rejected), annotation=rejected["id"], verdict="rejected")]
    path = saved(tmp_path / "marks.json", dataset, marks)
    contents, finder = contents_of(dataset), ImageFinder(images=images)
    image = next(each for each in contents.images if each.file_name == name_of(dataset, rejected))
    drawn, plain = (
        thumbnail(image, contents.colours, finder=finder, rejected=those).url for those in ([rejected["id"]], [])
    )
    for name, given, shown, other in (("begun.html", path, drawn, plain), ("new.html", None, plain, drawn)):
        page = write_review(output, tmp_path / name, images=images, marks=given).path.read_text(encoding="utf-8")
        assert shown in page
        assert other not in page


def test_a_correction_to_the_same_category_is_an_acceptance():
    marks = Marks()
    marks.decide(1, "accepted", "ball", "ball")
    assert (marks.annotations, marks.categories) == ({1: "accepted"}, {})
