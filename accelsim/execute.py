"""Run a `Graph` on arrays, op by op: what the model means, in the arithmetic the graph names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Op, Tensor

if TYPE_CHECKING:
    from accelsim.params import Params
    from accelsim.twin import ArrayKernel, ArrayRun, PuArray

EXECUTABLE = {DType.FLOAT32, DType.FLOAT64, DType.BOOL, DType.INT32, DType.INT64}
"""Formats whose arithmetic numpy's equals."""


def execute(
    graph: Graph,
    params: Params | Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    watch: Callable[[Op, np.ndarray, int], None] | None = None,
    array: PuArray | None = None,
    layers: Sequence[int] | None = None,
    watch_array: Callable[[Op, ArrayRun], None] | None = None,
) -> dict[str, np.ndarray]:
    """Outputs of the graph by tensor name, in its dtypes. A tensor is dropped after its last reader.

    params: of a float graph weights and buffers by tensor name (`accelsim.trace.parameters`); of a quantized graph
    (`transforms.quantize`) its `Params`, and every op is computed in integers, exactly. `Params.real` turns integer
    outputs into real numbers. inputs: by tensor name. threads: of the integer kernels. watch: called after every op
    with its output and the number of elements that had to be clamped.

    array: compute the Linear and Matmul ops of these encoder `layers` (None: of all) as FQ-BERT's accelerator does,
    beat by beat (`accelsim.twin`); the results are the same integers. watch_array: called after each of them, before
    `watch`, with what it took.

    Raises SpecError for a tensor that is missing or of another shape or dtype, for a graph in reduced precision
    without `Params`, and for layers or products that the array does not have; Infeasible, with the layer's name, if a
    sum could leave its accumulator.
    """
    kernels: list[Any]
    if isinstance(params, Mapping):
        for tensor in graph.tensors.values():
            if tensor.dtype not in EXECUTABLE:
                legal = f"one of {', '.join(sorted(d.value for d in EXECUTABLE))}, or the Params of a quantized model"
                raise SpecError(f"execute: dtype of {tensor.name}", tensor.dtype.value, legal)
        arrays: Mapping[str, Any] = params
        kernels = [None] * len(graph.ops)
    else:
        kernels = _kernels(graph, params)
        arrays = {**params.weights, **params.arrays}
    if array is None and (layers is not None or watch_array is not None):
        raise SpecError("execute: array", None, "the array that `layers` and `watch_array` speak of")
    on_array = {} if array is None else _array_kernels(graph, params, array, layers)
    alive = _given(graph, arrays, inputs)
    last = _last_readers(graph)
    for op, kernel, dead in zip(graph.ops, kernels, last, strict=True):
        operands = [alive[name] for name in op.inputs]
        clamped = 0
        if op.name in on_array:
            run = on_array[op.name](*operands)
            result, clamped = run.values, run.saturated
            if watch_array is not None:
                watch_array(op, run)
        elif kernel is None:
            result = np.asarray(op.execute(*operands))
        else:
            result, clamped = kernel(*operands, threads=threads)
        alive[op.output] = _checked(result, graph.tensors[op.output], op.name)
        if watch is not None:
            watch(op, result, clamped)
        for name in dead:
            del alive[name]
    return {name: alive[name] for name in graph.outputs}


def _kernels(graph: Graph, params: Params) -> list[Any]:
    """For each op its integer kernel or None; found once for a graph and its params."""
    from accelsim.integers import integer_kernel

    key = ("graph", id(graph))
    held = params.kernels.get(key)
    if held is None or held[0] is not graph:
        params.check(graph)
        held = (graph, [integer_kernel(op, graph, params) for op in graph.ops])
        params.kernels[key] = held
    found: list[Any] = held[1]
    return found


def _array_kernels(
    graph: Graph, params: Params | Mapping[str, np.ndarray], array: PuArray, layers: Sequence[int] | None
) -> dict[str, ArrayKernel]:
    """What the array computes, by op."""
    if isinstance(params, Mapping):
        raise SpecError("execute: array", "a graph in floating point", "a quantized graph and its Params")
    from accelsim.twin import array_kernels

    return array_kernels(graph, params, array, layers)


def _given(graph: Graph, arrays: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the ops read that no op makes. Matrices of integers were checked with the params."""
    alive: dict[str, Any] = {}
    produced = {op.output for op in graph.ops}
    for name in dict.fromkeys((*(i for op in graph.ops for i in op.inputs), *graph.outputs)):
        if name in produced:
            continue
        source = inputs if name in graph.inputs else arrays
        if name not in source:
            raise SpecError("execute", f"no array for {name}", "an array for every input, weight and state")
        tensor = graph.tensors[name]
        plain = name in graph.inputs or tensor.dtype in EXECUTABLE - {DType.INT32}
        alive[name] = _checked(np.asarray(source[name]), tensor, "array") if plain else source[name]
    return alive


def _last_readers(graph: Graph) -> list[list[str]]:
    """For each op the tensors that nobody reads after it."""
    if "dead" not in graph.memo:
        dead: list[list[str]] = [[] for _ in graph.ops]
        for name, (_, end) in graph.liveness().items():
            if name not in graph.outputs:
                dead[end].append(name)
        graph.memo["dead"] = dead
    found: list[list[str]] = graph.memo["dead"]
    return found


_NAMES = {np.dtype(d.value): d for d in DType if d not in (DType.INT4, DType.INT2, DType.BFLOAT16)}


def _checked(array: np.ndarray, tensor: Tensor, what: str) -> np.ndarray:
    """The array, if it is what the tensor says."""
    if array.shape != tensor.shape or _NAMES.get(array.dtype) is not tensor.dtype:
        raise SpecError(
            f"{what}: {tensor.name}", f"{array.dtype} {array.shape}", f"{tensor.dtype.value} {tensor.shape}"
        )
    return array
