"""Are the integers of the matrix products right, on every path, whatever the shape, the memory and the operands?"""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim import Infeasible, SpecError, bim_trace, numerics, systolic_trace
from accelsim.numerics import (
    PackedWeights,
    Requantizer,
    gemm,
    gemm_requantized,
    loops,
    matmul,
    matmul_requantized,
    product,
)
from tests.integers import (
    INT32_MAX,
    LAYOUTS,
    LIMITS,
    PATHS,
    TWO_THREADS,
    exact,
    exact_gemm,
    in_a_process,
    laid_out,
    numbers,
    requantized,
    weights,
)

on_every_path = pytest.mark.parametrize("path", PATHS)
two_threads = pytest.mark.skipif(not TWO_THREADS, reason="numba has one thread here")
JOBS = [pytest.param(path, 1, id=path) for path in PATHS]
JOBS.append(pytest.param(PATHS[0], 2, id=f"{PATHS[0]} on 2 threads", marks=two_threads))
OTHER_JOBS = [pytest.param(p, 2, id=f"{p} on 2 threads", marks=[two_threads, pytest.mark.long]) for p in PATHS[1:]]

TO_INT8 = Requantizer.of(2.0**-9, scale_format="fixed", rounding="half_even", dtype="int8")
TO_UINT8 = Requantizer.of(
    3 * 2.0**-14, scale_format="float32", rounding="half_away", dtype="uint8", zero_point=100, high=250
)


def check(got, want):
    """Integers of the right type and shape, every one equal."""
    assert got.dtype == np.int32
    assert got.shape == want.shape
    np.testing.assert_array_equal(got, want)


def check_fused(got, sums, requantizer):
    want, clamped = requantized(sums, requantizer)
    assert got.values.dtype == want.dtype
    assert got.values.shape == want.shape
    np.testing.assert_array_equal(got.values, want)
    assert got.saturated == clamped


# --- any shape --------------------------------------------------------------------------------------------------------

EDGES_M = (1, 2, 3, 5, 7, 8, 9, 16, 31, 32, 33)
EDGES_K = (1, 2, 3, 4, 5, 63, 64, 65, 68, 127, 128, 131)
EDGES_N = (1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 80, 97)


def size(edges, most):
    return st.one_of(st.sampled_from(edges), st.integers(1, most))


CASES = {
    "m": size(EDGES_M, 70),
    "k": size(EDGES_K, 200),
    "n": size(EDGES_N, 130),
    "lead": st.sampled_from([(), (), (1,), (3,), (2, 3), (2, 1, 2)]),
    "layout": st.sampled_from(LAYOUTS),
    "dtype": st.sampled_from(["int8", "uint8"]),
    "zero_point": st.one_of(st.just(0), st.integers(-128, 255)),
    "seed": st.integers(0, 2**32),
}
GEMM = {"bits": st.sampled_from([8, 4, 2]), "zeros": st.sampled_from(["none", "one", "each"]), "biased": st.booleans()}
MATMUL = {
    "layout_b": st.sampled_from(LAYOUTS),
    "transpose_b": st.booleans(),
    "b_zero_point": st.one_of(st.just(0), st.integers(-128, 127)),
    "stretched": st.sampled_from(["neither", "a", "b", "a has fewer dimensions", "b has fewer dimensions"]),
}


def check_gemm(path, threads, m, k, n, lead, layout, dtype, zero_point, seed, bits, zeros, biased):
    rng = np.random.default_rng(seed)
    low, high = LIMITS[dtype]
    zero = min(max(zero_point, low), high)
    w = weights(rng, n, k, bits, zeros, biased)
    a = laid_out(numbers(rng, dtype, (*lead, m, k)), layout)
    want = exact_gemm(a, w, zero)
    check(gemm(a, w, a_zero_point=zero, threads=threads, path=path), want)
    to_bytes = TO_INT8 if seed % 2 else TO_UINT8
    check_fused(gemm_requantized(a, w, to_bytes, a_zero_point=zero, threads=threads, path=path), want, to_bytes)


