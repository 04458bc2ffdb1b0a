"""Is a training graph what torch runs? Gradients equal autograd's, FLOPs torch's counter, GEMMs the published list."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")
import torch
from accelsim_models import zoo
from torch.utils.flop_counter import FlopCounterMode

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.execute import execute
from accelsim.graph import PHASES, Graph, Op, Role
from accelsim.joint import GRADIENT, check_backward
from accelsim.trace import parameters, trace
from accelsim.work import Work, WorkKind, packed_bytes
from tests.encoders import BATCH, SEQ, arrays, tiny

TOLERANCE = 1e-4  # float32 in another order of summation; each wrong graph below is further away
HEADED = "AutoModelForMaskedLM"


def labelled(module: Any, masked: int | None = None) -> dict[str, np.ndarray]:
    """Ids, mask and random labels; one label in each sequence is ignored."""
    random = np.random.default_rng(1)
    found = dict(arrays())
    for name, shape in zoo.labels(module, SEQ, BATCH, masked).items():
        high = SEQ if "positions" in name else 50 if module.config.model_type and shape != (BATCH,) else 2
        found[name] = random.integers(0, high, shape)
    if masked is None and "labels" in found and found["labels"].ndim == 2:
        found["labels"][:, 2] = -100
    return found


def without_dropout(module: Any) -> Any:
    """The module with dropout at probability 0, in training mode."""
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, float) and "dropout" in name:
                setattr(part, name, 0.0)
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module.train()


def torch_gradients(module: Any, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Loss and gradients as autograd gives them."""
    module.set_attn_implementation("eager")
    module.zero_grad()
    loss = module(**{k: torch.from_numpy(v) for k, v in given.items()})[0]
    loss.backward()
    found = {GRADIENT + n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().numpy(), **found}


def error(graph: Graph, params: dict[str, np.ndarray], given: dict[str, np.ndarray], theirs: Any) -> float:
    """Largest difference between graph and autograd, relative to the largest gradient of each parameter."""
    ours = execute(graph, params, given)
    ours["loss"] = ours.pop(graph.outputs[0])
    assert set(ours) == set(theirs)
    floor = 1e-3 * max(float(np.abs(v).max()) for v in theirs.values())
    return max(float(np.abs(ours[n] - v).max() / max(np.abs(v).max(), floor)) for n, v in theirs.items())


def training_graph(module: Any, **options: Any) -> Graph:
    return trace(module, seq=SEQ, batch=BATCH, training=True, **options)


# --- autograd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "albert", "mobilebert"])
@pytest.mark.parametrize("auto", ["AutoModelForPreTraining", "AutoModelForQuestionAnswering"])
def test_gradients_equal_autograd(family: str, auto: str) -> None:
    module = without_dropout(tiny(family, auto))
    given = labelled(module)
    graph = training_graph(module)
    assert error(graph, parameters(module), given, torch_gradients(module, given)) < TOLERANCE


def test_gradients_of_labels_for_whole_sequences_and_for_tokens() -> None:
    for auto in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
        module = without_dropout(tiny("bert", auto))
        given = labelled(module)
        given["labels"] = np.minimum(given["labels"], 1)
        theirs = torch_gradients(module, given)
        assert error(training_graph(module), parameters(module), given, theirs) < TOLERANCE


def test_gradients_equal_autograd_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny("bert", HEADED).train()
    given = labelled(module)
    graph = training_graph(module)
    masks = [op.execute() for op in graph.ops if isinstance(op, ops.Bernoulli)]
    assert len(masks) == 1 + 3 * 2
    assert 0.8 < np.mean(np.concatenate([m.ravel() for m in masks])) < 0.97
    left = iter(masks)

    def dropout(x: torch.Tensor, p: float, training: bool = True, inplace: bool = False) -> torch.Tensor:
        assert p == 0.1
        assert training
        return x * torch.from_numpy(next(left)) / (1 - p)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    theirs = torch_gradients(module, given)
    assert next(left, None) is None
    assert error(graph, parameters(module), given, theirs) < TOLERANCE


