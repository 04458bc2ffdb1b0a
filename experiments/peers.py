"""Cycles of SCALE-Sim, ZigZag and AccelForge beside ours, GEMM by GEMM, from the files `accelsim export` writes.

    ACCELSIM_SCALE_SIM_PYTHON=scale-sim/bin/python ACCELSIM_ZIGZAG_PYTHON=zigzag/bin/python accelsim reproduce peers
    accelsim reproduce peers                # bert-base; SCALE-Sim takes minutes
    accelsim reproduce peers --small        # bert-tiny; seconds

Each variable names the Python in which that peer is installed; without it this Python is asked. The difference of every
row is taken apart into terms, each of them one assumption, and what they leave over is printed beside them.
"""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import accelsim
from accelsim.errors import SpecError
from accelsim.export import AXES, MODULES, PEERS, REQUIREMENTS, RESULTS, ExportedGemm, distinct_gemms, export, write
from accelsim.files import write_whole
from accelsim.formulas import FoldTiming, fold_grid, tile_array_cycles
from accelsim.gemm import PREFIX, parse_gemm
from accelsim.mapping import best
from accelsim.platforms.systolic import Systolic
from accelsim.simulate import at_precision
from accelsim.work import gemm

RECORD = Path(__file__).parent / "results" / "peers" / "runs.csv"
"""Real runs: what each peer said to the exported files."""
FIELDS = ("peer", "version", "model", "seq", "platform", "settings", "gemm", "cycles", "compute_cycles", "dram_cycles")
NO_LATENCY: dict[str, Any] = {
    f"{memory}.latency_cycles": 0 for memory in ("dram", "input_buffer", "weight_buffer", "accumulator")
}
NO_LIMIT: dict[str, Any] = {
    **NO_LATENCY,
    **{f"{memory}.bytes_per_cycle": 1e12 for memory in ("dram", "input_buffer", "weight_buffer", "accumulator")},
}
"""Memories that never make anybody wait."""


class PeerError(RuntimeError):
    """A peer that is not there, or did not run; the text says which and why."""


@dataclass(frozen=True)
class Case:
    """One folder: a model on a platform, exported to a peer and run there."""

    peer: str
    model: str
    platform: str
    settings: dict[str, Any] = field(default_factory=dict)
    seq: int = 128

    @property
    def name(self) -> str:
        """Of its folder and its heading."""
        chosen = "no-limit" if self.settings == NO_LIMIT else "-".join(str(v) for _, v in sorted(self.settings.items()))
        return f"{self.model.replace(':', '-')}-{self.seq}-{self.platform}" + (f"-{chosen}" if chosen else "")

    def chip(self, overrides: dict[str, Any] | None = None) -> Systolic:
        """The platform with the settings of the case, and then others."""
        return _chip(self.platform, tuple({**self.settings, **(overrides or {})}.items()))

    def graph(self) -> accelsim.Graph:
        """The model in the precision of the platform."""
        return at_precision(_traced(self.model, self.seq), self.chip(), None)


@lru_cache(maxsize=64)
def _chip(name: str, settings: tuple[tuple[str, Any], ...]) -> Systolic:
    found = accelsim.platform(name, dict(settings))
    assert isinstance(found, Systolic)
    return found


@lru_cache(maxsize=4)
def _traced(model: str, seq: int) -> accelsim.Graph:
    return parse_gemm(model) if model.startswith(PREFIX) else accelsim.trace(model, seq=seq)


def cases(small: bool) -> list[Case]:
    """What is run. small: bert-tiny and one ragged GEMM."""
    model, platform, seq = ("bert-tiny", "systolic-16x16", 32) if small else ("bert-base", "systolic-32x32", 128)
    flows = ("os",) if small else ("ws", "os", "is")
    ragged = [{"rows": 16, "cols": 8, "dataflow": flow} for flow in flows]
    found = [Case("scale-sim", model, platform, {}, seq)]
    found += [Case("scale-sim", f"{PREFIX}{size}", platform, s) for s in ragged for size in ("100x70x50", "33x65x31")]
    found += [Case("zigzag", model, platform, s, seq) for s in ({}, *({"dataflow": f} for f in flows[1:]), NO_LIMIT)]
    found += [Case("zigzag", f"{PREFIX}100x70x50", platform, s) for s in ragged]
    found += [Case("accelforge", model, platform, s, seq) for s in ({}, *({"dataflow": f} for f in flows[1:]))]
    return found


