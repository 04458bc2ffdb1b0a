"""Do sums become exactly the 8-bit numbers that the named rounding, scale format and range say?"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim import SpecError, numerics
from accelsim.numerics import PackedWeights, Requantizer, Rounding, ScaleFormat, gemm, gemm_requantized, requantize
from accelsim.numerics import rounding as atoms
from tests.integers import (
    INT32_MAX,
    INTEGER_FORMATS,
    LIMITS,
    PATHS,
    ROUNDINGS,
    TWO_THREADS,
    laid_out,
    near_ties,
    numbers,
    requantized,
    rounded,
    split_mix,
    ties,
    weights,
)

FORMATS = ("float32", *INTEGER_FORMATS)
EXTREMES = [-(2**31), -(2**31) + 1, -(2**24) - 1, -1, 0, 1, 2**24 + 1, INT32_MAX - 1, INT32_MAX]
RANGES = [
    {"dtype": "int8"},
    {"dtype": "int8", "zero_point": -5, "low": -100, "high": 90},
    {"dtype": "int8", "zero_point": 127},
    {"dtype": "int8", "zero_point": 7, "low": 7, "high": 7},
    {"dtype": "uint8", "zero_point": 128},
    {"dtype": "uint8", "zero_point": 0, "low": 0, "high": 15},
    {"dtype": "uint8", "zero_point": 255, "low": 3},
]


def made(scale, scale_format, rounding, **rest):
    seed = {"seed": 11} if rounding == "stochastic" else {}
    return Requantizer.of(scale, **{"dtype": "int8", **seed, **rest}, scale_format=scale_format, rounding=rounding)


def check(sums, requantizer, threads=1):
    got = requantize(sums, requantizer, threads=threads)
    values, clamped = requantized(sums, requantizer)
    assert got.values.dtype == values.dtype
    np.testing.assert_array_equal(got.values, values)
    assert got.saturated == clamped


# --- every rounding, scale format and range ---------------------------------------------------------------------------

POWERS = [0.5, 0.25, 1.0, 2.0, 2.0**-7, 2.0**-10, 2.0**-20, 2.0**-31, 2.0**-32]
OTHERS = [0.75, 1.5, 0.375, 3 * 2.0**-10, 5 * 2.0**-12, 177 * 2.0**-18, 0.1, 1 / 3, 0.0123]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale_format", FORMATS)
def test_every_tie_and_its_neighbours(scale_format, rounding):
    """One column for each scale: all half-integers that a sum can become, both signs, and the extremes of int32."""
    r = made(POWERS + OTHERS, scale_format, rounding)
    columns = [near_ties(s) + EXTREMES for s in r.scale]
    rows = max(map(len, columns))
    sums = np.array([c + [0] * (rows - len(c)) for c in columns], np.int32).T
    check(sums, r)
    below, above = np.array([ties(set(c), s) for c, s in zip(columns, r.scale, strict=True)]).T
    halved = [POWERS.index(2.0**-e) for e in (1, 2, 7, 10, 20)]
    assert min(*below[halved], *above[halved]) == 140
    assert (below[POWERS.index(2.0**-31)], above[POWERS.index(2.0**-31)]) == (1, 1)
    assert (below[POWERS.index(2.0**-32)], above[POWERS.index(2.0**-32)]) == (1, 0)
    if scale_format != "power_of_two":
        assert min(*below[len(POWERS) :][:4], *above[len(POWERS) :][:4]) >= 40


@pytest.mark.parametrize("shallowest", [0, 32])
@pytest.mark.parametrize("scale_format", INTEGER_FORMATS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_shift(scale_format, rounding, shallowest):
    """Shifts 0 to 62, one for each column; then 32 to 62 alone, which have code of their own."""
    shifts = np.arange(shallowest, 63)
    scales = np.exp2(30.0 - shifts)
    if scale_format != "power_of_two":
        scales[shifts > 0] *= 1.3515625  # shift 0 is for 2^30 alone
    r = made(scales, scale_format, rounding)
    assert r.shift.tolist() == shifts.tolist()
    rng = np.random.default_rng(0)
    columns = [
        [
            *near_ties(s, 9),
            *EXTREMES,
            *rng.integers(-(2**31), 2**31, 9),
            *(rng.integers(-128, 128, 9) / s).clip(*EXTREMES[::8]),
        ]
        for s in r.scale
    ]
    rows = max(map(len, columns))
    check(np.array([[*c, *[1] * (rows - len(c))] for c in columns]).T.astype(np.int32), r)


@pytest.mark.parametrize("kept", RANGES, ids=[" ".join(f"{k}={v}" for k, v in kept.items()) for kept in RANGES])
@pytest.mark.parametrize("scale_format", FORMATS)
def test_every_range_and_zero_point(scale_format, kept):
    """And a table, which sees what was clamped; the count is of clamped elements."""
    rng = np.random.default_rng(1)
    sums = np.concatenate([rng.integers(-400, 400, (40, 19)), rng.integers(-(2**31), 2**31, (3, 19))]).astype(np.int32)
    for rounding in ROUNDINGS:
        check(sums, made(0.75, scale_format, rounding, **kept))
    for dtype in LIMITS:
        table = rng.integers(0, 256, 256, dtype=np.uint8).view(dtype)
        r = made(0.75, scale_format, "half_even", table=table, **kept)
        assert r.result_dtype == dtype
        check(sums, r)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.sampled_from(ROUNDINGS),
    st.sampled_from(RANGES),
    st.lists(st.floats(2.0**-32, 2.0**30), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(0, 2**32),
    st.integers(0, 2**62),
)
def test_any_scales(scale_format, rounding, kept, scales, rows, sum_seed, seed):
    r = made(scales, scale_format, rounding, **kept, **({"seed": seed} if rounding == "stochastic" else {}))
    rng = np.random.default_rng(sum_seed)
    sums = rng.integers(-(2**31), 2**31, (rows, len(scales)))
    close = rng.integers(-300, 300, sums.shape) / np.array(scales)  # sums whose results are in range
    sums = np.where(rng.random(sums.shape) < 0.7, close.clip(-(2**31), INT32_MAX).astype(np.int64), sums)
    check(sums.astype(np.int32), r)


@pytest.mark.parametrize("scale", [2.0**-32, 0.25, 0.5, 1.0, 2.0**30])
@pytest.mark.parametrize("step", [-1, 0, 1])
def test_scales_at_the_edges(scale, step):
    """The scale itself and its float64 neighbours, with sums at the edges of int32."""
    scale = math.nextafter(scale, step * math.inf) if step else scale
    if not 2.0**-32 <= scale <= 2.0**30:
        with pytest.raises(SpecError, match="want finite numbers in"):
            made(scale, "fixed", "floor")
        return
    sums = np.array([[*near_ties(scale, 3), *EXTREMES]], np.int32).T
    for scale_format, rounding in itertools.product(FORMATS, ROUNDINGS):
        r = made(scale, scale_format, rounding)
        check(sums, r)
        assert 0 <= r.shift[0] <= 62
        assert 2**30 <= r.multiplier[0] < 2**31


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 15), (5, 16), (3, 17), (4, 31), (7, 33), (2, 3, 47), (2, 2, 2, 5), (6,), ()]
)
def test_any_shape_and_strides(shape):
    rng = np.random.default_rng(2)
    sums = rng.integers(-500, 500, shape, dtype=np.int32)
    r = made(0.75, "fixed", "half_away", zero_point=2)
    want, clamped = requantized(sums.reshape(*shape, *[1] * (not shape)), r)
    layouts = ("plain", "transposed", "backwards", "columns apart", "read-only") if len(shape) > 1 else ("plain",)
    for layout in layouts:
        got = requantize(laid_out(sums, layout) if len(shape) > 1 else sums, r)
        assert got.values.tolist() == want.reshape(shape).tolist()
        assert got.saturated == clamped


def test_torch_rounds_the_same_way():
    """float32 scales and half_even are torch's own arithmetic: round(sum x scale), a product of float32."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    for scale in (0.5, 0.1, 0.0123, 3 * 2.0**-10):
        reach = int(140 / scale)
        sums = np.concatenate([rng.integers(-reach, reach, 3000), np.array(near_ties(scale))]).astype(np.int32)[None]
        r = made(scale, "float32", "half_even", zero_point=3)
        x = torch.from_numpy(sums).float() * torch.tensor(scale, dtype=torch.float32)
        want = (torch.round(x) + 3).clamp(-128, 127).to(torch.int8)
        assert torch.equal(torch.from_numpy(requantize(sums, r).values), want)
        scale32 = float(np.float32(scale))
        quantized = torch.fake_quantize_per_tensor_affine(torch.from_numpy(sums).float(), 1 / scale32, 3, -128, 127)
        near = np.abs(x.numpy() % 1 - 0.5) > 1e-4  # torch multiplies by the reciprocal of a reciprocal there
        again = torch.round(quantized * scale32).numpy() + 3
        assert (again == requantize(sums, r).values)[near].all()


