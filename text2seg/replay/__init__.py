"""Masks of a dataset made again, to see whether what is recorded of them is all that it takes."""

from text2seg.replay.redo import Replayed, load_recorded, replay

__all__ = ["Replayed", "load_recorded", "replay"]
