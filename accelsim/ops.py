"""The op vocabulary: one class each, by the name PyTorch gives the operator.

An op owns its output shape, the work it asks of hardware and its meaning on arrays. FLOPs per element are what the
textbook formula needs, exps are transcendental evaluations; comparisons, negations and copies count zero.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from accelsim.errors import SpecError
from accelsim.graph import DType, Op, Tensor
from accelsim.work import Arithmetic, VectorFunction, Work, WorkKind, gemm, move, packed_bytes

Shape = tuple[int, ...]


def _fit(op: Op, ok: bool, shapes: tuple[Shape, ...], want: str) -> None:
    if not ok:
        raise SpecError(f"{op.name}: input shapes", shapes, want)


# --- GEMM ---------------------------------------------------------------------------------------------------------


def _check_gemm_dtypes(op: Op, inputs: tuple[Tensor, ...]) -> None:
    a, b = inputs[0].dtype, inputs[1].dtype
    if a.arithmetic is not b.arithmetic:
        raise SpecError(f"{op.name}: operand dtypes", f"{a.value} x {b.value}", "two of one arithmetic")


@dataclass(frozen=True, kw_only=True)
class Linear(Op):
    """x (..., k), weight (n, k), bias (n)? -> (..., n): x weight^T + bias."""

    operator: ClassVar[str] = "linear"

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, 2 <= len(shapes) <= 3, shapes, "x, weight and perhaps a bias")
        x, w, *b = shapes
        ok = len(x) >= 1 and len(w) == 2 and x[-1] == w[1] and all(s == (w[0],) for s in b)
        _fit(self, ok, shapes, "x (..., k), weight (n, k), bias (n)")
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
        _fit(self, len(shapes) == 2, shapes, "two operands")
        a, b = shapes
        _fit(self, len(a) >= 2 and len(b) >= 2, shapes, "two operands of two dimensions or more")
        k, n = (b[-1], b[-2]) if self.transpose_b else (b[-2], b[-1])
        _fit(self, a[-1] == k, shapes, "the same k in both operands")
        return (*_broadcast(self, (a[:-2], b[:-2])), a[-2], n)

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


# --- VECTOR -------------------------------------------------------------------------------------------------------


class Vector(Op):
    """Base of ops a vector unit computes: `rows` says over how many rows of how many elements."""

    @property
    @abstractmethod
    def function(self) -> VectorFunction:
        """Which rate of the vector unit applies."""

    @property
    @abstractmethod
    def flops_per_element(self) -> int:
        """Multiplications, additions and divisions per swept element."""

    @property
    @abstractmethod
    def exps_per_element(self) -> int:
        """Transcendental evaluations per swept element."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Times the elements are swept."""

    @abstractmethod
    def rows(self, inputs: tuple[Tensor, ...], output: Tensor) -> Shape:
        """(rows, elements per row) that are swept."""

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        m, n = self.rows(inputs, output)
        return (
            Work(
                kind=WorkKind.VECTOR,
                function=self.function,
                arithmetic=_arithmetic(inputs, output),
                m=m,
                n=n,
                a_bits=inputs[0].dtype.bits,
                o_bits=output.dtype.bits,
                in_bytes=sum(t.bytes for t in {t.name: t for t in inputs}.values()),
                out_bytes=output.bytes,
                flops_per_element=self.flops_per_element,
                exps_per_element=self.exps_per_element,
                passes=self.passes,
            ),
        )


def _arithmetic(inputs: tuple[Tensor, ...], output: Tensor) -> Arithmetic:
    """Floating point as soon as one operand is, so that a comparison of floats asks for a float unit."""
    return next((t.dtype.arithmetic for t in (output, *inputs) if t.dtype.is_float), Arithmetic.INT)


class RowWise(Vector):
    """Base of ops over rows of the last dimension: output has the shape of the first input."""

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, len(shapes) >= 1, shapes, "at least one operand")
        return shapes[0]

    def rows(self, inputs: tuple[Tensor, ...], output: Tensor) -> Shape:
        row = output.shape[-1] if output.shape else 1
        return output.elements // row, row


