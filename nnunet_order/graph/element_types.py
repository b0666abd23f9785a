"""ONNX's numbers of element types, those of `onnx.TensorProto.DataType`, without onnx."""

from __future__ import annotations

FLOAT = 1
UINT8 = 2
UINT16 = 4
INT64 = 7
DOUBLE = 11
