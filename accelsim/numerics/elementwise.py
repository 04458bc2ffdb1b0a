"""GELU, residual add and embedding sum of int8 numbers, in integers.

    >>> import numpy as np
    >>> table = GeluTable.of(x_scale=0.05, out_scale=0.05, rounding="half_away", dtype="int8")
    >>> gelu(np.array([-128, -20, 0, 20, 127], np.int8), table)
    Quantized(values=array([  0,  -3,   0,  17, 127], dtype=int8), saturated=0)
    >>> both = ResidualAdd.of(x_scale=0.1, y_scale=0.2, out_scale=0.2, rounding="half_away")
    >>> add(np.array([10, 11, -11], np.int8), np.array([1, 1, 1], np.int8), both)
    Quantized(values=array([ 6,  7, -5], dtype=int8), saturated=0)

A function of 8 bits is a table of 256 entries, whatever it stands for: GELU itself, or I-BERT's polynomial, each entry
computed by its integer algorithm. Sums bring their inputs to a common step by multiplier / 2^shift, one shift for all,
and are rounded once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numba
import numpy as np
from numba import types

from accelsim.errors import SpecError
from accelsim.jit import atom, kernel, parallel_kernel
from accelsim.numerics.approximation import gelu_polynomial
from accelsim.numerics.arrays import (
    Quantized,
    address_of,
    array_type,
    as_numpy,
    checked_threads,
    dtype_name,
    for_types,
    on_threads,
    part_start,
    whole_number,
)
from accelsim.numerics.llvm import translate
from accelsim.numerics.rounding import Rounding, ScaleFormat, rounded_shift
from accelsim.numerics.rowcode import copy_bytes, look_up, looked_up_sum, weighted_sum
from accelsim.numerics.rows import check_out, deterministic, positive
from accelsim.numerics.scaling import RANGES, fixed_point

# --- GELU -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Gelu:
    """table (256,) int8 or uint8: result for each byte pattern of x. clamped (256,) uint8: 1 where that was clamped."""

    table: np.ndarray
    clamped: np.ndarray

    @cached_property
    def tables(self) -> np.ndarray:
        """(2, 256) uint8 for the kernels: results, flags."""
        return np.stack([self.table.view(np.uint8), self.clamped])

    @cached_property
    def plan(self) -> np.ndarray:
        """(1,) int64: whether any result was clamped."""
        return np.array([self.clamped.any()], np.int64)


def _table(results: Sequence[int], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(table, clamped) from the results for x = -128 ... 127 before they are clamped."""
    low, high = RANGES[dtype]
    kept = [min(max(r, low), high) for r in results]
    clamped = [k != r for k, r in zip(kept, results, strict=True)]
    return np.roll(np.array(kept).astype(dtype), 128), np.roll(np.array(clamped, np.uint8), 128)  # byte 0 is x = 0


class FunctionTable(_Gelu):
    """A function of one 8-bit number, by a table of its exact values."""

    @classmethod
    def of(
        cls,
        function: Callable[[float], float],
        *,
        x_scale: float,
        out_scale: float,
        rounding: str | Rounding,
        dtype: str,
        x_zero_point: int = 0,
        out_zero_point: int = 0,
    ) -> Self:
        """clamp(round(function((x - x_zero_point) x_scale) / out_scale) + out_zero_point) for every int8 x.

        function: of a float64, evaluated here and never again. dtype: of the result, int8 or uint8. Raises SpecError
        for scales that are not positive, zero points out of range, unknown names, and stochastic rounding.
        """
        mode = deterministic(rounding)
        step, out_step = positive(x_scale, "x_scale"), positive(out_scale, "out_scale")
        zero = whole_number(x_zero_point, "x_zero_point", -128, 127)
        if dtype not in RANGES:
            raise SpecError.unknown("dtype", dtype, RANGES)
        out_zero = whole_number(out_zero_point, "out_zero_point", *RANGES[dtype])
        quotients = [function((x - zero) * step) / out_step for x in range(-128, 128)]
        return cls(*_table([_rounded(q, mode) + out_zero for q in quotients], dtype))


