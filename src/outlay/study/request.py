"""Requests of runs from a Python call: models, options, and the setup of files, prices and limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from outlay.engine.sellers import People
from outlay.errors import UsageError
from outlay.export.model_dir import MODEL_DIR, check_place
from outlay.money.amounts import PriceBook, parse_budget, plain_usd
from outlay.plan.request import (
    DEFAULT_GENERAL,
    DEFAULT_MACHINE,
    DEFAULT_STUDENT,
    DEFAULT_TEACHER,
    Request,
    SellerSpec,
)
from outlay.plan.strategies import check_chosen
from outlay.report.results import Bounds, Header
from outlay.settings import DEFAULT_THREADS
from outlay.storage.paths import expand_path
from outlay.storage.remote import open_named
from outlay.study.grid import SAME_AS_TEACHER, Grid, student_of
from outlay.study.index import title_of
from outlay.study.prepare import refuse_several_processes
from outlay.study.runner import Session, Workplace, prepare_session
from outlay.tasks.task import load_task

AnyPath = str | Path
Dollars = str | int | float | Decimal
"""An amount such as ``300``, ``"0.35"`` or ``Decimal("1000.50")``; at most 6 decimals."""


def plain_price(usd: Dollars | None) -> str | None:
    """Return a price as plain dollars, "0.20" for "$0.2", and ``None`` as it is. Raises MoneyError."""
    return None if usd is None else plain_usd(usd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models of a run, each as a hub name, a folder, ``package:NAME/FOLDER``, ``cut:K`` or ``tiny:LxH``.

    Attributes:
        teacher: trained on labels; several in `compare`.
        student: the model to obtain; several in `compare`. ``teacher`` = the teacher's own checkpoint.
        base: checkpoint that ``cut:`` and ``tiny:`` models are made from; ``None`` = the teacher.
        general: the generally distilled checkpoint that ``general_distill`` starts from.
        metric_model: encoder that ``bert_ibleu`` compares texts with; ``None`` = as the task says.
    """

    teacher: AnyPath | Sequence[AnyPath] = DEFAULT_TEACHER
    student: AnyPath | Sequence[AnyPath] = DEFAULT_STUDENT
    base: AnyPath | None = None
    general: AnyPath = DEFAULT_GENERAL
    metric_model: AnyPath | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Further options of a run, each part of the request and thus of the run's id but for ``with_rule`` and ``rivals``.

    Attributes:
        settings: training settings by role (``teacher``, ``student``, ``distil``, ``teach``).
        pool_rows: unlabelled rows to use at most; ``None`` = the whole pool.
        dev: ``given``, ``bought``, ``carved``, ``folds`` or ``none``; ``None`` = as the task says.
        n_dev: dev labels; ``None`` = as the task says.
        sellers: sellers of labels by name, each with its options; ``llm_annotate`` and ``mix`` need one that is called ``llm``.
        machine: machine at whose price compute is charged.
        student_training: ``charged``, or ``free`` as in the published tables.
        precision: ``auto``, ``bf16`` or ``fp32``.
        threads: number of threads of each step.
        with_rule: beside a fixed N, `compare` also runs ``distill`` with the N that its rule chooses.
        rivals: run cheap models on the same labels too, as points of their own: the majority class, TF-IDF + regression, a probe.
    """

    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    pool_rows: int | None = None
    dev: str | None = None
    n_dev: int | None = None
    sellers: Sequence[SellerSpec] = (SellerSpec(),)
    machine: str = DEFAULT_MACHINE
    student_training: str = "charged"
    precision: str = "auto"
    threads: int = DEFAULT_THREADS
    with_rule: bool = True
    rivals: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Files, prices and limits that runs are made with.

    Attributes:
        data: folder of data sets; ``None`` = ``OUTLAY_DATA``.
        store: folder or URL of kept artifacts; ``None`` = ``OUTLAY_STORE``, else the user's cache.
        prices: price files (TOML) on top of the shipped one.
        machines: machine files (TOML) on top of the shipped one.
        this_machine: price item of the machine that computes; its measured seconds are paid in cash.
        cash_cap: dollars of cash that all runs of a folder may take together.
        workers: steps at once; 1 = in this process.
        wait: seconds between two looks at labels on order, until all are there; ``None`` = one look, and the run is ``waiting``.
        take: close orders on people with the answers that are there.
        overwrite: replace the report of other runs in the folder; their ledger and files stay.
        max_student_mb: size of a model at most, in MB of float32 weights, that the summary may say to take.
        max_ms: milliseconds a row at most, likewise.
    """

    data: AnyPath | None = None
    store: AnyPath | None = None
    prices: Sequence[AnyPath] = ()
    machines: Sequence[AnyPath] = ()
    this_machine: str = DEFAULT_MACHINE
    cash_cap: Dollars | None = None
    workers: int = 1
    wait: float | None = None
    take: bool = False
    overwrite: bool = False
    max_student_mb: float | None = None
    max_ms: float | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"workers is {self.workers}; it must be at least 1")
        if self.wait is not None and not 0 < self.wait < math.inf:
            raise UsageError(f"the seconds between two looks at labels on order are {self.wait:g}; give more than 0")
        for name in ("max_student_mb", "max_ms"):
            if (most := getattr(self, name)) is not None and not 0 < most < math.inf:
                raise UsageError(f"{name} is {most}; it must be above 0")

    @property
    def bounds(self) -> Bounds:
        """Limits on the models that the summary may say to take."""
        return Bounds(self.max_student_mb, self.max_ms)


