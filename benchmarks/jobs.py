"""Measure labelling jobs: memory in large folders, listing an object store, several workers.

    python benchmarks/jobs.py memory 100 10000       # memory as the folder grows, with fake models
    python benchmarks/jobs.py listing 100 10000      # listing a bucket of a local S3 server
    python benchmarks/jobs.py cores --images 24      # images per second, and the share of the cores that is used
    python benchmarks/jobs.py kills --images 10000   # a long job, and the same job killed again and again
    python benchmarks/jobs.py ray --images 48        # images per second with Ray workers

`memory` labels empty files with fake models that find three things in every image; listing, journal, state and output
are real. Each size runs in its own process. `peak MB` is the peak of the process; `traced MB` is the peak of Python's
allocators (with --trace, which is slow).

`listing` runs an S3 server (moto) in this process and lists from another one. The seconds are mostly the server's.

`cores` labels copies of the bundled scenes in one process with 1, 2, … cores and as many threads: with the demo model,
and with CLIP ViT-B/16 and SAM ViT-B with random weights. `used` is the CPU time over wall time and cores, from the
first answer to the last. Do nothing else on the machine meanwhile.

`kills` labels copies of the bundled scenes with the demo model in a process of its own, once to the end and once killed
(SIGKILL) at random moments and started again. `peak MB` is that of the first process. The files must be the same.

`ray` labels the bundled scenes with the demo model, in this process and then with 1, 2, … Ray workers of one thread
each. Images per second count from the first answer on, so starting Ray and loading the models are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from page import SCENES, markdown, publish

from text2seg.coco.dataset import read_dataset
from text2seg.config import LabelSettings, ModelSettings, RaySettings
from text2seg.io.scan import list_images
from text2seg.io.storage import place_of
from text2seg.labelling.engine import Batch, Deliver, Delivery, Engine, LocalEngine, Work
from text2seg.labelling.job import label_folder
from text2seg.labelling.output import journal_path
from text2seg.ontology import ontology_of_queries, queries_of
from text2seg.records import Candidates, Image, PointPrompts, Segment, Segmentation, SimilarityMaps

PAGE = "performance.md"
MODEL = ModelSettings(model="demo", device="cpu")
NEW_SCENES = SCENES / "new-scenes"
HW = (240, 320)
ONTOLOGY = ontology_of_queries("dog, red car, bench")


class SyntheticModels:
    """Three round segments in every image, made once."""

    def __init__(self, hw: tuple[int, int] = HW) -> None:
        self.device = SimpleNamespace(type="none")
        self.hw = hw
        rows, columns = np.ogrid[: hw[0], : hw[1]]
        points = PointPrompts(np.full((8, 2), 12.5, np.float32), np.ones(8, np.int8), np.full(8, 0.9, np.float32))
        candidates = Candidates(np.zeros((3, 8, 8), np.float32), np.array([0.7, 0.8, 0.9], np.float32))
        queries = queries_of(ONTOLOGY)
        self._segments = tuple(
            Segment(
                query.name,
                (rows - hw[0] // 2) ** 2 + (columns - hw[1] * (n + 1) // 4) ** 2 < (hw[0] // 6) ** 2,
                0.9,
                0.5,
                0.8,
                points,
                candidates,
                2,
            )
            for n, query in enumerate(queries)
        )
        scores = np.zeros((len(queries), 8, 8), np.float32)
        self._maps = SimilarityMaps(tuple(q.name for q in queries), scores, np.ones(len(queries), np.float32), hw)

    def check(self, queries):
        return tuple(queries)

    def provenance(self):
        return {"text2seg": "synthetic"}

    def open(self, image):
        return SimpleNamespace(image=image)

    def segment_sessions(self, sessions, queries):
        return tuple(Segmentation(session.image, self._segments, self._maps) for session in sessions)


def peak_mb() -> float:
    """Return the highest memory use of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts in kilobytes


