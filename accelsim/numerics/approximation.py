"""I-BERT's polynomials for exp and GELU, in integers.

I-BERT (arXiv:2101.01321, section 3) writes q S for a number in steps of S and evaluates a polynomial on q alone, with
constants rounded down to the steps of S and a S^2; the result is in steps of a S^2. The scale is real and is used once,
to find the constants. What follows is integers.

An 8-bit input leaves S too large for that. It is first shifted left by as many bits as a stated width has room for,
which divides S by 2^shift. (I-BERT's own inputs have 32 bits; its code shifts where it needs room.)
"""

from __future__ import annotations

import math

import numpy as np

from accelsim.errors import SpecError

EXP = (0.35815147, 0.96963238, 1.0)
"""a, b, c of exp ~ a x^2 + b x + c on (-ln 2, 0], from the authors' code (kssteven418/I-BERT, IntSoftmax). Equation 13
prints 0.3585 (x + 1.353)^2 + 0.344: so rounded it is off by up to 2.13e-3, unrounded by 1.91e-3, as stated."""
ERF = (-0.2888, -1.769, 1.0)
"""a, b, c of erf ~ a (x + b)^2 + c on [0, 1.769]; beyond, 1 (equation 8)."""


def _room(largest: float, limit: int) -> int:
    """The largest shift <= 32 with 4^shift largest < limit, negative where there is none."""
    return min(32, math.ceil(math.log2(limit / largest) / 2) - 1)


def exponential_polynomial(scale: float, width: int) -> tuple[np.ndarray, float]:
    """(integers q, step): q[d] step ~ exp(-d scale) for d = 0 ... 255, q < 2^(width - 1).

    With q = -d 2^shift in steps of S = scale / 2^shift, the largest shift for which c / (a S^2) fits (algorithm 3):
        ln2 = floor(ln 2 / S),    z = floor(-q / ln2),    p = q + z ln2
        result = (p (p + floor(b / (a S))) + floor(c / (a S^2))) >> z,    in steps of a S^2
    Raises SpecError for a scale so small that it does not fit even unshifted.
    """
    a, b, c = EXP
    limit = 2 ** (width - 1)
    shift = _room(c / a / scale / scale, limit)
    if shift < 0:
        raise SpecError("scale", scale, f"above {math.sqrt(c / (a * limit)):.3g} for a polynomial of {width} bits")
    step = scale / 2**shift
    ln2, linear, constant = math.floor(math.log(2) / step), math.floor(b / a / step), math.floor(c / a / step**2)
    if ln2 == 0:
        raise SpecError("scale", scale, f"smaller, for ln 2 to be a step or more within {width} bits")
    q = -(np.arange(256, dtype=np.int64) << shift)
    z = -q // ln2
    p = q + z * ln2
    return (p * (p + linear) + constant) >> np.minimum(z, 63), a * step * step


def gelu_polynomial(scale: float, width: int, kept: int) -> tuple[np.ndarray, float]:
    """(integers q, step): q[x + 128] step ~ GELU(x scale) for x = -128 ... 127; |q| < 2^(kept + 7).

    With q = x 2^shift in steps of S = scale / (sqrt(2) 2^shift), the largest shift for which 1 / (|a| S^2) is below
    2^(width - 2), and sigma = max(0, width - kept), 14 in the authors' code (algorithm 2):
        r = min(|q|, -floor(b / S))
        erf = sign(q) ((r + floor(b / S))^2 + floor(c / (a S^2))) >> sigma,    in steps of a S^2 2^sigma, a < 0
        result = x (erf + floor(1 / (a S^2 2^sigma))),    in steps of scale a S^2 2^sigma / 2
    The step is negative, as a is. Raises SpecError for a scale so small that it does not fit even unshifted.
    """
    a, b, c = ERF
    limit = 2 ** (width - 2)
    shift = _room(-2 * c / a / scale / scale, limit)
    if shift < 0:
        raise SpecError("scale", scale, f"above {math.sqrt(-2 * c / (a * limit)):.3g} for a polynomial of {width} bits")
    step = scale * math.sqrt(0.5) / 2**shift
    bound, constant = math.floor(b / step), math.floor(c / a / step**2)
    sigma = max(0, width - kept)
    x = np.arange(-128, 128, dtype=np.int64)
    r = np.minimum(np.abs(x) << shift, -bound)
    erf = (np.sign(x) * ((r + bound) ** 2 + constant)) >> sigma
    erf_step = a * step * step * 2**sigma
    return x * (erf + math.floor(1 / erf_step)), scale * erf_step / 2
