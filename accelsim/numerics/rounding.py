"""Rounding modes and scale formats, named, and what each means for one number.

Rounding and scale format are part of the result: two that differ give other integers. The atoms are the definition;
`llvm.finish` computes the same on vectors. Products are int64: |product| <= 2^62 and 0 <= shift <= 62, nothing wraps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from accelsim.jit import atom
from accelsim.work import Spelled


class Rounding(Spelled):
    """How the exact quotient becomes an integer. Spelled half_away, half_even, floor, stochastic.

    half_away: to the nearest, ties away from zero. half_even: to the nearest, ties to the even one (torch.round, IEEE).
    floor: towards minus infinity, an arithmetic shift. stochastic: up with the probability of the fraction.
    """

    HALF_AWAY = 0
    HALF_EVEN = 1
    FLOOR = 2
    STOCHASTIC = 3


class ScaleFormat(Spelled):
    """How a scale factor is stored. Spelled float32, fixed, scale8, power_of_two.

    float32: the sum is converted to float32, multiplied by the float32 scale, then rounded: PyTorch's arithmetic.
    The others are integers, multiplier / 2^shift, and the product is exact before it is rounded: fixed has a multiplier
    of 31 bits (as gemmlowp, arXiv:1712.05877), scale8 one of 8 bits (FQ-BERT, arXiv:2103.02800, keeps scale factors in
    8 bits; a mantissa with an exponent is our reading), power_of_two a shift alone.
    """

    FLOAT32 = 0
    FIXED = 1
    SCALE8 = 2
    POWER_OF_TWO = 3


HALF_AWAY, HALF_EVEN, FLOOR, STOCHASTIC = (int(r) for r in Rounding)
FLOAT32, FIXED, SCALE8, POWER_OF_TWO = (int(f) for f in ScaleFormat)

MANTISSA_BITS = {ScaleFormat.FIXED: 31, ScaleFormat.SCALE8: 8, ScaleFormat.POWER_OF_TWO: 1}
MAX_SHIFT = 62
"""A sum of 32 bits times a multiplier of 31 bits stays below 2^62; so does half a unit of the last place."""


# --- atoms ------------------------------------------------------------------------------------------------------------


@atom
def noise(seed: int, index: int) -> Any:
    """64 uniform bits for one element, the same on every path and for any number of threads.

    The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) on seed + (index + 1) 0x9E3779B97F4A7C15.
    """
    z = np.uint64(seed) + (np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@atom
def half_away(product: Any, shift: Any) -> Any:
    """round(product / 2^shift), ties away from zero, for |product| <= 2^62 and 0 <= shift <= 62."""
    half = (np.int64(1) << shift) >> np.int64(1)
    return (product + half - np.int64((product < 0) & (shift > 0))) >> shift


@atom
def half_even(product: Any, shift: Any) -> Any:
    """round(product / 2^shift), ties to the even integer."""
    half = (np.int64(1) << shift) >> np.int64(1)
    some = np.int64(shift > 0)
    return (product + half - some + ((product >> shift) & some)) >> shift


@atom
def stochastic(product: Any, shift: Any, bits: Any) -> Any:
    """floor(product / 2^shift + u), u in [0, 1) from the top `shift` of 64 random bits."""
    return (product + np.int64((bits >> np.uint64(1)) >> np.uint64(63 - shift))) >> shift


@atom
def rounded_shift(product: Any, shift: Any, rounding: int, seed: int, index: int) -> Any:
    """product / 2^shift, rounded as named; `seed` and the element's `index` matter to stochastic rounding alone."""
    if rounding == HALF_AWAY:
        return half_away(product, shift)
    if rounding == HALF_EVEN:
        return half_even(product, shift)
    if rounding == FLOOR:
        return product >> shift
    return stochastic(product, shift, noise(seed, index))


@atom
def rounded_float(x: Any, rounding: int, seed: int, index: int) -> Any:
    """A float32 rounded as named, as float32; exact for every finite value."""
    if rounding == HALF_EVEN:
        return np.rint(x)
    floor = np.floor(x)
    fraction = x - floor
    if rounding == FLOOR:
        return floor
    if rounding == STOCHASTIC:
        return floor + np.float32(fraction > np.float32(noise(seed, index) >> np.uint64(40)) * np.float32(2.0**-24))
    whole = np.trunc(x)
    return whole + np.copysign(np.float32(abs(x - whole) >= np.float32(0.5)), x)
