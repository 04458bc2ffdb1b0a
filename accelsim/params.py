"""`Params`: the integers of a quantized model and the steps they stand for. What `execute` needs beside the graph."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from accelsim.errors import SpecError
from accelsim.files import read_safetensors, write_whole
from accelsim.graph import DType, Graph, Role
from accelsim.numerics import PackedWeights
from accelsim.numerics.weights import LAYOUT, WEIGHT_RANGES
from accelsim.quantspec import QuantSpec
from accelsim.transforms.quantize import output_classes, steps_of, weight_classes

FILE_FORMAT = "accelsim quantized model 1"
MANTISSA_BITS = 8
"""Significant bits of a step in the scale format scale8."""


class Step(NamedTuple):
    """What an integer q of a tensor stands for: scale x (q - zero_point)."""

    scale: float
    zero_point: int


def step_in(scale: float, scale_format: str) -> float:
    """The positive scale as a format keeps it: 8 significant bits (ties to even), a power of two, or as it is.

    >>> step_in(0.3, "power_of_two"), step_in(0.3, "scale8") * 512
    (0.25, 154.0)
    """
    if scale_format == "power_of_two":
        return float(2.0 ** round(math.log2(scale)))
    if scale_format == "scale8":
        mantissa, exponent = math.frexp(scale)
        return math.ldexp(round(mantissa * 2**MANTISSA_BITS), exponent - MANTISSA_BITS)
    return float(np.float32(scale)) if scale_format == "float32" else float(scale)


@dataclass(frozen=True, eq=False)
class Params:
    """Everything a quantized graph needs to run, by the names of its tensors.

    weights: matrices of linear layers, packed. arrays: everything else that is no activation: int8 tables; gamma and
    beta, int8 or int16; biases, float32, which become int32 in the steps of the sums they are added to; buffers, int64.
    steps: of the integer arrays (packed weights have their own), and of activations by the tensor that
    `transforms.quantize.steps_of` names. about: where the model comes from, as plain JSON.
    """

    spec: QuantSpec
    weights: Mapping[str, PackedWeights]
    arrays: Mapping[str, np.ndarray]
    steps: Mapping[str, Step]
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def kernels(self) -> dict[Any, Any]:
        """Integer kernels made for an op before: they depend on steps and weights, not on sequence and batch."""
        return {}

    def step(self, name: str) -> Step:
        """The step of a tensor that has one of its own. Raises SpecError where it is missing."""
        if name not in self.steps:
            raise SpecError("params: steps", f"none of {name}", "a step for every integer tensor")
        return self.steps[name]

    def real(self, graph: Graph, name: str, values: np.ndarray) -> np.ndarray:
        """float64: what the integers of an activation stand for. A tensor that is float already is only widened.

        For the int32 sums of a linear layer the step is that of its input times that of its weights.
        """
        if graph.tensors[name].dtype.is_float:
            return values.astype(np.float64)
        scale, zero = self.scale_of(graph, name)
        result: np.ndarray = (values.astype(np.float64) - zero) * scale
        return result

    def scale_of(self, graph: Graph, name: str) -> tuple[Any, int]:
        """(scale, zero point) of an activation: of int32 sums one scale for each column, zero point 0.

        Of views of such sums, an array in their shape.
        """
        source = graph.memo.setdefault("steps", steps_of(graph)).get(name, name)
        if graph.tensors[source].dtype is not DType.INT32:
            return self.step(source)
        (op,) = [op for op in graph.ops if op.output == source]
        scale, _ = self.scale_of(graph, op.inputs[0])
        return in_view(graph, name, source, scale * self.matrix(op.inputs[1]).scales), 0

    def matrix(self, name: str) -> PackedWeights:
        """The packed weights of a linear layer; of a table that one reads as well, packed when first asked for."""
        if name in self.weights:
            return self.weights[name]
        if name not in self.arrays:
            raise SpecError("params: weights", f"none for {name}", "packed weights for every linear layer")
        key = ("matrix", name)
        if key not in self.kernels:
            scale, zero = self.step(name)
            packed = PackedWeights.pack(self.arrays[name], bits=8, scales=scale, zero_points=zero, name=name)
            self.kernels[key] = packed
        found: PackedWeights = self.kernels[key]
        return found

    def check(self, graph: Graph) -> Params:
        """Return self if it fits the graph. Raises SpecError that names the tensor and what is wrong with it."""
        if graph.meta.get("precision") != self.spec.name:
            raise SpecError("params: quantization", self.spec.name, f"that of the graph, {graph.meta.get('precision')}")
        produced = {op.output for op in graph.ops}
        for name in dict.fromkeys(n for op in graph.ops for n in op.inputs):
            tensor = graph.tensors[name]
            if name in produced or tensor.role is Role.INPUT:
                continue
            shape: tuple[int, ...]
            if name in self.weights:
                packed = self.weights[name]
                shape, found = (packed.n, packed.k), f"int{packed.bits}"
            elif name in self.arrays:
                shape, found = self.arrays[name].shape, self.arrays[name].dtype.name
            else:
                raise SpecError("params", f"nothing for {name}", "an array for every weight and buffer of the graph")
            want = "float32" if tensor.dtype is DType.INT32 else tensor.dtype.value
            if shape != tensor.shape or found != want:
                raise SpecError(f"params: {name}", f"{found} {shape}", f"{want} {tensor.shape}")
        for name, kind in output_classes(graph).items():
            if kind != "sums":
                self._check_step(name)
        for name, kind in weight_classes(graph).items():
            if kind == "norms" and not graph.tensors[name].dtype.is_float:
                self._check_step(name)
        return self

    def _check_step(self, name: str) -> None:
        scale, _ = self.step(name)
        if not (math.isfinite(scale) and scale > 0):
            raise SpecError(f"params: step of {name}", scale, "a finite number > 0")
        if step_in(scale, self.spec.scale_format) != scale:
            legal = f"{step_in(scale, self.spec.scale_format)}, the nearest {self.spec.scale_format} number"
            raise SpecError(f"params: step of {name}", scale, legal)

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write safetensors: strips of packed weights and arrays; all else as one JSON value beside them."""
        from safetensors.numpy import save_file

        tensors: dict[str, np.ndarray] = {f"array.{name}": np.ascontiguousarray(a) for name, a in self.arrays.items()}
        matrices = {}
        for name, packed in self.weights.items():
            tensors[f"strips.{name}"] = packed.strips
            tensors[f"scales.{name}"] = _one_if_equal(packed.scales)
            tensors[f"zeros.{name}"] = _one_if_equal(packed.zero_points)
            matrices[name] = [packed.n, packed.k, packed.bits]
        head = {
            "format": FILE_FORMAT,
            "layout": LAYOUT,
            "spec": self.spec.to_json(),
            "matrices": matrices,
            "steps": {name: [s.scale, s.zero_point] for name, s in self.steps.items()},
            "about": dict(self.about),
        }
        text = {"accelsim": json.dumps(head)}  # one value: the library writes several in any order
        write_whole(Path(path), lambda partial: save_file(tensors, partial, text))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Params:
        """Read what `save` wrote. Raises SpecError for a file that is missing, cut short or not of this format."""
        tensors, head = read_safetensors(path, "accelsim")
        _check_head(head, path)
        weights = {}
        for name, (n, k, bits) in head["matrices"].items():
            weights[name] = _unpacked(tensors, path, name, n, k, bits)
        arrays = {key.removeprefix("array."): a for key, a in tensors.items() if key.startswith("array.")}
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SpecError(f"{path}: {name}", "NaN or infinity", "finite numbers")
        steps = {name: Step(float(s), int(z)) for name, (s, z) in head["steps"].items()}
        return cls(QuantSpec.from_json(head["spec"], str(path)), weights, arrays, steps, head["about"])


