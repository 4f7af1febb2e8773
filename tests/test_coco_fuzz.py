"""Datasets with odd values anywhere: every command ends with an error message, not with a traceback or a signal.

The commands run in a child process with a memory limit, all examples in one, because what goes wrong in C code ends the
process. `TEXT2SEG_FUZZ=2000 python -m pytest tests/test_coco_fuzz.py` tries more examples.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

EXAMPLES = int(os.environ.get("TEXT2SEG_FUZZ", "30"))
MEMORY = 6 << 30  # of addresses; importing torch takes half of it
HW = (6, 8)
RLE, POLYGON = {"size": list(HW), "counts": [10, 5, 33]}, [[1, 1, 6, 1, 6, 4, 1, 4]]
PROVENANCE = {
    "text2seg": "0.5.0",
    "clip": {"name": "demo", "sha256": "0" * 64},
    "sam": {"name": "demo", "sha256": "0" * 64},
    "precision": "fp32",
    "settings": {"maps": {"architecture": "surgery"}, "presence": {"presence": 0.5}},
}
ATTRIBUTES = {
    "query": "dog",
    "score": 0.9,
    "sam_score": 0.9,
    "presence": 0.7,
    "points": [[2.5, 1.5, 1, 0.9], [7, 5, 0, 0.1]],
    "candidate_scores": [0.9, 0.8],
    "chosen_candidate": 0,
    "candidates": [RLE],
    "view_xywh": [0, 0, 8, 6],
    "provenance": PROVENANCE,
}
GOOD: dict[str, Any] = {
    "info": {
        "provenance": PROVENANCE,
        "ontology": {"categories": [{"name": "dog", "id": 1, "queries": ["dog"], "presence": 0.4}]},
        "failures": [{"file_name": "c.png", "stage": "read", "message": "cut short"}],
    },
    "licenses": [],
    "images": [
        {"id": 1, "file_name": "a.png", "height": 6, "width": 8, "attributes": {"presence": {"dog": 0.9, "cat": 0.1}}},
        {"id": 2, "file_name": "b.png", "height": 6, "width": 8},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": RLE, "area": 5, "bbox": [1, 4, 2, 2], "iscrowd": 0}
        | {"score": 0.9, "attributes": ATTRIBUTES},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": POLYGON, "area": 15, "iscrowd": 0, "score": 0.5},
        {"id": 3, "image_id": 2, "category_id": 1, "segmentation": {**RLE, "counts": ":5Q1"}, "iscrowd": 1},
        {"id": 4, "image_id": 2, "category_id": 1, "bbox": [1, 1, 3, 3], "segmentation": POLYGON, "score": 0.2},
    ],
    "categories": [
        {"id": 1, "name": "dog", "supercategory": "animal", "color": [1, 2, 3]},
        {"id": 2, "name": "cat"},
    ],
}
ODD = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        1.0,
        1.5,
        -0.0,
        7,
        2**31,
        2**32,
        2**53,
        10**9,
        10**18,
        2**62,
        2**63,
        2**64,
        2**70,
    ),
    *(10**400, -(10**400), 1e12, 2e8, 1e300, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", "1", "1.0", "-1", "x", "dog", "é", "\0", "\ud800", "../../x", "a" * 300, "a/" * 3000, "o" * 5000, "0" * 5000),
    *([], {}, [None], [[]], [[[]]], [{}], {"a": {"b": [1]}}, [1] * 4, [1] * 6, [1.5] * 7, ["1"] * 6, "1 2 3 4 5 6"),
    *([0] * 1000, [0, 48, *[0] * 100_000], [2**62] * 4, [2**64, 48], [-1, 49], [48.0], [10, 0, 0, 38]),
    *([[0, 0, 2e8, 0, 5, 5]], [[0, 0, 900, 900] * 5000], [[1, 1, 2, 2, 3, 1]] * 3000, [[1, 2, 3, 4]], [POLYGON, RLE]),
    *({"size": [6, 8], "counts": "é"}, {"size": [10**9, 10**9], "counts": [1]}, {"size": ["6", "8"], "counts": [48]}),
]


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*way, key)
        yield from places(each, (*way, key))


EDITS = st.tuples(
    st.sampled_from(list(places(GOOD))), st.sampled_from(["odd", "odd", "odd", "gone", "twice"]), st.sampled_from(ODD)
)


def edited(edits: list[tuple[tuple[Any, ...], str, Any]]) -> dict[str, Any]:
    """The valid dataset with values replaced, removed or repeated."""
    dataset = copy.deepcopy(GOOD)
    for (*way, key), what, odd in edits:
        at: Any = dataset
        with contextlib.suppress(
            KeyError, IndexError, TypeError, AttributeError
        ):  # an earlier edit may have taken the place away
            for step in way:
                at = at[step]
            if what == "gone":
                at.pop(key)
            elif what == "twice" and isinstance(at, list):
                at.append(copy.deepcopy(at[key]))
            else:
                at[key] = copy.deepcopy(odd)
    return dataset


class Models:
    """A pipeline that finds nothing."""

    def __init__(self) -> None:
        from text2seg.config import Settings

        self.settings = Settings()

    def check(self, queries: Any, settings: Any = None) -> Any:
        return queries

    def open(self, image: Any) -> Any:
        found = SimpleNamespace(segments=())
        return SimpleNamespace(image=image, segment=lambda queries, settings: found, view=self._view)

    def _view(self, view: Any) -> Any:
        from text2seg.errors import Text2SegError

        raise Text2SegError("all that is recorded was read")

    def provenance(self, settings: Any = None) -> dict[str, Any]:
        return {**PROVENANCE, "graphs": None, "compiled": False}


def run_all(folder: Path, text: str) -> None:
    """Run every command that reads datasets; only the project's own errors are allowed."""
    from text2seg.calibration.thresholds import tune_by_truth
    from text2seg.cli import main
    from text2seg.coco.dataset import read_dataset, results_of
    from text2seg.config import LabelSettings
    from text2seg.errors import Text2SegError
    from text2seg.labelling.job import assign_ids, scan_folder
    from text2seg.ontology import ontology_of_queries
    from text2seg.review.replay import replay

    odd, good, images, out = (str(folder / name) for name in ("odd.json", "good.json", "images", "out"))
    Path(odd).write_bytes(text.encode("utf-8", "surrogatepass"))
    overwrite = ["--output", out, "--overwrite"]
    commands = [
        *(["evaluate", good, odd], ["evaluate", odd, good, "--match", "file-name"], ["evaluate", odd, odd]),
        *(["report", odd, "--images", images, "--output", f"{out}.html", "--overwrite"],),
        *(["merge", odd, "--output", f"{out}.json", "--overwrite"],),
        *(["convert", odd, "--to", to, *overwrite] for to in ("yolo-seg", "voc-png", "labelme")),
        *(["convert", odd, "--to", "labelme", "--images", images, *overwrite],),
    ]
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(command) in (0, 1), command
    ontology = ontology_of_queries("dog, cat")
    scan = scan_folder(Path(images), LabelSettings(output=Path(out)))
    calls = [
        lambda: tune_by_truth(Models(), ontology, Path(images), read_dataset(odd)),
        lambda: assign_ids(ontology, scan, Path(odd)),
        lambda: replay(odd, 1, images=images, models=Models()),
        lambda: results_of(read_dataset(odd)),
    ]
    for call in calls:
        with contextlib.suppress(Text2SegError):
            call()


def child(folder: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(folder / "images" / name)
    (folder / "good.json").write_text(json.dumps(GOOD), encoding="utf-8")
    run_all(folder, json.dumps(GOOD))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize="TEXT2SEG_FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(EDITS, min_size=1, max_size=3))
    def fuzz(edits: list[tuple[tuple[Any, ...], str, Any]]) -> None:
        run_all(folder, json.dumps(edited(edits)))

    fuzz()


def test_random_datasets_raise_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, str(tmp_path)], capture_output=True, text=True, check=False
    )
    odd = tmp_path / "odd.json"
    example = odd.read_text(encoding="utf-8", errors="surrogateescape")[:20_000] if odd.exists() else ""
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-8000:]}\nfor the dataset {example}"


if __name__ == "__main__":
    child(Path(sys.argv[1]))
