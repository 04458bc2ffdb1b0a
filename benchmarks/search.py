"""Quality of `accelsim search`: hypervolume of what it found over that of the exhaustive front, at 1 % of the space.

    python benchmarks/search.py [--small] [--json] [--jobs N]

Every point of two spaces is priced first, so that the true front is known; then accelsim searches with ten
seeds, plain NSGA-II and random search with five.
Writes benchmarks/results/search.json, or search-partial.json with --small. What the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from speed import RESULTS, machine, say, table

from accelsim import pareto, search
from accelsim.space import Space, space
from accelsim.sweep import evaluate, keep

SPACES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "systolic": (
        {
            "platform": "systolic-32x32",
            "model": "bert-base",
            "axes": {
                "rows": {"powers_of_two": [8, 256]},
                "cols": {"powers_of_two": [8, 256]},
                "dataflow": ["os", "ws", "is"],
                "dram.bytes_per_cycle": {"powers_of_two": [8, 256]},
                "input_buffer.capacity_bytes": {"powers_of_two": [16384, 1048576]},
                "weight_buffer.capacity_bytes": {"powers_of_two": [16384, 1048576]},
                "accumulator.capacity_bytes": {"powers_of_two": [16384, 1048576]},
                "vector.lanes": [16, 64],
                "clock_hz": [2.5e8, 1.0e9],
            },
            "limits": ["area_mm2 <= 20", "power_w <= 10"],
        },
        ("time_s", "energy_j", "area_mm2"),
    ),
    "fpga": (
        {
            "platform": "fqbert-zcu102",
            "model": "bert-base",
            "axes": {
                "processing_units": [3, 4, 6, 8, 12, 16],
                "pes": [2, 4, 6, 8, 12, 16, 24],
                "multipliers": [4, 8, 12, 16, 24, 32, 48],
                "weight_buffer.capacity_bytes": {"powers_of_two": [16384, 1048576]},
                "intermediate_buffer.capacity_bytes": [98304, 196608, 393216, 786432],
                "dram.bytes_per_cycle": [4, 8, 16, 32],
                "clock_hz": [1.0e8, 1.5e8, 2.0e8, 2.5e8],
            },
            "limits": ["power_w <= 10"],
        },
        ("time_s", "energy_j", "dsp"),
    ),
}
SAMPLERS = {"accelsim": ("nsga2", True), "plain NSGA-II": ("nsga2", False), "random": ("random", False)}
"""Sampler of Optuna, and whether half of the points are the coarse sweep and neighbours of the front."""
SEEDS = {"accelsim": 10, "plain NSGA-II": 5, "random": 5}
"""The rivals have half of the seeds: most of a search's time is Optuna's own, for all of them."""
SHARE = 0.01
"""Of the space that a search may price."""
TARGET = 0.99
"""Of the hypervolume of the exhaustive front, median of the seeds."""
REFERENCE = 1.1
CHUNK = 8192


@dataclass(frozen=True)
class Truth:
    """The exhaustive front of a space, and the scale that hypervolumes are measured on."""

    feasible: int
    kept: int
    front: int
    """Rows of it; equal rows count as often as they are there."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    hypervolume: float
    wall_s: float

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """(n, d): logarithms, 0 at the least and 1 at the most that the exhaustive front has of each objective."""
        low, high = np.log(self.low), np.log(self.high)
        scaled: np.ndarray = (np.log(values) - low) / (high - low)
        return scaled

    def volume(self, values: np.ndarray) -> float:
        """Hypervolume of (n, d) values without NaN on that scale, reference REFERENCE; rows beyond it add nothing."""
        scaled = self.scaled(values)
        return pareto.hypervolume(scaled[(scaled < REFERENCE).all(axis=1)], [REFERENCE] * scaled.shape[1])


@dataclass(frozen=True)
class Run:
    """One search."""

    space: str
    sampler: str
    seed: int
    points: int
    share: float
    """Of the exhaustive hypervolume."""
    wall_s: float
    cpu_s: float


def truth(found: Space, objectives: tuple[str, ...], jobs: int) -> Truth:
    """Prices every point, by `jobs` threads."""

    def values_of(start: int) -> tuple[int, np.ndarray]:
        columns = evaluate(found, np.arange(start, min(found.points, start + CHUNK)))
        kept = keep(found, columns)
        return int(columns["feasible"].sum()), np.stack([columns[name][kept] for name in objectives], axis=1)

    wall = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(values_of, range(0, found.points, CHUNK)))
    wall = time.perf_counter() - wall
    kept = np.concatenate([values for _, values in parts]).astype(float)
    best = kept[pareto.front(kept)]
    low, high = tuple(best.min(axis=0).tolist()), tuple(best.max(axis=0).tolist())
    counts = {"feasible": sum(n for n, _ in parts), "kept": len(kept), "front": len(best)}
    unscaled = Truth(**counts, low=low, high=high, hypervolume=0.0, wall_s=wall)
    return Truth(**counts, low=low, high=high, hypervolume=unscaled.volume(best), wall_s=wall)


