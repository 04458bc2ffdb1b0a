"""Is `best` the best of the stated candidates, and is hardware that cannot do it refused with its reason?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim.errors import Infeasible
from accelsim.mapping import Mapping, best, candidates
from accelsim.platforms import platform
from accelsim.platforms.systolic import gemm_cost, gemm_fits
from accelsim.validate import random_platform
from accelsim.work import Arithmetic, VectorFunction, Work, WorkKind, gemm


def sizes(dim: int, quantum: int) -> list[int]:
    steps = sorted(quantum * f * 2**i for f in (1, 3) for i in range(40))
    return [s for s in steps if s < dim] + [dim]


def brute_force(chip, work):
    """Plain loops over the stated set: (cycles, DRAM bytes) of the best feasible mapping, or None."""
    q = {"OS": (chip.rows, 1, chip.cols), "WS": (1, chip.rows, chip.cols), "IS": (chip.cols, chip.rows, 1)}
    found = []
    for m in sizes(work.m, q[chip.dataflow.name][0]):
        for k in sizes(work.k, q[chip.dataflow.name][1]):
            for n in sizes(work.n, q[chip.dataflow.name][2]):
                for instances in {1, min(chip.arrays, work.count)}:
                    if instances > 1 and (m, k, n) != (work.m, work.k, work.n):
                        continue
                    if gemm_fits(chip, work, m, k, n, instances):
                        for n_outer in (0, 1):
                            cost = gemm_cost(chip, work, Mapping(m, k, n, instances, n_outer))
                            found.append((cost.cycles, cost.dram_bytes))
    return min(found, default=None)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3),
    st.sampled_from([4, 8]),
)  # fmt: skip
def test_best_equals_brute_force_on_small_shapes(seed, m, k, n, count, w_bits):
    rng = np.random.default_rng(seed)
    small = {"rows": int(rng.integers(1, 9)), "cols": int(rng.integers(1, 9))}
    chip = random_platform(rng)
    import dataclasses

    chip = dataclasses.replace(chip, **small)
    for name in ("input_buffer", "weight_buffer", "accumulator"):
        buffer = dataclasses.replace(getattr(chip, name), capacity_bytes=int(2 ** rng.uniform(7, 12)))
        chip = dataclasses.replace(chip, **{name: buffer})
    work = gemm(m, k, n, count=count, w_bits=w_bits)
    want = brute_force(chip, work)
    if want is None:
        with pytest.raises(Infeasible):
            best(chip, [work])
        return
    cost = chip.costs_of(work, best(chip, [work]))
    assert (cost.cycles, cost.dram_bytes) == want


def test_candidates_are_the_stated_set_and_the_choice_is_one_of_them():
    chip = platform("systolic-16x16")
    work = gemm(100, 70, 50)
    found = candidates(chip, work)
    assert {c.tile_m for c in found} == {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 100}
    assert {c.tile_k for c in found} == {16, 32, 48, 64, 70}
    assert {c.tile_n for c in found} == {16, 32, 48, 50}
    row = best(chip, [work])[0]
    chosen = Mapping(*(int(row[f]) for f in ("tile_m", "tile_k", "tile_n", "instances", "n_outer")))
    assert chosen in found


@pytest.mark.parametrize("field", ["tile_m", "tile_n"])
def test_a_search_that_tries_only_the_smallest_tiles_is_noticed(field):
    """Each dimension's sizes matter: kept at its smallest, the best that is left is worse than the brute force's."""
    chip, work = platform("systolic-16x16", {"fold_timing": "serial"}), gemm(64, 64, 64)
    costs = [
        (gemm_cost(chip, work, c).cycles, c)
        for c in candidates(chip, work)
        if gemm_fits(chip, work, c.tile_m, c.tile_k, c.tile_n, c.instances)
    ]
    smallest = min(getattr(c, field) for _, c in costs)
    assert min(cycles for cycles, c in costs if getattr(c, field) == smallest) > brute_force(chip, work)[0]


@pytest.mark.parametrize("buffer", ["input_buffer", "weight_buffer", "accumulator"])
def test_a_buffer_too_small_for_one_tile_is_refused_with_its_levers(buffer):
    chip = platform("systolic-32x32", {f"{buffer}.capacity_bytes": 8, "dataflow": "os"})
    with pytest.raises(Infeasible) as error:
        best(chip, [gemm(128, 768, 3072)])
    text = str(error.value)
    assert f"{buffer}.capacity_bytes" in text
    assert "bytes" in text
    assert "rows" in text


def test_a_row_that_does_not_fit_the_vector_buffer_is_refused():
    chip = platform("systolic-16x16", {"vector.buffer.capacity_bytes": 64})
    work = Work(
        kind=WorkKind.VECTOR, function=VectorFunction.SOFTMAX, m=4, n=512, a_bits=8, o_bits=8, in_bytes=2048,
        out_bytes=2048, flops_per_element=4, passes=3,
    )  # fmt: skip
    with pytest.raises(Infeasible, match=r"vector\.buffer\.capacity_bytes"):
        best(chip, [work])


def test_widths_the_array_does_not_have_are_refused():
    chip = platform("systolic-16x16")
    for work in (
        gemm(8, 8, 8, a_bits=16, w_bits=16, arithmetic=Arithmetic.FLOAT),
        gemm(8, 8, 8, a_bits=16),
        gemm(8, 8, 8, w_bits=16),
    ):
        with pytest.raises(Infeasible, match="precision"):
            best(chip, [work])


def test_accumulators_that_could_overflow_are_refused():
    narrow = platform("systolic-16x16", {"accumulator_bits": 24})
    largest = 2 ** (24 - 1) // (128 * 128)
    assert best(narrow, [gemm(4, largest - 1, 4)])["feasible"][0] == 1
    with pytest.raises(Infeasible, match="accumulator_bits"):
        best(narrow, [gemm(4, largest, 4)])
    assert best(platform("systolic-16x16"), [gemm(4, 4096, 4)])["feasible"][0] == 1
