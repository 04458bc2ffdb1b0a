"""Is the graph what the module computes? Execution equals Hugging Face, each op equals torch, shipped equals traced."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch
from accelsim_models import zoo

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.execute import execute
from accelsim.graph import Graph, Op, Role
from accelsim.trace import parameters, trace
from tests.encoders import BATCH, SEQ, TINY, arrays, error, reference, tiny, traced

TOLERANCE = 3e-5  # float32 in another order of summation; each wrong graph below is further away
HEAD_CLASSES = [c for name, c in zoo.HEADS.items() if name != "none"]
ZOO_FAMILIES = sorted({spec.family for spec in zoo.ZOO.values()})


# --- the module's arithmetic --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY)
def test_execution_equals_hugging_face(family: str) -> None:
    module = tiny(family)
    assert error(traced(module), module, arrays()) < TOLERANCE


@pytest.mark.parametrize("family", ZOO_FAMILIES)
def test_execution_equals_hugging_face_with_eager_attention(family: str) -> None:
    module = tiny(family, attn_implementation="eager")
    graph = traced(module)
    assert not [op for op in graph.ops if op.name.endswith(".scores")]
    assert error(graph, module, arrays()) < TOLERANCE


@pytest.mark.parametrize("family", ZOO_FAMILIES)
@pytest.mark.parametrize("auto", HEAD_CLASSES)
def test_execution_equals_hugging_face_with_heads(family: str, auto: str) -> None:
    module = tiny(family, auto)
    assert error(traced(module), module, arrays()) < TOLERANCE


def test_families_of_the_zoo_are_all_executed() -> None:
    assert set(zoo.FAMILIES) == set(TINY)


def test_fully_masked_sequence_equals_hugging_face() -> None:
    module = tiny("bert")
    given = arrays()
    given["attention_mask"][1] = 0
    assert error(traced(module), module, given) < TOLERANCE


def _scale_lost(op: Op) -> Op:
    return replace(op, scale=1.0) if isinstance(op, ops.Softmax) else op


def _mask_lost(op: Op) -> Op:
    return replace(op, inputs=op.inputs[:1]) if isinstance(op, ops.Softmax) else op


def _eps_wrong(op: Op) -> Op:
    return replace(op, eps=0.1) if isinstance(op, ops.LayerNorm) else op


def _gelu_wrong(op: Op) -> Op:
    return replace(op, approximate="tanh") if isinstance(op, ops.Gelu) else op


def _bias_lost(op: Op) -> Op:
    return replace(op, inputs=op.inputs[:2]) if isinstance(op, ops.Linear) else op


def _residual_wrong(op: Op) -> Op:
    return replace(op, inputs=op.inputs[:1] * 2) if op.name == "encoder.layer.1.output.add" else op


def _heads_mixed(op: Op) -> Op:
    return replace(op, inputs=op.inputs[::-1]) if op.name.endswith("layer.0.attention.self.scores") else op


@pytest.mark.parametrize(
    "mutate", [_scale_lost, _mask_lost, _eps_wrong, _gelu_wrong, _bias_lost, _residual_wrong, _heads_mixed]
)
def test_a_wrong_graph_is_noticed(mutate: Any) -> None:
    module = tiny("bert")
    graph = traced(module)
    wrong = replace(graph, ops=tuple(mutate(op) for op in graph.ops)).check()
    assert error(graph, module, arrays()) < TOLERANCE
    assert error(wrong, module, arrays()) > TOLERANCE


def test_execute_refuses_what_does_not_fit() -> None:
    module = tiny("bert")
    graph, params, given = traced(module), parameters(module), arrays()
    with pytest.raises(SpecError, match="no array for embeddings"):
        execute(graph, {k: v for k, v in params.items() if "word" not in k}, given)
    with pytest.raises(SpecError, match="input_ids"):
        execute(graph, params, {**given, "input_ids": given["input_ids"][:1]})
    with pytest.raises(SpecError, match="float64"):
        execute(graph, {**params, "pooler.dense.bias": params["pooler.dense.bias"].astype(np.float64)}, given)


# --- each operator ------------------------------------------------------------------------------------------------


class Bare(torch.nn.Module):
    """One function of x (batch, seq, 6), ids and mask."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.table = torch.nn.Embedding(50, 6)
        self.register_buffer("big", torch.randn(7, 5))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.function(self, self.table(input_ids), input_ids, attention_mask)


