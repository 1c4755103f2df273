from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import MoneyError, UnknownItem
from outlay.money.amounts import (
    MAX_MICROS,
    Price,
    PriceBook,
    Quote,
    check_micros,
    format_usd,
    parse_budget,
    parse_usd,
    read_unit,
)

YOURS_TO_SET = "yours to set"
"""How the source of a price begins that users should replace with their own."""


def _price(usd: str, unit: str = "label") -> Price:
    return Price("thing", unit, Decimal(usd), "here", None)


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("300", 300_000_000),
        ("$300", 300_000_000),
        ("$ 300", 300_000_000),
        (" 1,000.50 ", 1_000_500_000),
        ("$1,234,567.000001", 1_234_567_000_001),
        (".5", 500_000),
        ("0", 0),
        ("-0", 0),
        (300, 300_000_000),
        (0.1, 100_000),
        (0.0374, 37_400),
        (Decimal("1e2"), 100_000_000),
        (Decimal("1.0000000"), 1_000_000),
        ("1000000000", MAX_MICROS),
    ],
)
def test_amounts_that_people_write(text: str | int | float | Decimal, micros: int) -> None:
    assert parse_usd(text) == micros


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "12 dollars",
            "twelve",
            "1e5",
            "NaN",
            "inf",
            "$",
            "$$3",
            "1,00",
            "1,0000",
            "1.2.3",
            "1.",
            "٣",
            "- 3",
        ),
        *("0.1234567", "-1", "-$1", "1000000000.01", "9" * 70, "1_000", "0x10", "3\n4"),
        *(float("nan"), float("inf"), -1, -0.01, 1e-7, 1e300, 10**12, True, False),
        *(Decimal("NaN"), Decimal("-1"), Decimal("1e999999"), Decimal("1e-999999"), Decimal("sNaN")),
    ],
)
def test_junk_is_refused_in_one_line(text: str | int | float | Decimal) -> None:
    with pytest.raises(MoneyError) as refused:
        parse_usd(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["0", 0, "0.00", "-5", "12 dollars"])
def test_a_budget_is_more_than_zero(text: str | int) -> None:
    with pytest.raises(MoneyError):
        parse_budget(text)


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (300_000_000, "$300.00"),
        (37_400, "$0.0374"),
        (12, "$0.000012"),
        (0, "$0.00"),
        (1_820_500_000, "$1,820.50"),
        (-1_000_001, "-$1.000001"),
    ],
)
def test_format(micros: int, text: str) -> None:
    assert format_usd(micros) == text


@given(st.integers(0, MAX_MICROS))
def test_what_is_printed_is_read_back(micros: int) -> None:
    assert parse_usd(format_usd(micros)) == micros
    assert parse_usd(Decimal(micros) / 1_000_000) == micros


@given(
    st.fractions(min_value=0, max_value=10**6, max_denominator=10**12),
    st.decimals(min_value=0, max_value=100, places=9, allow_nan=False),
)
def test_cost_is_the_exact_product_rounded_up_once(quantity: Fraction, usd: Decimal) -> None:
    cost = _price(str(usd)).cost_micros(quantity)
    assert cost == math.ceil(quantity * Fraction(str(usd)) * 1_000_000)
    assert 0 <= Fraction(cost) - quantity * Fraction(str(usd)) * 1_000_000 < 1


def test_rounding_is_once_per_entry_not_per_unit() -> None:
    third = _price("0.0000003", "1000 tokens")
    assert third.cost_micros(1) == 1
    assert third.cost_micros(1000) == 300  # not 1,000 times a rounded unit


@pytest.mark.parametrize("quantity", [-1, Fraction(-1, 3), 10**20])
def test_a_quantity_outside_the_limits_is_refused(quantity: int | Fraction) -> None:
    with pytest.raises(MoneyError):
        _price("1").cost_micros(quantity)


@pytest.mark.parametrize("usd", ["-1", "NaN", "Infinity", "1e40", "1e-60"])
def test_a_price_outside_the_limits_is_refused(usd: str) -> None:
    with pytest.raises(MoneyError):
        _price(usd)


@pytest.mark.parametrize("micros", [True, 1.0, "1", -1, MAX_MICROS + 1])
def test_only_whole_micro_dollars_are_money(micros: object) -> None:
    with pytest.raises(MoneyError):
        check_micros("it", micros)  # type: ignore[arg-type]


def test_a_quote_bounds_charge_and_cash() -> None:
    price = _price("0.364")
    assert Quote.of(price, 3) == Quote("thing", "label", Fraction(3), Decimal("0.364"), 1_092_000, 1_092_000)
    assert Quote.of(price, 3, cash_micros=0).cash_micros == 0
    with pytest.raises(MoneyError):
        Quote.of(price, -1)
    with pytest.raises(MoneyError):
        Quote.of(price, 1, cash_micros=-1)


