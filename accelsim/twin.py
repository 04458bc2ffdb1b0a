"""The arithmetic of FQ-BERT's accelerator (arXiv:2103.02800, section III), product by product, beside the executor's.

    >>> import numpy as np
    >>> array = PuArray.parse("12x8x16")  # 12 processing units of 8 elements of 16 multipliers of 8 x 4 bit
    >>> a = np.array([[100, -3, 7], [1, 2, 3]], np.int8)
    >>> run = matrix_product(a, np.array([[-77], [5], [127]], np.int8), array, w_bits=8)
    >>> run.sums.tolist(), run.beats, run.groups
    ([[-6826], [314]], 1, 2)

    an element      a dot product at a time, ceil(k / M) beats of M products by nibbles, or ceil(k / (M/2)) of M/2
                    products by bytes; each beat two adder trees, shift-add, a 32-bit psum
    linear layer    P N columns at a time, every row of the input, one row after the other
    Q K^T, P V      a head (instance) for each unit, whose elements take N columns at a time
    quantization    psum + bias, times a multiplier, shifted, rounded, clamped to int8

Nothing of `accelsim.numerics` computes here: it only gives the multipliers and shifts that both are handed. No float
takes part after that. Softmax, layer norm and GELU are the executor's.

Axes: U instances side by side, m rows, k products of a sum, n columns, M multipliers of an element.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accelsim import ops
from accelsim.errors import Infeasible, SpecError
from accelsim.graph import DType, Graph, Op
from accelsim.integers import RATIO_FORMATS, steps_in
from accelsim.numerics import Quantized, Requantizer, Rounding, ScaleFormat
from accelsim.params import Params, Step
from accelsim.transforms.quantize import output_classes

INT32 = (-(2**31), 2**31 - 1)
"""Lowest and highest number of a psum, and of a psum with its bias."""
WEIGHT_RANGES = {8: (-128, 127), 4: (-8, 7), 2: (-2, 1)}
MOST_MULTIPLIERS = 1024
"""Of an element: the sum of a beat then stays below 2^25."""


@dataclass(frozen=True)
class PuArray:
    """The array's sizes. Raises SpecError for a size below 1, and multipliers that two adder trees cannot share."""

    processing_units: int
    """P."""
    pes: int
    """Processing elements of a unit, N."""
    multipliers: int
    """8 x 4 bit multipliers of an element's bit-split inner-product module, M: even, at most 1024."""

    def __post_init__(self) -> None:
        for name, size in (("processing_units", self.processing_units), ("pes", self.pes)):
            if type(size) is not int or not 1 <= size < 2**16:
                raise SpecError(f"array: {name}", size, "an integer from 1 to 65535")
        if type(self.multipliers) is not int or self.multipliers % 2 or not 2 <= self.multipliers <= MOST_MULTIPLIERS:
            legal = f"an even integer from 2 to {MOST_MULTIPLIERS}, half of them for each adder tree"
            raise SpecError("array: multipliers", self.multipliers, legal)

    @classmethod
    def parse(cls, text: str) -> PuArray:
        """The array of "PxNxM", as "12x8x16". Raises SpecError for anything else."""
        if not re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}x[0-9]{1,5}", text):
            raise SpecError("array", text, "PxNxM: units, elements of each, multipliers of each element, as 12x8x16")
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        return f"{self.processing_units}x{self.pes}x{self.multipliers}"

    @property
    def columns(self) -> int:
        """Columns of a linear layer that are computed at a time, P N."""
        return self.processing_units * self.pes


@dataclass(frozen=True, eq=False)
class ArrayProduct:
    """A product of the array, before quantization, and what it took."""

    sums: np.ndarray
    """int64 (m, n), of `instance_products` (U, m, n): the last psum of every dot product; each fits in 32 bits."""
    w_bits: int
    beats: int
    """Of one dot product."""
    groups: int
    """Times that the elements, side by side, take a dot product each; `groups * beats` beats in all."""
    busy: np.ndarray
    """(tiles, P, N) int64: beats in which each element had operands, tile by tile of the columns (and instances)."""
    largest_psum: int
    """Largest magnitude that a psum had after any beat."""

    @property
    def utilization(self) -> float:
        """Share of the elements that work in a beat, 0 to 1, on average over the product."""
        _, units, pes = self.busy.shape
        return float(self.busy.sum() / (self.groups * self.beats * units * pes))


