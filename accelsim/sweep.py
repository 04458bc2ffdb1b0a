"""`sweep`: every point of a `Space`, priced by the compiled formulas of `simulate`, as a table or a `Study`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accelsim import study
from accelsim.errors import SpecError
from accelsim.executors import EXECUTORS
from accelsim.graph import Graph
from accelsim.jit import compiled
from accelsim.platforms import Platform, describe, fpga, systolic
from accelsim.platforms.base import TOTAL_DTYPE, add_total
from accelsim.platforms.resources import demand
from accelsim.price import prices
from accelsim.simulate import at_precision, energy_of, graph_rows
from accelsim.space import CAPACITIES, MODEL_AXES, Places, Space, axes_of
from accelsim.study import Best, chunk_path, held, read_rows, write_rows
from accelsim.technology import technology
from accelsim.trace import trace
from accelsim.transforms.prune import PARTS, prune
from accelsim.work import Arithmetic, work_array

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 65536
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
    names = [axis.path for axis in found.axes if axis.path in MODEL_AXES]
    models = found.key(places, ())
    parts = []
    for model in np.unique(models):
        rows = np.flatnonzero(models == model)
        own = {n: found.axis(n).values[places[n][rows[0]]] for n in names}
        parts.append((rows, _priced(found, {n: at[rows] for n, at in places.items()}, own)))
    if len(parts) == 1:
        return {**columns, **parts[0][1]}
    for name, values in parts[0][1].items():
        columns[name] = np.empty(len(points), values.dtype)
        for rows, part in parts:
            columns[name][rows] = part[name]
    return columns


def _priced(found: Space, places: Places, own: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Result columns of points that share a model: `own`, its axes.

    What a unit does is priced once for all points that are the same in the fields it reads.
    """
    chip = found.platform_at({path: int(at[0]) for path, at in places.items()})
    size = len(places[found.axes[0].path])
    graph = at_precision(graph_of(found, own), chip, str(own.get("precision", found.precision)) or None)
    _, unique, which = graph_rows(graph)
    counts, works = np.bincount(which, minlength=len(unique)), work_array(unique)
    units = np.array([chip.unit(work) for work in unique])
    totals, feasible = np.zeros(size, TOTAL_DTYPE), np.ones(size, bool)
    for unit in range(int(units.max(initial=0)) + 1):
        mine, fields = np.flatnonzero(units == unit), chip.reads[chip.units[unit]]
        if found.energies == "technology":
            fields = (*fields, "technology_nm")  # the others that energies of a unit follow are among what it reads
        first, place = _distinct(found.key(places, fields))
        mapped = {path: at[first] for path, at in places.items()}
        groups = found.key(mapped, fields, CAPACITIES)
        order = np.argsort(groups, kind="stable")
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        designs = found.designs(mapped)[order]
        part, ok = prices(chip.kind, designs, groups[order], works[mine], counts[mine], found.mapping)
        _add(totals, feasible, part, ok, back[place])
    clock_hz = _shared(found, places, ["clock_hz"], lambda view: view.clock_hz)
    leakage_w, area, taken = _static(chip, found, places)
    for amount, device in taken.values():
        feasible &= amount <= device
    whole = {name: np.empty(size, np.int64) for name in WHOLE}
    gemm_cycles, mac_pj, vector_pj, sram_pj, dram_pj = np.empty((5, size))
    _take_whole(totals, *whole.values())
    _take_real(totals, gemm_cycles, mac_pj, vector_pj, sram_pj, dram_pj)
    feasible &= whole["cycles"] > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        time_s = whole["cycles"] / clock_hz
        energy_j = energy_of(mac_pj, vector_pj, sram_pj, dram_pj, leakage_w * time_s)
        real = {
            "time_s": time_s,
            "energy_j": energy_j,
            "power_w": energy_j / time_s,
            "fps_per_w": max(1, int(graph.meta.get("batch", 1))) / energy_j,
            "utilization": np.minimum(1.0, gemm_cycles / whole["cycles"]),
            "area_mm2": area,
        }
        if found.error_of[0]:
            model, precision = (str(own.get(name, getattr(found, name))) for name in ("model", "precision"))
            real["error"] = np.full(size, found.error(model, precision))
    if not feasible.all():
        for values in whole.values():
            values[~feasible] = 0
        for name, numbers in real.items():
            real[name] = np.where(feasible, numbers, np.nan)
    return {"feasible": feasible, **whole, **real, **{column: amount for column, (amount, _) in taken.items()}}


@compiled
def _add(totals: Any, feasible: Any, part: Any, ok: Any, place: Any) -> None:
    """Add to each point the totals of a unit, part[place]."""
    for i in range(len(totals)):
        add_total(totals[i], part[place[i]])
        feasible[i] = feasible[i] and ok[place[i]]


