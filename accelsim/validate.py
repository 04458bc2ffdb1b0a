"""How far the two models of time are apart: random shapes on random platforms, and the bounds that must always hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from accelsim.errors import Infeasible, SpecError
from accelsim.gemm import gemm_graph
from accelsim.graph import Graph
from accelsim.mapping import best
from accelsim.platforms import Platform, platform
from accelsim.platforms.fpga import Fpga
from accelsim.platforms.systolic import Systolic
from accelsim.simulate import at_precision, graph_rows, simulate, timeline
from accelsim.trace import trace
from accelsim.work import work_array

MODELS = ("bert-tiny", "bert-mini", "bert-small", "minilm-l6", "tinybert-4l-312", "distilbert")


def bounds_of(graph: Graph, chip: Platform) -> dict[str, float]:
    """Analytic and event cycles of a graph, and the bounds of the latter, in cycles.

    analytic, events, busiest (the busiest resource), serial (all steps, transfers and latencies one after the other),
    and the largest amount by which an op's analytic time breaks max(compute, bytes / bandwidth) <= cycles <= compute +
    bytes / bandwidth + latencies (0 if none does).
    """
    graph = at_precision(graph, chip, None)
    rows, unique, which = graph_rows(graph)
    mappings = best(chip, unique)
    costs = chip.costs(work_array(unique), mappings)
    line = timeline(graph, chip, unique, mappings, rows, which)
    low = np.maximum(costs["busy_cycles"], costs["dram_cycles"])
    high = costs["busy_cycles"] + costs["dram_cycles"] + costs["latency_cycles"]
    broken = np.maximum(low - costs["cycles"], costs["cycles"] - 1 - high).max()
    return {
        "analytic": float(costs["cycles"][which].sum()),
        "events": line.makespan,
        "busiest": line.busiest_cycles,
        "serial": line.serial_cycles,
        "op_bound_broken_by": max(0.0, float(broken) - 1e-3),
    }


def random_platform(rng: np.random.Generator) -> Systolic:
    """A systolic platform with every size, rate and policy drawn at random, log-uniformly where it spans decades."""
    side = {"rows": int(2 ** rng.integers(2, 9)), "cols": int(2 ** rng.integers(2, 9))}
    spread = side["rows"] * side["cols"]
    chip = platform(
        "systolic-32x32",
        {
            "name": "random",
            **side,
            "arrays": int(rng.choice([1, 1, 1, 2, 4])),
            "dataflow": str(rng.choice(["os", "ws", "is"])),
            "fold_timing": str(rng.choice(["serial", "pipelined"])),
            "input_buffer.capacity_bytes": int(max(2 * spread, 2 ** rng.uniform(15, 22))),
            "weight_buffer.capacity_bytes": int(max(2 * spread, 2 ** rng.uniform(15, 22))),
            "accumulator.capacity_bytes": int(max(8 * spread, 2 ** rng.uniform(15, 22))),
            "input_buffer.bytes_per_cycle": float(side["rows"] * rng.choice([0.5, 1, 2])),
            "weight_buffer.bytes_per_cycle": float(side["cols"] * rng.choice([0.5, 1, 2])),
            "accumulator.bytes_per_cycle": float(8 * side["cols"] * rng.choice([0.5, 1, 2])),
            "dram.bytes_per_cycle": float(round(2 ** rng.uniform(1, 9), 2)),
            "dram.latency_cycles": int(2 ** rng.uniform(0, 9)),
            "vector.lanes": int(2 ** rng.integers(2, 9)),
            "vector.buffer.capacity_bytes": int(2 ** rng.uniform(13, 18)),
        },
    )
    assert isinstance(chip, Systolic)
    return chip


def random_fpga(rng: np.random.Generator) -> Fpga:
    """FQ-BERT's accelerator with every size, rate and policy drawn at random, on a device that holds anything."""
    size = {name: int(2 ** rng.uniform(13, 21)) for name in ("input", "intermediate", "output", "weight")}
    unlimited = {f"device.{name}": 2**40 for name in ("dsp", "bram18k", "uram", "lut", "ff")}
    chip = platform(
        "fqbert-zcu102",
        {
            "name": "random",
            "processing_units": int(rng.integers(1, 17)),
            "pes": int(2 ** rng.integers(0, 6)),
            "multipliers": int(2 * rng.integers(1, 17)),
            "dot_timing": str(rng.choice(["serial", "pipelined"])),
            "dot_overhead_cycles": float(rng.choice([0, 0.5, 3])),
            "quantizer_cycles": int(rng.integers(1, 4)),
            "psum_rows": int(2 ** rng.integers(4, 10)),
            **{f"{name}_buffer.capacity_bytes": value for name, value in size.items()},
            "softmax.timing": str(rng.choice(["serial", "pipelined"])),
            "layer_norm.timing": str(rng.choice(["serial", "pipelined"])),
            "softmax.passes": int(rng.integers(1, 5)),
            "dram.bytes_per_cycle": float(round(2 ** rng.uniform(0, 8), 2)),
            "dram.latency_cycles": int(2 ** rng.uniform(0, 9)),
            "host.is_counted": int(rng.integers(0, 2)),
            **unlimited,
        },
    )
    assert isinstance(chip, Fpga)
    return chip


