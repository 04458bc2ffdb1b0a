"""The oracle of the array formulas: a grid of processing elements stepped cycle by cycle, with its values.

Nothing here is shared with `accelsim`. A schedule says when each fold starts; the grid either computes the product or
raises Hazard, so a formula that starts folds too early is caught by a value or a collision, not by another formula.

Weight stationary. Weights enter at the top of each column, one row a cycle, column c one cycle after column c - 1, each
tagged with the row it is for; they move down a row a cycle and are latched behind the row's active weight. Inputs enter
at the left, row r one cycle after row r - 1. The first element of a fold makes an element take over the latched weight.
Partial sums move down and leave at the foot.
Input stationary is the same grid on the transposed product.
An op is over when its last wavefront has left the array, through elements that the last fold may not use.
Output stationary. Inputs enter at the left, weights at the top, both skewed; each element adds up its own result. A
column hands results out over one bus whose pointer scans all rows, one a cycle; it starts with the first result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class Hazard(Exception):
    """Two values in one place, or an operand that is not there."""


@dataclass
class Fold:
    """One pass through the array: `x` (streamed, rows in use), `w` (rows in use, columns in use); output stationary:
    `x` (rows in use, k), `w` (k, columns in use)."""

    x: np.ndarray
    w: np.ndarray


def weight_stationary(folds: list[Fold], rows: int, cols: int, loads: list[int], starts: list[int]):
    """([output of each fold (streamed, cols in use)], cycle after the last real result, after the last physical)."""
    outputs = [np.full((f.x.shape[0], f.w.shape[1]), -(10**9), dtype=np.int64) for f in folds]
    weight = [[None] * cols for _ in range(rows)]  # (fold, row tag, value) passing by
    latched = [[None] * cols for _ in range(rows)]  # (fold, value)
    active = [[None] * cols for _ in range(rows)]
    x = [[None] * cols for _ in range(rows)]  # (fold, position, value)
    psum = [[0] * cols for _ in range(rows)]
    real, physical = 0, 0
    last = max(s + len(f.x) for s, f in zip(starts, folds, strict=True)) + rows + cols + 2
    for t in range(last):
        weight = [[None] * cols, *weight[:-1]]
        for c in range(cols):
            entering = [f for f in range(len(folds)) if loads[f] + c <= t < loads[f] + c + rows]
            if len(entering) > 1:
                raise Hazard("two weights enter a column")
            for f in entering:
                r = t - loads[f] - c
                w = folds[f].w
                weight[0][c] = (f, r, int(w[r, c]) if r < w.shape[0] and c < w.shape[1] else 0)
        moved = [[None, *row[:-1]] for row in x]
        for r in range(rows):
            entering = [f for f in range(len(folds)) if 0 <= t - starts[f] - r < len(folds[f].x)]
            if len(entering) > 1:
                raise Hazard("two inputs enter a row")
            for f in entering:
                j = t - starts[f] - r
                moved[r][0] = (f, j, int(folds[f].x[j, r]) if r < folds[f].x.shape[1] else 0)
        x = moved
        before = [row[:] for row in psum]
        for r in range(rows):
            for c in range(cols):
                if x[r][c] is None:
                    continue
                f, j, value = x[r][c]
                if j == 0:
                    active[r][c] = latched[r][c]
                if active[r][c] is None or active[r][c][0] != f:
                    raise Hazard("the weight of this fold is not in the element")
                psum[r][c] = (before[r - 1][c] if r > 0 else 0) + value * active[r][c][1]
                if r == rows - 1:
                    physical = max(physical, t + 1)
                    if c < outputs[f].shape[1]:
                        outputs[f][j, c] = psum[r][c]
                        real = max(real, t + 1)
        for r in range(rows):
            for c in range(cols):
                if weight[r][c] is not None and weight[r][c][1] == r:
                    latched[r][c] = (weight[r][c][0], weight[r][c][2])
    return outputs, real, physical


def output_stationary(folds: list[Fold], rows: int, cols: int, starts: list[int]):
    """([output of each fold (rows in use, cols in use)], cycle after the last real result, after the last physical)."""
    outputs = [np.full((f.x.shape[0], f.w.shape[1]), -(10**9), dtype=np.int64) for f in folds]
    x = [[None] * cols for _ in range(rows)]  # (fold, position, value)
    w = [[None] * cols for _ in range(rows)]
    total = [[0] * cols for _ in range(rows)]
    scan = [-(10**9)] * cols  # cycle in which the column's bus is at row 0
    real, physical = 0, 0
    last = max(s + f.x.shape[1] for s, f in zip(starts, folds, strict=True)) + rows + cols + 2
    for t in range(last):
        moved_x = [[None, *row[:-1]] for row in x]
        moved_w = [[None] * cols, *w[:-1]]
        for f, fold in enumerate(folds):
            for r in range(rows):
                j = t - starts[f] - r
                if 0 <= j < fold.x.shape[1]:
                    if moved_x[r][0] is not None:
                        raise Hazard("two inputs enter a row")
                    moved_x[r][0] = (f, j, int(fold.x[r, j]) if r < fold.x.shape[0] else 0)
            for c in range(cols):
                j = t - starts[f] - c
                if 0 <= j < fold.w.shape[0]:
                    if moved_w[0][c] is not None:
                        raise Hazard("two weights enter a column")
                    moved_w[0][c] = (f, j, int(fold.w[j, c]) if c < fold.w.shape[1] else 0)
        x, w = moved_x, moved_w
        for r in range(rows):
            for c in range(cols):
                if x[r][c] is None or w[r][c] is None:
                    continue
                f, j, value = x[r][c]
                if w[r][c][:2] != (f, j):
                    raise Hazard("operands of two products meet")
                total[r][c] = (0 if j == 0 else total[r][c]) + value * w[r][c][2]
                if j == folds[f].x.shape[1] - 1:
                    if r == 0:
                        if t < scan[c] + rows:
                            raise Hazard("the bus still scans the fold before")
                        scan[c] = t
                    if scan[c] + r != t:
                        raise Hazard("the bus is at another row")
                    physical = max(physical, t + 1)
                    if r < outputs[f].shape[0] and c < outputs[f].shape[1]:
                        outputs[f][r, c] = total[r][c]
                        real = max(real, t + 1)
    return outputs, real, physical


def serial_ws(folds: list[Fold], rows: int, cols: int):
    """Folds one after the other, the next only when the last physical element is done."""
    outputs, now = [], 0
    for fold in folds:
        out, _, physical = weight_stationary([fold], rows, cols, [0], [rows])
        outputs += out
        now += physical
    return outputs, now


def serial_os(folds: list[Fold], rows: int, cols: int):
    """As `serial_ws`, output stationary."""
    outputs, now = [], 0
    for fold in folds:
        out, _, physical = output_stationary([fold], rows, cols, [0])
        outputs += out
        now += physical
    return outputs, now


def earliest_ws(folds: list[Fold], rows: int, cols: int):
    """(outputs, cycles, loads, starts) with every fold as early as the grid allows: each start is tried one by one."""
    loads, starts = [0], []
    for f in range(len(folds)):
        if f > 0:
            loads.append(_first(lambda at: weight_stationary(
                folds[: f + 1], rows, cols, [*loads, at], [*starts, at + 10 * (rows + cols) + _length(folds)]
            ), loads[-1]))  # fmt: skip
        earliest = starts[-1] if starts else 0
        starts.append(_first(lambda at: weight_stationary(folds[: f + 1], rows, cols, loads, [*starts, at]), earliest))
    outputs, _, physical = weight_stationary(folds, rows, cols, loads, starts)
    return outputs, physical, loads, starts


def earliest_os(folds: list[Fold], rows: int, cols: int):
    """(outputs, cycles, starts) with every fold as early as the grid allows."""
    starts: list[int] = []
    for f in range(len(folds)):
        earliest = starts[-1] if starts else 0
        starts.append(_first(lambda at: output_stationary(folds[: f + 1], rows, cols, [*starts, at]), earliest))
    outputs, _, physical = output_stationary(folds, rows, cols, starts)
    return outputs, physical, starts


def _length(folds: list[Fold]) -> int:
    return sum(max(f.x.shape) + max(f.w.shape) for f in folds)


def _first(attempt, earliest: int) -> int:
    for at in range(earliest, earliest + 10_000):
        try:
            attempt(at)
        except Hazard:
            continue
        return at
    raise AssertionError("no start without a hazard")


def run(a: np.ndarray, b: np.ndarray, rows: int, cols: int, dataflow: str, timing: str, tiles: tuple[int, int, int]):
    """(a @ b, cycles) of the tiled product, tiles (m, k, n) in loop order m, n, k, folds of a tile row-major.

    Output stationary takes all of k in one stream.
    """
    if dataflow == "is":
        product, cycles = _run(b.T, a.T, rows, cols, "ws", timing, (tiles[2], tiles[1], tiles[0]), swap=True)
        return product.T, cycles
    return _run(a, b, rows, cols, dataflow, timing, tiles, swap=False)


def _cuts(size: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def _inside(outer: slice, step: int) -> list[slice]:
    return [slice(outer.start + s.start, outer.start + s.stop) for s in _cuts(outer.stop - outer.start, step)]


def _run(a, b, rows, cols, dataflow, timing, tiles, swap):
    m, k, n = a.shape[0], a.shape[1], b.shape[1]
    out = np.zeros((m, n), dtype=np.int64)
    folds, places = [], []
    first, second = (_cuts(n, tiles[2]), _cuts(m, tiles[0])) if swap else (_cuts(m, tiles[0]), _cuts(n, tiles[2]))
    for outer in first:
        for inner in second:
            tm, tn = (inner, outer) if swap else (outer, inner)
            if dataflow == "os":
                for fm in _inside(tm, rows):
                    for fn in _inside(tn, cols):
                        folds.append(Fold(a[fm], b[:, fn]))
                        places.append((fm, fn))
                continue
            for tk in _cuts(k, tiles[1]):
                for fk in _inside(tk, rows):
                    for fn in _inside(tn, cols):
                        folds.append(Fold(a[tm, fk], b[fk, fn]))
                        places.append((tm, fn))
    if dataflow == "os":
        outputs, cycles = serial_os(folds, rows, cols) if timing == "serial" else earliest_os(folds, rows, cols)[:2]
    else:
        outputs, cycles = serial_ws(folds, rows, cols) if timing == "serial" else earliest_ws(folds, rows, cols)[:2]
    for (i, j), value in zip(places, outputs, strict=True):
        out[i, j] += value
    return out, cycles
