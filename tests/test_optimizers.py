"""Does an optimizer read and write what torch's does? Passes, bytes, barriers, mixed precision, and simulation."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("transformers")
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Role
from accelsim.platforms import platform
from accelsim.report import CLASSES
from accelsim.simulate import simulate
from accelsim.trace import trace
from accelsim.transforms.quantize import with_precision
from accelsim.transforms.training import GRADIENT, OPTIMIZERS, passes, with_optimizer, without_optimizer
from tests.test_cli import run

N = 1000


@pytest.fixture(scope="module")
def tiny() -> Graph:
    return trace("bert-tiny", seq=16, batch=2, training=True)


class Arrays(TorchDispatchMode):
    """Counts arrays of N elements that operators read and write, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in ("detach", "view", "alias", "empty_like", "zeros_like"):
            read = {
                t.data_ptr() for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor) and t.numel() == N
            }
            written = {t.data_ptr() for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor) and t.numel() == N}
            self.count += len(read) + len(written)
        return out


def arrays_of(step: Any) -> int:
    with Arrays() as mode:
        step()
    return mode.count


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("sgd", lambda p: torch.optim.SGD([p], lr=0.1, weight_decay=0.1, foreach=False)),
        ("momentum", lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.1, foreach=False)),
        ("adam", lambda p: torch.optim.Adam([p], weight_decay=0.1, foreach=False)),
        ("adamw", lambda p: torch.optim.AdamW([p], weight_decay=0.1, foreach=False)),
    ],
)
def test_unfused_passes_equal_those_of_torch(name: str, made: Any) -> None:
    p = torch.nn.Parameter(torch.randn(N))
    optimizer = made(p)
    for _ in range(2):  # the first step makes the state
        p.grad = torch.randn(N)
        optimizer.step()
    p.grad = torch.randn(N)
    with torch.no_grad():
        assert arrays_of(optimizer.step) == passes(f"{name}-unfused")


