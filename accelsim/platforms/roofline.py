"""CPUs, GPUs and TPUs: peaks per precision, two on-chip levels, DRAM, kernel launch.

Every work is one kernel, and the kernels of the single stream run one after another:

    time of a kernel = launch + max(compute and on-chip traffic, DRAM bytes / DRAM bandwidth)

A GEMM is cut into output tiles which the compute units (SMs, cores) take in waves. Every operand comes from DRAM and
every result goes there: nothing stays on chip between two kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from accelsim.errors import Infeasible, SpecError
from accelsim.formulas import ceil_div, packed_bytes
from accelsim.jit import atom, compiled, record
from accelsim.platforms.base import (
    COST_DTYPE,
    STEP_DTYPE,
    STRICT,
    Amount,
    Cost,
    Count,
    Platform,
    Rate,
    Share,
    Side,
    Term,
    store_cost,
)
from accelsim.work import MAX_EXACT, Arithmetic, Work, WorkKind, work_array

GEMM, VECTOR = int(WorkKind.GEMM), int(WorkKind.VECTOR)
INT, BFLOAT = int(Arithmetic.INT), int(Arithmetic.BFLOAT)

Steps = Annotated[float, Ge(0), Le(1e9)]


class Width(IntEnum):
    """The number formats a device may have a peak for."""

    FP32 = 0
    FP16 = 1
    BF16 = 2
    INT8 = 3
    INT4 = 4


FP32, FP16, BF16, INT8, INT4 = (int(w) for w in Width)
NO_WIDTH = -1

_PRECISIONS = {
    Width.FP32: "fp32",
    Width.FP16: "fp16",
    Width.BF16: "bf16",
    Width.INT8: "int8",
    Width.INT4: "an int4 precision",
}


@dataclass(frozen=True)
class PerWidth:
    """One number for each number format."""

    fp32: Amount
    fp16: Amount
    bf16: Amount
    int8: Amount
    int4: Amount
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class CacheLevel:
    """An on-chip level, all its instances together."""

    capacity_bytes: Count
    bytes_per_s: Rate
    """Towards the compute units."""
    pj_per_byte: Amount
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class DeviceMemory:
    """The memory behind the chip."""

    bytes_per_s: Rate
    """Peak."""
    efficiency: Share
    """Share of the peak that long bursts reach."""
    capacity_bytes: Count
    pj_per_byte: Amount
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Roofline(Platform):
    """CPU, GPU or TPU. Rates are per second; `clock_hz` only turns seconds into cycles."""

    name: str
    clock_hz: Rate
    compute_units: Side
    """SMs, compute units or cores: each computes one output tile of a GEMM at a time."""
    peak_flops_per_s: PerWidth
    """Data-sheet peak of matrix products, all units together, a multiply-add counted as two; 0: cannot compute."""
    peak_efficiency: Share
    """Share of the peak that a GEMM of whole tiles and waves and of endless k reaches."""
    tile_m: Side
    """Rows of the largest output tile of one unit."""
    tile_n: Side
    """Columns of the largest output tile of one unit."""
    min_tile: Side
    """The library halves either side of a tile down to this."""
    k_half: Steps
    """Steps of k that filling and draining a tile costs: half of the peak is reached at k = k_half."""
    vector_flops_per_s: Rate
    """Operations on elements per second, all units together."""
    exp_flops: Amount
    """Operations that one exponential (or tanh, erf) stands for."""
    launch_s: Amount
    """From the end of a kernel to the start of the next one of its stream."""
    inner: CacheLevel
    """Private to a unit: L1 and shared memory of a GPU, L2 of a CPU."""
    outer: CacheLevel
    """Shared by all units: L2 of a GPU, L3 of a CPU."""
    dram: DeviceMemory
    pj_per_flop: PerWidth
    """Dynamic energy of half a multiply-add, on-chip traffic left out."""
    vector_pj_per_flop: Amount
    static_w: Amount
    """Power of the idle device."""
    die_mm2: Amount
    """Area of the die; 0: not published."""
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    kind: ClassVar[str] = "roofline"
    units: ClassVar[tuple[str, ...]] = ("device",)
    reads: ClassVar[dict[str, tuple[str, ...]]] = {
        "device": (
            "clock_hz", "compute_units", "peak_flops_per_s", "peak_efficiency", "tile_m", "tile_n", "min_tile",
            "k_half", "vector_flops_per_s", "exp_flops", "launch_s", "inner", "outer", "dram", "pj_per_flop",
            "vector_pj_per_flop",
        ),
    }  # fmt: skip

    @property
    def widths(self) -> tuple[Width, ...]:
        """The number formats this device computes GEMMs in."""
        return tuple(w for w in Width if peak_of(self.peak_flops_per_s, int(w)) > 0)

    def check_widths(self, work: Work, name: str) -> None:
        """Raise Infeasible for a GEMM in a format that has no peak here, or operands beyond the DRAM's capacity."""
        if work.kind is WorkKind.GEMM:
            width = self._width(work)
            if peak_of(self.peak_flops_per_s, width) <= 0:
                asked = f"{work.arithmetic.name.lower()} {work.a_bits} x {work.w_bits}"
                has = ", ".join(w.name.lower() for w in self.widths) or "none"
                levers = [f"--precision ({', '.join(_PRECISIONS[w] for w in self.widths)})"] if self.widths else []
                levers += [f"peak_flops_per_s.{Width(width).name.lower()}"] if width != NO_WIDTH else []
                what = f"{self.name}: {name}: number format of a product"
                raise Infeasible(what, asked, has, "bits", levers or ["peak_flops_per_s"])
        if work.bytes > self.dram.capacity_bytes:
            what = f"{self.name}: {name}: operands and result"
            levers = ["dram.capacity_bytes", "--batch", "--seq", "--precision"]
            raise Infeasible(what, work.bytes, self.dram.capacity_bytes, "bytes of DRAM", levers)

    def _width(self, work: Work) -> int:
        return int(width_of(work.arithmetic, work.a_bits, work.w_bits, self.peak_flops_per_s.int4))

    def default_precision(self) -> str:
        """fp32 if the device computes it, else bf16, else fp16, else int8."""
        order = {Width.FP32: "fp32", Width.BF16: "bf16", Width.FP16: "fp16"}
        return next((name for width, name in order.items() if width in self.widths), "int8")

    def unit(self, work: Work) -> int:
        """0: there is one unit, the device."""
        return 0

    def costs(self, works: np.ndarray, mappings: np.ndarray) -> np.ndarray:
        """(n,) COST_DTYPE. The mappings are not looked at: the kernel library chooses its tiles, see `gemm_plan`.

        Raises SpecError where a kernel would take 2^53 cycles or more.
        """
        out = np.zeros(len(works), COST_DTYPE)
        _cost_all(record(self)[0], works, out)
        spans = out["busy_cycles"] + out["dram_cycles"] + out["latency_cycles"]
        swept = works["passes"].astype(float) * works["in_bytes"]
        if not np.all(np.maximum(spans, swept) < MAX_EXACT):
            raise SpecError(self.name, float(np.max(spans)), "kernels of fewer than 2^53 cycles and bytes")
        return out

    def step_count(self, work: np.ndarray, mapping: np.ndarray) -> int:
        """1, and 0 for a free op."""
        return len(self.steps(work, mapping))

    def steps(self, work: np.ndarray, mapping: np.ndarray) -> np.ndarray:
        """One step, the whole kernel, with its DRAM traffic inside; none for a free op."""
        cycles = self.costs(work.reshape(1), mapping.reshape(1))["cycles"]
        out = np.zeros(int(cycles[0] > 0), STEP_DTYPE)
        out["busy_cycles"] = cycles[: len(out)]
        return out

    def dram_latency_cycles(self) -> float:
        """0: latencies are part of the launch."""
        return 0.0

    def dram_bytes_per_cycle(self) -> float:
        """Bytes per cycle that long bursts reach."""
        return self.dram.bytes_per_s * self.dram.efficiency / self.clock_hz

    def area_mm2(self) -> float | None:
        """`die_mm2`, None where it is not published."""
        return self.die_mm2 or None

    def memory_bytes(self) -> int | None:
        """`dram.capacity_bytes`."""
        return self.dram.capacity_bytes

    def leakage_w(self) -> float:
        """Power of the idle device in W."""
        return self.static_w

    def peak_macs_per_cycle(self, work: Work) -> float:
        """Multiply-accumulates per cycle at the width of a GEMM; vector operations / 2 for anything else."""
        if work.kind is not WorkKind.GEMM:
            return self.vector_flops_per_s / 2 / self.clock_hz
        return float(peak_of(self.peak_flops_per_s, self._width(work))) / 2 / self.clock_hz

    def assumptions(self) -> dict[str, str]:
        """What the numbers stand on, for the head of a report."""
        return {
            "kernels": f"one for each operator, one stream, {self.launch_s * 1e6:g} us from one to the next",
            "GEMM tiles": f"at most {self.tile_m}x{self.tile_n}, sides halved down to {self.min_tile}, in waves over "
            f"{self.compute_units} units; the fastest is taken",
            "GEMM efficiency": f"{self.peak_efficiency:g} k / (k + {self.k_half:g}) of the peak on whole tiles",
            "caches": "hold operands within a kernel, nothing between kernels",
            "DRAM": f"{self.dram.bytes_per_s * self.dram.efficiency:g} bytes/s, "
            f"{self.dram.efficiency:g} of {self.dram.bytes_per_s:g}",
        }

    def explain(self, work: Work, mapping: np.ndarray) -> list[Term]:
        """How the numbers of `costs` came about: tile, waves, traffic per operand and level, what bounds it."""
        cost = self.costs(work_array([work]), mapping)[0]
        clock = f"{self.clock_hz:g} Hz"
        if work.kind is WorkKind.GEMM:
            lines = self._explain_gemm(work)
        elif work.kind is WorkKind.VECTOR:
            lines = self._explain_vector(work)
        else:
            lines = [Term("move", "", "", "read, then write, through DRAM")]
        bandwidth = f"({self.dram.bytes_per_s:g} x {self.dram.efficiency:g} bytes/s)"
        return [
            *lines,
            Term("input traffic", int(cost["in_dram_bytes"]), "bytes", "read from DRAM, reloads included"),
            Term("weight traffic", int(cost["weight_dram_bytes"]), "bytes", "from DRAM, reloads and bias included"),
            Term("output traffic", int(cost["out_dram_bytes"]), "bytes", "written to DRAM"),
            Term(
                "DRAM cycles",
                float(cost["dram_cycles"]),
                "cycles",
                f"{int(cost['dram_bytes'])} bytes / {bandwidth} x {clock}",
            ),
            Term("busy cycles", float(cost["busy_cycles"]), "cycles", "compute, or a slower on-chip level"),
            Term("latency", float(cost["latency_cycles"]), "cycles", f"launch {self.launch_s:g} s x {clock}"),
            Term("cycles", int(cost["cycles"]), "cycles", "latency + max(busy, DRAM), rounded up"),
            Term("stall", int(cost["stall_cycles"]), "cycles", "cycles - busy cycles, rounded up"),
        ]

    def _explain_gemm(self, w: Work) -> list[Term]:
        plan = gemm_plan(self, w)
        width = self._width(w)
        peak = float(peak_of(self.peak_flops_per_s, width))
        tiles_m, tiles_n = ceil_div(w.m, plan.tile_m), ceil_div(w.n, plan.tile_n)
        flop_s = tile_flop_s(self, peak, plan.tile_m, plan.tile_n, w.k)
        cache_s = tile_cache_s(self, w, plan.tile_m, plan.tile_n)
        nbytes = tile_bytes(w, plan.tile_m, plan.tile_n)
        return [
            Term("GEMM", f"{w.m} x {w.k} x {w.n}, {w.count} of it", "", f"{w.a_bits} x {w.w_bits} -> {w.o_bits} bits"),
            Term("peak", peak, "flop/s", f"peak_flops_per_s.{Width(width).name.lower()}"),
            Term("output tile", f"{plan.tile_m} x {plan.tile_n}", "", "the fastest of the halvings of tile_m x tile_n"),
            Term("waves", plan.waves, "waves", f"ceil({w.count} x {tiles_m} x {tiles_n} / {self.compute_units} units)"),
            Term(
                "tile on its unit",
                flop_s * self.clock_hz,
                "cycles",
                f"2 x {plan.tile_m} x {plan.tile_n} x ({w.k} + {self.k_half:g}) / "
                f"({peak:g} x {self.peak_efficiency:g} / {self.compute_units}) s x {self.clock_hz:g} Hz",
            ),
            Term(
                "tile from on-chip levels",
                cache_s * self.clock_hz,
                "cycles",
                f"{nbytes} bytes at the unit's share of the slower level",
            ),
            Term("waves on the units", plan.busy_s * self.clock_hz, "cycles", "waves x the longer of the two"),
            Term("input loads", plan.a_loads, "times", "1, or once for each panel of weights that fits `outer`"),
            Term("weight loads", plan.w_loads, "times", "1, or once for each panel of inputs that fits `outer`"),
        ]

    def _explain_vector(self, w: Work) -> list[Term]:
        plan = vector_plan(self, w)
        per_element = w.flops_per_element + w.exps_per_element * self.exp_flops
        clock = f"{self.clock_hz:g} Hz"
        return [
            Term("VECTOR", f"{w.m * w.count} rows of {w.n}", "", w.function.name.lower().replace("_", " ")),
            Term("passes", w.passes, "passes", "sweeps over a row; reread from the nearest level that holds it"),
            Term("operations", per_element, "flops/element", f"flops + exps x {self.exp_flops:g}"),
            Term("inner traffic", plan.inner_bytes, "bytes", f"at {self.inner.bytes_per_s:g} bytes/s"),
            Term("outer traffic", plan.outer_bytes, "bytes", f"at {self.outer.bytes_per_s:g} bytes/s"),
            Term(
                "units and levels",
                plan.busy_s * self.clock_hz,
                "cycles",
                f"max(operations / {self.vector_flops_per_s:g} flop/s, traffic / rate of each level) x {clock}",
            ),
        ]


