"""Tracking: SAM 2's memory equals the video model of transformers; segments of other SAMs are matched by our own rule;
videos are read frame by frame, and the COCO file has the numbers of the tracks."""

from __future__ import annotations

import itertools
import json
import struct
import threading
from dataclasses import replace
from pathlib import Path

import builders
import cv2
import numpy as np
import pytest
import torch
from benchmark_scripts import import_benchmark
from closeness import TINY_NETWORK, assert_close, assert_same_masks
from PIL import Image as PillowImage
from sam2_builders import as_meta_wrote_it, random_weights, small_config, small_video_config, stock_model
from sam_builders import make_image
from transformers import Sam2ImageProcessor, Sam2VideoConfig, Sam2VideoProcessor, Sam2VideoVideoProcessor

from text2seg import Settings
from text2seg.cli import main
from text2seg.coco import rle
from text2seg.coco.dataset import read_dataset
from text2seg.config import TrackSettings
from text2seg.errors import CheckpointError, ImageError, OutputError, SettingsError
from text2seg.io.frames import open_frames
from text2seg.queries import parse_queries
from text2seg.records import Image
from text2seg.sam.memory import VideoMemory
from text2seg.sam.sam2 import Sam2, memory_of
from text2seg.tracking import MatchingTracker, MemoryTracker, _Track, has_memory, matched, tracker_for
from text2seg.video import track_video

CPU = torch.device("cpu")
HW = (60, 100)
FIRST, SECOND = (builders.box_mask(HW, left=20, top=10, width=40, height=30), builders.box_mask(HW, left=60, top=30))


# ---- SAM 2's memory


def visible(config: Sam2VideoConfig) -> dict[str, torch.Tensor]:
    """Random weights that find things visible; otherwise all masks would be empty."""
    weights = random_weights(config)
    weights["mask_decoder.pred_obj_score_head.proj_out.bias"] += 2
    return weights


def opened(weights: dict[str, torch.Tensor], config: Sam2VideoConfig | None) -> Sam2:
    described = None if config is None else json.loads(config.to_json_string())
    return Sam2.from_weights(weights, device=CPU, precision="fp32", config=described)


@pytest.fixture(scope="module")
def weights():
    return visible(small_video_config())


@pytest.fixture(scope="module")
def sam2(weights):
    return opened(weights, small_video_config())


def processor_of(side: int) -> Sam2VideoProcessor:
    size = {"height": side, "width": side}
    return Sam2VideoProcessor(Sam2ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size), target_size=side)


def compare_with_stock(*, real_size: bool = False, length: int = 7) -> None:
    """Follow two things, the second from the third frame on, and compare with transformers, frame by frame.

    Both get the same pixels, because a random network, which sees its own answers again, makes any rounding large.
    """
    config = Sam2VideoConfig() if real_size else small_video_config()
    side = 1024 if real_size else 128
    given = visible(config)
    ours, stock, processor = (
        opened(given, None if real_size else config),
        stock_model(config, given),
        processor_of(side),
    )
    memory, session = VideoMemory(ours), processor.init_video_session()
    for number in range(length):
        frame = make_image(*HW, seed=number)
        new = {0: {5: FIRST}, 2: {7: SECOND}}.get(number, {})
        found = memory.follow(frame, new)
        pixels = processor(images=frame.pixels.copy(), return_tensors="pt").pixel_values
        assert_close(ours.framed([frame]), pixels, terms=16)  # bilinear interpolation and normalisation
        for name, mask in new.items():
            processor.add_inputs_to_inference_session(session, number, [name], input_masks=[mask])
        wanted = stock(inference_session=session, frame=ours.framed([frame])[0])
        (full,) = processor.post_process_masks([wanted.pred_masks], [HW])
        assert list(found) == wanted.object_ids
        for place, each in enumerate(found.values()):
            assert each.logits.std() > 0.05, "the weights say nothing, so agreement would say nothing either"
            assert_close(each.logits, wanted.pred_masks[place, 0], terms=TINY_NETWORK)
            assert_same_masks(each.mask, full[place, 0])
            assert_close([each.score], wanted.object_score_logits[place].sigmoid().reshape(1), terms=TINY_NETWORK)


