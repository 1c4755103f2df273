"""`outlay prices fetch`: a list of prices in a package becomes dated records in a file that keeps what else it holds."""

from __future__ import annotations

import socket
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from genai_prices import Usage, calc_price, data_snapshot
from genai_prices import types as listed
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import MoneyError, OutlayError, UnknownItem
from outlay.money.amounts import Price, PriceBook
from outlay.money.prices.fetch import PACKAGE, fetch_prices
from outlay.money.prices.price_file import add_records
from outlay.money.prices.tokens import TokenPrices, TokenUsage, token_prices
from tests.test_cli import outlay, refused

DAY = date(2026, 11, 30)
SINCE = date(2026, 10, 14)


def usd(**by_key: str) -> listed.ModelPrice:
    return listed.ModelPrice(**{key: Decimal(value) for key, value in by_key.items()})


def dearer_when_long(base: str, long: str) -> listed.TieredPrices:
    return listed.TieredPrices(Decimal(base), [listed.Tier(200_000, Decimal(long)), listed.Tier(900_000, Decimal("9"))])


def model(
    name: str, prices: listed.ModelPrice | list[listed.ConditionalPrice], *variants: listed.PriceVariant
) -> listed.ModelInfo:
    match = listed.ClauseStartsWith(name)
    return listed.ModelInfo(name, match, prices=prices, price_variants=list(variants))


def variant(when: dict[str, str], prices: listed.ModelPrice) -> listed.PriceVariant:
    return listed.PriceVariant(when, prices, listed.StartDateConstraint(SINCE))


MODELS = [
    model(
        "mini",
        usd(
            input_mtok="0.25",
            cache_read_mtok="0.025",
            cache_write_mtok="0.3",
            output_mtok="2",
            web_searches_kcount="10",
        ),
        variant({"processing": "batch"}, usd(input_mtok="0.125", cache_read_mtok="0.0125", output_mtok="1")),
        variant({"service_tier": "flex"}, usd(input_mtok="0.2")),
        variant({"service_tier": "priority"}, usd(input_mtok="99")),
    ),
    model("same", usd(input_mtok="1", output_mtok="2"), variant({"processing": "batch"}, usd(web_searches_kcount="1"))),
    model(
        "dated",
        [
            listed.ConditionalPrice(prices=usd(input_mtok="3", output_mtok="3")),
            listed.ConditionalPrice(listed.StartDateConstraint(SINCE), prices=usd(input_mtok="2", output_mtok="2")),
        ],
    ),
    model("long", listed.ModelPrice(input_mtok=dearer_when_long("1", "2"), output_mtok=Decimal("5"))),
    model(
        "night",
        [
            listed.ConditionalPrice(prices=usd(input_mtok="4", output_mtok="8")),
            listed.ConditionalPrice(
                listed.TimeOfDateConstraint(time(16, 30), time(0, 30)), prices=usd(input_mtok="1", output_mtok="9")
            ),
        ],
    ),
    model("fee", usd(input_mtok="1", output_mtok="1", requests_kcount="5")),
    model("thinker", usd(input_mtok="1", output_mtok="2", output_reasoning_mtok="3")),
    model("decider", usd(input_mtok="1")),
    model("speech", usd(output_mtok="1")),
]


@pytest.fixture
def acme() -> Iterator[None]:
    """A list of a provider `acme`, found by names that begin with mini, and of a `reseller` of its models."""
    maker = listed.Provider("acme", "Acme", "acme", ["https://acme.test/pricing"], models=MODELS)
    maker.model_match = listed.ClauseStartsWith("mini")
    reseller = listed.Provider("reseller", "Reseller", "reseller", fallback_model_providers=["acme"])
    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot([maker, reseller], from_auto_update=False))
    yield
    data_snapshot.set_custom_snapshot(None)


def per_million(name: str, on: date = DAY, prompt_tokens: int | None = None) -> dict[str, str]:
    """Dollars per million tokens by what stands behind the model's name in the item."""
    found = fetch_prices(name, on, prompt_tokens)
    assert all(record.unit == "1000 tokens" and record.checked == on for record in found.records)
    return {each.item.removeprefix(f"{found.name} "): f"{(each.usd * 1000).normalize():f}" for each in found.records}


