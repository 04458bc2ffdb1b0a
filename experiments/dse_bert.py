"""The front of a 5 W edge accelerator and of a 75 W card for bert-base, with accuracy: which knob matters, and what it
costs to take the square arrays that others publish.

    accelsim reproduce dse-bert             # two spaces at two sequence lengths, some million designs
    accelsim reproduce dse-bert --small     # coarser axes, less than a minute

Every number is a prediction of the analytic model at the node of the space, energies by the technology tables. `error`
is measured, but of MiniLM-L6 on movie reviews in the same precision: that of bert-base was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accelsim.accuracy import measured
from accelsim.errors import Infeasible
from accelsim.files import write_whole
from accelsim.pareto import Growing, hypervolume, kept_chunks, knee, one_at_a_time, sobol, study_front
from accelsim.platforms import platform
from accelsim.simulate import simulate
from accelsim.space import Space, space
from accelsim.study import Study, read_study
from accelsim.sweep import evaluate, run
from accelsim.trace import trace

OBJECTIVES = ("time_s", "energy_j", "area_mm2", "error")
PRECISIONS = ("i-bert", "fq-bert", "w2a8")
"""8-, 4- and 2-bit weights, everything in integers. w8a8 keeps attention in fp32: see `refused`."""
TASK, MODEL = "movie-reviews", "minilm-l6"
SEQS = (128, 384)
RESULTS = Path(__file__).parent / "results" / "dse-bert"
SQUARES = {16: "systolic-16x16", 128: "systolic-128x128", 256: "systolic-256x256"}
"""Sides of the arrays that Gemmini, TPU v4i and TPU v1 chose, and our presets of that side."""


@dataclass(frozen=True)
class Budget:
    """A class of accelerators: its node, its limits, its knobs."""

    name: str
    node_nm: int
    limits: tuple[str, ...]
    dram_pj_per_byte: float
    axes: dict[str, Any]
    coarse: dict[str, Any]
    """Axes of --small."""


def _axes(
    sides: Sequence[int], arrays: Sequence[int], capacities: Sequence[int], dram: Sequence[int],
    lanes: Sequence[int], clocks: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    """Buffers feed every row and column of every array, whatever the number of arrays."""
    many = max(arrays)
    return {
        "rows": [*sides],
        "cols": [*sides],
        "arrays": [*arrays],
        "dataflow": ["os", "ws", "is"],
        "input_buffer.bytes_per_cycle": {"same_as": "rows", "times": many},
        "weight_buffer.bytes_per_cycle": {"same_as": "cols", "times": many},
        "accumulator.bytes_per_cycle": {"same_as": "cols", "times": 8 * many},
        "input_buffer.capacity_bytes": [*capacities],
        "weight_buffer.capacity_bytes": [*capacities],
        "accumulator.capacity_bytes": [*capacities],
        "dram.bytes_per_cycle": [*dram],
        "vector.lanes": [*lanes],
        "vector.buffer.bytes_per_cycle": {"same_as": "vector.lanes", "times": 4},
        "clock_hz": [*clocks],
    }


KIB = 1024
EDGE = Budget(
    "edge", 22, ("power_w <= 5", "area_mm2 <= 30"), 64.0,
    _axes((8, 16, 32, 64, 128, 256), (1, 2, 4), (16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB), (8, 16, 32, 64), (16, 64),
          (5e8, 1e9)),
    _axes((8, 16, 64, 128), (1,), (64 * KIB, 256 * KIB), (16, 64), (64,), (5e8, 1e9)),
)  # fmt: skip
CARD = Budget(
    "card", 7, ("power_w <= 75", "area_mm2 <= 400"), 50.0,
    _axes((16, 32, 64, 128, 256), (1, 4, 16), (64 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB), (64, 256, 1024),
          (64, 256, 1024), (7e8, 1e9, 1.4e9)),
    _axes((16, 64, 128, 256), (1,), (256 * KIB, 1024 * KIB), (256, 1024), (256,), (1e9,)),
)  # fmt: skip


def space_of(budget: Budget, seq: int, small: bool = False, base: str = "systolic-32x32") -> Space:
    """The space of a budget; small: the coarse one. base: a preset whose own fields hold where there is no axis."""
    axes = budget.coarse if small else budget.axes
    if base != "systolic-32x32":
        axes = {}
    return space(
        {
            "platform": base, "model": "bert-base", "seq": seq, "energies": "technology",
            "error_of": {"task": TASK, "model": MODEL}, "set": {"dram.pj_per_byte": budget.dram_pj_per_byte},
            "axes": {"precision": [*PRECISIONS], "technology_nm": [budget.node_nm], **axes},
            "limits": [*budget.limits],
        }
    )  # fmt: skip


def swept(found: Space, folder: Path) -> Study:
    """The study of a space, priced now or gone on with."""
    run(found, folder, resume=(folder / "manifest.json").exists())
    return read_study(folder)


# --- tables -----------------------------------------------------------------------------------------------------------


def shares(study: Study, values: np.ndarray) -> list[dict[str, Any]]:
    """What is left of the front's hypervolume if the array must be one square of a given side, a row per side.

    values: of the front, (n, d). Logarithms from the least to the most of the whole front, reference 10 % beyond.
    """
    low, high = np.log(values.min(axis=0)), np.log(values.max(axis=0))
    spread = np.where(high > low, high - low, 1.0)
    reference = np.full(len(OBJECTIVES), 1.1)
    whole = hypervolume((np.log(values) - low) / spread, reference)
    growing = {side: Growing() for side in SQUARES}
    for points, kept, rows in kept_chunks(study, [*OBJECTIVES, "rows", "cols", "arrays"]):
        for side, mine in growing.items():
            mask = kept & (rows[:, 4] == side) & (rows[:, 5] == side) & (rows[:, 6] == 1)
            mine.add(points[mask], rows[mask, :4])
    found = []
    for side, mine in growing.items():
        _, own = mine.front()
        part = hypervolume((np.log(own) - low) / spread, reference) / whole if len(own) else 0.0
        found.append({"array": f"one {side}x{side}, rest free", "front_points": len(own), "hypervolume_share": part})
    return found


def published(budget: Budget, seq: int, values: np.ndarray) -> list[dict[str, Any]]:
    """Each preset as it is published, at the budget's node, in each precision: how far it is from the front.

    x_time: its time over that of the fastest design of the front that takes no more energy, area or error; x_energy and
    x_area likewise; None if there is none. Whether it keeps the budget's limits is told apart.
    """
    rows = []
    for preset in SQUARES.values():
        found = space_of(budget, seq, base=preset)
        columns = evaluate(found, np.arange(found.points))
        for i in range(found.points):
            own = np.array([columns[name][i] for name in OBJECTIVES])
            row = {
                "platform": preset,
                "precision": str(columns["precision"][i]),
                **dict(zip(OBJECTIVES, own, strict=True)),
            }
            row["power_w"] = columns["power_w"][i]
            row["within"] = all(limit.keeps(np.array([columns[limit.field][i]]))[0] for limit in found.limits)
            for j, name in enumerate(("x_time", "x_energy", "x_area")):
                others = [k for k in range(len(OBJECTIVES)) if k != j]
                better = values[(values[:, others] <= own[others]).all(axis=1)]
                row[name] = float(own[j] / better[:, j].min()) if len(better) else None
            rows.append(row)
    return rows


def refused() -> str:
    """Why w8a8 is not among the precisions: what the platform says to it."""
    try:
        simulate(trace("bert-base", seq=SEQS[0]), platform("systolic-32x32"), precision="w8a8")
    except Infeasible as error:
        return str(error)
    raise RuntimeError("w8a8 runs on an integer array now: put it among PRECISIONS")


def text(budget: Budget, seq: int, study: Study, small: bool) -> Iterator[str]:
    """The tables of one study, as Markdown."""
    table = study_front(study, OBJECTIVES)
    values = table[[*OBJECTIVES]].to_numpy(float)
    bend = table.iloc[knee(values)]
    found = study.space
    kept = sum(int(mask.sum()) for _, mask, _ in kept_chunks(study, ["time_s"]))
    yield f"## {budget.name}: {' and '.join(budget.limits)}, {budget.node_nm} nm, seq {seq}"
    yield ""
    counts = f"{found.points:,} designs, {kept:,} within the limits, {len(table):,} on the front"
    yield f"{counts} of {', '.join(OBJECTIVES)}."
    yield ""
    yield "| design | time, ms | energy, mJ | power, W | area, mm2 | error, % | precision | array | dataflow |"
    yield "| --- " * 9 + "|"
    picks = {f"least {name}": table.iloc[int(values[:, i].argmin())] for i, name in enumerate(OBJECTIVES[:3])}
    for precision in PRECISIONS:
        own = table[table["precision"] == precision]
        if len(own):
            picks[f"knee of {precision}"] = own.iloc[knee(own[[*OBJECTIVES[:3]]].to_numpy(float))]
    for name, row in {**picks, "knee": bend}.items():
        yield (
            f"| {name} | {1e3 * row['time_s']:.3g} | {1e3 * row['energy_j']:.3g} | {row['power_w']:.3g} | "
            f"{row['area_mm2']:.3g} | {100 * row['error']:.2f} | {row['precision']} | "
            f"{row['arrays']} of {row['rows']}x{row['cols']} | {row['dataflow']} |"
        )
    yield ""
    yield "Which knob matters: share of the variance of the logarithm, alone / with all it interacts with (Sobol)."
    yield ""
    indices = sobol(found, OBJECTIVES[:3], samples=256 if small else 2048)
    near = one_at_a_time(found, OBJECTIVES[:3], int(bend["point"])).set_index(["objective", "knob"])
    yield "| knob | " + " | ".join(OBJECTIVES[:3]) + " | from the knee, most / least time | energy | area |"
    yield "| --- " * 7 + "|"
    by = indices.set_index(["objective", "knob"])
    for knob in dict.fromkeys(indices["knob"]):
        cells = [f"{by.loc[(n, knob), 'first']:.2f} / {by.loc[(n, knob), 'total']:.2f}" for n in OBJECTIVES[:3]]
        cells += [f"{near.loc[(n, knob), 'ratio']:.2f}" for n in OBJECTIVES[:3]]
        yield f"| {knob} | " + " | ".join(cells) + " |"
    yield ""
    yield "What a square array costs:"
    yield ""
    yield "| array | designs on its own front | hypervolume, share of the front's |"
    yield "| --- | --- | --- |"
    for row in shares(study, values):
        yield f"| {row['array']} | {row['front_points']:,} | {row['hypervolume_share']:.3f} |"
    yield ""
    yield "As published, beside the best design of the front that is no worse in everything else (none: there is none):"
    yield ""
    yield "| platform | precision | ms | mJ | mm2 | W | within the limits | x time | x energy | x area |"
    yield "| --- " * 10 + "|"
    for row in published(budget, seq, values):
        ratios = (row[name] for name in ("x_time", "x_energy", "x_area"))
        times = " | ".join(f"{ratio:.2f}" if ratio else "none" for ratio in ratios)
        yield (
            f"| {row['platform']} | {row['precision']} | {1e3 * row['time_s']:.3g} | {1e3 * row['energy_j']:.3g} | "
            f"{row['area_mm2']:.3g} | {row['power_w']:.3g} | {'yes' if row['within'] else 'no'} | {times} |"
        )
    yield ""


def reproduce(folder: Path, small: bool) -> Iterator[str]:
    """Lines to print. Writes studies, tables.md, front-NAME.csv, NAME.png and NAME-knobs.png into `folder`."""
    from accelsim import page
    from accelsim.plots import save_figure

    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Designs for bert-base", "",
        "Predictions of the analytic model; energies and leakage by the technology tables at the node. "
        f"Error is that of {MODEL} on {TASK}, held-out texts, mean of three seeds, in the same precision: "
        + ", ".join(f"{p} {measured(MODEL, TASK, p).error:.2%}" for p in PRECISIONS) + ".", "",
        f"w8a8 (Q8BERT: linear layers only) does not run on an integer array: {refused()}. i-bert is the design with "
        "8-bit weights and activations everywhere.", "",
    ]  # fmt: skip
    yield from lines
    for budget in (EDGE, CARD):
        for seq in SEQS:
            name = f"{budget.name}-{seq}"
            study = swept(space_of(budget, seq, small), folder / "studies" / name)
            part = list(text(budget, seq, study, small))
            lines += part
            yield from part
            csv = folder / f"front-{name}.csv"
            table = study_front(study, OBJECTIVES)[["point", *study.space.columns, *OBJECTIVES, "power_w"]]
            write_whole(csv, lambda path, table=table: table.to_csv(path, index=False))  # type: ignore[misc]
            yield f"wrote {csv}"
            drawn = page.figures(page.kept(study))
            for key, figure in drawn.items():
                yield f"wrote {save_figure(figure, folder / f'{name}-{key}.png')}"
    write_whole(folder / "tables.md", lambda path: path.write_text("\n".join(lines) + "\n"))
    yield f"wrote {folder / 'tables.md'}; accelsim report {folder / 'studies' / 'edge-128'} --html edge-128.html"
