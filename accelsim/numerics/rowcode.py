"""The inner loops of the row operators, written as LLVM vector code: softmax, layer norm, residual add.

All work on whole blocks of 64 bytes; addresses are integers. Words are 16 bits, the width in which the arithmetic of
one block stays in two registers. Instructions that only some processors have stand behind `target_features`, beside
generic code that computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from accelsim.numerics.llvm import (
    AVX512_VNNI,
    I8,
    I16,
    I32,
    I64,
    ROW,
    W32,
    Builder,
    Value,
    _all,
    _call,
    _constant,
    _load,
    _look_up,
    _repeat,
    _splat,
    _store,
    _vector,
)
from accelsim.numerics.paths import target_features
from accelsim.numerics.rounding import FLOOR, HALF_AWAY, HALF_EVEN

WORDS, HALF_WORDS = _vector(I16, 32), _vector(I16, 16)
LONGS = _vector(I64, 8)
TOP_BIT = -128
"""A byte with this bit flipped turns from signed to unsigned."""
BLOCK_ROWS = 16
"""Rows between one stage of a row operator and the next: what is known of each stands in arrays of this length."""

# --- pieces -----------------------------------------------------------------------------------------------------------


def _pick(builder: Builder, first: Value, second: Value, lanes: Sequence[int]) -> Value:
    """Lanes of two vectors of one type, numbered through both."""
    return builder.shuffle_vector(first, second, ir.Constant(_vector(I32, len(lanes)), list(lanes)))


def _halves_of(builder: Builder, value: Value) -> list[Value]:
    """Lower and upper half of the lanes."""
    lanes = value.type.count
    return [_pick(builder, value, value, range(i, i + lanes // 2)) for i in (0, lanes // 2)]


def _join(builder: Builder, lower: Value, upper: Value) -> Value:
    return _pick(builder, lower, upper, range(2 * lower.type.count))


def _words(builder: Builder, values: Value) -> list[Value]:
    """64 signed bytes as two vectors of 32 words."""
    return [builder.sext(half, WORDS) for half in _halves_of(builder, values)]


def _instruction(builder: Builder, wide: str, half: str, x: Value, y: Value) -> Value | None:
    """An instruction on two vectors of words that LLVM does not find in generic code; None where there is none.

    wide, half: its names for 512 and for 256 bits; the result has the lanes of x, or half as many twice as wide.
    """
    b = builder
    pairs = "pmadd" in wide
    if "avx512bw" in target_features():
        return _call(b, f"llvm.x86.avx512.{wide}.512", W32 if pairs else WORDS, [x, y])
    if "avx2" in target_features():
        result = _vector(I32, 8) if pairs else HALF_WORDS
        halves = zip(_halves_of(b, x), _halves_of(b, y), strict=True)
        return _join(b, *(_call(b, f"llvm.x86.avx2.{half}", result, pair) for pair in halves))
    return None


def _upper(builder: Builder, product: Value, shift: int) -> Value:
    """Words: product / 2^shift, rounded down, of <32 x i32>."""
    return builder.trunc(builder.lshr(product, _all(product.type, shift)), WORDS)


def _rounded_high(builder: Builder, x: Value, y: Value) -> Value:
    """floor((x y + 2^14) / 2^15) of signed words, x y < 2^30."""
    b, wide = builder, _vector(I32, 32)
    found = _instruction(b, "pmul.hr.sw", "pmul.hr.sw", x, y)
    if found is not None:
        return found
    return _upper(b, b.add(b.mul(b.sext(x, wide), b.sext(y, wide)), _all(wide, 2**14)), 15)


def _signed_high(builder: Builder, x: Value, y: Value) -> Value:
    """floor(x y / 2^16) of signed words."""
    b, wide = builder, _vector(I32, 32)
    found = _instruction(b, "pmulh.w", "pmulh.w", x, y)
    return found if found is not None else _upper(b, b.mul(b.sext(x, wide), b.sext(y, wide)), 16)


def _unsigned_high(builder: Builder, x: Value, y: Value) -> Value:
    """floor(x y / 2^16) of unsigned words."""
    b, wide = builder, _vector(I32, 32)
    found = _instruction(b, "pmulhu.w", "pmulhu.w", x, y)
    return found if found is not None else _upper(b, b.mul(b.zext(x, wide), b.zext(y, wide)), 16)


def _pair_products(builder: Builder, x: Value, y: Value) -> Value:
    """x[2i] y[2i] + x[2i + 1] y[2i + 1] as <16 x i32>, of signed words."""
    b = builder
    found = _instruction(b, "pmaddw.d", "pmadd.wd", x, y)
    if found is not None:
        return found
    x, y = (b.bitcast(v, W32) for v in (x, y))
    return b.add(b.mul(_low_word(b, x), _low_word(b, y)), b.mul(_high_word(b, x), _high_word(b, y)))


def _low_word(builder: Builder, value: Value) -> Value:
    """The lower word of each lane of <16 x i32>, sign-extended."""
    return builder.ashr(builder.shl(value, _all(W32, 16)), _all(W32, 16))


def _high_word(builder: Builder, value: Value) -> Value:
    return builder.ashr(value, _all(W32, 16))


def _byte_sums(builder: Builder, sums: Value, unsigned: Value, signed: Value) -> Value:
    """Sums <16 x i32> with the products of 64 unsigned by 64 signed bytes added, four to a lane, whichever four."""
    b = builder
    if {"avx512f", "avx512vnni"} <= target_features():
        return AVX512_VNNI.dot(b, sums, unsigned, signed)
    for left, right in zip(_halves_of(b, unsigned), _halves_of(b, signed), strict=True):
        sums = b.add(sums, _pair_products(b, b.zext(left, WORDS), b.sext(right, WORDS)))
    return sums


def _total(builder: Builder, values: Value) -> Value:
    """Sum of the lanes, as int64."""
    kind = values.type
    name = f"llvm.vector.reduce.add.v{kind.count}i{kind.element.width}"
    total = _call(builder, name, kind.element, [values])
    return total if kind.element == I64 else builder.sext(total, I64)


def _in_lanes(high: bool) -> list[int]:
    """Bytes that punpck(l/h)bw takes from two vectors of 64: alternately, from the lower or upper half of each 16."""
    first = [16 * part + 8 * high + i for part in range(4) for i in range(8)]
    return [lane for i in first for lane in (i, 64 + i)]


def _unpacked(builder: Builder, lower: Value, upper: Value) -> list[Value]:
    """64 words, each from a lower and an upper byte, as two vectors in the order that `_packed` undoes."""
    return [builder.bitcast(_pick(builder, lower, upper, _in_lanes(high)), WORDS) for high in (False, True)]


def _packed(builder: Builder, words: list[Value]) -> Value:
    """The lower bytes of two vectors of words, which are < 256, in the order before `_unpacked`."""
    b = builder
    if "avx512bw" in target_features():
        return _call(b, "llvm.x86.avx512.packuswb.512", ROW, words)
    low, high = (b.bitcast(w, ROW) for w in words)
    return _pick(
        b, low, high, [16 * part + 2 * i + 64 * half for part in range(4) for half in (0, 1) for i in range(8)]
    )


def _clamped_bytes(builder: Builder, words: list[Value]) -> Value:
    """Two vectors of words clamped to 0 ... 255, as 64 bytes in order."""
    b = builder
    if "avx512bw" in target_features():
        mixed = b.bitcast(_packed(b, words), LONGS)
        return b.bitcast(_pick(b, mixed, mixed, [0, 2, 4, 6, 1, 3, 5, 7]), ROW)
    clamped = []
    for w in words:
        w = b.select(b.icmp_signed("<", w, _all(WORDS, 0)), _all(WORDS, 0), w)
        w = b.select(b.icmp_signed(">", w, _all(WORDS, 255)), _all(WORDS, 255), w)
        clamped.append(b.trunc(w, _vector(I8, 32)))
    return _join(b, *clamped)


def _lower_bytes(builder: Builder, words: list[Value]) -> Value:
    """The lower bytes of two vectors of words, as 64 bytes in order."""
    low, high = (builder.bitcast(w, ROW) for w in words)
    return _pick(builder, low, high, range(0, 128, 2))


def _outside(builder: Builder, words: list[Value]) -> Value:
    """How many words are not in 0 ... 255, as int64."""
    b, count = builder, _constant(0)
    for w in words:
        bits = b.bitcast(b.icmp_unsigned(">", w, _all(WORDS, 255)), I32)
        count = b.add(count, b.zext(b.ctpop(bits), I64))
    return count


def _table(builder: Builder, address: Value) -> Callable[[Value], Value]:
    """Look-ups of 64 bytes in the 256 bytes at an address, which are loaded here and once."""
    b = builder
    if "avx512vbmi" in target_features():
        return _permuted(b, [_load(b, b.add(address, _constant(64 * i)), ROW) for i in range(4)])
    if "avx2" in target_features():
        return _shuffled(b, [_load(b, b.add(address, _constant(16 * i)), _vector(I8, 16)) for i in range(16)])
    return lambda values: _look_up(b, address, values)


def _permuted(builder: Builder, parts: list[Value]) -> Callable[[Value], Value]:
    """By vpermi2b, which finds a byte among 128, in both halves of the table."""
    b = builder

    def look_up(values: Value) -> Value:
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        lower, upper = (_call(b, name, ROW, [parts[i], values, parts[i + 1]]) for i in (0, 2))
        return b.select(b.icmp_signed("<", values, _all(ROW, 0)), upper, lower)

    return look_up


def _shuffled(builder: Builder, parts: list[Value]) -> Callable[[Value], Value]:
    """By pshufb, which finds a byte among 16 by the lower four bits and gives 0 where the top bit is set.

    For bytes v below 128, the top bit of v - 16 t, not below -128, is clear for t up to floor(v / 16), so that the xor
    of the parts' differences up to there is the part itself; the others find zeros. With the top bit flipped it is
    the other way round.
    """
    b = builder
    wide = "avx512bw" in target_features()
    lanes, name = (64, "llvm.x86.avx512.pshuf.b.512") if wide else (32, "llvm.x86.avx2.pshuf.b")
    spread = [i % 16 for i in range(lanes)]
    steps = [_pick(b, p if t % 8 == 0 else b.xor(p, parts[t - 1]), p, spread) for t, p in enumerate(parts)]

    def among(values: Value, steps: list[Value]) -> Value:
        kind = values.type
        total = _call(b, name, kind, [steps[0], values])
        for step in steps[1:]:
            values = _call(b, f"llvm.ssub.sat.v{lanes}i8", kind, [values, _all(kind, 16)])
            total = b.xor(total, _call(b, name, kind, [step, values]))
        return total

    def found(values: Value) -> Value:
        return b.xor(among(values, steps[:8]), among(b.xor(values, _all(values.type, TOP_BIT)), steps[8:]))

    def look_up(values: Value) -> Value:
        return found(values) if wide else _join(b, *(found(half) for half in _halves_of(b, values)))

    return look_up


def _switch(builder: Builder, value: Value, cases: Mapping[int, Callable[[], Value]]) -> Value:
    """int64: the result of the case whose number `value` is, 0 if none is."""
    b = builder
    end = b.append_basic_block("end")
    choice = b.switch(value, end)
    results = [(_constant(0), b.block)]
    for number, make in cases.items():
        block = b.append_basic_block(f"case{number}")
        choice.add_case(_constant(number), block)
        b.position_at_end(block)
        results.append((make(), b.block))
        b.branch(end)
    b.position_at_end(end)
    joined = b.phi(I64)
    for result, block in results:
        joined.add_incoming(result, block)
    return joined


def _at(builder: Builder, base: Value, index: Value, step: int) -> Value:
    return builder.add(base, builder.mul(index, _constant(step)))


@intrinsic
def bit_length(context, n):  # type: ignore[no-untyped-def]
    """Bits of n >= 0: the smallest b with n < 2^b."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        zeros = builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))
        return builder.sub(_constant(64), zeros)

    return types.int64(types.int64), emit


