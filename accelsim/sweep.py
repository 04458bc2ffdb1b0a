"""`sweep`: every point of a `Space`, priced by the compiled formulas of `simulate`, as a table or a `Study`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accelsim import study
from accelsim.errors import SpecError
from accelsim.graph import Graph
from accelsim.platforms import Platform, describe, fpga, systolic
from accelsim.platforms.resources import demand
from accelsim.price import prices
from accelsim.simulate import at_precision, energy_of, graph_rows
from accelsim.space import MODEL_AXES, Space, axes_of
from accelsim.study import chunk_path, held, read_rows, write_rows
from accelsim.technology import technology
from accelsim.trace import trace
from accelsim.work import Arithmetic, work_array

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 16384
WHOLE = ("cycles", "compute_cycles", "macs", "sram_bytes", "dram_bytes")
REAL = ("time_s", "energy_j", "power_w", "fps_per_w", "utilization", "area_mm2")
DEVICE = {"DSP": "dsp", "BRAM18K": "bram18k", "URAM": "uram", "LUT": "lut", "FF": "ff"}
"""Resource -> column, of platforms of kind fpga."""


# --- pricing ----------------------------------------------------------------------------------------------------------


def evaluate(found: Space, points: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of the results for points of a space: `point`, the axes, `feasible`, whole numbers, real numbers.

    A point that the hardware cannot run has feasible False, 0 for whole numbers and NaN for real ones. Every number is
    that of `simulate` on the point's platform.
    """
    points = np.asarray(points, np.int64)
    places = found.places(points)
    columns: dict[str, np.ndarray] = {"point": points}
    for axis in found.axes:
        columns[axis.path] = np.array(axis.values)[places[axis.path]]
    for name in ("feasible", *WHOLE, *REAL, *(DEVICE.values() if found.base["kind"] == "fpga" else ())):
        columns[name] = np.zeros(len(points), bool if name == "feasible" else float if name in REAL else np.int64)
    names = [axis.path for axis in found.axes if axis.path in MODEL_AXES]
    keys = np.stack([places[n] for n in names], axis=1) if names else np.zeros((len(points), 0), np.int64)
    for key in np.unique(keys, axis=0):
        rows = np.flatnonzero((keys == key).all(axis=1))
        own = {a.path: a.values[key[names.index(a.path)]] for a in found.axes if a.path in MODEL_AXES}
        for name, values in _priced(found, points[rows], own).items():
            columns[name][rows] = values
    return columns


def _priced(found: Space, points: np.ndarray, own: Mapping[str, Any]) -> dict[str, Any]:
    """Result columns of points that share a model: `own`, its axes."""
    designs = found.designs(points)
    chip = found.chip(int(points[0]))
    graph = at_precision(_graph(found, own), chip, str(own.get("precision", found.precision)) or None)
    _, unique, which = graph_rows(graph)
    counts = np.bincount(which, minlength=len(unique))
    totals, feasible = prices(chip.kind, designs, work_array(unique), counts)
    view: Any = designs.view(np.recarray)
    leakage_w, area, taken = _static(chip, view)
    for name, column in DEVICE.items():
        if taken:
            feasible &= taken[column] <= view["device"][name.lower()]  # numpy has a `device` of its own
    feasible &= totals["cycles"] > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        time_s = totals["cycles"] / view.clock_hz
        mac_pj, vector_pj, sram_pj, dram_pj = (totals[f"{name}_pj"] for name in ("mac", "vector", "sram", "dram"))
        energy_j = energy_of(mac_pj, vector_pj, sram_pj, dram_pj, leakage_w * time_s)
        real = {
            "time_s": time_s,
            "energy_j": energy_j,
            "power_w": energy_j / time_s,
            "fps_per_w": max(1, int(graph.meta.get("batch", 1))) / energy_j,
            "utilization": np.minimum(1.0, totals["gemm_cycles"] / totals["cycles"]),
            "area_mm2": area,
        }
    return {
        "feasible": feasible,
        **{name: np.where(feasible, totals[name], 0) for name in WHOLE},
        **{name: np.where(feasible, values, np.nan) for name, values in real.items()},
        **taken,
    }


_GRAPHS: dict[tuple[str, str, int, int], Graph] = {}


def _graph(found: Space, own: Mapping[str, Any]) -> Graph:
    key = (
        str(own.get("model", found.model)),
        found.head,
        int(own.get("seq", found.seq)),
        int(own.get("batch", found.batch)),
    )
    if key not in _GRAPHS:
        _GRAPHS[key] = trace(key[0], head=key[1], seq=key[2], batch=key[3])
    return _GRAPHS[key]


def _static(chip: Platform, view: Any) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """(leakage in W, area in mm2 or NaN, resources by column) of many designs, each as its platform says it."""
    if chip.kind == "systolic":
        return systolic.idle_w(view), _areas(view), {}
    if chip.kind == "fpga":
        taken = _resources(view)
        return fpga.idle_w(view, taken["lut"], taken["ff"]), np.full(len(view), np.nan), taken
    return view.static_w, np.where(view.die_mm2 > 0, view.die_mm2, np.nan), {}


