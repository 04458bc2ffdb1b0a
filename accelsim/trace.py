"""torch module -> `Graph`, through torch's own exporter; the zoo's graphs also come from package data, without torch.

Ops are the operators that ran: nothing here knows what a layer of a model is. The only core file that imports torch,
and only inside functions.
"""

from __future__ import annotations

import copy
import gzip
import importlib
import json
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Op, Role, Tensor

if TYPE_CHECKING:
    import torch

MAX_BATCH = 2**20
"""Sequences at once; more is taken for a slip of the keyboard."""

SOURCES = ("auto", "shipped", "torch")


def trace(
    model: str | torch.nn.Module,
    *,
    seq: int = 128,
    batch: int = 1,
    head: str | None = None,
    source: str = "auto",
    training: bool = False,
    optimizer: str | None = None,
    masked: int | None = None,
    micro_batch: int | None = None,
) -> Graph:
    """Checked `Graph` of one forward pass over `batch` sequences of `seq` tokens, or of one training iteration.

    model: a zoo name, a local Hugging Face folder (only its config.json is read), or a torch module that takes
    `input_ids` and `attention_mask` of shape (batch, seq). head: of a name or folder, "none" (in training
    "pretraining") if not given; a module brings its own. source: "shipped" (package data, no torch), "torch" (run the
    exporter) or "auto" (shipped for a zoo name).
    training: forward with dropout and loss, backward as torch's autograd runs it, and the passes of `optimizer`
    (`transforms.training.OPTIMIZERS`; None leaves gradients as outputs). masked: positions of each sequence that go
    through the masked-language-model head; None: all. micro_batch: sequences that go through forward and backward at
    once, their gradients added up; None: all. Training graphs do not ship.

    Raises SpecError for an unknown name or head, a seq over the model's positions, or an operator with no meaning here.
    """
    if source not in SOURCES:
        raise SpecError.unknown("source", source, SOURCES)
    _check_size("seq", seq, None)
    _check_size("batch", batch, MAX_BATCH)
    if training:
        return _training(model, seq, batch, head, source, optimizer, masked, micro_batch)
    for name, value in (("optimizer", optimizer), ("masked", masked), ("micro_batch", micro_batch)):
        if value is not None:
            raise SpecError(name, value, "None, or training=True")
    head = "none" if head is None else head
    if isinstance(model, str):
        if source == "shipped" or (source == "auto" and model in shipped_names()):
            return _shipped(model, head, seq, batch)
        zoo: Any = importlib.import_module("accelsim_models.zoo")  # not imported above: the core must not need models
        _check_size("seq", seq, zoo.max_seq(model))
        return _export(zoo.build(model, head), model.rstrip("/\\"), head, seq, batch)
    if source == "shipped":
        raise SpecError("source", source, "auto or torch for a module")
    if head != "none":
        raise SpecError("head", head, "none for a module, which brings its own head")
    _check_size("seq", seq, _positions(model))
    return _export(model, type(model).__name__, head, seq, batch)


