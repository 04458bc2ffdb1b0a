"""Small encoders as graphs, written down or drawn, and where executor and torch reference differ on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from accelsim import ops
from accelsim.execute import execute
from accelsim.graph import DType, Graph, Op, Role, Tensor

VOCAB, PLACES, LABELS = 30, 16, 3
FUNCTIONS: dict[str, type[Op]] = {
    "relu": ops.Relu, "silu": ops.Silu, "tanh": ops.Tanh, "sigmoid": ops.Sigmoid,
}  # fmt: skip
HEADS = ("none", "classifier", "span")
GraphAt = Callable[[int, int], Graph]


@dataclass(frozen=True)
class Recipe:
    """An encoder of any size: each step makes one (batch, seq, hidden), from results of the steps before by number."""

    hidden: int
    heads: int
    ffn: int
    steps: tuple[tuple[Any, ...], ...]
    head: str = "none"

    def __call__(self, batch: int, seq: int) -> Graph:
        return _built(self, batch, seq)

    def weights(self, seed: int) -> dict[str, Any]:
        """Torch tensors for the graph's weights, of a size that keeps results near 1."""
        import torch

        rng = np.random.default_rng(seed)
        found = {}
        for name, tensor in self(1, 8).tensors.items():
            if tensor.role is Role.WEIGHT:
                spread = 0.2 if len(tensor.shape) == 1 else 1 if "table" in name else tensor.shape[1] ** -0.5
                values = rng.normal(1 if name.endswith("gamma") else 0, spread, tensor.shape)
                found[name] = torch.from_numpy(values.astype(np.float32))
        return found


def bert(layers: int, hidden: int, heads: int, ffn: int, head: str = "classifier", function: str = "gelu") -> Recipe:
    """Embeddings, then attention, sum, norm, feed-forward, sum, norm in every layer."""
    steps: list[tuple[Any, ...]] = [("start",), ("norm", 0)]
    for _ in range(layers):
        x = len(steps) - 1
        steps += [("attention", x, x, x), ("linear", x + 1), ("dropout", x + 2), ("add", x + 3, x), ("norm", x + 4)]
        steps += [("ffn", x + 5, function), ("add", x + 6, x + 5), ("norm", x + 7)]
    return Recipe(hidden, heads, ffn, tuple(steps), head)


@st.composite
def berts(draw: st.DrawFn) -> Recipe:
    """BERTs of one or two layers, of sizes that no vector width divides."""
    heads = draw(st.integers(1, 3))
    hidden = draw(st.sampled_from([36, 12, 66]) if heads == 3 else st.integers(4, 20).map(lambda n: n * heads))
    function = draw(st.sampled_from(["gelu", "gelu", "gelu_tanh", *FUNCTIONS]))
    return bert(
        draw(st.integers(1, 2)), hidden, heads, draw(st.sampled_from([50, 1, 17, 64])), draw(st.sampled_from(HEADS)),
        function,
    )  # fmt: skip


@st.composite
def encoders(draw: st.DrawFn, float_steps: bool = True) -> Recipe:
    """Any order of the steps there are. float_steps: with products of activations, which have no integer meaning."""
    kinds = ["linear", "function", "add", "norm", "attention", "dropout", "joined", "ffn", "start"]
    steps: list[tuple[Any, ...]] = [("start",)]
    for _ in range(draw(st.integers(1, 7))):
        number = st.integers(0, len(steps) - 1)
        kind = draw(st.sampled_from(kinds + ["mul"] * float_steps))
        if kind in ("linear", "norm", "dropout"):
            steps.append((kind, draw(number)))
        elif kind in ("function", "ffn"):
            steps.append((kind, draw(number), draw(st.sampled_from(["gelu", "gelu_tanh", *FUNCTIONS]))))
        elif kind in ("add", "mul", "joined"):
            steps.append((kind, draw(number), draw(number)))
        else:
            steps.append((kind, *(draw(number) for _ in range(3 * (kind == "attention")))))
    return Recipe(6, draw(st.sampled_from([1, 2, 3])), 5, tuple(steps), draw(st.sampled_from(HEADS)))


