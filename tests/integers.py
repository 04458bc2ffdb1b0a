"""What the integer kernels must give, in Python and numpy integers that share no code with them.

`mismatches` counts where the kernels of the imported package differ: nowhere, unless one of them is wrong.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numba
import numpy as np

from accelsim import numerics
from accelsim.numerics import PackedWeights, Requantizer
from accelsim.numerics.weights import WEIGHT_RANGES

ROOT = Path(__file__).parent.parent
PATHS = numerics.available()
TWO_THREADS = numba.config.NUMBA_NUM_THREADS >= 2
INT32_MAX = 2**31 - 1
ROUNDINGS = ("half_away", "half_even", "floor", "stochastic")
INTEGER_FORMATS = ("fixed", "scale8", "power_of_two")
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


# --- products ---------------------------------------------------------------------------------------------------------


def exact(a, b, a_zero=0, b_zero=0, bias=0):
    """int64: sum over k of (a - a_zero) (b - b_zero) + bias, a (..., m, k), b (..., k, n), the last two by column."""
    return (np.asarray(a).astype(np.int64) - a_zero) @ (np.asarray(b).astype(np.int64) - b_zero) + bias


def exact_gemm(a, w: PackedWeights, a_zero=0):
    """int64 sums of inputs (..., k) by packed weights."""
    return exact(a, w.unpack().T, a_zero, w.zero_points.astype(np.int64), w.bias.astype(np.int64))


def numbers(rng, dtype, shape, low=None, high=None):
    """Random integers of a dtype; a third of the calls draw the extremes alone."""
    lowest, highest = LIMITS[dtype]
    low, high = lowest if low is None else low, highest if high is None else high
    if rng.integers(3) == 0:
        return rng.choice(np.array([low, high], dtype), shape)
    return rng.integers(low, high + 1, shape, dtype=dtype)


def weights(rng, n, k, bits, zeros="none", biased=False, name="weights"):
    """Random packed weights. zeros: none, one or each (a zero point for every column)."""
    low, high = WEIGHT_RANGES[bits]
    count = {"none": None, "one": (), "each": n}[zeros]
    points = 0 if count is None else rng.integers(low, high + 1, count)
    bias = rng.integers(-(2**20), 2**20, n, dtype=np.int32) if biased else None
    return PackedWeights.pack(
        numbers(rng, "int8", (n, k), low, high), bits=bits, zero_points=points, bias=bias, name=name
    )


LAYOUTS = (
    "plain",
    "rows apart",
    "rows 4096 apart",
    "columns apart",
    "transposed",
    "backwards",
    "one row",
    "one column",
    "odd address",
    "read-only",
)


def laid_out(x, layout):
    """x (..., rows, columns) as memory of another shape holds it; "one row", "one column": all become equal to it."""
    *lead, rows, columns = x.shape
    if layout in ("rows apart", "rows 4096 apart"):
        apart = columns + 5 if layout == "rows apart" else -(-columns // 4096) * 4096
        room = np.full((*lead, rows, apart), 77, x.dtype)
        room[..., :columns] = x
        return room[..., :columns]
    if layout == "columns apart":
        room = np.full((*lead, rows, columns, 3), 77, x.dtype)
        room[..., 1] = x
        return room[..., 1]
    if layout == "transposed":
        return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    if layout == "backwards":
        return np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1]
    if layout in ("one row", "one column"):
        return np.broadcast_to(x[..., :1, :] if layout == "one row" else x[..., :1], x.shape)
    if layout == "odd address":
        room = np.empty(x.size + 1, x.dtype)
        room[1:] = x.ravel()
        return room[1:].reshape(x.shape)
    result = x.copy()
    result.flags.writeable = layout != "read-only"
    return result


# --- requantization ---------------------------------------------------------------------------------------------------


def split_mix(seed, index):
    """Output number `index` of SplitMix64, 64 bits, as in its published C code."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def rounded(x, rounding, u=0):
    """The integer a number x, a Fraction, is rounded to; u in [0, 1) is the chance of stochastic rounding."""
    if rounding == "half_even":
        return round(x)
    if rounding == "half_away":
        away = math.floor(abs(x) + Fraction(1, 2))
        return away if x >= 0 else -away
    return math.floor(x + (u if rounding == "stochastic" else 0))


def rounded_products(sums, r: Requantizer):
    """Python integers of the shape of `sums` (rows, columns): sum x scale, rounded, before anything else."""
    rounding = r.rounding.name.lower()
    if r.scale_format.name == "FLOAT32":
        x = sums.astype(np.float32) * r.scale.astype(np.float32)
        wide = x.astype(np.float64)  # every float32 and its half are exact in float64
        if rounding == "half_even":
            return np.rint(wide).astype(np.int64).astype(object)
        if rounding == "half_away":
            return np.copysign(np.floor(np.abs(wide) + 0.5), wide).astype(np.int64).astype(object)
        floor = np.floor(x)
        result = floor.astype(np.int64)
        if rounding == "stochastic":
            draws = np.array([split_mix(r.seed, i) >> 40 for i in range(sums.size)], np.float32) / np.float32(2**24)
            result += x - floor > draws.reshape(sums.shape)
        return result.astype(object)
    scales = [Fraction(s) for s in np.broadcast_to(r.scale, sums.shape[1]).tolist()]
    shifts = np.broadcast_to(r.shift, sums.shape[1]).tolist()
    result = np.empty(sums.shape, object)
    for i, row in enumerate(sums.tolist()):
        for j, value in enumerate(row):
            u = 0
            if rounding == "stochastic":
                u = Fraction(split_mix(r.seed, i * len(row) + j) >> 64 - shifts[j], 2 ** shifts[j])
            result[i, j] = rounded(value * scales[j], rounding, u)
    return result


