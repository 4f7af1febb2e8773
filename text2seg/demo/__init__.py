"""The bundled demo model: weights and a few scenes. Its card is in `text2seg/cards`."""

from __future__ import annotations

from pathlib import Path

IMAGES = Path(__file__).parent / "scenes" / "new-scenes" / "images"
"""Folder of the bundled scenes that the demo model was not trained on."""