# --- running a peer ---------------------------------------------------------------------------------------------------


def variable(peer: str) -> str:
    """Name of the environment variable that names the peer's Python."""
    return f"ACCELSIM_{peer.upper().replace('-', '_')}_PYTHON"


def peer_python(peer: str) -> str:
    """The interpreter that is asked for a peer."""
    return os.environ.get(variable(peer)) or sys.executable


def version(peer: str) -> str:
    """Installed version of a peer. Raises PeerError, with what would install it, where it is not."""
    package, python = REQUIREMENTS[peer][0].partition("==")[0], peer_python(peer)
    ask = f"import importlib.metadata as m, {MODULES[peer]}; print(m.version({package!r}))"
    try:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    except OSError as error:
        raise PeerError(f"{peer}: {variable(peer)}={python}: {error.strerror}") from None
    if done.returncode:
        install = " ".join(f"'{name}'" for name in REQUIREMENTS[peer])
        raise PeerError(
            f"{peer}: not installed in {python}: pip install {install} there, or name a Python that has it in "
            f"{variable(peer)}"
        )
    return done.stdout.split()[-1]


def run(case: Case, folder: Path, found: str) -> list[dict[str, Any]]:
    """A record for each GEMM that the peer answered. Raises PeerError with its last words if it fails."""
    folder = folder.resolve()
    write(export(case.graph(), case.chip(), case.peer), folder)
    (folder / RESULTS).unlink(missing_ok=True)
    done = subprocess.run(
        [peer_python(case.peer), str(folder / "run.py")], capture_output=True, text=True, check=False, cwd=folder
    )
    if done.returncode or not (folder / RESULTS).exists():
        words = (done.stderr.strip() or "no results").splitlines()[-1]
        raise PeerError(f"{case.peer}: {case.name}: exit status {done.returncode}: {words}")
    with (folder / RESULTS).open() as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "peer": case.peer,
            "version": found,
            "model": case.model,
            "seq": str(case.seq),
            "platform": case.platform,
            "settings": json.dumps(case.settings, sort_keys=True),
            "gemm": row["name"],
            **{name: row[name] for name in FIELDS[-3:]},
        }
        for row in rows
    ]


def read_record(path: Path = RECORD) -> list[dict[str, str]]:
    """The rows of a record. Raises SpecError if it cannot be read."""
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise SpecError(str(path), error.strerror, "a record of `accelsim reproduce peers`") from None


def case_of(row: dict[str, str]) -> Case:
    """The case that a record comes from."""
    return Case(row["peer"], row["model"], row["platform"], json.loads(row["settings"]), int(row["seq"]))


# --- where the difference comes from ----------------------------------------------------------------------------------

MEANING = {
    "latencies": "accelsim counts latencies of DRAM and buffers, the peer none",
    "waiting": "accelsim waits for memories; SCALE-Sim is told to estimate the bandwidth with which nothing waits",
    "folds": "accelsim's folds are pipelined; SCALE-Sim's follow one another, each with its loading and its skew",
    "tiles": "accelsim cuts what does not fit half a buffer into tiles, which makes more folds; SCALE-Sim does not",
    "from 0": "SCALE-Sim prints the number of the last cycle, counted from 0",
    "transfers": "accelsim: the longer of compute and transfer, tile by tile; ZigZag: stalls of ports, first loading, "
    "last storing. Not taken apart further; next to nothing where memories have no limit",
    "first load": "accelsim's array waits for its first stationary operand; ZigZag has that in its loading",
    "short folds": "in accelsim a fold takes at least as many cycles as the array has rows; tiles may add folds",
    "edges": "accelsim's skew runs through the whole array; ZigZag's through the part that a smaller GEMM uses",
    "overlap": "accelsim adds the first loading and the last storing; AccelForge takes the longest component alone",
    "array": "accelsim loads and drains the array and charges whole folds; AccelForge divides products by elements",
    "left": "what none of these explains",
}
"""What each term of a difference says, in words."""


