"""`Work`: what one operator asks of hardware. Ops produce it, platforms price it; they meet nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np

from accelsim.errors import SpecError

MAX_EXACT = 2**53
"""Products stay below this, so that int64 cannot overflow and float64 division is exact in compiled code."""


class Spelled(IntEnum):
    """An enum of integers that files and command lines spell by the lower-case name."""

    @classmethod
    def _missing_(cls, value: object) -> Spelled | None:
        return {member.name.lower(): member for member in cls}.get(value) if isinstance(value, str) else None


class WorkKind(IntEnum):
    """The closed set of requests. A MOVE of zero bytes is how a free operator (a view) appears."""

    GEMM = 0
    VECTOR = 1
    MOVE = 2
    COLLECTIVE = 3


class VectorFunction(IntEnum):
    """Which rate of a vector unit applies. ELEMENTWISE is the residual add and everything as simple as it."""

    NONE = 0
    ELEMENTWISE = 1
    SOFTMAX = 2
    LAYER_NORM = 3
    GELU = 4


class Arithmetic(Spelled):
    """The number format the operands share; the width is in `a_bits`, `w_bits`, `o_bits`."""

    INT = 0
    FLOAT = 1
    BFLOAT = 2


@dataclass(frozen=True)
class Work:
    """One row of integers, in elements, bits and bytes; `count` identical instances of it.

    GEMM: each instance multiplies (m, k) by (k, n). `in_bytes`, `weight_bytes` (with bias) and `out_bytes` are those of
    *all* instances, every operand counted once. `parameter_weights` is 1 where the (k, n) operand is known before the
    model runs, so that it may be prefetched.
    VECTOR: each instance has m rows of n elements, swept `passes` times.
    MOVE: `in_bytes` read and `out_bytes` written; nothing is computed.
    COLLECTIVE: `in_bytes` of payload on each device.
    `outside` is 1 outside the encoder layers (embeddings, masks, head), which an accelerator of the layers alone leaves
    to its host; `crossing_bytes` come from the other side of that border, each tensor counted at its first reader.

    Raises SpecError for a negative field or a product that would not be exact.
    """

    kind: WorkKind
    function: VectorFunction = VectorFunction.NONE
    arithmetic: Arithmetic = Arithmetic.INT
    m: int = 0
    k: int = 0
    n: int = 0
    count: int = 1
    a_bits: int = 0
    w_bits: int = 0
    o_bits: int = 0
    in_bytes: int = 0
    weight_bytes: int = 0
    out_bytes: int = 0
    flops_per_element: int = 0
    exps_per_element: int = 0
    passes: int = 0
    parameter_weights: int = 0
    outside: int = 0
    crossing_bytes: int = 0

    def __post_init__(self) -> None:
        values = self.__dict__.values()
        if min(values) < 0 or max(values) >= MAX_EXACT:
            name, value = next((k, v) for k, v in self.__dict__.items() if not 0 <= v < MAX_EXACT)
            raise SpecError(f"work.{name}", value, f"an integer from 0 to 2^53 (kind {self.kind.name})")
        heavy = max(self.macs, self.m * self.n * self.count * (1 + self.passes), self.bytes * 8)
        if heavy >= 2**56:
            raise SpecError("work", heavy, "fewer than 2^56 multiply-accumulates, elements or bits in one operator")

    @property
    def macs(self) -> int:
        """Multiply-accumulates: m k n count for a GEMM, 0 otherwise."""
        return self.m * self.k * self.n * self.count if self.kind is WorkKind.GEMM else 0

    @property
    def elements(self) -> int:
        """Output elements of a GEMM or a VECTOR: m n count."""
        return self.m * self.n * self.count

    @property
    def flops(self) -> int:
        """Multiplications and additions: 2 macs plus `flops_per_element` for each output element; exps not counted."""
        return 2 * self.macs + self.elements * self.flops_per_element

    @property
    def bytes(self) -> int:
        """Compulsory traffic: every operand once."""
        return self.in_bytes + self.weight_bytes + self.out_bytes

    @property
    def is_free(self) -> bool:
        """A view: nothing computed, nothing moved."""
        return self.kind is WorkKind.MOVE and self.bytes == 0


WORK_DTYPE = np.dtype([(f.name, np.int64) for f in fields(Work)])
"""One `Work` as a structured record with the same field names, for compiled loops."""


def work_array(works: list[Work]) -> np.ndarray:
    """(len(works),) array of WORK_DTYPE."""
    return np.array([tuple(getattr(w, name) for name in WORK_DTYPE.names or ()) for w in works], dtype=WORK_DTYPE)


def packed_bytes(elements: int, bits: int) -> int:
    """Bytes of `elements` numbers of `bits` each, packed: ceil(elements bits / 8)."""
    return (elements * bits + 7) // 8


def gemm(
    m: int,
    k: int,
    n: int,
    *,
    count: int = 1,
    a_bits: int = 8,
    w_bits: int = 8,
    o_bits: int = 8,
    arithmetic: Arithmetic = Arithmetic.INT,
    bias_bytes: int = 0,
    parameter_weights: bool = True,
) -> Work:
    """A GEMM (m, k) x (k, n), `count` times.

    >>> gemm(128, 768, 3072).macs
    301989888
    """
    for name, value in (("m", m), ("k", k), ("n", n), ("count", count)):
        if value < 1:
            raise SpecError(f"gemm.{name}", value, "an integer >= 1")
    return Work(
        kind=WorkKind.GEMM,
        arithmetic=arithmetic,
        m=m,
        k=k,
        n=n,
        count=count,
        a_bits=a_bits,
        w_bits=w_bits,
        o_bits=o_bits,
        in_bytes=count * packed_bytes(m * k, a_bits),
        weight_bytes=count * packed_bytes(k * n, w_bits) + bias_bytes,
        out_bytes=count * packed_bytes(m * n, o_bits),
        flops_per_element=1 if bias_bytes else 0,
        parameter_weights=int(parameter_weights),
    )


def move(in_bytes: int, out_bytes: int) -> Work:
    """A copy through memory; `move(0, 0)` is a free operator."""
    return Work(kind=WorkKind.MOVE, in_bytes=in_bytes, out_bytes=out_bytes)