@intrinsic
def copy_bytes(context, source, target, count):  # type: ignore[no-untyped-def]
    """Copies `count` bytes to an address that does not overlap."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        source, target, count = arguments
        pointers = [builder.inttoptr(address, I8.as_pointer()) for address in (target, source)]
        cgutils.raw_memcpy(builder, *pointers, count, 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


# --- softmax ----------------------------------------------------------------------------------------------------------


def _attended(builder: Builder, mask: Value, index: Value) -> Value:
    """64 bytes of a mask (0 or 1) as 0 or -1."""
    return builder.sub(_all(ROW, 0), _load(builder, _at(builder, mask, index, 64), ROW))


def _masked(builder: Builder, mask: Value, values: Value, otherwise: Value) -> Value:
    return builder.or_(builder.and_(mask, values), builder.and_(builder.not_(mask), otherwise))


@intrinsic
def row_maximum(context, source, mask, blocks):  # type: ignore[no-untyped-def]
    """The largest of 64 `blocks` signed bytes, or -128: of those whose byte at `mask` is 1, of all if mask is 0."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, mask, blocks = arguments

        def loop(with_mask: bool) -> Value:
            def block(index: Value, carried: list[Value]) -> list[Value]:
                values = _load(b, _at(b, source, index, 64), ROW)
                if with_mask:
                    values = _masked(b, _attended(b, mask, index), values, _all(ROW, TOP_BIT))
                return [b.select(b.icmp_signed(">", values, carried[0]), values, carried[0])]

            (largest,) = _repeat(b, blocks, [_all(ROW, TOP_BIT)], block)
            return b.sext(_call(b, "llvm.vector.reduce.smax.v64i8", I8, [largest]), I64)

        there = b.zext(b.icmp_signed("!=", mask, _constant(0)), I64)
        return _switch(b, there, {0: partial(loop, False), 1: partial(loop, True)})

    return types.int64(types.intp, types.intp, types.intp), emit