def terms(case: Case, g: ExportedGemm, theirs: dict[str, str]) -> dict[str, float]:
    """Cycles by which ours are more than the peer's, by assumption; `left` is what no assumption explains.

    The terms sum to the difference. Compared are: SCALE-Sim's total without stalls, ZigZag's latency with loading and
    storing, AccelForge's longest component.
    """
    return {"scale-sim": _scale_sim_terms, "zigzag": _zigzag_terms, "accelforge": _accelforge_terms}[case.peer](
        case, g, theirs
    )


def compared(peer: str, theirs: dict[str, str]) -> float:
    """The peer's cycles that ours are held against."""
    return float(theirs["compute_cycles" if peer == "scale-sim" else "cycles"])


def serial_cycles(p: Systolic, g: ExportedGemm) -> int:
    """A GEMM as one tile, its folds in series: what SCALE-Sim counts, plus one."""
    return tile_array_cycles(p.dataflow, int(FoldTiming.SERIAL), p.rows, p.cols, 1, 1, g.m, g.k, g.n)


def _closed(ours: float, theirs: float, found: dict[str, float]) -> dict[str, float]:
    return {**found, "left": ours - theirs - sum(found.values())}


def _ours(case: Case, g: ExportedGemm, overrides: dict[str, Any]) -> int:
    """Our cycles of a GEMM on the platform with other settings, mapped anew."""
    chip = case.chip(overrides)
    work = gemm(g.m, g.k, g.n, a_bits=g.a_bits, w_bits=g.w_bits, o_bits=g.o_bits, arithmetic=chip.arithmetic)
    return chip.costs_of(work, best(chip, [work])).cycles


def _scale_sim_terms(case: Case, g: ExportedGemm, theirs: dict[str, str]) -> dict[str, float]:
    free, series = _ours(case, g, NO_LIMIT), _ours(case, g, {**NO_LIMIT, "fold_timing": "serial"})
    found = {
        "waiting": g.cost.cycles - free,
        "folds": free - series,
        "tiles": series - serial_cycles(case.chip(), g),
        "from 0": 1,
    }
    return _closed(g.cost.cycles, compared(case.peer, theirs), found)


def _zigzag_terms(case: Case, g: ExportedGemm, theirs: dict[str, str]) -> dict[str, float]:
    p = case.chip()
    alone = _ours(case, g, NO_LATENCY)
    down, across, streamed = fold_grid(p.dataflow, p.rows, p.cols, g.m, g.k, g.n)
    axes = AXES[p.dataflow]
    used = min(p.rows, getattr(g, axes.down)) + min(p.cols, getattr(g, axes.across))
    lead = p.rows if axes.stays != "output" else 0
    short = g.cost.compute_cycles - lead - (p.rows + p.cols - 2) - down * across * streamed
    found = {
        "latencies": g.cost.cycles - alone,
        "transfers": (alone - g.cost.compute_cycles) - (float(theirs["cycles"]) - float(theirs["compute_cycles"])),
        "first load": lead,
        "short folds": short,
        "edges": p.rows + p.cols - used,
    }
    return _closed(g.cost.cycles, compared(case.peer, theirs), found)


def _accelforge_terms(case: Case, g: ExportedGemm, theirs: dict[str, str]) -> dict[str, float]:
    alone = _ours(case, g, NO_LATENCY)
    longest = max(g.cost.compute_cycles, g.cost.dram_cycles)
    found = {
        "latencies": g.cost.cycles - alone,
        "overlap": alone - longest,
        "array": longest - max(g.m * g.k * g.n / (case.chip().rows * case.chip().cols), g.cost.dram_cycles),
    }
    return _closed(g.cost.cycles, compared(case.peer, theirs), found)


# --- tables -----------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A row per record: case, GEMM, our cycles, theirs, ratio, terms, and the assumption that weighs most."""
    ours: dict[str, dict[str, ExportedGemm]] = {}
    found = []
    for row in rows:
        case = case_of(row)
        gemms = ours.setdefault(case.name, {g.name: g for g in distinct_gemms(case.graph(), case.chip())})
        g, theirs = gemms[row["gemm"]], compared(case.peer, row)
        parts = terms(case, g, row)
        largest = max(parts, key=lambda name: abs(parts[name]))
        found.append(
            {"case": case, "version": row["version"], "gemm": g, "ours": g.cost.cycles, "theirs": theirs,
             "ratio": g.cost.cycles / theirs, "terms": parts, "largest": largest, "dram_cycles": row["dram_cycles"]}
        )  # fmt: skip
    return found


