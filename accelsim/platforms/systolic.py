"""A systolic-array accelerator: R x C arrays, a scratchpad per operand, accumulators, a vector unit, one DRAM channel.

Every op reads its operands from DRAM and writes its result there (no operand stays on chip between ops), in tiles that
are double buffered: while one tile is computed the next is loaded and the one before is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from accelsim.errors import Infeasible
from accelsim.formulas import (
    OS,
    Dataflow,
    FoldTiming,
    accumulator_accesses,
    ceil_div,
    exposed_latency_bound,
    fold_cycles,
    fold_grid,
    input_reads,
    last_tile,
    mac_pj,
    operand_loads,
    packed_bytes,
    pipeline_lead_cycles,
    pipeline_tail_cycles,
    share_start,
    step_cycles,
    sum_bits,
    tile_array_cycles,
    tiled_matrix_bytes,
    transfer_cycles,
    weight_reads,
    whole_cycles,
)
from accelsim.jit import atom, compiled, record
from accelsim.platforms.base import (
    COST_DTYPE,
    STEP_DTYPE,
    STRICT,
    Amount,
    Bits,
    Cost,
    Count,
    Dram,
    Memory,
    Platform,
    Rate,
    Side,
    Term,
    Whole,
    store_cost,
)
from accelsim.technology import technology
from accelsim.work import Arithmetic, VectorFunction, Work, WorkKind, work_array

INT = int(Arithmetic.INT)
GEMM, VECTOR, MOVE = int(WorkKind.GEMM), int(WorkKind.VECTOR), int(WorkKind.MOVE)
SOFTMAX, LAYER_NORM, GELU = int(VectorFunction.SOFTMAX), int(VectorFunction.LAYER_NORM), int(VectorFunction.GELU)


@dataclass(frozen=True)
class VectorRate:
    """How fast the vector unit does one function."""

    passes: Count
    """Sweeps over a row; a row that is swept more than once must fit its buffer."""
    cycles_per_element: Count
    """Cycles a lane spends on one element in one sweep."""
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class VectorUnit:
    """SIMD lanes beside the array, with a buffer and DMA of their own."""

    lanes: Side
    latency_cycles: Whole
    """Depth of the pipeline, paid once by each op."""
    elementwise: VectorRate
    """Residual add, scale, mask, ReLU and everything as simple."""
    softmax: VectorRate
    layer_norm: VectorRate
    gelu: VectorRate
    """GELU, tanh, sigmoid."""
    flop_pj: Amount
    exp_pj: Amount
    buffer: Memory
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Systolic(Platform):
    """Systolic-array ASIC. Cycles are those of `clock_hz`, energies those of the technology the file names."""

    name: str
    clock_hz: Rate
    rows: Side
    """Processing elements down one array."""
    cols: Side
    arrays: Side
    """Arrays that share the folds of a tile."""
    dataflow: Dataflow
    """os, ws or is: which operand stays in the array."""
    fold_timing: FoldTiming
    """serial: folds back to back, full array charged. pipelined: loads and drains behind the streams."""
    arithmetic: Arithmetic
    """int, float or bfloat: what the multipliers compute."""
    input_bits: Bits
    weight_bits: Bits
    accumulator_bits: Bits
    input_buffer: Memory
    weight_buffer: Memory
    accumulator: Memory
    dram: Dram
    vector: VectorUnit
    multiply_pj: Amount
    """One product of input_bits x weight_bits."""
    accumulate_pj: Amount
    """One addition of accumulator_bits."""
    static_w: Amount
    """Leakage of everything but the buffers, which state their own."""
    technology_nm: Literal[45, 28, 22, 16, 7]
    """Node that the area is computed for (`accelsim.technology`); energies are those of the fields above."""
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    kind: ClassVar[str] = "systolic"
    units: ClassVar[tuple[str, ...]] = ("array", "vector", "dma")
    reads: ClassVar[dict[str, tuple[str, ...]]] = {
        "array": (
            "rows", "cols", "arrays", "dataflow", "fold_timing", "arithmetic", "input_bits", "weight_bits",
            "accumulator_bits", "input_buffer", "weight_buffer", "accumulator", "dram", "multiply_pj", "accumulate_pj",
        ),
        "vector": ("vector", "dram"),
        "dma": ("dram",),
    }  # fmt: skip

    def check_widths(self, work: Work, name: str) -> None:
        if work.kind is not WorkKind.GEMM:
            return
        if work.arithmetic is not self.arithmetic or work.a_bits > self.input_bits or work.w_bits > self.weight_bits:
            has = f"{self.arithmetic.name.lower()} {self.input_bits} x {self.weight_bits}"
            asked = f"{work.arithmetic.name.lower()} {work.a_bits} x {work.w_bits}"
            raise Infeasible(
                f"{self.name}: {name}: width of a product",
                asked,
                has,
                "bits",
                ["--precision (int8, i-bert and fq-bert are integers)", "arithmetic", "input_bits", "weight_bits"],
            )
        if self.arithmetic is Arithmetic.INT:
            needed = sum_bits(work.a_bits, work.w_bits, work.k)
            if needed > self.accumulator_bits:
                what = f"{self.name}: {name}: sums of k = {work.k} products of {work.a_bits} x {work.w_bits} bits"
                raise Infeasible(what, needed, self.accumulator_bits, "accumulator bits", ["accumulator_bits"])

    def default_precision(self) -> str:
        if self.arithmetic is Arithmetic.INT:
            return "int8"
        return "bf16" if self.arithmetic is Arithmetic.BFLOAT else "fp16" if self.input_bits < 32 else "fp32"

    def unit(self, work: Work) -> int:
        return {WorkKind.GEMM: 0, WorkKind.VECTOR: 1}.get(work.kind, 2)

    def costs(self, works: np.ndarray, mappings: np.ndarray) -> np.ndarray:
        out = np.zeros(len(works), COST_DTYPE)
        _cost_all(record(self)[0], works, mappings, out)
        return out

    def step_count(self, work: np.ndarray, mapping: np.ndarray) -> int:
        return int(_count_steps(record(self)[0], work, mapping))

    def steps(self, work: np.ndarray, mapping: np.ndarray) -> np.ndarray:
        p = record(self)[0]
        out = np.zeros(_count_steps(p, work, mapping), STEP_DTYPE)
        _fill_steps(p, work, mapping, out)
        return out

    def explain(self, work: Work, mapping: np.ndarray) -> list[Term]:
        cost = self.costs(work_array([work]), mapping)[0]
        terms = {WorkKind.GEMM: self._explain_gemm, WorkKind.VECTOR: self._explain_vector}.get(work.kind)
        lines = (
            terms(work, mapping.view(np.recarray)[0])
            if terms
            else [Term("move", "", "", "read, then write, through DRAM")]
        )
        bandwidth = f"{self.dram.bytes_per_cycle:g} x {self.dram.efficiency:g} bytes/cycle"
        return [
            *lines,
            Term("input traffic", int(cost["in_dram_bytes"]), "bytes", "read from DRAM, reloads included"),
            Term(
                "weight traffic", int(cost["weight_dram_bytes"]), "bytes", "read from DRAM, reloads and bias included"
            ),
            Term("output traffic", int(cost["out_dram_bytes"]), "bytes", "written to DRAM"),
            Term(
                "DRAM cycles", float(cost["dram_cycles"]), "cycles", f"{int(cost['dram_bytes'])} bytes / ({bandwidth})"
            ),
            Term("compute cycles", int(cost["compute_cycles"]), "cycles", "the unit alone, memory never makes it wait"),
            Term(
                "busy cycles", float(cost["busy_cycles"]), "cycles", "compute, or the slowest buffer where it is slower"
            ),
            Term(
                "latency",
                float(cost["latency_cycles"]),
                "cycles",
                "most that could be exposed; DRAM, buffers, pipeline",
            ),
            Term(
                "cycles",
                int(cost["cycles"]),
                "cycles",
                "latency + first load + sum over tiles of max(busy, load, (busy + load + latency) / 2) + last store",
            ),
            Term("stall", int(cost["stall_cycles"]), "cycles", "cycles - compute cycles"),
        ]

    def _explain_gemm(self, w: Work, t: Any) -> list[Term]:
        tiles_m, tiles_k = ceil_div(w.m, int(t.tile_m)), ceil_div(w.k, int(t.tile_k))
        tiles_n, groups = ceil_div(w.n, int(t.tile_n)), ceil_div(w.count, int(t.instances))
        down, across, streamed = fold_grid(
            self.dataflow, self.rows, self.cols, int(t.tile_m), int(t.tile_k), int(t.tile_n)
        )
        each = fold_cycles(self.dataflow, self.fold_timing, self.rows, self.cols, streamed)
        a_loads, w_loads = operand_loads(int(t.n_outer), tiles_m, tiles_k, tiles_n)
        letter = {Dataflow.OS: "k", Dataflow.WS: "m", Dataflow.IS: "n"}[self.dataflow]
        serial = {Dataflow.OS: f"{letter} + R + C - 2"}.get(self.dataflow, f"2R + C + {letter} - 2")
        formula = f"max({letter}, R)" if self.fold_timing is FoldTiming.PIPELINED else serial
        order = "n, m, k" if t.n_outer else "m, n, k"
        half = "half of the buffer holds"
        inputs = packed_bytes(int(t.tile_m) * int(t.tile_k), w.a_bits)
        weights = packed_bytes(int(t.tile_k) * int(t.tile_n), w.w_bits)
        sums = packed_bytes(int(t.tile_m) * int(t.tile_n), self.accumulator_bits)
        return [
            Term("GEMM", f"{w.m} x {w.k} x {w.n}, {w.count} of it", "", f"{w.a_bits} x {w.w_bits} -> {w.o_bits} bits"),
            Term("tile", f"{t.tile_m} x {t.tile_k} x {t.tile_n}", "", f"m x k x n, {t.instances} instance(s) at once"),
            Term("loop order", f"{groups} x ({order})", "", f"{tiles_m} x {tiles_k} x {tiles_n} tiles of m, k, n"),
            Term("dataflow", self.dataflow.name.lower(), "", f"{self.fold_timing.name.lower()} folds"),
            Term("input tile", inputs, "bytes", f"{half} {self.input_buffer.capacity_bytes // 2}"),
            Term("weight tile", weights, "bytes", f"{half} {self.weight_buffer.capacity_bytes // 2}"),
            Term("accumulator tile", sums, "bytes", f"{half} {self.accumulator.capacity_bytes // 2}"),
            Term(
                "folds of a tile",
                down * across,
                "folds",
                f"{down} down {self.rows} rows, {across} across {self.cols} columns",
            ),
            Term(
                "cycles of a fold",
                each,
                "cycles",
                f"{formula}, {letter} = {streamed}, R = {self.rows}, C = {self.cols}",
            ),
            Term("input loads", a_loads, "times", "the whole matrix comes from DRAM, by loop order and tiles"),
            Term("weight loads", w_loads, "times", "the whole matrix comes from DRAM, by loop order and tiles"),
        ]

    def _explain_vector(self, w: Work, t: Any) -> list[Term]:
        plan = vector_plan(self, w)
        return [
            Term("VECTOR", f"{w.m * w.count} rows of {w.n}", "", w.function.name.lower().replace("_", " ")),
            Term("chunk", int(t.tile_m), "units", f"of {plan.unit_elements} elements, in half of the vector buffer"),
            Term("passes", plan.passes, "passes", f"vector.{w.function.name.lower()}.passes"),
            Term(
                "lane cycles",
                vector_busy_cycles(self, plan, plan.units, 0)[0],
                "cycles",
                f"{plan.units} units x ceil({plan.unit_elements} / {self.vector.lanes} lanes) x {plan.passes} passes x "
                f"{plan.cycles_per_element}",
            ),
        ]

    def dram_latency_cycles(self) -> float:
        return float(self.dram.latency_cycles)

    def dram_bytes_per_cycle(self) -> float:
        return self.dram.bytes_per_cycle * self.dram.efficiency

    def leakage_w(self) -> float:
        return float(idle_w(self))

    def area_mm2(self) -> float:
        """Sum of `area_by_part_mm2`; controllers, DRAM interface and pads are not in it."""
        return sum(self.area_by_part_mm2().values())

    def area_by_part_mm2(self) -> dict[str, float]:
        """Processing elements, each buffer as one macro, vector lanes with their buffer, at `technology_nm`."""
        element = technology(self.technology_nm).mac_mm2(
            self.input_bits, self.weight_bits, self.accumulator_bits, self.arithmetic
        )
        return area_parts_mm2(self, self.technology_nm, element)

    def peak_macs_per_cycle(self, work: Work) -> float:
        return float(self.rows * self.cols * self.arrays)

    def assumptions(self) -> dict[str, str]:
        return {
            "array": f"{self.arrays} x {self.rows}x{self.cols}, {self.dataflow.name.lower()} dataflow",
            "fold timing": _TIMING_TEXT[self.fold_timing],
            "buffers": "double buffered: a tile takes at most half of each",
            "DRAM": f"all operands from and to DRAM, {self.dram_bytes_per_cycle():g} bytes/cycle, one shared channel",
        }


def idle_w(p: Any) -> Any:
    """Leakage of everything and of each buffer, in W. Numbers, or arrays of many designs."""
    return p.static_w + sum(b.leakage_w for b in (p.input_buffer, p.weight_buffer, p.accumulator, p.vector.buffer))


def area_parts_mm2(p: Any, technology_nm: int, element_mm2: float) -> dict[str, Any]:
    """Area by part, for processing elements of `element_mm2`. Numbers, or arrays of many designs of one node."""
    node = technology(technology_nm)
    return {
        "arrays": p.rows * p.cols * p.arrays * element_mm2,
        "input_buffer": node.sram_mm2(p.input_buffer.capacity_bytes),
        "weight_buffer": node.sram_mm2(p.weight_buffer.capacity_bytes),
        "accumulator": node.sram_mm2(p.accumulator.capacity_bytes),
        "vector": p.vector.lanes * node.lane_mm2() + node.sram_mm2(p.vector.buffer.capacity_bytes),
    }


AREA_READS = {
    "arrays": ("rows", "cols", "arrays"),
    "input_buffer": ("input_buffer.capacity_bytes",),
    "weight_buffer": ("weight_buffer.capacity_bytes",),
    "accumulator": ("accumulator.capacity_bytes",),
    "vector": ("vector.lanes", "vector.buffer.capacity_bytes"),
}
"""Part of `area_parts_mm2` -> fields it depends on beside the node and the widths."""


BUFFERS = ("input_buffer", "weight_buffer", "accumulator", "vector.buffer")
ENERGIES = (
    *(f"{name}.{field}" for name in BUFFERS for field in ("read_pj_per_byte", "write_pj_per_byte", "leakage_w")),
    "multiply_pj", "accumulate_pj", "static_w", "vector.flop_pj", "vector.exp_pj",
)  # fmt: skip
"""Fields that `set_energies` fills."""
ENERGIES_READ = (
    "technology_nm", "input_bits", "weight_bits", "accumulator_bits", "arithmetic", "rows", "cols", "arrays",
    "vector.lanes", *(f"{name}.capacity_bytes" for name in BUFFERS),
)  # fmt: skip
"""Fields that they follow from."""


def set_energies(designs: np.ndarray, base_nm: int) -> None:
    """Fill energies and leakage of (n,) designs as the technology tables have them for each design's node and sizes.

    Buffers by their capacity, as one macro read 128 bits at once; products and sums by their width; leakage by area.
    The vector unit's operations scale from node `base_nm` as a multiply-accumulate does. DRAM stays as it is.
    """
    nodes = designs["technology_nm"]
    for path in BUFFERS:
        memory = field_of(designs, path)
        for (nm, capacity), rows in _alike(nodes, memory["capacity_bytes"]):
            node = technology(nm)
            memory["read_pj_per_byte"][rows] = node.sram_read_pj(capacity) / 16
            memory["write_pj_per_byte"][rows] = node.sram_write_pj(capacity) / 16
            memory["leakage_w"][rows] = node.leakage_w(0.0, node.sram_mm2(capacity))
    vector = designs["vector"]
    widths = [designs[n] for n in ("input_bits", "weight_bits", "accumulator_bits", "arithmetic")]
    for (nm, a_bits, w_bits, acc_bits, kind), rows in _alike(nodes, *widths):
        node, arithmetic = technology(nm), Arithmetic(kind)
        multiply, accumulate = node.mac_parts_pj(a_bits, w_bits, acc_bits)
        if arithmetic is not Arithmetic.INT:
            name = "bf16" if arithmetic is Arithmetic.BFLOAT else "fp32" if max(a_bits, w_bits) > 16 else "fp16"
            ratio = node.float_mac_pj(name) / node.mac_pj()
            multiply, accumulate = (part * ratio for part in node.mac_parts_pj())
        designs["multiply_pj"][rows], designs["accumulate_pj"][rows] = multiply, accumulate
        element_w = node.leakage_w(node.mac_mm2(a_bits, w_bits, acc_bits, arithmetic))
        count = designs["rows"][rows] * designs["cols"][rows] * designs["arrays"][rows]
        designs["static_w"][rows] = count * element_w + vector["lanes"][rows] * node.leakage_w(node.lane_mm2())
        shrink = node.mac_pj() / technology(base_nm).mac_pj()
        vector["flop_pj"][rows] *= shrink
        vector["exp_pj"][rows] *= shrink


def field_of(designs: np.ndarray, path: str) -> np.ndarray:
    """A view of the field of a dotted path of (n,) designs."""
    for part in path.split("."):
        designs = designs[part]
    return designs


def _alike(*columns: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """(values, their rows) of rows of integers that are the same in all columns."""
    order = np.lexsort(columns)
    ordered = np.stack([c[order] for c in columns])
    starts = np.flatnonzero((np.diff(ordered, axis=1) != 0).any(axis=0)) + 1
    for rows in np.split(order, starts):
        yield tuple(int(c[rows[0]]) for c in columns), rows


_TIMING_TEXT = {
    FoldTiming.SERIAL: "serial (folds back to back, nothing overlaps, the full array charged on ragged edges)",
    FoldTiming.PIPELINED: "pipelined (next fold loads behind the current one, streams follow without a gap)",
}


class GemmTime(NamedTuple):
    """Time of a tiled GEMM, in cycles: on the arrays alone, on arrays and buffers, and with DRAM (`cycles`)."""

    cycles: int
    array_cycles: int
    busy_cycles: float
    dram_cycles: float
    latency_cycles: float


@atom
def computes(p: Any, w: Any) -> Any:
    """Whether the array has the width of a product and the accumulators that of its sum."""
    if w.kind != GEMM:
        return True
    if w.arithmetic != p.arithmetic or w.a_bits > p.input_bits or w.w_bits > p.weight_bits:
        return False
    return p.arithmetic != INT or sum_bits(w.a_bits, w.w_bits, w.k) <= p.accumulator_bits


@atom
def sram_cycles(p: Any, a_bits: int, w_bits: int, m: int, k: int, n: int, is_last_k: bool) -> Any:
    """Cycles the slowest buffer needs to serve one tile: the arrays wait for it if it is slower than they are."""
    inputs = packed_bytes(input_reads(p.dataflow, p.rows, p.cols, m, k, n), a_bits)
    weights = packed_bytes(weight_reads(p.dataflow, p.rows, p.cols, m, k, n), w_bits)
    sums = 2 * packed_bytes(accumulator_accesses(p.dataflow, p.rows, m, k, n, is_last_k), p.accumulator_bits)
    return max(
        inputs / p.input_buffer.bytes_per_cycle,
        weights / p.weight_buffer.bytes_per_cycle,
        sums / p.accumulator.bytes_per_cycle,
    )


@atom
def tile_time(p: Any, a_bits: int, w_bits: int, g: int, m: int, k: int, n: int, whole_k: int, is_last_k: bool) -> Any:
    """(array cycles, busy cycles) of `g` instances of the tile (m, k, n) of a GEMM whose k is `whole_k`.

    Output stationary with k cut: the tile is one fold, its stream goes on from tile to tile, and what a fold costs
    beyond its stream is charged with the last.
    """
    if p.dataflow == OS and k < whole_k:
        array = k
        if is_last_k:
            array += fold_cycles(p.dataflow, p.fold_timing, p.rows, p.cols, whole_k) - whole_k
    else:
        array = tile_array_cycles(p.dataflow, p.fold_timing, p.rows, p.cols, p.arrays, g, m, k, n)
    return array, max(float(array), g * sram_cycles(p, a_bits, w_bits, m, k, n, is_last_k))


@atom
def edge_cycles(p: Any, w: Any, t: Any) -> Any:
    """(lead, tail) cycles around the steady tiles of one op: filling and draining the array."""
    last_k = w.k if p.dataflow == OS else last_tile(w.k, t.tile_k)
    streamed = fold_grid(p.dataflow, p.rows, p.cols, last_tile(w.m, t.tile_m), last_k, last_tile(w.n, t.tile_n))[2]
    lead = pipeline_lead_cycles(p.dataflow, p.fold_timing, p.rows)
    return lead, pipeline_tail_cycles(p.fold_timing, p.rows, p.cols, streamed)


@atom
def buffer_latency_cycles(p: Any) -> Any:
    """Latency of the first access to the array's buffers, paid once by an op."""
    return max(p.input_buffer.latency_cycles, p.weight_buffer.latency_cycles) + p.accumulator.latency_cycles


