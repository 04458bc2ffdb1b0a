"""Is a pruned graph the graph of the smaller model, as PyTorch builds and computes it?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accelsim
from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import Graph, Op, Role, Tensor
from accelsim.trace import shipped_names, trace
from accelsim.transforms import prune as module
from accelsim.transforms.prune import PARTS, prune, size_of
from tests.encoders import TINY, arrays, error, tiny, traced

FAMILIES = sorted(TINY)
NAMES = {"layers": "num_hidden_layers", "ffn": "intermediate_size"}
DISTILBERT = {"layers": "n_layers", "ffn": "hidden_dim"}


def content(graph: Graph) -> Any:
    """All but the notes on how it was made."""
    return graph.tensors, graph.ops, graph.inputs, graph.outputs


def shapes(graph: Graph) -> list[Any]:
    """The ops with the shapes they meet, without names."""
    return [
        (
            op.operator,
            op.layer,
            op.attributes,
            [graph.tensors[n].shape for n in op.inputs],
            graph.tensors[op.output].shape,
        )
        for op in graph.ops
    ]


def smaller(family: str, **cut: int) -> Graph:
    """Trace of the module that PyTorch builds from a configuration with fewer layers or neurons."""
    names = DISTILBERT if family == "distilbert" else NAMES
    return traced(tiny(family, config={names[part]: n for part, n in cut.items()}))


def keep_heads(bert: Any, keep: int) -> Any:
    """The BertModel with the first heads of each layer alone: linear layers of PyTorch in place of its own."""
    import torch

    for layer in bert.encoder.layer:
        attention, width = layer.attention.self, keep * layer.attention.self.attention_head_size
        for name in ("query", "key", "value"):
            whole = getattr(attention, name)
            part = torch.nn.Linear(whole.in_features, width)
            part.weight.data, part.bias.data = whole.weight.data[:width].clone(), whole.bias.data[:width].clone()
            setattr(attention, name, part)
        whole = layer.attention.output.dense
        layer.attention.output.dense = torch.nn.Linear(width, whole.out_features)
        layer.attention.output.dense.weight.data = whole.weight.data[:, :width].clone()
        layer.attention.output.dense.bias.data = whole.bias.data.clone()
        attention.num_attention_heads, attention.all_head_size = keep, width
    return bert


def keep_neurons(bert: Any, keep: int) -> Any:
    """The BertModel with the first intermediate neurons of each layer alone."""
    for layer in bert.encoder.layer:
        first, second = layer.intermediate.dense, layer.output.dense
        first.weight.data, first.bias.data = first.weight.data[:keep].clone(), first.bias.data[:keep].clone()
        second.weight.data = second.weight.data[:, :keep].clone()
        first.out_features = second.in_features = keep
    return bert


# --- against PyTorch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", [{"layers": 1}, {"ffn": 7}, {"layers": 1, "ffn": 1}], ids=str)
def test_it_is_the_graph_of_the_smaller_configuration(family: str, cut: dict[str, int]) -> None:
    ours, theirs = prune(traced(tiny(family)), **cut), smaller(family, **cut)
    assert shapes(ours) == shapes(theirs)
    assert ours.unique_work().keys() == theirs.unique_work().keys()
    assert ours.parameters == theirs.parameters
    if family != "albert":  # names of one call of shared weights are not numbered
        assert content(ours) == content(theirs)


@pytest.mark.parametrize("head", ["sequence-classification", "pretraining", "question-answering"])
def test_heads_of_tasks_read_the_last_layer_that_is_kept(head: str) -> None:
    auto = {
        "sequence-classification": "AutoModelForSequenceClassification", "pretraining": "AutoModelForPreTraining",
        "question-answering": "AutoModelForQuestionAnswering",
    }[head]  # fmt: skip
    ours = prune(traced(tiny("bert", auto)), layers=1, ffn=9)
    assert content(ours) == content(traced(tiny("bert", auto, config={"num_hidden_layers": 1, "intermediate_size": 9})))


def test_a_shipped_graph_shrinks_as_its_configuration_does(tmp_path: Any) -> None:
    import transformers

    cut = {"num_hidden_layers": 3, "intermediate_size": 200}
    transformers.BertConfig(hidden_size=256, num_attention_heads=4, **cut).save_pretrained(tmp_path)
    theirs = trace(str(tmp_path), seq=12, batch=4)
    assert content(prune(trace("bert-mini", seq=12, batch=4), layers=3, ffn=200)) == content(theirs)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(("seq", "batch"), [(9, 2), (3, 3), (1, 1), (2, 1)])
def test_fewer_heads_are_the_trace_of_smaller_linear_layers(keep: int, seq: int, batch: int) -> None:
    ours = prune(trace(tiny("bert"), seq=seq, batch=batch), heads=keep)
    theirs = trace(keep_heads(tiny("bert"), keep), seq=seq, batch=batch)
    assert content(ours) == content(theirs)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(
    "family", ["electra", "ernie", "megatron-bert", "mobilebert", "roberta", "roberta-prelayernorm", "data2vec-text"]
)
def test_fewer_heads_of_other_families(family: str, keep: int) -> None:
    """As many as tokens at three; megatron-bert's attention is its own products, not PyTorch's function."""
    ours = prune(trace(tiny(family), seq=3, batch=2), heads=keep)
    assert content(ours) == content(trace(keep_heads(tiny(family), keep), seq=3, batch=2))


def test_the_pruned_graph_computes_what_pytorch_does_with_the_weights_that_are_left() -> None:
    whole = traced(tiny("bert"))
    smaller = keep_neurons(keep_heads(tiny("bert"), 2), 11)
    assert error(prune(whole, heads=2, ffn=11), smaller, arrays()) < 1e-5
    smaller.encoder.layer = smaller.encoder.layer[:1]
    assert error(prune(whole, layers=1, heads=2, ffn=11), smaller, arrays()) < 1e-5


def test_the_oracle_sees_a_wrong_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A legal graph that PyTorch would not run; and heads taken for the tokens, of which there are as many."""
    graph = trace(tiny("bert"), seq=3, batch=1)
    theirs = trace(keep_heads(tiny("bert"), 1), seq=3, batch=1)
    assert content(prune(graph, heads=1)) == content(theirs)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_without_idle_copies", lambda made, cut: made)
        assert content(prune(graph, heads=1).check()) != content(theirs)

    def by_size(at: Any, count: int, shape: tuple[int, ...], to: tuple[int, ...]) -> Any:
        return module._Place(to.index(count), 1) if count in to else real(at, count, shape, to)

    real = module._viewed
    monkeypatch.setattr(module, "_viewed", by_size)
    with pytest.raises(SpecError):
        prune(graph, heads=1)


