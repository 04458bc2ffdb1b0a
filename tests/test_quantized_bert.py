"""Do the integer executor and the torch reference agree on every bit, and does the reference train as papers say?"""

from __future__ import annotations

import inspect
import math
import sys
import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
from accelsim_models import quantized_bert
from accelsim_models.graphs import graphs
from accelsim_models.quantized_bert import QuantizedBert, clip_of, observing

from accelsim import integers, ops
from accelsim.errors import Infeasible, SpecError
from accelsim.execute import execute
from accelsim.integers import MEANINGS, Site
from accelsim.params import step_in
from accelsim.quantspec import (
    FP32,
    FQ_BERT,
    I_BERT,
    OBSERVERS,
    ROUNDINGS,
    SCALE_FORMATS,
    SPECS,
    W8A8,
    Format,
    QuantSpec,
    with_weight_bits,
)
from accelsim.trace import parameters, trace
from tests.encoders import tiny
from tests.integers import TWO_THREADS
from tests.quantized import (
    HEADS,
    Recipe,
    arrays,
    batch_of,
    bert,
    berts,
    calibrated,
    differing,
    differing_alone,
    encoders,
    seen_by,
)

pytestmark = pytest.mark.torch
INTEGERS = [spec for spec in SPECS.values() if spec.quantized and spec.scope == "all"]
THREADS = (1, 2) if TWO_THREADS else (1,)
few = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """PyTorch's, anew for every test: kernels on two threads set PyTorch's number as well, through OpenMP."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- bit for bit ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert_tiny() -> dict[str, Any]:
    """Weights of a published size, larger than BERT's own so that results are not all near zero."""
    graph = trace("bert-tiny", seq=8, head="sequence-classification")
    rng = np.random.default_rng(0)
    found = {}
    for name, tensor in graph.tensors.items():
        if tensor.role.value == "weight":
            spread = 0.1 if len(tensor.shape) == 1 else 0.08
            ones = len(tensor.shape) == 1 and name.endswith("LayerNorm.weight")
            found[name] = torch.from_numpy(rng.normal(float(ones), spread, tensor.shape).astype(np.float32))
    return found


@pytest.mark.parametrize("spec", INTEGERS, ids=lambda s: s.name)
def test_bert_tiny(spec: QuantSpec, bert_tiny: dict[str, Any]) -> None:
    given_ = batch_of(3, 8, 0)
    model = calibrated(graphs("bert-tiny", "sequence-classification"), bert_tiny, spec, given_)
    assert differing(model, given_) == []


@pytest.mark.parametrize("spec", [FQ_BERT, I_BERT], ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("bert", "AutoModelForPreTraining"),
        ("distilbert", "AutoModelForSequenceClassification"),
        ("albert", "AutoModelForSequenceClassification"),
        ("roberta", "AutoModelForTokenClassification"),
        ("electra", "AutoModelForPreTraining"),
        ("mobilebert", "AutoModelForSequenceClassification"),
        ("roberta-prelayernorm", "AutoModelForQuestionAnswering"),
    ],
)
def test_small_models_of_each_family(family: str, head: str, spec: QuantSpec) -> None:
    module, traced = _module(family, head)
    weights = {name: torch.from_numpy(a.copy()) for name, a in parameters(module).items()}
    for size in ((1, 8), (2, 5)):
        given_ = batch_of(*size, 0)
        model = calibrated(lambda b, s: traced[b, s], weights, spec, given_)
        if family == "mobilebert":  # its products with weights are real numbers
            assert differing_alone(model, given_) == []
        else:
            assert differing(model, given_) == []


_MODULES: dict[str, Any] = {}


def _module(family: str, head: str) -> tuple[Any, Any]:
    """A module and its graphs at the sizes in use."""
    if family not in _MODULES:
        names = ("num_hidden_layers", "n_layers")
        module = tiny(family, head, config={names[family == "distilbert"]: 1})
        _MODULES[family] = module, {size: trace(module, batch=size[0], seq=size[1]) for size in ((1, 8), (2, 5))}
    return _MODULES[family]


@st.composite
def specs(draw: st.DrawFn) -> QuantSpec:
    """Any spec in which everything is an integer."""
    observer = st.sampled_from(OBSERVERS)
    affine = draw(st.booleans())
    norm = draw(st.sampled_from(["fixed", "i-bert"]))
    spec = with_weight_bits(FQ_BERT, draw(st.integers(2, 8)))
    return replace(
        spec,
        name="drawn",
        weights=Format(spec.weights.bits, draw(st.booleans()), draw(st.booleans()), draw(observer)),
        stored_bits=draw(st.sampled_from([b for b in (8, 4, 2) if b >= spec.weights.bits])),
        embeddings=Format(draw(st.integers(4, 8)), True, False, draw(observer)),
        activations=Format(8, not affine, False, draw(observer)),
        activation_outputs=Format(8, draw(st.booleans()), False, draw(observer)),
        scores=Format(draw(st.integers(4, 8)), True, False, draw(observer)),
        probabilities=Format(draw(st.integers(4, 8)), True, False, "abs_max"),
        layer_norm=norm,
        norm_bits=8 if norm == "fixed" else draw(st.sampled_from([8, 16])),
        scale_format=draw(st.sampled_from(SCALE_FORMATS)),
        rounding=draw(st.sampled_from(ROUNDINGS)),
        softmax=draw(st.sampled_from(["table", "polynomial"])),
        softmax_bits=draw(st.integers(8, 16)),
        gelu="table" if affine else draw(st.sampled_from(["table", "polynomial"])),
        percentile=draw(st.sampled_from([0.9, 0.99, 1.0])),
    )