@dataclass(frozen=True, kw_only=True)
class Softmax(RowWise):
    """softmax(scale x + mask) over the last dimension; mask: bool (True is kept) or a number that is added.

    A row with every element masked gives zeros, as `scaled_dot_product_attention` does.
    FLOPs: scale (unless 1), subtract the maximum, sum, divide.
    """

    operator: ClassVar[str] = "softmax"
    scale: float = 1.0

    function = VectorFunction.SOFTMAX
    exps_per_element = 1
    passes = 3

    @property
    def flops_per_element(self) -> int:
        return 3 if self.scale == 1.0 else 4

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, 1 <= len(shapes) <= 2, shapes, "x and perhaps a mask")
        _fit(self, _broadcasts(shapes[1:], shapes[0]), shapes, "a mask that broadcasts to x")
        return shapes[0]

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x, *mask = arrays
        y = x * x.dtype.type(self.scale)
        if mask:
            y = np.where(mask[0], y, -np.inf) if mask[0].dtype == np.bool_ else y + mask[0]
        top = y.max(axis=-1, keepdims=True)
        e = np.exp(y - np.where(np.isneginf(top), 0, top))
        total = e.sum(axis=-1, keepdims=True)
        result: np.ndarray = (e / np.where(total == 0, 1, total)).astype(x.dtype)
        return result


@dataclass(frozen=True, kw_only=True)
class LayerNorm(RowWise):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension; weight and bias may be absent.

    FLOPs: sum; subtract, square, sum; divide; times weight, plus bias.
    """

    operator: ClassVar[str] = "layer_norm"
    eps: float

    function = VectorFunction.LAYER_NORM
    flops_per_element = 7
    exps_per_element = 0
    passes = 3

    def out_shape(self, *shapes: Shape) -> Shape:
        ok = 1 <= len(shapes) <= 3 and len(shapes[0]) >= 1 and all(s == (shapes[0][-1],) for s in shapes[1:])
        _fit(self, ok, shapes, "x (..., n), weight (n), bias (n)")
        return shapes[0]

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x, *affine = arrays
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        y: np.ndarray = centred / np.sqrt(variance + x.dtype.type(self.eps))
        for scale in affine[:1]:
            y = y * scale
        for shift in affine[1:]:
            y = y + shift
        return y


class Activation(RowWise):
    """Base of nonlinear functions of one operand, priced like GELU."""

    function = VectorFunction.GELU
    exps_per_element = 1
    passes = 1

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, len(shapes) == 1, shapes, "one operand")
        return shapes[0]


@dataclass(frozen=True, kw_only=True)
class Gelu(Activation):
    """x Phi(x) with the error function (`approximate="none"`) or 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""

    operator: ClassVar[str] = "gelu"
    approximate: str

    flops_per_element = 8

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise SpecError.unknown(f"{self.name}: approximate", self.approximate, ("none", "tanh"))

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        (x,) = arrays
        if self.approximate == "none":
            y = x * (1 + _erf(x / math.sqrt(2))) / 2
        else:
            y = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        result: np.ndarray = y.astype(x.dtype)
        return result


def _erf(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    result: np.ndarray = erf(x)
    return result


@dataclass(frozen=True, kw_only=True)
class Tanh(Activation):
    """(1 - t) / (1 + t) with t = exp(-2 x)."""

    operator: ClassVar[str] = "tanh"
    flops_per_element = 4

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.asarray(np.tanh(arrays[0]))


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    operator: ClassVar[str] = "sigmoid"
    flops_per_element = 2

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x = arrays[0]
        result: np.ndarray = ((1 + np.tanh(x / 2)) / 2).astype(x.dtype)
        return result


@dataclass(frozen=True, kw_only=True)
class Silu(Activation):
    """x / (1 + exp(-x))."""

    operator: ClassVar[str] = "silu"
    flops_per_element = 3

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x = arrays[0]
        result: np.ndarray = (x * (1 + np.tanh(x / 2)) / 2).astype(x.dtype)
        return result


@dataclass(frozen=True, kw_only=True)
class Erf(Activation):
    """The error function; its polynomial is counted as one transcendental."""

    operator: ClassVar[str] = "erf"
    flops_per_element = 0

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return _erf(arrays[0])


@dataclass(frozen=True, kw_only=True)
class Exp(Activation):
    """exp(x)."""

    operator: ClassVar[str] = "exp"
    flops_per_element = 0

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(arrays[0]))


