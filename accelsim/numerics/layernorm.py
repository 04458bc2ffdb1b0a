"""Layer norm of int8 rows, alone or fused with the residual add before it, in three stages of integers.

    >>> import numpy as np
    >>> norm = LayerNormFixed.of(
    ...     np.ones(4), np.zeros(4), x_scale=0.1, out_scale=0.02, eps=1e-12, rounding="half_away"
    ... )
    >>> layer_norm(np.array([[10, 20, 30, 40]], np.int8), norm)
    Quantized(values=array([[-67, -22,  22,  67]], dtype=int8), saturated=0)

The stages are FQ-BERT's (arXiv:2103.02800, section III-B): add and mean; subtract and variance; multiply and add. The
paper gives their order and the 8 bits of the parameters; widths and roundings inside are ours:

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

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numba
import numpy as np

from accelsim.errors import SpecError
from accelsim.jit import atom, kernel, parallel_kernel
from accelsim.numerics.arrays import Quantized, checked_threads, on_threads, part_start
from accelsim.numerics.rowcode import (
    BYTES_FLOOR,
    BYTES_NEAREST,
    NORMALIZED_ROWS,
    WORDS_FLOOR,
    WORDS_NEAREST,
    aligned_moments,
    bit_length,
    byte_moments,
    normalize,
)
from accelsim.numerics.rounding import Rounding
from accelsim.numerics.rows import check_out, contiguous_rows, positive, row_at
from accelsim.numerics.scaling import spelled

MAX_COLS = 2**15
"""Columns up to which V < 2^46; the sums of a row are far from the end of their int32 lanes."""
UNIT = 3 * 2**12
"""|u| of a row that has one element off the mean: what leaves room for the bias within 2^14."""
MAX_BIAS = 2**12 - 1
MAX_GAIN = 2**14 - 1
BLOCK_ROWS = 16
"""Rows between one stage and the next."""


class Columns(NamedTuple):
    """The columns' parameters as the kernels read them: int16, padded with zeros to a multiple of 64."""

    gain: np.ndarray
    bias: np.ndarray
    offset: np.ndarray


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
        mode = spelled(Rounding, rounding, "rounding")
        if mode is Rounding.STOCHASTIC:
            raise SpecError("rounding", rounding, "half_away, half_even or floor")
        n = gamma.size
        step, step_out = positive(x_scale, "x_scale"), positive(out_scale, "out_scale")
        unit, x_multiplier, residual_multiplier = step / 128, 0, 0
        if residual_scale is not None:
            other = positive(residual_scale, "residual_scale")
            unit = max(step, other) / 64
            x_multiplier, residual_multiplier = (round(2**14 * s / max(step, other)) for s in (step, other))
            if min(x_multiplier, residual_multiplier) == 0:
                raise SpecError("residual_scale", residual_scale, f"within a factor of 2^14 of x_scale, {x_scale}")
        epsilon = max(1, round(n * positive(eps, "eps") / unit / unit))
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
        parts = (a.astype(np.int16) for a in (gain, bias, offset))
        return cls(*parts, epsilon, x_multiplier, residual_multiplier, mode)

    @property
    def cols(self) -> int:
        """Columns of the rows it normalizes."""
        return int(self.gain.size)

    @cached_property
    def columns(self) -> Columns:
        """The kernels' view: gains doubled for floor, offsets raised by 128 so that results are unsigned."""
        width = -(-self.cols // 64) * 64
        padded = np.zeros((3, width), np.int16)
        padded[0, : self.cols] = self.gain * (2 if self.rounding is Rounding.FLOOR else 1)
        padded[1, : self.cols] = self.bias
        padded[2] = 128
        padded[2, : self.cols] += self.offset
        return Columns(*padded)

    @cached_property
    def plan(self) -> np.ndarray:
        """(4,) int64: code of `rowcode.normalize`, epsilon, and the two multipliers."""
        codes = (BYTES_NEAREST, BYTES_FLOOR) if self.residual_multiplier == 0 else (WORDS_NEAREST, WORDS_FLOOR)
        code = codes[self.rounding is Rounding.FLOOR]
        return np.array([code, self.epsilon, self.x_multiplier, self.residual_multiplier], np.int64)


class LayerNormFixed(_LayerNorm):
    """Layer norm with 8-bit fixed-point gamma and beta, as FQ-BERT's core has them (arXiv:2103.02800, section II-B)."""

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

    I-BERT (arXiv:2101.01321, section 3.5) takes floor(sqrt) by Newton's iteration, exactly, and divides by it. Its code
    keeps 32 bits where this keeps 16.
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
        array = np.asarray(value, np.float64)
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
    """(e, D, R) of V = squares, 1 <= V < 2^46: V 4^e < 2^30 where that is possible, D = floor(sqrt(V 4^e)), R = 3 2^27 / D.

    Newton's iteration for y = 1 / sqrt(w), y' = y (3 - w y^2) / 2, w in [1/4, 1) by a shift of V, from the linear
    estimate 2.1327 - 1.2187 w, 9 % off at most. An error eps becomes 1.5 eps^2: 1.2 %, 0.02 %, 6e-8 after three steps.
    So D is at most one too small, and 3 2^27 / D four: comparisons with V and 3 2^27 make both exact.
    """
    bits = bit_length(squares)
    e = max((30 - bits) >> 1, 0)
    whole = squares << (2 * e)
    half_bits = (bit_length(whole) + 1) >> 1
    w = (whole << 16) >> (2 * half_bits - 16)  # 2^32 w; whole < 2^46
    y = 2289969166 - ((w * 319475) >> 20)  # 2^30 y
    for _ in range(3):
        y = (y * (3 * 2**28 - ((w * ((y * y) >> 32)) >> 32))) >> 29
    y -= 8
    root = ((w * y) >> 32) >> (30 - half_bits)
    root += np.int64((root + 1) * (root + 1) <= whole)
    quotient = (3 * 2**27 * y) >> (30 + half_bits)
    rest = 3 * 2**27 - quotient * root
    for _ in range(4):
        more = np.int64(rest >= root)
        quotient += more
        rest -= more * root
    return e, root, quotient


@atom
def _constants(sums: np.ndarray, rows: np.ndarray, count: int, n: int, unit: int, epsilon: int) -> None:
    """(unit, center, factor) of `rowcode.normalize` for each row, from sum and sum of squares of x, h = unit x.

    The division by 2 n, of a number below 2^16 n, is by a multiplication with 2^48 / (2 n), rounded up: the error stays
    below 2^16 n / 2^48 <= 1 / (2 n).
    """
    inverse = (2**48 + 2 * n - 1) // (2 * n)
    for r in range(count):
        total, squares = sums[r, 0] * unit, sums[r, 1] * unit * unit
        mean = (((2 * total + n + (n << 15)) * inverse) >> 48) - 2**14
        e, _, factor = norm_and_reciprocal(squares - 2 * mean * total + n * mean * mean + epsilon)
        rows[r, 0] = unit << e
        rows[r, 1] = mean << e
        rows[r, 2] = factor


@atom
def _layer_norm_rows(
    first: int, last: int, plan: np.ndarray, gain: np.ndarray, bias: np.ndarray, offset: np.ndarray,
    x: np.ndarray, y: np.ndarray, out: np.ndarray
) -> int:  # fmt: skip
    """Rows first to last - 1 of x, y (rows, n) into out; y is (1, n) and not read where there is no residual."""
    n, width = x.shape[1], gain.size
    blocks = width // 64
    residual = plan[3] > 0
    sums, rows = np.zeros((BLOCK_ROWS, 2), np.int64), np.zeros((BLOCK_ROWS, 3), np.int64)
    staged = np.zeros((2 if residual else BLOCK_ROWS, width), np.int8)
    words = np.empty((BLOCK_ROWS if residual else 1, width), np.int16)
    finished = np.empty((NORMALIZED_ROWS, width), np.int8)
    saturated = 0
    for top in range(first, last, BLOCK_ROWS):
        count = min(BLOCK_ROWS, last - top)
        for r in range(count):
            if residual:
                aligned_moments(row_at(x, top + r, staged, 0), row_at(y, top + r, staged, 1), blocks, plan[2], plan[3],
                                words[r].ctypes.data, sums[r].ctypes.data)  # fmt: skip
            else:
                byte_moments(row_at(x, top + r, staged, r), blocks, sums[r].ctypes.data)
        _constants(sums, rows, count, n, 1 if residual else 128, plan[1])
        source, source_row_bytes = words.ctypes.data, 2 * width
        if not residual:
            source, source_row_bytes = (x[top].ctypes.data, n) if n == width else (staged.ctypes.data, width)
        for r in range(0, count, NORMALIZED_ROWS):
            height = min(NORMALIZED_ROWS, count - r)
            target = out[top + r].ctypes.data if n == width else finished.ctypes.data
            saturated += normalize(plan[0], height, source + r * source_row_bytes, source_row_bytes, blocks,
                                   rows[r].ctypes.data, gain.ctypes.data, bias.ctypes.data, offset.ctypes.data,
                                   target, width)  # fmt: skip
            if n != width:
                for i in range(height):
                    out[top + r + i] = finished[i, :n]
    return saturated


@kernel
def _layer_norm(*job: Any) -> int:
    return _layer_norm_rows(0, job[4].shape[0], *job)


@parallel_kernel
def _layer_norm_parallel(parts: int, *job: Any) -> int:
    saturated = 0
    rows = job[4].shape[0]
    for part in numba.prange(parts):
        first, last = part_start(rows, parts, part, BLOCK_ROWS), part_start(rows, parts, part + 1, BLOCK_ROWS)
        if first < last:
            saturated += _layer_norm_rows(first, last, *job)
    return saturated


def layer_norm(
    x: Any,
    norm: LayerNormFixed | LayerNormIBert,
    *,
    residual: Any = None,
    threads: int = 1,
    out: np.ndarray | None = None,
) -> Quantized:
    """(int8 of the shape of x, how many had to be clamped): layer norm of x, or of x + residual, over the last axis.

    x, residual: int8 (..., n) of one shape; what is not contiguous is copied once. A row of equal elements gives beta.
    out: a contiguous array to write to. Raises SpecError for another n than that of `norm`, and for a residual where
    `norm` has no scale for it or none where it has.
    """
    rows, shape = contiguous_rows(x, "x", ("int8",))
    if rows.shape[1] != norm.cols:
        raise SpecError("x: shape", shape, f"(..., {norm.cols})")
    second = rows[:1]
    if (residual is None) != (norm.residual_multiplier == 0):
        legal = "an array, as the parameters have a residual_scale"
        raise SpecError("residual", type(residual).__name__, legal if residual is None else "None: no residual_scale")
    if residual is not None:
        second, second_shape = contiguous_rows(residual, "residual", ("int8",))
        if second_shape != shape:
            raise SpecError("residual: shape", second_shape, f"that of x, {shape}")
    result = check_out(out, shape, "int8")
    job = (norm.plan, *norm.columns, rows, second, result.reshape(rows.shape))
    if checked_threads(threads) == 1:
        saturated = _layer_norm(*job)
    else:
        saturated = on_threads(threads, _layer_norm_parallel, threads, *job)
    return Quantized(result, int(saturated))
