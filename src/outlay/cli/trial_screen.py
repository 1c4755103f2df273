"""Printing of trials of language models: one table with a column for each model, and where their labels are wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from outlay.cli.terminal import echo_prose, table_console
from outlay.engine.label_trial import TrialResult, TrialRows
from outlay.money.amounts import MICROS_PER_USD, show_usd
from outlay.text.display import visible

if TYPE_CHECKING:
    from rich.table import Table

MOST_LABELS = 8
"""Labels of a table of answers; of more the most frequent mistakes are listed."""
MOST_MISTAKES = 10
_Fact = tuple[str, Callable[[TrialResult], str | None]]
"""A name, and what a trial says under it; ``None``: nothing."""

_FACTS: tuple[_Fact, ...] = (
    ("score", lambda found: None if found.score is None else f"{found.score.value:.1f}"),
    ("  95 %", lambda found: None if found.score is None else f"{found.score.low:.1f} to {found.score.high:.1f}"),
    ("agree with gold", lambda found: None if found.agreed is None else f"{100 * found.agreed:.1f} %"),
    ("Cohen's kappa", lambda found: None if found.kappa is None else f"{found.kappa:.2f}"),
    ("calibration error", lambda found: None if found.ece is None else f"{found.ece:.1f} of 100"),
    (
        "right by thirds",
        lambda found: ", ".join(f"{100 * part:.0f}" for part in found.parts) + " %" if found.parts else None,
    ),
    ("$ per 1,000 labels", lambda found: _usd(found.usd_per_thousand)),
    ("  1,000 correct", lambda found: _usd(found.usd_per_thousand_right)),
    ("$ of these rows", lambda found: _usd(float(found.usd))),
    ("  paid now", lambda found: _usd(found.cash_micros / MICROS_PER_USD)),
    ("labels", lambda found: f"{found.n_labels:,} of {found.n_rows:,}"),
    ("refused", lambda found: f"{sum(found.refused.values()):,}"),
    ("beyond the money", lambda found: f"{found.n_unbought:,}" if found.n_unbought else None),
    ("requests lost", lambda found: f"{found.n_lost:,}" if found.n_lost else None),
    ("seconds in all", lambda found: f"{found.seconds:.1f}"),
    ("  an answer", lambda found: None if found.answer_seconds is None else f"{found.answer_seconds:.2g}"),
)


def print_trials(drawn: TrialRows, results: Sequence[TrialResult]) -> None:
    """Print trials of the same rows."""
    screen = table_console()
    n, task = len(drawn.rows), drawn.task
    echo_prose(f"{task.name}: {n:,} {drawn.split} rows, seed {drawn.seed}; score: {results[0].metric}", style="bold")
    screen.print(_facts(results))
    for found in results:
        if found.confusion:
            screen.print(_confusion(found))
        for reason, n in found.refused.items():
            echo_prose(f"{found.who}: {n:,} refused: {reason}")
    for line in _notes(results):
        echo_prose(f"note: {line}")


def to_json(drawn: TrialRows, results: Sequence[TrialResult]) -> dict[str, Any]:
    """Return trials as JSON values; dollars of the rows are exact to the micro-dollar, rounded up."""
    return {
        "task": drawn.task.name,
        "split": drawn.split,
        "seed": drawn.seed,
        "n_rows": len(drawn.rows),
        "models": [_document(found) for found in results],
    }


def _document(found: TrialResult) -> dict[str, Any]:
    score = found.score
    return {
        "who": found.who,
        "metric": found.metric,
        "score": None if score is None else {"value": score.value, "low": score.low, "high": score.high},
        "agreed": found.agreed,
        "kappa": found.kappa,
        "ece": found.ece,
        "right_by_thirds": list(found.parts),
        "confusion": found.confusion,
        "n_labels": found.n_labels,
        "n_right": found.n_right,
        "refused": found.refused,
        "n_beyond_the_money": found.n_unbought,
        "n_lost": found.n_lost,
        "usd": -(-found.usd * MICROS_PER_USD // 1) / MICROS_PER_USD,
        "usd_paid_now": found.cash_micros / MICROS_PER_USD,
        "usd_per_1000_labels": found.usd_per_thousand,
        "usd_per_1000_correct": found.usd_per_thousand_right,
        "seconds": found.seconds,
        "seconds_an_answer": found.answer_seconds,
        "n_examples": found.n_shown,
    }


def _usd(usd: float | None) -> str | None:
    return None if usd is None else show_usd(usd)


def _facts(results: Sequence[TrialResult]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for found in results:
        table.add_column(Text(visible(found.who)), justify="right", overflow="fold", max_width=40)
    for name, say in _FACTS:
        told = [say(found) for found in results]
        if any(each is not None for each in told):
            table.add_row(name, *(each or "–" for each in told))
    return table


def _confusion(found: TrialResult) -> Table:
    """Return the table of gold labels and answers, of many labels that of the most frequent mistakes."""
    from rich.table import Table
    from rich.text import Text

    rows = found.confusion
    answers = list(next(iter(rows.values())))
    table = Table(box=None, pad_edge=False, header_style="bold", title=Text(visible(found.who)), title_justify="left")
    if len(rows) <= MOST_LABELS:
        table.add_column("gold, and answers →")
        for answer in answers:
            table.add_column(Text(visible(answer)), justify="right")
        for gold, counts in rows.items():
            table.add_row(
                Text(visible(gold)), *(f"{counts[answer]:,}" if counts[answer] else "·" for answer in answers)
            )
        return table
    for heading in ("gold", "answer", "rows"):
        table.add_column(heading, justify="right" if heading == "rows" else "left")
    wrong = [(n, gold, answer) for gold, counts in rows.items() for answer, n in counts.items() if n and gold != answer]
    for n, gold, answer in sorted(wrong, key=lambda each: -each[0])[:MOST_MISTAKES]:
        table.add_row(Text(visible(gold)), Text(visible(answer)), f"{n:,}")
    return table


def _notes(results: Sequence[TrialResult]) -> list[str]:
    notes = []
    if any(found.ece is not None for found in results):
        notes.append("right by thirds: of the answers by confidence, the least sure first")
    if shown := max(found.n_shown for found in results):
        notes.append(f"{shown:,} labelled train rows are at hand as examples; a run has to buy them, or own them")
    if any(found.n_unbought for found in results):
        notes.append("the budget ended before all rows were asked about; raise --budget")
    if any(found.n_lost for found in results):
        notes.append(
            "a lost request is one whose reply never came; it may have been billed, and counts at its worst case"
        )
    return notes