class Elementwise(Vector):
    """Base of simple functions of broadcast operands, one pass over one row of every output element."""

    operands: ClassVar[int]

    function = VectorFunction.ELEMENTWISE
    exps_per_element = 0
    passes = 1

    @abstractmethod
    def compute(self, *arrays: np.ndarray) -> Any:
        """The function itself; `execute` narrows float64 that only numpy's promotion made."""

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, len(shapes) == self.operands, shapes, f"{self.operands} operands")
        return _broadcast(self, shapes)

    def rows(self, inputs: tuple[Tensor, ...], output: Tensor) -> Shape:
        return 1, output.elements

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        y = np.asarray(self.compute(*arrays))
        promoted = y.dtype == np.float64 and all(a.dtype != np.float64 for a in arrays)
        return y.astype(np.float32) if promoted else y


@dataclass(frozen=True, kw_only=True)
class Binary(Elementwise):
    """Base of functions of two tensors, or of a tensor and the number `other`."""

    function_of: ClassVar[Callable[..., Any]]
    other: float | int | bool | None = None

    def out_shape(self, *shapes: Shape) -> Shape:
        want = 2 if self.other is None else 1
        _fit(self, len(shapes) == want, shapes, f"{want} operands (other is {self.other})")
        return _broadcast(self, shapes)

    def compute(self, *arrays: np.ndarray) -> Any:
        return self.function_of(*arrays, *(() if self.other is None else (self.other,)))


@dataclass(frozen=True, kw_only=True)
class Add(Binary):
    """a + b."""

    operator: ClassVar[str] = "add"
    flops_per_element = 1
    function_of = np.add


@dataclass(frozen=True, kw_only=True)
class Sub(Binary):
    """a - b."""

    operator: ClassVar[str] = "sub"
    flops_per_element = 1
    function_of = np.subtract


@dataclass(frozen=True, kw_only=True)
class RSub(Binary):
    """b - a."""

    operator: ClassVar[str] = "rsub"
    flops_per_element = 1

    @staticmethod
    def function_of(a: Any, b: Any) -> Any:
        return b - a


@dataclass(frozen=True, kw_only=True)
class Mul(Binary):
    """a * b."""

    operator: ClassVar[str] = "mul"
    flops_per_element = 1
    function_of = np.multiply


@dataclass(frozen=True, kw_only=True)
class Div(Binary):
    """a / b, true division."""

    operator: ClassVar[str] = "div"
    flops_per_element = 1
    function_of = np.divide


@dataclass(frozen=True, kw_only=True)
class Pow(Elementwise):
    """x to the power `exponent`: exponent - 1 multiplications if it is a small integer, one transcendental if not."""

    operator: ClassVar[str] = "pow"
    operands = 1
    exponent: float | int

    @property
    def _multiplications(self) -> int | None:
        whole = float(self.exponent).is_integer() and 1 <= self.exponent <= 8
        return int(self.exponent) - 1 if whole else None

    @property
    def flops_per_element(self) -> int:
        return self._multiplications or 0

    @property
    def exps_per_element(self) -> int:  # type: ignore[override]  # it depends on the exponent here
        return 1 if self._multiplications is None else 0

    def compute(self, *arrays: np.ndarray) -> Any:
        return np.power(arrays[0], self.exponent)


@dataclass(frozen=True, kw_only=True)
class Eq(Binary):
    """a == b."""

    operator: ClassVar[str] = "eq"
    flops_per_element = 0
    function_of = np.equal


@dataclass(frozen=True, kw_only=True)
class Ne(Binary):
    """a != b."""

    operator: ClassVar[str] = "ne"
    flops_per_element = 0
    function_of = np.not_equal


