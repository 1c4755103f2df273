"""Results of runs as values: scores with their intervals, charge and cash, the receipt, the trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from outlay.engine.outputs import manifest_of, receipt_file
from outlay.engine.point import Point, Reading, micros_of
from outlay.errors import MissingData, RunFailed
from outlay.export.model_dir import MODEL_DIR, handed_over
from outlay.metrics import STATISTICS, main_score
from outlay.money.amounts import MICROS_PER_USD
from outlay.report.study_report import StudyReport, write_study_report
from outlay.storage.store import Store
from outlay.study.dry_run import StudyPlan
from outlay.study.handover import lines_on_model
from outlay.study.runner import read_results


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of one run.

    Attributes:
        folder: the results folder, with the ledger and the receipts.
        run_id: id of the run in the ledger; ``None`` for a point that cannot be filled.
        point: request, result and circumstances of the run.
        store: the artifacts, among them the trained models.
        known: file that the point was taken from, which is then all there is of its run; ``None`` for a run of this folder.
        rivals: results of the cheap models on the same labels, of `outlay.run`; `outlay.compare` has them among its runs.
    """

    folder: Path
    run_id: str | None
    point: Point = field(repr=False)
    store: Store = field(repr=False)
    known: str | None = None
    rivals: tuple[RunResult, ...] = field(default=(), repr=False)

    @property
    def status(self) -> str:
        """Status of the run: ``ok``; ``na`` where the request cannot be filled; ``waiting`` for labels; ``failed``."""
        return self.point.result.status

    @property
    def reason(self) -> str | None:
        """Reason why there is no score, one line; ``None`` with a score."""
        return self.point.result.reason

    @property
    def is_ok(self) -> bool:
        """True where the run has a score."""
        return self.point.is_ok

    @property
    def is_rival(self) -> bool:
        """True for a cheap model on labels that other runs have bought."""
        return self.point.request.is_rival

    def raise_for_status(self) -> RunResult:
        """Return this result, or raise an error where it has no score.

        Raises:
            RunFailed: the run failed, or its request cannot be filled; the message is `reason`.
        """
        if not self.is_ok:
            raise RunFailed(self.reason or self.status)
        return self

    @property
    def score(self) -> Reading | None:
        """The main test score, 0-100, with the 95 % interval of this model on these test rows; ``None`` without a score."""
        if not self.is_ok:
            return None
        # Metrics may share a statistic, but no two have the same set.
        found = {name.split("/")[0] for name in self.scores}
        metric = next(name for name, statistics in STATISTICS.items() if set(statistics) == found)
        return self.scores[main_score(metric)]

    @property
    def scores(self) -> Mapping[str, Reading]:
        """Every statistic of the test split in both readings, by name, such as ``accuracy/published``."""
        return self.point.result.scores

    @property
    def charge(self) -> Decimal:
        """Dollars charged, by the prices of the request: never more than the budget."""
        return _dollars(self.point.result.charge_usd)

    @property
    def cash(self) -> Decimal:
        """Dollars that left the bank when it was run: labels bought, and measured seconds of the machine."""
        return _dollars(self.point.circumstance.cash_usd or 0.0)

    @property
    def receipt(self) -> str:
        """Text of the receipt: every dollar in the order it was spent; empty where no run was opened here."""
        path = None if self.run_id is None else receipt_file(self.folder, self.run_id)
        return path.read_text(encoding="utf-8") if path is not None and path.exists() else ""

    @property
    def model_path(self) -> Path:
        """The folder of the model that the run handed over, with its card: ``OUT/model``, which nothing removes.

        Raises:
            MissingData: the run handed none over, such as a run of a comparison that handed over another one's.
        """
        folder = self.folder / MODEL_DIR
        if self.run_id is None or (handed_over(folder) or {}).get("run") != self.run_id:
            raise MissingData(f"run {self.run_id} handed over no model in {folder}; `model` is the one in the store")
        return folder

    @property
    def model(self) -> Path:
        """The folder of the trained student in the store, as `outlay.predict` reads it.

        ``outlay store gc`` may remove it there: `model_path` is the one to keep.

        Raises:
            MissingData: the run has no model, or it was removed from the store.
        """
        manifest = None if self.run_id is None else manifest_of(self.folder, self.run_id)
        keys = [each["key"] for each in manifest["artifacts"] if each["role"] == "student"] if manifest else []
        if not keys and self.is_ok and self.known is not None:
            raise MissingData(f"the model of run {self.run_id} is not here: the run is known from {self.known} alone")
        if not keys:
            raise MissingData(f"the run has no model, since it is {self.status}: {self.reason}")
        artifact = self.store.get(keys[-1])
        if artifact is None:
            raise MissingData(
                f"the model of run {self.run_id} is no longer in {self.store.location}; the same request in another folder "
                "makes it anew"
            )
        return artifact.path


