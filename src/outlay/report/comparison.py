"""The comparison: one row per strategy and budget, as numbers first and as rich, Markdown or CSV text then."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point
from outlay.errors import DataError
from outlay.metrics import ALPHA
from outlay.metrics.degenerate import of_rows
from outlay.money.amounts import show_usd
from outlay.report.frontier import CostScore, Frontier, frontier
from outlay.report.grouping import Group, group
from outlay.report.scores import ONE_SEED_PAIR, Score, covers_words, mean_of_seeds, with_interval
from outlay.storage.files import csv_text
from outlay.text.display import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

MINUS = "−"
ONE_SEED_ADVICE = "One seed is no evidence about a strategy; with --seeds 5 there are tests."
ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy variant at one budget: means over the seeds that have a test score, None where none has."""

    label: str
    budget_usd: float
    n_labels: float | None
    n_pool: float | None
    teacher_dev: float | None
    test: Score | None
    charge_usd: float | None
    cash_usd: float | None
    n_ok: int
    n_seeds: int
    reasons: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """Where a score means less than its number, see `outlay.metrics.degenerate`."""
    n_dev: int | None = None
    """Rows of the smallest dev set of its seeds."""

    @property
    def spot(self) -> CostScore | None:
        """The row's place in the charge x score plane."""
        if self.test is None or self.charge_usd is None:
            return None
        name = f"{self.label} at {money(self.budget_usd)}"
        return CostScore(name, self.charge_usd, self.test.mean, self.test.low, self.test.high)


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """A paired difference between two strategies at one budget, first minus second, in points; see `PairedTest`.

    ``p_holm`` is the two-sided p of "no difference" for new seeds and new test rows after Holm's correction over
    ``n_comparisons``, and ``smallest`` how small a difference the test could have seen; both None where there is no test.
    ``n_apart``: test rows on which the two do not score alike.
    """

    first: str
    second: str
    budget_usd: float
    mean: float
    low: float
    high: float
    p_holm: float | None
    n_comparisons: int
    smallest: float | None
    n_seeds: int
    n_apart: int

    @property
    def is_significant(self) -> bool:
        """Whether there is a test and its corrected p is at most 0.05."""
        return self.p_holm is not None and self.p_holm <= ALPHA

    @property
    def verdict(self) -> str:
        """What the test says, in words; one that finds nothing says what it could have found."""
        if self.n_apart == 0:
            return "every test row scored alike"
        if self.p_holm is None:
            return "too few test rows for a test" if self.n_seeds > 1 else f"{ONE_SEED_PAIR} (one seed), no test"
        words = "significant at 95 %" if self.is_significant else "not significant at 95 %"
        if self.n_comparisons > 1:
            words += f" after Holm's correction over {self.n_comparisons} comparisons"
        if self.smallest is not None and not self.is_significant and abs(self.mean) < self.smallest:
            words += f" (it could have seen about {points_text(self.smallest)})"
        return words


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything a table, chart or page shows."""

    task: str
    rows: tuple[Row, ...]
    differences: tuple[DifferenceRow, ...]
    frontier: Frontier
    measure: str | None = None
    """What the test score is, in words: "micro F1, strict reading"; None where the points have no one metric."""

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each reason why a point has no score."""
        lines = {
            f"{row.label} at {money(row.budget_usd)}: {reason}": None for row in self.rows for reason in row.reasons
        }
        return tuple(lines)

    @property
    def remarks(self) -> tuple[str, ...]:
        """One line for each score that means less than its number."""
        return tuple(f"{row.label} at {money(row.budget_usd)}: {remark}" for row in self.rows for remark in row.remarks)


def compare(
    points: Sequence[Point],
    *,
    left: Mapping[str, RunOutputs] | None = None,
    differences: Sequence[DifferenceRow] = (),
    measure: str | None = None,
) -> Comparison:
    """Turn points into the numbers of a report.

    Args:
        points: of one or several tasks; rows are in the order of :func:`outlay.report.grouping.group`.
        left: point id -> what its run left; from its answers come the intervals (:func:`outlay.report.scores.mean_of_seeds`).
        differences: paired differences to show beside the rows.
        measure: the main score as ``statistic/reading``.

    Raises:
        DataError: there are no points.
    """
    if not points:
        raise DataError("there are no points to compare; run `outlay compare` or `outlay study run` first")
    rows = tuple(_row(each, left or {}) for each in group(points))
    spots = [row.spot for row in rows if row.spot is not None]
    tasks = dict.fromkeys(point.request.task for point in points)
    words = None if measure is None else measure_text(measure)
    return Comparison(", ".join(tasks), rows, tuple(differences), frontier(spots), words)