class GeluTable(_Gelu):
    """GELU by a table of its exact values."""

    @classmethod
    def of(
        cls,
        *,
        x_scale: float,
        out_scale: float,
        rounding: str | Rounding,
        dtype: str,
        x_zero_point: int = 0,
        out_zero_point: int = 0,
    ) -> Self:
        """`FunctionTable` of GELU(v) = v (1 + erf(v / sqrt(2))) / 2."""
        table = FunctionTable.of(
            _gelu_of,
            x_scale=x_scale,
            out_scale=out_scale,
            rounding=rounding,
            dtype=dtype,
            x_zero_point=x_zero_point,
            out_zero_point=out_zero_point,
        )
        return cls(table.table, table.clamped)


def _gelu_of(v: float) -> float:
    return v * (1 + math.erf(v * math.sqrt(0.5))) / 2


@dataclass(frozen=True, eq=False)
class GeluPolynomial(_Gelu):
    """GELU by I-BERT's polynomial. sums (256,) int32: its results for each byte pattern of x; sum_scale: their step."""

    sums: np.ndarray
    sum_scale: float

    @classmethod
    def of(
        cls,
        *,
        x_scale: float,
        out_scale: float,
        width: int,
        kept: int,
        rounding: str | Rounding,
        dtype: str,
        out_zero_point: int = 0,
    ) -> Self:
        """`approximation.gelu_polynomial` in integers of `width` bits, erf cut to `kept` bits before it multiplies x.

        16 <= width <= 32, 8 <= kept <= 24. The result is brought to steps of out_scale by a multiplier of 31 bits and a
        shift (`scaling.fixed_point`), rounded as named. Raises SpecError as `GeluTable`, and for a scale so small that
        the polynomial does not fit.
        """
        mode = deterministic(rounding)
        step, out_step = positive(x_scale, "x_scale"), positive(out_scale, "out_scale")
        bits, kept = whole_number(width, "width", 16, 32), whole_number(kept, "kept", 8, 24)
        if dtype not in RANGES:
            raise SpecError.unknown("dtype", dtype, RANGES)
        out_zero = whole_number(out_zero_point, "out_zero_point", *RANGES[dtype])
        sums, sum_scale = gelu_polynomial(step, bits, kept)  # in negative steps
        multiplier, shift = (int(v[0]) for v in fixed_point(-sum_scale / out_step, ScaleFormat.FIXED))
        results = [int(rounded_shift(-int(q) * multiplier, shift, mode, 0, 0)) + out_zero for q in sums]
        return cls(*_table(results, dtype), np.roll(-sums.astype(np.int32), 128), -sum_scale)


def _rounded(value: float, rounding: Rounding) -> int:
    """A real number, rounded as named."""
    if rounding is Rounding.FLOOR:
        return math.floor(value)
    if rounding is Rounding.HALF_EVEN:
        return round(value)
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


@atom
def _gelu_part(part: int, parts: int, total: int, x_at: int, out_at: int, tables_at: int, counted: int) -> int:
    """Part `part` of `parts` of `total` bytes; returns how many were clamped, where that is to be counted."""
    first, last = part_start(total, parts, part, 64), part_start(total, parts, part + 1, 64)
    blocks = (last - first) // 64
    look_up(x_at + first, blocks, tables_at, out_at + first)
    saturated: int = looked_up_sum(x_at + first, blocks, tables_at + 256) if counted else 0
    rest = first + 64 * blocks
    return saturated + _gelu_rest(x_at + rest, out_at + rest, last - rest, tables_at, np.zeros(64, np.uint8))


@atom
def _gelu_rest(x_at: int, out_at: int, count: int, tables_at: int, flags: np.ndarray) -> int:
    """Fewer than 64 bytes; returns how many were clamped. flags (64,) zeros: scratch space."""
    saturated = 0
    if count > 0:
        translate(x_at, out_at, count, tables_at)
        translate(x_at, address_of(flags), count, tables_at + 256)
        for flag in flags:
            saturated += flag
    return saturated


@kernel
def _gelu(plan: np.ndarray, tables: np.ndarray, x: np.ndarray, out: np.ndarray) -> int:
    return _gelu_part(0, 1, x.size, address_of(x), address_of(out), address_of(tables), plan[0])


@parallel_kernel
def _gelu_parallel(parts: int, plan: np.ndarray, tables: np.ndarray, x: np.ndarray, out: np.ndarray) -> int:
    x_at, out_at, tables_at, total, counted = address_of(x), address_of(out), address_of(tables), x.size, plan[0]
    saturated = 0
    for part in numba.prange(parts):
        saturated += _gelu_part(part, parts, total, x_at, out_at, tables_at, counted)
    return saturated


