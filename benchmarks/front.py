"""Seconds of the exact front of many rows by `accelsim.pareto`, beside moocore called directly, paretoset and Optuna.

    python benchmarks/front.py [--no-peers] [--small] [--json]

All contenders get the same float64 rows of three objectives and must give the same rows. Writes
benchmarks/results/front.json, or front-partial.json with either of the first two flags. What the columns mean:
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from peers import HERE, PeerError, peer_python, peer_versions, run_process
from speed import RESULTS, machine, say, table
from sweep import CHUNK, GRID, SMALL_GRID, with_rule

from accelsim import pareto
from accelsim.space import space
from accelsim.sweep import evaluate

OBJECTIVES = ("time_s", "energy_j", "area_mm2")
OPTUNA_ROWS = 10**5
"""Most rows given to Optuna's filter: it is made for as many trials as a study has."""
PARETOSET_FRONT = 10**4
"""Longest front that paretoset is asked for beyond 10^5 rows: its time is their product."""
SLOW_S = 5.0
"""What took longer is run once only."""
TARGET_S = 10.0
"""Seconds for 10^7 rows: "in seconds"."""


def uniform(count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of a cube: a front of about (ln n)^2 / 2."""
    return rng.random((count, 3))


def correlated(count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows whose objectives rise together, correlation 0.9: a few good rows are ahead of nearly all."""
    return np.sqrt(0.9) * rng.standard_normal((count, 1)) + np.sqrt(0.1) * rng.standard_normal((count, 3))


def shell(count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows near a sphere, what one objective gains another loses; so thin that about a third is in the front."""
    rows = 1 - np.abs(rng.standard_normal((count, 3)))
    rows = 1 - (1 - rows) / np.linalg.norm(1 - rows, axis=1, keepdims=True)
    out: np.ndarray = rows + SHELL / count**0.5 * rng.random((count, 1))
    return out


SHELL = 2.3


def swept(small: bool) -> np.ndarray:
    """Time, energy and area of the grid of benchmarks/sweep.py, in the order of its points; NaN what does not run."""
    found = space(with_rule(SMALL_GRID if small else GRID, "largest"))

    def values(start: int) -> np.ndarray:
        columns = evaluate(found, np.arange(start, min(found.points, start + CHUNK)))
        return np.stack([columns[name] for name in OBJECTIVES], axis=1)

    with ThreadPoolExecutor() as pool:
        rows = np.concatenate(list(pool.map(values, range(0, found.points, CHUNK))))
    known: np.ndarray = rows[~np.isnan(rows).any(axis=1)]
    return known


def cases(small: bool) -> dict[str, Callable[[], np.ndarray]]:
    rng = np.random.default_rng(2026)
    sizes = (10**4, 10**5) if small else (10**5, 10**6, 10**7)
    made: dict[str, Callable[[], np.ndarray]] = {}
    for kind in (uniform, correlated):
        for count in sizes:
            made[f"{kind.__name__} {count:,}"] = lambda k=kind, n=count: k(n, rng)  # type: ignore[misc]
    for count in sizes[:-1]:
        made[f"shell {count:,}"] = lambda n=count: shell(n, rng)  # type: ignore[misc]
    made["swept"] = lambda: swept(small)
    return made


def timed(call: Callable[[], np.ndarray], repeats: int) -> dict[str, Any]:
    """Seconds of each call and a digest of the mask."""
    wall_s: list[float] = []
    while len(wall_s) < repeats and not (wall_s and wall_s[-1] > SLOW_S):
        start = time.perf_counter()
        mask = call()
        wall_s.append(time.perf_counter() - start)
    return {"wall_s": wall_s, "digest": hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()}


def measure(name: str, values: np.ndarray, paretoset: Path | None, repeats: int) -> dict[str, Any]:
    """All contenders on one table. Raises PeerError where they give different rows."""
    import moocore
    from optuna.study._multi_objective import _is_pareto_front

    count = int(pareto.front(values).sum())
    found: dict[str, dict[str, Any]] = {
        "accelsim": timed(lambda: pareto.front(values), repeats),
        "moocore": timed(lambda: np.asarray(moocore.is_nondominated(values, keep_weakly=True)), repeats),
    }
    if len(values) <= OPTUNA_ROWS:
        found["optuna"] = timed(lambda: _is_pareto_front(values, False), repeats)
    if paretoset is not None and (len(values) <= 10**5 or count <= PARETOSET_FRONT):
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "values.npy", values)
            job = {"values": str(Path(folder) / "values.npy"), "repeats": 1 if len(values) > 10**5 else repeats}
            process = run_process([str(paretoset), str(HERE / "peer_paretoset.py")], json.dumps(job))
        found["paretoset"] = json.loads(process.stdout)
    for tool, answer in found.items():
        if answer["digest"] != found["accelsim"]["digest"]:
            raise PeerError(f"{name}: {tool} and accelsim give different rows")
    say(f"{name}: " + ", ".join(f"{tool} {statistics.median(a['wall_s']):.3f} s" for tool, a in found.items()))
    return {"case": name, "rows": len(values), "front": count, "tools": found}


def text(result: dict[str, Any]) -> str:
    m = result["machine"]
    versions = ", ".join(f"{name} {m[name]}" for name in ("numpy", "moocore", "optuna"))
    out = [
        f"{m['cpu']}, {m['cores']} cores, load {m['load_at_start']:.2f} to {m['load_at_end']:.2f}, "
        f"Python {m['python']}, {versions}, paretoset {result['paretoset']}",
        "median seconds of the exact front, three objectives; every tool gives the same rows; in brackets: its time / "
        "accelsim's",
        "",
    ]
    tools = ("accelsim", "moocore", "paretoset", "optuna")
    rows = []
    for case in result["cases"]:
        seconds = {tool: statistics.median(a["wall_s"]) for tool, a in case["tools"].items()}
        cells = [
            f"{seconds[t]:.3f} ({seconds[t] / seconds['accelsim']:.1f})" if t in seconds else "" for t in tools[1:]
        ]
        share = f"{case['front'] / case['rows']:.2%}"
        rows.append(
            [case["case"], f"{case['rows']:,}", f"{case['front']:,}", share, f"{seconds['accelsim']:.3f}", *cells]
        )
    out.append(table(["rows", "n", "front", "share", *tools], rows))
    largest = [c for c in result["cases"] if c["rows"] >= 10**7]
    for case in largest:
        took = statistics.median(case["tools"]["accelsim"]["wall_s"])
        out.append(
            f"{case['case']}: {took:.3f} s, target {TARGET_S:g} s: {'reached' if took <= TARGET_S else 'MISSED'}"
        )
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-peers", action="store_true", help="without paretoset: nothing is installed")
    parser.add_argument("--small", action="store_true", help="10^4 and 10^5 rows")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of the table")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that makes paretoset's environment")
    args = parser.parse_args()

    import moocore
    import optuna

    here = machine() | {"optuna": optuna.__version__, "moocore": moocore.__version__, "numpy": np.__version__}
    about, interpreter = "not asked", None
    if not args.no_peers:
        try:
            interpreter = peer_python("paretoset", args.peer_python)
            about = peer_versions(interpreter)["paretoset"]
        except PeerError as error:
            about = f"could not be installed: {error}"
    try:
        found = [measure(name, make(), interpreter, 3) for name, make in cases(args.small).items()]
    except PeerError as error:
        print(error, file=sys.stderr)
        return 1
    here["load_at_end"] = os.getloadavg()[0]
    flags = [name for name in ("no_peers", "small") if getattr(args, name)]
    result = {
        "machine": here,
        "command": " ".join(["python benchmarks/front.py", *("--" + f.replace("_", "-") for f in flags)]),
        "small": args.small,
        "paretoset": about,
        "target_s": TARGET_S,
        "cases": found,
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / ("front-partial.json" if flags else "front.json")
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(target)
    print(json.dumps(result) if args.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
