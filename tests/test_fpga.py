"""Is each atom of FQ-BERT's accelerator right? Oracles: a unit stepped cycle by cycle, the literal BIM, hand cases."""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim.errors import Infeasible
from accelsim.gemm import gemm_graph
from accelsim.literal import adder_tree, bim_trace
from accelsim.mapping import Mapping, best, mapping_row
from accelsim.platforms import describe, fpga, from_mapping, platform
from accelsim.platforms.fpga import Fpga, work_cost
from accelsim.platforms.resources import ram_blocks, tree_bits
from accelsim.simulate import at_precision, simulate
from accelsim.trace import trace
from accelsim.validate import platform_rows, random_fpga, random_graph
from accelsim.work import Arithmetic, VectorFunction, Work, WorkKind, gemm, work_array

PRINTED = ("fqbert-zcu102", "fqbert-zcu102-16x8", "fqbert-zcu111")
OURS = ("fqbert-u280", "fqbert-k26", "fqbert-z7020")
MODELS, GEMMS = (0.9, 1.3), (0.5, 2.1)
"""Events / analytic on random pairs. A single small GEMM has no op before it whose time hides its first weights."""
seeds = st.integers(0, 2**31)


def chip(**changes: object) -> Fpga:
    found = platform(
        "fqbert-zcu102", {"dot_overhead_cycles": 0, **{k.replace("__", "."): v for k, v in changes.items()}}
    )
    assert isinstance(found, Fpga)
    return found


# --- one unit, stepped ------------------------------------------------------------------------------------------------


def stepped_unit(
    a: np.ndarray, w: np.ndarray, pes: int, multipliers: int, w_bits: int, quantizer_cycles: int, timing: str
) -> tuple[np.ndarray, int]:
    """(a @ w from nibbles, cycles until the last result has left the quantizer) of one unit, register by register.

    A beat moves through operand registers, multipliers, tree levels and shift-add and is added to the accumulator; with
    the last beat the sum goes to one of two psum halves, which the quantizer empties, result after result. Nothing
    moves while a sum waits for a half. serial: the first beat of a group enters when the sum of the one before is in
    its half.
    """
    (m, k), n = a.shape, w.shape[1]
    columns = [range(start, min(start + pes, n)) for start in range(0, n, pes)]
    groups = [(row, part) for part in columns for row in range(m)]
    lanes = multipliers // (2 if w_bits == 8 else 1)
    beats = [slice(start, start + lanes) for start in range(0, k, lanes)]
    levels = adder_tree([0] * (multipliers // 2))[1] if multipliers > 2 else 0
    pipe: deque[tuple[int, int] | None] = deque([None] * (3 + levels))  # operands, multiplier, tree, shift-add
    sums: dict[int, list[int]] = {}
    finished: int | None = None  # group whose sum is in the accumulator, complete
    halves: deque[int] = deque()  # groups in psum halves, oldest first
    out = np.zeros((m, n), np.int64)
    to_issue = deque((g, b) for g in range(len(groups)) for b in range(len(beats)))
    quantizer_left, left, cycle = 0, len(groups), 0
    written = -1
    while left:
        cycle += 1
        may_start = written  # before this cycle
        if halves:
            quantizer_left = quantizer_left or quantizer_cycles * pes
            quantizer_left -= 1
            if quantizer_left == 0:
                row, part = groups[halves.popleft()]
                out[row, part] = sums.pop(row * n + part[0])
                left -= 1
        if finished is not None:
            if len(halves) == 2:
                continue
            halves.append(finished)
            written, finished = finished, None
        beat = pipe.pop()
        if beat is not None:
            group, index = beat
            row, part = groups[group]
            held = sums.setdefault(row * n + part[0], [0] * len(part))
            for i, column in enumerate(part):
                held[i] += bim_trace(a[row, beats[index]], w[beats[index], column], multipliers, w_bits).value
            if index == len(beats) - 1:
                finished = group
        entering = None
        if to_issue and (timing == "pipelined" or to_issue[0][1] > 0 or may_start == to_issue[0][0] - 1):
            entering = to_issue.popleft()
        pipe.appendleft(entering)
    return out, cycle


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.sampled_from([2, 4, 6, 8]),
    st.sampled_from([2, 4, 8]), st.integers(1, 5), st.sampled_from(["serial", "pipelined"]), seeds,
)  # fmt: skip
def test_a_stepped_unit_computes_the_product_in_the_cycles_the_formula_gives(m, k, n, pes, mult, bits, q, timing, seed):
    rng = np.random.default_rng(seed)
    a, w = rng.integers(-128, 128, (m, k)), rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (k, n))
    out, cycles = stepped_unit(a, w, pes, mult, bits, q, timing)
    assert np.array_equal(out, a @ w)
    unit = chip(processing_units=1, pes=pes, multipliers=mult, quantizer_cycles=q, dot_timing=timing)
    assert cycles == fpga.gemm_busy_cycles(unit, gemm(m, k, n, w_bits=bits), Mapping(m, k, n))


