"""torch module -> `Graph` of forward and backward, as torch's own autograd runs them on tensors without values.

The module is exported, then traced together with its backward by `aot_export_joint_with_descriptors`. Nothing here
knows a derivative; a joint program without backward operators is refused. With `trace`, the only core file that imports
torch, and only inside functions.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Role, Tensor
from accelsim.trace import (
    _CONVERTERS,
    _argument,
    _Builder,
    _dtype,
    _Layers,
    _needed,
    _on_meta,
    _packet,
    _reason,
    _shape,
    _value,
    versions,
)
from accelsim.transforms.training import GRADIENT, tidy

if TYPE_CHECKING:
    import torch


def joint_graph(module: torch.nn.Module, name: str, head: str, seq: int, batch: int, masked: int | None) -> Graph:
    """Checked `Graph` of forward with loss, and backward. Outputs: the loss, then the gradient of each parameter.

    masked: positions of each sequence that go through the masked-language-model head, None for all. The module is left
    as it was; no weight is allocated.
    """
    module = _on_meta(module).train()
    first = {id(p): n for n, p in (*module.named_parameters(), *module.named_buffers())}
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    names = {n: first[id(t)] for n, t in every}
    found = _joint_program(module, seq, batch, masked)
    builder = _JointBuilder(names, found)
    layers = _Layers(found.graph)
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    builder.add_joint_placeholders(found, frozen)
    for node in found.graph.nodes:
        if node.op == "call_function":
            builder.place(node, layers)
            builder.convert(node)
    gradients = builder.name_gradients(found)
    kept = tidy(_needed(builder.ops, builder.outputs))
    touched = {t for op in kept for t in (*op.inputs, op.output)}
    roles = (Role.WEIGHT, Role.INPUT)
    meta = {"model": name, "head": head, "seq": str(seq), "batch": str(batch), "precision": "fp32"}
    return Graph(
        name=name,
        tensors={
            k: replace(t, role=Role.GRAD) if k in gradients else t
            for k, t in builder.tensors.items()
            if k in touched or t.role in roles
        },
        ops=tuple(kept),
        inputs=tuple(builder.inputs),
        outputs=tuple(dict.fromkeys(builder.outputs)),
        meta={
            **meta,
            "source": versions(),
            "training": "yes",
            "masked": "all" if masked is None else str(masked),
        },
    ).check()


# --- the joint program --------------------------------------------------------------------------------------------


class _Joint:
    """A joint program: its graph, and what its inputs and outputs stand for, by the module's names."""

    def __init__(self, graph: torch.fx.Graph, inputs: list[str]) -> None:
        self.graph = graph
        self.placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        self.output = next(n for n in graph.nodes if n.op == "output")
        self.inputs = inputs

    def targets(self) -> Iterable[tuple[Any, str, Role]]:
        """(placeholder, name, role)."""
        for node in self.placeholders:
            desc = node.meta["desc"]
            kind = type(desc).__name__
            if kind == "ParamAOTInput":
                yield node, _inner(desc.target), Role.WEIGHT
            elif kind == "BufferAOTInput":
                yield node, _inner(desc.target), Role.STATE
            elif kind == "PlainAOTInput":
                yield node, self.inputs[desc.idx], Role.INPUT
            elif kind != "TangentAOTInput":
                raise SpecError(f"trace: input {node.name}", kind, "a parameter, buffer or input")

    def results(self) -> Iterable[tuple[Any, str]]:
        """(node, "" for the loss or the parameter it is the gradient of)."""
        for node, desc in zip(self.output.args[0], self.output.meta["desc"], strict=True):
            if node is not None:
                kind = type(desc).__name__
                yield node, _inner(desc.grad_of.target) if kind == "GradAOTOutput" else ""


def _inner(target: str) -> str:
    return target.removeprefix("program.")


def check_backward(graph: torch.fx.Graph, what: str) -> None:
    """Raise SpecError unless operators of backward ran and gave a gradient to a parameter.

    torch's joint tracer gives forward alone, and says nothing, where autograd was off.
    """
    backward = [n for n in graph.nodes if n.meta.get("partitioner_tag") == "is_backward" and n.op == "call_function"]
    output = next(n for n in graph.nodes if n.op == "output")
    descs = output.meta.get("desc", ())
    given = [d for d, n in zip(descs, output.args[0], strict=False) if n is not None and "Grad" in type(d).__name__]
    if not backward or not given:
        raise SpecError(
            f"training trace of {what}", f"{len(backward)} backward operators", "a loss that depends on parameters"
        )