@dataclass(frozen=True, kw_only=True)
class Lt(Binary):
    """a < b."""

    operator: ClassVar[str] = "lt"
    flops_per_element = 0
    function_of = np.less


@dataclass(frozen=True, kw_only=True)
class Le(Binary):
    """a <= b."""

    operator: ClassVar[str] = "le"
    flops_per_element = 0
    function_of = np.less_equal


@dataclass(frozen=True, kw_only=True)
class Gt(Binary):
    """a > b."""

    operator: ClassVar[str] = "gt"
    flops_per_element = 0
    function_of = np.greater


@dataclass(frozen=True, kw_only=True)
class Ge(Binary):
    """a >= b."""

    operator: ClassVar[str] = "ge"
    flops_per_element = 0
    function_of = np.greater_equal


@dataclass(frozen=True, kw_only=True)
class BitwiseAnd(Binary):
    """a & b; of bools, logical and."""

    operator: ClassVar[str] = "bitwise_and"
    flops_per_element = 0
    function_of = np.bitwise_and


@dataclass(frozen=True, kw_only=True)
class BitwiseOr(Binary):
    """a | b; of bools, logical or."""

    operator: ClassVar[str] = "bitwise_or"
    flops_per_element = 0
    function_of = np.bitwise_or


@dataclass(frozen=True, kw_only=True)
class BitwiseNot(Elementwise):
    """~x; of bools, logical not."""

    operator: ClassVar[str] = "bitwise_not"
    operands = 1
    flops_per_element = 0

    def compute(self, *arrays: np.ndarray) -> Any:
        return np.invert(arrays[0])


@dataclass(frozen=True, kw_only=True)
class Neg(Elementwise):
    """-x."""

    operator: ClassVar[str] = "neg"
    operands = 1
    flops_per_element = 0

    def compute(self, *arrays: np.ndarray) -> Any:
        return np.negative(arrays[0])


@dataclass(frozen=True, kw_only=True)
class Relu(Elementwise):
    """max(x, 0): a comparison."""

    operator: ClassVar[str] = "relu"
    operands = 1
    flops_per_element = 0

    def compute(self, *arrays: np.ndarray) -> Any:
        return np.maximum(arrays[0], 0)


