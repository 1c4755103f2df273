"""Print the tables of docs/results/few_labels.md and docs/results/headline.md, drawn from the committed points.

    python bench/method_tables.py few_labels
    python bench/method_tables.py headline

± is half of the 95 % t-interval over seeds, bold the best mean of a row, and n a number of seeds that is not three.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from outlay.metrics.intervals import half_of_means

RESULTS = Path(__file__).parents[1] / "docs" / "results"
FEW_LABELS = tuple(
    RESULTS / "few_labels" / name
    for name in ("points.json", "thousand/points.json", "teacher/points.json", "teacher_thousand/points.json")
)
"""Points of the students `cut:2` and all-MiniLM-L6-v2, at 16 to 250 labels and at 1,000; those that are there."""
PAIRS = ("mrpc", "multipit_id", "rte", "stanceosaurus")
ENTITIES = ("wlp",)
KINDS = ("single", "pair", "entities")
METHODS = {
    "single": ("full", "contrastive", "probe_then_tune", "probe", "tfidf"),
    "pair": (
        *("full", "contrastive", "probe, towers", "probe, joined"),
        *("probe_then_tune, towers", "probe_then_tune, joined", "tfidf"),
    ),
    "entities": ("full", "probe"),
}
"""Columns of the tables by kind of text."""
STUDENTS = {"cut": "cut:2", "whole": "all-MiniLM-L6-v2"}

Cell = tuple[str, int, str]
"""A set, a number of labels, and the student: `cut` or `whole`."""
Scores = Mapping[Cell, Mapping[str, Sequence[float]]]
"""Test scores by cell and method, one for each seed."""


def kind_of(task: str) -> str:
    """Return the kind of text of a set, as the table of `auto` names it."""
    return "pair" if task in PAIRS else "entities" if task in ENTITIES else "single"


def read(paths: Iterable[Path] = FEW_LABELS, *, of: Callable[[Any], float] = lambda result: result["test"]) -> Scores:
    """Return the scores of the points that are there, or something else ``of`` their results."""
    found: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        for point in json.loads(path.read_text(encoding="utf-8")) if path.exists() else ():
            request, result = point["request"], point["result"]
            if result["status"] == "ok":
                method = request.get("methods", {}).get("student", "full")
                size = "cut" if request["student"].startswith("cut:") else "whole"
                found[request["task"], result["n_labels"], size][method].append(of(result))
    return found


def score_text(values: Sequence[float], *, is_best: bool = False) -> str:
    """Return a mean with its interval, or the scores where there are too few for one."""
    half = half_of_means(list(values)) if len(values) > 1 else None
    text = f"{statistics.fmean(values):.1f}" + ("" if half is None else f" ± {half:.1f}")
    text += "" if len(values) == 3 else f" (n = {len(values)})"
    return f"**{text}**" if is_best else text


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, n_words: int) -> str:
    """Return a Markdown table whose first ``n_words`` columns are words."""
    rule = ["---" if i < n_words else "---:" for i in range(len(headings))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rule, *rows))


def few_labels_table(scores: Scores, kind: str, size: str) -> str:
    """Return the table of one kind of text and one student."""
    cells = sorted(cell for cell in scores if kind_of(cell[0]) == kind and cell[2] == size)
    methods = [method for method in METHODS[kind] if any(method in scores[cell] for cell in cells)]
    rows = []
    for cell in cells:
        of = scores[cell]
        best = max(of, key=lambda method: statistics.fmean(of[method]))
        shown = [score_text(of[each], is_best=each == best) if each in of else "–" for each in methods]
        rows.append([cell[0], f"{cell[1]:,}", *shown])
    return table(["set", "labels", *(f"`{each}`" for each in methods)], rows, n_words=1)


def seconds_table(kind: str, n_labels: int = 250) -> str:
    """Return the table of the seconds that are charged for a training and its scoring."""
    seconds = read(of=lambda result: result["seconds"]["cpu"])
    cells = sorted(
        (cell for cell in seconds if kind_of(cell[0]) == kind and cell[1] == n_labels), key=lambda cell: cell[2]
    )
    rows = []
    for cell in cells:
        of = {name: statistics.fmean(values) for name, values in seconds[cell].items()}
        shown = [f"{of[each]:.1f}" if each in of else "–" for each in METHODS[kind]]
        rows.append([STUDENTS[cell[2]], cell[0], *shown])
    return table(["student", "set", *(f"`{each}`" for each in METHODS[kind])], rows, n_words=2)


RIVALS = {
    "rival_majority": "majority class",
    "rival_tfidf": "TF-IDF + regression",
    "rival_probe": "probe of the student",
}
"""Names of rivals in the tables of the headline."""
STRATEGIES = ("annotate", "distill", "self_distill", *RIVALS)
Row = tuple[str, float, str, str]
"""Set, budget, strategy, and how it was trained: `as published`, `auto`, or nothing for a rival."""


def headline(path: Path = RESULTS / "headline" / "points.json") -> dict[Row, list[dict[str, Any]]]:
    """Return the points of each row of the headline, by rising seed, in the order of the table."""
    found: dict[Row, list[dict[str, Any]]] = defaultdict(list)
    for point in json.loads(path.read_text(encoding="utf-8")):
        request = point["request"]
        is_auto = "auto" in request.get("methods", {}).values()
        how = "" if request["strategy"] in RIVALS else "auto" if is_auto else "as published"
        found[request["task"], request["budget_usd"], request["strategy"], how].append(point)
    order = {name: i for i, name in enumerate(STRATEGIES)}
    rows = sorted(found, key=lambda row: (row[0], row[1], order[row[2]], row[3] == "auto"))
    return {row: sorted(found[row], key=lambda point: point["request"]["seed"]) for row in rows}


def tests_of(points: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the test scores of some points."""
    return [point["result"]["test"] for point in points]


