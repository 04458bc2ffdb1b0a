"""Designs per second of `accelsim sweep`, its memory and its start, and its ratio to SCALE-Sim and ZigZag.

    python benchmarks/sweep.py [--no-peers] [--small] [--json]

A design is bert-base at 128 tokens in int8, every operator, on one systolic array. Prints tables and writes
benchmarks/results/sweep.json, or sweep-partial.json with either of the first two flags. What the columns mean:
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers import HERE, PEERS, PeerError, Process, peer_python, peer_versions, run_peer, run_process
from speed import GEMMS, RESULTS, driver, machine, say, table

CHECKOUT = {"PYTHONPATH": str(HERE.parent)}
"""For every process of accelsim: the package beside these benchmarks."""

GRID: dict[str, Any] = {
    "platform": "systolic-32x32",
    "model": "bert-base",
    "seq": 128,
    "precision": "int8",
    "axes": {
        "rows": {"powers_of_two": [8, 128]},
        "cols": {"powers_of_two": [8, 128]},
        "dataflow": ["os", "ws", "is"],
        "arrays": [1, 2, 4],
        "dram.bytes_per_cycle": {"powers_of_two": [8, 256]},
        "input_buffer.capacity_bytes": {"powers_of_two": [16384, 1048576]},
        "weight_buffer.capacity_bytes": {"powers_of_two": [16384, 1048576]},
        "accumulator.capacity_bytes": {"powers_of_two": [16384, 1048576]},
        "vector.lanes": [16, 32, 64],
        "clock_hz": [2.5e8, 5.0e8, 1.0e9, 1.5e9],
    },
}
"""5.6 million points."""
SMALL_GRID = {**GRID, "axes": {**GRID["axes"], "rows": [16, 64], "cols": [16, 64]}}
LARGE: dict[str, Any] = {
    **GRID,
    "axes": {
        **GRID["axes"],
        "rows": {"range": [8, 128, 8]},
        "cols": {"range": [8, 128, 8]},
        "input_buffer.bytes_per_cycle": [16, 32, 64, 128],
        "weight_buffer.bytes_per_cycle": [16, 32, 64, 128],
        "accumulator.bytes_per_cycle": [64, 128, 256, 512],
        "dram.latency_cycles": [50, 100, 200],
    },
}
"""1.1e10 points: two drawn at random share next to nothing."""
TARGET = {"largest": 3_000_000, "best": 300_000}
"""Designs per second on two cores. Meant for a grid; random points, the worst case, are held to it too."""
FLAT = 1.25
"""Memory is flat if the longest stream's peak is below this many times the shortest one's."""
CHUNK = 65536
STREAM = "largest"
"""Rule of the streams whose memory is looked at."""


# --- one process ------------------------------------------------------------------------------------------------------


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Prices points chunk by chunk in threads, as `sweep.run` does, keeping of each chunk only the least time.

    job: space; what, "grid" (all points), "random" or "stream" (chunks evenly spread over the space); count; chunk;
    rounds; threads.
    """
    started = time.perf_counter()
    import numpy as np

    from accelsim.space import space
    from accelsim.sweep import evaluate

    found = space(job["space"])
    imported = time.perf_counter()
    evaluate(found, np.arange(min(1000, found.points)))
    first = time.perf_counter()
    evaluate(found, np.arange(min(1000, found.points)))
    second = time.perf_counter()
    count = min(job["count"] or found.points, found.points)
    chunk = job["chunk"]
    starts = range(0, count, chunk)
    spread = found.points // count if job["what"] == "stream" else 1
    rng = np.random.default_rng(2026)
    drawn = rng.integers(0, found.points, count) if job["what"] == "random" else None

    def least(start: int) -> tuple[float, int]:
        stop = min(count, start + chunk)
        points = np.arange(start, stop) + start * (spread - 1) if drawn is None else drawn[start:stop]
        columns = evaluate(found, points)
        return float(np.nanmin(columns["time_s"])), int(columns["feasible"].sum())

    wall_s, cpu_s = [], []
    with ThreadPoolExecutor(job["threads"]) as pool:
        for _ in range(job["rounds"]):
            wall, cpu = time.perf_counter(), time.process_time()
            parts = list(pool.map(least, starts))
            wall_s.append(time.perf_counter() - wall)
            cpu_s.append(time.process_time() - cpu)
    return {
        "points": found.points,
        "count": count,
        "feasible": sum(n for _, n in parts),
        "least_time_s": min((s for s, _ in parts), default=0.0),
        "import_s": imported - started,
        "first_call_s": first - imported,
        "second_call_s": second - first,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def measured(job: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """`child` in a process of its own, with the whole process' seconds."""
    full = {"what": "grid", "count": 0, "chunk": CHUNK, "rounds": 1, "threads": os.cpu_count()} | job
    process = run_process(
        [sys.executable, str(HERE / "sweep.py"), "--child"], json.dumps(full), CHECKOUT | (environment or {})
    )
    answer: dict[str, Any] = json.loads(process.stdout)
    return {key: full[key] for key in ("what", "chunk", "threads")} | answer | {"process_wall_s": process.wall_s}


# --- what is measured -------------------------------------------------------------------------------------------------


def with_rule(source: dict[str, Any], rule: str) -> dict[str, Any]:
    return {**source, "mapping": rule}


def measure_starts() -> list[dict[str, Any]]:
    """The first calls of a process with an empty cache of compiled code, and of one that finds it filled."""
    with tempfile.TemporaryDirectory() as empty:
        job = {"space": with_rule(SMALL_GRID, "best"), "count": 1000}
        found = [measured(job, {"NUMBA_CACHE_DIR": empty}) for _ in range(2)]
    say(f"first call: compiling {found[0]['first_call_s']:.1f} s, cache on disk {found[1]['first_call_s']:.2f} s")
    return [{"cache": name, **a} for name, a in zip(("empty", "filled"), found, strict=True)]


def measure_rates(small: bool) -> list[dict[str, Any]]:
    """Designs per second, pricing only: the grid and points at random, by both rules."""
    rows = []
    random = (
        {"largest": (2**15, 4096), "best": (2**12, 512)}
        if small
        else {"largest": (2**19, CHUNK), "best": (2**15, 4096)}
    )
    for what, source in (("grid", SMALL_GRID if small else GRID), ("random", LARGE)):
        for rule in TARGET:
            count, chunk = random[rule] if what == "random" else (0, CHUNK)
            job = {"space": with_rule(source, rule), "what": what, "count": count, "chunk": chunk}
            answer = measured(job | {"rounds": 2 if small else 5})
            rate = answer["count"] / statistics.median(answer["wall_s"])
            rows.append({"rule": rule, "per_s": rate, **answer})
            say(f"{what} {rule}: {rate:,.0f} designs per second")
    return rows


def measure_command(small: bool) -> list[dict[str, Any]]:
    """Whole processes of `accelsim sweep` on the grid: start, pricing, Parquet, summary."""
    rows = []
    for rule in TARGET:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "space.json"
            source.write_text(json.dumps(with_rule(SMALL_GRID if small else GRID, rule)))
            out = Path(folder) / "study"
            command = [sys.executable, "-m", "accelsim", "sweep", str(source), "--out", str(out), "--json"]
            process: Process = run_process(command, environment=CHECKOUT)
            points = json.loads(process.stdout)["points"]
            written = sum(f.stat().st_size for f in out.rglob("*.parquet"))
        row = {"rule": rule, "points": points, "per_s": points / process.wall_s, "written_bytes": written}
        rows.append(row | {"wall_s": process.wall_s, "cpu_s": process.cpu_s, "peak_bytes": process.peak_bytes})
        say(f"accelsim sweep, {rule}: {points:,} points in {process.wall_s:.1f} s")
    return rows


def measure_memory(small: bool) -> list[dict[str, Any]]:
    """Peak memory of streams of growing length, each in a process of its own."""
    rows = []
    for count in (10**5, 10**6) if small else (10**6, 10**7, 10**8):
        answer = measured({"space": with_rule(LARGE, STREAM), "what": "stream", "count": count})
        rows.append(answer | {"per_s": count / answer["wall_s"][0]})
        say(f"stream of {count:,}: peak {answer['peak_bytes'] / 2**20:.0f} MiB, {answer['wall_s'][0]:.1f} s")
    return rows


def measure_peers(python: str) -> list[dict[str, Any]]:
    """CPU seconds of each peer for the five GEMMs of one design, in one process."""
    array = driver({"do": "array"}, CHECKOUT)[1]["array"]
    rows = []
    for peer in PEERS:
        interpreter = peer_python(peer.package, python)
        process, answers = run_peer(peer, interpreter, array, list(GEMMS.values()))
        calls = sum(a["cpu_s_inner"] for a in answers)
        say(f"{peer.name}: {process.cpu_s:.1f} CPU s, the calls alone {calls:.1f}")
        row = {"peer": peer.name, "process_cpu_s": process.cpu_s, "calls_cpu_s": calls, "from": "this run"}
        rows.append(row | {"versions": peer_versions(interpreter)})
    return rows


def peers_of_file() -> list[dict[str, Any]]:
    """The same from the result of benchmarks/speed.py: its processes have one GEMM each."""
    held = json.loads((RESULTS / "speed.json").read_text())
    rows = []
    for peer in PEERS:
        mine = [row for row in held["gemms"] if row["tool"] == peer.name]
        sums = [sum(statistics.median(row[key]) for row in mine) for key in ("cpu_s", "inner_cpu_s")]
        where = "benchmarks/results/speed.json, not this run"
        rows.append({"peer": peer.name, "process_cpu_s": sums[0], "calls_cpu_s": sums[1], "from": where})
    return rows


# --- tables -----------------------------------------------------------------------------------------------------------


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target beside what was measured."""
    rows = []
    for rate in result["rates"]:
        bound = TARGET[rate["rule"]]
        what = f"designs per second, {rate['what']}, {rate['rule']}"
        rows.append({"what": what, "measured": rate["per_s"], "target": bound, "reached": rate["per_s"] >= bound})
    peaks = [row["peak_bytes"] for row in result["memory"]]
    growth = peaks[-1] / peaks[0]
    lengths = f"{result['memory'][-1]['count']:,} / {result['memory'][0]['count']:,} points"
    rows.append({"what": f"peak memory, {lengths}", "measured": growth, "target": FLAT, "reached": growth <= FLAT})
    return rows


def ratios(result: dict[str, Any]) -> list[dict[str, Any]]:
    """CPU seconds of a peer for one design / accelsim's for one design, pricing only."""
    rows = []
    for peer in result["peers"]:
        for rate in result["rates"]:
            own = statistics.median(rate["cpu_s"]) / rate["count"]
            pair = {"peer": peer["peer"], "what": rate["what"], "rule": rate["rule"], "own_cpu_s": own}
            rows.append(pair | {"calls": peer["calls_cpu_s"] / own, "process": peer["process_cpu_s"] / own})
    return rows


def text(result: dict[str, Any]) -> str:
    m = result["machine"]
    mib = 2**20
    out = [
        f"{m['cpu']}, {m['cores']} cores, load {m['load_at_start']:.2f} to {m['load_at_end']:.2f}, "
        f"Python {m['python']}, numba {m['numba']}, numpy {m['numpy']}",
        "a design: bert-base, 128 tokens, int8, every operator, on a systolic array",
        "",
    ]
    rows = []
    for r in result["rates"]:
        rates = [r["count"] / s for s in r["wall_s"]]
        per_s = [f"{n:,.0f}" for n in (r["per_s"], min(rates), max(rates))]
        cpu_us = statistics.median(r["cpu_s"]) / r["count"] * 1e6
        cells = [f"{r['count']:,}", f"{r['points']:,}", *per_s, f"{cpu_us:.2f}", f"{r['feasible'] / r['count']:.0%}"]
        rows.append([f"{r['what']}, {r['rule']}", *cells])
    header = ["pricing only", "points", "of a space of", "designs / s", "worst", "best", "CPU us / design", "run"]
    out += [f"{result['rates'][0]['threads']} threads; median of {len(result['rates'][0]['wall_s'])} rounds"]
    out += [table(header, rows), ""]
    rows = [
        [
            f"accelsim sweep, {c['rule']}",
            f"{c['points']:,}",
            f"{c['per_s']:,.0f}",
            f"{c['wall_s']:.2f}",
            f"{c['cpu_s']:.2f}",
            f"{c['written_bytes'] / mib:.0f}",
            f"{c['peak_bytes'] / mib:.0f}",
        ]
        for c in result["command_runs"]
    ]
    header = ["whole process, with Parquet", "points", "designs / s", "wall s", "CPU s", "written MiB", "peak MiB"]
    out += [table(header, rows), ""]
    rows = [
        [
            f"{s['cache']} cache",
            *(f"{s[k]:.3f}" for k in ("import_s", "first_call_s", "second_call_s", "process_wall_s")),
        ]
        for s in result["starts"]
    ]
    header = ["start, 1,000 points", "import s", "first call s", "second call s", "whole process s"]
    out += [table(header, rows), ""]
    rows = [
        [f"{r['count']:,}", f"{r['peak_bytes'] / mib:.0f}", f"{r['wall_s'][0]:.1f}", f"{r['per_s']:,.0f}"]
        for r in result["memory"]
    ]
    out += [table([f"streamed, {STREAM}", "peak MiB", "wall s", "designs / s"], rows), ""]
    rows = [[p["peer"], f"{p['process_cpu_s']:.2f}", f"{p['calls_cpu_s']:.2f}", p["from"]] for p in result["peers"]]
    out += [table(["five GEMMs of one design", "process CPU s", "calls CPU s", "from"], rows), ""]
    rows = [
        [f"{r['peer']} / {r['what']}, {r['rule']}", f"{r['calls']:,.0f}", f"{r['process']:,.0f}"]
        for r in result["ratios"]
    ]
    out += [table(["CPU s for a design, peer / accelsim", "calls alone", "peer's whole process"], rows), ""]
    rows = [
        [
            v["what"],
            f"{v['measured']:,.{0 if v['measured'] > 100 else 2}f}",
            f"{v['target']:,}",
            "reached" if v["reached"] else "MISSED",
        ]
        for v in result["verdicts"]
    ]
    return "\n".join([*out, table(["target", "measured", "target", ""], rows)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-peers", action="store_true", help="peers' seconds from results/speed.json")
    parser.add_argument("--small", action="store_true", help="small spaces, two rounds, no peers: does it run?")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of the tables")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that makes the peers' environments")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.load(sys.stdin))))
        return 0

    flags = [name for name in ("no_peers", "small") if getattr(args, name)]
    try:
        here = machine() | driver({"do": "array"}, CHECKOUT)[1]["versions"]
        result: dict[str, Any] = {
            "machine": here,
            "command": " ".join(["python benchmarks/sweep.py", *("--" + f.replace("_", "-") for f in flags)]),
            "small": args.small,
            "spaces": {"grid": SMALL_GRID if args.small else GRID, "random": LARGE},
            "starts": measure_starts(),
            "rates": measure_rates(args.small),
            "memory": measure_memory(args.small),
        }
        result["command_runs"] = measure_command(args.small)
        result["peers"] = peers_of_file() if flags else measure_peers(args.peer_python)
    except PeerError as error:
        print(error, file=sys.stderr)
        return 1
    here["load_at_end"] = os.getloadavg()[0]
    result |= {"verdicts": verdicts(result), "ratios": ratios(result)}
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / ("sweep-partial.json" if flags else "sweep.json")
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(target)
    print(json.dumps(result) if args.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