@dataclass(frozen=True, kw_only=True)
class Clamp(Elementwise):
    """min(max(x, low), high); either bound may be absent. Comparisons."""

    operator: ClassVar[str] = "clamp"
    operands = 1
    flops_per_element = 0
    low: float | int | None
    high: float | int | None

    def compute(self, *arrays: np.ndarray) -> Any:
        return np.clip(arrays[0], self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Sqrt(Elementwise):
    """Square root, one transcendental."""

    operator: ClassVar[str] = "sqrt"
    operands = 1
    flops_per_element = 0
    exps_per_element = 1

    def compute(self, *arrays: np.ndarray) -> Any:
        return np.sqrt(arrays[0])


@dataclass(frozen=True, kw_only=True)
class Rsqrt(Elementwise):
    """1 / square root: a division and one transcendental."""

    operator: ClassVar[str] = "rsqrt"
    operands = 1
    flops_per_element = 1
    exps_per_element = 1

    def compute(self, *arrays: np.ndarray) -> Any:
        return np.divide(1, np.sqrt(arrays[0]))


@dataclass(frozen=True, kw_only=True)
class Where(Elementwise):
    """x where the condition holds, else y; `x` or `y` (not both) may be a number in place of a tensor."""

    operator: ClassVar[str] = "where"
    flops_per_element = 0
    x: float | int | None = None
    y: float | int | None = None

    def out_shape(self, *shapes: Shape) -> Shape:
        numbers = (self.x is not None) + (self.y is not None)
        _fit(self, numbers <= 1 and len(shapes) == 3 - numbers, shapes, "condition, x and y, of which one a number")
        return _broadcast(self, shapes)

    def compute(self, *arrays: np.ndarray) -> Any:
        condition, *rest = arrays
        x = rest.pop(0) if self.x is None else self.x
        y = rest.pop(0) if self.y is None else self.y
        return np.where(condition, x, y)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_bool(self, inputs[0])


@dataclass(frozen=True, kw_only=True)
class MaskedFill(Elementwise):
    """x, and the number `value` where the second operand is true."""

    operator: ClassVar[str] = "masked_fill"
    operands = 2
    flops_per_element = 0
    value: float | int

    def compute(self, *arrays: np.ndarray) -> Any:
        x, mask = arrays
        return np.where(mask, x.dtype.type(self.value), x)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_bool(self, inputs[1])


def _check_bool(op: Op, tensor: Tensor) -> None:
    if tensor.dtype is not DType.BOOL:
        raise SpecError(f"{op.name}: dtype of {tensor.name}", tensor.dtype.value, "bool")


@dataclass(frozen=True, kw_only=True)
class To(Elementwise):
    """x in the number format `dtype`."""

    operator: ClassVar[str] = "to"
    operands = 1
    flops_per_element = 0
    dtype: str

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.asarray(self.compute(*arrays))

    def compute(self, *arrays: np.ndarray) -> Any:
        return arrays[0].astype(self.dtype)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_dtype(self, self.dtype, output)


def _check_dtype(op: Op, dtype: str, output: Tensor) -> None:
    if output.dtype.value != dtype:
        raise SpecError(f"{op.name}: dtype of {output.name}", output.dtype.value, dtype)


@dataclass(frozen=True, kw_only=True)
class Cumsum(Vector):
    """Running sum along `dim`."""

    operator: ClassVar[str] = "cumsum"
    dim: int

    function = VectorFunction.ELEMENTWISE
    flops_per_element = 1
    exps_per_element = 0
    passes = 1

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(
            self, len(shapes) == 1 and 0 <= self.dim < len(shapes[0]), shapes, f"one operand with dimension {self.dim}"
        )
        return shapes[0]

    def rows(self, inputs: tuple[Tensor, ...], output: Tensor) -> Shape:
        n = output.shape[self.dim]
        return output.elements // n, n

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.cumsum(arrays[0], axis=self.dim)


@dataclass(frozen=True, kw_only=True)
class Reduction(Vector):
    """Base of reductions over `dims`; each output element is a row of what it reduces."""

    dims: tuple[int, ...]
    keepdim: bool

    function = VectorFunction.ELEMENTWISE
    exps_per_element = 0
    passes = 1

    def out_shape(self, *shapes: Shape) -> Shape:
        ok = len(shapes) == 1 and all(0 <= d < len(shapes[0]) for d in self.dims)
        _fit(self, ok, shapes, f"one operand with dimensions {self.dims}")
        kept = ((1 if i in self.dims else s) for i, s in enumerate(shapes[0]) if self.keepdim or i not in self.dims)
        return tuple(kept)

    def rows(self, inputs: tuple[Tensor, ...], output: Tensor) -> Shape:
        return output.elements, inputs[0].elements // output.elements

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.asarray(self.reduce(arrays[0], axis=self.dims, keepdims=self.keepdim))

    @property
    @abstractmethod
    def reduce(self) -> Callable[..., Any]:
        """The numpy reduction."""


@dataclass(frozen=True, kw_only=True)
class Sum(Reduction):
    """Sum over `dims`."""

    operator: ClassVar[str] = "sum"
    flops_per_element = 1
    reduce = staticmethod(np.sum)


@dataclass(frozen=True, kw_only=True)
class Mean(Reduction):
    """Mean over `dims`; the one division per row is not counted."""

    operator: ClassVar[str] = "mean"
    flops_per_element = 1
    reduce = staticmethod(np.mean)


@dataclass(frozen=True, kw_only=True)
class Amax(Reduction):
    """Maximum over `dims`."""

    operator: ClassVar[str] = "amax"
    flops_per_element = 0
    reduce = staticmethod(np.max)


@dataclass(frozen=True, kw_only=True)
class AnyTrue(Reduction):
    """True where one element over `dims` is."""

    operator: ClassVar[str] = "any"
    flops_per_element = 0
    reduce = staticmethod(np.any)


@dataclass(frozen=True, kw_only=True)
class AllTrue(Reduction):
    """True where every element over `dims` is."""

    operator: ClassVar[str] = "all"
    flops_per_element = 0
    reduce = staticmethod(np.all)


# --- MOVE ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Embedding(Op):
    """weight (rows, n), ids (...) -> (..., n). Moves the gathered rows, never the whole table."""

    operator: ClassVar[str] = "embedding"

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, len(shapes) == 2 and len(shapes[0]) == 2, shapes, "weight (rows, n), ids (...)")
        return (*shapes[1], shapes[0][1])

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        weight, ids = inputs
        return (move(ids.bytes + packed_bytes(output.elements, weight.dtype.bits), output.bytes),)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        weight, ids = arrays
        return np.asarray(weight[ids])

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_indices(self, inputs[1:])


