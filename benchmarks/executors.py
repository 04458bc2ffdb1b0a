"""Per-core rate of a sweep of 10^10 points, bytes and memory, and what Ray costs at two workers. One run, interleaved.

    python benchmarks/executors.py [--rounds 5]

Two spaces of about 10^10 points: in `shared` most points are a new clock, node, vector unit or buffer of an array that
is searched once; in `searched` every point is a search of its own. Chunks are taken from all over a space, the same
ones for every contender. `alone`: one thread, a process for each size of chunk. `local` and `ray`: whole process from
start to exit, and the rate after the first chunks, when everything is loaded. The Ray cluster is two nodes of one CPU
on this machine. Writes results/executors.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from accelsim import study
from accelsim.executors import EXECUTORS
from accelsim.files import write_whole
from accelsim.pareto import front_of
from accelsim.space import Space, space
from accelsim.sweep import _chunk

RESULTS = Path(__file__).parent / "results" / "executors.json"
SHARED = {
    "platform": "systolic-32x32", "model": "bert-base",
    "axes": {
        "seq": [64, 128, 256, 384], "rows": {"range": [8, 128, 8]}, "cols": {"range": [8, 128, 8]},
        "dataflow": ["os", "ws", "is"], "arrays": [1, 2, 4],
        "dram.bytes_per_cycle": {"from": 8, "to": 512, "points": 8, "scale": "log"},
        "input_buffer.capacity_bytes": {"powers_of_two": [16384, 2097152]},
        "weight_buffer.capacity_bytes": {"powers_of_two": [16384, 2097152]},
        "accumulator.capacity_bytes": {"powers_of_two": [16384, 2097152]},
        "vector.lanes": {"from": 8, "to": 128, "points": 8, "scale": "log"},
        "clock_hz": {"from": 2.0e8, "to": 1.6e9, "points": 8, "scale": "log"}, "technology_nm": [45, 22, 16, 7],
    },
}  # fmt: skip
SEARCHED = {
    "platform": "systolic-32x32", "model": "bert-base",
    "axes": {
        "seq": {"range": [32, 512, 32]}, "batch": [1, 2, 4, 8], "rows": {"range": [8, 128, 1]},
        "cols": {"range": [8, 128, 1]}, "dataflow": ["os", "ws", "is"], "arrays": {"range": [1, 8, 1]},
        "fold_timing": ["serial", "pipelined"], "dram.bytes_per_cycle": {"range": [4, 512, 4]},
    },
}  # fmt: skip
SPACES = {"shared": space(SHARED), "searched": space(SEARCHED)}
ALONE = {"shared": ((2**16, 32), (2**18, 16), (2**20, 8)), "searched": ((2**12, 6),)}
"""Space -> (points of a chunk, chunks) of one thread."""
TWO = {"shared": (2**18, 48), "searched": (2**12, 12)}
"""Space -> the same of two workers."""
WARM = 4
"""Chunks before the clock of the steady rate starts."""


def spans(found: Space, chunk: int, count: int) -> list[tuple[int, int]]:
    """Chunks spread over the space, the same at every call."""
    at = np.random.default_rng(0).choice(found.points // chunk, count, replace=False)
    return [(int(i) * chunk, (int(i) + 1) * chunk) for i in at]


def part(name: str, executor: str, jobs: int, address: str, chunk: int, count: int) -> dict[str, float]:
    """Price `count` chunks in this process; rates in points/s, bytes of a point, peak MiB with reading back."""
    found = SPACES[name]
    with tempfile.TemporaryDirectory() as place, study.held(Path(place)):
        study.start(found, Path(place), False, chunk, {"kind": "sweep"})
        began, ends = time.perf_counter(), []
        work = partial(_chunk, found, Path(place))
        with closing(EXECUTORS[executor](work, spans(found, chunk, count), jobs, address)) as parts:
            for _ in parts:
                ends.append(time.perf_counter())
        reads = front_of_chunks(found, Path(place), chunk, count) if jobs == 1 else {}
        written = sum(path.stat().st_size for path in Path(place).glob("chunks/*.parquet"))
    warm = min(WARM, count - 1)
    return {
        "first_result_s": ends[0] - began,
        "points_per_s": (count - warm) * chunk / (ends[-1] - ends[warm - 1]),
        "bytes_per_point": written / (count * chunk),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **reads,
    }


def front_of_chunks(found: Space, folder: Path, chunk: int, count: int) -> dict[str, float]:
    """Points/s of `--resume` over finished chunks, and of the front of time, energy and area, read file by file."""
    began = time.perf_counter()
    for start, stop in spans(found, chunk, count):
        _chunk(found, folder, start, stop)
    resumed = time.perf_counter()
    names = ("time_s", "energy_j", "area_mm2")
    chunks = study.read_study(folder).chunks(["feasible", *names])
    front_of(np.stack([np.where(c["feasible"], c[name], np.nan) for name in names], axis=1) for c in chunks)
    points = chunk * count
    return {
        "resume_points_per_s": points / (resumed - began),
        "front_points_per_s": points / (time.perf_counter() - resumed),
    }


def measured(*arguments: Any) -> dict[str, float]:
    """`part` in a process of its own, and the wall seconds of that."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--part", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"process_s": time.perf_counter() - began, **json.loads(done.stdout.splitlines()[-1])}


