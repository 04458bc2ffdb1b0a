"""Pure functions Graph -> Graph. `apply` checks the graph after each."""

from __future__ import annotations

from collections.abc import Callable

from accelsim.graph import Graph

Transform = Callable[[Graph], Graph]


def apply(graph: Graph, *transforms: Transform) -> Graph:
    """The graph after each transform in turn. Raises SpecError where one breaks a rule of `Graph.check`."""
    for transform in transforms:
        graph = transform(graph).check()
    return graph