@atom
def gemm_fits(p: Any, w: Any, tile_m: int, tile_k: int, tile_n: int, instances: int) -> Any:
    """True if half of each buffer holds its tile and, output stationary with k cut, the tile is a single fold."""
    if p.dataflow == OS and tile_k < w.k and (tile_m > p.rows or tile_n > p.cols or instances > 1):
        return False
    return (
        2 * instances * packed_bytes(tile_m * tile_k, w.a_bits) <= p.input_buffer.capacity_bytes
        and 2 * instances * packed_bytes(tile_k * tile_n, w.w_bits) <= p.weight_buffer.capacity_bytes
        and 2 * instances * packed_bytes(tile_m * tile_n, p.accumulator_bits) <= p.accumulator.capacity_bytes
    )


@atom
def bias_bytes(w: Any) -> Any:
    """What `weight_bytes` holds beside the matrices."""
    return w.weight_bytes - w.count * packed_bytes(w.k * w.n, w.w_bits)


@atom
def gemm_traffic(w: Any, t: Any) -> Any:
    """DRAM bytes of a GEMM under a mapping: (inputs, weights with bias, outputs)."""
    tiles_m, tiles_k = ceil_div(w.m, t.tile_m), ceil_div(w.k, t.tile_k)
    tiles_n = ceil_div(w.n, t.tile_n)
    a_loads, w_loads = operand_loads(t.n_outer, tiles_m, tiles_k, tiles_n)
    a_bytes = w.count * a_loads * tiled_matrix_bytes(w.m, w.k, t.tile_m, t.tile_k, w.a_bits)
    w_bytes = w.count * w_loads * tiled_matrix_bytes(w.k, w.n, t.tile_k, t.tile_n, w.w_bits) + bias_bytes(w)
    o_bytes = w.count * tiled_matrix_bytes(w.m, w.n, t.tile_m, t.tile_n, w.o_bits)
    return a_bytes, w_bytes, o_bytes


