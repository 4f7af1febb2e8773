"""ONNX graphs of the networks: export, comparison with torch, ONNX Runtime, and a model repository for Triton."""
