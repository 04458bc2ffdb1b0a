"""Does the array of FQ-BERT, product by product, give the integers that the executor gives, and count its beats?"""

from __future__ import annotations

import inspect
import json
import sys
import types
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelsim import numerics, ops, twin
from accelsim.errors import Infeasible, SpecError
from accelsim.execute import execute
from accelsim.graph import Graph, Op
from accelsim.literal import bim_trace
from accelsim.numerics import Requantizer
from accelsim.numerics.weights import WEIGHT_RANGES
from accelsim.quantspec import FQ_BERT, SPECS, Format, with_weight_bits
from accelsim.transforms.quantize import output_classes
from accelsim.twin import PuArray
from tests.quantized import Recipe, arrays, batch_of, bert, calibrated
from tests.test_cli import answer, run

few = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def drawn(rng: Any, shape: Any, low: int, high: int, extreme: bool) -> np.ndarray:
    """Integers of a range; `extreme`: its ends alone."""
    found = rng.choice([low, high], shape) if extreme else rng.integers(low, high + 1, shape)
    return np.asarray(found)


@st.composite
def products(draw: st.DrawFn) -> dict[str, Any]:
    """A product of matrices and an array, with no size a multiple of another."""
    m, k, n = draw(st.integers(1, 5)), draw(st.integers(1, 40)), draw(st.integers(1, 30))
    w_bits, dtype = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from(["int8", "uint8"]))
    rng, extreme = np.random.default_rng(draw(st.integers(0, 2**16))), draw(st.booleans())
    array = (draw(st.integers(1, 4)), draw(st.integers(1, 5)), 2 * draw(st.integers(1, 9)))
    return {
        "a": drawn(rng, (m, k), *RANGES[dtype], extreme).astype(dtype),
        "w": drawn(rng, (k, n), *WEIGHT_RANGES[w_bits], extreme).astype(np.int8),
        "w_bits": w_bits,
        "array": array,
    }


