"""Softmax of int8 rows in integers: subtract the maximum, take exponentials from a table, divide by their sum.

    >>> import numpy as np
    >>> table = SoftmaxTable.of(0.1, bits=8, levels=255, rounding="half_away")
    >>> softmax(np.array([[20, 10, 0, -100]], np.int8), table).tolist()
    [[169, 62, 23, 0]]

    m = the largest x_i,    e_i = table[m - x_i],    p_i = round(levels e_i / sum of all e),    in steps of 1 / levels

What a mask leaves out counts neither for m nor for the sum and becomes 0; a row without anything left is all zeros,
where PyTorch gives NaN. m - x_i is one of 256 numbers, so all there is to an exponential of 8-bit scores is a table of
256: of exp itself, as FQ-BERT has it (arXiv:2103.02800, section III-A; numerators and results of 8 bits, II-B), or of
I-BERT's polynomial (arXiv:2101.01321, section 3.5), each entry computed by its integer algorithm.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numba
import numpy as np
from numba import types

from accelsim.errors import SpecError
from accelsim.jit import atom, kernel, parallel_kernel
from accelsim.numerics.approximation import exponential_polynomial
from accelsim.numerics.arrays import (
    address_of,
    array_type,
    as_numpy,
    checked_threads,
    for_types,
    on_threads,
    part_start,
    whole_number,
)
from accelsim.numerics.rounding import Rounding
from accelsim.numerics.rowcode import BLOCK_ROWS, bit_length, copy_bytes, divide, exponentials, row_maximum
from accelsim.numerics.rows import check_out, contiguous_rows, deterministic, positive, row_at

MAX_COLS = 2**15
"""Columns up to which the sum of 16-bit exponentials stays below 2^31."""
NO_MASK, NO_ROWS = np.zeros((1, 1), np.uint8), np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class _Softmax:
    """exponentials (256,) int64, below 2^16: that of each distance from the maximum. levels: what 1 becomes."""

    exponentials: np.ndarray
    levels: int
    rounding: Rounding

    @classmethod
    def _of(cls, exponentials: np.ndarray, levels: Any, rounding: Any) -> Self:
        return cls(exponentials, whole_number(levels, "levels", 1, 255), deterministic(rounding))

    @property
    def out_scale(self) -> float:
        """Step of the results."""
        return 1 / self.levels

    @cached_property
    def plan(self) -> np.ndarray:
        """(3,) int64: rounding, levels, whether the exponentials have more than 8 bits."""
        return np.array([self.rounding, self.levels, self.exponentials[0] > 255], np.int64)

    @cached_property
    def tables(self) -> np.ndarray:
        """(2, 256) uint8: lower and upper bytes, shifted left as far as 8 or 16 bits allow: no quotient changes."""
        largest = int(self.exponentials[0])
        raised = self.exponentials << ((16 if largest > 255 else 8) - largest.bit_length())
        return np.stack([raised & 255, raised >> 8]).astype(np.uint8)


class SoftmaxTable(_Softmax):
    """Softmax with a table of exponentials, as FQ-BERT's softmax core."""

    @classmethod
    def of(cls, scale: float, *, bits: int, levels: int, rounding: str | Rounding) -> Self:
        """For scores in steps of `scale`: exponentials round((2^bits - 1) exp(-d scale)), 8 <= bits <= 16, ties up.

        levels: 1 becomes this, at most 255. rounding: of the quotient. Raises SpecError for other numbers, a scale that
        is not positive, and stochastic rounding.
        """
        top = 2 ** whole_number(bits, "bits", 8, 16) - 1
        values = top * np.exp(-np.arange(256) * positive(scale, "scale"))
        return cls._of(np.floor(values + 0.5).astype(np.int64), levels, rounding)


