"""Draw docs/results anew from the points that are kept there; nothing is run again.

    python bench/redraw.py            # write tables and figures
    python bench/redraw.py --check    # exit 1 and name the files that would change

Of a study (docs/results/studies/*) its points stand in points.csv: the tables under its heading and its figures are drawn from
them. Of a comparison (docs/results/*.points.json) the chart is drawn, the column Test of every table that has its rows, in its
own page and in README.md, and the list of differences. Answers were not kept, so there are means with intervals and no tests.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point, read_points
from outlay.report.figures import save
from outlay.report.grouping import group
from outlay.report.results import Header, Results
from outlay.report.study_report import StudyReport
from outlay.report.table import Table, TableCell
from outlay.report.table_formats import render_markdown
from outlay.report.values import MINUS, money, signed

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
END_OF_HEAD = "Figures, points and receipts: this folder."
COMPARISONS = {"multipit_id": ("README.md", "docs/results/multipit_id.md"), "wlp": ("docs/results/wlp.md",)}
"""Comparison → the pages that show its rows."""
HEAD_OF_DIFFERENCES = "## Differences of the means\n"


# --- studies ----------------------------------------------------------------------------------------------------------


def study_results(folder: Path) -> Results:
    """A study as its page and its points.csv keep it.

    Raises:
        ValueError: A row does not make the point whose id it carries.
    """
    points, left = [], {}
    with (folder / "points.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            point = Point.from_json(_document(row))
            if point.id != row["id"]:
                raise ValueError(f"{folder / 'points.csv'}: {row['id']} reads as {point.id}")
            points.append(point)
            left[point.id] = _aftermath(row)
    return Results(_header(folder), tuple(points), left)


def _header(folder: Path) -> Header:
    study = yaml.safe_load((ROOT / "studies" / f"{folder.name}.yaml").read_text(encoding="utf-8"))
    return Header(folder.name, study["title"], study["layout"], study["source"], "cpu")


def _document(row: Mapping[str, str]) -> dict[str, Any]:
    """The point's own JSON."""

    def number(name: str, kind: type[float] | type[int] = float) -> Any:
        return None if row[name] == "" else kind(row[name])

    scores: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        if name.startswith("score:") and value:
            score_name, _, part = name.removeprefix("score:").partition(":")
            scores.setdefault(score_name, {})[part or "value"] = float(value)
    counts = ("n_labels", "n_llm_labels", "llm_tokens_in", "llm_tokens_out", "n_pool", "n_dev", "flops")
    return {
        "request": {
            **{name: row[name] for name in ("task", "strategy", "student", "machine", "clock", "price_book")},
            **{name: number(name) for name in ("budget_usd", "added_usd")},
            **{name: number(name, int) for name in ("n_initial", "seed")},
            "teacher": row["teacher"] or None,
            "pool": json.loads(row["pool"]),
            "dev": row["dev_labels"],
        },
        "result": {
            "status": row["status"],
            "reason": row["reason"] or None,
            **{name: number(name) for name in ("test", "dev", "charge_usd")},
            **{name: number(name, int) for name in (*counts, "student_parameters")},
            "scores": scores,
            "seconds": {name: float(value) for name, value in _part(row, "seconds:")},
            "artifacts": dict(_part(row, "digest:")),
            **({"ece": float(row["ece"])} if row.get("ece") else {}),
        },
        "circumstance": {
            **{name: number(name) for name in ("cash_usd", "wall_seconds", "latency_ms")},
            "ledger_head": row["ledger_head"] or None,
            "environment": {name: int(v) if v.isdigit() else v for name, v in _part(row, "environment:")},
        },
    }


