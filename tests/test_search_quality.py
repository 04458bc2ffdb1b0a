"""Does a search find the front? Hypervolume at 3 % of a small space, held against the exhaustive front and random."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from accelsim import pareto, search
from accelsim.space import space
from accelsim.sweep import evaluate, keep

FOUND = space({
    "platform": "systolic-32x32", "model": "bert-base",
    "axes": {
        "rows": {"powers_of_two": [8, 256]}, "cols": {"powers_of_two": [8, 256]}, "dataflow": ["os", "ws", "is"],
        "dram.bytes_per_cycle": {"powers_of_two": [8, 256]},
        "input_buffer.capacity_bytes": [16384, 65536, 262144], "weight_buffer.capacity_bytes": [16384, 65536, 262144],
        "accumulator.capacity_bytes": [16384, 65536, 262144], "vector.lanes": [16, 64],
    },
    "limits": ["area_mm2 <= 20"],
})  # fmt: skip
OBJECTIVES = ["time_s", "energy_j", "area_mm2"]
BUDGET = FOUND.points * 3 // 100
SEEDS = range(3)
REFERENCE = [1.1] * len(OBJECTIVES)


@pytest.fixture(scope="module")
def volume():
    """Share of the exhaustive hypervolume: logarithms, 0 to 1 over the exhaustive front, reference 1.1."""
    columns = evaluate(FOUND, np.arange(FOUND.points))
    kept = keep(FOUND, columns)
    values = np.stack([columns[name][kept] for name in OBJECTIVES], axis=1)
    best = np.log(values[pareto.front(values)])
    low, high = best.min(axis=0), best.max(axis=0)
    whole = pareto.hypervolume((best - low) / (high - low), REFERENCE)

    def share(values):
        scaled = (np.log(values[~np.isnan(values).any(axis=1)]) - low) / (high - low)
        return pareto.hypervolume(scaled[(scaled < 1.1).all(axis=1)], REFERENCE) / whole

    assert share(values) == pytest.approx(1)
    return share


@pytest.fixture(scope="module")
def shares(volume, tmp_path_factory):
    """(share of a search, share of as many random points) of each seed."""

    def searched(seed):
        plan = search.plan_of(FOUND, OBJECTIVES, BUDGET, seed, "nsga2")
        found = search.run(FOUND, plan, tmp_path_factory.mktemp("s") / "study", storage="journal").found
        assert len(found) == BUDGET
        return volume(np.array([*found.values()]))

    def drawn(seed):
        columns = evaluate(FOUND, np.random.default_rng(seed).choice(FOUND.points, BUDGET, replace=False))
        return volume(np.stack([columns[name] for name in OBJECTIVES], axis=1)[keep(FOUND, columns)])

    return [(searched(seed), drawn(seed)) for seed in SEEDS]


def test_a_search_of_3_percent_finds_97_percent_of_the_hypervolume(shares):
    assert statistics.median(share for share, _ in shares) >= 0.97, shares


def test_a_search_beats_random_with_every_seed(shares):
    assert all(ours > random for ours, random in shares), shares
