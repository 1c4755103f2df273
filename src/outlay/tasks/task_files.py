"""The files of a new task: task.yaml, its rows as JSON lines, and the price of a label."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from outlay.errors import UsageError
from outlay.storage.files import write_text
from outlay.storage.hashing import digest_of_file
from outlay.storage.paths import command_line
from outlay.tasks.loading import load_data
from outlay.tasks.new_task import NewTask, Row
from outlay.tasks.seller_blocks import PEOPLE
from outlay.tasks.statistics import TaskStatistics, profile
from outlay.tasks.task import load_task

TASK_FILE, PRICES_FILE = "task.yaml", "prices.toml"
OWNED_ITEM = "label/owned"
"""Price item of labels one owns, `outlay.money.amounts.OWNED_LABEL`."""


@dataclass(frozen=True)
class InitResult:
    """A task that `init` wrote.

    Attributes:
        task: the ``task.yaml``.
        prices: the file with the price of a label; ``None`` without a price.
        files: all files, these two among them.
        decided: guesses, defaults and rows left out, a sentence each.
        n_folds: folds of ``dev: folds``, 0 for another dev.
        strategies: strategies that can buy the labels of a task without; empty where rows have labels.
        budget: dollars that a first comparison is to spend.
    """

    task: Path
    prices: Path | None
    files: tuple[Path, ...]
    decided: tuple[str, ...]
    n_folds: int
    strategies: tuple[str, ...] = ()
    budget: int = 10

    @cached_property
    def statistics(self) -> TaskStatistics:
        """Statistics of the task, from its files."""
        task = load_task(self.task)
        return profile(task, load_data(task))

    @property
    def next_command(self) -> str:
        """The command that compares models on the task, with as many seeds as folds; where labels are to be bought, it plans."""
        prices = () if self.prices is None else ("--prices", self.prices)
        seeds = ("--seeds", self.n_folds) if self.n_folds else ()
        out = self.task.parent / "results"
        own = ("--strategies", ",".join(self.strategies)) if self.strategies else ()
        plans = ("--dry-run",) if self.strategies else ()
        words = ("--budgets", self.budget, *own, *seeds, *prices, "--out", out, *plans)
        return command_line("outlay", "compare", self.task, *words)


def write_task(
    new: NewTask, folder: Path, *, usd_per_label: str | None = None, labeller: str | None = None
) -> InitResult:
    """Write a task into a folder that is new or empty.

    Args:
        new: the task.
        folder: of its files.
        usd_per_label: dollars of a label to be bought, as a plain number; ``None`` = none can be bought.
        labeller: who labels; ``None`` = people.

    Raises:
        UsageError: the folder holds something.
    """
    check_new_folder(folder)
    parts = {"train": new.train, "dev": new.dev, "test": new.test, "pool": new.pool}
    written = {name: _write_rows(folder / f"{name}.jsonl", new, name, rows) for name, rows in parts.items() if rows}
    if new.to_label is not None and PEOPLE not in new.to_label.sellers:
        usd_per_label = None
    item = OWNED_ITEM if usd_per_label is None else f"label/{new.name}"
    task, prices = folder / TASK_FILE, None if usd_per_label is None else folder / PRICES_FILE
    write_text(task, _yaml(new, written, item))
    decided = list(new.decided)
    if prices is None or usd_per_label is None:
        decided += (
            []
            if new.to_label is not None
            else ["no price of a label: the budget buys compute for the labels that there are; --label-price names one"]
        )
    else:
        write_text(prices, _prices(item, usd_per_label, labeller or PEOPLE))
        decided += [f"labels are by {PEOPLE}; --labeller says it otherwise"] if labeller is None else []
    files = (task, *([] if prices is None else [prices]), *written.values())
    if new.to_label is None:
        return InitResult(task, prices, files, tuple(decided), new.n_folds)
    budget = new.to_label.first_budget(len(new.dev) + len(new.test))
    return InitResult(task, prices, files, tuple(decided), 0, new.to_label.strategies, budget)


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        UsageError: with the way out.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not empty; choose another folder with --out")


def _write_rows(path: Path, new: NewTask, name: str, rows: Sequence[Row]) -> Path:
    """Write the rows of a split; those that are shared out into folds have their group."""
    lines = []
    for row in rows:
        line = dict(zip(new.columns, row.texts, strict=True)) | ({_label_column(new): row.label} if row.label else {})
        line |= {_group_column(new): row.group} if row.group and new.n_folds and name == "train" else {}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
    return path


def _group_column(new: NewTask) -> str:
    return "fold_group" if "group" in (*new.columns, _label_column(new)) else "group"


def _label_column(new: NewTask) -> str:
    return "gold_label" if "label" in new.columns else "label"


def _yaml(new: NewTask, written: dict[str, Path], item: str) -> str:
    """Return the task file; values are JSON, which YAML reads as they are."""
    value = _value
    bought = new.to_label
    is_grouped = new.n_folds > 0 and any(row.group for row in new.train)
    group = f", group: {_group_column(new)}" if is_grouped else ""

    def source(name: str, more: str = "") -> str:
        path = written[name]
        n_rows = path.read_text(encoding="utf-8").count("\n")
        return f"{{file: {path.name}{fields}{more}, rows: {n_rows}, sha256: {digest_of_file(path)}}}"

    # Columns keep the names they have in the user's files, so that new files are read as these.
    renamed = {name: column for name, column in zip(new.fields, new.columns, strict=True) if name != column}
    fields = f", fields: {value(renamed)}" if renamed else ""
    target = "" if bought is not None else f", target: {_label_column(new)}"
    owned = "" if bought is not None else ", owned: true"

    template = (
        f"{{{new.fields[0]}}}" if len(new.fields) == 1 else " ".join(f"{name}: {{{name}}}" for name in new.fields)
    )
    lines = [
        f"# Written by `outlay init` from {', '.join(map(value, new.columns))}; docs/tasks.md describes every key.",
        f"name: {value(new.name)}",
        f"kind: {new.kind}",
        *([f"instruction: {value(bought.told(new.kind))}"] if bought is not None else []),
        f"text: {value(template)}",
        *([f"segments: {value(list(new.fields))}"] if new.kind == "classification" else []),
        *([f"labels: {value(list(new.labels))}"] if new.labels else []),
        *(_descriptions(bought.descriptions) if bought is not None else []),
        f"price_item: {value(item)}",
        f"max_source_tokens: {new.max_source_tokens}",
        *(_dev_lines(new) if bought is None else _seller_lines(bought.keys(new.kind, has_dev=bool(new.dev)))),
        "data:",
        *(["  # Your own labels: they cost nothing, and come before those that are bought."] if bought is None else []),
        f"  train: {source('train', target + owned + group)}",
        *([f"  dev: {source('dev', target)}"] if new.dev else []),
        f"  test: {source('test', target)}",
        "pool:",
        "  - {name: train, split: train}",
        *([f"  - {{name: unlabelled, {source('pool')[1:]}"] if new.pool else []),
    ]
    return "\n".join(lines) + "\n"


def _value(content: object) -> str:
    return json.dumps(content, ensure_ascii=False)


def _dev_lines(new: NewTask) -> list[str]:
    """Return the lines on the dev labels of a task whose rows have labels."""
    how = "given" if new.dev else "folds" if new.n_folds else "carved"
    return [f"dev: {how}", *([f"folds: {new.n_folds}"] if new.n_folds else [])]


def _descriptions(words: Mapping[str, str]) -> list[str]:
    told = [f"  {_value(label)}: {_value(said)}" for label, said in words.items()]
    return ["# What annotators are told of each label.", "descriptions:", *told] if told else []


def _seller_lines(keys: Mapping[str, Any]) -> list[str]:
    """Return the lines on whom labels are bought of, from the keys of `ToLabel.keys`."""
    given = {name: keys[name] for name in ("dev", "test", "eval_seller") if name in keys}
    sellers = [f"  {name}: {_value(block)}" for name, block in keys["sellers"].items()]
    return [
        "# Test rows, and dev rows where there are any, are labelled too; nothing is ever trained on them.",
        *(f"{name}: {how}" for name, how in given.items()),
        "sellers:",
        *sellers,
    ]


def _prices(item: str, usd: str, labeller: str) -> str:
    return f"""\
# What one label costs you; the option --prices of a run reads it.
[[price]]
item = {json.dumps(item)}
unit = "label"
usd = {json.dumps(usd)}
source = {json.dumps(labeller)}
checked = {date.today().isoformat()}
"""