def ceil(x: int, y: int) -> int:
    return -(-x // y)


def check_product(module: Any, a: np.ndarray, w: np.ndarray, w_bits: int, array: tuple[int, int, int]) -> None:
    """Against int64 products and the closed forms of groups and beats."""
    (m, k), n, (units, pes, multipliers) = a.shape, w.shape[1], array
    found = module.matrix_product(a, w, module.PuArray(*array), w_bits=w_bits)
    assert np.array_equal(found.sums, a.astype(np.int64) @ w.astype(np.int64))
    at_once = multipliers // 2 if w_bits == 8 else multipliers
    assert found.beats == ceil(k, at_once)
    assert found.groups == m * ceil(n, units * pes)
    assert found.busy.shape == (ceil(n, units * pes), units, pes)
    assert found.busy.sum() == m * n * found.beats
    assert found.utilization == m * n / (found.groups * units * pes)
    columns = found.busy.reshape(-1)[:n]
    assert (columns == m * found.beats).all()
    parts = [a[:, i : i + at_once].astype(np.int64) @ w[i : i + at_once].astype(np.int64) for i in range(0, k, at_once)]
    assert found.largest_psum == np.abs(np.cumsum(parts, axis=0)).max()


@given(products())
@settings(few, max_examples=200)
def test_any_product_equals_that_of_int64(case: dict[str, Any]) -> None:
    check_product(twin, **case)


def check_trace(module: Any, a: np.ndarray, w: np.ndarray, w_bits: int, array: tuple[int, int, int]) -> None:
    """Every element's beats, trees and psums against the stepped module of FQ-BERT."""
    found = module.matrix_product(a, w, module.PuArray(*array), w_bits=w_bits)
    steps = list(module.beat_sums(a[None], w[None], array[2], w_bits))
    largest = 0
    for r in range(len(a)):
        for c in range(w.shape[1]):
            trace = bim_trace(a[r], w[:, c], array[2], w_bits)
            assert found.sums[r, c] == trace.value
            assert found.beats == trace.cycles == len(steps)
            assert [trees[:, 0, r, c].tolist() for trees, _ in steps] == trace.trees.tolist()
            assert [sums[0, r, c] for _, sums in steps] == trace.sums.tolist()
            largest = max(largest, int(np.abs(trace.accumulator).max()))
    assert found.largest_psum == largest


@given(products())
@settings(few, max_examples=40)
def test_every_beat_equals_the_stepped_module(case: dict[str, Any]) -> None:
    case["a"], case["w"] = case["a"][:2], case["w"][:, :3]
    check_trace(twin, **case)


def check_instances(module: Any, a: np.ndarray, b: np.ndarray, array: tuple[int, int, int]) -> None:
    (count, m, k), n, (units, pes, multipliers) = a.shape, b.shape[2], array
    found = module.instance_products(a, b, module.PuArray(*array))
    assert np.array_equal(found.sums, a.astype(np.int64) @ b.astype(np.int64))
    assert found.beats == ceil(k, multipliers // 2)
    assert found.groups == ceil(count, units) * m * ceil(n, pes)
    assert found.busy.sum() == count * m * n * found.beats
    per_unit = found.busy.sum(axis=(0, 2)) // (m * n * found.beats)
    assert per_unit.tolist() == [len(range(u, count, units)) for u in range(units)]


@given(st.integers(1, 7), products())
@settings(few, max_examples=60)
def test_any_attention_product_equals_that_of_int64(count: int, case: dict[str, Any]) -> None:
    a = np.stack([np.roll(case["a"], i) for i in range(count)])
    b = np.stack([np.roll(case["w"], 2 * i) for i in range(count)])
    check_instances(twin, a, b, case["array"])


def test_hand_case() -> None:
    """Three columns on two units of one element of two multipliers: two tiles, and a byte takes both multipliers."""
    a, w = np.array([[100, -3, 7]], np.int8), np.array([[-77, 1, 0], [5, 0, 1], [127, 0, -1]], np.int8)
    found = twin.matrix_product(a, w, PuArray(2, 1, 2), w_bits=8)
    assert found.sums.tolist() == [[-6826, 100, -10]]
    assert (found.beats, found.groups) == (3, 2)
    assert found.busy.tolist() == [[[3], [3]], [[3], [0]]]
    assert found.largest_psum == 7715  # -7700 - 15, before the third beat brings 889
    assert found.utilization == 0.75


def test_the_cost_model_counts_the_same_groups_and_beats() -> None:
    from accelsim.platforms import fpga, platform

    chip = platform("fqbert-zcu102")
    array = PuArray(chip.processing_units, chip.pes, chip.multipliers)  # type: ignore[attr-defined]
    for m, k, n, w_bits in ((3, 50, 200, 4), (2, 16, 96, 8), (1, 17, 97, 2)):
        found = twin.matrix_product(np.ones((m, k), np.int8), np.ones((k, n), np.int8), array, w_bits=w_bits)
        assert found.beats == ceil(k, fpga.lanes_of(chip, w_bits))
        assert found.groups == m * fpga.groups_of(chip, n, n, 1)
    for count in (12, 13):
        found = twin.instance_products(np.ones((count, 3, 20), np.int8), np.ones((count, 20, 9), np.int8), array)
        assert found.beats == ceil(20, fpga.lanes_of(chip, 8))
        assert found.groups == ceil(count, 12) * 3 * fpga.groups_of(chip, 9, 9, 12)


def check_overflow(module: Any) -> None:
    """255 x -128 fits 65,793 times into 32 bits; so does the last psum where one in between does not."""
    wide = module.PuArray(1, 1, 1024)
    k = 65_793
    a, w = np.full((1, k), 255, np.uint8), np.full((k, 1), -128, np.int8)
    assert module.matrix_product(a, w, wide, w_bits=8).sums.tolist() == [[-32640 * k]]
    more = np.full((1, k + 512), 255, np.uint8), np.full((k + 512, 1), -128, np.int8)
    with pytest.raises(Infeasible, match=r"layer 7: psum after beat 129: needs -21\d+ in an int32"):
        module.matrix_product(*more, wide, w_bits=8, name="layer 7")
    back = np.concatenate([w, np.full((512, 1), -128, np.int8), np.full((1024, 1), 127, np.int8)])
    assert int(255 * back.astype(np.int64).sum()) > -(2**31)
    with pytest.raises(Infeasible, match="psum after beat 129"):
        module.matrix_product(np.full((1, len(back)), 255, np.uint8), back, wide, w_bits=8)
    one = Requantizer.of(1.0, scale_format="fixed", rounding="floor", dtype="int8")
    with pytest.raises(Infeasible, match=r"layer 7: psum \+ bias: needs 2147483648 in an int32, has 2147483647"):
        module.quantized(np.array([[2**31 - 2]]), np.array([2]), one, "layer 7")


def test_a_psum_beyond_32_bits_is_refused() -> None:
    check_overflow(twin)


# --- quantization module ----------------------------------------------------------------------------------------------


def rounded(value: Fraction, rounding: str) -> int:
    floor = value.numerator // value.denominator
    rest = value - floor
    up = {
        "half_away": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and value > 0),
        "half_even": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1),
        "floor": False,
    }[rounding]
    return floor + up