# --- stochastic rounding ----------------------------------------------------------------------------------------------


def test_noise_is_split_mix():
    """The first outputs of the published generator for the seeds 0 and 1234567."""
    with np.errstate(over="ignore"):
        assert hex(int(atoms.noise(0, 0))) == "0xe220a8397b1dcdaf"
        want = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
        assert [int(atoms.noise(1234567, i)) for i in range(4)] == want == [split_mix(1234567, i) for i in range(4)]
        assert int(atoms.noise(2**62, 2**40)) == split_mix(2**62, 2**40)


@pytest.mark.parametrize("scale_format", FORMATS)
def test_the_same_draw_whatever_the_seed_meets(scale_format):
    """A function of seed and element: the same on any path, in one go or after the sums, on one thread or two."""
    rng = np.random.default_rng(4)
    w, a = weights(rng, 53, 40, 8), numbers(rng, "int8", (2, 21, 40))
    sums = gemm(a, w)
    r = made(0.003, scale_format, "stochastic")
    check(sums, r)
    once = requantize(sums, r)
    for path in PATHS:
        fused = gemm_requantized(a, w, r, path=path)
        np.testing.assert_array_equal(fused.values, once.values)
        assert fused.saturated == once.saturated
    if TWO_THREADS:
        for again in (requantize(sums, r, threads=2), gemm_requantized(a, w, r, threads=2)):
            np.testing.assert_array_equal(again.values, once.values)
            assert again.saturated == once.saturated
    other = requantize(sums, made(0.003, scale_format, "stochastic", seed=12)).values
    assert 0.05 < (other != once.values).mean() < 0.9


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize("scale", [2.0**-3, 2.0**-10, 177 * 2.0**-18])
def test_the_mean_is_the_exact_quotient(scale_format, scale):
    """65,536 draws of each of 16 sums: the mean is off by at most 5 standard errors, sqrt(f (1 - f) / 65536)."""
    sums = np.unique(np.linspace(-90 / scale, 90 / scale, 16).astype(np.int32))
    r = made(scale, scale_format, "stochastic")
    values = requantize(np.tile(sums, (65536, 1)), r).values
    for value, column in zip(sums.tolist(), values.T.astype(np.float64), strict=True):
        x = value * Fraction(r.scale[0])
        fraction = float(x - math.floor(x))
        assert set(np.unique(column)) <= {math.floor(x), math.ceil(x)}
        assert abs(column.mean() - float(x)) <= 5 * math.sqrt(fraction * (1 - fraction) / 65536)


