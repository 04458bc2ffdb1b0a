"""Ops that move bytes, and views, which move none."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from accelsim.errors import SpecError
from accelsim.graph import DType, Op, Tensor
from accelsim.ops.shapes import Shape, broadcast, broadcasts, check_dtype, fit
from accelsim.work import Work, move, packed_bytes


@dataclass(frozen=True, kw_only=True)
class Embedding(Op):
    """weight (rows, n), ids (...) -> (..., n). Moves the gathered rows, never the whole table."""

    operator: ClassVar[str] = "embedding"

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, len(shapes) == 2 and len(shapes[0]) == 2, shapes, "weight (rows, n), ids (...)")
        return (*shapes[1], shapes[0][1])

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        weight, ids = inputs
        return (move(ids.bytes + packed_bytes(output.elements, weight.dtype.bits), output.bytes),)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        weight, ids = arrays
        rows = weight.shape[0]
        outside = ids[(ids < 0) | (ids >= rows)]
        if outside.size:
            raise SpecError(f"{self.name}: id", int(outside[0]), f"an integer from 0 to {rows - 1}, a row of the table")
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
        fit(self, ok, shapes, f"two operands of one rank with dimension {self.dim}")
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
        fit(self, ok and last < len(shapes[0]), shapes, f"x and ids for the neighbouring dimensions {self.dims}")
        return (*shapes[0][:first], *broadcast(self, shapes[1:]), *shapes[0][last + 1 :])

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
        fit(self, len(shapes) == 1, shapes, "one operand")
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
        fit(self, ok, shapes, f"operands that differ in dimension {d} only")
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
        fit(self, ok, shapes, f"one operand of {len(self.before)} dimensions")
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
        fit(self, not shapes, shapes, "no operand")
        return self.size

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.full(self.size, self.value, self.dtype)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        check_dtype(self, self.dtype, output)


@dataclass(frozen=True, kw_only=True)
class Arange(Fill):
    """start, start + step, ... below end."""

    operator: ClassVar[str] = "arange"
    start: float | int
    end: float | int
    step: float | int
    dtype: str

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, not shapes, shapes, "no operand")
        if self.step == 0:
            raise SpecError(f"{self.name}: step", self.step, "a number other than 0")
        return (math.ceil((self.end - self.start) / self.step),)

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return np.arange(self.start, self.end, self.step, dtype=self.dtype)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        check_dtype(self, self.dtype, output)


# --- free ---------------------------------------------------------------------------------------------------------


class Free(Op):
    """Base of ops that change only how a tensor is read."""

    def out_shape(self, *shapes: Shape) -> Shape:
        fit(self, len(shapes) == 1, shapes, "one operand")
        return self.viewed(shapes[0])

    @abstractmethod
    def viewed(self, shape: Shape) -> Shape:
        """Output shape from the input's."""

    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        return (move(0, 0),)

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        check_dtype(self, inputs[0].dtype.value, output)

    def _dims(self, shape: Shape, *dims: int, extra: int = 0) -> None:
        fit(self, all(0 <= d < len(shape) + extra for d in dims), (shape,), f"an operand with dimensions {dims}")


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
        fit(self, math.prod(shape) == math.prod(self.size), (shape,), f"as many elements as {self.size}")
        return self.size

    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        return arrays[0].reshape(self.size)


@dataclass(frozen=True, kw_only=True)
class Expand(Free):
    """x repeated along dimensions of one, without a copy."""

    operator: ClassVar[str] = "expand"
    size: tuple[int, ...]

    def viewed(self, shape: Shape) -> Shape:
        fit(self, broadcasts((shape,), self.size), (shape,), f"a shape that broadcasts to {self.size}")
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
        fit(self, sorted(self.dims) == list(range(len(shape))), (shape,), f"{len(self.dims)} dimensions")
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
        fit(self, ok, (shape,), f"{self.start}:{self.end}:{self.step} inside dimension {self.dim}")
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
        fit(self, 0 <= self.index < shape[self.dim], (shape,), f"index {self.index} inside dimension {self.dim}")
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