def test_gathered_head_equals_autograd_on_the_masked_positions() -> None:
    module = without_dropout(tiny("bert", "AutoModelForPreTraining"))
    graph = training_graph(module, masked=3)
    positions = np.array([0, 4, 8, SEQ + 1, SEQ + 2, SEQ + 5])
    gathered = labelled(module, masked=3)
    dense = {**gathered, "labels": np.full(BATCH * SEQ, -100)}
    dense["labels"][positions] = gathered["labels"]
    dense["labels"] = dense["labels"].reshape(BATCH, SEQ)
    theirs = torch_gradients(module, dense)
    assert error(graph, parameters(module), {**gathered, "masked_positions": positions}, theirs) < TOLERANCE


def _no_mask(op: Op) -> Op:
    return replace(op, scale=0.5) if isinstance(op, ops.NativeDropout) else op


def _wrong_softmax(op: Op) -> Op:
    return replace(op, inputs=op.inputs[::-1]) if isinstance(op, ops.SoftmaxBackward) else op


def _wrong_gelu(op: Op) -> Op:
    return replace(op, approximate="tanh") if isinstance(op, ops.GeluBackward) else op


def _wrong_stats(op: Op) -> Op:
    return replace(op, eps=0.1) if isinstance(op, ops.LayerNormStats) else op


def _wrong_padding(op: Op) -> Op:
    return replace(op, padding_idx=-1) if isinstance(op, ops.EmbeddingBackward) else op


def _residual_lost(op: Op) -> Op:
    wrong = op.phase == "backward_data" and op.operator == "add" and op.layer == 1
    return replace(op, inputs=op.inputs[:1] * 2) if wrong else op


def _loss_wrong(op: Op) -> Op:
    return replace(op, inputs=op.inputs[:1] * 2) if isinstance(op, ops.LogSoftmaxBackward) else op


@pytest.mark.parametrize(
    "mutate", [_no_mask, _wrong_softmax, _wrong_gelu, _wrong_stats, _wrong_padding, _residual_lost, _loss_wrong]
)
def test_a_wrong_graph_is_noticed(mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny("bert", HEADED).train()
    given = labelled(module)
    given["input_ids"][0, 0] = module.config.pad_token_id
    graph = training_graph(module)
    left = iter([op.execute() for op in graph.ops if isinstance(op, ops.Bernoulli)])
    scaled = lambda x, p, *_, **__: x * torch.from_numpy(next(left)) / (1 - p)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "dropout", scaled)
    theirs = torch_gradients(module, given)
    wrong = replace(graph, ops=tuple(mutate(op) for op in graph.ops))
    assert wrong != graph
    assert error(graph, parameters(module), given, theirs) < TOLERANCE
    assert error(wrong, parameters(module), given, theirs) > 3 * TOLERANCE


# --- each operator --------------------------------------------------------------------------------------------------