@compiled
def _take_whole(totals: Any, cycles: Any, compute_cycles: Any, macs: Any, sram_bytes: Any, dram_bytes: Any) -> None:
    """Fill columns from records, in one pass."""
    for i in range(len(totals)):
        t = totals[i]
        cycles[i], compute_cycles[i], macs[i] = t.cycles, t.compute_cycles, t.macs
        sram_bytes[i], dram_bytes[i] = t.sram_bytes, t.dram_bytes


@compiled
def _take_real(totals: Any, gemm_cycles: Any, mac_pj: Any, vector_pj: Any, sram_pj: Any, dram_pj: Any) -> None:
    """Fill columns from records, in one pass."""
    for i in range(len(totals)):
        t = totals[i]
        gemm_cycles[i], mac_pj[i], vector_pj[i] = t.gemm_cycles, t.mac_pj, t.vector_pj
        sram_pj[i], dram_pj[i] = t.sram_pj, t.dram_pj


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index of the first of each different key, ascending by key; for each key the place of its like among them)."""
    low = int(keys.min(initial=0))
    span = int(keys.max(initial=0)) - low + 1
    if span > 4 * len(keys) + 1024:
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        return first, place.reshape(-1)
    at, place = np.full(span, -1), np.empty(len(keys), np.int64)
    first = np.empty(min(span, len(keys)), np.int64)
    return first[: _number(keys, low, at, first, place)], place


@compiled
def _number(keys: Any, low: int, at: Any, first: Any, place: Any) -> int:
    """Fill what `_distinct` gives, and `at` with the number of each key; how many different ones there are."""
    for i in range(len(keys)):
        if at[keys[i] - low] < 0:
            at[keys[i] - low] = i
    count = 0
    for k in range(len(at)):
        if at[k] >= 0:
            first[count] = at[k]
            at[k] = count
            count += 1
    for i in range(len(keys)):
        place[i] = at[keys[i] - low]
    return count


def _shared(found: Space, places: Places, fields: Sequence[str], value: Callable[[Any], Any]) -> np.ndarray:
    """`value` of the designs of points, (n,) or (k, n): computed once for all that are the same in the fields."""
    first, place = _distinct(found.key(places, fields))
    view: Any = found.designs({path: at[first] for path, at in places.items()}).view(np.recarray)
    values: np.ndarray = np.asarray(value(view))
    return values[..., place]


_GRAPHS: dict[tuple[str, str, int, int, int | None, int | None, int | None], Graph] = {}


def graph_of(found: Space, own: Mapping[str, Any]) -> Graph:
    """The graph of points whose model axes have the values `own`, in float32: traced, then pruned. Remembered."""
    model, seq, batch, *kept = (own.get(name, getattr(found, name)) for name in ("model", "seq", "batch", *PARTS))
    layers, heads, ffn = kept
    key = str(model), found.head, int(seq), int(batch), layers, heads, ffn
    if key not in _GRAPHS:
        _GRAPHS[key] = prune(trace(key[0], head=key[1], seq=key[2], batch=key[3]), layers, heads, ffn)
    return _GRAPHS[key]


def _static(chip: Platform, found: Space, places: Places) -> tuple[Any, Any, dict[str, Any]]:
    """(leakage in W, area in mm2 or NaN, column -> (taken, there is) of FPGAs) of points, as their platforms say it."""
    if chip.kind == "systolic":
        leaks = [f"{name}.leakage_w" for name in ("input_buffer", "weight_buffer", "accumulator", "vector.buffer")]
        leaks = ["static_w", *leaks] if found.energies == "stated" else [*systolic.ENERGIES_READ]
        return _shared(found, places, leaks, systolic.idle_w), _areas(found, places), {}
    if chip.kind == "fpga":
        taken = _shared(found, places, _SIZES, _resources)
        there = _shared(found, places, ["device"], lambda view: [view["device"][n.lower()] for n in DEVICE])
        static = _shared(found, places, [*_SIZES, "static_w", "energy", "clock_hz"], _fpga_idle_w)
        columns = {column: (taken[i], there[i]) for i, column in enumerate(DEVICE.values())}
        return static, np.full(len(there[0]), np.nan), columns
    die = _shared(found, places, ["die_mm2"], lambda view: view.die_mm2)
    return _shared(found, places, ["static_w"], lambda view: view.static_w), np.where(die > 0, die, np.nan), {}


def _areas(found: Space, places: Places) -> np.ndarray:
    """mm2 of systolic designs, the parts added in the order of `area_parts_mm2`."""
    widths = ("technology_nm", "input_bits", "weight_bits", "accumulator_bits", "arithmetic")
    total = np.zeros(len(places[found.axes[0].path]))
    for name, fields in systolic.AREA_READS.items():
        total += _shared(found, places, [*widths, *fields], partial(_area_part, name))
    return total


def _area_part(name: str, view: Any) -> np.ndarray:
    """mm2 of one part: designs of one node and one kind of element together."""
    out = np.zeros(len(view))
    kinds = np.stack(
        [view[n] for n in ("technology_nm", "input_bits", "weight_bits", "accumulator_bits", "arithmetic")]
    )
    for kind in np.unique(kinds, axis=1).T:
        rows = np.flatnonzero((kinds == kind[:, None]).all(axis=0))
        node, a_bits, w_bits, sum_bits, arithmetic = kind.tolist()
        element = technology(node).mac_mm2(a_bits, w_bits, sum_bits, Arithmetic(arithmetic))
        out[rows] = systolic.area_parts_mm2(view[rows], node, element)[name]
    return out


def _fpga_idle_w(view: Any) -> Any:
    taken = dict(zip(DEVICE, _resources(view), strict=True))
    return fpga.idle_w(view, taken["LUT"], taken["FF"])


_BUFFERS = ("weight_buffer", "input_buffer", "intermediate_buffer", "output_buffer", "parameter_buffer")
_SIZES = ("processing_units", "pes", "multipliers", "psum_rows", *_BUFFERS, "resources")


def _resources(view: Any) -> np.ndarray:
    """int64 (len(DEVICE), n): amount of each resource of FPGA designs; those with equal sizes are counted once."""
    sizes = [view[n] for n in _SIZES[:4]]
    sizes += [view[n][f] for n in _BUFFERS for f in ("capacity_bytes", "ram")]
    sizes += [view["resources"][n] for n in view["resources"].dtype.names]
    _, first, which = np.unique(np.stack(sizes), axis=1, return_index=True, return_inverse=True)
    found = np.zeros((len(DEVICE), len(first)), np.int64)
    for i, row in enumerate(first):
        for need in demand(view[row]):
            found[list(DEVICE).index(need.resource), i] += need.amount
    return found[:, which.reshape(-1)]


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
    for axis in MODEL_AXES:
        if axis in over and axis != "precision":
            raise SpecError(f"over.{axis}", over[axis], "an axis of the platform: the graph has its own model and size")
    found = Space(
        platform=chip.name, base=base, model=graph.name, head="", seq=1, batch=1,
        precision="", mapping="best", energies="stated", axes=axes_of(over, base, chip.name, "over"), limits=(),
    )  # fmt: skip
    key = graph.name, "", 1, 1, None, None, None
    _GRAPHS[key] = graph
    try:
        return pd.DataFrame(evaluate(found, np.arange(found.points)))
    finally:
        del _GRAPHS[key]


# --- studies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What a sweep holds: points in all, points that run, points within the limits, best value of each objective."""

    points: int
    feasible: int
    kept: int
    best: Best
    """Of the kept points."""