FUNCTIONS: dict[str, tuple[Any, set[str]]] = {
    "linear": (lambda s, x, i, m: torch.nn.functional.linear(x, s.table.weight), {"linear"}),
    "matmul": (lambda s, x, i, m: x @ x.transpose(-1, -2), {"matmul", "transpose"}),
    "matmul by a table": (lambda s, x, i, m: x @ s.table.weight.t(), {"matmul", "transpose"}),
    "bmm": (lambda s, x, i, m: torch.bmm(x, x.permute(0, 2, 1)), {"matmul", "permute"}),
    "addmm": (lambda s, x, i, m: torch.addmm(x[0], x[0] @ x[0].t(), x[1]), {"matmul", "add", "select", "transpose"}),
    "attention without mask": (
        lambda s, x, i, m: torch.nn.functional.scaled_dot_product_attention(x, x, x, scale=0.3),
        {"matmul", "softmax"},
    ),
    "attention with float mask": (
        lambda s, x, i, m: torch.nn.functional.scaled_dot_product_attention(x, x, x, (1.0 - m[:, None, :]) * -3.0),
        {"matmul", "softmax", "mul", "rsub", "unsqueeze"},
    ),
    "softmax": (lambda s, x, i, m: x.softmax(-1), {"softmax"}),
    "layer norm": (lambda s, x, i, m: torch.nn.functional.layer_norm(x, (6,)), {"layer_norm"}),
    "gelu": (lambda s, x, i, m: torch.nn.functional.gelu(x), {"gelu"}),
    "gelu tanh": (lambda s, x, i, m: torch.nn.functional.gelu(x, approximate="tanh"), {"gelu"}),
    "gelu spelled out": (
        lambda s, x, i, m: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3.0))),
        {"gelu"},
    ),
    "gelu with another constant": (
        lambda s, x, i, m: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.05 * x**3.0))),
        {"tanh", "pow", "mul", "add"},
    ),
    "activations": (
        lambda s, x, i, m: x.relu() + x.tanh() + x.sigmoid() + torch.nn.functional.silu(x) + x.erf() + x.exp(),
        {"relu", "tanh", "sigmoid", "silu", "erf", "exp", "add"},
    ),
    "arithmetic": (
        lambda s, x, i, m: -(x - 2) / (x * x + 1) - 3 * (1 - x) + x.pow(2) + (x * x + 1).sqrt(),
        {"neg", "sub", "div", "mul", "add", "rsub", "pow", "sqrt"},
    ),
    "roots": (lambda s, x, i, m: (x * x + 1).rsqrt() + (x * x + 1) ** 0.3, {"mul", "add", "rsqrt", "pow"}),
    "ids": (lambda s, x, i, m: (i + 1) * 2 - m, {"add", "mul", "sub"}),
    "division of ids": (lambda s, x, i, m: i / 4, {"div"}),
    "comparisons": (
        lambda s, x, i, m: (
            (x < 0.1) | (x > 0.9) & (x <= 1.5) | ~((x >= -0.5) & (i == 4)[..., None]) | (x != x.amax(-1, True))
        ),
        {"lt", "gt", "le", "ge", "eq", "ne", "bitwise_and", "bitwise_or", "bitwise_not", "amax", "unsqueeze"},
    ),
    "logic": (
        lambda s, x, i, m: torch.logical_and(x > 0, torch.logical_not(x > 1)),
        {"gt", "bitwise_and", "bitwise_not"},
    ),
    "where": (lambda s, x, i, m: torch.where(x > 0, x, -x), {"gt", "neg", "where"}),
    "where number": (
        lambda s, x, i, m: torch.where(x > 0, 1.5, x) + torch.where(x > 0, x, 2.5),
        {"gt", "where", "add"},
    ),
    "masked fill": (lambda s, x, i, m: x.masked_fill(m[..., None] == 0, -2.0), {"eq", "unsqueeze", "masked_fill"}),
    "in place": (
        lambda s, x, i, m: (x * 2).masked_fill_(m[..., None] == 0, -2.0),
        {"mul", "eq", "unsqueeze", "masked_fill"},
    ),
    "clamp": (lambda s, x, i, m: x.clamp(-0.5, 0.5) + x.clamp(min=0.2) + x.clamp_max(0.1), {"clamp", "add"}),
    "to": (lambda s, x, i, m: x * m[..., None].float(), {"unsqueeze", "to", "mul"}),
    "type as": (lambda s, x, i, m: m.type_as(x), {"to"}),
    "cumsum": (lambda s, x, i, m: x.cumsum(1) + x.cumsum(-1), {"cumsum", "add"}),
    "cumsum of int32": (lambda s, x, i, m: i.int().cumsum(1), {"to", "cumsum"}),
    "sums": (lambda s, x, i, m: x.sum(1, keepdim=True) + x.mean((0, 2), keepdim=True), {"sum", "mean", "add"}),
    "sum of all": (lambda s, x, i, m: x.sum(), {"sum"}),
    "any and all": (lambda s, x, i, m: (x > 0).any(1) | (x > -9).all(1), {"gt", "any", "all", "bitwise_or"}),
    "gather": (lambda s, x, i, m: x.gather(1, (i % 1 if False else m)[..., None]), {"unsqueeze", "gather"}),
    "index": (lambda s, x, i, m: x[:, m], {"index"}),
    "index two": (lambda s, x, i, m: x[m[:1], m], {"slice", "index"}),
    "cat": (lambda s, x, i, m: torch.cat([x, x * 2], -1), {"mul", "cat"}),
    "pad": (lambda s, x, i, m: torch.nn.functional.pad(x[:, 1:], [1, 2, 0, 1]), {"slice", "pad"}),
    "pad that cuts": (lambda s, x, i, m: torch.nn.functional.pad(x, [-1, 2], value=3.0), {"pad"}),
    "fill": (
        lambda s, x, i, m: x + torch.arange(1, 13, 2) * torch.full((6,), 2.0) + x.new_ones(6) + torch.zeros_like(x),
        {"arange", "full", "mul", "add"},
    ),
    "expand": (lambda s, x, i, m: s.big[0, :1].expand(3, 4), {"select", "slice", "expand"}),
    "views": (
        lambda s, x, i, m: x.view(BATCH, 3, 3, 6).flatten(1, 2).unflatten(-1, (2, 3)).squeeze(0),
        {"view", "squeeze"},
    ),
    "reshape of a permuted tensor": (
        lambda s, x, i, m: x.transpose(0, 1).reshape(SEQ, 12),
        {"transpose", "clone", "view"},
    ),
    "contiguous already": (lambda s, x, i, m: x.contiguous() + 1, {"add"}),
    "contiguous": (lambda s, x, i, m: x.transpose(0, 1).contiguous(), {"transpose", "clone"}),
    "split": (lambda s, x, i, m: torch.mul(*x.split(3, -1)), {"slice", "mul"}),
    "chunk and unbind": (
        lambda s, x, i, m: x.chunk(2, -1)[1] + x.unbind(-1)[2][..., None],
        {"slice", "select", "unsqueeze", "add"},
    ),
    "strided slice": (lambda s, x, i, m: x[:, 1:-1:2], {"slice"}),
    "dropout": (lambda s, x, i, m: torch.nn.functional.dropout(x, 0.5, s.training) + 1, {"dropout", "add"}),
    "embedding": (lambda s, x, i, m: x, set()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operator_equals_torch(name: str) -> None:
    function, operators = FUNCTIONS[name]
    module = Bare(function).eval()
    graph = traced(module)
    assert {op.operator for op in graph.ops} - {"embedding"} == operators
    given = arrays()
    (ours,) = execute(graph, parameters(module), given).values()
    (theirs,) = reference(module, given)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_every_operator_is_tested_against_torch() -> None:
    tested = set.union(*(operators for _, operators in FUNCTIONS.values())) | {"embedding"}
    quantized = {"quantize", "dequantize", "add_layer_norm"}  # no module has them: test_quantize.py
    training = {c.operator for c in Op.vocabulary.values() if c.__module__ == "accelsim.ops.training"}  # iteration
    assert set(Op.vocabulary) == tested | quantized | training


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda s, x, i, m: x.sort(-1).values, "aten.sort"),
        (lambda s, x, i, m: x.softmax(1), "softmax"),
        (lambda s, x, i, m: torch.add(x, x, alpha=2), "aten.add.Tensor"),
        (lambda s, x, i, m: torch.nn.functional.layer_norm(x, (SEQ, 6)), "layer_norm"),
        (lambda s, x, i, m: torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True), "scaled_dot"),
        (lambda s, x, i, m: torch.nn.functional.pad(x, [1, 1], mode="reflect"), "pad"),
        (lambda s, x, i, m: torch.div(x, 2, rounding_mode="floor"), "div"),
    ],
)
def test_an_operator_without_meaning_is_named_with_its_module(function: Any, operator: str) -> None:
    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = Bare(function)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return self.odd(input_ids, attention_mask)

    with pytest.raises(SpecError, match=operator) as caught:
        traced(Outer())
    assert "module odd" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- the graph's description ----------------------------------------------------------------------------------------


