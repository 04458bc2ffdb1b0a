"""Is what many designs share priced right: fields no unit reads, capacities searched together, rules without search?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim import price
from accelsim.errors import Infeasible, SpecError
from accelsim.jit import record
from accelsim.mapping import RULES, best, candidates, mapping_row
from accelsim.platforms import describe, from_mapping, platform
from accelsim.platforms.systolic import Systolic, gemm_fits
from accelsim.simulate import graph_rows, simulate
from accelsim.space import space
from accelsim.sweep import evaluate
from accelsim.trace import trace
from accelsim.transforms.quantize import with_precision
from accelsim.validate import random_fpga, random_platform
from accelsim.work import gemm, work_array

BASES = {"systolic": "systolic-32x32", "fpga": "fqbert-zcu102", "roofline": "a100"}
CAPACITIES = ("input_buffer", "weight_buffer", "accumulator")


def costs_or_none(chip, work):
    try:
        return chip.costs(work_array([work]), best(chip, [work]))[0]
    except Infeasible:
        return None


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["systolic", "fpga"]), st.integers(0, 2**31), st.integers(0, 2**31), st.data())
def test_a_unit_reads_only_the_fields_it_names(kind, seed, other, data):
    draw = random_platform if kind == "systolic" else random_fpga
    mine, theirs = (describe(draw(np.random.default_rng(s))) for s in (seed, other))
    precision = "int8" if kind == "systolic" else "fq-bert"
    _, works, _ = graph_rows(with_precision(trace("bert-tiny", seq=33), precision))
    chip = from_mapping(mine, "mine")
    work = data.draw(st.sampled_from(works))
    reads = chip.reads[chip.units[chip.unit(work)]]
    mixed = {**theirs, **{name: mine[name] for name in reads}}
    if kind == "fpga":
        mixed["device"] = mine["device"]
    try:
        twin = from_mapping(mixed, "mixed")
        twin.check_device() if kind == "fpga" else None
    except (SpecError, Infeasible):
        return
    a, b = costs_or_none(chip, work), costs_or_none(twin, work)
    assert (a is None) == (b is None)
    if a is not None:
        assert a == b


def test_a_roofline_names_every_field_but_its_idle_power_and_die():
    chip = platform("a100")
    left = set(describe(chip)) - set(chip.reads["device"])
    assert left == {"kind", "name", "static_w", "die_mm2"}


def group_of(chip: Systolic, sizes):
    base = describe(chip)
    settings_of = [dict(zip([f"{n}.capacity_bytes" for n in CAPACITIES], s, strict=True)) for s in sizes]
    return [from_mapping(base, "base", s) for s in settings_of]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.tuples(*[st.sampled_from([0, 64, 300, 1024, 4096, 65536])] * 3), min_size=8, max_size=30),
    st.tuples(st.integers(1, 70), st.integers(1, 200), st.integers(1, 90), st.integers(1, 4)),
)
def test_capacities_searched_together_are_searched_one_by_one(seed, sizes, shape):
    chips = group_of(random_platform(np.random.default_rng(seed)), sizes)
    m, k, n, count = shape
    bits = chips[0].input_bits, chips[0].weight_bits
    work = gemm(m, k, n, count=count, arithmetic=chips[0].arithmetic, a_bits=bits[0], w_bits=bits[1])
    designs = np.concatenate([record(chip) for chip in chips])
    works, counts = work_array([work]), np.array([3])
    together, ok = price.prices("systolic", designs, np.zeros(len(designs), np.int64), works, counts, "best")
    alone, fine = price.prices("systolic", designs, np.arange(len(designs)), works, counts, "best")
    assert np.array_equal(ok, fine)
    assert np.array_equal(together[ok], alone[ok])


def test_capacities_decide():
    """Else the comparison above could not fail."""
    chips = group_of(platform("systolic-32x32"), [(s, s, s) for s in (4096, 8192, 16384, 32768) * 3])
    designs = np.concatenate([record(chip) for chip in chips])
    works, counts = work_array([gemm(128, 768, 768)]), np.array([1])
    right, _ = price.prices("systolic", designs, np.zeros(len(designs), np.int64), works, counts, "best")
    assert len(np.unique(right["cycles"])) > 1


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 140), st.integers(1, 300), st.integers(1, 140), st.integers(1, 3))
def test_the_largest_tiles_fit_and_are_never_better_than_the_best(dataflow, seed, m, k, n, count):
    base = describe(random_platform(np.random.default_rng(seed)))
    chip = from_mapping(base, "base", {"dataflow": dataflow})
    work = gemm(
        m, k, n, count=count, arithmetic=chip.arithmetic, a_bits=chip.input_bits, w_bits=chip.weight_bits
    )  # fmt: skip
    try:
        found = best(chip, [work], rule="best")
    except Infeasible:
        with pytest.raises(Infeasible):
            best(chip, [work], rule="largest")
        return
    row = best(chip, [work], rule="largest")
    t = row.view(np.recarray)[0]
    assert gemm_fits(chip, work, int(t.tile_m), int(t.tile_k), int(t.tile_n), int(t.instances))
    assert any(mapping_row(c) == row for c in candidates(chip, work))
    assert chip.costs_of(work, found).cycles <= chip.costs_of(work, row).cycles


@pytest.mark.parametrize("kind", sorted(BASES))
def test_a_sweep_by_a_rule_is_simulate_by_that_rule(kind):
    found = space({
        "platform": BASES[kind], "model": "bert-tiny", "seq": 40, "mapping": "largest",
        "axes": {"clock_hz": [1e8, 3e8], "dram.efficiency": [0.5, 0.9]},
    })  # fmt: skip
    columns = evaluate(found, np.arange(found.points))
    for point in range(found.points):
        total = simulate(trace("bert-tiny", seq=40), found.chip(point), mapping="largest").total
        assert total.cycles == columns["cycles"][point]
        assert total.energy_j == columns["energy_j"][point]


def test_an_unknown_rule_is_refused():
    with pytest.raises(SpecError, match="largest"):
        simulate(trace("bert-tiny"), platform("systolic-32x32"), mapping="larges")
    with pytest.raises(SpecError, match="best"):
        space({"platform": "a100", "axes": {"clock_hz": [1e9]}, "mapping": "bst"})
    assert RULES == ("best", "largest")
