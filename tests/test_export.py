"""Do exported files say what the graph and the platform say, and do recorded runs of the peers confirm our count?"""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from collections import Counter
from math import floor, prod
from pathlib import Path

import pytest
from accelsim_experiments import peers
from ruamel.yaml import YAML

import accelsim
from accelsim.errors import Infeasible, SpecError
from accelsim.export import (
    AXES,
    CONFIG,
    LAYOUT,
    PEERS,
    TOPOLOGY,
    distinct_gemms,
    export,
    write,
    zigzag_loops,
    zigzag_port_bits,
)
from accelsim.formulas import Dataflow, FoldTiming, ceil_div
from accelsim.gemm import gemm_graph
from accelsim.simulate import at_precision
from accelsim.work import WorkKind
from tests.test_cli import run as cli

SETTINGS = [
    {},
    {"dataflow": "os", "rows": 16, "cols": 8, "dram.bytes_per_cycle": 7.5, "accumulator.bytes_per_cycle": 100},
    {"dataflow": "is", "fold_timing": "serial", "weight_buffer.capacity_bytes": 65536, "clock_hz": 2.5e8},
]


def chip(settings=None):
    return accelsim.platform("systolic-32x32", settings or {})


def graph(model="bert-tiny", seq=33, precision=None, settings=None):
    return at_precision(accelsim.trace(model, seq=seq), chip(settings), precision)


def load(text):
    """YAML as plain data; a tagged node gets its tag under `!`."""
    yaml = YAML(typ="safe")

    def tagged(constructor, suffix, node):
        return {"!": suffix, **constructor.construct_mapping(node, deep=True)}

    yaml.constructor.add_multi_constructor("!", tagged)
    try:
        return yaml.load(text)
    finally:
        yaml.constructor.yaml_multi_constructors.pop("!")


# --- what is wrong with the files of a peer: a line for each number that is neither the platform's nor the graph's ---


def differing(pairs):
    return [f"{name}: {got!r} != {want!r}" for name, got, want in pairs if got != want]


