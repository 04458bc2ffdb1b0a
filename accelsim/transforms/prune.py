"""Fewer encoder layers, attention heads or intermediate neurons: the shapes of the smaller model. No weight is chosen.

Nothing here knows a model by name. Heads and neurons are followed from the linear layers that make them to those that
read them, by the place of their dimension in each tensor, never by its size: a sequence may be as long as there are
heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import Graph, Op

PARTS = ("layers", "heads", "ffn")
"""What can be pruned: encoder layers, attention heads of each layer, intermediate neurons of each feed-forward part."""

_ACTIVATIONS = (ops.Gelu, ops.Relu, ops.Silu, ops.Tanh, ops.Sigmoid)


def prune(graph: Graph, layers: int | None = None, heads: int | None = None, ffn: int | None = None) -> Graph:
    """The graph with the first `layers` encoder layers, `heads` attention heads and `ffn` intermediate neurons in each.

    None, or as many as there are, leaves a part whole. Head size and softmax scale stay. Layers that share weights
    shrink together, and so do several feed-forward parts of a layer. `meta` has an entry for each part that was cut.

    Raises SpecError for a number that is not from 1 to what the model has, for a graph that is not in float32 (quantize
    afterwards), and for an op that the pruned dimension meets and that is not understood.

        accelsim.prune(accelsim.trace("bert-base", seq=128), layers=6, heads=8, ffn=1024)
    """
    wanted = {part: n for part, n in zip(PARTS, (layers, heads, ffn), strict=True) if n is not None}
    have = graph.meta.get("precision", "fp32")
    if wanted and have != "fp32":
        raise SpecError("precision of the graph to prune", have, "fp32: prune first, change the precision afterwards")
    cut = {part: n for part, n in wanted.items() if check_part(part, n, graph) > n}
    if not cut:
        return graph
    meta = {**graph.meta, **{part: str(n) for part, n in cut.items()}}
    if "layers" in cut:
        graph = _first_layers(graph, cut["layers"])
    if "heads" in cut:
        graph = _Narrowing(graph, _heads(graph), cut["heads"]).result()
    if "ffn" in cut:
        graph = _Narrowing(graph, _neurons(graph), cut["ffn"]).result()
    return replace(graph, meta=meta).check()


def check_part(part: str, count: int, graph: Graph, path: str = "") -> int:
    """How many of a part (one of `PARTS`) the graph has. Raises SpecError unless `count` is from 1 to that.

    path: what the message calls the number; the part by default. Raises SpecError for a graph without such a part.
    """
    most = size_of(graph, part)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise SpecError(path or part, count, f"an integer from 1 to {most}, which {graph.name} has")
    return most


def size_of(graph: Graph, part: str) -> int:
    """How many encoder layers, attention heads a layer or intermediate neurons a graph has.

    part: one of `PARTS`. Raises SpecError for another, and for a graph that has none or not the same number everywhere.

    >>> from accelsim.trace import trace
    >>> [size_of(trace("bert-base"), part) for part in PARTS]
    [12, 12, 3072]
    """
    if part not in PARTS:
        raise SpecError.unknown("part to prune", part, PARTS)
    if part == "layers":
        return len(_layers(graph))
    return (_heads(graph) if part == "heads" else _neurons(graph)).count


# --- layers -----------------------------------------------------------------------------------------------------------


def _layers(graph: Graph) -> list[list[Op]]:
    """The ops of each encoder layer."""
    found: dict[int, list[Op]] = {}
    for op in graph.ops:
        if op.layer >= 0:
            found.setdefault(op.layer, []).append(op)
    if not found:
        raise SpecError(f"layers of {graph.name}", 0, "a model with encoder layers")
    return [found[i] for i in sorted(found)]


def _first_layers(graph: Graph, keep: int) -> Graph:
    """The graph in which what read the last layer reads the same tensor of the last layer that is kept."""
    layers = _layers(graph)
    first, last = layers[keep - 1], layers[-1]
    same = len(first) == len(last) and all(
        type(a) is type(b) and graph.tensors[a.output] == replace(graph.tensors[b.output], name=a.output)
        for a, b in zip(first, last, strict=True)
    )
    if not same:
        raise SpecError(f"layers of {graph.name}", f"layer {keep - 1} and the last one differ", "layers that are alike")
    dropped = {op.output for layer in layers[keep:] for op in layer}
    instead = {b.output: a.output for a, b in zip(first, last, strict=True)}
    kept = [op for op in graph.ops if op.output not in dropped]
    readers = {name: op.name for op in kept for name in op.inputs} | dict.fromkeys(graph.outputs, "the output")
    for name, reader in readers.items():
        if name in dropped and name not in instead:
            raise SpecError(
                f"layers of {graph.name}", f"{reader} reads {name}", "only the last layer read from outside"
            )
    outputs = tuple(instead.get(name, name) for name in graph.outputs)
    needed, wanted = [], set(outputs)
    for op in reversed(kept):
        if op.output in wanted:
            needed.append(replace(op, inputs=tuple(instead.get(name, name) for name in op.inputs)))
            wanted.update(needed[-1].inputs)
    before = {name for op in graph.ops for name in (*op.inputs, op.output)}
    after = {name for op in needed for name in (*op.inputs, op.output)} | {*graph.inputs, *outputs}
    return replace(
        graph,
        tensors={name: t for name, t in graph.tensors.items() if name in after or name not in before},
        ops=tuple(needed[::-1]),
        outputs=outputs,
    )


# --- heads and neurons ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a tensor holds what is pruned: dimension `dim` is that many times `inner` elements, `inner` fastest."""

    dim: int
    inner: int