@pytest.mark.parametrize(
    "atom", ["pipeline_depth", "lanes_of", "emptying_cycles", "groups_of"], ids=lambda name: f"{name} off by one"
)
def test_a_wrong_atom_is_caught_by_the_stepped_unit(atom, monkeypatch):
    real = getattr(fpga, atom)
    monkeypatch.setattr(fpga, atom, lambda *given: real(*given) + 1)
    rng = np.random.default_rng(1)
    a, w = rng.integers(-128, 128, (3, 37)), rng.integers(-8, 8, (37, 5))
    unit = chip(processing_units=1, pes=2, multipliers=4)
    cycles = stepped_unit(a, w, 2, 4, 4, 1, "serial")[1]
    assert cycles != fpga.gemm_busy_cycles(unit, gemm(3, 37, 5, w_bits=4), Mapping(3, 37, 5))


@pytest.mark.parametrize("multipliers", [2, 4, 6, 8, 12, 16, 24, 32])
def test_the_depth_counts_the_levels_of_the_literal_tree(multipliers):
    levels = bim_trace([1], [1], multipliers, 4).tree_levels
    assert fpga.pipeline_depth(chip(multipliers=multipliers)) == 4 + levels


@given(st.integers(1, 400), st.sampled_from([2, 4, 6, 8, 16]), st.sampled_from([2, 4, 8]))
def test_beats_are_those_of_the_literal_bim(k, multipliers, bits):
    trace = bim_trace(np.ones(k, int), np.ones(k, int), multipliers, bits)
    unit = chip(multipliers=multipliers, dot_timing="pipelined")
    assert fpga.dot_cycles(unit, k, bits) == trace.cycles


def test_hand_cases_of_one_layer():
    """BERT-base, seq 128, on 12 x 8 x 16: beats and depth of each stage, counted by hand."""
    unit = chip()
    for work, instances, groups, beats in (
        (gemm(128, 768, 768, w_bits=4), 1, 128 * 8, 48),  # 768 columns / 96, 768 / 16
        (gemm(128, 768, 3072, w_bits=4), 1, 128 * 32, 48),
        (gemm(128, 3072, 768, w_bits=4), 1, 128 * 8, 192),
        (gemm(128, 64, 128, count=12, parameter_weights=False), 12, 128 * 16, 8),  # 8 x 8 bit: 8 products a beat
        (gemm(128, 128, 64, count=12, parameter_weights=False), 12, 128 * 8, 16),
    ):
        busy = fpga.gemm_busy_cycles(unit, work, Mapping(work.m, work.k, work.n, instances))
        assert busy == groups * (beats + 7) + 8
        ideal = unit.costs_of(work, mapping_row(Mapping(work.m, work.k, work.n, instances, 1))).unit_cycles
        assert ideal == groups * beats


