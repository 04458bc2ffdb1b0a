"""Does the literal array do what its PEs are said to do? Hand cases, closed forms, Python integers, mutants."""

from __future__ import annotations

import ast
import inspect
import math
import sys
import types

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accelsim import SpecError, bim_trace, literal, systolic_trace
from accelsim.formulas import Dataflow, FoldTiming
from tests.test_atoms import predicted

_ = None
A, B = [[1, 2], [3, 4]], [[5, 6], [7, 8]]

HAND = {
    # a from the left, b from the top, a cycle later in each row and column; the sum stays
    "os": {
        "a": [[[1, _], [_, _]], [[2, 1], [3, _]], [[_, 2], [4, 3]], [[_, _], [_, 4]]],
        "b": [[[5, _], [_, _]], [[7, 6], [5, _]], [[_, 8], [7, 6]], [[_, _], [_, 8]]],
        "partial": [[[5, _], [_, _]], [[19, 6], [15, _]], [[19, 22], [43, 18]], [[19, 22], [43, 50]]],
        "loading": [[[_, _], [_, _]]] * 4,
        "waiting": [[[_, _], [_, _]]] * 4,
        "busy": [1, 3, 3, 1],
    },
    # b comes down in cycles 0 to 3, is taken over with the first a, and stays; a streams from cycle 2; sums move down
    "ws": {
        "loading": [
            [[_, _], [_, _]],
            [[7, _], [_, _]],
            [[_, 8], [_, _]],
            [[_, _], [_, _]],
            [[_, _], [_, _]],
            [[_, _], [_, _]],
        ],
        "waiting": [
            [[5, _], [_, _]],
            [[5, 6], [_, _]],
            [[_, 6], [7, _]],
            [[_, _], [_, 8]],
            [[_, _], [_, _]],
            [[_, _], [_, _]],
        ],
        "b": [
            [[_, _], [_, _]],
            [[_, _], [_, _]],
            [[5, _], [_, _]],
            [[5, 6], [7, _]],
            [[5, 6], [7, 8]],
            [[5, 6], [7, 8]],
        ],
        "a": [
            [[_, _], [_, _]],
            [[_, _], [_, _]],
            [[1, _], [_, _]],
            [[3, 1], [2, _]],
            [[_, 3], [4, 2]],
            [[_, _], [_, 4]],
        ],
        "partial": [
            [[_, _], [_, _]],
            [[_, _], [_, _]],
            [[5, _], [_, _]],
            [[15, 6], [19, _]],
            [[_, 18], [43, 22]],
            [[_, _], [_, 50]],
        ],
        "busy": [0, 0, 1, 3, 3, 1],
    },
    # the same with a held, transposed: array row = k, array column = row of a
    "is": {
        "loading": [
            [[_, _], [_, _]],
            [[2, _], [_, _]],
            [[_, 4], [_, _]],
            [[_, _], [_, _]],
            [[_, _], [_, _]],
            [[_, _], [_, _]],
        ],
        "waiting": [
            [[1, _], [_, _]],
            [[1, 3], [_, _]],
            [[_, 3], [2, _]],
            [[_, _], [_, 4]],
            [[_, _], [_, _]],
            [[_, _], [_, _]],
        ],
        "a": [
            [[_, _], [_, _]],
            [[_, _], [_, _]],
            [[1, _], [_, _]],
            [[1, 3], [2, _]],
            [[1, 3], [2, 4]],
            [[1, 3], [2, 4]],
        ],
        "b": [
            [[_, _], [_, _]],
            [[_, _], [_, _]],
            [[5, _], [_, _]],
            [[6, 5], [7, _]],
            [[_, 6], [8, 7]],
            [[_, _], [_, 8]],
        ],
        "partial": [
            [[_, _], [_, _]],
            [[_, _], [_, _]],
            [[5, _], [_, _]],
            [[6, 15], [19, _]],
            [[_, 18], [22, 43]],
            [[_, _], [_, 50]],
        ],
        "busy": [0, 0, 1, 3, 3, 1],
    },
}


