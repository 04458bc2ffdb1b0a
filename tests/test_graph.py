"""Does a graph that is wrong get refused, and does one that is right survive a file?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.gemm import gemm_graph
from accelsim.graph import DType, Graph, Role, Tensor
from accelsim.trace import trace
from accelsim.work import Arithmetic, VectorFunction, WorkKind


def small() -> Graph:
    """x (4, 6) -> linear (4, 3) -> gelu -> add to the linear's output."""
    tensors = [
        Tensor("x", (4, 6), DType.FLOAT32, Role.INPUT),
        Tensor("w", (3, 6), DType.FLOAT32, Role.WEIGHT),
        Tensor("b", (3,), DType.FLOAT32, Role.WEIGHT),
        Tensor("y", (4, 3), DType.FLOAT32),
        Tensor("z", (4, 3), DType.FLOAT32),
        Tensor("s", (4, 3), DType.FLOAT32),
    ]
    return Graph(
        name="small",
        tensors={t.name: t for t in tensors},
        ops=(
            ops.Linear(name="linear", inputs=("x", "w", "b"), output="y", group="g"),
            ops.Gelu(name="gelu", inputs=("y",), output="z", group="g", approximate="none"),
            ops.Add(name="add", inputs=("y", "z"), output="s", group="g", layer=0),
        ),
        inputs=("x",),
        outputs=("s",),
        meta={"seq": "4"},
    )


def test_a_legal_graph_checks_and_answers() -> None:
    graph = small().check()
    assert (graph.parameters, graph.macs) == (3 * 6 + 3, 4 * 6 * 3)
    assert graph.flops == 2 * 72 + 12 + 8 * 12 + 12  # GEMM, bias, GELU, add
    assert graph.liveness() == {"y": (0, 2), "z": (1, 2), "s": (2, 2)}
    assert graph.peak_activation_bytes() == 3 * 4 * 3 * 4
    assert graph.producers() == {"y": "linear", "z": "gelu", "s": "add"}
    assert list(graph.unique_work().values()) == [["linear"], ["gelu"], ["add"]]


def test_equal_work_is_found_once() -> None:
    rows = trace("bert-tiny", seq=16).unique_work()
    (linears,) = [names for names in rows.values() if "encoder.layer.0.attention.self.key.linear" in names]
    assert len(linears) == 2 * 4 - 1  # query, key, value and output of both layers, less the reader of the embeddings


def test_work_outside_the_layers_is_marked_and_what_crosses_is_counted_once() -> None:
    graph = trace("bert-tiny", seq=16)
    asked = {op.name: works[0] for op, works in graph.works}
    for op in graph.ops:
        assert asked[op.name].outside == int(op.layer < 0) or asked[op.name].is_free, op.name
    crossing = {name: work.crossing_bytes for name, work in asked.items() if work.crossing_bytes}
    assert crossing == {
        "encoder.layer.0.attention.self.query.linear": 16 * 128 * 4,  # not again for key, value and the residual
        "encoder.layer.0.attention.self.softmax": 16 * 16,  # the mask, one byte each
        "pooler.dense.linear": 128 * 4,  # through the view of the first token
    }


def test_a_graph_without_layers_has_no_outside() -> None:
    assert not any(work.outside or work.crossing_bytes for _, works in gemm_graph(8, 8, 8).works for work in works)


def _with_op(graph: Graph, index: int, **changes: Any) -> Graph:
    changed = list(graph.ops)
    changed[index] = replace(changed[index], **changes)
    return replace(graph, ops=tuple(changed))


def _with_tensor(graph: Graph, name: str, **changes: Any) -> Graph:
    return replace(graph, tensors={**graph.tensors, name: replace(graph.tensors[name], **changes)})