class SoftmaxPolynomial(_Softmax):
    """Softmax with I-BERT's second-order polynomial for the exponential."""

    @classmethod
    def of(cls, scale: float, *, width: int, bits: int, levels: int, rounding: str | Rounding) -> Self:
        """For scores in steps of `scale`: `approximation.exponential_polynomial` in integers of `width` bits.

        Of its results, which stay below 2^(width - 1), the upper `bits` are kept, 8 <= bits <= 16. levels, rounding and
        errors as of `SoftmaxTable`; also for a scale so small that the polynomial does not fit.
        """
        kept = whole_number(bits, "bits", 8, 16)
        values, _ = exponential_polynomial(positive(scale, "scale"), whole_number(width, "width", 16, 32))
        return cls._of(values >> max(0, int(values[0]).bit_length() - kept), levels, rounding)


# --- loops ------------------------------------------------------------------------------------------------------------


@atom
def reciprocal(total: int, levels: int, wide: bool) -> tuple[int, int, int]:
    """(factor above, factor below, shift) of `rowcode.divide` for quotients levels e / total, 0 <= e <= total.

    With b bits of total and s = b + 14, for e < 2^8, the factors are the integers next to levels 2^s / total on either
    side. e times the one above is e levels / total 2^s and an error of less than e < 2^8, that is, a quotient that is
    too large by less than 2^8 / 2^(b + 14) < 1 / (2 total). Quotients are multiples of 1 / total and a tie is one of
    1 / (2 total), so rounding down, and adding a half before, give the same as for the exact quotient; the factor below
    differs in that a tie comes out just below. `wide`, e < 2^16, has s = b + 22 for the same reason.
    A total of so many bits that no quotient reaches one half has factors 0: all is rounded to 0.
    """
    bits, most, extra, dropped = bit_length(total), 17, 14, 16
    if wide:
        most, extra, dropped = 25, 22, 32
    if bits > most or total == 0:
        return 0, 0, 15
    numerator = levels << (bits + extra)
    quotient = numerator // total
    return quotient + 1, quotient - np.int64(quotient * total == numerator), bits + extra - dropped


@atom
def _stages(
    first: int, last: int, n: int, rows: np.ndarray, staged: np.ndarray, low: np.ndarray, high: np.ndarray,
    x_at: int, out_at: int, masks_at: int, mask_rows: np.ndarray, tables_at: int, rounding: int, levels: int, wide: int,
) -> None:  # fmt: skip
    """Rows first to last - 1, 16 at a time and stage by stage, so that no row waits for the result of its last stage.

    The arrays are scratch space. rows (6, 16): address, address of the mask, maximum; later factors and shift.
    """
    width = low.shape[1]
    blocks = width // 64
    ragged = n < width
    staged_at, low_at, high_at = address_of(staged), address_of(low), address_of(high)
    sources, masks, numbers, above, below, shifts = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]
    high_table_at = tables_at + 256 if wide else 0
    for top in range(first, last, BLOCK_ROWS):
        count = min(BLOCK_ROWS, last - top)
        for r in range(count):
            sources[r] = row_at(x_at, n, top + r, staged_at, width, r)
            masks[r] = staged_at + BLOCK_ROWS * width if ragged else 0
            if mask_rows.size:
                masks[r] = row_at(masks_at, n, mask_rows[top + r], staged_at, width, BLOCK_ROWS + r)
        for r in range(count):
            numbers[r] = row_maximum(sources[r], masks[r], blocks)
        for r in range(count):
            numbers[r] = exponentials(sources[r], masks[r], blocks, numbers[r], tables_at, high_table_at,
                                      low_at + r * width, high_at + r * width)  # fmt: skip
        for r in range(count):
            above[r], below[r], shifts[r] = reciprocal(numbers[r], levels, wide > 0)
        for r in range(count):
            target = out_at + (top + r) * n
            divide(rounding, low_at + r * width, high_at + r * width if wide else 0, blocks, above[r], below[r],
                   shifts[r], staged_at if ragged else target)  # fmt: skip
            if ragged:
                copy_bytes(staged_at, target, n)