def check_matmul(
    path, threads, m, k, n, lead, layout, dtype, zero_point, seed, layout_b, transpose_b, b_zero_point, stretched
):
    rng = np.random.default_rng(seed)
    low, high = LIMITS[dtype]
    zero = min(max(zero_point, low), high)
    shorter = {"a": tuple(1 for _ in lead), "b": tuple(1 for _ in lead)}.get(stretched, lead[1:])
    lead_a = shorter if stretched.startswith("a") else lead
    lead_b = shorter if stretched.startswith("b") else lead
    a = laid_out(numbers(rng, dtype, (*lead_a, m, k)), layout)
    b = laid_out(numbers(rng, "int8", (*lead_b, n, k) if transpose_b else (*lead_b, k, n)), layout_b)
    want = exact(a, b.swapaxes(-1, -2) if transpose_b else b, zero, b_zero_point)
    choice = {"transpose_b": transpose_b, "a_zero_point": zero, "b_zero_point": b_zero_point}
    check(matmul(a, b, **choice, threads=threads, path=path), want)
    to_bytes = TO_INT8 if seed % 2 else TO_UINT8
    check_fused(matmul_requantized(a, b, to_bytes, **choice, threads=threads, path=path), want, to_bytes)


@pytest.mark.parametrize(("path", "threads"), JOBS)
@settings(max_examples=100, deadline=None)
@given(**CASES, **GEMM)
def test_gemm(path, threads, **case):
    check_gemm(path, threads, **case)


@pytest.mark.parametrize(("path", "threads"), JOBS)
@settings(max_examples=100, deadline=None)
@given(**CASES, **MATMUL)
def test_matmul(path, threads, **case):
    check_matmul(path, threads, **case)


LARGER = {
    "m": size(EDGES_M, 300),
    "k": size(EDGES_K, 1000),
    "n": size(EDGES_N, 300),
    "lead": st.sampled_from([(), (2,)]),
}


