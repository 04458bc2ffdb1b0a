"""`Mapping`: how a work is laid on a platform, and `best`: the cheapest one of a stated candidate set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from accelsim.errors import Infeasible, SpecError
from accelsim.formulas import (
    OS,
    WS,
    Dataflow,
    ceil_div,
    fold_cycles,
    operand_loads,
    packed_bytes,
    whole_cycles,
)
from accelsim.jit import atom, compiled, record
from accelsim.platforms import fpga
from accelsim.platforms.base import Platform
from accelsim.platforms.systolic import (
    Systolic,
    bias_bytes,
    buffer_latency_cycles,
    gemm_fits,
    gemm_time,
    gemm_traffic,
    vector_cost,
    vector_plan,
)
from accelsim.work import Work, WorkKind, work_array

MAPPING_DTYPE = np.dtype(
    [(name, np.int64) for name in ("tile_m", "tile_k", "tile_n", "instances", "n_outer", "feasible")]
)

RULES = ("best", "largest")
"""best: searched. largest: no search, the biggest tiles that fit, see `_largest`."""
LARGEST = RULES.index("largest")
GEMM, VECTOR = int(WorkKind.GEMM), int(WorkKind.VECTOR)


@dataclass(frozen=True)
class Mapping:
    """Tile of a GEMM in elements, `instances` of it side by side, and the loop order (k is always innermost).

    Of a VECTOR: tile_m units (rows, or as many elements as there are lanes) of tile_n elements in one chunk.

    n_outer: 1 for loops n, m, k from outermost to innermost; 0 for m, n, k.
    """

    tile_m: int
    tile_k: int
    tile_n: int
    instances: int = 1
    n_outer: int = 0

    @property
    def loop_order(self) -> str:
        """Outermost loop first."""
        return "n, m, k" if self.n_outer else "m, n, k"


@atom
def tile_size(dim: int, quantum: int, index: int) -> int:
    """Candidate `index` for a dimension: quantum x 1, 2, 3, 4, 6, 8, 12 ... while below `dim`, then `dim`, then 0."""
    size = 0
    for i in range(index + 1):
        if size >= dim:
            return 0
        step = quantum << ((i + 1) // 2)
        if i > 0 and i % 2 == 0:
            step = (quantum << (i // 2 - 1)) * 3
        size = min(step, dim)
    return size


@atom
def quanta(dataflow: int, rows: int, cols: int) -> Any:
    """Smallest tile of (m, k, n): the array's side where a dimension lies on it, 1 where it is streamed."""
    if dataflow == OS:
        return rows, 1, cols
    if dataflow == WS:
        return 1, rows, cols
    return cols, rows, 1


@atom
def _sizes(dim: int, quantum: int, out: Any) -> int:
    """Fill `out` with the candidates of a dimension, largest first; how many there are."""
    count = 0
    while count < len(out) and tile_size(dim, quantum, count) > 0:
        count += 1
    for i in range(count):
        out[i] = tile_size(dim, quantum, count - 1 - i)
    return count


@atom
def _largest(p: Any, w: Any, out: Any, sizes: Any, counts: Any) -> None:
    """The rule `largest`: the streamed dimension as long as it fits beside single folds, then k, then the others.

    Loops in the order that moves fewer DRAM bytes; a whole instance is put on as many arrays as fit.
    """
    t = np.array([sizes[0, counts[0] - 1], sizes[1, counts[1] - 1], sizes[2, counts[2] - 1]])
    out.feasible = 0
    if not gemm_fits(p, w, t[0], t[1], t[2], 1):
        return
    out.feasible = 1
    streamed = 1 if p.dataflow == OS else 0 if p.dataflow == WS else 2
    for turn in range(4):
        axis = (streamed, 1, 2, 0)[turn]
        smallest = t[axis]
        for i in range(counts[axis]):
            t[axis] = sizes[axis, i]
            if t[axis] <= smallest or gemm_fits(p, w, t[0], t[1], t[2], 1):
                break
    out.tile_m, out.tile_k, out.tile_n, out.instances, out.n_outer = t[0], t[1], t[2], 1, 0
    if t[0] == w.m and t[1] == w.k and t[2] == w.n:
        together = min(p.arrays, w.count)
        if gemm_fits(p, w, w.m, w.k, w.n, together):
            out.instances = together
        return
    a, b, o = gemm_traffic(w, out)
    out.n_outer = 1
    c, d, e = gemm_traffic(w, out)
    if a + b + o <= c + d + e:
        out.n_outer = 0


