"""The one `Work` of ops that run as one kernel (`Op.kernel`): operands read once, what stays inside is not moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from accelsim.errors import SpecError
from accelsim.work import Work, WorkKind, gemm, move

if TYPE_CHECKING:
    from accelsim.graph import Graph, Op, Tensor


@dataclass(frozen=True)
class _Member:
    """One op of a kernel; `sources` are its inputs looked at through views."""

    op: Op
    work: Work
    inputs: tuple[Tensor, ...]
    output: Tensor
    sources: tuple[str, ...]


def fused_works(graph: Graph) -> dict[str, tuple[tuple[Work, ...], tuple[str, ...]]]:
    """Op of a kernel -> (its work, the tensors the kernel reads from outside).

    The last op of a kernel has the work of all, the others are free.

    Raises SpecError for ops that cannot be one kernel: products that share no operand, sweeps over unequal numbers of
    elements, a tensor that another op reads before the kernel ends.
    """
    kernels, outside = _kernels(graph)
    found: dict[str, tuple[tuple[Work, ...], tuple[str, ...]]] = {}
    for kernel, members in kernels.items():
        made = {m.op.output for m in members}
        reads = {
            name: tensor
            for m in members
            for name, tensor, read in zip(m.op.inputs, m.inputs, m.sources, strict=True)
            if read not in made
        }
        for m in members:
            found[m.op.name] = (move(0, 0),), ()
        found[members[-1].op.name] = (_merged(kernel, members, reads, outside),), tuple(reads)
    return found


def stays_inside(graph: Graph) -> set[str]:
    """Outputs of kernels' ops that nothing outside the kernel reads: they need no memory."""
    if not any(op.kernel for op in graph.ops):
        return set()
    kernels, outside = _kernels(graph)
    return {m.op.output for members in kernels.values() for m in members} - outside


def _kernels(graph: Graph) -> tuple[dict[str, list[_Member]], set[str]]:
    """(kernel -> its ops in order, their outputs that something outside their kernel reads)."""
    source: dict[str, str] = {}
    kernels: dict[str, list[_Member]] = {}
    kernel_of: dict[str, str] = {}
    for op in graph.ops:
        if op.kernel:
            inputs, output = graph.operands(op)
            (work,) = op.work(inputs, output)
            read = tuple(source.get(name, name) for name in op.inputs)
            kernels.setdefault(op.kernel, []).append(_Member(op, work, inputs, output, read))
            kernel_of[op.output] = op.kernel
        elif op.inputs and graph.work(op)[0].is_free:
            source[op.output] = source.get(op.inputs[0], op.inputs[0])
    outside = _read_outside(graph, source, kernel_of, {k: m[-1].op.name for k, m in kernels.items()})
    return kernels, outside


def _read_outside(
    graph: Graph, source: Mapping[str, str], kernel_of: Mapping[str, str], last: Mapping[str, str]
) -> set[str]:
    """Outputs of kernels' ops that something outside their kernel reads."""
    outside = {source.get(name, name) for name in graph.outputs}
    ended: set[str] = set()
    ends = {name: kernel for kernel, name in last.items()}
    for op in graph.ops:
        if op.output not in source:  # what looks through a view is counted where it is read
            for name in op.inputs:
                read = source.get(name, name)
                kernel = kernel_of.get(read)
                if kernel is not None and kernel != op.kernel:
                    if kernel not in ended:
                        raise SpecError(f"kernel {kernel}", op.name, f"an op that runs after the kernel, for {read}")
                    outside.add(read)
        if op.name in ends:
            ended.add(ends[op.name])
    return outside


def _merged(kernel: str, members: list[_Member], reads: Mapping[str, Tensor], outside: set[str]) -> Work:
    if any(m.work.kind is WorkKind.GEMM for m in members):
        return _merged_gemm(kernel, members)
    for m in members:
        whole = {t.name: t.bytes for t in m.inputs}
        plain = m.work.in_bytes == sum(whole.values()) and m.work.out_bytes == m.output.bytes
        if m.work.kind not in (WorkKind.VECTOR, WorkKind.MOVE) or not plain:
            raise SpecError(f"kernel {kernel}", m.op.name, "ops that read and write their operands once")
    lead = max(members, key=lambda m: (m.work.kind is WorkKind.VECTOR, m.work.passes, m.work.function, m.work.m)).work
    return replace(
        lead,
        in_bytes=sum(t.bytes for t in reads.values()),
        out_bytes=sum(m.output.bytes for m in members if m.op.output in outside),
        flops_per_element=_per_element(kernel, members, "flops_per_element", lead),
        exps_per_element=_per_element(kernel, members, "exps_per_element", lead),
    )


def _per_element(kernel: str, members: Iterable[_Member], name: str, lead: Work) -> int:
    """What all members ask for, for each element that the leading one sweeps."""
    total = sum(m.work.elements * int(getattr(m.work, name)) for m in members)
    if lead.elements == 0:
        return 0
    if total % lead.elements:
        raise SpecError(
            f"kernel {kernel}", lead.elements, "ops that sweep as many elements as the one with most passes"
        )
    return total // lead.elements


def _merged_gemm(kernel: str, members: list[_Member]) -> Work:
    """One product: beside each other (one left operand), below each other (one right operand), or summed."""
    products = [m for m in members if m.work.kind is WorkKind.GEMM]
    sums = [m for m in members if m.work.kind is not WorkKind.GEMM]
    works = [m.work for m in products]
    first = works[0]
    one_left = len({m.sources[0] for m in products}) == 1
    one_right = len({m.sources[1] for m in products}) == 1
    alike = {name: len({getattr(w, name) for w in works}) == 1 for name in ("m", "k", "n", "count", "a_bits", "w_bits")}
    m, k, n = first.m, first.k, first.n
    if sums:
        made = {member.op.output for member in members}
        inside = all(s.op.operator == "add" and set(s.sources) <= made for s in sums)
        legal = inside and len(sums) == len(products) - 1 and alike["m"] and alike["n"]
        k = sum(w.k for w in works)
    elif one_left and alike["m"] and alike["k"]:
        legal = True
        n = sum(w.n for w in works)
    else:
        legal = one_right and alike["k"] and alike["n"]
        m = sum(w.m for w in works)
    if not legal or not alike["count"] or not alike["a_bits"] or not alike["w_bits"]:
        found = ", ".join(f"{w.m} x {w.k} x {w.n}" for w in works)
        raise SpecError(f"kernel {kernel}", found, "products with one operand in common, or their sum")
    bias = sum(
        w.weight_bytes - gemm(w.m, w.k, w.n, count=w.count, w_bits=w.w_bits).weight_bytes for w in works
    )  # fmt: skip
    return gemm(
        m,
        k,
        n,
        count=first.count,
        a_bits=first.a_bits,
        w_bits=first.w_bits,
        o_bits=first.o_bits,
        arithmetic=first.arithmetic,
        bias_bytes=bias,
        parameter_weights=all(w.parameter_weights for w in works),
    )
