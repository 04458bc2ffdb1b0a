"""What the row operators share: rows checked and laid out for the kernels, which work on whole blocks of 64 bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from accelsim.errors import SpecError
from accelsim.jit import atom
from accelsim.numerics.arrays import as_numpy, dtype_name


def contiguous_rows(array: Any, name: str, dtypes: Iterable[str]) -> tuple[np.ndarray, tuple[int, ...]]:
    """(the array as contiguous rows (rows, cols), its shape): where it is not contiguous already, a copy."""
    found = as_numpy(array, name, dtypes)
    if found.ndim == 0:
        raise SpecError(f"{name}: shape", found.shape, "(..., columns)")
    return np.ascontiguousarray(found).reshape(-1, found.shape[-1]), found.shape


def check_out(out: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """`out`, or a new array where it is None. Raises SpecError if it is not a contiguous one of that shape and dtype."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or dtype_name(out.dtype) != dtype or out.shape != shape:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise SpecError("out", got, f"a numpy array, {dtype} {shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise SpecError("out", f"strides {out.strides}", "a contiguous array that may be written to")
    return out


def positive(value: Any, name: str) -> float:
    """The number as a float; raises SpecError if it is none, not finite, or not positive."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise SpecError(name, value, "a finite number > 0")
    if not (math.isfinite(value) and value > 0):
        raise SpecError(name, value, "a finite number > 0")
    return float(value)


@atom
def row_at(rows: np.ndarray, r: int, staged: np.ndarray, slot: int) -> int:
    """Address of row r, or of its copy in `staged` (slots, width) where rows are shorter than that; the rest stays."""
    n = rows.shape[1]
    if n == staged.shape[1]:
        address: int = rows[r].ctypes.data
        return address
    staged[slot, :n] = rows[r]
    copied: int = staged[slot].ctypes.data
    return copied