@atom
def gemm_time(p: Any, w: Any, t: Any) -> Any:
    """`GemmTime` of a GEMM under a mapping: full, m-edge, k-edge, n-edge and corner tiles, each as often as it comes.

    latency + first load + sum over all tiles but the last of `step_cycles` + last tile + last store + latency. A tile's
    transfer is its share of all traffic between the first load and the last store: what it loads, an operand that stays
    over several tiles counted in equal parts, and, with the last k, what it stores.
    """
    bandwidth = p.dram.bytes_per_cycle * p.dram.efficiency
    latency = p.dram.latency_cycles
    a_bytes, w_bytes, o_bytes = gemm_traffic(w, t)
    full_m, full_k = ceil_div(w.m, t.tile_m) - 1, ceil_div(w.k, t.tile_k) - 1
    full_n, full_g = ceil_div(w.n, t.tile_n) - 1, ceil_div(w.count, t.instances) - 1
    end_m, end_k, end_n = w.m - full_m * t.tile_m, w.k - full_k * t.tile_k, w.n - full_n * t.tile_n
    end_g = w.count - full_g * t.instances
    steps = (full_m + 1) * (full_k + 1) * (full_n + 1) * (full_g + 1)
    a_loads, w_loads = operand_loads(t.n_outer, full_m + 1, full_k + 1, full_n + 1)
    a_share, w_share = a_loads / (full_n + 1), w_loads / (full_m + 1)
    bias = bias_bytes(w)
    first = bias + min(t.instances, w.count) * (
        packed_bytes(t.tile_m * t.tile_k, w.a_bits) + packed_bytes(t.tile_k * t.tile_n, w.w_bits)
    )
    final = end_g * packed_bytes(end_m * end_n, w.o_bits)
    corner = final + end_g * (
        packed_bytes(end_m * end_k, w.a_bits) * a_share + packed_bytes(end_k * end_n, w.w_bits) * w_share
    )
    total = a_bytes + w_bytes + o_bytes
    shared = total - bias - corner
    scale = (total - first - final) / shared / bandwidth if steps > 1 and shared > 0 else 0.0
    array_sum = 0
    busy_sum, step_sum, last_busy = 0.0, 0.0, 0.0
    for ig in range(2):
        g, times_g = (end_g, 1) if ig else (t.instances, full_g)
        for im in range(2):
            m, times_m = (end_m, times_g) if im else (t.tile_m, times_g * full_m)
            for jn in range(2):
                n, times_n = (end_n, times_m) if jn else (t.tile_n, times_m * full_n)
                stored = g * packed_bytes(m * n, w.o_bits)
                for lk in range(2):
                    k, times = (end_k, times_n) if lk else (t.tile_k, times_n * full_k)
                    if times > 0:
                        array, busy = tile_time(p, w.a_bits, w.w_bits, g, m, k, n, w.k, lk == 1)
                        moved = packed_bytes(m * k, w.a_bits) * a_share + packed_bytes(k * n, w.w_bits) * w_share
                        moved = g * moved + (stored if lk else 0)
                        array_sum += times * array
                        busy_sum += times * busy
                        last_busy = busy
                        step = step_cycles(busy, moved * scale, latency)
                        step_sum += (times - (1 if ig and im and jn and lk else 0)) * step
    lead, tail = edge_cycles(p, w, t)
    exposed = exposed_latency_bound(latency, steps) + buffer_latency_cycles(p)
    cycles = (
        2 * latency
        + buffer_latency_cycles(p)
        + transfer_cycles(first, bandwidth)
        + step_sum
        + last_busy
        + lead
        + tail
        + transfer_cycles(final, bandwidth)
    )
    edges = lead + tail
    return GemmTime(
        whole_cycles(cycles), array_sum + edges, busy_sum + edges, transfer_cycles(total, bandwidth), exposed
    )