@cache
def _built(recipe: Recipe, batch: int, seq: int) -> Graph:
    b = _Builder(recipe, batch, seq)
    results: list[str] = []
    for i, (kind, *rest) in enumerate(recipe.steps):
        b.at = f"{i}.{kind}"
        args = [results[r] if isinstance(r, int) else r for r in rest]
        results.append(getattr(b, kind)(*args))
    b.at = "head"
    outputs = getattr(b, f"head_{recipe.head}")(results[-1])
    return Graph("drawn", b.tensors, tuple(b.ops), ("input_ids", "attention_mask"), outputs).check()


class _Builder:
    """Adds ops to a graph; a method for each step of a `Recipe`."""

    def __init__(self, recipe: Recipe, batch: int, seq: int) -> None:
        self.r, self.batch, self.seq, self.at = recipe, batch, seq, "inputs"
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        for name in ("input_ids", "attention_mask"):
            self.tensors[name] = Tensor(name, (batch, seq), DType.INT64, Role.INPUT)
        self.tensors["position_ids"] = Tensor("position_ids", (1, PLACES), DType.INT64, Role.STATE)
        self.places = self.op(ops.Slice, "position_ids", dim=1, start=0, end=seq, dtype=DType.INT64)
        kept = self.op(ops.To, "attention_mask", dtype=DType.BOOL)
        self.mask = self.op(ops.View, kept, size=(batch, 1, 1, seq), dtype=DType.BOOL)

    def op(self, kind: type[Op], *inputs: str, dtype: DType = DType.FLOAT32, **attributes: Any) -> str:
        number = sum(op.group == self.at for op in self.ops)
        name = f"{self.at}.{kind.operator}.{number}"
        if kind is ops.To:
            attributes["dtype"] = dtype.value
        op = kind(name=name, inputs=inputs, output=name, group=self.at, **attributes)
        self.tensors[name] = Tensor(name, op.out_shape(*(self.tensors[i].shape for i in inputs)), dtype)
        self.ops.append(op)
        return name

    def weight(self, suffix: str, *shape: int) -> str:
        name = f"{self.at}.{suffix}"
        self.tensors[name] = Tensor(name, shape, DType.FLOAT32, Role.WEIGHT)
        return name

    def start(self) -> str:
        words = self.op(ops.Embedding, self.weight("table.words", VOCAB, self.r.hidden), "input_ids")
        places = self.op(ops.Embedding, self.weight("table.places", PLACES, self.r.hidden), self.places)
        return self.op(ops.Add, words, places)

    def linear(self, x: str, n: int | None = None, suffix: str = "") -> str:
        k, n = self.tensors[x].shape[-1], n or self.r.hidden
        return self.op(ops.Linear, x, self.weight(f"weight{suffix}", n, k), self.weight(f"bias{suffix}", n))

    def function(self, x: str, which: str) -> str:
        if which.startswith("gelu"):
            return self.op(ops.Gelu, x, approximate="tanh" if which == "gelu_tanh" else "none")
        return self.op(FUNCTIONS[which], x)

    def ffn(self, x: str, which: str) -> str:
        return self.linear(self.function(self.linear(x, self.r.ffn, ".up"), which), suffix=".down")

    def add(self, x: str, y: str) -> str:
        return self.op(ops.Add, x, y)

    def mul(self, x: str, y: str) -> str:
        return self.op(ops.Mul, x, y)

    def joined(self, x: str, y: str) -> str:
        return self.linear(self.op(ops.Cat, x, y, dim=2))

    def dropout(self, x: str) -> str:
        return self.op(ops.Dropout, x)

    def norm(self, x: str) -> str:
        shape = self.tensors[x].shape[-1]
        return self.op(ops.LayerNorm, x, self.weight("gamma", shape), self.weight("beta", shape), eps=1e-5)

    def attention(self, q: str, k: str, v: str) -> str:
        heads, size = self.r.heads, self.r.hidden // self.r.heads
        parts = []
        for suffix, x in ((".q", q), (".k", k), (".v", v)):
            split = self.op(ops.View, self.linear(x, suffix=suffix), size=(self.batch, self.seq, heads, size))
            parts.append(self.op(ops.Transpose, split, dim0=1, dim1=2))
        scores = self.op(ops.Matmul, parts[0], parts[1], transpose_b=True)
        weights = self.op(ops.Softmax, scores, self.mask, scale=size**-0.5)
        context = self.op(ops.Transpose, self.op(ops.Matmul, weights, parts[2]), dim0=1, dim1=2)
        whole = self.op(ops.Clone, context)
        return self.op(ops.View, whole, size=(self.batch, self.seq, self.r.hidden))

    def head_none(self, x: str) -> tuple[str, ...]:
        return (x,)

    def head_classifier(self, x: str) -> tuple[str, ...]:
        first = self.op(ops.Select, x, dim=1, index=0)
        pooled = self.op(ops.Tanh, self.linear(first, suffix=".pooler"))
        return (self.linear(pooled, LABELS),)

    def head_span(self, x: str) -> tuple[str, ...]:
        both = self.linear(x, 2)
        ends = []
        for i in range(2):
            part = self.op(ops.Slice, both, dim=2, start=i, end=i + 1)
            ends.append(self.op(ops.Clone, self.op(ops.Squeeze, part, dims=(2,))))
        return tuple(ends)


