"""Is the integer graph of a spec the float graph, with every number in the format that the spec says?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accelsim
from accelsim import ops
from accelsim.errors import Infeasible, SpecError
from accelsim.graph import DType, Graph, Op, Role
from accelsim.integers import MEANINGS
from accelsim.quantspec import FQ_BERT, I_BERT, SPECS, W8A8, QuantSpec
from accelsim.trace import shipped_names, trace
from accelsim.transforms.quantize import (
    output_classes,
    quantize,
    ranges_wanted,
    steps_of,
    weight_classes,
    with_precision,
)
from tests.quantized import Recipe, bert, encoders

HEADS = ("none", "pretraining", "sequence-classification", "question-answering", "token-classification")
INTEGERS = [spec for spec in SPECS.values() if spec.quantized and spec.scope == "all"]
SMALL_INTEGERS = {DType.INT2, DType.INT4, DType.INT8, DType.UINT8}
CONVERSIONS = ops.Quantize | ops.Dequantize
LAYER = "encoder.layer.0"


def float_ops(graph: Graph) -> list[Op]:
    """Ops that read or give a real number."""
    return [op for op in graph.ops if any(graph.tensors[n].dtype.is_float for n in (*op.inputs, op.output))]


def no_norms(graph: Graph) -> set[str]:
    """MobileBERT's norms without statistics: a product with a weight, then a sum."""
    return {
        op.name for op in graph.ops if isinstance(op, ops.Mul | ops.Add) and op.group.endswith("LayerNorm")
    }  # fmt: skip


# --- every model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", shipped_names())
def test_every_model_head_and_preset(model: str, head: str) -> None:
    """Presets that differ from FQ-BERT's in the width of weights alone, on one model."""
    graph = trace(model, seq=8, head=head)
    for spec in SPECS.values() if model == "bert-tiny" else (W8A8, I_BERT, FQ_BERT):
        made = quantize(graph, spec)  # which checks it
        assert (made.macs, made.parameters) == (graph.macs, graph.parameters), spec.name
        assert (made.inputs, made.meta) == (graph.inputs, {**graph.meta, "precision": spec.name})
        assert [made.tensors[n].shape for n in made.outputs] == [graph.tensors[n].shape for n in graph.outputs]
        check_names(graph, made)
        if spec in INTEGERS:
            check_integers(graph, made, model, head)
        elif spec is W8A8:
            check_linear_only(graph, made)
        else:
            assert made.ops == graph.ops
            assert made.tensors == graph.tensors


def check_names(graph: Graph, made: Graph) -> None:
    """Ops keep name, order, group and layer; those that go are sums that went into an AddLayerNorm."""
    kept = [op for op in made.ops if not isinstance(op, CONVERSIONS)]
    before = {op.name: op for op in graph.ops}
    for op in kept:
        was = before[op.name]
        assert (op.group, op.layer, op.phase, op.output) == (was.group, was.layer, was.phase, was.output)
        assert op.operator == was.operator or (op.operator, was.operator) == ("add_layer_norm", "layer_norm")
        assert made.tensors[op.output].shape == graph.tensors[was.output].shape
    names = {op.name for op in kept}
    gone = [op for op in graph.ops if op.name not in names]
    assert [op.name for op in graph.ops if op.name in names] == [op.name for op in kept]
    fused = [op for op in kept if isinstance(op, ops.AddLayerNorm)]
    assert {before[op.name].inputs[0] for op in fused} == {op.output for op in gone}
    assert {"add"} >= {op.operator for op in gone}