sizes = st.tuples(st.integers(1, 3), st.integers(1, 9))
seeds = st.integers(0, 2**16)


@given(berts(), specs(), sizes, seeds, st.booleans())
@settings(few, max_examples=60)
def test_any_bert_in_any_spec(recipe: Recipe, spec: QuantSpec, size: Any, seed: int, nothing: bool) -> None:
    given_ = batch_of(*size, seed, nothing)
    model = calibrated(recipe, recipe.weights(seed), spec, given_)
    assume_that_it_has_kernels(model)
    assert differing(model, given_) == []


def assume_that_it_has_kernels(model: QuantizedBert) -> None:
    """Steps of drawn numbers may be too far apart for multipliers, or too small for biases: that is refused."""
    params = model.params()
    try:
        for op in model.graph(1, 8).ops:
            integers.integer_kernel(op, model.graph(1, 8), params)
    except SpecError as error:
        if "scale" not in error.path:
            raise
        reject()
    except Infeasible as error:
        if error.unit != "in an int32":
            raise
        reject()


@given(encoders(), specs(), sizes, seeds)
@settings(few, max_examples=60)
def test_any_order_of_ops(recipe: Recipe, spec: QuantSpec, size: Any, seed: int) -> None:
    given_ = batch_of(*size, seed)
    model = calibrated(recipe, recipe.weights(seed), spec, given_)
    assume_that_it_has_kernels(model)
    assert differing_alone(model, given_) == []


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("softmax", "gelu", "norm"), [("table", "table", "fixed"), ("polynomial",) * 2 + ("i-bert",)])
def test_every_rounding_and_scale_format(rounding: str, scale_format: str, softmax: str, gelu: str, norm: str) -> None:
    spec = replace(
        FQ_BERT, name="mine", rounding=rounding, scale_format=scale_format, softmax=softmax, gelu=gelu, layer_norm=norm
    )
    recipe, given_ = bert(2, 36, 3, 50), batch_of(3, 9, 1, nothing=True)
    for per_channel in (False, True):
        weights = replace(spec.weights, per_channel=per_channel)
        model = calibrated(recipe, recipe.weights(1), replace(spec, weights=weights), given_)
        assert differing(model, given_) == []


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("spec", [FQ_BERT, I_BERT], ids=lambda s: s.name)
def test_real_numbers_of_results(spec: QuantSpec, head: str) -> None:
    """`Params.real` of what the executor gives is what the reference returns."""
    recipe, given_ = bert(1, 12, 3, 17, head), batch_of(2, 5, 0)
    model = calibrated(recipe, recipe.weights(0), spec, given_)
    graph, params = model.graph(2, 5), model.params()
    out = execute(graph, params, arrays(given_))
    with torch.no_grad():
        want = model(*given_).numpy()
    name = graph.outputs[0]
    np.testing.assert_array_equal(params.real(graph, name, out[name]).astype(np.float32), want)
    for other in graph.outputs[1:]:  # the second column of the same sums
        scales, _ = params.scale_of(graph, integers.steps_in(graph)[other])
        assert (scales[0] != scales[1]) == spec.weights.per_channel
        np.testing.assert_array_equal(params.real(graph, other, out[other]), out[other] * scales[1])


def test_it_is_found_which_number_is_wrong() -> None:
    """One weight off by one is met at its layer, and at what reads it."""
    recipe, given_ = bert(1, 12, 3, 17), batch_of(2, 5, 0)
    model = calibrated(recipe, recipe.weights(0), FQ_BERT, given_)
    params = model.params()
    name = "8.ffn.weight.up" if "8.ffn.weight.up" in params.weights else next(n for n in params.weights if "up" in n)
    w = params.weights[name]
    values = w.unpack()
    values[0, :] = np.where(values[0, :] > 0, values[0, :] - 1, values[0, :] + 1)
    wrong = type(w).pack(values, bits=w.bits, scales=w.scales, zero_points=w.zero_points, name=name)
    found = differing(model, given_, replace(params, weights={**params.weights, name: wrong}))
    readers = [op.name for op in model.graph(2, 5).ops if name in op.inputs]
    assert found[0] == readers[0]


