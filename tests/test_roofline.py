"""Does the roofline behave like hardware? Literal oracles for its atoms, contracts over random devices and shapes."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accelsim
from accelsim import events
from accelsim.errors import Infeasible, SpecError
from accelsim.mapping import MAPPING_DTYPE
from accelsim.platforms import base, describe, from_mapping, measure, platform, roofline
from accelsim.platforms.base import PRESETS, STEP_DTYPE, Cost
from accelsim.platforms.roofline import CacheLevel, DeviceMemory, PerWidth, Roofline
from accelsim.work import Arithmetic, Work, WorkKind, gemm, move, work_array

DEVICES = ("a100", "v100", "t4", "mi100", "k80", "i7-8700", "tpu-v3")
SMALL = settings(max_examples=40, deadline=None)

rates = st.floats(1e8, 1e15)


@st.composite
def devices(draw: st.DrawFn, largest_tile: int = 256) -> Roofline:
    sides = st.integers(1, largest_tile)
    return Roofline(
        name="random",
        clock_hz=draw(st.floats(1e6, 1e10)),
        compute_units=draw(st.integers(1, 200)),
        peak_flops_per_s=PerWidth(*(draw(rates) for _ in fields(PerWidth))),
        peak_efficiency=draw(st.floats(0.1, 1.0)),
        tile_m=draw(sides),
        tile_n=draw(sides),
        min_tile=draw(sides),
        k_half=float(draw(st.integers(0, 256))),
        vector_flops_per_s=draw(rates),
        exp_flops=draw(st.floats(0.0, 50.0)),
        launch_s=draw(st.sampled_from([0.0, 1e-6, 5e-6])),
        inner=CacheLevel(draw(st.integers(1, 2**24)), draw(rates), 0.5),
        outer=CacheLevel(draw(st.integers(1, 2**26)), draw(rates), 5.0),
        dram=DeviceMemory(draw(rates), draw(st.floats(0.1, 1.0)), 2**50, 50.0),
        pj_per_flop=PerWidth(14.0, 1.0, 1.0, 0.5, 0.25),
        vector_pj_per_flop=20.0,
        static_w=50.0,
        die_mm2=0.0,
    )


FORMATS = [(Arithmetic.FLOAT, 32), (Arithmetic.FLOAT, 16), (Arithmetic.BFLOAT, 16), (Arithmetic.INT, 8)]


@st.composite
def gemms(draw: st.DrawFn, largest: int = 3072) -> Work:
    sides = st.integers(1, largest)
    arithmetic, bits = draw(st.sampled_from(FORMATS))
    w_bits = draw(st.sampled_from([4, 8])) if bits == 8 else bits
    m, k, n, count = draw(sides), draw(sides), draw(sides), draw(st.integers(1, 5))
    bias = draw(st.sampled_from([0, 4 * n]))
    return gemm(m, k, n, count=count, a_bits=bits, w_bits=w_bits, o_bits=bits, arithmetic=arithmetic, bias_bytes=bias)


@st.composite
def vectors(draw: st.DrawFn, largest: int = 3072) -> Work:
    rows, row, size = draw(st.integers(1, largest)), draw(st.integers(1, largest)), draw(st.sampled_from([1, 2, 4]))
    return Work(
        kind=WorkKind.VECTOR,
        arithmetic=Arithmetic.FLOAT,
        m=rows,
        n=row,
        in_bytes=rows * row * size + draw(st.sampled_from([0, 7])),
        out_bytes=rows * row * size,
        flops_per_element=draw(st.integers(0, 8)),
        exps_per_element=draw(st.integers(0, 1)),
        passes=draw(st.integers(0, 3)),
    )


moves = st.builds(move, st.integers(0, 2**24), st.integers(0, 2**24))
works = st.one_of(gemms(), vectors(), moves)


def cost_of(device: Roofline, work: Work) -> Cost:
    return device.costs_of(work, np.zeros(1, MAPPING_DTYPE))


DEVICE = Roofline(
    name="hand",
    clock_hz=1e6,
    compute_units=3,
    peak_flops_per_s=PerWidth(6e6, 12e6, 0.0, 24e6, 0.0),
    peak_efficiency=0.5,
    tile_m=8,
    tile_n=4,
    min_tile=2,
    k_half=2.0,
    vector_flops_per_s=1e6,
    exp_flops=4.0,
    launch_s=5e-6,
    inner=CacheLevel(300, 4e6, 1.0),
    outer=CacheLevel(3000, 2e6, 10.0),
    dram=DeviceMemory(1e6, 0.5, 2**30, 100.0),
    pj_per_flop=PerWidth(2.0, 1.0, 0.0, 0.5, 0.0),
    vector_pj_per_flop=3.0,
    static_w=1.0,
    die_mm2=0.0,
)
"""Numbers small enough to follow by hand: a unit does 1e6 fp32 flop/s, DRAM 0.5e6 bytes/s, a cycle is 1 us."""


# --- oracles: everything one by one, no closed form -------------------------------------------------------------


def slow_bytes(elements: int, bits: int) -> int:
    return math.ceil(elements * bits / 8)


def slow_waves(m: int, n: int, count: int, tile_m: int, tile_n: int, units: int) -> int:
    """Deal the output tiles to the units, one each, and start a new wave when all have one."""
    waves, free = 0, 0
    for _ in range(count):
        for _ in range(0, m, tile_m):
            for _ in range(0, n, tile_n):
                if free == 0:
                    waves, free = waves + 1, units
                free -= 1
    return waves


def slow_tile_s(device: Roofline, peak: float, tile_m: int, tile_n: int, k: int) -> float:
    """Walk down k: one step multiplies and adds for every output of the tile; then the steps of fill and drain."""
    steps = 0
    for _ in range(k):
        steps += 1
    steps += int(device.k_half)
    flops = 0
    for _ in range(steps):
        flops += 2 * tile_m * tile_n
    return flops / (peak * device.peak_efficiency / device.compute_units)


def slow_panels(kept_bytes: int, cache_bytes: int, tiles: int) -> int:
    """How often the other operand streams by: once per panel cut off the kept one, at most once per row of tiles."""
    panels = 0
    while kept_bytes > 0:
        kept_bytes -= cache_bytes
        panels += 1
    return min(panels, tiles)


def slow_peak(device: Roofline, work: Work) -> float:
    """By the table a person would write down."""
    peaks = device.peak_flops_per_s
    bits = max(work.a_bits, work.w_bits)
    table = {
        (Arithmetic.FLOAT, 32): peaks.fp32,
        (Arithmetic.FLOAT, 16): peaks.fp16,
        (Arithmetic.BFLOAT, 16): peaks.bf16,
        (Arithmetic.INT, 8): peaks.int8,
        (Arithmetic.INT, 4): peaks.int4 or peaks.int8,
    }
    return table[work.arithmetic, bits]


def halvings(side: int, smallest: int) -> list[int]:
    sizes = [side]
    while sizes[-1] // 2 >= smallest:
        sizes.append(sizes[-1] // 2)
    return sizes


def slow_gemm(device: Roofline, w: Work) -> dict[str, float]:
    """Seconds and bytes of the fastest tile, counted tile by tile."""
    found = []
    a_bytes, w_bytes = slow_bytes(w.m * w.k, w.a_bits), slow_bytes(w.k * w.n, w.w_bits)
    bandwidth = device.dram.bytes_per_s * device.dram.efficiency
    for tile_m in halvings(device.tile_m, device.min_tile):
        for tile_n in halvings(device.tile_n, device.min_tile):
            waves = slow_waves(w.m, w.n, w.count, tile_m, tile_n, device.compute_units)
            m, n = min(tile_m, w.m), min(tile_n, w.n)
            moved = slow_bytes(m * w.k, w.a_bits) + slow_bytes(w.k * n, w.w_bits) + slow_bytes(m * n, w.o_bits)
            flop_s = slow_tile_s(device, slow_peak(device, w), tile_m, tile_n, w.k)
            inner_s = moved / (device.inner.bytes_per_s / device.compute_units)
            outer_s = moved / (device.outer.bytes_per_s / device.compute_units)
            busy_s = sum(max(flop_s, inner_s, outer_s) for _ in range(waves))
            keep_w = slow_panels(w_bytes, device.outer.capacity_bytes, len(range(0, w.n, tile_n))) * a_bytes + w_bytes
            keep_a = slow_panels(a_bytes, device.outer.capacity_bytes, len(range(0, w.m, tile_m))) * w_bytes + a_bytes
            bias = w.weight_bytes - w.count * w_bytes
            dram = w.count * (min(keep_w, keep_a) + slow_bytes(w.m * w.n, w.o_bits)) + bias
            found.append({"time_s": max(busy_s, dram / bandwidth), "busy_s": busy_s, "dram_bytes": dram})
    return min(found, key=lambda plan: (plan["time_s"], plan["busy_s"]))


def slow_vector(device: Roofline, w: Work) -> dict[str, float]:
    """Sweep row after row, pass after pass; every byte is counted at each level it comes through."""
    rows = w.m * w.count
    row_bytes = math.ceil(w.in_bytes / rows)
    inner = outer = dram = 0
    cached_inner = row_bytes * device.compute_units <= device.inner.capacity_bytes
    cached_outer = row_bytes * device.compute_units <= device.outer.capacity_bytes
    for sweep in range(max(1, w.passes)):
        inner += w.in_bytes
        if sweep > 0 and cached_inner:
            continue
        outer += w.in_bytes
        if sweep > 0 and cached_outer:
            continue
        dram += w.in_bytes
    flops = sum(w.n * (w.flops_per_element + w.exps_per_element * device.exp_flops) for _ in range(rows))
    busy_s = max(
        flops / device.vector_flops_per_s,
        (inner + w.out_bytes) / device.inner.bytes_per_s,
        (outer + w.out_bytes) / device.outer.bytes_per_s,
    )
    dram_s = (dram + w.out_bytes) / (device.dram.bytes_per_s * device.dram.efficiency)
    return {"time_s": max(busy_s, dram_s), "busy_s": busy_s, "dram_bytes": dram + w.out_bytes}


def slow_move(device: Roofline, w: Work) -> dict[str, float]:
    moved = w.in_bytes + w.out_bytes
    time_s = moved / (device.dram.bytes_per_s * device.dram.efficiency)
    return {"time_s": time_s, "busy_s": 0.0, "dram_bytes": moved}


def check_against_oracle(device: Roofline, work: Work) -> None:
    """The Python path of `work_cost`, so that a mutated atom is seen."""
    cost = roofline.work_cost(device, work)
    slow = {WorkKind.GEMM: slow_gemm, WorkKind.VECTOR: slow_vector, WorkKind.MOVE: slow_move}[work.kind](device, work)
    launch = 0.0 if work.is_free else device.launch_s
    want = (launch + slow["time_s"]) * device.clock_hz
    assert abs(cost.cycles - math.ceil(want)) <= (1 if want > 1e6 or abs(want - round(want)) < 1e-6 else 0)
    if work.kind is WorkKind.GEMM:
        # of two tiles that take equally long up to rounding either may be taken
        took = max(cost.busy_cycles, cost.dram_cycles)
        assert took == pytest.approx(slow["time_s"] * device.clock_hz, rel=1e-9)
    else:
        assert cost.busy_cycles == pytest.approx(slow["busy_s"] * device.clock_hz, rel=1e-9)
        assert cost.dram_bytes == slow["dram_bytes"]
    assert cost.dram_bytes == cost.in_dram_bytes + cost.weight_dram_bytes + cost.out_dram_bytes
    assert cost.macs == sum(work.m * work.k * work.n for _ in range(work.count)) * (work.kind is WorkKind.GEMM)


@SMALL
@given(devices(largest_tile=12), st.one_of(gemms(largest=30), vectors(largest=40), moves))
def test_cost_equals_the_oracle(device: Roofline, work: Work) -> None:
    check_against_oracle(device, work)


@SMALL
@given(*(st.integers(1, 20) for _ in range(6)))
def test_waves_equal_dealing_tiles_one_by_one(m: int, n: int, count: int, tile_m: int, tile_n: int, units: int) -> None:
    assert roofline.wave_count(m, n, count, tile_m, tile_n, units) == slow_waves(m, n, count, tile_m, tile_n, units)


PROBES = [
    gemm(9, 5, 7, count=2, a_bits=32, w_bits=32, o_bits=32, arithmetic=Arithmetic.FLOAT),
    gemm(40, 30, 40, a_bits=32, w_bits=32, o_bits=32, arithmetic=Arithmetic.FLOAT),
    gemm(16, 64, 3, a_bits=8, w_bits=8, o_bits=8, bias_bytes=12),
    gemm(8, 5, 4, count=5, a_bits=32, w_bits=32, o_bits=32, arithmetic=Arithmetic.FLOAT),
    gemm(64, 1, 64, a_bits=16, w_bits=16, o_bits=16, arithmetic=Arithmetic.FLOAT),
    Work(WorkKind.VECTOR, m=10, n=20, in_bytes=800, out_bytes=800, flops_per_element=3, passes=3),
    Work(WorkKind.VECTOR, m=2, n=500, in_bytes=4000, out_bytes=4000, exps_per_element=1, passes=3),
    move(1000, 500),
]
FAST_DRAM = replace(DEVICE, dram=replace(DEVICE.dram, bytes_per_s=1e12))
SLOW_OUTER = replace(FAST_DRAM, outer=replace(DEVICE.outer, bytes_per_s=2e4))
FAST_MEMORY = replace(
    FAST_DRAM, inner=replace(DEVICE.inner, bytes_per_s=1e12), outer=replace(DEVICE.outer, bytes_per_s=1e12)
)
SMALL_OUTER = replace(DEVICE, outer=replace(DEVICE.outer, capacity_bytes=256))


def check_probes() -> None:
    for device in (DEVICE, FAST_DRAM, FAST_MEMORY, SLOW_OUTER, SMALL_OUTER):
        for work in PROBES:
            check_against_oracle(device, work)


def test_probes_pass() -> None:
    check_probes()


ORIGINAL = {name: getattr(roofline, name) for name in dir(roofline)}
MUTANTS = {
    "waves without the wave quantum": ("wave_count", lambda m, n, c, tm, tn, u: c * (-(-m // tm)) * (-(-n // tn)) / u),
    "waves without the tile quantum": ("wave_count", lambda m, n, c, tm, tn, u: math.ceil(c * m * n / (tm * tn * u))),
    "waves rounded per instance": ("wave_count", lambda m, n, c, *t: c * ORIGINAL["wave_count"](m, n, 1, *t)),
    "no fill and drain": ("tile_flop_s", lambda p, peak, *t: ORIGINAL["tile_flop_s"](replace(p, k_half=0.0), peak, *t)),
    "a multiply-add counted once": ("tile_flop_s", lambda *a: ORIGINAL["tile_flop_s"](*a) / 2),
    "the device's peak for one unit": (
        "tile_flop_s",
        lambda p, *a: ORIGINAL["tile_flop_s"](p, *a) / p.compute_units,
    ),
    "no result in a tile's bytes": ("tile_bytes", lambda w, *t: ORIGINAL["tile_bytes"](replace(w, o_bits=0), *t)),
    "no on-chip limit": ("tile_cache_s", lambda *a: 0.0),
    "operands never reloaded": ("panel_loads", lambda *a: (1, 1)),
    "both operands reloaded": ("panel_loads", lambda a, w, c, tm, tn: (min(-(-w // c), tn), min(-(-a // c), tm))),
    "bias forgotten": ("bias_bytes", lambda w: 0),
    "int8 at the fp16 rate": ("width_of", lambda *a: min(roofline.FP16, ORIGINAL["width_of"](*a))),
    "always the largest tile": ("gemm_plan", lambda p, w: roofline.gemm_tile_plan(p, w, p.tile_m, p.tile_n)),
    "compute and DRAM in turn": ("kernel_cycles", lambda b, d, launch: math.ceil(launch + b + d)),
    "launch forgotten": ("kernel_cycles", lambda b, d, launch: math.ceil(max(b, d))),
    "launch overlapped": ("kernel_cycles", lambda b, d, launch: math.ceil(max(b, d, launch))),
    "one pass only": ("vector_plan", lambda p, w: ORIGINAL["vector_plan"](p, replace(w, passes=1))),
    "rows always on the chip": (
        "vector_plan",
        lambda p, w: ORIGINAL["vector_plan"](replace(p, inner=replace(p.inner, capacity_bytes=2**40)), w),
    ),
    "exponentials for free": ("vector_plan", lambda p, w: ORIGINAL["vector_plan"](replace(p, exp_flops=0.0), w)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_oracle_trips_on_a_mutated_atom(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, function = MUTANTS[mutant]
    monkeypatch.setattr(roofline, name, function)
    with pytest.raises(AssertionError):
        check_probes()


# --- by hand ----------------------------------------------------------------------------------------------------


def test_gemm_by_hand() -> None:
    """fp32 8 x 10 x 8: 320, 320 and 256 bytes. A unit does 1e6 flop/s and has 0.67e6 bytes/s of the outer level.

    tile  tiles  waves  us of flops         bytes of a tile         us of bytes   busy us
    8x4       2      1  2 x 32 x 12 = 768   320 + 160 + 128 = 608   912           912
    8x2       4      2  384                 320 +  80 +  64 = 464   696           1392
    4x4       4      2  384                 160 + 160 +  64 = 384   576           1152
    4x2       8      3  192                 160 +  80 +  32 = 272   408           1224
    2x4       8      3  192                  80 + 160 +  32 = 272   408           1224
    2x2      16      6  96                   80 +  80 +  16 = 176   264           1584

    DRAM: 896 bytes at 0.5e6 bytes/s = 1792 us, whatever the tile, so that the least busy one is taken. Launch: 5 us.
    """
    work = gemm(8, 10, 8, a_bits=32, w_bits=32, o_bits=32, arithmetic=Arithmetic.FLOAT)
    plan = roofline.gemm_plan(DEVICE, work)
    assert (plan.tile_m, plan.tile_n, plan.waves, plan.a_loads, plan.w_loads) == (8, 4, 1, 1, 1)
    cost = cost_of(DEVICE, work)
    assert (cost.cycles, cost.compute_cycles, cost.stall_cycles) == (1797, 912, 885)
    assert cost.macs == 640
    assert cost.dram_bytes == 320 + 320 + 256
    assert cost.sram_bytes == 2 * (2 * 320 + 320 + 256)
    assert cost.mac_pj == 2 * 640 * 2.0
    assert cost.dram_pj == 896 * 100.0
    assert cost.sram_pj == 1216 * 11.0
    assert cost.unit_cycles == pytest.approx(2 * 640 / 6e6 * 1e6)


def test_vector_by_hand() -> None:
    """10 rows of 20 x 4 bytes in 3 passes; 3 rows of 80 bytes are in flight, within the 300 of the inner level.

    Operations: 200 x 3 at 1e6 = 600 us. Inner: 3 x 800 + 800 = 3200 bytes at 4e6 = 800 us. Outer: 1600 at 2e6 = 800 us.
    DRAM: 1600 at 0.5e6 = 3200 us.
    """
    work = Work(WorkKind.VECTOR, m=10, n=20, in_bytes=800, out_bytes=800, flops_per_element=3, passes=3)
    cost = cost_of(DEVICE, work)
    assert (cost.cycles, cost.compute_cycles, cost.sram_bytes, cost.dram_bytes) == (3205, 800, 4800, 1600)
    assert cost.vector_pj == 600 * 3.0
    wide = replace(work, m=1, n=2000, in_bytes=8000, out_bytes=8000)
    assert cost_of(DEVICE, wide).dram_bytes == 3 * 8000 + 8000, "a row that fits no level is read again from DRAM"
    middle = replace(work, m=1, n=200, in_bytes=800, out_bytes=800)
    assert cost_of(DEVICE, middle).dram_bytes == 1600
    assert cost_of(DEVICE, middle).sram_bytes == 2 * 3200, "reread from the outer level through the inner"


def test_move_by_hand() -> None:
    cost = cost_of(DEVICE, move(1000, 500))
    assert (cost.cycles, cost.compute_cycles, cost.dram_bytes) == (3005, 0, 1500)
    assert cost_of(DEVICE, move(0, 0)) == Cost(*([0] * len(Cost._fields)))


# --- contracts --------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(devices(), works)
def test_time_is_bracketed(device: Roofline, work: Work) -> None:
    cost = cost_of(device, work)
    bandwidth = device.dram_bytes_per_cycle()
    transfer = cost.dram_bytes / bandwidth
    slack = 1 + 1e-9 * cost.cycles
    assert max(cost.compute_cycles, transfer) <= cost.cycles * (1 + 1e-12)
    assert cost.cycles <= cost.compute_cycles + transfer + cost.latency_cycles + slack
    assert cost.cycles == cost.compute_cycles + cost.stall_cycles
    assert cost.stall_cycles >= 0
    assert cost.unit_cycles <= cost.cycles * (1 + 1e-12), "utilization above 1"
    assert cost.dram_bytes >= work.bytes
    assert (cost.cycles == 0) == (work.is_free)
    assert cost.energy_pj >= 0
    assert math.isfinite(cost.energy_pj)


@settings(max_examples=60, deadline=None)
@given(devices(), st.lists(works, min_size=1, max_size=6))
def test_batch_equals_scalar_bit_for_bit(device: Roofline, batch: list[Work]) -> None:
    rows = device.costs(work_array(batch), np.zeros(len(batch), MAPPING_DTYPE))
    for row, work in zip(rows, batch, strict=True):
        assert Cost(*row.tolist()) == roofline.work_cost(device, work)


def grown(device: Roofline, path: str, factor: float) -> Roofline:
    head, _, rest = path.partition(".")
    value = getattr(device, head)
    if rest:
        return replace(device, **{head: grown(value, rest, factor)})  # type: ignore[arg-type]
    return replace(device, **{head: type(value)(value * factor)})


FASTER = [
    "dram.bytes_per_s",
    "outer.bytes_per_s",
    "inner.bytes_per_s",
    "outer.capacity_bytes",
    "inner.capacity_bytes",
    "vector_flops_per_s",
    *(f"peak_flops_per_s.{f.name}" for f in fields(PerWidth)),
]


@settings(max_examples=60, deadline=None)
@given(devices(), works, st.sampled_from(FASTER), st.floats(1.0, 16.0))
def test_more_is_never_slower(device: Roofline, work: Work, path: str, factor: float) -> None:
    assert cost_of(grown(device, path, factor), work).cycles <= cost_of(device, work).cycles


@SMALL
@given(devices(), works, st.floats(1.0, 4.0))
def test_the_clock_only_sets_the_unit_of_time(device: Roofline, work: Work, factor: float) -> None:
    slow, fast = cost_of(device, work).cycles, cost_of(grown(device, "clock_hz", factor), work).cycles
    tick = 1 / (device.clock_hz * factor)
    assert fast * tick <= slow / device.clock_hz * (1 + 1e-12) + tick
    doubled = cost_of(grown(device, "clock_hz", 2.0), work).cycles
    assert doubled <= 2 * slow, "twice the clock is never slower, rounding included"
    peaks = replace(
        device.peak_flops_per_s, **{f.name: 2 * getattr(device.peak_flops_per_s, f.name) for f in fields(PerWidth)}
    )
    twice = replace(device, peak_flops_per_s=peaks)
    if work.kind is WorkKind.GEMM:
        tile = (device.tile_m, device.tile_n)
        peak = slow_peak(device, work)
        assert (
            roofline.tile_flop_s(twice, 2 * peak, *tile, work.k)
            == roofline.tile_flop_s(device, peak, *tile, work.k) / 2
        )


@SMALL
@given(devices(), st.lists(works, min_size=1, max_size=8))
def test_events_equal_analytic(device: Roofline, batch: list[Work]) -> None:
    """The declared exact set is everything: kernels of one stream share nothing and follow each other."""
    rows, none = work_array(batch), np.zeros(len(batch), MAPPING_DTYPE)
    costs = device.costs(rows, none)
    steps = [device.steps(rows[i], none[i]) for i in range(len(batch))]
    lengths = np.array([len(s) for s in steps])
    after: list[list[int]] = []
    for i in range(len(batch)):
        after.append([j for j in range(i) if lengths[j]][-1:])
    timeline = events.run(
        np.array([device.unit(work) for work in batch]),
        np.concatenate([[0], np.cumsum(lengths)])[:-1],
        lengths,
        after,
        np.concatenate([*steps, np.zeros(0, STEP_DTYPE)]),
        len(device.units),
        device.dram_bytes_per_cycle(),
        device.dram_latency_cycles(),
    )
    total = int(costs["cycles"].sum())
    if total < 2**53:
        assert timeline.makespan == total
        assert timeline.busiest_cycles <= timeline.makespan <= timeline.serial_cycles
    assert [len(s) for s in steps] == [0 if work.is_free else 1 for work in batch]


@pytest.mark.parametrize("name", ["a100", "i7-8700"])
def test_both_details_of_a_model_agree(name: str) -> None:
    graph = accelsim.trace("bert-tiny", seq=64)
    analytic, detailed = (accelsim.simulate(graph, platform(name), detail=d) for d in ("analytic", "events"))
    assert analytic.total.cycles == detailed.total.cycles == sum(analytic.columns["cycles"])
    for column in ("macs", "sram_bytes", "dram_bytes", "cycles"):
        assert list(analytic.columns[column]) == list(detailed.columns[column])
    assert analytic.total.energy_j == pytest.approx(detailed.total.energy_j, rel=1e-12)
    assert 0 < analytic.total.utilization <= 1
    assert len(analytic.columns["op"]) >= len(graph.ops)


# --- widths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arithmetic", "a_bits", "w_bits", "int4_peak", "width"),
    [
        (Arithmetic.FLOAT, 32, 32, 1.0, roofline.FP32),
        (Arithmetic.FLOAT, 16, 32, 1.0, roofline.FP32),
        (Arithmetic.FLOAT, 16, 16, 1.0, roofline.FP16),
        (Arithmetic.BFLOAT, 16, 16, 1.0, roofline.BF16),
        (Arithmetic.FLOAT, 64, 64, 1.0, roofline.NO_WIDTH),
        (Arithmetic.INT, 8, 8, 1.0, roofline.INT8),
        (Arithmetic.INT, 8, 4, 1.0, roofline.INT8),
        (Arithmetic.INT, 8, 4, 0.0, roofline.INT8),
        (Arithmetic.INT, 4, 4, 1.0, roofline.INT4),
        (Arithmetic.INT, 4, 4, 0.0, roofline.INT8),
        (Arithmetic.INT, 2, 4, 1.0, roofline.INT4),
        (Arithmetic.INT, 16, 8, 1.0, roofline.NO_WIDTH),
    ],
)
def test_width_of_a_product(arithmetic: Arithmetic, a_bits: int, w_bits: int, int4_peak: float, width: int) -> None:
    assert roofline.width_of(arithmetic, a_bits, w_bits, int4_peak) == width


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        ("k80", "fp16", ["k80", "needs float 16 x 16", "has fp32", "--precision (fp32)", "peak_flops_per_s.fp16"]),
        ("k80", "int8", ["needs int 8 x 8", "has fp32", "peak_flops_per_s.int8"]),
        ("t4", "bf16", ["needs bfloat 16 x 16", "fp32, fp16, int8, int4", "int8"]),
        ("tpu-v3", "fp32", ["needs float 32 x 32", "has bf16", "--precision (bf16)"]),
        ("i7-8700", "fp16", ["needs float 16 x 16", "has fp32, int8"]),
    ],
)
def test_a_device_that_cannot_compute_a_width_says_so(device: str, precision: str, words: list[str]) -> None:
    with pytest.raises(Infeasible) as refusal:
        accelsim.simulate(accelsim.trace("bert-tiny", seq=16), platform(device), precision=precision)
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_device_that_computes_nothing_and_an_operand_beyond_its_memory() -> None:
    with pytest.raises(Infeasible, match=r"has none"):
        replace(DEVICE, peak_flops_per_s=PerWidth(0.0, 0.0, 0.0, 0.0, 0.0)).check_widths(gemm(1, 1, 1), "op")
    with pytest.raises(Infeasible, match=r"dram\.capacity_bytes"):
        DEVICE.check_widths(move(2**30, 1), "op")
    DEVICE.check_widths(move(2**30, 0), "op")


def test_default_precision() -> None:
    found = {name: platform(name).default_precision() for name in DEVICES}
    assert found == {**dict.fromkeys(DEVICES, "fp32"), "tpu-v3": "bf16"}
    assert replace(DEVICE, peak_flops_per_s=PerWidth(0.0, 1.0, 0.0, 1.0, 0.0)).default_precision() == "fp16"
    assert replace(DEVICE, peak_flops_per_s=PerWidth(0.0, 0.0, 0.0, 1.0, 0.0)).default_precision() == "int8"


def test_a_kernel_too_long_to_count_is_refused() -> None:
    crawling = replace(DEVICE, dram=replace(DEVICE.dram, bytes_per_s=1e-300))
    with pytest.raises(SpecError, match=r"2\^53"):
        cost_of(crawling, move(2**40, 2**40))
    with pytest.raises(SpecError, match=r"2\^53"):
        cost_of(replace(DEVICE, peak_flops_per_s=replace(DEVICE.peak_flops_per_s, int8=0.0)), gemm(1, 1, 1))


# --- presets ----------------------------------------------------------------------------------------------------


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    return [] if isinstance(value, str) else [float(value)]  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda p: p.stem)
def test_preset_loads_and_every_number_has_its_source(path) -> None:
    device = platform(path.stem)
    assert device.name == path.stem
    content = describe(device)
    assert all(math.isfinite(n) and n >= 0 for n in numbers(content))
    assert from_mapping(json.loads(json.dumps(content)), "again") == device
    valued = 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        code, _, comment = line.partition("#")
        key, _, value = code.partition(":")
        if value.strip() and key.strip() not in ("kind", "name"):
            valued += 1
            assert len(comment.strip()) >= len("HBM2"), f"{path.name}:{number}: no source: {line}"
    assert valued >= 15


@pytest.mark.parametrize("name", DEVICES)
def test_device_presets(name: str) -> None:
    device = platform(name)
    assert isinstance(device, Roofline)
    assert device.inner.bytes_per_s >= device.outer.bytes_per_s > device.dram.bytes_per_s
    for f in fields(PerWidth):
        peak, energy = getattr(device.peak_flops_per_s, f.name), getattr(device.pj_per_flop, f.name)
        assert (peak == 0) == (energy == 0)
        assert device.static_w + peak * energy * 1e-12 < 410, "more power than the largest board"
    big = Arithmetic.FLOAT, 32
    if name == "tpu-v3":
        big = Arithmetic.BFLOAT, 16
    work = gemm(8192, 8192, 8192, a_bits=big[1], w_bits=big[1], o_bits=big[1], arithmetic=big[0])
    cost = cost_of(device, work)
    assert 0.7 < cost.unit_cycles / cost.cycles <= device.peak_efficiency
    assert device.peak_macs_per_cycle(work) * cost.unit_cycles == pytest.approx(cost.macs)


@pytest.mark.parametrize("work", [PROBES[0], PROBES[5], PROBES[7]], ids=["gemm", "vector", "move"])
def test_explain_ends_in_the_numbers_of_the_cost(work: Work) -> None:
    cost = cost_of(DEVICE, work)
    terms = {term.name: term for term in DEVICE.explain(work, np.zeros(1, MAPPING_DTYPE))}
    assert terms["cycles"].value == cost.cycles
    assert terms["busy cycles"].value == cost.busy_cycles
    assert (
        terms["input traffic"].value + terms["weight traffic"].value + terms["output traffic"].value == cost.dram_bytes
    )
    assert all(term.formula for term in terms.values())
    if work.kind is WorkKind.GEMM:
        longest = max(terms["tile on its unit"].value, terms["tile from on-chip levels"].value)
        assert terms["waves"].value * longest == pytest.approx(cost.busy_cycles)


# --- this-cpu ---------------------------------------------------------------------------------------------------

TINY = measure.Effort(gemm_side=16, copy_bytes=2**12, cache_loop_bytes=2**12, launches=2, repeats=1)


@pytest.fixture
def tiny_machine(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """A cache folder of its own, small caches, and `platform("this-cpu")` that measures next to nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = (measure.Found(2**14, "test"), measure.Found(2**16, "test"))
    monkeypatch.setattr(measure, "cache_bytes", lambda cores: small)
    monkeypatch.setattr(measure.this_cpu_description, "__defaults__", (TINY,))
    return tmp_path / "accelsim" / "this-cpu.json"