BROKEN: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "no ops": (lambda g: replace(g, ops=()), "at least one op"),
    "cycle": (lambda g: _with_op(_with_op(g, 0, inputs=("s", "w", "b")), 0, inputs=("s", "w", "b")), "no cycle"),
    "order": (lambda g: replace(g, ops=g.ops[::-1]), "ops in execution order"),
    "reads itself": (lambda g: _with_op(g, 1, inputs=("z",)), "no cycle"),
    "two ops of one name": (lambda g: _with_op(g, 1, name="linear"), "each op name once"),
    "two writers": (lambda g: _with_op(g, 1, output="y"), "no other op writes"),
    "unknown tensor": (lambda g: _with_op(g, 1, inputs=("q",)), "got 'q'"),
    "unknown output": (lambda g: replace(g, outputs=("q",)), "got 'q'"),
    "writes a weight": (lambda g: _with_op(g, 1, output="b"), "not an input, weight or state"),
    "reads what nothing writes": (lambda g: _with_tensor(g, "x", role=Role.ACTIVATION), "that an op writes"),
    "key and name differ": (lambda g: replace(g, tensors={**g.tensors, "x": g.tensors["w"]}), "the same name"),
    "wrong shape": (lambda g: _with_tensor(g, "z", shape=(3, 4)), r"shape of z: got \(3, 4\)"),
    "operands that do not fit": (lambda g: _with_tensor(g, "w", shape=(3, 7)), "linear: input shapes"),
    "zero dimension": (lambda g: _with_tensor(g, "x", shape=(0, 6)), "integers >= 1"),
    "negative dimension": (lambda g: _with_tensor(g, "x", shape=(-4, 6)), "integers >= 1"),
    "mixed arithmetic": (lambda g: _with_tensor(g, "w", dtype=DType.INT8), "two of one arithmetic"),
    "operand missing": (lambda g: _with_op(g, 2, inputs=("y",)), "add: input shapes"),
    "operand too many": (lambda g: _with_op(g, 1, inputs=("y", "y")), "gelu: input shapes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_refuses(name: str) -> None:
    break_it, text = BROKEN[name]
    small().check()
    with pytest.raises(SpecError, match=text) as caught:
        break_it(small()).check()
    assert "\n" not in str(caught.value)


def test_a_gelu_has_two_spellings() -> None:
    with pytest.raises(SpecError, match="one of none, tanh"):
        ops.Gelu(name="gelu", inputs=("y",), output="z", group="g", approximate="tan")


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [small(), trace("bert-tiny", seq=8, head="pretraining"), trace("mobilebert", seq=8)])
def test_a_file_holds_the_whole_graph(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    graph.save(path)
    assert Graph.load(path) == graph
    assert list(tmp_path.iterdir()) == [path]


WRONG_FILES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda d: [d], "a JSON object"),
    "a number": (lambda d: 3, "a JSON object"),
    "another schema": (lambda d: {**d, "schema_version": 2}, "schema_version: got 2"),
    "no schema": (lambda d: {k: v for k, v in d.items() if k != "schema_version"}, "schema_version: got None"),
    "unknown operator": (lambda d: {**d, "ops": [{**d["ops"][0], "operator": "lineer"}]}, "nearest: linear"),
    "unknown attribute": (lambda d: {**d, "ops": [{**d["ops"][0], "attributes": {"dim": 1}}]}, "dim"),
    "unknown dtype": (lambda d: {**d, "tensors": [{**d["tensors"][0], "dtype": "float31"}]}, "nearest: float32"),
    "unknown role": (lambda d: {**d, "tensors": [{**d["tensors"][0], "role": "weights"}]}, "nearest: weight"),
    "a tensor twice": (lambda d: {**d, "tensors": d["tensors"] * 2}, "each tensor name once"),
    "negative dimension": (
        lambda d: {**d, "tensors": [{**d["tensors"][0], "shape": [-4, 6]}, *d["tensors"][1:]]},
        ">= 1",
    ),
    "dimension of text": (lambda d: {**d, "tensors": [{**d["tensors"][0], "shape": "46"}, *d["tensors"][1:]]}, ">= 1"),
    "dimension true": (
        lambda d: {**d, "tensors": [{**d["tensors"][0], "shape": [True, 6]}, *d["tensors"][1:]]},
        ">= 1",
    ),
    "layer of text": (lambda d: {**d, "ops": [{**d["ops"][0], "layer": "0"}]}, "layer"),
    "tensors as an object": (lambda d: {**d, "tensors": {"x": 1}}, "Graph.save"),
    "inputs null": (lambda d: {**d, "inputs": None}, "Graph.save"),
    "meta a list": (lambda d: {**d, "meta": []}, "Graph.save"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_load_refuses(name: str, tmp_path: Path) -> None:
    change, text = WRONG_FILES[name]
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(change(small().to_json())))
    with pytest.raises(SpecError, match=text) as caught:
        Graph.load(path)
    assert "\n" not in str(caught.value)


