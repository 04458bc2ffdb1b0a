"""Is a front exactly the rows that nothing beats, and do the questions to a study have the right answers?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from accelsim import pareto
from accelsim.errors import SpecError
from accelsim.pareto import front, front_of, hypervolume, knee, one_at_a_time, sobol, study_front, top
from accelsim.space import space
from accelsim.study import read_study
from accelsim.sweep import keep, run
from tests.test_cli import answer
from tests.test_cli import run as cli

SMALL = {
    "platform": "systolic-32x32", "model": "bert-tiny", "seq": 32,
    "axes": {
        "rows": [8, 16, 64], "cols": {"same_as": "rows"}, "clock_hz": [2.0e8, 7.0e8],
        "dram.bytes_per_cycle": [4, 16, 64], "input_buffer.capacity_bytes": [64, 8192, 262144],
    },
    "limits": ["area_mm2 <= 3"],
}  # fmt: skip
OBJECTIVES = ("time_s", "energy_j", "area_mm2")


def unbeaten(values: np.ndarray) -> np.ndarray:
    """The definition, row by row."""
    out = np.zeros(len(values), bool)
    for i, a in enumerate(values):
        if not np.isnan(a).any():
            out[i] = not any((b <= a).all() and (b < a).any() for b in values if not np.isnan(b).any())
    return out


tables = st.integers(1, 5).flatmap(
    lambda d: hnp.arrays(
        float,
        st.tuples(st.integers(0, 40), st.just(d)),
        elements=st.one_of(st.integers(0, 4).map(float), st.floats(-1e3, 1e3), st.sampled_from([np.nan, np.inf])),
    )
)


@settings(max_examples=200, deadline=None)
@given(tables)
def test_a_front_is_what_no_row_beats(values):
    assert np.array_equal(front(values), unbeaten(values))


@settings(max_examples=100, deadline=None)
@given(tables, st.integers(1, 7), st.integers(1, 9))
def test_in_pieces_it_is_the_same_front(values, size, room):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto, "PENDING", room)
        rows, found = front_of(values[s : s + size] for s in range(0, len(values), size))
    assert np.array_equal(rows, np.flatnonzero(unbeaten(values)))
    if len(values):
        assert np.array_equal(found, np.clip(values[rows], -1.7976931348623157e308, 1.7976931348623157e308))


@pytest.mark.parametrize("what", ["ties", "pivot"])
def test_a_wrong_front_is_caught(what, monkeypatch):
    values = np.random.default_rng(0).integers(0, 5, (400, 3)).astype(float)
    if what == "ties":
        real = pareto._non_dominated

        def first_of_equals(v):
            mask = real(v)
            _, first = np.unique(v, axis=0, return_index=True)
            return mask & np.isin(np.arange(len(v)), first)

        monkeypatch.setattr(pareto, "_non_dominated", first_of_equals)
    else:
        monkeypatch.setattr(pareto, "_dominated", lambda v, row: (v >= row).any(axis=1))
        monkeypatch.setattr(pareto, "CHUNK", 50)
    rows, _ = front_of(values[s : s + 50] for s in range(0, 400, 50))
    assert not np.array_equal(rows, np.flatnonzero(unbeaten(values)))


def test_hypervolume_of_boxes_and_against_random_points():
    assert hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), [3, 3]) == 3
    assert hypervolume(np.array([[4.0, 4.0]]), [3, 3]) == 0
    rng = np.random.default_rng(1)
    values = rng.random((30, 3))
    thrown = rng.random((200_000, 3))
    share = (values[None, :, :] <= thrown[:, None, :]).all(axis=2).any(axis=1).mean()
    assert hypervolume(values, [1, 1, 1]) == pytest.approx(share, abs=0.005)


def test_the_knee_of_a_hyperbola_is_its_middle():
    x = np.geomspace(0.01, 100, 101)
    bent = np.stack([x + 0.1, 1 / x + 0.1], axis=1)
    assert abs(knee(bent) - 50) <= 1
    assert knee(np.array([[1.0, 5.0]])) == 0
    assert knee(np.array([[1.0, 2.0], [1.0, 2.0]])) == 0
    with pytest.raises(SpecError, match="no points"):
        knee(np.zeros((0, 2)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "s"
    run(space(SMALL), folder, chunk=7)
    return read_study(folder)


def test_the_front_of_a_study_is_that_of_its_table(study):
    table = study.table()
    kept = keep(study.space, {n: table[n].to_numpy() for n in table})
    assert 0 < kept.sum() < len(table)
    values = np.where(kept[:, None], table[[*OBJECTIVES]].to_numpy(float), np.nan)
    found = study_front(study, OBJECTIVES)
    assert sorted(found["point"]) == table["point"][unbeaten(values)].tolist()
    assert found["time_s"].is_monotonic_increasing
    assert pareto.objectives_of(study) == [*OBJECTIVES]


def test_the_best_few_of_a_study(study):
    table = study.table()
    kept = table[keep(study.space, {n: table[n].to_numpy() for n in table})]
    want = kept.sort_values(["energy_j", "point"])["point"].tolist()
    assert top(study, "energy_j", 5)["point"].tolist() == want[:5]
    assert len(top(study, "energy_j", 10**6)) == len(want)


def test_one_at_a_time_names_the_knob():
    found = space({**SMALL, "limits": []})
    table = one_at_a_time(found, ["time_s", "cycles"], 40).set_index(["knob", "objective"])
    assert table.loc[("clock_hz", "cycles"), "ratio"] == 1
    assert table.loc[("clock_hz", "time_s"), "ratio"] == pytest.approx(3.5)
    assert table.loc[("clock_hz", "time_s"), "at_least"] == 7.0e8
    assert set(table.index.get_level_values("knob")) == {a.path for a in found.free}


def product(columns):
    return np.array(columns["rows"], float) ** 2 * np.array(columns["clock_hz"], float)


def test_sobol_of_a_product_is_its_closed_form(monkeypatch):
    """log y = 2 log(rows) + log(clock): shares are the variances of the terms, nothing interacts, others do nothing."""
    found = space({**SMALL, "limits": []})
    real = pareto.evaluate
    monkeypatch.setattr(pareto, "evaluate", lambda s, p: {**real(s, p), "time_s": product(real(s, p))})
    terms = {"rows": np.var(2 * np.log([8, 16, 64])), "clock_hz": np.var(np.log([2e8, 7e8]))}
    for exact in (True, False):
        monkeypatch.setattr(pareto, "EXACT_POINTS", 10**6 if exact else 0)
        table = sobol(found, ["time_s"], samples=2048).set_index("knob")
        for knob in table.index:
            want = terms.get(knob, 0) / sum(terms.values())
            near = pytest.approx(want, abs=1e-9 if exact else 0.05)
            assert table.loc[knob, "first"] == near
            assert table.loc[knob, "total"] == near


def test_shares_that_interact_sum_to_more_than_one_in_total(study):
    table = sobol(study.space, ["energy_j"])
    assert table["first"].sum() <= 1 + 1e-9
    assert table["total"].sum() >= 1 - 1e-9
    assert (table["total"] >= table["first"] - 1e-9).all()


def test_the_command_line(study, capsys):
    code, text, err = cli(capsys, "front", study.folder, "--top", "2", "--sensitivity")
    assert code == 0, err
    for words in ("front", "hypervolume", "knee", "least energy_j", "Sobol"):
        assert words in text
    found = answer(capsys, "front", study.folder, "--minimize", "time_s", "--minimize", "area_mm2")
    assert found["objectives"] == ["time_s", "area_mm2"]
    assert found["front"][0]["time_s"] == min(row["time_s"] for row in found["front"])
    assert found["knee"] in found["front"]


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--minimize", "tim_s"], "nearest: time_s"), (["--minimize", "rows"], "rows"), (["--top", "0"], "top")],
)
def test_bad_questions(study, args, words, capsys):
    code, _, err = cli(capsys, "front", study.folder, *args)
    assert code == 2
    assert words in err


def test_bad_studies(tmp_path, capsys):
    def refused(folder):
        code, _, err = cli(capsys, "front", folder)
        assert code == 2
        return err

    assert "manifest" in refused(tmp_path)
    run(space({**SMALL, "limits": ["time_s <= 1e-12"]}), tmp_path / "none")
    assert "no point runs within its limits" in refused(tmp_path / "none")
    run(space(SMALL), tmp_path / "cut", chunk=20)
    file = sorted((tmp_path / "cut" / "chunks").glob("*.parquet"))[0]
    file.write_bytes(file.read_bytes()[:200])
    assert "--resume" in refused(tmp_path / "cut")
    assert file.name in refused(tmp_path / "cut").replace("\n", "")
