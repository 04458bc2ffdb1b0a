"""A quantized BERT in PyTorch, trainable and exact: the reference that `accelsim.execute` is compared with.

    model = QuantizedBert(graphs("minilm-l6", "sequence-classification"), weights, quant_spec("fq-bert"))
    model(input_ids, attention_mask)                 # logits; model.mode says how they are computed
    model.params()                                   # integers and steps for accelsim.execute

Any encoder of the zoo: the module runs the ops of a traced graph. Modes:

- "float": float32, nothing is rounded. With `observing(model)` ranges of activations are collected.
- "fake": float32 numbers that are multiples of the steps, rounded with straight-through gradients. For training. What
  softmax, layer norm and GELU approximate is not in it: they are float between rounded operands and results.
- "exact": int64, every rounding, shift, table and polynomial written out. For measuring. Products of matrices are
  taken in float64, where sums below 2^53 are exact, and no sum here reaches 2^31.

Names: q an integer tensor, x a real one, s a step, z a zero point: x ~ s (q - z).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accelsim import ops
from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Op, Role
from accelsim.numerics import PackedWeights
from accelsim.params import Params, Step, in_view, step_in
from accelsim.quantspec import Format, QuantSpec
from accelsim.transforms.quantize import output_classes, quantize, ranges_wanted, steps_of, weight_classes

GraphAt = Callable[[int, int], Graph]
"""(batch, seq) -> float graph of the model."""
MODES = ("float", "fake", "exact")
CLIPS, OCTAVES = 56, 7
"""Clips that the observer mse tries: 8 an octave, from 2^-7 of the largest magnitude up to all of it. Some matrices of
MiniLM have an element that is 170 times their root mean square."""
SEARCHED = 2**17
"""Magnitudes of a row that the search looks at, evenly spread over it, if there are more than twice as many."""
TABLES = (DType.INT8, DType.UINT8)


# --- steps ------------------------------------------------------------------------------------------------------------


def quantized(x: Tensor, s: Tensor, z: Tensor, low: int, high: int) -> Tensor:
    """clamp(round(x / s) + z, low, high), as real numbers, ties to even; the gradient passes where nothing is clamped.

    The gradient of s is that of x ~ s (q - z) with the rounding as a constant (LSQ, arXiv:1902.08153).
    """
    y = x / s + z
    y = y + (torch.round(y) - y).detach()
    return (y.clamp(low, high) - z) * s


def fake(x: Tensor, s: Tensor, z: Tensor, low: int, high: int, axis: int | None = None) -> Tensor:
    """`quantized`, by PyTorch's kernels where the step is not trained. s, z: (1,), or one for each index of axis."""
    if s.requires_grad:
        shape = [-1 if i == axis else 1 for i in range(x.dim())]
        return quantized(x, s.reshape(shape), z.reshape(shape), low, high)
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x, float(s), int(z), low, high)
    return torch.fake_quantize_per_channel_affine(x, s.float(), z.int(), axis, low, high)