# --- widths -----------------------------------------------------------------------------------------------------


@atom
def width_of(arithmetic: int, a_bits: int, w_bits: int, int4_peak: float) -> int:
    """`Width` in which a product of these operands is computed, NO_WIDTH if there is none.

    The wider operand decides: int8 x int4 is an int8 product. Two operands of 4 bits or fewer are an int4 product on a
    device with an int4 peak and an int8 product elsewhere.
    """
    bits = max(a_bits, w_bits)
    if arithmetic != INT:
        if bits <= 16:
            return BF16 if arithmetic == BFLOAT else FP16
        return FP32 if bits <= 32 else NO_WIDTH
    if bits <= 4 and int4_peak > 0:
        return INT4
    return INT8 if bits <= 8 else NO_WIDTH


@atom
def peak_of(table: Any, width: int) -> float:
    """The entry of a `PerWidth` for a `Width`; 0 for NO_WIDTH."""
    value: float = 0.0
    if width == FP32:
        value = table.fp32
    elif width == FP16:
        value = table.fp16
    elif width == BF16:
        value = table.bf16
    elif width == INT8:
        value = table.int8
    elif width == INT4:
        value = table.int4
    return value


# --- GEMM -------------------------------------------------------------------------------------------------------


@atom
def wave_count(m: int, n: int, count: int, tile_m: int, tile_n: int, compute_units: int) -> int:
    """Waves in which the units compute all output tiles, one tile per unit and wave.

    ceil(count ceil(m / tile_m) ceil(n / tile_n) / units): tile and wave quantization (NVIDIA, "Matrix Multiplication
    Background User's Guide").
    """
    waves: int = ceil_div(count * ceil_div(m, tile_m) * ceil_div(n, tile_n), compute_units)
    return waves


