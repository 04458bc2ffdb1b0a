"""Every integer kernel against its definition, its speed against PyTorch, ONNX Runtime and the processor's own limit.

    accelsim validate kernels

A row: operator, shape, path, mismatches against the reference (must be 0), error of an approximation with its published
bound, GOP/s of the best of a few calls, ratio to PyTorch and ONNX Runtime on the same job, share of the instruction's
peak. The references are int64 and float64 numpy and, where PyTorch is installed, its int64 product.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from accelsim_experiments import definitions, rivals

from accelsim import numerics
from accelsim.files import write_whole
from accelsim.numerics import (
    EmbeddingSum,
    GeluPolynomial,
    GeluTable,
    LayerNormFixed,
    LayerNormIBert,
    PackedWeights,
    Quantized,
    Requantizer,
    ResidualAdd,
    SoftmaxPolynomial,
    SoftmaxTable,
    available,
    gemm,
    gemm_requantized,
    matmul,
    requantize,
    select,
)
from accelsim.numerics.accuracy import approximation_errors
from accelsim.numerics.paths import NOT_BUILT, PATHS, target_cpu
from accelsim.numerics.peak import peak_ops_per_s

COLUMNS = (
    "operator",
    "shape",
    "path",
    "mismatches",
    "max_error",
    "error_bound",
    "bound_source",
    "gops",
    "ratio_torch",
    "ratio_onnxruntime",
    "share_of_peak",
)
"""gops: 10^9 operations per second, 2 for each product, 1 for each element of the other operators."""

ROUNDS, BLOCK_S = 3, 0.01


@dataclass(frozen=True)
class Case:
    """One row: `run` is checked against `reference()` and timed beside `others`.

    operations of one run; is_product: whether the peak of the path's instruction is its limit.
    """

    operator: str
    shape: tuple[int, ...]
    path: str
    run: Callable[[], np.ndarray | Quantized]
    reference: Callable[[], np.ndarray]
    operations: float
    others: dict[str, Callable[[], Any]] = field(default_factory=dict)
    is_product: bool = False


def exact_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64 product of integer arrays (..., m, k) and (..., k, n): by float64 where that is exact, else in int64."""
    k = a.shape[-1]
    if k * 256 * 256 < 2**53:
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    product: np.ndarray = a.astype(np.int64) @ b.astype(np.int64)
    return product


def requantized(sums: np.ndarray, requantizer: Requantizer) -> np.ndarray:
    """What `requantize` must give, for the integer scale formats and for float32, all but stochastic rounding."""
    rounding = requantizer.rounding.name.lower()
    if requantizer.scale_format.name == "FLOAT32":
        x = (sums.astype(np.float32) * requantizer.scale.astype(np.float32)).astype(np.float64)
        nearest = {"half_even": np.rint(x), "floor": np.floor(x), "half_away": np.trunc(x + np.copysign(0.5, x))}
        y = nearest[rounding]
    else:
        product = sums.astype(np.int64) * requantizer.multiplier.astype(np.int64)
        y = definitions.rounded(product, np.int64(1) << requantizer.shift.astype(np.int64), rounding)
    clamped = np.clip(y + requantizer.zero_point, requantizer.low, requantizer.high).astype(requantizer.dtype)
    return clamped if requantizer.table is None else requantizer.table[clamped.view(np.uint8)]


