"""Our table of energies and areas against CACTI 7, run through the component library of CiMLoop and AccelForge.

    pip install hwcomponents-cacti        # Python 3.12 or later
    python -m accelsim_experiments.component_library --measure

`published/cacti.csv` holds what hwcomponents-cacti 1.0.40 answered, its CACTI compiled from the sources in the package.
Without --measure that file is compared with the table of `accelsim.technology`; nothing needs to be installed.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from accelsim.technology import nodes_nm, technology

COMMITTED = Path(__file__).parent / "published" / "cacti.csv"
KIB = (4, 16, 64, 256, 512, 1024, 4096)


def measured(node_nm: int, kib: int) -> dict[str, Any]:
    """Energies of a 128-bit access in pJ, area in mm2 and leakage in W of an SRAM, by the library."""
    from hwcomponents_cacti import SRAM  # type: ignore[import-not-found]

    found = SRAM(tech_node=node_nm * 1e-9, width=128, size=8 * 1024 * kib)
    return {
        "node_nm": node_nm,
        "kib": kib,
        "read_pj": found.read().energy * 1e12,
        "write_pj": found.write().energy * 1e12,
        "mm2": found.area * 1e6,
        "leakage_w": found.leak_power,
    }


def committed() -> list[dict[str, Any]]:
    """Rows as `measured` gives them, from the file."""
    with COMMITTED.open() as file:
        return [
            {k: int(v) if k in ("node_nm", "kib") else float(v) for k, v in row.items()} for row in csv.DictReader(file)
        ]


def main() -> None:
    """Print CACTI's numbers, ours and their ratio; with --measure, ask the library first and write the file."""
    if "--measure" in sys.argv:
        rows = [measured(node, kib) for node in nodes_nm() for kib in KIB]
        with COMMITTED.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    for row in committed():
        node, nbytes = technology(row["node_nm"]), 1024 * row["kib"]
        read, area = node.sram_read_pj(nbytes), node.sram_mm2(nbytes)
        print(
            f"{row['node_nm']:2} nm {row['kib']:5} KiB   128-bit read {row['read_pj']:7.2f} pJ, ours {read:7.2f}, "
            f"ratio {read / row['read_pj']:.2f}   area {row['mm2']:8.4f} mm2, ours {area:8.4f}, ratio "
            f"{area / row['mm2']:.2f}"
        )


if __name__ == "__main__":
    main()
