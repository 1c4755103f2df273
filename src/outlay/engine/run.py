"""Execution of one run: its ready steps, their holds and their settlements.

An execution never computes and never buys. It asks its strategy, books the artifacts that the store has already, and lists the
steps that are ready. Its driver (`outlay.study.scheduler`, any number of runs at once) executes them under the hold that `begin`
opens, and calls `settle` or `release`. No other code spends.

Labels that are ordered and not delivered keep their hold, across processes too: a run without other ready steps waits
(`waits_for`), and goes on with the same hold when it is opened again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Self

from outlay.engine.buying import Purchase, PurchaseResult
from outlay.engine.environment import environment
from outlay.engine.outputs import PARTS
from outlay.engine.point import Point, PointCircumstance, usd_of
from outlay.engine.prepare import PreparedRun
from outlay.engine.results_dir import ResultsDir
from outlay.engine.run_dir import Timing, timing_of
from outlay.engine.run_purchases import RunPurchases, Unbought, as_billed, bounded, words_on_short
from outlay.engine.step_runner import Job, JobResult, lines_on_cuts
from outlay.engine.summary import RunSummary, precision_facts, work_of
from outlay.money.amounts import PURCHASE_UNITS, Quote, cost_micros
from outlay.money.ledger import Hold
from outlay.plan.quotes import Quoter
from outlay.plan.steps import Buy, Recipe, Score, Step, describe, graph, learner_of, role_of, steps_of
from outlay.plan.strategies import NotAvailable, StrategyOutcome, rival_of, strategy
from outlay.storage.store import Artifact, key_of
from outlay.text.listener import Listener


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step whose inputs are there. ``key``: key of its artifact in the store; ``already_paid``: the step was paid before."""

    step: Step
    key: str
    already_paid: bool


@dataclass(frozen=True, slots=True)
class HeldStep:
    """A ready step with its hold and its job."""

    need: ReadyStep
    hold: Hold
    job: Job | Purchase


