"""Energy, area and leakage of a technology: `technology(22).mac_pj(8, 8)`. The numbers and their sources are in
`platforms/technology.yaml`; what a node does not state is interpolated, geometrically over log(node).

Platforms hold explicit numbers, so that a sweep computes with them alone; tests hold presets to this table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from accelsim.errors import SpecError
from accelsim.files import read_description
from accelsim.work import Arithmetic

FILE = Path(__file__).parent / "platforms" / "technology.yaml"


@lru_cache(maxsize=1)
def table() -> Mapping[str, Any]:
    """The file as nested mappings."""
    found: Mapping[str, Any] = read_description(FILE)
    return found


def nodes_nm() -> tuple[int, ...]:
    """ASIC nodes, largest first."""
    return tuple(table()["asic"]["nodes_nm"])


def technology(node: int | str) -> Technology:
    """An ASIC node by its nanometres: 45, 28, 22, 16 or 7. Raises SpecError for another."""
    text = str(node).removesuffix("nm").strip()
    if not (text.isascii() and text.isdigit()) or int(text) not in nodes_nm():
        raise SpecError.unknown("technology", node, [str(n) for n in nodes_nm()])
    return Technology(int(text))


def fpga_energies(name: str) -> dict[str, float]:
    """Dynamic energies of an FPGA's fabric by the names of `platforms.fpga.Energies`, in pJ. fpga-16 or fpga-28."""
    entries = table()["fpga"]
    if name not in entries:
        raise SpecError.unknown("FPGA technology", name, entries)
    return {key: float(value) for key, value in entries[name].items()}


def dram_pj_per_bit(kind: str) -> float:
    """Energy of a bit to or from DRAM: ddr3, ddr4, lpddr4, hbm2. Raises SpecError for another kind."""
    kinds = table()["dram_pj_per_bit"]
    if kind not in kinds:
        raise SpecError.unknown("DRAM", kind, kinds)
    return float(kinds[kind])


def interpolated(values: Mapping[int, float], node_nm: int) -> float:
    """The node's value, or between its neighbours: straight in log(value) over log(node); an end's slope beyond it.

    >>> round(interpolated({45: 4.0, 22: 1.0}, 28), 3)
    1.595
    """
    if node_nm in values:
        return float(values[node_nm])
    known = sorted(values)
    above = next((i for i, n in enumerate(known) if n > node_nm), len(known) - 1)
    low, high = known[max(0, above - 1)], known[max(1, above)]
    slope = math.log(values[high] / values[low]) / math.log(high / low)
    return float(values[low] * (node_nm / low) ** slope)


