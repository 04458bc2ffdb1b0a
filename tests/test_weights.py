"""Are packed weights those that were given: unpacked again, kept on disk, and refused where they cannot be?"""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from accelsim import SpecError
from accelsim.numerics import PackedWeights, gemm, weights
from accelsim.numerics.weights import LAYOUT, WEIGHT_RANGES
from tests.integers import LAYOUTS, exact, laid_out, numbers

FIELDS = ("strips", "zero_points", "scales", "bias", "column_sums", "magnitude")


def some(rng, n, k, bits, layout="plain"):
    low, high = WEIGHT_RANGES[bits]
    w = laid_out(numbers(rng, "int8", (n, k), low, high), layout)
    zeros = rng.integers(low, high + 1, n)
    bias = rng.integers(-(2**31), 2**31, n, dtype=np.int32)
    return w, PackedWeights.pack(w, bits=bits, zero_points=zeros, scales=rng.uniform(1e-9, 9, n), bias=bias, name="é 0")


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([8, 4, 2]), st.integers(1, 70), st.integers(1, 140), st.sampled_from(LAYOUTS), st.integers(0, 2**32)
)
def test_pack_and_unpack(bits, n, k, layout, seed):
    w, packed = some(np.random.default_rng(seed), n, k, bits, layout)
    np.testing.assert_array_equal(packed.unpack(), w)
    assert packed.unpack().dtype == np.int8
    assert packed.strips.shape == (-(-n // 16), -(-k // 4), 8 * bits)
    assert packed.nbytes == packed.strips.size == -(-n // 16) * 16 * -(-k // 4) * 4 * bits // 8
    assert packed.strips.ctypes.data % 64 == 0
    wide = w.astype(np.int64)
    assert packed.column_sums.tolist() == wide.sum(axis=1).tolist()
    assert packed.magnitude.tolist() == np.abs(wide - packed.zero_points[:, None]).sum(axis=1).tolist()


def test_where_each_weight_lies():
    """8 bits: byte (strip, group, 4 column + i) is w[16 strip + column, 4 group + i], and zero beyond the matrix."""
    w = np.arange(-100, 100, dtype=np.int8).reshape(20, 10)
    strips = PackedWeights.pack(w, bits=8).strips.view(np.int8)
    for s, g, byte in np.ndindex(strips.shape):
        n, k = 16 * s + byte // 4, 4 * g + byte % 4
        assert strips[s, g, byte] == (w[n, k] if n < 20 and k < 10 else 0)
    half = PackedWeights.pack(np.array([[1, -2, 3, -4], *[[5, -6, 7, -8]] * 8], np.int8), bits=4)
    assert half.strips.shape == (1, 1, 32)  # the low nibbles hold columns 0 to 7, the high ones 8 to 15
    assert half.strips[0, 0, :4].tolist() == [0x51, 0xAE, 0x73, 0x8C]
    quarter = PackedWeights.pack(np.repeat(np.array([[1, -1], [-2, 0]], np.int8), 8, axis=0), bits=2)
    assert quarter.strips[0, 0].tolist() == [0b10_10_01_01, 0b00_00_11_11, 0, 0] * 4


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 4), (17, 5), (33, 131)])
def test_saved_and_loaded(tmp_path, bits, n, k):
    _, packed = some(np.random.default_rng(0), n, k, bits)
    path = tmp_path / "w.safetensors"
    packed.save(path)
    assert [f.name for f in tmp_path.iterdir()] == ["w.safetensors"]
    again = PackedWeights.load(path)
    assert (again.n, again.k, again.bits, again.name) == (n, k, bits, "é 0")
    for field in FIELDS:
        was, now = getattr(packed, field), getattr(again, field)
        assert now.dtype == was.dtype, field
        np.testing.assert_array_equal(now, was, field)


def test_torch_tensors_are_read_without_a_copy(monkeypatch):
    torch = pytest.importorskip("torch")
    seen = []
    pack = weights._packed
    monkeypatch.setattr(weights, "_packed", lambda w, bits: seen.append(w.ctypes.data) or pack(w, bits))
    w = torch.arange(-60, 60, dtype=torch.int8).reshape(10, 12)
    for x in (w, w.T, w[::2, 1:]):
        bias = torch.arange(x.shape[0], dtype=torch.int32)
        packed = PackedWeights.pack(x, bits=8, bias=bias, scales=torch.full((x.shape[0],), 0.5), zero_points=bias)
        assert seen[-1] == x.data_ptr()
        np.testing.assert_array_equal(packed.unpack(), x.numpy())
        assert packed.bias.tolist() == packed.zero_points.tolist() == bias.tolist()