def check_quantized(
    module: Any, sums: list[int], bias: list[int], scale: float, form: str, rounding: str, zero: int, bits: int
) -> None:
    """Against Python's fractions, and against the executor's own requantization."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    zero = min(max(zero, low), high)
    to_int8 = Requantizer.of(
        scale, scale_format=form, rounding=rounding, dtype="int8", zero_point=zero, low=low, high=high
    )
    factor = Fraction(int(to_int8.multiplier[0]), 1) / 2 ** int(to_int8.shift[0])
    exact = [rounded((s + b) * factor, rounding) + zero for s, b in zip(sums, bias, strict=True)]
    values, saturated = module.quantized(np.array([sums]), np.array(bias), to_int8, "layer 7")
    assert values.dtype == np.int8
    assert values.tolist() == [[min(max(e, low), high) for e in exact]]
    assert saturated == sum(not low <= e <= high for e in exact)
    executed = numerics.requantize(np.array([sums], np.int64).astype(np.int32) + np.array(bias, np.int32), to_int8)
    assert (values == executed.values).all()
    assert saturated == executed.saturated


numbers = st.one_of(st.integers(-600, 600), st.integers(-(2**30), 2**30 - 1), st.sampled_from([-(2**30), 2**30 - 1]))


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20),
    st.one_of(st.sampled_from([0.5, 0.25, 1.0, 2.0**-31, 2.0**29]), st.floats(1e-6, 4.0)),
    st.sampled_from(["fixed", "scale8", "power_of_two"]),
    st.sampled_from(["half_away", "half_even", "floor"]),
    st.integers(-128, 127),
    st.sampled_from([8, 8, 5, 4]),
)
@settings(few, max_examples=300)
def test_the_quantization_module(
    pairs: list[tuple[int, int]], scale: float, form: str, rounding: str, zero: int, bits: int
) -> None:
    sums, bias = [p[0] for p in pairs], [p[1] for p in pairs]
    check_quantized(twin, sums, bias, scale, form, rounding, zero, bits)


TIES = [-7, -6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6, 7, 1000, -1000]


def check_some_quantization(module: Any) -> None:
    for rounding in ("half_away", "half_even", "floor"):
        for scale in (0.5, 0.25, 0.3, 1.0):
            for zero, bits in ((0, 8), (-5, 8), (3, 4)):
                check_quantized(module, TIES, TIES[::-1], scale, "fixed", rounding, zero, bits)
                check_quantized(module, TIES, [0] * len(TIES), scale, "scale8", rounding, zero, bits)


def test_a_scale_for_each_column() -> None:
    to_int8 = Requantizer.of([0.5, 0.25], scale_format="fixed", rounding="half_away", dtype="int8")
    values, saturated = twin.quantized(np.array([[3, 6], [-3, -1000]]), np.zeros(2, np.int64), to_int8, "layer 7")
    assert (values.tolist(), saturated) == ([[2, 2], [-2, -128]], 1)


# --- whole layers -----------------------------------------------------------------------------------------------------

HEAD_STEPS, LAYER_STEPS = 2, 8
"""Steps of `tests.quantized.bert` before the first layer, and in each."""


def in_layers(recipe: Recipe) -> Any:
    """The recipe's graphs with the number of its encoder layer on every op."""

    @cache
    def at(batch: int, seq: int) -> Graph:
        graph = recipe(batch, seq)
        return replace(graph, ops=tuple(replace(op, layer=layer_of(op)) for op in graph.ops))

    return at


