"""`simulate`: price every work of a graph on a platform and put the rows together into a `Report`."""

from __future__ import annotations

from typing import Any

import numpy as np

from accelsim import events
from accelsim.errors import Infeasible, SpecError
from accelsim.graph import Graph, Op
from accelsim.mapping import best
from accelsim.memory import check_memory
from accelsim.platforms.base import STEP_DTYPE, Platform, total_of
from accelsim.report import SCHEMA, Report, Total
from accelsim.transforms.quantize import with_precision
from accelsim.work import Work, WorkKind, work_array

DETAILS = ("analytic", "events")
MAX_STEPS = 20_000_000


def simulate(
    graph: Graph,
    platform: Platform,
    *,
    detail: str = "analytic",
    precision: str | None = None,
    mapping: str = "best",
) -> Report:
    """What the graph costs on the platform.

    detail: "analytic" prices each op by itself, one after the other; "events" lets them share one DRAM channel,
    prefetch and overlap. precision: a preset of `transforms.quantize`; None keeps a graph that was already given one
    and otherwise takes the platform's default. mapping: a rule of `mapping.RULES`.

    Raises SpecError for an unknown detail, precision or mapping, Infeasible if the hardware cannot do an op or
    has too little memory for a training iteration.
    """
    if detail not in DETAILS:
        raise SpecError.unknown("detail", detail, DETAILS)
    graph = at_precision(graph, platform, precision)
    capacity_bytes = platform.memory_bytes()
    if "training" in graph.meta and capacity_bytes is not None:
        check_memory(graph, capacity_bytes, platform.name)
    rows, unique, which = graph_rows(graph)
    if any(work.kind is WorkKind.COLLECTIVE for work in unique):
        raise SpecError("platform", platform.name, "a cluster for a graph with collectives")
    asked_by = {work: op.name for op, work in reversed(rows)}
    mappings = best(platform, unique, [asked_by[work] for work in unique], mapping)
    priced = platform.costs(work_array(unique), mappings)
    units = np.array([platform.unit(work) for work in unique])
    summed = total_of(priced, np.bincount(which, minlength=len(unique)), units)
    costs = priced[which]
    if detail == "events":
        line = timeline(graph, platform, unique, mappings, rows, which)
        start, finish = line.start, line.finish
        total_cycles = int(np.ceil(line.makespan - 1e-6))
        total_compute = min(int(line.compute_cycles + 1e-6), int(summed["compute_cycles"]))
        cycles = np.maximum(np.ceil(finish - start - 1e-6).astype(np.int64), costs["compute_cycles"])
    else:
        cycles = costs["cycles"]
        finish = np.cumsum(cycles).astype(float)
        start = finish - cycles
        total_cycles, total_compute = int(summed["cycles"]), int(summed["compute_cycles"])
    if total_cycles == 0:
        raise SpecError("graph", graph.name, "at least one op that computes or moves something")
    return _report(graph, platform, detail, rows, costs, summed, start, finish, cycles, total_cycles, total_compute)


def at_precision(graph: Graph, platform: Platform, precision: str | None) -> Graph:
    """The graph with the widths asked for, or with the platform's default if it still has those it was traced with."""
    have = graph.meta.get("precision", "fp32")
    if precision is None and have != "fp32":
        return graph
    wanted = precision or platform.default_precision()
    if wanted == have:
        return graph
    if wanted not in graph.memo:
        graph.memo[wanted] = with_precision(graph, wanted)
    derived: Graph = graph.memo[wanted]
    return derived


def graph_rows(graph: Graph) -> tuple[list[tuple[Op, Work]], list[Work], np.ndarray]:
    """(a row for each op and work, the distinct works, for each row the index of its work)."""
    if "rows" not in graph.memo:
        rows = [(op, work) for op, works in graph.works for work in works]
        number: dict[Work, int] = {}
        which = np.array([number.setdefault(work, len(number)) for _, work in rows])
        graph.memo["rows"] = rows, list(number), which
    derived: tuple[list[tuple[Op, Work]], list[Work], np.ndarray] = graph.memo["rows"]
    return derived


def bound_of(cycles: int, busy_cycles: float, dram_cycles: float) -> str:
    """What an op waits for most: compute or memory, or latency if more than half of its cycles are neither."""
    longest = max(busy_cycles, dram_cycles)
    if cycles > 2 * longest:
        return "latency"
    return "compute" if busy_cycles >= dram_cycles else "memory"


def timeline(
    graph: Graph,
    platform: Platform,
    unique: list[Work],
    mappings: np.ndarray,
    rows: list[tuple[Op, Work]],
    which: np.ndarray,
) -> events.Timeline:
    """The event model's run of the rows of a graph under given mappings. Raises Infeasible for more than MAX_STEPS."""
    encoded = work_array(unique)
    lengths = np.array([platform.step_count(encoded[i], mappings[i]) for i in range(len(unique))])
    total = int(lengths[which].astype(float).sum())
    if total > MAX_STEPS:
        raise Infeasible("event model", total, MAX_STEPS, "steps", ["--detail analytic", "capacity_bytes of buffers"])
    steps = [platform.steps(encoded[i], mappings[i]) for i in range(len(unique))]
    offsets = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    return events.run(
        np.array([platform.unit(work) for _, work in rows]),
        offsets[which],
        lengths[which],
        _row_dependencies(graph, lengths[which]),
        np.concatenate(steps) if steps else np.zeros(0, STEP_DTYPE),
        len(platform.units),
        platform.dram_bytes_per_cycle(),
        platform.dram_latency_cycles(),
    )


