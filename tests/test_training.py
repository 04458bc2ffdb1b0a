"""Does training learn, repeat itself, survive an interruption, and is accuracy counted right? On a small model."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest

from accelsim.errors import SpecError
from accelsim.quantspec import FP32, FQ_BERT

torch = pytest.importorskip("torch")
training = pytest.importorskip("accelsim_models.training")
from accelsim_models.graphs import graphs, with_labels  # noqa: E402
from accelsim_models.quantized_bert import QuantizedBert  # noqa: E402

pytestmark = pytest.mark.torch
RECIPE = training.Recipe(epochs=2, learning_rate=1e-3, batch=16, refresh_steps=3)


@pytest.fixture(scope="module")
def task():
    """Which of two words is in the text: 96 texts to learn from, 40 to measure on."""
    rng = np.random.default_rng(0)

    def texts(n):
        labels = rng.integers(0, 2, n)
        rows = [np.array([101, *((7, 7) if label else (9, 9)), *rng.integers(20, 60, rng.integers(1, 9)), 102])
                for label in labels]  # fmt: skip
        return [row.astype(np.int64) for row in rows], labels.astype(np.int64)

    train, dev = texts(96), texts(40)
    return training.Task("words", ("a", "b"), *train, *dev, max_length=16)


def model_of(spec=FP32, seed=3, weights=None):
    """A small BERT with weights large enough for attention to matter."""
    model = QuantizedBert(graphs("bert-tiny", "sequence-classification"), weights or {}, spec, seed=seed)
    with torch.no_grad():
        for w in model.weights.values():
            w.mul_(4 if w.dim() == 2 else 1)
    return model


def weights_of(model):
    return {name: w.detach().clone() for name, w in model.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def aware(task, seed=3):
    model = model_of(FQ_BERT, seed)
    training.calibrate(model, task, seed, batches=2)
    model.mode = "fake"
    return model


@pytest.mark.parametrize("make", [lambda task: model_of(), aware], ids=["float", "with quantizers"])
def test_the_loss_falls(task, make):
    model = make(task)
    losses = training.fit(model, task, replace(RECIPE, epochs=4), seed=0)
    assert losses[-1] < 0.8 * losses[0]
    assert not model.training


def test_frozen_tables_stay_and_the_rest_moves(task):
    model = model_of()
    before = weights_of(model)
    training.fit(model, task, replace(RECIPE, epochs=1), seed=0)
    moved = {name for name, w in model.named_parameters() if not torch.equal(w, before[name])}
    tables = {name for name, w in before.items() if "embeddings" in name and w.dim() == 2}
    matrices = {name for name, w in before.items() if w.dim() == 2} - tables
    assert len(tables) == 3
    assert not moved & tables
    assert moved >= matrices


def test_a_seed_gives_the_same_model_and_another_seed_another(task):
    found = []
    for seed in (0, 0, 1):
        model = aware(task)
        training.fit(model, task, replace(RECIPE, epochs=1), seed=seed)
        found.append(weights_of(model))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(task, tmp_path, monkeypatch):
    whole = aware(task)
    losses = training.fit(whole, task, RECIPE, seed=5)
    keep = training._keep

    def keep_once(*args):
        keep(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_keep", keep_once)
    with pytest.raises(KeyboardInterrupt):
        training.fit(aware(task), task, RECIPE, seed=5, folder=tmp_path)
    monkeypatch.setattr(training, "_keep", keep)
    again = aware(task)
    assert training.fit(again, task, RECIPE, seed=5, folder=tmp_path) == losses
    assert equal(weights_of(again), weights_of(whole))
    assert (again.low, again.high) == (whole.low, whole.high)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_states_of_other_runs_and_broken_ones_are_refused(task, tmp_path):
    training.fit(model_of(), task, replace(RECIPE, epochs=1), seed=0, folder=tmp_path)
    path = tmp_path / "state.safetensors"
    with pytest.raises(SpecError, match="a state of this run"):
        training.fit(model_of(), task, replace(RECIPE, epochs=1), seed=1, folder=tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SpecError, match="complete safetensors"):
        training.fit(model_of(), task, replace(RECIPE, epochs=1), seed=0, folder=tmp_path)


def test_a_learning_rate_that_diverges_is_said(task):
    with pytest.raises(SpecError, match="lower the learning rate"):
        training.fit(model_of(), task, replace(RECIPE, learning_rate=1e30, clip_norm=1e30), seed=0, bf16=False)


def test_learning_rates():
    rates = [training._rate(step, 20, 0.25) for step in range(20)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[5:] == [(20 - s) / 15 for s in range(5, 20)]


def test_integers_and_the_reference_predict_the_same(task):
    model = aware(task)
    training.fit(model, task, replace(RECIPE, epochs=1), seed=0)
    model.mode = "exact"
    ours = training.integer_logits(model.params(), model, task.dev, batch=7)
    np.testing.assert_array_equal(ours, training.logits(model, task.dev, batch=16))
    assert training.accuracy(model, task) == (ours.argmax(axis=1) == task.dev_labels).mean()


def test_mcnemar():
    a, b = np.array([1, 1, 1, 0, 0, 1, 1, 1], bool), np.array([1, 0, 0, 1, 0, 0, 0, 0], bool)
    n, least = 6, 1  # five texts only a gets right, one only b
    assert training.paired_p(a, b) == pytest.approx(2 * sum(comb(n, i) for i in range(least + 1)) / 2**n)
    assert training.paired_p(b, a) == training.paired_p(a, b)
    assert training.paired_p(a, a) == 1.0
    assert training.paired_p(np.ones(30, bool), np.zeros(30, bool)) == pytest.approx(2 / 2**30)


def test_a_part_of_a_task_is_spread_over_it(task):
    part = task.part(10)
    assert (len(part.train), len(part.dev)) == (10, 10)
    assert part.train[0] is task.train[0]
    assert part.train[-1] is task.train[-1]
    assert part.dev_labels.tolist() == [int(task.dev_labels[i]) for i in np.linspace(0, 39, 10).round().astype(int)]


def test_unknown_tasks():
    with pytest.raises(SpecError, match="nearest: movie-reviews"):
        training.text_task("movie-review")


def test_another_number_of_labels():
    graph = with_labels(graphs("bert-tiny", "sequence-classification")(2, 8), 5)
    assert graph.tensors[graph.outputs[0]].shape == (2, 5)