def check_integers(graph: Graph, made: Graph, model: str, head: str) -> None:
    real = {op.name for op in float_ops(made) if not isinstance(op, CONVERSIONS)}
    if model != "mobilebert":
        assert not float_ops(made)
        assert not any(t.dtype.is_float for n, t in made.tensors.items() if t.role is Role.ACTIVATION)
    else:  # the decoder's matrix is two tables side by side, and without a pooler the last norm's result leaves
        norms = no_norms(graph)
        rest = [op for op in made.ops if op.name in real and op.name not in norms]
        assert norms <= real
        assert [op.operator for op in rest] == {"none": ["select"], "pretraining": ["cat", "matmul", "add"]}.get(
            head, []
        )
        assert all(op.group.endswith(("pooler", "cls.predictions")) for op in rest), [op.group for op in rest]
    for op in made.ops:
        dtypes = [made.tensors[n].dtype for n in op.inputs]
        output = made.tensors[op.output].dtype
        if isinstance(op, ops.Linear):
            assert dtypes[0] in (DType.INT8, DType.UINT8)
            assert dtypes[1] in SMALL_INTEGERS
            assert dtypes[2:] in ([], [DType.INT32])
            assert output in (DType.INT8, DType.INT32)
        elif isinstance(op, ops.Softmax):
            assert (dtypes[0], output) == (DType.INT8, DType.UINT8)
        elif isinstance(op, ops.LayerNorm | ops.AddLayerNorm):
            assert dtypes[-1] is dtypes[-2]
            assert output is DType.INT8


def check_linear_only(graph: Graph, made: Graph) -> None:
    """What was real stays real but for the operands of linear layers, tables, and what is looked up in them."""
    changed = {
        op.name: op
        for op in made.ops
        if not isinstance(op, CONVERSIONS)
        and graph.tensors[op.output].dtype.is_float
        and not made.tensors[op.output].dtype.is_float
    }
    assert all(isinstance(op, ops.Embedding | ops.Free | ops.Copy) for op in changed.values())
    for op in made.ops:
        if isinstance(op, ops.Linear):
            assert [made.tensors[n].dtype for n in op.inputs] == [DType.INT8, DType.INT8, DType.INT32][: len(op.inputs)]
            assert made.tensors[op.output].dtype is DType.FLOAT32
    assert not any(isinstance(op, ops.AddLayerNorm) for op in made.ops)
    assert all(made.tensors[n].dtype is DType.FLOAT32 for n in made.outputs)


@pytest.mark.parametrize("spec", [FQ_BERT, I_BERT], ids=lambda s: s.name)
@pytest.mark.parametrize("head", ["sequence-classification", "question-answering", "token-classification"])
@pytest.mark.parametrize("model", shipped_names())
def test_logits_are_int32_sums(model: str, head: str, spec: QuantSpec) -> None:
    graph = quantize(trace(model, seq=8, head=head), spec)
    assert {graph.tensors[n].dtype for n in graph.outputs} == {DType.INT32}
    classes = output_classes(graph)
    assert {classes[steps_of(graph)[n]] for n in graph.outputs} == {"sums"}


def test_biases_are_int32_and_their_number_is_that_of_the_linear_layers() -> None:
    graph = trace("bert-tiny", seq=8, head="sequence-classification")
    made = quantize(graph, FQ_BERT)
    biases = [n for n, kind in weight_classes(graph).items() if kind == "biases"]
    assert len(biases) == 2 * 6 + 2
    assert {made.tensors[n].dtype for n in biases} == {DType.INT32}


# --- sums before norms ------------------------------------------------------------------------------------------------


def test_sums_that_only_a_norm_reads_are_fused_with_it() -> None:
    made = quantize(trace("bert-tiny", seq=8), FQ_BERT)
    fused = [op for op in made.ops if isinstance(op, ops.AddLayerNorm)]
    assert [op.name for op in fused] == [
        "embeddings.LayerNorm.layer_norm",
        *(f"encoder.layer.{i}.{part}.LayerNorm.layer_norm" for i in (0, 1) for part in ("attention.output", "output")),
    ]
    assert fused[1].inputs[:2] == (f"{LAYER}.attention.output.dropout.dropout", "embeddings.dropout.dropout")
    sums = [op.name for op in made.ops if isinstance(op, ops.Add) and made.tensors[op.output].dtype is DType.INT8]
    assert sums == ["embeddings.add"]  # of three: the norm reads the sum of it and the last


