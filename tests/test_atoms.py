"""Is each atom right? The literal array decides, in values and in cycles; hand cases for the rest."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accelsim import formulas, literal
from accelsim.mapping import Mapping, mapping_row
from accelsim.platforms import platform
from accelsim.platforms.systolic import gemm_fits
from accelsim.work import gemm, work_array

BIG = {"input_buffer.capacity_bytes": 2**30, "weight_buffer.capacity_bytes": 2**30, "accumulator.capacity_bytes": 2**30}


def predicted(dataflow, timing, rows, cols, m, k, n, tiles):
    chip = platform("systolic-16x16", {"rows": rows, "cols": cols, "dataflow": dataflow, "fold_timing": timing, **BIG})
    cost = chip.costs(work_array([gemm(m, k, n)]), mapping_row(Mapping(*tiles)))[0]
    return int(cost["compute_cycles"])


def operands(m, k, n, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (k, n))


def stepped(a, b, rows, cols, dataflow, timing, tiles):
    """(a @ b, cycles) of the literal array, tiles (m, k, n) in loop order m, n, k, the folds of a tile row-major."""
    flow = formulas.Dataflow(dataflow)
    cuts = [literal.cuts(slice(0, size), tile) for size, tile in zip((*a.shape, b.shape[1]), tiles, strict=True)]
    blocks = [(m, k, n) for m in cuts[0] for n in cuts[2] for k in cuts[1]]
    folds = [fold for block in blocks for fold in literal.cut(a, b, rows, cols, flow, *block)]
    trace = literal.run(folds, len(a), b.shape[1], rows, cols, flow, formulas.FoldTiming(timing))
    return trace.product, trace.cycles


def quantum(dataflow, rows, cols):
    return {"os": (rows, 1, cols), "ws": (1, rows, cols), "is": (cols, rows, 1)}[dataflow]


@st.composite
def cases(draw):
    dataflow = draw(st.sampled_from(["os", "ws", "is"]))
    rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    m, k, n = (draw(st.integers(1, 9)) for _ in range(3))
    q = quantum(dataflow, rows, cols)
    tiles = tuple(min(d, draw(st.integers(1, 3)) * s) for d, s in zip((m, k, n), q, strict=True))
    if dataflow == "os":
        tiles = (tiles[0], k, tiles[2])
    return dataflow, draw(st.sampled_from(["serial", "pipelined"])), rows, cols, m, k, n, tiles


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 2**31))
@example(("os", "pipelined", 1, 3, 1, 1, 4, (1, 1, 3)), 0)  # a wide fold outlasts the narrow one behind it
def test_literal_array_decides_values_and_cycles(case, seed):
    dataflow, timing, rows, cols, m, k, n, tiles = case
    a, b = operands(m, k, n, seed)
    product, cycles = stepped(a, b, rows, cols, dataflow, timing, tiles)
    assert (product == a @ b).all()
    assert predicted(*case) == cycles


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_serial_closed_forms_of_the_literature(dataflow):
    m, k, n, r, c = 100, 70, 50, 32, 16
    ceil = lambda a, b: -(-a // b)  # noqa: E731
    want = {
        "os": ceil(m, r) * ceil(n, c) * (k + r + c - 2),
        "ws": ceil(k, r) * ceil(n, c) * (2 * r + c + m - 2),
        "is": ceil(k, r) * ceil(m, c) * (2 * r + c + n - 2),
    }
    assert predicted(dataflow, "serial", r, c, m, k, n, (m, k, n)) == want[dataflow]


def test_a_fold_is_blocked_one_cycle_earlier():
    rows, cols = 3, 2
    for dataflow in formulas.Dataflow:
        for streamed in (2, 3, 4, 7):
            m, k, n = {"OS": (6, streamed, 2), "WS": (streamed, 6, 2), "IS": (2, 6, streamed)}[dataflow.name]
            a, b = operands(m, k, n, 0)
            folds = literal.cut(a, b, rows, cols, dataflow, slice(0, m), slice(0, k), slice(0, n))
            assert len(folds) == 2
            interval = formulas.fold_cycles(int(dataflow), formulas.PIPELINED, rows, cols, streamed)
            lead = formulas.pipeline_lead_cycles(int(dataflow), formulas.PIPELINED, rows)
            loads = [0, interval] if dataflow is formulas.Dataflow.OS else [0, rows]
            literal.step(dataflow, folds, rows, cols, loads, [lead, lead + interval])
            loads = [0, interval - 1] if dataflow is formulas.Dataflow.OS else loads
            with pytest.raises(literal.Hazard):
                literal.step(dataflow, folds, rows, cols, loads, [lead, lead + interval - 1])


def mutants():
    """Wrong atoms, each of which the literal array must reject."""
    real = formulas.fold_cycles
    tail = formulas.pipeline_tail_cycles
    return {
        "serial fold one short": ("fold_cycles", lambda d, t, r, c, s: real(d, t, r, c, s) - (t == formulas.SERIAL)),
        "streamed length rounded up": ("fold_cycles", lambda d, t, r, c, s: real(d, t, r, c, -(-s // r) * r)),
        "loads not hidden": (
            "fold_cycles",
            lambda d, t, r, c, s: s + r if t == formulas.PIPELINED else real(d, t, r, c, s),
        ),
        "rows and columns exchanged": ("fold_cycles", lambda d, t, r, c, s: real(d, t, c, r, s)),
        "drain forgotten": ("pipeline_tail_cycles", lambda *args: 0),
        "drain one short": ("pipeline_tail_cycles", lambda *args: tail(*args) - (args[0] == formulas.PIPELINED)),
        "idle interval of the last fold kept": ("pipeline_tail_cycles", lambda t, r, c, s: (t == 1) * (r + c - 2)),
        "first load forgotten": ("pipeline_lead_cycles", lambda d, t, r: 0),
    }


@pytest.mark.parametrize("name", sorted(mutants()))
def test_literal_array_rejects_a_wrong_atom(name, monkeypatch):
    from accelsim.platforms import systolic

    atom, wrong = mutants()[name]
    examples = [(d, t, 4, 3, 10, 9, 8, (10, 9, 8)) for d in ("os", "ws", "is") for t in ("serial", "pipelined")] + [
        ("ws", "pipelined", 4, 3, 2, 9, 8, (2, 9, 8)),
        ("ws", "serial", 4, 3, 5, 4, 3, (5, 4, 3)),
    ]
    truth = {}
    for case in examples:
        dataflow, timing, rows, cols, m, k, n, tiles = case
        a, b = operands(m, k, n, 1)
        truth[case] = stepped(a, b, rows, cols, dataflow, timing, tiles)[1]
    assert all(plain(*case) == cycles for case, cycles in truth.items())
    for module in (systolic, formulas):
        if hasattr(module, atom):
            monkeypatch.setattr(module, atom, wrong)
    assert any(plain(*case) != cycles for case, cycles in truth.items())


def plain(dataflow, timing, rows, cols, m, k, n, tiles):
    """As `predicted`, but through plain Python, so that a replaced atom takes effect."""
    from accelsim.platforms.systolic import gemm_cost

    chip = platform("systolic-16x16", {"rows": rows, "cols": cols, "dataflow": dataflow, "fold_timing": timing, **BIG})
    return gemm_cost(chip, gemm(m, k, n), Mapping(*tiles)).compute_cycles


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.sampled_from([2, 4, 8, 16, 32])
)
def test_tiled_matrix_bytes_counts_every_tile(p, q, tile_p, tile_q, bits):
    slow = sum(
        math.ceil(min(tile_p, p - i) * min(tile_q, q - j) * bits / 8)
        for i in range(0, p, tile_p)
        for j in range(0, q, tile_q)
    )
    assert formulas.tiled_matrix_bytes(p, q, min(tile_p, p), min(tile_q, q), bits) == slow


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_operand_loads_equal_a_walk_with_one_tile_of_each_operand(n_outer, tm, tk, tn):
    """Walk the loops, reload an operand whenever the tile asked for is not the one held."""
    held_a = held_b = None
    loads_a = loads_b = 0
    for outer in range(tn if n_outer else tm):
        for inner in range(tm if n_outer else tn):
            i, j = (inner, outer) if n_outer else (outer, inner)
            for c in range(tk):
                if held_a != (i, c):
                    held_a, loads_a = (i, c), loads_a + 1
                if held_b != (c, j):
                    held_b, loads_b = (c, j), loads_b + 1
    a, b = formulas.operand_loads(n_outer, tm, tk, tn)
    assert (loads_a, loads_b) == (a * tm * tk, b * tk * tn)


def test_share_start_deals_everything():
    for total in (0, 1, 7, 100, 2**50 + 3):
        for parts in (1, 2, 3, 7):
            cuts = [formulas.share_start(total, parts, i) for i in range(parts + 1)]
            assert cuts[0] == 0
            assert cuts[-1] == total
            assert max(np.diff(cuts)) - min(np.diff(cuts)) <= 1


def test_fits_means_half_of_each_buffer():
    chip = platform(
        "systolic-16x16",
        {"input_buffer.capacity_bytes": 512, "weight_buffer.capacity_bytes": 512, "accumulator.capacity_bytes": 2048},
    )
    work = gemm(64, 64, 64)
    assert gemm_fits(chip, work, 16, 16, 16, 1)
    assert not gemm_fits(chip, work, 17, 16, 16, 1)
    assert not gemm_fits(chip, work, 16, 16, 17, 1)


def test_mac_energy_hand_case():
    assert formulas.mac_pj(0.2, 0.1, 8, 8, 8, 8) == pytest.approx(0.3)
    assert formulas.mac_pj(0.2, 0.1, 8, 8, 8, 4) == pytest.approx(0.2)
