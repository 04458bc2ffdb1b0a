"""Kernel fusion: ops that run as one (`Op.kernel`). What the graph computes stays the same; what it moves does not.

A fusion that needs another order of ops gives them one; sums of gradients are reassociated for one product of Q, K, V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import Graph, Op
from accelsim.transforms.training import with_optimizer


def fuse(graph: Graph, *names: str) -> Graph:
    """The graph in which these ops, and those that share a kernel with one of them, are one kernel.

    Each but the first reads what an earlier one of them makes (views in between do not count), or, of products, an
    operand of an earlier one.

    Raises SpecError for an op that is not there or not adjacent, for something else that would have to run in between,
    and for ops that have no common `Work` (see `kernels.fused_works`).
    """
    by_name = {op.name: op for op in graph.ops}
    for name in names:
        if name not in by_name:
            raise SpecError.unknown("fuse: op", name, by_name)
    if len(set(names)) < 2:
        raise SpecError("fuse: ops", ", ".join(names), "at least two")
    return _fused(graph, [[by_name[name] for name in names]])


def _fused(graph: Graph, groups: Iterable[Sequence[Op]]) -> Graph:
    """Make each group a kernel, named after its first op; checked."""
    index = _Index(graph)
    kernel_of: dict[str, str] = {}
    for group in groups:
        joined = {op.kernel for op in group if op.kernel}
        members = [op for op in graph.ops if op in group or (op.kernel and op.kernel in joined)]
        _check_adjacent(index, members, {op.name for op in group})
        kernel_of |= {op.name: f"fused.{members[0].name}" for op in members}
    made = tuple(replace(op, kernel=kernel_of.get(op.name, op.kernel)) for op in graph.ops)
    return scheduled(replace(graph, ops=made)).check()


def _check_adjacent(index: _Index, members: Sequence[Op], asked: set[str]) -> None:
    made = {op.output for op in members}
    products = all(isinstance(op, ops.Linear | ops.Matmul) for op in members)
    for op in members[1:]:
        read = {index.source(n) for n in op.inputs}
        before = members[: members.index(op)]
        shared = products and any(read & {index.source(n) for n in other.inputs} for other in before)
        follows = bool(read & made) or shared or any(op.output in _sources(index, o) for o in members)
        together = bool(op.kernel) and any(op.kernel == other.kernel for other in before)
        if op.name in asked and not follows and not together:
            raise SpecError("fuse: op", op.name, f"an op that is adjacent to {before[-1].name}: one reads the other")


def _sources(index: _Index, op: Op) -> set[str]:
    return {index.source(n) for n in op.inputs}


@dataclass
class _Index:
    """Who makes and who reads what, views looked through."""

    graph: Graph
    makers: dict[str, Op] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    readers: dict[str, list[Op]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for op in self.graph.ops:
            self.makers[op.output] = op
            if isinstance(op, ops.Free):
                self.origins[op.output] = self.source(op.inputs[0])
        for op in self.graph.ops:  # which may not be in order yet
            if not isinstance(op, ops.Free):
                for name in dict.fromkeys(self.source(n) for n in op.inputs):
                    self.readers.setdefault(name, []).append(op)

    def source(self, name: str) -> str:
        """What a tensor is a view of, itself if it is none."""
        return self.origins.get(name, name)

    def maker(self, name: str) -> Op | None:
        """The op that made it, views looked through."""
        return self.makers.get(self.source(name))

    def only_reader(self, op: Op | None) -> Op | None:
        """The one op that reads this op's result; None if there are others or it leaves the graph."""
        found = self.readers.get(op.output, []) if op is not None else []
        leaves = op is not None and op.output in {self.source(n) for n in self.graph.outputs}
        return found[0] if len(found) == 1 and not leaves else None


def scheduled(graph: Graph) -> Graph:
    """The graph in an order in which nothing runs between the ops of a kernel but views inside it.

    Kernels move to the place of their first op, with what they need before them. Raises SpecError where something else
    has to run in between.
    """
    index = _Index(graph)
    unit_of = {op.name: op.kernel for op in graph.ops if op.kernel}
    inside: dict[str, set[str]] = {}  # kernel -> sources its members read from each other
    for op in graph.ops:
        if op.kernel:
            inside.setdefault(op.kernel, set()).update(_sources(index, op))
    for op in graph.ops:
        if isinstance(op, ops.Free):
            maker = index.maker(op.output)
            read_by = {r.kernel for r in index.readers.get(index.source(op.output), ())}
            if maker is not None and maker.kernel and maker.kernel in read_by:
                unit_of[op.name] = maker.kernel
    units: dict[str, list[Op]] = {}
    for op in graph.ops:
        units.setdefault(unit_of.get(op.name, op.name), []).append(op)
    made: list[Op] = []
    state: dict[str, int] = {}

    def emit(unit: str) -> None:
        if state.get(unit) == 2:
            return
        if state.get(unit) == 1:
            raise SpecError(f"kernel {unit}", units[unit][-1].name, "ops between which nothing else has to run")
        state[unit] = 1
        for op in units[unit]:
            for name in op.inputs:
                maker = index.makers.get(name)
                if maker is not None and unit_of.get(maker.name, maker.name) != unit:
                    emit(unit_of.get(maker.name, maker.name))
        state[unit] = 2
        made.extend(_sorted(units[unit]))

    for op in graph.ops:
        emit(unit_of.get(op.name, op.name))
    return replace(graph, ops=tuple(made))


