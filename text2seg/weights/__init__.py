"""Weights: registry, download, storage on this machine, and safe loading.

`text2seg.weights.load` is not imported here, because it imports torch, and listing checkpoints should be fast.
"""

from text2seg.weights.download import check_openclip, sha256_of
from text2seg.weights.registry import BUNDLED, PAIRS, PUBLISHED, Checkpoint, download_hint, download_size, find, known
from text2seg.weights.store import (
    Status,
    check_intact,
    choose_model,
    fetch,
    folder,
    is_here,
    naming_missing,
    pair,
    path_of,
    recorded,
    statuses,
    verify,
)

__all__ = [
    "BUNDLED",
    "PAIRS",
    "PUBLISHED",
    "Checkpoint",
    "Status",
    "check_intact",
    "check_openclip",
    "choose_model",
    "download_hint",
    "download_size",
    "fetch",
    "find",
    "folder",
    "is_here",
    "known",
    "naming_missing",
    "pair",
    "path_of",
    "recorded",
    "sha256_of",
    "statuses",
    "verify",
]
