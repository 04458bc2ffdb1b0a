"""`Graph`: ops over tensors, what a model computes. No arrays, no hardware, no results."""

from __future__ import annotations

import importlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from accelsim.errors import SpecError
from accelsim.files import write_whole
from accelsim.kernels import fused_works
from accelsim.work import Arithmetic, Work, packed_bytes

SCHEMA_VERSION = 1

PHASES = ("forward", "recompute", "backward_data", "backward_weight", "update")
"""Phases of a training iteration; inference has the first alone."""


class DType(Enum):
    """Number formats of tensors, by the names PyTorch gives them (int2 and int4 are packed)."""

    BOOL = "bool"
    INT2 = "int2"
    INT4 = "int4"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def bits(self) -> int:
        """Stored width of one element (a bool takes a byte, as in PyTorch)."""
        return _BITS[self]

    @property
    def arithmetic(self) -> Arithmetic:
        """Which kind of arithmetic unit it needs."""
        return _ARITHMETIC.get(self, Arithmetic.INT)

    @property
    def is_float(self) -> bool:
        """True for float16, bfloat16, float32, float64."""
        return self.arithmetic is not Arithmetic.INT


_BITS = {d: 8 if d is DType.BOOL else int("".join(filter(str.isdigit, d.value))) for d in DType}
_ARITHMETIC = {
    DType.FLOAT16: Arithmetic.FLOAT,
    DType.BFLOAT16: Arithmetic.BFLOAT,
    DType.FLOAT32: Arithmetic.FLOAT,
    DType.FLOAT64: Arithmetic.FLOAT,
}


class Role(Enum):
    """What a tensor is to the model. STATE is a buffer or a lifted constant: stored, never trained."""

    INPUT = "input"
    WEIGHT = "weight"
    ACTIVATION = "activation"
    GRAD = "grad"
    STATE = "state"


