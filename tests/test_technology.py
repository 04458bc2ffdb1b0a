"""Is each atom of energy and area right? Anchors of the table, presets that follow it, sums of parts, a changed law."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from accelsim_experiments import component_library
from hypothesis import given
from hypothesis import strategies as st

from accelsim import technology as module
from accelsim.errors import SpecError
from accelsim.platforms import names, platform
from accelsim.platforms.base import Memory
from accelsim.platforms.fpga import Fpga
from accelsim.platforms.roofline import Roofline
from accelsim.platforms.systolic import Systolic
from accelsim.simulate import simulate
from accelsim.technology import dram_pj_per_bit, fpga_energies, interpolated, nodes_nm, technology
from accelsim.trace import trace
from accelsim.work import Arithmetic

PRESETS = [name for name in names() if name != "this-cpu"]
SYSTOLIC = [name for name in PRESETS if isinstance(platform(name), Systolic)]
FOLLOWING = [name for name in SYSTOLIC if name.startswith("systolic-")]
"""Presets whose energies are those of 22 nm in the table."""
ANCHORS = {45: (1.154, 100.2), 22: (0.339, 25.05), 7: (0.109, 14.13)}
"""Node -> pJ of an int8 MAC, pJ of a 128-bit read of 512 KiB."""
ALADDIN = {
    45: (1.1537, 986.36),
    28: (0.59211, 369.28),
    22: (0.3393, 247.28),
    16: (0.20021, 185.33),
    7: (0.1088, 58.247),
}
"""Node -> pJ and um2 of AladdinIntMAC (8 bits, 32-bit adder) as hwcomponents-library 1.0.58 answered."""


@pytest.mark.parametrize("node", ANCHORS)
def test_anchors(node):
    mac, read = ANCHORS[node]
    assert technology(node).mac_pj() == pytest.approx(mac, rel=1e-12)
    assert technology(f"{node}nm").sram_read_pj(512 * 1024) == pytest.approx(read, rel=1e-12)


def test_the_sram_law_of_22_nm():
    for kib in (1, 16, 128, 4096):
        assert technology(22).sram_read_pj(1024 * kib) == pytest.approx(0.890 * kib**0.535, rel=2e-3)
    assert technology(22).sram_read_pj(2**17, 32) == technology(22).sram_read_pj(2**17) / 4


def held_by_preset(name: str) -> list[tuple[float, float]]:
    """(number of the preset, number of the table) of every energy that follows the table."""
    chip, node = platform(name), technology(22)
    assert isinstance(chip, Systolic)
    pairs = []
    for buffer in (chip.input_buffer, chip.weight_buffer, chip.accumulator, chip.vector.buffer):
        per_byte = node.sram_read_pj(buffer.capacity_bytes) / 16
        pairs += [(buffer.read_pj_per_byte, per_byte), (buffer.write_pj_per_byte, per_byte)]
    multiply, accumulate = node.mac_parts_pj()
    return [*pairs, (chip.multiply_pj, multiply), (chip.accumulate_pj, accumulate)]


@pytest.mark.parametrize("name", FOLLOWING)
def test_presets_follow_the_table(name):
    for held, wanted in held_by_preset(name):
        assert held == pytest.approx(wanted, abs=6e-4)
    chip = platform(name)
    assert isinstance(chip, Systolic)
    assert chip.dram.pj_per_byte in {8 * dram_pj_per_bit(kind) for kind in ("lpddr4", "hbm2", "ddr4")}


def with_asic(monkeypatch: pytest.MonkeyPatch, quantity: str, value: Any) -> None:
    """The table with one ASIC quantity replaced."""
    changed = {**module.table(), "asic": {**module.table()["asic"], quantity: value}}
    monkeypatch.setattr(module, "table", lambda: changed)


@pytest.mark.parametrize(("quantity", "change"), [("sram_exponent", {22: 0.5}), ("multiply_share", 0.5)])
def test_a_changed_law_is_caught_by_the_presets(quantity, change, monkeypatch):
    with_asic(monkeypatch, quantity, change)
    assert any(abs(held - wanted) > 6e-4 for held, wanted in held_by_preset("systolic-32x32"))


def leakage_held(name: str) -> list[tuple[float, float]]:
    """(W of the preset, W of the table) of the processing elements and of each buffer."""
    chip, node = platform(name), technology(22)
    assert isinstance(chip, Systolic)
    elements = chip.rows * chip.cols * chip.arrays * node.mac_mm2()
    buffers = [(b.leakage_w, node.leakage_w(0, node.sram_mm2(b.capacity_bytes))) for b in memories(chip)]
    return [(chip.static_w, node.leakage_w(elements)), *buffers]


@pytest.mark.parametrize("name", FOLLOWING)
def test_leakage_of_presets_follows_the_table(name):
    for held, wanted in leakage_held(name):
        assert held == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("density", ["logic", "sram"])
def test_a_changed_leakage_is_caught(density, monkeypatch):
    stated = module.table()["asic"]["leakage_w_per_mm2"]
    with_asic(monkeypatch, "leakage_w_per_mm2", {**stated, density: 1.1 * stated[density]})
    assert any(held != pytest.approx(wanted, rel=0.01) for held, wanted in leakage_held("systolic-32x32"))


@pytest.mark.parametrize("name", [name for name in PRESETS if isinstance(platform(name), Fpga)])
def test_fpga_presets_follow_the_table(name):
    chip = platform(name)
    assert isinstance(chip, Fpga)
    assert dataclasses.asdict(chip.energy) == fpga_energies("fpga-28" if name == "fqbert-z7020" else "fpga-16")


@given(st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 4, 8, 16]))
def test_a_product_scales_with_both_widths_and_a_sum_with_its_own(a, w):
    node = technology(16)
    multiply, accumulate = node.mac_parts_pj(a, w)
    assert multiply == pytest.approx(node.mac_parts_pj()[0] * a * w / 64)
    assert accumulate == node.mac_parts_pj()[1]
    assert node.mac_parts_pj(a, w, 16)[1] == accumulate / 2


def test_smaller_nodes_take_less_of_everything():
    nodes = [technology(n) for n in nodes_nm()]
    assert nodes_nm() == (45, 28, 22, 16, 7)
    for larger, smaller in pairwise(nodes):
        assert larger.mac_pj() > smaller.mac_pj()
        assert larger.sram_read_pj(2**16) > smaller.sram_read_pj(2**16)
        assert larger.sram_mm2(2**20) > smaller.sram_mm2(2**20)
        assert larger.mac_mm2() > smaller.mac_mm2()
        assert larger.lane_mm2() > smaller.lane_mm2()
    assert technology(22).float_mac_pj("fp32") > technology(22).float_mac_pj("fp16") > technology(22).mac_pj()
    assert technology(22).register_pj(32) == 2 * technology(22).register_pj(16)
    wide = technology(22).mac_mm2(arithmetic=Arithmetic.FLOAT, a_bits=32, w_bits=32)
    half = technology(22).mac_mm2(arithmetic=Arithmetic.FLOAT, a_bits=16, w_bits=16)
    assert wide > half > technology(22).mac_mm2(arithmetic=Arithmetic.BFLOAT, a_bits=16, w_bits=16)


def test_interpolation_is_straight_between_logarithms():
    assert interpolated({45: 4.0, 22: 1.0}, 45) == 4.0
    middle = math.sqrt(45 * 22)
    assert interpolated({45: 4.0, 22: 1.0}, middle) == pytest.approx(2.0)
    assert 1.0 < interpolated({45: 4.0, 22: 1.0, 7: 0.5}, 28) < 4.0
    assert interpolated({45: 4.0, 22: 1.0}, 11) == pytest.approx(1.0 * (11 / 22) ** (math.log(4) / math.log(45 / 22)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: technology(32), "16, 22, 28, 45, 7"),
        (lambda: technology("22um"), "22"),
        (lambda: technology("22²"), "nearest: 22"),
        (lambda: technology(float("nan")), "45"),  # type: ignore[arg-type]
        (lambda: dram_pj_per_bit("ddr"), "ddr4"),
        (lambda: fpga_energies("fpga-17"), "fpga-16"),
        (lambda: technology(22).float_mac_pj("fp8"), "fp16"),
        (lambda: technology(22).mac_pj(0, 8), "a_bits"),
        (lambda: technology(22).sram_read_pj(float("nan")), "capacity_bytes"),
        (lambda: technology(22).sram_mm2(-1), "capacity_bytes"),
        (lambda: technology(22).leakage_w(float("inf")), "logic_mm2"),
    ],
)
def test_bad_input_names_what_is_legal(call, words):
    with pytest.raises(SpecError, match=words):
        call()


# --- in reports -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_report_tells_energy_power_efficiency_and_area(name):
    chip = platform(name)
    total = simulate(trace("bert-tiny", seq=16, batch=3), chip).total
    assert total.power_w == pytest.approx(total.energy_j / total.time_s)
    assert total.fps_per_w == pytest.approx(3 / total.energy_j)
    assert total.fps_per_w == pytest.approx(3 / total.time_s / total.power_w)
    assert total.area_mm2 == chip.area_mm2()
    if isinstance(chip, Systolic):
        assert total.area_mm2 == pytest.approx(sum(chip.area_by_part_mm2().values()))
        assert all(part > 0 for part in chip.area_by_part_mm2().values())
    elif isinstance(chip, Roofline):
        assert (total.area_mm2 is None) == (chip.die_mm2 == 0)
    else:
        assert total.area_mm2 is None


def test_what_is_not_described_is_none_and_not_zero():
    """As `this-cpu`, whose energies and die nobody measured."""
    levels = ("inner", "outer", "dram")
    nothing = {f"{level}.pj_per_byte": 0 for level in levels} | {"vector_pj_per_flop": 0, "static_w": 0, "die_mm2": 0}
    nothing |= {f"pj_per_flop.{width}": 0 for width in ("fp32", "fp16", "bf16", "int8", "int4")}
    total = simulate(trace("bert-tiny", seq=16, batch=1), platform("a100", nothing)).to_json()["total"]
    assert (total["energy_j"], total["power_w"], total["fps_per_w"], total["area_mm2"]) == (0, 0, None, None)


def memories(value: Any) -> Iterator[Memory]:
    """Every buffer in a description, at any depth."""
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        if isinstance(item, Memory):
            yield item
        elif dataclasses.is_dataclass(item):
            yield from memories(item)


def area_by_hand(chip: Systolic) -> float:
    """mm2 at 22 nm of an int8 array: all there is on the chip, with numbers written out."""
    shrink = 7200 / 19440 / 0.7 * 1e-6
    element = (282 + 137 + 5 * (8 + 8 + 32)) * shrink
    lane = (3495 + 2 * 137 + 5 * 128) * shrink
    cells = sum(b.capacity_bytes for b in memories(chip)) + 256 * chip.vector.lanes
    sram = 8 * cells * 0.092 / 0.5 * 1e-6
    return chip.rows * chip.cols * chip.arrays * element + chip.vector.lanes * lane + sram


@pytest.mark.parametrize("name", FOLLOWING)
def test_area_is_that_of_everything_on_the_chip(name):
    chip = platform(name, {"arrays": 3})
    assert isinstance(chip, Systolic)
    assert len(list(memories(chip))) == 4
    assert chip.area_mm2() == pytest.approx(area_by_hand(chip), rel=1e-9)


def test_an_area_that_forgets_a_part_is_caught(monkeypatch):
    chip = platform("systolic-32x32")
    assert isinstance(chip, Systolic)
    parts = chip.area_by_part_mm2()
    for part in parts:
        fewer = {name: area for name, area in parts.items() if name != part}
        monkeypatch.setattr(Systolic, "area_by_part_mm2", lambda self, fewer=fewer: fewer)
        assert chip.area_mm2() != pytest.approx(area_by_hand(chip), rel=0.01)


def test_area_follows_what_is_on_the_chip():
    base = platform("systolic-32x32")
    assert isinstance(base, Systolic)
    grown = {
        "rows": ("arrays", 64), "cols": ("arrays", 64), "arrays": ("arrays", 2), "accumulator_bits": ("arrays", 48),
        "input_buffer.capacity_bytes": ("input_buffer", 2**22), "vector.lanes": ("vector", 128),
        "weight_buffer.capacity_bytes": ("weight_buffer", 2**22), "vector.buffer.capacity_bytes": ("vector", 2**22),
        "accumulator.capacity_bytes": ("accumulator", 2**22),
    }  # fmt: skip
    for field, (part, value) in grown.items():
        other = platform("systolic-32x32", {field: value})
        assert isinstance(other, Systolic)
        before, after = base.area_by_part_mm2(), other.area_by_part_mm2()
        assert after.pop(part) > before.pop(part)
        assert after == before
    smaller = platform("systolic-32x32", {"technology_nm": 7}).area_mm2()
    assert smaller is not None
    assert smaller < 0.4 * base.area_mm2()
    with pytest.raises(SpecError, match="45, 28, 22, 16 or 7"):
        platform("systolic-32x32", {"technology_nm": 23})


FLOOR_PLAN = {"input_buffer": 0.29, "arrays": 0.24, "accumulator": 0.06}
"""Shares of the TPU v1's die, of at most 331 mm2: Jouppi et al., ISCA 2017, figure 2 and table 2."""