@functools.cache
def _gelu_compiled(threaded: bool) -> Any:
    arrays = (array_type(types.int64, 1), array_type(types.uint8, 2), array_type(types.int8, 1),
              array_type(types.uint8, 1, written=True))  # fmt: skip
    return for_types(_gelu_parallel, types.int64, *arrays) if threaded else for_types(_gelu, *arrays)


def gelu(
    x: Any, parameters: FunctionTable | GeluTable | GeluPolynomial, *, threads: int = 1, out: np.ndarray | None = None
) -> Quantized:
    """(8-bit of the shape of x, how many had to be clamped): GELU of int8 x of any shape.

    What is not contiguous is copied once. out: a contiguous array of the dtype of `parameters.table` to write to.
    """
    flat, shape = _flat(x, "x")
    result = check_out(out, shape, dtype_name(parameters.table.dtype), flat)
    job = (parameters.plan, parameters.tables, flat, result.reshape(-1).view(np.uint8))
    threads = checked_threads(threads)
    if threads == 1:
        saturated = _gelu_compiled(False)(*job)
    else:
        saturated = on_threads(threads, _gelu_compiled(True), threads, *job)
    return Quantized(result, saturated)


def gelu_sums(x: Any, parameters: GeluPolynomial) -> np.ndarray:
    """int32 of the shape of x, in steps of `parameters.sum_scale`: I-BERT's polynomial before it is requantized."""
    flat, shape = _flat(x, "x")
    return parameters.sums[flat.view(np.uint8)].reshape(shape)


