"""Speed of accelsim: its own limits, and its ratio to SCALE-Sim and ZigZag on the same GEMMs in the same run.

    python benchmarks/speed.py [--no-peers] [--small] [--json]

Prints a table and writes benchmarks/results/speed.json, or speed-partial.json with either of
the first two flags. What the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers import HERE, PEERS, Peer, PeerError, Process, Shape, peer_python, peer_versions, run_peer, run_process

RESULTS = HERE / "results"
DRIVER = HERE / "driver_accelsim.py"
DETAILS = ("analytic", "events")

GEMMS: dict[str, Shape] = {
    "query/key/value/output": (128, 768, 768),
    "feed forward in": (128, 768, 3072),
    "feed forward out": (128, 3072, 768),
    "scores (one of 12)": (128, 64, 128),
    "context (one of 12)": (128, 128, 64),
}
"""The distinct GEMMs of a BERT-base layer at 128 tokens."""

GRAPHS = (("bert-base", 128, 1), ("bert-large", 128, 32), ("bert-large", 512, 4))
"""model, seq, batch: one inference, and the two shapes bert-large is pre-trained with (the forward pass of them)."""

LIMIT_S = {"analytic": 0.020, "events": 0.300, "help": 0.3, "import": 0.5, "trace": 6.0}
SLOW_S = 20.0
"""A process that took more CPU seconds than this is run once only."""


@dataclass
class Timing:
    """What one tool took for one GEMM: a list has one entry per fresh process."""

    cycles: float = 0.0
    compute_cycles: float = 0.0
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    inner_first_cpu_s: list[float] = field(default_factory=list)
    """The simulation call alone, the first of its process."""
    inner_cpu_s: list[float] = field(default_factory=list)
    """The call alone in a process that has simulated before. A peer's process has one call: the same as above."""

    def add(self, process: Process, cycles: float, compute_cycles: float) -> None:
        self.cycles, self.compute_cycles = cycles, compute_cycles
        self.cpu_s.append(process.cpu_s)
        self.wall_s.append(process.wall_s)
        self.peak_bytes.append(process.peak_bytes)


@dataclass(frozen=True)
class Row:
    """One figure of accelsim held to its limit."""

    what: str
    measured_s: float
    limit_s: float | None
    note: str

    @property
    def verdict(self) -> str:
        return "" if self.limit_s is None else "within" if self.measured_s < self.limit_s else "OVER"


