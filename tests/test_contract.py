"""Does every platform behave like hardware? One suite for all of them: DESIGN's contract between the models of time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim.errors import Infeasible
from accelsim.gemm import gemm_graph
from accelsim.graph import Graph
from accelsim.mapping import Mapping, best
from accelsim.platforms import Platform, describe, from_mapping, names, platform
from accelsim.platforms.fpga import Fpga
from accelsim.platforms.roofline import Roofline
from accelsim.platforms.systolic import Systolic, work_cost
from accelsim.simulate import at_precision, graph_rows, simulate, timeline
from accelsim.trace import trace
from accelsim.validate import bounds_of, platform_rows, random_graph, random_platform
from accelsim.work import VectorFunction, Work, WorkKind, gemm, move, work_array

PRESETS = [name for name in names() if name != "this-cpu"]
SYSTOLIC = [name for name in PRESETS if isinstance(platform(name), Systolic)]
ROOFLINES = [name for name in PRESETS if isinstance(platform(name), Roofline)]
FPGAS = [name for name in PRESETS if isinstance(platform(name), Fpga)]
TOLERANCE = (0.70, 1.35)
"""Events / analytic on random pairs, systolic. The README prints the worst case of a larger sweep."""


def vector(rows: int, n: int, function: VectorFunction) -> Work:
    passes = 1 if function in (VectorFunction.ELEMENTWISE, VectorFunction.GELU) else 3
    return Work(
        kind=WorkKind.VECTOR, function=function, m=rows, n=n, a_bits=8, o_bits=8, in_bytes=rows * n,
        out_bytes=rows * n, flops_per_element=4, exps_per_element=1, passes=passes,
    )  # fmt: skip


works = st.one_of(
    st.builds(
        gemm, st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), count=st.integers(1, 5),
        w_bits=st.sampled_from([2, 4, 8]), parameter_weights=st.booleans(), bias_bytes=st.sampled_from([0, 64]),
    ),
    st.builds(vector, st.integers(1, 400), st.integers(1, 400), st.sampled_from(list(VectorFunction)[1:])),
    st.builds(move, st.integers(0, 10**6), st.integers(0, 10**6)),
)  # fmt: skip
seeds = st.integers(0, 2**31)


def mapped(chip: Platform, work: Work) -> np.ndarray | None:
    try:
        return best(chip, [work])
    except Infeasible:
        return None


@settings(max_examples=60, deadline=None)
@given(seeds, works)
def test_batch_equals_scalar_bit_for_bit(seed, work):
    chip = random_platform(np.random.default_rng(seed))
    rows = mapped(chip, work)
    if rows is None:
        return
    compiled = chip.costs_of(work, rows)
    fields = dict(zip(rows.dtype.names, rows[0].tolist(), strict=True))
    fields.pop("feasible")
    plain = work_cost(chip, work, Mapping(**fields))
    assert tuple(compiled) == tuple(plain)


@settings(max_examples=100, deadline=None)
@given(seeds, works)
def test_steps_do_the_work_the_analytic_model_counts(seed, work):
    chip = random_platform(np.random.default_rng(seed))
    rows = mapped(chip, work)
    if rows is None:
        return
    cost = chip.costs_of(work, rows)
    assert steps_agree(cost, chip, chip.steps(work_array([work])[0], rows[0]))


def steps_agree(cost, chip, steps) -> bool:
    moved = steps["prefetch_bytes"].sum() + steps["load_bytes"].sum() + steps["store_bytes"].sum()
    extra = steps["busy_cycles"].sum() - cost.busy_cycles
    latencies = max(
        chip.vector.latency_cycles + chip.vector.buffer.latency_cycles,
        max(chip.input_buffer.latency_cycles, chip.weight_buffer.latency_cycles) + chip.accumulator.latency_cycles,
    )
    return (
        moved == cost.dram_bytes
        and -1e-6 * max(1, cost.busy_cycles) <= extra <= latencies + 1e-6 * max(1, cost.busy_cycles)
        and (steps["load_bytes"] >= 0).all()
    )


def test_a_step_list_that_loses_bytes_or_cycles_is_rejected():
    chip = platform("systolic-16x16")
    work = gemm(300, 300, 300)
    rows = best(chip, [work])
    cost = chip.costs_of(work, rows)
    good = chip.steps(work_array([work])[0], rows[0])
    assert steps_agree(cost, chip, good)
    for field in ("load_bytes", "store_bytes", "busy_cycles"):
        bad = good.copy()
        bad[field][np.flatnonzero(bad[field])[-1]] -= 1
        assert not steps_agree(cost, chip, bad) or field == "busy_cycles"
        bad[field] *= 0.5
        assert not steps_agree(cost, chip, bad)


def test_random_pairs_keep_the_contract_within_the_tolerance():
    rows = list(platform_rows(60, seed=7))
    assert sum(row["mismatches"] for row in rows) == 0
    low, high = min(r["ratio"] for r in rows), max(r["ratio"] for r in rows)
    assert TOLERANCE[0] <= low <= high <= TOLERANCE[1]


@pytest.mark.parametrize("mutant", ["overlap everything", "no overlap at all"])
def test_a_wrong_event_model_breaks_the_contract(mutant, monkeypatch):
    from accelsim import events, validate

    real = events.run

    def wrong(*args):
        line = real(*args)
        if mutant == "overlap everything":
            return dataclasses.replace(line, makespan=0.99 * line.busiest_cycles)
        return dataclasses.replace(line, makespan=1.01 * line.serial_cycles)

    monkeypatch.setattr(events, "run", wrong)
    assert sum(row["mismatches"] for row in validate.platform_rows(3, seed=1)) >= 3


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_time_is_equal_on_the_exact_set(seed, m, k, n):
    """The exact set: an op that is one tile, so that nothing overlaps."""
    chip = random_platform(np.random.default_rng(seed))
    graph = gemm_graph(m, k, n)
    try:
        analytic = simulate(graph, chip)
    except Infeasible:
        return
    work = at_precision(graph, chip, None).works[0][1]
    if len(chip.steps(work_array(list(work))[0], best(chip, list(work))[0])) > 1:
        return
    assert analytic.total.cycles == simulate(graph, chip, detail="events").total.cycles


def test_time_is_equal_in_steady_state():
    """Compute bound, even tiles, loads that hide behind every step: the closed form is the event model's time."""
    chip = platform("systolic-32x32", {"dram.bytes_per_cycle": 4096, "dram.latency_cycles": 1})
    graph = gemm_graph(128, 1024, 1024)
    analytic, events = (simulate(graph, chip, detail=d).total.cycles for d in ("analytic", "events"))
    assert analytic == events


