"""`Report`: one row per (op, work) with units in the column names, its total, breakdowns and comparisons."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accelsim.errors import SpecError
from accelsim.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

SCHEMA: dict[str, str] = {
    "op": "operator of the graph: module path and name",
    "group": "module path",
    "operator": "PyTorch's name of the operation",
    "phase": "forward, or a phase of training",
    "layer": "encoder layer, -1 outside",
    "platform": "name of the platform",
    "unit": "engine of the platform that runs it; none for a free op",
    "kind": "gemm, vector, move, collective; free for a view",
    "count": "identical instances (heads x batch)",
    "macs": "multiply-accumulates",
    "flops": "multiplications and additions, a MAC counted as two",
    "cycles": "cycles of the platform's clock, compute_cycles + stall_cycles",
    "compute_cycles": "cycles the unit needs with memory that never makes it wait",
    "stall_cycles": "cycles it waits: exposed loads, stores and latencies",
    "start_cycle": "when its first step starts on the unit",
    "finish_cycle": "when its last result is stored",
    "time_s": "cycles / clock",
    "sram_bytes": "reads and writes of on-chip buffers",
    "dram_bytes": "reads and writes of DRAM",
    "energy_j": "dynamic energy and this row's share of leakage",
    "utilization": "cycles the unit would take at its peak / cycles",
    "bound": "compute, memory, latency or collective: which term is the largest; free for a view",
}
"""Every column and what it says."""

LABELS = ("op", "group", "operator", "phase", "class", "layer", "platform", "unit", "kind", "bound", "module", "block")
SUMMED = ("macs", "flops", "cycles", "compute_cycles", "stall_cycles", "time_s", "sram_bytes", "dram_bytes", "energy_j")


@dataclass(frozen=True)
class Total:
    """The whole run. Under events `cycles` is the makespan: rows overlap, so it may be below their sum.

    utilization: MACs done / MACs the arrays could have done in that time. fps_per_w: sequences a second and watt, which
    is batch / energy_j; None where energies are not described. area_mm2: None where nobody has published it.
    """

    macs: int
    flops: int
    cycles: int
    compute_cycles: int
    stall_cycles: int
    time_s: float
    sram_bytes: int
    dram_bytes: int
    energy_j: float
    power_w: float
    utilization: float
    fps_per_w: float | None = None
    area_mm2: float | None = None


@dataclass(frozen=True)
class Report:
    """What a model costs on a platform.

    columns: SCHEMA column -> one value per row. energy_by_part_j: MAC, vector, SRAM, DRAM, leakage; sums to the total.
    assumptions: what the numbers stand on. bounds: lower and upper bound of the events' time in cycles.
    """

    model: str
    platform: str
    seq: int
    batch: int
    precision: str
    detail: str
    clock_hz: float
    columns: Mapping[str, Sequence[Any]]
    total: Total
    energy_by_part_j: Mapping[str, float]
    assumptions: Mapping[str, str] = field(default_factory=dict)
    roof: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per (op, work), columns as in SCHEMA."""
        import pandas as pd

        return pd.DataFrame({name: self.columns[name] for name in SCHEMA})

    def breakdown(self, by: str = "operator") -> pd.DataFrame:
        """Sums over equal labels, the share of time beside them, largest first.

        by: a label column, or "module" (the module path with layer numbers as `*`), "block" (embeddings, attention,
        feed-forward, head, model), or "class" (`CLASSES`). Raises SpecError for anything else.
        """
        if by not in LABELS:
            raise SpecError.unknown("breakdown by", by, LABELS)
        table = self.table
        if by == "module":
            keys = [module_of(op) for op in table["op"]]
        elif by == "class":
            columns = ("op", "group", "operator", "kind", "phase", "layer")
            keys = [class_of(*row) for row in zip(*(table[c] for c in columns), strict=True)]
        elif by == "block":
            keys = [block_of(group, layer) for group, layer in zip(table["group"], table["layer"], strict=True)]
        else:
            keys = list(table[by])
        sums = table[list(SUMMED)].groupby(np.array(keys, dtype=object)).sum()
        sums["share"] = sums["cycles"] / max(1, sums["cycles"].sum())
        sums.index.name = by
        return sums.sort_values(["cycles", "macs"], ascending=False, kind="stable")

    def compare(self, other: Report, by: str = "operator") -> pd.DataFrame:
        """Cycles, time, bytes and energy of both reports by label, and other / self for time and energy."""
        mine, theirs = self.breakdown(by), other.breakdown(by)
        columns = ["cycles", "time_s", "dram_bytes", "energy_j"]
        joined = mine[columns].add_suffix(".a").join(theirs[columns].add_suffix(".b"), how="outer").fillna(0)
        for column in ("time_s", "energy_j"):
            joined[f"{column}.ratio"] = joined[f"{column}.b"] / joined[f"{column}.a"].replace(0, np.nan)
        return joined.sort_values("time_s.a", ascending=False, kind="stable")

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        names = list(self.columns)
        return {
            "model": self.model,
            "platform": self.platform,
            "seq": self.seq,
            "batch": self.batch,
            "precision": self.precision,
            "detail": self.detail,
            "clock_hz": self.clock_hz,
            "assumptions": dict(self.assumptions),
            "total": asdict(self.total),
            "energy_by_part_j": dict(self.energy_by_part_j),
            "ops": [dict(zip(names, row, strict=True)) for row in zip(*self.columns.values(), strict=True)],
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows as .csv or .parquet, or everything as .json; written under a temporary name, then renamed.

        Raises SpecError for another suffix or a folder that is not there.
        """
        target = Path(path)
        writers: dict[str, Callable[[Path], object]] = {
            ".csv": lambda p: self.table.to_csv(p, index=False),
            ".parquet": lambda p: self.table.to_parquet(p, index=False),
            ".json": lambda p: p.write_text(json.dumps(self.to_json(), indent=1) + "\n"),
        }
        check_output(target, writers)
        return write_whole(target, writers[target.suffix.lower()])


def check_output(target: Path, suffixes: Mapping[str, Any]) -> None:
    """Raise SpecError unless the suffix is one of `suffixes` and the folder exists."""
    if target.suffix.lower() not in suffixes:
        raise SpecError(f"output {target}", target.suffix, f"one of {', '.join(suffixes)}")
    if not target.parent.is_dir():
        raise SpecError(f"output {target}", str(target.parent), "a folder that exists")


def module_of(op: str) -> str:
    """Op name with layer numbers as `*`, so that equal places of all layers fall together.

    >>> module_of("encoder.layer.3.attention.self.scores")
    'encoder.layer.*.attention.self.scores'
    """
    return ".".join("*" if part.isdigit() else part for part in op.split("."))


def block_of(group: str, layer: int) -> str:
    """embeddings, attention, feed-forward, head, or model (masks and positions), from the module path.

    >>> block_of("encoder.layer.3.attention.self.query", 3)
    'attention'
    """
    if layer >= 0:
        parts = group.lower().split(".")
        return "attention" if any("attention" in p or p.startswith("sa_") for p in parts) else "feed-forward"
    if group in ("", "model"):
        return "model"
    return "embeddings" if "embed" in group.lower() else "head"


CLASSES = (
    "linear products", "feed-forward products", "attention products", "softmax", "gelu",
    "dropout, residual, layer norm", "bias gradients", "copies", "embeddings", "head", "masks", "optimizer",
)  # fmt: skip
"""Classes of operators of an iteration, as Demystifying BERT (arXiv:2104.08335) groups them. softmax: with scale, mask
and dropout of the scores. head: with the loss."""

_PRODUCTS_OF_ACTIVATIONS = ("scores", "context", "bmm", "bmm_backward")
_ACTIVATIONS = ("gelu", "gelu_backward", "tanh", "tanh_backward", "pow", "relu", "threshold_backward", "silu")


def class_of(op: str, group: str, operator: str, kind: str, phase: str, layer: int) -> str:
    """The member of `CLASSES` a row belongs to, in forward and backward.

    >>> class_of("layer.3.attention.self.bmm", "layer.3.attention.self", "matmul", "gemm", "forward", 3)
    'attention products'
    """
    if phase == "update":
        return "optimizer"
    if layer < 0:
        block = "head" if operator.startswith(("log_softmax", "nll_loss")) else block_of(group, layer)
        return "masks" if block == "model" else block
    last = group.rpartition(".")[2]
    if kind == "gemm":
        suffixes = op.removeprefix(group).split(".")
        if any(part in _PRODUCTS_OF_ACTIVATIONS for part in suffixes):
            return "attention products"
        return "linear products" if block_of(group, layer) == "attention" else "feed-forward products"
    if operator == "clone":
        return "copies"
    if operator == "sum" and phase == "backward_weight" and "norm" not in last.lower():
        return "bias gradients"
    if operator.startswith("softmax") or last in ("self", "attention"):
        return "softmax"
    if operator in _ACTIVATIONS or last.endswith(("act_fn", "activation")):
        return "gelu"
    return "dropout, residual, layer norm"