def _training(
    model: str | torch.nn.Module,
    seq: int,
    batch: int,
    head: str | None,
    source: str,
    optimizer: str | None,
    masked: int | None,
    micro_batch: int | None,
) -> Graph:
    """Graph of one training iteration, with the passes of an optimizer if one is named."""
    from accelsim.joint import joint_graph
    from accelsim.transforms.training import accumulate, find_optimizer, with_optimizer

    if source == "shipped":
        raise SpecError("source", source, "auto or torch for training")
    if optimizer is not None:
        find_optimizer(optimizer)  # before the slow imports
    if masked is not None:
        _check_size("masked", masked, seq)
    if micro_batch is not None:
        _check_size("micro_batch", micro_batch, batch)
        if batch % micro_batch:
            raise SpecError("micro_batch", micro_batch, f"a divisor of batch {batch}")
    zoo: Any = importlib.import_module("accelsim_models.zoo")
    if isinstance(model, str):
        head = "pretraining" if head is None else head
        if head == "none":
            raise SpecError("head", head, f"one with a loss: {', '.join(h for h in zoo.heads() if h != 'none')}")
        _check_size("seq", seq, zoo.max_seq(model))
        module, name = zoo.build(model, head), model.rstrip("/\\")
    else:
        if head is not None:
            raise SpecError("head", head, "none for a module, which brings its own head")
        _check_size("seq", seq, _positions(model))
        module, name, head = model, type(model).__name__, "none"
    at_once = batch if micro_batch is None else micro_batch
    graph = accumulate(joint_graph(module, name, head, seq, at_once, masked), batch // at_once)
    return graph if optimizer is None else with_optimizer(graph, optimizer)


def _check_size(name: str, value: int, limit: int | None) -> None:
    legal = "an integer >= 1" if limit is None else f"an integer from 1 to {limit}"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (limit is not None and value > limit):
        raise SpecError(name, value, legal + (", the model's maximum" if name == "seq" and limit is not None else ""))


def _positions(module: torch.nn.Module) -> int | None:
    """Longest sequence of a Hugging Face module, None for any other."""
    config: Any = getattr(module, "config", None)
    if not isinstance(getattr(config, "max_position_embeddings", None), int):
        return None
    zoo: Any = importlib.import_module("accelsim_models.zoo")
    result: int = zoo.positions(config.model_type, config.max_position_embeddings, config.pad_token_id)
    return result


def parameters(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Arrays of a module's parameters and buffers, by the names its graph gives them; tied ones once.

    Raises SpecError for a module on the meta device, which has no values.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise SpecError(f"parameters: {name}", "meta", "a module with weights")
        arrays[name] = tensor.detach().cpu().numpy()
    return arrays


# --- shipped graphs ---------------------------------------------------------------------------------------------------


def shipped_names() -> tuple[str, ...]:
    """Names of the models whose graphs are package data."""
    return tuple(sorted({name.partition("@")[0] for name in _shipped_files()}))


@cache
def _shipped_files() -> Mapping[str, Any]:
    """MODEL@HEAD, perhaps with @seq1 and @batch1 -> file."""
    folder = resources.files("accelsim") / "graphs"
    return {entry.name.removesuffix(".json.gz"): entry for entry in folder.iterdir() if entry.name.endswith(".json.gz")}


def _shipped(model: str, head: str, seq: int, batch: int) -> Graph:
    files = _shipped_files()
    if model not in shipped_names():
        raise SpecError.unknown("model", model, shipped_names())
    known = {name.split("@")[1] for name in files if name.startswith(f"{model}@")}
    if head not in known:
        raise SpecError.unknown("head", head, known)
    # of one token every layout is contiguous: copies of other lengths disappear
    sizes = [f"@seq{seq}@batch{batch}", f"@seq{seq}", ""]
    path = next(files[name] for size in sizes if (name := f"{model}@{head}{size}") in files)
    data = at_size(gzip.decompress(path.read_bytes()).decode(), seq, batch)
    _check_size("seq", seq, data["max_seq"])
    graph = data["graph"]
    graph["meta"] |= {"seq": str(seq), "batch": str(batch), "source": f"shipped, traced with {graph['meta']['source']}"}
    made = Graph.from_json(graph, f"{model} {head}")
    return _without_whole_slices(made) if seq == data["max_seq"] else made


def _without_whole_slices(graph: Graph) -> Graph:
    """The graph without slices of everything, which PyTorch does not run: of the position ids, at the longest seq."""
    shapes = {name: t.shape for name, t in graph.tensors.items()}
    whole = {
        op.output: op.inputs[0] for op in graph.ops if isinstance(op, ops.Slice) and op.is_whole(shapes[op.inputs[0]])
    }
    kept = [op for op in graph.ops if op.output not in whole]
    return replace(
        graph,
        tensors={name: t for name, t in graph.tensors.items() if name not in whole},
        ops=tuple(replace(op, inputs=tuple(whole.get(name, name) for name in op.inputs)) for op in kept),
    ).check()


def at_size(text: str, seq: int, batch: int) -> Any:
    """JSON data in which {"1": a, "batch": b, "seq": c, "batch*seq": d} became a + b batch + c seq + d batch seq."""
    size = {"1": 1, "batch": batch, "seq": seq, "batch*seq": batch * seq}

    def number(data: dict[str, Any]) -> Any:
        if next(iter(data), None) in size:  # all keys of a formula are terms, and no other object has one
            return sum(factor * size[term] for term, factor in data.items())
        return data

    return json.loads(text, object_hook=number)


# --- export -----------------------------------------------------------------------------------------------------------


def _export(module: torch.nn.Module, name: str, head: str, seq: int, batch: int) -> Graph:
    """Graph of a module as torch.export records it. The module is left as it was."""
    module = _on_meta(module)
    program, written = _exported_program(module, seq, batch)
    first = {id(t): n for n, t in (*module.named_parameters(), *module.named_buffers())}
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    builder = _Builder({name: first[id(t)] for name, t in every}, written)
    builder.add_placeholders(program)
    gelus = _gelu_chains(program.graph)
    layers = _Layers(program.graph)
    for node in program.graph.nodes:
        if node.op == "call_function" and node not in gelus.absorbed:
            builder.place(node, layers)
            if node in gelus.heads:
                builder.emit(ops.Gelu, "gelu", [gelus.heads[node]], node, approximate="tanh")
            else:
                builder.convert(node)
    (outputs,) = next(n for n in program.graph.nodes if n.op == "output").args
    for spec, node in zip(program.graph_signature.output_specs, outputs, strict=True):
        if spec.kind.name == "USER_OUTPUT" and node is not None and node in builder.tensor_of:
            builder.outputs.append(builder.tensor_of[node])
    meta = {"model": name, "head": head, "seq": str(seq), "batch": str(batch), "precision": "fp32"}
    kept = _needed(builder.ops, builder.outputs)
    touched = {name for op in kept for name in (*op.inputs, op.output)}
    return Graph(
        name=name,
        tensors={k: t for k, t in builder.tensors.items() if k in touched or t.role in (Role.WEIGHT, Role.INPUT)},
        ops=tuple(kept),
        inputs=tuple(builder.inputs),
        outputs=tuple(dict.fromkeys(builder.outputs)),
        meta={**meta, "source": versions()},
    ).check()


def versions() -> str:
    """The libraries a graph was traced with."""
    import torch

    found = f"torch {torch.__version__.partition('+')[0]}"
    if "transformers" in sys.modules:
        found += f", transformers {sys.modules['transformers'].__version__}"
    return found


def _needed(every: list[Op], outputs: list[str]) -> list[Op]:
    """The ops that an output depends on, in order: a compiler would not run the others either."""
    wanted, kept = set(outputs), []
    for op in reversed(every):
        if op.output in wanted:
            wanted.update(op.inputs)
            kept.append(op)
    return kept[::-1]


def _on_meta(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of the module in eval mode with its tensors on the meta device, where no kernel chooses the layouts.

    The module itself is not touched and no weight is copied.
    """
    import torch

    held = [t for m in module.modules() for t in (*m._parameters.values(), *m._buffers.values(), *vars(m).values())]
    memo: dict[int, Any] = {}
    for tensor in held:
        if isinstance(tensor, torch.nn.Parameter):
            memo[id(tensor)] = torch.nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)
        elif isinstance(tensor, torch.Tensor):
            memo[id(tensor)] = tensor.detach().to("meta")
    return copy.deepcopy(module, memo).eval()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _exported_program(module: torch.nn.Module, seq: int, batch: int) -> tuple[Any, dict[str, Any]]:
    """(program, node name -> node of the program as the exporter first wrote it).

    The first form is read as it is, unless it has in-place or compound operators that are not in the vocabulary: then
    torch makes it functional and takes them apart.
    """
    import torch

    kwargs = {
        name: torch.ones((batch, seq), dtype=torch.long, device="meta") for name in ("input_ids", "attention_mask")
    }
    try:
        with torch.no_grad(), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its future
            written = torch.export.export(module, (), kwargs, strict=False)
            nodes = {node.name: node for node in written.graph.nodes}
            readable = all(_is_readable(node) for node in written.graph.nodes)
            return (written if readable else written.run_decompositions({})), nodes
    except Exception as error:  # the exporter raises whatever the module's own code raises
        raise SpecError(
            f"trace of {type(module).__name__} at seq {seq}, batch {batch}",
            _reason(error),
            "a module that torch.export can run on input_ids and attention_mask",
        ) from None


def _is_readable(node: torch.fx.Node) -> bool:
    """Whether the vocabulary has this operator and it changes none of its operands."""
    packet = _packet(node)
    if node.op != "call_function" or not packet:
        return True
    schema: Any = getattr(node.target, "_schema", None)
    return packet in _CONVERTERS.keys() | _ASSERTIONS | _SPLITS and not schema.is_mutable


class _Layers:
    """Which group and layer a node belongs to, from the stack of modules that were running.

    A layer is the outermost module that is numbered inside a container called layer, layers, blocks or the like. Where
    such a module runs more than once (ALBERT shares its weights), `@k` follows its path and layers count the calls.
    """

    _container = re.compile(r"(?:^|\.)(?:\w*(?:layer|block)\w*|h)\.(\d+)$")

    def __init__(self, graph: torch.fx.Graph) -> None:
        entries = dict.fromkeys(e for node in graph.nodes if (e := self._entry(_stack(node))) is not None)
        self.shared = {path for path, call in entries if call > 0}
        self.index = {entry: i for i, entry in enumerate(entries)}

    def _entry(self, stack: Mapping[str, Any]) -> tuple[str, int] | None:
        for key, (path, _) in stack.items():
            if self._container.search(path):
                return path, int(key.partition("@")[2] or 0)
        return None

    def of(self, node: torch.fx.Node) -> tuple[str, int]:
        """(module path, layer or -1) of a node; the root module is called "model"."""
        stack = _stack(node)
        path: str = list(stack.values())[-1][0] if stack else ""
        entry = self._entry(stack)
        if entry is None:
            return path or "model", -1
        layer, call = entry
        if not self.shared:
            return path, int(layer.rpartition(".")[2])
        if layer in self.shared:
            path = f"{layer}@{call}{path[len(layer) :]}"
        return path, self.index[entry]


def _stack(node: torch.fx.Node) -> Mapping[str, Any]:
    """The modules that ran; of a backward node, those whose operator it is the derivative of."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    return stack


@dataclass
class _GeluChains:
    """GELU spelled out in elementary operators: final node -> the node x it is applied to, and the nodes between."""

    heads: dict[Any, Any] = field(default_factory=dict)
    absorbed: set[Any] = field(default_factory=set)


def _gelu_chains(graph: torch.fx.Graph) -> _GeluChains:
    """Every 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) whose parts nothing else reads."""
    chains = _GeluChains()
    for tanh in graph.nodes:
        found = _gelu_chain(tanh) if _packet(tanh) == "tanh" else None
        if found is not None:
            x, parts, head = found
            chains.heads[head] = x
            chains.absorbed |= parts
    return chains


def _gelu_chain(tanh: torch.fx.Node) -> tuple[Any, set[Any], Any] | None:
    scaled = _scaled(tanh.args[0], math.sqrt(2 / math.pi))
    if scaled is None or _packet(scaled) != "add" or len(scaled.args) != 2:
        return None
    x, small = scaled.args
    cube = _scaled(small, 0.044715)
    if cube is None or _packet(cube) != "pow" or tuple(cube.args) != (x, 3):
        return None
    plus = next(iter(tanh.users), None)
    head = next(iter(plus.users), None) if plus is not None else None
    if plus is None or head is None or _packet(plus) != "add" or plus.args != (tanh, 1) or _packet(head) != "mul":
        return None
    halves = [a for a in head.args if a is not plus]
    if len(halves) != 1 or _scaled(halves[0], 0.5) is not x:
        return None
    parts = {halves[0], cube, small, scaled, tanh.args[0], tanh, plus}
    return (x, parts, head) if all(len(p.users) == 1 for p in parts) else None


def _scaled(node: Any, factor: float) -> Any:
    """y where node is y * factor, None for anything else."""
    if _packet(node) != "mul" or not isinstance(node.args[1], int | float):
        return None
    return node.args[0] if math.isclose(node.args[1], factor, rel_tol=1e-6) else None


def _packet(node: Any) -> str:
    """Operator name without its overload: "add" for aten.add.Tensor; "" for what is no aten operator."""
    target = getattr(node, "target", None)
    return str(getattr(target, "__name__", "")).partition(".")[0] if getattr(target, "namespace", "") == "aten" else ""


class _Builder:
    """Turns nodes into ops one by one, and keeps names unique."""

    def __init__(self, names: Mapping[str, str], written: Mapping[str, Any]) -> None:
        self.names = names
        self.written = written
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.tensor_of: dict[Any, str] = {}
        self.used: Counter[str] = Counter()
        self.group, self.layer, self.phase = "model", -1, "forward"
        self.converters: Mapping[str, _Converter] = _CONVERTERS

    def place(self, node: torch.fx.Node, layers: _Layers) -> None:
        """The module that the following ops belong to."""
        self.group, self.layer = layers.of(node)

    def add_placeholders(self, program: Any) -> None:
        """Parameters, buffers, constants and inputs, as tensors."""
        roles = {
            "PARAMETER": Role.WEIGHT,
            "BUFFER": Role.STATE,
            "CONSTANT_TENSOR": Role.STATE,
            "USER_INPUT": Role.INPUT,
        }
        nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        for spec in program.graph_signature.input_specs:
            node = nodes[spec.arg.name]
            role = roles.get(spec.kind.name)
            if role is None:
                raise SpecError(f"input {node.name}", spec.kind.name, f"one of {', '.join(roles)}")
            name = node.name if spec.target is None else self.names.get(spec.target, spec.target)
            if role is Role.INPUT:
                self.inputs.append(name)
            self._add_tensor(name, node.meta["val"], role)
            self.tensor_of[node] = name

    def _add_tensor(self, name: str, value: torch.Tensor, role: Role = Role.ACTIVATION) -> None:
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in {d.value for d in DType}:
            raise SpecError(f"{name}: dtype", dtype, f"one of {', '.join(d.value for d in DType)}")
        self.tensors[name] = Tensor(name, tuple(int(s) for s in value.shape), DType(dtype), role)

    def emit(
        self,
        kind: type[Op],
        suffix: str,
        inputs: list[Any],
        out: Any,
        shape: tuple[int, ...] | None = None,
        dtype_of: DType | None = None,
        **attrs: Any,
    ) -> str:
        """Add one op that writes what node `out` stands for (or an unnamed value of `shape`, of its dtype unless
        `dtype_of` says another); returns its tensor."""
        base = f"{self.group}.{suffix}"
        name = base if self.used[base] == 0 else f"{base}.{self.used[base]}"
        self.used[base] += 1
        reads = tuple(i if isinstance(i, str) else self.read(i) for i in inputs)
        self._add_tensor(name, out.meta["val"])
        if shape is None:
            self.tensor_of[out] = name
        else:
            self.tensors[name] = Tensor(name, shape, dtype_of or self.tensors[name].dtype)
        self.ops.append(
            kind(
                name=name,
                inputs=reads,
                output=name,
                group=self.group,
                layer=self.layer,
                phase=self.phase,
                **attrs,
            )
        )
        return name

    def read(self, node: Any) -> str:
        """Tensor a node stands for."""
        if node not in self.tensor_of:
            raise self.refuse(node, "an operand that an operator of the vocabulary made")
        return self.tensor_of[node]

    def refuse(self, node: Any, legal: str) -> SpecError:
        """The error for a node that has no meaning here; names the operator and the module."""
        return SpecError(f"trace: operator in module {self.group}", str(getattr(node, "target", node)), legal)

    def alias(self, node: Any, source: Any) -> None:
        """`node` is another name of `source`: no op."""
        self.tensor_of[node] = self.read(source)

    def convert(self, node: Any) -> None:
        """Add the ops of one node. Raises SpecError for an operator that the vocabulary lacks."""
        if getattr(node.target, "__name__", "") == "getitem":
            _convert_getitem(self, node)
            return
        packet = _packet(node)
        if packet in _ASSERTIONS or packet in _SPLITS:
            return
        if packet not in self.converters:
            raise self.refuse(node, f"one of {', '.join(sorted(self.converters))}")
        self.converters[packet](self, node)

    def origin(self, node: Any) -> Any:
        """The node as the exporter first wrote it, before it was made functional; None where it does not say."""
        sources = node.meta.get("from_node") or []
        return self.written.get(sources[0].name) if sources else None


_ASSERTIONS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar"}
_SPLITS = {"split", "split_with_sizes", "chunk", "unbind"}

_Converter = Callable[[_Builder, Any], None]
_CONVERTERS: dict[str, _Converter] = {}


def _converts(*packets: str) -> Callable[[_Converter], _Converter]:
    def register(converter: _Converter) -> _Converter:
        _CONVERTERS.update(dict.fromkeys(packets, converter))
        return converter

    return register


def _value(node: Any) -> torch.Tensor:
    value: torch.Tensor = node.meta["val"]
    return value


def _dtype(node: Any) -> str:
    return str(_value(node).dtype).removeprefix("torch.")


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(int(s) for s in _value(node).shape)


def _argument(node: Any, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _dim(node: Any, position: int = 1, name: str = "dim", default: Any = None, rank: int | None = None) -> int:
    """A dimension argument, counted from the front."""
    rank = _value(node.args[0]).dim() if rank is None else rank
    dim: int = _argument(node, position, name, default)
    return dim % max(1, rank)


def _dims(node: Any, position: int = 1, name: str = "dim") -> tuple[int, ...]:
    """A list of dimensions, counted from the front; all of them where it is absent."""
    rank = _value(node.args[0]).dim()
    dims = _argument(node, position, name, None)
    if dims is None or dims == []:
        return tuple(range(rank))
    return tuple(sorted(d % max(1, rank) for d in ([dims] if isinstance(dims, int) else dims)))


@_converts("linear")
def _linear(b: _Builder, node: Any) -> None:
    b.emit(ops.Linear, "linear", [a for a in node.args if a is not None], node)


@_converts("matmul", "mm", "bmm")
def _matmul(b: _Builder, node: Any) -> None:
    b.emit(ops.Matmul, "matmul", list(node.args), node)


@_converts("addmm")
def _addmm(b: _Builder, node: Any) -> None:
    if node.kwargs:
        raise b.refuse(node, "addmm without alpha and beta")
    bias, x, y = node.args
    product = b.emit(ops.Matmul, "matmul", [x, y], node, shape=_shape(node))
    b.emit(ops.Add, "add", [product, bias], node)


@_converts("scaled_dot_product_attention")
def _attention(b: _Builder, node: Any) -> None:
    q, k, v, *rest = node.args
    mask = rest[0] if rest else node.kwargs.get("attn_mask")
    dropped = _argument(node, 4, "dropout_p", 0.0)
    if dropped or _argument(node, 5, "is_causal", False) or node.kwargs.get("enable_gqa"):
        raise b.refuse(node, "attention without dropout, causal mask and grouped queries")
    scale = node.kwargs.get("scale")
    scores = (*_shape(q)[:-1], _shape(k)[-2])
    x = b.emit(ops.Matmul, "scores", [q, k], node, shape=scores, transpose_b=True)
    given = [] if mask is None else [mask]
    scale = 1 / math.sqrt(_shape(q)[-1]) if scale is None else float(scale)
    x = b.emit(ops.Softmax, "softmax", [x, *given], node, shape=scores, scale=scale)
    b.emit(ops.Matmul, "context", [x, v], node)


@_converts("softmax", "_softmax")
def _softmax(b: _Builder, node: Any) -> None:
    x = node.args[0]
    if _dim(node) != _value(x).dim() - 1 or _dtype(node) != _dtype(x):
        raise b.refuse(node, "softmax over the last dimension, in the dtype of its operand")
    b.emit(ops.Softmax, "softmax", [x], node)


@_converts("layer_norm")
def _layer_norm(b: _Builder, node: Any) -> None:
    x, normalized = node.args[:2]
    weight, bias = _argument(node, 2, "weight", None), _argument(node, 3, "bias", None)
    if len(normalized) != 1 or (weight is None and bias is not None):
        raise b.refuse(node, "layer_norm over the last dimension, with a weight if it has a bias")
    given = [a for a in (x, weight, bias) if a is not None]
    b.emit(ops.LayerNorm, "layer_norm", given, node, eps=float(_argument(node, 4, "eps", 1e-5)))


@_converts("gelu")
def _gelu(b: _Builder, node: Any) -> None:
    b.emit(ops.Gelu, "gelu", [node.args[0]], node, approximate=_argument(node, 1, "approximate", "none"))


def _unary(kind: type[Op], *packets: str) -> None:
    def convert(b: _Builder, node: Any) -> None:
        b.emit(kind, kind.operator, [node.args[0]], node)

    _converts(*packets)(convert)


for _kind in (ops.Tanh, ops.Sigmoid, ops.Silu, ops.Erf, ops.Exp, ops.Relu, ops.Neg, ops.Sqrt, ops.Rsqrt):
    _unary(_kind, _kind.operator)


def _binary(kind: type[ops.Binary], *packets: str) -> None:
    def convert(b: _Builder, node: Any) -> None:
        x, y = node.args[:2]
        if len(node.args) > 2 or node.kwargs or not hasattr(x, "meta"):
            raise b.refuse(node, f"{kind.operator} of a tensor and a tensor or number, without alpha or rounding")
        if hasattr(y, "meta"):
            b.emit(kind, kind.operator, [x, y], node)
        else:
            b.emit(kind, kind.operator, [x], node, other=y)

    _converts(*packets)(convert)


for _pair in (ops.Add, ops.Sub, ops.RSub, ops.Mul, ops.Div, ops.Eq, ops.Ne, ops.Lt, ops.Le, ops.Gt, ops.Ge):
    _binary(_pair, _pair.operator)
_binary(ops.BitwiseAnd, "bitwise_and", "__and__")
_binary(ops.BitwiseOr, "bitwise_or", "__or__")


@_converts("logical_and", "logical_or", "logical_not", "bitwise_not")
def _logical(b: _Builder, node: Any) -> None:
    if _packet(node) != "bitwise_not" and any(_dtype(a) != "bool" for a in node.args):
        raise b.refuse(node, "a logical operator of bools")
    kinds: dict[str, type[Op]] = {"logical_and": ops.BitwiseAnd, "logical_or": ops.BitwiseOr}
    kind = kinds.get(_packet(node), ops.BitwiseNot)
    b.emit(kind, kind.operator, list(node.args), node)


@_converts("pow")
def _pow(b: _Builder, node: Any) -> None:
    x, exponent = node.args
    if not hasattr(x, "meta") or not isinstance(exponent, int | float):
        raise b.refuse(node, "a tensor to the power of a number")
    b.emit(ops.Pow, "pow", [x], node, exponent=exponent)


@_converts("clamp", "clamp_min", "clamp_max")
def _clamp(b: _Builder, node: Any) -> None:
    low: Any = None if _packet(node) == "clamp_max" else _argument(node, 1, "min", None)
    high: Any = _argument(node, 1 if _packet(node) == "clamp_max" else 2, "max", None)
    if hasattr(low, "meta") or hasattr(high, "meta"):
        raise b.refuse(node, "clamp between numbers")
    b.emit(ops.Clamp, "clamp", [node.args[0]], node, low=low, high=high)


@_converts("where")
def _where(b: _Builder, node: Any) -> None:
    condition, *values = node.args
    if len(values) != 2 or not any(hasattr(v, "meta") for v in values):
        raise b.refuse(node, "where with a condition and two values, of which one a tensor")
    numbers = {k: v for k, v in zip(("x", "y"), values, strict=True) if not hasattr(v, "meta")}
    b.emit(ops.Where, "where", [condition, *(v for v in values if hasattr(v, "meta"))], node, **numbers)


@_converts("masked_fill")
def _masked_fill(b: _Builder, node: Any) -> None:
    x, mask, value = node.args
    if hasattr(value, "meta"):
        b.emit(ops.Where, "where", [mask, value, x], node)
    else:
        b.emit(ops.MaskedFill, "masked_fill", [x, mask], node, value=value)


@_converts("_to_copy", "type_as", "to")
def _to(b: _Builder, node: Any) -> None:
    x = node.args[0]
    if _dtype(node) != _dtype(x):
        b.emit(ops.To, "to", [x], node, dtype=_dtype(node))
    elif _packet(node) == "_to_copy":
        b.emit(ops.Clone, "clone", [x], node)
    else:
        b.alias(node, x)


@_converts("cumsum")
def _cumsum(b: _Builder, node: Any) -> None:
    b.emit(ops.Cumsum, "cumsum", [node.args[0]], node, dim=_dim(node))


def _reduction(kind: type[ops.Reduction], packet: str) -> None:
    def convert(b: _Builder, node: Any) -> None:
        x, kept = node.args[0], bool(_argument(node, 2, "keepdim", False))
        if kind in (ops.Sum, ops.Mean) and _dtype(x).startswith("float") and _dtype(node) != _dtype(x):
            raise b.refuse(node, f"{packet} in the dtype of its operand")
        b.emit(kind, packet, [x], node, dims=_dims(node), keepdim=kept)

    _converts(packet)(convert)


for _reduce in (ops.Sum, ops.Mean, ops.Amax, ops.AnyTrue, ops.AllTrue):
    _reduction(_reduce, _reduce.operator)


@_converts("embedding")
def _embedding(b: _Builder, node: Any) -> None:
    b.emit(ops.Embedding, "embedding", list(node.args[:2]), node)


@_converts("gather")
def _gather(b: _Builder, node: Any) -> None:
    x, _, ids = node.args[:3]
    b.emit(ops.Gather, "gather", [x, ids], node, dim=_dim(node))


@_converts("index")
def _index(b: _Builder, node: Any) -> None:
    x, ids = node.args
    dims = tuple(i for i, tensor in enumerate(ids) if tensor is not None)
    given = [tensor for tensor in ids if tensor is not None]
    if dims != tuple(range(dims[0], dims[-1] + 1)) or any(_dtype(i) not in ("int64", "int32") for i in given):
        raise b.refuse(node, "integer indices of neighbouring dimensions")
    b.emit(ops.Index, "index", [x, *given], node, dims=dims)


@_converts("clone", "contiguous")
def _clone(b: _Builder, node: Any) -> None:
    origin = b.origin(node)
    if origin is not None and _packet(origin) in ("dropout", "feature_dropout", "alpha_dropout"):
        b.emit(ops.Dropout, "dropout", [node.args[0]], node)
    elif _packet(node) == "contiguous" and _value(node.args[0]).is_contiguous():
        b.alias(node, node.args[0])  # as PyTorch: there is nothing to copy
    else:
        b.emit(ops.Clone, "clone", [node.args[0]], node)


@_converts("dropout")
def _dropout(b: _Builder, node: Any) -> None:
    if _argument(node, 2, "train", True):
        raise b.refuse(node, "dropout in eval mode")
    b.emit(ops.Dropout, "dropout", [node.args[0]], node)


@_converts("cat")
def _cat(b: _Builder, node: Any) -> None:
    parts = list(node.args[0])
    b.emit(ops.Cat, "cat", parts, node, dim=_dim(node, default=0, rank=_value(parts[0]).dim()))


@_converts("pad", "constant_pad_nd")
def _pad(b: _Builder, node: Any) -> None:
    x, pads = node.args[:2]
    mode = _argument(node, 2, "mode", "constant") if _packet(node) == "pad" else "constant"
    value = _argument(node, 3 if _packet(node) == "pad" else 2, "value", 0)
    if mode != "constant":
        raise b.refuse(node, "padding with a constant")
    rank = _value(x).dim()
    before, after = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):  # pairs from the last dimension to the first
        before[rank - 1 - i], after[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    b.emit(ops.Pad, "pad", [x], node, before=tuple(before), after=tuple(after), value=0 if value is None else value)


@_converts("full", "zeros", "ones", "new_full", "new_zeros", "new_ones", "full_like", "zeros_like", "ones_like")
def _full(b: _Builder, node: Any) -> None:
    packet = _packet(node)
    positions = {"full": 1, "new_full": 2, "full_like": 1}
    value = node.args[positions[packet]] if packet in positions else int("ones" in packet)
    _emit_full(b, node, value)


@_converts("scalar_tensor")
def _scalar_tensor(b: _Builder, node: Any) -> None:
    _emit_full(b, node, node.args[0])


def _emit_full(b: _Builder, node: Any, value: Any) -> None:
    dtype = _dtype(node)
    number = bool(value) if dtype == "bool" else float(value) if "float" in dtype else int(value)
    b.emit(ops.Full, "full", [], node, size=_shape(node), value=number, dtype=dtype)


@_converts("arange")
def _arange(b: _Builder, node: Any) -> None:
    start, end, step = {1: (0, *node.args, 1), 2: (*node.args, 1)}.get(len(node.args), node.args)
    b.emit(ops.Arange, "arange", [], node, start=start, end=end, step=step, dtype=_dtype(node))


@_converts("view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_as")
def _view(b: _Builder, node: Any) -> None:
    x = node.args[0]
    if not _is_viewable(_value(x), _shape(node)):
        x = b.emit(ops.Clone, "clone", [x], x, shape=_shape(x))
    b.emit(ops.View, "view", [x], node, size=_shape(node))


def _is_viewable(value: torch.Tensor, shape: tuple[int, ...]) -> bool:
    try:
        value.view(shape)
    except (RuntimeError, ValueError):
        return False
    return True


@_converts("expand", "expand_as")
def _expand(b: _Builder, node: Any) -> None:
    b.emit(ops.Expand, "expand", [node.args[0]], node, size=_shape(node))


@_converts("transpose")
def _transpose(b: _Builder, node: Any) -> None:
    b.emit(ops.Transpose, "transpose", [node.args[0]], node, dim0=_dim(node, 1), dim1=_dim(node, 2))


@_converts("t")
def _t(b: _Builder, node: Any) -> None:
    b.emit(ops.Transpose, "transpose", [node.args[0]], node, dim0=0, dim1=1)


@_converts("permute")
def _permute(b: _Builder, node: Any) -> None:
    rank = _value(node.args[0]).dim()
    b.emit(ops.Permute, "permute", [node.args[0]], node, dims=tuple(d % rank for d in node.args[1]))


@_converts("unsqueeze")
def _unsqueeze(b: _Builder, node: Any) -> None:
    b.emit(ops.Unsqueeze, "unsqueeze", [node.args[0]], node, dim=_dim(node, rank=_value(node).dim()))


@_converts("squeeze")
def _squeeze(b: _Builder, node: Any) -> None:
    b.emit(ops.Squeeze, "squeeze", [node.args[0]], node, dims=_dims(node))


@_converts("select")
def _select(b: _Builder, node: Any) -> None:
    dim = _dim(node)
    index = node.args[2] % _shape(node.args[0])[dim]
    b.emit(ops.Select, "select", [node.args[0]], node, dim=dim, index=index)


@_converts("slice")
def _slice(b: _Builder, node: Any) -> None:
    x = node.args[0]
    dim = _dim(node, default=0)
    given = slice(_argument(node, 2, "start", None), _argument(node, 3, "end", None), _argument(node, 4, "step", 1))
    start, end, step = given.indices(_shape(x)[dim])
    if _shape(x) == _shape(node):
        b.alias(node, x)
    else:
        b.emit(ops.Slice, "slice", [x], node, dim=dim, start=start, end=max(start, end), step=step)


@_converts("alias", "detach", "lift_fresh_copy")
def _alias(b: _Builder, node: Any) -> None:
    b.alias(node, node.args[0])


def _convert_getitem(b: _Builder, node: Any) -> None:
    """One part of a split: a slice of what was split."""
    source, i = node.args
    packet = _packet(source)
    if packet not in _SPLITS:
        raise b.refuse(source, "an operator with one output")
    x = source.args[0]
    dim = _dim(source, 1 if packet == "unbind" else 2, "dim", 0)
    if packet == "unbind":
        b.emit(ops.Select, "select", [x], node, dim=dim, index=i)
        return
    sizes = [int(part.shape[dim]) for part in source.meta["val"]]
    start = sum(sizes[:i])
    b.emit(ops.Slice, "slice", [x], node, dim=dim, start=start, end=start + sizes[i], step=1)
