"""The optimizer of a training graph, and mixed precision: pure functions Graph -> Graph.

An optimizer is a list of passes over arrays of the parameters' size, each one work for a whole group of parameters.
Three variants of each: NAME as a multi-tensor kernel does it, NAME-unfused as PyTorch does operator by operator
(`foreach`), NAME-bound with every array read and written once, which no barrier would allow in LAMB and LARS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Op, Role, Tensor

GRADIENT = "gradient of "
"""A parameter's gradient is the tensor of this name and the parameter's."""

STATES = ("exp_avg", "exp_avg_sq", "momentum")
"""Arrays that live from one iteration to the next, in float32."""


@dataclass(frozen=True)
class Pass:
    """One sweep over all parameters of a group.

    reads, writes: "gradient", "weight", one of `STATES`, or a name that an earlier pass wrote; each is an array of the
    group's size. flops, exps: of each parameter. sums: nothing is written but one number for each tensor, under the
    pass's name ("all": one number for all tensors of all groups, which everything after it waits for). needs: such
    numbers.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    flops: int = 0
    exps: int = 0
    sums: str = ""
    needs: tuple[str, ...] = ()

    @property
    def arrays(self) -> int:
        """Arrays read and written: what the literature calls passes."""
        return len(self.reads) + len(self.writes)


def passes(name: str) -> int:
    """Arrays of the parameters' size that an optimizer reads and writes in one step.

    >>> passes("lamb"), passes("lamb-bound"), passes("adam")
    (13, 7, 7)
    """
    return sum(step.arrays for step in find_optimizer(name))


# FLOPs count weight decay, bias corrections folded into the step size where PyTorch folds them, and gradient clipping
# in LAMB. Sources: torch.optim; You et al., arXiv:1904.00962, algorithm 2 (LAMB); You et al., arXiv:1708.03888 (LARS);
# NVIDIA apex multi_tensor_lamb.cu (the stages of the fused kernel).
_ADAM = ("gradient", "weight", "exp_avg", "exp_avg_sq")
_ADAM_OUT = ("exp_avg", "exp_avg_sq", "weight")
_DENOMINATOR = (
    Pass("sqrt", ("exp_avg_sq",), ("denominator",), exps=1),
    Pass("bias_correction", ("denominator",), ("denominator",), 1),
    Pass("add_eps", ("denominator",), ("denominator",), 1),
)
_SECOND_MOMENT = (
    Pass("exp_avg_sq_mul", ("exp_avg_sq",), ("exp_avg_sq",), 1),
    Pass("exp_avg_sq_addcmul", ("exp_avg_sq", "gradient"), ("exp_avg_sq",), 3),
)

