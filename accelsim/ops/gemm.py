"""Ops that are matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from accelsim.errors import SpecError
from accelsim.graph import Op, Tensor
from accelsim.ops.shapes import Shape, broadcast, fit
from accelsim.work import Work, gemm


def _check_gemm_dtypes(op: Op, inputs: tuple[Tensor, ...]) -> None:
    a, b = inputs[0].dtype, inputs[1].dtype
    if a.arithmetic is not b.arithmetic:
        raise SpecError(f"{op.name}: operand dtypes", f"{a.value} x {b.value}", "two of one arithmetic")


@dataclass(frozen=True, kw_only=True)
class Linear(Op):
    """x (..., k), weight (n, k), bias (n)? -> (..., n): x weight^T + bias."""

    operator: ClassVar[str] = "linear"

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, 2 <= len(shapes) <= 3, shapes, "x, weight and perhaps a bias")
        x, w, *b = shapes
        ok = len(x) >= 1 and len(w) == 2 and x[-1] == w[1] and all(s == (w[0],) for s in b)
        fit(self, ok, shapes, "x (..., k), weight (n, k), bias (n)")
        return (*x[:-1], w[0])

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        x, w, *b = inputs
        n, k = w.shape
        return (
            gemm(
                x.elements // k,
                k,
                n,
                a_bits=x.dtype.bits,
                w_bits=w.dtype.bits,
                o_bits=output.dtype.bits,
                arithmetic=x.dtype.arithmetic,
                bias_bytes=sum(t.bytes for t in b),
            ),
        )

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x, w, *b = arrays
        y: np.ndarray = x @ w.T
        return np.add(y, b[0]) if b else y

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_gemm_dtypes(self, inputs)


@dataclass(frozen=True, kw_only=True)
class Matmul(Op):
    """a (..., m, k), b (..., k, n) -> (..., m, n), leading dimensions broadcast. `transpose_b`: b is (..., n, k).

    A `b` of two dimensions is one GEMM over all rows of a.
    """

    operator: ClassVar[str] = "matmul"
    transpose_b: bool = False

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, len(shapes) == 2, shapes, "two operands")
        a, b = shapes
        fit(self, len(a) >= 2 and len(b) >= 2, shapes, "two operands of two dimensions or more")
        k, n = (b[-1], b[-2]) if self.transpose_b else (b[-2], b[-1])
        fit(self, a[-1] == k, shapes, "the same k in both operands")
        return (*broadcast(self, (a[:-2], b[:-2])), a[-2], n)

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        a, b = inputs
        count = math.prod(output.shape[:-2]) if len(b.shape) > 2 else 1
        return (
            gemm(
                output.elements // output.shape[-1] // count,
                a.shape[-1],
                output.shape[-1],
                count=count,
                a_bits=a.dtype.bits,
                w_bits=b.dtype.bits,
                o_bits=output.dtype.bits,
                arithmetic=a.dtype.arithmetic,
                parameter_weights=False,
            ),
        )

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        a, b = arrays
        result: np.ndarray = np.matmul(a, np.swapaxes(b, -1, -2) if self.transpose_b else b)
        return result

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_gemm_dtypes(self, inputs)