# --- what the list says ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("acme")
def test_every_kind_at_every_tier_that_is_listed() -> None:
    standard = {"input": "0.25", "cached input": "0.025", "cache write": "0.3", "output": "2"}
    batch = {"batch input": "0.125", "batch cached input": "0.0125", "batch cache write": "0.3", "batch output": "1"}
    flex = {"flex input": "0.2", "flex cached input": "0.025", "flex cache write": "0.3", "flex output": "2"}
    assert per_million("acme/mini") == standard | batch | flex
    # Before these tiers were listed, and where a tier prices nothing of ours, there is none.
    assert per_million("acme/mini", date(2026, 10, 13)) == standard
    assert per_million("acme/same") == {"input": "1", "output": "2"}
    [record, *_] = fetch_prices("acme/mini", DAY).records
    assert record.source.startswith(f"{PACKAGE} 0.")
    assert record.source.endswith("(https://acme.test/pricing)")


@pytest.mark.usefixtures("acme")
def test_prices_are_those_of_the_day() -> None:
    assert per_million("acme/dated", date(2026, 10, 13)) == {"input": "3", "output": "3"}
    assert per_million("acme/dated", SINCE) == {"input": "2", "output": "2"}


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("name", "prompt_tokens", "found", "note"),
    [
        (
            "long",
            None,
            {"input": "9", "output": "5"},
            "above 200,000, 900,000 tokens are priced apart; without --prompt-tokens",
        ),
        ("long", 200_000, {"input": "1", "output": "5"}, "this is of up to 200,000"),
        ("long", 200_001, {"input": "2", "output": "5"}, "this is of up to 200,001"),
        ("night", None, {"input": "4", "output": "9"}, "the price of the dearest hours of a day"),
        ("thinker", None, {"input": "1", "output": "3"}, "output at the dearer of answer and reasoning"),
        ("decider", None, {"input": "1", "output": "0"}, "no price of its output, which is taken as $0"),
        ("dated-2026-08", None, {"input": "2", "output": "2"}, "priced as acme/dated"),
    ],
)
def test_what_was_decided_is_said(name: str, prompt_tokens: int | None, found: dict[str, str], note: str) -> None:
    assert per_million(f"acme/{name}", DAY, prompt_tokens) == found
    fetched = fetch_prices(f"acme/{name}", DAY, prompt_tokens)
    assert fetched.name == f"acme/{name}"
    [said] = fetched.notes
    assert said.startswith(f"acme/{name}: ")
    assert note in said
    assert all(note in record.note for record in fetched.records)


@pytest.mark.usefixtures("acme")
def test_a_reseller_has_the_prices_of_the_maker_but_not_its_tiers() -> None:
    assert set(per_million("reseller/mini")) == {"input", "cached input", "cache write", "output"}
    assert fetch_prices("reseller/mini", DAY).notes == ("reseller/mini: priced as acme/mini",)


@pytest.mark.usefixtures("acme")
def test_a_name_alone_may_give_its_provider() -> None:
    for asked in ("mini", "MINI", " mini ", "ACME/Mini", "acme/mini"):
        fetched = fetch_prices(asked, DAY)
        assert (fetched.name, fetched.notes) == ("acme/mini", ())


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("acme/ninny", r"has no prices of 'acme/ninny' \(did you mean acme/mini\?\); write PROVIDER/MODEL"),
        ("acne/mini", r"did you mean acme/mini"),
        ("nini", r"did you mean mini"),
        ("thinker", r"did you mean thinker"),
        ("", "has no prices of ''"),
        ("acme/", "has no prices of 'acme/'"),
        ("acme/fee", r"acme/fee is not paid by tokens alone \(genai-prices has requests_kcount\)"),
        ("acme/speech", "no price of tokens of input"),
    ],
)
def test_what_cannot_be_priced_is_refused(asked: str, says: str) -> None:
    with pytest.raises((UnknownItem, MoneyError), match=says) as error:
        fetch_prices(asked, DAY)
    assert "\n" not in str(error.value)