def tasks_per_s(address: str, count: int = 2000) -> float:
    """Tasks that do nothing, handed out and gathered."""
    with closing(EXECUTORS["ray"](nothing, ((i, i + 1) for i in range(count)), None, address)) as parts:
        ends = [time.perf_counter() for _ in parts]
    return (count - 100) / (ends[-1] - ends[99])


def nothing(start: int, stop: int) -> None:
    """A span that costs no time."""


def summed(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Best and median of the rounds: of a machine that others use, the best is what it can do."""
    best = {name: (max if name.endswith("points_per_s") else min)(row[name] for row in rows) for name in rows[0]}
    return {"best": best, "median": {name: median(row[name] for row in rows) for name in best}, "rounds": rows}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, executor, jobs, address, chunk, count = options.part
        print(json.dumps(part(name, executor, int(jobs), address, int(chunk), int(count))))
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as place:
        os.environ["RAY_TMPDIR"] = place
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        found: dict[str, Any] = {
            "cores": os.cpu_count(), "system": platform.platform(), "load_at_start": os.getloadavg()[0],
            "points": {name: s.points for name, s in SPACES.items()},
        }  # fmt: skip
        for name in SPACES:
            measured(name, "local", 2, "", 1024, 8)  # what is compiled is compiled
        found["alone"] = {
            name: {str(c): summed([measured(name, "local", 1, "", c, n) for _ in range(options.rounds)]) for c, n in s}
            for name, s in ALONE.items()
        }
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            cluster.add_node(**node)
            rows: dict[str, dict[str, list[dict[str, float]]]] = {name: {"local": [], "ray": []} for name in SPACES}
            for _ in range(options.rounds):
                for name, of in rows.items():
                    of["local"].append(measured(name, "local", 2, "", *TWO[name]))
                    of["ray"].append(measured(name, "ray", 4, cluster.address, *TWO[name]))
            found["ray_tasks_per_s"] = tasks_per_s(cluster.address)
        finally:
            cluster.shutdown()
    found["two_workers"] = {name: {e: summed(r) for e, r in of.items()} for name, of in rows.items()}
    found["load_at_end"] = os.getloadavg()[0]
    print("\n".join(text(found)))
    write_whole(RESULTS, lambda path: path.write_text(json.dumps(found, indent=1) + "\n"))
    print(f"wrote {RESULTS}")


def text(found: dict[str, Any]) -> list[str]:
    """The tables."""
    lines = [f"{found['cores']} cores, load {found['load_at_start']:.1f} and {found['load_at_end']:.1f}; best, median"]
    head = (
        "one thread",
        "points of a chunk",
        "points/s",
        "bytes/point",
        "peak MiB",
        "resume, points/s",
        "front, points/s",
    )
    lines += ["", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, sizes in found["alone"].items():
        for chunk, row in sizes.items():
            size, memory = row["best"]["bytes_per_point"], row["median"]["peak_mib"]
            cells = [f"{int(chunk):,}", both(row, "points_per_s", 0), f"{size:.1f}", f"{memory:,.0f}"]
            cells += [both(row, rate, 0) for rate in ("resume_points_per_s", "front_points_per_s")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| two workers | process, s | first result, s | points/s after warm-up |",
        "| --- | --- | --- | --- |",
    ]
    for name, of in found["two_workers"].items():
        for executor, row in of.items():
            cells = both(row, "process_s", 2), both(row, "first_result_s", 2), both(row, "points_per_s", 0)
            lines.append(f"| {name}, {executor} | {' | '.join(cells)} |")
    lines.append("")
    for name, of in found["two_workers"].items():
        local, ray = of["local"]["best"], of["ray"]["best"]
        more, ratio = ray["process_s"] - local["process_s"], local["points_per_s"] / ray["points_per_s"]
        lines.append(f"{name}: Ray takes {more:+.2f} s a process, {ratio - 1:+.1%} time a point after warm-up (best)")
    return [*lines, f"Ray: {found['ray_tasks_per_s']:,.0f} empty tasks a second"]


def both(row: dict[str, Any], name: str, digits: int) -> str:
    return ", ".join(f"{row[kind][name]:,.{digits}f}" for kind in ("best", "median"))


if __name__ == "__main__":
    main()