@atom
def tile_flop_s(p: Any, peak: float, tile_m: int, tile_n: int, k: int) -> float:
    """Seconds one unit computes a whole output tile, ragged or not.

    2 tile_m tile_n (k + k_half) / (peak peak_efficiency / units); k / (k + k_half) is the share of a pipeline that
    fills and drains in k_half steps (assumed: Hockney's n_1/2).
    """
    unit_flops_per_s = peak * p.peak_efficiency / p.compute_units
    seconds: float = 2.0 * (tile_m * tile_n) * (k + p.k_half) / unit_flops_per_s
    return seconds


@atom
def tile_bytes(w: Any, tile_m: int, tile_n: int) -> int:
    """Bytes that a unit reads and writes for one output tile: both operand panels over all of k, and the result."""
    m, n = min(tile_m, w.m), min(tile_n, w.n)
    panels = packed_bytes(m * w.k, w.a_bits) + packed_bytes(w.k * n, w.w_bits)
    nbytes: int = panels + packed_bytes(m * n, w.o_bits)
    return nbytes


@atom
def tile_cache_s(p: Any, w: Any, tile_m: int, tile_n: int) -> float:
    """Seconds one unit's share of the slower on-chip level needs for one output tile."""
    share: float = min(p.outer.bytes_per_s, p.inner.bytes_per_s) / p.compute_units
    return tile_bytes(w, tile_m, tile_n) / share


