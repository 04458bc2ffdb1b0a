"""The integer meaning of each op: which kernel computes it, with which multipliers, shifts and tables.

`integer_kernel` turns an op of a quantized graph and the `Params` into a function of arrays, once; it is then called
for every batch. Real numbers (steps, gamma, beta) are read here, to find integers; what is returned computes without
them. An op that is not in `MEANINGS` only moves numbers, or works on ids, masks or float32: then its own `execute` is
its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from accelsim import numerics, ops
from accelsim.errors import Infeasible, SpecError
from accelsim.graph import DType, Graph, Op
from accelsim.params import Params, Step

Kernel = Callable[..., numerics.Quantized]
"""(arrays of the op's inputs, threads=) -> (output, how many elements were clamped)."""

RATIO_FORMATS = {"float32": "float32", "fixed": "fixed", "scale8": "fixed", "power_of_two": "power_of_two"}
"""Scale format of a spec -> that of the ratios between steps, as `numerics.Requantizer` takes it."""
POLYNOMIAL_BITS = 32
"""Width of the integers in I-BERT's polynomials."""
ERF_BITS = 18
"""Bits of erf that multiply x in I-BERT's GELU: the authors' code shifts 32-bit results right by 14."""


class Site(NamedTuple):
    """An op in a quantized graph: what a builder of kernels reads."""

    op: Op
    graph: Graph
    params: Params

    def step(self, name: str) -> Step:
        """Step of an integer activation or table, found through views."""
        steps = steps_in(self.graph)
        return self.params.step(steps.get(name, name))

    @property
    def out_step(self) -> Step:
        return self.step(self.op.output)

    def dtype(self, name: str) -> DType:
        return self.graph.tensors[name].dtype

    def real(self, name: str) -> np.ndarray:
        """float64: a parameter that is stored as integers."""
        scale, zero = self.params.step(name)
        return (self.params.arrays[name].astype(np.float64) - zero) * scale


def steps_in(graph: Graph) -> dict[str, str]:
    """`transforms.quantize.steps_of`, found once for a graph."""
    from accelsim.transforms.quantize import steps_of

    if "steps" not in graph.memo:
        graph.memo["steps"] = steps_of(graph)
    found: dict[str, str] = graph.memo["steps"]
    return found


def integer_kernel(op: Op, graph: Graph, params: Params) -> Kernel | None:
    """The op's integer kernel; None where the op's own `execute` is its meaning."""
    steps = steps_in(graph)
    if op.output not in steps and not any(name in steps for name in op.inputs):
        return None  # ids, masks, real numbers
    if isinstance(op, ops.Free | ops.Copy | ops.Embedding):
        return None
    make = MEANINGS.get(type(op))
    if make is None:
        raise SpecError(f"{op.name}: integer meaning of {op.operator}", "none", f"one of {', '.join(_operators())}")
    key = (op, tuple(steps.get(n, n) for n in (*op.inputs, op.output)), graph.tensors[op.output].dtype)
    if key not in params.kernels:
        try:
            params.kernels[key] = make(Site(op, graph, params))
        except SpecError as error:  # of steps that no multiplier, table or polynomial is made for
            named = error.path if op.name in error.path else f"{op.name}: {error.path}"
            raise SpecError(named, error.value, error.legal) from None
    found: Kernel = params.kernels[key]
    return found


def _operators() -> list[str]:
    return sorted(kind.operator for kind in MEANINGS)


def _linear(site: Site) -> Kernel:
    """int32 sums of x and the weights, with the bias in their step; then the result the graph asks for, of three."""
    op, params, spec = site.op, site.params, site.params.spec
    x, (scale, zero) = op.inputs[0], site.step(op.inputs[0])
    packed = params.matrix(op.inputs[1])
    sums_scale = scale * packed.scales
    for name in op.inputs[2:]:
        packed = packed.with_bias(_bias(params.arrays[name], sums_scale, op.name))
    low, high = (0, 255) if site.dtype(x) is DType.UINT8 else (-128, 127)
    largest = max(zero - low, high - zero)
    bound = int((packed.magnitude * largest + np.abs(packed.bias.astype(np.int64))).max())
    _check_sum(op.name, packed.k, bound, spec.accumulator_bits)

    def sums(a: np.ndarray, *_: np.ndarray, threads: int = 1) -> numerics.Quantized:
        return numerics.Quantized(numerics.gemm(a, packed, a_zero_point=zero, threads=threads), 0)

    if site.dtype(op.output) is DType.INT32:
        return sums
    if site.dtype(op.output).is_float:
        factor = sums_scale.astype(np.float32)

        def real(a: np.ndarray, *_: np.ndarray, threads: int = 1) -> numerics.Quantized:
            product = numerics.gemm(a, packed, a_zero_point=zero, threads=threads)
            return numerics.Quantized(product.astype(np.float32) * factor, 0)

        return real
    requantizer = _requantizer(site, sums_scale if (packed.scales != packed.scales[0]).any() else sums_scale[:1])

    def requantized(a: np.ndarray, *_: np.ndarray, threads: int = 1) -> numerics.Quantized:
        return numerics.gemm_requantized(a, packed, requantizer, a_zero_point=zero, threads=threads)

    return requantized


def _bias(bias: np.ndarray, sums_scale: np.ndarray, name: str) -> np.ndarray:
    """int32: a bias in steps of the sums, to the nearest, ties to even."""
    found = np.rint(bias.astype(np.float64) / sums_scale)
    if np.abs(found).max() >= 2**31:
        raise Infeasible(f"{name}: bias", int(np.abs(found).max()), 2**31 - 1, "in an int32", ("scales", "bias"))
    result: np.ndarray = found.astype(np.int32)
    return result


def _check_sum(name: str, k: int, bound: int, bits: int) -> None:
    limit = 2 ** (bits - 1) - 1
    if bound > limit:
        raise Infeasible(
            f"{name}: k = {k}: largest sum", bound, limit, f"in {bits} bits", ("accumulator_bits", "k", "weights.bits")
        )


def _requantizer(site: Site, sums_scale: Any) -> numerics.Requantizer:
    """From sums of a step to the output's; scores of fewer than 8 bits are clamped to their range."""
    spec, (scale, zero) = site.params.spec, site.out_step
    low, high = -128, 127
    if site.params.spec.scores.bits < 8 and _is_scores(site):
        high = site.params.spec.scores.largest
        low = -high - 1
    return numerics.Requantizer.of(
        np.asarray(sums_scale) / scale,
        scale_format=RATIO_FORMATS[spec.scale_format],
        rounding=spec.rounding,
        dtype="int8",
        zero_point=zero,
        low=low,
        high=high,
    )


def _is_scores(site: Site) -> bool:
    from accelsim.transforms.quantize import output_classes

    if "classes" not in site.graph.memo:
        site.graph.memo["classes"] = output_classes(site.graph)
    return bool(site.graph.memo["classes"].get(site.op.output) == "scores")


def _matmul(site: Site) -> Kernel:
    op: Any = site.op
    (a_scale, a_zero), (b_scale, b_zero) = (site.step(n) for n in op.inputs)
    left = site.graph.tensors[op.inputs[0]]
    k = left.shape[-1]
    low = 0 if left.dtype is DType.UINT8 else -128
    bound = k * max(a_zero - low, low + 255 - a_zero) * max(128 + b_zero, 127 - b_zero)
    _check_sum(op.name, k, bound, site.params.spec.accumulator_bits)
    requantizer = _requantizer(site, a_scale * b_scale)
    transpose_b = op.transpose_b

    def requantized(a: np.ndarray, b: np.ndarray, threads: int = 1) -> numerics.Quantized:
        if b.ndim == 2 < a.ndim:
            b = b[(None,) * (a.ndim - 2)]
        return numerics.matmul_requantized(
            a, b, requantizer, transpose_b=transpose_b, a_zero_point=a_zero, b_zero_point=b_zero, threads=threads
        )

    return requantized


def _softmax(site: Site) -> Kernel:
    op: Any = site.op
    spec = site.params.spec
    scale = site.step(op.inputs[0]).scale * op.scale
    levels = 2**spec.probabilities.bits - 1
    parameters: Any
    if spec.softmax == "table":
        parameters = numerics.SoftmaxTable.of(scale, bits=spec.softmax_bits, levels=levels, rounding=spec.rounding)
    else:
        parameters = numerics.SoftmaxPolynomial.of(
            scale, width=POLYNOMIAL_BITS, bits=spec.softmax_bits, levels=levels, rounding=spec.rounding
        )

    def softmax(x: np.ndarray, *mask: np.ndarray, threads: int = 1) -> numerics.Quantized:
        return numerics.Quantized(numerics.softmax(x, parameters, mask=mask[0] if mask else None, threads=threads), 0)

    return softmax


def _layer_norm(site: Site) -> Kernel:
    op: Any = site.op
    summed = isinstance(op, ops.AddLayerNorm)
    gamma, beta = op.inputs[-2:]
    scale, zero = site.out_step
    if zero != 0:
        raise SpecError(f"{op.name}: zero point", zero, "0: results of a layer norm are symmetric")
    parameters = numerics.LayerNormIBert.of(  # FQ-BERT's differs in the 8 bits that gamma and beta have here already
        site.real(gamma),
        site.real(beta),
        x_scale=site.step(op.inputs[0]).scale,
        out_scale=scale,
        eps=op.eps,
        rounding=site.params.spec.rounding,
        residual_scale=site.step(op.inputs[1]).scale if summed else None,
    )

    def norm(x: np.ndarray, *rest: np.ndarray, threads: int = 1) -> numerics.Quantized:
        if not summed:
            return numerics.layer_norm(x, parameters, threads=threads)
        residual = rest[0]
        if x.shape != residual.shape:
            x, residual = np.broadcast_arrays(x, residual)
        return numerics.layer_norm(x, parameters, residual=residual, threads=threads)

    return norm


def _add(site: Site) -> Kernel:
    (x_scale, x_zero), (y_scale, y_zero) = (site.step(n) for n in site.op.inputs)
    scale, zero = site.out_step
    parameters = numerics.ResidualAdd.of(
        x_scale=x_scale,
        y_scale=y_scale,
        out_scale=scale,
        rounding=site.params.spec.rounding,
        x_zero_point=x_zero,
        y_zero_point=y_zero,
        out_zero_point=zero,
    )

    def add(x: np.ndarray, y: np.ndarray, threads: int = 1) -> numerics.Quantized:
        if x.shape != y.shape:
            x, y = np.broadcast_arrays(x, y)
        return numerics.add(x, y, parameters, threads=threads)

    return add


FUNCTIONS: dict[str, Callable[[float], float]] = {
    "gelu": lambda v: v * (1 + math.erf(v * math.sqrt(0.5))) / 2,
    "gelu_tanh": lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v * v * v))) / 2,
    "relu": lambda v: max(v, 0.0),
    "silu": lambda v: v / (1 + math.exp(-v)) if v > -700 else 0.0,
    "tanh": math.tanh,
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)) if v > -700 else 0.0,
}
"""What the entries of a table are, by operator."""


