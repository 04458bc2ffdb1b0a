"""What the row operators must give, in Python integers and fractions that share no code with them.

`mismatches` counts where those of the imported package differ: nowhere, unless one of them is wrong.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from importlib import import_module

import numpy as np

from accelsim.numerics.elementwise import EmbeddingSum, GeluTable, ResidualAdd, add, embedding_sum, gelu
from accelsim.numerics.layernorm import LayerNormFixed, LayerNormIBert, layer_norm
from accelsim.numerics.softmax import SoftmaxPolynomial, SoftmaxTable, softmax
from tests.integers import rounded

NEAREST_AND_FLOOR = ("half_away", "half_even", "floor")


def clamped(x, low=-128, high=127):
    return min(max(x, low), high)


def each_row(x, function, *others):
    """(results, sum of counts) of function(row of x, rows of others, ...), the results in the shape of x."""
    rows = [np.broadcast_to(a, x.shape).reshape(-1, x.shape[-1]).tolist() for a in (x, *others)]
    results = [function(*row) for row in zip(*rows, strict=True)]
    return np.array([values for values, _ in results]).reshape(x.shape), sum(count for _, count in results)


# --- softmax ----------------------------------------------------------------------------------------------------------


def softmax_row(x, attended, p):
    kept = [v for v, a in zip(x, attended, strict=True) if a]
    if not kept:
        return [0] * len(x), 0
    table = p.exponentials.tolist()
    e = [table[max(kept) - v] if a else 0 for v, a in zip(x, attended, strict=True)]
    return [rounded(Fraction(p.levels * n, sum(e)), p.rounding.name.lower()) for n in e], 0


def exact_softmax(x, p, mask=True):
    return each_row(np.asarray(x), lambda v, a: softmax_row(v, a, p), np.asarray(mask))[0]


def polynomial_exponential(d, scale, width):
    """I-BERT's algorithm 3 for exp(-d scale), on an input shifted left as far as `width` bits allow."""
    a, b, c = 0.35815147, 0.96963238, 1.0
    shift = 0
    while c / a / (scale / 2 ** (shift + 1)) ** 2 < 2 ** (width - 1):
        shift += 1
    s = scale / 2**shift
    q = -(d << shift)
    ln2 = math.floor(math.log(2) / s)
    z = -q // ln2
    p = q + z * ln2
    return (p * (p + math.floor(b / a / s)) + math.floor(c / a / s**2)) >> z, a * s * s


# --- layer norm -------------------------------------------------------------------------------------------------------


def layer_norm_row(x, y, p):
    n = len(x)
    if p.residual_multiplier:
        h = [
            math.floor(Fraction(128 * v * p.x_multiplier, 2**15) + Fraction(1, 2))
            + math.floor(Fraction(128 * w * p.residual_multiplier, 2**15) + Fraction(1, 2))
            for v, w in zip(x, y, strict=True)
        ]
    else:
        h = [128 * v for v in x]
    mean = math.floor(Fraction(sum(h), n) + Fraction(1, 2))
    squares = sum((v - mean) ** 2 for v in h) + p.epsilon
    e = 0
    while squares * 4 ** (e + 1) < 2**30:
        e += 1
    reciprocal = 3 * 2**27 // math.isqrt(squares * 4**e)
    mode = p.rounding.name.lower()
    found = []
    for v, gain, bias, offset in zip(h, p.gain.tolist(), p.bias.tolist(), p.offset.tolist(), strict=True):
        u = math.floor(Fraction((v - mean) * 2**e * reciprocal, 2**15) + Fraction(1, 2))
        product = Fraction((u + bias) * gain, 2**15)
        assert abs(u) <= 3 * 2**12
        assert mode == "floor" or product.denominator != 2  # there are no ties
        found.append(rounded(product, mode) + offset)
    return [clamped(v) for v in found], sum(clamped(v) != v for v in found)


def exact_layer_norm(x, p, y=0):
    return each_row(np.asarray(x), lambda v, w: layer_norm_row(v, w, p), np.asarray(y))


# --- element by element -----------------------------------------------------------------------------------------------


def gelu_real(v):
    return v * (1 + math.erf(v / math.sqrt(2))) / 2


def polynomial_gelu(x, scale, width, kept):
    """I-BERT's algorithm 2 for GELU(x scale), on an input shifted left as far as `width` bits allow: (result, step)."""
    a, b, c = -0.2888, -1.769, 1.0
    shift = 0
    while 2 / -a / (scale / 2 ** (shift + 1)) ** 2 < 2 ** (width - 2):
        shift += 1
    s = scale / 2**shift * math.sqrt(0.5)
    q = x << shift
    r = min(abs(q), -math.floor(b / s))
    poly = (r + math.floor(b / s)) ** 2 + math.floor(c / a / s**2)
    erf = ((q > 0) - (q < 0)) * poly >> max(0, width - kept)
    step = a * s * s * 2 ** max(0, width - kept)
    return x * (erf + math.floor(1 / step)), scale * step / 2


def exact_sum(terms, p):
    """(values, how many were clamped) of arrays of one shape."""
    zeros, mode = p.zero_points, p.rounding.name.lower()
    sums = sum(m * (np.asarray(t).astype(object) - z) for m, t, z in zip(p.multipliers, terms, zeros, strict=True))
    wanted = [rounded(Fraction(int(s), 2**p.shift), mode) + p.out_zero_point for s in sums.ravel()]
    kept = [clamped(v) for v in wanted]
    return np.array(kept).reshape(sums.shape), sum(k != w for k, w in zip(kept, wanted, strict=True))


# --- other processors -------------------------------------------------------------------------------------------------


