"""One run being executed: what it needs next, what is held for it, what it has settled.

An execution never computes. It asks its strategy, buys labels, books what it finds in the store, and says which compute steps it
needs; whoever drives it (`outlay.engine.runner` one step after another, `outlay.study.scheduler` many runs at once) has
them made under the hold that `begin` opens, and comes back with `settle` or `release`. The only code that spends.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from outlay.engine.environment import environment
from outlay.engine.job_runner import Job, JobResult
from outlay.engine.listeners import Watcher
from outlay.engine.point import Point, PointCircumstance, usd_of
from outlay.engine.prepare import PreparedRun
from outlay.engine.results_dir import ResultsDir
from outlay.engine.run_dir import Timing
from outlay.engine.step_runner import cut_lines
from outlay.engine.summary import RunSummary, work_of
from outlay.errors import BudgetExceeded
from outlay.hardware.precision import AUTO, kept_bf16_speed
from outlay.labels.annotator import Order
from outlay.labels.purchases import PurchaseRecord, SellerLog, label_lines
from outlay.money.amounts import Quote, cost_micros
from outlay.money.ledger import Hold
from outlay.plan.quotes import Quoter
from outlay.plan.steps import LABELS_FILE, Buy, Recipe, Score, Step, describe, graph, learner_of, role_of
from outlay.plan.strategies import NotAvailable, StrategyOutcome, strategy
from outlay.storage.paths import command_line
from outlay.storage.store import Artifact, key_of

DELIVERY_ROWS = 100
"""Labels per order: what a crash between delivery and booking can at most ask for again (under the same order id)."""

_CUT_SHORT = " (cut short by its hold): "


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A compute step that can be made now. ``key``: what its artifact is stored under; ``again``: it was paid before."""

    step: Step
    key: str
    again: bool


@dataclass(frozen=True, slots=True)
class HeldStep:
    """A need that is held, and the job that makes it."""

    need: ReadyStep
    hold: Hold
    job: Job