@intrinsic
def exponentials(  # type: ignore[no-untyped-def]
    context, source, mask, blocks, largest, low_table, high_table, low, high
):
    """Looks up 64 `blocks` exponentials, table[largest - x], 0 where the mask byte is 0, and returns their sum.

    Lower bytes go to address `low`, upper ones to `high` unless high_table is 0: all upper bytes are then 0.
    """

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, mask, blocks, largest, low_table, high_table, low, high = arguments
        top = _splat(b, b.trunc(largest, I8), 64)

        def loop(wide: bool, with_mask: bool) -> Value:
            tables = [_table(b, address) for address in ([low_table, high_table] if wide else [low_table])]

            def block(index: Value, carried: list[Value]) -> list[Value]:
                distance = b.sub(top, _load(b, _at(b, source, index, 64), ROW))
                sums = []
                for table, target, total in zip(tables, (low, high), carried, strict=False):
                    found = table(distance)
                    if with_mask:
                        found = b.and_(found, _attended(b, mask, index))
                    _store(b, found, _at(b, target, index, 64))
                    sums.append(_byte_sums(b, total, found, _all(ROW, 1)))
                return sums

            sums = [_total(b, total) for total in _repeat(b, blocks, [_all(W32, 0)] * len(tables), block)]
            return b.add(sums[0], b.shl(sums[1], _constant(8))) if wide else sums[0]

        flags = [b.zext(b.icmp_signed("!=", v, _constant(0)), I64) for v in (high_table, mask)]
        case = b.add(b.shl(flags[0], _constant(1)), flags[1])
        cases = {
            2 * wide + with_mask: partial(loop, wide, with_mask)
            for wide in (False, True)
            for with_mask in (False, True)
        }
        return _switch(b, case, cases)

    return types.int64(*[types.intp] * 8), emit


