"""How a report writes its values: dollars, counts, differences, sizes, and what a score is."""

from __future__ import annotations

from outlay.money.amounts import show_usd

MINUS = "−"
ABSENT = "–"
"""What stands where there is no value."""

_STATISTICS = {"bert_ibleu": "BERT-iBLEU"}


def money(usd: float | None) -> str:
    """Dollars for a table, as `outlay.money.amounts.show_usd` writes them; a dash where there are none."""
    return ABSENT if usd is None else show_usd(usd)


def count(number: float | None) -> str:
    """A mean count without decimals, thousands set apart."""
    return ABSENT if number is None else f"{number:,.0f}"


def signed(points: float) -> str:
    """A difference with its sign: "+4.2", "−0.3"; what rounds to zero has none."""
    text = f"{abs(points):.1f}"
    return text if text == "0.0" else ("+" if points > 0 else MINUS) + text


def points_text(points: float) -> str:
    """A size in points: "1.7"; one that would round to nothing is "less than 0.1"."""
    return "less than 0.1" if points < 0.05 else f"{points:.1f}"


def measure_text(main_score: str) -> str:
    """ "micro_f1/strict" as "micro F1, strict reading"."""
    statistic, _, reading = main_score.partition("/")
    return f"{_STATISTICS.get(statistic, statistic.replace('_', ' ').replace('f1', 'F1'))}, {reading} reading"