# --- some operators in float ------------------------------------------------------------------------------------------

ABLATIONS: dict[str, dict[str, Any]] = {
    "softmax": {"softmax": "float"},
    "layer norm": {"layer_norm": "float", "norm_bits": 32},
    "gelu": {"gelu": "float"},
    "embeddings": {"embeddings": FP32.embeddings},
    "softmax and norm": {"softmax": "float", "layer_norm": "float", "norm_bits": 32},
    "all of them": {
        "softmax": "float",
        "layer_norm": "float",
        "gelu": "float",
        "norm_bits": 32,
        "embeddings": FP32.embeddings,
    },
}


@pytest.mark.parametrize("scale_format", ["float32", "scale8"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_operators_in_float(name: str, scale_format: str) -> None:
    """Integers are equal where their inputs are; real results are close."""
    recipe, given_ = bert(2, 36, 3, 50), batch_of(3, 9, 2)
    spec = replace(FQ_BERT, name="mine", scale_format=scale_format, **ABLATIONS[name])
    model = calibrated(recipe, recipe.weights(2), spec, given_)
    assert differing_alone(model, given_) == []
    assert any(model.graph(3, 9).tensors[op.output].dtype.is_float for op in model.graph(3, 9).ops)


def test_linear_layers_alone() -> None:
    recipe, given_ = bert(2, 36, 3, 50), batch_of(3, 9, 2)
    for per_channel in (False, True):
        spec = replace(W8A8, weights=replace(W8A8.weights, per_channel=per_channel))
        model = calibrated(recipe, recipe.weights(2), spec, given_)
        assert differing_alone(model, given_) == []


# --- nothing but integers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [FQ_BERT, I_BERT], ids=lambda s: s.name)
def test_no_real_number_between_ids_and_logits(spec: QuantSpec, bert_tiny: Any, monkeypatch: Any) -> None:
    given_ = batch_of(2, 8, 0)
    model = calibrated(graphs("bert-tiny", "sequence-classification"), bert_tiny, spec, given_)
    graph, params = model.graph(2, 8), model.params()
    kinds: list[tuple[str, list[str]]] = []

    def spied(make: Any) -> Any:
        def build(site: Site) -> Any:
            kernel = make(site)

            def run(*operands: Any, threads: int) -> Any:
                found = kernel(*operands, threads=threads)
                read = [a.dtype.name for a in operands[:1] if isinstance(a, np.ndarray)]
                kinds.append((site.op.operator, [*read, found[0].dtype.name]))
                return found

            return run

        return build

    for kind, make in MEANINGS.items():
        monkeypatch.setitem(MEANINGS, kind, spied(make))
    results: list[tuple[str, str]] = []
    out = execute(graph, params, arrays(given_), watch=lambda op, a, _: results.append((op.name, a.dtype.name)))
    assert [a.dtype.name for a in out.values()] == ["int32"]
    assert len(results) == len(graph.ops)
    assert {dtype for _, dtype in results} == {"bool", "int64", "int8", "uint8", "int32"}
    used = {operator for operator, _ in kinds}
    assert used == {"linear", "matmul", "softmax", "add", "add_layer_norm", "gelu", "tanh"}
    assert {dtype for _, dtypes in kinds for dtype in dtypes} <= {"int8", "uint8", "int32"}


@pytest.mark.parametrize("spec", [FQ_BERT, I_BERT], ids=lambda s: s.name)
def test_runs_and_threads_do_not_matter(spec: QuantSpec) -> None:
    recipe, given_ = bert(2, 66, 3, 64), batch_of(3, 9, 0)
    model = calibrated(recipe, recipe.weights(0), spec, given_)
    graph, params = model.graph(3, 9), model.params()
    runs = []
    for threads in (1, 1, *THREADS):
        seen: list[tuple[str, bytes, int]] = []
        execute(
            graph, params, arrays(given_), threads=threads,
            watch=lambda op, a, clamped: seen.append((op.name, a.tobytes(), clamped)),
        )  # fmt: skip
        runs.append(seen)
    assert all(run == runs[0] for run in runs)


def test_other_sizes_with_the_same_steps() -> None:
    """Calibrated at one size, run at others: kernels do not depend on it, nor do results on what else is there."""
    recipe = bert(1, 36, 3, 50)
    model = calibrated(recipe, recipe.weights(0), FQ_BERT, batch_of(3, 9, 0))
    params = model.params()
    for size in ((1, 1), (2, 7), (3, 16)):
        assert differing(model, batch_of(*size, 5), params) == []
    ids, mask = batch_of(3, 9, 5)
    whole = execute(model.graph(3, 9), params, arrays((ids, mask)))
    one = execute(model.graph(1, 9), params, arrays((ids[1:2], mask[1:2])))
    np.testing.assert_array_equal(next(iter(one.values())), next(iter(whole.values()))[1:2])


# --- wrong meanings ---------------------------------------------------------------------------------------------------

MUTANTS: dict[str, tuple[str, str, set[str]]] = {
    "another rounding in the requantizer": (
        'rounding=spec.rounding,\n        dtype="int8",\n        zero_point=zero,\n        low=low,',
        'rounding="floor",\n        dtype="int8",\n        zero_point=zero,\n        low=low,',
        {"linear", "matmul"},
    ),
    "no bias": ("for name in op.inputs[2:]:", "for name in op.inputs[3:]:", {"linear"}),
    "biases cut off instead of rounded": (
        "found = np.rint(bias.astype(np.float64) / sums_scale)",
        "found = np.trunc(bias.astype(np.float64) / sums_scale)",
        {"linear"},
    ),
    "the second product has no scale": ("a_scale * b_scale)", "a_scale)", {"matmul"}),
    "steps of a sum exchanged": (
        "(x_scale, x_zero), (y_scale, y_zero) = (site.step(n) for n in site.op.inputs)",
        "(y_scale, x_zero), (x_scale, y_zero) = (site.step(n) for n in site.op.inputs)",
        {"add"},
    ),
    "a zero point of the input forgotten": (
        "a_zero_point=zero, threads=threads)\n\n    return requantized",
        "a_zero_point=0, threads=threads)\n\n    return requantized",
        {"linear"},
    ),
    "the zero point of the result forgotten": (
        "zero_point=zero,\n        low=low",
        "zero_point=0,\n        low=low",
        {"linear", "matmul"},
    ),
    "one level more": (
        "levels = 2**spec.probabilities.bits - 1",
        "levels = 2**spec.probabilities.bits - 2",
        {"softmax"},
    ),
    "no mask": ("mask=mask[0] if mask else None", "mask=None", {"softmax"}),
    "a scale of scores forgotten": ("scale * op.scale", "scale", {"softmax"}),
    "scores of 8 bits": ("site.params.spec.scores.bits < 8", "site.params.spec.scores.bits < 4", {"matmul"}),
    "the residual has the step of the sum": (
        "site.step(op.inputs[1]).scale if summed",
        "site.step(op.inputs[0]).scale if summed",
        {"add_layer_norm"},
    ),
    "the residual forgotten": (
        "parameters, residual=residual, threads",
        "parameters, residual=x, threads",
        {"add_layer_norm"},
    ),
    "gamma and beta exchanged": ("gamma, beta = op.inputs[-2:]", "beta, gamma = op.inputs[-2:]", {"add_layer_norm"}),
    "the step of the input for the result of a table": (
        "x_scale=x_scale,\n            out_scale=scale,\n            rounding=spec.rounding,\n            dtype",
        "x_scale=x_scale,\n            out_scale=x_scale,\n            rounding=spec.rounding,\n            dtype",
        {"gelu", "tanh"},
    ),
    "the other GELU": ('op.approximate == "tanh"', 'op.approximate != "tanh"', {"gelu"}),
}


@pytest.fixture(scope="module")
def subject() -> tuple[QuantizedBert, Any]:
    """A model in which everything the mutants touch matters: zero points, few levels, scores of 4 bits, a mask."""
    affine = replace(FQ_BERT.activations, symmetric=False)
    spec = replace(
        FQ_BERT,
        name="mine",
        activations=affine,
        activation_outputs=affine,
        scores=Format(4, True, False, "percentile"),
        percentile=0.9,
        probabilities=replace(FQ_BERT.probabilities, bits=5),
    )
    recipe, given_ = bert(1, 36, 3, 50), batch_of(3, 9, 1)
    recipe = replace(
        recipe, steps=(("start",), ("norm", 0), *recipe.steps[2:-1], ("dropout", 8), ("add", 9, 1), ("add", 9, 10))
    )
    return calibrated(recipe, recipe.weights(4), spec, given_), given_


def test_the_meanings_themselves_pass(subject: Any) -> None:
    assert differing(*subject) == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_meaning_is_caught(name: str, subject: Any, monkeypatch: Any) -> None:
    """At the first op it changes, and alone at the ops of the operators it changes."""
    old, new, operators = MUTANTS[name]
    source = inspect.getsource(integers)
    assert source.count(old) == 1, f"{old!r} must be in integers.py once"
    module = types.ModuleType("wrong_integers")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source.replace(old, new), "wrong_integers", "exec"), module.__dict__)
    model, given_ = subject
    for kind, make in module.MEANINGS.items():
        monkeypatch.setitem(MEANINGS, kind, make)
    names = {op.name: op.operator for op in model.graph(3, 9).ops}
    alone = differing_alone(model, given_, model.params())
    assert {names[n] for n in alone} == operators
    assert differing(model, given_, model.params())[0] == alone[0]


