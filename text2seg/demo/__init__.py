"""The bundled demo model: weights and a few scenes. Its card is in `text2seg/cards`."""
