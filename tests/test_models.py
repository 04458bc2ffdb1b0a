"""Is the workload right? Parameters, FLOPs and bytes equal closed forms, torch's own counter and published tables."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")
import torch
from accelsim_experiments import fullstack
from accelsim_models import zoo
from torch.utils.flop_counter import FlopCounterMode

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import Graph
from accelsim.trace import trace
from accelsim.transforms.quantize import with_precision
from accelsim.work import WorkKind


def bert_parameters(
    layers: int, hidden: int, ffn: int, vocab: int = 30522, positions: int = 512, types: int = 2
) -> int:
    """Parameters of a BERT with pooler."""
    embeddings = (vocab + positions + types + 2) * hidden
    attention = 4 * (hidden * hidden + hidden) + 2 * hidden
    feed_forward = 2 * hidden * ffn + ffn + hidden + 2 * hidden
    return embeddings + layers * (attention + feed_forward) + hidden * hidden + hidden


def bert_macs(layers: int, hidden: int, ffn: int, seq: int, batch: int) -> int:
    """Multiply-accumulates of a BERT with pooler: projections, feed-forward, scores and context, pooler."""
    layer = seq * (4 * hidden * hidden + 2 * hidden * ffn) + 2 * seq * seq * hidden
    return batch * (layers * layer + hidden * hidden)


KNOWN_PARAMETERS = {
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "distilbert": 66_362_880,
    "roberta-base": 124_645_632,
    "albert-base": 11_683_584,
    "mobilebert": 24_581_888,
    # 128-wide embeddings, projection to 256, 12 layers, no pooler
    "electra-small": (30522 + 512 + 2 + 2) * 128 + 129 * 256 + 12 * (4 * 257 * 256 + 257 * 1024 + 1025 * 256 + 4 * 256),
}


@pytest.mark.parametrize("name", zoo.names())
def test_parameters_equal_the_module_and_the_closed_form(name: str) -> None:
    parameters = trace(name, seq=8).parameters
    assert parameters == sum(p.numel() for p in zoo.build(name).parameters())
    if name in KNOWN_PARAMETERS:
        assert parameters == KNOWN_PARAMETERS[name]
    spec = zoo.ZOO[name]
    if spec.family == "bert":
        c = spec.config
        assert parameters == bert_parameters(c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"])


@pytest.mark.parametrize("name", zoo.names())
def test_gemm_flops_equal_the_counter_of_torch(name: str) -> None:
    head = zoo.heads()[zoo.names().index(name) % len(zoo.heads())]
    module = zoo.build(name, head)
    ids = torch.ones((2, 24), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(input_ids=ids)  # a mask adds no GEMM, and its value is asked for on this device
    assert 2 * trace(name, seq=24, batch=2, head=head).macs == counter.get_total_flops()


def test_bert_base_takes_22_348_gflop() -> None:
    assert round(2 * trace("bert-base", seq=128).macs / 1e9, 3) == 22.348


@pytest.mark.parametrize("name", [n for n, spec in zoo.ZOO.items() if spec.family == "bert"])
@given(seq=st.integers(1, 512), batch=st.integers(1, 64))
@settings(max_examples=10, deadline=None)
def test_macs_of_the_zoo_equal_the_closed_form_at_every_size(name: str, seq: int, batch: int) -> None:
    c = zoo.ZOO[name].config
    want = bert_macs(c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"], seq, batch)
    assert trace(name, seq=seq, batch=batch).macs == want


@st.composite
def berts(draw: st.DrawFn) -> dict[str, int]:
    heads = draw(st.integers(1, 4))
    return {
        "num_hidden_layers": draw(st.integers(1, 2)),
        "hidden_size": heads * draw(st.integers(1, 9)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 50)),
        "vocab_size": draw(st.integers(5, 60)),
        "max_position_embeddings": 16,
    }


@given(config=berts(), seq=st.integers(2, 16), batch=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_any_bert_equals_the_closed_forms(config: dict[str, int], seq: int, batch: int) -> None:
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        module = BertModel(BertConfig(**config))
    graph = trace(module, seq=seq, batch=batch)
    layers, hidden, heads, ffn = list(config.values())[:4]
    assert graph.parameters == bert_parameters(layers, hidden, ffn, config["vocab_size"], 16)
    assert graph.macs == bert_macs(layers, hidden, ffn, seq, batch)
    assert layer_bytes(graph) == layers * bert_layer_bytes(hidden, heads, ffn, seq, batch)


def layer_bytes(graph: Graph) -> int:
    """Compulsory traffic of all ops of all encoder layers."""
    return sum(w.bytes for op in graph.ops if op.layer >= 0 for w in graph.work(op))


def bert_layer_bytes(hidden: int, heads: int, ffn: int, seq: int, batch: int) -> int:
    """Bytes of one layer in float32: every operand of every op once, with a mask of a byte for each pair of tokens.

    Several heads are copied side by side; a single head is there already.
    """
    tokens, pairs = batch * seq, batch * seq * seq
    weights = 4 * (hidden * hidden + hidden) + 2 * hidden * ffn + ffn + hidden + 4 * hidden
    projections = 4 * 2 * tokens * hidden
    attention = 2 * (2 * tokens * hidden) + 4 * heads * pairs + (2 * tokens * hidden if heads > 1 else 0)
    feed_forward = 2 * tokens * (hidden + ffn) + 2 * tokens * ffn
    residuals_and_norms = 2 * 3 * tokens * hidden + 2 * 2 * tokens * hidden
    return 4 * (weights + projections + attention + feed_forward + residuals_and_norms) + pairs


# --- the published table ------------------------------------------------------------------------------------------

TABLE = fullstack.PUBLISHED
FLOP_TOLERANCE = 0.005
MEMORY_TOLERANCE = 0.013
INTENSITY_TOLERANCE = 0.013


def encoder(seq: int) -> tuple[int, int]:
    """(FLOPs, memory operations) of the encoder layers of BERT-Base at 8 bit, counted as the paper does."""
    return fullstack.encoder_counts(fullstack.encoder_graph(seq))


@pytest.mark.parametrize("seq", [128, 512, 4096])
def test_bert_base_equals_the_published_table(seq: int) -> None:
    """Full Stack Optimization of Transformer Inference, arXiv:2302.14017."""
    flops, memory = encoder(seq)
    assert flops / 1e9 == pytest.approx(TABLE["gflop"][str(seq)], rel=FLOP_TOLERANCE)
    assert memory / 1e9 == pytest.approx(TABLE["memory_operations_g"][str(seq)], rel=MEMORY_TOLERANCE)
    assert flops / memory == pytest.approx(TABLE["intensity_ideal"][str(seq)], rel=INTENSITY_TOLERANCE)


def test_the_published_table_notices_a_forgotten_operator() -> None:
    """Without GELU, or with the (seq, seq) tensors left out, the tolerances above are exceeded."""
    graph = with_precision(trace("bert-base", seq=512), "int8")
    flops, memory = encoder(512)
    forgotten = sum(w.bytes for op in graph.ops if isinstance(op, ops.Gelu) for w in graph.work(op))
    assert abs((memory - forgotten) / 1e9 / TABLE["memory_operations_g"]["512"] - 1) > MEMORY_TOLERANCE
    scores = sum(w.flops for op in graph.ops if isinstance(op, ops.Matmul) for w in graph.work(op))
    assert abs((flops - scores) / 1e9 / TABLE["gflop"]["512"] - 1) > FLOP_TOLERANCE


# --- the zoo --------------------------------------------------------------------------------------------------------


def test_every_configuration_names_its_source_and_takes_effect() -> None:
    for name, spec in zoo.ZOO.items():
        assert spec.source
        config = zoo.config(name).to_dict()
        assert {k: config[k] for k in spec.config} == dict(spec.config)


@pytest.mark.parametrize("head", zoo.heads())
def test_modules_are_on_meta_in_eval_mode(head: str) -> None:
    module: Any = zoo.build("bert-tiny", head)
    assert not module.training
    assert {p.device.type for p in module.parameters()} == {"meta"}


def test_pretraining_heads() -> None:
    outputs = {
        "bert-tiny": [(1, 8, 30522), (1, 2)],
        "mobilebert": [(1, 8, 30522), (1, 2)],
        "albert-base": [(1, 8, 30000), (1, 2)],
        "distilbert": [(1, 8, 30522)],
        "roberta-base": [(1, 8, 50265)],
        "electra-small": [(1, 8)],
    }
    for name, shapes in outputs.items():
        graph = trace(name, seq=8, head="pretraining")
        assert [graph.tensors[t].shape for t in graph.outputs] == shapes


def test_longest_sequences() -> None:
    assert {zoo.max_seq(name) for name in zoo.names()} == {512}
    assert zoo.positions("roberta", 514, 1) == 512
    assert zoo.positions("bert", 512, 0) == 512


def test_unknown_names_are_refused() -> None:
    for name, nearest in (("bert-bse", "bert-base"), ("minilm", "minilm-l6"), ("BERT-Large", "bert-large")):
        with pytest.raises(SpecError, match=f"nearest: {nearest}"):
            zoo.build(name)
    with pytest.raises(SpecError, match="head"):
        zoo.build("bert-tiny", "nsp")


def test_no_gemm_is_forgotten() -> None:
    """Every linear layer of the module is one GEMM of the graph, plus two in each attention."""
    for name in ("bert-tiny", "mobilebert", "electra-small"):
        module = zoo.build(name)
        linears = sum(isinstance(m, torch.nn.Linear) for m in module.modules())
        graph = trace(name, seq=8)
        gemms = sum(w.kind is WorkKind.GEMM for op in graph.ops for w in graph.work(op))
        assert gemms == linears + 2 * sum(op.operator == "softmax" for op in graph.ops)