def scale_sim_problems(files, p, gemms):
    config = configparser.ConfigParser()
    config.read_string(files[CONFIG])
    array, layout, presets = (config[s] for s in ("architecture_presets", "layout", "run_presets"))
    a_bits, w_bits = max(g.a_bits for g in gemms), max(g.w_bits for g in gemms)
    rate = p.dram.bytes_per_cycle * p.dram.efficiency * 8
    pairs = [
        ("rows", int(array["ArrayHeight"]), p.rows),
        ("cols", int(array["ArrayWidth"]), p.cols),
        ("dataflow", array["Dataflow"], p.dataflow.name.lower()),
        ("inputs", int(array["IfmapSramSzkB"]), p.input_buffer.capacity_bytes * 8 // a_bits // 1024),
        ("weights", int(array["FilterSramSzkB"]), p.weight_buffer.capacity_bytes * 8 // w_bits // 1024),
        ("sums", int(array["OfmapSramSzkB"]), p.accumulator.capacity_bytes * 8 // p.accumulator_bits // 1024),
        ("filter offset", int(array["FilterOffset"]), max(g.m * g.k for g in gemms)),
        ("input rate", int(layout["IfmapSRAMBankBandwidth"]), floor(rate / a_bits)),
        ("weight rate", int(layout["FilterSRAMBankBandwidth"]), floor(rate / w_bits)),
        ("mode", presets["InterfaceBandwidth"], "CALC"),
        ("layout", len(files[LAYOUT].splitlines()), 1),
    ]
    read = [line.strip().split(",")[:-1] for line in files[TOPOLOGY].splitlines()[1:]]  # as SCALE-Sim reads it
    rows = [(row[0].strip(), *(int(v) for v in row[1:4]), int(row[5])) for row in read]
    return differing([*pairs, ("rows", rows, [(g.name, g.m, g.n, g.k, g.count) for g in gemms])])


def zigzag_problems(files, p, gemms):
    workload, machine, mapping = (load(files[f"{name}.yaml"]) for name in ("workload", "accelerator", "mapping"))
    array, memories, area = machine["operational_array"], machine["memories"], p.area_by_part_mm2()
    axes, loops = AXES[p.dataflow], {"m": "D", "k": "C", "n": "K"}
    dram = floor(8 * p.dram.bytes_per_cycle * p.dram.efficiency)
    pairs = [
        ("sizes", array["sizes"], [p.rows, p.cols]),
        ("widths", array["input_precision"], [p.input_bits, p.weight_bits]),
        ("multiplier", array["unit_energy"], p.multiply_pj + p.accumulate_pj),
        ("dram", {port["bandwidth_max"] for port in memories["dram"]["ports"]}, {dram}),
        ("dram pj", memories["dram"]["r_cost"], p.dram.pj_per_byte * dram / 8),
        ("layers", [layer["name"] for layer in workload], [g.name for g in gemms]),
    ]
    for name, memory in (("input_buffer", p.input_buffer), ("weight_buffer", p.weight_buffer)):
        said = memories[name]
        width = floor(8 * memory.bytes_per_cycle)
        pairs += [
            (name, said["size"], 8 * memory.capacity_bytes),
            (f"{name} width", said["ports"][0]["bandwidth_max"], width),
            (f"{name} area", said["area"], area[name]),
            (f"{name} pj", said["r_cost"], memory.read_pj_per_byte * width / 8),
        ]
    both = [port["bandwidth_max"] for port in memories["accumulator"]["ports"]]
    pairs.append(("accumulator", (memories["accumulator"]["size"], both),
                  (8 * p.accumulator.capacity_bytes, [floor(4 * p.accumulator.bytes_per_cycle)] * 2)))  # fmt: skip
    stays = memories["sum_register" if axes.stays == "output" else f"{axes.stays}_register"]
    pairs += [
        ("stays in every element", stays["served_dimensions"], []),
        ("places", stays["force_double_buffering"], p.fold_timing is FoldTiming.PIPELINED),
    ]
    for g, layer in zip(gemms, workload, strict=True):
        (said,) = [m for m in mapping if m["name"] == g.name]
        bits = layer["operand_precision"]
        steps = Counter()
        for loop, factor in said["temporal_ordering"]:
            steps[loop] = (steps[loop] or 1) * factor
        sides = {axes.down: p.rows, axes.across: p.cols}
        want = {loops[d]: ceil_div(getattr(g, d), sides.get(d, 1)) for d in "mkn"}
        pairs += [
            (f"{g.name} sizes", layer["loop_sizes"], [g.m, g.k, g.n]),
            (f"{g.name} bits", [bits[x] for x in ("I", "W", "O", "O_final")],
             [g.a_bits, g.w_bits, p.accumulator_bits, g.o_bits]),
            (f"{g.name} down", said["spatial_mapping"]["D1"], [f"{loops[axes.down]}, {p.rows}"]),
            (f"{g.name} across", said["spatial_mapping"]["D2"], [f"{loops[axes.across]}, {p.cols}"]),
            (f"{g.name} steps", dict(steps), {loop: size for loop, size in want.items() if size > 1}),
        ]  # fmt: skip
    return differing(pairs)


def accelforge_problems(files, p, gemms):
    arch, workload, mapping = (load(files[f"{name}.yaml"]) for name in ("arch", "workload", "mapping"))
    nodes = {node["name"]: node for node in arch["arch"]["nodes"]}
    area = p.area_by_part_mm2()
    second = 8 * p.clock_hz
    read = {name: node["actions"][0] for name, node in nodes.items() if "actions" in node}
    axes = AXES[p.dataflow]
    pairs = [
        ("dram", read["Dram"]["throughput"], second * p.dram.bytes_per_cycle * p.dram.efficiency),
        ("fanout", [side["fanout"] for side in nodes["Array"]["spatial"]], [p.rows, p.cols]),
        ("clock", read["Mac"]["throughput"], p.clock_hz),
        ("register", nodes["Register"]["tensors"]["keep"], axes.stays),
    ]
    for name, path in (
        ("InputBuffer", "input_buffer"),
        ("WeightBuffer", "weight_buffer"),
        ("Accumulator", "accumulator"),
    ):
        memory = getattr(p, path)
        pairs += [
            (name, nodes[name]["size"], 8 * (memory.capacity_bytes // 2)),
            (f"{name} rate", read[name]["throughput"], second * memory.bytes_per_cycle),
            (f"{name} energy", read[name]["energy"], memory.read_pj_per_byte / 8 * 1e-12),
            (f"{name} area", nodes[name]["area"], area[path] * 1e-6),
        ]
    shape = workload["workload"]["iteration_space_shape"]
    nests = mapping["mapping"]["nodes"][1:]
    nests = [nest["nodes"] for nest in nests[0]["nodes"]] if nests[0]["!"] == "Sequential" else [nests]
    for i, (g, einsum, nest) in enumerate(zip(gemms, workload["workload"]["einsums"], nests, strict=True)):
        tiles = {}
        for node in nest:
            if node["!"] == "Temporal":
                tiles.setdefault(node["rank_variable"], node["tile_shape"])
        spatial = [node["rank_variable"] for node in nest if node["!"] == "Spatial"]
        pairs += [
            (g.name, (einsum["name"], nest[-1]["einsum"]), (g.name, g.name)),
            (f"{g.name} shape", [shape[f"{d}{i}"] for d in "mkn"],
             [f"0 <= {d}{i} < {getattr(g, d)}" for d in "mkn"]),
            (f"{g.name} bits", [t["bits_per_value"] for t in einsum["tensor_accesses"]],
             [g.a_bits, g.w_bits, g.o_bits]),
            (f"{g.name} tile", [tiles[f"{d}{i}"] for d in "mkn"], [g.tile_m, g.tile_k, g.tile_n]),
            (f"{g.name} array", spatial, [f"{axes.down}{i}", f"{axes.across}{i}"]),
            (f"{g.name} stream", nest[-2]["rank_variable"], f"{axes.streamed}{i}"),
        ]  # fmt: skip
    return differing(pairs)


PROBLEMS = {"scale-sim": scale_sim_problems, "zigzag": zigzag_problems, "accelforge": accelforge_problems}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=["ws", "os", "is"])
@pytest.mark.parametrize("precision", [None, "w4a8"])
def test_every_number_is_the_platforms_or_the_graphs(peer, settings, precision):
    p, g = chip(settings), graph(precision=precision, settings=settings)
    assert PROBLEMS[peer](export(g, p, peer), p, distinct_gemms(g, p)) == []


@pytest.mark.parametrize("peer", PEERS)
def test_a_single_gemm_of_any_shape(peer):
    for shape in ((1, 70, 33), (127, 31, 1), (200, 64, 64)):
        p, g = chip(), at_precision(gemm_graph(*shape), chip(), None)
        assert PROBLEMS[peer](export(g, p, peer), p, distinct_gemms(g, p)) == [], shape


MUTATIONS = [
    ("scale-sim", TOPOLOGY, "33, 512, 128", "33, 128, 512"),
    ("scale-sim", CONFIG, "ArrayHeight = 16", "ArrayHeight = 8"),
    ("scale-sim", CONFIG, "Dataflow = os", "Dataflow = ws"),
    ("scale-sim", CONFIG, "OfmapSramSzkB = 64", "OfmapSramSzkB = 256"),
    ("zigzag", "accelerator.yaml", "bandwidth_max: 48", "bandwidth_max: 60"),
    ("zigzag", "workload.yaml", "loop_sizes: [33, 128, 128]", "loop_sizes: [128, 33, 128]"),
    ("zigzag", "mapping.yaml", "[C, 2], ", ""),
    ("zigzag", "mapping.yaml", 'D1: ["D, 16"]', 'D1: ["C, 16"]'),
    ("accelforge", "arch.yaml", "size: 1048576", "size: 2097152"),
    ("accelforge", "arch.yaml", "fanout: 16", "fanout: 32"),
    ("accelforge", "workload.yaml", "bits_per_value: 8", "bits_per_value: 4"),
    ("accelforge", "mapping.yaml", "rank_variable: k0, tile_shape: 1}", "rank_variable: m0, tile_shape: 1}"),
]


@pytest.mark.parametrize(("peer", "file", "was", "is_now"), MUTATIONS)
def test_a_wrong_number_is_noticed(peer, file, was, is_now):
    p, g = chip(SETTINGS[1]), graph(settings=SETTINGS[1])
    files = export(g, p, peer)
    assert was in files[file]
    assert PROBLEMS[peer]({**files, file: files[file].replace(was, is_now)}, p, distinct_gemms(g, p))


def test_every_gemm_of_the_graph_is_counted():
    g = graph("bert-base", seq=128)
    works = [work for _, works in g.works for work in works if work.kind is WorkKind.GEMM]
    gemms = distinct_gemms(g, chip())
    assert sum(x.count for x in gemms) == sum(work.count for work in works) == 48 + 144 + 144 + 12 + 12 + 1
    assert sum(x.m * x.k * x.n * x.count for x in gemms) == g.macs
    assert len({x.name for x in gemms}) == len(gemms) == 6
    mixed = distinct_gemms(graph(precision="w4a8", seq=64), chip())  # 64 x 64 x 64 with 8 and, nowhere, 4 bits
    assert len({x.name for x in mixed}) == len(mixed)


def test_loops_of_zigzag_are_our_tiles_and_never_larger():
    for settings in SETTINGS:
        p = chip(settings)
        axes = AXES[p.dataflow]
        for g in distinct_gemms(graph("bert-mini", seq=100, settings=settings), p):
            loops = zigzag_loops(p, g)
            assert all(factor > 1 and all(factor % d for d in range(2, factor)) for _, factor in loops)
            streamed = prod(f for dim, f in loops if dim == axes.streamed)
            assert streamed == getattr(g, axes.streamed)
            run = 0
            while run < len(loops) and loops[run][0] == axes.streamed:
                run += 1
            assert prod(f for _, f in loops[:run]) <= max(getattr(g, f"tile_{axes.streamed}"), 1) or run == len(loops)


@pytest.mark.parametrize("peer", PEERS)
def test_the_folder_says_how_to_run_it_and_what_differs(peer, tmp_path):
    files = export(graph(), chip(), peer)
    paths = write(files, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == list(files)
    assert all(path.read_text() == files[path.name] for path in paths)
    compile(files["run.py"], "run.py", "exec")
    readme = files["RUN.md"]
    assert "run.py" in readme
    assert f"pip install {peers.REQUIREMENTS[peer][0]}" in readme
    notes = [line[2:] for line in readme.splitlines() if line.startswith("- ")]
    commented = "".join(text for name, text in files.items() if name.endswith((".cfg", ".yaml")))
    for note in PEERS[peer].differences(chip(), distinct_gemms(graph(), chip())):
        assert note in notes
        assert f"# {note}" in commented


def test_bad_input_is_refused():
    g = graph()
    with pytest.raises(SpecError, match=r"want one of accelforge, scale-sim, zigzag \(nearest: zigzag\)"):
        export(g, chip(), "zig-zag")
    with pytest.raises(SpecError, match="a platform of kind systolic"):
        export(g, accelsim.platform("fqbert-zcu102"), "zigzag")
    with pytest.raises(SpecError, match="--set arrays=1"):
        export(g, chip({"arrays": 4}), "scale-sim")
    with pytest.raises(SpecError, match="thousands of elements"):
        export(g, chip({"input_buffer.capacity_bytes": 1000}), "scale-sim")
    with pytest.raises(SpecError, match="more than one step"):
        export(at_precision(gemm_graph(1, 2, 3), chip(), None), chip(), "zigzag")
    with pytest.raises(Infeasible, match="width of a product"):
        export(accelsim.trace("bert-tiny", seq=8), chip(), "accelforge", "fp16")


def test_the_command_writes_the_folder_or_nothing(capsys, tmp_path):
    out = tmp_path / "peer"
    code, text, _ = cli(capsys, "export", "bert-tiny", "--seq", 16, "--to", "zigzag", "--out", out)
    assert code == 0
    assert "6 distinct GEMMs" in text
    assert {p.name for p in out.iterdir()} == set(export(graph(seq=16), chip(), "zigzag"))
    code, text, _ = cli(capsys, "export", "gemm:8x64x64", "--to", "scale-sim", "--out", tmp_path / "g", "--json")
    assert code == 0
    assert json.loads(text)["gemms"] == 1
    for arguments, word in (
        (["bert-tiny", "--to", "scalesim"], "nearest: scale-sim"),
        (["bert-tyni", "--to", "zigzag"], "bert-tiny"),
        (["bert-tiny", "--to", "zigzag", "--platform", "a100"], "systolic"),
        (["bert-tiny", "--to", "zigzag", "--precision", "fp16"], "bits"),
        (["bert-tiny", "--to", "zigzag", "--set", "rows"], "path=value"),
    ):
        code, text, err = cli(capsys, "export", *arguments, "--out", tmp_path / "none")
        assert (code, text, err.count("\n")) == (2, "", 1), arguments
        assert word in err
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    code, _, err = cli(capsys, "export", "bert-tiny", "--to", "zigzag", "--out", tmp_path / "file")
    assert (code, err.count("\n")) == (2, 1)


# --- recorded runs ----------------------------------------------------------------------------------------------------


def mismatches(cycles=peers.serial_cycles):
    """GEMMs of the record for which the count, less one, is not what SCALE-Sim printed."""
    found = []
    for row in peers.read_record():
        if row["peer"] == "scale-sim":
            case = peers.case_of(row)
            g = next(g for g in distinct_gemms(case.graph(), case.chip()) if g.name == row["gemm"])
            if cycles(case.chip(), g) - 1 != float(row["compute_cycles"]):
                found.append(row)
    return found


def test_our_serial_folds_are_scale_sims():
    rows = [row for row in peers.read_record() if row["peer"] == "scale-sim"]
    chips = [peers.case_of(row).chip() for row in rows]
    assert {p.dataflow for p in chips} == set(Dataflow)
    assert {(p.rows, p.cols) for p in chips} == {(32, 32), (16, 8)}
    assert len(rows) == 6 + 3 * 2
    assert mismatches() == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, g: peers.serial_cycles(p, g) + 1,
        lambda p, g: g.cost.compute_cycles,
        lambda p, g: peers.tile_array_cycles(int(Dataflow.WS), 0, p.rows, p.cols, 1, 1, g.m, g.k, g.n),
    ],
    ids=["one more", "pipelined", "always ws"],
)
def test_another_count_is_not(wrong):
    assert mismatches(wrong)


def test_every_difference_is_explained():
    rows = peers.table(peers.read_record())
    assert {row["case"].peer for row in rows} == set(PEERS)
    for row in rows:
        assert sum(row["terms"].values()) == pytest.approx(row["ours"] - row["theirs"])
        assert abs(row["terms"]["left"]) < 0.2, row
        assert row["largest"] in peers.MEANING
        if row["dram_cycles"]:
            assert float(row["dram_cycles"]) == pytest.approx(row["gemm"].cost.dram_cycles, rel=1e-5)


def test_a_record_that_is_off_by_a_cycle_is_noticed():
    for peer, column in (("scale-sim", "compute_cycles"), ("zigzag", "compute_cycles"), ("accelforge", "cycles")):
        row = next(row for row in peers.read_record() if row["peer"] == peer)
        (told,) = peers.table([{**row, column: str(float(row[column]) + 1)}])
        assert abs(told["terms"]["left"] if peer != "zigzag" else told["terms"]["transfers"]) > 0
        if peer != "zigzag":
            assert told["terms"]["left"] == pytest.approx(-1, abs=0.2)


def test_zigzag_agrees_on_large_gemms():
    rows = [row for row in peers.table(peers.read_record()) if row["case"].peer == "zigzag"]
    large = [row for row in rows if row["gemm"].m * row["gemm"].k * row["gemm"].n > 10**7]
    assert len(large) == 4 * 3
    assert all(abs(row["ratio"] - 1) < 0.05 for row in large)
    free = [row for row in large if row["case"].settings == peers.NO_LIMIT]
    assert len(free) == 3
    assert all(abs(row["ratio"] - 1) < 0.001 for row in free)


# --- the experiment, with a SCALE-Sim of ten lines in place of the real one -------------------------------------------

FAKE = """
import configparser, os
class scalesim:
    def __init__(self, save_disk_space, verbose, config, topology, layout, input_type_gemm):
        c = configparser.ConfigParser(); c.read(config); a = c["architecture_presets"]
        self.r, self.c, self.d = int(a["ArrayHeight"]), int(a["ArrayWidth"]), a["Dataflow"]
        self.rows = [[int(v) for v in line.split(",")[1:4]] for line in open(topology).read().splitlines()[1:]]
        assert input_type_gemm and save_disk_space and os.path.exists(layout)
    def run_scale(self, top_path):
        os.makedirs(top_path + "/accelsim")
        with open(top_path + "/accelsim/COMPUTE_REPORT.csv", "w") as out:
            out.write("LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles,\\n")
            for i, (m, n, k) in enumerate(self.rows):
                R, C = self.r, self.c
                ws = -(-k // R) * -(-n // C) * (2 * R + C + m - 2)
                t = {"ws": ws, "os": -(-m // R) * -(-n // C) * (R + C + k - 2)}
                out.write(f"{i}, {t[self.d] + 99}, {t[self.d] - 1}, 0,\\n")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A SCALE-Sim in this Python's path, no other peer."""
    package = tmp_path / "path" / "scalesim"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "scale_sim.py").write_text(FAKE)
    about = tmp_path / "path" / "scalesim-3.0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: scalesim\nVersion: 3.0.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    for peer in PEERS:
        monkeypatch.delenv(peers.variable(peer), raising=False)
    return package


def test_the_experiment_runs_who_is_there_and_names_who_is_not(fake, tmp_path, monkeypatch):
    monkeypatch.setenv(peers.variable("accelforge"), "/nowhere/python")
    lines = list(peers.reproduce(tmp_path / "out", small=True))
    text = "\n".join(lines)
    assert "zigzag: not installed in" in text
    assert "pip install 'zigzag-dse==3.9.1' 'six'" in text
    assert "ACCELSIM_ACCELFORGE_PYTHON=/nowhere/python: No such file" in text
    assert lines[-1] == "compared: scale-sim; not compared: zigzag, accelforge"
    rows = peers.table(peers.read_record(tmp_path / "out" / "runs.csv"))
    assert len(rows) == 6 + 2
    assert all(row["terms"]["left"] == 0 for row in rows)
    assert (tmp_path / "out" / "tables.md").read_text().count("| gemm_") == 8


def test_a_peer_that_fails_is_not_compared(fake, tmp_path):
    (fake / "scale_sim.py").write_text("raise SystemExit('no memory')")
    lines = list(peers.reproduce(tmp_path / "out", small=True))
    assert any("scale-sim" in line and "exit status 1: no memory" in line for line in lines)
    assert lines[-1] == "compared: nothing; not compared: scale-sim, zigzag, accelforge"
    assert not (tmp_path / "out" / "runs.csv").exists()


def test_the_shipped_table_is_that_of_the_record():
    assert (peers.RECORD.parent / "tables.md").read_text() == "\n".join(peers.text(peers.read_record())) + "\n"


@pytest.mark.parametrize("peer", PEERS)
def test_the_real_peer_reads_the_files(peer, tmp_path):
    """Where a peer is named, it runs a small model and one GEMM of every dataflow."""
    if not os.environ.get(peers.variable(peer)):
        pytest.skip(f"{peers.variable(peer)} names no Python")
    found = peers.version(peer)
    for flow in ("ws", "os", "is"):
        for model in ("bert-tiny", "gemm:20x50x30"):
            case = peers.Case(peer, model, "systolic-16x16", {"dataflow": flow}, 16)
            rows = peers.run(case, tmp_path / f"{model[:4]}-{flow}", found)
            assert rows
            for row in peers.table(rows):
                assert abs(row["terms"]["left"]) < 0.2, row


def test_the_benchmarks_run_the_same_versions():
    folder = Path(__file__).parent.parent / "benchmarks"
    for peer, name in (("scale-sim", "scalesim"), ("zigzag", "zigzag")):
        assert tuple((folder / f"requirements-{name}.txt").read_text().split()) == peers.REQUIREMENTS[peer]


def test_a_narrow_buffer_is_widened_for_zigzag_and_said_so():
    p = chip({"input_buffer.bytes_per_cycle": 10})
    g = distinct_gemms(graph(), p)
    files = export(graph(), p, "zigzag")
    assert "input buffer: a port of 256 bits a cycle instead of 80" in files["RUN.md"]
    assert load(files["accelerator.yaml"])["memories"]["input_buffer"]["ports"][0]["bandwidth_max"] == 256
    assert zigzag_port_bits(chip(), g, "input") == 8 * chip().input_buffer.bytes_per_cycle
    assert "instead of" not in export(graph(), chip(), "zigzag")["RUN.md"]


def test_nothing_of_a_peer_is_imported():
    code = "import sys, accelsim.export; assert not {'torch', 'pandas', 'scalesim', 'zigzag'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