PUBLISHED = {  # typed again from the paper: section 2.5, Table 1, Appendix E
    "a100-40gb": ("hour", "3.75"),
    "a40": ("hour", "1.875"),
    "label/wlp": ("label", "0.260"),
    "label/stanceosaurus": ("label", "0.364"),
    "label/fever": ("label", "0.129"),
    "label/multipit_id": ("label", "0.200"),
    "label/multipit_gen": ("label", "0.371"),
    "label/nq": ("label", "0.129"),
    "text-davinci-003": ("1000 tokens", "0.02"),
    "gpt-3.5-label/wlp": ("label", "0.046"),
    "gpt-3.5-label/stanceosaurus": ("label", "0.073"),
}


def test_the_shipped_prices_are_the_published_ones_or_marked_as_yours_to_set() -> None:
    book = PriceBook.load()
    for item, (unit, usd) in PUBLISHED.items():
        price = book.get(item)
        assert (price.unit, price.usd) == (unit, Decimal(usd))
        assert price.checked is not None
        assert not price.source.startswith(YOURS_TO_SET)
        assert "Kang et al. 2023" in price.source
    others = [price for price in book.items() if price.item not in PUBLISHED]
    assert {"cpu", "h100", "h200", "a100-80gb", "l4", "t4", "rtx-4090", "label/demo"} <= {
        price.item for price in others
    }
    for price in others:
        assert price.source.startswith(YOURS_TO_SET)
        assert price.checked is None
        assert price.usd > 0


def test_the_published_label_prices_follow_from_each_other() -> None:
    book = PriceBook.load()
    tokens = book.get("text-davinci-003")
    assert tokens.cost_micros(Fraction("2.3")) == book.get("gpt-3.5-label/wlp").cost_micros(1)
    assert tokens.cost_micros(Fraction("3.65")) == book.get("gpt-3.5-label/stanceosaurus").cost_micros(1)
    assert book.get("a100-40gb").usd == 2 * book.get("a40").usd


def test_an_unknown_item_is_refused_with_the_nearest_and_all_known_ones() -> None:
    book = PriceBook.load()
    with pytest.raises(UnknownItem, match="did you mean a100-40gb") as refused:
        book.get("a100-40g")
    for price in book.items():
        assert price.item in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "a40" in book
    assert "nothing" not in book


def _file(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_later_file_wins(tmp_path: Path) -> None:
    first = _file(tmp_path, '[[price]]\nitem = "h100"\nunit = "hour"\nusd = "2.10"\nchecked = 2024-05-31\n', "a.toml")
    second = _file(
        tmp_path, '[[price]]\nitem = "h100"\nunit = "hour"\nusd = 1.99\n[[price]]\nitem="x"\nunit="label"\nusd=4'
    )
    book = PriceBook.load([first, second])
    assert book.get("h100").usd == Decimal("1.99")
    assert not book.get("h100").source.startswith(YOURS_TO_SET)
    assert book.get("x").usd == 4
    assert PriceBook.load([first]).get("h100").checked == date(2024, 5, 31)


def test_the_digest_names_the_money_and_nothing_else(tmp_path: Path) -> None:
    shipped = PriceBook.load()
    assert shipped.digest == PriceBook.load().digest
    assert len(shipped.digest) == 64
    same = _file(tmp_path, '[[price]]\nitem = "a40"\nunit = "hour"\nusd = "1.87500"\nsource = "me"\nnote = "n"\n')
    assert PriceBook.load([same]).digest == shipped.digest
    other = _file(tmp_path, '[[price]]\nitem = "a40"\nunit = "hour"\nusd = "1.875001"\n')
    assert PriceBook.load([other]).digest != shipped.digest
    more = _file(tmp_path, '[[price]]\nitem = "new"\nunit = "hour"\nusd = "0"\n')
    assert PriceBook.load([more]).digest != shipped.digest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not toml", "TOML"),
        pytest.param("a = " + "[" * 10_000, "nested", id="nested"),
        ("", "no prices"),
        ('[price]\nitem = "a"', "no prices"),
        ("price = [3]", r"\[\[price\]\]"),
        ('[[price]]\nitem = "a"\nunit = "hour"', "usd"),
        ('[[price]]\nitem = "a"\nusd = "1"', "unit"),
        ('[[price]]\nunit = "hour"\nusd = "1"', "item"),
        ('[[price]]\nitem = "a"\nunit = "hour"\nusd = "cheap"', "cheap"),
        ('[[price]]\nitem = "a"\nunit = "hour"\nusd = -1', "-1"),
        ('[[price]]\nitem = "a"\nunit = "hour"\nusd = nan', "NaN"),
        ('[[price]]\nitem = "a"\nunit = 3\nusd = "1"', "unit"),
        ('[[price]]\nitem = " "\nunit = "hour"\nusd = "1"', "name"),
        ('[[price]]\nitem = "a"\nunit = "hour"\nusd = "1"\nprize = 3', "prize"),
        ('[[price]]\nitem = "a"\nunit = "hour"\nusd = "1"\nchecked = "today"', "checked"),
        ('[[price]]\nitem = "a"\nunit = "hour"\nusd = "1"\n[[price]]\nitem = "a"\nunit = "hour"\nusd = "2"', "twice"),
        (
            '[[price]]\nitem = "a40"\nunit = "day"\nusd = "30"',
            r"'day'.*label, hour or 1000 tokens",
        ),
        ('[[price]]\nitem = "a40"\nunit = "label"\nusd = "30"', "per hour, not per label"),
        ('[[price]]\nitem = "x"\nunit = "lable"\nusd = "30"', r"\(did you mean label\?\)"),
        ('[[price]]\nitem = "x"\nunit = "3 labels"\nusd = "10"', r"\$10 per 3 labels.*1, 10, 100 or 1000"),
    ],
)
def test_a_bad_price_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(MoneyError, match=says) as refused:
        PriceBook.load([_file(tmp_path, text)])
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_price_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoneyError, match=r"absent\.toml"):
        PriceBook.load([tmp_path / "absent.toml"])
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MoneyError, match=r"bytes\.toml"):
        PriceBook.load([tmp_path / "bytes.toml"])


