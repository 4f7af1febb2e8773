"""Sessions of visitors: the one that a page shows, and those that a reloaded page finds again."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from text2seg.app.segment.session import EditSession
from text2seg.errors import StoppedError

KEPT_SECONDS, MOST_KEPT, MOST_BYTES = 3600.0, 200, 1_000_000_000
"""A session is kept for this many seconds after its last request, and so many sessions and bytes of their images and
segments at most."""
TOKEN_BYTES = 24


class Desk:
    """What one page shows: its session, and the request that is being answered.

    A late answer, of an earlier request or to a session that was replaced since, does not take its place. Safe to share
    between threads.
    """

    def __init__(self) -> None:
        self.session = EditSession()
        self.points = 0
        """Point sets that SAM has answered for the request."""
        self._lock = threading.Lock()
        self._turn = 0
        self._stopped = 0
        self._page_turn = 0
        self._stop_later = 0

    def __deepcopy__(self, _: object) -> Desk:
        return Desk()  # Gradio copies the desk for each page

    def begin(self, page_turn: int = 0) -> tuple[int, EditSession]:
        """Begin a request: return its turn and the session that it is about. `page_turn` is the number that the page
        gave the request; one that was stopped while it waited in the queue is stopped from the start."""
        with self._lock:
            self._turn, self.points, self._page_turn = self._turn + 1, 0, page_turn
            if page_turn and page_turn == self._stop_later:
                self._stopped, self._stop_later = self._turn, 0
            return self._turn, self.session

    def finish(self, turn: int, keep: Callable[[], EditSession]) -> EditSession | None:
        """Put what `keep` returns in place and return it; or None if the request is not the last one any more."""
        with self._lock:
            if turn != self._turn:
                return None
            self.session = keep()
            return self.session

    def put(self, session: EditSession) -> None:
        """Put another session in place. A request that still runs is stopped, and its answer is dropped."""
        with self._lock:
            self._stopped, self._turn = self._turn, self._turn + 1
            self.session = session

    def stop(self, page_turn: int = 0) -> None:
        """Stop the request that has this number of the page, also if it still waits in the queue."""
        with self._lock:
            if page_turn == self._page_turn:
                self._stopped = self._turn
            else:
                self._stop_later = page_turn

    def watch(self, turn: int, point_sets: int) -> None:
        """Count what SAM answers. Raises `StoppedError` if the request was stopped; see `runtime.watched`."""
        with self._lock:
            if turn <= self._stopped:
                raise StoppedError("stopped; nothing has changed")
            if turn == self._turn:
                self.points += point_sets


class KeptSessions:
    """Sessions by the token in the visitor's browser, so that a reloaded page finds its image, words and corrections.

    Tokens cannot be guessed. The least recently used sessions are dropped first. Safe to share between threads.
    """

    def __init__(self, most: int = MOST_KEPT, seconds: float = KEPT_SECONDS, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._seconds, self._most_bytes = most, seconds, most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, int, EditSession]] = OrderedDict()

    def keep(self, session: EditSession) -> EditSession:
        """Keep a session with an image. Return it with its token, a new one if it has none."""
        if session.image_session is None:
            return session
        session = session if session.token else replace(session, token=secrets.token_urlsafe(TOKEN_BYTES))
        with self._lock:
            self._kept[session.token] = time.monotonic(), bytes_of(session), session
            self._kept.move_to_end(session.token)
            self._sweep()
        return session

    def find(self, token: str) -> EditSession | None:
        """Return a copy of a session without its token, because two pages may have the token of one session."""
        with self._lock:
            self._sweep()
            _, _, session = self._kept.get(token, (0.0, 0, None))
        return replace(session, token="") if session else None

    def _sweep(self) -> None:
        oldest = time.monotonic() - self._seconds
        sizes = {token: size for token, (_, size, _) in self._kept.items()}
        for token, (used, _, _) in list(self._kept.items()):  # the least recently used first
            is_full = len(sizes) > self._most or (sum(sizes.values()) > self._most_bytes and len(sizes) > 1)
            if used >= oldest and not is_full:
                break
            del self._kept[token], sizes[token]


def bytes_of(session: EditSession) -> int:
    """Return the bytes of the image, of the masks and candidates in all steps of the history, each counted once, and of
    the session that the editor gets back after an image of a job was edited."""
    history = session.history
    documents = (history.present, *history.past, *history.future)
    segments = [piece.segment for document in documents for piece in document.pieces]
    segments += [segment for document in documents for segment in (*document.removed, *document.changed)]
    found = [document.search.found for document in documents if document.search and document.search.found]
    segments += [segment for each in found for segment in each.segments]
    arrays = {id(array): array for each in segments for array in (each.mask, each.candidates.logits)}
    image = session.image_session.image.pixels.nbytes if session.image_session else 0
    image += sum(region.mask.nbytes for region in session.regions)
    before = bytes_of(session.editing.before) if session.editing else 0
    return image + sum(array.nbytes for array in arrays.values()) + before