def test_sums_that_others_read_are_not_fused() -> None:
    """One sum is read by its norm and a linear layer, one twice by norms, one is a result itself."""
    both = Recipe(6, 2, 5, (("start",), ("linear", 0), ("add", 0, 1), ("norm", 2), ("linear", 2), ("add", 3, 4)))
    made = quantize(both(1, 4), FQ_BERT)
    assert not any(isinstance(op, ops.AddLayerNorm) for op in made.ops)
    twice = Recipe(6, 2, 5, (("start",), ("linear", 0), ("add", 0, 1), ("norm", 2), ("norm", 2), ("add", 3, 4)))
    assert not any(isinstance(op, ops.AddLayerNorm) for op in quantize(twice(1, 4), FQ_BERT).ops)
    once = Recipe(6, 2, 5, (("start",), ("linear", 0), ("add", 0, 1), ("norm", 2)))
    graph = once(1, 4)
    assert sum(isinstance(op, ops.AddLayerNorm) for op in quantize(graph, FQ_BERT).ops) == 1
    leaves = replace(graph, outputs=("2.add.add.0", *graph.outputs))
    assert not any(isinstance(op, ops.AddLayerNorm) for op in quantize(leaves, FQ_BERT).ops)
    a_number = [replace(op, inputs=op.inputs[:1], other=1.0) if op.name == "2.add.add.0" else op for op in graph.ops]
    plain = quantize(replace(graph, ops=tuple(a_number)), FQ_BERT)
    assert not any(isinstance(op, ops.AddLayerNorm) for op in plain.ops)


def test_the_fused_op_is_the_norm_of_the_sum() -> None:
    rng = np.random.default_rng(0)
    x, y, gamma, beta = (rng.normal(size=shape) for shape in ((2, 3, 6), (1, 3, 6), (6,), (6,)))
    names = {"name": "n", "output": "o", "group": "g", "eps": 1e-5}
    fused = ops.AddLayerNorm(inputs=("x", "y", "gamma", "beta"), **names).execute(x, y, gamma, beta)
    np.testing.assert_allclose(fused, ops.LayerNorm(inputs=("x", "gamma", "beta"), **names).execute(x + y, gamma, beta))


@pytest.mark.parametrize("kind", [ops.Quantize, ops.Dequantize])
def test_conversions_need_steps(kind: type[Op]) -> None:
    with pytest.raises(SpecError, match="q: params: got 'arrays alone', want quantized Params"):
        kind(name="q", inputs=("x",), output="y", group="g").execute(np.zeros(3))


def test_fewer_sums_are_left_to_write() -> None:
    graph = trace("bert-base", seq=8)
    made = quantize(graph, FQ_BERT)
    assert sum(isinstance(op, ops.AddLayerNorm) for op in made.ops) == 25
    assert len(made.ops) == len(graph.ops) - 25


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Graph:
    return quantize(trace("bert-tiny", seq=8, head="sequence-classification"), I_BERT)


def test_every_small_integer_that_is_computed_has_a_step(tiny: Graph) -> None:
    steps, self_ = steps_of(tiny), f"bert.{LAYER}.attention.self"
    for op in tiny.ops:
        if tiny.tensors[op.output].dtype in (DType.INT8, DType.UINT8, DType.INT32):
            assert op.output in steps, op.name
    assert steps[f"{self_}.transpose"] == steps[f"{self_}.query.linear"] == f"{self_}.query.linear"
    assert steps["bert.embeddings.dropout.dropout"] == "bert.embeddings.LayerNorm.layer_norm"
    table = "bert.embeddings.word_embeddings"
    assert steps[f"{table}.embedding"] == f"{table}.weight"
    assert steps["classifier.linear"] == "classifier.linear"
    assert "bert.embeddings.expand.1" not in steps  # ids
    assert "bert.expand" not in steps  # a mask


