"""Track drawings through small clips, and score the tracks: python benchmarks/video.py [--sam NAME] [--output FOLDER]

The clips are made here: things are cut out of the bundled scenes by their true masks and moved over a background. Two
things of one kind cross, one hides behind another for a few frames, one comes and goes. `--real-size` compares SAM 2's
memory with that of transformers on random weights of the size of SAM 2.1 tiny instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import networkx
import numpy as np
from numpy.typing import NDArray

from text2seg import Text2Seg, demo
from text2seg.coco import rle
from text2seg.grids import iou
from text2seg.records import Image
from text2seg.tracking import TrackedFrame

SCENES = Path(demo.__file__).parent / "scenes" / "new-scenes"
HW = (300, 400)
LENGTH = 12
LEAST_IOU = 0.5
"""From this IoU on, a mask shows a thing, as in the metrics of MOTChallenge."""

Mask = NDArray[np.bool_]
Truth = dict[int, tuple[str, Mask]]
"""The visible things of a frame: number, query and mask bool[H, W]."""
Path2d = Callable[[int], tuple[float, float] | None]
"""Where the centre of a thing is in a frame, in pixels; None if it is not there."""


@dataclass(frozen=True)
class Thing:
    """A cut-out of the scenes, by the id of its annotation, and its way; those that come later are in front."""

    annotation: int
    way: Path2d


def straight(start: tuple[float, float], end: tuple[float, float], first: int = 0, last: int = LENGTH - 1) -> Path2d:
    """A way at constant speed from one point to another, there from frame `first` to `last`."""

    def way(frame: int) -> tuple[float, float] | None:
        if not first <= frame <= last:
            return None
        share = (frame - first) / max(last - first, 1)
        return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])

    return way


SHEEP, PENGUIN, BALL, RABBIT, BELL, ROCKET = 71, 3, 24, 66, 5, 10
CLIPS: dict[str, tuple[Thing, ...]] = {
    "crossing": (
        Thing(SHEEP, straight((60, 100), (340, 160))),
        Thing(SHEEP, straight((340, 110), (60, 190))),
        Thing(PENGUIN, straight((200, 250), (200, 250))),
    ),
    "hiding": (
        Thing(RABBIT, straight((50, 160), (350, 160))),
        Thing(BALL, straight((200, 160), (200, 160))),
    ),
    "coming and going": (
        Thing(BELL, straight((60, 60), (300, 90))),
        Thing(ROCKET, straight((120, 210), (280, 230), first=3, last=8)),
    ),
}


def clip_of(things: Sequence[Thing]) -> Iterator[tuple[NDArray[np.uint8], Truth]]:
    """Yield the frames of a clip, uint8[H, W, 3], and the true masks of what is visible in each."""
    across, down = np.meshgrid(np.linspace(0, 1, HW[1]), np.linspace(0, 1, HW[0]))
    background = np.stack([40 + 30 * across, 120 + 40 * down, 130 - 30 * across], -1).astype(np.uint8)
    sprites = [_cut_out(thing.annotation) for thing in things]
    for frame in range(LENGTH):
        pixels, truth = background.copy(), Truth()
        for number, (thing, (query, colours, mask)) in enumerate(zip(things, sprites, strict=True), start=1):
            if (centre := thing.way(frame)) is None:
                continue
            top, left = round(centre[1] - mask.shape[0] / 2), round(centre[0] - mask.shape[1] / 2)
            rows, columns = np.nonzero(mask)
            inside = (rows + top >= 0) & (rows + top < HW[0]) & (columns + left >= 0) & (columns + left < HW[1])
            rows, columns = rows[inside], columns[inside]
            own = np.zeros(HW, np.bool_)
            own[rows + top, columns + left] = True
            pixels[own] = colours[rows, columns]
            truth = {each: (name, seen & ~own) for each, (name, seen) in truth.items()} | {number: (query, own)}
        areas = {number: np.count_nonzero(sprites[number - 1][2]) for number in truth}
        # Of a thing that is mostly hidden, a tracker need not say anything.
        yield pixels, {n: each for n, each in truth.items() if np.count_nonzero(each[1]) >= 0.25 * areas[n]}


def _cut_out(annotation: int) -> tuple[str, NDArray[np.uint8], Mask]:
    """Return the name, pixels and mask of a thing of the scenes, in its tight box."""
    truth = json.loads((SCENES / "dataset.json").read_text())
    (entry,) = [each for each in truth["annotations"] if each["id"] == annotation]
    (image,) = [each for each in truth["images"] if each["id"] == entry["image_id"]]
    (name,) = [each["name"] for each in truth["categories"] if each["id"] == entry["category_id"]]
    mask = rle.decode(rle.checked_rle(entry["segmentation"], (image["height"], image["width"])))
    pixels = cv2.imread(str(SCENES / image["file_name"]))[:, :, ::-1]
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = slice(y, y + height), slice(x, x + width)
    return name, pixels[box], mask[box]


@dataclass(frozen=True)
class Score:
    """Scores of a clip over `things`, the number of true masks in all its frames.

    `right_id` is the share of them that are found under the number of their track, where tracks belong to things in the
    way that makes it largest (ID recall; Ristani et al., arXiv 1609.01775). `switches` counts the frames in which a
    thing has another number than when it was found last (CLEAR MOT). `iou` is the mean over all true masks, 0 for
    those not found. `extra` is the number of masks that show no thing.
    """

    things: int
    right_id: float
    switches: int
    iou: float
    extra: int


def score(tracked: Sequence[TrackedFrame], truth: Sequence[Truth]) -> Score:
    """Compare tracks with the truth, frame by frame."""
    together: Counter[tuple[int, int]] = Counter()
    last: dict[int, int] = {}
    switches, extra, ious, things = 0, 0, 0.0, 0
    for frame, wanted in zip(tracked, truth, strict=True):
        graph = networkx.Graph()
        for number, (query, mask) in wanted.items():
            for place, found in enumerate(frame.objects):
                overlap = iou(mask, found.mask) if found.query == query else 0.0
                if overlap >= LEAST_IOU:
                    graph.add_edge(("thing", number), ("found", place), weight=overlap)
        pairs = dict(sorted(pair, reverse=True) for pair in networkx.max_weight_matching(graph))
        things += len(wanted)
        extra += len(frame.objects) - len(pairs)
        for (_, number), (_, place) in pairs.items():
            track = frame.objects[place].track_id
            ious += iou(wanted[number][1], frame.objects[place].mask)
            switches += last.get(number, track) != track
            last[number] = track
            together[number, track] += 1
    tracks = networkx.Graph()
    for (number, track), count in together.items():
        tracks.add_edge(("thing", number), ("track", track), weight=count)
    right = sum(tracks.edges[pair]["weight"] for pair in networkx.max_weight_matching(tracks))
    return Score(things, right / things, switches, ious / things, extra)


def track_clip(models: Text2Seg, name: str) -> tuple[list[TrackedFrame], list[Truth]]:
    """Track everything that a clip shows at any time, by its name."""
    frames = list(clip_of(CLIPS[name]))
    queries = list(dict.fromkeys(query for _, truth in frames for query, _ in truth.values()))
    images = (Image(pixels, f"{number:06d}.png") for number, (pixels, _) in enumerate(frames))
    return list(models.track(images, queries)), [truth for _, truth in frames]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", help="another SAM than the demo's")
    parser.add_argument("--output", type=Path, help="also write the frames of each clip into this folder")
    parser.add_argument("--real-size", action="store_true")
    arguments = parser.parse_args()
    if arguments.real_size:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from test_tracking import compare_with_stock

        compare_with_stock(real_size=True, length=4)
        print("equal to transformers on 4 frames, SAM 2.1 tiny with random weights")
        return
    models = Text2Seg.load("demo", sam=arguments.sam, precision="fp32")
    print("clip               masks  right id  switches    IoU  extra")
    for name in CLIPS:
        tracked, truth = track_clip(models, name)
        row = score(tracked, truth)
        print(f"{name:<18} {row.things:5}  {row.right_id:8.3f}  {row.switches:8}  {row.iou:5.3f}  {row.extra:5}")
        if arguments.output:
            write(arguments.output / name.replace(" ", "-"), name, tracked)


def write(folder: Path, name: str, tracked: Sequence[TrackedFrame]) -> None:
    """Write the frames of a clip as JPEG, and the frames with their tracks as PNG."""
    from text2seg.render.overlays import numbered_overlay

    for kind in ("frames", "tracks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for frame in tracked:
        things = [(each.track_id, each.query, each.mask) for each in frame.objects]
        cv2.imwrite(str(folder / "frames" / f"{frame.index:03d}.jpg"), frame.image.pixels[:, :, ::-1])
        cv2.imwrite(
            str(folder / "tracks" / f"{frame.index:03d}.png"), numbered_overlay(frame.image, things)[:, :, ::-1]
        )


if __name__ == "__main__":
    main()