class Lossy(torch.nn.Module):
    """One function of x (batch, seq, 6) and ids, summed up as a loss."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.table = torch.nn.Embedding(50, 6)
        self.norm = torch.nn.LayerNorm(6)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return (self.function(self, self.table(input_ids), input_ids, attention_mask) * 0.3).sum()


_functional = torch.nn.functional
DERIVATIVES: dict[str, tuple[Any, set[str]]] = {
    "gelu": (lambda s, x, i, m: _functional.gelu(x), {"gelu_backward"}),
    "gelu tanh": (lambda s, x, i, m: _functional.gelu(x, approximate="tanh"), {"gelu_backward"}),
    "tanh": (lambda s, x, i, m: x.tanh(), {"tanh_backward"}),
    "sigmoid": (lambda s, x, i, m: x.sigmoid(), {"sigmoid_backward"}),
    "relu": (lambda s, x, i, m: x.relu(), {"threshold_backward"}),
    "softmax": (lambda s, x, i, m: x.softmax(-1) * x, {"softmax_backward"}),
    "log softmax": (lambda s, x, i, m: x.log_softmax(-1) * x, {"log_softmax", "log_softmax_backward"}),
    "layer norm": (
        lambda s, x, i, m: s.norm(x) * x,
        {"layer_norm_stats", "layer_norm_backward", "layer_norm_backward_weight"},
    ),
    "layer norm without weight": (
        lambda s, x, i, m: _functional.layer_norm(x, (6,)) * x,
        {"layer_norm_stats", "layer_norm_backward"},
    ),
    "cross entropy": (
        lambda s, x, i, m: _functional.cross_entropy(x.flatten(0, 1), m.flatten()),
        {"nll_loss", "nll_loss_backward", "log_softmax", "log_softmax_backward"},
    ),
    "index": (lambda s, x, i, m: x.flatten(0, 1)[m.flatten()] * x.flatten(0, 1), {"index_backward"}),
    "embedding": (lambda s, x, i, m: x, {"embedding_backward"}),
    "dropout that drops nothing": (lambda s, x, i, m: _functional.dropout(x, 0.0), set()),
    "select and slice": (lambda s, x, i, m: x[:, 1] * x[:, 2:5, :3].sum(), set()),
    "products": (lambda s, x, i, m: x @ x.transpose(-1, -2) @ x, set()),
    "attention": (lambda s, x, i, m: _functional.scaled_dot_product_attention(x, x, x), {"softmax_backward"}),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative_equals_autograd(name: str) -> None:
    function, operators = DERIVATIVES[name]
    module = Lossy(function)
    given = arrays()
    graph = training_graph(module)
    assert operators <= {op.operator for op in graph.ops}
    loss = module(**{k: torch.from_numpy(v) for k, v in given.items()})
    loss.backward()
    found = {GRADIENT + n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}
    theirs = {"loss": loss.detach().numpy(), **found}
    assert error(graph, parameters(module), given, theirs) < TOLERANCE


def test_every_operator_of_training_is_tested_against_autograd() -> None:
    tested = set.union(*(operators for _, operators in DERIVATIVES.values())) | {"bernoulli", "native_dropout"}
    elsewhere = {"update"}  # of the optimizers: test_optimizers.py
    assert {c.operator for c in Op.vocabulary.values() if c.__module__ == "accelsim.ops.training"} == tested | elsewhere


# --- the published workload -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    from importlib import resources

    text = (resources.files("accelsim_experiments") / "published" / "demystifying_bert.json").read_text()
    found: dict[str, Any] = json.loads(text)["hardware_independent"]
    assert found["status"].startswith("derived")
    return found


CONFIGS = {"n128 B32": (128, 32, 20), "n128 B4": (128, 4, 20), "n512 B4": (512, 4, 80)}
"""Phase 1 and 2 of BERT's pre-training: seq, batch, predictions in a sequence (Devlin et al., arXiv:1810.04805)."""


@pytest.mark.parametrize("name", CONFIGS)
def test_bert_large_equals_the_published_workload(name: str, published: dict[str, Any]) -> None:
    seq, batch, _ = CONFIGS[name]
    graph = trace("bert-large", seq=seq, batch=batch, training=True)
    check_products(name, graph, published)
    check_flops(name, graph, published)
    check_parameters(graph, published)


def gemms(graph: Graph, module: str, phases: tuple[str, ...]) -> Counter[tuple[int, int, int, int]]:
    """(smaller of m and n, larger, k, count) of the products of a module of layer 5."""
    prefix = f"bert.encoder.layer.5.{module}"
    return Counter(
        (min(w.m, w.n), max(w.m, w.n), w.k, w.count)
        for op, works in graph.works
        for w in works
        if w.kind is WorkKind.GEMM and op.group == prefix and op.phase in phases
    )