CONTEXTS = {"standard": None, "batch": {"processing": "batch"}, "flex": {"service_tier": "flex"}}


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(sorted(CONTEXTS)))
@settings(max_examples=40)
def test_costs_are_those_of_the_packages_own_calculator(new: int, cached: int, output: int, tier: str) -> None:
    book = PriceBook(fetch_prices("openai/gpt-5-mini", DAY).records)
    prices = token_prices(book, "gpt-5-mini", tier)  # type: ignore[arg-type]
    usage = Usage(input_tokens=new + cached, cache_read_tokens=cached, output_tokens=output)
    at = datetime.combine(DAY, time(12), UTC)
    theirs = calc_price(
        usage, "gpt-5-mini", provider_id="openai", genai_request_timestamp=at, price_context=CONTEXTS[tier]
    )
    assert prices.cost(TokenUsage(new, cached, 0, output)) == Fraction(theirs.total_price)


def test_models_of_the_real_list_are_never_priced_below_it() -> None:
    snapshot, n = data_snapshot.get_snapshot(), 0
    at = datetime.combine(DAY, time(12), UTC)
    usage = Usage(input_tokens=300_000, cache_read_tokens=100_000, output_tokens=5_000)
    for provider in snapshot.providers:
        for info in provider.models[::40]:
            try:
                fetched = fetch_prices(f"{provider.id}/{info.id}", DAY)
            except OutlayError:  # paid by the request, or no model that answers in text
                continue
            ours = token_prices(PriceBook(fetched.records), fetched.name).cost(TokenUsage(200_000, 100_000, 0, 5_000))
            theirs = calc_price(usage, info.id, provider_id=provider.id, genai_request_timestamp=at)
            assert ours >= Fraction(theirs.total_price), fetched.name
            n += ours == Fraction(theirs.total_price)
    assert n > 20


# --- the file --------------------------------------------------------------------------------------------------------

MINE = """\
# What I pay.
[[price]]
item = "label/x"   # by the piece
unit = "label"
usd = "0.20"

# the end"""


def records(
    cost: str = "1", source: str = f"{PACKAGE} 0.1", kinds: tuple[str, ...] = ("input", "output")
) -> list[Price]:
    return [Price(f"a/m {kind}", "1000 tokens", Decimal(cost), source, DAY, 'said "so"\\') for kind in kinds]


def add(path: Path, found: list[Price], *, replace: bool = False) -> tuple[int, int]:
    added = add_records(path, ["a/m"], found, PACKAGE, replace=replace)
    return len(added.written), len(added.kept)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_records_are_added_behind_what_is_there(tmp_path: Path, end: str) -> None:
    path, before = tmp_path / "prices.toml", MINE.replace("\n", end)
    path.write_bytes(before.encode())
    assert add(path, records()) == (2, 0)
    text = path.read_bytes().decode()
    assert text.startswith(before + end + end + "[[price]]" + end)
    assert text.count("\n") == text.count(end)
    book = PriceBook.load([path])
    assert token_prices(book, "m") == TokenPrices(*[Decimal("0.001")] * 4)
    price = book.get("a/m input")
    assert (price.usd, price.source, price.checked, price.note) == (1, f"{PACKAGE} 0.1", DAY, 'said "so"\\')
    assert book.get("label/x").usd == Decimal("0.20")
    assert tomllib.loads(text)["price"][1]["usd"] == "1000"
    # The same prices on another day: nothing to do, not a byte changes.
    assert add(path, records(source=f"{PACKAGE} 0.2")) == (0, 2)
    assert path.read_bytes().decode() == text


def test_replacing_takes_out_its_own_records_of_that_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(MINE)
    add(path, records(kinds=("input", "cached input", "batch input", "output")))
    other = [Price("a/mm input", "1000 tokens", Decimal(7), f"{PACKAGE} 0.1", DAY)]
    add_records(path, ["a/mm"], other, PACKAGE, replace=True)
    path.write_text(path.read_text() + "# a word of mine\n\n[[price]]\nitem = 'y'\nunit = 'hour'\nusd = 3\n")
    with pytest.raises(MoneyError, match=r"has 'a/m input' at \$1 per 1000 tokens, not \$2; give --replace"):
        add(path, records("2"))
    assert add(path, records("2"), replace=True) == (2, 0)
    text, book = path.read_text(), PriceBook.load([path])
    assert text.startswith(MINE)
    assert "# a word of mine\n\n[[price]]\nitem = 'y'" in text
    assert (book.get("a/m output").usd, book.get("a/mm input").usd, book.get("y").usd) == (2, 7, 3)
    # What the list has no more is gone.
    assert "a/m cached input" not in book
    assert "a/m batch input" not in book
    again = add(path, records("2"), replace=True)
    assert again == (2, 0)
    assert path.read_text() == text


