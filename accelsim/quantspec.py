"""`QuantSpec`: how every tensor of a quantized model is stored, and by which algorithm each operator is computed.

    >>> FQ_BERT.weights.bits, FQ_BERT.activations.bits, FQ_BERT.softmax
    (4, 8, 'table')

One object, read by the graph transform, the torch reference and the integer executor. Where the papers are silent the
choice has a name here and its reason in docs/decisions/011-what-fq-bert-leaves-open.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from accelsim.errors import SpecError
from accelsim.files import read_description, spec_error

FLOAT_BITS = 32
"""A `Format` of this many bits is float32: not quantized."""
OBSERVERS = ("abs_max", "ema_abs_max", "percentile", "mse")
SCALE_FORMATS = ("float32", "fixed", "scale8", "power_of_two")
ROUNDINGS = ("half_away", "half_even", "floor")
SCOPES = ("all", "linear")
STORED_BITS = (8, 4, 2)
"""Widths that the packed GEMM kernels read."""


@dataclass(frozen=True)
class Format:
    """How the tensors of one class become integers: v ~ step x (q - zero point)."""

    bits: int
    """2 to 8, or 32 for float32."""
    symmetric: bool
    """Zero point 0 and a range of +-(2^(bits - 1) - 1); else affine, lowest to highest."""
    per_channel: bool
    """One step for each output feature (weights alone)."""
    observer: str
    """What the range is taken from: abs_max of all data; ema_abs_max, a moving average over batches; percentile of the
    magnitudes; mse, the clip at which the squared error is least."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    @property
    def quantized(self) -> bool:
        """Whether these tensors are integers."""
        return self.bits != FLOAT_BITS

    @property
    def largest(self) -> int:
        """2^(bits - 1) - 1: what the range of a symmetric format is divided into."""
        return int(2 ** (self.bits - 1)) - 1