def test_masks_equal_those_of_the_video_model_of_transformers_frame_by_frame():
    compare_with_stock()


def test_masks_equal_those_of_transformers_for_a_whole_video(sam2, weights):
    frames = [make_image(*HW, seed=number) for number in range(18)]  # more than its 16 object pointers
    stock, processor = stock_model(small_video_config(), weights), processor_of(128)
    session = processor.init_video_session(video=np.stack([frame.pixels for frame in frames]))
    session.processed_frames = {number: sam2.framed([frame])[0] for number, frame in enumerate(frames)}
    processor.add_inputs_to_inference_session(session, 0, [1], input_masks=[FIRST])
    memory = VideoMemory(sam2)
    kept = []
    for frame, wanted in zip(frames, stock.propagate_in_video_iterator(session, start_frame_idx=0), strict=True):
        (found,) = memory.follow(frame, {} if kept else {1: FIRST}).values()
        assert_close(found.logits, wanted.pred_masks[0, 0], terms=TINY_NETWORK)
        kept.append(memory.nbytes)
    assert kept[-1] == kept[-2] > kept[0], "memory must not grow with the length of the video"


def test_tensors_of_the_memory_are_read_from_files_of_meta_too(weights, sam2):
    found = memory_of(as_meta_wrote_it(weights))
    assert found.keys() == memory_of(weights).keys()
    assert len(found) == 108
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.items())
    image = random_weights(small_config())
    assert not memory_of(image)
    lacking = opened({name: each for name, each in weights.items() if "memory_fuser" not in name}, small_video_config())
    with pytest.raises(CheckpointError, match=r"not the tensors of a SAM 2 with a memory: 18 missing, as 'memory_enc"):
        VideoMemory(lacking)


def test_a_thing_that_is_not_visible_has_an_empty_mask(weights):
    hidden = weights | {"mask_decoder.pred_obj_score_head.proj_out.bias": torch.tensor([-50.0])}
    memory = VideoMemory(opened(hidden, small_video_config()))
    first, later = (memory.follow(make_image(*HW, seed=n), new)[3] for n, new in enumerate(({3: FIRST}, {})))
    assert first.mask.any()
    assert first.score > 0.99
    assert not later.mask.any()
    assert later.score < 0.5


class Found:
    """Stands for a session: the segments of a frame, by query, and CLIP's tokens."""

    def __init__(self, frame, demo, **masks):
        self.image, self.asked, self.masks = frame, [], masks
        self.tokens = {"only": demo.clip.encode_images([frame], size=64)[0]}

    def segment(self, queries, settings):
        self.asked = [query.name for query in queries]
        found = [builders.segment(name, mask) for name in self.asked for mask in self.masks.get(name, ())]
        return builders.segmentation(*found, queries=self.asked, hw=self.image.hw)


def test_each_query_is_followed_from_the_first_frame_that_shows_it(sam2, demo):
    tracker = tracker_for(sam2, parse_queries(["ball", "cup"]), Settings())
    assert isinstance(tracker, MemoryTracker)
    frames = [make_image(*HW, seed=number) for number in range(4)]
    empty = np.zeros(HW, np.bool_)
    seen = [{"ball": [FIRST, empty]}, {}, {"cup": [SECOND]}, {"ball": [SECOND], "cup": [FIRST]}]
    sessions = [Found(frame, demo, **each) for frame, each in zip(frames, seen, strict=True)]
    found = [tracker.next(session) for session in sessions]
    assert [session.asked for session in sessions] == [["ball", "cup"], ["cup"], ["cup"], []]
    memory = VideoMemory(sam2)
    wanted = [memory.follow(f, new) for f, new in zip(frames, ({1: FIRST}, {}, {2: SECOND}, {}), strict=True)]
    assert [each.mask.any() for frame in wanted for each in frame.values()] == [True] * 6
    assert [[(each.track_id, each.query) for each in objects] for objects in found] == [
        [(1, "ball")],
        [(1, "ball")],
        [(1, "ball"), (2, "cup")],
        [(1, "ball"), (2, "cup")],
    ]
    np.testing.assert_array_equal(found[0][0].mask, FIRST)
    np.testing.assert_array_equal(found[3][1].mask, wanted[3][2].mask)
    assert found[3][1].score == pytest.approx(0.9 * wanted[3][2].score)


