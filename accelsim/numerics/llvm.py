"""The inner loops that a compiler does not find by itself, written as LLVM vector code.

`panel_*` multiply rows by one to three strips of packed weights, sums kept in registers; `finish` requantizes a block
of sums; `translate` looks up bytes in a table of 256; `transpose_words` and `interleave_rows` pack a strip; `peak_*` do
nothing but the dot product, to measure it. Addresses are integers, distances between rows are in bytes. What has a path
in its name uses that path's instruction, the rest is generic vector code for any processor.

Layout of packed weights: a strip holds 16 columns; for every group of four k it has 64 bytes, column by column, the
four k of a column side by side: byte (group, column, i) is w[4 group + i, column]. k is padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from accelsim.numerics.paths import target_features
from accelsim.numerics.rounding import FLOOR, HALF_AWAY, HALF_EVEN, STOCHASTIC

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
BYTE_OPERANDS = llvmlite.binding.llvm_version_info[0] >= 22
"""From LLVM 22 on vpdpbusd takes its 8-bit operands as vectors of bytes, before as vectors of int32."""

LANES = 16
"""Columns of a strip."""

Builder = Any
Value = Any


def _vector(element: Any, lanes: int) -> Any:
    return ir.VectorType(element, lanes)


def _constant(value: int) -> Value:
    return ir.Constant(I64, value)


def _all(kind: Any, value: float) -> Value:
    return ir.Constant(kind, [value] * kind.count)


def _splat(builder: Builder, word: Value, lanes: int) -> Value:
    undefined = ir.Constant(_vector(word.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, word, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_vector(I32, lanes), [0] * lanes))


def _load(builder: Builder, address: Value, kind: Any) -> Value:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _store(builder: Builder, value: Value, address: Value) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _call(builder: Builder, name: str, result: Any, arguments: Sequence[Value]) -> Value:
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _call_once(builder: Builder, name: str, body: Callable[[Builder, Sequence[Value]], None], arguments: Any) -> None:
    """Call a function whose code stands once in the module, however often it is called, and is not unrolled."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [a.type for a in arguments]), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        function.attributes.add("optsize")
        inside = ir.IRBuilder(function.append_basic_block("entry"))
        body(inside, function.args)
        inside.ret_void()
    builder.call(function, arguments)


# --- four products into each int32 lane -------------------------------------------------------------------------------

Dot = Callable[[Builder, Value, Value, Value], Value]
"""(builder, sums <L x i32>, prepared inputs, prepared weights) -> sums with u8 x s8 products of each lane added."""