@dataclass(frozen=True)
class QuantSpec:
    """Bits, ranges, scales, rounding and algorithms of a quantized model. Raises SpecError where they contradict."""

    name: str
    scope: str
    """all: every tensor between operators is an integer. linear: only the operands of linear layers are, their results
    and everything else are float32."""
    weights: Format
    stored_bits: int
    """Width of a weight in memory: 8, 4 or 2, at least that of `weights`."""
    embeddings: Format
    activations: Format
    """Results of linear layers, sums, layer norms, and of functions other than the ones below."""
    scores: Format
    """Attention scores, which softmax reads. `bits` of them are a share of 8: they are kept in int8."""
    probabilities: Format
    """What softmax gives: 1 becomes 2^bits - 1. Unsigned; the observer does not matter."""
    activation_outputs: Format
    """What GELU (ReLU, SiLU) gives."""
    norm_bits: int
    """Of gamma and beta: 8, 16, or 32 where the layer norm is float."""
    bias_bits: int
    """Of biases, in steps of the sums they are added to."""
    accumulator_bits: int
    """Of the sums of products. A model whose sums could need more is refused."""
    scale_format: str
    """float32: steps and ratios are float32. fixed: ratios are a 31-bit multiplier and a shift. scale8: every step has
    8 significant bits, ratios are fixed. power_of_two: every step is a power of two, ratios are shifts."""
    rounding: str
    """Of every requantization: half_away, half_even or floor."""
    softmax: str
    """float; table, 256 exponentials (FQ-BERT); polynomial (I-BERT)."""
    softmax_bits: int
    """Of an exponential, 8 to 16."""
    layer_norm: str
    """float; fixed, 8-bit parameters (FQ-BERT); i-bert, integer square root."""
    gelu: str
    """float; table of 256 exact values; polynomial (I-BERT)."""
    ema_decay: float
    """Share of the average that stays when a batch is observed by ema_abs_max."""
    percentile: float
    """Share of the magnitudes that stay inside the range under the observer percentile, in (0, 1]."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        _one_of(self, "scope", SCOPES)
        _one_of(self, "scale_format", SCALE_FORMATS)
        _one_of(self, "rounding", ROUNDINGS)
        _one_of(self, "softmax", ("float", "table", "polynomial"))
        _one_of(self, "layer_norm", ("float", "fixed", "i-bert"))
        _one_of(self, "gelu", ("float", "table", "polynomial"))
        _whole(self, "softmax_bits", 8, 16)
        _whole(self, "accumulator_bits", 16, 32)
        for name, legal in (("norm_bits", (8, 16, FLOAT_BITS)), ("bias_bits", (32,)), ("stored_bits", STORED_BITS)):
            if getattr(self, name) not in legal:
                raise SpecError(f"{self.name}: {name}", getattr(self, name), f"one of {', '.join(map(str, legal))}")
        for name, low in (("ema_decay", 0.0), ("percentile", 0.5)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= 1:
                raise SpecError(f"{self.name}: {name}", value, f"a number from {low} to 1")
        for f in fields(self):
            if isinstance(getattr(self, f.name), Format):
                self._check_format(f.name, getattr(self, f.name))
        self._check_contradictions()

    def _check_format(self, path: str, form: Format) -> None:
        path = f"{self.name}: {path}"
        kernels = (8,) if path.endswith(("activations", "activation_outputs")) else tuple(range(2, 9))
        if form.bits not in (*kernels, FLOAT_BITS):
            raise SpecError(f"{path}.bits", form.bits, f"one of {', '.join(map(str, (*kernels, FLOAT_BITS)))}")
        if form.observer not in OBSERVERS:
            raise SpecError.unknown(f"{path}.observer", form.observer, OBSERVERS)
        if form.per_channel and not path.endswith("weights"):
            raise SpecError(f"{path}.per_channel", True, "false: the kernels have one step for such a tensor")
        if not form.symmetric and not path.endswith(("weights", "activations", "activation_outputs")):
            raise SpecError(f"{path}.symmetric", False, "true: the kernels have no zero point for such a tensor")

    def _check_contradictions(self) -> None:
        if self.weights.quantized and self.weights.bits > self.stored_bits:
            legal = f"at least the {self.weights.bits} bits of the weights, one of {', '.join(map(str, STORED_BITS))}"
            raise SpecError(f"{self.name}: stored_bits", self.stored_bits, legal)
        float_inside = self.scope == "linear" or not self.weights.quantized
        for name in ("scores", "probabilities", "activation_outputs"):
            if getattr(self, name).quantized and float_inside:
                raise SpecError(
                    f"{self.name}: {name}.bits", getattr(self, name).bits, "32 where only linear layers are"
                )
            if not getattr(self, name).quantized and not float_inside:
                raise SpecError(f"{self.name}: {name}.bits", FLOAT_BITS, "8 or fewer where everything is quantized")
        for name in ("softmax", "layer_norm", "gelu"):
            if getattr(self, name) != "float" and float_inside:
                raise SpecError(f"{self.name}: {name}", getattr(self, name), "float where only linear layers are")
        if self.weights.quantized != self.activations.quantized:
            legal = f"{self.weights.bits if not self.weights.quantized else 8}, as the weights are"
            raise SpecError(f"{self.name}: activations.bits", self.activations.bits, legal)
        if not self.activations.symmetric and self.gelu == "polynomial":
            raise SpecError(f"{self.name}: gelu", "polynomial", "table where activations have a zero point")
        legal_bits = {"fixed": (8,), "i-bert": (8, 16), "float": (FLOAT_BITS,)}[self.layer_norm]
        if self.norm_bits not in legal_bits:
            legal = f"{' or '.join(map(str, legal_bits))} where layer_norm is {self.layer_norm}"
            raise SpecError(f"{self.name}: norm_bits", self.norm_bits, legal)

    @property
    def quantized(self) -> bool:
        """Whether anything is an integer."""
        return self.weights.quantized or self.embeddings.quantized

    def format_of(self, kind: str) -> Format:
        """Format of an activation by the name of its class; what only linear layers read has that of activations."""
        form: Format = getattr(self, kind)
        return form if form.quantized else self.activations

    def to_json(self) -> dict[str, Any]:
        """The nested mapping that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, source: str = "quantization") -> QuantSpec:
        """A spec from a mapping with its field names; `base` names a preset that gives what is not there.

        Raises SpecError with the path of the field, the value, what is legal and the nearest name.
        """
        if not isinstance(data, Mapping):
            raise SpecError(source, type(data).__name__, "a mapping of the fields of a QuantSpec")
        values = dict(data)
        if "base" in values:
            values = _merged(quant_spec(str(values.pop("base"))).to_json(), values, source)
        from pydantic import TypeAdapter, ValidationError

        try:
            spec: QuantSpec = TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            inner = error.errors()[0].get("ctx", {}).get("error")
            raise (inner if isinstance(inner, SpecError) else spec_error(error, cls, source)) from None
        except TypeError as error:
            raise SpecError(source, str(error), "numbers, words and mappings") from None
        return spec

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QuantSpec:
        """Read a YAML or JSON file of the fields. Raises SpecError for anything else."""
        return cls.from_json(read_description(Path(path)), str(path))