@dataclass(frozen=True)
class Technology:
    """An ASIC node. Energies in pJ, areas in mm2."""

    node_nm: int

    def _stated(self, quantity: str) -> float:
        return interpolated(table()["asic"][quantity], self.node_nm)

    def mac_pj(self, a_bits: int = 8, w_bits: int = 8, accumulator_bits: int = 32) -> float:
        """One integer multiply-accumulate: the product scales with a_bits w_bits, the sum with its width."""
        multiply, accumulate = self.mac_parts_pj(a_bits, w_bits, accumulator_bits)
        return multiply + accumulate

    def mac_parts_pj(self, a_bits: int = 8, w_bits: int = 8, accumulator_bits: int = 32) -> tuple[float, float]:
        """(product, sum) of `mac_pj`."""
        _positive(a_bits=a_bits, w_bits=w_bits, accumulator_bits=accumulator_bits)
        whole, share = self._stated("mac_int8_pj"), table()["asic"]["multiply_share"]
        return whole * share * a_bits * w_bits / 64, whole * (1 - share) * accumulator_bits / 32

    def float_mac_pj(self, kind: str) -> float:
        """One multiply-accumulate in fp16, bf16 or fp32."""
        ratios = table()["asic"]["float_mac_over_int8"]
        if kind not in ratios:
            raise SpecError.unknown("number format", kind, ratios)
        return self._stated("mac_int8_pj") * float(ratios[kind])

    def sram_read_pj(self, capacity_bytes: float, width_bits: float = 128) -> float:
        """One read of `width_bits`: (KiB / 512)^exponent of the 512 KiB macro's, straight in the width."""
        _positive(capacity_bytes=capacity_bytes, width_bits=width_bits)
        whole, exponent = self._stated("sram_128bit_read_pj_at_512kib"), self._stated("sram_exponent")
        return float(whole * (capacity_bytes / 2**19) ** exponent * width_bits / 128)

    def sram_write_pj(self, capacity_bytes: float, width_bits: float = 128) -> float:
        """One write."""
        return self.sram_read_pj(capacity_bytes, width_bits) * float(table()["asic"]["sram_write_over_read"])

    def register_pj(self, width_bits: float = 16) -> float:
        """One access of a register file beside a multiplier: 16 bits cost as much as a 16-bit MAC."""
        _positive(width_bits=width_bits)
        return self.mac_pj(16, 16) * float(table()["asic"]["register_over_mac16"]) * width_bits / 16

    def sram_mm2(self, capacity_bytes: Any) -> Any:
        """Area of a macro: its cells over their share of it. A number, or an array of many."""
        _positive(capacity_bytes=capacity_bytes)
        cell = self._stated("cell_um2")
        return 8 * capacity_bytes * cell / float(table()["asic"]["sram_array_efficiency"]) * 1e-6

    def mac_mm2(
        self, a_bits: int = 8, w_bits: int = 8, accumulator_bits: int = 32, arithmetic: Arithmetic = Arithmetic.INT
    ) -> float:
        """Area of a processing element: multiplier, adder, registers of both operands and the sum.

        Of reals, `a_bits` 16 or 32 chooses the unit; bfloat16 has an 8 x 8 bit product and the fp16 adder.
        """
        _positive(a_bits=a_bits, w_bits=w_bits, accumulator_bits=accumulator_bits)
        um2 = table()["asic"]["logic_um2_at_45"]
        if arithmetic is Arithmetic.INT:
            cells = um2["int8_multiply"] * a_bits * w_bits / 64 + um2["int32_add"] * accumulator_bits / 32
        elif arithmetic is Arithmetic.BFLOAT:
            cells = um2["int8_multiply"] + um2["fp16_add"]
        else:
            kind = "fp32" if max(a_bits, w_bits) > 16 else "fp16"
            cells = um2[f"{kind}_multiply"] + um2[f"{kind}_add"]
        return self._logic_mm2(cells + um2["register_bit"] * (a_bits + w_bits + accumulator_bits))

    def lane_mm2(self) -> float:
        """Area of a vector lane: a 32-bit multiplier, two adders, four 32-bit registers, a table of 256 bytes."""
        um2 = table()["asic"]["logic_um2_at_45"]
        cells = um2["int32_multiply"] + 2 * um2["int32_add"] + 128 * um2["register_bit"]
        return float(self._logic_mm2(cells) + self.sram_mm2(256))

    def _logic_mm2(self, um2_at_45: float) -> float:
        pitches = table()["asic"]["pitch_area_nm2"]
        shrink = self._stated("pitch_area_nm2") / pitches[45]
        return float(um2_at_45 * shrink / table()["asic"]["placement"] * 1e-6)

    def leakage_w(self, logic_mm2: float, sram_mm2: float = 0.0) -> float:
        """Power that flows through so much idle logic and SRAM, at a density that is the same for every node."""
        densities = table()["asic"]["leakage_w_per_mm2"]
        for name, value in (("logic_mm2", logic_mm2), ("sram_mm2", sram_mm2)):
            if not (math.isfinite(value) and value >= 0):
                raise SpecError(name, value, "a finite number >= 0")
        return logic_mm2 * float(densities["logic"]) + sram_mm2 * float(densities["sram"])


def _positive(**values: Any) -> None:
    for name, value in values.items():
        if not np.all(np.isfinite(value) & (np.asarray(value) > 0)):
            raise SpecError(name, value, "a finite number > 0")