@atom
def gemm_cost(p: Any, w: Any, t: Any) -> Any:
    """`Cost` of a GEMM under a mapping."""
    time = gemm_time(p, w, t)
    a_dram, w_dram, o_dram = gemm_traffic(w, t)
    dram = a_dram + w_dram + o_dram
    full_m, full_k = ceil_div(w.m, t.tile_m) - 1, ceil_div(w.k, t.tile_k) - 1
    full_n = ceil_div(w.n, t.tile_n) - 1
    a_reads, w_reads, sums = 0, 0, 0
    for im in range(2):
        m = w.m - full_m * t.tile_m if im else t.tile_m
        for jn in range(2):
            n = w.n - full_n * t.tile_n if jn else t.tile_n
            for lk in range(2):
                times = w.count * (1 if im else full_m) * (1 if jn else full_n) * (1 if lk else full_k)
                if times > 0:
                    k = w.k - full_k * t.tile_k if lk else t.tile_k
                    a_reads += times * packed_bytes(input_reads(p.dataflow, p.rows, p.cols, m, k, n), w.a_bits)
                    w_reads += times * packed_bytes(weight_reads(p.dataflow, p.rows, p.cols, m, k, n), w.w_bits)
                    accesses = accumulator_accesses(p.dataflow, p.rows, m, k, n, lk == 1)
                    sums += times * packed_bytes(accesses, p.accumulator_bits)
    sram_pj = (
        a_reads * p.input_buffer.read_pj_per_byte
        + a_dram * p.input_buffer.write_pj_per_byte
        + w_reads * p.weight_buffer.read_pj_per_byte
        + w_dram * p.weight_buffer.write_pj_per_byte
        + sums * (p.accumulator.read_pj_per_byte + p.accumulator.write_pj_per_byte)
    )
    macs = w.m * w.k * w.n * w.count
    each = mac_pj(p.multiply_pj, p.accumulate_pj, p.input_bits, p.weight_bits, w.a_bits, w.w_bits)
    return Cost(
        time.cycles,
        time.array_cycles,
        time.cycles - time.array_cycles,
        macs,
        a_reads + a_dram + w_reads + w_dram + 2 * sums,
        dram,
        a_dram,
        w_dram,
        o_dram,
        time.busy_cycles,
        time.dram_cycles,
        time.latency_cycles,
        macs / (p.rows * p.cols * p.arrays),
        macs * each,
        sram_pj,
        dram * p.dram.pj_per_byte,
        0.0,
    )


