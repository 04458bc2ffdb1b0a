"""What the row operators share: rows checked and laid out for the kernels, which work on whole blocks of 64 bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from accelsim.errors import SpecError
from accelsim.jit import atom
from accelsim.numerics.arrays import as_numpy, dtype_name
from accelsim.numerics.rounding import Rounding
from accelsim.numerics.rowcode import copy_bytes
from accelsim.numerics.scaling import spelled


def contiguous_rows(array: Any, name: str, dtypes: Iterable[str]) -> tuple[np.ndarray, tuple[int, ...]]:
    """(the array as contiguous rows (rows, cols), its shape): where it is not contiguous already, a copy."""
    found = as_numpy(array, name, dtypes)
    shape = found.shape
    if found.ndim != 2 or not found.flags.c_contiguous:
        if found.ndim == 0:
            raise SpecError(f"{name}: shape", shape, "(..., columns)")
        found = np.ascontiguousarray(found).reshape(-1, shape[-1])
    return found, shape


def check_out(out: Any, shape: tuple[int, ...], dtype: str, *inputs: np.ndarray) -> np.ndarray:
    """`out`, or a new array where it is None.

    Raises SpecError if it is no array of that shape and dtype, not contiguous, not to be written to, or lies in the
    memory of an input, which is read more than once.
    """
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or dtype_name(out.dtype) != dtype or out.shape != shape:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise SpecError("out", got, f"a numpy array, {dtype} {shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise SpecError("out", f"strides {out.strides}", "a contiguous array that may be written to")
    if any(np.may_share_memory(out, array) for array in inputs):
        raise SpecError("out", "memory of an input", "an array of its own")
    return out


def positive(value: Any, name: str, or_zero: bool = False) -> float:
    """The number as a float; raises SpecError if it is none, not finite, or not positive, or not zero where it may."""
    number = not isinstance(value, bool) and isinstance(value, int | float | np.integer | np.floating)
    if not number or not math.isfinite(value) or value < 0 or (value == 0 and not or_zero):
        raise SpecError(name, value, f"a finite number {'>=' if or_zero else '>'} 0")
    return float(value)


def deterministic(rounding: Any) -> Rounding:
    """The rounding mode; raises SpecError for an unknown name, and for stochastic, which no row operator has."""
    mode: Rounding = spelled(Rounding, rounding, "rounding")
    if mode is Rounding.STOCHASTIC:
        raise SpecError("rounding", rounding, "half_away, half_even or floor")
    return mode


@atom
def row_at(address: int, cols: int, r: int, staged: int, width: int, slot: int) -> int:
    """Address of row r of the bytes at `address`, or of a copy in slot `slot` of `staged`, whose rows are `width` long.

    It is copied where rows are shorter than whole blocks; what is behind them in the slot stays.
    """
    if cols == width:
        return address + r * cols
    copy_bytes(address + r * cols, staged + slot * width, cols)
    return staged + slot * width