def _check_indices(op: Op, tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        if tensor.dtype not in (DType.INT64, DType.INT32):
            raise SpecError(f"{op.name}: dtype of {tensor.name}", tensor.dtype.value, "int32 or int64")


@dataclass(frozen=True, kw_only=True)
class Gather(Op):
    """x, ids of the same rank -> x picked along `dim`, in the shape of ids."""

    operator: ClassVar[str] = "gather"
    dim: int

    def out_shape(self, *shapes: Shape) -> Shape:
        ok = len(shapes) == 2 and len(shapes[0]) == len(shapes[1]) > self.dim >= 0
        ok = ok and all(i == self.dim or b <= a for i, (a, b) in enumerate(zip(*shapes, strict=True)))
        _fit(self, ok, shapes, f"two operands of one rank with dimension {self.dim}")
        return shapes[1]

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        return (move(inputs[1].bytes + output.bytes, output.bytes),)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x, ids = arrays
        part = tuple(slice(None) if i == self.dim else slice(size) for i, size in enumerate(ids.shape))
        return np.take_along_axis(x[part], ids, axis=self.dim)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_indices(self, inputs[1:])


@dataclass(frozen=True, kw_only=True)
class Index(Op):
    """x[..., ids, ...]: one tensor of ids for each of the neighbouring dimensions `dims`, broadcast together."""

    operator: ClassVar[str] = "index"
    dims: tuple[int, ...]

    def out_shape(self, *shapes: Shape) -> Shape:
        first, last = self.dims[0], self.dims[-1]
        ok = self.dims == tuple(range(first, last + 1)) and len(shapes) == 1 + len(self.dims)
        _fit(self, ok and last < len(shapes[0]), shapes, f"x and ids for the neighbouring dimensions {self.dims}")
        return (*shapes[0][:first], *_broadcast(self, shapes[1:]), *shapes[0][last + 1 :])

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        return (move(sum(t.bytes for t in inputs[1:]) + output.bytes, output.bytes),)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x, *ids = arrays
        return x[(slice(None),) * self.dims[0] + tuple(ids)]

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_indices(self, inputs[1:])


class Copy(Op):
    """Base of ops that read their operands and write the output, computing nothing."""

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        return (move(sum(t.bytes for t in inputs), output.bytes),)


@dataclass(frozen=True, kw_only=True)
class Clone(Copy):
    """A copy, usually of a permuted tensor into a contiguous one."""

    operator: ClassVar[str] = "clone"

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, len(shapes) == 1, shapes, "one operand")
        return shapes[0]

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(arrays[0])


@dataclass(frozen=True, kw_only=True)
class Cat(Copy):
    """The operands joined along `dim`."""

    operator: ClassVar[str] = "cat"
    dim: int

    def out_shape(self, *shapes: Shape) -> Shape:
        d = self.dim
        ok = len(shapes) >= 1 and 0 <= d < len(shapes[0])
        ok = ok and len({(*s[:d], *s[d + 1 :]) for s in shapes}) == 1 and len({len(s) for s in shapes}) == 1
        _fit(self, ok, shapes, f"operands that differ in dimension {d} only")
        return (*shapes[0][:d], sum(s[d] for s in shapes), *shapes[0][d + 1 :])

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays, axis=self.dim)