def _quotient_words(builder: Builder, numerator: Value, factor: tuple[Value, Value], wide: bool) -> Value:
    """floor(e factor / 2^16) for e < 2^8, factor < 2^23; `wide`: floor(e factor / 2^32), e < 2^16, factor < 2^31."""
    b = builder
    upper, lower = factor
    low = b.mul(numerator, upper)
    carried_in = _unsigned_high(b, numerator, lower)
    total = b.add(low, carried_in)
    if not wide:
        return total
    high = _unsigned_high(b, numerator, upper)
    return b.select(b.icmp_unsigned("<", total, carried_in), b.add(high, _all(WORDS, 1)), high)


@intrinsic
def divide(  # type: ignore[no-untyped-def]
    context, rounding, low, high, blocks, above, below, shift, target
):
    """64 `blocks` quotients e factor / 2^(shift + 16), as bytes; with upper bytes (high not 0), / 2^(shift + 32).

    Rounding as named, to the nearest by adding half a unit. half_even takes the quotient by the factor `above` where
    that is even, else the one by `below`: they differ at a tie. See `softmax.reciprocal` for why this is exact.
    """

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        rounding, low, high, blocks, above, below, shift, target = arguments

        def loop(wide: bool, mode: int) -> Value:
            factors = [
                (_splat(b, b.trunc(b.lshr(f, _constant(16)), I16), 32), _splat(b, b.trunc(f, I16), 32))
                for f in (above, below)
            ]
            places = _splat(b, b.trunc(shift, I16), 32)
            half = b.lshr(b.shl(_all(WORDS, 1), places), _all(WORDS, 1))

            def quotient(numerator: Value, factor: tuple[Value, Value]) -> Value:
                words = _quotient_words(b, numerator, factor, wide)
                return b.lshr(words if mode == FLOOR else b.add(words, half), places)

            def block(index: Value, carried: list[Value]) -> list[Value]:
                lower = _load(b, _at(b, low, index, 64), ROW)
                upper = _load(b, _at(b, high, index, 64), ROW) if wide else _all(ROW, 0)
                results = []
                for numerator in _unpacked(b, lower, upper):
                    q = quotient(numerator, factors[0])
                    if mode == HALF_EVEN:
                        odd = b.icmp_signed("!=", b.and_(q, _all(WORDS, 1)), _all(WORDS, 0))
                        q = b.select(odd, quotient(numerator, factors[1]), q)
                    results.append(q)
                _store(b, _packed(b, results), _at(b, target, index, 64))
                return carried

            _repeat(b, blocks, [], block)
            return _constant(0)

        with_upper = b.zext(b.icmp_signed("!=", high, _constant(0)), I64)
        case = b.add(b.shl(rounding, _constant(1)), with_upper)
        cases = {
            2 * mode + wide: partial(loop, wide, mode)
            for mode in (HALF_AWAY, HALF_EVEN, FLOOR)
            for wide in (False, True)
        }
        return _switch(b, case, cases)

    return types.int64(*[types.intp] * 8), emit