def test_packed_once_and_for_all():
    """What happens to the caller's arrays afterwards changes nothing."""
    w, bias, zeros, scales = np.ones((2, 3), np.int8), np.ones(2, np.int32), np.ones(2, np.int32), np.ones(2)
    packed = PackedWeights.pack(w, bits=8, bias=bias, zero_points=zeros, scales=scales)
    another = packed.with_bias(bias)
    for array in (w, bias, zeros, scales):
        array[...] = 100
    assert packed.unpack().tolist() == [[1] * 3] * 2
    for kept in (packed, another):
        assert kept.bias.tolist() == kept.zero_points.tolist() == kept.scales.tolist() == [1, 1]
        assert gemm(np.full((1, 3), 5, np.int8), kept).tolist() == [[1, 1]]


def test_another_bias():
    w = np.array([[1, 2], [3, 4]], np.int8)
    packed = PackedWeights.pack(w, bits=4, bias=np.array([7, 8], np.int32), zero_points=[1, 0])
    a = np.array([[5, 6]], np.int8)
    zeros = np.array([1, 0])
    for bias in ([-1, 2], None):
        other = packed.with_bias(None if bias is None else np.array(bias, np.int32))
        assert gemm(a, other).tolist() == exact(a, w.T, 0, zeros, 0 if bias is None else np.array(bias)).tolist()
    assert packed.bias.tolist() == [7, 8]


# --- bad input --------------------------------------------------------------------------------------------------------