def _sorted(members: list[Op]) -> list[Op]:
    """Members of one kernel, each after those it reads."""
    left, done = list(members), []
    while left:
        pending = {op.output for op in left}
        ready = next((op for op in left if not pending & set(op.inputs)), left[0])
        left.remove(ready)
        done.append(ready)
    return done


# --- what is fused in practice --------------------------------------------------------------------------------------


def fuse_qkv(graph: Graph) -> Graph:
    """One product for Q, K and V of a layer: beside each other in forward, summed for the gradient of their input,
    below each other for the gradients of their weights."""
    index = _Index(graph)
    groups: dict[tuple[str, int, str], list[Op]] = {}
    for op in graph.ops:
        if isinstance(op, ops.Linear) and op.layer >= 0:
            groups.setdefault((index.source(op.inputs[0]), op.layer, op.phase), []).append(op)
    found = [members for members in groups.values() if len(members) > 1]
    kernels: list[list[Op]] = [*found]
    changed: dict[str, Op] = {}
    forward = [members for members in found if members[0].phase == "forward"]
    modules = [(members[0].layer, [op.group for op in members]) for members in forward]
    for i, members in enumerate(forward):
        layer, names = modules[i]
        rounds, nth = modules.count(modules[i]), modules[:i].count(modules[i])
        below = [op for op in graph.ops if isinstance(op, ops.Matmul) and op.group in names and op.layer == layer]
        weights = _share([op for op in below if op.phase == "backward_weight"], nth, rounds)
        data = _share([op for op in below if op.phase == "backward_data"], nth, rounds)
        if len(weights) == len(members) and len({index.source(op.inputs[1]) for op in weights}) == 1:
            kernels.append(weights)
        kernels += _summed(index, data, len(members), changed)
    source = replace(graph, ops=tuple(changed.get(op.name, op) for op in graph.ops))
    return _fused(source, [[changed.get(op.name, op) for op in group] for group in _some(graph, "qkv", kernels)])


def _share(found: list[Op], nth: int, rounds: int) -> list[Op]:
    """One of equal shares in order of execution: the ops of one micro-batch."""
    size = len(found) // rounds
    return found[nth * size : (nth + 1) * size]


def _summed(index: _Index, products: list[Op], count: int, changed: dict[str, Op]) -> list[list[Op]]:
    """The kernel of products that are added up, with the sums so changed that the products come first."""
    adds = [index.only_reader(op) for op in products]
    chain = [op for op in adds if isinstance(op, ops.Add) and op.other is None]
    if len(products) != count or len(chain) != count or len({op.name for op in chain}) < count - 1:
        return []
    chain = list(dict.fromkeys(chain))
    for before, after in pairwise(chain):
        if index.source(before.output) not in _sources(index, after):
            return []
    if len(chain) == count - 1:
        return [[*products, *chain]]
    made = {op.output for op in products}
    terms = [next(n for n in op.inputs if index.source(n) in made) for op in chain]
    rest = next(n for n in chain[0].inputs if n != terms[0])
    total = terms[0]
    for op, term in zip(chain[:-1], terms[1:], strict=True):
        changed[op.name] = replace(op, inputs=(total, term))
        total = op.output
    changed[chain[-1].name] = replace(chain[-1], inputs=(rest, total))
    return [[*products, *chain[:-1]]]