@atom
def _all_sizes(p: Any, w: Any, sizes: Any, counts: Any) -> None:
    """Fill (3, 128) candidates of m, k, n, largest first, and (3,) how many there are."""
    qm, qk, qn = quanta(p.dataflow, p.rows, p.cols)
    counts[0], counts[1], counts[2] = _sizes(w.m, qm, sizes[0]), _sizes(w.k, qk, sizes[1]), _sizes(w.n, qn, sizes[2])


@compiled
def _largest_gemm(p: Any, w: Any, out: Any) -> None:
    sizes, counts = np.empty((3, 128), np.int64), np.empty(3, np.int64)
    _all_sizes(p, w, sizes, counts)
    _largest(p, w, out, sizes, counts)


@atom
def _fill_sums(p: Any, dim: int, side: int, sizes: Any, count: int, folds: Any, streams: Any) -> None:
    """For each tile size of a dimension, over all its tiles: folds on a side of `side`, cycles of streamed folds."""
    for i in range(count):
        full, rest = dim // sizes[i], dim % sizes[i]
        folds[i] = full * ceil_div(sizes[i], side) + ceil_div(rest, side)
        streams[i] = full * fold_cycles(p.dataflow, p.fold_timing, p.rows, p.cols, sizes[i])
        if rest > 0:
            streams[i] += fold_cycles(p.dataflow, p.fold_timing, p.rows, p.cols, rest)


@atom
def _least_busy_cycles(p: Any, w: Any, folds_m: float, folds_k: float, folds_n: float, streamed: float) -> Any:
    """Lower bound of a GEMM's busy cycles: its folds dealt to all arrays, and what each buffer has to serve.

    folds: over all tiles of a dimension. streamed: cycles of a fold, over all tiles of the streamed dimension.
    """
    inputs, weights, sums = w.m * w.k * w.a_bits, w.k * w.n * w.w_bits, 2.0 * w.m * w.n * p.accumulator_bits
    if p.dataflow == OS:
        folds, inputs, weights = folds_m * folds_n, inputs * folds_n, weights * folds_m
    elif p.dataflow == WS:
        folds, inputs, sums = folds_k * folds_n, inputs * folds_n, sums * folds_k
    else:
        folds, weights, sums = folds_k * folds_m, weights * folds_m, sums * folds_k
    served = max(
        inputs / p.input_buffer.bytes_per_cycle,
        weights / p.weight_buffer.bytes_per_cycle,
        sums / p.accumulator.bytes_per_cycle,
    )
    return w.count * max(folds * streamed / p.arrays, served / 8)


@atom
def _least_cycles(p: Any, w: Any, n_outer: int, tile_m: int, tile_k: int, tile_n: int, busy: float) -> Any:
    """Lower bound of `gemm_time`, one instance at a time, from a lower bound of its busy cycles.

    Latencies, and the most of: first load, busy, last store; all traffic; half of busy, traffic and a latency in each
    step (see `step_cycles`). Traffic: the matrices packed whole, as often as they are loaded.
    """
    bandwidth = p.dram.bytes_per_cycle * p.dram.efficiency
    tiles_m, tiles_k, tiles_n = ceil_div(w.m, tile_m), ceil_div(w.k, tile_k), ceil_div(w.n, tile_n)
    a_loads, w_loads = operand_loads(n_outer, tiles_m, tiles_k, tiles_n)
    moved = a_loads * packed_bytes(w.m * w.k, w.a_bits) + w_loads * packed_bytes(w.k * w.n, w.w_bits)
    traffic = w.count * (moved + packed_bytes(w.m * w.n, w.o_bits)) + bias_bytes(w)
    first = packed_bytes(tile_m * tile_k, w.a_bits) + packed_bytes(tile_k * tile_n, w.w_bits) + bias_bytes(w)
    final = packed_bytes((w.m - (tiles_m - 1) * tile_m) * (w.n - (tiles_n - 1) * tile_n), w.o_bits)
    steps = tiles_m * tiles_k * tiles_n * w.count
    both = 0.5 * (busy + (traffic + first + final) / bandwidth + p.dram.latency_cycles * (steps - 1))
    longest = max(busy + (first + final) / bandwidth, traffic / bandwidth, both)
    return 2 * p.dram.latency_cycles + buffer_latency_cycles(p) + longest * (1 - 1e-12) - 2.0


