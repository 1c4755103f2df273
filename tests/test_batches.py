"""Which rows go together, against plain loops over random lengths."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from outlay.settings import TrainSettings
from outlay.train.batching import count_batches, inference_batches, training_batches
from outlay.train.distributed import current_process
from outlay.train.schedule import TrainSchedule

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=400).map(lambda rows: np.array(rows, dtype=np.int64))
BUDGETS = st.integers(1, 300)


def log_normal(n: int, seed: int = 0) -> np.ndarray:
    """Lengths as texts have them."""
    return np.clip(np.random.default_rng(seed).lognormal(3.0, 0.7, n), 3, 256).astype(np.int64)


def padded(lengths: np.ndarray, batch: np.ndarray) -> int:
    return len(batch) * int(lengths[batch].max())


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


# --- by rows ---------------------------------------------------------------------------------------------------------


def by_rows(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The order that trainings by rows have always had, in plain Python."""
    rng = random.Random(f"{seed}:{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), 50 * batch_size):
        window = sorted(order[start : start + 50 * batch_size], key=lambda row: lengths[row])
        batches += [window[k : k + batch_size] for k in range(0, len(window), batch_size)]
    rng.shuffle(batches)
    return batches


@given(LENGTHS, st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_batches_by_rows_are_those_of_the_plain_loop(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> None:
    found = training_batches(lengths, batch_size, seed, epoch)
    assert [batch.tolist() for batch in found] == by_rows(lengths.tolist(), batch_size, seed, epoch)
    assert {batch.dtype for batch in found} == {np.dtype(np.int64)}


# --- by tokens -------------------------------------------------------------------------------------------------------


@given(LENGTHS, BUDGETS, st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_a_budget_of_tokens_is_kept_and_every_row_taken_once(
    lengths: np.ndarray, budget: int, seed: int, epoch: int
) -> None:
    batches = training_batches(lengths, 3, seed, epoch, batch_tokens=budget)
    np.random.seed(0)  # what the global generators hold must not matter
    again = training_batches(lengths, 5, seed, epoch, batch_tokens=budget)
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(padded(lengths, batch) <= budget or len(batch) == 1 for batch in batches)


@given(LENGTHS, BUDGETS)
@settings(max_examples=100, deadline=None)
def test_no_batch_by_tokens_could_have_taken_the_next_row(lengths: np.ndarray, budget: int) -> None:
    """All rows in one window, so that batches by longest row are in the order they were cut in; of rows that are all of one
    length, the batch that was left over came last."""
    assume(50 * budget >= int(lengths.sum()))
    batches = training_batches(lengths, 1, 0, 0, batch_tokens=budget)
    batches.sort(key=lambda batch: (int(lengths[batch].max()), int(lengths[batch].min()), -len(batch)))
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * int(lengths[following].min()) > budget


def test_batches_by_tokens_are_full_shuffled_and_hardly_padded() -> None:
    lengths = log_normal(20011)
    budget = 2003
    epochs = [training_batches(lengths, 1, 0, epoch, batch_tokens=budget) for epoch in (0, 1)]
    assert [b.tolist() for b in epochs[0]] != [b.tolist() for b in epochs[1]]
    for batches in epochs:
        assert padding_share(lengths, batches) < 0.06
        # the least number of batches is that of no padding at all
        assert len(batches) < 1.1 * lengths.sum() / budget
        longest = [int(lengths[batch].max()) for batch in batches]
        assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2
    # Rows that were together once are not together again: a window holds a part of the rows only.
    together = [{(int(a), int(b)) for batch in batches for a, b in pairwise(batch)} for batches in epochs]
    assert len(together[0] & together[1]) < 0.02 * len(lengths)


def test_no_rows_are_no_batches() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert training_batches(nothing, 3, 0, 0) == []
    assert training_batches(nothing, 3, 0, 0, batch_tokens=7) == []
    assert count_batches(nothing, 3, 0, 0) == count_batches(nothing, 3, 0, 0, 7) == 0
    assert list(inference_batches(nothing, 3, 7)) == []


@given(LENGTHS, st.integers(1, 17), BUDGETS)
@settings(max_examples=100, deadline=None)
def test_inference_within_a_budget_takes_rows_by_falling_length(
    lengths: np.ndarray, batch_size: int, budget: int
) -> None:
    batches = list(inference_batches(lengths, batch_size, budget))
    order = [int(row) for batch in batches for row in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for number, batch in enumerate(batches):
        assert len(batch) <= batch_size
        assert padded(lengths, batch) <= budget or len(batch) == 1
        if number < len(batches) - 1:
            assert len(batch) == batch_size or (len(batch) + 1) * int(lengths[batch[0]]) > budget


# --- a whole training ------------------------------------------------------------------------------------------------


def schedule_of(lengths: np.ndarray, **more: int) -> TrainSchedule:
    settings = TrainSettings(**{"epochs": 3, "batch_size": 7, "learning_rate": 0.1, **more})
    return TrainSchedule(lengths, settings, current_process())


@given(LENGTHS, st.one_of(st.none(), BUDGETS), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_step_has_its_epoch_and_batch(lengths: np.ndarray, budget: int | None, epochs: int, seed: int) -> None:
    schedule = schedule_of(lengths, batch_tokens=budget, epochs=epochs, seed=seed)
    every = [
        (epoch, batch.tolist())
        for epoch in range(epochs)
        for batch in training_batches(lengths, 7, seed, epoch, batch_tokens=budget)
    ]
    assert schedule.n_steps == len(every)
    for step, (epoch, rows) in enumerate(every):
        assert schedule.epoch(step) == epoch
        assert schedule.rows(step).tolist() == rows
        assert schedule.n_tokens(step) == lengths[rows].sum()
        assert schedule.ends_epoch(step) == (step + 1 == len(every) or every[step + 1][0] != epoch)
    for outside in (-1, len(every)):
        with pytest.raises(IndexError, match=rf"step {outside} of {len(every)}"):
            schedule.rows(outside)


def test_epochs_of_a_budget_differ_in_their_batches() -> None:
    lengths = log_normal(5003)
    counts = [count_batches(lengths, 7, 0, epoch, 503) for epoch in range(11)]
    assert len(set(counts)) > 1
    assert schedule_of(lengths, batch_tokens=503, epochs=11, seed=0).n_steps == sum(counts)
