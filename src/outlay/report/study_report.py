"""The report of a study: tables, figures, one page and flat files, computed once from its points."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.report.cells import dollars
from outlay.report.difference_table import lay_out_differences
from outlay.report.figure_data import LEAST_CHARGE, LEAST_SPAN
from outlay.report.figures import Spec, figures, save
from outlay.report.flat_files import write_points_csv, write_points_parquet
from outlay.report.frontier import CostScore, frontier
from outlay.report.grouping import lines_on_strategies, variant_names
from outlay.report.label_sources import lines_on_sources
from outlay.report.layouts import lay_out
from outlay.report.quality_section import quality_sections
from outlay.report.recommendation import TaskSummary, summarise, summary_lines
from outlay.report.results import Results
from outlay.report.scores import ONE_SEED
from outlay.report.seed_means import SeedMean, means
from outlay.report.significance import PairedTest, family
from outlay.report.study_page import render_study
from outlay.report.table import Column, Table, TableCell, TableRow
from outlay.report.table_formats import render_html, render_markdown, render_rich
from outlay.storage.files import write_text

if TYPE_CHECKING:
    from rich.console import RenderableType

N_CHARGES = 5
"""Number of charges at which frontiers are averaged over tasks: a geometric grid from the least to the highest charge."""


@dataclass(frozen=True)
class StudyReport:
    """The parts of a report of some results, each computed once on first use."""

    results: Results

    @cached_property
    def means(self) -> list[SeedMean]:
        """Seed means of the points."""
        return means(self.results)

    @cached_property
    def tests(self) -> tuple[PairedTest, ...]:
        """Paired tests between the points, corrected as one family."""
        return family(self.results)

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Tables of the layout, then the table of frontiers, then the table of differences."""
        own = [lay_out_frontiers(self.means), lay_out_differences(self.tests)]
        return (*lay_out(self.results), *(table for table in own if table is not None))

    @cached_property
    def summaries(self) -> tuple[TaskSummary, ...]:
        """The summary of each task: the model to take, and rows that are not worth more than a rival."""
        return summarise(self.results, self.means, self.tests)

    @property
    def summary(self) -> tuple[str, ...]:
        """The summaries as lines."""
        return summary_lines(self.summaries)

    @property
    def _explained_tables(self) -> list[Table]:
        """The tables, with a line on each strategy below the first one."""
        told = (
            *lines_on_strategies(point.request for point in self.results.points),
            *lines_on_sources(self.results.points),
        )
        return [replace(table, notes=(*told, *table.notes)) if i == 0 else table for i, table in enumerate(self.tables)]

    @cached_property
    def figures(self) -> dict[str, Spec]:
        """Specifications of the figures by name, one per task."""
        return figures(self.results, self.means)

    def markdown(self) -> str:
        """Return all tables as Markdown under the heading of the study."""
        header = self.results.header
        facts = [f"Follows {header.source}."] if header.source else []
        facts += [f"Scale: {header.scale}."] if header.scale else []
        lines = [f"# {header.title}", ""]
        lines += [*(f"- {line}" for line in self.summary), ""] if self.summary else []
        lines += [" ".join(facts), ""] if facts else []
        lines += ["```", header.command, "```", ""] if header.command else []
        lines += [*(f"- {note}" for note in header.notes), ""] if header.notes else []
        return "\n".join(lines) + "\n" + "\n".join(map(render_markdown, self._explained_tables))

    def terminal(self) -> RenderableType:
        """Return all tables for a terminal."""
        from rich.console import Group

        drawn = [part for table in self._explained_tables for part in ("", render_rich(table))]
        return Group(*drawn[1:])

    def page(self, model: Sequence[str] = ()) -> str:
        """Return the self-contained page as HTML; ``model``: lines on the model that was handed over."""
        tables = [render_html(table) for table in self._explained_tables]
        quality = quality_sections(self.results, self.means)
        return render_study(self.results, tables, self.figures, self.summaries, model, quality)