def money(budget: float) -> str:
    """Return a budget as the tables write it: $50, $32.50."""
    return f"${budget:,.0f}" if budget == int(budget) else f"${budget:,.2f}"


def headline_table(rows: Mapping[Row, Sequence[Mapping[str, Any]]]) -> str:
    """Return the table of every row."""
    lines = []
    for (task, budget, strategy, how), points in rows.items():
        beside = [each for each in rows if each[:2] == (task, budget)]
        best = max(statistics.fmean(tests_of(rows[each])) for each in beside)
        mean = statistics.fmean(tests_of(points))
        is_best = mean == best and how != "as published"
        results = [point["result"] for point in points]
        latencies = [point["circumstance"]["latency_ms"] for point in points]
        lines.append(
            [
                task,
                money(budget),
                strategy if strategy not in RIVALS else f"rival: {RIVALS[strategy]}",
                how,
                f"{statistics.fmean(each['n_labels'] for each in results):,.0f}",
                f"{results[0]['n_pool']:,}" if results[0]["n_pool"] else "–",
                score_text(tests_of(points), is_best=is_best),
                f"${statistics.fmean(each['charge_usd'] for each in results):,.2f}",
                f"{4 * statistics.fmean(each['student_parameters'] for each in results) / 1e6:,.1f}",
                "–" if None in latencies else f"{statistics.fmean(latencies):.1f}",
            ]
        )
    headings = ["set", "budget", "spent on", "methods", "labels", "pool rows", "test", "charge", "MB", "ms a row"]
    return table(headings, lines, n_words=4)


def difference_text(one: Sequence[float], other: Sequence[float]) -> str:
    """Return the mean difference of the same seeds, with its interval."""
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    half = half_of_means(gaps)
    return f"{statistics.fmean(gaps):+.1f} ± {half or 0.0:.1f}".replace("-", "−")


def differences_table(rows: Mapping[Row, Sequence[Mapping[str, Any]]]) -> str:
    """Return the table of distilling less annotating."""
    lines = []
    for task, budget in dict.fromkeys(row[:2] for row in rows):
        cells = []
        for how in ("auto", "as published"):
            sides = [tests_of(rows[task, budget, strategy, how]) for strategy in ("distill", "annotate")]
            cells.append(difference_text(*sides))
        lines.append([task, money(budget), cells[0], cells[1] if cells[1] != cells[0] else "the same runs"])
    headings = ["set", "budget", "distil − annotate, `auto`", "distil − annotate, as published"]
    return table(headings, lines, n_words=2)


def readme_table(rows: Mapping[Row, Sequence[Mapping[str, Any]]]) -> str:
    """Return the table of the README: a row for each set and budget."""
    columns = [
        *((name, "auto") for name in ("annotate", "distill", "self_distill")),
        *((name, "as published") for name in ("annotate", "distill")),
    ]
    lines = []
    for task, budget in dict.fromkeys(row[:2] for row in rows):
        found = {each: tests_of(rows[task, budget, *each]) for each in columns}
        rivals = {name: tests_of(rows[task, budget, name, ""]) for name in RIVALS if (task, budget, name, "") in rows}
        rival = max(rivals, key=lambda name: statistics.fmean(rivals[name]))
        best = max(statistics.fmean(each) for each in (*found.values(), rivals[rival]))
        texts = [score_text(each, is_best=statistics.fmean(each) == best) for each in found.values()]
        named = {"rival_majority": "majority", "rival_tfidf": "TF-IDF", "rival_probe": "probe"}[rival]
        of_rival = score_text(rivals[rival], is_best=statistics.fmean(rivals[rival]) == best)
        lines.append([f"`{task}`", money(budget), *texts[:3], f"{of_rival} ({named})", *texts[3:]])
    headings = ["set", "budget", "annotate", "distil", "self-distil", "best rival", "annotate, as published"]
    return table([*headings, "distil, as published"], lines, n_words=1)


def main(name: str) -> None:
    """Print the tables of one page."""
    if name == "headline":
        rows = headline()
        print(headline_table(rows), differences_table(rows), readme_table(rows), sep="\n\n")
        return
    scores = read()
    for size, student in STUDENTS.items():
        for kind in KINDS:
            if any(kind_of(cell[0]) == kind and cell[2] == size for cell in scores):
                print(f"{student}, {kind}\n\n{few_labels_table(scores, kind, size)}\n")
    for kind in KINDS:
        print(f"seconds, 250 labels, {kind}\n\n{seconds_table(kind)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
