"""Ops that the lanes of a vector unit compute: rows, elements, reductions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from accelsim.errors import SpecError
from accelsim.graph import DType, Op, Tensor
from accelsim.ops.shapes import Shape, broadcast, broadcasts, check_dtype, fit
from accelsim.work import Arithmetic, VectorFunction, Work, WorkKind


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
        fit(self, len(shapes) >= 1, shapes, "at least one operand")
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
        fit(self, 1 <= len(shapes) <= 2, shapes, "x and perhaps a mask")
        fit(self, broadcasts(shapes[1:], shapes[0]), shapes, "a mask that broadcasts to x")
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
        fit(self, ok, shapes, "x (..., n), weight (n), bias (n)")
        return shapes[0]

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return normalized(self.eps, *arrays)


def normalized(eps: float, x: np.ndarray, *affine: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) over the last dimension, times the first of `affine`, plus the second."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    y: np.ndarray = centred / np.sqrt(variance + x.dtype.type(eps))
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
        fit(self, len(shapes) == 1, shapes, "one operand")
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
    """math.erf element by element: exact enough to check a graph, and one library less."""
    return np.fromiter(map(math.erf, x.ravel().tolist()), x.dtype, x.size).reshape(x.shape)


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
        fit(self, len(shapes) == self.operands, shapes, f"{self.operands} operands")
        return broadcast(self, shapes)

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
        fit(self, len(shapes) == want, shapes, f"{want} operands (other is {self.other})")
        return broadcast(self, shapes)

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
        fit(self, numbers <= 1 and len(shapes) == 3 - numbers, shapes, "condition, x and y, of which one a number")
        return broadcast(self, shapes)

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
        check_dtype(self, self.dtype, output)


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
        fit(self, len(shapes) == 1 and 0 <= self.dim < len(shapes[0]), shapes, f"one operand with dimension {self.dim}")
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
        fit(self, ok, shapes, f"one operand with dimensions {self.dims}")
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