def _flat(array: Any, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """(int8 (size,), contiguous, the array's shape)."""
    found = as_numpy(array, name, ("int8",))
    return np.ascontiguousarray(found).reshape(-1), found.shape


# --- sums of several steps --------------------------------------------------------------------------------------------


def common_shift(ratios: dict[str, float]) -> tuple[list[int], int]:
    """(multipliers below 2^15, shift): ratio ~ multiplier / 2^shift, the largest ratio to 15 bits, ties to even.

    ratios: by the path of the number to blame. Raises SpecError for ratios of 32 and more, all below 2^-16, or so far
    apart that one has no multiplier.
    """
    path, largest = max(ratios.items(), key=lambda item: item[1])
    shift = 15 - math.frexp(largest)[1]
    if round(largest * 2**shift) == 2**15:
        shift -= 1
    if not 10 <= shift <= 30:
        raise SpecError(f"{path} / out_scale", largest, "from 2^-15 to just below 32")
    multipliers = {name: round(ratio * 2**shift) for name, ratio in ratios.items()}
    for name, multiplier in multipliers.items():
        if multiplier == 0:
            raise SpecError(f"{name} / out_scale", ratios[name], f"within a factor of 2^15 of {path}'s, {largest}")
    return list(multipliers.values()), shift


@dataclass(frozen=True, eq=False)
class _Sum:
    """round((sum of multiplier (v - zero point)) / 2^shift) + out_zero_point, clamped to int8."""

    multipliers: tuple[int, ...]
    zero_points: tuple[int, ...]
    out_zero_point: int
    shift: int
    rounding: Rounding

    @cached_property
    def plan(self) -> np.ndarray:
        """(12,) int64: constant, shift and offset of `rowcode.weighted_sum`, rounding, 4 multipliers, 4 zero points."""
        constant = -sum(m * z for m, z in zip(self.multipliers, self.zero_points, strict=True))
        none = (0,) * (4 - len(self.multipliers))
        numbers = (constant, self.shift, self.out_zero_point + 128, self.rounding)
        return np.array([*numbers, *self.multipliers, *none, *self.zero_points, *none], np.int64)


class ResidualAdd(_Sum):
    """The sum of two int8 tensors of different steps in a third one."""

    @classmethod
    def of(
        cls,
        *,
        x_scale: float,
        y_scale: float,
        out_scale: float,
        rounding: str | Rounding,
        x_zero_point: int = 0,
        y_zero_point: int = 0,
        out_zero_point: int = 0,
    ) -> Self:
        """Multipliers of 15 bits and a shift for x_scale / out_scale and y_scale / out_scale (`common_shift`).

        Raises SpecError for scales that are not positive or too far apart, zero points outside int8, and stochastic
        rounding.
        """
        mode, out_step = deterministic(rounding), positive(out_scale, "out_scale")
        scales = {"x_scale": x_scale, "y_scale": y_scale}
        multipliers, shift = common_shift({name: positive(s, name) / out_step for name, s in scales.items()})
        zeros = {"x_zero_point": x_zero_point, "y_zero_point": y_zero_point, "out_zero_point": out_zero_point}
        zx, zy, zo = (whole_number(z, name, -128, 127) for name, z in zeros.items())
        return cls(tuple(multipliers), (zx, zy), zo, shift, mode)


class EmbeddingSum(_Sum):
    """The sum of one row of each of up to four int8 tables of different steps."""

    @classmethod
    def of(cls, scales: Sequence[float], *, out_scale: float, rounding: str | Rounding) -> Self:
        """Multipliers of 15 bits and a shift, as of `ResidualAdd`; scales: that of each table."""
        mode, out_step = deterministic(rounding), positive(out_scale, "out_scale")
        if not 1 <= len(scales) <= 4:
            raise SpecError("scales", tuple(scales), "1 to 4 of them")
        named = {f"scales[{i}]": s for i, s in enumerate(scales)}
        multipliers, shift = common_shift({name: positive(s, name) / out_step for name, s in named.items()})
        return cls(tuple(multipliers), (0,) * len(scales), 0, shift, mode)


@atom
def _sum_row(sources: np.ndarray, cols: int, plan: np.ndarray, four: int, out_at: int, staged: np.ndarray) -> int:
    """One row of the sum of the rows at addresses `sources` (4,); returns how many were clamped.

    staged (5, 64) int8: what is left over from whole blocks is summed there, beside zero points, into the last of them.
    """
    blocks = cols // 64
    rest = cols - 64 * blocks
    sources_at, plan_at = address_of(sources), address_of(plan)
    saturated: int = weighted_sum(plan[3], four, sources_at, plan_at + 32, blocks, plan_at, out_at)
    if rest:
        staged_at = address_of(staged)
        for i in range(4):
            staged[i, rest:] = plan[8 + i]
            copy_bytes(sources[i] + 64 * blocks, staged_at + 64 * i, rest)
            sources[i] = staged_at + 64 * i
        saturated += weighted_sum(plan[3], four, sources_at, plan_at + 32, 1, plan_at, staged_at + 256)
        copy_bytes(staged_at + 256, out_at + 64 * blocks, rest)
    return saturated


@atom
def _add_part(part: int, parts: int, plan: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray) -> int:
    """Part `part` of `parts` of all elements, as one row."""
    first, last = part_start(x.size, parts, part, 64), part_start(x.size, parts, part + 1, 64)
    sources = np.full(4, address_of(x) + first, np.int64)
    sources[1] = address_of(y) + first
    return _sum_row(sources, last - first, plan, 0, address_of(out) + first, np.empty((5, 64), np.int8))


@kernel
def _add(plan: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray) -> int:
    return _add_part(0, 1, plan, x, y, out)


@parallel_kernel
def _add_parallel(parts: int, plan: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray) -> int:
    saturated = 0
    for part in numba.prange(parts):
        saturated += _add_part(part, parts, plan, x, y, out)
    return saturated


@functools.cache
def _add_compiled(threaded: bool) -> Any:
    flat = array_type(types.int8, 1)
    arrays = (array_type(types.int64, 1), flat, flat, array_type(types.int8, 1, written=True))
    return for_types(_add_parallel, types.int64, *arrays) if threaded else for_types(_add, *arrays)


def add(x: Any, y: Any, parameters: ResidualAdd, *, threads: int = 1, out: np.ndarray | None = None) -> Quantized:
    """(int8, how many had to be clamped): x + y, int8 of one shape, each in its own step, rounded once.

    What is not contiguous is copied once. out: a contiguous array to write to. Raises SpecError for different shapes.
    """
    left, shape = _flat(x, "x")
    right, right_shape = _flat(y, "y")
    if right_shape != shape:
        raise SpecError("y: shape", right_shape, f"that of x, {shape}")
    result = check_out(out, shape, "int8", left, right)
    job = (parameters.plan, left, right, result.reshape(-1))
    threads = checked_threads(threads)
    saturated = _add_compiled(False)(*job) if threads == 1 else on_threads(threads, _add_compiled(True), threads, *job)
    return Quantized(result, saturated)


@atom
def _embedding_part(
    part: int, parts: int, plan: np.ndarray, tables: np.ndarray, ids: np.ndarray, out: np.ndarray
) -> int:
    """Part `part` of `parts` of the rows; tables (4,) addresses, ids (4, rows)."""
    rows, cols = out.shape
    out_at = address_of(out)
    sources, staged = np.empty(4, np.int64), np.empty((5, 64), np.int8)
    saturated = 0
    for r in range(part_start(rows, parts, part, 1), part_start(rows, parts, part + 1, 1)):
        for i in range(4):
            sources[i] = tables[i] + ids[i, r] * cols
        saturated += _sum_row(sources, cols, plan, 1, out_at + r * cols, staged)
    return saturated


@kernel
def _embedding(plan: np.ndarray, tables: np.ndarray, ids: np.ndarray, out: np.ndarray) -> int:
    return _embedding_part(0, 1, plan, tables, ids, out)


@parallel_kernel
def _embedding_parallel(parts: int, plan: np.ndarray, tables: np.ndarray, ids: np.ndarray, out: np.ndarray) -> int:
    saturated = 0
    for part in numba.prange(parts):
        saturated += _embedding_part(part, parts, plan, tables, ids, out)
    return saturated


@functools.cache
def _embedding_compiled(threaded: bool) -> Any:
    long = array_type(types.int64, 1)
    arrays = (long, long, array_type(types.int64, 2), array_type(types.int8, 2, written=True))
    return for_types(_embedding_parallel, types.int64, *arrays) if threaded else for_types(_embedding, *arrays)


def embedding_sum(
    ids: Sequence[Any],
    tables: Sequence[Any],
    parameters: EmbeddingSum,
    *,
    threads: int = 1,
    out: np.ndarray | None = None,
) -> Quantized:
    """(int8 (..., hidden), how many had to be clamped): the sum of row ids[i] of tables[i], rounded once.

    Of BERT: word, position and token type. ids: int32 or int64 arrays whose shapes broadcast to (...). tables: int8
    (entries, hidden), as many as the parameters have scales. out: a contiguous array to write to. Raises SpecError for
    other numbers of either, and for an id outside its table, with its position.
    """
    count = len(parameters.multipliers)
    if len(ids) != count or len(tables) != count:
        raise SpecError("ids and tables", (len(ids), len(tables)), f"{count} of each, as the parameters have scales")
    rows = [np.ascontiguousarray(as_numpy(t, f"tables[{i}]", ("int8",), 2)) for i, t in enumerate(tables)]
    numbers = [as_numpy(n, f"ids[{i}]", ("int32", "int64")) for i, n in enumerate(ids)]
    hidden = rows[0].shape[1]
    for i, (table, wanted) in enumerate(zip(rows, numbers, strict=True)):
        if table.shape[1] != hidden:
            raise SpecError(f"tables[{i}]: shape", table.shape, f"(entries, {hidden}) as the first")
        if wanted.min() < 0 or wanted.max() >= table.shape[0]:
            position = tuple(int(p) for p in np.argwhere((wanted < 0) | (wanted >= table.shape[0]))[0])
            raise SpecError(f"ids[{i}] at {position}", int(wanted[position]), f"0 to {table.shape[0] - 1}")
    try:
        shape = np.broadcast_shapes(*(n.shape for n in numbers))
    except ValueError:
        raise SpecError("ids: shapes", tuple(n.shape for n in numbers), "shapes that broadcast") from None
    chosen = np.zeros((4, *shape), np.int64)
    for i, wanted in enumerate(numbers):
        chosen[i] = wanted
    addresses = np.array([(rows[i] if i < count else rows[0]).ctypes.data for i in range(4)], np.int64)
    result = check_out(out, (*shape, hidden), "int8", *rows)
    job = (parameters.plan, addresses, chosen.reshape(4, -1), result.reshape(-1, hidden))
    threads = checked_threads(threads)
    if threads == 1:
        saturated = _embedding_compiled(False)(*job)
    else:
        saturated = on_threads(threads, _embedding_compiled(True), threads, *job)
    return Quantized(result, saturated)
