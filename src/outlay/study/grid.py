"""Studies: a YAML grid of runs. A file holds one or more scales; at one scale it expands into cells, each the request of a run.

The shipped files follow the tables and figures of Kang et al. 2023; `docs/studies.md` describes every key, and the JSON Schema
``studies/study.schema.json`` checks them in an editor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, PrivateAttr

from outlay.errors import StudyFileError, UnknownStrategy, UnknownStudy, UnknownTask, UsageError
from outlay.hardware.precision import check_asked
from outlay.models.reference import parse_ref, place_of
from outlay.money.amounts import Price, format_usd, write_usd
from outlay.plan.request import DEFAULT_GENERAL, DEFAULT_STUDENT, DEFAULT_TEACHER, Request, SellerSpec
from outlay.plan.steps import LLM
from outlay.plan.strategies import Strategy, strategy
from outlay.report.results import Layout
from outlay.settings import AUTO_METHOD
from outlay.storage.paths import as_word, expand
from outlay.study.schema import OTHERS, Scale, Strategies, TaskAxes, merged, method_settings, union_of, values_of
from outlay.tasks.overrides import Role
from outlay.tasks.seller_blocks import LLM_NAME
from outlay.tasks.task import Task, load_task
from outlay.tasks.yaml_file import Name, NonEmpty, YamlBlock, read_yaml
from outlay.text.legible import did_you_mean, repeats


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the grid: the request of its run, and the reason where it is known beforehand not to be available."""

    request: Request
    absent: str | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """A study file at one scale on its tasks. ``cells``: each distinct request once, seed by seed, in grid order."""

    name: str
    title: str
    layout: Layout
    source: str | None
    scale: str
    tasks: tuple[str, ...]
    """Names or paths of the tasks, as `outlay.tasks.task.load_task` takes them."""
    names: tuple[str, ...]
    """Distinct names of these tasks."""
    threads: int
    notes: tuple[str, ...]
    cells: tuple[Cell, ...]
    rivals: bool = True
    """True where the rivals of the cells are run too."""