# --- layer norm -------------------------------------------------------------------------------------------------------


@intrinsic
def byte_moments(context, source, blocks, sums):  # type: ignore[no-untyped-def]
    """Puts the sum of 64 `blocks` signed bytes to address `sums`, that of their squares to `sums` + 128; int64."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, blocks, target = arguments

        def block(index: Value, carried: list[Value]) -> list[Value]:
            values = _load(b, _at(b, source, index, 64), ROW)
            unsigned = b.xor(values, _all(ROW, TOP_BIT))
            return [_byte_sums(b, carried[0], unsigned, _all(ROW, 1)), _byte_sums(b, carried[1], unsigned, values)]

        plain, products = (_total(b, v) for v in _repeat(b, blocks, [_all(W32, 0)] * 2, block))
        total = b.sub(plain, b.shl(blocks, _constant(13)))  # every one of 64 bytes was raised by 128
        squares = b.sub(products, b.shl(total, _constant(7)))
        _store(b, total, target)
        _store(b, squares, b.add(target, _constant(8 * BLOCK_ROWS)))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


@intrinsic
def aligned_moments(  # type: ignore[no-untyped-def]
    context, x, y, blocks, x_multiplier, y_multiplier, target, sums
):
    """Puts 64 `blocks` words x' + y' to `target`, v' = floor((128 v multiplier + 2^14) / 2^15); sums: `byte_moments`.

    Multipliers <= 2^14: words are within 2^14, the squares of four within int32.
    """

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        x, y, blocks, x_multiplier, y_multiplier, target, sums = arguments
        factors = [_splat(b, b.trunc(m, I16), 32) for m in (x_multiplier, y_multiplier)]

        def aligned(source: Value, factor: Value, index: Value) -> list[Value]:
            words = _words(b, _load(b, _at(b, source, index, 64), ROW))
            return [_rounded_high(b, b.shl(w, _all(WORDS, 7)), factor) for w in words]

        def block(index: Value, carried: list[Value]) -> list[Value]:
            total, squares = carried
            words = [
                b.add(*pair) for pair in zip(aligned(x, factors[0], index), aligned(y, factors[1], index), strict=True)
            ]
            for i, w in enumerate(words):
                _store(b, w, b.add(_at(b, target, index, 128), _constant(64 * i)))
                total = b.add(total, _pair_products(b, w, _all(WORDS, 1)))
            four = b.bitcast(b.add(*(_pair_products(b, w, w) for w in words)), LONGS)
            both = b.add(b.and_(four, _all(LONGS, 2**32 - 1)), b.lshr(four, _all(LONGS, 32)))
            return [total, b.add(squares, both)]

        for i, v in enumerate(_repeat(b, blocks, [_all(W32, 0), _all(LONGS, 0)], block)):
            _store(b, _total(b, v), b.add(sums, _constant(8 * BLOCK_ROWS * i)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), emit


NORMALIZED_ROWS = 4
"""Rows that `normalize` takes at a time: the columns' parameters are loaded once for all of them."""
BYTES_NEAREST, BYTES_FLOOR, WORDS_NEAREST, WORDS_FLOOR = range(4)


