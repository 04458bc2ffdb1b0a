"""Are compiled loops kept on disk, and compiled anew when a formula of another file changes?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from accelsim import jit
from accelsim.platforms import platform

ROOT = Path(__file__).parent.parent
PROBE = """
import sys, accelsim
from accelsim import mapping
report = accelsim.simulate(accelsim.gemm_graph(8, 8, 8), accelsim.platform("systolic-16x16"))
stats = mapping._map_all.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), report.total.cycles)
"""


def probe(folder: Path, cache: Path) -> tuple[int, int, int]:
    env = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hits, misses, cycles = done.stdout.split()
    return int(hits), int(misses), int(cycles)


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "accelsim", folder / "accelsim", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_second_process_starts_warm_and_a_changed_atom_does_not(copy, tmp_path):
    cache = tmp_path / "cache"
    hits, misses, cycles = probe(copy, cache)
    assert (hits, misses) == (0, 1)
    assert probe(copy, cache) == (1, 0, cycles)
    formulas = copy / "accelsim" / "formulas.py"
    text = formulas.read_text()
    assert text.count("return 2 * rows + cols + streamed - 2") == 1
    formulas.write_text(text.replace("return rows if timing == PIPELINED", "return 1000 + rows if timing == PIPELINED"))
    hits, misses, changed = probe(copy, cache)
    assert (hits, misses) == (0, 1)
    assert changed == cycles + 1000


def test_a_record_has_every_number_of_the_dataclass_under_its_name():
    chip = platform("systolic-32x32")
    row = jit.record(chip)[0]
    assert "name" not in row.dtype.names
    assert row["rows"] == chip.rows
    assert row["dram"]["bytes_per_cycle"] == chip.dram.bytes_per_cycle
    assert row["vector"]["softmax"]["passes"] == chip.vector.softmax.passes
    assert row["dataflow"] == int(chip.dataflow)
    assert {np.dtype(row.dtype[n]).kind for n in row.dtype.names} <= {"i", "f", "V"}