# --- the definitions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_atoms_say_what_fractions_say(rounding):
    """`rounded_shift` in plain Python for every shift, near ties, zero and the largest products."""
    code = int(Rounding(rounding))
    with np.errstate(over="ignore"):
        for shift in range(63):
            half = 2**shift // 2
            odd = [j * half + step for j in range(-7, 8) for step in (-1, 0, 1)]
            legal = [p for p in odd if abs(p) <= 2**62]
            for i, product in enumerate([*legal, 2**62, -(2**62), 2**62 - 1, 3**38, -(3**38)]):
                u = Fraction(split_mix(11, i) >> 64 - shift, 2**shift)
                got = atoms.rounded_shift(np.int64(product), np.int64(shift), code, 11, i)
                assert int(got) == rounded(Fraction(product, 2**shift), rounding, u), (product, shift)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_float_atom_says_what_fractions_say(rounding):
    code = int(Rounding(rounding))
    rng = np.random.default_rng(5)
    values = [*np.arange(-9, 9.5, 0.25), 0.49999997, -0.49999997, 8388607.5, -8388607.5, 2.0**24 + 2, -(2.0**61), 1e-30]
    with np.errstate(over="ignore"):
        for i, x in enumerate(np.array([*values, *rng.normal(0, 100, 200)], np.float32)):
            u = Fraction(split_mix(11, i) >> 40, 2**24)
            if rounding == "stochastic":  # up where the fraction is above the draw, not where they add up to one
                want = math.floor(x) + (Fraction(float(x - np.floor(x))) > u)
            else:
                want = rounded(Fraction(float(x)), rounding)
            assert int(atoms.rounded_float(x, code, 11, i)) == want, x


