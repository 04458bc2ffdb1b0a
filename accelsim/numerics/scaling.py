"""From int32 sums to 8-bit numbers: y = clamp(round(sum x scale) + zero point), every choice named.

>>> import numpy as np
>>> to_int8 = Requantizer.of(0.5, scale_format="fixed", rounding="half_even", dtype="int8")
>>> values, saturated = requantize(np.array([[1, 3, -1, 300]], np.int32), to_int8)
>>> values.tolist(), saturated
([[0, 2, 0, 127]], 1)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from accelsim.errors import SpecError
from accelsim.jit import atom, kernel, parallel_kernel
from accelsim.numerics.arrays import (
    Quantized,
    address_of,
    array_type,
    as_numpy,
    checked_threads,
    for_types,
    on_threads,
    part_start,
    real_numbers,
    whole_number,
)
from accelsim.numerics.llvm import FINISH_HIGH, FINISH_WIDE, LANES, finish
from accelsim.numerics.rounding import MANTISSA_BITS, Rounding, ScaleFormat

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def spelled(kind: Any, value: Any, path: str) -> Any:
    """The member of an enum of `work.Spelled`; raises SpecError with the legal names and the nearest."""
    try:
        return kind(value)
    except ValueError:
        raise SpecError.unknown(path, value, [member.name.lower() for member in kind]) from None


def fixed_point(scale: Any, scale_format: ScaleFormat) -> tuple[np.ndarray, np.ndarray]:
    """(multiplier, shift), int32, nearest to positive scales: scale ~ multiplier / 2^shift, multiplier < 2^31.

    The multiplier is brought to 31 bits whatever the format, so that 8-bit ones end in zeros: the value is the same.
    fixed and scale8 round the mantissa to the nearest, ties to even; power_of_two rounds log2 to the nearest.
    Raises SpecError for a scale that is not finite and positive, or outside [2^-32, 2^30].
    """
    values = np.atleast_1d(np.asarray(scale, np.float64))
    bad = values[~((values >= 2.0**-32) & (values <= 2.0**30))]
    if bad.size:
        raise SpecError("scale", float(bad[0]), "finite numbers in [2^-32, 2^30]")
    if scale_format is ScaleFormat.POWER_OF_TWO:
        values = np.exp2(np.rint(np.log2(values)))
    mantissa, exponent = np.frexp(values)  # mantissa in [1/2, 1)
    bits = MANTISSA_BITS[scale_format]
    multiplier = (np.rint(np.ldexp(mantissa, bits)).astype(np.int64)) << (31 - bits)
    over = multiplier == 2**31
    multiplier[over] //= 2
    shift = 31 - (exponent + over)
    return multiplier.astype(np.int32), shift.astype(np.int32)


class Columns(NamedTuple):
    """A requantizer as the kernels read it.

    plan (6,) int64: code of `llvm.finish`, zero point, lowest and highest before it is added, seed, whether the table
    is used. multiplier, shift int32, scale float32: per column, padded to a multiple of 16. table (256,) uint8.
    """

    plan: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    table: np.ndarray


COLUMN_TYPES = tuple(array_type(t, 1) for t in (types.int64, types.int32, types.int32, types.float32, types.uint8))
"""Of the fields of `Columns`."""


@dataclass(frozen=True, eq=False)
class Requantizer:
    """How sums become 8-bit numbers: clamp(round(sum x scale) + zero_point, low, high), then a table if there is one.

    scale (1,) or (columns,) float64: what is really multiplied by, after rounding to `scale_format`. multiplier, shift:
    the same as integers, scale = multiplier / 2^shift (of float32 scales: unused). dtype: int8 or uint8. low, high:
    clamping range, within the dtype. table (256,): result for the byte pattern of each clamped value, as of a GELU; its
    dtype is then that of the result. seed: of stochastic rounding.
    """

    scale_format: ScaleFormat
    rounding: Rounding
    dtype: str
    scale: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    zero_point: int
    low: int
    high: int
    table: np.ndarray | None
    seed: int

    @classmethod
    def of(
        cls,
        scale: Any,
        *,
        scale_format: str | ScaleFormat,
        rounding: str | Rounding,
        dtype: str,
        zero_point: int = 0,
        low: int | None = None,
        high: int | None = None,
        table: np.ndarray | None = None,
        seed: int | None = None,
    ) -> Requantizer:
        """A requantizer for one scale, or one for each column; of a GEMM: input scale x weight scale / output scale.

        Raises SpecError for unknown names, scales that are not positive or out of range, a range outside the dtype, a
        zero point outside the range, a table that is not 256 bytes, and a seed that is missing or not needed.
        """
        kind, mode = spelled(ScaleFormat, scale_format, "scale_format"), spelled(Rounding, rounding, "rounding")
        if dtype not in RANGES:
            raise SpecError.unknown("dtype", dtype, RANGES)
        lowest, highest = RANGES[dtype]
        low = whole_number(lowest if low is None else low, "low", lowest, highest)
        high = whole_number(highest if high is None else high, "high", low, highest)
        zero_point = whole_number(zero_point, "zero_point", low, high)
        if (seed is not None) != (mode is Rounding.STOCHASTIC):
            raise SpecError("seed", seed, "an integer with stochastic rounding, none otherwise")
        if table is not None:
            table = as_numpy(table, "table", RANGES, 1).copy()
            if table.size != 256:
                raise SpecError("table: shape", table.shape, "(256,)")
        values = np.atleast_1d(real_numbers(scale, "scale", "one number, or one for each column"))
        if values.ndim != 1 or values.size == 0:
            raise SpecError("scale: shape", values.shape, "one number, or one for each column")
        multiplier, shift = fixed_point(values, kind if kind is not ScaleFormat.FLOAT32 else ScaleFormat.FIXED)
        if kind is ScaleFormat.FLOAT32:
            values = values.astype(np.float32).astype(np.float64)
        else:
            values = np.ldexp(multiplier.astype(np.float64), -shift)
        number = whole_number(0 if seed is None else seed, "seed", 0, 2**62)
        return cls(kind, mode, dtype, values, multiplier, shift, zero_point, low, high, table, number)

    @property
    def result_dtype(self) -> str:
        """int8 or uint8: that of the table where there is one."""
        return self.dtype if self.table is None else str(self.table.dtype)

    def columns(self, n: int) -> Columns:
        """The kernels' view for n columns. Raises SpecError if there are other than 1 or n scales."""
        found = self._padded.get(n)
        if found is None:
            if self.scale.size not in (1, n):
                raise SpecError("scale: shape", self.scale.shape, f"1 or {n} numbers, as there are {n} columns")
            found = self._padded[n] = self._pad(n)
        return found

    def _pad(self, n: int) -> Columns:
        width = -(-n // LANES) * LANES
        multiplier, shift, scale = np.zeros(width, np.int32), np.full(width, 32, np.int32), np.zeros(width, np.float32)
        multiplier[:n], shift[:n], scale[:n] = self.multiplier, self.shift, self.scale
        code = int(self.rounding)
        if self.scale_format is not ScaleFormat.FLOAT32:
            high = self.shift.min() >= 32 and self.rounding is not Rounding.STOCHASTIC
            code += FINISH_HIGH if high else FINISH_WIDE
        clamp = (self.low - self.zero_point, self.high - self.zero_point)
        plan = np.array([code, self.zero_point, *clamp, self.seed, self.table is not None], np.int64)
        table = np.zeros(256, np.uint8) if self.table is None else np.ascontiguousarray(self.table).view(np.uint8)
        return Columns(plan, multiplier, shift, scale, table)

    @cached_property
    def _padded(self) -> dict[int, Columns]:
        return {}


@atom
def finish_block(
    columns: Any,
    sums: int,
    sums_row_bytes: int,
    rows: int,
    cols: int,
    first: int,
    out: int,
    out_row_bytes: int,
    index: int,
) -> int:
    """`llvm.finish` for `rows` x `cols` sums at address `sums`, to address `out`: how many were clamped.

    columns: the fields of `Columns`. first: column of the result that the first sum belongs to. index: flat index of
    the first element in the result.
    """
    plan, multiplier, shift, scale, table = columns
    clamped: int = finish(
        plan[0],
        sums,
        sums_row_bytes,
        rows,
        cols,
        multiplier.ctypes.data + 4 * first,
        shift.ctypes.data + 4 * first,
        scale.ctypes.data + 4 * first,
        plan[1],
        plan[2],
        plan[3],
        plan[4],
        address_of(table) if plan[5] else 0,
        out,
        out_row_bytes,
        index,
        out_row_bytes,
    )
    return clamped


@atom
def _requantize_rows(sums: np.ndarray, out: np.ndarray, first_row: int, last_row: int, *columns: Any) -> int:
    """Rows first_row to last_row - 1 of sums (rows, n) int32 into out (rows, n) uint8; both contiguous."""
    n = sums.shape[1]
    whole = n // LANES * LANES
    saturated = 0
    if whole:
        at = first_row * n
        source, target = sums.ctypes.data + 4 * at, out.ctypes.data + at
        saturated += finish_block(columns, source, 4 * n, last_row - first_row, whole, 0, target, n, at)
    if whole < n:
        rest = np.zeros(LANES, np.int32)
        for r in range(first_row, last_row):
            rest[: n - whole] = sums[r, whole:]
            at = r * n + whole
            target = out.ctypes.data + at
            saturated += finish_block(columns, rest.ctypes.data, 4 * LANES, 1, n - whole, whole, target, n, at)
    return saturated


@kernel
def _requantize(sums: np.ndarray, out: np.ndarray, *columns: Any) -> int:
    return _requantize_rows(sums, out, 0, sums.shape[0], *columns)


@parallel_kernel
def _requantize_parallel(parts: int, sums: np.ndarray, out: np.ndarray, *columns: Any) -> int:
    saturated = 0
    for part in numba.prange(parts):
        first = part_start(sums.shape[0], parts, part, 1)
        last = part_start(sums.shape[0], parts, part + 1, 1)
        if first < last:
            saturated += _requantize_rows(sums, out, first, last, *columns)
    return saturated


@functools.cache
def _compiled_for(threaded: bool) -> Any:
    rows = (array_type(types.int32, 2), array_type(types.uint8, 2, written=True), types.StarArgTuple(COLUMN_TYPES))
    return for_types(_requantize_parallel, types.int64, *rows) if threaded else for_types(_requantize, *rows)


def requantize(sums: Any, requantizer: Requantizer, *, threads: int = 1) -> Quantized:
    """(8-bit values of the shape of `sums`, how many had to be clamped).

    sums: int32 (..., columns), any strides. Raises SpecError for another dtype, no elements, or a number of scales that
    is neither 1 nor the number of columns.
    """
    array = as_numpy(sums, "sums", ("int32",))
    flat = np.ascontiguousarray(array).reshape(-1, array.shape[-1] if array.ndim else 1)
    out = np.empty(flat.shape, np.uint8)
    columns = requantizer.columns(flat.shape[1])
    threads = checked_threads(threads)
    if threads == 1:
        saturated = _compiled_for(False)(flat, out, *columns)
    else:
        saturated = on_threads(threads, _compiled_for(True), threads, flat, out, *columns)
    return Quantized(out.view(requantizer.result_dtype).reshape(array.shape), int(saturated))


def dequantize(sums: Any, scale: Any) -> np.ndarray:
    """float64 (..., columns): what the integers stand for, sums x scale, scale one number or one for each column."""
    result: np.ndarray = np.asarray(sums, np.float64) * np.asarray(scale, np.float64)
    return result