def _row(each: Group, left: Mapping[str, RunOutputs]) -> Row:
    ok = each.ok
    results = [point.result for point in ok]
    cash = [point.circumstance.cash_usd for point in ok]
    devs = [left[point.id].teacher_dev for point in ok if point.id in left]
    return Row(
        label=each.label,
        budget_usd=each.budget_usd,
        n_labels=_mean([result.n_labels for result in results]),
        n_pool=_mean([result.n_pool for result in results]),
        teacher_dev=_mean([dev for dev in devs if dev is not None]),
        test=mean_of_seeds(ok, left),
        charge_usd=_mean([result.charge_usd for result in results]),
        cash_usd=None if None in cash else _mean([usd for usd in cash if usd is not None]),
        n_ok=len(ok),
        n_seeds=len(each.points),
        reasons=tuple(dict.fromkeys(p.result.reason for p in each.points if p.result.reason is not None)),
        remarks=remarks_of(ok),
        n_dev=min((result.n_dev for result in results), default=None),
    )


def remarks_of(seeds: Sequence[Point]) -> tuple[str, ...]:
    """The notes of the seeds of one row, each once, with the seeds it is about where it is not about all."""
    about: dict[str, list[int]] = {}
    for point in seeds:
        for note in point.result.notes:
            about.setdefault(note, []).append(point.request.seed)
    return tuple(
        note if len(found) == len(seeds) else f"seed {', '.join(map(str, found))}: {note}"
        for note, found in about.items()
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


# --- how values are written -------------------------------------------------------------------------------------------

HEADER = ("Strategy", "Budget", "Labels", "Pool rows", "Teacher dev", "Test", "Charge", "Cash", "Seeds")


def money(usd: float | None) -> str:
    """Dollars for a table, as `outlay.money.amounts.show_usd` writes them; a dash where there are none."""
    return ABSENT if usd is None else show_usd(usd)


def count(number: float | None) -> str:
    """A mean count without decimals, thousands set apart."""
    return ABSENT if number is None else f"{number:,.0f}"


def score(value: Score | None) -> str:
    """A score with its interval: "78.0 ± 0.6"."""
    if value is None:
        return "N/A"
    text = f"{value.mean:.1f}"
    return text if value.bounds is None else with_interval(text, value.mean, *value.bounds)


def signed(points: float) -> str:
    """A difference with its sign: "+4.2", "−0.3"; what rounds to zero has none."""
    text = f"{abs(points):.1f}"
    return text if text == "0.0" else ("+" if points > 0 else MINUS) + text


def points_text(points: float) -> str:
    """A size in points: "1.7"; one that would round to nothing is "less than 0.1"."""
    return "less than 0.1" if points < 0.05 else f"{points:.1f}"


_STATISTICS = {"bert_ibleu": "BERT-iBLEU"}


def measure_text(main_score: str) -> str:
    """ "micro_f1/strict" as "micro F1, strict reading"."""
    statistic, _, reading = main_score.partition("/")
    return f"{_STATISTICS.get(statistic, statistic.replace('_', ' ').replace('f1', 'F1'))}, {reading} reading"


def cells(row: Row) -> tuple[str, ...]:
    """The row as texts under :data:`HEADER`."""
    return (
        row.label,
        money(row.budget_usd),
        count(row.n_labels),
        count(row.n_pool) if row.n_pool else ABSENT,
        ABSENT if row.teacher_dev is None else f"{row.teacher_dev:.1f}{of_rows(row.n_dev)}",
        score(row.test),
        money(row.charge_usd),
        money(row.cash_usd),
        str(row.n_seeds) if row.n_ok in (0, row.n_seeds) else f"{row.n_ok} of {row.n_seeds}",
    )


def grid(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows as texts, without the columns in which no row has a value."""
    texts = [cells(row) for row in comparison.rows]
    kept = [i for i in range(len(HEADER)) if any(row[i] != ABSENT for row in texts)]
    return tuple(HEADER[i] for i in kept), [tuple(row[i] for i in kept) for row in texts]


def difference_text(row: DifferenceRow) -> str:
    """ "distill − annotate at $300.00: +6.9 [+5.1, +8.7], significant at 95 %"."""
    interval = f"[{signed(row.low)}, {signed(row.high)}]"
    place = f"{row.first} {MINUS} {row.second} at {money(row.budget_usd)}"
    return f"{place}: {signed(row.mean)} {interval}, {row.verdict}"


def legend(comparison: Comparison) -> str:
    """What the test scores are and what their intervals speak of; nothing where neither is known."""
    measure = "" if comparison.measure is None else f"Test: {comparison.measure}, 0-100. "
    span = covers_words(row.test.covers for row in comparison.rows if row.test is not None)
    covers = [row.test.covers for row in comparison.rows if row.test is not None]
    advice = f" {ONE_SEED_ADVICE}" if len(covers) > 1 and set(covers) == {"rows"} else ""
    return (measure + (f"{span}." if span else "") + advice).strip()


# --- renderings -------------------------------------------------------------------------------------------------------


def render_rich(comparison: Comparison) -> RenderableType:
    """The comparison for a terminal; rows on the frontier are bold."""
    from rich.console import Group as RichGroup
    from rich.table import Table
    from rich.text import Text

    title = Text(visible(f"{comparison.task}: test score by strategy and budget"))
    table = Table(title=title, title_justify="left")
    header, texts = grid(comparison)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    budget_usd = comparison.rows[0].budget_usd
    for row, line in zip(comparison.rows, texts, strict=True):
        if row.budget_usd != budget_usd:
            table.add_section()
            budget_usd = row.budget_usd
        table.add_row(*(Text(visible(text)) for text in line), style="bold" if on_front(comparison, row) else "")
    lines = [Text(difference_text(row)) for row in comparison.differences]
    if words := legend(comparison):
        lines.insert(0, Text(words, style="dim"))
    notes = [Text(f"Note: {remark}") for remark in comparison.remarks]
    notes += [Text(f"N/A: {note}", style="dim") for note in comparison.notes]
    return RichGroup(table, *lines, *notes)


def on_front(comparison: Comparison, row: Row) -> bool:
    """Whether no other row is cheaper and better."""
    return row.spot is not None and comparison.frontier.holds(row.spot)


def render_markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table, its differences and notes as lists under it; frontier scores are bold."""
    header, texts = grid(comparison)
    lines = [_markdown_line(header), "|---|" + "---:|" * (len(header) - 1)]
    test = header.index("Test")
    for row, line in zip(comparison.rows, texts, strict=True):
        bold = f"**{line[test]}**" if on_front(comparison, row) else line[test]
        lines.append(_markdown_line([*line[:test], bold, *line[test + 1 :]]))
    if words := legend(comparison):
        lines += ["", words]
    if comparison.differences:
        lines += ["", *(f"- {difference_text(row)}" for row in comparison.differences)]
    if comparison.remarks:
        lines += ["", *(f"- Note: {remark}" for remark in comparison.remarks)]
    if comparison.notes:
        lines += ["", *(f"- N/A: {note}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def _markdown_line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


CSV_HEADER = (
    *("strategy", "budget_usd", "n_labels", "n_pool", "teacher_dev", "test", "test_low", "test_high", "interval"),
    *("charge_usd", "cash_usd", "n_ok", "n_seeds", "on_frontier", "reason", "notes"),
)


def render_csv(comparison: Comparison) -> str:
    """The rows with all digits; an absent value is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in comparison.rows:
        writer.writerow(map(csv_text, _csv_values(comparison, row)))
    return buffer.getvalue()


def _csv_values(comparison: Comparison, row: Row) -> tuple[Any, ...]:
    low, high = (None, None) if row.test is None or row.test.bounds is None else row.test.bounds
    return (
        *(row.label, row.budget_usd, row.n_labels, row.n_pool, row.teacher_dev),
        row.test.mean if row.test else None,
        *(low, high),
        row.test.covers if row.test else None,
        *(row.charge_usd, row.cash_usd, row.n_ok, row.n_seeds),
        "yes" if on_front(comparison, row) else "no",
        "; ".join(row.reasons) or None,
        "; ".join(row.remarks) or None,
    )
