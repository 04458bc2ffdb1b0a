"""Do the experiments run, and do they print every published row?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from accelsim_experiments import dse_bert, fullstack, gpu_latency, lu2020

from accelsim.sweep import evaluate


def test_gpu_latency_compares_every_printed_row(capsys):
    rows = gpu_latency.table()
    assert len(rows) == len(gpu_latency.points()) == 32
    assert all(row["predicted_ms"] > 0 and row["ratio"] == row["predicted_ms"] / row["printed_ms"] for row in rows)
    gpu_latency.main()
    out = capsys.readouterr().out
    assert out.count("ratio") == 32
    assert out.count("mean absolute error") == 2


def test_fullstack_prints_each_quantity_beside_ours(capsys, monkeypatch):
    monkeypatch.setattr(fullstack, "points", lambda: [128])
    fullstack.main()
    out = capsys.readouterr().out
    for name in ("gflop, seq 128", "intensity_ideal, seq 128", "matmul utilization, 64 KiB", "share_softmax"):
        assert name in out


def test_lu2020_counts_every_cycle_of_a_layer_and_prints_the_recalled_ones(capsys):
    rows = lu2020.table()
    assert [(r["block"], r["timing"]) for r in rows] == [
        ("attention", "pipelined"), ("feed-forward", "pipelined"), ("attention", "serial"), ("feed-forward", "serial")
    ]  # fmt: skip
    by = {(r["block"], r["timing"]): r for r in rows}
    macs = {"attention": 4 * 64 * 512 * 512 + 2 * 64 * 64 * 512, "feed-forward": 2 * 64 * 512 * 2048}
    for (block, _), row in by.items():
        assert row["cycles"] - row["exposed"] >= macs[block] / 4096  # the array at its peak
        assert row["exposed"] > 0
    lu2020.main()
    assert capsys.readouterr().out.count("recalled") == 4


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dse")
    return folder, "\n".join(dse_bert.reproduce(folder, small=True))


def test_dse_bert_in_small_mode_tells_of_every_budget_and_length(explored):
    folder, out = explored
    for budget in (dse_bert.EDGE, dse_bert.CARD):
        for seq in dse_bert.SEQS:
            table = pd.read_csv(folder / f"front-{budget.name}-{seq}.csv")
            assert len(table) > 50
            assert (table["power_w"] <= float(budget.limits[0].split()[-1])).all()
            assert set(table["precision"]) <= set(dse_bert.PRECISIONS)
            assert (folder / f"{budget.name}-{seq}-front.png").stat().st_size > 10_000
    assert out.count("Which knob matters") == out.count("What a square array costs") == 4
    assert "width of a product" in out  # why w8a8 is not there
    assert (folder / "tables.md").read_text().startswith("# Designs")


def test_dse_bert_shares_are_of_the_front(explored):
    folder, _ = explored
    study = dse_bert.swept(dse_bert.space_of(dse_bert.EDGE, 128, small=True), folder / "studies" / "edge-128")
    values = pd.read_csv(folder / "front-edge-128.csv")[[*dse_bert.OBJECTIVES]].to_numpy()
    rows = {row["array"]: row["hypervolume_share"] for row in dse_bert.shares(study, values)}
    assert 0 < rows["one 16x16, rest free"] < 1
    assert rows["one 256x256, rest free"] == 0  # not among the coarse axes
    for row in dse_bert.published(dse_bert.EDGE, 128, values):
        assert row["x_time"] is None or not row["within"] or row["x_time"] > 0.5


@pytest.mark.parametrize(("budget", "seq"), [(dse_bert.EDGE, 128), (dse_bert.CARD, 384)])
def test_committed_fronts_are_what_the_model_says_now(budget, seq):
    found = dse_bert.space_of(budget, seq)
    table = pd.read_csv(dse_bert.RESULTS / f"front-{budget.name}-{seq}.csv")
    rows = table.iloc[:: len(table) // 20]
    columns = evaluate(found, rows["point"].to_numpy())
    for name in (*found.columns, *dse_bert.OBJECTIVES):
        assert np.array_equal(columns[name], rows[name].to_numpy()), name
