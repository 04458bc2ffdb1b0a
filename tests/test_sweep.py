"""Is a sweep what `simulate` says, point by point, and does a study survive what happens to it?"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accelsim
from accelsim import price
from accelsim.accuracy import measured, records
from accelsim.errors import Infeasible, SpecError
from accelsim.simulate import simulate
from accelsim.space import RESULTS, space
from accelsim.sweep import REAL, WHOLE, evaluate, keep, run, sweep
from accelsim.trace import trace
from tests.test_cli import run as cli

SPACES = {
    "systolic": {
        "platform": "systolic-32x32", "model": "bert-mini",
        "axes": {
            "rows": {"powers_of_two": [8, 64]}, "cols": {"same_as": "rows"}, "seq": [16, 33], "batch": [1, 3],
            "dram.bytes_per_cycle": {"from": 8, "to": 512, "points": 3, "scale": "log"},
            "input_buffer.capacity_bytes": [64, 262144], "dataflow": ["os", "ws", "is"], "technology_nm": [22, 7],
            "arrays": [1, 2],
        },
    },
    "energies of tables": {
        "platform": "systolic-32x32", "model": "bert-mini", "energies": "technology",
        "axes": {
            "rows": [16, 32], "accumulator_bits": [32, 24], "technology_nm": [22, 45, 7], "vector.lanes": [8, 32],
            "input_buffer.capacity_bytes": [64, 8192, 16384, 65536, 262144],
            "weight_buffer.capacity_bytes": [4096, 65536], "vector.buffer.capacity_bytes": [4096, 16384],
        },
    },
    "fpga": {
        "platform": "fqbert-zcu102", "model": "bert-mini", "seq": 64,
        "axes": {
            "pes": [4, 8, 16], "multipliers": [8, 15, 16], "precision": ["fq-bert", "w2a8", "i-bert"],
            "intermediate_buffer.ram": ["bram", "uram"], "dram.bytes_per_cycle": [1, 16],
            "weight_buffer.capacity_bytes": [1024, 393216],
        },
    },
    "roofline": {
        "platform": "a100", "model": "bert-mini",
        "axes": {"batch": [1, 8], "precision": ["fp16", "int8", "fp32"], "compute_units": {"range": [27, 108, 27]}},
    },
}  # fmt: skip
FOUND = {kind: space(source) for kind, source in SPACES.items()}


def simulated(kind: str, point: int):
    """`Total` of a point by `simulate`, None where the hardware cannot run it."""
    found = FOUND[kind]
    own = found.values(point)
    graph = trace(found.model, seq=own.get("seq", found.seq), batch=own.get("batch", found.batch))
    try:
        return simulate(graph, found.chip(point), precision=own.get("precision")).total
    except Infeasible:
        return None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FOUND)), st.integers(0, 2**31))
def test_every_point_is_what_simulate_says_bit_for_bit(kind, number):
    point = number % FOUND[kind].points
    columns = evaluate(FOUND[kind], np.array([point]))
    total = simulated(kind, point)
    assert columns["feasible"][0] == (total is not None)
    for name in (*WHOLE, *REAL):
        ours = columns[name][0]
        if total is None:
            assert ours == 0 or np.isnan(ours)
            continue
        theirs = getattr(total, name)
        assert ours == theirs or (theirs is None and np.isnan(ours)), name


def test_points_priced_together_are_points_priced_alone():
    """Also that no design reads what another left behind."""
    for kind, found in FOUND.items():
        together = evaluate(found, np.arange(found.points))
        rng = np.random.default_rng(0)
        for point in rng.integers(0, found.points, 12):
            alone = evaluate(found, np.array([point]))
            for name, values in alone.items():
                assert values[0] == together[name][point] or np.isnan(values[0]), (kind, name)
        assert together["feasible"].any()
    assert not evaluate(FOUND["fpga"], np.arange(FOUND["fpga"].points))["feasible"].all()


def test_energies_of_the_tables_are_those_of_the_preset_at_its_node():
    """The preset's own numbers are rounded, and its leakage leaves the lanes out."""
    found = FOUND["energies of tables"]
    base = accelsim.platform("systolic-32x32")
    same = {"rows": 32, "accumulator_bits": 32, "technology_nm": 22, "vector.lanes": 32,
            "input_buffer.capacity_bytes": 262144, "vector.buffer.capacity_bytes": 16384}  # fmt: skip
    point = next(i for i in range(found.points) if same.items() <= found.values(i).items())
    chip = found.chip(point)
    assert chip.input_buffer.read_pj_per_byte == pytest.approx(base.input_buffer.read_pj_per_byte, rel=1e-3)
    assert chip.vector.buffer.write_pj_per_byte == pytest.approx(base.vector.buffer.write_pj_per_byte, rel=3e-3)
    assert chip.input_buffer.leakage_w == pytest.approx(base.input_buffer.leakage_w, rel=6e-3)
    assert (chip.multiply_pj, chip.accumulate_pj) == pytest.approx((base.multiply_pj, base.accumulate_pj), rel=1e-3)
    assert (chip.vector.flop_pj, chip.vector.exp_pj) == (base.vector.flop_pj, base.vector.exp_pj)
    assert base.static_w < chip.static_w < 1.3 * base.static_w
    smaller = found.chip(
        next(i for i in range(found.points) if found.values(i) == {**found.values(point), "technology_nm": 7})
    )
    assert smaller.multiply_pj == pytest.approx(chip.multiply_pj * 0.109 / 0.339)
    assert smaller.vector.flop_pj == pytest.approx(chip.vector.flop_pj * 0.109 / 0.339)
    assert smaller.dram == chip.dram


