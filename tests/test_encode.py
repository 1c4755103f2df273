"""Texts to tensors, against the tokenizer's own output and plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from outlay.models.loading import load_tokenizer
from outlay.models.tokenization import collate, encode
from tests.toys import encoded_rows

LIMIT = 13
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return load_tokenizer(str(checkpoint), str(checkpoint))


@pytest.fixture(scope="module")
def pairs(texts: list[str]) -> list[tuple[str, ...]]:
    return [(texts[i], texts[i + 1]) for i in range(0, 60, 2)]


def row_of(encoded: Any, i: int) -> tuple[list[int], list[int]]:
    start, stop = encoded.offsets[i], encoded.offsets[i + 1]
    return encoded.ids[start:stop].tolist(), encoded.type_ids[start:stop].tolist()


@pytest.mark.parametrize("limit", [LIMIT, 64])
def test_pairs_are_the_tokenizers_own_two_segments(tokenizer: Any, pairs: list[tuple[str, ...]], limit: int) -> None:
    encoded = encode(tokenizer, pairs, limit)
    for i, (first, second) in enumerate(pairs):
        own = tokenizer(first, second, truncation="longest_first", max_length=limit, return_token_type_ids=True)
        assert row_of(encoded, i) == (own["input_ids"], own["token_type_ids"])
        assert set(own["token_type_ids"]) == {0, 1}
    assert len(encoded) == len(pairs)
    assert encoded.n_tokens == sum(encoded.lengths) == len(encoded.ids)


def test_single_segments_are_the_tokenizers_own_row_by_row(tokenizer: Any, texts: list[str]) -> None:
    encoded = encode(tokenizer, [(text,) for text in texts], 64)
    for i, text in enumerate(texts):
        assert row_of(encoded, i)[0] == tokenizer(text)["input_ids"]
    # every word of these texts is known: an encoder that reads [UNK] everywhere would pass the comparison above
    assert tokenizer.unk_token_id not in encoded.ids.tolist()
    assert encoded.pad_id == tokenizer.pad_token_id


def test_long_inputs_are_encoded_across_chunks(tokenizer: Any, texts: list[str]) -> None:
    many = [(texts[i % len(texts)],) for i in range(4096 + 7)]
    encoded = encode(tokenizer, many, 64)
    assert len(encoded) == len(many)
    assert row_of(encoded, 4097) == row_of(encode(tokenizer, [many[4097]], 64), 0)


def test_truncation_counts_the_longer_rows_and_not_the_exact_fit(tokenizer: Any) -> None:
    # [CLS] and [SEP] take two places: 11 words fit exactly into 13 tokens
    words = [10, 11, 12, 40, 11]
    encoded = encode(tokenizer, [(" ".join(["film"] * n),) for n in words], LIMIT)
    assert encoded.lengths.tolist() == [12, 13, 13, 13, 13]
    assert encoded.n_truncated == 2
    # a pair needs a third special token
    pairs = encode(tokenizer, [("film " * a, "plot " * b) for a, b in [(4, 6), (5, 6), (1, 90)]], LIMIT)
    assert pairs.lengths.tolist() == [13, 13, 13]
    assert pairs.n_truncated == 2


class Slow:
    """A tokenizer that keeps nothing of what it cut off, as one without a backend does."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.pad_token_id = tokenizer.pad_token_id

    def __call__(self, *texts: Any, **settings: Any) -> BatchEncoding:
        return BatchEncoding(dict(self._tokenizer(*texts, **settings)))


def test_a_slow_tokenizers_rows_are_counted_alike(tokenizer: Any) -> None:
    for rows in ([("film " * n,) for n in (10, 11, 12, 40)], [("film " * 4, "plot " * n) for n in (6, 7, 90)]):
        slow, fast = encode(Slow(tokenizer), rows, LIMIT), encode(tokenizer, rows, LIMIT)
        assert slow.n_truncated == fast.n_truncated == 2
        assert slow.ids.tolist() == fast.ids.tolist()


def test_truncation_takes_from_the_longer_segment(tokenizer: Any) -> None:
    encoded = encode(tokenizer, [("film " * 3, "plot " * 50)], LIMIT)
    ids, type_ids = row_of(encoded, 0)
    assert ids.count(tokenizer.convert_tokens_to_ids("film")) == 3
    assert ids.count(tokenizer.convert_tokens_to_ids("plot")) == LIMIT - 3 - 3
    assert type_ids.count(0) == 5


@pytest.mark.parametrize("rows", [[("a", "b", "c")], [()], [("a",), ("a", "b")], [("a", "b"), ("a",)]])
def test_other_numbers_of_segments_are_refused(tokenizer: Any, rows: list[tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="one or two segments"):
        encode(tokenizer, rows, LIMIT)


def test_no_rows_encode_to_no_rows(tokenizer: Any) -> None:
    assert (len(encode(tokenizer, [], LIMIT)), encode(tokenizer, [], LIMIT).n_tokens) == (0, 0)


def test_collate_pads_on_the_right_with_the_pad_id() -> None:
    rows = [[11, 12, 13], [21, 22, 23, 24, 25, 26, 27], [31], [41, 42, 43, 44, 45]]
    batch = collate(encoded_rows(rows, pad_id=99), [3, 0, 2])
    assert batch["input_ids"].tolist() == [[41, 42, 43, 44, 45], [11, 12, 13, 99, 99], [31, 99, 99, 99, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[1, 0, 1, 0, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert {name: (t.shape, t.dtype) for name, t in batch.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (torch.Size([3, 5]), torch.int64)
    )


def test_collate_reads_numpy_rows_as_it_reads_lists() -> None:
    encoded = encoded_rows([[5] * n for n in (2, 7, 3)])
    by_list, by_array = collate(encoded, [2, 0]), collate(encoded, np.array([2, 0]))
    assert all(torch.equal(by_list[name], by_array[name]) for name in by_list)
