"""Simulated visitors of the app, each with a picture and queries of its own, half by plain HTTP and half through the
queue of the page. Every answer is compared with what the visitor was told while alone; any difference is an error.

    python scripts/load_app.py --users 50 --minutes 10

starts an app of its own, prints a line a minute and a summary, and exits with 1 if anything went wrong.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import tyro
from gradio_client import Client, handle_file
from PIL import Image

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "text2seg" / "demo" / "scenes" / "new-scenes"
PATIENCE_SECONDS = 300
THRESHOLDS = (0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Load:
    """How many visitors, for how long."""

    users: int = 50
    """Visitors at the same time."""
    minutes: float = 10
    """How long they stay."""
    think: float = 3
    """Seconds that a visitor looks at an answer, in the mean."""
    flags: tuple[str, ...] = ()
    """Further flags for `text2seg app`."""


@dataclass
class Tally:
    """What happened to all of them."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float, errors: list[str]) -> None:
        with self.lock:
            self.seconds.append(seconds)
            self.errors += errors


class Visitor:
    """One visitor: a picture of a size that nobody else has, the things in it, and what it was told while alone."""

    def __init__(self, number: int, url: str, folder: Path) -> None:
        truth = json.loads((SCENES / "dataset.json").read_text())
        scene = truth["images"][number % len(truth["images"])]
        names = {category["id"]: category["name"] for category in truth["categories"]}
        things = [names[each["category_id"]] for each in truth["annotations"] if each["image_id"] == scene["id"]]
        self.number, self.url = number, url
        self.queries = list(dict.fromkeys([*things, "octopus"]))[:3]
        pixels = np.asarray(Image.open(SCENES / scene["file_name"]).convert("RGB"))
        self.pixels = np.pad(pixels, ((0, number + 1), (0, 0), (0, 0)), mode="edge")
        self.path = folder / f"visitor-{number}.png"
        Image.fromarray(self.pixels).save(self.path)
        self.client = Client(url, verbose=False) if number % 2 else None
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS)
        self.alone = {threshold: boxes_of(self.ask(threshold)) for threshold in THRESHOLDS}

    def ask(self, threshold: float) -> dict[str, Any]:
        settings = {"points": {"threshold": threshold}}
        if self.client is not None:
            queries = ", ".join(self.queries)
            answer: dict[str, Any] = self.client.predict(
                image=handle_file(self.path), queries=queries, settings=settings, api_name="/segment"
            )
            return answer
        response = self.http.post(
            "/api/segment",
            files={"image": (self.path.name, io.BytesIO(self.path.read_bytes()))},
            data={"queries": self.queries, "settings": json.dumps(settings)},
        )
        response.raise_for_status()
        answer = response.json()
        return answer

    def visit(self, until: float, think: float, tally: Tally) -> None:
        """Ask, compare, look at it for a while, and again."""
        chance = random.Random(self.number)
        while time.monotonic() < until:
            threshold = chance.choice(THRESHOLDS)
            start = time.monotonic()
            try:
                errors = self.faults(self.ask(threshold), threshold)
            except Exception as error:  # whatever goes wrong is what this script is there to count
                errors = [f"visitor {self.number}: {type(error).__name__}: {error}"]
            tally.add(time.monotonic() - start, errors)
            time.sleep(chance.expovariate(1 / think) if think else 0)

    def faults(self, answer: dict[str, Any], threshold: float) -> list[str]:
        """What shows that an answer is not this visitor's own, or another than while alone."""
        image = answer["images"][0]
        rows, columns = self.pixels.shape[:2]
        faults = []
        if (image["file_name"], image["height"], image["width"]) != (self.path.name, rows, columns):
            faults.append(f"visitor {self.number} got the picture {image}")
        if [category["name"] for category in answer["categories"]] != self.queries:
            faults.append(f"visitor {self.number} got the queries {answer['categories']}")
        if boxes_of(answer) != self.alone[threshold]:
            faults.append(f"visitor {self.number} got other segments than while alone")
        return faults


def boxes_of(answer: dict[str, Any]) -> list[tuple[int, ...]]:
    return [(each["category_id"], *each["bbox"], each["area"]) for each in answer["annotations"]]


@contextmanager
def app(flags: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """An app of our own: its address and its process."""
    command = [sys.executable, "app.py", "--port", "0", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = next(match for line in process.stdout if (match := re.search(r"open (http://\S+)", line)))
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait()


def resident_mb(pid: int) -> float:
    """Memory of a process, in megabytes; Linux only, elsewhere not a number."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1000 if found else float("nan")


def run(load: Load, url: str, pid: int, folder: Path) -> dict[str, Any]:
    """Let them all come, and sum up."""
    visitors = [Visitor(number, url, folder) for number in range(load.users)]
    tally, start = Tally(), time.monotonic()
    memory = [resident_mb(pid)]
    until = start + load.minutes * 60
    threads = [threading.Thread(target=each.visit, args=(until, load.think, tally)) for each in visitors]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(min(60.0, load.minutes * 10))
        memory.append(resident_mb(pid))
        print(f"{time.monotonic() - start:6.0f} s  {len(tally.seconds)} answers  {memory[-1]:.0f} MB", flush=True)
        while threads and not threads[0].is_alive():
            threads.pop(0)
    p50, p95 = np.percentile(tally.seconds, (50, 95)).round(2).tolist()
    return {
        "users": load.users,
        "minutes": load.minutes,
        "answers": len(tally.seconds),
        "errors": len(tally.errors),
        "p50_seconds": p50,
        "p95_seconds": p95,
        "start_mb": round(memory[0]),
        "end_mb": round(memory[-1]),
        "most_mb": round(max(memory)),
        "first_errors": tally.errors[:5],
    }


def main() -> int:
    load = tyro.cli(Load)
    with TemporaryDirectory() as folder, app(load.flags) as (url, pid):
        summary = run(load, url, pid, Path(folder))
    print(json.dumps(summary, indent=1))
    sys.stdout.flush()
    return 1 if summary["errors"] or not summary["answers"] else 0


if __name__ == "__main__":
    status = main()
    os._exit(status)  # the clients' threads would wait for the app, which is gone