def test_this_cpu_is_measured_once_and_kept(tiny_machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.this_cpu_provenance() == {}
    device = platform("this-cpu")
    assert isinstance(device, Roofline)
    assert device.name == "this-cpu"
    assert [w.name for w in device.widths] == ["FP32"]
    assert device.peak_flops_per_s.fp32 > 0
    assert "measured" in measure.this_cpu_provenance()
    assert list(tiny_machine.parent.iterdir()) == [tiny_machine], "nothing temporary is left"
    monkeypatch.setattr(measure, "measure", lambda effort: pytest.fail("measured again"))
    assert platform("this-cpu") == device
    assert platform("this-cpu", {"compute_units": 7}).compute_units == 7
    with pytest.raises(Infeasible, match=r"has fp32"):
        device.check_widths(gemm(1, 1, 1), "op")


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: "",
        lambda saved: json.dumps(saved)[:100],
        lambda saved: "[1, 2]",
        lambda saved: json.dumps({**saved, "machine": "another"}),
        lambda saved: json.dumps({**saved, "version": measure.VERSION + 1}),
        lambda saved: json.dumps({**saved, "description": {**saved["description"], "clock_hz": -1}}),
        lambda saved: json.dumps({**saved, "description": 3}),
        lambda saved: json.dumps({**saved, "provenance": None}),
    ],
)
def test_a_damaged_file_is_measured_anew(tiny_machine, damage) -> None:
    platform("this-cpu")
    good = json.loads(tiny_machine.read_text())
    tiny_machine.write_text(damage(good))
    assert measure.this_cpu_description()["name"] == "this-cpu"
    again = json.loads(tiny_machine.read_text())
    assert again["machine"] == good["machine"]
    assert again["version"] == measure.VERSION