@intrinsic
def normalize(  # type: ignore[no-untyped-def]
    context, code, rows, source, source_row_bytes, blocks, row, columns, column_bytes, target, target_row_bytes
):
    """Normalizes 1 or 4 rows of 64 `blocks` elements into bytes; returns how many had to be clamped.

    With unit, center, factor, int64, at `row`, `row` + 128, `row` + 256, those of the next rows behind each, and gain,
    bias, offset of the columns, words, at `columns`, `columns` + column_bytes, `columns` + 2 column_bytes:
        u = floor(((x unit - center) factor + 2^14) / 2^15)
        y = clamp(floor(((u + bias) gain + 2^14) / 2^15) + offset - 128), or floor((u + bias) gain / 2^16) + ...
    all within words, x unit - center modulo 2^16. code: whether x are bytes or words, and which y.
    """

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        code, rows, source, source_row_bytes, blocks, row, columns, column_bytes, target, target_row_bytes = arguments
        parameters = [b.add(columns, b.mul(column_bytes, _constant(i))) for i in range(3)]

        def run(code: int, height: int, first: Value, count: bool) -> Value:
            """`height` rows from `first` on; counts how many were clamped, or only whether any was."""
            wide, nearest = code in (WORDS_NEAREST, WORDS_FLOOR), code in (BYTES_NEAREST, WORDS_NEAREST)
            numbers, sources, targets = [], [], []
            for i in range(height):
                this = b.add(first, _constant(i))
                at = _at(b, row, this, 8)
                places = [b.add(at, _constant(8 * BLOCK_ROWS * j)) for j in range(3)]
                numbers.append([_splat(b, b.trunc(_load(b, place, I64), I16), 32) for place in places])
                sources.append(b.add(source, b.mul(this, source_row_bytes)))
                targets.append(b.add(target, b.mul(this, target_row_bytes)))

            def block(index: Value, carried: list[Value]) -> list[Value]:
                (found,) = carried
                in_block = [
                    [_load(b, b.add(_at(b, base, index, 128), _constant(64 * i)), WORDS) for base in parameters]
                    for i in range(2)
                ]
                for (unit, center, factor), x_at, y_at in zip(numbers, sources, targets, strict=True):
                    if wide:
                        x_at = _at(b, x_at, index, 128)
                        x = [_load(b, b.add(x_at, _constant(64 * i)), WORDS) for i in range(2)]
                    else:
                        x = _words(b, _load(b, _at(b, x_at, index, 64), ROW))
                    results = []
                    for values, (a, c, o) in zip(x, in_block, strict=True):
                        u = _rounded_high(b, b.sub(b.mul(values, unit), center), factor)
                        u = b.add(u, c)
                        results.append(b.add(_rounded_high(b, u, a) if nearest else _signed_high(b, u, a), o))
                    y = b.xor((_clamped_bytes if count else _lower_bytes)(b, results), _all(ROW, TOP_BIT))
                    _store(b, y, _at(b, y_at, index, 64))
                    found = b.add(found, _outside(b, results)) if count else b.or_(b.or_(found, results[0]), results[1])
                return [found]

            (found,) = _repeat(b, blocks, [_constant(0) if count else _all(WORDS, 0)], block)
            if count:
                return found
            return b.zext(b.lshr(_call(b, "llvm.vector.reduce.or.v32i16", I16, [found]), ir.Constant(I16, 8)), I64)

        def one_by_one(code: int) -> Value:
            def each(index: Value, carried: list[Value]) -> list[Value]:
                return [b.add(carried[0], run(code, 1, index, True))]

            return _repeat(b, rows, [_constant(0)], each)[0]

        def several(code: int) -> Value:
            together = b.icmp_signed("==", rows, _constant(NORMALIZED_ROWS))
            fast = b.zext(together, I64)
            some = _switch(b, fast, {1: partial(run, code, NORMALIZED_ROWS, _constant(0), False)})
            again = b.or_(b.xor(fast, _constant(1)), b.zext(b.icmp_signed("!=", some, _constant(0)), I64))
            return _switch(b, again, {1: partial(one_by_one, code)})

        return _switch(b, code, {c: partial(several, c) for c in range(4)})

    return types.int64(*[types.intp] * 10), emit