@atom
def _fill_all_sums(p: Any, w: Any, sizes: Any, counts: Any, folds: Any, streams: Any) -> None:
    """Fill (3, 128) folds and streams of every candidate of m, k and n, see `_fill_sums`."""
    _fill_sums(p, w.m, p.rows if p.dataflow == OS else p.cols, sizes[0], counts[0], folds[0], streams[0])
    _fill_sums(p, w.k, p.rows, sizes[1], counts[1], folds[1], streams[1])
    _fill_sums(p, w.n, p.cols, sizes[2], counts[2], folds[2], streams[2])
    if p.dataflow == OS:  # the stream of a fold is all of k, whatever the tile
        for ik in range(counts[1]):
            streams[1, ik] = fold_cycles(p.dataflow, p.fold_timing, p.rows, p.cols, w.k)


@atom
def _least_cycles_of(p: Any, w: Any, t: Any, im: int, ik: int, jn: int, folds: Any, streams: Any) -> Any:
    """`_least_cycles` of the candidate (im, ik, jn)."""
    streamed = streams[1, ik] if p.dataflow == OS else streams[0, im] if p.dataflow == WS else streams[2, jn]
    busy = _least_busy_cycles(p, w, folds[0, im], folds[1, ik], folds[2, jn], streamed)
    return _least_cycles(p, w, t.n_outer, t.tile_m, t.tile_k, t.tile_n, busy)


