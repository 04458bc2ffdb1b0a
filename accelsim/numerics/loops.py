"""The compiled loops of the GEMM: pack the inputs, run panels, finish the sums. `product.py` checks and calls them.

Every product becomes unsigned x signed bytes: int8 inputs are shifted by 128, and their zero point with them. With
a' = a + shift and za' = za + shift,
    sum (a - za) (w - zw) = sum a' w - za' sum w - zw sum (a' - za'),
where the second term is a constant of the column, put into the registers before the first product, and the third is
needed only where weights have zero points.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from accelsim.jit import atom, kernel, parallel_kernel
from accelsim.numerics.arrays import address_of, array_type, for_types, part_start
from accelsim.numerics.llvm import (
    copy_flipped,
    expand_weights,
    interleave_rows,
    panel_avx2,
    panel_avx512_vnni,
    panel_avx_vnni,
    panel_portable,
    transpose_words,
)
from accelsim.numerics.scaling import COLUMN_TYPES, finish_block

INPUT_BLOCK_BYTES = 2**18
"""Packed inputs that are multiplied by all weights before the next rows are packed: a part of a second-level cache."""
CHUNK_ROWS = 32
"""Rows whose sums wait in a scratch buffer to be finished; it stays in the first-level cache."""
WIDE = 48
"""Columns of the widest panel: 3 strips of 16."""
BY_BATCH, BY_ROWS, BY_STRIPS = 0, 1, 2
"""What threads share out."""


@atom
def aligned(size: int) -> np.ndarray:
    """(size,) uint8, not initialised, at an address that is a multiple of 64."""
    raw = np.empty(size + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


@atom
def pack_inputs(a: np.ndarray, flip: int, first: int, last: int, target: np.ndarray, row_bytes: int) -> None:
    """Rows first to last - 1 of a (m, k), any strides, each byte ^ flip, k padded with zeros to a multiple of 4."""
    k = a.shape[1]
    whole = k // 64 * 64 if a.strides[1] == 1 else 0
    for r in range(first, last):
        at = (r - first) * row_bytes
        if whole:
            copy_flipped(a.ctypes.data + r * a.strides[0], target.ctypes.data + at, whole, flip)
        for i in range(whole, k):
            target[at + i] = a[r, i] ^ np.uint8(flip)
        for i in range(k, -(-k // 4) * 4):
            target[at + i] = 0


@atom
def pack_strips(b: np.ndarray, target: np.ndarray) -> None:
    """b (k, n) bytes, any strides, into strips (n / 16 up, k / 4 up, 16, 4), padded with zeros."""
    k, n = b.shape
    groups = -(-k // 4)
    for s in range(-(-n // 16)):
        at = s * groups * 64
        done = 0
        if n - 16 * s >= 16:
            source = b.ctypes.data + 16 * s * b.strides[1]
            if b.strides[0] == 1:
                for g in range(0, k // 64 * 16, 16):
                    transpose_words(source + 4 * g, b.strides[1], target.ctypes.data + at + 64 * g)
                done = k // 64 * 16
            elif b.strides[1] == 1:
                for g in range(k // 4):
                    interleave_rows(source + 4 * g * b.strides[0], b.strides[0], target.ctypes.data + at + 64 * g)
                done = k // 4
        for g in range(done, groups):
            for c in range(16):
                for i in range(4):
                    inside = 16 * s + c < n and 4 * g + i < k
                    target[at + 64 * g + 4 * c + i] = b[4 * g + i, 16 * s + c] if inside else np.uint8(0)


@atom
def _multiply(
    panel: Any,
    at_once: int,
    part: int,
    parts: int,
    by: int,
    a: np.ndarray,
    flip: int,
    a_zero: int,
    w: np.ndarray,
    bits: int,
    w_sums: np.ndarray,
    bias: np.ndarray,
    w_zero: np.ndarray,
    b: np.ndarray,
    sums: np.ndarray,
    bytes_out: np.ndarray,
    *columns: Any,
) -> int:
    """Part `part` of `parts` of the product, shared out by batch, rows or strips; returns how many sums were clamped.

    a (B, C, m, k) bytes. w: packed strips, flat, of one weight matrix for the whole batch; or empty, and b (B, C, k, n)
    holds signed bytes to be packed here. w_sums, bias, w_zero (n up to a multiple of 16) int32; w_zero (1,) where all
    zero points are 0, b's is then in it. sums (B, C, m, n) int32, or bytes_out (B, C, m, n) uint8 and sums empty.
    """
    batch, heads, m, k = a.shape
    dynamic = w.size == 0
    requantized = sums.size == 0
    n = bytes_out.shape[3] if requantized else sums.shape[3]
    groups, strips = -(-k // 4), -(-n // 16)
    strip_bytes = groups * 8 * bits
    in_place = flip == 0 and k % 4 == 0 and a.strides[3] == 1 and a.strides[2] % 4096 != 0 and w_zero.size == 1
    row_bytes = (
        a.strides[2] if in_place else (-(-k // 64) | 1) * 64
    )  # odd in cache lines: rows fall into different sets
    first_pair, last_pair, first_row, last_row, first_strip, last_strip = 0, batch * heads, 0, m, 0, strips
    if by == BY_BATCH:
        first_pair, last_pair = part_start(batch * heads, parts, part, 1), part_start(batch * heads, parts, part + 1, 1)
    elif by == BY_ROWS:
        first_row, last_row = part_start(m, parts, part, 8), part_start(m, parts, part + 1, 8)
    else:
        first_strip, last_strip = part_start(strips, parts, part, at_once), part_start(strips, parts, part + 1, at_once)
    saturated = 0
    if first_pair < last_pair and first_row < last_row and first_strip < last_strip:
        blocks = -(-(last_row - first_row) * (k + 64) // INPUT_BLOCK_BYTES)
        block_rows = -(-(last_row - first_row) // (8 * blocks)) * 8
        inputs = aligned(64 if in_place else min(block_rows, last_row - first_row) * row_bytes)
        packed = aligned(strips * groups * 64 if dynamic else at_once * groups * 64 if bits < 8 else 64)
        if dynamic:
            w_sums = np.zeros(strips * 16, np.int32)
            ones = aligned(groups * 4)
            ones[:] = 1
        start = np.zeros(WIDE, np.int32)
        chunk = np.empty(CHUNK_ROWS * WIDE, np.int32)
        with_zeros = w_zero.size > 1
        row_sums = np.empty(block_rows if with_zeros else 1, np.int32)
        for pair in range(first_pair, last_pair):
            outer, inner = pair // heads, pair % heads
            if dynamic:
                pack_strips(b[outer, inner], packed)
            if dynamic and a_zero != 0:
                start[:] = 0
                for s in range(0, strips, at_once):
                    panel(1, min(at_once, strips - s), ones.ctypes.data, 0, packed.ctypes.data + s * groups * 64,
                          groups * 64, groups, start.ctypes.data, w_sums.ctypes.data + 64 * s, 0)  # fmt: skip
            for top in range(first_row, last_row, block_rows):
                bottom = min(top + block_rows, last_row)
                rows_at = address_of(inputs)
                if in_place:
                    rows_at = address_of(a) + outer * a.strides[0] + inner * a.strides[1] + top * row_bytes
                else:
                    pack_inputs(a[outer, inner], flip, top, bottom, inputs, row_bytes)
                if with_zeros:
                    for r in range(bottom - top):
                        total = 0
                        for i in range(k):
                            total += inputs[r * row_bytes + i]
                        row_sums[r] = total - k * a_zero
                s = first_strip
                while s < last_strip:
                    left = last_strip - s
                    wide = min(at_once, left)
                    if left == at_once + 1 and at_once > 2:  # two and two rather than three and a narrow one
                        wide = at_once - 1
                    strips_at = address_of(packed) + s * groups * 64
                    if not dynamic:
                        strips_at = address_of(w) + s * strip_bytes
                        if bits < 8:
                            expand_weights(strips_at, packed.ctypes.data, wide * groups, bits)
                            strips_at = address_of(packed)
                    for j in range(16 * wide):
                        start[j] = bias[16 * s + j] - a_zero * w_sums[16 * s + j]
                    cols = min(16 * wide, n - 16 * s)
                    if not requantized and not with_zeros and cols == 16 * wide:
                        panel(bottom - top, wide, rows_at, row_bytes, strips_at, groups * 64, groups,
                              start.ctypes.data, sums[outer, inner, top].ctypes.data + 64 * s, 4 * n)  # fmt: skip
                        s += wide
                        continue
                    for r in range(top, bottom, CHUNK_ROWS):
                        rows = min(CHUNK_ROWS, bottom - r)
                        panel(rows, wide, rows_at + (r - top) * row_bytes, row_bytes, strips_at, groups * 64,
                              groups, start.ctypes.data, chunk.ctypes.data, 4 * WIDE)  # fmt: skip
                        if with_zeros:
                            for i in range(rows):
                                for j in range(cols):
                                    chunk[i * WIDE + j] -= w_zero[16 * s + j] * row_sums[r - top + i]
                        if requantized:
                            index = ((pair * m) + r) * n + 16 * s
                            saturated += finish_block(columns, chunk.ctypes.data, 4 * WIDE, rows, cols, 16 * s,
                                bytes_out.ctypes.data + index, n, index
                            )  # fmt: skip
                        else:
                            for i in range(rows):
                                for j in range(cols):
                                    sums[outer, inner, r + i, 16 * s + j] = chunk[i * WIDE + j]
                    s += wide
    return saturated


# One module-level function for each path: numba keeps on disk only what closes over nothing.


@kernel
def _serial_avx512_vnni(*job: Any) -> int:
    return _multiply(panel_avx512_vnni, 3, 0, 1, BY_ROWS, *job)


@parallel_kernel
def _parallel_avx512_vnni(parts: int, by: int, *job: Any) -> int:
    saturated = 0
    for part in numba.prange(parts):
        saturated += _multiply(panel_avx512_vnni, 3, part, parts, by, *job)
    return saturated


@kernel
def _serial_avx_vnni(*job: Any) -> int:
    return _multiply(panel_avx_vnni, 1, 0, 1, BY_ROWS, *job)


@parallel_kernel
def _parallel_avx_vnni(parts: int, by: int, *job: Any) -> int:
    saturated = 0
    for part in numba.prange(parts):
        saturated += _multiply(panel_avx_vnni, 1, part, parts, by, *job)
    return saturated


@kernel
def _serial_avx2(*job: Any) -> int:
    return _multiply(panel_avx2, 1, 0, 1, BY_ROWS, *job)


@parallel_kernel
def _parallel_avx2(parts: int, by: int, *job: Any) -> int:
    saturated = 0
    for part in numba.prange(parts):
        saturated += _multiply(panel_avx2, 1, part, parts, by, *job)
    return saturated


@kernel
def _serial_portable(*job: Any) -> int:
    return _multiply(panel_portable, 1, 0, 1, BY_ROWS, *job)


@parallel_kernel
def _parallel_portable(parts: int, by: int, *job: Any) -> int:
    saturated = 0
    for part in numba.prange(parts):
        saturated += _multiply(panel_portable, 1, part, parts, by, *job)
    return saturated


KERNELS: dict[str, tuple[Any, Any]] = {
    "avx512-vnni": (_serial_avx512_vnni, _parallel_avx512_vnni),
    "avx-vnni": (_serial_avx_vnni, _parallel_avx_vnni),
    "avx2": (_serial_avx2, _parallel_avx2),
    "portable": (_serial_portable, _parallel_portable),
}
"""Path -> (kernel on the calling thread, kernel on numba's threads), of the arguments of `_multiply` from a on."""

_WORDS = array_type(types.int32, 1)
_JOB = types.StarArgTuple((
    array_type(types.uint8, 4, "A"), types.int64, types.int64,
    array_type(types.uint8, 1), types.int64, _WORDS, _WORDS, _WORDS, array_type(types.uint8, 4, "A"),
    array_type(types.int32, 4, written=True), array_type(types.uint8, 4, written=True), *COLUMN_TYPES,
))  # fmt: skip


@functools.cache
def compiled_for(path: str, threaded: bool) -> Any:
    """The kernel of a path, on the calling thread or on numba's, compiled once for inputs of any strides."""
    serial, parallel = KERNELS[path]
    return for_types(parallel, types.int64, types.int64, _JOB) if threaded else for_types(serial, _JOB)
