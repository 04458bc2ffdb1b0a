"""Are softmax, layer norm, GELU and the sums right, whatever the shape, the rounding and the number of threads?"""

from __future__ import annotations

import math
import shutil
from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim import SpecError
from accelsim.numerics import Quantized
from accelsim.numerics.accuracy import approximation_errors
from accelsim.numerics.approximation import EXP, exponential_polynomial, gelu_polynomial
from accelsim.numerics.elementwise import (
    EmbeddingSum,
    GeluPolynomial,
    GeluTable,
    ResidualAdd,
    add,
    embedding_sum,
    gelu,
    gelu_sums,
)
from accelsim.numerics.layernorm import LayerNormFixed, LayerNormIBert, layer_norm, norm_and_reciprocal
from accelsim.numerics.paths import target_features
from accelsim.numerics.rounding import FLOOR, HALF_AWAY, HALF_EVEN
from accelsim.numerics.rowcode import divide
from accelsim.numerics.softmax import SoftmaxPolynomial, SoftmaxTable, reciprocal, softmax
from tests.integers import LAYOUTS, ROOT, TWO_THREADS, in_a_process, laid_out, rounded
from tests.rows import (
    NEAREST_AND_FLOOR,
    clamped,
    exact_layer_norm,
    exact_softmax,
    exact_sum,
    gelu_real,
    mismatches,
    norm_parameters,
    polynomial_exponential,
    polynomial_gelu,
    sample_rows,
)

THREADS = (1, 2) if TWO_THREADS else (1,)
BYTES = np.arange(-128, 128).astype(np.int8)
COLS = st.sampled_from([1, 2, 3, 5, 31, 63, 64, 65, 97, 127, 128, 129, 191, 192, 300]) | st.integers(1, 300)
LEADS = st.sampled_from([(), (1,), (3,), (17,), (2, 3), (1, 4, 5), (40,), (2, 1, 7)])
MODES = st.sampled_from(NEAREST_AND_FLOOR)
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(-9, 1).map(lambda e: 2.0**e)
few = settings(max_examples=30, deadline=None)


def rows_of(rng, lead, cols, layout="plain"):
    """int8 (*lead, cols), laid out in memory as named."""
    x = sample_rows(rng, math.prod(lead), cols).reshape(*lead, cols)
    return laid_out(x, layout) if len(lead) >= 1 else x.reshape(cols)


def same_on_threads(call):
    """The result of call(threads), which must be the same for every number of threads."""
    results = [call(threads) for threads in THREADS]
    for result in results[1:]:
        np.testing.assert_equal(result, results[0])
    return results[0]


# --- softmax ----------------------------------------------------------------------------------------------------------


@st.composite
def softmaxes(draw):
    scale, levels, rounding = draw(SCALES), draw(st.sampled_from([255, 127, 1, 200])), draw(MODES)
    bits = draw(st.integers(8, 16))
    if draw(st.booleans()):
        return SoftmaxTable.of(scale, bits=bits, levels=levels, rounding=rounding)
    return SoftmaxPolynomial.of(scale, width=draw(st.integers(24, 32)), bits=bits, levels=levels, rounding=rounding)


@few
@given(softmaxes(), LEADS, COLS, st.sampled_from(LAYOUTS), SEEDS)
def test_softmax_of_any_shape(parameters, lead, cols, layout, seed):
    x = rows_of(np.random.default_rng(seed), lead, cols, layout)
    found = same_on_threads(lambda threads: softmax(x, parameters, threads=threads))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, exact_softmax(x, parameters))


@few
@given(softmaxes(), LEADS, COLS, st.data(), SEEDS)
def test_softmax_with_a_mask_of_any_shape_that_broadcasts(parameters, lead, cols, data, seed):
    rng = np.random.default_rng(seed)
    x = rows_of(rng, lead, cols)
    shape = tuple(data.draw(st.sampled_from([1, size])) for size in x.shape)[data.draw(st.integers(0, len(lead))) :]
    mask = rng.random(shape) < data.draw(st.sampled_from([0.0, 0.02, 0.5, 0.97]))
    found = same_on_threads(lambda threads: softmax(x, parameters, mask=mask, threads=threads))
    np.testing.assert_array_equal(found, exact_softmax(x, parameters, mask))
    assert not found[~np.broadcast_to(mask, x.shape)].any()


