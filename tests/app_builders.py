"""A running app for tests, and fake models that count their calls."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import numpy as np
import torch

from text2seg.app.model_pool import ModelPool
from text2seg.app.serve import running
from text2seg.app.settings import AppSettings
from text2seg.clip.model import ImageTokens
from text2seg.records import Image, Segmentation, SimilarityMaps

SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "new-scenes" / "images"
SCENE = SCENES / "scene_0019.jpg"
START_SECONDS = 30


@contextmanager
def live_app(models, **settings) -> Iterator[str]:
    """The address of the app on these models, in a thread, from when it answers."""
    model_pool = ModelPool(models, AppSettings(**{"port": 0, "host": "127.0.0.1", **settings}))
    with running(model_pool) as (url, _):
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx.get(f"{url}/api/v1/health", timeout=START_SECONDS)
                break
            except httpx.TransportError:
                assert time.monotonic() < until, "the app does not answer"
        yield url


def answer_before_the_body(url: str, path: str, length: int) -> bytes:
    """What the app answers to a form of this length, of which nothing is sent after the head."""
    at = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection((at.hostname, at.port), timeout=120) as connection:
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
            received = connection.recv(65536)
            assert received, answer
            answer += received
        return answer


class CountingModels:
    """In place of `Text2Seg`: "encodes" an image once a session, and answers with the mean of its pixels as the
    presence of the query."""

    closed_vocabulary = None
    names = "fake models"
    clip = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, floats: int = 1000, seconds: float = 0.0) -> None:
        self.floats, self.seconds = floats, seconds
        self.encoded: list[float] = []
        self.busy = self.busiest = 0
        self._lock = threading.Lock()

    def is_unfamiliar(self, image):
        return False

    def segment_sessions(self, sessions, queries, settings=None):
        (session,) = sessions
        with self._lock:
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            time.sleep(self.seconds)
            mean = float(session.image.pixels.mean())
            if not session.tokens:
                features = torch.full((self.floats,), mean)
                session.tokens[((8, 8), "surgery")] = ImageTokens(features, (1, 1), session.image.hw)
                self.encoded.append(mean)
            if queries == "broken":
                raise RuntimeError("broken")
            held = session.tokens[((8, 8), "surgery")].features[0].reshape(1).numpy()
            maps = SimilarityMaps((str(queries),), np.zeros((1, 1, 1), np.float32), held, session.image.hw)
            return (Segmentation(session.image, (), maps),)
        finally:
            with self._lock:
                self.busy -= 1


def plain(value: int, hw: tuple[int, int] = (6, 8), name: str = "one.png") -> Image:
    """An image of one grey."""
    return Image(np.full((*hw, 3), value, np.uint8), name)
