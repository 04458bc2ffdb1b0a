"""Does the command line do what its help says, and does it refuse bad input with one line and exit status 2?"""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import accelsim
from accelsim import cli

ON = ["--platform", "systolic-32x32"]


def run(capsys, *args):
    """(exit status, stdout, stderr) of a command, in this process."""
    argv, sys.argv = sys.argv, ["accelsim", *map(str, args)]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys, *args):
    code, out, err = run(capsys, *args, "--json")
    assert code == 0, err
    return json.loads(out)


def test_json_has_the_agreed_shape(capsys):
    report = answer(capsys, "simulate", "bert-tiny", *ON, "--seq", 32)
    assert {"model", "platform", "seq", "batch", "precision", "detail", "total", "ops"} <= set(report)
    assert report["model"] == "bert-tiny"
    assert report["precision"] == "int8"
    total = report["total"]
    assert total["cycles"] == total["compute_cycles"] + total["stall_cycles"]
    assert total["power_w"] == pytest.approx(total["energy_j"] / total["time_s"])
    for name in ("softmax", "layer_norm", "gelu"):
        assert any(op["operator"] == name and op["cycles"] > 0 for op in report["ops"])


def test_ad_hoc_gemm_equals_the_closed_form(capsys):
    report = answer(capsys, "simulate", "gemm:128x768x3072", *ON, "--set", "dataflow=ws", "--set", "fold_timing=serial")
    assert report["total"]["macs"] == 128 * 768 * 3072
    assert report["total"]["compute_cycles"] == 24 * 96 * (2 * 32 + 32 + 128 - 2)


def test_shown_platforms_load_back(capsys, tmp_path):
    for name in ("systolic-16x16", "tpu-v1", "a100"):
        code, text, _ = run(capsys, "show", "platform", name)
        assert code == 0
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        shown, preset = (answer(capsys, "simulate", "bert-tiny", "--platform", p, "--seq", 16) for p in (file, name))
        assert shown["total"] == preset["total"]
        code, text, _ = run(capsys, "show", "platform", name, "--set", "clock_hz=5e8")
        assert code == 0
        file.write_text(text)
        assert answer(capsys, "simulate", "bert-tiny", "--platform", file, "--seq", 16)["clock_hz"] == 5e8


def test_a_platform_loads_from_json_too(capsys, tmp_path):
    from accelsim.platforms import describe, platform

    file = tmp_path / "chip.json"
    file.write_text(json.dumps(describe(platform("systolic-16x16"))))
    assert platform(file) == platform("systolic-16x16")
    assert answer(capsys, "simulate", "gemm:8x8x8", "-p", file)["platform"] == "systolic-16x16"


def test_a_platform_without_energies_says_so(capsys):
    zeros = [
        *(f"{b}.{f}" for b in ("input_buffer", "weight_buffer", "accumulator", "vector.buffer") for f in
          ("read_pj_per_byte", "write_pj_per_byte", "leakage_w")),
        "dram.pj_per_byte", "vector.flop_pj", "vector.exp_pj", "multiply_pj", "accumulate_pj", "static_w",
    ]  # fmt: skip
    sets = [part for path in zeros for part in ("--set", f"{path}=0")]
    code, out, err = run(capsys, "simulate", "bert-tiny", *ON, "--seq", 16, *sets)
    assert code == 0, err
    assert "energy: not described" in out
    assert answer(capsys, "simulate", "bert-tiny", *ON, "--seq", 16, *sets)["total"]["energy_j"] == 0


def test_set_reaches_every_numeric_field_of_every_platform():
    from accelsim.platforms import describe, from_mapping, names, platform

    def leaves(data, prefix=""):
        for key, value in data.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            elif isinstance(value, int | float):
                yield f"{prefix}{key}", value

    for name in names():
        if name == "this-cpu":
            continue
        chip = platform(name)
        for path, value in leaves(describe(chip)):
            changed = from_mapping(describe(chip), name, {path: value})
            assert changed == chip
            other = value / 2 if isinstance(value, float) and value else value + 1
            if path.endswith("is_counted"):
                other = 1 - value
            try:
                assert from_mapping(describe(chip), name, {path: other}) != chip, path
            except ValueError:
                assert path.rpartition(".")[2] in ("efficiency", "peak_efficiency", "technology_nm"), path


