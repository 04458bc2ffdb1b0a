"""Do transforms of a training graph compute the same gradients, and take the memory that torch takes?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")
import torch
from accelsim_models import zoo

from accelsim import ops
from accelsim.errors import Infeasible, SpecError
from accelsim.execute import execute
from accelsim.graph import DType, Graph, Op, Role, Tensor
from accelsim.memory import check_memory, peak_memory
from accelsim.platforms import platform
from accelsim.simulate import simulate
from accelsim.trace import parameters, trace
from accelsim.transforms.training import GRADIENT, accumulate, checkpoint, freeze, with_optimizer
from tests.encoders import tiny
from tests.test_iteration import HEADED, labelled, torch_gradients, training_graph, without_dropout


@pytest.fixture(scope="module")
def module() -> Any:
    return without_dropout(tiny("bert", HEADED))


@pytest.fixture(scope="module")
def graph(module: Any) -> Graph:
    return training_graph(module)


def macs(graph: Graph, *phases: str, layers: bool = False) -> int:
    wanted = [ws for op, ws in graph.works if op.phase in phases and (op.layer >= 0 or not layers)]
    return sum(w.macs for ws in wanted for w in ws)


def near(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-5 * max(1.0, float(np.abs(b).max()))))


# --- checkpointing --------------------------------------------------------------------------------------------------


def test_checkpointing_computes_every_layer_once_more_and_the_same_gradients() -> None:
    module = tiny("bert", HEADED).train()  # with dropout: the masks have to be those of the first time
    graph = training_graph(module)
    made = checkpoint(graph)
    assert macs(made, "recompute") == macs(graph, "forward", layers=True)
    assert made.macs == graph.macs + macs(made, "recompute")
    assert 3 * macs(made, "recompute") == macs(graph, "forward", "backward_data", "backward_weight", layers=True)
    ours, theirs = (execute(g, parameters(module), labelled(module)) for g in (made, graph))
    assert all(np.array_equal(ours[n], theirs[n]) for n in graph.outputs)
    wrong = replace(made, ops=tuple(replace(o, stream="") if isinstance(o, ops.Bernoulli) else o for o in made.ops))
    other = execute(wrong, parameters(module), labelled(module))
    assert not all(np.array_equal(other[n], theirs[n]) for n in graph.outputs)


def test_checkpointing_one_layer(graph: Graph) -> None:
    made = checkpoint(graph, [1])
    assert 2 * macs(made, "recompute") == macs(graph, "forward", layers=True)
    assert {op.layer for op in made.ops if op.phase == "recompute"} == {1}
    assert macs(checkpoint(made, [0]), "recompute") == 2 * macs(made, "recompute")


def test_checkpointing_needs_less_memory() -> None:
    graph = trace("bert-medium", seq=64, batch=8, training=True)
    few, many = peak_memory(checkpoint(graph)), peak_memory(graph)
    assert few.activations_bytes < 0.8 * many.activations_bytes
    assert few.weights_bytes == many.weights_bytes


@pytest.mark.parametrize("layers", [[2], [-1], [0, 7]])
def test_a_layer_that_is_not_there_is_refused(layers: list[int], graph: Graph) -> None:
    with pytest.raises(SpecError, match="one of 0, 1"):
        checkpoint(graph, layers)


def test_checkpointing_twice_or_without_training_is_refused(graph: Graph) -> None:
    with pytest.raises(SpecError, match="not recomputed already"):
        checkpoint(checkpoint(graph))
    with pytest.raises(SpecError, match="give all steps at once"):
        accumulate(accumulate(graph, 2), 2)
    for transform in (checkpoint, lambda g: accumulate(g, 2), lambda g: freeze(g, "embeddings")):
        with pytest.raises(SpecError, match="a training graph"):
            transform(trace("bert-tiny", seq=8))


# --- micro-batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3])
def test_accumulated_gradients_are_the_mean_of_the_micro_batches(steps: int, module: Any, graph: Graph) -> None:
    made = accumulate(graph, steps)
    random = np.random.default_rng(5)
    batches = []
    for _ in range(steps):
        found = labelled(module)
        found["input_ids"] = random.integers(3, 50, found["input_ids"].shape)
        batches.append(found)
    given = {f"{k}@{i}" if i else k: v for i, b in enumerate(batches) for k, v in b.items()}
    ours = execute(made, parameters(module), given)
    each = [torch_gradients(module, b) for b in [*batches]]
    each = [{k: v.copy() for k, v in torch_gradients(module, b).items()} for b in batches]
    for name in made.outputs[1:]:
        assert near(ours[name], np.mean([e[name] for e in each], axis=0)), name
    assert made.macs == steps * graph.macs
    assert made.meta["batch"] == str(steps * 2)
    assert accumulate(graph, 1) is graph


def test_checkpoints_and_micro_batches_in_either_order() -> None:
    module = tiny("bert", HEADED).train()  # with dropout: each micro-batch has masks of its own
    graph = training_graph(module)
    plain = accumulate(graph, 2)
    given = {f"{k}{mark}": v for mark in ("", "@1") for k, v in labelled(module).items()}
    theirs = execute(plain, parameters(module), given)
    for made in (checkpoint(plain), accumulate(checkpoint(graph), 2)):
        ours = execute(made, parameters(module), given)
        assert all(np.array_equal(ours[n], theirs[n]) for n in plain.outputs)
        assert macs(made, "recompute") == macs(plain, "forward", layers=True)
        assert peak_memory(made).activations_bytes <= peak_memory(plain).activations_bytes
        drawn = [op for op in made.ops if isinstance(op, ops.Bernoulli) and op.stream]
        assert len({op.stream for op in drawn}) == len(drawn) == 2 * 3 * 2
        first = [replace(o, stream=o.stream.split("@")[0]) if o in drawn else o for o in made.ops]
        wrong = execute(replace(made, ops=tuple(first)), parameters(module), given)
        assert not all(np.array_equal(wrong[n], theirs[n]) for n in plain.outputs)


def test_one_step_of_the_optimizer_for_all_micro_batches() -> None:
    whole = trace("bert-tiny", seq=128, batch=8, training=True, optimizer="lamb")
    made = trace("bert-tiny", seq=128, batch=8, training=True, optimizer="lamb", micro_batch=2)
    assert made.macs == whole.macs
    updates = [[w for op, ws in g.works for w in ws if op.phase == "update"] for g in (whole, made)]
    assert updates[0] == updates[1]
    assert peak_memory(made).activations_bytes < peak_memory(whole).activations_bytes
    sums = [op for op in made.ops if op.name.startswith("accumulate.")]
    assert len(sums) == 3 * sum(t.role is Role.WEIGHT for t in made.tensors.values())


@pytest.mark.parametrize("micro_batch", [3, 0, 5, -2, True, 2.0])
def test_a_batch_that_the_micro_batch_does_not_divide_is_refused(micro_batch: Any) -> None:
    with pytest.raises(SpecError, match="micro_batch"):
        trace("bert-tiny", seq=8, batch=4, training=True, micro_batch=micro_batch)


@pytest.mark.parametrize("steps", [0, -1, True, 1.5])
def test_steps_are_counted(steps: Any, graph: Graph) -> None:
    with pytest.raises(SpecError, match="an integer >= 1"):
        accumulate(graph, steps)


# --- freezing -------------------------------------------------------------------------------------------------------


def test_a_frozen_encoder_has_no_backward(module: Any, graph: Graph) -> None:
    made = freeze(graph, "bert")
    assert macs(made, "backward_data", "backward_weight", layers=True) == 0
    assert not [op for op in made.ops if op.layer >= 0 and op.phase != "forward"]
    assert macs(made, "forward") == macs(graph, "forward")
    ours, theirs = execute(made, parameters(module), labelled(module)), torch_gradients(module, labelled(module))
    assert set(made.outputs[1:]) == {n for n in theirs if n.startswith(GRADIENT + "cls.")}
    assert all(near(ours[n], theirs[n]) for n in made.outputs[1:])


def test_partial_freezing_keeps_the_other_gradients(module: Any, graph: Graph) -> None:
    made = freeze(graph, "embeddings", "encoder.layer.0")
    theirs = torch_gradients(module, labelled(module))
    ours = execute(made, parameters(module), labelled(module))
    kept = {n for n in theirs if n != "loss" and "embeddings" not in n and "layer.0." not in n}
    assert set(made.outputs[1:]) == kept
    assert all(near(ours[n], theirs[n]) for n in made.outputs[1:])
    assert {op.layer for op in made.ops if op.phase.startswith("backward")} == {-1, 1}
    upper = freeze(graph, "layer.1")
    assert macs(upper, "backward_data", layers=True) == macs(graph, "backward_data", layers=True)
    assert 2 * macs(upper, "backward_weight", layers=True) == macs(graph, "backward_weight", layers=True)


def test_the_optimizer_leaves_frozen_parameters_alone(graph: Graph) -> None:
    whole = with_optimizer(graph, "lamb")
    made = freeze(whole, "encoder")
    assert made.meta["optimizer"] == "lamb"
    trained = [t.elements for t in made.tensors.values() if t.role is Role.WEIGHT and not t.frozen]
    assert sum(op.elements for op in made.ops if isinstance(op, ops.Update) and op.stage == "stage1") == sum(trained)
    assert made.parameters == whole.parameters


def test_freezing_what_is_not_there_is_refused(graph: Graph) -> None:
    with pytest.raises(SpecError, match=r"nearest: .*layer\.1") as caught:
        freeze(graph, "encoder.layer.7")
    assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match=r"freeze: got 'layer\.12'"):
        freeze(graph, "layer.12")
    with pytest.raises(SpecError, match="at least one parameter"):
        freeze(graph, "bert", "cls")


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "seq", "batch"), [("bert-mini", 128, 4), ("bert-small", 32, 2)])
def test_peak_memory_equals_the_allocations_of_torch(name: str, seq: int, batch: int) -> None:
    import transformers
    from torch.profiler import ProfilerActivity, profile

    config = zoo.config(name)
    config.vocab_size = 2000
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0  # its mask takes 4 bytes on a CPU, 1 here
    module = transformers.AutoModelForPreTraining.from_config(config, attn_implementation="eager").train()
    shapes = {"input_ids": (batch, seq), "attention_mask": (batch, seq), **zoo.labels(module, seq, batch)}
    given = {k: torch.ones(s, dtype=torch.long) for k, s in shapes.items()}
    module(**given)[0].backward()
    module.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        module(**given)[0].backward()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    theirs = int(np.cumsum(sizes).max())
    ours = peak_memory(trace(module, seq=seq, batch=batch, training=True))
    assert ours.gradients_bytes + ours.activations_bytes == pytest.approx(theirs, rel=0.01)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Graph, list[int]]:
    """Adds of earlier tensors, and views of them."""
    size = draw(st.integers(1, 9))
    tensors = {"x": Tensor("x", (size,), DType.FLOAT32, Role.INPUT)}
    made: list[Op] = []
    for i in range(draw(st.integers(1, 8))):
        known = list(tensors)
        name = f"t{i}"
        if draw(st.booleans()):
            pair = (draw(st.sampled_from(known)), draw(st.sampled_from(known)))
            made.append(ops.Add(name=name, inputs=pair, output=name, group="g"))
        else:
            read = (draw(st.sampled_from(known)),)
            made.append(ops.View(name=name, inputs=read, output=name, group="g", size=(size,)))
        tensors[name] = Tensor(name, (size,), DType.FLOAT32)
    return Graph("chain", tensors, tuple(made), ("x",), (made[-1].output,)).check(), [size]


@given(chains())
@settings(max_examples=60, deadline=None)
def test_peak_memory_equals_a_count_at_every_op(drawn: tuple[Graph, list[int]]) -> None:
    """Oracle: for every op, the homes that some later op or the output still reads."""
    graph, (size,) = drawn
    home: dict[str, str | None] = {"x": None}
    for op in graph.ops:
        home[op.output] = home[op.inputs[0]] if isinstance(op, ops.View) else op.output
    most = 0
    for i, op in enumerate(graph.ops):
        later = {home[n] for o in graph.ops[i:] for n in o.inputs} | {home[n] for n in graph.outputs}
        made = {o.output for o in graph.ops[:i] if isinstance(o, ops.Add)}
        now = (later & made) | ({op.output} if isinstance(op, ops.Add) else set())
        most = max(most, len(now))
    assert peak_memory(graph).activations_bytes == 4 * size * most


def test_in_place_results_and_kernels_need_no_memory_of_their_own(graph: Graph) -> None:
    plain, adam, lamb = (peak_memory(g) for g in (graph, with_optimizer(graph, "adam"), with_optimizer(graph, "lamb")))
    assert adam.state_bytes == plain.state_bytes + 2 * 4 * graph.parameters
    assert adam.gradients_bytes == 4 * graph.parameters or adam.op != "optimizer.decay.step"
    assert adam.activations_bytes == plain.activations_bytes
    assert lamb.total_bytes >= adam.total_bytes


def test_out_of_memory_says_by_how_much_and_what_helps() -> None:
    graph = trace("bert-tiny", seq=32, batch=4, training=True, optimizer="adam")
    need = peak_memory(graph).total_bytes
    check_memory(graph, need, "here")
    with pytest.raises(Infeasible, match=r"100 too many: needs \d+ bytes, has \d+; raise or change --batch, --micro"):
        check_memory(graph, need - 100, "here")
    small = platform("a100", {"dram.capacity_bytes": 60_000_000})
    with pytest.raises(Infeasible, match="too many"):
        simulate(graph, small)
    assert simulate(trace("bert-tiny", seq=32, batch=4), small).total.time_s > 0
