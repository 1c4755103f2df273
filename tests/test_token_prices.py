"""Prices of tokens: exact to the last digit, found by a model's name, and paid through the ledger as dollars."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import BudgetExceeded, MoneyError, UnknownItem
from outlay.money.amounts import DOLLAR_UNIT, Price, PriceBook, Quote
from outlay.money.ledger import Ledger
from outlay.money.prices.tokens import (
    KINDS,
    TIERS,
    TokenPrices,
    TokenUsage,
    priced_model,
    token_bill,
    token_item,
    token_prices,
)
from outlay.report.receipt import WIDTH, receipt, render_text, to_json

USD = 1_000_000
PRICES = TokenPrices(Decimal("2.5E-7"), Decimal("2.5E-8"), Decimal("3.125E-7"), Decimal("0.000002"))


def usages(most: int = 10**9) -> st.SearchStrategy[TokenUsage]:
    return st.builds(TokenUsage, *(st.integers(0, most) for _ in KINDS))


def prices() -> st.SearchStrategy[TokenPrices]:
    usd = st.decimals(min_value=0, max_value=1, places=15, allow_nan=False)
    return st.builds(TokenPrices, usd, usd, usd, usd)


# --- cost ------------------------------------------------------------------------------------------------------------


def test_a_cost_as_one_adds_it_up_by_hand() -> None:
    # 1,200 at $0.25 and 800 at $0.025, 16 at $0.3125 and 50 at $2 per million: 0.0003 + 0.00002 + 0.000005 + 0.0001.
    assert PRICES.cost(TokenUsage(1_200, 800, 16, 50)) == Fraction("0.000425")
    assert PRICES.cost(TokenUsage(input=1)) == Fraction(1, 4_000_000)
    assert PRICES.cost(TokenUsage()) == 0
    assert TokenPrices.free().cost(TokenUsage(10**12, 10**12, 10**12, 10**12)) == 0


@given(prices(), st.lists(usages(), max_size=6).flatmap(lambda each: st.tuples(st.just(each), st.permutations(each))))
def test_costs_add_up_in_any_order(priced: TokenPrices, orders: tuple[list[TokenUsage], list[TokenUsage]]) -> None:
    one, other = orders
    together = sum(one, start=TokenUsage())
    assert together == sum(other, start=TokenUsage())
    assert sum(map(priced.cost, one)) == sum(map(priced.cost, other)) == priced.cost(together)
    by_hand = sum(Fraction(getattr(priced, kind)) * sum(getattr(each, kind) for each in one) for kind in KINDS)
    assert priced.cost(together) == by_hand


@given(prices(), usages(), st.data())
def test_the_bound_holds_however_the_input_is_counted(
    priced: TokenPrices, bound: TokenUsage, data: st.DataObject
) -> None:
    n_input = bound.input + bound.cached + bound.cache_write
    cached = data.draw(st.integers(0, n_input))
    written = data.draw(st.integers(0, n_input - cached))
    output = data.draw(st.integers(0, bound.output))
    used = TokenUsage(n_input - cached - written, cached, written, output)
    assert priced.cost(used) <= priced.most(bound)
    dearest = max(priced.input, priced.cached, priced.cache_write)
    assert priced.most(bound) == n_input * Fraction(dearest) + bound.output * Fraction(priced.output)


@pytest.mark.parametrize("junk", [-1, 1.0, True, "3", None])
def test_tokens_are_whole_numbers(junk: object) -> None:
    for kind in KINDS:
        with pytest.raises(MoneyError, match=f"{kind} is .*whole number of tokens"):
            TokenUsage(**{kind: junk})  # type: ignore[arg-type]


@pytest.mark.parametrize("junk", [Decimal(-1), Decimal("NaN"), Decimal("inf"), 0.1])
def test_prices_are_decimals(junk: object) -> None:
    with pytest.raises(MoneyError, match="decimal dollars per token"):
        TokenPrices(Decimal(0), Decimal(0), Decimal(0), junk)  # type: ignore[arg-type]


# --- prices of a model -----------------------------------------------------------------------------------------------


def book(tmp_path: Path, records: dict[str, str], unit: str = "1M tokens") -> PriceBook:
    file = tmp_path / "prices.toml"
    tables = (f'[[price]]\nitem = "{item}"\nunit = "{unit}"\nusd = "{usd}"\n' for item, usd in records.items())
    file.write_text("\n".join(tables))
    return PriceBook.load([file])


MINI = {
    "openai/gpt-5-mini input": "0.25",
    "openai/gpt-5-mini cached input": "0.025",
    "openai/gpt-5-mini output": "2",
    "openai/gpt-5-mini batch input": "0.125",
    "openai/gpt-5-mini batch output": "1",
}


def test_a_price_file_by_the_million_tokens_is_read_per_token(tmp_path: Path) -> None:
    found = token_prices(book(tmp_path, MINI), "openai/gpt-5-mini")
    assert found == TokenPrices(Decimal("2.5E-7"), Decimal("2.5E-8"), Decimal("2.5E-7"), Decimal("0.000002"))
    batch = token_prices(book(tmp_path, MINI), "openai/gpt-5-mini", "batch")
    # No cached price at that tier: not that of another tier, but that of input.
    assert batch == TokenPrices(*[Decimal("1.25E-7")] * 3, Decimal("0.000001"))


def test_no_digit_of_a_price_is_lost(tmp_path: Path) -> None:
    usd = "0." + "123456789" * 5
    found = token_prices(book(tmp_path, {"m input": usd, "m output": usd}, "token"), "m")
    assert Fraction(found.input) == Fraction(usd)
    assert found.cost(TokenUsage(input=3, output=4)) == 7 * Fraction(usd)


def test_a_name_is_found_by_its_end_where_one_provider_has_it(tmp_path: Path) -> None:
    one = book(tmp_path, MINI)
    assert priced_model(one, "gpt-5-mini") == priced_model(one, "openai/gpt-5-mini") == "openai/gpt-5-mini"
    assert token_prices(one, "gpt-5-mini") == token_prices(one, "openai/gpt-5-mini")
    two = book(tmp_path, MINI | {"azure/gpt-5-mini input": "9", "azure/gpt-5-mini output": "9"})
    assert token_prices(two, "azure/gpt-5-mini").input == Decimal("0.000009")
    with pytest.raises(UnknownItem, match="several providers sell 'gpt-5-mini': azure/gpt-5-mini, openai/gpt-5-mini"):
        token_prices(two, "gpt-5-mini")
    # The end of a word is not the end of a name.
    with pytest.raises(UnknownItem, match="no price"):
        token_prices(one, "mini")


def test_a_model_of_ones_own_costs_nothing_when_told_so(tmp_path: Path) -> None:
    assert token_prices(book(tmp_path, {"local input": "0", "local output": "0"}), "local") == TokenPrices.free()


@pytest.mark.parametrize(
    ("model", "tier", "says"),
    [
        (
            "gpt-5-nini",
            "standard",
            r"did you mean openai/gpt-5-mini.*`outlay prices fetch gpt-5-nini`.*'gpt-5-nini input'",
        ),
        (
            "gpt-5-mini",
            "flex",
            "no flex price of 'gpt-5-mini'; take tier standard, or add 'openai/gpt-5-mini flex input'",
        ),
        ("gpt-5-mini", "bach", "the tier 'bach' is unknown .did you mean batch"),
        ("text-davinci-003", "standard", "no price of the tokens of 'text-davinci-003'"),
        ("half", "standard", "no price for 'half output'; run `outlay prices fetch half`"),
    ],
)
def test_what_has_no_price_is_refused_with_the_way_to_one(tmp_path: Path, model: str, tier: str, says: str) -> None:
    with pytest.raises((UnknownItem, MoneyError), match=says) as refused:
        token_prices(book(tmp_path, MINI | {"half input": "1"}), model, tier)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_tokens_are_sold_by_tokens(tmp_path: Path) -> None:
    with pytest.raises(MoneyError, match="'m input' is sold per hour"):
        token_prices(book(tmp_path, {"m input": "1", "m output": "1"}, "hour"), "m")


def test_items_of_kinds_and_tiers_are_told_apart() -> None:
    items = {token_item("m", kind, tier) for kind in KINDS for tier in TIERS}
    assert len(items) == len(KINDS) * len(TIERS)
    assert token_item("m", "cached") == "m cached input"
    assert token_item("m", "cache_write", "flex") == "m flex cache write"


# --- dollars in the ledger -------------------------------------------------------------------------------------------


def settle(
    ledger: Ledger, key: str, bound: Fraction, used: Fraction, cash: int | None = None, charge: int = USD
) -> int:
    """Buy tokens, at most ``bound`` dollars of them and ``used`` in the end; the charge in micro-dollars."""
    price = token_bill("openai/gpt-5-mini")
    hold = ledger.hold("run", key, Quote.of(price, bound))
    micros = price.cost_micros(used) if charge else 0
    ledger.settle(
        hold,
        quantity=used,
        charge_micros=micros,
        cash_micros=micros if cash is None else cash,
        cash_quantity=used if cash is None else None,
        note="40 labels of llm",
    )
    return micros


def test_a_purchase_is_rounded_up_once_however_many_requests_it_has(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.open_run("run", USD)
        usage, n = TokenUsage(input=97, output=3), 1_000
        one = PRICES.cost(usage)
        assert one == Fraction("0.00003025")
        exact = sum((PRICES.cost(usage) for _ in range(n)), start=Fraction(0)) + Fraction(1, 10**9)
        # Rounded up one by one, they would be $0.031.
        assert settle(ledger, "k", n * PRICES.most(usage), exact) == 30_251
        balance = ledger.balance("run")
        assert (balance.charged_micros, balance.cash_micros, balance.held_charge_micros) == (30_251, 30_251, 0)
        entry = ledger.settled("run", "k")
        assert entry is not None
        assert (entry.quantity, entry.unit, entry.unit_usd) == (exact, DOLLAR_UNIT, "1")
        assert ledger.verify().ok


@given(usages(10**6), usages(10**6))
def test_the_charge_never_passes_the_bound_nor_falls_short_of_the_tokens(one: TokenUsage, other: TokenUsage) -> None:
    price, exact = token_bill("m"), PRICES.cost(one) + PRICES.cost(other)
    quote = Quote.of(price, PRICES.most(one) + PRICES.most(other))
    charge = price.cost_micros(exact)
    assert exact * USD <= charge <= quote.charge_micros
    assert charge - exact * USD < 1


def test_the_hold_binds(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.open_run("run", 30_000)
        with pytest.raises(BudgetExceeded):
            settle(ledger, "k", Fraction("0.0300001"), Fraction(0))
        # What exceeds the bound all the same is an overrun, and the books agree.
        settle(ledger, "k", Fraction("0.02"), Fraction("0.0200101"))
        balance = ledger.balance("run")
        assert (balance.charged_micros, balance.overrun_charge_micros) == (20_000, 11)
        assert ledger.verify().ok


def test_a_receipt_says_dollars_of_tokens(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.open_run("run", USD)
        settle(ledger, "a", Fraction("0.02"), Fraction("0.0123451"))
        ledger.release(
            ledger.hold("run", "b", Quote.of(token_bill("m"), Fraction("0.1"))), lost_cash_micros=7, note="killed"
        )
        settle(ledger, "c", Fraction("0.02"), Fraction(1, 3 * 10**11))
        settle(ledger, "d", Fraction(0), Fraction(0))
        paper = receipt(ledger, "run")
        text = render_text(paper)
        assert ledger.verify([paper.anchor]).ok
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    [first, second] = [line for line in lines if "of tokens" in line]
    assert first.split("  ")[0] == "40 labels of llm"
    assert "openai/gpt-5-mini" in first
    assert "$0.0123451 of tokens" in first
    assert first.split()[-3:] == ["$0.012346", "$0.012346", "$0.987654"]
    assert second.startswith("40 labels of llm, 2 ")  # two blocks, the line wraps
    assert "$0.0000000000033 of tokens" in second
    assert "dollar" not in text
    assert json.loads(to_json(paper))["lines"][0]["quantity"] == "123451/10000000"


def test_a_receipt_says_so_of_tokens_paid_before(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.open_run("run", USD)
        again = Price("m", DOLLAR_UNIT, Decimal(0), "the hold", None)
        hold = ledger.hold("run", "k", Quote.of(again, Fraction("0.5"), cash_micros=0))
        ledger.settle(hold, quantity=Fraction("0.25"), charge_micros=0, cash_micros=0, note="labels")
        assert "$0.25 of tokens, paid before" in render_text(receipt(ledger, "run"))
        assert ledger.verify().ok
