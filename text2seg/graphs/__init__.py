"""The networks as ONNX graphs in a folder: what it says of itself, and running it in ONNX Runtime. The only room that
imports ONNX Runtime to run the pipeline. Source: the ONNX and ONNX Runtime documentation."""