def test_names_groups_and_layers() -> None:
    graph = traced(tiny("bert"))
    named = {op.name: op for op in graph.ops}
    base = "encoder.layer.1.attention.self"
    for name, operator in (("scores", "matmul"), ("softmax", "softmax"), ("context", "matmul")):
        op = named[f"{base}.{name}"]
        assert (op.operator, op.group, op.layer, op.phase) == (operator, base, 1, "forward")
    assert named[f"{base}.softmax"].attributes == {"scale": 8**-0.5}
    assert named[f"{base}.query.linear"].group == f"{base}.query"
    assert named["embeddings.LayerNorm.layer_norm"].layer == -1
    assert {op.layer for op in graph.ops} == {-1, 0, 1}


def test_layers_that_share_weights_are_told_apart_by_their_call() -> None:
    graph = traced(tiny("albert", config={"num_hidden_layers": 3}))
    softmaxes = [op for op in graph.ops if op.operator == "softmax"]
    assert [op.layer for op in softmaxes] == [0, 1, 2]
    assert softmaxes[2].group == "encoder.albert_layer_groups.0@2.albert_layers.0.attention"
    assert sum(op.operator == "gelu" for op in graph.ops) == 3


def test_dropout_is_free_and_layout_copies_are_not() -> None:
    graph = traced(tiny("bert"))
    work = {kind: [graph.work(op) for op in graph.ops if isinstance(op, kind)] for kind in (ops.Dropout, ops.Clone)}
    assert len(work[ops.Dropout]) == 5  # embeddings and two in each layer; of attention's, sdpa has none in inference
    assert all(w.is_free for (w,) in work[ops.Dropout])
    copied = BATCH * SEQ * 24 * 4
    assert [(w.in_bytes, w.out_bytes) for (w,) in work[ops.Clone]] == [(copied, copied)] * 2