def _joint_program(module: torch.nn.Module, seq: int, batch: int, masked: int | None) -> _Joint:
    """Export the module (on meta, in training mode), then trace it with its backward."""
    import torch
    from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel

    what = f"{type(module).__name__} at seq {seq}, batch {batch}"
    if not any(p.requires_grad for p in module.parameters()):
        raise SpecError(f"training trace of {what}", 0, "at least one parameter that is trained")
    with contextlib.suppress(ValueError, AttributeError):
        module.set_attn_implementation("eager")  # of transformers: attention op by op
    try:
        with FakeTensorMode(), warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")  # the exporter's own, about its future
            _to_fake(module)
            given = _inputs(module, seq, batch, masked)
            program = torch.export.export(module, (), given, strict=False).module()
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.fx.traceback.preserve_node_meta())
                joint = aot_export_joint_with_descriptors(stack, _interpreted(program), tuple(given.values()))
                graph = joint.graph_module.graph
    except SpecError:
        raise
    except Exception as error:  # the exporter raises whatever the module's own code raises
        legal = "a module that torch.export can run on input_ids, attention_mask and labels, with a loss"
        raise SpecError(f"training trace of {what}", _reason(error), legal) from None
    check_backward(graph, what)
    return _Joint(graph, list(given))


def _interpreted(program: torch.nn.Module) -> torch.nn.Module:
    """Runs an exported program node by node, so that every operator traced knows its module; returns the loss."""
    import torch

    class Interpreted(torch.nn.Module):  # type: ignore[misc]  # torch is optional
        def __init__(self) -> None:
            super().__init__()
            self.program = program

        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            out: Any = torch.fx.Interpreter(self.program).run(*args)
            values = list(out.values()) if isinstance(out, dict) else [out] if isinstance(out, torch.Tensor) else out
            loss = next((v for v in values if v is not None), None)
            if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.is_floating_point():
                found = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise SpecError("training trace: first output", found, "a loss: one real number, shape ()")
            return loss

    return Interpreted()


def _to_fake(module: torch.nn.Module) -> None:
    """Replace every tensor of the module by one without values that says it is on the CPU; tied ones stay tied.

    To be called in a `FakeTensorMode`.
    """
    import torch

    made: dict[int, Any] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers, vars(part)):
            for key, tensor in held.items():
                if isinstance(tensor, torch.Tensor):
                    if id(tensor) not in made:
                        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                        fake = (
                            torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
                            if isinstance(tensor, torch.nn.Parameter)
                            else empty
                        )
                        made[id(tensor)] = tensor, fake  # both: an id is unique only while its object lives
                    held[key] = made[id(tensor)][1]


def _inputs(module: torch.nn.Module, seq: int, batch: int, masked: int | None) -> dict[str, torch.Tensor]:
    """Ids, mask and labels by the names `forward` gives them, without values."""
    import torch

    zoo: Any = importlib.import_module("accelsim_models.zoo")
    shapes = {"input_ids": (batch, seq), "attention_mask": (batch, seq), **zoo.labels(module, seq, batch, masked)}
    given = {name: torch.ones(shape, dtype=torch.long) for name, shape in shapes.items()}
    if masked is not None:
        _gather_before(module, zoo.masked_head(module))
        given["masked_positions"] = torch.ones((batch * masked,), dtype=torch.long)
    return given


def _gather_before(module: torch.nn.Module, head: torch.nn.Module) -> None:
    """Let only the tokens at `masked_positions` (numbered through the batch) reach the head."""
    forward = module.forward
    positions: list[torch.Tensor] = []

    def with_positions(**given: torch.Tensor) -> Any:
        positions[:] = [given.pop("masked_positions")]
        return forward(**given)

    def gather(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = args
        return hidden.flatten(0, 1)[positions[0]], *rest

    parameters = inspect.signature(forward).parameters
    extra = inspect.Parameter("masked_positions", inspect.Parameter.KEYWORD_ONLY)
    with_positions.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what export binds the inputs by
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters.values() if p.kind not in (2, 4)] + [extra]
    )
    module.forward = with_positions
    head.register_forward_pre_hook(gather)


