"""What every platform shares: memories, the cost of one `Work`, and the reading of platform descriptions."""

from __future__ import annotations

import functools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le

from accelsim.errors import SpecError
from accelsim.files import read_description, spec_error
from accelsim.jit import atom, compiled
from accelsim.work import Work, work_array

Count = Annotated[int, Ge(1), Le(2**40)]
Whole = Annotated[int, Ge(0), Le(2**50)]
Side = Annotated[int, Ge(1), Le(65536)]
Rate = Annotated[float, Gt(0), Le(1e18)]
Amount = Annotated[float, Ge(0), Le(1e18)]
Share = Annotated[float, Gt(0), Le(1)]
Bits = Annotated[int, Ge(1), Le(64)]

STRICT = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True)
class Memory:
    """An on-chip buffer, used as two halves: one is filled while the other is worked on."""

    capacity_bytes: Whole
    """Both halves together."""
    bytes_per_cycle: Rate
    """Towards the unit it feeds."""
    latency_cycles: Whole
    """Of the first access of an op."""
    read_pj_per_byte: Amount
    write_pj_per_byte: Amount
    leakage_w: Amount
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Dram:
    """The memory behind the chip, one channel shared by all units."""

    bytes_per_cycle: Rate
    """Peak, in cycles of the platform's clock."""
    efficiency: Share
    """Share of the peak that long bursts reach."""
    latency_cycles: Whole
    """From a request to its first byte; later requests overlap with it."""
    pj_per_byte: Amount
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


class Cost(NamedTuple):
    """What one `Work` costs on a platform, in the platform's cycles, bytes and pJ.

    cycles = compute_cycles + stall_cycles. dram_cycles and latency_cycles are what DRAM traffic and latencies take by
    themselves, overlapped or not. unit_cycles is what the unit would take at its peak: utilization is unit_cycles /
    cycles. The three `*_dram_bytes` sum to dram_bytes. energy_pj is dynamic; leakage is added for the time spent.
    """

    cycles: int
    compute_cycles: int
    stall_cycles: int
    macs: int
    sram_bytes: int
    dram_bytes: int
    in_dram_bytes: int
    weight_dram_bytes: int
    out_dram_bytes: int
    busy_cycles: float
    dram_cycles: float
    latency_cycles: float
    unit_cycles: float
    mac_pj: float
    sram_pj: float
    dram_pj: float
    vector_pj: float

    @property
    def energy_pj(self) -> float:
        """Dynamic energy: MACs, vector operations, on-chip buffers, DRAM."""
        return self.mac_pj + self.sram_pj + self.dram_pj + self.vector_pj


_FLOATS = {"busy_cycles", "dram_cycles", "latency_cycles", "unit_cycles", "mac_pj", "sram_pj", "dram_pj", "vector_pj"}
COST_DTYPE = np.dtype([(name, np.float64 if name in _FLOATS else np.int64) for name in Cost._fields])


@atom
def store_cost(c: Any, o: Any) -> None:
    """Copy a `Cost` into a record of COST_DTYPE."""
    o.cycles = c.cycles
    o.compute_cycles = c.compute_cycles
    o.stall_cycles = c.stall_cycles
    o.macs = c.macs
    o.sram_bytes = c.sram_bytes
    o.dram_bytes = c.dram_bytes
    o.in_dram_bytes = c.in_dram_bytes
    o.weight_dram_bytes = c.weight_dram_bytes
    o.out_dram_bytes = c.out_dram_bytes
    o.busy_cycles = c.busy_cycles
    o.dram_cycles = c.dram_cycles
    o.latency_cycles = c.latency_cycles
    o.unit_cycles = c.unit_cycles
    o.mac_pj = c.mac_pj
    o.sram_pj = c.sram_pj
    o.dram_pj = c.dram_pj
    o.vector_pj = c.vector_pj


TOTAL_DTYPE = np.dtype(
    [(name, np.int64) for name in ("cycles", "compute_cycles", "macs", "sram_bytes", "dram_bytes")]
    + [(name, np.float64) for name in ("gemm_cycles", "mac_pj", "sram_pj", "dram_pj", "vector_pj")]
)
"""Sums over works, one after the other. gemm_cycles: what their products would take at the peak of their unit."""