def _function(site: Site) -> Kernel:
    op, spec = site.op, site.params.spec
    (x_scale, x_zero), (scale, zero) = site.step(op.inputs[0]), site.out_step
    parameters: Any
    if isinstance(op, ops.Gelu) and spec.gelu == "polynomial":
        parameters = numerics.GeluPolynomial.of(
            x_scale=x_scale,
            out_scale=scale,
            width=POLYNOMIAL_BITS,
            kept=ERF_BITS,
            rounding=spec.rounding,
            dtype="int8",
            out_zero_point=zero,
        )
    else:
        tanh = isinstance(op, ops.Gelu) and op.approximate == "tanh"
        parameters = numerics.FunctionTable.of(
            FUNCTIONS["gelu_tanh" if tanh else op.operator],
            x_scale=x_scale,
            out_scale=scale,
            rounding=spec.rounding,
            dtype="int8",
            x_zero_point=x_zero,
            out_zero_point=zero,
        )

    def function(x: np.ndarray, threads: int = 1) -> numerics.Quantized:
        return numerics.gelu(x, parameters, threads=threads)

    return function


def _quantize(site: Site) -> Kernel:
    """From float32, through float64: x / step is rounded as the spec says and clamped."""
    step = site.out_step
    dtype = np.dtype(site.dtype(site.op.output).value)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    rounded: Any = {"half_away": _half_away, "half_even": np.rint, "floor": np.floor}[site.params.spec.rounding]

    def quantize(x: np.ndarray, threads: int = 1) -> numerics.Quantized:
        found = rounded(x.astype(np.float64) / step.scale) + step.zero_point
        clamped = np.clip(found, low, high)
        return numerics.Quantized(clamped.astype(dtype), int((clamped != found).sum()))

    return quantize


def _half_away(x: np.ndarray) -> np.ndarray:
    whole = np.trunc(x)
    return np.asarray(whole + np.copysign(np.abs(x - whole) >= 0.5, x))


def _dequantize(site: Site) -> Kernel:
    step = site.step(site.op.inputs[0])

    def dequantize(x: np.ndarray, threads: int = 1) -> numerics.Quantized:
        return numerics.Quantized(((x.astype(np.float64) - step.zero_point) * step.scale).astype(np.float32), 0)

    return dequantize


MEANINGS: dict[type[Op], Callable[[Site], Kernel]] = {
    ops.Linear: _linear,
    ops.Matmul: _matmul,
    ops.Softmax: _softmax,
    ops.LayerNorm: _layer_norm,
    ops.AddLayerNorm: _layer_norm,
    ops.Add: _add,
    ops.Gelu: _function,
    ops.Relu: _function,
    ops.Silu: _function,
    ops.Tanh: _function,
    ops.Sigmoid: _function,
    ops.Quantize: _quantize,
    ops.Dequantize: _dequantize,
}
"""Class of an op -> what makes its integer kernel."""
