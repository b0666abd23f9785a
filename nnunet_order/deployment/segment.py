"""Label maps of pictures: python segment.py model.onnx PICTURE ... (pip install numpy pillow onnxruntime)"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
mode = "RGB" if session.get_inputs()[0].shape[3] == 3 else "L"
for name in sys.argv[2:]:
    picture = np.atleast_3d(Image.open(name).convert(mode))
    frame = picture[None]  # uint8 (1, height, width, channels)
    labels, probabilities = session.run(["labels", "probabilities"], {"frame": frame})
    Image.fromarray(labels[0]).save(name.rpartition(".")[0] + "_labels.png")
