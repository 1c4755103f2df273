"""One run being executed: what it needs next, what is held for it, what it has settled.

An execution never computes and never buys. It asks its strategy, books what it finds in the store, and says which steps it needs;
whoever drives it (`outlay.study.scheduler`, any number of runs at once) has them made under the hold that `begin` opens, and
comes back with `settle` or `release`. The only code that spends.

Labels that are ordered and not delivered keep their hold, across processes too: a run that needs nothing else waits
(`waits_for`), and goes on with the same hold when it is opened again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

from outlay.engine.buying import Purchase, PurchaseResult, RunPurchases
from outlay.engine.environment import environment
from outlay.engine.job_runner import Job, JobResult
from outlay.engine.listeners import Watcher
from outlay.engine.point import Point, PointCircumstance, usd_of
from outlay.engine.prepare import PreparedRun
from outlay.engine.results_dir import ResultsDir
from outlay.engine.run_dir import Timing
from outlay.engine.step_runner import lines_on_cuts
from outlay.engine.summary import RunSummary, precision_facts, work_of
from outlay.errors import BudgetExceeded
from outlay.money.amounts import LABEL_UNIT, Quote, cost_micros
from outlay.money.ledger import Hold
from outlay.plan.quotes import Quoter
from outlay.plan.steps import Buy, Recipe, Score, Step, describe, graph, learner_of, role_of
from outlay.plan.strategies import NotAvailable, StrategyOutcome, strategy
from outlay.storage.paths import command_line
from outlay.storage.store import Artifact, key_of


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step that can be made now. ``key``: what its artifact is stored under; ``again``: it was paid before."""

    step: Step
    key: str
    again: bool


