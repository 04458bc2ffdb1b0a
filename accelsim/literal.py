"""The literal array: processing elements (PEs) stepped cycle by cycle, small enough to look at, exact in every value.

No timing formula is written here. Operands move by one wire a cycle, and what comes out, and when, is read off; that
is why the formulas of `accelsim.formulas` can be tested against it. In cycle t the records hold what every PE has at
the end of that cycle.

- Weight stationary (ws). b enters at the top of each column, one row a cycle, column c one cycle after column c - 1,
  each value tagged with the row it is for; values move down a row a cycle and wait in that row behind the weight in
  use. a enters at the left, row r one cycle after row r - 1. The first element of a fold makes a PE take over the
  waiting weight. Partial sums move down and leave at the foot; sums of several k folds are added outside the array.
- Input stationary (is). The same array computes the transposed product: a is held, b streams.
- Output stationary (os). a enters at the left, b at the top, both skewed; each PE adds up its own result. A column
  hands results out over one bus whose pointer scans all rows, one a cycle, and starts with the first result.

The array is charged as a whole: a fold that uses part of it is padded with zeros, and a run is over when its last
wavefront has left, through PEs that the last fold may not use.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from accelsim.errors import SpecError
from accelsim.formulas import Dataflow, FoldTiming
from accelsim.work import Spelled

MAX_PE_CYCLES = 2**18
"""Largest trace: PEs times cycles, or multipliers times cycles. A teaching tool, not a simulator."""

S = TypeVar("S", bound=Spelled)


class Hazard(Exception):
    """Two values in one place, or an operand that is not there."""


# --- folds ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fold:
    """One pass through the array: product[m, n] += a[m, k] @ b[k, n]."""

    m: slice
    k: slice
    n: slice
    left: np.ndarray
    """(rows in use, streamed): row r enters at the left of array row r."""
    top: np.ndarray
    """What enters at the top: os (streamed, cols in use); ws, is (rows in use, cols in use), held by the PEs."""


def cuts(whole: slice, step: int) -> list[slice]:
    """`whole` in pieces of `step`, the last as long as what is left.

    >>> cuts(slice(3, 8), 2)
    [slice(3, 5, None), slice(5, 7, None), slice(7, 8, None)]
    """
    return [slice(i, min(i + step, whole.stop)) for i in range(whole.start, whole.stop, step)]


def cut(
    a: np.ndarray, b: np.ndarray, rows: int, cols: int, dataflow: Dataflow, m: slice, k: slice, n: slice
) -> list[Fold]:
    """Folds of the block (m, k, n) of a @ b in their order: down the array's rows outermost, across its columns."""
    if dataflow is Dataflow.OS:
        return [Fold(i, k, j, a[i, k], b[k, j]) for i in cuts(m, rows) for j in cuts(n, cols)]
    if dataflow is Dataflow.WS:
        return [Fold(m, i, j, a[m, i].T, b[i, j]) for i in cuts(k, rows) for j in cuts(n, cols)]
    return [Fold(j, i, n, b[i, n], a[j, i].T) for i in cuts(k, rows) for j in cuts(m, cols)]


# --- the array --------------------------------------------------------------------------------------------------


class Token(NamedTuple):
    """A number in a register: its fold, its place in the stream (or the row it is to be held in), its value."""

    fold: int
    place: int
    value: int


Registers = list[list[Token | None]]
"""One register of every PE, [row][col]; None where nothing is held."""


class Snapshot(NamedTuple):
    """All registers at the end of a cycle: the operands from the left and from the top, and as in `SystolicTrace`."""

    left: Registers
    top: Registers
    partial: Registers
    loading: Registers
    waiting: Registers


