"""Texts to batches, against the tokenizer's own output and plain loops."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.train.encode import collate, encode, inference_batches, training_batches
from outlay.train.models import load_tokenizer
from tests.toys import encoded_rows

LIMIT = 13
CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=400).map(lambda rows: np.array(rows, dtype=np.int64))


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


@given(LENGTHS, st.integers(1, 17), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_an_epoch_takes_every_row_once_and_is_a_function_of_seed_and_epoch(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> None:
    batches = training_batches(lengths, batch_size, seed, epoch)
    random.seed(0)  # what the global generators hold must not matter
    again = training_batches(lengths, batch_size, seed, epoch)
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert max(len(batch) for batch in batches) <= batch_size


def test_another_seed_or_epoch_is_another_order() -> None:
    lengths = np.arange(1, 98)
    orders = {
        tuple(int(i) for b in training_batches(lengths, 5, seed, epoch) for i in b)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def padding_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - int(lengths.sum()) / padded


def test_grouping_by_length_saves_most_of_the_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.0, 0.7, 1709), 3, 256).astype(np.int64)
    order = rng.permutation(len(lengths))
    unsorted = padding_share(lengths, [order[i : i + 16] for i in range(0, len(order), 16)])
    grouped = padding_share(lengths, training_batches(lengths, 16, 0, 0))
    inference = padding_share(lengths, list(inference_batches(lengths, 16)))
    assert unsorted > 0.5
    assert grouped < unsorted / 6
    assert inference < unsorted / 6


def test_batches_of_an_epoch_do_not_come_by_length() -> None:
    lengths = np.sort(np.random.default_rng(1).integers(3, 100, 1709))
    longest = [int(lengths[batch].max()) for batch in training_batches(lengths, 16, 0, 0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


@given(LENGTHS, st.integers(1, 17))
@settings(max_examples=100, deadline=None)
def test_inference_takes_every_row_once_by_falling_length(lengths: np.ndarray, batch_size: int) -> None:
    batches = [batch.tolist() for batch in inference_batches(lengths, batch_size)]
    order = [i for batch in batches for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    assert all(len(batch) == batch_size for batch in batches[:-1])