def energy_of(mac_pj: Any, vector_pj: Any, sram_pj: Any, dram_pj: Any, leakage_j: Any) -> Any:
    """Energy of a run in J, from its dynamic parts in pJ and its leakage in J; numbers or arrays."""
    return (mac_pj + vector_pj + sram_pj + dram_pj) * 1e-12 + leakage_j


def _row_dependencies(graph: Graph, lengths: np.ndarray) -> list[list[int]]:
    """For each row the rows with steps that must finish before it, looking through free ops.

    What an op of a kernel makes is there when the kernel's row ends.
    """
    after: list[list[int]] = []
    ends: dict[str, list[int]] = {}
    made: dict[str, list[str]] = {}
    row = 0
    for op, works in graph.works:
        waits = sorted({r for name in (*op.inputs, *made.get(op.kernel, ())) for r in ends.get(name, ())})
        for _ in works:
            after.append(waits)
            waits = [row] if lengths[row] > 0 else waits
            row += 1
        ends[op.output] = waits
        if op.kernel:
            made.setdefault(op.kernel, []).append(op.output)
            ends.update(dict.fromkeys(made[op.kernel], waits))
    return after


def _report(
    graph: Graph,
    platform: Platform,
    detail: str,
    rows: list[tuple[Op, Work]],
    costs: np.ndarray,
    summed: np.void,
    start: np.ndarray,
    finish: np.ndarray,
    cycles: np.ndarray,
    total_cycles: int,
    total_compute: int,
) -> Report:
    clock = platform.clock_hz
    time_s = total_cycles / clock
    leakage_j = platform.leakage_w() * time_s
    dynamic_j = (costs["mac_pj"] + costs["sram_pj"] + costs["dram_pj"] + costs["vector_pj"]) * 1e-12
    energy_j = dynamic_j + leakage_j * (cycles / max(1, int(cycles.sum())))
    bounds = [
        bound_of(*row)
        for row in zip(*(costs[c].tolist() for c in ("cycles", "busy_cycles", "dram_cycles")), strict=True)
    ]
    utilization = np.minimum(1.0, costs["unit_cycles"] / np.maximum(1, cycles))
    columns: dict[str, list[Any]] = {
        "op": [op.name for op, _ in rows],
        "group": [op.group for op, _ in rows],
        "operator": [op.operator for op, _ in rows],
        "phase": [op.phase for op, _ in rows],
        "layer": [op.layer for op, _ in rows],
        "platform": [platform.name] * len(rows),
        "unit": ["none" if work.is_free else platform.units[platform.unit(work)] for _, work in rows],
        "kind": ["free" if work.is_free else work.kind.name.lower() for _, work in rows],
        "count": [work.count for _, work in rows],
        "macs": costs["macs"].tolist(),
        "flops": [work.flops for _, work in rows],
        "cycles": cycles.tolist(),
        "compute_cycles": costs["compute_cycles"].tolist(),
        "stall_cycles": (cycles - costs["compute_cycles"]).tolist(),
        "start_cycle": start.tolist(),
        "finish_cycle": finish.tolist(),
        "time_s": (cycles / clock).tolist(),
        "sram_bytes": costs["sram_bytes"].tolist(),
        "dram_bytes": costs["dram_bytes"].tolist(),
        "energy_j": energy_j.tolist(),
        "utilization": utilization.tolist(),
        "bound": ["free" if work.is_free else bound for (_, work), bound in zip(rows, bounds, strict=True)],
    }
    assert list(columns) == list(SCHEMA), "report columns and their schema differ"
    parts = {name: float(summed[f"{name}_pj"]) * 1e-12 for name in ("mac", "vector", "sram", "dram")}
    parts["leakage"] = leakage_j
    dynamic = {name: float(summed[f"{name}_pj"]) for name in ("mac", "vector", "sram", "dram")}
    energy = energy_of(dynamic["mac"], dynamic["vector"], dynamic["sram"], dynamic["dram"], leakage_j)
    total = Total(
        macs=int(summed["macs"]),
        flops=sum(columns["flops"]),
        cycles=total_cycles,
        compute_cycles=total_compute,
        stall_cycles=total_cycles - total_compute,
        time_s=time_s,
        sram_bytes=int(summed["sram_bytes"]),
        dram_bytes=int(summed["dram_bytes"]),
        energy_j=energy,
        power_w=energy / time_s,
        utilization=min(1.0, float(summed["gemm_cycles"]) / total_cycles),
        fps_per_w=max(1, int(graph.meta.get("batch", 1))) / energy if energy > 0 else None,
        area_mm2=platform.area_mm2(),
    )
    heaviest = max((work for _, work in rows), key=lambda work: work.macs)
    roof = {
        "flops_per_s": 2 * platform.peak_macs_per_cycle(heaviest) * clock,
        "dram_bytes_per_s": platform.dram_bytes_per_cycle() * clock,
    }
    return Report(
        model=graph.name,
        platform=platform.name,
        seq=int(graph.meta.get("seq", 0)),
        batch=int(graph.meta.get("batch", 0)),
        precision=graph.meta.get("precision", "fp32"),
        detail=detail,
        clock_hz=clock,
        columns=columns,
        total=total,
        energy_by_part_j=parts,
        assumptions=platform.assumptions(),
        roof=roof,
    )
