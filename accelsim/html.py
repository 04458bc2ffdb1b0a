"""A run as a timeline: Chrome trace JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

One process is the platform, one track per unit, one slice per row of the report. Times are whole nanoseconds, written
as the microseconds that the format wants.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelsim.files import write_whole
from accelsim.report import Report, check_output

ARGUMENTS = (
    "group", "operator", "phase", "layer", "kind", "count", "macs", "flops", "cycles", "compute_cycles", "stall_cycles",
    "start_cycle", "finish_cycle", "sram_bytes", "dram_bytes", "energy_j", "utilization", "bound",
)  # fmt: skip
"""Columns that a slice carries as its arguments."""

_PID = 1


def perfetto(report: Report) -> dict[str, Any]:
    """The run in Chrome's trace event format: metadata, slices ("X") and, in the analytic model, DRAM counters ("C").

    A track is a unit, in the order in which they begin to work. A slice lasts from the row's start to its finish or,
    where the unit's next op starts while results are still being stored, to that start: slices of one track never
    overlap. The true `start_cycle` and `finish_cycle` are among its arguments. Views cost nothing and have no slice;
    `otherData` counts them. The counter is a row's mean DRAM traffic: with one op at a time this is what the channel
    carries; in the event model loads run ahead of their op, so there is none.

    Source: "Trace Event Format", Chromium project, complete events, metadata events, counter events.
    """
    columns = report.columns
    rows = [i for i, kind in enumerate(columns["kind"]) if kind != "free"]
    rows.sort(key=lambda i: (columns["start_cycle"][i], columns["finish_cycle"][i], i))
    units = list(dict.fromkeys(columns["unit"][i] for i in rows))
    events = _slices(report, rows, units)
    if report.detail == "analytic":
        events += _counters(report, rows)
    events.sort(key=lambda event: event["ts"])
    return {
        "displayTimeUnit": "ns",
        "otherData": {
            "model": report.model,
            "platform": report.platform,
            "seq": report.seq,
            "batch": report.batch,
            "precision": report.precision,
            "detail": report.detail,
            "clock_hz": report.clock_hz,
            "total_cycles": report.total.cycles,
            "slices": len(rows),
            "free_ops": len(columns["kind"]) - len(rows),
            "assumptions": dict(report.assumptions),
        },
        "traceEvents": _names(report, units) + events,
    }


def save_perfetto(report: Report, path: str | os.PathLike[str]) -> Path:
    """Path of the .json written, one event per line; under a temporary name first, then renamed.

    Raises SpecError for another suffix or a folder that is not there.
    """
    target = Path(path)
    check_output(target, {".json": None})
    trace = perfetto(report)
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in trace.pop("traceEvents"))
    head = json.dumps(trace, allow_nan=False)[:-1]
    return write_whole(target, lambda partial: partial.write_text(f'{head}, "traceEvents": [\n{lines}\n]}}\n'))


def _names(report: Report, units: Sequence[str]) -> list[dict[str, Any]]:
    """Metadata events: the process is called as the platform, the threads as the units, in this order."""
    events = [_metadata("process_name", 0, {"name": f"{report.platform}: {report.model} ({report.detail})"})]
    for tid, unit in enumerate(units, 1):
        events.append(_metadata("thread_name", tid, {"name": unit}))
        events.append(_metadata("thread_sort_index", tid, {"sort_index": tid}))
    return events


def _metadata(name: str, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": _PID, "tid": tid, "ts": 0, "args": args}


def _slices(report: Report, rows: Sequence[int], units: Sequence[str]) -> list[dict[str, Any]]:
    """One complete event per row; `rows` are in order of start."""
    columns, clock_hz = report.columns, report.clock_hz
    events = []
    next_start: dict[str, int] = {}
    for i in reversed(rows):
        unit = columns["unit"][i]
        start = _ns(columns["start_cycle"][i], clock_hz)
        finish = _ns(columns["finish_cycle"][i], clock_hz)
        finish = min(finish, next_start.get(unit, finish))
        next_start[unit] = start
        events.append(
            {
                "name": columns["op"][i],
                "cat": columns["operator"][i],
                "ph": "X",
                "pid": _PID,
                "tid": 1 + units.index(unit),
                "ts": _us(start),
                "dur": _us(finish - start),
                "args": {"row": i} | {name: columns[name][i] for name in ARGUMENTS},
            }
        )
    return events[::-1]


def _counters(report: Report, rows: Sequence[int]) -> list[dict[str, Any]]:
    """DRAM bytes per second at the start of each row, and zero at the end of the last."""
    columns, clock_hz = report.columns, report.clock_hz
    points = [
        (columns["start_cycle"][i], columns["dram_bytes"][i] / columns["time_s"][i] if columns["time_s"][i] else 0.0)
        for i in rows
    ]
    points.append((max((columns["finish_cycle"][i] for i in rows), default=0.0), 0.0))
    return [
        {
            "name": "DRAM bytes/s",
            "ph": "C",
            "pid": _PID,
            "tid": 0,
            "ts": _us(_ns(cycle, clock_hz)),
            "args": {"bytes_per_s": rate},
        }
        for cycle, rate in points
    ]


def _ns(cycle: float, clock_hz: float) -> int:
    return round(cycle / clock_hz * 1e9)


def _us(ns: int) -> float:
    """Microseconds that come back as the same whole nanoseconds from a reader that multiplies by 1000 and cuts off.

    >>> _us(1001), int(1.001 * 1000), int(_us(1001) * 1000)
    (1.0010000000000001, 1000, 1001)
    """
    value = ns / 1000
    return value if int(value * 1000) == ns else math.nextafter(value, math.inf)