def test_roles_and_tied_weights() -> None:
    module = tiny("bert", "AutoModelForPreTraining")
    graph = traced(module)
    by_role = {role: [n for n, t in graph.tensors.items() if t.role is role] for role in Role}
    assert by_role[Role.WEIGHT] == [name for name, _ in module.named_parameters()]
    assert by_role[Role.INPUT] == ["input_ids", "attention_mask"] == list(graph.inputs)
    assert by_role[Role.STATE] == ["bert.embeddings.position_ids", "bert.embeddings.token_type_ids"]
    decoder = next(op for op in graph.ops if op.name == "cls.predictions.decoder.linear")
    assert decoder.inputs[1] == "bert.embeddings.word_embeddings.weight"


def test_the_module_is_left_as_it_was() -> None:
    module = tiny("bert").train()
    module.pooler.eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    traced(module)
    assert module.training
    assert not module.pooler.training
    assert module.encoder.layer[0].training
    assert all(torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in module.state_dict().items())


def test_meta_says_how_the_graph_was_made() -> None:
    meta = dict(trace("bert-tiny", seq=7, batch=3, head="question-answering").meta)
    assert meta.pop("source").startswith("shipped, traced with torch 2.")
    assert meta == {"model": "bert-tiny", "head": "question-answering", "seq": "7", "batch": "3", "precision": "fp32"}


# --- shipped graphs -------------------------------------------------------------------------------------------------

ROTATING = [h for h in zoo.heads() if h != "none"]


def _content(graph: Graph) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(graph.to_json()))
    return {**data, "meta": {**data["meta"], "source": ""}}


@pytest.mark.parametrize("name", zoo.names())
def test_shipped_graph_equals_a_fresh_trace(name: str) -> None:
    i = zoo.names().index(name)
    for head, seq, batch in (("none", 10, 3), (ROTATING[i % len(ROTATING)], 13, 1)):
        shipped = trace(name, seq=seq, batch=batch, head=head, source="shipped")
        assert _content(shipped) == _content(trace(name, seq=seq, batch=batch, head=head, source="torch"))


@pytest.mark.parametrize("head", zoo.heads())
@pytest.mark.parametrize(("seq", "batch"), [(1, 1), (1, 3), (2, 1), (511, 2), (512, 1), (512, 4)])
def test_shipped_graph_equals_a_fresh_trace_at_the_edges(head: str, seq: int, batch: int) -> None:
    shipped = trace("bert-tiny", seq=seq, batch=batch, head=head, source="shipped")
    assert _content(shipped) == _content(trace("bert-tiny", seq=seq, batch=batch, head=head, source="torch"))