def floor_plan_ratios() -> dict[str, float]:
    """Our mm2 / published mm2."""
    chip = platform("tpu-v1")
    assert isinstance(chip, Systolic)
    return {part: chip.area_by_part_mm2()[part] / (share * 331) for part, share in FLOOR_PLAN.items()}


def test_the_parts_of_the_tpu_are_within_a_factor_of_2_5_of_its_floor_plan():
    """Ours are smaller, all of them: wiring, redundancy, test and control are in the published blocks."""
    for part, ratio in floor_plan_ratios().items():
        assert 0.4 < ratio < 1, part


@pytest.mark.parametrize(
    ("quantity", "change"),
    [
        ("sram_array_efficiency", 1.0),
        ("placement", 1.0),
        ("pitch_area_nm2", {45: 19440, 28: 5760}),
        ("cell_um2", {28: 0.346}),
    ],
)
def test_a_changed_area_is_caught_by_the_floor_plan(quantity, change, monkeypatch):
    with_asic(monkeypatch, quantity, change)
    assert not all(0.4 < ratio < 1 for ratio in floor_plan_ratios().values())


# --- against the field's component library ----------------------------------------------------------------------------


def test_the_sram_law_fits_cacti():
    """CACTI's numbers as committed; 4 KiB is below what the law was fitted for at 22 nm and smaller."""
    rows = component_library.committed()
    assert {r["node_nm"] for r in rows} == set(nodes_nm())
    for r in rows:
        ours = technology(r["node_nm"]).sram_read_pj(1024 * r["kib"])
        assert ours == pytest.approx(r["read_pj"], rel=0.3 if r["node_nm"] > 22 or r["kib"] < 16 else 0.1), r