def test_cores_take_words():
    def vector(rows: int, n: int, function: VectorFunction) -> Work:
        return Work(kind=WorkKind.VECTOR, function=function, m=rows, n=n, in_bytes=rows * n, out_bytes=rows * n)

    unit = chip(softmax__latency_cycles=20, layer_norm__latency_cycles=30)
    row = mapping_row(Mapping(1536, 0, 128))
    assert unit.costs_of(vector(1536, 128, VectorFunction.SOFTMAX), row).compute_cycles == 1536 * 8 * 3 + 20
    assert unit.costs_of(vector(128, 768, VectorFunction.LAYER_NORM), row).compute_cycles == 128 * 48 + 2 * 48 + 30
    assert unit.costs_of(vector(1, 1000, VectorFunction.ELEMENTWISE), row).compute_cycles == 63 + 30
    gelu = unit.costs_of(vector(128, 3072, VectorFunction.GELU), row)
    assert gelu.cycles == 0 < gelu.vector_pj


# --- contract ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_batch_equals_scalar_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    unit, graph = random_fpga(rng), random_graph(rng)
    works = [w for _, many in at_precision(graph, unit, None).works for w in many]
    work = works[int(rng.integers(len(works)))]
    try:
        rows = best(unit, [work])
    except Infeasible:
        return
    fields = dict(zip(rows.dtype.names, rows[0].tolist(), strict=True))
    fields.pop("feasible")
    assert tuple(unit.costs_of(work, rows)) == tuple(work_cost(unit, work, Mapping(**fields)))


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_steps_do_the_work_the_analytic_model_counts(seed):
    rng = np.random.default_rng(seed)
    unit, graph = random_fpga(rng), random_graph(rng)
    for _, works in at_precision(graph, unit, None).works:
        for work in works:
            try:
                rows = best(unit, [work])
            except Infeasible:
                continue
            assert steps_agree(unit, work, rows[0], unit.steps(work_array([work])[0], rows[0]))


def steps_agree(unit: Fpga, work: Work, mapping: np.ndarray, steps: np.ndarray) -> bool:
    cost = unit.costs_of(work, mapping.reshape(1))
    moved = steps["prefetch_bytes"].sum() + steps["load_bytes"].sum() + steps["store_bytes"].sum()
    own = work.crossing_bytes if fpga.is_on_host(work) else cost.dram_bytes  # a host's own traffic is in its time
    busy = float(steps["busy_cycles"].sum())
    return moved == own * (len(steps) > 0) and abs(busy - cost.busy_cycles) <= 1e-9 * max(1.0, busy)


def test_a_step_list_that_loses_bytes_or_cycles_is_rejected():
    unit, work = chip(weight_buffer__capacity_bytes=40000), gemm(64, 768, 768, w_bits=4)
    rows = best(unit, [work])
    good = unit.steps(work_array([work])[0], rows[0])
    assert len(good) > 4
    assert steps_agree(unit, work, rows[0], good)
    for field in ("prefetch_bytes", "load_bytes", "busy_cycles"):
        bad = good.copy()
        bad[field][np.flatnonzero(bad[field])[-1]] -= 1
        assert not steps_agree(unit, work, rows[0], bad)


def test_random_pairs_keep_the_contract_within_the_tolerance():
    rows = list(platform_rows(60, seed=7, kind="fpga"))
    assert sum(row["mismatches"] for row in rows) == 0
    for row in rows:
        low, high = GEMMS if row["workload"].startswith("gemm:") else MODELS
        assert low <= row["ratio"] <= high, row