# --- sums that do not fit ---------------------------------------------------------------------------------------------


def test_sums_that_could_leave_their_accumulator_are_refused() -> None:
    """The first layer of k = 36 needs at most 36 x 127 x 127; which has how many bits decides."""
    recipe, given_ = bert(1, 36, 3, 50), batch_of(2, 5, 0)
    for bits in (16, 18, 24, 32):
        spec = replace(I_BERT, name="mine", accumulator_bits=bits)
        model = calibrated(recipe, recipe.weights(0), spec, given_)
        run = (model.graph(2, 5), model.params(), arrays(given_))
        if bits >= 24:
            execute(*run)
            continue
        with pytest.raises(Infeasible, match=rf"attention\.linear\.\d: k = 36: largest sum: needs \d+ in {bits} bits"):
            execute(*run)


def test_the_bound_is_what_the_weights_could_give() -> None:
    """One below the largest sum is refused, the largest sum itself is not."""
    recipe, given_ = bert(1, 36, 3, 50), batch_of(2, 5, 0)
    model = calibrated(recipe, recipe.weights(0), replace(I_BERT, name="mine", accumulator_bits=17), given_)
    params, graph = model.params(), model.graph(2, 5)
    with pytest.raises(Infeasible) as caught:
        execute(graph, params, arrays(given_))
    name = str(caught.value).split(":")[0]
    op = next(op for op in graph.ops if op.name == name)
    w, _ = params.matrix(op.inputs[1]), None
    scale = params.step(integers.steps_in(graph)[op.inputs[0]]).scale
    bias = np.rint(params.arrays[op.inputs[2]].astype(np.float64) / (scale * w.scales))
    assert caught.value.demand == int((np.abs(w.unpack().astype(np.int64)).sum(axis=1) * 128 + np.abs(bias)).max())
    assert "accumulator_bits" in caught.value.levers


