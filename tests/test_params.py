"""Does a file of integers and steps survive, and is one refused that is cut, wrong, or meant for another graph?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.execute import execute
from accelsim.graph import DType, Graph, Role
from accelsim.numerics import PackedWeights
from accelsim.params import FILE_FORMAT, Params, Step, step_in
from accelsim.quantspec import FQ_BERT, I_BERT, QuantSpec
from accelsim.trace import trace
from accelsim.transforms.quantize import output_classes, quantize, ranges_wanted, weight_classes

INPUTS = {"input_ids": np.arange(16).reshape(2, 8) * 7, "attention_mask": np.ones((2, 8), np.int64)}
QUERY = "bert.encoder.layer.0.attention.self.query"
TABLE = "bert.embeddings.word_embeddings.weight"
NORM = "bert.encoder.layer.0.output.LayerNorm"


def drawn(spec: QuantSpec) -> tuple[Graph, Params]:
    """bert-tiny in a spec, with integers and steps drawn for every tensor; no torch, no floats behind them."""
    graph = quantize(trace("bert-tiny", seq=8, batch=2, head="sequence-classification"), spec)
    rng = np.random.default_rng(0)

    def step(largest: float) -> float:
        return step_in(largest / 127, spec.scale_format)

    weights, arrays, steps = {}, {}, {}
    for name, kind in weight_classes(graph).items():
        shape = graph.tensors[name].shape
        if kind == "biases":
            arrays[name] = rng.normal(0, 0.1, shape).astype(np.float32)
        elif kind == "weights":
            w = rng.integers(-7, 8, shape).astype(np.int8)
            n = shape[0] if spec.weights.per_channel else 1
            scales = np.array([step_in(s, spec.scale_format) for s in rng.uniform(0.01, 0.02, n)])
            weights[name] = PackedWeights.pack(w, bits=spec.stored_bits, scales=scales, name=name)
        else:
            low = 64 if name.endswith("LayerNorm.weight") else -127
            arrays[name] = rng.integers(low, 128, shape).astype(graph.tensors[name].dtype.value)
            steps[name] = Step(step(1.0), 0)
    for name, tensor in graph.tensors.items():
        if tensor.role is Role.STATE:
            count = np.arange(tensor.shape[-1]) if "position" in name else np.zeros(tensor.shape[-1])
            arrays[name] = count.astype(np.int64).reshape(tensor.shape)
    for name, kind in output_classes(graph).items():
        if kind == "probabilities":
            steps[name] = Step(step_in(1 / 255, spec.scale_format), 0)
        elif kind == "tanh":
            steps[name] = Step(step(1.0), 0)
        elif name in ranges_wanted(graph):
            steps[name] = Step(step(4.0), 0)
    return graph, Params(spec, weights, arrays, steps, {"source": "drawn", "note": "Ünïcode", "numbers": [1, 2.5]})


@pytest.fixture(scope="module", params=[FQ_BERT, I_BERT], ids=lambda s: s.name)
def both(request: Any) -> tuple[Graph, Params]:
    return drawn(request.param)


@pytest.fixture(scope="module")
def one() -> tuple[Graph, Params]:
    return drawn(I_BERT)


def one_line(caught: pytest.ExceptionInfo[SpecError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert ": got " in text
    return text


# --- there and back ---------------------------------------------------------------------------------------------------


def test_a_file_holds_everything(both: tuple[Graph, Params], tmp_path: Path) -> None:
    graph, params = both
    path = tmp_path / "model.safetensors"
    params.check(graph).save(path)
    read = Params.load(path).check(graph)
    assert (read.spec, dict(read.steps), dict(read.about)) == (params.spec, dict(params.steps), dict(params.about))
    assert read.weights.keys() == params.weights.keys()
    assert read.arrays.keys() == params.arrays.keys()
    for name, array in params.arrays.items():
        assert read.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(read.arrays[name], array)
    for name, w in params.weights.items():
        for key in ("unpack", "scales", "zero_points", "column_sums", "magnitude", "strips"):
            a, b = getattr(w, key), getattr(read.weights[name], key)
            np.testing.assert_array_equal(a() if callable(a) else a, b() if callable(b) else b)
    want, found = execute(graph, params, INPUTS), execute(graph, read, INPUTS)
    np.testing.assert_array_equal(next(iter(found.values())), next(iter(want.values())))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_the_same_to_the_byte_every_time(both: tuple[Graph, Params], tmp_path: Path) -> None:
    _, params = both
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    params.save(paths[0])
    params.save(paths[1])
    Params.load(paths[0]).save(paths[2])
    first, second, third = (path.read_bytes() for path in paths)
    assert first == second == third


def test_a_file_is_about_as_large_as_its_integers(tmp_path: Path) -> None:
    """Four-bit weights take half a byte; a scale that all columns share is there once."""
    sizes = {}
    for spec in (FQ_BERT, I_BERT):
        graph, params = drawn(spec)
        path = tmp_path / f"{spec.name}.safetensors"
        params.save(path)
        stored = sum(
            t.elements * t.dtype.bits // 8 for t in graph.tensors.values() if t.role in (Role.WEIGHT, Role.STATE)
        )
        scales = sum(8 * w.n for w in params.weights.values() if spec.weights.per_channel)
        sizes[spec.name] = path.stat().st_size - stored - scales
        assert 0 < sizes[spec.name] < 20_000


def test_real_numbers_of_logits(one: tuple[Graph, Params]) -> None:
    graph, params = one
    name = graph.outputs[0]
    sums = execute(graph, params, INPUTS)[name]
    scale = params.step("bert.pooler.activation.tanh").scale * params.weights["classifier.weight"].scales
    assert sums.dtype == np.int32
    np.testing.assert_array_equal(params.real(graph, name, sums), sums * scale)


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(one: tuple[Graph, Params], tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("params") / "model.safetensors"
    one[1].save(path)
    return path


@pytest.mark.parametrize("part", [0, 1, 7, 8, 9, 100, 0.01, 0.5, 0.99, -1])
def test_a_file_that_was_cut_is_refused(part: float, saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(part * len(content)) if 0 < part < 1 else int(part)])
    with pytest.raises(SpecError, match="want a complete safetensors file") as caught:
        Params.load(path)
    assert str(path) in one_line(caught)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="want a readable file") as caught:
        Params.load(tmp_path / "none.safetensors")
    one_line(caught)
    with pytest.raises(SpecError):
        Params.load(tmp_path)
    text = tmp_path / "text.safetensors"
    text.write_text("accelsim quantized model 1\n" * 20)
    with pytest.raises(SpecError, match="want a complete safetensors file"):
        Params.load(text)


def test_a_failed_write_leaves_the_old_file(one: tuple[Graph, Params], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    with pytest.raises(TypeError):
        replace(one[1], about={"no": object()}).save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


Head = dict[str, Any]
WRONG_HEADS: dict[str, tuple[Callable[[Head], Any], str]] = {
    "another format": (
        lambda h: {**h, "format": "accelsim quantized model 2"},
        "format: got 'accelsim quantized model 2'",
    ),
    "no format": (lambda h: {k: v for k, v in h.items() if k != "format"}, "format: got None"),
    "another layout": (lambda h: {**h, "layout": "rows"}, "want accelsim quantized model 1"),
    "a list": (lambda h: [h], "format: got None"),
    "nothing": (lambda h: {}, "format: got None"),
    "no spec": (lambda h: {k: v for k, v in h.items() if k != "spec"}, "spec: got None, want a mapping"),
    "no steps": (lambda h: {k: v for k, v in h.items() if k != "steps"}, "steps: got None, want a mapping"),
    "steps in a list": (lambda h: {**h, "steps": []}, r"steps: got \[\], want a mapping"),
    "about a text": (lambda h: {**h, "about": "x"}, "about: got 'x', want a mapping"),
    "a spec that contradicts itself": (lambda h: {**h, "spec": {**h["spec"], "stored_bits": 5}}, "stored_bits: got 5"),
    "an unknown field in the spec": (lambda h: {**h, "spec": {**h["spec"], "roundin": 1}}, "nearest: rounding"),
    "a step of one number": (lambda h: {**h, "steps": {**h["steps"], TABLE: [0.5]}}, r"steps\..*: got \[0.5\], want 2"),
    "a step of text": (lambda h: {**h, "steps": {**h["steps"], TABLE: ["a", 0]}}, r"steps\..*, want 2 numbers"),
    "a fraction as a zero point": (lambda h: {**h, "steps": {**h["steps"], TABLE: [0.5, 0.5]}}, "want 2 numbers"),
    "matrices of text": (
        lambda h: {**h, "matrices": {QUERY + ".weight": "8"}},
        r"matrices\..*: got '8', want 3 numbers",
    ),
    "5-bit matrices": (lambda h: _sized(h, [128, 128, 5]), "want n, k >= 1 and 8, 4 or 2 bits"),
    "empty matrices": (lambda h: _sized(h, [0, 128, 8]), "want n, k >= 1 and 8, 4 or 2 bits"),
    "huge matrices": (lambda h: _sized(h, [2**40, 128, 8]), "want n, k >= 1 and 8, 4 or 2 bits"),
    "matrices of another size": (lambda h: _sized(h, [256, 128, 8]), r"strips\.bert.*query.weight: got 'uint8 "),
    "matrices of other bits": (lambda h: _sized(h, [128, 128, 4]), r"strips\.bert.*query.weight: got 'uint8 "),
    "true for a size": (lambda h: _sized(h, [True, 128, 8]), "query.weight: got"),
    "a matrix more": (
        lambda h: {**h, "matrices": {**h["matrices"], "extra": [1, 1, 8]}},
        "extra: got 'no scales or no zero points'",
    ),
}


def _sized(head: Head, size: list[Any]) -> Head:
    return {**head, "matrices": {**head["matrices"], f"{QUERY}.weight": size}}


def rewritten(
    saved: Path, path: Path, head: Callable[[Head], Any] = lambda h: h, arrays: Callable[[Any], Any] = lambda a: a
) -> Path:
    """The saved file with another head or other arrays."""
    with safe_open(saved, framework="numpy") as file:
        about = json.loads(file.metadata()["accelsim"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(arrays(tensors), path, {"accelsim": json.dumps(head(about))})
    return path


@pytest.mark.parametrize("name", WRONG_HEADS)
def test_wrong_metadata_are_refused(name: str, saved: Path, tmp_path: Path) -> None:
    change, text = WRONG_HEADS[name]
    path = rewritten(saved, tmp_path / "wrong.safetensors", head=change)
    with pytest.raises(SpecError, match=text) as caught:
        Params.load(path)
    one_line(caught)


def test_metadata_of_others_are_refused(saved: Path, tmp_path: Path) -> None:
    for name, about in (("none", None), ("another", {"packed_weights": "{}"}), ("no json", {"accelsim": "{"})):
        path = tmp_path / f"{name}.safetensors"
        save_file({"a": np.zeros(3)}, path, about)
        with pytest.raises(SpecError):
            Params.load(path)


def changed_array(name: str, value: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arrays: {**arrays, name: value(arrays[name])}


WRONG_ARRAYS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "NaN in a bias": (
        changed_array(f"array.{QUERY}.bias", lambda a: a * np.float32(math.nan)),
        "query.bias: got 'NaN or",
    ),
    "infinity in a bias": (changed_array(f"array.{QUERY}.bias", lambda a: a + np.float32(math.inf)), "NaN or infinity"),
    "NaN in scales": (changed_array(f"scales.{QUERY}.weight", lambda a: a * math.nan), "scales: got nan, want finite"),
    "negative scales": (
        changed_array(f"scales.{QUERY}.weight", lambda a: -a),
        "scales: got -.*, want finite numbers > 0",
    ),
    "too few scales": (changed_array(f"scales.{QUERY}.weight", lambda a: a[:5].copy()), "want one number, or 128"),
    "real zero points": (changed_array(f"zeros.{QUERY}.weight", lambda a: a * 1.0), "zero_points: got"),
    "large zero points": (changed_array(f"zeros.{QUERY}.weight", lambda a: a + 1000), "want integers from -128 to 127"),
    "strips missing": (
        lambda a: {k: v for k, v in a.items() if k != f"strips.{QUERY}.weight"},
        "got 'nothing', want uint8",
    ),
    "strips cut": (changed_array(f"strips.{QUERY}.weight", lambda a: a[:1].copy()), "strips.*: got 'uint8"),
    "strips of int8": (changed_array(f"strips.{QUERY}.weight", lambda a: a.view(np.int8)), "strips.*: got 'int8"),
    "scales missing": (lambda a: {k: v for k, v in a.items() if k != f"scales.{QUERY}.weight"}, "got 'no scales or"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_wrong_arrays_are_refused(name: str, saved: Path, tmp_path: Path) -> None:
    change, text = WRONG_ARRAYS[name]
    path = rewritten(saved, tmp_path / "wrong.safetensors", arrays=change)
    with pytest.raises(SpecError, match=text) as caught:
        Params.load(path)
    one_line(caught)


# --- another graph ----------------------------------------------------------------------------------------------------


def without(values: Any, name: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != name}


def with_array(p: Params, name: str, array: Any) -> Params:
    return replace(p, arrays={**p.arrays, name: array})


def with_step(p: Params, name: str, scale: Any) -> Params:
    return replace(p, steps={**p.steps, name: Step(scale, 0)})


WRONG_PARAMS: dict[str, tuple[Callable[[Params], Params], str]] = {
    "no matrix": (lambda p: replace(p, weights=without(p.weights, f"{QUERY}.weight")), "nothing for .*query.weight"),
    "no table": (lambda p: replace(p, arrays=without(p.arrays, TABLE)), "nothing for .*word_embeddings.weight"),
    "no bias": (lambda p: replace(p, arrays=without(p.arrays, f"{QUERY}.bias")), "nothing for .*query.bias"),
    "no position ids": (lambda p: replace(p, arrays=without(p.arrays, "bert.embeddings.position_ids")), "position_ids"),
    "no step of a result": (lambda p: replace(p, steps=without(p.steps, f"{QUERY}.linear")), "none of .*query.linear"),
    "no step of a table": (lambda p: replace(p, steps=without(p.steps, TABLE)), "none of .*word_embeddings"),
    "no step of gamma": (lambda p: replace(p, steps=without(p.steps, f"{NORM}.weight")), "none of .*LayerNorm.weight"),
    "a smaller table": (
        lambda p: with_array(p, TABLE, p.arrays[TABLE][:99]),
        r"got 'int8 \(99, 128\)', want int8 \(30522",
    ),
    "a wide table": (lambda p: with_array(p, TABLE, p.arrays[TABLE].astype(np.int16)), "got 'int16 .*, want int8"),
    "a gamma of 8 bits": (
        lambda p: with_array(p, f"{NORM}.weight", p.arrays[f"{NORM}.weight"].astype(np.int8)),
        "got 'int8 .*want int16",
    ),
    "a bias of integers": (
        lambda p: with_array(p, f"{QUERY}.bias", p.arrays[f"{QUERY}.bias"].astype(np.int32)),
        "want float32",
    ),
    "a bias of another length": (
        lambda p: with_array(p, f"{QUERY}.bias", np.zeros(64, np.float32)),
        r"got 'float32 \(64,",
    ),
    "a matrix of 4 bits": (
        lambda p: replace(
            p, weights={**p.weights, f"{QUERY}.weight": PackedWeights.pack(np.zeros((128, 128), np.int8), bits=4)}
        ),
        r"got 'int4 \(128, 128\)', want int8",
    ),
    "a matrix of another shape": (
        lambda p: replace(
            p, weights={**p.weights, f"{QUERY}.weight": PackedWeights.pack(np.zeros((64, 128), np.int8), bits=8)}
        ),
        r"got 'int8 \(64, 128\)', want int8 \(128, 128\)",
    ),
    "a step of zero": (lambda p: with_step(p, f"{QUERY}.linear", 0.0), "step of .*: got 0.0, want a finite number > 0"),
    "a negative step": (lambda p: with_step(p, TABLE, -0.5), "step of .*: got -0.5, want a finite number > 0"),
    "a step of infinity": (lambda p: with_step(p, TABLE, math.inf), "step of .*: got inf, want a finite number > 0"),
    "a step that is no number": (lambda p: with_step(p, TABLE, math.nan), "step of .*: got nan, want a finite number"),
}


@pytest.mark.parametrize("name", WRONG_PARAMS)
def test_params_that_do_not_fit_the_graph_are_refused(name: str, one: tuple[Graph, Params]) -> None:
    graph, params = one
    change, text = WRONG_PARAMS[name]
    wrong = change(params)
    for call in (lambda: wrong.check(graph), lambda: execute(graph, wrong, INPUTS)):
        with pytest.raises(SpecError, match=text) as caught:
            call()
        one_line(caught)


@pytest.mark.parametrize(
    ("scale_format", "scale", "nearest"),
    [("scale8", 0.3, "0.30078125"), ("power_of_two", 0.3, "0.25"), ("float32", 0.3, "0.30000001192092896")],
)
def test_steps_of_another_scale_format_are_refused(scale_format: str, scale: float, nearest: str) -> None:
    graph, params = drawn(replace(FQ_BERT, name="mine", scale_format=scale_format))
    with pytest.raises(SpecError, match=f"step of {QUERY}.linear: got 0.3, want {nearest}, the nearest {scale_format}"):
        with_step(params, f"{QUERY}.linear", scale).check(graph)
    with_step(params, f"{QUERY}.linear", float(nearest)).check(graph)


def test_the_spec_of_another_graph_is_refused(one: tuple[Graph, Params]) -> None:
    _graph, params = one
    other = quantize(trace("bert-tiny", seq=8, batch=2, head="sequence-classification"), FQ_BERT)
    with pytest.raises(SpecError, match="params: quantization: got 'i-bert', want that of the graph, fq-bert"):
        execute(other, params, INPUTS)
    with pytest.raises(SpecError, match="params: quantization: got 'i-bert', want that of the graph, fp32"):
        execute(trace("bert-tiny", seq=8), params, INPUTS)


def test_a_quantized_graph_needs_params(one: tuple[Graph, Params]) -> None:
    graph, params = one
    with pytest.raises(SpecError, match=r"execute: dtype of .*, or the Params of a quantized model"):
        execute(graph, params.arrays, INPUTS)
    made = next(op for op in graph.ops if isinstance(op, ops.AddLayerNorm))
    assert graph.tensors[made.output].dtype is DType.INT8


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [30522, 10**9, -1, -(2**40)])
def test_ids_outside_the_table_are_refused(wrong: int, one: tuple[Graph, Params]) -> None:
    graph, params = one
    ids = INPUTS["input_ids"].copy()
    ids[1, 3] = wrong
    name = "bert.embeddings.word_embeddings.embedding"
    with pytest.raises(SpecError, match=f"{name}: id: got {wrong}, want an integer from 0 to 30521") as caught:
        execute(graph, params, {**INPUTS, "input_ids": ids})
    one_line(caught)
    ids[1, 3] = 30521
    execute(graph, params, {**INPUTS, "input_ids": ids})


WRONG_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "another sequence": (
        {"input_ids": np.zeros((2, 9), np.int64)},
        r"input_ids: got 'int64 \(2, 9\)', want int64 \(2, 8\)",
    ),
    "another batch": ({"attention_mask": np.ones((1, 8), np.int64)}, r"attention_mask: got 'int64 \(1, 8\)', want"),
    "ids of int32": ({"input_ids": np.zeros((2, 8), np.int32)}, r"input_ids: got 'int32 \(2, 8\)', want int64"),
    "real ids": ({"input_ids": np.zeros((2, 8))}, r"input_ids: got 'float64 \(2, 8\)', want int64"),
    "a mask of bools": ({"attention_mask": np.ones((2, 8), bool)}, "attention_mask: got 'bool"),
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_inputs_that_do_not_fit_are_refused(name: str, one: tuple[Graph, Params]) -> None:
    graph, params = one
    changes, text = WRONG_INPUTS[name]
    with pytest.raises(SpecError, match=text) as caught:
        execute(graph, params, {**INPUTS, **changes})
    one_line(caught)


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_missing_are_refused(name: str, one: tuple[Graph, Params]) -> None:
    graph, params = one
    with pytest.raises(SpecError, match=f"execute: got 'no array for {name}'"):
        execute(graph, params, without(INPUTS, name))


def test_a_step_that_is_asked_for_and_missing_is_named(one: tuple[Graph, Params]) -> None:
    with pytest.raises(SpecError, match="params: steps: got 'none of nobody'"):
        one[1].step("nobody")
    with pytest.raises(SpecError, match="params: weights: got 'none for nobody'"):
        one[1].matrix("nobody")
    assert FILE_FORMAT == "accelsim quantized model 1"  # a new layout gets a new number
