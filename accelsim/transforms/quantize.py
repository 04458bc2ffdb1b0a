"""Number formats of a graph's tensors, and the integer graph of a `QuantSpec`. Steps are in `Params`, not here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Op, Role, Tensor
from accelsim.quantspec import SPECS, QuantSpec, quant_spec
from accelsim.transforms.training import mixed

FORMATS = {
    "fp32": DType.FLOAT32,
    "fp16": DType.FLOAT16,
    "bf16": DType.BFLOAT16,
    "int8": DType.INT8,
}
"""Precisions that give every floating-point tensor one format. int8 keeps biases in the width of the accumulator
(Jacob et al., arXiv:1712.05877, eq. 7); it says what memory and units see, not how anything would be computed."""

MIXED = {"mixed-fp16": DType.FLOAT16, "mixed-bf16": DType.BFLOAT16}
"""Precisions of training: what `transforms.training.mixed` names stays in float32."""

_STORED = {8: DType.INT8, 4: DType.INT4, 2: DType.INT2}
_TABLE_FUNCTIONS = (ops.Gelu, ops.Relu, ops.Silu, ops.Tanh, ops.Sigmoid)
"""Functions of one 8-bit number: a table of 256 entries at most."""


def names() -> tuple[str, ...]:
    """Names that `with_precision` takes."""
    return tuple(dict.fromkeys((*FORMATS, *MIXED, *SPECS)))


def with_precision(graph: Graph, precision: str) -> Graph:
    """The graph in another precision: one of `FORMATS` or `MIXED`, a preset of `quantspec.SPECS`, or a file of one.

    A file is YAML or JSON. bool and ids stay as they are. Raises SpecError for an unknown name, for a graph that is not
    in floating point any more, and for integers in a training graph.
    """
    if graph.meta.get("training") and precision not in (*MIXED, "fp32", "fp16", "bf16"):
        raise SpecError("precision of a training graph", precision, f"one of fp32, fp16, bf16, {', '.join(MIXED)}")
    if precision in SPECS or precision.lower().endswith((".yaml", ".yml", ".json")):
        return quantize(graph, quant_spec(precision))
    if precision not in FORMATS.keys() | MIXED.keys():
        raise SpecError.unknown("precision", precision, names())
    _check_float(graph, precision)
    if precision in MIXED:
        made = mixed(graph, MIXED[precision])
        return replace(made, meta={**made.meta, "precision": precision})
    dtype = FORMATS[precision]
    biases = {name for op in graph.ops if isinstance(op, ops.Linear) for name in op.inputs[2:]}
    biases = {name for name in biases if graph.tensors[name].role is Role.WEIGHT}
    tensors = {
        name: replace(t, dtype=DType.INT32 if precision == "int8" and name in biases else dtype)
        if t.dtype.is_float
        else t
        for name, t in graph.tensors.items()
    }
    return replace(
        graph,
        tensors=tensors,
        ops=tuple(_retyped(op, tensors[op.output]) for op in graph.ops),
        meta={**graph.meta, "precision": precision},
    )


def _check_float(graph: Graph, precision: str) -> None:
    have = graph.meta.get("precision", "fp32")
    if have not in ("fp32", precision):
        raise SpecError("precision of the graph", have, f"fp32, to go to {precision}")


def _retyped(op: Op, output: Tensor) -> Op:
    """The op writing the dtype its output has now, where it names one."""
    if isinstance(op, ops.To | ops.Full | ops.Arange):
        return replace(op, dtype=output.dtype.value)
    return op


# --- the integer graph ------------------------------------------------------------------------------------------------


def quantize(graph: Graph, spec: QuantSpec) -> Graph:
    """The graph that a `QuantSpec` computes: integer tensors, `Quantize` and `Dequantize` where numbers change kind.

    A sum that only a layer norm reads becomes one `AddLayerNorm`. A linear layer whose result leaves the graph gives
    its int32 sums. An operator without an integer meaning (NoNorm's products, a product with a weight matrix that is
    also a view) stays in float32 between conversions. Raises SpecError for a graph that is not in float32.
    """
    _check_float(graph, spec.name)
    if graph.meta.get("precision") == spec.name:
        return graph
    if not spec.quantized:
        return replace(graph, meta={**graph.meta, "precision": spec.name})
    everything = spec.scope == "all" and spec.weights.quantized
    source = _with_fused_sums(graph) if everything else graph
    builder = _Integers(source, spec, weight_classes(source), everything)
    for op in source.ops:
        builder.place(op)
    return builder.result(graph)


def steps_of(graph: Graph) -> dict[str, str]:
    """Integer tensor -> the tensor whose step and zero point it has: of what is only read differently, the source's.

    What `Quantize` gives has those of the real numbers it quantizes.
    """
    found: dict[str, str] = {}
    for op in graph.ops:
        tensor = graph.tensors[op.output]
        if tensor.dtype.is_float or tensor.dtype in (DType.BOOL, DType.INT64) or not _numbers(graph, op):
            continue
        if isinstance(op, ops.Free | ops.Copy | ops.Embedding):
            found[op.output] = found.get(op.inputs[0], op.inputs[0])
        else:
            found[op.output] = op.inputs[0] if isinstance(op, ops.Quantize) else op.output
    return found


def _numbers(graph: Graph, op: Op) -> bool:
    """Whether the op computes on quantized numbers, not on ids or masks."""
    if not op.inputs or isinstance(op, ops.Quantize):
        return isinstance(op, ops.Quantize)
    first = graph.tensors[op.inputs[0]]
    return first.dtype in (DType.INT8, DType.UINT8, DType.INT4, DType.INT2, DType.INT32) and not (
        isinstance(op, ops.To) or first.role is Role.INPUT or (first.dtype is DType.INT32 and not _is_view(op))
    )


def _is_view(op: Op) -> bool:
    return isinstance(op, ops.Free | ops.Copy)


def ranges_wanted(graph: Graph) -> dict[str, str]:
    """Tensor whose range has to be observed -> the field of `QuantSpec` that says how. For a quantized graph.

    Not among them: results of softmax and tanh, whose range is known; int32 sums; tables.
    """
    return {
        name: kind
        for name, kind in output_classes(graph).items()
        if kind in ("activations", "scores", "activation_outputs")
    }


def output_classes(graph: Graph) -> dict[str, str]:
    """Tensor with a step of its own -> the field of `QuantSpec` it belongs to, or "sums", "embeddings", "tanh"."""
    producers = {op.output: op for op in graph.ops}
    to_softmax = {op.inputs[0] for op in graph.ops if isinstance(op, ops.Softmax)}
    for op in reversed(graph.ops):  # through views, and the conversions around a float softmax
        if op.output in to_softmax and isinstance(op, ops.Free | ops.Copy | ops.Dequantize):
            to_softmax.add(op.inputs[0])
    found = {}
    for name in dict.fromkeys(steps_of(graph).values()):
        maker = producers.get(name)
        if maker is None:
            found[name] = "embeddings"
        elif graph.tensors[name].dtype is DType.INT32:
            found[name] = "sums"
        elif isinstance(maker, ops.Softmax):
            found[name] = "probabilities"
        elif isinstance(maker, ops.Tanh | ops.Sigmoid):
            found[name] = "tanh"
        elif isinstance(maker, ops.Gelu | ops.Relu | ops.Silu):
            found[name] = "activation_outputs"
        else:
            found[name] = "scores" if name in to_softmax else "activations"
    return found


def _with_fused_sums(graph: Graph) -> Graph:
    """The graph with `AddLayerNorm` for a layer norm and the sum of two activations that it alone reads."""
    readers: dict[str, int] = {name: 1 for name in graph.outputs}
    for op in graph.ops:
        for name in op.inputs:
            readers[name] = readers.get(name, 0) + 1
    sums = {
        op.output: op
        for op in graph.ops
        if isinstance(op, ops.Add)
        and op.other is None
        and readers.get(op.output) == 1
        and all(graph.tensors[n].role is Role.ACTIVATION and graph.tensors[n].dtype.is_float for n in op.inputs)
    }
    fused: dict[str, Op] = {}
    for op in graph.ops:
        if isinstance(op, ops.LayerNorm) and op.inputs[0] in sums and len(op.inputs) == 3:
            both = sums[op.inputs[0]].inputs
            fused[op.name] = ops.AddLayerNorm(
                name=op.name, inputs=(*both, *op.inputs[1:]), output=op.output, group=op.group, layer=op.layer,
                phase=op.phase, eps=op.eps,
            )  # fmt: skip
    gone = {op.inputs[0] for op in graph.ops if op.name in fused}
    return replace(
        graph,
        tensors={name: t for name, t in graph.tensors.items() if name not in gone},
        ops=tuple(fused.get(op.name, op) for op in graph.ops if op.output not in gone),
    )


def weight_classes(graph: Graph) -> dict[str, str]:
    """Weight -> weights, embeddings, norms or biases; a table that a GEMM reads as well is a table."""
    found: dict[str, str] = {}
    for op in graph.ops:
        if isinstance(op, ops.Embedding):
            found.setdefault(op.inputs[0], "embeddings")
    for op in graph.ops:
        if isinstance(op, ops.Linear):
            found.setdefault(op.inputs[1], "weights")
            for name in op.inputs[2:]:
                found.setdefault(name, "biases")
        elif isinstance(op, ops.LayerNorm | ops.AddLayerNorm):
            for name in op.inputs[-2:] if isinstance(op, ops.AddLayerNorm) else op.inputs[1:]:
                found.setdefault(name, "norms")
    return {name: kind for name, kind in found.items() if graph.tensors[name].role is Role.WEIGHT}


@dataclass
class _Integers:
    """Builds the integer graph op by op. `now`: float tensor of the source -> the tensor that stands for it now."""

    graph: Graph
    spec: QuantSpec
    classes: Mapping[str, str]
    everything: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)
    made: list[Op] = field(default_factory=list)
    makers: dict[str, Op] = field(default_factory=dict)
    now: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = {op.output: op for op in self.graph.ops}
        self.readers: dict[str, list[Op]] = {}
        for op in self.graph.ops:
            for name in op.inputs:
                self.readers.setdefault(name, []).append(op)

    def place(self, op: Op) -> None:
        """Add the op, with the conversions it needs, as an integer or a float op."""
        inputs, output = self.graph.operands(op)
        if not output.dtype.is_float and not any(t.dtype.is_float for t in inputs):
            self._add(op, op.inputs, output.dtype)
        elif self._follows(op):
            self._add(op, tuple(self._now(n) for n in op.inputs), self._dtype(op.inputs[0]))
        elif isinstance(op, ops.Embedding) and self.spec.embeddings.quantized:
            self._weight(op.inputs[0], DType.INT8)
            self._add(op, op.inputs, DType.INT8)
        elif isinstance(op, ops.Linear) and self._integer_weight(op.inputs[1]):
            self._linear(op)
        elif self.everything and self._computable(op):
            self._integer(op)
        else:
            self._float(op)

    def result(self, graph: Graph) -> Graph:
        """The finished graph, checked."""
        used = {name for op in self.made for name in (*op.inputs, op.output)}
        kept = {n: t for n, t in self.graph.tensors.items() if n in used or t.role in (Role.WEIGHT, Role.INPUT)}
        return replace(
            graph,
            tensors={**kept, **{n: t for n, t in self.tensors.items() if n in used or n in kept}},
            ops=tuple(self.made),
            outputs=tuple(self._now(name) for name in graph.outputs),
            meta={**graph.meta, "precision": self.spec.name},
        ).check()

    # --- one op -------------------------------------------------------------------------------------------------------

    def _follows(self, op: Op) -> bool:
        """Whether the op only moves numbers, of one step, and can do so in whatever format they have."""
        if not isinstance(op, ops.Free | ops.Copy):
            return False
        if isinstance(op, ops.Pad) and op.value != 0:
            return False
        kinds = {self._dtype(n) for n in op.inputs}
        return len(kinds) == 1 and (next(iter(kinds)).is_float or len({self._source(n) for n in op.inputs}) == 1)

    def _computable(self, op: Op) -> bool:
        """Whether the op has an integer meaning in this spec, on operands of which one is an integer already."""
        numbers = [n for n in op.inputs if self.graph.tensors[n].dtype.is_float and n not in self.classes]
        if isinstance(op, ops.Matmul):
            return all(self._is_activation(n) for n in numbers)
        if all(self._dtype(n).is_float for n in numbers):
            return False  # what comes before the first integer stays as it is
        if isinstance(op, ops.Add):
            return op.other is None and all(self._is_activation(n) for n in numbers)
        if isinstance(op, ops.Softmax):
            return self.spec.softmax != "float" and len(numbers) == 1
        if isinstance(op, ops.LayerNorm | ops.AddLayerNorm):
            given = op.inputs[2:] if isinstance(op, ops.AddLayerNorm) else op.inputs[1:]
            return self.spec.layer_norm != "float" and len(given) == 2 and all(n in self.classes for n in given)
        return self.spec.gelu != "float" and isinstance(op, _TABLE_FUNCTIONS)

    def _linear(self, op: Op) -> None:
        self._weight(
            op.inputs[1], _STORED[self.spec.stored_bits] if self.classes[op.inputs[1]] == "weights" else DType.INT8
        )
        for name in op.inputs[2:]:
            self._weight(name, DType.INT32)
        dtype = DType.INT8 if self.everything else DType.FLOAT32
        if self.everything and self._leaves(op.output):
            dtype = DType.INT32
        self._add(op, (self._as_integer(op.inputs[0]), *op.inputs[1:]), dtype)

    def _integer(self, op: Op) -> None:
        for name in op.inputs:
            if self.classes.get(name) == "norms":
                self._weight(name, DType.INT8 if self.spec.norm_bits == 8 else DType.INT16)
        keep = [self.classes.get(n) == "norms" or not self.graph.tensors[n].dtype.is_float for n in op.inputs]
        inputs = tuple(n if k else self._as_integer(n) for n, k in zip(op.inputs, keep, strict=True))
        self._add(op, inputs, DType.UINT8 if isinstance(op, ops.Softmax) else DType.INT8)

    def _float(self, op: Op) -> None:
        was_integer = any(not self._dtype(n).is_float for n in op.inputs if self.graph.tensors[n].dtype.is_float)
        inputs = tuple(self._as_float(n) for n in op.inputs)
        self._add(op, inputs, self.graph.tensors[op.output].dtype)
        if (
            self.everything
            and was_integer
            and not self._leaves(op.output)
            and self.graph.tensors[op.output].dtype.is_float
        ):
            self._as_integer(op.output)

    # --- conversions --------------------------------------------------------------------------------------------------

    def _add(self, op: Op, inputs: tuple[str, ...], dtype: DType) -> None:
        self.tensors[op.output] = replace(self.graph.tensors[op.output], dtype=dtype)
        self._emit(replace(op, inputs=inputs))

    def _emit(self, op: Op) -> None:
        self.made.append(op)
        self.makers[op.output] = op

    def _now(self, name: str) -> str:
        return self.now.get(name, name)

    def _dtype(self, name: str) -> DType:
        held = self.tensors.get(self._now(name)) or self.graph.tensors[name]
        return held.dtype

    def _source(self, name: str) -> str:
        """The tensor whose step an integer tensor has."""
        found = self._now(name)
        while isinstance(op := self.makers.get(found), ops.Free | ops.Copy | ops.Embedding):
            found = op.inputs[0]
        return found

    def _is_activation(self, name: str) -> bool:
        """Whether the tensor is no weight, nor a view or copy of weights alone."""
        op = self.before.get(name)
        if op is None:
            return False
        return not isinstance(op, ops.Free | ops.Copy) or any(self._is_activation(n) for n in op.inputs)

    def _integer_weight(self, name: str) -> bool:
        kind = self.classes.get(name)
        return kind == "weights" or (kind == "embeddings" and self.spec.embeddings.quantized)

    def _weight(self, name: str, dtype: DType) -> None:
        self.tensors[name] = replace(self.graph.tensors[name], dtype=dtype)

    def _leaves(self, name: str) -> bool:
        """Whether the tensor, or views and copies of it, are read by nobody but the user of the graph."""
        readers = self.readers.get(name, ())
        return all(isinstance(op, ops.Free | ops.Clone) and self._leaves(op.output) for op in readers)

    def _as_integer(self, name: str) -> str:
        if not self._dtype(name).is_float:
            return self._now(name)
        source = self._now(name)
        before = self.makers.get(source)
        dtype = DType.UINT8 if isinstance(before, ops.Softmax) else DType.INT8
        self.now[name] = self._convert(ops.Quantize, source, "quantize", dtype, before)
        return self.now[name]

    def _as_float(self, name: str) -> str:
        if name not in self.tensors or self._dtype(name).is_float or not self.graph.tensors[name].dtype.is_float:
            return self._now(name)
        source = self._now(name)
        return self._convert(ops.Dequantize, source, "dequantize", DType.FLOAT32, self.makers.get(source))

    def _convert(self, kind: type[Op], source: str, suffix: str, dtype: DType, before: Op | None) -> str:
        """Name of the tensor that a conversion of `source` gives; made once."""
        output = f"{source}.{suffix}"
        if output not in self.tensors:
            held = self.tensors.get(source) or self.graph.tensors[source]
            self.tensors[output] = Tensor(output, held.shape, dtype)
            group, layer = (before.group, before.layer) if before is not None else ("model", -1)
            self._emit(kind(name=output, inputs=(source,), output=output, group=group, layer=layer))
        return output