def test_the_sam_decides_which_tracker_is_taken(sam2, demo):
    queries = parse_queries(["sheep"])
    assert not has_memory(demo.sam)
    assert isinstance(tracker_for(demo.sam, queries, Settings()), MatchingTracker)
    assert isinstance(tracker_for(sam2, queries, Settings(), "matching"), MatchingTracker)
    still = Sam2.from_weights(
        random_weights(small_config()), device=CPU, config=json.loads(small_config().to_json_string())
    )
    for sam in (demo.sam, still):
        with pytest.raises(SettingsError, match="remembers no frames; take the tracker matching"):
            tracker_for(sam, queries, Settings(), "memory")


# ---- matching


def track(box, feature=(1.0, 0.0), *, number=1, seen=0, query="ball"):
    mask = np.ones((box[3], box[2]), np.bool_)
    return _Track(number, query, box, mask, np.array(feature, np.float32), seen)


def test_pairs_have_the_highest_total_affinity_of_all():
    random = np.random.default_rng(0)
    for _ in range(20):
        boxes = [tuple(map(int, (*random.integers(0, 12, 2), *random.integers(8, 14, 2)))) for _ in range(7)]
        features = random.normal(size=(7, 2)) / 4
        tracks = [track(box, f) for box, f in zip(boxes[:4], features[:4], strict=True)]
        segments = [track(box, f, seen=1) for box, f in zip(boxes[4:], features[4:], strict=True)]
        table = np.array([[one.affinity(other) for other in segments] for one in tracks])
        best = max(sum(table[n, m] for m, n in enumerate(order)) for order in itertools.permutations(range(4), 3))
        pairs = matched(tracks, segments)
        assert sum(table[pair] for pair in pairs) == pytest.approx(best)
        assert all(table[pair] > 0 for pair in pairs)


def test_affinity_is_the_iou_after_the_motion_and_half_the_cosine():
    before = track((10, 10, 20, 10), (0.6, 0.8))
    before.motion = np.array([5.0, 0.0])
    assert before.affinity(track((20, 10, 20, 10), (1, 0), seen=2)) == pytest.approx(1 + 0.3)
    assert before.affinity(track((20, 15, 20, 10), (0, 1), seen=2)) == pytest.approx(1 / 3 + 0.4)
    assert before.affinity(track((20, 10, 20, 10), seen=2, query="cup")) == 0
    assert before.affinity(track((55, 10, 20, 10), (0.6, 0.8), seen=2)) == pytest.approx(0.5)  # apart, but near
    assert before.affinity(track((65, 10, 20, 10), (0.6, 0.8), seen=2)) == 0  # more than its length in each frame
    assert before.affinity(track((55, 10, 45, 10), (0.6, 0.8), seen=2)) == 0  # twice as large


def numbers_of(demo, gap, *frames):
    """Numbers of the tracks when a ball is at these places, by their left edge; () if it is not found."""
    tracker = MatchingTracker(parse_queries(["ball"]), Settings(), gap)
    found = []
    for lefts in frames:
        masks = [builders.box_mask(HW, left=left) for left in lefts]
        found.append([each.track_id for each in tracker.next(Found(make_image(*HW), demo, ball=masks))])
    return found