def step(
    dataflow: Dataflow, folds: Sequence[Fold], rows: int, cols: int, loads: Sequence[int], starts: Sequence[int]
) -> tuple[list[np.ndarray], int, list[Snapshot]]:
    """(result of each fold, cycles until the last wavefront has left, all registers in each cycle).

    Fold f enters at the left of row 0 in cycle starts[f] and at the top of column 0 in loads[f]; in output stationary,
    where both stream, the two are equal. Raises Hazard where that schedule cannot work.
    """
    own_sum = dataflow is Dataflow.OS
    streamed = [fold.left.shape[1] for fold in folds]
    from_left = _lanes(rows, starts, [(fold.left, fold.left.shape[1]) for fold in folds])
    from_top = _lanes(cols, loads, [(fold.top.T, len(fold.top) if own_sum else rows) for fold in folds])
    outputs = [np.zeros((len(f.left) if own_sum else f.left.shape[1], f.top.shape[1]), np.int64) for f in folds]
    left, loading, held, waiting, partial = (_empty(rows, cols) for _ in range(5))
    bus = [0] * cols  # cycle in which the bus of the column was last at row 0
    pes = list(product(range(rows), range(cols)))
    cycles, snapshots = 0, []
    for t in range(1 + max(max(lane) for lane in from_left + from_top) + rows + cols):
        # Every wire moves by one PE; the other registers keep what they hold.
        left = [[from_left[r].get(t), *row[:-1]] for r, row in enumerate(left)]
        loading = [[lane.get(t) for lane in from_top], *(row[:] for row in loading[:-1])]
        above = _empty(1, cols) + partial[:-1]
        held, waiting = [row[:] for row in held], [row[:] for row in waiting]
        partial = [row[:] for row in partial] if own_sum else _empty(rows, cols)
        for r, c in pes:
            x = left[r][c]
            if x is None:
                continue
            if own_sum:  # b comes along; the sum is that of the place before, in this PE
                w, wanted, before, expected = loading[r][c], (x.fold, x.place), partial[r][c], (x.fold, x.place - 1)
                is_first, is_last = x.place == 0, x.place == streamed[x.fold] - 1
            else:  # the other operand is held, tagged with this row; the sum comes from the PE above
                if x.place == 0:
                    held[r][c], waiting[r][c] = waiting[r][c], None
                w, wanted, before, expected = held[r][c], (x.fold, r), above[r][c], (x.fold, x.place)
                is_first, is_last = r == 0, r == rows - 1
            if is_first:
                before = Token(*expected, 0)
            if w is None or w[:2] != wanted or before is None or before[:2] != expected:
                raise Hazard("an operand, or the sum it adds to, is not in the PE")
            result = before.value + x.value * w.value
            partial[r][c] = Token(x.fold, x.place, result)
            if not is_last:
                continue
            if own_sum and r == 0:
                bus[c] = t
            if own_sum and t != bus[c] + r:
                raise Hazard("the bus of the column is at another row")
            cycles = t + 1
            output, i = outputs[x.fold], r if own_sum else x.place
            if i < output.shape[0] and c < output.shape[1]:
                output[i, c] = result
        for r, c in () if own_sum else pes:  # at the end of the cycle, so that it can be taken over in the next
            arrived = loading[r][c]
            if arrived is not None and arrived.place == r:
                waiting[r][c], loading[r][c] = arrived, None
        top, loads_shown = (loading, _empty(rows, cols)) if own_sum else (held, loading)
        snapshots.append(Snapshot(left, top, partial, loads_shown, waiting))
    return outputs, cycles, snapshots[:cycles]


def _lanes(count: int, firsts: Sequence[int], streams: Sequence[tuple[np.ndarray, int]]) -> list[dict[int, Token]]:
    """What enters each lane in which cycle: stream f from firsts[f], a lane one cycle behind the lane before.

    A stream is a matrix (lanes in use, places) and the places of a lane; both directions are padded with zeros.
    """
    lanes: list[dict[int, Token]] = [{} for _ in range(count)]
    for f, (first, (matrix, places)) in enumerate(zip(firsts, streams, strict=True)):
        padded = np.pad(matrix, ((0, count - matrix.shape[0]), (0, places - matrix.shape[1])))
        for (lane, place), value in np.ndenumerate(padded):
            if first + lane + place in lanes[lane]:
                raise Hazard("two values enter a lane")
            lanes[lane][first + lane + place] = Token(f, place, int(value))
    return lanes


