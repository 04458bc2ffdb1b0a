"""The event model: the steps of every op on shared resources, in one small compiled loop.

Resources are one DRAM channel and the platform's units (array, vector, dma). Each unit takes its ops in graph order
and has a DMA queue that serves, step by step,

    parameters of the next step | operands of the next step | results of this step

so that loads run one step ahead (double buffering). The first operands of an op come after the results of the op
before it, and wait for the ops that make them; its first parameters do not, so they are prefetched. The channel serves
the queue whose request became ready first, one request at a time; a request's latency overlaps with later requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from accelsim.jit import atom, compiled

QUEUE_DTYPE = np.dtype(
    [
        ("row", np.int64),  # row whose step `step` is the current one, -1 before the first
        ("step", np.int64),
        ("place", np.int64),  # place of the next step's row in this unit's list of rows
        ("next_step", np.int64),
        ("phase", np.int64),  # 0 next parameters, 1 next operands (same row), 2 results, 3 next operands (new row)
        ("ready", np.float64),
        ("nbytes", np.float64),  # the pending request; < 0 while the queue waits for another unit
        ("parameters_end", np.float64),
        ("done_before", np.float64),  # when the unit finished the step before the current one
        ("done", np.float64),  # ... the current one
        ("done_next", np.float64),  # ... the next one
        ("stored_before", np.float64),  # when the results of the step before the current one had left
        ("stored", np.float64),
    ]
)


@dataclass(frozen=True)
class Timeline:
    """Times in cycles. start, finish: one per row. makespan: end of the last row.

    unit_busy: one per unit. compute_cycles: cycles in which at least one unit computes. serial_cycles: sum of all
    steps, transfers and latencies, the upper bound of any schedule.
    """

    start: np.ndarray
    finish: np.ndarray
    makespan: float
    dram_busy: float
    unit_busy: np.ndarray
    compute_cycles: float
    serial_cycles: float

    @property
    def busiest_cycles(self) -> float:
        """Busy time of the busiest resource: the lower bound of any schedule."""
        return max(self.dram_busy, float(self.unit_busy.max()))


def run(
    unit: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    after: list[list[int]],
    steps: np.ndarray,
    units: int,
    bytes_per_cycle: float,
    latency_cycles: float,
) -> Timeline:
    """Timeline of rows (one per work) that own steps[first : first + count] on a unit and wait for the rows in `after`.

    A row with no steps costs nothing and must not be waited for: its own `after` stands in for it.
    """
    rows = len(unit)
    pointer = np.zeros(rows + 1, np.int64)
    pointer[1:] = np.cumsum([len(a) for a in after])
    flat = np.array([i for a in after for i in a], np.int64)
    start, finish = np.zeros(rows), np.full(rows, -1.0)
    total = int(count.sum())
    spans = np.zeros((units, max(1, total), 2))
    span_count = np.zeros(units, np.int64)
    unit_busy = np.zeros(units)
    order = np.array([i for u in range(units) for i in range(rows) if unit[i] == u and count[i] > 0], np.int64)
    bounds = np.searchsorted(unit[order], np.arange(units + 1))
    dram_busy, serial = _loop(
        unit, first, count, pointer, flat, steps, order, bounds, bytes_per_cycle, latency_cycles,
        start, finish, unit_busy, spans, span_count,
    )  # fmt: skip
    for i in range(rows):
        if count[i] == 0:
            start[i] = finish[i] = max((finish[j] for j in after[i]), default=0.0)
    merged = np.concatenate([spans[u, : span_count[u]] for u in range(units)])
    return Timeline(
        start, finish, float(finish.max()), dram_busy, unit_busy, _covered(merged[np.argsort(merged[:, 0])]), serial
    )


@compiled
def _covered(spans: Any) -> float:
    """Length of the union of intervals sorted by start."""
    covered, end = 0.0, 0.0
    for i in range(len(spans)):
        covered += max(0.0, spans[i, 1] - max(end, spans[i, 0]))
        end = max(end, spans[i, 1])
    return covered


@atom
def _request(
    q: Any, rows: Any, bounds_end: int, first: Any, count: Any, pointer: Any, flat: Any, steps: Any, finish: Any
) -> Any:
    """(state, ready, bytes) of a queue's next request. state: 0 pending, 1 waiting for another unit, 2 all done."""
    has_next = q.place < bounds_end
    if not has_next and q.row < 0:
        return 2, 0.0, 0.0
    new_row = has_next and q.next_step == 0
    if q.phase == 0:
        if not has_next:
            return 0, 0.0, 0.0
        return 0, q.done_before, steps[first[rows[q.place]] + q.next_step].prefetch_bytes
    if q.phase == 1:
        if not has_next or new_row:
            return 0, 0.0, 0.0
        return 0, q.done_before, steps[first[rows[q.place]] + q.next_step].load_bytes
    if q.phase == 2:
        if q.row < 0:
            return 0, 0.0, 0.0
        return 0, q.done, steps[first[q.row] + q.step].store_bytes
    if not new_row:
        return 0, 0.0, 0.0
    ready = q.done_before
    row = rows[q.place]
    for i in range(pointer[row], pointer[row + 1]):
        if finish[flat[i]] < 0:
            return 1, 0.0, 0.0
        ready = max(ready, finish[flat[i]])
    return 0, ready, steps[first[row]].load_bytes


