"""Does a transform owe and give a legal graph?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.execute import execute
from accelsim.graph import DType, Graph, Role
from accelsim.trace import trace
from accelsim.transforms import apply
from accelsim.transforms.quantize import names, with_precision
from accelsim.work import Arithmetic, WorkKind

MODELS = [
    ("bert-tiny", "pretraining"),
    ("mobilebert", "pretraining"),
    ("roberta-base", "none"),
    ("albert-base", "none"),
]


@pytest.mark.parametrize(("model", "head"), MODELS)
@pytest.mark.parametrize("precision", names())
def test_every_precision_gives_a_legal_graph(model: str, head: str, precision: str) -> None:
    graph = trace(model, seq=16, head=head)
    made = with_precision(graph, precision).check()
    assert made.meta == {**graph.meta, "precision": precision}
    assert (made.macs, made.parameters) == (graph.macs, graph.parameters)
    kept = {name: t for name, t in graph.tensors.items() if not t.dtype.is_float}
    assert kept
    assert all(made.tensors[name] == t for name, t in kept.items())


@pytest.mark.parametrize(
    ("precision", "weight", "table", "norm", "bias", "activation"),
    [
        ("fp32", *[DType.FLOAT32] * 5),
        ("fp16", *[DType.FLOAT16] * 5),
        ("bf16", *[DType.BFLOAT16] * 5),
        ("int8", DType.INT8, DType.INT8, DType.INT8, DType.INT32, DType.INT8),
        ("fq-bert", DType.INT4, DType.INT8, DType.INT8, DType.INT32, DType.UINT8),
        ("i-bert", DType.INT8, DType.INT8, DType.INT16, DType.INT32, DType.UINT8),
        ("w2a8", DType.INT2, DType.INT8, DType.INT8, DType.INT32, DType.UINT8),
        ("w8a8", DType.INT8, DType.INT8, DType.FLOAT32, DType.INT32, DType.FLOAT32),
    ],
)
def test_each_tensor_class_gets_its_format(
    precision: str, weight: DType, table: DType, norm: DType, bias: DType, activation: DType
) -> None:
    tensors = with_precision(trace("bert-tiny", seq=16), precision).tensors
    layer = "encoder.layer.0"
    assert tensors[f"{layer}.attention.self.query.weight"].dtype is weight
    assert tensors[f"{layer}.attention.self.query.bias"].dtype is bias
    assert tensors[f"{layer}.output.LayerNorm.weight"].dtype is norm
    assert tensors[f"{layer}.output.LayerNorm.bias"].dtype is norm
    assert tensors["embeddings.word_embeddings.weight"].dtype is table
    assert tensors[f"{layer}.attention.self.softmax"].dtype is activation
    assert tensors["input_ids"].dtype is DType.INT64


def test_a_table_that_a_decoder_shares_is_a_table() -> None:
    graph = with_precision(trace("bert-tiny", head="pretraining"), "fq-bert")
    assert graph.tensors["bert.embeddings.word_embeddings.weight"].dtype is DType.INT8
    decoder = next(op for op in graph.ops if op.group == "cls.predictions.decoder")
    assert graph.tensors[decoder.output].dtype is DType.INT32


@pytest.mark.parametrize(("precision", "bits"), [("fp32", 32), ("fp16", 16), ("bf16", 16), ("int8", 8), ("fq-bert", 4)])
def test_work_asks_for_the_width(precision: str, bits: int) -> None:
    graph = with_precision(trace("bert-tiny", seq=16), precision)
    arithmetic = {"fp32": Arithmetic.FLOAT, "fp16": Arithmetic.FLOAT, "bf16": Arithmetic.BFLOAT}
    for op in graph.ops:
        for work in graph.work(op):
            if work.kind is WorkKind.GEMM:
                assert work.arithmetic is arithmetic.get(precision, Arithmetic.INT)
                assert work.a_bits == max(bits, 8)
                assert work.w_bits == (bits if isinstance(op, ops.Linear) else max(bits, 8))


def test_precisions_that_do_not_exist_or_do_not_follow_are_refused() -> None:
    graph = trace("bert-tiny", seq=16)
    with pytest.raises(SpecError, match="nearest: w8a8"):
        with_precision(graph, "w8a16")
    with pytest.raises(SpecError, match="precision of the graph: got 'int8'"):
        with_precision(with_precision(graph, "int8"), "fp32")
    with pytest.raises(SpecError, match="execute: dtype"):
        execute(with_precision(graph, "int8"), {}, {})


def test_apply_checks_after_each_transform() -> None:
    def breaks(graph: Graph) -> Graph:
        return replace(graph, ops=graph.ops[::-1])

    def mends(graph: Graph) -> Graph:
        return replace(graph, ops=graph.ops[::-1])

    graph = trace("bert-tiny", seq=16)
    assert apply(graph, lambda g: with_precision(g, "fp16")).meta["precision"] == "fp16"
    assert mends(breaks(graph)) == graph
    with pytest.raises(SpecError, match="execution order"):
        apply(graph, breaks, mends)


def test_roles_survive() -> None:
    graph = trace("bert-tiny", seq=16)
    made = with_precision(graph, "int8")
    assert [(n, t.role) for n, t in made.tensors.items()] == [(n, t.role) for n, t in graph.tensors.items()]
    assert Role.WEIGHT in {t.role for t in made.tensors.values()}