@dataclass(frozen=True)
class _Made:
    """What is pruned: `count` times `inner` outputs of each of the linear layers `by` (op names)."""

    part: str
    count: int
    inner: int
    by: frozenset[str]


def _heads(graph: Graph) -> _Made:
    """Attention heads: the second of the four dimensions of what each layer multiplies that is no weight."""
    producers = {op.output: op for op in graph.ops}
    read: dict[str, Op] = {}
    for layer in _layers(graph):
        products = [op for op in layer if isinstance(op, ops.Matmul) and all(name in producers for name in op.inputs)]
        if not products:
            raise SpecError(f"heads of {graph.name}", f"none in layer {layer[0].layer}", "layers with attention")
        read |= {name: op for op in products for name in op.inputs}
    for name, op in read.items():
        if len(graph.tensors[name].shape) != 4:
            raise _not_understood(graph, op, "heads")
    counts = {graph.tensors[name].shape[1] for name in read}
    if counts == {1}:
        return _Made("heads", 1, 1, frozenset())  # nothing can be cut, and one head has no place of its own
    makers = [_maker(graph, producers, op, name) for name, op in read.items()]
    widths = {graph.tensors[op.output].shape[-1] for op in makers if op is not None}
    if len(counts) != 1 or len(widths) != 1:
        raise SpecError(f"heads of {graph.name}", sorted(counts), "heads of one number and size in all layers")
    (count,), (width,) = counts, widths
    return _Made("heads", count, width // count, frozenset(op.name for op in makers if op is not None))


def _maker(graph: Graph, producers: Mapping[str, Op], reader: Op, name: str) -> Op | None:
    """The linear layer whose outputs are the heads of an operand of attention; None for what a softmax made."""
    at, count = _Place(1, 1), graph.tensors[name].shape[1]
    op: Op | None = None
    while not isinstance(op, ops.Linear | ops.Softmax):
        op = producers.get(name)
        if op is None or not op.inputs:
            raise _not_understood(graph, op or reader, "heads")
        if not isinstance(op, ops.Linear):
            shape = graph.tensors[name].shape
            before = _before(op, at, count, graph.tensors[op.inputs[0]].shape, shape)
            if before is None:
                raise _not_understood(graph, op, "heads")
            name, at = op.inputs[0], before
    if isinstance(op, ops.Softmax):
        return None
    shape = graph.tensors[op.output].shape
    if at.dim != len(shape) - 1 or shape[-1] != count * at.inner:
        raise _not_understood(graph, op, "heads")
    return op


def _before(op: Op, at: _Place, count: int, shape: tuple[int, ...], output: tuple[int, ...]) -> _Place | None:
    """Where the operand, of `shape`, has what the output has at `at`; None if that is not understood."""
    if isinstance(op, ops.View):
        return _viewed(at, count, output, shape)
    if isinstance(op, ops.Transpose):
        return replace(at, dim={op.dim0: op.dim1, op.dim1: op.dim0}.get(at.dim, at.dim))
    if isinstance(op, ops.Permute):
        return replace(at, dim=op.dims[at.dim])
    same = isinstance(op, ops.Softmax | ops.Dropout | ops.Clone) or (
        isinstance(op, ops.Elementwise) and len(op.inputs) == 1
    )
    return at if same else None


def _viewed(at: _Place, count: int, shape: tuple[int, ...], to: tuple[int, ...]) -> _Place | None:
    """Where a tensor of `shape` has its place when it is read in the shape `to`: at the same stride. None: nowhere."""
    stride = _stride(shape, at.dim) * at.inner
    for dim, size in enumerate(to):
        inner, rest = divmod(stride, _stride(to, dim))
        if 0 < inner < size:
            return _Place(dim, inner) if rest == 0 and size == count * inner else None
    return None


def _stride(shape: tuple[int, ...], dim: int) -> int:
    """Elements from one index of a dimension to the next."""
    return math.prod(shape[dim + 1 :])


def _neurons(graph: Graph) -> _Made:
    """Intermediate neurons: outputs of the linear layers that an activation function reads, in each layer."""
    by: set[str] = set()
    counts: set[int] = set()
    for layer in _layers(graph):
        read = {op.inputs[0] for op in layer if isinstance(op, _ACTIVATIONS)}
        makers = [op for op in layer if isinstance(op, ops.Linear) and op.output in read]
        if not makers:
            raise SpecError(f"ffn of {graph.name}", f"none in layer {layer[0].layer}", "linear, activation, linear")
        by |= {op.name for op in makers}
        counts |= {graph.tensors[op.output].shape[-1] for op in makers}
    if len(counts) != 1:
        raise SpecError(f"ffn of {graph.name}", sorted(counts), "the same number of neurons in all layers")
    return _Made("ffn", counts.pop(), 1, frozenset(by))


def _not_understood(graph: Graph, op: Op, part: str) -> SpecError:
    return SpecError(
        f"{part} of {graph.name}: {op.name}", op.operator, f"an operator through which {part} are followed"
    )


@dataclass
class _Narrowing:
    """Follows what is pruned, op by op. `places`: of the tensors that have it."""

    graph: Graph
    made: _Made
    keep: int
    places: dict[str, _Place] = field(default_factory=dict)

    def result(self) -> Graph:
        """The graph with `keep` in place of `made.count`."""
        met = {op.name for op in self.graph.ops if self._meets(op)}
        for op in self.graph.ops:
            if op.name not in met and any(name in self.places for name in op.inputs):
                raise self._refused(op)  # reads a weight that a later op makes smaller
        for name in self.graph.outputs:
            if name in self.places:
                raise SpecError(f"{self.made.part} of {self.graph.name}", f"output {name}", "none that leave the model")
        shapes = {name: list(self.graph.tensors[name].shape) for name in self.places}
        for name, at in self.places.items():
            shapes[name][at.dim] = self.keep * at.inner
        tensors = {
            name: replace(t, shape=tuple(shapes[name])) if name in shapes else t
            for name, t in self.graph.tensors.items()
        }
        resized = (
            replace(op, size=tensors[op.output].shape) if isinstance(op, ops.View | ops.Expand) else op
            for op in self.graph.ops
        )
        return replace(self.graph, tensors=tensors, ops=tuple(resized))

    def _refused(self, op: Op) -> SpecError:
        return _not_understood(self.graph, op, self.made.part)

    def _meets(self, op: Op) -> bool:
        """Whether the op makes or reads what is pruned; places its operands and its output."""
        if op.name in self.made.by:
            if op.inputs[0] in self.places:
                raise self._refused(op)
            for name in op.inputs[1:]:
                self._put(op, name, _Place(0, self.made.inner))
            self._put(op, op.output, _Place(len(self._shape(op.output)) - 1, self.made.inner))
        elif not any(name in self.places for name in op.inputs):
            return False
        elif isinstance(op, ops.Linear):
            self._read(op)
        else:
            place = self._after(op)
            if place is None:
                raise self._refused(op)
            self._put(op, op.output, place)
        return True

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.graph.tensors[name].shape

    def _put(self, op: Op, name: str, place: _Place) -> None:
        """Give a tensor its place; it cannot have two."""
        fits = self._shape(name)[place.dim] == self.made.count * place.inner
        if not fits or self.places.setdefault(name, place) != place:
            raise self._refused(op)

    def _read(self, op: Op) -> None:
        """A linear layer that sums over what is pruned: its weight has fewer columns, its output stays."""
        x, weight = op.inputs[:2]
        place = self.places.get(x)
        if place is None or place.dim != len(self._shape(x)) - 1:
            raise self._refused(op)
        self._put(op, weight, replace(place, dim=1))

    def _after(self, op: Op) -> _Place | None:
        """Where the output has it; None for an op that is not understood."""
        name = op.inputs[0]
        rank, place = len(self._shape(name)), self.places.get(name)
        if isinstance(op, ops.View) and place is not None:
            return _viewed(place, self.made.count, self._shape(name), op.size)
        if isinstance(op, ops.Transpose) and place is not None:
            return replace(place, dim={op.dim0: op.dim1, op.dim1: op.dim0}.get(place.dim, place.dim))
        if isinstance(op, ops.Permute) and place is not None:
            return replace(place, dim=op.dims.index(place.dim))
        if isinstance(op, ops.Dropout | ops.Clone):
            return place
        if isinstance(op, ops.Expand) and place is not None:
            return replace(place, dim=place.dim + len(op.size) - rank)
        return self._of_all(op)

    def _of_all(self, op: Op) -> _Place | None:
        """Where the output has it if operands are broadcast: at one place from the end in all, or of size one there."""
        if isinstance(op, ops.Matmul):
            own = 2  # dimensions that are not broadcast
        elif isinstance(op, ops.Softmax):
            own = 1
        elif isinstance(op, ops.Elementwise | ops.Activation):
            own = 0
        else:
            return None
        ends = {(len(self._shape(n)) - p.dim, p.inner) for n in op.inputs if (p := self.places.get(n)) is not None}
        if len(ends) != 1:
            return None
        ((end, inner),) = ends
        others = [self._shape(name) for name in op.inputs if name not in self.places]
        if end <= own or any(len(shape) >= end and shape[-end] != 1 for shape in others):
            return None
        return _Place(len(self._shape(op.output)) - end, inner)
