"""Does a fused graph compute the same and move what one kernel moves?"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from accelsim import kernels, ops
from accelsim.errors import SpecError
from accelsim.execute import execute
from accelsim.graph import DType, Graph, Op, Role, Tensor
from accelsim.memory import peak_memory
from accelsim.platforms import platform
from accelsim.simulate import simulate
from accelsim.trace import parameters, trace
from accelsim.transforms.schedule import FUSIONS, fuse, fused
from accelsim.transforms.training import accumulate, checkpoint, freeze, passes, with_optimizer
from accelsim.work import Work, WorkKind
from tests.encoders import BATCH, SEQ, tiny
from tests.test_cli import run
from tests.test_iteration import HEADED, labelled, training_graph

T, D, F, H, N = BATCH * SEQ, 24, 40, 3, SEQ
LAYERS = 2


@pytest.fixture(scope="module")
def module() -> Any:
    return tiny("bert", HEADED).train()


@pytest.fixture(scope="module")
def graph(module: Any) -> Graph:
    return training_graph(module)


def launched(graph: Graph) -> list[tuple[Op, Work]]:
    return [(op, w) for op, ws in graph.works for w in ws if not w.is_free]


def moved(graph: Graph) -> int:
    return sum(w.bytes for _, w in launched(graph))


NAMES = [name for name in FUSIONS if name != "optimizer"]


@pytest.mark.parametrize("names", [*([n] for n in NAMES), NAMES, NAMES[::-1]])
def test_a_fused_graph_computes_the_same(names: list[str], module: Any, graph: Graph) -> None:
    made = fused(graph, names)
    assert made.macs == graph.macs
    assert moved(made) < moved(graph)
    assert len(launched(made)) < len(launched(graph))
    assert peak_memory(made).total_bytes <= peak_memory(graph).total_bytes
    ours, theirs = (execute(g, parameters(module), labelled(module)) for g in (made, graph))
    for name in graph.outputs:
        assert np.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5), name


def test_fusion_micro_batches_and_checkpoints_in_any_order(module: Any, graph: Graph) -> None:
    given = {f"{k}{mark}": v for mark in ("", "@1") for k, v in labelled(module).items()}
    theirs = execute(accumulate(graph, 2), parameters(module), given)
    transforms = (lambda g: fused(g, NAMES), lambda g: accumulate(g, 2), checkpoint)
    costs = set()
    for order in permutations(transforms):
        made = graph
        for transform in order:
            made = transform(made)
        ours = execute(made, parameters(module), given)
        assert all(np.allclose(ours[n], theirs[n], rtol=1e-4, atol=1e-5) for n in made.outputs)
        costs.add((made.macs, moved(made), len(launched(made))))
    assert len(costs) == 1


@pytest.mark.parametrize("family", ["bert", "albert"])  # the layers of ALBERT are one module
def test_each_layer_and_micro_batch_has_one_product_for_q_k_v(family: str) -> None:
    plain = accumulate(training_graph(tiny(family, HEADED, config={"num_hidden_layers": 3})), 2)
    made = fused(plain, ["qkv"])
    for phase in ("forward", "backward_data", "backward_weight"):
        products = [sum(op.phase == phase and w.macs > 0 for op, w in launched(g)) for g in (plain, made)]
        assert products[0] - products[1] == 3 * 2 * 2, phase  # layers, micro-batches, two of three


def test_the_order_of_fusions_does_not_matter(graph: Graph) -> None:
    def works(g: Graph) -> list[Work]:
        return sorted((w for _, w in launched(g)), key=str)

    assert works(fused(graph, NAMES)) == works(fused(graph, NAMES[::-1]))


def test_one_product_for_q_k_and_v(graph: Graph) -> None:
    made = fused(graph, ["qkv"])
    assert len(launched(graph)) - len(launched(made)) == LAYERS * (2 + 2 + 2 + 2)  # forward, two gradients, two sums
    shapes = {(w.m, w.k, w.n): w for _, w in launched(made) if w.kind is WorkKind.GEMM}
    forward, data, weight = shapes[T, D, 3 * D], shapes[T, 3 * D, D], shapes[3 * D, T, D]
    assert forward.in_bytes == 4 * T * D
    assert forward.weight_bytes == 4 * (3 * D * D + 3 * D)
    assert data.out_bytes == 4 * T * D
    assert weight.out_bytes == 4 * 3 * D * D


def test_scale_mask_softmax_and_dropout_are_one_kernel(graph: Graph) -> None:
    works = {op.name: w for op, w in launched(fused(graph, ["softmax"]))}
    base, scores = "bert.encoder.layer.0.attention.self", BATCH * H * N * N
    forward = works[f"{base}.dropout"]
    assert f"{base}.softmax" not in works
    assert f"{base}.mul" not in works
    assert forward.in_bytes == 4 * (scores + BATCH * N * N)
    assert forward.out_bytes == 4 * scores + scores + 4 * scores  # probabilities for backward, mask, dropped
    assert (forward.flops, forward.exps_per_element, forward.passes) == (scores * (1 + 1 + 3 + 2), 1, 3)
    backward = works[f"{base}.mul.1"]
    assert (backward.in_bytes, backward.out_bytes) == (4 * scores + scores + 4 * scores, 4 * scores)


def test_dropout_residual_and_layer_norm_are_one_kernel(graph: Graph) -> None:
    works = {op.name: w for op, w in launched(fused(graph, ["norm"]))}
    base = "bert.encoder.layer.1.output"
    forward = works[f"{base}.LayerNorm.stats"]
    assert not {f"{base}.add", f"{base}.dropout.dropout", f"{base}.LayerNorm.layer_norm"} & set(works)
    assert forward.in_bytes == 4 * (2 * T * D + 2 * D)
    assert forward.out_bytes == 4 * T * D + T * D + 4 * T * D + 4 * T * 2  # sum, mask, result, statistics
    assert forward.flops == T * D * (2 + 1 + 7)
    backward = works[f"{base}.dropout.dropout_backward"]
    assert backward.in_bytes == 4 * (2 * T * D + 2 * T + D) + T * D
    assert backward.out_bytes == 2 * 4 * T * D


def test_bias_and_gelu_are_one_kernel(graph: Graph) -> None:
    works = {op.name: w for op, w in launched(fused(graph, ["bias-gelu"]))}
    base = "bert.encoder.layer.0.intermediate"
    product = works[f"{base}.dense.linear"]
    assert product.weight_bytes == 4 * D * F
    forward = works[f"{base}.intermediate_act_fn.gelu"]
    assert (forward.in_bytes, forward.out_bytes) == (4 * (T * F + F), 4 * T * F)
    backward = works[f"{base}.dense.sum"]
    assert (backward.in_bytes, backward.out_bytes) == (4 * (2 * T * F + F), 4 * (T * F + F))


def test_a_multi_tensor_optimizer_replaces_one_operator_by_operator(graph: Graph) -> None:
    unfused = with_optimizer(graph, "lamb-unfused")
    made = fused(unfused, ["optimizer"])
    assert made == with_optimizer(graph, "lamb")
    saved = (passes("lamb-unfused") - passes("lamb")) * 4 * graph.parameters
    assert moved(unfused) - moved(made) == pytest.approx(saved, abs=2000)
    with pytest.raises(SpecError, match="NAME-unfused"):
        fused(made, ["optimizer"])


def test_fusions_go_with_the_other_transforms(module: Any, graph: Graph) -> None:
    for other in (checkpoint(graph), freeze(graph, "embeddings", "encoder.layer.0")):
        made = fused(with_optimizer(other, "adamw-unfused"), FUSIONS)
        assert made.macs == other.macs
        report = simulate(made, platform("a100"))
        assert report.total.macs == made.macs
    inference = trace("bert-tiny", seq=16)
    for name in ("qkv", "norm", "bias-gelu"):
        assert moved(fused(inference, [name])) <= moved(inference)


def test_events_and_analytic_agree_on_a_fused_graph(graph: Graph) -> None:
    made = fused(graph, NAMES)
    a, b = (simulate(made, platform("a100"), detail=detail).total for detail in ("analytic", "events"))
    assert (a.macs, a.dram_bytes, a.cycles) == (b.macs, b.dram_bytes, b.cycles)


# --- what is refused ------------------------------------------------------------------------------------------------

BASE = "bert.encoder.layer.0"


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([f"{BASE}.output.add"], "at least two"),
        ([f"{BASE}.output.add", f"{BASE}.output.ad"], "fuse: op"),
        ([f"{BASE}.intermediate.dense.linear", f"{BASE}.output.dense.linear"], "adjacent"),
        ([f"{BASE}.intermediate.intermediate_act_fn.gelu", f"{BASE}.output.add"], "adjacent"),
        ([f"{BASE}.output.add", "bert.encoder.layer.1.output.add"], "adjacent"),
        ([f"{BASE}.attention.output.LayerNorm.layer_norm", f"{BASE}.output.add"], "nothing else has to run"),
        ([f"{BASE}.intermediate.dense.linear", f"{BASE}.intermediate.intermediate_act_fn.gelu"], "operand in common"),
    ],
)
def test_fusing_what_is_not_adjacent_is_refused(names: list[str], text: str, graph: Graph) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        fuse(graph, *names)
    assert "\n" not in str(caught.value)


def test_ops_by_name(graph: Graph) -> None:
    names = [f"{BASE}.output.dropout.dropout", f"{BASE}.output.add", f"{BASE}.output.LayerNorm.layer_norm"]
    made = fuse(graph, *names)
    everywhere = fused(graph, ["norm"])
    forward = {op.name: w for op, w in launched(everywhere)}[f"{BASE}.output.LayerNorm.stats"]
    assert {op.name: w for op, w in launched(made)}[f"{BASE}.output.LayerNorm.stats"] == forward


def test_unknown_fusions_and_nothing_to_fuse(graph: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecError, match="nearest: qkv"):
        fused(graph, ["qk"])
    with pytest.raises(SpecError, match="adjacent and not yet fused"):
        fused(fused(graph, ["bias-gelu"]), ["bias-gelu"])
    line = ["simulate", "bert-tiny", "--training", "--seq", "16", "--platform", "a100", "--json"]
    small = ("--batch", "4", "--micro-batch", "2", "--checkpoint")
    assert run(capsys, *line, *small, "--fuse", "qkv", "--fuse", "norm")[0] == 0
    code, out, err = run(capsys, *line, "--fuse", "norms")
    assert (code, out) == (2, "")
    assert "nearest: norm" in err


def test_a_kernel_that_is_read_before_it_ends_is_refused(graph: Graph) -> None:
    from dataclasses import replace

    names = {f"{BASE}.output.add", "bert.encoder.layer.1.output.add"}
    marked = tuple(replace(op, kernel="both") if op.name in names else op for op in graph.ops)
    with pytest.raises(SpecError, match="runs after the kernel"):
        replace(graph, ops=marked).check()


# --- the work of a kernel -------------------------------------------------------------------------------------------


@st.composite
def chains(draw: st.DrawFn) -> Graph:
    """Sums of earlier tensors, some of them one kernel after another."""
    size = draw(st.integers(1, 9))
    tensors = {n: Tensor(n, (size,), DType.FLOAT32, Role.INPUT) for n in ("x", "y")}
    made: list[Op] = []
    kernel = 0
    for i in range(draw(st.integers(2, 8))):
        name, kernel = f"t{i}", kernel + draw(st.integers(0, 1))
        left, right = (draw(st.sampled_from(list(tensors))) for _ in range(2))
        made.append(ops.Add(name=name, inputs=(left, right), output=name, group="g", kernel=f"k{kernel}"))
        tensors[name] = Tensor(name, (size,), DType.FLOAT32)
    return Graph("chain", tensors, tuple(made), ("x", "y"), (made[-1].output,))


def by_hand(graph: Graph) -> dict[str, tuple[int, int, int]]:
    """Kernel -> (bytes in, bytes out, FLOPs), from the definition."""
    found = {}
    for kernel in {op.kernel for op in graph.ops}:
        members = [op for op in graph.ops if op.kernel == kernel]
        made = {op.output for op in members}
        reads = {n for op in members for n in op.inputs} - made
        others = {n for op in graph.ops if op.kernel != kernel for n in op.inputs} | set(graph.outputs)
        size = graph.tensors["x"].elements
        found[kernel] = (4 * size * len(reads), 4 * size * len(made & others), size * len(members))
    return found


def from_works(graph: Graph) -> dict[str, tuple[int, int, int]]:
    last = {op.kernel: w for op, (w,) in graph.works}
    return {k: (w.in_bytes, w.out_bytes, w.flops) for k, w in last.items()}


@given(chains())
@settings(max_examples=80, deadline=None)
def test_the_work_of_a_kernel_equals_its_definition(graph: Graph) -> None:
    assert from_works(graph.check()) == by_hand(graph)


def test_a_kernel_that_forgets_its_readers_is_noticed(monkeypatch: pytest.MonkeyPatch, graph: Graph) -> None:
    size = {n: Tensor(n, (4,), DType.FLOAT32, Role.INPUT) for n in ("x", "y")}
    made = [
        ops.Add(name=n, inputs=i, output=n, group="g", kernel=k)
        for n, i, k in (("a", ("x", "y"), "k"), ("b", ("a", "x"), "k"), ("c", ("a", "b"), "l"))
    ]
    tensors = {**size, **{op.output: Tensor(op.output, (4,), DType.FLOAT32) for op in made}}
    small = Graph("g", tensors, tuple(made), ("x", "y"), ("c",))
    assert from_works(small) == by_hand(small)
    monkeypatch.setattr(kernels, "_read_outside", lambda graph, *_: set(graph.outputs))
    again = Graph("g", tensors, tuple(made), ("x", "y"), ("c",))
    assert from_works(again) != by_hand(again)
