"""Bit widths per tensor class. Scales and integer arithmetic are not set here: this is what memory and units see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Op, Role, Tensor


@dataclass(frozen=True)
class Precision:
    """Number format of each tensor class.

    gemm_weights: weights of linear layers, and parameters that a matmul reads. tables: embedding tables that no GEMM
    reads. norms: every other weight, above all scale and shift of normalizations. biases: what a linear layer adds.
    activations: what ops make, and states.
    """

    gemm_weights: DType
    tables: DType
    norms: DType
    biases: DType
    activations: DType


def _uniform(dtype: DType) -> Precision:
    return Precision(dtype, dtype, dtype, dtype, dtype)


PRECISIONS = {
    "fp32": _uniform(DType.FLOAT32),
    "fp16": _uniform(DType.FLOAT16),
    "bf16": _uniform(DType.BFLOAT16),
    "w8a8": Precision(DType.INT8, DType.INT8, DType.INT8, DType.INT32, DType.INT8),
    "w4a8": Precision(DType.INT4, DType.INT8, DType.INT8, DType.INT32, DType.INT8),
}
"""Presets; the integer ones keep biases in the width of the accumulator (Jacob et al., arXiv:1712.05877, eq. 7)."""


def names() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(PRECISIONS)


def with_precision(graph: Graph, precision: str) -> Graph:
    """The graph in another precision: floating-point tensors get the format of their class; bool and ids stay.

    A table that a GEMM reads as well (a tied decoder) is a GEMM weight. Raises SpecError for an unknown preset, and
    for a graph that is not in floating point any more.
    """
    if precision not in PRECISIONS:
        raise SpecError.unknown("precision", precision, PRECISIONS)
    if graph.meta.get("precision", "fp32") not in ("fp32", precision):
        raise SpecError("precision of the graph", graph.meta["precision"], f"fp32, to go to {precision}")
    preset = PRECISIONS[precision]
    classes = _classes(graph)
    tensors = {
        name: replace(t, dtype=getattr(preset, classes.get(name, "activations"))) if t.dtype.is_float else t
        for name, t in graph.tensors.items()
    }
    return replace(
        graph,
        tensors=tensors,
        ops=tuple(_retyped(op, tensors[op.output]) for op in graph.ops),
        meta={**graph.meta, "precision": precision},
    )


def _retyped(op: Op, output: Tensor) -> Op:
    """The op writing the dtype its output has now, where it names one."""
    if isinstance(op, ops.To | ops.Full | ops.Arange):
        return replace(op, dtype=output.dtype.value)
    return op


def _classes(graph: Graph) -> dict[str, str]:
    """Weight name -> the field of `Precision` that holds: a GEMM operand before a table, a bias and a norm."""
    weights = {name for name, t in graph.tensors.items() if t.role is Role.WEIGHT}
    found = dict.fromkeys(weights, "norms")

    def claim(names: Iterable[str], kind: str) -> None:
        found.update({name: kind for name in names if name in weights})

    origin = {op.output: op.inputs for op in graph.ops if isinstance(op, ops.Free | ops.Copy)}
    for op in graph.ops:
        if isinstance(op, ops.Linear):
            claim(op.inputs[2:], "biases")
    for op in graph.ops:
        if isinstance(op, ops.Embedding):
            claim(op.inputs[:1], "tables")
    for op in graph.ops:
        if isinstance(op, ops.Linear | ops.Matmul):
            claim(_sources(op.inputs[:2], origin), "gemm_weights")
    for op in graph.ops:  # what is only a view or copy of weights stays in their format
        if isinstance(op, ops.Free | ops.Copy) and all(name in found for name in op.inputs):
            found[op.output] = found[op.inputs[0]]
    return found


def _sources(names: Iterable[str], origin: dict[str, tuple[str, ...]]) -> list[str]:
    """The names, and what views and copies of them come from."""
    result = list(names)
    for name in result:
        result.extend(origin.get(name, ()))
    return result