@pytest.mark.long
@pytest.mark.parametrize(("path", "threads"), [*JOBS, *OTHER_JOBS])
@settings(max_examples=10_000 // len([*JOBS, *OTHER_JOBS]) + 1, deadline=None)
@given(data=st.data())
def test_ten_thousand_shapes(path, threads, data):
    """A third of them large, so that inputs are packed in several blocks."""
    sizes = LARGER if data.draw(st.integers(0, 2)) == 0 else {}
    if data.draw(st.booleans()):
        check_gemm(path, threads, **data.draw(st.fixed_dictionaries({**CASES, **sizes, **GEMM})))
    else:
        check_matmul(path, threads, **data.draw(st.fixed_dictionaries({**CASES, **sizes, **MATMUL})))


@on_every_path
def test_every_edge_of_a_tile(path):
    """Heights of register tiles, widths of strips and panels, groups of four and blocks of 64: every combination."""
    rng = np.random.default_rng(0)
    a = rng.integers(-128, 128, (max(EDGES_M), max(EDGES_K)), dtype=np.int8)
    b = rng.integers(-128, 128, (max(EDGES_N), max(EDGES_K)), dtype=np.int8)
    for k, n in itertools.product(EDGES_K, EDGES_N):
        w = PackedWeights.pack(b[:n, :k], bits=8)
        want = exact(a[:, :k], b[:n, :k].T)
        for m in EDGES_M:
            np.testing.assert_array_equal(gemm(a[:m, :k], w, path=path), want[:m], f"{m} x {k} x {n}")
        np.testing.assert_array_equal(matmul(a[:3, :k], b[:n, :k], transpose_b=True, path=path), want[:3])
        np.testing.assert_array_equal(matmul(a[:3, :k], np.asfortranarray(b[:n, :k].T), path=path), want[:3])
        np.testing.assert_array_equal(matmul(a[:3, :k], np.ascontiguousarray(b[:n, :k].T), path=path), want[:3])


@pytest.mark.parametrize(("path", "threads"), JOBS)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_inputs_that_are_packed_in_several_blocks(path, threads, dtype):
    rng = np.random.default_rng(1)
    w = weights(rng, 70, 1100, 8, "each", biased=True)
    a = numbers(rng, dtype, (2, 323, 1100))
    want = exact_gemm(a, w, 3)
    check(gemm(a, w, a_zero_point=3, threads=threads, path=path), want)
    check_fused(gemm_requantized(a, w, TO_INT8, a_zero_point=3, threads=threads, path=path), want, TO_INT8)


@two_threads
@pytest.mark.parametrize("shape", [(2, 1, 5, 64, 33), (5, 2, 9, 20, 16), (1, 1, 67, 64, 40), (1, 1, 3, 64, 200)])
def test_threads_share_the_batch_the_rows_or_the_columns(shape):
    batch, heads, m, k, n = shape
    rng = np.random.default_rng(2)
    a, b = numbers(rng, "uint8", (batch, heads, m, k)), numbers(rng, "int8", (batch, heads, k, n))
    check(matmul(a, b, a_zero_point=9, b_zero_point=-3, threads=2), exact(a, b, 9, -3))
    w = weights(rng, n, k, 4, "each", biased=True)
    check(gemm(a, w, a_zero_point=9, threads=2), exact_gemm(a, w, 9))


# --- memory -----------------------------------------------------------------------------------------------------------


class Walled:
    """numpy whose `empty` gives arrays between two walls of known bytes."""

    def __init__(self):
        self.rooms = []

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        room = np.full(count + 2 * 4096, 0xA5, np.uint8)
        self.rooms.append(room)
        return room[4096 : 4096 + count].view(dtype).reshape(shape)


@pytest.mark.parametrize(("path", "threads"), JOBS)
def test_nothing_is_written_beyond_the_result(path, threads, monkeypatch):
    walled = Walled()
    monkeypatch.setattr(product, "np", walled)
    rng = np.random.default_rng(3)
    for m, n, zeros in itertools.product((1, 3, 8, 33), (1, 15, 17, 47, 49, 64, 65), ("none", "each")):
        w, a = weights(rng, n, 68, 8, zeros), numbers(rng, "int8", (m, 68))
        check(gemm(a, w, threads=threads, path=path), exact_gemm(a, w))
        check_fused(gemm_requantized(a, w, TO_INT8, threads=threads, path=path), exact_gemm(a, w), TO_INT8)
    assert len(walled.rooms) == 2 * 4 * 7 * 2
    for room in walled.rooms:
        assert (room[:4096] == 0xA5).all()
        assert (room[-4096:] == 0xA5).all()


GUARDED = """
import ctypes, json, mmap, sys
import numpy as np
from accelsim.numerics import PackedWeights, gemm, matmul
from tests.integers import PATHS, exact, exact_gemm

libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE


def between_walls(x, at_end):
    "A copy of x that ends or begins where memory ends or begins: beyond lies a page that must not be touched."
    room = -(-x.size // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for wall in (start, start + PAGE + room):
        assert libc.mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(PAGE), 0) == 0
    offset = PAGE + (room - x.size if at_end else 0)
    result = np.frombuffer(memory, x.dtype, x.size, offset).reshape(x.shape)
    result[...] = x
    return result


rng = np.random.default_rng(0)
wrong = products = 0
for path in PATHS:
    for m, k, n in ((1, 1, 1), (1, 4, 16), (3, 63, 17), (9, 64, 48), (8, 68, 33), (2, 129, 65), (5, 192, 16)):
        for at_end in (True, False):
            for dtype in (np.int8, np.uint8):
                a = between_walls(rng.integers(0, 128, (m, k), dtype=dtype), at_end)
                b = between_walls(rng.integers(-128, 128, (k, n), dtype=np.int8), at_end)
                bt = between_walls(np.ascontiguousarray(b.T), at_end)
                w = PackedWeights.pack(bt, bits=8)
                for back in (1, -1):
                    x = a[::back, ::back]
                    wrong += int((gemm(x, w, path=path) != exact_gemm(x, w)).sum())
                    y, yt = b[::back, ::back], bt[::back, ::back]
                    wrong += int((matmul(x, y, path=path) != exact(x, y)).sum())
                    wrong += int((matmul(x, yt, transpose_b=True, path=path) != exact(x, yt.T)).sum())
                    products += 3
print(json.dumps([wrong, products]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called as Linux has it")
def test_nothing_is_read_beyond_the_operands():
    """In a process of its own, which a touch of the forbidden pages would kill."""
    assert in_a_process(GUARDED) == [0, len(PATHS) * 7 * 2 * 2 * 2 * 3]


@on_every_path
def test_one_version_of_a_kernel_serves_every_layout(path):
    rng = np.random.default_rng(4)
    w = weights(rng, 20, 12, 8)
    for layout in LAYOUTS:
        a, b = (laid_out(numbers(rng, "int8", shape), layout) for shape in ((6, 12), (12, 20)))
        check(gemm(a, w, path=path), exact_gemm(a, w))
        check(matmul(a, b, path=path), exact(a, b))
    serial, parallel = loops.KERNELS[path]
    assert len(serial.overloads) == 1
    assert len(parallel.overloads) <= 1


def test_torch_tensors_are_read_where_they_lie(monkeypatch):
    torch = pytest.importorskip("torch")
    addresses = []
    run = product._run
    monkeypatch.setattr(product, "_run", lambda a, *rest: addresses.append(a.ctypes.data) or run(a, *rest))
    rng = np.random.default_rng(5)
    w = weights(rng, 40, 24, 8)
    b = torch.from_numpy(numbers(rng, "int8", (3, 24, 40)))
    for dtype in ("int8", "uint8"):
        a = torch.from_numpy(numbers(rng, dtype, (3, 24, 10))).transpose(1, 2)
        for x in (a, a.contiguous(), a[:, 1::2]):
            check(matmul(x, b), exact(x, b))
            check(matmul(x, b.transpose(1, 2).contiguous(), transpose_b=True), exact(x, b))
            check(gemm(x[1], w), exact_gemm(x[1], w))
            assert addresses[-3:] == [x.data_ptr(), x.data_ptr(), x[1].data_ptr()]
    with pytest.raises(SpecError, match="requires grad"):
        gemm(torch.ones(2, 24, requires_grad=True), w)


# --- other engines ----------------------------------------------------------------------------------------------------


@on_every_path
def test_against_python_integers(path):
    rng = np.random.default_rng(6)
    for dtype, zero, bits, zeros in itertools.product(("int8", "uint8"), (0, 7), (8, 4, 2), ("none", "each")):
        w = weights(rng, 5, 7, bits, zeros, biased=True)
        a = numbers(rng, dtype, (3, 7))
        terms = w.unpack().tolist(), w.zero_points.tolist(), w.bias.tolist()
        want = [
            [
                sum((x - zero) * (y - z) for x, y in zip(row, column, strict=True)) + c
                for column, z, c in zip(*terms, strict=True)
            ]
            for row in a.tolist()
        ]
        assert gemm(a, w, a_zero_point=zero, path=path).tolist() == want


@on_every_path
@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_against_the_literal_array(path, dataflow):
    rng = np.random.default_rng(7)
    for m, k, n in ((1, 1, 1), (4, 5, 3), (5, 9, 17)):
        a, b = numbers(rng, "int8", (m, k)), numbers(rng, "int8", (k, n))
        trace = systolic_trace(a, b, 3, 4, dataflow)
        check(gemm(a, PackedWeights.pack(b.T, bits=8), path=path), trace.product)
        check(matmul(a, b, path=path), trace.product)


@on_every_path
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_against_the_bit_split_module(path, bits):
    """One output of FQ-BERT's inner-product module is one element of the product."""
    rng = np.random.default_rng(8)
    for dtype in ("int8", "uint8"):
        w, a = weights(rng, 3, 37, bits), numbers(rng, dtype, (2, 37))
        want = [[bim_trace(row, column, 8, bits).value for column in w.unpack()] for row in a]
        assert gemm(a, w, path=path).tolist() == want


def test_against_torch():
    """int64 products in torch, and its own integer product where it has one."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    for m, k, n in ((1, 768, 3), (17, 64, 64), (33, 130, 100)):
        a, b = (torch.from_numpy(numbers(rng, "int8", shape)) for shape in ((m, k), (k, n)))
        got = matmul(a, b)
        check(got, (a.long() @ b.long()).numpy())
        check(got, (a.double() @ b.double()).long().numpy())
        if hasattr(torch, "_int_mm"):
            check(got, torch._int_mm(a, b).numpy())


def onnx_session(operator, inputs, output, shapes):
    """An ONNX Runtime session of one operator; inputs: name -> array."""
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    helper = onnx.helper
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in inputs.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(output))
    node = helper.make_node(operator, list(inputs), ["y"])
    graph = helper.make_graph([node], operator, given, [helper.make_tensor_value_info("y", kind, shapes)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


# Without VNNI, ONNX Runtime adds two products of u8 x s8 in 16 bits, which saturates: weights from -64 to 64 keep it
# exact everywhere.
ONNX_SHAPES = [(1, 64, 16), (17, 63, 33), (32, 256, 100)]


@pytest.mark.parametrize(("m", "k", "n"), ONNX_SHAPES)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_against_matmulinteger_of_onnx_runtime(m, k, n, dtype):
    rng = np.random.default_rng(10)
    a, b = numbers(rng, dtype, (m, k)), numbers(rng, "int8", (k, n), -64, 64)
    a_zero, b_zeros = np.array(5, dtype), numbers(rng, "int8", (n,), -60, 60)
    w = PackedWeights.pack(b.T, bits=8, zero_points=b_zeros)
    inputs = {"a": a, "b": b, "a_zero": a_zero, "b_zero": b_zeros}
    check(gemm(a, w, a_zero_point=5), onnx_session("MatMulInteger", inputs, np.int32, (m, n)))
    inputs["b_zero"] = b_zeros[0]
    check(
        matmul(a, b, a_zero_point=5, b_zero_point=int(b_zeros[0])),
        onnx_session("MatMulInteger", {**inputs, "b_zero": np.array(b_zeros[0])}, np.int32, (m, n)),
    )


@pytest.mark.parametrize(("m", "k", "n"), ONNX_SHAPES)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_against_qlinearmatmul_of_onnx_runtime(m, k, n, dtype):
    """Bit for bit: both turn the sum into float32, multiply by one float32 scale and round half to even.

    The scale must be a_scale x b_scale / y_scale computed in float32, left to right, as ONNX Runtime does; the ONNX
    text leaves that order open. Ours counts what was clamped, theirs does not.
    """
    rng = np.random.default_rng(11)
    a, b = numbers(rng, dtype, (m, k)), numbers(rng, "int8", (k, n), -64, 64)
    scales = [np.float32(x) for x in (0.021, 0.0037, 0.11)]
    scale_a, scale_b, scale_y = scales
    zeros = {"a": np.array(5, dtype), "b": np.array(0, np.int8), "y": np.array(7, dtype)}
    inputs = {
        "a": a, "a_scale": np.array(scale_a), "a_zero": zeros["a"],
        "b": b, "b_scale": np.array(scale_b), "b_zero": zeros["b"],
        "y_scale": np.array(scale_y), "y_zero": zeros["y"],
    }  # fmt: skip
    want = onnx_session("QLinearMatMul", inputs, dtype, (m, n))
    to_bytes = Requantizer.of(
        scale_a * scale_b / scale_y, scale_format="float32", rounding="half_even", dtype=dtype, zero_point=7
    )
    w = PackedWeights.pack(b.T, bits=8)
    np.testing.assert_array_equal(gemm_requantized(a, w, to_bytes, a_zero_point=5).values, want)
    assert len(np.unique(want)) > 3


# --- the worst operands -----------------------------------------------------------------------------------------------

WORST = [("int8", -128, -128), ("int8", -128, 127), ("uint8", 255, -128), ("uint8", 255, 127)]
LARGEST_K = {"int8": INT32_MAX // (128 * 128), "uint8": INT32_MAX // (255 * 128)}
"""131,071 and 65,793: one product more, of the largest magnitudes, and a sum could leave int32."""


@on_every_path
@pytest.mark.parametrize(("dtype", "x", "y"), WORST)
@pytest.mark.parametrize("k", [3072, 4096, "largest"])
def test_the_largest_products_one_after_the_other(path, dtype, x, y, k):
    k = LARGEST_K[dtype] if k == "largest" else k
    a, b = np.full((9, k), x, dtype), np.full((17, k), y, np.int8)
    w = PackedWeights.pack(b, bits=8)
    assert (gemm(a, w, path=path) == x * y * k).all()
    assert (matmul(a, b, transpose_b=True, path=path) == x * y * k).all()
    b[:, k // 2] //= 2  # one odd number among them
    want = x * y * k - x * y + x * (y // 2)
    assert (gemm(a, PackedWeights.pack(b, bits=8), path=path) == want).all()


def test_float32_cannot_hold_these_sums():
    """255 x 127 at k = 3072, one weight smaller by one: the sum needs 27 bits, a float32 has 24."""
    a, b = np.full((1, 3072), 255, np.uint8), np.full((1, 3072), 127, np.int8)
    b[0, 0] = 126
    want = 255 * 127 * 3072 - 255
    assert gemm(a, PackedWeights.pack(b, bits=8)).item() == want
    assert int(np.float32(want)) != want
    assert int((a.astype(np.float32) @ b.T.astype(np.float32)).item()) != want


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_k_too_large_for_int32_is_refused(dtype):
    k = LARGEST_K[dtype]
    a = np.zeros((1, k + 1), dtype)
    b = np.full((1, k + 1), -128, np.int8)
    within = PackedWeights.pack(b[:, :k], bits=8, name="encoder.0.output")
    beyond = PackedWeights.pack(b, bits=8, name="encoder.0.output")
    assert gemm(a[:, :k], within).item() == 0
    demand = (k + 1) * 128 * (128 if dtype == "int8" else 255)
    for call in (lambda: gemm(a, beyond), lambda: gemm_requantized(a, beyond, TO_INT8)):
        with pytest.raises(
            Infeasible, match=rf"encoder\.0\.output: gemm k = {k + 1}: .* {demand} .* 2147483647"
        ) as info:
            call()
        assert info.value.levers == ("k", "bits", "bias")
    assert matmul(a[:, :k], b[:, :k], transpose_b=True).item() == 0
    for call in (lambda: matmul(a, b.T), lambda: matmul_requantized(a, b.T, TO_INT8)):
        with pytest.raises(Infeasible, match=f"matmul k = {k + 1}: .* {demand} "):
            call()


@pytest.mark.parametrize(
    ("dtype", "zero_point", "w_zero", "largest"),
    [
        ("int8", 0, 0, 128 * 128),
        ("int8", 127, 0, 255 * 128),
        ("uint8", 128, 0, 128 * 128),
        ("int8", -128, 3, 255 * 131),
    ],
)
def test_the_bound_counts_bias_and_zero_points(dtype, zero_point, w_zero, largest):
    """What is left beside the products may be the bias, to the last unit; inputs at the far end then give int32's."""
    k = 4
    room = INT32_MAX - k * largest
    low, high = LIMITS[dtype]
    farthest = low if zero_point - low >= high - zero_point else high
    a = np.full((1, k), farthest, dtype)
    w = np.full((1, k), -128, np.int8)
    sign = 1 if farthest < zero_point else -1
    for bias, fits in ((sign * room, True), (sign * (room + 1), False), (-(2**31), False)):
        packed = PackedWeights.pack(w, bits=8, zero_points=w_zero, bias=np.array([bias], np.int32), name="query")
        if fits:
            assert gemm(a, packed, a_zero_point=zero_point).item() == sign * INT32_MAX
        else:
            with pytest.raises(Infeasible, match=r"query: gemm k = 4: largest sum: needs \d+ in an int32"):
                gemm(a, packed, a_zero_point=zero_point)


def test_weights_that_are_small_allow_a_larger_k():
    """The bound is that of these weights, not of all weights of their width."""
    k = 4 * LARGEST_K["int8"]
    w = PackedWeights.pack(np.full((1, k), -2, np.int8), bits=2)
    assert gemm(np.full((1, k), -128, np.int8), w).item() == 256 * k


# --- bad input --------------------------------------------------------------------------------------------------------

A, B = np.ones((2, 3), np.int8), np.ones((3, 4), np.int8)
W = PackedWeights.pack(B.T, bits=8, name="query")
BAD_GEMM = [
    ({"a": A.astype(np.int32)}, "query: a: dtype: got 'int32', want one of int8, uint8"),
    ({"a": A.astype(np.float32)}, "query: a: dtype: got 'float32'"),
    ({"a": A.astype(bool)}, "query: a: dtype: got 'bool'"),
    ({"a": [[1, 2, 3]]}, "query: a: dtype: got 'int64'"),
    ({"a": [[1, 2], [3]]}, "query: a: got 'list', want a numpy array or a torch CPU tensor"),
    ({"a": A[:, :2]}, "query: shape of a: got (2, 2), want (..., 3), as the weights are (n, k) = (4, 3)"),
    ({"a": A[:0]}, "query: a: shape: got (0, 3), want every dimension >= 1"),
    ({"a": A[:, :0]}, "query: a: shape: got (2, 0), want every dimension >= 1"),
    ({"a": np.int8(3)}, "query: shape of a: got ()"),
    ({"a_zero_point": 128}, "query: a_zero_point: got 128, want an integer from -128 to 127"),
    ({"a": A.view(np.uint8), "a_zero_point": -1}, "query: a_zero_point: got -1, want an integer from 0 to 255"),
    ({"a_zero_point": 1.0}, "query: a_zero_point: got 1.0, want an integer"),
    ({"a_zero_point": True}, "query: a_zero_point: got True, want an integer"),
    ({"threads": 0}, "threads: got 0, want an integer from 1 to"),
    ({"threads": 10**6}, "threads: got 1000000, want an integer from 1 to"),
    ({"threads": 1.5}, "threads: got 1.5, want an integer from 1 to"),
]
BAD_MATMUL = [
    ({"a": A.astype(np.int16)}, "a: dtype: got 'int16', want one of int8, uint8"),
    ({"b": B.view(np.uint8)}, "b: dtype: got 'uint8', want one of int8"),
    ({"b": B.T}, "shapes of a and b: got ((2, 3), (4, 3)), want (..., m, k) and (..., k, n)"),
    ({"transpose_b": True}, "shapes of a and b: got ((2, 3), (3, 4)), want (..., m, k) and (..., n, k)"),
    ({"a": A[0]}, "shapes of a and b: got ((3,), (3, 4))"),
    ({"b": B[:, 0]}, "shapes of a and b: got ((2, 3), (3,))"),
    ({"b": B[:, 0], "transpose_b": True}, "shapes of a and b: got ((2, 3), (3,))"),
    (
        {"a": A[None][[0, 0]], "b": B[None][[0, 0, 0]]},
        "leading dimensions of a and b: got ((2,), (3,)), want equal or 1",
    ),
    ({"b": B[:, :0]}, "b: shape: got (3, 0), want every dimension >= 1"),
    ({"b_zero_point": 128}, "b_zero_point: got 128, want an integer from -128 to 127"),
    ({"a_zero_point": -129}, "a_zero_point: got -129, want an integer from -128 to 127"),
]


@pytest.mark.parametrize(("change", "message"), BAD_GEMM, ids=[m for _, m in BAD_GEMM])
def test_bad_input_to_gemm(change, message):
    for call in (gemm, lambda a, **rest: gemm_requantized(a, requantizer=TO_INT8, **rest)):
        with pytest.raises(SpecError) as caught:
            call(**{"a": A, "w": W, **change})
        assert message in str(caught.value)


@pytest.mark.parametrize(("change", "message"), BAD_MATMUL, ids=[m for _, m in BAD_MATMUL])
def test_bad_input_to_matmul(change, message):
    for call in (matmul, lambda a, b, **rest: matmul_requantized(a, b, TO_INT8, **rest)):
        with pytest.raises(SpecError) as caught:
            call(**{"a": A, "b": B, **change})
        assert message in str(caught.value)


def test_a_requantizer_of_another_number_of_columns_is_refused():
    three = Requantizer.of([0.1, 0.2, 0.3], scale_format="fixed", rounding="floor", dtype="int8")
    with pytest.raises(SpecError, match=r"scale: shape: got \(3,\), want 1 or 4 numbers, as there are 4 columns"):
        gemm_requantized(A, W, three)
    assert numerics.gemm_requantized(A, W.with_bias(None), TO_INT8).saturated == 0


@pytest.mark.torch
def test_torch_keeps_its_number_of_threads():
    """numba's and torch's threads may come from one OpenMP library, whose default numba sets when it starts."""
    pytest.importorskip("torch")
    code = (
        "import torch; torch.set_num_threads(1); import numpy as np\n"
        "from accelsim.numerics import PackedWeights, gemm\n"
        "gemm(np.ones((64, 8), np.int8), PackedWeights.pack(np.ones((16, 8), np.int8), bits=8), threads=2)\n"
        "print(torch.get_num_threads())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
