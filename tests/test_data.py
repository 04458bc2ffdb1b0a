"""Are texts, labels, token ids and batches what they are said to be? Made texts here; the real ones where fetched."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from accelsim_models import data, fetch
from hypothesis import given
from hypothesis import strategies as st

from accelsim.errors import SpecError


def held_out(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100 < 20


def pairs(texts: data.Texts) -> list[tuple[str, int]]:
    return list(zip(texts.texts, texts.labels.tolist(), strict=True))


# --- movie reviews ----------------------------------------------------------------------------------------------------


def test_class_and_side_of_a_review():
    lines = [(1.5, "Fine"), (0.0, "So so"), (-0.25, "Dull, dull"), (2.0, "FINE"), (-4, "é "), (0.1, "Fine")]
    table = "".join(f"{i}\t{mean}\t{text}\r\n" for i, (mean, text) in enumerate(lines))
    found = data.read_movie_reviews(table)
    kept = [(text, int(mean > 0)) for mean, text in lines if mean != 0]
    assert found.classes == ("negative", "positive")
    assert pairs(found.dev) == [pair for pair in kept if held_out(pair[0].lower())]
    assert pairs(found.train) == [pair for pair in kept if not held_out(pair[0].lower())]
    assert found.train.labels.dtype == np.int64


def test_about_a_fifth_is_held_out():
    found = data.read_movie_reviews("".join(f"{i}\t{(-1) ** i}\ttext {i}\n" for i in range(2000)))
    assert 340 < len(found.dev) < 460
    assert len(found.train) + len(found.dev) == 2000


@pytest.mark.parametrize("line", ["1\t2.0", "1\tgood\ttext", "1\t2\ttext\tmore", "", "1\tnan\ttext"])
def test_a_line_that_is_no_review(line):
    with pytest.raises(SpecError, match="movie reviews: line 2"):
        data.read_movie_reviews(f"1\t2.0\ttext\n{line}\n")


# --- tweets -----------------------------------------------------------------------------------------------------------


def table(*rows: tuple[str, str]) -> str:
    return "sentiment,confidence,text\n" + "".join(f'{label},1,"{text}"\n' for label, text in rows)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Hello,  World!", "hello world"),
        ("RT @a_b1: hello world http://t.co/Xy1", "hello world"),
        ("hello &amp; world https", "hello world"),
        ("hello @c www.x.org/y\rworld", "hello world"),
        ("“hello” wörld \x8a_ä", "hello w rld"),
        ("a b c d e f g h i j", "a b c d e f g h"),
        ("@a http://b", ""),
        ("httpd is a server", "httpd is a server"),
        ("x_http://b/c?d=e http: www.f", "x"),
        ("start a party", "start a party"),
    ],
)
def test_the_key_of_a_tweet(text, key):
    assert data.tweet_key(text) == key


def test_the_first_of_near_duplicates_stays():
    found = data.read_tweets(
        table(("positive", "Good   flight!"), ("positive", "@x good flight"), ("neutral", "a plane"))
    )
    assert sorted(pairs(found.train) + pairs(found.dev)) == [("Good flight!", 2), ("a plane", 1)]


def test_contradicted_and_wordless_tweets_are_dropped():
    rows = [
        ("positive", "good flight"),
        ("neutral", "good FLIGHT http://t.co"),
        ("positive", "good flight"),
        ("neutral", "@x"),
    ]
    found = data.read_tweets(table(*rows, ("negative", "late")))
    assert pairs(found.train) + pairs(found.dev) == [("late", 0)]


def test_no_near_duplicate_on_the_other_side():
    rows = [("neutral", f"text {i}") for i in range(300)]
    decorated = [("neutral", f"RT @a: TEXT, {i}! http://b") for i in range(300)]
    found = data.read_tweets(table(*decorated, *rows))
    keys = {f"text {i}" for i in range(300)}
    assert {data.tweet_key(text) for text in found.dev.texts} == {key for key in keys if held_out(key)}
    assert sorted(found.train.texts + found.dev.texts) == sorted(text for _, text in decorated)


def test_a_limit_is_the_same_each_time_and_only_grows():
    rows = [(label, f"{label} {i}") for i in range(100) for label in ("negative", "neutral", "positive")]
    every = pairs((whole := data.read_tweets(table(*rows))).train) + pairs(whole.dev)
    before: set[tuple[str, int]] = set()
    for limit in (1, 10, 99, 100, 1000):
        found = data.read_tweets(table(*rows), limit)
        now = set(pairs(found.train)) | set(pairs(found.dev))
        assert before < now or limit == 1000
        assert [sum(label == c for _, label in now) for c in range(3)] == [min(limit, 100)] * 3
        assert set(pairs(found.train)) <= set(pairs(whole.train))
        assert pairs(found.train) == [pair for pair in pairs(whole.train) if pair in now]
        before = now
    assert before == set(every)


def test_bad_tweets():
    with pytest.raises(SpecError, match="limit_per_class: got 0"):
        data.read_tweets(table(), 0)
    with pytest.raises(SpecError, match="tweets: row 2"):
        data.read_tweets(table(("neutral", "a"), ("angry", "b")))


def test_a_label_for_each_text():
    with pytest.raises(SpecError, match="one for each text"):
        data.Texts(("a", "b"), np.zeros(3, np.int64))
    with pytest.raises(SpecError, match="int64"):
        data.Texts(("a",), np.zeros(1, np.int32))


# --- token ids --------------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "film"]


@pytest.fixture
def folder(tmp_path):
    """A word-level tokenizer whose file asks for truncation at 4 and padding to 9."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, normalizers, pre_tokenizers, processors

    model = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    model.enable_truncation(4)
    model.enable_padding(length=9)
    model.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_encodes_without_the_files_own_truncation_and_padding(folder):
    encoded = data.tokenizer(folder).encode(["a b c film film", "Film", "x"])
    assert [ids.tolist() for ids in encoded] == [[2, 4, 5, 6, 7, 7, 3], [2, 7, 3], [2, 1, 3]]
    assert {ids.dtype for ids in encoded} == {np.dtype(np.int64)}
    assert data.tokenizer(folder).encode([]) == []