def test_products_of_activations_are_bounded_too() -> None:
    """k = 12 of 127 x 128 needs 18 bits and a sign; the layers before are narrow enough."""
    recipe, given_ = Recipe(12, 1, 5, (("start",), ("attention", 0, 0, 0))), batch_of(2, 5, 0)
    spec = replace(with_weight_bits(FQ_BERT, 2), name="mine", accumulator_bits=17)
    model = calibrated(recipe, recipe.weights(0), spec, given_)
    with pytest.raises(Infeasible, match=r"1\.attention\.matmul\.\d+: k = 12: largest sum: needs 196608 in 17 bits"):
        execute(model.graph(2, 5), model.params(), arrays(given_))


@pytest.mark.parametrize(
    ("size", "text"),
    [(2.0**31, "bias: needs 2147483648 in an int32"), (2.0**31 - 1, r"k = 12: largest sum: needs \d+ in 32 bits")],
)
def test_a_huge_bias_is_refused(size: float, text: str) -> None:
    """In steps of the sums: what no int32 holds, and what leaves no room for the products."""
    recipe, given_ = bert(1, 12, 3, 17), batch_of(2, 5, 0)
    weights = recipe.weights(0)
    name = next(n for n in weights if n.endswith("ffn.bias.up"))
    model = calibrated(recipe, weights, FQ_BERT, given_)
    params = model.params()
    graph = model.graph(2, 5)
    op = next(op for op in graph.ops if name in op.inputs)
    scale = params.step(integers.steps_in(graph)[op.inputs[0]]).scale * params.matrix(op.inputs[1]).scales[3]
    bias = params.arrays[name].astype(np.float64)
    bias[3] = size * scale
    params = replace(params, arrays={**params.arrays, name: bias})
    with pytest.raises(Infeasible, match=rf"{op.name}: {text}"):
        integers.integer_kernel(op, graph, params)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(spec: QuantSpec, **options: Any) -> tuple[QuantizedBert, Any]:
    recipe, given_ = bert(2, 24, 3, 50), batch_of(3, 9, 3)
    model = calibrated(recipe, recipe.weights(3), spec, given_, seed=0, **options)
    model.mode = "fake"
    return model, given_


@pytest.mark.parametrize("spec", [*INTEGERS, W8A8], ids=lambda s: s.name)
def test_every_weight_gets_a_gradient(spec: QuantSpec) -> None:
    model, given_ = trained(spec)
    model(*given_).square().sum().backward()
    graph = model.graph(1, 8)
    keys = {n for op in graph.ops if isinstance(op, ops.Linear) and "attention" in op.name for n in op.inputs[2:]}
    for name, w in model.weights.items():
        assert w.grad is not None, name
        assert bool(torch.isfinite(w.grad).all()), name
        known = name.replace("/", ".") in keys and name.endswith("bias/k")
        assert known or float(w.grad.abs().sum()) > 0, name  # softmax does not see the bias of keys