@dataclass(frozen=True, kw_only=True)
class Pad(Copy):
    """x with `before` and `after` elements of `value` added to each dimension (negative ones cut away)."""

    operator: ClassVar[str] = "pad"
    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float | int

    def out_shape(self, *shapes: Shape) -> Shape:
        ok = len(shapes) == 1 and len(shapes[0]) == len(self.before) == len(self.after)
        _fit(self, ok, shapes, f"one operand of {len(self.before)} dimensions")
        return tuple(b + s + a for b, s, a in zip(self.before, shapes[0], self.after, strict=True))

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        x = arrays[0]
        cut = tuple(slice(max(0, -b), s + min(0, a)) for b, s, a in zip(self.before, x.shape, self.after, strict=True))
        width = [(max(0, b), max(0, a)) for b, a in zip(self.before, self.after, strict=True)]
        return np.pad(x[cut], width, constant_values=x.dtype.type(self.value))


class Fill(Op):
    """Base of ops that write values from nothing."""

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        return (move(0, output.bytes),)


@dataclass(frozen=True, kw_only=True)
class Full(Fill):
    """A tensor of one value."""

    operator: ClassVar[str] = "full"
    size: tuple[int, ...]
    value: float | int | bool
    dtype: str

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, not shapes, shapes, "no operand")
        return self.size

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.full(self.size, self.value, self.dtype)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_dtype(self, self.dtype, output)


@dataclass(frozen=True, kw_only=True)
class Arange(Fill):
    """start, start + step, ... below end."""

    operator: ClassVar[str] = "arange"
    start: float | int
    end: float | int
    step: float | int
    dtype: str

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, not shapes, shapes, "no operand")
        if self.step == 0:
            raise SpecError(f"{self.name}: step", self.step, "a number other than 0")
        return (math.ceil((self.end - self.start) / self.step),)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.arange(self.start, self.end, self.step, dtype=self.dtype)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_dtype(self, self.dtype, output)


# --- free ---------------------------------------------------------------------------------------------------------


class Free(Op):
    """Base of ops that change only how a tensor is read."""

    def out_shape(self, *shapes: Shape) -> Shape:
        _fit(self, len(shapes) == 1, shapes, "one operand")
        return self.viewed(shapes[0])

    @abstractmethod
    def viewed(self, shape: Shape) -> Shape:
        """Output shape from the input's."""

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        return (move(0, 0),)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _check_dtype(self, inputs[0].dtype.value, output)

    def _dims(self, shape: Shape, *dims: int, extra: int = 0) -> None:
        _fit(self, all(0 <= d < len(shape) + extra for d in dims), (shape,), f"an operand with dimensions {dims}")


@dataclass(frozen=True, kw_only=True)
class Dropout(Free):
    """Its input: nothing is dropped in inference."""

    operator: ClassVar[str] = "dropout"

    def viewed(self, shape: Shape) -> Shape:
        return shape

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return arrays[0]


@dataclass(frozen=True, kw_only=True)
class View(Free):
    """The same elements in the shape `size`."""

    operator: ClassVar[str] = "view"
    size: tuple[int, ...]

    def viewed(self, shape: Shape) -> Shape:
        _fit(self, math.prod(shape) == math.prod(self.size), (shape,), f"as many elements as {self.size}")
        return self.size

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return arrays[0].reshape(self.size)


@dataclass(frozen=True, kw_only=True)
class Expand(Free):
    """x repeated along dimensions of one, without a copy."""

    operator: ClassVar[str] = "expand"
    size: tuple[int, ...]

    def viewed(self, shape: Shape) -> Shape:
        _fit(self, _broadcasts((shape,), self.size), (shape,), f"a shape that broadcasts to {self.size}")
        return self.size

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.broadcast_to(arrays[0], self.size)


