"""Which threshold suits each category of an ontology: many are tried on some images, and one is chosen for each."""

from text2seg.calibration.tune import (
    STABLE_THRESHOLDS,
    THRESHOLDS,
    Curve,
    Tuned,
    Tuning,
    best,
    most_stable,
    tune_by_stability,
    tune_by_truth,
)

__all__ = [
    "STABLE_THRESHOLDS",
    "THRESHOLDS",
    "Curve",
    "Tuned",
    "Tuning",
    "best",
    "most_stable",
    "tune_by_stability",
    "tune_by_truth",
]