# --- vector unit ------------------------------------------------------------------------------------------------


@atom
def vector_rate(p: Any, function: int) -> Any:
    """(passes, cycles per element) of a function."""
    if function == SOFTMAX:
        return p.vector.softmax.passes, p.vector.softmax.cycles_per_element
    if function == LAYER_NORM:
        return p.vector.layer_norm.passes, p.vector.layer_norm.cycles_per_element
    if function == GELU:
        return p.vector.gelu.passes, p.vector.gelu.cycles_per_element
    return p.vector.elementwise.passes, p.vector.elementwise.cycles_per_element


class VectorPlan(NamedTuple):
    """How a VECTOR work may be cut: `units` of `unit_elements` and `unit_bytes`, and the rate of its function."""

    units: int
    unit_elements: int
    unit_bytes: int
    passes: int
    cycles_per_element: int


@atom
def vector_plan(p: Any, w: Any) -> Any:
    """The cut of a VECTOR work. Rows are kept whole if they are swept more than once, else `lanes` elements are a unit.

    unit_bytes: operands and results of one unit; half of the vector unit's buffer must hold a chunk of them.
    """
    passes, per_element = vector_rate(p, w.function)
    unit_elements = w.n if passes > 1 else p.vector.lanes
    units = ceil_div(w.m * w.n * w.count, unit_elements)
    unit_bytes = ceil_div(w.in_bytes, units) + ceil_div(w.out_bytes, units)
    return VectorPlan(units, unit_elements, unit_bytes, passes, per_element)