class StudyFile(YamlBlock):
    """A study file: strategies, layout of the report, and scales."""

    name: Name
    """Short name of at most 100 characters: letters, digits, ``_``, ``.`` and ``-``, the last two not first."""
    title: str = ""
    """Title of the study, one line."""
    source: NonEmpty | None = None
    """Published table or figure that the study follows."""
    layout: Layout = "plain"
    """Layout of the report; ``plain`` suits any grid."""
    strategies: Strategies
    """Strategies to compare."""
    method: Literal["auto", "full"] = "auto"
    """Training method where neither ``methods`` nor ``settings`` name one: ``auto``, or ``full`` fine-tuning as published."""
    student_training: Literal["charged", "free"] = "charged"
    """``charged``: the training of a student on labels is charged; ``free``: it is not, as in the published tables."""
    rivals: bool = True
    """Run cheap models on the labels that the points buy, beside them: the majority class, TF-IDF + regression, a probe."""
    notes: tuple[NonEmpty, ...] = ()
    """Notes of the report."""
    scales: dict[Name, Scale] = Field(min_length=1)
    """Scales of the study, by name."""
    _folder: Path | None = PrivateAttr(default=None)

    def at(
        self,
        scale: str,
        tasks: Sequence[str] = (),
        *,
        n_seeds: int | None = None,
        precision: str | None = None,
        price: Callable[[str], Price],
    ) -> Study:
        """Return the study at one scale, on the given tasks, else on those of the file.

        Args:
            scale: one of `scales`.
            tasks: shipped names, or paths of task files.
            n_seeds: number of seeds in place of the scale's.
            precision: precision in place of the scale's; ``auto``, ``bf16`` or ``fp32``.
            price: returns the price of one label of an item of the price book, such as `PriceBook.label`.

        Raises:
            UnknownStudy: there is no such scale.
            UnknownTask: there is no such task, or the file has no axes for it.
            UnknownStrategy: there is no such strategy.
            UnknownItem: a label without a price; `MoneyError`: one that is not sold by the label.
            StudyFileError: an impossible grid: a budget below the price of its labels, an axis that is missing, two tasks of
                one name.
        """
        chosen = self._scale(scale)
        if precision is not None:
            check_asked(precision)
            chosen = chosen.model_copy(update={"precision": precision})
        if n_seeds is not None and n_seeds < 1:
            raise UsageError(f"--seeds is {n_seeds}; study at least 1")
        named, where = self._tasks(scale, chosen, tasks), f"{self.name}, scale {scale}"
        loaded = [load_task(name) for name, _ in named]
        _refuse_equal_names([name for name, _ in named], [task.name for task in loaded], where)
        grids = [_Grid(self, where, chosen, *each, task) for each, task in zip(named, loaded, strict=True)]
        cells: dict[tuple[Any, ...], Cell] = {}
        by_task = [tuple(grid.points(price)) for grid in grids]
        for seed in range(chosen.first_seed, chosen.first_seed + (n_seeds or chosen.n_seeds)):
            for grid, points in zip(grids, by_task, strict=True):
                for point in points:
                    cell = Cell(replace(point, seed=seed), grid.axes.absent)
                    cells.setdefault(_identity(cell.request), cell)
        if not cells:
            raise StudyFileError(f"study {where}: no point is left; a teacher needs `added_usd` above 0")
        return Study(
            name=self.name,
            title=self.title or self.name,
            layout=self.layout,
            source=self.source,
            scale=scale,
            tasks=tuple(grid.task for grid in grids),
            names=tuple(task.name for task in loaded),
            threads=chosen.threads,
            notes=(*self.notes, *chosen.notes),
            cells=tuple(cells.values()),
            rivals=self.rivals,
        )

    def _scale(self, name: str) -> Scale:
        if name not in self.scales:
            raise UnknownStudy(
                f"study {self.name} has no scale {name!r}{did_you_mean(name, self.scales)}; it has {', '.join(self.scales)}"
            )
        return self.scales[name]

    def _tasks(self, scale: str, chosen: Scale, asked: Sequence[str]) -> list[tuple[str, TaskAxes]]:
        """Return the name or path of each task with its axes."""
        own = {key: self._located(key) for key in chosen.tasks}
        asked = asked or tuple(own.values())
        if not asked:
            raise UsageError(f"study {self.name} names no task at scale {scale}; name one with --task")
        found: list[tuple[str, TaskAxes]] = []
        for task in asked:
            key = next((key for key, place in own.items() if task == key or _same_place(task, place)), None)
            name = task if key is None else own[key]
            axes = chosen.any_task if key is None else chosen.tasks[key]
            if axes is None and not own:
                axes = TaskAxes()
            if axes is None:
                raise UnknownTask(
                    f"study {self.name} says nothing about task {task} at scale {scale}; it has {', '.join(own)}; "
                    "add it under `tasks`, or `any_task` for whatever is not listed"
                )
            if any(name == before or _same_place(name, before) for before, _ in found):
                raise UsageError(f"task {task} is named twice; name each task once")
            found.append((name, merged(chosen, axes)))
        return found

    def _located(self, key: str) -> str:
        """Return a task's name unchanged, or its path resolved against the folder of the study file."""
        return key if not _is_path(key) or self._folder is None else as_word(self._folder / expand(key))