def run(count: int, folder: Path, *, hw: tuple[int, int] = HW, trace: bool = False) -> dict[str, float]:
    """Label `count` empty files in `folder`; return seconds, and file sizes and peaks in megabytes."""
    photos = folder / "photos"
    for number in range(count):
        path = photos / f"{number // 1000:04}" / f"IMG_{number:07}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    models = SyntheticModels(hw)
    blank = np.zeros((*hw, 3), np.uint8)
    engine = LocalEngine(models, load=lambda path, name: Image(blank, name))
    settings = LabelSettings(output=folder / "dataset.json", batch=16)
    if trace:
        tracemalloc.start()
    start = time.perf_counter()
    report = label_folder(models, photos, ONTOLOGY, settings, engine=engine)
    seconds = time.perf_counter() - start
    traced = tracemalloc.get_traced_memory()[1] if trace else 0
    tracemalloc.stop()
    if report.found != count:
        raise SystemExit(f"only {report.found} of {count} images were labelled")
    return {
        "images": count,
        "seconds": seconds,
        "journal": journal_path(settings.output).stat().st_size / 1e6,
        "dataset": settings.output.stat().st_size / 1e6,
        "peak": peak_mb(),
        "traced": traced / 1e6,
    }


def measure_memory(sizes: list[int], *, trace: bool, write: bool) -> None:
    rows = []
    for size in sizes:
        command = [sys.executable, __file__, "memory", "--one", str(size), *["--trace"] * trace]
        r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        traced = f"{r['traced']:.1f}" if trace else "–"
        sizes_mb = (f"{r[key]:.1f}" for key in ("seconds", "journal", "dataset"))
        rows.append((f"{size:,}", *sizes_mb, f"{r['peak']:.0f}", traced))
    table = markdown(("images", "seconds", "journal MB", "dataset MB", "peak MB", "traced MB"), rows)
    publish("memory", table, page=PAGE, how="benchmarks/jobs.py memory", write=write)


def list_one(bucket: str) -> dict[str, float]:
    """Measure the listing of a bucket, after a small listing that imports the packages and opens the connection."""
    list_images(place_of("s3://warm-up"))
    tracemalloc.start()
    start = time.perf_counter()
    scan = list_images(place_of(f"s3://{bucket}"))
    seconds = time.perf_counter() - start
    kept, peak = tracemalloc.get_traced_memory()
    return {"objects": len(scan), "seconds": seconds, "peak": peak / 1e6, "kept": kept / 1e6}


def measure_listing(sizes: list[int], *, write: bool) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = os.environ | keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    store.create_bucket("warm-up", "us-east-1")
    store.put_object("warm-up", "one.jpg", b"x")

    def measure(*arguments: str) -> dict[str, float]:
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
        return dict(json.loads(done.stdout))

    rows = []
    for size in sizes:
        store.create_bucket(f"of-{size}", "us-east-1")
        for number in range(size):
            store.put_object(f"of-{size}", f"photos/{number // 1000:04}/IMG_{number:07}.jpg", b"x")
        r = measure("listing", "--list", f"of-{size}")
        rows.append((f"{r['objects']:,}", *(f"{r[key]:.1f}" for key in ("seconds", "peak", "kept"))))
    server.stop()
    table = markdown(("objects", "seconds", "traced MB", "kept MB"), rows)
    publish("listing", table, page=PAGE, how="benchmarks/jobs.py listing", write=write)


