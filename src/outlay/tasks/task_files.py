"""The files of a new task: task.yaml, its rows as JSON lines, and the price of a label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from outlay.errors import UsageError
from outlay.storage.files import write_text
from outlay.storage.hashing import digest_of_file
from outlay.tasks.new_task import NewTask, Row

TASK_FILE, PRICES_FILE = "task.yaml", "prices.toml"
OWNED_ITEM = "label/owned"
"""Price item of labels one owns, `outlay.money.amounts.OWNED_LABEL`."""


def write_task(new: NewTask, folder: Path, *, usd_per_label: str | None = None, labeller: str = "people") -> list[Path]:
    """Write a task into a folder that is new or empty, and return its files; ``usd_per_label``: of labels to be bought.

    Raises:
        UsageError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not empty; choose another folder with --out")
    parts = {"train": new.train, "dev": new.dev, "test": new.test, "pool": new.pool}
    written = {name: _write_rows(folder / f"{name}.jsonl", new, rows) for name, rows in parts.items() if rows}
    item = OWNED_ITEM if usd_per_label is None else f"label/{new.name}"
    task = folder / TASK_FILE
    write_text(task, _yaml(new, written, item))
    if usd_per_label is None:
        return [task, *written.values()]
    prices = folder / PRICES_FILE
    write_text(prices, _prices(item, usd_per_label, labeller))
    return [task, prices, *written.values()]


def _write_rows(path: Path, new: NewTask, rows: Sequence[Row]) -> Path:
    lines = []
    for row in rows:
        line = dict(zip(new.columns, row.texts, strict=True)) | ({_label_column(new): row.label} if row.label else {})
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
    return path


def _label_column(new: NewTask) -> str:
    return "gold_label" if "label" in new.columns else "label"


def _yaml(new: NewTask, written: dict[str, Path], item: str) -> str:
    """Return the task file; values are JSON, which YAML reads as they are."""

    def value(content: object) -> str:
        return json.dumps(content, ensure_ascii=False)

    def source(name: str, more: str = "") -> str:
        path = written[name]
        n_rows = path.read_text(encoding="utf-8").count("\n")
        return f"{{file: {path.name}{fields}{more}, rows: {n_rows}, sha256: {digest_of_file(path)}}}"

    # Columns keep the names they have in the user's files, so that new files are read as these.
    renamed = {name: column for name, column in zip(new.fields, new.columns, strict=True) if name != column}
    fields, target = f", fields: {value(renamed)}" if renamed else "", f", target: {_label_column(new)}"

    template = (
        f"{{{new.fields[0]}}}" if len(new.fields) == 1 else " ".join(f"{name}: {{{name}}}" for name in new.fields)
    )
    lines = [
        f"# Written by `outlay init` from {', '.join(map(value, new.columns))}; docs/tasks.md describes every key.",
        f"name: {value(new.name)}",
        f"kind: {new.kind}",
        f"text: {value(template)}",
        *([f"segments: {value(list(new.fields))}"] if new.kind == "classification" else []),
        *([f"labels: {value(list(new.labels))}"] if new.labels else []),
        f"price_item: {value(item)}",
        f"max_source_tokens: {new.max_source_tokens}",
        f"dev: {'given' if new.dev else 'carved'}",
        "data:",
        "  # Your own labels: they cost nothing, and come before those that are bought.",
        f"  train: {source('train', target + ', owned: true')}",
        *([f"  dev: {source('dev', target)}"] if new.dev else []),
        f"  test: {source('test', target)}",
        "pool:",
        "  - {name: train, split: train}",
        *([f"  - {{name: unlabelled, {source('pool')[1:]}"] if new.pool else []),
    ]
    return "\n".join(lines) + "\n"


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