def _empty(rows: int, cols: int) -> Registers:
    return [[None] * cols for _ in range(rows)]


# --- when folds start: found by trying --------------------------------------------------------------------------


def schedule(
    dataflow: Dataflow, timing: FoldTiming, folds: Sequence[Fold], rows: int, cols: int
) -> tuple[list[int], list[int]]:
    """(loads, starts) of every fold, in cycles, each as early as the array allows.

    serial: a fold waits until the one before has left the array. pipelined: until it no longer meets a hazard with the
    one before. Hazards depend on shapes, not on values, and waiting longer never brings one back; so the first cycle
    without one is found by bisection. `step` checks the whole schedule again.
    """
    loads: list[int] = []
    starts: list[int] = []
    now = 0  # serial: the array is empty from here on. pipelined: load of the fold before
    before: tuple[Shapes, int] | None = None
    for fold in folds:
        shapes = fold.left.shape, fold.top.shape
        load, start, end = _earliest(dataflow, rows, cols, before, shapes)
        loads.append(now + load)
        starts.append(now + start)
        if timing is FoldTiming.SERIAL:
            now += end
        else:
            now, before = now + load, (shapes, start - load)
    return loads, starts


Shapes = tuple[tuple[int, ...], tuple[int, ...]]


@lru_cache(1024)
def _earliest(
    dataflow: Dataflow, rows: int, cols: int, before: tuple[Shapes, int] | None, shapes: Shapes
) -> tuple[int, int, int]:
    """Earliest (load, start) of a fold and the cycle in which it has left.

    It follows a fold that loads in cycle 0, given by its shapes and its start, or nothing.
    """
    first_starts = [before[1]] if before else []
    folds = [_zeros(*s) for s in ([before[0], shapes] if before else [shapes])]
    far = sum(fold.left.shape[1] for fold in folds) + sum(first_starts) + 4 * (rows + cols)

    def run_from(load: int, start: int) -> int:
        return step(dataflow, folds, rows, cols, [0] * len(first_starts) + [load], [*first_starts, start])[1]

    def works(load: int, start: int) -> bool:
        try:
            run_from(load, start)
        except Hazard:
            return False
        return True

    if dataflow is Dataflow.OS:
        load = start = _first(far, lambda t: works(t, t))
    else:
        load = _first(far, lambda t: works(t, t + far))
        start = load + _first(far, lambda t: works(load, load + t))
    return load, start, run_from(load, start)


def _first(far: int, works: Callable[[int], bool]) -> int:
    end = 1
    while end < far and not works(end):
        end *= 2
    return bisect_left(range(end), True, key=works)


def _zeros(left: tuple[int, ...], top: tuple[int, ...]) -> Fold:
    return Fold(slice(0), slice(0), slice(0), np.zeros(left, np.int64), np.zeros(top, np.int64))


