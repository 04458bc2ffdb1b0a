"""Times accelsim from inside one process: a job as JSON on stdin, one JSON object on stdout.

Jobs: {"do": "array"}, {"do": "gemm", "shape", "detail", "repeats"}, {"do": "trace", "model", "seq", "repeats"},
{"do": "graph", "model", "seq", "batch", "detail", "repeats"}. The first call is told apart from the repeats. Each
repeat gets a platform of its own (another clock), so that no remembered result answers it; the graph stays the same.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import Any

SETTINGS = {"dataflow": "ws", "fold_timing": "serial"}
PLATFORM = "systolic-32x32"


def array() -> dict[str, Any]:
    """Numbers of the platform that the other simulators are given too, and the versions that answer."""
    import numba
    import numpy as np

    import accelsim

    p: Any = accelsim.platform(PLATFORM, SETTINGS)
    return {
        "array": {
            "rows": p.rows,
            "cols": p.cols,
            "input_buffer_bytes": p.input_buffer.capacity_bytes,
            "weight_buffer_bytes": p.weight_buffer.capacity_bytes,
            "accumulator_bytes": p.accumulator.capacity_bytes,
            "dram_bytes_per_cycle": max(1, round(p.dram.bytes_per_cycle * p.dram.efficiency)),
        },
        "versions": {"numpy": np.__version__, "numba": numba.__version__},
    }


def simulated(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `accelsim.simulate` alone: the first call in this process and each repeat; cycles of the first."""
    import_wall = time.perf_counter()
    import accelsim
    from accelsim import simulate  # accelsim imports a name when it is first used: not within a measured call

    import_wall = time.perf_counter() - import_wall
    trace_wall = time.perf_counter()
    if job["do"] == "gemm":
        graph = accelsim.gemm_graph(*job["shape"])
    else:
        graph = accelsim.trace(job["model"], seq=job["seq"], batch=job["batch"])
    trace_wall = time.perf_counter() - trace_wall
    base: Any = accelsim.platform(PLATFORM, SETTINGS)
    platforms = [replace(base, clock_hz=base.clock_hz + i) for i in range(job["repeats"] + 1)]
    cpu_s: list[float] = []
    wall_s: list[float] = []
    reports = []
    for platform in platforms:
        wall, cpu = time.perf_counter(), time.process_time()
        report = simulate(graph, platform, detail=job["detail"])
        cpu_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
        reports.append(report)
        if float(report.total.cycles) != float(reports[0].total.cycles):
            raise RuntimeError("cycles changed with the clock: the repeats are not the same work")
        del reports[1:]
    total = reports[0].total
    return {
        "cycles": float(total.cycles),
        "compute_cycles": float(total.compute_cycles),
        "import_s": import_wall,
        "shipped_trace_s": trace_wall,
        "first_cpu_s": cpu_s[0],
        "first_wall_s": wall_s[0],
        "cpu_s": cpu_s[1:],
        "wall_s": wall_s[1:],
    }


def traced(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the exporter, imports of torch and transformers told apart."""
    start = time.perf_counter()
    import torch
    import transformers

    from accelsim import trace

    imported = time.perf_counter()
    wall_s: list[float] = []
    for _ in range(job["repeats"]):
        begin = time.perf_counter()
        trace(job["model"], seq=job["seq"], source="torch")
        wall_s.append(time.perf_counter() - begin)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"import_s": imported - start, "wall_s": wall_s, "versions": versions}


def main() -> None:
    job = json.load(sys.stdin)
    answer = {"array": lambda _: array(), "gemm": simulated, "graph": simulated, "trace": traced}[job["do"]](job)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