OBJECTIVES = ("time_s", "energy_j", "area_mm2", "dsp", "error")


def run(
    found: Space,
    folder: Path,
    *,
    resume: bool = False,
    jobs: int | None = None,
    chunk: int = CHUNK,
    executor: str = "local",
    address: str = "",
    tell: Callable[[int, Best], None] = lambda points, best: None,
) -> Summary:
    """Price every point into `folder`, by `jobs` cores (default: all), and sum up.

    resume: go on with a folder of the same space and version. chunk: points of a file. executor: one of `EXECUTORS`.
    address: HOST:PORT of a Ray cluster. tell: called with the points of each finished chunk and the best so far. Raises
    SpecError for a folder of another space or version, one that is not empty, or one another process works on, and as
    executors do.
    """
    if executor not in EXECUTORS:
        raise SpecError.unknown("--executor", executor, EXECUTORS)
    folder = folder.absolute()  # a worker may be elsewhere
    with held(folder):
        chunk = study.start(found, folder, resume, chunk, {"kind": "sweep"})
        starts = range(0, found.points, chunk)
        summary = Summary(found.points, 0, 0, {})
        spans = ((start, min(found.points, start + chunk)) for start in starts)
        with closing(EXECUTORS[executor](partial(_chunk, found, folder), spans, jobs, address)) as parts:
            for part in parts:
                summary = _joined(summary, part)
                tell(part.points, summary.best)
        study.clean(folder)
        return summary


def _chunk(found: Space, folder: Path, start: int, stop: int) -> Summary:
    """One chunk, from its file if it is whole, else priced and written."""
    if not (folder / "manifest.json").exists():
        raise SpecError(f"study {folder}", f"no manifest on {socket.gethostname()}", "a folder that every worker sees")
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