# --- the public trace -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class SystolicTrace:
    """A product and what each PE held in each cycle. Records are (cycles, rows, cols); masked: the register is empty.

    `print(trace)` writes out every cycle, `print(trace.show(t))` one of them.
    """

    dataflow: Dataflow
    fold_timing: FoldTiming
    rows: int
    cols: int
    product: np.ndarray
    """(m, n) int64."""
    cycles: int
    """From the first value that enters until the last wavefront has left."""
    folds: tuple[Fold, ...]
    """In order of execution; several k folds add to the same part of the product."""
    loads: tuple[int, ...]
    """Cycle in which each fold's values begin to enter at the top of column 0."""
    starts: tuple[int, ...]
    """Cycle in which each fold's stream begins to enter at the left of row 0."""
    a: np.ma.MaskedArray
    """Element of a in the PE: passing (os, ws) or held (is). Zero where the fold is padded."""
    b: np.ma.MaskedArray
    """Element of b in the PE: passing (os, is) or held (ws). Zero where the fold is padded."""
    partial: np.ma.MaskedArray
    """Sum after this cycle's product: on its way down (ws, is) or the PE's own (os)."""
    loading: np.ma.MaskedArray
    """ws, is: a value on its way down to the row where it will be held."""
    waiting: np.ma.MaskedArray
    """ws, is: the value of the next fold, ready in the PE."""
    busy: np.ndarray
    """(cycles, rows, cols) bool: the PE multiplies two elements of a and b, not padding."""

    @property
    def utilization(self) -> np.ndarray:
        """(cycles,) share of busy PEs in each cycle, 0 to 1; its mean is m k n / (cycles rows cols)."""
        return np.asarray(self.busy.mean(axis=(1, 2)))

    def show(self, cycle: int) -> str:
        """One cycle as text, a line for each row of PEs; a register that is empty is left out, an empty PE is a dot."""
        _check_cycle(cycle, self.cycles)
        names = {"a": self.a, "b": self.b, "sum": self.partial, "load": self.loading, "next": self.waiting}
        cells = [
            [
                " ".join(f"{name}={v[cycle, r, c]}" for name, v in names.items() if not np.ma.is_masked(v[cycle, r, c]))
                for c in range(self.cols)
            ]
            for r in range(self.rows)
        ]
        width = max(len(cell) for row in cells for cell in row)
        head = f"cycle {cycle} of {self.cycles}, {self.busy[cycle].sum()} of {self.rows * self.cols} PEs busy"
        lines = (" | ".join(f"{cell or '.':{width}}" for cell in row) for row in cells)
        return "\n".join([head, *(f"  {line.rstrip()}" for line in lines)])

    def __str__(self) -> str:
        return "\n".join(self.show(t) for t in range(self.cycles))


def systolic_trace(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    rows: int,
    cols: int,
    dataflow: str | Dataflow,
    fold_timing: str | FoldTiming = "serial",
) -> SystolicTrace:
    """The product of a (m, k) and b (k, n), and what each PE of a rows x cols array holds in each cycle.

    dataflow: os, ws or is, see the top of this file. fold_timing: serial (a fold enters when the one before has left)
    or pipelined (as early as no two values meet). Operands larger than the array are cut into folds: os (rows of a,
    columns of b), ws (k, columns of b), is (k, rows of a).

    Raises SpecError for operands that are not 2-D, not integers of 32 bits, empty or do not fit together, a sum that
    could leave int64, and a trace above MAX_PE_CYCLES.

    >>> trace = systolic_trace([[1, 2], [3, 4]], [[5, 6], [7, 8]], rows=2, cols=2, dataflow="ws")
    >>> trace.product.tolist(), trace.cycles
    ([[19, 22], [43, 50]], 6)
    >>> print(trace.show(3))
    cycle 3 of 6, 3 of 4 PEs busy
      a=3 b=5 sum=15 | a=1 b=6 sum=6
      a=2 b=7 sum=19 | next=8
    >>> print(trace.a[3])
    [[3 1]
     [2 --]]
    """
    flow, timing = _spelled("dataflow", Dataflow, dataflow), _spelled("fold_timing", FoldTiming, fold_timing)
    rows, cols = _count("rows", rows), _count("cols", cols)
    left, right = _integers("a", a, 2, -(2**31), 2**31 - 1), _integers("b", b, 2, -(2**31), 2**31 - 1)
    (m, k), n = left.shape, right.shape[1]
    if right.shape[0] != k:
        raise SpecError("b.shape", right.shape, f"({k}, n): as many rows as a has columns")
    largest = k * int(np.abs(left).max()) * int(np.abs(right).max())
    if largest >= 2**63:
        raise SpecError("k max|a| max|b|", largest, "less than 2^63, so that no sum leaves int64")
    if m * k * n > MAX_PE_CYCLES:
        raise SpecError("m k n", m * k * n, f"at most {MAX_PE_CYCLES} products")
    folds = cut(left, right, rows, cols, flow, slice(0, m), slice(0, k), slice(0, n))
    return run(folds, m, n, rows, cols, flow, timing)