# --- running ----------------------------------------------------------------------------------------------------------


def batch_of(batch: int, seq: int, seed: int, nothing: bool = False) -> tuple[Any, Any]:
    """(ids, mask) int64 torch tensors: ragged, and `nothing` of the last sequence."""
    import torch

    rng = np.random.default_rng(seed)
    ids, mask = rng.integers(0, VOCAB, (batch, seq)), np.ones((batch, seq), np.int64)
    for i in range(1, batch):
        mask[i, rng.integers(1, seq + 1) :] = 0
    if nothing:
        mask[-1] = 0
    return torch.from_numpy(ids), torch.from_numpy(mask)


def calibrated(graph_at: GraphAt, weights: Any, spec: Any, given: tuple[Any, Any], **options: Any) -> Any:
    """A `QuantizedBert` in exact mode that has seen one batch."""
    import torch
    from accelsim_models.quantized_bert import QuantizedBert, observing

    model = QuantizedBert(graph_at, weights, spec, **options).eval()
    model.refresh()
    with torch.no_grad(), observing(model):
        model(*given)
    model.mode = "exact"
    return model


def seen_by(model: Any, given: tuple[Any, Any]) -> dict[str, np.ndarray]:
    """What every op of the reference gives, by name: int64 for integers."""
    import torch

    seen: dict[str, np.ndarray] = {}
    with torch.no_grad():
        model(*given, watch=lambda op, t: seen.__setitem__(op.name, t.detach().clone().numpy()))
    return seen


def arrays(given: tuple[Any, Any]) -> dict[str, np.ndarray]:
    return {"input_ids": given[0].numpy(), "attention_mask": given[1].numpy()}


def differing(model: Any, given: tuple[Any, Any], params: Any = None, threads: int = 1) -> list[str]:
    """Names of the ops, in order, on which executor and reference differ in any bit."""
    graph, want = model.graph(*given[0].shape), seen_by(model, given)
    wrong = []

    def watch(op: Op, result: np.ndarray, clamped: int) -> None:
        if not np.array_equal(result, want[op.name]):
            wrong.append(op.name)

    execute(graph, params or model.params(), arrays(given), threads=threads, watch=watch)
    return wrong


def differing_alone(model: Any, given: tuple[Any, Any], params: Any = None) -> list[str]:
    """The same, with each op fed what the reference fed it: real results may differ by rounding, integers may not."""
    from accelsim.integers import integer_kernel

    graph, want = model.graph(*given[0].shape), seen_by(model, given)
    params = params or model.params()
    alive: dict[str, Any] = {**params.weights, **params.arrays, **arrays(given)}
    wrong = []
    for op in graph.ops:
        kernel, operands = integer_kernel(op, graph, params), [alive[name] for name in op.inputs]
        result = np.asarray(op.execute(*operands)) if kernel is None else kernel(*operands)[0]
        reference = want[op.name]
        if graph.tensors[op.output].dtype.is_float:
            same = np.allclose(result, reference, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(reference).max())))
        else:
            same = np.array_equal(result, reference)
        if not same:
            wrong.append(op.name)
        alive[op.output] = reference.astype(result.dtype)
    return wrong
