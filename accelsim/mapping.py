"""`Mapping`: how a work is laid on a platform, and `best`: the cheapest one of a stated candidate set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from accelsim.errors import Infeasible
from accelsim.formulas import OS, PIPELINED, WS, Dataflow, packed_bytes, tile_array_cycles, whole_cycles
from accelsim.jit import atom, compiled, record
from accelsim.platforms import fpga
from accelsim.platforms.base import Platform
from accelsim.platforms.systolic import Systolic, gemm_fits, gemm_time, gemm_traffic, vector_cost, vector_plan
from accelsim.work import Work, WorkKind, work_array

MAPPING_DTYPE = np.dtype(
    [(name, np.int64) for name in ("tile_m", "tile_k", "tile_n", "instances", "n_outer", "feasible")]
)


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
def _least_cycles(p: Any, w: Any, t: Any) -> Any:
    """Cheap lower bound of a candidate's cycles: its full tiles on the array alone, and its traffic alone."""
    full_m, full_k, full_n = w.m // t.tile_m, w.k // t.tile_k, w.n // t.tile_n
    if p.dataflow == OS:
        array = full_m * full_n * w.count * tile_array_cycles(
            p.dataflow, p.fold_timing, p.rows, p.cols, p.arrays, 1, t.tile_m, w.k, t.tile_n
        )  # fmt: skip
    else:
        array = full_m * full_k * full_n * (w.count // t.instances) * tile_array_cycles(
            p.dataflow, p.fold_timing, p.rows, p.cols, p.arrays, t.instances, t.tile_m, t.tile_k, t.tile_n
        )  # fmt: skip
    a, b, o = gemm_traffic(w, t)
    edges = p.rows if p.fold_timing == PIPELINED else 0
    return max(float(array - edges), (a + b + o) / (p.dram.bytes_per_cycle * p.dram.efficiency) - 1.0)


@compiled
def _best_gemm(p: Any, w: Any, out: Any) -> None:
    """Search all tile sizes, loop orders and instance counts; smallest (cycles, DRAM bytes, candidate number) wins."""
    qm, qk, qn = quanta(p.dataflow, p.rows, p.cols)
    sizes_m, sizes_k, sizes_n = np.empty(128, np.int64), np.empty(128, np.int64), np.empty(128, np.int64)
    count_m, count_k, count_n = _sizes(w.m, qm, sizes_m), _sizes(w.k, qk, sizes_k), _sizes(w.n, qn, sizes_n)
    held = np.zeros(1, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    best_cycles, best_bytes = np.int64(0), np.int64(0)
    out.feasible = 0
    for im in range(count_m):
        for ik in range(count_k):
            t.tile_m, t.tile_k = sizes_m[im], sizes_k[ik]
            if 2 * packed_bytes(t.tile_m * t.tile_k, w.a_bits) > p.input_buffer.capacity_bytes:
                continue
            for jn in range(count_n):
                t.tile_n = sizes_n[jn]
                whole = t.tile_m == w.m and t.tile_k == w.k and t.tile_n == w.n
                for many in range(2 if whole and min(p.arrays, w.count) > 1 else 1):
                    t.instances = min(p.arrays, w.count) if many else 1
                    if not gemm_fits(p, w, t.tile_m, t.tile_k, t.tile_n, t.instances):
                        continue
                    for order in range(1 if whole else 2):
                        t.n_outer = order
                        if out.feasible == 1 and _least_cycles(p, w, t) > best_cycles:
                            continue
                        cycles = gemm_time(p, w, t).cycles
                        if out.feasible == 1 and cycles > best_cycles:
                            continue
                        a, b, o = gemm_traffic(w, t)
                        if out.feasible == 0 or cycles < best_cycles or a + b + o < best_bytes:
                            best_cycles, best_bytes = cycles, a + b + o
                            out.tile_m, out.tile_k, out.tile_n = t.tile_m, t.tile_k, t.tile_n
                            out.instances, out.n_outer, out.feasible = t.instances, t.n_outer, 1
    held[0].feasible = 0


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
def _best_fpga_gemm(p: Any, w: Any, out: Any) -> None:
    """Search the tiles of FQ-BERT's accelerator, n outermost; smallest (cycles, DRAM bytes, candidate number) wins.

    m: whole where activations stay on chip, else `tile_size` of 1; k: of the products of a beat; n: of the columns the
    units take at once. instances: as many as units, or one.
    """
    sizes_m, sizes_k, sizes_n = np.empty(128, np.int64), np.empty(128, np.int64), np.empty(128, np.int64)
    count_m = _sizes(w.m, 1, sizes_m) if fpga.is_spilled(p, w) else _sizes(w.m, w.m, sizes_m)
    count_k = _sizes(w.k, fpga.lanes_of(p, w.w_bits), sizes_k)
    bandwidth = p.dram.bytes_per_cycle * p.dram.efficiency
    held = np.zeros(1, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    best_cycles, best_bytes = np.int64(0), np.int64(0)
    out.feasible, t.n_outer = 0, 1
    together = min(p.processing_units, w.count)
    for many in range(2 if together > 1 else 1):
        t.instances = 1 if many else together
        count_n = _sizes(w.n, fpga.columns_at_once(p, t.instances), sizes_n)
        for im in range(count_m):
            for ik in range(count_k):
                for jn in range(count_n):
                    t.tile_m, t.tile_k, t.tile_n = sizes_m[im], sizes_k[ik], sizes_n[jn]
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
def _best_all_fpga(p: Any, works: Any, out: Any) -> None:
    for i in range(len(works)):
        w = works[i]
        out[i].feasible = 1
        if fpga.is_on_host(w):
            continue
        if w.kind == 0:
            _best_fpga_gemm(p, w, out[i])
        elif w.kind == 1 and w.function != fpga.GELU:
            _best_core(p, w, out[i])


@compiled
def _best_all(p: Any, works: Any, out: Any) -> None:
    for i in range(len(works)):
        w = works[i]
        out[i].feasible = 1
        if w.kind == 0:
            _best_gemm(p, w, out[i])
        elif w.kind == 1:
            _best_vector(p, w, out[i])


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


def best(platform: Platform, works: list[Work], asked_by: list[str] | None = None) -> np.ndarray:
    """(len(works),) MAPPING_DTYPE: for each work the feasible candidate with the fewest (cycles, DRAM bytes, number).

    asked_by: names of ops, for messages. Raises Infeasible with demand, bound, unit and levers for the first work that
    the platform cannot compute or that no candidate fits.
    """
    rows = np.zeros(len(works), MAPPING_DTYPE)
    names = asked_by or [""] * len(works)
    for work, name in zip(works, names, strict=True):
        platform.check_widths(work, name)
    if isinstance(platform, Systolic):
        _best_all(record(platform)[0], work_array(works), rows)
        for i in np.flatnonzero(rows["feasible"] == 0):
            raise _infeasible(platform, works[i], names[i])
    if isinstance(platform, fpga.Fpga):
        platform.check_device()
        _best_all_fpga(record(platform)[0], work_array(works), rows)
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