def run(
    folds: Sequence[Fold], m: int, n: int, rows: int, cols: int, dataflow: Dataflow, timing: FoldTiming
) -> SystolicTrace:
    """The trace of any folds in their order, whose results add up to an (m, n) product."""
    most = sum(fold.left.shape[1] + 2 * (rows + cols) for fold in folds) * rows * cols
    if most > MAX_PE_CYCLES:
        legal = f"at most {MAX_PE_CYCLES}: the sum over folds of (streamed + 2 (rows + cols)) rows cols"
        raise SpecError("rows, cols and shapes", most, legal)
    loads, starts = schedule(dataflow, timing, folds, rows, cols)
    outputs, cycles, snapshots = step(dataflow, folds, rows, cols, loads, starts)
    total = np.zeros((m, n), np.int64)
    for fold, output in zip(folds, outputs, strict=True):
        total[fold.m, fold.n] += output.T if dataflow is Dataflow.IS else output
    used = [(fold.left.shape[0], fold.top.shape[1]) for fold in folds]
    busy = [
        [
            [x is not None and r < used[x.fold][0] and c < used[x.fold][1] for c, x in enumerate(row)]
            for r, row in enumerate(snapshot.left)
        ]
        for snapshot in snapshots
    ]
    left, top, partial, loading, waiting = (
        _masked([[[x and x.value for x in row] for row in grid] for grid in history])
        for history in zip(*snapshots, strict=True)
    )
    return SystolicTrace(
        dataflow=dataflow,
        fold_timing=timing,
        rows=rows,
        cols=cols,
        product=total,
        cycles=cycles,
        folds=tuple(folds),
        loads=tuple(loads),
        starts=tuple(starts),
        a=top if dataflow is Dataflow.IS else left,
        b=left if dataflow is Dataflow.IS else top,
        partial=partial,
        loading=loading,
        waiting=waiting,
        busy=np.array(busy),
    )


# --- the bit-split inner product --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class BimTrace:
    """An inner product and what each multiplier did in each cycle. Masked: the multiplier is idle.

    Multipliers 0 to M/2 - 1 feed adder tree 0, the others tree 1.
    """

    value: int
    """sum a[i] w[i]."""
    cycles: int
    """Beats: one set of operands enters in each cycle. Filling the pipeline (`tree_levels`, the shift-add and the
    accumulator) is not counted: a BIM that is fed without gaps hides it."""
    tree_levels: int
    """Adders one behind the other in a tree: ceil(log2(M/2))."""
    shift: int
    """Places by which the sum of tree 1 is shifted left: 4 where it adds the high nibbles, else 0."""
    a: np.ma.MaskedArray
    """(cycles, M) activation at each multiplier."""
    nibbles: np.ma.MaskedArray
    """(cycles, M) weight at each multiplier: -8 to 7; 0 to 15 for low nibbles."""
    products: np.ma.MaskedArray
    """(cycles, M)."""
    trees: np.ndarray
    """(cycles, 2) sum of each adder tree."""
    sums: np.ndarray
    """(cycles,) trees[:, 0] + (trees[:, 1] << shift)."""
    accumulator: np.ndarray
    """(cycles,) running total of `sums`, int64: what the hardware's accumulator may hold is not modelled."""

    @property
    def utilization(self) -> np.ndarray:
        """(cycles,) share of multipliers with operands in each cycle, 0 to 1."""
        return np.asarray(1 - np.ma.getmaskarray(self.products).mean(axis=1))

    def show(self, cycle: int) -> str:
        """One cycle as text: a line for each adder tree, a dot for an idle multiplier, then shift-add and total."""
        _check_cycle(cycle, self.cycles)
        operands = list(zip(self.a[cycle], self.nibbles[cycle], self.products[cycle], strict=True))
        texts = ["." if np.ma.is_masked(x) else f"{x}*{w}={p}" for x, w, p in operands]
        half, width = len(texts) // 2, max(map(len, texts))
        (low, high), total = self.trees[cycle], self.accumulator[cycle]
        return "\n".join([
            f"cycle {cycle} of {self.cycles}, {sum(t != '.' for t in texts)} of {len(texts)} multipliers busy",
            f"  tree 0: {' | '.join(f'{t:{width}}' for t in texts[:half])} -> {low}",
            f"  tree 1: {' | '.join(f'{t:{width}}' for t in texts[half:])} -> {high}",
            f"  {low} + ({high} << {self.shift}) = {self.sums[cycle]}, accumulator {total}",
        ])  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(self.show(t) for t in range(self.cycles))