def in_view(graph: Graph, name: str, source: str, values: np.ndarray) -> np.ndarray:
    """Values that belong to the columns of `source`, where its views and copies up to `name` have put them."""
    if name == source:
        return values
    makers = {op.output: op for op in graph.ops}

    def follow(tensor: str) -> np.ndarray:
        if tensor == source:
            return np.broadcast_to(values, graph.tensors[source].shape)
        return makers[tensor].execute(*(follow(n) for n in makers[tensor].inputs))

    return follow(name)


def _one_if_equal(values: np.ndarray) -> np.ndarray:
    return values[:1].copy() if (values == values[0]).all() else values


def _check_head(head: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    if head.get("format") != FILE_FORMAT or head.get("layout") != LAYOUT:
        raise SpecError(f"{path}: format", head.get("format"), f"{FILE_FORMAT}, as Params.save writes")
    pair = {"matrices": (int, int, int), "steps": (int | float, int)}
    for key in ("spec", "matrices", "steps", "about"):
        if not isinstance(head.get(key), dict):
            raise SpecError(f"{path}: {key}", head.get(key), "a mapping")
    for key, kinds in pair.items():
        for name, value in head[key].items():
            ok = isinstance(value, list) and len(value) == len(kinds)
            if not ok or not all(isinstance(v, kind) for v, kind in zip(value, kinds, strict=True)):
                raise SpecError(f"{path}: {key}.{name}", value, f"{len(kinds)} numbers")


def _unpacked(
    tensors: Mapping[str, np.ndarray], path: str | os.PathLike[str], name: str, n: int, k: int, bits: int
) -> PackedWeights:
    """Packed weights from the arrays of a file."""
    if bits not in WEIGHT_RANGES or min(n, k) < 1 or max(n, k) >= 2**31:
        raise SpecError(f"{path}: {name}", [n, k, bits], "n, k >= 1 and 8, 4 or 2 bits")
    scales, zeros = tensors.get(f"scales.{name}"), tensors.get(f"zeros.{name}")
    if scales is None or zeros is None:
        raise SpecError(f"{path}: {name}", "no scales or no zero points", "both beside the strips")
    strips = tensors.get(f"strips.{name}")
    where = f"{path}: strips.{name}"
    return PackedWeights.from_strips(
        strips, n=n, k=k, bits=bits, zero_points=zeros, scales=scales, name=name, path=where
    )
