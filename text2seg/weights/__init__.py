"""Weights: which there are, where they lie, how they get there and how they are read without trusting them.

`text2seg.weights.tensors` is not imported here, so that listing checkpoints does not have to wait for torch.
"""

from text2seg.weights.download import sha256_of
from text2seg.weights.registry import PAIRS, Checkpoint, find, known, pair
from text2seg.weights.store import Status, fetch, folder, is_here, path_of, recorded, statuses, verify

__all__ = [
    "PAIRS",
    "Checkpoint",
    "Status",
    "fetch",
    "find",
    "folder",
    "is_here",
    "known",
    "pair",
    "path_of",
    "recorded",
    "sha256_of",
    "statuses",
    "verify",
]
