"""What is worked out once: for whom, told apart by what, and what an error leaves behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outlay.plan.cache import Memo, cached
from outlay.plan.quotes import Quoter
from outlay.plan.steps import Buy, Model, Recipe
from outlay.plan.strategies import strategy
from tests.knowledge import known


class Counting:
    """Counts how often it is asked in earnest."""

    def __init__(self, memo: Memo) -> None:
        self.memo = memo
        self.n_calls = 0

    @cached()
    def paired(self, number: int | Model, step: Buy) -> tuple[int | Model, Buy]:
        self.n_calls += 1
        return number, step

    @cached(keep=KeyError)
    def refused(self, error: type[Exception]) -> None:
        self.n_calls += 1
        raise error("no such label")


def purchase(n: int = 1) -> Buy:
    return Buy("train", n, 0, "rows", "seller")


def test_values_are_told_apart_by_value_and_steps_by_which_they_are() -> None:
    memo, step, equal = Memo(), purchase(), purchase()
    one, other = Counting(memo), Counting(memo)
    first = one.paired(1000, step)
    assert other.paired(int("1000"), step) is first
    assert (one.n_calls, other.n_calls) == (1, 0)
    assert one.paired(1000, equal)[1] is equal
    assert one.paired(1001, step) == (1001, step)
    assert one.n_calls == 3
    models = [Model("cut:2", "base", "f0") for _ in range(2)]
    assert one.paired(models[0], step) is one.paired(models[1], step)
    assert Counting(Memo()).paired(1000, step) is not first


def test_a_step_in_a_key_lives_as_long_as_the_key() -> None:
    asked = Counting(Memo())
    kept = [asked.paired(7, purchase(n))[1].n for n in range(1000)]  # no step may take the place of one that is gone
    assert kept == list(range(1000))
    assert asked.n_calls == 1000


@pytest.mark.parametrize(("error", "n_tries"), [(ValueError, 3), (LookupError, 3), (KeyError, 1)])
def test_an_error_is_kept_only_where_it_is_to_be(error: type[Exception], n_tries: int) -> None:
    asked = Counting(Memo())
    for _ in range(3):
        with pytest.raises(error):
            asked.refused(error)
    assert asked.n_calls == n_tries


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
