"""The row operators as their docstrings define them, slowly: exact integers of Python and numpy, no kernel of the core.

`experiments.kernels` holds the compiled kernels to these.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from accelsim.numerics.elementwise import EmbeddingSum, ResidualAdd
from accelsim.numerics.layernorm import LayerNormFixed, LayerNormIBert
from accelsim.numerics.softmax import SoftmaxPolynomial, SoftmaxTable


def rounded(numerator: np.ndarray, denominator: Any, rounding: str) -> np.ndarray:
    """round(numerator / denominator) of int64, denominator > 0, from quotient and remainder."""
    quotient, rest = np.divmod(np.asarray(numerator, np.int64), np.asarray(denominator, np.int64))
    if rounding == "floor":
        return np.asarray(quotient)
    twice = 2 * rest
    up = twice > denominator
    odd = quotient % 2 != 0 if rounding == "half_even" else np.asarray(numerator) > 0
    return np.asarray(quotient + (up | ((twice == denominator) & odd)))


def softmax(x: np.ndarray, parameters: SoftmaxTable | SoftmaxPolynomial, mask: np.ndarray | None = None) -> np.ndarray:
    """uint8: round(levels e / sum e), e the exponential of the distance from the largest that the mask leaves."""
    kept = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    largest = np.where(kept, x.astype(np.int64), -(2**40)).max(-1, keepdims=True)
    e = np.where(kept, parameters.exponentials[np.clip(largest - x, 0, 255)], 0)
    total = np.maximum(e.sum(-1, keepdims=True), 1)
    return rounded(parameters.levels * e, total, parameters.rounding.name.lower()).astype(np.uint8)


def layer_norm(
    x: np.ndarray, parameters: LayerNormFixed | LayerNormIBert, residual: np.ndarray | None = None
) -> np.ndarray:
    """int8, one row at a time, by the formulas at the head of `numerics/layernorm.py`; the root is math.isqrt."""
    gain, bias, offset = (v.astype(np.int64) for v in (parameters.gain, parameters.bias, parameters.offset))
    rows = x.reshape(-1, x.shape[-1]).astype(np.int64)
    n, results = rows.shape[1], []
    others = None if residual is None else residual.reshape(rows.shape).astype(np.int64)
    for i, row in enumerate(rows):
        h = 128 * row
        if others is not None:
            h = (128 * row * parameters.x_multiplier + 2**14 >> 15) + (
                128 * others[i] * parameters.residual_multiplier + 2**14 >> 15
            )
        deviation = h - (2 * int(h.sum()) + n) // (2 * n)
        squares = int((deviation**2).sum()) + parameters.epsilon
        e = 0
        while squares * 4 ** (e + 1) < 2**30:
            e += 1
        reciprocal = 3 * 2**27 // math.isqrt(squares * 4**e)
        u = (deviation * 2**e * reciprocal + 2**14) >> 15
        results.append(rounded((u + bias) * gain, 2**15, parameters.rounding.name.lower()) + offset)
    return np.clip(np.array(results), -128, 127).astype(np.int8).reshape(x.shape)


def weighted_sum(values: list[np.ndarray], parameters: ResidualAdd | EmbeddingSum) -> np.ndarray:
    """int8: round((sum of multiplier (v - zero point)) / 2^shift) + out_zero_point, clamped."""
    total = sum(
        m * (v.astype(np.int64) - z)
        for m, v, z in zip(parameters.multipliers, values, parameters.zero_points, strict=True)
    )
    result = rounded(np.asarray(total), 2**parameters.shift, parameters.rounding.name.lower())
    return np.clip(result + parameters.out_zero_point, -128, 127).astype(np.int8)