# --- in one go with the product ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale_format", FORMATS)
def test_fused_is_the_same_as_one_after_the_other(path, scale_format):
    rng = np.random.default_rng(6)
    for m, n, bits in itertools.product((1, 3, 5, 33), (1, 15, 17, 49, 64, 70), (8, 4)):
        w, a = weights(rng, n, 20, bits, "each", biased=True), numbers(rng, "uint8", (m, 20))
        scales = rng.uniform(1e-5, 1e-3, n)
        table = rng.integers(0, 256, 256, dtype=np.uint8) if bits == 4 else None
        for rounding in ROUNDINGS:
            r = made(scales, scale_format, rounding, zero_point=-3, table=table)
            one_go, after = (
                gemm_requantized(a, w, r, a_zero_point=9, path=path),
                requantize(gemm(a, w, a_zero_point=9), r),
            )
            np.testing.assert_array_equal(one_go.values, after.values)
            assert one_go.values.dtype == after.values.dtype
            assert one_go.saturated == after.saturated


def test_a_table_of_all_bytes():
    """Each of the 256 values finds its own entry: int8 by its byte pattern."""
    sums = np.arange(-128, 128, dtype=np.int32)[:, None]
    table = np.random.default_rng(7).permutation(256).astype(np.uint8)
    for dtype, zero in (("int8", 0), ("uint8", 128)):
        r = made(1.0, "fixed", "floor", dtype=dtype, zero_point=zero, table=table)
        want = [table[(s + zero) % 256] for s in range(-128, 128)]
        assert requantize(sums, r).values.ravel().tolist() == want
        assert requantize(np.tile(sums, (1, 67)), r).values.tolist() == [[x] * 67 for x in want]
        one = PackedWeights.pack(np.ones((67, 1), np.int8), bits=8)
        assert gemm_requantized(sums.astype(np.int8), one, r).values.tolist() == [[x] * 67 for x in want]


# --- scales -----------------------------------------------------------------------------------------------------------

NEAREST = {"fixed": 2.0**-31, "scale8": 2.0**-8}