@atom
def panel_loads(a_bytes: int, w_bytes: int, cache_bytes: int, tiles_m: int, tiles_n: int) -> Any:
    """(times the inputs come from DRAM, times the weights do) when one of them is kept in panels that fill the cache.

    Inputs are loaded once per panel of weights, ceil(weights / cache), or weights once per panel of inputs; whichever
    moves fewer bytes. A panel is never narrower than a tile. The other operand streams by and takes no room (assumed).
    """
    a_loads = min(ceil_div(w_bytes, cache_bytes), tiles_n)
    w_loads = min(ceil_div(a_bytes, cache_bytes), tiles_m)
    if a_loads * a_bytes + w_bytes <= a_bytes + w_loads * w_bytes:
        return a_loads, 1
    return 1, w_loads


@atom
def bias_bytes(w: Any) -> int:
    """What `weight_bytes` holds beside the matrices."""
    nbytes: int = w.weight_bytes - w.count * packed_bytes(w.k * w.n, w.w_bits)
    return nbytes


class GemmPlan(NamedTuple):
    """The output tile a library would take, what it moves from DRAM in bytes, and its time in seconds."""

    tile_m: int
    tile_n: int
    waves: int
    a_loads: int
    w_loads: int
    in_dram_bytes: int
    weight_dram_bytes: int
    out_dram_bytes: int
    cache_bytes: int
    busy_s: float
    dram_s: float