def product_cases(path: str, rng: np.random.Generator, timed: bool) -> Iterator[Case]:
    """GEMMs of every operand type on one path: a BERT shape, a ragged one, the worst operands."""
    for bits in (8, 4, 2):
        for kind in ("int8", "uint8") if bits == 8 else ("int8",):
            for m, k, n in ((128, 768, 768), (37, 131, 53), (3, 4096, 17)):
                a = rng.integers(0, 256, (m, k)).astype(np.uint8).view(kind)
                low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
                w = rng.integers(low, high + 1, (n, k)).astype(np.int8)
                if k == 4096:  # the largest sums there are
                    a[:], w[:] = (-128 if kind == "int8" else 255), low
                bias = rng.integers(-(2**20), 2**20, n).astype(np.int32)
                zero, zeros = (5, rng.integers(low, high + 1, n)) if m == 37 else (0, np.zeros(n, int))
                packed = PackedWeights.pack(w, bits=bits, bias=bias, zero_points=zeros)
                yield Case(
                    f"gemm {kind} x int{bits}" + (", zero points" if m == 37 else ", worst case" if m == 3 else ""),
                    (m, k, n),
                    path,
                    lambda a=a, packed=packed, zero=zero: gemm(a, packed, a_zero_point=zero, path=path),
                    lambda a=a, w=w, zero=zero, zeros=zeros, bias=bias: (
                        exact_product(a.astype(np.int64) - zero, (w.astype(np.int64) - zeros[:, None]).T) + bias
                    ),
                    2.0 * m * k * n,
                    rivals.gemm(a, w, 1) if timed and m == 128 and bits == 8 and kind == "int8" else {},
                    is_product=m == 128,
                )
    for shape, transpose in (((12, 128, 64, 128), True), ((12, 128, 128, 64), False)):
        heads, m, k, n = shape
        a = rng.integers(0, 256, (heads, m, k)).astype(np.uint8).view("int8" if transpose else "uint8")
        b = rng.integers(-128, 128, (heads, n, k) if transpose else (heads, k, n)).astype(np.int8)
        plain = b.swapaxes(1, 2) if transpose else b
        yield Case(
            "matmul, scores" if transpose else "matmul, context",
            shape,
            path,
            lambda a=a, b=b, transpose=transpose: matmul(a, b, transpose_b=transpose, path=path),
            lambda a=a, plain=plain: exact_product(a, plain),
            2.0 * math.prod(shape),
            rivals.attention(a, plain, 1) if timed else {},
            is_product=True,
        )
    a, w = rng.integers(-128, 128, (128, 768)).astype(np.int8), rng.integers(-128, 128, (3072, 768)).astype(np.int8)
    packed = PackedWeights.pack(w, bits=8)
    table = rng.permutation(256).astype(np.uint8).view(np.int8)
    scale = rng.uniform(5e-5, 2e-4, 3072)
    fused = Requantizer.of(scale, scale_format="fixed", rounding="half_away", dtype="int8", table=table)
    yield Case(
        "gemm int8 x int8, requantized, table",
        (128, 768, 3072),
        path,
        lambda: gemm_requantized(a, packed, fused, path=path),
        lambda: requantized(exact_product(a, w.T), fused),
        2.0 * 128 * 768 * 3072,
        is_product=True,
    )


def requantize_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Every scale format and rounding on random sums with many ties."""
    sums = rng.integers(-(2**31), 2**31, (128, 768)).astype(np.int32)
    sums[::2] >>= 12
    sums[:8] = (np.arange(8 * 768).reshape(8, 768) - 3072) << 8
    for scale_format in ("float32", "fixed", "scale8", "power_of_two"):
        for rounding in ("half_away", "half_even", "floor"):
            scale = np.where(np.arange(768) % 3 == 0, 2.0**-9, rng.uniform(1e-5, 1e-2, 768))
            to_int8 = Requantizer.of(scale, scale_format=scale_format, rounding=rounding, dtype="int8", zero_point=3)
            yield Case(
                f"requantize {scale_format}, {rounding}",
                sums.shape,
                "vectors",
                lambda to_int8=to_int8: requantize(sums, to_int8),
                lambda to_int8=to_int8: requantized(sums, to_int8),
                float(sums.size),
            )


SCORE_SCALE, X_SCALE, OUT_SCALE = 0.06, 0.04, 0.03
"""Steps of the 8-bit numbers in the rows below: scores to 7.6, activations to 5.1, results of a layer norm to 3.8."""


def row_operators(x: np.ndarray) -> Iterator[tuple[str, str, Any, Callable[..., Any], tuple[Any, ...]]]:
    """(operator of PyTorch, method, parameters, function, its inputs) for x int8 (rows, cols)."""
    cols = x.shape[1]
    rng = np.random.default_rng(cols)
    division = {"bits": 8, "levels": 255, "rounding": "half_away"}
    yield "softmax", "table", SoftmaxTable.of(SCORE_SCALE, **division), numerics.softmax, (x,)
    yield "softmax", "polynomial", SoftmaxPolynomial.of(SCORE_SCALE, width=32, **division), numerics.softmax, (x,)
    norm = {"x_scale": X_SCALE, "out_scale": OUT_SCALE, "eps": 1e-12, "rounding": "half_away"}
    gamma, beta = rng.uniform(0.5, 1.5, cols), rng.uniform(-0.5, 0.5, cols)
    yield "layer_norm", "fixed", LayerNormFixed.of(gamma, beta, **norm), numerics.layer_norm, (x,)
    yield "layer_norm", "i-bert", LayerNormIBert.of(gamma, beta, **norm), numerics.layer_norm, (x,)
    fused = LayerNormFixed.of(gamma, beta, residual_scale=0.02, **norm)
    yield "layer_norm", "fixed, residual add fused", fused, numerics.layer_norm, (x, np.roll(x, 1, 0))
    steps = {"x_scale": X_SCALE, "out_scale": X_SCALE, "rounding": "half_away", "dtype": "int8"}
    yield "gelu", "table", GeluTable.of(**steps), numerics.gelu, (x,)
    yield "gelu", "polynomial", GeluPolynomial.of(width=32, kept=16, **steps), numerics.gelu, (x,)
    both = ResidualAdd.of(x_scale=X_SCALE, y_scale=0.02, out_scale=0.05, rounding="half_away")
    yield "add", "two scales", both, numerics.add, (x, np.roll(x, 1, 0))


def call_of(parameters: Any, function: Callable[..., Any], inputs: tuple[Any, ...], threads: int) -> Any:
    """A call of one row operator without arguments."""
    if len(inputs) == 2 and function is numerics.layer_norm:
        return lambda: function(inputs[0], parameters, residual=inputs[1], threads=threads)
    return lambda: function(*inputs, parameters, threads=threads)


def row_calls(x: np.ndarray, threads: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Operator of PyTorch -> method -> a call on x int8 (rows, cols)."""
    calls: dict[str, dict[str, Callable[[], Any]]] = {}
    for operator, method, parameters, function, inputs in row_operators(x):
        calls.setdefault(operator, {})[method] = call_of(parameters, function, inputs, threads)
    return calls


