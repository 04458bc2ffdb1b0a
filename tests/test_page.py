"""Does the page of a study show its numbers, and are its views linked? With real clicks, in headless Chromium."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

import accelsim
from accelsim import page, plots
from accelsim.errors import SpecError
from accelsim.platforms import from_mapping
from accelsim.space import space
from accelsim.study import read_study
from accelsim.sweep import keep, run

SMALL = {
    "platform": "systolic-32x32",
    "model": "bert-tiny",
    "axes": {
        "seq": [64, 128],
        "rows": {"powers_of_two": [8, 64]},
        "cols": {"same_as": "rows"},
        "input_buffer.capacity_bytes": [16384, 131072],
        "dram.bytes_per_cycle": [64, 8, 16],
        "clock_hz": [5e8, 1e9],
        "dataflow": ["os", "ws", "is"],
    },
    "limits": ["area_mm2 <= 2.4"],
}
LARGE = {
    "platform": "systolic-32x32",
    "model": "bert-tiny",
    "axes": {
        "rows": {"powers_of_two": [8, 128]},
        "cols": {"same_as": "rows"},
        "input_buffer.capacity_bytes": {"powers_of_two": [16384, 1048576]},
        "weight_buffer.capacity_bytes": {"powers_of_two": [16384, 1048576]},
        "accumulator.capacity_bytes": {"powers_of_two": [16384, 1048576]},
        "dram.bytes_per_cycle": [8, 16, 32, 64, 128],
        "clock_hz": [5e8, 7e8, 1e9, 1.4e9],
        "dataflow": ["os", "ws", "is"],
    },
}


def folder_of(description: dict[str, Any], place: Path) -> Path:
    run(space(description), place)
    return place


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(SMALL, tmp_path_factory.mktemp("page") / "small")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(LARGE, tmp_path_factory.mktemp("page") / "large")


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f8")


def data_in(text: str) -> dict[str, Any]:
    """The data that a browser would read out of a page."""
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    found: dict[str, Any] = json.loads(content)
    return found


def brute_front(values: np.ndarray) -> np.ndarray:
    """bool (n,), by comparing every row with every other."""
    smaller = (values[:, None] <= values[None]).all(axis=2) & (values[:, None] < values[None]).any(axis=2)
    return np.asarray(~smaller.any(axis=0))


# --- what is embedded -------------------------------------------------------------------------------------------------


def test_the_front_is_whole_and_the_rest_is_what_counts(small: Path) -> None:
    study = read_study(small)
    data = page.data_of(study)
    table = study.table()
    kept = table[keep(study.space, {c: table[c].to_numpy() for c in table})].reset_index(drop=True)
    assert 0 < len(kept) < len(table)
    on_front = brute_front(kept[["time_s", "energy_j", "area_mm2"]].to_numpy())
    points, shown = unpacked(data["points"]), data["counts"]["shown"]
    assert set(points[:shown]) == set(kept["point"][on_front])
    assert set(points[shown:]) == set(kept["point"][~on_front])
    assert data["counts"] == {
        "points": study.space.points, "priced": len(table), "feasible": int(table["feasible"].sum()),
        "kept": len(kept), "front": int(on_front.sum()), "shown": shown, "sample": len(points) - shown, "seed": 0,
    }  # fmt: skip
    rows = kept.set_index("point").loc[points.astype(int)]
    for metric in data["metrics"]:
        assert (unpacked(metric["values"]) == rows[metric["name"]].to_numpy()).all(), metric["name"]
        assert metric["quantiles"][2] == pytest.approx(kept[metric["name"]].median())
    for axis in data["axes"]:
        for counts, mine in ((axis["kept"], kept), (axis["front"], kept[on_front])):
            assert counts == [int((mine[axis["path"]] == value).sum()) for value in axis["values"]], axis["path"]


def test_a_large_front_is_thinned_and_the_rest_sampled(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page.kept(read_study(small))
    monkeypatch.setattr(page, "SHOWN", 9)
    monkeypatch.setattr(page, "SAMPLE", 20)
    monkeypatch.setattr(page, "DETAILED", 6)
    found = page.kept(read_study(small))
    data = page.page_data(found)
    points, shown = unpacked(data["points"]), data["counts"]["shown"]
    of_front = whole.table["point"].to_numpy()[whole.front]
    assert len(of_front) > 9 >= shown
    assert data["counts"]["front"] == len(of_front)
    assert data["counts"]["sample"] == 20
    assert set(points[:shown]) <= set(of_front)
    assert not set(points[shown:]) & set(of_front)
    ends = {*found.extremes, found.knee}
    assert {int(found.table["point"][row]) for row in ends} <= set(points[:shown])
    assert len(data["breakdown"]["at"]) <= 6
    assert {str(i) for i in (data["knee"], *data["extremes"].values())} <= set(data["breakdown"]["at"])
    assert page.render(data) == page.render(page.page_data(page.kept(read_study(small))))


def test_a_breakdown_adds_up_to_its_point(small: Path) -> None:
    data = page.data_of(read_study(small))
    totals = [unpacked(m["values"]) for m in data["metrics"] if m["name"] in ("time_s", "energy_j")]
    assert len(data["breakdown"]["at"]) == min(page.DETAILED, data["counts"]["front"])
    for at, groups in data["breakdown"]["at"].items():
        assert np.sum(groups, axis=0) == pytest.approx([values[int(at)] for values in totals], rel=1e-9)


def test_the_objectives_of_a_search_are_those_of_the_page(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "study")
    path = tmp_path / "study" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "objectives": ["energy_j", "dram_bytes"]}))
    data = page.data_of(read_study(tmp_path / "study"))
    assert [m["name"] for m in data["metrics"] if m["objective"]] == ["energy_j", "dram_bytes"]
    path.write_text(json.dumps({**manifest, "objectives": ["joy"]}))
    with pytest.raises(SpecError, match="joy"):
        page.data_of(read_study(tmp_path / "study"))


def test_a_page_asks_for_nothing_and_trusts_no_text(tmp_path: Path) -> None:
    base = accelsim.platforms.describe(accelsim.platform("systolic-32x32"))
    evil = {**SMALL, "platform": {**base, "name": "</script><script>alert(1)</script><b>"}, "axes": {"rows": [8, 16]}}
    text = page.render(page.data_of(read_study(folder_of(evil, tmp_path / "study"))))
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert text.count("</script>") == 2
    assert data_in(text)["about"]["platform"] == evil["platform"]["name"]
    without_data = text.replace(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0], "")
    assert not re.findall(r"https?:|//[a-z]|@import|url\(|<link|<img|\bsrc=|fetch\(|XMLHttp|WebSocket", without_data)
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    assert "default-src &#x27;none&#x27;" in policy
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        content = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)[0]
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy


def test_a_study_without_area_or_with_one_objective_has_a_page(tmp_path: Path) -> None:
    fpga = {"platform": "fqbert-zcu102", "model": "bert-tiny", "axes": {"pes": [4, 8], "precision": ["w4a8"]}}
    data = page.data_of(read_study(folder_of(fpga, tmp_path / "fpga")))
    assert [m["name"] for m in data["metrics"] if m["objective"]] == ["time_s", "energy_j", "dsp"]
    one = read_study(folder_of({**SMALL, "axes": {"rows": [16]}}, tmp_path / "one"))
    data = page.data_of(one)
    assert data["counts"]["kept"] == 1 == data["counts"]["front"]
    assert data["metrics"][0]["quantiles"][0] == data["metrics"][0]["quantiles"][4]


# --- the command ------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "accelsim", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_command_writes_the_page_and_the_figures(small: Path, tmp_path: Path) -> None:
    done = command("report", small, "--html", tmp_path / "r.html", "--figures", tmp_path / "figures", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    names = ["front.png", "front.pdf", "knobs.png", "knobs.pdf"]
    assert said["files"] == [str(tmp_path / "r.html"), *(str(tmp_path / "figures" / name) for name in names)]
    assert all(Path(path).stat().st_size > 1000 for path in said["files"])
    assert data_in((tmp_path / "r.html").read_text())["counts"]["front"] == said["front"]
    assert said["objectives"] == ["time_s", "energy_j", "area_mm2"]
    again = command("report", small, "--html", tmp_path / "r2.html")
    assert f"wrote {tmp_path / 'r2.html'}" in again.stdout
    assert (tmp_path / "r2.html").read_bytes() == (tmp_path / "r.html").read_bytes()
    assert "accelsim report results/ --html report.html" in command("report", "--help").stdout


def test_bad_input_is_one_line_and_status_2(small: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(small, tmp_path / "cut")
    (chunk,) = (cut / "chunks").glob("*.parquet")
    chunk.write_bytes(chunk.read_bytes()[:-100])
    nothing = folder_of({**SMALL, "limits": ["area_mm2 <= 1e-6"]}, tmp_path / "nothing")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    html = tmp_path / "r.html"
    for arguments, said in (
        ((tmp_path / "absent", "--html", html), "no manifest.json"),
        ((cut, "--html", html), "a complete Parquet file"),
        ((nothing, "--html", html), "0 within the limits"),
        ((small, "--html", tmp_path / "no" / "r.html"), "a folder that exists"),
        ((small, "--html", tmp_path / "r.txt"), "one of .html, .htm"),
        ((small, "--html", tmp_path / "folder.html"), "a file that can be written"),
        ((small, "--html", html, "--figures", tmp_path / "file"), "a folder that can be written"),
    ):
        done = command("report", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.glob(".*partial"))


def test_the_figures_show_the_front_and_its_knobs(small: Path) -> None:
    found = page.kept(read_study(small))
    made = page.figures(found)
    values = found.table[["time_s", "energy_j"]].to_numpy()
    others, front, knee = (line.get_xydata() for line in made["front"].axes[0].lines)
    scale = front[0] / values[found.front[0]]
    assert np.allclose(front, values[found.front] * scale)
    assert len(others) == len(values) - len(found.front)
    assert np.allclose(knee, values[[found.knee]] * scale)
    shares = [bar.get_height() for bar in made["knobs"].axes[1].patches]
    rows = found.table.assign(rows=found.places["rows"]).iloc[found.front]
    names = list(found.study.space.columns)
    assert made["knobs"].axes[1].get_title() == names[1] == "rows"
    assert shares[len(shares) // 2 :] == pytest.approx([100 * (rows["rows"] == k).mean() for k in range(4)])
    with pytest.raises(SpecError):
        plots.front_figure(np.ones((3, 1)), np.ones(3, bool), 0, ["a"], "t")
    with pytest.raises(SpecError):
        plots.knobs_figure({}, "t")


# --- in a browser -----------------------------------------------------------------------------------------------------

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1440,1000",
)  # fmt: skip


def absent(reason: str) -> None:
    """Without a browser these tests are skipped; where CI is set they fail, or nobody would see that none ran."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    drives = shutil.which("chromedriver")
    if browser is None or drives is None:
        absent("no chromium and chromedriver: apt-get install chromium chromium-driver")
    try:
        from selenium import webdriver
    except ImportError:
        absent("no selenium: pip install -e '.[test]'")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(drives))
    yield driver
    driver.quit()