GOOD = {"w": np.ones((2, 3), np.int8), "bits": 8, "name": "query"}
BAD = [
    ({"w": np.full((2, 3), 8, np.int8), "bits": 4}, "query: w: got 8, want integers from -8 to 7 for 4 bits"),
    ({"w": np.full((2, 3), -9, np.int8), "bits": 4}, "query: w: got -9, want integers from -8 to 7 for 4 bits"),
    ({"w": np.full((2, 3), 2, np.int8), "bits": 2}, "query: w: got 2, want integers from -2 to 1 for 2 bits"),
    ({"w": np.full((2, 3), -3, np.int8), "bits": 2}, "query: w: got -3, want integers from -2 to 1 for 2 bits"),
    ({"w": np.ones((2, 3), np.uint8)}, "query: w: dtype: got 'uint8', want one of int8"),
    ({"w": np.ones((2, 3))}, "query: w: dtype: got 'float64', want one of int8"),
    ({"w": [[1, 2]]}, "query: w: dtype: got 'int64', want one of int8"),
    ({"w": np.ones(3, np.int8)}, "query: w: shape: got (3,), want 2 dimensions"),
    ({"w": np.ones((2, 0), np.int8)}, "query: w: shape: got (2, 0), want every dimension >= 1"),
    ({"bits": 3}, "bits: got 3, want one of 8, 4, 2"),
    ({"bits": "8"}, "bits: got '8', want one of 8, 4, 2"),
    ({"bits": 8.0}, "bits: got 8.0, want one of 8, 4, 2"),
    ({"bits": [8]}, "bits: got [8], want one of 8, 4, 2"),
    ({"zero_points": [1, 2, 3]}, "query: zero_points: got 'int64 (3,)', want one integer, or 2"),
    ({"zero_points": 1.0}, "query: zero_points: got 'float64 ()', want one integer, or 2"),
    ({"zero_points": 128}, "query: zero_points: got 128, want integers from -128 to 127"),
    ({"zero_points": [0, -9], "bits": 4}, "query: zero_points: got -9, want integers from -8 to 7"),
    ({"scales": [1.0, 2.0, 3.0]}, "query: scales: shape: got (3,), want one number, or 2"),
    ({"scales": 0.0}, "query: scales: got 0.0, want finite numbers > 0"),
    ({"scales": [1.0, np.nan]}, "query: scales: got nan, want finite numbers > 0"),
    ({"scales": [1.0, -np.inf]}, "query: scales: got -inf, want finite numbers > 0"),
    ({"scales": "one"}, "query: scales: got 'one', want one number, or 2"),
    ({"bias": np.ones(2, np.int64)}, "query: bias: dtype: got 'int64', want one of int32"),
    ({"bias": np.ones(2)}, "query: bias: dtype: got 'float64', want one of int32"),
    ({"bias": np.ones(3, np.int32)}, "query: bias: shape: got (3,), want (2,)"),
    ({"bias": np.ones((2, 1), np.int32)}, "query: bias: shape: got (2, 1), want 1 dimensions"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_weights(change, message):
    with pytest.raises(SpecError) as caught:
        PackedWeights.pack(**{**GOOD, **change})
    assert message in str(caught.value)


@pytest.fixture
def saved(tmp_path):
    """A good file's path, its tensors and its metadata."""
    _, packed = some(np.random.default_rng(1), 17, 5, 4)
    path = tmp_path / "w.safetensors"
    packed.save(path)
    tensors = {name: getattr(packed, name) for name in ("strips", "zero_points", "scales", "bias")}
    return path, tensors, {"layout": LAYOUT, "n": 17, "k": 5, "bits": 4, "name": "w"}


def about_text(about):
    return {"packed_weights": json.dumps(about)}


def refused(path, message):
    with pytest.raises(SpecError) as caught:
        PackedWeights.load(path)
    assert str(path) in str(caught.value) or "w:" in str(caught.value)
    assert message in str(caught.value)


def test_a_file_cut_short_anywhere(saved):
    path, _, _ = saved
    whole = path.read_bytes()
    for size in {*range(0, len(whole), 37), 7, 8, 9, len(whole) - 1}:
        path.write_bytes(whole[:size])
        refused(path, "want a complete safetensors file")


def test_a_file_with_a_broken_header(saved):
    path, _, _ = saved
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    for broken in (
        struct.pack("<Q", 2**62) + whole[8:],
        whole[:8] + b"\xff" * length + whole[8 + length :],
        whole + b"\0",
        b"PK\x03\x04" + bytes(5000),
    ):
        path.write_bytes(broken)
        refused(path, "want a complete safetensors file")
    header["strips"]["shape"] = [10**6, 10**6, 10**6]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    refused(path, "want a complete safetensors file")


def test_the_same_weights_make_the_same_file(saved):
    path, _, _ = saved
    again = path.with_name("again.safetensors")
    PackedWeights.load(path).save(again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 10**5])
def test_a_file_that_describes_itself_in_no_way(saved, text):
    path, tensors, _ = saved
    save_file(tensors, path, {"packed_weights": text})
    refused(path, "")


def test_no_file(tmp_path):
    refused(tmp_path / "w.safetensors", "want a readable file")
    refused(tmp_path, "want a readable file")


WRONG_ABOUT = [
    ({"layout": None}, "layout: got None, want accelsim strips 1"),
    ({"layout": "accelsim strips 2"}, "layout: got 'accelsim strips 2'"),
    ({"n": None}, "n: got None, want an integer >= 1"),
    ({"n": 0}, "n: got 0, want an integer >= 1"),
    ({"k": -5}, "k: got -5, want an integer >= 1"),
    ({"k": 5.0}, "k: got 5.0, want an integer >= 1"),
    ({"k": 10**40}, "k: got 1000"),
    ({"bits": 3}, "bits: got 3, want one of 8, 4, 2"),
    ({"bits": 8}, "strips: got 'uint8 (2, 2, 32)', want uint8 (2, 2, 64)"),
    ({"n": 33}, "strips: got 'uint8 (2, 2, 32)', want uint8 (3, 2, 32)"),
    ({"n": 18}, "zero_points: got 'int32 (17,)', want int32 (18,)"),
    ({"k": 9}, "strips: got 'uint8 (2, 2, 32)', want uint8 (2, 3, 32)"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_ABOUT, ids=[m for _, m in WRONG_ABOUT])
def test_a_file_that_says_something_else(saved, change, message):
    path, tensors, about = saved
    kept = {key: value for key, value in {**about, **change}.items() if value is not None}
    save_file(tensors, path, about_text(kept))
    refused(path, message)


WRONG_TENSORS = [
    ({"strips": None}, "strips: got 'nothing', want uint8 (2, 2, 32)"),
    ({"bias": None}, "bias: got 'nothing', want int32 (17,)"),
    ({"bias": np.zeros(17, np.int64)}, "bias: got 'int64 (17,)', want int32 (17,)"),
    ({"scales": np.zeros(16)}, "scales: got 'float64 (16,)', want float64 (17,)"),
    ({"scales": np.full(17, -1.0)}, "scales: got -1.0, want finite numbers > 0"),
    ({"strips": np.zeros((2, 2, 32), np.int8)}, "strips: got 'int8 (2, 2, 32)', want uint8"),
    ({"zero_points": np.full(17, 8, np.int32)}, "zero_points: got 8, want integers from -8 to 7"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_TENSORS, ids=[m for _, m in WRONG_TENSORS])
def test_a_file_with_other_tensors(saved, change, message):
    path, tensors, about = saved
    save_file(
        {key: value for key, value in {**tensors, **change}.items() if value is not None}, path, about_text(about)
    )
    refused(path, message)


def test_a_file_of_another_project(saved):
    """Its tensors may be of types that numpy has not."""
    torch, files = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    path, _, about = saved
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        tensors = {"strips": torch.zeros(2, 2, 32).to(dtype)}
        files.save_file(tensors, path)
        refused(path, "")
        files.save_file(tensors, path, about_text(about))
        refused(path, "")
