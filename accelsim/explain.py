"""From a number to its formula: the terms behind the cost of one op."""

from __future__ import annotations

from accelsim.errors import SpecError
from accelsim.graph import Graph
from accelsim.mapping import best
from accelsim.platforms.base import Platform, Term
from accelsim.simulate import at_precision, bound_of


def explain_op(graph: Graph, platform: Platform, op: str, precision: str | None = None) -> list[Term]:
    """Terms of every work the op asks for: tile, loop order, traffic per operand, cycles and what bounds them.

    Raises SpecError, with the nearest name, for an op that is not in the graph.
    """
    graph = at_precision(graph, platform, precision)
    found = {o.name: works for o, works in graph.works}
    if op not in found:
        raise SpecError.unknown("--op", op, found)
    terms = [Term("op", op, "", f"{graph.name} on {platform.name}, {graph.meta.get('precision', 'fp32')}")]
    for work in found[op]:
        if work.is_free:
            terms.append(Term("free", "a view", "", "no bytes move, nothing is computed"))
            continue
        mapping = best(platform, [work], [op])
        terms += platform.explain(work, mapping)
        cost = platform.costs_of(work, mapping)
        bound = bound_of(cost.cycles, cost.busy_cycles, cost.dram_cycles)
        terms.append(Term("bound", bound, "", "the larger of busy and DRAM cycles; latency if neither fills half"))
    return terms