def test_time_is_equal_on_the_exact_set():
    """The exact set: no weights to load. With weights, what the first sub-stage waits for is the whole difference."""
    unit = chip(host__is_counted=0)
    graph = trace("bert-mini", seq=64)
    analytic, events = (simulate(graph, unit, detail=d) for d in ("analytic", "events"))
    first = events.columns["start_cycle"][events.columns["op"].index("encoder.layer.0.attention.self.query.linear")]
    assert first > 0
    for op, cycles, timed in zip(
        analytic.columns["op"], analytic.columns["cycles"], events.columns["cycles"], strict=True
    ):
        if any(part in op for part in ("scores", "context", "LayerNorm")):
            assert cycles == timed, op
    work = gemm(64, 128, 128, w_bits=4)
    single = gemm_graph(64, 128, 128)
    analytic, events = (simulate(single, unit, detail=d).total.cycles for d in ("analytic", "events"))
    moved = (64 * 128 + 128 * 128 // 2) / unit.dram_bytes_per_cycle()
    assert 0 <= events - analytic <= np.ceil(moved + 2 * unit.dram.latency_cycles), work


FASTER = (
    {"dram.bytes_per_cycle": 2},
    {"input_buffer.capacity_bytes": 2},
    {"output_buffer.capacity_bytes": 2},
    {"weight_buffer.capacity_bytes": 2},
    {"intermediate_buffer.capacity_bytes": 4},
    {"psum_rows": 2},
    {"clock_hz": 1.5},
)


def scaled(unit: Fpga, factors: dict[str, float]) -> Fpga:
    values = {}
    for path, factor in factors.items():
        value = unit
        for part in path.split("."):
            value = getattr(value, part)
        values[path] = type(value)(value * factor)
    return from_mapping(describe(unit), "scaled", values)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(FASTER))
def test_more_is_never_slower(seed, factors):
    rng = np.random.default_rng(seed)
    unit, graph = random_fpga(rng), random_graph(rng)
    if "clock_hz" in factors:
        unit = from_mapping(describe(unit), "random", {"host.is_counted": 0})
    try:
        before = simulate(graph, unit).total.time_s
    except Infeasible:
        return
    assert simulate(graph, scaled(unit, factors)).total.time_s <= before * (1 + 1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 600), st.integers(1, 600), st.sampled_from([2, 4, 8]), seeds)
def test_the_mapper_finds_the_best_of_its_candidates(m, k, n, bits, seed):
    unit = random_fpga(np.random.default_rng(seed))
    work = gemm(m, k, n, w_bits=bits)
    found = []
    spilled = fpga.is_spilled(unit, work)
    for tile_m in range(1, m + 1) if spilled else (m,):
        if spilled and tile_m not in (m, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192):
            continue
        for tile_k in sizes(k, fpga.lanes_of(unit, bits)):
            for tile_n in sizes(n, fpga.columns_at_once(unit, 1)):
                if fpga.gemm_fits(unit, work, tile_m, tile_k, tile_n, 1):
                    t = Mapping(tile_m, tile_k, tile_n, 1, 1)
                    found.append((work_cost(unit, work, t).cycles, work_cost(unit, work, t).dram_bytes))
    if not found:
        with pytest.raises(Infeasible):
            best(unit, [work])
        return
    chosen = unit.costs_of(work, best(unit, [work]))
    assert (chosen.cycles, chosen.dram_bytes) == min(found)


def sizes(dim: int, quantum: int) -> list[int]:
    """quantum x 1, 2, 3, 4, 6, 8, 12 ... below the dimension, and the dimension."""
    steps = sorted({quantum * f << i for i in range(12) for f in (1, 3)} | {quantum})
    return [s for s in steps if s < dim] + [dim]


# --- widths, host, device ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "products"), [(2, 1), (4, 1), (8, 2)])
def test_products_by_width(bits, products):
    unit = chip(dot_timing="pipelined")
    work = gemm(128, 768, 768, w_bits=bits)
    cost = unit.costs_of(work, best(unit, [work]))
    assert cost.unit_cycles == work.macs * products / 1536
    assert cost.weight_dram_bytes == 768 * 768 * bits // 8


def test_precision_follows_the_graph():
    graph = trace("bert-tiny", seq=32)
    narrow, wide = (simulate(graph, chip(), precision=p).total for p in ("w2a8", "w6a8"))
    assert narrow.dram_bytes < wide.dram_bytes
    assert narrow.cycles < wide.cycles
    with pytest.raises(Infeasible, match="arithmetic inside an encoder layer"):
        simulate(graph, chip(), precision="fp32")