def write_study_report(folder: Path, results: Results, model: Sequence[str] = ()) -> dict[str, Path]:
    """Write the files of a study's report into its folder; return their paths by kind.

    ``model``: lines on the model that was handed over, for the page.
    """
    report = StudyReport(results)
    files = {"table": folder / "table.md", "page": folder / "report.html"}
    write_text(files["table"], report.markdown())
    for name, spec in report.figures.items():
        for ending in ("png", "svg", "pdf"):
            path = save(spec, folder / f"{name}.{ending}")
            if ending == "png":
                files[name.replace("-", " ", 1)] = path
    write_text(files["page"], report.page(model))
    files["points"] = write_points_csv(folder / "points.csv", report.results)
    if (receipts := folder / "receipts").is_dir():
        files["receipts"] = receipts
    parquet = write_points_parquet(folder / "points.parquet", report.results)
    if parquet is not None:
        files["parquet"] = parquet
    return files


def lay_out_frontiers(seed_means: Sequence[SeedMean]) -> Table | None:
    """Lay out the Pareto frontier of each task and the mean over tasks at equal charges.

    None where charges are alike, or below a cent.

    The share is the hypervolume: the share of the rectangle of log charge and score that the frontier dominates, from the lowest
    to the highest charge of all tasks, above a score of 0.
    """
    by_task: dict[str, list[CostScore]] = {}
    names = variant_names(mean.request for mean in seed_means)
    for mean in seed_means:
        if mean.value is not None and mean.charge_usd:
            words = f"{names[mean.request]} at {dollars(mean.charge_usd)}"
            by_task.setdefault(mean.request.task, []).append(
                CostScore(words, mean.charge_usd, mean.value, mean.low, mean.high)
            )
    charges = sorted({candidate.charge_usd for candidates in by_task.values() for candidate in candidates})
    if not charges or charges[-1] < max(LEAST_CHARGE, LEAST_SPAN * charges[0]):
        return None
    fronts = {task: frontier(candidates) for task, candidates in by_task.items()}
    grid = [charges[0] * (charges[-1] / charges[0]) ** (i / (N_CHARGES - 1)) for i in range(N_CHARGES)]
    grid[-1] = charges[-1]
    reached = {task: [front.score_at(usd) for usd in grid] for task, front in fronts.items()}
    shares = {task: front.hypervolume(grid[0], grid[-1]) for task, front in fronts.items()}
    columns = [Column(dollars(usd), "Score on the frontier at") for usd in grid]
    columns += [Column("Share"), Column("Front, tied, dominated")]
    rows = []
    for task, front in fronts.items():
        counts = TableCell(words=f"{len(front.front)}, {len(front.tied)}, {len(front.dominated)}")
        rows.append(TableRow((task,), (*map(TableCell, reached[task]), TableCell(words=f"{shares[task]:.3f}"), counts)))
    if len(fronts) > 1:
        means_at = [TableCell(_mean_of_all(scores)) for scores in zip(*reached.values(), strict=True)]
        share = TableCell(words=f"{statistics.fmean(shares.values()):.3f}")
        rows.append(TableRow(("mean over tasks",), (*means_at, share, None), starts_block=True))
    notes: tuple[str, ...] = (
        "On the frontier nothing is cheaper and better; between its points the score is interpolated in log charge "
        "(Kang et al. 2023, Figure 2). Share: hypervolume in log charge and score, 0 to 1. A point off the frontier is tied "
        "where its interval meets that of a better one that is no dearer, and dominated where it does not.",
    )
    if any(mean.covers == "rows" for mean in seed_means):
        notes += (f"Intervals of one seed are of {ONE_SEED}: with another seed a tie may go, or come.",)
    return Table("Frontier", ("Task",), tuple(columns), tuple(rows), notes, tuple(fronts))


def _mean_of_all(scores: Sequence[float | None]) -> float | None:
    """Return the mean over tasks; None where a task has no score, since means over other tasks would not compare."""
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if len(known) == len(scores) else None
