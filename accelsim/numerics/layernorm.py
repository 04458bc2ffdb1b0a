"""Layer norm of int8 rows, alone or fused with the residual add before it, in three stages of integers.

    >>> import numpy as np
    >>> norm = LayerNormFixed.of(
    ...     np.ones(4), np.zeros(4), x_scale=0.1, out_scale=0.02, eps=1e-12, rounding="half_away"
    ... )
    >>> layer_norm(np.array([[10, 20, 30, 40]], np.int8), norm)
    Quantized(values=array([[-67, -22,  22,  67]], dtype=int8), saturated=0)

The stages are those of FQ-BERT's LN core (arXiv:2103.02800, section III-A): two vectors with two scales in, one vector
and its mean out; subtract, variance; multiply element by element. Parameters have 8 bits (II-B). The paper is silent on
the widths and roundings inside and on the square root; these are ours:

    h_i = 128 x_i, or with a residual A(x_i) + A(y_i), A(v) = floor((128 v m + 2^14) / 2^15)      aligned, 16 bits
    mu = floor((2 sum h + n) / (2 n))                                                          the mean, to the nearest
    V = sum (h_i - mu)^2 + epsilon,    e = the largest e >= 0 with V 4^e < 2^30, else 0
    D = floor(sqrt(V 4^e)),    R = floor(3 2^27 / D)                                           norm and its reciprocal
    u_i = floor(((h_i - mu) 2^e R + 2^14) / 2^15)                                              in 3 2^12 / sqrt(n) units
    y_i = clamp(round((u_i + bias_i) gain_i / 2^15) + offset_i)                                8 bits

u is the deviation over the norm of all deviations, sqrt(n) times the standard deviation, so |u| <= 3 2^12 whatever the
row. Gains are odd and |u + bias| < 2^14, so no product is an odd multiple of 2^14: there are no ties, and half_away and
half_even are the same rounding.
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
from accelsim.numerics.arrays import (
    Quantized,
    address_of,
    array_type,
    checked_threads,
    for_types,
    on_threads,
    part_start,
    real_numbers,
)
from accelsim.numerics.rounding import Rounding
from accelsim.numerics.rowcode import (
    BLOCK_ROWS,
    BYTES_FLOOR,
    BYTES_NEAREST,
    NORMALIZED_ROWS,
    WORDS_FLOOR,
    WORDS_NEAREST,
    aligned_moments,
    bit_length,
    byte_moments,
    copy_bytes,
    normalize,
)
from accelsim.numerics.rows import check_out, contiguous_rows, deterministic, positive, row_at

MAX_COLS = 2**15
"""Columns up to which V < 2^46; the sums of a row are far from the end of their int32 lanes."""
UNIT = 3 * 2**12
"""|u| of a row that has one element off the mean: what leaves room for the bias within 2^14."""
NUMERATOR = UNIT * 2**15
MAX_BIAS = 2**12 - 1
MAX_GAIN = 2**14 - 1


@dataclass(frozen=True, eq=False)
class _LayerNorm:
    """Integers of a layer norm over n columns, as in the head of this file.

    gain, bias, offset: int16 (n,). epsilon: what is added to the sum of squares, in units of h. x_multiplier,
    residual_multiplier: m of the two inputs, 2^14 for the one of larger scale; both 0 where there is no residual.
    """

    gain: np.ndarray
    bias: np.ndarray
    offset: np.ndarray
    epsilon: int
    x_multiplier: int
    residual_multiplier: int
    rounding: Rounding

    @classmethod
    def _of(
        cls,
        gamma: np.ndarray,
        beta: np.ndarray,
        x_scale: Any,
        out_scale: Any,
        eps: Any,
        rounding: Any,
        residual_scale: Any,
    ) -> Self:
        mode = deterministic(rounding)
        n = gamma.size
        step, step_out = positive(x_scale, "x_scale"), positive(out_scale, "out_scale")
        unit, x_multiplier, residual_multiplier = step / 128, 0, 0
        if residual_scale is not None:
            other = positive(residual_scale, "residual_scale")
            unit = max(step, other) / 64
            x_multiplier, residual_multiplier = (round(2**14 * s / max(step, other)) for s in (step, other))
            if min(x_multiplier, residual_multiplier) == 0:
                raise SpecError("residual_scale", residual_scale, f"within a factor of 2^14 of x_scale, {x_scale}")
        epsilon = max(1, round(n * positive(eps, "eps", or_zero=True) / unit / unit))
        if epsilon >= 2**45:
            raise SpecError("eps", eps, f"below {2**45 * unit * unit / n}, for n x eps to fit 45 bits")
        # y = gamma sqrt(n) u / (UNIT out_scale) + beta / out_scale
        gains = gamma * (math.sqrt(n) * 2**15 / (UNIT * step_out))
        if np.abs(gains).max() > MAX_GAIN:
            raise SpecError("out_scale", out_scale, f"at least {step_out * np.abs(gains).max() / MAX_GAIN}")
        gain = 2 * np.floor(gains / 2).astype(np.int64) + 1
        wanted = beta / step_out
        if np.abs(wanted).max() > 2**14 - 1:
            raise SpecError("beta / out_scale", float(np.abs(wanted).max()), "at most 2^14 - 1")
        offset = np.rint(wanted)
        bias = np.clip(np.rint((wanted - offset) * 2**15 / gain), -MAX_BIAS, MAX_BIAS)
        words = [a.astype(np.int16) for a in (gain, bias, offset)]
        return cls(words[0], words[1], words[2], epsilon, x_multiplier, residual_multiplier, mode)

    @property
    def cols(self) -> int:
        """Columns of the rows it normalizes."""
        return int(self.gain.size)

    @cached_property
    def columns(self) -> np.ndarray:
        """(3, n up to a multiple of 64) int16, the kernels' view: gain, doubled for floor; bias; offset + 128."""
        width = -(-self.cols // 64) * 64
        padded = np.zeros((3, width), np.int16)
        padded[0, : self.cols] = self.gain * (2 if self.rounding is Rounding.FLOOR else 1)
        padded[1, : self.cols] = self.bias
        padded[2] = 128
        padded[2, : self.cols] += self.offset
        return padded

    @cached_property
    def plan(self) -> np.ndarray:
        """(4,) int64: code of `rowcode.normalize`, epsilon, and the two multipliers."""
        codes = (BYTES_NEAREST, BYTES_FLOOR) if self.residual_multiplier == 0 else (WORDS_NEAREST, WORDS_FLOOR)
        code = codes[self.rounding is Rounding.FLOOR]
        return np.array([code, self.epsilon, self.x_multiplier, self.residual_multiplier], np.int64)


class LayerNormFixed(_LayerNorm):
    """Layer norm with 8-bit fixed-point gamma and beta, as FQ-BERT has them (arXiv:2103.02800, section II-B)."""

    @classmethod
    def of(
        cls,
        gamma: Any,
        beta: Any,
        *,
        x_scale: float,
        out_scale: float,
        eps: float,
        rounding: str | Rounding,
        residual_scale: float | None = None,
    ) -> Self:
        """Parameters for y = gamma (x - mean) / sqrt(variance + eps) + beta, x in steps of x_scale, y of out_scale.

        gamma, beta: (n,) real. Each is first rounded to 8 bits, to a multiple of its largest magnitude / 127, ties to
        even; the gain is the odd integer nearest to gamma sqrt(n) 2^15 / (3 2^12 out_scale), the offset the integer
        nearest to beta / out_scale, and the bias makes up for the rest of it. eps becomes max(1, round(n eps / h^2)),
        h the step of the aligned input. residual_scale: the step of a second input, to be added to the first.

        Raises SpecError for wrong shapes, n > 2^15, numbers that are not finite or scales that are not positive, an
        out_scale too small for the gains to fit 14 bits, and stochastic rounding.
        """
        gains, offsets = _parameters(gamma, beta)
        eight = (_eight_bits(gains), _eight_bits(offsets))
        return cls._of(*eight, x_scale, out_scale, eps, rounding, residual_scale)


class LayerNormIBert(_LayerNorm):
    """Layer norm with gamma and beta as they are, folded into 15-bit gains; the square root is I-BERT's.

    I-BERT (arXiv:2101.01321, section 3.6, algorithm 4) takes floor(sqrt(n)) by Newton's iteration, which is what D is,
    and divides by it. The authors' code multiplies by floor(2^31 / D) in 32 bits where this has R and 16 bits.
    """

    @classmethod
    def of(
        cls,
        gamma: Any,
        beta: Any,
        *,
        x_scale: float,
        out_scale: float,
        eps: float,
        rounding: str | Rounding,
        residual_scale: float | None = None,
    ) -> Self:
        """As `LayerNormFixed.of`, but for the 8 bits of gamma and beta."""
        gains, offsets = _parameters(gamma, beta)
        return cls._of(gains, offsets, x_scale, out_scale, eps, rounding, residual_scale)


def _parameters(gamma: Any, beta: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (n,)."""
    arrays = []
    for name, value in (("gamma", gamma), ("beta", beta)):
        array = real_numbers(value, name, "real numbers")
        if array.ndim != 1 or not 1 <= array.size <= MAX_COLS:
            raise SpecError(f"{name}: shape", array.shape, f"(columns,), 1 to {MAX_COLS} of them")
        if not np.isfinite(array).all():
            raise SpecError(name, float(array[~np.isfinite(array)][0]), "finite numbers")
        arrays.append(array)
    if arrays[0].size != arrays[1].size:
        raise SpecError("beta: shape", arrays[1].shape, f"that of gamma, {arrays[0].shape}")
    return arrays[0], arrays[1]


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Rounded to 127 steps either side of zero."""
    step = np.abs(values).max() / 127
    rounded: np.ndarray = np.rint(values / step) * step if step > 0 else values
    return rounded


# --- stages -----------------------------------------------------------------------------------------------------------


@atom
def norm_and_reciprocal(squares: int) -> tuple[int, int, int]:
    """(e, D, R) of V = squares, 1 <= V < 2^46: as in the head of this file.

    Newton's iteration for y = 1 / sqrt(w), y' = y (3 - w y^2) / 2, w in [1/4, 1) by a shift of V, from the linear
    estimate 2.1327 - 1.2187 w, 9 % off at most. An error eps becomes 1.5 eps^2: 1.2 %, 0.02 %, 6e-8 after three steps,
    and what shifts cut off is made good by 8 units. So y is not too large, and what it gives for D = floor(sqrt(V 4^e))
    is at most one too small, for R = floor(3 2^27 / D) at most four: comparisons make both exact.
    """
    bits = bit_length(squares)
    e = max((30 - bits) >> 1, 0)
    whole = squares << (2 * e)
    half_bits = (bit_length(whole) + 1) >> 1
    w = (whole << 16) >> (2 * half_bits - 16)  # 2^32 w; whole is in [2^28, 2^46)
    y = 2289969188 - ((w * 319475) >> 20)  # 2^30 y
    y = (y * (3 * 2**28 - ((w * ((y * y) >> 32)) >> 32))) >> 29
    y = (y * (3 * 2**28 - ((w * ((y * y) >> 32)) >> 32))) >> 29
    y = (y * (3 * 2**28 - ((w * ((y * y) >> 32)) >> 32))) >> 29
    y -= 8
    root = ((w * y) >> 32) >> (30 - half_bits)
    root += np.int64((root + 1) * (root + 1) <= whole)
    quotient = (NUMERATOR * y) >> (30 + half_bits)
    rest = NUMERATOR - quotient * root
    for times in range(1, 5):
        quotient += np.int64(rest >= times * root)
    return e, root, quotient


@atom
def _constants(sums: np.ndarray, rows: np.ndarray, n: int, unit: int, epsilon: int) -> None:
    """unit, center, factor of `rowcode.normalize` into rows (3, 16), from sums (2, 16) of x and x^2, h = unit x.

    The division by 2 n, of a number below 2^16 n, is by a multiplication with 2^48 / (2 n), rounded up: the error stays
    below 2^16 n / 2^48 <= 1 / (2 n).
    """
    inverse = (2**48 + 2 * n - 1) // (2 * n)
    plain, products = sums[0], sums[1]
    units, centers, factors = rows[0], rows[1], rows[2]
    for r in range(BLOCK_ROWS):
        total, squares = plain[r] * unit, products[r] * unit * unit
        mean = (((2 * total + n + (n << 15)) * inverse) >> 48) - 2**14
        e, _, factor = norm_and_reciprocal(squares - 2 * mean * total + n * mean * mean + epsilon)
        units[r] = unit << e
        centers[r] = mean << e
        factors[r] = factor


@atom
def _stages(
    first: int, last: int, n: int, width: int,
    sums: np.ndarray, rows: np.ndarray, staged: np.ndarray, words: np.ndarray, finished: np.ndarray,
    x_at: int, y_at: int, out_at: int, columns_at: int, code: int, epsilon: int, x_multiplier: int, y_multiplier: int,
) -> int:  # fmt: skip
    """Rows first to last - 1 through the three stages, 16 at a time; the arrays are scratch space."""
    blocks = width // 64
    # each .ctypes counts references: once, not row by row
    sums_at, rows_at, staged_at = address_of(sums), address_of(rows), address_of(staged)
    words_at, finished_at = address_of(words), address_of(finished)
    saturated = 0
    for top in range(first, last, BLOCK_ROWS):
        count = min(BLOCK_ROWS, last - top)
        for r in range(count):
            if y_multiplier:
                a = row_at(x_at, n, top + r, staged_at, width, 0)
                b = row_at(y_at, n, top + r, staged_at, width, 1)
                aligned_moments(a, b, blocks, x_multiplier, y_multiplier, words_at + 2 * width * r, sums_at + 8 * r)
            else:
                byte_moments(row_at(x_at, n, top + r, staged_at, width, r), blocks, sums_at + 8 * r)
        _constants(sums, rows, n, 1 if y_multiplier else 128, epsilon)
        source, source_row_bytes = words_at, 2 * width
        if not y_multiplier:
            source, source_row_bytes = (x_at + top * n if n == width else staged_at), width
        for r in range(0, count, NORMALIZED_ROWS):
            height = min(NORMALIZED_ROWS, count - r)
            row_in, row_out = source + r * source_row_bytes, out_at + (top + r) * n
            saturated += normalize(code, height, row_in, source_row_bytes, blocks, rows_at + 8 * r, columns_at,
                                   2 * width, row_out if n == width else finished_at, width)  # fmt: skip
            if n != width:
                for i in range(height):
                    copy_bytes(finished_at + i * width, row_out + i * n, n)
    return saturated


@atom
def _part(part: int, parts: int, count: int, n: int, width: int, *job: int) -> int:
    """Part `part` of `parts` of `count` rows, with its own scratch space."""
    first, last = part_start(count, parts, part, NORMALIZED_ROWS), part_start(count, parts, part + 1, NORMALIZED_ROWS)
    staged = np.zeros((BLOCK_ROWS, width if n < width else 1), np.int8)
    finished = np.empty((NORMALIZED_ROWS, width if n < width else 1), np.int8)
    words = np.empty((BLOCK_ROWS, width if job[-1] else 1), np.int16)
    sums, rows = np.zeros((2, BLOCK_ROWS), np.int64), np.empty((3, BLOCK_ROWS), np.int64)
    return _stages(first, last, n, width, sums, rows, staged, words, finished, *job)


@atom
def _job(plan: np.ndarray, columns: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray) -> tuple[int, ...]:
    """The arguments of `_part` from `count` on."""
    return (x.shape[0], x.shape[1], columns.shape[1], address_of(x), address_of(y), address_of(out),
            address_of(columns), plan[0], plan[1], plan[2], plan[3])  # fmt: skip


@kernel
def _layer_norm(plan: np.ndarray, columns: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray) -> int:
    return _part(0, 1, *_job(plan, columns, x, y, out))


@parallel_kernel
def _layer_norm_parallel(
    parts: int, plan: np.ndarray, columns: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray
) -> int:
    job = _job(plan, columns, x, y, out)
    saturated = 0
    for part in numba.prange(parts):
        saturated += _part(part, parts, *job)
    return saturated


@functools.cache
def _compiled(threaded: bool) -> Any:
    rows = [array_type(types.int8, 2, written=written) for written in (False, False, True)]
    arrays = (array_type(types.int64, 1), array_type(types.int16, 2), *rows)
    return for_types(_layer_norm_parallel, types.int64, *arrays) if threaded else for_types(_layer_norm, *arrays)


def layer_norm(
    x: Any,
    parameters: LayerNormFixed | LayerNormIBert,
    *,
    residual: Any = None,
    threads: int = 1,
    out: np.ndarray | None = None,
) -> Quantized:
    """(int8 of the shape of x, how many had to be clamped): layer norm of x, or of x + residual, over the last axis.

    x, residual: int8 (..., n) of one shape; what is not contiguous is copied once. A row of equal elements gives beta.
    out: a contiguous array to write to. Raises SpecError for another n than that of the parameters, for a residual
    where they have no scale for it, and for none where they have.
    """
    rows, shape = contiguous_rows(x, "x", ("int8",))
    if rows.shape[1] != parameters.cols:
        raise SpecError("x: shape", shape, f"(..., {parameters.cols})")
    second = rows
    if (residual is None) != (parameters.residual_multiplier == 0):
        legal = "an array, as the parameters have a residual_scale"
        raise SpecError("residual", type(residual).__name__, legal if residual is None else "None: no residual_scale")
    if residual is not None:
        second, second_shape = contiguous_rows(residual, "residual", ("int8",))
        if second_shape != shape:
            raise SpecError("residual: shape", second_shape, f"that of x, {shape}")
    result = check_out(out, shape, "int8", rows, second)
    flat = result if result.ndim == 2 else result.reshape(rows.shape)
    job = (parameters.plan, parameters.columns, rows, second, flat)
    threads = checked_threads(threads)
    saturated = _compiled(False)(*job) if threads == 1 else on_threads(threads, _compiled(True), threads, *job)
    return Quantized(result, saturated)
