"""Many designs at once: the totals of `simulate`, unit by unit, for platforms as a structured array."""

from __future__ import annotations

from typing import Any

import numpy as np

from accelsim.formulas import packed_bytes
from accelsim.jit import atom, compiled
from accelsim.mapping import (
    GEMM,
    LARGEST,
    MAPPING_DTYPE,
    RULES,
    _all_sizes,
    _fill_all_sums,
    _largest,
    _least_cycles_of,
    _map_fpga,
    _map_systolic,
)
from accelsim.platforms import fpga, roofline, systolic
from accelsim.platforms.base import COST_DTYPE, TOTAL_DTYPE, add_cost, store_cost
from accelsim.platforms.systolic import gemm_fits, gemm_time, gemm_traffic

FEW = 8
"""Designs that share all but their capacities are searched together if there are at least so many."""
SIDE = 32
"""Most different capacities of one buffer among them."""
SEEN = 32
"""Most different mappings of such a group that are remembered with their costs."""
NEVER = np.iinfo(np.int64).max


@compiled
def _price_systolic(designs: Any, starts: Any, works: Any, rule: int, costs: Any, ok: Any) -> None:
    held = np.zeros(1, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    for i in range(len(works)):
        w = works[i]
        for s in range(len(starts) - 1):
            group = designs[starts[s] : starts[s + 1]]
            if w.kind == GEMM and rule == LARGEST:
                _price_largest(group, w, costs[i, starts[s] : starts[s + 1]], ok[starts[s] : starts[s + 1]])
                continue
            together = w.kind == GEMM and len(group) >= FEW
            if together and _price_group(group, w, costs[i, starts[s] : starts[s + 1]], ok[starts[s] : starts[s + 1]]):
                continue
            for d in range(len(group)):
                at = starts[s] + d
                if systolic.computes(group[d], w):
                    _map_systolic(group[d], w, rule, t)
                else:
                    t.feasible = 0
                if t.feasible == 0:
                    ok[at] = False
                else:
                    store_cost(systolic.work_cost(group[d], w, t), costs[i, at])
    held[0].feasible = 0


@compiled
def _price_largest(group: Any, w: Any, costs: Any, ok: Any) -> None:
    """Price a GEMM by the rule `largest` on designs that differ in capacities only."""
    p = group[0]
    if not systolic.computes(p, w):
        ok[:] = False
        return
    sizes, counts = np.empty((3, 128), np.int64), np.empty(3, np.int64)
    _all_sizes(p, w, sizes, counts)
    seen, where = np.empty(SEEN, MAPPING_DTYPE), np.zeros(SEEN + 1, np.int64)
    held = np.zeros(1, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    for d in range(len(group)):
        _largest(group[d], w, t, sizes, counts)
        if t.feasible == 0:
            ok[d] = False
        else:
            _store_gemm(group, w, t, costs, d, seen, where)
    held[0].feasible = 0


@atom
def _store_gemm(group: Any, w: Any, t: Any, costs: Any, d: int, seen: Any, where: Any) -> None:
    """Fill costs[d] with the cost of a GEMM under a mapping, copied if a design of the group has that mapping already.

    No cost depends on a capacity but through the energy of its buffer. seen: the first mappings of the group; where:
    their designs, and last how many.
    """
    count = where[-1]
    p = group[d]
    for i in range(count):
        s = seen[i]
        if (
            s.tile_m == t.tile_m
            and s.tile_k == t.tile_k
            and s.tile_n == t.tile_n
            and s.instances == t.instances
            and s.n_outer == t.n_outer
            and _same_energy(p, group[where[i]])
        ):
            costs[d] = costs[where[i]]
            return
    store_cost(systolic.gemm_cost(p, w, t), costs[d])
    if count < len(seen):
        _copy(t, seen[count])
        where[count] = d
        where[-1] = count + 1


@atom
def _same_energy(p: Any, q: Any) -> Any:
    """Whether the buffers of two designs of a group read for the same energy; then they write for the same, too."""
    return (
        p.input_buffer.read_pj_per_byte == q.input_buffer.read_pj_per_byte
        and p.weight_buffer.read_pj_per_byte == q.weight_buffer.read_pj_per_byte
        and p.accumulator.read_pj_per_byte == q.accumulator.read_pj_per_byte
    )


@atom
def _capacities(group: Any, buffer: int, out: Any) -> int:
    """Fill `out` with the different capacities of a buffer (0 input, 1 weight, 2 accumulator), ascending; how many.

    len(out) + 1 if there are more.
    """
    count = 0
    for d in range(len(group)):
        size = group[d].input_buffer.capacity_bytes
        if buffer == 1:
            size = group[d].weight_buffer.capacity_bytes
        elif buffer == 2:
            size = group[d].accumulator.capacity_bytes
        i = _place(size, out, count)
        if i < count and out[i] == size:
            continue
        if count == len(out):
            return count + 1
        for j in range(count, i, -1):
            out[j] = out[j - 1]
        out[i] = size
        count += 1
    return count


@atom
def _place(size: int, ascending: Any, count: int) -> int:
    """Index of the first of `count` entries that is at least `size`; `count` if none is."""
    i = 0
    while i < count and ascending[i] < size:
        i += 1
    return i


@compiled
def _price_group(group: Any, w: Any, costs: Any, ok: Any) -> Any:
    """Price a GEMM on designs that differ in capacities only: one search for all of them, the same as `_best_gemm`.

    A candidate is weighed once, in the cell of the smallest capacities that hold it; each cell then takes the best of
    itself and of its smaller neighbours. False, and nothing done, where there would be more cells than it is worth.
    """
    caps = np.empty((3, SIDE), np.int64)
    n0, n1, n2 = _capacities(group, 0, caps[0]), _capacities(group, 1, caps[1]), _capacities(group, 2, caps[2])
    if max(n0, n1, n2) > SIDE or n0 * n1 * n2 > 8 * len(group):
        return False
    p = group[0]
    if not systolic.computes(p, w):
        ok[:] = False
        return True
    shape = (n0, n1, n2)
    cycles_of, bytes_of, number_of = np.full(shape, NEVER), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    chosen = np.zeros(shape, MAPPING_DTYPE)
    sizes, counts = np.empty((3, 128), np.int64), np.empty(3, np.int64)
    folds, streams = np.empty((3, 128)), np.empty((3, 128))
    _all_sizes(p, w, sizes, counts)
    _fill_all_sums(p, w, sizes, counts, folds, streams)
    held = np.zeros(2, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    number = 0
    biggest = group[0:1].copy()
    biggest[0].input_buffer.capacity_bytes = caps[0, n0 - 1]
    biggest[0].weight_buffer.capacity_bytes = caps[1, n1 - 1]
    biggest[0].accumulator.capacity_bytes = caps[2, n2 - 1]
    for im in range(counts[0]):
        for ik in range(counts[1]):
            t.tile_m, t.tile_k = sizes[0, im], sizes[1, ik]
            for jn in range(counts[2]):
                t.tile_n = sizes[2, jn]
                whole = t.tile_m == w.m and t.tile_k == w.k and t.tile_n == w.n
                for many in range(2 if whole and min(p.arrays, w.count) > 1 else 1):
                    t.instances = min(p.arrays, w.count) if many else 1
                    number += 2
                    if not gemm_fits(biggest[0], w, t.tile_m, t.tile_k, t.tile_n, t.instances):
                        continue
                    a = _place(2 * t.instances * packed_bytes(t.tile_m * t.tile_k, w.a_bits), caps[0], n0)
                    b = _place(2 * t.instances * packed_bytes(t.tile_k * t.tile_n, w.w_bits), caps[1], n1)
                    c = _place(2 * t.instances * packed_bytes(t.tile_m * t.tile_n, p.accumulator_bits), caps[2], n2)
                    for order in range(1 if whole else 2):
                        t.n_outer = order
                        best = cycles_of[a, b, c]
                        if not whole and best < NEVER and _least_cycles_of(p, w, t, im, ik, jn, folds, streams) > best:
                            continue
                        cycles = gemm_time(p, w, t).cycles
                        if cycles > best:
                            continue
                        x, y, z = gemm_traffic(w, t)
                        if cycles < best or x + y + z < bytes_of[a, b, c]:
                            cycles_of[a, b, c], bytes_of[a, b, c], number_of[a, b, c] = (
                                cycles,
                                x + y + z,
                                number + order,
                            )
                            _copy(t, chosen[a, b, c])
    for a in range(n0):
        for b in range(n1):
            for c in range(n2):
                for side in range(3):
                    i, j, k = a - (side == 0), b - (side == 1), c - (side == 2)
                    if min(i, j, k) < 0 or cycles_of[i, j, k] > cycles_of[a, b, c] or cycles_of[i, j, k] == NEVER:
                        continue
                    if cycles_of[i, j, k] == cycles_of[a, b, c]:
                        if bytes_of[i, j, k] > bytes_of[a, b, c]:
                            continue
                        if bytes_of[i, j, k] == bytes_of[a, b, c] and number_of[i, j, k] >= number_of[a, b, c]:
                            continue
                    cycles_of[a, b, c], bytes_of[a, b, c] = cycles_of[i, j, k], bytes_of[i, j, k]
                    number_of[a, b, c] = number_of[i, j, k]
                    _copy(chosen[i, j, k], chosen[a, b, c])
    seen, where = np.empty(SEEN, MAPPING_DTYPE), np.zeros(SEEN + 1, np.int64)
    for d in range(len(group)):
        a = _place(group[d].input_buffer.capacity_bytes, caps[0], n0)
        b = _place(group[d].weight_buffer.capacity_bytes, caps[1], n1)
        c = _place(group[d].accumulator.capacity_bytes, caps[2], n2)
        if cycles_of[a, b, c] == NEVER:
            ok[d] = False
        else:
            _store_gemm(group, w, chosen[a, b, c], costs, d, seen, where)
    held[0].feasible = 0
    return True


@atom
def _copy(t: Any, out: Any) -> None:
    out.tile_m, out.tile_k, out.tile_n = t.tile_m, t.tile_k, t.tile_n
    out.instances, out.n_outer, out.feasible = t.instances, t.n_outer, 1


@compiled
def _price_fpga(designs: Any, starts: Any, works: Any, rule: int, costs: Any, ok: Any) -> None:
    held = np.zeros(1, MAPPING_DTYPE)
    t = held[0]  # a pointer into `held`, which the last line keeps alive
    for i in range(len(works)):
        w = works[i]
        for d in range(len(designs)):
            if designs[d].multipliers % 2 == 0 and fpga.computes(designs[d], w):
                _map_fpga(designs[d], w, rule, t)
            else:
                t.feasible = 0
            if t.feasible == 0:
                ok[d] = False
            else:
                store_cost(fpga.work_cost(designs[d], w, t), costs[i, d])
    held[0].feasible = 0


@compiled
def _price_roofline(designs: Any, starts: Any, works: Any, rule: int, costs: Any, ok: Any) -> None:
    for i in range(len(works)):
        for d in range(len(designs)):
            if roofline.computes(designs[d], works[i]):
                store_cost(roofline.work_cost(designs[d], works[i]), costs[i, d])
            else:
                ok[d] = False


PRICES = {"systolic": _price_systolic, "fpga": _price_fpga, "roofline": _price_roofline}
"""Kind of platform -> its loop."""


@compiled
def _sum_designs(costs: Any, same: Any, counts: Any, out: Any) -> None:
    for d in range(len(out)):
        for i in range(len(same)):
            add_cost(out[d], costs[same[i], d], counts[i])


def prices(
    kind: str, designs: np.ndarray, groups: np.ndarray, works: np.ndarray, counts: np.ndarray, rule: str
) -> tuple[np.ndarray, np.ndarray]:
    """((n,) TOTAL_DTYPE, bool (n,) whether the design can run the works), each work under its mapping by `rule`.

    designs: (n,) as `jit.record` gives them. groups: int64 (n,), ascending; designs of one number differ in the
    capacities of array buffers only. works: (u,) WORK_DTYPE of one unit, as often as counts says, int64 (u,). Whether
    an FPGA design fits its device is not looked at here: see `sweep.evaluate`.
    """
    out, ok = np.zeros(len(designs), TOTAL_DTYPE), np.ones(len(designs), np.bool_)
    distinct, same = _distinct(works, kind)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(groups)) + 1, [len(designs)]]).astype(np.int64)
    costs = np.zeros((len(distinct), len(designs)), COST_DTYPE)
    PRICES[kind](designs, starts, distinct, RULES.index(rule), costs, ok)
    _sum_designs(costs, same, counts, out)
    return out, ok


def _distinct(works: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(works that differ in what a kind of platform looks at, for each work the index of its like)."""
    seen = works.copy()
    if kind != "fpga":
        for name in ("outside", "crossing_bytes", "parameter_weights"):
            seen[name] = 0
    number: dict[bytes, int] = {}
    same = np.array([number.setdefault(work.tobytes(), len(number)) for work in seen], np.int64)
    first = np.array([int(np.flatnonzero(same == i)[0]) for i in range(len(number))], np.int64)
    return works[first], same
