"""How much memory a graph needs, from the lives of its tensors."""

from __future__ import annotations

from dataclasses import dataclass

from accelsim import ops
from accelsim.errors import Infeasible
from accelsim.graph import Graph, Role
from accelsim.kernels import stays_inside

LEVERS = ("--batch", "--micro-batch", "--checkpoint", "--precision mixed-fp16", "--optimizer", "dram.capacity_bytes")


@dataclass(frozen=True)
class PeakMemory:
    """Bytes at the moment when most are alive, by what they are for; `op`: what runs then.

    weights, state (of the optimizer, buffers), inputs: all the time. gradients: of parameters. activations: the rest.
    """

    weights_bytes: int
    state_bytes: int
    inputs_bytes: int
    gradients_bytes: int
    activations_bytes: int
    op: str

    @property
    def total_bytes(self) -> int:
        """The sum."""
        constant = self.weights_bytes + self.state_bytes + self.inputs_bytes
        return constant + self.gradients_bytes + self.activations_bytes


def peak_memory(graph: Graph) -> PeakMemory:
    """What is alive at the worst op, each tensor from the op that makes it to its last reader.

    Views and in-place results share the memory of what they were made from; what stays inside a kernel needs none.
    Weights, state and inputs are there from the beginning to the end. No workspace of a library, no fragmentation.
    """
    last = len(graph.ops) - 1
    made: dict[str, int] = {}
    ends: dict[str, int] = {}
    homes: dict[str, tuple[str, ...]] = {}  # tensor -> the tensors in whose memory it is
    for i, op in enumerate(graph.ops):
        for name in op.inputs:
            for home in homes.get(name, ()):
                ends[home] = i
        if isinstance(op, ops.Update) and op.replaces:
            homes[op.output] = tuple(h for n in op.replaces for h in homes.get(n, ()))
        elif isinstance(op, ops.Free):
            homes[op.output] = homes.get(op.inputs[0], ())
        else:
            homes[op.output] = (op.output,)
            made[op.output] = i
            ends[op.output] = i
    for name in graph.outputs:
        for home in homes.get(name, ()):
            ends[home] = last
    inside = stays_inside(graph)
    gradients = {h for n, t in graph.tensors.items() if t.role is Role.GRAD for h in homes.get(n, ())}
    change: list[list[int]] = [[0, 0] for _ in range(last + 2)]
    for name, start in made.items():
        if name not in inside:
            kind = int(name in gradients)
            change[start][kind] += graph.tensors[name].bytes
            change[ends[name] + 1][kind] -= graph.tensors[name].bytes
    best, alive = (-1, 0, 0, 0), [0, 0]
    for i, (activations, of_parameters) in enumerate(change[:-1]):
        alive = [alive[0] + activations, alive[1] + of_parameters]
        if sum(alive) > best[0]:
            best = (sum(alive), i, alive[0], alive[1])
    held = {role: sum(t.bytes for t in graph.tensors.values() if t.role is role) for role in Role}
    return PeakMemory(
        held[Role.WEIGHT], held[Role.STATE], held[Role.INPUT], best[3], best[2], graph.ops[best[1]].name
    )  # fmt: skip


def check_memory(graph: Graph, capacity_bytes: int, where: str) -> None:
    """Raise Infeasible, with the bytes that are missing, where the graph needs more than there is."""
    peak = peak_memory(graph)
    if peak.total_bytes > capacity_bytes:
        missing = peak.total_bytes - capacity_bytes
        what = (
            f"{where}: memory at {peak.op}: weights {peak.weights_bytes}, state {peak.state_bytes}, gradients "
            f"{peak.gradients_bytes}, activations {peak.activations_bytes} bytes, {missing} too many"
        )
        raise Infeasible(what, peak.total_bytes, capacity_bytes, "bytes", LEVERS)