class Timed:
    """An engine that records the time and the number of images of each delivery."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.start = engine, time.perf_counter()
        self.deliveries: list[tuple[float, int]] = []
        self.cpu: list[float] = []
        self.peak: list[float] = []

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None:
        def timed(records: Delivery) -> None:
            deliver(records)
            self.deliveries.append((time.perf_counter() - self.start, len(records)))
            self.cpu.append(time.process_time())
            self.peak.append(peak_mb())

        self.engine.run(work, batches, timed, stopping)

    def speed(self) -> float:
        """Return the images per second after the first delivery."""
        (first, _), (last, _) = self.deliveries[0], self.deliveries[-1]
        return sum(count for _, count in self.deliveries[1:]) / (last - first)

    def used(self) -> float:
        """Return the number of cores that were busy after the first delivery."""
        return (self.cpu[-1] - self.cpu[0]) / (self.deliveries[-1][0] - self.deliveries[0][0])


def photos(folder: Path, count: int) -> Path:
    """Fill a new folder with `count` copies of the bundled scenes; return it."""
    folder.mkdir()
    scenes = sorted((NEW_SCENES / "images").iterdir())
    for number in range(count):
        scene = scenes[number % len(scenes)]
        shutil.copy(scene, folder / f"{number:05}{scene.suffix}")
    return folder


def first_things(count: int) -> list[str]:
    """Return the first categories of the bundled scenes, this many."""
    return [category["name"] for category in read_dataset(NEW_SCENES / "dataset.json")["categories"]][:count]


def label_with(model: str, cores: int, images: int, count: int) -> dict[str, float]:
    """Label in this process, on this many cores only."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import torch
    from latency import load

    torch.set_num_threads(cores)
    models = load(model, "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = photos(Path(temporary) / "photos", images)
        timed = Timed(LocalEngine(models, workers=cores))
        settings = LabelSettings(output=Path(temporary) / "dataset.json")
        label_folder(models, folder, ontology_of_queries(first_things(count)), settings, engine=timed)
    return {"speed": timed.speed(), "used": timed.used() / cores}


def measure_cores(images: int, count: int, *, write: bool) -> None:
    rows = []
    for model, title, share in (("demo", "demo", 1), ("vit_b", "base", 4)):
        first = 0.0
        for cores in range(1, len(os.sched_getaffinity(0)) + 1):
            arguments = ["--one", model, str(cores), "--images", str(images // share), "--queries", str(count)]
            environment = os.environ | {"OMP_NUM_THREADS": str(cores)}
            command = [sys.executable, __file__, "cores", *arguments]
            done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
            r = json.loads(done.stdout.splitlines()[-1])
            first = first or r["speed"]
            rows.append((title, cores, f"{r['speed']:.3f}", f"{r['speed'] / first:.2f}×", f"{r['used']:.0%}"))
    table = markdown(("model", "cores", "images/s", "speed-up", "used"), rows)
    publish("cores", table, page=PAGE, how=f"benchmarks/jobs.py cores --images {images}", write=write)


def label_long(folder: Path, output: Path, count: int) -> dict[str, float]:
    """Label in this process; the output may be that of a process that was killed."""
    from text2seg import Text2Seg

    models = Text2Seg.load("demo", device=MODEL.device)
    timed = Timed(LocalEngine(models))
    label_folder(models, folder, ontology_of_queries(first_things(count)), LabelSettings(output=output), engine=timed)
    done = np.cumsum([number for _, number in timed.deliveries])
    first = timed.peak[int(np.searchsorted(done, min(100, done[-1])))]
    return {"speed": timed.speed(), "first": first, "peak": peak_mb()}


def measure_kills(images: int, kills: int, count: int, *, write: bool) -> None:
    rows, chance = [], random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = photos(Path(temporary) / "photos", images)

        def started(output: Path) -> subprocess.Popen[str]:
            command = [sys.executable, __file__, "kills", "--one", str(folder), str(output), "--queries", str(count)]
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        whole, killed = Path(temporary) / "whole.json", Path(temporary) / "killed.json"
        start = time.perf_counter()
        said = started(whole).communicate()[0]
        seconds = time.perf_counter() - start
        r = json.loads(said.splitlines()[-1])
        rows.append(
            (f"{images:,}", "0", f"{seconds:.0f}", f"{r['speed']:.2f}", f"{r['first']:.0f}", f"{r['peak']:.0f}", "yes")
        )
        done, start = 0, time.perf_counter()
        while True:
            process = started(killed)
            try:
                process.communicate(timeout=chance.uniform(0, 2 * seconds / kills) if done < kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                done += 1
                continue
            if process.returncode:
                raise SystemExit(f"labelling ended with {process.returncode}")
            break
        seconds = time.perf_counter() - start
        same = "yes" if killed.read_bytes() == whole.read_bytes() else "NO"
        rows.append((f"{images:,}", str(done), f"{seconds:.0f}", "–", "–", "–", same))
    head = ("images", "killed", "seconds", "images/s", "peak MB after 100", "at the end", "same bytes")
    publish("kills", markdown(head, rows), page=PAGE, how=f"benchmarks/jobs.py kills --images {images}", write=write)


def measure_ray(images: int, most_workers: int, count: int, *, write: bool) -> None:
    import torch

    from text2seg import Text2Seg
    from text2seg.labelling.ray_engine import RayEngine

    torch.set_num_threads(1)
    models = Text2Seg.load("demo", device=MODEL.device)
    names = first_things(count)
    ontology = ontology_of_queries(names)
    engines: list[tuple[str, Engine]] = [("local, 1 thread", LocalEngine(models, workers=1))]
    for number in range(1, most_workers + 1):
        workers = RaySettings(min_workers=number, max_workers=number)
        engines.append((f"ray, {number} × 1 thread", RayEngine(MODEL, ray=workers, workers=1)))
    rows, first = [], (0.0, "")
    with tempfile.TemporaryDirectory() as temporary:
        folder = photos(Path(temporary) / "photos", images)
        models.segment(folder / "00000.jpg", names)  # warm-up
        for number, (name, engine) in enumerate(engines):
            output, timed = Path(temporary) / f"{number}.json", Timed(engine)
            label_folder(models, folder, ontology, LabelSettings(output=output), engine=timed)
            digest, speed = hashlib.sha256(output.read_bytes()).hexdigest(), timed.speed()
            first = first if number else (speed, digest)
            same = "yes" if digest == first[1] else "NO"
            rows.append((name, f"{timed.deliveries[0][0]:.1f}", f"{speed:.2f}", f"{speed / first[0]:.2f}×", same))
    table = markdown(("engine", "seconds to the first answer", "images/s", "speed-up", "same bytes"), rows)
    publish("ray", table, page=PAGE, how=f"benchmarks/jobs.py ray --images {images}", write=write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    memory = commands.add_parser("memory", help="memory of a job as the folder grows")
    memory.add_argument("sizes", nargs="*", type=int, default=[100, 1_000, 10_000], help="numbers of images")
    memory.add_argument("--trace", action="store_true", help="trace Python's allocations too (slow)")
    memory.add_argument("--one", type=int, help=argparse.SUPPRESS)
    listing = commands.add_parser("listing", help="seconds and memory of listing a bucket")
    listing.add_argument("sizes", nargs="*", type=int, default=[100, 10_000], help="numbers of objects")
    listing.add_argument("--list", help=argparse.SUPPRESS)
    ray = commands.add_parser("ray", help="images per second with Ray workers")
    ray.add_argument("--images", type=int, default=48)
    ray.add_argument("--most-workers", type=int, default=min(os.cpu_count() or 1, 2))
    ray.add_argument("--queries", type=int, default=5, help="number of the scenes' categories to label")
    cores = commands.add_parser("cores", help="images per second, and the share of the cores that is used")
    cores.add_argument("--images", type=int, default=24, help="images for the demo model; a quarter for the other")
    cores.add_argument("--queries", type=int, default=5, help="number of the scenes' categories to label")
    cores.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    kills = commands.add_parser("kills", help="a long job, and the same job killed again and again")
    kills.add_argument("--images", type=int, default=10_000)
    kills.add_argument("--kills", type=int, default=20)
    kills.add_argument("--queries", type=int, default=3, help="number of the scenes' categories to label")
    kills.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    for command in (memory, listing, cores, kills, ray):
        command.add_argument("--write", action="store_true", help=f"write the table into docs/measurements/{PAGE}")
    args = parser.parse_args()
    if args.command == "cores" and args.one:
        print(json.dumps(label_with(args.one[0], int(args.one[1]), args.images, args.queries)))
    elif args.command == "cores":
        measure_cores(args.images, args.queries, write=args.write)
    elif args.command == "kills" and args.one:
        print(json.dumps(label_long(*args.one, args.queries)))
    elif args.command == "kills":
        measure_kills(args.images, args.kills, args.queries, write=args.write)
    elif args.command == "ray":
        measure_ray(args.images, args.most_workers, args.queries, write=args.write)
    elif args.command == "listing":
        if args.list:
            print(json.dumps(list_one(args.list)))
        else:
            measure_listing(args.sizes, write=args.write)
    elif args.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(args.one, Path(folder), trace=args.trace)))
    else:
        measure_memory(args.sizes, trace=args.trace, write=args.write)


if __name__ == "__main__":
    main()