def bim_trace(a: npt.ArrayLike, w: npt.ArrayLike, multipliers: int, w_bits: int) -> BimTrace:
    """The inner product of activations a (k,) and weights w (k,) by the bit-split module (BIM) of FQ-BERT.

    `multipliers`, M, of 8 x 4 bit in two adder trees (arXiv:2103.02800). 8-bit weights: M/2 products a cycle, a weight
    split into its low nibble (unsigned, tree 0) and its high nibble (signed, tree 1, shifted left by 4). 4-bit weights:
    M products a cycle, no shift. 2-bit weights: as 4-bit, the sign extended to a nibble (assumed: the paper has none).
    Activations are all int8 or all uint8. What is left at the end leaves multipliers idle.

    Raises SpecError for operands that are not 1-D, not integers, empty, unequal in length or too wide; `multipliers`
    odd or < 2; `w_bits` not 2, 4 or 8; cycles times multipliers above MAX_PE_CYCLES.

    >>> trace = bim_trace([100, -3, 7], [-77, 5, 127], multipliers=4, w_bits=8)
    >>> trace.value, trace.cycles
    (-6826, 2)
    >>> print(trace.show(0))
    cycle 0 of 2, 4 of 4 multipliers busy
      tree 0: 100*3=300   | -3*5=-15    -> 285
      tree 1: 100*-5=-500 | -3*0=0      -> -500
      285 + (-500 << 4) = -7715, accumulator -7715
    """
    multipliers = _count("multipliers", multipliers)
    if multipliers % 2:
        raise SpecError("multipliers", multipliers, "an even integer >= 2, half of them for each adder tree")
    if not isinstance(w_bits, int | np.integer) or w_bits not in (2, 4, 8):
        raise SpecError("w_bits", w_bits, "2, 4 or 8")
    x, weights = _integers("a", a, 1, -128, 255), _integers("w", w, 1, -(2 ** (w_bits - 1)), 2 ** (w_bits - 1) - 1)
    if weights.shape != x.shape:
        raise SpecError("w.shape", weights.shape, f"{x.shape}: one weight for each activation")
    if x.min() < 0 and x.max() > 127:
        raise SpecError("a", [int(x.min()), int(x.max())], "all in -128 to 127, or all in 0 to 255")
    parts = len(split(0, w_bits))
    half, at_once, shift = multipliers // 2, multipliers // parts, 4 * (parts - 1)
    beats = range(0, len(x), at_once)
    if len(beats) * multipliers > MAX_PE_CYCLES:
        raise SpecError("cycles multipliers", len(beats) * multipliers, f"at most {MAX_PE_CYCLES}")
    activations, nibbles, products, trees = [], [], [], []
    for beat in beats:
        entering = zip(x[beat : beat + at_once].tolist(), weights[beat : beat + at_once].tolist(), strict=True)
        pairs = [(activation, split(weight, w_bits)) for activation, weight in entering]
        idle = [None] * (at_once - len(pairs))
        operands = [y for part in range(parts) for y in [*((value, *bits[part]) for value, bits in pairs), *idle]]
        activations.append([y and y[0] for y in operands])
        nibbles.append([y and multiply_8x4(1, *y[1:]) for y in operands])
        products.append([y and multiply_8x4(*y) for y in operands])
        trees.append([adder_tree([p or 0 for p in side]) for side in (products[-1][:half], products[-1][half:])])
    sums = [low + (high << shift) for (low, _), (high, _) in trees]
    return BimTrace(
        value=sum(sums),
        cycles=len(beats),
        tree_levels=trees[0][0][1],
        shift=shift,
        a=_masked(activations),
        nibbles=_masked(nibbles),
        products=_masked(products),
        trees=np.array([[low, high] for (low, _), (high, _) in trees], np.int64),
        sums=np.array(sums, np.int64),
        accumulator=np.cumsum(sums, dtype=np.int64),
    )


