"""Does the model that ships reach its recorded accuracy, equal its reference, and refuse what is broken?"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from accelsim_experiments import model as experiment
from accelsim_models import checkpoints, data, fetch

import accelsim
from accelsim.errors import SpecError
from accelsim.numerics import PackedWeights
from accelsim.quantspec import FQ_BERT

NAME = experiment.DEFAULT


@pytest.fixture(scope="module")
def params():
    return checkpoints.load(NAME)


def test_it_is_small_and_named():
    assert NAME in checkpoints.names()
    assert checkpoints.path_of(NAME).stat().st_size < 6 * 2**20
    with pytest.raises(SpecError, match=f"nearest: {NAME}"):
        checkpoints.path_of(NAME[:-1])


@pytest.mark.weights
def test_its_spec_and_record(params):
    assert params.spec == FQ_BERT
    assert {"source", "run", "accuracy", "texts", "classes"} <= params.about.keys()
    assert params.about["texts"] == 2099
    assert all(packed.bits == 4 for packed in params.weights.values())


@pytest.mark.weights
def test_every_op_equals_the_reference(params):
    pytest.importorskip("torch")
    rows = list(experiment.table(params, texts=24))
    assert experiment.first_difference(rows) is None
    assert sum(row["elements"] for row in rows) > 10**7
    (accuracy,) = [row for row in rows if row["operator"] == "model"]
    assert math.isclose(accuracy["accuracy"], params.about["accuracy"])


@pytest.mark.weights
def test_the_comparison_is_not_blind(params, monkeypatch):
    """An executor that rounds one weight otherwise differs from the reference, and first at that layer."""
    pytest.importorskip("torch")
    name = "bert.encoder.layer.3.attention.output.dense.weight"
    packed = params.weights[name]
    w = packed.unpack()
    w[0, 0] += 1 if w[0, 0] < 7 else -1
    other = PackedWeights.pack(w, bits=4, scales=packed.scales, zero_points=packed.zero_points, name=name)
    wrong = replace(params, weights={**params.weights, name: other})
    run = accelsim.execute
    monkeypatch.setattr(accelsim, "execute", lambda graph, _, inputs, **kw: run(graph, wrong, inputs, **kw))
    encoded = data.tokenizer(fetch.minilm_l6()).encode(["a very good movie .", "dull and far too long"])
    rows = experiment._compared(params, list(data.batches(encoded, 2)))
    assert experiment.first_difference(list(rows.values())) == "bert.encoder.layer.3.attention.output.dense.linear"


@pytest.mark.weights
def test_the_command(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "accelsim", "validate", "model", "--texts", "8", "--json", "--out", str(out),
               "--figure", str(tmp_path / "error.png")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert rows == json.loads(out.read_text())["rows"]
    assert all(row["mismatches"] == 0 for row in rows)
    assert (tmp_path / "error.png").stat().st_size > 10_000


@pytest.mark.weights
def test_another_table_or_a_broken_file_is_refused(params, tmp_path, monkeypatch):
    whole = checkpoints.path_of(NAME).read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SpecError, match="complete safetensors"):
        checkpoints.load(cut)
    table = checkpoints.table
    monkeypatch.setattr(checkpoints, "table", lambda real, scale: np.roll(table(real, scale), 1))
    with pytest.raises(SpecError, match=r"word_embeddings\.weight: sha256"):
        checkpoints.load(NAME)


@pytest.mark.weights
def test_saving_leaves_out_only_what_the_fetched_weights_give_again(params, tmp_path):
    from accelsim.files import read_safetensors

    base, _ = read_safetensors(fetch.minilm_l6() / "model.safetensors", "")
    checkpoints.save(params, tmp_path / "again.safetensors", base)
    again = checkpoints.load(tmp_path / "again.safetensors")
    assert again.arrays.keys() == params.arrays.keys()
    assert all((again.arrays[name] == array).all() for name, array in params.arrays.items())
    graph = experiment.graph_at(2, 8, params)
    inputs = {"input_ids": np.full((2, 8), 2023), "attention_mask": np.ones((2, 8), np.int64)}
    (name,) = graph.outputs
    ours, theirs = (accelsim.execute(graph, p, inputs)[name] for p in (params, again))
    np.testing.assert_array_equal(ours, theirs)
