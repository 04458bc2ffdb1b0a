"""Speed of the integer kernels: share of the machine's own peak, ratio to numpy, PyTorch and ONNX Runtime in one run.

    python benchmarks/gemm.py [--small] [--json] [--threads 1 2]

Contenders take turns, block by block; best and median of all timed calls. Writes benchmarks/results/gemm.json, or
gemm-partial.json with --small. What the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from speed import RESULTS, machine

WEIGHT_SHAPES = (
    (128, 768, 768),
    (128, 768, 3072),
    (128, 3072, 768),
    (512, 1024, 4096),
    (4096, 1024, 1024),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
)
ATTENTION_SHAPES = (
    ("scores int8", 12, 128, 64, 128),
    ("scores uint8", 12, 128, 64, 128),
    ("context uint8", 12, 128, 128, 64),
)
ROW_SHAPES = ((1536, 128), (512, 768))
RIVALS = ("numpy float32", "torch float32", "torch._int_mm", "onnxruntime")
PEAK = "peak"
OURS = "int8"
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Set on some machines to keep old OpenBLAS builds from wrong results; they slow a current numpy, a rival here."""


def gemm_calls(shape: tuple[int, int, int], threads: int, rng: np.random.Generator) -> dict[str, Any]:
    """Contenders for a (m, k) x (k, n) with packed weights."""
    from accelsim_experiments import rivals

    from accelsim.numerics import PackedWeights, Requantizer, available, gemm, gemm_requantized
    from accelsim.numerics.peak import peak_call

    m, k, n = shape
    a = rng.integers(-128, 128, (m, k)).astype(np.int8)
    w = rng.integers(-128, 128, (n, k)).astype(np.int8)
    w8 = PackedWeights.pack(w, bits=8)
    w4, w2 = (PackedWeights.pack((w >> (8 - bits)).astype(np.int8), bits=bits) for bits in (4, 2))
    scale = np.full(n, 40.0 / (74 * 74 * math.sqrt(k)))
    table = np.arange(256, dtype=np.uint8).view(np.int8)

    def to_int8(scale_format: str, rounding: str, table: np.ndarray | None = None) -> Requantizer:
        return Requantizer.of(scale, scale_format=scale_format, rounding=rounding, dtype="int8", table=table)

    fused = {
        "fused fixed half_away": to_int8("fixed", "half_away"),
        "fused fixed half_even": to_int8("fixed", "half_even"),
        "fused float32 half_even": to_int8("float32", "half_even"),
        "fused fixed half_away, table": to_int8("fixed", "half_away", table),
    }
    calls: dict[str, Any] = {
        OURS: lambda: gemm(a, w8, threads=threads),
        "int4": lambda: gemm(a, w4, threads=threads),
        "int2": lambda: gemm(a, w2, threads=threads),
    }
    for name, requantizer in fused.items():
        calls[name] = lambda r=requantizer: gemm_requantized(a, w8, r, threads=threads)
    for path in available()[1:]:
        calls[path] = lambda p=path: gemm(a, w8, threads=threads, path=p)
    calls.update(rivals.gemm(a, w, threads))
    peak = peak_call(None, threads)
    if peak is not None:
        calls[PEAK] = peak[0]
    return calls