def text(rows: list[dict[str, str]]) -> Iterator[str]:
    """Markdown: a table for each case, and under each peer what its terms mean."""
    found = table(rows)
    if found:
        yield "Other simulators on the files of `accelsim export`: `accelsim reproduce peers`, recorded in runs.csv."
        yield "Cycles of one instance of each GEMM; the terms sum to accelsim's cycles less the peer's."
        yield ""
    for peer in PEERS:
        mine = [row for row in found if row["case"].peer == peer]
        if not mine:
            continue
        yield f"## {PEERS[peer].title} ({REQUIREMENTS[peer][0].partition('==')[0]} {mine[0]['version']})"
        yield ""
        for name in mine[0]["terms"]:
            yield f"- {name}: {MEANING[name]}"
        for case in dict.fromkeys(row["case"].name for row in mine):
            yield from ("", *_case_text([row for row in mine if row["case"].name == case]))
        yield ""


def _case_text(rows: list[dict[str, Any]]) -> Iterator[str]:
    case: Case = rows[0]["case"]
    settings = "memories without limit" if case.settings == NO_LIMIT else ", ".join(
        f"{path} {value}" for path, value in sorted(case.settings.items(), reverse=True)
    )  # fmt: skip
    names = list(rows[0]["terms"])
    size = "" if case.model.startswith(PREFIX) else f", seq {case.seq}"
    yield f"### {case.model}{size}, {case.platform}" + (f", {settings}" if settings else "")
    yield ""
    yield f"| GEMM | counts | accelsim | {case.peer} | ratio | {' | '.join(names)} | what explains most |"
    yield f"|{' --- |' * (6 + len(names))}"
    totals = [0.0] * (2 + len(names))
    for row in rows:
        g, parts = row["gemm"], [row["terms"][name] for name in names]
        totals = [t + g.count * v for t, v in zip(totals, (row["ours"], row["theirs"], *parts), strict=True)]
        cells = " | ".join(_cycles(v) for v in parts)
        yield (
            f"| {g.name} | {g.count} | {row['ours']:,} | {_cycles(row['theirs'])} | {row['ratio']:.3f} | {cells} | "
            f"{row['largest']} |"
        )
    if len(rows) > 1:
        cells = " | ".join(_cycles(v) for v in totals[2:])
        ratio = totals[0] / totals[1]
        yield f"| all, as they count | | {_cycles(totals[0])} | {_cycles(totals[1])} | {ratio:.3f} | {cells} | |"
    told = [row for row in rows if row["dram_cycles"]]
    if told:
        same = sum(math.isclose(float(r["dram_cycles"]), r["gemm"].cost.dram_cycles, rel_tol=1e-6) for r in told)
        yield ""
        yield f"DRAM cycles: the same in {same} of {len(told)} GEMMs."


def _cycles(value: float) -> str:
    return f"{value:,.0f}" if abs(value - round(value)) < 0.05 else f"{value:,.1f}"


def reproduce(folder: Path, small: bool) -> Iterator[str]:
    """Lines to print; runs.csv, tables.md and the exported folders are written into `folder`. small: bert-tiny."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    for peer in PEERS:
        try:
            versions[peer] = version(peer)
        except PeerError as error:
            missing[peer] = str(error)
    for case in cases(small):
        if case.peer in missing:
            continue
        yield f"running {case.peer} {versions[case.peer]}: {case.name}"
        try:
            rows += run(case, folder / case.peer / case.name, versions[case.peer])
        except PeerError as error:
            missing[case.peer] = f"failed: {error}"
    lines = [*text(rows), *missing.values()]
    yield ""
    yield from lines
    if rows:
        write_whole(folder / "runs.csv", partial(_save, rows))
        write_whole(folder / "tables.md", lambda path: path.write_text("\n".join(lines) + "\n"))
        yield f"wrote {folder / 'runs.csv'} and {folder / 'tables.md'}"
    done, left = ([peer for peer in PEERS if (peer in missing) is absent] for absent in (False, True))
    yield f"compared: {', '.join(done) or 'nothing'}; not compared: {', '.join(left) or 'nothing'}"


def _save(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, FIELDS, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
