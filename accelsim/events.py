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
        (
            "phase",
            np.int64,
        ),  # 0 next parameters, 1 next operands (same row), 2 results, 3 next operands (new row), 4 done
        ("ready", np.float64),
        ("nbytes", np.float64),  # the pending request; < 0 while the queue waits for another unit
        ("parameters_end", np.float64),
        ("done_before", np.float64),  # when the unit finished the step before the current one
        ("done", np.float64),  # ... the current one
        ("done_next", np.float64),  # ... the next one
        ("stored_before", np.float64),  # when the results of the step before the current one had left
        ("stored", np.float64),
        ("spans", np.int64),  # intervals in which the unit was busy
    ]
)


@dataclass(frozen=True)
class Timeline:
    """Times in cycles. start, finish: one per row, from its first operands on the channel to its last result stored;
    parameters that were prefetched are not waited for. makespan: end of the last row.

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
    shortcut: bool = True,
) -> Timeline:
    """Timeline of rows (one per work) that own steps[first : first + count] on a unit and wait for the rows in `after`.

    A row with no steps costs nothing and must not be waited for: its own `after` stands in for it. shortcut: run the
    rest of a row in one go while no other queue has a request; the times are the same without it.
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
        start, finish, unit_busy, spans, span_count, shortcut,
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
def _request(q: Any, rows: Any, end: int, first: Any, pointer: Any, flat: Any, steps: Any, finish: Any) -> Any:
    """Set the `ready` time and `nbytes` of a queue's next request; nbytes -1 while it waits for another unit's row."""
    has_next = q.place < end
    if q.phase == 0:
        q.ready = q.done_before
        q.nbytes = steps[first[rows[q.place]] + q.next_step].prefetch_bytes if has_next else 0.0
    elif q.phase == 1:
        q.ready = q.done_before
        q.nbytes = 0.0
        if has_next and q.next_step > 0:
            q.nbytes = steps[first[rows[q.place]] + q.next_step].load_bytes
    elif q.phase == 2:
        q.ready = q.done
        q.nbytes = steps[first[q.row] + q.step].store_bytes if q.row >= 0 else 0.0
    else:
        q.ready = q.done_before
        q.nbytes = 0.0
        if has_next and q.next_step == 0:
            row = rows[q.place]
            for i in range(pointer[row], pointer[row + 1]):
                if finish[flat[i]] < 0:
                    q.nbytes = -1.0
                    return
                q.ready = max(q.ready, finish[flat[i]])
            q.nbytes = steps[first[row]].load_bytes


@atom
def _add_span(spans: Any, count: int, begin: float, end: float) -> int:
    """Append [begin, end), or grow the last interval if it touches; how many there are now."""
    if count > 0 and spans[count - 1, 1] >= begin:
        spans[count - 1, 1] = end
        return count
    spans[count, 0], spans[count, 1] = begin, end
    return count + 1


@atom
def _is_alone(queues: Any, chosen: int) -> bool:
    """True if every other queue is done or waits for a row, so that none can ask before this one ends its row."""
    others = 0
    for u in range(len(queues)):
        if u != chosen and queues[u].phase != 4 and queues[u].nbytes >= 0.0:
            others += 1
    return others == 0


@atom
def _rest_of_row(
    q: Any, steps: Any, base: int, count: int, bytes_per_cycle: float, latency: float, free: float, spans: Any
) -> Any:
    """Take the queue to the last step of its row. (channel free at, transfer cycles, latencies, busy cycles)."""
    transfers, requests, busy_sum = 0.0, 0, 0.0
    done_before, done, stored_before = q.done_before, q.done, q.stored_before
    for s in range(q.next_step, count):
        arrived, nbytes = done_before, steps[base + s].load_bytes
        if nbytes > 0.0:
            free = max(free, done_before) + nbytes / bytes_per_cycle
            arrived = free + latency
            transfers += nbytes / bytes_per_cycle
            requests += 1
        begin = max(arrived, max(done, stored_before))
        busy = steps[base + s].busy_cycles
        busy_sum += busy
        q.spans = _add_span(spans, q.spans, begin, begin + busy)
        stored_before, nbytes = done, steps[base + s - 1].store_bytes
        if nbytes > 0.0:
            free = max(free, done) + nbytes / bytes_per_cycle
            stored_before = free
            transfers += nbytes / bytes_per_cycle
            requests += 1
        done_before, done = done, begin + busy
    q.done_before, q.done, q.stored_before, q.stored = done_before, done, stored_before, stored_before
    q.step, q.next_step = count - 1, 0
    q.place += 1
    return free, transfers, requests * latency, busy_sum


