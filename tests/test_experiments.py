"""Do the experiments run, and do they print every published row?"""

from __future__ import annotations

from accelsim_experiments import fullstack, gpu_latency, lu2020


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