@dataclass(frozen=True)
class Tensor:
    """A named value: shape in elements, dtype, role; `frozen` weights are not trained."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    role: Role = Role.ACTIVATION
    frozen: bool = False

    @cached_property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @cached_property
    def bytes(self) -> int:
        """Stored size, packed. Derived here and nowhere else."""
        return packed_bytes(self.elements, self.dtype.bits)


@dataclass(frozen=True, kw_only=True)
class Op(ABC):
    """A node of the graph. Owns its three intrinsic facts: output shape, the work it asks for, its meaning on arrays.

    name: unique, module path and operator. inputs, output: tensor names. group: module path. layer: index of the
    encoder layer, -1 outside. phase: one of `PHASES`. kernel: equal for ops that run as one, "" for an op by itself.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    group: str
    layer: int = -1
    phase: str = "forward"
    kernel: str = ""

    operator: ClassVar[str]
    may_be_empty: ClassVar[bool] = False
    """Whether its output may have no elements: a slice's may, of what is then joined or padded."""
    vocabulary: ClassVar[dict[str, type[Op]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "operator" in cls.__dict__:
            Op.vocabulary[cls.operator] = cls

    @abstractmethod
    def out_shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output from the shapes of the inputs; raises SpecError where they do not fit."""

    @abstractmethod
    def work(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[Work, ...]:
        """What the op asks of hardware. A free op returns one MOVE of zero bytes: it stays a row of the report."""

    @abstractmethod
    def execute(self, *arrays: np.ndarray) -> np.ndarray:
        """The op's meaning: the output array from the input arrays."""

    def check_dtypes(self, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: B027  # most ops accept any
        """Raise SpecError where operand types cannot meet in this op. The default accepts any."""

    @property
    def attributes(self) -> dict[str, Any]:
        """The fields a subclass adds to `Op`: what JSON stores under "attributes"."""
        base = {f.name for f in fields(Op)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in base}


@dataclass(frozen=True)
class Graph:
    """Ops in execution order, and every tensor they touch.

    name: model. tensors: by name. inputs, outputs: tensor names. meta: strings that say how it was made
    (seq, batch, head, precision, source).
    """

    name: str
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    meta: Mapping[str, str] = field(default_factory=dict)

    def operands(self, op: Op) -> tuple[tuple[Tensor, ...], Tensor]:
        """(input tensors, output tensor) of one op."""
        return tuple(self.tensors[name] for name in op.inputs), self.tensors[op.output]

    def work(self, op: Op) -> tuple[Work, ...]:
        """The work one op asks for, from the shapes and dtypes of this graph."""
        return op.work(*self.operands(op))

    @cached_property
    def memo(self) -> dict[str, Any]:
        """What was derived from this graph before (it never changes): the same graph at other precisions."""
        return {}

    @cached_property
    def works(self) -> tuple[tuple[Op, tuple[Work, ...]], ...]:
        """Every op with the work it asks for, in order; in a graph with encoder layers, what is outside them is marked.

        Of the ops of one kernel the last has the work of all.
        A view belongs to the side its operand was made on, so that what crosses is what is read.
        """
        found: list[tuple[Op, tuple[Work, ...]]] = []
        fused = fused_works(self) if any(op.kernel for op in self.ops) else {}
        has_layers = any(op.layer >= 0 for op in self.ops)
        side: dict[str, int] = {}
        crossed: set[str] = set()
        for op in self.ops:
            works, reads = fused[op.name] if op.name in fused else (self.work(op), op.inputs)
            outside = int(op.layer < 0)
            is_view = works[0].is_free and op.name not in fused
            side[op.output] = side.get(op.inputs[0], outside) if op.inputs and is_view else outside
            if has_layers and not works[0].is_free:
                new = [n for n in dict.fromkeys(reads) if side.get(n, outside) != outside and n not in crossed]
                crossed.update(new)
                nbytes = sum(self.tensors[n].bytes for n in new)
                works = (replace(works[0], outside=outside, crossing_bytes=nbytes), *works[1:])
                works = tuple(replace(work, outside=outside) for work in works)
            found.append((op, works))
        return tuple(found)

    def unique_work(self) -> dict[Work, list[str]]:
        """Distinct `Work` rows, each with the names of the ops that ask for it, in order of first use."""
        rows: dict[Work, list[str]] = {}
        for op, works in self.works:
            for work in works:
                rows.setdefault(work, []).append(op.name)
        return rows

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(t.elements for t in self.tensors.values() if t.role is Role.WEIGHT)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all GEMMs."""
        return sum(w.macs for _, works in self.works for w in works)

    @property
    def flops(self) -> int:
        """Multiplications and additions of all ops (a GEMM counts 2 per MAC)."""
        return sum(w.flops for _, works in self.works for w in works)

    def producers(self) -> dict[str, str]:
        """Tensor name -> name of the op that makes it."""
        return {op.output: op.name for op in self.ops}

    def liveness(self) -> dict[str, tuple[int, int]]:
        """Activation name -> (index of the op that makes it, index of its last reader; the last op for outputs)."""
        span = {op.output: (i, i) for i, op in enumerate(self.ops)}
        for i, op in enumerate(self.ops):
            for name in op.inputs:
                if name in span:
                    span[name] = (span[name][0], i)
        for name in self.outputs:
            if name in span:
                span[name] = (span[name][0], len(self.ops) - 1)
        return span

    def peak_activation_bytes(self) -> int:
        """Largest sum of activations alive at one op, if each op's output gets memory of its own."""
        change = [0] * (len(self.ops) + 1)
        for name, (first, last) in self.liveness().items():
            change[first] += self.tensors[name].bytes
            change[last + 1] -= self.tensors[name].bytes
        peak = alive = 0
        for delta in change:
            alive += delta
            peak = max(peak, alive)
        return peak

    def check(self) -> Graph:
        """Return self if every name is defined once and before use, shapes and dtypes agree and there is no cycle.

        Raises SpecError that names the op or tensor.
        """
        if not self.ops:
            raise SpecError("graph.ops", 0, "at least one op")
        self._check_names()
        self._check_order()
        for op in self.ops:
            inputs, output = self.operands(op)
            shape = op.out_shape(*(t.shape for t in inputs))
            if shape != output.shape:
                raise SpecError(f"{op.name}: shape of {output.name}", output.shape, f"{shape} from {op.operator}")
            op.check_dtypes(inputs, output)
        if any(op.kernel for op in self.ops):
            fused_works(self)
        return self

    def _check_names(self) -> None:
        may_be_empty = {op.output for op in self.ops if op.may_be_empty}
        for key, tensor in self.tensors.items():
            if key != tensor.name:
                raise SpecError(f"tensors.{key}", tensor.name, "the same name as its key")
            smallest = 0 if key in may_be_empty else 1
            if any(type(d) is not int or d < smallest for d in tensor.shape):
                raise SpecError(f"tensors.{key}.shape", tensor.shape, f"integers >= {smallest}")
        seen: set[str] = set()
        produced: set[str] = set()
        for op in self.ops:
            if op.name in seen:
                raise SpecError("graph.ops", op.name, "each op name once")
            seen.add(op.name)
            if op.phase not in PHASES:
                raise SpecError.unknown(f"{op.name}: phase", op.phase, PHASES)
            if op.output in produced:
                raise SpecError(f"{op.name}: output", op.output, "a tensor that no other op writes")
            produced.add(op.output)
            for name in (*op.inputs, op.output):
                if name not in self.tensors:
                    raise SpecError.unknown(f"{op.name}: tensor", name, self.tensors)
            if self.tensors[op.output].role in (Role.INPUT, Role.WEIGHT, Role.STATE):
                raise SpecError(f"{op.name}: output", op.output, "a tensor that is not an input, weight or state")
        for name in (*self.inputs, *self.outputs):
            if name not in self.tensors:
                raise SpecError.unknown("graph inputs and outputs", name, self.tensors)
        given = {Role.INPUT, Role.WEIGHT, Role.STATE}
        for op in self.ops:
            for name in op.inputs:
                if name not in produced and self.tensors[name].role not in given:
                    raise SpecError(f"{op.name}: input", name, "a tensor that an op writes, an input, weight or state")

    def _check_order(self) -> None:
        made = {op.output for op in self.ops}
        done: set[str] = set()
        for op in self.ops:
            for name in op.inputs:
                if name in made and name not in done:
                    self._refuse_cycle()
                    raise SpecError(f"{op.name}: runs before", name, "ops in execution order")
            done.add(op.output)

    def _refuse_cycle(self) -> None:
        producer = self.producers()
        before = {op.name: {producer[i] for i in op.inputs if i in producer} for op in self.ops}
        try:
            TopologicalSorter(before).prepare()
        except CycleError as error:
            raise SpecError("graph.ops", " -> ".join(error.args[1]), "no cycle") from None

    def to_json(self) -> dict[str, Any]:
        """The graph as JSON data, with its schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "meta": dict(self.meta),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "dtype": t.dtype.value,
                    "role": t.role.value,
                    **({"frozen": True} if t.frozen else {}),
                }
                for t in self.tensors.values()
            ],
            "ops": [
                {
                    "operator": op.operator,
                    "name": op.name,
                    "inputs": list(op.inputs),
                    "output": op.output,
                    "group": op.group,
                    "layer": op.layer,
                    "phase": op.phase,
                    **({"kernel": op.kernel} if op.kernel else {}),
                    "attributes": op.attributes,
                }
                for op in self.ops
            ],
        }

    @classmethod
    def from_json(cls, data: Any, source: str = "graph") -> Graph:
        """Graph from what `to_json` gives, checked. Raises SpecError that names `source` and the part at fault."""
        importlib.import_module("accelsim.ops")  # the vocabulary registers itself when it is imported
        if not isinstance(data, dict):
            raise SpecError(source, type(data).__name__, "a JSON object")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise SpecError(f"{source}: schema_version", data.get("schema_version"), str(SCHEMA_VERSION))
        try:
            tensors = [_tensor_from_json(t) for t in data["tensors"]]
            if len({t.name for t in tensors}) != len(tensors):
                raise SpecError(f"{source}: tensors", len(tensors), "each tensor name once")
            return cls(
                name=str(data["name"]),
                tensors={t.name: t for t in tensors},
                ops=tuple(_op_from_json(op) for op in data["ops"]),
                inputs=tuple(data["inputs"]),
                outputs=tuple(data["outputs"]),
                meta={str(k): str(v) for k, v in data.get("meta", {}).items()},
            ).check()
        except KeyError as error:
            raise SpecError(f"{source}: field", error.args[0], "present") from None
        except (TypeError, AttributeError, IndexError) as error:
            raise SpecError(source, str(error), "the layout that Graph.save writes") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON to `path`, through a temporary name."""
        write_whole(Path(path), lambda partial: partial.write_text(json.dumps(self.to_json(), indent=1) + "\n"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Graph:
        """Read and check a graph that `save` wrote. Raises SpecError for anything else."""
        try:
            data = json.loads(Path(path).read_text())
        except OSError as error:
            raise SpecError(str(path), error.strerror, "a readable file") from None
        except ValueError as error:
            raise SpecError(str(path), str(error), "complete JSON") from None
        return cls.from_json(data, str(path))


_DTYPES = {d.value: d for d in DType}
_ROLES = {r.value: r for r in Role}


def _tensor_from_json(data: Any) -> Tensor:
    dtype, role = _DTYPES.get(data["dtype"]), _ROLES.get(data["role"])
    if dtype is None:
        raise SpecError.unknown(f"tensor {data['name']}: dtype", data["dtype"], _DTYPES)
    if role is None:
        raise SpecError.unknown(f"tensor {data['name']}: role", data["role"], _ROLES)
    return Tensor(data["name"], tuple(data["shape"]), dtype, role, bool(data.get("frozen", False)))


def _op_from_json(data: Any) -> Op:
    kind = Op.vocabulary.get(data["operator"])
    if kind is None:
        raise SpecError.unknown(f"op {data['name']}: operator", data["operator"], Op.vocabulary)
    for key, kind_of in (
        ("name", str),
        ("output", str),
        ("group", str),
        ("layer", int),
        ("phase", str),
        ("inputs", list),
    ):
        if not isinstance(data[key], kind_of):
            raise SpecError(f"op {data['name']}: {key}", data[key], f"JSON of type {kind_of.__name__}")
    attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in data["attributes"].items()}
    return kind(
        name=data["name"],
        inputs=tuple(data["inputs"]),
        output=data["output"],
        group=data["group"],
        layer=data["layer"],
        phase=data["phase"],
        kernel=data.get("kernel", ""),
        **attributes,
    )