def check_products(name: str, graph: Graph, published: dict[str, Any]) -> None:
    """The products of a layer are those of the list, in every phase."""
    seq, batch, _ = CONFIGS[name]
    listed = published["gemm_list_MxNxK_T_is_seq_times_batch"]
    size = {"d": 1024, "f": 4096, "n": seq, "d/h": 64, "T": seq * batch}

    def shapes(text: str) -> list[tuple[int, int, int]]:
        found = []
        for part in text.replace(", twice (dQ, dK)", "").replace(" (dP)", "").replace(" (dV)", "").split(" and "):
            m, n, k = (size[letter] for letter in part.split(" x "))
            found += [(min(m, n), max(m, n), k)] * (2 if "twice" in text else 1)
        return found

    linear = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    for module, row in (
        *((m, "linear_qkvo_x4") for m in linear), ("intermediate.dense", "ffn1"), ("output.dense", "ffn2"),
    ):  # fmt: skip
        for phase, column in (
            ("forward", "forward"), ("backward_data", "grad_input"), ("backward_weight", "grad_weight"),
        ):  # fmt: skip
            want = Counter((*shape, 1) for shape in shapes(listed[row][column]))
            assert gemms(graph, module, (phase,)) == want, (module, phase)
    both = (listed["scores_batch_Bh"], listed["context_batch_Bh"])
    for phase, column in (("forward", "forward"), ("backward_data", "grad_input")):
        want = Counter((*shape, batch * 16) for row in both for shape in shapes(row[column]))
        assert gemms(graph, "attention.self", (phase,)) == want
    assert not gemms(graph, "attention.self", ("backward_weight",))


def intensity(work: Work) -> float:
    """FLOPs of a product for each byte of its two operands and result, bias left out."""
    parts = ((work.m * work.k, work.a_bits), (work.k * work.n, work.w_bits), (work.m * work.n, work.o_bits))
    return 2 * work.m * work.k * work.n / sum(packed_bytes(elements, bits) for elements, bits in parts)


def check_flops(name: str, graph: Graph, published: dict[str, Any]) -> None:
    """Intensity of every product, shares of the layers' FLOPs, total with a dense and a gathered head."""
    row = next(r for r in published["intensity_fp32_op_per_byte"] if r["config"] == name)
    total, layers, shares = 0, 0, Counter()
    for op, works in graph.works:
        for w in (w for w in works if w.kind is WorkKind.GEMM):
            total += 2 * w.macs
            if op.layer >= 0:
                attention = op.group.endswith("attention.self")
                kind = "attention" if attention else "linear" if ".attention." in op.group else "ffn"
                assert round(intensity(w), 1) == row[kind], op.name
                layers += 2 * w.macs
                shares[kind] += 2 * w.macs
    assert [round(100 * shares[k] / layers, 1) for k in ("linear", "ffn", "attention")] == row["flop_share_percent"]
    digits = 3 if row["tflop_per_iteration"]["dense_mlm_head"] < 2 else 2
    assert round(total / 1e12, digits) == row["tflop_per_iteration"]["dense_mlm_head"]
    seq, _, masked = CONFIGS[name]
    head = sum(2 * w.macs for op, ws in graph.works for w in ws if op.group.startswith("cls.predictions"))
    gathered = total - head + head * masked // seq
    assert round(gathered / 1e12, digits) == row["tflop_per_iteration"]["gathered_mlm_head"]


def test_a_traced_gathered_head_has_the_published_flops(published: dict[str, Any]) -> None:
    seq, batch, masked = CONFIGS["n128 B4"]
    graph = trace("bert-large", seq=seq, batch=batch, training=True, masked=masked)
    row = next(r for r in published["intensity_fp32_op_per_byte"] if r["config"] == "n128 B4")
    assert round(2 * graph.macs / 1e12, 3) == row["tflop_per_iteration"]["gathered_mlm_head"]