@atom
def add_cost(total: Any, c: Any, count: int) -> None:
    """Add `count` times a `Cost` to a record of TOTAL_DTYPE. Every total is added up by this, unit by unit."""
    total.cycles += count * c.cycles
    total.compute_cycles += count * c.compute_cycles
    total.macs += count * c.macs
    total.sram_bytes += count * c.sram_bytes
    total.dram_bytes += count * c.dram_bytes
    if c.macs > 0:
        total.gemm_cycles += count * c.unit_cycles
    total.mac_pj += count * c.mac_pj
    total.sram_pj += count * c.sram_pj
    total.dram_pj += count * c.dram_pj
    total.vector_pj += count * c.vector_pj


@atom
def add_total(total: Any, part: Any) -> None:
    """Add one record of TOTAL_DTYPE to another."""
    total.cycles += part.cycles
    total.compute_cycles += part.compute_cycles
    total.macs += part.macs
    total.sram_bytes += part.sram_bytes
    total.dram_bytes += part.dram_bytes
    total.gemm_cycles += part.gemm_cycles
    total.mac_pj += part.mac_pj
    total.sram_pj += part.sram_pj
    total.dram_pj += part.dram_pj
    total.vector_pj += part.vector_pj


@compiled
def _sum_costs(costs: Any, counts: Any, units: Any, parts: Any, out: Any) -> None:
    for i in range(len(costs)):
        add_cost(parts[units[i]], costs[i], counts[i])
    for u in range(len(parts)):
        add_total(out[0], parts[u])


def total_of(costs: np.ndarray, counts: np.ndarray, units: np.ndarray) -> np.void:
    """Record of TOTAL_DTYPE for (n,) COST_DTYPE, each as often as `counts` says: unit by unit, then over the units.

    counts, units: int64 (n,).
    """
    out = np.zeros(1, TOTAL_DTYPE)
    _sum_costs(costs, counts, units, np.zeros(int(units.max(initial=0)) + 1, TOTAL_DTYPE), out)
    found: np.void = out[0]
    return found


STEP_DTYPE = np.dtype(
    [
        ("prefetch_bytes", np.float64),
        ("load_bytes", np.float64),
        ("busy_cycles", np.float64),
        ("store_bytes", np.float64),
    ]
)
"""One step of an op in the event model: parameters that may be loaded early, operands, time on the unit, results."""


class Term(NamedTuple):
    """One line of `accelsim explain`: a name, its value, the value's unit ("" for text) and the formula behind it."""

    name: str
    value: int | float | str
    unit: str
    formula: str