def float_instructions():
    """LLVM's instructions on real numbers in the kernels, by kernel; for kernels compiled here, not read from disk.

    The GEMM may multiply by float32 scales, so there only float64 counts: what an address becomes by mistake.
    """
    gemm = "".join(import_module("accelsim.numerics.loops").compiled_for("portable", False).inspect_llvm().values())
    found = {"gemm": len(re.findall(r"= (?:f\w+|[su]itofp)[^\n]* double", gemm))}
    for module, names in (
        ("softmax", ["_compiled"]),
        ("layernorm", ["_compiled"]),
        ("elementwise", ["_gelu_compiled", "_add_compiled", "_embedding_compiled"]),
    ):
        for name in names:
            kernel = getattr(import_module(f"accelsim.numerics.{module}"), name)(False)
            code = "".join(kernel.inspect_llvm().values())
            found[f"{module} {name}"] = len(re.findall(r"= (?:f(?:add|sub|mul|div|cmp|pto)|[su]itofp)", code))
    return found


# --- all at once ------------------------------------------------------------------------------------------------------


def sample_rows(rng, rows, cols):
    """Random rows of different width and mean, and rows that are extreme: constant, alternating, one element apart."""
    spread, mean = rng.uniform(0.5, 90, (rows, 1)), rng.uniform(-60, 60, (rows, 1))
    x = np.clip(np.rint(rng.normal(mean, spread, (rows, cols))), -128, 127).astype(np.int8)
    special = [np.full(cols, v) for v in (-128, 127, 0)]
    special += [np.where(np.arange(cols) % 2, -128, 127), np.where(np.arange(cols) == cols // 2, 127, -128)]
    special += [np.where(np.arange(cols) == 0, 1, 0)]
    for i, row in enumerate(special[: rows - 1]):
        x[i] = row
    return x


def norm_parameters(rng, n, kind=LayerNormIBert, rounding="half_away", residual_scale=None, out_scale=0.05):
    gamma, beta = rng.uniform(-1, 1.5, n), rng.normal(0, 0.5, n)
    scales = {"x_scale": 0.05, "residual_scale": residual_scale, "out_scale": out_scale}
    return kind.of(gamma, beta, **scales, eps=1e-5, rounding=rounding)


def mismatches():
    """Number of wrong elements by check: a small sample of what the tests ask for, on one thread."""
    rng = np.random.default_rng(0)
    found = {}
    x = sample_rows(rng, 21, 128)  # whole blocks: only the checks with a mask use one
    mask = rng.random((21, 128)) < 0.6
    equal = np.full((5, 128), -128, np.int8)  # k equal elements get 255 / k each: whole for 3 and 5, else halfway
    for row, k in zip(equal, (2, 3, 5, 6, 10), strict=True):
        row[:k] = 0
    for mode in NEAREST_AND_FLOOR:
        table = SoftmaxTable.of(0.1, bits=8, levels=255, rounding=mode)
        both = np.concatenate([x, equal])
        found[f"softmax {mode}"] = int((softmax(both, table) != exact_softmax(both, table)).sum())
    wide = SoftmaxPolynomial.of(0.05, width=32, bits=16, levels=255, rounding="half_away")
    found["softmax wide"] = int((softmax(x, wide) != exact_softmax(x, wide)).sum())
    # the largest is left out: it must not count for the maximum, nor what is left out for the sum
    without = mask & (x < x.max(1, keepdims=True))
    for name, kept in (("maximum", without), ("sum", mask | (x == x.max(1, keepdims=True)))):
        found[f"softmax masked {name}"] = int((softmax(x, wide, mask=kept) != exact_softmax(x, wide, kept)).sum())
    x = sample_rows(rng, 21, 100)
    y = sample_rows(rng, 21, 100)[::-1]
    for name, kind, residual, mode in (
        ("layer norm", LayerNormIBert, None, "half_away"),
        ("layer norm floor", LayerNormFixed, None, "floor"),
        ("layer norm residual", LayerNormFixed, 0.03, "half_even"),
    ):
        p = norm_parameters(rng, 100, kind, mode, residual, out_scale=0.02)
        got, count = layer_norm(x, p, residual=None if residual is None else y)
        want, outside = exact_layer_norm(x, p, 0 if residual is None else y)
        found[name] = int((got != want).sum())
        found[f"{name} clamped"] = abs(count - outside)
    table = GeluTable.of(x_scale=0.05, out_scale=0.04, rounding="half_away", dtype="int8")
    wanted = [rounded(Fraction(gelu_real(v * 0.05) / 0.04), "half_away") for v in x.ravel().tolist()]
    got, count = gelu(x, table)
    found["gelu"] = sum(int(g) != clamped(w) for g, w in zip(got.ravel(), wanted, strict=True))
    found["gelu clamped"] = abs(count - sum(clamped(w) != w for w in wanted))
    for mode in NEAREST_AND_FLOOR:  # multiplier / 2^shift = 1 / 2: every second sum is a tie
        p = ResidualAdd.of(x_scale=0.5, y_scale=0.5, out_scale=1, rounding=mode, x_zero_point=3, y_zero_point=-4)
        got, count = add(x, y, p)
        want, outside = exact_sum((x, y), p)
        found[f"add {mode}"] = int((got != want).sum())
        found[f"add {mode} clamped"] = abs(count - outside)
    tables = [sample_rows(rng, entries, 70) for entries in (30, 12, 8)]
    ids = [rng.integers(0, entries, (3, 5)) for entries in (30, 12, 8)]
    p = EmbeddingSum.of((0.05, 0.04, 0.03), out_scale=0.06, rounding="half_even")
    got, count = embedding_sum(ids, tables, p)
    want, outside = exact_sum([t[i] for t, i in zip(tables, ids, strict=True)], p)
    found["embedding"] = int((got != want).sum())
    found["embedding clamped"] = abs(count - outside)
    return found