class RunExecution:
    """One run, taken by one process at a time: with `open` and `close`, or for the length of a ``with``."""

    def __init__(self, till: ResultsDir, prepared: PreparedRun, watcher: Watcher) -> None:
        self.run_id = prepared.request.run_id
        self.prepared = prepared
        self._till = till
        self._files = till.files(self.run_id)
        self._ledger = till.ledger
        self._store = till.store
        self._watcher = watcher
        self._quoter = Quoter(prepared.known)
        self._policy = strategy(prepared.request.strategy)
        self._outcomes: list[StrategyOutcome] = []
        self._proposal: Recipe | None = None
        self._artifacts: dict[str, Artifact] = {}
        self._begun: dict[str, HeldStep] = {}
        self._timings: list[Timing] = []
        self._started = time.monotonic()
        self._open = ExitStack()

    def open(self) -> Self:
        """Take the run: nobody else may execute it until `close`. What an attempt that died left behind is recovered.

        Raises:
            SpendError: another process executes it.
        """
        self._open.enter_context(self._files.alone())
        try:
            request = self.prepared.request
            self._ledger.open_run(self.run_id, request.budget_micros, note=request.task)
            self._files.note_precision(_precision_facts(self.prepared))
            self._payer = self._till.payer(self.run_id)
            self._recover()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Let the run go."""
        self._open.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recover(self) -> None:
        """Close the holds of an attempt that died, and book what it computed in vain as lost."""
        for hold in self._ledger.open_holds(self.run_id):
            if note := self._till.give_back(hold, "the process that held it ended"):
                self._watcher.say(f"an earlier attempt was cut off: {note}")

    # --- what is next ------------------------------------------------------------------------------------------------

    @property
    def recipes(self) -> list[Recipe]:
        """What the strategy asked for and got, in order."""
        return [outcome.recipe for outcome in self._outcomes]

    @property
    def proposal(self) -> Recipe | None:
        """The recipe under way."""
        return self._proposal

    def advance(self) -> Point | None:
        """Go as far as labels and the store allow; the point once the run is over, ``None`` while it needs something made."""
        while True:
            if self._proposal is None:
                asked = self._policy.ask(self.prepared.known, self._outcomes)
                if isinstance(asked, NotAvailable):
                    return self.point("na", asked.reason, [])
                if asked is None:
                    return self.point("ok", None, self.recipes)
                for line in asked.derivation:
                    self._watcher.say(line)
                self._proposal = asked
            self._obtain_all(self._proposal)
            final = self._proposal.final
            if final.key not in self._artifacts:
                return None
            balance = self._ledger.balance(self.run_id)
            dev = self._artifacts[final.model.key].usage.get("dev")
            self._outcomes.append(StrategyOutcome(self._proposal, dev, balance.charged_micros))
            self._proposal = None

    def needs(self) -> list[ReadyStep]:
        """Compute steps whose inputs are there and that nobody has begun for this run, in the recipe's order."""
        if self._proposal is None:
            return []
        return [
            ReadyStep(step, self._storage_key(step), self._paid(step) is not None)
            for step in self._proposal.steps()
            if step.key not in self._artifacts and step.key not in self._begun and self._has_inputs(step)
        ]

    def _has_inputs(self, step: Step) -> bool:
        return all(given.key in self._artifacts for given in step.inputs)

    def _obtain_all(self, recipe: Recipe) -> None:
        """Whatever takes no computing; what is in the store already is booked together."""
        try:
            for is_bought, steps in groupby(recipe.steps(), key=lambda step: isinstance(step, Buy)):
                with nullcontext() if is_bought else self._ledger.together():
                    for step in steps:
                        if step.key not in self._artifacts and self._has_inputs(step):
                            self._obtain(step)
        finally:
            self._note()

    def _obtain(self, step: Step) -> None:
        """Have the artifact of ``step``, paid for, if that takes no computing."""
        paid = self._paid(step)
        if paid is not None:
            artifact = self._find(step, _artifact_key_in(paid) or self._storage_key(step))
            if artifact is not None:
                self._artifacts[step.key] = artifact
                return
        if isinstance(step, Buy):
            self._artifacts[step.key] = self._buy(step, again=paid is not None)
        elif (found := self._find(step, self._storage_key(step))) is not None:
            self._book_found(step, found, again=paid is not None)

    def _find(self, step: Step, key: str) -> Artifact | None:
        """What is in the store; of models and targets nothing but their manifest is read here."""
        return self._store.get(key) if isinstance(step, Buy | Score) else self._store.check(key)

    def _paid(self, step: Step) -> str | None:
        """The note of the entry that settled the step."""
        entry = self._ledger.settled(self.run_id, step.key)
        return None if entry is None else entry.note

    # --- labels ------------------------------------------------------------------------------------------------------

    def _buy(self, step: Buy, again: bool) -> Artifact:
        """Buy what the book of this series does not hold yet, delivery by delivery."""
        rows = (self.prepared.train if step.split == "train" else self.prepared.dev)[step.start : step.stop]
        seller = self.prepared.seller_of(step)
        quote = self._quoter.quote(step)
        with self._till.book.open(step.series) as purchases:
            self._take_over(step, purchases)
            missing = [row for row in rows if row.id not in purchases.labels]
            already = 0 if again else purchases.paid_by(self._payer)
            hold = self._hold(step, _with_cash(quote, already + seller.quote(len(missing)).cash_micros), again)
            with self._released_on_error(hold):
                for start in range(0, len(missing), DELIVERY_ROWS):
                    batch = missing[start : start + DELIVERY_ROWS]
                    order = Order.of(key_of([step.series, [row.id for row in batch]]), batch)
                    delivery = seller.deliver(order)
                    labels = tuple((row.id, label) for row, label in zip(batch, delivery.labels, strict=True))
                    purchases.add(
                        PurchaseRecord(order.id, self._payer, delivery.cash_micros, delivery.human_seconds, labels)
                    )
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

    def _take_over(self, step: Buy, purchases: SellerLog) -> None:
        """Into the book of this machine, what another one bought and left at the URL of the store: it is not bought again."""
        found = self._store.get(step.key) if not purchases.labels else None
        if found is not None:
            rows = [json.loads(line) for line in found.read_bytes(LABELS_FILE).split(b"\n") if line]
            labels = tuple((row["row"], row["label"]) for row in rows)
            purchases.add(PurchaseRecord(key_of([step.series, "taken over"]), "another machine", 0, 0.0, labels))

    # --- compute steps -----------------------------------------------------------------------------------------------

    def begin(self, need: ReadyStep, *, cash_share: Fraction = Fraction(1)) -> HeldStep:
        """Hold a need at its quote, with ``cash_share`` of the cash that is left, and say what is to be made.

        Raises:
            BudgetExceeded: no cash is left.
        """
        here, step = self._till.here, need.step
        room = int(self._ledger.cash_room_micros(self.run_id) * cash_share)
        if room == 0 and here.usd > 0:
            capped = self._ledger.balance(self.run_id).available_cash_micros > 0
            top_up = command_line("outlay", "ledger", "topup", self._till.folder, self.run_id, "DOLLARS")
            way = "raise --cash-cap, which all runs here share" if capped else f"top the run up: `{top_up}`"
            raise BudgetExceeded(f"no cash is left to {describe(step)}; {way}")
        hold = self._hold(step, _with_cash(self._quoter.quote(step), room), need.again)
        behind = {given.key: self._artifacts[given.key].key for given in graph(step.inputs)}
        job = Job(
            step=step,
            key=need.key,
            artifacts=behind,
            # In the precision of the run, whatever another machine would choose.
            options=replace(self.prepared.options, precision=self.prepared.request.precision),
            is_precision_asked=self.prepared.is_precision_asked(learner_of(step).settings.precision),
            run_id=self.run_id,
            quote=hold.quote,
            here=here,
            payer=self._payer,
            heartbeat=self._files.step(hold.key),
            checkpoint_seconds=self._till.checkpoint_seconds,
        )
        self._begun[step.key] = HeldStep(need, hold, job)
        return self._begun[step.key]

    def settle(self, begun: HeldStep, delivered: JobResult) -> None:
        """Book what a job brought."""
        artifact = self._find(begun.need.step, delivered.key)
        if artifact is None:
            self.release(begun, "the artifact was removed from the store before it was settled")
            return
        self._book(begun.need.step, artifact, begun.hold, begun.need.again, delivered.reused)
        self._note()
        del self._begun[begun.need.step.key]

    def release(self, begun: HeldStep, why: str, *, seconds: float = 0.0) -> None:
        """Give back the hold of a job that failed or was lost; the step is needed again.

        ``seconds``: that it took, for where no heartbeat says so.
        """
        del self._begun[begun.need.step.key]
        self._till.give_back(begun.hold, why, at_least=seconds)

    def compute_hours(self) -> Fraction:
        """Hours, by the flops clock, of the compute steps of the recipe under way that are not made yet and not begun."""
        assert self._proposal is not None
        left = (
            step
            for step in self._proposal.steps()
            if not isinstance(step, Buy) and step.key not in self._artifacts and step.key not in self._begun
        )
        return sum((self.hours(step) for step in left), Fraction(0))

    def hours(self, step: Step) -> Fraction:
        """Hours of a compute step at most, by the flops clock."""
        return self._quoter.hours(self._quoter.work(step))

    def _book_found(self, step: Step, artifact: Artifact, again: bool) -> None:
        """Pay for what is in the store already: the charge in full, of the cash only what this run itself spent on it."""
        cash = 0 if again else self._my_cash(artifact)
        hold = self._hold(step, _with_cash(self._quoter.quote(step), cash), again)
        with self._released_on_error(hold):
            self._book(step, artifact, hold, again, reused=True)

    def _book(self, step: Step, artifact: Artifact, hold: Hold, again: bool, reused: bool) -> None:
        quantity = self._quoter.hours(work_of(step, artifact, self._quoter))
        cash_micros = 0 if again and reused else self._my_cash(artifact)
        self._settle(step, hold, artifact, quantity, cash_micros, reused)
        self._artifacts[step.key] = artifact
        for line in cut_lines(step, artifact.usage, self.prepared.known):
            self._watcher.say(line)

    def _my_cash(self, artifact: Artifact) -> int:
        """Cash for the measured hours that this run itself spent on an artifact; 0 for what others made."""
        mine = artifact.circumstance.get("seconds_by_payer", {}).get(self._payer, 0.0)
        return self._till.here.cost_micros(Fraction(mine) / 3600)

    def _storage_key(self, step: Step) -> str:
        """The step's key, unless an input was cut short by a limit: what is made of that is not what the key promises."""
        actual = [self._artifacts[given.key].key for given in step.inputs]
        return (
            step.key if actual == [given.key for given in step.inputs] else key_of({"of": step.key, "inputs": actual})
        )

    # --- money -------------------------------------------------------------------------------------------------------

    def _hold_key(self, step: Step, again: bool) -> str:
        """A key paid before is made again under a name of its own, at no charge: its artifact was removed from the store."""
        if not again:
            return step.key
        n = sum(
            entry.kind == "settle" and entry.key.startswith(step.key) for entry in self._ledger.entries(self.run_id)
        )
        return f"{step.key}/again-{n}"

    def _hold(self, step: Step, quote: Quote, again: bool) -> Hold:
        if again:
            quote = Quote(quote.item, quote.unit, quote.quantity, quote.unit_usd * 0, 0, quote.cash_micros)
        hold = self._ledger.hold(self.run_id, self._hold_key(step, again), quote)
        self._watcher.begin(describe(step), quote, self._ledger.balance(self.run_id))
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
            self._timings.append(self._timing(hold.key, describe(step), artifact))
        self._files.step(hold.key).unlink(missing_ok=True)
        self._watcher.end(describe(step), reused, self._ledger.balance(self.run_id))

    def _note(self) -> None:
        """Keep the timings of what was settled."""
        timings, self._timings = self._timings, []
        if timings:
            self._files.note(timings)

    def _timing(self, key: str, what: str, artifact: Artifact) -> Timing:
        measured = artifact.circumstance.get("seconds_by_payer", {}).get(self._payer)
        if measured is None:
            return Timing(key, what, None, None, None)
        seen = artifact.circumstance.get("predicted") or {}
        working = artifact.circumstance.get("working_seconds")
        return Timing(key, what, seen.get("seconds"), seen.get("by"), measured, working)

    @contextmanager
    def _released_on_error(self, hold: Hold) -> Iterator[None]:
        """Give the hold back when its step fails."""
        try:
            yield
        except BaseException as error:
            self._till.give_back(hold, type(error).__name__)
            raise

    # --- the point ---------------------------------------------------------------------------------------------------

    def point(self, status: str, reason: str | None, recipes: Sequence[Recipe]) -> Point:
        """What this run came to."""
        account, balance = self._account(), self._ledger.balance(self.run_id)
        circumstance = PointCircumstance(
            cash_usd=usd_of(balance.total_cash_micros),
            wall_seconds=round(time.monotonic() - self._started, 3),
            latency_ms=None,
            ledger_head=self._ledger.anchor().head,
            environment=environment(None, ", ".join(sorted(self._precisions()))),
        )
        return Point(account.asked(), account.result(status, reason, recipes, balance), circumstance)

    def _precisions(self) -> set[str]:
        """What the roles of this run compute in."""
        return {self.prepared.known.settings(role).precision for role in ("teacher", "student", "distil")}

    def manifest(self, point: Point) -> dict[str, Any]:
        """What a finished run leaves behind, see `RunSummary.manifest`."""
        account = self._account()
        roles = {step.key: role_of(step) for step in account.steps}
        charges: Counter[str] = Counter()
        for entry in self._ledger.entries(self.run_id):
            if entry.kind in ("settle", "overrun"):
                charges[roles[entry.key.split("/")[0]]] += entry.charge_micros
        return account.manifest(self.recipes, point.to_json(), self._ledger.anchor()) | {"charges_micros": charges}

    def _account(self) -> RunSummary:
        finals = [recipe.final for recipe in (*self.recipes, *([self._proposal] if self._proposal else []))]
        steps = [step for step in graph(finals) if step.key in self._artifacts]
        return RunSummary(self.prepared, self._quoter, steps, self._artifacts)


def _precision_facts(prepared: PreparedRun) -> dict[str, Any]:
    """What a run computes in, and why, for its receipt."""
    request, known = prepared.request, kept_bf16_speed()
    of_roles = {role: dict(settings).get("precision") for role, settings in request.overrides}
    return {
        "precision": request.precision,
        "asked": prepared.options.precision != AUTO,
        "bf16_ratio": None if known is None else known.ratio,
        "device": None if known is None else known.device,
        "roles": {role: name for role, name in of_roles.items() if name is not None},
    }


def _artifact_key_in(note: str) -> str | None:
    """The key that a settlement's note names, where a limit cut the work short and it is kept under a key of its own."""
    return note.partition(_CUT_SHORT)[2] or None


def _with_cash(quote: Quote, cash_micros: int) -> Quote:
    return Quote(quote.item, quote.unit, quote.quantity, quote.unit_usd, quote.charge_micros, cash_micros)