def split(w: int, w_bits: int) -> list[tuple[int, bool]]:
    """(nibble as 4 bits, is it signed) of a weight, low nibble first; 2 and 4 bits are one nibble.

    >>> split(-77, 8), split(-2, 2)
    ([(3, False), (11, True)], [(14, True)])
    """
    return [(w & 15, False), (w >> 4 & 15, True)] if w_bits == 8 else [(w & 15, True)]


def multiply_8x4(a: int, nibble: int, is_signed: bool) -> int:
    """a times 4 bits, the highest of which counts -8 where the nibble is signed: a sum of shifted a.

    >>> multiply_8x4(100, 0b1011, True), multiply_8x4(100, 0b1011, False)
    (-500, 1100)
    """
    rows = [a << i if nibble >> i & 1 else 0 for i in range(4)]
    return sum(rows[:3]) + (-rows[3] if is_signed else rows[3])


def adder_tree(values: Sequence[int]) -> tuple[int, int]:
    """(sum, levels): neighbours are added in pairs until one is left.

    >>> adder_tree([1, 2, 3, 4, 5])
    (15, 3)
    """
    levels = 0
    while len(values) > 1:
        values = [sum(values[i : i + 2]) for i in range(0, len(values), 2)]
        levels += 1
    return values[0], levels


def _masked(values: Any) -> np.ma.MaskedArray:
    """Nested lists of integers as int64, None masked."""
    mask = np.isnan(np.array(values, float))  # None becomes nan
    return np.ma.MaskedArray(np.where(mask, 0, np.array(values, object)).astype(np.int64), mask)


# --- input ------------------------------------------------------------------------------------------------------


def _spelled(path: str, names: type[S], value: str | S) -> S:
    known = {member.name.lower(): member for member in names}
    found = value if isinstance(value, names) else known.get(str(value))
    if found is None:
        raise SpecError.unknown(path, value, known)
    return found


def _count(path: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise SpecError(path, value, "an integer >= 1")
    return int(value)


def _integers(path: str, value: npt.ArrayLike, dimensions: int, low: int, high: int) -> np.ndarray:
    """`value` as int64, checked: number of dimensions, not empty, an integer type, low to high."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise SpecError(path, "rows of different lengths", "a rectangular array of integers") from None
    if array.ndim != dimensions or array.size == 0:
        raise SpecError(f"{path}.shape", array.shape, f"{dimensions} dimensions, none of them 0")
    if array.dtype.kind not in "iu":
        raise SpecError(f"{path}.dtype", str(array.dtype), "integers")
    for extreme in (int(array.min()), int(array.max())):
        if not low <= extreme <= high:
            raise SpecError(path, extreme, f"integers from {low} to {high}")
    return array.astype(np.int64)


def _check_cycle(cycle: int, cycles: int) -> None:
    if not 0 <= cycle < cycles:
        raise SpecError("cycle", cycle, f"0 to {cycles - 1}")
