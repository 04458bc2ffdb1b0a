"""The limit of the GEMM: how many dot products of its instruction this processor does on registers alone."""

from __future__ import annotations

import time
from typing import Any

import numba
import numpy as np

from accelsim.jit import kernel, parallel_kernel
from accelsim.numerics.arrays import checked_threads, on_threads
from accelsim.numerics.llvm import AVX512_VNNI, AVX_VNNI, Kernel, peak_avx512_vnni, peak_avx_vnni, peak_registers
from accelsim.numerics.paths import select

ROUNDS = 20_000


@kernel
def _avx512_vnni(rounds: int) -> int:
    return peak_avx512_vnni(rounds)  # type: ignore[no-any-return]


@kernel
def _avx_vnni(rounds: int) -> int:
    return peak_avx_vnni(rounds)  # type: ignore[no-any-return]


@parallel_kernel
def _avx512_vnni_parallel(parts: int, rounds: int) -> Any:
    total = np.int64(0)
    for part in numba.prange(parts):
        total += peak_avx512_vnni(rounds + part)
    return total


@parallel_kernel
def _avx_vnni_parallel(parts: int, rounds: int) -> Any:
    total = np.int64(0)
    for part in numba.prange(parts):
        total += peak_avx_vnni(rounds + part)
    return total


LOOPS: dict[str, tuple[Kernel, Any, Any]] = {
    "avx512-vnni": (AVX512_VNNI, _avx512_vnni, _avx512_vnni_parallel),
    "avx-vnni": (AVX_VNNI, _avx_vnni, _avx_vnni_parallel),
}
"""Paths whose product is a single instruction."""


def peak_call(path: str | None = None, threads: int = 1) -> tuple[Any, float] | None:
    """(a call that only multiplies, its operations: 2 for each product), None where no single instruction does it."""
    name = select(path)
    if name not in LOOPS:
        return None
    what, serial, parallel = LOOPS[name]
    operations = 2.0 * ROUNDS * 4 * peak_registers(what) * what.lanes * 4 * threads
    if checked_threads(threads) == 1:
        return lambda: serial(ROUNDS), operations
    return lambda: on_threads(threads, parallel, threads, ROUNDS), operations


def peak_ops_per_s(path: str | None = None, threads: int = 1, repeats: int = 10) -> float | None:
    """Multiplications and additions per second of the path's instruction on registers, best of `repeats`."""
    found = peak_call(path, threads)
    if found is None:
        return None
    call, operations = found
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return operations / best