# --- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "noun", "number"),
    [
        ("label", "label", 1),
        ("Labels", "label", 1),
        ("1000 labels", "label", 1000),
        ("per 1,000 labels", "label", 1000),
        ("1_000 labels", "label", 1000),
        ("thousand labels", "label", 1000),
        ("hour", "hour", 1),
        ("2 hours", "hour", 2),
        ("token", "token", 1),
        ("1000 tokens", "token", 1000),
        ("1k tokens", "token", 1000),
        ("1M tokens", "token", 1_000_000),
        ("million tokens", "token", 1_000_000),
    ],
)
def test_a_unit_says_what_is_sold_and_how_many(written: str, noun: str, number: int) -> None:
    assert read_unit(written) == (noun, number)


@pytest.mark.parametrize(
    "written", ["", "1000", "labelss", "lable", "day", "0 labels", "3 3 labels", "1,00 labels", "each"]
)
def test_a_unit_that_sells_nothing_known_is_refused(written: str) -> None:
    with pytest.raises(MoneyError, match="label, hour or 1000 tokens"):
        read_unit(written)


@given(
    st.decimals(min_value=0, max_value=99, places=6),
    st.sampled_from([1, 2, 5, 8, 10, 64, 100, 1000, 1_000_000]),
    st.integers(0, 10**7),
)
def test_many_labels_at_one_price_cost_their_exact_share_rounded_up_once(
    tmp_path_factory: pytest.TempPathFactory, usd: Decimal, number: int, n: int
) -> None:
    written = f'[[price]]\nitem = "label/x"\nunit = "{number} labels"\nusd = "{usd:f}"\n'
    price = PriceBook.load([_file(tmp_path_factory.getbasetemp(), written)]).label("label/x")
    assert price.unit == "label"
    assert price.cost_micros(n) == math.ceil(Fraction(usd) * n * 1_000_000 / number)


def test_a_price_is_the_same_however_its_unit_is_written(tmp_path: Path) -> None:
    digests = set()
    for unit, usd in (("label", "0.1"), ("1000 labels", "100"), ("per 10 labels", "1.00")):
        digests.add(
            PriceBook.load([_file(tmp_path, f'[[price]]\nitem = "label/x"\nunit = "{unit}"\nusd = "{usd}"\n')]).digest
        )
    assert len(digests) == 1
    shipped = PriceBook.load()
    mine = PriceBook.load([_file(tmp_path, '[[price]]\nitem = "text-davinci-003"\nunit = "1M tokens"\nusd = "20"\n')])
    assert mine.digest == shipped.digest


def test_labels_are_not_bought_by_the_hour_nor_hours_by_the_label() -> None:
    book = PriceBook.load()
    assert book.label("label/demo").usd == Decimal("0.20")
    assert book.hour("cpu").unit == "hour"
    with pytest.raises(MoneyError, match=r"'cpu'.*per hour.*per 1000 labels"):
        book.label("cpu")
    with pytest.raises(MoneyError, match=r"'label/demo'.*per label.*by the hour"):
        book.hour("label/demo")
    with pytest.raises(MoneyError, match=r"'text-davinci-003'.*per 1000 tokens"):
        book.label("text-davinci-003")