def searched(name: str, sampler: str, seed: int, whole: Truth) -> Run:
    """One search, in the process that calls."""
    source, objectives = SPACES[name]
    found = space(source)
    kind, warm = SAMPLERS[sampler]
    plan = search.plan_of(found, objectives, round(SHARE * found.points), seed, kind, warm)
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        archive = search.run(found, plan, Path(folder) / "study", storage="journal")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    values = np.array([*archive.found.values()])
    values = values[~np.isnan(values).any(axis=1)]
    share = whole.volume(values) / whole.hypervolume if len(values) else 0.0
    return Run(name, sampler, seed, len(archive.found), share, wall, cpu)


def measure(names: list[str], truths: Mapping[str, Truth], seeds: Mapping[str, int], jobs: int) -> list[Run]:
    """Every space with every sampler and seed, `jobs` processes side by side."""
    work = [
        (name, sampler, seed, truths[name]) for name in names for sampler in SAMPLERS for seed in range(seeds[sampler])
    ]
    runs = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task in as_completed([pool.submit(searched, *job) for job in work]):
            run = task.result()
            runs.append(run)
            say(f"{run.space} {run.sampler} seed {run.seed}: {run.share:.4f} in {run.wall_s:.0f} s")
    return sorted(runs, key=lambda r: (names.index(r.space), [*SAMPLERS].index(r.sampler), r.seed))


def text(result: Mapping[str, Any]) -> str:
    m = result["machine"]
    out = [
        f"{m['cpu']}, {m['cores']} cores, load {m['load_at_start']:.2f} to {m['load_at_end']:.2f}, "
        f"Python {m['python']}, Optuna {m['optuna']}, moocore {m['moocore']}",
        f"hypervolume: logarithm of each objective, 0 to 1 over the exhaustive front, reference {REFERENCE}; share of "
        "the exhaustive one",
    ]
    for name, about in result["spaces"].items():
        runs = [r for r in result["runs"] if r["space"] == name]
        out += [
            "",
            f"{name}: {about['points']:,} points of {about['platform']} {about['model']}, {about['feasible']:,} run, "
            f"{about['kept']:,} within {', '.join(about['limits'])}; front {about['front']:,} rows; "
            f"{', '.join(about['objectives'])}; all priced in {about['wall_s']:.1f} s",
        ]
        rows = []
        for sampler in SAMPLERS:
            mine = [r for r in runs if r["sampler"] == sampler]
            shares = [r["share"] for r in mine]
            median = statistics.median(shares)
            verdict = "" if sampler != "accelsim" else "reached" if median >= TARGET else "MISSED"
            cells = [f"{s:.4f}" for s in (median, min(shares), max(shares))]
            points = statistics.median(r["points"] for r in mine)
            seconds = [f"{statistics.median(r[key] for r in mine):.1f}" for key in ("wall_s", "cpu_s")]
            evaluated = [f"{points:,.0f}", f"{points / about['points']:.2%}"]
            rows.append([sampler, str(len(mine)), *evaluated, *cells, verdict, *seconds])
        header = ["sampler", "seeds", "points", "of space", "median", "min", "max", f">= {TARGET}", "wall s", "CPU s"]
        out.append(table(header, rows))
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two seeds, the FPGA space only")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of the table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="searches side by side")
    args = parser.parse_args()

    import moocore
    import optuna

    here = machine() | {"optuna": optuna.__version__, "moocore": moocore.__version__, "numpy": np.__version__}
    names = ["fpga"] if args.small else list(SPACES)
    seeds = dict.fromkeys(SAMPLERS, 2) if args.small else SEEDS
    truths, spaces = {}, {}
    for name in names:
        source, objectives = SPACES[name]
        found = space(source)
        truths[name] = truth(found, objectives, args.jobs)
        about = {key: source[key] for key in ("platform", "model", "limits", "axes")}
        spaces[name] = {"points": found.points, "objectives": objectives, **about, **asdict(truths[name])}
        say(f"{name}: {found.points:,} points, front {truths[name].front:,}, {truths[name].wall_s:.1f} s")
    runs = measure(names, truths, seeds, args.jobs)
    here["load_at_end"] = os.getloadavg()[0]
    result: dict[str, Any] = {
        "machine": here,
        "command": "python benchmarks/search.py" + (" --small" if args.small else ""),
        "small": args.small,
        "seeds": seeds,
        "share_of_space": SHARE,
        "target": TARGET,
        "reference": REFERENCE,
        "spaces": spaces,
        "runs": [asdict(r) for r in runs],
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / ("search-partial.json" if args.small else "search.json")
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(target)
    print(json.dumps(result) if args.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
