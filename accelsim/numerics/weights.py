"""Weight matrices of 8, 4 or 2 bits, packed once for the GEMM and kept as safetensors."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from accelsim.errors import Infeasible, SpecError
from accelsim.files import read_safetensors, write_whole
from accelsim.numerics.arrays import as_numpy, real_numbers
from accelsim.numerics.llvm import LANES

WEIGHT_RANGES = {8: (-128, 127), 4: (-8, 7), 2: (-2, 1)}
INT32_MAX = 2**31 - 1
LAYOUT = "accelsim strips 1"
"""Says in a file which layout `strips` has."""


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """A weight matrix as the kernels read it, packed once: w (n, k), as torch.nn.Linear stores it.

    bits: 8, 4 or 2. strips: uint8, (n / 16 up, k / 4 up, 8 bits): a strip of 16 columns holds for every four k 64
    numbers, column by column; of 4 and 2 bits, two and four of them share a byte (`llvm.expand_weights`). zero_points
    (n,) int32: real weight = scale x (w - zero point). scales (n,) float64. bias (n,) int32, in units of a sum. The
    other fields follow: column_sums (n,) int32, sum over k of w; magnitude (n,) int64, sum of |w - zero point|.
    """

    n: int
    k: int
    bits: int
    strips: np.ndarray
    zero_points: np.ndarray
    scales: np.ndarray
    bias: np.ndarray
    column_sums: np.ndarray
    magnitude: np.ndarray
    name: str = "weights"

    @classmethod
    def pack(
        cls, w: Any, *, bits: int, zero_points: Any = 0, scales: Any = 1.0, bias: Any = None, name: str = "weights"
    ) -> PackedWeights:
        """Pack int8 (n, k), any strides. zero_points, scales: one, or one for each of n. bias: int32 (n,).

        name: of the layer, for error messages. Raises SpecError for a value outside `bits`, wrong shapes or dtypes.
        """
        if not isinstance(bits, int | np.integer) or bits not in WEIGHT_RANGES:
            raise SpecError("bits", bits, f"one of {', '.join(map(str, WEIGHT_RANGES))}")
        array = as_numpy(w, f"{name}: w", ("int8",), 2)
        low, high = WEIGHT_RANGES[bits]
        outside = array[(array < low) | (array > high)]
        if outside.size:
            raise SpecError(f"{name}: w", int(outside[0]), f"integers from {low} to {high} for {bits} bits")
        n, k = array.shape
        zeros = _per_column(zero_points, n, f"{name}: zero_points", low, high)
        wide = array.astype(np.int32)
        return cls(
            n=n,
            k=k,
            bits=bits,
            strips=_packed(array, bits),
            zero_points=zeros,
            scales=_scales(scales, n, f"{name}: scales"),
            bias=_bias(bias, n, f"{name}: bias"),
            column_sums=wide.sum(axis=1, dtype=np.int32),
            magnitude=np.abs(wide - zeros[:, None]).sum(axis=1, dtype=np.int64),
            name=name,
        )

    def unpack(self) -> np.ndarray:
        """int8 (n, k): the weights that were packed."""
        fields = 8 // self.bits
        top = [self.strips << np.uint8(8 - self.bits * (i + 1)) for i in range(fields)]
        whole = np.concatenate([part.view(np.int8) >> np.int8(8 - self.bits) for part in top], axis=2)
        strips, groups = whole.shape[:2]
        padded = whole.reshape(strips, groups, LANES, 4).transpose(0, 2, 1, 3).reshape(strips * LANES, groups * 4)
        return np.ascontiguousarray(padded[: self.n, : self.k])

    def with_bias(self, bias: Any) -> PackedWeights:
        """The same weights with another bias, int32 (n,), or none."""
        return replace(self, bias=_bias(bias, self.n, f"{self.name}: bias"))

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights alone."""
        return self.strips.nbytes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: `strips`, `zero_points`, `scales`, `bias`; n, k, bits, name as JSON."""
        from safetensors.numpy import save_file

        tensors = {"strips": self.strips, "zero_points": self.zero_points, "scales": self.scales, "bias": self.bias}
        about = {"layout": LAYOUT, "n": self.n, "k": self.k, "bits": self.bits, "name": self.name}
        text = {"packed_weights": json.dumps(about)}  # one value: the library writes several in any order
        write_whole(Path(path), lambda partial: save_file(tensors, partial, text))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedWeights:
        """Read what `save` wrote. Raises SpecError for a file that is missing, cut short or not of this layout."""
        tensors, about = read_safetensors(path, "packed_weights")
        if about.get("layout") != LAYOUT:
            raise SpecError(f"{path}: layout", about.get("layout"), f"{LAYOUT}, as PackedWeights.save writes")
        n, k, bits = (_stored_size(about, key, path) for key in ("n", "k", "bits"))
        if bits not in WEIGHT_RANGES:
            raise SpecError(f"{path}: bits", bits, f"one of {', '.join(map(str, WEIGHT_RANGES))}")
        strips = (-(-n // LANES), -(-k // 4), 8 * bits)
        for key, dtype, want in (
            ("strips", "uint8", strips),
            ("zero_points", "int32", (n,)),
            ("scales", "float64", (n,)),
            ("bias", "int32", (n,)),
        ):
            _check_array(tensors.get(key), f"{path}: {key}", dtype, want)
        return cls.from_strips(
            tensors.get("strips"),
            n=n,
            k=k,
            bits=bits,
            zero_points=tensors["zero_points"],
            scales=tensors["scales"],
            bias=tensors["bias"],
            name=str(about.get("name", "weights")),
            path=f"{path}: strips",
        )

    @classmethod
    def from_strips(
        cls,
        strips: np.ndarray | None,
        *,
        n: int,
        k: int,
        bits: int,
        zero_points: Any,
        scales: Any,
        bias: Any = None,
        name: str,
        path: str,
    ) -> PackedWeights:
        """Weights from the strips of others, as a file holds them; raises SpecError with `path` for another shape."""
        _check_array(strips, path, "uint8", (-(-n // LANES), -(-k // 4), 8 * bits))
        w = cls(n, k, bits, strips, *(np.zeros(n),) * 5).unpack()  # type: ignore[arg-type]
        return cls.pack(w, bits=bits, zero_points=zero_points, scales=scales, bias=bias, name=name)

    @cached_property
    def kernel_view(self) -> tuple[np.ndarray, ...]:
        """(strips flat, column sums, bias, zero points), padded to whole strips; zero points (1,) where all are 0."""
        zeros = _padded(self.zero_points) if self.zero_points.any() else np.zeros(1, np.int32)
        return self.strips.reshape(-1), _padded(self.column_sums), _padded(self.bias), zeros

    def check_sums(self, largest_input: int) -> None:
        """Raise Infeasible, with the layer's name, if inputs up to this magnitude could overflow an int32 sum."""
        if largest_input not in self._checked:
            bound = int((self.magnitude * largest_input + np.abs(self.bias.astype(np.int64))).max())
            if bound > INT32_MAX:
                raise Infeasible(
                    f"{self.name}: gemm k = {self.k}: largest sum",
                    bound,
                    INT32_MAX,
                    "in an int32",
                    ("k", "bits", "bias"),
                )
            self._checked.add(largest_input)

    @cached_property
    def _checked(self) -> set[int]:
        return set()


