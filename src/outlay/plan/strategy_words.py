"""Strategies in words, for help pages, tables and pages of results. Imports nothing, since a help page loads it."""

from __future__ import annotations

from collections.abc import Iterable

STRATEGY_WORDS = {
    "annotate": "every dollar buys labels for the student",
    "distill": "labels train the teacher, and the student learns from what it says about the pool",
    "self_distill": "as distill, with a teacher of the student's own kind",
    "general_distill": "as annotate, for a student that was distilled before, on general text",
    "llm_annotate": "as annotate, with labels of an LLM",
    "mix": "N labels of people, then labels of an LLM",
    "llm_teach": "as llm_annotate, and the student learns the LLM's probabilities where it gives them",
    "llm_distill": "as distill, with labels of an LLM for the teacher",
}
"""What each strategy of `outlay.plan.strategies` spends a budget on, by its name."""

NEEDS = {
    "general_distill": ("--general-student",),
    "llm_annotate": ("--llm",),
    "mix": ("--n-initial", "--llm"),
    "llm_teach": ("--llm",),
    "llm_distill": ("--llm",),
}
"""Options of the command line that a strategy reads beside those of all."""

BY_RULE = "N by rule: as many labels as leave the compute for the whole pool"


def strategy_lines(names: Iterable[str], *, by_rule: bool = False) -> list[str]:
    """Return a line on each strategy that is named, such as "annotate: every dollar buys labels for the student".

    ``by_rule``: whether some run has the N that a rule chooses.
    """
    named = set(names)
    lines = [f"{name}: {words}" for name, words in STRATEGY_WORDS.items() if name in named]
    return [*lines, BY_RULE] if lines and by_rule else lines