@settings(max_examples=300, deadline=None)
@given(st.floats(2.0**-32, 2.0**30))
def test_the_stored_scale_is_the_nearest(scale):
    """Within half a unit of a mantissa of 31 or 8 bits; a power of two within a factor sqrt(2)."""
    for scale_format, bound in NEAREST.items():
        r = made(scale, scale_format, "floor")
        multiplier, shift = int(r.multiplier[0]), int(r.shift[0])
        assert Fraction(r.scale[0]) == Fraction(multiplier, 2**shift)
        assert multiplier % 2 ** {"fixed": 0, "scale8": 23}[scale_format] == 0
        assert abs(r.scale[0] - scale) <= bound * scale
        unit = 2.0 ** (math.frexp(scale)[1] - {"fixed": 31, "scale8": 8}[scale_format])
        assert abs(Fraction(r.scale[0]) - Fraction(scale)) <= Fraction(unit) / 2
    r = made(scale, "power_of_two", "floor")
    assert math.frexp(r.scale[0])[0] == 0.5
    assert Fraction(r.scale[0]) == Fraction(int(r.multiplier[0]), 2 ** int(r.shift[0]))
    assert 0.5 * (1 - 1e-15) <= (r.scale[0] / scale) ** 2 <= 2 * (1 + 1e-15)
    assert made(scale, "float32", "floor").scale[0] == float(np.float32(scale))


def test_a_mantissa_that_rounds_up_to_the_next_power():
    for scale_format in INTEGER_FORMATS:
        r = made([1 - 2.0**-40, 2.0**30 - 2.0**-10, 2.0**-31 * (1 - 2.0**-40)], scale_format, "floor")
        assert r.scale.tolist() == [1.0, 2.0**30, 2.0**-31]
        assert r.multiplier.tolist() == [2**30] * 3
        assert r.shift.tolist() == [30, 0, 61]


def test_a_scale_for_each_column_is_its_own():
    sums = np.full((2, 3), 100, np.int32)
    r = made([0.5, 0.25, 0.1], "fixed", "half_even")
    assert requantize(sums, r).values.tolist() == [[50, 25, 10]] * 2
    assert requantize(sums[:, :1], made(0.1, "fixed", "half_even")).values.tolist() == [[10]] * 2


def test_dequantize():
    got = numerics.dequantize(np.array([[3, -4], [0, 5]], np.int32), [0.5, 0.25])
    assert got.dtype == np.float64
    assert got.tolist() == [[1.5, -1.0], [0.0, 1.25]]


# --- bad input --------------------------------------------------------------------------------------------------------