FASTER = [
    {"dram.bytes_per_cycle": 2},
    {"dram.efficiency": 1.3},
    {"input_buffer.capacity_bytes": 2},
    {"weight_buffer.capacity_bytes": 2},
    {"accumulator.capacity_bytes": 2},
    {"vector.buffer.capacity_bytes": 2},
    {"input_buffer.bytes_per_cycle": 2},
    {"accumulator.bytes_per_cycle": 2},
    {"clock_hz": 1.5},
]


def scaled(chip: Platform, factors: dict[str, float]) -> Platform:
    values = {}
    for path, factor in factors.items():
        value = chip
        for part in path.split("."):
            value = getattr(value, part)
        values[path] = type(value)(value * factor)
        if path == "dram.efficiency":
            values[path] = min(1.0, value * factor)
    return from_mapping(describe(chip), "scaled", values)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(FASTER))
def test_more_is_never_slower(seed, factors):
    rng = np.random.default_rng(seed)
    chip, graph = random_platform(rng), random_graph(rng)
    try:
        before = simulate(graph, chip).total.time_s
    except Infeasible:
        return
    assert simulate(graph, scaled(chip, factors)).total.time_s <= before * (1 + 1e-12)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([1.1, 2, 8]))
def test_events_with_more_bandwidth_are_never_slower_under_one_mapping(seed, factor):
    rng = np.random.default_rng(seed)
    chip = random_platform(rng)
    graph = at_precision(gemm_graph(*(int(2 ** rng.uniform(0, 9)) for _ in range(3))), chip, None)
    rows, unique, which = graph_rows(graph)
    try:
        mappings = best(chip, unique)
    except Infeasible:
        return
    wider = scaled(chip, {"dram.bytes_per_cycle": factor})
    before, after = (timeline(graph, c, unique, mappings, rows, which).makespan for c in (chip, wider))
    assert after <= before * (1 + 1e-12)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("detail", ["analytic", "events"])
