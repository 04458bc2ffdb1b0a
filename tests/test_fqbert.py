"""Does the model of FQ-BERT's accelerator match the paper? Printed rows, all that were not used for calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest
from accelsim_experiments import fqbert as experiment

from accelsim import cli
from accelsim.mapping import best
from accelsim.platforms import fpga
from accelsim.simulate import at_precision, simulate

TARGETS = {"latency": 5.0, "DSP": 3.0, "BRAM18K": 15.0, "LUT": 15.0, "energy": 10.0}
"""Largest error of a prediction in per cent."""
UNCALIBRATED = 15.0


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return experiment.table_iii()


def misses(rows: list[dict]) -> list[str]:
    """Predictions beyond their target, and latencies without any fitted constant beyond theirs."""
    found = [
        f"{r['preset']} {r['quantity']}"
        for r in rows
        if r["role"] == "predicted" and abs(r["error"]) > TARGETS.get(r["quantity"], 100.0)
    ]
    alone = [r for r in rows if r["quantity"] == "latency" and abs(r["structure_error"]) > UNCALIBRATED]
    return found + [f"{r['preset']} latency, nothing fitted" for r in alone]


def test_presets_hold_what_the_calibration_row_gives():
    for preset in experiment.ROWS:
        unit = experiment.chip(preset)
        for path, value in experiment.calibrated().items():
            held = unit
            for part in path.split("."):
                held = getattr(held, part)
            assert held == value, (preset, path)


def test_the_calibration_row_is_met(rows):
    fitted = [r for r in rows if r["role"] == "fitted"]
    assert {r["quantity"] for r in fitted} == {"latency", "DSP", "BRAM18K", "LUT", "FF", "power", "energy"}
    for row in fitted:
        assert abs(row["error"]) < 0.05, row


def test_predictions_are_within_their_targets(rows):
    assert sum(r["role"] == "predicted" for r in rows) == 12
    assert misses(rows) == []


@pytest.mark.parametrize(
    ("atom", "wrong"),
    [
        ("multiplications", lambda w_bits: 2),  # every product takes two multipliers
        ("pipeline_depth", lambda p: 70),
        ("columns_at_once", lambda p, instances: p.pes),  # one unit works
    ],
)
def test_a_wrong_structure_misses(atom, wrong, monkeypatch):
    """In plain Python: the compiled loops hold the right atoms."""
    unit = experiment.chip(experiment.CALIBRATION, {"dot_overhead_cycles": 0})
    works = [w for _, many in at_precision(experiment.workload(), unit, None).works for w in many]
    mappings = best(unit, works).view(np.recarray)
    printed = experiment.printed(experiment.CALIBRATION)["latency_ms"] * 1e-3

    def error() -> float:
        cycles = sum(fpga.work_cost(unit, w, t).cycles for w, t in zip(works, mappings, strict=True))
        return 100 * abs(cycles / unit.clock_hz / printed - 1)

    assert error() < UNCALIBRATED
    monkeypatch.setattr(fpga, atom, wrong)
    assert error() > UNCALIBRATED


def test_multiplier_cycles_are_those_derived_from_the_paper():
    """unit_cycles of a stage: every multiplier busy, 1536 of them."""
    derived = experiment.PUBLISHED["derived"]
    ideal = derived["ideal_cycles_per_layer_at_1536_multipliers"]
    table = experiment.stages(simulate(experiment.workload(), experiment.chip(experiment.CALIBRATION)))
    names = {"qkv": "Q, K, V", "scores": "scores", "context": "context", "output": "output", "ffn1": "FFN 1 + GELU"}
    for key, stage in {**names, "ffn2": "FFN 2"}.items():
        used = table.loc[stage, "utilization"] * table.loc[stage, "cycles"]
        assert used == pytest.approx(12 * ideal[key], rel=1e-9)
    assert table["macs"].drop("host").sum() == derived["mac_weights"] + derived["mac_attention"]


def test_stages_hold_every_cycle():
    report = simulate(experiment.workload(), experiment.chip(experiment.CALIBRATION))
    assert experiment.stages(report)["cycles"].sum() == report.total.cycles


def test_ratios_show_the_rounding_of_the_paper():
    by = {row["ratio"]: row for row in experiment.ratios()}
    for row in by.values():
        assert row["rounded"] == pytest.approx(row["printed"], abs=0.006)
    assert by["efficiency vs cpu"]["unrounded"] == pytest.approx(30.03, abs=0.005)
    assert by["efficiency vs gpu"]["unrounded"] == pytest.approx(12.68, abs=0.005)


def test_every_choice_the_paper_leaves_open_is_tried():
    rows = {r["assumption"]: r for r in experiment.sensitivity()}
    assert all(abs(e) <= UNCALIBRATED for e in rows["as modelled"]["errors"].values())
    assert max(abs(e) for e in rows["AXI port of 32 bits"]["errors"].values()) > UNCALIBRATED
    assert not rows["AXI port of 32 bits"]["fitted"]


def test_the_front_is_what_nothing_dominates():
    points = experiment.sweep(small=True)
    for _, part in points.groupby("board"):
        values = part[["time_s", "energy_j", "dsp"]].to_numpy(float)
        for v, kept in zip(values, part["front"], strict=True):
            better = [o for o in values if (o <= v).all() and (o < v).any()]
            assert kept == (not better)


def test_reproduce_writes_tables_and_figures(tmp_path, capsys):
    cli.app(["reproduce", "fqbert", "--small", "--out", str(tmp_path)], standalone_mode=False)
    out = capsys.readouterr().out
    assert "| fqbert-zcu111 | latency, ms | 23.79 |" in out
    assert "Not known about the design" in out
    folder = tmp_path / "fqbert"
    assert {p.name for p in folder.iterdir()} == {
        "tables.md", "sweep.csv", "stages.png", "utilization.png", "sweep.png"
    }  # fmt: skip


def test_committed_tables_are_what_the_model_gives():
    committed = (experiment.Path(experiment.__file__).parent / "results" / "fqbert" / "tables.md").read_text()
    assert committed == "\n".join(experiment.text()) + "\n"


def test_simulate_prints_every_total(capsys):
    cli.app(["simulate", "bert-base", "-p", "fqbert-zcu102", "--precision", "fq-bert", "--json"], standalone_mode=False)
    answer = json.loads(capsys.readouterr().out)
    assert answer["total"]["time_s"] == pytest.approx(43.89e-3, rel=1e-3)
    assert answer["total"]["power_w"] == pytest.approx(9.8, rel=1e-3)
    assert "DSP 1751 of 2520" in answer["assumptions"]["resources"]
