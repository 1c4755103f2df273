"""Published results of Kang et al. 2023: the number printed for a request, and their tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from outlay.engine.point import PointRequest
from outlay.report import published
from outlay.report.cells import STRATEGY_NAMES, dollars, n_unlabelled, strategy_rank, thousands
from outlay.report.table import Heading, PlacedCell, Table, TableCell, pivot, task_heading

NOT_COMPARABLE = (
    "“paper”: the number printed for the same task, N and budget, from other models (T5-XXL, T5-Small), splits and pools; "
    "it shows what was found there and is no mark to reach."
)
_APART = "Other models, splits and pools: compare who wins and where, not the heights."
_N_OF_TABLES = 5000
"""Number of labels in Tables 3 and 6, from their captions."""
_N_OF_TABLE_3 = {"multipit_gen": 10_000, "nq": 10_000}
"""Number of labels of the tasks whose teacher in Table 3 has the score that Table 2 prints on 10K labels."""
_POOL_OF_TABLES = 100_000

Key = tuple[str, int, float, str]
_GENERAL_ROWS = {
    "T5-Small (annotate)": "annotate",
    "DistilBERT (general distillation + annotate)": "general_distill",
    "BERT-base (annotate)": "annotate BERT",
    "T5-XXL -> T5-Small (distill)": "distill",
}


@cache
def _rows(name: str) -> list[dict[str, str]]:
    return published.rows(name)


def _row_of(name: str, task: str) -> Mapping[str, str]:
    return next((row for row in _rows(name) if row["task"] == task), {})


def _number(text: str) -> float | None:
    return float(text) if text else None


@cache
def _scores() -> Mapping[Key, float | None]:
    """Return the scores of Tables 2 and 11 by task, N, added dollars and strategy."""
    return {
        (row["task"], int(row["n_initial"]), float(row["usd_additional"]), row["strategy"]): _number(row["score"])
        for row in _rows("kang_table2_table11")
    }


@cache
def _general() -> Mapping[Key, float | None]:
    """Return the scores of Table 10 by task, N, total dollars and strategy."""
    n_of = {664.0: 1000, 2120.0: 5000, 279.0: 1000, 795.0: 5000}
    found: dict[Key, float | None] = {}
    for row in _rows("kang_table10_general_distillation"):
        for column, text in row.items():
            task, _, usd = column.rpartition("_")
            if task and row["model"] in _GENERAL_ROWS:
                found[task, n_of[float(usd)], float(usd), _GENERAL_ROWS[row["model"]]] = _number(text)
    return found


def score_of(request: PointRequest) -> float | None:
    """Return the score that Tables 2 and 11 print for a task, N, added budget and strategy; None where they print none."""
    if request.n_initial is None or request.added_usd is None:
        return None
    return _scores().get((request.task, request.n_initial, request.added_usd, request.strategy))


def general_score_of(request: PointRequest) -> float | None:
    """Return the score that Table 10 prints for a request; the table annotates for two students, T5-Small and BERT."""
    is_bert = request.strategy == "annotate" and "bert" in request.student.lower()
    name = f"{request.strategy} BERT" if is_bert else request.strategy
    return _general().get((request.task, request.n_initial or 0, request.budget_usd, name))


def self_score_of(request: PointRequest) -> float | None:
    """Return the score that Table 3 prints for a request: 5K labels (two tasks: 10K) and 100K rows."""
    n = _N_OF_TABLE_3.get(request.task, _N_OF_TABLES)
    if (request.n_initial, n_unlabelled(request)) != (n, _POOL_OF_TABLES):
        return None
    row = _row_of("kang_table3_self_distillation", request.task)
    return _number(row.get(request.strategy, ""))


def costs_of(request: PointRequest) -> Mapping[str, float]:
    """Return the dollars that Table 6 prints for a request, by column: 5K labels and 100K rows."""
    row = _row_of("kang_table6_costs", request.task)
    if request.n_initial != _N_OF_TABLES or not row:
        return {}
    labels = {"labels": float(row["usd_initial_5k_labels"])}
    if request.strategy == "distill" and n_unlabelled(request) == _POOL_OF_TABLES:
        teacher, student = float(row["usd_teacher_finetune_5k"]), float(row["usd_distill_100k"])
        return labels | {"teacher": teacher, "distillation": student}
    return labels if request.added_usd == 0 else {}


# --- tables of the paper ---------------------------------------------------------------------------------------------


def budget_table(task: str) -> Table | None:
    """Lay out Tables 2 and 11 for one task; None for a task that is not in them."""
    items = []
    for _, row in _by_task("kang_table2_table11", [task]):
        n, is_distill = int(row["n_initial"]), row["strategy"] == "distill"
        teacher = f"T5-XXL [{_teacher(task, n)}] ⇒ T5-Small" if is_distill else "T5-Small"
        hours = f"({row['gpu_hours']}h / {thousands(int(row['n_unlabeled'] or 0))})"
        bracket = (hours if is_distill else f"(+{row['n_additional_labels']})") if row["score"] else ""
        usd = float(row["usd_additional"])
        items.append(
            PlacedCell(
                _row_head(row["strategy"], teacher),
                Heading((usd,), f"+{dollars(usd)}", "Additional $"),
                _printed(row["score"], bracket),
                block=Heading((n,), f"{thousands(n)} ({dollars(float(row['usd_initial']))})"),
            )
        )
    return _paper_table(f"Tables 2 and 11: {task}", ("N (initial $)", "Strategy"), items, [task])


def _teacher(task: str, n: int) -> str:
    found = (r for r in _rows("kang_table2_table11") if (r["task"], r["n_initial"]) == (task, str(n)))
    return next(f"{float(r['teacher_score']):.1f}" for r in found if r["teacher_score"])


def self_table(tasks: Sequence[str]) -> Table | None:
    """Lay out Table 3 for some tasks; None where none is in it."""
    lines = (
        ("self_distill", "self_teacher", "T5-Small ⇒ T5-Small"),
        ("distill", "distill_teacher", "T5-XXL ⇒ T5-Small"),
    )
    items = [
        PlacedCell(_row_head(name, models), column, _printed(row[name], f"[{float(row[teacher]):.1f}]"))
        for column, row in _by_task("kang_table3_self_distillation", tasks)
        for name, teacher, models in lines
    ]
    return _paper_table("Table 3: 5K labels, 100K unlabelled rows", ("Teacher ⇒ student",), items, tasks)


def match_table(tasks: Sequence[str]) -> Table | None:
    """Lay out Table 4 for some tasks; None where none is in it."""
    items = []
    lines = (
        ("distill", "T5-XXL ⇒ T5-Small (Distill)"),
        ("annotate_same", "T5-Small (Annotate), the same score"),
        ("annotate_upper", "T5-Small (Annotate), upper bound"),
    )
    for column, row in _by_task("kang_table4_larger_budgets", tasks):
        for i, (name, words) in enumerate(lines):
            usd = _number(row[f"{name}_usd"])
            cell = _printed(row[name], "" if usd is None else f"(${usd:,.0f})")
            items.append(PlacedCell(Heading((i,), words), column, cell))
    return _paper_table("Table 4: 100K unlabelled rows, dollars on top of the first labels", ("Model",), items, tasks)


def cost_table(tasks: Sequence[str]) -> Table | None:
    """Lay out Table 6 for some tasks; None where none is in it."""
    columns = (
        ("usd_initial_5k_labels", "Initial 5K labels", ""),
        ("usd_1k_labels", "+1K labels", "Annotate"),
        ("usd_teacher_finetune_5k", "Teacher, 5K labels", "Distill"),
        ("usd_distill_100k", "Distillation, 100K rows", "Distill"),
    )
    items = [
        PlacedCell(task, Heading((i,), text, over), TableCell(float(row[name]), unit="usd"))
        for task, row in _by_task("kang_table6_costs", tasks)
        for i, (name, text, over) in enumerate(columns)
    ]
    return _paper_table("Table 6: one A40 hour at $1.875", ("Task",), items, tasks)


def general_table(tasks: Sequence[str]) -> Table | None:
    """Lay out Table 10 for some tasks; None where none is in it."""
    columns = [key for key in _general() if key[0] in tasks and key[3] == "annotate"]
    items = [
        PlacedCell(
            Heading((i,), row["model"].replace("->", "⇒")),
            Heading((tasks.index(task), usd), f"{dollars(usd)} (N={thousands(n)})", task),
            _printed(row[f"{task}_{usd:.0f}"]),
        )
        for i, row in enumerate(_rows("kang_table10_general_distillation"))
        for task, n, usd, _ in columns
    ]
    return _paper_table("Table 10: the same budgets for each model", ("Model",), items, tasks)


def _by_task(name: str, tasks: Sequence[str]) -> Iterator[tuple[Heading, dict[str, str]]]:
    """Yield the rows of some tasks of a published table, each with the heading of its task."""
    return ((task_heading(row["task"], tasks), row) for row in _rows(name) if row["task"] in tasks)


def _row_head(strategy: str, words: str) -> Heading:
    return Heading((strategy_rank(strategy),), f"{words} ({STRATEGY_NAMES[strategy]})")


def _printed(value: str, bracket: str = "") -> TableCell:
    return TableCell(_number(value), bracket=bracket, words="N/A")


def _paper_table(name: str, stub: tuple[str, ...], items: Sequence[PlacedCell], tasks: Iterable[str]) -> Table | None:
    if not items:
        return None
    table = pivot(f"In the paper, {name}", stub, items, tasks=tuple(tasks))
    return replace(
        table, notes=(f"Kang et al. 2023, as printed; T5-XXL and T5-Small. {_APART}", *table.notes), is_published=True
    )
