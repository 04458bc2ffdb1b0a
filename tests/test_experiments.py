"""Do the experiments run, and do they print every published row?"""

from __future__ import annotations

from accelsim_experiments import fullstack, gpu_latency


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