class RunExecution:
    """The execution of one run, by one process at a time: between `open` and `close`."""

    def __init__(self, results: ResultsDir, prepared: PreparedRun, listener: Listener) -> None:
        self.run_id = prepared.request.run_id
        self.prepared = prepared
        self._results = results
        self._files = results.files(self.run_id)
        self._ledger = results.ledger
        self._store = results.store
        self._listener = listener
        self._quoter = Quoter(prepared.context)
        self._policy = strategy(prepared.request.strategy)
        self._is_rival = rival_of(prepared.request.strategy) is not None
        self._outcomes: list[StrategyOutcome] = []
        self.proposal: Recipe | None = None
        """The recipe under way; ``None`` between recipes."""
        self._artifacts: dict[str, Artifact] = {}
        self._held: dict[str, HeldStep] = {}
        self._kept_holds: dict[str, Hold] = {}
        self._waiting: dict[str, str] = {}
        self._timings: list[Timing] = []
        self._started = time.monotonic()
        self._open = ExitStack()

    def open(self) -> Self:
        """Lock the run until `close`, and recover the holds of an attempt that died.

        Raises:
            SpendError: another process executes the run.
        """
        self._open.enter_context(self._files.alone())
        try:
            request = self.prepared.request
            self._ledger.open_run(self.run_id, request.budget_micros, note=request.task)
            self._files.note_precision(precision_facts(self.prepared))
            self._payer = self._results.payer(self.run_id)
            self._purchases = RunPurchases(self.prepared, self._results.book, self._payer, self._results.place)
            self._recover()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Unlock the run."""
        self._open.close()

    def _recover(self) -> None:
        """Release the holds of an attempt that died, and book its unsaved work as lost; holds of labels, which may be on order,
        stay open."""
        for hold in self._ledger.open_holds(self.run_id):
            if hold.quote.unit in PURCHASE_UNITS:
                self._kept_holds[hold.key] = hold
            elif note := self._results.give_back(hold, "the process that held it ended"):
                self._listener.say(f"an earlier attempt was cut off: {note}")

    # --- ready steps -------------------------------------------------------------------------------------------------

    @property
    def _recipes(self) -> list[Recipe]:
        return [outcome.recipe for outcome in self._outcomes]

    def advance(self) -> Point | None:
        """Book all that the store has; return the point of a finished run, ``None`` while steps must be computed or bought."""
        while True:
            if self.proposal is None:
                asked = self._policy.ask(self.prepared.context, self._outcomes)
                if asked is None or isinstance(asked, NotAvailable):
                    while self._kept_holds:
                        self._results.give_back(self._kept_holds.popitem()[1], "the run did without these labels")
                    return self.point("na", asked.reason, []) if asked is not None else self._last_point()
                for line in asked.derivation:
                    self._listener.say(line)
                self.proposal = asked
            if not self.unbought():
                self._obtain_all(self.proposal)
            if any(step.key not in self._artifacts for step in self.proposal.finals):
                return None
            dev = None if self.proposal.is_trial else self._artifacts[self.proposal.model.key].usage.get("dev")
            charges = self._charges_of([*self._recipes, self.proposal])
            self._outcomes.append(StrategyOutcome(self.proposal, dev, sum(charges.values()), charges))
            self.proposal = None

    def _last_point(self) -> Point:
        """Return the point after the last recipe: without a test score where the last recipe is a pilot."""
        if self._recipes and not self._recipes[-1].is_pilot:
            return self.point("ok", None, self._recipes)
        name = self.prepared.request.strategy
        return self.point("na", f"strategy {name} ended with a pilot: no test split was scored", self._recipes)

    def _charges_of(self, recipes: Sequence[Recipe]) -> dict[str, int]:
        """Return the charges, in micro-dollars, of the steps of some recipes, by key; the same in a resumed run."""
        keys = {step.key for step in steps_of(recipes)}
        return {key: micros for key, micros in self._charges().items() if key in keys}

    def _charges(self) -> Counter[str]:
        """Return the charges of this run, in micro-dollars, by the key of the step."""
        charges: Counter[str] = Counter()
        for entry in self._ledger.entries(self.run_id):
            if entry.kind in ("settle", "overrun"):
                charges[entry.key.split("/")[0]] += entry.charge_micros
        return charges

    def needs(self) -> list[ReadyStep]:
        """Return the steps whose inputs are there and that are neither held nor waiting, in the recipe's order.

        One purchase at a time per series of labels: the next purchase must know which labels the first has paid for. So one that
        shares rows with a waiting purchase is not ready: an order of theirs would be paid by whichever is settled first.
        """
        if self.proposal is None:
            return []
        series = {held.need.step.series for held in self._held.values() if isinstance(held.need.step, Buy)}
        steps = self.proposal.steps()
        waiting = [step for step in steps if step.key in self._waiting and isinstance(step, Buy)]
        found = []
        for step in steps:
            done = step.key in self._artifacts or step.key in self._held or step.key in self._waiting
            if done or not self._has_inputs(step) or (self._is_rival and isinstance(step, Buy)):
                continue
            if isinstance(step, Buy) and (step.series in series or any(map(step.overlaps, waiting))):
                continue
            found.append(ReadyStep(step, self._storage_key(step), self._is_paid(step)))
            series |= {step.series} if isinstance(step, Buy) else set()
        return found

    @property
    def waits_for(self) -> str | None:
        """One line on labels that are ordered and not delivered; ``None`` where the run waits for no labels."""
        lines = dict.fromkeys((*self._waiting.values(), *self.unbought().on_order))
        return "waiting for " + "; ".join(lines) if lines else None

    def put_off(self, need: ReadyStep, why: str) -> None:
        """Let a step wait for labels that another run has ordered."""
        self._waiting[need.step.key] = why

    def _has_inputs(self, step: Step) -> bool:
        return all(given.key in self._artifacts for given in step.inputs)

    def _obtain_all(self, recipe: Recipe) -> None:
        """Book every step of a recipe whose artifact is in the store already, in one transaction."""
        try:
            with self._ledger.together():
                for step in recipe.steps():
                    if step.key not in self._artifacts and self._has_inputs(step):
                        self._obtain(step)
        finally:
            self._note()

    def _obtain(self, step: Step) -> None:
        """Book the artifact of ``step`` if the store has it."""
        is_paid = self._is_paid(step)
        if is_paid and (paid := self._find_paid(step)) is not None:
            self._artifacts[step.key] = paid
        elif (found := self._find(step, self._storage_key(step))) is not None:
            if isinstance(step, Buy):
                self._purchases.take_over(step, found)
            self._book_found(step, found, already_paid=is_paid)
        elif self._is_rival and isinstance(step, Buy):
            quote = replace(self._quoter.quote(step), cash_micros=0)
            self._settle_purchase(step, self._hold(step, quote, is_paid), already_paid=is_paid, reused=True)

    def _find(self, step: Step, key: str) -> Artifact | None:
        """Return an artifact of the store, or ``None``; of models and targets only the manifest is read."""
        return self._store.get(key) if isinstance(step, Buy | Score) else self._store.check(key)

    def _find_paid(self, step: Step) -> Artifact | None:
        """Return the artifact that this run paid for; what was cut short has another key than its step."""
        keys = self._ledger.artifact_keys(self.run_id, step.key) or [self._storage_key(step)]
        return next((found for key in keys if (found := self._find(step, key)) is not None), None)

    def _is_paid(self, step: Step) -> bool:
        return self._ledger.settled(self.run_id, step.key) is not None

    # --- labels ------------------------------------------------------------------------------------------------------

    def unbought(self) -> Unbought:
        """Return the labels that a rival's recipe needs and nobody has; none for any other run, which buys them."""
        steps = self.proposal.steps() if self._is_rival and self.proposal is not None else []
        open_steps = [step for step in steps if isinstance(step, Buy) and step.key not in self._artifacts]
        return self._purchases.unbought([step for step in open_steps if self._find(step, step.key) is None])

    def _hold_purchase(self, step: Buy, need: ReadyStep) -> HeldStep:
        """Hold a purchase: the charge of all its labels, the cash paid already and that of the missing rows.

        Where a label has no fixed price, the hold is what the labels cost at most, and no more than the other steps leave.
        """
        purchase, quote = self._purchases.begin(step), self._quoter.quote(step)
        cash = self._cash_of(step, need.already_paid) + purchase.seller.quote(purchase.missing).cash_micros
        if not purchase.seller.is_deterministic and not need.already_paid:
            quote = self._bound(step, quote, need)
            cash = min(cash, quote.charge_micros, self._ledger.cash_room_micros(self.run_id))
        hold = self._hold(step, replace(quote, cash_micros=cash), need.already_paid)
        return HeldStep(need, hold, purchase.held(hold))

    def _bound(self, step: Buy, quote: Quote, need: ReadyStep) -> Quote:
        assert self.proposal is not None
        if (kept := self._kept_holds.get(self._hold_key(step, need.already_paid))) is not None:
            return kept.quote
        done = self._artifacts.keys() | self._held.keys() | {step.key}
        others = sum(self._quoter.quote(each).charge_micros for each in self.proposal.steps() if each.key not in done)
        room = self._ledger.balance(self.run_id).available_charge_micros - others
        return bounded(quote, self._quoter.most(step), room)

    def _settle_purchase(self, step: Buy, hold: Hold, *, already_paid: bool, reused: bool) -> None:
        """Store the labels of a purchase and settle its hold, which another process may have opened."""
        with self._released_on_error(hold):
            most = None if already_paid or self._is_rival else hold.quote.quantity
            bought = self._purchases.content(step, self._quoter.quote(step), most)
            artifact = self._store.put(
                bought.key,
                step.kind,
                bought.files,
                meta={"request": step.request(), "series": step.series, "what": describe(step)},
                usage=dict(bought.usage),
                circumstance=dict(bought.circumstance),
            )
            cash = self._cash_of(step, already_paid)
            self._settle(step, hold, artifact, bought.quantity, cash, reused)

    def _cash_of(self, step: Buy, already_paid: bool) -> int:
        """Return the cash, in micro-dollars, that this run paid for a purchase; a label of several purchases counts once."""
        before = [each for each in self._settled_steps() if isinstance(each, Buy) and each.key != step.key]
        return 0 if already_paid else self._purchases.cash_micros(step, before)

    # --- compute steps -----------------------------------------------------------------------------------------------

    def begin(self, need: ReadyStep, *, cash_share: Fraction = Fraction(1)) -> HeldStep:
        """Hold a ready step at its quote and return its job; a compute step gets ``cash_share`` of the cash that is left.

        Raises:
            BudgetExceeded: no cash is left.
            TaskFileError: a row has no gold label to replay.
        """
        step = need.step
        held = self._hold_purchase(step, need) if isinstance(step, Buy) else self._hold_job(step, need, cash_share)
        self._held[step.key] = held
        return held

    def _hold_job(self, step: Step, need: ReadyStep, cash_share: Fraction) -> HeldStep:
        here = self._results.here
        room = int(self._ledger.cash_room_micros(self.run_id) * cash_share)
        if room == 0 and here.usd > 0:
            raise self._results.no_cash(self.run_id, describe(step))
        hold = self._hold(step, replace(self._quoter.quote(step), cash_micros=room), need.already_paid)
        job = Job(
            step=step,
            key=need.key,
            artifacts={given.key: self._artifacts[given.key].key for given in graph(step.inputs)},
            # The precision of the run, not the one that a worker's machine would choose.
            request=replace(self.prepared.asked, precision=self.prepared.request.precision),
            is_precision_asked=self.prepared.is_precision_asked(learner_of(step).settings.precision),
            run_id=self.run_id,
            quote=hold.quote,
            here=here,
            payer=self._payer,
            heartbeat=self._files.step(hold.key),
            checkpoint_seconds=self._results.checkpoint_seconds,
        )
        return HeldStep(need, hold, job)

    def settle(self, held: HeldStep, result: JobResult | PurchaseResult) -> None:
        """Settle the hold of a finished job; a purchase without all its labels keeps its hold, and the run waits for them.

        Raises:
            OutlayError: the labels cannot be stored; their hold is released, and they stay in the log.
        """
        if isinstance(result, PurchaseResult):
            step = held.need.step
            assert isinstance(step, Buy)
            del self._held[step.key]
            if result.waits_for is not None:
                self._kept_holds[held.hold.key] = held.hold
                self._waiting[step.key] = result.waits_for
            else:
                self._settle_purchase(step, held.hold, already_paid=held.need.already_paid, reused=result.reused)
            return
        artifact = self._find(held.need.step, result.key)
        if artifact is None:
            self.release(held, "the artifact was removed from the store before it was settled")
            return
        self._book(held.need.step, artifact, held.hold, held.need.already_paid, result.reused)
        self._note()
        del self._held[held.need.step.key]

    def release(self, held: HeldStep, why: str, *, seconds: float = 0.0) -> None:
        """Release the hold of a job that failed or was lost, so that its step is ready again; labels on order stay held.

        ``seconds``: seconds of the job, for one without a heartbeat on this disk.
        """
        step = held.need.step
        del self._held[step.key]
        if isinstance(step, Buy) and self._purchases.is_ordered(step):
            self._kept_holds[held.hold.key] = held.hold
            return
        self._results.give_back(held.hold, why, at_least=seconds)

    def share_of(self, step: Step) -> Fraction:
        """Return a step's share of the hours, by the flops clock, of the compute steps that are neither done nor held.

        A step without FLOPs, such as answering by the commonest label, takes time all the same: it counts as one of so many.
        """
        assert self.proposal is not None
        left = [
            each
            for each in self.proposal.steps()
            if not isinstance(each, Buy) and each.key not in self._artifacts and each.key not in self._held
        ]
        own = self.hours(step)
        return own / sum(map(self.hours, left), Fraction(0)) if own else Fraction(1, len(left))

    def hours(self, step: Step) -> Fraction:
        """Return the hours of a compute step at most, by the flops clock."""
        return self._quoter.hours(self._quoter.work(step))

    def _book_found(self, step: Step, artifact: Artifact, already_paid: bool) -> None:
        """Book a cached artifact: the full charge, and only the cash that this run paid for it."""
        quote = self._quoter.quote(step)
        cash = 0 if already_paid else self._my_cash(artifact)
        if isinstance(step, Buy):
            cash = self._cash_of(step, already_paid)
            quote = as_billed(quote, artifact)
        hold = self._hold(step, replace(quote, cash_micros=cash), already_paid)
        with self._released_on_error(hold):
            if isinstance(step, Buy):
                self._settle(step, hold, artifact, quote.quantity, cash, reused=True)
            else:
                self._store.drop_checkpoints(artifact.key)
                self._book(step, artifact, hold, already_paid, reused=True)

    def _book(self, step: Step, artifact: Artifact, hold: Hold, already_paid: bool, reused: bool) -> None:
        quantity = self._quoter.hours(work_of(step, artifact, self._quoter))
        cash_micros = 0 if already_paid and reused else self._my_cash(artifact)
        self._settle(step, hold, artifact, quantity, cash_micros, reused)
        for line in lines_on_cuts(step, artifact.usage, self.prepared.context):
            self._listener.say(line)

    def _my_cash(self, artifact: Artifact) -> int:
        """Return the cash, in micro-dollars, of the measured hours that this run spent on an artifact; 0 for work of others."""
        mine = artifact.circumstance.get("seconds_by_payer", {}).get(self._payer, 0.0)
        return self._results.here.cost_micros(Fraction(mine) / 3600)

    def _storage_key(self, step: Step) -> str:
        """Return the step's key, or a key of its own for a step with an input that a limit cut short."""
        actual = [self._artifacts[given.key].key for given in step.inputs]
        return (
            step.key if actual == [given.key for given in step.inputs] else key_of({"of": step.key, "inputs": actual})
        )

    # --- money -------------------------------------------------------------------------------------------------------

    def _hold_key(self, step: Step, already_paid: bool) -> str:
        """Return the key of a step's hold, a new one at no charge for a step paid before whose artifact was removed."""
        if not already_paid:
            return step.key
        n = sum(
            entry.kind == "settle" and entry.key.startswith(step.key) for entry in self._ledger.entries(self.run_id)
        )
        return f"{step.key}/again-{n}"

    def _hold(self, step: Step, quote: Quote, already_paid: bool) -> Hold:
        if already_paid:
            quote = replace(quote, unit_usd=quote.unit_usd * 0, charge_micros=0)
        key = self._hold_key(step, already_paid)
        kept = self._kept_holds.pop(key, None)
        if kept is not None and kept.quote.cash_micros < quote.cash_micros:
            self._ledger.release(kept, note="held anew for more cash")
            kept = None
        if kept is not None:
            self._ledger.renew(kept)
        hold = kept or self._ledger.hold(self.run_id, key, quote)
        self._listener.held(describe(step))
        return hold

    def _settle(
        self, step: Step, hold: Hold, artifact: Artifact, quantity: Fraction, cash_micros: int, reused: bool
    ) -> None:
        note = describe(step) + (" (reused)" if reused else "")
        if artifact.key != self._storage_key(step):
            note += words_on_short(step, artifact) if isinstance(step, Buy) else " (cut short by its hold)"
        self._ledger.settle(
            hold,
            quantity=quantity,
            charge_micros=cost_micros(quantity, hold.quote.unit_usd),
            cash_micros=cash_micros,
            note=note,
            artifact_key=artifact.key,
        )
        self._artifacts[step.key] = artifact
        if not isinstance(step, Buy):
            self._timings.append(timing_of(hold.key, describe(step), artifact, self._payer))
        self._files.step(hold.key).unlink(missing_ok=True)
        balance = self._ledger.balance(self.run_id)
        self._listener.settled(describe(step), reused, balance.charged_micros, balance.available_charge_micros)

    def _note(self) -> None:
        """Write the timings of the steps settled since the last call."""
        timings, self._timings = self._timings, []
        if timings:
            self._files.note(timings)

    @contextmanager
    def _released_on_error(self, hold: Hold) -> Iterator[None]:
        """Release a hold when its step fails."""
        try:
            yield
        except BaseException as error:
            self._results.give_back(hold, type(error).__name__)
            raise

    # --- the point ---------------------------------------------------------------------------------------------------

    def point(self, status: str, reason: str | None, recipes: Sequence[Recipe]) -> Point:
        """Return the point of this run."""
        summary, balance = self._summary(), self._ledger.balance(self.run_id)
        precisions = {self.prepared.context.settings(role).precision for role in ("teacher", "student", "distil")}
        circumstance = PointCircumstance(
            cash_usd=usd_of(balance.total_cash_micros),
            wall_seconds=round(time.monotonic() - self._started, 3),
            latency_ms=summary.latency_ms(recipes),
            ledger_head=self._ledger.anchor().head,
            environment=environment(None, ", ".join(sorted(precisions))),
        )
        return Point(summary.asked(), summary.result(status, reason, recipes, balance), circumstance)

    def manifest(self, point: Point) -> dict[str, Any]:
        """Return the manifest of a finished run, see `RunSummary.manifest`."""
        summary = self._summary()
        roles = {step.key: role_of(step) for step in summary.steps}
        charges: Counter[str] = Counter()
        for key, micros in self._charges().items():
            if roles[key] in PARTS:
                charges[roles[key]] += micros
        return summary.manifest(self._recipes, point.to_json(), self._ledger.anchor()) | {"charges_micros": charges}

    def _summary(self) -> RunSummary:
        return RunSummary(self.prepared, self._quoter, self._settled_steps(), self._artifacts)

    def _settled_steps(self) -> list[Step]:
        """Return the settled steps of every recipe, the one under way included."""
        recipes = [*self._recipes, *([self.proposal] if self.proposal else [])]
        return [step for step in steps_of(recipes) if step.key in self._artifacts]
