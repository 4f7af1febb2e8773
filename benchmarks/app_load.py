"""Simulate many visitors of the app, half by plain HTTP and half through the page's queue.

    python benchmarks/app_load.py --users 50 --minutes 10

Starts an app. Every visitor has their own image and queries, and compares each answer with the answer from before the
test, without other visitors. Any difference is an error. Prints a line per minute and a summary; the exit status is 1
if there were errors.
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
from page import markdown, publish
from PIL import Image

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "text2seg" / "demo" / "scenes" / "new-scenes"
PATIENCE_SECONDS = 300
THRESHOLDS = (0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Load:
    """Number of visitors and duration."""

    users: int = 50
    """Visitors at the same time."""
    minutes: float = 10
    """Duration of the test."""
    think: float = 3
    """Mean seconds between an answer and the visitor's next request."""
    write: bool = False
    """Write the numbers into docs/measurements/performance.md."""
    flags: tuple[str, ...] = ()
    """Further flags for `text2seg app`."""


@dataclass
class Tally:
    """Answer times and errors of all visitors."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float, errors: list[str]) -> None:
        with self.lock:
            self.seconds.append(seconds)
            self.errors += errors


class Visitor:
    """One visitor: an image of a unique size, the things in it, and the answers without other visitors."""

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
            "/api/v1/segment",
            files={"image": (self.path.name, io.BytesIO(self.path.read_bytes()))},
            data={"queries": self.queries, "settings": json.dumps(settings)},
        )
        response.raise_for_status()
        answer = response.json()
        return answer

    def visit(self, until: float, think: float, tally: Tally) -> None:
        """Ask, compare, wait and repeat until the time is over."""
        chance = random.Random(self.number)
        while time.monotonic() < until:
            threshold = chance.choice(THRESHOLDS)
            start = time.monotonic()
            try:
                errors = self.faults(self.ask(threshold), threshold)
            except Exception as error:  # every failure is counted
                errors = [f"visitor {self.number}: {type(error).__name__}: {error}"]
            tally.add(time.monotonic() - start, errors)
            time.sleep(chance.expovariate(1 / think) if think else 0)

    def faults(self, answer: dict[str, Any], threshold: float) -> list[str]:
        """Return signs that an answer belongs to another visitor or differs from the one without other visitors."""
        image = answer["images"][0]
        rows, columns = self.pixels.shape[:2]
        faults = []
        if (image["file_name"], image["height"], image["width"]) != (self.path.name, rows, columns):
            faults.append(f"visitor {self.number} got the image {image}")
        if [category["name"] for category in answer["categories"]] != self.queries:
            faults.append(f"visitor {self.number} got the queries {answer['categories']}")
        if boxes_of(answer) != self.alone[threshold]:
            faults.append(f"visitor {self.number} got other segments than without other visitors")
        return faults


def boxes_of(answer: dict[str, Any]) -> list[tuple[int, ...]]:
    return [(each["category_id"], *each["bbox"], each["area"]) for each in answer["annotations"]]


@contextmanager
def app(flags: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Run an app; yield its address and process id."""
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
    """Return the memory of a process in megabytes; NaN where /proc is missing."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1000 if found else float("nan")


def run(load: Load, url: str, pid: int, folder: Path) -> dict[str, Any]:
    """Run all visitors and return a summary."""
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
    shown = ("users", "minutes", "answers", "errors", "p50_seconds", "p95_seconds", "start_mb", "end_mb")
    headings = (
        "users",
        "minutes",
        "answers",
        "errors",
        "median s",
        "95 % within s",
        "MB at the start",
        "MB at the end",
    )
    table = markdown(headings, [[summary[name] for name in shown]])
    publish("app-load", table, page="performance.md", how="benchmarks/app_load.py, demo model", write=load.write)
    print(json.dumps(summary, indent=1))
    sys.stdout.flush()
    return 1 if summary["errors"] or not summary["answers"] else 0


if __name__ == "__main__":
    status = main()
    os._exit(status)  # the clients' threads would wait for the app, which has ended