class Page:
    """A page in a browser, handled as a reader does: by pointer and keys. What it shows is read from its elements."""

    def __init__(self, driver: Any, path: Path, study: Path, dark: bool = False, width: int = 1440) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        self.driver, self.keys, self.study = driver, Keys, read_study(study)
        self._chains = ActionChains
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [
                {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ]},
        )  # fmt: skip
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
        )
        driver.get_log("browser")
        driver.get(path.as_uri())
        self.data = data_in(path.read_text())
        self.points = unpacked(self.data["points"]).astype(int)
        self.settle()

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def settle(self) -> None:
        """Wait until what was asked to be drawn is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30)))"
        )

    def the(self, selector: str) -> Any:
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        from selenium.webdriver.common.by import By

        found: list[Any] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def click(self, selector: str) -> None:
        element = self.the(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()
        self.settle()

    def press(self, *keys: str) -> None:
        chain = self._chains(self.driver)
        for key in keys:
            chain = chain.send_keys(key)
        chain.perform()
        self.settle()

    def hold(self, modifier: str, key: str) -> None:
        self._chains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()
        self.settle()

    def type(self, selector: str, text: str) -> None:
        """Into a field, as a reader does: select what is there, write, leave the field with Tab."""
        field = self.the(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", field)
        self.hold(self.keys.CONTROL, "a")
        self.press(self.keys.BACKSPACE, *text, self.keys.TAB)

    def pointer(self, selector: str, *places: tuple[float, float]) -> None:
        """Press at the first place in a canvas, move through the others, release at the last."""
        canvas = self.the(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
        w, h = self.js("return [arguments[0].clientWidth, arguments[0].clientHeight]", canvas)
        chain = self._chains(self.driver, duration=20)
        chain.move_to_element_with_offset(canvas, round(places[0][0] - w / 2), round(places[0][1] - h / 2))
        chain.click_and_hold()
        for x, y in places[1:]:
            chain.move_to_element_with_offset(canvas, round(x - w / 2), round(y - h / 2))
        chain.release().perform()
        self.settle()

    @property
    def chosen(self) -> int:
        """The point that the panel says is chosen."""
        return int(re.findall(r"point (\d+)", self.the("#h-chosen").text)[0])

    @property
    def counts(self) -> tuple[int, int]:
        """Points of the front and of the sample that pass the brushes, as the summary says it."""
        numbers = re.findall(r"([\d,]+) of [\d,]+ (?:front|sampled)", self.the("#summary").text)
        front, *sample = (int(n.replace(",", "")) for n in numbers)
        return front, sum(sample)

    def column(self, name: str) -> np.ndarray:
        """Values of the embedded points, out of the study."""
        rows = self.study.rows(self.points).drop_duplicates("point").set_index("point").loc[self.points]
        return np.asarray(rows[name].to_numpy())

    def expected(self, mask: np.ndarray) -> tuple[int, int]:
        shown = self.data["counts"]["shown"]
        return int(mask[:shown].sum()), int(mask[shown:].sum())

    def yaml(self) -> str:
        return str(self.the("#yaml").get_property("value"))

    def fact(self, box: str, name: str) -> str:
        """The exact value beside a name in the panel of the chosen point."""
        return str(self.js(
            "return [...document.querySelectorAll('#' + arguments[0] + ' > div')]"
            ".find((e) => e.querySelector('dt').textContent === arguments[1]).querySelector('data').value", box, name,
        ))  # fmt: skip

    def picture(self, canvas: str) -> str:
        return str(self.js("return document.getElementById(arguments[0]).toDataURL()", canvas))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def small_page(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.save_page(page.kept(read_study(small)), tmp_path_factory.mktemp("page") / "small.html")


@pytest.fixture(scope="module")
def large_page(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.save_page(page.kept(read_study(large)), tmp_path_factory.mktemp("page") / "large.html")


@pytest.fixture
def shown(chromium: Any, small: Path, small_page: Path) -> Iterator[Page]:
    opened = Page(chromium, small_page, small)
    yield opened
    assert opened.errors() == []


def check_point(shown: Page, point: int) -> None:
    """The panel shows this point: its YAML is its platform and simulates to the numbers beside it."""
    assert shown.chosen == point
    space, text = shown.study.space, shown.yaml()
    chip = from_mapping(YAML(typ="safe").load(text), "page")
    assert chip == space.chip(point)
    own = {"seq": space.seq, **space.values(point)}
    report = accelsim.simulate(accelsim.trace(space.model, seq=own["seq"]), chip)
    assert float(shown.fact("totals", "time")) == pytest.approx(report.total.time_s, rel=1e-12)
    assert float(shown.fact("totals", "energy")) == pytest.approx(report.total.energy_j, rel=1e-9)
    assert float(shown.fact("totals", "area")) == pytest.approx(report.total.area_mm2, rel=1e-9)
    for path, value in space.values(point).items():
        assert shown.fact("knobs", path) in (str(value), str(int(value)) if isinstance(value, float) else ""), path
    sums = [[float(x.get_property("value")) for x in row.find_elements("css selector", "data")] for row in
            shown.all("#breakdown tbody tr")[:-1]]  # fmt: skip
    if sums:
        assert np.sum(sums, axis=0) == pytest.approx([report.total.time_s, report.total.energy_j], rel=1e-9)
        first = shown.the("#breakdown tbody td").text
        assert sums[0][0] == pytest.approx(page.group_sums(space, point)[first][0], rel=1e-9)
    else:
        assert point not in shown.points[: shown.data["counts"]["shown"]]


def test_a_click_on_a_point_shows_that_point(shown: Page) -> None:
    front = shown.data["counts"]["shown"]
    time_s, energy_j = shown.column("time_s"), shown.column("energy_j")
    check_point(shown, shown.points[shown.data["knee"]])
    for i in (0, front // 2, front - 1, len(shown.points) - 1, front + 1):
        x, y = shown.js("return at(arguments[0])", i)
        shown.pointer("#scatter", (x, y))
        found = int(np.flatnonzero(shown.points == shown.chosen)[0])
        others = [shown.js("return at(arguments[0])", k) for k in (i, found)]
        assert np.hypot(*np.subtract(*others)) < 6, "another point than the one under the pointer"
        if i < front:
            assert (time_s[found], energy_j[found]) == pytest.approx((time_s[i], energy_j[i]), rel=0.05)
        check_point(shown, shown.chosen)


def test_the_command_beside_a_point_gives_its_numbers(shown: Page) -> None:
    sample = int(shown.data["counts"]["shown"]) + 3
    shown.pointer("#scatter", tuple(shown.js("return at(arguments[0])", sample)))
    words = str(shown.the("#command").get_property("value")).split()
    assert words[0] == "accelsim"
    done = command(*words[1:], "--json")
    assert done.returncode == 0, done.stderr
    total = json.loads(done.stdout)["total"]
    assert total["time_s"] == float(shown.fact("totals", "time"))
    assert total["energy_j"] == pytest.approx(float(shown.fact("totals", "energy")), rel=1e-9)


def test_brushing_an_axis_filters_every_view(shown: Page) -> None:
    before = shown.counts
    time_s = shown.column("time_s")
    k = next(k for k, dim in enumerate(shown.js("return PARALLEL.map((d) => d.key)")) if dim == "time_s")
    x = shown.js("return frame.X(arguments[0])", k)
    height = shown.js("return frame.H")
    shown.pointer("#lines", (x, 40 + height * 0.98), (x, 40 + height * 0.7), (x, 40 + height * 0.5))
    low, high = shown.js("const b = state.brushes.get('time_s'); return [b.low, b.high]")
    assert time_s.min() <= low < high < time_s.max()
    expected = shown.expected((time_s >= low) & (time_s <= high))
    assert shown.counts == expected != before
    assert 0 < sum(expected) < sum(before)
    for name in ("from", "to"):
        typed = float(shown.the(f"#brush-{name}-time_s").get_property("value")) * shown.data["metrics"][0]["scale"]
        assert typed == pytest.approx({"from": low, "to": high}[name], rel=1e-4)
    listed = [int(b.text) for b in shown.all("#table tbody th button")]
    times = dict(zip(shown.points, time_s, strict=True))
    assert all(low <= times[p] <= high for p in listed)
    shown.pointer("#lines", (x, 40 + height * 0.25))  # a click on the axis takes its brush away
    assert shown.counts == before


def test_a_bar_of_a_histogram_brushes_its_value(shown: Page) -> None:
    before = shown.counts
    rows, dataflow = shown.column("rows"), shown.column("dataflow")
    bars = "[data-key='rows'] .bars button"
    shown.click(f"{bars}:nth-child(2)")
    assert shown.the(f"{bars}:nth-child(2)").get_attribute("aria-pressed") == "true"
    assert shown.counts == shown.expected(rows == 16)
    shown.click(f"{bars}:nth-child(4)")
    assert shown.counts == shown.expected((rows == 16) | (rows == 64))
    shown.click("[data-key='dataflow'] .bars button:nth-child(1)")
    assert shown.counts == shown.expected(((rows == 16) | (rows == 64)) & (dataflow == "os"))
    assert "2 brushes" in shown.the("#summary").text
    shown.click("#front-only")
    assert shown.counts == (shown.expected(((rows == 16) | (rows == 64)) & (dataflow == "os"))[0], 0)
    shown.press(shown.keys.ESCAPE)
    assert shown.counts == before
    assert shown.the(f"{bars}:nth-child(2)").get_attribute("aria-pressed") == "false"


def test_brushes_can_be_typed(shown: Page) -> None:
    before = shown.counts
    energy_j, dram = shown.column("energy_j"), shown.column("dram.bytes_per_cycle")
    scale = next(m["scale"] for m in shown.data["metrics"] if m["name"] == "energy_j")
    middle = float(np.median(energy_j) / scale)
    shown.type("#brush-to-energy_j", f"{middle:.4f}")
    assert shown.counts == shown.expected(energy_j <= float(f"{middle:.4f}") * scale)
    shown.type("[id='brush-from-dram.bytes_per_cycle']", "10")
    assert shown.counts == shown.expected((energy_j <= float(f"{middle:.4f}") * scale) & (dram >= 10))
    shown.type("#brush-to-energy_j", "")
    assert shown.counts == shown.expected(dram >= 10)
    shown.click("#clear")
    assert shown.counts == before


def tab_stops(shown: Page) -> list[str]:
    """Names of what has the focus after each Tab, from the top of the page on."""
    found: list[str] = []
    shown.js("window.scrollTo(0, 0); document.activeElement.blur()")
    for _ in range(120):
        shown._chains(shown.driver).send_keys(shown.keys.TAB).perform()
        name = shown.js(
            "const e = document.activeElement, box = e.closest('[data-key]'); "
            "return e === document.body ? '' : e.id || (e.dataset.row ? 'row' : box ? box.dataset.key : e.className)"
        )
        if not name or (found and name == found[0]):
            break
        found.append(name)
    return found


def test_tab_reaches_everything_in_the_order_of_the_page(shown: Page) -> None:
    stops = tab_stops(shown)
    columns = [axis["path"] for axis in shown.data["axes"] if not axis["follows"]]
    metrics = [metric["name"] for metric in shown.data["metrics"]]
    ends = {"dataflow": ["brush-dataflow"]}
    brushes = [ends.get(n, [f"brush-from-{n}", f"brush-to-{n}"]) for n in (*columns, *metrics)]
    assert stops == [
        "skip", "theme", "front-only", "x", "x-log", "y", "y-log", "c", "scatter",
        "copy", "yaml", "copy-command", "command",
        *columns,
        "lines", *(name for pair in brushes for name in pair),
        "rows", "point", "front", "time_s", "energy_j", "area_mm2", *columns, "row", "more",
    ]  # fmt: skip
    shown.js("document.getElementById('front-only').focus()")
    shown.press(shown.keys.TAB)
    assert "3px" in shown.js("return getComputedStyle(document.activeElement).outline")


def test_the_keyboard_alone_chooses_points(shown: Page) -> None:
    time_s = shown.column("time_s")
    front = shown.data["counts"]["shown"]
    shown.js("document.getElementById('scatter').focus()")
    shown.press(shown.keys.HOME)
    fastest = shown.points[int(np.argmin(time_s[:front]))]
    assert f"point {fastest}" in shown.the("#said").get_property("textContent")
    assert shown.chosen != fastest
    shown.press(shown.keys.ENTER)
    check_point(shown, fastest)
    shown.press(shown.keys.ARROW_RIGHT, shown.keys.ARROW_RIGHT, shown.keys.ENTER)
    order = np.lexsort((np.arange(front), time_s[:front]))
    check_point(shown, shown.points[order[2]])
    shown.hold(shown.keys.SHIFT, shown.keys.END)
    shown.press(shown.keys.ENTER)
    slowest = time_s[list(shown.points).index(shown.chosen)]
    assert slowest == time_s.max()
    shown.js("document.getElementById('lines').focus()")
    shown.press(shown.keys.HOME, shown.keys.ENTER)
    check_point(shown, fastest)
    button = "#table tbody tr:first-child button"
    shown.js(f"document.querySelector('{button}').focus()")
    shown.press(shown.keys.ARROW_DOWN, shown.keys.ENTER)
    assert shown.chosen == int(shown.the("#table tbody tr:nth-child(2) button").text)
    shown.js("document.querySelector(\"[data-key='rows'] .bars button\").focus()")
    shown.press(shown.keys.ARROW_RIGHT, shown.keys.ENTER)
    assert shown.counts == shown.expected(shown.column("rows") == 16)


def check_linked(shown: Page) -> None:
    """Raise AssertionError unless a point chosen in one view is the chosen one of all, and a brush reaches all."""
    before = {name: shown.picture(name) for name in ("scatter", "lines")}
    target = next(b for b in shown.all("#table tbody th button")[5:] if int(b.text) != shown.chosen)
    point = int(target.text)
    shown.js("arguments[0].scrollIntoView({block: 'center'})", target)
    target.click()
    shown.settle()
    check_point(shown, point)
    assert shown.the("#table tbody tr[aria-current='true'] button").text == str(point)
    values = shown.study.space.values(point)
    for path in ("rows", "dataflow", "clock_hz"):
        said = shown.the(f"[data-key='{path}'] .bars .here").get_attribute("aria-label")
        value = values[path] / 1e6 if path == "clock_hz" else values[path]
        assert re.search(rf" {value:g}[ :]" if path != "dataflow" else rf" {value}:", said.replace(",", "", 1)), said
    for name in ("scatter", "lines"):
        assert f"point {point}" in shown.the(f"#{name}").get_attribute("aria-label")
        assert shown.picture(name) != before[name], name
    before = {name: shown.picture(name) for name in ("scatter", "lines")}
    rows = [b.text for b in shown.all("#table tbody th button")]
    heights = "return [...document.querySelectorAll('[data-key=dataflow] .h-all i')].map((e) => e.style.height)"
    bars = shown.js(heights)
    shown.click("[data-key='rows'] .bars button:nth-child(1)")
    assert shown.counts == shown.expected(shown.column("rows") == 8)
    for name in ("scatter", "lines"):
        assert shown.picture(name) != before[name], name
    assert [b.text for b in shown.all("#table tbody th button")] != rows
    now = shown.js(heights)
    assert now != bars


def test_all_views_are_linked(shown: Page) -> None:
    check_linked(shown)


@pytest.mark.parametrize("view", ["Scatter", "Lines", "Histograms", "Table", "Chosen", "Summary"])
def test_an_unlinked_view_is_noticed(view: str, chromium: Any, small: Path, tmp_path: Path) -> None:
    """A page whose view is drawn once and never again must fail the check above."""
    text = page.TEMPLATE.read_text()
    once = text.replace(f" draw{view}();", f" if (!window.was{view}) {{ draw{view}(); window.was{view} = true; }}", 1)
    assert once != text
    path = tmp_path / "mutant.html"
    path.write_text(page.render(page.data_of(read_study(small)), once))
    with pytest.raises((AssertionError, StopIteration)):
        check_linked(Page(chromium, path, small))


def test_axes_and_colour_can_be_any(shown: Page) -> None:
    from selenium.webdriver.support.ui import Select

    for name, key in (("x", "area_mm2"), ("y", "power_w"), ("c", "dataflow"), ("c", "clock_hz")):
        before = shown.picture("scatter")
        Select(shown.the(f"#{name}")).select_by_value(key)
        shown.settle()
        assert shown.picture("scatter") != before, key
    assert shown.the("#scatter").get_attribute("aria-label").startswith("area (mm²) across, power (")
    area = shown.column("area_mm2")
    left = shown.js("return at(arguments[0])[0]", int(area.argmin()))
    right = shown.js("return at(arguments[0])[0]", int(area.argmax()))
    assert left < right
    before = shown.picture("scatter")
    shown.click("#x-log")
    assert shown.picture("scatter") != before
    middle = int(np.argsort(area)[len(area) // 2])
    box = shown.the("#x-log").is_selected()
    f = np.log(area / area.min()) / np.log(area.max() / area.min()) if box else (area - area.min()) / np.ptp(area)
    assert shown.js("return at(arguments[0])[0]", middle) == pytest.approx(left + f[middle] * (right - left), abs=0.5)


def test_copy_puts_the_yaml_on_the_clipboard(shown: Page) -> None:
    shown.click("#copy")
    assert shown.the("#copy").text == "Copied"
    shown.js("const t = document.createElement('textarea'); t.id = 'probe'; document.body.append(t); t.focus()")
    shown.hold(shown.keys.CONTROL, "v")
    assert shown.the("#probe").get_property("value") == shown.yaml()
    assert len(shown.yaml()) > 500


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def check_contrast(shown: Page) -> None:
    """WCAG: 4.5 for text on its background, 3 for marks."""
    pairs = [("text", "card", 4.5), ("soft", "card", 4.5), ("text", "back", 4.5), ("soft", "back", 4.5),
             ("accent", "card", 3), ("brushed", "card", 3), ("front", "card", 3)]  # fmt: skip
    for a, b, least in pairs:
        colours = shown.js(
            "const e = document.createElement('i'); document.body.append(e); const f = (n) => { e.style.color = "
            "`var(--${n})`; return getComputedStyle(e).color; }; const r = [f(arguments[0]), f(arguments[1])]; "
            "e.remove(); return r", a, b,
        )  # fmt: skip
        dim, bright = sorted(map(luminance, colours))
        assert (bright + 0.05) / (dim + 0.05) >= least, (a, b, colours)


def test_light_and_dark(chromium: Any, small: Path, small_page: Path) -> None:
    for dark in (True, False):
        shown = Page(chromium, small_page, small, dark=dark)
        for is_dark in (dark, not dark):
            back = shown.js("return getComputedStyle(document.body).backgroundColor")
            assert (luminance(back) < 0.1) == is_dark
            assert shown.the("#theme").get_attribute("aria-pressed") == str(is_dark).lower()
            check_contrast(shown)
            before = shown.picture("scatter")
            shown.click("#theme")
            assert shown.picture("scatter") != before
        assert shown.errors() == []


def test_every_control_has_a_name_for_screen_readers(shown: Page) -> None:
    shown.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = shown.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown.driver.execute_cdp_cmd("Accessibility.disable", {})
    focusable = [
        node for node in nodes
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", ()))
        and node["role"]["value"] not in ("RootWebArea", "StaticText")
    ]  # fmt: skip
    assert len(focusable) > 60
    nameless = [n["role"]["value"] for n in focusable if not n.get("name", {}).get("value")]
    assert nameless == []
    roles = [node["role"]["value"] for node in nodes]
    assert {"main", "heading", "application", "status", "table", "columnheader", "rowheader", "toolbar"} <= set(roles)
    motion = shown.js("return getComputedStyle(document.querySelector('.bars i')).transitionDuration")
    assert motion == "0s", "prefers-reduced-motion is not kept"


def test_a_narrow_window_scrolls_one_way_only(chromium: Any, small: Path, small_page: Path) -> None:
    shown = Page(chromium, small_page, small, width=390)
    assert shown.js("return document.documentElement.scrollWidth") <= 390
    shown.pointer("#scatter", tuple(shown.js("return at(arguments[0])", 0)))
    check_point(shown, shown.chosen)
    assert shown.errors() == []


def test_pages_of_little_have_no_errors(chromium: Any, tmp_path: Path) -> None:
    fpga = {"platform": "fqbert-zcu102", "axes": {"model": ["bert-tiny", "bert-mini"], "batch": [1], "pes": [8, 16, 4]}}
    one = {"platform": "tpu-v1", "model": "bert-tiny", "mapping": "largest", "axes": {"clock_hz": [7e8]}}
    tables = {
        "platform": "systolic-32x32", "model": "bert-tiny", "energies": "technology",
        "axes": {"rows": [8, 32], "technology_nm": [22, 7], "input_buffer.capacity_bytes": [16384, 65536]},
    }  # fmt: skip
    for name, description in (("fpga", fpga), ("tables", tables), ("one", one)):
        study = folder_of(description, tmp_path / name)
        path = page.save_page(page.kept(read_study(study)), tmp_path / f"{name}.html")
        shown = Page(chromium, path, study)
        point = shown.chosen
        chip = from_mapping(YAML(typ="safe").load(shown.yaml()), "page")
        assert chip == shown.study.space.chip(point)
        assert sum(shown.counts) == len(shown.points)
        shown.click("#table tbody tr:last-child button")
        shown.press(shown.keys.ESCAPE)
        assert shown.errors() == []
    assert "mapping" in str(shown.the("#command").get_property("value"))


def test_a_page_of_a_hundred_thousand_points(chromium: Any, large: Path, large_page: Path) -> None:
    assert large_page.stat().st_size < 2e6
    shown = Page(chromium, large_page, large)
    counts = shown.data["counts"]
    assert counts["points"] == 102_900
    assert counts["sample"] == page.SAMPLE
    assert counts["shown"] == counts["front"]
    assert shown.js("return performance.getEntriesByType('resource').length") == 0
    check_point(shown, shown.points[shown.data["knee"]])
    shown.click("[data-key='rows'] .bars button:nth-child(3)")
    kept = shown.expected(shown.column("rows") == 32)
    assert shown.counts == kept
    said = int(re.findall(r"about ([\d,]+) of", shown.the("#summary").text)[0].replace(",", ""))
    truth = sum(a["kept"][2] for a in shown.data["axes"] if a["path"] == "rows")
    assert said == pytest.approx(truth, rel=0.1)
    slow = shown.js("const t = performance.now(); filter(); drawTable(); drawHistograms(); drawScatter(); drawLines(); "
                    "document.getElementById('lines').getContext('2d').getImageData(0, 0, 1, 1); "
                    "return performance.now() - t")  # fmt: skip
    assert slow < 2000, "a view takes too long to follow a brush"
    assert shown.errors() == []
