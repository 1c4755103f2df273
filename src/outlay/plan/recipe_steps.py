"""Steps of recipes, as a planning context has them: who labels which rows, what is trained on them, what is scored."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.plan.cache import cached
from outlay.plan.context import PlanningContext
from outlay.plan.steps import HUMAN, OF_TRAIN, OWNED, Buy, Dev, Distil, Model, Score, Teach, Train, n_carved


def _dev(context: PlanningContext, labels: Buy) -> Dev | None:
    how = context.request.dev
    if how == "none":
        return None
    if how in OF_TRAIN:
        # A single label is never set aside: then there is no dev set, and the steps are fixed.
        n_carved = context.n_carved(labels.n)
        return Dev(how, n_carved, labels=labels) if n_carved else None
    if how == "bought":
        seller = context.eval_seller
        seed = context.request.seed if context.dev_seed is None else context.dev_seed
        identity = context.offer(seller).identity
        bought = Buy("dev", context.n_dev, seed, context.dev_digest, identity, seller=seller)
        return Dev("bought", context.n_dev, labels=bought)
    return Dev("given", context.n_dev, rows_digest=context.dev_digest)


@cached()
def train_step(
    context: PlanningContext,
    role: str,
    model: Model,
    n_by_seller: tuple[tuple[str, int], ...],
    method: str | None,
) -> Train:
    """Return a training on the labels of some sellers, in the order of their rows; dev is carved from the first ones.

    ``method``: in place of the request's.
    """
    request, labels, start = context.request, list[Buy](), 0
    for seller, n in n_by_seller:
        for name, part in _owned_first(context, seller, start, n):
            offer = context.offer(name)
            shown = _shown(labels, offer.n_examples)
            labels.append(Buy("train", part, request.seed, context.train_digest, offer.identity, start, name, shown))
            start += part
    dev = _dev(context, labels[0])
    trained_on = start - n_carved(dev)
    settings = context.settings_for(settings_role(context, role, model), model, trained_on, method)
    return Train(
        role="student" if role == "teach" else role,
        model=model,
        labels=tuple(labels),
        dev=dev,
        encoding=context.encoding,
        settings=settings,
        threads=request.threads,
        pooling=context.pooling(model, settings),
        reading=context.reading(model, settings),
        free=role in ("student", "teach") and request.student_training == "free",
        learns_probabilities=role == "teach",
    )


def _shown(bought: Sequence[Buy], n_examples: int) -> tuple[Buy, ...]:
    """Return the purchases, the first ones, whose labels a seller is shown so many of."""
    n_before = [sum(each.n for each in bought[:i]) for i in range(len(bought))]
    return tuple(each for each, n in zip(bought, n_before, strict=True) if n < n_examples)


def _owned_first(context: PlanningContext, seller: str, start: int, n: int) -> list[tuple[str, int]]:
    """Return who labels ``n`` train rows from row ``start`` on: labels of people are taken from the owned ones first."""
    n_owned = min(n, max(0, context.n_owned - start)) if seller == HUMAN else 0
    return [(name, part) for name, part in ((OWNED, n_owned), (seller, n - n_owned)) if part]


def settings_role(context: PlanningContext, role: str, model: Model) -> str:
    """Return the role whose settings hold: a teacher that is like the student has the student's, a student that learns
    probabilities those of distillation."""
    if role == "teach":
        return "distil"
    return "teacher" if role == "teacher" and model == context.teacher else "student"


@cached()
def distil_step(context: PlanningContext, teacher: Train, n_blocks: int) -> Distil:
    """Return the distillation of a teacher over the first blocks of the pool."""
    settings = context.settings_for("distil", context.student, teacher.n_labels - n_carved(teacher.dev), None)
    return Distil(
        model=context.student,
        targets=tuple(_block(context, teacher, b) for b in range(n_blocks)),
        dev=teacher.dev,
        encoding=context.encoding,
        settings=settings,
        threads=context.request.threads,
        pooling=context.pooling(context.student, settings),
        reading=context.reading(context.student, settings),
        gold=teacher.labels if settings.gold_weight > 0 else (),
    )


@cached()
def _block(context: PlanningContext, teacher: Train, block: int) -> Teach:
    (start, stop), spec = context.block(block), context.target_specs[teacher.model.ref, context.student.ref]
    return Teach(
        teacher=teacher,
        start=start,
        stop=stop,
        rows_digest=context.pool_digests(start, stop),
        target=spec.target,
        settings=context.teach_settings,
        vocab_size=spec.vocab_size,
        threads=context.request.threads,
    )


@cached()
def score_step(context: PlanningContext, model: Train | Distil) -> Score:
    """Return the scoring of a model on the test split."""
    return Score(model, context.test_digest, context.request.threads, labels=context.test_labels)


@cached()
def teacher_score_step(context: PlanningContext, teacher: Train) -> Score:
    """Return the scoring of a teacher on the test split, which is told and not charged."""
    return Score(teacher, context.test_digest, context.request.threads, of_teacher=True, labels=context.test_labels)