def test_classes_of_results(tiny: Graph) -> None:
    classes, self_ = output_classes(tiny), f"bert.{LAYER}.attention.self"
    assert classes[f"{self_}.scores"] == "scores"
    assert classes[f"{self_}.softmax"] == "probabilities"
    assert classes[f"{self_}.context"] == classes[f"{self_}.query.linear"] == "activations"
    assert classes[f"bert.{LAYER}.intermediate.intermediate_act_fn.gelu"] == "activation_outputs"
    assert classes[f"bert.{LAYER}.output.LayerNorm.layer_norm"] == "activations"
    assert classes["bert.pooler.activation.tanh"] == "tanh"
    assert classes["classifier.linear"] == "sums"
    counts = {kind: list(classes.values()).count(kind) for kind in set(classes.values())}
    # a layer: query, key, value, context, output, norm, up, down, norm; then embeddings' sum and norm, and the pooler
    want = {"scores": 2, "probabilities": 2, "activation_outputs": 2, "tanh": 1, "sums": 1, "embeddings": 3}
    assert counts == {**want, "activations": 2 * 9 + 2 + 1}


def test_ranges_are_wanted_of_what_is_not_known(tiny: Graph) -> None:
    wanted = ranges_wanted(tiny)
    assert wanted == {
        n: kind
        for n, kind in output_classes(tiny).items()
        if kind not in ("probabilities", "tanh", "sums", "embeddings")
    }
    assert len(wanted) == 2 + 2 + 21


def test_ranges_of_linear_layers_alone_are_those_of_their_inputs() -> None:
    made = quantize(trace("bert-tiny", seq=8, head="sequence-classification"), W8A8)
    wanted = set(ranges_wanted(made))
    read = {op.inputs[0] for op in made.ops if isinstance(op, ops.Linear)}
    before = {op.output: op.inputs[0] for op in made.ops if isinstance(op, ops.Quantize)}
    known = {"bert.pooler.activation.tanh"}
    found = {steps_of(made)[n] for n in read}
    assert found <= wanted | known | set(output_classes(made))
    assert wanted <= found
    assert all(steps_of(made)[n] == x for n, x in before.items())


# --- ablations --------------------------------------------------------------------------------------------------------

