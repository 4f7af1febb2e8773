"""The bundled demo model: weights, the things it knows, and a few scenes."""
