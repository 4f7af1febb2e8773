"""Calibration on images with true masks: thresholds of categories, and the model card of a pair of weights."""