@dataclass(frozen=True, slots=True)
class DryRun:
    """What runs would take, before they start: of those alone that are not in the results folder yet.

    Attributes:
        plan: every run with its recipe, and the distinct steps of all.
    """

    plan: StudyPlan = field(repr=False)

    @property
    def n_runs(self) -> int:
        """Number of runs, rivals included."""
        return self.plan.n_points

    @property
    def n_finished(self) -> int:
        """Number of runs that are in the folder already."""
        return self.plan.n_finished

    @property
    def n_labels(self) -> int:
        """Number of labels to buy, each once."""
        return self.plan.labels.n_bought

    @property
    def n_optimizer_steps(self) -> int:
        """Number of batches to train at most, of each distinct step once; those of the store are done."""
        return self.plan.left.n_optimizer_steps

    @property
    def seconds(self) -> float | None:
        """Forecast of the wall seconds of the steps, one after the other; ``None`` before `outlay machine calibrate`."""
        return self.plan.left.seconds_here

    @property
    def charge_at_most(self) -> Decimal:
        """Upper bound of the dollars charged."""
        return Decimal(self.plan.charge_micros) / MICROS_PER_USD

    @property
    def cash(self) -> Decimal | None:
        """Forecast of the dollars of cash that compute takes here; ``None`` without one of the seconds."""
        return None if self.plan.cash_micros is None else Decimal(self.plan.cash_micros) / MICROS_PER_USD

    @property
    def cash_limit(self) -> Decimal:
        """Dollars of cash at which the runs are stopped: their budgets together, or ``cash_cap``."""
        return Decimal(self.plan.cash_limit_micros) / MICROS_PER_USD

    def to_json(self) -> dict[str, Any]:
        """Return totals and every run as JSON values, as `outlay compare --dry-run --json` prints them."""
        return self.plan.to_json()


@dataclass(frozen=True, slots=True)
class StudyResult:
    """The results of a grid of runs, in the order of the grid.

    Attributes:
        folder: the results folder.
        runs: one result for each point, those of rivals last.
        store: the artifacts, among them the trained models.
    """

    folder: Path
    runs: tuple[RunResult, ...] = field(repr=False)
    store: Store = field(repr=False)

    @property
    def table(self) -> str:
        """The tables of the report as Markdown: scores with intervals, the frontier, paired differences.

        Raises:
            MissingData: no run has a point yet.
        """
        return StudyReport(read_results(self.folder, self.store)).markdown()

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines on the model to take at the largest budget, task by task, and on rows that are not worth more than a rival.

        Raises:
            MissingData: no run has a point yet.
        """
        return StudyReport(read_results(self.folder, self.store)).summary

    @property
    def model_path(self) -> Path:
        """The folder of the model that the comparison handed over, with its card: ``OUT/model``.

        That is the first seed of the row with the best mean dev score at the largest budget.

        Raises:
            MissingData: none was handed over: it is a study, or no row has a dev score.
        """
        folder = self.folder / MODEL_DIR
        if handed_over(folder) is None:
            raise MissingData(f"no model was handed over in {folder}; the `model` of a run is the one in the store")
        return folder

    def write_report(self) -> dict[str, Path]:
        """Write tables, figures, one page and flat files into the results folder.

        Returns:
            The files by kind: ``table``, ``page``, ``points``, ``receipts`` and the figures.
        """
        return write_study_report(self.folder, read_results(self.folder, self.store), lines_on_model(self.folder))

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[RunResult]:
        return iter(self.runs)

    def raise_for_status(self) -> StudyResult:
        """Return these results, or raise an error where a run failed or none has a score.

        Raises:
            RunFailed: a run failed, or no run has a score; the message names the first.
        """
        failed = [run for run in self.runs if run.status == "failed"]
        if failed:
            raise RunFailed(f"{len(failed)} of {len(self.runs)} runs failed, the first: {failed[0].reason}")
        if not any(run.is_ok for run in self.runs):
            raise RunFailed(f"none of the {len(self.runs)} runs has a score, the first: {self.runs[0].reason}")
        return self


def _dollars(usd: float) -> Decimal:
    return Decimal(micros_of(usd)) / MICROS_PER_USD