@dataclass(frozen=True, eq=False)
class ArrayRun:
    """An op as the array computed it: int8 results (int32 sums where the graph asks for them), elements clamped."""

    values: np.ndarray
    saturated: int
    product: ArrayProduct


# --- bit-split inner products -----------------------------------------------------------------------------------------


def nibbles(w: np.ndarray, w_bits: int) -> list[np.ndarray]:
    """int32 of w's shape, low first: of 8 bits 0 to 15 and -8 to 7; 4 bits, and 2 with their sign extended, are one.

    >>> nibbles(np.array([-77]), 8), nibbles(np.array([-2]), 2)
    ([array([3], dtype=int32), array([-5], dtype=int32)], [array([-2], dtype=int32)])
    """
    wide = w.astype(np.int32)
    if w_bits == 8:
        return [wide & 15, wide >> 4]
    return [wide]


def adder_tree(leaves: np.ndarray) -> np.ndarray:
    """Sum over the first axis: neighbours are added in pairs until one is left."""
    while len(leaves) > 1:
        pairs = leaves[:-1:2] + leaves[1::2]
        leaves = np.concatenate([pairs, leaves[-1:]]) if len(leaves) % 2 else pairs
    result: np.ndarray = leaves[0]
    return result


def products_in_beat(multipliers: int, w_bits: int) -> int:
    """Products that an element takes in a beat: M by one nibble, M/2 by two."""
    return multipliers // 2 if w_bits == 8 else multipliers