@pytest.mark.parametrize("spec", [FQ_BERT, I_BERT, W8A8], ids=lambda s: s.name)
def test_clips_that_are_learned_get_gradients(spec: QuantSpec) -> None:
    model, given_ = trained(spec, learn_clips=True)
    linear = [n for n, kind in model.kinds.items() if kind == "weights"]
    assert {n.replace("/", ".") for n in model.clips} == set(linear)
    model(*given_).square().sum().backward()
    for name, clip in model.clips.items():
        assert clip.shape == ((model.weights[name].shape[0],) if spec is I_BERT else (1,))
        assert bool(torch.isfinite(clip.grad).all())
        assert float(clip.grad.abs().sum()) > 0, name


def test_learned_clips_change_integers_and_are_kept_in_the_scale_format() -> None:
    model, given_ = trained(replace(FQ_BERT, weights=replace(FQ_BERT.weights, observer="abs_max")), learn_clips=True)
    name = next(n for n, kind in model.kinds.items() if kind == "weights")
    before = model.integers(name).clone()
    with torch.no_grad():
        model.clips[name.replace(".", "/")] -= 0.5
    model.refresh()
    after = model.integers(name)
    model.mode = "exact"
    assert not torch.equal(before, after)
    assert differing(model, given_) == []
    scale = float(model.params().weights[name].scales[0])
    assert scale == step_in(scale, "scale8")


def test_clipped_values_get_no_gradient() -> None:
    x = torch.tensor([-9.0, -1.04, -0.2, 0.0, 0.3, 0.52, 3.0], requires_grad=True)
    y = quantized_bert.fake(x, torch.tensor([0.1]), torch.tensor([0]), -8, 7)
    y.backward(torch.arange(1.0, 8.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 0]
    np.testing.assert_allclose(y.detach().numpy(), [-0.8, -0.8, -0.2, 0, 0.3, 0.5, 0.7], rtol=1e-6)


def test_the_gradient_of_a_step_is_lsqs() -> None:
    """Esser et al., arXiv:1902.08153, equation 3: round(v / s) - v / s inside, -Q_N or Q_P where clipped.

    Inside is what rounds to a legal integer, as for PyTorch's own kernels; the paper clips before it rounds.
    """
    torch.manual_seed(0)
    x, weight = torch.randn(4, 50) * 2, torch.randn(4, 50)
    for shape, axis in (((1,), None), ((4,), 0)):
        s = torch.full(shape, 0.3, requires_grad=True)
        z = torch.zeros(shape, dtype=torch.int64)
        (quantized_bert.fake(x, s, z, -8, 7, axis) * weight).sum().backward()
        v = x.double().numpy() / 0.3
        each = np.where(np.rint(v) < -8, -8.0, np.where(np.rint(v) > 7, 7.0, np.rint(v) - v)) * weight.numpy()
        want = each.sum(axis=1) if axis == 0 else each.sum(keepdims=True)[0]
        assert s.grad is not None
        np.testing.assert_allclose(s.grad.numpy(), want, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_step_with_a_zero_point() -> None:
    x = torch.tensor([-5.0, -0.52, 0.11, 1.13, 9.0])
    s = torch.tensor([0.25], requires_grad=True)
    quantized_bert.fake(x, s, torch.tensor([3]), -8, 7).sum().backward()
    v = x.numpy() / 0.25 + 3
    want = np.where(v < -8, -8.0 - 3, np.where(v > 7, 7.0 - 3, np.rint(v) - v)).sum()
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), [want], rtol=1e-5)


def test_learned_and_fixed_steps_round_the_same() -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 20)
    for z in (0, 2):
        fixed = quantized_bert.fake(x, torch.tensor([0.125]), torch.tensor([z]), -8, 7)
        learned = quantized_bert.fake(x, torch.tensor([0.125], requires_grad=True), torch.tensor([z]), -8, 7)
        torch.testing.assert_close(fixed, learned, rtol=0, atol=0)


@pytest.mark.parametrize("spec", [FQ_BERT, I_BERT, W8A8, SPECS["w6a8"]], ids=lambda s: s.name)
def test_fake_numbers_are_near_the_exact_ones(spec: QuantSpec) -> None:
    recipe, given_ = bert(2, 24, 3, 50, "none"), batch_of(3, 9, 4)
    model = calibrated(recipe, recipe.weights(4), spec, given_)
    found = {}
    for mode in quantized_bert.MODES:
        model.mode = mode
        with torch.no_grad():
            found[mode] = model(*given_).numpy().ravel()
    assert np.corrcoef(found["fake"], found["exact"])[0, 1] > 0.99
    low = 0.85 if spec is FQ_BERT else 0.98
    assert np.corrcoef(found["float"], found["exact"])[0, 1] > low
    assert not np.array_equal(found["fake"], found["float"])


