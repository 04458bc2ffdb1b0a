"""Exact integer matrix products: 8-bit inputs by 8-, 4- or 2-bit weights into int32, or straight into 8-bit results.

    >>> import numpy as np
    >>> w = PackedWeights.pack(np.array([[1, -2], [3, 4], [5, 6]], np.int8), bits=8)
    >>> gemm(np.array([[1, 1], [2, -1]], np.int8), w).tolist()
    [[-1, 7, 11], [4, 2, 4]]

m rows of inputs, k products a sum, n columns of the result (features out).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from accelsim.errors import Infeasible, SpecError
from accelsim.numerics.arrays import Quantized, as_numpy, checked_threads, on_threads, whole_number
from accelsim.numerics.llvm import LANES
from accelsim.numerics.loops import BY_BATCH, BY_ROWS, BY_STRIPS, compiled_for
from accelsim.numerics.paths import select
from accelsim.numerics.scaling import Columns, Requantizer
from accelsim.numerics.weights import INT32_MAX, PackedWeights

INPUTS = ("int8", "uint8")
_NONE = np.zeros(1, np.int32)
NO_COLUMNS = Columns(np.zeros(6, np.int64), _NONE, _NONE, np.zeros(1, np.float32), np.zeros(256, np.uint8))
NO_BYTES_4D, NO_SUMS_4D = np.zeros((0, 0, 0, 0), np.uint8), np.zeros((0, 0, 0, 0), np.int32)
NO_BYTES, NO_ZEROS = np.zeros(0, np.uint8), np.zeros(1, np.int32)


def gemm(a: Any, w: PackedWeights, *, a_zero_point: int = 0, threads: int = 1, path: str | None = None) -> np.ndarray:
    """int32 (..., n): sum over k of (a - a_zero_point) (w - zero point) + bias, exactly.

    a: int8 or uint8 (..., k), any strides; a torch CPU tensor is read where it lies. (Three dimensions or more whose
    leading ones cannot be merged are copied once.) threads: of numba's. path: one of
    `paths.PATHS`, default the fastest that runs here; all give the same bits. Raises SpecError for wrong dtypes, shapes
    and names, Infeasible if a sum could leave int32.
    """
    return _weights_product(a, w, a_zero_point, None, threads, path)[0]


def gemm_requantized(
    a: Any,
    w: PackedWeights,
    requantizer: Requantizer,
    *,
    a_zero_point: int = 0,
    threads: int = 1,
    path: str | None = None,
) -> Quantized:
    """(8-bit (..., n), how many were clamped): `requantize(gemm(a, w), requantizer)`, sums never leaving the cache.

    Bias, requantization, clamping and a table (GELU) are applied to each block of sums as it is finished. Arguments and
    errors as of `gemm`.
    """
    out, saturated = _weights_product(a, w, a_zero_point, requantizer, threads, path)
    return Quantized(out, saturated)


def matmul(
    a: Any,
    b: Any,
    *,
    transpose_b: bool = False,
    a_zero_point: int = 0,
    b_zero_point: int = 0,
    threads: int = 1,
    path: str | None = None,
) -> np.ndarray:
    """int32 (..., m, n): sum over k of (a - a_zero_point) (b - b_zero_point), of two activations, as in attention.

    a: int8 or uint8 (..., m, k). b: int8 (..., k, n), or (..., n, k) with `transpose_b`. Leading dimensions broadcast;
    any strides. Raises as `gemm`.
    """
    return _activations_product(a, b, transpose_b, a_zero_point, b_zero_point, None, threads, path)[0]


def matmul_requantized(
    a: Any,
    b: Any,
    requantizer: Requantizer,
    *,
    transpose_b: bool = False,
    a_zero_point: int = 0,
    b_zero_point: int = 0,
    threads: int = 1,
    path: str | None = None,
) -> Quantized:
    """(8-bit (..., m, n), how many were clamped): `requantize(matmul(a, b), requantizer)` in one go."""
    out, saturated = _activations_product(a, b, transpose_b, a_zero_point, b_zero_point, requantizer, threads, path)
    return Quantized(out, saturated)


def _weights_product(
    a: Any, w: PackedWeights, a_zero_point: int, requantizer: Requantizer | None, threads: int, path: str | None
) -> tuple[np.ndarray, int]:
    inputs = as_numpy(a, f"{w.name}: a", INPUTS)
    if inputs.ndim == 0 or inputs.shape[-1] != w.k:
        raise SpecError(
            f"{w.name}: shape of a", inputs.shape, f"(..., {w.k}), as the weights are (n, k) = ({w.n}, {w.k})"
        )
    zero, largest = _input_zero(inputs, a_zero_point, f"{w.name}: a_zero_point")
    w.check_sums(largest)
    rows = inputs.reshape(1, 1, -1, w.k)
    strips, column_sums, bias, zeros = w.kernel_view
    out, saturated = _run(
        rows, zero, (strips, w.bits, column_sums, bias, zeros, NO_BYTES_4D), w.n, requantizer, threads, path
    )
    return out.reshape(*inputs.shape[:-1], w.n), saturated


def _activations_product(
    a: Any,
    b: Any,
    transpose_b: bool,
    a_zero_point: int,
    b_zero_point: int,
    requantizer: Requantizer | None,
    threads: int,
    path: str | None,
) -> tuple[np.ndarray, int]:
    left, right = as_numpy(a, "a", INPUTS), as_numpy(b, "b", ("int8",))
    if transpose_b:
        right = right.swapaxes(-1, -2) if right.ndim >= 2 else right
    if left.ndim < 2 or right.ndim < 2 or left.shape[-1] != right.shape[-2]:
        raise SpecError(
            "shapes of a and b",
            (np.shape(a), np.shape(b)),
            f"(..., m, k) and (..., {'n, k' if transpose_b else 'k, n'})",
        )
    try:
        lead = (
            left.shape[:-2]
            if left.shape[:-2] == right.shape[:-2]
            else np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        )
    except ValueError:
        raise SpecError("leading dimensions of a and b", (left.shape[:-2], right.shape[:-2]), "equal or 1") from None
    zero, largest = _input_zero(left, a_zero_point, "a_zero_point")
    b_zero = whole_number(b_zero_point, "b_zero_point", -128, 127)
    (m, k), n = left.shape[-2:], right.shape[-1]
    bound = k * largest * max(128 + b_zero, 127 - b_zero)
    if bound > INT32_MAX:
        raise Infeasible(f"matmul k = {k}: largest sum", bound, INT32_MAX, "in an int32", ("k",))
    zeros = _columns_of(n, b_zero) if b_zero else NO_ZEROS
    weights = (NO_BYTES, 8, NO_ZEROS, _columns_of(n, 0), zeros, _four(right.view(np.uint8), lead))
    out, saturated = _run(_four(left, lead), zero, weights, n, requantizer, threads, path)
    return out.reshape(*lead, m, n), saturated


@functools.lru_cache(maxsize=256)
def _columns_of(n: int, value: int) -> np.ndarray:
    """int32, n up to a multiple of 16: the same value for each column; not to be written to."""
    return np.full(-(-n // LANES) * LANES, value, np.int32)


def _four(array: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """The array with leading dimensions `lead`, brought to two: (batch, heads, ., .)."""
    if array.shape[:-2] != lead:
        array = np.broadcast_to(array, (*lead, *array.shape[-2:]))
    if len(lead) == 2:
        return array
    return array.reshape(-1, lead[-1] if lead else 1, *array.shape[-2:])


def _input_zero(a: np.ndarray, zero_point: Any, name: str) -> tuple[int, int]:
    """(zero point of the bytes as unsigned numbers, largest |a - zero point|)."""
    low, high = (-128, 127) if a.dtype == np.int8 else (0, 255)
    zero = whole_number(zero_point, name, low, high)
    return zero - low, max(zero - low, high - zero)


def _run(
    a: np.ndarray,
    zero: int,
    weights: tuple[Any, ...],
    n: int,
    requantizer: Requantizer | None,
    threads: int,
    path: str | None,
) -> tuple[np.ndarray, int]:
    """Product of a (batch, heads, m, k) with packed or dynamic weights, into int32 or requantized."""
    flip = 128 if a.dtype == np.int8 else 0
    batch, heads, m, _ = a.shape
    shape = (batch, heads, m, n)
    sums = np.empty(shape, np.int32) if requantizer is None else NO_SUMS_4D
    bytes_out = NO_BYTES_4D if requantizer is None else np.empty(shape, np.uint8)
    columns = NO_COLUMNS if requantizer is None else requantizer.columns(n)
    threads = checked_threads(threads)
    kernel = compiled_for(select(path), threads > 1)
    arguments = (a.view(np.uint8), flip, zero, *weights, sums, bytes_out, *columns)
    if threads == 1:
        saturated = kernel(*arguments)
    else:
        by = BY_BATCH if batch * heads >= threads else BY_ROWS if m >= 16 * threads else BY_STRIPS
        saturated = on_threads(threads, kernel, threads, by, *arguments)
    return (sums if requantizer is None else bytes_out.view(requantizer.result_dtype)), int(saturated)