@dataclass(frozen=True, slots=True)
class HeldStep:
    """A need that is held, and the job that makes it."""

    need: ReadyStep
    hold: Hold
    job: Job | Purchase


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
        self._kept_holds: dict[str, Hold] = {}
        self._waiting: dict[str, str] = {}
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
            self._files.note_precision(precision_facts(self.prepared))
            self._payer = self._till.payer(self.run_id)
            self._purchases = RunPurchases(self.prepared, self._till.book, self._payer)
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
        """Close the holds of an attempt that died, and book what it computed in vain as lost; those of labels, which may be on
        order, stay."""
        for hold in self._ledger.open_holds(self.run_id):
            if hold.quote.unit == LABEL_UNIT:
                self._kept_holds[hold.key] = hold
            elif note := self._till.give_back(hold, "the process that held it ended"):
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
        """Go as far as the store allows; the point once the run is over, ``None`` while it needs something made or bought."""
        while True:
            if self._proposal is None:
                asked = self._policy.ask(self.prepared.known, self._outcomes)
                if asked is None or isinstance(asked, NotAvailable):
                    self._give_back_kept()
                    return self.point("na", asked.reason, []) if asked is not None else self._last_point()
                for line in asked.derivation:
                    self._watcher.say(line)
                self._proposal = asked
            self._obtain_all(self._proposal)
            if self._proposal.final.key not in self._artifacts:
                return None
            dev = self._artifacts[self._proposal.model.key].usage.get("dev")
            charge_micros = self._charged_micros([*self.recipes, self._proposal])
            self._outcomes.append(StrategyOutcome(self._proposal, dev, charge_micros))
            self._proposal = None

    def _last_point(self) -> Point:
        """Return the point of a run whose strategy is done: without a test score where it stopped at a pilot."""
        if self.recipes and not self.recipes[-1].is_pilot:
            return self.point("ok", None, self.recipes)
        name = self.prepared.request.strategy
        return self.point("na", f"strategy {name} ended with a pilot: no test split was scored", self.recipes)

    def _charged_micros(self, recipes: Sequence[Recipe]) -> int:
        """Charge of the steps of some recipes; the same whenever it is asked, so that a resumed run is told what it was told."""
        keys = {step.key for step in graph(recipe.final for recipe in recipes)}
        return sum(
            entry.charge_micros
            for entry in self._ledger.entries(self.run_id)
            if entry.kind in ("settle", "overrun") and entry.key.split("/")[0] in keys
        )

    def needs(self) -> list[ReadyStep]:
        """Steps whose inputs are there, that nobody has begun for this run and that wait for nobody, in the recipe's order.

        Of one series of labels one purchase at a time: the next one must know what the first has paid for.
        """
        if self._proposal is None:
            return []
        series = {begun.need.step.series for begun in self._begun.values() if isinstance(begun.need.step, Buy)}
        found = []
        for step in self._proposal.steps():
            done = step.key in self._artifacts or step.key in self._begun or step.key in self._waiting
            if done or not self._has_inputs(step) or (isinstance(step, Buy) and step.series in series):
                continue
            found.append(ReadyStep(step, self._storage_key(step), self._is_paid(step)))
            series |= {step.series} if isinstance(step, Buy) else set()
        return found

    @property
    def waits_for(self) -> str | None:
        """One line on the labels that are ordered and not delivered; ``None`` where the run waits for none."""
        return "waiting for " + "; ".join(dict.fromkeys(self._waiting.values())) if self._waiting else None

    def put_off(self, need: ReadyStep, why: str) -> None:
        """Let a need wait for what another run has ordered."""
        self._waiting[need.step.key] = why

    def _has_inputs(self, step: Step) -> bool:
        return all(given.key in self._artifacts for given in step.inputs)

    def _obtain_all(self, recipe: Recipe) -> None:
        """Take what takes neither computing nor buying: what is in the store already is booked together."""
        try:
            with self._ledger.together():
                for step in recipe.steps():
                    if step.key not in self._artifacts and self._has_inputs(step):
                        self._obtain(step)
        finally:
            self._note()

    def _obtain(self, step: Step) -> None:
        """Have the artifact of ``step``, paid for, if it is in the store."""
        is_paid = self._is_paid(step)
        if is_paid:
            artifact = self._find_paid(step)
            if artifact is not None:
                self._artifacts[step.key] = artifact
                return
        if (found := self._find(step, self._storage_key(step))) is not None:
            if isinstance(step, Buy):
                self._purchases.take_over(step, found)
            self._book_found(step, found, again=is_paid)

    def _find(self, step: Step, key: str) -> Artifact | None:
        """What is in the store; of models and targets nothing but their manifest is read here."""
        return self._store.get(key) if isinstance(step, Buy | Score) else self._store.check(key)

    def _find_paid(self, step: Step) -> Artifact | None:
        """Return the artifact that this run paid for: what a limit cut short is stored under another key than was asked for."""
        keys = self._ledger.artifact_keys(self.run_id, step.key) or [self._storage_key(step)]
        return next((found for key in keys if (found := self._find(step, key)) is not None), None)

    def _is_paid(self, step: Step) -> bool:
        return self._ledger.settled(self.run_id, step.key) is not None

    # --- labels ------------------------------------------------------------------------------------------------------

    def _begin_purchase(self, step: Buy, need: ReadyStep) -> HeldStep:
        """Hold a purchase: all that its labels cost, of the cash what is paid already and what the missing rows take."""
        purchase, quote = self._purchases.begin(step), self._quoter.quote(step)
        cash = self._cash_of(step, need.again) + purchase.seller.quote(purchase.n_missing).cash_micros
        return HeldStep(need, self._hold(step, _with_cash(quote, cash), need.again), purchase)

    def _settle_purchase(self, step: Buy, begun: HeldStep, reused: bool) -> None:
        """Keep the labels as an artifact and book them; a kept hold may be settled by another process than opened it."""
        quote, again = self._quoter.quote(step), begun.need.again
        with self._released_on_error(begun.hold):
            files, human_seconds = self._purchases.files(step)
            artifact = self._store.put(
                step.key,
                step.kind,
                files,
                meta={"request": step.request(), "series": step.series, "what": describe(step)},
                usage={"n_labels": step.n, "n_answers": int(quote.quantity)},
                circumstance={"human_seconds": human_seconds},
            )
            cash = self._cash_of(step, again)
            self._settle(step, begun.hold, artifact, quote.quantity, cash, reused)
        self._artifacts[step.key] = artifact

    def _cash_of(self, step: Buy, again: bool) -> int:
        """Cash of this run's own bank for a purchase, each label once, whatever purchases of the run it is in."""
        steps = graph(recipe.final for recipe in (*self.recipes, *([self._proposal] if self._proposal else [])))
        before = [
            each for each in steps if isinstance(each, Buy) and each.key in self._artifacts and each.key != step.key
        ]
        return 0 if again else self._purchases.cash_micros(step, before)

    def _give_back_kept(self) -> None:
        """Give back holds of labels that the run did without."""
        while self._kept_holds:
            self._till.give_back(self._kept_holds.popitem()[1], "the run did without these labels")

    # --- compute steps -----------------------------------------------------------------------------------------------

    def begin(self, need: ReadyStep, *, cash_share: Fraction = Fraction(1)) -> HeldStep:
        """Hold a need at its quote, and say what is to be made; of the cash that is left, a compute step is given ``cash_share``.

        Raises:
            BudgetExceeded: no cash is left.
            TaskFileError: a row has no gold label to replay.
        """
        if isinstance(need.step, Buy):
            self._begun[need.step.key] = self._begin_purchase(need.step, need)
            return self._begun[need.step.key]
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

    def settle(self, begun: HeldStep, delivered: JobResult | PurchaseResult) -> None:
        """Book what a job brought; labels that are not all delivered keep their hold, and the run waits for them.

        Raises:
            OutlayError: labels cannot be kept; their hold is given back, and they stay in the log.
        """
        if isinstance(delivered, PurchaseResult):
            step = begun.need.step
            assert isinstance(step, Buy)
            del self._begun[step.key]
            if delivered.waits_for is not None:
                self._kept_holds[begun.hold.key] = begun.hold
                self._waiting[step.key] = delivered.waits_for
            else:
                self._settle_purchase(step, begun, delivered.reused)
            return
        artifact = self._find(begun.need.step, delivered.key)
        if artifact is None:
            self.release(begun, "the artifact was removed from the store before it was settled")
            return
        self._book(begun.need.step, artifact, begun.hold, begun.need.again, delivered.reused)
        self._note()
        del self._begun[begun.need.step.key]

    def release(self, begun: HeldStep, why: str, *, seconds: float = 0.0) -> None:
        """Give back the hold of a job that failed or was lost; the step is needed again. Labels on order stay held.

        ``seconds``: that it took, for where no heartbeat says so.
        """
        step = begun.need.step
        del self._begun[step.key]
        if isinstance(step, Buy) and self._purchases.is_ordered(step):
            self._kept_holds[begun.hold.key] = begun.hold
            return
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
        quote = self._quoter.quote(step)
        cash = self._cash_of(step, again) if isinstance(step, Buy) else 0 if again else self._my_cash(artifact)
        hold = self._hold(step, _with_cash(quote, cash), again)
        with self._released_on_error(hold):
            if isinstance(step, Buy):
                self._settle(step, hold, artifact, quote.quantity, cash, reused=True)
                self._artifacts[step.key] = artifact
            else:
                self._book(step, artifact, hold, again, reused=True)

    def _book(self, step: Step, artifact: Artifact, hold: Hold, again: bool, reused: bool) -> None:
        quantity = self._quoter.hours(work_of(step, artifact, self._quoter))
        cash_micros = 0 if again and reused else self._my_cash(artifact)
        self._settle(step, hold, artifact, quantity, cash_micros, reused)
        self._artifacts[step.key] = artifact
        for line in lines_on_cuts(step, artifact.usage, self.prepared.known):
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
        key = self._hold_key(step, again)
        kept = self._kept_holds.pop(key, None)
        if kept is not None and kept.quote.cash_micros < quote.cash_micros:
            self._ledger.release(kept, note="held anew for more cash")
            kept = None
        if kept is not None:
            self._ledger.renew(kept)
        hold = kept or self._ledger.hold(self.run_id, key, quote)
        self._watcher.begin(describe(step), quote, self._ledger.balance(self.run_id))
        return hold

    def _settle(
        self, step: Step, hold: Hold, artifact: Artifact, quantity: Fraction, cash_micros: int, reused: bool
    ) -> None:
        note = describe(step) + (" (reused)" if reused else "")
        if artifact.key != self._storage_key(step):
            note += " (cut short by its hold)"
        self._ledger.settle(
            hold,
            quantity=quantity,
            charge_micros=cost_micros(quantity, hold.quote.unit_usd),
            cash_micros=cash_micros,
            note=note,
            artifact_key=artifact.key,
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


def _with_cash(quote: Quote, cash_micros: int) -> Quote:
    return Quote(quote.item, quote.unit, quote.quantity, quote.unit_usd, quote.charge_micros, cash_micros)