@atom
def gemm_tile_plan(p: Any, w: Any, tile_m: int, tile_n: int) -> Any:
    """`GemmPlan` with a given tile: busy_s = waves x max(tile on its unit, tile from the on-chip levels)."""
    peak = peak_of(p.peak_flops_per_s, width_of(w.arithmetic, w.a_bits, w.w_bits, p.peak_flops_per_s.int4))
    tiles_m, tiles_n = ceil_div(w.m, tile_m), ceil_div(w.n, tile_n)
    waves = wave_count(w.m, w.n, w.count, tile_m, tile_n, p.compute_units)
    a_bytes, w_bytes = packed_bytes(w.m * w.k, w.a_bits), packed_bytes(w.k * w.n, w.w_bits)
    a_loads, w_loads = panel_loads(a_bytes, w_bytes, p.outer.capacity_bytes, tiles_m, tiles_n)
    o_dram = w.count * packed_bytes(w.m * w.n, w.o_bits)
    a_dram, w_dram = w.count * a_loads * a_bytes, w.count * w_loads * w_bytes + bias_bytes(w)
    return GemmPlan(
        tile_m,
        tile_n,
        waves,
        a_loads,
        w_loads,
        a_dram,
        w_dram,
        o_dram,
        w.count * (tiles_n * a_bytes + tiles_m * w_bytes) + o_dram,
        waves * max(tile_flop_s(p, peak, tile_m, tile_n, w.k), tile_cache_s(p, w, tile_m, tile_n)),
        (a_dram + w_dram + o_dram) / (p.dram.bytes_per_s * p.dram.efficiency),
    )


