"""Runs of one results folder: which are finished, how one is finished or cancelled. `outlay.study.scheduler` drives them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from outlay.engine.point import Point
from outlay.engine.prepare import RunBuilder
from outlay.engine.results_dir import ResultsDir
from outlay.engine.run import RunExecution
from outlay.engine.run_dir import RunDir
from outlay.engine.sellers import ONE_LOOK, People, Place
from outlay.errors import LedgerDamaged, UsageError
from outlay.hardware.precision import AUTO, OTHER, bf16_speed, precision_name
from outlay.labels.purchases import PurchaseLog
from outlay.money.amounts import PURCHASE_UNITS, Price
from outlay.money.ledger import Anchor, Ledger
from outlay.plan.request import Request
from outlay.storage.files import write_json
from outlay.storage.paths import command_line
from outlay.storage.store import Store


class Runner:
    """Runs whose ledger and results lie in one folder, with artifacts in a store that folders may share.

    ``here``: price per hour of the machine that really computes, for cash. ``people``: how answers of people are waited for.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        *,
        here: Price,
        cash_cap_micros: int | None = None,
        checkpoint_seconds: float = 20.0,
        people: People = ONE_LOOK,
    ) -> None:
        self.folder = folder
        self.store = store
        self.ledger = Ledger(folder / "ledger.sqlite", cash_cap_micros=cash_cap_micros)
        self.here = here
        place = Place(store.root / "asked", store.root / "orders", people)
        self.results = ResultsDir(
            folder, self.ledger, PurchaseLog(store.root / "bought"), store, here, checkpoint_seconds, place
        )

    def run_folder(self, run_id: str) -> RunDir:
        """Return the folder of one run."""
        return self.results.files(run_id)

    def all_finished(self, run_ids: Sequence[str]) -> dict[str, Point]:
        """Return the points of the finished runs by run id, after verifying the ledger.

        Raises:
            LedgerDamaged: the ledger no longer holds all entries of these runs.
        """
        points, anchors = {}, []
        for run_id in run_ids:
            manifest = self.run_folder(run_id).manifest
            if manifest.exists():
                document = json.loads(manifest.read_text(encoding="utf-8"))
                anchors.append(Anchor(document["anchor"]["head"], document["anchor"]["count"]))
                points[run_id] = Point.from_json(document["point"], str(manifest))
        if anchors and not (check := self.ledger.verify(anchors)).ok:
            again = command_line("outlay", "ledger", "verify", self.folder)
            raise LedgerDamaged(f"{self.ledger.path}: {check.reason}; see `{again}`")
        return points

    def finish(self, execution: RunExecution, point: Point) -> None:
        """Write the manifest of a run, which makes the run finished."""
        write_json(self.run_folder(execution.run_id).manifest, execution.manifest(point))

    def refuse_other_precision(self, builder: RunBuilder, asked: Sequence[Request]) -> None:
        """Refuse runs that this folder holds in the other precision than this machine would choose.

        Raises:
            UsageError: a run without an explicit precision is in this folder in the other precision alone.
        """
        known = set(self.ledger.run_ids()) if self.ledger.is_begun else set()
        for each in asked if known else ():
            if each.precision == AUTO:
                request = builder.resolve(each)
                there = other_precision(builder, each)
                if there.run_id in known and request.run_id not in known:
                    before, now = precision_name(there.precision), precision_name(request.precision)
                    raise UsageError(
                        f"{self.folder} holds this run in {before}, and this machine would compute in {now} "
                        f"({bf16_speed().reason()}); go on with --precision {there.precision}, or buy again with "
                        f"--precision {request.precision}"
                    )

    def cancel(self, run_id: str) -> None:
        """Cancel a run: release its open holds, and book the cash of labels delivered and compute done."""
        with self.run_folder(run_id).alone():
            for hold in self.ledger.open_holds(run_id):
                if hold.quote.unit in PURCHASE_UNITS:
                    self.results.end_purchase(hold, "cancelled")
                else:
                    self.results.give_back(hold, "cancelled")
            self.ledger.cancel(run_id)


def other_precision(builder: RunBuilder, asked: Request) -> Request:
    """Return the resolved form of a request in the precision that this machine would not choose for it."""
    request = builder.resolve(asked)
    return replace(request, precision=OTHER[request.precision])
