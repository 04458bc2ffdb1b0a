"""Would a wrong kernel be noticed? Copies of the package with one error each, or with errors that cannot meet."""

from __future__ import annotations

import inspect
import shutil
import sys
import types
from fractions import Fraction

import numpy as np
import pytest

from accelsim.numerics import Rounding, rounding
from tests.integers import PATHS, ROOT, ROUNDINGS, in_a_process, mismatches, rounded, split_mix

PROBE = """
import json
from tests.integers import mismatches
print(json.dumps(mismatches()))
"""

LOOPS, LLVM, SCALING, PRODUCT = (f"numerics/{name}.py" for name in ("loops", "llvm", "scaling", "product"))
BITS = {"8 bits", "4 bits", "2 bits"}
ACTIVATIONS = {"activations k by n", "activations n by k"}
WITH_ZERO = {"input zero point", "weight zero points"} | ACTIVATIONS
FUSED = {f"{kind} {name}" for kind in ("real", "wide", "high") for name in (*ROUNDINGS, "clamped")}

MUTANTS = {
    "the correction by column sums has the wrong sign": (
        {(LOOPS, "bias[16 * s + j] - a_zero * w_sums"): "bias[16 * s + j] + a_zero * w_sums"},
        BITS | WITH_ZERO | FUSED,
    ),
    "weights are those of the strip before": (
        {(LOOPS, "address_of(w) + s * strip_bytes"): "w.ctypes.data + max(0, s - 1) * strip_bytes"},
        BITS | {"unsigned", "input zero point", "weight zero points", "bias", "scales", "table"},
    ),
    "activations are packed a column off, sums of rows leave out the zero point": (
        {
            (LOOPS, "b[4 * g + i, 16 * s + c] if inside"): "b[4 * g + i, 16 * s + c - 1] if inside",
            (LOOPS, "total - k * a_zero"): "total",
        },
        ACTIVATIONS | {"weight zero points"},
    ),
    "fields of a byte in another order, ties the wrong way, clamped miscounted, all scaled as the first strip": (
        {
            (LLVM, "_all(kind, 8 - width * (field + 1))"): "_all(kind, width * field)",
            (LLVM, "b.add(b.add(product, b.sub(half, some)), odd)"): "b.sub(b.add(product, half), odd)",
            (LLVM, "b.sub(b.add(product, half), negative)"): "b.add(product, half)",
            (LLVM, 'whole = _unary(b, "trunc", x)'): 'whole = _unary(b, "floor", x)',
            (LLVM, '_unary(b, "rint", x)'): '_unary(b, "round", x)',
            (LLVM, "b.lshr(self.noise(), _all(W64, 40))"): "b.lshr(self.noise(), _all(W64, 41))",
            (LLVM, "b.lshr(b.lshr(self.noise(), _all(kind, 1))"): "b.lshr(b.lshr(self.noise(), _all(kind, 2))",
            (LLVM, 'moved = b.icmp_signed("!=", x, y)'): 'moved = b.icmp_signed("<", x, y)',
            (LLVM, 'b.fcmp_unordered("!=", x, y)'): 'b.fcmp_unordered(">", x, y)',
            (SCALING, "multiplier.ctypes.data + 4 * first"): "multiplier.ctypes.data",
        },
        {"4 bits", "2 bits", "scales", "table"} | FUSED - {"real floor", "wide floor", "high floor"},
    ),
}


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "accelsim", tmp_path / "accelsim", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def replace(folder, file, old, new):
    path = folder / "accelsim" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} must be in {file} once"
    path.write_text(text.replace(old, new))


def test_the_kernels_themselves_pass():
    assert set(mismatches().values()) == {0}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_is_caught(name, copy):
    """By the checks that meet the error and no others. Errors share a copy where each has a check of its own."""
    errors, trips = MUTANTS[name]
    for (file, old), new in errors.items():
        replace(copy, file, old, new)
    found = in_a_process(PROBE, package=copy, NUMBA_CACHE_DIR=str(copy / "cache"), NUMBA_OPT="0", ACCELSIM_KERNELS="")
    assert {check for check, wrong in found.items() if wrong} == trips


@pytest.mark.skipif(PATHS == ("portable",), reason="there is nothing to choose from")
def test_a_selection_that_forgets_the_compiler_is_caught(copy):
    """Instructions that the processor has and the compiler has not end the process with a signal."""
    replace(copy, "numerics/paths.py", "return frozenset(host & {", "return frozenset(host | {")
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(copy / "cache"), "ACCELSIM_KERNELS": ""}
    with pytest.raises(AssertionError, match="exit status -"):
        in_a_process(PROBE, package=copy, **environment)


# --- definitions ------------------------------------------------------------------------------------------------------

WRONG_ATOMS = {
    "ties towards plus infinity": ("np.int64((product < 0) & (shift > 0))", "np.int64(0)"),
    "odd and even exchanged": ("((product >> shift) & some)", "(~(product >> shift) & some)"),
    "a shift of 0 has half a unit": ("some = np.int64(shift > 0)", "some = np.int64(1)"),
    "floor towards zero": ("return product >> shift", "return -(-product >> shift)"),
    "a draw of the lowest bits": ("np.uint64(63 - shift)", "np.uint64(shift)"),
    "a seed that counts for nothing": ("z = np.uint64(seed) + ", "z = np.uint64(0) + "),
}


def check_atoms(module):
    """Mismatches of `rounded_shift` with fractions, of ties and their neighbours at some shifts."""
    wrong = 0
    with np.errstate(over="ignore"):
        for name in ROUNDINGS:
            for shift in (0, 1, 5, 40):
                half = 2**shift // 2
                for i, product in enumerate(j * half + step for j in range(-5, 6) for step in (-1, 0, 1)):
                    u = Fraction(split_mix(11, i) >> 64 - shift, 2**shift)
                    got = module.rounded_shift(np.int64(product), np.int64(shift), int(Rounding(name)), 11, i)
                    wrong += int(got) != rounded(Fraction(product, 2**shift), name, u)
    return wrong


def test_the_atoms_themselves_pass():
    assert check_atoms(rounding) == 0


@pytest.mark.parametrize("name", WRONG_ATOMS)
def test_a_wrong_atom_is_caught(name, monkeypatch):
    source, (old, new) = inspect.getsource(rounding), WRONG_ATOMS[name]
    assert source.count(old) == 1, f"{old!r} must be in rounding.py once"
    module = types.ModuleType("wrong_rounding")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source.replace(old, new), "wrong_rounding", "exec"), module.__dict__)
    assert check_atoms(module) > 0