RANDOM = {"systolic": random_platform, "fpga": random_fpga}


def random_graph(rng: np.random.Generator) -> Graph:
    """Half the time one GEMM of a random shape, half the time a small model at a random sequence and batch."""
    if rng.random() < 0.5:
        return gemm_graph(*(int(2 ** rng.uniform(0, 10.5)) for _ in range(3)))
    return trace(str(rng.choice(MODELS)), seq=int(2 ** rng.uniform(3, 8.5)), batch=int(rng.integers(1, 5)))


def platform_rows(pairs: int, seed: int, kind: str = "systolic") -> Iterator[dict[str, Any]]:
    """A row per random (workload, platform) pair: both times, their ratio, the bounds, `mismatches` (broken rules).

    kind: of the platforms, a key of `RANDOM`. Pairs that the hardware cannot do are drawn again. Raises SpecError for
    fewer than one pair.
    """
    if pairs < 1:
        raise SpecError("pairs", pairs, "an integer >= 1")
    rng = np.random.default_rng(seed)
    done = 0
    while done < pairs:
        chip, graph = RANDOM[kind](rng), random_graph(rng)
        try:
            bounds = bounds_of(graph, chip)
        except Infeasible:
            continue
        done += 1
        yield {
            "workload": f"{graph.name} seq {graph.meta['seq']} batch {graph.meta['batch']}",
            "platform": _words(chip),
            **bounds,
            "ratio": bounds["events"] / bounds["analytic"],
            "mismatches": broken_rules(bounds) + int(not same_work(graph, chip)),
        }


def _words(chip: Platform) -> str:
    """A random platform in a few words."""
    if isinstance(chip, Systolic):
        return f"{chip.rows}x{chip.cols} {chip.dataflow.name.lower()} {chip.fold_timing.name.lower()}"
    assert isinstance(chip, Fpga)
    return f"{chip.processing_units} PUs x {chip.pes} x {chip.multipliers} {chip.dot_timing.name.lower()}"


def broken_rules(bounds: dict[str, float]) -> int:
    """How many of these fail: busiest resource <= events, events <= everything in series, the bracket of every op."""
    slack = 1e-9 * bounds["serial"] + 1e-6
    return (
        int(bounds["busiest"] > bounds["events"] + slack)
        + int(bounds["events"] > bounds["serial"] + slack)
        + int(bounds["op_bound_broken_by"] > 0)
    )


def same_work(graph: Graph, chip: Platform) -> bool:
    """True if both details report the same MACs, bytes of every level and dynamic energy, row by row."""
    analytic, events = (simulate(graph, chip, detail=detail) for detail in ("analytic", "events"))
    return all(analytic.columns[c] == events.columns[c] for c in ("macs", "sram_bytes", "dram_bytes")) and all(
        analytic.energy_by_part_j[p] == events.energy_by_part_j[p] for p in ("mac", "vector", "sram", "dram")
    )


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Lines for a reader: how many pairs, broken rules, quantiles of events / analytic, the two worst pairs."""
    ratios = np.array([row["ratio"] for row in rows])
    marks = (0, 1, 5, 50, 95, 99, 100)
    ordered = sorted(rows, key=lambda row: float(row["ratio"]))
    return [
        f"{len(rows)} random (workload, platform) pairs, {sum(row['mismatches'] for row in rows)} broken rules",
        "events / analytic: "
        + ", ".join(f"{mark} % {value:.3f}" for mark, value in zip(marks, np.percentile(ratios, marks), strict=True)),
        *(f"  {row['ratio']:.3f}  {row['workload']} on {row['platform']}" for row in (ordered[0], ordered[-1])),
    ]