@pytest.mark.parametrize("dataflow", sorted(HAND))
@pytest.mark.parametrize("timing", ["serial", "pipelined"])
def test_every_register_of_a_2x2_array(dataflow, timing):
    want = HAND[dataflow]
    trace = systolic_trace(A, B, 2, 2, dataflow, timing)
    assert trace.product.tolist() == [[19, 22], [43, 50]]
    assert trace.cycles == len(want["a"])
    for name in ("a", "b", "partial", "loading", "waiting"):
        assert getattr(trace, name).tolist() == want[name], name
    assert trace.busy.sum(axis=(1, 2)).tolist() == want["busy"]
    assert trace.utilization.tolist() == [n / 4 for n in want["busy"]]


def test_second_fold_waits_behind_the_first():
    """1x1 array, weight stationary, k = 2: the weight 7 comes while 5 is in use, and is taken over at once."""
    trace = systolic_trace([[1, 2], [3, 4]], [[5], [7]], 1, 1, "ws", "pipelined")
    assert trace.waiting.ravel().tolist() == [5, 7, 7, _, _]
    assert trace.b.ravel().tolist() == [_, 5, 5, 7, 7]
    assert trace.a.ravel().tolist() == [_, 1, 3, 2, 4]
    assert trace.partial.ravel().tolist() == [_, 5, 15, 14, 28]
    assert (trace.loads, trace.starts) == ((0, 1), (1, 3))
    assert [(fold.k.start, fold.k.stop) for fold in trace.folds] == [(0, 1), (1, 2)]
    assert trace.product.tolist() == [[19], [43]]


def test_padding_is_zero_and_not_busy():
    trace = systolic_trace([[1, 2]], [[5], [7]], 2, 2, "os")
    assert trace.a.tolist() == [[[1, _], [_, _]], [[2, 1], [0, _]], [[_, 2], [0, 0]], [[_, _], [_, 0]]]
    assert trace.b.tolist() == [[[5, _], [_, _]], [[7, 0], [5, _]], [[_, 0], [7, 0]], [[_, _], [_, 0]]]
    assert trace.busy.sum(axis=(1, 2)).tolist() == [1, 1, 0, 0]


def test_text():
    text = str(systolic_trace(A, B, 2, 2, "os"))
    assert text.splitlines()[6:] == [
        "cycle 2 of 4, 3 of 4 PEs busy",
        "  sum=19         | a=2 b=8 sum=22",
        "  a=4 b=7 sum=43 | a=3 b=6 sum=18",
        "cycle 3 of 4, 1 of 4 PEs busy",
        "  sum=19         | sum=22",
        "  sum=43         | a=4 b=8 sum=50",
    ]
    assert str(bim_trace([200, 7], [-8, 1], 4, 4)).splitlines() == [
        "cycle 0 of 1, 2 of 4 multipliers busy",
        "  tree 0: 200*-8=-1600 | 7*1=7        -> -1593",
        "  tree 1: .            | .            -> 0",
        "  -1593 + (0 << 0) = -1593, accumulator -1593",
    ]


# --- any shape --------------------------------------------------------------------------------------------------


def serial_closed_form(dataflow, rows, cols, m, k, n):
    """SCALE-Sim's convention, arXiv:1811.02883: every fold charged with the full array."""
    if dataflow == "os":
        return math.ceil(m / rows) * math.ceil(n / cols) * (k + rows + cols - 2)
    across, streamed = (n, m) if dataflow == "ws" else (m, n)
    return math.ceil(k / rows) * math.ceil(across / cols) * (2 * rows + cols + streamed - 2)