def test_every_preset_keeps_the_physics(name, detail):
    chip = platform(name)
    report = simulate(trace("bert-mini", seq=64, batch=2), chip, detail=detail)
    ops = report.columns
    for cycles, compute, utilization in zip(ops["cycles"], ops["compute_cycles"], ops["utilization"], strict=True):
        assert cycles >= compute >= 0
        assert 0 <= utilization <= 1
    assert report.total.macs == at_precision(trace("bert-mini", seq=64, batch=2), chip, None).macs
    for column, total in (("macs", "macs"), ("dram_bytes", "dram_bytes"), ("energy_j", "energy_j")):
        assert sum(ops[column]) == pytest.approx(getattr(report.total, total), rel=1e-9)
    assert sum(report.energy_by_part_j.values()) == pytest.approx(report.total.energy_j, rel=1e-9)
    if detail == "analytic":
        assert sum(ops["cycles"]) == report.total.cycles


@pytest.mark.parametrize("name", PRESETS)
def test_both_details_do_the_same_work_on_every_preset(name):
    graph = trace("bert-mini", seq=48)
    analytic, events = (simulate(graph, platform(name), detail=d) for d in ("analytic", "events"))
    for column in ("op", "macs", "sram_bytes", "dram_bytes", "count"):
        assert analytic.columns[column] == events.columns[column]
    for part in ("mac", "vector", "sram", "dram"):
        assert analytic.energy_by_part_j[part] == events.energy_by_part_j[part]
    bounds = bounds_of(graph, platform(name))
    assert bounds["busiest"] <= bounds["events"] * (1 + 1e-9)
    assert bounds["events"] <= bounds["serial"] * (1 + 1e-9)
    assert bounds["op_bound_broken_by"] == 0
    if name in ROOFLINES:
        assert analytic.total.cycles == events.total.cycles


@pytest.mark.parametrize("name", [*SYSTOLIC, *FPGAS])
def test_doubling_the_clock_halves_compute_time(name):
    """Rooflines state their peaks per second: tests/test_roofline.py doubles those. A host has a clock of its own."""
    chip = platform(name, {"host.is_counted": 0} if name in FPGAS else {})
    twice = from_mapping(describe(chip), name, {"clock_hz": 2 * chip.clock_hz})
    graph = trace("bert-tiny", seq=32)
    one, two = (simulate(graph, c).total for c in (chip, twice))
    assert two.compute_cycles / twice.clock_hz == pytest.approx(one.compute_cycles / chip.clock_hz / 2)


def test_every_op_is_a_row_and_a_run_without_work_is_an_error():
    graph = trace("bert-tiny", seq=16)
    report = simulate(graph, platform("systolic-16x16"))
    assert sorted(set(report.columns["op"])) == sorted(op.name for op in graph.ops)
    free = tuple(op for op in graph.ops if graph.work(op)[0].is_free)[:1]
    from accelsim.errors import SpecError

    empty = Graph("empty", graph.tensors, free, graph.inputs, (free[0].output,), graph.meta)
    with pytest.raises(SpecError, match="at least one op that computes"):
        simulate(empty, platform("systolic-16x16"), precision="int8")


