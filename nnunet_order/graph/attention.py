"""softmax(Q K^T) V as one operator of onnxruntime, which never writes the matrix of similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxscript import OpBuilder, ir

DOMAIN = "com.microsoft"


def fuse_attention(model: ir.Model) -> int:
    """Replace what is written as softmax(Q K^T) V with a known number of heads; the number of places."""
    from onnxscript.rewriter import pattern

    rule = pattern.RewriteRule(_written_out, _fused, _knows_heads)
    places = rule.apply_to_model(model)
    if places:
        model.opset_imports[DOMAIN] = 1
    return places


def _written_out(op: OpBuilder, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
    """query and value: (B, heads, N, d), already scaled; key: (B, heads, d, N)."""
    return op.MatMul(op.Softmax(op.MatMul(query, key), axis=-1), value)


def _knows_heads(context: object, query: ir.Value, **others: ir.Value) -> bool:
    return query.shape is not None and len(query.shape) == 4 and isinstance(query.shape[1], int)


def _fused(op: OpBuilder, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
    heads = query.shape[1]

    def joined(tokens: ir.Value, order: list[int]) -> ir.Value:
        """-> (B, N, heads * d), as the operator wants it."""
        return op.Reshape(op.Transpose(tokens, perm=order), op.Constant(value_ints=[0, 0, -1]))

    found = op.MultiHeadAttention(
        joined(query, [0, 2, 1, 3]),
        joined(key, [0, 3, 1, 2]),
        joined(value, [0, 2, 1, 3]),
        num_heads=heads,
        scale=1.0,
        _domain=DOMAIN,
    )
    split = op.Reshape(found, op.Constant(value_ints=[0, 0, heads, -1]))
    return op.Transpose(split, perm=[0, 2, 1, 3])