GOOD = {"scale": 0.5, "scale_format": "fixed", "rounding": "half_even", "dtype": "int8"}
BAD = [
    ({"scale": 0.0}, "scale: got 0.0, want finite numbers in [2^-32, 2^30]"),
    ({"scale": -0.5}, "scale: got -0.5, want finite numbers in [2^-32, 2^30]"),
    ({"scale": math.nan}, "scale: got nan, want finite numbers"),
    ({"scale": math.inf}, "scale: got inf, want finite numbers"),
    ({"scale": 2.0**31}, "scale: got 2147483648.0, want finite numbers"),
    ({"scale": 2.0**-33}, "scale: got 1.1641532182693481e-10, want finite numbers"),
    ({"scale": [0.5, math.nan, 0.1]}, "scale: got nan, want finite numbers"),
    ({"scale": 0.0, "scale_format": "float32"}, "scale: got 0.0, want finite numbers"),
    ({"scale": math.inf, "scale_format": "power_of_two"}, "scale: got inf, want finite numbers"),
    ({"scale": []}, "scale: shape: got (0,), want one number, or one for each column"),
    ({"scale": [[0.5]]}, "scale: shape: got (1, 1), want one number, or one for each column"),
    ({"scale": "half"}, "scale: got 'half', want one number, or one for each column"),
    ({"scale": None}, "scale: got nan, want finite numbers"),
    ({"scale": 0.5j}, "scale: got 0.5j, want one number, or one for each column"),
    ({"scale": [[0.5], [0.5, 0.5]]}, "scale: got [[0.5], [0.5, 0.5]], want one number, or one for each column"),
    ({"scale_format": "fix"}, "got 'fix', want one of fixed, float32, power_of_two, scale8 (nearest: fixed)"),
    ({"rounding": "half_evn"}, "want one of floor, half_away, half_even, stochastic (nearest: half_even)"),
    ({"rounding": 7}, "rounding: got 7, want one of floor, half_away, half_even, stochastic"),
    ({"rounding": None}, "rounding: got None, want one of floor, half_away, half_even, stochastic"),
    ({"dtype": "int9"}, "dtype: got 'int9', want one of int8, uint8 (nearest: int8)"),
    ({"dtype": "int32"}, "dtype: got 'int32', want one of int8, uint8"),
    ({"zero_point": 128}, "zero_point: got 128, want an integer from -128 to 127"),
    ({"dtype": "uint8", "zero_point": -1}, "zero_point: got -1, want an integer from 0 to 255"),
    ({"zero_point": 9, "high": 8}, "zero_point: got 9, want an integer from -128 to 8"),
    ({"zero_point": 0.0}, "zero_point: got 0.0, want an integer"),
    ({"low": -129}, "low: got -129, want an integer from -128 to 127"),
    ({"high": 128}, "high: got 128, want an integer from -128 to 127"),
    ({"low": 5, "high": 4, "zero_point": 5}, "high: got 4, want an integer from 5 to 127"),
    ({"rounding": "stochastic"}, "seed: got None, want an integer with stochastic rounding, none otherwise"),
    ({"seed": 3}, "seed: got 3, want an integer with stochastic rounding, none otherwise"),
    ({"rounding": "stochastic", "seed": -1}, "seed: got -1, want an integer from 0 to"),
    ({"rounding": "stochastic", "seed": 1.0}, "seed: got 1.0, want an integer from 0 to"),
    ({"table": np.zeros(255, np.uint8)}, "table: shape: got (255,), want (256,)"),
    ({"table": np.zeros(256, np.int32)}, "table: dtype: got 'int32', want one of int8, uint8"),
    ({"table": np.zeros((16, 16), np.uint8)}, "table: shape: got (16, 16), want 1 dimensions"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_requantizer(change, message):
    with pytest.raises(SpecError) as caught:
        Requantizer.of(**{**GOOD, **change})
    assert message in str(caught.value)


BAD_SUMS = [
    (np.zeros((2, 3)), "sums: dtype: got 'float64', want one of int32"),
    (np.zeros((2, 3), np.float32), "sums: dtype: got 'float32', want one of int32"),
    (np.zeros((2, 3), np.int64), "sums: dtype: got 'int64', want one of int32"),
    (np.zeros((2, 3), ">i4"), "sums: dtype: got '>i4', want one of int32"),
    (np.zeros((0, 3), np.int32), "sums: shape: got (0, 3), want every dimension >= 1"),
    (np.zeros((3, 2), np.int32), "scale: shape: got (3,), want 1 or 2 numbers, as there are 2 columns"),
    ("sums", "sums: dtype: got 'str"),
]


@pytest.mark.parametrize(("sums", "message"), BAD_SUMS, ids=[m for _, m in BAD_SUMS])
def test_bad_sums(sums, message):
    with pytest.raises(SpecError) as caught:
        requantize(sums, made([0.5, 0.25, 0.1], "fixed", "floor"))
    assert message in str(caught.value)


def test_names_may_be_members_of_the_enums():
    named = Requantizer.of(0.3, scale_format=ScaleFormat.SCALE8, rounding=Rounding.FLOOR, dtype="uint8")
    assert (named.scale_format, named.rounding) == (ScaleFormat.SCALE8, Rounding.FLOOR)
    assert {int(Rounding(name)) for name in ROUNDINGS} == set(range(4)) == {int(ScaleFormat(name)) for name in FORMATS}