def _part(row: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    return ((name.removeprefix(prefix), value) for name, value in row.items() if name.startswith(prefix) and value)


def _aftermath(row: Mapping[str, str]) -> RunOutputs:
    return RunOutputs(
        run=row["run"],
        metric=row["metric"] or None,
        teacher_dev=float(row["teacher_dev"]) if row["teacher_dev"] else None,
        charges_usd={name: float(value) for name, value in _part(row, "charge_usd:")} or None,
    )


def study_page(folder: Path, report: StudyReport) -> str:
    """The page of a study: its own heading, and the tables drawn anew."""
    head, found, rest = (folder / "README.md").read_text(encoding="utf-8").partition(END_OF_HEAD)
    if not found:
        raise ValueError(f"{folder / 'README.md'} has no line that begins with {END_OF_HEAD!r}")
    tables = "\n".join(render_markdown(table) for table in report.tables)
    return f"{head}{found}{rest.partition(chr(10))[0]}\n\n{tables}"


def study_files(folder: Path) -> dict[Path, bytes]:
    """The page and the figures of a study."""
    report = StudyReport(study_results(folder))
    files = {folder / "README.md": study_page(folder, report).encode()}
    with tempfile.TemporaryDirectory() as scratch:
        for name, spec in report.figures.items():
            files[folder / f"{name}.svg"] = save(spec, Path(scratch) / f"{name}.svg").read_bytes()
    return files


# --- comparisons ------------------------------------------------------------------------------------------------------


def comparison(name: str) -> Results:
    """A comparison as its points keep it."""
    points = read_points(RESULTS / f"{name}.points.json")
    return Results(Header("compare", f"{name}: what a score costs", "plain"), tuple(points), {})


def scores_of(table: Table) -> dict[tuple[str, str], TableCell]:
    """The test scores of a plain table, by what its rows are called and by their budgets."""
    names = [column.text for column in table.columns]
    found = {}
    for row in table.rows:
        budget, tested = row.cells[names.index("Budget")], row.cells[names.index("Test")]
        if budget is not None and tested is not None:
            found[row.heads[0], budget.text] = tested
    return found


def with_scores(page: str, found: Results) -> str:
    """A page with the column Test of the comparison's rows drawn anew; everything else stays."""
    tests = {
        key: f"**{cell.text}**" if cell.on_front else cell.text
        for key, cell in scores_of(StudyReport(found).tables[0]).items()
    }
    lines, place = [], None
    for line in page.split("\n"):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if {"Strategy", "Budget", "Test"} <= set(cells):
            place = cells.index("Test")
        elif not cells:
            place = None
        elif place is not None and (key := (cells[0], cells[1])) in tests:
            cells[place] = tests[key]
            line = f"| {' | '.join(cells)} |"
        lines.append(line)
    return "\n".join(lines)


def differences(name: str) -> list[str]:
    """A line per pair of a budget: the difference of the means and of every seed, without a test."""
    groups = group(read_points(RESULTS / f"{name}.points.json"))
    lines = []
    for first, second in combinations(groups, 2):
        if first.budget_usd == second.budget_usd:
            ones, others = ({p.request.seed: p.result.test for p in each.ok} for each in (first, second))
            by_seed = [others[seed] - ones[seed] for seed in sorted(ones)]
            place = f"{second.label} {MINUS} {first.label} at {money(first.budget_usd)}"
            lines.append(f"- {place}: {signed(fmean(by_seed))}; by seed {', '.join(map(signed, by_seed))}")
    return lines


def with_differences(page: str, lines: list[str]) -> str:
    """A page with its list of differences drawn anew: what begins with "- " after that heading."""
    head, found, rest = page.partition(HEAD_OF_DIFFERENCES)
    if not found:
        return page
    before, _, after = rest.partition("\n- ")
    kept = after.split("\n\n", 1)[1]
    return f"{head}{found}{before}\n{chr(10).join(lines)}\n\n{kept}"


def comparison_page(name: str, page: Path) -> str:
    """A page that shows a comparison, its figures drawn anew."""
    return with_differences(with_scores(page.read_text(encoding="utf-8"), comparison(name)), differences(name))


def comparison_files(name: str, pages: tuple[str, ...]) -> dict[Path, bytes]:
    """The pages that show a comparison, and its chart."""
    found = comparison(name)
    files = {ROOT / page: comparison_page(name, ROOT / page).encode() for page in pages}
    with tempfile.TemporaryDirectory() as scratch:
        for spec in StudyReport(found).figures.values():
            chart = save(spec, Path(scratch) / "chart.png")
            files[ROOT / "docs" / "img" / f"{name}.png"] = chart.read_bytes()
    return files


def drawn() -> Iterator[tuple[Path, bytes]]:
    """Every file that is drawn from kept points, with what it must hold."""
    for folder in sorted((RESULTS / "studies").iterdir()):
        yield from study_files(folder).items()
    for name, pages in COMPARISONS.items():
        yield from comparison_files(name, pages).items()


def main() -> int:
    """Write what differs, or name it."""
    options = argparse.ArgumentParser(description="Draw docs/results anew from its points.")
    options.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    is_check = options.parse_args().check
    n_changed = 0
    for path, content in drawn():
        if path.exists() and path.read_bytes() == content:
            continue
        n_changed += 1
        print(path.relative_to(ROOT))
        if not is_check:
            path.write_bytes(content)
    return 1 if is_check and n_changed else 0


if __name__ == "__main__":
    sys.exit(main())
