"""Text of the values of a report: dollars, counts, differences, sizes, and names of scores."""

from __future__ import annotations

from outlay.money.amounts import show_usd

MINUS = "−"
ABSENT = "–"
"""Text of an absent value."""

_STATISTICS = {"bert_ibleu": "BERT-iBLEU"}


def money(usd: float | None) -> str:
    """Return dollars as the text of a table (`outlay.money.amounts.show_usd`); a dash for None."""
    return ABSENT if usd is None else show_usd(usd)


def count(number: float | None) -> str:
    """Return a mean count as text without decimals, with thousands separators."""
    return ABSENT if number is None else f"{number:,.0f}"


def size_text(size_mb: float | None) -> str:
    """Return megabytes as text: "45.2", "1,102"; "under 0.1" for less."""
    if size_mb is None:
        return ABSENT
    return "under 0.1" if size_mb < 0.05 else f"{size_mb:.1f}" if size_mb < 999.5 else f"{size_mb:,.0f}"


def latency_text(milliseconds: float | None) -> str:
    """Return milliseconds a row as text, with two digits: "0.031", "1.4", "120"."""
    if milliseconds is None:
        return ABSENT
    return f"{milliseconds:.2g}" if 0.0001 <= milliseconds < 99.5 else f"{milliseconds:,.0f}"


def signed(points: float) -> str:
    """Return a difference as text with its sign: "+4.2", "−0.3"; "0.0" has none."""
    text = f"{abs(points):.1f}"
    return text if text == "0.0" else ("+" if points > 0 else MINUS) + text


def points_text(points: float) -> str:
    """Return a size in points as text: "1.7"; "less than 0.1" where it would round to zero."""
    return "less than 0.1" if points < 0.05 else f"{points:.1f}"


def measure_text(main_score: str) -> str:
    """Return the text of a main score: "micro F1, strict reading" for "micro_f1/strict"."""
    statistic, _, reading = main_score.partition("/")
    return f"{_STATISTICS.get(statistic, statistic.replace('_', ' ').replace('f1', 'F1'))}, {reading} reading"