def test_files_are_written_and_nothing_else_is(capsys, tmp_path):
    targets = [tmp_path / n for n in ("r.csv", "r.parquet", "r.json", "f.png", "roof.svg", "t.json")]
    code, _, err = run(
        capsys, "simulate", "bert-tiny", *ON, "--seq", 16, "--out", targets[0], "--figure", targets[3],
        "--roofline", targets[4], "--trace", targets[5],
    )  # fmt: skip
    assert code == 0, err
    for target in targets[1:3]:
        assert run(capsys, "simulate", "bert-tiny", *ON, "--seq", 16, "--out", target)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(t.name for t in targets)
    assert all(t.stat().st_size > 100 for t in targets)


def test_explain_gives_the_terms_behind_the_row(capsys):
    name = "encoder.layer.0.intermediate.dense.linear"
    terms = {t["name"]: t["value"] for t in answer(capsys, "explain", "bert-tiny", *ON, "--seq", 32, "--op", name)}
    report = answer(capsys, "simulate", "bert-tiny", *ON, "--seq", 32)
    row = next(op for op in report["ops"] if op["op"] == name)
    assert terms["cycles"] == row["cycles"]
    assert terms["compute cycles"] == row["compute_cycles"]
    assert terms["input traffic"] + terms["weight traffic"] + terms["output traffic"] == row["dram_bytes"]
    assert terms["bound"] == row["bound"]
    for platform in ("systolic-32x32", "a100"):
        for op in {o["operator"]: o["op"] for o in report["ops"]}.values():
            code, out, err = run(capsys, "explain", "bert-tiny", "-p", platform, "--seq", 32, "--op", op)
            assert code == 0, err
            assert op in out


def test_an_unknown_op_gets_the_nearest_names_not_all_of_them(capsys):
    code, out, err = run(capsys, "explain", "bert-base", *ON, "--op", "encoder.layer.0.intermediate.dens")
    assert (code, out) == (2, "")
    assert "encoder.layer.0.intermediate.dense.linear" in err
    assert len(err) < 400


def test_lists_name_what_other_commands_take(capsys):
    models = run(capsys, "list", "models")[1].split()
    assert {"bert-base", "bert-large", "minilm-l6", "albert-base", "mobilebert", "electra-small"} <= set(models)
    platforms = run(capsys, "list", "platforms")[1].split()
    assert {"systolic-32x32", "tpu-v1", "a100", "mi100", "tpu-v3", "this-cpu"} <= set(platforms)


def test_show_resources_lists_every_term(capsys):
    code, out, _ = run(capsys, "show", "resources", "fqbert-zcu102")
    assert code == 0
    assert "DSP: 1751 of 2520 (69%)" in out
    assert "BRAM18K: 838 of 1824 (46%), 419 BRAM36K" in out
    assert "P N M, one for each 8 x 4 bit multiplier" in out
    code, out, err = run(capsys, "show", "resources", "fqbert-zcu102", "--set", "pes=16")
    assert (code, "DSP: 3287 of 2520" in out, "767 too many" in err) == (2, True, True)
    code, out, _ = run(capsys, "show", "resources", "systolic-32x32")
    assert (code, "at 22 nm" in out) == (0, True)
    code, _, err = run(capsys, "show", "resources", "a100")
    assert (code, "fpga or systolic" in err) == (2, True)


def test_validate_platforms_reports_its_rows(capsys):
    rows = answer(capsys, "validate", "platforms", "--pairs", 5)["rows"]
    assert len(rows) == 2 * 5  # systolic, fpga
    assert all(row["mismatches"] == 0 and row["analytic"] > 0 for row in rows)


def test_validate_kernels_prints_json_and_csv(capsys, tmp_path):
    from accelsim.numerics import available

    file = tmp_path / "kernels.csv"
    rows = answer(capsys, "validate", "kernels", "--untimed", "--out", file)["rows"]
    assert all(row["mismatches"] == 0 for row in rows)
    assert {row["path"] for row in rows} >= set(available())
    operators = " ".join(row["operator"] for row in rows)
    wanted = ("x int8", "x int4", "x int2", "requantize", "softmax", "layer_norm", "gelu", "add", "embedding", "exp")
    assert all(word in operators for word in wanted)
    with file.open(newline="") as lines:
        assert [row["operator"] for row in csv.DictReader(lines)] == [row["operator"] for row in rows]