def test_the_area_of_a_macro_is_within_a_factor_of_cacti():
    """Ours is larger, from published cells and an array that they fill by half."""
    for r in component_library.committed():
        assert 1.0 < technology(r["node_nm"]).sram_mm2(1024 * r["kib"]) / r["mm2"] < 3.2, r


def mac_ratios() -> list[tuple[float, float]]:
    """(ours / the library's pJ, ours / the library's um2) of an int8 MAC at each node."""
    ours = [(technology(node).mac_pj(), technology(node).mac_mm2() * 1e6) for node in ALADDIN]
    return [(pj / a, um2 / b) for (pj, um2), (a, b) in zip(ours, ALADDIN.values(), strict=True)]


def test_a_mac_is_that_of_the_library_at_every_node():
    """Energy is taken from it. Area is our own, of Dally's units with the registers that the library leaves out."""
    for energy, area in mac_ratios():
        assert energy == pytest.approx(1, rel=2e-3)
        assert 0.9 < area < 2


@pytest.mark.parametrize(
    ("quantity", "change"),
    [
        ("mac_int8_pj", {45: 1.154, 22: 0.339, 7: 0.109}),
        ("pitch_area_nm2", {45: 19440, 7: 5760}),
        ("placement", 0.3),
    ],
)
def test_a_changed_mac_is_caught_by_the_library(quantity, change, monkeypatch):
    """The first change leaves 28 and 16 nm to interpolation: 14 % too low, 24 % too high."""
    with_asic(monkeypatch, quantity, change)
    assert any(energy != pytest.approx(1, rel=2e-3) or not 0.9 < area < 2 for energy, area in mac_ratios())


def test_the_comparison_is_printed(capsys):
    component_library.main()
    assert capsys.readouterr().out.count("nm") >= len(component_library.committed())


def test_the_committed_numbers_are_those_of_the_library():
    """Only where it is installed: it needs Python 3.12 and a CACTI that runs there, so it is no dependency of ours."""
    pytest.importorskip("hwcomponents_cacti", reason="hwcomponents-cacti is not installed: not compared anew")
    for r in component_library.committed()[:3]:
        assert component_library.measured(r["node_nm"], r["kib"])["read_pj"] == pytest.approx(r["read_pj"], rel=1e-3)
