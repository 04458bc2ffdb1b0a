"""Do the example scripts run from top to bottom, and does what they show hold?"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.weights, pytest.mark.torch]
EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.fixture(scope="module")
def quantize_linear(tmp_path_factory):
    """(names of the script after its run, the folder it was told to write into)."""
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("example") / "figures"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantize_linear.py", "--out", str(out)])
        return runpy.run_path(str(EXAMPLES / "quantize_linear.py"), run_name="__main__"), out


def test_quantize_linear_writes_its_figure(quantize_linear):
    _, out = quantize_linear
    assert [path.name for path in out.iterdir()] == ["quantize-linear.png"]
    assert (out / "quantize-linear.png").read_bytes().startswith(b"\x89PNG")


def test_quantize_linear_reads_torch_in_place_and_sums_exactly(quantize_linear):
    names, _ = quantize_linear
    assert names["np"].asarray(names["x_q"]).ctypes.data == names["x_q"].data_ptr()
    assert names["matches"] == len(names["choices"]) == 12


def test_quantize_linear_finds_more_bits_better(quantize_linear):
    names, _ = quantize_linear
    for per_channel in (False, True):
        for mse in (False, True):
            found = [names["together"][bits, per_channel, mse] for bits in (8, 4, 2)]
            for key in ("z_db", "y_db"):
                assert found[0][key] > found[1][key] > found[2][key], (per_channel, mse, key)


def test_quantize_linear_explains_the_whole_error_by_its_sources(quantize_linear):
    names, _ = quantize_linear
    for choice, found in names["together"].items():
        assert found["y_db"] == pytest.approx(found["predicted_db"], abs=0.5), choice
    marked = [row for row in names["rows"] if row["used"]]
    assert len(marked) == len(names["PARTS"])
    (whole,) = [row for row in names["rows"] if row["name"] == "everything, GELU table int8"]
    assert sum(row["y_noise"] for row in marked) == pytest.approx(whole["y_noise"], rel=0.1)