def test_designs_that_share_a_mapping_share_its_cost_only_if_their_buffers_cost_the_same():
    found = FOUND["energies of tables"]
    columns = evaluate(found, np.arange(found.points))
    ok = columns["feasible"]
    pairs = {}
    for i in np.flatnonzero(ok):
        key = (
            tuple(columns[a][i] for a in found.columns if a != "input_buffer.capacity_bytes"),
            columns["sram_bytes"][i],
        )
        pairs.setdefault(key, set()).add(columns["energy_j"][i])
    assert max(map(len, pairs.values())) > 1


@pytest.mark.parametrize("what", ["counts", "last work", "mapping"])
def test_a_wrong_batch_is_caught(what, monkeypatch):
    real = price.prices

    def wrong(kind, designs, groups, works, counts, rule):
        if what == "counts":
            return real(kind, designs, groups, works, np.ones_like(counts), rule)
        if what == "last work":
            return real(kind, designs, groups, works[:-1], counts[:-1], rule)
        out, ok = real(kind, designs, groups, works, counts, rule)
        out["cycles"] += 1
        return out, ok

    monkeypatch.setattr(sys.modules[evaluate.__module__], "prices", wrong)
    columns = evaluate(FOUND["systolic"], np.array([5]))
    total = simulated("systolic", 5)
    assert any(columns[name][0] != getattr(total, name) for name in WHOLE)


def test_the_python_call_gives_a_table():
    graph = accelsim.trace("bert-tiny", seq=16)
    table = sweep(graph, accelsim.platform("systolic-32x32"), over={"rows": [8, 16], "dram.bytes_per_cycle": [16, 64]})
    assert list(table["rows"]) == [8, 8, 16, 16]
    chip = accelsim.platform("systolic-32x32", {"rows": 16, "dram.bytes_per_cycle": 64})
    assert table["time_s"][3] == simulate(graph, chip).total.time_s
    with pytest.raises(SpecError, match="an axis of the platform"):
        sweep(graph, accelsim.platform("systolic-32x32"), over={"seq": [8]})


def test_limits_keep_what_is_within():
    found = space({**SPACES["systolic"], "limits": ["area_mm2 <= 1.5", "time_s <= 1e-3"]})
    columns = evaluate(found, np.arange(found.points))
    kept = keep(found, columns)
    assert 0 < kept.sum() < columns["feasible"].sum()
    assert (columns["area_mm2"][kept] <= 1.5).all()
    with pytest.raises(SpecError, match="dsp"):
        keep(space({**SPACES["systolic"], "limits": ["dsp <= 3"]}), columns)