def test_a_track_waits_for_the_gap_and_then_ends(demo):
    assert numbers_of(demo, 2, [10], [], [], [10]) == [[1], [], [], [1]]
    assert numbers_of(demo, 1, [10], [], [], [10]) == [[1], [], [], [2]]
    assert numbers_of(demo, 0, [10], [10], [], [10]) == [[1], [1], [], [2]]


def test_a_thing_that_was_last_seen_in_part_is_known_when_it_is_whole_again(demo):
    tracker = MatchingTracker(parse_queries(["ball"]), Settings(), 5)
    seen = [{"left": 10}, {"left": 14}, {"left": 18}, {"left": 22, "width": 4}, None, {"left": 36}]
    found = []
    for each in seen:
        masks = [] if each is None else [builders.box_mask(HW, **each)]
        found.append([each.track_id for each in tracker.next(Found(make_image(*HW), demo, ball=masks))])
    assert found == [[1], [1], [1], [1], [], [1]]


def test_things_that_pass_each_other_keep_their_numbers(demo):
    assert numbers_of(demo, 5, [0, 60], [10, 50], [20, 40], [32, 28], [40, 20], [50, 10]) == [[1, 2]] * 6
    tracker = MatchingTracker(parse_queries(["ball"]), Settings(), 5)
    plain = Image(np.full((*HW, 3), 127, np.uint8))  # what is under a mask must not tell the two apart
    for number, (left, right) in enumerate(((0, 60), (10, 50), (20, 40), (32, 28), (40, 20))):
        masks = [builders.box_mask(HW, left=each) for each in (left, right)]
        found = tracker.next(Found(plain, demo, ball=masks if number % 2 else masks[::-1]))
        assert [each.box_xywh[0] for each in found] == [right, left]  # whatever the order of the segments
    assert numbers_of(demo, 5, [0], [4, 60], [64, 8]) == [[1], [1, 2], [1, 2]]


def test_a_part_of_a_thing_that_is_followed_begins_no_track(demo):
    tracker = MatchingTracker(parse_queries(["ball"]), Settings(), 5)
    whole, part, other = (
        builders.box_mask(HW, **each) for each in ({"left": 10}, {"left": 10, "width": 3}, {"left": 50})
    )
    found = []
    for masks in ([whole], [part, whole, other], [whole, part]):
        objects = tracker.next(Found(make_image(*HW), demo, ball=masks))
        found.append([(each.track_id, each.mask.sum()) for each in objects])
    assert found == [[(1, whole.sum())], [(1, whole.sum()), (2, other.sum())], [(1, whole.sum())]]


LEAST = {"crossing": (0.86, 2, 0.83), "hiding": (0.63, 2, 0.78)}
"""Of each clip: the share of masks under the right number, the switches of numbers and the mean IoU, as they were in
float32 when they were written down (0.917 and 0.861; 0.727 and 0.817), less two masks, one switch more of the second,
and an IoU 0.03 lower, because processors differ in the last digits."""


@pytest.mark.parametrize("name", LEAST)
def test_drawings_in_motion_are_followed(demo, name):
    script = import_benchmark("video")
    found = script.score(*script.track_clip(demo, name))
    right_id, switches, mean_iou = LEAST[name]
    assert found.right_id >= right_id
    assert found.switches <= switches
    assert found.iou >= mean_iou


def test_scores_of_clips_count_switches_and_strangers():
    from text2seg.tracking import TrackedFrame, TrackedObject

    script = import_benchmark("video")
    one, two = FIRST, SECOND
    truth = [{1: ("ball", one), 2: ("ball", two)}] * 4
    ids = [(1, 2), (1, 2), (2, 1), (1, None)]
    frames = []
    for n, (a, b) in enumerate(ids):
        objects = [TrackedObject(a, "ball", one, 1.0)] + ([TrackedObject(b, "ball", two, 1.0)] if b else [])
        frames.append(TrackedFrame(n, make_image(*HW), (*objects, TrackedObject(9, "cup", one, 1.0))))
    found = script.score(frames, truth)
    assert (found.things, found.switches, found.extra) == (8, 3, 4)
    assert found.right_id == pytest.approx(5 / 8)  # three times 1 and twice 2
    assert found.iou == pytest.approx(7 / 8)