@compiled
def _best_gemm(p: Any, w: Any, out: Any) -> None:
    """Search all tile sizes, loop orders and instance counts; smallest (cycles, DRAM bytes, candidate number) wins."""
    sizes, counts = np.empty((3, 128), np.int64), np.empty(3, np.int64)
    _all_sizes(p, w, sizes, counts)
    _largest(p, w, out, sizes, counts)
    if out.feasible == 0:
        return
    folds, streams = np.empty((3, 128)), np.empty((3, 128))
    _fill_all_sums(p, w, sizes, counts, folds, streams)
    held = np.zeros(1, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    a, b, o = gemm_traffic(w, out)
    best_cycles, best_bytes = gemm_time(p, w, out).cycles, a + b + o + 1  # + 1: the first of its equals takes its place
    for im in range(counts[0]):
        for ik in range(counts[1]):
            t.tile_m, t.tile_k = sizes[0, im], sizes[1, ik]
            if 2 * packed_bytes(t.tile_m * t.tile_k, w.a_bits) > p.input_buffer.capacity_bytes:
                continue
            for jn in range(counts[2]):
                t.tile_n = sizes[2, jn]
                whole = t.tile_m == w.m and t.tile_k == w.k and t.tile_n == w.n
                for many in range(2 if whole and min(p.arrays, w.count) > 1 else 1):
                    t.instances = min(p.arrays, w.count) if many else 1
                    if not gemm_fits(p, w, t.tile_m, t.tile_k, t.tile_n, t.instances):
                        continue
                    for order in range(1 if whole else 2):
                        t.n_outer = order
                        if not whole and _least_cycles_of(p, w, t, im, ik, jn, folds, streams) > best_cycles:
                            continue
                        cycles = gemm_time(p, w, t).cycles
                        if cycles > best_cycles:
                            continue
                        a, b, o = gemm_traffic(w, t)
                        if cycles < best_cycles or a + b + o < best_bytes:
                            best_cycles, best_bytes = cycles, a + b + o
                            out.tile_m, out.tile_k, out.tile_n = t.tile_m, t.tile_k, t.tile_n
                            out.instances, out.n_outer = t.instances, t.n_outer
    held[0].feasible = 0


@compiled
def _largest_vector(p: Any, w: Any, out: Any) -> None:
    """The largest chunk of `_best_vector` that fits."""
    plan = vector_plan(p, w)
    out.feasible, out.tile_n = 0, plan.unit_elements
    for i in range(128):
        size = tile_size(plan.units, 1, i)
        if size == 0 or 2 * size * plan.unit_bytes > p.vector.buffer.capacity_bytes:
            break
        out.tile_m, out.feasible = size, 1


@compiled
def _best_vector(p: Any, w: Any, out: Any) -> None:
    """Search all chunk sizes, in units of `vector_plan`; the smallest with the fewest cycles wins."""
    plan = vector_plan(p, w)
    held = np.zeros(1, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    best_cycles = np.int64(0)
    out.feasible, out.tile_n = 0, plan.unit_elements
    for i in range(128):
        t.tile_m = tile_size(plan.units, 1, i)
        if t.tile_m == 0 or 2 * t.tile_m * plan.unit_bytes > p.vector.buffer.capacity_bytes:
            break
        cycles = vector_cost(p, w, t).cycles
        if out.feasible == 0 or cycles < best_cycles:
            best_cycles, out.tile_m, out.feasible = cycles, t.tile_m, 1
    held[0].feasible = 0


@compiled
def _largest_fpga_gemm(p: Any, w: Any, out: Any) -> None:
    """The rule `largest`: instances side by side if that fits, then m, k and n in turn as long as fits."""
    sizes, counts = np.empty((3, 128), np.int64), np.empty(3, np.int64)
    out.feasible, out.n_outer = 0, 1
    together = min(p.processing_units, w.count)
    for many in range(2 if together > 1 else 1):
        instances = 1 if many else together
        _fpga_sizes(p, w, instances, sizes, counts)
        t = np.array([sizes[0, counts[0] - 1], sizes[1, counts[1] - 1], sizes[2, counts[2] - 1]])
        if not fpga.gemm_fits(p, w, t[0], t[1], t[2], instances):
            continue
        for axis in range(3):
            smallest = t[axis]
            for i in range(counts[axis]):
                t[axis] = sizes[axis, i]
                if t[axis] <= smallest or fpga.gemm_fits(p, w, t[0], t[1], t[2], instances):
                    break
        out.tile_m, out.tile_k, out.tile_n, out.instances, out.feasible = t[0], t[1], t[2], instances, 1
        return


@atom
def _fpga_sizes(p: Any, w: Any, instances: int, sizes: Any, counts: Any) -> None:
    """Fill (3, 128) candidates of m, k, n, largest first, and (3,) how many there are.

    m: whole where activations stay on chip, else `tile_size` of 1; k: of the products of a beat; n: of the columns the
    units take at once.
    """
    counts[0] = _sizes(w.m, 1 if fpga.is_spilled(p, w) else w.m, sizes[0])
    counts[1] = _sizes(w.k, fpga.lanes_of(p, w.w_bits), sizes[1])
    counts[2] = _sizes(w.n, fpga.columns_at_once(p, instances), sizes[2])


@compiled
def _best_fpga_gemm(p: Any, w: Any, out: Any) -> None:
    """Search the tiles of FQ-BERT's accelerator, n outermost; smallest (cycles, DRAM bytes, candidate number) wins."""
    sizes, counts = np.empty((3, 128), np.int64), np.empty(3, np.int64)
    bandwidth = p.dram.bytes_per_cycle * p.dram.efficiency
    held = np.zeros(1, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    best_cycles, best_bytes = np.int64(0), np.int64(0)
    out.feasible, t.n_outer = 0, 1
    together = min(p.processing_units, w.count)
    for many in range(2 if together > 1 else 1):
        t.instances = 1 if many else together
        _fpga_sizes(p, w, t.instances, sizes, counts)
        for im in range(counts[0]):
            for ik in range(counts[1]):
                for jn in range(counts[2]):
                    t.tile_m, t.tile_k, t.tile_n = sizes[0, im], sizes[1, ik], sizes[2, jn]
                    if not fpga.gemm_fits(p, w, t.tile_m, t.tile_k, t.tile_n, t.instances):
                        continue
                    a, b, o = fpga.gemm_traffic(p, w, t)
                    least = whole_cycles(max(fpga.gemm_busy_cycles(p, w, t), (a + b + o) / bandwidth))
                    if out.feasible == 1 and least > best_cycles:
                        continue
                    cycles: Any = max(whole_cycles(fpga.gemm_cycles(p, w, t)[0]), least)
                    if out.feasible == 1 and cycles > best_cycles:
                        continue
                    if out.feasible == 0 or cycles < best_cycles or a + b + o < best_bytes:
                        best_cycles, best_bytes = cycles, a + b + o
                        out.tile_m, out.tile_k, out.tile_n = t.tile_m, t.tile_k, t.tile_n
                        out.instances, out.n_outer, out.feasible = t.instances, 1, 1
    held[0].feasible = 0


@compiled
def _largest_core(p: Any, w: Any, out: Any) -> None:
    """The largest chunk of `_best_core` that fits."""
    units = fpga.core_plan(p, w).units
    sizes = np.empty(128, np.int64)
    count = _sizes(units, 1, sizes) if fpga.is_spilled(p, w) else _sizes(units, units, sizes)
    out.feasible, out.tile_n = 0, w.n
    for i in range(count):
        if not fpga.is_spilled(p, w) or fpga.core_fits(p, w, sizes[i]):
            out.tile_m, out.feasible = sizes[i], 1
            return


@compiled
def _best_core(p: Any, w: Any, out: Any) -> None:
    """Search all chunk sizes of a VECTOR work on its core; the largest with the fewest cycles wins."""
    held = np.zeros(1, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    units = fpga.core_plan(p, w).units
    sizes = np.empty(128, np.int64)
    count = _sizes(units, 1, sizes) if fpga.is_spilled(p, w) else _sizes(units, units, sizes)
    best_cycles, out.feasible, out.tile_n = np.int64(0), 0, w.n
    for i in range(count):
        t.tile_m = sizes[i]
        if fpga.is_spilled(p, w) and not fpga.core_fits(p, w, t.tile_m):
            continue
        cycles = fpga.core_cost(p, w, t).cycles
        if out.feasible == 0 or cycles < best_cycles:
            best_cycles, out.tile_m, out.feasible = cycles, t.tile_m, 1
    held[0].feasible = 0


@compiled
def _map_fpga(p: Any, w: Any, rule: int, out: Any) -> None:
    """Mapping of any work of an FPGA by a rule; `feasible` 0 if nothing fits."""
    out.feasible = 1
    if fpga.is_on_host(w):
        return
    if w.kind == GEMM:
        if rule == LARGEST:
            _largest_fpga_gemm(p, w, out)
        else:
            _best_fpga_gemm(p, w, out)
    elif w.kind == VECTOR and w.function != fpga.GELU:
        if rule == LARGEST:
            _largest_core(p, w, out)
        else:
            _best_core(p, w, out)


@compiled
def _map_systolic(p: Any, w: Any, rule: int, out: Any) -> None:
    """Mapping of any work of a systolic array by a rule; `feasible` 0 if nothing fits."""
    out.feasible = 1
    if w.kind == GEMM:
        if rule == LARGEST:
            _largest_gemm(p, w, out)
        else:
            _best_gemm(p, w, out)
    elif w.kind == VECTOR:
        if rule == LARGEST:
            _largest_vector(p, w, out)
        else:
            _best_vector(p, w, out)


@compiled
def _map_all_fpga(p: Any, works: Any, rule: int, out: Any) -> None:
    for i in range(len(works)):
        _map_fpga(p, works[i], rule, out[i])


@compiled
def _map_all(p: Any, works: Any, rule: int, out: Any) -> None:
    for i in range(len(works)):
        _map_systolic(p, works[i], rule, out[i])


def candidates(platform: Systolic, work: Work) -> list[Mapping]:
    """Every mapping `best` considers for a GEMM, feasible or not, in its order: the stated candidate set.

    Tile sizes, largest first: the whole dimension and the array's side (1 where it is streamed) x 1, 2, 3, 4, 6, 8, 12,
    ... below it; loop orders m, n, k and n, m, k; if the tile is a whole instance, one of it or as many as arrays.
    """
    sizes = []
    for dim, quantum in zip(
        (work.m, work.k, work.n), quanta(platform.dataflow, platform.rows, platform.cols), strict=True
    ):
        column: list[int] = []
        while size := tile_size(dim, quantum, len(column)):
            column.append(size)
        sizes.append(column[::-1])
    found = []
    for m in sizes[0]:
        for k in sizes[1]:
            for n in sizes[2]:
                whole = (m, k, n) == (work.m, work.k, work.n)
                together = min(platform.arrays, work.count)
                for instances in (1, together) if whole and together > 1 else (1,):
                    found += [Mapping(m, k, n, instances, order) for order in ((0,) if whole else (0, 1))]
    return found


def best(platform: Platform, works: list[Work], asked_by: list[str] | None = None, rule: str = "best") -> np.ndarray:
    """(len(works),) MAPPING_DTYPE: for each work the feasible candidate with the fewest (cycles, DRAM bytes, number).

    asked_by: names of ops, for messages. rule: "largest" for the first fit of `_largest` instead of a search. Raises
    SpecError for another rule, Infeasible with demand, bound, unit and levers for the first work that the platform
    cannot compute or that no candidate fits.
    """
    if rule not in RULES:
        raise SpecError.unknown("mapping", rule, RULES)
    rows = np.zeros(len(works), MAPPING_DTYPE)
    names = asked_by or [""] * len(works)
    for work, name in zip(works, names, strict=True):
        platform.check_widths(work, name)
    if isinstance(platform, Systolic):
        _map_all(record(platform)[0], work_array(works), RULES.index(rule), rows)
        for i in np.flatnonzero(rows["feasible"] == 0):
            raise _infeasible(platform, works[i], names[i])
    if isinstance(platform, fpga.Fpga):
        platform.check_device()
        _map_all_fpga(record(platform)[0], work_array(works), RULES.index(rule), rows)
        for i in np.flatnonzero(rows["feasible"] == 0):
            raise platform.infeasible(works[i], names[i])
    return rows


def mapping_row(mapping: Mapping) -> np.ndarray:
    """(1,) MAPPING_DTYPE of one mapping."""
    t = mapping
    return np.array([(t.tile_m, t.tile_k, t.tile_n, t.instances, t.n_outer, 1)], MAPPING_DTYPE)


def _infeasible(p: Systolic, w: Work, name: str) -> Infeasible:
    """Which half buffer the smallest tile overflows."""
    if w.kind is WorkKind.VECTOR:
        plan = vector_plan(p, w)
        half = p.vector.buffer.capacity_bytes // 2
        what = f"{p.name}: {name}: one row of {plan.unit_elements} elements, operands and result"
        return Infeasible(what, plan.unit_bytes, half, "bytes (half the buffer)", ["vector.buffer.capacity_bytes"])
    qm, qk, qn = quanta(p.dataflow, p.rows, p.cols)
    m, k, n = min(w.m, qm), min(w.k, qk), min(w.n, qn)
    dataflow = Dataflow(p.dataflow).name.lower()
    for label, path, demand, bound in (
        ("input", "input_buffer", packed_bytes(m * k, w.a_bits), p.input_buffer.capacity_bytes),
        ("weight", "weight_buffer", packed_bytes(k * n, w.w_bits), p.weight_buffer.capacity_bytes),
        ("accumulator", "accumulator", packed_bytes(m * n, p.accumulator_bits), p.accumulator.capacity_bytes),
    ):
        if 2 * demand > bound:
            what = f"{p.name}: {name}: GEMM {w.m}x{w.k}x{w.n}, smallest {label} tile of the {dataflow} dataflow"
            levers = [f"{path}.capacity_bytes", "rows", "cols", "dataflow"]
            return Infeasible(what, demand, bound // 2, "bytes (half the buffer)", levers)
    raise AssertionError(f"{w} fits {p} but no candidate was found")
