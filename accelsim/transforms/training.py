"""Optimizers of a training graph."""

from __future__ import annotations

from accelsim.errors import SpecError
from accelsim.graph import Graph

OPTIMIZERS: tuple[str, ...] = ()


def find_optimizer(name: str) -> None:
    """Raises SpecError for an unknown optimizer."""
    raise SpecError.unknown("optimizer", name, OPTIMIZERS)


def with_optimizer(graph: Graph, name: str) -> Graph:
    """The graph with the passes of an optimizer."""
    find_optimizer(name)
    return graph