def _aligned_bytes(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 array at an address that is a multiple of 64."""
    size = int(np.prod(shape))
    raw = np.empty(size + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].reshape(shape)


def _packed(w: np.ndarray, bits: int) -> np.ndarray:
    """(n, k) int8 -> strips, as `PackedWeights` describes them."""
    n, k = w.shape
    strips, groups = -(-n // LANES), -(-k // 4)
    padded = np.zeros((strips * LANES, groups * 4), np.int8)
    padded[:n, :k] = w
    whole = padded.reshape(strips, LANES, groups, 4).transpose(0, 2, 1, 3).reshape(strips, groups, 64).view(np.uint8)
    result = _aligned_bytes((strips, groups, 8 * bits))
    result[:] = 0
    for i in range(8 // bits):
        part = whole[:, :, 8 * bits * i : 8 * bits * (i + 1)] & np.uint8(2**bits - 1)
        result |= part << np.uint8(bits * i)
    return result


def _padded(values: np.ndarray) -> np.ndarray:
    result = np.zeros(-(-values.size // LANES) * LANES, np.int32)
    result[: values.size] = values
    return result


def _per_column(values: Any, n: int, name: str, low: int, high: int) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or array.ndim > 1 or array.size not in (1, n):
        raise SpecError(name, f"{array.dtype} {array.shape}", f"one integer, or {n}")
    if array.min() < low or array.max() > high:
        raise SpecError(name, int(array.min() if array.min() < low else array.max()), f"integers from {low} to {high}")
    return np.array(np.broadcast_to(array.reshape(-1), n), np.int32)


def _scales(values: Any, n: int, name: str) -> np.ndarray:
    array = real_numbers(values, name, f"one number, or {n}")
    if array.ndim > 1 or array.size not in (1, n):
        raise SpecError(f"{name}: shape", array.shape, f"one number, or {n}")
    bad = np.extract(~(np.isfinite(array) & (array > 0)), array)
    if bad.size:
        raise SpecError(name, float(bad[0]), "finite numbers > 0")
    return np.array(np.broadcast_to(array.reshape(-1), n))


def _bias(bias: Any, n: int, name: str) -> np.ndarray:
    if bias is None:
        return np.zeros(n, np.int32)
    array = as_numpy(bias, name, ("int32",), 1)
    if array.size != n:
        raise SpecError(f"{name}: shape", array.shape, f"({n},)")
    return array.copy()


def _check_array(array: np.ndarray | None, path: str, dtype: str, shape: tuple[int, ...]) -> None:
    if array is None or array.dtype.name != dtype or array.shape != shape:
        found = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise SpecError(path, found, f"{dtype} {shape}")


def _stored_size(about: dict[str, Any], key: str, path: str | os.PathLike[str]) -> int:
    size = about.get(key)
    if type(size) is not int or not 1 <= size < 2**31:
        raise SpecError(f"{path}: {key}", size, "an integer >= 1")
    return size
