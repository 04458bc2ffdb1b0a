"""Runs SCALE-Sim on GEMMs inside its own environment: the job as JSON on stdin, one JSON line per GEMM on stdout.

The job is `peers.peer_job(...)`. Nothing of accelsim is imported here, because this environment does not have it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scalesim.scale_sim import scalesim


def config_text(job: dict[str, Any]) -> str:
    """SCALE-Sim's configuration: weight stationary, bandwidth estimated (the mode without stalls, the cheaper one)."""
    sections = {
        "general": {"run_name": "gemm"},
        "architecture_presets": {
            "ArrayHeight": job["rows"],
            "ArrayWidth": job["cols"],
            "IfmapSramSzkB": job["input_buffer_bytes"] // 1024,
            "FilterSramSzkB": job["weight_buffer_bytes"] // 1024,
            "OfmapSramSzkB": job["accumulator_bytes"] // 1024,
            "IfmapOffset": 0,
            "FilterOffset": 10_000_000,
            "OfmapOffset": 20_000_000,
            "Dataflow": "ws",
            "Bandwidth": job["dram_bytes_per_cycle"],
            "ReadRequestBuffer": 32,
            "WriteRequestBuffer": 32,
        },
        "layout": {
            "IfmapCustomLayout": False,
            "IfmapSRAMBankBandwidth": job["rows"],
            "IfmapSRAMBankNum": 1,
            "IfmapSRAMBankPort": 2,
            "FilterCustomLayout": False,
            "FilterSRAMBankBandwidth": job["cols"],
            "FilterSRAMBankNum": 1,
            "FilterSRAMBankPort": 2,
        },
        "sparsity": {"SparsitySupport": "false"},
        "run_presets": {"InterfaceBandwidth": "CALC", "UseRamulatorTrace": False},
    }
    lines: list[str] = []
    for section, entries in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in entries.items()), ""]
    return "\n".join(lines)


def simulate(job: dict[str, Any], shape: list[int], folder: Path) -> dict[str, Any]:
    m, k, n = shape
    (folder / "array.cfg").write_text(config_text(job))
    (folder / "gemm.csv").write_text(f"Layer, M, N, K,\ngemm, {m}, {n}, {k},\n")
    (folder / "layout.csv").write_text("Layer,\n")
    wall, cpu = time.perf_counter(), time.process_time()
    run = scalesim(
        save_disk_space=True,  # no trace files
        verbose=False,
        config=str(folder / "array.cfg"),
        topology=str(folder / "gemm.csv"),
        layout=str(folder / "layout.csv"),
        input_type_gemm=True,
    )
    run.run_scale(top_path=str(folder))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    header, row = (folder / "gemm" / "COMPUTE_REPORT.csv").read_text().splitlines()[:2]
    report = {name.strip(): value.strip() for name, value in zip(header.split(","), row.split(","), strict=True)}
    return {
        "shape": shape,
        "cycles": float(report["Total Cycles (incl. prefetch)"]),
        "compute_cycles": float(report["Total Cycles"]) - float(report["Stall Cycles"]),
        "cpu_s_inner": cpu,
        "wall_s_inner": wall,
    }


def main() -> None:
    job = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    for shape in job["gemms"]:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            print(json.dumps(simulate(job, shape, Path(folder))), file=answers, flush=True)


if __name__ == "__main__":
    main()
