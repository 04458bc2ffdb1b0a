"""Exact integer kernels: the numbers an integer accelerator computes for BERT, bit for bit, at this processor's speed.

    >>> import numpy as np
    >>> from accelsim import numerics
    >>> w = numerics.PackedWeights.pack(np.array([[1, -2], [3, 4]], np.int8), bits=4)
    >>> numerics.gemm(np.array([[10, 20]], np.int8), w).tolist()
    [[-30, 110]]

Files in the order data flows: `paths` (which instructions), `llvm` (inner loops), `rounding` (what a rounding mode
means), `scaling` (sums to 8 bits), `weights` (packing), `loops` and `product` (GEMM), then the row operators: `rowcode`
(their inner loops), `approximation` (I-BERT's polynomials), `softmax`, `layernorm`, `elementwise`.
"""

from accelsim.numerics.arrays import Quantized
from accelsim.numerics.elementwise import (
    EmbeddingSum,
    FunctionTable,
    GeluPolynomial,
    GeluTable,
    ResidualAdd,
    add,
    embedding_sum,
    gelu,
    gelu_sums,
)
from accelsim.numerics.layernorm import LayerNormFixed, LayerNormIBert, layer_norm
from accelsim.numerics.paths import available, select
from accelsim.numerics.product import gemm, gemm_requantized, matmul, matmul_requantized
from accelsim.numerics.rounding import Rounding, ScaleFormat
from accelsim.numerics.scaling import Requantizer, dequantize, requantize
from accelsim.numerics.softmax import SoftmaxPolynomial, SoftmaxTable, softmax
from accelsim.numerics.weights import PackedWeights

__all__ = [
    "EmbeddingSum",
    "FunctionTable",
    "GeluPolynomial",
    "GeluTable",
    "LayerNormFixed",
    "LayerNormIBert",
    "PackedWeights",
    "Quantized",
    "Requantizer",
    "ResidualAdd",
    "Rounding",
    "ScaleFormat",
    "SoftmaxPolynomial",
    "SoftmaxTable",
    "add",
    "available",
    "dequantize",
    "embedding_sum",
    "gelu",
    "gelu_sums",
    "gemm",
    "gemm_requantized",
    "layer_norm",
    "matmul",
    "matmul_requantized",
    "requantize",
    "select",
    "softmax",
]