def layer_of(op: Op) -> int:
    place = op.group.split(".")[0]
    return (int(place) - HEAD_STEPS) // LAYER_STEPS if place.isdigit() and int(place) >= HEAD_STEPS else -1


def check_layers(graph: Graph, params: Any, inputs: Any, array: PuArray, layers: tuple[int, ...] | None) -> int:
    """Number of ops computed by the array; every op's integers and clamped elements are the executor's."""
    plain: dict[str, Any] = {}
    seen, on_array = [], []

    def compare(op: Op, values: np.ndarray, clamped: int) -> None:
        want, saturated = plain[op.name]
        assert values.dtype == want.dtype
        assert np.array_equal(values, want), op.name
        assert clamped == saturated, op.name
        seen.append(op.name)

    want = execute(graph, params, inputs, watch=lambda op, v, c: plain.__setitem__(op.name, (v, c)))
    found = execute(
        graph, params, inputs, watch=compare, array=array, layers=layers, watch_array=lambda op, _: on_array.append(op)
    )
    assert all(np.array_equal(found[name], want[name]) for name in want)
    assert seen == [op.name for op in graph.ops]
    wanted = [o for o in graph.ops if isinstance(o, ops.Linear | ops.Matmul) and o.layer >= 0]
    assert on_array == [o for o in wanted if layers is None or o.layer in layers]
    return len(on_array)


@cache
def small(name: str) -> tuple[Graph, Any, Any]:
    """(graph, params, inputs): two layers in a spec of SMALL; scores of 4 bits have steps so fine that some clamp."""
    given_ = batch_of(2, 7, 0)
    recipe = bert(2, 36, 3, 50)
    model = calibrated(in_layers(recipe), recipe.weights(0), SMALL[name], given_)
    graph, params = model.graph(2, 7), model.params()
    if params.spec.scores.bits < 8:
        scores = [tensor for tensor, kind in output_classes(graph).items() if kind == "scores"]
        finer = {tensor: params.steps[tensor]._replace(scale=params.steps[tensor].scale / 4) for tensor in scores}
        params = replace(params, steps={**params.steps, **finer})
    return graph, params, arrays(given_)


