"""Ops that only training graphs have: dropout that drops, derivatives, the loss, and the optimizer's passes.

Each derivative is the operator that torch's autograd runs, in numpy; none of them is derived here. What torch returns
as a tuple is one op for each part, with one `kernel`.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from accelsim.errors import SpecError
from accelsim.graph import DType, Op, Tensor
from accelsim.ops.memory import Fill
from accelsim.ops.shapes import Shape, broadcasts, fit
from accelsim.ops.vector import Elementwise, RowWise, Vector, _erf
from accelsim.work import Arithmetic, VectorFunction, Work, WorkKind, move, packed_bytes

# --- dropout ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Fill):
    """bool of the shape `size`, each True with probability `p`. Drawing a random number counts no FLOP.

    Executed, the draw depends on `stream` alone (the op's name if that is ""), so that a run can be repeated and a
    recomputed mask is the one drawn before.
    """

    operator: ClassVar[str] = "bernoulli"
    size: tuple[int, ...]
    p: float
    stream: str = ""

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, not shapes, shapes, "no operand")
        if not 0 <= self.p <= 1:
            raise SpecError(f"{self.name}: p", self.p, "a probability from 0 to 1")
        return self.size

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        drawn: np.ndarray = (
            np.random.default_rng(zlib.crc32((self.stream or self.name).encode())).random(self.size) < self.p
        )
        return drawn

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.dtype is not DType.BOOL:
            raise SpecError(f"{self.name}: dtype of {output.name}", output.dtype.value, "bool")


@dataclass(frozen=True, kw_only=True)
class NativeDropout(Elementwise):
    """x * mask * scale: dropout with a given mask, and its derivative, which is the same function."""

    operator: ClassVar[str] = "native_dropout"
    operands = 2
    flops_per_element = 2
    scale: float

    def compute(self, *arrays: np.ndarray) -> Any:
        x, mask = arrays
        return x * mask * x.dtype.type(self.scale)


# --- layer norm ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayerNormStats(Vector):
    """x (..., n) -> (..., 2): mean and 1 / sqrt(variance + eps) of each row, which backward reads.

    Counts no FLOP: the layer norm in the same kernel has them.
    """

    operator: ClassVar[str] = "layer_norm_stats"
    eps: float

    function = VectorFunction.LAYER_NORM
    flops_per_element = 0
    exps_per_element = 0
    passes = 2

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, len(shapes) == 1 and len(shapes[0]) >= 1, shapes, "x (..., n)")
        return (*shapes[0][:-1], 2)

    def rows(self, inputs: tuple[Tensor, ...], output: Tensor) -> Shape:
        return inputs[0].elements // inputs[0].shape[-1], inputs[0].shape[-1]

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        (x,) = arrays
        rstd = 1 / np.sqrt(x.var(axis=-1) + x.dtype.type(self.eps))
        return np.stack([x.mean(axis=-1), rstd], axis=-1).astype(x.dtype)


class _LayerNormGradient(Vector):
    """Base of the derivatives of layer norm: gradient and x (..., n), stats (..., 2)."""

    function = VectorFunction.LAYER_NORM
    exps_per_element = 0

    def _fit(self, shapes: tuple[Shape, ...], weights: int) -> None:
        ok = len(shapes) in (3, 3 + weights) and len(shapes[0]) >= 1 and shapes[0] == shapes[1]
        ok = ok and shapes[2] == (*shapes[0][:-1], 2) and all(s == shapes[0][-1:] for s in shapes[3:])
        fit(self, ok, shapes, "gradient and x (..., n), stats (..., 2)" + (", perhaps weight (n)" if weights else ""))

    @staticmethod
    def _normalized(x: np.ndarray, stats: np.ndarray) -> np.ndarray:
        result: np.ndarray = (x - stats[..., :1]) * stats[..., 1:]
        return result


@dataclass(frozen=True, kw_only=True)
class LayerNormBackward(_LayerNormGradient):
    """Gradient of x: rstd (g - mean(g) - x^ mean(g x^)), g = gradient * weight, x^ = (x - mean) rstd.

    FLOPs: x^ (2), g, two sums and a product for the means (3), and 4 to put them together.
    """

    operator: ClassVar[str] = "layer_norm_backward"
    flops_per_element = 10
    passes = 2

    def out_shape(self, *shapes: Shape) -> Shape:
        self._fit(shapes, 1)
        return shapes[0]

    def rows(self, inputs: tuple[Tensor, ...], output: Tensor) -> Shape:
        return output.elements // output.shape[-1], output.shape[-1]

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        gradient, x, stats, *weight = arrays
        g = gradient * weight[0] if weight else gradient
        y = self._normalized(x, stats)
        centred = g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True)
        result: np.ndarray = centred * stats[..., 1:]
        return result


@dataclass(frozen=True, kw_only=True)
class LayerNormBackwardWeight(_LayerNormGradient):
    """Gradient of the weight: the sum of gradient * x^ over all rows. FLOPs: x^ (2), product, sum."""

    operator: ClassVar[str] = "layer_norm_backward_weight"
    flops_per_element = 4
    passes = 1

    def out_shape(self, *shapes: Shape) -> Shape:
        self._fit(shapes, 0)
        return shapes[0][-1:]

    def rows(self, inputs: tuple[Tensor, ...], output: Tensor) -> Shape:
        return output.elements, inputs[0].elements // output.elements

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        gradient, x, stats = arrays
        product = gradient * self._normalized(x, stats)
        result: np.ndarray = product.sum(axis=tuple(range(x.ndim - 1)))
        return result


# --- derivatives of one row or one element ------------------------------------------------------------------------


class _Gradient(Elementwise):
    """Base of element-wise derivatives: the gradient of y, and x or y."""

    operands = 2


@dataclass(frozen=True, kw_only=True)
class GeluBackward(_Gradient):
    """gradient * (Phi(x) + x phi(x)), or the derivative of the tanh approximation."""

    operator: ClassVar[str] = "gelu_backward"
    approximate: str

    function = VectorFunction.GELU

    @property
    def flops_per_element(self) -> int:
        return 9 if self.approximate == "none" else 16

    @property
    def exps_per_element(self) -> int:  # type: ignore[override]  # erf and exp, or one tanh
        return 2 if self.approximate == "none" else 1

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise SpecError.unknown(f"{self.name}: approximate", self.approximate, ("none", "tanh"))

    def compute(self, *arrays: np.ndarray) -> Any:
        gradient, x = arrays
        if self.approximate == "none":
            cumulative = (1 + _erf(x / math.sqrt(2))) / 2
            slope = cumulative + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        else:
            c = math.sqrt(2 / math.pi)
            t = np.tanh(c * (x + 0.044715 * x**3))
            slope = (1 + t) / 2 + x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x) / 2
        return (gradient * slope).astype(x.dtype)


@dataclass(frozen=True, kw_only=True)
class TanhBackward(_Gradient):
    """gradient * (1 - y^2)."""

    operator: ClassVar[str] = "tanh_backward"
    flops_per_element = 3

    def compute(self, *arrays: np.ndarray) -> Any:
        gradient, y = arrays
        return gradient * (1 - y * y)


@dataclass(frozen=True, kw_only=True)
class SigmoidBackward(_Gradient):
    """gradient * y (1 - y)."""

    operator: ClassVar[str] = "sigmoid_backward"
    flops_per_element = 3

    def compute(self, *arrays: np.ndarray) -> Any:
        gradient, y = arrays
        return gradient * y * (1 - y)


@dataclass(frozen=True, kw_only=True)
class ThresholdBackward(_Gradient):
    """gradient where y > threshold, else 0: the derivative of relu."""

    operator: ClassVar[str] = "threshold_backward"
    flops_per_element = 0
    threshold: float | int

    def compute(self, *arrays: np.ndarray) -> Any:
        gradient, y = arrays
        return np.where(y > self.threshold, gradient, gradient.dtype.type(0))


class _RowGradient(RowWise):
    """Base of derivatives over rows of the last dimension: the gradient of y, and y."""

    function = VectorFunction.SOFTMAX
    passes = 2

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, len(shapes) == 2 and shapes[0] == shapes[1], shapes, "gradient and y of one shape")
        return shapes[0]


@dataclass(frozen=True, kw_only=True)
class SoftmaxBackward(_RowGradient):
    """y (gradient - sum(gradient y))."""

    operator: ClassVar[str] = "softmax_backward"
    flops_per_element = 4
    exps_per_element = 0

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        gradient, y = arrays
        result: np.ndarray = y * (gradient - (gradient * y).sum(-1, keepdims=True))
        return result


@dataclass(frozen=True, kw_only=True)
class LogSoftmax(RowWise):
    """x - log(sum(exp(x))) over the last dimension. FLOPs: subtract the maximum, sum, subtract the logarithm."""

    operator: ClassVar[str] = "log_softmax"
    function = VectorFunction.SOFTMAX
    flops_per_element = 3
    exps_per_element = 1
    passes = 3

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, len(shapes) == 1, shapes, "one operand")
        return shapes[0]

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x = arrays[0] - arrays[0].max(-1, keepdims=True)
        result: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
        return result


@dataclass(frozen=True, kw_only=True)
class LogSoftmaxBackward(_RowGradient):
    """gradient - exp(y) sum(gradient)."""

    operator: ClassVar[str] = "log_softmax_backward"
    flops_per_element = 3
    exps_per_element = 1

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        gradient, y = arrays
        result: np.ndarray = gradient - np.exp(y) * gradient.sum(-1, keepdims=True)
        return result


# --- the loss -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NllLoss(Op):
    """log-probabilities (rows, classes), targets (rows) -> minus the mean at the targets, `ignore_index` left out.

    Reads one number of each row.
    """

    operator: ClassVar[str] = "nll_loss"
    ignore_index: int

    def out_shape(self, *shapes: Shape) -> Shape:
        ok = len(shapes) == 2 and len(shapes[0]) == 2 and shapes[1] == shapes[0][:1]
        fit(self, ok, shapes, "log-probabilities (rows, classes), targets (rows)")
        return ()

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        x, target = inputs
        return (move(target.bytes + packed_bytes(target.elements, x.dtype.bits), output.bytes),)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x, target = arrays
        kept = target != self.ignore_index
        picked = x[np.nonzero(kept)[0], target[kept]]
        return np.asarray(-picked.sum() / x.dtype.type(kept.sum()), x.dtype)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_ids(self, inputs[1])


@dataclass(frozen=True, kw_only=True)
class NllLossBackward(Op):
    """gradient (), targets (rows) -> (rows, classes): -gradient / number of targets at each target, 0 elsewhere."""

    operator: ClassVar[str] = "nll_loss_backward"
    classes: int
    ignore_index: int

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, len(shapes) == 2 and not shapes[0] and len(shapes[1]) == 1, shapes, "gradient (), targets (rows)")
        return (*shapes[1], self.classes)

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        return (move(inputs[0].bytes + inputs[1].bytes, output.bytes),)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        gradient, target = arrays
        kept = target != self.ignore_index
        result = np.zeros((len(target), self.classes), gradient.dtype)
        result[np.nonzero(kept)[0], target[kept]] = -gradient / gradient.dtype.type(kept.sum())
        return result

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_ids(self, inputs[1])


def _check_ids(op: Op, tensor: Tensor) -> None:
    if tensor.dtype not in (DType.INT64, DType.INT32):
        raise SpecError(f"{op.name}: dtype of {tensor.name}", tensor.dtype.value, "int32 or int64")


# --- scatter ------------------------------------------------------------------------------------------------------


class _Scatter(Op):
    """Base of sums of rows into a table of zeros: the table is zeroed, then each row is read, added and written."""

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        gradient, *ids = inputs
        return (
            Work(
                kind=WorkKind.VECTOR,
                function=VectorFunction.ELEMENTWISE,
                arithmetic=gradient.dtype.arithmetic,
                m=gradient.elements // gradient.shape[-1],
                n=gradient.shape[-1],
                a_bits=gradient.dtype.bits,
                o_bits=output.dtype.bits,
                in_bytes=sum(t.bytes for t in ids) + 2 * gradient.bytes,
                out_bytes=output.bytes + gradient.bytes,
                flops_per_element=1,
                passes=1,
            ),
        )

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for tensor in inputs[1:]:
            _check_ids(self, tensor)


@dataclass(frozen=True, kw_only=True)
class EmbeddingBackward(_Scatter):
    """gradient (..., n), ids (...) -> (rows, n): the gradients summed by id, those of `padding_idx` left out."""

    operator: ClassVar[str] = "embedding_backward"
    rows: int
    padding_idx: int

    def out_shape(self, *shapes: Shape) -> Shape:
        ok = len(shapes) == 2 and len(shapes[0]) >= 1 and broadcasts((shapes[0][:-1],), shapes[1])
        fit(self, ok, shapes, "gradient (..., n), ids (...)")
        return (self.rows, shapes[0][-1])

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        gradient, ids = arrays
        result = np.zeros((self.rows, gradient.shape[-1]), gradient.dtype)
        np.add.at(result, ids, np.broadcast_to(gradient, (*ids.shape, gradient.shape[-1])))
        if self.padding_idx >= 0:
            result[self.padding_idx] = 0
        return result


@dataclass(frozen=True, kw_only=True)
class IndexBackward(_Scatter):
    """gradient (..., n), ids (...) -> (size): the derivative of picking x[ids] along the first dimension."""

    operator: ClassVar[str] = "index_backward"
    size: tuple[int, ...]

    def out_shape(self, *shapes: Shape) -> Shape:
        ok = len(shapes) == 2 and len(self.size) >= 2 and shapes[0] == (*shapes[1], *self.size[1:])
        fit(self, ok, shapes, f"gradient (..., {', '.join(map(str, self.size[1:]))}), ids (...)")
        return self.size

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        gradient, ids = arrays
        result = np.zeros(self.size, gradient.dtype)
        np.add.at(result, ids, gradient)
        return result


# --- the optimizer ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Update(Op):
    """One pass of an optimizer over a group of parameters, all tensors of the group in one kernel.

    inputs: every tensor it reads. in_place: those of them that it also writes. output: what it writes besides, as one
    flat tensor (an update, new weights), or the sums of a reduction. replaces: tensors in whose memory the output is,
    none if it has its own. flops_per_element, exps_per_element: of each of the group's `elements`.
    """

    operator: ClassVar[str] = "update"
    stage: str
    elements: int
    shape: tuple[int, ...]
    in_place: tuple[str, ...]
    replaces: tuple[str, ...]
    flops_per_element: int
    exps_per_element: int

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, len(shapes) >= 1, shapes, "at least one operand")
        return self.shape

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        return (
            Work(
                kind=WorkKind.VECTOR,
                function=VectorFunction.ELEMENTWISE,
                arithmetic=next((t.dtype.arithmetic for t in inputs if t.dtype.is_float), Arithmetic.INT),
                m=1,
                n=self.elements,
                a_bits=inputs[0].dtype.bits,
                o_bits=output.dtype.bits,
                in_bytes=sum(t.bytes for t in inputs),
                out_bytes=output.bytes + sum(t.bytes for t in inputs if t.name in self.in_place),
                flops_per_element=self.flops_per_element,
                exps_per_element=self.exps_per_element,
                passes=1,
            ),
        )

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        raise SpecError(f"{self.name}: execute", self.stage, "a graph without its optimizer, which works in place")

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        names = [t.name for t in inputs]
        for name in self.in_place:
            if name not in names:
                raise SpecError.unknown(f"{self.name}: in_place", name, names)
