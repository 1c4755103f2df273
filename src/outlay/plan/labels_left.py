"""Lines for a run that has labelled every row it may: what is left of its budget, who sells labels, which rows have none."""

from __future__ import annotations

from outlay.money.amounts import MICROS_PER_USD, format_usd, show_usd
from outlay.plan.context import PlanningContext
from outlay.plan.request import REPLAY
from outlay.plan.steps import HUMAN, LLM, OWNED, Buy, Distil, Recipe, Score, Train


def lines_on_used_up(
    context: PlanningContext, final: Score | Train | Distil | Buy, left_micros: int
) -> tuple[str, ...]:
    """Return two lines where all train rows are labelled and what is left would pay for one more label; else none.

    ``left_micros``: budget that is left, in micro-dollars. Only the first line tells it, so that runs at several budgets share
    the second one.
    """
    trains = [step for step in Recipe(final, ()).steps() if isinstance(step, Train)]
    largest = max(trains, key=lambda step: step.n_labels, default=None)
    if largest is None or largest.n_labels < context.n_train:
        return ()
    last = largest.labels[-1].seller
    offer = context.offers.get(HUMAN if last == OWNED else last)
    if offer is not None and left_micros < offer.price.cost_micros(offer.typical):
        return ()
    left = show_usd(left_micros / MICROS_PER_USD)
    return (
        f"all {largest.n_labels:,} labels used, {left} left: more labels would have to be bought",
        f"sellers: {_sellers(context)}; {_rows(context)}",
    )


def _sellers(context: PlanningContext) -> str:
    """Return the sellers with their prices, and an LLM with its strategies: the same words for runs of any strategy."""
    sold = [
        f"{name} at {format_usd(offer.price.cost_micros(offer.typical))} a label"
        for name, offer in context.offers.items()
        if name not in (OWNED, LLM) and offer.price.usd > 0
    ]
    if not sold and not (LLM in context.offers and HUMAN not in context.offers):
        sold = [f"{HUMAN} at a price that the task must name (`price_item`)" if HUMAN in context.offers else HUMAN]
    return ", ".join([*sold, f"{LLM} (strategies llm_annotate, mix)"])


def _rows(context: PlanningContext) -> str:
    n = context.n_unlabelled()
    if not any(spec.kind == REPLAY and spec.name != OWNED for spec in context.request.sellers):
        return "they were given every row of `data.train`: add rows to it"
    is_mixed = any(spec.kind != REPLAY for spec in context.request.sellers)
    who = f"{HUMAN} replays" if is_mixed else "they replay"
    if not n:
        return f"so far {who} gold labels, and no pool row is without one"
    return f"so far {who} gold labels, which {n:,} pool rows lack: label those and add them to `data.train`"
