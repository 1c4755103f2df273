from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from outlay.errors import HoldError
from outlay.money.amounts import Price, Quote, format_usd
from outlay.money.ledger import Ledger
from outlay.report.receipt import WIDTH, about_lines, receipt, render_text, to_json

LABEL = Price("label/multipit_id", "label", Decimal("0.2"), "here", None)
HOUR = Price("a40", "hour", Decimal("1.875"), "here", None)
TOKENS = Price("text-davinci-003", "1000 tokens", Decimal("0.02"), "here", None)
USD = 1_000_000

TEXT = """\
Receipt of run distill
opened 2023-11-14 22:13 UTC

what               item                       quantity and price       charge      cash         left
────────────────────────────────────────────────────────────────────────────────────────────────────
budget                                                                                       $300.00
labels for the     label/multipit_id       1,000 labels at $0.20      $200.00     $0.00      $100.00
teacher
fine-tune the      a40                     4.429 hours at $1.875    $8.303572   $0.0625   $91.696428
teacher
lost work: killed  a40                                                  $0.00   $0.0374   $91.696428
budget topped up                                                                         $141.696428
by $50.00
"""


def buy(
    ledger: Ledger, key: str, price: Price, bound: int, used: Fraction | int, paid: Fraction | int, note: str
) -> None:
    hold = ledger.hold("distill", key, Quote.of(price, bound))
    ledger.settle(
        hold,
        quantity=Fraction(used),
        charge_micros=price.cost_micros(used),
        cash_micros=price.cost_micros(paid),
        cash_quantity=Fraction(paid),
        note=note,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite", clock=lambda: 1_700_000_000.0)
    ledger.open_run("distill", 300 * USD)
    buy(ledger, "k1", LABEL, 1_000, 1_000, 0, "labels for the teacher")
    buy(ledger, "k2", HOUR, 10, Fraction(31, 7), Fraction(1, 30), "fine-tune the teacher")
    ledger.open_run("another", USD)
    ledger.release(ledger.hold("distill", "k3", Quote.of(HOUR, 10)), lost_cash_micros=37_400, note="killed")
    ledger.top_up("distill", 50 * USD)
    buy(ledger, "k3", HOUR, 20, Fraction(211, 10), Fraction(211, 10), "distil (reused)")
    buy(ledger, "k4", TOKENS, 20, Fraction(23, 10), 0, "")
    ledger.hold("distill", "k5", Quote.of(HOUR, 10))
    return ledger


def test_it_says_what_was_run_with_which_models_and_what_it_scored() -> None:
    scores = {"accuracy/published": {"value": 71.25, "low": 68.0, "high": 74.5}}
    asked = {
        "task": "tickets",
        "strategy": "distill",
        "n_initial": 1000,
        "seed": 3,
        "teacher": "big",
        "student": "cut:2",
    }
    asked |= {"methods": {"teacher": "full", "distil": "probe, towers"}, "dev": "given"}
    result = {"status": "ok", "reason": None, "test": 71.25, "dev": 64.6, "n_dev": 240, "scores": scores}
    assert about_lines(asked, result) == (
        "tickets: distill, N = 1,000, seed 3",
        "teacher big by full; student cut:2 by probe, towers",
        "dev labels: 240 given",
        "test score 71.2 (accuracy/published, 95 %: 68.0 to 74.5); dev score 64.6",
    )
    plain = asked | {"strategy": "annotate", "n_initial": None, "teacher": None, "methods": None, "dev": None}
    failed = result | {"status": "failed", "reason": "no room", "test": None, "n_dev": 0}
    assert about_lines(plain, failed) == ("tickets: annotate, seed 3", "student cut:2 by full", "no score: no room")


def test_every_dollar_is_on_it(ledger: Ledger) -> None:
    paper = receipt(ledger, "distill")
    balance = ledger.balance("distill")
    assert [line.kind for line in paper.lines] == ["settle", "settle", "lost", "topup", "settle", "overrun", "settle"]
    assert sum(line.charge_micros for line in paper.lines) == paper.charge_micros == balance.total_charge_micros
    assert sum(line.cash_micros for line in paper.lines) == paper.cash_micros == balance.total_cash_micros
    assert (paper.budget_micros, paper.lost_micros) == (350 * USD, 37_400)
    assert paper.overrun_charge_micros == paper.overrun_cash_micros == HOUR.cost_micros(Fraction(11, 10))
    assert (paper.held_charge_micros, paper.held_cash_micros) == (18_750_000, 18_750_000)
    assert paper.left_charge_micros == balance.available_charge_micros
    assert paper.left_cash_micros == balance.available_cash_micros
    assert [line.what for line in paper.lines[-3:]] == ["distil (reused)", "overrun: above its hold", "k4"]


def test_the_running_balance_runs(ledger: Ledger) -> None:
    paper = receipt(ledger, "distill")
    left = paper.opened_with_micros
    for line in paper.lines:
        left += 50 * USD if line.kind == "topup" else -line.charge_micros
        assert line.left_micros == left


def test_its_anchor_is_the_ledgers_and_later_runs_do_not_change_it(ledger: Ledger) -> None:
    before = receipt(ledger, "distill")
    assert ledger.verify([before.anchor]).ok
    ledger.open_run("later", USD)
    assert receipt(ledger, "distill") == before
    ledger.cancel("distill", note="enough")
    after = receipt(ledger, "distill")
    assert after.cancelled
    assert after.held_charge_micros == 0
    assert after.lines[-1].what == "run cancelled: enough"


def test_it_reads_like_this(ledger: Ledger) -> None:
    text = render_text(receipt(ledger, "distill"))
    assert text.startswith(TEXT)
    assert "21.1 hours at $1.875" in text
    assert "2.3 × 1000 tokens at $0.02" in text
    assert "still holds $18.75 of charge" in text
    assert f"head {ledger.anchor().head}" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "k5" not in text  # holds are no lines


def test_it_fits_the_width_whatever_the_notes_say(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.open_run("distill", 900_000_000 * USD, note="x")
    price = Price("gpt-3.5-label/stanceosaurus-with-a-very-long-name", "label", Decimal("0.073"), "here", None)
    buy(ledger, "k" * 64, price, 9_999_999, 9_999_999, 9_999_999, "")
    buy(ledger, "b", price, 1, 1, 0, "a | note\nwith\x1b[31m lines " * 9)
    text = render_text(receipt(ledger, "distill"))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\x1b" not in text
    assert "1 label at $0.073" in text


def test_json_is_exact(ledger: Ledger) -> None:
    content = json.loads(to_json(receipt(ledger, "distill")))
    assert content["lines"][1]["quantity"] == "31/7"
    assert content["lines"][1]["charge_micros"] == HOUR.cost_micros(Fraction(31, 7))
    assert content["anchor"] == {"head": ledger.anchor().head, "count": ledger.anchor().count}
    assert to_json(receipt(ledger, "distill")) == to_json(receipt(ledger, "distill"))


def test_an_unknown_run_is_refused_with_the_known_ones(ledger: Ledger) -> None:
    with pytest.raises(HoldError, match="'distill', 'another'"):
        receipt(ledger, "nobody")


def test_blocks_of_one_thing_are_one_line_and_every_other_line_stays(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.open_run("distill", 10 * USD)
        for i, note in enumerate(["teach", "teach", "teach", "distil", "teach"]):
            buy(ledger, f"k{i}", HOUR, 1, Fraction(i + 1, 7), Fraction(i + 1, 7), note)
        paper = receipt(ledger, "distill")
        text = render_text(paper)
    rows = [line.split("  ")[0] for line in text.splitlines() if line.startswith(("teach", "distil"))]
    assert rows == ["teach, 3 blocks", "distil", "teach"]
    assert len(paper.lines) == 5
    three = sum(line.charge_micros for line in paper.lines[:3])
    assert format_usd(three) in next(line for line in text.splitlines() if line.startswith("teach, 3 blocks"))