OPTIMIZERS: dict[str, tuple[Pass, ...]] = {
    "sgd": (Pass("step", ("gradient", "weight"), ("weight",), 4),),
    "sgd-unfused": (
        Pass("weight_decay", ("gradient", "weight"), ("gradient",), 2),
        Pass("step", ("weight", "gradient"), ("weight",), 2),
    ),
    "sgd-bound": (Pass("step", ("gradient", "weight"), ("weight",), 4),),
    "momentum": (Pass("step", ("gradient", "weight", "momentum"), ("momentum", "weight"), 6),),
    "momentum-unfused": (
        Pass("weight_decay", ("gradient", "weight"), ("gradient",), 2),
        Pass("momentum_mul", ("momentum",), ("momentum",), 1),
        Pass("momentum_add", ("momentum", "gradient"), ("momentum",), 1),
        Pass("step", ("weight", "momentum"), ("weight",), 2),
    ),
    "momentum-bound": (Pass("step", ("gradient", "weight", "momentum"), ("momentum", "weight"), 6),),
    "adam": (Pass("step", _ADAM, _ADAM_OUT, 14, 1),),
    "adam-unfused": (
        Pass("weight_decay", ("gradient", "weight"), ("gradient",), 2),
        Pass("exp_avg_lerp", ("exp_avg", "gradient"), ("exp_avg",), 3),
        *_SECOND_MOMENT,
        *_DENOMINATOR,
        Pass("addcdiv", ("weight", "exp_avg", "denominator"), ("weight",), 3),
    ),
    "adam-bound": (Pass("step", _ADAM, _ADAM_OUT, 14, 1),),
    "adamw": (Pass("step", _ADAM, _ADAM_OUT, 13, 1),),
    "adamw-unfused": (
        Pass("weight_decay", ("weight",), ("weight",), 1),
        Pass("exp_avg_lerp", ("exp_avg", "gradient"), ("exp_avg",), 3),
        *_SECOND_MOMENT,
        *_DENOMINATOR,
        Pass("addcdiv", ("weight", "exp_avg", "denominator"), ("weight",), 3),
    ),
    "adamw-bound": (Pass("step", _ADAM, _ADAM_OUT, 13, 1),),
    "lamb": (
        Pass("gradient_norm", ("gradient",), flops=2, sums="all"),
        Pass("stage1", _ADAM, ("exp_avg", "exp_avg_sq", "update"), 15, 1, needs=("gradient_norm",)),
        Pass("weight_norm", ("weight",), flops=2, sums="each"),
        Pass("update_norm", ("update",), flops=2, sums="each"),
        Pass("stage2", ("weight", "update"), ("weight",), 2, needs=("weight_norm", "update_norm")),
    ),
    "lamb-unfused": (
        Pass("gradient_norm", ("gradient",), flops=2, sums="all"),
        Pass("clip", ("gradient",), ("gradient",), 1, needs=("gradient_norm",)),
        Pass("exp_avg_mul", ("exp_avg",), ("exp_avg",), 1),
        Pass("exp_avg_add", ("exp_avg", "gradient"), ("exp_avg",), 2),
        *_SECOND_MOMENT,
        *_DENOMINATOR,
        Pass("correct", ("exp_avg",), ("update",), 1),
        Pass("divide", ("update", "denominator"), ("update",), 1),
        Pass("weight_decay", ("update", "weight"), ("update",), 2),
        Pass("weight_norm", ("weight",), flops=2, sums="each"),
        Pass("update_norm", ("update",), flops=2, sums="each"),
        Pass("trust", ("update",), ("update",), 1, needs=("weight_norm", "update_norm")),
        Pass("step", ("weight", "update"), ("weight",), 2),
    ),
    "lamb-bound": (Pass("step", _ADAM, _ADAM_OUT, 23, 1),),
    "lars": (
        Pass("weight_norm", ("weight",), flops=2, sums="each"),
        Pass("gradient_norm", ("gradient",), flops=2, sums="each"),
        Pass(
            "step", ("gradient", "weight", "momentum"), ("momentum", "weight"), 7,
            needs=("weight_norm", "gradient_norm"),
        ),
    ),
    "lars-unfused": (
        Pass("weight_norm", ("weight",), flops=2, sums="each"),
        Pass("gradient_norm", ("gradient",), flops=2, sums="each"),
        Pass("weight_decay", ("gradient", "weight"), ("gradient",), 2),
        Pass("trust", ("gradient",), ("gradient",), 1, needs=("weight_norm", "gradient_norm")),
        Pass("momentum_mul", ("momentum",), ("momentum",), 1),
        Pass("momentum_add", ("momentum", "gradient"), ("momentum",), 1),
        Pass("step", ("weight", "momentum"), ("weight",), 2),
    ),
    "lars-bound": (Pass("step", ("gradient", "weight", "momentum"), ("momentum", "weight"), 11),),
}  # fmt: skip
"""Name -> its passes, in order."""