def row_cases(rng: np.random.Generator, timed: bool) -> Iterator[Case]:
    """Softmax, layer norm, GELU, residual add and embedding sum on the rows of a BERT, and on ragged ones."""
    for shape in ((1536, 128), (512, 768), (7, 131)):
        x = rng.integers(-128, 128, shape).astype(np.int8)
        x[0], x[1] = -128, 127
        for operator, method, parameters, function, inputs in row_operators(x):
            run = call_of(parameters, function, inputs, 1)
            reference: Callable[[], np.ndarray]
            if operator == "softmax":
                reference = lambda p=parameters, x=x: definitions.softmax(x, p)  # noqa: E731
            elif operator == "layer_norm":
                reference = lambda p=parameters, i=inputs: definitions.layer_norm(i[0], p, *i[1:])  # noqa: E731
            elif operator == "gelu":
                reference = lambda p=parameters, x=x: p.table[x.view(np.uint8)]  # noqa: E731
            else:
                reference = lambda p=parameters, i=inputs: definitions.weighted_sum(list(i), p)  # noqa: E731
            others = rivals.rows(operator, x) if timed and shape[0] > 7 else {}
            yield Case(f"{operator}, {method}", shape, "vectors", run, reference, float(x.size), others)
    mask = rng.random((7, 1, 131)) < 0.7
    mask[3] = False  # a row with everything masked
    x = rng.integers(-128, 128, (7, 5, 131)).astype(np.int8)
    table = SoftmaxTable.of(SCORE_SCALE, bits=8, levels=255, rounding="half_away")
    yield Case(
        "softmax, table, masked",
        x.shape,
        "vectors",
        lambda: numerics.softmax(x, table, mask=mask),
        lambda: definitions.softmax(x, table, mask),
        float(x.size),
    )
    tables = [rng.integers(-128, 128, (size, 768)).astype(np.int8) for size in (1000, 512, 2)]
    ids = [rng.integers(0, len(t), 512) for t in tables]
    total = EmbeddingSum.of((0.02, 0.01, 0.005), out_scale=0.02, rounding="half_even")
    yield Case(
        "embedding sum",
        (512, 768),
        "vectors",
        lambda: numerics.embedding_sum(ids, tables, total),
        lambda: definitions.weighted_sum([t[i] for t, i in zip(tables, ids, strict=True)], total),
        512.0 * 768,
    )