def _vpdpbusd(bits: int) -> Dot:
    words = _vector(I32, bits // 32)
    operand = _vector(I8, bits // 8) if BYTE_OPERANDS else words

    def dot(builder: Builder, sums: Value, inputs: Value, weights: Value) -> Value:
        operands = [sums, builder.bitcast(inputs, operand), builder.bitcast(weights, operand)]
        return _call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", words, operands)

    return dot


def _unchanged(builder: Builder, value: Value) -> Value:
    return value


def _halves(builder: Builder, value: Value, shift: Callable[[Value, Value], Value]) -> tuple[Value, Value]:
    """(even bytes, odd bytes) of <8 x i32> widened to int16: `shift` is arithmetic for signed, logical for unsigned."""
    kind = _vector(I16, 16)
    eight = ir.Constant(kind, [8] * 16)
    pairs = builder.bitcast(value, kind)
    return shift(builder.shl(pairs, eight), eight), shift(pairs, eight)


def _pmaddwd(builder: Builder, sums: Value, inputs: Value, weights: Value) -> Value:
    """Exact where vpmaddubsw would saturate: bytes are widened first."""
    words = _vector(I32, 8)
    for a, w in zip(inputs, weights, strict=True):
        sums = builder.add(sums, _call(builder, "llvm.x86.avx2.pmadd.wd", words, [a, w]))
    return sums


def _bytes(builder: Builder, value: Value, shift: Callable[[Value, Value], Value]) -> list[Value]:
    """The four bytes of each lane of <L x i32>, widened: `shift` is arithmetic for signed, logical for unsigned."""
    kind = value.type
    tops = [value if i == 3 else builder.shl(value, _all(kind, 24 - 8 * i)) for i in range(4)]
    return [shift(top, _all(kind, 24)) for top in tops]


def _products(builder: Builder, sums: Value, inputs: Value, weights: Value) -> Value:
    """Four multiplications of widened bytes: what every processor has."""
    p = [builder.mul(a, w) for a, w in zip(inputs, weights, strict=True)]
    return builder.add(sums, builder.add(builder.add(p[0], p[1]), builder.add(p[2], p[3])))


class Kernel:
    """How one path multiplies. lanes: int32 lanes of a register. rows: heights of register tiles, largest first.
    strips: most strips of 16 columns in one tile."""

    def __init__(
        self,
        name: str,
        lanes: int,
        rows: tuple[int, ...],
        strips: int,
        dot: Dot,
        inputs: Callable[[Builder, Value], Value] = _unchanged,
        weights: Callable[[Builder, Value], Value] = _unchanged,
    ) -> None:
        self.name, self.lanes, self.rows, self.strips, self.dot = name, lanes, rows, strips, dot
        self.inputs, self.weights = inputs, weights


AVX512_VNNI = Kernel("avx512_vnni", 16, (8, 4, 2, 1), 3, _vpdpbusd(512))
AVX_VNNI = Kernel("avx_vnni", 8, (6, 4, 2, 1), 1, _vpdpbusd(256))
AVX2 = Kernel(
    "avx2",
    8,
    (4, 2, 1),
    1,
    _pmaddwd,
    inputs=lambda b, v: _halves(b, v, b.lshr),
    weights=lambda b, v: _halves(b, v, b.ashr),
)
PORTABLE = Kernel(
    "portable",
    16,
    (2, 1),
    1,
    _products,
    inputs=lambda b, v: _bytes(b, v, b.lshr),
    weights=lambda b, v: _bytes(b, v, b.ashr),
)


# --- a panel: all rows by a few strips --------------------------------------------------------------------------------


def _tile(builder: Builder, kernel: Kernel, rows: int, strips: int, at: dict[str, Value]) -> None:
    """sums[r, j] = first[j] + sum over k of a[r, k] w[k, j] for `rows` rows and 16 `strips` columns, in registers."""
    lanes = kernel.lanes
    parts = strips * LANES // lanes
    words = _vector(I32, lanes)
    step = 4 * lanes
    firsts = [_load(builder, builder.add(at["first"], _constant(step * p)), words) for p in range(parts)]
    before = builder.block
    loop, done = builder.append_basic_block("groups"), builder.append_basic_block("stored")
    builder.branch(loop)
    builder.position_at_end(loop)
    group = builder.phi(I64)
    group.add_incoming(_constant(0), before)
    sums = []
    for _ in range(rows):
        for p in range(parts):
            phi = builder.phi(words)
            phi.add_incoming(firsts[p], before)
            sums.append(phi)
    w_at, a_at = builder.shl(group, _constant(6)), builder.shl(group, _constant(2))
    weights = []
    for p in range(parts):
        strip, half = divmod(p * lanes, LANES)
        base = builder.add(at["w"], builder.mul(at["strip_bytes"], _constant(strip)))
        address = builder.add(builder.add(base, _constant(4 * half)), w_at)
        weights.append(kernel.weights(builder, _load(builder, address, words)))
    new = []
    for r in range(rows):
        row = builder.add(at["a"], builder.mul(at["row_bytes"], _constant(r)))
        word = _load(builder, builder.add(row, a_at), I32)
        inputs = kernel.inputs(builder, _splat(builder, word, lanes))
        new += [kernel.dot(builder, sums[r * parts + p], inputs, weights[p]) for p in range(parts)]
    following = builder.add(group, _constant(1))
    group.add_incoming(following, builder.block)
    for phi, value in zip(sums, new, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, at["groups"]), loop, done)
    builder.position_at_end(done)
    for r in range(rows):
        row = builder.add(at["c"], builder.mul(at["c_row_bytes"], _constant(r)))
        for p in range(parts):
            _store(builder, new[r * parts + p], builder.add(row, _constant(step * p)))


def _rows(builder: Builder, kernel: Kernel, strips: int, at: dict[str, Value], count: Value) -> None:
    """All `count` rows in tiles of the largest height that fits."""
    for height in kernel.rows:
        before = builder.block
        check = builder.append_basic_block(f"rows{height}")
        body = builder.append_basic_block(f"tile{height}")
        rest = builder.append_basic_block(f"below{height}")
        builder.branch(check)
        builder.position_at_end(check)
        left, a, c = (builder.phi(I64) for _ in range(3))
        for phi, start in ((left, count), (a, at["a"]), (c, at["c"])):
            phi.add_incoming(start, before)
        builder.cbranch(builder.icmp_signed(">=", left, _constant(height)), body, rest)
        builder.position_at_end(body)
        _tile(builder, kernel, height, strips, {**at, "a": a, "c": c})
        left.add_incoming(builder.sub(left, _constant(height)), builder.block)
        a.add_incoming(builder.add(a, builder.mul(at["row_bytes"], _constant(height))), builder.block)
        c.add_incoming(builder.add(c, builder.mul(at["c_row_bytes"], _constant(height))), builder.block)
        builder.branch(check)
        builder.position_at_end(rest)
        count, at = left, {**at, "a": a, "c": c}


def _panel(kernel: Kernel) -> Any:
    names = ("a", "row_bytes", "w", "strip_bytes", "groups", "first", "c", "c_row_bytes")

    def panel(context, rows, strips, a, row_bytes, w, strip_bytes, groups, first, c, c_row_bytes):  # type: ignore[no-untyped-def]
        """c[r, j] (int32) = first[j] + a[r, :] w[:, j] for `rows` rows and 16 x `strips` columns."""

        def body(builder: Builder, arguments: Sequence[Value]) -> None:
            count, wide, *rest = arguments
            at = dict(zip(names, rest, strict=True))
            end = builder.append_basic_block("end")
            choice = builder.switch(wide, end)
            for strips in range(1, kernel.strips + 1):
                block = builder.append_basic_block(f"strips{strips}")
                choice.add_case(_constant(strips), block)
                builder.position_at_end(block)
                _rows(builder, kernel, strips, at, count)
                builder.branch(end)
            builder.position_at_end(end)

        def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
            _call_once(builder, f"accelsim_panel_{kernel.name}", body, arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), emit

    panel.__name__ = f"panel_{kernel.name}"
    return intrinsic(panel)


panel_avx512_vnni = _panel(AVX512_VNNI)
panel_avx_vnni = _panel(AVX_VNNI)
panel_avx2 = _panel(AVX2)
panel_portable = _panel(PORTABLE)


# --- requantize a block -----------------------------------------------------------------------------------------------

W32, W64, F32 = _vector(I32, LANES), _vector(I64, LANES), _vector(ir.FloatType(), LANES)
PAIRS = _vector(I64, LANES // 2)
FINISH_WIDE, FINISH_HIGH = 4, 8
"""Codes of `finish`: rounding with float32 scales, 4 + rounding with integer ones, 8 + rounding if all shifts >= 32."""


def _unary(builder: Builder, name: str, x: Value) -> Value:
    return _call(builder, f"llvm.{name}.v{LANES}f32", F32, [x])


class _Rounder:
    """Rounding of one register of 16 elements; `noise()` gives <16 x i64> random bits for stochastic rounding."""

    def __init__(self, builder: Builder, rounding: int, noise: Callable[[], Value]) -> None:
        self.b, self.rounding, self.noise = builder, rounding, noise

    def real(self, x: Value) -> Value:
        """float32 -> float32 of integral value: `rounding.rounded_float`."""
        b = self.b
        if self.rounding == HALF_EVEN:
            return _unary(b, "rint", x)
        if self.rounding == HALF_AWAY:
            whole = _unary(b, "trunc", x)
            far = b.fcmp_ordered(">=", _unary(b, "fabs", b.fsub(x, whole)), _all(F32, 0.5))
            step = _call(b, f"llvm.copysign.v{LANES}f32", F32, [_all(F32, 1.0), x])
            return b.select(far, b.fadd(whole, step), whole)
        floor = _unary(b, "floor", x)
        if self.rounding == FLOOR:
            return floor
        uniform = b.fmul(b.uitofp(b.lshr(self.noise(), _all(W64, 40)), F32), _all(F32, 2.0**-24))
        return b.select(b.fcmp_ordered(">", b.fsub(x, floor), uniform), b.fadd(floor, _all(F32, 1.0)), floor)

    def biased(self, product: Value, shift: Value, half: Value, some: Value) -> Value:
        """What an arithmetic shift turns into round(product / 2^shift): `rounding.rounded_shift`.

        half: 2^shift / 2 rounded down. some: 1 where shift > 0.
        """
        b, kind = self.b, product.type
        if self.rounding == HALF_AWAY:
            negative = b.and_(b.ashr(product, _all(kind, 63)), some)
            return b.sub(b.add(product, half), negative)
        if self.rounding == HALF_EVEN:
            odd = b.and_(b.ashr(product, shift), some)
            return b.add(b.add(product, b.sub(half, some)), odd)
        if self.rounding == STOCHASTIC:
            bits = b.lshr(b.lshr(self.noise(), _all(kind, 1)), b.sub(_all(kind, 63), shift))
            return b.add(product, bits)
        return product


def _noise(builder: Builder, seed: Value, index: Value) -> Value:
    """<16 x i64> of `rounding.noise` for the elements index, index + 1, ..."""
    b = builder
    lanes = ir.Constant(W64, list(range(1, LANES + 1)))
    z = b.mul(b.add(_splat(b, index, LANES), lanes), _all(W64, 0x9E3779B97F4A7C15))
    z = b.add(z, _splat(b, seed, LANES))
    z = b.mul(b.xor(z, b.lshr(z, _all(W64, 30))), _all(W64, 0xBF58476D1CE4E5B9))
    z = b.mul(b.xor(z, b.lshr(z, _all(W64, 27))), _all(W64, 0x94D049BB133111EB))
    return b.xor(z, b.lshr(z, _all(W64, 31)))


def _integer_halves(builder: Builder, value: Value) -> tuple[Value, Value]:
    """(even lanes, odd lanes) of <16 x i32>, each sign-extended to <8 x i64>."""
    b, pairs = builder, builder.bitcast(value, PAIRS)
    return b.ashr(b.shl(pairs, _all(PAIRS, 32)), _all(PAIRS, 32)), b.ashr(pairs, _all(PAIRS, 32))


def _scaled(builder: Builder, code: int, rounder: _Rounder, sums: Value, column: dict[str, Value]) -> Value:
    """Rounded sums x scale: <16 x float>, <16 x i64>, or <16 x i32> where every shift is 32 or more."""
    b = builder
    if code < FINISH_WIDE:
        return rounder.real(b.fmul(b.sitofp(sums, F32), column["scale"]))
    if code < FINISH_HIGH:
        shift, some = b.zext(column["shift"], W64), b.zext(column["some"], W64)
        half = b.lshr(b.shl(_all(W64, 1), shift), _all(W64, 1))
        product = b.mul(b.sext(sums, W64), b.sext(column["multiplier"], W64))
        return b.ashr(rounder.biased(product, shift, half, some), shift)
    one, top = _all(PAIRS, 1), _all(PAIRS, 0xFFFFFFFF00000000)
    even, odd = (
        rounder.biased(b.mul(x, m), shift, b.lshr(b.shl(one, shift), one), one)
        for x, m, shift in zip(
            _integer_halves(b, sums),
            _integer_halves(b, column["multiplier"]),
            _integer_halves(b, column["shift"]),
            strict=True,
        )
    )
    upper = b.bitcast(b.or_(b.lshr(even, _all(PAIRS, 32)), b.and_(odd, top)), W32)
    return b.ashr(upper, b.sub(column["shift"], _all(W32, 32)))


def _clamped(builder: Builder, x: Value, lowest: Value, highest: Value, saturated: Value) -> tuple[Value, Value]:
    """(x within its bounds as <16 x i32>, saturated plus the number of lanes that were outside)."""
    b = builder
    if x.type == F32:
        lowest, highest = (_splat(b, b.sitofp(v, ir.FloatType()), LANES) for v in (lowest, highest))
        y = b.select(b.fcmp_ordered("<", x, lowest), lowest, x)
        y = b.select(b.fcmp_ordered(">", y, highest), highest, y)
        moved, y = b.fcmp_unordered("!=", x, y), b.fptosi(y, W32)
    else:
        lowest, highest = (_splat(b, b.trunc(v, x.type.element), LANES) if x.type == W32 else _splat(b, v, LANES)
                           for v in (lowest, highest))  # fmt: skip
        y = b.select(b.icmp_signed("<", x, lowest), lowest, x)
        y = b.select(b.icmp_signed(">", y, highest), highest, y)
        moved = b.icmp_signed("!=", x, y)
        y = y if x.type == W32 else b.trunc(y, W32)
    count = b.ctpop(b.bitcast(moved, I16))
    return y, b.add(saturated, b.zext(count, I64))


BYTES = _vector(I8, LANES)
ROW = _vector(I8, 64)


def _look_up(builder: Builder, table: Value, values: Value) -> Value:
    """table[values] for a vector of bytes taken as unsigned; by byte permutes where the processor has them."""
    b, lanes = builder, values.type.count
    if "avx512vbmi" in target_features():
        parts = [_load(b, b.add(table, _constant(64 * i)), ROW) for i in range(4)]
        undefined = ir.Constant(values.type, ir.Undefined)
        spread = ir.Constant(_vector(I32, 64), [i % lanes for i in range(64)])
        wide = values if lanes == 64 else b.shuffle_vector(values, undefined, spread)
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        lower = _call(b, name, ROW, [parts[0], wide, parts[1]])
        upper = _call(b, name, ROW, [parts[2], wide, parts[3]])
        found = b.select(b.icmp_signed("<", wide, _all(ROW, 0)), upper, lower)
        if lanes == 64:
            return found
        return b.shuffle_vector(
            found, ir.Constant(ROW, ir.Undefined), ir.Constant(_vector(I32, lanes), list(range(lanes)))
        )
    found = ir.Constant(values.type, ir.Undefined)
    for i in range(lanes):
        place = ir.Constant(I32, i)
        at = b.add(table, b.zext(b.extract_element(values, place), I64))
        found = b.insert_element(found, _load(b, at, I8), place)
    return found


def _repeat(
    builder: Builder, count: Value, carried: Sequence[Value], body: Callable[[Value, list[Value]], Sequence[Value]]
) -> list[Value]:
    """for i = 0, 1, ... count - 1: carried = body(i, carried); returns what is carried out. count may be 0."""
    b, before = builder, builder.block
    loop, end = b.append_basic_block("loop"), b.append_basic_block("end")
    b.cbranch(b.icmp_signed(">", count, _constant(0)), loop, end)
    b.position_at_end(loop)
    index = b.phi(I64)
    inside = [b.phi(value.type) for value in carried]
    results = list(body(index, inside))
    following = b.add(index, _constant(1))
    for phi, start, result in zip([index, *inside], [_constant(0), *carried], [following, *results], strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(result, b.block)
    last = b.block
    b.cbranch(b.icmp_signed("<", following, count), loop, end)
    b.position_at_end(end)
    outside = []
    for start, result in zip(carried, results, strict=True):
        phi = b.phi(start.type)
        phi.add_incoming(start, before)
        phi.add_incoming(result, last)
        outside.append(phi)
    return outside


AT_ONCE = 4
"""Rows whose 16 bytes fill one register of 64, so that one look-up serves them all."""


def _finish_as(builder: Builder, code: int, at: dict[str, Value]) -> Value:
    """`finish` for one code: number of clamped elements."""
    b = builder

    def noise(element: Value) -> Callable[[], Value]:
        return lambda: _noise(b, at["seed"], element)

    def strip(index: Value, saturated: list[Value]) -> list[Value]:
        first = b.mul(index, _constant(LANES))
        words = b.shl(first, _constant(2))
        column = {
            "scale": _load(b, b.add(at["scale"], words), F32),
            "multiplier": _load(b, b.add(at["multiplier"], words), W32),
            "shift": _load(b, b.add(at["shift"], words), W32),
        }
        column["some"] = b.zext(b.icmp_signed(">", column["shift"], _all(W32, 0)), W32)
        whole = _repeat(b, b.sdiv(at["rows"], _constant(AT_ONCE)), saturated, rows_of(AT_ONCE, first, column, None))
        done = b.mul(b.sdiv(at["rows"], _constant(AT_ONCE)), _constant(AT_ONCE))
        return _repeat(b, b.sub(at["rows"], done), whole, rows_of(1, first, column, done))

    def rows_of(count: int, first: Value, column: dict[str, Value], done: Value | None) -> Any:
        def rows(index: Value, carried: list[Value]) -> list[Value]:
            start = b.mul(index, _constant(count)) if done is None else b.add(index, done)
            saturated, results = carried[0], []
            for row in (b.add(start, _constant(i)) for i in range(count)):
                place = b.add(b.shl(first, _constant(2)), b.mul(row, at["sums_row_bytes"]))
                sums = _load(b, b.add(at["sums"], place), W32)
                element = b.add(b.add(at["index"], first), b.mul(row, at["index_row"]))
                rounder = _Rounder(b, code % 4, noise(element))
                x = _scaled(b, code, rounder, sums, column)
                y, saturated = _clamped(b, x, at["lowest"], at["highest"], saturated)
                results.append(b.trunc(b.add(y, _splat(b, b.trunc(at["zero"], I32), LANES)), BYTES))
            with_table = b.icmp_signed("!=", at["table"], _constant(0))
            joined = _choose(b, with_table, lambda: _look_up(b, at["table"], _joined(b, results)), _joined(b, results))
            for i in range(count):
                target = b.add(b.add(at["out"], first), b.mul(b.add(start, _constant(i)), at["out_row_bytes"]))
                _store_bytes(b, _part(b, joined, i), target, b.sub(at["cols"], first))
            return [saturated]

        return rows

    strips = b.sdiv(b.add(at["cols"], _constant(LANES - 1)), _constant(LANES))
    return _repeat(b, strips, [_constant(0)], strip)[0]


def _joined(builder: Builder, parts: list[Value]) -> Value:
    """1, 2 or 4 vectors end to end."""
    while len(parts) > 1:
        lanes = ir.Constant(_vector(I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [builder.shuffle_vector(parts[i], parts[i + 1], lanes) for i in range(0, len(parts), 2)]
    return parts[0]


def _part(builder: Builder, joined: Value, index: int) -> Value:
    """The 16 bytes from 16 `index` on."""
    if joined.type == BYTES:
        return joined
    lanes = ir.Constant(_vector(I32, LANES), list(range(LANES * index, LANES * (index + 1))))
    return builder.shuffle_vector(joined, ir.Constant(joined.type, ir.Undefined), lanes)


def _choose(builder: Builder, condition: Value, make: Callable[[], Value], otherwise: Value) -> Value:
    """make() where the condition holds, else `otherwise`, as a branch."""
    b = builder
    yes, join, before = b.append_basic_block("yes"), b.append_basic_block("join"), b.block
    b.cbranch(condition, yes, join)
    b.position_at_end(yes)
    made = make()
    made_in = b.block
    b.branch(join)
    b.position_at_end(join)
    result = b.phi(otherwise.type)
    result.add_incoming(otherwise, before)
    result.add_incoming(made, made_in)
    return result


def _store_bytes(builder: Builder, values: Value, address: Value, count: Value) -> None:
    """Store the first `count` bytes of a vector, or all of them if there are fewer."""
    b = builder
    whole, ragged, stored = (b.append_basic_block(name) for name in ("whole", "ragged", "stored"))
    b.cbranch(b.icmp_signed(">=", count, _constant(values.type.count)), whole, ragged)
    b.position_at_end(whole)
    _store(b, values, address)
    b.branch(stored)
    b.position_at_end(ragged)

    def one(index: Value, carried: list[Value]) -> list[Value]:
        _store(b, b.extract_element(values, b.trunc(index, I32)), b.add(address, index))
        return carried

    _repeat(b, count, [], one)
    b.branch(stored)
    b.position_at_end(stored)


FINISH_NAMES = (
    "sums", "sums_row_bytes", "rows", "cols", "multiplier", "shift", "scale", "zero", "lowest", "highest", "seed",
    "table", "out", "out_row_bytes", "index", "index_row",
)  # fmt: skip


@intrinsic
def finish(  # type: ignore[no-untyped-def]
    context, code, sums, sums_row_bytes, rows, cols, multiplier, shift, scale, zero, lowest, highest, seed, table, out,
    out_row_bytes, index, index_row
):  # fmt: skip
    """out[r, c] = table[clamp(round(sums[r, c] x scale[c]), lowest, highest) + zero]; returns how many were clamped.

    code: float32 scales 0 + rounding, integer ones 4 + rounding, 8 + rounding where all shifts are >= 32. sums int32,
    in rows of a multiple of 16; multiplier, shift int32 and scale float32, by column, padded to a multiple of 16; out
    bytes. table: address of 256 bytes, or 0. index: flat index of the first element, index_row from row to row.
    """

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        code, *rest = arguments
        at = dict(zip(FINISH_NAMES, rest, strict=True))
        end = builder.append_basic_block("finished")
        codes = [code for code in range(12) if code != FINISH_HIGH + STOCHASTIC]
        bad = builder.append_basic_block("bad")
        choice = builder.switch(code, bad)
        builder.position_at_end(bad)
        builder.branch(end)
        results = [(_constant(0), bad)]
        for known in codes:
            block = builder.append_basic_block(f"code{known}")
            choice.add_case(_constant(known), block)
            builder.position_at_end(block)
            results.append((_finish_as(builder, known, at), builder.block))
            builder.branch(end)
        builder.position_at_end(end)
        total = builder.phi(I64)
        for value, block in results:
            total.add_incoming(value, block)
        return total

    return types.int64(*[types.intp] * 17), emit


@intrinsic
def translate(context, source, target, count, table):  # type: ignore[no-untyped-def]
    """target[i] = table[source[i]] for `count` >= 1 bytes; table: address of 256 bytes."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, target, count, table = arguments
        blocks = b.sdiv(count, _constant(64))
        done = b.mul(blocks, _constant(64))

        def block(index: Value, carried: list[Value]) -> list[Value]:
            at = b.mul(index, _constant(64))
            _store(b, _look_up(b, table, _load(b, b.add(source, at), ROW)), b.add(target, at))
            return carried

        def single(index: Value, carried: list[Value]) -> list[Value]:
            at = b.add(done, index)
            value = b.zext(_load(b, b.add(source, at), I8), I64)
            _store(b, _load(b, b.add(table, value), I8), b.add(target, at))
            return carried

        _repeat(b, blocks, [], block)
        _repeat(b, b.sub(count, done), [], single)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), emit


# --- pack a strip -----------------------------------------------------------------------------------------------------


@intrinsic
def transpose_words(context, source, row_bytes, target):  # type: ignore[no-untyped-def]
    """16 rows of 64 bytes (16 columns of weights, 64 k each, k contiguous) -> 16 groups of a strip, 1024 bytes."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, row_bytes, target = arguments
        rows = [_load(b, b.add(source, b.mul(row_bytes, _constant(i))), W32) for i in range(LANES)]
        width = LANES // 2
        while width:  # swap the off-diagonal blocks of `width` words
            low = [i + (0 if (i // width) % 2 == 0 else LANES - width) for i in range(LANES)]
            high = [i + (width if (i // width) % 2 == 0 else LANES) for i in range(LANES)]
            for i in range(LANES):
                if (i // width) % 2 == 0:
                    x, y = rows[i], rows[i + width]
                    rows[i] = b.shuffle_vector(x, y, ir.Constant(W32, low))
                    rows[i + width] = b.shuffle_vector(x, y, ir.Constant(W32, high))
            width //= 2
        for i, row in enumerate(rows):
            _store(b, row, b.add(target, _constant(64 * i)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), emit


@intrinsic
def interleave_rows(context, source, row_bytes, target):  # type: ignore[no-untyped-def]
    """4 rows of 16 bytes (four k of 16 columns, columns contiguous) -> one group of a strip, 64 bytes."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, row_bytes, target = arguments
        rows = [_load(b, b.add(source, b.mul(row_bytes, _constant(i))), BYTES) for i in range(4)]
        join = ir.Constant(_vector(I32, 32), list(range(32)))
        halves = [b.shuffle_vector(rows[i], rows[i + 1], join) for i in (0, 2)]
        order = [16 * i + c for c in range(LANES) for i in range(4)]
        mixed = b.shuffle_vector(halves[0], halves[1], ir.Constant(_vector(I32, 64), order))
        _store(b, mixed, target)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), emit


@intrinsic
def expand_weights(context, source, target, groups, bits):  # type: ignore[no-untyped-def]
    """`groups` groups of packed 4- or 2-bit weights -> groups of 64 signed bytes.

    Byte i of a packed group holds, from its low end, elements i, i + 32 of the group (4 bits) or i, i + 16, i + 32,
    i + 48 (2 bits).
    """

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, target, groups, bits = arguments
        nibbles, pairs, end = (b.append_basic_block(name) for name in ("nibbles", "pairs", "expanded"))
        b.cbranch(b.icmp_signed("==", bits, _constant(4)), nibbles, pairs)
        for block, width in ((nibbles, 4), (pairs, 2)):
            b.position_at_end(block)

            def group(index: Value, carried: list[Value], width: int = width) -> list[Value]:
                kind = _vector(I8, 8 * width)
                packed = _load(b, b.add(source, b.mul(index, _constant(8 * width))), kind)
                for field in range(8 // width):
                    top = b.shl(packed, _all(kind, 8 - width * (field + 1)))
                    at = b.add(b.mul(index, _constant(64)), _constant(8 * width * field))
                    _store(b, b.ashr(top, _all(kind, 8 - width)), b.add(target, at))
                return carried

            _repeat(b, groups, [], group)
            b.branch(end)
        b.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), emit


@intrinsic
def copy_flipped(context, source, target, count, flip):  # type: ignore[no-untyped-def]
    """target[i] = source[i] ^ flip for `count` bytes, in blocks of 64: up to 63 bytes more are read and written."""

    def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        b = builder
        source, target, count, flip = arguments
        mask = _splat(b, b.trunc(flip, I8), 64)

        def block(index: Value, carried: list[Value]) -> list[Value]:
            at = b.mul(index, _constant(64))
            _store(b, b.xor(_load(b, b.add(source, at), ROW), mask), b.add(target, at))
            return carried

        _repeat(b, b.sdiv(b.add(count, _constant(63)), _constant(64)), [], block)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), emit


# --- the limit --------------------------------------------------------------------------------------------------------


def _peak(kernel: Kernel) -> Any:
    @intrinsic
    def peak(context, rounds):  # type: ignore[no-untyped-def]
        """`rounds` x 4 x `peak_registers` dot products on registers alone; returns a number that depends on them."""

        def emit(context: Any, builder: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
            b, words = builder, _vector(I32, kernel.lanes)
            seed = _splat(b, b.trunc(arguments[0], I32), kernel.lanes)
            inputs, weights = kernel.inputs(b, seed), kernel.weights(b, seed)

            def four(index: Value, sums: list[Value]) -> list[Value]:
                for _ in range(4):
                    sums = [kernel.dot(b, value, inputs, weights) for value in sums]
                return sums

            sums = _repeat(b, arguments[0], [_all(words, i) for i in range(peak_registers(kernel))], four)
            total = sums[0]
            for value in sums[1:]:
                total = b.xor(total, value)
            return b.sext(b.extract_element(total, ir.Constant(I32, 0)), I64)

        return types.int64(types.intp), emit

    return peak


def peak_registers(kernel: Kernel) -> int:
    """Sums that the largest tile of a path holds in registers."""
    return kernel.rows[0] * kernel.strips * LANES // kernel.lanes


peak_avx512_vnni = _peak(AVX512_VNNI)
peak_avx_vnni = _peak(AVX_VNNI)