@atom
def vector_busy_cycles(p: Any, plan: Any, units: int, nbytes: int) -> Any:
    """(lane cycles, busy cycles) of `units` units that touch `nbytes` of the buffer."""
    lanes = units * ceil_div(plan.unit_elements, p.vector.lanes) * plan.passes * plan.cycles_per_element
    return lanes, max(float(lanes), nbytes / p.vector.buffer.bytes_per_cycle)


@atom
def vector_sram_bytes(plan: Any, in_bytes: int, out_bytes: int) -> Any:
    """Buffer traffic on the lanes' side: operands read in every pass, results written."""
    return plan.passes * in_bytes + out_bytes


@atom
def vector_cost(p: Any, w: Any, t: Any) -> Any:
    """`Cost` of a VECTOR work: chunks of `tile_m` units double buffered through the vector unit's buffer."""
    bandwidth = p.dram.bytes_per_cycle * p.dram.efficiency
    plan = vector_plan(p, w)
    chunk = t.tile_m
    chunks = ceil_div(plan.units, chunk)
    last_start = (chunks - 1) * chunk
    first = share_start(w.in_bytes, plan.units, min(chunk, plan.units))
    final = w.out_bytes - share_start(w.out_bytes, plan.units, last_start)
    total = w.in_bytes + w.out_bytes
    sram = vector_sram_bytes(plan, w.in_bytes, w.out_bytes)
    array_sum, busy_sum, last_busy = 0, 0.0, 0.0
    for i in range(2):
        times = 1 if i else chunks - 1
        units = plan.units - last_start if i else chunk
        if times > 0:
            lanes, last_busy = vector_busy_cycles(p, plan, units, sram * (units / plan.units))
            array_sum += times * lanes
            busy_sum += times * last_busy
    fixed = p.vector.latency_cycles + p.vector.buffer.latency_cycles
    latency = exposed_latency_bound(p.dram.latency_cycles, chunks) + fixed
    between = transfer_cycles(total - first - final, bandwidth) / max(1, chunks - 1)
    whole_chunk = vector_busy_cycles(p, plan, chunk, sram * (chunk / plan.units))[1]
    cycles = whole_cycles(
        2 * p.dram.latency_cycles
        + fixed
        + transfer_cycles(first, bandwidth)
        + (chunks - 1) * step_cycles(whole_chunk, between, p.dram.latency_cycles)
        + last_busy
        + transfer_cycles(final, bandwidth)
    )
    elements = w.m * w.n * w.count
    reads = plan.passes * w.in_bytes + w.out_bytes
    writes = w.in_bytes + w.out_bytes
    return Cost(
        cycles,
        array_sum,
        cycles - array_sum,
        0,
        reads + writes,
        total,
        w.in_bytes,
        0,
        w.out_bytes,
        busy_sum,
        transfer_cycles(total, bandwidth),
        latency,
        elements * plan.passes * plan.cycles_per_element / p.vector.lanes,
        0.0,
        reads * p.vector.buffer.read_pj_per_byte + writes * p.vector.buffer.write_pj_per_byte,
        total * p.dram.pj_per_byte,
        elements * (w.flops_per_element * p.vector.flop_pj + w.exps_per_element * p.vector.exp_pj),
    )