ABLATIONS = {
    "softmax": {"softmax": "float"},
    "layer norm": {"layer_norm": "float", "norm_bits": 32},
    "gelu": {"gelu": "float"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_one_operator_in_float_is_put_between_conversions(name: str) -> None:
    graph = trace("bert-tiny", seq=8, head="sequence-classification")
    made = quantize(graph, replace(FQ_BERT, name="mine", **ABLATIONS[name]))
    kinds = {"softmax": ops.Softmax, "layer norm": ops.LayerNorm | ops.AddLayerNorm, "gelu": ops.Gelu}
    if name == "gelu":
        kinds["gelu"] = ops.Gelu | ops.Tanh
    floats = [op for op in float_ops(made) if not isinstance(op, CONVERSIONS)]
    assert floats
    assert all(isinstance(op, kinds[name]) for op in floats)
    makers = {op.output: op for op in made.ops}
    for op in floats:
        assert all(isinstance(makers[n], ops.Dequantize) for n in op.inputs if n in makers and "expand" not in n)
        assert all(isinstance(r, ops.Quantize) for r in made.ops if op.output in r.inputs)


def test_float_tables_are_quantized_before_the_first_linear_layer() -> None:
    fp32 = SPECS["fp32"].embeddings
    made = quantize(trace("bert-tiny", seq=8), replace(FQ_BERT, name="mine", embeddings=fp32))
    names = [op.name for op in float_ops(made)]
    assert all(name.startswith("embeddings") for name in names)
    assert names[-1].endswith(".quantize")
    assert made.tensors["embeddings.word_embeddings.weight"].dtype is DType.FLOAT32


# --- refused and priced -----------------------------------------------------------------------------------------------


def test_a_graph_that_is_quantized_is_refused() -> None:
    made = quantize(trace("bert-tiny", seq=8), FQ_BERT)
    with pytest.raises(SpecError, match="precision of the graph: got 'fq-bert', want fp32, to go to i-bert"):
        quantize(made, I_BERT)
    with pytest.raises(SpecError, match="precision of the graph: got 'fq-bert', want fp32, to go to int8"):
        with_precision(made, "int8")
    with pytest.raises(SpecError, match="precision of the graph: got 'fp16', want fp32, to go to fq-bert"):
        quantize(with_precision(trace("bert-tiny", seq=8), "fp16"), FQ_BERT)
    assert quantize(made, FQ_BERT) is made


@pytest.mark.parametrize("precision", ["fq-bert", "i-bert", "w6a8", "w2a8"])
@pytest.mark.parametrize("detail", ["analytic", "events"])
def test_integer_graphs_are_priced(precision: str, detail: str) -> None:
    graph, platform = trace("bert-tiny", seq=16), accelsim.platform("systolic-32x32")
    report = accelsim.simulate(graph, platform, precision=precision, detail=detail)
    assert (report.precision, report.total.macs) == (precision, graph.macs)
    linear = [op.name for op in graph.ops if isinstance(op, ops.Linear) and op.layer >= 0]
    weights = 2 * (4 * 128 * 128 + 2 * 128 * 512)
    moved = dict(zip(report.columns["op"], report.columns["dram_bytes"], strict=True))
    bits = {"fq-bert": 4, "w2a8": 2}.get(precision, 8)
    eight = accelsim.simulate(graph, platform, precision="i-bert", detail=detail)
    saved = sum(dict(zip(eight.columns["op"], eight.columns["dram_bytes"], strict=True))[n] - moved[n] for n in linear)
    assert saved == weights * (8 - bits) // 8


@pytest.mark.parametrize("precision", ["w8a8", "fp32"])
def test_an_integer_array_refuses_graphs_with_real_products(precision: str) -> None:
    with pytest.raises(Infeasible, match=r"systolic-32x32: .*: width of a product: needs float 32 x 32 bits") as caught:
        accelsim.simulate(trace("bert-tiny", seq=16), accelsim.platform("systolic-32x32"), precision=precision)
    assert "\n" not in str(caught.value)


# --- drawn graphs -----------------------------------------------------------------------------------------------------


@given(encoders(), st.sampled_from(list(SPECS)), st.integers(1, 2), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_any_order_of_ops(recipe: Recipe, name: str, batch: int, seq: int) -> None:
    """Legal; the same products; every op on integers has an integer meaning; steps for all that is computed."""
    graph = recipe(batch, seq)
    made = quantize(graph, SPECS[name])
    assert (made.macs, made.parameters) == (graph.macs, graph.parameters)
    check_names(graph, made)
    steps, classes = steps_of(made), output_classes(made)
    for op in made.ops:
        numbers = [n for n in (*op.inputs, op.output) if n in steps]
        if numbers and not isinstance(op, ops.Free | ops.Copy | ops.Embedding):
            assert type(op) in MEANINGS
            kinds = {made.tensors[n].dtype.is_float for n in (*op.inputs, op.output) if n not in graph.tensors or
                     graph.tensors[n].dtype.is_float}  # fmt: skip
            mixed = isinstance(op, CONVERSIONS) or (name == "w8a8" and isinstance(op, ops.Linear))
            assert len(kinds) == 1 or mixed, op.name
        assert not any(made.tensors[n].dtype is DType.INT32 and n in steps for n in op.inputs) or isinstance(
            op, ops.Free | ops.Copy
        )
    assert set(steps.values()) == set(classes)
    if SPECS[name] in INTEGERS and not any(kind == "mul" for kind, *_ in recipe.steps):
        real = [op for op in float_ops(made) if not isinstance(op, CONVERSIONS)]
        assert {op.operator for op in real} <= {"cat"}  # of what has several steps


def test_drawn_graphs_are_what_they_are_called() -> None:
    """A BERT of the drawing kind and the traced one have the same operators in a layer."""
    drawn = quantize(bert(1, 8, 2, 16)(1, 4), FQ_BERT)
    traced = quantize(trace("bert-tiny", seq=8), FQ_BERT)

    def computed(graph: Graph) -> list[str]:
        steps = steps_of(graph)
        return [op.operator for op in graph.ops if op.output in steps and not isinstance(op, ops.Free | ops.Copy)]

    layer = computed(traced)[computed(traced).index("linear") :][:11]
    assert layer == computed(drawn)[computed(drawn).index("linear") :][:11]
