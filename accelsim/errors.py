"""The two ways input can be wrong: it is not a legal description, or it describes hardware that cannot do the job."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MANY = 40
"""Legal names are listed up to this many; of more, only the nearest."""


class SpecError(ValueError):
    """Bad input: one line with the path, the value found there, what is legal and the nearest legal name.

    >>> str(SpecError("rows", 0, "an integer >= 1"))
    'rows: got 0, want an integer >= 1'
    """

    def __init__(self, path: str, value: object, legal: str) -> None:
        super().__init__(f"{path}: got {value!r}, want {legal}")
        self.path = path
        self.value = value
        self.legal = legal

    def __reduce__(self) -> tuple[type[SpecError], tuple[str, object, str]]:
        """What pickle makes it from again: errors of workers come back whole."""
        return type(self), (self.path, self.value, self.legal)

    @classmethod
    def unknown(cls, path: str, value: object, names: Iterable[str]) -> SpecError:
        """An error for a name that is not in `names`; the nearest one is offered.

        >>> str(SpecError.unknown("dataflow", "WSX", ["os", "ws", "is"]))
        "dataflow: got 'WSX', want one of is, os, ws (nearest: ws)"
        """
        choices = sorted(names)
        lowered = {name.lower(): name for name in choices}
        close = [lowered[c] for c in difflib.get_close_matches(str(value).lower(), lowered, n=3, cutoff=0.4)]
        if len(choices) > MANY:
            return cls(path, value, f"one of {len(choices)} names (nearest: {', '.join(close) or 'none'})")
        hint = f" (nearest: {close[0]})" if close else ""
        return cls(path, value, f"one of {', '.join(choices)}{hint}")


class Infeasible(ValueError):
    """Hardware that cannot do what is asked: demand, bound, unit and the knobs that would help.

    >>> str(Infeasible("gemm 128x768x3072: smallest input tile", 8192, 4096, "bytes", ["input_buffer.capacity_bytes"]))
    'gemm 128x768x3072: smallest input tile: needs 8192 bytes, has 4096; raise or change input_buffer.capacity_bytes'
    """

    def __init__(self, what: str, demand: object, bound: object, unit: str, levers: Iterable[str]) -> None:
        self.levers = tuple(levers)
        super().__init__(f"{what}: needs {demand} {unit}, has {bound}; raise or change {', '.join(self.levers)}")
        self.demand = demand
        self.bound = bound
        self.unit = unit