def check_systolic(module, dataflow, timing, rows, cols, m, k, n, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-(2**29), 2**29, size, dtype=np.int32) for size in ((m, k), (k, n)))
    trace = module.systolic_trace(a, b, rows, cols, dataflow, timing)
    assert trace.product.dtype == np.int64
    assert (trace.product == a.astype(np.int64) @ b.astype(np.int64)).all()
    assert trace.cycles == predicted(dataflow, timing, rows, cols, m, k, n, (m, k, n))
    if timing == "serial":
        assert trace.cycles == serial_closed_form(dataflow, rows, cols, m, k, n)
    for record in (trace.a, trace.b, trace.partial, trace.loading, trace.waiting, trace.busy):
        assert record.shape == (trace.cycles, rows, cols)
    assert trace.busy.sum() == m * k * n
    assert trace.utilization.mean() == pytest.approx(m * k * n / (trace.cycles * rows * cols))
    products = (trace.a.astype(object) * trace.b.astype(object))[trace.busy]
    assert not np.ma.getmaskarray(products).any()
    assert sum(products.tolist()) == sum(trace.product.ravel().tolist())


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["os", "ws", "is"]),
    st.sampled_from(["serial", "pipelined"]),
    *[st.integers(1, 4)] * 2,
    *[st.integers(1, 7)] * 3,
    st.integers(0, 2**31),
)
@example("os", "pipelined", 1, 3, 1, 1, 4, 0)  # a wide fold outlasts the narrow one behind it
@example("is", "pipelined", 4, 2, 5, 9, 1, 0)  # one streamed column: folds are held up by their loads
def test_product_and_cycles(dataflow, timing, rows, cols, m, k, n, seed):
    check_systolic(literal, dataflow, timing, rows, cols, m, k, n, seed)


@pytest.mark.parametrize("dataflow", list(Dataflow))
@pytest.mark.parametrize(("rows", "cols", "m", "k", "n"), [(3, 2, 2, 7, 5), (2, 3, 5, 4, 4), (1, 3, 1, 2, 7)])
def test_folds_start_as_early_as_can_be_every_cycle_tried(dataflow, rows, cols, m, k, n):
    """The schedule found by bisection between neighbours, against every earlier cycle behind all folds before."""
    a, b = np.ones((m, k), np.int64), np.ones((k, n), np.int64)
    folds = literal.cut(a, b, rows, cols, dataflow, slice(0, m), slice(0, k), slice(0, n))
    loads, starts = literal.schedule(dataflow, FoldTiming.PIPELINED, folds, rows, cols)
    streams = dataflow is Dataflow.OS
    for f in range(len(folds)):
        earlier_loads, earlier_starts = loads[:f], starts[:f]
        for at in range(starts[f - 1] if f else 0, starts[f]):
            load = at if streams else loads[f]
            with pytest.raises(literal.Hazard):
                literal.step(dataflow, folds[: f + 1], rows, cols, [*earlier_loads, load], [*earlier_starts, at])
        for at in () if streams else range(loads[f - 1] if f else 0, loads[f]):
            with pytest.raises(literal.Hazard):
                literal.step(dataflow, folds[: f + 1], rows, cols, [*earlier_loads, at], [*earlier_starts, at + 99])


def test_sums_at_the_edge_of_int64():
    low, high = -(2**31), 2**31 - 1
    assert systolic_trace([[low]], [[low]], 1, 1, "ws").product.tolist() == [[2**62]]
    assert systolic_trace([[high, high]], [[high], [high]], 1, 1, "ws").product.tolist() == [[2 * high**2]]
    with pytest.raises(SpecError, match=r"k max\|a\| max\|b\|: got 9223372036854775808"):
        systolic_trace([[low, low]], [[low], [low]], 1, 1, "ws")


def test_no_formula_is_shared_with_what_it_checks():
    tree = ast.parse(inspect.getsource(literal))
    taken = {(n.module, x.name) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for x in n.names}
    assert {pair for pair in taken if "accelsim" in pair[0]} == {
        ("accelsim.errors", "SpecError"),
        ("accelsim.formulas", "Dataflow"),
        ("accelsim.formulas", "FoldTiming"),
        ("accelsim.work", "Spelled"),
    }


# --- the bit-split inner product --------------------------------------------------------------------------------


def check_pairs(module, activations, w_bits):
    """Every activation with every weight, one product a cycle, against Python integers."""
    weights = range(-(2 ** (w_bits - 1)), 2 ** (w_bits - 1))
    pairs = [(x, w) for x in activations for w in weights]
    if w_bits < 8:  # two multipliers take two pairs a cycle: leave the second idle-handed
        pairs = [pair for p in pairs for pair in (p, (0, 0))]
    trace = module.bim_trace([x for x, _ in pairs], [w for _, w in pairs], 2, w_bits)
    want = [x * w for x in activations for w in weights]
    assert trace.sums.tolist() == want
    assert trace.accumulator.tolist()[-1] == trace.value == sum(want)