def requantized(sums, r: Requantizer):
    """(values, number of clamped) that `requantize` must give for sums (..., columns)."""
    sums = np.asarray(sums)
    flat = sums.reshape(-1, sums.shape[-1])
    shifted = rounded_products(flat, r) + r.zero_point
    inside = np.minimum(np.maximum(shifted, r.low), r.high)
    values = inside.astype(np.int64).astype(np.uint8)
    if r.table is not None:
        values = r.table.view(np.uint8)[values]
    return values.view(r.result_dtype).reshape(sums.shape), int((inside != shifted).sum())


def near_ties(scale, reach=140):
    """int32 sums around every half-integer that sum x scale can come close to, from -reach to reach."""
    exactly = Fraction(float(scale))
    middles = [(Fraction(2 * j + 1, 2)) / exactly for j in range(-reach, reach)]
    near = {math.floor(middle) + step for middle in middles for step in (-1, 0, 1, 2)}
    return sorted(s for s in near | {0, 1, -1} if -(2**31) <= s <= INT32_MAX)


def ties(sums, scale):
    """How many of the sums are half-integers once scaled, below and above zero."""
    exactly = Fraction(float(scale))
    halves = [s for s in sums if (s * exactly).denominator == 2]
    return sum(s < 0 for s in halves), sum(s > 0 for s in halves)


# --- all at once ------------------------------------------------------------------------------------------------------


def mismatches(path=None):
    """Number of wrong elements by check: a small sample of what the tests ask for, of kernels on one thread."""
    rng = np.random.default_rng(0)
    found = {}
    for bits in (8, 4, 2):
        low, high = WEIGHT_RANGES[bits]
        w = PackedWeights.pack(rng.integers(low, high + 1, (70, 67), dtype=np.int8), bits=bits)
        a = rng.integers(-128, 128, (19, 67), dtype=np.int8)
        found[f"{bits} bits"] = int((numerics.gemm(a, w, path=path) != exact_gemm(a, w)).sum())
    w = PackedWeights.pack(rng.integers(-128, 128, (70, 67), dtype=np.int8), bits=8)
    a = rng.integers(0, 256, (19, 67), dtype=np.uint8)
    found["unsigned"] = int((numerics.gemm(a, w, path=path) != exact_gemm(a, w)).sum())
    got = numerics.gemm(a, w, a_zero_point=131, path=path)
    found["input zero point"] = int((got != exact_gemm(a, w, 131)).sum())
    zeros = PackedWeights.pack(w.unpack(), bits=8, zero_points=rng.integers(-128, 128, 70))
    got = numerics.gemm(a, zeros, a_zero_point=131, path=path)
    found["weight zero points"] = int((got != exact_gemm(a, zeros, 131)).sum())
    biased = w.with_bias(rng.integers(-1000, 1000, 70, dtype=np.int32))
    found["bias"] = int((numerics.gemm(a, biased, path=path) != exact_gemm(a, biased)).sum())
    for name, transpose, zero in (("k by n", False, 0), ("n by k", True, -7)):
        b = rng.integers(-128, 128, (2, 67, 70), dtype=np.int8)
        right = np.ascontiguousarray(b.swapaxes(1, 2)) if transpose else b
        got = numerics.matmul(a, right, transpose_b=transpose, a_zero_point=3, b_zero_point=zero, path=path)
        found[f"activations {name}"] = int((got != exact(a, b, 3, zero)).sum())
    # with weights 1, 0, 0, 0 a sum is the input itself: the fused kernel meets every tie of the scales below
    one = PackedWeights.pack(np.eye(1, 4, dtype=np.int8), bits=8)
    inputs = np.zeros((256, 4), np.int8)
    inputs[:, 0] = np.arange(-128, 128)
    sums = exact_gemm(inputs, one)
    for kind, scale_format, scale in (("real", "float32", 0.75), ("wide", "fixed", 0.75), ("high", "fixed", 2.0**-3)):
        for rounding in ROUNDINGS:
            seed = 5 if rounding == "stochastic" else None
            choice = {"rounding": rounding, "dtype": "int8", "zero_point": 3, "low": -60, "high": 10, "seed": seed}
            r = Requantizer.of(scale, scale_format=scale_format, **choice)
            got, clamped = numerics.gemm_requantized(inputs, one, r, path=path)
            want, outside = requantized(sums, r)
            found[f"{kind} {rounding}"] = int((got != want).sum())
            if rounding == "floor":
                found[f"{kind} clamped"] = abs(clamped - outside)
    sums = exact_gemm(a, w)
    scales = rng.uniform(1e-3, 1e-2, 70)
    for name, table in (("scales", None), ("table", rng.integers(0, 256, 256, dtype=np.uint8))):
        r = Requantizer.of(scales, scale_format="fixed", rounding="floor", dtype="int8", table=table)
        got, _ = numerics.gemm_requantized(a, w, r, path=path)
        found[name] = int((got != requantized(sums, r)[0]).sum())
    return found


def wrong_on_threads(seed, threads):
    """Number of wrong elements of a few products: a job for a pool of threads or processes."""
    rng = np.random.default_rng(seed)
    wrong = 0
    for m, k, n in ((37, 64, 80), (5, 67, 33), (64, 200, 100)):
        w, a = weights(rng, n, k, 8, biased=True), numbers(rng, "int8", (m, k))
        wrong += int((numerics.gemm(a, w, threads=threads) != exact_gemm(a, w)).sum())
    return wrong


# --- other processes --------------------------------------------------------------------------------------------------


def in_a_process(script, *arguments, package=ROOT, timeout=300, **environment):
    """What the Python text prints as JSON, run in a process of its own with the package found in folder `package`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]), **environment}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=package, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return json.loads(done.stdout)
