"""Input files of other simulators for the GEMMs of a graph on a systolic array, for anybody to run and compare.

    scale-sim   SCALE-Sim 3 (arXiv:1811.02883, arXiv:2504.15377): a configuration, a GEMM topology
    zigzag      ZigZag 3 (DOI 10.1109/TC.2021.3059962): workload, accelerator and mapping
    accelforge  AccelForge 1 (github.com/Accelergy-Project/accelforge): architecture, workload and mapping

Every number of the files is one of the graph or the platform; what a peer has no place for is a comment. Each folder
has a `run.py` for the peer's own Python and a RUN.md with the commands and with what makes the two sides differ.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from accelsim.errors import SpecError
from accelsim.files import write_whole
from accelsim.formulas import Dataflow, FoldTiming, ceil_div
from accelsim.graph import Graph
from accelsim.mapping import best
from accelsim.platforms.base import Cost, Platform
from accelsim.platforms.systolic import Systolic
from accelsim.simulate import at_precision
from accelsim.work import WorkKind, gemm

REQUIREMENTS = {
    "scale-sim": ("scalesim==3.0.0", "numpy<2.3"),
    "zigzag": ("zigzag-dse==3.9.1", "six"),
    "accelforge": ("accelforge==1.0.467",),
}
"""What pip installs for each peer. numpy: scalesim 3.0.0 calls what 2.3 took away; six: zigzag-dse does not name it."""
MODULES = {"scale-sim": "scalesim", "zigzag": "zigzag", "accelforge": "accelforge"}
"""The name under which a peer is imported."""
GEMMS = "gemms.csv"
RESULTS = "results.csv"
CONFIG, TOPOLOGY, LAYOUT = "array.cfg", "gemms_mnk.csv", "layout.csv"


@dataclass(frozen=True)
class ExportedGemm:
    """A GEMM (m, k) x (k, n) that the graph asks for `count` times, and what one of them costs us.

    op: the first op that asks for it. tile_*, n_outer: of our mapping. cost: analytic, one instance, without bias.
    """

    name: str
    op: str
    m: int
    k: int
    n: int
    a_bits: int
    w_bits: int
    o_bits: int
    count: int
    tile_m: int
    tile_k: int
    tile_n: int
    n_outer: int
    cost: Cost


class Axes(NamedTuple):
    """Which loop of a GEMM lies down the rows, across the columns and streams, and which operand stays in place."""

    down: str
    across: str
    streamed: str
    stays: str


AXES = {
    Dataflow.WS: Axes("k", "n", "m", "weight"),
    Dataflow.OS: Axes("m", "n", "k", "output"),
    Dataflow.IS: Axes("k", "m", "n", "input"),
}
SHARED = {"m": "weight", "n": "input", "k": "output"}
"""The operand that a loop does not index: it is broadcast, or summed, along the axis the loop lies on."""


def distinct_gemms(graph: Graph, platform: Systolic) -> list[ExportedGemm]:
    """The different GEMMs of a graph that has its precision, in order of appearance, with how often each counts.

    Raises SpecError for a graph without a GEMM, Infeasible if the hardware cannot do one.
    """
    counts: dict[tuple[int, ...], int] = {}
    first: dict[tuple[int, ...], str] = {}
    for op, works in graph.works:
        for work in works:
            if work.kind is WorkKind.GEMM:
                platform.check_widths(work, op.name)
                key = (work.m, work.k, work.n, work.a_bits, work.w_bits, work.o_bits)
                counts[key] = counts.get(key, 0) + work.count
                first.setdefault(key, op.name)
    if not counts:
        raise SpecError("graph", graph.name, "at least one GEMM to export")
    found = []
    for (m, k, n, a_bits, w_bits, o_bits), count in counts.items():
        key = (m, k, n, a_bits, w_bits, o_bits)
        work = gemm(m, k, n, a_bits=a_bits, w_bits=w_bits, o_bits=o_bits, arithmetic=platform.arithmetic)
        mapping = best(platform, [work], [first[key]])
        tile_m, tile_k, tile_n, _, n_outer, _ = (int(v) for v in mapping[0])
        name = f"gemm_{m}x{k}x{n}"
        if sum(other[:3] == key[:3] for other in counts) > 1:
            name += f"_{a_bits}x{w_bits}to{o_bits}"
        found.append(
            ExportedGemm(
                name, first[key], m, k, n, a_bits, w_bits, o_bits, count,
                tile_m, tile_k, tile_n, n_outer, platform.costs_of(work, mapping),
            )
        )  # fmt: skip
    return found


def export(graph: Graph, platform: Platform, to: str, precision: str | None = None) -> dict[str, str]:
    """{file name: text} of the folder in which peer `to` runs the GEMMs of the graph on the platform's array.

    >>> from accelsim import gemm_graph, platform
    >>> files = export(gemm_graph(8, 64, 96), platform("systolic-32x32"), "scale-sim")
    >>> print(files["gemms_mnk.csv"].splitlines()[1])
    gemm_8x64x96, 8, 96, 64, 1:1, 1,

    precision: as in `simulate`. Raises SpecError for an unknown peer, a platform that is no systolic array, more than
    one array or a graph without a GEMM; Infeasible if the hardware cannot do one.
    """
    if to not in PEERS:
        raise SpecError.unknown("--to", to, PEERS)
    if not isinstance(platform, Systolic):
        raise SpecError(f"export {platform.name}", platform.kind, "a platform of kind systolic, as systolic-32x32")
    if platform.arrays != 1:
        raise SpecError(
            "arrays", platform.arrays, "1, what the peers describe: --set arrays=1 compares one of the arrays"
        )
    graph = at_precision(graph, platform, precision)
    gemms = distinct_gemms(graph, platform)
    size = f"seq {graph.meta.get('seq', '?')}, batch {graph.meta.get('batch', '?')}"
    title = f"{graph.name} ({size}, {graph.meta.get('precision', 'fp32')}) on {platform.name}, for {PEERS[to].title}"
    files = PEERS[to].files(platform, gemms, title)
    return {
        "RUN.md": _readme(platform, gemms, title, to),
        GEMMS: _gemms_csv(gemms),
        **files,
        "run.py": PEERS[to].script.replace("@TITLE@", title).replace("@CLOCK@", _float(platform.clock_hz)) + _TABLE,
    }


def write(files: dict[str, str], folder: Path) -> list[Path]:
    """Paths of the written files, each written whole or not at all. Raises SpecError if the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [write_whole(folder / name, partial(_write_text, text)) for name, text in files.items()]
    except OSError as error:
        raise SpecError("--out", str(folder), f"a folder that can be written ({error.strerror or error})") from None