def test_every_model_and_head_is_shipped() -> None:
    for name in zoo.names():
        for head in zoo.heads():
            graph = trace(name, seq=16, head=head, source="shipped")
            assert (graph.name, graph.meta["head"]) == (name, head)


def test_shipped_graphs_are_small() -> None:
    folder = Path(sys.modules["accelsim.trace"].__file__ or "").parent / "graphs"
    assert 0 < sum(f.stat().st_size for f in folder.glob("*.json.gz")) < 2 * 2**20


def test_simulating_a_zoo_model_needs_no_torch() -> None:
    code = """
import sys
from accelsim.errors import SpecError
from accelsim.trace import trace
assert len(trace("bert-base", seq=100).ops) > 300
for options, text in (
    ({"seq": 513}, "512"), ({"seq": 0}, "seq"), ({"batch": 0}, "batch"), ({"batch": 10**9}, "batch"),
    ({"head": "qa"}, "head"),
):
    try:
        trace("bert-base", **options)
    except SpecError as error:
        assert text in str(error), error
    else:
        raise AssertionError(options)
heavy = {"torch", "transformers", "numba", "pandas", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- input that is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "bert-bas"}, "nearest: bert-base"),
        ({"model": "bert-base", "head": "masked"}, "one of none"),
        ({"model": "bert-base", "source": "hub"}, "one of auto, shipped, torch"),
        ({"model": "bert-base", "seq": -1}, "seq: got -1"),
        ({"model": "bert-base", "seq": True}, "seq: got True"),
        ({"model": "bert-base", "seq": 12.5}, "seq: got 12.5"),
        ({"model": "bert-base", "seq": "128"}, "seq: got '128'"),
        ({"model": "roberta-base", "seq": 513}, "512"),
        ({"model": "roberta-base", "seq": 513, "source": "torch"}, "512"),
        ({"model": "bert-base", "batch": 2**21}, "batch: got 2097152"),
        ({"model": "./no-such-folder"}, "a folder with config.json"),
    ],
)
def test_bad_input_is_one_clear_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        trace(**options)
    assert "\n" not in str(caught.value)


def test_a_module_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(SpecError, match="32, the model's maximum"):
        trace(tiny("bert"), seq=33)
    with pytest.raises(SpecError, match="32, the model's maximum"):
        trace(tiny("roberta"), seq=33)
    with pytest.raises(SpecError, match="head"):
        trace(tiny("bert"), seq=8, head="pretraining")
    with pytest.raises(SpecError, match="a module that torch"):
        trace(torch.nn.Linear(3, 3), seq=8)
    with pytest.raises(SpecError, match="weights"):
        parameters(zoo.build("bert-tiny"))


# --- local folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **TINY["bert"]}))
    return tmp_path


def test_a_local_folder_is_traced_from_its_configuration(folder: Path) -> None:
    graph = trace(str(folder), seq=SEQ, batch=BATCH)
    assert [op.name for op in graph.ops] == [op.name for op in traced(tiny("bert")).ops]
    with pytest.raises(SpecError, match="32, the model's maximum"):
        trace(str(folder), seq=33)


def test_a_zoo_name_wins_over_a_folder_unless_a_separator_says_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(folder.parent / "bert-tiny")
    monkeypatch.chdir(folder.parent)
    assert trace("bert-tiny", seq=8).tensors["embeddings.word_embeddings.weight"].shape == (30522, 128)
    assert trace("./bert-tiny", seq=8).tensors["embeddings.word_embeddings.weight"].shape == (50, 24)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "a readable file"),
        ('{"model_type": "be', "complete JSON"),
        ("[1, 2]", "a JSON object"),
        ("{}", "model_type"),
        ('{"model_type": "gpt2"}', "model_type: got 'gpt2'"),
        ('{"model_type": "bert", "max_position_embeddings": "many"}', "max_position_embeddings"),
        ('{"model_type": "bert", "max_position_embeddings": 64, "hidden_size": "wide"}', "config"),
        ('{"model_type": "bert", "max_position_embeddings": 64, "hidden_size": 7}', "config"),
    ],
)
def test_a_folder_without_a_legal_configuration_is_refused(tmp_path: Path, text: str | None, match: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(SpecError, match=match) as caught:
        trace(str(tmp_path), seq=8)
    assert "\n" not in str(caught.value)


def test_bert_large_is_traced_without_weights():
    """Peak memory of a fresh process rises by less than 300 MiB over `import torch`, transformers included."""
    code = (
        "import resource, torch; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "before = peak(); from accelsim import trace; graph = trace('bert-large', source='torch');"
        "assert graph.parameters == 335141888, graph.parameters; print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300