def test_softmax_of_nothing_is_nothing():
    table = SoftmaxTable.of(0.1, bits=8, levels=255, rounding="half_even")
    mask = np.array([[[False] * 70], [[True] + [False] * 69]])
    found = softmax(np.full((2, 3, 70), 127, np.int8), table, mask=mask)
    assert not found[0].any()
    assert (found[1, :, 0] == 255).all()
    assert not found[1, :, 1:].any()


@numba.njit
def _divided(rounding, low, high, totals, levels, wide, out):
    for i in range(totals.size):
        above, below, shift = reciprocal(totals[i], levels, wide)
        divide(rounding, low.ctypes.data, high.ctypes.data if wide else 0, low.size // 64, above, below, shift,
               out[i].ctypes.data)  # fmt: skip


def quotients(mode, numerators, totals, levels):
    """int64 (totals, numerators): levels numerator / total rounded, by integer arithmetic on twice the quotient."""
    twice, total = 2 * levels * numerators[None, :], totals[:, None]
    if mode == FLOOR:
        return twice // (2 * total)
    up = (twice + total) // (2 * total)
    tie = (twice + total) % (2 * total) == 0
    return up - (tie & (up % 2 == 1)) if mode == HALF_EVEN else up


@pytest.mark.parametrize("mode", [HALF_AWAY, HALF_EVEN, FLOOR])
def test_division_of_every_8_bit_numerator_by_every_sum(mode):
    """Up to sums so large that every quotient is below one half, and beyond."""
    numerators = np.arange(256)
    low = numerators.astype(np.uint8)
    for levels, step in ((255, 1), (127, 37), (1, 41)):
        sums = np.arange(128, 2**17 + 300, step)
        for part in np.array_split(sums, max(1, sums.size // 8192)):
            out = np.empty((part.size, 256), np.uint8)
            _divided(mode, low, low, part, levels, False, out)
            wanted = quotients(mode, numerators, part, levels)
            possible = numerators[None, :] <= part[:, None]
            assert (out == wanted)[possible].all()


@pytest.mark.parametrize("mode", [HALF_AWAY, HALF_EVEN, FLOOR])
def test_division_of_every_16_bit_numerator(mode):
    numerators = np.arange(2**16)
    rng = np.random.default_rng(0)
    near = [2**b + d for b in range(15, 26) for d in (-1, 0, 1, 2) if 2**b + d >= 2**15]
    sums = np.array(sorted({*near, *(2 ** rng.uniform(15, 25.5, 60)).astype(int).tolist(), 65535 * 2, 2**31 - 1}))
    ties = 0
    for levels in (255, 100):
        out = np.empty((sums.size, 2**16), np.uint8)
        _divided(mode, (numerators & 255).astype(np.uint8), (numerators >> 8).astype(np.uint8), sums, levels, True, out)
        possible = numerators[None, :] <= sums[:, None]
        assert (out == quotients(mode, numerators, sums, levels))[possible].all()
        ties += int(((2 * levels * numerators[None, :] + sums[:, None]) % (2 * sums[:, None]) == 0)[possible].sum())
    assert ties > 100


@pytest.mark.parametrize("width", [20, 26, 32])
@pytest.mark.parametrize("scale", [0.01, 0.05, 0.1, 0.7, 5.0])
def test_the_polynomial_for_exp_is_algorithm_3(scale, width):
    found, step = exponential_polynomial(scale, width)
    wanted = [polynomial_exponential(d, scale, width) for d in range(256)]
    assert found.tolist() == [q for q, _ in wanted]
    assert step == pytest.approx(wanted[0][1])
    assert found[0] < 2 ** (width - 1) <= 4 * found[0] + 4
    kept = SoftmaxPolynomial.of(scale, width=width, bits=12, levels=255, rounding="floor").exponentials
    assert kept.tolist() == [q >> (wanted[0][0].bit_length() - 12) for q, _ in wanted]


@pytest.mark.parametrize("bits", [8, 11, 16])
def test_the_table_for_exp_is_the_rounded_exponential(bits):
    for scale in (2.0**-9, 0.05, 0.3, 4.0, 1e30):
        found = SoftmaxTable.of(scale, bits=bits, levels=255, rounding="floor").exponentials
        assert found.tolist() == [round((2**bits - 1) * math.exp(-d * scale)) for d in range(256)]


def test_the_published_coefficients_of_exp_are_rounded():
    """The coefficients of the code have the error that the paper states; those it prints do not."""
    p = np.linspace(-math.log(2), 0, 200001)
    a, b, c = EXP
    assert np.abs(a * p * p + b * p + c - np.exp(p)).max() == pytest.approx(1.913e-3, abs=1e-6)
    assert np.abs(0.3585 * (p + 1.353) ** 2 + 0.344 - np.exp(p)).max() == pytest.approx(2.128e-3, abs=1e-6)


# --- layer norm -------------------------------------------------------------------------------------------------------


@st.composite
def norms(draw, n, residual):
    rng = np.random.default_rng(draw(SEEDS))
    kind, rounding = draw(st.sampled_from([LayerNormFixed, LayerNormIBert])), draw(MODES)
    other = draw(st.floats(0.002, 1.2)) if residual else None
    return norm_parameters(rng, n, kind, rounding, other, draw(st.floats(0.02, 0.5)))


@few
@given(LEADS, COLS, st.sampled_from(LAYOUTS), st.booleans(), st.data(), SEEDS)
def test_layer_norm_of_any_shape(lead, cols, layout, residual, data, seed):
    rng = np.random.default_rng(seed)
    parameters = data.draw(norms(cols, residual))
    x, y = rows_of(rng, lead, cols, layout), rows_of(rng, lead, cols)
    second = y if residual else None
    found = same_on_threads(lambda threads: layer_norm(x, parameters, residual=second, threads=threads))
    assert isinstance(found, Quantized)
    assert found.values.dtype == np.int8
    wanted, outside = exact_layer_norm(x, parameters, y if residual else 0)
    np.testing.assert_array_equal(found.values, wanted)
    assert found.saturated == outside


@pytest.mark.parametrize("kind", [LayerNormFixed, LayerNormIBert])
def test_layer_norm_is_within_a_step_of_the_real_one(kind):
    rng = np.random.default_rng(3)
    for n, out_scale in ((3, 0.02), (64, 0.03), (128, 0.03), (768, 0.03), (1024, 0.05), (4096, 0.1)):
        gamma, beta = rng.uniform(-1, 1.5, n), rng.normal(0, 0.5, n)
        gamma[: n // 50], beta[: n // 60] = 0, 0
        p = kind.of(gamma, beta, x_scale=0.1, residual_scale=0.07, out_scale=out_scale, eps=1e-12, rounding="half_away")
        if kind is LayerNormFixed:
            gamma, beta = (np.rint(v * 127 / np.abs(v).max()) * np.abs(v).max() / 127 for v in (gamma, beta))
        x, y = sample_rows(rng, 40, n), sample_rows(rng, 40, n)[::-1]
        real = x * 0.1 + y * 0.07
        deviation = real - real.mean(1, keepdims=True)
        variance = (deviation**2).mean(1, keepdims=True)
        wanted = (deviation / np.sqrt(variance + 1e-12) * gamma + beta) / out_scale
        off = np.abs(layer_norm(x, p, residual=y).values - np.clip(wanted, -128, 127))
        steps = variance[:, 0] > 0.1**2  # of rows that vary by less than a step, the step is what is left
        assert off[steps].max() < 1


def test_a_constant_row_gives_beta():
    beta = np.linspace(-2, 2, 70)
    p = LayerNormIBert.of(np.ones(70), beta, x_scale=0.1, out_scale=0.05, eps=1e-12, rounding="half_even")
    for value in (-128, 0, 127):
        found, _ = layer_norm(np.full((1, 70), value, np.int8), p)
        assert np.abs(found[0] - beta / 0.05).max() <= 0.5 + 1e-9


@numba.njit
def _roots(squares, out):
    for i in range(squares.size):
        out[i] = norm_and_reciprocal(squares[i])


def test_the_square_root_is_exact():
    """Every V below 2^16, the neighbours of many squares, and random numbers up to the bound of 2^46."""
    rng = np.random.default_rng(0)
    roots = [
        *range(1, 3000),
        *(2 ** rng.uniform(11, 23, 50000)).astype(int).tolist(),
        *(2**b - 1 for b in range(12, 24)),
    ]
    values = {*range(1, 2**16), *(2 ** rng.uniform(16, 46, 50000)).astype(int).tolist()}
    values |= {r * r + d for r in roots for d in (-1, 0, 1, 2 * r)}
    squares = np.array(sorted(v for v in values if 1 <= v < 2**46), np.int64)
    found = np.empty((squares.size, 3), np.int64)
    _roots(squares, found)
    for v, (e, root, quotient) in zip(squares.tolist(), found.tolist(), strict=True):
        assert e == 0 or v * 4**e < 2**30
        assert v * 4 ** (e + 1) >= 2**30
        assert root == math.isqrt(v * 4**e)
        assert quotient == 3 * 2**27 // root


def test_the_widest_row_stays_within_its_sums():
    """2^15 columns at the extremes, one of them off the rest, and half and half."""
    n = 2**15
    p = LayerNormIBert.of(np.ones(n), np.zeros(n), x_scale=0.1, out_scale=0.5, eps=1e-5, rounding="half_away")
    x = np.full((3, n), -128, np.int8)
    x[0, 0], x[1, : n // 2], x[2, 0] = 127, 127, -127
    found, saturated = layer_norm(x, p)
    wanted, outside = exact_layer_norm(x, p)
    np.testing.assert_array_equal(found, wanted)
    assert saturated == outside > 0


@pytest.mark.parametrize("kind", [LayerNormFixed, LayerNormIBert])
def test_layer_norm_parameters(kind):
    rng = np.random.default_rng(5)
    gamma, beta = rng.uniform(-1, 1, 300), rng.uniform(-3, 3, 300)
    p = kind.of(gamma, beta, x_scale=0.5, out_scale=0.04, eps=1e-3, rounding="half_even")
    if kind is LayerNormFixed:
        gamma, beta = (np.rint(v * 127 / np.abs(v).max()) * np.abs(v).max() / 127 for v in (gamma, beta))
    assert (p.gain % 2 == 1).all()
    assert np.abs(p.gain - gamma * math.sqrt(300) * 2**15 / (3 * 2**12 * 0.04)).max() <= 1 + 1e-9
    assert p.epsilon == round(300 * 1e-3 * (128 / 0.5) ** 2)
    # what bias and offset amount to, where the gain is not too small for the bias to reach
    off = p.bias.astype(int) * p.gain / 2**15 + p.offset - beta / 0.04
    assert (np.abs(off) <= np.abs(p.gain) / 2**16 + 1e-9)[np.abs(p.gain) > 4].all()
    assert np.abs(p.bias).max() < 2**12


# --- GELU -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", NEAREST_AND_FLOOR)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_gelu_of_every_input(rounding, dtype):
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    for scale, out_scale, zero, out_zero in (
        (0.05, 0.05, 0, 0),
        (0.03, 0.01, -7, 20),
        (0.5, 0.5, 100, 3),
        (0.01, 1, 0, 0),
    ):
        zeros = {"x_zero_point": zero, "out_zero_point": out_zero}
        table = GeluTable.of(x_scale=scale, out_scale=out_scale, rounding=rounding, dtype=dtype, **zeros)
        real = [gelu_real((x - zero) * scale) / out_scale for x in BYTES.tolist()]
        wanted = [rounded(Fraction(v), rounding) + out_zero for v in real]
        found, saturated = gelu(BYTES, table)
        assert found.dtype.name == dtype
        assert found.tolist() == [clamped(w, low, high) for w in wanted]
        assert saturated == sum(clamped(w, low, high) != w for w in wanted)
        assert table.table[BYTES.view(np.uint8)].tolist() == found.tolist()


@pytest.mark.parametrize(("width", "kept"), [(32, 16), (32, 24), (24, 12), (20, 24)])
def test_the_polynomial_for_gelu_is_algorithm_2(width, kept):
    for scale in (0.02, 0.05, 0.1, 1.5):
        sums, step = gelu_polynomial(scale, width, kept)
        wanted = [polynomial_gelu(x, scale, width, kept) for x in range(-128, 128)]
        assert sums.tolist() == [q for q, _ in wanted]
        assert step == pytest.approx(wanted[0][1])
        assert np.abs(sums).max() < 2 ** (kept + 7)
        for rounding in NEAREST_AND_FLOOR:
            p = GeluPolynomial.of(
                x_scale=scale,
                out_scale=scale,
                width=width,
                kept=kept,
                rounding=rounding,
                dtype="int8",
                out_zero_point=2,
            )
            np.testing.assert_array_equal(gelu_sums(BYTES.reshape(2, -1), p).ravel(), -sums)
            assert p.sum_scale == -step
            # the multiplier has 31 bits: the product is what it says to 2^-31 of itself
            exact = [Fraction(-int(q)) * Fraction(-step) / Fraction(scale) for q in sums]
            near = [abs((2 * v) % 2 - 1) < 1e-6 or abs(v % 1) < 1e-6 or v % 1 > 1 - 1e-6 for v in exact]
            found = gelu(BYTES, p).values.tolist()
            wanted = [clamped(rounded(v, rounding) + 2) for v in exact]
            assert all(f == w or n for f, w, n in zip(found, wanted, near, strict=True))


@few
@given(LEADS, COLS, st.sampled_from(LAYOUTS), SEEDS)
def test_gelu_of_any_shape(lead, cols, layout, seed):
    x = rows_of(np.random.default_rng(seed), lead, cols, layout)
    table = GeluTable.of(x_scale=0.05, out_scale=0.03, rounding="half_even", dtype="int8")
    values, saturated = same_on_threads(lambda threads: gelu(x, table, threads=threads))
    np.testing.assert_array_equal(values, table.table[x.view(np.uint8)] if x.flags.c_contiguous else
                                  table.table[np.ascontiguousarray(x).view(np.uint8)])  # fmt: skip
    assert saturated == int((x * 0.05 > 127.5 * 0.03).sum())


# --- sums -------------------------------------------------------------------------------------------------------------


@few
@given(LEADS, COLS, st.sampled_from(LAYOUTS), MODES, st.tuples(*[st.integers(-128, 127)] * 3), SCALES, SCALES, SEEDS)
def test_residual_add_of_any_shape(lead, cols, layout, rounding, zeros, x_scale, y_scale, seed):
    rng = np.random.default_rng(seed)
    x, y = rows_of(rng, lead, cols, layout), rows_of(rng, lead, cols)
    names = dict(zip(("x_zero_point", "y_zero_point", "out_zero_point"), zeros, strict=True))
    p = ResidualAdd.of(
        x_scale=x_scale, y_scale=y_scale, out_scale=max(x_scale, y_scale) / 1.5, rounding=rounding, **names
    )
    for multiplier, scale in zip(p.multipliers, (x_scale, y_scale), strict=True):
        assert abs(multiplier - scale / (max(x_scale, y_scale) / 1.5) * 2**p.shift) <= 0.5
    assert 2**14 <= max(p.multipliers) < 2**15
    values, saturated = same_on_threads(lambda threads: add(x, y, p, threads=threads))
    wanted, outside = exact_sum((x, y), p)
    np.testing.assert_array_equal(values, wanted)
    assert saturated == outside


@pytest.mark.parametrize("rounding", NEAREST_AND_FLOOR)
def test_every_pair_of_bytes_and_every_tie(rounding):
    x, y = (a.astype(np.int8) for a in np.meshgrid(BYTES, BYTES))
    p = ResidualAdd.of(x_scale=0.5, y_scale=0.25, out_scale=1, rounding=rounding)
    eighths = 2 * x.astype(np.int64) + y  # quarters
    wanted = {
        "floor": eighths // 4,
        "half_away": np.sign(eighths) * ((np.abs(eighths) + 2) // 4),
        "half_even": np.rint(eighths / 4).astype(np.int64),
    }[rounding]
    np.testing.assert_array_equal(add(x, y, p).values, np.clip(wanted, -128, 127))


@few
@given(st.integers(1, 4), LEADS, COLS, MODES, SEEDS)
def test_embedding_sum_of_any_shape(count, lead, cols, rounding, seed):
    rng = np.random.default_rng(seed)
    entries = [int(e) for e in rng.integers(1, 50, count)]
    tables = [rows_of(rng, (e,), cols) for e in entries]
    ids = [rng.integers(0, e, lead).astype(rng.choice(["int32", "int64"])) for e in entries]
    p = EmbeddingSum.of([float(s) for s in rng.uniform(0.02, 0.2, count)], out_scale=0.1, rounding=rounding)
    values, saturated = same_on_threads(lambda threads: embedding_sum(ids, tables, p, threads=threads))
    wanted, outside = exact_sum([t[i] for t, i in zip(tables, ids, strict=True)], p)
    np.testing.assert_array_equal(values, wanted)
    assert saturated == outside


def test_positions_broadcast_over_the_batch():
    rng = np.random.default_rng(0)
    words, positions = rows_of(rng, (100,), 64), rows_of(rng, (12,), 64)
    ids = rng.integers(0, 100, (5, 12))
    p = EmbeddingSum.of([0.1, 0.05], out_scale=0.1, rounding="half_even")
    found = embedding_sum([ids, np.arange(12)], [words, positions], p)
    wanted, _ = exact_sum((words[ids], np.broadcast_to(positions, (5, 12, 64))), p)
    np.testing.assert_array_equal(found.values, wanted)


# --- approximations ---------------------------------------------------------------------------------------------------


def test_errors_of_the_approximations():
    """Within what I-BERT printed, to the two digits it printed, and our own bounds."""
    rows = approximation_errors()
    bounded = [row for row in rows if row["bound"] is not None]
    assert {row["operator"] for row in bounded} == {"exp", "GELU", "layer norm", "square root"}
    for row in bounded:
        assert float(f"{row['error']:.2g}") <= float(f"{row['bound']:.2g}"), row
    published = {row["operator"]: row["bound"] for row in rows if row["bound_source"].startswith("I-BERT, arXiv")}
    assert published == {"exp": 1.9e-3, "GELU": 0.018, "square root": 0}


# --- arguments --------------------------------------------------------------------------------------------------------

TABLE = SoftmaxTable.of(0.1, bits=8, levels=255, rounding="half_away")
NORM = LayerNormIBert.of(np.ones(8), np.zeros(8), x_scale=0.1, out_scale=0.05, eps=1e-5, rounding="half_away")
PLUS = LayerNormIBert.of(
    np.ones(8), np.zeros(8), x_scale=0.1, residual_scale=0.1, out_scale=0.05, eps=1e-5, rounding="half_away"
)
GELU = GeluTable.of(x_scale=0.1, out_scale=0.1, rounding="half_away", dtype="int8")
ADD = ResidualAdd.of(x_scale=0.1, y_scale=0.1, out_scale=0.1, rounding="half_away")
EMBED = EmbeddingSum.of([0.1, 0.1], out_scale=0.1, rounding="half_away")
X = np.zeros((4, 8), np.int8)


def norm_of(**changes):
    given = {"x_scale": 0.1, "out_scale": 0.05, "eps": 1e-5, "rounding": "floor"}
    gamma, beta = changes.pop("gamma", np.ones(8)), changes.pop("beta", np.zeros(8))
    return LayerNormFixed.of(gamma, beta, **{**given, **changes})


def table_of(scale=0.1, **changes):
    return SoftmaxTable.of(scale, **{"bits": 8, "levels": 255, "rounding": "floor", **changes})


def polynomial_of(scale=0.1, **changes):
    return SoftmaxPolynomial.of(scale, **{"width": 32, "bits": 8, "levels": 255, "rounding": "floor", **changes})


def gelu_of(kind=GeluTable, **changes):
    return kind.of(**{"x_scale": 0.1, "out_scale": 0.1, "rounding": "floor", "dtype": "int8", **changes})


def add_of(**changes):
    return ResidualAdd.of(**{"x_scale": 0.1, "y_scale": 0.1, "out_scale": 0.1, "rounding": "floor", **changes})


REFUSED = {
    "scores of floats": (lambda: softmax(X.astype(np.float32), TABLE), "x: dtype"),
    "unsigned scores": (lambda: softmax(X.view(np.uint8), TABLE), "x: dtype"),
    "no columns": (lambda: softmax(X[:, :0], TABLE), "x: shape"),
    "no rows": (lambda: layer_norm(X[:0], NORM), "x: shape"),
    "a number": (lambda: softmax(np.int8(3), TABLE), "x: shape"),
    "a list of strings": (lambda: softmax(["a"], TABLE), "x: dtype"),
    "too many columns": (lambda: softmax(np.zeros((1, 2**15 + 1), np.int8), TABLE), "x: shape"),
    "a mask of integers": (lambda: softmax(X, TABLE, mask=np.ones((4, 8), np.int8)), "mask: dtype"),
    "a mask of other columns": (lambda: softmax(X, TABLE, mask=np.ones((4, 7), bool)), "mask: shape"),
    "a mask of more dimensions": (lambda: softmax(X, TABLE, mask=np.ones((1, 4, 8), bool)), "mask: shape"),
    "no threads": (lambda: softmax(X, TABLE, threads=0), "threads"),
    "threads that there are not": (lambda: layer_norm(X, NORM, threads=10**4), "threads"),
    "threads of a float": (lambda: gelu(X, GELU, threads=1.5), "threads"),
    "an out of another dtype": (lambda: softmax(X, TABLE, out=X), "out"),
    "an out of another shape": (lambda: add(X, X, ADD, out=X[:3]), "out"),
    "an out with gaps": (lambda: gelu(X, GELU, out=np.zeros((4, 16), np.int8)[:, ::2]), "out"),
    "an out that is the input": (lambda: layer_norm(X, NORM, out=X), "out"),
    "an out that is not to be written to": (lambda: add(X, X, ADD, out=np.broadcast_to(np.int8(0), (4, 8))), "out"),
    "an out that is a list": (lambda: gelu(X, GELU, out=[]), "out"),
    "a NaN": (lambda: table_of(math.nan), "scale"),
    "a negative scale": (lambda: table_of(-0.1), "scale"),
    "an infinite scale": (lambda: table_of(math.inf), "scale"),
    "a scale that is text": (lambda: table_of("0.1"), "scale"),
    "a scale that is true": (lambda: gelu_of(x_scale=True), "x_scale"),
    "a table of 7 bits": (lambda: table_of(bits=7), "bits"),
    "256 levels": (lambda: table_of(levels=256), "levels"),
    "stochastic softmax": (lambda: table_of(rounding="stochastic"), "rounding"),
    "a rounding that is none": (lambda: table_of(rounding="half_eve"), "rounding"),
    "a scale too small for exp": (lambda: polynomial_of(1e-6), "scale"),
    "a scale too large for exp": (lambda: polynomial_of(1e12), "scale"),
    "a scale too small for GELU": (lambda: gelu_of(GeluPolynomial, width=16, kept=8, x_scale=1e-3), "scale"),
    "a width that is none": (lambda: gelu_of(GeluPolynomial, width=33, kept=8), "width"),
    "a GELU of floats": (lambda: gelu_of(dtype="float32"), "dtype"),
    "a zero point out of range": (lambda: gelu_of(out_zero_point=128), "out_zero_point"),
    "rows of another length": (lambda: layer_norm(X[:, :7], NORM), "x: shape"),
    "a residual without a scale": (lambda: layer_norm(X, NORM, residual=X), "residual"),
    "a scale without a residual": (lambda: layer_norm(X, PLUS), "residual"),
    "a residual of another shape": (lambda: layer_norm(X, PLUS, residual=X[:3]), "residual: shape"),
    "a gamma that is infinite": (lambda: norm_of(gamma=np.full(8, np.inf)), "gamma"),
    "a gamma that is text": (lambda: norm_of(gamma=["one"] * 8), "gamma"),
    "an eps that is none": (lambda: norm_of(eps=None), "eps"),
    "a beta of another size": (lambda: norm_of(beta=np.zeros(7)), "beta: shape"),
    "too long a row": (lambda: norm_of(gamma=np.ones(2**15 + 1), beta=np.ones(2**15 + 1)), "gamma: shape"),
    "an out_scale too small": (lambda: norm_of(out_scale=1e-5), "out_scale"),
    "a beta too large": (lambda: norm_of(beta=np.full(8, 1e6)), "beta / out_scale"),
    "a negative eps": (lambda: norm_of(eps=-1e-5), "eps"),
    "an eps too large": (lambda: norm_of(eps=1e9), "eps"),
    "residuals too far apart": (lambda: norm_of(residual_scale=1e5), "residual_scale"),
    "sums of two shapes": (lambda: add(X, X[:1], ADD), "y: shape"),
    "a step too coarse": (lambda: add_of(out_scale=1e5), "x_scale / out_scale"),
    "a step too fine": (lambda: add_of(out_scale=1e-4), "x_scale / out_scale"),
    "steps too far apart": (lambda: add_of(x_scale=1e-7), "x_scale / out_scale"),
    "five tables": (lambda: EmbeddingSum.of([0.1] * 5, out_scale=0.1, rounding="floor"), "scales"),
    "a table short": (lambda: embedding_sum([np.zeros(3, int)], [X], EMBED), "ids and tables"),
    "ids of floats": (lambda: embedding_sum([np.zeros(3)] * 2, [X, X], EMBED), "ids[0]: dtype"),
    "tables of two widths": (lambda: embedding_sum([np.zeros(3, int)] * 2, [X, X[:, :7]], EMBED), "tables[1]: shape"),
    "ids that do not broadcast": (
        lambda: embedding_sum([np.zeros(3, int), np.zeros(2, int)], [X, X], EMBED),
        "ids: shapes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused(name):
    call, path = REFUSED[name]
    with pytest.raises(SpecError) as caught:
        call()
    assert caught.value.path == path


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_an_id_out_of_range_is_named_with_its_position(wrong):
    ids = np.zeros((2, 3), np.int64)
    ids[1, 2] = wrong
    with pytest.raises(SpecError) as caught:
        embedding_sum([np.zeros((2, 3), np.int64), ids], [X, X], EMBED)
    assert str(caught.value) == f"ids[1] at (1, 2): got {wrong}, want 0 to 3"


def test_results_go_where_they_are_told():
    out = np.empty((4, 8), np.int8)
    assert layer_norm(X, NORM, out=out).values is out
    assert gelu(X, GELU, out=out).values is out
    assert add(X, X, ADD, out=out).values is out
    into = np.empty((4, 8), np.uint8)
    assert softmax(X, TABLE, out=into) is into


@pytest.mark.torch
def test_torch_tensors_are_read_where_they_lie():
    torch = pytest.importorskip("torch")
    x = torch.randint(-128, 128, (8, 8), dtype=torch.int8)
    bytes_before = x.numpy().copy()
    for call in (
        lambda a: softmax(a, TABLE, mask=torch.ones(8, dtype=torch.bool) if isinstance(a, torch.Tensor) else None),
        lambda a: layer_norm(a, NORM),
        lambda a: gelu(a, GELU),
        lambda a: add(a, a, ADD),
    ):
        np.testing.assert_equal(call(x), call(x.numpy()))
        np.testing.assert_equal(call(x.t()), call(x.numpy().T))
    np.testing.assert_array_equal(x.numpy(), bytes_before)


# --- other processors, wrong kernels ----------------------------------------------------------------------------------

PROBE = """
import json
from tests.rows import float_instructions, mismatches
print(json.dumps({"wrong": mismatches(), "floats": float_instructions()}))
"""


def test_the_kernels_themselves_pass():
    assert set(mismatches().values()) == {0}


@pytest.mark.parametrize("features", [(), ("avx", "avx2"), ("avx", "avx2", "avx512f", "avx512bw")])
def test_other_processors_give_the_same(features, tmp_path):
    """Without the instructions that this code asks for by name, or with some of them; and no real number anywhere."""
    if not target_features().issuperset(features):
        pytest.skip("the processor does not have them")
    on = ",".join(f"+{name}" for name in features)
    given = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": on, "NUMBA_OPT": "0", "NUMBA_CACHE_DIR": str(tmp_path)}
    found = in_a_process(PROBE, **given)
    assert set(found["wrong"].values()) == {0}
    assert set(found["floats"].values()) == {0}


CODE, SOFTMAX, NORMS, ELEMENTS = (f"numerics/{n}.py" for n in ("rowcode", "softmax", "layernorm", "elementwise"))
MUTANTS = {
    "small errors": (
        {
            (CODE, "found = b.and_(found, _attended(b, mask, index))"): "found = found",
            (CODE, "q = b.select(odd, quotient(numerator, factors[1]), q)"): "q = q",
            (CODE, "b.add(b.add(sums, b.sub(half, one)), b.and_(b.ashr(sums, shift), one))"): "b.add(sums, half)",
            (NORMS, "(2 * total + n + (n << 15))"): "(2 * total + (n << 15))",
            (ELEMENTS, "np.roll(np.array(kept).astype(dtype), 128)"): "np.roll(np.array(kept).astype(dtype), 127)",
            (ELEMENTS, "tables[i] + ids[i, r] * cols"): "tables[i] + ids[0, r] * cols",
        },
        {
            "softmax masked maximum",
            "softmax masked sum",
            "softmax half_even",
            "add half_even",
            "layer norm",
            "layer norm floor",
            "layer norm residual",
            "gelu",
            "embedding",
        },
    ),
    "others": (
        {
            (CODE, "values = _masked(b, _attended(b, mask, index), values, _all(ROW, TOP_BIT))"): "pass",
            (CODE, "b.add(b.add(sums, half), b.ashr(sums, _all(W32, 31)))"): "b.add(sums, half)",
            (CODE, 'b.icmp_unsigned(">", w, _all(WORDS, 255))'): 'b.icmp_signed(">", w, _all(WORDS, 255))',
            (SOFTMAX, "return quotient + 1, quotient"): "return quotient, quotient",
            (NORMS, "padded[1, : self.cols] = self.bias"): "padded[1, : self.cols] = -self.bias",
        },
        {
            "softmax half_away",
            "softmax half_even",
            "softmax floor",
            "softmax masked maximum",
            "add half_away",
            "layer norm",
            "layer norm floor",
            "layer norm residual",
        },
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_kernels_are_caught(name, tmp_path):
    """By the checks that meet the errors and no others."""
    errors, trips = MUTANTS[name]
    shutil.copytree(ROOT / "accelsim", tmp_path / "accelsim", ignore=shutil.ignore_patterns("__pycache__"))
    for (file, old), new in errors.items():
        path = tmp_path / "accelsim" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} must be in {file} once"
        path.write_text(text.replace(old, new))
    found = in_a_process(PROBE, package=tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"), NUMBA_OPT="0")["wrong"]
    counts = {check for check in found if check.endswith("clamped")}
    assert {check for check, wrong in found.items() if wrong} - counts == trips