@atom
def move_cost(p: Any, w: Any) -> Any:
    """`Cost` of a MOVE: read, then write, through DRAM. Zero bytes cost nothing."""
    total = w.in_bytes + w.out_bytes
    dram_cycles = transfer_cycles(total, p.dram.bytes_per_cycle * p.dram.efficiency)
    latency = 2.0 * p.dram.latency_cycles if total > 0 else 0.0
    cycles = whole_cycles(latency + dram_cycles)
    unit = total / p.dram.bytes_per_cycle
    energy = total * p.dram.pj_per_byte
    return Cost(
        cycles,
        0,
        cycles,
        0,
        0,
        total,
        w.in_bytes,
        0,
        w.out_bytes,
        0.0,
        dram_cycles,
        latency,
        unit,
        0.0,
        0.0,
        energy,
        0.0,
    )


@atom
def work_cost(p: Any, w: Any, t: Any) -> Any:
    """`Cost` of any work of this platform under its mapping."""
    if w.kind == GEMM:
        return gemm_cost(p, w, t)
    if w.kind == VECTOR:
        return vector_cost(p, w, t)
    return move_cost(p, w)


@compiled
def _cost_all(p: Any, works: Any, mappings: Any, out: Any) -> None:
    for i in range(len(works)):
        store_cost(work_cost(p, works[i], mappings[i]), out[i])


# --- steps for the event model ----------------------------------------------------------------------------------