def test_load_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a readable file"):
        Graph.load(tmp_path / "absent.json")
    with pytest.raises(SpecError, match="a readable file"):
        Graph.load(tmp_path)


TEXT = json.dumps(small().to_json())


@given(st.integers(0, len(TEXT) - 1))
def test_load_refuses_json_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, end: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_text(TEXT[:end])
    with pytest.raises(SpecError, match="complete JSON"):
        Graph.load(path)


def _places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [p for key, value in items for p in ((*path, key), *_places(value, (*path, key)))]


PLACES = _places(small().to_json())


@given(st.sampled_from(PLACES), st.sampled_from([None, "", -1, [], {}, [[]], 10**30]))
def test_any_value_in_any_place_is_accepted_or_refused_clearly(place: tuple[Any, ...], value: Any) -> None:
    data = small().to_json()
    spot: Any = data
    for key in place[:-1]:
        spot = spot[key]
    spot[place[-1]] = value
    assert "\n" not in _refusal(data)


def _refusal(data: Any) -> str:
    """What is said against the data, nothing if they are a graph; any other exception is the test's failure."""
    try:
        Graph.from_json(data)
    except SpecError as error:
        return str(error)
    return ""


OPTIONAL = {"meta", "frozen", "seq"}


@pytest.mark.parametrize("place", [p for p in PLACES if isinstance(p[-1], str)])
def test_a_missing_field_is_refused(place: tuple[Any, ...]) -> None:
    data = small().to_json()
    spot: Any = data
    for key in place[:-1]:
        spot = spot[key]
    del spot[place[-1]]
    if place[-1] in OPTIONAL or place[-2:] == ("attributes", "other"):
        Graph.from_json(data)
    else:
        with pytest.raises(SpecError):
            Graph.from_json(data)


# --- the work of single ops -----------------------------------------------------------------------------------------

FLOAT = {"dtype": DType.FLOAT32}


def _work(op: Any, *tensors: Tensor) -> Any:
    (work,) = op.work(tensors[:-1], tensors[-1])
    return work


def test_work_of_a_linear_layer() -> None:
    (work,) = small().work(small().ops[0])
    assert (work.kind, work.m, work.k, work.n, work.count) == (WorkKind.GEMM, 4, 6, 3, 1)
    assert (work.in_bytes, work.weight_bytes, work.out_bytes) == (4 * 24, 4 * (18 + 3), 4 * 12)
    assert (work.arithmetic, work.parameter_weights) == (Arithmetic.FLOAT, 1)


@pytest.mark.parametrize(("b_shape", "count", "m"), [((2, 3, 6, 5), 6, 4), ((6, 5), 1, 24)])
def test_work_of_a_matmul(b_shape: tuple[int, ...], count: int, m: int) -> None:
    """Heads are instances; an operand all of them share makes one GEMM of their rows."""
    a, b, out = Tensor("a", (2, 3, 4, 6), **FLOAT), Tensor("b", b_shape, **FLOAT), Tensor("c", (2, 3, 4, 5), **FLOAT)
    op = ops.Matmul(name="m", inputs=("a", "b"), output="c", group="g")
    assert op.out_shape(a.shape, b.shape) == out.shape
    work = _work(op, a, b, out)
    assert (work.m, work.k, work.n, work.count) == (m, 6, 5, count)
    assert (work.in_bytes, work.weight_bytes, work.out_bytes) == (a.bytes, b.bytes, out.bytes)