def test_one_step_of_training_lowers_the_loss() -> None:
    model, given_ = trained(FQ_BERT, dropout=0.0)
    target = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        loss = (model(*given_) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


# --- observers --------------------------------------------------------------------------------------------------------


def observed(observer: str, symmetric: bool = True, decay: float = 0.75) -> tuple[QuantizedBert, list[np.ndarray], str]:
    """A model after three batches, and what the batches were at one tensor."""
    form = Format(8, symmetric, False, observer)
    spec = replace(FQ_BERT, name="mine", activations=form, ema_decay=decay, percentile=0.9, scale_format="float32")
    recipe = bert(1, 12, 3, 17)
    model = QuantizedBert(recipe, recipe.weights(0), spec).eval()
    name = next(n for n, kind in model.observed.items() if kind == "activations" and "linear" in n)
    batches: list[np.ndarray] = []
    model.refresh()
    for seed in range(3):
        with torch.no_grad(), observing(model):
            model(*batch_of(2, 6, seed), watch=lambda op, t: batches.append(t.numpy()) if op.name == name else None)
    return model, batches, name


def weighted(values: list[float], decay: float) -> float:
    """Their mean, each with `decay` times the weight of the one after it."""
    weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


@pytest.mark.parametrize("decay", [0.0, 0.75, 0.99, 1.0])
def test_a_moving_average_of_ranges(decay: float) -> None:
    model, batches, name = observed("ema_abs_max", decay=decay)
    low, high = (weighted([float(f(x)) for x in batches], decay) for f in (np.min, np.max))
    np.testing.assert_allclose([model.low[name], model.high[name]], [low, high], rtol=1e-6)
    assert model.step(name).scale == pytest.approx(max(-low, high) / 127, rel=1e-6)


def test_the_range_of_everything() -> None:
    model, batches, name = observed("abs_max", symmetric=False)
    low, high = min(x.min() for x in batches), max(x.max() for x in batches)
    assert (model.low[name], model.high[name]) == (low, high)
    scale, zero = model.step(name)
    assert scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert zero == round(-128 - low / scale)
    assert abs((-128 - zero) * scale - low) <= scale


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_clips_of_activations(observer: str) -> None:
    model, batches, name = observed(observer)
    lows, highs = [], []
    for x in batches:
        magnitudes = np.sort(np.abs(x.ravel()).astype(np.float64))
        rank = math.ceil(0.9 * magnitudes.size)
        clip = magnitudes[rank - 1] if observer == "percentile" else brute_force_clip(magnitudes, 127)
        lows.append(max(float(x.min()), -clip))
        highs.append(min(float(x.max()), clip))
    found = [model.low[name], model.high[name]]
    np.testing.assert_allclose(found, [weighted(lows, 0.75), weighted(highs, 0.75)], rtol=1e-5)
    assert observer == "mse" or max(-found[0], found[1]) < max(np.abs(x).max() for x in batches)


def brute_force_clip(magnitudes: np.ndarray, largest: int) -> float:
    """The clip of least squared error among the same fractions of the largest magnitude."""
    best, least = 0.0, math.inf
    for i in range(quantized_bert.CLIPS):
        clip = magnitudes.max() * 2.0 ** (quantized_bert.OCTAVES * ((i + 1) / quantized_bert.CLIPS - 1))
        q = np.minimum(np.rint(magnitudes / (clip / largest)), largest)
        error = float(((magnitudes - q * clip / largest) ** 2).sum())
        if error < least:
            best, least = clip, error
    return best


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_clip_of_least_squared_error(bits: int) -> None:
    rng = np.random.default_rng(bits)
    x = np.abs(rng.standard_t(4, (3, 400)))
    form = Format(bits, True, True, "mse")
    found = clip_of(torch.from_numpy(x), form, 1.0).numpy()
    np.testing.assert_allclose(found, [brute_force_clip(row, form.largest) for row in x], rtol=1e-12)
    assert bits == 8 or (found < x.max(axis=1)).all()


def test_percentiles_of_magnitudes() -> None:
    x = torch.arange(1.0, 101.0)[None, torch.randperm(100)]
    form = Format(8, True, False, "percentile")
    found = [float(clip_of(x, form, p)) for p in (0.5, 0.9, 0.901, 0.99, 1.0)]
    assert found == [50, 90, 91, 99, 100]
    assert float(clip_of(x, replace(form, observer="abs_max"), 0.5)) == 100


def test_ranges_are_taken_only_inside_observing() -> None:
    recipe, given_ = bert(1, 12, 3, 17), batch_of(2, 5, 0)
    model = QuantizedBert(recipe, recipe.weights(0), FQ_BERT).eval()
    model.refresh()
    with torch.no_grad():
        model(*given_)
    assert not model.high
    model.mode = "exact"
    with pytest.raises(SpecError, match=r"no range for .*want a calibration"), torch.no_grad():
        model(*given_)
    model.mode = "float"
    with pytest.raises(RuntimeError), observing(model):
        raise RuntimeError
    assert not model.observing


def test_refresh_follows_the_weights() -> None:
    recipe, given_ = bert(1, 12, 3, 17), batch_of(2, 5, 0)
    model = calibrated(recipe, recipe.weights(0), I_BERT, given_)
    name = next(n for n, kind in model.kinds.items() if kind == "weights")
    before, exact = model.params().weights[name].scales, seen_by(model, given_)
    with torch.no_grad():
        model.weight(name).mul_(2)
    np.testing.assert_array_equal(model.params().weights[name].scales, before)
    model.refresh()
    np.testing.assert_allclose(model.params().weights[name].scales, 2 * before, rtol=1e-12)
    after = seen_by(model, given_)
    reader = next(op.name for op in model.graph(2, 5).ops if name in op.inputs)
    assert not np.array_equal(exact[reader], after[reader])
    assert differing(model, given_) == []


# --- steps and weights ------------------------------------------------------------------------------------------------


@given(st.floats(-60, 60).map(lambda e: 2.0**e))
def test_steps_in_their_format(scale: float) -> None:
    power = step_in(scale, "power_of_two")
    assert math.frexp(power)[0] == 0.5
    assert abs(math.log2(power / scale)) <= 0.5 + 1e-9
    eight = step_in(scale, "scale8")
    mantissa, _exponent = math.frexp(eight)
    assert mantissa * 256 == int(mantissa * 256) >= 128
    assert abs(eight / scale - 1) <= 2**-8
    assert step_in(scale, "fixed") == scale
    assert step_in(scale, "float32") == float(np.float32(scale))
    for scale_format in SCALE_FORMATS:
        once = step_in(scale, scale_format)
        assert step_in(once, scale_format) == once


def test_ties_of_steps() -> None:
    assert step_in(128.5, "scale8") == 128
    assert step_in(129.5, "scale8") == 130
    assert step_in(255.5, "scale8") == 256
    assert step_in(2**0.4, "power_of_two") == 1
    assert step_in(2**0.6, "power_of_two") == 2


def test_every_step_of_a_model_is_in_its_format() -> None:
    recipe, given_ = bert(1, 12, 3, 17), batch_of(2, 5, 0)
    for scale_format in SCALE_FORMATS:
        model = calibrated(recipe, recipe.weights(0), replace(I_BERT, name="m", scale_format=scale_format), given_)
        params = model.params()
        scales = [s.scale for s in params.steps.values()]
        scales += [float(s) for w in params.weights.values() for s in w.scales]
        assert all(step_in(s, scale_format) == s for s in scales)


@pytest.mark.parametrize(
    "spec",
    [FQ_BERT, I_BERT, W8A8, replace(I_BERT, name="affine", weights=replace(I_BERT.weights, symmetric=False))],
    ids=lambda s: s.name,
)
def test_a_model_made_from_its_integers_is_the_same(spec: QuantSpec) -> None:
    recipe, given_ = bert(1, 12, 3, 17), batch_of(2, 5, 0)
    model = calibrated(recipe, recipe.weights(0), spec, given_)
    params = model.params()
    again = QuantizedBert.from_params(recipe, params)
    want, found = seen_by(model, given_), seen_by(again, given_)
    assert want.keys() == found.keys()
    for name, result in want.items():
        integers_ = result.dtype.kind != "f"  # biases apart, real numbers are what integers mean
        assert np.array_equal(result, found[name]) if integers_ else np.allclose(result, found[name], atol=1e-5), name
    rebuilt = again.params()
    assert dict(rebuilt.steps) == dict(params.steps)
    for name, w in params.weights.items():
        np.testing.assert_array_equal(rebuilt.weights[name].unpack(), w.unpack())
        np.testing.assert_array_equal(rebuilt.weights[name].scales, w.scales)


WRONG_WEIGHTS: dict[str, tuple[Any, str]] = {
    "missing": (lambda w, n: {k: v for k, v in w.items() if k != n}, "weights: got 'no {}', want a tensor for every"),
    "another shape": (lambda w, n: {**w, n: w[n][:1]}, "weights: {}: shape: got"),
    "NaN": (lambda w, n: {**w, n: w[n] * math.nan}, "weights: {}: got 'NaN or infinity', want finite numbers"),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(name: str) -> None:
    change, text = WRONG_WEIGHTS[name]
    recipe = bert(1, 12, 3, 17)
    weights = recipe.weights(0)
    which = next(n for n in weights if n.endswith("weight.up"))
    with pytest.raises(SpecError, match=text.format(which)):
        QuantizedBert(recipe, change(weights, which), FQ_BERT)


def test_a_new_head_is_made_from_its_seed() -> None:
    recipe = bert(1, 12, 3, 17)
    weights = {n: w for n, w in recipe.weights(0).items() if not n.startswith("head")}
    first, again, other = (QuantizedBert(recipe, weights, FQ_BERT, seed=s).weight("head.weight") for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.01 < first.std().item() < 0.04
