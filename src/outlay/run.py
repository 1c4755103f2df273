"""Executes a recipe's graph of steps: hold, act, settle. The only code that spends (DESIGN decisions 1 and 2).

Every step is held at its quote before it starts, made (or found in the store), and settled at what it really cost: the charge by
the deterministic clock, the cash by the wall clock and only for what was made this time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from outlay.circumstance import environment
from outlay.errors import BudgetExceeded, LedgerDamaged, OutlayError
from outlay.gauge import StepGauge, lost_seconds
from outlay.labels.base import Order
from outlay.labels.book import LabelBook, Receipt
from outlay.ledger import Anchor, Balance, Hold, Ledger
from outlay.metrics import main_score
from outlay.money import Price, Quote, cost_micros
from outlay.point import Point, PointCircumstance, PointRequest, PointResult, Reading, usd_of
from outlay.prepare import Prepared, added_micros
from outlay.quoting import Quoter, Work
from outlay.recipe import Buy, Distil, Recipe, Step, Train
from outlay.runfolder import RunFolder, Timing, write_json
from outlay.speed import PROFILE_FILE, load_profile
from outlay.store import Artifact, Store, digest_of, key_of
from outlay.strategy import NotAvailable, Outcome, describe, strategy
from outlay.timing import Forecaster
from outlay.watcher import Silent, Watcher
from outlay.workshop import LABELS_FILE, SCORES_FILE, Bench, Made, Workshop, cut_lines, label_lines

DELIVERY_ROWS = 100
"""Labels per order: what a crash between delivery and booking can at most ask for again (under the same order id)."""


_CUT_SHORT = " (cut short by its hold): "


class Runner:
    """Executes runs whose ledger and results lie in one folder, with artifacts in a store that folders may share.

    ``here``: price per hour of the machine that really computes, which cash is measured with.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        *,
        here: Price,
        cash_cap_micros: int | None = None,
        watcher: Watcher | None = None,
        checkpoint_seconds: float = 20.0,
    ) -> None:
        self.folder = folder
        self.store = store
        self.ledger = Ledger(folder / "ledger.sqlite", cash_cap_micros=cash_cap_micros)
        self._book = LabelBook(store.root / "bought")
        self.here = here
        self._watcher: Watcher = watcher or Silent()
        self._checkpoint_seconds = checkpoint_seconds

    def run_folder(self, run_id: str) -> RunFolder:
        """Where one run keeps its files."""
        return RunFolder.of(self.folder, run_id)

    def finished(self, run_id: str) -> Point | None:
        """The point of a run that is done, after checking that the ledger still holds all that the run booked.

        Raises:
            LedgerDamaged: it does not.
        """
        manifest = self.run_folder(run_id).manifest
        if not manifest.exists():
            return None
        document = json.loads(manifest.read_text(encoding="utf-8"))
        anchor = Anchor(document["anchor"]["head"], document["anchor"]["count"])
        check = self.ledger.verify([anchor])
        if not check.ok:
            raise LedgerDamaged(f"{self.ledger.path}: {check.reason}; see `outlay ledger verify {self.folder}`")
        return Point.from_json(document["point"], str(manifest))

    def execute(self, prepared: Prepared) -> Point:
        """Run to the end, from wherever an earlier attempt was cut off; a run that is done is replayed and books nothing.

        Raises:
            SpendError: another process executes this run, or the ledger is damaged.
        """
        run_id = prepared.request.run_id
        if (done := self.finished(run_id)) is not None:
            return done
        files = self.run_folder(run_id)
        with files.alone():
            self.ledger.open_run(run_id, prepared.request.budget_micros, note=prepared.request.task)
            execution = _Execution(self, prepared, files)
            execution.recover()
            try:
                point, recipes = execution.all_recipes()
            except OutlayError as error:
                return execution.point("failed", str(error), [])
            files.path.mkdir(parents=True, exist_ok=True)
            write_json(files.manifest, execution.manifest(point, recipes))
            return point

    def cancel(self, run_id: str) -> None:
        """End a run for good: open holds are released, and what was already delivered or computed is booked to cash."""
        files = self.run_folder(run_id)
        with files.alone():
            for hold in self.ledger.open_holds(run_id):
                lost, note = self.spent_under(hold, files)
                self.ledger.release(hold, lost_cash_micros=lost, note=f"cancelled; {note}" if note else "cancelled")
            self.ledger.cancel(run_id)

    def payer(self, run_id: str) -> str:
        """Who pays: this run in this ledger. The same request in another folder is another payer."""
        return f"{self.ledger.entries()[0].hash[:16]}:{run_id}"

    def spent_under(self, hold: Hold, files: RunFolder) -> tuple[int, str]:
        """Cash that a dead attempt spent under a hold and that no artifact, checkpoint or book keeps; and a note on it."""
        seconds = lost_seconds(files.step(hold.key), self.kept_seconds(hold.key.split("/")[0], self.payer(hold.run_id)))
        if seconds <= 0:
            return 0, ""
        return self.here.cost_micros(Fraction(seconds) / 3600), f"{seconds:.1f} s of {self.here.item} to be redone"

    def kept_seconds(self, key: str, payer: str) -> float:
        """Seconds of ``payer``'s work on ``key`` that are not lost: in the artifact, else in the newest checkpoint."""
        from outlay.train.checkpoint import checkpoint_state, newest_checkpoint

        artifact = self.store.get(key, verify=False)
        if artifact is not None:
            return float(artifact.circumstance.get("seconds_by_payer", {}).get(payer, 0.0))
        newest = newest_checkpoint(self.store.root / "making" / key / "work" / "checkpoints")
        if newest is None:
            return 0.0
        return float(checkpoint_state(newest)["gauge"]["seconds_by_payer"].get(payer, 0.0))