def _write_text(text: str, path: Path) -> None:
    path.write_text(text)


# --- what all peers share ---------------------------------------------------------------------------------------------


def _gemms_csv(gemms: list[ExportedGemm]) -> str:
    """A row per GEMM: shape, bits, how often it counts, our cycles of one instance: all, array alone, DRAM alone."""
    shape = ("name", "m", "k", "n", "a_bits", "w_bits", "o_bits", "count")
    priced = ("cycles", "compute_cycles", "dram_cycles")
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow((*shape, *priced, "first_op"))
    for g in gemms:
        table.writerow((*(getattr(g, name) for name in shape), *(getattr(g.cost, name) for name in priced), g.op))
    return out.getvalue()


def _float(value: float) -> str:
    """Shortest decimal that reads back as the same float64 in YAML 1.1 as well, which wants a point in front of an e.

    >>> _float(1e-05), _float(0.5), _float(1e9)
    ('1.0e-05', '0.5', '1000000000.0')
    """
    text = repr(float(value))
    mantissa, e, exponent = text.partition("e")
    return text if not e or "." in mantissa else f"{mantissa}.0e{exponent}"


def _comment(lines: tuple[str, ...] | list[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)


def _widest(gemms: list[ExportedGemm]) -> tuple[int, int]:
    """(bits of the widest input, of the widest weight): what one place of a buffer or register is made for."""
    return max(g.a_bits for g in gemms), max(g.w_bits for g in gemms)


def _mixed(gemms: list[ExportedGemm]) -> list[str]:
    if len({(g.a_bits, g.w_bits) for g in gemms}) == 1:
        return []
    a_bits, w_bits = _widest(gemms)
    return [f"GEMMs differ in width: places are made for the widest, {a_bits}-bit inputs and {w_bits}-bit weights"]


def _left_out(p: Systolic) -> list[str]:
    """What of the platform no peer has a place for."""
    return [
        f"vector unit of {p.vector.lanes} lanes: softmax, layer norm, GELU and residual additions are not exported",
        f"latencies, which no peer counts: {p.dram.latency_cycles} cycles of DRAM, {p.input_buffer.latency_cycles}, "
        f"{p.weight_buffer.latency_cycles} and {p.accumulator.latency_cycles} of input, weight buffer, accumulator",
        "biases are not exported: they add bytes, no products",
    ]


def _readme(p: Systolic, gemms: list[ExportedGemm], title: str, to: str) -> str:
    peer = PEERS[to]
    install = " ".join(f"'{name}'" if set("<>") & set(name) else name for name in REQUIREMENTS[to])
    rows = "\n".join(
        f"| {g.name} | {g.m} | {g.k} | {g.n} | {g.count} | {g.cost.cycles:,} | {g.cost.compute_cycles:,} | {g.op} |"
        for g in gemms
    )
    differences = "\n".join(f"- {line}" for line in peer.differences(p, gemms))
    ours = "\n".join(f"- {name}: {text}" for name, text in p.assumptions().items())
    files = "\n".join(f"- `{name}`: {text}" for name, text in peer.contents.items())
    return f"""# {title}

```
python -m venv peer
peer/bin/python -m pip install {install}
peer/bin/python run.py
```

`run.py` needs the peer alone, not accelsim. It prints both sides for each GEMM and writes `{RESULTS}`: name, cycles,
compute_cycles (the array alone, as the peer counts it), dram_cycles (DRAM alone, where the peer tells it).

{files}
- `{GEMMS}`: the same GEMMs, how often each counts, and accelsim's cycles

## GEMMs

Cycles are accelsim's for one instance, analytic; `compute` those of the array alone. The peer runs each row once.

| GEMM | m | k | n | counts | cycles | compute | first op |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

## What makes the two sides differ

{differences}

## What accelsim assumes

{ours}
"""


_TABLE = """

def main():
    with (HERE / "gemms.csv").open() as file:
        gemms = list(csv.DictReader(file))
    found = simulate([row["name"] for row in gemms])
    with (HERE / "results.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\\n")
        table.writerow(("name", "cycles", "compute_cycles", "dram_cycles"))
        table.writerows((row["name"], *found[row["name"]]) for row in gemms if row["name"] in found)
    heads = ("count", "accelsim", "peer", "ratio", "array alone", "peer", "ratio")
    print(f"{'GEMM':24}" + "".join(f" {head:>12}" for head in heads))
    for row in gemms:
        if row["name"] not in found:
            print(f"{row['name']:24} not among the peer's files: see RUN.md")
            continue
        ours, alone = float(row["cycles"]), float(row["compute_cycles"])
        cycles, compute, _ = found[row["name"]]
        cells = (row["count"], f"{ours:,.0f}", f"{cycles:,.0f}", f"{ours / cycles:.3f}")
        cells += (f"{alone:,.0f}", f"{compute:,.0f}", f"{alone / compute:.3f}")
        print(f"{row['name']:24}" + "".join(f" {cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
"""


# --- SCALE-Sim --------------------------------------------------------------------------------------------------------


def _kilo_elements(path: str, capacity_bytes: int, bits: int) -> int:
    """Thousands (1024) of elements that a buffer holds, rounded down. Raises SpecError below one."""
    thousands = capacity_bytes * 8 // bits // 1024
    if thousands < 1:
        raise SpecError(
            f"{path}.capacity_bytes",
            capacity_bytes,
            f"room for 1024 elements of {bits} bits: SCALE-Sim counts buffers in thousands of elements",
        )
    return thousands


def _scale_sim_differences(p: Systolic, gemms: list[ExportedGemm]) -> list[str]:
    a_bits, w_bits = _widest(gemms)
    timing = (
        "folds: SCALE-Sim's follow one another, each with its own loading, fill and drain; this platform's are "
        "pipelined. With --set fold_timing=serial both count the same"
        if p.fold_timing is FoldTiming.PIPELINED
        else "folds: serial on both sides"
    )
    return [
        timing,
        "printed cycles are the number of the last cycle, counted from 0: one less than how many there are",
        "InterfaceBandwidth = CALC: SCALE-Sim reports the bandwidth that no stall would need, so DRAM never makes it "
        "wait; cycles with prefetch are at rates of its own. USER takes those of this file, one port for each operand; "
        "accelsim's operands share one channel",
        f"a word is one element: 1 kB holds 1024 inputs of {a_bits} bits, weights of {w_bits} bits or sums of "
        f"{p.accumulator_bits} bits, rounded down",
        "tiles: accelsim searches tiles and loop orders, SCALE-Sim prefetches in the order the array asks",
        "no count: each GEMM runs once, see its `Counts` column; instances of attention heads do not overlap",
        f"no buffer bandwidths ({p.input_buffer.bytes_per_cycle:g}, {p.weight_buffer.bytes_per_cycle:g} and "
        f"{p.accumulator.bytes_per_cycle:g} bytes/cycle here), no clock, no energy, no area",
        *_mixed(gemms),
        *_left_out(p),
    ]


def _scale_sim(p: Systolic, gemms: list[ExportedGemm], title: str) -> dict[str, str]:
    """Configuration and GEMM topology (Layer, M, N, K) of SCALE-Sim 3, and the layout file it insists on, empty."""
    a_bits, w_bits = _widest(gemms)
    rate = p.dram.bytes_per_cycle * p.dram.efficiency * 8
    read, filters, sums = (max(1, math.floor(rate / bits)) for bits in (a_bits, w_bits, max(g.o_bits for g in gemms)))
    weights_at = max(g.m * g.k for g in gemms)
    sums_at = weights_at + max(g.k * g.n for g in gemms)
    config = f"""{_comment([title, *_scale_sim_differences(p, gemms)])}
[general]
run_name = accelsim

[architecture_presets]
ArrayHeight = {p.rows}
ArrayWidth = {p.cols}
IfmapSramSzkB = {_kilo_elements("input_buffer", p.input_buffer.capacity_bytes, a_bits)}
FilterSramSzkB = {_kilo_elements("weight_buffer", p.weight_buffer.capacity_bytes, w_bits)}
OfmapSramSzkB = {_kilo_elements("accumulator", p.accumulator.capacity_bytes, p.accumulator_bits)}
# addresses: no operand of the largest GEMM reaches into the next
IfmapOffset = 0
FilterOffset = {weights_at}
OfmapOffset = {sums_at}
Dataflow = {p.dataflow.name.lower()}
# elements a cycle to DRAM, of results; of inputs and weights the bank bandwidths below. USER mode alone reads them
Bandwidth = {sums}
# SCALE-Sim needs them with Ramulator traces alone: no counterpart here
ReadRequestBuffer = 32
WriteRequestBuffer = 32

[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = {read}
IfmapSRAMBankNum = 1
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = {filters}
FilterSRAMBankNum = 1
FilterSRAMBankPort = 2

[sparsity]
SparsitySupport = false

[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""
    # behind the four fields and the sparsity SCALE-Sim reads nothing, so the counts can stand there
    topology = "Layer, M, N, K, Sparsity, Counts (not read by SCALE-Sim),\n"
    topology += "".join(f"{g.name}, {g.m}, {g.n}, {g.k}, 1:1, {g.count},\n" for g in gemms)
    return {CONFIG: config, TOPOLOGY: topology, LAYOUT: "Layer (custom layouts are off),\n"}


_SCALE_SIM_SCRIPT = '''"""@TITLE@: runs it and prints both sides. Needs SCALE-Sim, not accelsim."""

import csv
from pathlib import Path

from scalesim.scale_sim import scalesim

HERE = Path(__file__).resolve().parent


def simulate(names):
    """{name: (cycles with prefetch and stalls, cycles of the array, "": no DRAM alone)}."""
    run = scalesim(
        save_disk_space=True,  # no traces: they are large, and `python -m scalesim.scale` always writes them
        verbose=False,
        config=str(HERE / "array.cfg"),
        topology=str(HERE / "gemms_mnk.csv"),
        layout=str(HERE / "layout.csv"),
        input_type_gemm=True,
    )
    run.run_scale(top_path=str(HERE / "out"))
    with (HERE / "out" / "accelsim" / "COMPUTE_REPORT.csv").open() as file:
        rows = [{k.strip(): v for k, v in row.items()} for row in csv.DictReader(file)]
    return {
        name: (float(row["Total Cycles (incl. prefetch)"]), float(row["Total Cycles"]) - float(row["Stall Cycles"]), "")
        for name, row in zip(names, rows, strict=True)
    }
'''


# --- ZigZag -----------------------------------------------------------------------------------------------------------

_ZIGZAG_LOOP = {"m": "D", "k": "C", "n": "K"}
"""The loops of a GEMM by the names of ZigZag's reader of ONNX."""
_ZIGZAG_OPERAND = {"input": "I1", "weight": "I2", "output": "O"}


def _zigzag_differences(p: Systolic, gemms: list[ExportedGemm]) -> list[str]:
    stays = AXES[p.dataflow].stays
    register = (
        f"pipelined folds: the {stays} register has two places, one of them filled behind the stream"
        if p.fold_timing is FoldTiming.PIPELINED
        else f"serial folds: the {stays} register has one place, so that ZigZag waits while it is filled; the skew of "
        "each fold, rows + columns - 2 cycles, it counts once for a GEMM"
    )
    return [
        register,
        "fill and drain: ZigZag counts the drain along both axes once, accelsim the skew and, pipelined, the first "
        "loading as well",
        "loops: accelsim's, with tiles that divide where its own do not; which memory keeps what ZigZag decides "
        "itself. Leave temporal_ordering empty ([]) and it searches the order as well",
        "array and DRAM: ZigZag adds the first loading and the last storing to the time of the array and its stalls; "
        "accelsim adds up max(compute, transfer) tile by tile",
        f"DRAM: one port of {_dram_bits(p)} bits a cycle for all operands, {p.dram.bytes_per_cycle:g} x "
        f"{p.dram.efficiency:g} bytes, rounded down",
        "buffers: a tile takes at most half of each (force_double_buffering); writing into input and weight buffers is "
        "as fast as DRAM, accelsim lets it cost nothing",
        "the accumulator's bandwidth is shared evenly by its read and its write port",
        "DRAM size: that of the largest GEMM; accelsim's has no end",
        *(
            f"{operand} buffer: a port of {wide} bits a cycle instead of {narrow:g}; with less than an element for "
            "each row or column ZigZag takes a smaller array, accelsim waits"
            for operand in ("input", "weight")
            if (wide := zigzag_port_bits(p, gemms, operand))
            > (narrow := 8 * getattr(p, f"{operand}_buffer").bytes_per_cycle)
        ),
        "energies: pJ for an access of the whole width of a port. A multiplication of narrower numbers costs less in "
        "accelsim, in ZigZag the same; registers are part of it and cost nothing by themselves. No leakage",
        "no count: each GEMM runs once; instances of attention heads do not overlap",
        *(f"{g.name} is left out: ZigZag fails on a GEMM of one step" for g in gemms if not zigzag_loops(p, g)),
        *_mixed(gemms),
        *_left_out(p),
    ]


def _dram_bits(p: Systolic) -> int:
    return max(1, math.floor(8 * p.dram.bytes_per_cycle * p.dram.efficiency))


def zigzag_port_bits(p: Systolic, gemms: list[ExportedGemm], operand: str) -> int:
    """Bits a cycle that ZigZag is told a buffer (input or weight) feeds: at least one element for each row or column.

    ZigZag leaves out what a narrower port does not feed in one cycle, and works on a smaller array; accelsim waits.
    """
    axes = AXES[p.dataflow]
    sides = [side for dim, side in ((axes.down, p.rows), (axes.across, p.cols)) if SHARED[dim] != operand]
    a_bits, w_bits = _widest(gemms)
    fed = 0 if operand == axes.stays else max(sides) * (a_bits if operand == "input" else w_bits)
    rate: float = getattr(p, f"{operand}_buffer").bytes_per_cycle
    return max(1, math.floor(8 * rate), fed)


def _zigzag_port(number: int, kind: str, bits: int, allocation: list[str]) -> str:
    name = {"read": "r", "write": "w", "read_write": "rw"}[kind] + f"_port_{number}"
    return (
        f"      - {{name: {name}, type: {kind}, bandwidth_min: {bits}, bandwidth_max: {bits}, "
        f"allocation: [{', '.join(repr(a) for a in allocation)}]}}\n"
    )


def _zigzag_memory(
    name: str, bits: int, operands: list[str], ports: str, served: list[str],
    r_cost: float = 0.0, w_cost: float = 0.0, area: float = 0.0, latency: int = 0, halves: bool = False,
) -> str:  # fmt: skip
    return (
        f"  {name}:\n    size: {bits}\n    r_cost: {_float(r_cost)}\n    w_cost: {_float(w_cost)}\n"
        f"    area: {_float(area)}\n    latency: {latency}\n    operands: [{', '.join(operands)}]\n    ports:\n{ports}"
        f"    served_dimensions: [{', '.join(served)}]\n    force_double_buffering: {str(halves).lower()}\n"
    )


def _zigzag_accelerator(p: Systolic, gemms: list[ExportedGemm]) -> str:
    """Array, registers, buffers and DRAM, innermost first; D1 down the rows, D2 across the columns."""
    axes, (a_bits, w_bits), sums = AXES[p.dataflow], _widest(gemms), p.accumulator_bits
    area = p.area_by_part_mm2()
    places = 2 if p.fold_timing is FoldTiming.PIPELINED else 1
    four = ["O, tl", "O, th", "O, fl", "O, fh"]

    def sum_ports(bits: int) -> str:
        return _zigzag_port(1, "read", bits, four[:2]) + _zigzag_port(1, "write", bits, four[2:])

    def register_ports(bits: int) -> str:
        kinds = [("read", 1, "tl"), ("read", 2, "th"), ("write", 1, "fl"), ("write", 2, "fh")]
        return "".join(_zigzag_port(number, kind, bits, [f"O, {to}"]) for kind, number, to in kinds)

    def buffer(operand: str) -> str:
        name = f"{operand}_buffer"
        memory, letter, bits = getattr(p, name), _ZIGZAG_OPERAND[operand], zigzag_port_bits(p, gemms, operand)
        written = max(bits, _dram_bits(p))
        ports = _zigzag_port(1, "read", bits, [f"{letter}, tl"]) + _zigzag_port(1, "write", written, [f"{letter}, fh"])
        costs = memory.read_pj_per_byte * bits / 8, memory.write_pj_per_byte * written / 8
        size, served = 8 * memory.capacity_bytes, ["D1", "D2"]
        return _zigzag_memory(name, size, [letter], ports, served, *costs, area[name], memory.latency_cycles, True)

    registers = ""
    if axes.stays == "output":
        registers += _zigzag_memory("sum_register", places * sums, ["O"], register_ports(sums), [], halves=places == 2)
    else:
        operand, bits = _ZIGZAG_OPERAND[axes.stays], a_bits if axes.stays == "input" else w_bits
        ports = _zigzag_port(1, "read", bits, [f"{operand}, tl"]) + _zigzag_port(1, "write", bits, [f"{operand}, fh"])
        registers += _zigzag_memory(f"{axes.stays}_register", places * bits, [operand], ports, [], halves=places == 2)
        # sums run down a column and leave it below: one place for each column
        registers += _zigzag_memory("sum_register", sums, ["O"], register_ports(sums), ["D1"])
    half = max(1, math.floor(4 * p.accumulator.bytes_per_cycle))
    accumulator = _zigzag_memory(
        "accumulator", 8 * p.accumulator.capacity_bytes, ["O"], sum_ports(half), ["D1", "D2"],
        p.accumulator.read_pj_per_byte * half / 8, p.accumulator.write_pj_per_byte * half / 8,
        area["accumulator"], p.accumulator.latency_cycles, True,
    )  # fmt: skip
    every = [*(f"{i}, {d}" for i in ("I1", "I2") for d in ("fh", "tl")), *four]
    dram_bits = max(g.m * g.k * g.a_bits + g.k * g.n * g.w_bits + g.m * g.n * max(sums, g.o_bits) for g in gemms)
    dram_pj = p.dram.pj_per_byte * _dram_bits(p) / 8
    dram = _zigzag_memory(
        "dram", dram_bits, ["I1", "I2", "O"], _zigzag_port(1, "read_write", _dram_bits(p), every), ["D1", "D2"],
        dram_pj, dram_pj, 0.0, p.dram.latency_cycles,
    )  # fmt: skip
    return f"""name: {p.name}
operational_array:
  input_precision: [{p.input_bits}, {p.weight_bits}]
  unit_energy: {_float(p.multiply_pj + p.accumulate_pj)}
  unit_area: {_float(area["arrays"] / (p.rows * p.cols))}
  dimensions: [D1, D2]
  sizes: [{p.rows}, {p.cols}]
  systolic_dimensions: [D1, D2]
# sizes in bits, widths in bits a cycle, costs in pJ, areas in mm2; ZigZag keeps `latency` and adds it to no time
memories:
{registers}{buffer("input")}{buffer("weight")}{accumulator}{dram}"""


def _zigzag(p: Systolic, gemms: list[ExportedGemm], title: str) -> dict[str, str]:
    """Workload, accelerator and mapping of ZigZag 3."""
    notes = _comment([title, *_zigzag_differences(p, gemms)])
    axes = AXES[p.dataflow]
    workload, mapping = "", ""
    described = [g for g in gemms if zigzag_loops(p, g)]
    if not described:
        raise SpecError("graph", gemms[0].name, "a GEMM of more than one step of the array: ZigZag has no other")
    for i, g in enumerate(described):
        workload += f"""- id: {i}
  name: {g.name}  # counts {g.count} times, first as {g.op}
  operator_type: Gemm
  equation: O[d][k]+=I[d][c]*W[c][k]
  dimension_relations: []
  loop_dims: [D, C, K]
  loop_sizes: [{g.m}, {g.k}, {g.n}]
  operand_precision: {{I: {g.a_bits}, W: {g.w_bits}, O: {p.accumulator_bits}, O_final: {g.o_bits}}}
  operand_source: {{I: {i}, W: {i}}}
"""
        loops = ", ".join(f"[{_ZIGZAG_LOOP[dim]}, {size}]" for dim, size in zigzag_loops(p, g))
        mapping += _zigzag_mapping(g.name, p, axes, f"[{loops}]")
    return {
        "workload.yaml": _comment([title, "D = m, C = k, K = n of a GEMM (m, k) x (k, n)"]) + workload,
        "accelerator.yaml": notes + _zigzag_accelerator(p, gemms),
        "mapping.yaml": _comment(
            [title, "temporal_ordering: innermost first; ZigZag itself decides which memory keeps what"]
        )
        + _zigzag_mapping("default", p, axes, "[]")
        + mapping,
    }


def zigzag_loops(p: Systolic, g: ExportedGemm) -> list[tuple[str, int]]:
    """(loop, prime factor), innermost first, of accelsim's mapping: the stream, the folds of a tile, the tiles.

    ZigZag's factors of a loop multiply to its steps: ceil(size / side) of a loop on the array, else its size. Where no
    such factor is our number of tiles, the next larger one is taken, so that tiles are smaller and still fit.
    """
    axes, sides = AXES[p.dataflow], {AXES[p.dataflow].down: p.rows, AXES[p.dataflow].across: p.cols}
    inside, tiles = {}, {}
    for dim, tile in (("m", g.tile_m), ("k", g.tile_k), ("n", g.tile_n)):
        steps, wanted = ceil_div(getattr(g, dim), sides.get(dim, 1)), ceil_div(getattr(g, dim), tile)
        divisors = {1}
        for factor in _prime_factors(steps):
            divisors |= {d * factor for d in divisors}
        tiles[dim] = min(d for d in divisors if d >= wanted)
        inside[dim] = steps // tiles[dim]
    outer = ["k", *(("m", "n") if g.n_outer else ("n", "m"))]
    nest = [(dim, inside[dim]) for dim in (axes.streamed, axes.across, axes.down)] + [
        (dim, tiles[dim]) for dim in outer
    ]
    return [(dim, factor) for dim, size in nest for factor in _prime_factors(size)]


def _prime_factors(number: int) -> list[int]:
    """Ascending, with multiplicity; none for 1.

    >>> _prime_factors(96)
    [2, 2, 2, 2, 2, 3]
    """
    found, factor = [], 2
    while factor * factor <= number:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found + [number] * (number > 1)


def _zigzag_mapping(name: str, p: Systolic, axes: Axes, order: str) -> str:
    return f"""- name: {name}
  spatial_mapping:
    D1: ["{_ZIGZAG_LOOP[axes.down]}, {p.rows}"]
    D2: ["{_ZIGZAG_LOOP[axes.across]}, {p.cols}"]
  temporal_ordering: {order}
  memory_operand_links: {{O: O, W: I2, I: I1}}
"""


_ZIGZAG_SCRIPT = '''"""@TITLE@: runs it and prints both sides. Needs ZigZag, not accelsim."""

import csv
import logging
from pathlib import Path

from zigzag.api import get_hardware_performance_zigzag

HERE = Path(__file__).resolve().parent


def simulate(names):
    """{name: (cycles with loading, stalls and storing, steps of the array and its drain, "": no DRAM alone)}."""
    logging.disable(logging.WARNING)
    _, _, results = get_hardware_performance_zigzag(
        workload=str(HERE / "workload.yaml"),
        accelerator=str(HERE / "accelerator.yaml"),
        mapping=str(HERE / "mapping.yaml"),
        opt="latency",
        dump_folder=str(HERE / "out"),
        loma_show_progress_bar=False,
    )
    layers = [found[0] for found in results[0][1]]
    return {
        layer.layer.name: (layer.latency_total2, layer.ideal_temporal_cycle + layer.systolic_drain_cycle, "")
        for layer in layers
    }
'''


# --- AccelForge -------------------------------------------------------------------------------------------------------


def _accelforge_differences(p: Systolic, gemms: list[ExportedGemm]) -> list[str]:
    return [
        "time: AccelForge takes the longest component of each GEMM, as if everything overlapped; accelsim adds up the "
        "first loading, max(compute, transfer) tile by tile and the last storing",
        f"folds: products / {p.rows * p.cols}; no loading, fill or drain of the array, and an edge that fills a part "
        "of it costs a part of the time; accelsim charges a whole fold",
        "edge tiles: AccelForge reads the operands of a ragged tile as often as those of a whole one",
        "mapping: accelsim's tiles and loop order; inside a tile the folds, then the streamed loop",
        "buffers: half of each, what a tile may take in accelsim, because AccelForge buffers nothing twice; writing "
        "into input and weight buffers takes no time",
        "energies: J for a bit. A multiplication of narrower numbers costs less in accelsim; registers are part of it",
        "static power outside the buffers is spread over the processing elements",
        "no count: each GEMM runs once; instances of attention heads do not overlap",
        *_left_out(p),
    ]


def _accelforge_actions(read: float, write: float, read_pj_per_byte: float, write_pj_per_byte: float) -> str:
    """Energies in J a bit, throughputs in bits a second."""
    actions = (("read", read_pj_per_byte, read), ("write", write_pj_per_byte, write))
    return "    actions:\n" + "".join(
        f"    - {{name: {name}, energy: {_float(pj / 8 * 1e-12)}, throughput: {_float(rate)}}}\n"
        for name, pj, rate in actions
    )


def _accelforge_arch(p: Systolic) -> str:
    axes, area, bits = AXES[p.dataflow], p.area_by_part_mm2(), 8 * p.clock_hz
    elements = p.rows * p.cols
    dram = bits * p.dram.bytes_per_cycle * p.dram.efficiency
    text = f"""arch:
  nodes:
  - !Memory
    name: Dram
    size: inf
    leak_power: 0
    area: 0
    tensors: {{keep: All}}
{_accelforge_actions(dram, dram, p.dram.pj_per_byte, p.dram.pj_per_byte)}"""
    for name, memory, operand in (
        ("InputBuffer", "input_buffer", "input"),
        ("WeightBuffer", "weight_buffer", "weight"),
        ("Accumulator", "accumulator", "output"),
    ):
        m = getattr(p, memory)
        rate = bits * m.bytes_per_cycle
        text += f"""  - !Memory
    name: {name}
    size: {8 * (m.capacity_bytes // 2)}  # bits: half of {m.capacity_bytes} bytes
    leak_power: {_float(m.leakage_w)}
    area: {_float(area[memory] * 1e-6)}
    tensors: {{keep: {operand}}}
"""
        if operand == "output":
            text += f"    bits_per_value: {{output: {p.accumulator_bits}}}\n"
        written = rate if operand == "output" else math.inf
        text += _accelforge_actions(rate, written, m.read_pj_per_byte, m.write_pj_per_byte)
    kept = {"input": p.input_bits, "weight": p.weight_bits, "output": p.accumulator_bits}[axes.stays]
    register = f"    bits_per_value: {{output: {p.accumulator_bits}}}\n" if axes.stays == "output" else ""
    return f"""{text}  - !Container
    name: Array
    spatial:
    - {{name: rows, fanout: {p.rows}, may_reuse: {SHARED[axes.down]}}}
    - {{name: cols, fanout: {p.cols}, may_reuse: {SHARED[axes.across]}}}
  - !Memory
    name: Register
    size: {kept}
    leak_power: 0
    area: 0
    tensors: {{keep: {axes.stays}}}
{register}    actions:
    - {{name: read, energy: 0, throughput: inf}}
    - {{name: write, energy: 0, throughput: inf}}
  - !Compute
    name: Mac
    leak_power: {_float(p.static_w / elements)}
    area: {_float(area["arrays"] / elements * 1e-6)}
    actions:
    - {{name: compute, energy: {_float((p.multiply_pj + p.accumulate_pj) * 1e-12)}, throughput: {_float(p.clock_hz)}}}
"""


def _accelforge_nest(i: int, g: ExportedGemm, p: Systolic) -> str:
    """The loops of one GEMM: tiles of our mapping, folds of a tile, the array, the streamed loop."""
    axes = AXES[p.dataflow]
    tiles = {"m": g.tile_m, "k": g.tile_k, "n": g.tile_n}
    whole = {"m": g.tile_m == g.m, "k": g.tile_k == g.k, "n": g.tile_n == g.n}
    outer, inner = ("n", "m") if g.n_outer else ("m", "n")
    held, moving = ("W", "A") if g.n_outer else ("A", "W")
    buffers = {"A": "InputBuffer", "W": "WeightBuffer", "O": "Accumulator"}

    def loop(dim: str, size: int) -> str:
        return f"      - !Temporal {{rank_variable: {dim}{i}, tile_shape: {size}}}\n"

    def spatial(dim: str, side: str) -> str:
        return f"      - !Spatial {{rank_variable: {dim}{i}, tile_shape: 1, component: Array, name: {side}}}\n"

    def storage(tensor: str, component: str = "") -> str:
        return f"      - !Storage {{tensors: [{tensor}{i}], component: {component or buffers[tensor]}}}\n"

    letter = {"input": "A", "weight": "W", "output": "O"}[axes.stays]
    # a tile stays in its buffer while the loops below it do not index it: the node stands above them
    held_above_inner, moving_above_outer = whole["k"], whole["k"] and whole[inner]
    return (
        f"    # {g.name}: tiles {g.tile_m} x {g.tile_k} x {g.tile_n} of m x k x n\n    - !Nested\n      nodes:\n"
        + storage(moving) * moving_above_outer + loop(outer, tiles[outer])
        + storage(held) * held_above_inner + loop(inner, tiles[inner])
        + storage("O") + loop("k", g.tile_k)
        + storage(held) * (not held_above_inner) + storage(moving) * (not moving_above_outer)
        + loop(axes.down, min(p.rows, tiles[axes.down])) + loop(axes.across, min(p.cols, tiles[axes.across]))
        + spatial(axes.down, "rows") + spatial(axes.across, "cols") + storage(letter, "Register")
        + loop(axes.streamed, 1)
        + f"      - !Compute {{einsum: {g.name}, component: Mac}}\n"
    )  # fmt: skip


def _accelforge(p: Systolic, gemms: list[ExportedGemm], title: str) -> dict[str, str]:
    """Architecture, workload and mapping of AccelForge 1, an Einsum for each GEMM."""
    shape, einsums, tensors = "", "", []
    for i, g in enumerate(gemms):
        tensors += [f"A{i}", f"W{i}", f"O{i}"]
        shape += "".join(f"    {dim}{i}: 0 <= {dim}{i} < {getattr(g, dim)}\n" for dim in "mkn")
        einsums += f"""  - name: {g.name}  # counts {g.count} times, first as {g.op}
    tensor_accesses:
    - {{name: A{i}, projection: [m{i}, k{i}], bits_per_value: {g.a_bits}}}
    - {{name: W{i}, projection: [k{i}, n{i}], bits_per_value: {g.w_bits}}}
    - {{name: O{i}, projection: [m{i}, n{i}], bits_per_value: {g.o_bits}, output: True}}
    renames: {{input: A{i}, weight: W{i}, output: O{i}}}
"""
    nests = [_accelforge_nest(i, g, p) for i, g in enumerate(gemms)]
    body = f"  - !Sequential\n    nodes:\n{''.join(nests)}"
    if len(nests) == 1:  # a sequence of one is not a sequence: its nodes stand at the top
        body = "".join(f"{line[4:]}\n" for line in nests[0].splitlines()[3:])
    return {
        "arch.yaml": _comment([title, *_accelforge_differences(p, gemms)]) + _accelforge_arch(p),
        "workload.yaml": _comment([title]) + f"workload:\n  iteration_space_shape:\n{shape}  einsums:\n{einsums}",
        "mapping.yaml": _comment([title])
        + f"mapping:\n  nodes:\n  - !Storage {{tensors: [{', '.join(tensors)}], component: Dram}}\n{body}",
    }


_ACCELFORGE_SCRIPT = '''"""@TITLE@: runs it and prints both sides. Needs AccelForge, not accelsim."""

import csv
from pathlib import Path

import accelforge
from accelforge.util.parallel import set_n_parallel_jobs

HERE = Path(__file__).resolve().parent
CLOCK_HZ = @CLOCK@


def simulate(names):
    """{name: cycles of the (longest component, multipliers, DRAM)}; AccelForge counts in seconds."""
    set_n_parallel_jobs(1)
    files = [str(HERE / f"{part}.yaml") for part in ("arch", "workload", "mapping")]
    seconds = accelforge.Spec.from_yaml(*files).evaluate_mapping().latency(per_component=True, per_einsum=True)
    found = {}
    for name in names:
        parts = {component: s * CLOCK_HZ for (einsum, component), s in seconds.items() if einsum == name}
        found[name] = tuple(round(s, 1) for s in (max(parts.values()), parts["Mac"], parts["Dram"]))
    return found
'''


class _Peer(NamedTuple):
    """How a peer is written to."""

    title: str
    files: Callable[[Systolic, list[ExportedGemm], str], dict[str, str]]
    differences: Callable[[Systolic, list[ExportedGemm]], list[str]]
    script: str
    contents: dict[str, str]


PEERS = {
    "scale-sim": _Peer(
        "SCALE-Sim 3",
        _scale_sim,
        _scale_sim_differences,
        _SCALE_SIM_SCRIPT,
        {
            CONFIG: "array, buffers, dataflow, bandwidth mode (`-c`)",
            TOPOLOGY: "M, N, K of each GEMM (`-t`, with `-i gemm`)",
            LAYOUT: "empty, but SCALE-Sim asks for one (`-l`)",
        },
    ),
    "zigzag": _Peer(
        "ZigZag 3",
        _zigzag,
        _zigzag_differences,
        _ZIGZAG_SCRIPT,
        {
            "workload.yaml": "the GEMMs as layers",
            "accelerator.yaml": "array, registers, buffers, DRAM",
            "mapping.yaml": "what lies on the array, and accelsim's loops",
        },
    ),
    "accelforge": _Peer(
        "AccelForge 1",
        _accelforge,
        _accelforge_differences,
        _ACCELFORGE_SCRIPT,
        {
            "arch.yaml": "DRAM, buffers, array",
            "workload.yaml": "the GEMMs as Einsums",
            "mapping.yaml": "accelsim's tiles and loop order",
        },
    ),
}
"""The simulators there is an export for."""
