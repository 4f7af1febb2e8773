"""Calibration on images with true masks: thresholds of categories, and the model card of a pair of weights."""

FEWEST_IMAGES, FEW_IMAGES = 10, 100
"""With fewer images than the first no card is made; with fewer than the second, its intervals are said to be wide."""
