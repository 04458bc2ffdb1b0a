"""Does a description of number formats and algorithms say what it means, and is one that contradicts itself refused?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelsim.errors import SpecError
from accelsim.quantspec import (
    FP32,
    FQ_BERT,
    I_BERT,
    OBSERVERS,
    ROUNDINGS,
    SCALE_FORMATS,
    SPECS,
    STORED_BITS,
    W8A8,
    Format,
    QuantSpec,
    quant_spec,
    with_weight_bits,
)


def differences(a: QuantSpec, b: QuantSpec) -> set[str]:
    """Fields in which two specs differ."""
    return {f.name for f in fields(QuantSpec) if getattr(a, f.name) != getattr(b, f.name)}


# --- presets ----------------------------------------------------------------------------------------------------------


def test_the_presets() -> None:
    assert list(SPECS) == ["fp32", "w8a8", "i-bert", "fq-bert", "w6a8", "w4a8", "w3a8", "w2a8"]
    assert all(spec.name == name and quant_spec(name) is spec for name, spec in SPECS.items())
    assert [spec.name for spec in SPECS.values() if not spec.quantized] == ["fp32"]


@pytest.mark.parametrize(
    ("name", "weights", "stored", "symmetric", "per_channel", "activations", "norm"),
    [
        ("fp32", 32, 8, True, False, 32, 32),
        ("w8a8", 8, 8, True, False, 8, 32),
        ("i-bert", 8, 8, True, True, 8, 16),
        ("fq-bert", 4, 4, True, False, 8, 8),
        ("w6a8", 6, 8, True, False, 8, 8),
        ("w4a8", 4, 4, True, False, 8, 8),
        ("w3a8", 3, 4, True, False, 8, 8),
        ("w2a8", 2, 2, True, False, 8, 8),
    ],
)
def test_widths_of_the_presets(
    name: str, weights: int, stored: int, symmetric: bool, per_channel: bool, activations: int, norm: int
) -> None:
    spec = SPECS[name]
    w = spec.weights
    assert (w.bits, spec.stored_bits, w.symmetric, w.per_channel) == (weights, stored, symmetric, per_channel)
    assert (spec.activations.bits, spec.norm_bits) == (activations, norm)
    assert (spec.bias_bits, spec.accumulator_bits) == (32, 32)


def test_algorithms_of_the_presets() -> None:
    def of(spec: QuantSpec) -> tuple[str, ...]:
        return spec.softmax, spec.layer_norm, spec.gelu, spec.scale_format, spec.rounding

    assert of(FQ_BERT) == ("table", "fixed", "table", "scale8", "half_away")
    assert of(I_BERT) == ("polynomial", "i-bert", "polynomial", "fixed", "half_even")
    assert of(W8A8) == of(FP32) == ("float", "float", "float", "float32", "half_even")


def test_presets_differ_in_what_they_say() -> None:
    assert differences(SPECS["w4a8"], FQ_BERT) == {"name"}
    for name in ("w6a8", "w2a8"):
        assert differences(SPECS[name], FQ_BERT) == {"name", "weights", "stored_bits"}
    assert differences(SPECS["w3a8"], FQ_BERT) == {"name", "weights"}
    for name in ("w6a8", "w3a8", "w2a8"):
        assert replace(SPECS[name].weights, bits=4) == FQ_BERT.weights
    assert differences(W8A8, FP32) == {"name", "scope", "weights", "embeddings", "activations"}


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_of_other_widths(bits: int) -> None:
    spec = with_weight_bits(FQ_BERT, bits)
    assert (spec.weights.bits, spec.name) == (bits, f"fq-bert w{bits}")
    assert spec.stored_bits == {2: 2, 3: 4, 4: 4}.get(bits, 8)
    assert differences(spec, FQ_BERT) <= {"name", "weights", "stored_bits"}
    assert replace(spec.weights, bits=4) == FQ_BERT.weights


@pytest.mark.parametrize("bits", [0, 1, 9, 16, -4, 31])
def test_weights_of_no_width_are_refused(bits: int) -> None:
    with pytest.raises(SpecError, match=rf"weights\.bits: got {bits}, want one of 2, 3, 4, 5, 6, 7, 8, 32"):
        with_weight_bits(FQ_BERT, bits)


def test_largest_integer_of_a_format() -> None:
    assert [Format(b, True, False, "abs_max").largest for b in (2, 3, 4, 8, 16)] == [1, 3, 7, 127, 32767]


def test_what_only_linear_layers_read_has_the_format_of_activations() -> None:
    assert W8A8.format_of("scores") == W8A8.format_of("activation_outputs") == W8A8.activations
    assert FQ_BERT.format_of("scores") is FQ_BERT.scores


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda s: s.name)
def test_json_and_back(spec: QuantSpec) -> None:
    text = json.dumps(spec.to_json(), allow_nan=False)
    assert QuantSpec.from_json(json.loads(text)) == spec


@st.composite
def specs(draw: st.DrawFn) -> QuantSpec:
    """Any spec of which everything is quantized."""
    bits = draw(st.integers(2, 8))
    observer = st.sampled_from(OBSERVERS)
    norm = draw(st.sampled_from(["fixed", "i-bert"]))
    affine = draw(st.booleans())
    activations = Format(8, not affine, False, draw(observer))
    return replace(
        FQ_BERT,
        name=draw(st.text(min_size=1, max_size=8)),
        weights=Format(bits, draw(st.booleans()), draw(st.booleans()), draw(observer)),
        stored_bits=draw(st.sampled_from([b for b in STORED_BITS if b >= bits])),
        activations=activations,
        activation_outputs=activations,
        scores=Format(draw(st.integers(2, 8)), True, False, draw(observer)),
        probabilities=Format(draw(st.integers(2, 8)), True, False, "abs_max"),
        layer_norm=norm,
        norm_bits=draw(st.sampled_from([8] if norm == "fixed" else [8, 16])),
        accumulator_bits=draw(st.integers(16, 32)),
        scale_format=draw(st.sampled_from(SCALE_FORMATS)),
        rounding=draw(st.sampled_from(ROUNDINGS)),
        softmax=draw(st.sampled_from(["float", "table", "polynomial"])),
        softmax_bits=draw(st.integers(8, 16)),
        gelu=draw(st.sampled_from(["float", "table"] if affine else ["float", "table", "polynomial"])),
        ema_decay=draw(st.floats(0, 1)),
        percentile=draw(st.floats(0.5, 1)),
    )


@given(specs())
def test_any_legal_spec_survives_json(spec: QuantSpec) -> None:
    assert QuantSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml", "YAML"])
def test_a_file_of_all_fields(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mine.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(I_BERT.to_json()))
    else:
        from ruamel.yaml import YAML

        with path.open("w") as file:
            YAML(typ="safe").dump(I_BERT.to_json(), file)
    assert QuantSpec.load(path) == quant_spec(path) == quant_spec(str(path)) == I_BERT


def test_a_file_that_changes_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: i-bert\nname: mine\nweights: {bits: 5, observer: mse}\nsoftmax_bits: 9\nema_decay: 0.5\n")
    want = replace(
        I_BERT, name="mine", weights=Format(5, True, True, "mse"), softmax_bits=9, ema_decay=0.5
    )  # what is not written stays: per channel, 8 bits in memory
    assert quant_spec(path) == want
    assert SPECS["i-bert"].weights.bits == 8


def test_the_example_of_the_documentation_reads_everything_but_its_name_from_the_base() -> None:
    assert QuantSpec.from_json({"base": "fq-bert"}) == FQ_BERT


# --- what is refused --------------------------------------------------------------------------------------------------

WIDTHS = "one of 2, 3, 4, 5, 6, 7, 8, 32"


def changed(base: str = "fq-bert", /, **values: Any) -> dict[str, Any]:
    return {"base": base, "name": "mine", **values}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "memory of 5 bits": (changed(stored_bits=5), "mine: stored_bits: got 5, want one of 8, 4, 2"),
    "5 bits in 4": (changed(weights={"bits": 5}), "mine: stored_bits: got 4, want at least the 5 bits of the weights"),
    "8 bits in 2": (changed("i-bert", stored_bits=2), "mine: stored_bits: got 2, want at least the 8 bits"),
    "9-bit weights": (changed(weights={"bits": 9}), f"mine: weights.bits: got 9, want {WIDTHS}"),
    "1-bit scores": (changed(scores={"bits": 1}), f"mine: scores.bits: got 1, want {WIDTHS}"),
    "4-bit activations": (changed(activations={"bits": 4}), "mine: activations.bits: got 4, want one of 8, 32"),
    "7-bit GELU": (changed(activation_outputs={"bits": 7}), "mine: activation_outputs.bits: got 7, want one of 8, 32"),
    "activations per channel": (changed(activations={"per_channel": True}), "activations.per_channel: got True, want"),
    "tables per channel": (changed(embeddings={"per_channel": True}), "mine: embeddings.per_channel: got True, want"),
    "affine scores": (changed(scores={"symmetric": False}), "mine: scores.symmetric: got False, want true"),
    "affine probabilities": (changed(probabilities={"symmetric": False}), "probabilities.symmetric: got False, want"),
    "affine tables": (changed(embeddings={"symmetric": False}), "mine: embeddings.symmetric: got False, want true"),
    "affine GELU polynomial": (
        changed("i-bert", activations={"symmetric": False}),
        "mine: gelu: got 'polynomial', want table where activations have a zero point",
    ),
    "affine results of a GELU polynomial are fine, its affine input is not": (
        changed("i-bert", activations={"symmetric": False}, activation_outputs={"symmetric": False}),
        "mine: gelu: got 'polynomial', want table",
    ),
    "observer": (
        changed(weights={"observer": "mes"}),
        "weights.observer: got 'mes', want one of abs_max, .*nearest: mse",
    ),
    "scope": (changed(scope="al"), "mine: scope: got 'al', want one of all, linear .nearest: all"),
    "scale format": (changed(scale_format="scale16"), "scale_format: got 'scale16', want one of .*nearest: scale8"),
    "rounding": (changed(rounding="half_up"), "mine: rounding: got 'half_up', want one of floor, half_away, half_even"),
    "softmax": (changed(softmax="tabel"), "mine: softmax: got 'tabel', want one of .*nearest: table"),
    "layer norm": (changed(layer_norm="ibert"), "layer_norm: got 'ibert', want one of .*nearest: i-bert"),
    "GELU": (changed(gelu="polynom"), "mine: gelu: got 'polynom', want one of .*nearest: polynomial"),
    "softmax of 7 bits": (changed(softmax_bits=7), "mine: softmax_bits: got 7, want an integer from 8 to 16"),
    "softmax of 17 bits": (changed(softmax_bits=17), "mine: softmax_bits: got 17, want an integer from 8 to 16"),
    "sums of 33 bits": (changed(accumulator_bits=33), "accumulator_bits: got 33, want an integer from 16 to 32"),
    "sums of 15 bits": (changed(accumulator_bits=15), "accumulator_bits: got 15, want an integer from 16 to 32"),
    "biases of 16 bits": (changed(bias_bits=16), "mine: bias_bits: got 16, want one of 32"),
    "norms of 4 bits": (changed(norm_bits=4), "mine: norm_bits: got 4, want one of 8, 16, 32"),
    "16 bits for FQ-BERT's norm": (changed(norm_bits=16), "norm_bits: got 16, want 8 where layer_norm is fixed"),
    "float parameters of I-BERT's norm": (changed("i-bert", norm_bits=32), "want 8 or 16 where layer_norm is i-bert"),
    "8 bits for a float norm": (changed(layer_norm="float"), "norm_bits: got 8, want 32 where layer_norm is float"),
    "decay": (changed(ema_decay=1.5), "mine: ema_decay: got 1.5, want a number from 0.0 to 1"),
    "negative decay": (changed(ema_decay=-0.1), "mine: ema_decay: got -0.1, want a number from 0.0 to 1"),
    "percentile": (changed(percentile=99.99), "mine: percentile: got 99.99, want a number from 0.5 to 1"),
    "only linear layers, and scores": (changed(scope="linear"), "scores.bits: got 8, want 32 where only linear"),
    "float weights alone": (changed("w8a8", weights={"bits": 32}), "activations.bits: got 8, want 32, as the weights"),
    "float activations alone": (changed("w8a8", activations={"bits": 32}), "activations.bits: got 32, want 8, as the"),
    "float scores": (changed(scores={"bits": 32}), "scores.bits: got 32, want 8 or fewer"),
    "float probabilities": (changed(probabilities={"bits": 32}), "probabilities.bits: got 32, want 8 or fewer"),
    "softmax in integers, all else float": (changed("w8a8", softmax="table"), "softmax: got 'table', want float"),
    "nothing quantized but GELU": (changed("fp32", gelu="table"), "mine: gelu: got 'table', want float"),
    "unknown field": (changed(weigths={"bits": 4}), "quantization: field: got 'weigths', want .*nearest: weights"),
    "unknown field inside": (changed(weights={"bit": 4}), "quantization: weights: field: got 'bit', .*nearest: bits"),
    "unknown base": ({"base": "fq_bert"}, "quantization: got 'fq_bert', want .*nearest: fq-bert"),
    "base of a number": ({"base": 4}, "quantization: got '4', want one of"),
    "a number for a format": (changed(weights=4), "quantization: weights: got 4, want"),
    "a list for a format": (changed(weights=[4, True]), "quantization: weights"),
    "nothing for a format": (changed(weights=None), "quantization: weights: got None, want"),
    "text for a number": (changed(softmax_bits="8"), "quantization: softmax_bits: got '8', want"),
    "text for bits": (changed(weights={"bits": "4"}), "quantization: weights.bits: got '4', want"),
    "a fraction of a bit": (changed(weights={"bits": 4.5}), "quantization: weights.bits: got 4.5, want"),
    "true for bits": (changed(weights={"bits": True}), "quantization: weights.bits: got True, want"),
    "text for a flag": (changed(weights={"per_channel": "yes"}), "quantization: weights.per_channel: got 'yes', want"),
    "a number for a name": (changed(name=3), "quantization: name: got 3, want"),
    "nothing for a decay": (changed(ema_decay=None), "quantization: ema_decay: got None, want"),
    "true for a decay": (changed(ema_decay=True), "quantization: ema_decay: got True, want"),
}


def one_line(caught: pytest.ExceptionInfo[SpecError]) -> str:
    """The text of an error, which must be one line with what was found and what is legal."""
    text = str(caught.value)
    assert "\n" not in text
    assert ": got " in text
    assert ", want " in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("name", WRONG)
def test_contradictions_and_typing_errors_are_refused(name: str) -> None:
    data, text = WRONG[name]
    with pytest.raises(SpecError, match=text) as caught:
        QuantSpec.from_json(data)
    one_line(caught)


@pytest.mark.parametrize("name", [name for name, (_, text) in WRONG.items() if "quantization" not in text])
def test_a_spec_made_in_python_is_refused_as_a_file_is(name: str) -> None:
    """Those that are no question of types: the constructor itself refuses."""
    data, text = WRONG[name]
    base = SPECS[data["base"]]
    values = {k: replace(getattr(base, k), **v) if isinstance(v, dict) else v for k, v in data.items() if k != "base"}
    with pytest.raises(SpecError, match=text):
        replace(base, **values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["ema_decay", "percentile"])
def test_no_number_is_refused(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"{name}: got"):
        replace(FQ_BERT, **{name: value})
    with pytest.raises(SpecError, match=f"{name}: got") as caught:
        QuantSpec.from_json({"base": "fq-bert", name: value})
    one_line(caught)
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: fq-bert\n{name}: {'.nan' if value != value else '.inf'}\n")
    with pytest.raises(SpecError, match=f"{name}: got"):
        QuantSpec.load(path)


@pytest.mark.parametrize("name", [f.name for f in fields(QuantSpec)])
def test_every_field_has_to_be_there(name: str) -> None:
    data = {k: v for k, v in FQ_BERT.to_json().items() if k != name}
    with pytest.raises(SpecError, match=f"quantization: field {name}: got None, want a value: the field is missing"):
        QuantSpec.from_json(data)


@pytest.mark.parametrize("name", [f.name for f in fields(Format)])
def test_every_field_of_a_format_has_to_be_there(name: str) -> None:
    data = FQ_BERT.to_json()
    del data["weights"][name]
    with pytest.raises(SpecError, match=rf"quantization: field weights\.{name}: got None, want a value"):
        QuantSpec.from_json(data)


def test_unknown_fields_of_a_whole_description() -> None:
    with pytest.raises(SpecError, match=r"got 'rouding', want .*nearest: rounding"):
        QuantSpec.from_json({**FQ_BERT.to_json(), "rouding": "floor"})
    data = FQ_BERT.to_json()
    data["weights"]["bit"] = 4
    with pytest.raises(SpecError, match=r"got 'bit', want .*nearest: bits"):
        QuantSpec.from_json(data)


@pytest.mark.parametrize("data", [[], [1], "fq-bert", 3, None, True])
def test_what_is_no_mapping_is_refused(data: Any) -> None:
    with pytest.raises(SpecError, match=f"here: got '{type(data).__name__}', want a mapping"):
        QuantSpec.from_json(data, "here")


@pytest.mark.parametrize("value", [object(), {1, 2}, b"8", 1j])
def test_values_that_no_file_has_are_refused(value: Any) -> None:
    with pytest.raises(SpecError, match=r"quantization: got .*want numbers, words and mappings") as caught:
        QuantSpec.from_json({"base": "fq-bert", "softmax_bits": value})
    one_line(caught)


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "cut YAML": ("a.yaml", b"base: fq-bert\nweights: {bits: 4", "want YAML"),
    "cut JSON": ("a.json", b'{"base": "fq-bert", "weights": {"bits"', "want complete JSON"),
    "empty YAML": ("a.yaml", b"", "got 'NoneType', want a mapping"),
    "empty JSON": ("a.json", b"", "want complete JSON"),
    "a list": ("a.yaml", b"- base: fq-bert\n", "got 'list', want a mapping"),
    "no text": ("a.yaml", b"\xff\xfe\x00\x01", "got 'not text', want a readable text file"),
    "a key twice": ("a.yaml", b"base: fq-bert\nname: a\nname: b\n", "want YAML"),
    "a date": ("a.yaml", b"base: fq-bert\nname: 2024-01-01\n", "want numbers, words and mappings"),
    "a number as a key": ("a.yaml", b"base: fq-bert\n8: 4\n", "field: got 8, want one of"),
    "a base that names a file": ("a.yaml", b"base: other.yaml\n", "other.yaml: got .*want a readable text file"),
    "a spec of another field": ("a.json", b'{"base": "fq-bert", "bits": 4}', "field: got 'bits', want"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_cannot_be_read_are_refused(name: str, tmp_path: Path) -> None:
    file, content, text = BAD_FILES[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(SpecError, match=text) as caught:
        quant_spec(path)
    if "base that names" not in name:
        assert str(path) in one_line(caught)


@pytest.mark.parametrize("make", [lambda p: p / "none.yaml", lambda p: p.with_suffix(".json")], ids=["yaml", "json"])
def test_a_file_that_is_not_there(make: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"got 'No such file or directory', want a readable text file"):
        QuantSpec.load(make(tmp_path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "folder.yaml"
    path.mkdir()
    with pytest.raises(SpecError, match="want a readable text file"):
        quant_spec(path)


@pytest.mark.parametrize(("name", "nearest"), [("fqbert", "fq-bert"), ("W4A9", "w4a8"), ("ibert", "i-bert")])
def test_unknown_presets_are_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(SpecError, match=rf"quantization: got '{name}', want one of .*\(nearest: {nearest}\)"):
        quant_spec(name)