# --- closed form and laws ---------------------------------------------------------------------------------------------

HIDDEN, WIDTH = 256, 64
"""Of bert-mini: hidden size and size of a head."""


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["bert-mini", "albert-base"]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 1024),
    st.integers(1, 9), st.integers(1, 5),
)  # fmt: skip
def test_macs_are_those_of_the_formula(model: str, layers: int, heads: int, ffn: int, seq: int, batch: int) -> None:
    """Sequences as long as there are heads, or batches as large, among them."""
    whole = trace(model, seq=seq, batch=batch)
    hidden = {"bert-mini": HIDDEN, "albert-base": 768}[model]
    made = prune(whole, layers, heads, ffn)
    assert made.check() is made
    rows, width = seq * batch, heads * WIDTH
    layer = rows * hidden * 4 * width + 2 * rows * seq * width + 2 * rows * hidden * ffn
    mapped = rows * 128 * hidden if model == "albert-base" else 0
    assert made.macs == layers * layer + batch * hidden * hidden + mapped
    assert [size_of(made, part) for part in PARTS] == [layers, heads, ffn]
    assert made.meta == {**whole.meta, **{p: str(n) for p, n in zip(PARTS, (layers, heads, ffn), strict=True)
                                          if n < size_of(whole, p)}}  # fmt: skip
    assert content(prune(prune(prune(whole, ffn=ffn), heads=heads), layers=layers)) == content(made)


@pytest.mark.parametrize("model", shipped_names())
def test_every_shipped_model_can_be_pruned(model: str) -> None:
    whole = trace(model, seq=12, batch=12)
    sizes = {part: size_of(whole, part) for part in PARTS}
    assert prune(whole) == prune(whole, **sizes) == whole
    made = prune(whole, layers=1, heads=1, ffn=3)
    assert made.macs < whole.macs
    assert made.parameters < whole.parameters
    assert {op.layer for op in made.ops} == {-1, 0}
    read = {name for op in made.ops for name in op.inputs}
    assert {name for name, t in made.tensors.items() if t.role is Role.WEIGHT and ".layer.1." in name} == set()
    assert all(name in read or t.role is not Role.STATE for name, t in made.tensors.items())
    for precision in ("int8", "fq-bert"):
        accelsim.with_precision(made, precision).check()


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "most"), [("layers", 4), ("heads", 4), ("ffn", 1024)])
def test_numbers_out_of_range_are_refused(part: str, most: int) -> None:
    graph = trace("bert-mini", seq=4)
    for value in (0, -1, most + 1, 1.0, True, "2"):
        with pytest.raises(SpecError, match=f"{part}: got .*, want an integer from 1 to {most}, which bert-mini has"):
            prune(graph, **{part: value})  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="nearest: layers"):
        size_of(graph, "layer")


def test_graphs_of_something_else_are_refused() -> None:
    for part in PARTS:
        with pytest.raises(SpecError, match="gemm:8x8x8: got 0, want a model with encoder layers"):
            prune(accelsim.gemm_graph(8, 8, 8), **{part: 1})
    quantized = accelsim.with_precision(trace("bert-mini", seq=4), "fq-bert")
    assert prune(quantized) is quantized
    with pytest.raises(SpecError, match="prune first"):
        prune(quantized, heads=1)


