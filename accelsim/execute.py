"""Run a `Graph` on arrays, op by op: what the model means, in the arithmetic the graph names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Tensor

EXECUTABLE = {DType.FLOAT32, DType.FLOAT64, DType.BOOL, DType.INT32, DType.INT64}
"""Formats whose arithmetic numpy's equals."""


def execute(graph: Graph, params: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the graph by tensor name. A tensor is dropped after its last reader.

    params: weights and buffers by tensor name (`accelsim.trace.parameters` gives them). inputs: by tensor name.
    Raises SpecError for a tensor that is missing or of another shape or dtype, and for reduced precision, whose
    integer arithmetic has no meaning here yet.
    """
    for tensor in graph.tensors.values():
        if tensor.dtype not in EXECUTABLE:
            legal = ", ".join(sorted(d.value for d in EXECUTABLE))
            raise SpecError(f"execute: dtype of {tensor.name}", tensor.dtype.value, f"one of {legal}")
    alive: dict[str, np.ndarray] = {}
    produced = {op.output for op in graph.ops}
    for name in dict.fromkeys((*(i for op in graph.ops for i in op.inputs), *graph.outputs)):
        if name not in produced:
            source = inputs if name in graph.inputs else params
            if name not in source:
                raise SpecError("execute", f"no array for {name}", "an array for every input, weight and state")
            alive[name] = _checked(np.asarray(source[name]), graph.tensors[name], "array")
    last = {name: end for name, (_, end) in graph.liveness().items()}
    for i, op in enumerate(graph.ops):
        result = op.execute(*(alive[name] for name in op.inputs))
        alive[op.output] = _checked(np.asarray(result), graph.tensors[op.output], op.name)
        for name in {*op.inputs, op.output}:
            if last.get(name) == i and name not in graph.outputs:
                del alive[name]
    return {name: alive[name] for name in graph.outputs}


def _checked(array: np.ndarray, tensor: Tensor, what: str) -> np.ndarray:
    """The array, if it is what the tensor says."""
    if array.shape != tensor.shape or array.dtype.name != tensor.dtype.value:
        raise SpecError(
            f"{what}: {tensor.name}", f"{array.dtype} {array.shape}", f"{tensor.dtype.value} {tensor.shape}"
        )
    return array
