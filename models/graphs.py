"""Graphs of zoo models at any size and with any number of labels. No torch needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import accelsim
from accelsim import ops
from accelsim.graph import Graph


def graphs(model: str, head: str, labels: int = 2) -> Callable[[int, int], Graph]:
    """Float graphs of a zoo model at any size, with another number of labels where its head is a classifier."""

    @lru_cache(maxsize=256)
    def at(batch: int, seq: int) -> Graph:
        graph = accelsim.trace(model, seq=seq, batch=batch, head=head)
        return graph if labels == 2 else with_labels(graph, labels)

    return at


def with_labels(graph: Graph, labels: int) -> Graph:
    """The graph whose last linear layer has that many outputs."""
    last = next(op for op in reversed(graph.ops) if isinstance(op, ops.Linear))
    shapes = {last.inputs[1]: (labels, graph.tensors[last.inputs[1]].shape[1])}
    shapes |= {name: (labels,) for name in last.inputs[2:]}
    shapes[last.output] = (*graph.tensors[last.output].shape[:-1], labels)
    tensors = {n: replace(t, shape=shapes.get(n, t.shape)) for n, t in graph.tensors.items()}
    return replace(graph, tensors=tensors).check()