def _merged(base: dict[str, Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    for key, value in values.items():
        if key not in base:
            raise SpecError.unknown(f"{source}: field", key, base)
        inner = isinstance(base[key], dict) and isinstance(value, Mapping)
        base[key] = _merged(base[key], value, f"{source}: {key}") if inner else value
    return base


def _one_of(spec: QuantSpec, name: str, legal: tuple[str, ...]) -> None:
    if getattr(spec, name) not in legal:
        raise SpecError.unknown(f"{spec.name}: {name}", getattr(spec, name), legal)


def _whole(spec: QuantSpec, name: str, low: int, high: int) -> None:
    value = getattr(spec, name)
    if type(value) is not int or not low <= value <= high:
        raise SpecError(f"{spec.name}: {name}", value, f"an integer from {low} to {high}")


# --- presets ----------------------------------------------------------------------------------------------------------

_FLOAT = Format(FLOAT_BITS, True, False, "abs_max")
_WEIGHTS = Format(4, True, False, "mse")
_TABLES = Format(8, True, False, "abs_max")
_ACTIVATIONS = Format(8, True, False, "percentile")
_SCORES = Format(8, True, False, "ema_abs_max")

FP32 = QuantSpec(
    name="fp32",
    scope="all",
    weights=_FLOAT,
    stored_bits=8,
    embeddings=_FLOAT,
    activations=_FLOAT,
    scores=_FLOAT,
    probabilities=_FLOAT,
    activation_outputs=_FLOAT,
    norm_bits=FLOAT_BITS,
    bias_bits=32,
    accumulator_bits=32,
    scale_format="float32",
    rounding="half_even",
    softmax="float",
    softmax_bits=8,
    layer_norm="float",
    gelu="float",
    ema_decay=0.99,
    percentile=0.9999,
)
"""Nothing is quantized."""

W8A8 = replace(
    FP32, name="w8a8", scope="linear", weights=replace(_TABLES, bits=8), embeddings=_TABLES, activations=_ACTIVATIONS
)
"""As Q8BERT (Zafrir et al., arXiv:1910.06188): linear layers and embeddings in 8 bits, everything else in float32."""

FQ_BERT = QuantSpec(
    name="fq-bert",
    scope="all",
    weights=_WEIGHTS,
    stored_bits=4,
    embeddings=_TABLES,
    activations=_ACTIVATIONS,
    scores=_SCORES,
    probabilities=replace(_SCORES, observer="abs_max"),
    activation_outputs=_ACTIVATIONS,
    norm_bits=8,
    bias_bits=32,
    accumulator_bits=32,
    scale_format="scale8",
    rounding="half_away",
    softmax="table",
    softmax_bits=8,
    layer_norm="fixed",
    gelu="table",
    ema_decay=0.99,
    percentile=0.9999,
)
"""FQ-BERT (Liu et al., arXiv:2103.02800): 4-bit weights, 8-bit activations, no operator in floating point."""

I_BERT = replace(
    FQ_BERT,
    name="i-bert",
    weights=Format(8, True, True, "abs_max"),
    stored_bits=8,
    norm_bits=16,
    scale_format="fixed",
    rounding="half_even",
    softmax="polynomial",
    softmax_bits=16,
    layer_norm="i-bert",
    gelu="polynomial",
)
"""I-BERT (Kim et al., arXiv:2101.01321): 8 bits, weights per channel, polynomials. Its activations between operators
have 8, 16 or 32 bits; ours have 8."""

SPECS = {
    spec.name: spec
    for spec in (
        FP32,
        W8A8,
        I_BERT,
        FQ_BERT,
        replace(FQ_BERT, name="w6a8", weights=replace(_WEIGHTS, bits=6), stored_bits=8),
        replace(FQ_BERT, name="w4a8"),
        replace(FQ_BERT, name="w3a8", weights=replace(_WEIGHTS, bits=3)),
        replace(FQ_BERT, name="w2a8", weights=replace(_WEIGHTS, bits=2), stored_bits=2),
    )
}
"""Presets by name. Of w6a8 to w2a8 only the weights differ from fq-bert; w4a8 is fq-bert."""


def quant_spec(name: str | os.PathLike[str]) -> QuantSpec:
    """The preset of that name, or the spec in a YAML or JSON file. Raises SpecError for an unknown name."""
    text = os.fspath(name)
    if text in SPECS:
        return SPECS[text]
    if text.lower().endswith((".yaml", ".yml", ".json")):
        return QuantSpec.load(text)
    raise SpecError.unknown("quantization", text, SPECS)


def with_weight_bits(spec: QuantSpec, bits: int) -> QuantSpec:
    """The spec with weights of 2 to 8 bits, in the narrowest memory format that holds them."""
    stored = min((b for b in STORED_BITS if b >= bits), default=8)
    return replace(spec, name=f"{spec.name} w{bits}", weights=replace(spec.weights, bits=bits), stored_bits=stored)