def edited(graph: Graph, at: str, *new: Op, **tensors: Tensor) -> Graph:
    """The graph with other ops in place of the one named `at`."""
    every = [o for op in graph.ops for o in (new if op.name == at else (op,))]
    return replace(graph, ops=tuple(every), tensors={**graph.tensors, **{t.name: t for t in tensors.values()}}).check()


def layered(graph: Graph, operator: str, layer: int = 1) -> Op:
    """The first op of that kind in a layer."""
    return next(op for op in graph.ops if op.operator == operator and op.layer == layer)


def test_an_op_that_is_not_understood_is_named() -> None:
    graph = traced(tiny("bert"))
    gelu, softmax = layered(graph, "gelu"), layered(graph, "softmax")
    norm = ops.Softmax(name="mix", inputs=gelu.inputs, output=gelu.output, group="g", layer=1)
    with pytest.raises(SpecError, match="ffn of BertModel: got 'none in layer 1', want linear, activation, linear"):
        prune(edited(graph, gelu.name, norm), ffn=3)
    mixed = Tensor("mixed", graph.tensors[gelu.output].shape, graph.tensors[gelu.output].dtype)
    after = replace(gelu, name="first", output="mixed")
    with pytest.raises(SpecError, match="ffn of BertModel: mix: got 'softmax', want an op through which"):
        prune(edited(graph, gelu.name, after, replace(norm, inputs=("mixed",)), mixed=mixed), ffn=3)
    summed = ops.Sum(name="s", inputs=(softmax.output,), output="sum", group="g", layer=1, dims=(1,), keepdim=False)
    shape = graph.tensors[softmax.output].shape
    total = Tensor("sum", (shape[0], *shape[2:]), graph.tensors[softmax.output].dtype)
    with pytest.raises(SpecError, match="heads of BertModel: s: got 'sum'"):
        prune(edited(graph, softmax.name, softmax, summed, total=total), heads=1)
    with pytest.raises(SpecError, match=r"heads of BertModel: got 'output .*softmax', want none that leave"):
        prune(replace(graph, outputs=(*graph.outputs, softmax.output)), heads=1)


def test_a_mask_of_its_own_for_each_head_is_refused() -> None:
    """As long as the sequence or not: what is left of it nobody said."""
    graph = trace(tiny("bert"), seq=3, batch=1)
    softmax = layered(graph, "softmax")
    mask = Tensor("mask", (3, 3, 3), graph.tensors[softmax.output].dtype, Role.STATE)
    made = edited(graph, softmax.name, replace(softmax, inputs=(softmax.inputs[0], "mask")), mask=mask)
    with pytest.raises(SpecError, match=f"heads of BertModel: {softmax.name}: got 'softmax'"):
        prune(made, heads=2)


def test_weights_that_something_else_reads_are_refused() -> None:
    graph = traced(tiny("bert"))
    first = next(op for op in graph.ops if op.layer == 0)
    name = "encoder.layer.1.intermediate.dense.bias"
    copied = replace(graph.tensors[name], name="copy", role=Role.ACTIVATION)
    copy = ops.Clone(name="copy", inputs=(name,), output="copy", group="g", layer=0)
    with pytest.raises(SpecError, match="ffn of BertModel: copy: got 'clone'"):
        prune(edited(graph, first.name, copy, first, copied=copied), ffn=3)


def test_layers_that_differ_or_are_read_from_outside_are_refused() -> None:
    graph = traced(tiny("bert", config={"num_hidden_layers": 3}))
    gelu = layered(graph, "gelu", 0)
    tanh = ops.Tanh(name=gelu.name, inputs=gelu.inputs, output=gelu.output, group=gelu.group, layer=0)
    with pytest.raises(SpecError, match="layer 0 and the last one differ"):
        prune(edited(graph, gelu.name, tanh), layers=1)
    middle = layered(graph, "gelu", 1).output
    with pytest.raises(SpecError, match=r"the output reads .*layer\.1.*, want readers of the last layer only"):
        prune(replace(graph, outputs=(*graph.outputs, middle)), layers=1)
    assert middle in prune(replace(graph, outputs=(*graph.outputs, middle)), layers=2).outputs


def test_layers_of_different_sizes_are_refused() -> None:
    graph = prune(traced(tiny("bert")), ffn=7)
    whole = traced(tiny("bert"))
    mixed = {n: whole.tensors[n] if n.startswith("encoder.layer.1.") else t for n, t in graph.tensors.items()}
    made = replace(graph, tensors=mixed).check()
    with pytest.raises(SpecError, match=r"ffn of BertModel: got \[7, 40\], want the same number"):
        prune(made, ffn=3)
    with pytest.raises(SpecError, match="differ"):
        prune(made, layers=1)
