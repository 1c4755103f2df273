"""Summary of a run: its point and its manifest, from its settled steps. Pure but for reading artifacts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from outlay.engine.outputs import Scoring, read_label_errors, read_scoring
from outlay.engine.point import LabelSource, Point, PointCircumstance, PointRequest, PointResult, Reading, usd_of
from outlay.engine.prepare import PreparedRun, RunBuilder
from outlay.engine.purchase_terms import OPENAI, count_reasons, words_on
from outlay.engine.run_purchases import refusals_of, words_on_short
from outlay.errors import OutlayError
from outlay.hardware.precision import AUTO, kept_bf16_speed
from outlay.metrics import main_score
from outlay.metrics.degenerate import Floor, dev_remarks, test_remarks
from outlay.metrics.quality import DoubtfulRow
from outlay.money.amounts import Price
from outlay.money.ledger import Anchor, Balance
from outlay.money.machines import SECONDS_PER_HOUR
from outlay.plan.labels_left import lines_on_used_up
from outlay.plan.quotes import Quoter, Work
from outlay.plan.request import Request, SellerSpec
from outlay.plan.steps import (
    HUMAN,
    LLM,
    SCORES_FILE,
    Buy,
    Distil,
    Recipe,
    Score,
    Step,
    Train,
    describe,
    role_of,
    steps_of,
)
from outlay.plan.strategies import rival_of, strategy
from outlay.storage.store import Artifact, digest_of


@dataclass(frozen=True)
class RunSummary:
    """Settled steps of a run, in the order of its recipes, and their artifacts by the keys of the steps."""

    prepared: PreparedRun
    quoter: Quoter
    steps: Sequence[Step]
    artifacts: Mapping[str, Artifact]

    def asked(self) -> PointRequest:
        """Return the request of the point."""
        return asked_of(self.prepared)

    def result(self, status: str, reason: str | None, recipes: Sequence[Recipe], balance: Balance) -> PointResult:
        """Return the result of the point: a pure function of the request within one environment."""
        trains = [step for step in self.steps if isinstance(step, Train)]
        distils = [step for step in self.steps if isinstance(step, Distil)]
        # Scoring the teacher is told beside the run, and is no part of what it took.
        own = [step for step in self.steps if not isinstance(step, Buy) and not _is_of_teacher(step)]
        work = [work_of(step, self.artifacts[step.key], self.quoter) for step in own]
        hours = sum((self.quoter.hours(each) for each in work), Fraction(0))
        scored = self.artifacts[recipes[-1].final.key] if recipes and not recipes[-1].is_pilot else None
        scores = {} if scored is None else _scores(scored)
        student = self.artifacts[recipes[-1].model.key].usage if recipes else {}
        beside = recipes[-1].teacher_score if recipes else None
        teacher = None if beside is None else self.artifacts[beside.key]
        said, taught = (None if each is None else read_scoring(each) for each in (scored, teacher))
        main = main_score(self.prepared.task.metric)
        first_dev = next((step.dev for step in _trains_of(recipes, self.steps) if step.dev is not None), None)
        return PointResult(
            status=status,
            reason=reason,
            test=scores[main].value if scores else None,
            dev=student.get("dev"),
            scores=scores,
            charge_usd=usd_of(balance.total_charge_micros),
            n_labels=max((self._n_bought(step, of_llm=False) for step in trains), default=0),
            n_llm_labels=max((self._n_bought(step, of_llm=True) for step in trains), default=0),
            n_pool=max((step.n_rows for step in distils), default=0),
            n_dev=0 if first_dev is None else first_dev.n,
            seconds={self.prepared.request.machine: float(hours * SECONDS_PER_HOUR)} if work else {},
            flops=sum(sum(self.quoter.flops(each)) for each in work),
            student_parameters=student.get("n_parameters"),
            artifacts=self._digests(recipes),
            notes=(
                *self._notes(recipes, said),
                *self._lines_on_short(recipes),
                *self._lines_on_used_up(recipes, balance),
            ),
            ece=None if said is None else said.ece,
            quality=None if said is None else said.quality(),
            teacher_test=None if teacher is None else _scores(teacher)[main],
            teacher_ece=None if taught is None else taught.ece,
            teacher_quality=None if taught is None else taught.quality(),
            label_errors=self._label_errors(recipes),
            label_sources=self._label_sources(),
        )

    def _n_bought(self, step: Train, *, of_llm: bool) -> int:
        """Return the number of labels that a training's purchases got, of an LLM or of all other sellers."""
        bought = [buy for buy in step.labels if (buy.seller == LLM) == of_llm]
        return sum(self.artifacts[buy.key].usage["n_labels"] for buy in bought)

    def _lines_on_short(self, recipes: Sequence[Recipe]) -> list[str]:
        """Return lines on purchases that got fewer labels than rows were ordered."""
        bought = [step for step in steps_of(recipes) if isinstance(step, Buy) and step.key in self.artifacts]
        short = [step for step in bought if self.artifacts[step.key].usage["n_labels"] < step.n]
        return [f"{describe(step)}{words_on_short(step, self.artifacts[step.key])}" for step in short]

    def _label_sources(self) -> tuple[LabelSource, ...]:
        """Return who gave the labels of all purchases that replayed none, a record for each seller."""
        found: dict[str, LabelSource] = {}
        for step in self.steps:
            spec = self.prepared.request.seller(step.seller) if isinstance(step, Buy) else None
            who = None if spec is None else words_on(spec)
            if spec is None or who is None:
                continue
            artifact, before = self.artifacts[step.key], found.get(spec.name)
            refused = count_reasons(refusals_of(artifact))
            own = LabelSource(
                spec.name, who, artifact.usage["n_labels"], refused, int(artifact.circumstance.get("n_lost", 0))
            )
            found[spec.name] = own if before is None else _together(before, own)
        return tuple(found.values())

    def _label_errors(self, recipes: Sequence[Recipe]) -> tuple[DoubtfulRow, ...]:
        """Return the training labels that are likely wrong, by the first training of the last recipe that held rows out."""
        classes = self.prepared.task.labels
        found = (read_label_errors(self.artifacts[step.key], classes) for step in _trains_of(recipes, self.steps))
        return next((errors for errors in found if errors), ())

    def latency_ms(self, recipes: Sequence[Recipe]) -> float | None:
        """Return the milliseconds a row of the final model, as its scoring measured them; ``None`` where it did not."""
        if not recipes or recipes[-1].is_pilot:
            return None
        measured: float | None = self.artifacts[recipes[-1].final.key].circumstance.get("latency_ms")
        return measured

    def _notes(self, recipes: Sequence[Recipe], said: Scoring | None) -> tuple[str, ...]:
        """Return warnings about the scores, a line each; ``said``: the answers to the test split."""
        if said is None:
            return ()
        value = _scores(self.artifacts[recipes[-1].final.key])[main_score(said.metric)].value
        notes = (*self._lines_on_missing(recipes[-1].final), *test_remarks(said.metric, said.answered, value))
        teachers = [step for step in _trains_of(recipes, self.steps) if step.role == "teacher"]
        models = {**({"the teacher": teachers[0]} if teachers else {}), "the student": recipes[-1].model}
        usages = {who: self.artifacts[step.key].usage for who, step in models.items()}
        first = next(iter(usages.values()))
        floor = None if first.get("dev_floor") is None else Floor(**first["dev_floor"])
        dev_scores = {who: usage["dev"] for who, usage in usages.items()}
        return (*notes, *dev_remarks(first.get("n_dev", 0), dev_scores, floor))

    def _lines_on_missing(self, final: Step) -> list[str]:
        """Return lines where bought test rows got no label, so that the scores are those of the others, or those of an LLM."""
        if not isinstance(final, Score) or final.labels is None:
            return []
        n_scored, n = int(self.artifacts[final.key].usage["n_scored"]), final.labels.n
        lines = [f"{n - n_scored:,} of {n:,} test rows got no label, and scores leave them out"] if n_scored < n else []
        spec = self.prepared.request.seller(final.labels.seller)
        if spec is not None and spec.kind == OPENAI:
            lines.append(f"test rows were labelled by {words_on(spec)}: scores say how often a model agrees with it")
        return lines

    def _lines_on_used_up(self, recipes: Sequence[Recipe], balance: Balance) -> tuple[str, ...]:
        """Return lines on a budget that outlasts the rows to label; none for a rival, which buys nothing."""
        request = self.prepared.request
        if not recipes or rival_of(request.strategy) is not None:
            return ()
        left = request.budget_micros - balance.total_charge_micros
        return lines_on_used_up(self.prepared.context, recipes[-1].final, left)

    def _digests(self, recipes: Sequence[Recipe]) -> dict[str, str]:
        """Return digests by role for the last recipe; several of one role (blocks of targets, labels of two splits) become the
        digest of their digests."""
        by_role: dict[str, list[str]] = {}
        for step in recipes[-1].steps() if recipes else self.steps:
            by_role.setdefault(role_of(step), []).append(self.artifacts[step.key].digest)
        return {role: d[0] if len(d) == 1 else digest_of("".join(d).encode()) for role, d in by_role.items()}

    def manifest(self, recipes: Sequence[Recipe], point: Mapping[str, Any], anchor: Anchor) -> dict[str, Any]:
        """Return the manifest of a finished run: request, derivation, artifacts, point and anchor of the ledger."""
        teachers = (step for step in _trains_of(recipes, self.steps) if step.role == "teacher")
        return {
            "run_id": self.prepared.request.run_id,
            "request": self.prepared.request.to_json(),
            "derivation": [line for recipe in recipes for line in recipe.derivation],
            "artifacts": [
                {"step": step.kind, "role": role_of(step), "what": describe(step), "key": self.artifacts[step.key].key}
                for step in self.steps
            ],
            "teacher_dev": next((self.artifacts[step.key].usage["dev"] for step in teachers), None),
            "point": point,
            "anchor": {"head": anchor.head, "count": anchor.count},
        }