def test_error_is_the_measured_one_and_a_limit_may_bound_it():
    source = {
        "platform": "fqbert-zcu102", "model": "minilm-l6", "seq": 64, "error_of": {"task": "movie-reviews"},
        "axes": {"precision": ["fq-bert", "w3a8", "i-bert"], "pes": [8, 16]}, "limits": ["error <= 0.15"],
    }  # fmt: skip
    found = space(source)
    columns = evaluate(found, np.arange(found.points))
    runs = columns["feasible"]
    assert runs.any()
    for precision, error in zip(columns["precision"][runs], columns["error"][runs], strict=True):
        assert error == measured("minilm-l6", "movie-reviews", str(precision)).error
    assert set(columns["precision"][keep(found, columns)]) == {"fq-bert", "i-bert"} & set(columns["precision"][runs])
    assert np.isnan(columns["error"][~runs]).all()
    other = space({**source, "model": "bert-base", "error_of": {"task": "movie-reviews", "model": "minilm-l6"}})
    assert evaluate(other, np.array([0]))["error"] == columns["error"][0]
    assert space(other.description).digest == other.digest != found.digest


def test_the_records_of_error_are_the_means_of_the_runs():
    from experiments.fqbert_accuracy import RESULTS as FOLDER
    from experiments.fqbert_accuracy import measured as rows
    from experiments.fqbert_accuracy import records as runs

    assert [asdict(row) for row in records()] == rows(runs(FOLDER))
    for row in records():
        assert row.seeds >= 3
        assert 0.1 < row.error < 0.3


# --- spaces -----------------------------------------------------------------------------------------------------------


def test_points_are_the_product_with_models_outermost_and_links_in_step():
    found = FOUND["systolic"]
    assert found.points == 4 * 2 * 2 * 3 * 2 * 3 * 2 * 2
    assert found.columns[:2] == ("seq", "batch")
    seen = {tuple(found.values(i).values()) for i in range(found.points)}
    assert len(seen) == found.points
    assert all(found.values(i)["rows"] == found.values(i)["cols"] for i in range(0, found.points, 7))
    assert [a.path for a in found.free] == [c for c in found.columns if c != "cols"]


def test_forms_of_values():
    found = space(
        {
            "platform": "systolic-32x32",
            "axes": {
                "rows": {"range": [8, 24, 8]}, "cols": {"same_as": "rows", "times": 2},
                "clock_hz": {"from": 1.0e8, "to": 1.0e9, "points": 3, "scale": "log"},
                "vector.lanes": {"from": 8, "to": 64, "points": 3}, "arrays": 2,
            },
        }
    )  # fmt: skip
    values = {a.path: a.values for a in found.axes}
    assert values["rows"] == (8, 16, 24)
    assert values["cols"] == (16, 32, 48)
    assert values["clock_hz"] == pytest.approx((1e8, 10**8.5, 1e9))
    assert values["vector.lanes"] == (8, 36, 64)
    assert values["arrays"] == (2,)
    assert found.chip(0).arrays == 2


def test_the_digest_changes_with_every_value():
    base = FOUND["roofline"].digest
    changed = json.loads(json.dumps(SPACES["roofline"]))
    changed["axes"]["batch"] = [1, 16]
    assert space(changed).digest != base
    assert space({**SPACES["roofline"], "seq": 64}).digest != base
    assert space({**SPACES["roofline"], "limits": ["time_s <= 1"]}).digest != base
    assert space(SPACES["roofline"]).digest == base


