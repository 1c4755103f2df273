"""Choices that a request may leave to its task: the encoder of its metric and the source of its dev labels."""

from __future__ import annotations

from outlay.errors import UnknownModel, UsageError
from outlay.metrics.scorer import TextEncoder, choose_encoder
from outlay.models.reference import fingerprint
from outlay.plan.steps import Judge
from outlay.tasks.splits import TaskData
from outlay.tasks.task import Task


def judge_of(task: Task, metric_model: str | None) -> Judge | None:
    """Return the encoder that the task's metric compares texts with; ``None`` for a metric without one.

    ``metric_model``: reference of an encoder in place of the task's own.

    Raises:
        UsageError: the metric needs an encoder and none is named, or the other way round.
        UnknownModel: the reference of the encoder leads nowhere.
    """
    if task.metric != "bert_ibleu":
        if metric_model is not None:
            raise UsageError(
                f"task {task.name} is scored by {task.metric}, which needs no --metric-model; leave it out"
            )
        return None
    told = task.bertscore
    own = None if told is None else TextEncoder(told.model, told.layer, told.idf)
    try:
        encoder = choose_encoder(own, metric_model, idf=None if own is None else own.idf)
    except UnknownModel as error:
        raise UnknownModel(f"{error}; or name another encoder for bert_ibleu with --metric-model") from None
    if encoder is None:
        raise UsageError(
            f"task {task.name} is scored by bert_ibleu, which needs an encoder; name it with --metric-model"
        )
    return Judge(encoder.ref, encoder.layer, encoder.idf, fingerprint(encoder.ref))


def dev_choice(task: Task, data: TaskData, dev: str | None, n_dev: int | None) -> tuple[str, int | None]:
    """Return the source of the dev labels and their number (``None``: the whole split, or the default share where carved).

    Raises:
        UsageError: the task has no dev split, or one with fewer rows.
    """
    how = dev or task.dev
    n_dev = n_dev if n_dev is not None else task.n_dev
    if how == "none":
        return how, None
    if how == "folds":
        if n_dev is not None:
            raise UsageError(f"{n_dev:,} dev labels asked, and with folds a fold is the dev set; leave the number out")
        return how, None
    if how == "carved":
        return how, n_dev
    if not data.dev:
        raise UsageError(f"dev {how!r} needs a dev split, and task {task.name} has none; choose carved, folds or none")
    if n_dev is not None and n_dev > len(data.dev):
        raise UsageError(f"{n_dev:,} dev labels asked, the dev split has {len(data.dev):,}; ask for at most that many")
    if how == "given" and any(row.label is None for row in data.dev):
        raise UsageError(
            f"dev 'given' needs labels, and dev rows of task {task.name} have none; choose bought or carved"
        )
    return how, n_dev
