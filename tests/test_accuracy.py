"""Do the accuracy tables say what the records say, and does an experiment that was cut off go on?"""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from accelsim_experiments import fqbert_accuracy as experiment

from accelsim.errors import SpecError
from accelsim.quantspec import FP32, FQ_BERT, SPECS

pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def record(task, seed, stage, spec, right):
    right = np.array(right, bool)
    which = {"key": f"{task}/{seed}/{stage}/{spec}", "task": task, "seed": seed, "stage": stage, "spec": spec}
    return {**which, "texts": len(right), "accuracy": float(right.mean()), "right": np.packbits(right).tobytes().hex()}


def done(*records):
    return {r["key"]: r for r in records}


def test_every_run_is_there_once_and_after_the_float_run_it_starts_from():
    runs = experiment.points()
    keys = [run.key for run in runs]
    assert len(set(keys)) == len(keys)
    assert {run.seed for run in runs} == {0, 1, 2}
    for i, run in enumerate(runs):
        assert f"{run.task}/{run.seed}/float/fp32" in keys[: i + 1]


def test_the_ablation_ends_at_fq_bert_one_step_at_a_time():
    specs = [FP32, *(spec for _, spec in experiment.ablation())]
    assert specs[-1] is FQ_BERT
    flat = [{**spec.to_json(), "name": ""} for spec in specs]
    changed = [{key for key in a if a[key] != b[key]} for a, b in pairwise(flat[1:])]
    assert changed == [{"scale_format"}, {"softmax"}, {"layer_norm", "norm_bits"}, {"gelu"}, {"embeddings"}]


def test_the_main_table():
    rng = np.random.default_rng(0)
    float_right = rng.random((2, 400)) < 0.9
    ours = float_right.copy()
    ours[:, :6] = ~ours[:, :6]
    records = [
        *(record("movie-reviews", s, "control", "fp32", float_right[s]) for s in (0, 1)),
        *(record("movie-reviews", s, "aware", "fq-bert", ours[s]) for s in (0, 1)),
    ]
    control, row = experiment.main_table(done(*records))
    assert (control["model"], control["stage"], control["seeds"], control["points"]) == ("fp32", "control", 2, None)
    assert row["accuracy"] == pytest.approx(100 * ours.mean())
    assert row["spread"] == pytest.approx(100 * np.std(ours.mean(axis=1), ddof=1))
    assert row["points"] == pytest.approx(100 * (ours.mean() - float_right.mean()))
    b, c = (float_right & ~ours).sum(), (~float_right & ours).sum()
    assert 0 < row["p"] <= 1
    assert (row["p"] < 0.05) == (abs(b - c) > 7)
    assert any("fq-bert within 1.0 points" in line for line in experiment.targets([control, row]))


def test_a_target_that_is_missed_is_said():
    right, wrong = np.ones(200, bool), np.r_[np.zeros(3, bool), np.ones(197, bool)]
    records = done(
        record("movie-reviews", 0, "control", "fp32", right), record("movie-reviews", 0, "aware", "fq-bert", wrong)
    )
    (line,) = [t for t in experiment.targets(experiment.main_table(records)) if t.startswith("fq-bert within")]
    assert line == "fq-bert within 1.0 points of fp32 on movie-reviews: -1.50, NOT reached"


def test_compression_is_the_papers():
    rows = {(r["model"], r["counted"]): r for r in experiment.compression_table()}
    assert rows["bert-base", "encoder"]["ratio"] == pytest.approx(7.94, abs=0.005)
    assert rows["bert-base", "encoder"]["paper"] == 7.94
    assert rows["minilm-l6", "whole model"]["ratio"] < rows["minilm-l6", "encoder"]["ratio"]


def test_a_run_with_a_record_is_not_repeated(tmp_path, monkeypatch):
    made = []

    def trained(run, task, floats, work):
        made.append(run.key)
        if len(made) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "_trained", trained)
    monkeypatch.setattr(experiment, "_right", lambda run, model, task: np.array([True, False, True]))
    monkeypatch.setattr("accelsim_models.training.text_task", lambda name: name)
    runs = [experiment.Run("tweets", s, "float", FP32) for s in range(3)]
    with pytest.raises(KeyboardInterrupt):
        experiment.run_all(runs, tmp_path, tmp_path, lambda line: None)
    assert list(experiment.records(tmp_path)) == ["tweets/0/float/fp32"]
    told = []
    experiment.run_all(runs, tmp_path, tmp_path, told.append)
    assert made == ["tweets/0/float/fp32", "tweets/1/float/fp32", "tweets/1/float/fp32", "tweets/2/float/fp32"]
    assert told == ["tweets/1/float/fp32: 66.67%", "tweets/2/float/fp32: 66.67%"]
    found = experiment.records(tmp_path)["tweets/2/float/fp32"]
    assert experiment._right_of(found).tolist() == [True, False, True]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"accuracy": 1}'])
def test_a_broken_record_is_refused(tmp_path, line):
    good = json.dumps(record("tweets", 0, "float", "fp32", [True]))
    (tmp_path / "runs.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(SpecError, match=r"runs\.jsonl: line 2"):
        experiment.records(tmp_path)


def test_text_and_figures_from_few_records():
    records = done(
        record("movie-reviews", 0, "control", "fp32", [True] * 9 + [False]),
        record("movie-reviews", 0, "post-training", "w4-mse-tensor", [True] * 8 + [False] * 2),
        record("movie-reviews", 0, "aware", "scales", [True] * 8 + [False] * 2),
    )
    lines = list(experiment.text(records))
    assert "| 4 | post-training |  | 80.00 |  |  |" in lines
    assert "| + scale factors | 91.28 | 80.00 |  | 1 |  |" in lines
    assert set(experiment.figures(records)) == {"weight-bits", "ablation"}
    assert experiment.figures({}) == {}


def test_which_presets_are_all_integers():
    assert {name for name, spec in SPECS.items() if spec.quantized and not experiment.all_integers(spec)} == {"w8a8"}
    assert not any(experiment.all_integers(spec) for _, spec in experiment.ablation()[:-1])