def test_a_record_of_ones_own_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    add(path, records(source="my contract"))
    before = path.read_bytes()
    assert add(path, records(), replace=True) == (0, 2)
    with pytest.raises(MoneyError, match="that record is your own: remove it, or write into another file"):
        add(path, records("3"), replace=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("price = [{item = 'x', unit = 'hour', usd = 1}]\n", "no .*tables can be added"),
        ("[[machine]]\nname = 'x'\n", "holds no prices"),
        ("[[price]\n", "is not a TOML price file"),
        ("[[price]]\nitem = 'x'\n", "has no unit"),
        ('[[price]]\nitem = "a/m input"\nunit = "label"\nusd = 1\n', "at \\$1 per label"),
    ],
)
def test_a_file_that_nothing_can_be_added_to_stays_as_it_is(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(MoneyError, match=says):
        add(path, records())
    assert path.read_text() == text


def test_tables_that_only_look_like_some_are_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    add(path, records())
    path.write_text(path.read_text() + "\n[[price]]\nitem = 'z'\nunit = 'hour'\nusd = 1\nnote = '''\n[[price]]\n'''\n")
    before = path.read_text()
    with pytest.raises(MoneyError, match=r"no .*tables can be added"):
        add(path, records("2"), replace=True)
    assert path.read_text() == before


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "\n\n"])
def test_an_empty_file_is_one_to_begin_with(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    assert add(path, records()) == (2, 0)
    assert path.read_text().startswith(f"{text}\n[[price]]" if text.strip() else "[[price]]")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, acme: None) -> Path:
    """An empty folder to work in, with a list of prices and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", None)
    return tmp_path


def test_the_command_writes_prints_and_says_where(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    ran = outlay("prices", "fetch", "mini", "acme/long", "acme/mini", "--date", DAY)
    assert ran.code == 0, ran.err
    assert ran.err.startswith(
        "note: acme/long: prompts above 200,000, 900,000 tokens are priced apart; without --prompt-tokens"
    )
    assert ran.err.count("\n") == 1
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["acme/mini", "batch", "0.125", "0.0125", "0.3", "1", "2026-11-30"] in rows
    assert ["acme/long", "standard", "9", "5", "2026-11-30"] in rows
    assert "prices.toml: 14 prices written; commands read them with --prices prices.toml" in ran.out
    listing = outlay("prices", "--prices", "~/prices.toml").out
    assert "acme/mini batch cached input" in listing
    assert "0.0000125" in listing
    again = outlay("prices", "fetch", "mini", "--date", DAY)
    assert "0 prices written, 12 were there at the same price" in again.out
    assert sorted(each.name for each in here.iterdir()) == ["prices.toml"]


def test_its_json_is_whole_and_alone(here: Path) -> None:
    ran = outlay(
        "prices", "fetch", "acme/long", "--into", here / "new" / "p.toml", "--prompt-tokens", 5, "--date", DAY, "--json"
    )
    assert (ran.code, ran.err) == (0, "")
    document = ran.json
    assert document["models"] == ["acme/long"]
    assert [(each["item"], each["usd"], each["checked"]) for each in document["written"]] == [
        ("acme/long input", "0.001", "2026-11-30"),
        ("acme/long output", "0.005", "2026-11-30"),
    ]
    assert document["kept"] == []
    assert "this is of up to 5" in document["notes"][0]
    assert PriceBook.load([here / "new" / "p.toml"]).get("acme/long input").usd == Decimal("0.001")


def test_one_unknown_model_writes_none(here: Path) -> None:
    refused(outlay("prices", "fetch", "mini", "acme/minny"), "'acme/minny'", "did you mean acme/mini?")
    refused(outlay("prices", "fetch", "mini", "--date", "soon"), "--date 'soon'", "2026-12-01")
    refused(outlay("prices", "--json", "fetch", "mini"), "options come behind the command")
    assert not list(here.iterdir())


def test_without_the_package_it_says_what_to_install(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices.data_snapshot", None)
    refused(outlay("prices", "fetch", "mini"), "pip install 'outlay[llm]'")
    assert not list(here.iterdir())
