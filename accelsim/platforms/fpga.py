"""The accelerator of FQ-BERT (arXiv:2103.02800) on an FPGA: P processing units of N processing elements, each with a
bit-split inner-product module (BIM) of M multipliers of 8 x 4 bit; a softmax core and a layer-norm core; weights that
stream from DRAM, activations that stay on chip; embeddings and head on a host CPU.

    dot product of k    ceil(k / M) beats (8 x 4 bit; 8 x 8: ceil(k / (M/2))), then the depth of the pipeline
    linear layer        P N columns at a time, every row; each sub-stage's weights load behind the one before
    Q K^T, attention V  one head (instance) for each unit, its elements take N columns at a time
    softmax, layer norm rows of words of M elements, the word the buffers deliver in a cycle

Cycles are those of `clock_hz`. GELU is a table in the quantization module and takes no time of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from accelsim.errors import Infeasible
from accelsim.formulas import (
    PIPELINED,
    FoldTiming,
    ceil_div,
    exposed_latency_bound,
    last_tile,
    operand_loads,
    packed_bytes,
    share_start,
    step_cycles,
    sum_bits,
    tiled_matrix_bytes,
    transfer_cycles,
    whole_cycles,
)
from accelsim.jit import atom, compiled, record
from accelsim.platforms.base import (
    COST_DTYPE,
    STEP_DTYPE,
    STRICT,
    Amount,
    Cost,
    Count,
    Dram,
    Platform,
    Rate,
    Side,
    Term,
    Whole,
    store_cost,
)
from accelsim.platforms.resources import Device, Need, Resources, demand
from accelsim.work import Arithmetic, Spelled, VectorFunction, Work, WorkKind, work_array

GEMM, VECTOR = int(WorkKind.GEMM), int(WorkKind.VECTOR)
ELEMENTWISE, SOFTMAX = int(VectorFunction.ELEMENTWISE), int(VectorFunction.SOFTMAX)
GELU = int(VectorFunction.GELU)
INT = int(Arithmetic.INT)

Flag = Annotated[int, Ge(0), Le(1)]
NIBBLE_BITS = 4
ACTIVATION_BITS = 8
ACCUMULATOR_BITS = 32


class Ram(Spelled):
    """What a buffer is built of. Spelled bram, uram, lutram."""

    BRAM = 0
    URAM = 1
    LUTRAM = 2


BRAM, URAM = int(Ram.BRAM), int(Ram.URAM)


@dataclass(frozen=True)
class Buffer:
    """An on-chip buffer, used as two halves."""

    capacity_bytes: Count
    """Both halves together."""
    ram: Ram
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Core:
    """SIMD core of softmax or layer norm. It takes a word of `multipliers` elements from the buffers each cycle."""

    passes: Count
    """Sweeps over a row."""
    timing: FoldTiming
    """serial: the passes of a row one after the other. pipelined: a stage for each, on rows that follow each other."""
    latency_cycles: Whole
    """Depth of the core, paid once by each op."""
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Host:
    """The CPU that computes what is outside the encoder layers."""

    is_counted: Flag
    """0: its time and energy are left out."""
    flops_per_s: Rate
    bytes_per_s: Rate
    launch_s: Amount
    """For each op."""
    pj_per_flop: Amount
    pj_per_byte: Amount
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Energies:
    """Dynamic energies of the fabric."""

    multiply_pj: Amount
    """One 8 x 4 bit product: the DSP and its share of the adder trees."""
    dot_pj: Amount
    """One result of a processing element: accumulator, psum buffer, quantization."""
    element_pj: Amount
    """One element in one pass through a core."""
    bram_pj_per_byte: Amount
    uram_pj_per_byte: Amount
    lut_pj: Amount
    """A LUT in a cycle, working or not: toggling and its share of the clock tree."""
    ff_pj: Amount
    """A flip-flop in a cycle."""
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Fpga(Platform):
    """FQ-BERT's accelerator, on a device whose resources it has to fit."""

    name: str
    clock_hz: Rate
    processing_units: Side
    pes: Side
    """Processing elements of one unit, N."""
    multipliers: Annotated[int, Ge(2), Le(1024)]
    """8 x 4 bit multipliers of one element, M; even."""
    dot_timing: FoldTiming
    """serial: a dot product starts when the pipeline of the one before is empty. pipelined: without a gap."""
    dot_overhead_cycles: Amount
    """Cycles of a dot product beside its beats and the depth of the pipeline: what a calibration finds."""
    quantizer_cycles: Count
    """Cycles the quantization module of a unit spends on one result."""
    psum_rows: Count
    """Partial sums that half of an element's psum buffer holds."""
    weight_buffer: Buffer
    input_buffer: Buffer
    intermediate_buffer: Buffer
    """Queries, keys, values, scores, the feed-forward block's inner activations."""
    output_buffer: Buffer
    parameter_buffer: Buffer
    """Biases, parameters of the layer norms, scale factors."""
    softmax: Core
    layer_norm: Core
    """Takes residual additions as well."""
    dram: Dram
    """As the AXI port of the accelerator sees it."""
    host: Host
    energy: Energies
    static_w: Amount
    """Power that flows whether or not anything is computed: fabric, processor system, board."""
    device: Device
    resources: Resources
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    kind: ClassVar[str] = "fpga"
    units: ClassVar[tuple[str, ...]] = ("pu", "softmax", "layer_norm", "dma", "host")
    reads: ClassVar[dict[str, tuple[str, ...]]] = {
        "pu": (
            "processing_units", "pes", "multipliers", "dot_timing", "dot_overhead_cycles", "quantizer_cycles",
            "psum_rows", "weight_buffer", "input_buffer", "intermediate_buffer", "output_buffer", "parameter_buffer",
            "dram", "energy",
        ),
        "softmax": ("softmax", "multipliers", "input_buffer", "intermediate_buffer", "output_buffer", "dram", "energy"),
        "layer_norm": (
            "layer_norm", "multipliers", "input_buffer", "intermediate_buffer", "output_buffer", "dram", "energy",
        ),
        "dma": ("input_buffer", "intermediate_buffer", "output_buffer", "dram"),
        "host": ("host", "clock_hz", "dram"),
    }  # fmt: skip

    def check_widths(self, work: Work, name: str) -> None:
        """Raise Infeasible for a product wider than 8 x 8 bit, a sum beyond 32 bits, real numbers inside a layer."""
        if is_on_host(work):
            return
        levers = ["--precision (fq-bert, w6a8, w3a8, w2a8, i-bert and int8 are integers)"]
        if work.arithmetic is not Arithmetic.INT and work.kind in (WorkKind.GEMM, WorkKind.VECTOR):
            asked = f"{work.arithmetic.name.lower()} {work.a_bits}"
            what = f"{self.name}: {name}: arithmetic inside an encoder layer"
            raise Infeasible(what, asked, "int 8", "bits", levers)
        if work.kind is not WorkKind.GEMM:
            return
        if max(work.a_bits, work.w_bits) > ACTIVATION_BITS:
            asked = f"{work.a_bits} x {work.w_bits}"
            raise Infeasible(f"{self.name}: {name}: width of a product", asked, "8 x 8", "bits", levers)
        needed = sum_bits(work.a_bits, work.w_bits, work.k)
        if needed > ACCUMULATOR_BITS:
            what = f"{self.name}: {name}: sums of k = {work.k} products of {work.a_bits} x {work.w_bits} bits"
            raise Infeasible(what, needed, ACCUMULATOR_BITS, "accumulator bits", ["--precision", "k"])

    def default_precision(self) -> str:
        """fq-bert."""
        return "fq-bert"

    def unit(self, work: Work) -> int:
        """Index into `units`; a GELU belongs to the units whose results it is applied to."""
        if is_on_host(work):
            return 4
        if work.kind is WorkKind.VECTOR:
            by_core = {VectorFunction.SOFTMAX: 1, VectorFunction.GELU: 0}
            return by_core.get(work.function, 2)
        return 0 if work.kind is WorkKind.GEMM else 3

    def costs(self, works: np.ndarray, mappings: np.ndarray) -> np.ndarray:
        """(n,) COST_DTYPE."""
        out = np.zeros(len(works), COST_DTYPE)
        _cost_all(record(self)[0], works, mappings, out)
        return out

    def step_count(self, work: np.ndarray, mapping: np.ndarray) -> int:
        """Tiles of a GEMM, chunks of a vector op whose operands come from DRAM; 0 where nothing is waited for."""
        return int(_count_steps(record(self)[0], work, mapping))

    def steps(self, work: np.ndarray, mapping: np.ndarray) -> np.ndarray:
        """STEP_DTYPE: sub-stages, each with the weights it needs."""
        p = record(self)[0]
        out = np.zeros(_count_steps(p, work, mapping), STEP_DTYPE)
        _fill_steps(p, work, mapping, out)
        return out

    def explain(self, work: Work, mapping: np.ndarray) -> list[Term]:
        """Where a cost comes from, term by term."""
        cost = self.costs(work_array([work]), mapping)[0]
        if is_on_host(work):
            lines = [Term("host", "counted" if self.host.is_counted else "left out", "", "not an encoder layer's")]
        elif work.kind is WorkKind.GEMM:
            lines = self._explain_gemm(work, mapping.view(np.recarray)[0])
        elif work.kind is WorkKind.VECTOR and work.function is not VectorFunction.GELU:
            lines = self._explain_core(work)
        else:
            lines = [Term("no unit", "", "", "a table in the quantization module, or an address")]
        return [
            *lines,
            Term("operands", "from DRAM" if is_spilled(self, work) else "on chip", "", "activations of this op"),
            Term("DRAM bytes", int(cost["dram_bytes"]), "bytes", "weights, and activations that do not stay on chip"),
            Term("DRAM cycles", float(cost["dram_cycles"]), "cycles", f"/ {self.dram_bytes_per_cycle():g} bytes/cycle"),
            Term("compute cycles", int(cost["compute_cycles"]), "cycles", "the unit alone"),
            Term(
                "cycles",
                int(cost["cycles"]),
                "cycles",
                "sum over sub-stages of max(busy, next load, (busy + load + latency) / 2), own activations exposed",
            ),
            Term("stall", int(cost["stall_cycles"]), "cycles", "cycles - compute cycles"),
        ]

    def _explain_gemm(self, w: Work, t: Any) -> list[Term]:
        lanes, g = lanes_of(self, w.w_bits), int(t.instances)
        cols = self.pes * (self.processing_units // g)
        tiles = [ceil_div(w.n, int(t.tile_n)), ceil_div(w.m, int(t.tile_m)), ceil_div(w.k, int(t.tile_k))]
        beats = ceil_div(int(t.tile_k), lanes)
        return [
            Term("GEMM", f"{w.m} x {w.k} x {w.n}, {w.count} of it", "", f"{w.a_bits} x {w.w_bits} -> {w.o_bits} bits"),
            Term("products of a beat", lanes, "products", f"of one BIM, M = {self.multipliers}"),
            Term("columns at once", cols, "columns", f"{g} instance(s) on {self.processing_units} units x {self.pes}"),
            Term("sub-stages", math.prod(tiles), "steps", f"{tiles[0]} x {tiles[1]} x {tiles[2]} tiles of n, m, k"),
            Term("beats of a dot product", beats, "cycles", f"ceil({t.tile_k} / {lanes})"),
            Term(
                "dot product",
                float(dot_cycles(self, int(t.tile_k), w.w_bits)),
                "cycles",
                f"beats + depth {pipeline_depth(self)} + {self.dot_overhead_cycles:g}, {self.dot_timing.name.lower()}",
            ),
        ]

    def _explain_core(self, w: Work) -> list[Term]:
        core = self.softmax if w.function is VectorFunction.SOFTMAX else self.layer_norm
        plan = core_plan(self, w)
        return [
            Term("VECTOR", f"{w.m * w.count} rows of {w.n}", "", w.function.name.lower().replace("_", " ")),
            Term("words", plan.words, "cycles", f"of a row, {self.multipliers} elements each"),
            Term("passes", plan.passes, "passes", f"{core.timing.name.lower()}"),
        ]

    def dram_latency_cycles(self) -> float:
        """Of a request, in the event model."""
        return float(self.dram.latency_cycles)

    def dram_bytes_per_cycle(self) -> float:
        """What the AXI port moves."""
        return self.dram.bytes_per_cycle * self.dram.efficiency

    def leakage_w(self) -> float:
        """`static_w`, and what clocked fabric takes in every cycle."""
        totals = self.totals()
        return float(idle_w(self, totals["LUT"], totals["FF"]))

    def area_mm2(self) -> float | None:
        """None: the maker of these devices does not publish the area of a die. What is used of one: `needs`."""
        return None

    def peak_macs_per_cycle(self, work: Work) -> float:
        """P N M products of 8 x 4 bit, half as many of 8 x 8."""
        return float(self.processing_units * self.pes * lanes_of(self, work.w_bits))

    def needs(self) -> list[Need]:
        """Every term of the resources this configuration takes of its device."""
        return demand(self)

    def totals(self) -> dict[str, int]:
        """Amount of each resource that `needs` add up to."""
        needs = self.needs()
        return {r: sum(n.amount for n in needs if n.resource == r) for r in self.device.available()}

    def check_device(self) -> None:
        """Raise Infeasible, with the resource, how much of it is missing and what takes most of it."""
        if self.multipliers % 2:
            raise Infeasible(
                f"{self.name}: multipliers", self.multipliers, "even", "two adder trees share them", ["multipliers"]
            )
        needs = self.needs()
        for resource, bound in self.device.available().items():
            taken = [n for n in needs if n.resource == resource and n.amount > 0]
            total = sum(n.amount for n in taken)
            if total > bound:
                largest = sorted(taken, key=lambda n: -n.amount)[:3]
                levers = list(dict.fromkeys(lever for n in largest for lever in n.levers))
                what = f"{self.name}: {resource} of the device"
                raise Infeasible(what, total, bound, f"({total - bound} too many)", levers)

    def infeasible(self, w: Work, name: str) -> Infeasible:
        """Which half buffer the smallest tile of a work overflows."""
        levers = ["input_buffer.capacity_bytes", "output_buffer.capacity_bytes", "--seq", "--batch"]
        if w.kind is WorkKind.VECTOR:
            units = core_plan(self, w).units
            row = max(ceil_div(w.in_bytes, units), ceil_div(w.out_bytes, units))
            half = min(self.input_buffer.capacity_bytes, self.output_buffer.capacity_bytes) // 2
            return Infeasible(f"{self.name}: {name}: one row of {w.n} elements", row, half, "bytes (half)", levers)
        cols = min(w.n, columns_at_once(self, 1))
        k = min(w.k, lanes_of(self, w.w_bits))
        weights, half = packed_bytes(k * cols, w.w_bits), self.weight_buffer.capacity_bytes // 2
        what = f"{self.name}: {name}: GEMM {w.m}x{w.k}x{w.n}"
        if weights > half and (w.parameter_weights or is_spilled(self, w)):
            levers = ["weight_buffer.capacity_bytes", "pes", "multipliers"]
            return Infeasible(f"{what}, weights of one beat", weights, half, "bytes (half)", levers)
        if w.m > self.psum_rows and not is_spilled(self, w):
            column = packed_bytes(w.k * cols, w.w_bits)
            levers = ["weight_buffer.capacity_bytes", "psum_rows", "--seq", "--batch"]
            return Infeasible(f"{what}, weights of one group of columns", column, half, "bytes (half)", levers)
        row = max(packed_bytes(k, w.a_bits), packed_bytes(cols, w.o_bits))
        half = min(self.input_buffer.capacity_bytes, self.output_buffer.capacity_bytes) // 2
        return Infeasible(f"{what}, one row of a tile", row, half, "bytes (half)", levers)

    def assumptions(self) -> dict[str, str]:
        """What the numbers stand on."""
        totals = self.totals()
        used = ", ".join(f"{r} {totals[r]} of {bound}" for r, bound in self.device.available().items())
        return {
            "array": f"{self.processing_units} PUs x {self.pes} PEs x {self.multipliers} multipliers of 8 x 4 bit",
            "dot products": f"{self.dot_timing.name.lower()}, {pipeline_depth(self)} cycles deep",
            "activations": "on chip between ops where they fit, else through DRAM",
            "weights": f"from DRAM, {self.dram_bytes_per_cycle():g} bytes/cycle, one sub-stage ahead",
            "host": "embeddings and head included" if self.host.is_counted else "embeddings and head left out",
            "resources": used,
        }


def idle_w(p: Any, luts: Any, ffs: Any) -> Any:
    """Power of an idle design in W: static, and every LUT and flip-flop clocked. Numbers, or arrays of many designs."""
    fabric_pj = luts * p.energy.lut_pj + ffs * p.energy.ff_pj
    return p.static_w + fabric_pj * 1e-12 * p.clock_hz


# --- processing units -------------------------------------------------------------------------------------------------


@atom
def multiplications(w_bits: int) -> int:
    """8 x 4 bit multiplications of one product: 1, and 2 for weights of more than 4 bits."""
    return 2 if w_bits > NIBBLE_BITS else 1


@atom
def lanes_of(p: Any, w_bits: int) -> int:
    """Products a BIM takes in a beat: M, or M/2 where a weight is split into two nibbles."""
    return p.multipliers // multiplications(w_bits)  # type: ignore[no-any-return]


@atom
def tree_levels(leaves: int) -> int:
    """Levels of a tree of adders with that many leaves: ceil(log2(leaves))."""
    levels = 0
    while 1 << levels < leaves:
        levels += 1
    return levels


@atom
def pipeline_depth(p: Any) -> int:
    """Cycles from the last beat of a dot product, which reads its operands, to the sum in the psum buffer.

    Multiplier, the levels of a tree of M/2 leaves, shift-add of the two trees, accumulator, psum buffer: a register
    after each (structure as printed, arXiv:2103.02800 section III; one cycle each is assumed).
    """
    return 4 + tree_levels(p.multipliers // 2)


@atom
def dot_cycles(p: Any, k: int, w_bits: int) -> Any:
    """Cycles, as a float, from one dot product of length k to the next in a processing element."""
    beats = ceil_div(k, lanes_of(p, w_bits)) + p.dot_overhead_cycles
    if p.dot_timing == PIPELINED:
        return float(beats)
    return float(beats + pipeline_depth(p))


@atom
def group_cycles(p: Any, k: int, w_bits: int, is_last_k: bool) -> Any:
    """Cycles of one dot product on every element. With the last k, N results leave through the unit's quantizer."""
    cycles = dot_cycles(p, k, w_bits)
    return max(cycles, float(p.pes * p.quantizer_cycles)) if is_last_k else cycles


@atom
def columns_at_once(p: Any, instances: int) -> int:
    """Columns that the units of one instance compute at a time."""
    return (p.processing_units // instances) * p.pes  # type: ignore[no-any-return]


@atom
def is_spilled(p: Any, w: Any) -> Any:
    """Whether the activations of an op go through DRAM: half of the three activation buffers does not hold them."""
    operands = w.in_bytes + w.out_bytes + (0 if w.parameter_weights else w.weight_bytes)
    half = p.input_buffer.capacity_bytes + p.intermediate_buffer.capacity_bytes + p.output_buffer.capacity_bytes
    return 2 * operands > half


@atom
def bias_bytes(w: Any) -> Any:
    """What `weight_bytes` holds beside the matrices."""
    return w.weight_bytes - w.count * packed_bytes(w.k * w.n, w.w_bits)


@atom
def gemm_fits(p: Any, w: Any, tile_m: int, tile_k: int, tile_n: int, instances: int) -> Any:
    """Whether half of the buffers holds a sub-stage: weights, partial sums of a cut k, activations from DRAM."""
    spilled = is_spilled(p, w)
    if not spilled and tile_m < w.m:
        return False
    loaded = 2 * instances * packed_bytes(tile_k * tile_n, w.w_bits) if w.parameter_weights or spilled else 0
    if loaded > p.weight_buffer.capacity_bytes:
        return False
    if tile_k < w.k and tile_m * ceil_div(tile_n, columns_at_once(p, instances)) > p.psum_rows:
        return False
    return not spilled or (
        2 * instances * packed_bytes(tile_m * tile_k, w.a_bits) <= p.input_buffer.capacity_bytes
        and 2 * instances * packed_bytes(tile_m * tile_n, w.o_bits) <= p.output_buffer.capacity_bytes
    )


@atom
def gemm_traffic(p: Any, w: Any, t: Any) -> Any:
    """DRAM bytes of a GEMM under a mapping: (activations in, weights with bias, activations out); n is outermost."""
    tiles_m, tiles_k = ceil_div(w.m, t.tile_m), ceil_div(w.k, t.tile_k)
    a_loads, w_loads = operand_loads(1, tiles_m, tiles_k, ceil_div(w.n, t.tile_n))
    spilled = is_spilled(p, w)
    a_bytes, w_bytes, o_bytes = w.crossing_bytes, bias_bytes(w), 0
    if w.parameter_weights or spilled:
        w_bytes += w.count * w_loads * tiled_matrix_bytes(w.k, w.n, t.tile_k, t.tile_n, w.w_bits)
    if spilled:
        a_bytes += w.count * a_loads * tiled_matrix_bytes(w.m, w.k, t.tile_m, t.tile_k, w.a_bits)
        o_bytes += w.count * tiled_matrix_bytes(w.m, w.n, t.tile_m, t.tile_n, w.o_bits)
    return a_bytes, w_bytes, o_bytes


@atom
def groups_of(p: Any, n: int, tile_n: int, instances: int) -> Any:
    """Times a row's dot products are taken for all n columns, tile by tile."""
    cols = columns_at_once(p, instances)
    return (ceil_div(n, tile_n) - 1) * ceil_div(tile_n, cols) + ceil_div(last_tile(n, tile_n), cols)


@atom
def gemm_busy_cycles(p: Any, w: Any, t: Any) -> Any:
    """Cycles, as a float, of a GEMM on the units alone: all its dot products, and one emptying of the pipeline."""
    tiles_k = ceil_div(w.k, t.tile_k)
    row = (tiles_k - 1) * group_cycles(p, t.tile_k, w.w_bits, False)
    row += group_cycles(p, last_tile(w.k, t.tile_k), w.w_bits, True)
    batches = ceil_div(w.count, t.instances)
    return batches * w.m * groups_of(p, w.n, t.tile_n, t.instances) * row + emptying_cycles(p, w, t)


@atom
def emptying_cycles(p: Any, w: Any, t: Any) -> Any:
    """Cycles of an op beside those of its groups: its last results leave through the quantizer.

    N results, or, where they take longer than a dot product, as much as the first group did not wait for them; and the
    pipeline, unless each dot product paid for it.
    """
    dot = dot_cycles(p, last_tile(w.k, t.tile_k), w.w_bits)
    return min(float(p.quantizer_cycles * p.pes), dot) + (pipeline_depth(p) if p.dot_timing == PIPELINED else 0)


@atom
def gemm_steps(p: Any, w: Any, t: Any) -> Any:
    """Sub-stages of a GEMM."""
    tiles = ceil_div(w.m, t.tile_m) * ceil_div(w.k, t.tile_k) * ceil_div(w.n, t.tile_n)
    return tiles * ceil_div(w.count, t.instances)


class Step(NamedTuple):
    """One sub-stage: bytes that may be loaded early, operands, cycles on the unit, bytes stored."""

    prefetch_bytes: int
    load_bytes: int
    busy_cycles: float
    store_bytes: int


@atom
def gemm_step(p: Any, w: Any, t: Any, index: int) -> Any:
    """Sub-stage `index` in loop order: instances, n, m, k innermost."""
    tiles_m, tiles_k, tiles_n = ceil_div(w.m, t.tile_m), ceil_div(w.k, t.tile_k), ceil_div(w.n, t.tile_n)
    place_k = index % tiles_k
    place_m = index // tiles_k % tiles_m
    place_n = index // (tiles_k * tiles_m) % tiles_n
    batch = index // (tiles_k * tiles_m * tiles_n)
    g = min(t.instances, w.count - batch * t.instances)
    m = min(t.tile_m, w.m - place_m * t.tile_m)
    k = min(t.tile_k, w.k - place_k * t.tile_k)
    n = min(t.tile_n, w.n - place_n * t.tile_n)
    is_last_k = place_k == tiles_k - 1
    busy = m * ceil_div(n, columns_at_once(p, t.instances)) * group_cycles(p, k, w.w_bits, is_last_k)
    spilled = is_spilled(p, w)
    weights, others, stored = 0, 0, 0
    if (w.parameter_weights or spilled) and (tiles_k > 1 or place_m == 0):
        weights = g * packed_bytes(k * n, w.w_bits)
    if spilled:
        if tiles_k > 1 or tiles_m > 1 or place_n == 0:
            others = g * packed_bytes(m * k, w.a_bits)
        if is_last_k:
            stored = g * packed_bytes(m * n, w.o_bits)
    if index == 0:
        weights += bias_bytes(w)
        others += w.crossing_bytes
    if index == gemm_steps(p, w, t) - 1:
        busy += emptying_cycles(p, w, t)
    if index == 0 and w.parameter_weights:
        return Step(weights, others, busy, stored)
    return Step(0, weights + others, busy, stored)


@atom
def gemm_cycles(p: Any, w: Any, t: Any) -> Any:
    """(cycles, most latency that may be exposed) of a GEMM by itself, as floats.

    Activations of the first sub-stage are waited for; each sub-stage then hides the load of the next and the store of
    the one before. The first sub-stage's weights load behind the op before it, whose end is taken to be like this
    one's: they are hidden behind the last sub-stage here.
    """
    bandwidth = p.dram.bytes_per_cycle * p.dram.efficiency
    latency = p.dram.latency_cycles
    steps = gemm_steps(p, w, t)
    first = gemm_step(p, w, t, 0)
    cycles, requests = 0.0, 0.0
    if first.load_bytes > 0:
        cycles += latency + first.load_bytes / bandwidth
        requests += 1.0
    now, stored = first, 0
    for index in range(steps):
        after = gemm_step(p, w, t, index + 1) if index + 1 < steps else first
        coming = after.load_bytes if index + 1 < steps else first.prefetch_bytes
        moved = coming + stored
        cycles += step_cycles(now.busy_cycles, moved / bandwidth, latency)
        requests += 0.5 if moved > 0 else 0.0
        stored = now.store_bytes
        now = after
    if stored > 0:
        cycles += latency + stored / bandwidth
        requests += 1.0
    return cycles, requests * latency


@atom
def gemm_cost(p: Any, w: Any, t: Any) -> Any:
    """`Cost` of a GEMM under a mapping."""
    cycles, latency = gemm_cycles(p, w, t)
    busy = gemm_busy_cycles(p, w, t)
    compute = whole_cycles(busy)
    total = max(whole_cycles(cycles), compute)
    a_dram, w_dram, o_dram = gemm_traffic(p, w, t)
    dram = a_dram + w_dram + o_dram
    macs = w.m * w.k * w.n * w.count
    tiles_k = ceil_div(w.k, t.tile_k)
    sweeps = w.m * w.count * groups_of(p, w.n, t.tile_n, t.instances)
    reads = packed_bytes(sweeps * w.k, w.a_bits) + packed_bytes(w.m * w.n * w.count, ACCUMULATOR_BITS)
    weights = packed_bytes(macs, w.w_bits) + w_dram
    activations = reads + packed_bytes(w.m * w.n * w.count, w.o_bits) + a_dram + o_dram
    products = macs * multiplications(w.w_bits)
    return Cost(
        total,
        compute,
        total - compute,
        macs,
        weights + activations,
        dram,
        a_dram,
        w_dram,
        o_dram,
        busy,
        transfer_cycles(dram, p.dram.bytes_per_cycle * p.dram.efficiency),
        latency,
        products / (p.processing_units * p.pes * p.multipliers),
        products * p.energy.multiply_pj + w.m * w.n * w.count * tiles_k * p.energy.dot_pj,
        weights * ram_pj(p, p.weight_buffer.ram) + activations * ram_pj(p, p.intermediate_buffer.ram),
        dram * p.dram.pj_per_byte,
        0.0,
    )


@atom
def ram_pj(p: Any, ram: int) -> float:
    """Energy of a byte read or written; distributed RAM is part of `dot_pj`."""
    if ram == URAM:
        return p.energy.uram_pj_per_byte  # type: ignore[no-any-return]
    return p.energy.bram_pj_per_byte if ram == BRAM else 0.0


# --- cores ------------------------------------------------------------------------------------------------------------


class CorePlan(NamedTuple):
    """How a VECTOR work is cut: `units` (rows, or words where one pass is enough) of `words` cycles a pass."""

    units: int
    words: int
    passes: int
    timing: int
    latency_cycles: int


@atom
def core_plan(p: Any, w: Any) -> Any:
    """The cut of a VECTOR work on its core."""
    elements = w.m * w.n * w.count
    core = p.softmax if w.function == SOFTMAX else p.layer_norm
    if w.function == ELEMENTWISE:
        return CorePlan(ceil_div(elements, p.multipliers), 1, 1, core.timing, core.latency_cycles)
    return CorePlan(w.m * w.count, ceil_div(w.n, p.multipliers), core.passes, core.timing, core.latency_cycles)


@atom
def core_cycles(plan: Any, units: int) -> int:
    """Cycles of so many units: every pass of every row, or one pass of each while its stages overlap."""
    if plan.timing == PIPELINED:
        return units * plan.words  # type: ignore[no-any-return]
    return units * plan.words * plan.passes  # type: ignore[no-any-return]


@atom
def core_fixed_cycles(plan: Any) -> int:
    """Cycles an op pays once: the depth of the core, and the stages behind the first of a pipeline."""
    stages = (plan.passes - 1) * plan.words if plan.timing == PIPELINED else 0
    return plan.latency_cycles + stages  # type: ignore[no-any-return]


@atom
def core_chunks(p: Any, w: Any, t: Any) -> Any:
    """(chunks, units of a whole chunk): one where operands are on chip."""
    plan = core_plan(p, w)
    chunk = t.tile_m if is_spilled(p, w) else plan.units
    return ceil_div(plan.units, chunk), chunk


@atom
def core_fits(p: Any, w: Any, chunk: int) -> Any:
    """Whether half of the input and of the output buffer hold a chunk that comes from DRAM."""
    units = core_plan(p, w).units
    return (
        2 * chunk * ceil_div(w.in_bytes, units) <= p.input_buffer.capacity_bytes
        and 2 * chunk * ceil_div(w.out_bytes, units) <= p.output_buffer.capacity_bytes
    )


@atom
def core_step(p: Any, w: Any, t: Any, index: int) -> Any:
    """Chunk `index` of a VECTOR work."""
    plan = core_plan(p, w)
    chunks, chunk = core_chunks(p, w, t)
    start, end = index * chunk, min(plan.units, (index + 1) * chunk)
    busy = float(core_cycles(plan, end - start) + (core_fixed_cycles(plan) if index == chunks - 1 else 0))
    load, stored = (w.crossing_bytes if index == 0 else 0), 0
    if is_spilled(p, w):
        load += share_start(w.in_bytes, plan.units, end) - share_start(w.in_bytes, plan.units, start)
        stored = share_start(w.out_bytes, plan.units, end) - share_start(w.out_bytes, plan.units, start)
    return Step(0, load, busy, stored)


@atom
def core_cost(p: Any, w: Any, t: Any) -> Any:
    """`Cost` of a VECTOR work on its core."""
    bandwidth = p.dram.bytes_per_cycle * p.dram.efficiency
    latency = p.dram.latency_cycles
    plan = core_plan(p, w)
    chunks = core_chunks(p, w, t)[0]
    cycles, stored = 0.0, 0
    now = core_step(p, w, t, 0)
    if now.load_bytes > 0:
        cycles += latency + now.load_bytes / bandwidth
    for index in range(chunks):
        after = core_step(p, w, t, index + 1) if index + 1 < chunks else now
        moved = stored + (after.load_bytes if index + 1 < chunks else 0)
        cycles += step_cycles(now.busy_cycles, moved / bandwidth, latency)
        stored = now.store_bytes
        now = after
    if stored > 0:
        cycles += latency + stored / bandwidth
    busy = core_cycles(plan, plan.units) + core_fixed_cycles(plan)
    spilled = is_spilled(p, w)
    in_dram = w.crossing_bytes + (w.in_bytes if spilled else 0)
    out_dram = w.out_bytes if spilled else 0
    dram = in_dram + out_dram
    total = max(whole_cycles(cycles), busy)
    elements = w.m * w.n * w.count
    sram = plan.passes * w.in_bytes + w.out_bytes + dram
    return Cost(
        total,
        busy,
        total - busy,
        0,
        sram,
        dram,
        in_dram,
        0,
        out_dram,
        float(busy),
        transfer_cycles(dram, bandwidth),
        exposed_latency_bound(latency, chunks),
        elements / p.multipliers * (1 if plan.timing == PIPELINED else plan.passes),
        0.0,
        sram * ram_pj(p, p.intermediate_buffer.ram),
        dram * p.dram.pj_per_byte,
        elements * plan.passes * p.energy.element_pj,
    )


# --- the rest ---------------------------------------------------------------------------------------------------------


@atom
def move_cost(p: Any, w: Any) -> Any:
    """`Cost` of a MOVE inside the layers: an address where operands are on chip, else read and written through DRAM."""
    bandwidth = p.dram.bytes_per_cycle * p.dram.efficiency
    spilled = is_spilled(p, w)
    in_dram = w.crossing_bytes + (w.in_bytes if spilled else 0)
    out_dram = w.out_bytes if spilled else 0
    total = in_dram + out_dram
    latency = p.dram.latency_cycles * ((1.0 if in_dram > 0 else 0.0) + (1.0 if out_dram > 0 else 0.0))
    cycles = whole_cycles(latency + total / bandwidth)
    return Cost(
        cycles, 0, cycles, 0, 0, total, in_dram, 0, out_dram, 0.0, total / bandwidth, latency,
        total / p.dram.bytes_per_cycle, 0.0, 0.0, total * p.dram.pj_per_byte, 0.0,
    )  # fmt: skip


@atom
def table_cost(p: Any, w: Any) -> Any:
    """`Cost` of a GELU or another table: looked up in the quantization module as results pass, at no cycles."""
    energy = w.m * w.n * w.count * p.energy.element_pj
    return Cost(0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, energy)


@atom
def is_on_host(w: Any) -> Any:
    """Whether the host computes a work: outside the layers, or a conversion from or to real numbers."""
    return w.outside == 1 or (w.kind == VECTOR and w.function == ELEMENTWISE and w.arithmetic != INT)


@atom
def computes(p: Any, w: Any) -> Any:
    """Whether a work can be computed: on the host anything, in the layers integers of at most 8 bits."""
    if is_on_host(w) or (w.kind != GEMM and w.kind != VECTOR):
        return True
    if w.arithmetic != INT:
        return False
    if w.kind == VECTOR:
        return True
    return max(w.a_bits, w.w_bits) <= ACTIVATION_BITS and sum_bits(w.a_bits, w.w_bits, w.k) <= ACCUMULATOR_BITS


@atom
def host_cost(p: Any, w: Any) -> Any:
    """`Cost` of work outside the layers: launch + max(operations, bytes) on the host, and what crosses to it by AXI."""
    nbytes = w.in_bytes + w.weight_bytes + w.out_bytes
    macs = w.m * w.k * w.n * w.count if w.kind == GEMM else 0
    flops = 2 * macs + w.m * w.n * w.count * (w.flops_per_element + w.exps_per_element)
    if p.host.is_counted == 0 or nbytes == 0:
        return Cost(0, 0, 0, macs, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    seconds = p.host.launch_s + max(flops / p.host.flops_per_s, nbytes / p.host.bytes_per_s)
    busy = whole_cycles(seconds * p.clock_hz)
    crossing = w.crossing_bytes / (p.dram.bytes_per_cycle * p.dram.efficiency)
    latency = p.dram.latency_cycles if crossing > 0 else 0.0
    cycles = whole_cycles(busy + crossing + latency)
    in_dram = w.in_bytes + w.crossing_bytes
    return Cost(
        cycles,
        busy,
        cycles - busy,
        macs,
        0,
        nbytes + w.crossing_bytes,
        in_dram,
        w.weight_bytes,
        w.out_bytes,
        float(busy),
        crossing,
        latency,
        flops / p.host.flops_per_s * p.clock_hz,
        0.0,
        0.0,
        w.crossing_bytes * p.dram.pj_per_byte,
        flops * p.host.pj_per_flop + nbytes * p.host.pj_per_byte,
    )


@atom
def work_cost(p: Any, w: Any, t: Any) -> Any:
    """`Cost` of any work of this platform under its mapping."""
    if is_on_host(w):
        return host_cost(p, w)
    if w.kind == GEMM:
        return gemm_cost(p, w, t)
    if w.kind == VECTOR:
        return table_cost(p, w) if w.function == GELU else core_cost(p, w, t)
    return move_cost(p, w)


@compiled
def _cost_all(p: Any, works: Any, mappings: Any, out: Any) -> None:
    for i in range(len(works)):
        store_cost(work_cost(p, works[i], mappings[i]), out[i])


@compiled
def _count_steps(p: Any, w: Any, t: Any) -> Any:
    """How many steps `_fill_steps` writes."""
    if is_on_host(w):
        return 1 if p.host.is_counted == 1 and w.in_bytes + w.weight_bytes + w.out_bytes > 0 else 0
    if w.kind == GEMM:
        return gemm_steps(p, w, t)
    if w.kind == VECTOR:
        return 0 if w.function == GELU else core_chunks(p, w, t)[0]
    return 1 if move_cost(p, w).dram_bytes > 0 else 0


@compiled
def _fill_steps(p: Any, w: Any, t: Any, out: Any) -> None:
    for index in range(len(out)):
        if is_on_host(w):
            step = Step(0, w.crossing_bytes, host_cost(p, w).busy_cycles, 0)
        elif w.kind == GEMM:
            step = gemm_step(p, w, t, index)
        elif w.kind == VECTOR:
            step = core_step(p, w, t, index)
        else:
            cost = move_cost(p, w)
            step = Step(0, cost.in_dram_bytes, 0.0, cost.out_dram_bytes)
        out[index].prefetch_bytes = float(step.prefetch_bytes)
        out[index].load_bytes = float(step.load_bytes)
        out[index].busy_cycles = step.busy_cycles
        out[index].store_bytes = float(step.store_bytes)