def attention_calls(
    what: str, shape: tuple[int, int, int, int], threads: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Contenders for a batched product of two activations; scores read the second one transposed, as keys lie."""
    from accelsim_experiments import rivals

    from accelsim.numerics import Requantizer, available, matmul, matmul_requantized
    from accelsim.numerics.peak import peak_call

    heads, m, k, n = shape
    scores = what.startswith("scores")
    a = rng.integers(-128, 128, (heads, m, k)).astype(np.int8)
    a = a.view(np.uint8) if what.endswith("uint8") else a
    b = rng.integers(-128, 128, (heads, n, k) if scores else (heads, k, n)).astype(np.int8)
    requantizer = Requantizer.of(1e-3, scale_format="fixed", rounding="half_away", dtype="int8")
    calls: dict[str, Any] = {
        OURS: lambda: matmul(a, b, transpose_b=scores, threads=threads),
        "fused fixed half_away": lambda: matmul_requantized(a, b, requantizer, transpose_b=scores, threads=threads),
    }
    for path in available()[1:]:
        calls[path] = lambda p=path: matmul(a, b, transpose_b=scores, threads=threads, path=p)
    calls.update(rivals.attention(a, b.swapaxes(1, 2) if scores else b, threads))
    peak = peak_call(None, threads)
    if peak is not None:
        calls[PEAK] = peak[0]
    return calls


def measure(threads: int, small: bool) -> dict[str, Any]:
    """Everything for one number of threads: run in a process of its own."""
    from accelsim_experiments import rivals

    from accelsim.numerics import select
    from accelsim.numerics.paths import target_cpu
    from accelsim.numerics.peak import peak_call

    rivals.set_threads(threads)
    rng = np.random.default_rng(2026)
    rounds, block_s = (2, 0.01) if small else (6, 0.03)
    peak = peak_call(None, threads)
    products = []
    jobs: list[tuple[str, tuple[int, ...]]] = [("", shape) for shape in WEIGHT_SHAPES[: 1 if small else None]]
    jobs += [(str(what), tuple(sizes)) for what, *sizes in ATTENTION_SHAPES]
    for what, shape in jobs:
        calls = attention_calls(what, shape, threads, rng) if what else gemm_calls(shape, threads, rng)
        seconds = rivals.interleaved_s(calls, rounds, block_s)
        operations = dict.fromkeys(seconds, 2.0 * math.prod(shape))
        if peak is not None:
            operations[PEAK] = peak[1]
        products.append(
            {
                "shape": f"{what} {'x'.join(map(str, shape))}".strip(),
                "seconds": {name: [min(s), statistics.median(s), len(s)] for name, s in seconds.items()},
                "gops": {name: operations[name] / min(s) / 1e9 for name, s in seconds.items()},
                "median_gops": {name: operations[name] / statistics.median(s) / 1e9 for name, s in seconds.items()},
            }
        )
        print(f"  {threads} thread(s): {what} {'x'.join(map(str, shape))}", file=sys.stderr)
    return {
        "threads": threads,
        "path": select(),
        "cpu": target_cpu(),
        "products": products,
        "rows": row_results(threads, rounds, block_s, rng),
    }


def row_results(threads: int, rounds: int, block_s: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Row operators against PyTorch's in float32."""
    from accelsim_experiments import rivals
    from accelsim_experiments.kernels import row_calls

    results = []
    for shape in ROW_SHAPES:
        x = rng.integers(-128, 128, shape).astype(np.int8)
        for operator, ours in row_calls(x, threads).items():
            calls = {**ours, **rivals.rows(operator, x)}
            seconds = rivals.interleaved_s(calls, rounds, block_s)
            results.append(
                {
                    "operator": operator,
                    "shape": list(shape),
                    "seconds": {name: [min(s), statistics.median(s), len(s)] for name, s in seconds.items()},
                }
            )
    return results


# --- processes --------------------------------------------------------------------------------------------------------

FIRST = """
import time
start = time.perf_counter()
import numpy as np
from accelsim.numerics import PackedWeights, gemm
imported = time.perf_counter()
w = PackedWeights.pack(np.ones((768, 768), np.int8), bits=8)
gemm(np.ones((128, 768), np.int8), w)
first = time.perf_counter()
gemm(np.ones((128, 768), np.int8), w)
print(imported - start, first - imported, time.perf_counter() - first)
"""


def process_times() -> dict[str, dict[str, float]]:
    """Seconds of a whole process, its import, its first and second product: with an empty cache, with a filled one."""
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("nothing compiled", "compiled before"):
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", FIRST],
                env={**os.environ, "NUMBA_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                check=True,
            )
            whole = time.perf_counter() - start
            imported, first, second = map(float, done.stdout.split())
            results[name] = {"process_s": whole, "import_s": imported, "first_s": first, "second_s": second}
    return results


def child(threads: int, small: bool) -> dict[str, Any]:
    """`measure` in a process with that many threads for every library."""
    number = str(threads)
    variables = {"OMP_NUM_THREADS": number, "OPENBLAS_NUM_THREADS": number, "MKL_NUM_THREADS": number}
    environment = {key: value for key, value in os.environ.items() if key not in UNSET}
    environment.update(variables, NUMBA_NUM_THREADS=number)
    command = [sys.executable, __file__, "--child", number, *(["--small"] if small else [])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# --- tables -----------------------------------------------------------------------------------------------------------


def best_rival(gops: dict[str, float]) -> tuple[str, float]:
    """The fastest rival and its speed."""
    name = max((r for r in RIVALS if r in gops), key=gops.__getitem__)
    return name, gops[name]


def product_table(run: dict[str, Any], which: str) -> list[str]:
    """Markdown rows of one run; `which` is gops (of the best call) or median_gops."""
    head = ["shape", "peak", "int8", "of peak", *RIVALS, "int8 / best rival", "int4 / int8", "portable / best rival"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    ratios = []
    for row in run["products"]:
        gops = row[which]
        rival = best_rival(gops)[1]
        ratios.append(gops[OURS] / rival)
        peak = gops.get(PEAK)
        cells = [
            row["shape"],
            f"{peak:.0f}" if peak else "",
            f"{gops[OURS]:.0f}",
            f"{gops[OURS] / peak:.0%}" if peak else "",
            *(f"{gops[name]:.0f}" if name in gops else "" for name in RIVALS),
            f"{ratios[-1]:.2f}",
            f"{gops['int4'] / gops[OURS]:.2f}" if "int4" in gops else "",
            f"{gops['portable'] / rival:.2f}" if "portable" in gops else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return [*lines, f"geometric mean of int8 / best rival: {mean:.3f}"]


def epilogue_table(run: dict[str, Any]) -> list[str]:
    """Time of the fused product over that of the one that stores int32, best call and median."""
    names = [name for name in run["products"][0]["seconds"] if name.startswith("fused")]
    lines = ["| shape | " + " | ".join(names) + " |", "| " + " | ".join(["---"] * (len(names) + 1)) + " |"]
    for row in run["products"]:
        seconds = row["seconds"]
        cells = [
            f"{seconds[n][0] / seconds[OURS][0]:.3f}, {seconds[n][1] / seconds[OURS][1]:.3f}" if n in seconds else ""
            for n in names
        ]
        lines.append(f"| {row['shape']} | " + " | ".join(cells) + " |")
    return lines


def rows_table(run: dict[str, Any]) -> list[str]:
    """Microseconds of the row operators, and how many times PyTorch's float32 takes (best, median)."""
    lines = ["| operator | rows | method | us | torch float32, us | ratio |", "| --- | --- | --- | --- | --- | --- |"]
    for row in run["rows"]:
        torch = row["seconds"].get("torch float32")
        for name, (best, median, _) in row["seconds"].items():
            if name != "torch float32":
                rival = f"{torch[0] * 1e6:.0f} | {torch[0] / best:.1f}, {torch[1] / median:.1f}" if torch else " | "
                shape = "x".join(map(str, row["shape"]))
                lines.append(f"| {row['operator']} | {shape} | {name} | {best * 1e6:.1f} | {rival} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one shape, few calls: does it run?")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.small)))
        return 0
    result = {"machine": machine(), "processes": process_times()}
    result["runs"] = [child(threads, options.small) for threads in options.threads]
    result["machine"]["load_at_end"] = os.getloadavg()[0]
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / ("gemm-partial.json" if options.small else "gemm.json")
    target.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))
        return 0
    print(result["machine"], result["processes"], sep="\n")
    for run in result["runs"]:
        print(f"\n{run['threads']} thread(s), path {run['path']}, GOP/s of the best call")
        print("\n".join(product_table(run, "gops")))
        print("\nof the median call")
        print("\n".join(product_table(run, "median_gops")))
        print("\nfused epilogue: time / int8 (best, median)")
        print("\n".join(epilogue_table(run)))
        print("\nrow operators")
        print("\n".join(rows_table(run)))
    print(f"\nwrote {target.relative_to(Path.cwd()) if target.is_relative_to(Path.cwd()) else target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