class Platform(ABC):
    """Hardware: a frozen dataclass of numbers that prices any `Work`. Holds no state of a run."""

    name: str
    clock_hz: float
    kind: ClassVar[str]
    units: ClassVar[tuple[str, ...]]
    reads: ClassVar[dict[str, tuple[str, ...]]]
    """Unit -> fields that the cycles, bytes and dynamic energy of its works depend on; others are the same for all."""
    kinds: ClassVar[dict[str, type[Platform]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Platform.kinds[cls.kind] = cls

    @abstractmethod
    def check_widths(self, work: Work, name: str) -> None:
        """Raise Infeasible, naming the op, if an operand of this width or arithmetic cannot be computed here."""

    @abstractmethod
    def default_precision(self) -> str:
        """Precision a model gets here when none is asked for."""

    @abstractmethod
    def unit(self, work: Work) -> int:
        """Index into `units` of the engine that runs this work."""

    @abstractmethod
    def costs(self, works: np.ndarray, mappings: np.ndarray) -> np.ndarray:
        """(n,) COST_DTYPE for (n,) WORK_DTYPE under (n,) MAPPING_DTYPE."""

    def costs_of(self, work: Work, mapping: np.ndarray) -> Cost:
        """`Cost` of one work under a (1,) MAPPING_DTYPE."""
        return Cost(*self.costs(work_array([work]), mapping)[0].tolist())

    @abstractmethod
    def step_count(self, work: np.ndarray, mapping: np.ndarray) -> int:
        """How many steps `steps` would give."""

    @abstractmethod
    def steps(self, work: np.ndarray, mapping: np.ndarray) -> np.ndarray:
        """The steps of one work for the event model, as a STEP_DTYPE array."""

    @abstractmethod
    def explain(self, work: Work, mapping: np.ndarray) -> list[Term]:
        """Where the cost of one work under a (1,) MAPPING_DTYPE comes from, term by term."""

    @abstractmethod
    def dram_latency_cycles(self) -> float:
        """Latency of one DRAM request in the event model."""

    @abstractmethod
    def dram_bytes_per_cycle(self) -> float:
        """DRAM bytes per cycle that the event model's channel moves."""

    def memory_bytes(self) -> int | None:
        """Memory that weights, state, gradients and activations share; None where it is not described."""
        return None

    @abstractmethod
    def leakage_w(self) -> float:
        """Power that flows whether or not anything is computed."""

    @abstractmethod
    def area_mm2(self) -> float | None:
        """Area of the die, or of the parts that are described; None where nobody has published it."""

    @abstractmethod
    def assumptions(self) -> dict[str, str]:
        """What the numbers stand on, for the head of a report."""

    @abstractmethod
    def peak_macs_per_cycle(self, work: Work) -> float:
        """Multiply-accumulates per cycle at the width of `work`."""


def from_mapping(data: Any, source: str, overrides: MappingABC[str, Any] | None = None) -> Platform:
    """Platform from a nested mapping with the field names of its dataclass, then `path=value` overrides.

    Raises SpecError with the path of the field, the value, what is legal and the nearest name.
    """
    from pydantic import ValidationError

    if not isinstance(data, MappingABC):
        raise SpecError(source, type(data).__name__, "a mapping of platform fields")
    values = _copy(data)
    for path, value in (overrides or {}).items():
        _set(values, path.split("."), value, path)
    kind = values.pop("kind", None)
    if kind not in Platform.kinds:
        raise SpecError.unknown(f"{source}: kind", kind, Platform.kinds)
    target = Platform.kinds[kind]
    try:
        platform: Platform = _adapter(target).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise spec_error(error, target, source) from None
    return platform


@functools.cache
def _adapter(target: type[Platform]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(target)


def _copy(data: Any) -> Any:
    if isinstance(data, MappingABC):
        return {str(k): _copy(v) for k, v in data.items()}
    return data


def _set(values: dict[str, Any], path: list[str], value: Any, whole: str) -> None:
    head, *rest = path
    if not rest:
        if isinstance(values.get(head), dict):
            raise SpecError(whole, value, f"a field inside it: {', '.join(values[head])}")
        values[head] = value
        return
    inner = values.get(head)
    if not isinstance(inner, dict):
        raise SpecError.unknown(f"--set {whole}", head, [k for k, v in values.items() if isinstance(v, dict)])
    _set(inner, rest, value, whole)


def parse_value(text: str) -> Any:
    """A number, word or boolean as YAML 1.2 reads it; `nan` stays a number, so that it is refused as one."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


PRESETS = Path(__file__).parent / "presets"


def names() -> list[str]:
    """Names of the presets."""
    return sorted([p.stem for p in PRESETS.glob("*.yaml")] + ["this-cpu"])


def platform(name: str | os.PathLike[str], overrides: MappingABC[str, Any] | None = None) -> Platform:
    """The platform of that name, or of a YAML or JSON file with the same fields, with `overrides` by dotted path.

    >>> platform("systolic-32x32", {"rows": 16}).rows
    16

    Raises SpecError for an unknown name, field or value.
    """
    text = os.fspath(name)
    if text == "this-cpu":
        from accelsim.platforms.measure import this_cpu_description

        return from_mapping(this_cpu_description(), text, overrides)
    path = PRESETS / f"{text}.yaml"
    if os.sep in text or not path.exists():
        path = Path(text)
        if path.suffix.lower() not in (".yaml", ".yml", ".json"):
            raise SpecError.unknown("platform", text, names())
    return from_mapping(read_description(path), path.stem if path.parent == PRESETS else str(path), overrides)


def describe(value: Any) -> dict[str, Any]:
    """The nested mapping that `from_mapping` reads back."""
    from dataclasses import fields, is_dataclass
    from enum import IntEnum

    out: dict[str, Any] = {"kind": value.kind} if isinstance(value, Platform) else {}
    for f in fields(value):
        item = getattr(value, f.name)
        out[f.name] = describe(item) if is_dataclass(item) else item.name.lower() if isinstance(item, IntEnum) else item
    return out