@dataclass(frozen=True, kw_only=True)
class Transpose(Free):
    """x with two dimensions exchanged."""

    operator: ClassVar[str] = "transpose"
    dim0: int
    dim1: int

    def viewed(self, shape: Shape) -> Shape:
        self._dims(shape, self.dim0, self.dim1)
        sizes = list(shape)
        sizes[self.dim0], sizes[self.dim1] = sizes[self.dim1], sizes[self.dim0]
        return tuple(sizes)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.swapaxes(arrays[0], self.dim0, self.dim1)


@dataclass(frozen=True, kw_only=True)
class Permute(Free):
    """x with its dimensions in the order `dims`."""

    operator: ClassVar[str] = "permute"
    dims: tuple[int, ...]

    def viewed(self, shape: Shape) -> Shape:
        _fit(self, sorted(self.dims) == list(range(len(shape))), (shape,), f"{len(self.dims)} dimensions")
        return tuple(shape[d] for d in self.dims)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.transpose(arrays[0], self.dims)


@dataclass(frozen=True, kw_only=True)
class Slice(Free):
    """x[start:end:step] along `dim`, 0 <= start <= end <= size."""

    operator: ClassVar[str] = "slice"
    may_be_empty = True
    dim: int
    start: int
    end: int
    step: int = 1

    def is_whole(self, shape: Shape) -> bool:
        """Whether it takes everything there is."""
        return (self.start, self.end, self.step) == (0, shape[self.dim], 1)

    def viewed(self, shape: Shape) -> Shape:
        self._dims(shape, self.dim)
        ok = 0 <= self.start <= self.end <= shape[self.dim] and self.step >= 1
        _fit(self, ok, (shape,), f"{self.start}:{self.end}:{self.step} inside dimension {self.dim}")
        return (*shape[: self.dim], -(-(self.end - self.start) // self.step), *shape[self.dim + 1 :])

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return arrays[0][(slice(None),) * self.dim + (slice(self.start, self.end, self.step),)]


@dataclass(frozen=True, kw_only=True)
class Select(Free):
    """x at `index` of dimension `dim`, which disappears."""

    operator: ClassVar[str] = "select"
    dim: int
    index: int

    def viewed(self, shape: Shape) -> Shape:
        self._dims(shape, self.dim)
        _fit(self, 0 <= self.index < shape[self.dim], (shape,), f"index {self.index} inside dimension {self.dim}")
        return (*shape[: self.dim], *shape[self.dim + 1 :])

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.asarray(np.take(arrays[0], self.index, axis=self.dim))


@dataclass(frozen=True, kw_only=True)
class Unsqueeze(Free):
    """x with a dimension of one inserted at `dim`."""

    operator: ClassVar[str] = "unsqueeze"
    dim: int

    def viewed(self, shape: Shape) -> Shape:
        self._dims(shape, self.dim, extra=1)
        return (*shape[: self.dim], 1, *shape[self.dim :])

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.expand_dims(arrays[0], self.dim)


@dataclass(frozen=True, kw_only=True)
class Squeeze(Free):
    """x without those of the dimensions `dims` that are one."""

    operator: ClassVar[str] = "squeeze"
    dims: tuple[int, ...]

    def viewed(self, shape: Shape) -> Shape:
        self._dims(shape, *self.dims)
        return tuple(s for i, s in enumerate(shape) if not (i in self.dims and s == 1))

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return arrays[0].reshape(self.viewed(arrays[0].shape))


# --- shapes -------------------------------------------------------------------------------------------------------


def _broadcast(op: Op, shapes: tuple[Shape, ...]) -> Shape:
    """The common shape; np.broadcast_shapes without its cost where all shapes are equal."""
    if shapes.count(shapes[0]) == len(shapes):
        return shapes[0]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise SpecError(f"{op.name}: input shapes", shapes, "shapes that broadcast") from None


def _broadcasts(shapes: tuple[Shape, ...], target: Shape) -> bool:
    """Whether each shape broadcasts to `target` without changing it."""
    return all(
        len(s) <= len(target) and all(a in (1, b) for a, b in zip(s[::-1], target[::-1], strict=False)) for s in shapes
    )