# --- element by element -----------------------------------------------------------------------------------------------


@intrinsic
def look_up(context, source, blocks, table, target):  # type: ignore[no-untyped-def]
    """target[i] = table[source[i]] for 64 `blocks` bytes; table: address of 256 bytes."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, blocks, table, target = arguments
        found = _table(b, table)

        def block(index: Value, carried: list[Value]) -> list[Value]:
            _store(b, found(_load(b, _at(b, source, index, 64), ROW)), _at(b, target, index, 64))
            return carried

        _repeat(b, blocks, [], block)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), emit


@intrinsic
def looked_up_sum(context, source, blocks, table):  # type: ignore[no-untyped-def]
    """Sum of table[byte] over 64 `blocks` bytes; table: address of 256 unsigned bytes."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, blocks, table = arguments

        found = _table(b, table)

        def block(index: Value, carried: list[Value]) -> list[Value]:
            return [_byte_sums(b, carried[0], found(_load(b, _at(b, source, index, 64), ROW)), _all(ROW, 1))]

        return _total(b, _repeat(b, blocks, [_all(W32, 0)], block)[0])

    return types.int64(types.intp, types.intp, types.intp), emit


def _alternated(builder: Builder, x: Value, y: Value) -> list[Value]:
    """Even and odd words of x, each followed by the word of y in its place."""
    b = builder
    x, y = (b.bitcast(v, W32) for v in (x, y))
    low, high = _all(W32, 0xFFFF), _all(W32, 0xFFFF0000)
    even = b.or_(b.and_(x, low), b.shl(y, _all(W32, 16)))
    odd = b.or_(b.lshr(x, _all(W32, 16)), b.and_(y, high))
    return [b.bitcast(v, WORDS) for v in (even, odd)]