def lamb(p: Any, g: Any, m: Any, v: Any, step: int) -> None:
    """LAMB (You et al., arXiv:1904.00962, algorithm 2) with clipping, operator by operator, in place."""
    beta1, beta2, eps, decay, lr = 0.9, 0.999, 1e-6, 0.01, 0.1
    g.div_(float(max(torch.linalg.vector_norm(g), 1.0)))
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = (v.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    update = (m / (1 - beta1**step)).div_(denominator)
    update.add_(p, alpha=decay)
    trust = float(torch.linalg.vector_norm(p) / torch.linalg.vector_norm(update))
    update.mul_(trust)
    p.add_(update, alpha=-lr)


def test_unfused_lamb_is_the_algorithm_operator_by_operator() -> None:
    torch.manual_seed(0)
    p, g = torch.randn(N), torch.randn(N)
    m, v = torch.zeros(N), torch.zeros(N)
    before, gradient = p.clone().double(), g.clone().double()
    assert arrays_of(lambda: lamb(p, g, m, v, 1)) == passes("lamb-unfused")
    clipped = gradient / max(1.0, float(gradient.norm()))
    update = clipped / (clipped.abs() + 1e-6) + 0.01 * before
    want = before - 0.1 * before.norm() / update.norm() * update
    assert torch.allclose(p.double(), want, rtol=1e-4, atol=1e-5)


def test_published_passes() -> None:
    assert passes("lamb") == 13
    assert passes("lamb-bound") == passes("adam") == passes("adamw") == 7
    for name in ("sgd", "momentum", "adam", "adamw", "lamb", "lars"):
        assert passes(f"{name}-bound") <= passes(name) < passes(f"{name}-unfused")
        flops = {n: sum(step.flops for step in OPTIMIZERS[n]) for n in (name, f"{name}-bound")}
        assert len(set(flops.values())) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bytes_are_the_passes_over_all_parameters(name: str, tiny: Graph) -> None:
    graph = with_optimizer(tiny, name)
    updates = [(op, w) for op, ws in graph.works for w in ws if op.phase == "update"]
    numbers = {op.output for op, _ in updates if op.shape != (op.elements,)}
    sums = sum(graph.tensors[n].bytes for op, _ in updates for n in (*op.inputs, op.output) if n in numbers)
    assert sum(w.bytes for _, w in updates) == passes(name) * 4 * graph.parameters + sums
    assert sums < 2000
    assert len(updates) == 2 * len(OPTIMIZERS[name])
    flops = sum(step.flops for step in OPTIMIZERS[name])
    assert sum(w.flops for _, w in updates) == flops * graph.parameters


def test_lamb_waits_for_the_norm_of_all_gradients(tiny: Graph) -> None:
    graph = with_optimizer(tiny, "lamb")
    named = {op.name: op for op in graph.ops}
    order = {op.name: i for i, op in enumerate(graph.ops)}
    norms = ["optimizer.decay.gradient_norm", "optimizer.no_decay.gradient_norm"]
    for group in ("decay", "no_decay"):
        stage1 = named[f"optimizer.{group}.stage1"]
        assert set(norms) <= set(stage1.inputs)
        assert max(order[n] for n in norms) < order[stage1.name]
        stage2 = named[f"optimizer.{group}.stage2"]
        assert {f"optimizer.{group}.weight_norm", f"optimizer.{group}.update_norm"} <= set(stage2.inputs)
    assert graph.tensors[norms[0]].shape == ()
    matrices = [t for t in tiny.tensors.values() if t.role is Role.WEIGHT and len(t.shape) == 2]
    assert graph.tensors["optimizer.decay.weight_norm"].shape == (len(matrices),)
    adam = with_optimizer(tiny, "adam")
    assert all(len(op.inputs) < 150 for op in adam.ops)
    assert [op.name for op in adam.ops if op.phase == "update"] == ["optimizer.decay.step", "optimizer.no_decay.step"]


def test_optimizers_replace_each_other(tiny: Graph) -> None:
    graph = with_optimizer(tiny, "lamb")
    assert without_optimizer(graph) == tiny == without_optimizer(tiny)
    assert with_optimizer(graph, "sgd") == with_optimizer(tiny, "sgd")
    assert trace("bert-tiny", seq=16, batch=2, training=True, optimizer="lamb") == graph
    assert graph.meta["optimizer"] == "lamb"
    assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


def test_bad_optimizers(tiny: Graph) -> None:
    with pytest.raises(SpecError, match="nearest: lamb"):
        with_optimizer(tiny, "lam")
    with pytest.raises(SpecError, match="nearest: adam"):
        trace("bert-tiny", training=True, optimizer="adams")
    with pytest.raises(SpecError, match="which has gradients"):
        with_optimizer(trace("bert-tiny", seq=16), "adam")


# --- mixed precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dtype"), [("mixed-fp16", DType.FLOAT16), ("mixed-bf16", DType.BFLOAT16)])
def test_mixed_precision_keeps_the_optimizer_in_float32(precision: str, dtype: DType, tiny: Graph) -> None:
    whole = with_optimizer(tiny, "lamb")
    graph = with_precision(whole, precision).check()
    assert (graph.macs, graph.parameters, graph.meta["optimizer"]) == (whole.macs, whole.parameters, "lamb")
    weights = [t for t in graph.tensors.values() if t.role is Role.WEIGHT]
    assert {t.dtype for t in weights} == {dtype}
    assert {t.dtype for n, t in graph.tensors.items() if n.startswith(GRADIENT)} == {dtype}
    state = [t for n, t in graph.tensors.items() if n.startswith("optimizer.") and t.role is Role.STATE]
    assert len(state) == 2 * 3
    assert {t.dtype for t in state} == {DType.FLOAT32}
    kept = {op.operator for op in graph.ops if graph.tensors[op.output].dtype is DType.FLOAT32 and op.phase != "update"}
    assert {"layer_norm_stats", "log_softmax", "nll_loss", "nll_loss_backward"} <= kept
    assert not kept & {"linear", "matmul", "softmax", "gelu", "gelu_backward", "layer_norm", "native_dropout"}
    # gradient twice in 16 bits, one more write of the weights in 16 bits
    stage2 = sum(w.bytes for op, ws in graph.works for w in ws if op.name.endswith("stage2"))
    gradients = sum(w.bytes for op, ws in graph.works for w in ws if op.name.endswith("gradient_norm"))
    norms = sum(2 * t.bytes for n, t in graph.tensors.items() if n.endswith(("weight_norm", "update_norm"))) // 2
    assert stage2 == (3 * 4 + 2) * graph.parameters + norms
    assert gradients == 2 * graph.parameters + 8
    again = with_precision(with_optimizer(with_precision(tiny, precision), "lamb"), precision)
    assert again == graph


def test_unfused_mixed_precision_copies_the_weights_last(tiny: Graph) -> None:
    graph = with_optimizer(with_precision(tiny, "mixed-fp16"), "adamw-unfused")
    last = [op for op in graph.ops if isinstance(op, ops.Update)][-1]
    assert last.name == "optimizer.no_decay.copy"
    assert graph.tensors[last.output].dtype is DType.FLOAT16
    assert len(graph.outputs) == 3


def test_integers_are_refused_in_training(tiny: Graph) -> None:
    for precision in ("int8", "fq-bert"):
        with pytest.raises(SpecError, match="precision of a training graph"):
            with_precision(tiny, precision)


# --- simulation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", ["analytic", "events"])
def test_phases_and_classes_add_up(detail: str, tiny: Graph) -> None:
    report = simulate(with_optimizer(tiny, "lamb"), platform("a100"), detail=detail)
    for by in ("phase", "class"):
        rows = report.breakdown(by=by)
        assert rows["macs"].sum() == report.total.macs
        assert rows["share"].sum() == pytest.approx(1)
    assert set(report.breakdown(by="phase").index) == {"forward", "backward_data", "backward_weight", "update"}
    assert set(report.breakdown(by="class").index) == set(CLASSES)
    if detail == "analytic":
        assert report.breakdown(by="phase")["cycles"].sum() == report.total.cycles


def test_classes_hold_what_their_names_say(tiny: Graph) -> None:
    table = simulate(with_optimizer(tiny, "lamb"), platform("a100")).breakdown(by="class")
    d, f, t, n = 128, 512, 32, 16
    assert table.loc["linear products", "macs"] == 2 * 3 * 4 * t * d * d
    assert table.loc["feed-forward products", "macs"] == 2 * 3 * 2 * t * d * f
    assert table.loc["attention products", "macs"] == 2 * 3 * 2 * t * n * d
    assert table.loc["optimizer", "flops"] == 23 * tiny.parameters
    assert not table.loc[["softmax", "gelu", "dropout, residual, layer norm", "bias gradients"], "macs"].any()


def test_the_optimizer_costs_the_same_at_every_batch_and_gains_share_in_mixed_precision() -> None:
    chip = platform("a100")
    found = {}
    for batch in (1, 8):
        graph = trace("bert-mini", seq=64, batch=batch, training=True, optimizer="lamb")
        for precision in ("fp32", "mixed-fp16"):
            found[batch, precision] = simulate(graph, chip, precision=precision).breakdown(by="phase").loc["update"]
    assert found[1, "fp32"].cycles == found[8, "fp32"].cycles
    assert found[8, "mixed-fp16"].share > found[8, "fp32"].share
    assert found[1, "fp32"].share > found[8, "fp32"].share


def test_simulate_training_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = "simulate bert-tiny --training --optimizer lamb --platform a100 --seq 16 --batch 2 --masked 3 --json"
    code, out, err = run(capsys, *line.split())
    assert code == 0, err
    data = json.loads(out)
    assert {row["phase"] for row in data["ops"]} == {"forward", "backward_data", "backward_weight", "update"}
    assert data["total"]["time_s"] > 0
    assert "backward_weight" in run(capsys, *line.replace("--json", "--by phase").split())[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--training --optimizer lambs", "nearest: lamb"),
        ("--optimizer lamb", "training=True"),
        ("--training --platform systolic-32x32", "precision of a training graph"),
        ("--training --head none", "one with a loss"),
    ],
)
def test_bad_options(options: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "simulate", "bert-tiny", "--seq", "16", *options.split())
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1
