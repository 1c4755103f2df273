"""Amounts of dollars as they are written: without exponents, and as a price file reads them again."""

from __future__ import annotations

import json
import math
import re
import tempfile
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.engine.point import PointCircumstance, read_points, usd_of, write_points
from outlay.errors import MoneyError
from outlay.money.amounts import MAX_USD, PriceBook, parse_usd, show_usd, write_usd
from outlay.report.figure_data import describe
from outlay.report.flat_files import write_points_csv
from outlay.report.seed_means import means
from outlay.report.study_report import StudyReport
from outlay.storage.files import csv_text, plain_number, plain_numbers
from tests.test_cli import outlay
from tests.test_layouts import results
from tests.test_report import point

EXPONENT = re.compile(r"\d[eE][+-]?\d")

PRICES = st.builds(
    lambda digits, places: Decimal(digits).scaleb(-places),
    st.integers(0, 10**12),
    st.integers(0, 30),
).filter(lambda usd: usd <= MAX_USD and (not usd or usd.adjusted() >= -30))


def book_of(usd: str) -> Decimal:
    """The price that a price file of one record gives."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prices.toml"
        path.write_text(f'[[price]]\nitem = "label/t"\nunit = "label"\nusd = {usd}\n', encoding="utf-8")
        return PriceBook.load([path]).get("label/t").usd


@given(PRICES)
def test_what_is_written_is_read_again(usd: Decimal) -> None:
    written = write_usd(usd)
    assert not EXPONENT.search(written)
    assert book_of(f'"{written}"') == usd
    assert book_of(written if "." in written else f"{written}.0") == usd


@given(st.integers(0, MAX_USD * 10**6))
def test_whole_micro_dollars_are_read_again(micros: int) -> None:
    usd = usd_of(micros)
    written = write_usd(usd)
    assert not EXPONENT.search(written)
    assert float(written) == usd
    assert parse_usd(written) == micros


@pytest.mark.parametrize(
    "usd", ['"0.00000015"', '"1.5E-7"', '"1.5e-07"', "1.5E-7", "0.00000015", '"$1.5E-7"', '" 1.5E-7 "']
)
def test_a_price_file_reads_what_spreadsheets_write(usd: str) -> None:
    assert book_of(usd) == Decimal("0.00000015")


@pytest.mark.parametrize(
    "usd", ['"1E-7 each"', '"E-7"', '"1e999"', '"-1.5E-7"', '"1.5E-77"', '"' + "1" * 500 + '"', '"nan"']
)
def test_a_price_file_refuses_what_is_no_amount(usd: str) -> None:
    with pytest.raises(MoneyError) as refused:
        book_of(usd)
    assert "\n" not in str(refused.value)


def test_prices_prints_what_a_price_file_reads(tmp_path: Path) -> None:
    """The case: a price of 1.5E-7, quoted or not, is printed in digits, and what ``--json`` says can be put into a file again."""
    first, again = tmp_path / "first.toml", tmp_path / "again.toml"
    first.write_text(
        '[[price]]\nitem = "label/t"\nunit = "label"\nusd = "0.00000015"\nsource = "me"\nchecked = 2024-01-01\n'
    )
    ran = outlay("prices", "--prices", first)
    assert re.search(r"label/t +0\.00000015 +label", ran.out)
    assert not EXPONENT.search(ran.out)
    documents = outlay("prices", "--prices", first, "--json").json["prices"]
    assert all(not EXPONENT.search(document["usd"]) for document in documents)
    again.write_text(
        "".join(
            f"[[price]]\nitem = {json.dumps(d['item'])}\nunit = {json.dumps(d['unit'])}\nusd = {json.dumps(d['usd'])}\n"
            for d in documents
        )
    )
    assert PriceBook.load([again]).digest == PriceBook.load([first]).digest


# --- for people --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        *((0.0, "$0.00"), (0.000025, "$0.000025"), (0.000001, "$0.000001"), (0.00042, "$0.00042"), (0.0024, "$0.0024")),
        *(
            (0.5, "$0.5000"),
            (1.0, "$1.00"),
            (1980.0, "$1,980.00"),
            (1e-6 / 3, "$0.00000033"),
            (-0.000025, "-$0.000025"),
        ),
    ],
)
def test_small_amounts_are_not_shown_as_nothing(usd: float, shown: str) -> None:
    assert show_usd(usd) == shown


@given(st.floats(1e-12, 1e9))
def test_what_is_shown_is_near_and_only_nothing_is_nothing(usd: float) -> None:
    shown = show_usd(usd)
    assert not EXPONENT.search(shown)
    assert math.isclose(float(shown.strip("$").replace(",", "")), usd, rel_tol=0.051)


# --- files -------------------------------------------------------------------------------------------------------------


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_in_digits_are_the_same_numbers(number: float) -> None:
    assert float(plain_number(repr(number))) == number
    assert float(csv_text(number)) == number
    assert json.loads(plain_numbers(json.dumps([number]))) == [number]


@given(st.recursive(st.floats(allow_nan=False) | st.text() | st.integers(), lambda inner: st.lists(inner, max_size=5)))
def test_json_with_numbers_in_digits_is_the_same_document(document: Any) -> None:
    for ensure_ascii in (True, False):
        assert json.loads(plain_numbers(json.dumps(document, ensure_ascii=ensure_ascii))) == document


def test_texts_of_a_document_stay_as_they_are() -> None:
    assert plain_numbers('{"a 1e-5": "1e-5 \\"2e-7", "b": 4.2e-05}') == '{"a 1e-5": "1e-5 \\"2e-7", "b": 0.000042}'


def test_no_file_of_results_holds_dollars_with_an_exponent(tmp_path: Path) -> None:
    small = usd_of(42)
    circumstance = PointCircumstance(cash_usd=usd_of(25))
    points = [
        replace(point(name, usd_of(50), 0, test, charge_usd=charge), circumstance=circumstance)
        for name, test, charge in (("annotate", 71.0, small), ("distill", 73.0, usd_of(17)))
    ]
    write_points(tmp_path / "points.json", points)
    assert read_points(tmp_path / "points.json") == points
    found = results("plain", points)
    report = StudyReport(found)
    write_points_csv(tmp_path / "points.csv", found)
    texts = [
        *((tmp_path / name).read_text() for name in ("points.json", "points.csv")),
        *(report.markdown(), report.page()),
        *(describe(mean, "a") for mean in means(found)),
    ]
    ids = "|".join(each.id for each in points)
    for text in texts:
        plain = re.sub(rf"{ids}|[0-9a-f]{{16,}}|<svg.*?</svg>|<style>.*?</style>", "", text, flags=re.DOTALL)
        assert not EXPONENT.search(plain), EXPONENT.search(plain)
        assert "0.000042" in text or "0.000017" in text
