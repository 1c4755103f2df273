"""What is worked out once: for whom, told apart by what, and what an error leaves behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outlay.plan.cache import Memo, once
from outlay.plan.quotes import Quoter
from outlay.plan.steps import Recipe
from outlay.plan.strategies import strategy
from tests.knowledge import known


class Counting:
    """Counts how often it is asked in earnest."""

    def __init__(self, memo: Memo) -> None:
        self.memo = memo
        self.n_calls = 0

    @once
    def paired(self, number: int, rows: list[int]) -> tuple[int, list[int]]:
        self.n_calls += 1
        return number, rows


def test_numbers_are_told_apart_by_value_and_objects_by_which_they_are() -> None:
    memo, rows = Memo(), [1, 2]
    one, other = Counting(memo), Counting(memo)
    first = one.paired(1000, rows)
    assert other.paired(int("1000"), rows) is first
    assert (one.n_calls, other.n_calls) == (1, 0)
    equal = [1, 2]
    assert one.paired(1000, equal)[1] is equal
    assert one.paired(1001, rows) == (1001, rows)
    assert one.n_calls == 3
    assert Counting(Memo()).paired(1000, rows) is not first


def test_an_object_in_a_key_lives_as_long_as_the_key() -> None:
    asked = Counting(Memo())
    kept = [asked.paired(7, [row])[1] for row in range(1000)]  # no list may take the place of one that is gone
    assert kept == [[row] for row in range(1000)]
    assert asked.n_calls == 1000


@pytest.mark.parametrize(("keep", "n_tries"), [(None, 3), (KeyError, 3), (ValueError, 1), (Exception, 1)])
def test_an_error_is_kept_only_where_it_is_to_be(keep: type[Exception] | None, n_tries: int) -> None:
    memo, tried = Memo(), []

    def fails() -> int:
        tried.append(1)
        raise ValueError("no number")

    for _ in range(3):
        with pytest.raises(ValueError, match="no number"):
            memo.once("number", fails, keep=keep)
    assert len(tried) == n_tries


def test_another_budget_shares_what_was_worked_out_and_other_knowledge_does_not() -> None:
    rich = known(40_000_000, n_initial=50)
    poor = rich.asked(18_000_000, 50)
    assert (poor.budget_micros, poor.request.n_initial, poor.memo) == (18_000_000, 50, rich.memo)
    large, small = (strategy("distill").ask(knows, []) for knows in (rich, poor))
    assert isinstance(large, Recipe)
    assert isinstance(small, Recipe)
    blocks = [recipe.final.model.inputs[0] for recipe in (large, small)]
    assert blocks[0] is blocks[1]
    people = rich.offers["human"]
    dear = replace(rich, offers={"human": replace(people, price=replace(people.price, usd=people.price.usd * 2))})
    assert dear.memo is not rich.memo
    (buy, *_) = large.steps()
    assert Quoter(dear).quote(buy).charge_micros == 2 * Quoter(rich).quote(buy).charge_micros
