"""Defaults that a request takes from its task: the encoder of the metric and the source of the dev labels."""

from __future__ import annotations

from outlay.errors import UnknownModel, UsageError
from outlay.models.reference import fingerprint
from outlay.models.shape import check_layer
from outlay.plan.steps import Judge
from outlay.tasks.splits import TaskData
from outlay.tasks.task import Task


def judge_of(task: Task, metric_model: str | None) -> Judge | None:
    """Return the encoder of the task's metric; ``metric_model`` replaces that of the task. ``None`` where the metric needs none.

    Raises:
        UsageError: the metric needs an encoder and none is named, or one is named that the metric does not need.
        UnknownModel: the encoder does not exist.
    """
    if task.metric != "bert_ibleu":
        if metric_model is not None:
            raise UsageError(
                f"task {task.name} is scored by {task.metric}, which needs no --metric-model; leave it out"
            )
        return None
    own = task.bertscore
    ref = metric_model or (own.model if own is not None else None)
    if ref is None:
        raise UsageError(
            f"task {task.name} is scored by bert_ibleu, which needs an encoder; name it with --metric-model"
        )
    # The layer of the task belongs to its own checkpoint; of another checkpoint the last layer is compared.
    layer = own.layer if own is not None and metric_model is None else None
    try:
        check_layer(ref, layer)
        return Judge(ref, layer, own is not None and own.idf, fingerprint(ref))
    except UnknownModel as error:
        raise UnknownModel(f"{error}; or name another encoder for bert_ibleu with --metric-model") from None


def dev_choice(task: Task, data: TaskData, dev: str | None, n_dev: int | None) -> tuple[str | None, int | None]:
    """Return the source of the dev labels and their number (``None``: the whole split, or the default share where carved).

    Raises:
        UsageError: there is no dev split, or it has fewer rows than asked for.
    """
    how = dev or task.dev
    n_dev = n_dev if n_dev is not None else task.n_dev
    if how == "none":
        return None, None
    if how == "carved":
        return how, n_dev
    if not data.dev:
        raise UsageError(f"dev {how!r} needs a dev split, and task {task.name} has none; choose carved or none")
    if n_dev is not None and n_dev > len(data.dev):
        raise UsageError(f"{n_dev:,} dev labels asked, the dev split has {len(data.dev):,}; ask for at most that many")
    return how, n_dev
