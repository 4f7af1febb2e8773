"""ONNX graphs of the networks: their manifest, and how ONNX Runtime runs them."""