def test_the_host_can_be_left_out():
    graph = trace("bert-tiny", seq=32, head="sequence-classification")
    with_host, without = (simulate(graph, chip(host__is_counted=c)) for c in (1, 0))
    inside = sum(c for c, layer in zip(without.columns["cycles"], without.columns["layer"], strict=True) if layer >= 0)
    assert without.total.cycles == inside < with_host.total.cycles
    assert without.total.macs == with_host.total.macs
    assert {u for u, layer in zip(with_host.columns["unit"], with_host.columns["layer"], strict=True) if layer < 0} <= {
        "host",
        "none",
    }


@pytest.mark.parametrize("name", [*PRINTED, *OURS])
def test_every_preset_fits_its_device(name):
    unit = platform(name)
    assert isinstance(unit, Fpga)
    unit.check_device()
    needs = unit.needs()
    for resource, total in unit.totals().items():
        assert total == sum(n.amount for n in needs if n.resource == resource)
        assert total <= unit.device.available()[resource]
    assert all(n.formula and n.levers for n in needs)


@pytest.mark.parametrize(
    ("changes", "resource", "lever"),
    [
        ({"pes": 16}, "DSP", "pes"),
        ({"intermediate_buffer.capacity_bytes": 4 * 2**20}, "BRAM18K", "intermediate_buffer.capacity_bytes"),
        ({"intermediate_buffer.ram": "uram"}, "URAM", "ram=bram"),
        ({"processing_units": 60, "pes": 1, "multipliers": 2}, "LUT", "processing_units"),
    ],
)
def test_what_does_not_fit_says_which_resource_and_by_how_much(changes, resource, lever):
    unit = platform("fqbert-zcu102", changes)
    with pytest.raises(Infeasible) as caught:
        simulate(trace("bert-tiny", seq=16), unit)
    text = str(caught.value)
    missing = unit.totals()[resource] - unit.device.available()[resource]
    assert f"{resource} of the device" in text
    assert f"({missing} too many)" in text
    assert lever in text


def test_an_odd_number_of_multipliers_is_refused():
    with pytest.raises(Infeasible, match="even"):
        simulate(trace("bert-tiny", seq=16), platform("fqbert-zcu102", {"multipliers": 15}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_buffer.capacity_bytes": 64}, "weights of one beat"),
        ({"input_buffer.capacity_bytes": 64, "output_buffer.capacity_bytes": 64,
          "intermediate_buffer.capacity_bytes": 64}, "one row of"),
        ({"psum_rows": 8, "weight_buffer.capacity_bytes": 16384}, "one group of columns"),
    ],
)  # fmt: skip
def test_what_no_tile_fits_says_which_buffer(changes, words):
    with pytest.raises(Infeasible, match=words):
        simulate(trace("bert-mini", seq=64), platform("fqbert-zcu102", changes))


def test_wide_sums_and_operands_are_refused():
    with pytest.raises(Infeasible, match="8 x 8"):
        best(chip(), [gemm(4, 4, 4, a_bits=16)])
    with pytest.raises(Infeasible, match="accumulator bits"):
        best(chip(), [gemm(1, 2**18, 1)])
    best(chip(), [dataclasses.replace(gemm(4, 4, 4, a_bits=16), outside=1)])
    with pytest.raises(Infeasible, match="arithmetic"):
        best(chip(), [gemm(4, 4, 4, arithmetic=Arithmetic.FLOAT)])


def test_blocks_of_ram():
    assert ram_blocks(2048, 32, 512, 32) == 1
    assert ram_blocks(2049, 32, 512, 32) == 2  # one row too many
    assert ram_blocks(1, 33, 512, 32) == 2  # one bit too wide
    assert ram_blocks(786432, 1536, 4096, 64) == 24  # half of 128 x 3072 twice, 12 units x 16 x 8 bits


@given(st.integers(1, 64))
def test_tree_bits_are_those_of_adders_counted_one_by_one(leaves):
    values, bits, width = [12] * leaves, 0, 12
    while len(values) > 1:
        width += 1
        bits += width * (len(values) // 2)
        values = [width] * ((len(values) + 1) // 2)
    assert tree_bits(leaves) == bits