def _areas(view: Any) -> np.ndarray:
    """mm2 of systolic designs: those of one node and one kind of element together."""
    out = np.zeros(len(view))
    kinds = np.stack(
        [view[n] for n in ("technology_nm", "input_bits", "weight_bits", "accumulator_bits", "arithmetic")]
    )
    for kind in np.unique(kinds, axis=1).T:
        rows = np.flatnonzero((kinds == kind[:, None]).all(axis=0))
        node, a_bits, w_bits, sum_bits, arithmetic = kind.tolist()
        element = technology(node).mac_mm2(a_bits, w_bits, sum_bits, Arithmetic(arithmetic))
        out[rows] = sum(systolic.area_parts_mm2(view[rows], node, element).values())
    return out


def _resources(view: Any) -> dict[str, np.ndarray]:
    """Amount of each resource by column, of FPGA designs: those with equal sizes are counted once."""
    buffers = ("weight_buffer", "input_buffer", "intermediate_buffer", "output_buffer", "parameter_buffer")
    sizes = [view[n] for n in ("processing_units", "pes", "multipliers", "psum_rows")]
    sizes += [view[n][f] for n in buffers for f in ("capacity_bytes", "ram")]
    sizes += [view["resources"][n] for n in view["resources"].dtype.names]
    _, first, which = np.unique(np.stack(sizes), axis=1, return_index=True, return_inverse=True)
    found = np.zeros((len(DEVICE), len(first)), np.int64)
    for i, row in enumerate(first):
        for need in demand(view[row]):
            found[list(DEVICE).index(need.resource), i] += need.amount
    return {column: found[i][which.reshape(-1)] for i, column in enumerate(DEVICE.values())}


def keep(found: Space, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool (n,): feasible points within every limit of the space."""
    kept = np.array(columns["feasible"], bool)
    for limit in found.limits:
        if limit.field not in columns:
            raise SpecError.unknown(f"limit {limit}", limit.field, [c for c in columns if c not in found.columns])
        kept &= limit.keeps(np.asarray(columns[limit.field], float))
    return kept


def sweep(graph: Graph, chip: Platform, over: Mapping[str, Any]) -> pd.DataFrame:
    """A row per point of the product of `over`: axes, `feasible`, and the totals of `simulate`.

    over: dotted field of the platform, or precision -> its values, in any form of a space's axes. Raises SpecError for
    an axis the platform does not have or that belongs to the graph.

        accelsim.sweep(graph, accelsim.platform("systolic-32x32"), over={"rows": [8, 16, 32], "clock_hz": [5e8, 1e9]})
    """
    import pandas as pd

    base = describe(chip)
    for axis in MODEL_AXES[:3]:
        if axis in over:
            raise SpecError(f"over.{axis}", over[axis], "an axis of the platform: the graph has its own model and size")
    found = Space(
        platform=chip.name, base=base, model=graph.name, head="", seq=1, batch=1,
        precision="", axes=axes_of(over, base, chip.name, "over"), limits=(),
    )  # fmt: skip
    _GRAPHS[graph.name, "", 1, 1] = graph
    try:
        return pd.DataFrame(evaluate(found, np.arange(found.points)))
    finally:
        del _GRAPHS[graph.name, "", 1, 1]


# --- studies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What a sweep holds: points in all, points that run, points within the limits, best value of each objective."""

    points: int
    feasible: int
    kept: int
    best: Mapping[str, tuple[float, int]]
    """Objective -> (smallest value among the kept points, its point)."""


OBJECTIVES = ("time_s", "energy_j", "area_mm2", "dsp")


def run(
    found: Space,
    folder: Path,
    *,
    resume: bool = False,
    jobs: int | None = None,
    chunk: int = CHUNK,
    tell: Callable[[int], None] = lambda points: None,
) -> Summary:
    """Price every point into `folder`, by `jobs` threads (default: all cores), and sum up.

    resume: go on with a folder of the same space and version. tell: called with the points of each finished chunk.
    Raises SpecError for a folder of another space or version, one that is not empty, or one another process works on.
    """
    with held(folder):
        chunk = study.start(found, folder, resume, chunk, {"kind": "sweep"})
        starts = range(0, found.points, chunk)
        summary = Summary(found.points, 0, 0, {})
        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            tasks = [pool.submit(_chunk, found, folder, start, min(found.points, start + chunk)) for start in starts]
            try:
                for task in as_completed(tasks):
                    part = task.result()
                    summary = _joined(summary, part)
                    tell(part.points)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return summary


def _chunk(found: Space, folder: Path, start: int, stop: int) -> Summary:
    """One chunk, from its file if it is whole, else priced and written."""
    path = chunk_path(found, folder, start, stop)
    columns = read_rows(path, stop - start)
    if columns is None:
        columns = evaluate(found, np.arange(start, stop))
        write_rows(path, columns)
    return _summary(found, columns)


def _summary(found: Space, columns: Mapping[str, np.ndarray]) -> Summary:
    kept = keep(found, columns)
    best = {}
    for name in OBJECTIVES:
        if name in columns:
            values = np.where(kept, np.asarray(columns[name], float), np.nan)
            if not np.isnan(values).all():
                i = int(np.nanargmin(values))
                best[name] = (float(values[i]), int(columns["point"][i]))
    return Summary(len(kept), int(np.sum(columns["feasible"])), int(kept.sum()), best)


def _joined(a: Summary, b: Summary) -> Summary:
    """Both together; `points` stays that of the first. Of equal values the point with the smaller number is best."""
    best = dict(a.best)
    for name, found in b.best.items():
        best[name] = min(best.get(name, found), found)
    return Summary(a.points, a.feasible + b.feasible, a.kept + b.kept, best)