BAD = {
    "no axes": ({"platform": "a100"}, "nothing to explore"),
    "empty axes": ({"platform": "a100", "axes": {}}, "nothing to explore"),
    "unknown field": ({"platform": "a100", "axs": {}}, "nearest: axes"),
    "unknown platform": ({"platform": "a10", "axes": {"batch": [1]}}, "nearest: a100"),
    "unknown path": ({"platform": "systolic-32x32", "axes": {"row": [1]}}, "nearest: rows"),
    "unknown inner path": ({"platform": "systolic-32x32", "axes": {"dram.bytes": [1]}}, "dram.bytes_per_cycle"),
    "a whole part": ({"platform": "systolic-32x32", "axes": {"dram": [1]}}, "a field inside it"),
    "negative": ({"platform": "systolic-32x32", "axes": {"rows": [8, -8]}}, "rows"),
    "not a number": ({"platform": "systolic-32x32", "axes": {"clock_hz": [float("nan")]}}, "finite"),
    "a word": ({"platform": "systolic-32x32", "axes": {"dataflow": ["ws", "wsx"]}}, "nearest: ws"),
    "error of a model that was not measured": (
        {"platform": "fqbert-zcu102", "error_of": {"task": "tweets"}, "axes": {"precision": ["fq-bert"]}},
        "model measured.*minilm-l6",
    ),
    "error of a precision that was not measured": (
        {"platform": "fqbert-zcu102", "model": "minilm-l6", "error_of": {"task": "tweets"},
         "axes": {"precision": ["fq-bert", "w6a8"]}}, "precision measured",
    ),
    "error of a precision that is not said": (
        {"platform": "fqbert-zcu102", "model": "minilm-l6", "error_of": {"task": "tweets"}, "axes": {"pes": [8]}},
        "precision of the platform",
    ),
    "error of no task": (
        {"platform": "a100", "error_of": {"model": "minilm-l6"}, "axes": {"batch": [1]}}, "task: TASK"
    ),
    "error of another task": (
        {"platform": "a100", "error_of": {"task": "tweet"}, "axes": {"precision": ["fp32"]}}, "nearest: tweets"
    ),
    "error of a pruned model": (
        {"platform": "fqbert-zcu102", "model": "minilm-l6", "precision": "fq-bert", "error_of": {"task": "tweets"},
         "axes": {"layers": [3, 6]}}, "whole ones",
    ),
    "field of error": (
        {"platform": "a100", "error_of": {"task": "tweets", "modl": "x"}, "axes": {"batch": [1]}}, "model"
    ),
    "limit of an unknown error": (
        {"platform": "a100", "axes": {"batch": [1]}, "limits": ["error <= 0.15"]}, "error_of: {task: TASK}"
    ),
    "no such energies": (
        {"platform": "a100", "energies": "table", "axes": {"batch": [1]}}, "stated, technology"
    ),
    "energies of a GPU": ({"platform": "a100", "energies": "technology", "axes": {"batch": [1]}}, "of ASICs"),
    "an energy that follows": (
        {"platform": "systolic-32x32", "energies": "technology", "axes": {"multiply_pj": [1.0]}}, "no axis of an energy"
    ),
    "twice": ({"platform": "systolic-32x32", "axes": {"rows": [8, 8]}}, "each value once"),
    "no values": ({"platform": "systolic-32x32", "axes": {"rows": []}}, "at least one value"),
    "no power": ({"platform": "systolic-32x32", "axes": {"rows": {"powers_of_two": [9, 15]}}}, "at least one value"),
    "backwards": ({"platform": "systolic-32x32", "axes": {"rows": {"from": 9, "to": 2, "points": 3}}}, "low <= high"),
    "log of zero": (
        {"platform": "a100", "axes": {"launch_s": {"from": 0, "to": 1, "points": 3, "scale": "log"}}}, "> 0"
    ),
    "form": ({"platform": "systolic-32x32", "axes": {"rows": {"frm": 1}}}, "same_as"),
    "link to nothing": ({"platform": "systolic-32x32", "axes": {"cols": {"same_as": "row"}}}, "row"),
    "seq 0": ({"platform": "a100", "axes": {"seq": [0]}}, ">= 1"),
    "too many points": (
        {"platform": "systolic-32x32", "axes": {
            "clock_hz": {"from": 1.0e6, "to": 2.0e6, "points": 10000},
            "static_w": {"from": 0.0, "to": 1.0, "points": 10000},
            "multiply_pj": {"from": 0.0, "to": 1.0, "points": 10000}, "rows": {"range": [1, 1000, 1]}}},
        "fewer values or fewer axes"
    ),
    "limit": ({"platform": "a100", "axes": {"batch": [1]}, "limits": ["time_s < 1"]}, "FIELD <= NUMBER"),
    "limit of code": ({"platform": "a100", "axes": {"batch": [1]}, "limits": ["time_s <= exit(1)"]}, "number"),
    "limit of nothing": ({"platform": "a100", "axes": {"batch": [1]}, "limits": ["tim_s <= 1"]}, "nearest: time_s"),
    "limits that exclude": (
        {"platform": "a100", "axes": {"batch": [1]}, "limits": ["time_s <= 1", "time_s >= 2"]}, "some number keeps"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_spaces_say_what_is_wrong(name):
    source, words = BAD[name]
    with pytest.raises(SpecError, match=words):
        space(source)


def test_columns_have_units_and_limits_name_them():
    columns = set(evaluate(FOUND["fpga"], np.array([0])))
    assert set(RESULTS) - {"error"} <= columns
    assert "precision" in columns


# --- studies ----------------------------------------------------------------------------------------------------------


def rows_of(folder) -> pd.DataFrame:
    return pd.read_parquet(folder / "chunks").sort_values("point", ignore_index=True)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "space.json"
    path.write_text(json.dumps(SPACES["systolic"]))
    return path


def test_a_sweep_of_the_command_line(capsys, tmp_path, file):
    code, out, err = cli(capsys, "sweep", file, "--out", tmp_path / "s", "--json")
    assert code == 0, err
    answer = json.loads(out)
    found = FOUND["systolic"]
    assert f"{found.points:,} points: " in err
    table = rows_of(tmp_path / "s")
    assert answer["points"] == len(table) == found.points
    assert answer["feasible"] == int(table["feasible"].sum())
    best = answer["best"]["time_s"]
    assert best["value"] == table["time_s"].min()
    assert table["time_s"][best["point"]] == best["value"]
    assert best["rows"] == table["rows"][best["point"]]
    code, _, err = cli(capsys, "sweep", file, "--out", tmp_path / "s")
    assert (code, "--resume" in err) == (2, True)


def test_resume_repairs_and_changes_nothing(tmp_path):
    found = FOUND["systolic"]
    run(found, tmp_path / "a", chunk=50, jobs=2)
    whole = rows_of(tmp_path / "a")
    files = sorted((tmp_path / "a" / "chunks").iterdir())
    files[0].unlink()
    files[3].write_bytes(files[3].read_bytes()[:-40])
    (tmp_path / "a" / "chunks" / ".x.partial").write_bytes(b"half")
    summary = run(found, tmp_path / "a", resume=True, jobs=1)
    pd.testing.assert_frame_equal(rows_of(tmp_path / "a"), whole)
    assert summary == run(found, tmp_path / "b", chunk=1000)
    pd.testing.assert_frame_equal(rows_of(tmp_path / "b"), whole)


def test_a_killed_sweep_goes_on_to_the_same_rows(tmp_path, file):
    run(FOUND["systolic"], tmp_path / "undisturbed", chunk=8)
    code = (
        "import sys, pathlib; from accelsim.space import space; from accelsim.sweep import run\n"
        "run(space(sys.argv[1]), pathlib.Path(sys.argv[2]), chunk=8, jobs=1)"
    )
    target = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(file), str(target)])
    while process.poll() is None and len(list((target / "chunks").glob("*.parquet"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(list((target / "chunks").glob("*.parquet"))) < FOUND["systolic"].points // 8
    run(FOUND["systolic"], target, resume=True)
    pd.testing.assert_frame_equal(rows_of(target), rows_of(tmp_path / "undisturbed"))


def test_two_processes_on_one_study(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    code = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); file.write('process 4711'); file.flush()\n"
        "print(1, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    try:
        with pytest.raises(SpecError, match="held by process 4711"):
            run(FOUND["roofline"], folder)
    finally:
        other.communicate(b"")
    run(FOUND["roofline"], folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": "other"}, "of this space"),
        ({"code": "other"}, "this version"),
        ({"format": 0}, "format"),
        (None, "not readable"),
    ],
)
def test_a_manifest_of_something_else_is_refused(tmp_path, change, words):
    found = FOUND["roofline"]
    run(found, tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text("{" if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SpecError, match=words):
        run(found, tmp_path / "s", resume=True)


def test_a_file_where_the_folder_should_be(tmp_path, capsys, file):
    code, _, err = cli(capsys, "sweep", file, "--out", file)
    assert (code, "a folder" in err) == (2, True)
    assert json.loads(file.read_text()) == SPACES["systolic"]