@compiled
def _count_steps(p: Any, w: Any, t: Any) -> Any:
    """How many steps `_fill_steps` writes: tiles of a GEMM, chunks of a VECTOR, one for a MOVE, none for a free op."""
    if w.kind == GEMM:
        tiles = ceil_div(w.m, t.tile_m) * ceil_div(w.k, t.tile_k) * ceil_div(w.n, t.tile_n)
        return tiles * ceil_div(w.count, t.instances)
    if w.kind == VECTOR:
        return ceil_div(vector_plan(p, w).units, t.tile_m)
    return 1 if w.in_bytes + w.out_bytes > 0 else 0


@compiled
def _fill_steps(p: Any, w: Any, t: Any, out: Any) -> None:
    if w.kind == GEMM:
        _fill_gemm_steps(p, w, t, out)
    elif w.kind == VECTOR:
        _fill_vector_steps(p, w, t.tile_m, out)
    elif len(out) > 0:
        out[0].load_bytes = float(w.in_bytes)
        out[0].store_bytes = float(w.out_bytes)


@atom
def _fill_vector_steps(p: Any, w: Any, chunk: int, out: Any) -> None:
    plan = vector_plan(p, w)
    sram = vector_sram_bytes(plan, w.in_bytes, w.out_bytes)
    for s in range(len(out)):
        start, end = s * chunk, min(plan.units, (s + 1) * chunk)
        out[s].load_bytes = share_start(w.in_bytes, plan.units, end) - share_start(w.in_bytes, plan.units, start)
        out[s].store_bytes = share_start(w.out_bytes, plan.units, end) - share_start(w.out_bytes, plan.units, start)
        _, busy = vector_busy_cycles(p, plan, end - start, sram * ((end - start) / plan.units))
        out[s].busy_cycles = busy
    out[0].busy_cycles += p.vector.latency_cycles + p.vector.buffer.latency_cycles


@atom
def _fill_gemm_steps(p: Any, w: Any, t: Any, out: Any) -> None:
    """Tile by tile in loop order (instances, then m and n as mapped, k innermost).

    An operand that stays for a whole inner loop is loaded for its next use in even slices behind that loop's steps;
    everything else is loaded one step ahead. The bytes add up to `gemm_traffic`, the busy cycles to `gemm_time`.
    """
    tiles_m, tiles_k, tiles_n = ceil_div(w.m, t.tile_m), ceil_div(w.k, t.tile_k), ceil_div(w.n, t.tile_n)
    groups = ceil_div(w.count, t.instances)
    tiles_outer, tiles_inner = (tiles_n, tiles_m) if t.n_outer else (tiles_m, tiles_n)
    s = 0
    for group in range(groups):
        g = min(t.instances, w.count - group * t.instances)
        for outer in range(tiles_outer):
            for inner in range(tiles_inner):
                i, j = (inner, outer) if t.n_outer else (outer, inner)
                m = min(t.tile_m, w.m - i * t.tile_m)
                n = min(t.tile_n, w.n - j * t.tile_n)
                for c in range(tiles_k):
                    k = min(t.tile_k, w.k - c * t.tile_k)
                    a_bytes, w_bytes = g * packed_bytes(m * k, w.a_bits), g * packed_bytes(k * n, w.w_bits)
                    resident, moving = (w_bytes, a_bytes) if t.n_outer else (a_bytes, w_bytes)
                    load = 0.0
                    if tiles_k > 1 or tiles_inner > 1 or outer == 0:
                        load += moving
                    if tiles_k > 1 or (inner == 0 and group + outer == 0):
                        load += resident
                    elif inner == 0:
                        load += resident - share_start(resident, tiles_inner, tiles_inner - 1)
                    if tiles_k == 1 and inner > 0:
                        next_outer = outer + 1 if outer + 1 < tiles_outer else 0
                        if next_outer > 0 or group + 1 < groups:
                            next_g = g if next_outer > 0 else min(t.instances, w.count - (group + 1) * t.instances)
                            span = w.n if t.n_outer else w.m
                            tile = t.tile_n if t.n_outer else t.tile_m
                            side = min(tile, span - next_outer * tile)
                            bits = w.w_bits if t.n_outer else w.a_bits
                            coming = next_g * packed_bytes(side * w.k, bits)
                            load += share_start(coming, tiles_inner, inner) - share_start(
                                coming, tiles_inner, inner - 1
                            )
                    out[s].load_bytes = load
                    if c == tiles_k - 1:
                        out[s].store_bytes = g * packed_bytes(m * n, w.o_bits)
                    _, busy = tile_time(p, w.a_bits, w.w_bits, g, m, k, n, w.k, c == tiles_k - 1)
                    out[s].busy_cycles = busy
                    s += 1
    lead, tail = edge_cycles(p, w, t)
    out[0].busy_cycles += lead + buffer_latency_cycles(p)
    out[s - 1].busy_cycles += tail
    first = packed_bytes(t.tile_k * t.tile_n, w.w_bits) * min(t.instances, w.count)
    if w.parameter_weights:
        out[0].load_bytes -= first
        out[0].prefetch_bytes = float(first + bias_bytes(w))
    else:
        out[0].load_bytes += bias_bytes(w)