@dataclass(frozen=True, slots=True)
class _Grid:
    """The grid of one task at one scale. ``study``: the place as errors name it; ``task``: name or path of ``loaded``."""

    file: StudyFile
    study: str
    scale: Scale
    task: str
    axes: TaskAxes
    loaded: Task

    @property
    def where(self) -> str:
        """The place of the grid as errors name it."""
        return f"{self.study}, task {self.task}"

    def points(self, price: Callable[[str], Price]) -> Iterator[Request]:
        """Yield the request of each point under seed 0, by N, then by budget, then by strategy."""
        label_price = price(self.loaded.price_item)
        axes = self.axes
        strategies = axes.strategies or self.file.strategies
        policies = {name: self._policy(name, price) for name in strategies}
        self._refuse_strange_strategies(strategies)
        spent, amounts = self._amounts()
        n_axis: Mapping[str, Sequence[int | None]] = axes.n_initial or {OTHERS: (None,)}
        for n in union_of(n_axis):
            for amount in union_of(amounts):
                for name, policy in policies.items():
                    if n not in self._given("n_initial", n_axis, name) or amount not in self._given(
                        spent, amounts, name
                    ):
                        continue
                    initial = 0 if n is None else label_price.cost_micros(n)
                    budget = initial + amount if spent == "added_usd" else amount
                    if budget < initial:
                        raise StudyFileError(
                            f"{self.where}: `budget_usd` {format_usd(budget)} does not pay for {n:,} labels at "
                            f"${write_usd(label_price.usd)} ({format_usd(initial)}); raise it, lower `n_initial`, or use "
                            "`added_usd`"
                        )
                    # A teacher without dollars to pay for it: the tables have no such cell.
                    if policy.taught_by is None or n is None or budget > initial:
                        yield from self._models(name, policy, n, budget)

    def _models(self, name: str, policy: Strategy, n: int | None, budget: int) -> Iterator[Request]:
        """Yield the points over models and pools that make a difference to the strategy; others are not varied."""
        axes, models = self.axes, self.axes.models
        teachers = values_of(models.teacher or {}, name) or (DEFAULT_TEACHER,)
        students = values_of(models.student or {}, name) or (DEFAULT_STUDENT,)
        pools = values_of(axes.pool_rows or {}, name) or (None,)
        methods = values_of(axes.methods or {}, name) or (self.file.method,)
        for teacher, student, pool, method in product(
            teachers if policy.taught_by == "teacher" else (self._origin,),
            students[:1] if policy.starts_general else students,
            (None,) if policy.taught_by is None else pools,
            methods,
        ):
            student = student_of(student, teacher)
            needs_base = any(parse_ref(ref).needs_base for ref in (teacher, student))
            yield Request(
                task=self.task,
                strategy=name,
                budget_micros=budget,
                n_initial=n,
                teacher=teacher,
                student=student,
                machine=self.scale.machine,
                student_training=self.file.student_training,
                pool_rows=pool,
                threads=self.scale.threads,
                overrides=self._settings(method),
                dev=axes.dev,
                n_dev=axes.n_dev,
                test_rows=axes.test_rows,
                base=self._origin if needs_base and self._origin != teacher else None,
                metric_model=models.metric_model,
                general=models.general or DEFAULT_GENERAL,
                sellers=(SellerSpec(), *(axes.llm.specs(self.loaded.sellers) if LLM in policy.sellers else ())),
                precision=self.scale.precision,
            )

    def _settings(self, method: str) -> dict[str, dict[str, Any]]:
        """Return the settings by role, with a method for the roles that name none."""
        named = {} if method == AUTO_METHOD else method_settings(method)
        given = dict(self.axes.settings or {})
        return given | {role: {**named, **given.get(role, {})} for role in get_args(Role) if named or role in given}

    @property
    def _origin(self) -> str:
        """The whole checkpoint that ``cut:`` and ``tiny:`` models are made from."""
        models = self.axes.models
        teachers = union_of(models.teacher or {OTHERS: (DEFAULT_TEACHER,)})
        whole = next((teacher for teacher in teachers if not parse_ref(teacher).needs_base), None)
        if models.base is None and whole is None:
            raise StudyFileError(f"{self.where}: {teachers[0]} is made from a checkpoint; name it as `models.base`")
        return models.base or whole or DEFAULT_TEACHER

    def _amounts(self) -> tuple[str, Mapping[str, Sequence[int]]]:
        """Return the name of the axis of dollars, and the axis in micro-dollars."""
        axes = self.axes
        if axes.budget_usd is not None:
            return "budget_usd", _micros(axes.budget_usd)
        if axes.added_usd is None:
            raise StudyFileError(f"{self.where}: no dollars to spend; give `added_usd` or `budget_usd`")
        if axes.n_initial is None:
            raise StudyFileError(
                f"{self.where}: `added_usd` comes on top of the first labels; give `n_initial`, or `budget_usd` instead"
            )
        return "added_usd", _micros(axes.added_usd)

    def _given(self, axis_name: str, axis: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
        values = values_of(axis, name)
        if not values:
            raise StudyFileError(f"{self.where}: `{axis_name}` gives nothing for {name}; name it there, or `{OTHERS}`")
        return values

    def _policy(self, name: str, price: Callable[[str], Price]) -> Strategy:
        try:
            policy = strategy(name)
        except UnknownStrategy as error:
            raise UnknownStrategy(f"{self.where}: {error}") from None
        llm = self.axes.llm
        if LLM in policy.sellers:
            try:
                known = llm.specs(self.loaded.sellers)
            except UsageError as error:
                raise StudyFileError(f"{self.where}: {error}") from None
            if not known and LLM_NAME not in self.loaded.sellers:
                raise StudyFileError(
                    f"{self.where}: {name} buys labels of an LLM, and none is named; give `llm: {{model: NAME}}`, or "
                    "`llm: {error_rate: 0.3}` to replay one, which is wrong as often as you assume"
                )
            if llm.error_rate is not None and llm.price_item is not None:
                price(llm.price_item)
        return policy

    def _refuse_strange_strategies(self, strategies: Sequence[str]) -> None:
        """Refuse an axis that names a strategy which is not compared."""
        axes: Mapping[str, Mapping[str, Sequence[Any]] | None] = {
            **{name: getattr(self.axes, name) for name in ("n_initial", "added_usd", "budget_usd", "pool_rows")},
            **{f"models.{name}": getattr(self.axes.models, name) for name in ("teacher", "student")},
        }
        for name, axis in axes.items():
            strange = next((key for key in axis or {} if key not in (*strategies, OTHERS)), None)
            if strange is not None:
                raise StudyFileError(
                    f"{self.where}: `{name}` names {strange!r}, which is not among its strategies: {', '.join(strategies)}"
                )


SAME_AS_TEACHER = "teacher"
"""In place of a student: the teacher's own checkpoint."""


def student_of(student: str, teacher: str) -> str:
    """Return a student's reference, the teacher's for the word ``teacher``."""
    return teacher if student == SAME_AS_TEACHER else student


def shipped_studies() -> list[str]:
    """Return the names of the studies that come with the package."""
    return sorted(path.stem for path in _shipped().glob("*.yaml"))


def find_study(name_or_path: str) -> Path:
    """Return the path of a study file, given by path or by the name of a shipped study.

    Raises:
        UnknownStudy: there is no such file and no such name.
    """
    path = Path(expand(name_or_path))
    if path.is_file():
        return path
    shipped = _shipped() / f"{path.stem if path.parts[:-1] == ('studies',) else name_or_path}.yaml"
    if shipped.is_file() and shipped.parent == _shipped():
        return shipped
    hint = did_you_mean(path.stem, shipped_studies())
    raise UnknownStudy(
        f"no study {name_or_path!r}{hint}; shipped are {', '.join(shipped_studies())}, or give the path of a YAML file"
    )


def load_study(path: Path) -> StudyFile:
    """Read a study file.

    Raises:
        StudyFileError: the file is no YAML, or does not fit the schema; one line.
    """
    if not path.is_file():
        raise UnknownStudy(f"no study file {path}; give an existing YAML file or one of {', '.join(shipped_studies())}")
    study = read_yaml(path, StudyFile, StudyFileError, "the study", "docs/studies.md")
    study._folder = path.parent
    return study


def study_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study file (draft 2020-12); ``studies/study.schema.json`` is a copy of it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **StudyFile.model_json_schema()}