def test_validate_kernels_fails_on_a_wrong_kernel(capsys, monkeypatch):
    from accelsim_experiments import kernels

    right = kernels.requantize
    monkeypatch.setattr(kernels, "available", lambda: ())

    def off_by_one_column(sums, requantizer):
        values, _ = right(sums, requantizer)
        return np.roll(values, 1, -1)

    monkeypatch.setattr(kernels, "requantize", off_by_one_column)
    code, out, _ = run(capsys, "validate", "kernels", "--untimed")
    assert code == 1
    assert " 0 mismatches" not in out


def test_validate_kernels_refuses_another_suffix(capsys):
    code, out, err = run(capsys, "validate", "kernels", "--untimed", "--out", "kernels.xlsx")
    assert (code, out) == (2, "")
    assert ".csv" in err


def test_help_shows_examples(capsys):
    code, out, _ = run(capsys, "simulate", "--help")
    assert code == 0
    assert "accelsim simulate bert-base --platform systolic-32x32" in out


BAD = {
    "model name": (["bert-bas", *ON], "bert-base"),
    "platform name": (["bert-base", "-p", "systolic-32x3"], "systolic-32x32"),
    "dataflow spelling": (["bert-base", *ON, "--set", "dataflow=WSX"], "nearest: ws"),
    "fold timing spelling": (["bert-base", *ON, "--set", "fold_timing=pipeline"], "nearest: pipelined"),
    "field name": (["bert-base", *ON, "--set", "dram.bytes_per_cycl=1"], "nearest: bytes_per_cycle"),
    "branch name": (["bert-base", *ON, "--set", "dam.bytes_per_cycle=1"], "dram"),
    "a branch, not a field": (["bert-base", *ON, "--set", "dram=1"], "dram"),
    "no value": (["bert-base", *ON, "--set", "rows"], "path=value"),
    "zero rows": (["bert-base", *ON, "--set", "rows=0"], "rows"),
    "negative rows": (["bert-base", *ON, "--set", "rows=-4"], "rows"),
    "fractional rows": (["bert-base", *ON, "--set", "rows=3.5"], "rows"),
    "absurd rows": (["bert-base", *ON, "--set", "rows=10000000000000000000"], "rows"),
    "NaN clock": (["bert-base", *ON, "--set", "clock_hz=nan"], "clock_hz"),
    "infinite bandwidth": (["bert-base", *ON, "--set", "dram.bytes_per_cycle=inf"], "dram.bytes_per_cycle"),
    "a unit in a number": (["bert-base", *ON, "--set", "clock_hz=1GHz"], "clock_hz"),
    "sequence too long": (["bert-base", *ON, "--seq", "99999"], "512"),
    "zero sequence": (["bert-base", *ON, "--seq", "0"], "seq"),
    "negative batch": (["bert-base", *ON, "--batch", "-1"], "batch"),
    "absurd batch": (["bert-base", *ON, "--batch", "100000000000"], "batch"),
    "absurd GEMM": (["gemm:999999999999x999999999999x999999999999", *ON], "2^"),
    "GEMM of zero": (["gemm:0x3x4", *ON], "gemm"),
    "GEMM spelling": (["gemm:3x4", *ON], "MxKxN"),
    "head": (["bert-base", *ON, "--head", "masked-lm"], "pretraining"),
    "precision name": (["bert-base", *ON, "--precision", "w8a9"], "w8a8"),
    "precision the array lacks": (["bert-base", *ON, "--precision", "fp16"], "int8"),
    "precision the device lacks": (["bert-base", "-p", "k80", "--precision", "bf16"], "precision"),
    "breakdown": (["bert-base", *ON, "--by", "operators"], "operator"),
    "buffer too small": (["bert-base", *ON, "--set", "weight_buffer.capacity_bytes=64"], "weight_buffer.capacity"),
    "accumulator too narrow": (["bert-base", *ON, "--set", "accumulator_bits=20"], "accumulator_bits"),
    "too many steps": (["bert-base", *ON, "--detail", "events", "--set", "accumulator.capacity_bytes=256",
                        "--batch", "400"], "analytic"),
    "figure suffix": (["bert-base", *ON, "--figure", "x.gif"], ".png"),
    "output folder": (["bert-base", *ON, "--out", "/no/such/folder/x.csv"], "folder"),
    "missing platform file": (["bert-base", "-p", "no_such.yaml"], "no_such.yaml"),
    "missing model folder": (["./no_such_folder", *ON], "no_such_folder"),
    "missing graph file": (["no_such.json", *ON], "no_such.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_line_and_status_2(case, capsys):
    args, hint = BAD[case]
    code, out, err = run(capsys, "simulate", *args, "--json")
    assert code == 2, (out, err)
    assert out == ""
    assert err.count("\n") == 1, err
    assert hint in err


GRAPH_EDITS = {
    "cycle": (lambda g: _rewire(g), "cycle"),
    "unknown op": (lambda g: g["ops"][0].update(operator="linea"), "linear"),
    "negative size": (lambda g: g["tensors"][0].update(shape=[-1]), "shape"),
    "duplicate op": (lambda g: g["ops"].append(g["ops"][0]), "once"),
    "missing tensor": (lambda g: g["tensors"].pop(), "tensor"),
    "schema version": (lambda g: g.update(schema_version=99), "schema_version"),
    "no ops": (lambda g: g.update(ops=[]), "ops"),
}


def _rewire(graph):
    ops = graph["ops"]
    first = next(i for i, op in enumerate(ops) if op["operator"] == "add")
    ops[first]["inputs"][0] = ops[-1]["output"]


@pytest.mark.parametrize("case", sorted(GRAPH_EDITS))
def test_bad_graph_files_are_refused(case, capsys, tmp_path):
    from accelsim.trace import trace

    file = tmp_path / "graph.json"
    trace("bert-tiny", seq=8).save(file)
    assert run(capsys, "simulate", file, *ON)[0] == 0
    data = json.loads(file.read_text())
    edit, hint = GRAPH_EDITS[case]
    edit(data)
    file.write_text(json.dumps(data))
    code, out, err = run(capsys, "simulate", file, *ON)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert hint in err


FILES = {
    "list.yaml": ("- 1\n", "mapping"),
    "cut.json": ('{"rows":', "JSON"),
    "tab.yaml": ("rows:\n\t- x: [\n", "YAML"),
    "empty.yaml": ("", "mapping"),
    "kind.yaml": ("kind: systolick\n", "systolic"),
    "none.yaml": ("rows: 4\n", "kind"),
    "missing.yaml": ("kind: systolic\nname: x\n", "missing"),
    "code.yaml": ("kind: !!python/object/apply:os.system ['true']\n", "YAML"),
    "binary.yaml": (None, "text"),
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_bad_platform_files_are_refused(name, capsys, tmp_path):
    text, hint = FILES[name]
    file = tmp_path / name
    file.write_bytes(b"\xff\xfe\x00\x01" if text is None else text.encode())
    code, out, err = run(capsys, "simulate", "bert-tiny", "-p", file)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert hint in err


def test_a_cut_graph_file_is_refused(capsys, tmp_path):
    from accelsim.trace import trace

    file = tmp_path / "graph.json"
    trace("bert-tiny", seq=8).save(file)
    file.write_text(file.read_text()[:1000])
    code, _, err = run(capsys, "simulate", file, *ON)
    assert code == 2
    assert "complete JSON" in err


def test_install_is_light_and_ignores_a_models_folder(tmp_path):
    """A fresh interpreter beside a `models/` package of the user: the console script runs, heavy imports stay out."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    code = (
        "import sys, accelsim; heavy = {'torch', 'matplotlib', 'pandas', 'numba', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy; import accelsim.cli; heavy = {'torch', 'matplotlib', 'pandas', 'numba'} & "
        "set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    script = Path(sys.executable).parent / "accelsim"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [script, "simulate", "bert-tiny", "--seq", "16", "--json"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert math.isfinite(json.loads(done.stdout)["total"]["time_s"])


def test_a_pruned_model_is_priced_and_named(capsys):
    code, out, _ = run(capsys, "simulate", "bert-mini", "--layers", 2, "--heads", 3, "--ffn", 100, "--json")
    graph = accelsim.prune(accelsim.trace("bert-mini"), layers=2, heads=3, ffn=100)
    report = accelsim.simulate(graph, accelsim.platform("systolic-32x32"))
    assert (code, json.loads(out)) == (0, json.loads(json.dumps(report.to_json())))
    code, out, _ = run(capsys, "simulate", "bert-mini", "--layers", 2, "--ffn", 1024)
    assert (code, "batch 1, layers 2, int8" in out) == (0, True)
    code, out, err = run(capsys, "simulate", "bert-mini", "--heads", 5)
    assert (code, out) == (2, "")
    assert err == "accelsim: heads: got 5, want an integer from 1 to 4, which bert-mini has\n"