def check_parameters(graph: Graph, published: dict[str, Any]) -> None:
    """Parameters of each part; the decoder's matrix is the embedding's."""
    want = published["parameters"]
    weights = {n: t.elements for n, t in graph.tensors.items() if t.role is Role.WEIGHT}
    assert graph.parameters == want["total"]
    parts = {
        "embeddings": "bert.embeddings.", "per_layer": "bert.encoder.layer.5.", "pooler": "bert.pooler.",
        "mlm_nsp_head_tied": "cls.",
    }  # fmt: skip
    for key, prefix in parts.items():
        assert sum(v for n, v in weights.items() if n.startswith(prefix)) == want[key], key


# --- FLOPs and phases -----------------------------------------------------------------------------------------------


def by_phase(graph: Graph) -> Counter[str]:
    return Counter({phase: sum(w.macs for op, ws in graph.works if op.phase == phase for w in ws) for phase in PHASES})


@pytest.mark.parametrize("name", ["bert-base", "distilbert", "albert-base", "roberta-base", "minilm-l6"])
def test_flops_equal_the_counter_of_torch(name: str) -> None:
    module = zoo.build(name, "pretraining").train()
    shapes = {"input_ids": (2, 16), **zoo.labels(module, 16, 2)}
    module.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        given = {k: torch.ones(s, dtype=torch.long, device="meta") for k, s in shapes.items()}
        module(**given)[0].backward()
    graph = trace(name, seq=16, batch=2, training=True)
    assert 2 * graph.macs == counter.get_total_flops()
    macs = by_phase(graph)
    assert macs["backward_data"] + macs["backward_weight"] == 2 * macs["forward"]
    assert graph.parameters == sum(p.numel() for p in module.parameters())


@st.composite
def berts(draw: st.DrawFn) -> dict[str, int]:
    heads = draw(st.integers(1, 3))
    return {
        "num_hidden_layers": draw(st.integers(1, 2)),
        "hidden_size": heads * draw(st.integers(2, 6)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(2, 30)),
        "vocab_size": draw(st.integers(5, 60)),
        "max_position_embeddings": 16,
    }


@given(config=berts(), seq=st.integers(2, 16), batch=st.integers(1, 3))
@settings(max_examples=6, deadline=None)
def test_any_bert_takes_three_times_the_products_of_forward(config: dict[str, int], seq: int, batch: int) -> None:
    from transformers import BertConfig, BertForMaskedLM

    with torch.device("meta"):
        module = BertForMaskedLM(BertConfig(**config))
    graph = trace(module, seq=seq, batch=batch, training=True)
    layers, d, _, f, vocabulary = list(config.values())[:5]
    t = seq * batch
    layer = t * (4 * d * d + 2 * d * f) + 2 * t * seq * d
    assert graph.macs == 3 * (layers * layer + t * (d * d + d * vocabulary))


def test_phases_and_module_paths() -> None:
    graph = training_graph(tiny("bert", HEADED))
    named = {op.name: op for op in graph.ops}
    base = "bert.encoder.layer.1"
    for name, phase in {
        f"{base}.intermediate.dense.linear": "forward",
        f"{base}.intermediate.dense.grad_input": "backward_data",
        f"{base}.intermediate.dense.grad_weight": "backward_weight",
        f"{base}.intermediate.dense.sum": "backward_weight",
        f"{base}.intermediate.intermediate_act_fn.gelu_backward": "backward_data",
        f"{base}.attention.self.softmax_backward": "backward_data",
        f"{base}.output.LayerNorm.layer_norm_backward": "backward_data",
        f"{base}.output.LayerNorm.grad_weight": "backward_weight",
        f"{base}.output.LayerNorm.grad_bias": "backward_weight",
    }.items():
        assert (named[name].phase, named[name].layer, name.startswith(named[name].group)) == (phase, 1, True)
    gradients = [n for n, t in graph.tensors.items() if t.role is Role.GRAD]
    assert list(graph.outputs[1:]) == [GRADIENT + n for n, t in graph.tensors.items() if t.role is Role.WEIGHT]
    assert set(gradients) == set(graph.outputs[1:])
    order = [op.phase == "forward" for op in graph.ops]
    assert order == sorted(order, reverse=True)
    assert set(op.layer for op in graph.ops if op.phase == "backward_weight") == {-1, 0, 1}


