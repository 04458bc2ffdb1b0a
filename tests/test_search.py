"""Does a search keep its budget, its limits and its seed, and does it end the same when it was killed on the way?"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from accelsim import search
from accelsim.errors import SpecError
from accelsim.pareto import front
from accelsim.search import SAMPLERS, coarse, neighbours, plan_of
from accelsim.space import space
from accelsim.study import read_study
from accelsim.sweep import evaluate, keep
from tests.test_cli import answer
from tests.test_cli import run as cli

SPACE = {
    "platform": "systolic-32x32", "model": "bert-tiny", "seq": 32,
    "axes": {
        "rows": {"powers_of_two": [4, 64]}, "cols": {"powers_of_two": [4, 64]}, "clock_hz": [2.0e8, 5.0e8, 1.0e9],
        "dram.bytes_per_cycle": {"powers_of_two": [4, 128]}, "dataflow": ["os", "ws", "is"],
        "input_buffer.capacity_bytes": {"powers_of_two": [64, 65536]}, "vector.lanes": [8, 32],
    },
    "limits": ["area_mm2 <= 2"],
}  # fmt: skip
FOUND = space(SPACE)
OBJECTIVES = ("time_s", "energy_j", "area_mm2")


def plan(budget=300, seed=0, sampler="nsga2", warm=True, objectives=OBJECTIVES):
    return plan_of(FOUND, objectives, budget, seed, sampler, warm)


def run(found, plan, folder, storage="journal", resume=False):
    """A search whose trials are in a journal, as it is the fastest."""
    return search.run(found, plan, folder, storage=storage, resume=resume)


def rows_of(folder) -> pd.DataFrame:
    return read_study(folder).table()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "s"
    return folder, run(FOUND, plan(), folder)


def test_each_point_is_priced_once_and_the_budget_is_kept(done):
    folder, archive = done
    table = rows_of(folder)
    assert len(table) == len(set(table["point"])) == len(archive.found) == 300
    again = evaluate(FOUND, table["point"].to_numpy())
    for name in table:
        assert np.array_equal(again[name], table[name].to_numpy(), equal_nan=table[name].dtype.kind == "f")


def test_the_front_is_that_of_its_rows_within_the_limits(done):
    folder, archive = done
    table = rows_of(folder)
    kept = keep(FOUND, {name: table[name].to_numpy() for name in table})
    assert 0 < kept.sum() < len(table)
    values = np.where(kept[:, None], table[[*OBJECTIVES]].to_numpy(float), np.nan)
    assert archive.front() == table["point"][front(values)].tolist()
    assert archive.best["time_s"][0] == np.nanmin(values[:, 0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_decides_everything(tmp_path, sampler):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(FOUND, plan(60, seed, sampler, warm=False), tmp_path / name)
    pd.testing.assert_frame_equal(rows_of(tmp_path / "a"), rows_of(tmp_path / "b"))
    assert rows_of(tmp_path / "a")["point"].tolist() != rows_of(tmp_path / "c")["point"].tolist()


def test_draws_that_no_seed_decides_are_noticed(tmp_path, monkeypatch):
    import optuna

    monkeypatch.setattr(search, "_sampler", lambda *_: optuna.samplers.RandomSampler())
    for name in "ab":
        run(FOUND, plan(60, warm=False), tmp_path / name)
    assert rows_of(tmp_path / "a")["point"].tolist() != rows_of(tmp_path / "b")["point"].tolist()


KILLED = """
import sys, pathlib
from accelsim.search import Plan, run
from accelsim.space import space
run(space(sys.argv[1]), Plan(("time_s", "energy_j", "area_mm2"), 300, population=30), pathlib.Path(sys.argv[2]),
    storage=sys.argv[3], resume=True)