@atom
def _part(part: int, parts: int, count: int, n: int, *job: Any) -> None:
    """Part `part` of `parts` of `count` rows, with its own scratch space."""
    first, last = part_start(count, parts, part, 1), part_start(count, parts, part + 1, 1)
    width = -(-n // 64) * 64
    staged = np.zeros((2 * BLOCK_ROWS, width if n < width else 1), np.uint8)  # rows, then masks
    if n < width:
        staged[BLOCK_ROWS:, :n] = 1
    low = np.empty((BLOCK_ROWS, width), np.uint8)
    high = np.empty((BLOCK_ROWS, width if job[-1] else 1), np.uint8)
    _stages(first, last, n, np.empty((6, BLOCK_ROWS), np.int64), staged, low, high, *job)


@atom
def _job(
    plan: np.ndarray, tables: np.ndarray, masks: np.ndarray, mask_rows: np.ndarray, x: np.ndarray, out: np.ndarray
) -> tuple[Any, ...]:
    """The arguments of `_part` from `count` on."""
    return (x.shape[0], x.shape[1], address_of(x), address_of(out), address_of(masks), mask_rows, address_of(tables),
            plan[0], plan[1], plan[2])  # fmt: skip


@kernel
def _softmax(
    plan: np.ndarray, tables: np.ndarray, masks: np.ndarray, mask_rows: np.ndarray, x: np.ndarray, out: np.ndarray
) -> None:
    _part(0, 1, *_job(plan, tables, masks, mask_rows, x, out))


@parallel_kernel
def _softmax_parallel(
    parts: int, plan: np.ndarray, tables: np.ndarray, masks: np.ndarray, mask_rows: np.ndarray, x: np.ndarray,
    out: np.ndarray
) -> None:  # fmt: skip
    job = _job(plan, tables, masks, mask_rows, x, out)
    for part in numba.prange(parts):
        _part(part, parts, *job)


@functools.cache
def _compiled(threaded: bool) -> Any:
    long, bytes_in = array_type(types.int64, 1), array_type(types.uint8, 2)
    arrays = (long, bytes_in, bytes_in, long, array_type(types.int8, 2), array_type(types.uint8, 2, written=True))
    return for_types(_softmax_parallel, types.int64, *arrays) if threaded else for_types(_softmax, *arrays)


def softmax(
    x: Any,
    parameters: SoftmaxTable | SoftmaxPolynomial,
    *,
    mask: Any = None,
    threads: int = 1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """uint8 of the shape of x, in steps of 1 / levels: softmax over the last axis.

    x: int8 (..., columns), up to 2^15 of them; what is not contiguous is copied once. mask: bool, true where a position
    is attended to; broadcast to the shape of x, its own rows are stored once. out: a contiguous array to write to.
    Raises SpecError for other dtypes, and for a mask that does not broadcast to x.
    """
    rows, shape = contiguous_rows(x, "x", ("int8",))
    if rows.shape[1] > MAX_COLS:
        raise SpecError("x: shape", shape, f"at most {MAX_COLS} columns")
    masks, mask_rows = (NO_MASK, NO_ROWS) if mask is None else _masks(mask, shape)
    result = check_out(out, shape, "uint8", rows)
    flat = result if result.ndim == 2 else result.reshape(rows.shape)
    job = (parameters.plan, parameters.tables, masks, mask_rows, rows, flat)
    threads = checked_threads(threads)
    if threads == 1:
        _compiled(False)(*job)
    else:
        on_threads(threads, _compiled(True), threads, *job)
    return result


def _masks(mask: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(the mask's own rows (m, columns) uint8, which of them is that of each row of x)."""
    found = as_numpy(mask, "mask", ("bool",))
    lead, cols = shape[:-1], shape[-1]
    own = (1,) * (len(shape) - found.ndim) + found.shape
    if len(own) != len(shape) or any(m not in (1, s) for m, s in zip(own, shape, strict=True)):
        raise SpecError("mask: shape", found.shape, f"one that broadcasts to that of x, {shape}")
    rows = (found if own[-1] == cols else np.broadcast_to(found.reshape(own), (*own[:-1], cols))).reshape(-1, cols)
    return np.ascontiguousarray(rows).view(np.uint8), _numbers(own[:-1], lead)


@functools.lru_cache(maxsize=8)
def _numbers(own: tuple[int, ...], lead: tuple[int, ...]) -> np.ndarray:
    """int64, not to be written to: the rows of shape `own`, numbered, broadcast to `lead`."""
    return np.broadcast_to(np.arange(math.prod(own)).reshape(own), lead).ravel()