def test_cuts_at_the_maximum_or_refuses(folder):
    assert [ids.tolist() for ids in data.tokenizer(folder, 4).encode(["a b c"])] == [[2, 4, 5, 3]]
    strict = data.tokenizer(folder, 4, truncate=False)
    assert [ids.tolist() for ids in strict.encode(["a b"])] == [[2, 4, 5, 3]]
    with pytest.raises(SpecError, match=r"texts\[1\]: got '5 tokens', want at most 4"):
        strict.encode(["a b", "a b c"])


@pytest.mark.parametrize("text", ["", " \t\n", None, "a \ud800"], ids=["empty", "white", "none", "surrogate"])
def test_a_text_that_is_none(folder, text):
    with pytest.raises(SpecError, match=r"texts\[2\]"):
        data.tokenizer(folder).encode(["a", "b", text])


def test_one_text_is_not_a_list_of_letters(folder):
    with pytest.raises(SpecError, match="a list of texts"):
        data.tokenizer(folder).encode("a b c")


def test_a_maximum_beyond_the_model(folder):
    for bad in (513, 2, 0, -1, 64.0):
        with pytest.raises(SpecError, match=f"max_length: got {bad}, want an integer from 3 to 512"):
            data.tokenizer(folder, bad)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 40}))
    assert data.tokenizer(folder, 40).max_length == 40
    with pytest.raises(SpecError, match="from 3 to 40"):
        data.tokenizer(folder, 41)


def test_a_tokenizer_that_cannot_be_read(folder):
    with pytest.raises(SpecError, match="a readable file"):
        data.tokenizer(folder / "nowhere")
    (folder / "config.json").write_text("[")
    with pytest.raises(SpecError, match=r"config\.json"):
        data.tokenizer(folder)
    (folder / "config.json").unlink()
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(SpecError, match=r"tokenizer\.json"):
        data.tokenizer(folder)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SpecError, match=r"pip install \"accelsim\[torch\]\""):
        data.tokenizer(tmp_path)


def test_nothing_heavy_is_imported():
    heavy = "{'torch', 'transformers', 'tokenizers', 'pandas'}"
    code = f"import sys, accelsim_models.data; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- batches ----------------------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 40), max_size=60)


def texts_of(lengths: list[int]) -> list[data.Ids]:
    return [np.arange(1, n + 1, dtype=np.int64) + 100 * place for place, n in enumerate(lengths)]


def check(found: list[data.Batch], encoded: list[data.Ids], batch: int, multiple: int) -> None:
    """Every text once, whole, filled up to the next multiple with 0 and masked there."""
    rows = [row for one in found for row in one.rows.tolist()]
    assert sorted(rows) == list(range(len(encoded)))
    assert sum(len(one.rows) < batch for one in found) <= 1
    for one in found:
        assert {a.dtype for a in (one.rows, one.input_ids, one.attention_mask)} == {np.dtype(np.int64)}
        longest = max(len(encoded[row]) for row in one.rows)
        seq = one.input_ids.shape[1]
        assert seq % multiple == 0
        assert longest <= seq < longest + multiple
        for row, ids, mask in zip(one.rows, one.input_ids, one.attention_mask, strict=True):
            n = len(encoded[row])
            assert ids.tolist() == encoded[row].tolist() + [0] * (seq - n)
            assert mask.tolist() == [1] * n + [0] * (seq - n)