def test_vector_unit_works_beside_the_array_where_the_graph_allows():
    """Two independent chains, one on the array and one on the vector unit: events overlap them, analytic does not."""
    from accelsim.graph import DType, Role, Tensor
    from accelsim.ops import Linear, Softmax

    tensors = {
        t.name: t
        for t in (
            Tensor("a", (256, 512), DType.INT8, Role.INPUT),
            Tensor("b", (2048, 512), DType.INT8, Role.INPUT),
            Tensor("w", (512, 512), DType.INT8, Role.WEIGHT),
            Tensor("y", (256, 512), DType.INT8),
            Tensor("z", (2048, 512), DType.INT8),
        )
    }
    ops = (
        Linear(name="linear", inputs=("a", "w"), output="y", group="left"),
        Softmax(name="softmax", inputs=("b",), output="z", group="right"),
    )
    graph = Graph("beside", tensors, ops, ("a", "b"), ("y", "z"), {"precision": "int8"}).check()
    chip = platform("systolic-32x32", {"dram.bytes_per_cycle": 1024})
    analytic, events = (simulate(graph, chip, detail=d).total for d in ("analytic", "events"))
    slower = max(simulate(graph, chip).columns["cycles"])
    assert slower <= events.cycles < 1.05 * slower < analytic.cycles


def test_weights_of_the_next_op_are_prefetched():
    """A chain of two linears: the second's first weights arrive behind the first's computation."""
    from accelsim.graph import DType, Role, Tensor
    from accelsim.ops import Linear, Matmul

    def chain(second_is_parameter: bool) -> Graph:
        tensors = {
            t.name: t
            for t in (
                Tensor("a", (1, 64, 64), DType.INT8, Role.INPUT),
                Tensor("w1", (64, 64), DType.INT8, Role.WEIGHT),
                Tensor("w2", (64, 64), DType.INT8, Role.WEIGHT),
                Tensor("v2", (1, 64, 64), DType.INT8, Role.INPUT),
                Tensor("y", (1, 64, 64), DType.INT8),
                Tensor("z", (1, 64, 64), DType.INT8),
            )
        }
        first = Linear(name="first", inputs=("a", "w1"), output="y", group="")
        second = (
            Linear(name="second", inputs=("y", "w2"), output="z", group="")
            if second_is_parameter
            else Matmul(name="second", inputs=("y", "v2"), output="z", group="", transpose_b=True)
        )
        return Graph("chain", tensors, (first, second), ("a", "v2"), ("z",), {"precision": "int8"}).check()

    chip = platform("systolic-16x16", {"dram.bytes_per_cycle": 8})
    with_prefetch, without = (simulate(chain(p), chip, detail="events").total.cycles for p in (True, False))
    assert with_prefetch < without


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_the_shortcut_of_the_event_loop_changes_no_time(seed):
    from accelsim import events

    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 12))
    count = rng.integers(0, 6, rows)
    unit = rng.integers(0, 3, rows)
    after = [sorted({int(j) for j in rng.integers(0, i, 2) if count[j]}) if i else [] for i in range(rows)]
    steps = np.zeros(max(1, int(count.sum())), dtype=platform("systolic-16x16").steps(*one_step()).dtype)
    for field in ("load_bytes", "busy_cycles", "store_bytes", "prefetch_bytes"):
        steps[field] = rng.integers(0, 50, len(steps)) * (rng.random(len(steps)) < 0.7)
    first = np.concatenate([[0], np.cumsum(count)])[:-1]
    keep = np.ones(len(steps), bool)
    keep[first[count > 0]] = False
    steps["prefetch_bytes"][keep] = 0
    runs = [events.run(unit, first, count, after, steps, 3, 2.5, 7.0, shortcut=s) for s in (True, False)]
    for name in ("start", "finish", "unit_busy"):
        assert np.allclose(getattr(runs[0], name), getattr(runs[1], name), rtol=1e-12)
    for name in ("makespan", "dram_busy", "compute_cycles", "serial_cycles"):
        assert getattr(runs[0], name) == pytest.approx(getattr(runs[1], name), rel=1e-12)
    assert runs[0].busiest_cycles <= runs[0].makespan * (1 + 1e-12) + 1e-9
    assert runs[0].makespan <= runs[0].serial_cycles * (1 + 1e-12) + 1e-9


def one_step():
    work = gemm(4, 4, 4)
    return work_array([work])[0], best(platform("systolic-16x16"), [work])[0]
