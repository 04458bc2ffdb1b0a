"""What FQ-BERT's accelerator takes of an FPGA: DSP, BRAM, URAM, LUT and FF, term by term.

Structure gives every term but one constant for each resource, in the platform's description, that is found from the
one configuration a calibration may use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from accelsim.formulas import ceil_div
from accelsim.platforms.base import STRICT, Whole

if TYPE_CHECKING:
    from accelsim.platforms.fpga import Fpga

BRAM, URAM = 0, 1
"""As in `platforms.fpga.Ram`."""
NIBBLE_BITS = 4
PRODUCT_BITS = 12
"""Of an 8 x 4 bit product."""
SUM_BITS = 32
"""Of accumulators, partial sums and biases."""
BRAM18_DEPTH, BRAM18_DATA_BITS = 512, 32
"""A BRAM18K at its widest; elements of 4, 8 or 32 bits leave its 4 parity bits unused (UG573)."""
URAM_DEPTH, URAM_DATA_BITS = 4096, 64
"""A UltraRAM block, parity unused (UG573)."""
QUANTIZER_DSPS = 4
"""A product of 32 x 32 bit from multipliers of 27 x 18 (UG579)."""


@dataclass(frozen=True)
class Device:
    """What a device has, from its data sheet."""

    dsp: Whole
    bram18k: Whole
    uram: Whole
    lut: Whole
    ff: Whole
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def available(self) -> dict[str, int]:
        """Amount by the name reports use."""
        return {"DSP": self.dsp, "BRAM18K": self.bram18k, "URAM": self.uram, "LUT": self.lut, "FF": self.ff}


@dataclass(frozen=True)
class Resources:
    """Sizes that the structure does not give."""

    dsp_per_lane: Whole
    """Multipliers of one lane of the softmax and layer-norm cores."""
    lut_per_lane: Whole
    ff_per_lane: Whole
    pe_control_lut: Whole
    """Counters and addresses of one processing element."""
    pe_control_ff: Whole
    lut_per_unit: Whole
    """The rest, for each processing unit: interconnect, control, its share of AXI and DMA."""
    ff_per_unit: Whole
    dsp_other: Whole
    """Row scalars of the cores."""
    bram18k_other: Whole
    """FIFOs and tables."""
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


class Need(NamedTuple):
    """One term: how much of a resource a part takes, by which formula, and which fields make it smaller."""

    resource: str
    part: str
    amount: int
    formula: str
    levers: tuple[str, ...]


def ram_blocks(capacity_bytes: int, width_bits: int, depth: int, data_bits: int) -> int:
    """Blocks side by side for the width, one above the other for the depth that the capacity then needs.

    >>> ram_blocks(393216, 6144, 512, 32)
    192
    """
    rows = ceil_div(8 * capacity_bytes, width_bits)
    return ceil_div(width_bits, data_bits) * ceil_div(rows, depth)


def tree_bits(leaves: int) -> int:
    """Bits of all adders of a tree over so many 12-bit products; a LUT adds one bit and a register holds one.

    >>> tree_bits(8)  # 4 adders of 13 bits, 2 of 14, 1 of 15
    95
    """
    bits, level = 0, 0
    while leaves > 1:
        level += 1
        bits += leaves // 2 * (PRODUCT_BITS + level)
        leaves = ceil_div(leaves, 2)
    return bits


def demand(p: Fpga | Any) -> list[Need]:
    """Every term, for the configuration `p`: an `Fpga`, or a record with its fields."""
    return [*_dsps(p), *_buffers(p), *_logic(p)]


def _dsps(p: Fpga) -> list[Need]:
    units, m, r = p.processing_units, p.multipliers, p.resources
    array = ("processing_units", "pes", "multipliers")
    return [
        Need("DSP", "multipliers", units * p.pes * m, "P N M, one for each 8 x 4 bit multiplier", array),
        Need("DSP", "quantization", units * QUANTIZER_DSPS, f"P x {QUANTIZER_DSPS}, a 32 x 32 bit product", array[:1]),
        Need("DSP", "softmax and layer norm", m * r.dsp_per_lane, f"M lanes x {r.dsp_per_lane}", array[2:]),
        Need("DSP", "other", r.dsp_other, "resources.dsp_other", ("resources.dsp_other",)),
    ]


def _buffers(p: Fpga) -> list[Need]:
    """Widths: a nibble for every multiplier; a word of M activations for every unit; a result or bias for each."""
    units, words = p.processing_units, p.processing_units * p.multipliers * 8
    found = []
    for name, buffer, width, formula in (
        ("weight_buffer", p.weight_buffer, units * p.pes * p.multipliers * NIBBLE_BITS, "P N M x 4 bits wide"),
        ("input_buffer", p.input_buffer, words, "P M x 8 bits wide"),
        ("intermediate_buffer", p.intermediate_buffer, words, "P M x 8 bits wide"),
        ("output_buffer", p.output_buffer, units * 8, "P x 8 bits wide"),
        ("parameter_buffer", p.parameter_buffer, units * SUM_BITS, "P x 32 bits wide"),
    ):
        text = f"{buffer.capacity_bytes} bytes in two halves, {formula}"
        levers = (f"{name}.capacity_bytes", "pes", "multipliers")
        if buffer.ram == URAM:
            blocks = ram_blocks(buffer.capacity_bytes, width, URAM_DEPTH, URAM_DATA_BITS)
            found.append(Need("URAM", name, blocks, text, (*levers, f"{name}.ram=bram")))
        elif buffer.ram == BRAM:
            blocks = ram_blocks(buffer.capacity_bytes, width, BRAM18_DEPTH, BRAM18_DATA_BITS)
            found.append(Need("BRAM18K", name, blocks, text, (*levers, f"{name}.ram=uram")))
        else:
            found.append(Need("LUT", name, _lutram(8 * buffer.capacity_bytes), text + ", 64 bits a LUT", levers))
    other = p.resources.bram18k_other
    return [*found, Need("BRAM18K", "other", other, "resources.bram18k_other", ("resources.bram18k_other",))]


def _lutram(bits: int) -> int:
    """LUTs of a simple dual-port memory: 8 of them give 64 x 7 bits (UG574)."""
    return ceil_div(bits * 8, 64 * 7)


def _logic(p: Fpga) -> list[Need]:
    units, n, m, r = p.processing_units, p.pes, int(p.multipliers), p.resources
    elements = units * n
    trees, levels = 2 * tree_bits(m // 2), (m // 2 - 1).bit_length()
    shifted = PRODUCT_BITS + levels + NIBBLE_BITS + 1
    bim = trees + shifted + m * 8 // 2 + m * NIBBLE_BITS // 2
    element = SUM_BITS + _lutram(2 * p.psum_rows * SUM_BITS) + ceil_div(SUM_BITS, 3) + r.pe_control_lut
    quantizer = 7 * SUM_BITS + 32
    array = ("processing_units", "pes", "multipliers")
    return [
        Need("LUT", "BIM", elements * bim, f"P N x {bim}: two trees, shift-add, operand selection", array),
        Need("LUT", "PE", elements * element, f"P N x {element}: accumulator, psum buffer, drain, control", array[:2]),
        Need("LUT", "quantization", units * quantizer, f"P x {quantizer}: bias, rounding, clamping, GELU table", array),
        Need("LUT", "softmax and layer norm", m * r.lut_per_lane, f"M lanes x {r.lut_per_lane}", array[2:]),
        Need("LUT", "other", units * r.lut_per_unit, f"P x {r.lut_per_unit}", array[:1]),
        Need("FF", "BIM", elements * (m * 12 + trees + shifted), "P N x (operands, tree, shift-add)", array),
        Need("FF", "PE", elements * (3 * SUM_BITS + r.pe_control_ff), "P N x (sum, psum, drain, control)", array[:2]),
        Need("FF", "quantization", units * 10 * SUM_BITS, "P x 320: a register behind each step", array[:1]),
        Need("FF", "softmax and layer norm", m * r.ff_per_lane, f"M lanes x {r.ff_per_lane}", array[2:]),
        Need("FF", "other", units * r.ff_per_unit, f"P x {r.ff_per_unit}", array[:1]),
    ]
