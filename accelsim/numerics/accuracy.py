"""How far the integer operators are from the real functions they stand for, measured over their domains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from accelsim.jit import kernel
from accelsim.numerics.approximation import exponential_polynomial, gelu_polynomial
from accelsim.numerics.elementwise import GeluPolynomial, GeluTable, gelu
from accelsim.numerics.layernorm import LayerNormFixed, LayerNormIBert, layer_norm, norm_and_reciprocal
from accelsim.numerics.softmax import SoftmaxPolynomial, SoftmaxTable, softmax

SCALES = np.geomspace(2.0**-8, 2.0**-3, 41)
"""Steps of scores and of GELU's inputs: 256 of them span 1 to 32."""
BYTES = np.arange(-128, 128).astype(np.int8)


def approximation_errors() -> list[dict[str, Any]]:
    """Largest errors, one row each: operator, method, error, unit, bound, bound_source.

    An error is within its bound when it is once rounded to the two digits that I-BERT prints. exp and GELU by
    polynomials: those of the integers, in units of the function. What has 8-bit results: in their steps, against the
    exact function of the same 8-bit inputs and of the parameters as they are rounded. Square roots are counted.
    """
    ibert = "I-BERT, arXiv:2101.01321"
    polynomial = {"rounding": "half_even", "width": 32}
    rows = [
        ("exp", "I-BERT polynomial, 32 bits", _exponential(), "", 1.9e-3, f"{ibert}, section 3.5"),
        ("exp", "table of 8 bits", _exponential_table(), "", 0.5 / 255, "half a step of 1 / 255"),
        ("GELU", "I-BERT polynomial, 32 bits", _gelu_real(), "", 0.018, f"{ibert}, table 1, on [-4, 4]"),
        ("GELU", "table", _gelu(GeluTable, rounding="half_even"), "steps", 0.5, "half a step"),
        ("square root", "Newton", _wrong_roots(), "wrong", 0.0, f"{ibert}, algorithm 4: exact"),
        ("GELU", "I-BERT polynomial", _gelu(GeluPolynomial, kept=16, **polynomial), "steps", None, "none published"),
        ("softmax", "table of 8 bits", _softmax(SoftmaxTable, bits=8), "steps", None, "none published"),
        ("softmax", "table of 16 bits", _softmax(SoftmaxTable, bits=16), "steps", None, "none published"),
        (
            "softmax",
            "I-BERT polynomial",
            _softmax(SoftmaxPolynomial, bits=16, width=32),
            "steps",
            None,
            "none published",
        ),
        ("layer norm", "8-bit parameters", _layer_norm(LayerNormFixed), "steps", 1.0, "one step"),
        ("layer norm", "I-BERT", _layer_norm(LayerNormIBert), "steps", 1.0, "one step"),
    ]
    names = ("operator", "method", "error", "unit", "bound", "bound_source")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _exponential() -> float:
    largest = 0.0
    for scale in SCALES:
        q, step = exponential_polynomial(float(scale), 32)
        largest = max(largest, float(np.abs(q * step - np.exp(-np.arange(256) * scale)).max()))
    return largest


def _exponential_table() -> float:
    largest = 0.0
    for scale in SCALES:
        table = SoftmaxTable.of(float(scale), bits=8, levels=255, rounding="half_even")
        largest = max(largest, float(np.abs(table.exponentials / 255 - np.exp(-np.arange(256) * scale)).max()))
    return largest


def _gelu_of(reals: np.ndarray) -> np.ndarray:
    return np.array([v * (1 + math.erf(v * math.sqrt(0.5))) / 2 for v in reals])


def _gelu_real() -> float:
    largest = 0.0
    for scale in SCALES:
        q, step = gelu_polynomial(float(scale), 32, 24)
        reals = np.arange(-128, 128) * scale
        inside = np.abs(reals) <= 4
        largest = max(largest, float(np.abs(q * step - _gelu_of(reals))[inside].max()))
    return largest


def _gelu(kind: Any, **how: Any) -> float:
    largest = 0.0
    for scale in map(float, SCALES):
        values, _ = gelu(BYTES, kind.of(x_scale=scale, out_scale=scale, dtype="int8", **how))
        largest = max(largest, float(np.abs(values - _gelu_of(BYTES * scale) / scale).max()))
    return largest


@kernel
def _roots(squares: np.ndarray, roots: np.ndarray) -> None:
    for i in range(squares.size):
        roots[i] = norm_and_reciprocal(squares[i])[1]


def _wrong_roots() -> float:
    """How many are not floor(sqrt(n)): the neighbours of squares, over the domain [2^28, 2^46)."""
    sides = np.unique(np.geomspace(2**14, 2**23 - 1, 20000).astype(np.int64))
    squares = np.concatenate([sides**2 + offset for offset in (0, 1, 2 * sides)])
    roots = np.empty_like(squares)
    _roots(squares, roots)
    return float((roots != np.tile(sides, 3)).sum())


def _normal(rows: int, cols: int) -> np.ndarray:
    """Random rows of different width and mean, the same each time."""
    generator = np.random.default_rng(0)
    spread, mean = generator.uniform(1, 60, (rows, 1)), generator.uniform(-40, 40, (rows, 1))
    numbers: np.ndarray = np.clip(generator.normal(mean, spread, (rows, cols)), -128, 127).astype(np.int8)
    return numbers


def _softmax(kind: Any, **how: Any) -> float:
    x, scale = _normal(256, 128), 0.05
    exact = np.exp((x - x.max(1, keepdims=True).astype(np.int64)) * scale)
    exact /= exact.sum(1, keepdims=True)
    found = softmax(x, kind.of(scale, levels=255, rounding="half_even", **how))
    return float(np.abs(found - 255 * exact).max())


def _layer_norm(kind: Any) -> float:
    x, n = _normal(256, 768).astype(np.float64), 768
    generator = np.random.default_rng(1)
    gamma, beta = np.rint(generator.uniform(0.5, 1, n) * 127) / 127, np.rint(generator.uniform(-1, 1, n) * 127) / 127
    gamma[0], beta[0], step = 1.0, 1.0, 0.05  # so that both have a step of 1 / 127: they are exact in 8 bits
    norm = kind.of(gamma, beta, x_scale=0.1, out_scale=step, eps=1e-12, rounding="half_even")
    found, _ = layer_norm(x.astype(np.int8), norm)
    exact = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) * gamma + beta
    return float(np.abs(found - np.clip(exact / step, -128, 127)).max())