def asked_of(prepared: PreparedRun) -> PointRequest:
    """Return the request of the point that a prepared run will have."""
    request, people = prepared.request, prepared.context.offers.get(HUMAN)
    n_owned = prepared.context.n_owned
    added = None if people is None else added_micros(request, people.price, people.redundancy, n_owned)
    return _asked(request, request.task, added, prepared.price_book.digest, prepared.pool_parts)


def added_micros(request: Request, price: Price, redundancy: int, n_owned: int) -> int | None:
    """Return the budget beyond the initial labels, in micro-dollars; ``None`` where N is chosen by a rule.

    ``n_owned``: labels that cost nothing.
    """
    if request.n_initial is None:
        return None
    return max(0, request.budget_micros - price.cost_micros(max(0, request.n_initial - n_owned) * redundancy))


def _asked(
    request: Request, task: str, added: int | None, price_book: str, pool: tuple[tuple[str, int], ...]
) -> PointRequest:
    """Return what a point keeps of a request, resolved or not, with the facts that resolving it tells."""
    policy = strategy(request.strategy)
    return PointRequest(
        task=task,
        strategy=request.strategy,
        budget_usd=usd_of(request.budget_micros),
        added_usd=None if added is None else usd_of(added),
        n_initial=request.n_initial,
        seed=request.seed,
        teacher={"teacher": request.teacher, "student": request.student, None: None}[policy.taught_by],
        student=request.general if policy.starts_general else request.student,
        machine=request.machine,
        clock="flops",
        price_book=price_book,
        pool=pool,
        dev=None if request.dev == "none" else request.dev,
        methods=methods_of(request),
        max_labels=request.max_labels,
        test_rows=request.test_rows,
    )


