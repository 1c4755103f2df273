"""Names of the runs of a study, in progress lines and lists."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.engine.point import method_words
from outlay.engine.summary import methods_of
from outlay.money.amounts import format_usd
from outlay.plan.request import Request
from outlay.plan.strategies import rival_of
from outlay.report.grouping import short_model


def run_names(asked: Sequence[Request], *, with_seeds: bool = True) -> list[str]:
    """Return the name of each run: its strategy, budget and seed, then pools, models and methods where runs differ in them.

    ``with_seeds``: False names runs alike that differ in their seeds alone.
    """
    models = tuple(dict.fromkeys(ref for each in asked for ref in (each.teacher, each.student)))
    others = [each for each in asked if rival_of(each.strategy) is None]
    has_models = len({(each.teacher, each.student) for each in others}) > 1
    has_pools = len({each.pool_rows for each in others}) > 1
    has_methods = len({method_words(methods_of(each)) for each in others}) > 1
    names = []
    for each in asked:
        rival = rival_of(each.strategy)
        parts = [each.strategy]
        parts += [] if each.n_initial is None else [f"N = {each.n_initial:,}"]
        parts += [f"{each.pool_rows:,} pool rows"] if has_pools and each.pool_rows is not None else []
        parts += [format_usd(each.budget_micros), *([f"seed {each.seed}"] if with_seeds else [])]
        if rival is None and has_models:
            parts.append(f"{short_model(each.teacher, models)} to {short_model(each.student, models)}")
        if rival is not None and rival.reads_student:
            parts.append(f"of {short_model(each.student, models)}")
        if rival is None and has_methods:
            parts.append(f"by {method_words(methods_of(each))}")
        names.append(", ".join(parts))
    return names