@compiled
def _loop(
    unit: Any, first: Any, count: Any, pointer: Any, flat: Any, steps: Any, order: Any, bounds: Any,
    bytes_per_cycle: float, latency: float, start: Any, finish: Any, unit_busy: Any, spans: Any, span_count: Any,
    shortcut: bool,
) -> Any:  # fmt: skip
    """Fill start, finish, unit_busy and spans; (busy cycles of the channel, sum of all steps and requests)."""
    units = len(bounds) - 1
    queues = np.zeros(units, QUEUE_DTYPE)
    for u in range(units):
        queues[u].row = -1
        queues[u].place = bounds[u]
        queues[u].phase = 0 if bounds[u] < bounds[u + 1] else 4
        if queues[u].phase == 0:
            _request(queues[u], order, bounds[u + 1], first, pointer, flat, steps, finish)
    free, dram_busy, serial = 0.0, 0.0, 0.0
    while True:
        chosen, all_done = -1, True
        for u in range(units):
            q = queues[u]
            if q.phase == 4:
                continue
            all_done = False
            if q.nbytes < 0.0:
                _request(q, order, bounds[u + 1], first, pointer, flat, steps, finish)
            if q.nbytes == 0.0:
                chosen = u
                break
            if q.nbytes > 0.0 and (chosen < 0 or q.ready < queues[chosen].ready):
                chosen = u
        if all_done:
            for u in range(units):
                span_count[u] = queues[u].spans
            return dram_busy, serial
        assert chosen >= 0, "every queue waits for another"
        q = queues[chosen]
        end = bounds[chosen + 1]
        if shortcut and q.phase == 0 and q.next_step > 0 and _is_alone(queues, chosen):
            moved = _rest_of_row(q, steps, first[q.row], count[q.row], bytes_per_cycle, latency, free, spans[chosen])
            free, duration, latencies, busy = moved
            dram_busy += duration
            serial += duration + latencies + busy
            unit_busy[chosen] += busy
            _request(q, order, end, first, pointer, flat, steps, finish)
            continue
        while True:  # serve one request, then all that move nothing
            served, left, arrived = q.ready, q.ready, q.ready
            if q.nbytes > 0.0:
                duration = q.nbytes / bytes_per_cycle
                served = max(free, q.ready)
                left = served + duration
                arrived = left + latency
                free = left
                dram_busy += duration
                serial += duration + latency
            has_next = q.place < end
            if q.phase == 0:
                q.parameters_end = arrived
            elif q.phase == 2:
                q.stored = left
                if q.row >= 0 and q.step == count[q.row] - 1:
                    finish[q.row] = max(arrived, q.done)
            elif has_next and (q.phase == 1) == (q.next_step > 0):
                row = order[q.place]
                busy = steps[first[row] + q.next_step].busy_cycles
                begin = max(max(q.parameters_end, arrived), max(q.done, q.stored_before))
                q.done_next = begin + busy
                if q.next_step == 0:
                    start[row] = served if q.nbytes > 0.0 else begin
                unit_busy[chosen] += busy
                serial += busy
                q.spans = _add_span(spans[chosen], q.spans, begin, q.done_next)
            q.phase += 1
            if q.phase == 4:
                q.done_before, q.done = q.done, q.done_next
                q.stored_before = q.stored
                if not has_next:
                    break
                q.phase = 0
                q.row, q.step = order[q.place], q.next_step
                q.next_step += 1
                if q.next_step == count[q.row]:
                    q.next_step = 0
                    q.place += 1
            _request(q, order, end, first, pointer, flat, steps, finish)
            if q.nbytes != 0.0:
                break