def methods_of(request: Request) -> tuple[tuple[str, str], ...]:
    """Return the methods of the trainings of a request by role, none where all are ``full``."""
    taught_by = strategy(request.strategy).taught_by
    roles = ("student",) if taught_by is None else (taught_by, "distil")
    named = {role: _method_words(request.overrides.get(role, {})) for role in roles}
    return tuple(named.items()) if set(named.values()) != {"full"} else ()


def _method_words(settings: Mapping[str, Any]) -> str:
    """Return a method with what else decides how its head reads a row, such as "probe, joined"."""
    plain = (None, "all", "auto", "declared")
    more = [str(settings[name]) for name in ("tune", "pair", "pooling") if settings.get(name) not in plain]
    return ", ".join([str(settings.get("method", "full")), *more])


def precision_facts(prepared: PreparedRun) -> dict[str, Any]:
    """Return the precision of a run and the facts behind it, for the receipt."""
    request, known = prepared.request, kept_bf16_speed()
    return {
        "precision": request.precision,
        "asked": prepared.asked.precision != AUTO,
        "bf16_ratio": None if known is None else known.ratio,
        "device": None if known is None else known.device,
        "roles": {role: pairs["precision"] for role, pairs in request.overrides.items() if "precision" in pairs},
    }


def absent_point(request: Request, builder: RunBuilder, status: str, reason: str) -> Point:
    """Return the point of a run that cannot be prepared, since data or models are missing.

    A task that cannot be read either has the name that was asked for.
    """
    try:
        task, data = builder.load(request.task)
        people, price = request.seller(HUMAN) or SellerSpec(), builder.price_book.label(task.price_item)
        added = added_micros(request, price, people.replay.redundancy, len(data.owned))
    except OutlayError:
        added = None
    pool = () if request.pool_rows is None else (("pool", request.pool_rows),)
    asked = _asked(request, builder.name_of(request.task), added, builder.price_book.digest, pool)
    return Point(asked, PointResult(status, reason), PointCircumstance())


def _trains_of(recipes: Sequence[Recipe], steps: Sequence[Step]) -> list[Train]:
    """Return the trainings on labels of the last recipe, or of all steps where there is no recipe."""
    return [step for step in (recipes[-1].steps() if recipes else steps) if isinstance(step, Train)]


def _together(one: LabelSource, other: LabelSource) -> LabelSource:
    """Return the sums of two purchases from one seller."""
    refused = Counter(one.refused) + Counter(other.refused)
    counts = dict(sorted(refused.items(), key=lambda each: (-each[1], each[0])))
    return replace(one, n_labels=one.n_labels + other.n_labels, refused=counts, n_lost=one.n_lost + other.n_lost)


def _is_of_teacher(step: Step) -> bool:
    return isinstance(step, Score) and step.of_teacher


def _scores(artifact: Artifact) -> dict[str, Reading]:
    document = json.loads((artifact.path / SCORES_FILE).read_text(encoding="utf-8"))
    return {name: Reading(**reading) for name, reading in document.items()}


def work_of(step: Step, artifact: Artifact, quoter: Quoter) -> Work:
    """Return the tokens that a step really processed, from its artifact: at most its quote."""
    usage = artifact.usage
    fitted = int(usage.get("n_flops_fitted") or 0)
    return Work(quoter.work(step).ref, int(usage["n_tokens_trained"]), int(usage["n_tokens_inferred"]), fitted)