def beat_sums(a: np.ndarray, w: np.ndarray, multipliers: int, w_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each beat (tree sums (2, U, m, n), what is added to the psum (U, m, n)), int32.

    a (U, m, k), w (U, k, n), either U may be 1. 8-bit weights: M/2 products a beat, low nibbles in tree 0, high ones in
    tree 1, whose sum is shifted left by 4. Narrower: M products, the first half of them in tree 0.
    """
    at_once, half = products_in_beat(multipliers, w_bits), multipliers // 2
    beats = -(-a.shape[2] // at_once)
    idle = beats * at_once - a.shape[2]
    lanes_a = np.pad(a.astype(np.int32), ((0, 0), (0, 0), (0, idle))).transpose(2, 0, 1)[:, :, :, None]
    lanes_w = [np.pad(part, ((0, 0), (0, idle), (0, 0))).transpose(1, 0, 2)[:, :, None] for part in nibbles(w, w_bits)]
    shift = 4 * (len(lanes_w) - 1)
    for beat in range(beats):
        first = beat * at_once
        if len(lanes_w) == 2:
            operands = [(first, part) for part in lanes_w]
        else:
            operands = [(first, lanes_w[0]), (first + half, lanes_w[0])]
        trees = np.stack([adder_tree(lanes_a[at : at + half] * part[at : at + half]) for at, part in operands])
        yield trees, trees[0] + (trees[1] << shift)


def _dot_products(
    a: np.ndarray, w: np.ndarray, multipliers: int, w_bits: int, name: str
) -> tuple[np.ndarray, int, int]:
    """(psums int64 (U, m, n) after the last beat, beats, largest |psum| of all beats); Infeasible beyond 32 bits."""
    shape = (max(len(a), len(w)), a.shape[1], w.shape[2])
    psum, beats, largest = np.zeros(shape, np.int64), 0, 0
    for _, sums in beat_sums(a, w, multipliers, w_bits):
        psum += sums
        beats += 1
        largest = max(largest, _checked(psum, f"{name}: psum after beat {beats}"))
    return psum, beats, largest


def _checked(sums: np.ndarray, what: str) -> int:
    """Largest magnitude; raises Infeasible if a sum leaves 32 bits."""
    low, high = int(sums.min()), int(sums.max())
    if low < INT32[0] or high > INT32[1]:
        worst = low if low < INT32[0] else high
        raise Infeasible(what, worst, INT32[worst > 0], "in an int32", ("k", "weights.bits"))
    return max(-low, high)


# --- products of matrices ---------------------------------------------------------------------------------------------


def matrix_product(a: Any, w: Any, array: PuArray, *, w_bits: int, name: str = "product") -> ArrayProduct:
    """a (m, k) times w (k, n) by all units together: column c of a tile of P N is element c mod N of unit c div N.

    a: int8 or uint8. w: int8 within `w_bits`, 8, 4 or 2. groups = m ceil(n / (P N)). Raises SpecError for other
    operands, Infeasible, with the name and the beat, where a psum leaves 32 bits.
    """
    left, right = _operands(a, w, 2, w_bits, name)
    (m, _), n = left.shape, right.shape[1]
    sums, busy, groups, beats, largest = np.empty((m, n), np.int64), [], 0, 0, 0
    for first in range(0, n, array.columns):
        tile = right[:, first : first + array.columns]
        found, beats, most = _dot_products(left[None], tile[None], array.multipliers, w_bits, name)
        sums[:, first : first + array.columns] = found[0]
        groups += m
        largest = max(largest, most)
        taken = np.arange(array.columns) < tile.shape[1]
        busy.append(m * beats * taken.reshape(array.processing_units, array.pes))
    return ArrayProduct(sums, w_bits, beats, groups, np.array(busy, np.int64), largest)


def instance_products(a: Any, b: Any, array: PuArray, *, name: str = "product") -> ArrayProduct:
    """a (U, m, k) times b (U, k, n), 8 x 8 bit, instance by instance: instance i on unit i mod P, N columns at a time.

    a: int8 or uint8, b: int8. groups = ceil(U / P) m ceil(n / N). Raises as `matrix_product`.
    """
    left, right = _operands(a, b, 3, 8, name)
    (count, m, _), n = left.shape, right.shape[2]
    sums, busy, groups, beats, largest = np.empty((count, m, n), np.int64), [], 0, 0, 0
    for i in range(0, count, array.processing_units):
        units = slice(i, i + array.processing_units)
        for first in range(0, n, array.pes):
            tile = right[units, :, first : first + array.pes]
            found, beats, most = _dot_products(left[units], tile, array.multipliers, 8, name)
            sums[units, :, first : first + array.pes] = found
            groups += m
            largest = max(largest, most)
            taken = np.zeros((array.processing_units, array.pes), np.int64)
            taken[: len(tile), : tile.shape[2]] = m * beats
            busy.append(taken)
    return ArrayProduct(sums, 8, beats, groups, np.array(busy, np.int64), largest)


def _operands(a: Any, w: Any, dimensions: int, w_bits: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, checked."""
    left, right = np.asarray(a), np.asarray(w)
    if left.dtype.name not in ("int8", "uint8") or right.dtype.name != "int8":
        raise SpecError(f"{name}: dtypes", f"{left.dtype}, {right.dtype}", "int8 or uint8, and int8")
    shapes = left.ndim == right.ndim == dimensions and left.size and right.size
    if not shapes or left.shape[-1] != right.shape[-2] or left.shape[:-2] != right.shape[:-2]:
        legal = "(m, k) and (k, n)" if dimensions == 2 else "(U, m, k) and (U, k, n)"
        raise SpecError(f"{name}: shapes", (left.shape, right.shape), f"{legal}, none of them 0")
    if w_bits not in WEIGHT_RANGES:
        raise SpecError(f"{name}: w_bits", w_bits, "2, 4 or 8")
    low, high = WEIGHT_RANGES[w_bits]
    for extreme in (int(right.min()), int(right.max())):
        if not low <= extreme <= high:
            raise SpecError(f"{name}: w", extreme, f"integers from {low} to {high} for {w_bits} bits")
    return left, right


# --- quantization module ----------------------------------------------------------------------------------------------


def rounded_shift(product: np.ndarray, shift: np.ndarray, rounding: Rounding) -> np.ndarray:
    """int64: product / 2^shift, rounded as named, by sign and magnitude; |product| <= 2^62, 0 <= shift <= 62.

    >>> shifts = np.array([1, 1, 1, 0])
    >>> [rounded_shift(np.array([5, -5, -3, 7]), shifts, r).tolist() for r in (Rounding.HALF_AWAY, Rounding.HALF_EVEN)]
    [[3, -3, -2, 7], [2, -2, -2, 7]]
    """
    if rounding is Rounding.FLOOR:
        return np.asarray(product >> shift)
    magnitude = np.abs(product)
    whole = magnitude >> shift
    twice_rest = (magnitude - (whole << shift)) << 1
    unit = np.int64(1) << shift
    up = twice_rest >= unit if rounding is Rounding.HALF_AWAY else twice_rest + (whole & 1) > unit
    return np.asarray(np.where(product < 0, -(whole + up), whole + up))


def quantized(sums: np.ndarray, bias: np.ndarray, to_int8: Requantizer, name: str) -> Quantized:
    """(int8, elements clamped): clamp(round((sums + bias) multiplier / 2^shift) + zero point, low, high).

    sums: int64 (..., n) within 32 bits. bias: integers that broadcast to it. to_int8: one multiplier and shift, or one
    for each column. Raises Infeasible where a sum with its bias leaves 32 bits, SpecError for factors in float32.
    """
    if to_int8.scale_format is ScaleFormat.FLOAT32:
        raise SpecError(f"{name}: scale format", "float32", "fixed, scale8 or power_of_two: the array has no floats")
    total = _with_bias(sums, bias, name)
    product = total * to_int8.multiplier.astype(np.int64)
    found = rounded_shift(product, to_int8.shift.astype(np.int64), to_int8.rounding) + to_int8.zero_point
    clamped = np.clip(found, to_int8.low, to_int8.high)
    return Quantized(clamped.astype(np.int8), int((clamped != found).sum()))


def _with_bias(sums: np.ndarray, bias: np.ndarray, name: str) -> np.ndarray:
    total: np.ndarray = sums + bias
    _checked(total, f"{name}: psum + bias")
    return total


# --- ops of a graph ---------------------------------------------------------------------------------------------------

ArrayKernel = Callable[..., ArrayRun]
"""(arrays of the op's inputs) -> what the array makes of them."""


def array_kernels(
    graph: Graph, params: Params, array: PuArray, layers: Sequence[int] | None = None
) -> dict[str, ArrayKernel]:
    """By op: what computes each Linear and Matmul of these encoder layers on the array; layers None: of all of them.

    Raises SpecError for a layer that the graph does not have, and for products that are not the array's: of real
    numbers, with weights, keys or values that have a zero point, or with factors in float32.
    """
    known = sorted({op.layer for op in graph.ops if op.layer >= 0})
    if not known:
        raise SpecError("array", f"{graph.name}: no encoder layer", "a graph with encoder layers")
    for layer in known if layers is None else layers:
        if layer not in known:
            raise SpecError("array: layer", layer, f"an encoder layer, {known[0]} to {known[-1]}")
    wanted = set(known if layers is None else layers)
    return {
        op.name: array_kernel(op, graph, params, array)
        for op in graph.ops
        if op.layer in wanted and isinstance(op, ops.Linear | ops.Matmul)
    }


def array_kernel(op: Op, graph: Graph, params: Params, array: PuArray) -> ArrayKernel:
    """What computes a Linear or a Matmul of a quantized graph on the array; raises as `array_kernels`."""
    steps = steps_in(graph)
    read = op.inputs[: 2 if isinstance(op, ops.Matmul) else 1]
    dtypes = [graph.tensors[name].dtype for name in (*read, op.output)]
    if not set(dtypes[:-1]) <= {DType.INT8, DType.UINT8} or dtypes[-1] not in (DType.INT8, DType.INT32):
        found = ", ".join(dtype.value for dtype in dtypes)
        raise SpecError(
            f"{op.name}: numbers", found, "8 bits into int8 or int32, as in fq-bert: the array has no floats"
        )
    if params.spec.scale_format == "float32":
        raise SpecError(f"{op.name}: scale format", "float32", "fixed, scale8 or power_of_two: the array has no floats")
    a, *rest = (params.step(steps.get(name, name)) for name in read)
    if isinstance(op, ops.Matmul):
        return _matmul(op, graph, params, array, a, rest[0])
    return _linear(op, graph, params, array, a)


def _linear(op: Op, graph: Graph, params: Params, array: PuArray, step: Step) -> ArrayKernel:
    """(a - zero) w + bias = a w + (bias - zero x column sums of w): what the bias buffer holds."""
    packed = params.matrix(op.inputs[1])
    if packed.zero_points.any():
        found = int(packed.zero_points[packed.zero_points != 0][0])
        raise SpecError(f"{op.name}: zero point of the weights", found, "0: the array has no term for another")
    w = np.ascontiguousarray(packed.unpack().T)
    bias = -step.zero_point * w.sum(axis=0, dtype=np.int64)
    for name in op.inputs[2:]:
        bias += np.rint(params.arrays[name].astype(np.float64) / (step.scale * packed.scales)).astype(np.int64)
    to_int8 = _to_int8(op, graph, params, step.scale * packed.scales)

    def run(a: np.ndarray, *_: Any) -> ArrayRun:
        product = matrix_product(a.reshape(-1, len(w)), w, array, w_bits=packed.bits, name=op.name)
        return _finished(product, bias, to_int8, (*a.shape[:-1], w.shape[1]), op.name)

    return run


def _matmul(op: ops.Matmul, graph: Graph, params: Params, array: PuArray, a: Step, b: Step) -> ArrayKernel:
    if b.zero_point:
        raise SpecError(
            f"{op.name}: zero point of {op.inputs[1]}", b.zero_point, "0: the array has no term for another"
        )
    to_int8 = _to_int8(op, graph, params, np.array([a.scale * b.scale]))

    def run(left: np.ndarray, right: np.ndarray) -> ArrayRun:
        if op.transpose_b:
            right = right.swapaxes(-1, -2)
        lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        of_left, of_right = (
            np.broadcast_to(x, (*lead, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in (left, right)
        )
        product = instance_products(of_left, of_right, array, name=op.name)
        bias = -a.zero_point * of_right.sum(axis=1, keepdims=True, dtype=np.int64)
        return _finished(product, bias, to_int8, (*lead, left.shape[-2], right.shape[-1]), op.name)

    return run


def _to_int8(op: Op, graph: Graph, params: Params, sums_scale: np.ndarray) -> Requantizer | None:
    """From sums of these steps to the result's; None where the result is the sums."""
    if graph.tensors[op.output].dtype is DType.INT32:
        return None
    spec, (scale, zero) = params.spec, params.step(op.output)
    bits = spec.scores.bits if output_classes(graph).get(op.output) == "scores" else 8
    return Requantizer.of(
        sums_scale / scale,
        scale_format=RATIO_FORMATS[spec.scale_format],
        rounding=spec.rounding,
        dtype="int8",
        zero_point=zero,
        low=-(2 ** (bits - 1)),
        high=2 ** (bits - 1) - 1,
    )


def _finished(
    product: ArrayProduct, bias: np.ndarray, to_int8: Requantizer | None, shape: tuple[int, ...], name: str
) -> ArrayRun:
    if to_int8 is None:
        return ArrayRun(_with_bias(product.sums, bias, name).astype(np.int32).reshape(shape), 0, product)
    values, saturated = quantized(product.sums, bias, to_int8, name)
    return ArrayRun(values.reshape(shape), saturated, product)
