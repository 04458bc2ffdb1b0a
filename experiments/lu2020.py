"""The accelerator of attention and feed-forward blocks of Lu et al., SOCC 2020 (arXiv:2009.08605), a systolic preset.

Transformer-base has an encoder layer of the size of BERT-small's: hidden 512, 8 heads, 2048 inner activations. Nothing
is fitted. The printed cycles are recalled, so they are shown and not asserted.

    python -m accelsim_experiments.lu2020
"""

from __future__ import annotations

from typing import Any

import accelsim

RECALLED = {"attention": 21344, "feed-forward": 42099}
"""Cycles of one block at 64 tokens, residual addition and layer norm included; at 200 MHz 106.7 and 210.5 us."""
TIMINGS = ("pipelined", "serial")


def table() -> list[dict[str, Any]]:
    """A row per block and fold timing: cycles of one layer by the event model, the recalled ones, error in per cent.

    `exposed`: cycles of softmax, sums and layer norm in which the array stands still.
    """
    graph = accelsim.trace("bert-small", seq=64)
    rows = []
    for timing in TIMINGS:
        chip = accelsim.platform("lu2020-64x64", {"fold_timing": timing})
        ops = accelsim.simulate(graph, chip, detail="events").table
        ops = ops[(ops["layer"] == 1) & (ops["cycles"] > 0)]
        inner = ops["op"].str.contains("intermediate") | ops["op"].str.contains(r"layer\.1\.output\.")
        for block, part in (("attention", ops[~inner]), ("feed-forward", ops[inner])):
            cycles = int(part["cycles"].sum())
            waits = int(part[part["unit"] != "array"]["cycles"].sum())
            rows.append(
                {"block": block, "timing": timing, "cycles": cycles, "exposed": waits, "recalled": RECALLED[block],
                 "error": 100 * (cycles / RECALLED[block] - 1)}
            )  # fmt: skip
    return rows


def main() -> None:
    """Print the table."""
    for row in table():
        print(
            f"{row['block']:13} folds {row['timing']:9}  {row['cycles']:6} cycles, {row['exposed']:5} of them "
            f"beside the array   printed (recalled) {row['recalled']:6}   {row['error']:+.1f} %"
        )


if __name__ == "__main__":
    main()