# ---- frames


def write_video(path: Path, count: int = 5, hw=(48, 64)) -> list[np.ndarray]:
    """Frames of one grey each, 40 levels apart, which a codec keeps."""
    frames = [np.full((*hw, 3), 20 + 40 * number, np.uint8) for number in range(count)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, hw[::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return frames


def test_a_video_file_is_read_frame_by_frame(tmp_path):
    frames = write_video(tmp_path / "clip.mp4")
    found = open_frames(tmp_path / "clip.mp4", every=2)
    assert (found.total, found.fps, found.is_file) == (3, 25, True)
    read = list(found)
    assert [(index, image.file_name, image.image_id) for index, image in read] == [
        (number, f"frames/clip_{number:06d}.png", number // 2 + 1) for number in (0, 2, 4)
    ]
    for index, image in read:
        assert abs(float(image.pixels.mean()) - float(frames[index].mean())) < 10
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[..., 2] = 250  # red in OpenCV
    writer = cv2.VideoWriter(str(tmp_path / "red.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    writer.write(colours)
    writer.release()
    ((_, red),) = open_frames(tmp_path / "red.mp4")
    assert red.pixels[..., 0].mean() > 200 > 50 > red.pixels[..., 2].mean()


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 100, 1):
        PillowImage.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    assert [image.file_name for _, image in open_frames(tmp_path)] == [
        "frame1.png",
        "frame9.png",
        "frame10.png",
        "frame100.png",
    ]
    found = open_frames(tmp_path, every=3)
    assert found.total == 2
    assert [(index, int(image.pixels[0, 0, 0])) for index, image in found] == [(0, 1), (3, 100)]


def test_frames_in_memory_are_read_only_when_they_are_needed(demo):
    taken = []

    def frames():
        for number in range(5):
            taken.append(number)
            yield make_image(*HW, seed=number).pixels

    tracked = demo.track(frames(), ["sheep"], every=2)
    assert not taken
    assert next(tracked).index == 0
    assert taken == [0]
    assert [frame.index for frame in tracked] == [2, 4]


def test_what_is_no_video_is_named(tmp_path, demo):
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(ImageError, match=r"notes\.txt cannot be read as a video; give a video file or a folder"):
        open_frames(tmp_path / "notes.txt")
    with pytest.raises(ImageError, match=r"missing\.mp4"):
        open_frames(tmp_path / "missing.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no file in it has the suffix of an image"):
        open_frames(tmp_path / "empty")
    write_video(tmp_path / "none.mp4", count=0)
    with pytest.raises(ImageError, match=r"none\.mp4"):
        open_frames(tmp_path / "none.mp4")
    with pytest.raises(ImageError, match="the frames: there are no frames"):
        list(demo.track([], ["sheep"]))
    sizes = [make_image(*HW), make_image(HW[0], HW[1] + 1)]
    with pytest.raises(ImageError, match=r"frame 1 \(.+\) has 101 x 60 pixels, and the first has 100 x 60"):
        list(open_frames(sizes))
    with pytest.raises(SettingsError, match="every must be a whole number of 1 or more, got 0"):
        open_frames(tmp_path, every=0)


def cut_in_half(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def test_a_video_that_ends_early_is_said(tmp_path, caplog):
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(40):
        writer.write(builders.pixels((48, 64), seed=number))
    writer.release()
    cut_in_half(tmp_path / "clip.avi")
    read = len(list(open_frames(tmp_path / "clip.avi")))
    assert 10 < read < 30
    assert f"clip.avi: {read} of about 40 frames could be read; it may be damaged" in caplog.text


def test_a_few_missing_frames_do_not_make_a_video_damaged(tmp_path):
    write_video(tmp_path / "clip.mp4", count=5)
    found = open_frames(tmp_path / "clip.mp4")
    assert [found.is_cut_off(last) for last in (4, 2, 1)] == [False, False, True]  # 0, 2 and 3 are missing
    assert [replace(found, announced=100).is_cut_off(last) for last in (94, 93)] == [False, True]
    assert [replace(found, announced=40, every=30).is_cut_off(last) for last in (30, 0)] == [False, True]
    assert not replace(found, announced=None).is_cut_off(0)


# ---- the job


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six frames of two drawings as JPEG; the second comes in the third frame."""
    script = import_benchmark("video")
    folder = tmp_path_factory.mktemp("clip")
    for number, (pixels, _) in enumerate(itertools.islice(script.clip_of(script.CLIPS["coming and going"]), 1, 6)):
        PillowImage.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    return folder


def test_the_coco_file_has_a_video_and_tracks(demo, clip, tmp_path):
    settings = TrackSettings(output=tmp_path / "out", save="overlay")
    report = track_video(demo, clip, ["bell", "rocket", "koala"], settings)
    found = json.loads(report.dataset.read_text())
    assert [each["frame_index"] for each in found["images"]] == [0, 1, 2, 3, 4]
    assert found["videos"] == [{"id": 1, "name": clip.name, "width": 400, "height": 300}]
    names = {each["id"]: each["name"] for each in found["categories"]}
    assert list(names.values()) == ["bell", "rocket", "koala"]
    tracks = {each["id"]: names[each["category_id"]] for each in found["tracks"]}
    assert (tracks[1], tracks[2]) == ("bell", "rocket")
    assert report.tracks["bell"] == {1: 0}
    assert report.tracks["rocket"][2] == 2
    assert report.tracks["koala"] == {}
    for each in found["annotations"]:
        assert names[each["category_id"]] == tracks[each["track_id"]]
        mask = rle.decode(each["segmentation"])
        assert mask.shape == (300, 400)
        assert each["area"] == mask.sum() > 0
    assert found["info"]["tracker"] == {"name": "matching", "gap": 5, "every": 1}
    read_dataset(report.dataset)  # the reader of all commands takes it
    assert main(["report", str(report.dataset), "--images", str(clip), "--output", str(tmp_path / "page.html")]) == 0
    assert report.written == [tmp_path / "out" / "overlay.mp4"]
    shown = list(open_frames(tmp_path / "out" / "overlay.mp4"))
    assert len(shown) == 5
    assert shown[0][1].hw == (300, 400)
    with pytest.raises(OutputError, match=r"dataset\.json already exists"):
        track_video(demo, clip, ["bell"], settings)


def test_frames_of_a_video_file_are_written_for_other_tools(demo, tmp_path):
    write_video(tmp_path / "clip.mp4", count=2)
    report = track_video(demo, tmp_path / "clip.mp4", ["bell"], TrackSettings(output=tmp_path / "out", save="frames"))
    entries = json.loads(report.dataset.read_text())["images"]
    assert [(tmp_path / "out" / each["file_name"]).is_file() for each in entries] == [True, True]
    assert main(["report", str(report.dataset), "--output", str(tmp_path / "page.html")]) == 0  # and found by the file
    for number in range(2):
        PillowImage.new("RGB", (64, 48)).save(tmp_path / "out" / f"{number}.png")
    with pytest.raises(SettingsError, match="--save frames is for video files"):
        track_video(demo, tmp_path / "out", ["bell"], TrackSettings(output=tmp_path / "other", save="frames"))


def test_a_stopped_job_keeps_what_is_done(demo, clip, tmp_path):
    stop = threading.Event()
    stop.set()
    settings = TrackSettings(output=tmp_path, save="overlay")
    report = track_video(demo, clip, ["bell"], settings, stop=stop)
    assert report.interrupted
    assert (report.frames, report.total) == (1, 5)
    assert len(json.loads(report.dataset.read_text())["images"]) == 1
    assert (tmp_path / "overlay.mp4").is_file()
    before = report.dataset.read_bytes()
    again = track_video(demo, clip, ["rocket"], TrackSettings(output=tmp_path, overwrite=True), stop=stop)
    assert again.kept_earlier
    assert report.dataset.read_bytes() == before


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stopped_job_leaves_frames_and_overlay_of_the_earlier_one(demo, tmp_path):
    settings = TrackSettings(output=tmp_path / "out", save=("frames", "overlay"), overwrite=True)
    for name, hw in (("a", (48, 64)), ("b", (64, 48))):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "clip.mp4", count=3 if name == "a" else 2, hw=hw)
    track_video(demo, tmp_path / "a" / "clip.mp4", ["bell"], settings)
    before, stop = files_of(tmp_path / "out"), threading.Event()
    assert len(before) == 6  # 3 frames, dataset, overlay, and the record
    stop.set()
    assert track_video(demo, tmp_path / "b" / "clip.mp4", ["bell"], settings, stop=stop).kept_earlier
    assert files_of(tmp_path / "out") == before
    track_video(demo, tmp_path / "b" / "clip.mp4", ["bell"], settings)
    assert sorted(path.name for path in (tmp_path / "out" / "frames").iterdir()) == [
        "clip_000000.png",
        "clip_000001.png",
    ]
    with PillowImage.open(tmp_path / "out" / "frames" / "clip_000000.png") as frame:
        assert frame.size == (48, 64)


def test_files_of_others_are_found_before_the_work(demo, tmp_path):
    write_video(tmp_path / "clip.mp4", count=2)
    for name in ("overlay.mp4", "frames/clip_000000.png"):
        theirs = tmp_path / "out" / name
        theirs.parent.mkdir(parents=True, exist_ok=True)
        theirs.write_bytes(b"theirs")
        settings = TrackSettings(output=tmp_path / "out", save=("frames", "overlay"), overwrite=True)
        with pytest.raises(OutputError, match=f"{theirs.name} was not written by text2seg"):
            track_video(demo, tmp_path / "clip.mp4", ["bell"], settings)
        assert files_of(tmp_path / "out") == {Path(name): b"theirs"}
        theirs.unlink()


def test_a_damaged_video_is_done_in_part_and_replaces_nothing(tmp_path, capsys):
    video, output = tmp_path / "clip.avi", tmp_path / "out"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(10):
        writer.write(builders.pixels((48, 64), seed=number))
    writer.release()
    arguments = ["track", str(video), "--model", "demo", "--query", "bell", "--save", "frames", "--output"]
    assert main([*arguments, str(output)]) == 0
    before = files_of(output)
    cut_in_half(video)
    assert main([*arguments, str(output), "--overwrite"]) == 3
    assert f"so {output / 'dataset.json'} is still that of the earlier run" in capsys.readouterr().err
    assert files_of(output) == before
    assert main([*arguments, str(tmp_path / "other")]) == 3
    read = len(json.loads((tmp_path / "other" / "dataset.json").read_text())["images"])
    assert 0 < read < 8
    assert f"only {read} of about 10 frames could be read; what could be read is written" in capsys.readouterr().err
    assert len(list((tmp_path / "other" / "frames").iterdir())) == read


def test_a_frame_that_cannot_be_read_is_left_out(clip, tmp_path, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(4):
        (frames / f"{number}.jpg").write_bytes((clip / f"{number}.jpg").read_bytes())
    (frames / "1.jpg").write_bytes(b"no image")
    output = tmp_path / "out"
    command = ["track", str(frames), "--model", "demo", "--query", "bell", "--output", str(output)]
    assert main(command) == 3
    told = capsys.readouterr()
    assert told.err.count("failed: 1.jpg") == 1
    assert "bell: 1 track" in told.out
    dataset = json.loads((output / "dataset.json").read_text())
    assert [each["frame_index"] for each in dataset["images"]] == [0, 2, 3]
    (failure,) = dataset["info"]["failures"]
    assert (failure["file_name"], failure["stage"]) == ("1.jpg", "read")
    assert str(frames) not in failure["message"]
    assert {each["track_id"] for each in dataset["annotations"]} == {1}
    assert main([*command, "--overwrite"]) == 3
    for path in frames.iterdir():
        path.write_bytes(b"no image")
    assert main([*command, "--overwrite"]) == 1
    assert "no frame can be read; the first: 0.jpg" in capsys.readouterr().err
    assert json.loads((output / "dataset.json").read_text()) == dataset


def test_a_frame_of_another_size_ends_the_job_with_what_is_done(clip, tmp_path, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(2):
        (frames / f"{number}.jpg").write_bytes((clip / f"{number}.jpg").read_bytes())
    PillowImage.new("RGB", (50, 40)).save(frames / "2.jpg")
    command = ["track", str(frames), "--model", "demo", "--query", "bell", "--output", str(tmp_path / "out")]
    assert main(command) == 3
    assert "2.jpg) has 50 x 40 pixels" in capsys.readouterr().err
    before = (tmp_path / "out" / "dataset.json").read_bytes()
    assert len(json.loads(before)["images"]) == 2
    assert main([*command, "--overwrite"]) == 3
    assert "have different sizes, so" in capsys.readouterr().err
    assert (tmp_path / "out" / "dataset.json").read_bytes() == before


def test_a_whole_video_whose_format_gives_no_number_of_frames_is_whole(tmp_path, caplog):
    """Matroska gives a duration, which may be that of the sound; here it is three times that of the frames."""
    path = tmp_path / "clip.mkv"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(40):
        writer.write(builders.pixels((48, 64), seed=number))
    writer.release()
    content = path.read_bytes()
    at = content.index(b"\x44\x89\x88") + 3
    (duration,) = struct.unpack(">d", content[at : at + 8])
    path.write_bytes(content[:at] + struct.pack(">d", 3 * duration) + content[at + 8 :])
    found = open_frames(path)
    assert (found.total, len(list(found))) == (120, 40)
    assert not found.is_cut_off(39)
    assert not caplog.records


def test_the_command_prints_the_tracks_of_each_query(clip, tmp_path, capsys):
    arguments = ["track", str(clip), "--model", "demo", "--query", "bell", "--query", "koala", "--every", "2"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "bell: 1 track, the first from frame 0",
        "koala: not found",
        f"COCO file: {tmp_path / 'out' / 'dataset.json'}",
    ]
    found = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [each["frame_index"] for each in found["images"]] == [0, 2, 4]


def test_the_command_refuses_what_cannot_be_done_before_it_loads_models(clip, tmp_path, capsys):
    start = ["track", "--model", "demo", "--query", "bell", "--output", str(tmp_path / "out")]
    assert main([*start, str(tmp_path / "missing.mp4")]) == 1
    assert "missing.mp4" in capsys.readouterr().err
    assert main([*start, str(clip), "--tracker", "memory"]) == 2
    assert "remembers no frames" in capsys.readouterr().err
    assert main([*start, str(clip), "--tracker", "memory", "--gap", "3"]) == 2
    assert "--gap has no effect with --tracker memory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_calibration_every_query_starts_in_the_first_frame(clip, demo, tmp_path, capsys):
    (tmp_path / "card.json").write_bytes(demo.card.uncalibrated().to_json())
    arguments = ["track", str(clip), "--model", "demo", "--card", str(tmp_path / "card.json"), "--query", "rocket"]
    assert main([*arguments, "--every", "4", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "presence is not calibrated" in shown.err
    assert "so every query starts in the first frame, whether it shows it or not" in shown.err
    assert "the first from frame 0" in shown.out