# --- the graph ----------------------------------------------------------------------------------------------------

_Convert = Callable[["_JointBuilder", Any], None]
_TRAINING: dict[str, Any] = {}
_SAME = {"view", "_unsafe_view", "reshape", "t", "transpose", "expand", "detach", "alias", "permute", "unsqueeze"}


def _converts(*packets: str) -> Callable[[_Convert], _Convert]:
    def register(converter: _Convert) -> _Convert:
        _TRAINING.update(dict.fromkeys(packets, converter))
        return converter

    return register


class _JointBuilder(_Builder):
    """Turns the nodes of a joint program into ops with phases."""

    def __init__(self, names: Mapping[str, str], joint: _Joint) -> None:
        super().__init__(names, {})
        self.converters = {**_CONVERTERS, **_TRAINING}
        self.phase_of = _phases(joint)
        self.parameters: set[Any] = set()

    def add_joint_placeholders(self, joint: _Joint, frozen: set[str]) -> None:
        """Parameters, buffers and inputs, as tensors; tied ones once."""
        for node, target, role in joint.targets():
            name = target if role is Role.INPUT else self.names.get(target, target)
            if role is Role.INPUT:
                self.inputs.append(name)
            if role is Role.WEIGHT:
                self.parameters.add(node)
            if name not in self.tensors:
                self._add_tensor(name, node.meta["val"], role)
                if name in frozen:
                    self.tensors[name] = replace(self.tensors[name], frozen=True)
            self.tensor_of[node] = name

    def place(self, node: torch.fx.Node, layers: _Layers) -> None:
        """Module and phase; a sum of gradients, which no module asked for, belongs to the last one's."""
        found = node
        while not (found.meta.get("nn_module_stack") or found.meta.get("fwd_nn_module_stack")):
            before = [a for a in found.args if hasattr(a, "meta")]
            if not before:
                break
            found = before[-1]
        super().place(found, layers)
        self.phase = self.phase_of[node]

    def read(self, node: Any) -> str:
        """Tensor a node stands for; the gradient of the loss, where backward starts, is 1."""
        if node.op == "placeholder" and node not in self.tensor_of:
            self.emit(ops.Full, "ones", [], node, size=_shape(node), value=1.0, dtype=_dtype(node))
        return super().read(node)

    def convert(self, node: Any) -> None:
        """As in inference; parts of a tuple were placed with their whole."""
        if getattr(node.target, "__name__", "") == "getitem" and _packet(node.args[0]) in _TRAINING:
            return
        super().convert(node)

    def name_gradients(self, joint: _Joint) -> set[str]:
        """Rename each parameter's gradient, list the outputs; the gradients' names."""
        renamed: dict[str, str] = {}
        wanted: dict[str, str] = {}
        for node, target in joint.results():
            if not target:
                self.outputs.append(self.read(node))
            else:
                wanted[self.names.get(target, target)] = self.read(node)
        for parameter, tensor in wanted.items():
            if tensor in renamed or tensor not in {op.output for op in self.ops}:
                raise SpecError(f"gradient of {parameter}", tensor, "a tensor of its own")
            renamed[tensor] = GRADIENT + parameter
        self.tensors = {
            renamed.get(k, k): Tensor(renamed.get(k, k), t.shape, t.dtype, t.role, t.frozen)
            for k, t in self.tensors.items()
        }
        self.ops = [
            replace(
                op,
                inputs=tuple(renamed.get(n, n) for n in op.inputs),
                output=renamed.get(op.output, op.output),
            )
            for op in self.ops
        ]
        self.outputs += [GRADIENT + parameter for parameter in self.tensors if parameter in wanted]
        return set(renamed.values())


