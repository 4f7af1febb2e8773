"""The networks written as ONNX graphs, checked against torch, and as a model repository for Triton."""