def find_optimizer(name: str) -> tuple[Pass, ...]:
    """The passes of an optimizer. Raises SpecError for an unknown name, with the nearest."""
    if name not in OPTIMIZERS:
        raise SpecError.unknown("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def with_optimizer(graph: Graph, name: str) -> Graph:
    """The training graph with an optimizer's passes after backward, in place of those it may have had.

    Two groups of parameters, as BERT is trained: matrices, which decay, and vectors (biases, layer norms), which do
    not. Weights that are not float32 get a master copy in float32, which is what the optimizer changes; its last pass
    writes the model's format as well. Outputs: the loss and the new weights of each group as one flat tensor.

    Raises SpecError for an unknown name and for a graph without gradients.
    """
    steps = find_optimizer(name)
    graph = without_optimizer(graph)
    groups = {
        "decay": [p for p in _trained(graph) if len(graph.tensors[p].shape) >= 2],
        "no_decay": [p for p in _trained(graph) if len(graph.tensors[p].shape) < 2],
    }
    if not any(groups.values()):
        raise SpecError("optimizer", name, "a training graph, which has gradients")
    builders = [_Group(graph, label, names) for label, names in groups.items() if names]
    last = max(i for i, step in enumerate(steps) if "weight" in step.writes)
    separate = len(steps) > 1 and name.endswith("-unfused")
    barriers: dict[str, str] = {}
    for i, step in enumerate(steps):
        for builder in builders:
            builder.add(step, final=i == last and not separate, barriers=barriers)
        barriers |= {f"{b.label}.{step.name}": b.now[step.name][0] for b in builders if step.sums == "all"}
    for builder in builders:
        if separate and builder.is_mixed:
            builder.add(Pass("copy", ("weight",), ("weight",)), final=True, barriers={})
    return replace(
        graph,
        tensors={**graph.tensors, **{k: t for b in builders for k, t in b.tensors.items()}},
        ops=(*graph.ops, *sorted((op for b in builders for op in b.ops), key=lambda op: _order(steps, op))),
        outputs=(graph.outputs[0], *(b.now["weight"][0] for b in builders)),
        meta={**graph.meta, "optimizer": name},
    ).check()


def _order(steps: tuple[Pass, ...], op: Op) -> int:
    """Passes run one after another, each over all groups."""
    assert isinstance(op, ops.Update)
    names = [step.name for step in steps]
    return names.index(op.stage) if op.stage in names else len(names)


def _trained(graph: Graph) -> list[str]:
    return [name for name, t in graph.tensors.items() if t.role is Role.WEIGHT and GRADIENT + name in graph.tensors]


def without_optimizer(graph: Graph) -> Graph:
    """The training graph as it was before `with_optimizer`: its outputs are the loss and the gradients."""
    if "optimizer" not in graph.meta:
        return graph
    kept = tuple(op for op in graph.ops if op.phase != "update")
    gone = {op.output for op in graph.ops if op.phase == "update"}
    used = {name for op in kept for name in (*op.inputs, op.output)}
    return replace(
        graph,
        tensors={
            k: t
            for k, t in graph.tensors.items()
            if k not in gone and (k in used or t.role in (Role.WEIGHT, Role.INPUT))
        },
        ops=kept,
        outputs=(graph.outputs[0], *(GRADIENT + name for name in _trained(graph))),
        meta={k: v for k, v in graph.meta.items() if k != "optimizer"},
    )


@dataclass
class _Group:
    """Builds the update ops of one group. now: array -> the tensors that hold it at this point."""

    graph: Graph
    label: str
    names: list[str]
    ops: list[Op] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    now: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.elements = sum(self.graph.tensors[n].elements for n in self.names)
        self.dtype = self.graph.tensors[self.names[0]].dtype
        self.is_mixed = self.dtype is not DType.FLOAT32
        self.now["gradient"] = tuple(GRADIENT + n for n in self.names)
        self.now["weight"] = (self._state("master"),) if self.is_mixed else tuple(self.names)

    def _state(self, name: str) -> str:
        """A flat float32 array that stays from one iteration to the next."""
        full = f"optimizer.{self.label}.{name}"
        self.tensors[full] = Tensor(full, (self.elements,), DType.FLOAT32, Role.STATE)
        return full

    def add(self, step: Pass, *, final: bool, barriers: Mapping[str, str]) -> None:
        """Add one pass. final: it writes the weights in the model's format."""
        for name in step.reads:
            if name not in self.now:
                assert name in STATES, f"{step.name} reads {name} before a pass writes it"
                self.now[name] = (self._state(name),)
        reads = [n for name in step.reads for n in self.now[name]]
        reads += [n for name in step.needs for n in (barriers.values() if self._is_barrier(name, barriers) else
                                                     self.now[name])]  # fmt: skip
        written = step.writes[-1] if step.writes else step.name
        in_place = [n for name in step.writes[:-1] for n in self.now[name]]
        name = f"optimizer.{self.label}.{step.name}"
        dtype = DType.FLOAT32
        shape: tuple[int, ...] = (self.elements,)
        replaces: tuple[str, ...] = ()
        if step.sums:
            shape = () if step.sums == "all" else (len(self.names),)
        elif written == "weight" and final and self.is_mixed:
            dtype, replaces = self.dtype, tuple(self.names)
            in_place += [] if step.name == "copy" else list(self.now["weight"])
        elif written in step.reads:
            replaces = self.now[written]
        self.tensors[name] = Tensor(name, shape, dtype)
        self.ops.append(
            ops.Update(
                name=name,
                inputs=tuple(dict.fromkeys(reads)),
                output=name,
                group=f"optimizer.{self.label}",
                phase="update",
                stage=step.name,
                elements=self.elements,
                shape=shape,
                in_place=tuple(in_place),
                replaces=replaces,
                flops_per_element=step.flops,
                exps_per_element=step.exps,
            )
        )
        self.now[written] = (name,)

    @staticmethod
    def _is_barrier(name: str, barriers: Mapping[str, str]) -> bool:
        return any(key.endswith(f".{name}") for key in barriers)


# --- mixed precision ------------------------------------------------------------------------------------------------


def mixed(graph: Graph, dtype: DType) -> Graph:
    """The training graph with weights, activations and gradients in `dtype`.

    In float32 stay the statistics of layer norms, log-probabilities and loss, and the optimizer: master weights and
    state. Casts of weights are part of the optimizer's last pass. Inference graphs change as a whole.
    """
    optimizer = graph.meta.get("optimizer")
    bare = without_optimizer(graph)
    kept = {op.output for op in bare.ops if isinstance(op, ops.LayerNormStats | ops.LogSoftmax | ops.NllLossBackward)}
    if graph.meta.get("training"):
        kept |= {n for n, t in bare.tensors.items() if not t.shape and t.dtype.is_float and t.role is Role.ACTIVATION}
    tensors = {
        name: replace(t, dtype=dtype) if t.dtype.is_float and name not in kept else t
        for name, t in bare.tensors.items()
    }
    changed = replace(
        bare,
        tensors=tensors,
        ops=tuple(
            replace(op, dtype=tensors[op.output].dtype.value) if isinstance(op, ops.To | ops.Full | ops.Arange) else op
            for op in bare.ops
        ),
    )
    return changed if optimizer is None else with_optimizer(changed, optimizer)


# --- what is trained ------------------------------------------------------------------------------------------------


def freeze(graph: Graph, *paths: str) -> Graph:
    """The training graph in which the parameters of these modules are not trained.

    paths: whole components of module paths, as "embeddings", "encoder" or "encoder.layer.3". What only their gradients
    needed is not computed: below the lowest module that is trained there is no backward at all.

    Raises SpecError for a path that is not in the model, and where nothing is left to train.
    """
    _check_training(graph, "freeze")
    weights = [name for name, t in graph.tensors.items() if t.role is Role.WEIGHT]
    frozen: set[str] = set()
    for path in paths:
        found = [name for name in weights if f".{path}." in f".{name}."]
        if not found:
            known = {".".join(parts[i:j]) for name in weights for parts in [name.split(".")[:-1]]
                     for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}  # fmt: skip
            raise SpecError.unknown("freeze", path, known)
        frozen |= set(found)
    bare = without_optimizer(graph)
    kept = [GRADIENT + name for name in _trained(bare) if name not in frozen]
    if not kept:
        raise SpecError("freeze", ", ".join(paths), "at least one parameter that is trained")
    outputs = (bare.outputs[0], *kept)
    tensors = {n: replace(t, frozen=True) if n in frozen else t for n, t in bare.tensors.items()}
    made = pruned(replace(bare, tensors=tensors, outputs=outputs))
    return _with_same_optimizer(made, graph)


def _with_same_optimizer(made: Graph, before: Graph) -> Graph:
    optimizer = before.meta.get("optimizer")
    return made.check() if optimizer is None else with_optimizer(made, optimizer)


def _check_training(graph: Graph, what: str) -> None:
    if "training" not in graph.meta:
        raise SpecError(what, graph.name, "a training graph, as trace(..., training=True) gives")


def pruned(graph: Graph) -> Graph:
    """The graph with the ops its outputs depend on, and the tensors these touch; a kernel of one op is none."""
    wanted = set(graph.outputs)
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if op.output in wanted:
            wanted.update(op.inputs)
            kept.append(op)
    touched = {n for op in kept for n in (*op.inputs, op.output)}
    return replace(
        graph,
        tensors={n: t for n, t in graph.tensors.items() if n in touched or t.role in (Role.WEIGHT, Role.INPUT)},
        ops=tuple(tidy(kept[::-1])),
    )


def tidy(every: Sequence[Op]) -> list[Op]:
    """The ops without kernels of one."""
    members: dict[str, int] = {}
    for op in every:
        members[op.kernel] = members.get(op.kernel, 0) + 1
    return [replace(op, kernel="") if op.kernel and members[op.kernel] == 1 else op for op in every]


# --- memory for time ------------------------------------------------------------------------------------------------


def checkpoint(graph: Graph, layers: Iterable[int] | None = None) -> Graph:
    """The training graph that keeps only the inputs of encoder layers, and runs a layer's forward again before its
    backward, in phase "recompute", with the dropout masks of the first time.

    layers: indices; None: all. Raises SpecError for a layer that is not there or is recomputed already.
    """
    _check_training(graph, "checkpoint")
    present = sorted({op.layer for op in graph.ops if op.layer >= 0})
    wanted = present if layers is None else list(dict.fromkeys(layers))
    for layer in wanted:
        if layer not in present:
            raise SpecError("checkpoint: layer", layer, f"one of {', '.join(map(str, present)) or 'none'}")
        if any(op.layer == layer and op.phase == "recompute" for op in graph.ops):
            raise SpecError("checkpoint: layer", layer, "a layer that is not recomputed already")
    made: list[Op] = []
    tensors = dict(graph.tensors)
    waiting: dict[int, list[Op]] = {layer: [] for layer in wanted}  # forward since the layer's last backward
    again: dict[int, dict[str, str]] = {layer: {} for layer in wanted}
    for op in graph.ops:
        if op.layer in waiting and op.phase == "forward":
            waiting[op.layer].append(op)
        elif op.layer in waiting and op.phase.startswith("backward"):
            names = {o.output: f"recompute.{o.output}" for o in waiting[op.layer]}
            again[op.layer] |= names
            made += [_recomputed(o, names) for o in waiting[op.layer]]
            tensors |= {new: replace(graph.tensors[old], name=new) for old, new in names.items()}
            waiting[op.layer] = []
            op = replace(op, inputs=tuple(again[op.layer].get(n, n) for n in op.inputs))
        made.append(op)
    return replace(graph, tensors=tensors, ops=tuple(made)).check()


def _recomputed(op: Op, names: Mapping[str, str]) -> Op:
    if isinstance(op, ops.Bernoulli):
        op = replace(op, stream=op.stream or op.name)
    return replace(
        op,
        name=f"recompute.{op.name}",
        inputs=tuple(names.get(n, n) for n in op.inputs),
        output=names[op.output],
        phase="recompute",
        kernel=f"recompute.{op.kernel}" if op.kernel else "",
    )


def accumulate(graph: Graph, steps: int) -> Graph:
    """The graph of one iteration over `steps` micro-batches of the graph's batch: forward and backward for each, their
    gradients added up, one step of the optimizer. The loss it descends is the mean of theirs; its first output is the
    last one's.

    Inputs of micro-batch i > 0 are called NAME@i. Raises SpecError unless steps is an integer >= 1, and for a graph
    that has micro-batches already.
    """
    _check_training(graph, "accumulate")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise SpecError("accumulate: steps", steps, "an integer >= 1")
    if "micro_batch" in graph.meta:
        raise SpecError("accumulate", graph.name, "a graph without micro-batches; give all steps at once")
    if steps == 1:
        return graph
    bare = without_optimizer(graph)
    parameters = _trained(bare)
    shared = {n for n, t in bare.tensors.items() if t.role in (Role.WEIGHT, Role.STATE)}
    tensors = {n: t for n, t in bare.tensors.items() if n in shared}
    made: list[Op] = []
    inputs: list[str] = []
    sums = dict.fromkeys((GRADIENT + p for p in parameters), "")
    kernel = ""
    for i in range(steps):
        mark = f"@{i}" if i else ""
        names = {n: n if n in shared else n + mark for n in bare.tensors}
        if i == 0:  # the whole gradient has the plain name
            names |= {GRADIENT + p: f"{GRADIENT}{p}@0" for p in parameters}
        tensors |= {names[n]: replace(t, name=names[n]) for n, t in bare.tensors.items() if n not in shared}
        inputs += [names[n] for n in bare.inputs]
        added: list[Op] = []  # after the kernel that makes the gradients
        for op in bare.ops:
            if added and op.kernel != kernel:
                made += added
                added = []
            kernel = op.kernel
            made.append(_marked(op, names, mark, steps))
            if op.output.startswith(GRADIENT):
                before, new = sums[op.output], names[op.output]
                sums[op.output] = new if not before else op.output if i == steps - 1 else f"{op.output} up to {i}"
                if before:
                    tensors[sums[op.output]] = replace(bare.tensors[op.output], name=sums[op.output])
                    added.append(_sum_of(op, before, new, sums[op.output], i))
        made += added
    outputs = (names[bare.outputs[0]], *(GRADIENT + p for p in parameters))
    batch = int(bare.meta["batch"]) * steps
    meta = {**bare.meta, "batch": str(batch), "micro_batch": bare.meta["batch"]}
    result = replace(bare, tensors=tensors, ops=tuple(made), inputs=tuple(inputs), outputs=outputs, meta=meta)
    return _with_same_optimizer(result, graph)


def _marked(op: Op, names: Mapping[str, str], mark: str, steps: int) -> Op:
    """The op of one micro-batch; backward starts from 1 / steps, a recomputed mask is that of its own micro-batch."""
    if isinstance(op, ops.Full) and op.phase.startswith("backward") and op.size == () and op.value == 1.0:
        op = replace(op, value=1.0 / steps)
    if isinstance(op, ops.Bernoulli) and op.stream:
        op = replace(op, stream=op.stream + mark)
    return replace(
        op,
        name=op.name + mark,
        inputs=tuple(names[n] for n in op.inputs),
        output=names[op.output],
        kernel=op.kernel + mark if op.kernel else "",
    )


def _sum_of(op: Op, before: str, new: str, total: str, i: int) -> Op:
    """What adds micro-batch i's gradient to those before."""
    return ops.Add(
        name=f"accumulate.{op.output.removeprefix(GRADIENT)}@{i}",
        inputs=(before, new),
        output=total,
        group=op.group,
        layer=op.layer,
        phase="backward_weight",
    )