@cache
def _shipped() -> Path:
    """Return the folder of the shipped studies: inside the installed package, or at the top of the source tree."""
    package = Path(__file__).parents[1]
    inside = package / "studies"
    return inside if inside.is_dir() else package.parent.parent / "studies"


def _identity(request: Request) -> tuple[Any, ...]:
    """Return a key that is equal for equal requests."""
    values = [getattr(request, name) for name in request.__slots__ if name != "overrides"]
    overrides = [(role, tuple(sorted(pairs.items()))) for role, pairs in request.overrides.items() if pairs]
    return *values, tuple(sorted(overrides))


def _micros(axis: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """Return amounts as plain integers, as in a request; those of the file print as dollars."""
    return {name: tuple(map(int, amounts)) for name, amounts in axis.items()}


def _refuse_equal_names(places: Sequence[str], names: Sequence[str], where: str) -> None:
    """Refuse tasks whose names are equal or differ in case only: tables, files and figures are named by them."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        j = first.setdefault(name.casefold(), i)
        if i != j:
            both = (
                f"both called {name}"
                if names[j] == name
                else f"called {names[j]} and {name}, which differ in case only"
            )
            raise StudyFileError(
                f"study {where}: the tasks {places[j]} and {places[i]} are {both}; change the `name:` of one"
            )


def _is_path(task: str) -> bool:
    return Path(task).suffix.lower() in (".yaml", ".yml") or len(Path(task).parts) > 1


def _same_place(one: str, other: str) -> bool:
    return _is_path(one) and _is_path(other) and Path(expand(one)).resolve() == Path(expand(other)).resolve()


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid of runs from a command line or a call; ``base``: the request whose other fields all points share.

    ``teachers`` and ``students``: sizes to compare (Kang et al. 2023, Figures 4 and 5); empty = the one of ``base``. Under every
    teacher, ``cut:`` and ``tiny:`` students are made from one checkpoint: the base's, else the first teacher; ``teacher`` as a
    student is each teacher's own checkpoint.
    """

    base: Request
    strategies: tuple[str, ...]
    budgets_micros: tuple[int, ...]
    seeds: tuple[int, ...]
    teachers: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    with_rule: bool = True
    """True to run `distill` under its own rule for N too, beside a fixed N."""

    def __post_init__(self) -> None:
        for name, values in (
            ("strategies", self.strategies),
            ("budgets", tuple(map(format_usd, self.budgets_micros))),
            ("seeds", tuple(map(str, self.seeds))),
            ("teachers", tuple(map(place_of, self.teachers))),
            ("students", tuple(map(place_of, self.students))),
        ):
            if not values and name not in ("teachers", "students"):
                raise UsageError(f"no {name} to compare; name at least one")
            if twice := repeats(values):
                raise UsageError(f"{twice[0]} is named twice among the {name}; name each once")

    def requests(self) -> list[Request]:
        """Return the request of each point once, seed by seed, so that a first table comes early."""
        points: list[Request] = []
        for seed in self.seeds:
            for budget in self.budgets_micros:
                for name in self.strategies:
                    for teacher, student in self._models(name):
                        asked = replace(
                            self.base,
                            strategy=name,
                            budget_micros=budget,
                            seed=seed,
                            teacher=teacher,
                            student=student,
                            base=None if teacher == self._origin else self._origin,
                        )
                        points.append(asked)
                        if name == "distill" and asked.n_initial is not None and self.with_rule:
                            points.append(replace(asked, n_initial=None))
        return points

    @property
    def _origin(self) -> str:
        """The checkpoint that ``cut:`` and ``tiny:`` students are made from."""
        return self.base.base or (self.teachers or (self.base.teacher,))[0]

    def _models(self, name: str) -> list[tuple[str, str]]:
        """Return the pairs of teacher and student for a strategy; a model that makes no difference to it is not varied."""
        policy = strategy(name)
        teachers = self.teachers or (self.base.teacher,)
        students = self.students or (self.base.student,)
        students = students[:1] if policy.starts_general else students
        pairs = [(teacher, student_of(student, teacher)) for teacher, student in product(teachers, students)]
        if policy.taught_by == "teacher":
            return pairs
        # The teacher makes a difference where it is the student.
        return [pair for i, pair in enumerate(pairs) if pair[1] not in [student for _, student in pairs[:i]]]
