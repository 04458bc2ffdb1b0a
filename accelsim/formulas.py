"""The scalar atoms of time, traffic and energy. Every model - analytic, events, sweep - computes with these.

Each function takes plain numbers, so that it runs stepwise in Python and, unchanged, inside compiled loops.
Symbols: R rows and C cols of one array; m, k, n of a GEMM (m, k) x (k, n).
"""

from __future__ import annotations

import math

from accelsim.jit import atom
from accelsim.work import Spelled


class Dataflow(Spelled):
    """Which operand stays in the processing elements. Spelled os, ws, is in files and on the command line."""

    OS = 0
    WS = 1
    IS = 2


class FoldTiming(Spelled):
    """How the folds of one array follow each other. Spelled serial, pipelined."""

    SERIAL = 0
    PIPELINED = 1


OS, WS, IS = int(Dataflow.OS), int(Dataflow.WS), int(Dataflow.IS)
SERIAL, PIPELINED = int(FoldTiming.SERIAL), int(FoldTiming.PIPELINED)


@atom
def ceil_div(a: int, b: int) -> int:
    """Smallest integer >= a / b, for integers a >= 0, b >= 1."""
    return -(-a // b)


@atom
def packed_bytes(elements: int, bits: int) -> int:
    """Bytes of `elements` numbers of `bits` each, packed without padding: ceil(elements bits / 8)."""
    return -(-(elements * bits) // 8)


@atom
def sum_bits(a_bits: int, w_bits: int, k: int) -> int:
    """Bits that hold any sum of k products of a_bits x w_bits, signed: a_bits + w_bits - 1 + bits of k."""
    bits = 0
    while k >> bits > 0:
        bits += 1
    return a_bits + w_bits - 1 + bits


@atom
def last_tile(size: int, tile: int) -> int:
    """Length of the last tile when `size` is cut into tiles of `tile`: equals `tile` where it divides."""
    return size - (ceil_div(size, tile) - 1) * tile


@atom
def transfer_cycles(nbytes: float, bytes_per_cycle: float) -> float:
    """Cycles, as a float, to move `nbytes` at `bytes_per_cycle`; latency not included."""
    return nbytes / bytes_per_cycle


# --- one systolic array -----------------------------------------------------------------------------------------


@atom
def fold_grid(dataflow: int, rows: int, cols: int, m: int, k: int, n: int) -> tuple[int, int, int]:
    """(folds down the rows, folds across the columns, streamed length) of a tile (m, k) x (k, n).

    Output stationary: ceil(m/R), ceil(n/C), k. Weight stationary: ceil(k/R), ceil(n/C), m.
    Input stationary: ceil(k/R), ceil(m/C), n.
    """
    if dataflow == OS:
        return ceil_div(m, rows), ceil_div(n, cols), k
    if dataflow == WS:
        return ceil_div(k, rows), ceil_div(n, cols), m
    return ceil_div(k, rows), ceil_div(m, cols), n


@atom
def fold_cycles(dataflow: int, timing: int, rows: int, cols: int, streamed: int) -> int:
    """Cycles from the start of one fold to the start of the next.

    serial: nothing overlaps, the full array is charged. Weight and input stationary 2R + C + streamed - 2: R to load,
    then the skewed stream. Output stationary streamed + R + C - 2. (Convention of SCALE-Sim, arXiv:1811.02883, whose
    printed totals are one less.)
    pipelined: the R-deep load chain (ws, is) or the one-result-per-cycle column bus scanning R rows (os) works behind
    the stream: max(streamed, R). The streamed length of a ragged tile is never rounded up.
    """
    if timing == PIPELINED:
        return max(streamed, rows)
    if dataflow == OS:
        return streamed + rows + cols - 2
    return 2 * rows + cols + streamed - 2


@atom
def pipeline_lead_cycles(dataflow: int, timing: int, rows: int) -> int:
    """Cycles before the first stream of an op can start: R to load the first stationary fold; 0 for os or serial."""
    return rows if timing == PIPELINED and dataflow != OS else 0


@atom
def pipeline_tail_cycles(timing: int, rows: int, cols: int, streamed: int) -> int:
    """Cycles from the end of the last stream until its last wavefront has left the array, less its idle interval.

    R + C - 2, whatever part of the array the last fold uses: an earlier fold may reach further. `fold_cycles` charged
    max(streamed, R) for the last fold, of which only `streamed` is spent. 0 for serial, which charges it in each fold.
    """
    if timing == SERIAL:
        return 0
    return rows + cols - 2 + streamed - max(streamed, rows)


@atom
def tile_array_cycles(
    dataflow: int, timing: int, rows: int, cols: int, arrays: int, instances: int, m: int, k: int, n: int
) -> int:
    """Steady cycles of one tile (m, k, n), `instances` of it, on `arrays` arrays that share its folds."""
    row_folds, col_folds, streamed = fold_grid(dataflow, rows, cols, m, k, n)
    return ceil_div(instances * row_folds * col_folds, arrays) * fold_cycles(dataflow, timing, rows, cols, streamed)


@atom
def input_reads(dataflow: int, rows: int, cols: int, m: int, k: int, n: int) -> int:
    """Elements of the (m, k) operand that the array reads from its buffer for one tile.

    is: once. os, ws: once for every fold across the columns.
    """
    return m * k if dataflow == IS else m * k * ceil_div(n, cols)


@atom
def weight_reads(dataflow: int, rows: int, cols: int, m: int, k: int, n: int) -> int:
    """Elements of the (k, n) operand read for one tile. ws: once. os: per row fold of m; is: per column fold of m."""
    if dataflow == WS:
        return k * n
    return k * n * ceil_div(m, rows if dataflow == OS else cols)


@atom
def accumulator_accesses(dataflow: int, rows: int, m: int, k: int, n: int, is_last_k: bool) -> int:
    """Reads, and equally many writes, of accumulators for one tile.

    ws, is: a partial sum per output and k fold is written; all but the first are read to be added to, and the finished
    sum is read to be drained, so reads equal writes. os: sums stay in the array; written and drained once.
    """
    if dataflow == OS:
        return m * n if is_last_k else 0
    return m * n * ceil_div(k, rows)


# --- traffic of a tiled GEMM ------------------------------------------------------------------------------------


@atom
def tiled_matrix_bytes(p: int, q: int, tile_p: int, tile_q: int, bits: int) -> int:
    """Bytes to move every tile of a (p, q) matrix once, each tile packed by itself."""
    full_p, full_q = ceil_div(p, tile_p) - 1, ceil_div(q, tile_q) - 1
    end_p, end_q = p - full_p * tile_p, q - full_q * tile_q
    return (
        full_p * full_q * packed_bytes(tile_p * tile_q, bits)
        + full_p * packed_bytes(tile_p * end_q, bits)
        + full_q * packed_bytes(end_p * tile_q, bits)
        + packed_bytes(end_p * end_q, bits)
    )


@atom
def operand_loads(n_outer: int, tiles_m: int, tiles_k: int, tiles_n: int) -> tuple[int, int]:
    """(times the input matrix is loaded, times the weight matrix is loaded) by the tile loops, k innermost.

    m outermost: the input tile row is kept over n only if it is one tile in k; the weights are loaded again for every
    m unless they are a single tile. n outermost: the same with the operands exchanged.
    """
    single_inner = tiles_k == 1
    if n_outer:
        return (1 if single_inner and tiles_m == 1 else tiles_n), (1 if single_inner else tiles_m)
    return (1 if single_inner else tiles_n), (1 if single_inner and tiles_n == 1 else tiles_m)


# --- overlap ----------------------------------------------------------------------------------------------------


@atom
def step_cycles(busy_cycles: float, transfer_cycles: float, latency_cycles: float) -> float:
    """Cycles, as a float, from one tile to the next in a double-buffered loop.

    max(busy, transfer, (busy + transfer + latency) / 2): the load of a tile may start only when the tile two before it
    is done, so that two steps can never be shorter than one load with its latency and one computation.
    """
    if transfer_cycles <= 0.0:
        return busy_cycles
    return max(busy_cycles, transfer_cycles, 0.5 * (busy_cycles + transfer_cycles + latency_cycles))


@atom
def exposed_latency_bound(latency_cycles: float, steps: int) -> float:
    """Most latency a loop of `steps` tiles can expose: first load, last store, half of one in each step between."""
    return 2.0 * latency_cycles + 0.5 * latency_cycles * (steps - 1)


@atom
def whole_cycles(cycles: float) -> int:
    """A float number of cycles as the next integer; what floating point leaves above an integer is not a cycle."""
    return math.ceil(cycles - 1e-6)


@atom
def share_start(total: int, parts: int, index: int) -> int:
    """Where part `index` starts when `total` bytes are dealt evenly to `parts` parts, larger parts first."""
    each = total // parts
    return index * each + min(index, total - each * parts)


# --- energy -----------------------------------------------------------------------------------------------------


@atom
def mac_pj(
    multiply_pj: float, accumulate_pj: float, input_bits: int, weight_bits: int, a_bits: int, w_bits: int
) -> float:
    """Energy of one multiply-accumulate in pJ on an array built for input_bits x weight_bits.

    The multiplier's share scales with the product of the operand widths, the accumulator's does not (assumed: Horowitz,
    ISSCC 2014, whose 8- and 32-bit integer multipliers differ by 15.5, the ratio of width products being 16).
    """
    return multiply_pj * (a_bits * w_bits) / (input_bits * weight_bits) + accumulate_pj