def _shifted(builder: Builder, rounding: int, sums: Value, shift: Value, half: Value) -> Value:
    """round(sums / 2^shift) of <16 x i32>, shift > 0, half = 2^(shift - 1): as `rounding.rounded_shift`."""
    b, one = builder, _all(W32, 1)
    if rounding == HALF_AWAY:
        sums = b.add(b.add(sums, half), b.ashr(sums, _all(W32, 31)))
    elif rounding == HALF_EVEN:
        sums = b.add(b.add(sums, b.sub(half, one)), b.and_(b.ashr(sums, shift), one))
    return b.ashr(sums, shift)


@intrinsic
def weighted_sum(context, rounding, four, sources, multipliers, blocks, plan, target):  # type: ignore[no-untyped-def]
    """Bytes clamp(round((sum of m v + constant) / 2^shift) + offset - 128), of two or four rows v of 64 `blocks` bytes.

    Returns how many had to be clamped. sources: address of 4 addresses v; multipliers: of 4 int64, words m; plan: of
    constant, shift, offset, int64. Sums stay within int32, shifted ones within 2^14; shift > 0.
    """

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        rounding, four, sources, multipliers, blocks, plan, target = arguments
        at, factors = (
            [_load(b, b.add(base, _constant(8 * i)), I64) for i in range(4)] for base in (sources, multipliers)
        )
        constant, shift, offset = (_load(b, b.add(plan, _constant(8 * i)), I64) for i in range(3))
        constant, shift = (_splat(b, b.trunc(v, I32), 16) for v in (constant, shift))
        half = b.shl(_all(W32, 1), b.sub(shift, _all(W32, 1)))
        offset = _splat(b, b.trunc(offset, I16), 32)
        pairs = []
        for i in (0, 2):
            both = b.or_(b.and_(factors[i], _constant(0xFFFF)), b.shl(factors[i + 1], _constant(16)))
            pairs.append(b.bitcast(_splat(b, b.trunc(both, I32), 16), WORDS))

        def run(mode: int, count: int) -> Value:
            def block(index: Value, carried: list[Value]) -> list[Value]:
                words = [_words(b, _load(b, _at(b, at[i], index, 64), ROW)) for i in range(count)]
                results = []
                for part in range(2):
                    sums = [constant, constant]
                    for i in range(0, count, 2):
                        mixed = _alternated(b, words[i][part], words[i + 1][part])
                        sums = [b.add(s, _pair_products(b, m, pairs[i // 2])) for s, m in zip(sums, mixed, strict=True)]
                    even, odd = (_shifted(b, mode, s, shift, half) for s in sums)
                    joined = b.or_(b.and_(even, _all(W32, 0xFFFF)), b.shl(odd, _all(W32, 16)))
                    results.append(b.add(b.bitcast(joined, WORDS), offset))
                _store(b, b.xor(_clamped_bytes(b, results), _all(ROW, TOP_BIT)), _at(b, target, index, 64))
                return [b.add(carried[0], _outside(b, results))]

            return _repeat(b, blocks, [_constant(0)], block)[0]

        case = b.add(b.shl(rounding, _constant(1)), four)
        cases = {
            2 * mode + more: partial(run, mode, 4 if more else 2)
            for mode in (HALF_AWAY, HALF_EVEN, FLOOR)
            for more in (False, True)
        }
        return _switch(b, case, cases)

    return types.int64(*[types.intp] * 7), emit
