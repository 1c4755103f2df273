"""Tokens kept on disk against tokens made afresh, and every way in which a file cannot be trusted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from outlay.models import token_cache
from outlay.models.generative_heads import GenerationHead
from outlay.models.loading import load_tokenizer
from outlay.models.token_cache import CachedTokens, TokenStore, keep_in
from outlay.models.tokenization import Encoded, collate, encode
from outlay.spec import TaskSpec
from tests.checkpoints import make_t5

LIMIT = 13
N_ROWS = 11


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> str:
    return str(checkpoint)


@pytest.fixture
def tokenizer(model: str) -> Any:
    return load_tokenizer(model, model)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where tokens are kept from 11 rows on."""
    keep_in(tmp_path / "tokens", min_rows=N_ROWS)
    yield tmp_path / "tokens"
    keep_in(None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of a tokenizer."""
    made: list[int] = []
    tokenise = PreTrainedTokenizerBase.__call__

    def counted(tokenizer: Any, texts: Any = None, *rest: Any, **how: Any) -> Any:
        made.append(len(texts if texts is not None else how["text_target"]))
        return tokenise(tokenizer, texts, *rest, **how)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    return made


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


def assert_same(one: Encoded, two: Encoded) -> None:
    for name in ("ids", "type_ids", "offsets"):
        assert getattr(one, name).tolist() == getattr(two, name).tolist(), name
    assert (one.spans is None) == (two.spans is None)
    if one.spans is not None and two.spans is not None:
        assert one.spans.tolist() == two.spans.tolist()
    assert (one.pad_id, one.n_truncated) == (two.pad_id, two.n_truncated)
    rows = np.array([5, 0, 3])
    assert {n: t.tolist() for n, t in collate(one, rows).items()} == {
        n: t.tolist() for n, t in collate(two, rows).items()
    }


@pytest.mark.parametrize("with_spans", [False, True])
@pytest.mark.parametrize("n_segments", [1, 2])
def test_tokens_found_again_are_those_made_afresh(
    tokenizer: Any, texts: list[str], folder: Path, calls: list[int], n_segments: int, with_spans: bool
) -> None:
    rows = [tuple(texts[i : i + n_segments]) for i in range(17)]
    made = encode(tokenizer, rows, LIMIT, with_spans=with_spans)
    found = encode(tokenizer, rows, LIMIT, with_spans=with_spans)
    assert calls == [17]
    assert made.n_truncated > 0
    assert_same(found, made)
    [file] = files(folder)
    tensors = load_file(file)
    assert ("type_ids" in tensors) == (n_segments == 2)
    assert tensors["ids"].dtype in (np.uint8, np.uint16)
    assert tensors["offsets"].dtype == found.offsets.dtype == np.int64
    assert found.lengths.dtype == np.int64  # signed: batches are sorted by their negative


def test_what_is_found_is_mapped_and_outlives_its_file(tokenizer: Any, texts: list[str], folder: Path) -> None:
    rows = [(text,) for text in texts]
    encode(tokenizer, rows, 64)
    found = encode(tokenizer, rows, 64)
    [file] = files(folder)
    maps = Path("/proc/self/maps").read_text()
    assert str(file) in maps
    assert not found.ids.flags.owndata
    before = found.ids.tolist()
    file.unlink()
    assert found.ids.tolist() == before


def test_another_request_is_another_file(
    tokenizer: Any, model: str, texts: list[str], folder: Path, calls: list[int]
) -> None:
    rows = [(text,) for text in texts[:N_ROWS]]
    encode(tokenizer, rows, LIMIT)
    encode(tokenizer, rows, LIMIT + 1)
    encode(tokenizer, rows, LIMIT, with_spans=True)
    encode(tokenizer, rows[::-1], LIMIT)
    encode(tokenizer, [(f"{text} ",) for text in texts[:N_ROWS]], LIMIT)
    other = load_tokenizer(model, model)
    other.add_tokens([AddedToken("film")])
    encode(other, rows, LIMIT)
    left = load_tokenizer(model, model)
    left.truncation_side = "left"
    encode(left, rows, LIMIT)
    assert len(calls) == len(files(folder)) == 7
    # The limit of the last call stays with a tokenizer, and says nothing of the next one.
    encode(tokenizer, rows, LIMIT)
    encode(load_tokenizer(model, model), rows, LIMIT)
    assert len(calls) == 7


def test_segments_are_not_their_concatenation(tokenizer: Any) -> None:
    keep_in(Path("unused"), min_rows=1)
    try:
        keys = {
            token_cache.key_of(tokenizer, "how", rows)
            for rows in ([("ab", "c")], [("a", "bc")], [("abc",)], [("ab",), ("c",)], [("ab\x00", "c")], [("\ud800",)])
        }
        assert None not in keys
        assert len(keys) == 6
    finally:
        keep_in(None)


def test_few_rows_are_not_kept_and_nothing_is_without_a_folder(
    tokenizer: Any, texts: list[str], tmp_path: Path, folder: Path
) -> None:
    encode(tokenizer, [(text,) for text in texts[: N_ROWS - 1]], LIMIT)
    assert files(folder) == []
    keep_in(None)
    encode(tokenizer, [(text,) for text in texts], LIMIT)
    assert files(folder) == []


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: flip(data, len(data) - 1),
        lambda data: data.replace(b'\\"n_truncated\\": 11', b'\\"n_truncated\\": 10'),
        lambda data: b"no safetensors at all",
    ],
    ids=["empty", "cut", "bit", "count", "foreign"],
)
def test_a_damaged_file_is_made_again(
    tokenizer: Any, texts: list[str], folder: Path, calls: list[int], damage: Any
) -> None:
    rows = [(" ".join([text] * 5),) for text in texts[:N_ROWS]]
    made = encode(tokenizer, rows, LIMIT)
    assert made.n_truncated == 11
    [file] = files(folder)
    good = file.read_bytes()
    bad = damage(good)
    assert bad != good
    file.write_bytes(bad)
    assert_same(encode(tokenizer, rows, LIMIT), made)
    assert len(calls) == 2
    assert_same(encode(tokenizer, rows, LIMIT), made)
    assert len(calls) == 2


def test_a_file_under_anothers_name_is_not_taken_for_it(
    tokenizer: Any, texts: list[str], folder: Path, calls: list[int]
) -> None:
    one, two = ([(text,) for text in texts[start : start + N_ROWS]] for start in (0, N_ROWS))
    encode(tokenizer, one, LIMIT)
    [first] = files(folder)
    expected = encode(tokenizer, two, LIMIT)
    [second] = set(files(folder)) - {first}
    second.write_bytes(first.read_bytes())
    assert_same(encode(tokenizer, two, LIMIT), expected)
    assert len(calls) == 3


def test_a_folder_that_cannot_be_written_keeps_nothing(tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    keep_in(tmp_path / "file", min_rows=1)
    try:
        rows = [(text,) for text in texts]
        assert_same(encode(tokenizer, rows, LIMIT), encode(tokenizer, rows, LIMIT))
    finally:
        keep_in(None)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    kept = CachedTokens({"ids": np.arange(1009, dtype=np.uint16)}, {"n": 7})
    store = TokenStore(tmp_path, max_bytes=3 * 2500)
    for age, key in enumerate(("a", "b", "c")):
        store.write(key, kept)
        os.utime(tmp_path / f"{key}.safetensors", (1000 + age, 1000 + age))
    found = store.read("a")
    assert found is not None
    assert (found.arrays["ids"].tolist(), found.counts) == (list(range(1009)), {"n": 7})
    stale, fresh = tmp_path / "d.1.tmp", tmp_path / "e.2.tmp"
    for path in (stale, fresh):
        path.touch()
    os.utime(stale, (time.time() - 7200,) * 2)
    store.write("f", kept)
    assert {path.name for path in files(tmp_path)} == {"a.safetensors", "c.safetensors", "f.safetensors", "e.2.tmp"}
    # One that is larger than the limit alone is kept all the same: it was asked for last.
    TokenStore(tmp_path, max_bytes=1).write("g", kept)
    assert {path.name for path in files(tmp_path)} == {"g.safetensors", "e.2.tmp"}


def test_answers_that_are_spelt_are_kept_too(texts: list[str], tmp_path: Path, folder: Path, calls: list[int]) -> None:
    model = str(make_t5(tmp_path / "t5", texts, n_layers=1, hidden_size=16))
    form = TaskSpec("generation", (), LIMIT, 5)
    head = GenerationHead(load_tokenizer(model, model), form, "seq2seq")
    read = head.tokenize([(text,) for text in texts[:N_ROWS]])
    keep_in(None)
    expected = head.encode_answers(read, texts[:N_ROWS])
    assert expected.n_cut > 0
    keep_in(folder, min_rows=N_ROWS)
    made = head.encode_answers(read, texts[:N_ROWS])
    calls.clear()
    found = head.encode_answers(read, texts[:N_ROWS])
    assert calls == []
    for units in (made, found):
        assert units.ids.tolist() == expected.ids.tolist()
        assert units.offsets.tolist() == expected.offsets.tolist()
        assert (units.n_cut, units.n_unaligned) == (expected.n_cut, 0)
    head.encode_answers(read, texts[1 : N_ROWS + 1])
    assert calls == [N_ROWS]