@compiled
def _loop(
    unit: Any, first: Any, count: Any, pointer: Any, flat: Any, steps: Any, order: Any, bounds: Any,
    bytes_per_cycle: float, latency: float, start: Any, finish: Any, unit_busy: Any, spans: Any, span_count: Any,
) -> Any:  # fmt: skip
    """Fill start, finish, unit_busy and spans; (busy cycles of the channel, sum of all steps and requests)."""
    queues = np.zeros(len(bounds) - 1, QUEUE_DTYPE)
    for u in range(len(queues)):
        queues[u].row = -1
        queues[u].place = bounds[u]
    free, dram_busy, serial = 0.0, 0.0, 0.0
    while True:
        chosen, chosen_ready, chosen_bytes, all_done = -1, np.inf, 0.0, True
        for u in range(len(queues)):
            q = queues[u]
            state, ready, nbytes = _request(q, order, bounds[u + 1], first, count, pointer, flat, steps, finish)
            if state == 2:
                continue
            all_done = False
            if state == 0 and nbytes <= 0.0:
                chosen, chosen_ready, chosen_bytes = u, ready, 0.0
                break
            if state == 0 and ready < chosen_ready:
                chosen, chosen_ready, chosen_bytes = u, ready, nbytes
        if all_done:
            return dram_busy, serial
        assert chosen >= 0, "every queue waits for another"
        q = queues[chosen]
        left, arrived = chosen_ready, chosen_ready
        if chosen_bytes > 0.0:
            duration = chosen_bytes / bytes_per_cycle
            left = max(free, chosen_ready) + duration
            arrived = left + latency
            free = left
            dram_busy += duration
            serial += duration + latency
        if q.phase == 0:
            q.parameters_end = arrived
            q.phase = 1
            continue
        has_next = q.place < bounds[chosen + 1]
        loads_here = has_next and (q.phase == 1) == (q.next_step > 0) and q.phase != 2
        if loads_here:
            row = order[q.place]
            s = first[row] + q.next_step
            begin = max(max(q.parameters_end, arrived), max(q.done, q.stored_before))
            end = begin + steps[s].busy_cycles
            q.done_next = end
            if q.next_step == 0:
                start[row] = begin
            unit_busy[chosen] += end - begin
            serial += end - begin
            c = span_count[chosen]
            if c > 0 and spans[chosen, c - 1, 1] >= begin:
                spans[chosen, c - 1, 1] = end
            else:
                spans[chosen, c, 0], spans[chosen, c, 1] = begin, end
                span_count[chosen] = c + 1
        if q.phase == 2:
            q.stored = left
            if q.row >= 0 and q.step == count[q.row] - 1:
                finish[q.row] = max(arrived, q.done)
        if q.phase < 3:
            q.phase += 1
            continue
        q.phase = 0
        q.done_before, q.done = q.done, q.done_next
        q.stored_before = q.stored
        if not has_next:
            q.row = -1
            continue
        q.row, q.step = order[q.place], q.next_step
        q.next_step += 1
        if q.next_step == count[q.row]:
            q.next_step = 0
            q.place += 1