def request(
    task: AnyPath,
    budget: Dollars,
    strategy: str,
    n_initial: int | None,
    seed: int,
    models: Models,
    options: RunOptions,
) -> Request:
    """Return the request of one run; see `outlay.api.run`.

    Raises:
        UsageError: several teachers or students, an unknown precision, or a rival for a strategy.
        MoneyError: a budget that cannot be read, or is zero.
    """
    check_chosen([strategy])
    return Request(
        task=str(task),
        strategy=strategy,
        budget_micros=parse_budget(budget),
        n_initial=n_initial,
        seed=seed,
        teacher=_only(models.teacher, "teachers"),
        student=student_of(_only(models.student, "students"), _only(models.teacher, "teachers")),
        machine=options.machine,
        student_training=options.student_training,
        pool_rows=options.pool_rows,
        dev=options.dev,
        n_dev=options.n_dev,
        threads=options.threads,
        sellers=tuple(options.sellers),
        overrides=options.settings,
        base=_text(models.base),
        metric_model=_text(models.metric_model),
        general=str(models.general),
        precision=options.precision,
    )


def requests(
    task: AnyPath,
    budgets: Dollars | Sequence[Dollars],
    strategies: str | Sequence[str],
    n_initial: int | None,
    seeds: int | Sequence[int],
    models: Models,
    options: RunOptions,
) -> list[Request]:
    """Return the request of each run of a comparison, seed by seed; see `outlay.api.compare`.

    Raises:
        UsageError: an axis without values, or a value that is named twice.
        MoneyError: a budget that cannot be read, or is zero.
    """
    check_chosen((strategies,) if isinstance(strategies, str) else strategies)
    amounts = [budgets] if isinstance(budgets, str | int | float | Decimal) else list(budgets)
    names = (strategies,) if isinstance(strategies, str) else tuple(strategies)
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    teachers, students = _several(models.teacher), _several(models.student)
    for axis, values in {"budgets": amounts, "strategies": names, "teachers": teachers, "students": students}.items():
        if not values:
            raise UsageError(f"no {axis} to compare; name at least one")
    first = replace(models, teacher=teachers[0], student=student_of(students[0], teachers[0]))
    shared = request(task, amounts[0], names[0], n_initial, 0, first, options)
    return Grid(
        shared,
        names,
        tuple(map(parse_budget, amounts)),
        tuple(chosen),
        teachers if len(teachers) > 1 else (),
        students if len(students) > 1 or SAME_AS_TEACHER in students else (),
        options.with_rule,
    ).requests()


def workplace(out: AnyPath, setup: Setup) -> Workplace:
    """Open the store and prices of a results folder; nothing is written.

    Raises:
        UsageError: a price file that cannot be used, or a machine without an hourly price.
        MoneyError: a cash cap that cannot be read.
        StoreError: a store that cannot be used.
    """
    book = PriceBook.load([expand_path(path) for path in setup.prices])
    return Workplace(
        folder=expand_path(out),
        store=open_named(setup.store),
        prices=book,
        here=book.hour(setup.this_machine),
        data_root=None if setup.data is None else expand_path(setup.data),
        machines=tuple(expand_path(path) for path in setup.machines),
        cash_cap_micros=None if setup.cash_cap is None else parse_budget(setup.cash_cap),
        n_workers=setup.workers,
        people=People(setup.wait, setup.take),
        bounds=setup.bounds,
    )


def prepare_runs(
    asked: Sequence[Request],
    name: str,
    out: AnyPath,
    setup: Setup,
    command: str | None = None,
    *,
    rivals: bool = True,
) -> Session:
    """Check and plan runs of one task, under a header with their name and command; see `prepare_session` for errors."""
    refuse_several_processes()
    title = title_of(load_task(asked[0].task).name)
    header = Header(name, title, "plain", command=command, bounds=setup.bounds)
    check_place(expand_path(out) / MODEL_DIR)
    return prepare_session(asked, header, workplace(out, setup), rivals=rivals, overwrite=setup.overwrite)


def _several(named: AnyPath | Sequence[AnyPath]) -> tuple[str, ...]:
    return (str(named),) if isinstance(named, str | Path) else tuple(map(str, named))


def _only(named: AnyPath | Sequence[AnyPath], what: str) -> str:
    found = _several(named)
    if len(found) != 1:
        raise UsageError(
            f"a run has one of each model, and {len(found)} {what} are named; compare several by `compare`"
        )
    return found[0]


def _text(named: AnyPath | None) -> str | None:
    return None if named is None else str(named)