def test_a_cache_folder_that_cannot_be_written_is_no_error(tmp_path, tiny_machine, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert measure.this_cpu_description()["kind"] == "roofline"


def test_a_system_that_tells_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_sysconf", lambda name: 0)
    monkeypatch.setattr(measure, "_sysctl_number", lambda name: 0)
    monkeypatch.setattr(measure, "_sysctl_text", lambda name: "")
    monkeypatch.setattr(measure, "_cpuinfo", lambda key: "")
    inner, outer = measure.cache_bytes(4, tmp_path)
    assert (inner.value, outer.value) == (4 * 512 * 1024, 8 * 2**20)
    for found in (inner, outer, measure.clock_hz(), measure.memory_bytes()):
        assert found.how.startswith("assumed")
        assert found.value > 0
    assert measure.machine()


def test_cache_sizes_from_sys(tmp_path) -> None:
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "32K"), (1, "Instruction", "32K"), (2, "Unified", "512K"), (3, "Unified", "32M")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", str(level)), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    inner, outer = measure.cache_bytes(2, tmp_path)
    assert (inner.value, outer.value) == (2 * 512 * 1024, 32 * 2**20)


def test_every_field_of_the_hardware_is_a_number_a_name_or_nested() -> None:
    for kind in (Roofline, CacheLevel, DeviceMemory, PerWidth):
        for name, hint in __import__("typing").get_type_hints(kind).items():
            if name not in ("kind", "units", "kinds", "reads", "__pydantic_config__", "name"):
                assert hint in (int, float) or is_dataclass(hint), name
    assert "this-cpu" in base.names()
    assert set(DEVICES) < set(base.names())
