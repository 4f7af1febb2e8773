"""A labelling job with fake models, also run in a separate process that is killed many times."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import builders
import numpy as np
from PIL import Image as PillowImage

from text2seg.config import LabelSettings
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries
from text2seg.queries import parse_queries
from text2seg.records import Segmentation, SimilarityMaps

ONTOLOGY = ontology_of_queries("ball, red car")


class FakeModels:
    """Finds a box, a ring or nothing, by the name of the image. Every score depends on all images of the batch, as
    rounding does on real machines, so a batch of other images changes the bytes."""

    def __init__(self, *, seconds=0.0, raises=None, settings="none"):
        self.seconds, self.raises, self.settings = seconds, raises or {}, settings
        self.batches = []
        self.photographs = ()
        self.device = SimpleNamespace(type="cpu")
        self.sam = SimpleNamespace(mask=self._mask)

    def check(self, queries):
        return parse_queries(queries)

    def known_queries(self, queries):
        return parse_queries(queries), {}

    def is_unfamiliar(self, image):
        return image.file_name in self.photographs

    def provenance(self, settings=None):
        return {"text2seg": "test", "settings": {"points": {"threshold": self.settings}}}

    def open(self, image):
        return SimpleNamespace(image=image, embedding=image)

    def _mask(self, embedding, candidates, index):
        return builders.box_mask(embedding.hw, left=index)

    def segment_sessions(self, sessions, queries):
        time.sleep(self.seconds)
        names = [session.image.file_name for session in sessions]
        self.batches.append(names)
        for name in names:
            if name in self.raises:
                raise self.raises[name]
        score = zlib.crc32(" ".join(names).encode("utf-8", "surrogateescape")) % 997 / 997
        return tuple(self._segmentation(session.image, queries, score) for session in sessions)

    def _segmentation(self, image, queries, score):
        kind = zlib.crc32(image.file_name.encode("utf-8", "surrogateescape")) % 4
        masks = [builders.box_mask(image.hw), builders.ring_mask(image.hw)][: kind if kind < 3 else 0]
        found = [builders.segment(q.name, m, sam_score=score) for q, m in zip(queries, masks, strict=False)]
        scores = np.zeros((len(queries), 3, 4), np.float32)
        presence = np.full(len(queries), score, np.float32)
        maps = SimilarityMaps(tuple(query.name for query in queries), scores, presence, image.hw)
        return Segmentation(image, tuple(found), maps)


def fill(folder: Path, count: int) -> list[str]:
    """Write tiny images to three folders; return their paths relative to `folder`, in the order of a scan."""
    names = [f"{'ab.'[n % 3]}/{n:04}.png".removeprefix("./") for n in range(count)]
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PillowImage.fromarray(builders.pixels(seed=seed)).save(folder / name)
    return sorted(names)


def run(folder: Path, output: Path, *, models=None, ontology=ONTOLOGY, stop=None, engine=None, **settings):
    return label_folder(
        models or FakeModels(), folder, ontology, LabelSettings(output=output, **settings), stop=stop, engine=engine
    )


def kill_often(folder: Path, output: Path, encoding: str, kills: int, seed: int) -> int:
    """Start the job in a fork and kill it, `kills` times; return how many were running when they were killed."""
    dice, hit = random.Random(seed), 0
    for _ in range(kills):
        child = os.fork()
        if not child:
            try:
                run(folder, output, models=FakeModels(seconds=0.004), segmentation=encoding)
            finally:
                os._exit(0)
        time.sleep(dice.uniform(0.005, 0.09))
        os.kill(child, signal.SIGKILL)
        hit += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    return hit


if __name__ == "__main__":  # no threads have run in this process, so it may fork
    died = kill_often(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    sys.stdout.write(f"{died}\n")