@pytest.mark.parametrize("w_bits", [2, 4, 8])
@pytest.mark.parametrize("activations", [range(-128, 128), range(256)], ids=["int8", "uint8"])
def test_bim_every_pair(activations, w_bits):
    check_pairs(literal, activations, w_bits)


def check_bim(module, x, w, multipliers, w_bits):
    trace = module.bim_trace(x, w, multipliers, w_bits)
    parts = 2 if w_bits == 8 else 1
    assert trace.value == sum(p * q for p, q in zip(x, w, strict=True))
    assert trace.cycles == math.ceil(len(x) / (multipliers // parts))
    assert trace.tree_levels == math.ceil(math.log2(multipliers / 2))
    assert trace.a.shape == trace.nibbles.shape == trace.products.shape == (trace.cycles, multipliers)
    half = multipliers // 2
    assert (trace.products == trace.a * trace.nibbles).all()
    assert (trace.trees[:, 0] == trace.products[:, :half].filled(0).sum(axis=1)).all()
    assert (trace.trees[:, 1] == trace.products[:, half:].filled(0).sum(axis=1)).all()
    assert trace.accumulator.tolist() == np.cumsum(trace.sums).tolist()
    assert round(trace.utilization.sum() * multipliers) == parts * len(x)
    assert trace.utilization[:-1].tolist() == [1] * (trace.cycles - 1)
    if w_bits == 8:
        low, high = trace.nibbles[:, :half].compressed(), trace.nibbles[:, half:].compressed()
        assert (low + 16 * high).tolist() == w
        assert low.min() >= 0
        assert high.min() >= -8
        assert high.max() <= 7
    else:
        assert trace.nibbles.compressed().tolist() == w
        assert trace.a.compressed().tolist() == x


@st.composite
def inner_products(draw):
    k, w_bits = draw(st.integers(1, 40)), draw(st.sampled_from([2, 4, 8]))
    low, high = draw(st.sampled_from([(-128, 127), (0, 255)]))
    x = draw(st.lists(st.integers(low, high), min_size=k, max_size=k))
    bound = 2 ** (w_bits - 1)
    w = draw(st.lists(st.integers(-bound, bound - 1), min_size=k, max_size=k))
    return x, w, 2 * draw(st.integers(1, 9)), w_bits


@settings(max_examples=100, deadline=None)
@given(inner_products())
def test_bim_any_length_and_width(case):
    check_bim(literal, *case)


def test_bim_hand_case():
    """8 bits: -77 = 3 - 5 * 16, 127 = 15 + 7 * 16. Four multipliers take two products a cycle; the third is alone."""
    trace = bim_trace([100, -3, 7], [-77, 5, 127], 4, 8)
    assert trace.a.tolist() == [[100, -3, 100, -3], [7, _, 7, _]]
    assert trace.nibbles.tolist() == [[3, 5, -5, 0], [15, _, 7, _]]
    assert trace.products.tolist() == [[300, -15, -500, 0], [105, _, 49, _]]
    assert trace.trees.tolist() == [[285, -500], [105, 49]]
    assert trace.shift == 4
    assert trace.sums.tolist() == [285 - 8000, 105 + 784]
    assert trace.accumulator.tolist() == [-7715, -6826]
    assert (trace.value, trace.cycles, trace.tree_levels) == (-6826, 2, 1)
    assert trace.utilization.tolist() == [1, 0.5]


# --- wrong models -----------------------------------------------------------------------------------------------

SYSTOLIC_MUTANTS = {
    "a column skipped": ("product(range(rows), range(cols))", "product(range(rows), range(max(1, cols - 1)))"),
    "a cycle too many": ("cycles = t + 1", "cycles = t + 2"),
    "a cycle too few": ("cycles = t + 1", "cycles = t"),
    "only the columns in use are waited for": (
        "cycles = t + 1",
        "cycles = t + 1 if c < folds[x.fold].top.shape[1] else cycles",
    ),
    "the sum from above is lost": ("result = before.value + x.value", "result = x.value"),
    "results need no bus": ("if own_sum and t != bus[c] + r:", "if False:"),
    "the skew between lanes is missing": ("lanes[lane][first + lane + place] =", "lanes[lane][first + place] ="),
    "weights arrive a row early": ("arrived.place == r:", "arrived.place == r + 1:"),
    "input stationary is not transposed": ("output.T if dataflow is Dataflow.IS", "output if dataflow is Dataflow.IS"),
    "the last fold is forgotten": (
        "for i in cuts(k, rows) for j in cuts(n, cols)]",
        "for i in cuts(k, rows) for j in cuts(n, cols)][:-1]",
    ),
    "pipelined folds wait as serial ones do": ("if timing is FoldTiming.SERIAL:", "if True:"),
    "serial folds overlap": ("now += end", "now += end - 1"),
}
BIM_MUTANTS = {
    "low nibble signed": ("(w & 15, False)", "(w & 15, True)"),
    "high nibble unsigned": ("(w >> 4 & 15, True)", "(w >> 4 & 15, False)"),
    "4-bit weight unsigned": ("else [(w & 15, True)]", "else [(w & 15, False)]"),
    "no shift": ("low + (high << shift)", "low + high"),
    "always a shift": ("4 * (parts - 1)", "4"),
    "a multiplier skipped": ("(products[-1][:half], ", "([*products[-1][: half - 1], 0], "),
    "a beat too many": ("cycles=len(beats)", "cycles=len(beats) + 1"),
    "the tail is dropped": ("range(0, len(x), at_once)", "range(0, len(x) // at_once * at_once or 1, at_once)"),
    "8-bit weights take one multiplier": ("multipliers // parts, 4", "multipliers, 4"),
    "levels of the tree counted twice": ("levels += 1", "levels += 2"),
    "an odd one out is not added": ("range(0, len(values), 2)", "range(0, len(values) - 1, 2)"),
}


def mutated(monkeypatch, old, new):
    """The module with one piece of its source replaced."""
    source = inspect.getsource(literal)
    assert source.count(old) == 1, f"{old!r} must be in literal.py once"
    module = types.ModuleType("literal_mutant")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(compile(source.replace(old, new), "literal_mutant", "exec"), module.__dict__)
    return module


def check_some_systolic(module):
    for dataflow in ("os", "ws", "is"):
        for timing in ("serial", "pipelined"):
            check_systolic(module, dataflow, timing, 3, 2, 4, 5, 3, 0)
            check_systolic(module, dataflow, timing, 3, 2, 2, 2, 6, 1)
    trace = module.systolic_trace(A, B, 2, 2, "ws")
    assert all(getattr(trace, name).tolist() == HAND["ws"][name] for name in ("a", "b", "partial", "waiting"))


def check_some_bim(module):
    for w_bits, top in ((8, 127), (4, 7), (2, 1)):
        check_pairs(module, (-128, -1, 1, 127), w_bits)
        check_bim(module, [3, 255, 9, 0, 17], [top, -top - 1, top, -1, 1], 4, w_bits)
        check_bim(module, [3] * 6, [top, -top - 1, top, -1, 1, 1], 6, w_bits)


def test_the_model_itself_passes_what_the_mutants_must_fail():
    check_some_systolic(literal)
    check_some_bim(literal)


@pytest.mark.parametrize("name", sorted(SYSTOLIC_MUTANTS))
def test_a_wrong_array_is_caught(name, monkeypatch):
    module = mutated(monkeypatch, *SYSTOLIC_MUTANTS[name])
    with pytest.raises((AssertionError, ValueError, module.Hazard)):
        check_some_systolic(module)


@pytest.mark.parametrize("name", sorted(BIM_MUTANTS))
def test_a_wrong_bim_is_caught(name, monkeypatch):
    module = mutated(monkeypatch, *BIM_MUTANTS[name])
    with pytest.raises(AssertionError):
        check_some_bim(module)


# --- bad input --------------------------------------------------------------------------------------------------

GOOD = {"a": A, "b": B, "rows": 2, "cols": 2, "dataflow": "os"}
GOOD_BIM = {"a": [1, 2], "w": [3, 4], "multipliers": 2, "w_bits": 8}
BAD = [
    ({"dataflow": "wss"}, "dataflow: got 'wss', want one of is, os, ws (nearest: ws)"),
    ({"dataflow": 1}, "dataflow: got 1, want one of is, os, ws"),
    ({"fold_timing": "pipelines"}, "fold_timing: got 'pipelines', want one of pipelined, serial (nearest: pipelined)"),
    ({"a": [[1.0, 2.0]]}, "a.dtype: got 'float64', want integers"),
    ({"b": [[True], [False]]}, "b.dtype: got 'bool', want integers"),
    ({"a": [1, 2]}, "a.shape: got (2,), want 2 dimensions"),
    ({"a": [[1, 2], [3]]}, "a: got 'rows of different lengths'"),
    ({"a": np.zeros((2, 0), int)}, "a.shape: got (2, 0), want 2 dimensions, none of them 0"),
    ({"a": [[1, 2, 3]]}, "b.shape: got (2, 2), want (3, n): as many rows as a has columns"),
    ({"a": [[2**31, 0]]}, "a: got 2147483648, want integers from -2147483648 to 2147483647"),
    ({"b": [[0], [-(2**31) - 1]]}, "b: got -2147483649, want integers from"),
    ({"b": np.array([[0], [2**64 - 1]], np.uint64)}, "b: got 18446744073709551615, want integers from"),
    ({"b": [[0], [2**64]]}, "b.dtype: got 'object', want integers"),
    ({"rows": 0}, "rows: got 0, want an integer >= 1"),
    ({"cols": -3}, "cols: got -3, want an integer >= 1"),
    ({"cols": 2.0}, "cols: got 2.0, want an integer >= 1"),
    ({"rows": True}, "rows: got True, want an integer >= 1"),
    ({"rows": 10**9}, "want at most 262144: the sum over folds of (streamed + 2 (rows + cols)) rows cols"),
    ({"a": np.ones((128, 128), int), "b": np.ones((128, 128), int)}, "m k n: got 2097152, want at most 262144"),
]
BAD_BIM = [
    ({"multipliers": 3}, "multipliers: got 3, want an even integer >= 2"),
    ({"multipliers": 0}, "multipliers: got 0, want an integer >= 1"),
    ({"w_bits": 3}, "w_bits: got 3, want 2, 4 or 8"),
    ({"w_bits": 4.0}, "w_bits: got 4.0, want 2, 4 or 8"),
    ({"w": [3]}, "w.shape: got (1,), want (2,): one weight for each activation"),
    ({"w": [3, 128]}, "w: got 128, want integers from -128 to 127"),
    ({"w": [3, -9], "w_bits": 4}, "w: got -9, want integers from -8 to 7"),
    ({"w": [2, 0], "w_bits": 2}, "w: got 2, want integers from -2 to 1"),
    ({"a": [256, 0]}, "a: got 256, want integers from -128 to 255"),
    ({"a": [-1, 128]}, "a: got [-1, 128], want all in -128 to 127, or all in 0 to 255"),
    ({"a": [1.5, 2]}, "a.dtype: got 'float64', want integers"),
    ({"a": [], "w": []}, "a.shape: got (0,), want 1 dimensions, none of them 0"),
    ({"a": [[1, 2]]}, "a.shape: got (1, 2), want 1 dimensions"),
    ({"multipliers": 2**19}, "cycles multipliers: got 524288, want at most 262144"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input_to_the_array(change, message):
    with pytest.raises(SpecError) as caught:
        systolic_trace(**{**GOOD, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(("change", "message"), BAD_BIM, ids=[m for _, m in BAD_BIM])
def test_bad_input_to_the_bim(change, message):
    with pytest.raises(SpecError) as caught:
        bim_trace(**{**GOOD_BIM, **change})
    assert message in str(caught.value)


def test_a_cycle_that_is_not_there():
    for trace in (systolic_trace(A, B, 2, 2, "os"), bim_trace([1, 2, 3, 4], [1, 1, 1, 1], 2, 8)):
        assert trace.show(3)
        for cycle in (-1, 4):
            with pytest.raises(SpecError, match="want 0 to 3"):
                trace.show(cycle)