class _Execution:
    """One run being executed."""

    def __init__(self, runner: Runner, prepared: Prepared, files: RunFolder) -> None:
        self._runner = runner
        self._prepared = prepared
        self._files = files
        self._run_id = prepared.request.run_id
        self._ledger = runner.ledger
        self._store = runner.store
        self._watcher = runner._watcher
        self._quoter = Quoter(prepared.known)
        self._workshop = Workshop(prepared, self._artifact_of)
        profile = load_profile(runner.store.root.parent / PROFILE_FILE)
        self._forecaster = Forecaster(self._quoter, profile, self._workshop.answer_lengths)
        self._payer = runner.payer(self._run_id)
        self._artifacts: dict[str, Artifact] = {}
        self._steps: list[Step] = []
        self._started = time.monotonic()

    def _artifact_of(self, step: Step) -> Artifact:
        return self._artifacts[step.key]

    def recover(self) -> None:
        """Close the holds of an attempt that died, and book what it computed in vain as lost."""
        for hold in self._ledger.open_holds(self._run_id):
            lost, note = self._runner.spent_under(hold, self._files)
            self._ledger.release(hold, lost_cash_micros=lost, note=note or "the process that held it ended")
            if lost:
                self._watcher.say(f"an earlier attempt was cut off: {note}")

    def all_recipes(self) -> tuple[Point, list[Recipe]]:
        """Ask the strategy until it wants nothing more, doing what it asks."""
        policy = strategy(self._prepared.request.strategy)
        outcomes: list[Outcome] = []
        while True:
            proposal = policy.ask(self._prepared.known, outcomes)
            if isinstance(proposal, NotAvailable):
                return self.point("na", proposal.reason, []), [o.recipe for o in outcomes]
            if proposal is None:
                recipes = [outcome.recipe for outcome in outcomes]
                return self.point("ok", None, recipes), recipes
            for line in proposal.derivation:
                self._watcher.say(line)
            for step in proposal.steps():
                self._ensure(step)
            final = self._artifacts[proposal.final.model.key]
            balance = self._ledger.balance(self._run_id)
            outcomes.append(Outcome(proposal, final.usage.get("dev"), balance.charged_micros))

    # --- one step ----------------------------------------------------------------------------------------------------

    def _ensure(self, step: Step) -> None:
        """Have the artifact of ``step`` in the store, paid for."""
        paid = self._ledger.settled(self._run_id, step.key)
        if paid is not None:
            artifact = self._store.get(_artifact_key_in(paid.note) or self._storage_key(step))
            if artifact is not None:
                self._remember(step, artifact)
                return
        artifact = (
            self._buy(step, again=paid is not None) if isinstance(step, Buy) else self._compute(step, paid is not None)
        )
        self._remember(step, artifact)

    def _remember(self, step: Step, artifact: Artifact) -> None:
        self._artifacts[step.key] = artifact
        self._steps.append(step)

    def _hold_key(self, step: Step, again: bool) -> str:
        """A key paid before is made again under a name of its own, at no charge: its artifact was removed from the store."""
        if not again:
            return step.key
        n = sum(
            entry.kind == "settle" and entry.key.startswith(step.key) for entry in self._ledger.entries(self._run_id)
        )
        return f"{step.key}/again-{n}"

    def _buy(self, step: Buy, again: bool) -> Artifact:
        """Buy what the book of this series does not hold yet, delivery by delivery."""
        rows = (self._prepared.train if step.split == "train" else self._prepared.dev)[step.start : step.stop]
        seller = self._prepared.seller_of(step)
        quote = self._quoter.quote(step)
        with self._runner._book.open(step.series) as purchases:
            missing = [row for row in rows if row.id not in purchases.labels]
            already = 0 if again else purchases.paid_by(self._payer)
            hold = self._hold(step, _with_cash(quote, already + seller.quote(len(missing)).cash_micros), again)
            with self._released_on_error(hold):
                for start in range(0, len(missing), DELIVERY_ROWS):
                    batch = missing[start : start + DELIVERY_ROWS]
                    order = Order.of(key_of([step.series, [row.id for row in batch]]), batch)
                    delivery = seller.deliver(order)
                    labels = tuple((row.id, label) for row, label in zip(batch, delivery.labels, strict=True))
                    purchases.add(Receipt(order.id, self._payer, delivery.cash_micros, delivery.human_seconds, labels))
                    self._watcher.progress(start + len(batch), len(missing), "labels")
                artifact = self._store.put(
                    step.key,
                    step.kind,
                    {LABELS_FILE: label_lines([(row.id, purchases.labels[row.id]) for row in rows])},
                    meta={"request": step.request(), "series": step.series, "what": describe(step)},
                    usage={"n_labels": step.n, "n_answers": int(quote.quantity)},
                    circumstance={"human_seconds": sum(r.human_seconds for r in purchases.receipts)},
                )
            cash_micros = 0 if again else purchases.paid_by(self._payer)
            self._settle(step, hold, artifact, quote.quantity, cash_micros, reused=not missing)
        return artifact

    def _compute(self, step: Step, again: bool) -> Artifact:
        """Find the artifact of a compute step, or make it under a gauge that stops at the hold."""
        quote = self._quoter.quote(step)
        here = self._runner.here
        with self._store.making(self._storage_key(step), on_wait=self._waiting) as workspace:
            artifact = workspace.found
            reused = artifact is not None
            room = self._ledger.cash_room_micros(self._run_id)
            if artifact is not None:
                room = 0 if again else here.cost_micros(self._my_hours(artifact))
            elif room == 0 and here.usd > 0:
                raise BudgetExceeded(f"no cash is left to {describe(step)}; top the run up: `outlay ledger topup`")
            hold = self._hold(step, _with_cash(quote, room), again)
            with self._released_on_error(hold):
                if artifact is None:
                    artifact = self._make(step, hold, workspace.path)
                    workspace.clear()
            quantity = self._quoter.hours(_work_of(step, artifact, self._quoter))
            cash_micros = 0 if again and reused else here.cost_micros(self._my_hours(artifact))
            self._settle(step, hold, artifact, quantity, cash_micros, reused)
        for line in cut_lines(step, artifact.usage):
            self._watcher.say(line)
        return artifact

    def _make(self, step: Step, hold: Hold, folder: Path) -> Artifact:
        foreseen = self._forecaster.forecast(step)
        gauge = StepGauge(
            self._quoter,
            step,
            hold.quote,
            here=self._runner.here,
            payer=self._payer,
            kept_seconds=self._runner.kept_seconds(self._storage_key(step), self._payer),
            heartbeat=self._files.step(hold.key),
        )

        def on_progress(progress: Any, n_steps: int) -> None:
            self._watcher.progress(progress.step, n_steps, f"epoch {progress.epoch + 1}")

        bench = Bench(folder, gauge, on_progress, self._runner._checkpoint_seconds)
        with gauge:
            made = self._workshop.make(step, bench)
            return self._store.put(
                self._artifact_key(step, made),
                step.kind,
                made.files,
                meta={"request": step.request(), "what": describe(step)},
                usage=made.usage,
                circumstance={
                    **environment(getattr(step, "threads", None)),
                    "predicted": {"seconds": round(foreseen.seconds, 6), "by": foreseen.by},
                    "seconds_by_payer": gauge.finish(),
                },
            )

    def _storage_key(self, step: Step) -> str:
        """The step's key, unless an input was cut short by a limit: what is made of that is not what the key promises."""
        actual = [self._artifacts[given.key].key for given in step.inputs]
        return (
            step.key if actual == [given.key for given in step.inputs] else key_of({"of": step.key, "inputs": actual})
        )

    def _artifact_key(self, step: Step, made: Made) -> str:
        """Where an artifact is kept; one that a limit cut short has a key of its own, so that no run takes it for the whole."""
        key = self._storage_key(step)
        if made.usage.get("stopped") != "limit":
            return key
        return key_of({"of": key, "n_tokens_trained": made.usage["n_tokens_trained"]})

    def _my_hours(self, artifact: Artifact) -> Fraction:
        """Measured hours that this run itself spent on an artifact; 0 for what others made."""
        return Fraction(artifact.circumstance.get("seconds_by_payer", {}).get(self._payer, 0.0)) / 3600

    def _hold(self, step: Step, quote: Quote, again: bool) -> Hold:
        if again:
            quote = Quote(quote.item, quote.unit, quote.quantity, quote.unit_usd * 0, 0, quote.cash_micros)
        key = self._hold_key(step, again)
        hold = self._ledger.hold(self._run_id, key, quote)
        self._watcher.begin(describe(step), quote, self._ledger.balance(self._run_id))
        return hold

    def _settle(
        self, step: Step, hold: Hold, artifact: Artifact, quantity: Fraction, cash_micros: int, reused: bool
    ) -> None:
        note = describe(step) + (" (reused)" if reused else "")
        if artifact.key != self._storage_key(step):
            note += f"{_CUT_SHORT}{artifact.key}"
        self._ledger.settle(
            hold,
            quantity=quantity,
            charge_micros=cost_micros(quantity, hold.quote.unit_usd),
            cash_micros=cash_micros,
            note=note,
        )
        if not isinstance(step, Buy):
            self._files.note(self._timing(hold.key, describe(step), artifact))
        self._files.step(hold.key).unlink(missing_ok=True)
        self._watcher.end(describe(step), reused, self._ledger.balance(self._run_id))

    def _timing(self, key: str, what: str, artifact: Artifact) -> Timing:
        measured = artifact.circumstance.get("seconds_by_payer", {}).get(self._payer)
        if measured is None:
            return Timing(key, what, None, None, None)
        seen = artifact.circumstance.get("predicted", {})
        return Timing(key, what, seen.get("seconds"), seen.get("by"), measured)

    @contextmanager
    def _released_on_error(self, hold: Hold) -> Iterator[None]:
        """Give the hold back when its step fails, the time spent in vain booked as lost."""
        try:
            yield
        except BaseException as error:
            lost, note = self._runner.spent_under(hold, self._files)
            self._ledger.release(hold, lost_cash_micros=lost, note=f"{type(error).__name__}; {note}".rstrip("; "))
            raise

    def _waiting(self, who: str) -> None:
        self._watcher.say(f"waiting: {who}")

    # --- the point ---------------------------------------------------------------------------------------------------

    def point(self, status: str, reason: str | None, recipes: Sequence[Recipe]) -> Point:
        """What this run came to."""
        request, balance = self._prepared.request, self._ledger.balance(self._run_id)
        added = added_micros(self._prepared)
        taught_by = strategy(request.strategy).taught_by
        asked = PointRequest(
            task=request.task,
            strategy=request.strategy,
            budget_usd=usd_of(request.budget_micros),
            added_usd=None if added is None else usd_of(added),
            n_initial=request.n_initial,
            seed=request.seed,
            teacher={"teacher": request.teacher, "student": request.student, None: None}[taught_by],
            student=request.student,
            machine=request.machine,
            clock="flops",
            price_book=request.price_book,
            pool=self._prepared.pool_parts,
            dev=request.dev,
        )
        circumstance = PointCircumstance(
            cash_usd=usd_of(balance.total_cash_micros),
            wall_seconds=round(time.monotonic() - self._started, 3),
            latency_ms=None,
            ledger_head=self._ledger.anchor().head,
            environment=environment(None),
        )
        return Point(asked, self._result(status, reason, recipes, balance), circumstance)

    def _result(self, status: str, reason: str | None, recipes: Sequence[Recipe], balance: Balance) -> PointResult:
        trains = [step for step in self._steps if isinstance(step, Train)]
        distils = [step for step in self._steps if isinstance(step, Distil)]
        work = [
            _work_of(step, self._artifacts[step.key], self._quoter) for step in self._steps if not isinstance(step, Buy)
        ]
        seconds = sum((self._quoter.seconds(w) for w in work), Fraction(0))
        scores: dict[str, Reading] = {}
        dev: float | None = None
        parameters: int | None = None
        if recipes:
            last = recipes[-1].final
            scores = self._scores(self._artifacts[last.key])
            student = self._artifacts[last.model.key]
            dev, parameters = student.usage["dev"], int(student.usage["n_parameters"])
        first_dev = next((step.dev for step in trains if step.dev is not None), None)
        return PointResult(
            status=status,
            reason=reason,
            test=scores[main_score(self._prepared.task.metric)].value if scores else None,
            dev=dev,
            scores=scores,
            charge_usd=usd_of(balance.total_charge_micros),
            n_labels=max((step.n_labels_of("human") for step in trains), default=0),
            n_llm_labels=max((step.n_labels_of("llm") for step in trains), default=0),
            llm_tokens_in=0,
            llm_tokens_out=0,
            n_pool=max((step.n_rows for step in distils), default=0),
            n_dev=0 if first_dev is None else first_dev.n,
            seconds={self._prepared.request.machine: float(seconds)} if work else {},
            flops=sum(sum(self._quoter.flops(w)) for w in work),
            student_parameters=parameters,
            artifacts=self._digests(),
        )

    @staticmethod
    def _scores(artifact: Artifact) -> dict[str, Reading]:
        document = json.loads((artifact.path / SCORES_FILE).read_text(encoding="utf-8"))
        return {name: Reading(**reading) for name, reading in document.items()}

    def _digests(self) -> dict[str, str]:
        """Digest by role; many of one role (the blocks of targets, labels of two splits) become the digest of their digests."""
        by_role: dict[str, list[str]] = {}
        for step in self._steps:
            by_role.setdefault(role_of(step), []).append(self._artifacts[step.key].digest)
        return {role: d[0] if len(d) == 1 else digest_of("".join(d).encode()) for role, d in by_role.items()}

    def manifest(self, point: Point, recipes: Sequence[Recipe]) -> dict[str, Any]:
        """What a finished run leaves behind: the request, the derivation, its artifacts, the point, and the ledger's anchor."""
        anchor = self._ledger.anchor()
        return {
            "run_id": self._run_id,
            "request": self._prepared.request.to_json(),
            "derivation": [line for recipe in recipes for line in recipe.derivation],
            "artifacts": [
                {"step": step.kind, "role": role_of(step), "what": describe(step), "key": self._artifacts[step.key].key}
                for step in self._steps
            ],
            "teacher_dev": next(
                (
                    self._artifacts[s.key].usage["dev"]
                    for s in self._steps
                    if isinstance(s, Train) and s.role == "teacher"
                ),
                None,
            ),
            "point": point.to_json(),
            "anchor": {"head": anchor.head, "count": anchor.count},
        }


def _artifact_key_in(note: str) -> str | None:
    """The key that a settlement's note names, where a limit cut the work short and it is kept under a key of its own."""
    return note.partition(_CUT_SHORT)[2] or None


def role_of(step: Step) -> str:
    """The name of a step's artifact in a point: labels, teacher, targets, student or scores."""
    if isinstance(step, Train):
        return step.role
    return {"buy": "labels", "teach": "targets", "distil": "student", "score": "scores"}[step.kind]


def _work_of(step: Step, artifact: Artifact, quoter: Quoter) -> Work:
    """What a step really did, from its artifact: at most its quote."""
    usage = artifact.usage
    return Work(quoter.work(step).ref, int(usage["n_tokens_trained"]), int(usage["n_tokens_inferred"]))


def _with_cash(quote: Quote, cash_micros: int) -> Quote:
    return Quote(quote.item, quote.unit, quote.quantity, quote.unit_usd, quote.charge_micros, cash_micros)