@atom
def gemm_plan(p: Any, w: Any) -> Any:
    """`GemmPlan` of the fastest tile: tile_m and tile_n halved any number of times while not below min_tile.

    Smallest (max(busy, DRAM), busy, on-chip bytes) wins, then the larger tile_m, then the larger tile_n.
    """
    best = gemm_tile_plan(p, w, p.tile_m, p.tile_n)
    tile_m = p.tile_m
    while True:
        tile_n = p.tile_n
        while True:
            plan = gemm_tile_plan(p, w, tile_m, tile_n)
            time, best_time = max(plan.busy_s, plan.dram_s), max(best.busy_s, best.dram_s)
            if time < best_time or (
                time == best_time
                and (plan.busy_s < best.busy_s or (plan.busy_s == best.busy_s and plan.cache_bytes < best.cache_bytes))
            ):
                best = plan
            tile_n //= 2
            if tile_n < p.min_tile:
                break
        tile_m //= 2
        if tile_m < p.min_tile:
            break
    return best


@atom
def kernel_cycles(busy_cycles: float, dram_cycles: float, launch_cycles: float) -> int:
    """Cycles of a kernel, rounded up: launch + max(busy, DRAM)."""
    return math.ceil(min(launch_cycles + max(busy_cycles, dram_cycles), 9e18))


@atom
def gemm_cost(p: Any, w: Any) -> Any:
    """`Cost` of a GEMM."""
    plan = gemm_plan(p, w)
    width = width_of(w.arithmetic, w.a_bits, w.w_bits, p.peak_flops_per_s.int4)
    busy, dram, launch = plan.busy_s * p.clock_hz, plan.dram_s * p.clock_hz, p.launch_s * p.clock_hz
    cycles = kernel_cycles(busy, dram, launch)
    compute = kernel_cycles(busy, 0.0, 0.0)
    macs = w.m * w.k * w.n * w.count
    nbytes = plan.in_dram_bytes + plan.weight_dram_bytes + plan.out_dram_bytes
    return Cost(
        cycles,
        compute,
        cycles - compute,
        macs,
        2 * plan.cache_bytes,
        nbytes,
        plan.in_dram_bytes,
        plan.weight_dram_bytes,
        plan.out_dram_bytes,
        busy,
        dram,
        launch,
        2.0 * macs / peak_of(p.peak_flops_per_s, width) * p.clock_hz,
        2.0 * macs * peak_of(p.pj_per_flop, width),
        plan.cache_bytes * (p.inner.pj_per_byte + p.outer.pj_per_byte),
        nbytes * p.dram.pj_per_byte,
        w.m * w.n * w.count * w.flops_per_element * p.vector_pj_per_flop,
    )


# --- VECTOR and MOVE --------------------------------------------------------------------------------------------


class VectorPlan(NamedTuple):
    """Operations and bytes per level of a VECTOR work, and its time on the units and on-chip levels."""

    flops: float
    inner_bytes: int
    outer_bytes: int
    in_dram_bytes: int
    busy_s: float


