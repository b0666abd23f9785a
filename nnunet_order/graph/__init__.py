"""One ONNX graph from the pixels of a frame to its label map: the steps of `image_steps` around a network."""