def test_a_chain_that_leads_to_one_parameter_is_still_backward_data() -> None:
    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(50, 6)
            self.dense = torch.nn.Linear(6, 5, bias=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return _functional.gelu(self.dense(_functional.gelu(self.table(input_ids)))).sum()

    named = {op.name: op.phase for op in training_graph(Chain()).ops}
    assert named["dense.grad_input"] == "backward_data"
    assert named["model.gelu_backward.1"] == "backward_data"
    assert named["dense.grad_weight"] == named["table.embedding_backward"] == "backward_weight"


def test_layers_that_share_weights_add_up_their_gradients() -> None:
    module = without_dropout(tiny("albert", HEADED, config={"num_hidden_layers": 3}))
    given = labelled(module)
    graph = training_graph(module)
    assert error(graph, parameters(module), given, torch_gradients(module, given)) < TOLERANCE
    assert {op.layer for op in graph.ops if op.operator == "softmax_backward"} == {0, 1, 2}


def test_tied_weights_have_one_gradient() -> None:
    graph = training_graph(tiny("bert", "AutoModelForPreTraining"))
    name = "bert.embeddings.word_embeddings.weight"
    (total,) = [op for op in graph.ops if op.output == GRADIENT + name]
    assert (total.operator, total.phase, len(total.inputs)) == ("add", "backward_weight", 2)


def test_the_module_is_left_as_it_was() -> None:
    module = tiny("bert", HEADED)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    attention = module.config._attn_implementation
    training_graph(module, masked=2)
    assert not module.training
    assert module.config._attn_implementation == attention == "sdpa"
    assert "forward" not in vars(module)
    assert all(torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_dropout_with_probability_0_is_no_op() -> None:
    graph = training_graph(without_dropout(tiny("bert", HEADED)))
    assert not [op for op in graph.ops if "dropout" in op.operator or op.operator == "bernoulli"]
    copies = [op for op in graph.ops if op.operator == "clone"]
    assert len(copies) == 2 * (4 + 4)  # q, k, v and the context in and out of heads, forward and backward


def test_the_gathered_head_computes_masked_positions_only() -> None:
    dense, gathered = trace("bert-tiny", seq=32, training=True), trace("bert-tiny", seq=32, training=True, masked=5)

    def rows(graph: Graph) -> set[int]:
        return {w.m for op, ws in graph.works for w in ws if op.name == "cls.predictions.decoder.linear"}

    assert (rows(dense), rows(gathered)) == ({32}, {5})
    assert gathered.tensors["masked_positions"].shape == (5,)
    assert gathered.tensors["labels"].shape == (5,)


def test_what_comes_with_an_op_is_one_kernel() -> None:
    graph = training_graph(tiny("bert", HEADED))
    works = {op.name: work for op, (work, *_) in graph.works}
    base, x = "bert.encoder.layer.0.output", BATCH * SEQ * 24 * 4
    assert works[f"{base}.dropout.dropout_mask"].is_free
    dropped = works[f"{base}.dropout.dropout"]
    assert (dropped.in_bytes, dropped.out_bytes) == (x, x + BATCH * SEQ * 24)
    norm = works[f"{base}.LayerNorm.stats"]
    assert works[f"{base}.LayerNorm.layer_norm"].is_free
    assert (norm.in_bytes, norm.out_bytes, norm.passes) == (x + 2 * 24 * 4, x + BATCH * SEQ * 2 * 4, 3)
    assert norm.flops == 7 * BATCH * SEQ * 24
    both = works[f"{base}.LayerNorm.grad_bias"]
    assert (both.in_bytes, both.out_bytes) == (2 * x + BATCH * SEQ * 2 * 4, 2 * 24 * 4)


# --- no weights, no forward-only graphs -----------------------------------------------------------------------------


def test_bert_large_is_traced_without_weights_in_15_seconds() -> None:
    code = (
        "import resource, time, torch, transformers; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "before, start = peak(), time.process_time(); from accelsim import trace;"
        "graph = trace('bert-large', seq=128, batch=32, training=True);"
        "assert graph.parameters == 336226108, graph.parameters;"
        "print(peak() - before, time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mebibytes, seconds = map(float, done.stdout.split())
    assert mebibytes < 400
    assert seconds < 15


def test_a_graph_without_backward_is_refused() -> None:
    """On tensors of the meta device torch's joint tracer gives forward alone, and says nothing."""
    from torch._functorch.aot_autograd import aot_export_joint_with_descriptors

    with contextlib.ExitStack() as stack, torch.device("meta"):
        module = Lossy(lambda s, x, i, m: _functional.cross_entropy(x.flatten(0, 1), i.flatten()))
        given = torch.ones((2, 9), dtype=torch.long)
        with torch.no_grad():
            joint = aot_export_joint_with_descriptors(stack, module, (given, given))
    with pytest.raises(SpecError, match="0 backward operators"):
        check_backward(joint.graph_module.graph, "Lossy")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda s, x, i, m: x.detach(), "backward"),
        (lambda s, x, i, m: i.float(), "backward"),
    ],
)
def test_a_loss_that_depends_on_no_parameter_is_refused(function: Any, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        training_graph(Lossy(function))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"head": "none"}, "one with a loss"),
        ({"head": "pretrain"}, "nearest: pretraining"),
        ({"source": "shipped"}, "auto or torch for training"),
        ({"masked": 0}, "masked: got 0"),
        ({"masked": 17}, "masked: got 17"),
        ({"masked": 3, "head": "question-answering"}, "masked-language-model head"),
        ({"seq": 513}, "512"),
        ({"training": False, "masked": 3}, "training=True"),
        ({"training": False, "optimizer": "lamb"}, "training=True"),
    ],
)
def test_bad_input_is_one_clear_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        trace("bert-tiny", **{"seq": 16, "training": True, **options})
    assert "\n" not in str(caught.value)