def _phases(joint: _Joint) -> dict[Any, str]:
    """Node -> its phase.

    backward_weight is what leads to one parameter's gradient only, and is the derivative of an operator that read this
    parameter (or sums such gradients). Everything else of backward is backward_data.
    """
    readers: dict[str, set[Any]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for node, target, role in joint.targets():
        if role is Role.WEIGHT:
            shapes[target] = _shape(node)
            found = readers.setdefault(target, set())
            todo = [node]
            while todo:
                for user in todo.pop().users:
                    if user.meta.get("partitioner_tag") == "is_forward":
                        found.add(user.meta.get("seq_nr"))
                        todo += [user] if _packet(user) in _SAME else []
    leads: dict[Any, set[str]] = {node: {target} for node, target in joint.results() if target}
    phases: dict[Any, str] = {}
    for node in reversed(joint.graph.nodes):
        if node.op != "call_function":
            continue
        mine = leads.setdefault(node, set())
        for user in node.users:
            if len(mine) < 2:
                mine |= leads.get(user, set())
        if node.meta.get("partitioner_tag") != "is_backward":
            phases[node] = "forward"
            continue
        only = next(iter(mine)) if len(mine) == 1 else None
        summed = _packet(node) == "add" and "fwd_nn_module_stack" not in node.meta
        derived = only is not None and node.meta.get("seq_nr") in readers[only]
        weight = derived or (only is not None and summed and _shape(node) == shapes[only])
        phases[node] = "backward_weight" if weight else "backward_data"
    return phases


def _parts(node: Any) -> dict[int, Any]:
    """Index -> the node that takes this part of a tuple."""
    return {user.args[1]: user for user in node.users if user.users}


# --- views, without those that change nothing ---------------------------------------------------------------------


@_converts("view", "_unsafe_view", "reshape")
def _view(b: _JointBuilder, node: Any) -> None:
    if _shape(node) == _shape(node.args[0]):
        b.alias(node, node.args[0])
    else:
        b.emit(ops.View, "view", [node.args[0]], node, size=_shape(node))


@_converts("expand")
def _expand(b: _JointBuilder, node: Any) -> None:
    if _shape(node) == _shape(node.args[0]):
        b.alias(node, node.args[0])
    else:
        b.emit(ops.Expand, "expand", [node.args[0]], node, size=_shape(node))


@_converts("t")
def _t(b: _JointBuilder, node: Any) -> None:
    x = node.args[0]
    if _packet(x) == "t":
        b.alias(node, x.args[0])
    else:
        b.emit(ops.Transpose, "transpose", [x], node, dim0=0, dim1=1)


# --- products -----------------------------------------------------------------------------------------------------

_PRODUCTS = {"forward": "matmul", "backward_data": "grad_input", "backward_weight": "grad_weight"}


def _weight(b: _JointBuilder, node: Any) -> Any:
    """W where the node is W transposed and W a parameter of an operator of forward."""
    if b.phase != "forward" or _packet(node) != "t" or node.args[0] not in b.parameters:
        return None
    return node.args[0]


@_converts("mm")
def _mm(b: _JointBuilder, node: Any) -> None:
    x, y = node.args
    weight = _weight(b, y)
    if weight is not None:
        b.emit(ops.Linear, "linear", [x, weight], node)
    else:
        b.emit(ops.Matmul, _PRODUCTS[b.phase], [x, y], node)


@_converts("addmm")
def _addmm(b: _JointBuilder, node: Any) -> None:
    bias, x, y = node.args
    weight = _weight(b, y)
    if weight is None or node.kwargs or bias not in b.parameters:
        raise b.refuse(node, "addmm of a bias, x and a transposed weight, without alpha and beta")
    b.emit(ops.Linear, "linear", [x, weight, bias], node)


@_converts("bmm")
def _bmm(b: _JointBuilder, node: Any) -> None:
    b.emit(ops.Matmul, "bmm" if b.phase == "forward" else "bmm_backward", list(node.args), node)


# --- dropout and layer norm ---------------------------------------------------------------------------------------


@_converts("native_dropout")
def _native_dropout(b: _JointBuilder, node: Any) -> None:
    x, p, train = node.args
    parts = _parts(node)
    if not train or p == 0:
        b.tensor_of[parts[0]] = b.read(x)
        if 1 in parts:
            b.emit(ops.Full, "full", [], parts[1], size=_shape(parts[1]), value=True, dtype="bool")
        return
    kernel = f"{b.group}.dropout.{len(b.ops)}"
    drawn = {"shape": _shape(x), "dtype_of": DType.BOOL, "size": _shape(x), "p": 1 - p, "kernel": kernel}
    mask = b.emit(ops.Bernoulli, "dropout_mask", [], x, **drawn)
    if 1 in parts:
        b.tensor_of[parts[1]] = mask
    b.emit(ops.NativeDropout, "dropout", [x, mask], parts[0], scale=1 / (1 - p) if p < 1 else 0.0, kernel=kernel)


@_converts("clone")
def _clone(b: _JointBuilder, node: Any) -> None:
    if str(node.meta.get("torch_fn", ("", ""))[1]).endswith(".dropout"):
        b.alias(node, node.args[0])  # dropout with probability 0, which eager PyTorch does not copy
    else:
        b.emit(ops.Clone, "clone", [node.args[0]], node)


@_converts("native_dropout_backward")
def _native_dropout_backward(b: _JointBuilder, node: Any) -> None:
    gradient, mask, scale = node.args
    b.emit(ops.NativeDropout, "dropout_backward", [gradient, mask], node, scale=float(scale))


@_converts("native_layer_norm")
def _native_layer_norm(b: _JointBuilder, node: Any) -> None:
    x, normalized, weight, bias, eps = node.args
    if len(normalized) != 1 or (weight is None and bias is not None):
        raise b.refuse(node, "layer_norm over the last dimension, with a weight if it has a bias")
    parts = _parts(node)
    kernel = f"{b.group}.layer_norm.{len(b.ops)}"
    given = [a for a in (x, weight, bias) if a is not None]
    b.emit(ops.LayerNorm, "layer_norm", given, parts[0], eps=float(eps), kernel=kernel)
    if 1 in parts or 2 in parts:
        shape = (*_shape(x)[:-1], 2)
        stats = b.emit(ops.LayerNormStats, "stats", [x], x, shape=shape, eps=float(eps), kernel=kernel)
        for i in {1, 2} & set(parts):
            b.tensor_of[parts[i]] = stats


@_converts("native_layer_norm_backward")
def _native_layer_norm_backward(b: _JointBuilder, node: Any) -> None:
    gradient, x, _, mean, rstd, weight = node.args[:6]
    stats = b.read(mean)
    if b.read(rstd) != stats:
        raise b.refuse(node, "the statistics of one layer norm")
    parts = _parts(node)
    if 0 in parts:
        b.phase = "backward_data"
        given = [gradient, x, stats, *([] if weight is None else [weight])]
        b.emit(ops.LayerNormBackward, "layer_norm_backward", given, parts[0])
    b.phase = "backward_weight"
    kernel = f"{b.group}.layer_norm_backward_weight.{len(b.ops)}"
    if 1 in parts:
        b.emit(ops.LayerNormBackwardWeight, "grad_weight", [gradient, x, stats], parts[1], kernel=kernel)
    if 2 in parts:
        dims = tuple(range(_value(x).dim() - 1))
        b.emit(ops.Sum, "grad_bias", [gradient], parts[2], dims=dims, keepdim=False, kernel=kernel)


# --- derivatives --------------------------------------------------------------------------------------------------


@_converts("gelu_backward")
def _gelu_backward(b: _JointBuilder, node: Any) -> None:
    how = node.kwargs.get("approximate", "none")
    b.emit(ops.GeluBackward, "gelu_backward", list(node.args[:2]), node, approximate=how)


@_converts("tanh_backward")
def _tanh_backward(b: _JointBuilder, node: Any) -> None:
    b.emit(ops.TanhBackward, "tanh_backward", list(node.args), node)


@_converts("sigmoid_backward")
def _sigmoid_backward(b: _JointBuilder, node: Any) -> None:
    b.emit(ops.SigmoidBackward, "sigmoid_backward", list(node.args), node)


@_converts("threshold_backward")
def _threshold_backward(b: _JointBuilder, node: Any) -> None:
    gradient, y, threshold = node.args
    b.emit(ops.ThresholdBackward, "relu_backward", [gradient, y], node, threshold=threshold)


def _check_last(b: _JointBuilder, node: Any, dim: int) -> None:
    if dim % max(1, _value(node).dim()) != _value(node).dim() - 1:
        raise b.refuse(node, "a softmax over the last dimension")


@_converts("_softmax_backward_data")
def _softmax_backward(b: _JointBuilder, node: Any) -> None:
    gradient, y, dim = node.args[:3]
    _check_last(b, node, dim)
    b.emit(ops.SoftmaxBackward, "softmax_backward", [gradient, y], node)


@_converts("_safe_softmax")
def _safe_softmax(b: _JointBuilder, node: Any) -> None:
    _check_last(b, node, node.args[1])
    b.emit(ops.Softmax, "softmax", [node.args[0]], node)


@_converts("_log_softmax")
def _log_softmax(b: _JointBuilder, node: Any) -> None:
    _check_last(b, node, node.args[1])
    b.emit(ops.LogSoftmax, "log_softmax", [node.args[0]], node)


@_converts("_log_softmax_backward_data")
def _log_softmax_backward(b: _JointBuilder, node: Any) -> None:
    gradient, y, dim = node.args[:3]
    _check_last(b, node, dim)
    b.emit(ops.LogSoftmaxBackward, "log_softmax_backward", [gradient, y], node)


# --- loss and scatter ---------------------------------------------------------------------------------------------


@_converts("nll_loss_forward")
def _nll_loss(b: _JointBuilder, node: Any) -> None:
    x, target, weight, reduction, ignored = node.args
    if weight is not None or reduction != 1 or _value(x).dim() != 2:
        raise b.refuse(node, "a mean over rows of classes, without weights")
    b.emit(ops.NllLoss, "nll_loss", [x, target], _parts(node)[0], ignore_index=ignored)


@_converts("nll_loss_backward")
def _nll_loss_backward(b: _JointBuilder, node: Any) -> None:
    gradient, x, target, _, _, ignored = node.args[:6]
    classes = _shape(x)[1]
    b.emit(
        ops.NllLossBackward, "nll_loss_backward", [gradient, target], node, classes=classes, ignore_index=ignored
    )  # fmt: skip


@_converts("embedding_dense_backward")
def _embedding_backward(b: _JointBuilder, node: Any) -> None:
    gradient, ids, rows, padding = node.args[:4]
    if node.args[4]:
        raise b.refuse(node, "gradients of an embedding that are not scaled by frequency")
    b.emit(ops.EmbeddingBackward, "embedding_backward", [gradient, ids], node, rows=rows, padding_idx=padding)


@_converts("index_put", "_unsafe_index_put")
def _index_backward(b: _JointBuilder, node: Any) -> None:
    base, ids, gradient = node.args[:3]
    zeros = _packet(base) in ("new_zeros", "zeros", "zeros_like", "full")
    if len(ids) != 1 or not zeros or not _argument(node, 3, "accumulate", False):
        raise b.refuse(node, "the derivative of indexing by one tensor of ids")
    b.emit(ops.IndexBackward, "index_backward", [gradient, ids[0]], node, size=_shape(node))


def _padded(b: _JointBuilder, node: Any, x: Any, dim: int, before: int, after: int) -> None:
    rank = len(_shape(node))
    sides = [tuple(n if i == dim else 0 for i in range(rank)) for n in (before, after)]
    b.emit(ops.Pad, "pad", [x], node, before=sides[0], after=sides[1], value=0.0)


@_converts("select_backward")
def _select_backward(b: _JointBuilder, node: Any) -> None:
    gradient, sizes, dim, index = node.args
    dim, size = dim % len(sizes), sizes[dim]
    index %= size
    shape = (*_shape(gradient)[:dim], 1, *_shape(gradient)[dim:])
    row = b.emit(ops.Unsqueeze, "unsqueeze", [gradient], node, shape=shape, dim=dim)
    _padded(b, node, row, dim, index, size - index - 1)


@_converts("slice_backward")
def _slice_backward(b: _JointBuilder, node: Any) -> None:
    gradient, sizes, dim, start, end, step = node.args
    if step != 1:
        raise b.refuse(node, "a slice with step 1")
    dim %= len(sizes)
    start, end, _ = slice(start, end).indices(sizes[dim])
    if start == 0 and end == sizes[dim]:
        b.alias(node, gradient)
    else:
        _padded(b, node, gradient, dim, start, sizes[dim] - end)