def approximation_rows() -> Iterator[dict[str, Any]]:
    """Largest error of each approximation (`numerics.accuracy`) as rows; a mismatch where it is above its bound.

    A bound that was printed to two digits is kept by an error that rounds to it.
    """
    for found in approximation_errors():
        bound = found["bound"]
        above = bound is not None and float(f"{found['error']:.1e}") > float(f"{bound:.1e}")
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        what = f"{found['operator']}, {found['method']}" + (f", in {found['unit']}" if found["unit"] else "")
        row.update(operator=what, shape="8-bit inputs", path="", mismatches=int(above))
        yield {**row, "max_error": found["error"], "error_bound": bound, "bound_source": found["bound_source"]}


def cases(seed: int, timed: bool) -> Iterator[Case]:
    """All rows, in the order they are printed."""
    for path in available():
        yield from product_cases(path, np.random.default_rng(seed), timed)
    yield from requantize_cases(np.random.default_rng(seed))
    yield from row_cases(np.random.default_rng(seed), timed)


@cache
def limit(path: str) -> float | None:
    """Operations per second of the path's instruction."""
    return peak_ops_per_s(path)


def row_of(case: Case, timed: bool) -> dict[str, Any]:
    """One row of the table."""
    result, reference = case.run(), case.reference()
    result = result.values if isinstance(result, Quantized) else result
    wrong = int((result != reference).sum()) if result.shape == reference.shape else max(result.size, 1)
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row.update(operator=case.operator, shape="x".join(map(str, case.shape)), path=case.path, mismatches=wrong)
    if timed:
        seconds = rivals.interleaved_s({"": case.run, **case.others}, ROUNDS, BLOCK_S)
        best = {name: min(values) for name, values in seconds.items()}
        row["gops"] = case.operations / best[""] / 1e9
        torch = [value for name, value in best.items() if name.startswith("torch")]
        row["ratio_torch"] = min(torch) / best[""] if torch else None
        row["ratio_onnxruntime"] = best["onnxruntime"] / best[""] if "onnxruntime" in best else None
        peak = limit(case.path) if case.is_product else None
        row["share_of_peak"] = row["gops"] * 1e9 / peak if peak else None
    return row


def table(seed: int = 0, timed: bool = True) -> Iterator[dict[str, Any]]:
    """Rows of the table as they are computed, with the keys of `COLUMNS`; what does not apply is None."""
    rivals.set_threads(1)
    for case in cases(seed, timed):
        yield row_of(case, timed)
    yield from approximation_rows()


# --- showing it -------------------------------------------------------------------------------------------------------


def about() -> list[str]:
    """Which paths run here and which was chosen, and what is not built."""
    chosen = select()
    lines = [f"integer kernels on {target_cpu()} (what numba compiles for); path: {chosen}"]
    for path in PATHS.values():
        there = (
            "chosen" if path.name == chosen else "available" if path.name in available() else "not on this processor"
        )
        lines.append(f"  {path.name:<12} {path.dot}: {there}")
    lines += [f"  {name:<12} {text}" for name, text in NOT_BUILT.items()]
    missing = [name for name in ("torch", "onnxruntime", "onnx") if not rivals.installed(name)]
    if missing:
        lines.append(f"  not installed, so not compared with: {', '.join(missing)}")
    return lines


HEADINGS = {
    "operator": "operator",
    "shape": "shape",
    "path": "path",
    "mismatches": "wrong",
    "max_error": "max error",
    "error_bound": "bound",
    "gops": "GOP/s",
    "ratio_torch": "/ torch",
    "ratio_onnxruntime": "/ ORT",
    "share_of_peak": "of peak",
}
"""Columns of the text, with what stands above them."""


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column == "share_of_peak":
        return f"{value:.0%}"
    if column in ("ratio_torch", "ratio_onnxruntime"):
        return f"{value:.2f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of an aligned table, and a last one that counts."""
    cells = [list(HEADINGS.values()), *([_cell(c, row[c]) for c in HEADINGS] for row in rows)]
    wide = [max(len(line[i]) for line in cells) for i in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, wide, strict=True)))
        for line in cells
    ]
    wrong = sum(row["mismatches"] for row in rows)
    return [line.rstrip() for line in lines] + [f"{len(rows)} rows, {wrong} mismatches"]


def save(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows as .csv or .json, through a temporary name."""

    def write(partial: Path) -> None:
        if path.suffix == ".json":
            partial.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
            return
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


def main() -> None:
    """Print the table."""
    print("\n".join([*about(), "", *text(list(table()))]))


if __name__ == "__main__":
    main()