def test_a_module_without_a_loss_is_refused() -> None:
    with pytest.raises(SpecError, match="a loss: one real number"):
        training_graph(tiny("bert"))
    frozen = tiny("bert", HEADED)
    for p in frozen.parameters():
        p.requires_grad = False
    with pytest.raises(SpecError, match="at least one parameter"):
        training_graph(frozen)


def test_parameters_that_a_module_freezes_get_no_gradient() -> None:
    module = without_dropout(tiny("bert", HEADED))
    for p in module.bert.embeddings.parameters():
        p.requires_grad = False
    given = labelled(module)
    graph = training_graph(module)
    assert error(graph, parameters(module), given, torch_gradients(module, given)) < TOLERANCE
    frozen = {name for name, t in graph.tensors.items() if t.frozen}
    assert frozen == {name for name, p in module.named_parameters() if not p.requires_grad}
    assert not [op for op in graph.ops if op.group.startswith("bert.embeddings") and op.phase != "forward"]


def test_a_training_graph_survives_json(tmp_path: Any) -> None:
    graph = training_graph(tiny("bert", HEADED))
    graph.save(tmp_path / "graph.json")
    assert Graph.load(tmp_path / "graph.json") == graph


def test_a_phase_that_does_not_exist_is_refused() -> None:
    graph = trace("bert-tiny", seq=8)
    with pytest.raises(SpecError, match="nearest: forward"):
        replace(graph, ops=(replace(graph.ops[0], phase="foward"), *graph.ops[1:])).check()