def clip_of(magnitudes: Tensor, form: Format, percentile: float) -> Tensor:
    """(rows,): the largest magnitude of each row of (rows, n) that is to be represented, by the format's observer."""
    largest = magnitudes.amax(dim=1)
    if form.observer == "percentile":
        rank = max(1, math.ceil(percentile * magnitudes.shape[1]))
        return magnitudes.kthvalue(rank, dim=1).values
    if form.observer != "mse":
        return largest
    magnitudes = magnitudes[:, :: max(1, magnitudes.shape[1] // SEARCHED)]
    best, least = largest.clone(), torch.full_like(largest, math.inf)
    for i in range(CLIPS):
        clip = largest * 2.0 ** (OCTAVES * ((i + 1) / CLIPS - 1))
        s = (clip / form.largest).clamp_min(1e-30)[:, None]
        error = (magnitudes - (magnitudes / s).round().clamp_max(form.largest) * s).square().sum(dim=1)
        best, least = torch.where(error < least, clip, best), torch.minimum(error, least)
    return best


# --- exact integers ---------------------------------------------------------------------------------------------------


def rounded(x: Tensor, rounding: str) -> Tensor:
    """A real tensor rounded as named; ties of half_away go away from zero."""
    if rounding == "half_even":
        return torch.round(x)
    if rounding == "floor":
        return torch.floor(x)
    whole = torch.trunc(x)
    return whole + torch.sign(x) * ((x - whole).abs() >= 0.5)


def shifted(product: Tensor, shift: Tensor | int, rounding: str) -> Tensor:
    """round(product / 2^shift) of int64, shift >= 1, rounded as named."""
    floor = product >> shift
    if rounding == "floor":
        return floor
    rest = product - (floor << shift)
    half = torch.ones_like(product) << (torch.as_tensor(shift) - 1)
    up = (product >= 0) if rounding == "half_away" else (floor & 1) == 1
    return floor + ((rest > half) | ((rest == half) & up)).long()


def divided(numerator: Tensor, denominator: Tensor, rounding: str) -> Tensor:
    """round(numerator / denominator) of int64, numerator >= 0 and denominator > 0."""
    floor = torch.div(numerator, denominator, rounding_mode="floor")
    if rounding == "floor":
        return floor
    rest = 2 * (numerator - floor * denominator)
    tie = torch.ones_like(floor) if rounding == "half_away" else floor & 1
    return floor + ((rest > denominator) | ((rest == denominator) & (tie == 1))).long()


def multiplier_and_shift(ratio: np.ndarray, scale_format: str) -> tuple[Tensor, Tensor]:
    """ratio ~ multiplier / 2^shift with a multiplier of 31 bits, ties to even, or a power of two."""
    if scale_format == "power_of_two":
        ratio = np.exp2(np.rint(np.log2(ratio)))
    mantissa, exponent = np.frexp(ratio)
    multiplier = np.rint(mantissa * 2**31).astype(np.int64)
    shift = 31 - exponent.astype(np.int64)
    shift[multiplier == 2**31] -= 1
    multiplier[multiplier == 2**31] = 2**30
    return torch.from_numpy(multiplier), torch.from_numpy(shift)


def requantized(sums: Tensor, ratio: Any, spec: QuantSpec) -> Tensor:
    """round(sums x ratio), int64, in the arithmetic of the spec's scale format. ratio: one, or one for each column."""
    ratio = np.atleast_1d(np.asarray(ratio, np.float64))
    if spec.scale_format == "float32":
        return rounded(sums.float() * torch.from_numpy(ratio.astype(np.float32)), spec.rounding).long()
    multiplier, shift = multiplier_and_shift(ratio, spec.scale_format)
    return shifted(sums * multiplier, shift.expand(sums.shape), spec.rounding)


def common_multipliers(ratios: list[float]) -> tuple[list[int], int]:
    """(multipliers, shift): the largest ratio has 15 bits, the others the same shift; ties to even."""
    shift = 15 - math.frexp(max(ratios))[1]
    if round(max(ratios) * 2**shift) == 2**15:
        shift -= 1
    return [round(r * 2**shift) for r in ratios], shift


@lru_cache(maxsize=4096)
def exponentials(step: float, spec: QuantSpec) -> Tensor:
    """(256,) int64: that of each distance from the maximum, in steps of `step`."""
    if spec.softmax == "table":  # FQ-BERT, section III-A
        top = 2**spec.softmax_bits - 1
        return torch.tensor([math.floor(top * math.exp(-d * step) + 0.5) for d in range(256)])
    a, b, c = 0.35815147, 0.96963238, 1.0  # I-BERT, equation 13, unrounded
    room = min(32, math.ceil(math.log2(2**31 / (c / a / step / step)) / 2) - 1)
    s = step / 2**room
    ln2, linear, constant = math.floor(math.log(2) / s), math.floor(b / a / s), math.floor(c / a / s**2)
    values = []
    for d in range(256):
        z, p = divmod(d << room, ln2)
        values.append((p * (p - linear) + constant) >> min(z, 63))  # p here is -p there
    kept = max(0, values[0].bit_length() - spec.softmax_bits)
    return torch.tensor([v >> kept for v in values])


@lru_cache(maxsize=4096)
def function_table(kind: str, x: Step, y: Step, spec: QuantSpec) -> Tensor:
    """(256,) int64: the function of each q from -128 to 127, clamped to int8."""
    if kind == "gelu" and spec.gelu == "polynomial":
        found = _gelu_polynomial(x.scale, y, spec)
    else:
        of: dict[str, Callable[[float], float]] = {
            "gelu": lambda v: v * (1 + math.erf(v * math.sqrt(0.5))) / 2,
            "gelu_tanh": lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v * v * v))) / 2,
            "relu": lambda v: max(v, 0.0),
            "silu": lambda v: v / (1 + math.exp(-v)),
            "tanh": math.tanh,
            "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
        }
        reals = [of[kind]((q - x.zero_point) * x.scale) / y.scale for q in range(-128, 128)]
        found = rounded(torch.tensor(reals, dtype=torch.float64), spec.rounding).long()
    return (found + y.zero_point).clamp(-128, 127)