def fuse_bias_gelu(graph: Graph) -> Graph:
    """Bias and GELU in one kernel after the product; in backward the sum with the bias again, GELU's derivative and the
    gradient of the bias, so that what GELU was applied to is not stored."""
    index = _Index(graph)
    kernels: list[list[Op]] = []
    made: list[Op] = []
    tensors = dict(graph.tensors)
    biased: dict[str, tuple[str, str]] = {}  # what GELU is applied to -> the product and the bias it is the sum of
    for op in graph.ops:
        gelu = _reader(index, op, ops.Gelu) if isinstance(op, ops.Linear) and len(op.inputs) == 3 else None
        x = index.source(op.inputs[1]) if isinstance(op, ops.GeluBackward) else ""
        if gelu is not None:
            bare = f"{op.output}.product"
            tensors[bare] = replace(tensors[op.output], name=bare)
            biased[op.output] = bare, op.inputs[2]
            bias = _sum(op, f"{op.name}.bias", biased[op.output], op.output)
            made += [replace(op, inputs=op.inputs[:2], output=bare), bias]
            kernels.append([bias, gelu])
        elif x in biased:
            again, seen = f"{op.output}.bias", f"{op.output}.x"
            shape = tensors[op.inputs[1]].shape
            tensors |= {n: replace(tensors[old], name=n) for n, old in ((again, x), (seen, op.inputs[1]))}
            bias = _sum(op, again, biased[x], again)
            view = ops.View(
                name=seen, inputs=(again,), output=seen, group=op.group, layer=op.layer, phase=op.phase, size=shape
            )  # fmt: skip
            changed = replace(op, inputs=(op.inputs[0], seen))
            made += [bias, view, changed]
            gradient = _reader(index, op, ops.Sum)
            weight = gradient is not None and gradient.phase == "backward_weight"
            kernels.append([bias, changed, *([gradient] if gradient is not None and weight else [])])
        else:
            made.append(op)
    return _fused(replace(graph, tensors=tensors, ops=tuple(made)), _some(graph, "bias-gelu", kernels))


def _sum(op: Op, name: str, terms: tuple[str, str], output: str) -> Op:
    """terms added up, in the place of another op."""
    return ops.Add(name=name, inputs=terms, output=output, group=op.group, layer=op.layer, phase=op.phase)


def _reader(index: _Index, op: Op, kind: type[Op]) -> Op | None:
    return next((r for r in index.readers.get(op.output, ()) if isinstance(r, kind)), None)


def fuse_norm(graph: Graph) -> Graph:
    """Dropout, residual sum and layer norm in one kernel; in backward the derivatives of layer norm and dropout."""
    index = _Index(graph)
    kernels: list[list[Op]] = []
    for op in graph.ops:
        if isinstance(op, ops.LayerNorm):
            residual = index.maker(op.inputs[0])
            if isinstance(residual, ops.Add) and residual.other is None and residual.layer >= 0:
                before = [m for n in residual.inputs if isinstance(m := index.maker(n), ops.NativeDropout)]
                kernels.append([*(m for m in before if index.only_reader(m) is residual), residual, op])
        elif isinstance(op, ops.LayerNormBackward):
            dropout = _reader(index, op, ops.NativeDropout)
            if dropout is not None:
                kernels.append([op, dropout])
    return _fused(graph, _some(graph, "norm", kernels))


def fuse_softmax(graph: Graph) -> Graph:
    """Scale, mask, softmax and dropout of the scores in one kernel; in backward the same the other way round."""
    index = _Index(graph)
    kernels: list[list[Op]] = []
    for op in graph.ops:
        if isinstance(op, ops.Softmax):
            before: list[Op] = []
            at = index.maker(op.inputs[0])
            while isinstance(at, ops.Add | ops.Mul) and index.only_reader(at) is not None:
                before.insert(0, at)
                at = index.maker(at.inputs[0])
            dropout = _reader(index, op, ops.NativeDropout)
            kernels.append([*before, op, *([] if dropout is None else [dropout])])
        elif isinstance(op, ops.SoftmaxBackward):
            dropout = index.maker(op.inputs[0])
            scale = index.only_reader(op)
            first = [dropout] if isinstance(dropout, ops.NativeDropout) and index.only_reader(dropout) is op else []
            kernels.append([*first, op, *([scale] if isinstance(scale, ops.Mul) else [])])
    return _fused(graph, _some(graph, "softmax", [k for k in kernels if len(k) > 1]))


def fuse_optimizer(graph: Graph) -> Graph:
    """The passes of a multi-tensor kernel in place of those operator by operator."""
    name = graph.meta.get("optimizer", "none")
    if not name.endswith("-unfused"):
        raise SpecError("fuse optimizer", name, "an optimizer that runs operator by operator (NAME-unfused)")
    return with_optimizer(graph, name.removesuffix("-unfused"))


def _some(graph: Graph, what: str, kernels: list[list[Op]]) -> list[list[Op]]:
    if not kernels:
        raise SpecError(f"fuse {what}", graph.name, "a graph in which these operators are adjacent and not yet fused")
    return kernels


FUSIONS: dict[str, Callable[[Graph], Graph]] = {
    "qkv": fuse_qkv,
    "bias-gelu": fuse_bias_gelu,
    "norm": fuse_norm,
    "softmax": fuse_softmax,
    "optimizer": fuse_optimizer,
}
"""Name -> what fuses it everywhere in a graph."""


def fused(graph: Graph, names: Iterable[str]) -> Graph:
    """The graph after each of `FUSIONS` that is named. Raises SpecError for a name that is none."""
    for name in names:
        if name not in FUSIONS:
            raise SpecError.unknown("fuse", name, FUSIONS)
        graph = FUSIONS[name](graph)
    return graph
