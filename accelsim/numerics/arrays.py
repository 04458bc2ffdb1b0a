"""Arrays in and out of the kernels: torch tensors without a copy, dtypes and sizes checked, threads shared out."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from accelsim.errors import SpecError
from accelsim.jit import atom

SPIN = "10000"
"""Rounds an idle OpenMP thread spins before it sleeps: about 0.1 ms, the time between two operators of a model."""
PARALLEL = threading.Lock()
"""Held while numba's threads run: its built-in threading layer allows one parallel region at a time."""
COMPILING = threading.Lock()
"""Held while a loop is compiled, so that of two threads that need it first one waits for the other."""


@functools.cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """The dtype's name, of another byte order its code; numpy takes microseconds to find it, as long as a product."""
    return str(dtype.name if dtype.isnative else dtype.str)


class Quantized(NamedTuple):
    """8-bit values, and how many of them had to be clamped to the range of their format."""

    values: np.ndarray
    saturated: int


def as_numpy(array: Any, name: str, dtypes: Iterable[str], dimensions: int | None = None) -> np.ndarray:
    """The array as numpy sees it: a torch CPU tensor shares its memory, strides are kept, nothing is converted.

    Raises SpecError for what is no array, has another dtype than `dtypes`, no elements, or another number of
    dimensions.
    """
    if not isinstance(array, np.ndarray):
        try:
            array = np.asarray(array)
        except (TypeError, RuntimeError, ValueError) as error:
            raise SpecError(name, type(array).__name__, f"a numpy array or a torch CPU tensor ({error})") from None
    if dtype_name(array.dtype) not in dtypes:
        raise SpecError(f"{name}: dtype", dtype_name(array.dtype), f"one of {', '.join(dtypes)}")
    if dimensions is not None and array.ndim != dimensions:
        raise SpecError(f"{name}: shape", array.shape, f"{dimensions} dimensions")
    if array.size == 0:
        raise SpecError(f"{name}: shape", array.shape, "every dimension >= 1")
    found: np.ndarray = array
    return found


def real_numbers(value: Any, name: str, legal: str) -> np.ndarray:
    """The value as float64; raises SpecError with `legal` for what is no number nor an array of them."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, RuntimeError, ValueError):
        raise SpecError(name, value, legal) from None


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """The value as an int if it is an integer in [low, high]; raises SpecError otherwise."""
    if type(value) is int and low <= value <= high:
        return value
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise SpecError(name, value, f"an integer from {low} to {high}")
    return int(value)


def checked_threads(threads: Any) -> int:
    """The number of threads if numba has that many, which are then started; raises SpecError otherwise."""
    if threads == 1:
        return 1
    import numba

    count = whole_number(threads, "threads", 1, int(numba.config.NUMBA_NUM_THREADS))
    if count > 1:
        _start_threads()  # before a kernel is compiled or read from disk, which would start them
    return count


@functools.cache
def _start_threads() -> None:
    """Start numba's threads, telling GNU OpenMP to wait for work only briefly before it lets the core go.

    By default an idle thread spins for milliseconds: beside torch's own threads, on as many cores, each call would then
    wait for the scheduler. What the user has set stays; the variable is gone again when the threads run. numba also
    sets the number of threads of the OpenMP library, which torch may share: it is put back.
    """
    import numba

    library = _openmp()
    count = library.omp_get_max_threads() if library is not None else 0
    brief = not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)
    if brief:
        os.environ["GOMP_SPINCOUNT"] = SPIN
    try:
        numba.get_num_threads()
    finally:
        if brief:
            del os.environ["GOMP_SPINCOUNT"]
        if library is not None:
            library.omp_set_num_threads(count)


def _openmp() -> Any:
    """GNU OpenMP, if this process has loaded it; None otherwise."""
    import ctypes

    try:
        return ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except (OSError, AttributeError):
        return None


def on_threads(threads: int, parallel: Any, *args: Any) -> Any:
    """Result of the parallel kernel `parallel(*args)` on `threads` of numba's threads."""
    import numba

    with PARALLEL:
        before = numba.get_num_threads()
        if before == threads:  # the usual case; setting it costs as much as a small kernel
            return parallel(*args)
        numba.set_num_threads(threads)
        try:
            return parallel(*args)
        finally:
            numba.set_num_threads(before)


def array_type(element: Any, dimensions: int, layout: str = "C", written: bool = False) -> Any:
    """numba's type of an array; one that is not written to may be read-only, one of layout A has any strides."""
    from numba import types

    return types.Array(element, dimensions, layout, readonly=not written)


def for_types(dispatcher: Any, *argument_types: Any) -> Any:
    """The loop, compiled for these types and never for others: numba converts what fits and refuses what does not.

    Left alone it would compile a version, in seconds, for each layout of an array and for read-only ones.
    """
    with COMPILING:
        if not dispatcher.overloads:
            dispatcher.compile(argument_types)
            dispatcher.disable_compile()
    return dispatcher


@atom
def address_of(array: np.ndarray) -> int:
    """Address of the first element, signed: numba turns a choice between signed and unsigned numbers into a float."""
    address: int = np.int64(array.ctypes.data)  # type: ignore[assignment]
    return address


@atom
def part_start(total: int, parts: int, index: int, step: int) -> int:
    """Where part `index` of `parts` begins when `total` is dealt out in multiples of `step`, as evenly as possible."""
    steps = -(-total // step)
    return min(total, (steps * index // parts) * step)
