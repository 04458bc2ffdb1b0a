"""Ops that only quantized graphs have: between real numbers and integers, and the sum inside a layer norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from accelsim.errors import SpecError
from accelsim.graph import Op, Tensor
from accelsim.ops.shapes import Shape, broadcast, fit
from accelsim.ops.vector import Elementwise, RowWise, normalized
from accelsim.work import VectorFunction


@dataclass(frozen=True, kw_only=True)
class Quantize(Elementwise):
    """clamp(round(x / step) + zero point): from float32 to the integers of the output. One multiplication."""

    operator: ClassVar[str] = "quantize"
    operands = 1
    flops_per_element = 1

    def compute(self, *arrays: np.ndarray) -> np.ndarray:
        raise _needs_steps(self)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not inputs[0].dtype.is_float or output.dtype.is_float:
            found = f"{inputs[0].dtype.value} -> {output.dtype.value}"
            raise SpecError(f"{self.name}: dtypes", found, "a real number -> an integer")


@dataclass(frozen=True, kw_only=True)
class Dequantize(Elementwise):
    """(x - zero point) step: from integers to float32. One multiplication."""

    operator: ClassVar[str] = "dequantize"
    operands = 1
    flops_per_element = 1

    def compute(self, *arrays: np.ndarray) -> np.ndarray:
        raise _needs_steps(self)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].dtype.is_float or not output.dtype.is_float:
            found = f"{inputs[0].dtype.value} -> {output.dtype.value}"
            raise SpecError(f"{self.name}: dtypes", found, "an integer -> a real number")


@dataclass(frozen=True, kw_only=True)
class AddLayerNorm(RowWise):
    """Layer norm of x + residual over the last dimension: the sum never leaves the unit (FQ-BERT's LN core).

    FLOPs: one more than a layer norm's.
    """

    operator: ClassVar[str] = "add_layer_norm"
    eps: float

    function = VectorFunction.LAYER_NORM
    flops_per_element = 8
    exps_per_element = 0
    passes = 3

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, len(shapes) == 4 and len(shapes[0]) >= 1, shapes, "x, residual (..., n), weight (n), bias (n)")
        result = broadcast(self, shapes[:2])
        fit(self, shapes[2] == shapes[3] == result[-1:], shapes, "x, residual (..., n), weight (n), bias (n)")
        return result

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x, residual, *affine = arrays
        return normalized(self.eps, x + residual, *affine)


def _needs_steps(op: Op) -> SpecError:
    return SpecError(f"{op.name}: params", "arrays alone", "quantized Params, which know the steps")