"""


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_killed_search_goes_on_to_the_same_rows(tmp_path, done, storage):
    file, target = tmp_path / "space.json", tmp_path / "killed"
    file.write_text(json.dumps(SPACE))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(file), str(target), storage])
    while process.poll() is None and len(list((target / "chunks").glob("*.parquet"))) < 4:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(list((target / "chunks").glob("*.parquet")))
    archive = run(FOUND, plan(), target, storage=storage, resume=True)
    assert 4 <= left < len(list((target / "chunks").glob("*.parquet")))
    pd.testing.assert_frame_equal(rows_of(target), rows_of(done[0]))
    assert archive.found.keys() == done[1].found.keys()


def test_trials_that_were_only_half_stored_are_stored_again(tmp_path, done, monkeypatch):
    stored = search._stored

    def dies(*arguments):
        store = stored(*arguments)
        whole = store.add_trials

        def add(trials):
            if len(store.trials) > 80:
                whole(trials[: len(trials) // 2])
                raise KeyboardInterrupt
            whole(trials)

        store.add_trials = add
        return store

    with monkeypatch.context() as patch:
        patch.setattr(search, "_stored", dies)
        with pytest.raises(KeyboardInterrupt):
            run(FOUND, plan(), tmp_path / "s")
    run(FOUND, plan(), tmp_path / "s", resume=True)
    pd.testing.assert_frame_equal(rows_of(tmp_path / "s"), rows_of(done[0]))


def test_a_finished_search_goes_on_with_a_larger_budget(tmp_path):
    small = search.Plan(OBJECTIVES, 100, population=30)
    large = search.Plan(OBJECTIVES, 200, population=30)
    run(FOUND, small, tmp_path / "s")
    run(FOUND, large, tmp_path / "s", resume=True)
    assert len(rows_of(tmp_path / "s")) == 200


def test_a_coarse_sweep_is_even_and_neighbours_are_one_step_away(done):
    rng = np.random.default_rng(0)
    points = coarse(FOUND, 200, rng)
    assert 100 <= len(points) == len(set(points)) <= 200
    for axis in FOUND.free:
        seen = set(FOUND.places(np.array(points))[axis.path].tolist())
        assert {0, len(axis.values) - 1} <= seen
    near = neighbours(FOUND, done[1], 50, rng)
    assert len(near) == 50
    assert not set(near) & set(done[1].found)
    chosen = FOUND.places(np.array(done[1].front()))
    for point in near:
        own = FOUND.places(np.array([point]))
        steps = sum(np.abs(own[a.path] - chosen[a.path]) for a in FOUND.free)
        assert steps.min() == 1


def test_the_command_line(tmp_path, capsys):
    file = tmp_path / "space.json"
    file.write_text(json.dumps(SPACE))
    out = tmp_path / "s"
    found = answer(
        capsys, "search", file, "--budget", 100, "--minimize", "time_s", "--minimize", "area_mm2", "--out", out
    )
    assert found["priced"] == 100
    assert found["objectives"] == ["time_s", "area_mm2"]
    assert found["knee"] in found["front"]
    assert read_study(out).objectives == ("time_s", "area_mm2")
    again = answer(capsys, "search", file, "--budget", 100, "--minimize", "time_s", "--minimize", "area_mm2",
                   "--out", out, "--resume")  # fmt: skip
    assert again == found
    shown = answer(capsys, "front", out)
    assert [row["point"] for row in shown["front"]] == [
        row["point"] for row in sorted(found["front"], key=lambda r: (r["time_s"], r["point"]))
    ]
    code, _, err = cli(capsys, "search", file, "--budget", 100, "--out", out)
    assert (code, "--resume" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--minimize", "tim_s"], "nearest: time_s"),
        (["--minimize", "time_s", "--minimize", "time_s"], "each objective once"),
        (["--sampler", "nsgaii2"], "nearest: nsga2"),
        (["--budget", "0"], ">= 1"),
        (["--minimize", "dsp"], "not known of systolic-32x32"),
        (["--storage", "nonsense://x"], "the URL of a database"),
        (["--storage", "postgresql://user@127.0.0.1:1/none"], "the URL of a database"),
    ],
)
def test_bad_questions(tmp_path, capsys, args, words):
    file = tmp_path / "space.json"
    file.write_text(json.dumps(SPACE))
    code, _, err = cli(capsys, "search", file, "--budget", "50", *args, "--out", tmp_path / "s")
    assert code == 2
    assert words in err.replace("\n", " ")


def test_a_study_in_a_database_is_not_taken_for_a_new_one(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    run(FOUND, plan(40), tmp_path / "a", storage=url)
    with pytest.raises(SpecError, match="--resume"):
        run(FOUND, plan(40), tmp_path / "b", storage=url)
    with pytest.raises(SpecError, match="seed"):
        run(FOUND, plan(40, seed=3), tmp_path / "a", storage=url, resume=True)


def test_a_space_of_one_point(tmp_path):
    one = space({**SPACE, "axes": {"rows": [16]}})
    archive = run(one, plan_of(one, (), None, 0, "nsga2"), tmp_path / "s")
    assert archive.front() == [0]
