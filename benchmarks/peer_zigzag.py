"""Runs ZigZag on GEMMs inside its own environment: the job as JSON on stdin, one JSON line per GEMM on stdout.

The job is `peers.peer_job(...)`. Nothing of accelsim is imported here, because this environment does not have it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from zigzag.api import get_hardware_performance_zigzag

NO_COST = {"r_cost": 1.0, "w_cost": 1.0, "area": 0.0, "latency": 1}  # energy is not compared, so it is not modelled


def port(number: int, kind: str, bits: int, allocation: list[str]) -> dict[str, Any]:
    name = {"read": "r", "write": "w", "read_write": "rw"}[kind]
    return {
        "name": f"{name}_port_{number}",
        "type": kind,
        "bandwidth_min": bits,
        "bandwidth_max": bits,
        "allocation": allocation,
    }


def accelerator(job: dict[str, Any]) -> dict[str, Any]:
    """ZigZag's description of the array: D1 = rows (k), D2 = columns (n), one weight per processing element.

    Every scratchpad is as wide as the array, so that it never limits; DRAM has the width of the job, shared by all.
    """
    rows, cols, dram_bits = job["rows"], job["cols"], 8 * job["dram_bytes_per_cycle"]
    sums = 32 * cols
    accumulate = [
        port(1, "read", sums, ["O, tl"]),
        port(2, "read", sums, ["O, th"]),
        port(1, "write", sums, ["O, fl"]),
        port(2, "write", sums, ["O, fh"]),
    ]
    return {
        "name": f"weight_stationary_{rows}x{cols}",
        "operational_array": {
            "input_precision": [8, 8],
            "unit_energy": 1.0,
            "unit_area": 1.0,
            "dimensions": ["D1", "D2"],
            "sizes": [rows, cols],
            "systolic_dimensions": ["D1", "D2"],
        },
        "memories": {
            "weight_register": NO_COST
            | {
                "size": 8,
                "operands": ["I2"],
                "ports": [port(1, "read", 8, ["I2, tl"]), port(1, "write", 8, ["I2, fh"])],
                "served_dimensions": [],
            },
            "sum_register": NO_COST
            | {
                "size": 32,
                "operands": ["O"],
                "ports": [
                    port(1, "read", 32, ["O, tl"]),
                    port(2, "read", 32, ["O, th"]),
                    port(1, "write", 32, ["O, fl"]),
                    port(2, "write", 32, ["O, fh"]),
                ],
                "served_dimensions": ["D1"],
            },
            "input_scratchpad": NO_COST
            | {
                "size": 8 * job["input_buffer_bytes"],
                "operands": ["I1"],
                "ports": [port(1, "read", 8 * rows, ["I1, tl"]), port(1, "write", 8 * rows, ["I1, fh"])],
                "served_dimensions": ["D1", "D2"],
            },
            "weight_scratchpad": NO_COST
            | {
                "size": 8 * job["weight_buffer_bytes"],
                "operands": ["I2"],
                "ports": [port(1, "read", 8 * cols, ["I2, tl"]), port(1, "write", 8 * cols, ["I2, fh"])],
                "served_dimensions": ["D1", "D2"],
            },
            "accumulator": NO_COST
            | {
                "size": 8 * job["accumulator_bytes"],
                "operands": ["O"],
                "ports": accumulate,
                "served_dimensions": ["D1", "D2"],
            },
            "dram": NO_COST
            | {
                "size": 10**11,
                "operands": ["I1", "I2", "O"],
                "ports": [
                    port(
                        1,
                        "read_write",
                        dram_bits,
                        ["I1, fh", "I1, tl", "I2, fh", "I2, tl", "O, fh", "O, tl", "O, fl", "O, th"],
                    )
                ],
                "served_dimensions": ["D1", "D2"],
            },
        },
    }


def workload(m: int, k: int, n: int) -> list[dict[str, Any]]:
    """One GEMM in the loop names of ZigZag's ONNX reader: D = m, C = k, K = n."""
    return [
        {
            "id": 0,
            "name": "gemm",
            "operator_type": "Gemm",
            "equation": "O[d][k]+=I[d][c]*W[c][k]",
            "dimension_relations": [],
            "loop_dims": ["D", "C", "K"],
            "loop_sizes": [m, k, n],
            "operand_precision": {"I": 8, "W": 8, "O": 32, "O_final": 8},
            "operand_source": {"I": 0, "W": 0},
        }
    ]


def mapping(job: dict[str, Any], m: int) -> list[dict[str, Any]]:
    """k over the rows, n over the columns, m innermost in time: that is weight stationary. The rest is searched."""
    return [
        {
            "name": "default",
            "spatial_mapping": {"D1": [f"C, {job['rows']}"], "D2": [f"K, {job['cols']}"]},
            "temporal_ordering": [["D", m]] if job["order"] == "stationary" else [],
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        }
    ]


def simulate(job: dict[str, Any], shape: list[int], folder: Path) -> dict[str, Any]:
    m, k, n = shape
    files = {"hardware": accelerator(job), "mapping": mapping(job, m), "workload": workload(m, k, n)}
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    wall, cpu = time.perf_counter(), time.process_time()
    _, cycles, results = get_hardware_performance_zigzag(
        workload=str(folder / "workload.yaml"),
        accelerator=str(folder / "hardware.yaml"),
        mapping=str(folder / "mapping.yaml"),
        opt="latency",
        dump_folder=str(folder / "out"),
        lpf_limit=job["lpf_limit"],
        loma_show_progress_bar=False,
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    best = results[0][1][0][0]
    return {
        "shape": shape,
        "cycles": float(cycles),
        "compute_cycles": float(best.ideal_temporal_cycle),
        "cpu_s_inner": cpu,
        "wall_s_inner": wall,
    }


def main() -> None:
    job = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    logging.disable(logging.CRITICAL)
    for shape in job["gemms"]:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            print(json.dumps(simulate(job, shape, Path(folder))), file=answers, flush=True)


if __name__ == "__main__":
    main()