SMALL = {
    **{name: SPECS[name] for name in ("fq-bert", "w6a8", "w3a8", "w2a8")},
    "w8": with_weight_bits(FQ_BERT, 8),
    "i-bert": SPECS["i-bert"],
    "an affine GELU, scores of 4 bits, a scale for each column": replace(
        FQ_BERT,
        name="drawn",
        weights=Format(4, True, True, "abs_max"),
        activation_outputs=Format(8, False, False, "percentile"),
        scores=Format(4, True, False, "ema_abs_max"),
        rounding="half_even",
    ),
    "shifts, narrow ranges": replace(
        FQ_BERT,
        name="drawn",
        activations=Format(8, True, False, "percentile"),
        percentile=0.8,
        scale_format="power_of_two",
        rounding="floor",
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("layers", [(0,), (1,), None], ids=str)
def test_whole_layers(name: str, layers: tuple[int, ...] | None) -> None:
    pytest.importorskip("torch")
    count = check_layers(*small(name), PuArray(2, 4, 6), layers)
    assert count == (16 if layers is None else 8)


@pytest.mark.torch
@given(
    st.integers(1, 3), st.integers(4, 20), st.sampled_from([50, 1, 17]), st.sampled_from(sorted(SMALL)),
    st.tuples(st.integers(1, 3), st.integers(1, 9)), st.integers(0, 2**16),
    st.builds(PuArray, st.integers(1, 4), st.integers(1, 5), st.integers(1, 9).map(lambda half: 2 * half)),
)  # fmt: skip
@settings(few, max_examples=15)
def test_a_layer_of_any_bert(
    heads: int, size: int, ffn: int, name: str, shape: tuple[int, int], seed: int, array: PuArray
) -> None:
    pytest.importorskip("torch")
    recipe, given_ = bert(1, heads * size, heads, ffn), batch_of(*shape, seed)
    model = calibrated(in_layers(recipe), recipe.weights(seed), SMALL[name], given_)
    try:
        params, graph = model.params(), model.graph(*shape)
        execute(graph, params, arrays(given_))
    except (SpecError, Infeasible):
        return  # steps too far apart for the kernels: refused before the array is asked
    assert check_layers(graph, params, arrays(given_), array, (0,)) == 8


# --- wrong arrays -----------------------------------------------------------------------------------------------------

MUTANTS = {
    "high nibble unsigned": ("wide >> 4]", "wide >> 4 & 15]"),
    "low nibble signed": ("[wide & 15,", "[((wide & 15) ^ 8) - 8,"),
    "2- and 4-bit weights unsigned": ("    return [wide]\n", "    return [wide & 15]\n"),
    "shifted by 3": ("shift = 4 *", "shift = 3 *"),
    "always shifted": ("shift = 4 * (len(lanes_w) - 1)", "shift = 4"),
    "an odd leaf is lost": ("if len(leaves) % 2 else pairs", "if False else pairs"),
    "tree 1 takes what tree 0 has": ("(first + half, lanes_w[0])", "(first, lanes_w[0])"),
    "tree 1 is not added": ("trees[0] + (trees[1] << shift)", "trees[0] + 0 * trees[1]"),
    "the trees change places": ("for part in lanes_w]\n", "for part in lanes_w[::-1]]\n"),
    "the last beat is dropped": ("for beat in range(beats):", "for beat in range(max(1, beats - 1)):"),
    "the first beat is taken twice": ("first = beat * at_once", "first = max(0, beat - 1) * at_once"),
    "a beat takes M bytes": ("multipliers // 2 if w_bits == 8 else", "multipliers if w_bits == 8 else"),
    "a psum starts from the one before": ("        psum += sums\n", "        psum += sums + psum\n"),
    "psums are never checked": ("if low < INT32[0] or high > INT32[1]:", "if False:"),
    "only the last psum is checked": (
        'largest = max(largest, _checked(psum, f"{name}: psum after beat {beats}"))\n    return',
        'pass\n    largest = _checked(psum, f"{name}: psum after beat {beats}")\n    return',
    ),
    "a ragged tile is not taken": (
        "range(0, n, array.columns)",
        "range(0, n // array.columns * array.columns or 1, array.columns)",
    ),
    "a group is a tile": (
        "groups += m\n        largest = max(largest, most)\n        taken = np.arange",
        "groups += 1\n        largest = max(largest, most)\n        taken = np.arange",
    ),
    "idle elements are busy": ("np.arange(array.columns) < tile.shape[1]", "np.arange(array.columns) >= 0"),
    "an idle unit is busy": ("taken[: len(tile), :", "taken[:, :"),
    "one unit takes all heads": ("range(0, count, array.processing_units)", "range(0, count, 1)"),
    "attention by nibbles": ("tile, array.multipliers, 8, name)", "tile, array.multipliers, 4, name)"),
    "rounded down": ("if rounding is Rounding.FLOOR:", "if True:"),
    "ties towards zero": ("twice_rest >= unit if", "twice_rest > unit if"),
    "ties to odd": ("(whole & 1) > unit", "(1 - (whole & 1)) > unit"),
    "rounded by magnitude, sign lost": ("np.where(product < 0, -(whole + up), whole + up)", "whole + up"),
    "not saturated": ("clamped = np.clip(found, to_int8.low, to_int8.high)", "clamped = found"),
    "saturated at 8 bits always": ("np.clip(found, to_int8.low, to_int8.high)", "np.clip(found, -128, 127)"),
    "saturation is not counted": ("int((clamped != found).sum())", "0"),
    "the bias is forgotten": ("total: np.ndarray = sums + bias", "total: np.ndarray = sums + 0 * bias"),
    "the zero point is forgotten": (" + to_int8.zero_point\n", "\n"),
}  # fmt: skip
GRAPH_MUTANTS = {
    "no correction by column sums": ("bias = -step.zero_point * w", "bias = 0 * w"),
    "a correction of the wrong sign": ("bias = -step.zero_point * w", "bias = step.zero_point * w"),
    "biases are cut": ("np.rint(params.arrays", "np.trunc(params.arrays"),
    "keys are not transposed": ("right.swapaxes(-1, -2)", "right.reshape(*right.shape[:-2], right.shape[-1], -1)"),
    "scores have 8 bits": ('== "scores" else 8', '== "none" else 8'),
    "one scale for all columns": ("params, step.scale * packed.scales)", "params, step.scale * packed.scales[:1])"),
    "attention alone": ("isinstance(op, ops.Linear | ops.Matmul)", "isinstance(op, ops.Matmul)"),
    "every layer": ("if op.layer in wanted and", "if op.layer >= 0 and"),
}  # fmt: skip


def mutated(monkeypatch: Any, old: str, new: str) -> Any:
    """The module with one piece of its source replaced, in the place of the true one."""
    source = inspect.getsource(twin)
    assert source.count(old) == 1, f"{old!r} must be in twin.py once"
    module = types.ModuleType("accelsim.twin")
    monkeypatch.setitem(sys.modules, "accelsim.twin", module)
    exec(compile(source.replace(old, new), "twin_mutant", "exec"), module.__dict__)
    return module


def check_some(module: Any) -> None:
    rng = np.random.default_rng(0)
    for w_bits in (8, 4, 2):
        for dtype in ("int8", "uint8"):
            a = drawn(rng, (2, 23), *RANGES[dtype], False).astype(dtype)
            w = drawn(rng, (23, 7), *WEIGHT_RANGES[w_bits], False).astype(np.int8)
            check_product(module, a, w, w_bits, (2, 2, 6))
            check_trace(module, a[:, :14], w[:14, :2], w_bits, (1, 2, 4))
    a, b = (drawn(rng, shape, -128, 127, False).astype(np.int8) for shape in ((5, 2, 9), (5, 9, 3)))
    check_instances(module, a, b, (3, 2, 4))
    check_some_quantization(module)
    check_overflow(module)


def test_the_twin_itself_passes_what_the_mutants_must_fail() -> None:
    check_some(twin)


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_wrong_array_is_caught(name: str, monkeypatch: Any) -> None:
    module = mutated(monkeypatch, *MUTANTS[name])
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        check_some(module)


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(GRAPH_MUTANTS))
def test_a_wrong_reading_of_the_graph_is_caught(name: str, monkeypatch: Any) -> None:
    pytest.importorskip("torch")
    case = small("an affine GELU, scores of 4 bits, a scale for each column")
    mutated(monkeypatch, *GRAPH_MUTANTS[name])
    with pytest.raises(AssertionError):
        check_layers(*case, PuArray(2, 4, 6), (0,))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("12x8", "array: got '12x8', want PxNxM"),
        ("12x8x16x2", "array: got '12x8x16x2', want PxNxM"),
        ("12,8,16", "array: got '12,8,16', want PxNxM"),
        ("", "array: got '', want PxNxM"),
        ("12x8x-2", "array: got '12x8x-2', want PxNxM"),
        ("0x8x16", "array: processing_units: got 0, want an integer from 1 to 65535"),
        ("12x0x16", "array: pes: got 0, want an integer from 1 to 65535"),
        ("12x8x15", "array: multipliers: got 15, want an even integer from 2 to 1024"),
        ("12x8x0", "array: multipliers: got 0, want an even integer"),
        ("12x8x1026", "array: multipliers: got 1026, want an even integer"),
    ],
)
def test_arrays_that_there_are_not(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        PuArray.parse(text)
    assert message in str(caught.value)


A, W = np.ones((2, 3), np.int8), np.ones((3, 4), np.int8)


@pytest.mark.parametrize(
    ("a", "w", "w_bits", "message"),
    [
        (A.astype(np.int16), W, 8, "product: dtypes: got 'int16, int8', want int8 or uint8, and int8"),
        (A, W.astype(np.uint8), 8, "product: dtypes: got 'int8, uint8'"),
        (A, W.T, 8, "product: shapes: got ((2, 3), (4, 3)), want (m, k) and (k, n)"),
        (A[:, :0], W[:0], 8, "product: shapes"),
        (A[0], W, 8, "product: shapes"),
        (A, W, 3, "product: w_bits: got 3, want 2, 4 or 8"),
        (A, 8 * W, 4, "product: w: got 8, want integers from -8 to 7 for 4 bits"),
        (A, -3 * W, 2, "product: w: got -3, want integers from -2 to 1 for 2 bits"),
    ],
)
def test_operands_that_do_not_fit(a: Any, w: Any, w_bits: int, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        twin.matrix_product(a, w, PuArray(1, 1, 2), w_bits=w_bits)
    assert message in str(caught.value)


@pytest.mark.torch
def test_what_execute_refuses() -> None:
    pytest.importorskip("torch")
    (graph, params, inputs), array = small("fq-bert"), PuArray(2, 4, 6)
    for options, message in (
        ({"array": array, "layers": (2,)}, "array: layer: got 2, want an encoder layer, 0 to 1"),
        ({"array": array, "layers": (-1,)}, "array: layer: got -1, want an encoder layer, 0 to 1"),
        ({"layers": (0,)}, "execute: array: got None, want the array"),
    ):
        with pytest.raises(SpecError, match=message):
            execute(graph, params, inputs, **options)
    with pytest.raises(SpecError, match="execute: array: got 'a graph in floating point'"):
        execute(in_layers(bert(1, 8, 2, 5))(1, 3), {}, {}, array=array)
    whole = replace(graph, ops=tuple(replace(op, layer=-1) for op in graph.ops))
    with pytest.raises(SpecError, match="no encoder layer"):
        twin.array_kernels(whole, params, array)
    for spec, message in (
        (SPECS["w8a8"], "numbers: got 'int8, float32', want 8 bits into int8 or int32"),
        (replace(FQ_BERT, name="drawn", scale_format="float32"), "scale format: got 'float32', want fixed"),
        (replace(FQ_BERT, name="drawn", weights=Format(4, False, False, "abs_max")), "zero point of the weights"),
        (replace(FQ_BERT, name="drawn", activations=Format(8, False, False, "abs_max")), "zero point of 2.attention"),
    ):
        recipe, given_ = bert(1, 12, 3, 5), batch_of(2, 7, 0)
        other = calibrated(in_layers(recipe), recipe.weights(0), spec, given_)
        with pytest.raises(SpecError, match=message):
            twin.array_kernels(other.graph(2, 7), other.params(), array)


# --- the command ------------------------------------------------------------------------------------------------------

SENTENCE = "a quiet , beautifully acted film that earns its tears ."


@pytest.mark.weights
@pytest.mark.parametrize("array", ["12x8x16", "12x16x8", "5x7x6"])
def test_a_layer_of_the_checkpoint_that_ships(array: str) -> None:
    pytest.importorskip("tokenizers")
    from accelsim_experiments import model
    from accelsim_models import checkpoints, data, fetch

    params = checkpoints.load(model.DEFAULT)
    (ids,) = data.tokenizer(fetch.minilm_l6()).encode([SENTENCE])
    inputs = {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64)}
    assert check_layers(model.graph_at(1, len(ids), params), params, inputs, PuArray.parse(array), (0,)) == 8


@pytest.mark.weights
def test_execute_tells_class_logits_and_what_the_array_does(capsys: Any) -> None:
    pytest.importorskip("tokenizers")
    found = answer(capsys, "execute", "--text", SENTENCE, "--text", "dull and far too long", "--layer", 5)
    assert [text["class"] for text in found["texts"]] == ["positive", "negative"]
    assert (found["batch"], found["seq"], found["array"]) == (2, 14, "12x8x16")
    assert [row["op"].split(".")[-1] for row in found["products"]] == [
        *["linear"] * 3, "scores", "context", *["linear"] * 3
    ]  # fmt: skip
    for row in found["products"]:
        attention = row["instances"] > 1
        assert row["mismatches"] == 0
        assert row["w_bits"] == (8 if attention else 4)
        assert row["beats"] == ceil(row["k"], 8 if attention else 16)
        columns = ceil(row["n"], 8 if attention else 96)
        assert row["groups"] == row["m"] * columns * ceil(row["instances"], 12)
        assert 0 < row["largest_psum"] < 2**31
    code, out, _ = run(capsys, "execute", "--text", SENTENCE)
    assert code == 0
    assert out.splitlines()[1].startswith("positive")
    alone = answer(capsys, "execute", "--text", SENTENCE)
    assert alone["texts"][0]["logits"] == found["texts"][0]["logits"]  # what is padded changes no integer
    assert (alone["products"], alone["layer"], alone["array"]) == ([], None, None)
    code, out, _ = run(capsys, "execute", "--text", SENTENCE, "--layer", 0, "--array", "12x16x8")
    assert code == 0
    assert out.splitlines()[-1].endswith("every integer is the executor's")


@pytest.mark.weights
def test_execute_fails_where_the_array_differs(capsys: Any, monkeypatch: Any) -> None:
    pytest.importorskip("tokenizers")
    mutated(monkeypatch, *MUTANTS["shifted by 3"])
    code, out, _ = run(capsys, "execute", "--text", SENTENCE, "--layer", 0, "--json")
    assert code == 1
    wrong = [row["op"].split(".")[-1] for row in json.loads(out)["products"] if row["mismatches"]]
    assert wrong[0] == "scores"  # the first product by bytes
    code, out, _ = run(capsys, "execute", "--text", SENTENCE, "--layer", 0)
    assert code == 1
    assert "elements differ from the executor's" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--text: got None, want a text"),
        (["--text", "x", "--array", "12x8x16"], "--array: got '12x8x16', want a --layer"),
        (["--text", "x", "--layer", "0", "--array", "12x8"], "array: got '12x8', want PxNxM"),
        (["--text", "x", "--layer", "0", "--array", "12x8x15"], "array: multipliers: got 15, want an even integer"),
        (["none", "--text", "x"], "checkpoint: got 'none', want one of"),
    ],
)
def test_execute_refuses_with_one_line(args: list[str], message: str, capsys: Any) -> None:
    code, out, err = run(capsys, "execute", *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.weights
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--text", " "], "texts[0]: got ' ', want a text"),
        (["--text", "word " * 600], "texts[0]: got '602 tokens', want at most 512"),
        (["--text", "x", "--layer", "6"], "array: layer: got 6, want an encoder layer, 0 to 5"),
        (["--text", "x", "--layer", "-1"], "array: layer: got -1, want an encoder layer, 0 to 5"),
    ],
)
def test_execute_refuses_what_the_model_does_not_take(args: list[str], message: str, capsys: Any) -> None:
    pytest.importorskip("tokenizers")
    code, out, err = run(capsys, "execute", *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