def _gelu_polynomial(step: float, y: Step, spec: QuantSpec) -> Tensor:
    """I-BERT, algorithm 2, with 32-bit integers and erf cut to 18 bits; then to steps of y by a 31-bit multiplier."""
    a, b, c = -0.2888, -1.769, 1.0
    room = min(32, math.ceil(math.log2(2**30 / (-2 * c / a / step / step)) / 2) - 1)
    s = step * math.sqrt(0.5) / 2**room
    bound, constant, sigma = math.floor(b / s), math.floor(c / a / s**2), 14
    one = math.floor(1 / (a * s * s * 2**sigma))
    sums = []
    for q in range(-128, 128):
        r = min(abs(q) << room, -bound)
        sign = (q > 0) - (q < 0)
        sums.append(q * (((sign * ((r + bound) ** 2 + constant)) >> sigma) + one))
    unit = -step * a * s * s * 2**sigma / 2
    multiplier, shift = multiplier_and_shift(np.array([unit / y.scale]), "fixed")
    return shifted(-torch.tensor(sums) * multiplier, shift.expand(256), spec.rounding)


def norm_integers(
    gamma: np.ndarray, beta: np.ndarray, unit: float, out: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """(gain, bias, offset, epsilon) of `numerics.layernorm`: y = (u + bias) gain / 2^15 + offset."""
    n = gamma.size
    gains = gamma * (math.sqrt(n) * 2**15 / (3 * 2**12 * out))
    gain = 2 * np.floor(gains / 2) + 1
    offset = np.rint(beta / out)
    bias = np.clip(np.rint((beta / out - offset) * 2**15 / gain), -(2**12 - 1), 2**12 - 1)
    epsilon = max(1, round(n * eps / unit / unit))
    return *(torch.from_numpy(a.astype(np.int64)) for a in (gain, bias, offset)), epsilon


def layer_norm_exact(h: Tensor, integers: tuple[Tensor, Tensor, Tensor, int], rounding: str) -> Tensor:
    """int64 (..., n), clamped to int8: the three stages of FQ-BERT's LN core on aligned sums h."""
    gain, bias, offset, epsilon = integers
    n = h.shape[-1]
    total = h.sum(dim=-1, keepdim=True)
    mean = torch.div(2 * total + n, 2 * n, rounding_mode="floor")
    d = h - mean
    v = (d * d).sum(dim=-1, keepdim=True) + epsilon
    e = torch.zeros_like(v)
    for i in range(1, 16):
        e = torch.where(v << (2 * i) < 2**30, i, e)
    root = torch.floor(torch.sqrt((v << (2 * e)).double())).long()
    reciprocal = torch.div(3 * 2**27, root, rounding_mode="floor")
    u = ((d << e) * reciprocal + 2**14) >> 15
    return (shifted((u + bias) * gain, 15, rounding) + offset).clamp(-128, 127)


# --- the module -------------------------------------------------------------------------------------------------------


class Value:
    """A tensor on its way: real numbers x, or integers q that stand for them."""

    __slots__ = ("q", "x")

    def __init__(self, x: Tensor | None = None, q: Tensor | None = None) -> None:
        self.x, self.q = x, q

    @property
    def held(self) -> Tensor:
        """Whichever there is."""
        found = self.q if self.x is None else self.x
        assert found is not None
        return found


class QuantizedBert(nn.Module):
    """A traced model with the quantizers of a `QuantSpec` in it.

    graph_at: float graph for (batch, seq). weights: float tensors by the graph's names; what is missing, as a new
    head, is made from `seed` as BERT makes its own: matrices normal with 0.02, norms 1, biases 0. Raises SpecError for
    weights that are missing without a seed, of another shape, or not finite.
    """

    def __init__(
        self,
        graph_at: GraphAt,
        weights: Mapping[str, Tensor],
        spec: QuantSpec,
        *,
        seed: int | None = None,
        dropout: float = 0.1,
        learn_clips: bool = False,
    ) -> None:
        super().__init__()
        self.graph_at, self.spec, self.dropout, self.learn_clips = graph_at, spec, dropout, learn_clips
        self.mode = "float"
        self.observing = False
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._exact: dict[Any, Any] = {}
        graph = self.graph(1, 8)
        self.kinds = weight_classes(graph)
        self.outputs = output_classes(graph)
        self.observed = ranges_wanted(graph)
        self.norms = {op.output for op in graph.ops if isinstance(op, ops.LayerNorm | ops.AddLayerNorm)}
        self.weights = nn.ParameterDict()
        self.constants: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        for name, tensor in graph.tensors.items():
            if tensor.role is Role.WEIGHT:
                w = _weight(name, tensor.shape, weights, generator, seed is not None)
                self.weights[_key(name)] = nn.Parameter(w)
            elif tensor.role is Role.STATE:
                self.constants[name] = weights[name] if name in weights else _buffer(name, tensor.shape)
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.seen: dict[str, int] = {}
        self.clips = nn.ParameterDict()
        self.given: dict[str, Step] = {}
        self._weight_steps: dict[str, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_params(cls, graph_at: GraphAt, params: Params) -> QuantizedBert:
        """The model with the integers and steps of `params`, in exact mode; its float weights are what those mean.

        Its float mode is then the same model without rounding of activations.
        """
        weights = {name: torch.from_numpy(np.array(a)) for name, a in params.arrays.items()}
        steps: dict[str, tuple[Tensor, Tensor]] = {}
        for name, packed in params.weights.items():
            equal = (packed.scales == packed.scales[0]).all() and (packed.zero_points == packed.zero_points[0]).all()
            n = 1 if equal else packed.n
            scales, zeros = torch.from_numpy(packed.scales[:n]), torch.from_numpy(packed.zero_points[:n]).long()
            q = torch.from_numpy(packed.unpack()).long()
            weights[name] = ((q - zeros[:, None]).double() * scales[:, None]).float()
            steps[name] = scales, zeros
        for name in params.steps.keys() & weights.keys():
            scale, zero = params.steps[name]
            weights[name] = ((weights[name].long() - zero).double() * scale).float()
            steps[name] = torch.tensor([scale], dtype=torch.float64), torch.tensor([zero])
        model = cls(graph_at, weights, params.spec)
        model._weight_steps = steps
        model.given = {name: step for name, step in params.steps.items() if name not in steps}
        model.mode = "exact"
        return model.eval()

    def graph(self, batch: int, seq: int) -> Graph:
        """The quantized graph at a size."""
        if (batch, seq) not in self._graphs:
            self._graphs[batch, seq] = quantize(self.graph_at(batch, seq), self.spec)
        return self._graphs[batch, seq]

    def weight(self, name: str) -> Tensor:
        """The float weight of that name."""
        return self.weights[_key(name)]

    # --- steps --------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Find the steps of all weights anew: before evaluation, and now and then while weights are trained."""
        self._exact.clear()
        for name, kind in self.kinds.items():
            tensor = self.graph(1, 8).tensors[name]
            if tensor.dtype.is_float or kind == "biases":
                continue
            with torch.no_grad():
                self._weight_steps[name] = self._fitted(self.weight(name).detach().float(), self._format(name))
            if self.learn_clips and kind == "weights" and _key(name) not in self.clips:
                self.clips[_key(name)] = nn.Parameter(self._weight_steps[name][0].float().log())

    def _format(self, name: str) -> Format:
        kind = self.kinds[name]
        if kind == "norms":
            return Format(self.spec.norm_bits, True, False, "abs_max")
        form: Format = getattr(self.spec, kind)
        return form

    def _fitted(self, w: Tensor, form: Format) -> tuple[Tensor, Tensor]:
        """(steps float64, zero points) of a weight: (1,), or one for each output feature."""
        rows = w.reshape(w.shape[0], -1) if form.per_channel else w.reshape(1, -1)
        if form.symmetric:
            s = clip_of(rows.abs(), form, self.spec.percentile).double() / form.largest
            zeros = torch.zeros(len(s), dtype=torch.int64)
            return self._kept(s), zeros
        low, high = rows.amin(dim=1).double().clamp_max(0), rows.amax(dim=1).double().clamp_min(0)
        s = self._kept((high - low) / (2**form.bits - 1))
        return s, (-(2 ** (form.bits - 1)) - low / s).round().long().clamp(*_range(form))

    def _kept(self, s: Tensor) -> Tensor:
        tiny = s.clamp_min(2.0**-40)
        return torch.tensor([step_in(float(v), self.spec.scale_format) for v in tiny], dtype=torch.float64)

    def step(self, name: str) -> Step:
        """Step of an activation, a table or a norm's parameter. Raises SpecError if its range was never observed."""
        kind = self.outputs.get(name)
        if name in self._weight_steps:
            s, z = self._weight_steps[name]
            return Step(float(s[0]), int(z[0]))
        if name in self.given:
            return self.given[name]
        if kind == "probabilities":
            return Step(step_in(1 / (2**self.spec.probabilities.bits - 1), self.spec.scale_format), 0)
        if kind == "tanh":
            return Step(step_in(1 / 127, self.spec.scale_format), 0)
        if name not in self.high:
            raise SpecError("quantized model", f"no range for {name}", "a calibration: run batches while observing")
        form = self.spec.format_of(self.observed[name])
        if form.symmetric or name in self.norms:
            largest = max(-self.low[name], self.high[name], 1e-8)
            return Step(step_in(largest / form.largest, self.spec.scale_format), 0)
        low, high = min(self.low[name], 0.0), max(self.high[name], 1e-8)
        s = step_in((high - low) / 255, self.spec.scale_format)
        return Step(s, min(max(round(-128 - low / s), -128), 127))

    def _observe(self, name: str, x: Tensor) -> None:
        """Take the range of one batch into account, as the observer of the tensor's class says.

        A moving average is corrected for its start (as Adam's): after n batches the share of the newest is
        (1 - d) / (1 - d^n), and a calibration is a weighted mean of its batches.
        """
        form = self.spec.format_of(self.observed[name])
        x = x.detach().float().flatten()
        if form.observer in ("percentile", "mse"):
            part = x[:: max(1, x.numel() // 2**16)]
            clip = float(clip_of(part.abs()[None], form, self.spec.percentile))
            low, high = max(float(x.min()), -clip), min(float(x.max()), clip)
        else:
            low, high = float(x.min()), float(x.max())
        if name not in self.high:
            self.low[name], self.high[name] = low, high
        elif form.observer == "abs_max":
            self.low[name], self.high[name] = min(self.low[name], low), max(self.high[name], high)
        else:
            self.seen[name] = self.seen.get(name, 1) + 1
            d = self.spec.ema_decay
            share = (1 - d) / (1 - d ** self.seen[name]) if d < 1 else 1 / self.seen[name]
            self.low[name] += share * (low - self.low[name])
            self.high[name] += share * (high - self.high[name])

    # --- running ------------------------------------------------------------------------------------------------------

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, watch: Callable[[Op, Tensor], None] | None = None
    ) -> Tensor:
        """The first output of the graph as real numbers, (batch, labels) for a classifier. watch: sees every result.

        input_ids, attention_mask: int64 (batch, seq).
        """
        graph = self.graph(*input_ids.shape)
        values: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        steps = steps_of(graph) if "steps" not in graph.memo else graph.memo["steps"]
        graph.memo["steps"] = steps
        alive = graph.liveness()
        for i, op in enumerate(graph.ops):
            operands = [values[n] if n in values else self._constant(n) for n in op.inputs]
            if any(isinstance(v, Value) for v in operands) or isinstance(op, ops.Embedding):
                result: Any = self._compute(op, graph, steps, operands)
            else:
                found = op.execute(*(np.asarray(v) for v in operands))
                result = torch.from_numpy(np.array(found))
            values[op.output] = result
            if watch is not None:
                watch(op, result.held if isinstance(result, Value) else result)
            if not self.training:
                for name in op.inputs:
                    if name in alive and alive[name][1] == i and name not in graph.outputs:
                        values.pop(name, None)
        return self._real(graph, steps, graph.outputs[0], values[graph.outputs[0]])

    def _constant(self, name: str) -> Any:
        return self.constants.get(name, name)

    def _real(self, graph: Graph, steps: Mapping[str, str], name: str, value: Value) -> Tensor:
        if value.q is None:
            assert value.x is not None
            return value.x
        if graph.tensors[name].dtype is DType.INT32:
            source = steps[name]
            (op,) = (op for op in graph.ops if op.output == source)
            scale = self.step(steps[op.inputs[0]]).scale * self._weight_steps[op.inputs[1]][0].numpy()
            return (value.q.double() * torch.from_numpy(np.array(in_view(graph, name, source, scale)))).float()
        s, z = self.step(steps[name])
        return ((value.q - z).double() * s).float()

    def _compute(self, op: Op, graph: Graph, steps: Mapping[str, str], operands: list[Any]) -> Value:
        """One op on values, in the current mode."""
        if isinstance(op, ops.Embedding):
            return self._embedding(op, graph, steps, operands)
        values = [v for v in operands if isinstance(v, Value)]
        if isinstance(op, ops.Free | ops.Copy):
            return self._moved(op, operands)
        if self.mode == "exact" and all(v.x is None for v in values):
            found = _EXACT[type(op)](self, op, graph, steps, operands)
            return Value(x=found) if graph.tensors[op.output].dtype.is_float else Value(q=found)
        if self.mode == "exact" and isinstance(op, ops.Quantize):
            s, z = self.step(steps[op.output])
            low, high = (0, 255) if graph.tensors[op.output].dtype is DType.UINT8 else (-128, 127)
            return Value(q=(rounded(values[0].held.double() / s, self.spec.rounding) + z).clamp(low, high).long())
        x = self._float(op, graph, operands)
        if isinstance(x, Value):
            return x
        return Value(x=self._in_steps(op, graph, steps, x))

    def _in_steps(self, op: Op, graph: Graph, steps: Mapping[str, str], x: Tensor) -> Tensor:
        """The real result, observed, and brought to multiples of its step where the graph has integers."""
        dtype = graph.tensors[op.output].dtype
        if dtype not in TABLES:
            return x
        name = steps[op.output]
        if self.observing and name in self.observed:
            self._observe(name, x)
        if self.mode != "fake":
            return x
        s, z = self.step(name)
        low, high = (0, 2**self.spec.probabilities.bits - 1) if dtype is DType.UINT8 else (-128, 127)
        if self.outputs[name] == "scores":
            low, high = -self.spec.scores.largest - 1, self.spec.scores.largest
        return torch.fake_quantize_per_tensor_affine(x.float(), s, z, low, high)

    def _embedding(self, op: Op, graph: Graph, steps: Mapping[str, str], operands: list[Any]) -> Value:
        table, ids = op.inputs[0], operands[1]
        w = self.weight(table)
        if graph.tensors[table].dtype is not DType.INT8 or self.mode == "float":
            return Value(x=F.embedding(ids, w))
        if self.mode == "exact":
            return Value(q=self.integers(table)[ids])
        s, z = self._weight_steps[table]
        form = self._format(table)
        return Value(x=fake(F.embedding(ids, w), s, z, *_range(form)))

    def _moved(self, op: Op, operands: list[Value]) -> Value:
        held = [v.held for v in operands]
        result = _MOVES[type(op)](op, *held)
        if isinstance(op, ops.Dropout) and self.training and self.mode != "exact":
            result = F.dropout(result, self.dropout)
        return Value(q=result) if operands[0].x is None else Value(x=result)

    def _float(self, op: Op, graph: Graph, operands: list[Any]) -> Any:
        """The op on real numbers; of a Linear in exact mode whose input alone is an integer, its real result."""
        args = []
        for name, value in zip(op.inputs, operands, strict=True):
            if isinstance(value, Value):
                args.append(value.x)
            else:
                args.append(self._parameter(name, graph) if value is name else value)
        if self.mode == "exact" and any(isinstance(v, Value) and v.x is None for v in operands):
            raise SpecError(f"{op.name}: operands", "integers and real numbers", "one kind")
        return _FLOAT[type(op)](op, *args)

    def _parameter(self, name: str, graph: Graph) -> Tensor:
        """A weight as the op sees it: fake-quantized in fake mode where the graph holds integers."""
        w = self.weight(name)
        if self.mode != "fake" or graph.tensors[name].dtype.is_float or self.kinds.get(name) == "biases":
            return w
        s, z = self._weight_steps[name]
        if _key(name) in self.clips:
            s = self.clips[_key(name)].exp()
        form = self._format(name)
        if form.bits > 8:
            return w
        return fake(w, s, z, *_range(form), axis=0 if len(s) > 1 else None)

    # --- integers -----------------------------------------------------------------------------------------------------

    def integers(self, name: str) -> Tensor:
        """int64: a weight, table or norm's parameter in its steps; ties to even."""
        if name not in self._exact:
            s, z = self._weight_steps[name]
            if _key(name) in self.clips:
                s = self._kept(self.clips[_key(name)].detach().exp().double())
                self._weight_steps[name] = (s, z)
            shape = [-1] + [1] * (self.weight(name).dim() - 1)
            low, high = _range(self._format(name))
            q = torch.round(self.weight(name).detach().double() / s.reshape(shape)) + z.reshape(shape)
            self._exact[name] = q.clamp(low, high).long()
        found: Tensor = self._exact[name]
        return found

    def real_parameter(self, name: str) -> np.ndarray:
        """float64: a norm's parameter as its integers stand for it."""
        s, z = self.step(name)
        return ((self.integers(name) - z).double() * s).numpy()

    def params(self, about: Mapping[str, Any] | None = None) -> Params:
        """Integers and steps of the whole model, for `accelsim.execute`."""
        graph = self.graph(1, 8)
        weights, arrays, found = {}, {}, {}
        for name, tensor in graph.tensors.items():
            kind = self.kinds.get(name)
            if tensor.role is Role.STATE:
                arrays[name] = self.constants[name].numpy()
            elif tensor.role is not Role.WEIGHT or not any(name in op.inputs for op in graph.ops):
                continue
            elif tensor.dtype.is_float or kind == "biases":
                arrays[name] = self.weight(name).detach().float().numpy()
            elif kind == "weights":
                q = self.integers(name)
                s, z = self._weight_steps[name]
                w = q.to(torch.int8).numpy()
                weights[name] = PackedWeights.pack(
                    w, bits=self.spec.stored_bits, scales=s.numpy(), zero_points=z.numpy(), name=name
                )
            else:
                arrays[name] = self.integers(name).numpy().astype(tensor.dtype.value)
                found[name] = self.step(name)
        for name, kind in self.outputs.items():
            if kind not in ("sums", "embeddings"):
                found[name] = self.step(name)
        return Params(self.spec, weights, arrays, found, dict(about or {}))


def _key(name: str) -> str:
    """A name that a ParameterDict takes."""
    return name.replace(".", "/")


def _range(form: Format) -> tuple[int, int]:
    return (-form.largest if form.symmetric else -form.largest - 1), form.largest


def _weight(
    name: str, shape: tuple[int, ...], weights: Mapping[str, Tensor], generator: torch.Generator, made: bool
) -> Tensor:
    if name not in weights:
        if not made:
            raise SpecError("weights", f"no {name}", "a tensor for every weight of the graph, or a seed for new ones")
        if len(shape) < 2:
            return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        return torch.randn(shape, generator=generator) * 0.02
    w = torch.as_tensor(weights[name]).detach().clone().float()
    if tuple(w.shape) != shape:
        raise SpecError(f"weights: {name}: shape", tuple(w.shape), f"{shape}, as the graph has")
    if not bool(torch.isfinite(w).all()):
        raise SpecError(f"weights: {name}", "NaN or infinity", "finite numbers")
    return w


def _buffer(name: str, shape: tuple[int, ...]) -> Tensor:
    """Position ids count, token types are zero: what transformers registers where a checkpoint has no such buffer."""
    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).contiguous()
    if name.endswith("token_type_ids"):
        return torch.zeros(shape, dtype=torch.int64)
    raise SpecError("weights", f"no {name}", "a tensor for every buffer of the graph")


@contextmanager
def observing(model: QuantizedBert) -> Iterator[QuantizedBert]:
    """Collect ranges of activations from what the model computes inside."""
    model.observing = True
    try:
        yield model
    finally:
        model.observing = False


# --- float ops --------------------------------------------------------------------------------------------------------


def _softmax_float(op: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    y = x * op.scale
    if mask is not None:
        y = y.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else y + mask
    return torch.softmax(y.float(), dim=-1).nan_to_num()


def _binary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(op: Any, x: Tensor, *y: Tensor) -> Tensor:
        return function(x, *(y or (op.other,)))

    return run


def _norm_float(op: Any, x: Tensor, *rest: Tensor) -> Tensor:
    if isinstance(op, ops.AddLayerNorm):
        x, rest = x + rest[0], rest[1:]
    return F.layer_norm(x.float(), x.shape[-1:], *rest, eps=op.eps)


_FLOAT: dict[type[Op], Callable[..., Any]] = {
    ops.Linear: lambda op, x, w, *b: F.linear(x, w, *b),
    ops.Matmul: lambda op, a, b: a @ (b.transpose(-1, -2) if op.transpose_b else b),
    ops.Softmax: _softmax_float,
    ops.LayerNorm: _norm_float,
    ops.AddLayerNorm: _norm_float,
    ops.Gelu: lambda op, x: F.gelu(x, approximate=op.approximate),
    ops.Relu: lambda op, x: F.relu(x),
    ops.Silu: lambda op, x: F.silu(x),
    ops.Tanh: lambda op, x: torch.tanh(x),
    ops.Sigmoid: lambda op, x: torch.sigmoid(x),
    ops.Add: _binary(torch.add),
    ops.Sub: _binary(torch.sub),
    ops.Mul: _binary(torch.mul),
    ops.Div: _binary(torch.div),
    ops.Quantize: lambda op, x: x,
    ops.Dequantize: lambda op, x: x,
}

_MOVES: dict[type[Op], Callable[..., Tensor]] = {
    ops.Dropout: lambda op, x: x,
    ops.View: lambda op, x: x.reshape(op.size),
    ops.Expand: lambda op, x: x.expand(op.size),
    ops.Transpose: lambda op, x: x.transpose(op.dim0, op.dim1),
    ops.Permute: lambda op, x: x.permute(op.dims),
    ops.Slice: lambda op, x: x[(slice(None),) * op.dim + (slice(op.start, op.end, op.step),)],
    ops.Select: lambda op, x: x.select(op.dim, op.index),
    ops.Unsqueeze: lambda op, x: x.unsqueeze(op.dim),
    ops.Squeeze: lambda op, x: x.squeeze(op.dims),
    ops.Clone: lambda op, x: x.contiguous(),
    ops.Cat: lambda op, *x: torch.cat(x, dim=op.dim),
    ops.Pad: lambda op, x: F.pad(
        x, [n for pair in reversed(list(zip(op.before, op.after, strict=True))) for n in pair], value=op.value
    ),
}


# --- exact ops: int64 in, int64 (or real numbers between conversions) out ---------------------------------------------


def _linear_exact(m: QuantizedBert, op: Op, graph: Graph, steps: Mapping[str, str], operands: list[Any]) -> Any:
    s, z = m.step(steps[op.inputs[0]])
    w = m.integers(op.inputs[1])
    w_s, w_z = m._weight_steps[op.inputs[1]]
    sums = ((operands[0].q - z).double() @ (w - w_z[:, None]).double().T).long()
    scale = s * w_s
    for name in op.inputs[2:]:
        sums = sums + torch.round(m.weight(name).detach().double() / scale).long()
    if graph.tensors[op.output].dtype is DType.INT32:
        return sums
    if graph.tensors[op.output].dtype.is_float:
        return sums.float() * scale.float()
    y, y_z = m.step(steps[op.output])
    return (requantized(sums, (scale / y).numpy(), m.spec) + y_z).clamp(-128, 127)


def _matmul_exact(m: QuantizedBert, op: Any, graph: Graph, steps: Mapping[str, str], operands: list[Any]) -> Tensor:
    (a_s, a_z), (b_s, b_z) = (m.step(steps[n]) for n in op.inputs)
    a, b = (operands[0].q - a_z).double(), (operands[1].q - b_z).double()
    sums = (a @ (b.transpose(-1, -2) if op.transpose_b else b)).long()
    y, y_z = m.step(steps[op.output])
    low, high = -128, 127
    if m.outputs[steps[op.output]] == "scores":
        low, high = -m.spec.scores.largest - 1, m.spec.scores.largest
    return (requantized(sums, a_s * b_s / y, m.spec) + y_z).clamp(low, high)


def _softmax_exact(m: QuantizedBert, op: Any, graph: Graph, steps: Mapping[str, str], operands: list[Any]) -> Tensor:
    q = operands[0].q
    mask = operands[1].expand(q.shape) if len(operands) > 1 else torch.ones_like(q, dtype=torch.bool)
    top = q.masked_fill(~mask, -128).amax(dim=-1, keepdim=True)
    table = exponentials(m.step(steps[op.inputs[0]]).scale * op.scale, m.spec)
    e = table[(top - q).clamp(0, 255)].masked_fill(~mask, 0)
    total = e.sum(dim=-1, keepdim=True).clamp_min(1)
    return divided((2**m.spec.probabilities.bits - 1) * e, total.expand(e.shape), m.spec.rounding)


def _norm_exact(m: QuantizedBert, op: Any, graph: Graph, steps: Mapping[str, str], operands: list[Any]) -> Tensor:
    gamma, beta = op.inputs[-2:]
    x_s = m.step(steps[op.inputs[0]]).scale
    out = m.step(steps[op.output]).scale
    unit, h = x_s / 128, 128 * operands[0].q
    if isinstance(op, ops.AddLayerNorm):
        y_s = m.step(steps[op.inputs[1]]).scale
        unit = max(x_s, y_s) / 64
        h = 0
        for s, value in ((x_s, operands[0]), (y_s, operands[1])):
            h = h + ((128 * value.q * round(2**14 * s / max(x_s, y_s)) + 2**14) >> 15)
    key = ("norm", op.name)
    if key not in m._exact:
        m._exact[key] = norm_integers(m.real_parameter(gamma), m.real_parameter(beta), unit, out, op.eps)
    return layer_norm_exact(h, m._exact[key], m.spec.rounding)


def _add_exact(m: QuantizedBert, op: Any, graph: Graph, steps: Mapping[str, str], operands: list[Any]) -> Tensor:
    (x_s, x_z), (y_s, y_z) = (m.step(steps[n]) for n in op.inputs)
    s, z = m.step(steps[op.output])
    (x_m, y_m), shift = common_multipliers([x_s / s, y_s / s])
    total = x_m * (operands[0].q - x_z) + y_m * (operands[1].q - y_z)
    return (shifted(total, shift, m.spec.rounding) + z).clamp(-128, 127)


def _function_exact(m: QuantizedBert, op: Any, graph: Graph, steps: Mapping[str, str], operands: list[Any]) -> Tensor:
    kind = "gelu_tanh" if isinstance(op, ops.Gelu) and op.approximate == "tanh" else op.operator
    if isinstance(op, ops.Gelu) and m.spec.gelu == "polynomial":
        kind = "gelu"
    table = function_table(kind, m.step(steps[op.inputs[0]]), m.step(steps[op.output]), m.spec)
    return table[operands[0].q + 128]


def _dequantize_exact(m: QuantizedBert, op: Op, graph: Graph, steps: Mapping[str, str], operands: list[Any]) -> Tensor:
    s, z = m.step(steps[op.inputs[0]])
    return ((operands[0].q - z).double() * s).float()


_EXACT: dict[type[Op], Callable[..., Any]] = {
    ops.Dequantize: _dequantize_exact,
    ops.Linear: _linear_exact,
    ops.Matmul: _matmul_exact,
    ops.Softmax: _softmax_exact,
    ops.LayerNorm: _norm_exact,
    ops.AddLayerNorm: _norm_exact,
    ops.Add: _add_exact,
    ops.Gelu: _function_exact,
    ops.Relu: _function_exact,
    ops.Silu: _function_exact,
    ops.Tanh: _function_exact,
    ops.Sigmoid: _function_exact,
}