@given(LENGTHS, st.integers(1, 9), st.sampled_from([1, 7, 8]), st.booleans())
def test_batches_hold_every_text_once(lengths, batch, multiple, sort):
    encoded = texts_of(lengths)
    found = list(data.batches(encoded, batch, sort=sort, multiple=multiple))
    check(found, encoded, batch, multiple)
    rows = [row for one in found for row in one.rows.tolist()]
    assert rows == (sorted(rows, key=lambda row: (lengths[row], row)) if sort else sorted(rows))


@given(LENGTHS, st.integers(1, 9), st.sampled_from([1, 8]), st.integers(0, 9), st.integers(0, 9))
def test_shuffled_batches_hold_every_text_once(lengths, batch, multiple, seed, epoch):
    encoded = texts_of(lengths)
    check(list(data.shuffled_batches(encoded, batch, seed, epoch, multiple)), encoded, batch, multiple)


def order(lengths: list[int], seed: int, epoch: int) -> list[list[int]]:
    return [one.rows.tolist() for one in data.shuffled_batches(texts_of(lengths), 4, seed, epoch)]


def test_shuffled_batches_depend_on_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 60, 1000).tolist()
    assert order(lengths, 0, 0) == order(lengths, 0, 0)
    assert len({str(order(lengths, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_shuffled_batches_are_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 61, 1000).tolist()
    spread = [max(lengths[r] for r in rows) - min(lengths[r] for r in rows) for rows in order(lengths, 0, 0)]
    assert np.mean(spread) < 3
    places = [row for rows in order(lengths, 0, 0) for row in rows]
    assert abs(np.corrcoef(places, np.arange(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef([lengths[p] for p in places], np.arange(1000))[0, 1]) < 0.2


def test_bad_batches():
    one = texts_of([3])
    for make in (data.batches, lambda e, b, **k: data.shuffled_batches(e, b, 0, 0, **k)):
        with pytest.raises(SpecError, match="batch: got 0"):
            make(one, 0)
        with pytest.raises(SpecError, match="multiple: got 0"):
            make(one, 1, multiple=0)
        with pytest.raises(SpecError, match=r"encoded\[1\]: got 'no token'"):
            make([*one, np.zeros(0, np.int64)], 1)
        assert list(make([], 4)) == []
    for seed, epoch in ((-1, 0), (0, -1)):
        with pytest.raises(SpecError, match="got -1, want an integer >= 0"):
            data.shuffled_batches(one, 1, seed, epoch)


# --- the real texts ---------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_the_real_movie_reviews():
    found = data.movie_reviews()
    assert (len(found.train), len(found.dev)) == (8469, 2099)
    assert np.bincount(found.train.labels).tolist() == [4265, 4204]
    assert np.bincount(found.dev.labels).tolist() == [1061, 1038]
    assert not {text.lower() for text in found.train.texts} & {text.lower() for text in found.dev.texts}


@pytest.mark.weights
def test_the_real_tweets():
    found = data.tweets()
    assert (len(found.train), len(found.dev)) == (26838, 6691)
    assert np.bincount(found.train.labels).tolist() == [11644, 10190, 5004]
    assert np.bincount(found.dev.labels).tolist() == [2987, 2518, 1186]
    keys = [[data.tweet_key(text) for text in side.texts] for side in (found.train, found.dev)]
    assert len(set(keys[0]) | set(keys[1])) == 26838 + 6691
    small = data.tweets(limit_per_class=1000)
    assert (np.bincount(small.train.labels) + np.bincount(small.dev.labels)).tolist() == [1000] * 3


@pytest.mark.weights
def test_the_real_tokenizer():
    encoded = data.tokenizer(fetch.minilm_l6(), max_length=128, truncate=False).encode(
        [text for side in ("train", "dev") for text in getattr(data.movie_reviews(), side).texts]
    )
    assert {(ids[0], ids[-1]) for ids in encoded} == {(101, 102)}
    lengths = [len(ids) for ids in encoded]
    assert max(lengths) == 79
    assert sum(n > 64 for n in lengths) == 6
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(fetch.minilm_l6())
    texts = list(data.movie_reviews().dev.texts[:50])
    expected = other(texts, truncation=True, max_length=20)["input_ids"]
    assert [ids.tolist() for ids in data.tokenizer(fetch.minilm_l6(), 20).encode(texts)] == expected
