"""Many designs at once: the totals of `simulate` for (n,) platforms as a structured array, by the same formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from accelsim.jit import compiled
from accelsim.mapping import MAPPING_DTYPE, _best_core, _best_fpga_gemm, _best_gemm, _best_vector
from accelsim.platforms import fpga, roofline, systolic
from accelsim.platforms.base import TOTAL_DTYPE, add_cost
from accelsim.work import WorkKind

GEMM, VECTOR = int(WorkKind.GEMM), int(WorkKind.VECTOR)


@compiled
def _price_systolic(designs: Any, works: Any, counts: Any, mapping: Any, out: Any, ok: Any) -> None:
    t = mapping[0]
    for d in range(len(designs)):
        p = designs[d]
        ok[d] = True
        for i in range(len(works)):
            w = works[i]
            t.feasible = 1
            if not systolic.computes(p, w):
                t.feasible = 0
            elif w.kind == GEMM:
                _best_gemm(p, w, t)
            elif w.kind == VECTOR:
                _best_vector(p, w, t)
            if t.feasible == 0:
                ok[d] = False
                break
            add_cost(out[d], systolic.work_cost(p, w, t), counts[i])


@compiled
def _price_fpga(designs: Any, works: Any, counts: Any, mapping: Any, out: Any, ok: Any) -> None:
    t = mapping[0]
    for d in range(len(designs)):
        p = designs[d]
        ok[d] = p.multipliers % 2 == 0
        if not ok[d]:
            continue
        for i in range(len(works)):
            w = works[i]
            t.feasible = 1
            if not fpga.computes(p, w):
                t.feasible = 0
            elif fpga.is_on_host(w):
                pass
            elif w.kind == GEMM:
                _best_fpga_gemm(p, w, t)
            elif w.kind == VECTOR and w.function != fpga.GELU:
                _best_core(p, w, t)
            if t.feasible == 0:
                ok[d] = False
                break
            add_cost(out[d], fpga.work_cost(p, w, t), counts[i])


@compiled
def _price_roofline(designs: Any, works: Any, counts: Any, mapping: Any, out: Any, ok: Any) -> None:
    for d in range(len(designs)):
        p = designs[d]
        ok[d] = True
        for i in range(len(works)):
            if not roofline.computes(p, works[i]):
                ok[d] = False
                break
            add_cost(out[d], roofline.work_cost(p, works[i]), counts[i])


PRICES = {"systolic": _price_systolic, "fpga": _price_fpga, "roofline": _price_roofline}
"""Kind of platform -> its loop."""


def prices(kind: str, designs: np.ndarray, works: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((n,) TOTAL_DTYPE, bool (n,) whether the design can run the works), each work under its best mapping.

    designs: (n,) as `jit.record` gives them. works: (u,) WORK_DTYPE, as often as counts says, int64 (u,). Whether an
    FPGA design fits its device is not looked at here: see `sweep.evaluate`.
    """
    out, ok = np.zeros(len(designs), TOTAL_DTYPE), np.zeros(len(designs), np.bool_)
    PRICES[kind](designs, works, counts, np.zeros(1, MAPPING_DTYPE), out, ok)
    return out, ok