@atom
def vector_plan(p: Any, w: Any) -> Any:
    """`VectorPlan`: a row that is swept more than once is reread from the nearest level that holds it.

    One row per unit is in flight, so a level holds rows of up to capacity / units. Every byte passes through all the
    levels on its way: busy_s is the longest of operations / vector_flops_per_s and bytes / bytes_per_s of each level.
    """
    passes = max(1, w.passes)
    row_bytes = ceil_div(w.in_bytes, max(1, w.m * w.count))
    in_inner = row_bytes <= p.inner.capacity_bytes // p.compute_units
    in_outer = in_inner or row_bytes <= p.outer.capacity_bytes // p.compute_units
    flops = w.m * w.n * w.count * (w.flops_per_element + w.exps_per_element * p.exp_flops)
    inner = passes * w.in_bytes + w.out_bytes
    outer = (1 if in_inner else passes) * w.in_bytes + w.out_bytes
    in_dram = (1 if in_outer else passes) * w.in_bytes
    busy = max(flops / p.vector_flops_per_s, inner / p.inner.bytes_per_s, outer / p.outer.bytes_per_s)
    return VectorPlan(flops, inner, outer, in_dram, busy)


@atom
def vector_cost(p: Any, w: Any) -> Any:
    """`Cost` of a VECTOR work."""
    plan = vector_plan(p, w)
    nbytes = plan.in_dram_bytes + w.out_bytes
    busy, launch = plan.busy_s * p.clock_hz, p.launch_s * p.clock_hz
    dram = nbytes / (p.dram.bytes_per_s * p.dram.efficiency) * p.clock_hz
    cycles = kernel_cycles(busy, dram, launch)
    compute = kernel_cycles(busy, 0.0, 0.0)
    return Cost(
        cycles,
        compute,
        cycles - compute,
        0,
        plan.inner_bytes + plan.outer_bytes,
        nbytes,
        plan.in_dram_bytes,
        0,
        w.out_bytes,
        busy,
        dram,
        launch,
        plan.flops / p.vector_flops_per_s * p.clock_hz,
        0.0,
        plan.inner_bytes * p.inner.pj_per_byte + plan.outer_bytes * p.outer.pj_per_byte,
        nbytes * p.dram.pj_per_byte,
        plan.flops * p.vector_pj_per_flop,
    )


@atom
def move_cost(p: Any, w: Any) -> Any:
    """`Cost` of a MOVE: read and written through DRAM, on-chip levels by-passed. Zero bytes cost nothing."""
    nbytes = w.in_bytes + w.out_bytes
    launch = p.launch_s * p.clock_hz if nbytes > 0 else 0.0
    dram = nbytes / (p.dram.bytes_per_s * p.dram.efficiency) * p.clock_hz
    cycles = kernel_cycles(0.0, dram, launch)
    unit = nbytes / p.dram.bytes_per_s * p.clock_hz
    energy = nbytes * p.dram.pj_per_byte
    return Cost(
        cycles,
        0,
        cycles,
        0,
        0,
        nbytes,
        w.in_bytes,
        0,
        w.out_bytes,
        0.0,
        dram,
        launch,
        unit,
        0.0,
        0.0,
        energy,
        0.0,
    )


@atom
def computes(p: Any, w: Any) -> Any:
    """Whether the device has a peak for the format of a product, and DRAM for its operands."""
    if w.in_bytes + w.weight_bytes + w.out_bytes > p.dram.capacity_bytes:
        return False
    if w.kind != GEMM:
        return True
    width = width_of(w.arithmetic, w.a_bits, w.w_bits, p.peak_flops_per_s.int4)
    return peak_of(p.peak_flops_per_s, width) > 0


@atom
def work_cost(p: Any, w: Any) -> Any:
    """`Cost` of any work of this platform."""
    if w.kind == GEMM:
        return gemm_cost(p, w)
    if w.kind == VECTOR:
        return vector_cost(p, w)
    return move_cost(p, w)


@compiled
def _cost_all(p: Any, works: Any, out: Any) -> None:
    for i in range(len(works)):
        store_cost(work_cost(p, works[i]), out[i])


assert tuple(f.name for f in fields(PerWidth)) == tuple(w.name.lower() for w in Width), "PerWidth and Width differ"