def test_work_of_a_masked_softmax() -> None:
    x, mask = Tensor("x", (2, 3, 4, 5), **FLOAT), Tensor("k", (2, 1, 4, 5), DType.BOOL)
    work = _work(ops.Softmax(name="s", inputs=("x", "k"), output="y", group="g", scale=0.5), x, mask, x)
    assert (work.function, work.m, work.n, work.passes) == (VectorFunction.SOFTMAX, 24, 5, 3)
    assert (work.flops, work.exps_per_element) == (4 * 120, 1)
    assert (work.in_bytes, work.out_bytes) == (480 + 40, 480)


def test_work_of_an_embedding_is_the_rows_it_reads() -> None:
    table, ids, out = (
        Tensor("t", (30522, 8), DType.INT8),
        Tensor("i", (2, 5), DType.INT64),
        Tensor("y", (2, 5, 8), **FLOAT),
    )
    work = _work(ops.Embedding(name="e", inputs=("t", "i"), output="y", group="g"), table, ids, out)
    assert (work.kind, work.in_bytes, work.out_bytes) == (WorkKind.MOVE, 80 + 80, 320)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("wrong", [5, 10**9, -1, -6])
def test_an_id_outside_its_table_is_refused(wrong: int, dtype: type) -> None:
    """Negative ones too, which numpy would count from the end."""
    op = ops.Embedding(name="e", inputs=("t", "i"), output="y", group="g")
    table = np.arange(10.0).reshape(5, 2)
    np.testing.assert_array_equal(op.execute(table, np.array([[0, 4]], dtype)), [[[0, 1], [8, 9]]])
    with pytest.raises(SpecError, match=f"e: id: got {wrong}, want an integer from 0 to 4, a row of the table"):
        op.execute(table, np.array([[0, 4], [wrong, 2]], dtype))


def test_a_square_reads_its_operand_once() -> None:
    x = Tensor("x", (4, 6), **FLOAT)
    work = _work(ops.Mul(name="q", inputs=("x", "x"), output="y", group="g"), x, x, Tensor("y", (4, 6), **FLOAT))
    assert (work.m, work.n, work.in_bytes, work.out_bytes) == (1, 24, 96, 96)


@pytest.mark.parametrize(("exponent", "flops", "exps"), [(1, 0, 0), (2, 1, 0), (3.0, 2, 0), (0.5, 0, 1), (-1, 0, 1)])
def test_a_power_is_multiplications_or_a_transcendental(exponent: float, flops: int, exps: int) -> None:
    x = Tensor("x", (10,), **FLOAT)
    work = _work(ops.Pow(name="p", inputs=("x",), output="y", group="g", exponent=exponent), x, x)
    assert (work.flops_per_element, work.exps_per_element) == (flops, exps)


def test_a_reduction_sweeps_what_it_reduces() -> None:
    x, y = Tensor("x", (2, 5, 6), **FLOAT), Tensor("y", (2, 6), **FLOAT)
    work = _work(ops.Sum(name="r", inputs=("x",), output="y", group="g", dims=(1,), keepdim=False), x, y)
    assert (work.m, work.n, work.flops, work.in_bytes, work.out_bytes) == (12, 5, 60, 240, 48)


def test_every_op_of_the_zoo_is_a_row_and_only_views_are_free() -> None:
    graph = trace("roberta-base", seq=16)
    free = {op.operator for op in graph.ops if all(w.is_free for w in graph.work(op))}
    assert all(graph.work(op) for op in graph.ops)
    assert free == {"dropout", "view", "transpose", "expand", "select", "unsqueeze"}
