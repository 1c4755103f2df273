"""Planning a study of 10,000 points: seconds in all, beside planning a sample of them one by one with nothing shared.

    python bench/plan_study.py                                             # 10 N x 10 budgets x 4 strategies x 25 seeds
    python bench/plan_study.py --seeds 5 --sample 10 --json FILE

A made-up task (two classes, 20 blocks of pool rows) and a tiny encoder made on the spot; no training, no label, no ledger. The
reference of the sample is a `RunBuilder` of its own for each point, which reads, orders and counts everything again; its seconds
are per point, without the imports that the first one pays for.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from decimal import Decimal
from itertools import product
from pathlib import Path

from outlay.engine.prepare import RunBuilder
from outlay.models.random_init import Corpus, build_checkpoint
from outlay.models.sizes import Size
from outlay.money.amounts import Price, PriceBook
from outlay.plan.request import Request
from outlay.settings import BLOCK_ROWS
from outlay.study.dry_run import StudyPlan, plan

LABEL_MICROS = 200_000
"""Of the price that the task names: $0.20."""
HOUR_USD = Decimal(15_000)
"""Of the machine: so dear that added budgets of 10 to 100 labels pay for 1 to 20 blocks with so small a model."""
STRATEGIES = ("annotate", "distill", "self_distill", "general_distill")
N_TRAIN, N_DEV, N_TEST, N_BLOCKS = 2000, 200, 1000, 20
FILLERS = (
    "the",
    "a",
    "of",
    "film",
    "story",
    "actor",
    "scene",
    "music",
    "plot",
    "camera",
    "light",
    "with",
    "from",
    "under",
)
MARKERS = (("awful", "dull", "broken"), ("lovely", "bright", "clever"))
SIZE = Size("tiny", "bert", 4, 32, 64, 2, vocab_size=300, head_size=16, n_positions=64)
TASK = """\
name: made_up
text: "{message}"
labels: ["0", "1"]
metric: accuracy
price_item: label/demo
max_source_tokens: 32
dev: given
data:
  train: {file: train.jsonl, target: label}
  dev: {file: dev.jsonl, target: label}
  test: {file: test.jsonl, target: label}
pool:
  - {name: texts, file: pool.jsonl}
"""


def make_task(folder: Path, n_pool: int) -> tuple[Path, Path]:
    """A task file with its data, and a checkpoint; returns both paths."""
    rng = random.Random(0)
    texts: dict[str, int] = {}
    while len(texts) < N_TRAIN + N_DEV + N_TEST + n_pool:
        label = rng.randrange(2)
        words = [*rng.choices(FILLERS, k=rng.randint(5, 15)), rng.choice(MARKERS[label])]
        texts[" ".join(rng.sample(words, len(words)))] = label
    rows = [{"message": text, "label": str(label)} for text, label in texts.items()]
    start = 0
    for name, n in (("train", N_TRAIN), ("dev", N_DEV), ("test", N_TEST), ("pool", n_pool)):
        lines = (json.dumps(row) + "\n" for row in rows[start : start + n])
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        start += n
    (folder / "task.yaml").write_text(TASK, encoding="utf-8")
    build_checkpoint(SIZE, Corpus(list(texts)[:N_TRAIN]), folder / "model", seed=0)
    return folder / "task.yaml", folder / "model"


def grid(task: Path, model: Path, n_seeds: int) -> list[Request]:
    """10 N x 10 added budgets x 4 strategies x seeds, seed by seed; N and budgets as published tables have them, and between."""
    base = Request(
        task=str(task),
        strategy="distill",
        budget_micros=1,
        teacher=str(model),
        student="cut:2",
        base=str(model),
        general=str(model),
        threads=1,
        student_training="free",
    )
    return [
        replace(base, seed=seed, n_initial=n, strategy=name, budget_micros=n * LABEL_MICROS + added)
        for seed, n, added, name in product(
            range(n_seeds), range(50, 550, 50), range(2_000_000, 22_000_000, 2_000_000), STRATEGIES
        )
    ]


def price_book() -> PriceBook:
    """The shipped prices, but for the machine's hour."""
    return PriceBook([*PriceBook.load().items(), Price("cpu", "hour", HOUR_USD, "bench/plan_study.py", None)])


def planned_at_once(points: list[Request]) -> tuple[StudyPlan, float]:
    """The plan of all points with one workbench, and the seconds it took, loading and counting included."""
    began = time.perf_counter()
    made = plan(RunBuilder(price_book()), points)
    return made, time.perf_counter() - began


def planned_alone(points: list[Request]) -> tuple[list[StudyPlan], list[float]]:
    """The plans of single points, a workbench each, and the seconds of each."""
    made, seconds = [], []
    for point in points:
        began = time.perf_counter()
        made.append(plan(RunBuilder(price_book()), [point]))
        seconds.append(time.perf_counter() - began)
    return made, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=25, help="400 points each")
    parser.add_argument("--sample", type=int, default=20, help="points that are planned one by one as well")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for the plan; exit code 1 above it")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task, model = make_task(Path(folder), N_BLOCKS * BLOCK_ROWS)
        points = grid(task, model, args.seeds)
        planned_alone(points[:1])  # imports
        made, seconds = planned_at_once(points)
        chosen = random.Random(0).sample(range(len(points)), args.sample)
        alone, each = planned_alone([points[i] for i in chosen])
    if [one.points[0] for one in alone] != [made.points[i] for i in chosen]:
        print("planned alone, a point is not what it is in the study")
        return 1
    per_point, reference = seconds / len(points), statistics.median(each)
    figures = {
        "points": made.n_points,
        "na": made.n_na,
        "steps_distinct": sum(made.distinct.n_steps.values()),
        "steps_separate": sum(made.separate.n_steps.values()),
        "optimizer_steps_saved": made.saved,
        "seconds": seconds,
        "seconds_per_point": per_point,
        "seconds_per_point_alone": reference,
        "ratio": reference / per_point,
    }
    print(f"{made.n_points:,} points ({made.n_na:,} N/A), {figures['steps_distinct']:,} distinct steps")
    print(
        f"of {figures['steps_separate']:,} in separate runs; {100 * made.saved:.1f} % of the optimiser steps are saved"
    )
    print(f"{'planned':<28} {'seconds':>10} {'per point':>12}")
    print(f"{'all at once':<28} {seconds:>10.2f} {1e3 * per_point:>9.2f} ms")
    print(f"{f'one by one ({len(each)} of them)':<28} {sum(each):>10.2f} {1e3 * reference:>9.2f} ms")
    print(f"ratio {reference / per_point:,.0f}; {seconds:.1f} s of {args.limit:.0f} s allowed")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(seconds > args.limit)


if __name__ == "__main__":
    sys.exit(main())