def serial_ws_cycles(shape: Shape, rows: int, cols: int) -> int:
    """Cycles of folds back to back, weight stationary: ceil(k/R) ceil(n/C) (2R + C + m - 2)."""
    m, k, n = shape
    return -(-k // rows) * -(-n // cols) * (2 * rows + cols + m - 2)


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, load, versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "load_at_start": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def driver(job: dict[str, Any], environment: dict[str, str] | None = None) -> tuple[Process, dict[str, Any]]:
    """The whole process of `driver_accelsim.py`, and its answer."""
    process = run_process([sys.executable, str(DRIVER)], json.dumps(job), environment)
    answer: dict[str, Any] = json.loads(process.stdout)
    return process, answer


def cli() -> str:
    """The `accelsim` command of this environment."""
    beside = Path(sys.executable).parent / "accelsim"
    found = str(beside) if beside.exists() else shutil.which("accelsim")
    if not found:
        raise PeerError("no `accelsim` command beside this interpreter: install the package first")
    return found


def accelsim_gemm(shape: Shape, detail: str, repeats: int, timing: Timing) -> None:
    """Adds one run through the command line (whole process) and one through Python (the call alone) to `timing`."""
    name = "x".join(map(str, shape))
    settings = ["--set", "dataflow=ws", "--set", "fold_timing=serial", "--detail", detail, "--json"]
    process = run_process([cli(), "simulate", f"gemm:{name}", "--platform", "systolic-32x32", *settings])
    total = json.loads(process.stdout)["total"]
    timing.add(process, float(total["cycles"]), float(total["compute_cycles"]))
    _, inner = driver({"do": "gemm", "shape": shape, "detail": detail, "repeats": repeats})
    if inner["cycles"] != timing.cycles:
        raise PeerError(
            f"accelsim {name} {detail}: {timing.cycles} cycles by command line, {inner['cycles']} by Python"
        )
    timing.inner_first_cpu_s.append(inner["first_cpu_s"])
    timing.inner_cpu_s.append(statistics.median(inner["cpu_s"]))


def peer_gemm(peer: Peer, python: Path, array: dict[str, int], shape: Shape, timing: Timing) -> None:
    process, (answer,) = run_peer(peer, python, array, [shape])
    timing.add(process, answer["cycles"], answer["compute_cycles"])
    timing.inner_first_cpu_s.append(answer["cpu_s_inner"])
    timing.inner_cpu_s.append(answer["cpu_s_inner"])


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def measure_gemms(
    array: dict[str, int], gemms: dict[str, Shape], pythons: dict[str, Path], rounds: int, repeats: int
) -> dict[str, dict[str, Timing]]:
    """tool -> GEMM -> Timing. A round goes through the GEMMs, each through the tools, from another one each round."""
    tools: dict[str, Callable[[Shape, Timing], None]] = {}
    for detail in DETAILS:
        tools[f"accelsim {detail}"] = lambda shape, t, d=detail: accelsim_gemm(shape, d, repeats, t)  # type: ignore[misc]
    for peer in PEERS if pythons else ():
        tools[peer.name] = lambda shape, t, p=peer: peer_gemm(p, pythons[p.package], array, shape, t)  # type: ignore[misc]
    timings = {tool: {name: Timing() for name in gemms} for tool in tools}
    for tool, run in tools.items():  # unmeasured: byte code, font lists and compiled loops are written now
        say(f"warming {tool}")
        run((32, 32, 32), Timing())
    names = list(tools)
    for i in range(rounds):
        for gemm, shape in gemms.items():
            for tool in names[i % len(names) :] + names[: i % len(names)]:
                timing = timings[tool][gemm]
                if timing.cpu_s and timing.cpu_s[-1] > SLOW_S:
                    continue
                tools[tool](shape, timing)
                say(f"round {i + 1}/{rounds} {gemm} {tool}: {timing.cpu_s[-1]:.2f} CPU s")
    return timings


def measure_graphs(rounds: int, repeats: int) -> list[Row]:
    """One row per graph and detail: compilation, the first call of a warm process, and the calls after it."""
    rows: list[Row] = []
    for detail in DETAILS:
        with tempfile.TemporaryDirectory() as empty:
            cache = {"NUMBA_CACHE_DIR": empty}
            for index, (model, seq, batch) in enumerate(GRAPHS):
                job = {"do": "graph", "model": model, "seq": seq, "batch": batch, "detail": detail}
                name = f"{detail} {model} seq {seq} batch {batch}"
                if index == 0:
                    _, cold = driver(job | {"repeats": 1}, cache)
                    rows.append(Row(f"{name}: compiling", cold["first_wall_s"], None, "first call, empty cache"))
                answers = [driver(job | {"repeats": repeats}, cache)[1] for _ in range(rounds)]
                first = statistics.median(a["first_wall_s"] for a in answers)
                rows.append(Row(f"{name}: first call", first, None, f"cache on disk; median of {rounds} processes"))
                calls = [s for a in answers for s in a["wall_s"]]
                cpu_ms = statistics.median(s for a in answers for s in a["cpu_s"]) * 1e3
                spread = (
                    f"best {min(calls) * 1e3:.2f}, worst {max(calls) * 1e3:.2f} ms of {len(calls)}; CPU {cpu_ms:.2f} ms"
                )
                rows.append(Row(name, statistics.median(calls), LIMIT_S[detail], f"median; {spread}"))
                say(f"{name}: {statistics.median(calls) * 1e3:.2f} ms")
    return rows


def measure_starts(rounds: int) -> list[Row]:
    """Wall seconds of `accelsim --help`, of `import accelsim`, and of an empty Python for comparison."""
    commands = {
        "accelsim --help": ([cli(), "--help"], LIMIT_S["help"]),
        "import accelsim": ([sys.executable, "-c", "import accelsim"], LIMIT_S["import"]),
        "from accelsim import *": ([sys.executable, "-c", "from accelsim import *"], None),
        "python -c pass": ([sys.executable, "-c", "pass"], None),
    }
    seen: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(rounds + 1):
        for name, (command, _) in commands.items():
            wall_s = run_process(command).wall_s
            if i:  # the first round writes byte code
                seen[name].append(wall_s)
    return [
        Row(
            name,
            statistics.median(seen[name]),
            limit,
            f"whole process, median of {rounds}, best {min(seen[name]):.3f} s",
        )
        for name, (_, limit) in commands.items()
    ]


def measure_trace(rounds: int) -> list[Row]:
    """The exporter on bert-large in fresh processes; nothing where torch is not installed."""
    try:
        answers = [driver({"do": "trace", "model": "bert-large", "seq": 128, "repeats": 1})[1] for _ in range(rounds)]
    except PeerError as error:
        if "ModuleNotFoundError" not in str(error):
            raise
        say("no torch in this environment: the exporter is not measured")
        return []
    imports = statistics.median(a["import_s"] for a in answers)
    seen = [a["wall_s"][0] for a in answers]
    return [
        Row("import torch, transformers, accelsim", imports, None, f"median of {rounds}"),
        Row(
            "trace bert-large seq 128 by torch",
            statistics.median(seen),
            LIMIT_S["trace"],
            f"first call, median of {rounds}",
        ),
    ]


def ratios(timings: dict[str, dict[str, Timing]]) -> list[dict[str, Any]]:
    """Peer's CPU seconds / accelsim's, summed over the GEMMs, for each pair of tools."""
    out = []
    sums = {
        tool: {
            key: sum(statistics.median(getattr(t, key)) for t in by_gemm.values())
            for key in ("cpu_s", "inner_first_cpu_s", "inner_cpu_s")
        }
        for tool, by_gemm in timings.items()
    }
    for peer in PEERS:
        for detail in DETAILS:
            own = f"accelsim {detail}"
            if peer.name in sums:
                pair = {key: sums[peer.name][key] / sums[own][key] for key in sums[own]}
                out.append({"peer": peer.name, "own": own, **pair})
    return out


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = []
    for line in [header, ["-" * w for w in widths], *rows]:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def gemm_table(timings: dict[str, dict[str, Timing]], gemms: dict[str, Shape]) -> str:
    median = statistics.median
    header = [
        "m x k x n",
        "tool",
        "runs",
        "cycles",
        "compute cycles",
        "CPU s",
        "wall s",
        "first call s",
        "call s",
        "MiB",
    ]
    rows = []
    for gemm, shape in gemms.items():
        for tool, by_gemm in timings.items():
            t = by_gemm[gemm]
            seconds = [median(t.cpu_s), median(t.wall_s), median(t.inner_first_cpu_s), median(t.inner_cpu_s)]
            cells = [f"{s:.3f}" for s in seconds[:3]] + [f"{seconds[3]:.5f}"]
            cycles = [f"{t.cycles:,.0f}", f"{t.compute_cycles:,.0f}"]
            mib = f"{median(t.peak_bytes) / 2**20:.0f}"
            rows.append(["x".join(map(str, shape)), tool, str(len(t.cpu_s)), *cycles, *cells, mib])
    for tool, by_gemm in timings.items():
        keys = ("cpu_s", "wall_s", "inner_first_cpu_s", "inner_cpu_s")
        sums = [sum(median(getattr(t, key)) for t in by_gemm.values()) for key in keys]
        cells = [f"{s:.3f}" for s in sums[:3]] + [f"{sums[3]:.5f}"]
        cycles = [f"{sum(getattr(t, c) for t in by_gemm.values()):,.0f}" for c in ("cycles", "compute_cycles")]
        rows.append(["sum", tool, "", *cycles, *cells, ""])
    return table(header, rows)


def serial_lines(timings: dict[str, dict[str, Timing]], gemms: dict[str, Shape], array: dict[str, int]) -> list[str]:
    """SCALE-Sim's printed cycles beside the closed form of serial folds, and what explains the difference."""
    lines = []
    for gemm, shape in gemms.items():
        ours = serial_ws_cycles(shape, array["rows"], array["cols"])
        theirs = timings["scalesim"][gemm].compute_cycles
        own = timings["accelsim analytic"][gemm].compute_cycles
        name = "x".join(map(str, shape))
        gap = f"{theirs - ours:+,.0f}"
        lines.append(f"  {name}: closed form {ours:,}, accelsim {own:,.0f}, SCALE-Sim {theirs:,.0f} ({gap})")
    return [
        *lines,
        "  SCALE-Sim prints the number of its last cycle, counted from 0; accelsim prints how many cycles there are.",
        "  ZigZag's compute cycles are ceil(k/R) ceil(n/C) m: the steps of the array, without the weight loading, fill",
        "  and drain of a fold. Its cycles add the stalls of its memories and one drain of the array per GEMM.",
    ]


def text(
    result: dict[str, Any], timings: dict[str, dict[str, Timing]], gemms: dict[str, Shape], rows: list[Row]
) -> str:
    m, a = result["machine"], result["array"]
    load = f"load {m['load_at_start']:.2f} to {m['load_at_end']:.2f}"
    out = [
        f"{m['cpu']}, {m['cores']} cores, {load}, Python {m['python']}",
        f"{a['rows']}x{a['cols']} array, weight stationary, serial folds; BLAS on one thread for every tool",
        "",
        f"GEMMs: medians; a process over {SLOW_S:g} CPU seconds is run once",
        gemm_table(timings, gemms),
        "",
    ]
    if result["ratios"]:
        out += ["serial folds: does everybody count alike?", *serial_lines(timings, gemms, a), ""]
        header = ["CPU seconds, peer / accelsim", "whole process", "call, first of a process", "call, process warm"]
        cells = [
            [f"{r['peer']} / {r['own']}", *(f"{r[k]:,.1f}" for k in ("cpu_s", "inner_first_cpu_s", "inner_cpu_s"))]
            for r in result["ratios"]
        ]
        out += [table(header, cells), ""]
    header = ["accelsim alone", "measured", "limit", "", "how"]
    lines = [
        [r.what, f"{r.measured_s:.4f} s", "" if r.limit_s is None else f"{r.limit_s:g} s", r.verdict, r.note]
        for r in rows
    ]
    return "\n".join([*out, table(header, lines)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-peers", action="store_true", help="accelsim alone: nothing is installed")
    parser.add_argument(
        "--small", action="store_true", help="one round, and only the two GEMMs that every tool does in seconds"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of the table")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that makes the peers' environments")
    args = parser.parse_args()

    rounds, repeats = (1, 10) if args.small else (3, 50)
    gemms = {k: v for k, v in GEMMS.items() if not args.small or "one of" in k}
    try:
        here = machine()
        array = driver({"do": "array"})[1]
        here |= array["versions"]
        packages = [] if args.no_peers else sorted({p.package for p in PEERS})
        pythons = {package: peer_python(package, args.peer_python) for package in packages}
        timings = measure_gemms(array["array"], gemms, pythons, rounds, repeats)
        rows = (
            measure_graphs(rounds, repeats)
            + measure_starts(2 if args.small else 7)
            + measure_trace(1 if args.small else 3)
        )
    except PeerError as error:
        print(error, file=sys.stderr)
        return 1
    here["load_at_end"] = os.getloadavg()[0]
    result: dict[str, Any] = {
        "machine": here,
        "array": array["array"],
        "small": args.small,
        "rounds": rounds,
        "repeats": repeats,
        "peers": {p.name: {"about": p.about, "versions": peer_versions(pythons[p.package])} for p in PEERS if pythons},
        "gemms": [
            {"gemm": gemm, "shape": shape, "tool": tool, **asdict(timings[tool][gemm])}
            for gemm, shape in gemms.items()
            for tool in timings
        ],
        "ratios": ratios(timings),
        "own": [asdict(r) | {"verdict": r.verdict} for r in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / ("speed-partial.json" if args.small or args.no_peers else "speed.json")
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(target)
    print(json.dumps(result) if args.json else text(result, timings, gemms, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
